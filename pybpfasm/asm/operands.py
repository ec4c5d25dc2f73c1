# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What stands in a statement: registers, memory at an address, constants, and operations on a register."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from pybpfasm import isa
from pybpfasm.asm.conditions import Condition
from pybpfasm.errors import AsmError
from pybpfasm.isa import FRAME_POINTER, Alu, Atomic, Jump, X
from pybpfasm.layout import ByteOrder, Field, Scalar, Struct
from pybpfasm.maps import MapSpec, MapValue
from pybpfasm.source import capture, resolve

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm
    from pybpfasm.asm.legacy import PacketLoad
    from pybpfasm.program import Subprogram

S32_MIN, S32_MAX, U32_MAX, U64_MAX = -(1 << 31), (1 << 31) - 1, (1 << 32) - 1, (1 << 64) - 1


class Imm:
    """A constant that is not a plain ``int``: 64 bits wide, or in another byte order than the host's."""

    __slots__ = ("bits", "order", "value")

    def __init__(self, value: int, bits: int, order: Literal["host", "big", "little"]) -> None:
        self.value = value
        self.bits = bits
        self.order = order

    def __repr__(self) -> str:
        order = {"host": "imm", "big": "be", "little": "le"}[self.order]
        return f"{order}{self.bits}({self.value:#x})"

    def resolve(self, byteorder: ByteOrder) -> int:
        """The unsigned number whose bytes in memory, on a *byteorder* machine, are the constant's."""
        if self.order == "host" or self.order == byteorder:
            return self.value
        return int.from_bytes(self.value.to_bytes(self.bits // 8, "little"), "big")


class Unary:
    """An operation that the kernel prints as ``r1 = OP r2``: a byte swap, a sign extension, a negation, or a
    change of the address space (whose *width* is the immediate)."""

    __slots__ = ("kind", "origin", "reg", "width")

    def __init__(
        self, kind: Literal["be", "le", "bswap", "movsx", "neg", "cast"], width: int, reg: Reg | object
    ) -> None:
        if not isinstance(reg, Reg):
            name = f"s{width}" if kind == "movsx" else f"{kind}{width}"
            if kind == "cast":
                name = "addr_space_cast"
            raise AsmError(
                f"{name}() takes a register, not {a(reg)}",
                resolve(capture(None, 2)),
            )
        self.kind = kind
        self.width = width
        self.reg = reg
        asm = reg.asm
        self.origin = asm._capture(3)
        asm._loose[id(self)] = self  # until it is assigned


# Atomic operations that put memory's old value into their source register.
_WRITES_SOURCE: Final = frozenset(
    {Atomic.FETCH_ADD, Atomic.FETCH_OR, Atomic.FETCH_AND, Atomic.FETCH_XOR, Atomic.XCHG}
)


class Address:
    """A register and a byte offset: where something is.

    ``b.r10 - 8`` makes one.
    """

    __slots__ = ("asm", "base", "offset")

    def __init__(self, asm: Asm, base: int, offset: int) -> None:
        self.asm = asm
        self.base = base
        self.offset = offset

    def __add__(self, other: int) -> Address:
        if not isinstance(other, int):
            raise self.asm._error(
                "an address is one register and a constant; add registers with b.rN += b.rM first"
            )
        return Address(self.asm, self.base, self.offset + other)

    def __sub__(self, other: int) -> Address:
        return self + -other

    def mem(self, type: Scalar, offset: int = 0) -> Mem:
        """The memory of *type* at this address plus *offset* bytes."""
        return Mem(self.asm, self.base, self.offset + offset, type.size, type.order == "big", type)

    def __repr__(self) -> str:
        return f"r{self.base}{self.offset:+d}"


class NoOperand:
    """What is assigned to a register and never stands in an expression or a comparison."""

    __slots__ = ()

    def _no_operand(self) -> AsmError:
        raise NotImplementedError

    def _misuse(self, *_: object) -> Any:
        raise self._no_operand()

    __add__ = __sub__ = __and__ = __or__ = __xor__ = __lshift__ = __rshift__ = _misuse
    __iadd__ = __isub__ = __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _misuse
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _misuse

    def __eq__(self, other: object) -> Any:
        return self._misuse()

    def __ne__(self, other: object) -> Any:
        return self._misuse()

    __hash__ = object.__hash__


class Mem(NoOperand):
    """Memory of 1, 2, 4 or 8 bytes at an address; assigned to a register it is a load, assigned to it is a
    store (RFC 9669, section 5).

    The address is a register and a signed 16-bit byte offset; `AsmError` beyond. A load clears what is left
    of the register's 8 bytes, and changes no byte order.

    Atomic operations work on 4 or 8 bytes and raise `AsmError` for others; `load_acquire` and `store_release`
    take all sizes. All but `lock_add` need ISA v3 and Linux 5.12. What they return to a register is 4 bytes
    with zeros above them, or 8.
    """

    __slots__ = ("asm", "base", "field", "index", "is_big", "is_signed", "offset", "size")

    def __init__(
        self,
        asm: Asm,
        base: int,
        offset: int,
        size: int,
        is_big: bool,
        field: Field | None = None,
        index: int | None = None,
    ) -> None:
        self.asm = asm
        self.base = base
        self.offset = offset
        self.size = size
        self.is_big = is_big
        self.is_signed = False
        self.field = field
        self.index = index

    @property
    def name(self) -> str:
        """``Tcp.dest``, ``SkBuff.cb[1]``; empty for memory that is no field."""
        field = self.field
        if field is None or not field.name:
            return ""
        return f"{field.owner}.{field.name}" + ("" if self.index is None else f"[{self.index}]")

    def __repr__(self) -> str:
        kind = f"{'s' if self.is_signed else 'u'}{self.size * 8}"
        return f"<{self.name}{' at ' if self.name else ''}*({kind} *)(r{self.base} {self.offset:+d})>"

    @property
    def signed(self) -> Mem:
        """The same memory, loaded with sign extension (``ldsx``, ISA v4); raises `AsmError` for 8 bytes."""
        if self.size == 8:
            raise self.asm._error("an 8-byte load has no bits left to extend into")
        mem = Mem(self.asm, self.base, self.offset, self.size, self.is_big, self.field, self.index)
        mem.is_signed = True
        return mem

    def narrow(self, type: Scalar, offset: int = 0) -> Mem:
        """A smaller part of this field: *type* at byte *offset* within it; raises `AsmError` outside it."""
        if offset < 0 or offset + type.size > self.size:
            raise self.asm._error(f"bytes {offset} to {offset + type.size} are outside {self._what()}")
        is_big = type.order == "big"
        return Mem(self.asm, self.base, self.offset + offset, type.size, is_big, self.field, self.index)

    def store(self, value: object) -> None:
        """Store a register (``stx``) or a constant (``st``); a field in network order takes constants in host
        form.

        Of a register the low bytes are stored as they are. A constant may be signed or unsigned, in as many
        bytes as the memory has; of 8 bytes it is a signed 32-bit one, which is extended. Raises `AsmError`.
        """
        asm = self.asm
        if self.field is not None:
            asm._not_elsewhere(self)
        if isinstance(value, Reg):
            if value.is_w:
                raise asm._error(
                    f"write b.r{value.index}: a store takes as many bytes of the register as the field has"
                )
            if value.asm is not asm:
                raise asm._foreign()
            asm._emit(isa.STX | isa.MEM | isa.SIZE_CODE[self.size], self.base, value.index, self.offset)
        elif isinstance(value, (int, Imm)):
            asm._emit(
                isa.ST | isa.MEM | isa.SIZE_CODE[self.size], self.base, 0, self.offset, self._constant(value)
            )
        elif isinstance(value, Mem):
            raise asm._error(
                "memory to memory takes two instructions: load it to a register, then store that"
            )
        elif isinstance(value, (MapSpec, MapValue, Struct, Address)):
            raise asm._error("a store takes a register or a constant: put the address in a register first")
        else:
            raise asm._error(f"a store takes a register or a constant, not {type(value).__name__}")

    def _constant(self, value: int | Imm) -> int:
        bits = self.size * 8
        if isinstance(value, Imm):
            number = value.resolve(self.asm.byteorder)
            if self.is_big and (value.order != "big" or value.bits != bits):
                raise self.asm._error(
                    f"{self.name or 'this memory'} is in network order, {bits} bits wide: "
                    f"give a plain number, or be{bits}()"
                )
            if number >> bits:
                raise self.asm._error(f"a constant of {value.bits} bits does not fit {self._what()}")
        else:
            number = int(value)
            if not -(1 << (bits - 1)) <= number < 1 << bits:
                raise self.asm._error(f"{number} does not fit {self._what()}")
            if self.is_big:
                number = Imm(number & ((1 << bits) - 1), bits, "big").resolve(self.asm.byteorder)
        if bits < 64:
            number &= (1 << bits) - 1
            return number - (1 << 32) if number > S32_MAX else number
        if number > U64_MAX - (1 << 31):
            number -= 1 << 64
        if not S32_MIN <= number <= S32_MAX:
            raise self.asm._error(
                f"{number:#x} does not fit the signed 32-bit immediate that an 8-byte store extends: "
                "load it to a register with imm64() first"
            )
        return number

    def _what(self) -> str:
        return f"{self.name or 'the memory'}, which has {self.size} bytes"

    def _operand(self, register: Reg) -> None:
        if not isinstance(register, Reg):
            raise self.asm._error(f"an atomic operation takes a register, not {a(register)}")
        if register.is_w:
            raise self.asm._error(
                f"write b.r{register.index}: an atomic operation takes as many bytes of it as the memory has"
            )
        if register.asm is not self.asm:
            raise self.asm._foreign()

    def _atomic(self, op: Atomic, source: Reg) -> None:
        if self.size < 4:
            raise self.asm._error(f"atomic operations work on 4 or 8 bytes, not on {self.size}")
        self._operand(source)
        if source.index == FRAME_POINTER and op in _WRITES_SOURCE:
            raise self.asm._frame_pointer()
        self.asm._emit(
            isa.STX | isa.ATOMIC | isa.SIZE_CODE[self.size], self.base, source.index, self.offset, op
        )

    def lock_add(self, source: Reg) -> None:
        """``lock *(uN *)(mem) += source`` (RFC 9669, section 5.3)."""
        self._atomic(Atomic.ADD, source)

    def lock_or(self, source: Reg) -> None:
        """``lock *(uN *)(mem) |= source``."""
        self._atomic(Atomic.OR, source)

    def lock_and(self, source: Reg) -> None:
        """``lock *(uN *)(mem) &= source``."""
        self._atomic(Atomic.AND, source)

    def lock_xor(self, source: Reg) -> None:
        """``lock *(uN *)(mem) ^= source``."""
        self._atomic(Atomic.XOR, source)

    def fetch_add(self, source: Reg) -> None:
        """``source = atomic_fetch_add(mem, source)``: *source* gets the old value."""
        self._atomic(Atomic.FETCH_ADD, source)

    def fetch_or(self, source: Reg) -> None:
        """``source = atomic_fetch_or(mem, source)``: *source* gets the old value."""
        self._atomic(Atomic.FETCH_OR, source)

    def fetch_and(self, source: Reg) -> None:
        """``source = atomic_fetch_and(mem, source)``: *source* gets the old value."""
        self._atomic(Atomic.FETCH_AND, source)

    def fetch_xor(self, source: Reg) -> None:
        """``source = atomic_fetch_xor(mem, source)``: *source* gets the old value."""
        self._atomic(Atomic.FETCH_XOR, source)

    def xchg(self, source: Reg) -> None:
        """``source = xchg(mem, source)``: memory and register change places."""
        self._atomic(Atomic.XCHG, source)

    def cmpxchg(self, source: Reg) -> None:
        """``r0 = cmpxchg(mem, r0, source)``: store *source* if memory equals r0; r0 gets the old value.

        Of 4 bytes, the low half of r0 is compared.
        """
        self._atomic(Atomic.CMPXCHG, source)

    def store_release(self, source: Reg) -> None:
        """``store_release(mem, source)``: a store of 1 to 8 bytes, after all before it (Linux 6.15)."""
        self._operand(source)
        self.asm._emit(
            isa.STX | isa.ATOMIC | isa.SIZE_CODE[self.size],
            self.base,
            source.index,
            self.offset,
            Atomic.STORE_REL,
        )

    def load_acquire(self, target: Reg) -> None:
        """``target = load_acquire(mem)``: a load of 1 to 8 bytes, before all that follows (Linux 6.15)."""
        self._operand(target)
        if target.index == FRAME_POINTER:
            raise self.asm._frame_pointer()
        self.asm._emit(
            isa.STX | isa.ATOMIC | isa.SIZE_CODE[self.size],
            target.index,
            self.base,
            self.offset,
            Atomic.LOAD_ACQ,
        )

    def _no_operand(self) -> AsmError:
        return self.asm._error(
            f"{self.name or 'memory'} can't be an operand: load it to a register first "
            "(an atomic addition is .lock_add(b.rN))"
        )


def _in_place(op: Alu, offset: int = 0) -> Callable[[Reg, Operand], Reg]:
    """A method of `Reg` that writes the operation *op* on the register."""
    opcodes = isa.ALU64 | op, isa.ALU | op
    top = (64, 32) if op in (Alu.LSH, Alu.RSH, Alu.ARSH) else None
    divides = op in (Alu.DIV, Alu.MOD)

    def write(self: Reg, value: Operand) -> Reg:
        asm = self.asm
        is_w = self.is_w
        if self.index == FRAME_POINTER:
            raise asm._frame_pointer()
        if isinstance(value, Reg):
            if value.is_w != is_w:
                raise asm._widths_differ(self, value)
            if value.asm is not asm:
                raise asm._foreign()
            asm._emit(opcodes[is_w] | X, self.index, value.index, offset)
        elif isinstance(value, (int, Imm)):
            imm = asm._immediate(value, is_w)
            if top is not None and not 0 <= imm < top[is_w]:
                raise asm._error(f"{self.name} can be shifted by 0 to {top[is_w] - 1} bits, not by {imm}")
            if divides and imm == 0:
                raise asm._error(f"{self.name} is divided by 0")
            asm._emit(opcodes[is_w], self.index, 0, offset, imm)
        else:
            raise asm._error(f"the operand is a register or a constant, not {a(value)}")
        return asm._done[is_w][self.index]

    return write


_arsh = _in_place(Alu.ARSH)
_sdiv = _in_place(Alu.DIV, 1)
_smod = _in_place(Alu.MOD, 1)


# Of comparisons without a sign: the constant at the end of all numbers, and what holds there whatever the
# register is; the operator, and the method that compares with a sign.
_OUTCOMES: Final = {
    Jump.JLT: (0, False, "<", "slt"),
    Jump.JGE: (0, True, ">=", "sge"),
    Jump.JGT: (-1, False, ">", "sgt"),
    Jump.JLE: (-1, True, "<=", "sle"),
}


class Reg:
    """A register: ``b.r3`` all 64 bits, ``b.w3`` its lower 32 (a write to which clears the upper)."""

    __slots__ = ("asm", "done", "index", "is_w")

    def __init__(self, asm: Asm, index: int, is_w: bool, done: bool = False) -> None:
        self.asm = asm
        self.index = index
        self.is_w = is_w
        self.done = done  # the result of an in-place operation, which has been written already

    @property
    def name(self) -> str:
        """``r3`` or ``w3``."""
        return f"{'w' if self.is_w else 'r'}{self.index}"

    def __repr__(self) -> str:
        return self.name

    # Arithmetic: `b.r2 += x` is one instruction.
    __iadd__ = _in_place(Alu.ADD)
    __isub__ = _in_place(Alu.SUB)
    __imul__ = _in_place(Alu.MUL)
    __itruediv__ = _in_place(Alu.DIV)
    __imod__ = _in_place(Alu.MOD)
    __iand__ = _in_place(Alu.AND)
    __ior__ = _in_place(Alu.OR)
    __ixor__ = _in_place(Alu.XOR)
    __ilshift__ = _in_place(Alu.LSH)
    __irshift__ = _in_place(Alu.RSH)

    def __ifloordiv__(self, value: Operand) -> Reg:
        raise self.asm._error(
            "unsigned division is b.rN /= x, as the kernel prints it; signed is b.rN.sdiv(x)"
        )

    def arsh(self, value: Operand) -> None:
        """``rN s>>= value``: arithmetic shift right, by 0 to 63 bits (31 of a w register)."""
        _arsh(self, value)

    def sdiv(self, value: Operand) -> None:
        """``rN s/= value``: signed division, towards 0 (ISA v4, Linux 6.6; RFC 9669, section 4.1).

        Division by a register that is 0 gives 0; a constant 0 is an `AsmError`.
        """
        _sdiv(self, value)

    def smod(self, value: Operand) -> None:
        """``rN s%= value``: signed modulo, with the sign of rN (ISA v4, Linux 6.6).

        Modulo 0 in a register leaves rN; a constant 0 is an `AsmError`.
        """
        _smod(self, value)

    def __neg__(self) -> Unary:
        return Unary("neg", 0, self)

    # Addresses.
    def __add__(self, offset: Operand) -> Address:
        if self.is_w:
            raise self.asm._error(f"{self.name} is 32 bits wide and can't hold an address")
        if not isinstance(offset, int):
            raise self._no_offset(offset, "+")
        if self.index == FRAME_POINTER:
            self.asm._by_hand(offset)
        return Address(self.asm, self.index, offset)

    def __sub__(self, offset: Operand) -> Address:
        if not isinstance(offset, int):
            raise self._no_offset(offset, "-")
        if self.is_w:
            raise self.asm._error(f"{self.name} is 32 bits wide and can't hold an address")
        if self.index == FRAME_POINTER:
            self.asm._by_hand(-offset)
        return Address(self.asm, self.index, -offset)

    def _no_offset(self, offset: object, sign: str) -> AsmError:
        if isinstance(offset, Reg):
            return self.asm._error(f"b.rN {sign} b.rM would take two instructions: b.rN {sign}= b.rM")
        return self.asm._error(f"an address is a register and a whole number of bytes, not {a(offset)}")

    def _two_instructions(self, other: object) -> Any:
        raise self.asm._error(
            "one statement is one instruction: change a register in place, as in b.rN <<= x"
        )

    if TYPE_CHECKING:
        # mypy takes `b.r2 <<= x` for `b.r2 = b.r2 << x`. So it knows these, which assembling refuses.
        def __mul__(self, value: Operand) -> Reg: ...
        def __truediv__(self, value: Operand) -> Reg: ...
        def __mod__(self, value: Operand) -> Reg: ...
        def __or__(self, value: Operand) -> Reg: ...
        def __xor__(self, value: Operand) -> Reg: ...
        def __lshift__(self, value: Operand) -> Reg: ...
        def __rshift__(self, value: Operand) -> Reg: ...

    else:
        __mul__ = __truediv__ = __floordiv__ = __mod__ = _two_instructions
        __or__ = __xor__ = __lshift__ = __rshift__ = _two_instructions
        __radd__ = __rsub__ = __rmul__ = __rand__ = __ror__ = __rxor__ = _two_instructions
        __rtruediv__ = __rfloordiv__ = __rmod__ = __rlshift__ = __rrshift__ = _two_instructions

        def __getitem__(self, index: object) -> Any:
            raise self.asm._error(
                f"{self.name} has no elements: memory is b.u32[b.{self.name} + 4], or a field of a structure"
            )

        __setitem__ = __iter__ = __contains__ = __getitem__

        def __invert__(self) -> Any:
            raise self.asm._error(f"there is no instruction that inverts bits: write b.{self.name} ^= -1")

        def _no_instruction(self, *_: object) -> Any:
            raise self.asm._error("there is no instruction that does this")

        __pow__ = __ipow__ = __matmul__ = __imatmul__ = __abs__ = __pos__ = _no_instruction

    # Comparisons.
    def _compare(self, jump: Jump, value: Operand) -> Condition:
        asm = self.asm
        if isinstance(value, Reg):
            if value.is_w != self.is_w:
                raise asm._widths_differ(self, value)
            if value.asm is not asm:
                raise asm._foreign()
        elif isinstance(value, (int, Imm)):
            imm = asm._immediate(value, self.is_w)
            if jump in _OUTCOMES and imm == _OUTCOMES[jump][0]:
                self._refuse_outcome(jump)
        else:
            raise asm._error(f"a register is compared with a register or a constant, not with {a(value)}")
        return Condition(asm, jump, self, value)

    def _refuse_outcome(self, jump: Jump) -> None:
        """Refuse what always or never holds, where the constant itself stands in the comparison.

        A setting that happens to be 0, as the first of a range, is none of it.
        """
        import dis  # here, because hardly any program needs it

        frame = sys._getframe(3)  # the comparison's
        before = ""
        for insn in dis.get_instructions(frame.f_code):
            if insn.offset == frame.f_lasti:
                break
            before = insn.opname
        if before in ("LOAD_CONST", "LOAD_SMALL_INT"):
            end, always, operator, method = _OUTCOMES[jump]
            shown = f"{self.name} {operator} {end}"
            raise self.asm._error(
                f"{shown} {'always' if always else 'never'} holds, because {operator} compares without a "
                f"sign: with it is b.{self.name}.{method}({end})"
            )

    def __eq__(self, value: Operand) -> Condition:  # type: ignore[override]
        return self._compare(Jump.JEQ, value)

    def __ne__(self, value: Operand) -> Condition:  # type: ignore[override]
        return self._compare(Jump.JNE, value)

    def __gt__(self, value: Operand) -> Condition:
        return self._compare(Jump.JGT, value)

    def __ge__(self, value: Operand) -> Condition:
        return self._compare(Jump.JGE, value)

    def __lt__(self, value: Operand) -> Condition:
        return self._compare(Jump.JLT, value)

    def __le__(self, value: Operand) -> Condition:
        return self._compare(Jump.JLE, value)

    def __and__(self, value: Operand) -> Condition:
        return self._compare(Jump.JSET, value)

    def sgt(self, value: Operand) -> Condition:
        """Signed ``rN s> value``."""
        return self._compare(Jump.JSGT, value)

    def sge(self, value: Operand) -> Condition:
        """Signed ``rN s>= value``."""
        return self._compare(Jump.JSGE, value)

    def slt(self, value: Operand) -> Condition:
        """Signed ``rN s< value``."""
        return self._compare(Jump.JSLT, value)

    def sle(self, value: Operand) -> Condition:
        """Signed ``rN s<= value``."""
        return self._compare(Jump.JSLE, value)

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise self.asm._error(
            "a register has no truth value while the program is written: with b.If(b.rN != 0):"
        )


Operand: TypeAlias = "Reg | int | Imm"
StoreValue: TypeAlias = "Reg | int | Imm"
# No values (an error when the program is written); they stand here because mypy takes `b.r2 += x` for an
# assignment of what Reg.__add__ returns.
NoValue: TypeAlias = "Address | Condition"
RegValue: TypeAlias = (
    "Reg | int | Imm | Mem | Unary | PacketLoad | MapSpec | MapValue | Struct | Subprogram | NoValue"
)


def a(value: object) -> str:
    """*value* for a message: what it is, and what to do with it."""
    if isinstance(value, Mem):
        return "memory: load it to a register first"
    if isinstance(value, Address):
        return f"the address {value}: put it in a register first"
    if type(value).__name__ == "Bits":
        return "a bit field: view.field.load(b.rN) puts it into a register"
    return f"{type(value).__name__}"
