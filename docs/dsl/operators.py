# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A shim for the second candidate: registers as local variables, an operator for each instruction.

Python has no operator for "=" on a name, so that another one, ``@=``, must stand for a move.
"""

from __future__ import annotations

from docs.dsl.mnemonic import assemble, call, exit, label, program
from pybpfasm.instruction import Instruction
from pybpfasm.maps import MapSpec

__all__ = ["Register", "assemble", "call", "exit", "jump", "label", "u8", "u16", "u32"]


class Memory:
    """``u32[r6 + 8]``."""

    def __init__(self, size: int, base: int = 0, offset: int = 0) -> None:
        self.size, self.base, self.offset = {1: 0x10, 2: 0x08, 4: 0x00}[size], base, offset
        self.bytes = size

    def __getitem__(self, place: tuple[int, int]) -> Memory:
        return Memory(self.bytes, *place)

    def __setitem__(self, place: tuple[int, int], value: object) -> None:
        pass  # `u32[…] @= r2` ends with this; the store has been written

    def __imatmul__(self, value: Register | int) -> Memory:
        if isinstance(value, int):
            program.append(Instruction(0x62 | self.size, self.base, 0, self.offset, value))
        else:
            program.append(Instruction(0x63 | self.size, self.base, value.index, self.offset))
        return self


class Register:
    """A register; what it is compared with makes a jump's opcode and operands."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __imatmul__(self, value: Register | Memory | MapSpec | int) -> Register:
        if isinstance(value, Register):
            program.append(Instruction(0xBF, self.index, value.index))
        elif isinstance(value, Memory):
            program.append(Instruction(0x61 | value.size, self.index, value.base, value.offset))
        elif isinstance(value, int):
            program.append(Instruction(0xB7, self.index, imm=value))
        else:
            program.append(Instruction(0x18, self.index, 1, reference=value))
        return self

    def __iadd__(self, value: int) -> Register:
        program.append(Instruction(0x07, self.index, imm=value))
        return self

    def be16(self) -> None:
        program.append(Instruction(0xDC, self.index, imm=16))

    def __add__(self, offset: int) -> tuple[int, int]:
        return self.index, offset

    def __sub__(self, offset: int) -> tuple[int, int]:
        return self.index, -offset

    def _compare(self, op: int, value: Register | int) -> Instruction:
        if isinstance(value, int):
            return Instruction(op, self.index, imm=value)
        return Instruction(op | 8, self.index, value.index)

    def __eq__(self, value: Register | int) -> Instruction:  # type: ignore[override]
        return self._compare(0x15, value)

    def __ne__(self, value: Register | int) -> Instruction:  # type: ignore[override]
        return self._compare(0x55, value)

    def __gt__(self, value: Register | int) -> Instruction:
        return self._compare(0x25, value)

    def __lt__(self, value: Register | int) -> Instruction:
        return self._compare(0xA5, value)

    def __and__(self, value: int) -> Instruction:
        return self._compare(0x45, value)


u8, u16, u32 = Memory(1), Memory(2), Memory(4)


def jump(condition: Instruction, to: str) -> None:
    condition.reference = to
    program.append(condition)
