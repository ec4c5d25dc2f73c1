# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Objects that we write, as pyelftools and our own reader see them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pybpfasm.asm import Asm
from pybpfasm.btf import Btf, BtfExt, Kind
from pybpfasm.elf import ElfError, read_object, section_of, type_of_section, write_object
from pybpfasm.elf.types import TypeTable
from pybpfasm.instruction import Instruction, decode, encode
from pybpfasm.isa import Imm64
from pybpfasm.kernel.context import SkBuff, SockOpt, XdpMd
from pybpfasm.kernel.defines import BPF_F_SLEEPABLE, BPF_F_XDP_HAS_FRAGS
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, AttachType, Helper, MapType, ProgType
from pybpfasm.layout import U32, U64, Array, Be16, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import Function, ProgramSpec, Subprogram, cgroup_sockopt, sched_cls, subprogram, xdp

DATA = Path(__file__).parent.parent / "data" / "elf"


class Key(Struct, kernel_name="flow_key"):
    """A key with an array and a field in network order."""

    client = Array(U32(), 4)
    port = Be16()


class Limits(Struct, kernel_name="limits"):
    """Static data."""

    low = U32()
    high = U64()


FLOWS = MapSpec("flows", MapType.HASH, Key, U64(), 1024)
SOCKETS = MapSpec("sockets", MapType.SOCKHASH, Key, 8, 16)
RING = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
OUTER = MapSpec(
    "outer", MapType.ARRAY_OF_MAPS, U32(), 4, 2, inner=MapSpec("inner", MapType.ARRAY, U32(), U64(), 8)
)
LIMITS = MapSpec(
    ".rodata", MapType.ARRAY, U32(), Limits, 1, BPF_F_RDONLY_PROG, contents=Limits.pack(low=3, high=9)
)
STATE = MapSpec("state", MapType.ARRAY, U32(), U64(), 1, contents=bytes(range(8)))


@subprogram("value")
def double(b: Asm) -> None:
    """Shared by the programs below."""
    b.r0 = b.r1
    b.r0 += b.r1
    b.exit()


@subprogram("value")
def triple(b: Asm, more: int) -> None:
    """A function whose code depends on a setting."""
    b.r0 = b.r1
    b.r0 += more
    b.exit()


@sched_cls(AttachType.TCX_INGRESS)
def ingress(b: Asm, ctx: SkBuff) -> None:
    """A program with a map, static data and a function."""
    b.u32[b.r10 - 4] = 0
    b.r1 = FLOWS
    b.r2 = b.r10
    b.r2 += -4
    b.call(Helper.map_lookup_elem)
    b.r1 = LIMITS.value_at(8)
    b.r1 = b.u64[b.r1]
    b.call(double)
    b.r1 = STATE.value_at(0)
    b.ret(0)


@sched_cls(AttachType.TCX_EGRESS)
def egress(b: Asm, ctx: SkBuff, more: int = 5) -> None:
    """Shares the map and the function."""
    b.r1 = FLOWS
    b.r1 = 2
    b.call(double)
    b.r1 = 2
    b.call(triple.bind(more))
    b.ret(0)


@cgroup_sockopt(AttachType.CGROUP_GETSOCKOPT)
def getsockopt(b: Asm, ctx: SockOpt) -> None:
    """In a section of its own."""
    b.r1 = 7
    b.call(triple.bind(8))
    b.ret(1)


@xdp()
def counter(b: Asm, ctx: XdpMd) -> None:
    """The smallest."""
    b.ret(2)


def _programs() -> list[ProgramSpec]:
    return [ingress.build(), egress.build(), getsockopt.build(), counter.build()]


def _elf(data: bytes) -> Any:
    from elftools.elf.elffile import ELFFile

    return ELFFile(io.BytesIO(data))


def test_the_same_programs_give_the_same_bytes_in_every_process() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_elf_writer as t; import hashlib;"
        "print(hashlib.sha256(t.write_object(t._programs(), [t.RING, t.OUTER])).hexdigest())"
    )
    here = Path(__file__).resolve()
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(here.parent)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(here.parents[2])},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert write_object(_programs(), [RING, OUTER]) == write_object(_programs(), [RING, OUTER])


