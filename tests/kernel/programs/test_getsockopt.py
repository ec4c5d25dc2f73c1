# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""cgroup/getsockopt on real sockets: the answer to SO_ORIGINAL_DST, and that nothing else is changed.

"Not changed" is tested by asking twice, without and with the program: same result, errno, length, and bytes
of the whole buffer, the part behind the answer included. Where a getsockopt that fails leaves zeros in the
buffer as soon as there is any program at the hook (5.10), it is asked with one that does nothing instead.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest

from loader.cgroup import Cgroup
from loader.features import Feature
from loader.netns import NetNs
from loader.objects import Link, Program
from loader.sys import libc
from programs.settings import Ports, Settings
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SockOpt
from pybpfasm.kernel.enums import AttachType
from pybpfasm.program import cgroup_sockopt
from tests.kernel.programs.rig import Flow, Rig, add_addresses, patiently
from tests.requires import kernel_version, requires

GETSOCKOPT = AttachType.CGROUP_GETSOCKOPT
ENVOY, SERVICE = 8080, 8000
SOL_IP, SOL_SOCKET, SOL_TCP, SOL_UDP, SOL_IPV6 = 0, 1, 6, 17, 41
ORIGINAL_DST = 80
FILL = 0xA5
ROOM = 3 * mmap.PAGESIZE


@cgroup_sockopt(GETSOCKOPT)
def answer_1234(b: Asm, ctx: SockOpt) -> None:
    """Another program at the hook: answers option 1234 with a byte, however the kernel did."""
    r = ctx.optname
    b.r2 = r
    with b.If(b.r2 == 1234):
        b.r2 = ctx.optval
        b.r3 = ctx.optval_end
        b.r4 = b.r2
        b.r4 += 1
        with b.If(b.r4 <= b.r3):
            b.u8[b.r2] = 0x42
            b.r2 = 1
            ctx.optlen = b.r2
            b.r2 = 0
            ctx.retval = b.r2
    b.ret(1)


@cgroup_sockopt(GETSOCKOPT)
def nothing(b: Asm, ctx: SockOpt) -> None:
    """Another program at the hook, which does nothing."""
    b.ret(1)


@cgroup_sockopt(GETSOCKOPT)
def leave_traces(b: Asm, ctx: SockOpt) -> None:
    """Another program at the hook: writes into the buffer of option 80, and answers nothing."""
    b.r2 = ctx.optname
    b.If(b.r2 != ORIGINAL_DST).goto("done")
    b.r2 = ctx.optval
    b.r3 = ctx.optval_end
    b.r4 = b.r2
    b.r4 += 28
    b.If(b.r4 > b.r3).goto("done")
    for word in range(7):
        b.u32[b.r2 + 4 * word] = -1
    b.label("done")
    b.ret(1)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has entered into it."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture(scope="module")
def loaded() -> Iterator[Rig]:
    """An instance for any network namespace."""
    with Rig(Settings(Ports.parse("8000,9000"))) as made:
        made.load("getsockopt")
        yield made


@pytest.fixture
def rig(loaded: Rig, netns: NetNs, cgroup: Cgroup) -> Rig:
    """That instance, without flows; this process is in a cgroup of its own, and in a network namespace."""
    loaded.clear()
    cgroup.add()
    return loaded


@contextmanager
def attached(rig: Rig, cgroup: Cgroup) -> Iterator[None]:
    with Link.cgroup(rig.load("getsockopt"), cgroup.fd, GETSOCKOPT):
        yield


class Answer(NamedTuple):
    """What getsockopt(2) did: its errno (0 for success), the length that it left, and the whole buffer."""

    errno: int
    optlen: int
    buffer: bytes


def ask(sock: socket.socket, level: int, name: int, optlen: int, *, at: int | None = None) -> Answer:
    """getsockopt(2) with a buffer larger than *optlen*, or with the pointer *at*."""
    buffer = ctypes.create_string_buffer(bytes([FILL]) * ROOM, ROOM)
    length = ctypes.c_int(optlen)
    pointer = ctypes.addressof(buffer) if at is None else at
    ctypes.set_errno(0)
    result = libc().getsockopt(sock.fileno(), level, name, ctypes.c_void_p(pointer), ctypes.byref(length))
    return Answer(ctypes.get_errno() if result else 0, length.value, buffer.raw)


