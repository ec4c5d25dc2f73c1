# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Objects that clang made: what is in them, and that it comes out again."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pybpfasm import listing, text
from pybpfasm.btf import Btf, BtfBuilder, BtfExt, Kind, unpack_line_info
from pybpfasm.core import CoreError, CoreKind, CoreRelocation
from pybpfasm.elf import ElfError, ObjectFile, read_object
from pybpfasm.elf.reader import read_raw
from pybpfasm.extern import Extern
from pybpfasm.instruction import decode, encode
from pybpfasm.isa import Imm64
from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG, MapType, ProgType
from pybpfasm.maps import MapSpec

DATA = Path(__file__).parent.parent / "data" / "elf"
OBJECTS = sorted(path.stem for path in DATA.glob("*.o"))
SOURCES = sorted(path.stem for path in (DATA / "src").glob("*.c"))


def read(name: str) -> ObjectFile:
    return read_object((DATA / f"{name}.o").read_bytes())


def test_every_source_is_there_for_three_levels() -> None:
    assert sorted(f"{source}_v{level}" for source in SOURCES for level in (1, 2, 3)) == OBJECTS
    assert len(SOURCES) >= 12


@pytest.mark.parametrize("name", OBJECTS)
def test_code_is_disassembled_and_assembled_to_the_same_bytes(name: str) -> None:
    sections = [s for s in read_raw((DATA / f"{name}.o").read_bytes()).sections if s.flags & 4 and s.size]
    assert sections
    for section in sections:
        instructions = decode(section.data)
        assert encode(instructions) == section.data
        written = "\n".join(listing.lines(instructions))
        assert encode(text.assemble(written)) == section.data


@pytest.mark.parametrize("name", OBJECTS)
def test_programs_are_disassembled_and_assembled_to_the_same_bytes(name: str) -> None:
    found = read(name)
    for program in found.programs.values():
        again = text.assemble(program.listing(), maps={spec.name: spec for spec in program.maps})
        assert encode(again) == encode(program.instructions)


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_has_types_lines_and_a_license(name: str) -> None:
    found = read(name)
    assert found.license == "Dual BSD/GPL"
    assert found.byteorder == "little" and not found.notes
    for program in found.programs.values():
        assert program.type == ProgType.SCHED_CLS and program.section == "tc"
        assert len(program.func_info()) == 8 * len(program.functions)
        assert len(program.line_info()) >= 16 * len(program.functions)
        Btf.parse(program.btf()).validate()
        for slot in range(program.slots):
            where = program.location(slot)
            assert where is not None and where.filename == name.rsplit("_", 1)[0] + ".c"


def test_lines_are_those_of_the_source() -> None:
    program = read("subprograms_v3").program("both")
    source = (DATA / "src" / "subprograms.c").read_text().splitlines()
    shown = set()
    for slot in range(program.slots):
        where = program.location(slot)
        assert where is not None
        assert where.text == source[where.line - 1].strip()
        shown.add(where.function)
    assert shown == {"both", "hidden_sum", "mix", "rotate", "weight"}
    assert program.location(program.slots) is None and program.location(-1) is None


def test_functions_come_in_the_order_of_calls() -> None:
    found = read("subprograms_v3")
    assert set(found.functions) == {"weight", "hidden_sum", "mix", "rotate"}
    assert [f.name for f in found.program("hash").functions] == ["hash", "mix", "rotate", "weight"]
    both = found.program("both")
    assert [f.name for f in both.functions] == ["both", "hidden_sum", "mix", "rotate", "weight"]
    starts = {f.slot for f in both.functions}
    slot = 0
    calls = 0
    for insn in both.instructions:
        if insn.opcode == 0x85 and insn.src == 1:
            assert slot + insn.imm + 1 in starts
            calls += 1
        slot += insn.slots
    assert calls >= 6


def test_a_hidden_function_is_static_for_the_verifier() -> None:
    btf = Btf.parse(read("subprograms_v3").program("both").btf())
    linkages = {t.name: t.linkage for t in btf.types if t.kind == Kind.FUNC}
    assert linkages == {"both": 1, "hash": 1, "weight": 1, "hidden_sum": 0, "mix": 0, "rotate": 0}


def test_maps() -> None:
    maps = read("maps_v2").maps
    assert sorted(maps) == ["connections_by_address", "per_cpu", "sized"]
    one = maps["connections_by_address"]
    assert (one.name, one.symbol) == ("connections_by_", "connections_by_address")
    assert (one.type, one.key_size, one.value_size, one.max_entries) == (MapType.HASH, 8, 16, 64)
    assert one.flags == BPF_F_NO_PREALLOC
    described = one.btf()
    assert described is not None
    btf = Btf.parse(described[0])
    assert [member.name for member in btf.type(described[1]).members] == ["address", "port", "pad"]
    assert [member.name for member in btf.type(described[2]).members] == ["packets", "bytes"]
    assert maps["sized"].btf() is None
    assert (maps["sized"].key_size, maps["sized"].value_size) == (4, 12)
    assert maps["per_cpu"].type == MapType.PERCPU_ARRAY
    program = read("maps_v2").program("account")
    assert {spec.name for spec in program.maps} == {"connections_by_", "per_cpu", "sized"}


