# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of what programs do to sockets and their messages, beside real connections on ``lo``."""

from __future__ import annotations

import ctypes
import errno
import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from loader.cgroup import Cgroup
from loader.objects import Link, Map, Program, attach_to_sockmap
from loader.sys import libc
from pybpfasm import isa
from pybpfasm.emulator import Emulator, Skb, SkMsg, Socket, SockOpsContext
from pybpfasm.emulator.host import Host, Refused
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Imm64
from pybpfasm.kernel import defines
from pybpfasm.kernel.context import SkBuff, SkMsgMd, SockOps, SockOpt
from pybpfasm.kernel.enums import AttachType, MapType, ProgType, SockOp
from pybpfasm.layout import U32, U64
from pybpfasm.maps import MapSpec
from pybpfasm.net import AF_INET, AF_INET6, ETH_P_IP, ETH_P_IPV6, Ethernet, Ipv4, Ipv6, Udp
from pybpfasm.program import ProgramSpec
from pybpfasm.text import assemble

OUT = MapSpec("out", MapType.ARRAY, U32(), 8192, 1)
SOCKS = MapSpec("socks", MapType.SOCKHASH, U32(), U64(), 4)


@contextmanager
def connection(family: int = socket.AF_INET) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client and the server's end of its connection."""
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        listener.listen()
        client.settimeout(10)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        server.settimeout(10)
        with server:
            yield client, server


def spec_of(text: str, kind: ProgType) -> ProgramSpec:
    """A program in which ``rN = value out`` is the address of the results."""
    *parts, last = text.split("value out")
    code: list[Instruction] = []
    for part in parts:
        code += assemble(part + "0")
        code[-1] = Instruction(isa.LD_IMM64, code[-1].dst, Imm64.MAP_VALUE, reference=OUT)
    code += assemble(last)
    return ProgramSpec("sockets", kind, None, "GPL", tuple(code), (), "little")


# --- Options. ---

_NUMBERS = (0, 1, 5, 100, 1000, 40000, -1, -7, 0x7FFFFFFF)


def _options(level: int, names: str) -> list[tuple[int, int]]:
    return [(level, getattr(defines, name)) for name in names.split()]


OPTIONS = [
    *_options(
        defines.SOL_SOCKET,
        "SO_RCVLOWAT SO_REUSEADDR SO_SNDBUF SO_RCVBUF SO_KEEPALIVE SO_PRIORITY SO_REUSEPORT SO_MARK "
        "SO_MAX_PACING_RATE SO_TXREHASH SO_ORIGINAL_DST",
    ),
    *_options(
        defines.SOL_TCP,
        "TCP_NODELAY TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT TCP_SYNCNT TCP_THIN_LINEAR_TIMEOUTS "
        "TCP_USER_TIMEOUT TCP_NOTSENT_LOWAT TCP_SAVE_SYN",
    ),
    *_options(defines.SOL_IP, "IP_TOS"),
    *_options(defines.SOL_IPV6, "IPV6_TCLASS IPV6_AUTOFLOWLABEL"),
    (defines.SOL_TCP, 9),  # TCP_DEFER_ACCEPT, which the helpers do not take
    (defines.SOL_UDP, 1),
    (77, 1),
]


def _options_program(options: list[tuple[int, int]], size: int) -> ProgramSpec:
    """Set each value of each option when there is a connection, and get it: four words for each."""
    lines = [
        "r6 = r1",
        f"r2 = *(u32 *)(r6 +{SockOps.offsetof('op')})",
        f"if r2 == {int(SockOp.ACTIVE_ESTABLISHED_CB)} goto pc+2",
        "r0 = 1",
        "exit",
        "r9 = value out",
    ]
    at = 0
    for level, name in options:
        for value in _NUMBERS:
            for call in ("set", "get"):
                lines += [
                    f"*(u64 *)(r10 -16) = {value if call == 'set' else 77}",
                    "r1 = r6",
                    f"r2 = {level}",
                    f"r3 = {name}",
                    "r4 = r10",
                    "r4 += -16",
                    f"r5 = {size}",
                    f"call bpf_{call}sockopt",
                    f"*(u32 *)(r9 +{at}) = r0",
                    "r2 = *(u64 *)(r10 -16)",
                    f"*(u64 *)(r9 +{at + 8}) = r2",
                ]
                at += 16
    return spec_of("\n".join([*lines, "r0 = 1", "exit"]), ProgType.SOCK_OPS)


