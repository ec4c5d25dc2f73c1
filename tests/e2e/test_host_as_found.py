# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""After `down` and after the playground, the host is what it was before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loader.envoy import find_binary
from loader.playground import SERVER, Playground
from loader.process import Place, call
from tests.conftest import IN_CI
from tests.e2e import host, traffic
from tests.e2e.proxy import Proxy


def ids(status: dict[str, Any]) -> set[str]:
    """The programs, maps and links that a status document names, as `host.look` writes them."""
    found = {f"program {hook['program']['id']}" for hook in status["hooks"]}
    found |= {f"map {m['id']}" for m in status["maps"]}
    return found | {f"link {hook['link_id']}" for hook in status["hooks"] if hook.get("link_id")}


def ours(known: set[str], playground: Playground) -> Callable[[str], bool]:
    """What to compare. In CI, where nobody else is about: everything. Elsewhere what is certainly ours: other
    people's programs and processes come and go.
    """
    mine = (playground.name, playground.cgroup.name, f"pid={os.getpid()}")
    processes = (sys.executable, str(find_binary()))

    def concerns(item: str) -> bool:
        if item.startswith("process "):
            return any(word in item for word in processes) and (IN_CI or any(word in item for word in mine))
        return IN_CI or item in known or any(word in item for word in mine)

    return concerns


def test_host_is_as_it_was_found() -> None:
    Playground().close()  # at its first bpffs mount a kernel may load iterators of its own
    before = host.look()
    with Playground() as playground:
        playground.start_application("http:8000")
        envoy = playground.start_envoy("original-dst")
        qdiscs = playground.server.call(host.qdiscs)
        pins = call(host.pins, Place(mntns=playground.mntns))
        mounts = call(lambda: Path("/proc/self/mountinfo").read_text(), Place(mntns=playground.mntns))
        with Proxy(playground) as proxy:
            assert playground.client.call(partial(traffic.get, SERVER, 8000))["status"] == 200
            assert playground.server.call(partial(traffic.get, SERVER, 8000))["status"] == 200
            status = proxy.status()
            known = ids(status)
            during = host.look()
            assert len(known & during.programs) >= 5
            assert known & during.maps
            assert known & during.links
            assert call(host.pins, Place(mntns=playground.mntns)) > pins
        namespaces = {
            os.readlink(f"/proc/self/fd/{n.netns.fd}")
            for n in (playground.client, playground.gateway, playground.server)
        }
        known |= namespaces | {str(playground.cgroup), str(playground.directory)}
        # After `down`, with the playground still there.
        assert playground.server.call(host.qdiscs) == qdiscs
        assert call(host.pins, Place(mntns=playground.mntns)) == pins
        mounted = call(lambda: Path("/proc/self/mountinfo").read_text(), Place(mntns=playground.mntns))
        assert mounted == mounts
        programs = {item for item in known if item.split()[0] in ("program", "map", "link")}
        # The connections that Envoy keeps to the application are still in the sockhash: they hold on to it,
        # to the sk_msg program and to its maps for as long as they are open.
        kept = {f"program {h['program']['id']}" for h in status["hooks"] if h["hook"] == "sk_msg"}
        kept |= {f"map {m['id']}" for m in status["maps"]}
        assert host.new_since(before, lambda item: item in programs - kept) == []
        envoy.stop()
        assert host.new_since(before, lambda item: item in programs) == []
    concerns = ours(known, playground)
    assert host.new_since(before, concerns) == []
    assert host.lost_since(before, concerns) == []


@pytest.fixture
def bare() -> Iterator[Playground]:
    """A playground where nothing is mounted at /sys/fs/bpf."""
    with Playground(bpffs=False) as playground:
        yield playground


def test_bpffs_that_up_mounts_goes_with_down(bare: Playground) -> None:
    place = Place(mntns=bare.mntns)

    def mounts() -> list[str]:
        return Path("/proc/self/mounts").read_text().splitlines()

    before = call(mounts, place)
    assert not any(" bpf " in line for line in before)
    bare.start_application("http:8000")
    bare.start_envoy("original-dst")
    with Proxy(bare):
        assert bare.client.call(partial(traffic.get, SERVER, 8000))["status"] == 200
        assert any(" /sys/fs/bpf bpf " in line for line in call(mounts, place))
    assert call(mounts, place) == before


def test_a_failed_up_leaves_nothing(playground: Playground) -> None:
    before = host.look()
    qdiscs = playground.server.call(host.qdiscs)
    pins = call(host.pins, Place(mntns=playground.mntns))
    failed = Proxy(playground, "--iface", "nosuch0").up(check=False)
    assert failed.returncode != 0
    assert "nosuch0" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert playground.server.call(host.qdiscs) == qdiscs
    assert call(host.pins, Place(mntns=playground.mntns)) == pins
    if IN_CI:
        assert host.new_since(before, lambda item: item.split()[0] in ("program", "map", "link", "btf")) == []


def test_looking_sees_differences(tmp_path: Path) -> None:
    """The comparison itself: it would notice a map, a process, a namespace, a cgroup."""
    before = host.look()
    with Playground() as playground:
        sleeper = playground.client.popen([sys.executable, "-I", "-c", "import time; time.sleep(100)"])
        new = host.new_since(before, lambda item: True, patience=0)
        namespace = os.readlink(f"/proc/self/fd/{playground.client.netns.fd}")
        assert {namespace, str(playground.cgroup), str(playground.directory)} <= set(new)
        assert any(item.startswith(f"process {sleeper.pid},") for item in new)
        sleeper.kill()
        sleeper.wait()
