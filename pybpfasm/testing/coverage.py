# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Which lines and branches of programs have run in the emulator.

A line counts as run where any instruction that it wrote has, in any of the programs; the line that calls a
macro counts with the macro's own. A branch is one of the two ways out of a conditional jump. Python lines
that write no instruction are no matter of a program's: they count as run, so that a report shows the others.
"""

from __future__ import annotations

import ast
import json
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybpfasm import isa
from pybpfasm.emulator.program import Program
from pybpfasm.errors import SourceLocation

__all__ = ["Branch", "Coverage", "FileCoverage"]

_SCHEMA_VERSION = 7  # of coverage.py's data files since 5.0
_TABLES = """
CREATE TABLE coverage_schema (version integer);
CREATE TABLE meta (key text, value text, unique (key));
CREATE TABLE file (id integer primary key, path text, unique (path));
CREATE TABLE context (id integer primary key, context text, unique (context));
CREATE TABLE line_bits (
    file_id integer, context_id integer, numbits blob,
    foreign key (file_id) references file (id), foreign key (context_id) references context (id),
    unique (file_id, context_id));
CREATE TABLE arc (
    file_id integer, context_id integer, fromno integer, tono integer,
    foreign key (file_id) references file (id), foreign key (context_id) references context (id),
    unique (file_id, context_id, fromno, tono));
