# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Macros of the library."""

from __future__ import annotations

import pytest

from pybpfasm.asm import Asm
from pybpfasm.errors import AsmError
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import U32
from pybpfasm.macros import tail_call
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec, sched_cls

JUMPS = MapSpec("jumps", MapType.PROG_ARRAY, U32(), 4, 3)


def _shown(program: ProgramSpec) -> list[str]:
    return [line.split(") ", 1)[1] for line in program.listing(lines=False).splitlines()[1:]]


def test_a_tail_call_moves_only_what_is_not_in_place() -> None:
    @sched_cls()
    def direct(b: Asm, ctx: SkBuff) -> None:
        b.r3 = 2
        tail_call(b, ctx, JUMPS, b.r3)
        b.ret(0)

    @sched_cls()
    def moved(b: Asm, ctx: SkBuff) -> None:
        b.r6 = ctx
        tail_call(b, SkBuff(b.r6), JUMPS, 1)
        b.ret(0)

    call = "call bpf_tail_call#12"
    assert _shown(direct.build())[1:3] == ["r2 = map[jumps]", call]
    assert _shown(moved.build())[1:5] == ["r1 = r6", "r2 = map[jumps]", "r3 = 1", call]


def test_mistakes() -> None:
    @sched_cls()
    def wrong_map(b: Asm, ctx: SkBuff) -> None:
        tail_call(b, ctx, MapSpec("counts", MapType.HASH, U32(), U32(), 3), 1)

    @sched_cls()
    def overwritten(b: Asm, ctx: SkBuff) -> None:
        tail_call(b, ctx, JUMPS, b.r2)

    with pytest.raises(AsmError, match="map counts is a HASH; a tail call goes through a PROG_ARRAY"):
        wrong_map.build()
    with pytest.raises(AsmError, match="r2 is overwritten before the index") as caught:
        overwritten.build()
    assert (
        caught.value.location is not None and "tail_call(b, ctx, JUMPS, b.r2)" in caught.value.location.text
    )
