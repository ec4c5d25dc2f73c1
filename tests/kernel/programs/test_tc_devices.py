# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The TC programs on real devices, with the kernel's own TCP as the judge of what they make.

A tap or tun device gives packets of any shape to the stack: without a link header, and with headers outside
the linear part, which a test run can't make. A veth pair carries connections with checksum and segmentation
offload on and off.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from loader import tc_clsact
from loader.features import Feature, probe
from loader.netns import NetNs, interface
from loader.objects import Link, Program
from loader.process import CLONE_NEWNET, setns, unshare
from programs.packet import Interface
from programs.settings import Ports, Settings
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, TcxAction
from pybpfasm.program import sched_cls
from tests.kernel.programs import frames
from tests.kernel.programs import scapy_layers as scapy
from tests.kernel.programs.frames import AH, DESTINATION, FRAGMENT, HOP_BY_HOP, Frame
from tests.kernel.programs.oracle import ACK, FIN, PSH, RST, SYN
from tests.kernel.programs.rig import Rig, place_for_timer, ready
from tests.requires import requires

ENVOY, SERVICE = 8080, 8000
# linux/if_tun.h
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 1, 2, 0x1000, 0x4000
MAC = "02:00:00:00:00:01"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has entered into it."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """An instance with the programs for links with and without a header."""
    with Rig(Settings(Ports.parse("8000,9000"))) as made:
        for link in (Interface(), Interface(link_header=False)):
            made.load("ingress", link)
            made.load("egress", link)
        yield made


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def attach(stack: ExitStack, rig: Rig, name: str, link: Interface = Interface()) -> None:  # noqa: B008 (it is frozen)
    index = interface(name).index
    for hook, kind in (("ingress", AttachType.TCX_INGRESS), ("egress", AttachType.TCX_EGRESS)):
        if probe(Feature.TCX).supported:
            stack.enter_context(Link.tcx(rig.load(hook, link), index, kind))
        else:
            tc_clsact.attach(rig.load(hook, link), index, kind, name=hook)  # goes with the device


class Tun:
    """A tun or tap device, and its other end in our hands. ``last`` is the TCP header of the last answer."""

    last: Any

    def __init__(self, kind: int) -> None:
        self.tap = kind == IFF_TAP
        self.file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.file, TUNSETIFF, struct.pack("16sH22x", b"dev0", kind | IFF_NO_PI | IFF_VNET_HDR))
        if self.tap:
            ip("link", "set", "dev0", "address", MAC)
        ip("addr", "add", "192.168.178.10/24", "dev", "dev0")
        ip("addr", "add", "fd00:192::10/64", "dev", "dev0", "nodad")
        ip("link", "set", "dev0", "up")
        ready("dev0")
        ip("route", "add", "10.0.0.0/8", "dev", "dev0")
        ip("-6", "route", "add", "fd00:10::/64", "dev", "dev0")
        if self.tap:
            for address in (frames.CLIENT, frames.CLIENT6):
                ip("neigh", "add", address, "lladdr", frames.OTHER_MAC, "dev", "dev0")

    def send(self, frame: Frame, linear: int = 0, cut: int | None = None) -> None:
        """Give a packet to the host, of more than a page only *linear* bytes in the linear part."""
        raw = (frame.but(mac=MAC).bytes() if self.tap else frame.packet())[:cut]
        place_for_timer()  # the programs run on this CPU, within the call
        os.write(self.file, struct.pack("=BBHHHH", 0, 0, linear, 0, 0, 0) + raw)

    def answer(self, frame: Frame, timeout: float = 3.0) -> tuple[int, int, int] | None:
        """Source port, flags and acknowledgement number of the answer to *frame*, or None."""
        deadline = time.monotonic() + timeout
        kind = scapy.IP if frame.family == 4 else scapy.IPv6
        while select.select([self.file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raw = os.read(self.file, 1 << 16)[10:]
            packet = frames.parse(raw) if self.tap else (scapy.IP if raw[0] >> 4 == 4 else scapy.IPv6)(raw)
            if kind in packet and scapy.TCP in packet and packet[scapy.TCP].dport == frame.sport:
                tcp = self.last = packet[scapy.TCP]
                return int(tcp.sport), int(tcp.flags), int(tcp.ack)
        return None

    def close(self) -> None:
        """Remove the device."""
        os.close(self.file)


@contextmanager
def device(kind: int) -> Iterator[Tun]:
    made = Tun(kind)
    try:
        yield made
    finally:
        made.close()


def opened(tap: Tun, frame: Frame) -> Frame:
    """Make *frame* the SYN of a connection to Envoy; return the next segment of its client."""
    tap.send(frame)
    assert tap.answer(frame) == (SERVICE, SYN | ACK, frame.seq + 1)
    client = frame.but(flags=ACK, seq=frame.seq + 1, ack=tap.last.seq + 1)
    tap.send(client)
    return client


def listen(stack: ExitStack, port: int) -> socket.socket:
    """A listener for both families."""
    listener = stack.enter_context(socket.socket(socket.AF_INET6))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::", port))
    listener.listen(64)
    return listener


RECIPES = [
    pytest.param(Frame(), id="ipv4"),
    pytest.param(Frame(options=10), id="ipv4 with options"),
    pytest.param(Frame(family=6), id="ipv6"),
    pytest.param(Frame(family=6, ext=((HOP_BY_HOP, 2), (DESTINATION, 3))), id="ipv6 with extension headers"),
]
# Bytes in the linear part: the link header alone, a part of the IP header, of the TCP header, all of them.
LINEAR = [14, 15, 20, 33, 34, 38, 53, 54, 60, 73, 74, 100, 200]


@pytest.mark.parametrize("linear", LINEAR)
@pytest.mark.parametrize("frame", RECIPES)
def test_headers_outside_the_linear_part(
    in_netns: NetNs, stack: ExitStack, rig: Rig, frame: Frame, linear: int
) -> None:
    """The SYN-ACK shows that the stack took the SYN for Envoy's port, its checksum included."""
    rig.clear()
    tap = stack.enter_context(device(IFF_TAP))
    listen(stack, ENVOY)
    attach(stack, rig, "dev0")
    sent = frame.but(payload=b"p" * 5000, seq=100)
    tap.send(sent, linear)
    assert tap.answer(sent) == (SERVICE, SYN | ACK, 101)
    assert rig.moved() == {"ingress.new_flows": 1, "ingress.redirected": 1, "egress.restored": 1}


