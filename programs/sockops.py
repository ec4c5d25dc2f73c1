# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Sockops: enrol both ends of a connection from Envoy to the application, before any payload.

Envoy's end comes first: it is established when the SYN-ACK arrives, the application's when the ACK of that
does. It leaves a note for the application's end, which enrols only where it finds one, and leaves one in
return. So the pair is complete or, where the application's end is out of reach, Envoy's end alone is
enrolled, finds no note with its first message, and stays native.

The notes bear the connection's incarnation. To find a socket under the peer's key is not enough: a program
that is slow to close keeps a dead socket in the sockhash, while a new connection has its addresses and ports
already.
"""

from __future__ import annotations

from typing import Final

from programs.settings import Settings
from programs.shared import (
    Counters,
    SocketKey,
    SocketNote,
    SocketState,
    count,
    find_counters,
    maps,
    match_ports,
    only_own_netns,
)
from programs.socket import fill_socket_key
from pybpfasm.asm import Asm, Label, Reg, be32
from pybpfasm.kernel.context import BpfSock, SockOps
from pybpfasm.kernel.enums import (
    BPF_ANY,
    BPF_NOEXIST,
    BPF_SK_STORAGE_GET_F_CREATE,
    Helper,
    SockOp,
    SockOpsFlag,
)
from pybpfasm.net import AF_INET
from pybpfasm.program import sock_ops

DONE: Final = 1  # what a sock_ops program returns; for these callbacks it has no meaning

LOOPBACK_NET: Final = 0x7F000000  # 127.0.0.0/8
LOOPBACK_MASK: Final = 0xFF000000

_EEXIST: Final = 17


@sock_ops(name="pba_sockops")
def sockops(b: Asm, ctx: SockOps, settings: Settings) -> None:
    """Put sockets of Envoy's connections to an intercepted port of this host into the sockhash."""
    key = b.stack(SocketKey)
    note = b.stack(SocketNote)
    counters = Counters(b.r9).sockops

    b.r6 = ctx
    ctx = SockOps(b.r6)
    b.r7 = ctx.op
    b.If(b.r7 == SockOp.ACTIVE_ESTABLISHED_CB).goto("active")
    b.If(b.r7 == SockOp.HDR_OPT_LEN_CB).goto("transmitted")
    b.If(b.r7 != SockOp.PASSIVE_ESTABLISHED_CB).goto("done")

    # The application's end: does Envoy's end, whose key is this one mirrored, wait for it?
    b.r2 = ctx.local_port
    port = Label("application_port")
    match_ports(b, b.r2, settings.ports.ranges, port, b.named("done"))
    b.label(port)
    only_own_netns(b, ctx, settings, "done")
    fill_socket_key(b, ctx, settings, key, reverse=False, other="done")
    both_here(b, key, "done")
    find_counters(b, settings, b.r9, "done")
    b.r1 = maps(settings).pending
    b.lea(b.r2, key)
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto("peer_not_enrolled")
    b.r8 = SocketNote(b.r0).incarnation
    b.r7 = SocketNote(b.r0).socket
    b.r1 = maps(settings).pending
    b.lea(b.r2, key)
    b.call(Helper.map_delete_elem)
    b.r2 = ctx.snd_nxt
    b.If(b.w8 != b.w2).goto("peer_not_enrolled")  # a note of an earlier connection that nobody has read
    write_note(b, note, b.r8)
    enrol(b, ctx, settings, key, note, peer=b.r7)
    count(b, counters.enrolled_passive)
    b.goto("tell_peer")

    # An enrolled socket sends a segment through the stack. With payload in it, there is no redirecting any
    # more: a call that had begun before the connection was established, as with TCP Fast Open, is not seen by
    # sk_msg.
    b.label("transmitted")
    b.r2 = ctx.skb_len  # at this point without headers
    b.If(b.r2 == 0).goto("done")
    b.r2 = ctx.sk
    b.If(b.r2 == 0).goto("done")
    b.r1 = maps(settings).socket_state
    b.r3 = 0
    b.r4 = 0
    b.call(Helper.sk_storage_get)
    b.If(b.r0 == 0).goto("done")
    SocketState(b.r0).native = 1
    b.ret(DONE)

    b.label("active")
    b.r2 = ctx.remote_port
    b.r2 = be32(b.r2)
    envoy = Label("envoys_port")
    match_ports(b, b.r2, settings.ports.ranges, envoy, b.named("done"))
    b.label(envoy)
    b.r7 = ctx.sk
    b.If(b.r7 == 0).goto("done")
    b.r2 = BpfSock(b.r7).mark
    if settings.mark.mask != 0xFFFFFFFF:
        b.w2 &= settings.mark.mask
    b.If(b.w2 != settings.mark.value).goto("done")
    only_own_netns(b, ctx, settings, "done")
    fill_socket_key(b, ctx, settings, key, reverse=False, other="done")
    both_here(b, key, "done")
    find_counters(b, settings, b.r9, "done")
    # Data that left with the SYN (TCP Fast Open) waits natively at the other end, and must not be overtaken.
    b.r2 = ctx.data_segs_out
    b.If(b.r2 != 0).goto("data_before_enrolment")
    b.r2 = ctx.rcv_nxt
    write_note(b, note, b.r2)
    enrol(b, ctx, settings, key, note, peer=None)
    count(b, counters.enrolled_active)

    b.label("tell_peer")
    fill_socket_key(b, ctx, settings, key, reverse=True, other="done")
    b.r1 = maps(settings).pending
    b.lea(b.r2, key)
    b.lea(b.r3, note)
    b.r4 = BPF_ANY
    b.call(Helper.map_update_elem)
    b.ret(DONE)

    for label, counter in (
        ("slot_taken", counters.slot_taken),
        ("data_before_enrolment", counters.data_before_enrolment),
        ("peer_not_enrolled", counters.peer_not_enrolled),
        ("failed", counters.failed),
    ):
        b.label(label)
        count(b, counter)
        b.ret(DONE)
    b.label("done")
    b.ret(DONE)


