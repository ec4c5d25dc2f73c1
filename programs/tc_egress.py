# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""TC egress: Envoy's answers to redirected connections come from the port that the client addressed."""

from __future__ import annotations

from programs.flow import flow_value, follow
from programs.icmp import find_quoted
from programs.packet import Interface, fill_key, find_tcp, rewrite_port
from programs.settings import Settings
from programs.shared import FLOW_FIN_SERVER, Counters, FlowKey, count, find_counters, maps
from pybpfasm.asm import Asm, be16
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, Helper, TcxAction
from pybpfasm.net import Icmp, Ipv4, Ipv6, Tcp
from pybpfasm.program import sched_cls


@sched_cls(AttachType.TCX_EGRESS, name="pba_egress")
def tc_egress(b: Asm, ctx: SkBuff, settings: Settings, interface: Interface) -> None:
    """Give packets of known flows from Envoy's port the port that their client knows.

    The mark is not looked at: it is on Envoy's connections to the application, which do not come from its
    listening port, and a flow is known only where the client's SYN was redirected.
    """
    key = b.stack(FlowKey)
    flags = b.u64[b.stack_bytes(8)]
    old_port = b.u16[b.stack_bytes(8)]
    new_port = b.u16[b.stack_bytes(8)]
    counters = Counters(b.r8).egress

    b.r6 = ctx
    ctx = SkBuff(b.r6)

    def on_tcp(ip: Ipv4 | Ipv6) -> None:
        b.r2 = Tcp(b.r5).source
        b.If(b.r2 != be16(settings.envoy_port)).goto("other")
        fill_key(b, key, ip, Tcp(b.r5), client_is_source=False)
        b.r7 = b.r5
        b.goto("from_envoy")

    find_tcp(b, ctx, interface, on_tcp)

    b.label("from_envoy")
    b.r2 = Tcp(b.r7).flags
    flags.store(b.r2)
    old_port.store(be16(settings.envoy_port))
    find_counters(b, settings, b.r8, "other")
    b.r1 = maps(settings).flows
    b.lea(b.r2, key)
    b.call(Helper.map_lookup_elem)
    with b.If(b.r0 == 0):
        count(b, counters.passed_without_flow)
        b.ret(TcxAction.NEXT)
    b.r7 = b.r0
    b.r2 = flow_value(settings, b.r7).original_port
    new_port.store(b.r2)
    follow(b, ctx, settings, key, flags, FLOW_FIN_SERVER)
    check, port = (b.r9, Tcp.offsetof("check")), (b.r9, Tcp.offsetof("source"))
    rewrite_port(b, ctx, check, port, old_port, new_port, "rewrite_failed")
    count(b, counters.restored)
    b.ret(TcxAction.NEXT)

    # What this host says of a client's packet that was redirected, a firewall's reject for one.
    find_quoted(b, ctx, key, old_port, quoted="dest", client_is_source=True)
    b.r2 = old_port
    b.If(b.r2 != be16(settings.envoy_port)).goto("other")
    find_counters(b, settings, b.r8, "other")
    b.r1 = maps(settings).flows
    b.lea(b.r2, key)
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto("other")
    b.r2 = flow_value(settings, b.r0).original_port
    new_port.store(b.r2)
    check, port = (b.r9, Icmp.offsetof("checksum")), (b.r7, Tcp.offsetof("dest"))
    rewrite_port(b, ctx, check, port, old_port, new_port, "rewrite_failed")
    count(b, counters.errors_restored)
    b.ret(TcxAction.NEXT)

    b.label("rewrite_failed")
    count(b, counters.dropped_rewrite_failed)
    b.ret(TcxAction.DROP)

    b.label("malformed")  # our own stack sends none; what a forwarded packet holds is not ours to judge
    b.label("other")
    b.ret(TcxAction.NEXT)
