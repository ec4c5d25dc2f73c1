# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""sockops and sk_msg on real sockets: who is enrolled, and that every byte arrives once, in order, where it
is meant to.

This process plays Envoy (its sockets bear the mark) and the application, in a cgroup and a network namespace
of its own.
"""

from __future__ import annotations

import array
import errno
import fcntl
import hashlib
import os
import random
import select
import socket
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loader.cgroup import Cgroup
from loader.features import Feature, probe
from loader.netns import NetNs
from loader.objects import Link, Map, Program, attach_to_sockmap
from loader.plan import with_queue, with_ulp
from loader.process import CLONE_NEWNET, setns, unshare
from loader.vmlinux import kernel_types
from programs.settings import Mark, Ports, Settings
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SockOps
from pybpfasm.kernel.enums import AttachType, Helper, MapType, SockOp, SockOpsFlag
from pybpfasm.layout import U32, U64
from pybpfasm.maps import MapSpec
from pybpfasm.program import sock_ops
from tests.kernel.programs.rig import Rig, add_addresses, address16, patiently
from tests.requires import requires

MARK = 4242
SERVICE = 8000
SO_NETNS_COOKIE = 71
TCP_DEFER_ACCEPT, TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 9, 23, 30
TCP_ULP = 31  # linux/tcp.h
MSG_FASTOPEN = 0x20000000
PAIR = {"sockops.enrolled_active": 1, "sockops.enrolled_passive": 1}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has entered into it."""
    with ExitStack() as opened:
        yield opened


@contextmanager
def accelerated(settings: Settings, cgroup: Cgroup) -> Iterator[Rig]:
    """An instance whose two programs are in place for *cgroup*."""
    with Rig(settings) as rig, ExitStack() as links:
        messages, sockets = rig.load("sk_msg"), rig.load("sockops")
        link = attach_to_sockmap(messages, rig.sockets, AttachType.SK_MSG_VERDICT)
        if link is not None:  # else the map itself holds the program
            links.enter_context(link)
        links.enter_context(Link.cgroup(sockets, cgroup.fd, AttachType.CGROUP_SOCK_OPS))
        yield rig
        # What is enrolled or noted goes with its sockets.
        deadline = time.monotonic() + 2
        while rig.sockets.count() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rig.sockets.count() == 0


@pytest.fixture
def rig(netns: NetNs, cgroup: Cgroup) -> Iterator[Rig]:
    """That, with the default mark and the ports 8000 and 9000 to 9010."""
    cgroup.add()
    with accelerated(Settings(Ports.parse("8000,9000-9010")), cgroup) as made:
        yield made


def kind_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listen(
    host: str, port: int = SERVICE, prepare: Callable[[socket.socket], None] | None = None
) -> socket.socket:
    listener = socket.socket(kind_of(host))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if prepare is not None:
        prepare(listener)
    listener.bind((host, port))
    listener.listen(128)
    listener.settimeout(5)
    return listener


def marked(host: str, mark: int = MARK, source: tuple[str, int] | None = None) -> socket.socket:
    sock = socket.socket(kind_of(host))
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))
    if source is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(source)
    sock.settimeout(5)
    return sock


@dataclass
class Pair:
    """Both ends of a connection; closes them at the end of a block."""

    envoy: socket.socket
    app: socket.socket

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.envoy.close()
        self.app.close()


def connect(
    listen_on: str = "127.0.0.1",
    to: str = "",
    *,
    port: int = SERVICE,
    mark: int = MARK,
    source: tuple[str, int] | None = None,
) -> Pair:
    """A connection that is established at both ends."""
    target = to or listen_on
    with listen(listen_on, port) as listener:
        envoy = marked(target, mark, source)
        patiently(partial(envoy.connect, (target, port)))
        app, _ = listener.accept()
        app.settimeout(5)
        return Pair(envoy, app)


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly *size* bytes, or what comes before the end."""
    got = b""
    while len(got) < size and (piece := sock.recv(size - len(got))):
        got += piece
    return got


def exchange(pair: Pair, tag: bytes, rounds: int = 3) -> int:
    """Tagged messages both ways; return how many bytes."""
    total = 0
    for number in range(rounds):
        for sender, receiver, way in ((pair.envoy, pair.app, b">"), (pair.app, pair.envoy, b"<")):
            message = b"%s%s%d;" % (tag, way, number) * (number * 37 + 1)
            sender.sendall(message)
            assert receive(receiver, len(message)) == message
            total += len(message)
    return total


def key(local: tuple[str, int], remote: tuple[str, int], cookie: int) -> bytes:
    """A socket's key by hand."""
    family = socket.AF_INET if "." in local[0] else socket.AF_INET6
    numbers = struct.pack("=QIIII", cookie, family, local[1], remote[1], 0)
    return numbers + address16(local[0]) + address16(remote[0])


