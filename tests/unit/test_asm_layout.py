# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Layouts against `ctypes`, which lays structures out as the platform's C compiler does."""

from __future__ import annotations

import ctypes
import re
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybpfasm import layout
from pybpfasm.asm import Asm, Mem
from pybpfasm.btf import Btf, BtfBuilder
from pybpfasm.errors import AsmError, LayoutError
from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import (
    U8,
    U16,
    U32,
    U64,
    Array,
    Be16,
    Be32,
    Bytes,
    Field,
    Nested,
    Pointer,
    Record,
    Struct,
    Union,
)
from pybpfasm.maps import MapSpec

# The fields of both languages, with the range of their values.
SCALARS: dict[str, tuple[type[layout.Scalar], Any, bool]] = {
    "U8": (layout.U8, ctypes.c_uint8, False),
    "U16": (layout.U16, ctypes.c_uint16, False),
    "U32": (layout.U32, ctypes.c_uint32, False),
    "U64": (layout.U64, ctypes.c_uint64, False),
    "S8": (layout.S8, ctypes.c_int8, True),
    "S16": (layout.S16, ctypes.c_int16, True),
    "S32": (layout.S32, ctypes.c_int32, True),
    "S64": (layout.S64, ctypes.c_int64, True),
    "Be16": (layout.Be16, ctypes.c_uint16.__ctype_be__, False),
    "Be32": (layout.Be32, ctypes.c_uint32.__ctype_be__, False),
    "Be64": (layout.Be64, ctypes.c_uint64.__ctype_be__, False),
}
ORDERS: tuple[layout.ByteOrder, ...] = ("little", "big")
HAS_8_BYTE_ALIGNMENT = ctypes.alignment(ctypes.c_uint64) == 8

Shape = Any  # a name of SCALARS, ("array", Shape, count), or ("struct", [Shape, …])

shapes: st.SearchStrategy[Shape] = st.recursive(
    st.sampled_from(tuple(SCALARS)),
    lambda inner: st.one_of(
        st.tuples(st.just("array"), inner, st.integers(1, 4)),
        st.tuples(st.just("struct"), st.lists(inner, min_size=1, max_size=4)),
    ),
    max_leaves=6,
)


def ours(shape: Shape) -> Field:
    """The field of *shape* in this library."""
    if isinstance(shape, str):
        return SCALARS[shape][0]()
    if shape[0] == "array":
        return Array(ours(shape[1]), shape[2])
    return Nested(struct_of(shape[1]))


def struct_of(members: list[Shape], **keywords: Any) -> type[Struct]:
    """A structure of *members*, called a, b, c…"""
    fields = {chr(97 + index): ours(shape) for index, shape in enumerate(members)}
    return types.new_class("Made", (Struct,), keywords, lambda namespace: namespace.update(fields))


_known: dict[str, Any] = {}


def theirs(shape: Shape) -> Any:
    """The type of *shape* in ctypes: the same object for the same shape."""
    if isinstance(shape, str):
        return SCALARS[shape][1]
    if shape[0] == "array":
        return theirs(shape[1]) * shape[2]
    if repr(shape) not in _known:
        _known[repr(shape)] = c_struct_of(shape[1])
    return _known[repr(shape)]


def c_struct_of(members: list[Shape], pack: int = 0) -> Any:
    """As `struct_of`."""
    fields = [(chr(97 + index), theirs(shape)) for index, shape in enumerate(members)]
    return type("Made", (ctypes.Structure,), {"_fields_": fields} | ({"_pack_": pack} if pack else {}))


def values_of(draw: st.DrawFn, shape: Shape) -> Any:
    """A value that fits *shape*."""
    if isinstance(shape, str):
        field, _, signed = SCALARS[shape]
        bits = 8 * field().size
        low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        return draw(st.one_of(st.sampled_from((low, high)), st.integers(low, high)))
    if shape[0] == "array":
        return [values_of(draw, shape[1]) for _ in range(shape[2])]
    return {chr(97 + index): values_of(draw, inner) for index, inner in enumerate(shape[1])}


def c_value(shape: Shape, value: Any) -> Any:
    """*value* as ctypes takes it."""
    if isinstance(shape, str):
        return value
    made = theirs(shape)
    if shape[0] == "array":
        return made(*(c_value(shape[1], item) for item in value))
    return made(*(c_value(inner, value[chr(97 + index)]) for index, inner in enumerate(shape[1])))


