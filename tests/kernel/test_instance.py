# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Instances: up, up again, down and status, with what the kernel says of each."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loader import features, netns, objects, tc_clsact
from loader.cgroup import Cgroup
from loader.errors import BpfError
from loader.objects import Link, Map, Program, prog_query
from loader.playground import Namespace
from programs.shared import FLOW_ESTABLISHED
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, TcxAction
from pybpfasm.program import sched_cls
from tests.kernel.instances import (
    Site,
    Tap,
    add_dummy,
    delete_interface,
    files,
    method,
    rename_interface,
    site,
    tapped,
    tc_programs,
)
from tests.patience import PATIENCE
from tests.requires import requires

__all__ = ["method", "site"]

INGRESS, EGRESS = AttachType.TCX_INGRESS, AttachType.TCX_EGRESS
SOL_IP, SO_ORIGINAL_DST = 0, 80
MAPPED = bytes(10) + b"\xff\xff"
# From 10.0.0.20:40000 to 10.0.0.1, TCP (6) over AF_INET (2), as in `FlowKey`.
FLOW = MAPPED + b"\x0a\0\0\x14" + MAPPED + b"\x0a\0\0\x01" + (40000).to_bytes(2, "big") + b"\x06\x02"


@sched_cls(INGRESS, name="stranger")
def stranger(b: Asm, ctx: SkBuff) -> None:
    b.r0 = TcxAction.NEXT
    b.exit()


def ids(status: dict[str, Any], what: str) -> dict[str, int]:
    """The ids of programs, links or maps of a status document by where they are; not all hooks have one."""
    if what == "map":
        return {one["map"]: one["id"] for one in status["maps"]}
    places = {f"{hook['hook']} {hook.get('interface', '')}".strip(): hook for hook in status["hooks"]}
    if what == "program":
        return {place: hook["program"]["id"] for place, hook in places.items()}
    return {place: hook["link_id"] for place, hook in places.items() if "link_id" in hook}


def add_flow(site: Site, state: int = FLOW_ESTABLISHED, last_seen: int = 0) -> None:
    """Put a connection into the flow map, as if its packets had come."""
    with Map.from_pin(site.fs.path("default") / "maps/flows") as flows:
        flows.update(FLOW, struct.pack("=QI", last_seen, state).ljust(flows.value_size, b"\0"))


# --- up and down --------------------------------------------------------------------------------------------


def test_up_makes_what_down_removes(site: Site, method: str) -> None:
    with tapped(Tap()) as tap:
        document = site.up("--json").json()
        instance = site.fs.path("default")
        assert document["path"] == str(instance)
        assert (document["created"], document["changed"]) == (True, True)
        assert files(instance) == ["interfaces", "links", "maps", "ports", "programs", "settings"]
        tc = ["tcx_egress_lo", "tcx_ingress_lo"] if method == "tcx" else []
        linked = features.probe(features.Feature.SOCKMAP_LINK).supported
        assert files(instance / "links") == sorted(["getsockopt", "sockops", *["sk_msg"] * linked, *tc])
        assert files(instance / "maps") == [
            "counters",
            "flows",
            "half_open",
            "pending",
            "socket_state",
            "sockets",
        ]

        status = site.status()
        assert status["drift"] == []
        assert {h["hook"]: h["method"] for h in status["hooks"]} == {
            "ingress": method,
            "egress": method,
            "getsockopt": "link",
            "sockops": "link",
            "sk_msg": "link" if linked else "map",
        }
        assert all(h["attached"] for h in status["hooks"])
        assert [h["program"]["name"] for h in status["hooks"]] == [
            "pba_sk_msg",
            "pba_sockops",
            "pba_getsockopt",
            "pba_egress",
            "pba_ingress",
        ]
        assert all(len(bytes.fromhex(h["program"]["tag"])) == 8 for h in status["hooks"])
        assert status["settings"]["ports"] == "8000"
        assert status["settings"]["cgroup_id"] == site.cgroup.id
        assert status["settings"]["netns_inode"] == site.netns.ino
        assert all(not value for named in status["counters"].values() for value in named.values())
        assert site.down("--json").json() == {"name": "default", "changed": True, "warnings": []}
        assert site.pins() == []
        assert site.attached() == []
        assert tap.alive() == []


