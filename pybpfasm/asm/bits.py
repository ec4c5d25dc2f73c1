# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Bit fields in memory: macros that load and store them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pybpfasm import isa
from pybpfasm.asm.operands import S32_MAX, Address, Mem, NoOperand, Reg, a
from pybpfasm.errors import AsmError
from pybpfasm.isa import Alu
from pybpfasm.layout import ByteOrder

if TYPE_CHECKING:
    from pybpfasm.bitfield import BitField

_BE: Final = isa.ALU | Alu.END | isa.X


class Bits(NoOperand):
    """A bit field of a view. It is loaded and stored by macros of several instructions, which take the
    registers that are named, and no others.

    They reach the smallest 1, 2, 4 or 8 bytes at a multiple of their number that hold the field, ``unit``.
    Its bits in them are ``mask``, so that a flag can be tested in two instructions: ``b.r2 = view.flag.unit``
    and ``b.If(b.r2 & view.flag.mask)``. Raises `AsmError` for a field that no such bytes hold.
    """

    __slots__ = ("asm", "field", "mask", "shift", "unit")

    def __init__(self, address: Address, field: BitField) -> None:
        self.asm = asm = address.asm
        self.field = field
        first, last = field.bit_offset // 8, (field.bit_offset + field.width - 1) // 8
        size = next((n for n in (1, 2, 4, 8) if first // n == last // n), 0)
        if not size:
            raise AsmError(f"{self._what} lies in no 8 bytes that one instruction could load", asm.here())
        start = first // size * size
        from_start = field.bit_offset - start * 8
        little = asm.byteorder == "little" and not field.is_big
        #: By how many bits it is shifted in the number that the unit is.
        self.shift = from_start if little else size * 8 - from_start - field.width
        self.unit = Mem(asm, address.base, address.offset + start, size, False, field)
        self.mask = (1 << field.width) - 1 << self.shift
        if self._swaps:  # as it is in a register, before the bytes are swapped
            self.mask = int.from_bytes(self.mask.to_bytes(size, "little"), "big")

    def __repr__(self) -> str:
        return f"<{self._what}, {self.field.width} bits in {self.unit}>"

    @property
    def _what(self) -> str:
        return f"{self.field.owner}.{self.field.name}"

    @property
    def _swaps(self) -> bool:
        """Whether a unit in network order has its bytes swapped in a register."""
        return self.field.is_big and self.asm.byteorder == "little" and self.field.size > 1

    @property
    def _is_whole(self) -> bool:
        return self.field.width == self.unit.size * 8

    def load(self, target: Reg) -> None:
        """*target* = the field, extended to 64 bits by its sign or by zeros: 1 to 4 instructions.

        A load of the unit, a byte swap where the field is in network order, and of shifts and a mask what it
        takes. *target* may be the register that the view lies at. Raises `AsmError` for a w register and r10.
        """
        width = self.field.width
        self._check(target, "load")
        self._load_unit(target)
        if self.field.base.signed:
            self._shift(target, Alu.LSH, 64 - width - self.shift)
            self._shift(target, Alu.ARSH, 64 - width)
        elif width <= 31:
            self._shift(target, Alu.RSH, self.shift)
            if self.shift + width < self.unit.size * 8:
                self._alu(target, Alu.AND, (1 << width) - 1)
        elif not self._is_whole:
            self._shift(target, Alu.LSH, 64 - width - self.shift)
            self._shift(target, Alu.RSH, 64 - width)

    def store(self, value: int | Reg, *, scratch: Reg | None = None) -> None:
        """Put *value* into the field and leave the other bits of the unit: at most 8 instructions.

        The unit is loaded into *scratch*, changed there, and stored, which is no atomic operation. Of a
        register the low bits are taken, and the register is overwritten (with what, is not said): copy it
        before, if it is needed afterwards. A field that is a whole unit takes one or two instructions and no
        *scratch*. Raises `AsmError` for a constant that does not fit, registers that are the same, and a
        missing *scratch*.
        """
        asm, width = self.asm, self.field.width
        if isinstance(value, Reg):
            self._check(value, "store")
        elif isinstance(value, int):
            low = -(1 << width - 1) if self.field.base.signed else 0
            if not low <= value < (1 << width - (1 if self.field.base.signed else 0)):
                raise asm._error(f"{value} does not fit {self._what}, which has {width} bits")
            value &= (1 << width) - 1
        else:
            raise asm._error(f"a bit field takes a register or a constant, not {a(value)}")
        if self._is_whole:
            if not isinstance(value, Reg):
                order: ByteOrder = "big" if self._swaps else "little"
                self.unit.store(int.from_bytes(value.to_bytes(self.unit.size, order), "little"))
            else:
                self._store_unit(value)
            return
        if scratch is None:
            raise asm._error(
                f"{self._what} shares its bytes with others, which must be loaded before: "
                "name a register for that, .store(value, scratch=b.rN)"
            )
        self._check(scratch, "store")
        used = {scratch.index: "scratch", self.unit.base: "the view"}
        if scratch.index == self.unit.base or (isinstance(value, Reg) and value.index in used):
            raise asm._error(f"{self._what}.store: value, scratch and the view's register must be different")
        self._load_unit(scratch)
        if self.shift + width > 32:
            self._store_wide(value, scratch)
            return
        ones = (1 << width) - 1
        if isinstance(value, Reg) or value != ones:  # or all of them will be set
            self._alu(scratch, Alu.AND, (1 << self.unit.size * 8) - 1 & ~(ones << self.shift))
        if isinstance(value, Reg):
            if width < 32:
                self._alu(value, Alu.AND, (1 << width) - 1)
            self._shift(value, Alu.LSH, self.shift)
            asm._emit(isa.ALU64 | Alu.OR | isa.X, scratch.index, value.index)
        elif value:
            self._alu(scratch, Alu.OR, value << self.shift)
        self._store_unit(scratch)

    def _store_wide(self, value: int | Reg, scratch: Reg) -> None:
        """The same for bits that no 32-bit immediate reaches: by the difference to what is there."""
        asm, width = self.asm, self.field.width
        if not isinstance(value, Reg):
            raise asm._error(
                f"{self._what} has bits that no immediate reaches: put {value:#x} into a register first"
            )
        self._shift(scratch, Alu.RSH, self.shift)
        asm._emit(isa.ALU64 | Alu.XOR | isa.X, scratch.index, value.index)
        self._shift(scratch, Alu.LSH, 64 - width)
        self._shift(scratch, Alu.RSH, 64 - width - self.shift)
        self._load_unit(value)
        asm._emit(isa.ALU64 | Alu.XOR | isa.X, scratch.index, value.index)
        self._store_unit(scratch)

    def _load_unit(self, register: Reg) -> None:
        setattr(self.asm, f"r{register.index}", self.unit)
        if self._swaps:
            self.asm._emit(_BE, register.index, imm=self.unit.size * 8)

    def _store_unit(self, register: Reg) -> None:
        if self._swaps:
            self.asm._emit(_BE, register.index, imm=self.unit.size * 8)
        self.unit.store(self.asm._regs[False][register.index])

    def _shift(self, register: Reg, op: Alu, bits: int) -> None:
        if bits:
            self._alu(register, op, bits)

    def _alu(self, register: Reg, op: Alu, number: int) -> None:
        imm = number - (1 << 32) if number > S32_MAX else number
        self.asm._emit(isa.ALU64 | op | isa.K, register.index, imm=imm)

    def _check(self, register: Reg, what: str) -> None:
        asm = self.asm
        if not isinstance(register, Reg):
            raise asm._error(f"{self._what}.{what} takes a register, not {a(register)}")
        if register.asm is not asm:
            raise asm._foreign()
        if register.is_w:
            raise asm._error(f"write b.r{register.index}: a bit field needs all of the register")
        if register.index == isa.FRAME_POINTER:
            raise asm._frame_pointer()

    def _no_operand(self) -> AsmError:
        return self.asm._error(
            f"{self._what} is a bit field and can't be an operand: "
            f"view.{self.field.name}.load(b.rN) puts it into a register"
        )

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            raise self.asm._error(
                f"{self._what} is a bit field, which has load, store, unit and mask, no {name}"
            )
