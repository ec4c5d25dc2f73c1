# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Statements in the kernel's syntax, labels, and what they refer to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from pybpfasm import isa
from pybpfasm.errors import suggestion
from pybpfasm.extern import Extern
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Atomic, CallKind, Imm64
from pybpfasm.kernel.enums import Helper
from pybpfasm.listing import ALU_OPERATORS, ATOMIC_OPERATORS, COMPARISONS, FETCHING
from pybpfasm.maps import MapSpec
from pybpfasm.text.errors import TextError
from pybpfasm.text.tokens import Cursor, Source, Token, tokens

__all__ = ["Assembly", "MapReference", "TextError", "assemble", "parse"]


@dataclass(frozen=True, slots=True)
class MapReference:
    """A map that the text names and nobody has described: ``map[name]``."""

    name: str


@dataclass(slots=True)
class Assembly:
    """What a text says.

    ``lines`` has the line of each instruction, counted from 1; ``labels`` the 8-byte slot that each label
    marks.
    """

    instructions: list[Instruction] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


# The slot number and opcode that listings have before an instruction.
_PREFIX: Final = re.compile(r"\s*(\d{1,9}):(?:[ \t]*\(([0-9a-f]{2})\)(?=\s|$))?", re.ASCII)
_MAP: Final = re.compile(
    r"map\[(?:(id|idx):(\d{1,10})|([A-Za-z0-9_.]{1,64}))\](\[0\])?(?:\+(\d{1,10}))?", re.ASCII
)
_MAPS: Final = "a map is map[name], map[id:5] or map[idx:0], its value map[name][0]+8, all without spaces"
_LABEL: Final = re.compile(r"[A-Za-z_.$][\w.$]*", re.ASCII)
_TYPES: Final = {f"{sign}{8 * size}": (sign, code) for size, code in isa.SIZE_CODE.items() for sign in "us"}
_ALU: Final = {sign: int(op) for op, sign in ALU_OPERATORS.items()}
_COMPARE: Final = {sign: int(op) for op, sign in COMPARISONS.items()}
_LOCK: Final = {sign: int(op) for op, sign in ATOMIC_OPERATORS.items()}
_SWAP: Final = {
    f"{name}{width}": (opcode | Alu.END, width)
    for name, opcode in (("le", isa.ALU | isa.K), ("be", isa.ALU | isa.X), ("bswap", isa.ALU64 | isa.K))
    for width in (16, 32, 64)
}
_FETCH: Final = {
    f"atomic{bits}_{name}": (int(op), isa.DW if bits else isa.W)
    for bits in ("", "64")
    for op, name in (
        *((op, f"fetch_{name}") for op, name in FETCHING.items()),
        (Atomic.XCHG, "xchg"),
        (Atomic.CMPXCHG, "cmpxchg"),
    )
}
_HELPERS: Final = {helper.name: int(helper) for helper in Helper}
_HELPER_NAMES: Final = {number: name for name, number in _HELPERS.items()}
# LLVM's names; those of its other atomics are the kernel's, except that they leave the width to the type.
_LLVM_EXCHANGE: Final = {
    "xchg_64": (int(Atomic.XCHG), isa.DW),
    "xchg32_32": (int(Atomic.XCHG), isa.W),
    "cmpxchg_64": (int(Atomic.CMPXCHG), isa.DW),
    "cmpxchg32_32": (int(Atomic.CMPXCHG), isa.W),
}
# The kernel's list of helpers grows by a few a year; BTF ids of kernel functions are far above.
_HELPER_LIMIT: Final = 1000


def assemble(
    text: str,
    *,
    maps: Mapping[str, MapSpec] | None = None,
    symbols: Mapping[str, int] | None = None,
    kfuncs: Mapping[str, int] | None = None,
    filename: str = "<text>",
) -> list[Instruction]:
    """The instructions of *text* (see `pybpfasm.text`).

    *maps* are the maps that ``map[name]`` may name; without them any name will do, and the reference is a
    `MapReference`. *symbols* are names for numbers, *kfuncs* kernel functions by name with their BTF ids.
    *filename* is for messages. Raises `TextError`.
    """
    return parse(text, maps=maps, symbols=symbols, kfuncs=kfuncs, filename=filename).instructions