def _in_kernel(spec: ProgramSpec, cgroup: Cgroup, family: int) -> bytes:
    with ExitStack() as stack:
        maps = {one.name: stack.enter_context(Map.create(one)) for one in spec.maps}
        program = stack.enter_context(Program.load(spec, maps))
        cgroup.add()
        with Link.cgroup(program, cgroup.fd, AttachType.CGROUP_SOCK_OPS), connection(family):
            pass
        return bytes(maps["out"][0])


def _sysctl(name: str) -> int:
    """The last number, which is the limit where there are several."""
    return int(Path("/proc/sys", *name.split(".")).read_text().split()[-1])


@pytest.mark.parametrize("size", [4, 8, 1])
@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_options(family: int, size: int, netns: object, cgroup: Cgroup) -> None:
    spec = _options_program(OPTIONS, size)
    kind = socket.AF_INET if family == AF_INET else socket.AF_INET6
    expected = _in_kernel(spec, cgroup, kind)
    address = bytes([127, 0, 0, 1]) if family == AF_INET else bytes(15) + b"\x01"
    emulator = Emulator()
    emulator.sysctl = {name: _sysctl(name) for name in emulator.sysctl}
    ours = Socket(family=family, src=address, dst=address, src_port=5000, dst_port=80)
    emulator.load(spec).run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, ours))
    found = emulator.map("out")[0]
    for number, what in enumerate(itertools.product(OPTIONS, _NUMBERS, ("set", "get"))):
        words = slice(number * 16, number * 16 + 16)
        assert found[words].hex() == expected[words].hex(), what


# --- Answers of getsockopt(2). ---


def _answering(optlen: int | None, retval: int | None, r0: int) -> ProgramSpec:
    """A program that changes the first byte, then what it is told to."""
    lines = [
        f"r2 = *(u64 *)(r1 +{SockOpt.offsetof('optval')})",
        f"r3 = *(u64 *)(r1 +{SockOpt.offsetof('optval_end')})",
        "r4 = r2",
        "r4 += 1",
        "if r4 > r3 goto pc+1",
        "*(u8 *)(r2 +0) = 65",
    ]
    for name, value in (("optlen", optlen), ("retval", retval)):
        if value is not None:
            lines += [f"r2 = {value}", f"*(u32 *)(r1 +{SockOpt.offsetof(name)}) = r2"]
    code = assemble("\n".join([*lines, f"r0 = {r0}", "exit"]))
    kind, attach = ProgType.CGROUP_SOCKOPT, AttachType.CGROUP_GETSOCKOPT
    return ProgramSpec("answering", kind, attach, "GPL", tuple(code), (), "little")


def _answer(level: int, name: int, length: int) -> bytes | int:
    """What getsockopt(2) answers, or its errno."""
    with socket.socket() as sock:
        buffer = ctypes.create_string_buffer(length)
        size = ctypes.c_int(length)
        ctypes.set_errno(0)
        result = libc().getsockopt(sock.fileno(), level, name, buffer, ctypes.byref(size))
        assert result in (0, -1)
        return ctypes.get_errno() if result else buffer.raw[: size.value]


