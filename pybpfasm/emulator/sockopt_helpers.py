# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of ``setsockopt``, ``getsockopt`` and ``bind`` for programs (net/core/filter.c).

A socket keeps what was set in ``Socket.options``; what was not set has the kernel's default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pybpfasm.emulator.context import SockAddrContext, SockOpsContext, socket_at
from pybpfasm.emulator.errnos import EADDRINUSE, EAFNOSUPPORT, EINVAL, ENODEV, ENOENT
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.helpers import helper, s32
from pybpfasm.emulator.run import Run
from pybpfasm.emulator.sockets import Socket
from pybpfasm.kernel.defines import (
    IP_TOS,
    IPV6_AUTOFLOWLABEL,
    IPV6_TCLASS,
    SO_BINDTODEVICE,
    SO_BINDTOIFINDEX,
    SO_KEEPALIVE,
    SO_MARK,
    SO_MAX_PACING_RATE,
    SO_PRIORITY,
    SO_RCVBUF,
    SO_RCVLOWAT,
    SO_REUSEADDR,
    SO_REUSEPORT,
    SO_SNDBUF,
    SO_TXREHASH,
    SOL_IP,
    SOL_IPV6,
    SOL_SOCKET,
    SOL_TCP,
    TCP_CONGESTION,
    TCP_KEEPCNT,
    TCP_KEEPIDLE,
    TCP_KEEPINTVL,
    TCP_MAXSEG,
    TCP_NODELAY,
    TCP_NOTSENT_LOWAT,
    TCP_SAVE_SYN,
    TCP_SYNCNT,
    TCP_THIN_LINEAR_TIMEOUTS,
    TCP_USER_TIMEOUT,
    TCP_WINDOW_CLAMP,
)
from pybpfasm.kernel.enums import Helper
from pybpfasm.net import AF_INET, AF_INET6, IPPROTO_TCP

U32: Final = 0xFFFFFFFF
_SEND_MIN: Final = 4608  # SOCK_MIN_SNDBUF, include/net/sock.h, on 64-bit machines
_RECEIVE_MIN: Final = 2304  # SOCK_MIN_RCVBUF
_CONGESTION_CONTROLS: Final = (b"cubic", b"reno")


@dataclass(frozen=True)
class _Option:
    """An option of an ``int``: its default, and what the kernel keeps of a value, ``None`` for -EINVAL."""

    default: int = 0
    keep: Callable[[int, dict[str, int]], int | None] = lambda value, sysctl: value


def _within(low: int, high: int) -> Callable[[int, dict[str, int]], int | None]:
    return lambda value, sysctl: value if low <= value <= high else None


def _flag(value: int, sysctl: dict[str, int]) -> int:
    return int(bool(value))


def _buffer(limit: str, least: int) -> Callable[[int, dict[str, int]], int | None]:
    """A buffer's size is doubled, for the kernel's own structures."""
    return lambda value, sysctl: max(min(value & U32, sysctl[limit]) * 2, least)


