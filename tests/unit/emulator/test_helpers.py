# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers without a kernel: what a test sees of them, and what programs may not do with them.

``test_emulator_helpers.py`` and ``test_emulator_sockets.py`` in ``tests/kernel`` compare with the kernel.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pybpfasm import isa
from pybpfasm.emulator import (
    Emulator,
    EmulatorError,
    EmulatorFault,
    MapError,
    Skb,
    SkMsg,
    SockAddrContext,
    Socket,
    SockOpsContext,
    SockOptContext,
    Task,
)
from pybpfasm.emulator.maps import PerfEventArray, UserRingBuf
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Imm64
from pybpfasm.kernel.defines import SO_MARK, SOL_SOCKET
from pybpfasm.kernel.enums import AttachType, MapType, ProgType, SockOp
from pybpfasm.layout import U32
from pybpfasm.maps import MapSpec
from pybpfasm.program import Function, ProgramSpec
from pybpfasm.text import assemble

ROOT = Path(__file__).resolve().parents[3]
ENGINES = ("interpret", "translate")
VALUE = MapSpec("value", MapType.ARRAY, U32(), 64, 1)
RING = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
EVENTS = MapSpec("events", MapType.PERF_EVENT_ARRAY, U32(), U32(), 2)
INBOX = MapSpec("inbox", MapType.USER_RINGBUF, None, None, 4096)
CALLBACK = 31420  # a number that stands for the callback's address
PACKET = bytes(12) + b"\x08\x00" + bytes(range(50))


def spec(
    *parts: str | MapSpec,
    kind: ProgType = ProgType.SCHED_CLS,
    attach: AttachType | None = None,
    callback: str = "",
) -> ProgramSpec:
    """Assembly with maps in between, each of which goes into the register that the text before it names.

    ``rN =`` at the end of a text, and a map: its address, or that of its value for map ``value``.
    """
    code: list[Instruction] = []
    slots: list[int] = []
    for part in parts:
        if isinstance(part, str):
            code += assemble(part + "0" if part.rstrip().endswith("=") else part)
        else:
            kind64 = Imm64.MAP_VALUE if part is VALUE else Imm64.MAP_FD
            code[-1] = Instruction(isa.LD_IMM64, code[-1].dst, kind64, reference=part)
    functions = [Function("main", 0, (), None, {})]
    if callback:
        for at, insn in enumerate(code):
            if insn.opcode == isa.ALU64 | isa.Alu.MOV and insn.imm == CALLBACK:
                code[at] = Instruction(isa.LD_IMM64, insn.dst, Imm64.FUNC)
                slots.append(at)
        start = sum(insn.slots for insn in code)
        for at in slots:
            code[at].imm = start - sum(insn.slots for insn in code[:at]) - 1
        functions.append(Function("callback", start, ("a", "b"), None, {}))
        code += assemble(callback)
    return ProgramSpec("prog", kind, attach, "GPL", tuple(code), tuple(functions), "little")


MAKE = (
    "r1 =",
    VALUE,
    "r2 = 32\nr3 = 0\nr4 = r10\nr4 += -16\ncall bpf_dynptr_from_mem",
)
WRITE = "*(u64 *)(r10 -24) = 0x11\nr1 = r10\nr1 += -16\nr2 = 8\nr3 = r10\nr3 += -24\nr4 = 8\nr5 = 0\n"
WRITE += "call bpf_dynptr_write"
RESERVE = (
    "r1 =",
    RING,
    "r2 = 16\nr3 = 0\nr4 = r10\nr4 += -16\ncall bpf_ringbuf_reserve_dynptr",
)
SUBMIT = "r1 = r10\nr1 += -16\nr2 = 0\ncall bpf_ringbuf_submit_dynptr"
DATA = "r1 = r10\nr1 += -16\nr2 = 0\nr3 = 8\ncall bpf_dynptr_data\nif r0 != 0 goto pc+1\nexit"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_dynptr_reaches_the_value(engine: str) -> None:
    emulator = Emulator(engine=engine)
    program = emulator.load(spec(*MAKE, WRITE, DATA, "r1 = 7\n*(u8 *)(r0 +1) = r1\nr0 = 0\nexit"))
    assert program.run(Skb(PACKET)).value == 0
    assert emulator.map(VALUE)[0][:16] == b"\0\x07" + bytes(6) + b"\x11" + bytes(7)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_record_by_dynptr(engine: str) -> None:
    emulator = Emulator(engine=engine)
    emulator.load(spec(*RESERVE, WRITE, SUBMIT, "r0 = 0\nexit")).run(Skb(PACKET))
    assert emulator.events("ring") == [bytes(8) + b"\x11" + bytes(7)]


