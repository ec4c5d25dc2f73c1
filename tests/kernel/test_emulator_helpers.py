# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers beside the kernel's own: results, memory, packets and maps are equal in both engines."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from loader.objects import Map, Program, possible_cpus
from loader.verifier import VerifierError
from pybpfasm import isa
from pybpfasm.check import check
from pybpfasm.emulator import Emulator, EmulatorFault, Skb, Socket, Task, Xdp, checksum
from pybpfasm.extern import kfunc
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Imm64
from pybpfasm.kernel.context import BpfSock, FibLookup, SkBuff, SockTupleV4, XdpMd
from pybpfasm.kernel.defines import BPF_F_TEST_SKB_CHECKSUM_COMPLETE
from pybpfasm.kernel.enums import (
    BPF_CSUM_LEVEL_DEC,
    BPF_CSUM_LEVEL_INC,
    BPF_CSUM_LEVEL_QUERY,
    BPF_CSUM_LEVEL_RESET,
    BPF_EXIST,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET,
    BPF_F_BROADCAST,
    BPF_F_EXCLUDE_INGRESS,
    BPF_F_INVALIDATE_HASH,
    BPF_F_LOCK,
    BPF_F_NO_PREALLOC,
    BPF_F_RDONLY_PROG,
    BPF_F_RECOMPUTE_CSUM,
    BPF_FIB_LOOKUP_DIRECT,
    BPF_FIB_LOOKUP_OUTPUT,
    BPF_FIB_LOOKUP_SKIP_NEIGH,
    BPF_FIB_LOOKUP_SRC,
    BPF_FIB_LOOKUP_TBID,
    BPF_NOEXIST,
    FibLookupResult,
    MapType,
    ProgType,
    TcpState,
)
from pybpfasm.kernel.values import BpfSpinLock, BpfTimer
from pybpfasm.layout import U32, Nested, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.net import AF_INET, AF_INET6
from pybpfasm.program import ProgramSpec
from pybpfasm.text import assemble
from tests.kernel.programs.rig import memory_for_timers
from tests.requires import Kfunc, requires

CPU = sorted(os.sched_getaffinity(0))[-1]
OUT = MapSpec("out", MapType.ARRAY, U32(), 256, 1)
VALUE = MapSpec("value", MapType.ARRAY, U32(), 64, 1)
RING = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
EVENTS = MapSpec("events", MapType.PERF_EVENT_ARRAY, U32(), U32(), 2)
_MAPS = {one.name: one for one in (OUT, VALUE, RING, EVENTS)}

# Where programs find their input on the stack, and where they leave results: 128 bytes each.
INPUT, RESULT = -256, -128


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    """Stay on the CPU that the emulator says it has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {CPU})
    yield
    os.sched_setaffinity(0, before)


def _written(at: int, data: bytes) -> list[Instruction]:
    """Instructions that put *data* at *at* on the stack, with zeros behind it up to 128 bytes."""
    out: list[Instruction] = []
    padded = data.ljust(128, b"\0")
    for start in range(0, 128, 8):
        value = int.from_bytes(padded[start : start + 8], "little")
        low, high = (int.from_bytes(padded[start + i : start + i + 4], "little", signed=True) for i in (0, 4))
        out.append(Instruction(isa.LD_IMM64, 2, imm=low, imm_high=high))
        out.append(Instruction(isa.STX | isa.MEM | isa.DW, 10, 2, at + start))
        assert value >= 0
    return out


def _assembled(text: str) -> list[Instruction]:
    """Assembly in which functions of the kernel are called by name."""
    called = re.findall(r"call (bpf_iter_\w+)", text)
    out: list[Instruction] = []
    for insn in assemble(text, kfuncs={name: number for number, name in enumerate(called)}):
        if insn.opcode == isa.OP_CALL and insn.src == isa.CallKind.KFUNC:
            insn = replace(insn, imm=0, reference=kfunc(called[insn.imm]))
        out.append(insn)
    return out


def _body(text: str, texts: Sequence[MapSpec]) -> list[Instruction]:
    """Assembly in which ``rN = map NAME`` is a map's address and ``rN = value NAME`` that of its value."""
    out: list[Instruction] = []
    plain: list[str] = []
    known = {**_MAPS, **{one.name: one for one in texts}}
    for line in [one.strip() for one in text.splitlines()] + [""]:
        words = line.split()
        if line and not (len(words) == 4 and words[2] in ("map", "value")):
            plain.append(line)
            continue
        if plain:
            out += _assembled("\n".join(plain))
            plain = []
        if line:
            kind = Imm64.MAP_FD if words[2] == "map" else Imm64.MAP_VALUE
            out.append(Instruction(isa.LD_IMM64, int(words[0][1:]), kind, reference=known[words[3]]))
    return out


def program(
    text: str, *, data: bytes = b"", texts: Sequence[MapSpec] = (), kind: ProgType = ProgType.SCHED_CLS
) -> ProgramSpec:
    """A program of *text*, whose r0 and 128 bytes of results go to map ``out``."""
    code = [
        *assemble("r6 = r1"),
        *_written(INPUT, data),
        *_written(RESULT, b""),
        *assemble("r1 = r6"),
        *_body(text, texts),
        *assemble("r7 = r0"),
        Instruction(isa.LD_IMM64, 9, Imm64.MAP_VALUE, reference=OUT),
        *assemble("*(u64 *)(r9 +0) = r7"),
    ]
    for at in range(0, 128, 8):
        code += assemble(f"r2 = *(u64 *)(r10 {RESULT + at:+})\n*(u64 *)(r9 +{8 + at}) = r2")
    code += assemble("r0 = r7\nexit")
    return ProgramSpec("helpers", kind, None, "GPL", tuple(code), (), "little")


@dataclass
class Outcome:
    """What a run leaves behind."""

    value: int
    packet: bytes
    out: bytes


PACKET = bytes(12) + b"\x08\x00" + b"\x45" + bytes(range(1, 100))


def _context(kind: ProgType, packet: bytes) -> Skb | Xdp:
    """The context of a test run, which comes in on ``lo`` and has a socket."""
    if kind is ProgType.XDP:
        return Xdp(packet, ingress_ifindex=1)
    return Skb(packet, ifindex=1, socket=Socket())


def both(
    spec: ProgramSpec,
    packet: bytes = PACKET,
    *,
    task: Task | None = None,
    complete: bool = False,
    prepare: Callable[[Emulator], object] = lambda emulator: None,
) -> Outcome:
    """Run in the kernel and in both engines, which must agree; returns what they agree on.

    With *complete* the packet has a sum over all behind the link header (CHECKSUM_COMPLETE).
    """
    cpus = possible_cpus()
    with ExitStack() as stack:
        maps = {one.name: stack.enter_context(Map.create(one)) for one in spec.maps}
        kernel = stack.enter_context(Program.load(spec, maps))
        context = SkBuff.pack() if spec.type is ProgType.SCHED_CLS else b""
        flags = BPF_F_TEST_SKB_CHECKSUM_COMPLETE if complete else 0
        found = kernel.test_run(packet, ctx=context, data_out_size=70_000, flags=flags)
        expected = Outcome(found.retval, found.data, bytes(maps["out"][0]))
    for engine in ("interpret", "translate"):
        emulator = Emulator(cpus=cpus, engine=engine)
        emulator.cpu = min(CPU, cpus - 1)
        if task is not None:
            emulator.task = task
        prepare(emulator)
        ctx = _context(spec.type, packet)
        if complete:
            assert isinstance(ctx, Skb)
            ctx.checksum, ctx.csum = "complete", checksum.partial(packet[14:], 0, "little")
        result = emulator.load(spec).run(ctx)
        assert Outcome(result.value, result.packet, emulator.map("out")[0]) == expected
    return expected


