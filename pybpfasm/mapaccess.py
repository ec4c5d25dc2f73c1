# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Entries of maps as Python values: what the maps of the emulator and those in the kernel have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pybpfasm.errors import LayoutError
from pybpfasm.layout import ByteOrder, Field, Record, Struct

if TYPE_CHECKING:
    from pybpfasm.maps import MapMember

__all__ = ["Entries", "pack", "unpack"]


def pack(shape: MapMember, value: Any, size: int, byteorder: ByteOrder, what: str) -> bytes:
    """A key or value of *size* bytes as a map takes it.

    *shape* is what `MapSpec` says of it: a structure takes a dict or a `Record`, a field its Python value, a
    number of bytes an integer. Bytes pass as they are. Raises `LayoutError`, which names *what* was wrong,
    for what does not fit.
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value)
    elif isinstance(shape, type) and isinstance(value, (Mapping, Record)):
        values = value.as_dict() if isinstance(value, Record) else value
        data = shape.pack(byteorder=byteorder, **values)
    elif isinstance(shape, Field):
        try:
            data = shape.to_bytes(value, byteorder)
        except LayoutError as error:
            if shape.name:
                raise
            # The field is no structure's: it is the whole of it.
            raise LayoutError(str(error).replace(".", what, 1)) from None
    elif isinstance(value, int) and not isinstance(shape, type):
        try:
            data = value.to_bytes(size, byteorder, signed=value < 0)
        except OverflowError:
            raise LayoutError(f"{what}: {value} does not fit {size} bytes") from None
    elif isinstance(value, Record):
        data = value.pack()
    elif isinstance(shape, type):
        raise LayoutError(f"{what} is a {shape.__name__}, which can't be made from {value!r}")
    else:
        raise LayoutError(f"{what} has {size} bytes, which can't be made from {value!r}")
    if len(data) != size:
        raise LayoutError(f"{what} has {len(data)} bytes, the map takes {size}")
    return data


def unpack(shape: MapMember, data: bytes, byteorder: ByteOrder) -> Any:
    """The Python value of a key or value: a `Record`, a number or a tuple, or bytes where *shape* says no
    more."""
    if isinstance(shape, type) and issubclass(shape, Struct):
        return shape.unpack(data, byteorder=byteorder)
    if isinstance(shape, Field):
        return shape.from_bytes(data, byteorder)
    return data


class Entries:
    """A map as a Python mapping; the kinds of maps say how an entry is found, stored, deleted and listed."""

    __slots__ = ()

    def lookup(self, key: Any) -> Any:
        """The value for *key*, or ``None``."""
        raise NotImplementedError

    def update(self, key: Any, value: Any) -> None:
        """Store a value."""
        raise NotImplementedError

    def delete(self, key: Any) -> bool:
        """Delete *key*; whether it was there."""
        raise NotImplementedError

    def keys(self) -> Iterator[Any]:
        """All keys."""
        raise NotImplementedError

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

    def __iter__(self) -> Iterator[Any]:
        return self.keys()
