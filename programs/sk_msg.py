# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""sk_msg: a message of an enrolled socket goes straight to its peer's receive queue."""

from __future__ import annotations

from programs.settings import Settings
from programs.shared import Counters, SocketKey, SocketNote, SocketState, count, find_counters, maps
from programs.socket import fill_socket_key
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkMsgMd
from pybpfasm.kernel.enums import BPF_F_INGRESS, Helper, SkAction
from pybpfasm.program import sk_msg as sk_msg_program


@sk_msg_program(name="pba_sk_msg")
def sk_msg(b: Asm, ctx: SkMsgMd, settings: Settings) -> None:
    """Redirect the message to the peer where that is certainly enrolled, and pass it in any case.

    A receiver reads redirected bytes before those that came through the stack. So a socket that has once sent
    through the stack never redirects again, or its later bytes could overtake the earlier ones. Where more
    than `Settings.queue_limit` bytes wait for the peer to read them, it goes that way: TCP's window then
    slows the sender.
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
        state.paired = 1
        b.r1 = maps(settings).pending
        b.lea(b.r2, key)
        b.call(Helper.map_delete_elem)

    if settings.queue_length_at:
        # Redirected bytes know no window: without this a peer that does not read would be sent to for ever.
        length = b.u32[b.stack_bytes(8)]
        b.lea(b.r1, length)
        b.r2 = length.size
        b.r3 = state.peer
        b.r3 += settings.queue_length_at
        b.call(Helper.probe_read_kernel)
        with b.If(b.r0 == 0):  # else the peer is gone, and redirecting will say so
            b.r2 = length
            b.If(b.w2 > settings.queue_limit).goto("queue_full")
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
