# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Every mistake that the language guards against: what is said, and which line is blamed.

Each case is a small source text; the line that must be blamed ends in ``# <-``.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import pytest

from pybpfasm import asm, layout, net, program
from pybpfasm.asm import Asm
from pybpfasm.errors import AsmError
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, Helper, MapType
from pybpfasm.maps import MapSpec

FLOWS = MapSpec("flows", MapType.HASH, 4, 8, 16)
STATS = MapSpec("stats", MapType.ARRAY, 4, 16, 1)

CASES: dict[str, tuple[str, str]] = {
    # Numbers that do not fit.
    "immediate of 2^40": (
        "b.r2 = 1 << 40  # <-",
        "0x10000000000 does not fit the signed 32-bit immediate, which is sign-extended to 64 bits: "
        "use imm64()",
    ),
    "operand of 2^40": ("b.r2 += 1 << 40  # <-", "use a register loaded with imm64()"),
    "unsigned 32-bit operand of a 64-bit comparison": (
        "b.If(b.r2 == 0xFFFFFFFF).goto('x')  # <-",
        "0xffffffff does not fit the signed 32-bit immediate, which is sign-extended to 64 bits: "
        "use a register loaded with imm64(), or the w register",
    ),
    "33 bits for a w register": ("b.w2 = 1 << 32  # <-", "4294967296 does not fit 32 bits"),
    "65 bits": ("b.r2 = imm64(1 << 64)  # <-", "18446744073709551616 does not fit 64 bits"),
    "64 bits for a w register": (
        "b.w2 = imm64(1)  # <-",
        "a 64-bit constant needs all of the register: write b.r2",
    ),
    "imm64 as operand": (
        "b.r2 += imm64(1)  # <-",
        "a 64-bit constant is no operand: load it to a register first",
    ),
    "be16 of 70000": ("b.r2 = be16(70000)  # <-", "70000 does not fit 16 bits"),
    "be16 of a negative": ("b.r2 = be16(-1)  # <-", "-1 does not fit 16 bits"),
    "offset 70000": (
        "b.r2 = b.u32[b.r1 + 70000]  # <-",
        "offset 70000 does not fit the 16 bits that an instruction has for it",
    ),
    "store at offset -32769": ("b.u8[b.r1 - 32769] = 0  # <-", "offset -32769 does not fit the 16 bits"),
    "shift by 64": ("b.r2 <<= 64  # <-", "r2 can be shifted by 0 to 63 bits, not by 64"),
    "shift of w by 32": ("b.w2 >>= 32  # <-", "w2 can be shifted by 0 to 31 bits, not by 32"),
    "shift by -1": ("b.r2.arsh(-1)  # <-", "r2 can be shifted by 0 to 63 bits, not by -1"),
    "division by 0": ("b.r2 /= 0  # <-", "r2 is divided by 0"),
    "modulo 0": ("b.r2 %= 0  # <-", "r2 is divided by 0"),
    "value too large for a field": (
        "tcp.dest = 70000  # <-",
        "70000 does not fit Tcp.dest, which has 2 bytes",
    ),
    "value too large for memory": (
        "b.u8[b.r10 - 8] = 256  # <-",
        "256 does not fit the memory, which has 1 bytes",
    ),
    "8-byte store of 2^40": (
        "b.u64[b.r10 - 8] = 1 << 40  # <-",
        "0x10000000000 does not fit the signed 32-bit immediate that an 8-byte store extends: "
        "load it to a register with imm64() first",
    ),
    "swapped constant of another width": (
        "ip.saddr = be16(1)  # <-",
        "Ipv4.saddr is in network order, 32 bits wide: give a plain number, or be32()",
    ),
    "little-endian constant for a network field": ("tcp.dest = le16(1)  # <-", "or be16()"),
    "constant wider than the memory": (
        "b.u16[b.r10 - 8] = be32(1)  # <-",
        "a constant of 32 bits does not fit the memory, which has 2 bytes",
    ),
    "helper -1": ("b.call(-1)  # <-", "helper -1 does not exist"),
    "helper 2^40": ("b.call(1 << 40)  # <-", "helper 1099511627776 does not exist"),
    "a name instead of a helper": (
        "b.call('map_lookup_elem')  # <-",
        "call takes a Helper or a subprogram, not str",
    ),
    # Registers.
    "write to r11": (
        "b.r11 = 1  # <-",
        "there is no such register: they are r0 to r10 and w0 to w10",
    ),
    "read of w15": ("b.r2 = b.w15  # <-", "there is no such register"),
    "write to r10": ("b.r10 = 1  # <-", "r10 is the frame pointer and can't be changed"),
    "move to r10": ("b.r10 = b.r2  # <-", "r10 is the frame pointer and can't be changed"),
    "load to r10": ("b.r10 = b.u64[b.r1]  # <-", "r10 is the frame pointer and can't be changed"),
    "arithmetic on r10": ("b.r10 -= 8  # <-", "r10 is the frame pointer and can't be changed"),
    "arithmetic on w10": ("b.w10 -= 8  # <-", "r10 is the frame pointer and can't be changed"),
    "lea to r10": ("b.lea(b.r10, b.r2 + 1)  # <-", "r10 is the frame pointer and can't be changed"),
    "fetch into r10": ("b.u64[b.r1].fetch_add(b.r10)  # <-", "r10 is the frame pointer"),
    "load_acquire into r10": ("b.u64[b.r1].load_acquire(b.r10)  # <-", "r10 is the frame pointer"),
    "w = r": (
        "b.w2 = b.r3  # <-",
        "w2 and r3 differ in width: write r3 and r2 for 64 bits, or w3 and w2 for 32",
    ),
    "r += w": ("b.r2 += b.w3  # <-", "differ in width"),
    "r == w": ("b.If(b.r2 == b.w3).goto('x')  # <-", "differ in width"),
    "load to w": (
        "b.w2 = ctx.mark  # <-",
        "write b.r2: a load of 1, 2 or 4 bytes clears the rest of the register",
    ),
    "store from w": (
        "ctx.mark = b.w2  # <-",
        "write b.r2: a store takes as many bytes of the register as the field has",
    ),
    "atomic with w": ("b.u32[b.r1].lock_add(b.w2)  # <-", "write b.r2: an atomic operation takes"),
    "sign extension between widths": ("b.r2 = s8(b.w3)  # <-", "differ in width"),
    "s32 of a w register": (
        "b.w2 = s32(b.w3)  # <-",
        "a 32-bit register has no bits left to extend into",
    ),
    "address in w": ("b.r2 = b.u32[b.w3]  # <-", "w3 is 32 bits wide and can't hold an address"),
    "map in w": ("b.w1 = FLOWS  # <-", "an address needs all of the register: write b.r1"),
    "context in w": ("b.w6 = ctx  # <-", "an address needs all of the register: write b.r6"),
    "lea to w": ("b.lea(b.w2, b.r3 + 1)  # <-", "w2 is 32 bits wide and can't hold an address"),
    "swap into another register": (
        "b.r2 = be16(b.r3)  # <-",
        "a byte swap works in place: write b.r3 = … b.r3",
    ),
    "negation into another register": (
        "b.r2 = -b.r3  # <-",
        "a negation works in place: write b.r3 = … b.r3",
    ),
    "swap of w": ("b.w2 = be16(b.w2)  # <-", "a byte swap clears the bits above its width: write b.r2"),
    "no such attribute of b": ("b.exti()  # <-", "Asm has no 'exti'; did you mean 'exit'?"),
    # Statements that would take two instructions.
    "r2 = r3 + r4": ("b.r2 = b.r3 + b.r4  # <-", "b.rN + b.rM would take two instructions: b.rN += b.rM"),
    "r2 = r3 - r4": ("b.r2 = b.r3 - b.r4  # <-", "b.rN - b.rM would take two instructions: b.rN -= b.rM"),
    "r2 = r3 + 8": (
        "b.r2 = b.r3 + 8  # <-",
        "an address and its offset take two instructions: b.lea(b.rN, …), or move and add",
    ),
    "r2 = r3 * 2": (
        "b.r2 = b.r3 * 2  # <-",
        "one statement is one instruction: change a register in place, as in b.rN <<= x",
    ),
    "r2 = r3 << 2": ("b.r2 = b.r3 << 2  # <-", "one statement is one instruction"),
    "r2 = r3 | 2": ("b.r2 = b.r3 | 2  # <-", "one statement is one instruction"),
    "r2 = 2 - r3": ("b.r2 = 2 - b.r3  # <-", "one statement is one instruction"),
    "r2 = 1 << r3": ("b.r2 = 1 << b.r3  # <-", "one statement is one instruction"),
    "r2 = r3 & 7": (
        "b.r2 = b.r3 & 7  # <-",
        "a comparison has no value to assign: use b.If(…); to mask bits write b.rN &= x",
    ),
    "r2 = r3 == 7": ("b.r2 = b.r3 == 7  # <-", "a comparison has no value to assign"),
    "r2 = ~r3": ("b.r2 = ~b.r3  # <-", "there is no instruction that inverts bits: write b.r3 ^= -1"),
    "floor division": (
        "b.r2 //= 2  # <-",
        "unsigned division is b.rN /= x, as the kernel prints it; signed is b.rN.sdiv(x)",
    ),
    "r2 ** 2": ("b.r2 **= 2  # <-", "there is no instruction that does this"),
    "r2 = key": (
        "b.r2 = inner  # <-",
        "the address of that takes two instructions: b.lea(b.rN, …)",
    ),
    "address plus register": (
        "b.r2 = b.u32[b.r10 - 8 + b.r3]  # <-",
        "an address is one register and a constant; add registers with b.rN += b.rM first",
    ),
    # Memory.
    "r += memory": (
        "b.r2 += ctx.mark  # <-",
        "the operand is a register or a constant, not memory: load it to a register first",
    ),
    "memory += 1": (
        "ctx.mark += 1  # <-",
        "SkBuff.mark can't be an operand: load it to a register first "
        "(an atomic addition is .lock_add(b.rN))",
    ),
    "memory &= 1": ("b.u32[b.r1] &= 1  # <-", "memory can't be an operand"),
    "memory compared": ("b.If(ctx.mark == 1).goto('x')  # <-", "SkBuff.mark can't be an operand"),
    "memory as a truth": ("if ctx.mark: pass  # <-", "SkBuff.mark can't be an operand"),
    "register compared with memory": (
        "b.If(b.r2 == ctx.mark).goto('x')  # <-",
        "a register is compared with a register or a constant, not with memory: load it to a register first",
    ),
    "swap of memory": ("b.r2 = be16(tcp.dest)  # <-", "memory: load it to a register first"),
    "memory to memory": (
        "ctx.mark = ctx.len  # <-",
        "memory to memory takes two instructions: load it to a register, then store that",
    ),
    "address stored": (
        "b.u64[b.r10 - 8] = b.r10 - 16  # <-",
        "a store takes a register or a constant: put the address in a register first",
    ),
    "map stored": ("b.u64[b.r10 - 8] = FLOWS  # <-", "put the address in a register first"),
    "text stored": ("b.u64[b.r10 - 8] = 'x'  # <-", "a store takes a register or a constant, not str"),
    "memory at a number": (
        "b.r2 = b.u32[4]  # <-",
        "memory is reached through a register: b.u32[b.r1 + 4]",
    ),
    "elements of a register": ("b.r2 = b.r3[4]  # <-", "r3 has no elements: memory is b.u32[b.r3 + 4]"),
    "field typo": ("b.r2 = ctx.makr  # <-", "SkBuff has no field 'makr'; did you mean 'mark'?"),
    "field typo in a store": ("ctx.makr = 1  # <-", "SkBuff has no field 'makr'; did you mean 'mark'?"),
    "element outside": ("b.r2 = ctx.cb[5]  # <-", "index 5 is outside SkBuff.cb, which has 5 elements"),
    "negative element": ("b.r2 = ctx.cb[-1]  # <-", "index -1 is outside SkBuff.cb"),
    "word outside": (
        "b.r2 = ip6.flow_lbl.u32(0)  # <-",
        "word 0 (4 bytes) is outside Ipv6.flow_lbl, 3 bytes",
    ),
    "array assigned": (
        "ctx.cb = b.r2  # <-",
        "SkBuff.cb is an array: assign to one element, cb[i] = …",
    ),
    "part outside a field": (
        "b.r2 = ctx.mark.narrow(U16(), 3)  # <-",
        "bytes 3 to 5 are outside SkBuff.mark, which has 4 bytes",
    ),
    "8 bytes with sign": (
        "b.r2 = b.u64[b.r1].signed  # <-",
        "an 8-byte load has no bits left to extend into",
    ),
    "atomic of 2 bytes": (
        "b.u16[b.r1].lock_add(b.r2)  # <-",
        "atomic operations work on 4 or 8 bytes, not on 2",
    ),
    "atomic with a constant": (
        "b.u64[b.r1].lock_add(1)  # <-",
        "an atomic operation takes a register, not int",
    ),
    "view at a number": (
        "SkBuff(5)  # <-",
        "a view lies at a register or an address, SkBuff(b.rN), not at int",
    ),
    "view at a view": ("SkBuff(ctx)  # <-", "a view lies at a register or an address"),
    "lea of a register": (
        "b.lea(b.r2, b.r3)  # <-",
        "lea takes a register and what is in memory, not Reg and Reg; b.r2 = b.r3 copies a register",
    ),
    "zero of an address": (
        "b.zero(b.r10 - 8)  # <-",
        "zero takes a view of a structure or of an array, not the address r10-8",
    ),
    "stack of a view": ("b.stack(tcp)  # <-", "stack takes a structure's class, not Tcp"),
    "a helper by name": ("b.call('bpf_map_lookup_elem')  # <-", "; did you mean Helper.map_lookup_elem?"),
    "a macro that is called": (
        "b.call(print)  # <-",
        "a plain function is a macro, which Python calls: f(b)",
    ),
    "an address and text": ("b.u32[b.r1 + 'a']  # <-", "a register and a whole number of bytes, not str"),
    "an address less half a byte": ("b.u32[b.r1 - 0.5]  # <-", "a whole number of bytes, not float"),
    "another function's register": (
        "b.r2 = Asm('other').r3  # <-",
        "this belongs to another function than case: "
        "registers and views are used in the function that they were made for",
    ),
    "another function's operand": ("b.r2 += Asm('other').r1  # <-", "belongs to another function"),
    "a comparison with another function's": (
        "b.If(b.r1 == Asm('other').r1).goto('x')  # <-",
        "belongs to another function",
    ),
    "a store of another function's": (
        "b.u64[b.r10 - 8] = Asm('other').r1  # <-",
        "belongs to another function",
    ),
    "an atomic of another function's": (
        "b.u64[b.r10 - 8].lock_add(Asm('other').r1)  # <-",
        "belongs to another function",
    ),
    "another function's memory": ("b.r2 = SkBuff(Asm('other').r1).mark  # <-", "belongs to another function"),
    "another function's address": (
        "b.lea(b.r2, SkBuff(Asm('other').r1))  # <-",
        "belongs to another function",
    ),
    "stack over 512": (
        "b.stack_bytes(500)\nb.stack_bytes(16)  # <-",
        "16 more bytes of stack make 520; a function has 512: use a map for what is large",
    ),
    "stack of a negative size": ("b.stack_bytes(-8)  # <-", "-8 bytes of stack can't be had"),
    "a register for an index": (
        "b.r2 = ctx.cb[b.r3]  # <-",
        "an index of SkBuff.cb is known in Python, and a register is not: b.lea() the array, "
        "add the index times 4, and use the memory there",
    ),
    "a register for the index of a word": (
        "b.r2 = ip6.saddr.u64(b.r3)  # <-",
        "an index of Ipv6.saddr is known in Python, and a register is not",
    ),
    "a number in what stack() took": (
        "b.u64[b.r10 - 8] = b.r3  # <-\nb.stack(Tcp)\nb.ret(0)\n*finish",
        "r10-8 is in the 24 bytes below r10 that b.stack() and b.stack_bytes() gave out: "
        "take these from b.stack_bytes() too",
    ),
    "the address of a number in what stack_bytes() took": (
        "key = b.stack_bytes(16)\nb.u64[key] = 0\nb.lea(b.r2, b.r10 - 16)  # <-\nb.ret(0)\n*finish",
        "r10-16 is in the 16 bytes below r10 that b.stack() and b.stack_bytes() gave out",
    ),
    "a view by number that ends in what stack() took": (
        "b.stack(Tcp)\nTcp(b.r10 - 32).dest = 80  # <-\nb.ret(0)\n*finish",
        "r10-32 is in the 24 bytes below r10",
    ),
    # Values that are none.
    "float": ("b.r2 = 1.5  # <-", "a register can't be set to float"),
    "None": ("b.r2 = None  # <-", "a register can't be set to NoneType"),
    "text": ("b.r2 = 'x'  # <-", "a register can't be set to str"),
    "float operand": ("b.r2 += 1.5  # <-", "the operand is a register or a constant, not float"),
    "imm64 of a register": ("b.r2 = imm64(b.r3)  # <-", "imm64() takes a constant, not Reg"),
    "be16 of text": ("b.r2 = be16('x')  # <-", "be16() takes a register or a constant, not str"),
    "s8 of a number": ("b.r2 = s8(4)  # <-", "s8() takes a register, not int"),
    "bswap16 of memory": ("b.r2 = bswap16(ctx.mark)  # <-", "bswap16() takes a register, not memory"),
    # Python's control flow on what is known only in the kernel.
    "Python if on a comparison": (
        "if b.r2 == 1:  # <-\n    pass",
        "a comparison of registers has no truth value while the program is written: "
        "use `with b.If(…):`, and & | ~ instead of and, or, not",
    ),
    "Python if on a register": (
        "if b.r2:  # <-\n    pass",
        "a register has no truth value while the program is written: with b.If(b.rN != 0):",
    ),
    "and": ("b.If(b.r2 == 1 and b.r3 == 2).goto('x')  # <-", "& | ~ instead of and, or, not"),
    "or": ("b.If(b.r2 == 1 or b.r3 == 2).goto('x')  # <-", "& | ~ instead of and, or, not"),
    "not": ("b.If(not b.r2 == 1).goto('x')  # <-", "& | ~ instead of and, or, not"),
    "chained comparison": ("b.If(1 < b.r2 < 5).goto('x')  # <-", "& | ~ instead of and, or, not"),
    "in": ("b.If(b.r2 in (1, 2)).goto('x')  # <-", "& | ~ instead of and, or, not"),
    "while": ("while b.r2 > 1:  # <-\n    pass", "& | ~ instead of and, or, not"),
    "missing parentheses around &": (
        "b.If(b.r2 == 1 & b.r3 == 2).goto('x')  # <-",
        "one statement is one instruction",
    ),
    "comparison of masked bits": (
        "b.If((b.r2 & 6) == 2).goto('x')  # <-",
        "a comparison has no value: b.If(b.rN & bits) is true where any of the bits is set",
    ),
    "comparison joined with a number": (
        "b.If((b.r2 == 1) & 2).goto('x')  # <-",
        "conditions are joined with conditions: put each comparison in parentheses, "
        "(b.r1 == 1) & (b.r2 == 2)",
    ),
    "a negative number looked for without a sign": (
        "b.If(b.r0 < 0).goto('x')  # <-",
        "r0 < 0 never holds, because < compares without a sign: with it is b.r0.slt(0)",
    ),
    "no negative number looked for without a sign": (
        "with b.If((b.r2 == 1) & (b.w0 >= 0)):  # <-\n    b.ret(0)",
        "w0 >= 0 always holds, because >= compares without a sign: with it is b.w0.sge(0)",
    ),
    "more than the largest number": (
        "b.If(b.r0 > -1).goto('x')  # <-",
        "r0 > -1 never holds, because > compares without a sign: with it is b.r0.sgt(-1)",
    ),
    "up to the largest number of 32 bits": (
        "b.If(b.w0 <= 0xffffffff).goto('x')  # <-",
        "w0 <= -1 always holds, because <= compares without a sign",
    ),
    "If of a register": ("b.If(b.r2).goto('x')  # <-", "If takes a comparison of registers, not Reg"),
    "If of a Python truth": (
        "b.If(True).goto('x')  # <-",
        "If takes a comparison of registers, not bool; what is known in Python needs a plain `if`",
    ),
    "While of a number": ("b.While(1)  # <-", "While takes a comparison of registers, not int"),
    "Elif of a number": ("b.Elif(1)  # <-", "Elif takes a comparison of registers, not int"),
    # Things that write nothing.
    "comparison unused": (
        "b.r2 == 1  # <-\nb.ret(0)\n*finish",
        "this comparison does nothing: it belongs in b.If(…)",
    ),
    "If unused": (
        "b.If(b.r2 == 1)  # <-\nb.ret(0)\n*finish",
        "If(…) is neither a `with` block nor followed by .goto()",
    ),
    "Elif unused": (
        "with b.If(b.r2 == 1):\n    b.r3 = 1\nb.Elif(b.r2 == 2)  # <-\nb.ret(0)\n*finish",
        "Elif(…) does nothing without `with`",
    ),
    "Else unused": ("b.Else()  # <-\nb.ret(0)\n*finish", "Else(…) does nothing without `with`"),
    "Loop unused": ("b.Loop()  # <-\nb.ret(0)\n*finish", "Loop(…) does nothing without `with`"),
    "While unused": ("b.While(b.r2 > 1)  # <-\nb.ret(0)\n*finish", "While(…) does nothing without `with`"),
    "swap unused": (
        "be16(b.r2)  # <-\nb.ret(0)\n*finish",
        "this does nothing: its result must be assigned, b.r2 = …",
    ),
    "negation unused": ("-b.r2  # <-\nb.ret(0)\n*finish", "this does nothing: its result must be assigned"),
    # Blocks and labels.
    "Else without If": (
        "b.r2 = 1\nwith b.Else():  # <-\n    b.r3 = 1",
        "Else must follow the block of an If directly",
    ),
    "Elif after another statement": (
        "with b.If(b.r2 == 1):\n    b.r3 = 1\nb.r4 = 1\nwith b.Elif(b.r2 == 2):  # <-\n    b.r3 = 2",
        "Elif must follow the block of an If directly",
    ),
    "Else after Else": (
        "with b.If(b.r2 == 1):\n    b.r3 = 1\nwith b.Else():\n    b.r3 = 2\n"
        "with b.Else():  # <-\n    b.r3 = 3",
        "Else must follow the block of an If directly",
    ),
    "Else inside the If": (
        "with b.If(b.r2 == 1):\n    b.r3 = 1\n    with b.Else():  # <-\n        b.r3 = 2",
        "Else must follow the block of an If directly",
    ),
    "Else after a label": (
        "with b.If(b.r2 == 1):\n    b.r3 = 1\nb.label('x')\nwith b.Else():  # <-\n    b.r3 = 2",
        "Else must follow the block of an If directly",
    ),
    "Else of a loop": (
        "with b.Loop() as loop:\n    loop.leave()\nwith b.Else():  # <-\n    b.r3 = 2",
        "Else must follow the block of an If directly",
    ),
    "one If for two blocks": (
        "once = b.If(b.r2 == 1)\nwith once:\n    b.r3 = 1\nwith once:  # <-\n    b.r3 = 2",
        "this If has been written already: each place needs one of its own",
    ),
    "one Loop for two blocks": (
        "once = b.Loop()\nwith once as loop:\n    loop.leave()\nwith once:  # <-\n    pass",
        "this Loop has been written already",
    ),
    "unknown label": (
        "b.label('finish')\nb.r2 = 1\nb.goto('finsh')  # <-\n*finish",
        "label 'finsh' is not marked in case; did you mean 'finish'?",
    ),
    "unknown label, nothing like it": (
        "b.goto('elsewhere')  # <-\n*finish",
        "label 'elsewhere' is not marked in case",
    ),
    "unknown label, and so nothing leads to the right one": (
        "b.goto('finsh')  # <-\nb.label('finish')\n*finish",
        "label 'finsh' is not marked in case; did you mean 'finish'?",
    ),
    "label twice": (
        "b.label('x')\nb.r2 = 1\nb.label('x')  # <-",
        "label 'x' marks another place already",
    ),
    "number as label": ("b.goto(5)  # <-", "a label is a name or a Label, not int"),
    "leaving a loop that has ended": (
        "with b.Loop() as loop:\n    b.r2 += 1\n    b.If(b.r2 > 5).goto('out')\n"
        "b.label('out')\nloop.leave()  # <-\n*finish",
        "label 'endloop' is not marked in case",
    ),
    "unreachable statement": (
        "b.ret(0)\nb.r2 = 1  # <-",
        "this can't be reached: the statement before always leaves "
        "(put a label here if something jumps to it)",
    ),
    "unreachable after goto": ("b.goto('x')\nb.exit()  # <-", "this can't be reached"),
    "unreachable after all branches": (
        "with b.If(b.r2 == 1):\n    b.ret(1)\nwith b.Else():\n    b.ret(2)\nb.r3 = 1  # <-",
        "this can't be reached",
    ),
    "unreachable loop": (
        "b.ret(0)\nwith b.Loop() as loop:  # <-\n    loop.leave()",
        "this can't be reached",
    ),
    "unreachable label": (
        "b.ret(0)\nb.label('x')  # <-\nb.r2 = 1\nb.ret(0)\n*finish",
        "what follows label 'x' can't be reached: nothing jumps to it, "
        "and the statement before always leaves",
    ),
    "fall off the end": (
        "b.r0 = 0\nb.r2 = 1  # <-\n*finish",
        "case runs past its end after this statement: it needs b.exit() or b.ret()",
    ),
    "jump off the end": (
        "b.If(b.r2 == 1).goto('end')\nb.ret(0)  # <-\nb.label('end')\n*finish",
        "case runs past its end after this statement",
    ),
    # Declarations.
    "decorator without parentheses": (
        "@sched_cls  # <-\ndef main(b, ctx): b.ret(0)",
        "write the decorator with parentheses: @sched_cls()",
    ),
    "wrong attach type": (
        "@sched_cls(AttachType.XDP)  # <-\ndef main(b, ctx): b.ret(0)",
        "SCHED_CLS programs attach as TCX_INGRESS, TCX_EGRESS, not as XDP",
    ),
    "text as attach type": (
        "@sched_cls('ingress')  # <-\ndef main(b, ctx): b.ret(0)",
        "an attach type is an AttachType, not 'ingress'",
    ),
    "attach type missing": (
        "@cgroup_sockopt()  # <-\ndef main(b, ctx): b.ret(0)",
        "CGROUP_SOCKOPT programs need an attach type: CGROUP_GETSOCKOPT, CGROUP_SETSOCKOPT",
    ),
    "long name": (
        "@sched_cls()  # <-\ndef a_name_of_16_chr(b, ctx): b.ret(0)",
        "program name 'a_name_of_16_chr': the kernel takes 1 to 15 letters, digits and '_'; give name=…",
    ),
    "bad name": ("@sched_cls(name='a-b')  # <-\ndef main(b, ctx): b.ret(0)", "program name 'a-b'"),
    "no plain function": (
        "sched_cls()(print)  # <-",
        "a program is a plain function, not builtin_function_or_method",
    ),
    "six arguments": (
        "@subprogram('a', 'b', 'c', 'd', 'e', 'f')  # <-\ndef f(b): b.ret(0)",
        "a subprogram takes at most 5 arguments, in r1 to r5; got 6",
    ),
    "subprogram without parentheses": (
        "@subprogram  # <-\ndef f(b): b.ret(0)",
        'a subprogram names its arguments: @subprogram("data", "length"), or @subprogram()',
    ),
    "global_function without a context": (
        "@global_function('total')  # <-\ndef f(b): b.ret(0)",
        "a global function takes the program's context first, such as SkBuff, not 'total': "
        'what takes only numbers takes it too, @global_function(SkBuff, "number")',
    ),
    "global_function without parentheses": (
        "@global_function  # <-\ndef f(b): b.ret(0)",
        "a global function takes the program's context first, such as SkBuff, not function",
    ),
    "global_function with a pointer to no structure": (
        "@global_function(SkBuff, event=4)  # <-\ndef f(b): b.ret(0)",
        "a global function takes pointers to structures: event= a class with fields, not 4",
    ),
    "global_function with two of a name": (
        "@global_function(SkBuff, 'tcp', tcp=Tcp)  # <-\ndef f(b): b.ret(0)",
        "two arguments have the name 'tcp'",
    ),
    "global_function with too many pointers": (
        "@global_function(SkBuff, 'a', 'b', 'c', tcp=Tcp, ip=Tcp)  # <-\ndef f(b): b.ret(0)",
        "a global function takes at most 4 arguments beside its context; got 5",
    ),
    "global_function of a structure": (
        "@global_function(SkBuff, Tcp)  # <-\ndef f(b): b.ret(0)",
        'a global function names its numbers: @global_function(SkBuff, "length")',
    ),
}


