# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Whole proxied connections on a model host, and the hazards of the data path that show there."""

from __future__ import annotations

import pytest

from programs.settings import Mark
from pybpfasm.emulator import Skb, SkMsg, Socket, SockOpsContext
from pybpfasm.emulator.host import ENOPROTOOPT, Refused, Segment, TcpSocket
from pybpfasm.emulator.sockets import address_bytes
from pybpfasm.kernel.enums import SockOp, TcpState
from pybpfasm.net import TCP_SYN
from tests.unit.emulator.proxy import CLIENT, ENVOY_PORT, SERVER, Proxy, Session, pump

FAMILIES = (4, 6)


def exchange(session: Session, request: bytes, answer: bytes) -> None:
    session.client.send(request)
    pump(session)
    assert session.application.read() == request
    session.application.send(answer)
    pump(session)
    assert session.client.read() == answer


@pytest.mark.parametrize("timers", [True, False])
@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_from_syn_to_fin(family: int, accelerate: bool, timers: bool) -> None:
    proxy = Proxy(accelerate=accelerate, timers=timers)
    session = proxy.session(8000, family)
    assert session.original == (address_bytes(SERVER[family]), 8000)
    # Client and application see each other's port, Envoy its own.
    assert session.client.dst_port == 8000
    assert session.downstream.src_port == ENVOY_PORT
    for number in range(3):
        exchange(session, b"question %d" % number, b"answer %d" % number)
    session.client.close()
    session.downstream.close()
    assert session.client.fin_received and session.downstream.fin_received
    assert proxy.client.bad_checksums == proxy.server.bad_checksums == 0
    counters = proxy.counters
    assert counters.ingress.new_flows == 1
    assert counters.getsockopt.as_dict()[f"answered_ipv{family}"] == 1
    assert counters.egress.restored > 3
    if accelerate:
        assert counters.sockops.enrolled_active == counters.sockops.enrolled_passive == 1
        assert counters.sk_msg.redirected_messages == 6
        assert counters.sk_msg.native_messages == 0
    proxy.emulator.advance(seconds=200)
    assert proxy.flows == []


def test_several_clients_at_once() -> None:
    proxy = Proxy()
    sessions = [
        proxy.session(port, family, source_port=port + 100 * n)
        for n in range(5)
        for port in (8000, 8001)
        for family in FAMILIES
    ]
    for number, session in enumerate(sessions):
        session.client.send(b"from %d" % number)
    for number, session in enumerate(sessions):
        pump(session)
        assert session.application.read() == b"from %d" % number
        session.application.send(b"to %d" % number)
    for number, session in enumerate(sessions):
        pump(session)
        assert session.client.read() == b"to %d" % number


def test_nothing_shows_envoys_port_to_the_client() -> None:
    proxy = Proxy()
    exchange(proxy.session(), b"q", b"a")
    seen = {segment.sport for way, _, segment in proxy.client.captured if way == "in"}
    assert seen == {8000}
    taken = {segment.dport for way, name, segment in proxy.server.captured if (way, name) == ("in", "eth0")}
    assert taken == {ENVOY_PORT}


# A1
def test_one_source_port_for_two_intercepted_ports() -> None:
    proxy = Proxy()
    first = proxy.session(8000, source_port=5555)
    with pytest.raises(Refused) as refused:
        proxy.connect(8001, source_port=5555)
    assert refused.value.errno == 110
    assert proxy.counters.ingress.challenged_tuple_in_use == 1
    exchange(first, b"still", b"here")


def test_a_source_port_is_used_again_after_time_wait() -> None:
    proxy = Proxy()
    first = proxy.session(8000, source_port=5555)
    first.downstream.close()
    first.client.close()
    assert first.downstream.state == TcpState.TIME_WAIT
    proxy.server.end_time_wait()
    second = proxy.session(8001, source_port=5555)
    assert second.original[1] == 8001
    exchange(second, b"new", b"port")


# A2
def test_attaching_leaves_live_connections_alone() -> None:
    proxy = Proxy(attach=False)
    client = proxy.connect(8000)
    application = proxy.applications[8000].accept()
    proxy.attach()
    client.send(b"before")
    application.send(b"after")
    assert application.read() == b"before" and client.read() == b"after"
    assert proxy.counters.ingress.passed_without_flow > 0
    assert proxy.counters.ingress.redirected == 0


