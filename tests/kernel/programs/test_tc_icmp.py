# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""ICMP errors that quote packets of redirected connections: the quoted port is translated, both ways.

Frames are made by scapy, the quoted port is found by the oracle, checksums are scapy's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernel.programs import frames
from tests.kernel.programs import scapy_layers as scapy
from tests.kernel.programs.frames import AH, DESTINATION, FRAGMENT, HOP_BY_HOP, Frame, same
from tests.kernel.programs.oracle import ACK, SYN, Segment, locate
from tests.kernel.programs.rig import NEXT, Rig
from tests.kernel.programs.test_tc_ingress import ENVOY, FAMILIES, flow_of, recipes

settings.load_profile("programs")

ROUTER, ROUTER6 = "10.0.0.2", "fd00:10::2"
# RFC 792 and RFC 4443, section 2.1.
ERRORS = {4: {3, 4, 5, 11, 12}, 6: {1, 2, 3, 4}}


@dataclass(frozen=True)
class Error:
    """A recipe of an ICMP error that quotes the first *cut* bytes of a packet."""

    quoted: bytes
    family: int = 4
    type: int = 3
    code: int = 4
    cut: int | None = None
    destination: str = ""
    tags: tuple[int, ...] = ()
    options: int = 0
    mac: str = frames.HOST_MAC

    def but(self, **changes: Any) -> Error:
        """The same with changes."""
        return replace(self, **changes)

    @property
    def checksum_at(self) -> int:
        """Where the ICMP checksum is in the frame."""
        return 14 + 4 * len(self.tags) + (20 + 4 * self.options if self.family == 4 else 40) + 2

    def bytes(self) -> bytes:
        """The frame."""
        message = bytes([self.type, self.code, 0, 0, 0, 0, 5, 20]) + self.quoted[: self.cut]
        if self.family == 4:
            total = scapy.checksum(message)
            made = message[:2] + total.to_bytes(2, "big") + message[4:]
            options = [scapy.IPOption_NOP()] * 4 * self.options
            ip = scapy.IP(src=ROUTER, dst=self.destination or frames.SERVER, proto=1, options=options)
        else:
            ip = scapy.IPv6(src=ROUTER6, dst=self.destination or frames.SERVER6, nh=58)
            total = scapy.in6_chksum(58, ip, message)
            made = message[:2] + total.to_bytes(2, "big") + message[4:]
        types = [*self.tags, 0x0800 if self.family == 4 else 0x86DD]
        tags = b"".join((100).to_bytes(2, "big") + kind.to_bytes(2, "big") for kind in types[1:])
        link = bytes(scapy.Ether(src=frames.OTHER_MAC, dst=self.mac, type=types[0]))
        return link + tags + bytes(ip / scapy.Raw(made))


def port_of(error: Error) -> Segment | None:
    """The quoted packet's ports, where it is an error that shows them."""
    found = locate(
        error.quoted[: error.cut],
        link_header=False,
        ethertype=0x0800 if error.family == 4 else 0x86DD,
        ports_only=True,
    )
    if error.type not in ERRORS[error.family] or isinstance(found, str):
        return None
    return found


def with_port(error: Error, port: int, *, source: bool) -> Error:
    """The error with another port in what it quotes."""
    found = port_of(error)
    assert found is not None
    at = found.at + (0 if source else 2)
    return error.but(quoted=error.quoted[:at] + port.to_bytes(2, "big") + error.quoted[at + 2 :])


def run(rig: Rig, hook: str, error: Error, wanted: Error | None) -> None:
    """Run the frame; *wanted* is what it becomes, None that it passes as it is."""
    rig.moved()
    before = rig.flows()
    raw = error.bytes()
    retval, out = rig.run(rig.load(hook), raw)
    assert retval == NEXT
    counter = {"ingress": "errors_redirected", "egress": "errors_restored"}[hook]
    if wanted is None:
        assert out == raw
        assert rig.moved() == {}
    else:
        assert same(out, wanted.bytes(), error.checksum_at)
        assert out != raw
        assert rig.moved() == {f"{hook}.{counter}": 1}
    assert rig.flows() == before


def answer_to(request: Frame, **changes: Any) -> Error:
    """A router's error about the answer to *request*, which it saw come from the application's port."""
    answer = request.answer(flags=ACK, payload=b"a" * 100, **changes)
    return Error(answer.packet(), request.family, type=3 if request.family == 4 else 2)


