# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Candidate 2, operators on registers: the core of the TC ingress program."""

from __future__ import annotations

from docs.dsl.common import ENVOY_PORT, FLOWS, FlowKey, FlowValue
from docs.dsl.operators import Register, assemble, call, exit, jump, label, u8, u16, u32
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import Helper, TcxAction
from pybpfasm.net import ETH_P_IP, IP_OFFSET, IPPROTO_TCP, Ethernet, Ipv4, Tcp

IP = Ethernet.sizeof
TCP = IP + Ipv4.sizeof
KEY, OLD, NEW = -16, -24, -32  # on the stack


def swap(port: int) -> int:
    return (port & 0xFF) << 8 | port >> 8


def core() -> None:
    r0, r1, r2, r3, r4, r5, r6, r7, r8, _, r10 = (Register(index) for index in range(11))

    r6 @= r1
    r7 @= u32[r6 + SkBuff.offsetof("data")]
    r8 @= u32[r6 + SkBuff.offsetof("data_end")]
    r2 @= u32[r6 + SkBuff.offsetof("protocol")]
    jump(r2 != swap(ETH_P_IP), "other")
    r2 @= r7
    r2 += TCP + Tcp.sizeof
    jump(r2 > r8, "other")
    r2 @= u8[r7 + IP]
    jump(r2 != 0x45, "other")
    r2 @= u8[r7 + (IP + Ipv4.offsetof("protocol"))]
    jump(r2 != IPPROTO_TCP, "other")
    r2 @= u16[r7 + (IP + Ipv4.offsetof("frag_off"))]
    jump(r2 & swap(IP_OFFSET), "other")
    r2 @= u16[r7 + (TCP + Tcp.offsetof("dest"))]
    u16[r10 + OLD] @= r2
    r2.be16()
    jump(r2 == 8000, "hit")
    jump(r2 < 9000, "other")
    jump(r2 > 9010, "other")
    label("hit")
    r2 @= u32[r7 + (IP + Ipv4.offsetof("saddr"))]
    u32[r10 + (KEY + FlowKey.offsetof("client"))] @= r2
    r2 @= u32[r7 + (IP + Ipv4.offsetof("daddr"))]
    u32[r10 + (KEY + FlowKey.offsetof("server"))] @= r2
    r2 @= u16[r7 + (TCP + Tcp.offsetof("source"))]
    u16[r10 + (KEY + FlowKey.offsetof("client_port"))] @= r2
    u16[r10 + (KEY + FlowKey.offsetof("protocol"))] @= IPPROTO_TCP
    r1 @= FLOWS
    r2 @= r10
    r2 += KEY
    call(Helper.map_lookup_elem)
    jump(r0 != 0, "known")
    r0 @= TcxAction.DROP
    exit()
    label("known")
    r3 @= u16[r0 + FlowValue.offsetof("original_port")]
    r4 @= u16[r10 + OLD]
    jump(r3 != r4, "drop")
    u16[r10 + NEW] @= swap(ENVOY_PORT)
    r1 @= r6
    r2 @= TCP + Tcp.offsetof("check")
    r4 @= swap(ENVOY_PORT)
    r5 @= 2
    call(Helper.l4_csum_replace)
    jump(r0 != 0, "drop")
    r1 @= r6
    r2 @= TCP + Tcp.offsetof("dest")
    r3 @= r10
    r3 += NEW
    r4 @= 2
    r5 @= 0
    call(Helper.skb_store_bytes)
    jump(r0 != 0, "drop")
    label("other")
    r0 @= TcxAction.NEXT
    exit()
    label("drop")
    r0 @= TcxAction.DROP
    exit()


if __name__ == "__main__":
    core()
    print(assemble().hex())
