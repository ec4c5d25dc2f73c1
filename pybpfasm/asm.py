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

from bisect import bisect_left
from sys import _getframe
from types import CodeType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias, TypeVar, overload

from pybpfasm import isa
from pybpfasm.errors import AsmError, SourceLocation, suggestion
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Atomic, CallKind, Imm64, Jump
from pybpfasm.layout import U8, U16, U32, U64, ArrayView, ByteOrder, Scalar, Struct
from pybpfasm.maps import MapSpec, MapValue
from pybpfasm.source import INTERNAL, Origin, capture, known_modules, resolve

if TYPE_CHECKING:
    from pybpfasm.core import Extern
    from pybpfasm.kernel.enums import Helper
    from pybpfasm.program import Subprogram

__all__ = [
    "Address",
    "Asm",
    "Condition",
    "Imm",
    "Label",
    "Mem",
    "Reg",
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

STACK_LIMIT: Final = 512

_S32_MIN, _S32_MAX, _U32_MAX, _U64_MAX = -(1 << 31), (1 << 31) - 1, (1 << 32) - 1, (1 << 64) - 1


class Imm:
    """A constant that is not a plain ``int``: 64 bits wide, or in another byte order than the host's."""

    __slots__ = ("bits", "order", "value")

    def __init__(self, value: int, bits: int, order: Literal["host", "big", "little"]) -> None:
        self.value = value
        self.bits = bits
        self.order = order

    def resolve(self, byteorder: ByteOrder) -> int:
        """The unsigned number whose bytes in memory, on a *byteorder* machine, are the constant's."""
        if self.order == "host" or self.order == byteorder:
            return self.value
        return int.from_bytes(self.value.to_bytes(self.bits // 8, "little"), "big")


class Unary:
    """An operation that the kernel prints as ``r1 = OP r2``: a byte swap, a sign extension or a negation."""

    __slots__ = ("kind", "origin", "reg", "width")

    def __init__(
        self, kind: Literal["be", "le", "bswap", "movsx", "neg"], width: int, reg: Reg | object
    ) -> None:
        if not isinstance(reg, Reg):
            name = f"s{width}" if kind == "movsx" else f"{kind}{width}"
            raise AsmError(
                f"{name}() takes a register, not {_a(reg)}",
                resolve(capture(None, 2)),
            )
        self.kind = kind
        self.width = width
        self.reg = reg
        asm = reg.asm
        self.origin = asm._capture(3)
        asm._loose[id(self)] = self  # until it is assigned


class Label:
    """A place in the program that jumps can name.

    ``hint`` is what listings call it.
    """

    __slots__ = ("hint", "origin")

    def __init__(self, hint: str = "L") -> None:
        self.hint = hint
        self.origin: Origin | None = None

    def __repr__(self) -> str:
        return f"Label({self.hint!r})"


class Condition:
    """A comparison of a register, or several joined by ``&`` and ``|``, for `Asm.If` and `Asm.While`."""

    __slots__ = ("asm", "join", "jump", "left", "lhs", "origin", "rhs", "right")

    def __init__(
        self,
        asm: Asm,
        jump: Jump | None,
        lhs: Reg | None = None,
        rhs: Operand = 0,
        join: Literal["and", "or", ""] = "",
        left: Condition | None = None,
        right: Condition | None = None,
    ) -> None:
        self.asm = asm
        self.jump = jump
        self.lhs = lhs
        self.rhs = rhs
        self.join = join
        self.left = left
        self.right = right
        self.origin = asm._capture(3)
        asm._loose[id(self)] = self

    def __and__(self, other: Condition) -> Condition:
        return self._combine("and", other)

    def __or__(self, other: Condition) -> Condition:
        return self._combine("or", other)

    def _combine(self, join: Literal["and", "or"], other: Condition) -> Condition:
        if not isinstance(other, Condition):
            raise self.asm._error(
                "conditions are joined with conditions: put each comparison in parentheses, "
                "(b.r1 == 1) & (b.r2 == 2)"
            )
        self.asm._loose.pop(id(self), None)
        self.asm._loose.pop(id(other), None)
        return Condition(self.asm, None, join=join, left=self, right=other)

    def __invert__(self) -> Condition:
        self.asm._loose.pop(id(self), None)
        if self.join:
            assert self.left is not None and self.right is not None
            return (~self.left)._combine("or" if self.join == "and" else "and", ~self.right)
        if self.jump is Jump.JSET:
            return Condition(self.asm, None, self.lhs, self.rhs)  # no opcode of its own: "not any bit set"
        if self.jump is None:
            return Condition(self.asm, Jump.JSET, self.lhs, self.rhs)
        return Condition(self.asm, _INVERSE[self.jump], self.lhs, self.rhs)

    def _misuse(self, *_: object) -> Any:
        raise self.asm._error(
            "a comparison has no value: b.If(b.rN & bits) is true where any of the bits is set; to compare a "
            "part of a register, mask it first with b.rN &= bits"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _misuse

    def __eq__(self, other: object) -> Any:
        return self._misuse()

    def __ne__(self, other: object) -> Any:
        return self._misuse()

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise self.asm._error(
            "a comparison of registers has no truth value while the program is written: "
            "use `with b.If(…):`, and & | ~ instead of and, or, not"
        )


# Atomic operations that put memory's old value into their source register.
_WRITES_SOURCE: Final = frozenset(
    {Atomic.FETCH_ADD, Atomic.FETCH_OR, Atomic.FETCH_AND, Atomic.FETCH_XOR, Atomic.XCHG}
)

_INVERSE: Final = {
    Jump.JEQ: Jump.JNE,
    Jump.JNE: Jump.JEQ,
    Jump.JGT: Jump.JLE,
    Jump.JLE: Jump.JGT,
    Jump.JGE: Jump.JLT,
    Jump.JLT: Jump.JGE,
    Jump.JSGT: Jump.JSLE,
    Jump.JSLE: Jump.JSGT,
    Jump.JSGE: Jump.JSLT,
    Jump.JSLT: Jump.JSGE,
}


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
        name = f"{type.owner}.{type.name}" if type.name else ""
        return Mem(self.asm, self.base, self.offset + offset, type.size, type.order == "big", name)

    def __repr__(self) -> str:
        return f"r{self.base}{self.offset:+d}"


class Mem:
    """Memory of 1, 2, 4 or 8 bytes at an address; assigned to a register it is a load, assigned to it is a
    store (RFC 9669, section 5).

    The address is a register and a signed 16-bit byte offset; `AsmError` beyond. A load clears what is left
    of the register's 8 bytes, and changes no byte order.

    Atomic operations work on 4 or 8 bytes and raise `AsmError` for others; `load_acquire` and `store_release`
    take all sizes. All but `lock_add` need ISA v3 and Linux 5.12. What they return to a register is 4 bytes
    with zeros above them, or 8.
    """

    __slots__ = ("asm", "base", "is_big", "is_signed", "name", "offset", "size")

    def __init__(self, asm: Asm, base: int, offset: int, size: int, is_big: bool, name: str) -> None:
        self.asm = asm
        self.base = base
        self.offset = offset
        self.size = size
        self.is_big = is_big
        self.is_signed = False
        self.name = name

    @property
    def signed(self) -> Mem:
        """The same memory, loaded with sign extension (``ldsx``, ISA v4)."""
        if self.size == 8:
            raise self.asm._error("an 8-byte load has no bits left to extend into")
        mem = Mem(self.asm, self.base, self.offset, self.size, self.is_big, self.name)
        mem.is_signed = True
        return mem

    def narrow(self, type: Scalar, offset: int = 0) -> Mem:
        """A smaller part of this field: *type* at byte *offset* within it; raises `AsmError` outside it."""
        if offset < 0 or offset + type.size > self.size:
            raise self.asm._error(f"bytes {offset} to {offset + type.size} are outside {self._what()}")
        mem = Mem(self.asm, self.base, self.offset + offset, type.size, type.order == "big", self.name)
        return mem

    def store(self, value: object) -> None:
        """Store a register (``stx``) or a constant (``st``); a field in network order takes constants in host
        form.

        Of a register the low bytes are stored as they are. A constant may be signed or unsigned, in as many
        bytes as the memory has; of 8 bytes it is a signed 32-bit one, which is extended. Raises `AsmError`.
        """
        asm = self.asm
        if isinstance(value, Reg):
            if value.is_w:
                raise asm._error(
                    f"write b.r{value.index}: a store takes as many bytes of the register as the field has"
                )
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
            return number - (1 << 32) if number > _S32_MAX else number
        if number > _U64_MAX - (1 << 31):
            number -= 1 << 64
        if not _S32_MIN <= number <= _S32_MAX:
            raise self.asm._error(
                f"{number:#x} does not fit the signed 32-bit immediate that an 8-byte store extends: "
                "load it to a register with imm64() first"
            )
        return number

    def _what(self) -> str:
        return f"{self.name or 'the memory'}, which has {self.size} bytes"

    def _operand(self, register: Reg) -> None:
        if not isinstance(register, Reg):
            raise self.asm._error(f"an atomic operation takes a register, not {_a(register)}")
        if register.is_w:
            raise self.asm._error(
                f"write b.r{register.index}: an atomic operation takes as many bytes of it as the memory has"
            )

    def _atomic(self, op: Atomic, source: Reg) -> None:
        if self.size < 4:
            raise self.asm._error(f"atomic operations work on 4 or 8 bytes, not on {self.size}")
        self._operand(source)
        if source.index == isa.FRAME_POINTER and op in _WRITES_SOURCE:
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
        if target.index == isa.FRAME_POINTER:
            raise self.asm._frame_pointer()
        self.asm._emit(
            isa.STX | isa.ATOMIC | isa.SIZE_CODE[self.size],
            target.index,
            self.base,
            self.offset,
            Atomic.LOAD_ACQ,
        )

    def _misuse(self, *_: object) -> Any:
        raise self.asm._error(
            f"{self.name or 'memory'} can't be an operand: load it to a register first "
            "(an atomic addition is .lock_add(b.rN))"
        )

    __add__ = __sub__ = __and__ = __or__ = __xor__ = __lshift__ = __rshift__ = _misuse
    __iadd__ = __isub__ = __iand__ = __ior__ = __ixor__ = __ilshift__ = __irshift__ = _misuse
    __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _misuse

    def __eq__(self, other: object) -> Any:
        return self._misuse()

    def __ne__(self, other: object) -> Any:
        return self._misuse()

    __hash__ = object.__hash__


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
    def _alu(self, op: Alu, value: Operand, offset: int = 0) -> Reg:
        asm = self.asm
        if self.index == isa.FRAME_POINTER:
            raise asm._frame_pointer()
        cls = isa.ALU if self.is_w else isa.ALU64
        if isinstance(value, Reg):
            if value.is_w != self.is_w:
                raise asm._widths_differ(self, value)
            asm._emit(cls | op | isa.X, self.index, value.index, offset)
        elif isinstance(value, (int, Imm)):
            imm = asm._immediate(value, self.is_w)
            if op in (Alu.LSH, Alu.RSH, Alu.ARSH) and not 0 <= imm < (32 if self.is_w else 64):
                raise asm._error(
                    f"{self.name} can be shifted by 0 to {31 if self.is_w else 63} bits, not by {imm}"
                )
            if op in (Alu.DIV, Alu.MOD) and imm == 0:
                raise asm._error(f"{self.name} is divided by 0")
            asm._emit(cls | op | isa.K, self.index, 0, offset, imm)
        else:
            raise asm._error(f"the operand is a register or a constant, not {_a(value)}")
        return asm._done[self.is_w][self.index]

    def __iadd__(self, value: Operand) -> Reg:
        return self._alu(Alu.ADD, value)

    def __isub__(self, value: Operand) -> Reg:
        return self._alu(Alu.SUB, value)

    def __imul__(self, value: Operand) -> Reg:
        return self._alu(Alu.MUL, value)

    def __itruediv__(self, value: Operand) -> Reg:
        return self._alu(Alu.DIV, value)

    def __imod__(self, value: Operand) -> Reg:
        return self._alu(Alu.MOD, value)

    def __iand__(self, value: Operand) -> Reg:
        return self._alu(Alu.AND, value)

    def __ior__(self, value: Operand) -> Reg:
        return self._alu(Alu.OR, value)

    def __ixor__(self, value: Operand) -> Reg:
        return self._alu(Alu.XOR, value)

    def __ilshift__(self, value: Operand) -> Reg:
        return self._alu(Alu.LSH, value)

    def __irshift__(self, value: Operand) -> Reg:
        return self._alu(Alu.RSH, value)

    def __ifloordiv__(self, value: Operand) -> Reg:
        raise self.asm._error(
            "unsigned division is b.rN /= x, as the kernel prints it; signed is b.rN.sdiv(x)"
        )

    def arsh(self, value: Operand) -> None:
        """``rN s>>= value``: arithmetic shift right, by 0 to 63 bits (31 of a w register)."""
        self._alu(Alu.ARSH, value)

    def sdiv(self, value: Operand) -> None:
        """``rN s/= value``: signed division, towards 0 (ISA v4, Linux 6.6; RFC 9669, section 4.1).

        Division by a register that is 0 gives 0; a constant 0 is an `AsmError`.
        """
        self._alu(Alu.DIV, value, 1)

    def smod(self, value: Operand) -> None:
        """``rN s%= value``: signed modulo, with the sign of rN (ISA v4, Linux 6.6).

        Modulo 0 in a register leaves rN; a constant 0 is an `AsmError`.
        """
        self._alu(Alu.MOD, value, 1)

    def __neg__(self) -> Unary:
        return Unary("neg", 0, self)

    # Addresses.
    def __add__(self, offset: Operand) -> Address:
        if self.is_w:
            raise self.asm._error(f"{self.name} is 32 bits wide and can't hold an address")
        if not isinstance(offset, int):
            raise self.asm._error("b.rN + b.rM would take two instructions: b.rN += b.rM")
        return Address(self.asm, self.index, offset)

    def __sub__(self, offset: Operand) -> Address:
        if not isinstance(offset, int):
            raise self.asm._error("b.rN - b.rM would take two instructions: b.rN -= b.rM")
        return self + -offset

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
        elif isinstance(value, (int, Imm)):
            asm._immediate(value, self.is_w)
        else:
            raise asm._error(f"a register is compared with a register or a constant, not with {_a(value)}")
        return Condition(asm, jump, self, value)

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
# Address and Condition are no values (an error when the program is written); they stand here because mypy
# takes `b.r2 += x` for an assignment of what Reg.__add__ returns.
RegValue: TypeAlias = (
    "Reg | int | Imm | Mem | Unary | MapSpec | MapValue | Struct | Subprogram | Address | Condition"
)


def _a(value: object) -> str:
    if isinstance(value, Mem):
        return "memory: load it to a register first"
    if isinstance(value, Address):
        return f"the address {value}: put it in a register first"
    return f"{type(value).__name__}"


def _swap(kind: Literal["be", "le", "bswap"], width: int, value: int | Reg) -> Imm | Unary:
    if isinstance(value, Reg):
        return Unary(kind, width, value)
    if not isinstance(value, int):
        raise AsmError(
            f"{kind}{width}() takes a register or a constant, not {_a(value)}", resolve(capture(None, 3))
        )
    if not 0 <= value < 1 << width:
        raise AsmError(f"{value} does not fit {width} bits", resolve(capture(None, 3)))
    if kind == "bswap":
        swapped = int.from_bytes(value.to_bytes(width // 8, "little"), "big")
        return Imm(swapped, width, "host")
    return Imm(value, width, "big" if kind == "be" else "little")


@overload
def be16(value: int) -> Imm: ...
@overload
def be16(value: Reg) -> Unary: ...
def be16(value: int | Reg) -> Imm | Unary:
    """A constant of 16 bits in network order, or, of a register, ``rN = be16 rN`` (RFC 9669, section 4.2).

    Of a register: its low 16 bits from host to network order or back, with zeros above them. A constant is
    unsigned; raises `AsmError` where it does not fit.
    """
    return _swap("be", 16, value)


@overload
def be32(value: int) -> Imm: ...
@overload
def be32(value: Reg) -> Unary: ...
def be32(value: int | Reg) -> Imm | Unary:
    """As `be16`, 32 bits."""
    return _swap("be", 32, value)


@overload
def be64(value: int) -> Imm: ...
@overload
def be64(value: Reg) -> Unary: ...
def be64(value: int | Reg) -> Imm | Unary:
    """As `be16`, 64 bits."""
    return _swap("be", 64, value)


@overload
def le16(value: int) -> Imm: ...
@overload
def le16(value: Reg) -> Unary: ...
def le16(value: int | Reg) -> Imm | Unary:
    """A constant of 16 bits in little-endian order, or, of a register, ``rN = le16 rN``."""
    return _swap("le", 16, value)


@overload
def le32(value: int) -> Imm: ...
@overload
def le32(value: Reg) -> Unary: ...
def le32(value: int | Reg) -> Imm | Unary:
    """As `le16`, 32 bits."""
    return _swap("le", 32, value)


@overload
def le64(value: int) -> Imm: ...
@overload
def le64(value: Reg) -> Unary: ...
def le64(value: int | Reg) -> Imm | Unary:
    """As `le16`, 64 bits."""
    return _swap("le", 64, value)


def bswap16(value: Reg) -> Unary:
    """``rN = bswap16 rN``: the low 16 bits with their bytes exchanged, zeros above (ISA v4, Linux 6.6)."""
    return Unary("bswap", 16, value)


def bswap32(value: Reg) -> Unary:
    """``rN = bswap32 rN`` (ISA v4)."""
    return Unary("bswap", 32, value)


def bswap64(value: Reg) -> Unary:
    """``rN = bswap64 rN`` (ISA v4)."""
    return Unary("bswap", 64, value)


def s8(value: Reg) -> Unary:
    """``rN = (s8)rM``: move with sign extension from 8 bits (ISA v4)."""
    return Unary("movsx", 8, value)


def s16(value: Reg) -> Unary:
    """``rN = (s16)rM``: move with sign extension from 16 bits (ISA v4)."""
    return Unary("movsx", 16, value)


def s32(value: Reg) -> Unary:
    """``rN = (s32)rM``: move with sign extension from 32 bits (ISA v4)."""
    return Unary("movsx", 32, value)


def imm64(value: int) -> Imm:
    """A constant of 64 bits, signed or unsigned, which takes the 16-byte ``lddw`` instruction (RFC 9669,
    section 5.4); raises `AsmError` where it does not fit."""
    if not isinstance(value, int):
        raise AsmError(f"imm64() takes a constant, not {_a(value)}", resolve(capture(None, 2)))
    if not -(1 << 63) <= value <= _U64_MAX:
        raise AsmError(f"{value} does not fit 64 bits", resolve(capture(None, 2)))
    return Imm(value & _U64_MAX, 64, "host")


class _RegSlot:
    """``b.r3`` and ``b.r3 = …``."""

    __slots__ = ("index", "is_w")

    def __init__(self, index: int, is_w: bool) -> None:
        self.index = index
        self.is_w = is_w

    @overload
    def __get__(self, obj: None, owner: type[Asm]) -> _RegSlot: ...
    @overload
    def __get__(self, obj: Asm, owner: type[Asm]) -> Reg: ...
    def __get__(self, obj: Asm | None, owner: type[Asm]) -> _RegSlot | Reg:
        if obj is None:
            return self
        return obj._regs[self.is_w][self.index]

    def __set__(self, asm: Asm, value: RegValue) -> None:
        dst = self.index
        is_w = self.is_w
        kind = type(value)
        if kind is Reg:
            assert isinstance(value, Reg)
            if value.done and value.index == dst and value.is_w == is_w:
                return  # an in-place operation assigns its result back
            if dst == isa.FRAME_POINTER:
                raise asm._frame_pointer()
            if value.is_w != is_w:
                raise asm._widths_differ(asm._regs[is_w][dst], value)
            if value.asm is not asm:
                raise asm._foreign()
            asm._emit(_MOV32_X if is_w else _MOV64_X, dst, value.index)
            return
        if dst == isa.FRAME_POINTER:
            raise asm._frame_pointer()
        if kind is Mem:
            assert isinstance(value, Mem)
            if value.asm is not asm:
                raise asm._foreign()
            if is_w:
                raise asm._error(f"write b.r{dst}: a load of 1, 2 or 4 bytes clears the rest of the register")
            mode = isa.MEMSX if value.is_signed else isa.MEM
            asm._emit(isa.LDX | mode | isa.SIZE_CODE[value.size], dst, value.base, value.offset)
        elif isinstance(value, (int, Imm)):
            if kind is Imm and value.bits == 64:  # type: ignore[union-attr]
                asm._wide(dst, is_w, value.resolve(asm.byteorder))  # type: ignore[union-attr]
            else:
                imm = asm._immediate(value, is_w, "imm64()")
                asm._emit(_MOV32_K if is_w else _MOV64_K, dst, 0, 0, imm)
        else:
            asm._assign_other(dst, is_w, value)


_MOV64_X: Final = isa.ALU64 | Alu.MOV | isa.X
_MOV32_X: Final = isa.ALU | Alu.MOV | isa.X
_MOV64_K: Final = isa.ALU64 | Alu.MOV | isa.K
_MOV32_K: Final = isa.ALU | Alu.MOV | isa.K


class _NoRegister:
    """``b.r11`` and the like."""

    def __get__(self, obj: Asm | None, owner: type[Asm]) -> NoReturn:
        if obj is None:
            raise AttributeError
        raise obj._error("there is no such register: they are r0 to r10 and w0 to w10")

    def __set__(self, obj: Asm, value: object) -> NoReturn:
        raise obj._error("there is no such register: they are r0 to r10 and w0 to w10")


class _Memory:
    """``b.u32[address]``: memory of one size at any address."""

    __slots__ = ("asm", "type")

    def __init__(self, asm: Asm, type: Scalar) -> None:
        self.asm = asm
        self.type = type

    def __getitem__(self, address: Reg | Address) -> Mem:
        if not isinstance(address, (Reg, Address)):
            raise self.asm._error("memory is reached through a register: b.u32[b.r1 + 4]")
        return (address + 0).mem(self.type)

    def __setitem__(self, address: Reg | Address, value: StoreValue) -> None:
        self[address].store(value)


class _If:
    """What `Asm.If` returns: a block (``with``), or a jump (``.goto``)."""

    __slots__ = ("_asm", "_condition", "_else", "_end", "origin")

    def __init__(self, asm: Asm, condition: object, end: Label | None = None) -> None:
        if not isinstance(condition, Condition):
            hint = "; what is known in Python needs a plain `if`" if isinstance(condition, bool) else ""
            raise asm._error(f"If takes a comparison of registers, not {_a(condition)}{hint}")
        self._asm = asm
        self._condition = condition
        self._else = Label("else")
        self._end = Label("endif") if end is None else end
        self.origin = condition.origin
        asm._loose.pop(id(condition), None)
        asm._loose[id(self)] = self

    def goto(self, label: str | Label) -> None:
        """Jump to *label* where the condition holds: ``if r2 > r3 goto label``."""
        self._asm._begin(self, "If")
        self._asm._branch_true(self._condition, self._asm._label(label), self.origin)

    def __enter__(self) -> None:
        self._asm._begin(self, "If")
        self._asm._branch_false(self._condition, self._else, self.origin)
        self._asm._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        asm = self._asm
        asm._depth -= 1
        ends = asm._terminated
        asm._place(self._else)
        if self._end in asm._used:
            asm._place(self._end)
        asm._chain = _Chain(self._else, self._end, len(asm._body), asm._depth, ends)


class _Chain:
    """The If block that has just ended, which an Else or Elif may continue."""

    __slots__ = ("depth", "end", "ends", "otherwise", "position")

    def __init__(self, otherwise: Label, end: Label, position: int, depth: int, ends: bool) -> None:
        self.otherwise = otherwise
        self.end = end
        self.position = position
        self.depth = depth
        self.ends = ends


class _Else:
    """What `Asm.Else` and `Asm.Elif` return."""

    __slots__ = ("_asm", "_condition", "_end", "_inner", "origin", "what")

    def __init__(self, asm: Asm, condition: Condition | None) -> None:
        self._asm = asm
        self._condition = condition
        self._inner: _If | None = None
        self.what = "Else" if condition is None else "Elif"
        self.origin = asm._capture(3)
        if condition is not None:
            asm._loose.pop(id(condition), None)
        asm._loose[id(self)] = self

    def __enter__(self) -> None:
        asm = self._asm
        asm._begin(self, self.what)
        chain = asm._chain
        if chain is None or chain.position != len(asm._body) or chain.depth != asm._depth:
            raise asm._error(f"{self.what} must follow the block of an If directly")
        asm._chain = None
        asm._unplace(chain.otherwise)
        asm._unplace(chain.end)
        self._end = chain.end
        asm._terminated = chain.ends
        if not chain.ends:
            asm._jump(self._end)
        asm._place(chain.otherwise)
        if self._condition is not None:
            self._inner = _If(asm, self._condition, self._end)
            self._inner.__enter__()
        else:
            asm._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._inner is not None:
            self._inner.__exit__(None, None, None)
            return
        self._asm._depth -= 1
        if self._end in self._asm._used:
            self._asm._place(self._end)


class LoopBlock:
    """What `Asm.Loop` and `Asm.While` bind: ``loop.start`` and ``loop.end`` are labels for ``goto``."""

    __slots__ = ("_asm", "_condition", "end", "origin", "start", "what")

    def __init__(self, asm: Asm, condition: Condition | None) -> None:
        self._asm = asm
        self._condition = condition
        self.start = Label("loop")
        self.end = Label("endloop")
        self.what = "Loop" if condition is None else "While"
        self.origin = asm._capture(3)
        if condition is not None:
            asm._loose.pop(id(condition), None)
        asm._loose[id(self)] = self

    def again(self) -> None:
        """Jump back to the start, as Python's ``continue``."""
        self._asm._jump(self.start)

    def leave(self) -> None:
        """Jump behind the end, as Python's ``break``."""
        self._asm._jump(self.end)

    def __enter__(self) -> LoopBlock:
        asm = self._asm
        asm._begin(self, self.what)
        if asm._terminated:
            raise asm._unreachable(self.origin)
        asm._place(self.start)
        if self._condition is not None:
            self._asm._branch_false(self._condition, self.end, self.origin)
        self._asm._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        self._asm._depth -= 1
        if not self._asm._terminated:
            self._asm._jump(self.start)
        if self.end in self._asm._used:
            self._asm._place(self.end)


T = TypeVar("T", bound=Struct)


class Asm:
    """Writes the instructions of one function.

    ``b.r0`` to ``b.r10`` and ``b.w0`` to ``b.w10`` are the registers, ``b.u8[…]`` to ``b.u64[…]`` is memory
    at an address. Every mistake is an `AsmError` at the Python line that made it.
    """

    __slots__ = (
        "_body",
        "_calls",
        "_chain",
        "_depth",
        "_done",
        "_loose",
        "_named",
        "_only_by_jump",
        "_places",
        "_referring",
        "_regs",
        "_stack",
        "_terminated",
        "_used",
        "_wides",
        "byteorder",
        "entry",
        "name",
    )

    r0 = _RegSlot(0, False)
    r1 = _RegSlot(1, False)
    r2 = _RegSlot(2, False)
    r3 = _RegSlot(3, False)
    r4 = _RegSlot(4, False)
    r5 = _RegSlot(5, False)
    r6 = _RegSlot(6, False)
    r7 = _RegSlot(7, False)
    r8 = _RegSlot(8, False)
    r9 = _RegSlot(9, False)
    r10 = _RegSlot(10, False)
    w0 = _RegSlot(0, True)
    w1 = _RegSlot(1, True)
    w2 = _RegSlot(2, True)
    w3 = _RegSlot(3, True)
    w4 = _RegSlot(4, True)
    w5 = _RegSlot(5, True)
    w6 = _RegSlot(6, True)
    w7 = _RegSlot(7, True)
    w8 = _RegSlot(8, True)
    w9 = _RegSlot(9, True)
    w10 = _RegSlot(10, True)
    if not TYPE_CHECKING:  # a type checker knows by their absence
        # What the four bits of an encoded register could say, but no program may.
        r11 = r12 = r13 = r14 = r15 = w11 = w12 = w13 = w14 = w15 = _NoRegister()

    def __init__(self, name: str, entry: CodeType | None = None, byteorder: ByteOrder = "little") -> None:
        self.name = name
        self.byteorder: ByteOrder = byteorder
        self.entry = entry
        self._regs = tuple(tuple(Reg(self, i, w) for i in range(11)) for w in (False, True))
        self._done = tuple(tuple(Reg(self, i, w, True) for i in range(11)) for w in (False, True))
        self._body: list[Instruction] = []
        self._referring: list[int] = []  # indices of instructions with a reference
        self._wides: list[int] = []  # indices of those that take two slots
        self._places: dict[Label, int] = {}
        self._used: dict[Label, Origin] = {}
        self._named: dict[str, Label] = {}
        self._only_by_jump: dict[Label, Origin] = {}  # labels after what always leaves
        self._loose: dict[int, Condition | Unary | _If | _Else | LoopBlock] = {}
        self._chain: _Chain | None = None
        self._depth = 0
        self._terminated = False
        self._stack = 0
        self._calls: list[Subprogram] = []

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            known = [n for n in dir(type(self)) if not n.startswith("_")]
            raise self._error(f"Asm has no {name!r}{suggestion(name, known)}")

    # Memory.
    @property
    def u8(self) -> _Memory:
        """``b.u8[b.r1 + 4]``: a byte of memory."""
        return _Memory(self, _U8)

    @property
    def u16(self) -> _Memory:
        """``b.u16[b.r1 + 4]``: 2 bytes of memory in host order."""
        return _Memory(self, _U16)

    @property
    def u32(self) -> _Memory:
        """``b.u32[b.r1 + 4]``: 4 bytes of memory in host order."""
        return _Memory(self, _U32)

    @property
    def u64(self) -> _Memory:
        """``b.u64[b.r1 + 8]``: 8 bytes of memory in host order."""
        return _Memory(self, _U64)

    def stack(self, struct: type[T]) -> T:
        """A view of fresh stack space for *struct*, 8-byte aligned.

        Raises `AsmError` above 512 bytes in all.
        """
        if not isinstance(struct, type):
            raise self._error(f"stack takes a structure's class, not {_a(struct)}")
        return struct(self.stack_bytes(struct.sizeof))

    def stack_bytes(self, size: int) -> Address:
        """The address of *size* fresh bytes of stack, 8-byte aligned.

        Their contents are not set.
        """
        if size < 1:
            raise self._error(f"{size} bytes of stack can't be had: at least 1")
        taken = self._stack + -(-size // 8) * 8
        if taken > STACK_LIMIT:
            raise self._error(
                f"{size} more bytes of stack make {taken}; a function has {STACK_LIMIT}: "
                "use a map for what is large"
            )
        self._stack = taken
        return self.r10 - taken

    # Named macros.
    def lea(self, target: Reg, what: Address | Struct | ArrayView | Mem) -> None:
        """*target* = the address of *what*: a move and an addition (no addition where the offset is 0).

        Raises `AsmError` for a w register, r10, and what is in no memory.
        """
        address = what.address if isinstance(what, (Struct, ArrayView)) else what
        if not isinstance(target, Reg) or not isinstance(address, (Address, Mem)):
            raise self._error(f"lea takes a register and what is in memory, not {_a(target)} and {_a(what)}")
        if address.asm is not self:
            raise self._foreign()
        if target.is_w:
            raise self._error(f"{target.name} is 32 bits wide and can't hold an address")
        if target.index == isa.FRAME_POINTER:
            raise self._frame_pointer()
        if target.index != address.base:
            self._emit(isa.ALU64 | Alu.MOV | isa.X, target.index, address.base)
        if address.offset:
            self._emit(
                isa.ALU64 | Alu.ADD | isa.K, target.index, 0, 0, self._immediate(address.offset, False)
            )

    def zero(self, what: Struct, start: int = 0) -> None:
        """Store zeros over *what* from byte *start*: as few aligned stores as the size allows."""
        if not isinstance(what, Struct):
            raise self._error(f"zero takes a view of a structure, not {_a(what)}")
        address, size = what.address, what.sizeof
        at = start
        while at < size:
            step = next(n for n in (8, 4, 2, 1) if at + n <= size and (address.offset + at) % n == 0)
            self._emit(isa.ST | isa.MEM | isa.SIZE_CODE[step], address.base, 0, address.offset + at, 0)
            at += step

    def ret(self, value: int | Reg) -> None:
        """``r0 = value`` and ``exit``. *value* is a 32-bit constant, sign-extended, or a register."""
        if isinstance(value, Reg) and value.is_w:
            self.w0 = value
        else:
            self.r0 = value
        self.exit()

    # Instructions without an operator.
    def exit(self) -> None:
        """Leave the function with r0 as its result (RFC 9669, section 4.3).

        What follows must have a label; anything else raises `AsmError`.
        """
        self._emit(isa.OP_EXIT)
        self._terminated = True

    def call(self, what: Helper | int | Subprogram | Extern) -> None:
        """Call a helper, a subprogram or a function of the kernel (`pybpfasm.core.kfunc`).

        Arguments are in r1 to r5, the result comes in r0; r1 to r5 are lost. A helper is a `Helper`, or its
        number (``BPF_FUNC_*``, RFC 9669 section 4.3.1). Raises `AsmError` for what can't be called.
        """
        from pybpfasm.program import Subprogram

        if isinstance(what, Subprogram):
            if what not in self._calls:
                self._calls.append(what)
            self._emit(isa.OP_CALL, 0, CallKind.LOCAL, 0, -1, reference=what)
        elif isinstance(what, int):
            if not 0 <= what <= _S32_MAX:
                raise self._error(f"helper {what} does not exist")
            self._emit(isa.OP_CALL, 0, CallKind.HELPER, 0, int(what))
        else:
            from pybpfasm.core import Extern

            if isinstance(what, Extern) and what.kind == "kfunc":
                self._emit(isa.OP_CALL, 0, CallKind.KFUNC, 0, 0, reference=what)
                return
            raise self._error(f"call takes a Helper or a subprogram, not {_a(what)}")

    def goto(self, label: str | Label) -> None:
        """Jump to *label*, here or further on."""
        self._jump(self._label(label))

    def label(self, label: str | Label) -> None:
        """Mark this place as *label*.

        A name may stand for one place in a function; raises `AsmError` for a second.
        """
        found = self._label(label)
        if found in self._places:
            raise self._error(f"label {found.hint!r} marks another place already")
        if self._terminated:
            self._only_by_jump[found] = self._capture(2)
        self._chain = None  # an Else after this would not follow the If
        self._place(found)

    def named(self, name: str) -> Label:
        """The `Label` that *name* stands for in this function, for macros that take one."""
        return self._label(name)

    # Blocks.
    def If(self, condition: Condition) -> _If:
        """``with b.If(cond):`` a block that runs where *condition* holds; ``b.If(cond).goto(label)`` a
        jump.

        Raises `AsmError` for what is no comparison, a Python ``bool`` among them, and, when the function is
        finished, where neither follows.
        """
        return _If(self, condition)

    def Elif(self, condition: Condition) -> _Else:
        """A block, directly after that of an If or Elif, for another condition; raises `AsmError`
        elsewhere."""
        if not isinstance(condition, Condition):
            raise self._error(f"Elif takes a comparison of registers, not {_a(condition)}")
        return _Else(self, condition)

    def Else(self) -> _Else:
        """A block, directly after that of an If or Elif, for the remaining cases; raises `AsmError`
        elsewhere."""
        return _Else(self, None)

    def Loop(self) -> LoopBlock:
        """``with b.Loop() as loop:`` repeats until a jump leaves it: ``loop.leave()``,
        ``b.If(cond).goto(loop.end)``."""
        return LoopBlock(self, None)

    def While(self, condition: Condition) -> LoopBlock:
        """``with b.While(cond):`` tests at the top and repeats the block.

        The verifier must see that it ends: it follows every turn, a million instructions in all. Raises
        `AsmError` for what is no comparison.
        """
        if not isinstance(condition, Condition):
            raise self._error(f"While takes a comparison of registers, not {_a(condition)}")
        return LoopBlock(self, condition)

    # Below: how it is done.
    def here(self) -> SourceLocation:
        """The Python line that is being executed, as messages show it."""
        return resolve(capture(self.entry, 2))

    def _error(self, message: str) -> AsmError:
        return AsmError(message, resolve(capture(self.entry, 2)))

    def _capture(self, depth: int) -> Origin:
        return capture(self.entry, depth)

    def _emit(
        self,
        opcode: int,
        dst: int = 0,
        src: int = 0,
        offset: int = 0,
        imm: int = 0,
        imm_high: int = 0,
        reference: object = None,
        origin: Origin | None = None,
    ) -> None:
        if origin is None:
            # As capture() does, without the call: this is the hot path.
            frame = _getframe(2)
            while frame.f_code.co_filename in INTERNAL:
                frame = frame.f_back  # type: ignore[assignment]
            code = frame.f_code
            if code is self.entry and code.co_filename in known_modules:
                origin = (code, frame.f_lasti, None)
            else:
                origin = capture(self.entry, 2)
        if not -32768 <= offset <= 32767:
            raise AsmError(
                f"offset {offset} does not fit the 16 bits that an instruction has for it", resolve(origin)
            )
        if self._terminated:
            raise self._unreachable(origin)
        if reference is not None:
            self._referring.append(len(self._body))
        if opcode == isa.LD_IMM64:
            self._wides.append(len(self._body))
        self._body.append(Instruction(opcode, dst, src, offset, imm, imm_high, reference, origin))

    def _foreign(self) -> AsmError:
        return self._error(
            f"this belongs to another function than {self.name}: "
            "registers and views are used in the function that they were made for"
        )

    def _unreachable(self, origin: Origin) -> AsmError:
        return AsmError(
            "this can't be reached: the statement before always leaves "
            "(put a label here if something jumps to it)",
            resolve(origin),
        )

    def _begin(self, block: _If | _Else | LoopBlock, what: str) -> None:
        """Take *block* for written; one can be written only once, because its labels mark one place."""
        if self._loose.pop(id(block), None) is None:
            raise self._error(f"this {what} has been written already: each place needs one of its own")

    def _frame_pointer(self) -> AsmError:
        return AsmError("r10 is the frame pointer and can't be changed", resolve(capture(self.entry, 2)))

    def _widths_differ(self, left: Reg, right: Reg) -> AsmError:
        r, w = (right, left) if left.is_w else (left, right)
        return self._error(
            f"{left.name} and {right.name} differ in width: "
            f"write {r.name} and r{w.index} for 64 bits, or w{r.index} and {w.name} for 32"
        )

    def _immediate(self, value: int | Imm, is_w: bool, hint: str = "a register loaded with imm64()") -> int:
        if type(value) is int and 0 <= value <= _S32_MAX:
            return value
        number = value.resolve(self.byteorder) if isinstance(value, Imm) else int(value)
        if isinstance(value, Imm) and value.bits == 64:
            raise self._error("a 64-bit constant is no operand: load it to a register first")
        if is_w:
            if not _S32_MIN <= number <= _U32_MAX:
                raise self._error(f"{number} does not fit 32 bits")
            return number - (1 << 32) if number > _S32_MAX else number
        if not _S32_MIN <= number <= _S32_MAX:
            raise self._error(
                f"{number:#x} does not fit the signed 32-bit immediate, which is sign-extended to 64 bits: "
                f"use {hint}" + (", or the w register" if 0 <= number <= _U32_MAX else "")
            )
        return number

    def _wide(self, dst: int, is_w: bool, number: int) -> None:
        if is_w:
            raise self._error(f"a 64-bit constant needs all of the register: write b.r{dst}")
        low, high = number & _U32_MAX, number >> 32
        signed = [n - (1 << 32) if n > _S32_MAX else n for n in (low, high)]
        self._emit(isa.LD_IMM64, dst, Imm64.VALUE, 0, signed[0], signed[1])

    def _assign_other(self, dst: int, is_w: bool, value: object) -> None:
        from pybpfasm.program import Subprogram

        if isinstance(value, Unary):
            self._unary(dst, is_w, value)
        elif isinstance(value, Struct):
            address = value.address
            if address.offset:
                raise self._error("the address of that takes two instructions: b.lea(b.rN, …)")
            if is_w:
                raise self._error(f"an address needs all of the register: write b.r{dst}")
            self._emit(isa.ALU64 | Alu.MOV | isa.X, dst, address.base)
        elif isinstance(value, (MapSpec, MapValue, Subprogram)):
            if is_w:
                raise self._error(f"an address needs all of the register: write b.r{dst}")
            if isinstance(value, MapSpec):
                self._emit(isa.LD_IMM64, dst, Imm64.MAP_FD, reference=value)
            elif isinstance(value, MapValue):
                self._emit(isa.LD_IMM64, dst, Imm64.MAP_VALUE, imm_high=value.offset, reference=value.map)
            else:
                if value not in self._calls:
                    self._calls.append(value)
                self._emit(isa.LD_IMM64, dst, Imm64.FUNC, imm=-1, reference=value)
        elif isinstance(value, Address):
            raise self._error(
                "an address and its offset take two instructions: b.lea(b.rN, …), or move and add"
            )
        elif isinstance(value, Condition):
            self._loose.pop(id(value), None)
            raise self._error(
                "a comparison has no value to assign: use b.If(…); to mask bits write b.rN &= x"
            )
        else:
            raise self._error(f"a register can't be set to {_a(value)}")

    def _unary(self, dst: int, is_w: bool, value: Unary) -> None:
        reg = value.reg
        self._loose.pop(id(value), None)
        if value.kind == "movsx":
            if reg.is_w != is_w:
                raise self._widths_differ(self._regs[is_w][dst], reg)
            if is_w and value.width == 32:
                raise self._error("a 32-bit register has no bits left to extend into")
            self._emit((isa.ALU if is_w else isa.ALU64) | Alu.MOV | isa.X, dst, reg.index, value.width)
            return
        if reg.index != dst or reg.is_w != is_w:
            word = "negation" if value.kind == "neg" else "byte swap"
            raise self._error(f"a {word} works in place: write b.{reg.name} = … b.{reg.name}")
        if value.kind == "neg":
            self._emit((isa.ALU if is_w else isa.ALU64) | Alu.NEG | isa.K, dst)
            return
        if is_w:
            raise self._error(f"a byte swap clears the bits above its width: write b.r{dst}")
        opcode = {"le": isa.ALU | isa.K, "be": isa.ALU | isa.X, "bswap": isa.ALU64 | isa.K}[value.kind]
        self._emit(opcode | Alu.END, dst, 0, 0, value.width)

    def _label(self, label: str | Label) -> Label:
        if isinstance(label, Label):
            return label
        if not isinstance(label, str):
            raise self._error(f"a label is a name or a Label, not {_a(label)}")
        if label not in self._named:
            self._named[label] = Label(label)
        return self._named[label]

    def _place(self, label: Label) -> None:
        self._places[label] = len(self._body)
        self._terminated = False

    def _unplace(self, label: Label) -> None:
        self._places.pop(label, None)

    def _jump(self, label: Label) -> None:
        origin = capture(self.entry, 2)
        self._emit(isa.OP_JA, reference=label, origin=origin)
        self._used.setdefault(label, origin)
        self._terminated = True

    def _jump_if(self, condition: Condition, jump: Jump, label: Label, origin: Origin) -> None:
        lhs, rhs = condition.lhs, condition.rhs
        assert lhs is not None
        cls = isa.JMP32 if lhs.is_w else isa.JMP
        if isinstance(rhs, Reg):
            self._emit(cls | jump | isa.X, lhs.index, rhs.index, reference=label, origin=origin)
        else:
            imm = self._immediate(rhs, lhs.is_w)
            self._emit(cls | jump | isa.K, lhs.index, imm=imm, reference=label, origin=origin)
        self._used.setdefault(label, origin)

    def _branch_true(self, condition: Condition, label: Label, origin: Origin) -> None:
        """Jump to *label* where *condition* holds, else go on."""
        left, right = condition.left, condition.right
        if condition.join == "or":
            assert left is not None and right is not None
            self._branch_true(left, label, origin)
            self._branch_true(right, label, origin)
        elif condition.join == "and":
            assert left is not None and right is not None
            skip = Label("skip")
            self._branch_false(left, skip, origin)
            self._branch_true(right, label, origin)
            self._place(skip)
        elif condition.jump is None:
            skip = Label("skip")
            self._jump_if(condition, Jump.JSET, skip, origin)
            self._emit(isa.OP_JA, reference=label, origin=origin)
            self._used.setdefault(label, origin)
            self._place(skip)
        else:
            self._jump_if(condition, condition.jump, label, origin)

    def _branch_false(self, condition: Condition, label: Label, origin: Origin) -> None:
        """Go on where *condition* holds, else jump to *label*."""
        left, right = condition.left, condition.right
        if condition.join == "and":
            assert left is not None and right is not None
            self._branch_false(left, label, origin)
            self._branch_false(right, label, origin)
        elif condition.join == "or":
            assert left is not None and right is not None
            into = Label("then")
            self._branch_true(left, into, origin)
            self._branch_false(right, label, origin)
            self._place(into)
        elif condition.jump is None:
            self._jump_if(condition, Jump.JSET, label, origin)
        elif condition.jump is Jump.JSET:
            into = Label("then")
            self._jump_if(condition, Jump.JSET, into, origin)
            self._emit(isa.OP_JA, reference=label, origin=origin)
            self._used.setdefault(label, origin)
            self._place(into)
        else:
            self._jump_if(condition, _INVERSE[condition.jump], label, origin)

    def finish(self) -> list[Instruction]:
        """The instructions, jumps resolved; references to maps and subprograms stay.

        Raises `AsmError` for a label that nothing marks, a comparison that nothing uses, an empty function
        and a way past its end.
        """
        for loose in self._loose.values():
            what = "If(…) is neither a `with` block nor followed by .goto()"
            if isinstance(loose, Condition):
                what = "this comparison does nothing: it belongs in b.If(…)"
            elif isinstance(loose, Unary):
                what = f"this does nothing: its result must be assigned, b.{loose.reg.name} = …"
            elif not isinstance(loose, _If):
                what = f"{loose.what}(…) does nothing without `with`"
            raise AsmError(what, resolve(loose.origin))
        if not self._body:
            raise AsmError(f"{self.name} has no instructions")
        at_end = any(
            place == len(self._body) and label in self._used for label, place in self._places.items()
        )
        if at_end or not self._terminated:
            origin = self._body[-1].origin
            raise AsmError(
                f"{self.name} runs past its end after this statement: it needs b.exit() or b.ret()",
                None if origin is None else resolve(origin),
            )
        if self._only_by_jump:
            jumped_to = {self._places[label] for label in self._used if label in self._places}
            for dead, origin in self._only_by_jump.items():
                if self._places[dead] not in jumped_to and self._places[dead] < len(self._body):
                    raise AsmError(
                        f"what follows label {dead.hint!r} can't be reached: nothing jumps to it, "
                        "and the statement before always leaves",
                        resolve(origin),
                    )
        self._reach()
        for index in self._referring:
            insn = self._body[index]
            label = insn.reference
            if not isinstance(label, Label):
                continue
            assert insn.origin is not None
            place = self._places.get(label)
            if place is None:
                known = [name for name, other in self._named.items() if other in self._places]
                raise AsmError(
                    f"label {label.hint!r} is not marked in {self.name}{suggestion(label.hint, known)}",
                    resolve(insn.origin),
                )
            distance = self._slot(place) - self._slot(index) - 1
            if insn.opcode == isa.OP_GOTOL:
                insn.imm = distance
            else:
                insn.offset = distance
        return self._body

    def _reach(self) -> None:
        """Let jumps of more than 16 bits arrive (ISA v4, Linux 6.6).

        ``goto`` becomes ``gotol``. A conditional jump goes over a ``goto`` behind it, to a ``gotol`` that is
        written for it: two instructions more, which may put others out of reach.
        """
        while True:
            far = []
            for index in self._referring:
                insn = self._body[index]
                label = insn.reference
                if not isinstance(label, Label) or label not in self._places or insn.opcode == isa.OP_GOTOL:
                    continue
                if not -32768 <= self._slot(self._places[label]) - self._slot(index) - 1 <= 32767:
                    if insn.opcode == isa.OP_JA:
                        insn.opcode = isa.OP_GOTOL
                    else:
                        far.append(index)
            if not far:
                return
            body: list[Instruction] = []
            begin = 0
            for index in far:
                insn = self._body[index]
                over = Instruction(isa.OP_JA, offset=1, origin=insn.origin)
                long = Instruction(isa.OP_GOTOL, reference=insn.reference, origin=insn.origin)
                insn.reference, insn.offset = None, 1
                body += [*self._body[begin : index + 1], over, long]
                begin = index + 1
            self._body = body + self._body[begin:]
            moved = {label: place + 2 * bisect_left(far, place) for label, place in self._places.items()}
            self._places = moved
            self._wides = [index + 2 * bisect_left(far, index) for index in self._wides]
            self._referring = [i for i, insn in enumerate(self._body) if insn.reference is not None]

    def _slot(self, index: int) -> int:
        """The slot of the instruction at *index*: those before it, and the wide ones among them once more."""
        return index + bisect_left(self._wides, index)

    @property
    def slots(self) -> int:
        """How many 8-byte slots have been written so far."""
        return self._slot(len(self._body))

    def labels(self) -> dict[int, str]:
        """Names given to places, by index of the instruction that follows."""
        return {self._places[label]: name for name, label in self._named.items() if label in self._places}


_U8, _U16, _U32, _U64 = U8(), U16(), U32(), U64()
