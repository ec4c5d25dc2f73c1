# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pybpfasm.errors import SourceLocation

__all__ = ["Finding", "Severity"]


class Severity(Enum):
    """``ERROR``: the kernel certainly rejects the program.

    ``WARNING``: it does so unless it finds, by the values that registers have, that this can't happen.
    """

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a program.

    ``slot`` is the instruction's 8-byte slot, ``code`` a short name of the kind of mistake, ``related`` are
    other lines that have to do with it, each with what it did.
    """

    severity: Severity
    code: str
    slot: int
    message: str
    instruction: str = ""
    location: SourceLocation | None = None
    related: tuple[tuple[str, int, SourceLocation | None], ...] = ()

    def __str__(self) -> str:
        where = f"instruction {self.slot}" if self.location is None else str(self.location)
        lines = [f"{where}: {self.severity.value}: {self.message} [{self.code}]"]
        if self.location is not None and self.location.text:
            lines.append(f"    {self.location.text}")
        lines.append(f"    {self.slot}: {self.instruction}")
        caller = None if self.location is None else self.location.caller
        while caller is not None:
            lines.append(f"  called from {caller} in {caller.function}: {caller.text}")
            caller = caller.caller
        for what, slot, location in self.related:
            place = f"instruction {slot}" if location is None else f"{location}: {location.text}"
            lines.append(f"  {what} {place}")
        return "\n".join(lines)