def plain(value: Any) -> Any:
    """What was read, in the form in which it was written."""
    if isinstance(value, Record):
        return {name: plain(inner) for name, inner in value}
    if isinstance(value, (tuple, bytes)):
        return [plain(item) for item in value]
    return value


@pytest.mark.skipif(not HAS_8_BYTE_ALIGNMENT, reason="this machine's C aligns 8-byte integers to 4")
@settings(max_examples=150, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=6), st.booleans(), st.data())
def test_layout_is_that_of_c(members: list[Shape], packed: bool, data: st.DataObject) -> None:
    """Offsets, sizes and bytes are those of ctypes; what is packed comes back."""
    made = struct_of(members, packed=packed)
    c_made = c_struct_of(members, pack=1 if packed else 0)
    assert made.sizeof == ctypes.sizeof(c_made)
    assert made.alignof == ctypes.alignment(c_made)
    for name, field in made.fields.items():
        described = getattr(c_made, name)
        assert (field.offset, field.size) == (described.offset, described.size), name

    @st.composite
    def one(draw: st.DrawFn) -> Any:
        return values_of(draw, ("struct", members))

    values = data.draw(one())
    written = made.pack(**values)
    c_values = [c_value(shape, values[chr(97 + index)]) for index, shape in enumerate(members)]
    assert written == bytes(c_made(*c_values))
    read = made.unpack(written)
    assert plain(read) == values
    assert read.pack() == written
    for byteorder in ORDERS:
        other = made.unpack(made.pack(byteorder=byteorder, **values), byteorder=byteorder)
        assert plain(other) == values
        assert other.pack() == made.pack(byteorder=byteorder, **values)


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes, min_size=1, max_size=6))
def test_btf_says_the_same(members: list[Shape]) -> None:
    """The structure in BTF has the offsets, the sizes and the nesting of the layout."""
    made = struct_of(members)
    builder = BtfBuilder()
    number = made.btf(builder)
    parsed = Btf.parse(builder.to_bytes())
    found: Any = parsed.types[number]
    assert (found.name, found.size) == ("Made", made.sizeof)
    assert [member.name for member in found.members] == list(made.fields)
    for member, field in zip(found.members, made.fields.values(), strict=True):
        assert member.bit_offset == 8 * field.offset
        assert parsed.size_of(member.type_id) == field.size


def test_btf_members_are_in_the_order_of_their_offsets() -> None:
    """The kernel refuses others, and ``at`` can put fields anywhere."""

    class Backwards(Struct):
        high = U32(at=4)
        low = U32(at=0)
        both = U64(at=0)

    builder = BtfBuilder()
    number = Backwards.btf(builder)
    members = Btf.parse(builder.to_bytes()).types[number].members
    assert [member.bit_offset for member in members] == [0, 0, 32]
    assert Backwards.sizeof == 8
    assert (
        Backwards.unpack(Backwards.pack(both=0x1_0000_0002, byteorder="little"), byteorder="little").high == 1
    )


class Inner(Struct):
    """For the tests below."""

    a = U8()
    b = Be32()


class Outer(Struct, size=64):
    """For the tests below."""

    first = U16()
    inner = Nested(Inner)
    many = Array(Nested(Inner), 3)
    rows = Array(Array(U16(), 2), 2)
    raw = Bytes(5)


def test_views_reach_every_byte() -> None:
    """The address of a memory operand is base plus all offsets on the way to it."""
    b = Asm("views")
    view = Outer(b.r7 + 8)
    for mem, offset, size, is_big in (
        (view.first, 8, 2, False),
        (view.inner.a, 12, 1, False),
        (view.inner.b, 16, 4, True),
        (view.many.at(2).b, 8 + 12 + 2 * 8 + 4, 4, True),
        (view.rows.at(1)[1], 8 + 36 + 4 + 2, 2, False),
        (view.raw[4], 8 + 44 + 4, 1, False),
        (view.raw.u32(0), 8 + 44, 4, False),
    ):
        assert isinstance(mem, Mem)
        assert (mem.base, mem.offset, mem.size, mem.is_big) == (7, offset, size, is_big)
    assert [element.a.offset for element in view.many] == [20, 28, 36]
    assert (view.address.base, view.address.offset, Outer.sizeof) == (7, 8, 64)


