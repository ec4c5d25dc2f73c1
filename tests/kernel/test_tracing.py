# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs for tracing in the running kernel, and what they write into a ring buffer."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loader import perf
from loader import sys as bpf_sys
from loader.elf import load
from loader.errors import BpfError, KernelFeatureError, UsageError
from loader.features import Support, has_link_type
from loader.objects import Link, Map, Program, RingBuffer
from loader.verifier import VerifierError
from loader.vmlinux import attach_btf_id, kernel_types
from pybpfasm import (
    S32,
    U32,
    U64,
    Asm,
    AttachType,
    Helper,
    MapSpec,
    MapType,
    ProgType,
    PtRegs,
    RawTracepointArgs,
    SkBuff,
    Struct,
    TraceEntry,
    XdpAction,
    XdpMd,
    kprobe,
    raw_tracepoint,
    socket_filter,
    tracepoint,
    tracing,
    xdp,
)
from pybpfasm.btf import Kind
from pybpfasm.core import core_add_offset, core_load
from pybpfasm.elf import write_object
from pybpfasm.kernel.enums import BPF_RB_NO_WAKEUP, LinkType
from pybpfasm.program import Template
from tests.requires import Attempt, requires
from tests.unit.test_program_kinds import asks

pytestmark = pytest.mark.kernel

events = MapSpec("events", MapType.RINGBUF, None, None, mmap.PAGESIZE)


class Task(Struct, kernel_name="task_struct"):
    """Other order and other places than the kernel's."""

    tgid = S32()
    pid = S32()


class Event(Struct):
    """What the programs write."""

    tgid = S32()
    pid = S32()


def _report(b: Asm) -> None:
    """The event on the stack, into the ring."""
    b.r1 = events
    b.lea(b.r2, b.r10 - 8)
    b.r3 = Event.sizeof
    b.r4 = 0
    b.call(Helper.ringbuf_output)
    b.ret(0)


def _current(b: Asm) -> None:
    b.call(Helper.get_current_pid_tgid)
    event = Event(b.r10 - 8)
    event.pid = b.r0
    b.r0 >>= 32
    event.tgid = b.r0
    _report(b)


@tracing(AttachType.TRACE_RAW_TP, attach_to="sched_process_exec")
def at_exec(b: Asm, ctx: RawTracepointArgs) -> None:
    b.r6 = ctx.args[0]
    event = Event(b.r10 - 8)
    core_load(b.r1, Task(b.r6), "tgid")
    event.tgid = b.r1
    core_load(b.r1, Task(b.r6), "pid")
    event.pid = b.r1
    _report(b)


@raw_tracepoint(attach_to="sched_process_exec")
def at_exec_raw(b: Asm, ctx: RawTracepointArgs) -> None:
    b.r6 = ctx.args[0]
    for field, at in (("tgid", -8), ("pid", -4)):
        b.lea(b.r1, b.r10 + at)
        b.r2 = 4
        b.r3 = b.r6
        core_add_offset(b.r3, Task, field)
        b.call(Helper.probe_read_kernel)
    _report(b)


@tracing(AttachType.TRACE_FENTRY, attach_to="bpf_prog_test_run_skb")
def at_entry(b: Asm, ctx: RawTracepointArgs) -> None:
    _current(b)


@tracing(AttachType.TRACE_FEXIT, attach_to="bpf_prog_test_run_skb")
def at_exit(b: Asm, ctx: RawTracepointArgs) -> None:
    _current(b)


@kprobe()
def at_probe(b: Asm, ctx: PtRegs) -> None:
    b.r2 = ctx.ip
    _current(b)


@tracepoint(attach_to="sched/sched_process_exec")
def at_event(b: Asm, ctx: TraceEntry) -> None:
    _current(b)


class Exec(TraceEntry, kernel_name="trace_event_raw_sched_process_exec"):
    """The record of sched/sched_process_exec."""

    filename = U32()
    pid = S32()
    old_pid = S32()


@tracepoint(attach_to="sched/sched_process_exec", context=Exec)
def at_typed_event(b: Asm, ctx: Exec) -> None:
    """Reads the task's number in the event's record."""
    event = Event(b.r10 - 8)
    b.r2 = ctx.pid
    event.tgid = b.r2
    event.pid = b.r2
    _report(b)


