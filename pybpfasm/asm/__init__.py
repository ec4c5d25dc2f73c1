# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The assembly language: an `Asm` writes the instructions of one function.

Statements read as the kernel prints instructions::

    b.r6 = b.r1                     r6 = r1
    b.w2 = 5                        w2 = 5
    b.r2 = ctx.mark                 r2 = *(u32 *)(r6 +8)
    b.u64[b.r10 - 8] = b.r2         *(u64 *)(r10 -8) = r2
    b.r2 += 14                      r2 += 14
    b.r1 = flows                    r1 = map[flows]
    b.call(Helper.map_lookup_elem)  call bpf_map_lookup_elem#1
    with b.If(b.r0 == 0):           if r0 != 0 goto …
        b.ret(0)

One statement is one instruction. What writes more is a macro, and these are all there are here: `Asm.lea`,
`Asm.zero`, `Asm.ret`, `Asm.If` with a condition of several comparisons, and the jump back at the end of a
loop.
"""

from __future__ import annotations

from pybpfasm.asm.blocks import LoopBlock
from pybpfasm.asm.branches import Label
from pybpfasm.asm.builder import Asm
from pybpfasm.asm.conditions import Condition
from pybpfasm.asm.conversions import (
    addr_space_cast,
    be16,
    be32,
    be64,
    bswap16,
    bswap32,
    bswap64,
    imm64,
    le16,
    le32,
    le64,
    s8,
    s16,
    s32,
)
from pybpfasm.asm.operands import Address, Imm, Mem, Operand, Reg, RegValue, StoreValue

__all__ = [
    "Address",
    "Asm",
    "Condition",
    "Imm",
    "Label",
    "LoopBlock",
    "Mem",
    "Operand",
    "Reg",
    "RegValue",
    "StoreValue",
    "addr_space_cast",
    "be16",
    "be32",
    "be64",
    "bswap16",
    "bswap32",
    "bswap64",
    "imm64",
    "le16",
    "le32",
    "le64",
    "s8",
    "s16",
    "s32",
]
