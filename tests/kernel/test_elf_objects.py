# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Objects that we write, loaded by bpftool, and objects that clang made, loaded by us: the kernel sees no
difference."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from loader.bpffs import BpfFs
from loader.elf import kernel_symbol, kernel_types, load
from loader.objects import Map, Program
from loader.plan import with_offers
from pybpfasm.asm import Asm
from pybpfasm.elf import read_object, write_object
from pybpfasm.extern import extern_address, kfunc, ksym
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, Helper, MapType
from pybpfasm.layout import U32, U64, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec, sched_cls, subprogram
from tests.requires import DYNPTR_FROM_SKB, DYNPTR_SIZE, RCU_READ_LOCK, requires

DATA = Path(__file__).parent.parent / "data" / "elf"
OBJECTS = sorted(path.stem for path in DATA.glob("*.o"))
# Lengths on both sides of what the programs ask about; the kernel takes no frame below 14 bytes.
PROTOCOLS = (b"\x08\x06", b"\x81\x00", b"\x12\x34", b"\x88\xa8")
PACKETS = [
    bytes((7 * i + length) % 251 for i in range(12))
    + PROTOCOLS[length % 4]
    + bytes(range(length - 14, 0, -1))
    for length in (15, 16, 20, 33, 60, 61, 99, 101, 150, 202, 255)
]