def test_an_array_is_zeroed() -> None:
    """By stores as they could be written one by one; other members keep what they have."""

    class Event(Struct):
        port = layout.U16()
        addr = Bytes(7)
        times = Array(U32(), 3)
        more = U32()

    zeroed, stored = Asm("zeroed"), Asm("stored")
    view, same = zeroed.stack(Event), stored.stack(Event)  # 32 bytes each, from r10 - 32 on
    zeroed.zero(view.addr)
    zeroed.zero(view.times)
    zeroed.ret(0)
    at = same.address
    stored.u16[at + 2] = 0
    stored.u32[at + 4] = 0
    stored.u8[at + 8] = 0
    stored.u32[at + 12] = 0
    stored.u64[at + 16] = 0
    stored.ret(0)
    assert [(i.opcode, i.dst, i.offset, i.imm) for i in zeroed.finish()] == [
        (i.opcode, i.dst, i.offset, i.imm) for i in stored.finish()
    ]


def test_a_base_class_lends_its_fields() -> None:
    """What a derived structure adds comes behind."""

    class More(Inner):
        c = U8()

    assert list(More.fields) == ["a", "b", "c"]
    assert (More.offsetof("c"), More.sizeof, Inner.sizeof) == (8, 12, 8)


def test_records() -> None:
    """A record compares by value, says its fields, and is read-only."""
    one, other = (Inner.unpack(Inner.pack(a=1, b=2)) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != Inner.unpack(Inner.pack(a=1, b=3))
    assert repr(one) == "Inner(a=1, b=2)"
    assert one.as_dict() == {"a": 1, "b": 2}
    with pytest.raises(AttributeError, match="Inner has no field 'bb'; did you mean 'b'"):
        _ = one.bb
    with pytest.raises(AttributeError, match="read-only"):
        one.a = 2
    assert Inner.pack(b=1, byteorder="little") == Inner.pack(b=1, byteorder="big") == b"\0\0\0\0\0\0\0\1"
    assert sys.byteorder in ("little", "big")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Inner.pack(c=1), "Inner has no field 'c'"),
        (lambda: Inner.pack(a=256), "256 does not fit Inner.a, a __u8 of 1 bytes"),
        (lambda: Inner.pack(a=-1), "-1 does not fit Inner.a"),
        (lambda: Inner.pack(a="x"), "Inner.a takes an int, not str"),
        (lambda: Inner.pack(a=None), "Inner.a takes an int, not NoneType"),
        (lambda: Outer.pack(raw=b"1234"), "Outer.raw takes 5 bytes, got 4"),
        (lambda: Outer.pack(raw=5), "Outer.raw takes 5 elements, not int"),
        (lambda: Outer.pack(many=[{}]), "Outer.many takes 3 elements, got 1"),
        (lambda: Outer.pack(inner=5), "Outer.inner takes a dict, a Record or bytes, not int"),
        (lambda: Outer.pack(inner={"x": 5}), "Inner has no field 'x'"),
        (lambda: Inner.unpack(b"123"), "Inner is 8 bytes, got 3"),
        (lambda: Inner.offsetof("bb"), "Inner has no field 'bb'; did you mean 'b'"),
        (lambda: Array(U8(), -1), "an array can't have -1 elements"),
        (lambda: struct_of(["U32"], size=2), "Made: size=2 is less than the 4 bytes that its fields take"),
        (
            lambda: type("Bad", (Struct,), {"pack": U8()}),
            "Bad: 'pack' can't be a field name, Struct itself uses it: write pack_, which is 'pack' in BTF",
        ),
        (lambda: type("Bad", (Struct,), {"a": U8(at=-1)}), "Bad.a: offset -1 is negative"),
        (
            lambda: type("Bad", (Struct,), {"a": Inner.fields["a"]}),
            "Bad.a: the same field object is Inner.a too",
        ),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    """What can't be laid out or packed is a `LayoutError` that names the field."""
    with pytest.raises(LayoutError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("view.many[0]", "Outer.many holds struct Inner: use .at(0) for a view of one element"),
        ("view.many.at(3)", "index 3 is outside Outer.many, which has 3 elements"),
        ("view.inner = 5", "Outer.inner is a structure: assign to its fields one by one"),
        ("view.raw = 5", "Outer.raw is an array: assign to one element, raw[i] = …"),
        ("view.raw[0:2]", "index slice(0, 2, None) is outside Outer.raw"),
        ("view.raw.u32('x')", "word 'x' (4 bytes) is outside Outer.raw, 5 bytes"),
        ("view.raw.u32(1)", "word 1 (4 bytes) is outside Outer.raw, 5 bytes"),
        ("view.frist", "Outer has no field 'frist'; did you mean 'first'?"),
    ],
)
def test_mistakes_with_views(statement: str, message: str) -> None:
    """What a view can't do is an `AsmError` at the Python line."""
    with pytest.raises(AsmError) as caught:
        exec(statement, {"view": Outer(Asm("views").r7)})
    assert message in caught.value.message
    assert caught.value.location is not None and caught.value.location.filename == "<string>"


