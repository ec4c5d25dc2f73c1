# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Hashes, arrays and tries, one value for all CPUs or one for each."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from pybpfasm.emulator.errnos import E2BIG, EEXIST, EINVAL, ENOENT, ENOSPC
from pybpfasm.emulator.faults import EmulatorError
from pybpfasm.emulator.maps.base import Map
from pybpfasm.emulator.memory import Guarded, Memory, Region
from pybpfasm.kernel.enums import BPF_EXIST, BPF_F_LOCK, BPF_NOEXIST
from pybpfasm.mapaccess import pack
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Emulator

__all__ = [
    "Array",
    "Hash",
    "LpmTrie",
    "LruHash",
    "LruPerCpuHash",
    "PerCpu",
    "PerCpuArray",
    "PerCpuHash",
]


class Hash(Map):
    """HASH: a key that is updated gets a new value, and pointers to the old one keep the old."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._entries: OrderedDict[bytes, Memory | Guarded] = OrderedDict()
        super().__init__(emulator, spec)

    def find(self, key: bytes) -> Region | None:
        return self._entries.get(key)

    def _permits(self, key: bytes, flags: int) -> int:
        """The flags' errno, or 0."""
        if flags & ~BPF_F_LOCK > BPF_EXIST:
            return -EINVAL
        if flags & BPF_F_LOCK and not any(name == "bpf_spin_lock" for _, _, name in self.guards):
            return -EINVAL
        exists = key in self._entries
        if exists and flags & ~BPF_F_LOCK == BPF_NOEXIST:
            return -EEXIST
        if not exists and flags & ~BPF_F_LOCK == BPF_EXIST:
            return -ENOENT
        return 0

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        error = self._permits(key, flags)
        if error:
            return error
        old = self._entries.get(key)
        if old is None and len(self._entries) >= self.max_entries and not self._make_room():
            return -E2BIG
        value = self._without_guards(value)
        if old is not None and flags & BPF_F_LOCK:
            old.data[:] = value
            return 0
        if old is not None:
            self.emulator.cancel_timers(old)
        self._entries[key] = self.new_value(value)
        return 0

    def _make_room(self) -> bool:
        return False

    def remove(self, key: bytes) -> int:
        old = self._entries.pop(key, None)
        if old is None:
            return -ENOENT
        self.emulator.cancel_timers(old)
        return 0

    def entries(self) -> list[tuple[bytes, Region]]:
        return list(self._entries.items())

    def _keys(self) -> list[bytes]:
        return list(self._entries)

    def _get(self, key: bytes) -> Any:
        value = self._entries.get(key)
        return None if value is None else self._shown(value.data)

    def pop(self, key: Any) -> Any:
        """The value for *key*, which is deleted, or ``None``."""
        value = self.lookup(key)
        if value is not None:
            self.delete(key)
        return value

    def items_raw(self) -> list[tuple[bytes, Any]]:
        return sorted((key, self._without_guards(bytes(value.data))) for key, value in self._entries.items())


class LruHash(Hash):
    """LRU_HASH: when full, the entry that was used longest ago goes.

    The kernel's choice is an approximation of that, made in batches for each CPU.
    """

    def find(self, key: bytes) -> Region | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        if flags > BPF_EXIST:
            return -EINVAL
        error = super().put(key, value, flags)
        if not error:
            self._entries.move_to_end(key)
        return error

    def _make_room(self) -> bool:
        oldest = next(iter(self._entries))
        self.remove(oldest)
        return True


class PerCpu(Map):
    """What the per-CPU maps share: a value is one for each CPU."""

    def _split(self, value: Any) -> list[bytes]:
        cpus = self.emulator.cpus
        each = list(value) if isinstance(value, (list, tuple)) else [value] * cpus
        if len(each) != cpus:
            raise EmulatorError(f"map {self.name}: a value needs {cpus} values, one for each CPU")
        return [
            pack(self.spec.value, one, self.value_size, self.order, f"a value of map {self.name}")
            for one in each
        ]

    def of_cpu(self, key: bytes, cpu: int) -> Region | None:
        """The value of one CPU, for ``map_lookup_percpu_elem``."""
        raise NotImplementedError


