# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Bit fields lie where C compilers put them, in memory and in BTF; instructions read and write them there.

`tests/data/btf/bitfields.c` has the same structures in C; the bytes and the BTF are clang's, for machines of
both byte orders.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybpfasm import (
    S8,
    S32,
    S64,
    U8,
    U16,
    U32,
    U64,
    Array,
    Asm,
    AsmError,
    Be16,
    Be32,
    LayoutError,
    Nested,
    Struct,
    Union,
    imm64,
)
from pybpfasm.asm import Reg
from pybpfasm.asm.bits import Bits
from pybpfasm.btf import Btf, BtfBuilder, BtfError, Kind, layout_of
from pybpfasm.core import CoreResolver, core_load, core_load_bits
from pybpfasm.emulator import run_instructions
from pybpfasm.layout import ByteOrder
from pybpfasm.listing import text

DATA = Path(__file__).resolve().parents[1] / "data" / "btf"
ORDERS: tuple[tuple[ByteOrder, str], ...] = (("little", "el"), ("big", "eb"))


class Units(Struct, kernel_name="units"):
    a = U32.bits(5)
    b = U32.bits(11)
    c = S32.bits(13)
    d = U32.bits(7)
    e = U32()


class Mixed(Struct, kernel_name="mixed"):
    a = U8.bits(4)
    b = U16.bits(12)
    c = U8()
    _ = U32.bits(6)
    d = U32.bits(10)
    e = U8()


class ZeroWidth(Struct, kernel_name="zero_width"):
    a = U16.bits(3)
    _1 = U16.bits(0)
    b = U16.bits(3)
    c = U8.bits(1)
    _2 = U8.bits(0)
    d = U8.bits(1)


class LongOnes(Struct, kernel_name="long_ones"):
    a = U64.bits(20)
    b = U64.bits(30)
    c = S64.bits(14)
    d = U64.bits(64)
    e = U64.bits(33)
    f = U64.bits(31)


class WholeBytes(Struct, kernel_name="bytes"):
    a = U8()
    b = U32.bits(8)
    c = U32.bits(16)
    d = S8.bits(8)
    e = U16.bits(16)


class PackedOnes(Struct, kernel_name="packed_ones", packed=True):
    a = U8.bits(3)
    b = U32.bits(17)
    c = U16.bits(9)
    d = U8()
    e = U32.bits(30)


class OnlyPadding(Struct, kernel_name="only_padding"):
    a = U8()
    _ = U32.bits(5)
    b = U8()


# The values of bitfields.c.
VALUES: dict[type[Struct], dict[str, Any]] = {
    Units: {"a": 0x15, "b": 0x5A5, "c": -1234, "d": 0x55, "e": 0xDEADBEEF},
    Mixed: {"a": 9, "b": 0xABC, "c": 0x77, "d": 0x2AA, "e": 0x11},
    ZeroWidth: {"a": 5, "b": 6, "c": 1, "d": 1},
    LongOnes: {
        "a": 0xABCDE,
        "b": 0x2BCDEF01,
        "c": -2,
        "d": 0x0123456789ABCDEF,
        "e": 0x1F00DCAFE,
        "f": 0x76543210,
    },
    WholeBytes: {"a": 1, "b": 0x22, "c": 0x3344, "d": -5, "e": 0x6677},
    PackedOnes: {"a": 5, "b": 0x1ABCD, "c": 0x155, "d": 0xEE, "e": 0x2AAAAAAA},
    OnlyPadding: {"a": 0xAA, "b": 0xBB},
}


class Ip(Struct):
    """The first 8 bytes of an IPv4 header, as RFC 791 draws them."""

    version = Be16.bits(4)
    ihl = Be16.bits(4)
    tos = Be16.bits(8)
    length = Be16()
    id = Be16()
    flags = Be16.bits(3)
    fragment = Be16.bits(13)


IP = bytes.fromhex("45b8 0123 4567 5abc")
IP_VALUES = {
    "version": 4,
    "ihl": 5,
    "tos": 0xB8,
    "length": 0x123,
    "id": 0x4567,
    "flags": 2,
    "fragment": 0x1ABC,
}


