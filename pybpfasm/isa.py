# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The instruction set: opcode bytes, and the table of the fields that each opcode may carry.

An instruction is 8 bytes: opcode, registers (``dst`` and ``src``, 4 bits each), a signed 16-bit ``offset``
and a signed 32-bit ``imm`` (RFC 9669, section 3). `FORMS` states for every opcode which values of the other
four fields make an instruction; whatever no form allows is invalid, when encoding and when decoding.

The table follows RFC 9669, and the kernel for what the RFC leaves out. Where they differ:

- Shifts by more than the register has bits and division by a constant 0 have a meaning in the RFC (section
  4.1) and are refused by the verifier: they are valid here; `Form.kernel_imm` says what the verifier takes.
- ``callx`` is not defined by the RFC, and no kernel takes it; compilers write it and the conformance suite
  has it. The register is in dst.
- Atomic operations are of 4 and 8 bytes; only load-acquire and store-release (Linux 6.15) are of all sizes.
- A register that is read may be r10, though the verifier refuses it in places (a pointer that would leak):
  that depends on the program. One that is written may not, in any place.
- Legacy packet loads have no 8-byte size (neither RFC nor kernel define it).
- Of the immediate of a 64-bit load both halves have a meaning, or the upper one is 0.
- What the kernel uses only inside itself (per-CPU addresses, speculation barriers) is invalid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

# Instruction classes, RFC 9669 section 3.2.
LD: Final = 0x00
LDX: Final = 0x01
ST: Final = 0x02
STX: Final = 0x03
ALU: Final = 0x04
JMP: Final = 0x05
JMP32: Final = 0x06
ALU64: Final = 0x07

# Source bit of arithmetic and jump opcodes: K takes imm, X takes the source register.
K: Final = 0x00
X: Final = 0x08

# Sizes of loads and stores, RFC 9669 section 5, table 10.
W: Final = 0x00
H: Final = 0x08
B: Final = 0x10
DW: Final = 0x18

# Modes of loads and stores, RFC 9669 section 5, table 9.
IMM: Final = 0x00
ABS: Final = 0x20
IND: Final = 0x40
MEM: Final = 0x60
MEMSX: Final = 0x80
ATOMIC: Final = 0xC0

SIZE_OF: Final = {W: 4, H: 2, B: 1, DW: 8}
SIZE_CODE: Final = {4: W, 2: H, 1: B, 8: DW}


class Alu(IntEnum):
    """Arithmetic operations, RFC 9669 section 4.1, table 5."""

    ADD = 0x00
    SUB = 0x10
    MUL = 0x20
    DIV = 0x30
    OR = 0x40
    AND = 0x50
    LSH = 0x60
    RSH = 0x70
    NEG = 0x80
    MOD = 0x90
    XOR = 0xA0
    MOV = 0xB0
    ARSH = 0xC0
    END = 0xD0


class Jump(IntEnum):
    """Jump operations, RFC 9669 section 4.3, table 8, and the kernel's ``BPF_JCOND``."""

    JA = 0x00
    JEQ = 0x10
    JGT = 0x20
    JGE = 0x30
    JSET = 0x40
    JNE = 0x50
    JSGT = 0x60
    JSGE = 0x70
    CALL = 0x80
    EXIT = 0x90
    JLT = 0xA0
    JLE = 0xB0
    JSLT = 0xC0
    JSLE = 0xD0
    JCOND = 0xE0


class Atomic(IntEnum):
    """The ``imm`` of atomic instructions, RFC 9669 section 5.3; the last two are the kernel's (Linux
    6.15)."""

    ADD = 0x00
    OR = 0x40
    AND = 0x50
    XOR = 0xA0
    FETCH_ADD = 0x01
    FETCH_OR = 0x41
    FETCH_AND = 0x51
    FETCH_XOR = 0xA1
    XCHG = 0xE1
    CMPXCHG = 0xF1
    LOAD_ACQ = 0x100
    STORE_REL = 0x110


class Imm64(IntEnum):
    """The ``src`` of a 64-bit immediate load, RFC 9669 section 5.4: what the immediate means."""

    VALUE = 0
    MAP_FD = 1
    MAP_VALUE = 2
    BTF_ID = 3
    FUNC = 4
    MAP_IDX = 5
    MAP_IDX_VALUE = 6


class CallKind(IntEnum):
    """The ``src`` of a call, RFC 9669 section 4.3.1."""

    HELPER = 0
    LOCAL = 1
    KFUNC = 2


# The wide instruction: 16 bytes, two slots.
LD_IMM64: Final = LD | IMM | DW
OP_CALL: Final = JMP | Jump.CALL
OP_CALLX: Final = JMP | Jump.CALL | X
OP_EXIT: Final = JMP | Jump.EXIT
OP_JA: Final = JMP | Jump.JA
OP_GOTOX: Final = JMP | Jump.JA | X
OP_GOTOL: Final = JMP32 | Jump.JA
OP_MAY_GOTO: Final = JMP | Jump.JCOND

