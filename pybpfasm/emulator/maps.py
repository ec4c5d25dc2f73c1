# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of the kernel's maps, with its limits, flags and errno values.

A test uses a map with Python values, as with `loader.objects.Map`; programs use it through helpers, with
bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pybpfasm.emulator import errnos
from pybpfasm.emulator.errnos import E2BIG, EAGAIN, EEXIST, EINVAL, ENOENT, ENOSPC, EOPNOTSUPP
from pybpfasm.emulator.faults import EmulatorError
from pybpfasm.emulator.memory import Guarded, Memory, Opaque, Order, Region
from pybpfasm.emulator.sockets import Socket
from pybpfasm.kernel.enums import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    BPF_NOEXIST,
    MapType,
    TcpState,
)
from pybpfasm.kernel.values import BpfSpinLock, BpfTimer, BpfWq
from pybpfasm.layout import Field, Nested, Struct
from pybpfasm.maprules import refusal
from pybpfasm.maps import MapMember, MapSpec

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Emulator

__all__ = ["Map", "MapError"]

_PER_CPU: Final = frozenset({MapType.PERCPU_ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH})
# Structures within values that belong to the kernel, by name in BTF.
_KERNEL_OWNED: Final = frozenset(struct.kernel_name for struct in (BpfSpinLock, BpfTimer, BpfWq))


class MapError(EmulatorError):
    """The map refused: ``errno`` says why, as the kernel does."""

    def __init__(self, name: str, what: str, number: int) -> None:
        self.errno = number
        super().__init__(f"map {name}: {what}: {errnos.name(number)}")


def _encode(shape: MapMember, value: Any, size: int, order: Order, role: str) -> bytes:
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
    elif isinstance(shape, type) and issubclass(shape, Struct):
        values = value if isinstance(value, Mapping) else getattr(value, "as_dict", dict)()
        if not values and not isinstance(value, Mapping):
            raise EmulatorError(f"{role} of type {shape.__name__} can't be made from {value!r}")
        data = shape.pack(byteorder=order, **values)
    elif isinstance(shape, Field):
        data = shape.to_bytes(value, order)
    elif isinstance(value, int):
        data = value.to_bytes(size, order, signed=value < 0)
    else:
        raise EmulatorError(f"{role} of {size} bytes can't be made from {value!r}")
    if len(data) != size:
        raise EmulatorError(f"{role} has {len(data)} bytes, the map takes {size}")
    return data


def _decode(shape: MapMember, data: bytes, order: Order) -> Any:
    if isinstance(shape, type) and issubclass(shape, Struct):
        return shape.unpack(data, byteorder=order)
    if isinstance(shape, Field):
        return shape.from_bytes(data, order)
    return data


def _guards(shape: MapMember, base: int = 0) -> list[tuple[int, int, str]]:
    """Byte ranges of *shape* that only helpers may touch."""
    found: list[tuple[int, int, str]] = []
    if isinstance(shape, type) and issubclass(shape, Struct):
        for one in shape.fields.values():
            if isinstance(one, Nested):
                inner = one.struct
                start = base + one.offset
                if inner.kernel_name in _KERNEL_OWNED:
                    found.append((start, start + inner.sizeof, inner.kernel_name))
                else:
                    found += _guards(inner, start)
    return found


