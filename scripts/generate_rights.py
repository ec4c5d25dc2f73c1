#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Writes ``pybpfasm/kernel/helpers.py``: what the verifier of the running kernel lets programs do.

    python scripts/generate_rights.py            # as root; takes a few seconds
    python scripts/generate_rights.py --check    # compare only

The kernel exports no list of the helpers that a program type may call, nor of the context's bytes that it may
read or write. So it is asked, with thousands of programs of a few instructions each. All but their verdict is
thrown away; nothing is attached.
"""

from __future__ import annotations

import argparse
import os
import platform
import pprint
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from loader import sys as bpf_sys
from loader.objects import Map
from pybpfasm import isa
from pybpfasm.instruction import Instruction, encode
from pybpfasm.isa import Alu
from pybpfasm.kernel.enums import AttachType, Helper, MapType, ProgType
from pybpfasm.layout import U32, U64
from pybpfasm.maps import MapSpec

OUT: Final = Path(__file__).resolve().parent.parent / "pybpfasm" / "kernel" / "helpers.py"
# Program types whose rights depend on the attach type, which loading wants to know.
ATTACHED: Final = {
    ProgType.CGROUP_SKB: ("CGROUP_INET_INGRESS", "CGROUP_INET_EGRESS"),
    ProgType.CGROUP_SOCK: (
        "CGROUP_INET_SOCK_CREATE",
        "CGROUP_INET_SOCK_RELEASE",
        "CGROUP_INET4_POST_BIND",
        "CGROUP_INET6_POST_BIND",
    ),
    ProgType.CGROUP_SOCK_ADDR: tuple(
        f"CGROUP_{name}"
        for name in (
            *("INET4_BIND", "INET6_BIND", "INET4_CONNECT", "INET6_CONNECT", "UNIX_CONNECT"),
            *("INET4_GETPEERNAME", "INET6_GETPEERNAME", "INET4_GETSOCKNAME", "INET6_GETSOCKNAME"),
            *("UDP4_SENDMSG", "UDP6_SENDMSG", "UDP4_RECVMSG", "UDP6_RECVMSG"),
        )
    ),
    ProgType.CGROUP_SOCKOPT: ("CGROUP_GETSOCKOPT", "CGROUP_SETSOCKOPT"),
    ProgType.SK_LOOKUP: ("SK_LOOKUP",),
}
# Types that can't be loaded without naming a function or program of the kernel: nothing is known of them.
LEFT_OUT: Final = frozenset(
    {ProgType.UNSPEC, ProgType.TRACING, ProgType.STRUCT_OPS, ProgType.EXT, ProgType.LSM}
)
# Types whose context is a structure of the kernel's BPF interface.
WITH_CONTEXT: Final = frozenset(
    {
        ProgType.SOCKET_FILTER,
        ProgType.SCHED_CLS,
        ProgType.SCHED_ACT,
        ProgType.XDP,
        ProgType.CGROUP_SKB,
        ProgType.CGROUP_SOCK,
        ProgType.LWT_IN,
        ProgType.LWT_OUT,
        ProgType.LWT_XMIT,
        ProgType.SOCK_OPS,
        ProgType.SK_SKB,
        ProgType.CGROUP_DEVICE,
        ProgType.SK_MSG,
        ProgType.CGROUP_SOCK_ADDR,
        ProgType.FLOW_DISSECTOR,
        ProgType.CGROUP_SYSCTL,
        ProgType.CGROUP_SOCKOPT,
        ProgType.SK_LOOKUP,
        ProgType.SK_REUSEPORT,
    }
)
SCANNED: Final = 256  # bytes of context that are tried, more than any of these types has

Key = tuple[int, int]


def mov(dst: int, value: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.MOV | isa.K, dst, imm=value)


def copy(dst: int, src: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.MOV | isa.X, dst, src)


def add(dst: int, value: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.ADD | isa.K, dst, imm=value)


def call(helper: int) -> Instruction:
    return Instruction(isa.OP_CALL, imm=helper)


EXIT: Final = Instruction(isa.OP_EXIT)


def load(key: Key, code: Iterable[Instruction], level: int = 1, license: str = "GPL") -> tuple[bool, str]:
    """Whether the verifier takes the program, and its log."""
    result = bpf_sys.prog_load(
        key[0],
        encode(code, sys.byteorder),
        license=license,
        expected_attach_type=key[1],
        log_level=level,
        log_size=1 << 16,
    )
    if result.fd >= 0:
        os.close(result.fd)
    return result.fd >= 0, result.log


def kinds() -> list[Key]:
    found: list[Key] = []
    for type in ProgType:
        if type in LEFT_OUT:
            continue
        names = [name for name in ATTACHED.get(type, ()) if name in AttachType.__members__]
        for attach in [int(AttachType[name]) for name in names] or [0]:
            key = (int(type), attach)
            if any(load(key, [mov(0, value), EXIT])[0] for value in (1, 0)):
                found.append(key)
            else:
                print(f"{type.name}: not known to this kernel, left out", file=sys.stderr)
    return found


REFUSED: Final = ("invalid func ", "unknown func ", "program of this type cannot use helper ")


def allowed_helpers(key: Key) -> list[int]:
    return [
        int(helper)
        for helper in Helper
        if helper and not any(text in load(key, [call(helper), EXIT])[1] for text in REFUSED)
    ]


def gpl_only(rights: dict[Key, list[int]]) -> list[int]:
    found = []
    for helper, key in sorted(one_of_each(rights).items()):
        if "GPL" in load(key, [call(helper), EXIT], license="none")[1]:
            found.append(helper)
    return found


# Types in which helpers are tried, by how much their contexts allow.
PREFERRED: Final = (ProgType.SCHED_CLS, ProgType.XDP, ProgType.SK_MSG, ProgType.SK_SKB, ProgType.KPROBE)


def one_of_each(rights: dict[Key, list[int]]) -> dict[int, Key]:
    order = {int(type): place for place, type in enumerate(PREFERRED)}
    found: dict[int, Key] = {}
    for key in sorted(rights, key=lambda key: (order.get(key[0], 99), key)):
        for helper in rights[key]:
            found.setdefault(helper, key)
    return found


class Maps:
    """One map of each type that helpers ask for."""

    def __init__(self) -> None:
        u32, u64 = U32(), U64()
        specs = [
            MapSpec("hash", MapType.HASH, u32, u64, 1),
            MapSpec("array", MapType.ARRAY, u32, u64, 1),
            MapSpec("percpu", MapType.PERCPU_ARRAY, u32, u64, 1),
            MapSpec("progs", MapType.PROG_ARRAY, u32, u32, 1),
            MapSpec("perf", MapType.PERF_EVENT_ARRAY, u32, u32, 1),
            MapSpec("stacks", MapType.STACK_TRACE, u32, 64, 1),
            MapSpec("cgroups", MapType.CGROUP_ARRAY, u32, u32, 1),
            MapSpec("sockmap", MapType.SOCKMAP, u32, u32, 1),
            MapSpec("sockhash", MapType.SOCKHASH, u32, u32, 1),
            MapSpec("storage", MapType.SK_STORAGE, u32, u64, 0, 1),
            MapSpec("ring", MapType.RINGBUF, None, None, 1 << 12),
            MapSpec("queue", MapType.QUEUE, None, u64, 1),
            MapSpec("reuseport", MapType.REUSEPORT_SOCKARRAY, u32, u32, 1),
            MapSpec("devmap", MapType.DEVMAP, u32, u32, 1),
            MapSpec("xskmap", MapType.XSKMAP, u32, u32, 1),
            MapSpec("user_ring", MapType.USER_RINGBUF, None, None, 1 << 12),
        ]
        self.fds = [Map.create(spec) for spec in specs]

    def pointers(self, register: int) -> list[list[Instruction]]:
        return [[Instruction(isa.LD_IMM64, register, isa.Imm64.MAP_FD, imm=m.fd)] for m in self.fds]


def candidates(register: int, maps: Maps) -> list[list[Instruction]]:
    """Arguments to try: numbers, the context (kept in r6), memory on the stack, maps, a looked-up value."""
    return [
        [mov(register, 0)],
        [mov(register, 8)],
        [copy(register, 6)],
        [copy(register, 10), add(register, -64)],
        [mov(register, 4)],
        [mov(register, 64)],
        [mov(register, 1)],
        *maps.pointers(register),
        [copy(register, 9)],
    ]


def prologue(maps: Maps, key: Key) -> list[Instruction]:
    """r6 the context, r7 a checked packet pointer where there are packets, r9 a map's value; 64 zeros."""
    out = [copy(6, 1)]
    out += [Instruction(isa.ST | isa.MEM | isa.DW, 10, offset=-at) for at in range(8, 65, 8)]
    out += [Instruction(isa.ST | isa.MEM | isa.W, 10, offset=-68)]
    found = packet_fields(key)
    body = []
    if found:
        size, data, end = found
        body += [
            Instruction(isa.LDX | isa.MEM | size, 7, 6, data),
            Instruction(isa.LDX | isa.MEM | size, 8, 6, end),
        ]
        body += [copy(2, 7), add(2, 14)]
        body += [Instruction(isa.JMP | isa.Jump.JGT | isa.X, 2, 8, 0)]
    body += [*maps.pointers(1)[0], copy(2, 10), add(2, -68), call(Helper.map_lookup_elem)]
    body += [Instruction(isa.JMP | isa.Jump.JNE | isa.K, 0, offset=2, imm=0), mov(0, 1), EXIT, copy(9, 0)]
    if found:
        # A packet that is too short takes the same way out.
        at = next(i for i, insn in enumerate(body) if insn.opcode == isa.JMP | isa.Jump.JGT | isa.X)
        out_of = len(body) - 3
        body[at].offset = sum(insn.slots for insn in body[at + 1 : out_of])
    return out + body