class PerCpuHash(Hash, PerCpu):
    """PERCPU_HASH: an update by a program sets the value of its own CPU; a new key has zeros for others."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._values: OrderedDict[bytes, list[Memory]] = OrderedDict()
        super().__init__(emulator, spec)

    def find(self, key: bytes) -> Region | None:
        return self.of_cpu(key, self.emulator.cpu)

    def of_cpu(self, key: bytes, cpu: int) -> Region | None:
        values = self._values.get(key)
        return None if values is None or cpu >= len(values) else values[cpu]

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        return self._put(key, None, value, flags)

    def _put(self, key: bytes, each: list[bytes] | None, value: bytes, flags: int) -> int:
        if flags > BPF_EXIST:
            return -EINVAL
        values = self._values.get(key)
        if values is not None and flags == BPF_NOEXIST:
            return -EEXIST
        if values is None and flags == BPF_EXIST:
            return -ENOENT
        if values is None:
            if len(self._values) >= self.max_entries and not self._make_room():
                return -E2BIG
            values = self._values[key] = [self._memory() for _ in range(self.emulator.cpus)]
        if each is None:
            values[self.emulator.cpu].data[:] = value
        else:
            for memory, one in zip(values, each, strict=True):
                memory.data[:] = one
        return 0

    def _memory(self) -> Memory:
        return Memory(f"map {self.name}'s value", bytearray(self.value_size), self.order)

    def remove(self, key: bytes) -> int:
        return 0 if self._values.pop(key, None) is not None else -ENOENT

    def entries(self) -> list[tuple[bytes, Region]]:
        return [(key, values[self.emulator.cpu]) for key, values in self._values.items()]

    def _keys(self) -> list[bytes]:
        return list(self._values)

    def _get(self, key: bytes) -> Any:
        values = self._values.get(key)
        return None if values is None else [self._shown(one.data) for one in values]

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        return self._put(key, self._split(value), b"", flags)

    def items_raw(self) -> list[tuple[bytes, Any]]:
        return sorted((key, tuple(bytes(v.data) for v in values)) for key, values in self._values.items())


class LruPerCpuHash(PerCpuHash):
    """LRU_PERCPU_HASH."""

    def find(self, key: bytes) -> Region | None:
        if key in self._values:
            self._values.move_to_end(key)
        return super().find(key)

    def _put(self, key: bytes, each: list[bytes] | None, value: bytes, flags: int) -> int:
        error = super()._put(key, each, value, flags)
        if not error:
            self._values.move_to_end(key)
        return error

    def _make_room(self) -> bool:
        self._values.popitem(last=False)
        return True


class Array(Map):
    """ARRAY: every index exists, with zeros at first, and can't be deleted."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._elements: dict[int, Memory | Guarded] = {}
        super().__init__(emulator, spec)

    def element(self, index: int) -> Memory | Guarded:
        """The memory of element *index*."""
        found = self._elements.get(index)
        if found is None:
            found = self._elements[index] = self.new_value(bytes(self.value_size))
        return found

    def find(self, key: bytes) -> Region | None:
        index = int.from_bytes(key, self.order)
        return self.element(index) if index < self.max_entries else None

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        if flags & ~BPF_F_LOCK > BPF_EXIST:
            return -EINVAL
        index = int.from_bytes(key, self.order)
        if index >= self.max_entries:
            return -E2BIG
        if flags & BPF_NOEXIST:
            return -EEXIST
        if flags & BPF_F_LOCK and not any(name == "bpf_spin_lock" for _, _, name in self.guards):
            return -EINVAL
        element = self.element(index)
        kept = [(start, end, element.data[start:end]) for start, end, _ in self.guards]
        element.data[:] = value
        for start, end, data in kept:
            element.data[start:end] = data
        self.emulator.cancel_timers(element)
        return 0

    def remove(self, key: bytes) -> int:
        return -EINVAL

    def entries(self) -> list[tuple[bytes, Region]]:
        return [(key, self.element(i)) for i, key in enumerate(self._keys())]

    def _keys(self) -> list[bytes]:
        return [i.to_bytes(4, self.order) for i in range(self.max_entries)]

    def _get(self, key: bytes) -> Any:
        index = int.from_bytes(key, self.order)
        return self._shown(self.element(index).data) if index < self.max_entries else None

    def count(self) -> int:
        return self.max_entries

    def clear(self) -> None:
        """Set every element to zeros."""
        for element in self._elements.values():
            element.data[:] = bytes(self.value_size)
            self.emulator.cancel_timers(element)

    def items_raw(self) -> list[tuple[bytes, Any]]:
        return [
            (key, self._without_guards(bytes(self.element(i).data))) for i, key in enumerate(self._keys())
        ]


