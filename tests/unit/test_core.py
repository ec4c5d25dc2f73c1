# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""CO-RE: questions about types, answered from another BTF."""

from __future__ import annotations

import pytest

from pybpfasm.btf import Btf, BtfBuilder, BtfError
from pybpfasm.core import POISON, CoreError, CoreKind, CoreRelocation, CoreResolver, essential
from pybpfasm.errors import PybpfasmError
from pybpfasm.instruction import Instruction

LDX_W, LDX_DW, LDX_B, MOV_K, LDDW = 0x61, 0x79, 0x71, 0xB7, 0x18


class Types:
    """Types to ask about or to answer from."""

    def __init__(self) -> None:
        self.builder = BtfBuilder()
        self.u8 = self.builder.add_int("u8", 1)
        self.u32 = self.builder.add_int("u32", 4)
        self.u64 = self.builder.add_int("u64", 8)
        self.i32 = self.builder.add_int("int", 4, signed=True)
        self.i64 = self.builder.add_int("long", 8, signed=True)

    def btf(self) -> Btf:
        return Btf.parse(self.builder.to_bytes())


def ask(kind: CoreKind, local: Btf, name: str, access: str = "0") -> CoreRelocation:
    found = local.by_name(name)
    assert found is not None
    return CoreRelocation(kind, local, found.id, access)


def struct(name: str, *members: tuple[str, str, int], size: int = 64) -> Btf:
    """One structure; a member is (name, type's name, byte offset)."""
    types = Types()
    types.builder.add_struct(name, size, [(m, getattr(types, t), 8 * offset) for m, t, offset in members])
    return types.btf()


OFFSET, SIZE, EXISTS = CoreKind.FIELD_BYTE_OFFSET, CoreKind.FIELD_BYTE_SIZE, CoreKind.FIELD_EXISTS


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sock", "sock"),
        ("sock___v6", "sock"),
        ("sock___", "sock___"),
        ("sock____v6", "sock____v6"),
        ("a___b___c", "a___b"),
        ("___x", "___x"),
        ("", ""),
        ("a___b", "a"),
    ],
)
def test_the_essential_name(name: str, expected: str) -> None:
    assert essential(name) == expected


def test_a_field_that_has_moved() -> None:
    local = struct("task___old", ("a", "u32", 0), ("pid", "i32", 4))
    target = CoreResolver(struct("task", ("pid", "i32", 40), ("other", "u32", 44)))
    assert target.value(ask(OFFSET, local, "task___old", "0:1")) == 40
    assert target.value(ask(SIZE, local, "task___old", "0:1")) == 4
    assert target.value(ask(EXISTS, local, "task___old", "0:1")) == 1
    assert target.value(ask(EXISTS, local, "task___old", "0:0")) == 0
    assert target.value(ask(OFFSET, local, "task___old", "0:0")) is None
    assert target.value(ask(CoreKind.TYPE_SIZE, local, "task___old")) == 64
    assert target.value(ask(CoreKind.FIELD_SIGNED, local, "task___old", "0:1")) == 1
    assert target.value(ask(OFFSET, local, "task___old", "2:1")) == 2 * 64 + 40


def test_flavours_of_the_target_count_too_and_must_agree() -> None:
    local = struct("task", ("pid", "u32", 0))
    types = Types()
    types.builder.add_struct("task", 64, [("pid", types.u32, 64)])
    types.builder.add_struct("task___two", 64, [("pid", types.u32, 64)])
    assert CoreResolver(types.btf()).value(ask(OFFSET, local, "task", "0:0")) == 8
    types.builder.add_struct("task___three", 64, [("pid", types.u32, 128)])
    with pytest.raises(CoreError, match=r"task\.pid\) is 8 in one type of this name, 16 in another"):
        CoreResolver(types.btf()).value(ask(OFFSET, local, "task", "0:0"))