class Map:
    """A map; `make` gives the class that models its type."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self.emulator = emulator
        self.spec = spec
        self.name = spec.name
        self.type = spec.type
        self.key_size = spec.key_size
        self.value_size = spec.value_size
        self.max_entries = spec.max_entries
        self.order: Order = emulator.byteorder
        self.region = Opaque(f"map {spec.name}", self)
        self.region.start = emulator.numbers.start()
        self.guards = _guards(spec.value)
        self.frozen = False
        refused = refusal(spec)
        if refused is not None:
            raise MapError(self.name, refused, EINVAL)

    def __repr__(self) -> str:
        return f"<{self.type.name} map {self.name}>"

    # What programs see.
    def new_value(self, data: bytes) -> Memory | Guarded:
        """Memory for one value."""
        value: Memory | Guarded
        kind = f"map {self.name}'s value"
        if self.guards:
            value = Guarded(kind, bytearray(data), self.order, self.guards)
        else:
            value = Memory(kind, bytearray(data), self.order)
        value.readable = not self.spec.flags & BPF_F_WRONLY_PROG
        value.writable = not self.spec.flags & BPF_F_RDONLY_PROG
        return value

    def find(self, key: bytes) -> Region | None:
        """What ``map_lookup_elem`` returns a pointer to."""
        raise self._cannot("look-ups by programs")

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        """``map_update_elem``: 0 or a negative errno."""
        return -EOPNOTSUPP

    def remove(self, key: bytes) -> int:
        """``map_delete_elem``: 0 or a negative errno."""
        return -EOPNOTSUPP

    def forget(self, socket: Socket) -> None:
        """A socket closes."""

    def entries(self) -> list[tuple[bytes, Region]]:
        """Keys and values for ``for_each_map_elem``."""
        raise self._cannot("for_each_map_elem")

    def _cannot(self, what: str) -> EmulatorError:
        return EmulatorError(f"map {self.name}: a {self.type.name} map has no {what}")

    # What a test sees.
    def _key(self, key: Any) -> bytes:
        if key is None and not self.key_size:
            return b""
        return _encode(self.spec.key, key, self.key_size, self.order, f"a key of map {self.name}")

    def _value(self, value: Any) -> bytes:
        data = _encode(self.spec.value, value, self.value_size, self.order, f"a value of map {self.name}")
        return self._without_guards(data)

    def _without_guards(self, data: bytes) -> bytes:
        if not self.guards:
            return data
        out = bytearray(data)
        for start, end, _ in self.guards:
            out[start:end] = bytes(end - start)
        return bytes(out)

    def _shown(self, data: bytes | bytearray) -> Any:
        return _decode(self.spec.value, self._without_guards(bytes(data)), self.order)

    def _keys(self) -> list[bytes]:
        raise self._cannot("keys")

    def _get(self, key: bytes) -> Any:
        raise self._cannot("look-ups")

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        return self.put(key, self._value(value), flags)

    def lookup(self, key: Any) -> Any:
        """The value for *key*, or ``None``."""
        return self._get(self._key(key))

    def update(self, key: Any, value: Any, flags: int = BPF_ANY) -> None:
        """Store a value; raises `MapError` with the kernel's errno."""
        if self.frozen:
            raise MapError(self.name, "frozen", errnos.EPERM)
        if flags & BPF_F_LOCK and not any(name == "bpf_spin_lock" for _, _, name in self.guards):
            raise MapError(self.name, "BPF_F_LOCK for values without a spin lock", EINVAL)
        error = self._set(self._key(key), value, flags)
        if error:
            raise MapError(self.name, f"update of {key!r}", -error)

    def delete(self, key: Any) -> bool:
        """Delete *key*; whether it was there. Raises `MapError`."""
        error = self.remove(self._key(key))
        if error == -ENOENT:
            return False
        if error:
            raise MapError(self.name, f"delete of {key!r}", -error)
        return True

    def keys(self) -> Iterator[Any]:
        """All keys."""
        return iter([_decode(self.spec.key, key, self.order) for key in self._keys()])

    def values(self) -> Iterator[Any]:
        """All values."""
        return (self._get(key) for key in self._keys())

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All keys with their values."""
        return ((_decode(self.spec.key, key, self.order), self._get(key)) for key in self._keys())

    def items_raw(self) -> list[tuple[bytes, Any]]:
        """Keys and values as bytes, sorted by key; of a per-CPU map, a tuple with the bytes of each CPU."""
        raise self._cannot("entries")

    def count(self) -> int:
        """How many entries there are."""
        return len(self._keys())

    def clear(self) -> None:
        """Delete every entry."""
        for key in self._keys():
            self.remove(key)

    def __getitem__(self, key: Any) -> Any:
        value = self.lookup(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update(key, value)

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: Any) -> bool:
        return self._key(key) in self._keys()

    def __len__(self) -> int:
        return self.count()

    def __iter__(self) -> Iterator[Any]:
        return self.keys()


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


class _PerCpu(Map):
    """What the per-CPU maps share: a value is one for each CPU."""

    def _split(self, value: Any) -> list[bytes]:
        cpus = self.emulator.cpus
        each = list(value) if isinstance(value, (list, tuple)) else [value] * cpus
        if len(each) != cpus:
            raise EmulatorError(f"map {self.name}: a value needs {cpus} values, one for each CPU")
        return [
            _encode(self.spec.value, one, self.value_size, self.order, f"a value of map {self.name}")
            for one in each
        ]

    def of_cpu(self, key: bytes, cpu: int) -> Region | None:
        """The value of one CPU, for ``map_lookup_percpu_elem``."""
        raise NotImplementedError


class PerCpuHash(Hash, _PerCpu):
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

    def items_raw(self) -> list[tuple[bytes, Any]]:
        return [
            (key, self._without_guards(bytes(self.element(i).data))) for i, key in enumerate(self._keys())
        ]


class PerCpuArray(Array, _PerCpu):
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

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        return super().put(key, value, flags)

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


class Queue(Map):
    """QUEUE and STACK."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._items: deque[bytes] = deque()
        super().__init__(emulator, spec)

    def push(self, value: bytes, flags: int) -> int:
        """``map_push_elem``."""
        if flags & BPF_NOEXIST or flags > BPF_EXIST:
            return -EINVAL
        if len(self._items) >= self.max_entries:
            if not flags & BPF_EXIST:
                return -E2BIG
            self._items.popleft()
        self._items.append(value)
        return 0

    def peek(self, *, remove: bool = False) -> bytes | None:
        """The value that comes next, or ``None``."""
        if not self._items:
            return None
        if self.type is MapType.STACK:
            return self._items.pop() if remove else self._items[-1]
        return self._items.popleft() if remove else self._items[0]

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        return self.push(value, flags)

    def _get(self, key: bytes) -> Any:
        found = self.peek()
        return None if found is None else self._shown(found)

    def pop(self, key: Any = None) -> Any:
        """The value that comes next, removed, or ``None``."""
        found = self.peek(remove=True)
        return None if found is None else self._shown(found)

    def count(self) -> int:
        return len(self._items)

    def items_raw(self) -> list[tuple[bytes, Any]]:
        return [(b"", value) for value in self._items]


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


