# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a target lacks, said with what it has: where that is exact and takes no other register.

=====================  ==========================================================================
written                becomes
=====================  ==========================================================================
``if rA < rB``         ``if rB > rA``; ``<=``, ``s<`` and ``s<=`` likewise
``if rA < N``          ``if rA >= N`` over a ``goto``; ``< 1`` and ``<= 0`` are ``== 0``
``rA = bswapN rA``     ``rA = beN rA`` on a little-endian machine, ``leN`` on the other
``rA = (sN)rB``        a move (none where A is B), a shift left, an arithmetic shift right
``rA = *(sN *)(…)``    the unsigned load, a shift left, an arithmetic shift right
``gotol``              ``goto``, by way of others where it is too far
``wA s>>= N``          on 64 bits: a shift left by 32, one right by 32 + N, ``wA = wA``
=====================  ==========================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pybpfasm import isa
from pybpfasm.asm.branches import Label
from pybpfasm.asm.splice import Sequel, splice
from pybpfasm.errors import AsmError
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Jump
from pybpfasm.source import resolve

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm
    from pybpfasm.target import Target

# The comparison with its operands exchanged, and the one that holds where it does not.
_EXCHANGED: Final = {Jump.JLT: Jump.JGT, Jump.JLE: Jump.JGE, Jump.JSLT: Jump.JSGT, Jump.JSLE: Jump.JSGE}
_OPPOSITE: Final = {Jump.JLT: Jump.JGE, Jump.JLE: Jump.JGT, Jump.JSLT: Jump.JSGE, Jump.JSLE: Jump.JSGT}
_IS_ZERO: Final = {(Jump.JLT, 1), (Jump.JLE, 0)}


def rewrite(asm: Asm, target: Target) -> None:
    """Leave only instructions in *asm* that *target* has.

    Raises `AsmError` at the Python line of the first that can't be said otherwise.
    """
    instead: dict[int, Sequel] = {}
    for index, insn in enumerate(asm._body):
        if insn.opcode not in target.complete:
            written = _within(asm, insn, target)
            if len(written) != 1 or written[0] is not insn:
                instead[index] = written
    if instead:
        splice(asm, instead)


def _within(asm: Asm, insn: Instruction, target: Target) -> Sequel:
    """*insn* in instructions of *target*: itself, or others in its place."""
    problem = target.problem(insn)
    if problem is None:
        return (insn,)
    others = _others(asm, insn)
    if others is None:
        raise AsmError(problem, None if insn.origin is None else resolve(insn.origin))
    out: list[Instruction | Label] = []
    for item in others:
        if isinstance(item, Label):
            out.append(item)
        else:
            item.origin = insn.origin
            out += _within(asm, item, target)
    return out


def _others(asm: Asm, insn: Instruction) -> Sequel | None:
    opcode, dst, src = insn.opcode, insn.dst, insn.src
    if opcode == isa.OP_GOTOL:
        return (Instruction(isa.OP_JA, reference=insn.reference),)
    cls, op = opcode & 7, opcode & 0xF0
    if cls == isa.JMP and op in _EXCHANGED:
        return _comparison(insn, Jump(op))
    if cls == isa.ALU64 and op == Alu.END:
        source = isa.X if asm.byteorder == "little" else isa.K
        return (Instruction(isa.ALU | Alu.END | source, dst, imm=insn.imm),)
    if cls in (isa.ALU, isa.ALU64) and op == Alu.MOV and insn.offset in (8, 16, 32):
        shift = (64 if cls == isa.ALU64 else 32) - insn.offset
        move = () if dst == src else (Instruction(cls | Alu.MOV | isa.X, dst, src),)
        return (*move, *_shifts(cls, dst, shift, shift))
    if cls == isa.LDX and opcode & 0xE0 == isa.MEMSX and insn.reference is None:
        shift = 64 - 8 * isa.SIZE_OF[opcode & 0x18]
        load = Instruction(isa.LDX | isa.MEM | opcode & 0x18, dst, src, insn.offset)
        return (load, *_shifts(isa.ALU64, dst, shift, shift))
    if opcode == isa.ALU | Alu.ARSH | isa.K:
        clear = Instruction(isa.ALU | Alu.MOV | isa.X, dst, dst)
        return (*_shifts(isa.ALU64, dst, 32, 32 + insn.imm), clear)
    return None


def _shifts(cls: int, dst: int, left: int, right: int) -> Sequel:
    return (
        Instruction(cls | Alu.LSH | isa.K, dst, imm=left),
        Instruction(cls | Alu.ARSH | isa.K, dst, imm=right),
    )


def _comparison(insn: Instruction, jump: Jump) -> Sequel:
    label = insn.reference
    if insn.opcode & isa.X:
        return (Instruction(isa.JMP | _EXCHANGED[jump] | isa.X, insn.src, insn.dst, reference=label),)
    if (jump, insn.imm) in _IS_ZERO:
        return (Instruction(isa.JMP | Jump.JEQ | isa.K, insn.dst, reference=label),)
    skip = Label("skip")
    over = Instruction(isa.JMP | _OPPOSITE[jump] | isa.K, insn.dst, imm=insn.imm, reference=skip)
    return over, Instruction(isa.OP_JA, reference=label), skip
