# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The BTF writer, against bytes worked out by hand from Documentation/bpf/btf.rst."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pybpfasm.btf import Btf, BtfBuilder, BtfError, Kind

HEADER = 24


def types_of(data: bytes) -> bytes:
    """The type section of BTF as the writer lays it out."""
    (length,) = struct.unpack_from("<I", data, 12)
    return data[HEADER : HEADER + length]


def strings_of(data: bytes) -> bytes:
    """The string section of BTF as the writer lays it out."""
    offset, length = struct.unpack_from("<II", data, 16)
    return data[HEADER + offset : HEADER + offset + length]


def test_empty_btf_is_a_header_and_the_empty_string() -> None:
    assert BtfBuilder().to_bytes().hex(" ", -4) == (
        "9feb0100 18000000 00000000 00000000 00000000 01000000 00"
    ), "magic, version 1, no flags; header of 24; types at 0, none; strings at 0, one byte"


def test_big_endian_header() -> None:
    assert BtfBuilder("big").to_bytes().hex(" ", -4) == (
        "eb9f0100 00000018 00000000 00000000 00000000 00000001 00"
    )


def test_an_integer_byte_by_byte() -> None:
    builder = BtfBuilder()
    assert builder.add_int("int", 4, signed=True) == 1
    data = builder.to_bytes()
    assert types_of(data).hex(" ", -4) == (
        "01000000"  # name at offset 1
        " 00000001"  # kind 1 in bits 24..28
        " 04000000"  # 4 bytes
        " 20000001"  # 32 bits at offset 0, encoding 1 (signed) in bits 24..27
    )
    assert strings_of(data) == b"\0int\0"


@pytest.mark.parametrize(
    ("add", "expected"),
    [
        pytest.param(
            lambda b: b.add_int("x", 1, bool_=True), "01000000 00000001 01000000 08000004", id="bool"
        ),
        pytest.param(
            lambda b: b.add_int("x", 1, char=True), "01000000 00000001 01000000 08000002", id="char"
        ),
        pytest.param(lambda b: b.add_int("x", 4, bits=3), "01000000 00000001 04000000 03000000", id="3 bits"),
        pytest.param(lambda b: b.add_ptr(0), "00000000 00000002 00000000", id="void pointer"),
        pytest.param(
            lambda b: b.add_array(0, 5, index_id=0),
            "00000000 00000003 00000000 00000000 00000000 05000000",
            id="array",
        ),
        pytest.param(
            lambda b: b.add_struct("x", 8, [("", 0, 0), ("", 0, 32)]),
            "01000000 02000004 08000000 00000000 00000000 00000000 00000000 00000000 20000000",
            id="struct",
        ),
        pytest.param(
            lambda b: b.add_struct("x", 4, [("", 0, 0, 3), ("", 0, 3, 29)]),
            "01000000 02000084 04000000 00000000 00000000 00000003 00000000 00000000 0300001d",
            id="bit fields set the kind flag and put the width in the top byte",
        ),
        pytest.param(
            lambda b: b.add_union("x", 4, [("", 0, 0)]),
            "01000000 01000005 04000000 00000000 00000000 00000000",
            id="union",
        ),
        pytest.param(
            lambda b: b.add_enum("", {"x": 0xFFFFFFFF}),
            "00000000 01000006 04000000 01000000 ffffffff",
            id="enum",
        ),
        pytest.param(
            lambda b: b.add_enum("", {"x": -2}, signed=True),
            "00000000 01000086 04000000 01000000 feffffff",
            id="signed enum",
        ),
        pytest.param(lambda b: b.add_fwd("x"), "01000000 00000007 00000000", id="struct forward"),
        pytest.param(lambda b: b.add_fwd("x", union=True), "01000000 00000087 00000000", id="union forward"),
        pytest.param(lambda b: b.add_typedef("x", 0), "01000000 00000008 00000000", id="typedef"),
        pytest.param(lambda b: b.add_volatile(0), "00000000 00000009 00000000", id="volatile"),
        pytest.param(lambda b: b.add_const(0), "00000000 0000000a 00000000", id="const"),
        pytest.param(lambda b: b.add_restrict(0), "00000000 0000000b 00000000", id="restrict"),
        pytest.param(lambda b: b.add_func("x", 0, 0), "01000000 0000000c 00000000", id="static function"),
        pytest.param(lambda b: b.add_func("x", 0, 2), "01000000 0200000c 00000000", id="extern function"),
        pytest.param(
            lambda b: b.add_func_proto(0, [("x", 1), ("", 0)]) and b.add_ptr(0),
            "00000000 0200000d 00000000 01000000 01000000 00000000 00000000 00000000 00000002 00000000",
            id="prototype with a variable number of arguments, and a type for the argument",
        ),
        pytest.param(lambda b: b.add_var("x", 0, 1), "01000000 0000000e 00000000 01000000", id="variable"),
        pytest.param(
            lambda b: b.add_datasec(".x", 12, [(0, 4, 8)]),
            "01000000 0100000f 0c000000 00000000 04000000 08000000",
            id="data section",
        ),
        pytest.param(lambda b: b.add_float("x", 8), "01000000 00000010 08000000", id="float"),
        pytest.param(lambda b: b.add_decl_tag("x", 0), "01000000 00000011 00000000 ffffffff", id="tag"),
        pytest.param(
            lambda b: b.add_decl_tag("x", 0, 2), "01000000 00000011 00000000 02000000", id="tag on a member"
        ),
        pytest.param(lambda b: b.add_type_tag("x", 0), "01000000 00000012 00000000", id="type tag"),
        pytest.param(
            lambda b: b.add_enum64("", {"x": 0x1122334455667788}),
            "00000000 01000013 08000000 01000000 88776655 44332211",
            id="enum64, low word first",
        ),
        pytest.param(
            lambda b: b.add_enum64("", {"x": -2}, signed=True),
            "00000000 01000093 08000000 01000000 feffffff ffffffff",
            id="signed enum64",
        ),
    ],
)
def test_each_kind_byte_by_byte(add: Callable[[BtfBuilder], int], expected: str) -> None:
    builder = BtfBuilder()
    add(builder)
    assert types_of(builder.to_bytes()).hex(" ", -4) == expected

    swapped = BtfBuilder("big")
    add(swapped)
    words = bytes.fromhex(expected)
    reversed_words = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
    assert types_of_big(swapped.to_bytes()) == reversed_words


