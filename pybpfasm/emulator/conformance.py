# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Run bare instructions on bare memory, as the vectors of conformance suites want it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pybpfasm.emulator.emulator import Emulator
from pybpfasm.emulator.faults import EmulatorError
from pybpfasm.emulator.memory import Memory
from pybpfasm.emulator.run import DEFAULT_BUDGET, Run, Step
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.enums import ProgType
from pybpfasm.program import Function, ProgramSpec

__all__ = ["run_conformance", "run_instructions"]


def bare(instructions: Iterable[Instruction], name: str = "bare") -> ProgramSpec:
    """A program of *instructions* without sources and maps."""
    code = tuple(instructions)
    functions = (Function(name, 0, (), None, {}),)
    return ProgramSpec(name, ProgType.SOCKET_FILTER, None, "", code, functions, "little")


def run_instructions(
    instructions: Iterable[Instruction],
    memory: bytes = b"",
    *,
    engine: Literal["interpret", "translate"] = "interpret",
    budget: int = DEFAULT_BUDGET,
    trace: list[Step] | None = None,
) -> tuple[int, bytes]:
    """Run *instructions* with r1 the address of *memory* (0 where it is empty) and r2 its length.

    Returns r0 and what the memory holds afterwards. *trace* gets every step, with the interpreter. Raises
    `EmulatorFault`.
    """
    emulator = Emulator(engine=engine)
    program = emulator.load(bare(instructions))
    program.prepare(trace is not None)
    run = Run(program, None, budget=budget, trace=trace)
    region = Memory("the memory", bytearray(memory))
    r0 = run.start(run.pointer(region) if memory else 0, len(memory))
    return r0, bytes(region.data)


def run_conformance(instructions: Iterable[Instruction], memory: bytes = b"") -> int:
    """What both engines give as r0; raises `EmulatorError` where they differ."""
    code = list(instructions)
    first = run_instructions(code, memory, engine="interpret")
    second = run_instructions(code, memory, engine="translate")
    if first != second:
        raise EmulatorError(f"the engines differ: {first} and {second}")
    return first[0]
