# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A model of the host's sockets: what look-ups find, and what programs see of a socket."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pybpfasm.kernel.context import BpfSock
from pybpfasm.kernel.defines import SOCK_STREAM
from pybpfasm.kernel.enums import TcpState
from pybpfasm.net import AF_INET, AF_INET6, IPPROTO_TCP

if TYPE_CHECKING:
    from pybpfasm.emulator.maps import Map
    from pybpfasm.emulator.memory import Memory

__all__ = ["Socket", "SocketTable", "address_bytes"]

_MAPPED: Final = bytes(10) + b"\xff\xff"

Address = str | bytes | ipaddress.IPv4Address | ipaddress.IPv6Address


def address_bytes(address: Address) -> bytes:
    """The 4 or 16 bytes of an address, in network order."""
    if isinstance(address, bytes):
        return address
    return ipaddress.ip_address(address).packed


@dataclass(eq=False)
class Socket:
    """A socket: its addresses (4 or 16 bytes, network order), its ports (host order), its state.

    ``src`` is the socket's own side. An AF_INET6 socket with a v4-mapped peer has ``family`` AF_INET6 and
    addresses of 4 bytes.
    """

    family: int = AF_INET
    src: bytes = bytes(4)
    src_port: int = 0
    dst: bytes = bytes(4)
    dst_port: int = 0
    state: int = TcpState.ESTABLISHED
    type: int = SOCK_STREAM
    protocol: int = IPPROTO_TCP
    mark: int = 0
    priority: int = 0
    bound_dev_if: int = 0
    rx_queue_mapping: int = -1
    netns: int = 1
    cookie: int = 0
    reuseport: bool = False
    uid: int = 0
    cgroups: tuple[int, ...] = (1,)  # ids from the root on, its own last
    options: dict[tuple[int, int], int | bytes] = field(default_factory=dict, repr=False)
    storage: dict[Map, Memory] = field(default_factory=dict, repr=False)
    members: list[Map] = field(default_factory=list, repr=False)
    closed: bool = False
    cb_flags: int = 0  # BPF_SOCK_OPS_*_FLAG, what sock_ops_cb_flags_set has asked for
    snd_nxt: int = 0  # the sequence numbers that come next
    rcv_nxt: int = 0

    @property
    def mapped(self) -> bool:
        """Whether it is an AF_INET6 socket of an IPv4 connection."""
        return self.family == AF_INET6 and len(self.src) == 4

    @property
    def full(self) -> bool:
        """Whether it is more than a request or a TIME_WAIT leftover (``sk_fullsock``)."""
        return self.state not in (TcpState.TIME_WAIT, TcpState.NEW_SYN_RECV)

    def ip6(self, address: bytes) -> bytes:
        """*address* as the 16 bytes that an AF_INET6 socket shows."""
        return _MAPPED + address if len(address) == 4 else address

    def ip4(self, address: bytes) -> bytes:
        """*address* as the 4 bytes of ``src_ip4`` and the like; zeros for IPv6."""
        return address if len(address) == 4 else bytes(4)

    def as_bpf_sock(self, order: str = "little") -> bytes:
        """``struct bpf_sock`` of this socket."""
        v6 = self.family == AF_INET6
        values: dict[str, object] = {
            "bound_dev_if": self.bound_dev_if,
            "family": self.family,
            "type": self.type,
            "protocol": self.protocol,
            "mark": self.mark,
            "priority": self.priority,
            "src_ip4": int.from_bytes(self.ip4(self.src), "big"),
            "src_port": self.src_port,
            "dst_port": self.dst_port,
            "dst_ip4": int.from_bytes(self.ip4(self.dst), "big"),
            "state": int(self.state),
            "rx_queue_mapping": self.rx_queue_mapping,
        }
        if v6:
            values["src_ip6"] = self.ip6(self.src)
            values["dst_ip6"] = self.ip6(self.dst)
        return BpfSock.pack(byteorder="big" if order == "big" else "little", **values)

    def close(self) -> None:
        """Leave every socket map, as a closing TCP socket does, and count as closed."""
        self.closed = True
        self.state = TcpState.CLOSE
        for member in list(self.members):
            member.forget(self)
        self.members.clear()
        self.storage.clear()


class SocketTable:
    """The sockets that look-ups find, in all network namespaces."""

    def __init__(self) -> None:
        self._sockets: list[Socket] = []
        self._next_cookie = 1

    def __iter__(self) -> Iterator[Socket]:
        return iter(self._sockets)

    def __len__(self) -> int:
        return len(self._sockets)

    def add(self, socket: Socket) -> Socket:
        """Make *socket* known, with a cookie where it has none."""
        if not socket.cookie:
            socket.cookie = self._next_cookie
            self._next_cookie += 1
        self._sockets.append(socket)
        return socket

    def remove(self, socket: Socket) -> None:
        """Close *socket* and forget it."""
        if socket in self._sockets:
            self._sockets.remove(socket)
        socket.close()

    def connected(
        self, protocol: int, src: bytes, src_port: int, dst: bytes, dst_port: int, netns: int
    ) -> Socket | None:
        """The socket of a connection, from its own side: ``src`` is its local address."""
        for socket in self._sockets:
            if (
                socket.protocol == protocol
                and socket.src_port == src_port
                and socket.dst_port == dst_port
                and socket.netns == netns
                and socket.src == src
                and socket.dst == dst
                and socket.state not in (TcpState.LISTEN, TcpState.CLOSE)
            ):
                return socket
        return None

    def listener(self, protocol: int, address: bytes, port: int, netns: int) -> Socket | None:
        """The socket that would take a new connection or an unconnected datagram."""
        best: Socket | None = None
        score = -1
        for socket in self._sockets:
            if socket.protocol != protocol or socket.src_port != port or socket.netns != netns:
                continue
            if protocol == IPPROTO_TCP and socket.state != TcpState.LISTEN:
                continue
            if protocol != IPPROTO_TCP and socket.dst_port:
                continue
            if any(socket.src):
                if socket.src != address:
                    continue
                points = 2
            else:
                if socket.family == AF_INET and len(address) == 16:
                    continue
                points = 1 if socket.family == (AF_INET if len(address) == 4 else AF_INET6) else 0
            if points > score:
                best, score = socket, points
        return best

    def look_up(
        self, protocol: int, src: bytes, src_port: int, dst: bytes, dst_port: int, netns: int
    ) -> Socket | None:
        """What a packet from ``src`` to ``dst`` would be delivered to."""
        found = self.connected(protocol, dst, dst_port, src, src_port, netns)
        return found if found is not None else self.listener(protocol, dst, dst_port, netns)