@cache
def packet_fields(key: Key) -> tuple[int, int, int] | None:
    """The size code and the offsets of ``data`` and ``data_end``, where the context has both."""
    reads, _, meanings = context(key)
    at = {meaning: offset for offset, meaning in sorted(meanings.items(), reverse=True)}
    if "pkt" not in at or "pkt_end" not in at:
        return None
    return (isa.W if reads[4] >> at["pkt"] & 1 else isa.DW), at["pkt"], at["pkt_end"]


def blamed(log: str) -> str:
    """The message: the last line of the log but the statistics."""
    lines = [line for line in log.splitlines() if line and not line.startswith("processed ")]
    return lines[-1] if lines else ""


# The verifier lists all kinds of pointers that it takes; what they have in common says it shorter.
WORDS: Final = (
    ("fp, pkt,", "memory"),
    ("sock_common,", "socket"),
    ("percpu_", "percpu"),
    ("ptr_,", "kernel"),
)


def in_short(kind: str) -> str:
    return next((word for start, word in WORDS if kind.startswith(start)), kind.replace(", ", "/"))


def arguments(helper: int, key: Key, maps: Maps) -> tuple[list[str], list[Instruction] | None]:
    """What each argument must be, as the verifier names it, as far as the verifier can be brought to say it.

    An argument that may be any number is ``"scalar"``. With it the set-up of a call that is accepted, if one
    was found.
    """
    start = prologue(maps, key)
    setup: list[Instruction] = []
    wanted: list[str] = []
    for register in range(1, 6):
        ok, log = load(key, [*start, *setup, call(helper), mov(0, 1), EXIT])
        unset = re.search(rf"^R{register} !read_ok$", log, re.M)
        if ok or not unset:
            return wanted, setup if ok else None
        _, log = load(key, [*start, *setup, mov(register, 1), call(helper), mov(0, 1), EXIT])
        expected = re.search(rf"^R{register} type=scalar expected=(.*)$", log, re.M)
        kind = in_short(expected[1].strip()) if expected else "?"
        _, log = load(key, [*start, *setup, mov(register, 0), call(helper), mov(0, 1), EXIT])
        if expected and f"R{register} type=" not in log:
            kind += "|null"
        if not expected and f"R{register} " not in re.sub(r"\d+: .*|R\d .*@.*", "", log).replace("; R", ""):
            kind = "scalar"
        wanted.append(kind)
        best: list[Instruction] | None = None
        for candidate in candidates(register, maps):
            ok, log = load(key, [*start, *setup, *candidate, call(helper), mov(0, 1), EXIT])
            if ok or (register < 5 and re.search(rf"^R{register + 1} !read_ok$", log, re.M)):
                best = candidate
                break
        if best is None:
            return wanted, None
        setup += best
    ok, _ = load(key, [*start, *setup, call(helper), mov(0, 1), EXIT])
    return wanted, setup if ok else None


