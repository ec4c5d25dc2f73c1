# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How fast the emulator is: instructions a second in inner loops, packets, and growth with length."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import pytest

from programs.packet import Interface
from programs.settings import Ports, Settings
from programs.tc_ingress import tc_ingress
from pybpfasm.asm import Asm
from pybpfasm.emulator import Emulator, Program, Skb
from pybpfasm.emulator.host import Segment
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import TcxAction
from pybpfasm.net import TCP_ACK, TCP_SYN
from pybpfasm.program import sched_cls

Benchmark = Callable[..., Any]

ROUNDS = 50_000
TARGET = 2_000_000  # instructions a second


def arithmetic(b: Asm, ctx: SkBuff) -> None:
    b.r6 = 1
    b.r7 = ROUNDS
    with b.Loop() as loop:
        b.r6 *= 0x5BD1E995
        b.r6 ^= b.r7
        b.r8 = b.r6
        b.r8 >>= 13
        b.w6 += b.w8
        b.r7 -= 1
        b.If(b.r7 == 0).goto(loop.end)
    b.ret(b.r6)


def memory(b: Asm, ctx: SkBuff) -> None:
    """Sum the packet's bytes, over and over, with a branch for odd ones."""
    b.r9 = 0
    b.r7 = ROUNDS // 64
    b.r6 = ctx
    with b.Loop() as outer:
        b.r2 = SkBuff(b.r6).data
        b.r3 = SkBuff(b.r6).data_end
        with b.Loop() as inner:
            b.If(b.r2 >= b.r3).goto(inner.end)
            b.r4 = b.u8[b.r2]
            with b.If(b.r4 & 1):
                b.r4 <<= 1
            b.r9 += b.r4
            b.u64[b.r10 - 8] = b.r9
            b.r9 = b.u64[b.r10 - 8]
            b.r2 += 1
        b.r7 -= 1
        b.If(b.r7 == 0).goto(outer.end)
    b.ret(b.r9)


def load(body: Callable[[Asm, SkBuff], None]) -> Program:
    return Emulator(engine="translate").load(sched_cls(name="bench")(body).build())


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("body", [arithmetic, memory], ids=lambda body: body.__name__)
def test_inner_loop(benchmark: Benchmark, body: Callable[[Asm, SkBuff], None]) -> None:
    program = load(body)
    packet = bytes(range(64))
    program.run(Skb(packet))
    result = benchmark(lambda: program.run(Skb(packet)))
    stats = getattr(benchmark, "stats", None)
    if stats is not None:
        speed = result.instructions / stats.stats.min
        benchmark.extra_info["instructions_per_second"] = round(speed)  # type: ignore[attr-defined]
        assert speed >= TARGET


@pytest.mark.benchmark(timer=time.process_time)
def test_packets_of_a_flow(benchmark: Benchmark) -> None:
    settings = Settings(Ports.parse("8000"))
    program = Emulator(engine="translate").load(tc_ingress.build(settings, Interface()))
    ends = (bytes([10, 0, 0, 1]), 5000, bytes([10, 0, 0, 2]), 8000)
    assert program.run(Skb(Segment(*ends, TCP_SYN).packet())).action == TcxAction.NEXT
    packet = Segment(*ends, TCP_ACK, 1, 1, bytes(1000)).packet()
    result = benchmark(lambda: program.run(Skb(packet)))
    assert result.packet != packet


def best(action: Callable[[], object]) -> float:
    """The least of seven times of the processor, without the garbage collector, which looks at everything."""
    times = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(7):
            start = time.process_time()
            action()
            times.append(time.process_time() - start)
    finally:
        gc.enable()
    return min(times)


def straight(b: Asm, count: int) -> None:
    b.r2 = 1
    for _ in range(count // 4):
        b.r2 += 7
        b.r2 ^= 0x55
        b.r2 <<= 1
        b.w2 += 3


def branchy(b: Asm, count: int) -> None:
    b.r2 = 1
    for number in range(count // 4):
        b.r2 += 7
        with b.If(b.r2 != 1 << number % 8):
            b.r2 ^= 0x55
        b.w2 += 3


@pytest.mark.parametrize("what", ["translate", "run"])
@pytest.mark.parametrize("shape", [straight, branchy], ids=lambda shape: shape.__name__)
def test_time_grows_with_length(shape: Callable[[Asm, int], None], what: str) -> None:
    """What twenty times the instructions take, as a multiple of the time, is printed (-s); 20 is the best."""

    def of(count: int) -> Program:
        def body(b: Asm, ctx: SkBuff) -> None:
            shape(b, count)
            b.ret(b.r2)

        return Emulator(engine="translate").load(sched_cls(name="long")(body).build())

    short, long = of(4_000), of(80_000)
    if what == "run":
        for program in (short, long):
            program.run(Skb(bytes(64)))
        ratio = best(lambda: long.run(Skb(bytes(64)))) / best(lambda: short.run(Skb(bytes(64))))
    else:
        from pybpfasm.emulator import translate

        def again(program: Program) -> Callable[[], object]:
            def action() -> object:
                translate._CACHE.clear()
                return program.translated()

            return action

        ratio = best(again(long)) / best(again(short))
    print(f"{shape.__name__}, {what}: {ratio:.1f} times the time for 20 times the instructions")
