# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Objects linked with one another, beside what ``bpftool gen object`` makes of them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pybpfasm.asm import Asm
from pybpfasm.btf import Btf, Kind, Linkage
from pybpfasm.core import CoreError
from pybpfasm.elf import ElfError, link_objects, read_object, write_object
from pybpfasm.elf.reader import RawObject, read_raw
from pybpfasm.extern import extern_address, external
from pybpfasm.instruction import encode
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import U32, U64, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec, sched_cls, subprogram

DATA = Path(__file__).parent.parent / "data" / "elf"
FIRST, SECOND, THIRD, THEIRS = (
    (DATA / "link" / f"{name}.o").read_bytes() for name in ("first", "second", "third", "by_bpftool")
)
OURS = link_objects({"first.o": FIRST, "second.o": SECOND})


def _symbols(raw: RawObject) -> dict[str, list[tuple[str, int, int, int, int]]]:
    """Section, size, binding, type and visibility of each function and variable."""
    found: dict[str, list[tuple[str, int, int, int, int]]] = {}
    for s in raw.symbols:
        if s.type in (1, 2):
            found.setdefault(s.name, []).append(
                (raw.sections[s.section].name, s.size, s.bind, s.type, s.visibility)
            )
    return {name: sorted(rows) for name, rows in found.items()}


def _types(btf: Btf) -> set[str]:
    """Every type in C, variables and functions with their linkage, and what is in which section."""
    found = set()
    for t in btf.types:
        if t.kind == Kind.DATASEC:
            found |= {f"{t.name}: {btf.type(entry.type_id).name} {entry.size}" for entry in t.entries}
        elif t.name:
            found.add(f"{t.kind.name} {btf.definition(t.id)}")
    return found


def test_linked_as_bpftool_links() -> None:
    ours, theirs = read_raw(OURS), read_raw(THEIRS)
    assert _symbols(ours) == _symbols(theirs)
    assert len(_symbols(ours)["own"]) == 2 and len(_symbols(ours)["pick"]) == 1
    for name in (".maps", "license", ".rodata", ".bss", "tc"):
        one, other = ours.by_name(name), theirs.by_name(name)
        assert one is not None and other is not None
        assert (one.type, one.size, one.data) == (other.type, other.size, other.data), name
    ours_btf, theirs_btf = read_object(OURS).btf, read_object(THEIRS).btf
    assert ours_btf is not None and theirs_btf is not None
    assert _types(ours_btf) == _types(theirs_btf)
    assert not [t for t in ours_btf.types if t.kind in (Kind.VAR, Kind.FUNC) and t.linkage == Linkage.EXTERN]
    # A structure that refers to itself is in it once, though both objects bring it.
    assert len([t for t in ours_btf.all_by_name("list") if t.kind == Kind.STRUCT]) == 1


def _plain(program: ProgramSpec) -> list[tuple[object, ...]]:
    """The instructions, static data by what is there rather than where."""
    return [
        (insn.opcode, insn.dst, insn.src, insn.offset, insn.imm, getattr(insn.reference, "name", None))
        for insn in program.instructions
    ]


@pytest.mark.parametrize("name", ["first", "second"])
def test_programs_are_those_of_bpftool(name: str) -> None:
    ours, theirs = read_object(OURS).program(name), read_object(THEIRS).program(name)
    assert _plain(ours) == _plain(theirs)
    assert [f.name for f in ours.functions] == [f.name for f in theirs.functions]
    assert [ours.location(slot) for slot in range(ours.slots)] == [
        theirs.location(slot) for slot in range(theirs.slots)
    ]


def test_the_order_decides_nothing_but_places() -> None:
    other = read_object(link_objects([SECOND, FIRST]))
    assert set(other.programs) == {"first", "second"}
    for name, program in other.programs.items():
        assert _plain(program) == _plain(read_object(OURS).program(name))


def test_one_object_alone_stays_what_it_is() -> None:
    for path in sorted(DATA.glob("*_v3.o")):
        before, after = read_object(path.read_bytes()), read_object(link_objects([path.read_bytes()]))
        assert list(before.programs) == list(after.programs) and list(before.maps) == list(after.maps)
        for name, program in before.programs.items():
            again = after.program(name)
            assert len(encode(again.instructions)) == len(encode(program.instructions))
            assert [str(one) for one in again.unresolved] == [str(one) for one in program.unresolved]
            assert [program.location(s) for s in range(program.slots)] == [
                again.location(s) for s in range(again.slots)
            ]
        for name, spec in before.maps.items():
            other = after.map(name)
            assert (spec.type, spec.key_size, spec.value_size, spec.contents, spec.initial, spec.inner) == (
                other.type,
                other.key_size,
                other.value_size,
                other.contents,
                other.initial,
                other.inner,
            ) or spec.inner is not None
            assert (spec.btf() is None) == (other.btf() is None)