def netns_cookie() -> int:
    """The one in the keys: 0 before 5.15."""
    if not probe(Feature.NETNS_COOKIE_SK_MSG).supported:
        return 0
    with socket.socket() as sock:
        return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


# --- Who is enrolled. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen_on", "to"),
    [
        pytest.param("127.0.0.1", "127.0.0.1", id="ipv4"),
        pytest.param("127.0.0.2", "127.0.0.2", id="another address of 127.0.0.0/8"),
        pytest.param("::1", "::1", id="ipv6"),
        pytest.param("::", "127.0.0.1", id="listener on [::], ipv4"),
        pytest.param("::", "::1", id="listener on [::], ipv6"),
        pytest.param("127.0.0.1", "::ffff:127.0.0.1", id="v4-mapped at Envoy's end"),
        pytest.param("::", "::ffff:127.0.0.1", id="v4-mapped at both ends"),
        pytest.param("10.1.1.1", "10.1.1.1", id="own address"),
        pytest.param("fd00::5", "fd00::5", id="own ipv6 address"),
    ],
)
@pytest.mark.parametrize("port", [8000, 9010])
def test_a_connection_of_envoy_is_enrolled_at_both_ends(rig: Rig, listen_on: str, to: str, port: int) -> None:
    add_addresses("10.1.1.1/32", "fd00::5/128")
    with connect(listen_on, to, port=port) as pair:
        assert rig.moved() == PAIR
        assert rig.sockets.count() == 2
        assert rig.pending.count() == 1  # the application's note for Envoy's end
        total = exchange(pair, b"tag")
        assert rig.pending.count() == 0
        assert rig.moved() == {"sk_msg.redirected_messages": 6, "sk_msg.redirected_bytes": total}


@requires(Feature.NETNS_COOKIE_SK_MSG)
def test_keys_are_those_that_a_person_would_write(rig: Rig) -> None:
    cookie = netns_cookie()
    for host in ("127.0.0.1", "::1"):
        with connect(host) as pair:
            envoy, app = (host, pair.envoy.getsockname()[1]), (host, SERVICE)
            assert set(rig.sockets.keys_raw()) == {key(envoy, app, cookie), key(app, envoy, cookie)}
            assert cookie != 0


@pytest.mark.parametrize("mark", [0, 1, MARK + 1, MARK | 1 << 31])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_of_others_are_not_enrolled(rig: Rig, host: str, mark: int) -> None:
    with connect(host, mark=mark) as pair:
        assert rig.sockets.count() == 0 and rig.pending.count() == 0
        exchange(pair, b"plain")
        assert rig.moved() == {"sockops.peer_not_enrolled": 1}


def test_the_mark_is_compared_under_its_mask(netns: NetNs, cgroup: Cgroup) -> None:
    cgroup.add()
    with accelerated(Settings(Ports.parse("8000"), mark=Mark(0x1000, 0xF000)), cgroup) as rig:
        for mark, enrolled in ((0x1000, 2), (0xFFF1FFF, 2), (0x2000, 0), (0x3000, 0), (0xFFF, 0)):
            with connect(mark=mark):
                assert rig.sockets.count() == enrolled, hex(mark)


@pytest.mark.parametrize("port", [7999, 8001, 8999, 9011, 0x401F])
def test_other_ports_are_not_looked_at(rig: Rig, port: int) -> None:
    with connect(port=port) as pair:
        exchange(pair, b"plain")
        assert rig.sockets.count() == 0
        assert rig.moved() == {}


def test_two_different_addresses_are_not_certain_to_be_here(rig: Rig) -> None:
    """Only 127.0.0.0/8 is always this host."""
    add_addresses("10.1.1.1/32", "10.1.1.2/32", "fd00::5/128", "fd00::6/128")
    for here, there in (
        ("10.1.1.1", "10.1.1.2"),
        ("fd00::5", "fd00::6"),
        ("10.1.1.1", "127.0.0.1"),
        ("127.0.0.1", "10.1.1.1"),
    ):
        with connect(there, source=(here, 0)) as pair:
            exchange(pair, b"plain")
            assert rig.sockets.count() == 0
    with connect("127.0.0.3", source=("127.0.0.9", 0)):
        assert rig.sockets.count() == 2
    assert rig.moved() == PAIR


@contextmanager
def second_netns() -> Iterator[NetNs]:
    with NetNs.current() as first:
        unshare(CLONE_NEWNET)
        try:
            ip("link", "set", "lo", "up")
            other = NetNs.current()
        finally:
            setns(first.fd, CLONE_NEWNET)
    with other:
        yield other


