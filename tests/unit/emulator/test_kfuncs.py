# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Functions of the kernel in the emulator: models by name, and what the verifier would refuse of an iterator.

What the iterator does is compared with the kernel in tests/kernel/test_emulator_kfuncs.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pybpfasm import Asm, sched_cls
from pybpfasm.core import CoreError
from pybpfasm.emulator import Emulator, EmulatorError, EmulatorFault, Run, Skb
from pybpfasm.emulator.kfuncs import number_of
from pybpfasm.extern import extern_address, kfunc
from pybpfasm.instruction import Instruction
from pybpfasm.isa import LD_IMM64, Imm64
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import MapType, ProgType
from pybpfasm.layout import U32
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec
from pybpfasm.text import assemble

ENGINES = ("interpret", "translate")
ITERATOR = ("bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy")


def named(body: Callable[[Asm], None]) -> ProgramSpec:
    @sched_cls()
    def numbers(b: Asm, ctx: SkBuff) -> None:
        body(b)

    return numbers.build()


def at(place: int, step: str) -> str:
    return f"r1 = r10\nr1 += {place}\ncall bpf_iter_num_{step}\n"


def new(start: int = 3, end: int = 8, place: int = -8) -> str:
    return f"r2 = {start}\nr3 = {end}\n" + at(place, "new")


NEXT, DESTROY = at(-8, "next"), at(-8, "destroy")
END = "r0 = 0\nexit"


def run(text: str, engine: str) -> int:
    code = assemble(text, kfuncs={name: number_of(name) for name in ITERATOR})
    spec = ProgramSpec("prog", ProgType.SCHED_CLS, None, "GPL", tuple(code), (), "little")
    return Emulator(engine=engine).load(spec).run(Skb(bytes(64))).r0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loop_over_numbers(engine: str) -> None:
    """As it was assembled, without any kernel's types."""

    def body(b: Asm) -> None:
        b.r6 = 0
        b.r2 = 3
        b.r3 = 8
        b.lea(b.r1, b.r10 - 8)
        b.call(kfunc("bpf_iter_num_new"))
        with b.Loop() as loop:
            b.lea(b.r1, b.r10 - 8)
            b.call(kfunc("bpf_iter_num_next"))
            with b.If(b.r0 == 0):
                loop.leave()
            b.r1 = b.u32[b.r0]
            b.r6 += b.r1
        b.lea(b.r1, b.r10 - 8)
        b.call(kfunc("bpf_iter_num_destroy"))
        b.r0 = b.r6
        b.exit()

    assert Emulator(engine=engine).load(named(body)).run(Skb(bytes(64))).r0 == 3 + 4 + 5 + 6 + 7