def run(title: str, source: str) -> None:
    """Execute *source* as a file of its own; ``*finish`` ends the function."""
    filename = f"<case {title}>"
    source = source.replace("*finish", "b.finish()")
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    b = Asm("case")
    names: dict[str, Any] = {name: getattr(asm, name) for name in asm.__all__}
    names |= {name: getattr(program, name) for name in program.__all__}
    names |= {"b": b, "ctx": SkBuff(b.r1), "tcp": net.Tcp(b.r7), "ip": net.Ipv4(b.r7), "ip6": net.Ipv6(b.r7)}
    names |= {"inner": net.Tcp(b.r7 + 24), "Tcp": net.Tcp, "FLOWS": FLOWS, "STATS": STATS, "U16": layout.U16}
    names |= {"SkBuff": SkBuff, "AttachType": AttachType, "Helper": Helper, "__name__": "cases"}
    exec(compile(source, filename, "exec"), names)


@pytest.mark.parametrize("title", CASES)
def test_mistake_is_named_at_its_line(title: str) -> None:
    """The message says what is wrong; the location is the line that is."""
    source, message = CASES[title]
    blamed = next(number for number, line in enumerate(source.splitlines(), 1) if line.endswith("# <-"))
    with pytest.raises(AsmError) as caught:
        run(title, source)
    assert message in caught.value.message
    location = caught.value.location
    assert location is not None
    assert (location.filename, location.line) == (f"<case {title}>", blamed)
    assert location.text == source.splitlines()[blamed - 1].strip()
    assert str(caught.value).startswith(f"<case {title}>:{blamed}: {caught.value.message}\n    ")