def types_of_big(data: bytes) -> bytes:
    """The type section of big-endian BTF."""
    (length,) = struct.unpack_from(">I", data, 12)
    return data[HEADER : HEADER + length]


def test_same_type_same_id_other_type_other_id() -> None:
    builder = BtfBuilder()
    u32 = builder.add_int("unsigned int", 4)
    pair = builder.add_struct("pair", 8, [("a", u32, 0), ("b", u32, 32)])
    before = builder.to_bytes()
    assert builder.add_int("unsigned int", 4) == u32
    assert builder.add_struct("pair", 8, [("a", u32, 0), ("b", u32, 32)]) == pair
    assert builder.to_bytes() == before
    assert builder.add_int("unsigned int", 4, signed=True) not in (u32, pair)
    assert builder.add_struct("pair", 8, [("b", u32, 0), ("a", u32, 32)]) != pair
    assert builder.add_struct("pair", 12, [("a", u32, 0), ("b", u32, 32)]) != pair
    assert len(builder) == 5


def test_each_string_is_stored_once() -> None:
    builder = BtfBuilder()
    u32 = builder.add_int("twice", 4)
    builder.add_struct("once", 4, [("twice", u32, 0)])
    assert builder.string("twice") == 1
    assert builder.string("") == 0
    assert strings_of(builder.to_bytes()) == b"\0twice\0once\0"


def test_a_structure_that_points_at_itself() -> None:
    builder = BtfBuilder()
    node = builder.next_id + 1
    pointer = builder.add_ptr(node)
    assert builder.add_struct("node", 8, [("next", pointer, 0)]) == node
    parsed = Btf.parse(builder.to_bytes())
    assert parsed.type(node).members[0].type_id == pointer
    assert parsed.type(pointer).type_id == node
    assert parsed.definition(node) == "struct node {\n\tstruct node *next;\n};"