def test_a_connection_to_another_host_is_not_enrolled(rig: Rig, stack: ExitStack) -> None:
    """Both ends are in the cgroup, but not on one host."""
    other = stack.enter_context(second_netns())
    ip("link", "add", "a0", "type", "veth", "peer", "name", "b0")
    ip("link", "set", "b0", "netns", f"/proc/{os.getpid()}/fd/{other.fd}")
    ip("addr", "add", "10.7.0.1/24", "dev", "a0")
    ip("link", "set", "a0", "up")
    with other.entered():
        ip("addr", "add", "10.7.0.2/24", "dev", "b0")
        ip("link", "set", "b0", "up")
        listener = stack.enter_context(listen("10.7.0.2"))
    envoy = stack.enter_context(marked("10.7.0.2"))
    envoy.connect(("10.7.0.2", SERVICE))
    app, _ = listener.accept()
    app.settimeout(5)
    exchange(Pair(envoy, stack.enter_context(app)), b"far")
    assert rig.sockets.count() == 0
    assert rig.moved() == {}


@requires(Feature.NETNS_COOKIE_SK_MSG)
def test_sockets_of_another_network_namespace_are_left_alone(netns: NetNs, cgroup: Cgroup) -> None:
    cgroup.add()
    cookie = netns_cookie()
    for known, enrolled in ((cookie, 2), (cookie + 1, 0)):
        with accelerated(Settings(Ports.parse("8000"), netns=known), cgroup) as rig, connect() as pair:
            exchange(pair, b"x")
            assert rig.sockets.count() == enrolled


# --- C1, C2: the right socket. ------------------------------------------------------------------------------


@requires(Feature.NETNS_COOKIE_SK_MSG)
def test_the_same_tuple_in_two_namespaces(rig: Rig, stack: ExitStack) -> None:
    pairs = [stack.enter_context(connect(source=("127.0.0.1", 50000)))]
    with stack.enter_context(second_netns()).entered():
        pairs.append(stack.enter_context(connect(source=("127.0.0.1", 50000))))
    assert rig.moved() == dict.fromkeys(PAIR, 2)
    assert rig.sockets.count() == 4
    for _ in range(3):
        for number, pair in enumerate(pairs):
            pair.envoy.sendall(b"to %d" % number)
            pair.app.sendall(b"from %d" % number)
        for number, pair in enumerate(pairs):
            assert receive(pair.app, 4) == b"to %d" % number
            assert receive(pair.envoy, 6) == b"from %d" % number
    assert rig.moved() == {"sk_msg.redirected_messages": 12, "sk_msg.redirected_bytes": 60}


def test_without_the_cookie_the_second_namespace_stays_native(
    netns: NetNs, cgroup: Cgroup, stack: ExitStack
) -> None:
    """On kernels that can't tell them apart nobody gets another's bytes: BPF_NOEXIST sees to it."""
    cgroup.add()
    rig = stack.enter_context(accelerated(Settings(Ports.parse("8000"), netns_cookie=False), cgroup))
    first = stack.enter_context(connect(source=("127.0.0.1", 50000)))
    with stack.enter_context(second_netns()).entered():
        second = stack.enter_context(connect(source=("127.0.0.1", 50000)))
    assert rig.moved() == {**PAIR, "sockops.slot_taken": 1, "sockops.peer_not_enrolled": 1}
    exchange(first, b"first")
    exchange(second, b"second")


def test_a_source_port_used_again_while_the_old_end_is_open(rig: Rig) -> None:
    """Envoy's end is gone by a reset, the application still holds its own with unread bytes."""
    old = connect(source=("127.0.0.1", 50001))
    old.envoy.sendall(b"unread")
    old.envoy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    old.envoy.close()
    with old.app, connect(source=("127.0.0.1", 50001)) as new:
        exchange(new, b"new")
        rest = b""
        try:
            while piece := old.app.recv(100):
                rest += piece
        except ConnectionResetError:
            pass
        assert rest in (b"", b"unread")
        with pytest.raises(OSError):
            for _ in range(3):
                old.app.sendall(b"stale")
        exchange(new, b"again")


def test_a_source_port_used_again_after_half_a_close(rig: Rig) -> None:
    """The application has not closed yet: the tuple is not free, and no byte goes astray."""
    with connect(source=("127.0.0.1", 50002)) as old:
        old.envoy.sendall(b"last words")
        old.envoy.shutdown(socket.SHUT_WR)
        with listen("127.0.0.1") as listener, marked("127.0.0.1", source=("127.0.0.2", 50002)) as new:
            new.connect(("127.0.0.1", SERVICE))
            app, _ = listener.accept()
            app.settimeout(5)
            with app:
                exchange(Pair(new, app), b"new")
        assert receive(old.app, 100) == b"last words"
        old.app.sendall(b"late answer")
        assert receive(old.envoy, 11) == b"late answer"