@pytest.mark.parametrize("length", [4, 16, 4096, 4097, 8192])
@pytest.mark.parametrize("known", [True, False])
def test_answers(known: bool, length: int, cgroup: Cgroup) -> None:
    """Of an option that the kernel knows, and of one that it doesn't."""
    level, name = defines.SOL_SOCKET, socket.SO_TYPE if known else 9999
    own, value = (0, socket.SOCK_STREAM.to_bytes(4, "little")) if known else (-errno.ENOPROTOOPT, b"")
    cgroup.add()
    answers = set()
    for optlen in (None, 2, 4, 5, 4096, 4097, 8192, 9000, -1):
        for retval in (None, 0, -errno.EBUSY, -errno.ENOPROTOOPT):
            for r0 in (0, 1):
                spec = _answering(optlen, retval, r0)
                with (
                    Program.load(spec) as program,
                    Link.cgroup(program, cgroup.fd, AttachType.CGROUP_GETSOCKOPT),
                ):
                    expected = _answer(level, name, length)
                emulator = Emulator()
                host = Host(emulator)
                host.getsockopt_program = emulator.load(spec)
                found: bytes | int
                try:
                    found = host.getsockopt(Socket(), level, name, length, own=own, value=value)
                except Refused as error:
                    found = error.errno
                assert found == expected, (optlen, retval, r0)
                answers.add(expected if isinstance(expected, int) else 0)
    assert answers == {0, errno.EPERM, errno.EBUSY, errno.EFAULT, errno.ENOPROTOOPT}


# --- Verdicts at an interface. ---


@pytest.mark.parametrize("verdict", [-1, 0, 1, 2, 3, 4, 6, 7, 8, 100])
def test_verdicts(verdict: int, netns: object) -> None:
    """Whether a packet passes, and whether the next program sees it, with the mark of the first."""
    at = SkBuff.offsetof("mark")
    first = spec_of(
        f"r2 = value out\nr3 = 7\n*(u32 *)(r1 +{at}) = r3\nr0 = {verdict}\nexit", ProgType.SCHED_CLS
    )
    second = spec_of(
        f"r2 = value out\nr3 = *(u32 *)(r1 +{at})\n*(u32 *)(r2 +0) = r3\nr0 = -1\nexit", ProgType.SCHED_CLS
    )
    with ExitStack() as stack:
        maps = {"out": stack.enter_context(Map.create(OUT))}
        receiver, sender = (stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(2))
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.2 if verdict in (2, 7) else 10)
        for one in (first, second):
            program = stack.enter_context(Program.load(one, maps))
            stack.enter_context(Link.tcx(program, socket.if_nametoindex("lo"), AttachType.TCX_INGRESS))
        sender.sendto(b"x", receiver.getsockname())
        try:
            passed = receiver.recv(1) == b"x"
        except TimeoutError:
            passed = False
        expected = passed, bytes(maps["out"][0])[:4]
    emulator = Emulator()
    host = Host(emulator)
    host.interfaces["lo"].ingress = [emulator.load(first), emulator.load(second)]
    host.listen(80)
    try:
        host.connect("127.0.0.1", 80)
        passed = True
    except Refused:
        passed = False
    assert (passed, emulator.map("out")[0][:4]) == expected
    assert expected == (verdict not in (2, 7), bytes([7 if verdict == -1 else 0, 0, 0, 0]))


# --- A checksum that is left to the device. ---


def _note(at: int) -> str:
    return f"r9 = value out\n*(u64 *)(r9 +{at}) = r0\n"


