# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The playground's packet parser and the application's byte pattern."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6

pytest.importorskip("fcntl", reason="the loader is for Linux")

from loader.application import pattern
from loader.playground import Packet, parse_tcp


def test_ipv4() -> None:
    data = bytes(
        IP(src="10.0.0.20", dst="192.168.178.10") / TCP(sport=4000, dport=8000, flags="S") / b"payload"
    )
    packet = parse_tcp(data, outgoing=True)
    assert packet == Packet("10.0.0.20", 4000, "192.168.178.10", 8000, 0x02, True)
    assert (packet.remote, packet.remote_port) == ("192.168.178.10", 8000)


def test_ipv4_options_move_the_tcp_header() -> None:
    from scapy.layers.inet import IPOption_NOP

    data = bytes(
        IP(src="1.2.3.4", dst="5.6.7.8", options=[IPOption_NOP()] * 8) / TCP(sport=1, dport=2, flags="FA")
    )
    assert data[0] & 15 == 7
    assert parse_tcp(data, outgoing=False) == Packet("1.2.3.4", 1, "5.6.7.8", 2, 0x11, False)


def test_ipv6_incoming() -> None:
    data = bytes(IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=8000, dport=50000, flags="SA"))
    packet = parse_tcp(data, outgoing=False)
    assert packet == Packet("fd00::1", 8000, "fd00::2", 50000, 0x12, False)
    assert (packet.remote, packet.remote_port) == ("fd00::1", 8000)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45",
        b"\x00" * 60,
        bytes(IP() / UDP()),
        bytes(IPv6() / UDP()),
        bytes(IP() / TCP())[:33],
        bytes(IPv6() / TCP())[:53],
    ],
    ids=["empty", "one byte", "version 0", "udp", "udp6", "short", "short6"],
)
def test_what_is_no_tcp_packet(data: bytes) -> None:
    assert parse_tcp(data, outgoing=True) is None


def test_pattern() -> None:
    assert len(pattern(b"a", 1000)) == 1000
    assert pattern(b"a", 1000)[:10] == pattern(b"a", 10)
    assert pattern(b"a", 100) != pattern(b"b", 100)
