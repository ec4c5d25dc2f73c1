# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""clsact and cls_bpf, where TCX is not used: the same effect, and exactly ours removed."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from loader import tc_clsact
from loader.errors import AttachError, ConflictError, UsageError
from loader.netns import NetNs, interface
from loader.objects import Program
from pybpfasm.asm import Asm
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType, TcxAction
from pybpfasm.program import sched_cls

INGRESS, EGRESS = AttachType.TCX_INGRESS, AttachType.TCX_EGRESS
NAME = "pybpfasm/web/ingress"
# A filter that somebody else has made, in a way that every kernel with cls_bpf knows.
OTHER = ("bpf", "bytecode", "1,6 0 0 0", "flowid", "1:1")


@sched_cls(INGRESS)
def verdict(b: Asm, ctx: SkBuff, value: int) -> None:
    b.r0 = value
    b.exit()


@pytest.fixture
def drop() -> Iterator[Program]:
    """A program that drops."""
    with Program.load(verdict.build(TcxAction.DROP)) as program:
        yield program


@pytest.fixture
def go_on() -> Iterator[Program]:
    """A program that leaves the packet to others."""
    with Program.load(verdict.build(TcxAction.NEXT)) as program:
        yield program


@pytest.fixture
def lo(netns: NetNs) -> int:
    """The index of ``lo`` in the test's network namespace."""
    return interface("lo").index


def tc(*arguments: str) -> str:
    """Run tc(8), the witness that is not ours."""
    done = subprocess.run(["tc", *arguments], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


def reachable() -> bool:
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


@pytest.mark.parametrize("direction", [INGRESS, EGRESS], ids=["ingress", "egress"])
def test_attach_replace_detach(lo: int, drop: Program, go_on: Program, direction: AttachType) -> None:
    assert tc_clsact.find(lo, direction, NAME) is None
    made = tc_clsact.attach(drop, lo, direction, name=NAME)
    assert made.made_qdisc
    assert not reachable()
    found = tc_clsact.find(lo, direction, NAME)
    assert found is not None
    assert (found.prog_id, found.tag) == (drop.id, drop.info().tag)
    assert (found.direct_action, found.handle, found.priority) == (True, made.handle, made.priority)
    shown = tc("filter", "show", "dev", "lo", direction.name.removeprefix("TCX_").lower())
    assert f"protocol all pref {made.priority}" in shown
    assert f"{NAME} direct-action" in shown

    changed = tc_clsact.replace(made, go_on, drop)
    assert reachable()
    assert [f.prog_id for f in tc_clsact.filters(lo, direction)] == [go_on.id]
    with pytest.raises(ConflictError, match="holds another program"):
        tc_clsact.replace(changed, drop, drop)
    assert [f.prog_id for f in tc_clsact.filters(lo, direction)] == [go_on.id]

    assert tc_clsact.detach(changed) is True
    assert "clsact" not in tc("qdisc", "show", "dev", "lo")
    assert tc_clsact.detach(changed) is False


def test_the_filter_keeps_the_program(lo: int) -> None:
    with Program.load(verdict.build(TcxAction.DROP)) as program:
        made = tc_clsact.attach(program, lo, INGRESS, name=NAME)
    assert not reachable()
    assert tc_clsact.detach(made)
    assert reachable()


def test_what_others_have_put_there_stays(lo: int, drop: Program, go_on: Program) -> None:
    tc("qdisc", "add", "dev", "lo", "clsact")
    tc("filter", "add", "dev", "lo", "ingress", "prio", "5", "protocol", "ip", *OTHER)
    made = tc_clsact.attach(go_on, lo, INGRESS, name=NAME)
    assert not made.made_qdisc
    assert tc_clsact.detach(made)
    assert "clsact" in tc("qdisc", "show", "dev", "lo")
    assert OTHER[0] in tc("filter", "show", "dev", "lo", "ingress")
    assert not tc_clsact.remove_qdisc_if_unused(lo)
    tc("filter", "del", "dev", "lo", "ingress")
    assert tc_clsact.remove_qdisc_if_unused(lo)


def test_our_qdisc_stays_while_others_use_it(lo: int, go_on: Program) -> None:
    made = tc_clsact.attach(go_on, lo, INGRESS, name=NAME)
    other = tc_clsact.attach(go_on, lo, EGRESS, name="somebody else")
    assert (made.made_qdisc, other.made_qdisc) == (True, False)
    assert tc_clsact.detach(made)
    assert [f.name for f in tc_clsact.filters(lo, EGRESS)] == ["somebody else"]
    assert tc_clsact.detach(other, remove_qdisc=True)
    assert "clsact" not in tc("qdisc", "show", "dev", "lo")


def test_a_name_twice(lo: int, go_on: Program) -> None:
    made = tc_clsact.attach(go_on, lo, INGRESS, name=NAME)
    with pytest.raises(ConflictError, match="already"):
        tc_clsact.attach(go_on, lo, INGRESS, name=NAME)
    assert len(tc_clsact.filters(lo, INGRESS)) == 1
    assert tc_clsact.detach(made)


def test_a_filter_that_somebody_has_removed(lo: int, go_on: Program) -> None:
    made = tc_clsact.attach(go_on, lo, INGRESS, name=NAME)
    tc("qdisc", "del", "dev", "lo", "clsact")
    with pytest.raises(AttachError, match="any more"):
        tc_clsact.replace(made, go_on)
    assert tc_clsact.detach(made) is False


def test_an_attach_that_fails_leaves_no_qdisc(lo: int, go_on: Program) -> None:
    with pytest.raises(AttachError, match="cannot be attached to lo ingress"):
        tc_clsact.attach(go_on, lo, INGRESS, name="x" * 300)
    assert "clsact" not in tc("qdisc", "show", "dev", "lo")


def test_an_ingress_qdisc_is_in_the_way(lo: int, go_on: Program) -> None:
    tc("qdisc", "add", "dev", "lo", "ingress")
    with pytest.raises(ConflictError, match="'ingress'"):
        tc_clsact.attach(go_on, lo, EGRESS, name=NAME)
    tc("qdisc", "del", "dev", "lo", "ingress")


def test_no_such_interface(netns: NetNs, go_on: Program) -> None:
    with pytest.raises(UsageError):
        tc_clsact.attach(go_on, 4711, INGRESS, name=NAME)
    gone = tc_clsact.Attachment(4711, INGRESS, NAME, 1, 1, 1, True)
    assert tc_clsact.detach(gone) is False
