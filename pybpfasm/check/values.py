# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What can be known of a register or a stack slot, and how that is computed with.

A value is a tuple; its first member says what it is.
"""

from __future__ import annotations

from typing import Any, Final

from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Jump

Value = tuple[Any, ...]

UNSET: Final = 0  # (UNSET, index of the call that took it away, or -1)
MAYBE: Final = 1  # as UNSET, on some of the ways that lead here
ANY: Final = 2  # (ANY,): set, and nothing else is known
CONST: Final = 3  # (CONST, unsigned 64-bit number)
FREE: Final = 4  # (FREE, index of its origin, low, high): each number in the range can really occur
NUM: Final = 5  # (NUM,): a number
CTX: Final = 6  # (CTX, offset)
FP: Final = 7  # (FP, offset): r10 and what is computed from it
MAP: Final = 8  # (MAP, MapSpec or None): the map itself
VAL: Final = 9  # (VAL, origin, may be null, MapSpec or None, offset or None)
PKT: Final = 10  # (PKT, offset, bytes known to be there, whether that differs between ways)
END: Final = 11  # (END,): the end of the packet
SOCK: Final = 12  # (SOCK, origin, may be null, the verifier's name)
GONE: Final = 13  # (GONE, index of the call that took it away): once a packet pointer, now a number
MIXED: Final = 14  # (MIXED,): a number on some of the ways that lead here, a pointer on others

POINTERS: Final = frozenset({CTX, FP, MAP, VAL, PKT, END, SOCK})
FIXED: Final = frozenset({END, SOCK, MAP})
NUMBERS: Final = frozenset({CONST, FREE, NUM, GONE})
WORDS: Final = {
    CONST: "a number",
    FREE: "a number",
    NUM: "a number",
    GONE: "a number",
    CTX: "the context",
    FP: "the address of the stack",
    MAP: "a map",
    VAL: "the address of a map's value",
    PKT: "a packet pointer",
    END: "the end of the packet",
    SOCK: "a socket",
}
UNKNOWN: Final[Value] = (ANY,)
NUMBER: Final[Value] = (NUM,)
EITHER: Final[Value] = (MIXED,)
U64: Final = (1 << 64) - 1
U32: Final = (1 << 32) - 1
STACK: Final = 512
ALL_WRITTEN: Final = (1 << STACK) - 1

SWAPPED: Final = {
    Jump.JGT: Jump.JLT,
    Jump.JLT: Jump.JGT,
    Jump.JGE: Jump.JLE,
    Jump.JLE: Jump.JGE,
    Jump.JEQ: Jump.JEQ,
    Jump.JNE: Jump.JNE,
}
SIZES: Final = {isa.W: 4, isa.H: 2, isa.B: 1, isa.DW: 8}
JSET, JEQ, JNE = int(Jump.JSET), int(Jump.JEQ), int(Jump.JNE)
SIGNED: Final = frozenset({Jump.JSGT, Jump.JSGE, Jump.JSLT, Jump.JSLE})


class State:
    """What is known at one place: registers, 8-byte stack slots, bytes of stack ever written, references."""

    __slots__ = ("refs", "regs", "stack", "written")

    def __init__(
        self, regs: list[Value], stack: dict[int, Value], written: int, refs: dict[int, int]
    ) -> None:
        self.regs = regs
        self.stack = stack
        self.written = written
        self.refs = refs  # origin of a reference -> index of the call that took it

    def copy(self) -> State:
        """The same, to be changed by itself."""
        return State(self.regs.copy(), self.stack.copy(), self.written, self.refs.copy())

    def join(self, other: State, certain: bool) -> bool:
        """Take in what is known on another way to the same place; whether that changed anything."""
        changed = False
        mine = self.regs
        theirs = other.regs
        for register in range(10):
            a, b = mine[register], theirs[register]
            if a != b:
                joined = join(a, b, certain)
                if joined != a:
                    mine[register] = joined
                    changed = True
        if self.stack:
            for offset in list(self.stack):
                a = self.stack[offset]
                found = other.stack.get(offset)
                if found is None:
                    del self.stack[offset]
                    changed = True
                elif a != found:
                    joined = join(a, found, certain)
                    if joined != a:
                        self.stack[offset] = joined
                        changed = True
        if other.written | self.written != self.written:
            self.written |= other.written
            changed = True
        for origin, index in other.refs.items():
            if origin not in self.refs:
                self.refs[origin] = index
                changed = True
        return changed


def join(a: Value, b: Value, certain: bool) -> Value:
    """What is known where two ways meet, on which it was *a* and *b*."""
    ka, kb = a[0], b[0]
    if ka <= MAYBE or kb <= MAYBE:
        if ka == kb == UNSET:
            return (UNSET, max(a[1], b[1]))
        return (MAYBE, max(a[1] if ka <= MAYBE else -1, b[1] if kb <= MAYBE else -1))
    if ka in NUMBERS and kb in NUMBERS:
        return NUMBER
    if ka != kb:
        numbers = ka in NUMBERS or kb in NUMBERS or MIXED in (ka, kb)
        return EITHER if numbers and ANY not in (ka, kb) else UNKNOWN
    if ka == PKT and a[1] == b[1]:
        return (PKT, a[1], min(a[2], b[2]), True)
    if ka == VAL and a[1] == b[1] and a[3] is b[3] and not certain:
        return (VAL, a[1], a[2] or b[2], a[3], a[4] if a[4] == b[4] else None)
    if ka == SOCK and a[1] == b[1] and a[3] == b[3] and not certain:
        return (SOCK, a[1], a[2] or b[2], a[3])
    return UNKNOWN


def signed(value: int, bits: int = 64) -> int:
    """The number that the lowest *bits* are in two's complement."""
    return value - (1 << bits) if value >> (bits - 1) else value


