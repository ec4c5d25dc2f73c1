# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""One proxy at a time, set up in ways of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from loader.playground import SERVER, SERVER6, Playground
from loader.process import Place, spawn
from tests.e2e import host, traffic
from tests.e2e.proxy import Proxy

HTTP = 8000
ECHO, OTHER_ECHO = 9000, 9001


@pytest.fixture
def busy(playground: Playground) -> Iterator[Playground]:
    """The playground with an application: HTTP on one port, echo on two."""
    application = playground.start_application(f"http:{HTTP}", f"echo:{ECHO}", f"echo:{OTHER_ECHO}")
    yield playground
    application.stop()


def test_down_and_up_again(busy: Playground) -> None:
    with busy.start_envoy("original-dst"):
        for _ in range(2):
            with Proxy(busy):
                answer = busy.client.call(partial(traffic.get, SERVER, HTTP))
                assert tuple(answer["peer"]) != tuple(answer["sockname"])
            answer = busy.client.call(partial(traffic.get, SERVER, HTTP))
            assert tuple(answer["peer"]) == tuple(answer["sockname"])


def test_other_port_and_mark(busy: Playground) -> None:
    with busy.start_envoy("original-dst", listener_port=15006, mark=0x1100) as envoy:
        with Proxy(busy, "--envoy-port", "15006", "--mark", "0x1000/0xf000"):
            for where in (busy.client, busy.server):
                answer = where.call(partial(traffic.get, SERVER, HTTP))
                assert (answer["status"], answer["peername"]) == (200, (SERVER, HTTP))
                assert tuple(answer["peer"]) != tuple(answer["sockname"])
        envoy.wait_access_log(lambda entry: True, count=2)


def test_without_lo_local_clients_are_left_alone(busy: Playground) -> None:
    with busy.start_envoy("original-dst") as envoy, Proxy(busy, lo=False):
        answer = busy.server.call(partial(traffic.get, SERVER, HTTP))
        assert tuple(answer["peer"]) == tuple(answer["sockname"])
        answer = busy.client.call(partial(traffic.get, SERVER, HTTP))
        assert tuple(answer["peer"]) != tuple(answer["sockname"])
        envoy.wait_access_log(lambda entry: entry["downstream_remote"].startswith("10.0.0.20:"))
        assert len(envoy.access_log()) == 1


def test_loopback_addresses(busy: Playground) -> None:
    """127.0.0.1 and ::1 are intercepted on lo too, and the original destination is what was connected to."""
    with busy.start_envoy("original-dst-dual") as envoy, Proxy(busy):
        for address, text in (("127.0.0.1", "127.0.0.1:8000"), ("::1", "[::1]:8000")):
            answer = busy.server.call(partial(traffic.get, address, HTTP))
            assert answer["status"] == 200
            assert answer["peername"] == (address, HTTP)
            (entry,) = envoy.wait_access_log(lambda e, text=text: e["upstream_host"] == text)  # type: ignore[misc]
            assert entry["upstream_cluster"] == "original-dst"


def test_the_proxy_goes_on_while_nothing_of_the_loader_runs(busy: Playground) -> None:
    """`up` has ended long ago: no process of it is left, and traffic flows."""
    with busy.start_envoy("original-dst"), Proxy(busy) as proxy:
        members = (busy.cgroup / "cgroup.procs").read_text().split()
        assert len(members) == 2  # Envoy and the application
        assert not any("loader" in word and proxy.name in word for word in _command_lines())
        assert busy.client.call(partial(traffic.get, SERVER, HTTP))["status"] == 200


def _command_lines() -> list[str]:
    from pathlib import Path

    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text().replace("\0", " "))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("server", [SERVER, SERVER6], ids=["ipv4", "ipv6"])
def test_one_source_port_to_two_intercepted_ports(busy: Playground, server: str) -> None:
    """At Envoy both would be the same connection: the second is refused and counted, the first lives on."""
    with busy.start_envoy("original-dst-tcp-dual"), Proxy(busy, ports=f"{ECHO},{OTHER_ECHO}") as proxy:
        first = busy.client.connect(server, ECHO, source_port=22222)
        try:
            assert _echo(first, b"first") == b"first"
            with pytest.raises(TimeoutError):
                _connect_reusing(busy, server, OTHER_ECHO, 22222, timeout=0.5)
            assert proxy.counters()["ingress"]["challenged_tuple_in_use"] >= 1
            assert _echo(first, b"still there") == b"still there"
        finally:
            first.close()
        # Once the first has ended, its port serves the other one: only the client is in TIME_WAIT.
        deadline = time.monotonic() + 10
        while True:
            try:
                second = _connect_reusing(busy, server, OTHER_ECHO, 22222, timeout=0.5)
                break
            except TimeoutError:
                assert time.monotonic() < deadline
        with second:
            assert _echo(second, b"second") == b"second"


def _connect_reusing(
    playground: Playground, server: str, port: int, source: int, timeout: float
) -> socket.socket:
    return playground.client.connect(server, port, source_port=source, timeout=timeout)


