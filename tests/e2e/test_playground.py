# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The playground itself: traffic flows in it without any program of ours, and nothing of it survives."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from loader.cgroup import find_cgroup2
from loader.playground import CLIENT, CLIENT6, SERVER, SERVER6, Application, Playground, PlaygroundError
from loader.process import ForkedCallError, Place, call, die_with_parent
from tests.e2e import traffic
from tests.processes import alive

FAMILIES = [pytest.param(SERVER, CLIENT, id="ipv4"), pytest.param(SERVER6, CLIENT6, id="ipv6")]


@pytest.fixture(scope="module")
def application(playground: Playground) -> Iterator[Application]:
    running = playground.start_application("http:8000", "echo:9000", "hash:9001")
    yield running
    running.stop()


@pytest.mark.parametrize(("server", "client"), FAMILIES)
def test_client_reaches_the_application_through_the_gateway(
    playground: Playground, application: Application, server: str, client: str
) -> None:
    answer = playground.client.call(partial(traffic.get, server, 8000))
    assert answer["status"] == 200
    assert tuple(answer["peer"]) == answer["sockname"]
    assert answer["peer"][0] == client
    assert answer["local"] == [server, 8000]
    assert application.log()[-1]["peer"] == answer["peer"]


def test_the_way_is_through_the_gateway(playground: Playground, application: Application) -> None:
    with playground.gateway.capture() as capture:
        port = playground.client.call(partial(traffic.get, SERVER, 8000))["sockname"][1]
        packets = [p for p in capture.packets() if port in (p.source_port, p.destination_port)]
    # Each packet comes in at one interface and goes out at the other.
    assert len(packets) % 2 == 0
    assert {p.outgoing for p in packets if p.flags == 0x02} == {False, True}  # SYN


@pytest.mark.parametrize(("server", "client"), FAMILIES)
def test_mixed_sizes_and_half_close(
    playground: Playground, application: Application, server: str, client: str
) -> None:
    sizes = traffic.mixed_sizes(30)
    run = partial(traffic.tcp_clients, server, [("echo", 9000), ("hash", 9001)], sizes)
    outcomes = playground.client.call(run)
    assert [outcome.error for outcome in outcomes] == [""] * len(sizes)
    by_peer = {tuple(entry["peer"]): entry for entry in application.log() if "sha256" in entry}
    for outcome in outcomes:
        entry = by_peer[outcome.local]
        assert (entry["sha256"], entry["received"]) == (outcome.sha256, outcome.sent)


@pytest.mark.parametrize(("server", "client"), FAMILIES)
def test_http_clients(playground: Playground, application: Application, server: str, client: str) -> None:
    outcomes = playground.client.call(partial(traffic.http_clients, server, 8000, traffic.mixed_sizes(20)))
    assert [outcome.error for outcome in outcomes] == [""] * 20
    assert {outcome.local[0] for outcome in outcomes} == {client}


def test_dual_stack_application_sees_mapped_addresses(playground: Playground) -> None:
    dual = playground.start_application("http:8010", dual=True)
    try:
        assert playground.client.call(partial(traffic.get, SERVER, 8010))["peer"][0] == f"::ffff:{CLIENT}"
        assert playground.client.call(partial(traffic.get, SERVER6, 8010))["peer"][0] == CLIENT6
    finally:
        dual.stop()


@pytest.mark.parametrize(
    ("config", "server"),
    [("static", SERVER), ("static-ipv6", SERVER6)],
)
def test_envoy_when_addressed_itself(
    playground: Playground, application: Application, config: str, server: str
) -> None:
    with playground.start_envoy(config) as envoy:
        with playground.client.capture() as capture:
            answer = playground.client.call(partial(traffic.get, server, 8080, "/?hello"))
            assert {p.remote_port for p in capture.packets() if p.remote == server} == {8080}
        assert answer["status"] == 200
        assert answer["peer"][0] == ("::1" if ":" in server else "127.0.0.1")
        (entry,) = envoy.wait_access_log(lambda entry: True)
        assert (entry["path"], entry["response_code"], entry["upstream_cluster"]) == (
            "/?hello",
            200,
            "application",
        )
        assert entry["downstream_remote"] in (
            f"{answer['sockname'][0]}:{answer['sockname'][1]}",
            f"[{answer['sockname'][0]}]:{answer['sockname'][1]}",
        )
        stats = envoy.stats("ingress_http.downstream_cx_total|cluster.application.upstream_cx_total")
        assert stats == {
            "http.ingress_http.downstream_cx_total": 1,
            "cluster.application.upstream_cx_total": 1,
        }


