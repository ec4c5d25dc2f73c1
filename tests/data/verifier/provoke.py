#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs that the verifier refuses, one for each of its messages, and the log that it writes about each.

    python tests/data/verifier/provoke.py [FOLDER]   # as root: writes linux-X.Y.json, there or beside this

A case is the key of the message (`pybpfasm.diagnosis.MESSAGES`), the program type, and the program as text.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from pybpfasm.core import CoreError, CoreResolver
from pybpfasm.instruction import Instruction, encode
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG, AttachType, MapType, ProgType
from pybpfasm.layout import U32, U64, Array, Nested, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.text import assemble


class SpinLock(Struct, kernel_name="bpf_spin_lock", size=4):
    """The kernel's lock."""

    val = U32()


class Timer(Struct, kernel_name="bpf_timer", size=16):
    """The kernel's timer."""

    opaque = Array(U64(), 2)


class Locked(Struct):
    """A value with a lock."""

    count = U64()
    lock = Nested(SpinLock)
    more = U32()


class Timed(Struct):
    """A value with a timer."""

    timer = Nested(Timer)


HERE: Final = Path(__file__).resolve().parent
MAPS: Final = {
    spec.name: spec
    for spec in (
        MapSpec("hash", MapType.HASH, U32(), 16, 4),
        MapSpec("array", MapType.ARRAY, U32(), 16, 4),
        MapSpec("one", MapType.ARRAY, U32(), 16, 1),
        MapSpec("read_only", MapType.ARRAY, U32(), 16, 1, BPF_F_RDONLY_PROG),
        MapSpec("write_only", MapType.ARRAY, U32(), 16, 1, BPF_F_WRONLY_PROG),
        MapSpec("ring", MapType.RINGBUF, None, None, 4096),
        MapSpec("progs", MapType.PROG_ARRAY, U32(), U32(), 1),
        MapSpec("queue", MapType.QUEUE, None, U64(), 4),
        MapSpec("locked", MapType.ARRAY, U32(), Locked, 4),
        MapSpec("timed", MapType.ARRAY, U32(), Timed, 4),
        MapSpec("sockets", MapType.SOCKMAP, U32(), 4, 4),
    )
}


class Case(NamedTuple):
    """A program that provokes a message. ``slot`` is the instruction to blame."""

    key: str
    text: str
    type: str = "SCHED_CLS"
    slot: int | None = None
    attach: int = 0
    license: str = "GPL"
    raw: tuple[Instruction, ...] = ()
    name: str = ""


LOOKUP: Final = """
*(u32 *)(r10 -4) = 0
r1 = map[hash]
r2 = r10
r2 += -4
call map_lookup_elem
"""
RESERVE: Final = """
r1 = map[ring]
r2 = 8
r3 = 0
call ringbuf_reserve
"""
SOCKET: Final = """
r6 = r1
*(u64 *)(r10 -8) = 0
*(u64 *)(r10 -16) = 0
r2 = r10
r2 += -16
r3 = 12
r4 = 0xffffffffffffffff
r5 = 0
call sk_lookup_tcp
"""
VALUE: Final = """
*(u32 *)(r10 -4) = 0
r1 = map[locked]
r2 = r10
r2 += -4
call map_lookup_elem
if r0 == 0 goto out
r6 = r0
r1 = r0
r1 += 8
"""
TIMER: Final = VALUE.replace("locked", "timed").replace("r1 += 8\n", "")
PACKET: Final = """
r6 = r1
r7 = *(u32 *)(r6 +76)
r8 = *(u32 *)(r6 +80)
"""
END: Final = "\nr0 = 0\nexit\n"

