# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs whose dumps by ``bpftool`` are kept: maps, values of maps, subprograms, callbacks, helpers."""

from __future__ import annotations

from pybpfasm.asm import Asm, imm64
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, Helper, MapType
from pybpfasm.layout import U32, U64
from pybpfasm.maps import MapSpec
from pybpfasm.program import sched_cls, subprogram

FLOWS = MapSpec("flows", MapType.HASH, U32(), U64(), 16)
STATS = MapSpec("stats", MapType.ARRAY, U32(), 64, 1)
EVENTS = MapSpec("events", MapType.RINGBUF, None, None, 4096)


@subprogram("index", "context")
def turn(b: Asm) -> None:
    b.r0 = 0
    with b.If(b.r1 > 5):
        b.r0 = 1
    b.exit()


@subprogram("number")
def narrow(b: Asm) -> None:
    b.w0 = b.w1
    b.w0 >>= 3
    b.w0 ^= -5
    b.exit()


@sched_cls(AttachType.TCX_INGRESS)
def maps_and_calls(b: Asm, ctx: SkBuff) -> None:
    b.r6 = b.r1
    b.r1 = STATS.value_at(8)
    b.r2 = b.u64[b.r1]
    b.u64[b.r10 - 16] = b.r2
    b.u32[b.r10 - 4] = 7
    b.r1 = FLOWS
    b.r2 = b.r10
    b.r2 += -4
    b.call(Helper.map_lookup_elem)
    with b.If(b.r0 != 0):
        b.r3 = b.u64[b.r0 + 0]
        b.r3 <<= 8
        b.u64[b.r0 + 0] = b.r3
    b.r1 = EVENTS
    b.r2 = 16
    b.r3 = 0
    b.call(Helper.ringbuf_reserve)
    with b.If(b.r0 != 0):
        b.r1 = b.r0
        b.r2 = 0
        b.call(Helper.ringbuf_discard)
    b.r1 = 10
    b.r2 = turn
    b.r3 = 0
    b.r4 = 0
    b.call(Helper.loop)
    b.call(Helper.ktime_get_ns)
    b.r1 = b.r0
    b.call(narrow)
    b.r1 = imm64(0x123456789ABCDEF0)
    b.r0 &= b.r1
    b.r0 = 0
    b.exit()


PROGRAMS = (maps_and_calls,)
