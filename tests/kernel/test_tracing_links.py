# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs at functions, hooks and tracepoints of the kernel, which calls of this very process pass.

Each of them writes what it sees into a map, for this process alone. Where the kernel has no functions to
attach to, what is tested is that it says so.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loader import perf
from loader.cgroup import Cgroup
from loader.errors import BpfError, KernelFeatureError, LoaderError, UsageError
from loader.features import Support, has_attach_type, has_link_type
from loader.objects import Link, Map, Program
from loader.objects import link as link_module
from loader.sys import libc
from pybpfasm import (
    S32,
    U16,
    U32,
    U64,
    Asm,
    AttachType,
    Helper,
    MapSpec,
    MapType,
    Pointer,
    PtRegs,
    RawTracepointArgs,
    Struct,
    TraceEntry,
    kprobe,
    lsm,
    raw_tracepoint,
    tracepoint,
    tracing,
)
from pybpfasm.core import core_load
from pybpfasm.kernel.enums import LinkType
from pybpfasm.program import Template
from tests.kernel.test_tracing import Task, _forbidden
from tests.requires import Attempt, kernel_version, requires

pytestmark = pytest.mark.kernel

BACKLOG = 77
TCP_CLOSE, TCP_LISTEN = 7, 10  # include/net/tcp_states.h


class Seen(Struct):
    """What a program has seen of its last call, and how often it was called."""

    calls = U64()
    a = S32()
    b = S32()
    c = S32()
    d = S32()


class KernelSocket(Struct, kernel_name="socket"):
    """Of the kernel's own, what is looked at."""

    type = U16()


class SetState(TraceEntry, kernel_name="trace_event_raw_inet_sock_set_state"):
    """The record of sock/inet_sock_set_state, as its format file has it."""

    skaddr = U64()
    oldstate = S32()
    newstate = S32()
    sport = U16()


seen = MapSpec("seen", MapType.ARRAY, U32(), Seen, 1)


def _mine(b: Asm, pid: int) -> None:
    """Go on for this process alone; r6 is kept."""
    b.call(Helper.get_current_pid_tgid)
    b.r0 >>= 32
    b.If(b.r0 != pid).goto("out")


def _note(b: Asm) -> None:
    """Count the call, with r6 to r9 in `Seen`; r0 is the entry."""
    b.u32[b.r10 - 4] = 0
    b.r1 = seen
    b.lea(b.r2, b.r10 - 4)
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto("out")
    entry = Seen(b.r0)
    b.r1 = 1
    entry.calls.lock_add(b.r1)
    entry.a = b.r6
    entry.b = b.r7
    entry.c = b.r8
    entry.d = b.r9


def _end(b: Asm) -> None:
    b.label("out")
    b.ret(0)


def _report(b: Asm, pid: int) -> None:
    """All that a program does once it has its values in r6 to r9."""
    _mine(b, pid)
    _note(b)
    b.label("out")
    b.ret(0)


# inet_shutdown(struct socket *sock, int how) is called by a pointer: no compiler takes it into its caller.


def _of_shutdown(b: Asm, ctx: RawTracepointArgs, pid: int, returned: bool) -> None:
    b.r6 = ctx.args[1]
    b.r7 = ctx.args[0]
    core_load(b.r7, KernelSocket(b.r7), "type")
    b.r8 = ctx.args[2] if returned else 0
    b.r9 = 0
    _report(b, pid)


