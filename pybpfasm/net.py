# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Layouts of packet headers, and the numbers that go with them."""

from __future__ import annotations

from typing import Final

from pybpfasm.layout import U8, Array, Be16, Be32, Bytes, Struct

# EtherTypes, linux/if_ether.h.
ETH_P_IP: Final = 0x0800
ETH_P_IPV6: Final = 0x86DD
ETH_P_8021Q: Final = 0x8100
ETH_P_8021AD: Final = 0x88A8

# Address families, linux/socket.h.
AF_INET: Final = 2
AF_INET6: Final = 10

# IP protocols and IPv6 extension headers, linux/in.h and net/ipv6.h.
IPPROTO_HOPOPTS: Final = 0
IPPROTO_ICMP: Final = 1
IPPROTO_TCP: Final = 6
IPPROTO_UDP: Final = 17
IPPROTO_ROUTING: Final = 43
IPPROTO_FRAGMENT: Final = 44
IPPROTO_AH: Final = 51
IPPROTO_ICMPV6: Final = 58
IPPROTO_DSTOPTS: Final = 60
IPPROTO_MH: Final = 135

# Types of ICMP errors (linux/icmp.h) and of the first and last of ICMPv6 (linux/icmpv6.h).
ICMP_DEST_UNREACH: Final = 3
ICMP_SOURCE_QUENCH: Final = 4
ICMP_REDIRECT: Final = 5
ICMP_TIME_EXCEEDED: Final = 11
ICMP_PARAMETERPROB: Final = 12
ICMPV6_DEST_UNREACH: Final = 1
ICMPV6_PARAMPROB: Final = 4

# The low 13 bits of Ipv4.frag_off: the fragment's offset in units of 8 bytes.
IP_OFFSET: Final = 0x1FFF

# Tcp.flags.
TCP_FIN: Final = 0x01
TCP_SYN: Final = 0x02
TCP_RST: Final = 0x04
TCP_PSH: Final = 0x08
TCP_ACK: Final = 0x10


class Ethernet(Struct, kernel_name="ethhdr"):
    """``struct ethhdr``: 14 bytes."""

    h_dest = Bytes(6)
    h_source = Bytes(6)
    h_proto = Be16()


class Vlan(Struct, kernel_name="vlan_hdr"):
    """``struct vlan_hdr``: the 4 bytes between a tag's EtherType and the next header."""

    h_vlan_TCI = Be16()
    h_vlan_encapsulated_proto = Be16()


class Ipv4(Struct, kernel_name="iphdr"):
    """``struct iphdr`` without options: 20 bytes.

    ``ihl_version`` holds both 4-bit fields.
    """

    ihl_version = U8()
    tos = U8()
    tot_len = Be16()
    id = Be16()
    frag_off = Be16()
    ttl = U8()
    protocol = U8()
    check = Be16()
    saddr = Be32()
    daddr = Be32()


class Ipv6(Struct, kernel_name="ipv6hdr"):
    """``struct ipv6hdr``: 40 bytes."""

    priority_version = U8()
    flow_lbl = Bytes(3)
    payload_len = Be16()
    nexthdr = U8()
    hop_limit = U8()
    saddr = Array(Be32(), 4)
    daddr = Array(Be32(), 4)


class Ipv6Option(Struct, kernel_name="ipv6_opt_hdr"):
    """``struct ipv6_opt_hdr``: the first 2 bytes of most extension headers; ``hdrlen`` excludes the first 8
    bytes."""

    nexthdr = U8()
    hdrlen = U8()


class Ipv6Fragment(Struct, kernel_name="frag_hdr"):
    """``struct frag_hdr``: 8 bytes.

    The high 13 bits of ``frag_off`` are the offset in units of 8 bytes.
    """

    nexthdr = U8()
    reserved = U8()
    frag_off = Be16()
    identification = Be32()


class Icmp(Struct, kernel_name="icmphdr"):
    """``struct icmphdr``, and ``icmp6hdr``, which is laid out like it: 8 bytes.

    In an error the packet that it is about follows.
    """

    type = U8()
    code = U8()
    checksum = Be16()
    un = Bytes(4)


class Tcp(Struct, kernel_name="tcphdr"):
    """``struct tcphdr`` without options: 20 bytes.

    ``doff`` holds the data offset in its high 4 bits.
    """

    source = Be16()
    dest = Be16()
    seq = Be32()
    ack_seq = Be32()
    doff = U8()
    flags = U8()
    window = Be16()
    check = Be16()
    urg_ptr = Be16()


class Udp(Struct, kernel_name="udphdr"):
    """``struct udphdr``: 8 bytes; ``len`` is that of header and payload in bytes."""

    source = Be16()
    dest = Be16()
    len = Be16()
    check = Be16()
