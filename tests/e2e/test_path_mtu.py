# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A hop with a smaller MTU: what ICMP says of a redirected connection reaches Envoy's socket."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from loader.playground import SERVER, SERVER6, Playground
from tests.e2e import traffic
from tests.e2e.proxy import Proxy

ECHO = 9000
SIZE = 300_001
MTU = 1300  # IPv6 allows no less than 1280
FAMILIES = [pytest.param(SERVER, id="ipv4"), pytest.param(SERVER6, id="ipv6")]


@pytest.fixture
def narrow() -> Iterator[Playground]:
    """A playground of the test's own, for hosts remember a path's MTU; the hop to the client is narrow."""
    with Playground() as playground:
        playground.gateway.run(["ip", "link", "set", "eth0", "mtu", str(MTU)])
        for namespace in (playground.client, playground.gateway, playground.server):
            # The path's MTU is learned from ICMP alone.
            namespace.sysctl("ipv4/tcp_mtu_probing", 0)
        yield playground


def learned(playground: Playground, address: str) -> bool:
    """Whether the server knows the MTU of the path to the client's address."""
    shown = playground.server.run(["ip", "route", "get", address]).stdout
    return f"mtu {MTU}" in shown


@pytest.mark.parametrize("server", FAMILIES)
def test_large_answers_through_a_narrow_hop(narrow: Playground, server: str) -> None:
    """Envoy's first large segments do not fit; the gateway's word about them lets Envoy send smaller ones."""
    narrow.start_application(f"echo:{ECHO}")
    with narrow.start_envoy("original-dst-tcp-dual"), Proxy(narrow, ports=str(ECHO)) as proxy:
        run = partial(traffic.tcp_clients, server, [("echo", ECHO)], [SIZE])
        (outcome,) = narrow.client.call(run)
        assert (outcome.error, outcome.sent) == ("", SIZE)
        assert proxy.counters()["ingress"]["errors_redirected"] >= 1
        assert learned(narrow, outcome.local[0])
