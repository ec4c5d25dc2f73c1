# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Real connections through the real Envoy that nobody addressed: every configuration, family and kind of
client.

The proof that a connection was redirected are Envoy's own statistics and access log; that it was accelerated,
the bytes that the sk_msg program counted; that nothing was lost, hashes at both ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pytest

from loader.envoy import Envoy
from loader.playground import CLIENT, CLIENT6, SERVER, SERVER6, Application, Playground
from tests.e2e import traffic
from tests.e2e.proxy import Proxy, dropped, eventually

T = TypeVar("T")

HTTP = 8000
ECHO, HASH = 9000, 9001
PORTS = "8000,9000-9001"
TCP_SERVICES = [("echo", ECHO), ("hash", HASH)]

# Envoy file, the families that it serves, and whether the application has one socket for both families.
HTTP_SETUPS = [
    pytest.param(("static", "4", False), id="static"),
    pytest.param(("static-ipv6", "6", False), id="static-ipv6"),
    pytest.param(("original-dst", "4", False), id="original-dst"),
    pytest.param(("original-dst-ipv6", "6", False), id="original-dst-ipv6"),
    pytest.param(("original-dst-dual", "46", False), id="original-dst-dual"),
    pytest.param(("original-dst-dual", "46", True), id="original-dst-dual to dual application"),
]
TCP_SETUPS = [
    pytest.param(("original-dst-tcp", "4", False), id="original-dst-tcp"),
    pytest.param(("original-dst-tcp-ipv6", "6", False), id="original-dst-tcp-ipv6"),
    pytest.param(("original-dst-tcp-dual", "46", False), id="original-dst-tcp-dual"),
    pytest.param(("original-dst-tcp-dual", "46", True), id="original-dst-tcp-dual to dual application"),
]

# Below those that the kernel chooses from.
SOURCE_PORTS = itertools.count(10_000, 200)
Setup = tuple[str, str, bool]


@dataclass
class Running:
    """A playground in which everything runs."""

    playground: Playground
    application: Application
    envoy: Envoy
    proxy: Proxy
    families: str
    accelerated: bool

    @property
    def static(self) -> bool:
        return "static" in self.envoy.config.name

    def run(self, where: str, function: Callable[[], T]) -> T:
        """Call `function` at the remote client, or at one on the server's host in or outside the cgroup."""
        if where == "remote":
            return self.playground.client.call(function)
        inside = self.playground.cgroup if where == "same host, same cgroup" else None
        return self.playground.server.call(function, cgroup=inside)


WHERE = ["remote", "same host", "same host, same cgroup"]


def client_address(where: str, server: str) -> str:
    """The address that a client has when it talks to `server`."""
    return (CLIENT6 if ":" in server else CLIENT) if where == "remote" else server


def addresses(running: Running) -> list[str]:
    """The server's addresses of the families that this Envoy serves."""
    return [address for family, address in (("4", SERVER), ("6", SERVER6)) if family in running.families]


def start(playground: Playground, setup: Setup, accelerated: bool) -> Iterator[Running]:
    """Application, Envoy and proxy, for the tests of one set-up."""
    file, families, dual = setup
    options = [] if accelerated else ["--no-accelerate"]
    application = playground.start_application(f"http:{HTTP}", f"echo:{ECHO}", f"hash:{HASH}", dual=dual)
    try:
        with playground.start_envoy(file) as envoy:
            with Proxy(playground, *options, ports=PORTS) as proxy:
                yield Running(playground, application, envoy, proxy, families, accelerated)
    finally:
        application.stop()


ACCELERATED = pytest.mark.parametrize(
    "accelerated", [True, False], ids=["accelerated", "native"], scope="module"
)


@pytest.fixture(scope="module", params=HTTP_SETUPS)
def http(request: pytest.FixtureRequest, playground: Playground, accelerated: bool) -> Iterator[Running]:
    yield from start(playground, request.param, accelerated)


@pytest.fixture(scope="module", params=TCP_SETUPS)
def tcp(request: pytest.FixtureRequest, playground: Playground, accelerated: bool) -> Iterator[Running]:
    yield from start(playground, request.param, accelerated)


def host_and_port(text: str) -> tuple[str, int]:
    """Both parts of ``1.2.3.4:80`` or ``[::1]:80``."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def logged(envoy: Envoy, clients: set[tuple[str, int]]) -> list[dict[str, Any]]:
    """The lines of Envoy's access log for the connections of `clients`, one for each of them."""
    return envoy.wait_access_log(
        lambda entry: host_and_port(entry["downstream_remote"]) in clients, count=len(clients)
    )


@ACCELERATED
@pytest.mark.parametrize("where", WHERE)
def test_http_request(http: Running, where: str) -> None:
    for server in addresses(http):
        before = http.proxy.counters()
        answer = http.run(where, partial(traffic.get, server, HTTP, f"/?{where.replace(' ', '+')}"))
        client = client_address(where, server)

        # The client sees nothing of it: not the port, not another address.
        assert answer["status"] == 200
        assert tuple(answer["peername"]) == (server, HTTP)
        assert answer["sockname"][0] == client
        # The application talks to Envoy, which knows the true client.
        assert tuple(answer["peer"]) != tuple(answer["sockname"])
        assert answer["forwarded_for"] == client

        (entry,) = logged(http.envoy, {tuple(answer["sockname"])})
        assert entry["response_code"] == 200
        if http.static:
            assert entry["upstream_cluster"] == "application"
            assert host_and_port(entry["upstream_host"])[1] == HTTP
        else:
            assert entry["upstream_cluster"] == "original-dst"
            assert host_and_port(entry["upstream_host"]) == (server, HTTP)

        after = http.proxy.counters()
        assert after["ingress"]["new_flows"] == before["ingress"]["new_flows"] + 1
        assert after["egress"]["restored"] > before["egress"]["restored"]
        asked = "answered_ipv6" if ":" in server else "answered_ipv4"
        if not http.static:
            assert after["getsockopt"][asked] == before["getsockopt"][asked] + 1
        assert dropped(after) == {}