def test_envoy_and_application_run_in_the_cgroup(playground: Playground, application: Application) -> None:
    with playground.start_envoy("static") as envoy:
        members = {int(pid) for pid in (playground.cgroup / "cgroup.procs").read_text().split()}
        assert {envoy.pid, application.process.pid} <= members
        assert os.getpid() not in members
        for pid in (envoy.pid, application.process.pid):
            assert os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat(playground.server.path).st_ino


def test_envoy_sets_the_mark() -> None:
    """A routing rule that refuses marked packets cuts Envoy off from the application."""
    from pyroute2 import IPRoute

    with Playground() as playground:
        playground.start_application("http:8000")
        playground.start_envoy("static", mark=77)
        with playground.server.enter(), IPRoute() as netlink:
            # The rule for local addresses comes first by default: put ours before it.
            netlink.rule("add", table=255, priority=10)
            netlink.rule("del", table=255, priority=0)
            netlink.rule("add", priority=1, fwmark=78, action="unreachable")
            assert playground.client.call(partial(_status, SERVER, 8080)) == 200
            netlink.rule("add", priority=2, fwmark=77, action="unreachable")
            # A new connection of Envoy's: the first one is kept alive.
            with playground.start_envoy("static", mark=77, listener_port=8081, admin_port=9902):
                assert playground.client.call(partial(_status, SERVER, 8081)) == 503


def _status(address: str, port: int) -> int:
    import http.client

    client = http.client.HTTPConnection(address, port, timeout=10)
    try:
        client.request("GET", "/")
        return client.getresponse().status
    finally:
        client.close()


def test_bpffs_is_private(playground: Playground) -> None:
    def look() -> list[str]:
        return [
            line.split()[2]
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if " /sys/fs/bpf " in line
        ]

    assert call(look, Place(mntns=playground.mntns))[-1] == "bpf"
    # The kernel itself may put two iterators into a new bpffs (CONFIG_BPF_PRELOAD).
    pins = set(call(lambda: os.listdir("/sys/fs/bpf"), Place(mntns=playground.mntns)))
    assert pins <= {"progs.debug", "maps.debug"}
    before = os.stat("/proc/self/ns/mnt").st_ino
    assert os.fstat(playground.mntns).st_ino != before


def test_namespaces_have_no_name(playground: Playground) -> None:
    ours = {os.stat(n.path).st_ino for n in (playground.client, playground.gateway, playground.server)}
    assert len(ours) == 3
    named = (
        {entry.stat().st_ino for entry in Path("/run/netns").iterdir()}
        if Path("/run/netns").exists()
        else set()
    )
    assert not ours & named
    assert os.stat("/proc/self/ns/net").st_ino not in ours