def test_sections_and_symbols_as_pyelftools_sees_them() -> None:
    elf = _elf(write_object(_programs(), [SOCKETS]))
    assert (elf.header.e_machine, elf.header.e_type, elf.elfclass) == ("EM_BPF", "ET_REL", 64)
    names = [section.name for section in elf.iter_sections()]
    assert names == [
        "",
        ".text",
        "tc",
        "cgroup/getsockopt",
        "xdp",
        ".rodata",
        ".data.state",
        ".maps",
        "license",
        ".BTF",
        ".BTF.ext",
        ".reltc",
        ".relcgroup/getsockopt",
        ".symtab",
        ".strtab",
    ]
    symbols = {
        s.name: (s.entry.st_info.bind, s.entry.st_info.type, names[s.entry.st_shndx], s.entry.st_value)
        for s in elf.get_section_by_name(".symtab").iter_symbols()
        if s.name and s.entry.st_info.bind == "STB_GLOBAL"
    }
    assert symbols["ingress"] == ("STB_GLOBAL", "STT_FUNC", "tc", 0)
    assert symbols["egress"][2:] == ("tc", 8 * ingress.build().functions[1].slot)
    assert symbols["flows"] == ("STB_GLOBAL", "STT_OBJECT", ".maps", 0)
    assert symbols["limits"] == ("STB_GLOBAL", "STT_OBJECT", ".rodata", 0)
    assert symbols["_license"][2] == "license"
    symtab = elf.get_section_by_name(".symtab")
    local = [s for s in symtab.iter_symbols() if s.entry.st_info.bind == "STB_LOCAL"]
    assert len(local) == symtab["sh_info"]  # local symbols come first
    functions = [s.name for s in local if s.entry.st_info.type == "STT_FUNC"]
    assert functions == [
        "double",
        "triple",
        "triple",
    ]  # one `double` for two programs, two different `triple`
    assert elf.get_section_by_name(".rodata").data() == Limits.pack(low=3, high=9)
    assert elf.get_section_by_name("license").data() == b"Dual BSD/GPL\0"


def test_code_is_as_clang_writes_it_before_relocation() -> None:
    elf = _elf(write_object(_programs()))
    code = decode(elf.get_section_by_name("tc").data())
    loads = [insn for insn in code if insn.wide]
    assert all(insn.src == 0 and insn.imm_high == 0 for insn in loads)
    assert [insn.imm for insn in loads] == [0, 8, 0, 0]
    relocations = [
        (r["r_offset"], r["r_info_type"], elf.get_section_by_name(".symtab").get_symbol(r["r_info_sym"]))
        for r in elf.get_section_by_name(".reltc").iter_relocations()
    ]
    shown = [(kind, s.name or elf.get_section(s.entry.st_shndx).name) for _, kind, s in relocations]
    assert shown == [
        (1, "flows"),
        (1, ".rodata"),
        (10, ".text"),
        (1, ".data.state"),
        (1, "flows"),
        (10, ".text"),
        (10, ".text"),
    ]


def test_map_definitions_are_libbpfs() -> None:
    elf = _elf(write_object(_programs(), [SOCKETS, RING, OUTER]))
    btf = Btf.parse(elf.get_section_by_name(".BTF").data())
    btf.validate()
    section = btf.by_name(".maps", Kind.DATASEC)
    assert section is not None
    definitions = {}
    for entry in section.entries:
        var = btf.type(entry.type_id)
        members = btf.resolve(var.type_id).members
        shown: dict[str, object] = {}
        for member in members:
            pointee = btf.resolve(btf.resolve(member.type_id).type_id) if member.name != "values" else None
            if pointee is None:
                element = btf.resolve(btf.resolve(member.type_id).element_id)
                shown["values"] = [m.name for m in btf.resolve(element.type_id).members]
            elif member.name in ("key", "value"):
                shown[member.name] = pointee.name
            else:
                shown[member.name] = pointee.nelems
        definitions[var.name] = shown
        assert entry.size == 8 * len([m for m in members if m.name != "values"])
    assert definitions == {
        "flows": {"type": 1, "key": "flow_key", "value": "unsigned long long", "max_entries": 1024},
        "sockets": {"type": 18, "key": "flow_key", "value_size": 8, "max_entries": 16},
        "ring": {"type": 27, "max_entries": 4096},
        "outer": {
            "type": 12,
            "key": "unsigned int",
            "max_entries": 2,
            "values": ["type", "key", "value", "max_entries"],
        },
    }