def test_a_slot_that_is_taken_is_left_to_its_owner(rig: Rig) -> None:
    cookie = netns_cookie()
    with connect(mark=0) as owner:
        owner.envoy.sendall(b"unread")
        rig.sockets.update(
            key(("127.0.0.1", 50003), ("127.0.0.1", SERVICE), cookie),
            struct.pack("=Q", owner.app.fileno()),
        )
        rig.moved()
        with connect(source=("127.0.0.1", 50003)) as pair:
            assert rig.moved() == {"sockops.slot_taken": 1, "sockops.peer_not_enrolled": 1}
            pair.envoy.sendall(b"for the app alone")
            assert receive(pair.app, 17) == b"for the app alone"
        assert receive(owner.app, 6) == b"unread"
        owner.app.setblocking(False)
        with pytest.raises(BlockingIOError):
            owner.app.recv(1)


def test_the_applications_slot_is_taken(rig: Rig) -> None:
    """Envoy's end is enrolled by then, and the socket under its peer's key is somebody else's."""
    cookie = netns_cookie()
    envoy, app = ("127.0.0.1", 50004), ("127.0.0.1", SERVICE)
    for stale in (None, 12345):
        with connect(mark=0) as owner:
            rig.sockets.update(key(app, envoy, cookie), struct.pack("=Q", owner.app.fileno()))
            if stale is not None:  # a note that an earlier connection has left behind
                rig.pending.update(key(envoy, app, cookie), struct.pack("=I12x", stale))
            rig.moved()
            with connect(source=envoy) as pair:
                assert rig.moved() == {"sockops.enrolled_active": 1, "sockops.slot_taken": 1}
                exchange(pair, b"to the right one")
                assert set(rig.moved()) == {"sk_msg.native_messages", "sk_msg.native_bytes"}
            owner.app.setblocking(False)
            with pytest.raises(BlockingIOError):
                owner.app.recv(1)


def test_a_note_of_an_earlier_connection_enrols_nobody(rig: Rig) -> None:
    cookie = netns_cookie()
    envoy, app = ("127.0.0.1", 50005), ("127.0.0.1", SERVICE)
    with connect(mark=0) as owner:
        rig.sockets.update(key(envoy, app, cookie), struct.pack("=Q", owner.envoy.fileno()))
        rig.pending.update(key(app, envoy, cookie), struct.pack("=I12x", 12345))
        rig.moved()
        with connect(source=envoy, mark=0) as pair:
            assert rig.moved() == {"sockops.peer_not_enrolled": 1}
            assert rig.pending.count() == 0
            exchange(pair, b"plain")
        owner.envoy.setblocking(False)
        with pytest.raises(BlockingIOError):
            owner.envoy.recv(1)


SEEN = MapSpec("seen", MapType.ARRAY, U32(), U64(), 1)


@sock_ops(name="watch_states")
def watch_states(b: Asm, ctx: SockOps) -> None:
    """Another program at the hook: asks for the changes of a socket's state, and counts them."""
    b.r6 = ctx
    ctx = SockOps(b.r6)
    b.r2 = ctx.op
    with b.If(b.r2 == SockOp.TCP_CONNECT_CB):
        b.r1 = ctx
        b.r2 = int(SockOpsFlag.STATE_CB)
        b.call(Helper.sock_ops_cb_flags_set)
        b.ret(1)
    b.If(b.r2 != SockOp.STATE_CB).goto("done")
    zero = b.stack_bytes(8)
    b.u32[zero] = 0
    b.r1 = SEEN
    b.lea(b.r2, zero)
    b.call(Helper.map_lookup_elem)
    b.If(b.r0 == 0).goto("done")
    b.r1 = 1
    b.u64[b.r0].lock_add(b.r1)
    b.label("done")
    b.ret(1)


def test_calls_that_another_program_asked_for_go_on(rig: Rig, cgroup: Cgroup) -> None:
    with (
        Map.create(SEEN) as seen,
        Program.load(watch_states.build(), {"seen": seen}) as program,
        Link.cgroup(program, cgroup.fd, AttachType.CGROUP_SOCK_OPS),
    ):
        with connect() as pair:
            exchange(pair, b"x")
            before = seen[0]
        deadline = time.monotonic() + 2
        while seen[0] == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen[0] > before  # the end of the connection, after ours has asked for its calls
        assert rig.moved()["sk_msg.redirected_messages"] == 6


def test_a_full_map_means_native(netns: NetNs, cgroup: Cgroup) -> None:
    cgroup.add()
    with accelerated(Settings(Ports.parse("8000"), socket_capacity=2), cgroup) as rig:
        with connect() as first, connect() as second:
            assert rig.moved() == {**PAIR, "sockops.failed": 1, "sockops.peer_not_enrolled": 1}
            exchange(first, b"first")
            exchange(second, b"second")


