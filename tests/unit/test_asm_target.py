# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs for an ISA level or a kernel: what these lack is rewritten exactly, or refused at its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybpfasm import (
    U64,
    Asm,
    AsmError,
    Helper,
    Instruction,
    MapSpec,
    MapType,
    Reg,
    SkBuff,
    bswap16,
    bswap32,
    bswap64,
    s8,
    s16,
    s32,
    sched_cls,
    subprogram,
)
from pybpfasm.emulator import run_instructions
from pybpfasm.layout import ByteOrder
from pybpfasm.listing import text
from pybpfasm.target import Target, check_target
from tests.unit.block_trees import (
    NUMBERS,
    VALUES,
    Tree,
    evaluate,
    finish,
    run,
    trees,
    wide,
    write,
)

stats = MapSpec("stats", MapType.ARRAY, None, U64(), 1)


def written(
    statement: Callable[[Asm], object], target: str | None, byteorder: ByteOrder = "little"
) -> list[str]:
    """The instructions of *statement* as the kernel prints them."""
    b = Asm("one", byteorder=byteorder, target=target)
    statement(b)
    b.label("end")
    b.ret(0)
    return [text(insn) for insn in b.finish()[:-2]]


def assign(name: str, value: Callable[[Asm], object]) -> Callable[[Asm], object]:
    return lambda b: setattr(b, name, value(b))


REWRITTEN: dict[str, tuple[str, Callable[[Asm], object], list[str]]] = {
    "less, registers": ("v1", lambda b: b.If(b.r1 < b.r2).goto("end"), ["if r2 > r1 goto pc+0"]),
    "less or equal, registers": ("v1", lambda b: b.If(b.r1 <= b.r2).goto("end"), ["if r2 >= r1 goto pc+0"]),
    "signed less": ("v1", lambda b: b.If(b.r1.slt(b.r2)).goto("end"), ["if r2 s> r1 goto pc+0"]),
    "signed less or equal": ("4.13", lambda b: b.If(b.r1.sle(b.r2)).goto("end"), ["if r2 s>= r1 goto pc+0"]),
    "less, constant": (
        "v1",
        lambda b: b.If(b.r1 < 5).goto("end"),
        ["if r1 >= 0x5 goto pc+1", "goto pc+0"],
    ),
    "signed less or equal, constant": (
        "4.13",
        lambda b: b.If(b.r1.sle(-5)).goto("end"),
        ["if r1 s> 0xfffffffb goto pc+1", "goto pc+0"],
    ),
    "less than 1": ("v1", lambda b: b.If(b.r1 < 1).goto("end"), ["if r1 == 0x0 goto pc+0"]),
    "at most 0": ("v1", lambda b: b.If(b.r1 <= 0).goto("end"), ["if r1 == 0x0 goto pc+0"]),
    "bswap16": ("v3", assign("r2", lambda b: bswap16(b.r2)), ["r2 = be16 r2"]),
    "bswap64": ("6.5", assign("r2", lambda b: bswap64(b.r2)), ["r2 = be64 r2"]),
    "s8 of another": ("v3", assign("r2", lambda b: s8(b.r3)), ["r2 = r3", "r2 <<= 56", "r2 s>>= 56"]),
    "s32 of itself": ("v3", assign("r2", lambda b: s32(b.r2)), ["r2 <<= 32", "r2 s>>= 32"]),
    "s16 of 32 bits": ("v3", assign("w2", lambda b: s16(b.w3)), ["w2 = w3", "w2 <<= 16", "w2 s>>= 16"]),
    "s16 of 32 bits, before 5.0": (
        "4.19",
        assign("w2", lambda b: s16(b.w3)),
        ["w2 = w3", "w2 <<= 16", "r2 <<= 32", "r2 s>>= 48", "w2 = w2"],
    ),
    "w s>>= before 5.0": (
        "4.19",
        lambda b: b.w2.arsh(5),
        ["r2 <<= 32", "r2 s>>= 37", "w2 = w2"],
    ),
    "signed load": (
        "v3",
        assign("r2", lambda b: b.u16[b.r1 + 4].signed),
        ["r2 = *(u16 *)(r1 +4)", "r2 <<= 48", "r2 s>>= 48"],
    ),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_what_is_rewritten(name: str) -> None:
    target, statement, expected = REWRITTEN[name]
    assert written(statement, target) == expected
    assert len(written(statement, "v4")) == 1  # which needs no other form


def test_bytes_are_swapped_by_the_machines_order() -> None:
    swap = assign("r2", lambda b: bswap32(b.r2))
    assert written(swap, "v3", "big") == ["r2 = le32 r2"]
    assert written(swap, "v4", "big") == ["r2 = bswap32 r2"]


def _unary(name: str, function: Callable[[Reg], Any], source: str) -> Callable[[Asm], object]:
    return lambda b: setattr(b, name, function(getattr(b, source)))


def _arsh(number: int) -> Callable[[Asm], object]:
    return lambda b: b.w3.arsh(number)


def _load(name: str) -> Callable[[Asm], object]:
    return lambda b: setattr(b, "r3", getattr(b, name)[b.r10 - 8].signed)


STATEMENTS: dict[str, Callable[[Asm], object]] = {
    **{f.__name__: _unary("r2", f, "r3") for f in (s8, s16, s32)},
    **{f"{f.__name__} of 32 bits": _unary("w2", f, "w3") for f in (s8, s16)},
    **{f"{f.__name__} of itself": _unary("r3", f, "r3") for f in (s8, s16, s32)},
    **{f.__name__: _unary("r3", f, "r3") for f in (bswap16, bswap32, bswap64)},
    **{f"w s>>= {n}": _arsh(n) for n in (0, 1, 31)},
    **{f"load {name}": _load(name) for name in ("u8", "u16", "u32")},
}


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("target", ["v1", "v3", "4.19"])
def test_rewriting_is_exact(name: str, target: str) -> None:
    """The value, and no other register: r2 to r9 are the same afterwards as with the one instruction."""

    def program(target: str | None) -> list[Instruction]:
        b = Asm("one", target=target)
        b.r3 = b.u64[b.r1]
        b.u64[b.r10 - 8] = b.r3
        b.r9 = b.r1
        for register in (2, 4, 5, 6, 7, 8):
            setattr(b, f"r{register}", register)
        STATEMENTS[name](b)
        for register in range(2, 9):
            b.u64[b.r9 + 8 * register] = getattr(b, f"r{register}")
        b.ret(0)
        return b.finish()

    for number in (*NUMBERS, 0x80, 0x7F, 0x8000, 0xFF7F, 0x1234_5678_9ABC_DEF0):
        memory = number.to_bytes(8, "little") + bytes(72)
        assert run_instructions(program(target), memory)[1] == run_instructions(program(None), memory)[1]
    check_target(program(target), target)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees, st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=1, max_size=6))