def test_functions_and_lines() -> None:
    programs = _programs()
    elf = _elf(write_object(programs))
    btf = Btf.parse(elf.get_section_by_name(".BTF").data())
    ext = BtfExt.parse(elf.get_section_by_name(".BTF.ext").data(), btf)
    assert set(ext.func_info) == set(ext.line_info) == {".text", "tc", "cgroup/getsockopt", "xdp"}
    shown = [(r.insn_off, btf.type(r.type_id).name) for r in ext.func_info["tc"]]
    assert shown == [(0, "ingress"), (8 * programs[0].functions[1].slot, "egress")]
    names = [btf.type(r.type_id).name for r in ext.func_info[".text"]]
    assert names == ["double", "triple", "triple"]
    first = ext.line_info["tc"][0]
    where = programs[0].location(0)
    assert where is not None
    assert (btf.string(first.file_name_off), first.line) == (where.filename, where.line)
    assert btf.string(first.line_off) == "b.u32[b.r10 - 4] = 0"


def _twice() -> list[ProgramSpec]:
    @subprogram("value")
    def same(b: Asm) -> None:
        b.ret(1)

    @subprogram("value")
    def other(b: Asm) -> None:
        b.ret(1)

    other.name = "same"

    def program(name: str, callee: Subprogram) -> ProgramSpec:
        def body(b: Asm, ctx: SkBuff) -> None:
            b.call(callee)
            b.ret(0)

        return sched_cls(name=name)(body).build()

    return [program("one", same), program("two", other), program("three", other)]


def test_functions_on_different_lines_are_different() -> None:
    found = read_object(write_object(_twice()))
    assert found.functions == ("same", "same")
    places = [found.program(name).location(3) for name in ("one", "two", "three")]
    lines = [place.line for place in places if place is not None]
    assert len(lines) == 3 and lines[0] != lines[1] == lines[2]


def test_maps_that_others_hold_come_first() -> None:
    theirs = read_object((DATA / "inner_v3.o").read_bytes())
    order = [theirs.map(name) for name in ("outer", "odd", "by_name", "even")]
    elf = _elf(write_object([], order))
    places = {s.name: s.entry.st_value for s in elf.get_section_by_name(".symtab").iter_symbols()}
    assert places["odd"] < places["even"] < places["outer"]


def test_what_was_written_is_read_again() -> None:
    programs = _programs()
    data = write_object(programs, [SOCKETS, RING, OUTER])
    found = read_object(data)
    assert list(found.programs) == [program.name for program in programs]
    for program in programs:
        again = found.program(program.name)
        assert (again.type, again.license) == (program.type, program.license)
        assert again.slots == program.slots
        assert [f.name for f in again.functions] == [f.name for f in program.functions]
        for slot in range(program.slots):
            mine, theirs = program.location(slot), again.location(slot)
            assert mine is not None and theirs is not None
            assert (mine.filename, mine.line, mine.text) == (theirs.filename, theirs.line, theirs.text)
        # Maps without contents of their own are the same; static data has another name in an object.
        for one, other in zip(program.instructions, again.instructions, strict=True):
            assert (one.opcode, one.dst, one.src, one.offset) == (
                other.opcode,
                other.dst,
                other.src,
                other.offset,
            )
    assert found.program("ingress").attach_type is None
    assert (
        read_object(write_object(programs, tcx=True)).program("ingress").attach_type == AttachType.TCX_INGRESS
    )
    assert found.map("flows").key_size == 20 and found.map("flows").max_entries == 1024
    assert found.map(".rodata").contents == LIMITS.contents
    assert found.map(".data.state").contents == STATE.contents
    value = next(i for i in found.program("ingress").instructions if i.src == Imm64.MAP_VALUE and i.wide)
    assert value.imm_high == 8
    anew = write_object(list(found.programs.values()), found.maps.values())
    last = read_object(anew)
    assert write_object(list(last.programs.values()), last.maps.values()) == anew


