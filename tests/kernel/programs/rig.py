# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The programs and maps of one instance, loaded but attached to nothing unless a test does so."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Any

from loader.objects import Map, Program
from loader.plan import with_offers
from programs import getsockopt, sk_msg, sockops, tc_egress, tc_ingress
from programs.packet import Interface
from programs.settings import Settings
from programs.shared import FlowKey, maps
from pybpfasm.kernel.context import SkBuff
from pybpfasm.net import AF_INET, AF_INET6, IPPROTO_TCP

# What the kernel gives back for TCX_NEXT (-1) and TCX_DROP.
NEXT, DROP = 0xFFFFFFFF, 2


def address16(text: str) -> bytes:
    """The 16 bytes of an address in a flow's key: IPv4 ones are v4-mapped."""
    address = ip_address(text)
    if isinstance(address, IPv4Address):
        return bytes(10) + b"\xff\xff" + address.packed
    assert isinstance(address, IPv6Address)
    return address.packed


@dataclass(frozen=True, order=True)
class Flow:
    """A flow's key as people write it."""

    client: str
    client_port: int
    server: str

    @property
    def key(self) -> bytes:
        """The key as it is in the map, put together by hand."""
        family = AF_INET if "." in self.client else AF_INET6
        return (
            address16(self.client)
            + address16(self.server)
            + struct.pack(">HBB", self.client_port, IPPROTO_TCP, family)
        )


def add_addresses(*addresses: str) -> None:
    """Give ``lo`` addresses."""
    for address in addresses:
        command = ["ip", "addr", "add", address, "dev", "lo", *(["nodad"] if ":" in address else [])]
        subprocess.run(command, check=True, capture_output=True)


# The last is what a second attempt may answer where the first one has failed.
RETRY = (errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.ECONNABORTED)


