# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Static data and the kernel's types in programs written here."""

from __future__ import annotations

import pytest

from pybpfasm.asm import Asm
from pybpfasm.btf import Btf, BtfBuilder, Kind
from pybpfasm.core import (
    CoreError,
    core_add_offset,
    core_exists,
    core_load,
    core_offset,
    core_size,
)
from pybpfasm.elf import read_object, write_object
from pybpfasm.errors import AsmError, LayoutError
from pybpfasm.extern import kfunc
from pybpfasm.isa import Imm64
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, MapType
from pybpfasm.layout import S32, U8, U16, U32, U64, Array, Be16, Bytes, Nested, Pointer, Struct
from pybpfasm.maps import bss, data, rodata
from pybpfasm.program import ProgramSpec, sched_cls


class Limits(Struct, kernel_name="limits"):
    """Constants."""

    low = U32()
    high = U64()
    port = Be16()


LIMITS = rodata(Limits, low=3, high=1 << 40, port=80)
STATE = data(Limits, ".data.state", low=7)
ZEROS = bss(Limits)


@sched_cls()
def uses_data(b: Asm, ctx: SkBuff) -> None:
    """Reads constants and writes variables."""
    b.r1 = LIMITS
    b.r2 = Limits(b.r1).high
    b.r1 = LIMITS.at("port")
    b.r2 = b.u16[b.r1]
    b.r1 = STATE.at("high")
    b.u64[b.r1] = 5
    b.r1 = ZEROS
    b.ret(0)


def test_data_is_an_array_of_one_entry() -> None:
    spec = LIMITS.map
    assert (spec.name, spec.type, spec.key_size, spec.value_size, spec.max_entries) == (
        ".rodata",
        MapType.ARRAY,
        4,
        Limits.sizeof,
        1,
    )
    assert spec.flags == BPF_F_RDONLY_PROG and spec.contents == Limits.pack(low=3, high=1 << 40, port=80)
    assert (STATE.map.name, STATE.map.flags) == (".data.state", 0)
    assert ZEROS.map.contents is None
    described = spec.btf()
    assert described is not None
    assert Btf.parse(described[0]).type(described[2]).name == "limits"


def test_addresses_of_fields() -> None:
    program = uses_data.build()
    loads = [(i.reference, i.imm_high) for i in program.instructions if i.src == Imm64.MAP_VALUE and i.wide]
    assert loads == [
        (LIMITS.map, 0),
        (LIMITS.map, Limits.offsetof("port")),
        (STATE.map, Limits.offsetof("high")),
        (ZEROS.map, 0),
    ]
    found = read_object(write_object([program]))
    assert {name: spec.contents for name, spec in found.maps.items()} == {
        ".rodata": LIMITS.map.contents,
        ".data.state": STATE.map.contents,
        ".bss": None,
    }
    assert found.program("uses_data").code() == program.code()


def test_mistakes_with_data() -> None:
    with pytest.raises(LayoutError, match="Limits has no field 'hihg'; did you mean 'high'"):
        LIMITS.at("hihg")
    with pytest.raises(LayoutError, match=r"'limits': the name is \.rodata, or begins with \.rodata\."):
        rodata(Limits, "limits")
    with pytest.raises(LayoutError, match="Limits has no field 'hig'"):
        data(Limits, hig=1)
    with pytest.raises(LayoutError, match="only an ARRAY of one entry has contents"):
        from pybpfasm.maps import MapSpec

        MapSpec("many", MapType.ARRAY, U32(), U32(), 2, contents=bytes(4))
    with pytest.raises(LayoutError, match="3 bytes of contents, a value of 4"):
        MapSpec("short", MapType.ARRAY, U32(), U32(), 1, contents=bytes(3))


class Entity(Struct, kernel_name="sched_entity"):
    """Within a task."""

    vruntime = U64()


class Task(Struct, kernel_name="task_struct"):
    """The few fields that are asked for."""

    tgid = S32()
    parent = Pointer()
    comm = Bytes(16)
    se = Nested(Entity)
    state = U32()


class Never(Struct, kernel_name="no_such_struct"):
    """Not in any kernel."""

    x = U8()


@sched_cls()
def asks(b: Asm, ctx: SkBuff) -> None:
    """One of each question."""
    b.r6 = b.r1
    core_load(b.r2, Task(b.r6), "tgid")
    core_load(b.r3, Task(b.r6), "se.vruntime")
    core_load(b.r4, Task(b.r6), "parent")
    core_load(b.r5, Task(b.r6), "comm[3]")
    core_offset(b.r7, Task, "comm")
    core_add_offset(b.r6, Task, "comm[1]")
    core_size(b.r7, Task)
    core_size(b.r7, Task, "state")
    core_exists(b.r7, Never)
    core_exists(b.r7, Task, "se.vruntime")
    b.call(kfunc("bpf_rcu_read_lock"))
    b.ret(0)