def writes_zeros(cgroup: Cgroup) -> bool:
    """Whether this kernel does so, asked in a process that is in the cgroup."""
    with socket.socket() as sock, doing_nothing(cgroup):
        found = ask(sock, SOL_IP, ORIGINAL_DST, 16)
    assert found.errno
    zeros = found.buffer[:16] != bytes([FILL]) * 16
    assert not zeros or kernel_version() < (6, 1)
    return zeros


@contextmanager
def doing_nothing(cgroup: Cgroup) -> Iterator[None]:
    with Program.load(nothing.build()) as program, Link.cgroup(program, cgroup.fd, GETSOCKOPT):
        yield


@contextmanager
def without(cgroup: Cgroup) -> Iterator[None]:
    """Without a program at the hook, or with one that does nothing where its being there is seen."""
    with doing_nothing(cgroup) if writes_zeros(cgroup) else nullcontext():
        yield


@dataclass
class Connection:
    """A connection to Envoy's port: its two ends, and its flow."""

    client: socket.socket
    server: socket.socket
    flow: Flow
    family: int


@contextmanager
def connection(listen_on: str, connect_to: str, port: int = ENVOY) -> Iterator[Connection]:
    def kind(host: str) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in host else socket.AF_INET

    with socket.socket(kind(listen_on)) as listener, socket.socket(kind(connect_to)) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((listen_on, port))
        listener.listen()
        patiently(partial(client.connect, (connect_to, port)))
        server, _ = listener.accept()
        with server:
            flow = Flow(connect_to, client.getsockname()[1], connect_to)
            yield Connection(client, server, flow, 4 if "." in connect_to else 6)


def expected(c: Connection, port: int) -> bytes:
    """The socket address by hand."""
    if c.family == 4:
        return (
            struct.pack("=H", socket.AF_INET)
            + struct.pack(">H", port)
            + socket.inet_aton("127.0.0.1")
            + bytes(8)
        )
    address = socket.inet_pton(socket.AF_INET6, "::1")
    return struct.pack("=H", socket.AF_INET6) + struct.pack(">HI", port, 0) + address + bytes(4)


def size_of(c: Connection) -> int:
    return 16 if c.family == 4 else 28


SETUPS = [
    pytest.param("127.0.0.1", "127.0.0.1", SOL_IP, id="ipv4"),
    pytest.param("::1", "::1", SOL_IPV6, id="ipv6"),
    pytest.param("::", "127.0.0.1", SOL_IP, id="v4-mapped"),
    pytest.param("::", "::1", SOL_IPV6, id="ipv6 dual-stack"),
]


@pytest.mark.parametrize("optlen", [0, 1, 4, 15, 16, 17, 27, 28, 29, 64, 128, 4095, 4096, 4097, 8192])
@pytest.mark.parametrize(("listen_on", "connect_to", "level"), SETUPS)
def test_the_original_destination(
    rig: Rig, cgroup: Cgroup, listen_on: str, connect_to: str, level: int, optlen: int
) -> None:
    with connection(listen_on, connect_to) as c:
        with without(cgroup):
            before = ask(c.server, level, ORIGINAL_DST, optlen)
        assert before.errno
        rig.put(c.flow, SERVICE)
        with attached(rig, cgroup):
            got = ask(c.server, level, ORIGINAL_DST, optlen)
        size = size_of(c)
        if optlen < size:
            assert got == before
            assert rig.moved() == {"getsockopt.buffer_too_small": 1}
        else:
            wanted = expected(c, SERVICE)
            assert got == Answer(0, size, wanted + bytes([FILL]) * (ROOM - size))
            assert rig.moved() == {f"getsockopt.answered_ipv{c.family}": 1}


@pytest.mark.parametrize(("listen_on", "connect_to", "level"), SETUPS)
def test_every_byte_of_the_answer_is_written(
    rig: Rig, cgroup: Cgroup, listen_on: str, connect_to: str, level: int
) -> None:
    with (
        connection(listen_on, connect_to) as c,
        Program.load(leave_traces.build()) as other,
        Link.cgroup(other, cgroup.fd, GETSOCKOPT),
        attached(rig, cgroup),
    ):
        rig.put(c.flow, SERVICE)
        got = ask(c.server, level, ORIGINAL_DST, 128)
        assert got.buffer[: size_of(c)] == expected(c, SERVICE)


