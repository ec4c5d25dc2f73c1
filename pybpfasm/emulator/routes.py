# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A model of the host's routing, as ``fib_lookup`` asks it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal, get_args

from pybpfasm.emulator.faults import EmulatorError, choose
from pybpfasm.kernel.enums import FibLookupResult

__all__ = ["Route", "Routes"]

Kind = Literal["unicast", "local", "blackhole", "unreachable", "prohibit"]


@dataclass(frozen=True)
class Route:
    """Where packets for *network* go.

    ``neighbour`` is the hardware address of the next hop, ``None`` where it is not known (NO_NEIGH), and
    ``source`` that of the device ``ifindex``. ``prefsrc`` is the address that packets are sent from, which
    BPF_FIB_LOOKUP_SRC asks for; ``None`` where the host has none.
    """

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    kind: Kind = "unicast"
    ifindex: int = 0
    gateway: bytes | None = None
    neighbour: bytes | None = None
    source: bytes = bytes(6)
    mtu: int = 1500
    metric: int = 0
    prefsrc: bytes | None = None


class Routes:
    """Routes by prefix. ``forwarding`` is the sysctl of the interface that packets come in on."""

    def __init__(self) -> None:
        self.forwarding = False
        self._routes: list[Route] = []

    def add(
        self,
        network: str,
        kind: Kind = "unicast",
        *,
        ifindex: int = 0,
        gateway: str | None = None,
        neighbour: bytes | None = None,
        source: bytes = bytes(6),
        mtu: int = 1500,
        metric: int = 0,
        prefsrc: str | None = None,
    ) -> Route:
        """Add a route for *network*, such as ``10.0.0.0/8``.

        Raises `EmulatorError` for what is none, and for a ``prefsrc`` of another IP version.
        """
        choose("kind", kind, get_args(Kind))
        for name, hardware in (("neighbour", neighbour), ("source", source)):
            if hardware is not None and len(hardware) != 6:
                raise EmulatorError(f"{name}={hardware!r} is no hardware address, which has 6 bytes")
        try:
            where = ipaddress.ip_network(network)
            via = None if gateway is None else ipaddress.ip_address(gateway)
            preferred = None if prefsrc is None else ipaddress.ip_address(prefsrc)
        except ValueError as error:
            raise EmulatorError(f"this is no route: {error}") from None
        if preferred is not None and preferred.version != where.version:
            raise EmulatorError(f"packets for {network} can't be sent from {prefsrc}: another version of IP")
        route = Route(
            where,
            kind,
            ifindex,
            None if via is None else via.packed,
            neighbour,
            source,
            mtu,
            metric,
            None if preferred is None else preferred.packed,
        )
        self._routes.append(route)
        return route

    @property
    def devices(self) -> set[int]:
        """The devices that routes lead to."""
        return {route.ifindex for route in self._routes if route.ifindex}

    def find(self, address: bytes, *, oif: int = 0) -> Route | None:
        """The route of the longest prefix for *address* (4 or 16 bytes).

        With *oif*, IPv4 routes to other devices are passed over; IPv6 takes them all the same.
        """
        wanted = ipaddress.ip_address(address)
        best: Route | None = None
        for route in self._routes:
            if (
                route.network.version == wanted.version
                and wanted in route.network
                and (not oif or wanted.version == 6 or route.kind != "unicast" or route.ifindex == oif)
                and (best is None or route.network.prefixlen > best.network.prefixlen)
            ):
                best = route
        return best

    @staticmethod
    def refusal(route: Route | None) -> FibLookupResult | None:
        """The result for a route that forwards nothing, else ``None``."""
        if route is None or route.kind == "local":
            return FibLookupResult.NOT_FWDED
        refusals = {
            "blackhole": FibLookupResult.BLACKHOLE,
            "unreachable": FibLookupResult.UNREACHABLE,
            "prohibit": FibLookupResult.PROHIBIT,
        }
        return refusals.get(route.kind)