# --- Numbers out of text. ---

_NUMBERS = (
    b"0",
    b"42",
    b"-42",
    b"  \t\n17",
    b"\xa0 5",
    b"+7",
    b"--3",
    b"- 3",
    b"0x1F",
    b"0x",
    b"0xg",
    b"0X7fG",
    b"017",
    b"089",
    b"12abc",
    b"abc",
    b"-",
    b"   ",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808",
    b"-9223372036854775809",
    b"18446744073709551615",
    b"18446744073709551616",
    b"0" * 62 + b"9",
    b"0" * 63 + b"9",
    b" " * 70 + b"7",
    b"7\x009",
)


@pytest.mark.parametrize("name", ["strtol", "strtoul"])
@pytest.mark.parametrize("base", [0, 8, 10, 16])
def test_numbers_out_of_text(name: str, base: int) -> None:
    for text in _NUMBERS:
        both(_number(name, text, base))


def _number(name: str, text: bytes, flags: int) -> ProgramSpec:
    body = f"""
    r1 = r10
    r1 += {INPUT}
    r2 = {len(text)}
    r3 = {flags}
    r4 = r10
    r4 += {RESULT}
    call bpf_{name}
    """
    return program(body, data=text)


@pytest.mark.parametrize("flags", [2, 7, 17, 32, 10 + 32])
def test_what_is_no_base(flags: int) -> None:
    assert both(_number("strtol", b"11", flags)).value == 2**32 - 22


# --- Text. ---


def _rodata(name: str, text: bytes) -> MapSpec:
    return MapSpec(name, MapType.ARRAY, U32(), len(text), 1, flags=BPF_F_RDONLY_PROG, contents=text)


_FORMATS = (
    (b"plain", ()),
    (b"100%%", ()),
    (b"%d %i %u %x %X", (2**64 - 1, 7, 2**32 - 1, 0xBEEF, 0xBEEF)),
    (b"%ld %lu %llx %lld", (2**64 - 1, 2**64 - 1, 2**63, 2**63)),
    (b"[%5d][%-5d][%05d][%+d][% d]", (42, 42, 42, 42, 42)),
    (b"%c%c%c", (65, 66, 67)),
    (b"%d", (2**32 + 5,)),
    (b"%px", (0x1234,)),
    (b"%d and more", (1, 2, 3)),
    (b"tab\tand newline\n", ()),
)


@pytest.mark.parametrize("size", [64, 5, 1])
@pytest.mark.parametrize(("text", "values"), _FORMATS, ids=lambda value: repr(value)[:24])
def test_snprintf(text: bytes, values: tuple[int, ...], size: int) -> None:
    form = _rodata("form", text + b"\0")
    body = f"""
    r1 = r10
    r1 += {RESULT}
    r2 = {size}
    r3 = value form
    r4 = r10
    r4 += {INPUT}
    r5 = {8 * len(values)}
    call bpf_snprintf
    """
    both(program(body, data=b"".join(value.to_bytes(8, "little") for value in values), texts=[form]))


_PRINTED = (
    b"%d %s\0",
    b"%d %d %d %d\0",
    b"no zero",
    b"%f\0",
    b"%#x\0",
    b"%hd\0",
    b"%ll\0",
    b"%\0",
    b"%zu\0",
    b"a\x01b\0",
    b"\x80\0",
    b"%d%%\0",
    b"%pX\0",
    b"%5.2d\0",
)


@pytest.mark.parametrize("text", _PRINTED, ids=repr)
def test_trace_printk(text: bytes) -> None:
    """What the format may hold, by what the helper returns."""
    body = f"""
    r1 = r10
    r1 += {INPUT}
    r2 = {len(text)}
    r3 = 12
    r4 = 7
    r5 = 9
    call bpf_trace_printk
    """
    if b"%s" in text:
        body = body.replace("r4 = 7", f"r4 = r10\nr4 += {INPUT + 64}")
    both(program(body, data=text.ljust(64, b"\0") + b"hello\0"))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"abc", b"abc"),
        (b"abc", b"abd"),
        (b"abd", b"abc"),
        (b"ab", b"abc"),
        (b"abc", b"ab"),
        (b"\xff", b"a"),
        (b"", b""),
    ],
    ids=repr,
)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_strncmp(first: bytes, second: bytes, size: int) -> None:
    other = _rodata("other", second + b"\0")
    body = f"""
    r1 = r10
    r1 += {INPUT}
    r2 = {size}
    r3 = value other
    call bpf_strncmp
    """
    both(program(body, data=first, texts=[other]))


# --- Dynamic pointers. ---

DYNPTR = -280
_MAKE = f"""
r1 = value value
r2 = SIZE
r3 = FLAGS
r4 = r10
r4 += {DYNPTR}
call bpf_dynptr_from_mem
*(u64 *)(r10 {RESULT}) = r0
"""


def _dynptr(text: str, size: int = 48, flags: int = 0) -> str:
    return _MAKE.replace("SIZE", str(size)).replace("FLAGS", str(flags)) + text


def _read(offset: int, size: int, flags: int = 0) -> str:
    return f"""
    r1 = r10
    r1 += {RESULT + 8}
    r2 = {size}
    r3 = r10
    r3 += {DYNPTR}
    r4 = {offset}
    r5 = {flags}
    call bpf_dynptr_read
    """


def _write(offset: int, size: int, flags: int = 0) -> str:
    return f"""
    r1 = r10
    r1 += {DYNPTR}
    r2 = {offset}
    r3 = r10
    r3 += {INPUT}
    r4 = {size}
    r5 = {flags}
    call bpf_dynptr_write
    *(u64 *)(r10 {RESULT + 40}) = r0
    """


@pytest.mark.parametrize("flags", [0, 1])
@pytest.mark.parametrize(
    ("offset", "size"), [(0, 8), (40, 8), (41, 8), (48, 1), (16, 24), (1000, 8), (-1, 8)]
)
def test_dynptr_of_a_value(offset: int, size: int, flags: int) -> None:
    body = _dynptr(_write(offset, size, flags) + _read(8, 24) + f"*(u64 *)(r10 {RESULT + 48}) = r0")
    both(program(body + _read(offset, size, flags), data=bytes(range(1, 65))))


@pytest.mark.parametrize("flags", [1, 2])
def test_a_dynptr_that_could_not_be_made(flags: int) -> None:
    assert both(program(_dynptr(_write(0, 8) + _read(0, 8), flags=flags))).value == 2**32 - 22


