# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What `pybpfasm.maprules` says of maps, and what the running kernel does with them."""

from __future__ import annotations

import builtins
import errno
import itertools

import pytest

from loader.errors import BpfError
from loader.features import Feature
from loader.objects import Map, possible_cpus
from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC, MapType
from pybpfasm.kernel.values import BpfSpinLock, BpfTimer, LpmTrieKey
from pybpfasm.layout import U32, U64, Nested, Struct
from pybpfasm.maprules import refusal
from pybpfasm.maps import MapMember, MapSpec
from tests.requires import requires

# Those of which every kernel that the tests run on has the type.
TYPES = [
    MapType.HASH,
    MapType.LRU_PERCPU_HASH,
    MapType.ARRAY,
    MapType.PERCPU_ARRAY,
    MapType.PROG_ARRAY,
    MapType.PERF_EVENT_ARRAY,
    MapType.ARRAY_OF_MAPS,
    MapType.HASH_OF_MAPS,
    MapType.LPM_TRIE,
    MapType.QUEUE,
    MapType.STACK,
    MapType.RINGBUF,
    MapType.SOCKMAP,
    MapType.SOCKHASH,
    MapType.REUSEPORT_SOCKARRAY,
    MapType.SK_STORAGE,
    MapType.STACK_TRACE,
    MapType.DEVMAP,
    MapType.CPUMAP,
    MapType.XSKMAP,
]
INNER = MapSpec("inner", MapType.ARRAY, 4, 4, 1)


class Index(Struct):
    """An index that is no integer in BTF."""

    number = U32()


def _refused(spec: MapSpec) -> BpfError | None:
    try:
        Map.create(spec).close()
    except BpfError as error:
        return error
    return None


@pytest.mark.parametrize("type", TYPES, ids=lambda type: type.name)
def test_the_kernel_agrees(type: MapType) -> None:
    """Every combination of sizes around the limits. The other way is not asked for: a kernel has reasons of
    its own, of which these alone are known here."""
    inner = INNER if type.name.endswith("OF_MAPS") else None
    created = wrong = 0
    for key, value, entries, flags in itertools.product(
        (None, 1, 4, 5, 8, 260, 261), (None, 4, 8, 12), (0, 1, 5000, 65536), (0, BPF_F_NO_PREALLOC)
    ):
        spec = MapSpec("m", type, key, value, entries, flags, inner=inner)
        error, said = _refused(spec), refusal(spec)
        if error is None:
            assert said is None, spec
            created += 1
        elif said is not None:
            assert error.errno != errno.EINVAL or error.hint == said
            wrong += 1
        else:
            # More entries than there are CPUs, flags that the type does not have.
            assert type is MapType.CPUMAP or flags or error.errno == errno.E2BIG, spec
    assert created and wrong


@pytest.mark.parametrize(
    ("type", "entries", "flags"),
    [(MapType.ARRAY, 1, 0), (MapType.PERCPU_ARRAY, 1, 0), (MapType.SK_STORAGE, 0, BPF_F_NO_PREALLOC)],
    ids=["ARRAY", "PERCPU_ARRAY", "SK_STORAGE"],
)
def test_an_index_is_no_structure(type: MapType, entries: int, flags: int) -> None:
    error = _refused(MapSpec("m", type, Index, U32(), entries, flags))
    assert error is not None and error.errno == errno.EINVAL
    assert error.hint.endswith(f" {type.name} is an integer, U32(), and no structure")
    assert _refused(MapSpec("m", type, U32(), U32(), entries, flags)) is None


class Prefix(LpmTrieKey):
    """Of a trie."""

    bits = U32()


# Types whose values may be structures, with a key, entries and flags.
VALUES: list[tuple[MapType, MapMember, int, int]] = [
    (MapType.HASH, U32(), 1, 0),
    (MapType.LRU_HASH, U32(), 1, 0),
    (MapType.PERCPU_HASH, U32(), 1, 0),
    (MapType.LRU_PERCPU_HASH, U32(), possible_cpus(), 0),
    (MapType.ARRAY, U32(), 1, 0),
    (MapType.PERCPU_ARRAY, U32(), 1, 0),
    (MapType.LPM_TRIE, Prefix, 1, BPF_F_NO_PREALLOC),
    (MapType.QUEUE, None, 1, 0),
    (MapType.STACK_TRACE, U32(), 1, 0),
    (MapType.SK_STORAGE, U32(), 0, BPF_F_NO_PREALLOC),
]


@requires(Feature.TIMER)
@pytest.mark.parametrize(("type", "key", "entries", "flags"), VALUES, ids=[one[0].name for one in VALUES])
@pytest.mark.parametrize("owned", [BpfSpinLock, BpfTimer], ids=["lock", "timer"])
def test_what_is_the_kernels_in_values(
    type: MapType, key: MapMember, entries: int, flags: int, owned: builtins.type[Struct]
) -> None:
    """The kernel takes locks and timers in some maps only, and both ways are as foreseen."""

    class Value(Struct):
        number = U64()
        inner = Nested(owned)

    spec = MapSpec("m", type, key, Value, entries, flags)
    error, said = _refused(spec), refusal(spec)
    assert (error is None) == (said is None)
    if error is not None:
        assert error.hint == said and f"has no {owned.kernel_name} in its values" in error.hint
