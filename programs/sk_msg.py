# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""sk_msg: a message of an enrolled socket goes straight to its peer's receive queue."""

from __future__ import annotations

from typing import Final

from programs.settings import Settings
from programs.shared import Counters, SocketKey, SocketNote, SocketState, count, find_counters, maps
from programs.socket import fill_socket_key
from pybpfasm.asm import Asm, Mem
from pybpfasm.kernel.context import SkMsgMd
from pybpfasm.kernel.enums import BPF_F_INGRESS, Helper, SkAction
from pybpfasm.program import sk_msg as sk_msg_program

SMALLEST_BUFFER: Final = 1024  # about half of what the kernel gives at least: SOCK_MIN_RCVBUF


@sk_msg_program(name="pba_sk_msg")
def sk_msg(b: Asm, ctx: SkMsgMd, settings: Settings) -> None:
    """Redirect the message to the peer where that is certainly enrolled, and pass it in any case.

    A receiver reads redirected bytes before those that came through the stack. So a socket that has once sent
    through the stack never redirects again, or its later bytes could overtake the earlier ones. Where too
    much waits for the peer to read it, it goes that way: TCP's window then slows the sender.
    """
    key = b.stack(SocketKey)
    counters = Counters(b.r9).sk_msg

    b.r6 = ctx
    ctx = SkMsgMd(b.r6)
    b.r1 = maps(settings).socket_state
    b.r2 = ctx.sk
    b.r3 = 0
    b.r4 = 0
    b.call(Helper.sk_storage_get)
    b.If(b.r0 == 0).goto("pass")
    b.r7 = b.r0
    state = SocketState(b.r7)
    find_counters(b, settings, b.r9, "pass")
    b.r2 = state.native
    b.If(b.r2 != 0).goto("native")

    b.r2 = state.paired
    with b.If(b.r2 == 0):
        # The first message of Envoy's end: has the application's end of this very connection left its note?
        fill_socket_key(b, ctx, settings, key, reverse=False, other="no_peer")
        b.r1 = maps(settings).pending
        b.lea(b.r2, key)
        b.call(Helper.map_lookup_elem)
        b.If(b.r0 == 0).goto("no_peer")
        note = SocketNote(b.r0)
        b.r2 = note.incarnation
        b.r3 = state.incarnation
        b.If(b.w2 != b.w3).goto("no_peer")
        b.r2 = note.socket
        state.peer = b.r2
        state.application = b.r2
        state.paired = 1
        b.r1 = maps(settings).pending
        b.lea(b.r2, key)
        b.call(Helper.map_delete_elem)

    if settings.ulp_at:
        look_at_ulp(b, settings, state)
        b.label("plain")
    if settings.queue_length_at:
        look_at_queue(b, ctx, settings, state)
        b.label("room")
    fill_socket_key(b, ctx, settings, key, reverse=True, other="native")
    b.r1 = ctx
    b.r2 = maps(settings).sockets
    b.lea(b.r3, key)
    b.r4 = BPF_F_INGRESS
    b.call(Helper.msg_redirect_hash)
    b.If(b.w0 != SkAction.PASS).goto("no_peer")
    count(b, counters.redirected_messages)
    b.r2 = ctx.size
    count(b, counters.redirected_bytes, b.r2)
    b.ret(SkAction.PASS)

    if settings.ulp_at:
        b.label("encrypted")
        count(b, counters.encrypted)
        b.goto("no_peer")
    if settings.queue_length_at:
        b.label("queue_full")
        count(b, counters.queue_full)
    b.label("no_peer")
    state.native = 1
    b.label("native")
    count(b, counters.native_messages)
    b.r2 = ctx.size
    count(b, counters.native_bytes, b.r2)
    b.label("pass")
    b.ret(SkAction.PASS)


def read_socket(b: Asm, into: Mem, address: Mem, offset: int, failed: str) -> None:
    """*into*, on the stack, = what ``struct sock`` at *address* has at *offset*.

    Jumps to *failed* where there is nothing any more. Clobbers r0 to r5.
    """
    b.lea(b.r1, into)
    b.r2 = into.size
    b.r3 = address
    b.r3 += offset
    b.call(Helper.probe_read_kernel)
    b.If(b.r0 != 0).goto(failed)


def look_at_ulp(b: Asm, settings: Settings, state: SocketState) -> None:
    """Jump to ``encrypted`` where the application has put a protocol upon its socket, kernel TLS that is.

    What it sends passes here before it is encrypted, and what it is sent would reach it without being
    decrypted: only the stack does both. Jumps to ``plain`` where the application is gone.
    """
    word = b.u64[b.stack_bytes(8)]
    read_socket(b, word, state.application, settings.ulp_at, "plain")
    b.r2 = word
    b.If(b.r2 != 0).goto("encrypted")


def look_at_queue(b: Asm, ctx: SkMsgMd, settings: Settings, state: SocketState) -> None:
    """Jump to ``queue_full`` where the message would make more wait for the peer than may.

    Redirected bytes know no window: without this a peer that does not read would be sent to for ever. What
    TCP has advertised of its window before must still find room behind them, or it would be dropped and come
    again only when the sender's timer, with its growing patience, sends it once more. So a receive buffer
    that SO_RCVBUF has set, and that TCP does not enlarge therefore, is filled up to the half. Jumps to
    ``room`` where the peer is gone: redirecting will say so. Clobbers r8.
    """
    word = b.stack_bytes(8)
    read_socket(b, b.u32[word], state.peer, settings.queue_length_at, "room")
    b.r8 = b.u32[word]
    b.r2 = ctx.size
    b.r8 += b.r2
    b.If(b.r8 > settings.queue_limit).goto("queue_full")
    b.If(b.r8 <= SMALLEST_BUFFER).goto("room")
    read_socket(b, b.u8[word], state.peer, settings.buffer_locks_at, "room")
    b.r2 = b.u8[word]
    b.If(~(b.r2 & settings.receive_buffer_lock)).goto("room")
    read_socket(b, b.u32[word], state.peer, settings.receive_buffer_at, "room")
    b.r2 = b.u32[word]
    b.r2 >>= 1
    b.If(b.r8 > b.r2).goto("queue_full")
