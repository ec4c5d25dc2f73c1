# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What programs may not do, how that is told, and that both engines agree."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pybpfasm.asm import Asm, imm64
from pybpfasm.emulator import Emulator, EmulatorError, EmulatorFault, Skb, Xdp, run_instructions
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.context import SkBuff, XdpMd
from pybpfasm.kernel.enums import Helper, MapType
from pybpfasm.layout import U32, U64
from pybpfasm.maps import MapSpec
from pybpfasm.program import sched_cls, subprogram, xdp

ENGINES = ("interpret", "translate")
PACKET = bytes(range(64))
ARRAY = MapSpec("array", MapType.ARRAY, U32(), U64(), 1)

Body = Callable[[Asm, SkBuff], None]


def run(body: Body, engine: str, packet: bytes = PACKET) -> int:
    template = sched_cls(name="prog", check=False)(body)
    return Emulator().load(template.build(), engine=engine).run(Skb(packet)).value


def fault(body: Body, engine: str) -> EmulatorFault:
    with pytest.raises(EmulatorFault) as caught:
        run(body, engine)
    assert caught.value.location is not None
    assert caught.value.location.filename.endswith("test_machine.py")
    return caught.value


def outside_the_stack(b: Asm, ctx: SkBuff) -> None:
    b.r3 = b.r10
    b.r3 += -520
    b.r2 = b.u64[b.r3]
    b.ret(0)


def above_the_frame(b: Asm, ctx: SkBuff) -> None:
    b.r2 = 1
    b.u32[b.r10] = b.r2
    b.ret(0)


def unset_stack(b: Asm, ctx: SkBuff) -> None:
    b.u32[b.r10 - 8] = 1
    b.r2 = b.u64[b.r10 - 8]
    b.ret(0)


def unaligned_stack(b: Asm, ctx: SkBuff) -> None:
    b.u64[b.r10 - 12] = 1
    b.ret(0)


def unset_register(b: Asm, ctx: SkBuff) -> None:
    b.r2 = b.r3
    b.ret(0)


def unset_after_call(b: Asm, ctx: SkBuff) -> None:
    b.r2 = 1
    b.call(Helper.ktime_get_ns)
    b.r0 += b.r2
    b.exit()


def unset_result(b: Asm, ctx: SkBuff) -> None:
    b.exit()


def null_pointer(b: Asm, ctx: SkBuff) -> None:
    b.r2 = 0
    b.r0 = b.u64[b.r2 + 8]
    b.exit()


def scalar(b: Asm, ctx: SkBuff) -> None:
    b.r2 = imm64(0x123456789ABC)
    b.u8[b.r2] = 1
    b.ret(0)


