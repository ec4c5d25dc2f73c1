# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""`pybpfasm.testing`: coverage and the pytest plugin, seen from a test suite of its own."""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from pybpfasm.asm import Asm
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import ProgType
from pybpfasm.program import ProgramSpec, sched_cls
from pybpfasm.testing import Coverage, CoverageError
from pybpfasm.text import assemble

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
        # Other plugins take longer to import than the tests to run.
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
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
    shown = coverage_py("report", "-m", *options)
    assert shown.startswith("Name"), shown  # without a warning
    name, *numbers = row(shown)
    assert (name, numbers[:3]) == ("small.py", ["7", "1", "4"])
    assert numbers[3].split() == ["1", "82%", "11"]
    coverage_py("json", "-o", "report.json", *options)
    found = json.loads((suite / "report.json").read_text())["files"]["small.py"]
    assert sorted(found["executed_branches"]) == [[7, 8], [7, 9], [10, 13]]
    assert found["missing_branches"] == [[10, 11]]
    assert "No data to combine" in coverage_py("combine")
    assert "small.py" in coverage_py("report", *options)
    (suite / "small.py").write_bytes(_BRANCHES.replace("DROP)", "DROP)  # \xe9").encode("latin-1"))
    assert "Wrote HTML" in coverage_py("html", *options)  # another encoding, as after an edit
    beside = suite / ".bpf-coverage-possible.json"
    for wrong in ("{", "[]", '{"small.py": 1}'):
        beside.write_text(wrong)
        assert coverage_py("report", *options).startswith(
            ".bpf-coverage-possible.json is not there, or is not"
        )
    beside.unlink()
    assert coverage_py("report", *options).startswith(".bpf-coverage-possible.json is not there, or is not")


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("test_sample.py", "test_sample.py is there and is no data file of coverage.py"),
        ("test_sample.py::test_right", "is the name of a test"),
    ],
)
def test_coverage_goes_to_no_file_that_is_something_else(suite: Path, argument: str, problem: str) -> None:
    """`pytest --bpf-coverage TEST` makes the test's file the option's argument."""
    before = {one.name: one.read_bytes() for one in suite.iterdir() if one.is_file()}
    shown = run(suite, "--bpf-coverage", argument)
    assert problem in shown and "write --bpf-coverage=.bpf-coverage" in shown
    assert "Traceback" not in shown and "passed" not in shown
    assert {one.name: one.read_bytes() for one in suite.iterdir() if one.is_file()} == before


def test_coverage_replaces_nothing_but_older_coverage(tmp_path: Path) -> None:
    coverage = Coverage()
    coverage.watch(Emulator().load(sample.build())).run(Skb(bytes(64)))
    (tmp_path / "data-possible.json").write_text('{"mine": 1}')
    (tmp_path / "notes").write_text("mine too")
    sqlite3.connect(tmp_path / "base").executescript("CREATE TABLE mine (x)").close()
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    os.mkfifo(tmp_path / "pipe")  # like /dev/null no file: not to be replaced by one
    for name, problem in (
        ("data", "data-possible.json is there"),
        ("notes", "notes is there and is no data file of coverage.py"),
        ("base", "base is there"),
        (".", "is no file that the coverage could go to"),
        ("pipe", "is no file that the coverage could go to"),
        ("no/such", "there is no directory"),
    ):
        with pytest.raises(CoverageError, match=problem):
            coverage.write(tmp_path / name, branches=True)
    (tmp_path / "pipe").unlink()
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before
    (tmp_path / "data-possible.json").unlink()
    for branches in (False, True, True, False):
        coverage.write(tmp_path / "data", branches=branches)


def test_a_run_without_programs_keeps_the_data_file(suite: Path) -> None:
    run(suite, "--bpf-coverage=data")
    before = (suite / "data").read_bytes()
    (suite / "test_broken.py").write_text("import no_such_module")
    for arguments in (["--collect-only"], []):
        assert "nothing written" in run(suite, "--bpf-coverage=data", *arguments)
        assert (suite / "data").read_bytes() == before


def test_coverage_that_can_no_more_be_written_fails_the_run(suite: Path) -> None:
    (suite / "sub").mkdir()
    (suite / "test_last.py").write_text("import os\ndef test_last(): os.rmdir('sub')\n")
    shown = run(suite, "--bpf-coverage=sub/data", "-k", "right or last")
    assert "there is no directory" in shown and "INTERNALERROR" not in shown
    assert "written to" not in shown


def test_coverage_is_written_where_the_run_began_and_without_a_terminal(suite: Path) -> None:
    (suite / "sub").mkdir()
    (suite / "test_last.py").write_text("import os\ndef test_last(): os.chdir('sub')\n")
    run(suite, "--bpf-coverage=data", "-p", "no:terminal")
    assert (suite / "data").is_file() and not (suite / "sub" / "data").exists()