FAULTS: dict[str, tuple[Sequence[str | MapSpec], str]] = {
    "none there": ((WRITE, "exit"), "no dynptr at fp-16"),
    "overwritten": ((*MAKE, "*(u64 *)(r10 -8) = 1", WRITE, "exit"), "no dynptr at fp-16"),
    "read as memory": ((*MAKE, "r0 = *(u64 *)(r10 -16)\nexit"), "never written"),
    "read as the memory that it was": (
        ("*(u64 *)(r10 -16) = 0", *MAKE, "r0 = *(u64 *)(r10 -16)\nexit"),
        "never written",
    ),
    "overwritten once more": (
        ("*(u64 *)(r10 -8) = 1", *MAKE, "*(u64 *)(r10 -8) = 1", WRITE, "exit"),
        "no dynptr at fp-16",
    ),
    "of the stack": (
        (
            "*(u64 *)(r10 -32) = 0\nr1 = r10\nr1 += -32\nr2 = 8\nr3 = 0\nr4 = r10\nr4 += -16\n"
            "call bpf_dynptr_from_mem\nexit",
        ),
        "not the stack",
    ),
    "outside the window": ((*MAKE, DATA, "r1 = *(u64 *)(r0 +8)\nexit"), "outside map value's value"),
    "after submit": ((*RESERVE, SUBMIT, WRITE, "exit"), "no dynptr at fp-16"),
    "a window after submit": (
        (
            *RESERVE,
            DATA.replace("\nif r0 != 0 goto pc+1\nexit", ""),
            "r6 = r0",
            SUBMIT,
            "r0 = *(u8 *)(r6 +0)\nexit",
        ),
        "submitted or discarded",
    ),
    "made anew": ((*RESERVE, *RESERVE, "exit"), "submit or discard the record first"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", FAULTS)
def test_what_programs_may_not_do_with_dynptrs(which: str, engine: str) -> None:
    parts, reason = FAULTS[which]
    with pytest.raises(EmulatorFault, match=reason):
        Emulator(engine=engine).load(spec(*parts)).run(Skb(PACKET))


def test_a_record_by_dynptr_is_to_be_finished() -> None:
    with pytest.raises(EmulatorError, match=r"slot \d+: prog ends and still holds a dynptr of a ring"):
        Emulator().load(spec(*RESERVE, "r0 = 0\nexit")).run(Skb(PACKET))


@pytest.mark.parametrize("engine", ENGINES)
def test_records_from_user_space(engine: str) -> None:
    """The callback gets each as a dynptr, adds up the first bytes, and ends it at 3."""
    program = spec(
        "r1 =",
        INBOX,
        f"r2 = {CALLBACK}\nr3 = r10\nr3 += -8\nr4 = 0\n*(u64 *)(r10 -8) = 0\ncall bpf_user_ringbuf_drain\n"
        "r0 <<= 8\nr1 = *(u64 *)(r10 -8)\nr0 |= r1\nexit",
        callback="r6 = r2\nr3 = r1\nr1 = r10\nr1 += -8\n*(u64 *)(r10 -8) = 0\nr2 = 1\nr4 = 0\nr5 = 0\n"
        "call bpf_dynptr_read\nr1 = *(u64 *)(r10 -8)\nr2 = *(u64 *)(r6 +0)\nr2 += r1\n*(u64 *)(r6 +0) = r2\n"
        "r0 = 0\nif r1 != 3 goto pc+1\nr0 = 1\nexit",
    )
    emulator = Emulator(engine=engine)
    inbox = emulator.map(INBOX)
    assert isinstance(inbox, UserRingBuf)
    for number in (1, 2, 3, 4):
        inbox.put_record(bytes([number]))
    loaded = emulator.load(program)
    assert [loaded.run(Skb(PACKET)).value for _ in range(3)] == [3 << 8 | 6, 1 << 8 | 4, 0]
    with pytest.raises(MapError, match="ENOSPC"):
        inbox.put_record(bytes(4096))


@pytest.mark.parametrize("engine", ENGINES)
def test_perf_events_with_the_packets_first_bytes(engine: str) -> None:
    program = spec(
        "r2 =",
        EVENTS,
        "r3 = 0x4ffffffff ll\n*(u64 *)(r10 -8) = 0x55\nr4 = r10\nr4 += -8\nr5 = 8\n"
        "call bpf_perf_event_output\nexit",
    )
    emulator = Emulator(engine=engine, cpus=2)
    loaded = emulator.load(program)
    assert loaded.run(Skb(b"abcdefgh" + PACKET)).value == 0
    assert emulator.events("events") == [b"\x55" + bytes(7) + b"abcd"]
    events = emulator.map(EVENTS)
    assert isinstance(events, PerfEventArray)
    events.readers.discard(0)
    assert loaded.run(Skb(PACKET)).action == -2
    emulator.cpu = 1
    assert loaded.run(Skb(PACKET)).action == 0


def test_the_task_is_an_input() -> None:
    emulator = Emulator()
    emulator.task = Task(tgid=5, pid=6, uid=7, gid=8, comm="named", cgroups=(1, 22, 33))
    calls = {
        "call bpf_get_current_pid_tgid": 5 << 32 | 6,
        "call bpf_get_current_uid_gid": 8 << 32 | 7,
        "call bpf_get_current_cgroup_id": 33,
        "r1 = 1\ncall bpf_get_current_ancestor_cgroup_id": 22,
        "r1 = 3\ncall bpf_get_current_ancestor_cgroup_id": 0,
        "r1 = r10\nr1 += -16\nr2 = 16\ncall bpf_get_current_comm\nr0 = *(u64 *)(r10 -16)": int.from_bytes(
            b"named\0\0\0", "little"
        ),
    }
    for text, value in calls.items():
        assert emulator.load(spec(text + "\nexit")).run(Skb(PACKET)).r0 == value, text


@pytest.mark.parametrize("engine", ENGINES)
def test_room_for_an_outer_header(engine: str) -> None:
    result = (
        Emulator(engine=engine)
        .load(spec("r2 = 40\nr3 = 1\nr4 = 4\nr6 = r1\ncall bpf_skb_adjust_room\nr0 = *(u32 *)(r6 +16)\nexit"))
        .run(Skb(PACKET))
    )
    assert result.packet == PACKET[:14] + bytes(40) + PACKET[14:]
    assert result.value == 0xDD86  # ETH_P_IPV6 in network order: the outer header's
    gone = (
        "r6 = *(u32 *)(r1 +76)\nr2 = 4\nr3 = 1\nr4 = 0\ncall bpf_skb_adjust_room\nr0 = *(u8 *)(r6 +0)\nexit"
    )
    with pytest.raises(EmulatorFault, match="before the call of skb_adjust_room"):
        Emulator(engine=engine).load(spec(gone)).run(Skb(PACKET))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_message_grows_and_shrinks(engine: str) -> None:
    program = spec(
        "r6 = r1\nr2 = 0\nr3 = 2\nr4 = 0\ncall bpf_msg_push_data",
        "r2 = *(u64 *)(r6 +0)\nr3 = *(u64 *)(r6 +8)\nr4 = r2\nr4 += 2\nif r4 > r3 goto pc+2",
        "*(u8 *)(r2 +0) = 65\n*(u8 *)(r2 +1) = 66",
        "r1 = r6\nr2 = 4\nr3 = 3\nr4 = 0\ncall bpf_msg_pop_data\nr0 = 1\nexit",
        kind=ProgType.SK_MSG,
    )
    result = Emulator(engine=engine).load(program).run(SkMsg(Socket(), b"0123456789"))
    assert result.packet == b"AB0156789"


def _option(call: str, ending: str = "exit") -> str:
    return (
        f"r2 = {SOL_SOCKET}\nr3 = {SO_MARK}\n*(u64 *)(r10 -8) = 77\nr4 = r10\nr4 += -8\nr5 = 4\n"
        f"call bpf_{call}sockopt\n{ending}"
    )


def test_options_of_a_socket() -> None:
    emulator = Emulator()
    socket = Socket()
    program = emulator.load(spec(_option("set"), kind=ProgType.SOCK_OPS))
    assert program.run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, socket)).value == 0
    assert socket.mark == 77
    socket.mark = 5
    program = emulator.load(spec(_option("get", "r0 = *(u32 *)(r10 -8)\nexit"), kind=ProgType.SOCK_OPS))
    assert program.run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, socket)).value == 5


