# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Network namespaces: finding one, running code inside it, and asking for what is in it.

Everything here that asks about interfaces or listeners means the namespace of the *calling thread*;
:meth:`NetNs.entered` changes it for the length of a block. No netlink library is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loader.bpffs import file_system_magic
from loader.errors import CapabilityError, LoaderError, UsageError
from loader.objects import Owned
from loader.sys import libc

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

__all__ = [
    "Interface",
    "Listener",
    "NetNs",
    "interface",
    "interfaces",
    "listeners",
    "parse_proc_net_tcp",
]

NAMED = Path("/run/netns")  # where ip-netns(8) keeps the named ones
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SIOCGIFFLAGS, _SIOCGIFHWADDR = 0x8913, 0x8927  # linux/sockios.h
_IFF_UP, _IFF_BROADCAST, _IFF_POINTOPOINT = 1, 2, 0x10  # linux/if.h
_NSFS_MAGIC = 0x6E736673  # linux/magic.h
_NS_GET_NSTYPE = 0xB703  # linux/nsfs.h, from 4.11

# net/if_arp.h: which link layer an interface has decides where a packet's network header is.
ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772
ARPHRD_IPGRE = 778
ARPHRD_NONE = 0xFFFE
_LINK_TYPES = {
    ARPHRD_ETHER: "ethernet",
    512: "ppp",
    768: "ipip",
    769: "ip6tnl",
    ARPHRD_LOOPBACK: "loopback",
    776: "sit",
    ARPHRD_IPGRE: "ipgre",
    823: "ip6gre",
    519: "rawip",
    ARPHRD_NONE: "none",
}


class NetNs(Owned):
    """An open network namespace.

    ``ino`` identifies it, in link information and in ``lsns``, while it exists.
    """

    kind = "network namespace"

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd)
        self.name = name
        self.ino = os.fstat(self.fd).st_ino

    @classmethod
    def open(cls, spec: str | int | os.PathLike[str] | None = None) -> NetNs:
        """Open a network namespace: a name of ``ip netns``, a path, a process id, or the caller's own (None).

        A text of digits is a process id unless a namespace of that name exists. Raises
        :class:`~loader.errors.UsageError` for what is none of these.
        """
        if spec is None:
            return cls(_open("/proc/thread-self/ns/net"), "")
        text = os.fspath(spec) if not isinstance(spec, int) else str(spec)
        named = NAMED / text
        if isinstance(spec, int):
            path = Path(f"/proc/{spec}/ns/net")
        elif os.sep in text:
            path = Path(text)
        elif text not in ("", ".", "..") and named.exists():
            path = named
        elif text.isascii() and text.isdigit():
            path = Path(f"/proc/{text}/ns/net")
        else:
            raise UsageError(f"there is no network namespace {text!r}", hint=_known_names(text))
        try:
            fd = _open(path)
        except PermissionError as error:
            raise CapabilityError(
                f"network namespace {text!r} cannot be opened ({path}): {error.strerror}",
                hint="run as root; a process that has more rights than the loader does not show its own",
            ) from None
        except OSError as error:
            raise UsageError(
                f"network namespace {text!r} cannot be opened ({path}): {error.strerror}",
                hint="give a name that `ip netns` shows, a path, or the id of a running process",
            ) from None
        if not _is_netns(fd):
            os.close(fd)
            raise UsageError(
                f"{path} is not a network namespace",
                hint="give a name that `ip netns` shows, a path such as /proc/PID/ns/net, or a process id",
            )
        return cls(fd, text)

    @classmethod
    def current(cls) -> NetNs:
        """Open the namespace of the calling thread."""
        return cls.open(None)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is in it."""
        return os.stat("/proc/thread-self/ns/net").st_ino == self.ino

    @contextlib.contextmanager
    def entered(self) -> Iterator[NetNs]:
        """Run the block with the calling thread in this namespace; other threads stay where they are.

        The thread returns whatever happens. Sockets that are made inside belong to the namespace for ever. Do
        not ``await`` or change threads inside. Raises :class:`~loader.errors.CapabilityError` without
        CAP_SYS_ADMIN.
        """
        with NetNs.current() as before:
            if before.ino == self.ino:
                yield self
                return
            _setns(self)
            try:
                yield self
            finally:
                _setns(before)

    def __repr__(self) -> str:
        return (
            f"<network namespace {self.name or 'current'!r} {'closed' if self.closed else f'fd {self._fd}'}>"
        )


def _open(path: str | Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _is_netns(fd: int) -> bool:
    # What its link in /proc says is no help: for a file of `ip netns` that is the path of the bind mount.
    return file_system_magic(fd) == _NSFS_MAGIC and fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET


def _setns(target: NetNs) -> None:
    if libc().setns(target.fd, _CLONE_NEWNET) == 0:
        return
    code = ctypes.get_errno()
    message = f"network namespace {target.name or 'of before'!r} cannot be entered: {os.strerror(code)}"
    if code == errno.EPERM:
        raise CapabilityError(message, missing=("CAP_SYS_ADMIN",), hint="run as root")
    raise LoaderError(message)


def _known_names(text: str) -> str:
    try:
        names = sorted(os.listdir(NAMED))
    except OSError:
        names = []
    if not names:
        return f"{NAMED} holds none; give a path such as /proc/PID/ns/net, or a process id"
    return f"{_did_you_mean(text, names)}known are {', '.join(names)}"


def _did_you_mean(text: str, names: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(text, names, n=1, cutoff=0.5)  # the names are short
    return f"did you mean {close[0]!r}? " if close else ""


# --- interfaces ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the calling thread's namespace. ``link_type`` is an ARPHRD_* number of net/if_arp.h."""

    name: str
    index: int
    link_type: int

    @property
    def link_type_name(self) -> str:
        """The link layer in words."""
        return _LINK_TYPES.get(self.link_type, f"type {self.link_type}")

    @property
    def has_mac_header(self) -> bool:
        """Whether packets carry a 14-byte Ethernet header (loopback does; tunnels and ``none`` do not)."""
        return self.link_type in (ARPHRD_ETHER, ARPHRD_LOOPBACK)