def test_function_without_instructions() -> None:
    """There is no line to blame."""
    with pytest.raises(AsmError, match="case has no instructions") as caught:
        Asm("case").finish()
    assert caught.value.location is None


def test_the_callers_of_a_macro_are_shown() -> None:
    """A mistake in a macro points at the macro's line, and then at who called it with what."""

    def shift(b: Asm, bits: int) -> None:
        b.r2 <<= bits

    def twice(b: Asm, bits: int) -> None:
        shift(b, bits)
        shift(b, 2 * bits)

    @program.sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        twice(b, 40)
        b.ret(0)

    with pytest.raises(AsmError) as caught:
        main.build()
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("r2 can be shifted by 0 to 63 bits, not by 80")
    assert lines[1] == "    b.r2 <<= bits"
    assert lines[2].startswith("  called from ") and lines[2].endswith("shift(b, 2 * bits)")
    assert lines[3].startswith("  called from ") and lines[3].endswith("twice(b, 40)")
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("write", "became"),
    [
        (lambda b: setattr(b, "r1", FLOWS), "map 'flows'"),
        (lambda b: setattr(b, "r1", STATS.value_at(8)), "map 'stats'"),
        (lambda b: setattr(b, "r1", asm.imm64(1 << 40)), "something else"),
    ],
)
@pytest.mark.parametrize("access", ["load", "store", "element"])
def test_the_context_is_not_read_from_what_its_register_became(
    write: Callable[[Asm], None], became: str, access: str
) -> None:
    """Linux takes such loads: the first fields of `struct bpf_map` and map values may be read."""

    @program.sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r6 = ctx
        b.r2 = ctx.mark
        write(b)
        b.r3 = 5
        with b.If(b.r3 == 5):
            if access == "load":
                b.r2 = ctx.mark
            elif access == "store":
                ctx.mark = b.r3
            else:
                b.r2 = ctx.cb[1]
        b.ret(0)

    with pytest.raises(AsmError) as caught:
        main.build()
    field = "SkBuff.cb[1]" if access == "element" else "SkBuff.mark"
    assert f"{field} is read or written at r1, which is {became} since " in caught.value.message
    assert caught.value.message.endswith(": keep the context, b.r6 = ctx, and write SkBuff(b.r6)")
    assert caught.value.location is not None and "ctx." in caught.value.location.text


