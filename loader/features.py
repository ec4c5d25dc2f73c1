# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What this kernel offers, found by trying.

A probe makes something harmless (a program that is never attached, an attempt on an interface that does not
exist) and reads the kernel's answer; the version is never looked at. The answer is one of three: an attempt
that fails for another reason than the missing feature, above all for want of a capability, proves nothing.
Results are kept for the life of the process.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from loader import sys as bpf_sys
from loader.errors import (
    ENOTSUPP,
    BpfError,
    CapabilityError,
    KernelFeatureError,
    LoaderError,
    describe_errno,
)
from loader.objects import Link, Map, Program
from loader.sys import libc
from loader.verifier import VerifierError
from pybpfasm import isa
from pybpfasm.instruction import Instruction, encode
from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC, AttachType, Helper, MapType, ProgType
from pybpfasm.layout import U32, U64, Nested, Struct
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.asm import Asm
    from pybpfasm.errors import SourceLocation
    from pybpfasm.kernel.context import SkBuff

__all__ = ["Feature", "Probe", "Support", "forget", "has_helper", "probe", "probe_all", "require"]


_CLONE_NEWNET = 0x40000000  # linux/sched.h
_NOWHERE = 0x7FFFFFFF  # the greatest number of a descriptor or interface: there is none of it