# --- C3: sending never fails for want of a peer. ------------------------------------------------------------


def test_the_peer_closes_while_data_is_sent(rig: Rig) -> None:
    for number in range(30):
        with connect() as pair:
            end = threading.Timer(0.001 * (number % 5), pair.app.close)
            end.start()
            deadline = time.monotonic() + 20
            try:
                while time.monotonic() < deadline:
                    pair.envoy.send(b"x" * 512)
            except OSError as error:
                assert error.errno in (errno.EPIPE, errno.ECONNRESET), error
            else:
                pytest.fail("nobody noticed that the peer is gone")
            finally:
                end.join()


def test_the_peer_is_taken_out_while_data_is_sent(rig: Rig) -> None:
    """Redirecting ends for good; what is sent from then on goes through the stack, and nothing fails."""
    cookie = netns_cookie()
    with connect() as pair:
        envoy = ("127.0.0.1", pair.envoy.getsockname()[1])
        exchange(pair, b"before")
        rig.moved()
        assert rig.sockets.delete(key(("127.0.0.1", SERVICE), envoy, cookie))
        exchange(pair, b"after")
        moved = rig.moved()
        assert moved.pop("sk_msg.native_messages") == 3
        assert moved.pop("sk_msg.native_bytes") > 0
        assert moved == {}  # the application's end is an ordinary socket again
        rig.sockets.update(key(("127.0.0.1", SERVICE), envoy, cookie), struct.pack("=Q", pair.app.fileno()))
        pair.envoy.sendall(b"still native")
        assert receive(pair.app, 12) == b"still native"
        assert rig.moved() == {"sk_msg.native_messages": 1, "sk_msg.native_bytes": 12}


def test_a_message_that_waits_to_be_sent_is_not_overtaken(rig: Rig) -> None:
    """MSG_MORE keeps it back, so that no segment tells of it: the message itself has to."""
    cookie = netns_cookie()
    with connect() as pair:
        envoy, app = ("127.0.0.1", pair.envoy.getsockname()[1]), ("127.0.0.1", SERVICE)
        exchange(pair, b"before")
        assert rig.sockets.delete(key(app, envoy, cookie))
        pair.envoy.send(b"first ", socket.MSG_MORE)
        rig.sockets.update(key(app, envoy, cookie), struct.pack("=Q", pair.app.fileno()))
        pair.envoy.send(b"second")
        assert receive(pair.app, 12) == b"first second"


# --- C4: order. ---------------------------------------------------------------------------------------------


def in_order(rig: Rig, count: int, begin: Callable[[socket.socket, bytes], None], prepare: Any) -> None:
    """*count* connections; the first bytes of each are sent by *begin*, which connects too."""
    chooser = random.Random(1)
    with listen("127.0.0.1", prepare=prepare) as listener:
        for number in range(count):
            pieces = [b"%d.%d;" % (number, index) * chooser.choice((1, 1, 10, 400)) for index in range(8)]
            with marked("127.0.0.1") as envoy:
                begin(envoy, pieces[0])
                for piece in pieces[1:4]:
                    envoy.sendall(piece)
                app, _ = listener.accept()
                with app:
                    app.settimeout(5)
                    for piece in pieces[4:]:
                        envoy.sendall(piece)
                    envoy.shutdown(socket.SHUT_WR)
                    got = receive(app, 1 << 20)
                    assert got == b"".join(pieces), (number, rig.moved())
                    app.sendall(got)
                    assert receive(envoy, len(got)) == got


def connect_and_send(envoy: socket.socket, data: bytes) -> None:
    envoy.connect(("127.0.0.1", SERVICE))
    envoy.sendall(data)


def send_with_the_syn(envoy: socket.socket, data: bytes) -> None:
    envoy.settimeout(None)  # with a time limit the socket would not block
    sent = envoy.sendto(data, MSG_FASTOPEN, ("127.0.0.1", SERVICE))
    envoy.settimeout(5)
    envoy.sendall(data[sent:])


def send_with_the_syn_by_option(envoy: socket.socket, data: bytes) -> None:
    envoy.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    envoy.connect(("127.0.0.1", SERVICE))
    envoy.sendall(data)


def test_order_of_plain_connections(rig: Rig) -> None:
    in_order(rig, 150, connect_and_send, None)
    moved = rig.moved()
    assert moved["sockops.enrolled_active"] == moved["sockops.enrolled_passive"] == 150
    assert "sk_msg.native_messages" not in moved


