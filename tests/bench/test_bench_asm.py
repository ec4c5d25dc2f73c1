# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How long assembling, decoding and importing take. Nothing is asserted about time.

What is interesting besides it stands in the extra information: instructions per second, and how the time per
instruction grows from 10 000 to 100 000 of them (1.0 is linear).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from programs import getsockopt, sk_msg, sockops, tc_egress, tc_ingress
from programs.packet import Interface
from programs.settings import Ports, Settings
from pybpfasm.asm import Asm
from pybpfasm.instruction import decode
from pybpfasm.kernel.context import SkBuff
from pybpfasm.program import ProgramSpec, Template, sched_cls

# Of the processor's time: other work on the machine counts less.
cpu_time = pytest.mark.benchmark(timer=time.process_time)

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Settings(Ports.parse("80,443,8000-8010,9000"))
PROGRAMS: dict[str, Callable[[], ProgramSpec]] = {
    "tc_ingress": lambda: tc_ingress.tc_ingress.build(SETTINGS, Interface()),
    "tc_egress": lambda: tc_egress.tc_egress.build(SETTINGS, Interface()),
    "getsockopt": lambda: getsockopt.getsockopt.build(SETTINGS),
    "sockops": lambda: sockops.sockops.build(SETTINGS),
    "sk_msg": lambda: sk_msg.sk_msg.build(SETTINGS),
}


def assemble_all() -> list[ProgramSpec]:
    """All that the loader needs of the five programs."""
    specs = [build() for build in PROGRAMS.values()]
    for spec in specs:
        spec.code()
        spec.btf()
    return specs


@cpu_time
def test_the_five_programs(benchmark: Any) -> None:
    """Instructions, BTF, function and line information of all of them."""
    specs = benchmark(assemble_all)
    benchmark.extra_info["instructions"] = sum(len(spec.instructions) for spec in specs)


@cpu_time
@pytest.mark.parametrize("name", PROGRAMS)
def test_one_program(benchmark: Any, name: str) -> None:
    """Instructions alone."""
    spec = benchmark(PROGRAMS[name])
    benchmark.extra_info["instructions"] = len(spec.instructions)


def test_the_first_assembly_of_a_process(benchmark: Any) -> None:
    """What `up` pays: nothing is cached, modules included.

    The time of assembling alone is in the extra information.
    """
    code = (
        "import time\n"
        "from tests.bench.test_bench_asm import assemble_all\n"
        "loaded = time.process_time(); assemble_all()\n"
        "print(time.process_time() - loaded)"
    )
    seconds: list[float] = []

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        seconds.append(float(done.stdout))

    benchmark.pedantic(run, rounds=3)
    benchmark.extra_info["assembling_ms"] = round(1000 * min(seconds), 1)


def long_program(count: int) -> Template[[]]:
    """A program of about *count* instructions, a third of them in a macro, with a block for every ten."""

    def macro(b: Asm, number: int) -> None:
        b.r2 = number
        b.u32[b.r10 - 8] = b.r2
        b.r3 += b.r2

    @sched_cls(name="long")
    def program(b: Asm, ctx: SkBuff) -> None:
        b.r6 = ctx
        b.r3 = 0
        ctx = SkBuff(b.r6)
        for number in range(count // 10):
            macro(b, number)
            b.r2 = ctx.mark
            b.r3 ^= b.r2
            with b.If(b.r2 == number):
                b.r4 = 1
                b.r5 = b.r4
            b.w3 <<= 3
            b.r4 = b.u32[b.r10 - 8]
        b.ret(0)

    return program


LENGTHS = (10_000, 100_000)


@cpu_time
@pytest.mark.parametrize("count", LENGTHS)
def test_long_program(benchmark: Any, count: int) -> None:
    """A program of many instructions, each with its Python line; ``growth`` is 1.0 where time is linear."""
    template = long_program(count)
    spec = benchmark.pedantic(template.build, rounds=3, warmup_rounds=1)
    assert abs(len(spec.instructions) - count) < 10
    if benchmark.stats is not None:
        per_instruction = benchmark.stats.stats.min / len(spec.instructions)
        benchmark.extra_info["instructions_per_s"] = round(1 / per_instruction)
        if count == LENGTHS[-1]:
            shorter = long_program(LENGTHS[0])
            times = []
            for _ in range(3):
                start = time.process_time()
                length = len(shorter.build().instructions)
                times.append((time.process_time() - start) / length)
            benchmark.extra_info["growth"] = round(per_instruction / min(times), 2)


@cpu_time
def test_debug_information_of_a_long_program(benchmark: Any) -> None:
    """BTF and line records of 10 000 instructions."""
    template = long_program(LENGTHS[0])

    def setup() -> tuple[tuple[ProgramSpec], dict[str, Any]]:
        return (template.build(),), {}

    data = benchmark.pedantic(ProgramSpec.line_info, setup=setup, rounds=3)
    assert len(data) > 16 * 9_000


@cpu_time
@pytest.mark.parametrize("count", LENGTHS)
def test_decode(benchmark: Any, count: int) -> None:
    """Bytes to checked instructions."""
    code = long_program(count).build().code()
    decoded = benchmark.pedantic(lambda: list(decode(code)), rounds=3, warmup_rounds=1)
    if benchmark.stats is not None:
        benchmark.extra_info["instructions_per_s"] = round(len(decoded) / benchmark.stats.stats.min)


@cpu_time
def test_encode(benchmark: Any) -> None:
    """Instructions to bytes."""
    spec = long_program(LENGTHS[0]).build()
    code = benchmark(spec.code)
    if benchmark.stats is not None:
        benchmark.extra_info["instructions_per_s"] = round(len(code) / 8 / benchmark.stats.stats.min)


@pytest.mark.parametrize("module", ["pybpfasm", "pybpfasm.asm", "pybpfasm.program", "programs.tc_ingress"])
def test_import(benchmark: Any, module: str, tmp_path: Path) -> None:
    """A fresh interpreter imports a module, which is compiled already, as an installed one is.

    The import alone is in the extra information.
    """
    code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    seconds: list[float] = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)

    def run() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env=environment,
        )
        seconds.append(float(done.stdout))

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    benchmark.extra_info["import_ms"] = round(1000 * min(seconds), 1)
