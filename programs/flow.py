# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Following a flow: what its packets say of the connection's state, and when the entry goes.

Anybody can forge a packet. So a flow counts as established once its client has acknowledged the SYN-ACK that
was sent to it, and a client's reset counts where TCP can believe it. Otherwise two forged packets would make
an entry that stays for days, and one would end a connection that is merely quiet.
"""

from __future__ import annotations

from typing import Final

from programs.settings import Settings
from programs.shared import (
    CLOCK_MONOTONIC,
    FLOW_BOTH_FINS,
    FLOW_ESTABLISHED,
    FLOW_FIN_SERVER,
    FLOW_RESET,
    FLOW_UNTIMED,
    NSEC_PER_SEC,
    FlowKey,
    FlowValue,
    HalfOpen,
    TimedFlowValue,
    count,
    maps,
    now,
)
from pybpfasm.asm import Asm, Label, Mem, Reg, be32, imm64
from pybpfasm.kernel.context import BpfSock, BpfTcpSock, SkBuff, SockTuple
from pybpfasm.kernel.enums import BPF_F_CURRENT_NETNS, Helper, TcpState
from pybpfasm.net import AF_INET6, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tcp
from pybpfasm.program import subprogram

# How far a sequence number may be from the one that is expected: more than the stack may have waiting between
# this hook and the socket, and than a server sends with TCP Fast Open before the handshake is complete.
NEAR: Final = 1 << 20

# How long a flow with one FIN may be quiet: the least that RFC 5382 (REQ-5) asks for an open connection.
HALF_CLOSED_SECONDS: Final = 2 * 3600 + 4 * 60

_EBUSY: Final = 16


def flow_value(settings: Settings, at: Reg) -> FlowValue | TimedFlowValue:
    """A view of a flow's value at *at*."""
    return TimedFlowValue(at) if settings.timers else FlowValue(at)


def half_closed_seconds(settings: Settings) -> int:
    """How long a flow may be quiet that one side has ended."""
    return min(settings.idle_seconds, HALF_CLOSED_SECONDS)


def start_timer(b: Asm, flow: TimedFlowValue, seconds: int) -> None:
    """Let the flow's timer fire in *seconds*.

    An error is of no consequence: the timer then keeps its time. Where two CPUs set it, the last one has its
    way, so whoever sets a long time looks at the state afterwards; one that is too short does no harm.
    """
    b.lea(b.r1, flow.timer)
    b.r2 = imm64(seconds * NSEC_PER_SEC)
    b.r3 = 0
    b.call(Helper.timer_start)


def give_timer(b: Asm, settings: Settings, seconds: int) -> None:
    """Give the flow at r7 its timer, which fires in *seconds*; r0 = 0 if it has one now. Clobbers r1 to r5.

    The kernel takes memory for it and waits for none (``bpf_map_kmalloc_nolock`` from Linux 6.18 on, atomic
    before), so that fails where none is at hand. -EBUSY: it has one already, by a CPU that may be a step
    behind, or that still followed the flow which had this memory before; so it is set all the same.
    """
    given = Label("timer_given")
    flow = TimedFlowValue(b.r7)
    b.lea(b.r1, flow.timer)
    b.r2 = maps(settings).flows
    b.r3 = CLOCK_MONOTONIC
    b.call(Helper.timer_init)
    with b.If((b.w0 != 0) & (b.w0 != -_EBUSY)):
        b.goto(given)
    b.lea(b.r1, flow.timer)
    b.r2 = expire.bind(settings)
    b.call(Helper.timer_set_callback)
    start_timer(b, flow, seconds)
    b.r0 = 0
    b.label(given)


def begin_anew(b: Asm, settings: Settings, flow: FlowValue | TimedFlowValue) -> None:
    """Forget what the flow's packets have said of the connection before. Clobbers r2."""
    if settings.timers:
        b.r2 = FLOW_UNTIMED
        flow.state.lock_and(b.r2)
    else:
        flow.state = 0


