# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Bit fields: the kernel's own layouts, its verifier, its maps, and CO-RE against the running kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from contextlib import ExitStack

import pytest

from loader.elf import kernel_types
from loader.objects import Map, Program
from pybpfasm import (
    S32,
    U8,
    U16,
    U32,
    U64,
    Asm,
    Be16,
    Be32,
    Helper,
    MapSpec,
    MapType,
    SkBuff,
    Struct,
    sched_cls,
)
from pybpfasm.btf import Kind, layout_of
from pybpfasm.core import core_load_bits
from pybpfasm.kernel.enums import ProgType
from tests.kernel.programs.scapy_layers import IP, TCP
from tests.requires import Call, requires
from tests.unit.test_bitfield import Ip


class Tcp(Struct, kernel_name="tcphdr"):
    """``struct tcphdr`` as linux/tcp.h has it for little-endian machines."""

    source = Be16()
    dest = Be16()
    seq = Be32()
    ack_seq = Be32()
    ae = U16.bits(1)
    res1 = U16.bits(3)
    doff = U16.bits(4)
    fin = U16.bits(1)
    syn = U16.bits(1)
    rst = U16.bits(1)
    psh = U16.bits(1)
    ack = U16.bits(1)
    urg = U16.bits(1)
    ece = U16.bits(1)
    cwr = U16.bits(1)
    window = Be16()
    check = Be16()
    urg_ptr = Be16()


def test_the_kernels_headers() -> None:
    """Fields lie where the kernel's BTF has them, and are what scapy means by them."""
    types = kernel_types()
    theirs = layout_of(types, "tcphdr")
    # Older kernels have one field of 4 bits, res1, for the first two.
    older = () if "ae" in theirs.fields else ("ae", "res1")
    for name, field in Tcp.fields.items():
        if name not in older:
            mine, other = (f.member(_Anything()) for f in (field, theirs.fields[name]))  # type: ignore[arg-type]
            assert mine == other
    segment = TCP(sport=1, dport=2, seq=3, ack=4, dataofs=7, flags="SAE", window=9, urgptr=10)
    header = bytes(segment)[:20]
    for shape in (Tcp, theirs):
        found = shape.unpack(header, byteorder="little")
        assert (found.doff, found.syn, found.ack, found.ece, found.fin) == (7, 1, 1, 1, 0)
        assert (found.source, found.window, found.urg_ptr) == (1, 9, 10)
    packet = bytes(IP(ihl=6, tos=0xB8, id=0x4567, flags=2, frag=0x1ABC, options=[]))[:8]
    ip = Ip.unpack(packet)
    assert (ip.version, ip.ihl, ip.tos, ip.flags, ip.fragment) == (4, 6, 0xB8, 2, 0x1ABC)
    kernels = layout_of(types, "iphdr").unpack(packet + bytes(12), byteorder="little")
    assert (kernels.version, kernels.ihl, kernels.frag_off) == (4, 6, 0x5ABC)


class _Anything:
    """In place of a `BtfBuilder`: every type is the same."""

    byteorder = "little"

    def __getattr__(self, name: str) -> object:
        return lambda *_, **__: 0


@pytest.mark.parametrize("name", ["sk_buff", "tcp_sock", "task_struct", "net_device", "bpf_prog", "bpf_map"])
def test_layouts_of_the_kernels_structures(name: str) -> None:
    """Every named member, also within unnamed ones, is a field at the bit where BTF has it."""
    types = kernel_types()
    struct = types.by_name(name, Kind.STRUCT)
    assert struct is not None
    shape = layout_of(types, name)
    assert shape.sizeof == struct.size
    bits = 0
    waiting = [(struct, 0)]
    while waiting:
        t, base = waiting.pop()
        for member in t.members:
            inner = types.resolve(member.type_id)
            if not member.name:
                if inner.kind in (Kind.STRUCT, Kind.UNION):
                    waiting.append((inner, base + member.bit_offset))
                continue
            field = shape.fields.get(member.name) or shape.fields[member.name + "_"]
            found = field.member(_Anything())  # type: ignore[arg-type]
            assert found is not None
            assert found[2:] == (
                base + member.bit_offset,
                *((member.bitfield_size,) if member.bitfield_size else ()),
            )
            assert member.bitfield_size or field.size == types.size_of(inner.id, 8)
            bits += bool(member.bitfield_size)
    assert bits or name in ("bpf_map",)