def test_nothing_stays_in_this_process(site: Site) -> None:
    """Neither descriptors nor threads: the pins alone keep the proxy."""
    before = os.listdir("/proc/self/fd"), threading.active_count()
    site.up()
    site.status()
    site.up(ports="8001")
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == before
    assert len(site.attached()) == 4


def test_down_of_nothing_is_done(site: Site) -> None:
    outcome = site.down()
    assert outcome.out == "instance 'default' is not up: there was nothing to remove\n"
    site.up("--name", "web")
    outcome = site.down()
    assert "(up are: web)" in outcome.out
    assert len(site.attached()) == 4


def test_without_acceleration(site: Site) -> None:
    site.up("--no-accelerate")
    status = site.status()
    assert {h["hook"] for h in status["hooks"]} == {"ingress", "egress", "getsockopt"}
    assert set(ids(status, "map")) == {"flows", "half_open", "counters"}
    assert status["settings"]["accelerate"] is False


@requires(features.Feature.TCX)
def test_our_programs_come_first(site: Site) -> None:
    """One before ours that ends the chain would let traffic past the proxy."""
    with Program.load(stranger.build()) as program, Link.tcx(program, 1, INGRESS):
        site.up()
        chain = prog_query(1, INGRESS).prog_ids
        ingress = next(h for h in site.status()["hooks"] if h["hook"] == "ingress")
        assert chain == (ingress["program"]["id"], program.id)
        assert ingress["beside"] == [{"program_id": program.id, "name": "stranger", "runs": "after"}]
        assert site.status()["drift"] == []
        site.down()
        assert prog_query(1, INGRESS).prog_ids == (program.id,)


def test_interfaces_with_dots_and_of_other_kinds(site: Site) -> None:
    index = add_dummy("eth0.100")
    site.up("--iface", "lo", iface="eth0.100")
    if features.probe(features.Feature.TCX).supported:
        assert "tcx_ingress_eth0%2E100" in files(site.fs.path("default") / "links")
    status = site.status()
    assert status["drift"] == []
    assert status["settings"]["interfaces"] == ["eth0.100", "lo"]
    assert len(tc_programs(index, INGRESS)) == 1
    tags = {h["interface"]: h["program"]["tag"] for h in status["hooks"] if h["hook"] == "ingress"}
    assert tags["lo"] != tags["eth0.100"], "lo has a program of its own"


