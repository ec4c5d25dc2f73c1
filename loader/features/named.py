# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The features that the loader itself asks for, by name."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from loader import sys as bpf_sys
from loader.errors import KernelFeatureError
from loader.features.answer import Answer, Asked, Support, judge
from loader.features.attempt import EXIT, NOWHERE, Raw, alu, call, copy, harmless, map_fd
from loader.features.kinds import cgroup_link, helper, link_type, map_type, program_type
from loader.objects import Map, Program
from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.enums import AttachType, Helper, LinkType, MapType, ProgType
from pybpfasm.kernel.values import BpfTimer
from pybpfasm.layout import U32, Nested, Struct
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.asm import Asm
    from pybpfasm.kernel.context import SkBuff

__all__ = ["PROBES", "Feature"]


class Feature(Asked):
    """What the proxy needs, or takes where it is there."""

    TCX = "TCX links (6.6)"
    CLSACT = "the clsact qdisc with cls_bpf (4.5)"
    LINK_UPDATE = "replacing a link's program in one step (5.7)"
    CGROUP_GETSOCKOPT_LINK = "cgroup/getsockopt links (5.7)"
    CGROUP_SOCK_OPS_LINK = "sock_ops links (5.7)"
    SK_MSG = "sk_msg programs (4.17)"
    SOCKHASH = "the sockhash map (4.18)"
    SOCKMAP_LINK = "links on a sockhash (6.10)"
    NETNS_COOKIE_SK_MSG = "get_netns_cookie in sk_msg (5.15)"
    NETNS_COOKIE_SOCK_OPS = "get_netns_cookie in sock_ops (5.15)"
    NETNS_COOKIE_SOCKOPT = "get_netns_cookie in cgroup/getsockopt (5.15)"
    SK_STORAGE_SK_MSG = "socket storage in sk_msg (5.8)"
    PROBE_READ_SK_MSG = "probe_read_kernel in sk_msg (5.8)"
    SKC_LOOKUP_TC = "skc_lookup_tcp in tc (5.2)"
    TIMER = "bpf_timer in maps (5.15)"
    BTF_INFO = "function and line information (5.0)"
    COARSE_CLOCK = "ktime_get_coarse_ns (5.11)"
    RINGBUF = "the ring buffer map (5.8)"
    MAP_BATCH = "map operations in batches (5.6)"
    SK_LOOKUP = "sk_lookup programs (5.9)"
    FIONREAD = "FIONREAD of redirected bytes (7.0)"
    QUEUE_LENGTH = "redirected bytes in the length of the receive queue (6.13)"


# --- the probes ---------------------------------------------------------------------------------------------


def _link_update() -> Answer:
    return judge(lambda: bpf_sys.link_update(NOWHERE, NOWHERE), present=frozenset({errno.EBADF}))


def _map_batch() -> Answer:
    def attempt() -> None:
        with Map.create(MapSpec("probe", MapType.HASH, 4, 4, 1)) as probed:
            bpf_sys.map_lookup_batch(probed.fd, None, 1, 4, 4, position_size=4)

    return judge(attempt)


def _sk_storage() -> Answer:
    """Socket storage is a map and a helper; both have to be there."""
    answer = map_type(MapType.SK_STORAGE)
    return answer if answer[0] is not Support.SUPPORTED else helper(ProgType.SK_MSG, Helper.sk_storage_get)


def _timer() -> Answer:
    def attempt() -> None:
        with Map.create(MapSpec("probe", MapType.ARRAY, U32(), _WithTimer, 1)) as timers:
            clock_monotonic = 1
            code = [
                Instruction(isa.ST | isa.MEM | isa.W, isa.FRAME_POINTER, offset=-4),
                map_fd(1, timers.fd),
                copy(2, isa.FRAME_POINTER),
                alu(2, -4, isa.Alu.ADD),
                call(Helper.map_lookup_elem),
                Instruction(isa.JMP | isa.Jump.JEQ | isa.K, 0, offset=6),
                copy(1, 0),
                map_fd(2, timers.fd),
                alu(3, clock_monotonic),
                call(Helper.timer_init),
                alu(0, 0),
                EXIT,
            ]
            Program.load(Raw(ProgType.SCHED_CLS, code)).close()

    return judge(attempt)


