# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``status --prometheus``: the document of :mod:`loader.status` in Prometheus' text exposition format.

Needs the package ``prometheus-client``, the extra ``metrics``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["COUNTERS", "exposition"]

# What each counter counts, by hook and name: HELP of its family, and its row in docs/status.md.
COUNTERS: Final[dict[tuple[str, str], str]] = {
    ("ingress", "redirected"): "packets of clients whose port was rewritten to Envoy's",
    ("ingress", "new_flows"): "new connections taken",
    ("ingress", "passed_marked"): (
        "packets with Envoy's mark, which go to the application: on lo what Envoy sends it through the stack"
    ),
    ("ingress", "passed_without_flow"): (
        "packets for an intercepted port of a connection that is not known: it began before up, or is "
        "forgotten"
    ),
    ("ingress", "passed_forwarded"): "SYNs that are routed on to another host",
    ("ingress", "passed_draining"): "SYNs during down --drain, which go to the application",
    ("ingress", "errors_redirected"): "ICMP errors about what Envoy sent, translated",
    ("ingress", "challenged_tuple_in_use"): (
        "SYNs from an address and port that another connection at Envoy has; TCP asks whether that lives"
    ),
    ("ingress", "untimed_flows"): (
        "new connections without a timer, because the kernel had no memory at hand: their next packets ask "
        "again, and without one the end of the connection removes the entry at once"
    ),
    ("ingress", "evicted_half_open"): (
        "flows forgotten before their handshake was complete, because very many others had begun since, as "
        "in a flood of SYNs"
    ),
    ("ingress", "dropped_map_full"): (
        "SYNs refused because as many connections are known as --flow-capacity allows"
    ),
    ("ingress", "dropped_direct"): "SYNs from outside for Envoy's own port",
    ("ingress", "dropped_malformed"): "packets whose TCP header cannot be read",
    ("ingress", "dropped_rewrite_failed"): "packets that the kernel did not let be changed",
    ("egress", "restored"): "packets of Envoy's whose port was put back",
    ("egress", "errors_restored"): "ICMP errors of this host about packets of clients, translated",
    ("egress", "passed_without_flow"): ("packets from Envoy's port in connections that are not the proxy's"),
    ("egress", "dropped_rewrite_failed"): "packets that the kernel did not let be changed",
    ("getsockopt", "answered_ipv4"): "questions for the original destination that got an IPv4 address",
    ("getsockopt", "answered_ipv6"): "questions for the original destination that got an IPv6 address",
    (
        "getsockopt",
        "unknown_connection",
    ): "questions for the original destination of connections that are not the proxy's",
    (
        "getsockopt",
        "buffer_too_small",
    ): "questions for the original destination with too little room for the answer",
    ("sockops", "enrolled_active"): (
        "connections that Envoy made to the application, with its mark, in the cgroup"
    ),
    (
        "sockops",
        "enrolled_passive",
    ): "the application's ends of Envoy's connections, in the cgroup; such a connection is accelerated",
    ("sockops", "slot_taken"): "connections left alone because an older one has the same addresses",
    ("sockops", "data_before_enrolment"): "connections left alone because data was on its way already",
    ("sockops", "peer_not_enrolled"): (
        "connections to the application whose other end is not Envoy's, or not in the cgroup"
    ),
    ("sockops", "failed"): (
        "sockets that the kernel did not let into the map, because another instance has them in its own"
    ),
    ("sk_msg", "redirected_messages"): "messages that went from socket to socket",
    ("sk_msg", "redirected_bytes"): "bytes that went from socket to socket",
    ("sk_msg", "native_messages"): "messages that went through the stack on enrolled sockets",
    ("sk_msg", "native_bytes"): "bytes that went through the stack on enrolled sockets",
    ("sk_msg", "queue_full"): "directions that went over to the stack because the reader did not read",
    ("sk_msg", "encrypted"): (
        "directions that went over to the stack because the application uses kernel TLS"
    ),
}

# The settings that are labels of the information; capacities and ids have a place of their own, or none.
SETTINGS: Final = (
    "mode",
    "ports",
    "envoy_port",
    "mark",
    "accelerate",
    "interfaces",
    "netns",
    "cgroup",
    "flow_capacity",
    "handshake_seconds",
    "linger_seconds",
    "idle_seconds",
    "queue_limit",
)

# The name of an instance. Not `instance`: that label is Prometheus' own for the host that was asked, and one
# of a target's becomes `exported_instance` there.
LABEL: Final = "name"


def exposition(statuses: Mapping[str, Mapping[str, Any] | None], *, everything: bool) -> bytes:
    """Return instances in Prometheus' text exposition format, UTF-8.

    *statuses* are the documents of :func:`loader.status.document` by name, None for an instance that is not
    up. *everything* says that these are all there are, so that their number is given too: in two files of one
    host, each of one instance, it would be the same series twice, which node_exporter refuses.
    """
    registry = CollectorRegistry()
    registry.register(_Instances(statuses, everything))
    return generate_latest(registry)


class _Instances(Collector):
    def __init__(self, statuses: Mapping[str, Mapping[str, Any] | None], everything: bool) -> None:
        self._statuses = statuses
        self._everything = everything

    def collect(self) -> Iterator[Metric]:
        """The families that have a sample; those without say nothing."""
        if self._everything:
            yield GaugeMetricFamily("pybpfasm_instances", "Instances that are up.", value=len(self._statuses))
        yield from (family for family in (*self._gauges(), *self._counters()) if family.samples)

    def _gauges(self) -> Iterator[Metric]:
        healthy = _gauge(
            "healthy", "1 where all is as it should be, as `status` says; 0 where not, or not up."
        )
        info = InfoMetricFamily("pybpfasm_instance", "Settings of an instance.", labels=[LABEL])
        accelerated = _gauge("accelerated", "1 where the short-cut from socket to socket is on, 0 where not.")
        listening = _gauge(
            "envoy_listening", "1 where somebody listens on Envoy's port, 0 where nobody does."
        )
        entries = _gauge("map_entries", "Entries of a map.", "map")
        capacity = _gauge("map_max_entries", "Entries that a map can have.", "map")
        for name, status in self._statuses.items():
            healthy.add_metric([name], bool(status and status["healthy"]))
            if status is None:
                continue
            if settings := status["settings"]:
                info.add_metric([name], {one: _text(settings[one]) for one in SETTINGS})
                accelerated.add_metric([name], settings["accelerate"])
            if status["envoy"] and status["envoy"]["listening"] is not None:
                listening.add_metric([name], status["envoy"]["listening"])
            for one in status["maps"]:
                if "entries" in one:
                    entries.add_metric([name, one["map"]], one["entries"])
                    capacity.add_metric([name, one["map"]], one["max_entries"])
        yield from (healthy, info, accelerated, listening, entries, capacity)

    def _counters(self) -> Iterator[Metric]:
        for (hook, counter), about in COUNTERS.items():
            family = CounterMetricFamily(
                f"pybpfasm_{hook}_{counter}", f"{about[0].upper()}{about[1:]}.", labels=[LABEL]
            )
            for name, status in self._statuses.items():
                if status and status["counters"]:
                    family.add_metric([name], status["counters"][hook][counter])
            yield family


def _gauge(name: str, about: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pybpfasm_{name}", about, labels=[LABEL, *labels])


def _text(value: object) -> str:
    """The text of a label: UTF-8 whatever a path is made of."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ",".join(_text(one) for one in value)
    return "" if value is None else str(value).encode(errors="replace").decode()
