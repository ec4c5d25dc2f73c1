# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""TC ingress by test runs: every frame, counter and flow against the oracle, checksums against scapy."""

from __future__ import annotations

import itertools
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loader.features import Feature
from loader.netns import NetNs, interface
from loader.objects import Program
from programs import flow
from programs.packet import Interface
from programs.shared import FLOW_UNTIMED
from programs.tc_ingress import tc_ingress
from tests.kernel.programs import frames
from tests.kernel.programs import scapy_layers as scapy
from tests.kernel.programs.conftest import VARIANTS
from tests.kernel.programs.frames import (
    AH,
    DESTINATION,
    FRAGMENT,
    HOP_BY_HOP,
    ROUTING,
    Frame,
    checksums,
    same,
)
from tests.kernel.programs.oracle import ACK, CWR, ECE, ESTABLISHED, FIN, PSH, RST, SYN, Model, locate
from tests.kernel.programs.rig import DROP, NEXT, Flow, Rig, ready
from tests.requires import requires

settings.load_profile("programs")

ENVOY = 8080
RANGES = ((80, 80), (8000, 8000), (9000, 9010), (60000, 65535))
LO = Interface(loopback=True)
# The kernel refuses to run a program on a frame that ends within the fixed IP header.
SHORTEST = {4: 14 + 20, 6: 14 + 40}
FAMILIES = [pytest.param(Frame(), id="ipv4"), pytest.param(Frame(family=6), id="ipv6")]
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION)


def flow_of(frame: Frame) -> Flow:
    client, server = frame.addresses
    return Flow(client, frame.sport, server)


def model_of(rig: Rig, **changes: object) -> Model:
    """The rules with the settings of an instance."""
    chosen = rig.settings
    return Model(
        ports=RANGES,
        envoy_port=chosen.envoy_port,
        mark=chosen.mark.value,
        mask=chosen.mark.mask,
        capacity=chosen.flow_capacity,
        timers=chosen.timers,
        **changes,  # type: ignore[arg-type]
    )


def check(
    rig: Rig,
    program: Program,
    model: Model,
    frame: Frame,
    *,
    cut: int | None = None,
    mark: int = 0,
    ifindex: int = 0,
) -> None:
    """Run *frame* through the program and the rules: same verdict, bytes, counters and flows."""
    raw = frame.bytes()[:cut]
    outcome = model.ingress(raw, mark=mark, host=frame.mac == frames.HOST_MAC)
    retval, out = rig.run(program, raw, mark=mark, ifindex=ifindex)
    assert retval == (DROP if outcome.drop else NEXT), outcome
    wanted = raw if outcome.dport is None else frame.but(dport=outcome.dport).bytes()[:cut]
    found = locate(raw)
    assert same(out, wanted, -2 if isinstance(found, str) else found.at + 16)
    assert rig.moved() == outcome.moved("ingress")
    assert rig.flows() == model.table()


# --- Where the TCP header is. -------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [(), (0x8100,), (0x88A8,), (0x88A8, 0x8100), (0x8100, 0x8100)])
@pytest.mark.parametrize("frame", FAMILIES)
def test_a_syn_is_sent_to_envoy_behind_tags(
    rig_of: Callable[[str], Rig], frame: Frame, tags: tuple[int, ...]
) -> None:
    rig = rig_of("plain")
    frame = frame.but(tags=tags)
    retval, out = rig.run(rig.load("ingress"), frame.bytes())
    assert retval == NEXT
    read = frames.parse(out)
    assert read[scapy.TCP].dport == ENVOY
    assert (read[scapy.TCP].sport, read[scapy.TCP].seq) == (frame.sport, frame.seq)
    assert checksums(out)
    assert rig.flows() == {flow_of(frame).key: (8000, 0, frame.seq)}
    assert rig.moved() == {"ingress.new_flows": 1, "ingress.redirected": 1}
    assert rig.flow(flow_of(frame)).last_seen > 0


