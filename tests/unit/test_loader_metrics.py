# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""`status --prometheus`: what becomes of the document, as Prometheus' own library reads it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

if sys.platform == "win32":
    pytest.skip("the loader is for Linux", allow_module_level=True)

from loader import cli
from loader.metrics import COUNTERS, exposition
from programs.shared import Counters

# Every counter of the programs, by hook and name.
EVERY = [(hook, name) for hook, part in Counters.unpack(b"\0" * Counters.sizeof) for name, _ in part]


def document(**changes: Any) -> dict[str, Any]:
    """An instance whose n-th counter is n, and two of its maps."""
    counters: dict[str, dict[str, int]] = {}
    for number, (hook, name) in enumerate(EVERY, 1):
        counters.setdefault(hook, {})[name] = number
    return {
        "name": "default",
        "settings": {
            "mode": "rewrite",
            "ports": "8000,9000-9010",
            "envoy_port": 8080,
            "mark": "4242",
            "accelerate": True,
            "interfaces": ["eth0", "lo"],
            "netns": "",
            "netns_inode": 4026531840,
            "cgroup": "/sys/fs/cgroup",
            "cgroup_id": 1,
            "flow_capacity": 65536,
            "socket_capacity": 131072,
            "handshake_seconds": 75,
            "linger_seconds": 60,
            "idle_seconds": 432000,
            "queue_limit": None,
            "timers": True,
            "coarse_clock": True,
            "netns_cookie": True,
        },
        "counters": counters,
        "maps": [
            {"map": "counters", "id": 5, "type": "percpu_array", "max_entries": 1},
            {"map": "flows", "id": 6, "type": "hash", "max_entries": 65536, "entries": 12},
        ],
        "envoy": {"port": 8080, "listening": True, "addresses": ["::"]},
        "healthy": True,
    } | changes


def families(**statuses: dict[str, Any] | None) -> dict[str, Any]:
    """The families of the exposition by name, each of which is there once."""
    read = list(text_string_to_metric_families(exposition(statuses, everything=True).decode()))
    found = {family.name: family for family in read}
    assert len(found) == len(read)
    return found


def values(family: Any) -> list[tuple[str, dict[str, str], float]]:
    return [(sample.name, sample.labels, sample.value) for sample in family.samples]


def test_every_counter_is_a_family_of_its_own() -> None:
    counters = {name: one for name, one in families(default=document()).items() if one.type == "counter"}
    assert {name: values(one) for name, one in counters.items()} == {
        f"pybpfasm_{hook}_{name}": [(f"pybpfasm_{hook}_{name}_total", {"name": "default"}, number)]
        for number, (hook, name) in enumerate(EVERY, 1)
    }
    assert counters["pybpfasm_ingress_redirected"].documentation == (
        "Packets of clients whose port was rewritten to Envoy's."
    )


def test_a_counter_says_what_the_page_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/status.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+\.\w+`(?:, `\w+\.\w+`)*) \| (.*) \|$", page, re.MULTILINE)
    said = {
        (hook, name): text.replace("`", "")
        for named, text in rows
        for hook, name in re.findall(r"`(\w+)\.(\w+)`", named)
    }
    assert said == COUNTERS
    assert sorted(said) == sorted(EVERY)


def test_gauges() -> None:
    down = document(envoy={"port": 8080, "listening": False, "addresses": []}, healthy=False)
    down["settings"]["accelerate"] = False
    found = families(default=document(), web=down)
    gauges = {name: one for name, one in found.items() if one.type == "gauge"}
    info = gauges.pop("pybpfasm_instance_info")
    one, two = {"name": "default"}, {"name": "web"}
    assert {name: [(v[1], v[2]) for v in values(family)] for name, family in gauges.items()} == {
        "pybpfasm_instances": [({}, 2)],
        "pybpfasm_healthy": [(one, 1), (two, 0)],
        "pybpfasm_accelerated": [(one, 1), (two, 0)],
        "pybpfasm_envoy_listening": [(one, 1), (two, 0)],
        "pybpfasm_map_entries": [(one | {"map": "flows"}, 12), (two | {"map": "flows"}, 12)],
        "pybpfasm_map_max_entries": [(one | {"map": "flows"}, 65536), (two | {"map": "flows"}, 65536)],
    }
    assert [sample.value for sample in info.samples] == [1, 1]
    assert info.samples[0].labels == {
        "name": "default",
        "mode": "rewrite",
        "ports": "8000,9000-9010",
        "envoy_port": "8080",
        "mark": "4242",
        "accelerate": "true",
        "interfaces": "eth0,lo",
        "netns": "",
        "cgroup": "/sys/fs/cgroup",
        "flow_capacity": "65536",
        "handshake_seconds": "75",
        "linger_seconds": "60",
        "idle_seconds": "432000",
        "queue_limit": "",
    }


@pytest.mark.parametrize(
    "status",
    [
        None,  # not up
        {"settings": {}, "counters": {}, "maps": [], "envoy": {}, "healthy": False},  # damaged
    ],
)
def test_of_what_is_not_there_only_that_is_said(status: dict[str, Any] | None) -> None:
    found = families(default=status)
    assert found.keys() == {"pybpfasm_instances", "pybpfasm_healthy"}
    assert values(found["pybpfasm_healthy"]) == [("pybpfasm_healthy", {"name": "default"}, 0)]


def test_what_cannot_be_known_is_left_out() -> None:
    """Whether somebody listens in a namespace that is hidden."""
    hidden = document(envoy={"port": 8080, "listening": None, "addresses": []})
    assert "pybpfasm_envoy_listening" not in families(default=hidden)


@pytest.mark.parametrize(
    ("path", "label"), [('/a"b\\c\nd', '/a"b\\c\nd'), ("/grün", "/grün"), ("/\udcff", "/?")]
)
def test_a_label_is_utf_8(path: str, label: str) -> None:
    status = document()
    status["settings"]["cgroup"] = path
    assert families(default=status)["pybpfasm_instance_info"].samples[0].labels["cgroup"] == label


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed that a monitor could take for metrics, and what to install is said."""
    monkeypatch.delitem(sys.modules, "loader.metrics")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert cli.main(["status", "--prometheus"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: the Python package 'prometheus-client' is missing\n")
    assert "-m pip install prometheus-client, or apt-get install python3-prometheus-client" in captured.err


@pytest.mark.parametrize("other", ["--json", "--watch"])
def test_one_format_at_a_time(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--prometheus", other]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert other in captured.err
    assert "# HELP" not in captured.out