class RingBuf(Map):
    """RINGBUF: records in the order in which they were reserved; full until a reader takes some out."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        # Each: [bytes taken in the ring, data, "busy" | "done" | "discarded"]
        self._records: deque[Record] = deque()
        self._produced = 0
        self._consumed = 0
        super().__init__(emulator, spec)

    def reserve(self, size: int) -> Record | None:
        """Room for *size* bytes, or ``None``."""
        taken = (size + 8 + 7) & ~7
        if size > 0x3FFFFFFF or taken > self.max_entries:
            return None
        if self._produced + taken - self._consumed > self.max_entries - 1:
            return None
        self._produced += taken
        record = Record(self, size, taken)
        self._records.append(record)
        return record

    def output(self, data: bytes) -> int:
        """``ringbuf_output``."""
        record = self.reserve(len(data))
        if record is None:
            return -EAGAIN
        record.data[:] = data
        record.state = "done"
        return 0

    def consume(self) -> list[Any]:
        """Take out the finished records; each as the map's value type, or bytes."""
        out = []
        while self._records and self._records[0].state != "busy":
            record = self._records.popleft()
            self._consumed += record.taken
            if record.state == "done":
                shape = self.spec.value
                out.append(_decode(shape, bytes(record.data), self.order))
        return out

    def query(self, what: int) -> int:
        """``ringbuf_query``: available bytes, size, or one of the two positions."""
        available = self._produced - self._consumed
        return {0: available, 1: self.max_entries, 2: self._consumed, 3: self._produced}.get(what, 0)

    def count(self) -> int:
        return len(self._records)

    def items_raw(self) -> list[tuple[bytes, Any]]:
        return [(b"", bytes(record.data)) for record in self._records if record.state == "done"]