def behind_the_packet(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.data
    b.r0 = b.u32[b.r2 + 61]
    b.exit()


def before_the_packet(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.data
    b.r0 = b.u8[b.r2 - 1]
    b.exit()


def packet_has_moved(b: Asm, ctx: SkBuff) -> None:
    b.r6 = ctx
    b.r7 = ctx.data
    b.r1 = b.r6
    b.r2 = 64
    b.call(Helper.skb_pull_data)
    b.r0 = b.u8[b.r7]
    b.exit()


def context_field(b: Asm, ctx: SkBuff) -> None:
    b.r0 = ctx.remote_ip4
    b.exit()


def context_size(b: Asm, ctx: SkBuff) -> None:
    b.r0 = b.u16[b.r1 + SkBuff.offsetof("data")]
    b.exit()


def context_read_only(b: Asm, ctx: SkBuff) -> None:
    b.r2 = 1
    ctx.len = b.r2
    b.ret(0)


def value_overrun(b: Asm, ctx: SkBuff) -> None:
    b.r1 = ARRAY.value_at(0)
    b.r0 = b.u32[b.r1 + 6]
    b.exit()


def map_is_opaque(b: Asm, ctx: SkBuff) -> None:
    b.r1 = ARRAY
    b.r0 = b.u32[b.r1]
    b.exit()


def no_map(b: Asm, ctx: SkBuff) -> None:
    b.u32[b.r10 - 4] = 0
    b.r2 = b.r10
    b.r2 += -4
    b.r1 = b.r2
    b.call(Helper.map_lookup_elem)
    b.ret(0)


def key_unset(b: Asm, ctx: SkBuff) -> None:
    b.r1 = ARRAY
    b.r2 = b.r10
    b.r2 += -4
    b.call(Helper.map_lookup_elem)
    b.ret(0)


def atomic_packet(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.data
    b.r3 = 1
    b.u32[b.r2].lock_add(b.r3)
    b.ret(0)


def atomic_unaligned(b: Asm, ctx: SkBuff) -> None:
    b.r1 = ARRAY.value_at(0)
    b.r3 = 1
    b.u32[b.r1 + 2].lock_add(b.r3)
    b.ret(0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (outside_the_stack, "8 bytes at fp-520 is outside the stack frame"),
        (above_the_frame, "a write of 4 bytes at fp+0 is outside the stack frame"),
        (unset_stack, "the stack byte at fp-4 was never written"),
        (unaligned_stack, "a write of 8 bytes at fp-12 is not aligned"),
        (unset_register, "r3 is read and was never set"),
        (unset_after_call, "r2 is read and was never set"),
        (unset_result, "r0 is read and was never set"),
        (null_pointer, "a read of 8 bytes through the scalar 8: is it a NULL pointer?"),
        (scalar, "a write of 1 byte through the scalar 0x123456789abc"),
        (behind_the_packet, "4 bytes at offset 61 is outside the packet, which has 64 bytes"),
        (before_the_packet, "1 byte at offset -1 is outside the packet"),
        (packet_has_moved, "from before the call of skb_pull_data, which may have moved the packet"),
        (context_field, "a program of this type may not read __sk_buff.remote_ip4"),
        (context_size, "__sk_buff.data, bytes 76 to 79, can be read 4 bytes at a time, not 2"),
        (context_read_only, "a program of this type may not write __sk_buff.len"),
        (value_overrun, "4 bytes at offset 6 is outside map array's value, which has 8 bytes"),
        (map_is_opaque, "a read through the address of map array"),
        (no_map, "the first argument is fp-4, not a map"),
        (key_unset, "the stack byte at fp-4 was never written"),
        (atomic_packet, "atomic operations on the packet are not allowed"),
        (atomic_unaligned, "is not aligned"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_broken_rule(body: Body, words: str, engine: str) -> None:
    assert words in str(fault(body, engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fault_names_line_instruction_and_registers(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r6 = 5
        b.r7 = ctx.data
        b.r0 = b.u8[b.r7 + 100]  # here
        b.exit()

    error = fault(body, engine)
    assert error.location is not None and error.location.text.endswith("# here")
    assert error.slot == 2
    assert error.text == "r0 = *(u8 *)(r7 +100)"
    assert error.registers[6] == 5
    assert error.registers[2] is None
    shown = str(error)
    assert "r6=5" in shown and "r7=the packet" in shown and "r10=fp" in shown and "r2=" not in shown
    assert "prog, slot 2: r0 = *(u8 *)(r7 +100)" in shown


@pytest.mark.parametrize("engine", ENGINES)
def test_budget(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        with b.Loop():
            b.r2 = 0

    program = Emulator().load(sched_cls(name="prog")(body).build(), engine=engine)
    with pytest.raises(EmulatorFault, match="did not end within 1000 instructions"):
        program.run(Skb(PACKET), budget=1000)


@pytest.mark.parametrize("engine", ENGINES)
def test_running_past_the_end(engine: str) -> None:
    with pytest.raises(EmulatorFault, match="runs past its end"):
        run_instructions([Instruction(0xB7, 0, imm=1)], engine=engine)  # type: ignore[arg-type]


@subprogram("n")
def recursive(b: Asm) -> None:
    b.call(recursive)
    b.exit()


@subprogram("p")
def keeps_pointer(b: Asm) -> None:
    b.u64[b.r10 - 8] = 1
    b.r0 = b.r10
    b.r0 += -8
    b.exit()


@subprogram("p")
def stores_through(b: Asm) -> None:
    b.r2 = 77
    b.u64[b.r1] = b.r2
    b.r6 = 99
    b.ret(1)


@pytest.mark.parametrize("engine", ENGINES)
def test_call_depth(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r1 = 0
        b.call(recursive)
        b.exit()

    assert "the kernel allows 8 frames" in str(fault(body, engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frame_ends_with_its_function(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r1 = 0
        b.call(keeps_pointer)
        b.r0 = b.u64[b.r0]
        b.exit()

    assert "the stack frame of a function that has returned" in str(fault(body, engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_callee_writes_to_its_callers_frame_and_keeps_its_registers(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r6 = 1
        b.u64[b.r10 - 8] = 0
        b.r1 = b.r10
        b.r1 += -8
        b.call(stores_through)
        b.r0 = b.u64[b.r10 - 8]
        b.r0 += b.r6
        b.exit()

    assert run(body, engine) == 78


@pytest.mark.parametrize("engine", ENGINES)
def test_pointers_survive_a_spill_and_arithmetic(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.data
        b.u64[b.r10 - 8] = b.r2
        b.r3 = ctx.data_end
        b.r4 = b.u64[b.r10 - 8]
        b.r4 += 10
        b.r3 -= b.r4
        b.r0 = b.u8[b.r4 + 1]
        b.r0 <<= 8
        b.r0 |= b.r3
        b.exit()

    assert run(body, engine) == 11 << 8 | 54


@pytest.mark.parametrize("engine", ENGINES)
def test_writes_reach_context_and_packet(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.data
        b.r3 = 0xAB
        b.u8[b.r2 + 3] = b.r3
        b.r4 = ctx.mark
        b.r4 += 1
        ctx.mark = b.r4
        b.r5 = ctx.len
        b.ret(b.r5)

    program = Emulator().load(sched_cls(name="prog")(body).build(), engine=engine)
    result = program.run(Skb(PACKET, mark=7))
    assert result.packet == PACKET[:3] + b"\xab" + PACKET[4:]
    assert result.context is not None and result.context["mark"] == 8
    assert result.value == 64


@pytest.mark.parametrize("engine", ENGINES)
def test_big_endian(engine: str) -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.data
        b.r0 = b.u32[b.r2 + 1]
        b.exit()

    spec = sched_cls(name="prog")(body).build_for("big")
    assert Emulator(byteorder="big").load(spec, engine=engine).run(Skb(PACKET)).value == 0x01020304
    with pytest.raises(EmulatorError, match="big-endian"):
        Emulator().load(spec)


def test_a_context_goes_with_its_program_type() -> None:
    def body(b: Asm, ctx: XdpMd) -> None:
        b.ret(2)

    program = Emulator().load(xdp(name="prog")(body).build())
    assert program.run(Xdp(PACKET)).value == 2
    with pytest.raises(EmulatorError, match="prog is a XDP program"):
        program.run(Skb(PACKET))


def test_a_helper_without_model_and_one_of_the_users() -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.call(Helper.get_current_task)
        b.exit()

    emulator = Emulator()
    spec = sched_cls(name="prog")(body).build()
    program = emulator.load(spec, engine="interpret")
    with pytest.raises(EmulatorError, match=r"no model of get_current_task, .*Helper.get_current_task"):
        program.run(Skb(PACKET))

    @emulator.model(Helper.get_current_task)
    def current(run: object) -> int:
        return 42

    assert program.run(Skb(PACKET)).value == 42
    with pytest.raises(EmulatorError, match="at most five"):

        @emulator.model(Helper.get_current_comm)
        def wrong(run: object, *more: int) -> int:
            return 0


def test_the_trace_tells_every_step() -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.len  # first
        b.r2 += 1  # second
        b.ret(b.r2)

    result = Emulator().load(sched_cls(name="prog")(body).build()).run(Skb(PACKET), trace=True)
    assert [step.slot for step in result.trace] == [0, 1, 2, 3]
    assert result.trace[1].changed == {2: 65}
    text = result.lines()
    assert text.splitlines()[0].startswith("; b.r2 = ctx.len  # first @ ")
    assert "r2 += 1" in text and "r2=65" in text


def test_without_trace_nothing_is_kept() -> None:
    def body(b: Asm, ctx: SkBuff) -> None:
        b.ret(0)

    assert Emulator().load(sched_cls(name="prog")(body).build()).run(Skb(PACKET)).trace == ()