def test_maps_in_maps_and_their_first_values() -> None:
    maps = read("inner_v3").maps
    outer, by_name = maps["outer"], maps["by_name"]
    assert outer.type == MapType.ARRAY_OF_MAPS and outer.value_size == 4
    assert outer.initial == ((0, "even"), (1, "odd"))
    assert outer.inner is not None and (outer.inner.type, outer.inner.max_entries) == (MapType.ARRAY, 4)
    assert by_name.inner is not None and by_name.inner.type == MapType.HASH
    assert (by_name.inner.key_size, by_name.inner.value_size, by_name.inner.max_entries) == (4, 4, 8)
    jumps = read("tailcalls_v3").maps["jumps"]
    assert jumps.type == MapType.PROG_ARRAY and jumps.initial == ((1, "small"), (3, "large"))


def test_static_data() -> None:
    found = read("data_v3")
    rodata, data, bss = found.map(".rodata"), found.map(".data"), found.map(".bss")
    assert rodata.flags == BPF_F_RDONLY_PROG and not data.flags and not bss.flags
    assert rodata.contents == struct.pack("<II8sQ", 10, 1000, b"default", 3)
    assert data.contents == struct.pack("<I4xq", 41, -5)
    assert bss.contents is None and bss.value_size == 12
    assert found.map(".data.separate").contents == b"\x09"
    assert found.map(".rodata.str1.1").contents == b"a string that is no variable\0"
    assert found.map(".rodata.cst16").contents == struct.pack("<8H", 2, 3, 5, 7, 11, 13, 17, 19)
    for spec in (rodata, data, bss):
        assert (spec.type, spec.key_size, spec.max_entries) == (MapType.ARRAY, 4, 1)
        described = spec.btf()
        assert described is not None and described[1] == 0
        section = Btf.parse(described[0]).type(described[2])
        assert section.kind == Kind.DATASEC and section.size == spec.value_size
    described = data.btf()
    assert described is not None
    btf = Btf.parse(described[0])
    entries = [(btf.type(v).name, offset, size) for v, offset, size in btf.type(described[2]).entries]
    assert entries == [("started", 0, 4), ("balance", 8, 8)]


def test_references_to_static_data_have_their_offset() -> None:
    program = read("data_v3").program("count")
    seen = {
        (insn.reference.name, insn.imm_high)
        for insn in program.instructions
        if isinstance(insn.reference, MapSpec) and insn.src == Imm64.MAP_VALUE
    }
    assert {(".rodata", 0), (".rodata", 16), (".data", 0), (".data", 8), (".bss", 0), (".bss", 8)} <= seen
    assert (".rodata.cst16", 0) in seen and (".rodata.str1.1", 0) in seen


def test_callbacks_are_addresses_of_functions() -> None:
    program = read("callbacks_v1").program("sum_squares")
    starts = {function.slot: function.name for function in program.functions}
    assert list(starts.values()) == ["sum_squares", "fill", "add"]
    slot, found = 0, []
    for insn in program.instructions:
        if insn.wide and insn.src == Imm64.FUNC:
            found.append(starts[slot + insn.imm + 1])
        slot += insn.slots
    assert found == ["fill", "add"]


def kernel(**options: int) -> Btf:
    """The types that the programs ask for, as some kernel might have them."""
    builder = BtfBuilder()
    u8, u32, i32 = builder.add_int("u8", 1), builder.add_int("u32", 4), builder.add_int("int", 4, signed=True)
    char = builder.add_int("char", 1, signed=True)
    pointer = builder.add_ptr(0)
    builder.add_struct(
        "sk_buff",
        options.get("size", 200),
        [
            ("cb", builder.add_array(char, 48), 320),
            ("", builder.add_union("", 4, [("len", u32, 0)]), 112 * 8),
        ],
    )
    builder.add_struct("tcp_sock", 64, [("nonagle", u8, 8 * 8 + 3, 4), ("snd_cwnd", u32, 128, 32)])
    head = builder.add_struct("list_head", 16, [("next", pointer, 0), ("prev", pointer, 64)])
    builder.add_struct(
        "task_struct",
        9000,
        [("pid", i32, 32), ("tasks", head, 1024), ("comm", builder.add_array(char, 16), 2048)],
    )
    builder.add_enum("bpf_map_type", {"BPF_MAP_TYPE_HASH": 1, "BPF_MAP_TYPE_RINGBUF": 27})
    proto = builder.add_func_proto(0)
    builder.add_func("bpf_rcu_read_lock", proto)
    builder.add_func("bpf_rcu_read_unlock", proto)
    return Btf.parse(builder.to_bytes())


