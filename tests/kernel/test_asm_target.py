# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The kernel takes jumps through islands and rewritten instructions, and they do what the others do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from loader.features import Isa
from loader.objects import Program
from pybpfasm import Asm, SkBuff, bswap32, s16, sched_cls
from pybpfasm.asm import Condition
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.program import Template
from tests.kernel.test_asm_blocks import load_variables, packet
from tests.requires import requires
from tests.unit.block_trees import NUMBERS
from tests.unit.test_asm_far_jumps import build


@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize("filler", [32_764, 70_000])
@pytest.mark.parametrize("target", [pytest.param(None, marks=requires(Isa.V4)), "v3"])
def test_far_jumps(forwards: bool, filler: int, target: str | None) -> None:
    """The verifier finds nothing that can't be reached, and every jump arrives."""
    with Program.load(build(forwards, filler, target)) as program:
        results = {}
        for mark in (0, 1, 2, 4):
            context = SkBuff.pack(mark=mark)
            results[mark] = program.test_run(bytes(64), ctx=context).retval
    assert results == {0: 10, 1: 11, 2: 12, 4: 13 if forwards else 10}


def rewritten() -> Template[[]]:
    """All that an older target has other instructions for, in one number."""

    @sched_cls(name="rewritten")
    def program(b: Asm, ctx: SkBuff) -> None:
        load_variables(b, ctx)
        b.r0 = 0
        conditions: tuple[Callable[[], Condition], ...] = (
            lambda: b.r1 < b.r2,
            lambda: b.r1 <= b.r2,
            lambda: b.r1.slt(b.r2),
            lambda: b.r1.sle(b.r2),
            lambda: b.r1 < 5,
            lambda: b.r1 <= 0,
            lambda: b.r1.slt(-1),
            lambda: b.r1.sle(0x7FFFFFFF),
        )
        for bit, condition in enumerate(conditions):
            with b.If(condition()):
                b.r0 |= 1 << bit
        b.r3 = b.r1
        b.r3 = bswap32(b.r3)
        b.w4 = s16(b.w1)
        b.r3 ^= b.r4
        b.u64[b.r10 - 8] = b.r2
        b.r4 = b.u8[b.r10 - 8].signed
        b.r3 ^= b.r4
        b.r3 <<= 8
        b.r0 ^= b.r3
        b.exit()

    return program


def test_what_is_rewritten_does_the_same() -> None:
    """For all pairs of telling numbers, as what it was written for does in the emulator."""
    new = Emulator().load(rewritten().build())
    with Program.load(rewritten().for_target("v1").build()) as old:
        for pair in product(NUMBERS, repeat=2):
            data = packet((*pair, 0, 0))
            assert old.test_run(data).retval == new.run(Skb(data)).r0 & 0xFFFFFFFF, pair


@requires(Isa.MAY_GOTO)
def test_packet_loads_and_a_loop_that_may_go() -> None:
    """What only few programs use: classic BPF's loads, and a loop whose end the verifier is promised."""

    @sched_cls(name="rare")
    def program(b: Asm, ctx: SkBuff) -> None:
        b.r6 = ctx
        b.r0 = b.skb.u16[12]
        b.r9 = b.r0
        b.r8 = 12
        b.r0 = b.skb.u8[b.r8 + 1]
        b.r9 += b.r0
        b.r7 = 0
        with b.Loop() as loop:
            b.may_goto(loop.end)
            b.r7 += 1
            b.If(b.r7 == b.r9).goto(loop.end)
        b.r0 = b.r7
        b.exit()

    with Program.load(program.build()) as loaded:
        assert loaded.test_run(bytes(12) + b"\x12\x34" + bytes(50)).retval == 0x1234 + 0x34
