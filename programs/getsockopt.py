# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Cgroup/getsockopt: the answer to Envoy's SO_ORIGINAL_DST."""

from __future__ import annotations

from typing import Final

from programs.flow import flow_value
from programs.settings import Settings
from programs.shared import (
    V4_MAPPED,
    Counters,
    FlowKey,
    count,
    find_counters,
    maps,
    only_own_netns,
    store_v4_mapped,
)
from pybpfasm.asm import Asm, be32
from pybpfasm.kernel.context import BpfSock, SockOpt
from pybpfasm.kernel.enums import AttachType, Helper
from pybpfasm.layout import U16, U32, Array, Be16, Be32, Bytes, Struct
from pybpfasm.net import AF_INET, AF_INET6, IPPROTO_TCP
from pybpfasm.program import cgroup_sockopt

SOL_IP: Final = 0  # linux/socket.h
SOL_IPV6: Final = 41
SO_ORIGINAL_DST: Final = 80  # linux/netfilter_ipv4.h; IP6T_SO_ORIGINAL_DST has the same number

LINK_LOCAL_NET: Final = 0xFE800000  # fe80::/10, the first 32 bits (RFC 4291, section 2.5.6)
LINK_LOCAL_MASK: Final = 0xFFC00000

MAX_OFFSET: Final = 0xFFFF  # what the verifier lets be added to a pointer; more than any buffer here has
KEEP: Final = 1  # let the result stand, the kernel's own or the one set here


class SockaddrIn(Struct, kernel_name="sockaddr_in"):
    """``struct sockaddr_in``: 16 bytes."""

    sin_family = U16()
    sin_port = Be16()
    sin_addr = Be32()
    sin_zero = Bytes(8)


class SockaddrIn6(Struct, kernel_name="sockaddr_in6"):
    """``struct sockaddr_in6``: 28 bytes."""

    sin6_family = U16()
    sin6_port = Be16()
    sin6_flowinfo = Be32()
    sin6_addr = Array(Be32(), 4)
    sin6_scope_id = U32()


@cgroup_sockopt(AttachType.CGROUP_GETSOCKOPT, name="pba_getsockopt")
def getsockopt(b: Asm, ctx: SockOpt, settings: Settings) -> None:
    """Answer SO_ORIGINAL_DST for redirected connections; leave every other question as it is.

    An unknown connection keeps the kernel's own answer, with its errno. The address is the socket's local
    one, which the redirection does not change; the port comes from the flow.
    """
    key = b.stack(FlowKey)
    counters = Counters(b.r9).getsockopt

    b.r6 = ctx
    ctx = SockOpt(b.r6)
    b.r2 = ctx.optname
    b.If(b.w2 != SO_ORIGINAL_DST).goto("keep")
    b.r8 = ctx.level
    b.If((b.w8 != SOL_IP) & (b.w8 != SOL_IPV6)).goto("keep")
    b.r7 = ctx.sk
    b.If(b.r7 == 0).goto("keep")
    sk = BpfSock(b.r7)
    b.r2 = sk.protocol
    b.If(b.r2 != IPPROTO_TCP).goto("keep")
    only_own_netns(b, ctx, settings, "keep")
    b.r3 = sk.family
    b.If(b.w8 == SOL_IPV6).goto("ipv6")

    # IPv4, on an AF_INET socket or on an AF_INET6 one whose peer is v4-mapped.
    with b.If(b.r3 == AF_INET6):
        b.r2 = sk.dst_ip6[2]
        b.If(b.w2 != be32(V4_MAPPED)).goto("keep")
        for word in (0, 1):
            b.r2 = sk.dst_ip6[word]
            b.If(b.r2 != 0).goto("keep")
    with b.Elif(b.r3 != AF_INET):
        b.goto("keep")
    b.r2 = sk.dst_ip4
    store_v4_mapped(b, key.client, b.r2)
    b.r2 = sk.src_ip4
    store_v4_mapped(b, key.server, b.r2)
    key.family = AF_INET
    b.goto("look_up")

    b.label("ipv6")
    b.If(b.r3 != AF_INET6).goto("keep")
    for word in range(4):
        b.r2 = sk.dst_ip6[word]
        key.client.u32(word).store(b.r2)
        b.r2 = sk.src_ip6[word]
        key.server.u32(word).store(b.r2)
    key.family = AF_INET6

    b.label("look_up")
    b.r2 = sk.dst_port
    key.client_port = b.r2
    key.protocol = IPPROTO_TCP
    find_counters(b, settings, b.r9, "keep")
    b.r1 = maps(settings).flows
    b.lea(b.r2, key)
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto("unknown")
    b.r4 = flow_value(settings, b.r0).original_port
    b.r2 = ctx.optval
    b.r3 = ctx.optval_end
    b.If(b.w8 == SOL_IPV6).goto("answer6")

    address = SockaddrIn(b.r2)
    b.r5 = b.r2
    b.r5 += SockaddrIn.sizeof
    b.If(b.r5 > b.r3).goto("too_small")
    address.sin_family = AF_INET
    address.sin_port = b.r4
    b.r5 = key.server.u32(3)
    address.sin_addr = b.r5
    address.sin_zero.u32(0).store(0)
    address.sin_zero.u32(1).store(0)
    count(b, counters.answered_ipv4)
    b.r2 = SockaddrIn.sizeof
    b.goto("answered")

    b.label("answer6")
    address6 = SockaddrIn6(b.r2)
    b.r5 = b.r2
    b.r5 += SockaddrIn6.sizeof
    b.If(b.r5 > b.r3).goto("too_small")
    address6.sin6_family = AF_INET6
    address6.sin6_port = b.r4
    address6.sin6_flowinfo = 0
    for word in range(4):
        b.r5 = key.server.u32(word)
        address6.sin6_addr[word] = b.r5
    # A link-local address means something on its link only, which the kernel has bound the socket to.
    b.r4 = 0
    b.r5 = key.server.u32(0)
    b.w5 &= be32(LINK_LOCAL_MASK)
    with b.If(b.w5 == be32(LINK_LOCAL_NET)):
        b.r4 = sk.bound_dev_if
    address6.sin6_scope_id = b.r4
    count(b, counters.answered_ipv6)
    b.r2 = SockaddrIn6.sizeof

    b.label("answered")
    # Two stores: the verifier takes no 8-byte one over both fields.
    ctx.optlen = b.r2
    b.r2 = 0
    ctx.retval = b.r2
    b.ret(KEEP)

    b.label("unknown")
    count(b, counters.unknown_connection)
    b.goto("keep")
    b.label("too_small")
    count(b, counters.buffer_too_small)
    b.label("keep")
    # A length beyond the buffer, though the kernel has succeeded: some options do not count bytes
    # (SO_GET_FILTER counts instructions), and merely because a program is here the kernel would turn that
    # into EFAULT. A length of 0 means that the caller's buffer and length stay as the kernel left them. No
    # other length may be changed, because it may be another program's answer.
    b.r2 = ctx.retval
    b.If(b.w2 != 0).goto("kept")
    b.r4 = ctx.optlen
    with b.If(b.w4 <= MAX_OFFSET):
        b.r2 = ctx.optval
        b.r3 = ctx.optval_end
        b.r2 += b.r4
        b.If(b.r2 <= b.r3).goto("kept")
    b.r2 = 0
    ctx.optlen = b.r2
    b.label("kept")
    b.ret(KEEP)