# By field of `struct answers` in core.c: the question, and the answer for `kernel()`.
ANSWERS = {
    "len_size": 4,
    "cb_size": 48,
    "missing": 0,
    "pid_signed": 1,
    "len_signed": 0,
    "nonagle_size": 1,
    "nonagle_left": 64 - 7,
    "nonagle_right": 60,
    "task_exists": 1,
    "never_exists": 0,
    "task_size": 9000,
    "ringbuf": 27,
    "ringbuf_exists": 1,
    "never_value_exists": 0,
    "len_offset": 112,
    "nonagle_offset": 8,
    "tasks_prev": 136,
    "comm_at": 259,
}


def _stored(name: str) -> dict[str, int]:
    """Run the straight-line program of core.c by hand: which constant goes to which answer."""
    found = read(name)
    program = found.program("ask").resolve(kernel())
    assert not program.unresolved and found.btf is not None
    answers = next(t for t in found.btf.types if t.kind == Kind.STRUCT and t.name == "answers")
    fields = {member.bit_offset // 8: member.name for member in answers.members}
    values: dict[int, int] = {}
    pointers: dict[int, int] = {}
    out = {}
    for insn in program.instructions:
        if insn.opcode == 0x18 and isinstance(insn.reference, MapSpec):
            pointers[insn.dst] = insn.imm_high
        elif insn.opcode == 0x18:
            values[insn.dst] = insn.imm64
        elif insn.opcode == 0xB7:
            values[insn.dst] = insn.imm
        elif insn.opcode == 0xBF and insn.src in values:
            values[insn.dst] = values[insn.src]
        elif insn.opcode in (0x63, 0x7B) and insn.dst in pointers:
            out[fields[pointers[insn.dst] + insn.offset]] = values[insn.src]
    return out


@pytest.mark.parametrize("level", [1, 2, 3])
def test_core(level: int) -> None:
    program = read(f"core_v{level}").program("ask")
    kinds = {one.kind for one in program.unresolved if isinstance(one, CoreRelocation)}
    assert kinds == set(CoreKind) - {CoreKind.TYPE_ID_LOCAL, CoreKind.TYPE_ID_TARGET, CoreKind.TYPE_MATCHES}
    stored = _stored(f"core_v{level}")
    assert len(stored) >= 14
    assert stored == {name: value for name, value in ANSWERS.items() if name in stored}
    with pytest.raises(CoreError, match=r"field_byte_offset\(sk_buff___mine\.len\).*resolve\(\)"):
        program.code()


def test_kernel_functions_and_variables() -> None:
    program = read("externs_v3").program("locked")
    assert {str(one.name) for one in program.unresolved} == {
        "bpf_rcu_read_lock",
        "bpf_rcu_read_unlock",
        "no_such_kfunc",
        "no_such_variable",
    }
    target = kernel()
    resolved = program.resolve(target)
    called = [insn.imm for insn in resolved.instructions if insn.opcode == 0x85 and insn.src == 2]
    assert [target.type(type_id).name for type_id in called] == ["bpf_rcu_read_lock", "bpf_rcu_read_unlock"]
    missing = next(insn for insn in resolved.instructions if insn.wide)
    assert (missing.src, missing.imm64) == (0, 0)
    with pytest.raises(CoreError, match="bpf_rcu_read_lock, which its BTF does not have"):
        program.resolve(Btf.parse(BtfBuilder().to_bytes()))
    # The kernel takes no function that is defined elsewhere, nor the section that lists such.
    assert {t.kind for t in Btf.parse(program.btf()).all_by_name("no_such_kfunc")} == {Kind.TYPEDEF}
    assert not Btf.parse(program.btf()).all_by_name(".ksyms")
    assert Extern("bpf_rcu_read_lock", "kfunc") in program.unresolved
    assert Extern("no_such_variable", "ksym", weak=True) in program.unresolved


def test_objects_for_machines_of_the_other_byte_order() -> None:
    for path in sorted((DATA / "big").glob("*.o")):
        big, little = read_object(path.read_bytes()), read(f"{path.stem}_v3")
        assert big.byteorder == "big" and list(big.programs) == list(little.programs)
        for name, program in big.programs.items():
            assert program.slots == little.program(name).slots
            assert [program.location(s) for s in range(program.slots)] == [
                little.program(name).location(s) for s in range(program.slots)
            ]
            assert len(decode(program.code(), "big")) == len(program.instructions)
    data = read_object((DATA / "big" / "data.o").read_bytes())
    assert data.map(".rodata").contents == struct.pack(">II8sQ", 10, 1000, b"default", 3)
    assert data.map(".data").contents == struct.pack(">I4xq", 41, -5)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ElfError, match="no program 'hasch' in the object; did you mean 'hash'"):
        read("subprograms_v3").program("hasch")
    with pytest.raises(ElfError, match=r"no map '\.rodat' in the object; did you mean '\.rodata'"):
        read("data_v3").map(".rodat")


