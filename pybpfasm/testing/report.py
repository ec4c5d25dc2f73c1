# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A plugin of coverage.py that shows lines and branches of BPF programs as such.

To Python, ``b.If(…).goto(…)`` is one statement without branches. `Coverage.write` with ``branches=True``
therefore leaves beside its data file what could have run, FILE-possible.json, and this plugin tells it to
coverage.py:

    [run]
    plugins = pybpfasm.testing.report

    [pybpfasm.testing.report]
    possible = .bpf-coverage-possible.json

Only this module imports coverage.py.
"""

from __future__ import annotations

import os
import tokenize
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from coverage import CoverageException, CoveragePlugin, FileReporter

from pybpfasm.testing.coverage import possible

__all__ = ["BpfPlugin", "BpfReporter", "coverage_init"]


class BpfReporter(FileReporter):
    """One source file: the lines that wrote instructions, and where its conditional jumps may lead."""

    def __init__(self, filename: str, lines: Iterable[int], arcs: Iterable[Iterable[int]]) -> None:
        super().__init__(filename)
        self._lines = set(lines)
        self._arcs = {(start, end) for start, end in arcs}

    def source(self) -> str:
        """The text of the file; of Python in the encoding that it declares, of anything else in UTF-8."""
        try:
            with tokenize.open(self.filename) as file:
                return file.read()
        except (SyntaxError, ValueError):
            return Path(self.filename).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise CoverageException(f"{self.filename} can't be read: {error.strerror}") from None

    def lines(self) -> set[int]:
        """The lines that wrote instructions."""
        return self._lines

    def arcs(self) -> set[tuple[int, int]]:
        """Pairs of lines: a conditional jump, and where it may go on."""
        return self._arcs

    def exit_counts(self) -> dict[int, int]:
        """How many ways lead out of a line that has a conditional jump."""
        return dict(Counter(start for start, _ in self._arcs))


class BpfPlugin(CoveragePlugin):
    """Reports on files of the data that `Coverage.write` has written."""

    def __init__(self, possible: str) -> None:
        self._path = possible
        self._files: dict[str, Any] | None = None

    def file_reporter(self, filename: str) -> FileReporter:
        """What could have run of a file.

        Raises ``CoverageException``, which coverage.py prints, where FILE-possible.json can't be read.
        """
        if self._files is None:
            self._files = possible(Path(self._path))
        if self._files is None:
            raise CoverageException(
                f"{self._path} is not there, or is not what --bpf-coverage-branch leaves behind: set "
                "`possible` below [pybpfasm.testing.report] to the path of FILE-possible.json"
            )
        found = self._files.get(os.path.abspath(filename), {"lines": [], "arcs": []})
        return BpfReporter(filename, found["lines"], found["arcs"])


def coverage_init(reg: Any, options: dict[str, Any]) -> None:
    """What coverage.py calls."""
    reg.add_file_tracer(BpfPlugin(str(options.get("possible", ".bpf-coverage-possible.json"))))
