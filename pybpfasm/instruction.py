# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""One instruction: its fields, their validity, and its bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pybpfasm.errors import DecodeError, PybpfasmError
from pybpfasm.isa import ANY, FORMS, FRAME_POINTER, LD_IMM64, OP_CALL, ZERO, Allowed, CallKind, Form, Imm64

if TYPE_CHECKING:
    from pybpfasm.errors import SourceLocation
    from pybpfasm.layout import ByteOrder
    from pybpfasm.source import Origin

SLOT_SIZE: Final = 8

# opcode and registers as one 16-bit number, offset, imm.
_LITTLE: Final = struct.Struct("<Hhi")
_BIG: Final = struct.Struct(">Hhi")

_S16_MIN, _S16_MAX = -(1 << 15), (1 << 15) - 1
_S32_MIN, _S32_MAX = -(1 << 31), (1 << 31) - 1

# The 64-bit immediate loads whose upper half means something.
_WITH_UPPER: Final = frozenset({Imm64.VALUE, Imm64.MAP_VALUE, Imm64.BTF_ID, Imm64.MAP_IDX_VALUE})


class EncodeError(PybpfasmError):
    """An instruction that does not exist; the message says which field is wrong and what it may be.

    ``index`` is its place among the instructions that were to be encoded.
    """

    def __init__(self, message: str, index: int | None = None) -> None:
        self.message = message
        self.index = index
        super().__init__(message if index is None else f"instruction {index}: {message}")


@dataclass(slots=True, eq=True)
class Instruction:
    """An instruction's fields (RFC 9669, section 3.1).

    ``imm`` is the signed 32-bit immediate; of the wide ``lddw`` it holds the low and ``imm_high`` the high 32
    bits, both signed. ``reference`` names what an immediate or offset stands for until it is known (a label,
    a map, a subprogram); ``origin`` is the Python code that wrote the instruction (see `pybpfasm.source`), or
    the line of C that a compiler made it of.
    """

    opcode: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    imm: int = 0
    imm_high: int = 0
    reference: object = None
    origin: Origin | SourceLocation | None = field(default=None, compare=False, repr=False)

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

    def callee(self, slot: int) -> int | None:
        """The slot of the function that it calls, or takes the address of, where it is in *slot* itself;
        ``None`` for other instructions."""
        calls = self.opcode == OP_CALL and self.src == CallKind.LOCAL
        if calls or (self.opcode == LD_IMM64 and self.src == Imm64.FUNC):
            return slot + 1 + self.imm
        return None

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
        forms = FORMS.get(self.opcode)
        if forms is None:
            return f"opcode {self.opcode:#04x} does not exist"
        for register in (self.dst, self.src):
            if not 0 <= register <= 15:
                return f"{forms[0].name}: register number {register} does not fit 4 bits"
        if not _S16_MIN <= self.offset <= _S16_MAX:
            return f"{forms[0].name}: offset {self.offset} does not fit 16 bits"
        for value in (self.imm, self.imm_high):
            if not _S32_MIN <= value <= _S32_MAX:
                return f"{forms[0].name}: immediate {value} does not fit 32 bits"
        if self.form() is not None:
            if self.imm_high and not (self.opcode == LD_IMM64 and self.src in _WITH_UPPER):
                if self.opcode == LD_IMM64:
                    return f"lddw: the upper immediate must be 0 where src is {self.src}"
                return f"{forms[0].name}: only a 64-bit immediate load has a second immediate"
            return None
        return _blame(self, forms)

    def kernel_problem(self) -> str | None:
        """Why no kernel takes this valid instruction, or ``None``: the ISA is wider than the verifier in
        shifts by more than the register has bits, division by a constant 0, and ``callx``."""
        form = self.form()
        if form is None or self.imm in form.kernel_imm:
            if form is not None and form.kernel is None:
                return f"no kernel has {form.name}"
            return None
        return f"{form.name}: the verifier takes an immediate of {form.kernel_imm}, not {self.imm}"

    def encode(self, byteorder: ByteOrder = "little") -> bytes:
        """The instruction's 8 bytes, 16 for ``lddw``.

        Raises `EncodeError` where a field has a value that it may not have.
        """
        return encode((self,), byteorder)


