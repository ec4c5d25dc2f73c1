# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Instructions that few programs use, against the text assembler, in the emulator, and their mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pybpfasm import Asm, AsmError, SkBuff, addr_space_cast, encode, sched_cls
from pybpfasm.emulator import Emulator, Skb
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
