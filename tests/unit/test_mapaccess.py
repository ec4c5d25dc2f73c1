# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Python values as the bytes of a map's keys and values."""

from __future__ import annotations

from typing import Any

import pytest

from pybpfasm.emulator import Emulator, EmulatorError
from pybpfasm.errors import LayoutError
from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import U8, U32, Array, Be16, ByteOrder, Struct
from pybpfasm.mapaccess import pack, unpack
from pybpfasm.maps import MapMember, MapSpec


class Pair(Struct):
    """A number in each byte order."""

    number = U32()
    port = Be16()


CASES: list[tuple[MapMember, Any, ByteOrder, str]] = [
    (Pair, {"number": 1, "port": 80}, "little", "01000000 0050 0000"),
    (Pair, {"number": 1, "port": 80}, "big", "00000001 0050 0000"),
    # What was read on a machine of the other order is written in this one's.
    (Pair, Pair.unpack(bytes.fromhex("0100000000500000"), byteorder="little"), "big", "00000001 0050 0000"),
    (Pair, bytes(8), "little", "00000000 00000000"),
    (U32(), 5, "big", "00000005"),
    (Be16(), 5, "little", "0005"),
    (Array(U8(), 2), [1, 2], "little", "0102"),
    (4, -2, "little", "feffffff"),
    (8, Pair.unpack(bytes(8)), "little", "00000000 00000000"),
    (None, memoryview(b""), "little", ""),
]


@pytest.mark.parametrize(("shape", "value", "byteorder", "expected"), CASES)
def test_values_as_bytes(shape: MapMember, value: Any, byteorder: ByteOrder, expected: str) -> None:
    data = bytes.fromhex(expected)
    assert pack(shape, value, len(data), byteorder, "a key") == data
    if isinstance(shape, type):
        assert unpack(shape, data, byteorder) == shape.unpack(data, byteorder=byteorder)
    elif isinstance(value, int) and not isinstance(shape, int):
        assert unpack(shape, data, byteorder) == value
    elif isinstance(shape, int):
        assert unpack(shape, data, byteorder) == data


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        (Pair, 5, "a key of map 'm' is a Pair, which can't be made from 5"),
        (Pair, {"numer": 5}, "Pair has no field 'numer'; did you mean 'number'"),
        (Pair, b"12", "a key of map 'm' has 2 bytes, the map takes 8"),
        (8, "text", "a key of map 'm' has 8 bytes, which can't be made from 'text'"),
        (8, 1 << 64, "a key of map 'm': 18446744073709551616 does not fit 8 bytes"),
        (8, -(1 << 63) - 1, "does not fit 8 bytes"),
    ],
)
def test_what_does_not_fit(shape: MapMember, value: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        pack(shape, value, 8, "little", "a key of map 'm'")


def test_events_as_objects() -> None:
    emulator = Emulator(byteorder="big")
    ring = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
    made = emulator.map(ring)
    made.output(bytes.fromhex("00000007 0050 0000 ff"))  # type: ignore[attr-defined]
    made.output(b"short")  # type: ignore[attr-defined]
    with pytest.raises(LayoutError, match="Pair is 8 bytes, got 5"):
        emulator.events(ring, Pair)
    made.output(bytes.fromhex("00000007 0050 0000 ff"))  # type: ignore[attr-defined]
    (one,) = emulator.events("ring", Pair)
    assert (one.number, one.port) == (7, 80)
    with pytest.raises(EmulatorError, match="map other is a HASH, which takes no events"):
        emulator.events(MapSpec("other", MapType.HASH, 4, 4, 1))
