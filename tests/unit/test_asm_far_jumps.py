# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Jumps of more than 16 bits arrive where they should, forwards and backwards, and nothing else moves."""

from __future__ import annotations

import pytest

from pybpfasm import Asm, ProgramSpec, SkBuff, imm64, sched_cls
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.isa import OP_GOTOL

FAR = 33_000


def build(forwards: bool, filler: int) -> ProgramSpec:
    @sched_cls()
    def jumps(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.mark
        b.r3 = imm64(1 << 40)  # takes two slots
        if forwards:
            b.If(b.r2 == 1).goto("one")
            b.If(b.r2 == 2).goto("two")
            b.If(b.r2 == 3).goto("three")
            b.r0 = 0
        else:
            b.goto("start")
            b.label("one")
            b.ret(11)
            b.label("two")
            b.ret(12)
            b.label("start")
        for _ in range(filler):
            b.r3 += 1
        b.If(b.r2 == 1).goto("one")
        b.If(b.r2 == 2).goto("two")
        b.ret(10)
        if forwards:
            b.label("one")
            b.ret(11)
            b.label("two")
            b.ret(12)
            b.label("three")
            b.ret(13)

    return jumps.build()


@pytest.mark.parametrize("forwards", [True, False])
# The limit itself: with these the first jumps reach, the others miss by a little.
@pytest.mark.parametrize("filler", [10, 32_757, *range(32_761, 32_768), FAR])
def test_every_jump_arrives(forwards: bool, filler: int) -> None:
    spec = build(forwards, filler)
    program = Emulator().load(spec)
    results = {mark: program.run(Skb(bytes(64), mark=mark)).r0 for mark in range(4)}
    assert results == {0: 10, 1: 11, 2: 12, 3: 13 if forwards else 10}


def test_only_what_is_too_far_costs_more() -> None:
    assert not any(insn.opcode == OP_GOTOL for insn in build(True, 10).instructions)
    near, far = build(True, 10), build(True, FAR)
    assert len(far.instructions) - FAR == len(near.instructions) - 10 + 2 * 3
    assert sum(insn.opcode == OP_GOTOL for insn in far.instructions) == 3