@pytest.mark.parametrize("path", sorted(DATA.glob("*_v2.o")), ids=lambda path: path.stem)
def test_what_clang_made_is_written_and_read_again(path: Path) -> None:
    found = read_object(path.read_bytes())
    again = read_object(write_object(list(found.programs.values()), found.maps.values()))
    assert list(again.programs) == list(found.programs)
    for name, program in found.programs.items():
        other = again.program(name)
        assert encode(other.instructions) == encode(program.instructions)
        assert [str(one) for one in other.unresolved] == [str(one) for one in program.unresolved]
        assert [program.location(slot) for slot in range(program.slots)] == [
            other.location(slot) for slot in range(other.slots)
        ]
        assert other.func_info()[::8] == program.func_info()[::8]
    for name, spec in found.maps.items():
        other_map = again.map(name)
        assert (spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags) == (
            other_map.type,
            other_map.key_size,
            other_map.value_size,
            other_map.max_entries,
            other_map.flags,
        )
        assert (spec.contents, spec.initial) == (other_map.contents, other_map.initial)
        assert (spec.btf() is None) == (other_map.btf() is None)


def test_linked_with_what_clang_made() -> None:
    theirs = read_object((DATA / "maps_v3.o").read_bytes())
    shared = theirs.map("per_cpu")

    @sched_cls(name="reader")
    def reader(b: Asm, ctx: SkBuff) -> None:
        b.r1 = shared
        b.ret(0)

    found = read_object(write_object([*theirs.programs.values(), reader.build()], [FLOWS]))
    assert list(found.programs) == ["account", "reader"]
    assert [spec.name for spec in found.program("reader").maps] == ["per_cpu"]
    assert found.program("reader").maps[0] in found.program("account").maps
    assert set(found.maps) == {"per_cpu", "sized", "connections_by_address", "flows"}


def test_functions_of_c_are_called_from_python() -> None:
    theirs = read_object((DATA / "subprograms_v3.o").read_bytes())
    mix = theirs.function("mix")
    assert mix.arguments == ("a", "b") and mix == theirs.function("mix") != theirs.function("rotate")

    @sched_cls()
    def calls_c(b: Asm, ctx: SkBuff) -> None:
        b.r1 = 1
        b.r2 = 2
        b.call(mix)
        b.exit()

    for _ in range(2):  # the functions are not changed by being called
        program = calls_c.build()
        assert [f.name for f in program.functions] == ["calls_c", "mix", "rotate"]
        starts = {f.slot for f in program.functions}
        slot = 0
        for insn in program.instructions:
            if insn.opcode == 0x85:
                assert slot + insn.imm + 1 in starts
            slot += insn.slots
    where = program.location(program.functions[1].slot)
    assert where is not None and (where.filename, where.function) == ("subprograms.c", "mix")
    assert "static __noinline __u32 mix" in where.text or "rotate(" in where.text
    assert len(program.func_info()) == 24 and "@ subprograms.c:" in program.listing()
    found = read_object(write_object([program, *theirs.programs.values()]))
    assert found.program("calls_c").code() == program.code()
    with pytest.raises(ElfError, match="no function 'mixx' in the object; did you mean 'mix'"):
        theirs.function("mixx")
    with pytest.raises(ElfError, match="takes no settings"):
        mix.bind(1)
    with pytest.raises(ElfError, match="mix is little-endian, the program big-endian"):
        calls_c.build_for("big")