def remove(b: Asm, settings: Settings, key: FlowKey, at: Reg) -> None:
    """Remove the flow of *key*, whose value is at *at*, elsewhere than in its timer's callback. Clobbers r0
    to r5.

    The kernel cancels a timer with its entry, and waits for a callback that is running. Where an entry is
    replaced, and up to Linux 6.12 where it is deleted (htab_map_update_elem, htab_map_delete_elem), it holds
    the lock of the bucket meanwhile, and the callback may wait for that, to delete the entry: two CPUs stand
    still, up to 6.14 for good. So the timer is cancelled first, without a lock; then nobody can start it.
    """
    if settings.timers:
        b.lea(b.r1, TimedFlowValue(at).timer)
        b.call(Helper.timer_cancel)
    b.r1 = maps(settings).flows
    b.lea(b.r2, key)
    b.call(Helper.map_delete_elem)


def follow(b: Asm, ctx: SkBuff, settings: Settings, key: FlowKey, flags: Mem, fin: int) -> None:
    """Note in the flow at r7 a packet with the TCP *flags*, whose header is at offset r9; *fin* is the state
    bit of this direction's FIN.

    The entry goes when its timer finds it ended and quiet for a while; where it has none, with the packet
    that ends the connection, so r7 is void afterwards. A reset starts the linger but does not end the flow:
    whether the receiver accepted it is not known here, and another packet of the server shows that it did
    not. Clobbers r0 to r5, and every packet pointer may be void.
    """
    flow = flow_value(settings, b.r7)
    from_server = fin == FLOW_FIN_SERVER
    header = b.stack(Tcp)
    if not from_server:
        b.r2 = flags
        with b.If(b.r2 & TCP_RST):
            refuse_forged(b, ctx, settings, key, header, "followed")
    now(b, settings)
    flow.last_seen = b.r0
    if from_server:
        b.r2 = flags
        with b.If(b.r2 & TCP_SYN):
            # Whatever was before: TCP begins anew.
            load_header(b, ctx, header, "followed")
            b.r2 = header.seq
            flow.syn_ack_seq = b.r2
            begin_anew(b, settings, flow)
        b.r3 = 0
        b.r4 = flow.state
    else:
        b.r3 = 0
        b.r4 = flow.state
        with b.If(~(b.r4 & FLOW_ESTABLISHED)):
            acknowledges(b, ctx, flow, flags, header)
            b.r4 = flow.state
            with b.If(b.r3 != 0):  # what the server refused before was another's
                forget_reset(b, settings, flow)
    b.r2 = flags
    with b.If(b.r2 & TCP_FIN):
        b.r3 |= fin
    with b.If(b.r2 & TCP_RST):
        b.r3 |= FLOW_RESET
    if from_server:
        with b.If((b.r4 & FLOW_RESET) & ~(b.r2 & TCP_RST)):
            forget_reset(b, settings, flow)
    b.r5 = b.r4
    b.r4 |= b.r3
    with b.If(b.r4 != b.r5):
        if not settings.timers:
            # Such a kernel may lack these atomic operations too (5.12). Two CPUs that meet can lose a bit:
            # nothing removes the entry then, as after a connection that just stops.
            flow.state = b.r4
        else:
            # What the other direction's CPU has noted meanwhile counts too: one of them sees both FINs.
            b.r4 = b.r3
            flow.state.fetch_or(b.r4)
            b.r4 |= b.r3
            is_over(b, "over")
            b.r4 = flow.state
            with b.If((b.r3 & FLOW_BOTH_FINS) & (b.r4 & FLOW_ESTABLISHED)):
                start_timer(b, TimedFlowValue(b.r7), half_closed_seconds(settings))
                b.r4 = flow.state
                is_over(b, "over")
            b.r4 = flow.state
    if settings.timers:
        b.goto("noted")
        b.label("over")
        start_timer(b, TimedFlowValue(b.r7), settings.linger_seconds)
        b.r4 = flow.state
        b.label("noted")
        b.If(~(b.r4 & FLOW_UNTIMED)).goto("followed")
        give_timer(b, settings, settings.linger_seconds)
        with b.If(b.r0 == 0):
            b.r5 = ~FLOW_UNTIMED
            flow.state.lock_and(b.r5)
            b.goto("followed")
        b.r4 = flow.state
    # The last acknowledgement, or a reset: there is nobody who could remove the entry later.
    is_over(b, "ended")
    b.goto("followed")
    b.label("ended")
    b.r2 = flags
    with b.If((b.r2 & TCP_RST) | ~(b.r2 & TCP_FIN)):
        remove(b, settings, key, b.r7)
    b.label("followed")


