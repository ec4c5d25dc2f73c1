# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The BTF reader, against what a compiler writes and bpftool reads, and against bytes made by hand."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest

from pybpfasm.btf import Btf, BtfBuilder, BtfError, Enumerator, Kind, Linkage, Member, Param

DATA = Path(__file__).parent.parent / "data" / "btf"


def raw_btf(types: bytes, strings: bytes = b"\0", end: str = "<") -> bytes:
    """BTF of a type and a string section, as they are."""
    header = struct.pack(f"{end}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def words(*values: int) -> bytes:
    """Little-endian 32-bit words."""
    return struct.pack(f"<{len(values)}I", *values)


@pytest.fixture(params=["el", "eb"])
def kinds(request: pytest.FixtureRequest) -> Btf:
    """The types that clang made of kinds.c, in both byte orders."""
    return Btf.parse((DATA / f"kinds_{request.param}.btf").read_bytes())


def named(btf: Btf, name: str, kind: Kind | None = None) -> int:
    """The id of the type of that name, which is there."""
    found = btf.by_name(name, kind)
    assert found is not None
    return found.id


def test_compiled_types_read_as_bpftool_reads_them(kinds: Btf) -> None:
    assert kinds.dump() == (DATA / "kinds.txt").read_text()


def test_compiled_types_are_valid(kinds: Btf) -> None:
    kinds.validate()


def test_both_byte_orders_are_told_apart() -> None:
    orders = [Btf.parse((DATA / f"kinds_{e}.btf").read_bytes()).byteorder for e in ("el", "eb")]
    assert orders == ["little", "big"]


def test_members(kinds: Btf) -> None:
    flags = kinds.type(named(kinds, "flags", Kind.STRUCT))
    u32 = named(kinds, "u32")
    assert flags.size == 8
    assert flags.members == (
        Member("low", u32, 0, 3),
        Member("high", u32, 3, 13),
        Member("whole", u32, 32, 0),
    )


def test_enumerators_of_every_width_and_sign() -> None:
    builder = BtfBuilder()
    ids = [
        builder.add_enum("a", {"A": 0xFFFFFFFF}),
        builder.add_enum("b", {"B": -1, "C": 1}, signed=True),
        builder.add_enum64("c", {"D": (1 << 64) - 1}),
        builder.add_enum64("d", {"E": -(1 << 63), "F": (1 << 63) - 1}, signed=True),
    ]
    btf = Btf.parse(builder.to_bytes())
    assert [btf.type(i).enumerators for i in ids] == [
        (Enumerator("A", 0xFFFFFFFF),),
        (Enumerator("B", -1), Enumerator("C", 1)),
        (Enumerator("D", (1 << 64) - 1),),
        (Enumerator("E", -(1 << 63)), Enumerator("F", (1 << 63) - 1)),
    ]
    assert [btf.type(i).signed for i in ids] == [False, True, False, True]


def test_integers(kinds: Btf) -> None:
    int_ = kinds.type(named(kinds, "int"))
    assert (int_.size, int_.bits, int_.bit_offset, int_.signed, int_.encoding) == (4, 32, 0, True, 1)
    unsigned = kinds.type(named(kinds, "unsigned int"))
    assert (unsigned.signed, unsigned.encoding) == (False, 0)


def test_functions_and_variables(kinds: Btf) -> None:
    helper = kinds.type(named(kinds, "helper", Kind.FUNC))
    assert helper.linkage == Linkage.STATIC
    prototype = kinds.type(helper.type_id)
    assert [p.name for p in prototype.params] == ["node", "n"]
    assert prototype.params[1] == Param("n", named(kinds, "u32"))
    tag = kinds.by_name("argument", Kind.DECL_TAG)
    assert tag is not None
    assert (tag.type_id, tag.component) == (helper.id, 0)
    outside = kinds.type(named(kinds, "outside", Kind.VAR))
    assert outside.linkage == Linkage.EXTERN
    (entry,) = kinds.type(named(kinds, ".ksyms", Kind.DATASEC)).entries
    assert (entry.type_id, entry.offset, entry.size) == (outside.id, 0, 4)


def test_sizes(kinds: Btf) -> None:
    assert kinds.size_of(named(kinds, "nodes", Kind.VAR)) == 4 * 144
    grid = next(m for m in kinds.type(named(kinds, "node")).members if m.name == "grid")
    assert kinds.size_of(grid.type_id) == 2 * 3 * 4
    pointer = kinds.type(named(kinds, "node")).members[0].type_id
    assert kinds.size_of(pointer) == 8
    assert kinds.size_of(pointer, pointer_size=4) == 4
    assert kinds.size_of(named(kinds, "double")) == 8
    with pytest.raises(BtfError, match="kind VOID, which has no size"):
        kinds.size_of(0)


def test_resolve_goes_behind_typedefs_and_qualifiers(kinds: Btf) -> None:
    assert kinds.resolve(named(kinds, "u32")).name == "unsigned int"
    text = kinds.type(named(kinds, "node")).members[1]
    assert kinds.resolve(kinds.type(text.type_id).type_id).name == "char"


def test_names(kinds: Btf) -> None:
    assert [t.kind for t in kinds.all_by_name("flags")] == [Kind.STRUCT, Kind.VAR]
    assert kinds.by_name("flags") == kinds.by_name("flags", Kind.STRUCT)
    assert kinds.by_name("flags", Kind.UNION) is None
    assert kinds.by_name("flag") is None
    assert kinds.by_name("lags") is None
    assert kinds.by_name("") is None


def test_a_name_may_be_the_tail_of_another() -> None:
    # "int" starts within "hint": its bytes are not stored again.
    types = words(1, 0x01000000, 4, 32) + words(2, 0x01000000, 2, 16)
    btf = Btf.parse(raw_btf(types, b"\0hint\0"))
    assert [t.id for t in btf.all_by_name("int")] == [2]
    assert [t.id for t in btf.all_by_name("hint")] == [1]
    # And the same name may be stored twice.
    types += words(6, 0x07000000, 0)
    btf = Btf.parse(raw_btf(types, b"\0hint\0int\0"))
    assert [t.id for t in btf.all_by_name("int")] == [2, 3]


def test_types_by_id(kinds: Btf) -> None:
    assert len(kinds.types) == kinds.count == 60
    assert kinds.types[0].kind == Kind.VOID
    assert kinds.types[0].name == "void"
    assert [t.id for t in kinds.types] == list(range(60))
    with pytest.raises(BtfError, match="type 60 doesn't exist"):
        kinds.type(60)
    with pytest.raises(IndexError):
        kinds.types[60]


def test_c_text_of_a_structure(kinds: Btf) -> None:
    assert kinds.definition(named(kinds, "node")) == (
        "struct node {\n"
        "\tstruct node *next;\n"
        "\tconst volatile char *text;\n"
        "\tint *restrict fast;\n"
        "\tu8 bytes[6];\n"
        "\tu32 grid[2][3];\n"
        "\tunion {\n"
        "\t\tu64 both;\n"
        "\t\tstruct {\n"
        "\t\t\tu32 first;\n"
        "\t\t\tu32 second;\n"
        "\t\t};\n"
        "\t};\n"
        "\tstruct hidden *hidden;\n"
        "\tunion hidden_union *hidden_union;\n"
        "\tenum color color;\n"
        "\tenum sign sign;\n"
        "\tenum wide wide;\n"
        "\tenum wide_signed wide_signed;\n"
        "\t_Bool ready;\n"
        "\tdouble ratio;\n"
        "\tint (*callback)(struct node *, const char *, ...);\n"
        "\tint *user;\n"
        "\t__int128 big;\n"
        "};"
    )


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("flags", Kind.STRUCT, "struct flags {\n\tu32 low : 3;\n\tu32 high : 13;\n\tu32 whole;\n};"),
        ("color", Kind.ENUM, "enum color {\n\tRED = 0,\n\tGREEN = 7,\n\tBLUE = 2147483648,\n};"),
        ("u8", Kind.TYPEDEF, "typedef unsigned char u8;"),
        ("entry", Kind.FUNC, "int entry(struct node *node);"),
        ("helper", Kind.FUNC, "static int helper(struct node *node, u32 n);"),
        ("nodes", Kind.VAR, "struct node nodes[4];"),
        ("outside", Kind.VAR, "extern int outside;"),
        ("hidden_union", Kind.FWD, "union hidden_union;"),
    ],
)
def test_c_text(kinds: Btf, name: str, kind: Kind, text: str) -> None:
    assert kinds.definition(named(kinds, name, kind)) == text