# A5
@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_checksums_are_right_on_the_wire(family: int, offload: bool) -> None:
    proxy = Proxy()
    for host in (proxy.client, proxy.server):
        for interface in host.interfaces.values():
            interface.offload = offload
    # A checksum of 0xffff or 0 on the way is where a carry is lost.
    session = proxy.session(8000, family)
    for number in range(120):
        session.client.send(number.to_bytes(2, "big"))
        session.downstream.send(number.to_bytes(2, "big"))
    assert len(session.downstream.read()) == len(session.client.read()) == 240
    assert proxy.client.bad_checksums == proxy.server.bad_checksums == 0


# A10
@pytest.mark.parametrize(("mark", "ours"), [(0x1000, True), (0x1001, True), (0x2000, False), (0, False)])
def test_other_bits_of_the_mark_belong_to_others(mark: int, ours: bool) -> None:
    proxy = Proxy(mark=Mark(0x1000, 0xF000))
    proxy.server.connect(SERVER[4], 8000, mark=mark)
    assert proxy.counters.sockops.enrolled_active == int(ours)
    packet = Segment(bytes([10, 0, 0, 1]), 1, bytes([10, 0, 0, 2]), 8000, TCP_SYN).packet()
    changed = proxy.ingress.run(Skb(packet, mark=mark, ifindex=2)).packet != packet
    assert changed is not ours


# A7
def test_a_full_flow_map_drops_and_counts() -> None:
    proxy = Proxy(flow_capacity=2)
    kept = [proxy.session(8000), proxy.session(8000)]
    with pytest.raises(Refused):
        proxy.connect(8000)
    assert proxy.counters.ingress.dropped_map_full == 1
    for session in kept:
        exchange(session, b"q", b"a")
    assert not proxy.applications[8000].backlog


@pytest.mark.parametrize("timers", [True, False])
def test_half_close_keeps_the_flow(timers: bool) -> None:
    proxy = Proxy(timers=timers)
    session = proxy.session()
    session.downstream.close()
    for _ in range(5):
        session.client.send(bytes(1000))
    assert len(session.downstream.read()) == 5000
    assert len(proxy.flows) == 1
    session.client.close()
    proxy.emulator.advance(seconds=proxy.settings.linger_seconds * 2)
    assert proxy.flows == []


def test_an_idle_flow_stays_for_its_time_and_goes_after_it() -> None:
    proxy = Proxy(idle_seconds=1000)
    session = proxy.session()
    proxy.emulator.advance(seconds=900)
    exchange(session, b"q", b"a")
    proxy.emulator.advance(seconds=990)
    assert len(proxy.flows) == 1
    proxy.emulator.advance(seconds=1000)
    assert proxy.flows == []


def test_a_handshake_that_never_ends_goes_early() -> None:
    proxy = Proxy()
    proxy.server.interfaces["eth0"].egress.append(proxy.egress)
    proxy.envoy.close()
    proxy.emulator.sockets.remove(proxy.envoy)
    with pytest.raises(Refused):
        proxy.connect(8000)
    assert len(proxy.flows) == 1  # a reset was answered; the flow lingers
    proxy.emulator.advance(seconds=proxy.settings.handshake_seconds + 1)
    assert proxy.flows == []


def test_a_reset_ends_the_flow_after_a_linger() -> None:
    proxy = Proxy()
    session = proxy.session()
    session.client.reset()
    assert session.downstream.was_reset
    proxy.emulator.advance(seconds=proxy.settings.linger_seconds * 2 + 1)
    assert proxy.flows == []


# A9
def test_envoys_own_port_is_refused_from_outside() -> None:
    proxy = Proxy()
    with pytest.raises(Refused):
        proxy.connect(ENVOY_PORT)
    assert proxy.counters.ingress.dropped_direct == 1


# B
def test_an_unknown_connection_keeps_the_kernels_own_answer() -> None:
    proxy = Proxy()
    socket = Socket(
        src=bytes([10, 0, 0, 2]), src_port=ENVOY_PORT, dst=bytes([9, 9, 9, 9]), dst_port=1, netns=7
    )
    with pytest.raises(Refused) as refused:
        proxy.server.getsockopt(socket, 0, 80, 128)
    assert refused.value.errno == ENOPROTOOPT
    assert proxy.counters.getsockopt.unknown_connection == 1


@pytest.mark.parametrize(("length", "answer"), [(15, None), (16, 16), (28, 16), (128, 16), (8192, 16)])
def test_buffers_of_any_size(length: int, answer: int | None) -> None:
    proxy = Proxy()
    proxy.connect()
    downstream = proxy.envoy.accept()
    if answer is None:
        with pytest.raises(Refused) as refused:
            proxy.server.getsockopt(downstream, 0, 80, length)
        assert refused.value.errno == ENOPROTOOPT
        assert proxy.counters.getsockopt.buffer_too_small == 1
    else:
        assert len(proxy.server.getsockopt(downstream, 0, 80, length)) == answer