@pytest.mark.parametrize(("offset", "size"), [(0, 16), (32, 16), (33, 16), (48, 16), (47, 1)])
def test_dynptr_data(offset: int, size: int) -> None:
    body = f"""
    r1 = r10
    r1 += {DYNPTR}
    r2 = {offset}
    r3 = {size}
    call bpf_dynptr_data
    if r0 == 0 goto pc+4
    r2 = 77
    *(u8 *)(r0 +0) = r2
    r0 = 1
    goto pc+0
    """
    both(program(_dynptr(_write(0, 48) + body) + _read(0, 48) + "r7 = r0", data=bytes(range(1, 65))))


@pytest.mark.parametrize("finish", ["submit", "discard"])
@pytest.mark.parametrize(("size", "flags"), [(16, 0), (0, 0), (4088, 0), (4089, 0), (16, 1), (1 << 24, 0)])
def test_a_record_as_a_dynptr(size: int, flags: int, finish: str) -> None:
    body = f"""
    r1 = map ring
    r2 = {size}
    r3 = {flags}
    r4 = r10
    r4 += {DYNPTR}
    call bpf_ringbuf_reserve_dynptr
    *(u64 *)(r10 {RESULT}) = r0
    {_write(0, 16)}
    {_read(4, 8)}
    *(u64 *)(r10 {RESULT + 48}) = r0
    r1 = r10
    r1 += {DYNPTR}
    r2 = 0
    call bpf_ringbuf_{finish}_dynptr
    r1 = map ring
    r2 = 0
    call bpf_ringbuf_query
    """
    both(program(body, data=bytes(range(1, 65))))


# --- Who the program runs for. ---


@pytest.mark.parametrize(
    "call",
    [
        "call bpf_get_current_pid_tgid",
        "call bpf_get_current_uid_gid",
        *[f"r1 = r10\nr1 += {RESULT}\nr2 = {size}\ncall bpf_get_current_comm" for size in (16, 4, 1, 40)],
        "r1 = r6\ncall bpf_get_socket_uid",
        "r1 = r6\ncall bpf_get_cgroup_classid",
    ],
    ids=lambda text: text.replace("\n", "; ")[-40:],
)
def test_task(call: str) -> None:
    task = Task(os.getpid(), os.getpid(), os.getuid(), os.getgid(), _comm())
    both(program(call), task=task)


def _comm() -> str:
    with open("/proc/thread-self/comm") as file:
        return file.read().rstrip("\n")


# --- Packets. ---

_PROTOCOL = f"r2 = *(u32 *)(r6 +{SkBuff.offsetof('protocol')})\n*(u64 *)(r10 {RESULT}) = r2"
_V6 = bytes(12) + b"\x86\xdd" + b"\x60" + bytes(range(1, 100))
_ARP = bytes(12) + b"\x08\x06" + bytes(range(1, 100))
_ENCAPS = (
    0,
    2,
    4,
    6,
    2 | 8,
    4 | 16,
    2 | 24,
    2 | 64,
    2 | 64 | 14 << 56,
    2 | 60 << 56,
    32,
    128,
    256,
    384,
    512,
    1,
    8,
)


@pytest.mark.parametrize("packet", [PACKET, _V6, _ARP], ids=["v4", "v6", "arp"])
@pytest.mark.parametrize("mode", [0, 1, 2])
def test_adjust_room(packet: bytes, mode: int) -> None:
    wrong = []
    for difference in (0, 4, 20, 40, -4, -20, -40, -60, -79, -80, 0xFFF, 0x1000, -0x1000):
        for flags in _ENCAPS:
            low, high = flags & 0xFFFFFFFF, flags >> 32
            body = f"""
            r1 = r6
            r2 = {difference}
            r3 = {mode}
            r4 = {high}
            r4 <<= 32
            r4 |= {low}
            call bpf_skb_adjust_room
            {_PROTOCOL}
            """
            try:
                both(program(body), packet)
            except AssertionError as error:
                wrong.append((difference, flags, str(error)[:300]))
    assert not wrong, wrong


def test_an_encapsulated_packet_is_not_encapsulated_again() -> None:
    call = "r1 = r6\nr2 = 20\nr3 = 1\nr4 = 2\ncall bpf_skb_adjust_room"
    assert both(program(f"{call}\n*(u64 *)(r10 {RESULT}) = r0\n{call}")).value == 2**32 - 114


@pytest.mark.parametrize("packet", [PACKET, _V6, _ARP], ids=["v4", "v6", "arp"])
@pytest.mark.parametrize("kind", [0x0008, 0xDD86, 0x0608])
@pytest.mark.parametrize("flags", [0, 1])
def test_change_proto(packet: bytes, kind: int, flags: int) -> None:
    body = f"r1 = r6\nr2 = {kind}\nr3 = {flags}\ncall bpf_skb_change_proto\n{_PROTOCOL}"
    both(program(body), packet)


@pytest.mark.parametrize("tos", range(4))
@pytest.mark.parametrize("version", [4, 6])
def test_ecn(tos: int, version: int) -> None:
    packet = bytearray(PACKET if version == 4 else _V6)
    packet[15] = 0xA4 | tos if version == 4 else tos << 4 | 5
    both(program("r1 = r6\ncall bpf_skb_ecn_set_ce"), bytes(packet))
    both(program("r1 = r6\ncall bpf_skb_ecn_set_ce"), _ARP)
    # What the tag is of decides, and the bytes behind the link header are taken for the IP header.
    inner = packet[12:14]
    for tags in (b"\x81\0\0" + bytes([tos]), b"\x88\xa8\0\1\x81\0" + bytes([tos << 4, 5])):
        for end in (14, 17, 18, 60, 100):
            tagged = (bytes(12) + tags + inner + bytes(packet[14:]))[:end]
            both(program("r1 = r6\ncall bpf_skb_ecn_set_ce"), tagged)
            both(program(f"{_HEAD}r1 = r6\ncall bpf_skb_ecn_set_ce"), tagged)


@pytest.mark.parametrize("packet", [PACKET, _ARP], ids=["v4", "arp"])
@pytest.mark.parametrize("clock", range(4))
@pytest.mark.parametrize("stamp", [0, 12345])
def test_set_tstamp(packet: bytes, clock: int, stamp: int) -> None:
    body = f"""
    r1 = r6
    r2 = {stamp}
    r3 = {clock}
    call bpf_skb_set_tstamp
    r2 = *(u8 *)(r6 +{SkBuff.offsetof("tstamp_type")})
    *(u64 *)(r10 {RESULT}) = r2
    r2 = *(u64 *)(r6 +{SkBuff.offsetof("tstamp")})
    *(u64 *)(r10 {RESULT + 8}) = r2
    """
    both(program(body), packet)