def test_a_third_tag_is_not_looked_behind(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    check(rig, rig.load("ingress"), model_of(rig), Frame(tags=(0x88A8, 0x8100, 0x8100)))


@pytest.mark.parametrize("words", range(11))
def test_ipv4_options_of_every_length(rig_of: Callable[[str], Rig], words: int) -> None:
    rig = rig_of("plain")
    frame = Frame(options=words, tcp_options=words % 3, payload=b"x" * words)
    retval, out = rig.run(rig.load("ingress"), frame.bytes())
    assert (retval, frames.parse(out)[scapy.TCP].dport) == (NEXT, ENVOY)
    assert checksums(out)
    assert same(out, frame.but(dport=ENVOY).bytes(), 14 + 20 + 4 * words + 16)


@pytest.mark.parametrize("ihl", range(5))
def test_an_ip_header_that_is_too_short_is_left_to_the_stack(rig_of: Callable[[str], Rig], ihl: int) -> None:
    # Where such a length says that the TCP header is, the port is a part of an address: 31.64 is 8000.
    rig = rig_of("plain")
    raw = bytearray(Frame(client="10.0.31.64", server="192.168.31.64").bytes())
    raw[14] = 0x40 | ihl
    assert rig.run(rig.load("ingress"), bytes(raw)) == (NEXT, bytes(raw))
    assert rig.moved() == {} and rig.flows() == {}


@pytest.mark.parametrize("number", EXTENSIONS)
@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_each_ipv6_extension_header(rig_of: Callable[[str], Rig], number: int, length: int) -> None:
    rig = rig_of("plain")
    check(rig, rig.load("ingress"), model_of(rig), Frame(family=6, ext=((number, length),), payload=b"hello"))
    assert rig.flows()


@pytest.mark.parametrize("protocol", [frames.TCP_PROTOCOL, frames.UDP_PROTOCOL])
@pytest.mark.parametrize("count", [2, 5, 6, 7, 8])
def test_chains_of_ipv6_extension_headers_up_to_the_limit_and_over(
    rig_of: Callable[[str], Rig], count: int, protocol: int
) -> None:
    """Six are looked through; behind more there may be TCP, so the packet is dropped."""
    rig = rig_of("plain")
    chain = tuple((number, 0) for number in itertools.islice(itertools.cycle(EXTENSIONS), count))
    frame = Frame(family=6, ext=chain, protocol=protocol)
    check(rig, rig.load("ingress"), model_of(rig), frame)
    assert bool(rig.flows()) == (count <= 6 and protocol == frames.TCP_PROTOCOL)
    assert rig.run(rig.load("ingress"), frame.bytes())[0] == (DROP if count > 6 else NEXT)


@pytest.mark.parametrize("upper", [17, 58, 59, 50, 135, 132])
def test_what_is_not_tcp_passes(rig_of: Callable[[str], Rig], upper: int) -> None:
    rig = rig_of("plain")
    for frame in (Frame(), Frame(family=6), Frame(family=6, ext=((DESTINATION, 0),))):
        raw = bytearray(frame.bytes())
        raw[14 + 9 if frame.family == 4 else (14 + 40 if frame.ext else 14 + 6)] = upper
        assert rig.run(rig.load("ingress"), bytes(raw)) == (NEXT, bytes(raw))
    assert rig.moved() == {} and rig.flows() == {}


def test_arp_passes(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    raw = bytes(12) + b"\x08\x06" + bytes(28)
    assert rig.run(rig.load("ingress"), raw) == (NEXT, raw)
    assert rig.moved() == {}


# --- Fragments, and frames that end early. ------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_fragments(rig_of: Callable[[str], Rig], family: int) -> None:
    """A first fragment is translated as a whole packet is; a later one passes, whatever is in it."""
    rig = rig_of("plain")
    program = rig.load("ingress")
    for offset, more in (
        (0, True),
        (0, False),
        (1, True),
        (1, False),
        (2, True),
        (185, False),
        (8191, False),
    ):
        rig.clear()
        model = model_of(rig)
        if family == 4:
            frame = Frame(fragment=(offset, more), payload=b"x" * 64)
        else:
            frame = Frame(family=6, ext=((FRAGMENT, 0),), ext_fragment=(offset, more), payload=b"x" * 64)
        check(rig, program, model, frame)
        assert bool(rig.flows()) == (offset == 0)


@pytest.mark.parametrize("kept", [8, 12, 13, 19, 20])
@pytest.mark.parametrize("family", [4, 6])
def test_a_tiny_first_fragment_is_dropped(rig_of: Callable[[str], Rig], family: int, kept: int) -> None:
    """The port is there, the flags may be in the next fragment (RFC 3128): nothing of it reaches anybody."""
    rig = rig_of("plain")
    if family == 4:
        frame, start = Frame(fragment=(0, True)), 14 + 20
    else:
        frame, start = Frame(family=6, ext=((FRAGMENT, 0),), ext_fragment=(0, True)), 14 + 40 + 8
    check(rig, rig.load("ingress"), model_of(rig), frame, cut=start + kept)
    assert bool(rig.flows()) == (kept == 20)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(Frame(), id="ipv4"),
        pytest.param(Frame(options=3), id="options"),
        pytest.param(Frame(tags=(0x88A8, 0x8100), options=1), id="tags"),
        pytest.param(Frame(family=6), id="ipv6"),
        pytest.param(Frame(family=6, ext=((HOP_BY_HOP, 0), (FRAGMENT, 0), (AH, 1))), id="extension headers"),
        pytest.param(Frame(family=6, tags=(0x8100,), ext=((ROUTING, 1),)), id="tag and routing header"),
        pytest.param(Frame(protocol=frames.UDP_PROTOCOL), id="udp"),
    ],
)
def test_frames_cut_at_every_byte(rig_of: Callable[[str], Rig], frame: Frame) -> None:
    rig = rig_of("plain")
    program = rig.load("ingress")
    shortest = 15 if frame.tags else SHORTEST[frame.family]
    verdicts = set()
    for cut in range(shortest, len(frame.bytes()) + 1):
        rig.clear()
        model = model_of(rig)
        check(rig, program, model, frame, cut=cut)
        verdicts.add(bool(model.flows))
    assert verdicts == ({False} if frame.protocol != frames.TCP_PROTOCOL else {False, True})