@pytest.mark.parametrize("family", [AF_INET, AF_INET6])
def test_a_partial_checksum_is_not_cut_off(family: int, netns: object) -> None:
    """A packet that was cut still has one, which a change of the payload does not touch."""
    v6 = family == AF_INET6
    check = 14 + (40 if v6 else 20) + 6
    load = f"r1 = r6\nr2 = {check}\nr3 = r10\nr3 += -8\nr4 = 2\ncall bpf_skb_load_bytes\n"
    text = "r6 = r1\n*(u64 *)(r10 -8) = 0\n"
    for number, length in enumerate((14, check + 1, check + 2)):
        text += f"r1 = r6\nr2 = {length}\nr3 = 0\ncall bpf_skb_change_tail\n{_note(8 * number)}"
    text += f"{load}r7 = *(u16 *)(r10 -8)\nr1 = r6\nr2 = {check}\nr3 = 0x1111\nr4 = 0x2222\nr5 = 2\n"
    text += (
        f"call bpf_l4_csum_replace\n{_note(24)}{load}r0 = *(u16 *)(r10 -8)\nr0 -= r7\n{_note(32)}r0 = 2\nexit"
    )
    spec = spec_of(text, ProgType.SCHED_CLS)
    host = "::1" if v6 else "127.0.0.1"
    with ExitStack() as stack:
        maps = {"out": stack.enter_context(Map.create(OUT))}
        kind = socket.AF_INET6 if v6 else socket.AF_INET
        sender = stack.enter_context(socket.socket(kind, socket.SOCK_DGRAM))
        program = stack.enter_context(Program.load(spec, maps))
        stack.enter_context(Link.tcx(program, socket.if_nametoindex("lo"), AttachType.TCX_EGRESS))
        sender.sendto(bytes(60), (host, 9))
        expected = bytes(maps["out"][0])[:40]
    address = socket.inet_pton(kind, host)
    if v6:
        ip = Ipv6.pack(priority_version=6 << 4, payload_len=68, nexthdr=17, saddr=address, daddr=address)
    else:
        number = int.from_bytes(address, "big")
        ip = Ipv4.pack(ihl_version=0x45, tot_len=88, protocol=17, saddr=number, daddr=number)
    link = Ethernet.pack(h_proto=ETH_P_IPV6 if v6 else ETH_P_IP)
    packet = link + ip + Udp.pack(source=1, dest=9, len=68, check=0x1234) + bytes(60)
    emulator = Emulator()
    emulator.load(spec).run(Skb(packet, checksum="partial"))
    assert emulator.map("out")[0][:40].hex() == expected.hex()
    assert expected == b"".join(n.to_bytes(8, "little", signed=True) for n in (-22, -22, 0, 0, 0))


# --- What a host's packets look like. ---

_SEEN = ("pkt_type", "mark", "protocol", "vlan_present", "ingress_ifindex", "ifindex")


@pytest.mark.parametrize("egress", [True, False], ids=["egress", "ingress"])
def test_the_devices_of_a_packet(egress: bool, netns: object) -> None:
    text = "".join(
        f"r2 = *(u32 *)(r1 +{SkBuff.offsetof(name)})\nr9 = value out\n*(u32 *)(r9 +{4 * i}) = r2\n"
        for i, name in enumerate(_SEEN)
    )
    spec = spec_of(f"{text}r0 = -1\nexit", ProgType.SCHED_CLS)
    with ExitStack() as stack:
        maps = {"out": stack.enter_context(Map.create(OUT))}
        program = stack.enter_context(Program.load(spec, maps))
        hook = AttachType.TCX_EGRESS if egress else AttachType.TCX_INGRESS
        stack.enter_context(Link.tcx(program, socket.if_nametoindex("lo"), hook))
        stack.enter_context(connection())
        expected = bytes(maps["out"][0])
    emulator = Emulator()
    host = Host(emulator)
    lo = host.interfaces["lo"]
    (lo.egress if egress else lo.ingress).append(emulator.load(spec))
    host.listen(80)
    host.connect("127.0.0.1", 80)
    assert emulator.map("out")[0].hex(" ", 4) == expected.hex(" ", 4)
    assert expected[20:24] == (1).to_bytes(4, "little")


# --- Messages. ---


def _message_program(calls: str) -> ProgramSpec:
    """Calls on a message, each followed by ``note N``: r0 and what is reachable go to the results."""
    lines = ["r6 = r1"]
    for line in calls.strip().splitlines():
        words = line.split()
        if words[0] != "note":
            lines.append(line.strip())
            continue
        at = 24 * int(words[1])
        lines += [
            "r9 = value out",
            f"*(u64 *)(r9 +{at}) = r0",
            f"r2 = *(u64 *)(r6 +{SkMsgMd.offsetof('data')})",
            f"r3 = *(u64 *)(r6 +{SkMsgMd.offsetof('data_end')})",
            "r4 = r3",
            "r4 -= r2",
            f"*(u64 *)(r9 +{at + 8}) = r4",
            f"r4 = *(u32 *)(r6 +{SkMsgMd.offsetof('size')})",
            f"*(u64 *)(r9 +{at + 16}) = r4",
        ]
    return spec_of("\n".join([*lines, "r0 = 1", "exit"]), ProgType.SK_MSG)


