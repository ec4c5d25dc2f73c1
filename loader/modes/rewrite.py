# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Mode ``rewrite``: TC changes the destination port to Envoy's on the way in, and the source port back on the
way out; a flow map remembers it, and cgroup/getsockopt answers SO_ORIGINAL_DST from there.

With acceleration, sockops enrols both ends of Envoy's connections to the application, and sk_msg hands what
they send from socket to socket.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from loader.features import Feature
from loader.modes import Hook, Target
from loader.netns import ARPHRD_LOOPBACK, Interface
from loader.objects import Map
from programs import getsockopt, sk_msg, sockops, tc_egress, tc_ingress
from programs.packet import Interface as Link
from programs.settings import Settings
from programs.shared import (
    FLOW_BOTH_FINS,
    FLOW_ESTABLISHED,
    FLOW_RESET,
    NSEC_PER_SEC,
    Counters,
    maps,
)
from pybpfasm.kernel.enums import AttachType
from pybpfasm.layout import Record
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec

# A name on bpffs has no dot, and an interface's may have one; '%' goes first, so that no two become one.
_ESCAPES: Final = str.maketrans({"%": "%25", ".": "%2E"})

# How long after its last packet a handshake is waited for: a SYN is sent again after 1 s and 2 s more.
_HANDSHAKE_NSEC: Final = 4 * NSEC_PER_SEC


def _link(interface: Interface) -> Link:
    return Link(interface.has_mac_header, interface.link_type == ARPHRD_LOOPBACK)


def _variant(direction: str, interface: Interface) -> str:
    link = _link(interface)
    return direction + ("_loopback" if link.loopback else "" if link.link_header else "_ip")


class Rewrite:
    """The mode object, see :class:`loader.modes.Mode`."""

    name = "rewrite"
    original_destination = "cgroup/getsockopt, from the flow map"

    def needs(self, settings: Settings) -> tuple[Feature, ...]:
        """Return the features that have no substitute: TCX has clsact, timers and the cookie do without."""
        found = [Feature.LINK_UPDATE, Feature.CGROUP_GETSOCKOPT_LINK, Feature.SKC_LOOKUP_TC]
        if settings.accelerate:
            found += [
                Feature.CGROUP_SOCK_OPS_LINK,
                Feature.SK_MSG,
                Feature.SOCKHASH,
                Feature.SK_STORAGE_SK_MSG,
            ]
        return tuple(found)

    def hooks(self, settings: Settings, interfaces: Sequence[Interface]) -> tuple[Hook, ...]:
        """Return the hooks: ingress is the last, for the first packet that it redirects needs the others."""
        found = []
        if settings.accelerate:
            found.append(
                Hook("sk_msg", "sk_msg", "sk_msg", AttachType.SK_MSG_VERDICT, Target.MAP, map="sockets")
            )
            found.append(
                Hook("sockops", "sockops", "sockops", AttachType.CGROUP_SOCK_OPS, Target.CGROUP),
            )
        found.append(
            Hook("getsockopt", "getsockopt", "getsockopt", AttachType.CGROUP_GETSOCKOPT, Target.CGROUP)
        )
        for direction, attach_type in (
            ("egress", AttachType.TCX_EGRESS),
            ("ingress", AttachType.TCX_INGRESS),
        ):
            found += [
                Hook(
                    direction,
                    f"tcx_{direction}_{one.name.translate(_ESCAPES)}",
                    _variant(direction, one),
                    attach_type,
                    Target.INTERFACE,
                    interface=one,
                )
                for one in interfaces
            ]
        return tuple(found)

    def programs(self, settings: Settings, interfaces: Sequence[Interface]) -> dict[str, ProgramSpec]:
        """Assemble the programs; interfaces of one kind share theirs."""
        found = {"getsockopt": getsockopt.getsockopt.build(settings)}
        if settings.accelerate:
            found["sockops"] = sockops.sockops.build(settings)
            found["sk_msg"] = sk_msg.sk_msg.build(settings)
        for interface in interfaces:
            link = _link(interface)
            key = _variant("ingress", interface)
            if key not in found:
                found[key] = tc_ingress.tc_ingress.build(settings, link)
                found[_variant("egress", interface)] = tc_egress.tc_egress.build(settings, link)
        return found

    def maps(self, settings: Settings) -> dict[str, MapSpec]:
        """Return the maps; those of acceleration only with it."""
        every = maps(settings)
        found = {"flows": every.flows, "half_open": every.half_open, "counters": every.counters}
        if settings.accelerate:
            found |= {
                "sockets": every.sockets,
                "pending": every.pending,
                "socket_state": every.socket_state,
            }
        return found

    def connections(self, maps: Mapping[str, Map]) -> int:
        """Return the number of entries in the flow map, or of enrolled sockets if there are more."""
        return max(maps[name].count() if name in maps else 0 for name in ("flows", "sockets"))

    def draining(self, settings: Settings) -> Settings:
        """Return settings without new flows."""
        return replace(settings, new_flows=False)

    def live(self, maps: Mapping[str, Map]) -> int:
        """Return the number of flows without a reset and without both FINs.

        One without a complete handshake counts for the moments in which its client would go on with it: what
        SYNs from nowhere have left will never end.
        """
        flows = maps["flows"].values() if "flows" in maps else ()
        ended = (FLOW_RESET, FLOW_BOTH_FINS)
        recent = time.monotonic_ns() - _HANDSHAKE_NSEC
        return sum(
            bool(flow.state & FLOW_ESTABLISHED or flow.last_seen > recent)
            and not any(flow.state & bits == bits for bits in ended)
            for flow in flows
        )

    def counters(self, maps: Mapping[str, Map]) -> dict[str, dict[str, int]]:
        """Return `Counters`, added up."""
        zero = b"\0" * Counters.sizeof
        found: dict[str, dict[str, int]] = {
            hook: dict.fromkeys(part.as_dict(), 0)
            for hook, part in Counters.unpack(zero)
            if isinstance(part, Record)
        }
        each = maps["counters"].lookup(0) or [] if "counters" in maps else []
        for one in each:
            for hook, part in one:
                for name, value in part:
                    found[hook][name] += value
        return found

    def lingers(self, maps: Mapping[str, Map]) -> frozenset[str]:
        """sk_msg and its sockhash stay while a socket is enrolled: taking it out may lose unread bytes."""
        if "sockets" in maps and maps["sockets"].count():
            return frozenset({"sk_msg"})
        return frozenset()