def test_order_under_defer_accept(rig: Rig) -> None:
    """The application's end is established by the first data, which has come natively: Envoy's stays so."""

    def prepare(listener: socket.socket) -> None:
        listener.setsockopt(socket.IPPROTO_TCP, TCP_DEFER_ACCEPT, 5)

    in_order(rig, 150, connect_and_send, prepare)
    moved = rig.moved()
    assert moved["sockops.enrolled_active"] == moved["sockops.enrolled_passive"] == 150
    assert moved["sk_msg.native_messages"] == 150 * 8
    assert moved["sk_msg.redirected_messages"] >= 150  # the answers


@pytest.mark.parametrize("begin", [send_with_the_syn, send_with_the_syn_by_option])
@pytest.mark.parametrize(
    ("fastopen", "server"),
    [
        pytest.param(3, True, id="cookies"),
        pytest.param(0x7 | 0x200, True, id="without cookies"),
        pytest.param(1, False, id="a server that knows nothing of it"),
    ],
)
def test_order_under_fast_open(
    rig: Rig, fastopen: int, server: bool, begin: Callable[[socket.socket, bytes], None]
) -> None:
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(fastopen))

    def prepare(listener: socket.socket) -> None:
        if server:
            listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)

    in_order(rig, 100, begin, prepare)
    moved = rig.moved()
    if fastopen & 0x200:  # every SYN has data in it
        assert moved["sockops.data_before_enrolment"] == 100
        assert "sockops.enrolled_active" not in moved


# --- What else an application sees. -------------------------------------------------------------------------


def test_a_megabyte_both_ways_at_once(rig: Rig) -> None:
    blobs = [os.urandom(1 << 20), os.urandom(1 << 20)]
    with connect() as pair:
        found: dict[int, bytes] = {}

        def send(sock: socket.socket, blob: bytes) -> None:
            chooser = random.Random(len(blob))
            at = 0
            while at < len(blob):
                at += sock.send(blob[at : at + chooser.choice((1, 100, 4096, 65536))])
            sock.shutdown(socket.SHUT_WR)

        def get(number: int, sock: socket.socket) -> None:
            digest = hashlib.sha256()
            while data := sock.recv(1 << 16):
                digest.update(data)
            found[number] = digest.digest()

        threads = [
            threading.Thread(target=send, args=(pair.envoy, blobs[0])),
            threading.Thread(target=send, args=(pair.app, blobs[1])),
            threading.Thread(target=get, args=(0, pair.app)),
            threading.Thread(target=get, args=(1, pair.envoy)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: hashlib.sha256(blob).digest() for number, blob in enumerate(blobs)}
        assert rig.moved()["sk_msg.redirected_bytes"] == 2 << 20


def waiting(sock: socket.socket) -> int:
    """FIONREAD."""
    number = array.array("i", [0])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, number)
    return number[0]


@requires(Feature.FIONREAD)
def test_peeking_and_the_number_of_bytes_that_wait(rig: Rig) -> None:
    with connect() as pair:
        pair.envoy.sendall(b"first ")
        pair.envoy.sendall(b"second")
        assert pair.app.recv(100, socket.MSG_PEEK)[:6] == b"first "
        assert waiting(pair.app) == 12
        assert receive(pair.app, 12) == b"first second"
        assert waiting(pair.app) == 0


def test_half_a_close_keeps_the_other_half(rig: Rig) -> None:
    with connect() as pair:
        pair.envoy.sendall(b"question")
        pair.envoy.shutdown(socket.SHUT_WR)
        assert receive(pair.app, 100) == b"question"
        for number in range(5):
            pair.app.sendall(b"answer %d;" % number)
        pair.app.close()
        assert receive(pair.envoy, 1000) == b"".join(b"answer %d;" % number for number in range(5))


def test_send_and_close_loses_nothing(rig: Rig) -> None:
    for _ in range(20):
        with connect() as pair:
            pair.envoy.sendall(b"x" * 50000)
            pair.envoy.close()
            assert len(receive(pair.app, 1 << 20)) == 50000


def test_a_reset_reaches_the_peer_behind_the_data(rig: Rig) -> None:
    with connect() as pair:
        pair.envoy.sendall(b"before the reset")
        pair.envoy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pair.envoy.close()
        with pytest.raises(ConnectionResetError):
            while pair.app.recv(100):
                pass
            pair.app.send(b"x")  # an end of the stream is seen first, the reset here at the latest
            raise AssertionError("the peer took no notice")


def test_everything_is_cleaned_when_sockets_close(rig: Rig) -> None:
    for number in range(50):
        with connect("127.0.0.1" if number % 2 else "::1") as pair:
            if number % 3:
                exchange(pair, b"x", 1)
    deadline = time.monotonic() + 2
    while rig.sockets.count() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rig.sockets.count() == 0
    assert rig.pending.count() == 17  # notes that nobody has read; the map forgets the oldest
    moved = rig.moved()
    assert moved["sockops.enrolled_active"] == moved["sockops.enrolled_passive"] == 50


