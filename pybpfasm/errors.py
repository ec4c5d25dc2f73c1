# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Errors of the library, and the source location that each of them points at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A line of the Python program that wrote an instruction.

    ``filename`` is the module's path below its import root (``programs/tc_ingress.py``), so that it is the
    same on every machine; ``path`` is where the file is here, for reading the text. ``caller`` is the line
    that called the macro in which this line stands.
    """

    filename: str
    line: int
    function: str
    text: str = ""
    path: str = field(default="", compare=False)
    caller: SourceLocation | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.filename}:{self.line}"


class PybpfasmError(Exception):
    """Base class of every error that this library raises on purpose.

    All of them can be pickled, so that they come out of a pool of processes as they are.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # As made, without `__init__`, whose arguments are not those of the message.
        return _again, (type(self), self.args, self.__dict__)


def _again(cls: type[PybpfasmError], args: tuple[Any, ...], state: dict[str, Any]) -> PybpfasmError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


class AsmError(PybpfasmError):
    """A mistake in a program, reported at the Python line that made it.

    ``location`` is that line, or ``None`` where no line is to blame.
    """

    def __init__(self, message: str, location: SourceLocation | None = None) -> None:
        self.message = message
        self.location = location
        super().__init__(message)

    def __str__(self) -> str:
        if self.location is None:
            return self.message
        lines = [f"{self.location}: {self.message}"]
        if self.location.text:
            lines.append(f"    {self.location.text}")
        caller = self.location.caller
        while caller is not None:
            lines.append(f"  called from {caller} in {caller.function}: {caller.text}")
            caller = caller.caller
        return "\n".join(lines)


class LayoutError(PybpfasmError):
    """A structure or map that can't be declared so, or a value that does not fit its field."""


class DecodeError(PybpfasmError):
    """Bytes that are not a valid instruction; the message names the byte offset and the field."""


def suggestion(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` when *known* holds something close to *name*, else ``""``."""
    import difflib  # only where something is wrong

    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
