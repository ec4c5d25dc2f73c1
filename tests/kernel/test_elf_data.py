# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Static data, the kernel's types and its functions, in programs written here, in the kernel."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from loader.bpffs import BpfFs
from loader.elf import kernel_types, load
from loader.errors import BpfError
from loader.objects import Map, Program, possible_cpus
from pybpfasm.asm import Asm
from pybpfasm.core import CoreError, core_exists, core_load, core_size
from pybpfasm.elf import read_object, write_object
from pybpfasm.extern import kfunc
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import Helper, MapType
from pybpfasm.layout import S32, U8, U32, U64, Bytes, Pointer, Struct
from pybpfasm.macros import tail_call
from pybpfasm.maps import MapSpec, bss, data, rodata
from pybpfasm.program import sched_cls
from tests.requires import RCU_READ_LOCK, requires


class Limits(Struct, kernel_name="limits"):
    """Constants."""

    low = U32()
    high = U32()


class State(Struct, kernel_name="state"):
    """Variables."""

    runs = U64()
    last = U32()


LIMITS = rodata(Limits, low=20, high=100)
STATE = data(State, runs=1000)
SEEN = bss(State)


@sched_cls()
def clamp(b: Asm, ctx: SkBuff) -> None:
    """The packet's length, within the limits; counts."""
    b.r6 = ctx.len
    b.r1 = STATE
    b.r2 = 1
    State(b.r1).runs.fetch_add(b.r2)
    b.r1 = SEEN.at("last")
    b.u32[b.r1] = b.r6
    b.r1 = LIMITS
    b.r2 = Limits(b.r1).low
    with b.If(b.r6 < b.r2):
        b.r6 = b.r2
    b.r2 = Limits(b.r1).high
    with b.If(b.r6 > b.r2):
        b.r6 = b.r2
    b.r0 = b.r6
    b.exit()


LENGTHS = {15: 20, 50: 50, 200: 100}


def test_static_data_is_there_and_read_only_data_stays() -> None:
    program = clamp.build()
    with ExitStack() as stack:
        maps = {spec.name: stack.enter_context(Map.create(spec)) for spec in program.maps}
        loaded = stack.enter_context(Program.load(program, dict(maps)))
        assert {n: loaded.test_run(b"\x12" * n).retval for n in LENGTHS} == LENGTHS
        assert maps[".data"].lookup(0).runs == 1003
        assert maps[".bss"].lookup(0).last == 200
        with pytest.raises(BpfError):
            maps[".rodata"].update(0, Limits.pack(low=1))


