# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The Internet checksum as the kernel computes it, on 16-bit words in the host's byte order."""

from __future__ import annotations

from typing import Final

from pybpfasm.emulator.memory import Order

U32: Final = 0xFFFFFFFF


def add(a: int, b: int) -> int:
    """``csum_add``: a sum of 32 bits with the carry brought around."""
    total = (a & U32) + (b & U32)
    return (total & U32) + (total >> 32)


def sub(a: int, b: int) -> int:
    """``csum_sub``."""
    return add(a, ~b & U32)


def shift(total: int, offset: int) -> int:
    """``csum_shift``: the sum of bytes as it counts where they begin at *offset*."""
    return (total >> 8 | total << 24) & U32 if offset & 1 else total


def fold32(total: int) -> int:
    """``csum_from32to16``: 32 bits folded to 16, not inverted."""
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


def fold(total: int) -> int:
    """``csum_fold``: the 16 bits that go into a header."""
    return ~fold32(total & U32) & 0xFFFF


def partial(data: bytes, total: int, order: Order) -> int:
    """``csum_partial``: *total* with the 32-bit words of *data* added, the carry brought around.

    All that folds to the same 16 bits would do in a header, but helpers show the 32: 0 only where everything
    is 0, as on x86.
    """
    padded = data + bytes(-len(data) % 4)
    summed = (total & U32) + int.from_bytes(padded, order)
    return (summed - 1) % U32 + 1 if summed else 0