# --- A receiver that does not read. -------------------------------------------------------------------------

LIMIT = 1 << 20
# What waits besides: a message on its way, and TCP's own buffers (tcp_rmem and tcp_wmem: 6 and 4 MiB).
SLACK = 12 << 20
PLENTY = 96 << 20


# --- MPTCP. -------------------------------------------------------------------------------------------------


def test_an_application_that_listens_with_mptcp(rig: Rig, needs: Callable[..., None]) -> None:
    """Go does since 1.24. Envoy's TCP is left to TCP, and enrolled; MPTCP is not."""
    needs(Feature.FIONREAD)  # kernels where it is wrong are older than a mend without which this can crash
    try:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    except OSError as error:
        assert error.errno == errno.EPROTONOSUPPORT  # this kernel has none
        return
    with listener:
        listener.settimeout(5)
        listener.bind(("127.0.0.1", SERVICE))
        listener.listen()
        for protocol, moved in (
            (socket.IPPROTO_TCP, {**PAIR, "sk_msg.redirected_messages": 6}),
            (socket.IPPROTO_MPTCP, {"sockops.failed": 1, "sockops.peer_not_enrolled": 1}),
        ):
            envoy = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
            envoy.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", MARK))
            envoy.settimeout(5)
            envoy.connect(("127.0.0.1", SERVICE))
            app, _ = listener.accept()
            app.settimeout(5)
            with Pair(envoy, app) as pair:
                exchange(pair, b"tag")
                found = rig.moved()
                found.pop("sk_msg.redirected_bytes", None)
                assert found == moved


# --- Kernel TLS. --------------------------------------------------------------------------------------------


def both_ways(pair: Pair) -> None:
    """A message each way, in the order in which they were sent before."""
    for sender, receiver in ((pair.envoy, pair.app), (pair.app, pair.envoy)):
        sender.sendall(b"a message")
        assert receive(receiver, 9) == b"a message"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_word_in_the_applications_socket_ends_the_acceleration(
    netns: NetNs, cgroup: Cgroup, needs: Callable[..., None], host: str
) -> None:
    """The linger time stands for the protocol upon the socket: anybody can set it, and it is as long."""
    needs(Feature.PROBE_READ_SK_MSG)
    cgroup.add()
    at = kernel_types().offset_of("sock", "sk_lingertime")
    chosen = with_queue(Settings(Ports.parse("8000"), ulp_at=at), [])
    with accelerated(chosen, cgroup) as rig, connect(host) as pair:
        for end, others, moved in (
            (pair.envoy, 2, {"redirected_messages": 2, "redirected_bytes": 18}),
            (pair.app, 2, {"encrypted": 2, "native_messages": 2, "native_bytes": 18}),
            (pair.app, 0, {"native_messages": 2, "native_bytes": 18}),
        ):
            rig.moved()
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", others > 0, others))
            both_ways(pair)
            assert rig.moved() == {f"sk_msg.{name}": count for name, count in moved.items()}


def test_an_application_with_kernel_tls_is_not_accelerated(
    netns: NetNs, cgroup: Cgroup, needs: Callable[..., None]
) -> None:
    """Without keys such a socket sends and receives as ever, but through the stack."""
    needs(Feature.PROBE_READ_SK_MSG)
    cgroup.add()
    with accelerated(with_ulp(Settings(Ports.parse("8000")), []), cgroup) as rig, connect() as pair:
        both_ways(pair)
        rig.moved()
        try:
            pair.app.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as error:
            assert error.errno == errno.ENOENT  # this kernel has none
            both_ways(pair)
            assert rig.moved() == {"sk_msg.redirected_messages": 2, "sk_msg.redirected_bytes": 18}
            return
        both_ways(pair)
        assert rig.moved() == {"sk_msg.encrypted": 2, "sk_msg.native_messages": 2, "sk_msg.native_bytes": 18}


@pytest.fixture
def limited(netns: NetNs, cgroup: Cgroup, needs: Callable[..., None]) -> Iterator[Rig]:
    """An instance that knows how long a receive queue is."""
    needs(Feature.QUEUE_LENGTH)
    cgroup.add()
    chosen = with_ulp(with_queue(Settings(Ports.parse("8000,9000-9010"), queue_limit=LIMIT), []), [])
    with accelerated(chosen, cgroup) as made:
        yield made


