# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Why the kernel, or the emulator in its place, refuses an operation on a map: by the map and the arguments.

The reasons are those of ``*_map_update_elem`` and its like of Linux 6.18; a kernel test provokes each.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from pybpfasm.kernel.enums import BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST, MapType

if TYPE_CHECKING:
    from pybpfasm.layout import ByteOrder

__all__ = ["ENOTSUPP", "Refusing", "why"]

# The kernel's own ENOTSUPP (include/linux/errno.h) reaches user space from bpf(2), and no libc names it.
ENOTSUPP: Final = 524


class Refusing(NamedTuple):
    """What the reasons depend on; ``locked`` says whether values have a spin lock."""

    type: int
    key_size: int
    max_entries: int
    locked: bool
    byteorder: ByteOrder


_ARRAYS: Final = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})
_ALWAYS_THERE: Final = _ARRAYS | {MapType.DEVMAP, MapType.CPUMAP}
_INDEXED: Final = _ARRAYS | {
    MapType.PROG_ARRAY,
    MapType.PERF_EVENT_ARRAY,
    MapType.CGROUP_ARRAY,
    MapType.ARRAY_OF_MAPS,
    MapType.DEVMAP,
    MapType.CPUMAP,
    MapType.XSKMAP,
    MapType.SOCKMAP,
    MapType.REUSEPORT_SOCKARRAY,
}
_STREAMS: Final = frozenset({MapType.QUEUE, MapType.STACK})
_RINGS: Final = frozenset({MapType.RINGBUF, MapType.USER_RINGBUF})
_SOCKETS: Final = frozenset({MapType.SOCKMAP, MapType.SOCKHASH})
_STORAGE: Final = frozenset(
    {MapType.SK_STORAGE, MapType.INODE_STORAGE, MapType.TASK_STORAGE, MapType.CGRP_STORAGE}
)
_REFUSED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP})
_PREFIX: Final = 4  # bytes of prefixlen, in front of the data of a key


def why(one: Refusing, command: str, code: int | None, keys: Sequence[bytes] = (), flags: int = 0) -> str:
    """What was wrong with a *command* on *keys* that ended with the errno *code*, and what to do.

    The command is one of ``bpf(2)``, such as ``MAP_UPDATE_ELEM``. Empty where it isn't known.
    """
    if "UPDATE" in command:
        return _flags(one, code, flags) or _update(one, code, keys, flags)
    if code in _REFUSED and command == "MAP_GET_NEXT_KEY":
        return _no_keys(one)
    if code in _REFUSED and command.startswith("MAP_LOOKUP_AND_DELETE"):
        step = f"{_a(one)} can't give a value and delete it in one step: lookup(), then delete()"
        return _delete(one, keys) or step
    if "LOOKUP" in command:
        return _lookup(one, code, flags)
    if "DELETE" in command and code in _REFUSED:
        return _delete(one, keys)
    return ""


def _a(one: Refusing) -> str:
    name = one.type.name if isinstance(one.type, MapType) else f"map of type {one.type}"
    return f"{'an' if name.startswith(('A', 'I', 'L', 'SK_', 'X')) else 'a'} {name}"


def _unlocked(one: Refusing, flags: int) -> str:
    if flags & BPF_F_LOCK and not one.locked:
        return "BPF_F_LOCK is for maps whose values have a spin lock (Nested(BpfSpinLock))"
    return ""


def _flags(one: Refusing, code: int | None, flags: int) -> str:
    """What flags of an update ask for, where that is the reason."""
    plain = flags & ~BPF_F_LOCK
    if code == errno.EEXIST:
        if one.type in _ALWAYS_THERE:
            return f"the elements of {_a(one)} are always there: use BPF_ANY or BPF_EXIST"
        return "with BPF_NOEXIST only a new key is stored, and this one is there: BPF_ANY replaces its value"
    if code == errno.ENOENT and plain == BPF_EXIST:
        return "with BPF_EXIST only a key that is there gets a value, and this one is not: BPF_ANY stores it"
    if code != errno.EINVAL:
        return ""
    if plain > BPF_EXIST or plain < 0:
        return f"flags={flags} is none of BPF_ANY (0), BPF_NOEXIST (1) and BPF_EXIST (2)"
    if plain == BPF_NOEXIST and one.type in _STREAMS:
        return f"{_a(one)} has no keys: BPF_ANY, or BPF_EXIST to drop the oldest value where it is full"
    if plain and one.type in {MapType.PROG_ARRAY, MapType.PERF_EVENT_ARRAY, MapType.ARRAY_OF_MAPS}:
        return f"{_a(one)} takes BPF_ANY only"
    return _unlocked(one, flags)


