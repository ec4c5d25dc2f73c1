# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the programs share: maps with their keys and values, counters, and macros that more than one of them
uses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from programs.settings import Settings
from pybpfasm.asm import Asm, Label, Mem, Reg, be32, imm64
from pybpfasm.kernel.context import SockOps, SockOpt
from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC, Helper, MapType
from pybpfasm.kernel.values import BpfTimer
from pybpfasm.layout import U8, U32, U64, ArrayView, Be16, Be32, Bytes, Nested, Struct
from pybpfasm.maps import MapSpec

CLOCK_MONOTONIC: Final = 1  # linux/time.h
NSEC_PER_SEC: Final = 1_000_000_000

# The upper 96 bits of an IPv4 address in IPv6 form (RFC 4291, section 2.5.5.2) end in these 32.
V4_MAPPED: Final = 0x0000FFFF


# --- The flow map: which port a client's connection was really for. ---


class FlowKey(Struct, kernel_name="flow_key"):
    """One client's connection to Envoy: 36 bytes.

    IPv4 addresses are in v4-mapped IPv6 form. Envoy's port is not part of the key, because an instance
    has only one.
    """

    client = Bytes(16)
    server = Bytes(16)
    client_port = Be16()
    protocol = U8()
    family = U8()


# Bits of FlowValue.state.
FLOW_ESTABLISHED: Final = 1
FLOW_FIN_CLIENT: Final = 2
FLOW_FIN_SERVER: Final = 4
FLOW_RESET: Final = 8
FLOW_UNTIMED: Final = 16  # the kernel had no memory for its timer yet
FLOW_BOTH_FINS: Final = FLOW_FIN_CLIENT | FLOW_FIN_SERVER


class FlowValue(Struct, kernel_name="flow_value"):
    """Where a connection was going, and how far it has got.

    ``last_seen`` is in ns of the monotonic clock; ``syn_seq`` is the sequence number of the SYN that opened
    it, ``syn_ack_seq`` that of the answer.
    """

    last_seen = U64()
    state = U32()
    syn_seq = Be32()
    original_port = Be16()
    pad = Bytes(2)
    syn_ack_seq = Be32()


class TimedFlowValue(Struct, kernel_name="flow_value"):
    """`FlowValue` with the timer that removes the entry, for kernels that have ``bpf_timer``."""

    last_seen = U64()
    state = U32()
    syn_seq = Be32()
    original_port = Be16()
    pad = Bytes(2)
    syn_ack_seq = Be32()
    timer = Nested(BpfTimer)


class HalfOpen(Struct, kernel_name="half_open"):
    """A place in the queue of flows whose client has not acknowledged the SYN-ACK yet: 40 bytes.

    ``next`` of the first place counts those that were given away, 0 in the others.
    """

    next = U32()
    key = Nested(FlowKey)


# --- Acceleration: the sockets of the Envoy-to-application leg. ---


class SocketKey(Struct, kernel_name="socket_key"):
    """A connected socket as its owner sees it: 56 bytes.

    Ports are in host order, addresses as in `FlowKey`.
    """

    netns_cookie = U64()
    family = U32()
    local_port = U32()
    remote_port = U32()
    pad = U32()
    local = Bytes(16)
    remote = Bytes(16)


class SocketNote(Struct, kernel_name="socket_note"):
    """What one end of a connection tells the other: "I am enrolled". 16 bytes.

    ``incarnation`` is the sequence number that follows the SYN-ACK's: it tells the connection from an earlier
    one that had the same addresses and ports. ``socket`` is the address of the sender's ``struct sock``.
    """

    incarnation = U32()
    pad = U32()
    socket = U64()


class SocketState(Struct, kernel_name="socket_state"):
    """What is remembered of an enrolled socket: 32 bytes.

    ``native`` is 1 once data of it has gone through the stack, ``paired`` 1 once the other end is known to
    be enrolled as well. ``incarnation`` is that of `SocketNote`, ``peer`` the address of the other end's
    ``struct sock``, and ``application`` that of the application's end; these may be gone.
    """

    native = U32()
    paired = U32()
    incarnation = U32()
    pad = U32()
    peer = U64()
    application = U64()


# --- Counters. ---


class IngressCounters(Struct, kernel_name="ingress_counters"):
    """Packets at TC ingress for an intercepted port or Envoy's own, by what became of them.

    ``errors_redirected`` are ICMP errors about packets that Envoy sent in a known flow.
    ``challenged_tuple_in_use`` are SYNs that met another connection of their client's at Envoy; they count as
    redirected too. ``evicted_half_open`` are flows that went because many more began before their handshake
    was complete, ``untimed_flows`` those that began without a timer, for want of memory: the next packets ask
    for one again, and while there is none, the end of the connection removes the entry.
    """

    redirected = U64()
    errors_redirected = U64()
    new_flows = U64()
    passed_marked = U64()
    passed_without_flow = U64()
    passed_forwarded = U64()
    passed_draining = U64()
    untimed_flows = U64()
    evicted_half_open = U64()
    challenged_tuple_in_use = U64()
    dropped_map_full = U64()
    dropped_direct = U64()
    dropped_malformed = U64()
    dropped_rewrite_failed = U64()


class EgressCounters(Struct, kernel_name="egress_counters"):
    """Packets at TC egress from Envoy's port, by what became of them.

    ``errors_restored`` are ICMP errors about packets of a known flow that this host sends to clients.
    """

    restored = U64()
    errors_restored = U64()
    passed_without_flow = U64()
    dropped_rewrite_failed = U64()


class GetsockoptCounters(Struct, kernel_name="sockopt_counters"):
    """Questions for SO_ORIGINAL_DST, by answer."""

    answered_ipv4 = U64()
    answered_ipv6 = U64()
    unknown_connection = U64()
    buffer_too_small = U64()


