# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Random trees of structured blocks, written with the assembler, or evaluated by Python.

r1 to r4 are variables, r9 is how often loops may go round in all, so that every tree ends.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from pybpfasm.asm import Asm, Condition, Label, Reg
from pybpfasm.asm import LoopBlock as Block
from pybpfasm.instruction import Instruction

MASK = (1 << 64) - 1
FUEL = 6

NUMBERS = (0, 1, 2, 3, 5, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 63, MASK)
VALUES = st.sampled_from(NUMBERS)
CONSTANTS = st.sampled_from((0, 1, 2, 3, 5, 8, 0x7FFFFFFF, -1, -2, -0x80000000))


def _signed(number: int, bits: int) -> int:
    return number - (1 << bits) if number >> (bits - 1) else number


@dataclass(frozen=True)
class Compare:
    """A register against a constant, or against a register; ``wide`` is 64 bits."""

    op: str
    left: int
    right: int
    is_register: bool
    wide: bool


@dataclass(frozen=True)
class Join:
    """``and``, ``or`` of two conditions, or ``not`` of the first."""

    op: str
    left: Test
    right: Test | None


Test = Compare | Join


@dataclass(frozen=True)
class Set:
    """Change a variable."""

    op: str
    register: int
    value: int
    wide: bool


@dataclass(frozen=True)
class Chain:
    """If, any number of Elif, perhaps an Else."""

    branches: tuple[tuple[Test, tuple[Statement, ...]], ...]
    otherwise: tuple[Statement, ...] | None


@dataclass(frozen=True)
class Skip:
    """A jump over the body where the condition holds."""

    test: Test
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Repeat:
    """Loop, or While where there is a condition."""

    test: Test | None
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Leave:
    """Out of the innermost loop, where the condition holds or always."""

    test: Test | None


@dataclass(frozen=True)
class Again:
    """Back to the start of the innermost loop."""


@dataclass(frozen=True)
class Exit:
    """End with a result."""

    value: int


Statement = Set | Chain | Skip | Repeat | Leave | Again | Exit
Tree = tuple[Statement, ...]

_COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "&": lambda a, b: bool(a & b),
    "sgt": operator.gt,
    "sge": operator.ge,
    "slt": operator.lt,
    "sle": operator.le,
}
_REGISTERS = st.integers(1, 4)


@st.composite
def _compares(draw: st.DrawFn) -> Compare:
    is_register = draw(st.booleans())
    return Compare(
        draw(st.sampled_from(tuple(_COMPARISONS))),
        draw(_REGISTERS),
        draw(_REGISTERS) if is_register else draw(CONSTANTS),
        is_register,
        draw(st.booleans()),
    )


def _joins(inner: st.SearchStrategy[Test]) -> st.SearchStrategy[Test]:
    return st.one_of(
        st.builds(Join, st.sampled_from(("and", "or")), inner, inner),
        st.builds(Join, st.just("not"), inner, st.none()),
    )


tests = st.recursive(_compares(), _joins, max_leaves=4)


@st.composite
def _bodies(draw: st.DrawFn, depth: int, in_loop: bool) -> tuple[Statement, ...]:
    kinds = ["set", "set", "exit"]
    if depth:
        kinds += ["chain", "chain", "skip", "repeat"]
    if in_loop:
        kinds += ["leave", "leave if", "again"]
    out: list[Statement] = []
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=4)):
        if kind == "set":
            out.append(
                Set(
                    draw(st.sampled_from(("=", "+=", "^="))),
                    draw(_REGISTERS),
                    draw(CONSTANTS),
                    draw(st.booleans()),
                )
            )
        elif kind == "exit":
            out.append(Exit(draw(st.integers(0, 0x7FFFFFFF))))
        elif kind == "chain":
            branches = draw(st.lists(st.tuples(tests, _bodies(depth - 1, in_loop)), min_size=1, max_size=3))
            otherwise = draw(st.one_of(st.none(), _bodies(depth - 1, in_loop)))
            out.append(Chain(tuple(branches), otherwise))
        elif kind == "skip":
            out.append(Skip(draw(tests), draw(_bodies(depth - 1, in_loop))))
        elif kind == "repeat":
            out.append(Repeat(draw(st.one_of(st.none(), tests)), draw(_bodies(depth - 1, True))))
        elif kind == "leave":
            out.append(Leave(None))
        elif kind == "leave if":
            out.append(Leave(draw(tests)))
        else:
            out.append(Again())
        if leaves(out[-1]):
            break  # what comes after would be refused
    return tuple(out)


trees: st.SearchStrategy[Tree] = _bodies(3, False)


