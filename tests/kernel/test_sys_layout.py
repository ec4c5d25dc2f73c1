# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The structures of loader.sys against those of the running kernel, by its BTF."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from loader import sys as bpf_sys
from pybpfasm.btf import Btf, BtfType, Kind

Offsets = dict[str, tuple[int, int]]

# Which member of `union bpf_attr` a structure is: its name, or the first member of one that has none.
ATTRIBUTES = {
    bpf_sys.MapCreateAttr: "map_type",
    bpf_sys.MapElemAttr: "map_fd",
    bpf_sys.MapBatchAttr: "batch",
    bpf_sys.ProgLoadAttr: "prog_type",
    bpf_sys.ObjAttr: "pathname",
    bpf_sys.ProgAttachAttr: "target_fd",
    bpf_sys.TestRunAttr: "test",
    bpf_sys.IdAttr: "start_id",
    bpf_sys.InfoAttr: "info",
    bpf_sys.QueryAttr: "query",
    bpf_sys.BtfLoadAttr: "btf",
    bpf_sys.LinkUpdateAttr: "link_update",
    bpf_sys.IterCreateAttr: "iter_create",
}
STRUCTURES = {
    bpf_sys.ProgInfoStruct: "bpf_prog_info",
    bpf_sys.MapInfoStruct: "bpf_map_info",
    bpf_sys.BtfInfoStruct: "bpf_btf_info",
}


@pytest.fixture(scope="module")
def vmlinux() -> Btf:
    """The running kernel's BTF."""
    return Btf.parse(Path("/sys/kernel/btf/vmlinux").read_bytes())


def named(btf: Btf, name: str) -> BtfType:
    """The structure or union of that name."""
    for kind in (Kind.STRUCT, Kind.UNION):
        if found := btf.by_name(name, kind):
            return found
    raise AssertionError(f"the kernel's BTF has no {name}")


def flatten(btf: Btf, of: BtfType, base: int = 0) -> Iterator[tuple[str, tuple[int, int]]]:
    """The members of a structure, those of nameless ones within it too: name, offset and size in bytes."""
    for member in of.members:
        inner = btf.resolve(member.type_id)
        offset = base + member.bit_offset // 8
        if not member.name:
            yield from flatten(btf, inner, offset)
        else:
            yield member.name, (offset, btf.size_of(member.type_id))


def ours(structure: type[ctypes.Structure]) -> Offsets:
    """The members of a ctypes structure."""
    found = {}
    for entry in structure._fields_:
        field = getattr(structure, entry[0])
        found[entry[0]] = (field.offset, field.size)
    return found


def attribute(btf: Btf, which: str) -> Offsets:
    """The members of one member of ``union bpf_attr``."""
    for member in named(btf, "bpf_attr").members:
        inner = btf.resolve(member.type_id)
        members = dict(flatten(btf, inner))
        if member.name == which or (not member.name and which in members):
            return members
    raise AssertionError(f"union bpf_attr has no {which}")


def compare(mine: Offsets, kernels: Offsets) -> None:
    """Every member of ours is the kernel's.

    On an older kernel it may have another name, or be where that has nothing: in padding, or behind the end.
    """
    for name, (offset, size) in mine.items():
        if name in kernels:
            assert (offset, size) == kernels[name], name
        else:
            over = {n: p for n, p in kernels.items() if p[0] < offset + size and offset < sum(p)}
            assert list(over.values()) in ([], [(offset, size)]), (
                f"{name} at {offset} is not the kernel's: {over}"
            )
    assert set(mine) & set(kernels), "nothing was compared"


@pytest.mark.parametrize("structure", ATTRIBUTES, ids=lambda s: s.__name__)
def test_arguments(vmlinux: Btf, structure: type[ctypes.Structure]) -> None:
    compare(ours(structure), attribute(vmlinux, ATTRIBUTES[structure]))


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.__name__)
def test_information(vmlinux: Btf, structure: type[ctypes.Structure]) -> None:
    compare(ours(structure), dict(flatten(vmlinux, named(vmlinux, STRUCTURES[structure]))))


def inner(btf: Btf, of: Offsets, outer: BtfType, name: str) -> tuple[int, Offsets]:
    """The offset of a named member, and the members of the structure that it is."""
    for found, type_id in walk(btf, outer):
        if found == name:
            return of[name][0], dict(flatten(btf, btf.resolve(type_id)))
    raise AssertionError(name)


def walk(btf: Btf, of: BtfType) -> Iterator[tuple[str, int]]:
    """Names and types of the members of a structure and of the nameless ones within it."""
    for member in of.members:
        if member.name:
            yield member.name, member.type_id
        else:
            yield from walk(btf, btf.resolve(member.type_id))


@pytest.mark.parametrize("kind", ["cgroup", "netns", "xdp", "tcx", "sockmap", "tracing"])
def test_information_on_links(vmlinux: Btf, kind: str) -> None:
    outer = named(vmlinux, "bpf_link_info")
    kernels = dict(flatten(vmlinux, outer))
    compare({name: ours(bpf_sys.LinkInfoStruct)[name] for name in ("type", "id", "prog_id")}, kernels)
    if kind not in kernels:
        assert kind in ("tcx", "sockmap")  # the younger ones
        return
    offset, members = inner(vmlinux, kernels, outer, kind)
    assert bpf_sys.LinkInfoStruct.of.offset == offset
    compare(ours(dict(bpf_sys._LinkInfoUnion._fields_)[kind]), members)


def test_making_links(vmlinux: Btf) -> None:
    outer = named(vmlinux, "bpf_attr")
    whole = next(vmlinux.resolve(m.type_id) for m in outer.members if m.name == "link_create")
    kernels = dict(flatten(vmlinux, whole))
    mine = ours(bpf_sys.LinkCreateAttr)
    for name in ("prog_fd", "target_fd", "attach_type", "flags"):
        assert mine[name] == kernels[name]
    assert mine["of"][0] == kernels["target_btf_id"][0]
    for name, (offset, size) in ours(bpf_sys._IteratorOf).items():
        assert kernels[name] == (mine["of"][0] + offset, size)
    if "tcx" in kernels:
        offset, members = inner(vmlinux, kernels, whole, "tcx")
        assert offset == mine["of"][0]
        compare(ours(bpf_sys._RelativeTo), members)
