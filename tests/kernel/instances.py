# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Instances under test: the command line in this process, in a place of its own, and a tap on bpf(2)."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from loader import cli, features, objects, tc_clsact
from loader import sys as bpf_sys
from loader.bpffs import BpfFs
from loader.cgroup import Cgroup
from loader.errors import BpfError
from loader.netns import NetNs
from loader.process import mount
from loader.sys import libc
from pybpfasm.kernel.enums import AttachType, Cmd
from tests.requires import requires

# Commands that make or change something.
CHANGING = frozenset(
    {
        Cmd.MAP_CREATE,
        Cmd.MAP_UPDATE_ELEM,
        Cmd.MAP_FREEZE,
        Cmd.BTF_LOAD,
        Cmd.PROG_LOAD,
        Cmd.PROG_ATTACH,
        Cmd.LINK_CREATE,
        Cmd.LINK_UPDATE,
        Cmd.OBJ_PIN,
    }
)
# What fails is tried again with a log: the second attempt fails as well.
TRIED_TWICE = frozenset({Cmd.BTF_LOAD, Cmd.PROG_LOAD})


@dataclass
class Outcome:
    """What a command of the loader did."""

    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """Its output as a document."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@dataclass
class Site:
    """A network namespace, a bpf file system and a cgroup, and the loader at work on them."""

    fs: BpfFs
    cgroup: Cgroup
    netns: NetNs
    capsys: pytest.CaptureFixture[str]

    def run(self, *words: str) -> Outcome:
        """Run a command of the loader in this process.

        Unless something else is said, ``up`` accelerates also where FIONREAD is wrong.
        """
        self.capsys.readouterr()
        more = ["--bpffs", str(self.fs.root)]
        if words[0] in ("up", "dump"):
            more += ["--cgroup", str(self.cgroup.path)]
            if not {"--accelerate", "--no-accelerate"} & set(words):
                more += ["--accelerate", "always"]
        status = cli.main([*words, *more])
        captured = self.capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    def up(self, *words: str, iface: str = "lo", ports: str = "8000") -> Outcome:
        """Run ``up`` for one interface and assert that it succeeds."""
        outcome = self.run("up", "--iface", iface, "--ports", ports, *words)
        assert outcome.status == 0, outcome.err
        return outcome

    def down(self, *words: str) -> Outcome:
        """Run ``down`` and assert that it succeeds."""
        outcome = self.run("down", *words)
        assert outcome.status == 0, outcome.err
        return outcome

    def status(self, *words: str) -> dict[str, Any]:
        """What ``status --json`` prints; its exit status says whether all is well."""
        outcome = self.run("status", "--json", *words)
        assert outcome.status in (0, 1), outcome.err
        found = outcome.json()
        assert found["healthy"] is (outcome.status == 0)
        return found

    def pins(self) -> list[str]:
        """All that is pinned, without what the kernel itself puts into a bpf file system."""
        return sorted(
            str(path.relative_to(self.fs.root)) for path in self.fs.root.rglob("*") if "." not in path.name
        )

    def attached(self, ifindex: int = 1) -> list[int]:
        """The ids of all programs at the hooks of an interface and of the cgroup, in a fixed order."""
        found = tc_programs(ifindex, AttachType.TCX_INGRESS) + tc_programs(ifindex, AttachType.TCX_EGRESS)
        for attach_type in (AttachType.CGROUP_GETSOCKOPT, AttachType.CGROUP_SOCK_OPS):
            found += objects.prog_query(self.cgroup.fd, attach_type).prog_ids
        return found


def tc_programs(ifindex: int, attach_type: AttachType) -> list[int]:
    """The ids of the programs at an interface, those of TCX and those of clsact filters."""
    found: list[int] = []
    if features.probe(features.Feature.TCX).supported:
        found += objects.prog_query(ifindex, attach_type).prog_ids
    return found + [one.prog_id for one in tc_clsact.filters(ifindex, attach_type)]


@pytest.fixture(params=[pytest.param("tcx", marks=requires(features.Feature.TCX)), "clsact"])
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of attaching to an interface."""
    if request.param == "clsact":
        monkeypatch.setenv("PYBPFASM_ATTACH", "clsact")
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def site(
    private_mounts: None,
    tmp_path: Path,
    cgroup: Cgroup,
    netns: NetNs,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Site]:
    """A place where nothing is up. Its bpf file system is not of the loader's making."""
    root = tmp_path / "bpffs"
    root.mkdir()
    mount("bpf", str(root), "bpf", 0)
    yield Site(BpfFs(root, ours=False), cgroup, netns, capsys)
    # What is still pinned goes with the mount.
    assert libc().umount2(os.fsencode(root), 2) == 0


