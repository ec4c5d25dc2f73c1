# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""ICMP errors: they quote the packet that they are about, and whom they concern is told by its ports.

Without a translation of these ports, path-MTU discovery would not work for redirected connections: a router's
"fragmentation needed" names the application's port, where the kernel knows no connection.
"""

from __future__ import annotations

from typing import Final, Literal

from programs.packet import MAX_TCP_OFFSET, NO_TCP, fill_key, header_length, skip_extensions
from programs.shared import FlowKey
from pybpfasm.asm import Asm, Mem, Reg
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import Helper
from pybpfasm.layout import Nested, Struct
from pybpfasm.net import (
    ICMP_DEST_UNREACH,
    ICMP_PARAMETERPROB,
    ICMP_REDIRECT,
    ICMP_SOURCE_QUENCH,
    ICMP_TIME_EXCEEDED,
    ICMPV6_DEST_UNREACH,
    ICMPV6_PARAMPROB,
    IPPROTO_TCP,
    Icmp,
    Ipv4,
    Ipv6,
    Tcp,
)

# Those that Linux hands to TCP (net/ipv4/icmp.c).
ICMP_ERRORS: Final = (
    ICMP_DEST_UNREACH,
    ICMP_SOURCE_QUENCH,
    ICMP_REDIRECT,
    ICMP_TIME_EXCEEDED,
    ICMP_PARAMETERPROB,
)


PORTS_SIZE: Final = 4  # of a TCP header both ports; at least 8 bytes of it are quoted (RFC 792)


class QuotingIpv4(Struct):
    """An ICMP error with the IPv4 header, less its options, that it quotes: 28 bytes."""

    icmp = Nested(Icmp)
    ip = Nested(Ipv4)


class QuotingIpv6(Struct):
    """An ICMPv6 error with the IPv6 header that it quotes: 48 bytes."""

    icmp = Nested(Icmp)
    ip = Nested(Ipv6)


def find_quoted(
    b: Asm,
    ctx: SkBuff,
    key: FlowKey,
    port: Mem,
    *,
    quoted: Literal["source", "dest"],
    client_is_source: bool,
) -> None:
    """Labels ``icmp`` and ``icmp6``: an ICMP header at offset r9. What does it say of which connection?

    Goes on with the offset of the quoted TCP header in r7, its *quoted* port in *port* and *key* filled;
    *client_is_source* says who sent the quoted packet. Jumps to ``other`` for what is no error, or quotes no
    TCP ports. The quoted TCP checksum, if there is one, is left as it is: nobody verifies it. Clobbers r0 to
    r5.
    """
    at = b.stack_bytes(QuotingIpv6.sizeof)
    tcp = b.stack(Tcp)

    b.label("icmp")
    error4 = QuotingIpv4(at)
    b.r7 = b.r9
    load_bytes(b, ctx, b.r7, error4, QuotingIpv4.sizeof)
    b.r2 = error4.icmp.type
    for number in ICMP_ERRORS:
        b.If(b.r2 == number).goto("icmp_error")
    b.goto("other")
    b.label("icmp_error")
    b.r2 = error4.ip.protocol
    b.If(b.r2 != IPPROTO_TCP).goto("other")
    header_length(b, error4.ip, b.r3, "other")
    b.r7 += Icmp.sizeof
    b.r7 += b.r3
    load_bytes(b, ctx, b.r7, tcp, PORTS_SIZE)
    fill_key(b, key, error4.ip, tcp, client_is_source=client_is_source)
    b.goto("quoted")

    b.label("icmp6")
    error6 = QuotingIpv6(at)
    b.r7 = b.r9
    load_bytes(b, ctx, b.r7, error6, QuotingIpv6.sizeof)
    b.r2 = error6.icmp.type
    b.If(b.r2 < ICMPV6_DEST_UNREACH).goto("other")
    b.If(b.r2 > ICMPV6_PARAMPROB).goto("other")
    b.r7 += QuotingIpv6.sizeof
    b.r3 = error6.ip.nexthdr
    with b.If(b.r3 != IPPROTO_TCP):
        b.r1 = ctx
        b.r2 = b.r7
        b.call(skip_extensions)
        b.If(b.r0 == NO_TCP).goto("other")
        b.If(b.r0 > MAX_TCP_OFFSET).goto("other")
        b.r7 = b.r0
    load_bytes(b, ctx, b.r7, tcp, PORTS_SIZE)
    fill_key(b, key, error6.ip, tcp, client_is_source=client_is_source)

    b.label("quoted")
    b.r2 = getattr(tcp, quoted)
    port.store(b.r2)


def load_bytes(b: Asm, ctx: SkBuff, offset: Reg, into: Struct, size: int) -> None:
    """Copy *size* bytes at *offset* of the packet to the stack; jumps to ``other`` where it ends before."""
    b.r1 = ctx
    b.r2 = offset
    b.lea(b.r3, into)
    b.r4 = size
    b.call(Helper.skb_load_bytes)
    b.If(b.r0 != 0).goto("other")