class SockopsCounters(Struct, kernel_name="sockops_counters"):
    """Connections on intercepted ports with both ends on this host, by what became of them."""

    enrolled_active = U64()
    enrolled_passive = U64()
    slot_taken = U64()
    data_before_enrolment = U64()
    peer_not_enrolled = U64()
    failed = U64()


class SkMsgCounters(Struct, kernel_name="sk_msg_counters"):
    """Messages sent on enrolled sockets: handed to the peer's queue, or through the stack.

    ``queue_full`` counts connections, by direction, that have become native because the receiver did not
    read, ``encrypted`` those where the kernel encrypts for the application.
    """

    redirected_messages = U64()
    redirected_bytes = U64()
    native_messages = U64()
    native_bytes = U64()
    queue_full = U64()
    encrypted = U64()


class Counters(Struct, kernel_name="proxy_counters"):
    """All counters, in one per-CPU value; each hook has its own part."""

    ingress = Nested(IngressCounters)
    egress = Nested(EgressCounters)
    getsockopt = Nested(GetsockoptCounters)
    sockops = Nested(SockopsCounters)
    sk_msg = Nested(SkMsgCounters)


# --- Maps. ---


@dataclass(frozen=True, slots=True)
class Maps:
    """The maps of one instance."""

    flows: MapSpec
    half_open: MapSpec
    counters: MapSpec
    sockets: MapSpec
    pending: MapSpec
    socket_state: MapSpec

    @property
    def all(self) -> tuple[MapSpec, ...]:
        """Every map, in the order in which they are created."""
        return (self.flows, self.half_open, self.counters, self.sockets, self.pending, self.socket_state)


@lru_cache(maxsize=8)
def maps(settings: Settings) -> Maps:
    """The maps of an instance with *settings*: the same objects for all its programs."""
    return Maps(
        flows=MapSpec(
            "pba_flows",
            MapType.HASH,
            FlowKey,
            TimedFlowValue if settings.timers else FlowValue,
            settings.flow_capacity,
        ),
        half_open=MapSpec("pba_half_open", MapType.ARRAY, U32(), HalfOpen, settings.half_open_capacity),
        counters=MapSpec("pba_counters", MapType.PERCPU_ARRAY, U32(), Counters, 1),
        sockets=MapSpec("pba_sockets", MapType.SOCKHASH, SocketKey, 8, settings.socket_capacity),
        # Notes from one end of a connection to the other, under the key of the one that is to read it. An
        # evicted one only means that a connection is not accelerated, so LRU is safe here.
        pending=MapSpec("pba_pending", MapType.LRU_HASH, SocketKey, SocketNote, 4096),
        socket_state=MapSpec(
            "pba_sock_state", MapType.SK_STORAGE, U32(), SocketState, 0, flags=BPF_F_NO_PREALLOC
        ),
    )


# --- Macros. ---


def find_counters(b: Asm, settings: Settings, into: Reg, missing: str) -> None:
    """*into* = this CPU's `Counters`; jumps to *missing* in the case, which does not occur, of there being
    none."""
    zero = b.stack_bytes(8)
    b.u32[zero] = 0
    b.r1 = maps(settings).counters
    b.lea(b.r2, zero)
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto(missing)
    setattr(b, into.name, b.r0)


def only_own_netns(b: Asm, ctx: SockOpt | SockOps, settings: Settings, other: str) -> None:
    """Jump to *other* for a socket outside the instance's network namespace, where that is known.

    Addresses mean nothing across namespaces: two of them may well use the same ones. Clobbers r0 to r5.
    """
    if not (settings.netns and settings.netns_cookie):
        return
    b.r1 = ctx
    b.call(Helper.get_netns_cookie)
    b.r1 = imm64(settings.netns)
    b.If(b.r0 != b.r1).goto(other)


def count(b: Asm, counter: Mem, amount: Reg | int = 1) -> None:
    """Add *amount* to *counter*; a constant goes through r1.

    Atomic although the value is this CPU's: a task in a cgroup hook can be preempted by a softirq that counts
    too.
    """
    if isinstance(amount, int):
        b.r1 = amount
        counter.lock_add(b.r1)
    else:
        counter.lock_add(amount)


def now(b: Asm, settings: Settings) -> None:
    """r0 = the monotonic clock in ns, of tick resolution where the kernel has the cheaper clock."""
    b.call(Helper.ktime_get_coarse_ns if settings.coarse_clock else Helper.ktime_get_ns)


def match_ports(b: Asm, port: Reg, ranges: tuple[tuple[int, int], ...], hit: Label, miss: Label) -> None:
    """Jump to *hit* where *port* (host order) is in one of the sorted, disjoint *ranges*, else to *miss*.

    A balanced tree of comparisons: about 2 log2(n) of them for n ranges. Always leaves.
    """
    if not ranges:
        b.goto(miss)
        return
    middle = len(ranges) // 2
    first, last = ranges[middle]
    below, above = ranges[:middle], ranges[middle + 1 :]
    if first == last and not below and not above:
        b.If(port == first).goto(hit)
        b.goto(miss)
        return
    lower = Label("below") if below else miss
    if first > 1:
        b.If(port < first).goto(lower)
    b.If(port <= last).goto(hit)
    match_ports(b, port, above, hit, miss)
    if below:
        b.label(lower)
        match_ports(b, port, below, hit, miss)


def store_v4_mapped(b: Asm, where: ArrayView, address: Reg) -> None:
    """The 16 bytes at *where* = *address* (IPv4, network order in memory) in v4-mapped form."""
    where.u64(0).store(0)
    where.u32(2).store(be32(V4_MAPPED))
    where.u32(3).store(address)