def kernel() -> Btf:
    """Some kernel's types."""
    builder = BtfBuilder()
    i32, u64 = builder.add_int("int", 4, signed=True), builder.add_int("u64", 8)
    char, u16 = builder.add_int("char", 1, signed=True), builder.add_int("u16", 2)
    entity = builder.add_struct("sched_entity", 24, [("vruntime", u64, 128)])
    builder.add_struct(
        "task_struct",
        1000,
        [
            ("state", u16, 16),
            ("se", entity, 64),
            ("parent", builder.add_ptr(0), 512),
            ("tgid", i32, 800),
            ("comm", builder.add_array(char, 32), 1600),
        ],
    )
    builder.add_func("bpf_rcu_read_lock", builder.add_func_proto(0))
    return Btf.parse(builder.to_bytes())


RESOLVED = [
    "r2 = *(u32 *)(r6 +100)",
    "r3 = *(u64 *)(r6 +24)",
    "r4 = *(u64 *)(r6 +64)",
    "r5 = *(u8 *)(r6 +203)",
    "r7 = 200",
    "r6 += 201",
    "r7 = 1000",
    "r7 = 2",
    "r7 = 0",
    "r7 = 1",
]


def _shown(program: ProgramSpec) -> list[str]:
    return [line.split(") ", 1)[1] for line in program.listing(lines=False).splitlines()[2:]]


def test_questions_are_answered_by_the_kernel_at_load() -> None:
    program = asks.build()
    assert len(program.unresolved) == 11
    with pytest.raises(CoreError, match=r"field_byte_offset\(task_struct\.comm\[1\]\).*resolve\(\)"):
        program.code()
    resolved = program.resolve(kernel())
    assert _shown(resolved)[: len(RESOLVED)] == RESOLVED
    function = kernel().by_name("bpf_rcu_read_lock", Kind.FUNC)
    assert function is not None
    assert f"call kernel-function#{function.id}" in _shown(resolved)[len(RESOLVED)]
    assert not resolved.unresolved and len(resolved.code()) == 8 * resolved.slots
    assert resolved.resolve(kernel()) is resolved
    # The first one is as it was, and lines are those of the program, not of the macros.
    assert len(program.unresolved) == 11
    for spec in (program, resolved):
        where = spec.location(1)
        assert where is not None and where.text == 'core_load(b.r2, Task(b.r6), "tgid")'
        assert where.caller is None


def test_questions_go_into_an_object() -> None:
    @sched_cls(name="asks")
    def asks_less(b: Asm, ctx: SkBuff) -> None:
        b.r6 = b.r1
        core_load(b.r2, Task(b.r6), "se.vruntime")
        core_size(b.r7, Task)
        b.ret(0)

    program = asks_less.build()
    found = read_object(write_object([program])).program("asks")
    assert [str(one) for one in found.unresolved] == [str(one) for one in program.unresolved]
    assert found.resolve(kernel()).code() == program.resolve(kernel()).code()


class Grown(Struct, kernel_name="task_struct"):
    """A field that the kernel lacks, and one of another kind."""

    gone = U32()
    tgid = Pointer()
    halves = Array(U16(), 2)


def test_what_the_kernel_lacks_is_refused_where_the_verifier_gets_there() -> None:
    @sched_cls(name="lacks")
    def lacks(b: Asm, ctx: SkBuff) -> None:
        b.r6 = b.r1
        core_load(b.r2, Grown(b.r1), "gone")
        core_load(b.r2, Grown(b.r1), "tgid")
        core_exists(b.r2, Grown, "tgid")
        b.ret(0)

    shown = _shown(lacks.build().resolve(kernel()))
    assert shown[:3] == ["call unknown#195896080", "call unknown#195896080", "r2 = 0"]


@pytest.mark.parametrize(
    "write, message",
    [
        (lambda b: core_load(b.r2, Task(b.r1), "tgdi"), "Task has no field 'tgdi'; did you mean 'tgid'"),
        (lambda b: core_load(b.r2, Task(b.r1), "tgid.x"), "there is no structure before .x"),
        (lambda b: core_load(b.r2, Task(b.r1), "comm[16]"), r"there is no element \[16\]"),
        (lambda b: core_load(b.r2, Task(b.r1), "tgid[0]"), r"there is no element \[0\]"),
        (lambda b: core_load(b.r2, Task(b.r1), "se"), "no integer or pointer that a register could hold"),
        (lambda b: core_load(b.r2, Task(b.r1), "a..b"), "is no path to a field"),
        (lambda b: core_load(b.w2, Task(b.r1), "tgid"), "write b.r2"),
        (lambda b: core_load(b.r2, Task(b.r1 + 8), "tgid"), "starts where the register points to"),
        (lambda b: core_load(b.r10, Task(b.r1), "tgid"), "r10 is the frame pointer"),
        (lambda b: core_size(b.r10, Task), "r10 is the frame pointer"),
        (lambda b: core_offset(b.w2, Task, "tgid"), "write b.r2"),
    ],
)
def test_mistakes_are_errors_of_their_line(write: object, message: str) -> None:
    @sched_cls(name="wrong")
    def wrong(b: Asm, ctx: SkBuff) -> None:
        write(b)  # type: ignore[operator]
        b.ret(0)

    with pytest.raises(AsmError, match=message) as caught:
        wrong.build()
    assert caught.value.location is not None
    assert caught.value.location.filename.endswith("test_static_data.py")