FRAME_POINTER: Final = 10


@dataclass(frozen=True, slots=True)
class Allowed:
    """The values that one field may have: any in range (``values is None``), a listed few, or (``except_``)
    any but these."""

    values: frozenset[int] | None = None
    except_: frozenset[int] = frozenset()

    def __contains__(self, value: int) -> bool:
        return (self.values is None or value in self.values) and value not in self.except_

    def __str__(self) -> str:
        if self.values is None:
            return "anything but " + ", ".join(map(str, self.except_)) if self.except_ else "any value"
        shown = sorted(self.values)
        if len(shown) == 1:
            return str(shown[0])
        if len(shown) > 2 and shown[-1] < 64 and shown == list(range(shown[0], shown[-1] + 1)):
            return f"{shown[0]} to {shown[-1]}"
        return "one of " + ", ".join(f"{v:#x}" if shown[-1] > 64 else str(v) for v in shown)


def _only(*values: int) -> Allowed:
    return Allowed(frozenset(values))


ANY: Final = Allowed()
ZERO: Final = _only(0)
NOT_ZERO: Final = Allowed(except_=frozenset({0}))
READ: Final = _only(*range(11))  # a register that is read: r0 to r10
WRITE: Final = _only(*range(10))  # a register that is written: r10 is read-only


@dataclass(frozen=True, slots=True)
class Form:
    """One legal shape of an opcode, and the oldest ISA and kernel that know it.

    ``version`` is the ``-mcpu`` level (1 to 4), 5 for what came after v4; ``kernel`` the first release whose
    verifier takes it, ``None`` where none does. ``kernel_imm`` are the immediates that the verifier takes,
    which can be fewer than the ISA gives a meaning to.
    """

    opcode: int
    name: str
    dst: Allowed = ZERO
    src: Allowed = ZERO
    offset: Allowed = ZERO
    imm: Allowed = ZERO
    version: int = 1
    kernel: tuple[int, int] | None = (3, 18)
    kernel_imm: Allowed = ANY


