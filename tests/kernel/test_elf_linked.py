# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Linked objects in the kernel: those that we link and those that bpftool links, loaded by either."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from loader.bpffs import BpfFs
from loader.elf import load
from loader.errors import UsageError
from loader.objects import Program
from pybpfasm.elf import link_objects, write_object
from tests.kernel.test_elf_objects import bpftool as bpftool
from tests.kernel.test_elf_objects import dump
from tests.unit.test_elf_linker import DATA, FIRST, SECOND, THEIRS, THIRD, _named, python, twice

MINE = write_object(
    [python.build()], functions={"int twice(struct __sk_buff *skb, int x)": twice}, external_maps=["counts"]
)


def _results(data: bytes) -> list[tuple[str, int]]:
    """What the programs return, run in turns."""
    with load(data) as loaded:
        programs = [loaded.programs[name] for name in sorted(loaded.programs)] * 2
        return [
            (program.info().name, program.test_run(bytes(length)).retval)
            for length in (64, 77)
            for program in programs
        ]


def test_linked_by_us_and_by_bpftool_run_alike() -> None:
    ours = _results(link_objects([FIRST, SECOND]))
    assert ours == _results(THEIRS)
    assert len({result for _, result in ours}) == len(ours)


@pytest.mark.parametrize("order", [("first", "third", "mine"), ("mine", "third", "first")])
def test_python_and_c_in_one_object(
    bpftool: Callable[..., str], bpffs: BpfFs, tmp_path: Path, order: tuple[str, ...]
) -> None:
    parts = {"first": FIRST, "third": THIRD, "mine": MINE}
    for name, data in parts.items():
        (tmp_path / f"{name}.o").write_bytes(data)
    ours = link_objects({name: parts[name] for name in order})
    (tmp_path / "ours.o").write_bytes(ours)
    bpftool("gen", "object", tmp_path / "theirs.o", *(tmp_path / f"{name}.o" for name in order))
    for name in ("ours", "theirs"):
        bpftool("prog", "loadall", tmp_path / f"{name}.o", bpffs.root / name)
    (bpffs.root / "loaded").mkdir()
    with load(ours) as loaded:
        assert sorted(loaded.programs) == ["first", "python", "third"]
        for name, program in loaded.programs.items():
            program.pin(bpffs.root / "loaded" / name)
            dumped = dump(bpftool, bpffs.root / "loaded" / name)
            assert dumped == dump(bpftool, bpffs.root / "ours" / name)
            assert dumped == dump(bpftool, bpffs.root / "theirs" / name)
        # The map and the variable of C, and functions both ways.
        run = loaded.programs["python"].test_run
        assert run(bytes(64)).retval == 3 * 64 + 1000
        loaded.programs["first"].test_run(bytes(64))
        assert run(bytes(64)).retval == 1 + 3 * 64 + 2000
        assert loaded.programs["third"].test_run(bytes(64)).retval == 2 * 100 * 64 + 1
        with Program.from_pin(bpffs.root / "theirs" / "python") as other:
            assert other.test_run(bytes(64)).retval == 3 * 64 + 1000


def test_programs_that_are_optional_and_types_that_are_not_supported() -> None:
    data = (DATA / "link" / "kinds.o").read_bytes()
    with load(data) as loaded:
        assert list(loaded.programs) == ["always"]
    with load(data, programs=["optional"]) as loaded:
        assert loaded.programs["optional"].test_run(bytes(64)).retval == 1
    message = r"is of type STRUCT_OPS, which is loaded for one function or structure"
    with pytest.raises(UsageError, match=message):
        load(data, programs=["operation"])
    strange = write_object([_named("strange")], sections={"strange": "whatever"})
    with pytest.raises(UsageError, match="in section 'whatever', which is the name of no program type"):
        load(strange)