def test_workers_of_xdist_are_put_together(suite: Path) -> None:
    (suite / "test_sample.py").write_text(_BRANCHES_TEST)
    (suite / "small.py").write_text(_BRANCHES)

    def data(*arguments: str) -> tuple[str, list[object]]:
        shown = run(suite, "--bpf-coverage=data", "--bpf-coverage-branch", *arguments)
        base = sqlite3.connect(suite / "data")
        try:
            rows = [sorted(base.execute(f"SELECT * FROM {table}")) for table in ("file", "arc", "tracer")]
        finally:
            base.close()
        beside = (suite / "data-possible.json").read_text()
        return shown[shown.index("coverage of BPF") : shown.index("written to data")], [*rows, beside]

    alone = data()
    assert "small.py" in alone[0]
    assert data("-n", "2", "-p", "xdist") == alone


def test_a_worker_that_dies_is_told(suite: Path) -> None:
    (suite / "test_last.py").write_text("import os\ndef test_last(): os._exit(3)\n")
    shown = run(suite, "--bpf-coverage=data", "-n", "1", "-p", "xdist", "--max-worker-restart=0")
    assert "1 of the workers ended without saying what ran in them" in shown


def test_a_failing_fixture_shows_what_ran(suite: Path) -> None:
    (suite / "test_sample.py").write_text(
        (suite / "test_sample.py").read_text()
        + "\nimport pytest\n@pytest.fixture\ndef ran(emulator):\n    test_wrong(emulator)\n"
        "def test_fixture(ran): pass\n"
    )
    shown = run(suite, "-k", "test_fixture")
    assert "1 error" in shown
    assert shown.count("sample returned 65:") == 1


def test_a_long_run_is_shown_from_its_end(suite: Path) -> None:
    (suite / "test_sample.py").write_text(
        (suite / "test_sample.py")
        .read_text()
        .replace("    b.r2 += 1\n", "    for _ in range(300):\n        b.r2 += 1\n")
    )
    shown = run(suite, "-k", "right")
    assert "… 103 instructions before" in shown  # of 1 + 300 + 2
    assert "r2=364" in shown and "r2=65" not in shown


def test_a_program_that_is_not_built(suite: Path) -> None:
    (suite / "test_sample.py").write_text(
        (suite / "test_sample.py").read_text().replace("sample.build()", "sample")
    )
    assert "has not been built yet: load(sample.build(" in run(suite)


_LINES = """\
from pybpfasm import Asm, SkBuff, sched_cls

@sched_cls()
def small(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.len
    with b.If(b.r2 < 64):
        (
            b
            .ret(2)
        )
    match 3:
        case 2:
            b.r3 = 2
        case 3:
            b.r3 = 3
    b.ret(0)
"""


def test_statements_over_lines_and_cases(suite: Path) -> None:
    """A statement is run where a line of it is; a `case` is no line of a program; any encoding will do."""
    (suite / "test_sample.py").write_text(_BRANCHES_TEST.replace("(60, 0), ", ""))
    (suite / "small.py").write_bytes(b"# coding: latin-1\n# \xe9\n" + _LINES.encode())
    shown = run(suite, "--bpf-coverage")
    assert "written to" in shown, shown
    done = subprocess.run(
        [sys.executable, "-m", "coverage", "report", "-m", "--data-file=.bpf-coverage", "--include=small.py"],
        cwd=suite,
        capture_output=True,
        text=True,
        timeout=60,
    )
    # The statement that returns 2 has not run, and begins on line 9.
    row = done.stdout.splitlines()[-3].split()
    assert row == ["small.py", "12", "1", "92%", "9"], done.stdout + done.stderr


def test_programs_without_lines_are_told_apart() -> None:
    coverage = Coverage()
    for name, length in (("one", 100), ("other", 50)):
        code = assemble("r2 = *(u32 *)(r1 +0)\nif r2 > 64 goto +1\nr2 = 0\nr0 = 0\nexit")
        spec = ProgramSpec(name, ProgType.SCHED_CLS, None, "GPL", tuple(code), (), "little")
        coverage.watch(Emulator().load(spec)).run(Skb(bytes(length)))
    assert [(one.program, one.taken) for one in coverage.missing_branches()] == [
        ("one", False),
        ("other", True),
    ]


def test_a_watched_program_keeps_no_emulator() -> None:
    coverage = Coverage()
    emulator = Emulator()
    gone = weakref.ref(emulator)
    coverage.watch(emulator.load(sample.build())).run(Skb(bytes(64)))
    del emulator
    gc.collect()
    assert gone() is None
    assert coverage.files()[0].missing == sorted(lines("b.r2 = 7  # long"))


def test_what_a_failing_test_shows_of_a_result_is_short() -> None:
    result = Emulator().load(sample.build()).run(Skb(bytes(1500), mark=7))
    assert repr(result) == "<Result 1500, r0=0x5dc, 5 instructions, packet of 1500 bytes>"
    # A frame whose length field is 0 is one of IEEE 802.2.
    assert repr(result.context) == r"Skb(1500 bytes, mark=7, protocol=b'\x00\x04')"