def leaves(statement: Statement) -> bool:
    """Whether nothing after *statement* is reached through it."""
    match statement:
        case Exit() | Again() | Leave(test=None):
            return True
        case Chain(branches=branches, otherwise=otherwise):
            bodies = [body for _, body in branches]
            return otherwise is not None and all(
                bool(body) and leaves(body[-1]) for body in (*bodies, otherwise)
            )
        case _:
            return False


# --- Written with the assembler. ---


def _register(b: Asm, index: int, wide: bool) -> Reg:
    found: Reg = getattr(b, f"{'r' if wide else 'w'}{index}")
    return found


def condition(b: Asm, test: Test) -> Condition:
    """*test* in the language."""
    if isinstance(test, Join):
        left = condition(b, test.left)
        if test.right is None:
            return ~left
        right = condition(b, test.right)
        return left & right if test.op == "and" else left | right
    a = _register(b, test.left, test.wide)
    c: Reg | int = _register(b, test.right, test.wide) if test.is_register else test.right
    match test.op:
        case "==":
            return a == c
        case "!=":
            return a != c
        case ">":
            return a > c
        case ">=":
            return a >= c
        case "<":
            return a < c
        case "<=":
            return a <= c
        case "&":
            return a & c
        case name:
            signed: Condition = getattr(a, name)(c)
            return signed


def write(b: Asm, body: Tree, loop: Block | None = None, filler: int = 0) -> None:
    """Write *body*; with a *filler*, each change of a variable is that many instructions longer (on r8)."""
    for statement in body:
        match statement:
            case Set(op=op, register=index, value=value, wide=wide):
                register = _register(b, index, wide)
                if op == "=":
                    setattr(b, register.name, value)
                elif op == "+=":
                    register += value
                else:
                    register ^= value
                for _ in range(filler):
                    b.r8 += 1
            case Exit(value=value):
                b.ret(value)
            case Again():
                assert loop is not None
                loop.again()
            case Leave(test=test):
                assert loop is not None
                if test is None:
                    loop.leave()
                else:
                    b.If(condition(b, test)).goto(loop.end)
            case Skip(test=test, body=inner):
                over = Label("over")
                b.If(condition(b, test)).goto(over)
                write(b, inner, loop, filler)
                b.label(over)
            case Chain(branches=branches, otherwise=otherwise):
                for number, (test, inner) in enumerate(branches):
                    with b.Elif(condition(b, test)) if number else b.If(condition(b, test)):
                        write(b, inner, loop, filler)
                if otherwise is not None:
                    with b.Else():
                        write(b, otherwise, loop, filler)
            case Repeat(test=test, body=inner):
                with b.Loop() if test is None else b.While(condition(b, test)) as block:
                    b.If(b.r9 == 0).goto(block.end)
                    b.r9 += -1
                    write(b, inner, block, filler)


def finish(b: Asm, body: Tree) -> None:
    """The result of a tree that does not exit: a mix of its variables, 31 bits of it."""
    if not (body and leaves(body[-1])):
        for register in (2, 3, 4):
            b.r1 *= 31
            b.r1 ^= _register(b, register, True)
        b.r0 = b.r1
        b.r0 >>= 32
        b.r0 ^= b.r1
        b.w0 &= 0x7FFFFFFF
        b.exit()


def _wide_test(test: Test) -> Test:
    if isinstance(test, Compare):
        return replace(test, wide=True)
    return Join(test.op, _wide_test(test.left), None if test.right is None else _wide_test(test.right))


def wide(body: Tree) -> Tree:
    """*body* with all of its comparisons on 64 bits."""
    out: list[Statement] = []
    for statement in body:
        match statement:
            case Chain(branches=branches, otherwise=otherwise):
                both = tuple((_wide_test(test), wide(inner)) for test, inner in branches)
                out.append(Chain(both, None if otherwise is None else wide(otherwise)))
            case Skip(test=test, body=inner):
                out.append(Skip(_wide_test(test), wide(inner)))
            case Repeat(test=test, body=inner):
                out.append(Repeat(None if test is None else _wide_test(test), wide(inner)))
            case Leave(test=test):
                out.append(Leave(None if test is None else _wide_test(test)))
            case _:
                out.append(statement)
    return tuple(out)


def is_filler(insn: Instruction) -> bool:
    """Whether *insn* is what makes bodies long."""
    return insn.opcode == 0x07 and insn.dst == 8