def test_a_gre_tunnel_with_many_remote_ends_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other devices stand for GRE, which not every kernel has: the flags tell which sort a tunnel is of."""
    add_dummy("many")
    subprocess.run(["ip", "tuntap", "add", "dev", "single", "mode", "tun"], check=True)
    monkeypatch.setattr(netns, "_link_type", lambda name: 778)
    refused = site.run("up", "--iface", "many", "--ports", "8000")
    assert (refused.status, "begin with the header of the tunnel" in refused.err) == (2, True)
    assert site.pins() == []
    site.up(iface="single")
    site.down()


def test_an_interface_named_twice_is_attached_to_once(site: Site) -> None:
    site.up("--iface", "lo")
    assert len(tc_programs(1, INGRESS)) == 1


def test_the_settings_map_can_only_be_read(site: Site) -> None:
    site.up()
    with Map.from_pin(site.fs.path("default") / "settings") as settings:
        with pytest.raises(Exception, match="EPERM"):
            settings.update(bytes(4), bytes(settings.value_size))


# --- up again -----------------------------------------------------------------------------------------------


def test_up_again_changes_nothing(site: Site, method: str) -> None:
    site.up("--mark", "0x1000/0xf000", ports="8000,9000-9010")
    before = site.status()
    outcome = site.up("--mark", "0x1000/0xf000", ports="9000-9010,8000")
    assert "was up like this already" in outcome.out
    assert site.status() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ports", "8000,9000"], ["ports: 8080 → 8000,8080,9000"]),
        (["--mark", "4243/0xfff3"], ["mark: 4242 → 0x1093/0xfff3"]),
        (["--envoy-port", "8082"], ["Envoy's port: 8081 → 8082"]),
        (["--linger", "5", "--idle-timeout", "6"], ["linger: 60 → 5", "idle timeout: 432000 → 6"]),
        (["--handshake-timeout", "7"], ["handshake timeout: 75 → 7"]),
        (["--flow-capacity", "9"], ["flow capacity: 65536 → 9"]),
        (["--queue-limit", "10000"], ["queue limit: {limit} → 10000"]),
        (["--no-accelerate"], ["acceleration: on → off"]),
        (["--iface", "eth7"], ["interfaces: lo → eth7, lo"]),
    ],
)
def test_a_change_is_told(site: Site, method: str, words: list[str], says: list[str]) -> None:
    add_dummy("eth7")
    before = ["--envoy-port", "8081", "--ports", "8080", "--iface", "lo"]
    assert site.run("up", *before).status == 0
    limit = site.status()["settings"]["queue_limit"]
    outcome = site.run("up", *before, *words)
    first, *lines = outcome.out.splitlines()
    assert first.startswith("instance 'default' has been changed, ")
    assert lines[: len(says)] == [f"  {line.format(limit=limit)}" for line in says]
    assert "→ Envoy on" in lines[len(says)]
    again = site.run("up", *before, *words, "--json").json()
    assert (again["changed"], again["changes"]) == (False, [])


def test_what_was_put_right_is_told(site: Site, method: str) -> None:
    """An interface that is gone, another one of its name, and pins that somebody removed."""
    first, kept = add_dummy("eth7"), add_dummy("eth8")
    words = ["up", "--no-accelerate", "--ports", "8000", "--iface", "eth7", "--json"]
    assert site.run(*words, "--iface", "eth8").json()["changes"] == []
    delete_interface(first)
    add_dummy("eth7")
    assert site.run(*words, "--iface", "eth8").json()["changes"] == [
        "interface eth7: another one of that name"
    ]
    delete_interface(kept)
    assert site.run(*words).json()["changes"] == ["interfaces: eth7, eth8 → eth7"]
    (site.fs.path("default") / "programs" / "getsockopt").unlink()
    (told,) = site.run(*words).json()["changes"]
    assert told == "put right: getsockopt on cgroup: program getsockopt is not pinned"
    if method == "clsact":
        return  # a filter does not say whose it is: such an instance has to be taken down first
    (site.fs.path("default") / "settings").unlink()
    assert site.run(*words).json()["changes"] == [
        "what it was cannot be read: it is damaged, or of another version"
    ]


@pytest.mark.parametrize(
    "words",
    [
        ["--ports", "8000,9000"],
        ["--envoy-port", "8081"],
        ["--mark", "4243"],
        ["--mark", "0x1000/0xf000"],
    ],
)
def test_other_settings_take_the_place_of_the_old(site: Site, method: str, words: list[str]) -> None:
    site.up()
    add_flow(site)
    before = site.status()
    site.run("up", "--iface", "lo", "--ports", "8000", *words)
    after = site.status()
    assert after["settings"] != before["settings"]
    assert after["drift"] == []
    assert ids(after, "map") == ids(before, "map"), "connections are in the maps"
    assert after["maps"] == before["maps"]
    if method == "tcx":
        assert ids(after, "link") == ids(before, "link"), "changed in one step"
    assert not set(ids(after, "program").values()) & set(ids(before, "program").values())
    assert len(site.attached()) == 4
    site.down()
    assert site.pins() == []
    assert clsact_interfaces() == []


def test_acceleration_comes_and_goes(site: Site) -> None:
    site.up("--no-accelerate")
    before = site.status()
    site.up()
    with_it = site.status()
    assert ids(with_it, "link").items() >= ids(before, "link").items()
    assert ids(with_it, "map").items() >= ids(before, "map").items()
    site.up("--no-accelerate")
    assert ids(site.status(), "link") == ids(before, "link")
    assert ids(site.status(), "map") == ids(before, "map")
    assert objects.prog_query(site.cgroup.fd, AttachType.CGROUP_SOCK_OPS).entries == ()


def test_interfaces_come_and_go(site: Site, method: str) -> None:
    index = add_dummy("eth7")
    site.up()
    before = site.status()
    site.up("--iface", "eth7")
    both = site.status()
    assert {h["interface"] for h in both["hooks"] if h["hook"] == "ingress"} == {"lo", "eth7"}
    site.up(iface="eth7")
    after = site.status()
    assert {h["interface"] for h in after["hooks"] if h["hook"] == "ingress"} == {"eth7"}
    assert after["drift"] == []
    assert ids(after, "map") == ids(before, "map")
    # Two on the cgroup, and two on the interface.
    assert (len(site.attached(1)), len(site.attached(index))) == (2, 4)


def test_another_cgroup(site: Site, make_cgroup: Callable[[], Cgroup]) -> None:
    site.up()
    old = site.cgroup
    site.cgroup = make_cgroup()
    site.up()
    assert len(site.attached()) == 4
    assert objects.prog_query(old.fd, AttachType.CGROUP_GETSOCKOPT).entries == ()
    assert site.status()["settings"]["cgroup_id"] == site.cgroup.id


@requires(features.Feature.TCX)
def test_from_one_method_to_the_other(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.up()
    flows = ids(site.status(), "map")["flows"]
    monkeypatch.setenv("PYBPFASM_ATTACH", "clsact")
    site.up()
    assert prog_query(1, INGRESS).entries == ()
    assert [h["method"] for h in site.status()["hooks"]][-2:] == ["clsact", "clsact"]
    monkeypatch.delenv("PYBPFASM_ATTACH")
    site.up()
    assert len(prog_query(1, INGRESS).entries) == 1
    status = site.status()
    assert ids(status, "map")["flows"] == flows
    assert status["drift"] == []
    site.down()
    assert clsact_interfaces() == []


def clsact_interfaces() -> list[int]:
    """The interfaces that have a clsact qdisc."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return [q["index"] for q in route.get_qdiscs() if q.get_attr("TCA_KIND") == "clsact"]


