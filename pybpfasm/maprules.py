# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the kernel wants of the maps of each type: sizes of keys and values, entries, flags.

The rules are those of the functions ``*_map_alloc_check`` and ``*_map_alloc`` of Linux 6.18; a kernel test
asks the running kernel about each. What only some kernels refuse is not among them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC, MapType
from pybpfasm.kernel.values import BpfSpinLock, BpfTimer, BpfWq
from pybpfasm.layout import Field, Nested
from pybpfasm.maps import WITHOUT_BTF, MapMember, MapSpec

__all__ = ["kernel_owned", "refusal"]

_PAGE: Final = 4096  # on machines with larger ones, a ring buffer has at least one of those

_SOME: Final = range(1, 1 << 32)
_NONE: Final = range(1)
_WORD: Final = (4,)


class _Rule(NamedTuple):
    """The sizes in bytes of a key and of a value, and how many entries; the flags that must be there."""

    key: range | tuple[int, ...]
    value: range | tuple[int, ...]
    entries: range = _SOME
    flags: int = 0


_TABLE: Final = _Rule(_SOME, _SOME)
_ARRAY: Final = _Rule(_WORD, _SOME)
_HANDLES: Final = _Rule(_WORD, _WORD)
_QUEUE: Final = _Rule(_NONE, _SOME)
_RING: Final = _Rule(_NONE, _NONE)
_STORAGE: Final = _Rule(_WORD, _SOME, _NONE, BPF_F_NO_PREALLOC)

_RULES: Final[dict[MapType, _Rule]] = {
    MapType.HASH: _TABLE,
    MapType.LRU_HASH: _TABLE,
    MapType.PERCPU_HASH: _TABLE,
    MapType.LRU_PERCPU_HASH: _TABLE,
    MapType.ARRAY: _ARRAY,
    MapType.PERCPU_ARRAY: _ARRAY,
    MapType.PROG_ARRAY: _HANDLES,
    MapType.PERF_EVENT_ARRAY: _HANDLES,
    MapType.CGROUP_ARRAY: _HANDLES,
    MapType.ARRAY_OF_MAPS: _HANDLES,
    MapType.HASH_OF_MAPS: _Rule(_SOME, _WORD),
    MapType.LPM_TRIE: _Rule(range(5, 261), _SOME, _SOME, BPF_F_NO_PREALLOC),
    MapType.QUEUE: _QUEUE,
    MapType.STACK: _QUEUE,
    MapType.BLOOM_FILTER: _QUEUE,
    MapType.RINGBUF: _RING,
    MapType.USER_RINGBUF: _RING,
    MapType.SOCKMAP: _Rule(_WORD, (4, 8)),
    MapType.SOCKHASH: _Rule(_SOME, (4, 8)),
    MapType.REUSEPORT_SOCKARRAY: _Rule(_WORD, (4, 8)),
    MapType.SK_STORAGE: _STORAGE,
    MapType.INODE_STORAGE: _STORAGE,
    MapType.TASK_STORAGE: _STORAGE,
    MapType.CGRP_STORAGE: _STORAGE,
    MapType.STACK_TRACE: _Rule(_WORD, range(8, 1 << 32, 8)),
    MapType.DEVMAP: _Rule(_WORD, (4, 8)),
    MapType.DEVMAP_HASH: _Rule(_WORD, (4, 8)),
    MapType.CPUMAP: _Rule(_WORD, (4, 8)),
    MapType.XSKMAP: _HANDLES,
}


_WITH_LOCKS: Final = (
    MapType.HASH,
    MapType.ARRAY,
    MapType.SK_STORAGE,
    MapType.INODE_STORAGE,
    MapType.TASK_STORAGE,
    MapType.CGRP_STORAGE,
)
_WITH_TIMERS: Final = (MapType.HASH, MapType.LRU_HASH, MapType.ARRAY)
# Structures within values that belong to the kernel, by name, and the maps that may have them:
# map_check_btf() in kernel/bpf/syscall.c.
_OWNED: Final = {
    BpfSpinLock.kernel_name: _WITH_LOCKS,
    BpfTimer.kernel_name: _WITH_TIMERS,
    BpfWq.kernel_name: _WITH_TIMERS,
}


def kernel_owned(shape: MapMember, base: int = 0) -> Iterator[tuple[int, int, str]]:
    """Which bytes of a value belong to the kernel, from and to, and the name in BTF: locks, timers."""
    if not isinstance(shape, type):
        return
    for field in shape.fields.values():
        if isinstance(field, Nested):
            start = base + field.offset
            if field.struct.kernel_name in _OWNED:
                yield start, start + field.size, field.struct.kernel_name
            else:
                yield from kernel_owned(field.struct, start)


def refusal(spec: MapSpec) -> str | None:
    """Why every kernel refuses to create the map, and what to write; ``None`` where it may be created."""
    rule = _RULES.get(spec.type)
    if rule is None:
        return None
    for what, size, sizes in (("keys", spec.key_size, rule.key), ("values", spec.value_size, rule.value)):
        if size not in sizes:
            return f"{_a(spec.type)} takes {_sizes(what, sizes)}, not of {size}"
    if rule.key is _WORD and rule.value is _SOME and not isinstance(spec.key, (int, Field)):
        return f"the key of {_a(spec.type)} is an integer, U32(), and no structure"
    if rule.flags & ~spec.flags:
        return f"{_a(spec.type)} is made with flags=BPF_F_NO_PREALLOC (pybpfasm.kernel.enums)"
    entries = spec.max_entries
    if rule is _RING and (entries < _PAGE or entries & entries - 1):
        return f"the size of {_a(spec.type)}, max_entries, is a power of 2 from {_PAGE} on, not {entries}"
    if entries not in rule.entries:
        wanted = "0" if rule.entries is _NONE else "at least 1"
        return f"max_entries of {_a(spec.type)} is {wanted}, not {entries}"
    for _, _, name in kernel_owned(spec.value):
        # Where the kernel takes no types, it knows of none of these.
        if spec.type not in _OWNED[name] and spec.type not in WITHOUT_BTF:
            others = ", ".join(one.name for one in _OWNED[name])
            return f"{_a(spec.type)} has no {name} in its values: {others} can have one"
    return None


def _a(type: MapType) -> str:
    return f"{'an' if type.name.startswith(('A', 'I', 'L', 'SK_', 'X')) else 'a'} {type.name}"


def _sizes(what: str, sizes: range | tuple[int, ...]) -> str:
    if sizes is _NONE:
        return f"no {what}"
    if isinstance(sizes, tuple):
        return f"{what} of {' or '.join(map(str, sizes))} bytes"
    step = "" if sizes.step == 1 else f", in steps of {sizes.step}"
    if sizes.stop == 1 << 32:
        return f"{what} of at least {sizes.start} byte{'s' if sizes.start > 1 else ''}{step}"
    return f"{what} of {sizes.start} to {sizes[-1]} bytes{step}"
