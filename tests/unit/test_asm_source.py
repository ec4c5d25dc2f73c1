# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Every instruction knows its Python line, and the same source gives the same bytes everywhere."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pybpfasm.asm import Asm, imm64
from pybpfasm.btf import Btf
from pybpfasm.instruction import decode
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import Helper, MapType
from pybpfasm.layout import U32, U64, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec, sched_cls, subprogram

ROOT = Path(__file__).resolve().parents[2]
HERE = "tests/unit/test_asm_source.py"
SOURCE = Path(__file__).read_text(encoding="utf-8").splitlines()


def line_with(text: str) -> int:
    """The number of the one line of this file that ends in ``# text``."""
    return next(number for number, line in enumerate(SOURCE, 1) if line.endswith(f"  # {text}"))


def lines(spec: ProgramSpec) -> list[int]:
    """The Python line of each slot."""
    found = [spec.location(slot) for slot in range(spec.slots)]
    return [where.line for where in found if where is not None]


def outer(b: Asm) -> None:
    inner(b, 1)  # outer first
    inner(b, 2)  # outer second


def inner(b: Asm, value: int) -> None:
    b.r2 = value  # inner


def test_macros_know_who_called_them() -> None:
    """The line is the macro's own; its callers, up to the program's function, hang on it."""

    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        outer(b)  # main
        b.ret(0)

    spec = main.build()
    for slot, called in ((0, "outer first"), (1, "outer second")):
        where = spec.location(slot)
        assert where is not None and where.caller is not None and where.caller.caller is not None
        assert where.filename.endswith("test_asm_source.py")
        assert (where.line, where.function) == (line_with("inner"), "inner")
        assert where.text == "b.r2 = value  # inner"
        assert (where.caller.line, where.caller.function) == (line_with(called), "outer")
        assert where.caller.caller.line == line_with("main")
        assert where.caller.caller.caller is None
    assert spec.location(-1) is None and spec.location(spec.slots) is None


def test_statements_of_several_lines_and_other_ways_to_call() -> None:
    """A statement belongs to one line; lambdas, loops, comprehensions and decorated functions have theirs."""

    def twice(function: Callable[[Asm], None]) -> Callable[[Asm], None]:
        @functools.wraps(function)
        def wrapped(b: Asm) -> None:
            function(b)  # wrapped
            function(b)

        return wrapped

    @twice
    def decorated(b: Asm) -> None:
        b.r3 = 3  # decorated

    @sched_cls(check=False)
    def main(b: Asm, ctx: SkBuff) -> None:
        b.If(
            (b.r2 == 1) & (b.r3 == 2)  # several lines
        ).goto("out")
        set_r4: Callable[[], Any] = lambda: setattr(b, "r4", 4)  # noqa: E731  # lambda
        set_r4()

        def set_to_0(name: str) -> bool:
            setattr(b, name, 0)  # set
            return True

        all(set_to_0(name) for name in ("r5", "r6"))
        decorated(b)
        b.label("out")
        b.ret(0)  # end

    expected = ["several lines"] * 2 + ["lambda"] + ["set"] * 2 + ["decorated"] * 2 + ["end"] * 2
    assert lines(main.build()) == [line_with(name) for name in expected]


def test_a_generator_is_called_by_whoever_resumes_it() -> None:
    """Its frame goes on where it stopped, under another caller."""

    def steps(b: Asm) -> Iterator[None]:
        b.r2 = 1
        yield
        b.r2 = 2
        yield

    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        running = steps(b)
        next(running)  # first resumed
        next(running)  # then resumed
        b.ret(0)

    spec = main.build()
    callers = [where.caller.line for slot in (0, 1) if (where := spec.location(slot)) and where.caller]
    assert callers == [line_with("first resumed"), line_with("then resumed")]


def test_blocks_belong_to_their_with() -> None:
    """The jumps that a block makes are blamed on the line of its ``with``."""

    @sched_cls(check=False)
    def main(b: Asm, ctx: SkBuff) -> None:
        with b.If(b.r2 == 1):  # if
            b.r3 = 1  # then
        with b.Elif(b.r2 == 2):  # elif
            b.r3 = 2  # second
        with b.Else():  # else
            b.r3 = 3  # third
        with b.While(b.r3 < 9):  # while
            b.r3 += 1  # body
        b.ret(0)  # finish

    expected = [
        *("if", "then", "elif", "elif", "second", "else", "third"),
        *("while", "body", "while", "finish", "finish"),
    ]
    assert lines(main.build()) == [line_with(name) for name in expected]


