# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Instructions that few programs use, against the text assembler, in the emulator, and their mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

from pybpfasm import (
    U32,
    U64,
    Asm,
    AsmError,
    LayoutError,
    MapSpec,
    MapType,
    SkBuff,
    Struct,
    addr_space_cast,
    encode,
    sched_cls,
    subprogram,
)
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.maps import MapValue
from pybpfasm.text import assemble
from tests.unit.statements import instructions

STATEMENTS = [
    ("b.r0 = b.skb.u8[23]", "r0 = *(u8 *)skb[23]"),
    ("b.r0 = b.skb.u16[12]", "r0 = *(u16 *)skb[12]"),
    ("b.r0 = b.skb.u32[-0x100000 + 12]", "r0 = *(u32 *)skb[-1048564]"),
    ("b.r0 = b.skb.u8[b.r7]", "r0 = *(u8 *)skb[r7 + 0]"),
    ("b.r0 = b.skb.u16[b.r7 + 100000]", "r0 = *(u16 *)skb[r7 + 100000]"),
    ("b.r2 = addr_space_cast(b.r3, 0, 1)", "r2 = addr_space_cast(r3, 0, 1)"),
    ("b.r2 = addr_space_cast(b.r2, 1, 0)", "r2 = addr_space_cast(r2, 1, 0)"),
    ('b.may_goto("two_on")', "may_goto pc+2"),
    ('b.gotol("two_on")', "gotol pc+2"),
]


@pytest.mark.parametrize(("statement", "line"), STATEMENTS)
def test_statements_are_those_of_the_text_assembler(statement: str, line: str) -> None:
    (insn,) = instructions(statement)
    insn.reference = None
    assert [insn] == list(assemble(line))


def test_packet_loads_in_a_program() -> None:
    """The EtherType, and the byte at the place that a register has."""

    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r6 = ctx
        b.r0 = b.skb.u16[12]
        b.r7 = b.r0
        b.r8 = 14
        b.r0 = b.skb.u8[b.r8 + 1]
        b.r0 <<= 16
        b.r0 |= b.r7
        b.exit()

    packet = bytes(12) + b"\x86\xdd" + b"\x60\x12" + bytes(60)
    assert Emulator().load(main.build()).run(Skb(packet)).r0 == 0x12_86DD


def test_a_loop_that_may_go() -> None:
    """With may_goto a loop need not be seen to end."""

    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r0 = 0
        with b.Loop() as loop:
            b.may_goto(loop.end)
            b.r0 += 1
            b.If(b.r0 == 1000).goto(loop.end)
        b.exit()

    assert Emulator().load(main.build()).run(Skb(bytes(64))).r0 == 1000


def test_a_long_way_for_older_targets() -> None:
    b = Asm("one", target="v3")
    b.gotol("end")
    b.label("end")
    b.ret(0)
    assert encode(b.finish()[:1]) == encode(assemble("goto pc+0"))


WRONG: dict[str, tuple[Callable[[Asm], object], str]] = {
    "another register": (lambda b: setattr(b, "r1", b.skb.u16[12]), "goes to r0: b.r0 = …"),
    "32 bits": (lambda b: setattr(b, "w0", b.skb.u16[12]), "goes to r0: b.r0 = …"),
    "an operand": (lambda b: b.skb.u16[12] == 8, "goes to r0 first: b.r0 = b.skb.u16[12]"),
    "a name": (lambda b: b.skb.u8["x"], "a number, a register, or their sum"),  # type: ignore[index]
    "far": (lambda b: b.skb.u8[1 << 40], "does not fit"),
    "a store": (lambda b: b.skb.u8.__setitem__(1, 2), "the packet is only read like this"),
    "8 bytes": (lambda b: getattr(b.skb, "u64"), "b.skb has u8, u16 and u32, no u64"),  # noqa: B009
    "another function's": (lambda b: b.skb.u8[Asm("other").r7], "belongs to another function"),
    "no cast": (lambda b: addr_space_cast(b.r2, 1, 1), "none from 1 to 1"),
    "a cast of a constant": (lambda b: addr_space_cast(5, 1, 0), "takes a register, not int"),  # type: ignore[arg-type]
    "a cast of 32 bits": (
        lambda b: setattr(b, "r2", addr_space_cast(b.w3, 0, 1)),
        "a pointer takes all of the register: write b.r2 and b.r3",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    statement, message = WRONG[name]
    with pytest.raises(AsmError, match=re.escape(message)) as caught:
        statement(Asm("case"))
    assert caught.value.location is not None
    assert caught.value.location.filename.endswith("test_asm_rare.py")


def test_what_is_no_register_is_not_assigned_to() -> None:
    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.u32 = 5  # type: ignore[misc, assignment]
        b.ret(0)

    with pytest.raises(AsmError, match=r"b.u32 can't be assigned to: memory is written as") as caught:
        main.build()
    assert caught.value.location is not None


class Counters(Struct):
    """A map's value."""

    passed = U64()
    dropped = U64()


COUNTERS = MapSpec("counters", MapType.ARRAY, U32(), Counters, 1)
MANY = MapSpec("many", MapType.HASH, U32(), Counters, 2)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (lambda: COUNTERS.value_at("droped"), "Counters has no field 'droped'; did you mean 'dropped'?"),
        (lambda: COUNTERS.value_at(16), "map counters: byte 16 is outside its value of 16 bytes"),
        (lambda: COUNTERS.value_at(1.5), "a byte's number or a field's name, not float"),  # type: ignore[arg-type]
        (lambda: MANY.value_at(0), "only an ARRAY of one entry has an address that is known at load"),
    ],
)
def test_places_in_a_map(statement: Callable[[], MapValue], message: str) -> None:
    """A mistake in a program is one of its line, also where layouts and maps complain."""

    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r1 = statement()  # here
        b.ret(0)

    with pytest.raises(AsmError, match=re.escape(message)) as caught:
        main.build()
    where = caught.value.location
    while where is not None and not where.text.endswith("# here"):
        where = where.caller
    assert where is not None
    assert COUNTERS.value_at("dropped") == COUNTERS.value_at(8)


def test_programs_are_plain_functions() -> None:
    def generator(b: Asm, ctx: SkBuff) -> Iterator[None]:
        yield

    async def coroutine(b: Asm) -> None:
        b.ret(0)

    with pytest.raises(AsmError, match="a program is a plain function, not a generator"):
        sched_cls()(generator)  # type: ignore[arg-type]
    with pytest.raises(AsmError, match="a subprogram is a plain function, not a coroutine"):
        subprogram()(coroutine)  # type: ignore[arg-type]
    with pytest.raises(AsmError, match="a program is a plain function, not int"):
        sched_cls()(5)  # type: ignore[arg-type]


def test_a_bit_field_is_no_value_of_a_map() -> None:
    with pytest.raises(LayoutError, match="a bit field is no key or value; a structure of them is"):
        MapSpec("m", MapType.ARRAY, U32(), U32.bits(3), 1)