def moves_packet(helper: int, key: Key, maps: Maps, setup: list[Instruction]) -> bool:
    """Whether a packet pointer is lost by the call."""
    start = prologue(maps, key)
    look = [Instruction(isa.LDX | isa.MEM | isa.B, 1, 7)]
    return not load(key, [*start, *setup, call(helper), *look, mov(0, 1), EXIT])[0]


def result_of(helper: int, key: Key, maps: Maps, setup: list[Instruction]) -> str:
    """What is in r0 behind the call, as the verifier names it, without its ranges."""
    start = prologue(maps, key)
    _, log = load(key, [*start, *setup, call(helper), copy(3, 0), mov(0, 1), EXIT], level=2)
    found = re.search(r"r3 = r0 +; R0(?:_\w+)?=(\w+(?:\([^)]*\)?)?)", log)
    return found[1].split("(")[0] if found else ""


@cache
def context(key: Key) -> tuple[dict[int, int], dict[int, int], dict[int, str]]:
    """Bit masks of the offsets at which 1, 2, 4, 8 bytes may be read and written, and what is no number."""
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    meanings: dict[int, str] = {}
    value = 1 if load(key, [mov(0, 1), EXIT])[0] else 0
    for size, code in isa.SIZE_CODE.items():
        read = write = 0
        for offset in range(SCANNED):
            ok, log = load(
                key, [Instruction(isa.LDX | isa.MEM | code, 2, 1, offset), mov(0, value), EXIT], level=2
            )
            if ok:
                read |= 1 << offset
                found = re.search(r"; R1=\S+ R2(?:_\w+)?=([a-z_]+)", log)
                if found and found[1] != "scalar":
                    meanings[offset] = found[1]
            ok, _ = load(
                key,
                [mov(2, 0), Instruction(isa.STX | isa.MEM | code, 1, 2, offset), mov(0, value), EXIT],
            )
            if ok:
                write |= 1 << offset
        reads[size], writes[size] = read, write
    return dict(sorted(reads.items())), dict(sorted(writes.items())), dict(sorted(meanings.items()))