def test_a_clsact_qdisc_of_others_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyroute2 import IPRoute

    monkeypatch.setenv("PYBPFASM_ATTACH", "clsact")
    site.up()
    site.down()
    assert clsact_interfaces() == []
    with IPRoute() as route:
        route.tc("add", "clsact", 1)
    site.up()
    site.up(ports="8001")
    site.down()
    assert clsact_interfaces() == [1]


def test_capacity_changes_only_under_nobody(site: Site) -> None:
    site.up()
    site.up("--flow-capacity", "1000")
    add_flow(site)
    before = site.status()
    assert next(m for m in before["maps"] if m["map"] == "flows")["max_entries"] == 1000
    outcome = site.run("up", "--iface", "lo", "--ports", "8000", "--flow-capacity", "2000")
    assert outcome.status == 1
    assert "map flows has another shape (1000 entries" in outcome.err
    assert "1 connections depend on it" in outcome.err
    assert "take the instance down first" in outcome.err
    assert site.status() == before


def test_how_long_flows_are_remembered(site: Site) -> None:
    site.up("--handshake-timeout", "10", "--linger", "11", "--idle-timeout", "12")
    settings = site.status()["settings"]
    assert [settings[f"{name}_seconds"] for name in ("handshake", "linger", "idle")] == [10, 11, 12]
    site.up()
    settings = site.status()["settings"]
    assert [settings[f"{name}_seconds"] for name in ("handshake", "linger", "idle")] == [75, 60, 5 * 86400]