def forget_reset(b: Asm, settings: Settings, flow: FlowValue | TimedFlowValue) -> None:
    """Take `FLOW_RESET` out of the flow's state, which is in r4, before and afterwards. Clobbers r5."""
    if settings.timers:
        b.r5 = ~FLOW_RESET
        flow.state.lock_and(b.r5)
        b.r4 = flow.state
    else:
        b.r4 &= ~FLOW_RESET
        flow.state = b.r4


def queue_up(b: Asm, settings: Settings, key: FlowKey, evicted: Mem) -> None:
    """Note the flow of *key*, that is about to be, among those without a complete handshake.

    The one whose place it gets goes, if its handshake is not complete even now, and *evicted* counts it: so a
    flood of SYNs from nowhere can't fill the flow map, nor do harm to what is established. Clobbers r0 to r5
    and r7.
    """
    number = b.u32[b.stack_bytes(8)]
    kept, done = Label("place_is_free"), Label("queued")
    number.store(0)
    for last in (False, True):
        b.r1 = maps(settings).half_open
        b.lea(b.r2, number)
        b.call(Helper.map_lookup_elem)
        b.If(b.r0 == 0).goto(done)
        if not last:
            counted = HalfOpen(b.r0).next
            b.r1 = 1
            if settings.timers:
                counted.fetch_add(b.r1)
                b.r1 += 1
            else:  # see `follow`: two CPUs that meet here can get one place, and one evict the other's flow
                counted.lock_add(b.r1)
                b.r1 = counted
            b.r1 &= settings.half_open_capacity - 1
            number.store(b.r1)
    b.r7 = b.r0
    place = HalfOpen(b.r7).key
    b.r1 = maps(settings).flows
    b.lea(b.r2, place)
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto(kept)
    b.r2 = flow_value(settings, b.r0).state
    b.If(b.r2 & FLOW_ESTABLISHED).goto(kept)
    remove(b, settings, place, b.r0)
    count(b, evicted)
    b.label(kept)
    for here, there in ((key.client, place.client), (key.server, place.server)):
        for word in range(4):
            b.r2 = here.u32(word)
            there.u32(word).store(b.r2)
    b.r2 = key.client_port
    place.client_port = b.r2
    b.r2 = key.protocol
    place.protocol = b.r2
    b.r2 = key.family
    place.family = b.r2
    b.label(done)


def load_header(b: Asm, ctx: SkBuff, header: Tcp, failed: str) -> None:
    """Copy the TCP header at offset r9 to *header* on the stack. Clobbers r0 to r5."""
    b.r1 = ctx
    b.r2 = b.r9
    b.lea(b.r3, header)
    b.r4 = Tcp.sizeof
    b.call(Helper.skb_load_bytes)
    b.If(b.r0 != 0).goto(failed)


def acknowledges(b: Asm, ctx: SkBuff, flow: FlowValue | TimedFlowValue, flags: Mem, header: Tcp) -> None:
    """r3 = `FLOW_ESTABLISHED` where a client's packet acknowledges the SYN-ACK, else 0.

    Only who has got that knows its sequence number. Clobbers r0 to r5.
    """
    no = Label("not_acknowledged")
    load_header(b, ctx, header, "followed")
    b.r3 = 0
    b.r2 = flags
    b.If(~(b.r2 & TCP_ACK)).goto(no)
    b.r2 = header.ack_seq
    b.r2 = be32(b.r2)
    b.r4 = flow.syn_ack_seq
    b.r4 = be32(b.r4)
    b.w2 -= b.w4
    b.w2 -= 1
    b.If(b.w2 >= NEAR).goto(no)
    b.r3 = FLOW_ESTABLISHED
    b.label(no)


