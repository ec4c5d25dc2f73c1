# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A shim for the first candidate: a function for each mnemonic, registers as plain constants."""

from __future__ import annotations

from pybpfasm.instruction import Instruction
from pybpfasm.maps import MapSpec

r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10 = range(11)

program: list[Instruction] = []
_labels: dict[str, int] = {}


def _emit(opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0, to: object = None) -> None:
    program.append(Instruction(opcode, dst, src, offset, imm, reference=to))


class _Move:
    """An instruction of a register and another one: ``mov(r2, r3)``."""

    def __init__(self, opcode: int) -> None:
        self.opcode = opcode

    def __call__(self, dst: int, src: int) -> None:
        _emit(self.opcode, dst, src)


class _Constant(_Move):
    """Of a register and a number: ``movi(r2, 5)``."""

    def __call__(self, dst: int, imm: int) -> None:
        _emit(self.opcode, dst, imm=imm)


class _Load(_Move):
    """``ldxw(dst, src, offset)``."""

    def __call__(self, dst: int, src: int, offset: int) -> None:  # type: ignore[override]
        _emit(self.opcode, dst, src, offset)


class _Store(_Move):
    """``stxw(dst, offset, src)``, and with a number ``stw(dst, offset, imm)``."""

    def __call__(self, dst: int, offset: int, what: int) -> None:  # type: ignore[override]
        is_register = self.opcode & 7 == 3
        _emit(self.opcode, dst, what if is_register else 0, offset, 0 if is_register else what)


class _Jump(_Move):
    """``jgt(r2, r3, "label")``, and with a number ``jgti(r2, 5, "label")``."""

    def __call__(self, dst: int, what: int, to: str) -> None:  # type: ignore[override]
        is_register = self.opcode & 8
        _emit(self.opcode, dst, what if is_register else 0, 0, 0 if is_register else what, to)


mov, movi, addi = _Move(0xBF), _Constant(0xB7), _Constant(0x07)
ldxb, ldxh, ldxw = _Load(0x71), _Load(0x69), _Load(0x61)
sth, stxh, stxw = _Store(0x6A), _Store(0x6B), _Store(0x63)
jeqi, jnei, jne, jlti, jgti = _Jump(0x15), _Jump(0x55), _Jump(0x5D), _Jump(0xA5), _Jump(0x25)
jgt, jseti = _Jump(0x2D), _Jump(0x45)


def be16(dst: int) -> None:
    _emit(0xDC, dst, imm=16)


def ldmap(dst: int, what: MapSpec) -> None:
    _emit(0x18, dst, 1, to=what)


def call(helper: int) -> None:
    _emit(0x85, imm=helper)


def exit() -> None:
    _emit(0x95)


def label(name: str) -> None:
    _labels[name] = sum(insn.slots for insn in program)


def assemble() -> bytes:
    at = 0
    for insn in program:
        at += insn.slots
        if isinstance(insn.reference, str):
            insn.offset = _labels[insn.reference] - at
    code = b"".join(insn.encode() for insn in program)
    program.clear()
    return code