def pour(sender: socket.socket, data: memoryview) -> int:
    """Send until the socket takes no more for a while; return how many bytes."""
    sender.setblocking(False)
    sent = 0
    while sent < len(data) and select.select([], [sender], [], 0.5)[1]:
        with suppress(BlockingIOError):
            sent += sender.send(data[sent : sent + (1 << 16)])
    sender.settimeout(5)
    return sent


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("who", ["envoy", "app"])
def test_a_receiver_that_does_not_read_slows_the_sender(limited: Rig, host: str, who: str) -> None:
    """What waits in the kernel is bounded, every byte arrives in order, and the other way is as before."""
    data = memoryview(random.Random(7).randbytes(PLENTY))
    with connect(host) as pair:
        exchange(pair, b"begin")
        limited.moved()
        sender, receiver = (pair.envoy, pair.app) if who == "envoy" else (pair.app, pair.envoy)
        sent = pour(sender, data)
        assert LIMIT < sent < LIMIT + SLACK
        moved = limited.moved()
        assert moved["sk_msg.queue_full"] == 1
        assert LIMIT <= moved["sk_msg.redirected_bytes"] <= LIMIT + (1 << 16)
        assert moved["sk_msg.redirected_bytes"] + moved["sk_msg.native_bytes"] >= sent
        got = receive_all(receiver, sent)
        assert got == hashlib.sha256(data[:sent]).digest()
        # From now on this direction is native, for good; the other one was not concerned.
        limited.moved()
        sender.sendall(b"after")
        assert receive(receiver, 5) == b"after"
        receiver.sendall(b"back")
        assert receive(sender, 4) == b"back"
        moved = limited.moved()
        assert (moved["sk_msg.native_bytes"], moved["sk_msg.redirected_bytes"]) == (5, 4)


def no_room() -> dict[str, int]:
    """How often, in this network namespace, TCP had no room in a receive buffer for what came."""
    names, numbers = Path("/proc/thread-self/net/netstat").read_text().splitlines()[:2]
    found = dict(zip(names.split()[1:], map(int, numbers.split()[1:]), strict=True))
    return {name: found[name] for name in ("TCPRcvQDrop", "RcvPruned") if found[name]}


@pytest.mark.parametrize("whose", ["the kernel's", "the application's"])
def test_what_the_window_lets_in_behind_the_queue_is_not_dropped(limited: Rig, whose: str) -> None:
    """Or the sender would find out by its timer alone that there is room again, up to two minutes later."""
    Path("/proc/sys/net/ipv4/tcp_rmem").write_text(f"4096 131072 {2 * LIMIT}")

    def prepare(listener: socket.socket) -> None:
        if whose == "the application's":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)

    data = memoryview(random.Random(9).randbytes(PLENTY))
    with listen("127.0.0.1", prepare=prepare) as listener, marked("127.0.0.1") as envoy:
        envoy.connect(("127.0.0.1", SERVICE))
        app, _ = listener.accept()
        with app:
            app.settimeout(5)
            for size in (1, 1 << 10, 1 << 13):
                envoy.sendall(bytes(size))
                receive_all(app, size)
            assert "sk_msg.native_bytes" not in limited.moved()
            sent = pour(envoy, data)
            assert limited.moved()["sk_msg.queue_full"] == 1
            assert no_room() == {}
            assert receive_all(app, sent) == hashlib.sha256(data[:sent]).digest()


def receive_all(sock: socket.socket, size: int) -> bytes:
    """The SHA-256 of exactly *size* bytes."""
    digest, left = hashlib.sha256(), size
    while left and (piece := sock.recv(min(left, 1 << 20))):
        digest.update(piece)
        left -= len(piece)
    assert left == 0
    return digest.digest()


def test_without_a_limit_the_kernel_takes_everything(rig: Rig) -> None:
    """What the tests above rest upon: a socket that redirects never blocks."""
    data = memoryview(bytes(PLENTY))
    with connect() as pair:
        assert pour(pair.envoy, data) == PLENTY
        receive_all(pair.app, PLENTY)


def test_a_reader_that_keeps_up_stays_accelerated(limited: Rig) -> None:
    """Many times the limit goes by, and never so much of it waits."""
    block = random.Random(8).randbytes(LIMIT // 4)
    with connect() as pair:
        for _ in range(64):
            pair.envoy.sendall(block)
            assert receive(pair.app, len(block)) == block
        moved = limited.moved()
        assert moved["sk_msg.redirected_bytes"] == 64 * len(block)
        assert not moved.keys() & {"sk_msg.queue_full", "sk_msg.native_bytes"}


def test_the_peer_is_gone_where_its_queue_was(limited: Rig) -> None:
    """The address of a socket that was closed says nothing any more: what is sent finds no peer, as ever."""
    for _ in range(50):
        with connect() as pair:
            exchange(pair, b"x", 1)
            pair.app.close()
            limited.moved()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                for _ in range(20):
                    pair.envoy.sendall(b"to nobody" * 100)
            assert "sk_msg.redirected_messages" not in limited.moved()
