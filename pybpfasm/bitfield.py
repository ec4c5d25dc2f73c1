# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Bit fields of layouts: where they lie, their values, and their BTF.

    class Flags(Struct):
        kind = U32.bits(5)
        level = S32.bits(3)
        _1 = U32.bits(8)        # padding: a name of an underscore and digits
        _2 = U32.bits(0)        # what follows begins a new unit
        port = U16.bits(16)

They lie where a C compiler puts them: the first one has the least significant bits on a little-endian
machine, the most significant ones on a big-endian machine. ``Be16.bits``, ``Be32.bits`` and ``Be64.bits``
count from the most significant bit of a number in network order on either machine, as the pictures of packet
headers do.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Self, overload

from pybpfasm.errors import AsmError, LayoutError
from pybpfasm.layout import ByteOrder, Field, Scalar, Struct, member_name

if TYPE_CHECKING:
    from pybpfasm.asm.bits import Bits
    from pybpfasm.btf import BtfBuilder

__all__ = ["BitField"]

_PADDING: Final = re.compile(r"_\d*")


class BitField(Field):
    """*bits* bits of a unit of the type *base*; made by `Scalar.bits`.

    ``at`` is the byte, ``at_bit`` the bit that it starts at; without either it follows the field before, in
    the next unit where it would cross the end of one. ``bit_offset`` is the bit where it starts as BTF counts
    them: in a unit of host order on from the end whose bits come first on the machine. ``offset`` and
    ``size`` are of the bytes that it touches.
    """

    __slots__ = ("at_bit", "base", "bit_offset", "width")

    is_whole = False

    def __init__(self, base: Scalar, width: int, *, at: int | None = None, at_bit: int | None = None) -> None:
        top = base.size * 8
        if not isinstance(width, int) or not 0 <= width <= top:
            raise LayoutError(f"a bit field of {base.c_type} has 1 to {top} bits, not {width}")
        if at is not None and at_bit is not None:
            raise LayoutError("a bit field starts at a byte, at=, or at a bit, at_bit=")
        super().__init__(base.size, base.align, at=at)
        self.base = base
        self.width = width
        self.at_bit = at_bit if at is None else at * 8
        self.bit_offset = 0

    @property
    def c_type(self) -> str:
        return f"{self.base.c_type}:{self.width}"

    @property
    def end(self) -> int:
        return self.bit_offset + self.width

    @property
    def is_big(self) -> bool:
        """Whether its unit is in network order."""
        return self.base.order == "big"

    def place(self, name: str, end: int, packed: bool) -> int:
        unit = self.base.size * 8
        if self.at_bit is not None:
            start = self.at_bit
        elif not self.width or (not packed and end // unit != (end + self.width - 1) // unit):
            start = -(-end // unit) * unit
        else:
            start = end
        if not self.width and not self.is_padding(name):
            raise LayoutError(f"a bit field of 0 bits has no value: name it _, _1, …, not {name!r}")
        if self.is_big and start // unit != (start + max(self.width, 1) - 1) // unit:
            raise LayoutError(f"{name!r} crosses the end of its {self.base.c_type}, in which its bits count")
        self.bit_offset = start
        self.offset = start // 8
        self.size = -(-(start + self.width) // 8) - self.offset
        # As for C on most machines, what has no name sets no alignment.
        if self.is_padding(name):
            self.align = 1
        return start + self.width

    def is_padding(self, name: str) -> bool:
        return _PADDING.fullmatch(name) is not None

    @overload
    def __get__(self, obj: None, owner: type[Struct]) -> Self: ...
    @overload
    def __get__(self, obj: Struct, owner: type[Struct]) -> Bits: ...
    def __get__(self, obj: Struct | None, owner: type[Struct]) -> Self | Bits:
        if obj is None:
            return self
        from pybpfasm.asm.bits import Bits

        return Bits(obj._address, self)

    def __set__(self, obj: Struct, value: object) -> None:
        raise AsmError(
            f"{self.owner}.{self.name} is a bit field, and storing it takes several instructions: "
            f"view.{self.name}.store(value, scratch=b.rN)",
            obj._address.asm.here(),
        )

    # Values in Python.
    def _span(self, byteorder: ByteOrder) -> tuple[int, int, ByteOrder, int]:
        """The bytes that hold it, as first and behind the last, their order, and by how many bits the number
        in them is shifted."""
        start, stop = self.offset, self.offset + self.size
        if self.is_big or byteorder == "big":
            return start, stop, "big", stop * 8 - self.bit_offset - self.width
        return start, stop, "little", self.bit_offset - start * 8

    def write(self, out: bytearray, value: Any, byteorder: ByteOrder) -> None:
        if not isinstance(value, int):
            raise LayoutError(f"{self.owner}.{self.name} takes an int, not {type(value).__name__}")
        low, high = (
            (-(1 << self.width - 1), (1 << self.width - 1) - 1)
            if self.base.signed
            else (0, (1 << self.width) - 1)
        )
        if not low <= value <= high:
            raise LayoutError(
                f"{value} does not fit {self.owner}.{self.name}, {self.width} bits: {low} to {high}"
            )
        start, stop, order, shift = self._span(byteorder)
        mask = ((1 << self.width) - 1) << shift
        number = int.from_bytes(out[start:stop], order) & ~mask | int(value) << shift & mask
        out[start:stop] = number.to_bytes(stop - start, order)

    def read(self, data: bytes, byteorder: ByteOrder) -> int:
        start, stop, order, shift = self._span(byteorder)
        number = int.from_bytes(data[start:stop], order) >> shift & (1 << self.width) - 1
        if self.base.signed and number >> self.width - 1:
            number -= 1 << self.width
        return number

    # Types.
    def btf(self, builder: BtfBuilder) -> int:
        return self.base.btf(builder)

    def member(self, builder: BtfBuilder) -> tuple[str, int, int, int] | None:
        position = self.bit_position(builder.byteorder)
        return None if position is None else (member_name(self.name), self.btf(builder), position, self.width)

    def bit_position(self, byteorder: ByteOrder) -> int | None:
        """``bit_offset`` for BTF of a machine, ``None`` where BTF can't say it: a field in network order that
        lies in several bytes, whose bits are not next to each other on a little-endian machine."""
        if not self.is_big or byteorder == "big":
            return self.bit_offset
        if self.size > 1:
            return None
        return self.offset * 8 + 8 - self.bit_offset % 8 - self.width