def patiently(connect: Callable[[], None]) -> None:
    """Connect, to an address that is new perhaps: IPv6 takes its time until one can be reached."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return connect()
        except OSError as error:
            if error.errno not in RETRY or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def ready(name: str) -> None:
    """Wait until the device is in operation and takes packets for all its addresses of IPv6.

    The kernel notes both some time after it has been set up: an address of which duplicate detection knows no
    harm gets its route, without which a packet for it is dropped (Ip6InAddrErrors), from a work queue.
    """
    request = struct.pack("16s24x", name.encode())
    deadline = time.monotonic() + 5
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        while True:
            answer = fcntl.ioctl(control.fileno(), 0x8913, request)  # SIOCGIFFLAGS
            running = struct.unpack_from("=H", answer, 16)[0] & 0x40  # IFF_RUNNING
            addresses = {row[0] for row in _rows("if_inet6") if row[5] == name}
            local = {row[0] for row in _rows("ipv6_route") if row[9] == name and int(row[8], 16) >> 31}
            if running and addresses and addresses <= local:  # RTF_LOCAL is the highest bit
                return
            assert time.monotonic() < deadline
            time.sleep(0.005)


def _rows(table: str) -> list[list[str]]:
    return [row.split() for row in Path(f"/proc/thread-self/net/{table}").read_text().splitlines()]


def place_for_timer() -> None:
    """Let this CPU have a place for a timer: what it freed last, it gives away next (`memory_for_timers`)."""
    close(os.pipe())


@contextmanager
def memory_for_timers(count: int = 160) -> Iterator[None]:
    """Let the kernel have places for timers.

    From Linux 6.18 on a timer gets what a cache holds, or a new page of it, which `alloc_frozen_pages_nolock`
    does not give on a kernel that prepares its memory only when it is used; then a flow does without.
    A pipe is of the size of a timer (kmalloc-cg-192): a page of the cache with one pipe that stays has the
    places of those that went.
    """
    pipes = [os.pipe() for _ in range(count)]
    try:
        for ends in (ends for number, ends in enumerate(pipes) if number % 16):
            close(ends)
        yield
    finally:
        for ends in pipes[::16]:
            close(ends)


def close(ends: tuple[int, int]) -> None:
    """Close both ends of a pipe."""
    for end in ends:
        os.close(end)


class Rig:
    """The maps of *settings*, and its programs once they are asked for; closes both at the end of a block.

    What the kernel does not offer is taken out of the settings, as `up` does it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings = with_offers(settings)
        self.stack = ExitStack()
        self.maps: dict[str, Map] = {}
        self.programs: dict[object, Program] = {}
        self._before: dict[str, int] = {}
        try:
            if settings.timers:
                self.stack.enter_context(memory_for_timers())
            for spec in maps(settings).all:
                self.maps[spec.name] = self.stack.enter_context(Map.create(spec))
        except BaseException:
            self.stack.close()
            raise
        self.flow_map = self.maps["pba_flows"]
        self.sockets = self.maps["pba_sockets"]
        self.pending = self.maps["pba_pending"]

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def load(self, name: str, interface: Interface = Interface()) -> Program:  # noqa: B008 (it is frozen)
        """The program of a hook; loaded once."""
        if (name, interface) not in self.programs:
            spec = {
                "ingress": lambda: tc_ingress.tc_ingress.build(self.settings, interface),
                "egress": lambda: tc_egress.tc_egress.build(self.settings, interface),
                "getsockopt": lambda: getsockopt.getsockopt.build(self.settings),
                "sockops": lambda: sockops.sockops.build(self.settings),
                "sk_msg": lambda: sk_msg.sk_msg.build(self.settings),
            }[name]()
            self.programs[name, interface] = self.stack.enter_context(Program.load(spec, self.maps))
        return self.programs[name, interface]

    # Counters.

    def counters(self) -> dict[str, int]:
        """All counters that are not 0, as ``hook.name``, added up over the CPUs."""
        found: dict[str, int] = {}
        for cpu in self.maps["pba_counters"][0]:
            for hook, part in cpu:
                for name, value in part:
                    if value:
                        found[f"{hook}.{name}"] = found.get(f"{hook}.{name}", 0) + value
        return found

    def moved(self) -> dict[str, int]:
        """By how much each counter has moved since the last call; those that stood still are left out."""
        now = self.counters()
        moved = {name: value - self._before.get(name, 0) for name, value in now.items()}
        self._before = now
        return {name: value for name, value in moved.items() if value}

    # Flows.

    def flows(self) -> dict[bytes, tuple[int, int, int]]:
        """The flow map: original port, state and SYN sequence number by key."""
        return {
            key: (value.original_port, value.state, value.syn_seq)
            for key, value in (
                (key, self.flow_map[key]) for key in (bytes(k) for k, _ in self.flow_map.items_raw())
            )
        }

    def flow(self, flow: Flow) -> Any:
        """One entry's value, or None."""
        return self.flow_map.lookup(flow.key)

    def put(self, flow: Flow, port: int, state: int = 0, syn_seq: int = 0, last_seen: int = 0) -> None:
        """Write an entry; it has no timer."""
        value = struct.pack("=QI", last_seen, state) + struct.pack(">IH", syn_seq, port)
        self.flow_map.update(flow.key, value.ljust(self.flow_map.value_size, b"\0"))

    def clear(self) -> None:
        """No flows, and counters from here on."""
        self.flow_map.clear()
        places = self.maps["pba_half_open"]
        for number in range(min(places.max_entries, 64)):  # what one test fills
            places.update(number, bytes(places.value_size))
        self.moved()

    def run(
        self, program: Program, frame: bytes, *, mark: int = 0, ifindex: int = 0, expect: Sequence[int] = ()
    ) -> tuple[int, bytes]:
        """Run a TC program on a frame: its value, and the frame behind it."""
        ctx = b""
        if mark or ifindex:
            packed = bytearray(SkBuff.sizeof)
            struct.pack_into("=I", packed, SkBuff.offsetof("mark"), mark)
            struct.pack_into("=I", packed, SkBuff.offsetof("ifindex"), ifindex)
            ctx = bytes(packed)
        if self.settings.timers:
            place_for_timer()
        result = program.test_run(frame, ctx)
        return result.retval, result.data


assert FlowKey.sizeof == len(Flow("10.0.0.1", 1, "10.0.0.2").key)