def test_what_a_system_call_returns() -> None:
    emulator = Emulator()
    body = "r1 = -13\ncall bpf_set_retval\ncall bpf_get_retval\nexit"
    asked = SockOptContext(Socket(), bytes(4), retval=-92)
    kind, attach = ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_GETSOCKOPT
    assert emulator.load(spec(body, kind=kind, attach=attach)).run(asked).action == -13
    assert asked["retval"] == -13
    connecting = SockAddrContext(Socket(), bytes([10, 0, 0, 1]), 80)
    kind, attach = ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT
    assert emulator.load(spec(body, kind=kind, attach=attach)).run(connecting).action == -13
    assert connecting.retval == -13


def test_bind_before_connect() -> None:
    emulator = Emulator()
    other = emulator.sockets.add(Socket(src=bytes([10, 0, 0, 9]), src_port=4000))
    kind, attach = ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT
    # struct sockaddr_in: AF_INET, a port in network order, 10.0.0.9
    body = (
        "*(u64 *)(r10 -8) = 0\n*(u16 *)(r10 -16) = 2\n*(u16 *)(r10 -14) = {port}\n"
        "*(u32 *)(r10 -12) = 0x0900000a\nr2 = r10\nr2 += -16\nr3 = {size}\ncall bpf_bind\nexit"
    )
    outcomes = []
    for port, size in ((0xA10F, 16), (0xA00F, 16), (0xA10F, 8)):  # 4001, 4000 in network order
        socket = Socket()
        program = emulator.load(spec(body.format(port=port, size=size), kind=kind, attach=attach))
        result = program.run(SockAddrContext(socket, bytes([10, 0, 0, 1]), 80))
        outcomes.append((result.action, socket.src, socket.src_port))
    assert outcomes == [(0, bytes([10, 0, 0, 9]), 4001), (-98, bytes(4), 0), (-22, bytes(4), 0)]
    assert other.src_port == 4000