def _echo(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        chunk = connection.recv(len(data) - len(received))
        assert chunk, "the connection ended"
        received += chunk
    return received


@pytest.mark.parametrize("accelerate", [True, False], ids=["accelerated", "native"])
def test_clsact(busy: Playground, monkeypatch: pytest.MonkeyPatch, accelerate: bool) -> None:
    """Where the kernel has no TCX, clsact and cls_bpf do the same, and `down` takes the qdisc along."""
    monkeypatch.setenv("PYBPFASM_ATTACH", "clsact")
    before = busy.server.call(host.qdiscs)
    options = [] if accelerate else ["--no-accelerate"]
    with busy.start_envoy("original-dst-tcp-dual") as envoy:
        with Proxy(busy, *options, ports=f"{ECHO},{OTHER_ECHO}") as proxy:
            methods = {h["hook"]: h["method"] for h in proxy.status()["hooks"]}
            assert methods["ingress"] == methods["egress"] == "clsact"
            assert len(busy.server.call(host.qdiscs)) == len(before) + 2
            sizes = traffic.mixed_sizes(40)
            services = [("echo", ECHO), ("echo", OTHER_ECHO)]
            for number, address in enumerate((SERVER, SERVER6)):
                for place, where in enumerate((busy.client, busy.server)):
                    first = 11_000 + 100 * (2 * number + place)
                    outcomes = where.call(partial(traffic.tcp_clients, address, services, sizes, first))
                    assert [o.error for o in outcomes] == [""] * len(sizes)
            assert envoy.stats(r"^tcp\.ingress_tcp\.downstream_cx_total$") == {
                "tcp.ingress_tcp.downstream_cx_total": 4 * len(sizes)
            }
            counters = proxy.counters()
            assert counters["ingress"]["new_flows"] == 4 * len(sizes)
            assert (counters["sk_msg"]["redirected_bytes"] > 4 * sum(sizes)) == accelerate
    assert busy.server.call(host.qdiscs) == before


def test_envoy_dies_and_comes_back(busy: Playground) -> None:
    """Without Envoy intercepted ports refuse, they never fall through; with it they work again."""
    with Proxy(busy):
        envoy = busy.start_envoy("original-dst")
        assert busy.client.call(partial(traffic.get, SERVER, HTTP))["status"] == 200
        envoy.stop()
        with pytest.raises(ConnectionRefusedError):
            busy.client.connect(SERVER, HTTP, timeout=2)
        with busy.start_envoy("original-dst"):
            assert busy.client.call(partial(traffic.get, SERVER, HTTP))["status"] == 200


def test_down_drains(busy: Playground) -> None:
    """A connection through Envoy lives to its end; one that begins meanwhile goes to the application."""
    with busy.start_envoy("original-dst-tcp"), Proxy(busy, ports=f"{HTTP},{ECHO}") as proxy:
        held = busy.client.connect(SERVER, ECHO)
        held.sendall(b"before")
        assert held.recv(100) == b"before"
        down = threading.Thread(target=proxy.down, args=("--drain", "60"))
        down.start()
        try:
            answer: dict[str, Any] = {}
            deadline = time.monotonic() + 30
            while tuple(answer.get("peer", ())) != tuple(answer.get("sockname", (0,))):
                assert time.monotonic() < deadline, "new connections still go to Envoy"
                answer = busy.client.call(partial(traffic.get, SERVER, HTTP))
            assert down.is_alive(), "down did not wait for the connection"
            assert proxy.counters()["ingress"]["passed_draining"] > 0
            held.sendall(b"meanwhile")
            assert held.recv(100) == b"meanwhile"
            held.shutdown(socket.SHUT_WR)
            assert len(held.recv(100, socket.MSG_WAITALL)) == 32  # the application's hash of what it received
        finally:
            held.close()
            down.join()


def test_draining_ends_at_its_time(busy: Playground) -> None:
    with busy.start_envoy("original-dst-tcp"), Proxy(busy, ports=str(ECHO)) as proxy:
        with busy.client.connect(SERVER, ECHO) as held:
            held.sendall(b"x")
            assert held.recv(1) == b"x"
            done = proxy.down("--drain", "0.3")
        assert "draining: 1 connection(s) left" in done.stdout
        assert "1 connection(s) had not ended after 0.3 s" in done.stderr


def test_an_interrupted_drain_changes_nothing(busy: Playground) -> None:
    with busy.start_envoy("original-dst-tcp"), Proxy(busy, ports=f"{HTTP},{ECHO}") as proxy:
        before = proxy.status()["hooks"]
        with busy.client.connect(SERVER, ECHO) as held:
            held.sendall(b"x")
            assert held.recv(1) == b"x"
            argv = [sys.executable, "-m", "loader", "down", "--drain", "60", "--name", proxy.name]
            place = Place(mntns=busy.mntns)
            process = spawn(argv, place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "draining: 1 connection(s) left\n"
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
            assert "interrupted" in error
            assert proxy.status()["hooks"] == before
            held.sendall(b"y")
            assert held.recv(1) == b"y"
