# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""One instruction: its fields, their validity, and its bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pybpfasm import isa
from pybpfasm.errors import DecodeError
from pybpfasm.isa import FORMS, LD_IMM64, Form

if TYPE_CHECKING:
    from pybpfasm.layout import ByteOrder
    from pybpfasm.source import Origin

_LITTLE = struct.Struct("<BBhi")
_BIG = struct.Struct(">BBhi")

SLOT_SIZE = 8


@dataclass(slots=True, eq=True)
class Instruction:
    """An instruction's fields (RFC 9669, section 3.1).

    ``imm`` is the signed 32-bit immediate; of the wide ``lddw`` it holds the low and ``imm_high`` the high 32
    bits, both signed. ``reference`` names what an immediate or offset stands for until it is known (a label,
    a map, a subprogram); ``origin`` is the Python code that wrote the instruction (see `pybpfasm.source`).
    """

    opcode: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    imm: int = 0
    imm_high: int = 0
    reference: object = None
    origin: Origin | None = field(default=None, compare=False, repr=False)

    @property
    def wide(self) -> bool:
        """Whether it takes two slots."""
        return self.opcode == LD_IMM64

    @property
    def slots(self) -> int:
        """How many 8-byte slots it takes: 2 for ``lddw``, else 1."""
        return 2 if self.opcode == LD_IMM64 else 1

    @property
    def imm64(self) -> int:
        """The unsigned 64-bit immediate of a ``lddw``."""
        return (self.imm & 0xFFFFFFFF) | (self.imm_high & 0xFFFFFFFF) << 32

    def form(self) -> Form | None:
        """The legal form that the fields have, or ``None`` when the instruction is invalid."""
        for form in FORMS.get(self.opcode, ()):
            if (
                self.dst in form.dst
                and self.src in form.src
                and self.offset in form.offset
                and self.imm in form.imm
            ):
                return form
        return None

    def problem(self) -> str | None:
        """Why the instruction is invalid, in words, or ``None`` when it is valid."""
        if not -(1 << 15) <= self.offset < 1 << 15:
            return f"offset {self.offset} does not fit 16 bits"
        for value in (self.imm, self.imm_high):
            if not -(1 << 31) <= value < 1 << 31:
                return f"immediate {value} does not fit 32 bits"
        if self.form() is not None:
            if self.imm_high and not self.wide:
                return "only a 64-bit immediate load has a second immediate"
            return self._problem_of_wide()
        forms = FORMS.get(self.opcode)
        if forms is None:
            return f"opcode {self.opcode:#04x} does not exist"
        # Blame the field that the closest form refuses.
        best: tuple[int, str] = (-1, "")
        for form in forms:
            refused = [
                f"{name} is {value}, must be {allowed}"
                for name, value, allowed in (
                    ("dst", self.dst, form.dst),
                    ("src", self.src, form.src),
                    ("offset", self.offset, form.offset),
                    ("imm", self.imm, form.imm),
                )
                if value not in allowed
            ]
            if -len(refused) > best[0] or best[0] == -1:
                best = (-len(refused), f"{form.name}: " + "; ".join(refused))
        return best[1]

    def _problem_of_wide(self) -> str | None:
        if self.opcode != LD_IMM64 or self.src in (
            isa.Imm64.VALUE,
            isa.Imm64.MAP_VALUE,
            isa.Imm64.MAP_IDX_VALUE,
        ):
            return None
        if self.src == isa.Imm64.BTF_ID:  # the high half is the descriptor of the module's BTF
            return None
        return "the upper immediate of this 64-bit load must be 0" if self.imm_high else None

    def encode(self, byteorder: ByteOrder = "little") -> bytes:
        """The instruction's 8 bytes, 16 for ``lddw``.

        Raises `struct.error` where a field is out of range.
        """
        little = byteorder == "little"
        packer = _LITTLE if little else _BIG
        registers = self.dst | self.src << 4 if little else self.dst << 4 | self.src
        out = packer.pack(self.opcode, registers, self.offset, self.imm)
        if self.opcode == LD_IMM64:
            out += packer.pack(0, 0, 0, self.imm_high)
        return out


def decode(data: bytes, byteorder: ByteOrder = "little") -> Iterator[Instruction]:
    """The instructions of *data*, each checked against the table of legal fields.

    Raises `DecodeError` with the byte offset for a length that is no multiple of 8, a ``lddw`` cut in half
    and every invalid instruction.
    """
    if len(data) % SLOT_SIZE:
        raise DecodeError(f"{len(data)} bytes are no whole number of 8-byte instructions")
    little = byteorder == "little"
    unpack = (_LITTLE if little else _BIG).unpack_from
    position = 0
    while position < len(data):
        opcode, registers, offset, imm = unpack(data, position)
        dst, src = (registers & 15, registers >> 4) if little else (registers >> 4, registers & 15)
        insn = Instruction(opcode, dst, src, offset, imm)
        if opcode == LD_IMM64:
            if position + 2 * SLOT_SIZE > len(data):
                raise DecodeError(f"byte {position}: a 64-bit immediate load lacks its second half")
            second, second_registers, second_offset, insn.imm_high = unpack(data, position + SLOT_SIZE)
            if second or second_registers or second_offset:
                raise DecodeError(
                    f"byte {position + SLOT_SIZE}: fields that must be 0 are set in the second half "
                    "of a 64-bit immediate load"
                )
        problem = insn.problem()
        if problem:
            raise DecodeError(f"byte {position}: {problem}")
        yield insn
        position += SLOT_SIZE * insn.slots


def encode(instructions: list[Instruction], byteorder: ByteOrder = "little") -> bytes:
    """The bytes of *instructions*, one after the other."""
    return b"".join([insn.encode(byteorder) for insn in instructions])