def both_here(b: Asm, key: SocketKey, elsewhere: str) -> None:
    """Go on where both ends of the connection are certainly on this host, else jump to *elsewhere*.

    That is so where both addresses are the same (the kernel's choice of source for a connection to an own
    address), or both in 127.0.0.0/8. Clobbers r2 and r3.
    """
    here, differ = Label("here"), Label("differ")
    for half in (0, 1):
        b.r2 = key.local.u64(half)
        b.r3 = key.remote.u64(half)
        b.If(b.r2 != b.r3).goto(differ)
    b.goto(here)
    b.label(differ)
    b.r2 = key.family
    b.If(b.r2 != AF_INET).goto(elsewhere)
    for address in (key.local, key.remote):
        b.r2 = address.u32(3)
        b.w2 &= be32(LOOPBACK_MASK)
        b.If(b.w2 != be32(LOOPBACK_NET)).goto(elsewhere)
    b.label(here)


def write_note(b: Asm, note: SocketNote, incarnation: Reg) -> None:
    """Begin the note that the socket will leave for its peer; `enrol` adds the socket's address."""
    note.incarnation = incarnation
    note.pad = 0


def enrol(
    b: Asm, ctx: SockOps, settings: Settings, key: SocketKey, note: SocketNote, *, peer: Reg | None
) -> None:
    """Put the context's socket into the sockhash, with its state beside it, and its address into *note*.

    *peer* has the address of the other end's socket where that is enrolled already. Never over another socket
    (BPF_NOEXIST): that one may hold bytes that nobody has read. The state comes first, because `sk_msg` takes
    a socket without state for a native one. From then on each segment that the socket sends through the stack
    is announced (HDR_OPT_LEN_CB); other programs' flags stay. Jumps to ``slot_taken`` or ``failed``.
    """
    enrolled = Label("enrolled")
    b.r2 = ctx.sk
    b.If(b.r2 == 0).goto("failed")
    if settings.reads_sockets:
        note.socket = b.r2
    else:  # nobody asks, and an older verifier lets no address out of a program
        note.socket = 0
    b.r1 = maps(settings).socket_state
    b.r3 = 0
    b.r4 = BPF_SK_STORAGE_GET_F_CREATE
    b.call(Helper.sk_storage_get)
    b.If(b.r0 == 0).goto("failed")
    state = SocketState(b.r0)
    b.r2 = note.incarnation
    state.incarnation = b.r2
    if peer is not None:
        state.peer = peer
        b.r2 = note.socket
        state.application = b.r2
        state.paired = 1
    else:
        state.paired = 0
    b.r1 = ctx
    b.r2 = maps(settings).sockets
    b.lea(b.r3, key)
    b.r4 = BPF_NOEXIST
    b.call(Helper.sock_hash_update)
    b.If(b.w0 == 0).goto(enrolled)
    b.If(b.w0 == -_EEXIST).goto("slot_taken")
    b.goto("failed")
    b.label(enrolled)
    b.r1 = ctx
    b.r2 = ctx.bpf_sock_ops_cb_flags
    b.r2 |= SockOpsFlag.WRITE_HDR_OPT_CB
    b.call(Helper.sock_ops_cb_flags_set)