def test_through_anonymous_members_arrays_and_typedefs() -> None:
    local = Types()
    inner = local.builder.add_struct("inner", 8, [("x", local.u32, 0), ("y", local.u32, 32)])
    array = local.builder.add_array(inner, 4)
    local.builder.add_struct("outer", 32, [("items", array, 0)])
    target = Types()
    moved = target.builder.add_struct("inner", 16, [("y", target.u32, 96)])
    items = target.builder.add_typedef("items_t", target.builder.add_array(moved, 4))
    union = target.builder.add_union("", 64, [("items", items, 0)])
    deeper = target.builder.add_struct("", 72, [("pad", target.u64, 0), ("", union, 64)])
    # One without the field comes first, and must not move what comes after it.
    other = target.builder.add_struct("", 8, [("something", target.u64, 0)])
    target.builder.add_struct("outer", 108, [("", other, 32), ("", deeper, 96)])
    resolver = CoreResolver(target.btf())
    found = ask(OFFSET, local.btf(), "outer", "0:0:2:1")
    assert found.name == "outer.items[2].y"
    assert resolver.value(found) == 12 + 8 + 2 * 16 + 12
    assert resolver.value(ask(OFFSET, local.btf(), "outer", "0:0:3:1")) == 12 + 8 + 3 * 16 + 12
    assert resolver.value(ask(SIZE, local.btf(), "outer", "0:0")) == 64


def test_an_array_that_has_become_shorter() -> None:
    local, target = Types(), Types()
    for types, count in ((local, 8), (target, 4)):
        array = types.builder.add_array(types.u8, count)
        types.builder.add_struct("s", 16, [("name", array, 0), ("end", types.u32, 96)])
    resolver = CoreResolver(target.btf())
    assert resolver.value(ask(OFFSET, local.btf(), "s", "0:0:3")) == 3
    assert resolver.value(ask(OFFSET, local.btf(), "s", "0:0:5")) is None
    flexible = Types()
    array = flexible.builder.add_array(flexible.u8, 0)
    flexible.builder.add_struct("s", 16, [("end", flexible.u32, 0), ("name", array, 64)])
    assert CoreResolver(flexible.btf()).value(ask(OFFSET, local.btf(), "s", "0:0:5")) == 13


@pytest.mark.parametrize(
    "mine, theirs, found",
    [
        ("u32", "u64", True),
        ("u32", "i32", True),
        ("u32", "pointer", False),
        ("pointer", "pointer", True),
        ("composite", "union", True),
        ("composite", "u32", False),
        ("enum", "enum64", True),
        ("enum", "other_enum", False),
    ],
)
def test_which_fields_go_together(mine: str, theirs: str, found: bool) -> None:
    def of(kind: str) -> Btf:
        types = Types()
        builder = types.builder
        kinds = {
            "u32": types.u32,
            "u64": types.u64,
            "i32": types.i32,
            "pointer": builder.add_ptr(types.u8),
            "composite": builder.add_struct("one", 8, []),
            "union": builder.add_union("two", 8, []),
            "enum": builder.add_enum("e", {"A": 0}),
            "enum64": builder.add_enum64("e___64", {"A": 0}),
            "other_enum": builder.add_enum("f", {"A": 0}),
        }
        builder.add_struct("s", 8, [("field", kinds[kind], 0)])
        return types.btf()

    assert CoreResolver(of(theirs)).value(ask(EXISTS, of(mine), "s", "0:0")) == int(found)


def test_bit_fields() -> None:
    local, target = Types(), Types()
    local.builder.add_struct("s", 4, [("flag", local.u32, 0, 3)])
    target.builder.add_struct("s", 16, [("a", target.u32, 0, 7), ("flag", target.u32, 60, 6)])
    resolver = CoreResolver(target.btf())

    def value(kind: CoreKind) -> int | None:
        return resolver.value(ask(kind, local.btf(), "s", "0:0"))

    # Bits 60 to 65 take a load of 8 bytes at 4, which starts at no multiple of 8: 8 bytes at 0 don't reach.
    with pytest.raises(CoreError, match="does not fit a load of 8 bytes"):
        value(OFFSET)
    target = Types()
    target.builder.add_struct("s", 16, [("flag", target.u32, 44, 6)])
    resolver = CoreResolver(target.btf())
    assert (value(OFFSET), value(SIZE)) == (4, 4)
    assert (value(CoreKind.FIELD_LSHIFT_U64), value(CoreKind.FIELD_RSHIFT_U64)) == (64 - 18, 58)
    target = Types()
    target.builder.add_struct("s", 16, [("flag", target.u32, 30, 6)])
    resolver = CoreResolver(target.btf())
    assert (value(OFFSET), value(SIZE)) == (0, 8)