@pytest.mark.parametrize("address", ["fe80::5", "febf::5", "fec0::5", "fd00::5"])
def test_a_link_local_address_has_the_scope_that_the_kernel_says(
    rig: Rig, cgroup: Cgroup, address: str
) -> None:
    """As getsockname, which but for the port is what was asked: without it nobody can connect there."""
    add_addresses(f"{address}/64")
    scope = socket.if_nametoindex("lo") if address.startswith(("fe8", "feb")) else 0
    with socket.socket(socket.AF_INET6) as listener, socket.socket(socket.AF_INET6) as client:
        listener.bind(("::", ENVOY))
        listener.listen()
        patiently(lambda: client.connect((address, ENVOY, 0, scope)))
        server, _ = listener.accept()
        with server, attached(rig, cgroup):
            rig.put(Flow(address, client.getsockname()[1], address), SERVICE)
            got = ask(server, SOL_IPV6, ORIGINAL_DST, 28).buffer[:28]
            name = ctypes.create_string_buffer(28)
            assert libc().getsockname(server.fileno(), name, ctypes.byref(ctypes.c_int(28))) == 0
            assert got[:2] + got[4:] == name.raw[:2] + name.raw[4:]
            assert struct.unpack_from("=I", got, 24)[0] == scope


@pytest.mark.parametrize("port", [1, 80, 255, 256, 8000, 65535])
def test_pythons_own_way_of_asking(rig: Rig, cgroup: Cgroup, port: int) -> None:
    with connection("127.0.0.1", "127.0.0.1") as c, attached(rig, cgroup):
        rig.put(c.flow, port)
        assert c.server.getsockopt(SOL_IP, ORIGINAL_DST, 16) == expected(c, port)


@pytest.mark.parametrize(("listen_on", "connect_to", "level"), SETUPS)
def test_a_connection_that_is_not_known_keeps_the_kernels_answer(
    rig: Rig, cgroup: Cgroup, listen_on: str, connect_to: str, level: int
) -> None:
    with connection(listen_on, connect_to) as c:
        rig.put(Flow(c.flow.client, c.flow.client_port ^ 1, c.flow.server), SERVICE)
        other = "10.0.0.1" if c.family == 4 else "fd00::1"
        rig.put(Flow(other, c.flow.client_port, c.flow.server), SERVICE)
        rig.put(Flow(c.flow.client, c.flow.client_port, other), SERVICE)
        with without(cgroup):
            before = [ask(c.server, level, ORIGINAL_DST, size) for size in (0, 16, 28, 128, 8192)]
        with attached(rig, cgroup):
            assert [ask(c.server, level, ORIGINAL_DST, size) for size in (0, 16, 28, 128, 8192)] == before
        assert rig.moved() == {"getsockopt.unknown_connection": 5}


def test_the_clients_end_is_not_the_servers(rig: Rig, cgroup: Cgroup) -> None:
    with connection("127.0.0.1", "127.0.0.1") as c, attached(rig, cgroup):
        rig.put(c.flow, SERVICE)
        assert ask(c.client, SOL_IP, ORIGINAL_DST, 16).errno
        assert rig.moved() == {"getsockopt.unknown_connection": 1}


def test_the_question_must_have_the_level_of_the_connections_family(rig: Rig, cgroup: Cgroup) -> None:
    """An AF_INET socket at SOL_IPV6, an IPv6 connection at SOL_IP, a v4-mapped one at SOL_IPV6."""
    for listen_on, connect_to, level, counted in (
        ("127.0.0.1", "127.0.0.1", SOL_IPV6, {}),
        ("::1", "::1", SOL_IP, {}),
        ("::", "127.0.0.1", SOL_IPV6, {"getsockopt.unknown_connection": 1}),
    ):
        with connection(listen_on, connect_to) as c:
            rig.put(c.flow, SERVICE)
            with without(cgroup):
                before = ask(c.server, level, ORIGINAL_DST, 128)
            assert before.errno
            with attached(rig, cgroup):
                assert ask(c.server, level, ORIGINAL_DST, 128) == before
            assert rig.moved() == counted