class PerCpuArray(Array, PerCpu):
    """PERCPU_ARRAY."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._each: dict[tuple[int, int], Memory] = {}
        super().__init__(emulator, spec)

    def _one(self, index: int, cpu: int) -> Memory:
        found = self._each.get((index, cpu))
        if found is None:
            found = Memory(f"map {self.name}'s value", bytearray(self.value_size), self.order)
            self._each[index, cpu] = found
        return found

    def element(self, index: int) -> Memory:
        return self._one(index, self.emulator.cpu)

    def of_cpu(self, key: bytes, cpu: int) -> Region | None:
        index = int.from_bytes(key, self.order)
        if index >= self.max_entries or cpu >= self.emulator.cpus:
            return None
        return self._one(index, cpu)

    def _permits_index(self, key: bytes, flags: int) -> int:
        if flags > BPF_EXIST:
            return -EINVAL
        if int.from_bytes(key, self.order) >= self.max_entries:
            return -E2BIG
        return -EEXIST if flags == BPF_NOEXIST else 0

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        error = self._permits_index(key, flags)
        if not error:
            index = int.from_bytes(key, self.order)
            for cpu, one in enumerate(self._split(value)):
                self._one(index, cpu).data[:] = one
        return error

    def _get(self, key: bytes) -> Any:
        index = int.from_bytes(key, self.order)
        if index >= self.max_entries:
            return None
        return [self._shown(self._one(index, cpu).data) for cpu in range(self.emulator.cpus)]

    def clear(self) -> None:
        self._each.clear()

    def items_raw(self) -> list[tuple[bytes, Any]]:
        cpus = range(self.emulator.cpus)
        return [
            (key, tuple(bytes(self._one(i, cpu).data) for cpu in cpus)) for i, key in enumerate(self._keys())
        ]


class LpmTrie(Map):
    """LPM_TRIE: a key is a prefix length in bits (4 bytes, host order) and that many bits."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._nodes: dict[tuple[int, int], tuple[bytes, Memory | Guarded]] = {}
        super().__init__(emulator, spec)
        self._bits = (self.key_size - 4) * 8

    def _parse(self, key: bytes) -> tuple[int, int]:
        """Prefix length, and the bits in it."""
        length = int.from_bytes(key[:4], self.order)
        bits = int.from_bytes(key[4:], "big")
        return length, bits >> max(0, self._bits - length)

    def find(self, key: bytes) -> Region | None:
        length, bits = self._parse(key)
        if length > self._bits:
            return None
        for shorter in range(length, -1, -1):
            node = self._nodes.get((shorter, bits >> (length - shorter)))
            if node is not None:
                return node[1]
        return None

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        length, bits = self._parse(key)
        if flags > BPF_EXIST or length > self._bits:
            return -EINVAL
        old = self._nodes.get((length, bits))
        if old is not None and flags == BPF_NOEXIST:
            return -EEXIST
        if old is None and flags == BPF_EXIST:
            return -ENOENT
        if old is None and len(self._nodes) >= self.max_entries:
            return -ENOSPC
        self._nodes[length, bits] = (key, self.new_value(value))
        return 0

    def remove(self, key: bytes) -> int:
        length, bits = self._parse(key)
        if length > self._bits:
            return -EINVAL
        return 0 if self._nodes.pop((length, bits), None) is not None else -ENOENT

    def _keys(self) -> list[bytes]:
        return [key for key, _ in self._nodes.values()]

    def _get(self, key: bytes) -> Any:
        found = self.find(key)
        return None if found is None else self._shown(found.data)

    def __contains__(self, key: Any) -> bool:
        return self._parse(self._key(key)) in self._nodes

    def items_raw(self) -> list[tuple[bytes, Any]]:
        return sorted((key, bytes(value.data)) for key, value in self._nodes.values())
