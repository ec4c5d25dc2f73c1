# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Links and direct attachments: order, atomic change, what the kernel reports, and that nothing stays."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from loader import objects
from loader.bpffs import BpfFs
from loader.cgroup import Cgroup
from loader.errors import BpfError, UsageError
from loader.features import Feature
from loader.netns import NetNs, interface
from loader.objects import Link, Map, Program, attach_to_sockmap, prog_attach, prog_detach, prog_query
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkBuff, SkLookup, SkMsgMd, SockOps, SockOpt, XdpMd
from pybpfasm.kernel.enums import AttachType, LinkType, MapType, TcxAction, XdpAction
from pybpfasm.maps import MapSpec
from pybpfasm.program import cgroup_sockopt, sched_cls, sk_lookup, sk_msg, sock_ops, xdp
from tests.requires import Attempt, requires

INGRESS, EGRESS = AttachType.TCX_INGRESS, AttachType.TCX_EGRESS
SOCKS = MapSpec("socks", MapType.SOCKHASH, 8, 8, 4)


@sched_cls(INGRESS)
def verdict(b: Asm, ctx: SkBuff, value: int) -> None:
    b.r0 = value
    b.exit()


@cgroup_sockopt(AttachType.CGROUP_GETSOCKOPT)
def refuse(b: Asm, ctx: SockOpt) -> None:
    b.r0 = 0  # getsockopt fails with EPERM
    b.exit()


@cgroup_sockopt(AttachType.CGROUP_GETSOCKOPT)
def allow(b: Asm, ctx: SockOpt) -> None:
    b.r0 = 1
    b.exit()


@sock_ops()
def watch(b: Asm, ctx: SockOps) -> None:
    b.r0 = 1
    b.exit()


@sk_msg()
def pass_all(b: Asm, ctx: SkMsgMd) -> None:
    b.r0 = 1
    b.exit()


@sk_lookup()
def steer(b: Asm, ctx: SkLookup) -> None:
    b.r0 = 1
    b.exit()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test has entered into it."""
    with ExitStack() as opened:
        yield opened


@pytest.fixture
def lo(netns: NetNs) -> int:
    """The index of ``lo`` in the test's network namespace."""
    return interface("lo").index