def test_big_endian() -> None:
    data = write_object([ingress.build_for("big"), egress.build_for("big")])
    assert data[5] == 2
    found = read_object(data)
    assert found.byteorder == "big"
    assert found.program("egress").slots == egress.build().slots
    with pytest.raises(ElfError, match="one byte order"):
        write_object([ingress.build_for("big"), egress.build_for("little")])


def test_an_object_of_maps_only() -> None:
    found = read_object(write_object([], [FLOWS]))
    assert list(found.maps) == ["flows"] and not found.programs


@pytest.mark.parametrize(
    "name, expected",
    [
        ("tc", (ProgType.SCHED_CLS, None, 0)),
        ("?tc", (ProgType.SCHED_CLS, None, 0)),
        ("tcx/egress", (ProgType.SCHED_CLS, AttachType.TCX_EGRESS, 0)),
        ("xdp", (ProgType.XDP, AttachType.XDP, 0)),
        ("xdp.frags", (ProgType.XDP, AttachType.XDP, BPF_F_XDP_HAS_FRAGS)),
        ("kprobe/do_exit", (ProgType.KPROBE, None, 0)),
        ("kprobe", (ProgType.KPROBE, None, 0)),
        ("tp/sched/sched_switch", (ProgType.TRACEPOINT, None, 0)),
        ("fentry.s/vfs_read", (ProgType.TRACING, AttachType.TRACE_FENTRY, BPF_F_SLEEPABLE)),
        ("cgroup/connect6", (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET6_CONNECT, 0)),
        ("sk_skb/stream_verdict", (ProgType.SK_SKB, AttachType.SK_SKB_STREAM_VERDICT, 0)),
        ("tcp", None),
        ("xdp/any", None),
        (".text", None),
    ],
)
def test_types_of_sections(name: str, expected: tuple[object, ...] | None) -> None:
    assert type_of_section(name) == expected


def test_every_kind_of_program_of_the_dsl_has_a_section() -> None:
    import pybpfasm.program as dsl

    kinds = [kind for kind in vars(dsl).values() if isinstance(kind, dsl.Kind)]
    assert len(kinds) >= 8
    for kind in kinds:
        for attach_type in kind.attach_types or (None,):
            name = section_of(kind.type, attach_type)
            if kind.type == ProgType.CGROUP_SOCK_ADDR:
                assert name is None  # the attach type decides
                continue
            assert name is not None
            found = type_of_section(name)
            assert found is not None and found.type == kind.type
    assert section_of(ProgType.SCHED_CLS, AttachType.TCX_INGRESS) == "tc"
    assert section_of(ProgType.SCHED_CLS, AttachType.TCX_INGRESS, tcx=True) == "tcx/ingress"
    assert section_of(ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_BIND) == "cgroup/bind4"


def _chain(length: int, end: int) -> Subprogram | None:
    """A function that calls one, that calls one, …; the last returns *end*."""
    callee: Subprogram | None = None
    for number in range(length):

        def link(b: Asm, callee: Subprogram | None = callee) -> None:
            if callee is None:
                b.ret(end)
            else:
                b.call(callee)
                b.exit()

        link.__name__ = f"link{number}"
        callee = subprogram()(link)
    return callee


def test_functions_that_call_functions_are_shared_where_all_of_them_are_alike() -> None:
    """However deep: the time is in proportion, and nothing recurses."""

    def program(name: str, first: Subprogram | None) -> ProgramSpec:
        @xdp(name=name)
        def start(b: Asm, ctx: XdpMd) -> None:
            assert first is not None
            b.call(first)
            b.exit()

        return start.build()

    deep, other = _chain(2000, 1), _chain(2000, 2)
    for second, functions in ((deep, 2000), (other, 4000)):
        written = read_object(write_object([program("one", deep), program("two", second)]))
        assert len(written.functions) == functions
        assert len(written.programs["two"].functions) == 2001