@pytest.mark.parametrize("kind", [ProgType.SCHED_CLS, ProgType.XDP], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    ("ifindex", "asked", "difference", "flags"),
    [
        (1, 0, 0, 0),
        (1, 65536, 0, 0),
        (1, 65537, 0, 0),
        (1, 65537, -1, 0),
        (1, 0, 65540, 0),
        (99, 0, 0, 0),
        (0, 0, 0, 0),
        (1, 0, 0, 2),
        (1, 5, 0, 1),
        (1, 0, 1, 1),
        *[
            (1, asked, by, 0)
            for asked in (2**31 - 14, 2**31, 2**32 - 15, 2**32 - 1)
            for by in (-1, 0, 2**31 - 1)
        ],
    ],
)
def test_check_mtu(
    ifindex: int, asked: int, difference: int, flags: int, kind: ProgType, netns: object
) -> None:
    body = f"""
    r1 = {asked} ll
    *(u32 *)(r10 {RESULT}) = r1
    r1 = r6
    r2 = {ifindex}
    r3 = r10
    r3 += {RESULT}
    r4 = {difference}
    r5 = {flags}
    call bpf_check_mtu
    """
    both(program(body, kind=kind))


@pytest.mark.parametrize("size", [0, 4, 10, 60, 99, 114, 115, 200, 300, 65536])
@pytest.mark.parametrize("flags", [0, 1])
def test_change_tail(size: int, flags: int) -> None:
    both(program(f"r1 = r6\nr2 = {size}\nr3 = {flags}\ncall bpf_skb_change_tail"))


@pytest.mark.parametrize("room", [0, 4, 14, 64, 65535, 65536])
@pytest.mark.parametrize("flags", [0, 1])
def test_change_head(room: int, flags: int) -> None:
    both(program(f"r1 = r6\nr2 = {room}\nr3 = {flags}\ncall bpf_skb_change_head"))


@pytest.mark.parametrize("kind", [0, 1, 2, 3, 4, 5])
def test_change_type(kind: int) -> None:
    read = f"r2 = *(u32 *)(r6 +{SkBuff.offsetof('pkt_type')})\n*(u64 *)(r10 {RESULT}) = r2"
    both(program(f"r1 = r6\nr2 = {kind}\ncall bpf_skb_change_type\n{read}"))


@pytest.mark.parametrize("protocol", [0x0081, 0xA888, 0x0008])
def test_vlan(protocol: int) -> None:
    fields = "\n".join(
        f"r2 = *(u32 *)(r6 +{SkBuff.offsetof(name)})\n*(u64 *)(r10 {RESULT + 8 * i}) = r2"
        for i, name in enumerate(("vlan_present", "vlan_tci", "vlan_proto", "protocol", "len"))
    )
    push = f"r1 = r6\nr2 = {protocol}\nr3 = 0x123\ncall bpf_skb_vlan_push\n"
    pop = "r1 = r6\ncall bpf_skb_vlan_pop\n"
    for calls in (push, push + push, push + pop, push + push + pop, push + push + pop + pop, pop):
        both(program(calls + fields))


def _saved(at: int) -> str:
    """Keep r0 as result number *at*."""
    return f"*(u64 *)(r10 {RESULT + 8 * at}) = r0\n"


_FIELDS = "\n".join(
    f"r2 = *(u32 *)(r6 +{SkBuff.offsetof(name)})\n*(u64 *)(r10 {RESULT + 64 + 8 * i}) = r2"
    for i, name in enumerate(("vlan_present", "vlan_tci", "protocol", "len"))
)
_POP = "r1 = r6\ncall bpf_skb_vlan_pop\n"
_TAG = bytes(12) + b"\x81\0\0\x05"


@pytest.mark.parametrize(
    "packet",
    [
        bytes(12) + b"\x81\0",
        bytes(12) + b"\x81\0ab",
        _TAG + b"\x08\0",
        _TAG + b"\x81\0",
        _TAG + b"\0\x20" + bytes(60),
        _TAG + b"\0\x20\xff\xff" + bytes(60),
        bytes(12) + b"\0\x20" + bytes(60),
        bytes(12) + b"\0\x20\xff\xff" + bytes(60),
        bytes(12) + b"\x05\xff" + bytes(60),
        bytes(12) + b"\x06\0" + bytes(60),
    ],
)
def test_tags_that_end_too_early_and_frames_with_a_length(packet: bytes) -> None:
    both(program(_POP + _saved(0) + _POP + _saved(1) + _FIELDS), packet)


_HEAD = "r1 = r6\nr2 = 8\nr3 = 0\ncall bpf_skb_change_head\n"
_PUSH = "r1 = r6\nr2 = 0x81\nr3 = 0x123\ncall bpf_skb_vlan_push\n"


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("calls", [_HEAD, _PUSH * 2, _HEAD + _PUSH * 2, _HEAD + _PUSH * 3 + _POP * 2])
def test_where_the_network_header_is(calls: str, start: int) -> None:
    load = f"r1 = r6\nr2 = 0\nr3 = r10\nr3 += {RESULT}\nr4 = 8\nr5 = {start}\n"
    both(program(f"{calls}{load}call bpf_skb_load_bytes_relative\n{_saved(1)}"))


_QUERY, _MORE, _LESS, _NONE = (
    BPF_CSUM_LEVEL_QUERY,
    BPF_CSUM_LEVEL_INC,
    BPF_CSUM_LEVEL_DEC,
    BPF_CSUM_LEVEL_RESET,
)


@pytest.mark.parametrize(
    "levels",
    [
        (_QUERY,),
        (_MORE, _QUERY),
        (_LESS, _QUERY),
        (_NONE, _QUERY),
        (4, _QUERY),
        (_MORE, _MORE, _QUERY),
        (*[_MORE] * 6, _QUERY),
        (_MORE, _MORE, _LESS, _QUERY),
        (_MORE, _LESS, _QUERY, _MORE, _QUERY),
        (_MORE, _MORE, _NONE, _QUERY, _MORE, _QUERY),
    ],
)
@pytest.mark.parametrize("complete", [False, True])
def test_csum_level(levels: tuple[int, ...], complete: bool) -> None:
    calls = (f"r1 = r6\nr2 = {level}\ncall bpf_csum_level\n{_saved(i)}" for i, level in enumerate(levels))
    both(program("".join(calls)), complete=complete)


@pytest.mark.parametrize("difference", [-8, 0, 8, 0x1000])
@pytest.mark.parametrize("flags", [0, BPF_F_ADJ_ROOM_NO_CSUM_RESET])
def test_verified_checksums_of_a_packet_with_other_headers(difference: int, flags: int) -> None:
    ask = f"r1 = r6\nr2 = {_MORE}\ncall bpf_csum_level\n" * 2
    ask += f"r1 = r6\nr2 = {difference}\nr3 = 0\nr4 = {flags}\ncall bpf_skb_adjust_room\n{_saved(0)}"
    found = both(program(f"{ask}r1 = r6\nr2 = {_QUERY}\ncall bpf_csum_level"))
    assert found.value == (1 if flags or difference == 0x1000 else 2**32 - 13)


_UPDATE = "r1 = r6\nr2 = 0\ncall bpf_csum_update\n"
_STORE = f"r3 = r10\nr3 += {INPUT}\nr5 = {BPF_F_RECOMPUTE_CSUM}\ncall bpf_skb_store_bytes\n"