# --- Errors of routers about what Envoy has sent. -----------------------------------------------------------


@pytest.mark.parametrize("tags", [(), (0x8100,), (0x88A8, 0x8100)])
@pytest.mark.parametrize("request_", FAMILIES)
def test_the_quoted_port_becomes_envoys(
    rig_of: Callable[[str], Rig], request_: Frame, tags: tuple[int, ...]
) -> None:
    rig = rig_of("plain")
    rig.put(flow_of(request_), 8000)
    error = answer_to(request_).but(tags=tags)
    run(rig, "ingress", error, with_port(error, ENVOY, source=True))


@pytest.mark.parametrize("request_", FAMILIES)
def test_every_type(rig_of: Callable[[str], Rig], request_: Frame) -> None:
    """Errors, and none of the messages that are not: an echo may well hold what looks like a quotation."""
    rig = rig_of("plain")
    rig.put(flow_of(request_), 8000)
    translated = set()
    for number in range(256):
        error = answer_to(request_).but(type=number, code=0)
        is_error = number in ERRORS[request_.family]
        run(rig, "ingress", error, with_port(error, ENVOY, source=True) if is_error else None)
        if is_error:
            translated.add(number)
    assert translated == ERRORS[request_.family]


@pytest.mark.parametrize("request_", FAMILIES)
def test_what_is_known_of_the_flow_decides(rig_of: Callable[[str], Rig], request_: Frame) -> None:
    rig = rig_of("plain")
    error = answer_to(request_)
    run(rig, "ingress", error, None)  # no flow
    rig.put(flow_of(request_), 80)
    run(rig, "ingress", error, None)  # a flow to another port: this was not Envoy's
    rig.clear()
    for other in (request_.but(sport=40001), request_.but(client=request_.addresses[1])):
        rig.put(flow_of(other), 8000)
        run(rig, "ingress", error, None)
        rig.clear()
    rig.put(flow_of(request_), 8000)
    run(rig, "ingress", error.but(mac=frames.OTHER_MAC), None)  # for another machine
    run(rig, "ingress", error, with_port(error, ENVOY, source=True))


@pytest.mark.parametrize("words", range(11))
def test_ip_options_outside_and_inside(rig_of: Callable[[str], Rig], words: int) -> None:
    rig = rig_of("plain")
    request = Frame()
    rig.put(flow_of(request), 8000)
    error = answer_to(request, options=words).but(options=10 - words)
    run(rig, "ingress", error, with_port(error, ENVOY, source=True))


@pytest.mark.parametrize("ihl", [0, 1, 4, 5, 6, 15])
def test_a_quoted_header_with_a_length_that_is_none(rig_of: Callable[[str], Rig], ihl: int) -> None:
    rig = rig_of("plain")
    request = Frame()
    rig.put(flow_of(request), 8000)
    error = answer_to(request)
    broken = error.but(quoted=bytes([0x40 | ihl]) + error.quoted[1:])
    run(rig, "ingress", broken, with_port(error, ENVOY, source=True) if ihl == 5 else None)


@pytest.mark.parametrize("chain", [(HOP_BY_HOP,), (DESTINATION, AH), (FRAGMENT,), (HOP_BY_HOP,) * 6])
def test_extension_headers_in_what_is_quoted(rig_of: Callable[[str], Rig], chain: tuple[int, ...]) -> None:
    rig = rig_of("plain")
    request = Frame(family=6)
    rig.put(flow_of(request), 8000)
    error = answer_to(request, ext=tuple((number, 0) for number in chain))
    run(rig, "ingress", error, with_port(error, ENVOY, source=True))
    longer = answer_to(request, ext=((DESTINATION, 0),) * 7)
    run(rig, "ingress", longer, None)


@pytest.mark.parametrize("request_", FAMILIES)
def test_fragments_and_other_protocols_are_left_alone(rig_of: Callable[[str], Rig], request_: Frame) -> None:
    rig = rig_of("plain")
    rig.put(flow_of(request_), 8000)
    if request_.family == 4:
        first: dict[str, Any] = {"fragment": (0, True)}
        later: dict[str, Any] = {"fragment": (1, True)}
    else:
        first = {"ext": ((FRAGMENT, 0),), "ext_fragment": (0, True)}
        later = {"ext": ((FRAGMENT, 0),), "ext_fragment": (1, True)}
    error = answer_to(request_, **first)
    run(rig, "ingress", error, with_port(error, ENVOY, source=True))
    run(rig, "ingress", answer_to(request_, **later), None)
    run(rig, "ingress", answer_to(request_, protocol=frames.UDP_PROTOCOL), None)