CASES: Final = (
    Case("unset-register", "r0 = r3\nexit", slot=0),
    Case("unset-register", "r6 = r1\nr2 = 5\ncall ktime_get_ns\nr0 = r2\nexit", slot=3, name="after-call"),
    Case("unset-register", "exit", slot=0, name="result"),
    Case("maybe-null", LOOKUP + "r0 = *(u64 *)(r0 +0)" + END, slot=6),
    Case("maybe-null", SOCKET + "r0 = *(u32 *)(r0 +4)" + END, slot=10, name="socket"),
    Case("maybe-null-arithmetic", LOOKUP + "r0 += 4" + END, slot=6),
    Case("maybe-null-argument", SOCKET + "r1 = r0\ncall sk_release" + END, slot=11),
    Case("scalar-access", "r2 = 5\nr0 = *(u32 *)(r2 +0)" + END, slot=1),
    Case(
        "scalar-access",
        PACKET
        + "r2 = r7\nr2 += 14\nif r2 > r8 goto out\nr1 = r6\nr2 = 40\ncall skb_pull_data\n"
        + "r0 = *(u8 *)(r7 +0)\nout:"
        + END,
        slot=9,
        name="moved-packet",
    ),
    Case("end-access", PACKET + "r0 = *(u8 *)(r8 +0)" + END, slot=3),
    Case(
        "packet-bounds", PACKET + "r2 = r7\nr2 += 14\nif r2 > r8 goto out\nr0 = *(u32 *)(r7 +12)\nout:" + END
    ),
    Case("packet-bounds", PACKET + "r0 = *(u8 *)(r7 +0)" + END, slot=3, name="unchecked"),
    Case(
        "packet-bounds-variable",
        PACKET + "r1 = *(u32 *)(r6 +0)\nr1 &= 255\nr7 += r1\nr0 = *(u8 *)(r7 +0)" + END,
    ),
    Case(
        "packet-write",
        "r7 = *(u32 *)(r1 +76)\nr8 = *(u32 *)(r1 +80)\nr2 = r7\nr2 += 14\nif r2 > r8 goto out\n"
        "*(u8 *)(r7 +0) = 1\nout:\nr0 = 1\nexit",
        "CGROUP_SKB",
        attach=AttachType.CGROUP_INET_INGRESS,
    ),
    Case("value-bounds", LOOKUP + "if r0 == 0 goto out\nr0 = *(u64 *)(r0 +16)\nout:" + END, slot=7),
    Case(
        "memory-unbounded",
        "r6 = *(u32 *)(r1 +8)\n" + LOOKUP + "if r0 == 0 goto out\nr0 += r6\nr0 = *(u8 *)(r0 +0)\nout:" + END,
    ),
    Case(
        "memory-max",
        "r6 = *(u32 *)(r1 +8)\nr6 &= 31\n"
        + LOOKUP
        + "if r0 == 0 goto out\nr0 += r6\nr0 = *(u8 *)(r0 +0)\nout:"
        + END,
    ),
    Case(
        "memory-min",
        "r6 = *(u32 *)(r1 +8)\nr6 &= 7\nr6 += -9\n"
        + LOOKUP
        + "if r0 == 0 goto out\nr0 += r6\nr0 = *(u8 *)(r0 +0)\nout:"
        + END,
    ),
    Case(
        "memory-bounds",
        RESERVE
        + "if r0 == 0 goto out\n*(u64 *)(r0 +8) = 1\nr1 = r0\nr2 = 0\ncall ringbuf_submit\nout:"
        + END,
    ),
    Case("value-read-only", "r1 = map[read_only][0]+0\n*(u8 *)(r1 +0) = 1" + END, slot=2),
    Case("value-write-only", "r1 = map[write_only][0]+0\nr0 = *(u8 *)(r1 +0)" + END, slot=2),
    Case("map-write", "r1 = map[hash]\n*(u32 *)(r1 +0) = 1" + END, slot=2),
    Case("stack-bounds", "*(u64 *)(r10 -520) = 1" + END, slot=0),
    Case("stack-bounds", "*(u64 *)(r10 +0) = 1" + END, slot=0, name="above"),
    Case("stack-variable", "r2 = *(u32 *)(r1 +8)\nr3 = r10\nr3 += r2\n*(u8 *)(r3 -8) = 1" + END),
    Case("stack-spill", "*(u32 *)(r10 -4) = r1" + END),
    Case("stack-spill", "*(u64 *)(r10 -8) = r1\nr0 = *(u32 *)(r10 -8)" + END, name="fill"),
    Case(
        "stack-depth",
        "*(u64 *)(r10 -400) = 0\ncall f\nexit\nf:\n*(u64 *)(r10 -400) = 0\nr0 = 0\nexit",
    ),
    Case(
        "call-depth",
        "call f1\nexit\n"
        + "".join(f"f{n}:\ncall f{n + 1}\nexit\n" for n in range(1, 9))
        + "f9:\nr0 = 0\nexit",
    ),
    Case("misaligned-stack", "*(u64 *)(r10 -12) = 1" + END, slot=0),
    Case("misaligned", LOOKUP + "if r0 == 0 goto out\nr1 = 1\nlock *(u64 *)(r0 +4) += r1\nout:" + END),
    Case("context-field", "r0 = *(u32 *)(r1 +200)" + END, slot=0),
    Case("context-field", "*(u32 *)(r1 +4) = r1" + END, slot=0, name="write"),
    Case("context-field", "r0 = *(u8 *)(r1 +76)" + END, slot=0, name="size"),
    Case("context-modified", "r1 += 8\nr0 = *(u32 *)(r1 +0)" + END, slot=1),
    Case("context-atomic", "r2 = 1\nlock *(u32 *)(r1 +8) += r2" + END, slot=1),
    Case("pointer-prohibited", PACKET + "r8 += 4" + END, slot=3),
    Case("pointer-operator", "r2 = r10\nr2 *= 2" + END, slot=1),
    Case("pointer-operator", "r2 = r10\nr2 &= -8" + END, slot=1, name="bitwise"),
    Case("pointer-32", "r2 = r10\nw2 += 4" + END, slot=1),
    Case("pointer-pointer", "r2 = r10\nr2 += r10" + END, slot=1),
    Case("pointer-subtracted", "r2 = 5\nr2 -= r10" + END, slot=1),
    Case(
        "pointer-unbounded",
        LOOKUP + "if r0 == 0 goto out\nr1 = *(u64 *)(r0 +0)\nr0 += r1\nr0 = *(u8 *)(r0 +0)\nout:" + END,
    ),
    Case("pointer-large", "r2 = r10\nr2 += 0x1fffffff\nr2 += 0x1fffffff\nr2 += 0x1fffffff" + END),
    Case("division", "r0 = 1\nr0 /= 0\nexit", slot=1),
    Case("shift", "r0 = 1\nr0 <<= 64\nexit", slot=1),
    Case("helper-forbidden", "call skb_pull_data" + END, "XDP", slot=0),
    Case("helper-unknown", "call 9999" + END, slot=0),
    Case("helper-license", "call perf_event_output" + END, license="none", slot=0),
    Case("helper-sleeps", "r1 = r10\nr2 = 8\nr3 = 0\ncall copy_from_user" + END, "KPROBE"),
    Case("argument-kind", "r1 = 5\nr2 = r10\ncall map_lookup_elem" + END, slot=2),
    Case("argument-kind", "r1 = map[hash]\nr2 = 0\ncall map_lookup_elem" + END, name="key"),
    Case("argument-map", "r1 = map[hash]\nr2 = r10\nr2 += -16\ncall map_peek_elem" + END),
    Case(
        "argument-unbounded-size",
        "r4 = *(u32 *)(r1 +8)\nif r4 == 0 goto out\nr2 = 0\nr3 = r10\nr3 += -8\ncall skb_load_bytes\nout:"
        + END,
    ),
    Case("argument-zero-size", "r2 = 0\nr3 = r10\nr3 += -8\nr4 = 0\ncall skb_load_bytes" + END),
    Case("argument-constant", "r2 = *(u32 *)(r1 +8)\nr1 = map[ring]\nr3 = 0\ncall ringbuf_reserve" + END),
    Case("tail-call-map", "r2 = map[hash]\nr3 = 0\ncall tail_call" + END, name="map"),
    Case("subprogram-pointer", "call f\nexit\nf:\nr0 = r10\nexit"),
    Case("reference-leak", SOCKET + "r0 = 0\nexit"),
    Case("reference-leak", RESERVE + "r0 = 0\nexit", name="record"),
    Case("reference-tail-call", SOCKET + "r1 = r6\nr2 = map[progs]\nr3 = 0\ncall tail_call" + END),
    Case("reference-foreign", "r1 = *(u64 *)(r1 +168)\nif r1 == 0 goto out\ncall sk_release\nout:" + END),
    Case("result-range", "r0 = 5\nexit", "CGROUP_SOCK", attach=AttachType.CGROUP_INET_SOCK_CREATE),
    Case("result-unknown", "r0 = r1\nexit", "CGROUP_SOCK", attach=AttachType.CGROUP_INET_SOCK_CREATE),
    Case("unreachable", "r0 = 0\nexit\nr0 = 1\nexit", slot=2),
    Case("falls-off", "r0 = 0"),
    Case("jump-range", "r0 = 0\nif r0 == 0 goto pc+30\nexit", slot=1),
    Case("jump-middle", "r0 = 0\nif r0 == 0 goto pc+1\nr1 = 0x500000000\nexit"),
    Case("endless", "r0 = 0\nr6 = *(u32 *)(r1 +8)\nloop:\nif r6 == 1 goto loop\nexit"),
    Case("too-complex", "r6 = 0\nloop:\nr6 += 1\nif r6 < 0x7fffffff goto loop" + END),
    Case(
        "too-many-jumps",
        "r6 = r1\nr7 = 0\nloop:\nr7 += 1\n"
        "call get_prandom_u32\nif r0 == r7 goto out\nif r7 < 100000 goto loop\nout:" + END,
    ),
    Case("packet-load", "r6 = 0\nr0 = *(u8 *)skb[0]" + END, slot=1),
    Case("socket-field", "r1 = *(u64 *)(r1 +168)\nif r1 == 0 goto out\nr0 = *(u64 *)(r1 +4)\nout:" + END),
    Case(
        "socket-write",
        "r1 = *(u64 *)(r1 +168)\nif r1 == 0 goto out\nr2 = 1\n*(u32 *)(r1 +4) = r2\nout:" + END,
    ),
    Case(
        "same-insn",
        "r2 = *(u32 *)(r1 +8)\nif r2 == 0 goto one\nr3 = r10\nr3 += -8\n*(u64 *)(r10 -8) = 0\n"
        "goto two\none:\nr3 = r1\ntwo:\nr0 = *(u32 *)(r3 +0)" + END,
    ),
    Case("map-fd", "", raw=(Instruction(0x18, 1, 1, imm=999), Instruction(0xB7, 0), Instruction(0x95))),
    Case("map-value-offset", "r1 = map[one][0]+64" + END),
    Case(
        "map-value-offset",
        "r1 = map[hash][0]+0" + END,
        name="hash",
    ),
    Case("opcode", "", raw=(Instruction(0x05, imm=7), Instruction(0x95))),
    Case("ld-imm64", "", raw=(Instruction(0x18, 1, 0), Instruction(0xB7, 0), Instruction(0x95))),
    Case("value-object-btf", "r1 = map[one][0]+0\ncall spin_lock" + END),
    Case(
        "value-object-btf",
        LOOKUP + "if r0 == 0 goto out\nr1 = r0\nr2 = map[hash]\nr3 = 0\ncall timer_init\nout:" + END,
        name="timer",
    ),
    Case("value-object-direct", VALUE + "*(u32 *)(r6 +8) = 1\nout:" + END, slot=10),
    Case("value-object-place", VALUE + "r1 += 4\ncall spin_lock\nout:" + END),
    Case("lock", VALUE + "call spin_lock\nout:" + END, name="kept"),
    Case("lock", VALUE + "call spin_unlock\nout:" + END, name="not-taken"),
    Case("lock-call", VALUE + "call spin_lock\ncall ktime_get_ns\nout:" + END),
    Case(
        "lock-program",
        VALUE + "call spin_lock\nr1 = r6\nr1 += 8\ncall spin_unlock\nout:" + END,
        "SOCKET_FILTER",
    ),
    Case("timer-map", TIMER + "r2 = map[one]\nr3 = 0\ncall timer_init\nout:" + END),
    Case("rcu-region", "call bpf_rcu_read_lock" + END, name="kept"),
    Case("rcu-region", "call bpf_rcu_read_unlock" + END, name="not-taken"),
    Case("preempt-region", "call bpf_preempt_disable" + END),
    Case("dynptr-uninitialized", "r1 = r10\nr1 += -16\ncall bpf_dynptr_size" + END),
    Case("dynptr-uninitialized", "r1 = r10\nr1 += -8\ncall bpf_iter_num_next" + END, name="iterator"),
    Case(
        "dynptr-initialized",
        "r6 = r1\nr2 = 0\nr3 = r10\nr3 += -16\ncall bpf_dynptr_from_skb\nr1 = r10\nr1 += -16\nr2 = 0\nr3 = "
        "4\n"
        "call bpf_iter_num_new\nr1 = r10\nr1 += -16\nr2 = 0\nr3 = 4\ncall bpf_iter_num_new" + END,
    ),
    Case("dynptr-place", "r1 = map[one][0]+0\ncall bpf_dynptr_size" + END),
    Case(
        "packet-helper",
        PACKET
        + "r2 = r7\nr2 += 14\nif r2 > r8 goto out\nr1 = r6\nr2 = 0\nr3 = r7\nr4 = 8\n"
        + "call skb_load_bytes\nout:"
        + END,
    ),
    Case("kfunc-null", "r1 = 1\ncall bpf_task_from_pid\nr1 = r0\ncall bpf_task_release" + END),
    Case("kfunc-argument", "r1 = r10\nr2 = 0\nr3 = r10\nr3 += -16\ncall bpf_dynptr_from_skb" + END),
    Case("kfunc-license", "call bpf_rcu_read_lock\ncall bpf_rcu_read_unlock" + END, license="none"),
    Case("kfunc", "r2 = 0\nr3 = r10\nr3 += -16\ncall bpf_dynptr_from_xdp" + END, name="type"),
    Case("ksym-type", "", raw=(Instruction(0x18, 1, 3, imm=1), Instruction(0xB7, 0), Instruction(0x95))),
    Case(
        "sockmap-update",
        "*(u32 *)(r10 -4) = 0\nr1 = map[sockets]\nr2 = r10\nr2 += -4\ncall map_delete_elem" + END,
        "CGROUP_SKB",
        attach=AttachType.CGROUP_INET_INGRESS,
    ),
    Case("tail-call-subprogram", "call f\nexit\nf:\nr2 = map[progs]\nr3 = 0\ncall tail_call\nr0 = 0\nexit"),
    Case(
        "subprogram-spill",
        "r6 = r1\nr1 = r10\nr1 += -8\ncall f\nr0 = 0\nexit\nf:\n*(u64 *)(r1 +0) = r1\nr0 = 0\nexit",
    ),
    Case("struct-bounds", "call get_current_task_btf\nr0 = *(u64 *)(r0 +32760)" + END, slot=1),
    Case("map-index", "", raw=(Instruction(0x18, 1, 5, imm=0), Instruction(0xB7, 0), Instruction(0x95))),
    Case("opcode", "", raw=(Instruction(0x05, 1, imm=0), Instruction(0x95)), name="fields"),
    Case("frame-pointer", "", raw=(Instruction(0xB7, 10, imm=1), Instruction(0xB7, 0), Instruction(0x95))),
    Case("no-such-register", "", raw=(Instruction(0xBF, 0, 12), Instruction(0x95))),
    Case("kfunc", "", raw=(Instruction(0x85, 0, 2, imm=1), Instruction(0xB7, 0), Instruction(0x95))),
)