@pytest.mark.parametrize(
    ("call", "packet"),
    [
        *[
            (f"r1 = r6\nr2 = {at}\nr4 = {size}\n{_STORE}", PACKET)
            for at in (20, 21, 33)
            for size in (1, 3, 8)
        ],
        *[
            (f"r1 = r6\nr2 = {size}\nr3 = 0\ncall bpf_skb_change_tail\n", PACKET + bytes(30))
            for size in (len(PACKET) + 10, len(PACKET) + 30, 200)
        ],
        ("r1 = r6\nr2 = -8\nr3 = 0\nr4 = 0\ncall bpf_skb_adjust_room\n", PACKET),
        ("r1 = r6\nr2 = 8\nr3 = 0\nr4 = 0\ncall bpf_skb_adjust_room\n", PACKET),
    ],
)
def test_the_packets_own_sum(call: str, packet: bytes) -> None:
    both(program(call + _saved(0) + _UPDATE + _saved(1), data=b"qwertyuiop"), packet, complete=True)


def test_an_encapsulated_packet_keeps_its_tail() -> None:
    call = "r1 = r6\nr2 = 20\nr3 = 1\nr4 = 2\ncall bpf_skb_adjust_room\n"
    found = both(program(f"{call}r1 = r6\nr2 = 60\nr3 = 0\ncall bpf_skb_change_tail"))
    assert found.value == 2**32 - 524 and len(found.packet) == len(PACKET) + 20


def test_store_bytes_invalidates_the_hash() -> None:
    body = f"""
    r1 = r6
    r2 = 77
    call bpf_set_hash
    r2 = *(u32 *)(r6 +{SkBuff.offsetof("hash")})
    *(u64 *)(r10 {RESULT}) = r2
    r1 = r6
    r2 = 0
    r3 = r10
    r3 += {INPUT}
    r4 = 4
    r5 = {BPF_F_INVALIDATE_HASH}
    call bpf_skb_store_bytes
    r2 = *(u32 *)(r6 +{SkBuff.offsetof("hash")})
    *(u64 *)(r10 {RESULT + 8}) = r2
    """
    assert both(program(body)).out[8:24] == (77).to_bytes(16, "little")


@pytest.mark.parametrize("size", [0, 1, 19, 20, 21, 24, 28])
@pytest.mark.parametrize("flags", [0, 1])
def test_redirect_neigh(size: int, flags: int) -> None:
    both(program(f"r1 = 1\nr2 = r10\nr2 += {INPUT}\nr3 = {size}\nr4 = {flags}\ncall bpf_redirect_neigh"))


@pytest.mark.parametrize(("ifindex", "found"), [(1, 0), (0, -22), (99, -22), (-1, -22)])
@pytest.mark.parametrize("flags", [0, 1, 2])
def test_clone_redirect(ifindex: int, found: int, flags: int, netns: object) -> None:
    spec = program(f"r1 = r6\nr2 = {ifindex}\nr3 = {flags}\ncall bpf_clone_redirect")
    assert both(spec).value == (found if flags < 2 else -22) % 2**32


@pytest.mark.parametrize("type", [MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP])
@pytest.mark.parametrize("verdict", [0, 1, 3, 4, 32])
@pytest.mark.parametrize("flags", [0, BPF_F_BROADCAST, BPF_F_EXCLUDE_INGRESS, 24])
def test_redirect_map_where_nothing_is(type: MapType, verdict: int, flags: int) -> None:
    there = MapSpec("there", type, U32(), U32(), 4)
    body = f"r1 = map there\nr2 = 1\nr3 = {verdict | flags}\ncall bpf_redirect_map"
    both(program(body, kind=ProgType.XDP, texts=(there,)))


def test_store_bytes_leaves_pointers_into_a_frame() -> None:
    body = f"""
    r7 = *(u32 *)(r6 +{XdpMd.offsetof("data")})
    r8 = *(u32 *)(r6 +{XdpMd.offsetof("data_end")})
    r0 = 1
    r2 = r7
    r2 += 20
    if r2 > r8 goto +10
    *(u8 *)(r7 +1) = 65
    r1 = r6
    r2 = 2
    r3 = r10
    r3 += {INPUT}
    r4 = 4
    call bpf_xdp_store_bytes
    r2 = *(u64 *)(r7 +0)
    *(u64 *)(r10 {RESULT}) = r2
    *(u8 *)(r7 +7) = 66
    """
    found = both(program(body, kind=ProgType.XDP, data=b"abcd"))
    assert found.packet[:8] == b"\0Aabcd\0B" and found.out[8:16] == b"\0Aabcd\0\0"


@pytest.mark.parametrize(
    "moves",
    [("head 8", "head -8"), ("meta -8", "head -8", "meta 8"), ("head 12", "meta -4", "head -12", "meta 4")],
)
def test_what_was_before_a_frame_is_there_again(moves: tuple[str, ...]) -> None:
    calls = ""
    for number, move in enumerate(moves):
        what, by = move.split()
        calls += f"r1 = r6\nr2 = {by}\ncall bpf_xdp_adjust_{what}\n{_saved(number)}"
    both(program(calls, kind=ProgType.XDP), bytes(range(1, 60)))


@pytest.mark.parametrize(
    "name",
    ["skb_load_bytes", "skb_load_bytes_relative", "skb_store_bytes", "xdp_load_bytes", "xdp_store_bytes"],
)
def test_no_bytes_are_too_few(name: str) -> None:
    kind = ProgType.XDP if name.startswith("xdp") else ProgType.SCHED_CLS
    spec = program(f"r2 = 0\nr3 = r10\nr3 += {RESULT}\nr4 = 0\nr5 = 0\ncall bpf_{name}", kind=kind)
    with ExitStack() as stack:
        maps = {one.name: stack.enter_context(Map.create(one)) for one in spec.maps}
        with pytest.raises(VerifierError, match="R4 invalid zero-sized read"):
            stack.enter_context(Program.load(spec, maps))
    for engine in ("interpret", "translate"):
        with pytest.raises(EmulatorFault, match=f"{name} of 0 bytes"):
            Emulator(engine=engine).load(spec).run(_context(kind, PACKET))


class Locked(Struct):
    """A map's value with a lock."""

    lock = Nested(BpfSpinLock)


class Timed(Struct):
    """A map's value with a timer and a lock."""

    timer = Nested(BpfTimer)
    lock = Nested(BpfSpinLock)
    number = U32()


_AT = f"r2 = r10\nr2 += {INPUT + 64}\n"  # the key, zeros