def test_scalars_of_the_network() -> None:
    """They are kept in network order on any machine."""

    class Header(Struct):
        port = Be16()
        source = Be32()

    for byteorder in ORDERS:
        packed = Header.pack(port=8080, source=0x0A000014, byteorder=byteorder)
        assert packed == b"\x1f\x90\0\0\x0a\0\0\x14"


LEFT_OUT: dict[str, tuple[Callable[[], object], str]] = {
    "without parentheses": (lambda: new("S", Struct, a=U8), "S.a is a class: a = U8()"),
    "without Nested": (lambda: new("S", Struct, a=Inner), "S.a is a class: a = Nested(Inner)"),
    "a type only": (
        lambda: new("S", Struct, __annotations__={"a": "U8"}),
        "S.a has a type and no value: a = U32()",
    ),
    "a class in an array": (lambda: Array(U8, 3), "takes a field for its elements: U8()"),  # type: ignore[arg-type]
    "a structure in an array": (lambda: Array(Inner, 3), "takes a field for its elements: Nested(Inner)"),  # type: ignore[arg-type]
    "a count that is none": (lambda: Array(U8(), "3"), "an array can't have '3' elements"),  # type: ignore[arg-type]
    "a field in Nested": (lambda: Nested(U8()), "Nested takes the class of a structure, not"),  # type: ignore[arg-type]
    "an offset that is none": (lambda: U8(at="1"), "at= is an offset in bytes, not '1'"),  # type: ignore[arg-type]
    "an offset in a union": (lambda: new("V", Union, a=U8(at=1)), "V.a: a field of a union starts at byte 0"),
    "two places": (lambda: U8.bits(3, at=1, at_bit=8), "starts at a byte, at=, or at a bit, at_bit="),
    "bits of a pointer": (lambda: Pointer.bits(3), "of an integer type, not of a pointer"),
    "a key's class": (
        lambda: MapSpec("m", MapType.HASH, U32, 4, 1),  # type: ignore[arg-type]
        "map m: a key or value is written U32()",
    ),
}


def new(name: str, base: type[Struct], **namespace: object) -> type:
    """A class with these in its body."""
    return type(name, (base,), namespace)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_looks_like_a_field_is_not_left_out(name: str) -> None:
    """It is an error where it is declared, and says how it is written."""
    declare, message = LEFT_OUT[name]
    with pytest.raises(LayoutError, match=re.escape(message)):
        declare()


def test_classes_within_structures() -> None:
    """A structure that is only used in another one may be declared there."""

    class Outer(Struct):
        class Part(Struct):
            x = U8()

        limit: ClassVar[int] = 5
        part = Nested(Part)

    assert list(Outer.fields) == ["part"]


class Names(Struct, kernel_name="names"):
    """Names that the kernel has and Python does otherwise."""

    __state = U32()  # a class's own names are mangled
    btf_ = U32()
    from_ = U32()
    own_ = U32()


def test_names_that_python_does_otherwise() -> None:
    """The members of task_struct, bpf_map and others begin with underscores, or are called btf."""
    assert list(Names.fields) == ["__state", "btf_", "from_", "own_"]
    assert Names.unpack(Names.pack(__state=1, btf_=2)).as_dict()["__state"] == 1
    builder = BtfBuilder()
    type_id = Names.btf(builder)
    members = Btf.parse(builder.to_bytes()).type(type_id).members
    assert [member.name for member in members] == ["__state", "btf", "from", "own_"]
    b = Asm("f")
    b.r2 = Names(b.r1).__state
    assert (b._body[0].opcode, b._body[0].offset) == (0x61, 0)


def test_values_are_not_given_to_a_view() -> None:
    """What people write who take a layout for a class of values."""
    view: Any = Inner
    with pytest.raises(LayoutError, match=r"^Inner, which has a, b, has no field 'c'"):
        view(a=1, c=2)
    with pytest.raises(LayoutError, match=r"Inner\(b.rN\): .* dict\(a=1\), or bytes, Inner.pack\(a=1\)$"):
        view(a=1)