def interfaces() -> list[str]:
    """Return the names of all interfaces in order of their index."""
    return [name for _, name in sorted(socket.if_nameindex())]


def interface(name: str) -> Interface:
    """Look an interface up by name. Raises :class:`~loader.errors.UsageError` with those that there are."""
    try:
        index = socket.if_nametoindex(name)
    except (OSError, ValueError):
        known = interfaces()
        hint = f"{_did_you_mean(name, known)}known are {', '.join(known) or 'none'}"
        parts = re.findall(r"[^,\s]+", name)
        if any(part in known for part in parts):
            each = "name each by itself" if len(parts) > 1 else "write it without more"
            hint = f"{each}: --iface {' --iface '.join(parts)}"
        raise UsageError(f"there is no interface {name!r} in this network namespace", hint=hint) from None
    return Interface(name, index, _link_type(name))


def interface_name(index: int) -> str | None:
    """Return the name of the interface with that index, or None if there is none."""
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):
        return None


def interface_is_up(name: str) -> bool:
    """Whether an interface has been set up; raises OSError if there is none of that name."""
    return bool(_ask_interface(name, _SIOCGIFFLAGS) & _IFF_UP)


def has_outer_header(one: Interface) -> bool:
    """Whether packets of an interface begin with a header of the tunnel around them.

    So it is with GRE that has many remote ends: the sender is read from there (net/ipv4/ip_gre.c,
    ipgre_header_ops).
    """
    if one.link_type != ARPHRD_IPGRE:
        return False
    return _ask_interface(one.name, _SIOCGIFFLAGS) & (_IFF_BROADCAST | _IFF_POINTOPOINT) != _IFF_POINTOPOINT


def _link_type(name: str) -> int:
    # A struct sockaddr, whose sa_family is the ARPHRD_* number.
    return _ask_interface(name, _SIOCGIFHWADDR)


def _ask_interface(name: str, request: int) -> int:
    """The first 16 bits behind the name in the ``struct ifreq`` that answers a request."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        answer = fcntl.ioctl(probe.fileno(), request, struct.pack("16s24x", os.fsencode(name)))
    return int(struct.unpack_from("=H", answer, 16)[0])


# --- listeners ----------------------------------------------------------------------------------------------

_TCP_LISTEN = 10  # include/net/tcp_states.h, as /proc/net/tcp prints it


class Listener(NamedTuple):
    """A TCP socket that listens."""

    address: IPv4Address | IPv6Address
    port: int

    @property
    def is_any(self) -> bool:
        """Whether it listens on all addresses of its family."""
        return self.address.is_unspecified


def parse_proc_net_tcp(text: str) -> list[Listener]:
    """Return the listeners in the text of ``/proc/net/tcp`` or ``tcp6``.

    An address is printed there as words in host byte order.
    """
    from ipaddress import IPv4Address, IPv6Address

    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 4 or int(fields[3], 16) != _TCP_LISTEN:
            continue
        words, _, port = fields[1].partition(":")
        raw = b"".join(
            struct.pack("=I", int(words[start : start + 8], 16)) for start in range(0, len(words), 8)
        )
        address = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
        found.append(Listener(address, int(port, 16)))
    return found


def listeners(port: int | None = None) -> list[Listener]:
    """Return the TCP listeners of the calling thread's namespace, on one port or all."""
    found: list[Listener] = []
    for table in ("tcp", "tcp6"):
        try:
            text = Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii")
        except FileNotFoundError:  # IPv6 is switched off
            continue
        found += parse_proc_net_tcp(text)
    return [one for one in found if port is None or one.port == port]
