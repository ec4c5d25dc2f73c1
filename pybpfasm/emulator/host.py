# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A model of hosts on a wire: TCP connections whose packets, events and messages pass through programs.

A `Host` has interfaces with programs at ingress and egress, sockets, and the hooks of a cgroup. Two hosts
that are linked talk TCP as far as programs can tell: handshake, data, acknowledgements, both FINs, resets.
There is no loss, no window and no retransmission. Everything happens at once and in order, until nothing is
left to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from pybpfasm.emulator import checksum, errnos
from pybpfasm.emulator.context import Skb, SkMsg, SockOpsContext, SockOptContext
from pybpfasm.emulator.emulator import Emulator
from pybpfasm.emulator.faults import EmulatorError
from pybpfasm.emulator.maps import Map, SockHash
from pybpfasm.emulator.program import Program
from pybpfasm.emulator.sockets import Address, Socket, address_bytes
from pybpfasm.kernel.enums import SkAction, SockOp, SockOpsFlag, TcpState, TcxAction
from pybpfasm.net import (
    AF_INET,
    AF_INET6,
    ETH_P_IP,
    ETH_P_IPV6,
    IPPROTO_TCP,
    TCP_ACK,
    TCP_FIN,
    TCP_PSH,
    TCP_RST,
    TCP_SYN,
    Ethernet,
    Ipv4,
    Ipv6,
    Tcp,
)

__all__ = ["Host", "Interface", "Refused", "Segment", "TcpSocket", "link"]

_ENDS: Final = (TcxAction.DROP, TcxAction.REDIRECT)
ENOPROTOOPT: Final = 92
PAGE_SIZE: Final = 4096


class Refused(EmulatorError):
    """A system call failed; ``errno`` is why."""

    def __init__(self, what: str, number: int) -> None:
        self.errno = number
        super().__init__(f"{what}: {errnos.name(number)}")


def _pseudo(src: bytes, dst: bytes, length: int) -> int:
    """The sum of the pseudo header, of big-endian words."""
    data = src + dst + length.to_bytes(4, "big") + IPPROTO_TCP.to_bytes(4, "big")
    return checksum.partial(data, 0, "big")


@dataclass(frozen=True)
class Segment:
    """A TCP segment with its addresses (4 or 16 bytes) and ports."""

    src: bytes
    sport: int
    dst: bytes
    dport: int
    flags: int
    seq: int = 0
    ack: int = 0
    payload: bytes = b""

    def packet(self, *, partial: bool = False, link_header: bool = True) -> bytes:
        """The packet's bytes; with *partial*, the checksum is left to the device."""
        header = Tcp.pack(
            source=self.sport,
            dest=self.dport,
            seq=self.seq,
            ack_seq=self.ack,
            doff=5 << 4,
            flags=self.flags,
            window=0xFFFF,
        )
        body = bytearray(header + self.payload)
        at = Tcp.offsetof("check")
        total = _pseudo(self.src, self.dst, len(body))
        body[at : at + 2] = (
            checksum.fold32(total) if partial else checksum.fold(checksum.partial(bytes(body), total, "big"))
        ).to_bytes(2, "big")
        if len(self.src) == 4:
            ip = bytearray(
                Ipv4.pack(
                    ihl_version=0x45,
                    tot_len=20 + len(body),
                    ttl=64,
                    protocol=IPPROTO_TCP,
                    saddr=int.from_bytes(self.src, "big"),
                    daddr=int.from_bytes(self.dst, "big"),
                )
            )
            ip[10:12] = checksum.fold(checksum.partial(bytes(ip), 0, "big")).to_bytes(2, "big")
            kind = ETH_P_IP
        else:
            ip = bytearray(
                Ipv6.pack(
                    priority_version=6 << 4,
                    payload_len=len(body),
                    nexthdr=IPPROTO_TCP,
                    hop_limit=64,
                    saddr=self.src,
                    daddr=self.dst,
                )
            )
            kind = ETH_P_IPV6
        link = Ethernet.pack(h_proto=kind) if link_header else b""
        return link + bytes(ip + body)

    @classmethod
    def parse(cls, packet: bytes, *, link_header: bool = True) -> tuple[Segment, bool] | None:
        """The segment of *packet* and whether its checksum is right; ``None`` where it holds no TCP."""
        at = Ethernet.sizeof if link_header else 0
        if len(packet) <= at:
            return None
        if packet[at] >> 4 == 4:
            length = (packet[at] & 15) * 4
            total = int.from_bytes(packet[at + 2 : at + 4], "big")
            src, dst, protocol = packet[at + 12 : at + 16], packet[at + 16 : at + 20], packet[at + 9]
            body = packet[at + length : at + total]
        else:
            src, dst, protocol = packet[at + 8 : at + 24], packet[at + 24 : at + 40], packet[at + 6]
            body = packet[at + 40 : at + 40 + int.from_bytes(packet[at + 4 : at + 6], "big")]
        if protocol != IPPROTO_TCP or len(body) < Tcp.sizeof:
            return None
        header = Tcp.unpack(body[: Tcp.sizeof])
        right = checksum.fold(checksum.partial(body, _pseudo(src, dst, len(body)), "big")) == 0
        return (
            cls(
                src,
                header.source,
                dst,
                header.dest,
                header.flags,
                header.seq,
                header.ack_seq,
                body[(header.doff >> 4) * 4 :],
            ),
            right,
        )