def _blame(insn: Instruction, forms: tuple[Form, ...]) -> str:
    """What is wrong with an instruction that has none of its opcode's *forms*: the fields that the closest
    one refuses, a register rather than the number that tells the forms apart."""
    refused: dict[tuple[str, ...], list[Form]] = {}
    for form in forms:
        fields = tuple(name for name in _FIELDS if getattr(insn, name) not in getattr(form, name))
        refused.setdefault(fields, []).append(form)
    fields = min(refused, key=lambda names: (len(names), names[0] not in ("dst", "src")))
    closest = refused[fields]
    reasons = []
    for name in fields:
        values: set[int] = set()
        for form in closest if len(fields) == 1 else closest[:1]:
            values |= getattr(form, name).values or set()
        allowed, value = Allowed(frozenset(values)), getattr(insn, name)
        if name in ("dst", "src") and len(values) >= FRAME_POINTER:
            reasons.append(_refused_register(name, value))
        else:
            reasons.append(f"{name} is {value}, must be {allowed}")
    return f"{closest[0].name}: " + "; ".join(reasons)


_FIELDS: Final = ("dst", "src", "offset", "imm")


def _refused_register(name: str, value: int) -> str:
    if value == FRAME_POINTER:
        return f"{name} is r10, the frame pointer, which can't be written"
    return f"{name} is r{value}, which does not exist"


# What decides most instructions: their opcode and registers. A row has a mask of the bits that must be 0 in
# the offset and one for the imm (all or none), and whether only the table can tell.
_Row = tuple[int, int, int, int, int, bool]
_WHOLE: Final = -1


def _verdict(opcode: int, dst: int, src: int) -> tuple[int, int, bool]:
    fitting = [f for f in FORMS.get(opcode, ()) if dst in f.dst and src in f.src]
    if len(fitting) != 1 or opcode == LD_IMM64:
        return 0, 0, True
    offset, imm = fitting[0].offset, fitting[0].imm
    if offset not in (ZERO, ANY) or imm not in (ZERO, ANY):
        return 0, 0, True
    return _WHOLE if offset == ZERO else 0, _WHOLE if imm == ZERO else 0, False


class _Decoding(dict[int, _Row]):
    """From the first two bytes of an instruction, as a number, to opcode, dst, src and the verdict."""

    def __init__(self, byteorder: ByteOrder) -> None:
        self.little = byteorder == "little"

    def __missing__(self, key: int) -> _Row:
        if self.little:
            opcode, dst, src = key & 255, key >> 8 & 15, key >> 12
        else:
            opcode, dst, src = key >> 8, key >> 4 & 15, key & 15
        row = self[key] = (opcode, dst, src, *_verdict(opcode, dst, src))
        return row


class _Encoding(dict[int, tuple[int, int, int, bool]]):
    """From ``opcode << 8 | dst << 4 | src`` to the first two bytes as a number, and the verdict."""

    def __init__(self, byteorder: ByteOrder) -> None:
        self.little = byteorder == "little"

    def __missing__(self, key: int) -> tuple[int, int, int, bool]:
        opcode, dst, src = key >> 8, key >> 4 & 15, key & 15
        if not 0 <= opcode <= 255:
            return 0, 0, 0, True
        first = opcode | dst << 8 | src << 12 if self.little else key
        row = self[key] = (first, *_verdict(opcode, dst, src))
        return row


_DECODING: Final = {"little": _Decoding("little"), "big": _Decoding("big")}
_ENCODING: Final = {"little": _Encoding("little"), "big": _Encoding("big")}
# From this many bytes on, decoding pauses the cyclic garbage collector, which would otherwise go through all
# of the new objects again and again (it halves the speed) though nothing here makes a cycle.
_MANY: Final = 1 << 16


