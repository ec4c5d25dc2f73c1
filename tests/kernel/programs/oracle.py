# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What should happen to a frame, written from the rules and from the header formats, with nothing taken from
the programs (RFC 791, 4302, 5961, 8200, 9293; IEEE 802.1Q)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
ESTABLISHED, FIN_CLIENT, FIN_SERVER, RESET = 1, 2, 4, 8

OTHER, MALFORMED = "other", "malformed"
_EXTENSIONS = {0, 43, 60}  # hop-by-hop, routing, destination options
_FRAGMENT, _AH = 44, 51


@dataclass(frozen=True)
class Segment:
    """A TCP header that was found: where, and what of it matters."""

    at: int
    family: int
    source: bytes
    destination: bytes
    sport: int
    dport: int
    seq: int
    ack: int
    flags: int


def locate(
    frame: bytes, *, link_header: bool = True, ethertype: int = 0, ports_only: bool = False
) -> Segment | str:
    """Find the TCP header of *frame*; `OTHER` where it has none, `MALFORMED` where it can't be read.

    Without a link header the type comes with the packet. With *ports_only* the first 4 bytes of a header are
    enough.
    """
    at = 0
    if link_header:
        ethertype = int.from_bytes(frame[12:14], "big")
        at = 14
        for _ in range(2):
            if ethertype in (0x8100, 0x88A8):
                if len(frame) < at + 4:
                    return MALFORMED
                ethertype = int.from_bytes(frame[at + 2 : at + 4], "big")
                at += 4
    if ethertype == 0x0800:
        return _ipv4(frame, at, 4 if ports_only else 20)
    if ethertype == 0x86DD:
        return _ipv6(frame, at, 4 if ports_only else 20)
    return OTHER


def _ipv4(frame: bytes, at: int, need: int) -> Segment | str:
    header = frame[at : at + 20]
    if len(header) < 20:
        return MALFORMED
    length = (header[0] & 15) * 4
    offset = int.from_bytes(header[6:8], "big") & 0x1FFF
    if header[9] != 6 or offset or length < 20:
        return OTHER
    mapped = bytes(10) + b"\xff\xff"
    return _tcp(frame, at + length, need, 2, mapped + header[12:16], mapped + header[16:20])


def _ipv6(frame: bytes, at: int, need: int) -> Segment | str:
    header = frame[at : at + 40]
    if len(header) < 40:
        return MALFORMED
    upper, at = header[6], at + 40
    passed = 0
    while upper in _EXTENSIONS or upper in (_FRAGMENT, _AH):
        if passed == 6:
            return MALFORMED
        passed += 1
        if len(frame) < at + 8:  # the shortest of each
            return MALFORMED
        following = frame[at]
        if upper == _FRAGMENT:
            if int.from_bytes(frame[at + 2 : at + 4], "big") >> 3:
                return OTHER
            at += 8
        elif upper == _AH:
            at += (frame[at + 1] + 2) * 4
        else:
            at += (frame[at + 1] + 1) * 8
        upper = following
    if upper != 6:
        return OTHER
    return _tcp(frame, at, need, 10, header[8:24], header[24:40])


def _tcp(frame: bytes, at: int, need: int, family: int, source: bytes, destination: bytes) -> Segment | str:
    if len(frame) < at + need:
        return MALFORMED
    header = frame[at : at + 20].ljust(20, b"\0")
    sport, dport, seq, ack, _, flags = struct.unpack_from(">HHIIBB", header)
    return Segment(at, family, source, destination, sport, dport, seq, ack, flags)


@dataclass
class Outcome:
    """What becomes of a frame: dropped or not, the port that is written over another, the counters."""

    drop: bool = False
    dport: int | None = None
    sport: int | None = None
    counted: tuple[str, ...] = ()

    def moved(self, hook: str) -> dict[str, int]:
        """The counters as `Rig.moved` gives them."""
        return {f"{hook}.{name}": 1 for name in self.counted}


def _never(_: Segment) -> bool:
    return False


# How far from what is expected a sequence number is believed.
NEAR = 1 << 20