class _WithTimer(Struct):
    timer = Nested(BpfTimer)


def _btf_info() -> Answer:
    from pybpfasm.program import sched_cls

    @sched_cls(name="probe")
    def lines(b: Asm, ctx: SkBuff) -> None:
        b.r0 = 0
        b.exit()

    def attempt() -> None:
        with Program.load(lines.build_for(sys.byteorder)) as program:
            if not program.info().btf_id:
                raise KernelFeatureError("the program was loaded without its BTF", feature="BTF")

    return judge(attempt)


def _clsact() -> Answer:
    """Make the qdisc on ``lo`` of a network namespace of its own."""
    from loader.features.place import in_own_network

    answers: list[Answer] = []

    def attempt() -> None:
        with harmless(ProgType.SCHED_CLS) as program:

            def attach() -> None:
                from loader import tc_clsact

                tc_clsact.attach(program, 1, AttachType.TCX_INGRESS, name="probe")

            answers.append(in_own_network(lambda: judge(attach)))

    tried = judge(attempt)
    return answers[0] if answers else tried


def _fionread() -> Answer:
    from loader.features.redirected import fionread  # here, because it is asked once in a boot

    return fionread()


def _queue_length() -> Answer:
    from loader.features.redirected import queue_length

    return queue_length()


PROBES: dict[Feature, Callable[[], Answer]] = {
    Feature.TCX: lambda: link_type(LinkType.TCX),
    Feature.CLSACT: _clsact,
    Feature.LINK_UPDATE: _link_update,
    Feature.CGROUP_GETSOCKOPT_LINK: lambda: cgroup_link(AttachType.CGROUP_GETSOCKOPT),
    Feature.CGROUP_SOCK_OPS_LINK: lambda: cgroup_link(AttachType.CGROUP_SOCK_OPS),
    Feature.SK_MSG: lambda: program_type(ProgType.SK_MSG),
    Feature.SOCKHASH: lambda: map_type(MapType.SOCKHASH),
    Feature.SOCKMAP_LINK: lambda: link_type(LinkType.SOCKMAP),
    Feature.NETNS_COOKIE_SK_MSG: lambda: helper(ProgType.SK_MSG, Helper.get_netns_cookie),
    Feature.NETNS_COOKIE_SOCK_OPS: lambda: helper(ProgType.SOCK_OPS, Helper.get_netns_cookie),
    Feature.NETNS_COOKIE_SOCKOPT: lambda: helper(
        ProgType.CGROUP_SOCKOPT, Helper.get_netns_cookie, AttachType.CGROUP_GETSOCKOPT
    ),
    Feature.SK_STORAGE_SK_MSG: _sk_storage,
    Feature.PROBE_READ_SK_MSG: lambda: helper(ProgType.SK_MSG, Helper.probe_read_kernel),
    Feature.SKC_LOOKUP_TC: lambda: helper(ProgType.SCHED_CLS, Helper.skc_lookup_tcp),
    Feature.TIMER: _timer,
    Feature.BTF_INFO: _btf_info,
    Feature.COARSE_CLOCK: lambda: helper(ProgType.SCHED_CLS, Helper.ktime_get_coarse_ns),
    Feature.RINGBUF: lambda: map_type(MapType.RINGBUF),
    Feature.MAP_BATCH: _map_batch,
    Feature.SK_LOOKUP: lambda: program_type(ProgType.SK_LOOKUP),
    Feature.FIONREAD: _fionread,
    Feature.QUEUE_LENGTH: _queue_length,
}
