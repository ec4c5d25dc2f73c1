# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Memory as programs see it: regions with bounds and permissions.

A pointer is a 64-bit number whose upper half names the region, so that arithmetic, comparisons and spills
need no special case, and whose distance from the region's start is its offset. A region's number is never
given out twice: a pointer that outlives what it pointed to stays recognisable. No scalar comes near such a
number by accident, because they begin at 0xf0000000_00000000.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, Literal, NoReturn

from pybpfasm.emulator.faults import Violation

FIRST_REGION: Final = 0xF0000000
# Where in its 4 GiB a region starts: pointers before the start keep the region's number.
BIAS: Final = 0x40000000
STACK_SIZE: Final = 512

U64: Final = 0xFFFFFFFFFFFFFFFF

Order = Literal["little", "big"]

_LITTLE: Final = {n: struct.Struct("<" + c) for n, c in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))}
_BIG: Final = {n: struct.Struct(">" + c) for n, c in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))}
STRUCTS: Final = {"little": _LITTLE, "big": _BIG}

_MASKS: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: U64}
ONES: Final = {n: b"\x01" * n for n in (1, 2, 4, 8)}


class Numbers:
    """Gives out region numbers."""

    __slots__ = ("next",)

    def __init__(self) -> None:
        self.next = FIRST_REGION

    def start(self) -> int:
        """The start address of a new region."""
        number = self.next
        self.next = number + 1
        return (number << 32) + BIAS


class Region:
    """Bytes that pointers can point to.

    ``kind`` says what it is, in words of a message ("the stack", "map flows' value"). ``start`` is its
    address, 0 until a pointer to it is made.
    """

    __slots__ = ("atomic", "data", "kind", "order", "readable", "size", "start", "writable")

    def __init__(
        self,
        kind: str,
        data: bytearray,
        order: Order = "little",
        *,
        size: int | None = None,
        readable: bool = True,
        writable: bool = True,
        atomic: bool = True,
    ) -> None:
        self.kind = kind
        self.data = data
        self.order: Order = order
        self.size = len(data) if size is None else size
        self.start = 0
        self.readable = readable
        self.writable = writable
        self.atomic = atomic

    @property
    def number(self) -> int:
        """The upper half of the region's addresses."""
        return self.start >> 32

    def describe(self, offset: int) -> str:
        """A pointer to byte *offset*, for people."""
        return f"{self.kind}{offset:+d}" if offset else self.kind

    def refuse(self, at: int, size: int, what: str) -> NoReturn:
        """Raise the `Violation` of an access outside the region."""
        where = f"{size} byte{'s' if size > 1 else ''} at offset {at}"
        raise Violation(f"{what} of {where} is outside {self.kind}, which has {self.size} bytes")

    def load(self, address: int, size: int) -> int:
        """The unsigned number at *address*; raises `Violation`."""
        at = address - self.start
        if not 0 <= at <= self.size - size:
            self.refuse(at, size, "a read")
        if not self.readable:
            raise Violation(f"{self.kind} can't be read by a program")
        value: int = STRUCTS[self.order][size].unpack_from(self.data, at)[0]
        return value

    def store(self, address: int, size: int, value: int) -> None:
        """Store the low *size* bytes of *value*; raises `Violation`."""
        at = address - self.start
        if not 0 <= at <= self.size - size:
            self.refuse(at, size, "a write")
        if not self.writable:
            raise Violation(f"{self.kind} is read-only")
        STRUCTS[self.order][size].pack_into(self.data, at, value & _MASKS[size])

    # What generated code calls: one method for each size, which Memory makes fast.
    def ld1(self, address: int) -> int:
        """As `load`, 1 byte."""
        return self.load(address, 1)

    def ld2(self, address: int) -> int:
        """As `load`, 2 bytes."""
        return self.load(address, 2)

    def ld4(self, address: int) -> int:
        """As `load`, 4 bytes."""
        return self.load(address, 4)

    def ld8(self, address: int) -> int:
        """As `load`, 8 bytes."""
        return self.load(address, 8)

    def st1(self, address: int, value: int) -> None:
        """As `store`, 1 byte."""
        self.store(address, 1, value)

    def st2(self, address: int, value: int) -> None:
        """As `store`, 2 bytes."""
        self.store(address, 2, value)

    def st4(self, address: int, value: int) -> None:
        """As `store`, 4 bytes."""
        self.store(address, 4, value)

    def st8(self, address: int, value: int) -> None:
        """As `store`, 8 bytes."""
        self.store(address, 8, value)

    def read(self, at: int, size: int) -> bytes:
        """*size* bytes from offset *at*, for a helper."""
        if not 0 <= at <= self.size - size:
            self.refuse(at, size, "a read")
        if not self.readable:
            raise Violation(f"{self.kind} can't be read by a program")
        return bytes(self.data[at : at + size])

    def write(self, at: int, data: bytes) -> None:
        """Store *data* at offset *at*, for a helper."""
        if not 0 <= at <= self.size - len(data):
            self.refuse(at, len(data), "a write")
        if not self.writable:
            raise Violation(f"{self.kind} is read-only")
        self.data[at : at + len(data)] = data


