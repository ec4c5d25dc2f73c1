# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The decorators of all kinds of programs, what they are attached to, and tracing in the emulator."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest

import pybpfasm
import pybpfasm.btf
from pybpfasm import (
    S32,
    U32,
    U64,
    Asm,
    AsmError,
    AttachType,
    Bytes,
    Helper,
    MapSpec,
    MapType,
    RawTracepointArgs,
    SkBuff,
    Struct,
    TcxAction,
    TraceEntry,
    XdpAction,
    kprobe,
    raw_tracepoint,
    sched_cls,
    sk_lookup,
    tracepoint,
    tracing,
    xdp,
)
from pybpfasm.btf import Btf, BtfBuilder
from pybpfasm.core import (
    CoreError,
    core_add_offset,
    core_enum_exists,
    core_enum_value,
    core_exists,
    core_load,
    core_type_id,
)
from pybpfasm.elf import read_object, write_object
from pybpfasm.elf.format import attach_to_of_section
from pybpfasm.emulator import Arguments, Emulator, EmulatorError, EmulatorFault, Skb
from pybpfasm.extern import kfunc
from pybpfasm.instruction import Instruction
from pybpfasm.isa import LDX, MEM, W
from pybpfasm.program import Kind, ProgramSpec

# Sections as in the kernel's Documentation/bpf/libbpf/program_types.rst.
SECTIONS = {
    "cgroup_device": ("", "", "cgroup/dev"),
    "cgroup_skb": ("CGROUP_INET_EGRESS", "", "cgroup_skb/egress"),
    "cgroup_sock": ("CGROUP_INET4_POST_BIND", "", "cgroup/post_bind4"),
    "cgroup_sock_addr": ("CGROUP_INET4_CONNECT", "", "cgroup/connect4"),
    "cgroup_sockopt": ("CGROUP_SETSOCKOPT", "", "cgroup/setsockopt"),
    "cgroup_sysctl": ("", "", "cgroup/sysctl"),
    "kprobe": ("", "tcp_connect", "kprobe/tcp_connect"),
    "lsm": ("LSM_MAC", "file_open", "lsm/file_open"),
    "raw_tracepoint": ("", "sched_switch", "raw_tracepoint/sched_switch"),
    "sched_cls": ("TCX_INGRESS", "", "tc"),
    "sk_lookup": ("", "", "sk_lookup"),
    "sk_msg": ("", "", "sk_msg"),
    "sk_reuseport": ("SK_REUSEPORT_SELECT", "", "sk_reuseport"),
    "sk_skb": ("SK_SKB_STREAM_VERDICT", "", "sk_skb/stream_verdict"),
    "sock_ops": ("", "", "sockops"),
    "socket_filter": ("", "", "socket"),
    "tracepoint": ("", "sched/sched_switch", "tracepoint/sched/sched_switch"),
    "tracing": ("TRACE_FENTRY", "tcp_connect", "fentry/tcp_connect"),
    "xdp": ("", "", "xdp"),
}


def _build(kind: Kind[Struct], attach: str, to: str) -> ProgramSpec:
    @kind(AttachType[attach] if attach else None, attach_to=to or None)
    def empty(b: Asm, ctx: Struct) -> None:
        b.ret(0)

    return empty.build()