def refuse_forged(b: Asm, ctx: SkBuff, settings: Settings, key: FlowKey, header: Tcp, refused: str) -> None:
    """Jump to *refused* for a client's reset that Envoy's socket will not believe (RFC 5961, section 3.2).

    It believes one with the sequence number that it expects next, or with that of the FIN before it. About
    one a little ahead it asks, and its question clears `FLOW_RESET`. Clobbers r0 to r5.
    """
    believed, release = Label("believed"), Label("release")
    expected, sock = b.u32[b.stack_bytes(8)], b.u64[b.stack_bytes(8)]
    load_header(b, ctx, header, refused)
    find_socket(b, ctx, settings, key)
    b.If(b.r0 == 0).goto(believed)
    sock.store(b.r0)
    b.r2 = header.seq
    b.r2 = be32(b.r2)
    expected.store(b.r2)
    b.r2 = BpfSock(b.r0).state
    b.If(b.r2 == TcpState.LISTEN).goto(release)
    b.r1 = b.r0
    b.call(Helper.tcp_sock)
    b.If(b.r0 == 0).goto(release)  # a half-open connection, or one in TIME_WAIT
    b.r2 = BpfTcpSock(b.r0).rcv_nxt
    expected.store(b.r2)
    b.label(release)
    b.r1 = sock
    b.call(Helper.sk_release)
    b.r2 = header.seq
    b.r2 = be32(b.r2)
    b.r3 = expected
    b.w2 -= b.w3
    b.w2 += 1
    b.If(b.w2 > NEAR).goto(refused)
    b.label(believed)


def find_socket(b: Asm, ctx: SkBuff, settings: Settings, key: FlowKey) -> None:
    """r0 = Envoy's socket for the client of *key*, or a listener's, or 0; whoever gets one releases it.

    Clobbers r1 to r5.
    """
    pair = b.stack(SockTuple)
    v6, ask = Label("pair6"), Label("look_up")
    b.r2 = key.client_port
    b.r3 = key.family
    b.If(b.r3 == AF_INET6).goto(v6)
    pair.ipv4.sport = b.r2
    pair.ipv4.dport = settings.envoy_port
    b.r2 = key.client.u32(3)
    pair.ipv4.saddr = b.r2
    b.r2 = key.server.u32(3)
    pair.ipv4.daddr = b.r2
    b.r3 = type(pair.ipv4).sizeof
    b.goto(ask)
    b.label(v6)
    pair.ipv6.sport = b.r2
    pair.ipv6.dport = settings.envoy_port
    for word in range(4):
        b.r2 = key.client.u32(word)
        pair.ipv6.saddr[word] = b.r2
        b.r2 = key.server.u32(word)
        pair.ipv6.daddr[word] = b.r2
    b.r3 = type(pair.ipv6).sizeof
    b.label(ask)
    b.r1 = ctx
    b.lea(b.r2, pair)
    b.r4 = BPF_F_CURRENT_NETNS
    b.r5 = 0
    b.call(Helper.skc_lookup_tcp)


def is_over(b: Asm, label: str) -> None:
    """Jump to *label* where the state in r4 says that the connection has ended.

    Clobbers r4.
    """
    b.If(b.r4 & FLOW_RESET).goto(label)
    b.r4 &= FLOW_BOTH_FINS
    b.If(b.r4 == FLOW_BOTH_FINS).goto(label)


@subprogram("map", "key", "value")
def expire(b: Asm, settings: Settings) -> None:
    """A flow's timer has fired: remove the entry where it has been quiet long enough for its state, else wait
    on."""
    b.r6 = b.r1
    b.r7 = b.r2
    b.r8 = b.r3
    flow = TimedFlowValue(b.r8)
    now(b, settings)
    b.r2 = flow.last_seen
    b.r0 -= b.r2
    with b.If(b.r0.slt(0)):  # a packet has come since the clock was read
        b.r0 = 0
    b.r9 = flow.state
    b.r4 = b.r9
    b.r3 = imm64(settings.handshake_seconds * NSEC_PER_SEC)
    with b.If(b.r4 & FLOW_ESTABLISHED):
        b.r3 = imm64(settings.idle_seconds * NSEC_PER_SEC)
        with b.If(b.r4 & FLOW_BOTH_FINS):
            b.r3 = imm64(half_closed_seconds(settings) * NSEC_PER_SEC)
    is_over(b, "ended")
    b.goto("decide")
    b.label("ended")
    b.r3 = imm64(settings.linger_seconds * NSEC_PER_SEC)
    b.label("decide")
    with b.If(b.r0 >= b.r3):
        b.r1 = b.r6
        b.r2 = b.r7
        b.call(Helper.map_delete_elem)
        b.ret(0)
    b.lea(b.r1, flow.timer)
    b.r2 = b.r3
    b.r2 -= b.r0
    b.r3 = 0
    b.call(Helper.timer_start)
    # A packet that came after the state was read has set the timer too, and this was the last word.
    b.r2 = flow.state
    with b.If(b.r2 != b.r9):
        start_timer(b, flow, settings.linger_seconds)
    b.ret(0)
