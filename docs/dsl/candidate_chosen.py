# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Candidate 3, assignment to attributes of a builder: the core of the TC ingress program."""

from __future__ import annotations

from docs.dsl.common import ENVOY_PORT, FLOWS, FlowKey, FlowValue
from pybpfasm.asm import Asm, be16
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, Helper, TcxAction
from pybpfasm.net import ETH_P_IP, IP_OFFSET, IPPROTO_TCP, Ethernet, Ipv4, Tcp
from pybpfasm.program import sched_cls

IP = Ethernet.sizeof
TCP = IP + Ipv4.sizeof


@sched_cls(AttachType.TCX_INGRESS)
def core(b: Asm, ctx: SkBuff) -> None:
    key = b.stack(FlowKey)
    old_port = b.u16[b.stack_bytes(8)]
    new_port = b.u16[b.stack_bytes(8)]
    ip, tcp = Ipv4(b.r7 + IP), Tcp(b.r7 + TCP)

    b.r6 = ctx
    ctx = SkBuff(b.r6)
    b.r7 = ctx.data
    b.r8 = ctx.data_end
    b.r2 = ctx.protocol
    b.If(b.r2 != be16(ETH_P_IP)).goto("other")
    b.r2 = b.r7
    b.r2 += TCP + Tcp.sizeof
    b.If(b.r2 > b.r8).goto("other")
    b.r2 = ip.ihl_version
    b.If(b.r2 != 0x45).goto("other")
    b.r2 = ip.protocol
    b.If(b.r2 != IPPROTO_TCP).goto("other")
    b.r2 = ip.frag_off
    b.If(b.r2 & be16(IP_OFFSET)).goto("other")
    b.r2 = tcp.dest
    old_port.store(b.r2)
    b.r2 = be16(b.r2)
    b.If((b.r2 != 8000) & ((b.r2 < 9000) | (b.r2 > 9010))).goto("other")
    b.r2 = ip.saddr
    key.client = b.r2
    b.r2 = ip.daddr
    key.server = b.r2
    b.r2 = tcp.source
    key.client_port = b.r2
    key.protocol = IPPROTO_TCP
    b.r1 = FLOWS
    b.lea(b.r2, key)
    b.call(Helper.map_lookup_elem)
    with b.If(b.r0 == 0):
        b.ret(TcxAction.DROP)
    b.r3 = FlowValue(b.r0).original_port
    b.r4 = old_port
    b.If(b.r3 != b.r4).goto("drop")
    new_port.store(be16(ENVOY_PORT))
    b.r1 = ctx
    b.r2 = TCP + Tcp.offsetof("check")
    b.r4 = be16(ENVOY_PORT)
    b.r5 = 2
    b.call(Helper.l4_csum_replace)
    b.If(b.r0 != 0).goto("drop")
    b.r1 = ctx
    b.r2 = TCP + Tcp.offsetof("dest")
    b.r3 = b.r10
    b.r3 += new_port.offset
    b.r4 = 2
    b.r5 = 0
    b.call(Helper.skb_store_bytes)
    b.If(b.r0 != 0).goto("drop")
    b.label("other")
    b.ret(TcxAction.NEXT)
    b.label("drop")
    b.ret(TcxAction.DROP)


if __name__ == "__main__":
    print(core.build().code().hex())