@dataclass(eq=False)
class TcpSocket(Socket):
    """A socket with what it has received, and the connections that wait to be accepted."""

    host: Host | None = field(default=None, repr=False)
    interface: str = "lo"
    inbox: bytearray = field(default_factory=bytearray, repr=False)
    redirected: bytearray = field(default_factory=bytearray, repr=False)
    backlog: deque[TcpSocket] = field(default_factory=deque, repr=False)
    listener: TcpSocket | None = field(default=None, repr=False)
    segs_out: int = 0
    fin_received: bool = False
    was_reset: bool = False

    @property
    def established(self) -> bool:
        """Whether data can still be sent."""
        return self.state in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT)

    def read(self) -> bytes:
        """All that has come, redirected bytes before those that came through the stack."""
        data = bytes(self.redirected + self.inbox)
        self.redirected.clear()
        self.inbox.clear()
        return data

    def accept(self) -> TcpSocket:
        """The next connection; raises `Refused` with EAGAIN."""
        if not self.backlog:
            raise Refused("accept", errnos.EAGAIN)
        return self.backlog.popleft()

    def send(self, data: bytes) -> None:
        """Send a message; raises `Refused`."""
        assert self.host is not None
        self.host.send(self, data)

    def close(self) -> None:
        """Close in this direction, by a FIN."""
        if self.host is not None and self.state != TcpState.LISTEN:
            self.host.shut(self)
        else:
            super().close()

    def reset(self) -> None:
        """Close at once, by a RST."""
        assert self.host is not None
        self.host.reset(self)

    def gone(self) -> None:
        """Leave maps and forget storage: the socket is no more."""
        super().close()


@dataclass
class Interface:
    """A network device: its number, its programs, and what it is connected to.

    ``linear`` is how many bytes of a packet programs can reach directly before they pull in more (all: None).
    """

    name: str
    ifindex: int
    ingress: list[Program] = field(default_factory=list)
    egress: list[Program] = field(default_factory=list)
    link_header: bool = True
    offload: bool = True
    linear: int | None = None
    peer: tuple[Host, str] | None = None