def raw_bytes(code: tuple[Instruction, ...]) -> bytes:
    """Instructions as they are, however wrong."""
    import struct

    out = b""
    for i in code:
        out += struct.pack("<BBhi", i.opcode, i.dst | i.src << 4, i.offset, i.imm)
        if i.opcode == 0x18 and i.src:
            out += struct.pack("<BBhi", 0, 0, 0, i.imm_high)
    return out


def run() -> Iterator[dict[str, Any]]:
    """Load every case; yields what was loaded and the log."""
    from loader import sys as bpf_sys
    from loader.elf import kernel_types
    from loader.objects import Map

    resolver = CoreResolver(kernel_types())
    with ExitStack() as stack:
        fds = {name: stack.enter_context(Map.create(spec)).fd for name, spec in MAPS.items()}
        for case in CASES:
            if case.raw:
                code = raw_bytes(case.raw)
            else:
                try:
                    instructions = list(resolver.instructions("case", assemble(case.text, maps=MAPS)))
                except CoreError:
                    continue  # a function that this kernel does not have
                for insn in instructions:
                    if isinstance(insn.reference, MapSpec):
                        insn.imm, insn.reference = fds[insn.reference.name], None
                code = encode(instructions, sys.byteorder)
            result = bpf_sys.prog_load(
                int(ProgType[case.type]),
                code,
                license=case.license,
                expected_attach_type=case.attach,
                log_level=1,
                log_size=1 << 22,
            )
            if result.fd >= 0:
                os.close(result.fd)
            yield {
                "key": case.key,
                "name": case.key + (f":{case.name}" if case.name else ""),
                "text": case.text,
                "slot": case.slot,
                "errno": None if result.error is None else result.error.errno,
                "log": shortened(result.log),
            }


def shortened(log: str, limit: int = 60) -> str:
    """The ends of a log that tells of thousands of steps."""
    lines = log.splitlines()
    if len(lines) > limit:
        lines = [*lines[: limit // 3], *lines[-2 * limit // 3 :]]
    return "\n".join(lines) + "\n" if lines else ""


def main() -> int:
    """Write the file for this kernel."""
    release = re.match(r"\d+\.\d+", platform.release())
    folder = Path(sys.argv[1]) if sys.argv[1:] else HERE
    path = folder / f"linux-{release.group() if release else 'unknown'}.json"
    path.write_text(json.dumps(list(run()), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