def test_an_ipv6_client_whose_address_ends_like_a_mapped_one(rig: Rig, cgroup: Cgroup) -> None:
    """The upper half of the address decides too."""
    for address in ("2001:db8::ffff:a00:1", "0:0:0:1:0:ffff:a00:1"):
        add_addresses(f"{address}/128")
        with connection(address, address) as c:
            rig.put(Flow("10.0.0.1", c.flow.client_port, "10.0.0.1"), SERVICE)
            with without(cgroup):
                before = ask(c.server, SOL_IP, ORIGINAL_DST, 128)
            with attached(rig, cgroup):
                assert ask(c.server, SOL_IP, ORIGINAL_DST, 128) == before
        assert rig.moved() == {}


def test_without_a_buffer(rig: Rig, cgroup: Cgroup) -> None:
    """The program can't see that the pointer is NULL: length and success are all that the caller gets."""
    with connection("127.0.0.1", "127.0.0.1") as c, attached(rig, cgroup):
        rig.put(c.flow, SERVICE)
        got = ask(c.server, SOL_IP, ORIGINAL_DST, 128, at=0)
        assert (got.errno, got.optlen) in ((0, 16), (errno.EFAULT, 128))
        assert ask(c.server, SOL_IP, ORIGINAL_DST, 8, at=0).errno not in (0, errno.EFAULT)


@pytest.mark.parametrize("level", [SOL_SOCKET, SOL_TCP, SOL_UDP, 255])
def test_option_80_of_other_levels_is_another_option(rig: Rig, cgroup: Cgroup, level: int) -> None:
    with connection("127.0.0.1", "127.0.0.1") as c:
        rig.put(c.flow, SERVICE)
        with without(cgroup):
            before = ask(c.server, level, ORIGINAL_DST, 128)
        with attached(rig, cgroup):
            assert ask(c.server, level, ORIGINAL_DST, 128) == before
        assert rig.moved() == {}


@contextmanager
def udp() -> Iterator[socket.socket]:
    """A connected UDP socket whose addresses and ports are those of a flow."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", ENVOY))
        sock.connect(("127.0.0.1", 40000))
        yield sock


def test_udp_is_not_asked(rig: Rig, cgroup: Cgroup) -> None:
    rig.put(Flow("127.0.0.1", 40000, "127.0.0.1"), SERVICE)
    with udp() as sock:
        with without(cgroup):
            before = ask(sock, SOL_IP, ORIGINAL_DST, 16)
        with attached(rig, cgroup):
            assert ask(sock, SOL_IP, ORIGINAL_DST, 16) == before
    assert rig.moved() == {}


# --- Inertness. ---------------------------------------------------------------------------------------------

OPTIONS = [
    *((SOL_SOCKET, name) for name in (2, 3, 4, 7, 8, 9, 13, 15, 17, 20, 25, 26, 28, 30, 31, 36, 38, 39)),
    *((SOL_SOCKET, name) for name in (49, 55, 56, 57, 59, 71, 80, 9999)),
    *((SOL_TCP, name) for name in (1, 2, 4, 9, 13, 18, 19, 23, 25, 26, 28, 31, 35, 80, 9999)),
    *((SOL_IP, name) for name in (1, 2, 4, 8, 9, 10, 14, 18, 33, 41, 48, 64, 65, 79, 81, 82, 9999)),
    *((SOL_IPV6, name) for name in (16, 18, 23, 24, 26, 49, 59, 61, 64, 67, 72, 79, 81, 9999)),
    *((SOL_UDP, name) for name in (1, 100, 103, 104, 80)),
    (999, 1),
    (999, 80),
]
LENGTHS = [0, 1, 3, 4, 5, 8, 15, 16, 64, 128, 4095, 4096, 4097, 8192]


def kinds(stack: ExitStack) -> dict[str, socket.socket]:
    """Sockets of every sort; the process has supplementary groups, which SO_PEERGROUPS tells."""
    stack.callback(os.setgroups, os.getgroups())
    os.setgroups(list(range(100, 120)))
    left, _right = (stack.enter_context(one) for one in socket.socketpair(socket.AF_UNIX))
    v4 = stack.enter_context(connection("127.0.0.1", "127.0.0.1"))
    v6 = stack.enter_context(connection("::1", "::1", ENVOY + 1))
    mapped = stack.enter_context(connection("::", "127.0.0.1", ENVOY + 2))
    filtered = stack.enter_context(connection("127.0.0.1", "127.0.0.1", ENVOY + 3)).server
    # Twenty instructions that accept everything; SO_GET_FILTER counts them, where others count bytes.
    code = struct.pack("=HBBI", 6, 0, 0, 0xFFFFFFFF) * 20
    program = ctypes.create_string_buffer(code, len(code))
    filtered.setsockopt(SOL_SOCKET, 26, struct.pack("=HxxxxxxQ", 20, ctypes.addressof(program)))
    return {
        "unconnected": stack.enter_context(socket.socket(socket.AF_INET)),
        "ipv4": v4.server,
        "ipv6": v6.server,
        "mapped": mapped.server,
        "filtered": filtered,
        "udp": stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
        "udp6": stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)),
        "unix": left,
        "raw": stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)),
        "packet": stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)),
    }


def read_only_page(stack: ExitStack) -> int:
    """The address of a page that can't be written to."""
    libc().mmap.restype = ctypes.c_void_p
    address = libc().mmap(None, ctypes.c_size_t(mmap.PAGESIZE * 3), 1, 0x22, -1, ctypes.c_long(0))
    stack.callback(libc().munmap, ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE * 3))
    return int(address)


