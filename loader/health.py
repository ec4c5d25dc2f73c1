# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""From the facts about an instance to what they mean: what keeps connections from being proxied, what is odd,
and what to do about it.

:func:`examine` looks at the document of :mod:`loader.status` and at nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import Any, Final

__all__ = ["SIGNS", "Remark", "Verdict", "examine", "oddities"]


class Verdict(Enum):
    """How serious something is."""

    GOOD = "good"
    NOTE = "note"  # the proxy works, with less or not for everybody
    BAD = "bad"  # the proxy does not work


# How a verdict is shown to people.
SIGNS: Final = {Verdict.GOOD: "✓", Verdict.NOTE: "!", Verdict.BAD: "✗"}


@dataclass(frozen=True, slots=True)
class Remark:
    """What is to be said of an instance, and what to do about it where something can be done."""

    verdict: Verdict
    found: str
    advice: str = ""


# Counters that call for a word, by hook and name: how serious, what a number of it means, and what to do.
_COUNTERS: Final[dict[tuple[str, str], tuple[str, str]]] = {
    ("ingress", "dropped_map_full"): (
        "{n} times a connection was refused because {flow_capacity} were known already",
        "up --flow-capacity with more",
    ),
    ("ingress", "evicted_half_open"): (
        "{n} times a client had not completed its handshake when very many others had begun theirs: a flood "
        "of SYNs, or clients that do not get the answers",
        "if they are honest, up --flow-capacity with more",
    ),
    ("ingress", "untimed_flows"): (
        "{n} times the kernel had no memory at hand for the timer of a connection, which asks again with its "
        "next packets; the entry of one that never got any stays if it just stops",
        "",
    ),
    ("ingress", "challenged_tuple_in_use"): (
        "{n} times a SYN came from an address and port that another connection to Envoy has",
        "where that is dead, it makes room and the client gets through; else the client has to take another "
        "source port, as most do when they try again",
    ),
    ("ingress", "dropped_direct"): (
        "{n} times somebody outside tried Envoy's own port {envoy_port} and was refused",
        "clients must ask for {ports}",
    ),
    ("ingress", "dropped_malformed"): (
        "{n} packets were dropped because their TCP header could not be read",
        "",
    ),
    ("ingress", "dropped_rewrite_failed"): (
        "{n} packets were dropped because their port could not be rewritten",
        "",
    ),
    ("egress", "dropped_rewrite_failed"): (
        "{n} packets of Envoy's were dropped because their port could not be restored",
        "",
    ),
    ("getsockopt", "unknown_connection"): (
        "{n} times the original destination was asked for of a connection that is not the proxy's",
        "it began before `up`, was made to Envoy's own port {envoy_port}, or is another instance's",
    ),
    ("getsockopt", "buffer_too_small"): (
        "{n} times whoever asked for the original destination gave too small a buffer",
        "",
    ),
    ("sockops", "failed"): (
        "{n} times a socket could not be accelerated",
        "another instance, or another program with a sockmap, may have it already: then that accelerates it",
    ),
    ("sk_msg", "encrypted"): (
        "{n} times an accelerated connection has gone over to the stack, because its application uses "
        "kernel TLS",
        "",
    ),
    ("sk_msg", "queue_full"): (
        "{n} times an accelerated connection has gone over to the stack, because its reader did not read",
        "",
    ),
}


def examine(status: Mapping[str, Any]) -> list[Remark]:
    """Return what is to be said of an instance, the worst first.

    Nothing of it is BAD where the proxy is as it should be.
    """
    if not status["settings"]:
        advice = "`up` makes it anew, `down` removes it"
        return [Remark(Verdict.BAD, line, advice) for line in status["drift"]]
    found = oddities(status)
    odd = {one.found for one in found}
    again = "`up` with the same options puts right what can be"
    if status["busy"]:
        again = ""
        found.append(
            Remark(
                Verdict.NOTE,
                "another loader is at work at the moment: where it is `down --drain`, new connections go to "
                "the application directly",
            )
        )
    found += [Remark(Verdict.BAD, line, again) for line in status["drift"] if line not in odd]
    for look in (_envoy, _interfaces, _application, _connections, _counters):
        found += look(status)
    return sorted(found, key=lambda one: one.verdict is not Verdict.BAD)


