# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The kernel runs structured blocks, and the atomic operations that LLVM 19 has no words for.

`tests/unit/test_asm_blocks.py` explains the trees.
"""

from __future__ import annotations

import struct

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loader.features import Isa
from loader.objects import Program
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkBuff
from pybpfasm.net import Ethernet
from pybpfasm.program import Template, sched_cls
from tests.requires import requires
from tests.unit.block_trees import FUEL, VALUES, Tree, evaluate, finish, trees, write


def load_variables(b: Asm, ctx: SkBuff) -> None:
    """r1 to r4 = four numbers that follow the Ethernet header."""
    b.r5 = ctx.data
    b.r6 = ctx.data_end
    b.r7 = b.r5
    b.r7 += Ethernet.sizeof + 32
    with b.If(b.r7 > b.r6):
        b.ret(-1)
    for index, register in enumerate(("r1", "r2", "r3", "r4")):
        setattr(b, register, b.u64[b.r5 + Ethernet.sizeof + 8 * index])


def packet(variables: tuple[int, ...]) -> bytes:
    """A frame with *variables* as its payload."""
    return bytes(12) + b"\x08\x00" + struct.pack("=4Q", *variables)


def tree_program(tree: Tree) -> Template[[]]:
    """A program that runs *tree*."""

    @sched_cls(name="tree")
    def program(b: Asm, ctx: SkBuff) -> None:
        load_variables(b, ctx)
        b.r9 = FUEL
        write(b, tree)
        finish(b, tree)

    return program


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(trees, st.lists(st.tuples(VALUES, VALUES, VALUES, VALUES), min_size=4, max_size=4))
def test_random_trees(tree: Tree, inputs: list[tuple[int, ...]]) -> None:
    """The kernel's result of a tree is Python's."""
    with Program.load(tree_program(tree).build()) as program:
        for variables in inputs:
            assert program.test_run(packet(variables)).retval == evaluate(tree, variables)


@requires(Isa.LOAD_ACQUIRE)
def test_load_acquire_and_store_release() -> None:
    """In all four sizes the kernel reads and writes just those bytes."""

    def sized(size: int) -> Template[[]]:
        @sched_cls(name="acquire")
        def program(b: Asm, ctx: SkBuff) -> None:
            place = b.stack_bytes(8)
            memory = {1: b.u8, 2: b.u16, 4: b.u32, 8: b.u64}[size][place]
            b.u64[place] = -1
            b.r2 = 0x1234567
            memory.store_release(b.r2)
            memory.load_acquire(b.r3)
            b.r4 = b.u64[place]
            b.r4 >>= 32
            b.r0 = b.r3
            b.r0 ^= b.r4
            b.w0 &= 0x7FFFFFFF
            b.exit()

        return program

    for size in (1, 2, 4, 8):
        mask = (1 << 8 * size) - 1
        stored = 0x1234567 & mask
        high = 0 if size == 8 else 0xFFFFFFFF
        with Program.load(sized(size).build()) as program:
            assert program.test_run(packet((0, 0, 0, 0))).retval == (stored ^ high) & 0x7FFFFFFF