@pytest.mark.parametrize("also", [None, "before", "behind"])
def test_every_other_option_is_as_without_the_program(
    rig: Rig, cgroup: Cgroup, stack: ExitStack, also: str | None
) -> None:
    """Also where another program answers an option of its own at the same hook, before or behind this one."""
    read_only = read_only_page(stack)
    sockets = kinds(stack)
    questions: list[tuple[str, int, int, int, int | None]] = [
        (kind, level, name, optlen, at)
        for kind in sockets
        for level, name in OPTIONS
        for optlen, at in [
            *((length, None) for length in LENGTHS),
            (16, 0),
            (16, read_only),
            (8192, read_only),
        ]
    ]
    with stack.enter_context(Program.load(answer_1234.build())) as other, ExitStack() as links:
        if also == "before":
            links.enter_context(Link.cgroup(other, cgroup.fd, GETSOCKOPT))
        links.enter_context(attached(rig, cgroup))
        if also == "behind":
            links.enter_context(Link.cgroup(other, cgroup.fd, GETSOCKOPT))
        if also:
            for length in (1, 4, 128, 4096, 8192):
                got = ask(sockets["ipv4"], SOL_IP, 1234, length)
                assert got == Answer(0, 1, b"\x42" + bytes([FILL]) * (ROOM - 1)), length
            links.close()
            return
        found = {q: ask(sockets[q[0]], *q[1:4], at=q[4]) for q in questions}
    with without(cgroup):
        alone = {q: ask(sockets[q[0]], *q[1:4], at=q[4]) for q in questions}
    # Before 6.1 one that does nothing makes SO_GET_FILTER fail where only the length is asked for.
    nobody = {q: ask(sockets[q[0]], *q[1:4], at=q[4]) for q in questions}
    different = {
        q: (one[:2], found[q][:2], one.buffer[:32].hex(), found[q].buffer[:32].hex())
        for q, one in alone.items()
        if found[q] not in (one, nobody[q])
    }
    assert different == {}
    assert rig.moved() == {}
    assert sum(1 for one in alone.values() if one.errno == 0) > 300
    assert len({one.errno for one in alone.values()}) > 3


@requires(Feature.NETNS_COOKIE_SOCKOPT)
def test_a_socket_of_another_network_namespace_is_left_alone(netns: NetNs, cgroup: Cgroup) -> None:
    """The same addresses there are another connection's."""
    cgroup.add()
    with connection("127.0.0.1", "127.0.0.1") as c:
        cookie = struct.unpack("=Q", c.server.getsockopt(SOL_SOCKET, 71, 8))[0]
        for known, answered in ((cookie, True), (cookie + 1, False)):
            with Rig(Settings(Ports.parse("8000"), netns=known)) as rig, attached(rig, cgroup):
                rig.put(c.flow, SERVICE)
                assert (ask(c.server, SOL_IP, ORIGINAL_DST, 16).errno == 0) == answered
                assert rig.moved() == ({"getsockopt.answered_ipv4": 1} if answered else {})