class Entry(Struct, kernel_name="entry"):
    """A map's value."""

    kind = U32.bits(5)
    level = S32.bits(11)
    _ = U32.bits(3)
    wide = U64.bits(40)
    count = U32()


ENTRIES = MapSpec("entries", MapType.ARRAY, U32(), Entry, 1)


@sched_cls()
def stores(b: Asm, ctx: SkBuff) -> None:
    """Puts the mark into the fields of a map's value, and gives back what it reads there."""
    b.r6 = ctx.mark
    b.r1 = ENTRIES
    b.u32[b.r10 - 4] = 0
    b.r2 = b.r10
    b.r2 += -4
    b.call(Helper.map_lookup_elem)
    with b.If(b.r0 == 0):
        b.ret(-1)
    entry = Entry(b.r0)
    b.r2 = b.r6
    entry.kind.store(b.r2, scratch=b.r3)
    b.r2 = b.r6
    b.r2 = -b.r2
    entry.level.store(b.r2, scratch=b.r3)
    b.r2 = b.r6
    b.r2 <<= 32
    entry.wide.store(b.r2, scratch=b.r3)
    entry.count = 7
    entry.level.load(b.r4)
    entry.kind.load(b.r5)
    entry.wide.load(b.r0)
    b.r0 >>= 32
    b.r0 += b.r5
    b.r0 -= b.r4
    b.exit()


def test_values_of_a_map() -> None:
    """The kernel takes the BTF of the value, and Python reads what the program has stored."""
    spec = stores.build()
    with ExitStack() as stack:
        entries = stack.enter_context(Map.create(ENTRIES))
        program = stack.enter_context(Program.load(spec, {"entries": entries}))
        entries[0] = {"wide": 0xFF00000001, "kind": 31, "level": -1, "count": 0}
        assert program.test_run(bytes(64), SkBuff.pack(mark=9)).retval == 27
        found = entries.lookup(0)
        assert found.as_dict() == {"kind": 9, "level": -9, "wide": 9 << 32, "count": 7}
        assert entries.lookup(0).pack() == Entry.pack(kind=9, level=-9, wide=9 << 32, count=7)
        bpftool = shutil.which("bpftool", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if bpftool is None:
            pytest.skip("no bpftool: apt-get install bpftool")
        command = [bpftool, "-j", "map", "dump", "id", str(entries.info().id)]
        shown = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    value = shown[0]["formatted"]["value"]
    # It prints bit fields in hexadecimal, and knows no sign.
    assert (value["kind"], value["level"], value["wide"]) == ("0x9", hex(-9 & 0x7FF), hex(9 << 32))
    assert value["count"] == 7


class Task(Struct, kernel_name="task_struct"):
    """What of it is asked for."""

    sched_reset_on_fork = U8.bits(1)


@sched_cls()
def resets_on_fork(b: Asm, ctx: SkBuff) -> None:
    b.call(Helper.get_current_task_btf)
    core_load_bits(b.r1, Task(b.r0), "sched_reset_on_fork")
    b.r0 = b.r1
    b.exit()


@requires(Call(ProgType.SCHED_CLS, Helper.get_current_task_btf, (5, 11)))
def test_a_bit_of_the_running_task() -> None:
    """Wherever this kernel has it: it is what the task has asked the scheduler for."""
    seen: list[int] = []
    with Program.load(resets_on_fork.build().resolve(kernel_types())) as program:

        def task() -> None:
            seen.append(program.test_run(bytes(64)).retval)
            os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
            seen.append(program.test_run(bytes(64)).retval)

        thread = threading.Thread(target=task)
        thread.start()
        thread.join()
    assert seen == [0, 1]
