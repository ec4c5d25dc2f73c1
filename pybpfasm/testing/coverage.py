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
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from pybpfasm import isa
from pybpfasm.emulator.program import Program
from pybpfasm.errors import PybpfasmError, SourceLocation
from pybpfasm.instruction import Instruction
from pybpfasm.listing import text
from pybpfasm.program import ProgramSpec

__all__ = ["Branch", "Coverage", "CoverageError", "FileCoverage"]

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


class CoverageError(PybpfasmError):
    """Coverage that can't be written."""


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


def _path(place: SourceLocation) -> str:
    """The source file, by one name however its place was written; what is in none stays, as ``<stdin>``."""
    path = place.path or place.filename
    return path if path.startswith("<") else os.path.abspath(path)


@dataclass(frozen=True, slots=True)
class _Watched:
    """What coverage needs of a program; its emulator and maps may go."""

    spec: ProgramSpec
    instructions: dict[int, Instruction]
    covered: set[int]
    taken: set[tuple[int, int]]


class Coverage:
    """Collects from programs: `watch` each of them before it runs.

    The same lines in several programs count once: their runs are put together. `data` is what has been
    collected as plain values, and `add` takes in that of another process.
    """

    def __init__(self) -> None:
        self._programs: list[_Watched] = []
        self._added: list[dict[str, Any]] = []

    def __bool__(self) -> bool:
        """Whether there has been any program."""
        return bool(self._programs or any(one["programs"] for one in self._added))

    def watch(self, program: Program) -> Program:
        """Note from now on what *program* executes, which makes it run in the interpreter."""
        program.coverage = True
        self._programs.append(_Watched(program.spec, program.instructions, program.covered, program.taken))
        return program

    def data(self) -> dict[str, Any]:
        """What has been collected, in lists, strings and numbers."""
        return {
            "programs": len(self._programs) + sum(one["programs"] for one in self._added),
            "files": [[one.filename, one.path, sorted(one.lines), sorted(one.run)] for one in self.files()],
            "jumps": [
                [list(key), done, list(astuple(branch))] for key, (done, branch) in self._jumps().items()
            ],
            "ways": [
                [path, *way, taken] for path, ways in self.branches().items() for way, taken in ways.items()
            ],
        }

    def add(self, data: dict[str, Any]) -> None:
        """Take in what `data` of another returned."""
        self._added.append(data)

    def files(self) -> list[FileCoverage]:
        """All source files of the watched programs."""
        found: dict[str, FileCoverage] = {}
        for program in self._programs:
            for slot in program.instructions:
                for place in _places(program.spec.location(slot)):
                    path = _path(place)
                    one = found.setdefault(path, FileCoverage(place.filename, path))
                    one.lines.add(place.line)
                    if slot in program.covered:
                        one.run.add(place.line)
        for added in self._added:
            for filename, path, lines, run in added["files"]:
                one = found.setdefault(path, FileCoverage(filename, path))
                one.lines.update(lines)
                one.run.update(run)
        return sorted(found.values(), key=lambda one: one.filename)

    def missing_branches(self) -> list[Branch]:
        """Ways out of conditional jumps that were never taken, in any place that the statement stands in.

        A jump is known by its line and, where a condition has several comparisons, by its number among them:
        what a macro, a loop in Python or a program of other settings writes again is the same branch. One
        without a line is known by its program and slot.
        """
        return sorted(branch for done, branch in self._jumps().values() if not done)

    def _jumps(self) -> dict[tuple[str, int, int, bool], tuple[bool, Branch]]:
        """Every way out of a conditional jump, whether it has been taken, and the first place that has it."""
        found: dict[tuple[str, int, int, bool], tuple[bool, Branch]] = {}

        def note(key: tuple[str, int, int, bool], done: bool, branch: Branch) -> None:
            before = found.get(key)
            found[key] = (done, branch) if before is None else (done or before[0], before[1])

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
                # No path is relative, so that the name of a program is none.
                known, filename, line, words = (
                    (spec.name, "", slot, "")
                    if place is None
                    else (_path(place), place.filename, place.line, place.text)
                )
                for taken, following in ((True, slot + 1 + insn.offset), (False, slot + 1)):
                    branch = Branch(filename, line, words, text(insn), spec.name, slot, taken)
                    note((known, line, number, taken), (slot, following) in program.taken, branch)
        for added in self._added:
            for (known, line, number, taken), done, fields in added["jumps"]:
                note((known, line, number, taken), done, Branch(*fields))
        return found

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
                path = _path(place)
                ways = found.setdefault(path, {})
                for following in (slot + 1 + insn.offset, slot + 1):
                    there = (one for one in _places(spec.location(following)))
                    # Behind a macro of another file: out of this one.
                    line = next((one.line for one in there if _path(one) == path), -place.line)
                    if line != place.line:
                        way = (place.line, line)
                        ways[way] = ways.get(way, False) or (slot, following) in program.taken
        for added in self._added:
            for path, start, end, taken in added["ways"]:
                ways = found.setdefault(path, {})
                ways[start, end] = ways.get((start, end), False) or taken
        return found

    def write(self, path: str | os.PathLike[str] = ".bpf-coverage", *, branches: bool = False) -> None:
        """Write a data file of coverage.py, for ``coverage report``, ``coverage html`` and editors.

        With *branches*, the file has branches, and ``path`` with ``-possible.json`` behind it what
        `pybpfasm.testing.report` needs to show them. Keep the file apart from that of your Python code, where
        building a program counts as running its lines. Source that is in no file is left out. Raises
        `CoverageError`, and changes nothing, where there is a file already that is no such data.
        """
        target = Path(path)
        problem = refusal(target, branches=branches)
        if problem is not None:
            raise CoverageError(problem)
        try:
            target.unlink(missing_ok=True)
            self._write(target, branches)
        except (OSError, sqlite3.Error) as error:
            raise CoverageError(f"the coverage can't be written to {target}: {error}") from None

    def _write(self, target: Path, branches: bool) -> None:
        can_run: dict[str, dict[str, list[Any]]] = {}
        ways = self.branches() if branches else {}
        base = sqlite3.connect(target)
        try:
            with base:
                base.executescript(_TABLES)
                base.execute("INSERT INTO coverage_schema VALUES (?)", (_SCHEMA_VERSION,))
                base.execute("INSERT INTO meta VALUES ('has_arcs', ?)", (str(int(branches)),))
                base.execute("INSERT INTO context VALUES (1, '')")
                for number, one in enumerate((f for f in self.files() if not f.path.startswith("<")), 1):
                    base.execute("INSERT INTO file VALUES (?, ?)", (number, one.path))
                    if not branches:
                        lines = one.run | _other_statements(one.path, one.lines)
                        base.execute("INSERT INTO line_bits VALUES (?, 1, ?)", (number, _numbits(lines)))
                        continue
                    of_file = ways.get(one.path, {})
                    arcs = {(-1, line) for line in one.run} | {way for way, taken in of_file.items() if taken}
                    base.executemany("INSERT INTO arc VALUES (?, 1, ?, ?)", [(number, *arc) for arc in arcs])
                    base.execute("INSERT INTO tracer VALUES (?, ?)", (number, _PLUGIN))
                    can_run[one.path] = {"lines": sorted(one.lines), "arcs": sorted(map(list, of_file))}
        finally:
            base.close()
        if branches:
            _beside(target).write_text(json.dumps(can_run), encoding="utf-8")


