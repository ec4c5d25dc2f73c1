# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The programs of port.c, count.c and checksum.c, written in the DSL."""

from __future__ import annotations

from pybpfasm import (
    U32,
    U64,
    Asm,
    AttachType,
    Helper,
    MapSpec,
    MapType,
    SkBuff,
    Struct,
    TcxAction,
    be16,
    sched_cls,
)
from pybpfasm.kernel.enums import BPF_NOEXIST
from pybpfasm.net import ETH_P_IP, IPPROTO_TCP, TCP_ACK, TCP_SYN, Ethernet, Ipv4, Tcp


@sched_cls(AttachType.TCX_INGRESS)
def drop_port(b: Asm, ctx: SkBuff, port: int = 8000) -> None:
    b.r2 = ctx.data_end
    b.r1 = ctx.data
    b.r3 = b.r1
    b.r3 += Ethernet.sizeof + Ipv4.sizeof + Tcp.sizeof
    b.If(b.r3 > b.r2).goto("next")
    ethernet, ip = Ethernet(b.r1), Ipv4(b.r1 + Ethernet.sizeof)
    tcp = Tcp(b.r1 + Ethernet.sizeof + Ipv4.sizeof)
    b.r2 = ethernet.h_proto
    b.If(b.r2 != be16(ETH_P_IP)).goto("next")
    b.r2 = ip.ihl_version
    b.r2 &= 0x0F
    b.If(b.r2 != 5).goto("next")
    b.r2 = ip.protocol
    b.If(b.r2 != IPPROTO_TCP).goto("next")
    b.r2 = tcp.dest
    b.If(b.r2 != be16(port)).goto("next")
    b.r2 = tcp.flags
    b.r2 &= TCP_SYN | TCP_ACK
    with b.If(b.r2 == TCP_SYN):
        b.ret(TcxAction.DROP)
    b.label("next")
    b.ret(TcxAction.NEXT)


class Counters(Struct):
    """Two counters, 16 bytes."""

    packets = U64()
    bytes = U64()


marks = MapSpec("marks", MapType.HASH, U32(), Counters, 256)


@sched_cls(AttachType.TCX_INGRESS)
def count_marks(b: Asm, ctx: SkBuff) -> None:
    b.r6 = ctx
    skb = SkBuff(b.r6)
    key = b.stack_bytes(4)
    b.r1 = skb.mark
    b.u32[key] = b.r1
    b.lea(b.r2, key)
    b.r1 = marks
    b.call(Helper.map_lookup_elem)
    with b.If(b.r0 != 0):
        found = Counters(b.r0)
        b.r1 = 1
        found.packets.lock_add(b.r1)
        b.r1 = skb.len
        found.bytes.lock_add(b.r1)
    with b.Else():
        first = b.stack(Counters)
        first.packets = 1
        b.r1 = skb.len
        first.bytes = b.r1
        b.r1 = marks
        b.lea(b.r2, key)
        b.lea(b.r3, first)
        b.r4 = BPF_NOEXIST
        b.call(Helper.map_update_elem)
    b.ret(TcxAction.NEXT)


def _frame_of_header(b: Asm, ctx: SkBuff) -> None:
    """r1 = the packet; leaves for ``next`` where it is shorter than an IPv4 header's frame."""
    b.r2 = ctx.data_end
    b.r1 = ctx.data
    b.r3 = b.r1
    b.r3 += Ethernet.sizeof + Ipv4.sizeof
    b.If(b.r3 > b.r2).goto("next")


def _verdict_of_sum(b: Asm) -> None:
    """Fold the sum in r2, drop where it is not 0xffff."""
    for _ in range(2):
        b.r3 = b.r2
        b.r3 >>= 16
        b.r2 &= 0xFFFF
        b.r2 += b.r3
    with b.If(b.r2 != 0xFFFF):
        b.ret(TcxAction.DROP)
    b.label("next")
    b.ret(TcxAction.NEXT)


@sched_cls(AttachType.TCX_INGRESS, name="verify")
def verify_unrolled(b: Asm, ctx: SkBuff) -> None:
    _frame_of_header(b, ctx)
    b.r2 = 0
    for at in range(Ethernet.sizeof, Ethernet.sizeof + Ipv4.sizeof, 2):  # Python's: written ten times
        b.r3 = b.u16[b.r1 + at]
        b.r2 += b.r3
    _verdict_of_sum(b)


@sched_cls(AttachType.TCX_INGRESS, name="verify")
def verify_looped(b: Asm, ctx: SkBuff) -> None:
    _frame_of_header(b, ctx)
    b.r2 = 0
    b.r4 = 10
    with b.While(b.r4 != 0):  # the kernel's: written once, run ten times
        b.r3 = b.u16[b.r1 + Ethernet.sizeof]
        b.r2 += b.r3
        b.r1 += 2
        b.r4 -= 1
    _verdict_of_sum(b)