def run(body: list[Instruction], variables: tuple[int, ...]) -> int:
    """The value of r0 at the exit of *body*, with r1 to r4 set to *variables*.

    This machine knows just the few opcodes that the trees use, and comes from RFC 9669 alone.
    """
    r = [0, *variables, 0, 0, 0, 0, FUEL, 0]
    at = 0
    # Where each stretch of filler ends, which is gone over in one step.
    behind = [0] * len(body)
    end = len(body)
    for index in range(len(body) - 1, -1, -1):
        filler = is_filler(body[index])
        behind[index] = end if filler else index + 1
        if not filler:
            end = index
    for _ in range(10_000):
        insn = body[at]
        assert insn.slots == 1
        at = behind[at]
        if is_filler(insn):
            continue
        if insn.opcode == 0x95:
            return r[0]
        if insn.opcode == 0x06:
            at += insn.imm
            continue
        cls, op = insn.opcode & 7, insn.opcode & 0xF0
        bits = 32 if cls in (4, 6) else 64
        mask = (1 << bits) - 1
        a, b = r[insn.dst] & mask, (r[insn.src] if insn.opcode & 8 else insn.imm) & mask
        if cls in (4, 7):
            results = {0x00: a + b, 0x20: a * b, 0x50: a & b, 0x70: a >> (b & 63), 0xA0: a ^ b, 0xB0: b}
            r[insn.dst] = results[op] & mask
            continue
        assert cls in (5, 6)
        signed_a, signed_b = (n - (1 << bits) if n >> (bits - 1) else n for n in (a, b))
        taken = {
            0x00: True,
            0x10: a == b,
            0x20: a > b,
            0x30: a >= b,
            0x40: bool(a & b),
            0x50: a != b,
            0x60: signed_a > signed_b,
            0x70: signed_a >= signed_b,
            0xA0: a < b,
            0xB0: a <= b,
            0xC0: signed_a < signed_b,
            0xD0: signed_a <= signed_b,
        }[op]
        if taken:
            at += insn.offset
    raise AssertionError("the program does not end")


def reached(body: Sequence[Instruction]) -> int:
    """How many instructions some path from the first one comes to; all jumps must end at an instruction."""
    starts: dict[int, int] = {}
    slot = 0
    for index, insn in enumerate(body):
        starts[slot] = index
        slot += insn.slots
    seen: set[int] = set()
    waiting = [0]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        insn = body[starts[at]]
        if insn.opcode == 0x95:
            continue
        if insn.opcode == 0x06:
            waiting.append(at + 1 + insn.imm)
        elif insn.opcode & 7 in (5, 6):
            waiting.append(at + 1 + insn.offset)
        if insn.opcode not in (0x05, 0x06):
            waiting.append(at + insn.slots)
    return len(seen)


# --- Evaluated by Python. ---


class _Exit(Exception):
    pass


class _Leave(Exception):
    pass


class _Again(Exception):
    pass


def holds(test: Test, r: list[int]) -> bool:
    """Whether *test* is true for the registers *r*."""
    if isinstance(test, Join):
        if test.right is None:
            return not holds(test.left, r)
        if test.op == "and":
            return holds(test.left, r) and holds(test.right, r)
        return holds(test.left, r) or holds(test.right, r)
    bits = 64 if test.wide else 32
    mask = (1 << bits) - 1
    a = r[test.left] & mask
    c = (r[test.right] if test.is_register else test.right) & mask
    if test.op.startswith("s"):
        a, c = _signed(a, bits), _signed(c, bits)
    return _COMPARISONS[test.op](a, c)


def _run(body: Tree, r: list[int]) -> None:
    for statement in body:
        match statement:
            case Set(op=op, register=index, value=value, wide=wide):
                old = r[index]
                new = {"=": value, "+=": old + value, "^=": old ^ (value & MASK)}[op]
                r[index] = new & (MASK if wide else 0xFFFFFFFF)
            case Exit(value=value):
                r[0] = value
                raise _Exit
            case Again():
                raise _Again
            case Leave(test=test):
                if test is None or holds(test, r):
                    raise _Leave
            case Skip(test=test, body=inner):
                if not holds(test, r):
                    _run(inner, r)
            case Chain(branches=branches, otherwise=otherwise):
                for test, inner in branches:
                    if holds(test, r):
                        _run(inner, r)
                        break
                else:
                    _run(otherwise or (), r)
            case Repeat(test=test, body=inner):
                while test is None or holds(test, r):
                    if r[9] == 0:
                        break
                    r[9] -= 1
                    try:
                        _run(inner, r)
                    except _Again:
                        continue
                    except _Leave:
                        break


def evaluate(body: Tree, variables: tuple[int, ...]) -> int:
    """The result of *body* with r1 to r4 set to *variables*."""
    r = [0, *variables, 0, 0, 0, 0, FUEL]
    try:
        _run(body, r)
    except _Exit:
        return r[0]
    mixed = r[1]
    for register in (2, 3, 4):
        mixed = (mixed * 31 ^ r[register]) & MASK
    return (mixed >> 32 ^ mixed) & 0x7FFFFFFF
