# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The kernel takes jumps through islands and rewritten instructions, and they do what the others do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest

from loader.objects import Program
from pybpfasm import Asm, SkBuff, bswap32, s16, sched_cls
from pybpfasm.asm import Condition
from pybpfasm.program import Template
from tests.kernel.test_asm_blocks import load_variables, packet
from tests.unit.block_trees import NUMBERS
from tests.unit.test_asm_far_jumps import build


@pytest.mark.parametrize("forwards", [True, False])
@pytest.mark.parametrize("filler", [32_764, 70_000])
@pytest.mark.parametrize("target", [None, "v3"])
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
    """For all pairs of telling numbers."""
    with (
        Program.load(rewritten().for_target("v1").build()) as old,
        Program.load(rewritten().build()) as new,
    ):
        for pair in product(NUMBERS, repeat=2):
            data = packet((*pair, 0, 0))
            assert old.test_run(data).retval == new.test_run(data).retval, pair
