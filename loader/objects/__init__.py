# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Kernel objects that own their descriptor: :class:`Btf`, :class:`Map`, :class:`Program`, :class:`Link`.

Each is a context manager, closes its descriptor exactly once, and warns (``ResourceWarning``) when it is
collected while still open. An object made from a spec (:class:`pybpfasm.maps.MapSpec`,
:class:`pybpfasm.program.ProgramSpec`) is the spec loaded into this kernel; one from a pin or an id is
whatever was found there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from loader import sys as bpf_sys
from loader.capabilities import explain
from loader.errors import BpfError, UsageError
from loader.objects.btf import Btf, BtfInfo
from loader.objects.link import (
    Link,
    LinkInfo,
    Query,
    QueryEntry,
    attach_to_sockmap,
    prog_attach,
    prog_detach,
    prog_query,
)
from loader.objects.map import Map, MapInfo, MapLike, possible_cpus
from loader.objects.owned import Owned, PathLike, fd_kind
from loader.objects.program import Program, ProgramInfo, ProgramLike, RunResult
from loader.objects.ringbuf import RingBuffer
from pybpfasm.kernel.enums import BPF_STATS_RUN_TIME, Cmd

__all__ = [
    "Btf",
    "BtfInfo",
    "Link",
    "LinkInfo",
    "Map",
    "MapInfo",
    "MapLike",
    "Owned",
    "Program",
    "ProgramInfo",
    "ProgramLike",
    "Query",
    "QueryEntry",
    "RingBuffer",
    "RunResult",
    "Stats",
    "attach_to_sockmap",
    "btfs",
    "links",
    "maps",
    "open_pin",
    "possible_cpus",
    "prog_attach",
    "prog_detach",
    "prog_query",
    "programs",
]


def open_pin(path: PathLike) -> Map | Program | Link:
    """Open whatever is pinned at a path."""
    try:
        fd = bpf_sys.obj_get(path)
    except BpfError as error:
        raise explain(error, ("CAP_BPF",)) from None
    kind = fd_kind(fd)
    if kind == "map":
        return Map(fd)
    if kind == "program":
        return Program(fd)
    if kind == "link":
        return Link(fd)
    os.close(fd)
    raise UsageError(f"{os.fspath(path)} is a pinned {kind}, which is not known here")


def _ids(command: int) -> Iterator[int]:
    current = 0
    while True:
        try:
            following = bpf_sys.next_id(command, current)
        except BpfError as error:
            raise explain(error, ("CAP_SYS_ADMIN",)) from None
        if following is None:
            return
        yield following
        current = following


def programs() -> Iterator[int]:
    """Yield the id of every program in the kernel, in ascending order.

    Needs CAP_SYS_ADMIN, as do the others.
    """
    return _ids(Cmd.PROG_GET_NEXT_ID)


def maps() -> Iterator[int]:
    """Yield the id of every map in the kernel."""
    return _ids(Cmd.MAP_GET_NEXT_ID)


def links() -> Iterator[int]:
    """Yield the id of every link in the kernel."""
    return _ids(Cmd.LINK_GET_NEXT_ID)


def btfs() -> Iterator[int]:
    """Yield the id of every BTF object in the kernel, the kernel's own among them."""
    return _ids(Cmd.BTF_GET_NEXT_ID)


class Stats(Owned):
    """While it is open the kernel counts how often and how long each program runs (BPF_STATS_RUN_TIME)."""

    kind = "statistics"

    @classmethod
    def enable(cls) -> Stats:
        """Start counting; costs some 20 ns for each run of a program."""
        try:
            return cls(bpf_sys.enable_stats(BPF_STATS_RUN_TIME))
        except BpfError as error:
            raise explain(error, ("CAP_SYS_ADMIN",)) from None