def test_mistakes_are_refused_with_the_reason() -> None:
    one = ingress.build()
    with pytest.raises(ElfError, match="two programs are named 'ingress'"):
        write_object([one, ingress.build()])
    with pytest.raises(ElfError, match="two different maps are named 'flows'"):
        write_object([one], [MapSpec("flows", MapType.HASH, Key, U64(), 1)])
    with pytest.raises(ElfError, match="both named 'counter'"):
        write_object([counter.build()], [MapSpec("counter", MapType.HASH, Key, U64(), 1)])
    with pytest.raises(ElfError, match=r"sections=\{'none': …\} names no program"):
        write_object([one], sections={"none": "xdp"})
    with pytest.raises(ElfError, match=r"one license"):
        write_object([one, sched_cls(name="other", license="MIT")(lambda b, ctx: b.ret(0)).build()])
    flags = xdp(name="strict", prog_flags=1)(lambda b, ctx: b.ret(0)).build()
    with pytest.raises(ElfError, match=r"no section for XDP .* load flags 0x1; name one"):
        write_object([flags])
    recursive = ProgramSpec(
        "recursive",
        ProgType.XDP,
        None,
        "Dual BSD/GPL",
        (Instruction(0x85, 0, 1, 0, -1), Instruction(0x95)),
        (Function("recursive", 0, (), None, {}),),
        "little",
    )
    with pytest.raises(ElfError, match="recursive calls itself in slot 0"):
        write_object([recursive])
    for distance in (1, 7, -5):
        lost = ProgramSpec(
            "lost",
            ProgType.XDP,
            None,
            "Dual BSD/GPL",
            (Instruction(0x85, 0, 1, 0, distance), Instruction(0x95)),
            (Function("lost", 0, (), None, {}),),
            "little",
        )
        with pytest.raises(
            ElfError, match=rf"slot 0 refers to slot {distance + 1}, where no function begins"
        ):
            write_object([lost])
    plain = MapSpec("plain", MapType.ARRAY, U32(), U64(), 1)

    @sched_cls()
    def direct(b: Asm, ctx: SkBuff) -> None:
        b.r1 = plain.value_at(0)
        b.ret(0)

    with pytest.raises(ElfError, match="only static data has such addresses"):
        write_object([direct.build()])
    assert "kprobe/do_exit" in [
        s.name for s in _elf(write_object([one], sections={"ingress": "kprobe/do_exit"})).iter_sections()
    ]


def test_types_of_two_sources_are_there_once() -> None:
    theirs = Btf.parse(read_object((DATA / "maps_v3.o").read_bytes()).program("account").btf())
    table = TypeTable()
    roots = [t.id for t in theirs.types if t.kind == Kind.FUNC]
    first = table.take(theirs, roots)
    count = len(table)
    assert table.take(theirs, roots) == first and len(table) == count
    merged = Btf.parse(table.to_bytes())
    merged.validate()
    for old, new in first.items():
        mine, old_one = merged.type(new), theirs.type(old)
        assert (mine.kind, mine.name, mine.vlen) == (old_one.kind, old_one.name, old_one.vlen)
        if mine.kind in (Kind.STRUCT, Kind.FUNC_PROTO):
            assert merged.definition(new) == theirs.definition(old)


def test_types_that_refer_to_themselves_are_taken_over() -> None:
    from pybpfasm.btf import BtfBuilder

    builder = BtfBuilder()
    number = builder.add_int("int", 4, signed=True)
    node = builder.next_id + 1
    pointer = builder.add_ptr(node)
    assert builder.add_struct("node", 16, [("next", pointer, 0), ("value", number, 64)]) == node
    btf = Btf.parse(builder.to_bytes())
    table = TypeTable()
    table.add_float("first", 8)
    ids = table.take(btf, [node])
    assert table.take(btf, [pointer])[node] == ids[node] and len(table) == 4
    merged = Btf.parse(table.to_bytes())
    merged.validate()
    assert merged.type(merged.type(ids[node]).members[0].type_id).type_id == ids[node]