@dataclass
class Model:
    """The proxy's rules for frames, and its flow map as a dictionary.

    ``in_use`` says whether a live socket has the tuple that a connection would get, ``forwarded`` whether its
    destination is another host. ``syn_acks`` has the sequence numbers of the SYN-ACKs that were seen,
    ``queue`` the flows that wait for the end of their handshake, ``begun`` of them in all.
    """

    ports: tuple[tuple[int, int], ...]
    envoy_port: int = 8080
    mark: int = 4242
    mask: int = 0xFFFFFFFF
    capacity: int = 1 << 16
    timers: bool = True
    loopback: bool = False
    link_header: bool = True
    in_use: Callable[[Segment], bool] = _never
    forwarded: Callable[[Segment], bool] = _never
    flows: dict[bytes, list[int]] = field(default_factory=dict)
    queue: dict[int, bytes] = field(default_factory=dict)
    begun: int = 0
    syn_acks: dict[bytes, int] = field(default_factory=dict)

    def wanted(self, port: int) -> bool:
        """Whether the port is intercepted."""
        return any(first <= port <= last for first, last in self.ports)

    def table(self) -> dict[bytes, tuple[int, int, int]]:
        """The flows as `Rig.flows` gives them."""
        return {key: (port, state, seq) for key, (port, state, seq) in self.flows.items()}

    def ingress(self, frame: bytes, *, mark: int = 0, host: bool = True, ethertype: int = 0) -> Outcome:
        """A frame that arrives."""
        found = locate(frame, link_header=self.link_header, ethertype=ethertype)
        if found == MALFORMED and host:
            return Outcome(drop=True, counted=("dropped_malformed",))
        if isinstance(found, str) or not host:
            return Outcome()
        direct = found.dport == self.envoy_port
        if not direct and not self.wanted(found.dport):
            return Outcome()
        if mark & self.mask == self.mark:
            return Outcome(counted=("passed_marked",))
        key = found.source + found.destination + struct.pack(">HBB", found.sport, 6, found.family)
        opens = found.flags & (SYN | ACK | RST | FIN) == SYN
        flow = self.flows.get(key)
        if direct:
            return self._direct(found, key, flow) if opens else Outcome()
        if opens:
            return self._opens(found, key, flow)
        if flow is None or flow[0] != found.dport:
            return Outcome(counted=("passed_without_flow",))
        self._follow(key, found, FIN_CLIENT)
        return Outcome(dport=self.envoy_port, counted=("redirected",))

    def _direct(self, found: Segment, key: bytes, flow: list[int] | None) -> Outcome:
        if flow is not None and flow[2] == found.seq:
            return Outcome()  # the SYN that another hook has translated already
        if self.loopback:
            if flow is not None:
                if self.in_use(found):
                    return Outcome()
                del self.flows[key]
            return Outcome()
        if self.forwarded(found):
            return Outcome()
        return Outcome(drop=True, counted=("dropped_direct",))

    def _opens(self, found: Segment, key: bytes, flow: list[int] | None) -> Outcome:
        if flow is not None and flow[0] == found.dport:
            flow[2] = found.seq
            if self._over(flow[1]):
                flow[1] = 0
            return Outcome(dport=self.envoy_port, counted=("redirected",))
        if not self.loopback and self.forwarded(found):
            return Outcome(counted=("passed_forwarded",))
        if self.in_use(found):
            return Outcome(dport=self.envoy_port, counted=("challenged_tuple_in_use", "redirected"))
        evicted = self._queue_up(key)
        if key not in self.flows and len(self.flows) >= self.capacity:
            return Outcome(drop=True, counted=(*evicted, "dropped_map_full"))
        self.flows[key] = [found.dport, 0, found.seq]
        self.syn_acks.pop(key, None)
        return Outcome(dport=self.envoy_port, counted=(*evicted, "new_flows", "redirected"))

    def _queue_up(self, key: bytes) -> tuple[str, ...]:
        """A flow takes the next place among those that wait for the end of their handshake."""
        places = 1
        while places * 4 <= self.capacity:
            places *= 2
        self.begun += 1
        place = self.begun % places
        last, self.queue[place] = self.queue.get(place), key
        if last is None or last not in self.flows or self.flows[last][1] & ESTABLISHED:
            return ()
        del self.flows[last]
        return ("evicted_half_open",)

    def egress(self, frame: bytes, *, ethertype: int = 0) -> Outcome:
        """A frame that leaves."""
        found = locate(frame, link_header=self.link_header, ethertype=ethertype)
        if isinstance(found, str) or found.sport != self.envoy_port:
            return Outcome()
        key = found.destination + found.source + struct.pack(">HBB", found.dport, 6, found.family)
        flow = self.flows.get(key)
        if flow is None:
            return Outcome(counted=("passed_without_flow",))
        port = flow[0]
        self._follow(key, found, FIN_SERVER)
        return Outcome(sport=port, counted=("restored",))

    @staticmethod
    def _over(state: int) -> bool:
        return bool(state & RESET) or state & (FIN_CLIENT | FIN_SERVER) == FIN_CLIENT | FIN_SERVER

    def _follow(self, key: bytes, found: Segment, fin: int) -> None:
        flow, flags = self.flows[key], found.flags
        if fin == FIN_CLIENT:
            # What the server sends says nothing of whether its client exists.
            if flags & ACK and 0 <= _ahead(found.ack, self.syn_acks.get(key, 0) + 1) < NEAR:
                flow[1] = flow[1] if flow[1] & ESTABLISHED else flow[1] & ~RESET | ESTABLISHED
        elif flags & SYN:
            flow[1] = 0
            self.syn_acks[key] = found.seq
        elif not flags & RST:
            flow[1] &= ~RESET
        flow[1] |= (fin if flags & FIN else 0) | (RESET if flags & RST else 0)
        if not self.timers and self._over(flow[1]) and (flags & RST or not flags & FIN):
            del self.flows[key]


def _ahead(one: int, other: int) -> int:
    """How far a sequence number is ahead of another (RFC 9293, section 3.4)."""
    return (one - other + (1 << 31)) % (1 << 32) - (1 << 31)