def parse(
    text: str,
    *,
    maps: Mapping[str, MapSpec] | None = None,
    symbols: Mapping[str, int] | None = None,
    kfuncs: Mapping[str, int] | None = None,
    filename: str = "<text>",
) -> Assembly:
    """As `assemble`, with the labels and the line of each instruction."""
    parser = _Parser(maps, symbols or {}, kfuncs or {})
    for number, line in enumerate(_lines(text.removeprefix("\ufeff")), 1):  # some editors put that first
        parser.line(Source(line, number, filename))
    return parser.finish()


def _lines(text: str) -> Iterator[str]:
    # str.split would hold a string for every line at once, a dozen times the size of a text of short lines.
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _behind_labels(found: list[Token]) -> int:
    """Where the statement begins among the tokens of a line."""
    at = 0
    while len(found) > at + 1 and found[at + 1][1] == ":" and found[at][0] == "name":
        at += 2
    return at


# Where the number of slots to a label goes, once it is known.
_OFFSET, _IMM, _CALLED = range(3)


class _Parser:
    def __init__(
        self, maps: Mapping[str, MapSpec] | None, symbols: Mapping[str, int], kfuncs: Mapping[str, int]
    ) -> None:
        self.maps = maps
        self.symbols = symbols
        self.kfuncs = kfuncs
        self.references: dict[str, MapSpec | MapReference] = dict(maps or {})
        self.out = Assembly()
        self.slot = 0
        self.base: int | None = None  # the first slot number of a listing
        self.defined: dict[str, int] = {}  # line of each label
        self.exit: int | None = None
        self.opcode = -1  # what the line of a listing says, in parentheses
        self.called_registers: list[tuple[str, Source, int]] = []  # `call r1`, which may mean a label
        # Comments that may be statements: the instruction, what the label decides, label, the error.
        self.doubtful: list[tuple[Instruction, int, str, TextError]] = []
        # instruction, its slot, what the label decides, label, source, column
        self.pending: list[tuple[Instruction, int, int, str, Source, int]] = []

    # Lines.
    def line(self, source: Source) -> None:
        start = 0
        self.opcode = -1
        prefix = _PREFIX.match(source.text)
        if prefix is not None:
            start = prefix.end()
            if prefix[2] is not None:
                self.opcode = int(prefix[2], 16)
        elif self._head(source):
            return
        found = tokens(source, start)
        at = _behind_labels(found)
        for _, label, column in found[:at:2]:
            self._define(label, source, column)
        if at == len(found):
            return
        if prefix is not None:
            self._check_slot(int(prefix[1]), source)
        cursor = Cursor(source, found, at, self.symbols)
        column = cursor.column()
        self.statement(cursor)
        cursor.end()
        if self.opcode < 0:  # behind an opcode stands what the verifier or bpftool wrote
            self._second(source, found[-1])
        insn = self.out.instructions[-1]
        if self.opcode not in (-1, insn.opcode):
            raise source.error(
                f"the line says opcode {self.opcode:#04x}, but this instruction has {insn.opcode:#04x}",
                column,
            )
        if insn.form() is None or insn.imm_high:
            problem = insn.problem()
            if problem:
                raise source.error(problem, column)

    def _second(self, source: Source, last: Token) -> None:
        """Refuse a comment that is a statement: other assemblers separate statements by ``;``."""
        _, word, column = last
        start = source.text.find(";", column + len(word))
        if start < 0 or source.text[column + len(word) : start].strip():  # none, or in another comment
            return
        kept = self.slot, self.exit, self.called_registers
        counts = len(self.out.instructions), len(self.pending)
        self.called_registers = []
        to = None
        try:
            found = tokens(source, start + 1)
            cursor = Cursor(source, found, _behind_labels(found), self.symbols, hints=False)
            self.statement(cursor)
            cursor.end()
            if len(self.pending) > counts[1]:
                insn, _, what, label, _, _ = self.pending[-1]
                to = insn, what, label
        except TextError:
            return
        finally:
            self.slot, self.exit, self.called_registers = kept
            del self.out.instructions[counts[0] :], self.out.lines[counts[0] :], self.pending[counts[1] :]
        error = source.error(
            "';' begins a comment, and this one is a statement: give it a line of its own (or, if a comment "
            "is meant, begin it with '#')",
            start,
        )
        if to is None:
            raise error
        self.doubtful.append((*to, error))  # a statement if there is what it names

    def _head(self, source: Source) -> bool:
        """The head of a function in a listing, ``int name(struct x *ctx):``, which is a label."""
        stripped = source.text.rstrip()
        # A statement whose comment ends so is none; C has none of these in a declaration.
        if not stripped.endswith("):") or any(sign in stripped for sign in (";", "#", "//")):
            return False
        before, _, _ = stripped.partition("(")
        words = before.replace("*", " ").split()
        if not words or not all(map(_LABEL.fullmatch, words)):
            return False
        self._define(words[-1], source, before.rindex(words[-1]))
        return True

    def _define(self, label: str, source: Source, column: int) -> None:
        if label in self.defined:
            raise source.error(f"label {label!r} is on line {self.defined[label]} already", column)
        if label.startswith("%"):
            raise source.error(f"a label can't begin with '%': {label!r}", column)
        self.defined[label] = source.line
        self.out.labels[label] = self.slot

    def _check_slot(self, number: int, source: Source) -> None:
        if self.base is None:
            self.base = number - self.slot
        if number != self.base + self.slot:
            raise source.error(
                f"slot {self.base + self.slot} comes here, not {number}: a line of the listing is missing "
                "(without slot numbers any order will do)",
                0,
            )

    # Instructions.
    def emit(
        self,
        opcode: int,
        dst: int = 0,
        src: int = 0,
        offset: int = 0,
        imm: int = 0,
        imm_high: int = 0,
        reference: object = None,
    ) -> Instruction:
        insn = Instruction(opcode, dst, src, offset, imm, imm_high, reference)
        self.out.instructions.append(insn)
        self.slot += 2 if opcode == isa.LD_IMM64 else 1
        return insn

    def statement(self, c: Cursor) -> None:
        self.out.lines.append(c.source.line)
        if c.is_register():
            self._assignment(c)
            return
        if c.peek() == "*":
            c.at += 1
            self._store(c)
            return
        column = c.column()
        word = c.name("an instruction")
        handler = _STATEMENTS.get(word)
        if handler is not None:
            handler(self, c)
            return
        from pybpfasm.text.mnemonics import MNEMONICS

        mnemonic = MNEMONICS.get(word)
        if mnemonic is None:
            hint = c.suggest(word, [*_STATEMENTS, *MNEMONICS])
            c.fail(f"there is no instruction {word[:40]!r}{hint}", column)
        mnemonic(self, c)

    def code_address(self, c: Cursor, dst: int) -> None:
        """Read a function's label, or its distance in slots, and write the load of its address."""
        imm, then = self.target(c, _IMM)
        insn = self.emit(isa.LD_IMM64, dst, Imm64.FUNC, imm=imm)
        if then is not None:
            then(insn)

    def target(self, c: Cursor, what: int) -> tuple[int, Callable[[Instruction], None] | None]:
        """Where a jump goes: the number of slots, or what to do with the instruction once it is written."""
        relative = False
        if c.peek() == "pc" and c.at + 1 < len(c.tokens) and c.tokens[c.at + 1][1] in ("+", "-"):
            c.at += 1
            relative = True
        if c.peek() in ("+", "-"):
            bits = 16 if what == _OFFSET else 32
            return c.number(-(1 << bits - 1), (1 << bits - 1) - 1, 64, "the number of slots"), None
        if relative or c.kind() == "number":
            c.fail(f"a jump goes to a label or by slots, with a sign: +{c.peek()}")
        column = c.column()
        label = c.name("a label, or the number of slots with a sign,")
        return 0, lambda insn: self._refer(insn, what, label, c.source, column)

    def _refer(self, insn: Instruction, what: int, label: str, source: Source, column: int) -> None:
        self.pending.append((insn, self.slot - insn.slots, what, label, source, column))

    def jump(self, c: Cursor, opcode: int, dst: int = 0, src: int = 0, imm: int = 0) -> None:
        """Read the target of a jump that has it in the offset, and write the jump."""
        offset, then = self.target(c, _OFFSET)
        insn = self.emit(opcode, dst, src, offset, imm)
        if then is not None:
            then(insn)

    def long_jump(self, c: Cursor) -> None:
        """Read the target of a ``gotol`` and write it."""
        imm, then = self.target(c, _IMM)
        insn = self.emit(isa.OP_GOTOL, imm=imm)
        if then is not None:
            then(insn)

    def finish(self) -> Assembly:
        """Fill in the labels."""
        labels = self.out.labels
        for name, source, column in self.called_registers:
            if name in labels:
                raise source.error(
                    f"{name} is a register and a label: callx {name} calls what is in the register, and a "
                    "function needs another name",
                    column,
                )
        for insn, what, label, error in self.doubtful:
            if label in labels or (self._call_by_name(insn, label) if what == _CALLED else label == "exit"):
                raise error
        for insn, slot, what, label, source, column in self.pending:
            place = labels.get(label)
            if place is None and label == "exit" and what != _CALLED:
                place = self.exit
            if place is None:
                if what == _CALLED and self._call_by_name(insn, label):
                    continue
                raise source.error(self._unknown(label, what), column)
            distance = place - slot - 1
            if what == _OFFSET:
                if not -(1 << 15) <= distance < 1 << 15:
                    raise source.error(
                        f"{label} is {distance} slots away, and the jump reaches -32768 to 32767: use gotol",
                        column,
                    )
                insn.offset = distance
            else:
                if what == _CALLED:
                    insn.src = CallKind.LOCAL
                insn.imm = distance
        return self.out

    def _call_by_name(self, insn: Instruction, name: str) -> bool:
        number = _HELPERS.get(name.removeprefix("bpf_"))
        if number is not None:
            insn.imm = number
            return True
        if name in self.kfuncs:
            insn.src, insn.imm = CallKind.KFUNC, self.kfuncs[name]
            return True
        if name.startswith("bpf_"):
            from pybpfasm.kernel.kfuncs import KFUNCS

            if name in KFUNCS:
                insn.src, insn.reference = CallKind.KFUNC, Extern(name, "kfunc")
                return True
        return False

    def _unknown(self, name: str, what: int) -> str:
        known = [label for label, _ in zip(self.out.labels, range(2000), strict=False) if len(label) < 40]
        if what == _CALLED:
            known += [f"bpf_{helper}" for helper in _HELPERS] + list(self.kfuncs)
        hint = suggestion(name, known) if len(name) < 40 else ""
        kind = "label, helper or kernel function" if what == _CALLED else "label"
        return f"there is no {kind} {name[:40]!r}{hint}"

    # The kernel's syntax.
    def _assignment(self, c: Cursor) -> None:
        width, dst = c.register()
        column = c.column()
        sign = c.peek()
        c.at += 1
        if sign == "=":
            self._move(c, width, dst)
            return
        cls = isa.ALU64 if width == "r" else isa.ALU
        offset = 0
        if sign in ("s/=", "s%="):
            sign, offset = sign[1:], 1
        if sign not in _ALU:
            c.fail(f"= or an operator such as += expected after {width}{dst}", column)
        if c.is_register():
            self.emit(cls | _ALU[sign] | isa.X, dst, self.same_width(c, width), offset)
        else:
            self.emit(cls | _ALU[sign] | isa.K, dst, 0, offset, c.imm32())

    def same_width(self, c: Cursor, width: str) -> int:
        """A register of the given width."""
        column = c.column()
        found, number = c.register()
        if found != width:
            c.fail(f"{found}{number} and the {width} register before it differ in width", column)
        return number

    def _move(self, c: Cursor, width: str, dst: int) -> None:
        cls = isa.ALU64 if width == "r" else isa.ALU
        kind, word = c.kind(), c.peek()
        if c.is_register():
            self.emit(cls | Alu.MOV | isa.X, dst, self.same_width(c, width))
        elif kind == "map":
            self._map(c, self.only_r(c, width, dst))
        elif word == "-" and c.at + 1 < len(c.tokens) and c.tokens[c.at + 1][0] == "name":
            c.at += 1
            if c.is_register():
                column = c.column()
                if self.same_width(c, width) != dst:
                    c.fail(f"a negation works in place: {width}{dst} = -{width}{dst}", column)
                self.emit(cls | Alu.NEG, dst)
            else:
                c.at -= 1
                self.emit(cls | Alu.MOV | isa.K, dst, imm=c.imm32())
        elif c.is_number():
            self._constant(c, width, dst)
        elif word == "*":
            c.at += 1
            self._load(c, width, dst)
        elif word == "(":
            self._sign_extend(c, width, dst)
        elif word in _SWAP:
            c.at += 1
            column = c.column()
            if c.r() != dst or width != "r":
                c.fail(f"a byte swap works in place and on r registers: r{dst} = {word} r{dst}", column)
            self.emit(_SWAP[word][0], dst, imm=_SWAP[word][1])
        elif word in _FETCH:
            c.at += 1
            self._fetch(c, width, dst, *_FETCH[word])
        elif word in _LLVM_EXCHANGE:
            c.at += 1
            self._fetch(c, width, dst, *_LLVM_EXCHANGE[word], typed=False)
        elif word == "load_acquire":
            c.at += 1
            c.expect("(")
            size, src, offset = self._typed_place(c)
            c.expect(")")
            if width == "w" and size == isa.DW:
                c.fail(f"the result has 64 bits: r{dst}")
            self.emit(isa.STX | isa.ATOMIC | size, dst, src, offset, Atomic.LOAD_ACQ)
        elif word == "addr_space_cast":
            c.at += 1
            self._cast(c, self.only_r(c, width, dst))
        elif word in ("subprog", "btf_id"):
            c.at += 1
            self.only_r(c, width, dst)
            (self._function if word == "subprog" else self._btf_id)(c, dst)
        elif word == "map":
            c.fail(_MAPS)
        else:
            hint = c.suggest(word, [*_SWAP, *_FETCH, "load_acquire", "addr_space_cast", "subprog", "map"])
            what = f", not {word[:40]!r}{hint}" if word else " at the end"
            c.fail(f"a register, a number, memory or an operation expected{what}")

    def only_r(self, c: Cursor, width: str, dst: int) -> int:
        """*dst*, which must be a 64-bit register."""
        if width != "r":
            c.fail(f"this needs all 64 bits of the register: r{dst}")
        return dst

    def _constant(self, c: Cursor, width: str, dst: int) -> None:
        start = c.at
        if width == "r":
            # Only the form of the number tells a mov from the 64-bit load.
            column = c.column()
            low = c.number(-(1 << 63), (1 << 64) - 1, 64)
            digits = c.tokens[c.at - 1][1]
            wide = digits[:2] in ("0x", "0X")
            if c.take("ll") or self.opcode == isa.LD_IMM64:
                wide = True
            elif self.opcode == isa.ALU64 | Alu.MOV:
                wide = False
            elif not wide and not -(1 << 31) <= low < 1 << 31:
                how = f"write it in hexadecimal, {low & (1 << 64) - 1:#x}"
                if digits in self.symbols:
                    how = f"{digits} ll"
                c.fail(f"{low} needs the 64-bit load: {how}", column)
            if wide:
                self.wide(dst, low)
                return
        c.at = start
        self.emit((isa.ALU64 if width == "r" else isa.ALU) | Alu.MOV | isa.K, dst, imm=c.imm32())

    def wide(self, dst: int, value: int) -> None:
        """Write the 64-bit load of *value*."""
        halves = (value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)
        low, high = (half - (1 << 32) if half >> 31 else half for half in halves)
        self.emit(isa.LD_IMM64, dst, Imm64.VALUE, 0, low, high)

    def map_named(self, c: Cursor, name: str, column: int) -> MapSpec | MapReference:
        """The map of this name, which stands at *column*."""
        found = self.references.get(name)
        if found is None:
            if self.maps is not None:
                c.fail(f"there is no map {name[:40]!r}{c.suggest(name, self.maps)}", column)
            found = self.references[name] = MapReference(name)
        return found

    def _map(self, c: Cursor, dst: int) -> None:
        column = c.column()
        found = _MAP.fullmatch(c.peek())
        if found is None:
            c.fail(_MAPS)
        c.at += 1
        kind, number, name, value, plus = found.groups()
        reference: object = None
        imm, high = int(number or 0), int(plus or 0)
        if imm >= 1 << 32 or high >= 1 << 32:
            c.fail(f"{number if imm >= 1 << 32 else plus} does not fit 32 bits", column)
        if number is None:
            reference = self.map_named(c, name, column)
        if kind == "idx":
            if value is not None:
                c.fail("the value of a map by index is map[idx:0]+8", column)
            src = Imm64.MAP_IDX if plus is None else Imm64.MAP_IDX_VALUE
        elif value is None:
            if plus is not None:
                c.fail("a byte of a map's value is map[name][0]+8", column)
            src = Imm64.MAP_FD
        else:
            src = Imm64.MAP_VALUE
        imm, high = (half - (1 << 32) if half >> 31 else half for half in (imm, high))
        self.emit(isa.LD_IMM64, dst, src, 0, imm, high, reference)

    def _function(self, c: Cursor, dst: int) -> None:
        c.expect("[")
        self.code_address(c, dst)
        c.expect("]")

    def _btf_id(self, c: Cursor, dst: int) -> None:
        c.expect("[")
        if c.kind() == "name" and c.peek() not in self.symbols:
            extern = Extern(c.name("the name of a variable or function of the kernel"), "ksym")
            c.expect("]")
            self.emit(isa.LD_IMM64, dst, Imm64.BTF_ID, reference=extern)
            return
        imm = c.imm32()
        fd = c.imm32() if c.take(":") else 0
        c.expect("]")
        self.emit(isa.LD_IMM64, dst, Imm64.BTF_ID, imm=imm, imm_high=fd)

    def _type(self, c: Cursor) -> tuple[str, int]:
        """``u32 *`` within parentheses: the sign and the code of the size."""
        c.expect("(")
        column = c.column()
        name = c.name("a type such as u32")
        found = _TYPES.get(name)
        if found is None:
            c.fail(f"{name[:40]!r} is no type: u8, u16, u32, u64, and s8, s16, s32 for loads", column)
        c.expect("*")
        c.expect(")")
        return found

    def _unsigned(self, c: Cursor) -> int:
        column = c.column()
        sign, size = self._type(c)
        if sign != "u":
            c.fail("only a load extends the sign", column)
        return size

    def _place(self, c: Cursor) -> tuple[int, int]:
        """``(r1 +8)``: register and offset."""
        c.expect("(")
        base = c.r()
        offset = c.offset()
        c.expect(")")
        return base, offset

    def _typed_place(self, c: Cursor) -> tuple[int, int, int]:
        """``(u32 *)(r1 +8)``: code of the size, register, offset."""
        return (self._unsigned(c), *self._place(c))

    def _load(self, c: Cursor, width: str, dst: int) -> None:
        column = c.column()
        sign, size = self._type(c)
        if c.peek() == "skb":
            c.at += 1
            self._packet(c, width, dst, sign, size)
            return
        src, offset = self._place(c)
        if sign == "s" and size == isa.DW:
            c.fail("an 8-byte load has no sign to extend: u64", column)
        if width == "w" and (sign == "s" or size == isa.DW):
            c.fail(f"this load fills all 64 bits: r{dst}", column)
        self.emit(isa.LDX | (isa.MEMSX if sign == "s" else isa.MEM) | size, dst, src, offset)

    def _packet(self, c: Cursor, width: str, dst: int, sign: str, size: int) -> None:
        column = c.tokens[c.at - 1][2]
        if (width, dst) != ("r", 0):
            c.fail("a packet load puts its result into r0", column)
        if sign == "s":
            c.fail("a packet load is unsigned", column)
        if size == isa.DW:
            c.fail("a packet load has 1, 2 or 4 bytes: u8, u16, u32", column)
        c.expect("[")
        if not c.is_register():
            self.emit(isa.LD | isa.ABS | size, imm=c.imm32())
        else:
            src = c.r()
            imm = 0
            if c.peek() in ("+", "-"):
                if c.peek() == "+":  # the kernel prints "+ -5" for a negative number
                    c.at += 1
                imm = c.imm32()
            self.emit(isa.LD | isa.IND | size, 0, src, 0, imm)
        c.expect("]")

    def _sign_extend(self, c: Cursor, width: str, dst: int) -> None:
        c.expect("(")
        column = c.column()
        name = c.name("s8, s16 or s32")
        bits = {"s8": 8, "s16": 16, "s32": 32}.get(name)
        if bits is None or (bits == 32 and width == "w"):
            c.fail(f"({name[:40]}) extends no sign: s8, s16" + ("" if width == "w" else ", s32"), column)
        c.expect(")")
        src = self.same_width(c, width)
        self.emit((isa.ALU64 if width == "r" else isa.ALU) | Alu.MOV | isa.X, dst, src, bits)

    def _cast(self, c: Cursor, dst: int) -> None:
        c.expect("(")
        src = c.r()
        c.expect(",")
        column = c.column()
        to = c.number(0, 0x7FFF, 16)
        c.expect(",")
        of = c.number(0, 0xFFFF, 16)
        c.expect(")")
        if (to, of) not in ((0, 1), (1, 0)):
            c.fail(
                f"a cast goes from address space 1 to 0 or back: r{dst} = addr_space_cast(r{src}, 0, 1)",
                column,
            )
        self.emit(isa.ALU64 | Alu.MOV | isa.X, dst, src, 1, to << 16 | of)

    def _fetch(self, c: Cursor, width: str, dst: int, op: int, size: int, typed: bool = True) -> None:
        c.expect("(")
        column = c.column()
        if typed:
            found, base, offset = self._typed_place(c)
            if found != size and (size, found) != (isa.W, isa.DW):
                c.fail(f"the operation is on u{isa.SIZE_OF[size] * 8}", column)
            size = found
        else:
            base = c.r()
            offset = c.offset()
        if width == "w" and size == isa.DW:
            c.fail(f"the old value has 64 bits: r{dst}")
        c.expect(",")
        if op == Atomic.CMPXCHG:
            column = c.column()
            if self._operand(c, size) != 0:
                c.fail("the value to compare with is in r0", column)
            c.expect(",")
        column = c.column()
        src = self._operand(c, size)
        c.expect(")")
        if dst != (0 if op == Atomic.CMPXCHG else src):
            result = "r0" if op == Atomic.CMPXCHG else f"r{src}, which it takes the value from"
            c.fail(f"the old value goes to {result}", column)
        self.emit(isa.STX | isa.ATOMIC | size, base, src, offset, op)

    def _operand(self, c: Cursor, size: int) -> int:
        """A register with a value of the given size; of 32 bits it may be called w."""
        column = c.column()
        width, number = c.register()
        if width == "w" and size == isa.DW:
            c.fail(f"the value has 64 bits: r{number}", column)
        return number

    def _store(self, c: Cursor) -> None:
        size, base, offset = self._typed_place(c)
        c.expect("=")
        if c.is_register():
            self.emit(isa.STX | isa.MEM | size, base, self._operand(c, size), offset)
        else:
            self.emit(isa.ST | isa.MEM | size, base, 0, offset, c.imm32())

    def lock(self, c: Cursor) -> None:
        """``lock *(u64 *)(r1 +0) += r2``, or the mnemonic."""
        if not c.take("*"):
            from pybpfasm.text.mnemonics import lock

            lock(self, c)
            return
        column = c.column()
        size, base, offset = self._typed_place(c)
        if size not in (isa.W, isa.DW):
            c.fail("an atomic operation is on u32 or u64", column)
        sign = c.peek()
        if sign not in _LOCK:
            c.fail(f"{', '.join(_LOCK)} expected")
        c.at += 1
        self.emit(isa.STX | isa.ATOMIC | size, base, self._operand(c, size), offset, _LOCK[sign])

    def store_release(self, c: Cursor) -> None:
        """``store_release((u64 *)(r1 +0), r2)``."""
        c.expect("(")
        size, base, offset = self._typed_place(c)
        c.expect(",")
        src = self._operand(c, size)
        c.expect(")")
        self.emit(isa.STX | isa.ATOMIC | size, base, src, offset, Atomic.STORE_REL)

    def if_(self, c: Cursor) -> None:
        """``if r1 == 0x5 goto pc+2``."""
        width, dst = c.register()
        column = c.column()
        op = _COMPARE.get(c.peek())
        if op is None:
            c.fail(f"a comparison expected: {', '.join(_COMPARE)}", column)
        c.at += 1
        cls = isa.JMP if width == "r" else isa.JMP32
        src = imm = 0
        if c.is_register():
            src = self.same_width(c, width)
            cls |= isa.X
        else:
            imm = c.imm32()
        c.expect("goto")
        self.jump(c, cls | op, dst, src, imm)

    def goto(self, c: Cursor) -> None:
        """``goto pc+2``."""
        self.jump(c, isa.OP_JA)

    def may_goto(self, c: Cursor) -> None:
        """``may_goto pc+2``."""
        self.jump(c, isa.OP_MAY_GOTO)

    def gotox(self, c: Cursor) -> None:
        """``gotox r1``."""
        self.emit(isa.OP_GOTOX, c.r())

    def callx(self, c: Cursor) -> None:
        """``callx r1``."""
        self.emit(isa.OP_CALLX, c.r())

    def leave(self, c: Cursor) -> None:
        """``exit``."""
        if self.exit is None:
            self.exit = self.slot
        self.emit(isa.OP_EXIT)

    def call(self, c: Cursor) -> None:
        """Every kind of call."""
        if c.kind() == "number" or c.peek() == "-":
            self.emit(isa.OP_CALL, 0, CallKind.HELPER, 0, c.imm32())
            return
        if c.peek() == "+":
            c.fail(f"a call by slots is call pc+{c.tokens[-1][1]}, of a helper call {c.tokens[-1][1]}")
        if c.is_register():
            self.called_registers.append((c.peek(), c.source, c.column()))
            self.callx(c)
            return
        column = c.column()
        name = c.name("a function")
        following: Token = c.tokens[c.at] if c.at < len(c.tokens) else ("", "", 0)
        if name == "pc" and following[1] in ("+", "-"):
            imm = c.imm32()
            if c.take("#"):
                c.name("the function's name")
            self.emit(isa.OP_CALL, 0, CallKind.LOCAL, 0, imm)
        elif following[1] == "#":
            c.at += 1
            self._call_by_number(c, name, column)
        elif name == "kernel-function" and following[1] == "[":
            c.at += 1
            extern = Extern(c.name("the name of a function"), "kfunc")
            c.expect("]")
            self.emit(isa.OP_CALL, 0, CallKind.KFUNC, reference=extern)
        elif name in ("local", "helper", "runtime") and following[0]:
            self._call_of_kind(c, name)
        else:
            self._refer(self.emit(isa.OP_CALL), _CALLED, name, c.source, column)

    def _call_of_kind(self, c: Cursor, kind: str) -> None:
        if kind == "local":
            imm, then = self.target(c, _IMM)
            insn = self.emit(isa.OP_CALL, 0, CallKind.LOCAL, 0, imm)
            if then is not None:
                then(insn)
        elif kind == "helper" and c.is_register():
            self.callx(c)
        else:
            src = CallKind.HELPER if kind == "helper" else CallKind.KFUNC
            self.emit(isa.OP_CALL, 0, src, 0, c.imm32())

    def _call_by_number(self, c: Cursor, name: str, column: int) -> None:
        number = c.imm32()
        if name == "kernel-function":
            offset = 0
            if c.take("["):
                offset = c.number(-(1 << 15), (1 << 15) - 1, 16)
                c.expect("]")
            self.emit(isa.OP_CALL, 0, CallKind.KFUNC, offset, number)
            return
        helper = _HELPERS.get(name.removeprefix("bpf_"))
        if name == "unknown":
            helper = number
        if helper is not None:
            if helper != number and 0 <= number < _HELPER_LIMIT:
                c.fail(f"{name} is helper {helper}, not {number}", column)
            # A larger number is where the function is, in the dump of a program that has been loaded.
            self.emit(isa.OP_CALL, 0, CallKind.HELPER, 0, helper)
        elif not self._call_by_name(self.emit(isa.OP_CALL), name):
            hint = f" (helper {number} is bpf_{_HELPER_NAMES[number]})" if number in _HELPER_NAMES else ""
            c.fail(
                f"{name[:40]} is no helper{hint}; a kernel function with a known BTF id is "
                f"kernel-function#{number}",
                column,
            )


_STATEMENTS: Final[dict[str, Callable[[_Parser, Cursor], None]]] = {
    "if": _Parser.if_,
    "goto": _Parser.goto,
    "gotol": _Parser.long_jump,
    "gotox": _Parser.gotox,
    "may_goto": _Parser.may_goto,
    "call": _Parser.call,
    "callx": _Parser.callx,
    "exit": _Parser.leave,
    "lock": _Parser.lock,
    "store_release": _Parser.store_release,
}