@requires(Feature.TCX)
def test_the_packets_of_that_test_are_not_linear(in_netns: NetNs, stack: ExitStack) -> None:
    """What the tests above rest upon: without pulling, the headers would not be in reach."""

    @sched_cls(AttachType.TCX_INGRESS)
    def short_is_lost(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.data
        b.r3 = ctx.data_end
        b.r2 += 54
        b.r0 = TcxAction.NEXT
        with b.If(b.r2 > b.r3):
            b.r0 = TcxAction.DROP
        b.exit()

    tap = stack.enter_context(device(IFF_TAP))
    listen(stack, ENVOY)
    program = stack.enter_context(Program.load(short_is_lost.build()))
    stack.enter_context(Link.tcx(program, interface("dev0").index, AttachType.TCX_INGRESS))
    for sport, linear, arrives in ((1, 20, False), (2, 53, False), (3, 54, True)):
        sent = Frame(dport=ENVOY, sport=sport, payload=b"p" * 5000)
        tap.send(sent, linear)
        assert (tap.answer(sent, 3.0 if arrives else 0.2) is not None) == arrives


@pytest.mark.parametrize("frame", [*RECIPES, pytest.param(Frame(family=6, ext=((AH, 0),)), id="ah")])
def test_frames_cut_at_every_byte_on_a_device(
    in_netns: NetNs, stack: ExitStack, rig: Rig, frame: Frame
) -> None:
    """Shorter ones than a test run takes, too: dropped and counted, until the TCP header is whole."""
    rig.clear()
    tap = stack.enter_context(device(IFF_TAP))
    attach(stack, rig, "dev0")
    whole = len(frame.bytes())
    for cut in range(15, whole):
        tap.send(frame, cut=cut)
    assert rig.moved() == {"ingress.dropped_malformed": whole - 15}
    tap.send(frame)
    assert rig.moved()["ingress.redirected"] == 1


@pytest.mark.parametrize("frame", RECIPES)
def test_a_link_without_a_header(in_netns: NetNs, stack: ExitStack, rig: Rig, frame: Frame) -> None:
    rig.clear()
    tun = stack.enter_context(device(IFF_TUN))
    listen(stack, ENVOY)
    attach(stack, rig, "dev0", Interface(link_header=False))
    tun.send(frame.but(seq=100))
    assert tun.answer(frame) == (SERVICE, SYN | ACK, 101)
    assert rig.moved() == {"ingress.new_flows": 1, "ingress.redirected": 1, "egress.restored": 1}
    # Large and not linear, from a byte within the IP header on.
    other = frame.but(sport=41000, seq=200, payload=b"p" * 5000)
    tun.send(other, linear=3)
    assert tun.answer(other) == (SERVICE, SYN | ACK, 201)
    # Cut at every byte.
    rig.moved()
    for cut in range(1, len(frame.packet())):
        tun.send(frame, cut=cut)
    moved = rig.moved()
    moved.pop("egress.restored", None)  # a SYN-ACK that is sent again
    assert moved == {"ingress.dropped_malformed": len(frame.packet()) - 1}


@pytest.mark.parametrize("family", [4, 6])
def test_fragments_are_put_together_behind_the_program(
    in_netns: NetNs, stack: ExitStack, rig: Rig, family: int
) -> None:
    """The first fragment is translated, the others pass; the stack takes the whole for a good SYN."""
    rig.clear()
    tap = stack.enter_context(device(IFF_TAP))
    listen(stack, ENVOY)
    attach(stack, rig, "dev0")
    whole = Frame(family=family, seq=7, payload=bytes(range(256)) * 4)
    packet = whole.packet()
    header = 20 if family == 4 else 40
    head, data = packet[:header], packet[header:]
    pieces = [(at, data[at : at + 400]) for at in range(0, len(data), 400)]
    for at, piece in [*pieces[1:], pieces[0]]:
        more = at + len(piece) < len(data)
        if family == 4:
            ip4 = scapy.IP(head)
            ip4.flags, ip4.frag, ip4.id = ("MF" if more else 0), at // 8, 77
            del ip4.len, ip4.chksum
            made = bytes(ip4 / scapy.Raw(piece))
        else:
            extension = bytes([6, 0]) + (at | more).to_bytes(2, "big") + b"\0\0\0\x4d"
            ip6 = scapy.IPv6(head)
            del ip6.plen
            ip6.nh = FRAGMENT
            ip6.remove_payload()
            made = bytes(ip6 / scapy.Raw(extension + piece))
        ethernet = whole.but(mac=MAC).bytes()[:14]
        place_for_timer()
        os.write(tap.file, bytes(10) + ethernet + made)
    assert tap.answer(whole) == (SERVICE, SYN | ACK, 8)
    assert rig.moved() == {"ingress.new_flows": 1, "ingress.redirected": 1, "egress.restored": 1}


# --- What only a socket can judge. -----------------------------------------------------------------------


def serve(stack: ExitStack, rig: Rig) -> tuple[Tun, socket.socket]:
    """A tap device with the programs on it, and a listener at Envoy's port."""
    rig.clear()
    tap = stack.enter_context(device(IFF_TAP))
    listener = listen(stack, ENVOY)
    attach(stack, rig, "dev0")
    return tap, listener


BOTH_FAMILIES = pytest.mark.parametrize("family", [4, 6])


@BOTH_FAMILIES
@pytest.mark.parametrize("timers", [True, False])
def test_a_forged_reset_does_not_end_a_flow(
    in_netns: NetNs, stack: ExitStack, family: int, timers: bool
) -> None:
    """Without the right sequence number it is nothing to TCP, nor to the flow, however quiet that is."""
    with Rig(Settings(Ports.parse("8000"), linger_seconds=1, timers=timers, coarse_clock=timers)) as rig:
        tap, _ = serve(stack, rig)
        client = opened(tap, Frame(family=family, seq=100))
        reset = client.but(flags=RST)
        for distance in (1 << 21, -2, -(1 << 20), 1 << 31):
            tap.send(reset.but(seq=(client.seq + distance) % (1 << 32)))
            assert [state for _, state, _ in rig.flows().values()] == [1]
        time.sleep(2.5)  # a flow that has ended would be gone
        tap.send(client.but(flags=ACK | PSH, payload=b"data"))
        assert tap.answer(client) == (SERVICE, ACK, client.seq + 4)
        tap.send(reset.but(seq=client.seq + 4))
        if rig.settings.timers:
            assert [state for _, state, _ in rig.flows().values()] == [1 | 8]
        else:
            assert rig.flows() == {}


@requires(Feature.TIMER)
@BOTH_FAMILIES
def test_a_reset_that_tcp_asks_about(in_netns: NetNs, stack: ExitStack, rig: Rig, family: int) -> None:
    """One within the window may be forged. The question shows that the connection lives."""
    tap, _ = serve(stack, rig)
    client = opened(tap, Frame(family=family, seq=100))
    tap.send(client.but(flags=RST, seq=client.seq + 5))
    assert tap.answer(client) == (SERVICE, ACK, client.seq)
    assert [state for _, state, _ in rig.flows().values()] == [1]


@requires(Feature.TIMER)
@BOTH_FAMILIES
def test_a_reset_with_the_number_of_the_fin_before_it(
    in_netns: NetNs, stack: ExitStack, rig: Rig, family: int
) -> None:
    """Some systems send it so, and Linux takes it."""
    tap, _ = serve(stack, rig)
    client = opened(tap, Frame(family=family, seq=100))
    tap.send(client.but(flags=FIN | ACK))
    assert tap.answer(client) == (SERVICE, ACK, client.seq + 1)
    tap.send(client.but(flags=RST))
    assert [state for _, state, _ in rig.flows().values()] == [1 | 2 | 8]


@BOTH_FAMILIES
@pytest.mark.parametrize("known", [False, True], ids=["no flow", "flow of another port"])
@pytest.mark.parametrize("lives", [False, True], ids=["dead", "alive"])
def test_a_tuple_that_a_socket_of_envoy_has(
    in_netns: NetNs, stack: ExitStack, rig: Rig, family: int, known: bool, lives: bool
) -> None:
    """TCP asks the client of the older connection: one that lives stays, another makes room."""
    tap, listener = serve(stack, rig)
    listener.settimeout(5)
    old = opened(tap, Frame(family=family, seq=100))
    server = stack.enter_context(listener.accept()[0])
    server.settimeout(5)
    if not known:  # as after `down` and `up`
        rig.flow_map.clear()
    before = rig.flows()
    new = old.but(dport=9000, seq=5000, flags=SYN)
    rig.moved()
    tap.send(new)
    port = SERVICE if known else ENVOY  # what the older connection's client knows, or nobody
    assert tap.answer(new) == (port, ACK, old.seq)
    moved = rig.moved()
    assert moved.pop("ingress.challenged_tuple_in_use") == moved.pop("ingress.redirected") == 1
    assert rig.flows() == before
    if lives:
        tap.send(old.but(flags=ACK | PSH, payload=b"on", dport=port))
        assert server.recv(16) == b"on"
        return
    tap.send(old.but(flags=RST, dport=port))
    with pytest.raises(ConnectionResetError):
        server.recv(1)
    tap.send(new)
    assert tap.answer(new) == (9000, SYN | ACK, 5001)


# --- A veth pair. -------------------------------------------------------------------------------------------


def offload(name: str, on: bool) -> None:
    """Checksum, segmentation and receive offload (linux/ethtool.h: ETHTOOL_STXCSUM, STSO, SGSO, SGRO)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for command in (0x17, 0x1F, 0x24, 0x2C):
            value = ctypes.create_string_buffer(struct.pack("=II", command, on), 8)
            request = struct.pack("16sP16x", name.encode(), ctypes.addressof(value))
            fcntl.ioctl(control.fileno(), 0x8946, request)  # SIOCETHTOOL


@pytest.mark.parametrize("on", [True, False], ids=["offload", "no offload"])
@pytest.mark.parametrize("family", [4, 6])
def test_connections_over_veth(in_netns: NetNs, stack: ExitStack, rig: Rig, family: int, on: bool) -> None:
    """2 MB there and back through a listener on Envoy's port, for a client that only knows the service's."""
    rig.clear()
    ip("link", "add", "srv0", "type", "veth", "peer", "name", "cli0")
    with NetNs.current() as server_side:
        unshare(CLONE_NEWNET)
        client_side = stack.enter_context(NetNs.current())
        setns(server_side.fd, CLONE_NEWNET)
        ip("link", "set", "cli0", "netns", f"/proc/{os.getpid()}/fd/{client_side.fd}")
    ip("addr", "add", "192.168.178.10/24", "dev", "srv0")
    ip("addr", "add", "fd00:192::10/64", "dev", "srv0", "nodad")
    ip("link", "set", "srv0", "up")
    offload("srv0", on)
    listener = listen(stack, ENVOY)
    with client_side.entered():
        ip("addr", "add", "192.168.178.20/24", "dev", "cli0")
        ip("addr", "add", "fd00:192::20/64", "dev", "cli0", "nodad")
        ip("link", "set", "cli0", "up")
        offload("cli0", on)
        ready("cli0")
        client = stack.enter_context(socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6))
    attach(stack, rig, "srv0")
    client.settimeout(5)
    place_for_timer()
    client.connect(("192.168.178.10" if family == 4 else "fd00:192::10", SERVICE))
    assert client.getpeername()[1] == SERVICE
    listener.settimeout(5)
    server, _ = listener.accept()
    stack.enter_context(server)
    assert server.getsockname()[1] == ENVOY

    def echo() -> None:
        while data := server.recv(1 << 16):
            server.sendall(data)
        server.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=echo)
    thread.start()
    blob = os.urandom(1 << 20) * 2

    def send() -> None:
        client.sendall(blob)
        client.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    digest = hashlib.sha256()
    while data := client.recv(1 << 16):
        digest.update(data)
    sender.join()
    thread.join()
    assert digest.digest() == hashlib.sha256(blob).digest()
    deadline = time.monotonic() + 2
    # Established, and the FIN of both sides; without timers the last acknowledgement ends it.
    wanted = [7] if rig.settings.timers else []
    while (states := [flow[1] for flow in rig.flows().values()]) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert states == wanted
    moved = rig.moved()
    assert moved.pop("ingress.new_flows") == 1
    assert set(moved) == {"ingress.redirected", "egress.restored"}