def literal(value: Any) -> str:
    return pprint.pformat(value, width=106, compact=True, sort_dicts=False)


def source(release: str) -> str:
    """The text of ``helpers.py``."""
    keys = kinds()
    rights = {key: allowed_helpers(key) for key in keys}
    each = one_of_each(rights)
    maps = Maps()
    wanted: dict[int, list[str]] = {}
    moving: list[int] = []
    results: dict[int, str] = {}
    for helper, key in sorted(each.items()):
        args, setup = arguments(helper, key, maps)
        if args:
            wanted[helper] = args
        if setup is not None:
            results[helper] = result_of(helper, key, maps, setup)
            if packet_fields(key) and moves_packet(helper, key, maps, setup):
                moving.append(helper)
    special: dict[Key, dict[int, tuple[str, ...]]] = {}
    for key in keys:
        for helper in rights[key]:
            args = wanted.get(helper, []) if key == each[helper] else arguments(helper, key, maps)[0]
            if args != wanted.get(helper, []):
                special.setdefault(key, {})[helper] = tuple(args)
    texts: list[str] = []
    numbers: dict[str, int] = {}
    of_key: dict[Key, int] = {}
    for key in keys:
        text = ",".join(map(str, ranges(rights[key])))
        of_key[key] = numbers.setdefault(text, len(numbers))
    texts = list(numbers)
    contexts: dict[str, int] = {}
    context_of: dict[Key, int] = {}
    for key in keys:
        if key[0] in WITH_CONTEXT:
            reads, writes, meanings = context(key)
            text = repr(
                ({s: hex(m) for s, m in reads.items()}, {s: hex(m) for s, m in writes.items()}, meanings)
            )
            context_of[key] = contexts.setdefault(text, len(contexts))
    lines = [
        "# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only",
        f"# Generated by `python scripts/generate_rights.py` on Linux {release}. Do not edit.",
        '"""What the verifier lets programs of each type do: helpers to call, bytes of the context to use.',
        "",
        "A key is ``(ProgType, AttachType)``, the latter 0 where loading does not ask for it. A type that is",
        'not here (tracing programs, which are loaded for one function of the kernel) was not tried."""',
        "",
        "from typing import Final",
        "",
        "#: Sets of helpers, as ranges of numbers.",
        "HELPER_SETS: Final[tuple[str, ...]] = (",
        *(
            f"    {chunk}," if len(text) < 90 else wrapped(text)
            for text in texts
            for chunk in [repr(text).replace("'", '"')]
        ),
        ")",
        "#: Which set the programs of a type may call.",
        f"HELPERS_OF: Final[dict[tuple[int, int], int]] = {literal(of_key)}",
        "#: Helpers for programs with a GPL-compatible license.",
        f'GPL_ONLY: Final = "{",".join(ranges(gpl_only(rights)))}"',
        "#: Helpers behind which packet pointers are worth nothing.",
        f'MOVES_PACKET: Final = "{",".join(ranges(moving))}"',
        "#: What arguments must be, in the verifier's words: as many as it could be brought to name.",
        "#: ``scalar`` is any number, ``?`` what it has no word for; ``|null`` may be 0 instead.",
        f"ARGUMENTS: Final[dict[int, tuple[str, ...]]] = {literal({h: tuple(a) for h, a in wanted.items()})}",
        "#: The same where it is different in programs of one type.",
        f"ARGUMENTS_OF: Final[dict[tuple[int, int], dict[int, tuple[str, ...]]]] = {literal(special)}",
        "#: What is in r0 after a call, in the verifier's words: the helpers of each.",
        "RESULTS: Final[dict[str, str]] = {",
        *(f'    "{name}": ({chunks_of(results, name)}),' for name in sorted(set(results.values()) - {""})),
        "}",
        "#: For each kind of context: at which offsets 1, 2, 4, 8 bytes can be read, and written (masks),",
        "#: and what is not a number there.",
        "CONTEXTS: Final[tuple[tuple[dict[int, int], dict[int, int], dict[int, str]], ...]] = (",
    ]
    for text in contexts:
        reads, writes, meanings = eval(text)
        lines += [
            "    (",
            "        {" + ", ".join(f"{s}: {m}" for s, m in reads.items()) + "},",
            "        {" + ", ".join(f"{s}: {m}" for s, m in writes.items()) + "},",
            f"        {literal(meanings)},",
            "    ),",
        ]
    lines += [
        ")",
        "#: Which kind of context the programs of a type have.",
        f"CONTEXT_OF: Final[dict[tuple[int, int], int]] = {literal(context_of)}",
    ]
    for m in maps.fds:
        m.close()
    return "\n".join(lines) + "\n"


def ranges(numbers: list[int]) -> list[str]:
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and out[-1][1] == number - 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return [str(a) if a == b else f"{a}-{b}" for a, b in out]


def wrapped(text: str) -> str:
    parts, line = [], ""
    for piece in text.split(","):
        if len(line) + len(piece) > 90:
            parts.append(line)
            line = ""
        line += piece + ","
    parts.append(line.rstrip(","))
    return "    " + "\n    ".join(f'"{part}"' for part in parts) + ","


def chunks_of(results: dict[int, str], name: str) -> str:
    return wrapped(",".join(ranges([h for h, result in results.items() if result == name]))).rstrip(",")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the file differs")
    args = parser.parse_args(argv)
    release = re.match(r"\d+\.\d+", platform.release())
    text = source(release.group() if release else "?")
    # As it will be checked in; ruff is there wherever this tree is worked on.
    text = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", str(args.out), "-"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if not args.check:
        args.out.write_text(text, encoding="utf-8")
    elif not args.out.is_file() or args.out.read_text(encoding="utf-8") != text:
        print(f"{args.out} differs from what this kernel says: run {parser.prog}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