@ACCELERATED
@pytest.mark.parametrize("where", WHERE)
def test_http_clients(http: Running, where: str) -> None:
    sizes = traffic.mixed_sizes(24)
    for server in addresses(http):
        before = http.envoy.stats(r"^http\.ingress_http\.downstream_(cx|rq)_total$")
        redirected = redirected_bytes(http)
        outcomes = http.run(where, partial(traffic.http_clients, server, HTTP, sizes))
        assert [o.error for o in outcomes] == [""] * len(sizes)
        assert {o.peer for o in outcomes} == {(server, HTTP)}

        after = http.envoy.stats(r"^http\.ingress_http\.downstream_(cx|rq)_total$")
        grown = {name.rpartition(".")[2]: after[name] - before[name] for name in after}
        assert grown == {"downstream_cx_total": len(sizes), "downstream_rq_total": 2 * len(sizes)}
        check_acceleration(http, redirected_bytes(http) - redirected, 2 * sum(sizes))
        assert dropped(http.proxy.counters()) == {}


@ACCELERATED
@pytest.mark.parametrize("where", WHERE)
def test_200_tcp_connections(tcp: Running, where: str) -> None:
    """200 at once, of mixed sizes, half of them answered only after the client's FIN."""
    sizes = traffic.mixed_sizes(200)
    for server in addresses(tcp):
        seen = len(tcp.application.log())
        before = tcp.envoy.stats(r"^tcp\.ingress_tcp\.downstream_cx_total$")
        redirected = redirected_bytes(tcp)
        run = partial(traffic.tcp_clients, server, TCP_SERVICES, sizes, next(SOURCE_PORTS))
        outcomes = tcp.run(where, run)

        assert [o.error for o in outcomes] == [""] * len(sizes)
        assert {o.peer for o in outcomes} == {(server, ECHO), (server, HASH)}
        assert {o.local[0] for o in outcomes} == {client_address(where, server)}
        # The same bytes at the other end. Envoy is in between, so the connections have no name in common.
        eventually(lambda: len(tcp.application.log()), seen + len(sizes))
        got = sorted((entry["sha256"], entry["received"]) for entry in tcp.application.log()[seen:])
        assert got == sorted((o.sha256, o.sent) for o in outcomes)

        after = tcp.envoy.stats(r"^tcp\.ingress_tcp\.downstream_cx_total$")
        assert {name: after[name] - before[name] for name in after} == {
            "tcp.ingress_tcp.downstream_cx_total": len(sizes)
        }
        entries = logged(tcp.envoy, {o.local for o in outcomes})
        assert {entry["upstream_cluster"] for entry in entries} == {"original-dst"}
        assert {host_and_port(e["upstream_host"]) for e in entries} == {(server, ECHO), (server, HASH)}
        # Both directions carry each byte, and the hash.
        check_acceleration(tcp, redirected_bytes(tcp) - redirected, 2 * sum(sizes) + 32 * len(sizes))
        assert dropped(tcp.proxy.counters()) == {}


def redirected_bytes(running: Running) -> int:
    """Bytes that went from socket to socket so far."""
    return running.proxy.counters()["sk_msg"]["redirected_bytes"] if running.accelerated else 0


def check_acceleration(running: Running, redirected: int, carried: int) -> None:
    """Assert that most of the bytes between Envoy and the application took the short-cut, or none."""
    if running.accelerated:
        assert redirected >= carried // 2, f"only {redirected} of about {carried} bytes were redirected"
    else:
        assert redirected == 0
        assert "sk_msg" not in {hook["hook"] for hook in running.proxy.status()["hooks"]}


@ACCELERATED
def test_what_is_not_asked_for_is_left_alone(http: Running) -> None:
    """A port that is not in --ports: straight to the application, whatever else runs."""
    extra = http.playground.start_application("http:8765")
    try:
        for server in (SERVER, SERVER6):
            answer = http.playground.client.call(partial(traffic.get, server, 8765))
            assert tuple(answer["peer"]) == tuple(answer["sockname"])
            answer = http.playground.server.call(partial(traffic.get, server, 8765))
            assert tuple(answer["peer"]) == tuple(answer["sockname"])
    finally:
        extra.stop()


@ACCELERATED
def test_the_clients_packets_name_only_the_applications_port(http: Running) -> None:
    for server in addresses(http):
        with http.playground.client.capture() as capture:
            run = partial(traffic.http_clients, server, HTTP, [0, 3000, 100_000])
            assert [o.error for o in http.playground.client.call(run)] == [""] * 3
            assert {p.remote_port for p in capture.packets()} == {HTTP}


@ACCELERATED
def test_envoys_own_port_from_outside(tcp: Running) -> None:
    """Nobody gets to Envoy's port directly: with original destination it would connect to itself, again and
    again.
    """
    for server in addresses(tcp):
        before = tcp.proxy.counters()["ingress"]["dropped_direct"]
        with pytest.raises((TimeoutError, ConnectionError)):
            tcp.playground.client.connect(server, 8080, timeout=0.5).close()
        assert tcp.proxy.counters()["ingress"]["dropped_direct"] > before
