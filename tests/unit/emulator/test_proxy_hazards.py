# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""More hazards of docs/hazards.md on the model host: those of parsing, of changes under way, of queues.

`test_proxy` has A1, A2, A5, A7, A9, A10, B1 to B5, C1 to C4 and C10. What the emulator cannot express is what
the kernel does with sockets, and not what programs do: C7 (FIONREAD), C8 (splice, MSG_*), C9 (errno values of
a socket whose peer has closed) and C12 (the kernel's own mistakes).
"""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    PadN,
)
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from pybpfasm.emulator import Run, Skb, SockOptContext
from pybpfasm.kernel.defines import SO_ORIGINAL_DST, SOL_IP
from pybpfasm.kernel.enums import Helper
from tests.unit.emulator.proxy import CLIENT, ENVOY_PORT, SERVER, Proxy, Session, pump

V4 = IP(src=CLIENT[4], dst=SERVER[4])
V6 = IPv6(src=CLIENT[6], dst=SERVER[6])


def echo(session: Session, data: bytes = b"question") -> None:
    session.client.send(data)
    pump(session)
    assert session.application.read() == data
    session.application.send(data)
    pump(session)
    assert session.client.read() == data


# A2
def test_programs_are_replaced_under_a_connection() -> None:
    """What a second `up` does: new programs on the same maps, and old connections go on."""
    proxy = Proxy()
    session = proxy.session()
    emulator, server = proxy.emulator, proxy.server
    server.interfaces["eth0"].ingress = [emulator.load(proxy.ingress.spec)]
    server.interfaces["eth0"].egress = [emulator.load(proxy.egress.spec)]
    echo(session)
    echo(proxy.session())


# A3
@pytest.mark.parametrize(("destination", "forwarded"), [("10.9.0.1", True), (SERVER[4], False)])
def test_a_packet_for_another_host_is_left_alone(destination: str, forwarded: bool) -> None:
    proxy = Proxy()
    routes = proxy.emulator.routes
    routes.forwarding = True
    routes.add("10.9.0.0/16", ifindex=3, neighbour=bytes(6))
    routes.add("10.0.0.2/32", "local")
    packet = bytes(Ether(type=0x800) / IP(src=CLIENT[4], dst=destination) / TCP(dport=8000, flags="S"))
    result = proxy.ingress.run(Skb(packet, ifindex=2))
    assert (result.packet == packet) is forwarded
    assert proxy.counters.ingress.passed_forwarded == int(forwarded)


# A4
@pytest.mark.parametrize("linear", [14, 20, 34, 53])
@pytest.mark.parametrize("family", [4, 6])
def test_headers_outside_the_linear_part(family: int, linear: int) -> None:
    proxy = Proxy()
    for interface in proxy.server.interfaces.values():
        interface.linear = linear
    echo(proxy.session(8000, family))
    assert proxy.counters.ingress.dropped_malformed == 0


# A6: scapy writes the packet twice, with the port that the client chose and with Envoy's.
_PAD = [PadN(optdata=b"\0\0\0\0")]
_CHAINS: dict[str, Packet] = {
    "plain": V4,
    "plain6": V6,
    "options": IP(src=CLIENT[4], dst=SERVER[4], options=[IPOption_NOP()] * 4),
    "all options": IP(src=CLIENT[4], dst=SERVER[4], options=[IPOption_NOP()] * 40),
    "vlan": Dot1Q(vlan=5) / V4,
    "two vlans": Dot1AD(vlan=5) / Dot1Q(vlan=6) / V6,
    "hop by hop": V6 / IPv6ExtHdrHopByHop(options=_PAD),
    "destination": V6 / IPv6ExtHdrHopByHop(options=_PAD) / IPv6ExtHdrDestOpt(options=_PAD),
    "first fragment": IP(src=CLIENT[4], dst=SERVER[4], flags="MF"),
    "first fragment 6": V6 / IPv6ExtHdrFragment(m=1, offset=0),
}


def _frame(chain: Packet, port: int, payload: bytes = b"x" * 16) -> bytes:
    return bytes(
        Ether(src="02:00:00:00:00:01") / chain / TCP(sport=4000, dport=port, flags="S") / Raw(payload)
    )


@pytest.mark.parametrize("which", _CHAINS)
def test_every_chain_of_headers(which: str) -> None:
    proxy = Proxy()
    result = proxy.ingress.run(Skb(_frame(_CHAINS[which], 8000), ifindex=2))
    assert result.action == -1
    assert result.packet == _frame(_CHAINS[which], ENVOY_PORT)
    other = _frame(_CHAINS[which], 9000)
    assert proxy.ingress.run(Skb(other, ifindex=2)).packet == other


def test_what_has_no_ports_passes_and_what_is_cut_off_does_not() -> None:
    proxy = Proxy()
    later = bytes(Ether() / IP(src=CLIENT[4], dst=SERVER[4], frag=10, proto=6) / Raw(bytes(40)))
    assert proxy.ingress.run(Skb(later, ifindex=2)).action == -1
    whole = _frame(V4, 8000, b"")
    for length in range(len(whole) - 1, 34, -4):
        assert proxy.ingress.run(Skb(whole[:length], ifindex=2)).action == 2, length
    assert proxy.counters.ingress.dropped_malformed > 3
    assert proxy.flows == []


# A8
@pytest.mark.parametrize("family", [4, 6])
def test_a_hop_with_a_smaller_mtu_is_heard(family: int) -> None:
    proxy = Proxy()
    session = proxy.session(8000, family)

    def error(port: int) -> bytes:
        """What a router on the way to the client says of a packet from *port*."""
        quoted = TCP(sport=port, dport=session.client.src_port, seq=7, chksum=0x1234)
        if family == 4:
            inner = IP(src=SERVER[4], dst=CLIENT[4]) / quoted
            outer = IP(src="10.0.0.254", dst=SERVER[4]) / ICMP(type=3, code=4, nexthopmtu=1300)
        else:
            inner = IPv6(src=SERVER[6], dst=CLIENT[6]) / quoted
            outer = IPv6(src="fd00::ff", dst=SERVER[6]) / ICMPv6PacketTooBig(mtu=1300)
        return bytes(Ether(src="02:00:00:00:00:01") / outer / inner)

    result = proxy.ingress.run(Skb(error(8000), ifindex=2))
    assert proxy.counters.ingress.errors_redirected == 1
    # The quoted port is Envoy's, and the whole has the checksum that scapy computes. The quoted one is left
    # alone: nobody looks at it.
    assert result.packet == error(ENVOY_PORT)
    stranger = error(9000)
    assert proxy.ingress.run(Skb(stranger, ifindex=2)).packet == stranger


# B
def test_a_question_without_a_socket() -> None:
    proxy = Proxy()
    context = SockOptContext(None, bytes(16), level=SOL_IP, optname=SO_ORIGINAL_DST, optlen=16, retval=-92)
    assert proxy.getsockopt.run(context).value == 1
    assert (context["retval"], context["optlen"], bytes(context.optval)) == (-92, 16, bytes(16))


# C5
def test_a_receiver_that_does_not_read_is_not_sent_more_than_the_limit() -> None:
    """The rest goes through the stack, whose window is not the program's concern, in order and for good."""
    proxy = Proxy(
        queue_limit=5000,
        queue_length_at=192,
        buffer_locks_at=204,
        receive_buffer_at=200,
        receive_buffer_lock=0x20,
    )
    session = proxy.session()

    @proxy.emulator.model(Helper.probe_read_kernel)
    def look(run: Run, to: int, size: int, address: int) -> int:
        waiting = len(session.application.redirected) if address % 256 == 192 else 0
        run.write(to, waiting.to_bytes(size, "little"))
        return 0

    sent = b""
    for number in range(20):
        message = bytes([number]) * 700
        session.upstream.send(message)
        sent += message
        assert len(session.application.redirected) <= 5000
    assert proxy.counters.sk_msg.queue_full == 1
    assert len(session.application.redirected) == 7 * 700
    assert session.application.read() == sent
    session.upstream.send(b"after")
    assert session.application.redirected == b"" and session.application.read() == b"after"


# C6
def test_no_program_takes_a_live_socket_out_of_the_map() -> None:
    proxy = Proxy()
    session = proxy.session()
    table = proxy.server.sk_msg_map
    assert table is not None
    for _ in range(3):
        echo(session)
        proxy.emulator.advance(seconds=100)
        assert {id(socket) for socket in table.values()} == {id(session.upstream), id(session.application)}
    session.upstream.close()
    session.application.close()
    proxy.server.end_time_wait()
    assert len(table) == 0


# C11
def test_enrolled_sockets_outlive_the_programs_that_enrolled_them() -> None:
    """`down` takes sockops away first: new connections are native from their first byte, old ones go on."""
    proxy = Proxy()
    old = proxy.session()
    echo(old)
    proxy.server.sock_ops = None
    new = proxy.session()
    redirected = proxy.counters.sk_msg.redirected_messages
    echo(new)
    assert not new.upstream.members and not new.application.members
    assert proxy.counters.sk_msg.redirected_messages == redirected
    echo(old)
    assert proxy.counters.sk_msg.redirected_messages == redirected + 2