class Host:
    """A host: addresses, interfaces, sockets, and programs at its hooks.

    ``sock_ops``, ``getsockopt`` and ``sk_msg`` are the programs of the one cgroup that all its sockets are
    in; ``sk_msg`` belongs to ``sk_msg_map``. ``dropped`` counts packets that a program dropped.
    """

    def __init__(self, emulator: Emulator, addresses: Iterable[Address] = (), *, netns: int = 1) -> None:
        self.emulator = emulator
        self.netns = netns
        self.addresses = {address_bytes(a) for a in addresses}
        self.interfaces: dict[str, Interface] = {"lo": Interface("lo", 1)}
        self.interfaces["lo"].peer = (self, "lo")
        self.sock_ops: Program | None = None
        self.getsockopt_program: Program | None = None
        self.sk_msg: Program | None = None
        self.sk_msg_map: Map | None = None
        self.dropped = 0
        self.bad_checksums = 0
        self.captured: list[tuple[str, str, Segment]] = []
        self._work: deque[Callable[[], None]] = deque()
        self._busy = False
        self._next_port = 40000
        self._next_seq = 1000

    def interface(self, name: str, **options: Any) -> Interface:
        """Add an interface."""
        made = Interface(name, len(self.interfaces) + 1, **options)
        self.interfaces[name] = made
        return made

    def is_local(self, address: bytes) -> bool:
        """Whether *address* is this host's."""
        if address in self.addresses:
            return True
        return address[:1] == b"\x7f" if len(address) == 4 else address == bytes(15) + b"\x01"

    # Work is done in order, so that one packet has had its effect before the next comes.
    def _do(self, task: Callable[[], None]) -> None:
        self._work.append(task)
        if self._busy:
            return
        self._busy = True
        try:
            while self._work:
                self._work.popleft()()
        finally:
            self._busy = False

    # System calls.
    def listen(
        self, port: int, address: Address = "0.0.0.0", *, v6: bool = False, mark: int = 0
    ) -> TcpSocket:
        """A listening socket; with *v6* one of AF_INET6, dual-stack where its address is ``::``."""
        raw = address_bytes(address)
        if v6 and raw == bytes(4):
            raw = bytes(16)
        socket = TcpSocket(
            family=AF_INET6 if len(raw) == 16 else AF_INET,
            src=raw,
            src_port=port,
            state=TcpState.LISTEN,
            mark=mark,
            netns=self.netns,
            host=self,
        )
        self.emulator.sockets.add(socket)
        return socket

    def connect(
        self,
        address: Address,
        port: int,
        *,
        source: Address | None = None,
        source_port: int = 0,
        mark: int = 0,
        interface: str | None = None,
        v6: bool = False,
    ) -> TcpSocket:
        """Connect; raises `Refused` with ECONNREFUSED for a RST, ETIMEDOUT where nothing answers.

        With *v6* the socket is of AF_INET6 although the address may be IPv4 (v4-mapped).
        """
        raw = address_bytes(address)
        local = self.is_local(raw)
        name = "lo" if local else interface or next(n for n in self.interfaces if n != "lo")
        if source is not None:
            own = address_bytes(source)
        elif local:
            own = raw
        else:
            own = next(a for a in sorted(self.addresses) if len(a) == len(raw))
        if not source_port:
            source_port = self._next_port
            self._next_port += 1
        if self.emulator.sockets.connected(IPPROTO_TCP, own, source_port, raw, port, self.netns) is not None:
            raise Refused("connect", 99)
        self._next_seq += 10_000
        socket = TcpSocket(
            family=AF_INET6 if v6 or len(raw) == 16 else AF_INET,
            src=own,
            src_port=source_port,
            dst=raw,
            dst_port=port,
            state=TcpState.SYN_SENT,
            mark=mark,
            netns=self.netns,
            host=self,
            interface=name,
            snd_nxt=self._next_seq,
        )
        self.emulator.sockets.add(socket)
        self._event(socket, SockOp.TCP_CONNECT_CB)
        self._transmit(socket, TCP_SYN)
        if socket.state == TcpState.SYN_SENT:
            self.emulator.sockets.remove(socket)
            socket.gone()
            raise Refused("connect", 110)
        if socket.state == TcpState.CLOSE:
            raise Refused("connect", errnos.ECONNREFUSED)
        return socket

    def send(self, socket: TcpSocket, data: bytes) -> None:
        """Send on a socket, through the sk_msg program where the socket is in its map."""
        if not socket.established:
            raise Refused("send", 32)
        if self.sk_msg is not None and self.sk_msg_map in socket.members:
            message = SkMsg(socket, data)
            result = self.sk_msg.run(message)
            if result.value != SkAction.PASS:
                raise Refused("send", errnos.EACCES)
            data = message.packet
            target = message.redirect
            if isinstance(target, TcpSocket):
                target.redirected += data
                return
        self._transmit(socket, TCP_ACK | TCP_PSH, data)

    def shut(self, socket: TcpSocket) -> None:
        """Send a FIN where none has been sent."""
        after = {TcpState.ESTABLISHED: TcpState.FIN_WAIT1, TcpState.CLOSE_WAIT: TcpState.LAST_ACK}
        following = after.get(TcpState(socket.state))
        if following is not None:
            socket.state = following
            self._transmit(socket, TCP_FIN | TCP_ACK)

    def reset(self, socket: TcpSocket) -> None:
        """Send a RST and forget the socket."""
        if socket.state != TcpState.CLOSE:
            self._transmit(socket, TCP_RST | TCP_ACK)
            self._forget(socket)

    def getsockopt(
        self,
        socket: Socket,
        level: int,
        name: int,
        length: int,
        *,
        own: int = -ENOPROTOOPT,
        value: bytes = b"",
    ) -> bytes:
        """``getsockopt`` with a buffer of *length* bytes; raises `Refused`.

        *own* and *value* are the kernel's own result and answer, ENOPROTOOPT where they are not given.
        """
        if self.getsockopt_program is None:
            if own:
                raise Refused("getsockopt", -own)
            return value[:length]
        room = min(length, PAGE_SIZE)
        buffer = (value if own == 0 else b"")[:room].ljust(room, b"\0")
        before = len(value[:length]) if own == 0 else length
        context = SockOptContext(socket, buffer, level=level, optname=name, optlen=before, retval=own)
        result = self.getsockopt_program.run(context)
        optlen, retval = int(context["optlen"]), int(context["retval"])
        if result.value == 0 and retval >= 0:
            retval = -errnos.EPERM
        if retval >= 0 and not 0 <= optlen <= room:
            # What programs do not see all of, they can't answer: it stays as the kernel left it.
            retval = own if before > PAGE_SIZE and optlen >= 0 else -errnos.EFAULT
            optlen = 0
        if retval < 0:
            raise Refused("getsockopt", -retval)
        return bytes(context.optval[:optlen]) if optlen else value[:length]

    # Packets.
    def _transmit(self, socket: TcpSocket, flags: int, payload: bytes = b"") -> None:
        segment = Segment(
            socket.src,
            socket.src_port,
            socket.dst,
            socket.dst_port,
            flags,
            socket.snd_nxt & 0xFFFFFFFF,
            socket.rcv_nxt & 0xFFFFFFFF if flags & TCP_ACK else 0,
            payload,
        )
        if payload and socket.cb_flags & SockOpsFlag.WRITE_HDR_OPT_CB:
            self._event(socket, SockOp.HDR_OPT_LEN_CB, skb_len=len(payload))
        socket.snd_nxt += len(payload) + bool(flags & TCP_SYN) + bool(flags & TCP_FIN)
        socket.segs_out += bool(payload)
        self._do(lambda: self._out(segment, socket.interface, socket.mark))

    def _out(self, segment: Segment, name: str, mark: int) -> None:
        interface = self.interfaces[name]
        packet = segment.packet(partial=interface.offload, link_header=interface.link_header)
        filtered = self._filter(
            interface, interface.egress, packet, mark, "partial" if interface.offload else "none"
        )
        if filtered is None:
            return
        sent, mark = filtered
        if interface.peer is None:
            raise EmulatorError(f"interface {name} is connected to nothing")
        other, far = interface.peer
        partial = interface.offload
        if partial and other is not self:
            sent = _finish_checksum(sent, interface.link_header)
            partial = False
        self._note("out", name, sent, interface)
        if other is self:
            self.receive(sent, far, mark=mark, partial=partial)
        else:
            other.receive(sent, far)

    def _note(self, way: str, name: str, packet: bytes, interface: Interface) -> None:
        found = Segment.parse(packet, link_header=interface.link_header)
        if found is not None:
            self.captured.append((way, name, found[0]))

    def _filter(
        self, interface: Interface, programs: list[Program], packet: bytes, mark: int, mode: str
    ) -> tuple[bytes, int] | None:
        """The packet and its mark behind the programs, or ``None`` where it goes no further here."""
        skb = Skb(
            packet,
            linear=None if interface.linear is None else min(interface.linear, len(packet)),
            checksum="partial" if mode == "partial" else "unnecessary" if mode == "received" else "none",
            link_header=interface.link_header,
            ifindex=interface.ifindex,
            # No device has received what the host itself sends.
            ingress_ifindex=interface.ifindex if programs is interface.ingress else 0,
            mark=mark,
        )
        for program in programs:
            action = program.run(skb).action
            if action in _ENDS:
                self.dropped += 1
                return None
            if action != TcxAction.NEXT:
                break  # tcx_action_code: any other verdict lets the packet pass
        return skb.packet, int(skb["mark"])

    def receive(self, packet: bytes, name: str, *, mark: int = 0, partial: bool = False) -> None:
        """A packet comes in on an interface."""
        self._do(lambda: self._in(packet, name, mark, partial))

    def _in(self, packet: bytes, name: str, mark: int, partial: bool) -> None:
        interface = self.interfaces[name]
        mode = "partial" if partial else "received"
        taken = self._filter(interface, interface.ingress, packet, mark, mode)
        if taken is None:
            return
        found = Segment.parse(taken[0], link_header=interface.link_header)
        if found is None:
            return
        segment, right = found
        if not partial and not right:
            self.bad_checksums += 1
            return
        self._note("in", name, taken[0], interface)
        if self.is_local(segment.dst):
            self._deliver(segment, name)

    def _deliver(self, segment: Segment, name: str) -> None:
        sockets = self.emulator.sockets
        found = sockets.connected(
            IPPROTO_TCP, segment.dst, segment.dport, segment.src, segment.sport, self.netns
        )
        if isinstance(found, TcpSocket):
            self._segment(found, segment)
            return
        listener = sockets.listener(IPPROTO_TCP, segment.dst, segment.dport, self.netns)
        if segment.flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN and isinstance(listener, TcpSocket):
            self._next_seq += 10_000
            child = TcpSocket(
                family=listener.family,
                src=segment.dst,
                src_port=segment.dport,
                dst=segment.src,
                dst_port=segment.sport,
                state=TcpState.NEW_SYN_RECV,
                mark=listener.mark,
                netns=self.netns,
                host=self,
                interface=name,
                listener=listener,
                snd_nxt=self._next_seq,
                rcv_nxt=segment.seq + 1,
            )
            sockets.add(child)
            self._transmit(child, TCP_SYN | TCP_ACK)
        elif not segment.flags & TCP_RST:
            answer = Segment(
                segment.dst,
                segment.dport,
                segment.src,
                segment.sport,
                TCP_RST | TCP_ACK,
                segment.ack,
                segment.seq + 1,
            )
            self._do(lambda: self._out(answer, name, 0))

    def _segment(self, socket: TcpSocket, segment: Segment) -> None:
        if segment.flags & TCP_RST:
            socket.was_reset = True
            self._forget(socket)
            return
        if socket.state == TcpState.SYN_SENT:
            if segment.flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK and segment.ack == socket.snd_nxt:
                socket.rcv_nxt = segment.seq + 1
                socket.state = TcpState.ESTABLISHED
                self._event(socket, SockOp.ACTIVE_ESTABLISHED_CB)
                self._transmit(socket, TCP_ACK)
            return
        if socket.state == TcpState.NEW_SYN_RECV and segment.flags & TCP_ACK:
            socket.state = TcpState.ESTABLISHED
            self._event(socket, SockOp.PASSIVE_ESTABLISHED_CB)
            if socket.listener is not None:
                socket.listener.backlog.append(socket)
        if segment.payload:
            socket.inbox += segment.payload
            socket.rcv_nxt += len(segment.payload)
            self._transmit(socket, TCP_ACK)
        if segment.flags & TCP_FIN and not socket.fin_received:
            socket.fin_received = True
            socket.rcv_nxt += 1
            self._transmit(socket, TCP_ACK)
            if socket.state == TcpState.ESTABLISHED:
                socket.state = TcpState.CLOSE_WAIT
            elif socket.state in (TcpState.FIN_WAIT1, TcpState.FIN_WAIT2):
                socket.state = TcpState.TIME_WAIT
                self._leave_maps(socket)
        elif segment.flags & TCP_ACK and segment.ack == socket.snd_nxt & 0xFFFFFFFF:
            if socket.state == TcpState.FIN_WAIT1:
                socket.state = TcpState.FIN_WAIT2
            elif socket.state == TcpState.LAST_ACK:
                self._forget(socket)

    def _leave_maps(self, socket: TcpSocket) -> None:
        for one in list(socket.members):
            one.forget(socket)
        socket.members.clear()

    def _forget(self, socket: TcpSocket) -> None:
        sockets = self.emulator.sockets
        if socket in list(sockets):
            sockets._sockets.remove(socket)
        socket.gone()

    def end_time_wait(self) -> None:
        """Let the sockets in TIME_WAIT end."""
        for socket in list(self.emulator.sockets):
            if isinstance(socket, TcpSocket) and socket.host is self and socket.state == TcpState.TIME_WAIT:
                self._forget(socket)

    def _event(self, socket: TcpSocket, op: SockOp, **fields: Any) -> None:
        if self.sock_ops is not None:
            context = SockOpsContext(
                op,
                socket,
                state=int(socket.state),
                data_segs_out=socket.segs_out,
                snd_nxt=socket.snd_nxt & 0xFFFFFFFF,
                rcv_nxt=socket.rcv_nxt & 0xFFFFFFFF,
                **fields,
            )
            self.sock_ops.run(context)

    def redirects(self, which: Map) -> int:
        """How many of this host's sockets are in a socket map."""
        return len(which) if isinstance(which, SockHash) else 0


def _finish_checksum(packet: bytes, link_header: bool) -> bytes:
    """What a device does with a checksum that is partial: sum from the TCP header on."""
    at = Ethernet.sizeof if link_header else 0
    start = at + ((packet[at] & 15) * 4 if packet[at] >> 4 == 4 else 40)
    out = bytearray(packet)
    field_at = start + Tcp.offsetof("check")
    value = checksum.fold(checksum.partial(bytes(out[start:]), 0, "big"))
    out[field_at : field_at + 2] = value.to_bytes(2, "big")
    return bytes(out)


def link(first: Host, first_interface: str, second: Host, second_interface: str) -> None:
    """Connect two interfaces by a wire."""
    first.interfaces[first_interface].peer = (second, second_interface)
    second.interfaces[second_interface].peer = (first, first_interface)