def test_what_is_missing_stays_open() -> None:
    alone = link_objects([SECOND])
    with pytest.raises(ElfError, match=r"'\w+' is defined in another object: link them first"):
        read_object(alone)
    again = link_objects([FIRST, alone])
    assert _symbols(read_raw(again)) == _symbols(read_raw(OURS))


# With what is written in Python.
COUNTS = MapSpec("counts", MapType.HASH, U32(), U64(), 16)


class Calls(Struct):
    """Static data of the name that a variable has in C."""

    mine = U64()


@subprogram("skb", "x")
def twice(b: Asm) -> None:
    """Called from C."""
    b.r0 = b.r2
    b.r0 += b.r2
    b.exit()


@sched_cls()
def python(b: Asm, ctx: SkBuff) -> None:
    """Calls a function of C, counts in a map and in a variable of C."""
    b.r6 = ctx.len
    b.u32[b.r10 - 4] = b.r6
    b.r1 = COUNTS
    b.r2 = b.r10
    b.r2 += -4
    b.call(1)
    b.r7 = 0
    with b.If(b.r0 != 0):
        b.r7 = b.u64[b.r0]
    b.r1 = b.r6
    b.call(external("int triple(u32 x)"))
    b.r7 += b.r0
    extern_address(b.r1, external("u64 calls"))
    b.r1 = b.u64[b.r1]
    b.r1 *= 1000
    b.r7 += b.r1
    b.r0 = b.r7
    b.exit()


def test_c_calls_python_and_python_c() -> None:
    mine = write_object([python.build()], functions=[twice], external_maps=["counts"])
    raw = read_raw(mine)
    assert {(s.name, s.bind) for s in raw.symbols if not s.section and s.name} == {
        ("counts", 1),
        ("triple", 1),
        ("calls", 1),
    }
    assert [(s.bind, s.type, s.visibility) for s in raw.symbols if s.name == "twice"] == [(1, 2, 2)]
    with pytest.raises(CoreError, match="needs triple of another object: write it as an object"):
        python.build().resolve(Btf.parse(read_raw(FIRST).by_name(".BTF").data))  # type: ignore[union-attr]
    found = read_object(link_objects({"first": FIRST, "third": THIRD, "mine": mine}))
    assert list(found.programs) == ["first", "third", "python"]
    assert [f.name for f in found.program("python").functions] == ["python", "triple"]
    assert [f.name for f in found.program("third").functions] == ["third", "twice"]
    assert found.program("python").maps[0] is found.map("counts")
    location = found.program("third").location(found.program("third").functions[1].slot)
    assert location is not None and location.filename.endswith("test_elf_linker.py")


def _with(name: str, value: MapSpec | None = None, function: int = 0) -> bytes:
    """An object with a program and whatever is to collide."""

    @sched_cls(name=name)
    def program(b: Asm, ctx: SkBuff) -> None:
        if value is not None:
            b.r1 = value
        b.ret(function)

    return write_object([program.build()])


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([], "nothing to link"),
        ([FIRST, FIRST], "'scale' is defined in object 1 and in object 2: make it static"),
        ([FIRST, b"\x7fELF"], "object 2: .*the ELF header"),
        ([_with("same"), _with("same")], "'same' is defined in object 1"),
        ([_with("a", COUNTS), _with("b", COUNTS)], "'counts' is defined in object 1 and in object 2"),
        ([FIRST, (DATA / "big" / "data.o").read_bytes()], "object 2 is big-endian, object 1 little-endian"),
    ],
)
def test_what_cant_be_linked(objects: list[bytes], message: str) -> None:
    with pytest.raises(ElfError, match=message):
        link_objects(objects)


def test_a_license_for_all() -> None:
    @sched_cls(license="MIT")
    def free(b: Asm, ctx: SkBuff) -> None:
        b.ret(0)

    with pytest.raises(ElfError, match=r"object 2: the license is 'MIT', that of object 1 'Dual BSD/GPL'"):
        link_objects([FIRST, write_object([free.build()])])