class Memory(Region):
    """A region of plain bytes: a packet, a map's value. As `Region`, with the common case fast."""

    __slots__ = ()

    def ld1(self, address: int) -> int:
        at = address - self.start
        if 0 <= at < self.size and self.readable:
            return self.data[at]
        return self.load(address, 1)

    def ld2(self, address: int) -> int:
        at = address - self.start
        if 0 <= at <= self.size - 2 and self.readable:
            return int.from_bytes(self.data[at : at + 2], self.order)
        return self.load(address, 2)

    def ld4(self, address: int) -> int:
        at = address - self.start
        if 0 <= at <= self.size - 4 and self.readable:
            return int.from_bytes(self.data[at : at + 4], self.order)
        return self.load(address, 4)

    def ld8(self, address: int) -> int:
        at = address - self.start
        if 0 <= at <= self.size - 8 and self.readable:
            return int.from_bytes(self.data[at : at + 8], self.order)
        return self.load(address, 8)

    def st1(self, address: int, value: int) -> None:
        at = address - self.start
        if 0 <= at < self.size and self.writable:
            self.data[at] = value & 0xFF
        else:
            self.store(address, 1, value)

    def st8(self, address: int, value: int) -> None:
        at = address - self.start
        if 0 <= at <= self.size - 8 and self.writable:
            self.data[at : at + 8] = value.to_bytes(8, self.order)
        else:
            self.store(address, 8, value)


class Stack(Region):
    """A function's frame: 512 bytes below r10, of which only those that were written can be read."""

    __slots__ = ("set",)

    def __init__(self, order: Order = "little") -> None:
        super().__init__("the stack", bytearray(STACK_SIZE), order)
        self.set = bytearray(STACK_SIZE)

    def describe(self, offset: int) -> str:
        return f"fp{offset - STACK_SIZE:+d}" if offset != STACK_SIZE else "fp"

    def refuse(self, at: int, size: int, what: str) -> NoReturn:
        where = f"{size} byte{'s' if size > 1 else ''} at fp{at - STACK_SIZE:+d}"
        raise Violation(f"{what} of {where} is outside the stack frame, fp-512 to fp-1")

    def load(self, address: int, size: int) -> int:
        at = address - self.start
        if not 0 <= at <= STACK_SIZE - size:
            self.refuse(at, size, "a read")
        if at % size:
            raise Violation(f"a read of {size} bytes at fp{at - STACK_SIZE:+d} is not aligned")
        if self.set[at : at + size] != ONES[size]:
            self.unset(at, size)
        value: int = STRUCTS[self.order][size].unpack_from(self.data, at)[0]
        return value

    def store(self, address: int, size: int, value: int) -> None:
        at = address - self.start
        if not 0 <= at <= STACK_SIZE - size:
            self.refuse(at, size, "a write")
        if at % size:
            raise Violation(f"a write of {size} bytes at fp{at - STACK_SIZE:+d} is not aligned")
        STRUCTS[self.order][size].pack_into(self.data, at, value & _MASKS[size])
        self.set[at : at + size] = ONES[size]

    def read(self, at: int, size: int) -> bytes:
        if not 0 <= at <= STACK_SIZE - size:
            self.refuse(at, size, "a read")
        if 0 in self.set[at : at + size]:
            self.unset(at, size)
        return bytes(self.data[at : at + size])

    def write(self, at: int, data: bytes) -> None:
        if not 0 <= at <= STACK_SIZE - len(data):
            self.refuse(at, len(data), "a write")
        self.data[at : at + len(data)] = data
        self.set[at : at + len(data)] = b"\x01" * len(data)

    def unset(self, at: int, size: int) -> NoReturn:
        """Raise the `Violation` of a read of bytes that nothing has been written to."""
        first = at + bytes(self.set[at : at + size]).index(0)
        raise Violation(
            f"a read of {size} bytes at fp{at - STACK_SIZE:+d}: "
            f"the stack byte at fp{first - STACK_SIZE:+d} was never written"
        )


class Opaque(Region):
    """What programs hold pointers to and pass to helpers, but can't look into: a map, a function."""

    __slots__ = ("object",)

    def __init__(self, kind: str, object: object) -> None:
        super().__init__(kind, bytearray(), readable=False, writable=False)
        self.object = object

    def load(self, address: int, size: int) -> int:
        raise Violation(f"a read through the address of {self.kind}: it can only be passed to a helper")

    def store(self, address: int, size: int, value: int) -> None:
        raise Violation(f"a write through the address of {self.kind}: it can only be passed to a helper")