def _reachable() -> bool:
    """Whether a datagram to this host over ``lo`` arrives."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(0.2)
        sender.sendto(b"x", receiver.getsockname())
        try:
            return receiver.recv(1) == b"x"
        except TimeoutError:
            return False


# --- TCX ----------------------------------------------------------------------------------------------------


@requires(Feature.TCX)
def test_a_tcx_link_acts_changes_atomically_and_ends_with_its_descriptor(lo: int) -> None:
    with Program.load(verdict.build(TcxAction.DROP)) as drop, Program.load(verdict.build(-1)) as go_on:
        with Link.tcx(drop, lo, INGRESS) as link:
            assert not _reachable()
            info = link.info()
            assert (info.type, info.ifindex, info.attach_type) == (LinkType.TCX, lo, INGRESS)
            assert info.prog_id == drop.id
            assert info.id in set(objects.links())
            link.update(go_on, drop)
            assert _reachable()
            assert link.info().prog_id == go_on.id
            with pytest.raises(BpfError) as caught:
                link.update(drop, drop)  # not the one that is there any more
            assert caught.value.errno == errno.EPERM
            assert "another program" in caught.value.hint
            assert link.info().prog_id == go_on.id
            link.update(drop)
            assert not _reachable()
        assert _reachable()
        assert prog_query(lo, INGRESS).entries == ()


@requires(Feature.TCX)
def test_order_and_revision_of_tcx_links(lo: int, stack: ExitStack) -> None:
    programs = [stack.enter_context(Program.load(verdict.build(-1))) for _ in range(4)]
    a, b, c, d = programs
    first = stack.enter_context(Link.tcx(a, lo, EGRESS))
    stack.enter_context(Link.tcx(b, lo, EGRESS))
    stack.enter_context(Link.tcx(c, lo, EGRESS, first=True))
    before = prog_query(lo, EGRESS)
    last = stack.enter_context(Link.tcx(d, lo, EGRESS, after=first, expected_revision=before.revision))
    query = prog_query(lo, EGRESS)
    assert query.prog_ids == (c.id, a.id, d.id, b.id)
    assert query.entries[1].link_id == first.id
    assert query.revision > before.revision
    with pytest.raises(BpfError) as caught:
        Link.tcx(d, lo, EGRESS, expected_revision=before.revision)
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(ValueError):
        Link.tcx(d, lo, EGRESS, before=first, first=True)
    last.detach()
    assert prog_query(lo, EGRESS).prog_ids == (c.id, a.id, b.id)
    assert last.info().ifindex == 0


@requires(Feature.TCX)
def test_no_such_interface(netns: NetNs) -> None:
    with Program.load(verdict.build(0)) as program:
        with pytest.raises(UsageError, match="index 4711"):
            Link.tcx(program, 4711, INGRESS)


@requires(Feature.TCX)
def test_more_programs_than_the_first_query_has_room_for(lo: int, stack: ExitStack) -> None:
    # The kernel takes up to 64 programs at a hook, so the answer is asked for with less room here.
    from loader import sys as bpf_sys

    program = stack.enter_context(Program.load(verdict.build(-1)))
    other = stack.enter_context(Program.load(verdict.build(-1)))
    stack.enter_context(Link.tcx(program, lo, INGRESS))
    stack.enter_context(Link.tcx(other, lo, INGRESS))
    with pytest.raises(BpfError) as caught:
        bpf_sys.prog_query(lo, INGRESS, capacity=1)
    assert caught.value.errno == errno.ENOSPC
    assert len(prog_query(lo, INGRESS).entries) == 2


@requires(Feature.TCX)
def test_a_pinned_link_outlives_its_maker(lo: int, bpffs: BpfFs) -> None:
    with Program.load(verdict.build(TcxAction.DROP)) as drop, Link.tcx(drop, lo, INGRESS) as link:
        link.pin(bpffs.root / "ingress")
    assert not _reachable()
    with Link.from_pin(bpffs.root / "ingress") as link, Link.from_id(link.id) as same:
        assert same.info() == link.info()
        (bpffs.root / "ingress").unlink()
        assert not _reachable()
    assert _reachable()


# --- cgroups ------------------------------------------------------------------------------------------------


def test_a_cgroup_link_reaches_the_sockets_of_that_cgroup_only(
    make_cgroup: Callable[[], Cgroup], stack: ExitStack
) -> None:
    inside, outside = make_cgroup(), make_cgroup()
    with Cgroup.open(_own_cgroup()) as home:
        try:
            # A socket belongs to the cgroup in which it was made.
            inside.add()
            probe = stack.enter_context(socket.socket())
            outside.add()
            other = stack.enter_context(socket.socket())
            with Program.load(refuse.build()) as program:
                with Link.cgroup(program, inside.fd) as link:
                    info = link.info()
                    assert (info.type, info.cgroup_id) == (LinkType.CGROUP, inside.id)
                    assert info.attach_type == AttachType.CGROUP_GETSOCKOPT
                    with pytest.raises(PermissionError):
                        probe.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
                    assert other.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
                    with Program.load(allow.build()) as permissive:
                        link.update(permissive, program)
                        assert probe.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        finally:
            home.add()


def _own_cgroup() -> str:
    from loader.cgroup import of_process

    return str(of_process())


def test_several_programs_in_one_cgroup(cgroup: Cgroup, stack: ExitStack) -> None:
    programs = [stack.enter_context(Program.load(watch.build())) for _ in range(2)]
    for program in programs:
        stack.enter_context(Link.cgroup(program, cgroup.fd, AttachType.CGROUP_SOCK_OPS))
    assert prog_query(cgroup.fd, AttachType.CGROUP_SOCK_OPS).prog_ids == tuple(p.id for p in programs)


def test_a_link_whose_cgroup_is_gone_says_so(make_cgroup: Callable[[], Cgroup]) -> None:
    doomed = make_cgroup()
    with Program.load(watch.build()) as program:
        with Link.cgroup(program, doomed.fd, AttachType.CGROUP_SOCK_OPS) as link:
            doomed.remove()
            # The kernel lets go of it in its own time; until then the link still names it.
            assert link.info().cgroup_id in (0, doomed.id)


def test_a_cgroup_link_needs_a_cgroup(netns: NetNs) -> None:
    with Program.load(watch.build()) as program:
        with pytest.raises(BpfError) as caught:
            Link.cgroup(program, netns.fd, AttachType.CGROUP_SOCK_OPS)
        assert "cgroup2" in caught.value.hint


@xdp()
def dropping(b: Asm, ctx: XdpMd) -> None:
    b.ret(XdpAction.DROP)


def test_a_program_is_attached_only_where_it_was_asked_for(lo: int, cgroup: Cgroup) -> None:
    """The kernel goes by the attach type alone, and takes any number for the index of an interface."""
    with Program.load(dropping.build()) as program, Program.load(watch.build()) as sockets:
        attempts: list[tuple[Callable[[], Link], str, str]] = [
            (lambda: Link.tcx(program, lo), "attaches as XDP, which Link.tcx does not", "xdp"),
            (lambda: Link.cgroup(program, lo), "attaches as XDP, which Link.cgroup does not", "xdp"),
            (lambda: Link.netns(program, lo), "attaches as XDP, which Link.netns does not", "xdp"),
            (
                lambda: Link.netns(sockets, cgroup.fd),
                "attaches as CGROUP_SOCK_OPS, which Link.netns does not",
                "cgroup",
            ),
            (
                lambda: Link.tcx(program, lo, AttachType.CGROUP_DEVICE),
                "attaches as CGROUP_DEVICE, which Link.tcx does not",
                "cgroup",
            ),
        ]
        for attach, message, right in attempts:
            with pytest.raises(UsageError, match=message) as caught:
                attach().close()
            assert caught.value.hint == f"Link.{right} does"
        assert _reachable()


# --- sockmaps, network namespaces ---------------------------------------------------------------------------


def program_of_a_sockhash() -> None:
    with Map.create(SOCKS) as socks:
        prog_query(socks.fd, AttachType.SK_MSG_VERDICT)


QUERY = Attempt("BPF_PROG_QUERY of a sockhash", (5, 16), program_of_a_sockhash)


@requires(QUERY)
def test_sk_msg_on_a_sockhash_by_link() -> None:
    with Map.create(SOCKS) as socks, Program.load(pass_all.build()) as program:
        link = attach_to_sockmap(program, socks)
        assert prog_query(socks.fd, AttachType.SK_MSG_VERDICT).prog_ids == (program.id,)
        if link is not None:  # from 6.10
            with link:
                info = link.info()
                assert (info.type, info.map_id) == (LinkType.SOCKMAP, socks.id)
                with Program.load(pass_all.build()) as other:
                    link.update(other, program)
                    assert prog_query(socks.fd, AttachType.SK_MSG_VERDICT).prog_ids == (other.id,)
            assert prog_query(socks.fd, AttachType.SK_MSG_VERDICT).prog_ids == ()


def test_a_program_that_says_nothing_of_where_it_attaches() -> None:
    with Map.create(SOCKS) as socks, Program.load(pass_all.build()) as program:
        with Program.from_id(program.id) as again, pytest.raises(UsageError, match="does not say where"):
            attach_to_sockmap(again, socks)


@requires(QUERY)
def test_sk_msg_on_a_sockhash_directly() -> None:
    with Map.create(SOCKS) as socks, Program.load(pass_all.build()) as program:
        prog_attach(socks.fd, program, AttachType.SK_MSG_VERDICT)
        assert prog_query(socks.fd, AttachType.SK_MSG_VERDICT).prog_ids == (program.id,)
        with Program.load(pass_all.build()) as other:
            assert prog_detach(socks.fd, other, AttachType.SK_MSG_VERDICT) is False
        assert prog_detach(socks.fd, program, AttachType.SK_MSG_VERDICT) is True
        assert prog_query(socks.fd, AttachType.SK_MSG_VERDICT).prog_ids == ()


def test_a_network_namespace_link(netns: NetNs) -> None:
    with Program.load(steer.build()) as program:
        with Link.netns(program, netns.fd, AttachType.SK_LOOKUP) as link:
            info = link.info()
            assert (info.type, info.netns_ino) == (LinkType.NETNS, netns.ino)
            assert prog_query(netns.fd, AttachType.SK_LOOKUP).prog_ids == (program.id,)
