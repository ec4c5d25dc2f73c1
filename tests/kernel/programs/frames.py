# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Frames made by scapy, which computes every length and checksum from nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tests.kernel.programs.scapy_layers import IP, TCP, UDP, Ether, IPOption_NOP, IPv6, Raw

HOST_MAC = "00:00:00:00:00:00"  # of lo, on which a test run takes place
OTHER_MAC = "02:00:00:00:00:99"

CLIENT, SERVER = "10.0.0.20", "192.168.178.10"
CLIENT6, SERVER6 = "fd00:10::20", "fd00:192::10"

HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
TCP_PROTOCOL, UDP_PROTOCOL = 6, 17


@dataclass(frozen=True)
class Frame:
    """A recipe of a TCP segment in its headers; ``ext`` has (number, length beyond the smallest) pairs."""

    family: int = 4
    tags: tuple[int, ...] = ()
    options: int = 0
    """Of IPv4, in words of 4 bytes."""
    fragment: tuple[int, bool] = (0, False)
    """Of IPv4: offset in units of 8 bytes, and whether more follow."""
    ext: tuple[tuple[int, int], ...] = ()
    ext_fragment: tuple[int, bool] = (0, False)
    protocol: int = TCP_PROTOCOL
    sport: int = 40000
    dport: int = 8000
    seq: int = 1000
    ack: int = 1001
    """What a client sends after a SYN-ACK with the default ``seq``."""
    flags: int = 2
    tcp_options: int = 0
    payload: bytes = b""
    mac: str = HOST_MAC
    client: str = ""
    server: str = ""

    def but(self, **changes: Any) -> Frame:
        """The same with changes."""
        return replace(self, **changes)

    def answer(self, **changes: Any) -> Frame:
        """What comes back: addresses and ports changed over."""
        client, server = self.addresses
        turned = replace(self, client=server, server=client, sport=self.dport, dport=self.sport)
        return replace(turned, **changes)

    @property
    def addresses(self) -> tuple[str, str]:
        """Source and destination."""
        v4 = self.family == 4
        return self.client or (CLIENT if v4 else CLIENT6), self.server or (SERVER if v4 else SERVER6)

    def packet(self) -> bytes:
        """The packet without a link header."""
        source, destination = self.addresses
        segment: Any
        if self.protocol == TCP_PROTOCOL:
            segment = TCP(
                sport=self.sport,
                dport=self.dport,
                seq=self.seq,
                ack=self.ack,
                flags=self.flags,
                options=[("NOP", None)] * 4 * self.tcp_options,
            )
        else:
            segment = UDP(sport=self.sport, dport=self.dport)
        if self.family == 4:
            whole = bytes(IP(src=source, dst=destination) / segment / Raw(self.payload))
            ip = IP(
                src=source,
                dst=destination,
                proto=self.protocol,
                options=[IPOption_NOP()] * 4 * self.options,
                frag=self.fragment[0],
                flags="MF" if self.fragment[1] else "DF",
            )
            return bytes(ip / Raw(whole[20:]))
        upper = bytes(IPv6(src=source, dst=destination) / segment / Raw(self.payload))[40:]
        following = self.protocol
        for number, length in reversed(self.ext):
            upper = self._extension(number, length, following) + upper
            following = number
        return bytes(IPv6(src=source, dst=destination, nh=following) / Raw(upper))

    def _extension(self, number: int, length: int, following: int) -> bytes:
        if number == FRAGMENT:
            offset, more = self.ext_fragment
            return bytes([following, 0]) + (offset << 3 | more).to_bytes(2, "big") + bytes(4)
        if number == AH:  # its length counts words of 4 bytes, less 2 (RFC 4302, section 2.2)
            return bytes([following, 1 + length]) + bytes(10 + 4 * length)
        if number == ROUTING:
            return bytes([following, length]) + bytes(6 + 8 * length)
        # One option that receivers skip if they don't know it: the stack takes but little padding.
        return bytes([following, length, 0x1E, 4 + 8 * length]) + bytes(4 + 8 * length)

    def bytes(self) -> bytes:
        """The frame with its link header."""
        types = [*self.tags, 0x0800 if self.family == 4 else 0x86DD]
        tags = b"".join((100).to_bytes(2, "big") + kind.to_bytes(2, "big") for kind in types[1:])
        header = bytes(Ether(src=OTHER_MAC, dst=self.mac, type=types[0]))
        return header + tags + self.packet()


def same(one: bytes, other: bytes, check: int) -> bool:
    """Whether two frames are equal; the checksum at byte *check* may be either form of 0."""
    if one == other:
        return True
    zeros = (b"\0\0", b"\xff\xff")
    return (
        one[:check] == other[:check]
        and one[check + 2 :] == other[check + 2 :]
        and one[check : check + 2] in zeros
        and other[check : check + 2] in zeros
    )


def parse(frame: bytes) -> Any:
    """The frame as scapy reads it."""
    return Ether(frame)


def checksums(frame: bytes) -> bool:
    """Whether the IP and TCP checksums of a whole frame are what scapy computes anew."""
    read = Ether(frame)
    again = Ether(frame)
    for layer in (IP, TCP):
        if layer in again:
            del again[layer].chksum
    made = Ether(bytes(again))
    return all(read[layer].chksum == made[layer].chksum for layer in (IP, TCP) if layer in read)
