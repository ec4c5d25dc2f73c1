# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""`pybpfasm.testing`: coverage and the pytest plugin, seen from a test suite of its own."""

from __future__ import annotations

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