def oddities(status: Mapping[str, Any]) -> list[Remark]:
    """Return what others have changed around an instance that works nevertheless."""
    found = []
    for hook in status["hooks"]:
        if "configured" in hook:
            found.append(
                Remark(
                    Verdict.NOTE,
                    f"interface {hook['configured']} is called {hook['interface']} now",
                    f"name {hook['interface']} in the next `up`",
                )
            )
        found += [
            Remark(
                Verdict.NOTE,
                f"program {other['name']!r} ({other['program_id']}) runs before {hook['hook']} on "
                f"{hook['interface']}: it can let traffic past the proxy",
            )
            for other in hook.get("beside", ())
            if other["runs"] == "before"
        ]
    return list(dict.fromkeys(found))


def _envoy(status: Mapping[str, Any]) -> Iterator[Remark]:
    envoy, ports = status["envoy"], status["settings"]["ports"]
    if envoy["listening"] is False:
        yield Remark(
            Verdict.BAD,
            f"nothing listens on Envoy's port {envoy['port']}: connections to {ports} are refused",
            "start Envoy, or tell `up` with --envoy-port where it listens",
        )
    elif envoy["listening"] and not any(ip_address(one).is_unspecified for one in envoy["addresses"]):
        yield Remark(
            Verdict.NOTE,
            f"Envoy listens on {', '.join(envoy['addresses'])} only: connections to {ports} at other "
            "addresses are refused",
            "let its listener bind 0.0.0.0 or ::",
        )
    elif (
        envoy["listening"]
        and status["application"]["ipv6"]
        and not any(ip_address(one).version == 6 for one in envoy["addresses"])
    ):
        yield Remark(
            Verdict.NOTE,
            f"Envoy listens on IPv4 only, the application on IPv6 too: such connections to {ports} are "
            "refused",
            "let its listener bind ::, as envoy/original-dst-dual.yaml does",
        )


def _interfaces(status: Mapping[str, Any]) -> Iterator[Remark]:
    down = {hook["interface"] for hook in status["hooks"] if hook.get("interface_up") is False}
    for name in sorted(down):
        yield Remark(Verdict.NOTE, f"interface {name} is down: no client comes in there")


def _application(status: Mapping[str, Any]) -> Iterator[Remark]:
    if status["application"]["listening"] == []:
        yield Remark(
            Verdict.NOTE,
            f"nothing here listens on {status['settings']['ports']}: Envoy may find no application there",
        )


def _connections(status: Mapping[str, Any]) -> Iterator[Remark]:
    """Whether Envoy's own connections are known as such."""
    settings, counters = status["settings"], status["counters"]
    ingress, sockops = counters["ingress"], counters["sockops"]
    if not ingress["new_flows"]:
        return
    if "lo" in settings["interfaces"] and not ingress["passed_marked"]:
        yield Remark(
            Verdict.NOTE,
            f"no connection with mark {settings['mark']} has been seen on lo: if Envoy's own do not have it, "
            "they are sent back to Envoy, round and round",
            "Envoy's clusters must set SO_MARK, and --mark must say the same",
        )
    elif sockops["peer_not_enrolled"] and not sockops["enrolled_active"] and not sockops["failed"]:
        yield Remark(
            Verdict.NOTE,
            f"nothing is accelerated: no connection of Envoy's, with mark {settings['mark']}, was seen in "
            f"cgroup {settings['cgroup']}",
            "Envoy must be in the cgroup that --cgroup names, and set SO_MARK as --mark says",
        )
    elif sockops["enrolled_active"] and not sockops["enrolled_passive"]:
        yield Remark(
            Verdict.NOTE,
            f"nothing is accelerated: the application was not seen in cgroup {settings['cgroup']}",
            "it must be in the cgroup that --cgroup names, as Envoy is",
        )


def _counters(status: Mapping[str, Any]) -> Iterator[Remark]:
    for (hook, name), (found, advice) in _COUNTERS.items():
        words = {"n": f"{status['counters'][hook][name]:,}", **status["settings"]}
        if status["counters"][hook][name]:
            yield Remark(Verdict.NOTE, f"{found.format_map(words)} ({hook}.{name})", advice.format_map(words))
