# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The pytest plugin: emulators whose runs a failing test shows.

``emulator`` is a fresh `Emulator` for a test; programs loaded into it are traced, and the report of a failing
test ends with the Python lines that the last runs executed, with the registers that they changed.
``--bpf-coverage[=FILE]`` writes which lines of the programs have run, in coverage.py's format, and with
``--bpf-coverage-branch`` which ways conditional jumps went. With pytest-xdist the runs of all workers count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from pybpfasm.emulator import Emulator, EmulatorFault, Program, Result, Step
from pybpfasm.emulator.context import Context
from pybpfasm.emulator.run import DEFAULT_BUDGET, lines
from pybpfasm.program import ProgramSpec
from pybpfasm.testing.coverage import Coverage, CoverageError, refusal

_SHOWN_RUNS = 2
_SHOWN_STEPS = 200
_Runs = deque[tuple[str, tuple[Step, ...]]]
_RUNS: pytest.StashKey[_Runs] = pytest.StashKey()
_COVERAGE: pytest.StashKey[Coverage] = pytest.StashKey()
_TARGET: pytest.StashKey[Path] = pytest.StashKey()
_PROBLEM: pytest.StashKey[str] = pytest.StashKey()
_WORKERS: pytest.StashKey[list[bool]] = pytest.StashKey()
# Under which the coverage of a worker of pytest-xdist is in what it gives back.
_OUTPUT = "pybpfasm_coverage"


class _TracedProgram(Program):
    """A program all of whose runs are traced for the test that makes them."""

    seen: _Runs

    def run(
        self, context: Context | None = None, *, budget: int = DEFAULT_BUDGET, trace: bool = True
    ) -> Result:
        try:
            result = super().run(context, budget=budget, trace=True)
        except EmulatorFault as fault:
            self.seen.append((f"{self.spec.name} did not end:", fault.trace))
            raise
        self.seen.append((f"{self.spec.name} returned {result.action}:", result.trace))
        return result


def _shown(title: str, trace: tuple[Step, ...]) -> str:
    left_out = len(trace) - _SHOWN_STEPS
    before = [f"… {left_out} instructions before"] if left_out > 0 else []
    return "\n".join([title, *before, lines(trace[-_SHOWN_STEPS:])])


class _TracedEmulator(Emulator):
    """An emulator that loads programs so that their runs are noted."""

    def __init__(self, seen: _Runs, coverage: Coverage | None) -> None:
        super().__init__()
        self._seen = seen
        self._coverage = coverage

    def load(self, spec: ProgramSpec, *, engine: str | None = None) -> Program:
        program = super().load(spec, engine=engine)
        if self._coverage is not None:
            self._coverage.watch(program)
        return program

    def make(self, spec: ProgramSpec, engine: str) -> Program:
        program = _TracedProgram(self, spec, engine)
        program.seen = self._seen
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
    """Begin to collect; a file that could not be written is refused before the tests."""
    name = _name(config)
    if name is None:
        return
    target = config.invocation_params.dir / name
    if not hasattr(config, "workerinput"):
        problem = refusal(target, branches=_branches(config))
        if problem is None and ("::" in name or target.suffix == ".py"):
            problem = f"{name} is the name of a test, not of a file for the coverage"
        if problem is not None:
            raise pytest.UsageError(
                f"--bpf-coverage: {problem} (what follows the option is its FILE: write "
                "--bpf-coverage=.bpf-coverage)"
            )
    config.stash[_COVERAGE] = Coverage()
    config.stash[_TARGET] = target
    config.stash[_WORKERS] = []


def _name(config: pytest.Config) -> str | None:
    """The file that the coverage goes to, or ``None`` where nobody asked."""
    name: str | None = config.getoption("--bpf-coverage", None)
    return ".bpf-coverage" if name is None and _branches(config) else name


def _branches(config: pytest.Config) -> bool:
    return bool(config.getoption("--bpf-coverage-branch", False))


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> Emulator:
    """A fresh emulator, whose last runs are shown where the test fails."""
    seen: _Runs = deque(maxlen=_SHOWN_RUNS)
    request.node.stash[_RUNS] = seen
    return _TracedEmulator(seen, request.config.stash.get(_COVERAGE, None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the executed lines below a failure."""
    report = yield
    seen = item.stash.get(_RUNS, None)
    if report.failed and seen:
        report.sections.append(("executed by BPF programs", "\n\n".join(_shown(*one) for one in seen)))
        seen.clear()
    if report.when == "teardown" and seen is not None:
        del item.stash[_RUNS]  # the item lives as long as the session
    return report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what a worker of pytest-xdist has collected; one that died has nothing."""
    coverage = node.config.stash.get(_COVERAGE, None)
    if coverage is not None:
        data = (getattr(node, "workeroutput", None) or {}).get(_OUTPUT)
        node.config.stash[_WORKERS].append(data is not None)
        if data is not None:
            coverage.add(data)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the coverage, or hand it to the process that does; no run of a program replaces none."""
    config = session.config
    coverage = config.stash.get(_COVERAGE, None)
    if coverage is None:
        return
    if hasattr(config, "workeroutput"):
        config.workeroutput[_OUTPUT] = coverage.data()
    elif coverage:
        try:
            coverage.write(config.stash[_TARGET], branches=_branches(config))
        except CoverageError as error:
            config.stash[_PROBLEM] = str(error)
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Show the coverage."""
    coverage = config.stash.get(_COVERAGE, None)
    if coverage is None:
        return
    terminalreporter.section("coverage of BPF programs")
    lost = config.stash[_WORKERS].count(False)
    if lost:
        terminalreporter.line(f"{lost} of the workers ended without saying what ran in them")
    if not coverage:
        terminalreporter.line("no program was loaded into the fixture `emulator`: nothing written")
        return
    for line in coverage.report().splitlines():
        terminalreporter.line(line)
    done = f"written to {_name(config)}"
    if _branches(config):
        done += ", which coverage.py shows with `plugins = pybpfasm.testing.report`"
    terminalreporter.line(config.stash.get(_PROBLEM, done))
