# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""`pybpfasm.testing`: coverage and the pytest plugin, seen from a test suite of its own."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from pybpfasm.asm import Asm
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.kernel.context import SkBuff
from pybpfasm.program import sched_cls
from pybpfasm.testing import Coverage

ROOT = Path(__file__).resolve().parents[3]


@sched_cls(name="sample")
def sample(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.len  # length
    with b.If((b.r2 > 100) & (b.r2 < 1000)):
        b.r2 = 7  # long
    b.ret(b.r2)


def lines(*texts: str) -> set[int]:
    source = Path(__file__).read_text().splitlines()
    return {n for n, line in enumerate(source, 1) if line.strip() in texts}


def test_lines_and_branches() -> None:
    coverage = Coverage()
    program = coverage.watch(Emulator().load(sample.build()))
    program.run(Skb(bytes(64)))
    (found,) = coverage.files()
    assert found.filename.endswith("test_testing.py")
    assert found.missing == sorted(lines("b.r2 = 7  # long"))
    # Both ends of the condition are known apart.
    ways = {(branch.instruction, branch.taken) for branch in coverage.missing_branches()}
    assert ways == {
        ("if r2 <= 0x64 goto pc+2", False),
        ("if r2 >= 0x3e8 goto pc+1", True),
        ("if r2 >= 0x3e8 goto pc+1", False),
    }
    assert "b.r2 = 7" not in coverage.report().splitlines()[0]
    other = coverage.watch(Emulator().load(sample.build()))
    other.run(Skb(bytes(200)))
    assert coverage.files()[0].missing == []
    assert [branch.taken for branch in coverage.missing_branches()] == [True]
    other.run(Skb(bytes(2000)))
    assert coverage.missing_branches() == []


def test_a_macros_line_counts_with_the_line_that_calls_it() -> None:
    def macro(b: Asm) -> None:
        b.r0 = 1  # in the macro

    @sched_cls(name="caller")
    def caller(b: Asm, ctx: SkBuff) -> None:
        macro(b)  # the call
        b.exit()

    coverage = Coverage()
    coverage.watch(Emulator().load(caller.build())).run(Skb(bytes(64)))
    (found,) = coverage.files()
    assert lines("b.r0 = 1  # in the macro", "macro(b)  # the call") <= found.run


def test_the_data_file(tmp_path: Path) -> None:
    coverage = Coverage()
    coverage.watch(Emulator().load(sample.build())).run(Skb(bytes(64)))
    target = tmp_path / "data"
    for _ in range(2):  # a second one replaces the first
        coverage.write(target)
    base = sqlite3.connect(target)
    try:
        assert base.execute("SELECT version FROM coverage_schema").fetchall() == [(7,)]
        ((path, bits),) = base.execute("SELECT path, numbits FROM file JOIN line_bits ON file_id = file.id")
    finally:
        base.close()
    assert os.path.samefile(path, __file__)
    run = {n for n in range(len(bits) * 8) if bits[n // 8] >> n % 8 & 1}
    assert lines("b.r2 = ctx.len  # length", "import os") <= run  # what is no program's counts as run
    assert not lines("b.r2 = 7  # long") & run


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["pybpfasm.testing.plugin"]\n')
    (tmp_path / "test_sample.py").write_text(
        """
from pybpfasm.emulator import Skb
from pybpfasm.program import sched_cls

@sched_cls(name="sample")
def sample(b, ctx):
    b.r2 = ctx.len
    b.r2 += 1
    b.ret(b.r2)

def test_right(emulator):
    assert emulator.load(sample.build()).run(Skb(bytes(64))).value == 65

def test_wrong(emulator):
    assert emulator.load(sample.build()).run(Skb(bytes(64))).value == 64
"""
    )
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-c",
            os.devnull,
            "--rootdir",
            ".",
            *arguments,
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_a_failing_test_shows_what_ran(suite: Path) -> None:
    shown = run(suite)
    assert "1 failed, 1 passed" in shown
    assert "executed by BPF programs" in shown
    assert "; b.r2 += 1 @ test_sample.py:8" in shown
    assert "r2 += 1" in shown and "r2=65" in shown
    assert shown.count("sample returned 65:") == 1


def test_the_plugin_writes_coverage(suite: Path) -> None:
    shown = run(suite, "--bpf-coverage=data", "-k", "right")
    assert "coverage of BPF programs" in shown and "100%" in shown
    assert (suite / "data").is_file()


_BRANCHES = """
from pybpfasm import Asm, SkBuff, TcxAction, sched_cls

@sched_cls()
def small(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.len
    with b.If(b.r2 < 64):
        b.ret(TcxAction.DROP)
    b.r3 = ctx.mark
    b.If((b.r3 == 7) | (b.r3 == 8)).goto("marked")
    b.ret(TcxAction.NEXT)
    b.label("marked")
    b.ret(TcxAction.PASS)
"""
_BRANCHES_TEST = """
import pytest
from pybpfasm.emulator import Skb
from small import small

@pytest.mark.parametrize(("length", "mark"), [(60, 0), (100, 7)])
def test_it(emulator, length, mark):
    emulator.load(small.build()).run(Skb(bytes(length), mark=mark))
"""


def test_coverage_py_shows_lines_and_branches(suite: Path) -> None:
    """As `coverage report` prints them; `coverage combine` does not take the file for one of its own."""
    (suite / "test_sample.py").write_text(_BRANCHES_TEST)
    (suite / "small.py").write_text(_BRANCHES)
    (suite / "bpf.coveragerc").write_text("[run]\nplugins = pybpfasm.testing.report\n")

    def coverage_py(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "coverage", *arguments],
            cwd=suite,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    def row(shown: str) -> list[str]:
        return next(line for line in shown.splitlines() if line.startswith("small.py")).split(maxsplit=4)

    run(suite, "--bpf-coverage")
    # Eleven statements of Python, of which the one that no packet reached has not run.
    shown = coverage_py("report", "-m", "--data-file=.bpf-coverage")
    assert row(shown) == ["small.py", "11", "1", "91%", "11"]
    run(suite, "--bpf-coverage-branch")
    options = ("--data-file=.bpf-coverage", "--rcfile=bpf.coveragerc")
    # Seven lines of the program, two of them with two ways each, of which one only jumps.
    name, *numbers = row(coverage_py("report", "-m", *options))
    assert (name, numbers[:3]) == ("small.py", ["7", "1", "4"])
    assert numbers[3].split() == ["1", "82%", "11"]
    coverage_py("json", "-o", "report.json", *options)
    found = json.loads((suite / "report.json").read_text())["files"]["small.py"]
    assert sorted(found["executed_branches"]) == [[7, 8], [7, 9], [10, 13]]
    assert found["missing_branches"] == [[10, 11]]
    assert "No data to combine" in coverage_py("combine")
    assert "small.py" in coverage_py("report", *options)


def test_what_a_failing_test_shows_of_a_result_is_short() -> None:
    result = Emulator().load(sample.build()).run(Skb(bytes(1500), mark=7))
    assert repr(result) == "<Result 1500, r0=0x5dc, 5 instructions, packet of 1500 bytes>"
    assert repr(result.context) == "Skb(1500 bytes, mark=7)"