class Guarded(Region):
    """A map's value with fields that only helpers may touch (a timer, a spin lock)."""

    __slots__ = ("guards",)

    def __init__(
        self, kind: str, data: bytearray, order: Order, guards: Sequence[tuple[int, int, str]]
    ) -> None:
        super().__init__(kind, data, order)
        self.guards = guards

    def _guard(self, at: int, size: int) -> None:
        for start, end, name in self.guards:
            if at < end and at + size > start:
                raise Violation(
                    f"bytes {start} to {end - 1} of {self.kind} are a {name}, which only helpers may touch"
                )

    def load(self, address: int, size: int) -> int:
        self._guard(address - self.start, size)
        return super().load(address, size)

    def store(self, address: int, size: int, value: int) -> None:
        self._guard(address - self.start, size)
        super().store(address, size, value)

    def read(self, at: int, size: int) -> bytes:
        self._guard(at, size)
        return super().read(at, size)

    def write(self, at: int, data: bytes) -> None:
        self._guard(at, len(data))
        super().write(at, data)


class Gone(Region):
    """What is left of a region that pointers may no longer use; ``why`` tells the person who used one."""

    __slots__ = ("old", "why")

    def __init__(self, old: Region, why: str) -> None:
        super().__init__(old.kind, bytearray(), readable=False, writable=False)
        self.start = old.start
        self.old = old
        self.why = why

    def describe(self, offset: int) -> str:
        return self.old.describe(offset)

    def load(self, address: int, size: int) -> int:
        raise Violation(self.why)

    def store(self, address: int, size: int, value: int) -> None:
        raise Violation(self.why)

    def read(self, at: int, size: int) -> bytes:
        raise Violation(self.why)

    def write(self, at: int, data: bytes) -> None:
        raise Violation(self.why)


class Fields(Region):
    """A structure of which a program may read and write some fields, each in certain sizes.

    ``rights`` are those of the structure's kind. A pointer field holds no bytes: *pointers* gives its value
    when it is read. ``filters`` say what of a stored number a field keeps, ``None`` for nothing.
    """

    __slots__ = ("filters", "pointers", "rights")

    def __init__(
        self,
        kind: str,
        data: bytearray,
        order: Order,
        rights: Rights,
        pointers: dict[int, Callable[[], int]],
    ) -> None:
        super().__init__(kind, data, order, atomic=False)
        self.rights = rights
        self.pointers = pointers
        self.filters: dict[int, Callable[[int], int | None]] = {}

    def load(self, address: int, size: int) -> int:
        at = address - self.start
        if (at, size) not in self.rights.read:
            raise Violation(self.rights.why_not(at, size, "read"))
        pointer = self.pointers.get(at)
        if pointer is not None:
            return pointer()
        value: int = STRUCTS[self.order][size].unpack_from(self.data, at)[0]
        return value

    def store(self, address: int, size: int, value: int) -> None:
        at = address - self.start
        if (at, size) not in self.rights.write:
            raise Violation(self.rights.why_not(at, size, "write"))
        if at in self.filters:
            kept = self.filters[at](value)
            if kept is None:
                return
            value = kept
        STRUCTS[self.order][size].pack_into(self.data, at, value & _MASKS[size])

    def read(self, at: int, size: int) -> bytes:
        raise Violation(f"{self.kind} is no memory that a helper may read")

    def write(self, at: int, data: bytes) -> None:
        raise Violation(f"{self.kind} is no memory that a helper may write")


class Rights:
    """Which bytes of a structure may be read and written: sets of (offset, size)."""

    __slots__ = ("_writable", "fields", "kind", "read", "write")

    def __init__(self, kind: str, fields: Sequence[tuple[int, int, str]]) -> None:
        self.kind = kind
        self.fields = tuple(fields)  # offset, size, name
        self.read: set[tuple[int, int]] = set()
        self.write: set[tuple[int, int]] = set()
        self._writable: tuple[int, tuple[str, ...]] = (0, ())

    def writable(self) -> tuple[str, ...]:
        """The names of the fields of which a program may write anything."""
        known, names = self._writable
        if known != len(self.write):
            names = tuple(
                name
                for start, size, name in self.fields
                if any(start <= at < start + size for at, _ in self.write)
            )
            self._writable = (len(self.write), names)
        return names

    def allow(self, at: int, size: int, *, narrow: bool = False, write: bool = False) -> None:
        """Allow reads of the *size* bytes at *at*, of aligned parts too where *narrow*; writes if *write*."""
        for part in (1, 2, 4, 8) if narrow else (size,):
            if part <= size:
                self.read.update((at + i, part) for i in range(0, size, part))
        if write:
            self.write.add((at, size))

    def why_not(self, at: int, size: int, what: str) -> str:
        """Why a program may not read or write *size* bytes at *at*."""
        names = [name for start, length, name in self.fields if at < start + length and at + size > start]
        if not names:
            return f"{self.kind} has no field at bytes {at} to {at + size - 1}"
        name = names[0]
        start, length, _ = next(field for field in self.fields if field[2] == name)
        allowed = self.read if what == "read" else self.write
        sizes = sorted({s for a, s in allowed if start <= a < start + length})
        if not sizes:
            return f"a program of this type may not {what} {self.kind}.{name}"
        return (
            f"{self.kind}.{name}, bytes {start} to {start + length - 1}, can be {what} "
            f"{' or '.join(map(str, sizes))} bytes at a time, not {size} at byte {at}"
        ).replace("be write", "be written")