def decode(data: bytes | bytearray | memoryview, byteorder: ByteOrder = "little") -> list[Instruction]:
    """The instructions of *data*, each checked against the table of legal fields.

    Raises `DecodeError` with the byte offset for a length that is no multiple of 8, a ``lddw`` cut in half
    and every invalid instruction.
    """
    if len(data) % SLOT_SIZE:
        raise DecodeError(
            f"{len(data)} bytes are no whole number of 8-byte instructions: "
            f"{len(data) % SLOT_SIZE} are left over at byte {len(data) - len(data) % SLOT_SIZE}"
        )
    if len(data) < _MANY:
        return _decode(data, byteorder)
    import gc

    enabled = gc.isenabled()
    gc.disable()
    try:
        return _decode(data, byteorder)
    finally:
        if enabled:
            gc.enable()


def _decode(data: bytes | bytearray | memoryview, byteorder: ByteOrder) -> list[Instruction]:
    rows = _DECODING[byteorder]
    out: list[Instruction] = []
    append = out.append
    slots = (_LITTLE if byteorder == "little" else _BIG).iter_unpack(data)
    wide = 0
    for first, offset, imm in slots:
        opcode, dst, src, offset_mask, imm_mask, in_table = rows[first]
        insn = Instruction(opcode, dst, src, offset, imm)
        append(insn)
        if in_table or offset & offset_mask or imm & imm_mask:
            if opcode == LD_IMM64:
                second = next(slots, None)
                at = (len(out) - 1 + wide) * SLOT_SIZE
                if second is None:
                    raise DecodeError(f"byte {at}: a 64-bit immediate load lacks its second half")
                if second[0] or second[1]:
                    raise DecodeError(
                        f"byte {at + SLOT_SIZE}: fields that must be 0 are set in the second half "
                        "of a 64-bit immediate load"
                    )
                insn.imm_high = second[2]
                wide += 1
                if second[2] and src not in _WITH_UPPER:
                    raise DecodeError(f"byte {at}: {insn.problem()}")
            if insn.form() is None:
                slot = len(out) - 1 + wide - (opcode == LD_IMM64)
                raise DecodeError(f"byte {slot * SLOT_SIZE}: {insn.problem()}")
    return out


def encode(instructions: Iterable[Instruction], byteorder: ByteOrder = "little") -> bytes:
    """The bytes of *instructions*, one after the other.

    Raises `EncodeError` for one that does not exist.
    """
    rows = _ENCODING[byteorder]
    pack = (_LITTLE if byteorder == "little" else _BIG).pack
    out: list[bytes] = []
    append = out.append
    for index, insn in enumerate(instructions):
        dst, src, offset, imm = insn.dst, insn.src, insn.offset, insn.imm
        try:
            first, offset_mask, imm_mask, in_table = rows[insn.opcode << 8 | dst << 4 | src]
            if (
                in_table
                or offset & offset_mask
                or imm & imm_mask
                or dst > FRAME_POINTER  # below 0 makes the key negative
                or src > FRAME_POINTER
                or insn.imm_high
            ):
                problem = insn.problem()
                if problem:
                    raise EncodeError(problem, index)
                if insn.opcode == LD_IMM64:
                    append(pack(first, offset, imm))
                    first, offset, imm = 0, 0, insn.imm_high
            append(pack(first, offset, imm))
        except (struct.error, TypeError):
            raise EncodeError(_not_packed(insn), index) from None
    return b"".join(out)


def _not_packed(insn: Instruction) -> str:
    for name in ("opcode", "dst", "src", "offset", "imm", "imm_high"):
        value = getattr(insn, name)
        if not isinstance(value, int):
            return f"{name} is a {type(value).__name__}, not a number"
    return insn.problem() or "a field does not fit"