def _build() -> dict[int, tuple[Form, ...]]:
    forms: list[Form] = []
    add: Callable[[Form], None] = forms.append

    plain = (Alu.ADD, Alu.SUB, Alu.MUL, Alu.OR, Alu.AND, Alu.XOR)
    for cls, bits in ((ALU, 32), (ALU64, 64)):
        shift = _only(*range(bits))
        suffix = "32" if bits == 32 else ""
        for op in plain:
            add(Form(cls | op | K, op.name.lower() + suffix, WRITE, imm=ANY))
            add(Form(cls | op | X, op.name.lower() + suffix, WRITE, READ))
        for op in (Alu.LSH, Alu.RSH, Alu.ARSH):
            # Section 4.1 masks the shift, so that every immediate has a meaning; the verifier wants less.
            # Before 5.0 the verifier refused the arithmetic shift of 32 bits.
            since = (5, 0) if op == Alu.ARSH and bits == 32 else (3, 18)
            name = op.name.lower() + suffix
            add(Form(cls | op | K, name, WRITE, imm=ANY, kernel=since, kernel_imm=shift))
            add(Form(cls | op | X, name, WRITE, READ, kernel=since))
        for op in (Alu.DIV, Alu.MOD):
            for offset, sign, version, kernel in ((0, "", 1, (3, 18)), (1, "s", 4, (6, 6))):
                name = sign + op.name.lower() + suffix
                off = _only(offset)
                # Division by 0 gives 0, and modulo leaves dst; the verifier refuses a constant 0.
                add(Form(cls | op | K, name, WRITE, ZERO, off, ANY, version, kernel, NOT_ZERO))
                add(Form(cls | op | X, name, WRITE, READ, off, version=version, kernel=kernel))
        add(Form(cls | Alu.NEG | K, "neg" + suffix, WRITE))
        add(Form(cls | Alu.MOV | K, "mov" + suffix, WRITE, imm=ANY))
        add(Form(cls | Alu.MOV | X, "mov" + suffix, WRITE, READ))
        widths = _only(8, 16) if bits == 32 else _only(8, 16, 32)
        add(Form(cls | Alu.MOV | X, "movsx" + suffix, WRITE, READ, widths, version=4, kernel=(6, 6)))
    # imm is (new address space << 16) | old one; only 0 and 1 exist, and only casts between them.
    add(Form(ALU64 | Alu.MOV | X, "addr_space_cast", WRITE, READ, _only(1), _only(1, 1 << 16), 5, (6, 9)))
    swaps = _only(16, 32, 64)
    add(Form(ALU | Alu.END | K, "le", WRITE, imm=swaps))
    add(Form(ALU | Alu.END | X, "be", WRITE, imm=swaps))
    add(Form(ALU64 | Alu.END | K, "bswap", WRITE, imm=swaps, version=4, kernel=(6, 6)))

    conditional = [j for j in Jump if j not in (Jump.JA, Jump.CALL, Jump.EXIT, Jump.JCOND)]
    newer = (Jump.JLT, Jump.JLE, Jump.JSLT, Jump.JSLE)
    for cls, suffix in ((JMP, ""), (JMP32, "32")):
        for jump in conditional:
            version, kernel = (2, (4, 14)) if jump in newer else (1, (3, 18))
            if cls == JMP32:
                version, kernel = 3, (5, 1)
            name = jump.name.lower() + suffix
            add(Form(cls | jump | K, name, READ, offset=ANY, imm=ANY, version=version, kernel=kernel))
            add(Form(cls | jump | X, name, READ, READ, ANY, version=version, kernel=kernel))
    add(Form(OP_JA, "ja", offset=ANY))
    add(Form(OP_GOTOX, "gotox", READ, version=5, kernel=(6, 19)))
    add(Form(OP_GOTOL, "gotol", imm=ANY, version=4, kernel=(6, 6)))
    add(Form(OP_MAY_GOTO, "may_goto", offset=ANY, version=5, kernel=(6, 9)))
    add(Form(OP_CALL, "call", imm=ANY))
    add(Form(OP_CALL, "call_local", src=_only(CallKind.LOCAL), imm=ANY, kernel=(4, 16)))
    kfunc = _only(CallKind.KFUNC)
    add(Form(OP_CALL, "call_kfunc", src=kfunc, imm=ANY, kernel=(5, 13)))
    # A function of a module: the offset is the index of its BTF in the descriptor array of the load.
    add(Form(OP_CALL, "call_kfunc", src=kfunc, offset=NOT_ZERO, imm=ANY, kernel=(5, 16)))
    # The register in dst, as the conformance suite, gcc, and LLVM since 19 have it (older LLVM put its number
    # into imm). RFC 9669 does not define it and no kernel takes it.
    add(Form(OP_CALLX, "callx", READ, kernel=None))
    add(Form(OP_EXIT, "exit"))

    for size in (W, H, B, DW):
        add(Form(LDX | MEM | size, "ldx", WRITE, READ, ANY))
        add(Form(ST | MEM | size, "st", READ, offset=ANY, imm=ANY))
        add(Form(STX | MEM | size, "stx", READ, READ, ANY))
        if size != DW:
            add(Form(LDX | MEMSX | size, "ldxs", WRITE, READ, ANY, version=4, kernel=(6, 6)))
            add(Form(LD | ABS | size, "ldabs", imm=ANY))
            add(Form(LD | IND | size, "ldind", src=READ, imm=ANY))
    for size in (W, DW):
        atomic = STX | ATOMIC | size
        add(Form(atomic, "atomic", READ, READ, ANY, _only(Atomic.ADD)))
        plain_atomics = _only(Atomic.OR, Atomic.AND, Atomic.XOR)
        add(Form(atomic, "atomic", READ, READ, ANY, plain_atomics, 3, (5, 12)))
        fetching = _only(Atomic.FETCH_ADD, Atomic.FETCH_OR, Atomic.FETCH_AND, Atomic.FETCH_XOR, Atomic.XCHG)
        add(Form(atomic, "atomic", READ, WRITE, ANY, fetching, 3, (5, 12)))
        add(Form(atomic, "atomic", READ, READ, ANY, _only(Atomic.CMPXCHG), 3, (5, 12)))
    for size in (W, H, B, DW):
        atomic = STX | ATOMIC | size
        add(Form(atomic, "load_acquire", WRITE, READ, ANY, _only(Atomic.LOAD_ACQ), 5, (6, 15)))
        add(Form(atomic, "store_release", READ, READ, ANY, _only(Atomic.STORE_REL), 5, (6, 15)))

    add(Form(LD_IMM64, "lddw", WRITE, _only(Imm64.VALUE), imm=ANY))
    add(Form(LD_IMM64, "lddw", WRITE, _only(Imm64.MAP_FD), imm=ANY))
    add(Form(LD_IMM64, "lddw", WRITE, _only(Imm64.MAP_VALUE), imm=ANY, kernel=(5, 2)))
    add(Form(LD_IMM64, "lddw", WRITE, _only(Imm64.BTF_ID), imm=ANY, kernel=(5, 10)))
    add(Form(LD_IMM64, "lddw", WRITE, _only(Imm64.FUNC), imm=ANY, kernel=(5, 13)))
    indexed = _only(Imm64.MAP_IDX, Imm64.MAP_IDX_VALUE)
    add(Form(LD_IMM64, "lddw", WRITE, indexed, imm=ANY, kernel=(5, 14)))

    table: dict[int, list[Form]] = {}
    for form in forms:
        table.setdefault(form.opcode, []).append(form)
    return {opcode: tuple(found) for opcode, found in table.items()}


FORMS: Final[dict[int, tuple[Form, ...]]] = _build()