def test_a_route_is_not_used_with_an_address_of_another_version() -> None:
    routes = Emulator().routes
    with pytest.raises(EmulatorError, match=r"packets for fd02::/16 can't be sent from 10\.1\.0\.1"):
        routes.add("fd02::/16", ifindex=2, prefsrc="10.1.0.1")
    assert routes.find(bytes.fromhex("fd02") + bytes(14)) is None


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda: Emulator(engine="fast"), "engine='fast' is none of 'auto', 'interpret', 'translate'"),
        (lambda: Emulator().load(spec("exit"), engine="fast"), "engine='fast' is none of"),
        (lambda: Emulator(byteorder="middle"), "byteorder='middle' is none of 'little', 'big'"),  # type: ignore[arg-type]
        (lambda: Skb(PACKET, checksum="bad"), "checksum='bad' is none of 'none', 'unnecessary'"),  # type: ignore[arg-type]
        (lambda: Emulator().routes.add("10.0.0.0/8", "no"), "kind='no' is none of 'unicast'"),  # type: ignore[arg-type]
        (lambda: Emulator().routes.add("10.0.0.1/8"), "this is no route: 10.0.0.1/8 has host bits set"),
        (lambda: Emulator().routes.add("10.0.0.0/8", gateway="x"), "this is no route: 'x' does not appear"),
        (lambda: Emulator().routes.add("::/0", neighbour=b"x"), "neighbour=b'x' is no hardware address"),
    ],
)
def test_arguments_that_mean_nothing(call: Callable[[], object], problem: str) -> None:
    with pytest.raises(EmulatorError, match=re.escape(problem)):
        call()