def test_errors_in_a_forked_call(playground: Playground) -> None:
    with pytest.raises(ForkedCallError, match="ZeroDivisionError"):
        playground.client.call(lambda: 1 // 0)
    with pytest.raises(ForkedCallError, match="without a result"):
        playground.client.call(lambda: os._exit(3))


def test_application_that_cannot_start(playground: Playground, application: Application) -> None:
    with pytest.raises(PlaygroundError, match="Address already in use"):
        playground.start_application("http:8000")


def test_run_and_popen(playground: Playground) -> None:
    code = "import socket; print(socket.if_nameindex())"
    result = playground.client.run([sys.executable, "-I", "-c", code])
    assert result.returncode == 0
    assert result.stdout.strip() == "[(1, 'lo'), (2, 'eth0')]"


def test_two_playgrounds_at_once(playground: Playground, application: Application) -> None:
    with Playground() as other:
        with pytest.raises(ConnectionRefusedError):
            other.client.connect(SERVER, 8000)
        other.start_application("http:8000")
        assert other.client.call(partial(traffic.get, SERVER, 8000))["status"] == 200


# What is left of a playground whose process ended in some way.

SCRIPT = """
import signal, sys
from loader.playground import Playground
with Playground() as playground:
    application = playground.start_application("http:8000")
    envoy = playground.start_envoy("static")
    sleeper = playground.client.popen(["sleep", "1000"])
    print(playground.cgroup, playground.directory, playground.guardian_pid,
          application.process.pid, envoy.pid, sleeper.pid, flush=True)
    if sys.argv[1] == "wait":
        signal.pause()
"""


Started = tuple["subprocess.Popen[str]", Path, Path, int, list[int]]


def start(*arguments: str) -> Started:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
        preexec_fn=partial(die_with_parent, os.getpid()),  # however the tests end
    )
    assert process.stdout is not None and process.stderr is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.stderr.read())
    cgroup, directory, guardian, *pids = line.split()
    return process, Path(cgroup), Path(directory), int(guardian), [int(pid) for pid in pids]


def gone(
    process: subprocess.Popen[str], cgroup: Path, directory: Path, guardian: int, pids: list[int]
) -> None:
    """Assert that within a few seconds nothing is left."""
    process.communicate(timeout=20)
    deadline = time.monotonic() + 10
    while True:
        left = [f"process {pid}" for pid in [guardian, *pids] if alive(pid)]
        left += [str(path) for path in (cgroup, directory) if path.exists()]
        if not left:
            return
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.02)


def test_everything_is_there_while_it_runs() -> None:
    process, cgroup, directory, guardian, pids = start("wait")
    try:
        assert cgroup.is_dir() and cgroup.parent == find_cgroup2()
        assert directory.is_dir() and directory.stat().st_mode & 0o777 == 0o700
        assert all(alive(pid) for pid in [guardian, *pids])
    finally:
        process.send_signal(signal.SIGKILL)
    gone(process, cgroup, directory, guardian, pids)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_after_a_signal(number: signal.Signals) -> None:
    started = start("wait")
    started[0].send_signal(number)
    gone(*started)


def test_nothing_is_left_after_the_end() -> None:
    started = start("go on")
    gone(*started)
    assert started[0].returncode == 0


def test_the_guardian_does_not_hear_signals() -> None:
    process, cgroup, directory, guardian, pids = start("wait")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(guardian, number)
    assert os.getsid(guardian) == guardian
    process.send_signal(signal.SIGKILL)
    gone(process, cgroup, directory, guardian, pids)


def test_closing_leaves_no_descriptor_and_no_child() -> None:
    def state() -> tuple[set[str], str]:
        links = set()
        for entry in Path("/proc/self/fd").iterdir():
            try:
                links.add(f"{entry.name} {os.readlink(entry)}")
            except OSError:
                continue
        return links, Path(f"/proc/self/task/{os.getpid()}/children").read_text()

    Playground().close()  # what is imported and opened once is no leak
    before = state()
    with Playground() as playground:
        playground.start_application("http:8000")
        playground.start_envoy("static")
        assert state() != before
    assert state() == before


def test_a_playground_that_cannot_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(find_cgroup2().iterdir())

    def fail(self: Playground) -> None:
        raise OSError("no veth today")

    monkeypatch.setattr(Playground, "_wire", fail)
    with pytest.raises(OSError, match="no veth today"):
        Playground()
    mine = f"pybpfasm-playground-{os.getpid()}-"
    assert [p for p in set(find_cgroup2().iterdir()) - before if p.name.startswith(mine)] == []


def test_connect_from_a_chosen_port(playground: Playground, application: Application) -> None:
    with playground.client.connect(SERVER, 9000, source_port=33333) as connection:
        assert connection.getsockname() == (CLIENT, 33333)
        connection.sendall(b"x")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"x"
