# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m pybpfasm elf``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pybpfasm import cli
from pybpfasm.elf import read_object


def main(arguments: list[str]) -> int:
    """The command."""
    return cli.main(["elf", *arguments])


DATA = Path(__file__).parent.parent / "data" / "elf"


def test_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA / "tailcalls_v3.o")]) == 0
    shown = capsys.readouterr().out
    assert "little-endian BPF object, license Dual BSD/GPL" in shown
    assert "dispatch: SCHED_CLS, section tc, 11 slots" in shown
    assert "jumps: PROG_ARRAY, key 4, value 4 bytes, 4 entries" in shown
    assert "[3] is large" in shown
    assert main([str(DATA / "core_v3.o")]) == 0
    assert "needs enumval_value(bpf_map_type___mine.BPF_MAP_TYPE_RINGBUF___mine)" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA / "subprograms_v3.o"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    both = next(program for program in facts["programs"] if program["name"] == "both")
    assert both["functions"] == ["both", "hidden_sum", "mix", "rotate", "weight"]
    assert both["slots"] == read_object((DATA / "subprograms_v3.o").read_bytes()).program("both").slots
    assert {"name": "license", "size": 13, "relocations": 0} in facts["sections"]


def test_listing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(DATA / "subprograms_v3.o"), "--program", "both"]) == 0
    shown = capsys.readouterr().out
    assert "rotate(" in shown and "@ subprograms.c:" in shown and "hash(" not in shown
    assert main([str(DATA / "subprograms_v3.o"), "--listing"]) == 0
    assert "hash(" in capsys.readouterr().out
    assert main([str(DATA / "subprograms_v3.o"), "--btf"]) == 0
    assert "FUNC 'rotate'" in capsys.readouterr().out


def test_extract(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(DATA / "data_v3.o"), "--extract", ".data.separate", "-o", str(out)]) == 0
    assert out.read_bytes() == b"\x09"
    assert main([str(DATA / "tailcalls_v3.o"), "--extract", "small", "-o", str(out)]) == 0
    assert out.read_bytes() == read_object((DATA / "tailcalls_v3.o").read_bytes()).program("small").code()


SHARED = """
from pybpfasm import U32, U64, Asm, Helper, MapSpec, MapType, SkBuff, sched_cls

hits = MapSpec("hits", MapType.ARRAY, U32(), U64(), 1)


@sched_cls()
def first(b: Asm, ctx: SkBuff) -> None:
    b.r1 = hits
    b.ret(0)


@sched_cls()
def second(b: Asm, ctx: SkBuff) -> None:
    b.r1 = hits
    b.ret(0)
"""


def test_programs_of_one_file_share_its_maps(tmp_path: Path) -> None:
    """However the file is named; another file may import it, and a module of Python's have its name."""
    (tmp_path / "of_one_file.py").write_text(SHARED)
    (tmp_path / "glob.py").write_text(SHARED)
    third = SHARED.replace("first", "third").replace("second", "fourth")
    third = third.replace("hits = MapSpec", "from of_one_file import hits\n\nother = MapSpec")
    (tmp_path / "of_another.py").write_text(third)
    relative = os.path.relpath(tmp_path / "of_one_file.py")
    out = tmp_path / "out.o"
    targets = [f"{tmp_path}/of_another.py:third", f"{tmp_path}/of_one_file.py:first", f"{relative}:second"]
    assert main([*targets, "-o", str(out)]) == 0
    read = read_object(out.read_bytes())
    assert set(read.programs) == {"first", "second", "third"}
    assert [one.name for one in read.maps.values()] == ["hits"]
    assert main([f"{tmp_path}/glob.py:first", f"{tmp_path}/glob.py:second", "-o", str(out)]) == 0


@pytest.mark.parametrize(
    "args, message",
    [
        (["/no/such/file"], "error: /no/such/file: No such file"),
        (
            [str(DATA / "data_v3.o"), "--program", "coutn"],
            "no program 'coutn' in the object; did you mean 'count'",
        ),
        ([str(DATA / "data_v3.o"), "--extract", ".none"], "neither a program nor a section is named '.none'"),
    ],
)
def test_errors(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 1
    shown = capsys.readouterr()
    assert message in shown.err and len(shown.err.splitlines()) == 1 and not shown.out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(DATA / "generate")]) == 2
    assert "generate is no ELF object; to write one of programs, give -o FILE" in capsys.readouterr().err
    assert main([str(DATA / "data_v3.o"), str(DATA / "core_v3.o")]) == 2
    assert "give -o FILE to write or link an object" in capsys.readouterr().err


def test_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.o"
    first, second = (str(DATA / "link" / name) for name in ("first.o", "second.o"))
    assert main([first, second, "-o", str(out)]) == 0
    assert list(read_object(out.read_bytes()).programs) == ["first", "second"]
    assert main([first, first, "-o", str(out)]) == 2
    assert "first.o is named twice" in capsys.readouterr().err
    assert main([first, "tests.unit.test_elf_linker:python", "-o", str(out)]) == 1
    assert "'counts' is defined in" in capsys.readouterr().err
