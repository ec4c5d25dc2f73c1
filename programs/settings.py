# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What is fixed for an attachment, and becomes constants in the instructions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

MAX_PORT: Final = 65535

DEFAULT_ENVOY_PORT: Final = 8080
DEFAULT_MARK: Final = 4242
DEFAULT_QUEUE_LIMIT: Final = 6 << 20


class SettingsError(ValueError):
    """A setting that can't be; the message says which and what would do."""


# Nobody is helped by seeing more, and Python reads no more than some thousands (sys.set_int_max_str_digits).
_DIGITS: Final = 1000


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports as sorted, disjoint, inclusive ranges that do not touch each other."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Ports:
        """Ports in *ranges* (first, last), in any order and overlapping as they like.

        Raises `SettingsError`.
        """
        merged: list[tuple[int, int]] = []
        for first, last in sorted(ranges):
            for port in (first, last):
                if not 1 <= port <= MAX_PORT:
                    raise SettingsError(f"port {port} does not exist: TCP ports are 1 to {MAX_PORT}")
            if first > last:
                raise SettingsError(f"range {first}-{last} is backwards: write {last}-{first}")
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        if not merged:
            raise SettingsError("no ports given: name at least one, such as 8000 or 8000,9000-9010")
        return cls(tuple(merged))

    @classmethod
    def parse(cls, text: str) -> Ports:
        """Ports from ``8000,9000-9010``.

        Raises `SettingsError` that quotes the part that is wrong.
        """
        ranges = []
        for part in text.split(","):
            part = part.strip()
            first, dash, last = part.partition("-")
            numbers = [first, last] if dash else [first, first]
            if not all(re.fullmatch(r"\s*[0-9]+\s*", number) for number in numbers):
                raise SettingsError(f"{part!r} is neither a port nor a range: write 8000, or 9000-9010")
            if any(len(number) > _DIGITS for number in numbers):
                raise SettingsError("a number of thousands of digits is no port")
            low, high = (int(number) for number in numbers)
            try:
                cls.of([(low, high)])
            except SettingsError as error:
                raise SettingsError(f"in {text!r}: {error}") from None
            ranges.append((low, high))
        return cls.of(ranges)

    def __contains__(self, port: object) -> bool:
        return isinstance(port, int) and any(first <= port <= last for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self.ranges)

    def __str__(self) -> str:
        return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in self.ranges)


@dataclass(frozen=True, slots=True)
class Mark:
    """The bits of ``skb->mark`` (SO_MARK) that say "this connection is Envoy's own"."""

    value: int = DEFAULT_MARK
    mask: int = 0xFFFFFFFF

    def __post_init__(self) -> None:
        for name, number in (("value", self.value), ("mask", self.mask)):
            if not 0 <= number <= 0xFFFFFFFF:
                raise SettingsError(f"mark {name} {number:#x} does not fit 32 bits")
        if self.mask == 0:
            raise SettingsError("a mark mask of 0 matches every packet, so that nothing would be intercepted")
        if self.value & ~self.mask:
            raise SettingsError(
                f"mark {self.value:#x} has bits outside its mask {self.mask:#x}, so it never matches"
            )
        if self.value == 0:
            raise SettingsError("a mark of 0 is what every unmarked packet has: choose a non-zero one")

    @classmethod
    def parse(cls, text: str) -> Mark:
        """A mark from ``VALUE`` or ``VALUE/MASK``, decimal or 0x-hexadecimal.

        Raises `SettingsError`.
        """
        value, slash, mask = text.partition("/")
        try:
            return cls(int(value, 0), int(mask, 0) if slash else 0xFFFFFFFF)
        except SettingsError:
            raise
        except ValueError:
            raise SettingsError(f"{text!r} is no mark: write 4242, or 0x1000/0xf000") from None

    def __str__(self) -> str:
        return str(self.value) if self.mask == 0xFFFFFFFF else f"{self.value:#x}/{self.mask:#x}"


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the programs of one instance take as constant.

    ``flow_capacity`` is how many connections the flow map holds; the three times, in seconds, are how long an
    entry outlives its last packet: before the handshake is complete, once the connection has ended, and in
    between. ``timers``, ``coarse_clock`` and ``netns_cookie`` are what the kernel offers, found by probing.
    ``netns`` is the cookie of the network namespace whose interfaces the instance is attached to (0: not
    known); programs that hang on a cgroup leave sockets of other namespaces alone. ``new_flows`` is false
    while the instance drains: connections that begin then go to the application, known ones on to Envoy.
    ``queue_limit`` is how many bytes may wait in the receive queue of an accelerated socket before what comes
    next goes through the stack, and ``queue_length_at`` where ``struct sock`` has that number (0: not known,
    so there is no limit). ``receive_buffer_at`` is where it has the size of the receive buffer, and
    ``buffer_locks_at`` the byte in which the bits ``receive_buffer_lock`` say that SO_RCVBUF has set it.
    ``ulp_at`` is where a TCP socket has the protocol that was put upon it (TCP_ULP; 0: not known, so nobody
    looks).
    """

    ports: Ports
    envoy_port: int = DEFAULT_ENVOY_PORT
    mark: Mark = Mark()
    accelerate: bool = True
    flow_capacity: int = 65536
    socket_capacity: int = 65536
    handshake_seconds: int = 75
    linger_seconds: int = 60
    idle_seconds: int = 5 * 24 * 3600
    timers: bool = True
    coarse_clock: bool = True
    netns_cookie: bool = True
    netns: int = 0
    new_flows: bool = True
    queue_limit: int = DEFAULT_QUEUE_LIMIT
    queue_length_at: int = 0
    receive_buffer_at: int = 0
    buffer_locks_at: int = 0
    receive_buffer_lock: int = 0
    ulp_at: int = 0

    @property
    def half_open_capacity(self) -> int:
        """How many flows may wait for the end of their handshake: a power of 2, at most half of all."""
        return 1 << max(self.flow_capacity // 2, 1).bit_length() - 1

    @property
    def reads_sockets(self) -> bool:
        """Whether `sk_msg` looks into sockets by their addresses."""
        return bool(self.queue_length_at or self.ulp_at)

    def __post_init__(self) -> None:
        if not 1 <= self.envoy_port <= MAX_PORT:
            raise SettingsError(
                f"Envoy's port {self.envoy_port} does not exist: TCP ports are 1 to {MAX_PORT}"
            )
        if self.envoy_port in self.ports:
            raise SettingsError(
                f"port {self.envoy_port} is Envoy's own and can't be intercepted: leave it out of the ports, "
                "or give Envoy's listener another port"
            )
        for name in (
            "flow_capacity",
            "socket_capacity",
            "handshake_seconds",
            "linger_seconds",
            "idle_seconds",
            "queue_limit",
        ):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name}={getattr(self, name)} must be at least 1")