def test_a_declaration_that_differs_is_refused() -> None:
    other = MapSpec("counts", MapType.HASH, U32(), U64(), 17)

    @sched_cls()
    def wrong_map(b: Asm, ctx: SkBuff) -> None:
        b.r1 = other
        b.ret(0)

    mine = write_object([wrong_map.build()], external_maps=["counts"])
    with pytest.raises(
        ElfError, match="'counts' is not the same in object 1 and in object 2: the maps differ"
    ):
        link_objects([FIRST, mine])
    for declaration, message in (
        (
            "int triple(u32 x, u32 y)",
            r"int triple\(__u32 x\) in one, int triple\(u32 x, u32 y\) in the other",
        ),
        ("int triple(struct sock *x)", r"in the other"),
        ("int triple", "one is a function, the other a variable"),
        ("u32 calls", r"__u64 calls in one, u32 calls in the other"),
        ("int calls(void)", "one is a function, the other a variable"),
    ):
        what = external(declaration)

        @sched_cls()
        def wrong(b: Asm, ctx: SkBuff) -> None:
            extern_address(b.r1, what)  # noqa: B023
            b.ret(0)

        with pytest.raises(ElfError, match=message):
            link_objects([THIRD, write_object([wrong.build()])])


def test_a_weak_declaration_is_weak_only_if_all_are() -> None:
    def asks(name: str, weak: bool) -> bytes:
        @sched_cls(name=name)
        def program(b: Asm, ctx: SkBuff) -> None:
            extern_address(b.r1, external("int somewhere", weak=weak))
            b.ret(0)

        return write_object([program.build()])

    def bind(data: bytes) -> int:
        return next(s.bind for s in read_raw(data).symbols if s.name == "somewhere")

    assert bind(link_objects([asks("a", True), asks("b", True)])) == 2
    assert bind(link_objects([asks("a", True), asks("b", False)])) == 1
    assert bind(link_objects([asks("a", False), asks("b", True)])) == 1


def test_zeros_are_not_written_out() -> None:
    """Two sections of half a gigabyte of zeros each, and one with a byte in it."""

    def zeros(name: str, size: int, contents: bytes | None = None) -> bytes:
        spec = MapSpec(".bss", MapType.ARRAY, 4, size, 1, contents=contents)

        @sched_cls(name=name)
        def program(b: Asm, ctx: SkBuff) -> None:
            b.r1 = spec.value_at(0)
            b.ret(0)

        return write_object([program.build()])

    half = zeros("a", 1 << 29), zeros("b", 1 << 29)
    made = link_objects(half)
    assert len(made) < 5000 and read_object(made).map(".bss").value_size == 1 << 30
    offsets = [i.imm_high for p in read_object(made).programs.values() for i in p.instructions if i.wide]
    assert offsets == [0, 1 << 29]
    raw = read_raw(zeros("c", 16))
    index = next(s.index for s in raw.sections if s.name == ".bss")
    filled = bytearray(zeros("c", 16))
    (table,) = struct.unpack_from("<Q", filled, 40)
    struct.pack_into("<I", filled, table + 64 * index + 4, 1)  # of bytes that the file has
    with pytest.raises(ElfError, match=r"\.bss would have 536870928 bytes, nearly all of them 0"):
        link_objects([half[0], bytes(filled)])


def test_an_alignment_that_no_section_has() -> None:
    data = bytearray(FIRST)
    (table,) = struct.unpack_from("<Q", data, 40)
    index = next(s.index for s in read_raw(FIRST).sections if s.name == ".bss")
    for align in (1 << 30, 24):
        struct.pack_into("<Q", data, table + 64 * index + 48, align)
        with pytest.raises(ElfError, match=rf"\.bss is to lie at a multiple of {align} bytes"):
            link_objects([bytes(data)])


def test_a_license_that_is_only_described() -> None:
    # The BTF tells of a section that is called otherwise in the file.
    assert read_raw(SECOND).by_name("license") is not None
    link_objects([FIRST.replace(b"\0license\0", b"\0lisence\0", 1), SECOND])


def test_functions_for_others_have_names_of_their_own() -> None:
    with pytest.raises(ElfError, match="a function and a program are both named 'twice'"):
        write_object([_named("twice")], functions=[twice])
    for wrong in ("int thrice(int skb, int x)", "int twice(int x)", "int twice"):
        with pytest.raises(ElfError, match="does not declare function twice, which takes 2 arguments"):
            write_object([_named("p")], functions={wrong: twice})
    with pytest.raises(ElfError, match="external_maps has 'nothing', which is no map of the object"):
        write_object([_named("p")], external_maps=["nothing"])


def _named(name: str) -> ProgramSpec:
    @sched_cls(name=name)
    def program(b: Asm, ctx: SkBuff) -> None:
        b.ret(0)

    return program.build()