_PLUGIN = "pybpfasm.testing.report.BpfPlugin"
_UNCONDITIONAL = (isa.OP_CALL, isa.OP_CALLX, isa.OP_EXIT, isa.OP_JA, isa.OP_GOTOL, isa.OP_MAY_GOTO)


def _numbits(lines: set[int]) -> bytes:
    bits = bytearray(max(lines, default=0) // 8 + 1)
    for line in lines:
        bits[line // 8] |= 1 << line % 8
    return bytes(bits)


def _other_statements(path: str, lines: set[int]) -> set[int]:
    """The lines on which those Python statements of a file begin that have none of *lines*.

    coverage.py counts a statement over several lines as run where any of them is.
    """
    try:
        tree = ast.parse(Path(path).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.match_case):
            start, end = node.pattern.lineno, node.body[0].lineno - 1
        elif isinstance(node, (ast.stmt, ast.ExceptHandler)):
            start, end = node.lineno, node.end_lineno or node.lineno
            body = getattr(node, "body", None) or getattr(node, "cases", None)
            if body:  # what is within has statements of its own
                first = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
                end = first.lineno - 1
            found.update(decorator.lineno for decorator in getattr(node, "decorator_list", ()))
        else:
            continue
        if lines.isdisjoint(range(start, max(start, end) + 1)):
            found.add(start)
    return found


def refusal(path: Path, *, branches: bool = False) -> str | None:
    """Why coverage may not be written to *path*, or ``None``: nothing but older coverage is replaced."""
    try:
        for one in (path, _beside(path)) if branches else (path,):
            if one.exists() and not one.is_file():  # a directory, a device
                return f"{one} is no file that the coverage could go to"
        if not path.parent.is_dir():
            return f"there is no directory {path.parent} for the coverage"
        if path.exists() and not _is_data(path):
            return f"{path} is there and is no data file of coverage.py: it is not overwritten"
        beside = _beside(path)
        if branches and beside.exists() and possible(beside) is None:
            return f"{beside} is there and is none that was written beside coverage: it is not overwritten"
    except OSError as error:
        return f"the coverage can't be written to {path}: {error}"
    return None


def _beside(path: Path) -> Path:
    # Not behind a dot: coverage.py takes FILE.* for more data, to be combined with that of FILE.
    return Path(f"{path}-possible.json")


def _is_data(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.read(16):
            return True  # an empty file, such as mktemp makes
    base = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        base.execute("SELECT version FROM coverage_schema").fetchall()
    except sqlite3.Error:
        return False
    finally:
        base.close()
    return True


def possible(path: Path) -> dict[str, Any] | None:
    """What `Coverage.write` left beside its data file: by source file, ``lines`` and ``arcs``. ``None`` where
    *path* can't be read or is something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if isinstance(found, dict) and all(
        isinstance(one, dict) and one.keys() == {"lines", "arcs"} for one in found.values()
    ):
        return found
    return None
