# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The error of the text parser."""

from __future__ import annotations

from typing import Final

from pybpfasm.errors import PybpfasmError

# As much of a line as an error shows.
_SHOWN: Final = 100


class TextError(PybpfasmError):
    """Text that is no assembly.

    ``line`` and ``column`` count from 1; ``text`` is the line. Printed, it shows the place and marks it.
    """

    def __init__(self, message: str, line: int, column: int, text: str, filename: str = "<text>") -> None:
        self.message = message
        self.line = line
        self.column = column
        self.text = text
        self.filename = filename
        super().__init__(message)

    def __str__(self) -> str:
        start = max(0, self.column - 1 - _SHOWN // 2) if len(self.text) > _SHOWN else 0
        shown = self.text[start : start + _SHOWN].rstrip()
        # One printed column for every character, or the mark would be off.
        shown = "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in shown)
        where = f"{self.filename}:{self.line}:{self.column}: {self.message}"
        if not shown.strip():
            return where
        return f"{where}\n    {shown}\n    {' ' * (self.column - 1 - start)}^"