@dataclass
class Tap:
    """Stands in for `loader.sys.bpf`: counts what changes something, and can act before the n-th of these."""

    act_at: int = 0
    act: Callable[[int, int], None] = lambda command, number: None
    calls: int = 0
    created: list[tuple[int, int]] = field(default_factory=list)
    _real: Callable[..., int] = bpf_sys.bpf

    def __call__(self, command: int, attr: ctypes.Structure, what: str = "") -> int:
        if command in CHANGING:
            self.calls += 1
            if self.act_at and (
                self.calls == self.act_at or (self.calls > self.act_at and command in TRIED_TWICE)
            ):
                self.act(command, self.calls)
        result = self._real(command, attr, what)
        infos: dict[int, tuple[type[ctypes.Structure], int]] = {
            Cmd.MAP_CREATE: (bpf_sys.MapInfoStruct, Cmd.MAP_GET_FD_BY_ID),
            Cmd.PROG_LOAD: (bpf_sys.ProgInfoStruct, Cmd.PROG_GET_FD_BY_ID),
            Cmd.LINK_CREATE: (bpf_sys.LinkInfoStruct, Cmd.LINK_GET_FD_BY_ID),
        }
        if command in infos:
            kind, by_id = infos[command]
            info = kind()
            bpf_sys.obj_info(result, info)
            self.created.append((by_id, int(info.id)))
        return result

    def alive(self, patience: float = 5.0) -> list[tuple[str, int]]:
        """Which of the created objects are still there; the kernel frees some a little later."""
        deadline = time.monotonic() + patience
        left = self.created
        while True:
            left = [one for one in left if _exists(*one)]
            if not left or time.monotonic() > deadline:
                return [(Cmd(command).name, number) for command, number in left]
            time.sleep(0.02)


def _exists(by_id: int, number: int) -> bool:
    try:
        os.close(bpf_sys.fd_by_id(by_id, number))
    except BpfError:
        return False
    return True


def fail(command: int, number: int) -> None:
    """An action of `Tap`: the call fails."""
    raise BpfError(12, Cmd(command).name, "an injected failure")


def send(signum: int) -> Callable[[int, int], None]:
    """An action of `Tap`: this process gets a signal."""

    def act(command: int, number: int) -> None:
        signal.raise_signal(signum)  # to this thread, which may not be the only one

    return act


@contextmanager
def tapped(tap: Tap) -> Iterator[Tap]:
    """Put the tap in place for the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpf_sys, "bpf", tap)
        yield tap


def in_child(function: Callable[[], int]) -> int:
    """Run a function in a forked child, in the same namespaces.

    Return its exit status, negative for a signal.
    """
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = function()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def add_dummy(name: str) -> int:
    """Make an interface that leads nowhere; return its index."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("add", ifname=name, kind="veth", peer={"ifname": f"peer{os.urandom(3).hex()}"})
        index = int(route.link_lookup(ifname=name)[0])
        route.link("set", index=index, state="up")
    return index


def delete_interface(index: int) -> None:
    """Remove an interface."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("del", index=index)


def set_down(name: str) -> None:
    """Set an interface down."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=int(route.link_lookup(ifname=name)[0]), state="down")


def rename_interface(index: int, name: str) -> None:
    """Give an interface another name."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        route.link("set", index=index, state="down")
        route.link("set", index=index, ifname=name)
        route.link("set", index=index, state="up")


def files(directory: Path) -> list[str]:
    """The names in a directory."""
    return sorted(path.name for path in directory.iterdir())