@st.composite
def recipes(draw: st.DrawFn) -> Frame:
    """Any chain of headers, TCP flags and ports."""
    family = draw(st.sampled_from((4, 6)))
    ports = st.sampled_from(
        (79, 80, 81, 7999, 8000, 8001, 8080, 8999, 9000, 9005, 9010, 9011, 59999, 60000, 65535)
    )
    return Frame(
        family=family,
        tags=draw(st.sampled_from(((), (), (0x8100,), (0x88A8, 0x8100), (0x8100,) * 3))),
        options=draw(st.integers(0, 10)),
        fragment=draw(st.sampled_from(((0, False), (0, False), (0, True), (1, False), (100, True)))),
        ext=tuple(draw(st.lists(st.tuples(st.sampled_from(EXTENSIONS), st.integers(0, 3)), max_size=8)))
        if family == 6
        else (),
        ext_fragment=draw(st.sampled_from(((0, False), (0, True), (1, False)))),
        protocol=draw(st.sampled_from((frames.TCP_PROTOCOL,) * 4 + (frames.UDP_PROTOCOL,))),
        sport=draw(st.sampled_from((1, 8080, 40000, 65535))),
        dport=draw(ports),
        seq=draw(st.integers(0, 0xFFFFFFFF)),
        ack=draw(st.sampled_from((1, 1001, 1 << 20, (1 << 20) + 1)) | st.integers(0, 0xFFFFFFFF)),
        flags=draw(st.sampled_from((SYN, SYN | ECE | CWR)) | st.integers(0, 255)),
        tcp_options=draw(st.integers(0, 10)),
        payload=draw(st.binary(max_size=64)),
        mac=draw(st.sampled_from((frames.HOST_MAC,) * 4 + (frames.OTHER_MAC, "ff:ff:ff:ff:ff:ff"))),
    )


@settings(max_examples=400)
@given(
    frame=recipes(),
    variant=st.sampled_from(("plain", "no timers", "masked mark")),
    loopback=st.booleans(),
    known=st.sampled_from((None, "same", "other", "this syn")),
    state=st.integers(0, 15),
    mark=st.sampled_from((0, 0, 0, 4242, 4242 | 1 << 31, 0x1000, 0x1FFF, 0x3000)),
    missing=st.sampled_from((0, 0, 0, 1, 7, 20, 33, 60)),
)
@example(Frame(), "plain", False, "this syn", 0, 0, 0)
@example(Frame(dport=8080), "plain", True, "other", 1, 0, 0)
@example(Frame(dport=8080), "plain", False, "this syn", 1, 0, 0)
def test_any_frame(
    rig_of: Callable[[str], Rig],
    frame: Frame,
    variant: str,
    loopback: bool,
    known: str | None,
    state: int,
    mark: int,
    missing: int,
) -> None:
    rig = rig_of(variant)
    model = model_of(rig, loopback=loopback)
    if known is not None:
        port = 9001 if known == "other" or not model.wanted(frame.dport) else frame.dport
        seq = frame.seq if known == "this syn" else (frame.seq + 1) & 0xFFFFFFFF
        key = flow_of(frame)
        rig.put(key, port, state, seq)
        model.flows[key.key] = [port, state, seq]
    raw = frame.bytes()
    cut = max(len(raw) - missing, 15 if frame.tags else SHORTEST[frame.family])
    check(rig, rig.load("ingress", LO if loopback else Interface()), model, frame, cut=cut, mark=mark)


# --- Which packets are meant. -------------------------------------------------------------------------------


