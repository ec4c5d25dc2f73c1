# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""TC egress by test runs: Envoy's answers get the port that the client knows, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.programs import frames
from tests.kernel.programs import scapy_layers as scapy
from tests.kernel.programs.frames import AH, DESTINATION, FRAGMENT, Frame, checksums, same
from tests.kernel.programs.oracle import ACK, FIN, PSH, RST, SYN, locate
from tests.kernel.programs.rig import NEXT, Rig
from tests.kernel.programs.test_tc_ingress import ENVOY, FAMILIES, SHORTEST, flow_of, model_of, recipes

settings.load_profile("programs")


def check(
    rig: Rig, request: Frame, answer: Frame, known: int | None, state: int = 1, cut: int | None = None
) -> None:
    """Run *answer*, with the flow of *request* in the map where *known* is its port, and compare all."""
    rig.clear()
    model = model_of(rig)
    if known is not None:
        rig.put(flow_of(request), known, state, 9)
        model.flows[flow_of(request).key] = [known, state, 9]
    raw = answer.bytes()[:cut]
    outcome = model.egress(raw)
    retval, out = rig.run(rig.load("egress"), raw)
    wanted = raw if outcome.sport is None else answer.but(sport=outcome.sport).bytes()[:cut]
    found = locate(raw)
    assert retval == NEXT
    assert same(out, wanted, -2 if isinstance(found, str) else found.at + 16)
    assert rig.moved() == outcome.moved("egress")
    assert rig.flows() == model.table()


@pytest.mark.parametrize("tags", [(), (0x8100,), (0x88A8, 0x8100)])
@pytest.mark.parametrize("port", [80, 8000, 9010, 65535, 1])
@pytest.mark.parametrize("frame", FAMILIES)
def test_an_answer_comes_from_the_port_that_the_client_addressed(
    rig_of: Callable[[str], Rig], frame: Frame, port: int, tags: tuple[int, ...]
) -> None:
    rig = rig_of("plain")
    rig.put(flow_of(frame), port)
    answer = frame.answer(sport=ENVOY, flags=SYN | ACK, tags=tags, payload=b"answer")
    retval, out = rig.run(rig.load("egress"), answer.bytes())
    read = frames.parse(out)[scapy.TCP]
    assert (retval, read.sport, read.dport) == (NEXT, port, frame.sport)
    assert checksums(out)
    assert rig.moved() == {"egress.restored": 1}


@pytest.mark.parametrize("frame", FAMILIES)
def test_what_is_no_answer_of_envoy_passes(rig_of: Callable[[str], Rig], frame: Frame) -> None:
    rig = rig_of("plain")
    answer = frame.answer(sport=ENVOY, flags=ACK)
    for known in (None, 8000):
        for sport in (ENVOY, ENVOY - 1, ENVOY + 1, 0x901F, 8000, 40000):
            check(rig, frame, answer.but(sport=sport), known)
    check(rig, frame, answer.but(dport=40001), 8000)
    check(rig, frame.but(client="10.0.0.21" if frame.family == 4 else "fd00:10::21"), answer, 8000)
    check(rig, frame.but(server="10.9.0.21" if frame.family == 4 else "fd00:10::21"), answer, 8000)
    check(rig, frame, answer.but(protocol=frames.UDP_PROTOCOL), 8000)


def test_a_flow_of_the_other_family_is_another_flow(rig_of: Callable[[str], Rig]) -> None:
    """A real IPv6 packet with v4-mapped addresses has no part in an IPv4 flow."""
    rig = rig_of("plain")
    mapped = Frame(family=6, client="::ffff:10.0.0.20", server="::ffff:192.168.178.10")
    rig.put(flow_of(Frame()), 8000)
    raw = mapped.answer(sport=ENVOY, flags=ACK).bytes()
    assert rig.run(rig.load("egress"), raw) == (NEXT, raw)
    assert rig.moved() == {"egress.passed_without_flow": 1}


@pytest.mark.parametrize("mark", [0, 4242])
def test_the_mark_does_not_matter(rig_of: Callable[[str], Rig], mark: int) -> None:
    rig = rig_of("plain")
    rig.put(flow_of(Frame()), 8000)
    rig.run(rig.load("egress"), Frame().answer(sport=ENVOY, flags=ACK).bytes(), mark=mark)
    assert rig.moved() == {"egress.restored": 1}


@pytest.mark.parametrize("flags", [SYN | ACK, ACK, FIN | ACK, RST, RST | ACK, RST | FIN, PSH | ACK])
@pytest.mark.parametrize("state", range(16))
@pytest.mark.parametrize("variant", ["plain", "no timers"])
def test_how_an_answer_changes_the_flow(
    rig_of: Callable[[str], Rig], variant: str, state: int, flags: int
) -> None:
    check(rig_of(variant), Frame(), Frame().answer(sport=ENVOY, flags=flags), 8000, state)


@pytest.mark.parametrize("frame", FAMILIES)
def test_answers_cut_at_every_byte_are_left_alone(rig_of: Callable[[str], Rig], frame: Frame) -> None:
    """This host sends none of them; what a forwarded packet holds is not for this program to judge."""
    rig = rig_of("plain")
    answer = frame.answer(sport=ENVOY, flags=ACK, options=2, tags=())
    for cut in range(SHORTEST[frame.family], len(answer.bytes()) + 1):
        check(rig, frame, answer, 8000, cut=cut)


def test_extension_headers_and_fragments(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("plain")
    frame = Frame(family=6, ext=((DESTINATION, 1), (AH, 2), (FRAGMENT, 0)), payload=b"x" * 32)
    answer = frame.answer(sport=ENVOY, flags=ACK)
    for offset, more in ((0, False), (0, True), (4, False)):
        check(rig, frame, answer.but(ext_fragment=(offset, more)), 8000)
        check(rig, Frame(), Frame(fragment=(offset, more)).answer(sport=ENVOY, flags=ACK), 8000)


@settings(max_examples=200)
@given(
    frame=recipes(),
    known=st.sampled_from((None, 80, 8000, 8000)),
    state=st.integers(0, 15),
    missing=st.sampled_from((0, 0, 0, 1, 19, 40)),
    from_envoy=st.booleans(),
    variant=st.sampled_from(("plain", "no timers")),
)
def test_any_frame(
    rig_of: Callable[[str], Rig],
    frame: Frame,
    known: int | None,
    state: int,
    missing: int,
    from_envoy: bool,
    variant: str,
) -> None:
    rig = rig_of(variant)
    answer = frame.answer(sport=ENVOY) if from_envoy else frame.answer()
    cut = max(len(answer.bytes()) - missing, 15 if frame.tags else SHORTEST[frame.family])
    check(rig, frame, answer, known, state, cut)