@pytest.mark.parametrize("type", [MapType.ARRAY, MapType.HASH], ids=lambda type: type.name)
@pytest.mark.parametrize("flags", [0, BPF_NOEXIST, BPF_EXIST, BPF_F_LOCK, BPF_EXIST | BPF_F_LOCK])
def test_a_timer_where_its_value_is_replaced(type: MapType, flags: int) -> None:
    timed = MapSpec("timed", type, U32(), Timed, 4)

    def put(flags: int) -> str:
        return f"r1 = map timed\n{_AT}r3 = r10\nr3 += {INPUT}\nr4 = {flags}\ncall bpf_map_update_elem\n"

    def init(flags: int) -> str:
        found = f"r1 = map timed\n{_AT}call bpf_map_lookup_elem\nif r0 == 0 goto +6\nr1 = r0\n"
        return f"{found}r2 = map timed\nr3 = {flags} ll\ncall bpf_timer_init\n"

    delete = f"r1 = map timed\n{_AT}call bpf_map_delete_elem\n"
    with memory_for_timers():
        for clock in (1, 2, 7, 16, 1 << 32 | 1):
            calls = (put(0), init(clock), init(1), put(flags), init(1), delete, init(1))
            both(program("".join(call + _saved(at) for at, call in enumerate(calls)), texts=(timed,)))


PROGRAMS = MapSpec("programs", MapType.PROG_ARRAY, U32(), U32(), 1)
LOCKED = MapSpec("locked", MapType.ARRAY, U32(), Locked, 1)
_RESERVED = f"r1 = map ring\nr2 = 8\nr3 = 0\nr4 = r10\nr4 += {RESULT}\n"
_RECORD = f"{_RESERVED}call bpf_ringbuf_reserve\nif r0 == 0 goto +4\nr1 = r0\nr2 = 0\n"
_DYNPTR = f"{_RESERVED}call bpf_ringbuf_reserve_dynptr\nr1 = r10\nr1 += {RESULT}\nr2 = 0\n"
_NOTHING = {
    "tail_call": "r1 = r6\nr2 = map programs\nr3 = 0\n",
    "spin_unlock": "r1 = value locked\ncall bpf_spin_lock\nr1 = value locked\n",
    "ringbuf_submit": _RECORD,
    "ringbuf_discard": _RECORD,
    "ringbuf_submit_dynptr": _DYNPTR,
    "ringbuf_discard_dynptr": _DYNPTR,
}


@pytest.mark.parametrize("name", _NOTHING)
def test_helpers_that_leave_nothing_in_r0(name: str) -> None:
    code = [
        *assemble("r6 = r1"),
        *_body(f"{_NOTHING[name]}call bpf_{name}", (PROGRAMS, LOCKED)),
        *assemble("r7 = r0\nr0 = 0\nexit"),
    ]
    spec = ProgramSpec("nothing", ProgType.SCHED_CLS, None, "GPL", tuple(code), (), "little")
    with ExitStack() as stack:
        maps = {one.name: stack.enter_context(Map.create(one)) for one in spec.maps}
        with pytest.raises(VerifierError, match="R0 !read_ok"):
            stack.enter_context(Program.load(spec, maps))
    for engine in ("interpret", "translate"):
        with pytest.raises(EmulatorFault, match="r0 is read and was never set"):
            Emulator(engine=engine).load(spec).run(Skb(PACKET))
    assert "r0 is read before it is set" in [one.message for one in check(spec)]


def _address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


@pytest.fixture
def routed(netns: object) -> Iterator[tuple[int, bytes]]:
    """An interface with routes behind it; its number and its hardware address."""
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("add", ifname="out0", kind="veth", peer="far0", mtu=1400)
        index = ip.link_lookup(ifname="out0")[0]
        for name in ("far0", "out0"):
            ip.link("set", index=ip.link_lookup(ifname=name)[0], state="up")
        ip.addr("add", index=index, address="10.1.0.1", prefixlen=24)
        ip.addr("add", index=index, address="fd01::1", prefixlen=64, flags=2)  # IFA_F_NODAD
        hardware = bytes.fromhex(ip.get_links(index)[0].get("address").replace(":", ""))
        for via in ("10.1.0.2", "fd01::2"):
            ip.neigh("add", dst=via, lladdr="02:00:00:00:00:02", ifindex=index, state="permanent")
        for network, via in (
            ("10.2.0.0/16", "10.1.0.2"),
            ("10.3.0.0/16", "10.1.0.3"),
            ("fd02::/16", "fd01::2"),
        ):
            ip.route("add", dst=network, gateway=via, oif=index)
        for kind, network in (("blackhole", "10.4.0.0/16"), ("prohibit", "10.5.0.0/16")):
            ip.route("add", dst=network, type=kind)
        yield index, hardware


def _forwarding(value: int) -> None:
    for version in ("ipv4", "ipv6"):
        Path(f"/proc/sys/net/{version}/conf/lo/forwarding").write_text(str(value))


_TABLE = BPF_FIB_LOOKUP_DIRECT | BPF_FIB_LOOKUP_TBID


@pytest.mark.parametrize("kind", [ProgType.SCHED_CLS, ProgType.XDP], ids=lambda kind: kind.name)
@pytest.mark.parametrize("forwarding", [0, 1])
def test_fib_lookup(kind: ProgType, forwarding: int, routed: tuple[int, bytes]) -> None:
    index, hardware = routed
    _forwarding(forwarding)

    def prepare(emulator: Emulator) -> None:
        routes = emulator.routes
        routes.forwarding = bool(forwarding)
        known = {"ifindex": index, "source": hardware, "mtu": 1400}
        near = b"\2\0\0\0\0\2"
        routes.add("10.2.0.0/16", gateway="10.1.0.2", neighbour=near, **known)  # type: ignore[arg-type]
        routes.add("10.3.0.0/16", gateway="10.1.0.3", **known)  # type: ignore[arg-type]
        routes.add("fd02::/16", gateway="fd01::2", neighbour=near, metric=1024, **known)  # type: ignore[arg-type]
        routes.add("10.4.0.0/16", "blackhole")
        routes.add("10.5.0.0/16", "prohibit")

    seen = set()
    copy = "\n".join(
        f"r2 = *(u64 *)(r10 {INPUT + at})\n*(u64 *)(r10 {RESULT + at}) = r2" for at in range(0, 64, 8)
    )
    for target in (
        "10.2.0.9",
        "10.3.0.9",
        "10.4.0.9",
        "10.5.0.9",
        "127.0.0.1",
        "fd02::9",
        "fe80::1",
        "fd09::1",
    ):
        for length in (0, 1400, 1401):
            for flags in (0, BPF_FIB_LOOKUP_SKIP_NEIGH, _TABLE, 1 << 6):
                asked = bytearray(FibLookup.pack(tot_len=length, ifindex=1, tbid=254))
                asked[0] = AF_INET6 if ":" in target else AF_INET
                asked[32 : 32 + len(_address(target))] = _address(target)
                call = f"r1 = r6\nr2 = r10\nr2 += {RESULT}\nr3 = 64\nr4 = {flags}\ncall bpf_fib_lookup"
                for packet in (PACKET, PACKET + bytes(1418 - len(PACKET)), PACKET + bytes(1500)):
                    spec = program(f"{copy}\n{call}", data=bytes(asked), kind=kind)
                    seen.add(both(spec, packet, prepare=prepare).value)
    answers = {FibLookupResult.NOT_FWDED, FibLookupResult.FWD_DISABLED, 2**32 - 22}
    if forwarding:
        answers = {*FibLookupResult} - {5, 6, 9} | {2**32 - 22} - {FibLookupResult.FWD_DISABLED}
        answers.discard(FibLookupResult.UNREACHABLE)
    assert seen == {int(one) for one in answers}
    _forwarding(0)
    asked = bytearray(FibLookup.pack(ifindex=1, family=AF_INET))
    asked[32:36] = _address("10.2.0.9")
    call = f"r1 = r6\nr2 = r10\nr2 += {RESULT}\nr3 = 64\nr4 = {BPF_FIB_LOOKUP_OUTPUT}\ncall bpf_fib_lookup"
    found = both(program(f"{copy}\n{call}", data=bytes(asked), kind=kind))
    assert found.value == FibLookupResult.FWD_DISABLED