@socket_filter()
def keep(b: Asm, ctx: SkBuff) -> None:
    b.ret(0)


@pytest.fixture
def ring() -> Iterator[Map]:
    with Map.create(events) as made:
        yield made


def _seen(reader: RingBuffer, pid: int) -> bool:
    """Whether the process is among the events; others run programs too."""
    while reader.poll(10):
        if any((one.tgid, one.pid) == (pid, pid) for one in reader.consume()):
            return True
    return False


@pytest.mark.parametrize("program", [at_exec, at_exec_raw], ids=lambda one: one.name)
def test_a_task_at_its_exec(program: Template[[]], ring: Map) -> None:
    """Fields of task_struct, where this kernel has them: by loads, and by probe_read_kernel."""
    with Program.load(program.build(), {"events": ring}) as loaded, RingBuffer(ring, Event) as reader:
        direct = program is at_exec
        link = Link.tracing(loaded) if direct else Link.raw_tracepoint(loaded)
        with link:
            child = subprocess.Popen(["true"])
            assert _seen(reader, child.pid)
            child.wait()


def _forbidden() -> bool:
    """Whether this machine forbids programs on functions: bpf(2) by itself, for an empty program."""
    function = kernel_types().by_name("bpf_prog_test_run_skb", Kind.FUNC)
    assert function is not None
    result = bpf_sys.prog_load(
        ProgType.TRACING,
        keep.build().code(),
        license="GPL",
        expected_attach_type=AttachType.TRACE_FENTRY,
        attach_btf_id=function.id,
    )
    if result.fd >= 0:
        os.close(result.fd)
    return result.error is not None and result.error.errno == errno.EPERM


@pytest.mark.parametrize("program", [at_entry, at_exit], ids=lambda one: one.name)
def test_a_function_of_the_kernel(program: Template[[]], ring: Map) -> None:
    """Called by a test run of this process, the program by way of an object."""
    written = write_object([program.build()])
    if _forbidden():
        with pytest.raises(BpfError, match="EPERM") as caught:
            load(written, maps={"events": ring})
        assert "security module" in caught.value.hint
        return
    with (
        load(written, maps={"events": ring}) as loaded,
        Program.load(keep.build()) as kept,
        RingBuffer(ring, Event) as reader,
    ):
        (traced,) = loaded.programs.values()
        with Link.tracing(traced) as link:
            assert link.info().type == LinkType.TRACING
            kept.test_run(bytes(64))
            assert _seen(reader, os.getpid())


def test_a_function_is_found_by_its_name() -> None:
    """The kernel's own types say what has the id that a program is loaded for."""
    types = kernel_types()
    for kind, attach, name, full in (
        (ProgType.TRACING, AttachType.TRACE_FENTRY, "tcp_connect", "tcp_connect"),
        (ProgType.TRACING, AttachType.TRACE_RAW_TP, "sched_switch", "btf_trace_sched_switch"),
        (ProgType.TRACING, AttachType.TRACE_ITER, "task", "bpf_iter_task"),
        (ProgType.LSM, AttachType.LSM_MAC, "file_open", "bpf_lsm_file_open"),
    ):
        if types.by_name(full) is not None:
            assert types.type(attach_btf_id(types, kind, attach, name)).name == full


def test_a_function_that_there_is_not(ring: Map) -> None:
    @tracing(AttachType.TRACE_FENTRY, attach_to="no_such_function")
    def lost(b: Asm, ctx: RawTracepointArgs) -> None:
        b.ret(0)

    with pytest.raises(KernelFeatureError, match="no function 'no_such_function'"):
        Program.load(lost.build())
    with Program.load(at_exec_raw.build(), {"events": ring}) as loaded:
        with pytest.raises(OSError, match="no_such_tracepoint") as caught:
            Link.raw_tracepoint(loaded, "no_such_tracepoint")
        assert "available_events" in getattr(caught.value, "hint", "")
        with Program.from_id(loaded.id) as again:
            for attach in (Link.raw_tracepoint, Link.tracepoint, Link.kprobe):
                with pytest.raises(UsageError, match=r"does not say which (tracepoint|function) it is for"):
                    attach(again)