# What Linux 6.18 refuses too, each for the reason that is given.
WRONG = {
    "none there": (NEXT + END, "no iterator at fp-8"),
    "overwritten": (new() + "*(u64 *)(r10 -8) = 0\n" + NEXT + END, "no iterator at fp-8"),
    "made twice": (new() + new() + DESTROY + END, "an iterator here already: destroy it first"),
    "destroyed twice": (new() + DESTROY + DESTROY + END, "no iterator at fp-8"),
    "next after destroy": (new() + DESTROY + NEXT + END, "no iterator at fp-8"),
    "off by 4": (new(place=-12) + END, "fp-12 is no place for an iterator"),
    "outside": (new(place=-520) + END, "outside the stack frame"),
    "no stack": ("r2 = 0\nr3 = 1\ncall bpf_iter_num_new\n" + END, "__sk_buff is no place for an iterator"),
    "number": ("r1 = 8\nr2 = 0\nr3 = 1\ncall bpf_iter_num_new\n" + END, "8, not a pointer"),
    "its bytes": (new() + "r6 = *(u64 *)(r10 -8)\n" + DESTROY + END, "was never written"),
    "write": (new() + NEXT + "*(u32 *)(r0 +0) = 1\n" + DESTROY + END, "the iterator's number is read-only"),
    "add": (
        new() + NEXT + "r1 = 1\nlock *(u32 *)(r0 +0) += r1\n" + DESTROY + END,
        "atomic operations on the iterator's number are not allowed",
    ),
    "8 bytes": (new() + NEXT + "r6 = *(u64 *)(r0 +0)\n" + DESTROY + END, "which has 4 bytes"),
    "unchecked": (new(5, 5) + NEXT + "r6 = *(u32 *)(r0 +0)\n" + DESTROY + END, "is it a NULL pointer"),
    "gone": (new() + NEXT + "r7 = r0\n" + DESTROY + "r0 = *(u32 *)(r7 +0)\nexit", "has been destroyed"),
    "r0": (new() + DESTROY + "exit", "r0 is read and was never set"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", WRONG)
def test_what_programs_may_not_do_with_iterators(which: str, engine: str) -> None:
    text, message = WRONG[which]
    with pytest.raises(EmulatorFault, match=message):
        run(text, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("ends", [(3, 8), (8, 3)])
def test_an_iterator_is_to_be_destroyed(ends: tuple[int, int], engine: str) -> None:
    """One that could not be made is to be as well."""
    with pytest.raises(EmulatorError, match=r"slot \d+: prog ends and still holds an iterator"):
        run(new(*ends) + END, engine)


RECORD = "r2 = 16\nr3 = 0\nr4 = r10\nr4 += -16\ncall bpf_ringbuf_reserve_dynptr\n"
SUBMIT = "r1 = r10\nr1 += -16\nr2 = 0\ncall bpf_ringbuf_submit_dynptr\n"
READ = "r1 = r10\nr1 += -24\nr2 = 8\nr3 = r10\nr3 += -16\nr4 = 0\nr5 = 0\ncall bpf_dynptr_read\n"
VALUE = "r2 = 16\nr3 = 0\nr4 = r10\nr4 += -16\ncall bpf_dynptr_from_mem\n"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        (VALUE, new(place=-16) + at(-16, "destroy") + READ, "no dynptr at fp-16"),
        (VALUE, new(place=-8) + DESTROY + READ, "no dynptr at fp-16"),
        (VALUE, new(place=-24) + at(-24, "destroy") + READ + END, ""),
        (RECORD, new(place=-8), "submit or discard the record first"),
        (RECORD, new(place=-16), "submit or discard the record first"),
        (RECORD, new(place=-24) + SUBMIT + at(-24, "destroy") + END, ""),
        (new(place=-8), RECORD, "an iterator here already"),
        (new(place=-16), VALUE, "an iterator here already"),
        (new(place=-24), VALUE + at(-24, "destroy") + END, ""),
    ],
)
def test_iterators_and_dynptrs_share_the_stack(first: str, then: str, message: str, engine: str) -> None:
    """One in the place of another is the end of that, but not of what has to be given back."""
    ring = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
    array = MapSpec("array", MapType.ARRAY, U32(), 16, 1)
    address = {
        RECORD: Instruction(LD_IMM64, 1, Imm64.MAP_FD, reference=ring),
        VALUE: Instruction(LD_IMM64, 1, Imm64.MAP_VALUE, reference=array),
    }
    code: list[Instruction] = []
    for part in re.split(f"({re.escape(RECORD)}|{re.escape(VALUE)})", first + then):
        if part in address:
            code.append(address[part])
        code += assemble(part, kfuncs={name: number_of(name) for name in ITERATOR})
    spec = ProgramSpec("prog", ProgType.SCHED_CLS, None, "GPL", tuple(code), (), "little")
    program = Emulator(engine=engine).load(spec)
    if not message:
        assert program.run(Skb(bytes(64))).r0 == 0
        return
    with pytest.raises(EmulatorFault, match=message):
        program.run(Skb(bytes(64)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_by_name(engine: str) -> None:
    emulator = Emulator(engine=engine)

    @emulator.model("bpf_rcu_read_lock")
    def lock(run: Run) -> int:
        seen.append("locked")
        return 0

    @emulator.model("bpf_some_day")
    def some_day(run: Run, value: int) -> int:
        return value + 1

    def body(b: Asm) -> None:
        b.call(kfunc("bpf_rcu_read_lock"))
        b.r1 = 41
        b.call(kfunc("int bpf_some_day(u64 value)"))
        b.exit()

    seen: list[str] = []
    assert emulator.load(named(body)).run(Skb(bytes(64))).r0 == 42
    assert seen == ["locked"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_that_returns_nothing_leaves_r0_unset(engine: str) -> None:
    """By its declaration in C, and by that of Linux 6.18."""
    for function in ("bpf_rcu_read_unlock", "void bpf_some_day_2(void)"):
        emulator = Emulator(engine=engine)

        @emulator.model(function.split()[-1].split("(")[0])
        def nothing(run: Run) -> int:
            return 0

        def body(b: Asm, function: str = function) -> None:
            b.r0 = 1
            b.call(kfunc(function))
            b.exit()

        with pytest.raises(EmulatorFault, match="r0 is read and was never set"):
            emulator.load(named(body)).run(Skb(bytes(64)))


def test_functions_without_a_model_are_named() -> None:
    def body(b: Asm) -> None:
        b.call(kfunc("bpf_rcu_read_lock"))
        b.ret(0)

    with pytest.raises(EmulatorError, match=r'function bpf_rcu_read_lock, .*model\("bpf_rcu_read_l'):
        Emulator().load(named(body)).run(Skb(bytes(64)))


def test_addresses_of_functions_need_a_kernel() -> None:
    def body(b: Asm) -> None:
        extern_address(b.r1, kfunc("bpf_iter_num_new", weak=True))
        b.call(kfunc("bpf_iter_num_new"))
        b.ret(0)

    with pytest.raises(CoreError, match="kfunc bpf_iter_num_new"):
        Emulator().load(named(body))
