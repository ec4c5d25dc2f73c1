# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Statements as mnemonics and operands, the syntax of the conformance suite and of userspace interpreters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from pybpfasm import isa
from pybpfasm.isa import Alu, Atomic, Imm64, Jump
from pybpfasm.text.tokens import Cursor

if TYPE_CHECKING:
    from pybpfasm.text.parser import _Parser

Handler = Callable[["_Parser", Cursor], None]


def _comma(c: Cursor) -> None:
    c.expect(",", "another operand")


def _memory(c: Cursor) -> tuple[int, int]:
    """``[%r1+2]``: register and offset."""
    c.expect("[", "memory, such as [%r1+8],")
    base = c.r()
    offset = c.offset()
    c.expect("]")
    return base, offset


def _alu(opcode: int, offset: int, p: _Parser, c: Cursor) -> None:
    dst = c.r()
    _comma(c)
    if c.is_register():
        p.emit(opcode | isa.X, dst, c.r(), offset)
    else:
        p.emit(opcode | isa.K, dst, 0, offset, c.imm32())


def _in_place(opcode: int, imm: int, p: _Parser, c: Cursor) -> None:
    p.emit(opcode, c.r(), imm=imm)


def _sign_extend(opcode: int, width: int, p: _Parser, c: Cursor) -> None:
    dst = c.r()
    _comma(c)
    p.emit(opcode, dst, c.r(), width)


def _jump_if(opcode: int, p: _Parser, c: Cursor) -> None:
    dst = c.r()
    _comma(c)
    src = imm = 0
    if c.is_register():
        src = c.r()
        opcode |= isa.X
    else:
        imm = c.imm32()
    _comma(c)
    p.jump(c, opcode, dst, src, imm)


def _jump(p: _Parser, c: Cursor) -> None:
    p.jump(c, isa.OP_JA)


def _long_jump(p: _Parser, c: Cursor) -> None:
    p.long_jump(c)


def _load(opcode: int, p: _Parser, c: Cursor) -> None:
    dst = c.r()
    _comma(c)
    src, offset = _memory(c)
    p.emit(opcode, dst, src, offset)


def _store(opcode: int, p: _Parser, c: Cursor) -> None:
    dst, offset = _memory(c)
    _comma(c)
    if c.is_register():
        c.fail(f"a constant expected: a register is stored by stx, not st ({c.peek()})")
    p.emit(opcode, dst, 0, offset, c.imm32())


def _store_register(opcode: int, p: _Parser, c: Cursor) -> None:
    dst, offset = _memory(c)
    _comma(c)
    p.emit(opcode, dst, c.r(), offset)


def _wide(p: _Parser, c: Cursor) -> None:
    dst = c.r()
    _comma(c)
    if c.kind() == "name" and c.peek() in _ADDRESSES:
        _address(p, c, dst)
    else:
        p.wide(dst, c.number(-(1 << 63), (1 << 64) - 1, 64))


# What RFC 9669, section 5.4, calls the 64-bit immediates that are no numbers.
_ADDRESSES: Final = frozenset({"map_by_fd", "map_by_idx", "map_val", "var_addr", "code_addr"})


def _address(p: _Parser, c: Cursor, dst: int) -> None:
    """``map_by_fd(flows)``, ``map_val(map_by_fd(flows))+8``, ``code_addr(label)`` and the like."""
    word = c.name("an address")
    c.expect("(")
    if word == "code_addr":
        p.code_address(c, dst)
        c.expect(")")
        return
    value = word == "map_val"
    if value:
        word = c.name("map_by_fd or map_by_idx")
        if word not in ("map_by_fd", "map_by_idx"):
            c.fail("a map's value is map_val(map_by_fd(…)) or map_val(map_by_idx(…))")
        c.expect("(")
    reference: object = None
    imm = 0
    if word == "map_by_fd" and c.kind() == "name" and c.peek() not in p.symbols:
        column = c.column()
        reference = p.map_named(c, c.name("a map"), column)
    else:
        imm = c.imm32()
    c.expect(")")
    offset = 0
    if value:
        c.expect(")")
        if c.take("+"):
            offset = c.imm32()
    src = {
        "map_by_fd": Imm64.MAP_VALUE if value else Imm64.MAP_FD,
        "map_by_idx": Imm64.MAP_IDX_VALUE if value else Imm64.MAP_IDX,
        "var_addr": Imm64.BTF_ID,
    }[word]
    p.emit(isa.LD_IMM64, dst, src, 0, imm, offset, reference)


