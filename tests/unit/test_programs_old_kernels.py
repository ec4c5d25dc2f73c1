# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the proxy's programs are made of where probes found a kernel without newer things."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from programs import getsockopt, sk_msg, sockops, tc_egress, tc_ingress
from programs.packet import Interface
from programs.settings import Ports, Settings
from pybpfasm import isa
from pybpfasm.instruction import Instruction, decode
from pybpfasm.kernel.enums import Helper

# Brought by 5.11 to 5.15.
NEWER_HELPERS = {
    Helper.ktime_get_coarse_ns,
    Helper.timer_init,
    Helper.timer_set_callback,
    Helper.timer_start,
}


def instructions(settings: Settings) -> Iterator[Instruction]:
    """All instructions of all programs."""
    for link in (Interface(), Interface(loopback=True), Interface(link_header=False)):
        for tc in (tc_ingress.tc_ingress, tc_egress.tc_egress):
            yield from decode(tc.build(settings, link).code())
    for program in (getsockopt.getsockopt, sockops.sockops, sk_msg.sk_msg):
        yield from decode(program.build(settings).code())


def atomic_operations(settings: Settings) -> set[int]:
    """The atomic operations, by the number that the immediate holds."""
    return {
        one.imm
        for one in instructions(settings)
        if one.opcode & 7 == isa.STX and one.opcode & 0xE0 == isa.ATOMIC
    }


def helpers(settings: Settings) -> set[int]:
    """The helpers that are called."""
    return {one.imm for one in instructions(settings) if one.opcode == isa.OP_CALL and one.src == 0}


def settings(new: bool) -> Settings:
    """Settings of a kernel that has everything, or of 5.10."""
    return Settings(Ports.parse("8000"), timers=new, coarse_clock=new, netns_cookie=new, netns=5)


def test_only_additions_are_atomic_without_timers() -> None:
    """Before 5.12 the verifier knows no other atomic operation, and timers came with 5.15."""
    assert atomic_operations(settings(new=False)) == {0}
    assert len(atomic_operations(settings(new=True))) > 1


@pytest.mark.parametrize("helper", sorted(NEWER_HELPERS | {Helper.get_netns_cookie}))
def test_helpers_that_came_later_are_left_out(helper: Helper) -> None:
    assert helper not in helpers(settings(new=False))
    assert helper in helpers(settings(new=True))