def extended(value: Value, bits: int) -> Value:
    """After a move that extends the sign of the lowest *bits* to 64."""
    if value[0] == CONST:
        return (CONST, signed(value[1] & ((1 << bits) - 1), bits) & U64)
    return NUMBER


def low32(value: Value) -> Value:
    """After a move of 32 bits, which clears the upper half."""
    if value[0] == CONST:
        return (CONST, value[1] & U32)
    if value[0] == FREE and value[3] <= U32:
        return value
    return NUMBER


def in_place(insn: Instruction, op: int, wide: bool, left: Value) -> Value:
    """After a negation or a byte swap."""
    if left[0] == ANY or left[0] == MIXED:
        return UNKNOWN
    if op == Alu.NEG and left[0] == CONST:
        return (CONST, -left[1] & (U64 if wide else U32))
    if op == Alu.END and left[0] == FREE:
        mask = (1 << insn.imm) - 1
        if left[2] == 0 and left[3] >= mask:
            return (FREE, left[1], 0, mask)
    return NUMBER


def fold(op: int, wide: bool, a: int, b: int) -> Value:
    """The result of arithmetic with two known numbers."""
    mask = U64 if wide else U32
    a &= mask
    b &= mask
    bits = 64 if wide else 32
    if op == Alu.ADD:
        return (CONST, (a + b) & mask)
    if op == Alu.SUB:
        return (CONST, (a - b) & mask)
    if op == Alu.AND:
        return (CONST, a & b)
    if op == Alu.OR:
        return (CONST, a | b)
    if op == Alu.XOR:
        return (CONST, a ^ b)
    if op == Alu.MUL:
        return (CONST, a * b & mask)
    if op == Alu.LSH and b < bits:
        return (CONST, a << b & mask)
    if op == Alu.RSH and b < bits:
        return (CONST, a >> b)
    return NUMBER


def compare(op: int, a: int, b: int, bits: int) -> bool:
    """The outcome of a comparison of two known numbers, as numbers of *bits*."""
    mask = (1 << bits) - 1
    a &= mask
    b &= mask
    if op in SIGNED:
        a, b = signed(a, bits), signed(b, bits)
    if op == JEQ:
        return a == b
    if op == JNE:
        return a != b
    if op == JSET:
        return bool(a & b)
    if op in (Jump.JGT, Jump.JSGT):
        return a > b
    if op in (Jump.JGE, Jump.JSGE):
        return a >= b
    if op in (Jump.JLT, Jump.JSLT):
        return a < b
    return a <= b


def no_arithmetic(op: int, wide: bool, left: int, right: int) -> str:
    """Why an operation with one pointer or two is none that the verifier takes."""
    if op == Alu.SUB and (not wide or (left in POINTERS and right in POINTERS)):
        return ""  # with CAP_PERFMON the result is a number
    if left in POINTERS and right in POINTERS:
        both = f"{WORDS[left]} and {WORDS[right]}"
        return f"{both} can't be combined: of two pointers only the difference can be had"
    what = WORDS[left if left in POINTERS else right]
    if not wide:
        return f"32-bit arithmetic with {what}: addresses have 64 bits"
    if op not in (Alu.ADD, Alu.SUB):
        return f"{what} can only be added to and subtracted from"
    if op == Alu.SUB and right in POINTERS:
        return f"{what} is subtracted from a number"
    return ""


def both_ways(op: int, wide: bool, left: Value, right: Value) -> bool:
    """Whether there are inputs for either outcome."""
    if left[0] == CONST and right[0] == FREE and op != JSET:
        swapped = SWAPPED.get(Jump(op))
        if swapped is None:
            return False
        return both_ways(swapped, wide, right, left)
    if left[0] != FREE:
        return False
    low: int = left[2]
    high: int = left[3]
    if not wide and high > U32:
        if low or high != U64:
            return False
        high = U32
    if right[0] == FREE:
        return left[1] != right[1] and low == right[2] == 0 and high > 0 and right[3] > 0 and op not in SIGNED
    if right[0] != CONST:
        return False
    value: int = right[1] if wide else right[1] & U32
    if op in SIGNED:
        limit = 1 << (63 if wide else 31)
        if high >= limit or value >= limit:
            return False
    if op == JSET:
        return low == 0 and high & (high + 1) == 0 and bool(high & value)
    if op in (JEQ, JNE):
        return low <= value <= high and low < high
    if op in (Jump.JGT, Jump.JLE, Jump.JSGT, Jump.JSLE):
        return bool(low <= value < high)
    return bool(low < value <= high)
