# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The two engines do the same, and the fast one is chosen when it pays."""

from __future__ import annotations

import pytest

from pybpfasm import isa
from pybpfasm.asm import Asm
from pybpfasm.emulator import Emulator, EmulatorFault, Skb, run_instructions, translate
from pybpfasm.emulator.conformance import bare
from pybpfasm.emulator.interpret import function
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Imm64
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, MapType
from pybpfasm.layout import U32, U64
from pybpfasm.maps import MapSpec
from pybpfasm.program import sched_cls
from pybpfasm.text import assemble
from tests.unit.emulator.random_programs import all_rows, contents, generate, prepare


@pytest.mark.parametrize("chunk", range(4))
def test_random_programs(chunk: int) -> None:
    for seed in range(chunk * 15, chunk * 15 + 15):
        program = generate(seed)
        outcomes = []
        for engine in ("interpret", "translate"):
            emulator = Emulator(cpus=2)
            loaded = prepare(program, emulator, engine)
            runs = [loaded.run(Skb(packet, mark=program.mark)) for packet in program.packets]
            outcomes.append(
                (
                    [(run.r0, run.packet, run.context and run.context["mark"]) for run in runs],
                    contents(emulator),
                )
            )
        assert outcomes[0] == outcomes[1], seed


@pytest.mark.parametrize("part", [2, 7, 40])
def test_a_function_in_parts_does_the_same(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long functions become several Python functions; here short ones do."""
    several = 0
    for seed in range(200, 225):
        program = generate(seed)
        outcomes = []
        for engine, size in (("interpret", 1024), ("translate", part)):
            monkeypatch.setattr(translate, "PART", size)
            emulator = Emulator(cpus=2)
            loaded = prepare(program, emulator, engine)
            runs = [loaded.run(Skb(packet, mark=program.mark)) for packet in program.packets]
            outcomes.append(([(run.r0, run.packet) for run in runs], contents(emulator)))
            several += len(loaded._lines) > len(loaded.entries)
        assert outcomes[0] == outcomes[1], seed
    assert several == 25


def test_no_python_function_grows_with_the_program() -> None:
    """Python compiles a long function more slowly for each of its lines than a short one."""
    body = [Instruction(0xB7, 2, imm=1)]
    for number in range(3000):
        body += [Instruction(0x07, 2, imm=7), Instruction(0x55, 2, offset=1, imm=number % 9)]
        body += [Instruction(0xA7, 2, imm=number)] * 2
    straight = [Instruction(0xB7, 2, imm=1), *[Instruction(0x07, 2, imm=3)] * 9000]
    for code in (body, straight):
        program = Emulator(engine="translate").load(bare([*code, Instruction(0xBF, 0, 2), Instruction(0x95)]))
        reference = Emulator(engine="interpret").load(program.spec)
        assert program.run(Skb(bytes(64))).r0 == reference.run(Skb(bytes(64))).r0
        held = [len(set(slots)) for slots in program._lines.values()]
        assert max(held) <= translate.PART + 1 and len(held) >= len(code) // translate.PART


@pytest.mark.parametrize("part", [1, 3, 1024])
def test_a_fault_in_a_part_names_its_instruction(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "PART", part)
    code = assemble(
        "r6 = 5\nr7 = 6\nr8 = r10\nr8 += -520\nif r6 > 3 goto pc+1\nr7 = 1\nr2 = *(u64 *)(r8 +0)\nexit"
    )
    with pytest.raises(EmulatorFault, match="outside the stack frame") as caught:
        Emulator(engine="translate").load(bare(code)).run(Skb(bytes(64)))
    assert caught.value.slot == 6 and caught.value.registers[6:8] == (5, 6)


def test_the_generator_reaches_every_instruction() -> None:
    seen = {name for seed in range(250) for name in generate(seed).forms}
    assert [name for name in all_rows() if name not in seen] == []


def test_a_seed_always_gives_the_same_program() -> None:
    first, second = generate(7), generate(7)
    assert first.spec.code() == second.spec.code() and first.packets == second.packets


@pytest.mark.parametrize("engine", ["interpret", "translate"])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("r0 = 7\nr0 s/= -2\nexit", 2**64 - 3),
        ("r0 = -7\nr0 s%= 3\nexit", 2**64 - 1),
        ("r0 = 5\nr1 = 0\nr0 /= r1\nexit", 0),
        ("r0 = -1\nr1 = 0\nw0 %= w1\nexit", 0xFFFFFFFF),
        ("r0 = -1\nr1 = 0\nr0 s/= r1\nexit", 0),
        ("r0 = 0x8000000000000000 ll\nr0 s/= -1\nexit", 1 << 63),
        ("r1 = 0x80\nr0 = (s8)r1\nexit", 2**64 - 128),
        ("r1 = 0x80\nw0 = (s8)w1\nexit", 2**32 - 128),
        ("r0 = 1\nr1 = 65\nr0 <<= r1\nexit", 2),
        ("r0 = -8\nw0 s>>= 1\nexit", 2**32 - 4),
        ("r0 = 0x1122334455667788 ll\nr0 = be16 r0\nexit", 0x8877),
        ("r0 = 0x1122334455667788 ll\nr0 = bswap32 r0\nexit", 0x88776655),
    ],
)
def test_arithmetic(text: str, value: int, engine: str) -> None:
    assert run_instructions(assemble(text), engine=engine)[0] == value  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["interpret", "translate"])
def test_may_goto_leaves_a_loop_in_the_end(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pybpfasm.emulator.interpret.MAX_LOOPS", 100)
    monkeypatch.setattr("pybpfasm.emulator.translate.MAX_LOOPS", 100)
    code = assemble("r0 = 0\nmay_goto +2\nr0 += 1\ngoto -3\nexit")
    assert run_instructions(code, engine=engine)[0] == 100  # type: ignore[arg-type]


def counting(b: Asm, ctx: SkBuff) -> None:
    b.r6 = 0
    with b.Loop() as loop:
        b.r6 += 1
        b.If(b.r6 == 10).goto(loop.end)
    b.ret(b.r6)


def test_instructions_are_counted_alike() -> None:
    spec = sched_cls(name="prog")(counting).build()
    counts = {
        engine: Emulator().load(spec, engine=engine).run(Skb(bytes(64))).instructions
        for engine in ("interpret", "translate")
    }
    assert counts == {"interpret": 32, "translate": 32}


CONSTANTS = MapSpec(
    ".rodata", MapType.ARRAY, U32(), U64(), 1, flags=BPF_F_RDONLY_PROG, contents=(5).to_bytes(8, "little")
)
PROGRAMS = MapSpec("programs", MapType.PROG_ARRAY, U32(), U32(), 1, initial=((0, "next"),))


def _loaded(register: int, kind: Imm64, which: MapSpec) -> Instruction:
    return Instruction(isa.LD_IMM64, register, kind, reference=which)


def test_instructions_are_counted_alike_where_a_block_is_left() -> None:
    """A tail call and a load outside the packet go on elsewhere than with the instruction behind them."""
    ending = assemble("r0 = 1\nr0 += 1\nexit")
    left = {
        "tail call": (
            [*assemble("r3 = 0"), _loaded(2, Imm64.MAP_FD, PROGRAMS), *assemble("call bpf_tail_call")],
            5,
        ),
        "load": ([*assemble("r6 = r1"), Instruction(isa.LD | isa.ABS, imm=1000)], 2),
    }
    for code, count in left.values():
        spec = bare([*code, *ending])
        for engine in ("interpret", "translate"):
            emulator = Emulator(engine=engine)
            program = emulator.load(spec)
            emulator.load(bare(assemble("r0 = 7\nexit"), "next"))
            assert program.run(Skb(bytes(64))).instructions == count, engine


@pytest.mark.parametrize("engine", ["interpret", "translate"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            [
                _loaded(1, Imm64.MAP_VALUE, CONSTANTS),
                *assemble("r0 = 4\nr2 = 7"),
                Instruction(0xDB, 1, 2, imm=0xF1),
            ],
            "read-only",
        ),
        (assemble("r0 = 8\nr2 = 3\n*(u32 *)(r2 +4) = 256"), "a write of 4 bytes through the scalar 7"),
        ([Instruction(0xBF, 2, 1, 1, 1 << 16)], "the emulator has no address spaces"),
        (
            assemble("r1 = 0\nr2 = 0\nlock *(u64 *)(r1 +0) += r2"),
            "an atomic access of 8 bytes through the scalar 0",
        ),
    ],
    ids=["compare and exchange", "store", "cast", "atomic"],
)
def test_the_engines_refuse_alike(code: list[Instruction], reason: str, engine: str) -> None:
    with pytest.raises(EmulatorFault, match=reason):
        Emulator(engine=engine).load(bare([*code, *assemble("r0 = 0\nexit")])).run(Skb(bytes(64)))


@pytest.mark.parametrize(
    "text",
    [
        "r0 = *(u32 *)(r1 +8)",
        "r0 = r1",
        "r1 += 4",
        "if r1 == 0 goto +0",
        "*(u64 *)(r10 -8) = r1",
        "r0 = 1\ncall bpf_get_hash_recalc",
        "r6 = 3\nr6 -= 1\nif r6 != 0 goto -2\nr0 = r1",
    ],
)
@pytest.mark.parametrize("engine", ["interpret", "translate"])
def test_without_a_context_r1_is_not_set(text: str, engine: str) -> None:
    program = Emulator(engine=engine).load(bare(assemble(f"{text}\nr0 = 0\nexit")))
    with pytest.raises(EmulatorFault, match="r1 is read and was never set"):
        program.run()


def test_loops_are_translated_at_once_and_others_when_they_are_warm() -> None:
    def straight(b: Asm, ctx: SkBuff) -> None:
        b.ret(3)

    emulator = Emulator()
    loop = emulator.load(sched_cls(name="loop")(counting).build())
    loop.run(Skb(bytes(64)))
    assert loop.engine(0) is not function(0)
    plain = emulator.load(sched_cls(name="plain")(straight).build())
    chosen = []
    for _ in range(6):
        plain.run(Skb(bytes(64)))
        chosen.append(plain.engine(0) is not function(0))
    assert chosen == [False] * 4 + [True] * 2
    # A traced run is interpreted, the next one is fast again.
    assert len(plain.run(Skb(bytes(64)), trace=True).trace) == 2
    assert plain.engine(0) is function(0)
    plain.run(Skb(bytes(64)))
    assert plain.engine(0) is not function(0)


def test_the_legacy_loads_end_a_program_outside_the_packet() -> None:
    code = [Instruction(0xBF, 6, 1), Instruction(0x28, imm=12), Instruction(0x95)]
    for imm, value in ((12, 0x0800), (63, 0)):
        code[1] = Instruction(0x28, imm=imm)
        for engine in ("interpret", "translate"):
            packet = bytes(12) + b"\x08\x00" + bytes(50)
            assert Emulator().load(bare(code), engine=engine).run(Skb(packet)).value == value
