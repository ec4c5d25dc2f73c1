# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the two TC programs have in common: finding the TCP header, a flow's key, rewriting a port."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from programs.shared import FlowKey, store_v4_mapped
from pybpfasm.asm import Asm, Mem, Reg, be16
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import Helper
from pybpfasm.net import (
    AF_INET,
    AF_INET6,
    ETH_P_8021AD,
    ETH_P_8021Q,
    ETH_P_IP,
    ETH_P_IPV6,
    IP_OFFSET,
    IPPROTO_AH,
    IPPROTO_DSTOPTS,
    IPPROTO_FRAGMENT,
    IPPROTO_HOPOPTS,
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPPROTO_ROUTING,
    IPPROTO_TCP,
    Ethernet,
    Ipv4,
    Ipv6,
    Ipv6Fragment,
    Ipv6Option,
    Tcp,
    Vlan,
)
from pybpfasm.program import global_function

PACKET_HOST: Final = 0  # linux/if_packet.h: addressed to this host

# What is made linear when headers lie outside the linear part of a packet.
PULL_BYTES: Final = 512
# Tags beyond the one that the kernel keeps outside the packet.
MAX_VLAN_TAGS: Final = 2
MAX_EXTENSION_HEADERS: Final = 6

# Results of skip_extensions that are no offsets.
NO_TCP: Final = 0
UNREADABLE: Final = -1
MAX_TCP_OFFSET: Final = 0x7FFF  # six headers of 2048 bytes, and one bound that the verifier sees

# The offset within Ipv6Fragment.frag_off, which the three lowest bits are no part of.
_IPV6_FRAGMENT_OFFSET: Final = 0xFFF8


@dataclass(frozen=True, slots=True)
class Interface:
    """What the programs must know of the interface that they are attached to.

    ``link_header`` is false where packets begin with the IP header (tun, WireGuard); ``loopback`` is true for
    ``lo``.
    """

    link_header: bool = True
    loopback: bool = False


def within(b: Asm, pointer: Reg, size: int) -> None:
    """Jump to ``short`` unless *size* bytes at *pointer* lie before r8, the end of the linear part.

    Clobbers r2.
    """
    b.r2 = pointer
    b.r2 += size
    b.If(b.r2 > b.r8).goto("short")


def find_tcp(b: Asm, ctx: SkBuff, interface: Interface, on_tcp: Callable[[Ipv4 | Ipv6], None]) -> None:
    """Find the TCP header, behind VLAN tags, IP options and IPv6 extension headers.

    Then runs *on_tcp* once for each family: it is given the IP header, at r7; r5 points to a whole TCP
    header, r8 to the end of the linear part, and r9 is the TCP header's offset in the packet. Jumps
    to ``other`` for what is not TCP or has no TCP header (a later fragment), and to ``malformed`` for a
    header that is cut off or lies behind more extension headers than are looked through. ICMP jumps to
    ``icmp`` or, unless it is behind extension headers, to ``icmp6``, with its offset in r9.
    """
    pulled = b.u64[b.stack_bytes(8)]
    pulled.store(0)

    b.label("parse")
    b.r7 = ctx.data
    b.r8 = ctx.data_end
    b.r9 = Ethernet.sizeof if interface.link_header else 0
    b.r2 = ctx.protocol
    b.If(b.r2 == be16(ETH_P_IP)).goto("ipv4")
    b.If(b.r2 == be16(ETH_P_IPV6)).goto("ipv6")
    if interface.link_header:
        for _ in range(MAX_VLAN_TAGS):
            with b.If((b.r2 != be16(ETH_P_8021Q)) & (b.r2 != be16(ETH_P_8021AD))):
                b.goto("other")
            b.r3 = b.r7
            b.r3 += b.r9
            within(b, b.r3, Vlan.sizeof)
            b.r2 = Vlan(b.r3).h_vlan_encapsulated_proto
            b.r9 += Vlan.sizeof
            b.If(b.r2 == be16(ETH_P_IP)).goto("ipv4")
            b.If(b.r2 == be16(ETH_P_IPV6)).goto("ipv6")
    b.goto("other")

    b.label("short")
    # Once: bring the headers into the linear part, and begin anew, because every packet pointer is void now.
    b.r2 = pulled
    b.If(b.r2 != 0).goto("malformed")
    pulled.store(1)
    b.r2 = ctx.len
    with b.If(b.r2 > PULL_BYTES):
        b.r2 = PULL_BYTES
    b.r1 = ctx
    b.call(Helper.skb_pull_data)
    b.If(b.r0 != 0).goto("malformed")
    b.goto("parse")

    b.label("ipv4")
    b.r7 += b.r9
    within(b, b.r7, Ipv4.sizeof)
    ip = Ipv4(b.r7)
    b.r3 = ip.protocol
    with b.If((b.r3 != IPPROTO_TCP) & (b.r3 != IPPROTO_ICMP)):
        b.goto("other")
    header_length(b, ip, b.r4, "other")
    b.r9 += b.r4
    b.If(b.r3 == IPPROTO_ICMP).goto("icmp")
    b.r5 = b.r7
    b.r5 += b.r4
    within(b, b.r5, Tcp.sizeof)
    on_tcp(ip)

    b.label("ipv6")
    b.r7 += b.r9
    within(b, b.r7, Ipv6.sizeof)
    b.r3 = Ipv6(b.r7).nexthdr
    b.r9 += Ipv6.sizeof
    b.If(b.r3 == IPPROTO_ICMPV6).goto("icmp6")
    with b.If(b.r3 != IPPROTO_TCP):
        b.r1 = ctx
        b.r2 = b.r9
        b.call(skip_extensions)
        b.If(b.r0 == NO_TCP).goto("other")
        b.If(b.r0 > MAX_TCP_OFFSET).goto("malformed")
        b.r9 = b.r0
    b.r5 = ctx.data
    b.r5 += b.r9
    within(b, b.r5, Tcp.sizeof)
    on_tcp(Ipv6(b.r7))