def test_a_field_that_this_kernel_lacks_is_named() -> None:
    class Later(Struct, kernel_name="task_struct"):
        tgidd = S32()

    @tracing(AttachType.TRACE_RAW_TP, attach_to="sched_process_exec")
    def wants(b: Asm, ctx: RawTracepointArgs) -> None:
        b.r1 = ctx.args[0]
        core_load(b.r2, Later(b.r1), "tgidd")
        b.ret(0)

    spec = wants.build()
    with pytest.raises(VerifierError) as caught:
        Program.load(spec)
    assert caught.value.location == spec.location(1)
    assert caught.value.diagnosis is not None and caught.value.diagnosis.key == "core-missing"
    assert "this kernel's struct task_struct has no member 'tgidd'; did you mean 'tgid'" in str(caught.value)


def test_enumerators_of_this_kernel() -> None:
    with Program.load(asks.build()) as program:
        assert program.test_run(bytes(64)).retval == ProgType.XDP << 2 | 1


def _perf_links() -> None:
    found = has_link_type(LinkType.PERF_EVENT)
    if found.support is Support.UNSUPPORTED:
        raise KernelFeatureError(found.reason, feature=found.name)


PERF_LINKS = Attempt("links on perf events (5.15)", (5, 15), _perf_links)


@requires(PERF_LINKS)
def test_a_uprobe(ring: Map) -> None:
    """A function of this very library, at its place in the file."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    library = next(words[-1] for words in lines if "/libc.so" in words[-1])
    base = min(int(words[0].split("-")[0], 16) for words in lines if words[-1] == library)
    address = ctypes.cast(ctypes.CDLL(None).getppid, ctypes.c_void_p).value
    assert address is not None
    with Program.load(at_probe.build(), {"events": ring}) as loaded, RingBuffer(ring, Event) as reader:
        with Link.uprobe(loaded, library, address - base) as link:
            assert link.info().type == LinkType.PERF_EVENT
            os.getppid()
            assert _seen(reader, os.getpid())
        with pytest.raises(UsageError, match="no_such_file"):
            Link.uprobe(loaded, "/no_such_file", 0)


@requires(PERF_LINKS)
def test_a_tracepoint_with_its_tracefs(ring: Map) -> None:
    """In a mount namespace of its own, because tracefs is not mounted everywhere."""
    code = """
import os, subprocess, sys
from tests.kernel.test_tracing import Event, Link, Map, Program, RingBuffer, _seen, events
from tests.kernel.test_tracing import at_event, at_typed_event
for one in at_typed_event, at_event:
    with Map.create(events) as ring, Program.load(one.build(), {"events": ring}) as loaded:
        with RingBuffer(ring, Event) as reader, Link.tracepoint(loaded):
            child = subprocess.Popen(["true"])
            assert _seen(reader, child.pid)
            child.wait()
        if one is at_event:
            try:
                Link.tracepoint(loaded, "sched/no_such_event")
            except Exception as error:
                print(error)
"""
    mount = (
        '[ -d /sys/kernel/tracing/events ] || mount -t tracefs tracefs /sys/kernel/tracing; exec "$0" -c "$1"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mount}; exec "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("this kernel has no event 'sched/no_such_event'\n", "")


@requires(PERF_LINKS)
def test_kprobes_are_there_or_named_as_missing(ring: Map) -> None:
    with Program.load(at_probe.build(), {"events": ring}) as loaded:
        if (perf.SOURCES / "kprobe").is_dir():
            with Link.kprobe(loaded, "bpf_prog_test_run_skb"), RingBuffer(ring, Event) as reader:
                with Program.load(keep.build()) as kept:
                    kept.test_run(bytes(64))
                assert _seen(reader, os.getpid())
        else:
            with pytest.raises(KernelFeatureError, match="no kprobes"):
                Link.kprobe(loaded, "bpf_prog_test_run_skb")


def test_the_attribute_of_perf_event_open_is_the_kernels() -> None:
    types = kernel_types()
    found = types.by_name("perf_event_attr", Kind.STRUCT)
    assert found is not None
    offsets: dict[str, int] = {}
    for member in found.members:
        inner = types.resolve(member.type_id)
        names = [one.name for one in inner.members] if not member.name else [member.name]
        offsets |= dict.fromkeys(names, member.bit_offset // 8)
    flags = offsets.pop("disabled")
    for name, _ in perf.PerfEventAttr._fields_:
        assert getattr(perf.PerfEventAttr, name).offset == (flags if name == "flags" else offsets[name])


# The ring buffer.


@socket_filter()
def write(b: Asm, ctx: SkBuff, size: int, keep: bool) -> None:
    """One record, of zeros behind the packet's mark."""
    b.r6 = ctx
    b.r1 = events
    b.r2 = size
    b.r3 = 0
    b.call(Helper.ringbuf_reserve)
    with b.If(b.r0 == 0):
        b.ret(1)
    b.r1 = SkBuff(b.r6).len
    b.u64[b.r0] = b.r1
    b.r1 = b.r0
    b.r2 = BPF_RB_NO_WAKEUP
    b.call(Helper.ringbuf_submit if keep else Helper.ringbuf_discard)
    b.ret(0)


