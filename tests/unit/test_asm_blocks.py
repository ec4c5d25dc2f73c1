# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Structured blocks mean what Python's own `if` and `while` would: random trees of blocks, run both ways.

`tests/kernel/test_asm_blocks.py` has the kernel run the same trees.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pybpfasm.asm import Asm, Condition
from pybpfasm.instruction import Instruction
from tests.unit.block_trees import (
    MASK,
    NUMBERS,
    VALUES,
    Chain,
    Compare,
    Exit,
    Join,
    Leave,
    Repeat,
    Set,
    Statement,
    Test,
    Tree,
    evaluate,
    finish,
    leaves,
    reached,
    run,
    trees,
    write,
)


def assemble(tree: Tree) -> list[Instruction]:
    """The instructions of *tree*."""
    b = Asm("tree")
    write(b, tree)
    assert b._terminated == bool(tree and leaves(tree[-1]))
    finish(b, tree)
    return b.finish()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees, st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=1, max_size=6))
def test_random_trees(tree: Tree, inputs: list[tuple[int, ...]]) -> None:
    """The instructions compute what Python does, and each of them can be reached."""
    body = assemble(tree)
    assert reached(body) == len(body)
    for variables in inputs:
        assert run(body, variables) == evaluate(tree, variables)


COMPARISONS = ("==", "!=", ">", ">=", "<", "<=", "&", "sgt", "sge", "slt", "sle")


@pytest.mark.parametrize("op", COMPARISONS)
@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_every_comparison(op: str, negated: bool, wide: bool) -> None:
    """Each comparison as a block, as a jump, and negated, for all pairs of telling numbers."""
    test: Test = Compare(op, 1, 2, True, wide)
    if negated:
        test = Join("not", test, None)
    block: Tree = (Chain(((test, (Exit(1),)),), None), Exit(0))
    jump: Tree = (Repeat(None, (Leave(test), Exit(0))), Exit(1))
    for tree in (block, jump):
        body = assemble(tree)
        for a, b in product(NUMBERS, repeat=2):
            assert run(body, (a, b, 0, 0)) == evaluate(tree, (a, b, 0, 0)), (tree, a, b)


def _endings() -> dict[str, tuple[Statement, ...]]:
    return {
        "goes on": (Set("=", 4, 5, True),),
        "empty": (),
        "exits": (Set("=", 4, 6, True), Exit(9)),
        "leaves the loop": (Set("=", 4, 7, True), Leave(None)),
    }


@pytest.mark.parametrize("first", _endings())
@pytest.mark.parametrize("second", _endings())
@pytest.mark.parametrize("otherwise", [*_endings(), "no else"])
def test_every_combination_of_endings(first: str, second: str, otherwise: str) -> None:
    """If, Elif and Else in a loop, each of which goes on, is empty, exits or leaves the loop."""
    one, two = Compare("==", 1, 1, False, True), Compare("==", 1, 2, False, True)
    chain = Chain(
        ((one, _endings()[first]), (two, _endings()[second])),
        None if otherwise == "no else" else _endings()[otherwise],
    )
    after: tuple[Statement, ...] = () if leaves(chain) else (Set("+=", 4, 1, True),)
    tree: Tree = (Repeat(None, (chain, *after)),)
    body = assemble(tree)
    assert reached(body) == len(body)
    for value in (1, 2, 3):
        assert run(body, (value, 0, 0, 0)) == evaluate(tree, (value, 0, 0, 0))


def test_a_condition_compares_where_it_is_used() -> None:
    """It holds registers, not values: what changes them before the block changes the outcome."""
    b = Asm("late")
    is_one: Condition = b.r1 == 1
    b.r1 = 1
    with b.If(is_one):
        b.ret(1)
    b.ret(0)
    assert run(b.finish(), (0, 0, 0, 0)) == 1


def test_mask() -> None:
    """The numbers that trees are run with include both ends of 32 and 64 bits."""
    assert {0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, MASK} <= set(NUMBERS)


@pytest.mark.parametrize("negated", [False, True])
@pytest.mark.parametrize("join", [operator.or_, operator.and_])
def test_thousands_of_comparisons_in_one_condition(
    join: Callable[[Condition, Condition], Condition], negated: bool
) -> None:
    """From a loop over a table, say: no recursion, and a jump for each."""
    b = Asm("many")
    wanted = range(3000)
    condition = functools.reduce(join, [b.r1 == n if join is operator.or_ else b.r1 != n for n in wanted])
    with b.If(~condition if negated else condition):
        b.ret(1)
    b.ret(0)
    body = b.finish()
    assert len(body) <= 3000 + 4
    for value in (0, 1, 2999, 3000):
        found = (value in wanted) == (join is operator.or_)
        assert run(body, (value, 0, 0, 0)) == (found != negated)
