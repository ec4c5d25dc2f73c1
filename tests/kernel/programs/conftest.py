# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Fixtures: loaded instances, emptied for each test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from loader.netns import NetNs
from programs.packet import Interface
from programs.settings import Mark, Ports, Settings
from tests.kernel.programs.rig import Rig

PORTS = Ports.parse("80,8000,9000-9010,60000-65535")
CAPACITY = 8  # half of them half-open

# A test run of a program takes microseconds, the rest of an example some 2 ms.
settings.register_profile(
    "programs",
    deadline=None,
    database=None,
    # Not to make a failing example smaller: that takes longer than a test may last, and they are small.
    phases=[Phase.explicit, Phase.generate],
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

VARIANTS = {
    "plain": Settings(PORTS, flow_capacity=CAPACITY),
    "no timers": Settings(PORTS, flow_capacity=CAPACITY, timers=False, coarse_clock=False),
    "masked mark": Settings(PORTS, flow_capacity=CAPACITY, mark=Mark(0x1000, 0xF000), envoy_port=15001),
    "quick": Settings(PORTS, handshake_seconds=1, linger_seconds=1, flow_capacity=64),
    "slow linger": Settings(PORTS, handshake_seconds=1, linger_seconds=3600, flow_capacity=64),
    "slow handshake": Settings(PORTS, handshake_seconds=3600, linger_seconds=1, flow_capacity=64),
}


@pytest.fixture(scope="module")
def rigs() -> Iterator[dict[str, Rig]]:
    """An instance for each of `VARIANTS`, with both TC programs in both variants for links with a header."""
    made: dict[str, Rig] = {}
    try:
        for name, chosen in VARIANTS.items():
            made[name] = Rig(chosen)
            for interface in (Interface(), Interface(loopback=True)):
                made[name].load("ingress", interface)
                made[name].load("egress", interface)
        yield made
    finally:
        for rig in made.values():
            rig.stack.close()


@pytest.fixture
def in_netns(netns: NetNs) -> NetNs:
    """A network namespace of the test's own, with IPv6 that needs no waiting."""
    for scope in ("all", "default"):
        for name in ("accept_dad", "router_solicitations"):
            with open(f"/proc/thread-self/root/proc/sys/net/ipv6/conf/{scope}/{name}", "w") as file:
                file.write("0")
    return netns


@pytest.fixture
def rig_of(rigs: dict[str, Rig], in_netns: NetNs) -> Callable[[str], Rig]:
    """The instance of that variant, without flows."""

    def choose(name: str) -> Rig:
        rigs[name].clear()
        return rigs[name]

    return choose