def _packet(opcode: int, p: _Parser, c: Cursor) -> None:
    src = 0
    if opcode & 0xE0 == isa.IND:
        src = c.r()
        _comma(c)
    p.emit(opcode, 0, src, 0, c.imm32())


_ATOMICS: Final = {
    "add": Atomic.ADD,
    "or": Atomic.OR,
    "and": Atomic.AND,
    "xor": Atomic.XOR,
    "fetch_add": Atomic.FETCH_ADD,
    "fetch_or": Atomic.FETCH_OR,
    "fetch_and": Atomic.FETCH_AND,
    "fetch_xor": Atomic.FETCH_XOR,
    "xchg": Atomic.XCHG,
    "cmpxchg": Atomic.CMPXCHG,
}


def lock(p: _Parser, c: Cursor) -> None:
    """``lock [fetch] op[32|64] [%r1+0], %r2``."""
    column = c.column()
    word = c.name("an atomic operation")
    if word == "fetch":
        word = f"fetch_{c.name('an atomic operation')}"
    bits = word[-2:] if word[-2:] in ("32", "64") else ""
    size = isa.W if bits == "32" else isa.DW
    name = word.removesuffix(bits)
    if name in ("fetch_xchg", "fetch_cmpxchg"):
        name = name.removeprefix("fetch_")  # these always fetch
    op = _ATOMICS.get(name)
    if op is None:
        c.fail(f"there is no atomic operation {word[:40]!r}{c.suggest(word, _ATOMICS)}", column)
    dst, offset = _memory(c)
    _comma(c)
    p.emit(isa.STX | isa.ATOMIC | size, dst, c.r(), offset, op)


def _build() -> dict[str, Handler]:
    out: dict[str, Handler] = {}
    sizes = {"b": isa.B, "h": isa.H, "w": isa.W, "dw": isa.DW}
    for cls, suffixes in ((isa.ALU, ("32",)), (isa.ALU64, ("", "64"))):
        for suffix in suffixes:
            for op in Alu:
                if op not in (Alu.NEG, Alu.END):
                    out[op.name.lower() + suffix] = partial(_alu, cls | op, 0)
            for name, op in (("sdiv", Alu.DIV), ("smod", Alu.MOD)):
                out[name + suffix] = partial(_alu, cls | op, 1)
            out["neg" + suffix] = partial(_in_place, cls | Alu.NEG, 0)
    for width, to in ((8, 32), (16, 32), (8, 64), (16, 64), (32, 64)):
        cls = isa.ALU if to == 32 else isa.ALU64
        out[f"movsx{width}{to}"] = partial(_sign_extend, cls | Alu.MOV | isa.X, width)
    for width in (16, 32, 64):
        out[f"le{width}"] = partial(_in_place, isa.ALU | Alu.END | isa.K, width)
        out[f"be{width}"] = partial(_in_place, isa.ALU | Alu.END | isa.X, width)
        for name in ("swap", "bswap"):
            out[f"{name}{width}"] = partial(_in_place, isa.ALU64 | Alu.END, width)
    for jump in Jump:
        if jump not in (Jump.JA, Jump.CALL, Jump.EXIT, Jump.JCOND):
            out[jump.name.lower()] = partial(_jump_if, isa.JMP | jump)
            out[jump.name.lower() + "32"] = partial(_jump_if, isa.JMP32 | jump)
    out["ja"] = _jump
    out["ja32"] = _long_jump
    out["lddw"] = _wide
    for letters, size in sizes.items():
        out[f"ldx{letters}"] = partial(_load, isa.LDX | isa.MEM | size)
        out[f"st{letters}"] = partial(_store, isa.ST | isa.MEM | size)
        out[f"stx{letters}"] = partial(_store_register, isa.STX | isa.MEM | size)
        if size != isa.DW:
            for name in (f"ldxs{letters}", f"ldx{letters}sx"):
                out[name] = partial(_load, isa.LDX | isa.MEMSX | size)
            out[f"ldabs{letters}"] = partial(_packet, isa.LD | isa.ABS | size)
            out[f"ldind{letters}"] = partial(_packet, isa.LD | isa.IND | size)
    return out


MNEMONICS: Final[dict[str, Handler]] = _build()