def header_length(b: Asm, ip: Ipv4, into: Reg, label: str) -> None:
    """*into* = the length of an IPv4 header in bytes.

    Jumps to *label* for a later fragment, and for a length that no header has. Clobbers r2.
    """
    b.r2 = ip.frag_off
    b.If(b.r2 & be16(IP_OFFSET)).goto(label)
    setattr(b, into.name, ip.ihl_version)
    into &= 0x0F
    into <<= 2
    b.If(into < Ipv4.sizeof).goto(label)  # the stack discards these


@global_function(SkBuff, "offset", "next_header")
def skip_extensions(b: Asm) -> None:
    """Walk the IPv6 extension headers from *offset* in the packet, the first of which is a *next_header*.

    Returns the offset of the TCP header; `NO_TCP` where none follows, or the packet is a later fragment; and
    `UNREADABLE` for a header that is cut off, or more of them than are looked through. It is global:
    otherwise the verifier would follow every combination of headers through all of its caller.
    """
    header = b.stack_bytes(8)
    option, fragment = Ipv6Option(header), Ipv6Fragment(header)

    b.r6 = b.r1
    b.r7 = b.r2
    b.r8 = b.r3
    b.r9 = MAX_EXTENSION_HEADERS
    with b.Loop():
        with b.If(b.r8 == IPPROTO_TCP):
            b.ret(b.r7)
        for number in (IPPROTO_HOPOPTS, IPPROTO_ROUTING, IPPROTO_DSTOPTS, IPPROTO_FRAGMENT):
            b.If(b.r8 == number).goto("extension")
        b.If(b.r8 == IPPROTO_AH).goto("extension")
        b.ret(NO_TCP)

        b.label("extension")
        b.If(b.r9 == 0).goto("unreadable")
        b.r9 -= 1
        b.r1 = b.r6
        b.r2 = b.r7
        b.lea(b.r3, header)
        b.r4 = Ipv6Fragment.sizeof  # every one of them is at least as long
        b.call(Helper.skb_load_bytes)
        b.If(b.r0 != 0).goto("unreadable")
        b.r3 = b.r8
        b.r8 = option.nexthdr
        b.r2 = option.hdrlen
        with b.If(b.r3 == IPPROTO_FRAGMENT):
            b.r2 = fragment.frag_off
            b.If(b.r2 & be16(_IPV6_FRAGMENT_OFFSET)).goto("later_fragment")
            b.r2 = Ipv6Fragment.sizeof
        with b.Elif(b.r3 == IPPROTO_AH):
            b.r2 += 2
            b.r2 <<= 2
        with b.Else():
            b.r2 += 1
            b.r2 <<= 3
        b.r7 += b.r2

    b.label("later_fragment")
    b.ret(NO_TCP)
    b.label("unreadable")
    b.ret(UNREADABLE)


def fill_key(b: Asm, key: FlowKey, ip: Ipv4 | Ipv6, tcp: Tcp, *, client_is_source: bool) -> None:
    """The flow's key, from the headers of a packet to or from its client.

    Of the TCP header only the ports are read. Clobbers r2.
    """
    source, destination = (key.client, key.server) if client_is_source else (key.server, key.client)
    if isinstance(ip, Ipv4):
        b.r2 = ip.saddr
        store_v4_mapped(b, source, b.r2)
        b.r2 = ip.daddr
        store_v4_mapped(b, destination, b.r2)
    else:
        for word in range(4):
            b.r2 = ip.saddr[word]
            source.u32(word).store(b.r2)
            b.r2 = ip.daddr[word]
            destination.u32(word).store(b.r2)
    b.r2 = tcp.source if client_is_source else tcp.dest
    key.client_port = b.r2
    key.protocol = IPPROTO_TCP
    key.family = AF_INET if isinstance(ip, Ipv4) else AF_INET6


def rewrite_port(
    b: Asm, ctx: SkBuff, check: tuple[Reg, int], port: tuple[Reg, int], old: Mem, new: Mem, failed: str
) -> None:
    """Replace the port at offset *port* of the packet, and correct the checksum at offset *check* for it.

    Offsets are a register, of those that outlast calls, and a number of bytes. *old* and *new* are 2 bytes of
    stack with the ports in network order. The checksum goes first: if that fails, nothing has changed. Every
    packet pointer is void afterwards.
    """
    b.r1 = ctx
    b.r2 = check[0]
    b.r2 += check[1]
    b.r3 = old
    b.r4 = new
    b.r5 = 2  # bytes; no BPF_F_PSEUDO_HDR: ports are not in the pseudo header
    b.call(Helper.l4_csum_replace)
    b.If(b.r0 != 0).goto(failed)
    b.r1 = ctx
    b.r2 = port[0]
    if port[1]:
        b.r2 += port[1]
    b.lea(b.r3, new)
    b.r4 = 2
    b.r5 = 0
    b.call(Helper.skb_store_bytes)
    b.If(b.r0 != 0).goto(failed)
