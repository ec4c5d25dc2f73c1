# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What exists on this host, to compare before and after."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from loader import objects
from loader.cgroup import find_cgroup2


@dataclass(frozen=True)
class Host:
    """Everything that could be left behind. Each item is text that names it."""

    programs: frozenset[str]
    maps: frozenset[str]
    links: frozenset[str]
    btfs: frozenset[str]
    qdiscs: frozenset[str]
    pins: frozenset[str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    processes: frozenset[str]
    files: frozenset[str]


def look() -> Host:
    """Look at the host as this process sees it; qdiscs are those of its network namespace."""
    return Host(
        programs=frozenset(f"program {i}" for i in objects.programs()),
        maps=frozenset(f"map {i}" for i in objects.maps()),
        links=frozenset(f"link {i}" for i in objects.links()),
        btfs=frozenset(f"btf {i}" for i in objects.btfs()),
        qdiscs=qdiscs(),
        pins=pins(),
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        namespaces=_namespaces(),
        cgroups=frozenset(directory for directory, _, _ in os.walk(find_cgroup2())),
        processes=_processes(),
        files=frozenset(str(path) for path in Path(tempfile.gettempdir()).glob("pybpfasm-*")),
    )


def qdiscs() -> frozenset[str]:
    """The qdiscs of the current network namespace, clsact among them."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        return frozenset(
            f"qdisc {message.get_attr('TCA_KIND')} on interface {message['index']}"
            for message in netlink.get_qdiscs()
        )


def pins() -> frozenset[str]:
    """All that is in every bpffs of the current mount namespace."""
    found: set[str] = set()
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        if kind == "bpf":
            found |= {str(path) for path in Path(point).rglob("*")}
    return frozenset(found)


def _namespaces() -> frozenset[str]:
    """Those that have a process, a name, or a descriptor somewhere."""
    found: set[str] = set()
    for pattern in ("[0-9]*/ns/net", "[0-9]*/ns/mnt", "[0-9]*/fd/*"):
        for path in Path("/proc").glob(pattern):
            try:
                target = os.readlink(path)
            except OSError:
                continue
            if target.startswith(("net:[", "mnt:[")):
                found.add(target)
    named = Path("/run/netns")
    return frozenset(found | ({str(path) for path in named.iterdir()} if named.is_dir() else set()))


def _processes() -> frozenset[str]:
    found = set()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            state = (directory / "stat").read_text().rpartition(")")[2].split()
            command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        # Kernel threads come and go; a zombie is its parent's business.
        if command and state[0] != "Z":
            found.add(f"process {directory.name}, started {state[19]}: {command}")
    return frozenset(found)


def new_since(before: Host, concerns: Callable[[str], bool], patience: float = 10.0) -> list[str]:
    """What is there now and was not in `before`, of all that `concerns` is true for.

    The kernel frees some objects a little after the last reference is gone: what disappears within `patience`
    seconds does not count.
    """
    deadline = time.monotonic() + patience
    while True:
        now = look()
        new = [
            item
            for field in fields(Host)
            for item in sorted(getattr(now, field.name) - getattr(before, field.name))
            if concerns(item)
        ]
        if not new or time.monotonic() > deadline:
            return new
        time.sleep(0.1)


def lost_since(before: Host, concerns: Callable[[str], bool]) -> list[str]:
    """What was in `before` and is not there now."""
    now = look()
    return [
        item
        for field in fields(Host)
        for item in sorted(getattr(before, field.name) - getattr(now, field.name))
        if concerns(item)
    ]
