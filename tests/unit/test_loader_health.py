# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What `status` makes of the facts about an instance."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("the loader is for Linux", allow_module_level=True)

from loader.health import _COUNTERS, Verdict, examine
from loader.modes.rewrite import Rewrite


def facts(**counters: int) -> dict[str, Any]:
    """Those of an instance on eth0 where all is well, and counters such as ``ingress__new_flows``."""
    found = Rewrite().counters({})
    for name, value in counters.items():
        hook, _, counter = name.partition("__")
        assert counter in found[hook]
        found[hook][counter] = value
    return {
        "settings": {
            "ports": "8000",
            "envoy_port": 8080,
            "mark": "4242",
            "accelerate": True,
            "interfaces": ["eth0"],
            "cgroup": "/sys/fs/cgroup",
            "flow_capacity": 65536,
        },
        "hooks": [
            {"hook": "getsockopt", "attached": True},
            {"hook": "egress", "attached": True, "interface": "eth0", "interface_up": True, "beside": []},
            {"hook": "ingress", "attached": True, "interface": "eth0", "interface_up": True, "beside": []},
        ],
        "counters": found,
        "envoy": {"port": 8080, "listening": True, "addresses": ["0.0.0.0", "::"]},
        "application": {"listening": [8000], "ipv6": False},
        "busy": False,
        "drift": [],
    }


WORKING = {"ingress__new_flows": 2, "ingress__redirected": 20, "getsockopt__answered_ipv4": 2}
PAIRED = {"sockops__enrolled_active": 2, "sockops__enrolled_passive": 2}


@pytest.mark.parametrize("counters", [{}, WORKING | PAIRED])
def test_all_is_well(counters: dict[str, int]) -> None:
    assert examine(facts(**counters)) == []


@pytest.mark.parametrize(
    ("counters", "says"),
    [
        (
            WORKING | {"sockops__peer_not_enrolled": 2},
            "no connection of Envoy's, with mark 4242, was seen",
        ),
        (WORKING | {"sockops__enrolled_active": 2}, "the application was not seen in cgroup"),
        (
            {"ingress__dropped_map_full": 1234},
            "1,234 times a connection was refused because 65536 were known",
        ),
        ({"ingress__dropped_direct": 3}, "3 times somebody outside tried Envoy's own port 8080"),
        ({"getsockopt__unknown_connection": 1}, "made to Envoy's own port 8080, or is another instance's"),
        # Two instances and one Envoy: the sockets are in the other one's map.
        (
            WORKING | {"sockops__peer_not_enrolled": 2, "sockops__failed": 2},
            "another instance, or another program",
        ),
    ],
)
def test_counters_that_call_for_a_word(counters: dict[str, int], says: str) -> None:
    (remark,) = examine(facts(**counters))
    assert remark.verdict is Verdict.NOTE
    assert says in remark.found + remark.advice


def test_envoy_without_its_mark_on_lo() -> None:
    status = facts(**WORKING)
    status["settings"]["interfaces"] = ["eth0", "lo"]
    (remark,) = examine(status)
    assert "no connection with mark 4242 has been seen on lo" in remark.found
    status["counters"]["ingress"]["passed_marked"] = 1
    assert examine(status) == []


@pytest.mark.parametrize(
    ("addresses", "ipv6", "says"),
    [
        (["0.0.0.0"], False, ""),
        (["0.0.0.0"], True, "Envoy listens on IPv4 only, the application on IPv6 too"),
        (["0.0.0.0", "::"], True, ""),
        (["::"], True, ""),
        (["127.0.0.1", "fd00::1"], True, "Envoy listens on 127.0.0.1, fd00::1 only"),
    ],
)
def test_where_envoy_listens(addresses: list[str], ipv6: bool, says: str) -> None:
    status = facts()
    status["envoy"]["addresses"] = addresses
    status["application"]["ipv6"] = ipv6
    found = [one.found for one in examine(status)]
    assert len(found) == bool(says)
    assert all(says in one for one in found)


def test_every_dropped_packet_has_its_word() -> None:
    counters = Rewrite().counters({})
    dropped = {
        (hook, name) for hook, named in counters.items() for name in named if name.startswith("dropped_")
    }
    assert dropped <= _COUNTERS.keys()
    for hook, name in _COUNTERS:
        (remark,) = examine(facts(**{f"{hook}__{name}": 7}))
        assert f"({hook}.{name})" in remark.found
        assert "7" in remark.found
        assert "{" not in remark.found + remark.advice


def test_the_page_names_every_counter() -> None:
    """And no other."""
    page = (Path(__file__).resolve().parents[2] / "docs/status.md").read_text(encoding="utf-8")
    named = re.findall(r"`(\w+\.\w+)`", page.partition("## Counters")[2])
    assert sorted(named) == sorted(
        f"{hook}.{name}" for hook, counters in Rewrite().counters({}).items() for name in counters
    )


def test_the_worst_comes_first() -> None:
    status = facts(ingress__dropped_direct=1)
    status["drift"] = ["egress is detached: interface eth0, or what was attached to it, is gone"]
    status["envoy"] = {"port": 8080, "listening": False, "addresses": []}
    assert [one.verdict for one in examine(status)] == [Verdict.BAD, Verdict.BAD, Verdict.NOTE]
    assert all(one.advice for one in examine(status) if one.verdict is Verdict.BAD)


def test_what_cannot_be_known_is_not_asserted() -> None:
    """The namespace of the interfaces is hidden, and who listens there with it."""
    status = facts()
    status["envoy"] = {"port": 8080, "listening": None, "addresses": []}
    status["application"] = {"listening": None, "ipv6": None}
    status["drift"] = ["the network namespace of its interfaces is gone, or hidden from this process"]
    assert [one.found for one in examine(status)] == status["drift"]


def test_what_does_not_say_what_it_is() -> None:
    status: dict[str, Any] = {"settings": {}, "hooks": [], "counters": {}, "drift": ["it is damaged"]}
    assert [(one.verdict, one.found) for one in examine(status)] == [(Verdict.BAD, "it is damaged")]
