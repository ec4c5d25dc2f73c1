# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The features that the loader itself asks for, by name."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from loader import sys as bpf_sys
from loader.errors import CapabilityError, KernelFeatureError
from loader.features.answer import Answer, Asked, Support, judge
from loader.features.attempt import EXIT, NOWHERE, Raw, alu, ask_verifier, call, copy, harmless, map_fd
from loader.objects import Link, Map, Program
from loader.sys import libc
from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC, AttachType, Helper, MapType, ProgType
from pybpfasm.layout import U32, U64, Nested, Struct
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.asm import Asm
    from pybpfasm.kernel.context import SkBuff

__all__ = ["PROBES", "Feature", "helper"]

_CLONE_NEWNET = 0x40000000  # linux/sched.h


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


_NO_SUCH_HELPER = ("invalid func ", "unknown func ", "program of this type cannot use helper ")


def helper(type: int, helper: int, attach_type: int | None = None) -> Answer:
    """Ask the verifier whether a program type may call a helper: it says so before it looks at arguments."""
    return ask_verifier(Raw(type, [call(helper), EXIT], attach_type), _NO_SUCH_HELPER)


# --- the probes ---------------------------------------------------------------------------------------------


def _link_on(type: int, attach_type: int, expected: int | None, target: int, present: int) -> Answer:
    """Create a link on a target that cannot be: whether the kernel minds the target or the link tells."""

    def attempt() -> None:
        with harmless(type, expected) as program:
            os.close(bpf_sys.link_create(program.fd, target, attach_type))

    return judge(attempt, present=frozenset({present}))


def _tcx() -> Answer:
    return _link_on(ProgType.SCHED_CLS, AttachType.TCX_INGRESS, None, NOWHERE, errno.ENODEV)


def _getsockopt_link() -> Answer:
    kind = AttachType.CGROUP_GETSOCKOPT
    return _link_on(ProgType.CGROUP_SOCKOPT, kind, kind, NOWHERE, errno.EBADF)


def _sock_ops_link() -> Answer:
    return _link_on(ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, None, NOWHERE, errno.EBADF)


def _link_update() -> Answer:
    return judge(lambda: bpf_sys.link_update(NOWHERE, NOWHERE), present=frozenset({errno.EBADF}))


def _sk_msg() -> Answer:
    return judge(lambda: harmless(ProgType.SK_MSG).close())


def _sk_lookup() -> Answer:
    return judge(lambda: harmless(ProgType.SK_LOOKUP, AttachType.SK_LOOKUP).close())


_SOCKHASH = MapSpec("probe", MapType.SOCKHASH, 8, 8, 1)


def _sockhash() -> Answer:
    return judge(lambda: Map.create(_SOCKHASH).close())


def _sockmap_link() -> Answer:
    def attempt() -> None:
        # A sockhash that nobody else knows: nothing passes through it.
        with Map.create(_SOCKHASH) as sockhash, harmless(ProgType.SK_MSG) as program:
            Link.sockmap(program, sockhash, AttachType.SK_MSG_VERDICT).close()

    return judge(attempt)


def _map_batch() -> Answer:
    def attempt() -> None:
        with Map.create(MapSpec("probe", MapType.HASH, 4, 4, 1)) as probed:
            bpf_sys.map_lookup_batch(probed.fd, None, 1, 4, 4, position_size=4)

    return judge(attempt)


def _ringbuf() -> Answer:
    return judge(lambda: Map.create(MapSpec("probe", MapType.RINGBUF, None, None, 1 << 16)).close())


def _sk_storage() -> Answer:
    """Socket storage is a map and a helper; both have to be there."""

    def attempt() -> None:
        spec = MapSpec("probe", MapType.SK_STORAGE, U32(), U32(), 0, BPF_F_NO_PREALLOC)
        Map.create(spec).close()

    answer = judge(attempt)
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


class _Timer(Struct, kernel_name="bpf_timer"):
    opaque = U64()
    more = U64()


class _WithTimer(Struct):
    timer = Nested(_Timer)


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
    """Make the qdisc on ``lo`` of a network namespace of its own, in a thread that ends with the attempt."""
    answers: list[Answer] = []

    def attempt() -> None:
        from loader import tc_clsact

        if libc().unshare(_CLONE_NEWNET) != 0:
            raise CapabilityError(
                f"a network namespace cannot be made: {os.strerror(ctypes.get_errno())}",
                missing=("CAP_SYS_ADMIN",),
            )
        with harmless(ProgType.SCHED_CLS) as program:
            tc_clsact.attach(program, 1, AttachType.TCX_INGRESS, name="probe")

    thread = threading.Thread(target=lambda: answers.append(judge(attempt)))
    thread.start()
    thread.join()
    return answers[0] if answers else (Support.INCONCLUSIVE, "the attempt ended with an exception", 0)


def _fionread() -> Answer:
    from loader.features.fionread import fionread  # here, because it is asked once in a boot

    return fionread()


PROBES: dict[Feature, Callable[[], Answer]] = {
    Feature.TCX: _tcx,
    Feature.CLSACT: _clsact,
    Feature.LINK_UPDATE: _link_update,
    Feature.CGROUP_GETSOCKOPT_LINK: _getsockopt_link,
    Feature.CGROUP_SOCK_OPS_LINK: _sock_ops_link,
    Feature.SK_MSG: _sk_msg,
    Feature.SOCKHASH: _sockhash,
    Feature.SOCKMAP_LINK: _sockmap_link,
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
    Feature.RINGBUF: _ringbuf,
    Feature.MAP_BATCH: _map_batch,
    Feature.SK_LOOKUP: _sk_lookup,
    Feature.FIONREAD: _fionread,
}