class Support(Enum):
    """What a probe has found."""

    SUPPORTED = "supported"
    UNSUPPORTED = "unsupported"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe's answer.

    ``reason`` is what the kernel said, ``errno`` its number where it was one (0 otherwise).
    """

    name: str
    support: Support
    reason: str
    errno: int = 0

    @property
    def supported(self) -> bool:
        """Whether the feature is certainly there."""
        return self.support is Support.SUPPORTED


class Feature(Enum):
    """What can be asked for. The value is the name in words, with the version of Linux that brought it."""

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

    @property
    def since(self) -> tuple[int, int]:
        """The first version of Linux with it, for comparing: (6, 6)."""
        major, minor = self.value.rpartition("(")[2].rstrip(")").split(".")
        return int(major), int(minor)

    @property
    def words(self) -> str:
        """The name without the version."""
        return self.value.rpartition(" (")[0]


# --- raw material -------------------------------------------------------------------------------------------


def _alu(dst: int, imm: int, op: int = isa.Alu.MOV) -> Instruction:
    return Instruction(isa.ALU64 | op | isa.K, dst, imm=imm)


def _copy(dst: int, src: int) -> Instruction:
    return Instruction(isa.ALU64 | isa.Alu.MOV | isa.X, dst, src)


def _call(helper: int) -> Instruction:
    return Instruction(isa.OP_CALL, imm=helper)


def _map(dst: int, fd: int) -> Instruction:
    return Instruction(isa.LD_IMM64, dst, isa.Imm64.MAP_FD, imm=fd)


_EXIT = Instruction(isa.OP_EXIT)


class _Raw:
    """A program of a few instructions in the shape that :meth:`Program.load` takes."""

    name = "probe"
    license = "GPL"
    prog_flags = 0

    def __init__(self, type: int, instructions: list[Instruction], attach_type: int | None = None) -> None:
        self.type = type
        self.expected_attach_type = attach_type
        self._code = encode(instructions, sys.byteorder)

    def code(self, map_fds: object = None) -> bytes:
        return self._code

    def btf(self) -> bytes:
        return b""

    def func_info(self) -> bytes:
        return b""

    def line_info(self) -> bytes:
        return b""

    def location(self, slot: int) -> SourceLocation | None:
        return None


def _harmless(type: int, attach_type: int | None = None, value: int = 1) -> Program:
    """Load a program that does nothing but return a value."""
    return Program.load(_Raw(type, [_alu(0, value), _EXIT], attach_type))


# --- judging ------------------------------------------------------------------------------------------------

_Answer = tuple[Support, str, int]
_ABSENT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP, errno.ENOSYS, errno.E2BIG})


def _yes(reason: str = "it worked", code: int = 0) -> _Answer:
    return Support.SUPPORTED, reason, code


def _judge(attempt: Callable[[], object], *, present: frozenset[int] = frozenset()) -> _Answer:
    """Try something. ``present`` are the errors that only a kernel with the feature gives."""
    try:
        attempt()
    except VerifierError as error:
        return Support.UNSUPPORTED, error.reason, error.errno or 0
    except BpfError as error:
        code = error.errno or 0
        if code in present:
            return _yes(f"BPF_{error.command} answered {describe_errno(code)}, as it does where it can", code)
        support = Support.UNSUPPORTED if code in _ABSENT else Support.INCONCLUSIVE
        return support, f"BPF_{error.command} answered {describe_errno(code)}", code
    except KernelFeatureError as error:
        return Support.UNSUPPORTED, str(error), 0
    except CapabilityError as error:
        return Support.INCONCLUSIVE, str(error), errno.EPERM
    except LoaderError as error:
        return Support.INCONCLUSIVE, str(error), 0
    return _yes()


_NO_SUCH_HELPER = ("invalid func ", "unknown func ", "program of this type cannot use helper ")


def _helper(type: int, helper: int, attach_type: int | None = None) -> _Answer:
    """Ask the verifier whether a program type may call a helper: it says so before it looks at arguments."""
    try:
        Program.load(_Raw(type, [_call(helper), _EXIT], attach_type)).close()
    except VerifierError as error:
        if any(text in error.log for text in _NO_SUCH_HELPER):
            return Support.UNSUPPORTED, error.reason, error.errno or 0
        return _yes(f"the verifier knows it ({error.reason})")
    except CapabilityError as error:
        return Support.INCONCLUSIVE, str(error), errno.EPERM
    except BpfError as error:
        code = error.errno or 0
        support = Support.UNSUPPORTED if code == errno.EINVAL else Support.INCONCLUSIVE
        return support, f"BPF_{error.command} answered {describe_errno(code)}", code
    return _yes()


# --- the probes ---------------------------------------------------------------------------------------------


def _link_on(type: int, attach_type: int, expected: int | None, target: int, present: int) -> _Answer:
    """Create a link on a target that cannot be: whether the kernel minds the target or the link tells."""

    def attempt() -> None:
        with _harmless(type, expected) as program:
            os.close(bpf_sys.link_create(program.fd, target, attach_type))

    return _judge(attempt, present=frozenset({present}))


def _tcx() -> _Answer:
    return _link_on(ProgType.SCHED_CLS, AttachType.TCX_INGRESS, None, _NOWHERE, errno.ENODEV)


def _getsockopt_link() -> _Answer:
    kind = AttachType.CGROUP_GETSOCKOPT
    return _link_on(ProgType.CGROUP_SOCKOPT, kind, kind, _NOWHERE, errno.EBADF)


def _sock_ops_link() -> _Answer:
    return _link_on(ProgType.SOCK_OPS, AttachType.CGROUP_SOCK_OPS, None, _NOWHERE, errno.EBADF)


def _link_update() -> _Answer:
    return _judge(lambda: bpf_sys.link_update(_NOWHERE, _NOWHERE), present=frozenset({errno.EBADF}))


def _sk_msg() -> _Answer:
    return _judge(lambda: _harmless(ProgType.SK_MSG).close())


def _sk_lookup() -> _Answer:
    return _judge(lambda: _harmless(ProgType.SK_LOOKUP, AttachType.SK_LOOKUP).close())


_SOCKHASH = MapSpec("probe", MapType.SOCKHASH, 8, 8, 1)


def _sockhash() -> _Answer:
    return _judge(lambda: Map.create(_SOCKHASH).close())


def _sockmap_link() -> _Answer:
    def attempt() -> None:
        # A sockhash that nobody else knows: nothing passes through it.
        with Map.create(_SOCKHASH) as sockhash, _harmless(ProgType.SK_MSG) as program:
            Link.sockmap(program, sockhash, AttachType.SK_MSG_VERDICT).close()

    return _judge(attempt)


def _map_batch() -> _Answer:
    def attempt() -> None:
        with Map.create(MapSpec("probe", MapType.HASH, 4, 4, 1)) as probed:
            bpf_sys.map_lookup_batch(probed.fd, None, 1, 4, 4, position_size=4)

    return _judge(attempt)


def _ringbuf() -> _Answer:
    return _judge(lambda: Map.create(MapSpec("probe", MapType.RINGBUF, None, None, 1 << 16)).close())


def _sk_storage() -> _Answer:
    """Socket storage is a map and a helper; both have to be there."""

    def attempt() -> None:
        spec = MapSpec("probe", MapType.SK_STORAGE, U32(), U32(), 0, BPF_F_NO_PREALLOC)
        Map.create(spec).close()

    answer = _judge(attempt)
    return answer if answer[0] is not Support.SUPPORTED else _helper(ProgType.SK_MSG, Helper.sk_storage_get)


def _timer() -> _Answer:
    def attempt() -> None:
        with Map.create(MapSpec("probe", MapType.ARRAY, U32(), _WithTimer, 1)) as timers:
            clock_monotonic = 1
            code = [
                Instruction(isa.ST | isa.MEM | isa.W, isa.FRAME_POINTER, offset=-4),
                _map(1, timers.fd),
                _copy(2, isa.FRAME_POINTER),
                _alu(2, -4, isa.Alu.ADD),
                _call(Helper.map_lookup_elem),
                Instruction(isa.JMP | isa.Jump.JEQ | isa.K, 0, offset=6),
                _copy(1, 0),
                _map(2, timers.fd),
                _alu(3, clock_monotonic),
                _call(Helper.timer_init),
                _alu(0, 0),
                _EXIT,
            ]
            Program.load(_Raw(ProgType.SCHED_CLS, code)).close()

    return _judge(attempt)


class _Timer(Struct, kernel_name="bpf_timer"):
    opaque = U64()
    more = U64()


class _WithTimer(Struct):
    timer = Nested(_Timer)


def _btf_info() -> _Answer:
    from pybpfasm.program import sched_cls

    @sched_cls(name="probe")
    def lines(b: Asm, ctx: SkBuff) -> None:
        b.r0 = 0
        b.exit()

    def attempt() -> None:
        with Program.load(lines.build_for(sys.byteorder)) as program:
            if not program.info().btf_id:
                raise KernelFeatureError("the program was loaded without its BTF", feature="BTF")

    return _judge(attempt)


def _clsact() -> _Answer:
    """Make the qdisc on ``lo`` of a network namespace of its own, in a thread that ends with the attempt."""
    answers: list[_Answer] = []

    def attempt() -> None:
        from loader import tc_clsact

        if libc().unshare(_CLONE_NEWNET) != 0:
            raise CapabilityError(
                f"a network namespace cannot be made: {os.strerror(ctypes.get_errno())}",
                missing=("CAP_SYS_ADMIN",),
            )
        with _harmless(ProgType.SCHED_CLS) as program:
            tc_clsact.attach(program, 1, AttachType.TCX_INGRESS, name="probe")

    thread = threading.Thread(target=lambda: answers.append(_judge(attempt)))
    thread.start()
    thread.join()
    return answers[0] if answers else (Support.INCONCLUSIVE, "the attempt ended with an exception", 0)


_PROBES: dict[Feature, Callable[[], _Answer]] = {
    Feature.TCX: _tcx,
    Feature.CLSACT: _clsact,
    Feature.LINK_UPDATE: _link_update,
    Feature.CGROUP_GETSOCKOPT_LINK: _getsockopt_link,
    Feature.CGROUP_SOCK_OPS_LINK: _sock_ops_link,
    Feature.SK_MSG: _sk_msg,
    Feature.SOCKHASH: _sockhash,
    Feature.SOCKMAP_LINK: _sockmap_link,
    Feature.NETNS_COOKIE_SK_MSG: lambda: _helper(ProgType.SK_MSG, Helper.get_netns_cookie),
    Feature.NETNS_COOKIE_SOCK_OPS: lambda: _helper(ProgType.SOCK_OPS, Helper.get_netns_cookie),
    Feature.NETNS_COOKIE_SOCKOPT: lambda: _helper(
        ProgType.CGROUP_SOCKOPT, Helper.get_netns_cookie, AttachType.CGROUP_GETSOCKOPT
    ),
    Feature.SK_STORAGE_SK_MSG: _sk_storage,
    Feature.PROBE_READ_SK_MSG: lambda: _helper(ProgType.SK_MSG, Helper.probe_read_kernel),
    Feature.SKC_LOOKUP_TC: lambda: _helper(ProgType.SCHED_CLS, Helper.skc_lookup_tcp),
    Feature.TIMER: _timer,
    Feature.BTF_INFO: _btf_info,
    Feature.COARSE_CLOCK: lambda: _helper(ProgType.SCHED_CLS, Helper.ktime_get_coarse_ns),
    Feature.RINGBUF: _ringbuf,
    Feature.MAP_BATCH: _map_batch,
    Feature.SK_LOOKUP: _sk_lookup,
}

_known: dict[Feature, Probe] = {}


def probe(feature: Feature) -> Probe:
    """Return what this kernel says about a feature; the attempt is made once in a process.

    An inconclusive answer is not kept, so that it is asked again when the process has more rights.
    """
    if feature in _known:
        return _known[feature]
    support, reason, code = _PROBES[feature]()
    found = Probe(feature.value, support, reason, code)
    if support is not Support.INCONCLUSIVE:
        _known[feature] = found
    return found


def probe_all() -> dict[Feature, Probe]:
    """Return what this kernel says about every feature, in the order of :class:`Feature`."""
    return {feature: probe(feature) for feature in Feature}


def has_helper(type: ProgType, helper: Helper, attach_type: AttachType | None = None) -> Probe:
    """Return whether programs of a type may call a helper on this kernel. Not kept."""
    return Probe(f"{helper.name} in {type.name}", *_helper(type, helper, attach_type))


def require(*features: Feature) -> None:
    """Raise :class:`~loader.errors.KernelFeatureError` for the first feature that the kernel certainly lacks.

    An inconclusive probe passes: what needs the feature will then say more clearly what is wrong.
    """
    for feature in features:
        found = probe(feature)
        if found.support is Support.UNSUPPORTED:
            raise KernelFeatureError(
                f"this kernel lacks {feature.value}: {found.reason}",
                feature=feature.name,
                hint="use a newer kernel; the version in parentheses is the first that has it",
            )


def forget() -> None:
    """Forget all answers."""
    _known.clear()