def _fill(count: int) -> str:
    """Write to the first *count* bytes that are reachable, where there are as many."""
    lines = [
        f"r2 = *(u64 *)(r6 +{SkMsgMd.offsetof('data')})",
        f"r3 = *(u64 *)(r6 +{SkMsgMd.offsetof('data_end')})",
        "r4 = r2",
        f"r4 += {count}",
        f"if r4 > r3 goto pc+{count}",
        *[f"*(u8 *)(r2 +{i}) = {65 + i}" for i in range(count)],
    ]
    return "\n".join(lines)


def _call(name: str, *arguments: int) -> str:
    return "\n".join(
        ["r1 = r6", *[f"r{i} = {value}" for i, value in enumerate(arguments, 2)], f"call bpf_msg_{name}"]
    )


MESSAGE = bytes(range(48, 68))
_CALLS = {
    "nothing": "r0 = 0\nnote 0",
    **{
        f"push-{start}-{size}-{flags}": (
            f"{_call('push_data', start, size, flags)}\nnote 0\n"
            # What was pushed is written, as it holds anything.
            f"{_call('pull_data', min(start, 21), min(start, 21) + size, 0) if size else 'r0 = 0'}\nnote 1\n"
            f"{_fill(size) if size else 'r0 = 0'}\nnote 2"
        )
        for start, size, flags in ((0, 4, 0), (5, 4, 0), (20, 4, 0), (0, 0, 0), (0, 4, 1), (21, 4, 0))
    },
    **{
        f"pop-{start}-{size}-{flags}": f"{_call('pop_data', start, size, flags)}\nnote 0"
        for start, size, flags in (
            *((0, 4, 0), (5, 4, 0), (16, 4, 0), (16, 5, 0), (19, 1, 0), (20, 1, 0), (0, 20, 0)),
            *((0, 0, 0), (0, 4, 1), (3, 17, 0)),
        )
    },
    **{
        f"pull-{start}-{end}": f"{_call('pull_data', start, end, 0)}\nnote 0\n{_fill(2)}\nnote 1"
        for start, end in ((0, 4), (0, 20), (5, 9), (0, 21), (4, 4), (5, 4))
    },
    "apply": f"{_call('apply_bytes', 7)}\nnote 0",
}


@pytest.mark.parametrize("calls", _CALLS.values(), ids=_CALLS)
def test_messages(calls: str, netns: object) -> None:
    spec = _message_program(calls)
    with ExitStack() as stack:
        maps = {one.name: stack.enter_context(Map.create(one)) for one in spec.maps}
        program = stack.enter_context(Program.load(spec, maps))
        socks = stack.enter_context(Map.create(SOCKS))
        attached = attach_to_sockmap(program, socks, AttachType.SK_MSG_VERDICT)
        if attached is not None:
            stack.enter_context(attached)
        client, server = stack.enter_context(connection())
        socks.update(0, client.fileno())
        client.sendall(MESSAGE)
        client.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := server.recv(4096):
            received += chunk
        expected = bytes(maps["out"][0])
    for engine in ("interpret", "translate"):
        emulator = Emulator(engine=engine)
        loaded = emulator.load(spec)
        rest, sent = MESSAGE, b""
        while rest:  # the kernel asks again for what the verdict does not hold for
            message = SkMsg(Socket(), rest)
            loaded.run(message)
            taken = message.apply_bytes or len(message.packet)
            sent, rest = sent + message.packet[:taken], message.packet[taken:]
        noted = 24 * calls.count("note")
        assert emulator.map("out")[0][:noted].hex(" ", 8) == expected[:noted].hex(" ", 8)
        assert sent == received
