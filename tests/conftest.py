# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What runs where, and what may be left out.

A test's folder says what it needs: ``unit`` nothing, ``kernel`` a Linux kernel and the right to load programs
into it, ``e2e`` root and Envoy as well. Where something is missing, the tests are skipped and the end of the
run says so. With CI=true nothing may be skipped but what the kernel is too old for: see `tests.requires`.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.requires import LEFT_OUT, check

HERE = Path(__file__).resolve().parent
# No test reads or writes what this host knows of its kernel, nor do commands that it starts.
os.environ["PYBPFASM_CACHE"] = ""
IN_CI = os.environ.get("CI", "").lower() not in ("", "0", "false")

# include/uapi/linux/capability.h
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_LEFT_OUT = pytest.StashKey[dict[str, list[str]]]()


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def missing(suite: str) -> str:
    """Say what this machine or user lacks to run a suite; an empty string if nothing."""
    if suite == "unit":
        return ""
    if not sys.platform.startswith("linux"):
        return "this is not Linux"
    held = _effective_capabilities()
    lacking = [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
    if lacking:
        return f"{', '.join(lacking)} needed: run as root"
    if suite == "e2e":
        from loader.envoy import find_binary
        from loader.errors import LoaderError

        try:
            find_binary()
        except LoaderError as error:
            return str(error)
    return ""


def _suite(path: Path) -> str:
    try:
        return path.relative_to(HERE).parts[0]
    except ValueError:
        return "unit"


def pytest_configure(config: pytest.Config) -> None:
    """Start the notebook, and hear SIGINT: a shell lets what it starts in the background ignore it."""
    config.stash[_LEFT_OUT] = {}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark every test with its folder, and skip what cannot run here."""
    lacking: dict[str, str] = {}
    for item in items:
        suite = _suite(item.path)
        if suite not in ("kernel", "e2e", "bench"):
            continue
        item.add_marker(suite)
        needs = "kernel" if suite == "bench" else suite
        if suite == "bench" and not any(item.iter_markers("kernel")):
            continue  # a benchmark that needs the kernel says so itself
        if needs not in lacking:
            lacking[needs] = missing(needs)
        if lacking[needs]:
            item.add_marker(pytest.mark.skip(reason=lacking[needs]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note every skip; in CI turn it into a failure unless the kernel is too old for the test."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if IN_CI and LEFT_OUT not in dict(report.user_properties):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, where nothing may be left out: {reason}"
        else:
            item.config.stash[_LEFT_OUT].setdefault(f"{_suite(item.path)}: {reason}", []).append(item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI a whole file may not be skipped either."""
    report = yield
    if report.skipped and IN_CI:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be left out: {reason}"
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what was left out and why."""
    left_out = config.stash[_LEFT_OUT]
    if left_out:
        terminalreporter.section("left out")
        for reason, tests in sorted(left_out.items()):
            terminalreporter.line(f"{len(tests):4} tests of {reason}")


def _bpf_descriptors() -> dict[int, str]:
    """The descriptors of this process that keep a BPF object alive."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue  # the descriptor of this very listing
        if target.startswith(("anon_inode:bpf", "anon_inode:[bpf", "anon_inode:btf")):
            found[int(entry.name)] = target
    return found


@pytest.fixture(autouse=True)
def no_leaked_bpf_descriptors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a program, map, link or BTF descriptor open; wider fixtures may keep theirs."""
    if _suite(request.node.path) not in ("kernel", "e2e"):
        yield
        return
    before = _bpf_descriptors()
    yield
    leaked = {fd: target for fd, target in _bpf_descriptors().items() if fd not in before}
    if leaked:
        gc.collect()  # a reference cycle is no leak, an owner that never closes is
        leaked = {fd: target for fd, target in _bpf_descriptors().items() if fd not in before}
    assert not leaked, f"left open: {leaked}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what this kernel is too old for, before anything is made for it."""
    for mark in item.iter_markers("requires"):
        check(item, *mark.args)


@pytest.fixture
def needs(request: pytest.FixtureRequest) -> Callable[..., None]:
    """What `requires` does, for a test that knows only while it runs what it needs: ``needs(Isa.V4)``."""
    return partial(check, request.node)