def test_static_data_in_an_object(bpffs: BpfFs, tmp_path: Path) -> None:
    bpftool = shutil.which("bpftool", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if bpftool is None:
        pytest.skip("no bpftool: apt-get install bpftool")
    path, pin = tmp_path / "data.o", bpffs.root / "data"
    path.write_bytes(write_object([clamp.build()]))
    subprocess.run([bpftool, "prog", "loadall", path, pin], check=True, timeout=60)
    with Program.from_pin(pin / "clamp") as program, load(path.read_bytes()) as ours:
        for n, expected in LENGTHS.items():
            assert program.test_run(b"\x12" * n).retval == expected
            assert ours.programs["clamp"].test_run(b"\x12" * n).retval == expected


class Task(Struct, kernel_name="task_struct"):
    """What is asked of a task, at offsets that are no kernel's."""

    comm = Bytes(16)
    tgid = S32()
    parent = Pointer()


class Never(Struct, kernel_name="no_such_struct"):
    """In no kernel."""

    x = U8()


@sched_cls()
def asks(b: Asm, ctx: SkBuff) -> None:
    """Whether the task's number is what a helper says, under a lock that the kernel's functions take."""
    b.call(Helper.get_current_pid_tgid)
    b.r9 = b.r0
    b.r9 >>= 32
    b.call(Helper.get_current_task_btf)
    b.r6 = b.r0
    core_load(b.r7, Task(b.r6), "tgid")
    b.call(kfunc("bpf_rcu_read_lock"))
    core_load(b.r8, Task(b.r6), "parent")
    core_load(b.r8, Task(b.r8), "tgid")
    b.call(kfunc("bpf_rcu_read_unlock"))
    b.r1 = SEEN
    State(b.r1).runs = b.r8
    core_size(b.r2, Task)
    State(b.r1).last = b.r2
    core_exists(b.r2, Never)
    with b.If(b.r2 != 0):
        core_load(b.r7, Never(b.r6), "x")
    with b.If(b.r7 == b.r9):
        b.ret(77)
    b.r0 = b.r7
    b.exit()


@requires(RCU_READ_LOCK)
def test_questions_to_this_kernel() -> None:
    types = kernel_types()
    task = types.by_name("task_struct")
    assert task is not None
    program = asks.build()
    with pytest.raises(CoreError, match=r"resolve\(\)"):
        program.code()
    for one in (program, program.resolve(types)):  # loading resolves what is not yet
        with ExitStack() as stack:
            maps = {spec.name: stack.enter_context(Map.create(spec)) for spec in program.maps}
            loaded = stack.enter_context(Program.load(one, dict(maps)))
            assert loaded.test_run(bytes(64)).retval == 77
            seen = maps[".bss"].lookup(0)
            assert seen.runs > 0 and seen.last == task.size


def test_a_function_of_c_is_called_from_python() -> None:
    path = Path(__file__).parent.parent / "data" / "elf" / "subprograms_v3.o"
    mix = read_object(path.read_bytes()).function("mix")

    @sched_cls()
    def calls_c(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.len
        b.r1 = 7
        b.call(mix)
        b.exit()

    def rotate(value: int, by: int) -> int:
        return (value << by | value >> 32 - by) & 0xFFFFFFFF

    with Program.load(calls_c.build()) as loaded:
        for n in (20, 77):
            a = rotate(7 ^ n, 7) * 0x9E3779B1 & 0xFFFFFFFF
            assert loaded.test_run(bytes(n)).retval == (rotate(a, 13) + n) & 0xFFFFFFFF


JUMPS = MapSpec("jumps", MapType.PROG_ARRAY, U32(), 4, 3, initial=((0, "short"), (2, "long")))


@sched_cls()
def dispatch(b: Asm, ctx: SkBuff) -> None:
    """By the packet's length to one of the programs below."""
    b.r6 = ctx
    b.r3 = SkBuff(b.r6).len
    b.r3 >>= 6
    tail_call(b, SkBuff(b.r6), JUMPS, b.r3)
    b.ret(5)


@sched_cls()
def short(b: Asm, ctx: SkBuff) -> None:
    """For less than 64 bytes."""
    b.ret(6)


@sched_cls(name="long")
def longer(b: Asm, ctx: SkBuff) -> None:
    """For 128 bytes to 191."""
    b.ret(7)


def test_tail_calls() -> None:
    written = write_object([dispatch.build(), short.build(), longer.build()])
    with load(written) as loaded:
        results = [
            loaded.programs["dispatch"].test_run(bytes(n)).retval for n in (20, 64, 127, 128, 191, 192)
        ]
    assert results == [6, 5, 5, 7, 7, 5]


def test_sizes_that_an_object_leaves_to_whoever_loads_it() -> None:
    """As libbpf does: events for each CPU, the next size of a ring buffer that is one."""
    maps = [
        MapSpec("events", MapType.PERF_EVENT_ARRAY, 4, 4, 0),
        MapSpec("ring", MapType.RINGBUF, None, None, mmap.PAGESIZE + 1),
        MapSpec("small", MapType.RINGBUF, None, None, 1),
        MapSpec("plain", MapType.ARRAY, 4, 4, 5),
    ]
    with load(write_object([], maps)) as loaded:
        entries = {name: found.max_entries for name, found in loaded.maps.items()}
    page = mmap.PAGESIZE
    assert entries == {"events": possible_cpus(), "ring": 2 * page, "small": page, "plain": 5}
