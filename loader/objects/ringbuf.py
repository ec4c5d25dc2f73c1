# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Reading what programs write into a ring buffer (``BPF_MAP_TYPE_RINGBUF``)."""

from __future__ import annotations

import errno
import mmap
import select
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

from loader.errors import LoaderError, UsageError, describe_errno
from loader.objects.map import Map
from pybpfasm.kernel.enums import BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT, BPF_RINGBUF_HDR_SZ, MapType
from pybpfasm.layout import Struct

__all__ = ["RingBuffer"]

_LENGTH: Final = BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT


class RingBuffer:
    """The reader of a ring buffer: records come once, in the order in which programs reserved them.

    ::

        with RingBuffer(events, Event) as ring:
            while ring.poll(1.0):
                for event in ring.consume():
                    print(event.pid)

    With a *struct*, records are objects of it, of its size or longer; else bytes. There is one reader of a
    ring: two would get each other's records. The map stays the caller's. Raises `UsageError` for a map of
    another type. Positions are read as plain memory, which machines with x86's ordering allow; elsewhere
    call `poll` before `consume`.
    """

    def __init__(self, ring: Map, struct: type[Struct] | None = None) -> None:
        if ring.type != MapType.RINGBUF:
            raise UsageError(
                f"map {ring.name!r} is no RINGBUF",
                hint="a ring buffer is MapSpec(…, MapType.RINGBUF, None, None, …)",
            )
        self._map = ring
        self._struct = struct
        self._size = ring.max_entries
        page = mmap.PAGESIZE
        self._mine: mmap.mmap | None = None
        self._theirs: mmap.mmap | None = None
        try:
            # One page that the reader writes; one that programs write, with the data behind it, twice, so
            # that no record is in two pieces (kernel/bpf/ringbuf.c).
            self._mine = mmap.mmap(ring.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            self._theirs = mmap.mmap(
                ring.fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
            )
        except OSError as error:
            self.close()
            code = error.errno or errno.EINVAL
            raise LoaderError(f"map {ring.name!r} can't be mapped: {describe_errno(code)}") from None
        self._at = self._consumed()

    def close(self) -> None:
        """Give up the memory; records that were not read stay in the ring."""
        for memory in (self._mine, self._theirs):
            if memory is not None:
                memory.close()
        self._mine = self._theirs = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def fileno(self) -> int:
        """The map's descriptor, for ``select`` and its like: it is readable while there are records."""
        return self._map.fd

    def _pages(self) -> tuple[mmap.mmap, mmap.mmap]:
        if self._mine is None or self._theirs is None:
            raise ValueError(f"the reader of map {self._map.name!r} is closed")
        return self._mine, self._theirs

    def _consumed(self) -> int:
        return int(struct.unpack_from("Q", self._pages()[0])[0])

    def consume(self) -> Iterator[Any]:
        """Yield the records that are there; each leaves the ring when the next is asked for, or at the end.

        A record that a program has reserved and not yet submitted holds up those behind it. Raises
        `LoaderError` for one that is too short for the structure.
        """
        mine, theirs = self._pages()
        while self._at < struct.unpack_from("Q", theirs)[0]:
            start = mmap.PAGESIZE + self._at % self._size
            header = struct.unpack_from("I", theirs, start)[0]
            if header & BPF_RINGBUF_BUSY_BIT:
                return
            length = header & ~_LENGTH
            data = theirs[start + BPF_RINGBUF_HDR_SZ : start + BPF_RINGBUF_HDR_SZ + length]
            # Before the record is handed on, so that an error of whoever takes it doesn't bring it again; the
            # bytes are a copy.
            self._at += (length + BPF_RINGBUF_HDR_SZ + 7) // 8 * 8
            struct.pack_into("Q", mine, 0, self._at)
            if not header & BPF_RINGBUF_DISCARD_BIT:
                yield self._record(data)

    def _record(self, data: bytes) -> Any:
        if self._struct is None:
            return data
        if len(data) < self._struct.sizeof:
            raise LoaderError(
                f"a record of map {self._map.name!r} has {len(data)} bytes, "
                f"{self._struct.__name__} has {self._struct.sizeof}"
            )
        return self._struct.unpack(data[: self._struct.sizeof])

    def poll(self, timeout: float | None = None) -> bool:
        """Wait until there are records, at most *timeout* seconds; return whether there are."""
        self._pages()
        waiting = select.poll()
        waiting.register(self._map.fd, select.POLLIN)
        return bool(waiting.poll(None if timeout is None else max(0, int(timeout * 1000))))