_SOURCED = BPF_FIB_LOOKUP_SRC | BPF_FIB_LOOKUP_SKIP_NEIGH


@pytest.mark.parametrize("kind", [ProgType.SCHED_CLS, ProgType.XDP], ids=lambda kind: kind.name)
@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
def test_fib_lookup_of_devices_and_sources(kind: ProgType, v6: bool, routed: tuple[int, bytes]) -> None:
    """Devices that are there and not, routes to others than the one asked for, addresses to send from."""
    from pyroute2 import IPRoute

    index, hardware = routed
    via, other, target = ("fd01::2", "fd77::1", "fd02::9") if v6 else ("10.1.0.2", "10.7.0.1", "10.2.0.9")
    chosen = "fd11::9" if v6 else "10.11.0.9"
    with IPRoute() as ip:
        far = ip.link_lookup(ifname="far0")[0]
        ip.addr("add", index=far, address=other, prefixlen=64 if v6 else 24, **({"flags": 2} if v6 else {}))
        ip.route("add", dst=chosen, dst_len=128 if v6 else 32, gateway=via, oif=index, prefsrc=other)
        if not v6:  # where the route to another device is passed over
            ip.route("add", dst="10.0.0.0/8", oif=far)
    for name in ("lo", "out0", "far0"):
        Path(f"/proc/sys/net/{'ipv6' if v6 else 'ipv4'}/conf/{name}/forwarding").write_text("1")

    def prepare(emulator: Emulator) -> None:
        routes = emulator.routes
        routes.forwarding = True
        known = {"ifindex": index, "source": hardware, "mtu": 1400, "gateway": via}
        known |= {"neighbour": b"\2\0\0\0\0\2", "metric": 1024 if v6 else 0}
        routes.add("fd02::/16" if v6 else "10.2.0.0/16", prefsrc="fd01::1" if v6 else "10.1.0.1", **known)  # type: ignore[arg-type]
        routes.add(chosen, prefsrc=other, **known)  # type: ignore[arg-type]
        if v6:
            emulator.mtu[far] = 1500
        else:
            routes.add("10.0.0.0/8", ifindex=far, prefsrc=other)

    copy = "\n".join(
        f"r2 = *(u64 *)(r10 {INPUT + at})\n*(u64 *)(r10 {RESULT + at}) = r2" for at in range(0, 64, 8)
    )
    seen = {}
    for address in (target, chosen):
        for device in (1, index, far, 0, 99):
            for flags in (0, BPF_FIB_LOOKUP_OUTPUT, _SOURCED, BPF_FIB_LOOKUP_OUTPUT | _SOURCED):
                asked = bytearray(FibLookup.pack(ifindex=device, family=AF_INET6 if v6 else AF_INET))
                asked[32 : 32 + len(_address(address))] = _address(address)
                call = f"r1 = r6\nr2 = r10\nr2 += {RESULT}\nr3 = 64\nr4 = {flags}\ncall bpf_fib_lookup"
                spec = program(f"{copy}\n{call}", data=bytes(asked), kind=kind)
                seen[address, device, flags] = both(spec, prepare=prepare)
    assert seen[target, 99, 0].value == seen[target, 0, 0].value == 2**32 - 19
    answer = FibLookupResult.SUCCESS if v6 else FibLookupResult.NOT_FWDED
    assert seen[target, 1, BPF_FIB_LOOKUP_OUTPUT].value == answer
    assert seen[target, far, BPF_FIB_LOOKUP_OUTPUT | _SOURCED].out[16:20] == (index if v6 else far).to_bytes(
        4, "little"
    )
    assert seen[chosen, 1, _SOURCED].out[24 : 24 + len(_address(other))] == _address(other)
    if not v6:
        return
    with IPRoute() as ip:
        for device in (1, index, far):
            ip.flush_addr(index=device)

    def nothing(emulator: Emulator) -> None:
        emulator.routes.forwarding = True
        emulator.routes.add("fd02::/16", ifindex=index, gateway=via, metric=1024)

    asked = bytearray(FibLookup.pack(ifindex=1, family=AF_INET6))
    asked[32:48] = _address(target)
    call = f"r1 = r6\nr2 = r10\nr2 += {RESULT}\nr3 = 64\nr4 = {_SOURCED}\ncall bpf_fib_lookup"
    spec = program(f"{copy}\n{call}", data=bytes(asked), kind=kind)
    assert both(spec, prepare=nothing).value == FibLookupResult.NO_SRC_ADDR


_LOOK_UP = f"""
r1 = r6
r2 = r10
r2 += {INPUT}
r3 = {SockTupleV4.sizeof}
r4 = {{low}} ll
r5 = 0
call bpf_{{name}}
"""
_STATE = f"""
r0 = *(u32 *)(r8 +{BpfSock.offsetof("state")})
"""