def test_every_kind_of_the_package_is_here() -> None:
    names = {name for name in pybpfasm.__all__ if isinstance(getattr(pybpfasm, name), Kind)}
    assert names == set(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_program_goes_to_its_section_and_comes_back(name: str) -> None:
    attach, to, section = SECTIONS[name]
    built = _build(getattr(pybpfasm, name), attach, to)
    found = read_object(write_object([built])).programs["empty"]
    assert (found.section, found.type, found.attach_to) == (section, built.type, to or None)
    assert built.attach_to == (to or None)


@pytest.mark.parametrize(
    ("attach", "section"),
    [
        ("TRACE_FEXIT", "fexit/task"),
        ("MODIFY_RETURN", "fmod_ret/task"),
        ("TRACE_RAW_TP", "tp_btf/task"),
        ("TRACE_ITER", "iter/task"),
    ],
)
def test_a_tracing_program_goes_to_its_section_and_comes_back(attach: str, section: str) -> None:
    @tracing(AttachType[attach], attach_to="task")
    def empty(b: Asm, ctx: RawTracepointArgs) -> None:
        b.ret(0)

    found = read_object(write_object([empty.build()])).programs["empty"]
    assert (found.section, found.attach_type, found.attach_to) == (section, AttachType[attach], "task")


def test_what_a_section_does_not_say() -> None:
    assert attach_to_of_section("?fentry.s/vfs_read") == "vfs_read"
    assert attach_to_of_section("fentry") is None
    assert attach_to_of_section("cgroup/connect4") is None
    assert attach_to_of_section("mine/of_no_kind") is None


def test_what_a_program_is_for_has_to_be_said_where_the_kernel_wants_it() -> None:
    with pytest.raises(AsmError, match='give attach_to="…"') as caught:
        tracing(AttachType.TRACE_FENTRY)
    assert caught.value.location is not None and caught.value.location.path == __file__
    with pytest.raises(AsmError, match="leave attach_to out"):
        sched_cls(attach_to="eth0")
    with pytest.raises(AsmError, match="not 'tcp connect'"):
        kprobe(attach_to="tcp connect")
    tracepoint()  # by the loader


class Task(Struct, kernel_name="task_struct"):
    comm = Bytes(16)
    tgid = S32()


class Seen(Struct):
    tgid = S32()
    exists = U32()


seen = MapSpec("seen", MapType.ARRAY, U32(), Seen, 1)


def _store(b: Asm) -> None:
    b.r2 = seen.value_at(0)
    Seen(b.r2).tgid = b.r1
    core_exists(b.r1, Task, "comm")
    Seen(b.r2).exists = b.r1
    b.ret(0)


@tracing(AttachType.TRACE_RAW_TP, attach_to="sched_process_exec")
def loads(b: Asm, ctx: RawTracepointArgs) -> None:
    b.r1 = ctx.args[1]
    core_load(b.r1, Task(b.r1), "tgid")
    _store(b)


@raw_tracepoint()
def probes(b: Asm, ctx: RawTracepointArgs) -> None:
    b.r3 = ctx.args[1]
    core_add_offset(b.r3, Task, "tgid")
    b.lea(b.r1, b.r10 - 8)
    b.r2 = 4
    b.call(Helper.probe_read_kernel)
    b.r6 = b.r0
    b.r1 = b.u32[b.r10 - 8]
    b.r2 = seen.value_at(0)
    Seen(b.r2).tgid = b.r1
    core_exists(b.r1, Task, "comm")
    Seen(b.r2).exists = b.r1
    b.ret(b.r6)


@pytest.mark.parametrize("program", [loads, probes], ids=lambda one: one.name)
@pytest.mark.parametrize("engine", ["interpret", "translate"])
def test_a_field_behind_an_argument(program: pybpfasm.program.Template[[]], engine: str) -> None:
    emulator = Emulator(engine=engine)
    ran = emulator.load(program.build()).run(Arguments(5, Task.pack(tgid=77)))
    assert ran.r0 == 0
    found = emulator.map(seen)[0]
    assert (found.tgid, found.exists) == (77, 1)


def test_nothing_behind_an_argument() -> None:
    """A pointer of a raw tracepoint is a number: a helper that finds nothing says -EFAULT (14)."""
    program = Emulator().load(probes.build())
    assert program.run(Arguments(5, 0)).r0 == (1 << 64) - 14
    assert program.run(Arguments(5, b"short")).r0 == (1 << 64) - 14
    with pytest.raises(EmulatorFault, match="scalar"):
        Emulator().load(loads.build()).run(Arguments(5, 0))


def test_a_raw_tracepoint_does_not_load_from_its_arguments() -> None:
    @raw_tracepoint()
    def direct(b: Asm, ctx: RawTracepointArgs) -> None:
        b.r1 = ctx.args[0]
        b.r0 = b.u32[b.r1]
        b.exit()

    with pytest.raises(EmulatorFault, match="can't be read by a program"):
        Emulator().load(direct.build()).run(Arguments(bytes(8)))


def test_a_text_of_the_kernel() -> None:
    @raw_tracepoint()
    def named(b: Asm, ctx: RawTracepointArgs) -> None:
        b.r3 = ctx.args[0]
        b.lea(b.r1, b.r10 - 8)
        b.r2 = 8
        b.call(Helper.probe_read_kernel_str)
        b.exit()

    program = Emulator().load(named.build())
    for data, length in ((b"sh\0x", 3), (b"longer than that\0", 8), (b"\0", 1), (b"no end", (1 << 64) - 14)):
        assert program.run(Arguments(data)).r0 == length


def test_more_arguments_than_a_function_has() -> None:
    with pytest.raises(EmulatorError, match="at most 12"):
        Arguments(*range(13))


def test_functions_of_the_kernel_that_the_emulator_has_not() -> None:
    @tracing(AttachType.TRACE_FENTRY, attach_to="vfs_read")
    def calls(b: Asm, ctx: RawTracepointArgs) -> None:
        b.call(kfunc("bpf_rcu_read_lock"))
        b.ret(0)

    with pytest.raises(EmulatorError, match="no model of kernel function bpf_rcu_read_lock"):
        Emulator().load(calls.build()).run(Arguments(0, 0))


@pytest.mark.parametrize(
    ("kind", "verdict", "message"),
    [
        (xdp, TcxAction.DROP, r"fine returns one of XdpAction, where TcxAction.DROP \(2\) means something"),
        (sched_cls, XdpAction.DROP, r"one of TcxAction, where XdpAction.DROP \(1\)"),
        (sk_lookup, XdpAction.PASS, r"one of SkAction, where XdpAction.PASS \(2\)"),
    ],
)
def test_verdicts_of_another_type(kind: Kind[Struct], verdict: IntEnum, message: str) -> None:
    """DROP of the one is PASS of the other, and no verifier knows."""

    @kind()
    def fine(b: Asm, ctx: Struct, value: int) -> None:
        b.ret(value)

    with pytest.raises(AsmError, match=message):
        fine.build(verdict)
    assert fine.build(int(verdict)).slots == 2


def test_core_takes_a_register_and_a_view() -> None:
    class Task(Struct, kernel_name="task_struct"):
        tgid = S32()

    def written(write: Callable[[Asm], object]) -> str:
        @raw_tracepoint()
        def program(b: Asm, ctx: RawTracepointArgs) -> None:
            write(b)
            b.ret(0)

        with pytest.raises(AsmError) as caught:
            program.build()
        assert caught.value.location is not None and caught.value.location.filename.endswith("kinds.py")
        return caught.value.message

    wrong: Any = 2
    assert written(lambda b: core_load(wrong, Task(b.r1), "tgid")) == "a register comes first, b.rN, not 2"
    assert "comes second: Task(b.rN)" in written(lambda b: core_load(b.r2, Task, "tgid"))  # type: ignore[arg-type]
    assert "class comes second, not Task" in written(lambda b: core_exists(b.r2, Task(b.r1)))  # type: ignore[arg-type]


def test_a_misspelt_name_of_the_kernel() -> None:
    with pytest.raises(AttributeError, match=r"Helper has no 'map_lookup'; did you mean 'map_lookup_elem'\?"):
        _ = Helper.map_lookup  # type: ignore[attr-defined]
    assert not hasattr(Helper, "__wrapped__")
    empty = Btf.parse(BtfBuilder().to_bytes())

    @raw_tracepoint()
    def program(b: Asm, ctx: RawTracepointArgs) -> None:
        b.call(kfunc("bpf_rcu_read_lokc"))
        b.ret(0)

    with pytest.raises(CoreError, match=r"bpf_rcu_read_lokc.*; did you mean 'bpf_rcu_read_lock'\?"):
        program.build().resolve(empty)


@sched_cls()
def asks(b: Asm, ctx: SkBuff) -> None:
    """Facts of the kernel as numbers: r0 = an enumerator, and whether two are there in its low bits."""
    core_enum_value(b.r0, "bpf_prog_type", "BPF_PROG_TYPE_XDP", 5)
    b.r0 <<= 2
    core_enum_exists(b.r1, "bpf_prog_type", "BPF_PROG_TYPE_XDP")
    b.r0 += b.r1
    core_enum_exists(b.r1, "bpf_prog_type", "BPF_PROG_TYPE_NONE_SUCH")
    b.r1 <<= 1
    b.r0 += b.r1
    b.exit()


def test_enumerators_and_ids_of_types() -> None:
    """64 bits wide, and 5 in a run without a kernel, where everything exists."""

    class Task(Struct, kernel_name="task_struct"):
        tgid = S32()

    @raw_tracepoint()
    def typed(b: Asm, ctx: RawTracepointArgs) -> None:
        core_type_id(b.r1, Task)
        b.ret(0)

    kernel = BtfBuilder()
    kernel.add_int("int", 4)
    kernel.add_enum64("bpf_prog_type", {"A": 0, "BPF_PROG_TYPE_XDP": 0xFEDCBA9876543210})
    kernel.add_struct("task_struct", 4, [])
    types = Btf.parse(kernel.to_bytes())
    first = asks.build().resolve(types).instructions
    assert (first[0].imm64, first[2].imm, first[4].imm) == (0xFEDCBA9876543210, 1, 0)
    assert typed.build().resolve(types).instructions[0].imm == 3
    assert Emulator().load(asks.build()).run(Skb(bytes(14))).r0 == 5 << 2 | 3
    again = read_object(write_object([asks.build()])).program("asks").resolve(types)
    assert [insn.imm for insn in again.instructions] == [insn.imm for insn in first]
    b = Asm("f")
    with pytest.raises(AsmError, match=r"write b\.r1"):
        core_enum_value(b.w1, "a", "b")
    with pytest.raises(AsmError, match="r10 is the frame pointer"):
        core_enum_value(b.r10, "a", "b")
    with pytest.raises(AsmError, match="'a b' is no C identifier"):
        core_enum_exists(b.r1, "a b", "c")


class Opened(TraceEntry, kernel_name="trace_event_raw_opened"):
    """The record of an event."""

    inode = U64()
    mode = U32()


def test_a_program_gets_the_record_of_its_event() -> None:
    """Its fields are behind the 8 bytes of `TraceEntry`, and BTF has its name."""

    @tracepoint(attach_to="fs/opened", context=Opened)
    def reads(b: Asm, ctx: Opened) -> None:
        b.r0 = ctx.mode
        b.exit()

    built = reads.build()
    assert built.instructions[0] == Instruction(LDX | MEM | W, 0, 1, 16)
    assert built.functions[0].context is Opened
    assert Btf.parse(built.btf()).by_name("trace_event_raw_opened", pybpfasm.btf.Kind.STRUCT) is not None


def test_a_context_of_another_type() -> None:
    wrong: Any
    for wrong, shown in ((SkBuff, "SkBuff"), (7, "7")):
        with pytest.raises(AsmError, match=f"TRACEPOINT programs get a TraceEntry: .* not {shown}\n"):
            tracepoint(attach_to="fs/opened", context=wrong)