def _update(one: Refusing, code: int | None, keys: Sequence[bytes], flags: int) -> str:
    if code in (errno.E2BIG, errno.ENOSPC, errno.EINVAL):
        outside = _outside(one, keys)
        if outside:
            return outside
    if code in (errno.E2BIG, errno.ENOSPC) and one.type not in _INDEXED:
        if one.type in _STREAMS:
            return (
                f"it is full, with {one.max_entries} values: pop() some first, or update with BPF_EXIST, "
                "which drops the oldest"
            )
        more = ", or an LRU_HASH, which drops old ones" if one.type == MapType.HASH else ""
        return f"it is full, with {one.max_entries} keys: delete some, or create it with more{more}"
    if code == errno.EBADF:
        return f"a value of {_a(one)} is an open descriptor, or what has one (fileno)"
    if one.type in _SOCKETS:
        if code in (errno.ENOTSOCK, errno.EINVAL):
            return f"a value of {_a(one)} is a socket, or its descriptor"
        if code == errno.EOPNOTSUPP:
            return "it can't hold this socket: it takes TCP sockets that are connected or listen, and others"
    if one.type in _STORAGE and code == errno.ENOTSOCK:
        return f"a key of {_a(one)} is a socket, or its descriptor"
    if one.type == MapType.CPUMAP and code == errno.EOVERFLOW:
        return "the value is the length of the CPU's queue, which is at most 16384 frames"
    if code in _REFUSED:
        if one.type in _RINGS:
            return _no_entries(one)
        return _REFUSES.get(one.type, "")
    return ""


def _no_entries(one: Refusing) -> str:
    return f"{_a(one)} has no entries: loader.objects.RingBuffer reads a RINGBUF"


_AN_INNER_MAP: Final = (
    "the value is a map of the type, sizes and flags of the inner map that it was created with"
)
_AN_INTERFACE: Final = "no interface of this network namespace has that index"
_REFUSES: Final[dict[int, str]] = {
    MapType.PROG_ARRAY: (
        "the value is a program (or its descriptor) of the type and hook of those that use the array, no map"
    ),
    MapType.ARRAY_OF_MAPS: _AN_INNER_MAP,
    MapType.HASH_OF_MAPS: _AN_INNER_MAP,
    MapType.DEVMAP: _AN_INTERFACE,
    MapType.DEVMAP_HASH: _AN_INTERFACE,
}


def _outside(one: Refusing, keys: Sequence[bytes]) -> str:
    """Which key can't be one of the map's."""
    if one.type in _INDEXED:
        for key in keys:
            index = int.from_bytes(key, one.byteorder)
            if index >= one.max_entries:
                return f"index {index} is behind the end: the last one is {one.max_entries - 1}"
    if one.type == MapType.LPM_TRIE:
        bits = 8 * (one.key_size - _PREFIX)
        for key in keys:
            length = int.from_bytes(key[:_PREFIX], one.byteorder)
            if length > bits:
                return f"prefixlen is {length}, and the data of a key have {bits} bits"
    return ""


def _no_keys(one: Refusing) -> str:
    if one.type in _STREAMS:
        return f"{_a(one)} has no keys: pop() gives its values one by one"
    if one.type in _RINGS:
        return _no_entries(one)
    if one.type == MapType.BLOOM_FILTER:
        return "a BLOOM_FILTER can't be listed: it only says of a value whether it may be there"
    if one.type in _STORAGE:
        return f"{_a(one)} can't be listed: look it up by its object"
    return f"{_a(one)} can't be listed"


def _lookup(one: Refusing, code: int | None, flags: int) -> str:
    if code == errno.EINVAL and flags & ~BPF_F_LOCK:
        return f"flags={flags}: a look-up takes 0 or BPF_F_LOCK"
    if code == errno.EINVAL and flags:
        return _unlocked(one, flags)
    if code == errno.ENOSPC and one.type in _SOCKETS:
        return "with values of 8 bytes, U64(), it gives the sockets' cookies"
    if code in _REFUSED and one.type in _RINGS:
        return _no_entries(one)
    return ""


def _delete(one: Refusing, keys: Sequence[bytes]) -> str:
    outside = _outside(one, keys)
    if outside:
        return outside
    if one.type in _ARRAYS:
        return f"the elements of {_a(one)} are always there: store zeros instead"
    if one.type in _STREAMS:
        return f"{_a(one)} has no keys: pop() takes a value out"
    if one.type == MapType.BLOOM_FILTER:
        return "nothing can be taken out of a BLOOM_FILTER: create it anew"
    return ""