class PerfEventArray(Map):
    """PERF_EVENT_ARRAY: ``readers`` are the CPUs whose events somebody reads, all at first."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self.records: deque[bytes] = deque()
        self.readers = set(range(emulator.cpus))
        super().__init__(emulator, spec)

    def consume(self) -> list[bytes]:
        """Take out what programs have put in."""
        out = list(self.records)
        self.records.clear()
        return out

    def count(self) -> int:
        return len(self.records)


class UserRingBuf(Map):
    """USER_RINGBUF: records from user space, which a test puts in with `put_record`."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self.records: deque[bytes] = deque()
        super().__init__(emulator, spec)

    def put_record(self, data: bytes) -> None:
        """Let ``user_ringbuf_drain`` find *data*; raises `MapError` with ENOSPC where the ring is full."""
        taken = sum(-(-(len(one) + 8) // 8) * 8 for one in (*self.records, data))
        if taken > self.max_entries:
            raise MapError(self.name, "full", ENOSPC)
        self.records.append(data)

    def count(self) -> int:
        return len(self.records)


class Record(Memory):
    """A reservation in a ring buffer."""

    __slots__ = ("ring", "state", "taken")

    def __init__(self, ring: RingBuf, size: int, taken: int) -> None:
        super().__init__(f"a record of ring buffer {ring.name}", bytearray(size), ring.order)
        self.ring = ring
        self.taken = taken
        self.state = "busy"


class SockHash(Map):
    """SOCKHASH: sockets by key. A socket that closes leaves."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._sockets: dict[bytes, Socket] = {}
        super().__init__(emulator, spec)

    def socket(self, key: bytes) -> Socket | None:
        """The socket of *key*."""
        return self._sockets.get(key)

    def put_socket(self, key: bytes, socket: Socket, flags: int) -> int:
        """``sock_hash_update``: 0 or a negative errno."""
        if flags > BPF_EXIST:
            return -EINVAL
        if socket.closed or socket.state not in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.LISTEN):
            return -EOPNOTSUPP
        error = self._permits(key, flags)
        if error:
            return error
        old = self._sockets.get(key)
        if old is not None and self in old.members:
            old.members.remove(self)
        self._sockets[key] = socket
        socket.members.append(self)
        return 0

    def _permits(self, key: bytes, flags: int) -> int:
        exists = key in self._sockets
        if exists and flags == BPF_NOEXIST:
            return -EEXIST
        if not exists and flags == BPF_EXIST:
            return -ENOENT
        if not exists and len(self._sockets) >= self.max_entries:
            return -E2BIG
        return 0

    def remove(self, key: bytes) -> int:
        socket = self._sockets.pop(key, None)
        if socket is None:
            return self._missing
        if self in socket.members:
            socket.members.remove(self)
        return 0

    _missing = -ENOENT

    def forget(self, socket: Socket) -> None:
        for key in [key for key, one in self._sockets.items() if one is socket]:
            del self._sockets[key]

    def _keys(self) -> list[bytes]:
        return list(self._sockets)

    def _get(self, key: bytes) -> Any:
        return self._sockets.get(key)

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        if not isinstance(value, Socket):
            raise EmulatorError(f"map {self.name} holds sockets: give a Socket, not {value!r}")
        return self.put_socket(key, value, flags)


class SockMap(SockHash):
    """SOCKMAP: sockets by index."""

    _missing = -EINVAL

    def _permits(self, key: bytes, flags: int) -> int:
        if int.from_bytes(key, self.order) >= self.max_entries:
            return -E2BIG
        return super()._permits(key, flags)


class SkStorage(Map):
    """SK_STORAGE: a value for each socket, kept with the socket."""

    def of(self, socket: Socket) -> Any:
        """The value of *socket*, or ``None``."""
        found = socket.storage.get(self)
        return None if found is None else self._shown(found.data)

    def storage(self, socket: Socket, initial: bytes | None) -> Memory | None:
        """The value's memory; made with *initial* where there is none and that is given."""
        found = socket.storage.get(self)
        if found is None and initial is not None:
            found = Memory(f"map {self.name}'s value", bytearray(initial), self.order)
            socket.storage[self] = found
        return found

    def drop(self, socket: Socket) -> int:
        """``sk_storage_delete``."""
        return 0 if socket.storage.pop(self, None) is not None else -ENOENT

    def lookup(self, key: Any) -> Any:
        """The value of a `Socket`."""
        return self.of(key)


class _Holder(Map):
    """Maps of objects: other maps, programs."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._objects: dict[bytes, Any] = {}
        super().__init__(emulator, spec)

    @property
    def _indexed(self) -> bool:
        return self.type in (MapType.ARRAY_OF_MAPS, MapType.PROG_ARRAY)

    def object(self, key: bytes) -> Any:
        """What *key* stands for, or ``None``."""
        return self._objects.get(key)

    def find(self, key: bytes) -> Region | None:
        found = self._objects.get(key)
        return found.region if isinstance(found, Map) else None

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        self._accept(value)
        if self._indexed:
            if flags != BPF_ANY:
                return -EINVAL
            if int.from_bytes(key, self.order) >= self.max_entries:
                return -E2BIG
        else:
            error = self._permits(key, flags)
            if error:
                return error
            if key not in self._objects and len(self._objects) >= self.max_entries:
                return -E2BIG
        self._objects[key] = value
        return 0

    def _permits(self, key: bytes, flags: int) -> int:
        """The errno of flags that do not go with what is there, or 0."""
        if flags > BPF_EXIST:
            return -EINVAL
        if key in self._objects and flags == BPF_NOEXIST:
            return -EEXIST
        return -ENOENT if key not in self._objects and flags == BPF_EXIST else 0

    def _accept(self, value: Any) -> None:
        raise NotImplementedError

    def remove(self, key: bytes) -> int:
        if self._indexed and int.from_bytes(key, self.order) >= self.max_entries:
            return -E2BIG
        return 0 if self._objects.pop(key, None) is not None else -ENOENT

    def _keys(self) -> list[bytes]:
        return list(self._objects)

    def _get(self, key: bytes) -> Any:
        return self._objects.get(key)


class MapOfMaps(_Holder):
    """ARRAY_OF_MAPS and HASH_OF_MAPS."""

    def _accept(self, value: Any) -> None:
        if not isinstance(value, Map):
            raise EmulatorError(f"map {self.name} holds maps, not {value!r}")
        inner = self.spec.inner
        if inner is not None and (inner.type, inner.key_size, inner.value_size) != (
            value.type,
            value.key_size,
            value.value_size,
        ):
            raise MapError(self.name, f"{value!r} is not like the inner map {inner.name}", EINVAL)


class ProgArray(_Holder):
    """PROG_ARRAY: programs for tail calls."""

    def _accept(self, value: Any) -> None:
        from pybpfasm.emulator.program import Program

        if not isinstance(value, Program):
            raise EmulatorError(f"map {self.name} holds loaded programs, not {value!r}")


class Redirects(_Holder):
    """DEVMAP, DEVMAP_HASH, CPUMAP and XSKMAP: where ``redirect_map`` may send a packet."""

    @property
    def _indexed(self) -> bool:
        return self.type is not MapType.DEVMAP_HASH

    def _permits(self, key: bytes, flags: int) -> int:
        # __dev_map_hash_update_elem does not look for BPF_EXIST.
        if self.type is MapType.DEVMAP_HASH and flags == BPF_EXIST:
            return 0
        return super()._permits(key, flags)

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        if not self._indexed:
            return super()._set(key, value, flags)
        self._accept(value)
        if flags > BPF_EXIST:
            return -EINVAL
        if int.from_bytes(key, self.order) >= self.max_entries:
            return -E2BIG
        if self.type is MapType.XSKMAP:
            error = self._permits(key, flags)
            if error:
                return error
        elif flags == BPF_NOEXIST:
            return -EEXIST  # every index exists, whether or not there is something
        self._objects[key] = value
        return 0

    def remove(self, key: bytes) -> int:
        if not self._indexed:
            return super().remove(key)
        if int.from_bytes(key, self.order) >= self.max_entries:
            return -EINVAL
        self._objects.pop(key, None)
        return 0

    def _accept(self, value: Any) -> None:
        if not isinstance(value, int):
            raise EmulatorError(f"map {self.name} holds numbers (interfaces, CPUs), not {value!r}")


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