def _low_water(value: int, sysctl: dict[str, int]) -> int:
    return min(0x7FFFFFFF if value < 0 else value or 1, sysctl["net.ipv4.tcp_rmem"] // 2)


def _rehash(value: int, sysctl: dict[str, int]) -> int | None:
    return sysctl["net.core.txrehash"] if value == -1 else value if value in (0, 1) else None


def _traffic_class(value: int, sysctl: dict[str, int]) -> int:
    """The two bits of ECN are TCP's own."""
    return value & 0xFC


_OPTIONS: Final[dict[tuple[int, int], _Option]] = {
    (SOL_SOCKET, SO_REUSEADDR): _Option(keep=_flag),
    (SOL_SOCKET, SO_REUSEPORT): _Option(keep=_flag),
    (SOL_SOCKET, SO_KEEPALIVE): _Option(keep=_flag),
    (SOL_SOCKET, SO_SNDBUF): _Option(16384, _buffer("net.core.wmem_max", _SEND_MIN)),
    (SOL_SOCKET, SO_RCVBUF): _Option(131072, _buffer("net.core.rmem_max", _RECEIVE_MIN)),
    (SOL_SOCKET, SO_PRIORITY): _Option(),
    (SOL_SOCKET, SO_MARK): _Option(),
    (SOL_SOCKET, SO_RCVLOWAT): _Option(1, _low_water),
    (SOL_SOCKET, SO_MAX_PACING_RATE): _Option(-1),
    (SOL_SOCKET, SO_BINDTOIFINDEX): _Option(keep=_within(0, 0x7FFFFFFF)),
    (SOL_SOCKET, SO_TXREHASH): _Option(1, _rehash),
    (SOL_TCP, TCP_NODELAY): _Option(keep=_flag),
    (SOL_TCP, TCP_MAXSEG): _Option(
        keep=lambda value, sysctl: value if not value or 88 <= value <= 32767 else None
    ),
    (SOL_TCP, TCP_KEEPIDLE): _Option(7200, _within(1, 32767)),
    (SOL_TCP, TCP_KEEPINTVL): _Option(75, _within(1, 32767)),
    (SOL_TCP, TCP_KEEPCNT): _Option(9, _within(1, 127)),
    (SOL_TCP, TCP_SYNCNT): _Option(6, _within(1, 127)),
    (SOL_TCP, TCP_WINDOW_CLAMP): _Option(),
    (SOL_TCP, TCP_THIN_LINEAR_TIMEOUTS): _Option(keep=_within(0, 1)),
    (SOL_TCP, TCP_USER_TIMEOUT): _Option(keep=_within(0, 0x7FFFFFFF)),
    (SOL_TCP, TCP_NOTSENT_LOWAT): _Option(-1),
    (SOL_TCP, TCP_SAVE_SYN): _Option(keep=_within(0, 2)),
    (SOL_IP, IP_TOS): _Option(keep=_traffic_class),
    (SOL_IPV6, IPV6_TCLASS): _Option(
        keep=lambda value, sysctl: None if value < -1 or value > 255 else max(value, 0) & 0xFC
    ),
    (SOL_IPV6, IPV6_AUTOFLOWLABEL): _Option(1, _flag),
}


def _socket(run: Run, address: int) -> Socket:
    """The socket of a context or the socket itself, of which the helpers take either."""
    ctx = run.context
    region = run.context_region
    if region is not None and address == region.start:
        if isinstance(ctx, (SockOpsContext, SockAddrContext)):
            return ctx.socket
        raise Violation("this program gives the socket itself to setsockopt and getsockopt, not the context")
    return socket_at(run, address)


def _refused(socket: Socket, level: int, name: int, size: int) -> bool:
    """Whether the helpers take no such option, or not of that size, or not of this socket."""
    if (level, name) == (SOL_TCP, TCP_CONGESTION):
        return socket.protocol != IPPROTO_TCP or size < 2
    if (level, name) == (SOL_SOCKET, SO_BINDTODEVICE):
        return False
    return (
        (level, name) not in _OPTIONS
        or size != 4
        or (level == SOL_IPV6 and socket.family != AF_INET6)
        or (level == SOL_TCP and socket.protocol != IPPROTO_TCP)
    )


@helper(Helper.setsockopt)
def setsockopt(run: Run, context: int, level: int, name: int, value: int, size: int) -> int:
    """Set an option of the socket: 0 or an errno."""
    socket = _socket(run, context)
    level, name, size = s32(level), s32(name), size & U32
    data = run.read(value, size, "the value")
    if not socket.full or _refused(socket, level, name, size):
        return -EINVAL
    if (level, name) == (SOL_TCP, TCP_CONGESTION):
        wanted = data.split(b"\0")[0]
        if wanted not in _CONGESTION_CONTROLS:
            return -ENOENT
        socket.options[level, name] = wanted
        return 0
    if (level, name) == (SOL_SOCKET, SO_BINDTODEVICE):
        return -ENODEV if data.split(b"\0")[0] else 0  # devices have no names here
    kept = _OPTIONS[level, name].keep(
        int.from_bytes(data, run.emulator.byteorder, signed=True), run.emulator.sysctl
    )
    if kept is None:
        return -EINVAL
    socket.options[level, name] = kept
    if (level, name) == (SOL_SOCKET, SO_MARK):
        socket.mark = kept & U32
    elif (level, name) == (SOL_SOCKET, SO_PRIORITY):
        socket.priority = kept & U32
    elif (level, name) == (SOL_SOCKET, SO_BINDTOIFINDEX):
        socket.bound_dev_if = kept
    return 0


@helper(Helper.getsockopt)
def getsockopt(run: Run, context: int, level: int, name: int, value: int, size: int) -> int:
    """An option of the socket goes to *value*: 0 or an errno, with zeros."""
    socket = _socket(run, context)
    level, name, size = s32(level), s32(name), size & U32
    run.room(value, size, "the value")
    key = (level, name)
    if not socket.full or _refused(socket, level, name, size) or key == (SOL_SOCKET, SO_BINDTODEVICE):
        run.write(value, bytes(size), "the value")
        return -EINVAL
    if key == (SOL_TCP, TCP_CONGESTION):
        found = socket.options.get(key, b"cubic")
        assert isinstance(found, bytes)
        run.write(value, found[: size - 1].ljust(size, b"\0"), "the value")
        return 0
    own = {SO_MARK: socket.mark, SO_PRIORITY: socket.priority, SO_BINDTOIFINDEX: socket.bound_dev_if}
    number = own.get(name) if level == SOL_SOCKET else None
    if number is None:
        kept = socket.options.get(key, _OPTIONS[key].default)
        assert isinstance(kept, int)
        number = kept
    run.write(value, (number & U32).to_bytes(4, run.emulator.byteorder), "the value")
    return 0


@helper(Helper.bind)
def bind(run: Run, context: int, address: int, size: int) -> int:
    """Bind the socket of a connect program to an address and perhaps a port; 0 or an errno."""
    socket = run.is_context(context, SockAddrContext).socket
    size &= U32
    data = run.read(address, size, "the address")
    if size < 2:
        return -EINVAL
    family = int.from_bytes(data[:2], run.emulator.byteorder)
    # struct sockaddr_in and struct sockaddr_in6: sizes, and where the address is
    least, at, length = {AF_INET: (16, 4, 4), AF_INET6: (24, 8, 16)}.get(family, (0, 0, 0))
    if not least:
        return -EAFNOSUPPORT
    if size < least:
        return -EINVAL
    own, port = data[at : at + length], int.from_bytes(data[2:4], "big")
    for other in run.emulator.sockets:
        taken = (other.src_port, other.protocol, other.netns) == (port, socket.protocol, socket.netns)
        if other is not socket and port and taken and (other.src == own or not any(other.src)):
            return -EADDRINUSE
    socket.src = own
    if port:
        socket.src_port = port
    return 0