def test_c_text_of_nested_declarators() -> None:
    builder = BtfBuilder()
    int_ = builder.add_int("int", 4, signed=True)
    array = builder.add_array(int_, 3)
    proto = builder.add_func_proto(builder.add_ptr(array), [("", builder.add_const(int_))])
    btf = Btf.parse(builder.to_bytes())
    rows = [
        (builder.add_ptr(array), "int (*x)[3]"),
        (builder.add_array(builder.add_ptr(int_), 3), "int *x[3]"),
        (builder.add_ptr(builder.add_const(builder.add_ptr(builder.add_const(int_)))), "const int *const *x"),
        (builder.add_const(builder.add_ptr(int_)), "int *const x"),
        (builder.add_array(builder.add_ptr(proto), 2), "int (*(*x[2])(const int))[3]"),
        (builder.add_ptr(builder.add_func_proto(0)), "void (*x)(void)"),
        (0, "void x"),
    ]
    btf = Btf.parse(builder.to_bytes())
    assert [btf.declaration(type_id, "x") for type_id, _ in rows] == [text for _, text in rows]
    assert btf.declaration(rows[0][0]) == "int (*)[3]"


def test_control_characters_of_a_name_are_not_printed() -> None:
    btf = Btf.parse(raw_btf(words(1, 0x07000000, 0), b"\0\x1b[31m\n\xff\0"))
    assert btf.dump() == "[1] FWD '\\x1b[31m\\n\\xff' fwd_kind=struct\n"
    assert btf.definition(1) == "struct \\x1b[31m\\n\\xff;"