def test_a_bound_that_is_a_setting_may_be_any_number() -> None:
    """The first number of a range may be 0, the last the largest; errors are a range without a sign too."""

    def outside(b: Asm, first: int, last: int) -> None:
        b.If((b.w2 < first) | (b.w2 > last)).goto("out")

    b = Asm("ranges")
    outside(b, 0, 0xFFFFFFFF)
    b.If(b.r0 >= -4095).goto("out")
    b.If(b.r0.slt(0)).goto("out")
    b.ret(1)
    b.label("out")
    b.ret(0)
    assert len(b.finish()) == 8


def test_a_context_that_may_be_there_is_read() -> None:
    """It came back, or another way leads here."""

    @program.sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r6 = ctx
        b.r1 = FLOWS
        b.r2 = SkBuff(b.r6).mark
        b.r1 = b.r6
        b.r2 = ctx.mark
        b.If(b.r2 == 1).goto("there")
        b.r1 = FLOWS
        b.ret(0)
        b.label("there")
        b.r2 = ctx.mark
        b.ret(0)

    assert main.build().slots == 14


def test_jump_of_exactly_16_bits_and_a_long_unconditional_one() -> None:
    """32767 slots forwards are possible; ``goto`` further than that becomes ``gotol``."""
    b = Asm("far")
    b.If(b.r2 == 1).goto("far")
    b.If(b.r2 == 2).goto("near")
    b.goto("farther")
    b.label("near")
    for _ in range(32765):
        b.w3 = 1
    b.label("far")
    b.r3 = 1
    b.r3 = 2
    b.r3 = 3
    b.label("farther")
    b.ret(0)
    body = b.finish()
    assert body[0].offset == 32767
    assert (body[2].opcode, body[2].imm, body[2].offset) == (0x06, 32768, 0)


def test_what_is_no_mistake() -> None:
    """Statements that look like guarded ones."""
    b = Asm("fine")
    pointer = b.r2
    pointer += 4
    b.r3 = pointer  # an alias of a register remains one after it was changed
    b.r2 = pointer
    with b.If(~~(b.r3 == 1) & ~((b.r3 == 2) | (b.r3 & 3))):
        pass
    b.If(5 == b.r2).goto("out")  # type: ignore[arg-type]  # noqa: SIM300
    b.If(5 < b.r2).goto("out")  # noqa: SIM300
    b.ret(0)
    b.label("out")
    b.label("and another")
    b.ret(1)
    body = b.finish()
    assert [insn.opcode for insn in body[:2]] == [0x07, 0xBF]
    assert [insn.opcode for insn in body[-6:-4]] == [0x15, 0x25]  # 5 < r2 is r2 > 5
