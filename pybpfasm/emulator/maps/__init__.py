# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of the kernel's maps, with its limits, flags and errno values.

A test uses a map with Python values, as with `loader.objects.Map`; programs use it through helpers, with
bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pybpfasm.emulator.faults import EmulatorError
from pybpfasm.emulator.maps.base import Map, MapError
from pybpfasm.emulator.maps.holders import MapOfMaps, ProgArray, Redirects, SkStorage, SockHash, SockMap
from pybpfasm.emulator.maps.streams import PerfEventArray, Queue, Record, RingBuf, UserRingBuf
from pybpfasm.emulator.maps.tables import (
    Array,
    Hash,
    LpmTrie,
    LruHash,
    LruPerCpuHash,
    PerCpu,
    PerCpuArray,
    PerCpuHash,
)
from pybpfasm.kernel.enums import MapType
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Emulator

__all__ = [
    "Array",
    "Hash",
    "LpmTrie",
    "LruHash",
    "LruPerCpuHash",
    "Map",
    "MapError",
    "MapOfMaps",
    "PerCpu",
    "PerCpuArray",
    "PerCpuHash",
    "PerfEventArray",
    "ProgArray",
    "Queue",
    "Record",
    "Redirects",
    "RingBuf",
    "SkStorage",
    "SockHash",
    "SockMap",
    "UserRingBuf",
    "make",
]

_MODELS: Final[dict[MapType, type[Map]]] = {
    MapType.HASH: Hash,
    MapType.LRU_HASH: LruHash,
    MapType.PERCPU_HASH: PerCpuHash,
    MapType.LRU_PERCPU_HASH: LruPerCpuHash,
    MapType.ARRAY: Array,
    MapType.PERCPU_ARRAY: PerCpuArray,
    MapType.QUEUE: Queue,
    MapType.STACK: Queue,
    MapType.LPM_TRIE: LpmTrie,
    MapType.RINGBUF: RingBuf,
    MapType.USER_RINGBUF: UserRingBuf,
    MapType.PERF_EVENT_ARRAY: PerfEventArray,
    MapType.SOCKHASH: SockHash,
    MapType.SOCKMAP: SockMap,
    MapType.SK_STORAGE: SkStorage,
    MapType.ARRAY_OF_MAPS: MapOfMaps,
    MapType.HASH_OF_MAPS: MapOfMaps,
    MapType.PROG_ARRAY: ProgArray,
    MapType.DEVMAP: Redirects,
    MapType.DEVMAP_HASH: Redirects,
    MapType.CPUMAP: Redirects,
    MapType.XSKMAP: Redirects,
}


def make(emulator: Emulator, spec: MapSpec) -> Map:
    """The model of the map that *spec* describes; raises `EmulatorError` where there is none of its type."""
    model = _MODELS.get(spec.type)
    if model is None:
        known = ", ".join(sorted(one.name for one in _MODELS))
        raise EmulatorError(
            f"map {spec.name}: the emulator has no model of {spec.type.name} maps; it has {known}"
        )
    return model(emulator, spec)
