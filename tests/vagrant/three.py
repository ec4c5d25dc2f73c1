# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Client, gateway and server as three machines, as a new user has them: the tutorial, typed.

`scripts/test-vagrant --three` runs these tests; what one machine can show is in `single`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.vagrant.machines import (
    CLIENT,
    CLIENT6,
    NOTHING,
    SERVER,
    SERVER6,
    Machine,
    Server,
    Traffic,
    destroyed,
    up,
    vagrant,
)

UP = "sudo python -m loader up --iface eth1 --ports 8000"


class Playground(NamedTuple):
    """The machines."""

    client: Machine
    gateway: Machine
    server: Server


@pytest.fixture(scope="module")
def playground() -> Iterator[Playground]:
    """The machines, up."""
    for _ in up("client", "gateway", "server"):
        yield Playground(Machine("client"), Machine("gateway"), Server("server"))


@pytest.fixture(scope="module")
def traffic(playground: Playground) -> Traffic:
    """What a person at the client types."""

    def curl(path: str, host: str) -> str:
        return vagrant("ssh", "client", "-c", f"curl --silent --show-error http://{host}:8000{path}")

    return Traffic(playground.server, curl)


def test_addresses_and_ways(playground: Playground) -> None:
    """The tutorial's networks; what client and server exchange goes by the gateway."""
    for machine, interface, addresses in (
        (playground.client, "eth1", {"10.0.0.20/16", "fd00:10::20/64"}),
        (playground.gateway, "eth1", {"10.0.0.2/16", "fd00:10::2/64"}),
        (playground.gateway, "eth2", {"192.168.178.2/24", "fd00:192:168:178::2/64"}),
        (playground.server, "eth1", {"192.168.178.10/24", "fd00:192:168:178::10/64"}),
    ):
        assert addresses <= set(machine.run(f"ip -brief address show {interface}").split())
    assert "via 10.0.0.2 dev eth1" in playground.client.run(f"ip route get {SERVER}")
    assert "via 192.168.178.2 dev eth1" in playground.server.run(f"ip route get {CLIENT}")
    # Only a router takes one from the time to live: 64 as sent, 63 as it arrives.
    assert "ttl=63" in playground.client.run(f"sudo ping -c 1 -W 20 {SERVER}")


def test_the_tutorial(playground: Playground, traffic: Traffic) -> None:
    """Directly before `up`, through Envoy after it, in both families, and directly again after `down`."""
    server = playground.server
    traffic.direct("/?before")
    assert "instance 'default' is up" in vagrant("ssh", "server", "-c", UP)
    traffic.proxied("/?four")
    traffic.proxied("/?six", SERVER6, CLIENT6)
    vagrant("ssh", "server", "-c", "sudo python -m loader down")
    traffic.direct("/?after")
    assert server.ours() == NOTHING


def test_reboots(playground: Playground, traffic: Traffic) -> None:
    """Gateway and server come back with their addresses and ways, without the proxy, and `up` works again."""
    vagrant("ssh", "server", "-c", UP)
    playground.gateway.reboot()
    playground.server.reboot()
    assert playground.server.ours() == NOTHING
    vagrant("ssh", "server", "-c", UP)
    traffic.proxied("/?up-again")


def test_destroy_leaves_nothing(playground: Playground) -> None:
    """No machine, no disk, no network."""
    vagrant("destroy", "--force")
    destroyed("client", "gateway", "server")