_HUGE = 0xFFFFFFFF
_BUFFERS = {
    "skb_load_bytes": f"r2 = 4000\nr3 = r10\nr3 += -8\nr4 = {_HUGE} ll",
    "skb_load_bytes_relative": f"r2 = 4000\nr3 = r10\nr3 += -8\nr4 = {_HUGE} ll\nr5 = 0",
    "get_current_comm": f"r1 = r10\nr1 += -8\nr2 = {_HUGE} ll",
    "probe_read_kernel": f"r1 = r10\nr1 += -8\nr2 = {_HUGE} ll\nr3 = 0",
    "probe_read_kernel_str": f"r1 = r10\nr1 += -8\nr2 = {_HUGE} ll\nr3 = 0",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", _BUFFERS)
def test_a_buffer_is_not_made_before_it_is_known_to_be_there(name: str, engine: str) -> None:
    program = Emulator(engine=engine).load(spec(f"{_BUFFERS[name]}\ncall bpf_{name}\nr0 = 0\nexit"))
    tracemalloc.start()
    try:
        with pytest.raises(EmulatorFault, match="a write of 4294967295 bytes at fp-8 is outside"):
            program.run(Skb(bytes(64)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_options_of_a_size_that_none_has() -> None:
    for name in ("getsockopt", "setsockopt", "bind"):
        size = "r3 = -1" if name == "bind" else f"r2 = 1\nr3 = 8\nr4 = r10\nr4 += -8\nr5 = {_HUGE} ll"
        address = "r2 = r10\nr2 += -8\n" if name == "bind" else ""
        program = spec(
            f"*(u64 *)(r10 -8) = 0\n{address}{size}\ncall bpf_{name}\nr0 = 1\nexit",
            kind=ProgType.CGROUP_SOCK_ADDR,
            attach=AttachType.CGROUP_INET4_CONNECT,
        )
        with pytest.raises(EmulatorFault, match="of 4294967295 bytes at fp-8 is outside"):
            Emulator().load(program).run(SockAddrContext(Socket()))


def test_a_message_takes_as_much_as_pages_are_given_at_once() -> None:
    push = spec(f"r2 = 0\nr3 = {_HUGE} ll\nr4 = 0\ncall bpf_msg_push_data\nexit", kind=ProgType.SK_MSG)
    assert Emulator().load(push).run(SkMsg(Socket(), bytes(8))).action == -12


@pytest.mark.parametrize("engine", ENGINES)
def test_a_look_up_in_what_has_none_is_a_fault_of_its_line(engine: str) -> None:
    looks = spec("r1 =", RING, "r2 = r10\nr2 += -8\ncall bpf_map_lookup_elem\nr0 = 0\nexit")
    with pytest.raises(EmulatorFault, match="map ring: a RINGBUF map has no look-ups by programs") as caught:
        Emulator(engine=engine).load(looks).run(Skb(PACKET))
    assert caught.value.slot == 4


def test_the_fault_of_a_helper_that_this_type_does_not_have() -> None:
    with pytest.raises(EmulatorFault, match="SCHED_CLS program may not call"):
        Emulator().load(spec("r2 = 0\nr3 = 1\nr4 = 0\ncall bpf_msg_pop_data\nexit")).run(Skb(PACKET))


def test_the_table_of_helpers_is_up_to_date() -> None:
    script = ROOT / "scripts" / "emulator-table"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run scripts/emulator-table: {done.stderr}"


def test_the_documents_example(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    exec(compile(text.split("```python\n")[1].split("```")[0], "emulator.md", "exec"), names)
    emulator = names["emulator"]
    assert isinstance(emulator, Emulator)
    assert emulator.load(spec("call bpf_get_route_realm\nexit")).run(Skb(PACKET)).value == 7