@pytest.mark.parametrize("request_", [*FAMILIES, pytest.param(Frame(options=3), id="options")])
def test_quotations_cut_at_every_byte(rig_of: Callable[[str], Rig], request_: Frame) -> None:
    """Where the ports are whole they are translated, and nothing is dropped where they are not."""
    rig = rig_of("plain")
    rig.put(flow_of(request_), 8000)
    error = answer_to(request_, options=request_.options)
    header = 20 + 4 * request_.options if request_.family == 4 else 40
    for cut in range(header + 24):
        short = error.but(cut=cut)
        run(rig, "ingress", short, with_port(short, ENVOY, source=True) if cut >= header + 4 else None)


def test_another_envoy_port(rig_of: Callable[[str], Rig]) -> None:
    rig = rig_of("masked mark")
    request = Frame()
    rig.put(flow_of(request), 8000)
    error = answer_to(request)
    run(rig, "ingress", error, with_port(error, 15001, source=True))


# --- Errors of this host about what clients have sent. ------------------------------------------------------


def refusal_of(request: Frame) -> Error:
    """This host's error about a packet of the client, which had been redirected when it was refused."""
    about = request.but(dport=ENVOY, flags=SYN, payload=b"")
    error = Error(about.packet(), request.family, type=3 if request.family == 4 else 1, code=3)
    return error.but(destination=request.addresses[0])


@pytest.mark.parametrize("port", [80, 8000, 65535])
@pytest.mark.parametrize("request_", FAMILIES)
def test_the_client_is_told_of_the_port_it_addressed(
    rig_of: Callable[[str], Rig], request_: Frame, port: int
) -> None:
    rig = rig_of("plain")
    run(rig, "egress", refusal_of(request_), None)
    rig.put(flow_of(request_), port)
    error = refusal_of(request_)
    run(rig, "egress", error, with_port(error, port, source=False))
    other = Error(request_.but(dport=8081).packet(), request_.family, error.type, 3, destination="")
    run(rig, "egress", other, None)


@pytest.mark.parametrize("request_", FAMILIES)
def test_every_type_on_the_way_out(rig_of: Callable[[str], Rig], request_: Frame) -> None:
    rig = rig_of("plain")
    rig.put(flow_of(request_), 8000)
    for number in range(256):
        error = refusal_of(request_).but(type=number)
        is_error = number in ERRORS[request_.family]
        run(rig, "egress", error, with_port(error, 8000, source=False) if is_error else None)


# --- Any. ---------------------------------------------------------------------------------------------------


@settings(max_examples=400)
@given(data=st.data())
def test_any_error(rig_of: Callable[[str], Rig], data: st.DataObject) -> None:
    """Whatever is quoted, of whatever kind and length: what the oracle finds is translated, no more."""
    rig = rig_of("plain")
    rig.clear()
    hook = data.draw(st.sampled_from(["ingress", "egress"]))
    quoted = data.draw(recipes())
    known = data.draw(st.sampled_from([8000, 80, 9005, None]))
    port = data.draw(st.sampled_from([8000, 80, ENVOY]))
    quoted = quoted.but(sport=port) if hook == "ingress" else quoted.but(dport=port)
    request = quoted.answer() if hook == "ingress" else quoted
    if known is not None:
        rig.put(flow_of(request), known)
    error = Error(
        quoted.packet(),
        quoted.family,
        data.draw(st.sampled_from([*ERRORS[quoted.family], 0, 8, 128])),
        data.draw(st.integers(0, 15)),
        data.draw(st.one_of(st.none(), st.integers(0, 120))),
        tags=data.draw(st.sampled_from([(), (0x8100,)])),
        options=data.draw(st.integers(0, 10)) if quoted.family == 4 else 0,
    )
    found = port_of(error)
    if found is None or known is None or port != (known if hook == "ingress" else ENVOY):
        wanted = None
    elif hook == "ingress":
        wanted = with_port(error, ENVOY, source=True)
    else:
        wanted = with_port(error, known, source=False)
    run(rig, hook, error, wanted)
