# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The vectors of tests/data/conformance, read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pybpfasm.errors import DecodeError
from pybpfasm.instruction import Instruction, decode
from pybpfasm.text import assemble

DATA = Path(__file__).resolve().parent / "data" / "conformance"


@dataclass(frozen=True)
class Vector:
    """One file: the text of its sections by name, comments of the memory and of numbers taken away."""

    name: str
    sections: dict[str, str]

    def instructions(self) -> list[Instruction]:
        """The program, from assembly or from ``raw``.

        Raises `TextError`, `DecodeError`; a vector without instructions is none.
        """
        found = assemble(self.sections.get("asm", ""), filename=self.name)
        if not found and "raw" in self.sections:
            found = decode(self.raw())
        if not found:
            raise DecodeError(f"{self.name} has no instructions")
        return found

    def raw(self) -> bytes:
        """The section ``raw``: 64-bit words (little-endian in memory), or bytes."""
        words = self.sections["raw"].split()
        if any(word.startswith("0x") for word in words):
            return b"".join(int(word, 16).to_bytes(8, "little") for word in words)
        return bytes.fromhex("".join(words))

    @property
    def mem(self) -> bytes:
        """The memory whose address r1 holds."""
        return bytes.fromhex(self.sections.get("mem", ""))

    @property
    def result(self) -> int | None:
        """What r0 is at the end, unsigned."""
        words = self.sections.get("result", "").split()
        return int(words[0], 0) if words else None


def read(path: Path) -> Vector:
    """The vector in a file."""
    sections: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in path.read_text().splitlines():
        if "--" in line.partition("#")[0]:
            lines = sections.setdefault(line.partition("--")[2].strip(), [])
        elif lines is not None:
            lines.append(line)
    return Vector(
        path.stem,
        {
            name: "\n".join(line if name == "asm" else line.partition("#")[0] for line in lines)
            for name, lines in sections.items()
        },
    )


def vectors(folder: str) -> list[Vector]:
    """All of ``tests`` or of ``negative``."""
    return [read(path) for path in sorted((DATA / folder).glob("*.data"))]
