# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a program does wrong while it runs, and how that is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pybpfasm.errors import PybpfasmError, SourceLocation

if TYPE_CHECKING:
    from pybpfasm.emulator.run import Step

__all__ = ["EmulatorError", "EmulatorFault", "Violation"]


class EmulatorError(PybpfasmError):
    """The emulator is used wrongly: a missing map, a context that does not go with the program, and so on."""


def choose(argument: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse an argument's *value* that is none of *choices*; raises `EmulatorError`."""
    if value not in choices:
        known = ", ".join(map(repr, choices))
        raise EmulatorError(f"{argument}={value!r} is none of {known}")


class Violation(Exception):
    """A rule that an instruction or a helper's caller breaks; the engine makes an `EmulatorFault` of it."""


class EmulatorFault(PybpfasmError):
    """A program broke a rule of the kernel's at run time.

    ``reason`` says which; ``slot`` is the instruction's 8-byte slot, ``location`` the Python line that wrote
    it, ``registers`` what r0 to r10 held (``None``: not set), described in ``shown``.
    """

    def __init__(
        self,
        reason: str,
        program: str,
        slot: int,
        text: str,
        location: SourceLocation | None,
        registers: tuple[int | None, ...],
        shown: tuple[str, ...],
    ) -> None:
        self.reason = reason
        self.program = program
        self.slot = slot
        self.text = text
        self.location = location
        self.registers = registers
        self.shown = shown
        self.trace: tuple[Step, ...] = ()  # what ran before, where the run was traced
        super().__init__(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        # The trace stays: its steps hold the program and all that it ran on.
        again, (cls, args, state) = super().__reduce__()
        return again, (cls, args, {**state, "trace": ()})

    def __str__(self) -> str:
        where = f"{self.location}: " if self.location is not None else ""
        lines = [f"{where}{self.reason}"]
        location = self.location
        if location is not None and location.text:
            lines.append(f"    {location.text}")
        caller = None if location is None else location.caller
        while caller is not None:
            lines.append(f"  called from {caller} in {caller.function}: {caller.text}")
            caller = caller.caller
        lines.append(f"  {self.program}, slot {self.slot}: {self.text}")
        held = [f"r{i}={text}" for i, text in enumerate(self.shown) if text != "unset"]
        for start in range(0, len(held), 6):
            lines.append("  " + " ".join(held[start : start + 6]))
        return "\n".join(lines)