def test_how_much_may_wait_can_be_changed_under_connections(site: Site) -> None:
    site.up()
    largest = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text().split()[2])
    assert site.status()["settings"]["queue_limit"] == min(6 << 20, largest // 2)
    add_flow(site)
    outcome = site.up("--queue-limit", "100000")
    assert outcome.status == 0
    assert site.status()["settings"]["queue_limit"] == 100000
    # A receive buffer must have room behind it.
    Path("/proc/sys/net/ipv4/tcp_rmem").write_text("4096 131072 300000")
    outcome = site.up("--queue-limit", "200000")
    assert "--queue-limit is 150000 here, not 200000" in outcome.err
    assert site.status()["settings"]["queue_limit"] == 150000
    assert "--queue-limit" not in site.up().err
    assert site.status()["settings"]["queue_limit"] == 150000
    refused = site.run("up", "--iface", "lo", "--ports", "8000", "--queue-limit", str(1 << 31))
    assert refused.status == 2
    assert "--queue-limit 2147483648 is more than a receive queue can hold" in refused.err


def test_a_change_that_breaks_connections_says_so(site: Site) -> None:
    site.up(ports="8000,9000")
    add_flow(site)
    outcome = site.up(ports="9000")
    assert "connections to ports that are not intercepted any more (8000) will break" in outcome.err
    outcome = site.up("--envoy-port", "8081", ports="9000")
    assert "1 connections go through Envoy's former port 8080 and will break" in outcome.err


# --- traffic ------------------------------------------------------------------------------------------------


@contextmanager
def echo(port: int) -> Iterator[socket.socket]:
    """A server that sends back what comes, one connection at a time."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=_send_back, args=(connection,), daemon=True).start()

        # A thread of this one: it is in the same network namespace.
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _send_back(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def exchange(connection: socket.socket, message: bytes) -> None:
    """Send a message and get it back."""
    connection.sendall(message)
    got = b""
    while len(got) < len(message):
        got += connection.recv(1 << 16)
    assert got == message


def test_a_connection_survives_changes(site: Site, method: str) -> None:
    with echo(8080):
        site.up()
        with socket.create_connection(("127.0.0.1", 8000), timeout=5) as connection:
            exchange(connection, b"before")
            for words, ports in (
                (["--mark", "77"], "8000"),
                (["--no-accelerate"], "8000,9000-9010"),
                (["--no-accelerate", "--iface", "lo"], "7999-8001"),
            ):
                site.up(*words, ports=ports)
                exchange(connection, b"after " + ports.encode())
            assert connection.getpeername() == ("127.0.0.1", 8000)
        counters = site.status()["counters"]
        assert counters["ingress"]["new_flows"] == 1
        assert counters["ingress"]["redirected"] > 4


def test_counters_are_those_of_the_packets(site: Site) -> None:
    with echo(8080):
        site.up()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", 8000), timeout=5) as connection:
                exchange(connection, b"x" * 5000)
        status = site.status()
        assert status["counters"]["ingress"]["new_flows"] == 3
        assert status["counters"]["egress"]["restored"] >= 3 * 3
        assert next(m["entries"] for m in status["maps"] if m["map"] == "flows") == 3
        assert status["envoy"] == {"port": 8080, "listening": True, "addresses": ["127.0.0.1"]}
    assert site.status()["envoy"]["listening"] is False


def metrics(site: Site, *words: str) -> dict[tuple[str, ...], float]:
    """What ``status --prometheus`` prints, read by Prometheus' library: values by name, instance and map."""
    outcome = site.run("status", "--prometheus", *words)
    assert (outcome.status, outcome.err) == (0, "")
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(outcome.out):
        for sample in family.samples:
            labels = (sample.labels.get(one) for one in ("name", "map"))
            key = (sample.name, *(one for one in labels if one is not None))
            assert key not in found
            found[key] = sample.value
    return found


def test_metrics_are_those_of_the_instance(site: Site) -> None:
    with echo(8080):
        site.up()
        with socket.create_connection(("127.0.0.1", 8000), timeout=5) as connection:
            exchange(connection, b"x" * 5000)
        # The connection closes meanwhile, and its last packets count too.
        counters, found = site.status()["counters"], metrics(site)
        while (now := site.status()["counters"]) != counters:
            counters, found = now, metrics(site)
        assert found["pybpfasm_ingress_new_flows_total", "default"] == 1
        for hook, named in counters.items():
            for name, value in named.items():
                assert found[f"pybpfasm_{hook}_{name}_total", "default"] == value
        assert found["pybpfasm_map_entries", "default", "flows"] == 1
        assert found["pybpfasm_map_max_entries", "default", "flows"] == 65536
        assert found["pybpfasm_healthy", "default"] == found["pybpfasm_envoy_listening", "default"] == 1
        assert found["pybpfasm_accelerated", "default"] == 1
    found = metrics(site)
    assert site.run("status", "--json").status == 1
    assert found["pybpfasm_healthy", "default"] == found["pybpfasm_envoy_listening", "default"] == 0


def test_metrics_of_all_instances_or_of_one(site: Site) -> None:
    assert metrics(site) == {("pybpfasm_instances",): 0}
    assert metrics(site, "--name", "default") == {("pybpfasm_healthy", "default"): 0}
    site.up()
    add_dummy("eth0")
    site.up("--name", "web", "--no-accelerate", iface="eth0", ports="9000")
    both = metrics(site)
    assert both["pybpfasm_instances",] == 2
    assert {key[1] for key in both if key[1:]} == {"default", "web"}
    assert (both["pybpfasm_accelerated", "default"], both["pybpfasm_accelerated", "web"]) == (1, 0)
    one = metrics(site, "--name", "web")
    assert {key[1] for key in one if key[1:]} == {"web"}
    assert one.items() <= both.items()


def test_run_counts_where_statistics_are_on(site: Site) -> None:
    with echo(8080), objects.Stats.enable():
        site.up()
        with socket.create_connection(("127.0.0.1", 8000), timeout=5) as connection:
            exchange(connection, b"x")
        ingress = site.status()["hooks"][-1]["program"]
        assert ingress["run_count"] >= 3
        assert ingress["run_time_ns"] > ingress["run_count"]


@pytest.mark.parametrize(
    "held_by", [pytest.param("link", marks=requires(features.Feature.SOCKMAP_LINK)), "map"]
)
def test_enrolled_sockets_keep_what_they_need(
    site: Site, monkeypatch: pytest.MonkeyPatch, held_by: str
) -> None:
    """--no-accelerate while a connection is accelerated: it goes on, no other joins, and then all goes."""
    if held_by == "map":

        def no_link(*_: object) -> Link:
            raise BpfError(errno.EOPNOTSUPP, "LINK_CREATE")

        monkeypatch.setattr(Link, "sockmap", no_link)
    site.up()
    assert {h["method"] for h in site.status()["hooks"] if h["hook"] == "sk_msg"} == {held_by}
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            _accelerated(site, theirs)
        finally:
            os._exit(1)
    theirs.close()
    ours.settimeout(10)
    try:
        assert ours.recv(100) == b"enrolled"
        assert site.status()["counters"]["sk_msg"]["redirected_messages"] == 2
        site.up("--no-accelerate")
        status = site.status()
        assert "sk_msg" in {h["hook"] for h in status["hooks"]}
        assert "sockops" not in {h["hook"] for h in status["hooks"]}
        assert status["drift"] == []
        assert "was up like this already" in site.up("--no-accelerate").out
        ours.sendall(b"go on")
        assert ours.recv(100) == b"went on"
        assert site.status()["counters"]["sk_msg"]["redirected_messages"] == 4
    finally:
        ours.close()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    site.up("--no-accelerate")
    status = site.status()
    assert {h["hook"] for h in status["hooks"]} == {"ingress", "egress", "getsockopt"}
    assert set(ids(status, "map")) == {"flows", "half_open", "counters"}


def _accelerated(site: Site, control: socket.socket) -> None:
    """In a child: both ends of a marked connection, an exchange, and another one when told."""
    site.cgroup.add()
    with socket.create_server(("127.0.0.1", 8000)) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, 36, 4242)  # SO_MARK
        client.connect(("127.0.0.1", 8000))
        connection, _ = server.accept()
        with connection:
            for told, answer in ((b"", b"enrolled"), (b"go on", b"went on")):
                if told:
                    assert control.recv(100) == told
                for sender, receiver in ((client, connection), (connection, client)):
                    sender.sendall(b"x" * 1000)
                    assert receiver.recv(2000, socket.MSG_WAITALL if False else 0) == b"x" * 1000
                control.sendall(answer)
            control.recv(1)
    os._exit(0)


