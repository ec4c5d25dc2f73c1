# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Jumps of more than 16 bits arrive where they should, forwards and backwards, and nothing else moves.

With ``gotol``, and for targets that do not have it.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybpfasm import Asm, AsmError, Instruction, ProgramSpec, SkBuff, imm64, sched_cls
from pybpfasm.asm import jumps
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.isa import OP_GOTOL
from pybpfasm.target import check_target
from tests.unit.block_trees import VALUES, Tree, evaluate, finish, reached, run, trees, write

FAR = 33_000
# The limit itself: with some of these the first jumps reach, and the others miss by a little. Then islands.
CASES = [
    *((target, filler) for target in (None, "v3") for filler in (10, 32_757, *range(32_761, 32_768), 70_000)),
    *((target, FAR) for target in (None, "v4", "v3", "v1", "6.6", "5.10")),
]


def build(forwards: bool, filler: int, target: str | None = None) -> ProgramSpec:
    @sched_cls(target=target)
    def jumps(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.mark
        b.r3 = imm64(1 << 40)  # takes two slots
        if forwards:
            b.If(b.r2 == 1).goto("one")
            b.If(b.r2 == 2).goto("two")
            b.If(b.r2 & 4).goto("three")
            b.r0 = 0
        else:
            b.goto("start")
            b.label("one")
            b.ret(11)
            b.label("two")
            b.ret(12)
            b.label("start")
        for _ in range(filler):
            b.r3 += 1
        b.If(b.r2 == 1).goto("one")
        b.If(b.r2 == 2).goto("two")
        b.ret(10)
        if forwards:
            b.label("one")
            b.ret(11)
            b.label("two")
            b.ret(12)
            b.label("three")
            b.ret(13)

    return jumps.build()


@pytest.mark.parametrize(("target", "filler"), CASES)
@pytest.mark.parametrize("forwards", [True, False])
def test_every_jump_arrives(forwards: bool, filler: int, target: str | None) -> None:
    spec = build(forwards, filler, target)
    program = Emulator().load(spec)
    results = {mark: program.run(Skb(bytes(64), mark=mark)).r0 for mark in (0, 1, 2, 4)}
    assert results == {0: 10, 1: 11, 2: 12, 4: 13 if forwards else 10}
    # The verifier refuses what can't be reached.
    assert reached(spec.instructions) == len(spec.instructions)
    if target is not None:
        check_target(spec.instructions, target)


def test_only_what_is_too_far_costs_more() -> None:
    """One more for a comparison, two for one that has no opposite."""
    near, far = build(True, 10), build(True, FAR)
    assert not any(insn.opcode == OP_GOTOL for insn in near.instructions)
    assert len(far.instructions) - FAR == len(near.instructions) - 10 + 1 + 1 + 2
    assert sum(insn.opcode == OP_GOTOL for insn in far.instructions) == 3


@pytest.mark.parametrize("forwards", [True, False])
def test_islands_cost_nothing_where_nothing_needs_them(forwards: bool) -> None:
    assert build(forwards, 32_757, "v3").code() == build(forwards, 32_757).code()


def test_an_island_lies_where_nothing_goes_on() -> None:
    """If there is such a place it needs no jump over it."""

    def body(leaves: bool) -> list[Instruction]:
        b = Asm("one", target="v3")
        b.If(b.r1 == 1).goto("end")
        for number in range(40_000):
            b.r2 += 1
            if leaves and number == 15_000:
                b.If(b.r2 == 7).goto("there")
                b.ret(0)
                b.label("there")
        b.label("end")
        b.ret(1)
        return b.finish()

    # The function itself, and an island of a jump to the end with one over it, or without.
    assert len(body(False)) == 40_000 + 3 + 2
    assert len(body(True)) == 40_000 + 3 + 3 + 1


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    trees,
    st.sampled_from((9_000, 17_000, 33_000)),
    st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=2, max_size=4),
)
def test_random_trees_with_long_bodies(tree: Tree, filler: int, inputs: list[tuple[int, ...]]) -> None:
    """Blocks and loops in which each statement is thousands of instructions long compute what Python does, by
    ``gotol`` and through islands."""
    for target in (None, "v3"):
        b = Asm("tree", target=target)
        write(b, tree, filler=filler)
        finish(b, tree)
        body = b.finish()
        assert reached(body) == len(body)
        for variables in inputs:
            assert run(body, variables) == evaluate(tree, variables)


@pytest.mark.parametrize("labels", [100, 2_000])
def test_many_labels_far_away(labels: int) -> None:
    """Each of them is reached from the other end, through islands that hold a jump for each."""
    b = Asm("many", target="v3")
    for number in range(labels):
        b.If(b.r2 == number).goto(f"label {number}")
    for _ in range(70_000):
        b.r8 += 1
    b.ret(-1)
    for number in range(labels):
        b.label(f"label {number}")
        b.ret(number)
    body = b.finish()
    assert reached(body) == len(body)
    for wanted in (0, 1, labels // 2, labels - 1):
        assert run(body, (0, wanted, 0, 0)) == wanted


def test_nothing_stays_that_nothing_jumps_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """An island that was just within reach is moved by the growth of another: a nearer one takes its part."""
    monkeypatch.setattr(jumps, "_SPACINGS", ((8_000, 32_767),))
    b = Asm("moved", target="v3")
    b.If(b.r2 == 1).goto("end")
    for number in range(900):
        b.label(f"label {number}")
        b.r4 += 1
    for _ in range(39_000):
        b.r8 += 1
    for number in range(900):
        b.If(b.r3 == number).goto(f"label {number}")
    for _ in range(30_000):
        b.r8 += 1
    b.label("end")
    b.ret(7)
    body = b.finish()
    assert reached(body) == len(body)
    assert run(body, (0, 1, 0, 0)) == 7


def test_more_labels_than_can_be_led_there() -> None:
    b = Asm("too_many", target="v3")
    for number in range(20_000):
        b.If(b.r2 == number).goto(f"label {number}")
    for _ in range(70_000):
        b.r3 += 1
    for number in range(20_000):
        b.label(f"label {number}")
        b.r4 += number
    b.ret(0)
    with pytest.raises(AsmError, match="make subprograms of its parts, or give a target that has gotol"):
        b.finish()