def test_split_btf_continues_its_base() -> None:
    base_builder = BtfBuilder()
    base_builder.add_int("int", 4, signed=True)
    base = Btf.parse(base_builder.to_bytes())
    size = len(b"\0int\0")
    # Type 2, a pointer to type 1, and type 3, a typedef whose name is the first string of the module's own.
    data = raw_btf(
        words(0, 0x02000000, 1) + words(size, 0x08000000, 2) + words(1, 0x01000000, 4, 32), b"mine\0"
    )
    btf = Btf.parse(data, base)
    btf.validate()
    assert btf.count == 5
    assert btf.definition(3) == "typedef int *mine;"
    assert btf.type(1).name == "int"
    assert (btf.string(1), btf.string(size), btf.type(3).name) == ("int", "mine", "mine")
    assert btf.by_name("int") == btf.type(4), "its own types first"
    assert btf.dump().splitlines()[0] == "[2] PTR '(anon)' type_id=1"
    with pytest.raises(BtfError, match="don't begin with a zero byte"):
        Btf.parse(data)


def test_longer_header_of_a_later_format() -> None:
    types = words(1, 0x01000000, 4, 32)
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 32, 0, len(types), len(types), 5)
    assert Btf.parse(header + bytes(8) + types + b"\0int\0").type(1).name == "int"


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "<H", 0x4C7F, "not BTF: the first two bytes are 7f 4c"),
        (2, "<B", 2, "version 2 at byte 2"),
        (4, "<I", 20, "header length 20 at byte 4"),
        (4, "<I", 4096, "header length 4096 at byte 4"),
        (8, "<I", 2, "not aligned to 4 bytes"),
        (12, "<I", 4096, "types at byte 24, 4096 bytes, go past the end at 45"),
        (12, "<I", 12, "type 1 at byte 24 goes past the end of the types at byte 36"),
        (12, "<I", 4, "type 1 at byte 24 goes past the end of the types at byte 28"),
        (16, "<I", 12, "types at byte 24 and strings at byte 36 overlap"),
        (16, "<I", 17, "strings at byte 41, 5 bytes, go past the end at 45"),
        (20, "<I", 0xFFFFFFFF, "4294967295 bytes, go past the end"),
        (20, "<I", 0, "don't begin with a zero byte"),
        (20, "<I", 4, "don't end with a zero byte at 43"),
        (28, "<I", 20 << 24, "type 1 at byte 24 is of the unknown kind 20"),
        (28, "<I", 0, "type 1 at byte 24 is of the unknown kind 0"),
        (28, "<I", 4 << 24 | 0xFFFF, "type 1 at byte 24 goes past the end"),
    ],
)
def test_malformed_header_and_types(at: int, form: str, value: int, message: str) -> None:
    data = bytearray(raw_btf(words(1, 0x01000000, 4, 32), b"\0int\0"))
    struct.pack_into(form, data, at, value)
    with pytest.raises(BtfError) as caught:
        Btf.parse(bytes(data))
    assert message in str(caught.value)


def test_every_truncation_is_an_error() -> None:
    data = (DATA / "kinds_el.btf").read_bytes()
    for length in range(len(data)):
        with pytest.raises(BtfError):
            Btf.parse(data[:length])