def test_code_that_is_in_no_file() -> None:
    """There is no text to show, but a name and a line, and BTF can be made of it."""
    names: dict[str, Any] = {"sched_cls": sched_cls, "__name__": "no.such.module"}
    exec("@sched_cls()\ndef main(b, ctx):\n    b.r0 = 0\n    b.exit()\n", names)
    spec = names["main"].build()
    where = spec.location(1)
    assert (where.filename, where.line, where.function, where.text) == ("<string>", 4, "main", "")
    assert len(spec.line_info()) == 32
    assert Btf.parse(spec.btf()).by_name("main") is not None


SCRIPT = """
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkBuff
from pybpfasm.program import sched_cls

@sched_cls()
def main(b: Asm, ctx: SkBuff) -> None:
    b.ret(0)

where = main.build().location(0)
print(where.filename, where.line, repr(where.text))
"""


def python(*arguments: str, **keywords: Any) -> str:
    """What a fresh interpreter prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | keywords.pop("env", {})
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=environment, **keywords
    )
    return str(done.stdout)


def test_scripts_modules_and_prompts(tmp_path: Path) -> None:
    """A script is known by its name, a module run by ``-m`` by its place in the package."""
    package = tmp_path / "some" / "package"
    package.mkdir(parents=True)
    (package / "program.py").write_text(SCRIPT)
    assert python(str(package / "program.py")) == "program.py 8 'b.ret(0)'\n"
    assert python("-m", "some.package.program", cwd=tmp_path) == "some/package/program.py 8 'b.ret(0)'\n"
    assert (
        python("-c", "import some.package.program", cwd=tmp_path) == "some/package/program.py 8 'b.ret(0)'\n"
    )
    assert python("-", input=SCRIPT).startswith("<stdin> 8 ")
    assert python("-c", SCRIPT).startswith("<string> 8 ")


DIGEST = """
import hashlib, sys
from programs import getsockopt, sk_msg, sockops, tc_egress, tc_ingress
from programs.packet import Interface
from programs.settings import Ports, Settings
settings = Settings(Ports.parse("80,8000-8010,9000"))
for byteorder in ("little", "big"):
    for template, rest in (
        (tc_ingress.tc_ingress, (Interface(),)),
        (tc_egress.tc_egress, (Interface(),)),
        (getsockopt.getsockopt, ()),
        (sockops.sockops, ()),
        (sk_msg.sk_msg, ()),
    ):
        spec = template.build_for(byteorder, settings, *rest)
        parts = (spec.code(), spec.btf(), spec.func_info(), spec.line_info(), spec.listing().encode())
        print(spec.name, byteorder, *(hashlib.sha256(part).hexdigest()[:16] for part in parts))
"""


def test_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    """Code, BTF, lines and listing depend neither on where the files lie, nor on the order of sets."""
    seen = set()
    for seed, place in (("0", "here"), ("1", "else/where, and deeper"), ("random", "ünï cödé")):
        folder = tmp_path / place
        for package in ("pybpfasm", "programs"):
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        environment = {"PYTHONPATH": str(folder), "PYTHONHASHSEED": seed}
        seen.add(python("-c", DIGEST, cwd=tmp_path, env=environment))
    assert len(seen) == 1
    assert len(next(iter(seen)).splitlines()) == 10


class Event(Struct, kernel_name="event"):
    """For the program below."""

    when = U64()
    mark = U32()


EVENTS = MapSpec("events", MapType.HASH, U32(), Event, 16)


@subprogram("event", "mark")
def fill(b: Asm) -> None:
    event = Event(b.r1)
    b.r3 = imm64(1 << 40)
    event.when = b.r3
    event.mark = b.r2
    b.ret(0)


@sched_cls(name="golden")
def golden(b: Asm, ctx: SkBuff) -> None:
    key = b.u32[b.stack_bytes(8)]
    b.r6 = ctx
    b.r2 = ctx.mark
    key.store(b.r2)
    b.r1 = EVENTS
    b.r2 = b.r10
    b.r2 += key.offset
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto("out")
    b.r1 = b.r0
    b.r2 = 7
    b.call(fill)
    b.label("out")
    b.ret(-1)


GOLDEN = """\
golden(struct __sk_buff *ctx):
   0: (bf) r6 = r1
   1: (61) r2 = *(u32 *)(r1 +8)
   2: (63) *(u32 *)(r10 -8) = r2
   3: (18) r1 = map[events]
   5: (bf) r2 = r10
   6: (07) r2 += -8
   7: (85) call bpf_map_lookup_elem#1
   8: (15) if r0 == 0x0 goto pc+3
   9: (bf) r1 = r0
  10: (b7) r2 = 7
  11: (85) call pc+2#fill
