# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Byte order, sign extension and constants of 64 bits: functions that read like the kernel's notation."""

from __future__ import annotations

from typing import Literal, overload

from pybpfasm.asm.operands import U64_MAX, Imm, Reg, Unary, a
from pybpfasm.errors import AsmError
from pybpfasm.source import capture, resolve


def _swap(kind: Literal["be", "le", "bswap"], width: int, value: int | Reg) -> Imm | Unary:
    if isinstance(value, Reg):
        return Unary(kind, width, value)
    if not isinstance(value, int):
        raise AsmError(
            f"{kind}{width}() takes a register or a constant, not {a(value)}", resolve(capture(None, 3))
        )
    if not 0 <= value < 1 << width:
        raise AsmError(f"{value} does not fit {width} bits", resolve(capture(None, 3)))
    if kind == "bswap":
        swapped = int.from_bytes(value.to_bytes(width // 8, "little"), "big")
        return Imm(swapped, width, "host")
    return Imm(value, width, "big" if kind == "be" else "little")


@overload
def be16(value: int) -> Imm: ...
@overload
def be16(value: Reg) -> Unary: ...
def be16(value: int | Reg) -> Imm | Unary:
    """A constant of 16 bits in network order, or, of a register, ``rN = be16 rN`` (RFC 9669, section 4.2).

    Of a register: its low 16 bits from host to network order or back, with zeros above them. A constant is
    unsigned; raises `AsmError` where it does not fit.
    """
    return _swap("be", 16, value)


@overload
def be32(value: int) -> Imm: ...
@overload
def be32(value: Reg) -> Unary: ...
def be32(value: int | Reg) -> Imm | Unary:
    """As `be16`, 32 bits."""
    return _swap("be", 32, value)


@overload
def be64(value: int) -> Imm: ...
@overload
def be64(value: Reg) -> Unary: ...
def be64(value: int | Reg) -> Imm | Unary:
    """As `be16`, 64 bits."""
    return _swap("be", 64, value)


@overload
def le16(value: int) -> Imm: ...
@overload
def le16(value: Reg) -> Unary: ...
def le16(value: int | Reg) -> Imm | Unary:
    """A constant of 16 bits in little-endian order, or, of a register, ``rN = le16 rN``."""
    return _swap("le", 16, value)


@overload
def le32(value: int) -> Imm: ...
@overload
def le32(value: Reg) -> Unary: ...
def le32(value: int | Reg) -> Imm | Unary:
    """As `le16`, 32 bits."""
    return _swap("le", 32, value)


@overload
def le64(value: int) -> Imm: ...
@overload
def le64(value: Reg) -> Unary: ...
def le64(value: int | Reg) -> Imm | Unary:
    """As `le16`, 64 bits."""
    return _swap("le", 64, value)


def bswap16(value: Reg) -> Unary:
    """``rN = bswap16 rN``: the low 16 bits with their bytes exchanged, zeros above (ISA v4, Linux 6.6)."""
    return Unary("bswap", 16, value)


def bswap32(value: Reg) -> Unary:
    """``rN = bswap32 rN`` (ISA v4)."""
    return Unary("bswap", 32, value)


def bswap64(value: Reg) -> Unary:
    """``rN = bswap64 rN`` (ISA v4)."""
    return Unary("bswap", 64, value)


def s8(value: Reg) -> Unary:
    """``rN = (s8)rM``: move with sign extension from 8 bits (ISA v4)."""
    return Unary("movsx", 8, value)


def s16(value: Reg) -> Unary:
    """``rN = (s16)rM``: move with sign extension from 16 bits (ISA v4)."""
    return Unary("movsx", 16, value)


def s32(value: Reg) -> Unary:
    """``rN = (s32)rM``: move with sign extension from 32 bits (ISA v4)."""
    return Unary("movsx", 32, value)


def addr_space_cast(value: Reg, to: int, source: int) -> Unary:
    """``rN = addr_space_cast(rM, to, source)``: a pointer of one address space as one of the other (Linux
    6.9).

    0 is the kernel's, 1 that of an arena's user space, and only casts between these exist: others are
    an `AsmError`.
    """
    if (to, source) not in ((0, 1), (1, 0)):
        raise AsmError(
            f"there are casts from address space 1 to 0 and from 0 to 1, none from {source} to {to}",
            resolve(capture(None, 2)),
        )
    return Unary("cast", to << 16 | source, value)


def imm64(value: int) -> Imm:
    """A constant of 64 bits, signed or unsigned, which takes the 16-byte ``lddw`` instruction (RFC 9669,
    section 5.4); raises `AsmError` where it does not fit."""
    if not isinstance(value, int):
        raise AsmError(f"imm64() takes a constant, not {a(value)}", resolve(capture(None, 2)))
    if not -(1 << 63) <= value <= U64_MAX:
        raise AsmError(f"{value} does not fit 64 bits", resolve(capture(None, 2)))
    return Imm(value & U64_MAX, 64, "host")