# --- what others do to it -----------------------------------------------------------------------------------


def test_an_interface_that_goes_is_drift(site: Site, method: str) -> None:
    index = add_dummy("eth7")
    site.up("--iface", "lo", iface="eth7")
    delete_interface(index)
    status = site.status()
    assert len(status["drift"]) == 2
    assert all("eth7" in line and "gone" in line for line in status["drift"])
    assert [h["interface"] for h in status["hooks"] if not h["attached"]] == ["eth7", "eth7"]
    # Another one of that name: up puts it right.
    index = add_dummy("eth7")
    site.up("--iface", "lo", iface="eth7")
    assert site.status()["drift"] == []
    delete_interface(index)
    site.down()
    assert site.pins() == []
    assert site.attached() == []


def test_a_renamed_interface_is_followed(site: Site) -> None:
    index = add_dummy("eth7")
    site.up(iface="eth7")
    links = set(ids(site.status(), "link").values())
    rename_interface(index, "wan")
    status = site.status()
    assert status["drift"] == ["interface eth7 is called wan now"]
    assert "eth7 is called wan now" not in [r["found"] for r in status["remarks"] if r["verdict"] == "bad"]
    site.up(iface="wan")
    status = site.status()
    assert status["drift"] == []
    assert set(ids(status, "link").values()) == links


