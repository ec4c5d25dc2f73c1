# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""func_info and line_info records, and the section .BTF.ext."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pybpfasm.btf import (
    Btf,
    BtfBuilder,
    BtfError,
    BtfExt,
    CoreRelo,
    FuncInfo,
    LineInfo,
    pack_func_info,
    pack_line_info,
    unpack_func_info,
    unpack_line_info,
)

DATA = Path(__file__).parent.parent / "data" / "btf"


def compiled(order: str) -> tuple[Btf, BtfExt]:
    """What clang wrote for kinds.c."""
    btf = Btf.parse((DATA / f"kinds_{order}.btf").read_bytes())
    return btf, BtfExt.parse((DATA / f"kinds_{order}.btf.ext").read_bytes(), btf)


def test_func_info_byte_by_byte() -> None:
    records = [FuncInfo(0, 3), FuncInfo(0x102, 0x304)]
    data = pack_func_info(records)
    assert data.hex(" ", -4) == "00000000 03000000 02010000 04030000"
    assert pack_func_info(records, "big").hex(" ", -4) == "00000000 00000003 00000102 00000304"
    assert unpack_func_info(data) == records


def test_line_info_byte_by_byte() -> None:
    records = [LineInfo(0, 1, 9, 1, 1), LineInfo(2, 1, 30, 513, 775)]
    data = pack_line_info(records)
    assert data.hex(" ", -4) == (
        "00000000 01000000 09000000 01040000"  # line 1 << 10 | column 1
        " 02000000 01000000 1e000000 07070800"  # 513 << 10 | 775 = 0x80707
    )
    assert pack_line_info(records, "big")[-4:].hex() == "00080707"
    assert unpack_line_info(data) == records


def test_largest_line_and_column() -> None:
    data = pack_line_info([(0, 0, 0, 0x3FFFFF, 5000)])
    assert data[12:] == b"\xff\xff\xff\xff", "a column past 1023 is stored as 1023"
    with pytest.raises(BtfError, match="line 4194304 is outside"):
        pack_line_info([(0, 0, 0, 0x400000, 0)])


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (lambda: pack_func_info([(4, 1), (4, 2)]), "instruction 4 doesn't follow 4"),
        (lambda: pack_func_info([(-1, 1)]), "instruction -1"),
        (lambda: pack_func_info([(0, 0)]), "type id 0"),
        (lambda: pack_line_info([(4, 0, 0, 1, 0), (3, 0, 0, 1, 0)]), "instruction 3 doesn't follow 4"),
        (lambda: pack_line_info([(0, 0, 0, 1, -1)]), "column -1"),
        (lambda: pack_line_info([(0, 0, 1 << 24, 1, 0)]), "string offset 16777216"),
        (lambda: unpack_func_info(bytes(12)), "12 bytes are no multiple"),
        (lambda: unpack_line_info(bytes(16), rec_size=12), "record size of 12"),
        (lambda: unpack_line_info(bytes(18), rec_size=18), "record size of 18"),
    ],
)
def test_malformed_records(pack: Callable[[], object], message: str) -> None:
    with pytest.raises(BtfError) as caught:
        pack()
    assert message in str(caught.value)


def test_longer_records_of_a_later_format_are_cut() -> None:
    assert unpack_func_info(struct.pack("<6I", 1, 2, 99, 3, 4, 99), rec_size=12) == [
        FuncInfo(1, 2),
        FuncInfo(3, 4),
    ]


@pytest.mark.parametrize("order", ["el", "eb"])
def test_compiled_records_say_where_the_functions_are(order: str) -> None:
    btf, ext = compiled(order)
    named = {
        section: [(record.insn_off, btf.type(record.type_id).name) for record in records]
        for section, records in ext.func_info.items()
    }
    assert named == {".text": [(0, "helper")], "tc": [(0, "entry")], "xdp": [(0, "relocated")]}


