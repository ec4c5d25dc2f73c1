# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""TC ingress: connections for an intercepted port go to Envoy's port.

Registers throughout: r6 the context, r7 a header or the flow, r8 the end of the linear part and later the
counters, r9 the offset of the TCP or ICMP header.
"""

from __future__ import annotations

from typing import Final

from programs.flow import (
    begin_anew,
    find_socket,
    flow_value,
    follow,
    give_timer,
    is_over,
    queue_up,
    remove,
    start_timer,
)
from programs.icmp import find_quoted
from programs.packet import PACKET_HOST, Interface, fill_key, find_tcp, rewrite_port
from programs.settings import Settings
from programs.shared import (
    FLOW_FIN_CLIENT,
    FLOW_UNTIMED,
    Counters,
    FlowKey,
    FlowValue,
    TimedFlowValue,
    count,
    find_counters,
    maps,
    match_ports,
    now,
)
from pybpfasm.asm import Asm, Label, Mem, be16
from pybpfasm.kernel.context import BpfSock, FibLookup, SkBuff
from pybpfasm.kernel.enums import (
    BPF_ANY,
    BPF_NOEXIST,
    AttachType,
    FibLookupResult,
    Helper,
    TcpState,
    TcxAction,
)
from pybpfasm.net import AF_INET6, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Icmp, Ipv4, Ipv6, Tcp
from pybpfasm.program import sched_cls

# A SYN that opens a connection has SYN alone of these.
HANDSHAKE_FLAGS = TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN

_EEXIST: Final = 17


@sched_cls(AttachType.TCX_INGRESS, name="pba_ingress")
def tc_ingress(b: Asm, ctx: SkBuff, settings: Settings, interface: Interface) -> None:
    """Send TCP connections for an intercepted port to Envoy, and remember which port they were for."""
    key = b.stack(FlowKey)
    flags = b.u64[b.stack_bytes(8)]
    old_port = b.u16[b.stack_bytes(8)]
    new_port = b.u16[b.stack_bytes(8)]
    counters = Counters(b.r8).ingress

    b.r6 = ctx
    ctx = SkBuff(b.r6)

    def on_tcp(ip: Ipv4 | Ipv6) -> None:
        hit = Label("hit")
        b.r2 = Tcp(b.r5).dest
        b.r2 = be16(b.r2)
        b.If(b.r2 == settings.envoy_port).goto(hit)
        match_ports(b, b.r2, settings.ports.ranges, hit, b.named("other"))
        b.label(hit)
        fill_key(b, key, ip, Tcp(b.r5), client_is_source=True)
        b.r7 = b.r5
        b.goto("wanted")

    find_tcp(b, ctx, interface, on_tcp)

    b.label("wanted")
    b.r2 = ctx.pkt_type
    b.If(b.r2 != PACKET_HOST).goto("other")  # seen in passing: bridged, or a promiscuous interface
    tcp = Tcp(b.r7)
    b.r2 = tcp.flags
    flags.store(b.r2)
    b.r2 = tcp.dest
    old_port.store(b.r2)
    new_port.store(be16(settings.envoy_port))
    find_counters(b, settings, b.r8, "other")

    b.r2 = ctx.mark
    if settings.mark.mask != 0xFFFFFFFF:
        b.w2 &= settings.mark.mask
    b.If(b.w2 == settings.mark.value).goto("marked")

    find_flow(b, settings, key)
    b.r3 = flags
    b.r3 &= HANDSHAKE_FLAGS
    b.r4 = old_port
    b.If(b.r4 == be16(settings.envoy_port)).goto("direct")
    b.If(b.r3 == TCP_SYN).goto("syn")

    # Within a connection: translate what began with a SYN that was translated, and nothing else.
    b.If(b.r0 == 0).goto("without_flow")
    b.r7 = b.r0
    b.r3 = flow_value(settings, b.r7).original_port
    b.If(b.r3 != b.r4).goto("without_flow")
    follow(b, ctx, settings, key, flags, FLOW_FIN_CLIENT)
    b.goto("rewrite")

    b.label("syn")
    new_flow(b, ctx, settings, interface, key, old_port)

    b.label("rewrite")
    check, port = (b.r9, Tcp.offsetof("check")), (b.r9, Tcp.offsetof("dest"))
    rewrite_port(b, ctx, check, port, old_port, new_port, "rewrite_failed")
    count(b, counters.redirected)
    b.ret(TcxAction.NEXT)

    # What routers say of Envoy's answers, which left from the application's port: Envoy's socket must hear.
    find_quoted(b, ctx, key, old_port, quoted="source", client_is_source=False)
    b.r2 = ctx.pkt_type
    b.If(b.r2 != PACKET_HOST).goto("other")
    find_counters(b, settings, b.r8, "other")
    find_flow(b, settings, key)
    b.If(b.r0 == 0).goto("other")
    b.r2 = flow_value(settings, b.r0).original_port
    b.r3 = old_port
    b.If(b.r2 != b.r3).goto("other")
    new_port.store(be16(settings.envoy_port))
    check, port = (b.r9, Icmp.offsetof("checksum")), (b.r7, Tcp.offsetof("source"))
    rewrite_port(b, ctx, check, port, old_port, new_port, "rewrite_failed")
    count(b, counters.errors_redirected)
    b.ret(TcxAction.NEXT)

    b.label("direct")
    to_envoy_itself(b, ctx, settings, interface, key)

    passed = {"marked": counters.passed_marked, "without_flow": counters.passed_without_flow}
    dropped = {"rewrite_failed": counters.dropped_rewrite_failed}
    if settings.new_flows:
        dropped["map_full"] = counters.dropped_map_full
    else:
        passed["draining"] = counters.passed_draining
    if settings.new_flows and not interface.loopback:
        passed["forwarded"] = counters.passed_forwarded
    if not interface.loopback:
        dropped["refuse_direct"] = counters.dropped_direct
    for verdict, exits in ((TcxAction.NEXT, passed), (TcxAction.DROP, dropped)):
        for label, counter in exits.items():
            b.label(label)
            count(b, counter)
            b.ret(verdict)

    if settings.new_flows:
        b.label("tuple_in_use")
        count(b, counters.challenged_tuple_in_use)
        b.goto("rewrite")

    b.label("malformed")
    # It may be for an intercepted port, and what can't be read must not reach the application.
    b.r2 = ctx.pkt_type
    b.If(b.r2 != PACKET_HOST).goto("other")
    find_counters(b, settings, b.r8, "other")
    count(b, counters.dropped_malformed)
    b.ret(TcxAction.DROP)

    b.label("other")
    b.ret(TcxAction.NEXT)


def new_flow(b: Asm, ctx: SkBuff, settings: Settings, interface: Interface, key: FlowKey, port: Mem) -> None:
    """A SYN for an intercepted port, its TCP header at r7, the flow known for its tuple, or 0, in r0.

    Goes on where the flow is new and known now. Jumps to ``rewrite``, ``forwarded``, ``draining``,
    ``tuple_in_use`` or ``map_full``. In the fourth case Envoy's kernel has the last word: it asks the peer of
    the connection that has the tuple whether it lives (RFC 5961, section 4.2). If it does, no harm is done,
    and the SYN comes to nothing; if not, its reset makes room for the SYN that is sent again.
    """
    value = b.stack(TimedFlowValue) if settings.timers else b.stack(FlowValue)
    b.zero(value)
    b.r2 = Tcp(b.r7).seq
    value.syn_seq = b.r2
    b.r2 = port
    value.original_port = b.r2
    if settings.timers:
        value.state = FLOW_UNTIMED

    with b.If(b.r0 != 0):
        b.r7 = b.r0
        flow = flow_value(settings, b.r7)
        b.r3 = flow.original_port
        with b.If(b.r3 == b.r2):
            # Sent again, or the same ports used again for the same service.
            b.r2 = value.syn_seq
            flow.syn_seq = b.r2
            now(b, settings)
            flow.last_seen = b.r0
            b.r4 = flow.state
            is_over(b, "reopened")
            b.goto("rewrite")
            b.label("reopened")
            if settings.new_flows:
                begin_anew(b, settings, flow)
                if settings.timers:
                    start_timer(b, TimedFlowValue(b.r7), settings.handshake_seconds)
                b.goto("rewrite")
            else:  # or the rest of this connection would be translated for the ended one's sake
                remove(b, settings, key, b.r7)
                b.goto("draining")

    if not settings.new_flows:
        b.goto("draining")
        return
    if not interface.loopback:
        is_forwarded(b, ctx, key, "forwarded")
    in_use(b, ctx, settings, key, "tuple_in_use")
    queue_up(b, settings, key, Counters(b.r8).ingress.evicted_half_open)

    now(b, settings)
    value.last_seen = b.r0
    put = Label("put")
    for last in (False, True):
        b.r1 = maps(settings).flows
        b.lea(b.r2, key)
        b.lea(b.r3, value)
        b.r4 = BPF_ANY if last else BPF_NOEXIST
        b.call(Helper.map_update_elem)
        if last:
            b.If(b.r0 != 0).goto("map_full")
        else:
            b.If(b.r0 == 0).goto(put)
            b.If(b.w0 != -_EEXIST).goto("map_full")
            find_flow(b, settings, key)
            with b.If(b.r0 != 0):
                b.r1 = flow_value(settings, b.r0).original_port
                b.r2 = port
                b.If(b.r1 == b.r2).goto("rewrite")  # a copy of this SYN, on another CPU
                remove(b, settings, key, b.r0)  # stale, of another service
    b.label(put)
    if settings.timers:
        find_flow(b, settings, key)
        with b.If(b.r0 != 0):
            b.r7 = b.r0
            give_timer(b, settings, settings.handshake_seconds)
            with b.If(b.r0 == 0):
                b.r2 = ~FLOW_UNTIMED
                TimedFlowValue(b.r7).state.lock_and(b.r2)
            with b.Else():
                count(b, Counters(b.r8).ingress.untimed_flows)
    count(b, Counters(b.r8).ingress.new_flows)


def find_flow(b: Asm, settings: Settings, key: FlowKey) -> None:
    """r0 = the flow of *key*, or 0. Clobbers r1 to r5."""
    b.r1 = maps(settings).flows
    b.lea(b.r2, key)
    b.call(Helper.map_lookup_elem)


def to_envoy_itself(b: Asm, ctx: SkBuff, settings: Settings, interface: Interface, key: FlowKey) -> None:
    """A packet addressed to Envoy's own port; the flow of its tuple, or 0, in r0, its handshake flags in r3.

    Only a SYN matters, an existing connection is left alone. One that was translated at another hook on the
    packet's way (a VLAN's parent, a bridge port) is known by its sequence number. Others have no original
    destination: from outside they are refused, on ``lo`` they pass after a flow that once had the same tuple
    is forgotten, unless its connection lives: then TCP challenges its client (see `new_flow`).
    """
    b.If(b.r3 != TCP_SYN).goto("other")
    with b.If(b.r0 != 0):
        b.r2 = flow_value(settings, b.r0).syn_seq
        b.r3 = Tcp(b.r7).seq
        b.If(b.r2 == b.r3).goto("other")
        if interface.loopback:
            in_use(b, ctx, settings, key, "other")
            find_flow(b, settings, key)
            with b.If(b.r0 != 0):
                remove(b, settings, key, b.r0)
    if interface.loopback:
        b.goto("other")
    else:
        is_forwarded(b, ctx, key, "other")
        b.goto("refuse_direct")


def is_forwarded(b: Asm, ctx: SkBuff, key: FlowKey, label: str) -> None:
    """Jump to *label* where routing sends the packet on to another host.

    A packet for this host goes on here.
    """
    route = b.stack(FibLookup)
    b.zero(route)
    v6 = Label("route6")
    ask = Label("ask")
    route.l4_protocol = 6
    b.r2 = ctx.ifindex
    route.ifindex = b.r2
    b.r2 = key.family
    route.family = b.r2
    b.If(b.r2 == AF_INET6).goto(v6)
    b.r2 = key.client.u32(3)
    route.ipv4_src = b.r2
    b.r2 = key.server.u32(3)
    route.ipv4_dst = b.r2
    b.goto(ask)
    b.label(v6)
    for word in range(4):
        b.r2 = key.client.u32(word)
        route.ipv6_src[word] = b.r2
        b.r2 = key.server.u32(word)
        route.ipv6_dst[word] = b.r2
    b.label(ask)
    b.r1 = ctx
    b.lea(b.r2, route)
    b.r3 = FibLookup.sizeof
    b.r4 = 0
    b.call(Helper.fib_lookup)
    for result in (
        FibLookupResult.SUCCESS,
        FibLookupResult.NO_NEIGH,
        FibLookupResult.FRAG_NEEDED,
        FibLookupResult.UNSUPP_LWT,  # by a route that encapsulates
    ):
        b.If(b.w0 == result).goto(label)


def in_use(b: Asm, ctx: SkBuff, settings: Settings, key: FlowKey, label: str) -> None:
    """Jump to *label* where a live socket has the tuple that the connection would have at Envoy."""
    free = Label("free")
    find_socket(b, ctx, settings, key)
    b.If(b.r0 == 0).goto(free)
    b.r7 = BpfSock(b.r0).state
    b.r1 = b.r0
    b.call(Helper.sk_release)
    with b.If((b.r7 != TcpState.LISTEN) & (b.r7 != TcpState.TIME_WAIT) & (b.r7 != TcpState.CLOSE)):
        b.goto(label)
    b.label(free)