out:
  12: (b7) r0 = -1
  13: (95) exit
fill(event, mark):
  14: (18) r3 = 0x10000000000
  16: (7b) *(u64 *)(r1 +0) = r3
  17: (63) *(u32 *)(r1 +8) = r2
  18: (b7) r0 = 0
  19: (95) exit
"""


def test_listing() -> None:
    """The listing as it is; with lines, each stands above what it wrote."""
    spec = golden.build()
    assert spec.listing(lines=False) == GOLDEN
    with_lines = spec.listing().splitlines()
    assert [line for line in with_lines if not line.startswith("; ")] == GOLDEN.splitlines()
    above = with_lines[with_lines.index("   8: (15) if r0 == 0x0 goto pc+3") - 1]
    assert (
        above.startswith('; b.If(b.r0 == 0).goto("out") @ ')
        and f"test_asm_source.py:{above.split(':')[-1]}" in above
    )
    assert sum(line.startswith("; b.ret(-1)") for line in with_lines) == 1


@pytest.mark.parametrize(("byteorder", "order"), [("little", "<"), ("big", ">")])
def test_line_information(byteorder: Any, order: str) -> None:
    """A record wherever the line changes and where a function begins, each with file, text and line."""
    spec = golden.build_for(byteorder)
    btf = Btf.parse(spec.btf())
    records = list(struct.iter_unpack(order + "IIII", spec.line_info()))
    functions = list(struct.iter_unpack(order + "II", spec.func_info()))
    assert [slot for slot, _ in functions] == [0, 14]
    assert [btf.types[number].name for _, number in functions] == ["golden", "fill"]
    slots = [record[0] for record in records]
    assert slots == sorted(set(slots)) and {0, 14} <= set(slots)
    for slot, file_name, text, line_col in records:
        where = spec.location(slot)
        assert where is not None
        assert (btf.string(file_name), btf.string(text), line_col >> 10) == (
            where.filename,
            where.text,
            where.line,
        )
    # A statement of two instructions has one record.
    assert 13 not in slots and 19 not in slots


def test_descriptors_and_nothing_else_depend_on_the_load() -> None:
    """`code` puts the descriptors of maps in place; the spec stays as it was."""
    spec = golden.build()
    before = spec.code()
    with_map = spec.code({"events": 42, "another": 43})
    assert before == spec.code() and len(before) == 8 * spec.slots
    changed = [at for at, (a, b) in enumerate(zip(before, with_map, strict=True)) if a != b]
    assert changed == [3 * 8 + 4]
    assert [insn.imm for insn in decode(with_map) if insn.opcode == 0x18] == [42, 0]
    assert hashlib.sha256(golden.build().code()).digest() == hashlib.sha256(before).digest()


def test_a_map_of_the_same_name_is_refused() -> None:
    """Descriptors are given by name, so that two maps can't share one."""
    from pybpfasm.errors import AsmError

    other = MapSpec("events", MapType.HASH, 4, 4, 1)

    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r1 = EVENTS
        b.r1 = other  # second map
        b.ret(0)

    with pytest.raises(AsmError, match="main names two different maps 'events'") as caught:
        main.build()
    assert caught.value.location is not None and caught.value.location.line == line_with("second map")