@requires(features.Feature.TCX)
def test_a_replaced_program_is_drift_and_up_puts_it_right(site: Site) -> None:
    site.up()
    with Link.from_pin(site.fs.path("default") / "links/tcx_ingress_lo") as link:
        with Program.load(stranger.build()) as other:
            link.update(other)
            (drift,) = site.status()["drift"]
            assert f"ingress on lo runs program {other.id}" in drift
            site.up()
            assert site.status()["drift"] == []
            assert link.info().prog_id != other.id
            link.update(other)
        site.down()
    assert site.attached() == []


@pytest.mark.parametrize(
    "pin",
    [
        "settings",
        "ports",
        "interfaces",
        "links/getsockopt",
        pytest.param("links/tcx_ingress_lo", marks=requires(features.Feature.TCX)),
        pytest.param("links/sk_msg", marks=requires(features.Feature.SOCKMAP_LINK)),
        "maps/flows",
        "maps/counters",
        "programs/getsockopt",
    ],
)
@pytest.mark.parametrize("then", ["up", "down"])
def test_a_lost_pin_is_drift_and_can_be_got_over(site: Site, pin: str, then: str) -> None:
    site.up()
    (site.fs.path("default") / pin).unlink()
    # The kernel lets go of what was pinned there some time after the unlink (RCU).
    deadline = time.monotonic() + 10
    while not (drift := site.status()["drift"]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert drift, "not noticed"
    if "/" in pin:
        assert any(pin.split("/")[1].removeprefix("tcx_").split("_")[0] in line for line in drift)
    if then == "up":
        outcome = site.run("up", "--iface", "lo", "--ports", "8000")
        if "/" not in pin and not features.probe(features.Feature.TCX).supported:
            # Whose the filters are that it finds is not known any more.
            assert (outcome.status, "take that instance down first" in outcome.err) == (1, True)
        else:
            assert outcome.status == 0, outcome.err
            assert site.status()["drift"] == []
        assert len(site.attached()) == 4
    site.down()
    assert site.pins() == []
    assert site.attached() == []


def test_everything_lost_but_the_directory(site: Site) -> None:
    site.fs.path("default").mkdir(parents=True)
    assert site.status()["drift"] != []
    site.up()
    assert site.status()["drift"] == []
    site.down()
    assert site.pins() == []


def test_a_cgroup_that_goes_is_drift(site: Site, make_cgroup: Callable[[], Cgroup]) -> None:
    old, site.cgroup = site.cgroup, make_cgroup()
    site.up()
    os.rmdir(site.cgroup.path)
    deadline = time.monotonic() + 5
    while len(drift := site.status()["drift"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel takes its time
    assert len(drift) == 2
    assert all("is gone" in line and str(site.cgroup.path) in line for line in drift)
    site.cgroup = old
    site.up()
    assert site.status()["drift"] == []
    site.down()


def test_a_stranger_before_us_is_drift(site: Site, method: str) -> None:
    site.up()
    with ExitStack() as stack:
        program = stack.enter_context(Program.load(stranger.build()))
        if method == "tcx":
            stack.enter_context(Link.tcx(program, 1, INGRESS, first=True))
        else:
            tc_clsact.attach(program, 1, INGRESS, name="stranger", priority=1)
        (drift,) = site.status()["drift"]
        assert f"program 'stranger' ({program.id}) runs before ingress on lo" in drift
        (ingress,) = (hook for hook in site.status()["hooks"] if hook["hook"] == "ingress")
        assert ingress["beside"] == [{"program_id": program.id, "name": "stranger", "runs": "before"}]
        site.down()


def test_status_while_an_instance_drains(site: Site) -> None:
    """Its programs are others then, and whoever looks reads why."""
    site.up()
    add_flow(site)
    assert site.status()["busy"] is False
    words = ["down", "--drain", "600", "--json", "--bpffs", str(site.fs.root)]
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "loader", *words], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 20 * PATIENCE
        while not (status := site.status())["drift"]:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert status["busy"] is True
        (told,) = (one for one in status["remarks"] if "`down --drain`" in one["found"])
        assert told["verdict"] == "note"
        assert not any("`up`" in one["advice"] for one in status["remarks"] if "runs program" in one["found"])
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20 * PATIENCE)
    assert process.returncode == 130, err
    assert json.loads(out)["error"] == "interrupted by SIGINT: nothing was changed"
    status = site.status()
    assert (status["busy"], status["drift"]) == (False, [])
    outcome = site.down("--drain", "0.1", "--json")
    assert outcome.json() == {
        "name": "default",
        "changed": True,
        "warnings": ["1 connection(s) had not ended after 0.1 s and are reset"],
    }


def test_what_a_flood_has_left_is_not_waited_for(site: Site) -> None:
    """`down --drain` waits for a handshake as long as it can still be completed."""
    in_an_hour = time.monotonic_ns() + 3600 * 10**9  # so that it is recent, however slow the machine is
    for last_seen, seconds, left in ((0, "30", 0), (in_an_hour, "0.1", 1)):
        site.up()
        add_flow(site, 0, last_seen)
        assert len(site.down("--drain", seconds, "--json").json()["warnings"]) == left


def test_two_instances_on_two_interfaces(site: Site) -> None:
    add_dummy("eth7")
    site.up("--name", "a")
    site.up("--name", "b", iface="eth7", ports="9000")
    assert site.status("--name", "a")["settings"]["ports"] == "8000"
    assert site.status("--name", "b")["settings"]["ports"] == "9000"
    site.down("--name", "a")
    assert site.status("--name", "b")["drift"] == []
    site.down("--name", "b")
    assert site.pins() == []


def test_a_namespace_that_goes_takes_the_hooks_along(site: Site, method: str) -> None:
    there = Namespace("gone")
    path = f"/proc/self/fd/{there.netns.fd}"
    site.up("--netns", path)
    assert site.status()["drift"] == []
    assert tc_programs(1, INGRESS) == [], "not in this namespace"
    with there.enter():
        assert len(tc_programs(1, INGRESS)) == 1
    there.close()
    deadline = time.monotonic() + 5
    while not any("namespace" in line for line in site.status()["drift"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any("is gone, or hidden" in line for line in site.status()["drift"])
    site.down()
    assert site.pins() == []


def test_filters_of_a_damaged_instance_are_found(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYBPFASM_ATTACH", "clsact")
    site.up()
    (site.fs.path("default") / "settings").unlink()
    outcome = site.run("up", "--iface", "lo", "--ports", "8000")
    assert outcome.status == 1
    assert "take that instance down first" in outcome.err
    site.down()
    assert filters_of(1) == []
    assert clsact_interfaces() == []


def test_an_instance_of_another_version_in_another_namespace(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its settings cannot be read; its filters must not stay, and not take along those of a namesake."""
    monkeypatch.setenv("PYBPFASM_ATTACH", "clsact")
    with closing(Namespace("there")) as there, closing(Namespace("elsewhere")) as elsewhere:
        site.up("--netns", there.path)
        (site.fs.path("default") / "settings").unlink()
        (site.fs.base / "default").rename(site.fs.base / "aside")
        site.up("--netns", elsewhere.path)
        (site.fs.base / "default").rename(site.fs.base / "namesake")
        (site.fs.base / "aside").rename(site.fs.base / "default")
        assert site.down().err == ""
        with there.enter():
            assert filters_of(1) == [] and clsact_interfaces() == []
        with elsewhere.enter():
            assert len(filters_of(1)) == 2
        (site.fs.base / "namesake").rename(site.fs.base / "default")
        site.down()
        with elsewhere.enter():
            assert filters_of(1) == [] and clsact_interfaces() == []


def filters_of(ifindex: int) -> list[str]:
    """The names of the filters of an interface."""
    return [f.name for kind in (INGRESS, EGRESS) for f in tc_clsact.filters(ifindex, kind)]


def test_a_link_layer_that_is_not_known(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns, "_link_type", lambda name: 803)  # ARPHRD_IEEE80211_RADIOTAP
    outcome = site.run("up", "--iface", "lo", "--ports", "8000")
    assert outcome.status == 2
    assert "interface 'lo' has link layer type 803" in outcome.err
    assert site.pins() == []