@pytest.mark.parametrize("kind", [ProgType.SCHED_CLS, ProgType.XDP], ids=lambda kind: kind.name)
def test_sockets_of_a_handshake(kind: ProgType, netns: object) -> None:
    """With TCP_DEFER_ACCEPT the listening side knows but a request until there is data."""
    with socket.socket() as listener, socket.socket() as client:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.settimeout(10)
        client.connect(listener.getsockname())
        here, there = listener.getsockname(), client.getsockname()
        home = _address("127.0.0.1")
        asked = home * 2 + there[1].to_bytes(2, "big") + here[1].to_bytes(2, "big")

        def prepare(emulator: Emulator) -> None:
            emulator.sockets.add(Socket(src=bytes(4), src_port=here[1], state=TcpState.LISTEN))
            half = Socket(home, src_port=here[1], dst=home, dst_port=there[1])  # type: ignore[arg-type]
            half.family, half.src, half.state = AF_INET, home, TcpState.NEW_SYN_RECV
            emulator.sockets.add(half)

        states = {}
        for name in ("sk_lookup_tcp", "skc_lookup_tcp"):
            for netns_id in (-1, 0xFFFFFFFF, -2, 0x80000000, 0x7FFFFFFF, 1 << 32, 1 << 32 | 0xFFFFFFFF):
                body = _LOOK_UP.format(name=name, low=hex(netns_id & 2**64 - 1)) + (
                    f"r8 = r0\nr0 = 99\nif r8 == 0 goto +5\n{_STATE}{_saved(0)}r1 = r8\ncall bpf_sk_release\n"
                    f"r0 = *(u64 *)(r10 {RESULT})"
                )
                found = both(program(body, data=asked, kind=kind), prepare=prepare)
                states[name, netns_id] = found.value
        assert states["sk_lookup_tcp", -2] == TcpState.LISTEN
        assert states["skc_lookup_tcp", -2] == TcpState.NEW_SYN_RECV
        assert states["sk_lookup_tcp", 0x7FFFFFFF] == 99
        twice = (
            _LOOK_UP.format(name="skc_lookup_tcp", low="0xffffffff")
            + "r8 = r0\n"
            + _LOOK_UP.format(name="skc_lookup_tcp", low="0xffffffff")
            + "r7 = r0\nif r8 == 0 goto +3\nr1 = r8\ncall bpf_sk_release\nr8 = 0\n"
            + "r0 = 99\nif r7 == 0 goto +6\nr8 = r7\n"
            + _STATE
            + f"{_saved(0)}r1 = r8\ncall bpf_sk_release\nr0 = *(u64 *)(r10 {RESULT})"
        )
        assert both(program(twice, data=asked, kind=kind), prepare=prepare).value == TcpState.NEW_SYN_RECV
        if kind is ProgType.XDP:
            return
        # What they say of a request: the socket that listens for it is found, and it has no storage.
        request = _LOOK_UP.format(name="skc_lookup_tcp", low="0xffffffff") + "r8 = r0\nr0 = 99\n"
        release = "r1 = r8\ncall bpf_sk_release\n" + f"r0 = *(u64 *)(r10 {RESULT})"
        state = f"if r0 == 0 goto +1\nr0 = *(u32 *)(r0 +{BpfSock.offsetof('state')})"
        listening = f"r1 = r8\ncall bpf_get_listener_sock\n{state}\n"
        stored = "r1 = map storage\nr2 = r8\ncall bpf_sk_storage_delete\n"
        storage = MapSpec("storage", MapType.SK_STORAGE, U32(), U32(), 0, flags=BPF_F_NO_PREALLOC)
        for calls, answer in ((listening, TcpState.LISTEN), (stored, 2**32 - 22)):
            body = f"{request}if r8 == 0 goto +8\n{calls}{_saved(0)}{release}"
            assert both(program(body, data=asked, texts=(storage,)), prepare=prepare).value == answer


@pytest.mark.parametrize("flags", [0, 0xFFFFFFFF, 1, 2, 7, 0x4_00000000, 0xFFFF_FFFFFFFF, 1 << 60])
@pytest.mark.parametrize("kind", [ProgType.SCHED_CLS, ProgType.XDP], ids=lambda kind: kind.name)
def test_perf_event_output_that_nobody_reads(flags: int, kind: ProgType) -> None:
    body = f"""
    r1 = r6
    r2 = map events
    r3 = {flags >> 32}
    r3 <<= 32
    r4 = {flags & 0xFFFFFFFF} ll
    r3 |= r4
    r4 = r10
    r4 += {INPUT}
    r5 = 16
    call bpf_perf_event_output
    """
    spec = program(body, kind=kind)
    with ExitStack() as stack:
        maps = {one.name: stack.enter_context(Map.create(one)) for one in spec.maps}
        kernel = stack.enter_context(Program.load(spec, maps))
        expected = kernel.test_run(PACKET, ctx=SkBuff.pack() if kind is ProgType.SCHED_CLS else b"").retval
    emulator = Emulator(cpus=2)
    emulator.map(EVENTS).readers.clear()  # type: ignore[attr-defined]
    assert emulator.load(spec).run(_context(kind, PACKET)).value == expected
    assert expected in (2**32 - 2, 2**32 - 7, 2**32 - 14, 2**32 - 22)


# --- Functions of the kernel: the iterator over numbers. ---

ITERATOR = Kfunc(ProgType.SCHED_CLS, "bpf_iter_num_new", (6, 4))
INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1
MOST = 8 * 1024 * 1024  # BPF_MAX_LOOPS, include/linux/bpf.h


def _iterator(name: str) -> str:
    return f"r1 = r10\nr1 += {INPUT - 8}\ncall bpf_iter_num_{name}\n"


def _numbers(start: int, end: int, upper: int) -> ProgramSpec:
    """r0 of the first call, five numbers or 99 for none, and the first number's place after the last call.

    The arguments have *upper* in their upper halves.
    """
    text = f"r2 = {upper << 32 | start & 0xFFFFFFFF:#x} ll\nr3 = {upper << 32 | end & 0xFFFFFFFF:#x} ll\n"
    text += _iterator("new") + f"*(u64 *)(r10 {RESULT}) = r0\nr8 = 0\n"
    for number in range(5):
        text += _iterator("next")
        text += "r1 = 99\nif r0 == 0 goto +3\nr1 = *(s32 *)(r0 +0)\nif r8 != 0 goto +1\nr8 = r0\n"
        text += f"*(u64 *)(r10 {RESULT + 8 + 8 * number}) = r1\n"
    text += f"r1 = 99\nif r8 == 0 goto +1\nr1 = *(s32 *)(r8 +0)\n*(u64 *)(r10 {RESULT + 48}) = r1\n"
    return program(text + _iterator("destroy") + "r0 = 0")


@requires(ITERATOR)
@pytest.mark.parametrize("upper", [0, 1, 0xFFFFFFFF])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 3),
        (-2, 1),
        (7, 7),
        (8, 7),
        (-1, -2),
        (0, 100),
        (0, MOST),
        (0, MOST + 1),
        (-5, MOST - 5),
        (-5, MOST - 4),
        (INT_MIN, INT_MIN),
        (INT_MIN, INT_MIN + 2),
        (INT_MIN, INT_MAX),
        (INT_MAX, INT_MIN),
        (INT_MAX - 2, INT_MAX),
        (INT_MAX, INT_MAX),
    ],
)
def test_numbers_of_an_iterator(start: int, end: int, upper: int) -> None:
    """Bounds are 32 bits, so is the errno; where there is no number, none comes later either."""
    both(_numbers(start, end, upper))


@requires(ITERATOR)
def test_an_iterator_that_could_not_begin() -> None:
    """-EINVAL and -E2BIG in 32 bits, and no number."""
    for start, end, code in ((8, 7, 22), (0, MOST + 1, 7)):
        seen = both(_numbers(start, end, 0)).out[8:]
        assert [int.from_bytes(seen[at : at + 8], "little") for at in (0, 8, 16)] == [2**32 - code, 99, 99]


@requires(ITERATOR)
@pytest.mark.parametrize("count", [0, 1, 10, 1000])
def test_a_loop_over_an_iterator(count: int) -> None:
    """The sum of the numbers below *count*."""
    text = f"r8 = 0\nr2 = 0\nr3 = {count}\n" + _iterator("new")
    text += "again:\n" + _iterator("next")
    text += "if r0 == 0 goto done\nr1 = *(u32 *)(r0 +0)\nr8 += r1\ngoto again\ndone:\n" + _iterator("destroy")
    assert both(program(text + "r0 = r8")).value == sum(range(count))