def test_enumerators() -> None:
    local, target = Types(), Types()
    local.builder.add_enum("mode___mine", {"MODE_FAST___mine": 99, "MODE_NEVER": 1})
    target.builder.add_enum64("mode", {"MODE_SLOW": 1, "MODE_FAST": 1 << 40})
    resolver = CoreResolver(target.btf())
    fast = ask(CoreKind.ENUMVAL_VALUE, local.btf(), "mode___mine", "0")
    assert resolver.value(fast) == 1 << 40
    assert fast.name == "mode___mine.MODE_FAST___mine"
    assert resolver.value(ask(CoreKind.ENUMVAL_VALUE, local.btf(), "mode___mine", "1")) is None
    assert resolver.value(ask(CoreKind.ENUMVAL_EXISTS, local.btf(), "mode___mine", "1")) == 0
    assert resolver.value(ask(CoreKind.ENUMVAL_EXISTS, local.btf(), "mode___mine", "0")) == 1
    loaded = resolver.apply(Instruction(LDDW, 1, imm=99), fast)
    assert loaded == (Instruction(LDDW, 1, imm=0, imm_high=1 << 8),)
    with pytest.raises(CoreError, match="does not fit 32 bits"):
        resolver.apply(Instruction(MOV_K, 1, imm=99), fast)


def test_instructions() -> None:
    local = struct("s", ("x", "u32", 4), ("p", "u64", 8))
    resolver = CoreResolver(struct("s", ("x", "u64", 16), ("p", "i64", 0x9000), size=0xA000))
    x, p = ask(OFFSET, local, "s", "0:0"), ask(OFFSET, local, "s", "0:1")
    # The field has grown: an unsigned one is read with a wider load.
    assert resolver.apply(Instruction(LDX_W, 1, 2, 4), x) == (Instruction(LDX_DW, 1, 2, 16),)
    assert resolver.apply(Instruction(MOV_K, 1, imm=4), x) == (Instruction(MOV_K, 1, imm=16),)
    assert resolver.apply(Instruction(LDDW, 1, imm=4), x) == (Instruction(LDDW, 1, imm=16),)
    with pytest.raises(CoreError, match="does not fit the 16 bits of an offset"):
        resolver.apply(Instruction(LDX_DW, 1, 2, 8), p)
    with pytest.raises(CoreError, match="the field has 4 bytes, the access other ones"):
        resolver.apply(Instruction(LDX_B, 1, 2, 4), x)
    with pytest.raises(CoreError, match="has no place for it"):
        resolver.apply(Instruction(0x95), x)
    with pytest.raises(CoreError, match="src 1, not 0"):
        resolver.apply(Instruction(LDDW, 1, 1), x)
    signed = CoreResolver(struct("s", ("x", "i64", 16)))
    # What was unsigned and is signed can't be read with another width: only the verifier may get there.
    assert signed.apply(Instruction(LDX_W, 1, 2, 4), x) == (Instruction(0x85, imm=POISON),)
    gone = CoreResolver(struct("t"))
    assert gone.apply(Instruction(LDX_W, 1, 2, 4), x) == (Instruction(0x85, imm=POISON),)
    assert gone.apply(Instruction(LDDW, 1, imm=4), x) == (Instruction(0x85, imm=POISON),) * 2


def test_types() -> None:
    local, target = Types(), Types()
    for types, second in ((local, local.u32), (target, target.u64)):
        types.builder.add_typedef("handler", types.builder.add_func_proto(types.i32, [("a", second)]))
        types.builder.add_typedef("pointer", types.builder.add_ptr(second))
        types.builder.add_struct("s", 8 if second == types.u32 else 16, [("x", second, 0)])
    target.builder.add_typedef("only_here", target.u32)
    mine, resolver = local.btf(), CoreResolver(target.btf())
    for name in ("handler", "pointer", "s"):
        assert resolver.value(ask(CoreKind.TYPE_EXISTS, mine, name)) == 1
        # Sizes of integers count here.
        assert resolver.value(ask(CoreKind.TYPE_MATCHES, mine, name)) == 0
        assert CoreResolver(mine).value(ask(CoreKind.TYPE_MATCHES, mine, name)) == 1
    theirs = target.btf().by_name("s")
    assert theirs is not None
    assert resolver.value(ask(CoreKind.TYPE_ID_TARGET, mine, "s")) == theirs.id
    found = mine.by_name("s")
    assert found is not None
    assert resolver.value(ask(CoreKind.TYPE_ID_LOCAL, mine, "s")) == found.id
    assert resolver.value(ask(CoreKind.TYPE_SIZE, mine, "s")) == 16
    assert CoreResolver(mine).value(ask(CoreKind.TYPE_EXISTS, target.btf(), "only_here")) == 0