def test_array_gets_an_index_type() -> None:
    builder = BtfBuilder()
    u8 = builder.add_int("unsigned char", 1)
    array = builder.add_array(u8, 16)
    parsed = Btf.parse(builder.to_bytes())
    assert parsed.type(parsed.type(array).index_id).kind == Kind.INT
    assert parsed.size_of(array) == 16


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda b: b.add_int("", 4), "needs a name"),
        (lambda b: b.add_int("x", 3), "has 1, 2, 4, 8 or 16 bytes, not 3"),
        (lambda b: b.add_int("x", 4, bits=33), "33 bits don't fit 4 bytes"),
        (lambda b: b.add_int("x", 4, signed=True, bool_=True), "at most one of"),
        (lambda b: b.add_array(0, -1), "-1 elements"),
        (lambda b: b.add_ptr(-1), "negative type id"),
        (lambda b: b.add_struct("two words", 0, []), "'two words' is no C identifier"),
        (lambda b: b.add_struct("x" * 512, 0, []), "512 characters is too long"),
        (lambda b: b.add_struct("s", 4, [("a-b", 0, 0)]), "'a-b' is no C identifier"),
        (lambda b: b.add_struct("s", 4, [("a", 0, 40)]), "at bit 40 is outside its 4 bytes"),
        (lambda b: b.add_struct("s", 4, [("a", 0, 3)]), "at bit 3 is no bit field"),
        (lambda b: b.add_struct("s", 4, [("a", 0, 30, 3)]), "can't have 3 bits at bit 30"),
        (
            lambda b: b.add_struct("s", 8, [("a", 0, 32), ("b", 0, 0)]),
            "'b' at bit 0 comes after one at bit 32",
        ),
        (lambda b: b.add_struct("s", -1, []), "size of -1"),
        (lambda b: b.add_struct("s", 4, [("a", 0, 0)] * 65536), "65536 elements; BTF allows 65535"),
        (lambda b: b.add_union("u", 8, [("a", 0, 8)]), "union starts at bit 8"),
        (lambda b: b.add_enum("e", {"A": -1}), "pass signed=True"),
        (lambda b: b.add_enum("e", {"A": 1 << 32}), "outside 0..4294967295"),
        (lambda b: b.add_enum("e", {"": 1}), "enumerator needs a name"),
        (lambda b: b.add_enum("e", {}, size=3), "not 3"),
        (lambda b: b.add_enum64("e", {"A": 1 << 64}), "outside"),
        (lambda b: b.add_fwd(""), "needs a name"),
        (lambda b: b.add_typedef("", 0), "needs a name"),
        (lambda b: b.add_func("f", 0, 3), "linkage 3"),
        (lambda b: b.add_func_proto(0, [("", 0), ("a", 1)]), "can't be void"),
        (lambda b: b.add_var("", 0), "needs a name"),
        (lambda b: b.add_datasec("", 0, []), "needs a name"),
        (lambda b: b.add_datasec(".x", 8, [(1, 0, 8), (1, 4, 4)]), "overlap those before 8"),
        (lambda b: b.add_float("x", 3), "not 3"),
        (lambda b: b.add_decl_tag("", 0), "needs a value"),
        (lambda b: b.add_decl_tag("x", 0, -2), "component -2"),
        (lambda b: b.add_type_tag("", 0), "needs a value"),
        (lambda b: b.string("a\0b"), "zero byte"),
    ],
)
def test_what_the_kernel_would_refuse(add: Callable[[BtfBuilder], int], message: str) -> None:
    with pytest.raises(BtfError) as caught:
        add(BtfBuilder())
    assert message in str(caught.value)


def test_reference_to_a_type_that_is_never_added() -> None:
    builder = BtfBuilder()
    builder.add_ptr(2)
    with pytest.raises(BtfError, match="type 1 refers to type 2, but there are 1 types"):
        builder.to_bytes()
