# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Runs the blocks of a page, as its reader would, and compares or writes what they print.

A block of Python has a title, ``python title="count.py"``: it is the file's text, or more of it when the file
is there already. A ``console`` block holds commands, each behind ``$``, or behind ``#`` where root is needed,
with what they print below them. The tests compare this; ``python -m docs.tutorial.blocks PAGE`` (as root)
writes it anew.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ROOT",
    "Block",
    "Command",
    "blocks",
    "commands",
    "run_command",
    "run_page",
    "same_times",
    "write_page",
]

ROOT = Path(__file__).resolve().parents[2]
_TITLE = re.compile(r'python title="([\w.]+)"')
_TIME = re.compile(r"\b\d+\.\d\ds\b")


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind its fence, its lines, and the page's line on which they begin."""

    info: str
    lines: tuple[str, ...]
    line: int

    @property
    def title(self) -> str:
        """The file that a block of Python belongs to, or ``""``."""
        found = _TITLE.fullmatch(self.info)
        return found[1] if found else ""


@dataclass(frozen=True)
class Command:
    """A command, whether root is needed for it, what the page says that it prints, and its line there."""

    text: str
    root: bool
    printed: str
    line: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks of *page*."""
    found: list[Block] = []
    info: str | None = None
    begin = 0
    lines = page.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("```") and info is None:
            info, begin = line[3:].strip(), number + 1
        elif line == "```" and info is not None:
            found.append(Block(info, tuple(lines[begin:number]), begin + 1))
            info = None
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a ``console`` block."""
    found: list[tuple[str, bool, list[str], int]] = []
    for number, line in enumerate(block.lines, block.line):
        if line.startswith(("$ ", "# ")):
            found.append((line[2:], line[0] == "#", [], number))
        else:
            found[-1][2].append(line)
    return [
        Command(text, root, "\n".join(printed).rstrip("\n"), number) for text, root, printed, number in found
    ]


def run_command(text: str, folder: Path) -> str:
    """What a command prints to its standard output and error, run in *folder*; ``python`` is this one."""
    words = [sys.executable if word == "python" else word for word in shlex.split(text)]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))
    }
    # A shell that a command starts finds this one too.
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(  # an emulated processor may take a minute and more
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    return done.stdout.decode().rstrip("\n")


def run_page(
    page: str, folder: Path, *, root: bool, beside: Path | None = None
) -> Iterator[tuple[Command, str]]:
    """Write the page's files and run its commands in order, those for root only with *root*.

    The objects in the folder *beside* the page are there as well.
    """
    if beside is not None and beside.is_dir():
        for path in beside.glob("*.o"):
            shutil.copy(path, folder)
    for block in blocks(page):
        if block.title:
            with (folder / block.title).open("a", encoding="utf-8") as file:
                file.write("\n".join(block.lines) + "\n")
        elif block.info == "console":
            for command in commands(block):
                if root or not command.root:
                    yield command, run_command(command.text, folder)


def same_times(text: str) -> str:
    """*text* without the seconds that a run took."""
    return _TIME.sub("0.00s", text)


def write_page(path: Path) -> None:
    """Put into the page at *path* what its commands print."""
    page = path.read_text(encoding="utf-8")
    lines = page.splitlines()
    with tempfile.TemporaryDirectory() as folder:
        for command, printed in reversed(
            list(run_page(page, Path(folder), root=True, beside=path.with_suffix("")))
        ):
            if same_times(printed) != same_times(command.printed):
                end = command.line
                while lines[end] != "```" and not lines[end].startswith(("$ ", "# ")):
                    end += 1
                lines[command.line : end] = printed.splitlines()
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        write_page(Path(argument))