@pytest.mark.parametrize("order", ["el", "eb"])
def test_compiled_lines_are_the_lines_of_the_source(order: str) -> None:
    btf, ext = compiled(order)
    source = (DATA / "kinds.c").read_text().splitlines()
    seen = set()
    for records in ext.line_info.values():
        for record in records:
            assert btf.string(record.file_name_off) == "./kinds.c"
            assert btf.string(record.line_off) == source[record.line - 1]
            seen.add(source[record.line - 1].strip())
    assert "return elsewhere->wanted;" in seen
    # Offsets, lines and columns as the object's DWARF line table has them.
    assert [(r.insn_off, r.col) for r in ext.line_info[".text"]] == [(0, 9), (24, 15), (32, 9), (48, 2)]


@pytest.mark.parametrize("order", ["el", "eb"])
def test_compiled_relocation_of_a_field(order: str) -> None:
    btf, ext = compiled(order)
    (relo,) = ext.core_relo["xdp"]
    assert btf.type(relo.type_id).name == "elsewhere"
    assert btf.string(relo.access_str_off) == "0:1", "the second member of what the pointer points at"
    assert relo.kind == 0, "BPF_CORE_FIELD_BYTE_OFFSET"


@pytest.mark.parametrize("order", ["el", "eb"])
def test_compiled_section_comes_out_as_it_went_in(order: str) -> None:
    btf, ext = compiled(order)
    builder = BtfBuilder(btf.byteorder)
    written = ext.to_bytes(builder)
    again = BtfExt.parse(written, Btf.parse(builder.to_bytes()))
    assert again.func_info == ext.func_info
    assert again.line_info == ext.line_info
    assert again.core_relo == ext.core_relo
    original = (DATA / f"kinds_{order}.btf.ext").read_bytes()
    assert len(written) == len(original)


def test_section_byte_by_byte() -> None:
    builder = BtfBuilder()
    ext = BtfExt({"tc": [FuncInfo(0, 7)]}, {"tc": [LineInfo(8, 2, 3, 4, 775)]})
    assert ext.to_bytes(builder).hex(" ", -4) == (
        "9feb0100 20000000"  # magic, version, flags, header of 32 bytes
        " 00000000 14000000"  # func_info: at 0, 20 bytes
        " 14000000 1c000000"  # line_info: at 20, 28 bytes
        " 30000000 00000000"  # core_relo: none
        " 08000000 01000000 01000000 00000000 07000000"  # record size, section name, count, the record
        " 10000000 01000000 01000000 08000000 02000000 03000000 07130000"
    )
    assert builder.string("tc") == 1
    data = ext.to_bytes(builder)
    assert BtfExt.parse(data, Btf.parse(builder.to_bytes())).line_info == ext.line_info


def test_header_without_relocations_is_read() -> None:
    builder = BtfBuilder()
    data = bytearray(BtfExt({"tc": [FuncInfo(0, 7)]}).to_bytes(builder))
    struct.pack_into("<I", data, 4, 24)
    del data[24:32]
    ext = BtfExt.parse(bytes(data), Btf.parse(builder.to_bytes()))
    assert ext.func_info == {"tc": [FuncInfo(0, 7)]}


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (0, 0x12345678, "not .BTF.ext"),
        (0, 0x0002EB9F, "version 2 at byte 2"),
        (4, 16, "header length 16"),
        (4, 4096, "header length 4096"),
        (8, 2, "misaligned or past the end"),
        (12, 4096, "misaligned or past the end"),
        (12, 2, "too short for its record size"),
        (12, 8, "ends within a section's header"),
        (32, 4, "record size 4"),
        (32, 9, "record size 9"),
        (36, 99, "string offset 99"),
        (40, 0, "0 records"),
        (40, 0xFFFFFFFF, "4294967295 records of 8 bytes don't fit"),
    ],
)
def test_malformed_section(at: int, value: int, message: str) -> None:
    builder = BtfBuilder()
    data = bytearray(BtfExt({"tc": [FuncInfo(0, 7)]}).to_bytes(builder))
    struct.pack_into("<I", data, at, value)
    with pytest.raises(BtfError) as caught:
        BtfExt.parse(bytes(data), Btf.parse(builder.to_bytes()))
    assert message in str(caught.value)


def test_relocation_that_does_not_fit() -> None:
    with pytest.raises(BtfError, match="does not fit 32 bits"):
        BtfExt(core_relo={"tc": [CoreRelo(1 << 32, 1, 1, 0)]}).to_bytes(BtfBuilder())