@tracing(AttachType.TRACE_FENTRY, attach_to="inet_shutdown")
def at_entry(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    _of_shutdown(b, ctx, pid, returned=False)


@tracing(AttachType.TRACE_FEXIT, attach_to="inet_shutdown")
def at_exit(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    _of_shutdown(b, ctx, pid, returned=True)


@kprobe(attach_to="inet_shutdown")
def at_probe(b: Asm, ctx: PtRegs, pid: int) -> None:
    b.r6 = ctx.si
    b.r7 = ctx.ax
    b.r8 = 0
    b.r9 = 0
    _report(b, pid)


def _refuse(b: Asm, ctx: RawTracepointArgs, pid: int, verdict: int, otherwise: int) -> None:
    b.r6 = ctx.args[1]
    b.r7 = 0
    b.r8 = 0
    b.r9 = 0
    _mine(b, pid)
    _note(b)
    b.ret(verdict)
    b.label("out")
    b.ret(otherwise)


@tracing(AttachType.MODIFY_RETURN, attach_to="security_socket_listen")
def replaces(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    _refuse(b, ctx, pid, -errno.ENOLINK, 0)


@lsm(AttachType.LSM_MAC, attach_to="socket_listen")
def denies(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    _refuse(b, ctx, pid, -errno.ENOLINK, 0)


@lsm(AttachType.LSM_CGROUP, attach_to="socket_listen")
def denies_group(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    _refuse(b, ctx, pid, 0, 1)


# inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate), in the call of listen.


def _of_state(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    b.r6 = ctx.args[1]
    b.r7 = ctx.args[2]
    b.r8 = 0
    b.r9 = 0
    _report(b, pid)


@tracing(AttachType.TRACE_RAW_TP, attach_to="inet_sock_set_state")
def at_state(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    _of_state(b, ctx, pid)


@raw_tracepoint(attach_to="inet_sock_set_state")
def at_state_raw(b: Asm, ctx: RawTracepointArgs, pid: int) -> None:
    _of_state(b, ctx, pid)


@tracepoint(attach_to="sock/inet_sock_set_state")
def at_state_event(b: Asm, ctx: TraceEntry, pid: int) -> None:
    record = SetState(b.r1)
    b.r6 = record.oldstate
    b.r7 = record.newstate
    b.r8 = record.sport
    b.r9 = 0
    _report(b, pid)


@pytest.fixture
def table() -> Iterator[Map]:
    with Map.create(seen) as made:
        yield made


def _load(template: Template[[int]], table: Map) -> Program:
    return Program.load(template.build(os.getpid()), {"seen": table})


def _saw(table: Map) -> tuple[int, int, int, int]:
    """How often a program was called, and the first three things that it saw."""
    one = table[0]
    return one.calls, one.a, one.b, one.c


def _shut_down(type: int) -> int:
    """shutdown(SHUT_WR) of a socket without a peer; return the errno."""
    with socket.socket(socket.AF_INET, type) as one, pytest.raises(OSError, match="not connected") as caught:
        one.shutdown(socket.SHUT_WR)
    return caught.value.errno or 0


def _listen() -> tuple[int, int]:
    """Listen on a port of the loopback: the port, and the errno."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.bind(("127.0.0.1", 0))
        port = int(one.getsockname()[1])
        try:
            one.listen(BACKLOG)
        except OSError as error:
            return port, error.errno or 0
        return port, 0


def _child(call: Callable[[], int]) -> int:
    """Begin a child that ends with what a function returns, of 8 bits, and with 255 if that fails."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            status = call()
        finally:
            os._exit(status)
    return child


def _status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _in_child(call: Callable[[], int]) -> int:
    """Call a function in a child; return what it returned."""
    return _status(_child(call))


def _refused(template: Template[[int]], table: Map) -> bool:
    """Whether this machine forbids programs on functions; then it must say so of this one."""
    if not _forbidden():
        return False
    with pytest.raises(BpfError, match="EPERM") as caught:
        _load(template, table)
    assert "security module" in caught.value.hint
    return True


def test_a_function_is_called(table: Map) -> None:
    """Its arguments, and what one of them points to; after the link is closed, nothing."""
    if _refused(at_entry, table):
        return
    with _load(at_entry, table) as program:
        with Link.tracing(program) as link:
            info = link.info()
            assert (info.type, info.prog_id) == (LinkType.TRACING, program.id)
            assert info.attach_type == AttachType.TRACE_FENTRY
            _shut_down(socket.SOCK_STREAM)
            assert _saw(table) == (1, socket.SHUT_WR, socket.SOCK_STREAM, 0)
            _shut_down(socket.SOCK_DGRAM)
            assert _saw(table) == (2, socket.SHUT_WR, socket.SOCK_DGRAM, 0)
            assert _in_child(lambda: _shut_down(socket.SOCK_STREAM)) == errno.ENOTCONN
        _shut_down(socket.SOCK_STREAM)
        assert _saw(table)[0] == 2
        if kernel_version() < (5, 13):
            with pytest.raises(BpfError, match="ENOENT") as caught:
                Link.tracing(program)
            assert caught.value.hint.endswith("load it again")
            return
        with Link.tracing(program):
            _shut_down(socket.SOCK_STREAM)
        assert _saw(table)[0] == 3


def test_a_function_returns(table: Map) -> None:
    if _refused(at_exit, table):
        return
    with _load(at_exit, table) as program, Link.tracing(program):
        _shut_down(socket.SOCK_STREAM)
        assert _saw(table) == (1, socket.SHUT_WR, socket.SOCK_STREAM, -errno.ENOTCONN)


def test_a_function_does_not_run(table: Map) -> None:
    """MODIFY_RETURN at a function that may be replaced: here the process is told something else."""
    if _refused(replaces, table):
        return
    with _load(replaces, table) as program:
        with Link.tracing(program):
            assert _listen()[1] == errno.ENOLINK
            assert _saw(table) == (1, BACKLOG, 0, 0)
            assert _in_child(lambda: _listen()[1]) == 0
        assert _listen()[1] == 0


@pytest.fixture
def modules(private_mounts: None) -> str:
    """The security modules of this kernel, in the order in which they are asked."""
    root = Path("/sys/kernel/security")
    if not (root / "lsm").exists():
        assert libc().mount(b"securityfs", os.fsencode(root), b"securityfs", 0, None) == 0
    return (root / "lsm").read_text()


def test_a_hook_denies(table: Map, modules: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if _refused(denies, table):
        return
    with _load(denies, table) as program:
        if "bpf" not in modules.split(","):
            with pytest.raises(KernelFeatureError, match="would never run: 'bpf' is none of"):
                Link.tracing(program)
            return
        with Link.tracing(program):
            assert _listen()[1] == errno.ENOLINK
            assert _saw(table) == (1, BACKLOG, 0, 0)
            assert _in_child(lambda: _listen()[1]) == 0
        assert _listen()[1] == 0
        # As where it was booted without.
        (tmp_path / "lsm").write_text("lockdown,yama")
        monkeypatch.setattr(link_module, "_MODULES", tmp_path / "lsm")
        with pytest.raises(KernelFeatureError, match=r"modules \(lockdown,yama\)") as caught:
            Link.tracing(program)
        assert caught.value.hint == "boot the kernel with lsm=lockdown,yama,bpf"


def _lsm_cgroup() -> None:
    found = has_attach_type(AttachType.LSM_CGROUP)
    if found.support is Support.UNSUPPORTED:
        raise KernelFeatureError(found.reason, feature=found.name)


@requires(Attempt("LSM programs of cgroups", (6, 0), _lsm_cgroup))
def test_a_hook_denies_a_cgroup(table: Map, cgroup: Cgroup, modules: str) -> None:
    """It is for the processes of a cgroup, and looks at their number too."""
    if _refused(denies_group, table):
        return
    begin, go = os.pipe()

    def inside() -> int:
        os.close(go)
        os.read(begin, 1)
        if _listen()[1] != 0:
            return 255
        cgroup.add()
        return _listen()[1]

    child = _child(inside)
    try:
        os.close(begin)
        with Program.load(denies_group.build(child), {"seen": table}) as program:
            if "bpf" not in modules.split(","):
                with pytest.raises(KernelFeatureError, match="would never run: 'bpf' is none of"):
                    Link.cgroup(program, cgroup.fd)
                return
            with pytest.raises(UsageError, match=r"LSM_CGROUP, which Link\.tracing does not take") as caught:
                Link.tracing(program)
            assert caught.value.hint == "Link.cgroup does"
            with Link.cgroup(program, cgroup.fd):
                os.close(go)
                go = -1
                status, child = _status(child), 0
                assert status == errno.EPERM
            assert _saw(table) == (1, BACKLOG, 0, 0)
    finally:
        if go >= 0:
            os.close(go)
        if child:
            os.waitpid(child, 0)


def test_kprobes(table: Map) -> None:
    """At a function, and where it returns."""
    with _load(at_probe, table) as program:
        if not (perf.SOURCES / "kprobe").is_dir():
            with pytest.raises(KernelFeatureError, match="no kprobes"):
                Link.kprobe(program)
            return
        if not has_link_type(LinkType.PERF_EVENT).supported:
            with pytest.raises(KernelFeatureError, match="no links on perf events"):
                Link.kprobe(program)
            return
        with Link.kprobe(program) as link:
            assert link.info().type == LinkType.PERF_EVENT
            _shut_down(socket.SOCK_STREAM)
            calls, how, *_ = _saw(table)
            assert (calls, how) == (1, socket.SHUT_WR)
        with Link.kprobe(program, at_return=True):
            _shut_down(socket.SOCK_STREAM)
            calls, _, returned, _ = _saw(table)
            assert (calls, returned) == (2, -errno.ENOTCONN)
        _shut_down(socket.SOCK_STREAM)
        assert _saw(table)[0] == 2
        with pytest.raises(UsageError, match="no_such_function"):
            Link.kprobe(program, "no_such_function")
        with pytest.raises(UsageError, match=r"inet_shutdown\+0x1"):
            Link.kprobe(program, offset=1)  # within an instruction
        # The kernel would take these for places in other functions.
        with pytest.raises(UsageError, match=r"'inet_shutdown' has \d+ bytes: .* behind its end"):
            Link.kprobe(program, offset=1 << 20)
        with pytest.raises(UsageError, match="before the beginning of 'inet_shutdown'"):
            Link.kprobe(program, offset=-1)


@pytest.mark.parametrize("template", [at_state, at_state_raw], ids=lambda one: one.name)
def test_a_tracepoint(template: Template[[int]], table: Map) -> None:
    attach = Link.tracing if template is at_state else Link.raw_tracepoint
    with _load(template, table) as program:
        with attach(program) as link:
            # Both are opened by RAW_TRACEPOINT_OPEN, and one of them is a tracing program.
            assert link.info().prog_id == program.id
            assert _listen()[1] == 0
            # From CLOSE to LISTEN, and back again when the socket is closed.
            assert _saw(table) == (2, TCP_LISTEN, TCP_CLOSE, 0)
        _listen()
        assert _saw(table)[0] == 2


def test_a_tracepoint_as_an_event(table: Map, private_mounts: None) -> None:
    """The record that a tracepoint program gets."""
    root = perf.TRACING[0]
    if not (root / "events").is_dir():
        assert libc().mount(b"tracefs", os.fsencode(root), b"tracefs", 0, None) == 0
    with _load(at_state_event, table) as program:
        if not has_link_type(LinkType.PERF_EVENT).supported:
            with pytest.raises(KernelFeatureError, match="no links on perf events"):
                Link.tracepoint(program)
            return
        with Link.tracepoint(program):
            port, _ = _listen()
            assert _saw(table) == (2, TCP_LISTEN, TCP_CLOSE, port)


# Iterators.


class Meta(Struct, kernel_name="bpf_iter_meta"):
    """What an iterator is told about its file."""

    seq = Pointer()
    seq_num = U64()


class Line(Struct):
    """What an iterator writes."""

    number = U64()
    tgid = S32()
    pid = S32()


@tracing(AttachType.TRACE_ITER, attach_to="task")
def each_task(b: Asm, ctx: RawTracepointArgs) -> None:
    b.r6 = ctx.args[0]
    b.r7 = ctx.args[1]
    b.If(b.r7 == 0).goto("out")  # the end
    line = b.stack(Line)
    core_load(b.r1, Meta(b.r6), "seq_num")
    line.number = b.r1
    core_load(b.r1, Task(b.r7), "tgid")
    line.tgid = b.r1
    core_load(b.r1, Task(b.r7), "pid")
    line.pid = b.r1
    core_load(b.r1, Meta(b.r6), "seq")
    b.lea(b.r2, line)
    b.r3 = Line.sizeof
    b.call(Helper.seq_write)
    b.label("out")
    b.ret(0)


@tracing(AttachType.TRACE_ITER, attach_to="task")
def again(b: Asm, ctx: RawTracepointArgs) -> None:
    b.ret(1)


@tracing(AttachType.TRACE_ITER, attach_to="bpf_map_elem")
def each_element(b: Asm, ctx: RawTracepointArgs) -> None:
    b.r6 = ctx.args[3]
    b.If(b.r6 == 0).goto("out")
    b.r1 = ctx.args[0]
    core_load(b.r1, Meta(b.r1), "seq")
    b.r2 = b.r6
    b.r3 = 8
    b.call(Helper.seq_write)
    b.label("out")
    b.ret(0)


def _lines(data: bytes) -> list[tuple[int, int, int]]:
    size = Line.sizeof
    assert len(data) % size == 0
    found = [Line.unpack(data[at : at + size]) for at in range(0, len(data), size)]
    return [(one.number, one.tgid, one.pid) for one in found]


def test_every_task_is_gone_over() -> None:
    with Program.load(each_task.build()) as program, Link.iterator(program) as link:
        assert link.info().type == LinkType.ITER
        mine = (os.getpid(), threading.get_native_id())
        found = _lines(link.iterate())
        assert mine in [(tgid, pid) for _, tgid, pid in found]
        assert [number for number, *_ in found] == list(range(len(found)))
        # And again, with a thread more.
        with ThreadPoolExecutor(1) as other:
            thread = other.submit(threading.get_native_id).result()
            assert (os.getpid(), thread) in [(tgid, pid) for _, tgid, pid in _lines(link.iterate())]


def _of_one_process() -> None:
    with Program.load(each_task.build()) as program:
        Link.iterator(program, pid=os.getpid()).close()


@requires(Attempt("iterators over one process", (6, 1), _of_one_process))
def test_the_tasks_of_one_process() -> None:
    with Program.load(each_task.build()) as program:
        with ThreadPoolExecutor(1) as other:
            thread = other.submit(threading.get_native_id).result()
            with Link.iterator(program, pid=os.getpid()) as link:
                found = {(tgid, pid) for _, tgid, pid in _lines(link.iterate())}
        assert {(os.getpid(), threading.get_native_id()), (os.getpid(), thread)} <= found
        assert {tgid for tgid, _ in found} == {os.getpid()}
        with Link.iterator(program, pid=1 << 30) as link:
            assert link.iterate() == b""  # there is no such process


def test_every_element_of_a_map_is_gone_over() -> None:
    spec = MapSpec("values", MapType.HASH, 4, 8, 5000)
    keys = [number.to_bytes(4, sys.byteorder) for number in range(5000)]
    with Map.create(spec) as values, Program.load(each_element.build()) as program:
        for key in keys:
            values[key] = key + bytes(4)
        with Link.iterator(program, values) as link:
            # Some 40 kB, more than the kernel's buffer has room for.
            data = link.iterate()
            assert sorted(data[at : at + 8] for at in range(0, len(data), 8)) == sorted(
                key + bytes(4) for key in keys
            )
            del values[keys[7]]
            assert len(link.iterate()) == 8 * 4999
        with pytest.raises(BpfError, match="EBADF") as caught:
            Link.iterator(program)
        assert "elements of a map" in caught.value.hint


def test_an_iterator_that_never_ends() -> None:
    with Program.load(again.build()) as program, Link.iterator(program) as link:
        with pytest.raises(LoaderError, match="EAGAIN") as caught:
            link.iterate()
        assert "it returns 1" in caught.value.hint


def test_what_is_no_iterator(table: Map) -> None:
    with _load(at_state, table) as program:
        with pytest.raises(UsageError, match=r"TRACE_RAW_TP, which Link\.iterator does not take") as caught:
            Link.iterator(program)
        assert caught.value.hint == "Link.tracing does"
        with Link.tracing(program) as link, pytest.raises(BpfError, match="EINVAL") as refused:
            link.iterate()
        assert refused.value.hint == "it is no iterator"
    with Program.load(each_element.build()) as program, pytest.raises(UsageError, match="is for no process"):
        Link.iterator(program, pid=1)
    with Program.load(each_task.build()) as program:
        # The kernel would go over the task whose number the map's descriptor is.
        with pytest.raises(UsageError, match="'task' is for no map"):
            Link.iterator(program, table)
        for pid in (-1, 1 << 31):
            with pytest.raises(UsageError, match=f"{pid} is not the number of a process"):
                Link.iterator(program, pid=pid)
        with pytest.raises(UsageError, match="not both"):
            Link.iterator(program, table, pid=1)
        with pytest.raises(UsageError, match=r"TRACE_ITER, which Link\.tracing does not take") as caught:
            Link.tracing(program)
        assert caught.value.hint == "Link.iterator does"
