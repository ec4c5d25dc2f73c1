# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What `sockops` and `sk_msg` have in common: the key of a connected socket."""

from __future__ import annotations

from programs.settings import Settings
from programs.shared import V4_MAPPED, SocketKey, store_v4_mapped
from pybpfasm.asm import Asm, Label, be32
from pybpfasm.kernel.context import SkMsgMd, SockOps
from pybpfasm.kernel.enums import Helper
from pybpfasm.net import AF_INET, AF_INET6


def fill_socket_key(
    b: Asm, ctx: SockOps | SkMsgMd, settings: Settings, key: SocketKey, *, reverse: bool, other: str
) -> None:
    """*key* = the context's socket as its owner sees it or, with *reverse*, as its peer does.

    An AF_INET6 socket with a v4-mapped peer gets the key of an IPv4 one, because its peer may be that. Jumps
    to *other* for another address family. Clobbers r0 to r5.
    """
    local, remote = (key.remote, key.local) if reverse else (key.local, key.remote)
    ipv4, filled = Label("ipv4"), Label("filled")
    if settings.netns_cookie:
        b.r1 = ctx
        b.call(Helper.get_netns_cookie)
        key.netns_cookie = b.r0
    else:
        key.netns_cookie = 0
    key.pad = 0
    b.r2 = ctx.local_port
    b.r3 = ctx.remote_port
    b.r3 = be32(b.r3)
    if reverse:
        key.remote_port = b.r2
        key.local_port = b.r3
    else:
        key.local_port = b.r2
        key.remote_port = b.r3
    b.r2 = ctx.family
    b.If(b.r2 == AF_INET).goto(ipv4)
    b.If(b.r2 != AF_INET6).goto(other)
    for word in range(4):
        b.r2 = ctx.remote_ip6[word]
        remote.u32(word).store(b.r2)
    for word in range(4):
        b.r2 = ctx.local_ip6[word]
        local.u32(word).store(b.r2)
    key.family = AF_INET6
    b.r2 = remote.u64(0)
    b.r3 = remote.u32(2)
    with b.If((b.r2 != 0) | (b.w3 != be32(V4_MAPPED))):
        b.goto(filled)
    key.family = AF_INET
    b.goto(filled)

    b.label(ipv4)
    key.family = AF_INET
    b.r2 = ctx.local_ip4
    store_v4_mapped(b, local, b.r2)
    b.r2 = ctx.remote_ip4
    store_v4_mapped(b, remote, b.r2)
    b.label(filled)