CREATE TABLE tracer (file_id integer primary key, tracer text, foreign key (file_id) references file (id));
"""


@dataclass(frozen=True, order=True)
class Branch:
    """A conditional jump of one place in the source, one way out of which has never been taken.

    ``taken`` says which: the jump itself, or going on behind it.
    """

    filename: str
    line: int
    text: str
    instruction: str
    program: str
    slot: int
    taken: bool

    def __str__(self) -> str:
        way = "never jumps" if self.taken else "always jumps"
        at = f"{self.program} {self.slot}: {self.instruction}"
        return f"{self.filename}:{self.line}: {self.text}  [{at}] {way}"


@dataclass
class FileCoverage:
    """One source file: the lines that wrote instructions, and those of them that ran."""

    filename: str
    path: str
    lines: set[int] = field(default_factory=set)
    run: set[int] = field(default_factory=set)

    @property
    def missing(self) -> list[int]:
        """Lines of which nothing ran."""
        return sorted(self.lines - self.run)


def _places(location: SourceLocation | None) -> Iterable[SourceLocation]:
    while location is not None:
        yield location
        location = location.caller


class Coverage:
    """Collects from programs: `watch` each of them before it runs.

    The same lines in several programs count once: their runs are put together.
    """

    def __init__(self) -> None:
        self._programs: list[Program] = []

    def watch(self, program: Program) -> Program:
        """Note from now on what *program* executes, which makes it run in the interpreter."""
        program.coverage = True
        self._programs.append(program)
        return program

    def files(self) -> list[FileCoverage]:
        """All source files of the watched programs."""
        found: dict[str, FileCoverage] = {}
        for program in self._programs:
            for slot in program.instructions:
                for place in _places(program.spec.location(slot)):
                    name = place.path or place.filename
                    one = found.setdefault(name, FileCoverage(place.filename, name))
                    one.lines.add(place.line)
                    if slot in program.covered:
                        one.run.add(place.line)
        return sorted(found.values(), key=lambda one: one.filename)

    def missing_branches(self) -> list[Branch]:
        """Ways out of conditional jumps that were never taken, in any place that the statement stands in.

        A jump is known by its line and, where a condition has several comparisons, by its number among them:
        what a macro, a loop in Python or a program of other settings writes again is the same branch.
        """
        seen: dict[tuple[str, int, int, bool], bool] = {}
        where: dict[tuple[str, int, int, bool], Branch] = {}
        for program in self._programs:
            spec = program.spec
            before: object = None
            number = 0
            for insn, slot in zip(spec.instructions, program.instructions, strict=True):
                number = number + 1 if insn.origin is not None and insn.origin is before else 0
                before = insn.origin
                if insn.opcode & 7 not in (isa.JMP, isa.JMP32) or insn.opcode in _UNCONDITIONAL:
                    continue
                place = spec.location(slot)
                filename, line, text = (
                    ("", slot, "") if place is None else (place.filename, place.line, place.text)
                )
                for taken, following in ((True, slot + 1 + insn.offset), (False, slot + 1)):
                    key = (filename, line, number, taken)
                    seen[key] = seen.get(key, False) or (slot, following) in program.taken
                    if key not in where:
                        where[key] = Branch(filename, line, text, program.text(slot), spec.name, slot, taken)
        return sorted(where[key] for key, done in seen.items() if not done)

    def report(self) -> str:
        """Lines and branches in words."""
        out = []
        files = self.files()
        width = max((len(one.filename) for one in files), default=4)
        for one in files:
            share = 100 * len(one.run) // max(1, len(one.lines))
            gaps = ", ".join(map(str, one.missing))
            out.append(f"{one.filename:<{width}} {len(one.lines):>5} {share:>4}%  {gaps}".rstrip())
        out += [str(branch) for branch in self.missing_branches()]
        return "\n".join(out)

    def branches(self) -> dict[str, dict[tuple[int, int], bool]]:
        """By path of the source file: pairs of a conditional jump's line and a line that it leads to, and
        whether it has been taken. A way that stays on the line, as within a condition, is none."""
        found: dict[str, dict[tuple[int, int], bool]] = {}
        for program in self._programs:
            spec = program.spec
            for slot, insn in program.instructions.items():
                if insn.opcode & 7 not in (isa.JMP, isa.JMP32) or insn.opcode in _UNCONDITIONAL:
                    continue
                place = spec.location(slot)
                if place is None:
                    continue
                path = place.path or place.filename
                ways = found.setdefault(path, {})
                for following in (slot + 1 + insn.offset, slot + 1):
                    there = (one for one in _places(spec.location(following)))
                    # Behind a macro of another file: out of this one.
                    line = next(
                        (one.line for one in there if (one.path or one.filename) == path), -place.line
                    )
                    if line != place.line:
                        way = (place.line, line)
                        ways[way] = ways.get(way, False) or (slot, following) in program.taken
        return found

    def write(self, path: str | os.PathLike[str] = ".bpf-coverage", *, branches: bool = False) -> None:
        """Write a data file of coverage.py, for ``coverage report``, ``coverage html`` and editors.

        With *branches*, the file has branches, and ``path`` with ``.json`` behind it what
        `pybpfasm.testing.report` needs to show them. Keep the file apart from that of your Python code, where
        building a program counts as running its lines.
        """
        target = Path(path)
        target.unlink(missing_ok=True)
        possible: dict[str, dict[str, list[Any]]] = {}
        ways = self.branches() if branches else {}
        base = sqlite3.connect(target)
        try:
            with base:
                base.executescript(_TABLES)
                base.execute("INSERT INTO coverage_schema VALUES (?)", (_SCHEMA_VERSION,))
                base.execute("INSERT INTO meta VALUES ('has_arcs', ?)", (str(int(branches)),))
                base.execute("INSERT INTO context VALUES (1, '')")
                for number, one in enumerate(self.files(), 1):
                    name = os.path.abspath(one.path)
                    base.execute("INSERT INTO file VALUES (?, ?)", (number, name))
                    if not branches:
                        lines = one.run | (_statements(one.path) - one.lines)
                        base.execute("INSERT INTO line_bits VALUES (?, 1, ?)", (number, _numbits(lines)))
                        continue
                    of_file = ways.get(one.path, {})
                    arcs = {(-1, line) for line in one.run} | {way for way, taken in of_file.items() if taken}
                    base.executemany("INSERT INTO arc VALUES (?, 1, ?, ?)", [(number, *arc) for arc in arcs])
                    base.execute("INSERT INTO tracer VALUES (?, ?)", (number, _PLUGIN))
                    possible[name] = {"lines": sorted(one.lines), "arcs": sorted(map(list, of_file))}
        finally:
            base.close()
        if branches:
            Path(f"{target}.json").write_text(json.dumps(possible), encoding="utf-8")


_PLUGIN = "pybpfasm.testing.report.BpfPlugin"
_UNCONDITIONAL = (isa.OP_CALL, isa.OP_CALLX, isa.OP_EXIT, isa.OP_JA, isa.OP_GOTOL, isa.OP_MAY_GOTO)


def _numbits(lines: set[int]) -> bytes:
    bits = bytearray(max(lines, default=0) // 8 + 1)
    for line in lines:
        bits[line // 8] |= 1 << line % 8
    return bytes(bits)


def _statements(path: str) -> set[int]:
    """The lines on which Python statements of a file begin."""
    try:
        tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return set()
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.stmt, ast.ExceptHandler)):
            found.add(node.lineno)
            for decorator in getattr(node, "decorator_list", ()):
                found.add(decorator.lineno)
    return found