def test_random_trees_without_the_newer_jumps(tree: Tree, inputs: list[tuple[int, ...]]) -> None:
    """Blocks of 64-bit comparisons mean the same on ISA v1, which has no < and <=."""
    b = Asm("tree", target="v1")
    write(b, wide(tree))
    finish(b, wide(tree))
    body = b.finish()
    check_target(body, "v1")
    for variables in inputs:
        assert run(body, variables) == evaluate(wide(tree), variables)


@pytest.mark.parametrize("op", ["lt", "le", "slt", "sle"])
def test_every_pair_of_telling_numbers(op: str) -> None:
    """As jumps, against registers and constants."""
    for constant in (None, 0, 1, 2, -1, 0x7FFFFFFF, -0x80000000):

        def body(target: str | None, constant: int | None = constant) -> list[Instruction]:
            b = Asm("one", target=target)
            other = b.r2 if constant is None else constant
            compare = {"lt": b.r1.__lt__, "le": b.r1.__le__, "slt": b.r1.slt, "sle": b.r1.sle}[op]
            b.If(compare(other)).goto("yes")
            b.ret(0)
            b.label("yes")
            b.ret(1)
            return b.finish()

        check_target(body("v1"), "v1")
        for left, right in product(NUMBERS, repeat=2):
            assert run(body("v1"), (left, right, 0, 0)) == run(body(None), (left, right, 0, 0))


@subprogram("n")
def twice(b: Asm) -> None:
    b.r0 = b.r1
    b.r0.sdiv(b.r1)  # in the subprogram
    b.exit()


REFUSED: dict[str, tuple[str, Callable[[Asm], object], str]] = {
    "a 32-bit comparison": (
        "v2",
        lambda b: b.If(b.w1 == 5).goto("end"),
        "if w1 == 0x5 goto end is of ISA v3 (Linux 5.1), and the target is v2: compare the 64-bit registers",
    ),
    "signed division": ("v3", lambda b: b.r1.sdiv(3), "r1 s/= 3 is of ISA v4 (Linux 6.6)"),
    "an atomic": (
        "v2",
        lambda b: b.u64[b.r1].fetch_add(b.r2),
        "add with lock_add, or use a map",
    ),
    "an atomic, by release": ("5.11", lambda b: b.u64[b.r1].lock_or(b.r2), "came with Linux 5.12"),
    "load-acquire": ("v4", lambda b: b.u64[b.r1].load_acquire(b.r2), "came after ISA v4 (Linux 6.15)"),
    "a map's value": ("5.1", assign("r1", lambda b: stats.value_at(0)), "look it up"),
    "w s>>= by a register": ("4.19", lambda b: b.w1.arsh(b.w2), "sign-extend to 64 bits, and shift these"),
    "a call of a subprogram": ("4.15", lambda b: b.call(twice), "write the function as a macro"),
    "a callback": ("5.12", assign("r2", lambda b: twice), "callbacks came with it"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    target, statement, message = REFUSED[name]
    with pytest.raises(AsmError, match=re.escape(message)) as caught:
        written(statement, target)
    assert caught.value.location is not None
    written(statement, "v5" if target.startswith("v") else "6.15")


def test_subprograms_are_for_the_programs_target() -> None:
    @sched_cls(target="v3")
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r1 = 4
        b.call(twice)
        b.exit()

    with pytest.raises(AsmError, match="the target is v3: divide the absolute values") as caught:
        main.build()
    assert caught.value.location is not None
    assert caught.value.location.text.endswith("# in the subprogram")
    spec = main.for_target("v4").build()
    assert spec.target == Target("v4") and str(spec.requirement) == "v4, Linux 6.6"
    assert main.for_target(None).build().target is None


def test_what_a_program_needs() -> None:
    @sched_cls()
    def main(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.mark
        with b.If(b.r2 >= 7):
            b.r2 = bswap32(b.r2)  # newest
        b.call(Helper.ktime_get_ns)
        b.ret(0)

    requirement = main.build().requirement
    assert str(requirement) == "v4, Linux 6.6"
    assert requirement.kernel_from is not None and text(requirement.kernel_from) == "r2 = bswap32 r2"
    assert str(main.for_target("v1").build().requirement) == "v1, Linux 3.18"


def test_a_target_that_does_not_exist_is_refused_where_it_is_named() -> None:
    with pytest.raises(AsmError, match="is neither an ISA level") as caught:
        sched_cls(target="v9")  # here
    assert caught.value.location is not None and caught.value.location.text.endswith("# here")
    with pytest.raises(AsmError, match="target 3 is neither"):
        Asm("one", target=3)  # type: ignore[arg-type]