@pytest.mark.parametrize(("level", "name"), [(1, 80), (6, 80), (0, 79), (41, 81)])
def test_other_options_are_left_alone(level: int, name: int) -> None:
    proxy = Proxy()
    proxy.connect()
    downstream = proxy.envoy.accept()
    assert proxy.server.getsockopt(downstream, level, name, 8, own=0, value=b"12345678") == b"12345678"
    with pytest.raises(Refused):
        proxy.server.getsockopt(downstream, level, name, 8)


def test_a_socket_of_another_namespace_is_left_alone() -> None:
    proxy = Proxy()
    proxy.connect()
    downstream = proxy.envoy.accept()
    downstream.netns = 8
    with pytest.raises(Refused):
        proxy.server.getsockopt(downstream, 0, 80, 128)
    assert proxy.counters.getsockopt.unknown_connection == 0


# C1
def test_the_same_addresses_in_two_namespaces_are_two_connections() -> None:
    proxy = Proxy()
    session = proxy.session()
    table = proxy.server.sk_msg_map
    assert table is not None and len(table) == 2
    foreign = Socket(
        src=session.upstream.dst,
        src_port=8000,
        dst=session.upstream.src,
        dst_port=session.upstream.src_port,
        netns=9,
    )
    proxy.sockops.run(SockOpsContext(SockOp.PASSIVE_ESTABLISHED_CB, foreign))
    assert len(table) == 2
    session.upstream.send(b"mine")
    assert session.application.read() == b"mine"


# C2
def test_a_live_key_is_never_taken_over() -> None:
    proxy = Proxy()
    session = proxy.session()
    table = proxy.server.sk_msg_map
    assert table is not None
    before = dict(table.items())
    twin = TcpSocket(
        src=session.upstream.src,
        src_port=session.upstream.src_port,
        dst=session.upstream.dst,
        dst_port=session.upstream.dst_port,
        netns=7,
        mark=proxy.settings.mark.value,
    )
    proxy.sockops.run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, twin))
    assert proxy.counters.sockops.slot_taken == 1
    assert dict(table.items()) == before


# C3
def test_without_a_peer_messages_go_through_the_stack_for_good() -> None:
    proxy = Proxy()
    session = proxy.session()
    table = proxy.server.sk_msg_map
    assert table is not None
    table.forget(session.application)
    session.upstream.send(b"one")
    session.upstream.send(b"two")
    assert session.application.redirected == b"" and session.application.read() == b"onetwo"
    assert proxy.counters.sk_msg.native_messages == 2
    assert proxy.emulator.map("pba_sock_state")[session.upstream].native == 1


# C4
def test_data_before_enrolment_keeps_a_connection_native() -> None:
    proxy = Proxy()
    socket = TcpSocket(
        src=b"\x7f\0\0\1",
        src_port=1,
        dst=b"\x7f\0\0\1",
        dst_port=8000,
        netns=7,
        mark=proxy.settings.mark.value,
        segs_out=1,
    )
    proxy.sockops.run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, socket, data_segs_out=1))
    assert proxy.counters.sockops.data_before_enrolment == 1
    assert not socket.members


# C10
def test_unmarked_and_remote_connections_are_not_enrolled() -> None:
    proxy = Proxy()
    proxy.server.connect(SERVER[4], 8000)
    proxy.applications[8000].accept()
    table = proxy.server.sk_msg_map
    assert table is not None and len(table) == 0
    remote = TcpSocket(
        src=address_bytes(SERVER[4]),
        src_port=1,
        dst=address_bytes(CLIENT[4]),
        dst_port=8000,
        netns=7,
        mark=proxy.settings.mark.value,
    )
    proxy.sockops.run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, remote))
    assert len(table) == 0


@pytest.mark.parametrize("v6", [True, False])
def test_a_mapped_application_socket_pairs_with_an_ipv4_one(v6: bool) -> None:
    proxy = Proxy()
    proxy.connect()
    downstream = proxy.envoy.accept()
    upstream = proxy.server.connect(
        proxy.envoy_accepts(downstream)[0], 8000, mark=proxy.settings.mark.value, v6=v6
    )
    assert proxy.applications[8000].accept().mapped
    assert proxy.counters.sockops.enrolled_passive == 1
    assert upstream.members


def test_an_unenrolled_socket_is_passed() -> None:
    proxy = Proxy()
    assert proxy.sk_msg.run(SkMsg(Socket(netns=7), b"x")).value == 1
    assert proxy.counters.sk_msg.native_messages == 0
