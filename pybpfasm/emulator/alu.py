# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Arithmetic, comparisons and atomic operations on unsigned 64-bit numbers (RFC 9669, sections 4 and 5.3)."""

from __future__ import annotations

from typing import Final

from pybpfasm.isa import Alu, Atomic, Jump

U32: Final = 0xFFFFFFFF
U64: Final = 0xFFFFFFFFFFFFFFFF


def signed(value: int, bits: int) -> int:
    """The low *bits* of *value* as a signed number."""
    sign = 1 << (bits - 1)
    return ((value & ((1 << bits) - 1)) ^ sign) - sign


def sdiv(a: int, b: int, bits: int) -> int:
    """Signed division that truncates toward zero; by zero it gives 0."""
    x, y = signed(a, bits), signed(b, bits)
    if y == 0:
        return 0
    quotient = abs(x) // abs(y)
    return (-quotient if (x < 0) != (y < 0) else quotient) & ((1 << bits) - 1)


def smod(a: int, b: int, bits: int) -> int:
    """Signed modulo with the dividend's sign; by zero it gives the dividend."""
    x, y = signed(a, bits), signed(b, bits)
    if y == 0:
        return a & ((1 << bits) - 1)
    rest = abs(x) % abs(y)
    return (-rest if x < 0 else rest) & ((1 << bits) - 1)


def swap(value: int, width: int) -> int:
    """The low *width* bits of *value* with their bytes in reverse."""
    return int.from_bytes((value & ((1 << width) - 1)).to_bytes(width // 8, "little"), "big")


def compute(op: int, dst: int, src: int, offset: int, bits: int) -> int:
    """``dst op src`` of an ALU (``bits`` 32) or ALU64 instruction, byte swaps aside.

    *offset* is the instruction's, which makes divisions and moves signed.
    """
    mask = (1 << bits) - 1
    dst &= mask
    src &= mask
    if op == Alu.ADD:
        result = dst + src
    elif op == Alu.SUB:
        result = dst - src
    elif op == Alu.MUL:
        result = dst * src
    elif op == Alu.DIV:
        if offset:
            return sdiv(dst, src, bits)
        result = dst // src if src else 0
    elif op == Alu.MOD:
        if offset:
            return smod(dst, src, bits)
        result = dst % src if src else dst
    elif op == Alu.OR:
        result = dst | src
    elif op == Alu.AND:
        result = dst & src
    elif op == Alu.XOR:
        result = dst ^ src
    elif op == Alu.LSH:
        result = dst << (src & (bits - 1))
    elif op == Alu.RSH:
        result = dst >> (src & (bits - 1))
    elif op == Alu.ARSH:
        result = signed(dst, bits) >> (src & (bits - 1))
    elif op == Alu.NEG:
        result = -dst
    elif op == Alu.MOV:
        result = signed(src, offset) if offset else src
    else:
        raise ValueError(f"no operation {op:#x}")
    return result & mask


def holds(op: int, a: int, b: int, bits: int) -> bool:
    """Whether a conditional jump is taken."""
    mask = (1 << bits) - 1
    a &= mask
    b &= mask
    if op == Jump.JEQ:
        return a == b
    if op == Jump.JNE:
        return a != b
    if op == Jump.JGT:
        return a > b
    if op == Jump.JGE:
        return a >= b
    if op == Jump.JLT:
        return a < b
    if op == Jump.JLE:
        return a <= b
    if op == Jump.JSET:
        return bool(a & b)
    x, y = signed(a, bits), signed(b, bits)
    if op == Jump.JSGT:
        return x > y
    if op == Jump.JSGE:
        return x >= y
    if op == Jump.JSLT:
        return x < y
    if op == Jump.JSLE:
        return x <= y
    raise ValueError(f"no comparison {op:#x}")


def atomic(op: int, memory: int, src: int, r0: int, bits: int) -> int:
    """What an atomic operation leaves in memory, of the *memory*, the source register and r0 before."""
    mask = (1 << bits) - 1
    memory &= mask
    src &= mask
    if op in (Atomic.ADD, Atomic.FETCH_ADD):
        return (memory + src) & mask
    if op in (Atomic.OR, Atomic.FETCH_OR):
        return memory | src
    if op in (Atomic.AND, Atomic.FETCH_AND):
        return memory & src
    if op in (Atomic.XOR, Atomic.FETCH_XOR):
        return memory ^ src
    if op == Atomic.XCHG:
        return src
    if op == Atomic.CMPXCHG:
        return src if memory == r0 & mask else memory
    raise ValueError(f"no atomic operation {op:#x}")