def _patched(name: str, offset: int, value: bytes) -> bytes:
    data = bytearray((DATA / f"{name}.o").read_bytes())
    data[offset : offset + len(value)] = value
    return bytes(data)


@pytest.mark.parametrize(
    "data, message, offset",
    [
        (b"", "no ELF file", 0),
        (b"not an object, but text", "no ELF file", 0),
        (_patched("loops_v3", 4, b"\x01"), "class 1", 4),
        (_patched("loops_v3", 5, b"\x03"), "byte order 3", 5),
        (_patched("loops_v3", 16, b"\x02"), "type 2", 16),
        (_patched("loops_v3", 18, b"\x3e"), "machine 62", 18),
        (_patched("loops_v3", 40, b"\xff\xff\xff"), "go past the end", 40),
        (_patched("loops_v3", 58, b"\x20"), "section headers of 32 bytes", 58),
        (_patched("loops_v3", 62, b"\xff"), "section names are in section 255", 62),
    ],
)
def test_what_is_no_object(data: bytes, message: str, offset: int) -> None:
    with pytest.raises(ElfError, match=message) as caught:
        read_object(data)
    assert caught.value.offset == offset and f"byte {offset}" in str(caught.value)


def _section(name: str, section: str) -> tuple[int, int]:
    found = read_raw((DATA / f"{name}.o").read_bytes()).by_name(section)
    assert found is not None
    return found.offset, found.size


def test_damage_within_a_section_is_named() -> None:
    start, _ = _section("loops_v3", "tc")
    with pytest.raises(ElfError, match="function 'checksum': byte 8: opcode 0xff") as caught:
        read_object(_patched("loops_v3", start + 8, b"\xff"))
    assert caught.value.section == "tc" and "section tc" in str(caught.value)
    start, _ = _section("loops_v3", ".BTF")
    with pytest.raises(ElfError, match=r"section \.BTF: not BTF"):
        read_object(_patched("loops_v3", start, b"\0"))
    start, _ = _section("subprograms_v3", ".reltc")
    with pytest.raises(ElfError, match=r"section tc, byte \d+: a relocation of type 9"):
        read_object(_patched("subprograms_v3", start + 8, b"\x09"))
    with pytest.raises(ElfError, match=r"section \.reltc, byte \d+: relocation 0 is for byte 16777"):
        read_object(_patched("subprograms_v3", start, b"\0\0\0\x01"))


def test_the_first_instruction_has_a_line_in_any_case() -> None:
    data = (DATA / "loops_v3.o").read_bytes()
    program = read_object(data).program("first_zero")
    lines = unpack_line_info(program.line_info())
    start, size = _section("loops_v3", ".BTF.ext")
    first = data.index(struct.pack("<2I", *read_line(data, start, size, program.slots)), start)
    moved = read_object(_patched("loops_v3", first, struct.pack("<I", _offset(data, first) + 8)))
    again = unpack_line_info(moved.program("first_zero").line_info())
    assert [line.insn_off for line in again[:2]] == [0, 1] and len(again) == len(lines) + 1
    assert again[0].line == 0


def _offset(data: bytes, at: int) -> int:
    (offset,) = struct.unpack_from("<I", data, at)
    return int(offset)


def read_line(data: bytes, start: int, size: int, slots: int) -> tuple[int, int]:
    """The first words of the first line record of ``first_zero``, which comes second in its section."""
    raw = read_raw(data)
    types, code = raw.by_name(".BTF"), raw.by_name("tc")
    assert types is not None and code is not None
    ext = BtfExt.parse(data[start : start + size], Btf.parse(types.data))
    found = next(line for line in ext.line_info["tc"] if line.insn_off == code.size - 8 * slots)
    return found.insn_off, found.file_name_off


def test_a_program_in_a_section_of_another_name() -> None:
    data = (DATA / "loops_v3.o").read_bytes().replace(b"\0tc\0", b"\0xy\0")
    assert {p.type for p in read_object(data).programs.values()} == {ProgType.UNSPEC}
    known = read_object(data, types={"xy": ProgType.XDP})
    assert {p.type for p in known.programs.values()} == {ProgType.XDP}