class Length(Struct):
    """The beginning of a record."""

    length = U64()


def test_records_around_the_end_of_the_ring(ring: Map) -> None:
    """Sizes that never fit the end: 24 bytes with their head, 32 rounded, 170 rounds."""
    with Program.load(write.build(20, True), {"events": ring}) as loaded, RingBuffer(ring) as reader:
        sent, got = 0, []
        while sent < 1000:
            for _ in range(7):
                assert loaded.test_run(bytes(14 + sent % 50)).retval == 0
                sent += 1
            got += list(reader.consume())
        assert not reader.poll(0)
    assert {len(one) for one in got} == {20}
    # A socket filter sees the packet without its link header.
    assert [int.from_bytes(one[:8], sys.byteorder) for one in got] == [index % 50 for index in range(sent)]


def test_a_full_ring_has_room_for_what_was_read(ring: Map) -> None:
    with (
        Program.load(write.build(1016, True), {"events": ring}) as loaded,
        RingBuffer(ring, Length) as reader,
    ):
        assert [loaded.test_run(bytes(20)).retval for _ in range(5)].count(1) >= 1
        taken = reader.consume()
        assert next(taken).length == 6
        assert loaded.test_run(bytes(30)).retval == 0
        assert [one.length for one in taken][-1] == 16


def test_discarded_records_are_not_seen(ring: Map) -> None:
    with (
        Program.load(write.build(16, False), {"events": ring}) as discards,
        Program.load(write.build(16, True), {"events": ring}) as keeps,
        RingBuffer(ring, Length) as reader,
    ):
        discards.test_run(bytes(20))
        keeps.test_run(bytes(21))
        assert [one.length for one in reader.consume()] == [7]


def test_a_reader_takes_over_where_the_last_one_ended(ring: Map) -> None:
    with Program.load(write.build(16, True), {"events": ring}) as loaded:
        for size in (14, 15, 16):
            loaded.test_run(bytes(size))
        with RingBuffer(ring, Length) as first:
            assert next(first.consume()).length == 0
        with RingBuffer(ring, Length) as second:
            assert [one.length for one in second.consume()] == [1, 2]
        with pytest.raises(ValueError, match="closed"):
            second.poll()


def test_only_a_ring_has_a_reader() -> None:
    with Map.create(MapSpec("plain", MapType.ARRAY, 4, 4, 1)) as plain:
        with pytest.raises(UsageError, match="'plain' is no RINGBUF"):
            RingBuffer(plain)


# XDP.


@xdp()
def passes(b: Asm, ctx: XdpMd) -> None:
    b.ret(XdpAction.PASS)


def test_xdp_is_on_one_interface_once() -> None:
    """On the loopback of a network namespace of its own."""
    code = """
import socket
from tests.kernel.test_tracing import Link, Program, passes
with Program.load(passes.build()) as program:
    with Link.xdp(program, 1) as link:
        print(link.info().ifindex == 1)
        for index in (1, 77):
            try:
                Link.xdp(program, index)
            except Exception as error:
                print(error)
"""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "True",
        "another XDP program is attached to the interface with index 1",
        "there is no interface with index 77 in this network namespace",
    ]
    assert done.stderr == ""
    assert socket.if_nameindex()[0][0] == 1