@pytest.mark.parametrize(("byteorder", "name"), ORDERS)
def test_bytes_are_those_of_c(byteorder: ByteOrder, name: str) -> None:
    """Both ways, one structure of the object after the other."""
    data = (DATA / f"bitfields_{name}.data").read_bytes()
    at = 0
    for shape, values in VALUES.items():
        found = data[at : at + shape.sizeof]
        assert shape.pack(byteorder=byteorder, **values) == found, shape
        assert shape.unpack(found, byteorder=byteorder).as_dict() == values
        at += -(-shape.sizeof // 8) * 8


@pytest.mark.parametrize(("byteorder", "name"), ORDERS)
def test_btf_is_that_of_clang(byteorder: ByteOrder, name: str) -> None:
    """Members, their bits and their types, as the kernel's BTF verifier would read them."""
    theirs = Btf.parse((DATA / f"bitfields_{name}.btf").read_bytes())
    builder = BtfBuilder(byteorder)
    ids = [shape.btf(builder) for shape in VALUES]
    ours = Btf.parse(builder.to_bytes())
    ours.validate()

    def members(btf: Btf, type_id: int) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for member in btf.type(type_id).members:
            base = btf.resolve(member.type_id)
            found.append((member.name, member.bit_offset, member.bitfield_size, base.size, base.signed))
        return found

    for shape, type_id in zip(VALUES, ids, strict=True):
        expected = theirs.by_name(shape.kernel_name, Kind.STRUCT)
        assert expected is not None
        assert shape.sizeof == expected.size
        assert members(ours, type_id) == members(theirs, expected.id)
        # A structure without bit fields has no flag for them.
        assert ours.type(type_id).kflag == expected.kflag


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_network_order_is_the_same_on_every_machine(byteorder: ByteOrder) -> None:
    assert Ip.pack(byteorder=byteorder, **IP_VALUES) == IP
    assert Ip.unpack(IP, byteorder=byteorder).as_dict() == IP_VALUES


def test_btf_of_network_order() -> None:
    """On a little-endian machine as struct iphdr has it, the low half first; without what BTF can't say."""
    builder = BtfBuilder("little")
    Ip.btf(builder)
    found = Btf.parse(builder.to_bytes()).by_name("Ip")
    assert found is not None
    assert [(m.name, m.bit_offset, m.bitfield_size) for m in found.members] == [
        ("ihl", 0, 4),
        ("version", 4, 4),
        ("tos", 8, 8),
        ("length", 16, 0),
        ("id", 32, 0),
        ("flags", 53, 3),
    ]


def bits(view: Struct, name: str) -> Bits:
    found: Bits = getattr(view, name)
    return found


def loaded(shape: type[Struct], name: str, data: bytes) -> int:
    """What the instructions for a load of field *name* give."""
    b = Asm("load")
    field = getattr(shape(b.r1), name)
    if isinstance(field, Bits):
        field.load(b.r0)
    else:
        b.r0 = field
    b.exit()
    return run_instructions(b.finish(), data)[0]


@pytest.mark.parametrize("shape", [*VALUES, Ip])
def test_loads(shape: type[Struct]) -> None:
    """Every field, extended by zeros or its sign."""
    data = IP if shape is Ip else shape.pack(**VALUES[shape])
    values = IP_VALUES if shape is Ip else VALUES[shape]
    for name, value in values.items():
        if shape is PackedOnes and name in ("b", "e"):
            continue  # see test_what_no_load_reaches
        if shape is Ip and name in ("length", "id"):
            continue
        assert loaded(shape, name, data) == value & (1 << 64) - 1, name


def stored(shape: type[Struct], name: str, value: int, data: bytes, *, constant: bool) -> bytes:
    """*data* after the instructions for a store of *value* to field *name*."""
    b = Asm("store")
    field = bits(shape(b.r1), name)
    whole = field.field.width == field.unit.size * 8
    scratch = None if whole else b.r3
    if constant:
        field.store(value, scratch=scratch)
    else:
        b.r2 = imm64(value)
        field.store(b.r2, scratch=scratch)
    b.ret(0)
    return run_instructions(b.finish(), data)[1]


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_stores(draw: st.DataObject) -> None:
    """Any value to any field among any bytes: the field has it, and no other bit has changed."""
    shape: type[Struct] = draw.draw(st.sampled_from([*VALUES, Ip]))
    data = draw.draw(st.binary(min_size=shape.sizeof, max_size=shape.sizeof))
    names = [name for name, field in shape.fields.items() if not field.is_whole]
    if shape is PackedOnes:
        names = ["a", "c"]
    if not names:
        return
    name = draw.draw(st.sampled_from(names))
    field: Any = shape.fields[name]
    low = -(1 << field.width - 1) if field.base.signed else 0
    value = draw.draw(st.integers(low, low + (1 << field.width) - 1))
    constant = draw.draw(st.booleans())
    expected = shape.unpack(data).as_dict() | {name: value}
    try:
        found = stored(shape, name, value, data, constant=constant)
    except AsmError as error:
        # What no immediate reaches.
        assert (constant and "into a register first" in error.message) or "does not fit the signed" in str(
            error
        )
        return
    changed = int.from_bytes(found, "little") ^ int.from_bytes(data, "little")
    everything: dict[str, Any] = {name: -1 if field.base.signed else (1 << field.width) - 1}
    mine = shape.pack(**everything)
    assert not changed & ~int.from_bytes(mine, "little")
    assert shape.unpack(found).as_dict() == expected


def test_a_register_keeps_more_bits_than_the_field_has() -> None:
    """They do not get into the bits beside it."""
    for shape, names in ((Units, "abcd"), (LongOnes, "abcef"), (Ip, ("version", "fragment"))):
        for name in names:
            data = bytes(shape.sizeof)
            b = Asm("store")
            b.r2 = -1
            field = bits(shape(b.r1), name)
            field.store(b.r2, scratch=b.r3)
            b.ret(0)
            found = shape.unpack(run_instructions(b.finish(), data)[1]).as_dict()
            assert {other for other, value in found.items() if value} == {name}


def written(byteorder: ByteOrder, write: Callable[[Asm], object]) -> list[str]:
    b = Asm("one", byteorder=byteorder)
    write(b)
    b.exit()
    return [text(insn) for insn in b.finish()[:-1]]


def test_instructions_on_both_kinds_of_machine() -> None:
    """What the docstrings say: as few as it takes, on the bytes that hold the field."""
    assert written("little", lambda b: Units(b.r1).b.load(b.r2)) == ["r2 = *(u16 *)(r1 +0)", "r2 >>= 5"]
    assert written("big", lambda b: Units(b.r1).b.load(b.r2)) == ["r2 = *(u16 *)(r1 +0)", "r2 &= 2047"]
    assert written("little", lambda b: Units(b.r1).c.load(b.r2)) == [
        "r2 = *(u16 *)(r1 +2)",
        "r2 <<= 51",
        "r2 s>>= 51",
    ]
    assert written("big", lambda b: Ip(b.r1).fragment.load(b.r2)) == ["r2 = *(u16 *)(r1 +6)", "r2 &= 8191"]
    assert written("little", lambda b: Ip(b.r1).fragment.load(b.r2)) == [
        "r2 = *(u16 *)(r1 +6)",
        "r2 = be16 r2",
        "r2 &= 8191",
    ]
    assert written("little", lambda b: Ip(b.r1).version.store(6, scratch=b.r3)) == [
        "r3 = *(u8 *)(r1 +0)",
        "r3 &= 15",
        "r3 |= 96",
        "*(u8 *)(r1 +0) = r3",
    ]
    # All bits set, or none, is one operation.
    for value, changes in ((15, "r3 |= 240"), (0, "r3 &= 15")):
        assert written("little", lambda b, value=value: Ip(b.r1).version.store(value, scratch=b.r3)) == [  # type: ignore[misc]
            "r3 = *(u8 *)(r1 +0)",
            changes,
            "*(u8 *)(r1 +0) = r3",
        ]
    assert written("little", lambda b: WholeBytes(b.r1).e.store(b.r2)) == ["*(u16 *)(r1 +6) = r2"]


@pytest.mark.parametrize(("byteorder", "name"), ORDERS)
def test_units_on_both_kinds_of_machine(byteorder: ByteOrder, name: str) -> None:
    """A number of the unit's bytes, as the machine loads it, holds the field of C at ``shift``."""
    data = (DATA / f"bitfields_{name}.data").read_bytes()
    b = Asm("one", byteorder=byteorder)
    at = 0
    for shape, values in VALUES.items():
        for field, value in values.items():
            if shape.fields[field].is_whole or (shape is PackedOnes and field in "be"):
                continue
            found = bits(shape(b.r1), field)
            start, size = at + found.unit.offset, found.unit.size
            assert found.unit.offset % size == 0
            number = int.from_bytes(data[start : start + size], byteorder)
            wanted = value & (1 << found.field.width) - 1
            assert (number & found.mask) >> found.shift == wanted
        at += -(-shape.sizeof // 8) * 8


def test_a_flag_is_tested_in_its_unit() -> None:
    """In a register that the unit was loaded to."""
    b = Asm("one")
    assert (Ip(b.r1).version.unit.size, Ip(b.r1).version.mask) == (1, 0xF0)
    assert Ip(b.r1).fragment.mask == 0xFF1F  # the bytes are the other way round
    assert Ip(Asm("one", byteorder="big").r1).fragment.mask == 0x1FFF


class Crossing(Struct, packed=True):
    """A field in nine bytes."""

    a = U8.bits(4)
    b = U64.bits(64)


ERRORS: dict[str, tuple[Callable[[Asm], object], str]] = {
    "assigned to a register": (
        lambda b: setattr(b, "r2", Units(b.r1).a),
        "loading a bit field takes several instructions: view.a.load(b.r2)",
    ),
    "assigned to": (
        lambda b: setattr(Units(b.r1), "a", 5),
        "Units.a is a bit field, and storing it takes several instructions: view.a.store(value, scratch",
    ),
    "compared": (lambda b: Units(b.r1).a == 5, "Units.a is a bit field and can't be an operand"),
    "added": (lambda b: b.r2.__iadd__(Units(b.r1).a), "not a bit field: view.field.load(b.rN)"),  # type: ignore[arg-type]
    "no scratch": (lambda b: Units(b.r1).a.store(1), "shares its bytes with others"),
    "scratch is the value": (
        lambda b: Units(b.r1).a.store(b.r2, scratch=b.r2),
        "value, scratch and the view's register must be different",
    ),
    "scratch is the view's": (
        lambda b: Units(b.r1).a.store(1, scratch=b.r1),
        "value, scratch and the view's register must be different",
    ),
    "the value is the view's": (
        lambda b: Units(b.r1).a.store(b.r1, scratch=b.r2),
        "value, scratch and the view's register must be different",
    ),
    "too large": (
        lambda b: Units(b.r1).a.store(32, scratch=b.r2),
        "32 does not fit Units.a, which has 5 bits",
    ),
    "too small": (lambda b: Units(b.r1).c.store(-4097, scratch=b.r2), "-4097 does not fit Units.c"),
    "of 32 bits": (lambda b: Units(b.r1).a.load(b.w2), "a bit field needs all of the register"),
    "r10": (lambda b: Units(b.r1).a.load(b.r10), "r10 is the frame pointer"),
    "no register": (lambda b: Units(b.r1).a.load(5), "Units.a.load takes a register, not int"),  # type: ignore[arg-type]
    "of another function": (lambda b: Units(b.r1).a.load(Asm("other").r2), "belongs to another function"),
    "a float": (lambda b: Units(b.r1).a.store(1.5, scratch=b.r2), "a register or a constant, not float"),  # type: ignore[arg-type]
    "beyond immediates": (
        lambda b: LongOnes(b.r1).b.store(7, scratch=b.r2),
        "has bits that no immediate reaches: put 0x7 into a register first",
    ),
    "no load reaches it": (lambda b: Crossing(b.r1).b.load(b.r2), "lies in no 8 bytes that one instruction"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    """Each names what to write, and the line."""
    statement, message = ERRORS[name]
    with pytest.raises(AsmError, match=re.escape(message)) as caught:
        statement(Asm("case"))
    assert caught.value.location is not None
    assert caught.value.location.filename.endswith("test_bitfield.py")


def test_layouts_that_can_not_be() -> None:
    with pytest.raises(LayoutError, match="a bit field of __u8 has 1 to 8 bits, not 9"):
        U8.bits(9)
    with pytest.raises(LayoutError, match="elements: make a structure of them"):
        Array(U8.bits(3), 4)
    with pytest.raises(LayoutError, match=r"Bad\.a: a bit field of 0 bits has no value"):
        type("Bad", (Struct,), {"a": U8.bits(0)})
    with pytest.raises(LayoutError, match=r"Bad\.b: 'b' crosses the end of its __be16"):
        type("Bad", (Struct,), {"a": Be16.bits(4), "b": Be16.bits(13, at_bit=4)})
    with pytest.raises(LayoutError, match=r"4096 does not fit Units\.c, 13 bits: -4096 to 4095"):
        Units.pack(c=4096)
    with pytest.raises(LayoutError, match=r"Units\.a takes an int, not str"):
        Units.pack(a="x")


def test_padding_is_no_field() -> None:
    assert list(ZeroWidth.fields) == ["a", "b", "c", "d"]
    assert Mixed.alignof == 4 and OnlyPadding.alignof == 1


def test_places_by_number() -> None:
    """At a byte and at a bit, over others."""

    class Over(Struct):
        word = U32()
        low = U32.bits(4, at=0)
        high = U32.bits(4, at_bit=28)

    assert Over.sizeof == 4
    assert Over.unpack(struct.pack("<I", 0xA000000B), byteorder="little").as_dict() == {
        "word": 0xA000000B,
        "low": 0xB,
        "high": 0xA,
    }


def test_the_registers_that_are_named_and_no_others() -> None:
    """A load changes its target, a store the value's register and the scratch."""
    for shape, name in ((Units, "c"), (LongOnes, "b"), (Ip, "fragment")):
        b = Asm("one")
        field = bits(shape(b.r1), name)
        field.load(b.r4)
        field.store(b.r5, scratch=b.r6)
        b.exit()
        assert {insn.dst for insn in b.finish()[:-1] if insn.opcode & 7 in (1, 4, 7)} == {4, 5, 6}


def test_types_for_checkers() -> None:
    """A bit field of a view is not what a register takes."""
    b = Asm("one")
    register: Reg = b.r2
    Units(b.r1).a.load(register)
    assert isinstance(Units(b.r1).a, Bits)
    assert isinstance(Be32.bits(3).base, Be32)


@pytest.mark.parametrize(("byteorder", "name"), ORDERS)
def test_layouts_from_btf(byteorder: ByteOrder, name: str) -> None:
    """The structures of the object, read with layouts that come from its BTF."""
    btf = Btf.parse((DATA / f"bitfields_{name}.btf").read_bytes())
    data = (DATA / f"bitfields_{name}.data").read_bytes()
    at = 0
    for shape, values in VALUES.items():
        found = layout_of(btf, shape.kernel_name)
        assert found.sizeof == shape.sizeof and found.kernel_name == shape.kernel_name
        piece = data[at : at + found.sizeof]
        assert found.unpack(piece, byteorder=byteorder).as_dict() == values
        assert found.pack(byteorder=byteorder, **values) == piece
        at += -(-found.sizeof // 8) * 8
    either = layout_of(btf, "either").unpack(data[at : at + 4], byteorder=byteorder)
    assert issubclass(layout_of(btf, "either"), Union)
    assert (either.parts.low, either.parts.rest) == (0xC, 0x1234567)
    assert (either.whole, either.few) == {"little": (0x1234567C, -4), "big": (0xC1234567, -2)}[byteorder]
    with pytest.raises(BtfError, match="no structure or union 'nothing'"):
        layout_of(btf, "nothing")


def test_layouts_of_all_sorts_of_members() -> None:
    b = BtfBuilder()
    u8, u32 = b.add_int("u8", 1), b.add_int("u32", 4)
    wide = b.add_int("__int128", 16)
    be32 = b.add_typedef("__be32", u32)
    mode = b.add_enum("mode", {"A": 1, "B": -1}, signed=True)
    inner = b.add_struct("", 8, [("x", u32, 0), ("y", b.add_const(be32), 32)])
    choice = b.add_union("", 8, [("", inner, 0), ("all", b.add_array(u8, 8), 0)])
    b.add_struct(
        "all_sorts",
        64,
        [
            ("", choice, 0),
            ("next", b.add_ptr(0), 64),
            ("mode", mode, 128),
            ("pack", u8, 160),
            ("flag", b.add_typedef("bits", u8), 168, 3),
            ("wide", wide, 256),
            ("tail", b.add_array(u32, 0), 512),
        ],
    )
    btf = Btf.parse(b.to_bytes())
    shape = layout_of(btf, "all_sorts")
    data = bytearray(64)
    data[0:8] = bytes.fromhex("01000000 0a000001")
    data[16:24] = bytes.fromhex("ffffffff 09050000")
    found = shape.unpack(bytes(data), byteorder="little")
    assert (found.x, found.y, found.all) == (1, 0x0A000001, bytes(data[:8]))
    assert (found.mode, found.pack_, found.flag, found.next) == (-1, 9, 5, 0)
    assert found.wide == bytes(16) and found.tail == ()
    view: Any = shape(Asm("one").r1)
    assert view.y.name == "all_sorts.y"


def test_unions() -> None:
    class Word(Union):
        whole = U32()
        bytes_ = Array(U8(), 4)
        low = U16.bits(4)

    class Holder(Struct):
        first = U8()
        word = Nested(Word)

    assert (Word.sizeof, Word.alignof, Holder.sizeof, Holder.offsetof("word")) == (4, 4, 8, 4)
    found = Word.unpack(b"\x1c\x00\x00\x80", byteorder="little")
    assert (found.whole, found.bytes_, found.low) == (0x8000001C, b"\x1c\0\0\x80", 0xC)
    assert found.pack() == b"\x1c\x00\x00\x80"
    assert Holder.pack(byteorder="little", first=1, word={"low": 5}) == bytes.fromhex("01000000 05000000")
    builder = BtfBuilder()
    Holder.btf(builder)
    btf = Btf.parse(builder.to_bytes())
    union = btf.by_name("Word")
    assert union is not None and union.kind == Kind.UNION and union.size == 4
    assert [(m.name, m.bit_offset, m.bitfield_size) for m in union.members] == [
        ("whole", 0, 0),
        ("bytes_", 0, 0),
        ("low", 0, 4),
    ]
    assert written("little", lambda b: setattr(b, "r2", Holder(b.r1).word.whole)) == ["r2 = *(u32 *)(r1 +4)"]


class Kernels(Struct, kernel_name="thing"):
    """What is asked of a structure that every kernel has elsewhere."""

    before = U8()
    flags = U8.bits(3)
    level = S32.bits(6)


@pytest.mark.parametrize("name", ["flags", "level"])
@pytest.mark.parametrize(
    ("size", "bit", "width"), [(1, 17, 3), (2, 20, 9), (4, 33, 7), (4, 30, 6), (8, 70, 33), (8, 64, 64)]
)
def test_core(name: str, size: int, bit: int, width: int) -> None:
    """The field is found wherever the target has it, in as many bytes and bits as it has there."""
    builder = BtfBuilder()
    signed = name == "level"
    base = builder.add_int("base", size, signed=signed)
    builder.add_struct("thing", 24, [(name, base, bit, width)])
    b = Asm("one")
    core_load_bits(b.r0, Kernels(b.r1), name)
    b.exit()
    body = CoreResolver(Btf.parse(builder.to_bytes())).instructions("one", b.finish())
    value = 0x5A5A5A5A_A5A5A5A5 & (1 << width) - 1
    memory = (value << bit).to_bytes(24, "little")
    wanted = value - (1 << width) if signed and value >> width - 1 else value
    assert run_instructions(body, memory)[0] == wanted & (1 << 64) - 1
    noise = (~((1 << width) - 1 << bit) & (1 << 192) - 1 | value << bit).to_bytes(24, "little")
    assert run_instructions(body, noise)[0] == wanted & (1 << 64) - 1


def test_core_errors() -> None:
    def fails(statement: Callable[[Asm], None], message: str) -> None:
        with pytest.raises(AsmError, match=re.escape(message)):
            statement(Asm("one"))

    fails(lambda b: core_load(b.r2, Kernels(b.r1), "flags"), "Kernels.flags is a bit field: core_load_bits()")
    fails(lambda b: core_load_bits(b.r2, Kernels(b.r1), "before"), "is no bit field: core_load() loads it")
    fails(lambda b: core_load_bits(b.r1, Kernels(b.r1), "flags"), "r1 can't hold the address and")
    fails(lambda b: core_load_bits(b.r2, Kernels(b.r1 + 8), "flags"), "starts where the register points to")
    fails(lambda b: core_load_bits(b.r2, Ip(b.r1), "fragment"), "can't be described in BTF, which CO-RE")


def test_members_are_counted_as_in_btf() -> None:
    """The order of places, not that of the declaration."""

    class Thing(Struct, kernel_name="thing"):
        second = U32(at=4)
        first = U32(at=0)

    builder = BtfBuilder()
    word = builder.add_int("word", 4)
    builder.add_struct("thing", 16, [("first", word, 64), ("second", word, 96)])
    b = Asm("one")
    core_load(b.r0, Thing(b.r1), "second")
    b.exit()
    body = CoreResolver(Btf.parse(builder.to_bytes())).instructions("one", b.finish())
    assert text(body[0]) == "r0 = *(u32 *)(r1 +12)"