@pytest.mark.parametrize(
    "kind, name, access, message",
    [
        (OFFSET, "s", "", "no list of numbers"),
        (OFFSET, "s", "0:-1", "no list of numbers"),
        (OFFSET, "s", "0:1:" * 70, "no list of numbers"),
        (OFFSET, "s", "0:9", "s has 2 members, no number 9"),
        (OFFSET, "s", "0:0:0", r"s\.x is no structure and no array"),
        (OFFSET, "s", "0:1:9", r"s\.a has 2 elements, no number 9"),
        (CoreKind.TYPE_SIZE, "s", "0:0", "a type has the access 0"),
        (CoreKind.ENUMVAL_VALUE, "s", "0", "no enumerator"),
        (CoreKind.FIELD_SIGNED, "s", "0:1:1", "is not defined"),
    ],
)
def test_malformed_questions(kind: CoreKind, name: str, access: str, message: str) -> None:
    types = Types()
    array = types.builder.add_array(types.u32, 2)
    types.builder.add_struct("s", 16, [("x", types.u32, 0), ("a", array, 32)])
    btf = types.btf()
    with pytest.raises(CoreError, match=message):
        CoreResolver(btf).value(ask(kind, btf, name, access))


def test_what_a_kernel_lacks_in_words() -> None:
    """What stands in the error when the verifier refuses the instruction."""
    local, target = Types(), Types()
    for types, name in ((local, "tgidd"), (target, "tgid")):
        b = types.builder
        inner = b.add_struct("", 8, [("pid", types.u32, 0), (name, types.u32, 32)])
        text = b.add_array(b.add_int("char", 1), 8) if types is target else b.add_int("u64", 8)
        b.add_struct("task", 24, [("", inner, 0), ("comm", text, 64), ("x", types.u32, 128)])
        b.add_enum("color", {"RED": 1, "GREEN" if types is target else "GREENISH": 2})
    local.builder.add_struct("gone", 4, [("x", local.u32, 0)])
    mine, resolver = local.btf(), CoreResolver(target.btf())
    assert [
        resolver.missing(ask(*question))
        for question in (
            (OFFSET, mine, "task", "0:0:1"),
            (OFFSET, mine, "task", "0:1"),
            (OFFSET, mine, "gone", "0:0"),
            (CoreKind.ENUMVAL_VALUE, mine, "color", "1"),
            (OFFSET, mine, "task", "0:9"),
        )
    ] == [
        "this kernel's struct task has no member 'tgidd'; did you mean 'tgid'?",
        "struct task.comm is char [8] in this kernel, and u64 in the program",
        "this kernel has no struct gone",
        "this kernel's enum color has no 'GREENISH'; did you mean 'GREEN'?",
        "field_byte_offset(BTF type 7, access 0:9): task has 3 members, no number 9",
    ]


def test_no_question_takes_forever() -> None:
    # Anonymous unions that hold one another twice would be looked through 2^30 times.
    local = struct("s", ("x", "u32", 0))
    types = Types()
    inner = types.builder.add_struct("", 8, [("y", types.u32, 0)])
    for _ in range(30):
        inner = types.builder.add_struct("", 8, [("", inner, 0), ("", inner, 0)])
    types.builder.add_struct("s", 8, [("", inner, 0)])
    with pytest.raises(CoreError, match="too many anonymous members"):
        CoreResolver(types.btf()).value(ask(OFFSET, local, "s", "0:0"))
    # A structure that matches itself through many members of itself by name.
    both = Types()
    deep = both.builder.add_struct("leaf", 8, [("a", both.u32, 0)])
    for level in range(25):
        deep = both.builder.add_struct(f"l{level}", 8, [("a", deep, 0), ("b", deep, 0)])
    btf = both.btf()
    with pytest.raises(CoreError, match="nested too deeply"):
        CoreResolver(btf).value(ask(CoreKind.TYPE_MATCHES, btf, "l24"))
    with pytest.raises((CoreError, BtfError)):
        CoreResolver(btf).value(CoreRelocation(OFFSET, btf, 9999, "0:0"))
    assert issubclass(CoreError, PybpfasmError)
