# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How fast instructions are decoded, encoded, printed and read.

The extra information has instructions per second of the process's own time. Nothing is asserted about time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from pybpfasm.instruction import decode, encode
from pybpfasm.listing import text
from pybpfasm.text import assemble

# What programs are made of: moves, loads, stores, arithmetic, jumps, a call, a map, an atomic.
TEXT = """
r6 = r1
r2 = *(u32 *)(r6 +8)
*(u64 *)(r10 -8) = r2
r2 += 14
w3 &= 255
if r2 > 0x5 goto pc+1
r1 = map[id:3]
call bpf_map_lookup_elem#1
if r0 == 0x0 goto pc+2
r1 = atomic64_fetch_add((u64 *)(r0 +0), r1)
r3 <<= 8
r0 = 0
exit
"""
INSTRUCTIONS = assemble(TEXT) * 8000
CODE = encode(INSTRUCTIONS)


def rate(work: Callable[[], object], benchmark: Any, count: int = len(INSTRUCTIONS)) -> None:
    """Note instructions a second, in the best of the rounds."""
    rounds = []

    def timed() -> None:
        start = time.process_time()
        work()
        rounds.append(time.process_time() - start)

    benchmark.pedantic(timed, rounds=5, warmup_rounds=1)
    benchmark.extra_info["instructions_per_second"] = round(count / min(rounds))


def test_decode(benchmark: Any) -> None:
    rate(lambda: decode(CODE), benchmark)


def test_encode(benchmark: Any) -> None:
    rate(lambda: encode(INSTRUCTIONS), benchmark)


def test_text(benchmark: Any) -> None:
    rate(lambda: [text(insn) for insn in INSTRUCTIONS], benchmark)


def test_assemble_text(benchmark: Any) -> None:
    words = "\n".join(text(insn) for insn in INSTRUCTIONS[:26000])
    rate(lambda: assemble(words), benchmark, 26000)


@pytest.mark.parametrize("count", [10_000, 100_000])
def test_decode_is_linear(benchmark: Any, count: int) -> None:
    data = encode(assemble("r0 = 0")) * count
    rate(lambda: decode(data), benchmark, count)
