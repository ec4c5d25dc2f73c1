# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A model of the host's routing, as ``fib_lookup`` asks it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from pybpfasm.kernel.enums import FibLookupResult

__all__ = ["Route", "Routes"]

Kind = Literal["unicast", "local", "blackhole", "unreachable", "prohibit"]


@dataclass(frozen=True)
class Route:
    """Where packets for *network* go.

    ``neighbour`` is the hardware address of the next hop, ``None`` where it is not known (NO_NEIGH).
    """

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    kind: Kind = "unicast"
    ifindex: int = 0
    gateway: bytes | None = None
    neighbour: bytes | None = None
    source: bytes = bytes(6)
    mtu: int = 1500
    metric: int = 0


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
    ) -> Route:
        """Add a route for *network*, such as ``10.0.0.0/8``."""
        route = Route(
            ipaddress.ip_network(network),
            kind,
            ifindex,
            None if gateway is None else ipaddress.ip_address(gateway).packed,
            neighbour,
            source,
            mtu,
            metric,
        )
        self._routes.append(route)
        return route

    def find(self, address: bytes) -> Route | None:
        """The route of the longest prefix for *address* (4 or 16 bytes)."""
        wanted = ipaddress.ip_address(address)
        best: Route | None = None
        for route in self._routes:
            if (
                route.network.version == wanted.version
                and wanted in route.network
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