def test_ports_at_the_edges_of_ranges(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    program = rig.load("ingress")
    wanted = {80, 8000, *range(9000, 9011), *range(60000, 65536)}
    edges = {80, 8000, *range(9000, 9011), 60000, 65535}
    near = {port + step for port in edges for step in (-1, 0, 1)} | {0, 1, 0x401F, 0x901F}
    for port in sorted(near - {65536}):
        rig.clear()
        retval, out = rig.run(program, Frame(dport=port).bytes())
        assert retval == NEXT
        assert (frames.parse(out)[scapy.TCP].dport == ENVOY) == (port in wanted), port
        assert rig.moved() == ({"ingress.new_flows": 1, "ingress.redirected": 1} if port in wanted else {})


@pytest.mark.parametrize(
    ("variant", "mark", "envoys"),
    [
        ("plain", 4242, True),
        ("plain", 0, False),
        ("plain", 4243, False),
        ("plain", 4242 | 1 << 31, False),
        ("plain", 4242 | 0x10000, False),
        ("masked mark", 0x1000, True),
        ("masked mark", 0xFFFF1FFF, True),
        ("masked mark", 0x3000, False),
        ("masked mark", 0x0FFF, False),
    ],
)
@pytest.mark.parametrize("flags", [SYN, ACK])
def test_envoys_own_packets_pass(
    rig_of: Callable[[str], Rig], variant: str, mark: int, envoys: bool, flags: int
) -> None:
    rig = rig_of(variant)
    frame = Frame(flags=flags)
    rig.put(flow_of(frame), 8000)
    raw = frame.bytes()
    retval, out = rig.run(rig.load("ingress"), raw, mark=mark)
    assert retval == NEXT
    assert (out == raw) == envoys
    assert rig.moved() == ({"ingress.passed_marked": 1} if envoys else {"ingress.redirected": 1})


@pytest.mark.parametrize("mac", [frames.OTHER_MAC, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
@pytest.mark.parametrize("frame", FAMILIES)
def test_packets_for_other_machines_are_only_seen_in_passing(
    rig_of: Callable[[str], Rig], frame: Frame, mac: str
) -> None:
    rig = rig_of("plain")
    for one in (frame.but(mac=mac), frame.but(mac=mac, dport=ENVOY)):
        raw = one.bytes()
        assert rig.run(rig.load("ingress"), raw) == (NEXT, raw)
        assert rig.run(rig.load("ingress"), raw[: SHORTEST[frame.family] + 3])[0] == NEXT
    assert rig.moved() == {} and rig.flows() == {}


@pytest.mark.parametrize("flags", range(64))
def test_every_combination_of_tcp_flags(rig_of: Callable[[str], Rig], flags: int) -> None:
    """Only a SYN without ACK, RST and FIN makes a flow; without one everything else passes untouched."""
    rig = rig_of("plain")
    program = rig.load("ingress")
    check(rig, program, model_of(rig), Frame(flags=flags))
    assert bool(rig.flows()) == (flags & SYN != 0 and not flags & (ACK | RST | FIN))
    for known in (8000, 80):  # a flow for this port, and for another
        rig.clear()
        model = model_of(rig)
        rig.put(flow_of(Frame()), known, 1, 7)
        model.flows[flow_of(Frame()).key] = [known, 1, 7]
        check(rig, program, model, Frame(flags=flags))


@pytest.mark.parametrize("size", [0, 1, 2, 1399, 1400, 3000])
def test_payloads(rig_of: Callable[[str], Rig], size: int) -> None:
    rig = rig_of("plain")
    program = rig.load("ingress")
    payload = bytes(index * 7 & 0xFF for index in range(size))
    for frame in (Frame(), Frame(family=6)):
        assert rig.run(program, frame.bytes())[0] == NEXT
        retval, out = rig.run(program, frame.but(flags=ACK | PSH, payload=payload).bytes())
        assert retval == NEXT and checksums(out)
        assert bytes(frames.parse(out)[scapy.TCP].payload) == payload


# --- Flows. -------------------------------------------------------------------------------------------------


def test_keys_tell_client_port_and_server_apart(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    program = rig.load("ingress")
    different = [Frame(), Frame(sport=40001), Frame(client="10.0.0.21"), Frame(server="192.168.178.11")]
    for port, frame in enumerate(different, 9000):
        rig.run(program, frame.but(dport=port).bytes())
    assert rig.flows() == {flow_of(f).key: (port, 0, 1000) for port, f in enumerate(different, 9000)}


def test_a_syn_sent_again_and_the_same_ports_used_again(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    program, model = rig.load("ingress"), model_of(rig)
    check(rig, program, model, Frame())
    check(rig, program, model, Frame())
    check(rig, program, model, Frame(flags=ACK))
    assert rig.flow(flow_of(Frame())).state == 1
    check(rig, program, model, Frame(seq=5000))  # the old connection has gone without a FIN
    check(rig, program, model, Frame(flags=RST | ACK))
    check(rig, program, model, Frame(seq=6000))
    assert rig.flows() == {flow_of(Frame()).key: (8000, 0, 6000)}


def test_a_stale_entry_for_another_port_is_replaced(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    program, model = rig.load("ingress"), model_of(rig)
    check(rig, program, model, Frame())
    check(rig, program, model, Frame(flags=ACK))
    check(rig, program, model, Frame(dport=9000, seq=77))
    assert rig.flows() == {flow_of(Frame()).key: (9000, 0, 77)}
    check(rig, program, model, Frame(flags=ACK))  # what is left of the old connection is nobody's
    check(rig, program, model, Frame(dport=9000, flags=ACK))


def test_a_full_map_refuses_new_flows_and_keeps_the_old(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    program, model = rig.load("ingress"), model_of(rig)
    for sport in range(40000, 40010):
        check(rig, program, model, Frame(sport=sport))
        check(rig, program, model, Frame(sport=sport, flags=ACK))
    assert set(rig.flows()) == {flow_of(Frame(sport=sport)).key for sport in range(40000, 40008)}
    check(rig, program, model, Frame(sport=40003, flags=ACK | PSH, payload=b"still there"))
    check(rig, program, model, Frame(sport=40002))
    check(rig, program, model, Frame(sport=40001, dport=9000))
    assert rig.counters()["ingress.dropped_map_full"] >= 2


@pytest.mark.parametrize("variant", ["plain", "no timers"])
@pytest.mark.parametrize("frame", FAMILIES)
def test_a_flood_of_syns_leaves_room(rig_of: Callable[[str], Rig], frame: Frame, variant: str) -> None:
    """The oldest handshakes go, and only they; one that is completed among the flood is safe from then on."""
    rig = rig_of(variant)
    program, model = rig.load("ingress"), model_of(rig)
    established = [1, 2]
    for sport in established:
        check(rig, program, model, frame.but(sport=sport))
        check(rig, program, model, frame.but(sport=sport, flags=ACK))
    for sport in range(1000, 1040):
        check(rig, program, model, frame.but(sport=sport))
        if sport in (1010, 1020):
            honest = frame.but(sport=sport - 3, flags=ACK)  # the oldest that is there
            check(rig, program, model, honest)
            established.append(honest.sport)
    assert set(rig.flows()) == {
        flow_of(frame.but(sport=sport)).key for sport in (*established, 1036, 1037, 1038, 1039)
    }
    assert rig.counters()["ingress.evicted_half_open"] >= 34
    for sport in established:
        check(rig, program, model, frame.but(sport=sport, flags=ACK | PSH, payload=b"still there"))


SERVICES = st.sampled_from((8000, 9000))


@settings(max_examples=60)
@given(
    variant=st.sampled_from(("plain", "no timers")),
    loopback=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.sampled_from(("in", "in", "out")),
            st.sampled_from((4, 4, 6)),
            st.integers(40000, 40004),
            st.sampled_from((8000, 8000, 9000, 9000, 8080)),
            st.sampled_from(
                (SYN, SYN, ACK, ACK | PSH, FIN | ACK, FIN | ACK, RST, SYN | ACK, RST | ACK, SYN | FIN)
            ),
            st.sampled_from((1, 2)),
            st.sampled_from((2, 2, 3, 1 << 30)),
        ),
        max_size=30,
    ),
)
def test_any_course_of_connections(
    rig_of: Callable[[str], Rig],
    variant: str,
    loopback: bool,
    steps: list[tuple[str, int, int, int, int, int, int]],
) -> None:
    """Packets of both directions in any order, through both programs, against the model's flows."""
    rig = rig_of(variant)
    link = LO if loopback else Interface()
    into, out_of = rig.load("ingress", link), rig.load("egress", link)
    model = model_of(rig, loopback=loopback)
    for direction, family, sport, dport, flags, seq, ack in steps:
        frame = Frame(family=family, sport=sport, dport=dport, flags=flags, seq=seq, ack=ack)
        if direction == "in":
            check(rig, into, model, frame)
            continue
        answer = frame.answer(sport=ENVOY)
        raw = answer.bytes()
        outcome = model.egress(raw)
        retval, back = rig.run(out_of, raw)
        assert retval == NEXT
        wanted = raw if outcome.sport is None else answer.but(sport=outcome.sport).bytes()
        assert same(back, wanted, (34 if family == 4 else 54) + 16)
        assert rig.moved() == outcome.moved("egress")
        assert rig.flows() == model.table()


# --- Envoy's own port, sockets that are there already, and routing. -----------------------------------------


@pytest.mark.parametrize("frame", FAMILIES)
def test_a_direct_syn_to_envoy_is_refused_from_outside_and_passes_on_lo(
    rig_of: Callable[[str], Rig], frame: Frame
) -> None:
    rig = rig_of("plain")
    direct = frame.but(dport=ENVOY)
    outside = rig.load("ingress")
    check(rig, outside, model_of(rig), direct)
    assert rig.counters()["ingress.dropped_direct"] >= 1
    for flags in (ACK, SYN | ACK, RST, FIN | ACK):  # a connection that was there before is left alone
        check(rig, outside, model_of(rig), direct.but(flags=flags))
    check(rig, rig.load("ingress", LO), model_of(rig, loopback=True), direct)


def test_a_syn_that_was_translated_on_another_hook_is_known(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    program = rig.load("ingress")
    _, once = rig.run(program, Frame().bytes())
    rig.moved()
    assert rig.run(program, once) == (NEXT, once)
    assert rig.moved() == {}
    assert rig.run(program, Frame(dport=ENVOY, seq=999).bytes())[0] == DROP
    assert rig.moved() == {"ingress.dropped_direct": 1}


def test_a_direct_syn_on_lo_forgets_the_flow_that_had_its_tuple(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    program = rig.load("ingress", LO)
    model = model_of(rig, loopback=True)
    check(rig, program, model, Frame())
    check(rig, program, model, Frame(dport=ENVOY, seq=2))
    assert rig.flows() == {}


@contextmanager
def connected(family: int) -> Iterator[tuple[Frame, socket.socket, socket.socket]]:
    """A live connection to Envoy's port on lo, as a recipe and its two sockets."""
    kind, host = (socket.AF_INET, "127.0.0.1") if family == 4 else (socket.AF_INET6, "::1")
    with socket.socket(kind) as listener, socket.socket(kind) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, ENVOY))
        listener.listen()
        client.connect((host, ENVOY))
        server, _ = listener.accept()
        with server:
            sport = client.getsockname()[1]
            yield Frame(family=family, client=host, server=host, sport=sport), client, server


@pytest.mark.parametrize("loopback", [False, True])
@pytest.mark.parametrize("family", [4, 6])
def test_a_tuple_that_a_live_socket_has_is_refused(
    rig_of: Callable[[str], Rig], family: int, loopback: bool
) -> None:
    rig = rig_of("plain")
    program = rig.load("ingress", LO if loopback else Interface())
    with connected(family) as (frame, client, server):
        model = model_of(rig, in_use=lambda _: True, loopback=loopback)
        # No flow, as after a restart of the map: the socket is somebody's connection all the same.
        check(rig, program, model, frame)
        assert rig.counters()["ingress.challenged_tuple_in_use"] >= 1
        # The flow of the live connection, for port 8000: its own SYN again is well, another port's is not.
        rig.put(flow_of(frame), 8000, 1, 5)
        model.flows[flow_of(frame).key] = [8000, 1, 5]
        check(rig, program, model, frame.but(dport=9000))
        check(rig, program, model, frame.but(dport=9000, flags=ACK))
        check(rig, program, model, frame.but(dport=ENVOY, seq=6))
        check(rig, program, model, frame.but(flags=ACK))
        check(rig, program, model, frame)
        # Another client port is free.
        check(rig, program, model_of(rig, loopback=loopback, flows=model.flows), frame.but(sport=1234))
        client.sendall(b"unharmed")
        assert server.recv(16) == b"unharmed"


@pytest.mark.parametrize("family", [4, 6])
def test_a_listener_and_a_connection_in_time_wait_are_not_in_the_way(
    rig_of: Callable[[str], Rig], family: int
) -> None:
    rig = rig_of("plain")
    with connected(family) as (frame, client, server):
        server.close()  # first, so that the socket of Envoy's side gets into TIME_WAIT
        assert client.recv(1) == b""
        client.close()
        table = "tcp" if family == 4 else "tcp6"
        rows = Path(f"/proc/thread-self/net/{table}").read_text().splitlines()[1:]
        assert any(row.split()[3] == "06" and row.split()[1].endswith(f":{ENVOY:04X}") for row in rows)
        rig.put(flow_of(frame), 9000, 1, 5)
        model = model_of(rig, flows={flow_of(frame).key: [9000, 1, 5]})
        check(rig, rig.load("ingress"), model, frame)
        assert rig.flows() == {flow_of(frame).key: (8000, 0, frame.seq)}


def sysctl(name: str, value: object) -> None:
    Path("/proc/sys/net", name).write_text(str(value))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_routed_on_to_another_host_passes(rig_of: Callable[[str], Rig], family: int) -> None:
    rig = rig_of("plain")
    ip("link", "add", "in0", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "in1")
    for name in ("in0", "in1"):
        ip("link", "set", name, "up")
    ip("addr", "add", "10.0.0.1/16", "dev", "in0")
    ip("addr", "add", "fd00:10::1/64", "dev", "in0", "nodad")
    ip("addr", "add", "192.168.178.10/24", "dev", "in0")
    ip("addr", "add", "fd00:192::10/64", "dev", "in0", "nodad")
    ready("in0")
    index = interface("in0").index
    host = Frame(family=family, mac=frames.HOST_MAC)
    elsewhere = host.but(server="192.168.178.99" if family == 4 else "fd00:192::99")
    program = rig.load("ingress")

    def look(frame: Frame, forwarded: bool) -> None:
        raw = frame.but(mac="02:00:00:00:00:01").bytes()
        model = model_of(rig, forwarded=lambda _: forwarded)
        outcome = model.ingress(raw)
        retval, out = rig.run(program, raw, ifindex=index)
        assert retval == (DROP if outcome.drop else NEXT)
        assert (out == raw) == (outcome.dport is None)
        assert rig.moved() == outcome.moved("ingress")
        assert rig.flows() == model.table()
        rig.clear()

    # Without forwarding the destination makes no difference: what the host does not take, it discards.
    look(host, False)
    look(elsewhere, False)
    for name in ("ipv4/ip_forward", "ipv4/conf/in0/forwarding", "ipv6/conf/all/forwarding"):
        sysctl(name, 1)
    look(host, False)
    look(elsewhere, True)
    look(host.but(dport=ENVOY), False)
    look(elsewhere.but(dport=ENVOY), True)
    encapsulated = (
        ["ip", "id", "1", "dst", "10.0.0.7"] if family == 4 else ["ip6", "id", "1", "dst", "fd00:10::7"]
    )
    ip("route", "add", elsewhere.addresses[1], "encap", *encapsulated, "dev", "in0")
    look(elsewhere, True)
    look(elsewhere.but(dport=ENVOY), True)
    # Within a connection the flow map alone decides.
    rig.put(flow_of(elsewhere), 8000)
    raw = elsewhere.but(mac="02:00:00:00:00:01", flags=ACK).bytes()
    assert rig.run(program, raw, ifindex=index)[1] != raw


# --- Time. --------------------------------------------------------------------------------------------------


def wait_until_gone(rig: Rig, flows: list[Flow]) -> None:
    """Wait until none of the flows is in the map.

    It takes a second or two. The machine may be busy, so the limit is far from that, and from an hour too.
    """
    start = time.monotonic()
    while any(rig.flow(flow) is not None for flow in flows):
        assert time.monotonic() - start < 15, rig.flows()
        time.sleep(0.02)


@requires(Feature.TIMER)
def test_timers_remove_what_has_ended_and_nothing_else(rig_of: Callable[[str], Rig]) -> None:
    """One second for a handshake that is not completed, one for the linger of an ended connection."""
    rig = rig_of("quick")
    into, out_of = rig.load("ingress"), rig.load("egress")

    def connection(sport: int, *packets: tuple[str, int] | tuple[str, int, int]) -> Flow:
        """Packets by direction, flags and acknowledgement number."""
        frame = Frame(sport=sport, family=4 if sport % 2 else 6)
        for direction, flags, *ack in packets:
            one = frame.but(flags=flags, ack=ack[0] if ack else frame.ack)
            if direction == ">":
                assert rig.run(into, one.bytes())[0] == NEXT
            else:
                assert rig.run(out_of, one.answer(sport=ENVOY).bytes())[0] == NEXT
        return flow_of(frame)

    born = time.monotonic()
    opened = [(">", SYN), ("<", SYN | ACK), (">", ACK)]
    ended = [
        connection(1, (">", SYN)),
        connection(2, (">", SYN), ("<", SYN | ACK)),  # as in a flood: there may be nobody at that address
        connection(3, *opened, (">", RST)),
        connection(4, *opened, ("<", RST | ACK)),
        connection(5, *opened, (">", FIN | ACK), ("<", FIN | ACK), (">", ACK)),
        connection(6, *opened, ("<", FIN | ACK), ("<", ACK), (">", FIN | ACK)),
    ]
    forged = frames.Frame.ack + (1 << 31)
    ended += [
        connection(7, *opened[:2], (">", ACK, forged)),
        connection(8, *opened[:2], (">", FIN)),
        connection(9, *opened[:2], (">", FIN | ACK, forged), ("<", RST)),
        # A server that has refused the forged acknowledgement goes on to send its SYN-ACK.
        connection(10, *opened[:2], (">", ACK, forged), ("<", RST), ("<", SYN | ACK)),
        connection(21, (">", SYN), (">", ACK, 1 << 30), ("<", SYN | ACK)),
        # The connection of before is gone if its server sends a SYN-ACK.
        connection(22, *opened, (">", SYN), ("<", SYN | ACK)),
    ]
    alive = [
        connection(11, *opened),
        connection(16, *opened, ("<", SYN | ACK), (">", ACK)),  # the acknowledgement was lost
        connection(17, *opened[:2], (">", ACK, forged), ("<", RST), *opened[2:], ("<", ACK)),
        connection(18, *opened[:2], (">", ACK, forged), ("<", RST), *opened[2:]),
        connection(12, *opened, (">", FIN | ACK)),
        connection(13, *opened, ("<", FIN | ACK), (">", ACK)),
        connection(14, *opened, (">", RST), ("<", ACK)),  # the server did not believe the reset
        connection(15, *opened, ("<", RST), ("<", ACK | PSH)),
    ]
    busy = connection(20, *opened, (">", RST))
    while time.monotonic() - born < 0.8:
        there = [rig.flow(flow) is not None for flow in [*ended, *alive, busy]]
        assert all(there) or time.monotonic() - born >= 1
        time.sleep(0.05)
    connection(20, (">", ACK))  # it has ended, but its packets still come: the second begins anew
    again = time.monotonic()
    wait_until_gone(rig, ended)
    assert rig.flow(busy) is not None or time.monotonic() - again >= 0.9
    wait_until_gone(rig, [busy])
    assert set(rig.flows()) == {flow.key for flow in alive}
    assert rig.counters().keys() <= {"ingress.new_flows", "ingress.redirected", "egress.restored"}


@requires(Feature.TIMER)
def test_a_half_closed_flow_goes_sooner_than_an_open_one(
    in_netns: NetNs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One side has ended and the other says nothing any more, as where a client is gone from the network."""
    monkeypatch.setattr(flow, "HALF_CLOSED_SECONDS", 1)
    with Rig(VARIANTS["slow handshake"]) as rig:
        into, out_of = rig.load("ingress"), rig.load("egress")
        for sport, family in itertools.product((1, 2, 3, 4), (4, 6)):
            frame = Frame(sport=sport, family=family)
            rig.run(into, frame.bytes())
            rig.run(out_of, frame.answer(sport=ENVOY, flags=SYN | ACK).bytes())
            if sport != 4:  # else a FIN without a handshake, which anybody can send
                rig.run(into, frame.but(flags=ACK).bytes())
            if sport in (1, 4):
                rig.run(into, frame.but(flags=FIN | ACK, ack=0).bytes())
            if sport == 2:
                rig.run(out_of, frame.answer(sport=ENVOY, flags=FIN | ACK).bytes())
        wait_until_gone(rig, [flow_of(Frame(sport=sport, family=f)) for sport in (1, 2) for f in (4, 6)])
        assert set(rig.flows()) == {
            flow_of(Frame(sport=sport, family=f)).key for sport in (3, 4) for f in (4, 6)
        }


@requires(Feature.TIMER)
@pytest.mark.parametrize("from_server", [False, True])
def test_a_flow_without_a_timer_gets_one_later(rig_of: Callable[[str], Rig], from_server: bool) -> None:
    """As where the kernel had no memory for it when the connection began."""
    rig = rig_of("quick")
    rig.put(flow_of(Frame()), 8000, state=ESTABLISHED | FLOW_UNTIMED)
    if from_server:
        rig.run(rig.load("egress"), Frame().answer(sport=ENVOY, flags=ACK).bytes())
    else:
        rig.run(rig.load("ingress"), Frame(flags=ACK).bytes())
    assert rig.flow(flow_of(Frame())).state == ESTABLISHED
    rig.run(rig.load("ingress"), Frame(flags=RST).bytes())
    assert rig.flow(flow_of(Frame())) is not None
    wait_until_gone(rig, [flow_of(Frame())])


@requires(Feature.TIMER)
def test_the_linger_does_not_wait_for_the_time_of_a_handshake(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("slow handshake")
    into = rig.load("ingress")
    for flags in (SYN, ACK, RST):
        rig.run(into, Frame(flags=flags).bytes())
    rig.run(into, Frame(sport=2).bytes())
    wait_until_gone(rig, [flow_of(Frame())])
    assert set(rig.flows()) == {flow_of(Frame(sport=2)).key}


@requires(Feature.TIMER)
def test_an_entry_used_again_gets_the_time_of_a_handshake_anew(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("slow handshake")
    into = rig.load("ingress")
    for flags in (SYN, ACK, RST):
        rig.run(into, Frame(flags=flags).bytes())
    rig.run(into, Frame(seq=4).bytes())
    time.sleep(1.4)
    assert rig.flows() == {flow_of(Frame()).key: (8000, 0, 4)}


@requires(Feature.TIMER)
def test_an_entry_used_again_does_not_wait_for_the_linger(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("slow linger")
    into = rig.load("ingress")
    for flags in (SYN, ACK, RST):
        rig.run(into, Frame(flags=flags).bytes())
    rig.run(into, Frame(seq=4).bytes())
    wait_until_gone(rig, [flow_of(Frame())])


def test_the_time_of_the_last_packet_is_noted(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("no timers")  # whose clock is the precise one
    into, out_of = rig.load("ingress"), rig.load("egress")
    last = time.monotonic_ns()
    for program, frame in (
        (into, Frame()),
        (into, Frame()),
        (into, Frame(flags=ACK)),
        (out_of, Frame(flags=ACK).answer(sport=ENVOY)),
        (into, Frame(seq=3)),
    ):
        rig.run(program, frame.bytes())
        seen = rig.flow(flow_of(Frame())).last_seen
        assert last < seen < time.monotonic_ns()
        last = seen


def test_without_timers_the_last_packet_ends_the_flow(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("no timers")
    into = rig.load("ingress")
    model = model_of(rig)
    for flags in (SYN, ACK, RST | ACK):
        check(rig, into, model, Frame(flags=flags))
    assert rig.flows() == {}


@pytest.mark.parametrize("loopback", [False, True])
def test_draining_takes_no_new_flow(rig_of: Callable[[str], Rig], loopback: bool) -> None:
    """The same maps under the programs that `down --drain` puts in place."""
    rig = rig_of("plain")
    for frame in (Frame(), Frame(flags=ACK), Frame(sport=40001), Frame(sport=40001, flags=RST)):
        rig.run(rig.load("ingress"), frame.bytes())
    interface = Interface(loopback=loopback)
    spec = tc_ingress.build(replace(rig.settings, new_flows=False), interface)
    rig.moved()
    with Program.load(spec, rig.maps) as draining:
        before = rig.flows()
        # Known: its segments, and its SYN sent again, go to Envoy.
        for frame in (Frame(flags=ACK | PSH, payload=b"on"), Frame()):
            verdict, data = rig.run(draining, frame.bytes())
            assert (verdict, data) == (NEXT, frame.but(dport=ENVOY).bytes())
        assert rig.moved() == {"ingress.redirected": 2}
        assert rig.flows() == before
        # New, and new with the ports of one that has ended: to the application, all of it.
        for sport in (40002, 40001):
            for flags in (SYN, ACK):
                frame = Frame(sport=sport, flags=flags)
                assert rig.run(draining, frame.bytes()) == (NEXT, frame.bytes())
        assert rig.moved() == {"ingress.passed_draining": 2, "ingress.passed_without_flow": 2}
        assert rig.flows().keys() == {flow_of(Frame()).key}
