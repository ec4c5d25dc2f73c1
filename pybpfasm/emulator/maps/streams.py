# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Maps that are read in the order in which they were written: queues, stacks, ring buffers, events."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from pybpfasm.emulator.errnos import E2BIG, EAGAIN, EINVAL, ENOSPC
from pybpfasm.emulator.maps.base import Map, MapError
from pybpfasm.emulator.memory import Memory
from pybpfasm.kernel.enums import BPF_EXIST, BPF_NOEXIST, MapType
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Emulator

__all__ = ["PerfEventArray", "Queue", "Record", "RingBuf", "UserRingBuf"]


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

    def consume(self) -> list[bytes]:
        """Take out the finished records."""
        out: list[bytes] = []
        while self._records and self._records[0].state != "busy":
            record = self._records.popleft()
            self._consumed += record.taken
            if record.state == "done":
                out.append(bytes(record.data))
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
