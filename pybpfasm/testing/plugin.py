# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The pytest plugin: emulators whose runs a failing test shows.

``emulator`` is a fresh `Emulator` for a test; programs loaded into it are traced, and the report of a failing
test ends with the Python lines that the last runs executed, with the registers that they changed.
``--bpf-coverage[=FILE]`` writes which lines of the programs have run, in coverage.py's format, and with
``--bpf-coverage-branch`` which ways conditional jumps went.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import Any

import pytest

from pybpfasm.emulator import Emulator, EmulatorFault, Program, Result, Step
from pybpfasm.emulator.context import Context
from pybpfasm.emulator.run import DEFAULT_BUDGET, lines
from pybpfasm.program import ProgramSpec
from pybpfasm.testing.coverage import Coverage

_SHOWN_RUNS = 2
_SHOWN_LINES = 200
_RUNS: pytest.StashKey[deque[str]] = pytest.StashKey()
_COVERAGE: pytest.StashKey[Coverage] = pytest.StashKey()


class _TracedProgram(Program):
    """A program all of whose runs are traced for the test that makes them."""

    seen: deque[str]

    def run(
        self, context: Context | None = None, *, budget: int = DEFAULT_BUDGET, trace: bool = True
    ) -> Result:
        try:
            result = super().run(context, budget=budget, trace=True)
        except EmulatorFault as fault:
            self._note(f"{self.spec.name} did not end:", fault.trace)
            raise
        self._note(f"{self.spec.name} returned {result.action}:", result.trace)
        return result

    def _note(self, title: str, trace: tuple[Step, ...]) -> None:
        shown = lines(trace).splitlines()
        if len(shown) > _SHOWN_LINES:
            shown = [f"… {len(shown) - _SHOWN_LINES} lines before", *shown[-_SHOWN_LINES:]]
        self.seen.append("\n".join([title, *shown]))


class _TracedEmulator(Emulator):
    """An emulator that loads programs so that their runs are noted."""

    def __init__(self, seen: deque[str], coverage: Coverage | None, **options: Any) -> None:
        super().__init__(**options)
        self._seen = seen
        self._coverage = coverage

    def load(self, spec: ProgramSpec, *, engine: str | None = None) -> Program:
        self._check_order(spec)
        program = _TracedProgram(self, spec, self.engine if engine is None else engine)
        self.loaded(program)
        program.seen = self._seen
        if self._coverage is not None:
            self._coverage.watch(program)
        return program


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--bpf-coverage`` and ``--bpf-coverage-branch``."""
    group = parser.getgroup("pybpfasm")
    # Not .coverage.bpf: `coverage combine` would take it in, and count every line that was built as run.
    group.addoption(
        "--bpf-coverage",
        nargs="?",
        const=".bpf-coverage",
        metavar="FILE",
        help="write which lines of BPF programs ran in the emulator, in coverage.py's format (.bpf-coverage)",
    )
    group.addoption(
        "--bpf-coverage-branch",
        action="store_true",
        help="with branches, which coverage.py shows with its plugin pybpfasm.testing.report",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect."""
    if _path(config) is not None:
        config.stash[_COVERAGE] = Coverage()


def _path(config: pytest.Config) -> str | None:
    """The file that the coverage goes to, or ``None`` where nobody asked."""
    path: str | None = config.getoption("--bpf-coverage", None)
    return ".bpf-coverage" if path is None and config.getoption("--bpf-coverage-branch", False) else path


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> Emulator:
    """A fresh emulator, whose last runs are shown where the test fails."""
    seen: deque[str] = deque(maxlen=_SHOWN_RUNS)
    request.node.stash[_RUNS] = seen
    return _TracedEmulator(seen, request.config.stash.get(_COVERAGE, None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the executed lines below a failure."""
    report = yield
    seen = item.stash.get(_RUNS, None)
    if report.when == "call" and report.failed and seen:
        report.sections.append(("executed by BPF programs", "\n\n".join(seen)))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write and show the coverage."""
    coverage = config.stash.get(_COVERAGE, None)
    if coverage is not None:
        path = _path(config) or ""
        coverage.write(path, branches=bool(config.getoption("--bpf-coverage-branch")))
        terminalreporter.section("coverage of BPF programs")
        for line in coverage.report().splitlines():
            terminalreporter.line(line)
        terminalreporter.line(f"written to {path}")