@pytest.fixture
def bpftool() -> Callable[..., str]:
    """Run bpftool; return what it prints."""
    found = shutil.which("bpftool", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip("no bpftool: apt-get install bpftool")

    def run(*args: object) -> str:
        done = subprocess.run(
            [found, *map(str, args)], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


def dump(bpftool: Callable[..., str], pin: Path) -> str:
    """The program as the verifier left it, with its lines; maps numbered as they appear, and no addresses."""
    text = bpftool("prog", "dump", "xlated", "pinned", pin, "linum")
    # With five levels of page tables not all of them begin with 0xffff.
    text = re.sub(r"0xff[0-9a-f]{14}", "0xff…", text)
    numbers: dict[str, int] = {}
    return re.sub(r"map\[id:(\d+)\]", lambda m: f"map[{numbers.setdefault(m[1], len(numbers))}]", text)


@contextmanager
def _loaded(programs: list[ProgramSpec]) -> Iterator[dict[str, Program]]:
    with ExitStack() as stack:
        maps: dict[str, Map] = {}
        for program in programs:
            for spec in program.maps:
                if spec.name not in maps:
                    maps[spec.name] = stack.enter_context(Map.create(spec))
        yield {p.name: stack.enter_context(Program.load(p, dict(maps))) for p in programs}


def _proxy() -> list[ProgramSpec]:
    from programs.getsockopt import getsockopt
    from programs.packet import Interface
    from programs.settings import Ports, Settings
    from programs.sk_msg import sk_msg
    from programs.sockops import sockops
    from programs.tc_egress import tc_egress
    from programs.tc_ingress import tc_ingress

    settings = with_offers(Settings(ports=Ports.of([(8000, 8000), (9000, 9010)]), netns=4242))
    return [
        tc_ingress.build(settings, Interface()),
        tc_egress.build(settings, Interface()),
        getsockopt.build(settings),
        sockops.build(settings),
        sk_msg.build(settings),
    ]


def _same_as_bpftool_loads(
    bpftool: Callable[..., str], root: Path, tmp_path: Path, programs: list[ProgramSpec]
) -> None:
    path = tmp_path / "object.o"
    path.write_bytes(write_object(programs))
    theirs, ours = root / "theirs", root / "ours"
    ours.mkdir()
    bpftool("prog", "loadall", path, theirs)
    with _loaded([program.resolve(kernel_types()) for program in programs]) as loaded:
        assert sorted(loaded) == sorted(entry.name for entry in theirs.iterdir())
        for name, program in loaded.items():
            program.pin(ours / name)
            dumped = dump(bpftool, ours / name)
            assert len(dumped.splitlines()) > 2 and f"{name}(" in dumped
            assert dump(bpftool, theirs / name) == dumped
            with Program.from_pin(theirs / name) as other:
                assert other.info().type == program.info().type
                assert len(other.info().map_ids) == len(program.info().map_ids)


def test_the_proxy_as_an_object(bpftool: Callable[..., str], bpffs: BpfFs, tmp_path: Path) -> None:
    programs = _proxy()
    assert len(programs) == 5
    _same_as_bpftool_loads(bpftool, bpffs.root, tmp_path, programs)
    for name in ("pba_flows", "pba_counters"):
        spec = next(spec for program in programs for spec in program.maps if spec.name == name)
        found = [spec.max_entries]
        with Program.from_pin(bpffs.root / "theirs" / "pba_ingress") as program:
            for map_id in program.info().map_ids:
                with Map.from_id(map_id) as one:
                    info = one.info()
                    if info.name == name:
                        assert (info.key_size, info.value_size) == (spec.key_size, spec.value_size)
                        assert info.btf_key_type_id and info.btf_value_type_id
                        found.append(info.max_entries)
        assert found == [spec.max_entries] * 2


class Entry(Struct):
    """A value of the map below."""

    packets = U64()
    length = U32()
    pad = U32()


COUNTS = MapSpec("counts", MapType.HASH, U32(), Entry, 16)
NUMBERS = MapSpec("numbers", MapType.ARRAY, U32(), U64(), 4)


@subprogram("value")
def double(b: Asm) -> None:
    """Twice the value."""
    b.r0 = b.r1
    b.r0 += b.r1
    b.exit()


@subprogram("value")
def quadruple(b: Asm) -> None:
    """Four times the value, by way of another function."""
    b.r6 = b.r1
    b.call(double)
    b.r1 = b.r0
    b.call(double)
    b.exit()


@subprogram("index", "context")
def each(b: Asm) -> None:
    """Called back by bpf_loop."""
    b.r6 = b.r2
    b.r1 = b.u64[b.r6]
    b.call(quadruple)
    b.u64[b.r6] = b.r0
    b.ret(0)


@sched_cls(AttachType.TCX_INGRESS)
def first(b: Asm, ctx: SkBuff) -> None:
    """Calls back, and calls."""
    b.r6 = ctx
    b.u64[b.r10 - 8] = 3
    b.r1 = 4
    b.r2 = each
    b.r3 = b.r10
    b.r3 += -8
    b.r4 = 0
    b.call(Helper.loop)
    b.r1 = b.u64[b.r10 - 8]
    b.call(double)
    b.r7 = b.r0
    b.u32[b.r10 - 4] = 0
    b.r1 = NUMBERS
    b.r2 = b.r10
    b.r2 += -4
    b.call(Helper.map_lookup_elem)
    b.r0 = b.r7
    b.exit()


@sched_cls(AttachType.TCX_EGRESS)
def second(b: Asm, ctx: SkBuff) -> None:
    """Shares a function with the other program."""
    b.r1 = ctx.len
    b.call(quadruple)
    b.r6 = b.r0
    b.u32[b.r10 - 4] = 1
    b.r1 = COUNTS
    b.r2 = b.r10
    b.r2 += -4
    b.call(Helper.map_lookup_elem)
    b.r0 = b.r6
    b.exit()


def test_functions_of_functions_as_an_object(
    bpftool: Callable[..., str], bpffs: BpfFs, tmp_path: Path
) -> None:
    programs = [first.build(), second.build()]
    assert [f.name for f in programs[0].functions] == ["first", "each", "quadruple", "double"]
    _same_as_bpftool_loads(bpftool, bpffs.root, tmp_path, programs)
    with load(write_object(programs)) as loaded:
        assert loaded.programs["first"].test_run(bytes(64)).retval == 3 * 4**4 * 2
        assert loaded.programs["second"].test_run(bytes(64)).retval == 64 * 4


@sched_cls()
def measure(b: Asm, ctx: SkBuff) -> None:
    """The packet's length as functions of the kernel tell it, and what a kernel may not have."""
    b.r6 = ctx
    b.call(kfunc("bpf_rcu_read_lock"))
    b.call(kfunc("bpf_rcu_read_unlock"))
    b.r1 = b.r6
    b.r2 = 0
    b.r3 = b.r10
    b.r3 += -16
    b.call(kfunc("bpf_dynptr_from_skb"))
    b.r1 = b.r10
    b.r1 += -16
    b.call(kfunc("u32 bpf_dynptr_size(const struct bpf_dynptr *p)"))
    b.r7 = b.r0
    missing = kfunc("int no_such_kfunc(int x)", weak=True)
    extern_address(b.r1, missing)
    with b.If(b.r1 != 0):
        b.r1 = 4
        b.call(missing)
    extern_address(b.r1, kfunc("bpf_dynptr_size", weak=True))
    with b.If(b.r1 != 0):
        b.r7 += 1000
    b.r0 = b.r7
    b.exit()


@requires(RCU_READ_LOCK, DYNPTR_FROM_SKB, DYNPTR_SIZE)
def test_functions_of_the_kernel_in_an_object(
    bpftool: Callable[..., str], bpffs: BpfFs, tmp_path: Path
) -> None:
    program = measure.build()
    _same_as_bpftool_loads(bpftool, bpffs.root, tmp_path, [program])
    with load(write_object([program])) as loaded:
        assert loaded.programs["measure"].test_run(bytes(77)).retval == 1077


def test_an_address_of_the_kernel_in_an_object() -> None:
    symbol = ksym("void bpf_map_area_free")

    @sched_cls()
    def address(b: Asm, ctx: SkBuff) -> None:
        extern_address(b.r0, symbol)
        b.r0 >>= 16
        b.exit()

    known = kernel_symbol("bpf_map_area_free")
    assert known
    with load(write_object([address.build()])) as loaded:
        assert loaded.programs["address"].test_run(bytes(64)).retval == known >> 16 & 0xFFFFFFFF
    assert kernel_symbol("no_such_symbol") is None


def _named(names: list[str]) -> list[Any]:
    """Parameters with what the objects need of the kernel."""
    return [
        pytest.param(name, marks=requires(RCU_READ_LOCK) if name.startswith("externs") else ())
        for name in names
    ]


@pytest.mark.parametrize("name", _named(OBJECTS))
def test_what_clang_made(bpftool: Callable[..., str], bpffs: BpfFs, name: str) -> None:
    path = DATA / f"{name}.o"
    theirs, ours = bpffs.root / "theirs", bpffs.root / "ours"
    ours.mkdir()
    # The entries of an array of programs go with the last that holds the array open.
    bpftool("prog", "loadall", path, theirs, "pinmaps", bpffs.root / "maps")
    with load(path.read_bytes()) as loaded:
        assert sorted(loaded.programs) == sorted(entry.name for entry in theirs.iterdir())
        results = []
        for pin, program in loaded.programs.items():
            program.pin(ours / pin)
            dumps = [dump(bpftool, ours / pin), dump(bpftool, theirs / pin)]
            if name.startswith("data"):
                # libbpf gives up the types of this one: clang says of a constant that it is where it isn't.
                dumps = [re.sub(r"(?m)^(;|int ).*\n", "", dump) for dump in dumps]
            assert dumps[0] == dumps[1]
            with Program.from_pin(theirs / pin) as other:
                for packet in PACKETS:
                    result = program.test_run(packet)
                    assert result.retval == other.test_run(packet).retval, (pin, len(packet))
                    results.append(result.retval)
        assert len(set(results)) > 1 or name.startswith("core")


@pytest.mark.parametrize("name", _named([name for name in OBJECTS if name.endswith("_v2")]))
def test_what_clang_made_written_anew(
    bpftool: Callable[..., str], bpffs: BpfFs, tmp_path: Path, name: str
) -> None:
    found = read_object((DATA / f"{name}.o").read_bytes())
    path = tmp_path / "again.o"
    path.write_bytes(write_object(list(found.programs.values()), found.maps.values()))
    bpftool("prog", "loadall", path, bpffs.root / "again", "pinmaps", bpffs.root / "maps")
    with load(found) as loaded:
        for pin, program in loaded.programs.items():
            with Program.from_pin(bpffs.root / "again" / pin) as other:
                for packet in PACKETS:
                    assert program.test_run(packet).retval == other.test_run(packet).retval


def test_static_data_in_the_kernel() -> None:
    from loader.errors import BpfError

    with load((DATA / "data_v3.o").read_bytes()) as loaded:
        loaded.programs["count"].test_run(bytes(64))
        assert loaded.maps[".bss"].lookup(0)[:8] == (1).to_bytes(8, "little")
        assert loaded.maps[".data"].lookup(0)[:4] == (42).to_bytes(4, "little")
        with pytest.raises(BpfError):  # read-only data is frozen
            loaded.maps[".rodata"].update(0, bytes(24))
        for name in (".bss", ".data", ".rodata"):
            assert loaded.maps[name].info().btf_value_type_id


def test_core_answers_are_those_of_this_kernel() -> None:
    types = kernel_types()
    with load((DATA / "core_v3.o").read_bytes(), types=types) as loaded:
        loaded.programs["ask"].test_run(bytes(64))
        data = loaded.maps[".bss"].lookup(0)
    btf = read_object((DATA / "core_v3.o").read_bytes()).btf
    assert btf is not None
    answers = next(t for t in btf.types if t.name == "answers" and t.kind.name == "STRUCT")
    got = {}
    for member in answers.members:
        at = member.bit_offset // 8
        got[member.name] = int.from_bytes(data[at : at + btf.size_of(member.type_id)], "little")
    task = types.by_name("task_struct")
    assert task is not None
    offsets = {member.name: member.bit_offset // 8 for member in task.members if member.name}
    assert got["task_size"] == task.size
    assert got["tasks_prev"] == offsets["tasks"] + 8
    assert got["comm_at"] == offsets["comm"] + 3
    assert (got["task_exists"], got["never_exists"], got["missing"]) == (1, 0, 0)
    assert (got["ringbuf"], got["ringbuf_exists"], got["never_value_exists"]) == (27, 1, 0)
    assert (got["pid_signed"], got["len_signed"], got["len_size"], got["cb_size"]) == (1, 0, 4, 48)


def test_a_rejected_program_shows_its_lines_of_c() -> None:
    from loader.verifier import VerifierError

    data = bytearray((DATA / "maps_v3.o").read_bytes())
    found = read_object(bytes(data))
    program = found.program("account")
    # Without the test for NULL the verifier refuses the access after it: the look-up in the hash is the last.
    tests = [insn for insn in program.instructions if insn.opcode in (0x15, 0x55) and insn.dst == 0]
    tests[-1].imm = 1
    with pytest.raises(VerifierError) as caught:
        load(found)
    assert "maps.c" in str(caught.value) and "found->packets" in str(caught.value)