def test_references_and_names_that_lead_nowhere() -> None:
    btf = Btf.parse(raw_btf(words(9, 0x02000000, 2)))
    with pytest.raises(BtfError, match="type 1 refers to type 2, but ids go from 0 to 1"):
        _ = btf.type(1).type_id
    with pytest.raises(BtfError, match="string offset 9 is outside the 1 bytes"):
        _ = btf.type(1).name
    with pytest.raises(BtfError, match="type 1 has a name at string offset 9"):
        btf.validate()
    assert btf.dump() == "[1] PTR '(bad string offset 9)' type_id=2\n", "shown as far as it can be read"


def test_property_of_another_kind() -> None:
    btf = Btf.parse(raw_btf(words(0, 0x02000000, 0)))
    with pytest.raises(BtfError, match="type 1 is of kind PTR, which has no members"):
        _ = btf.type(1).members


def test_circles_end() -> None:
    # 1: const 2, 2: const 1; 3: array of 3; 4: unnamed structure with two of itself; 5: such a section.
    circle = words(0, 0x0A000000, 2) + words(0, 0x0A000000, 1)
    array = words(0, 0x03000000, 0, 3, 3, 2)
    nested = words(0, 0x04000002, 4, 0, 4, 0, 0, 4, 0)
    section = words(0, 0x0F000002, 4, 5, 0, 4, 5, 0, 4)
    btf = Btf.parse(raw_btf(circle + array + nested + section))
    for type_id in (1, 3):
        with pytest.raises(BtfError):
            btf.size_of(type_id)
    for type_id in (1, 3, 4, 5):
        with pytest.raises(BtfError):
            btf.definition(type_id)
    with pytest.raises(BtfError, match="type 1 is a chain of more than"):
        btf.validate()


def test_text_stays_in_proportion() -> None:
    """Thirty unnamed structures, each with two of the next: a billion leaves if all were written out."""
    types = b"".join(words(0, 0x04000002, 8, 0, i + 1, 0, 0, i + 1, 32) for i in range(1, 31))
    btf = Btf.parse(raw_btf(types + words(0, 0x02000000, 0)))
    with pytest.raises(BtfError, match="more than 1048576 characters"):
        btf.definition(1)
    sections = b"".join(words(0, 0x0F000002, 8, i + 1, 0, 4, i + 1, 4, 4) for i in range(1, 31))
    btf = Btf.parse(raw_btf(sections + words(0, 0x0F000000, 0)))
    with pytest.raises(BtfError, match="more than 1048576 characters"):
        btf.definition(1)
    protos = b"".join(words(0, 0x0D000002, 0, 0, i + 1, 0, i + 1) for i in range(1, 31))
    btf = Btf.parse(raw_btf(protos + words(0, 0x02000000, 0)))
    with pytest.raises(BtfError, match="more than 1048576 characters"):
        btf.definition(1)


def test_memory_stays_in_proportion() -> None:
    """Many elements that share one long name, and arrays of arrays, cost no more than what is there."""
    long_name = b"\0" + b"x" * 60_000 + b"\0"
    enum = words(0, 0x06000000 | 20_000, 4) + b"".join(words(1 + i, i) for i in range(20_000))
    data = raw_btf(enum, long_name)
    tracemalloc.start()
    try:
        btf = Btf.parse(data)
        with pytest.raises(BtfError, match="has more than 511 bytes"):
            _ = btf.type(1).enumerators
        btf.by_name("x" * 100)
        btf.validate()
        for _ in btf.dump_lines():
            pass
        with pytest.raises(BtfError):
            btf.definition(1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10 * len(data)


def test_where_a_field_is() -> None:
    """Through members that have a type of their own, and through those that have no name, as in C."""
    builder = BtfBuilder()
    u32, u64 = builder.add_int("unsigned int", 4), builder.add_int("unsigned long", 8)
    inner = builder.add_struct("inner", 16, [("first", u64, 0), ("second", u32, 64)])
    named = builder.add_typedef("inner_t", inner)
    choice = builder.add_union("", 16, [("wide", u64, 0), ("both", named, 0)])
    builder.add_struct("outer", 32, [("head", u32, 0), ("", choice, 64), ("tail", named, 128)])
    types = Btf.parse(builder.to_bytes())
    assert types.offset_of("outer", "head") == 0
    assert types.offset_of("outer", "wide") == 8
    assert types.offset_of("outer", "both", "second") == 16
    assert types.offset_of("outer", "tail", "second") == 24
    for path in (("none",), ("head", "none"), ("tail", "third"), ("both", "second", "more")):
        with pytest.raises(BtfError, match=f"no field outer.{'.'.join(path)}$"):
            types.offset_of("outer", *path)
    with pytest.raises(BtfError, match="no field missing"):
        types.offset_of("missing", "head")
