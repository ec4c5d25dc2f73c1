# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Types of maps, programs, attach points and links: which of the UAPI's enumerations this kernel can make.

Each is tried with the least that a kernel accepts of it. Where a hook cannot be tried without touching
something real (tracing), the kernel's own BTF says whether it knows the name.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from loader import sys as bpf_sys
from loader.errors import BpfError, LoaderError, describe_errno
from loader.features.answer import Answer, Support, judge, yes
from loader.features.attempt import EXIT, NOWHERE, Raw, alu, ask_verifier, call, harmless
from loader.objects import Map
from pybpfasm import isa
from pybpfasm.instruction import Instruction, encode
from pybpfasm.kernel.enums import (
    BPF_F_MMAPABLE,
    BPF_F_NO_PREALLOC,
    AttachType,
    Cmd,
    LinkType,
    MapType,
    ProgType,
)
from pybpfasm.layout import U32
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.btf import Btf as KernelBtf

__all__ = [
    "WITH_TARGET",
    "attach_type",
    "cgroup_link",
    "helper",
    "kfunc",
    "link_type",
    "map_type",
    "program_type",
]

_F_SLEEPABLE: Final = 1 << 4  # BPF_F_SLEEPABLE of linux/bpf.h
_PAGES: Final = 1 << 16  # a multiple of the page size of every machine


# --- maps ---------------------------------------------------------------------------------------------------

# Sizes of key and value, number of entries, flags; what is not here takes 4, 4, 1.
_MAPS: Final[dict[MapType, tuple[int, int, int, int]]] = {
    MapType.STACK_TRACE: (4, 8, 1, 0),
    MapType.LPM_TRIE: (8, 4, 1, BPF_F_NO_PREALLOC),
    MapType.CGROUP_STORAGE_DEPRECATED: (16, 4, 0, 0),
    MapType.PERCPU_CGROUP_STORAGE_DEPRECATED: (16, 4, 0, 0),
    MapType.QUEUE: (0, 4, 1, 0),
    MapType.STACK: (0, 4, 1, 0),
    MapType.BLOOM_FILTER: (0, 4, 1, 0),
    MapType.RINGBUF: (0, 0, _PAGES, 0),
    MapType.USER_RINGBUF: (0, 0, _PAGES, 0),
    MapType.ARENA: (0, 0, 1, BPF_F_MMAPABLE),
}
# Their key and value have to have BTF.
_STORAGE: Final = (MapType.SK_STORAGE, MapType.INODE_STORAGE, MapType.TASK_STORAGE, MapType.CGRP_STORAGE)


def map_type(kind: MapType) -> Answer:
    """Create a map of that type."""
    if kind in _STORAGE:
        spec = MapSpec("probe", kind, U32(), U32(), 0, BPF_F_NO_PREALLOC)
        return judge(lambda: Map.create(spec).close())
    if kind is MapType.STRUCT_OPS:
        # Type 1 of the kernel's BTF is an integer: who knows the map type says ENOTSUPP, others EINVAL.
        attr = bpf_sys.MapCreateAttr(
            map_type=kind, key_size=4, value_size=4, max_entries=1, btf_vmlinux_value_type_id=1
        )
        return _unlike(lambda: bpf_sys.bpf(Cmd.MAP_CREATE, attr), errno.EINVAL)
    key, value, entries, flags = _MAPS.get(kind, (4, 4, 1, 0))

    def attempt() -> None:
        inner = 0
        if kind in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
            inner = bpf_sys.map_create(MapType.ARRAY, 4, 4, 1, name="probe")
        try:
            made = bpf_sys.map_create(
                kind, key, value, entries, name="probe", flags=flags, inner_map_fd=inner
            )
            os.close(made)
        finally:
            if inner:
                os.close(inner)

    return judge(attempt)


def _unlike(attempt: Callable[[], int], absent: int) -> Answer:
    """Try what cannot succeed: one errno says that it is unknown, any other that it is known."""
    try:
        os.close(attempt())
    except BpfError as error:
        code = error.errno or 0
        if code in (errno.EPERM, errno.EACCES, errno.ENOMEM):
            support = Support.INCONCLUSIVE
        else:
            support = Support.UNSUPPORTED if code == absent else Support.SUPPORTED
        return support, f"BPF_{error.command} answered {describe_errno(code)}", code
    return yes()


# --- programs -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """What a program of a type has to have to be loaded."""

    attach_type: AttachType | None = None
    flags: int = 0
    returns: int = 1


_PROGRAMS: Final[dict[ProgType, _Shape]] = {
    ProgType.CGROUP_SOCK_ADDR: _Shape(AttachType.CGROUP_INET4_CONNECT),
    ProgType.CGROUP_SOCKOPT: _Shape(AttachType.CGROUP_GETSOCKOPT),
    ProgType.SK_LOOKUP: _Shape(AttachType.SK_LOOKUP),
    ProgType.NETFILTER: _Shape(AttachType.NETFILTER),
    ProgType.SYSCALL: _Shape(flags=_F_SLEEPABLE),
    ProgType.RAW_TRACEPOINT_WRITABLE: _Shape(returns=0),
}
# These are for a function or a structure of the kernel, by its BTF id. With that of an integer, the verifier
# of a kernel that knows the program type says that it is none.
WITH_TARGET: Final[dict[ProgType, AttachType | None]] = {
    ProgType.TRACING: AttachType.TRACE_ITER,
    ProgType.LSM: AttachType.LSM_MAC,
    ProgType.EXT: None,
    ProgType.STRUCT_OPS: None,
}


def program_type(kind: ProgType) -> Answer:
    """Load a program of that type that does nothing."""
    if kind in WITH_TARGET:
        return _known_to_verifier(kind, WITH_TARGET[kind])
    return ask_verifier(shaped(kind, [EXIT]))


def shaped(kind: ProgType, then: Sequence[Instruction]) -> Raw:
    """A program of that type with all that is needed to load it: r0 is set, and the rest is given."""
    shape = _PROGRAMS.get(kind, _Shape())
    return Raw(kind, [alu(0, shape.returns), *then], shape.attach_type, shape.flags)


_NO_SUCH_HELPER: Final = ("invalid func ", "unknown func ", "program of this type cannot use helper ")


def helper(kind: ProgType, number: int, attach_type: AttachType | None = None) -> Answer:
    """Ask the verifier whether a program type may call a helper: it says so before it looks at arguments."""
    if kind in WITH_TARGET:
        return Support.INCONCLUSIVE, f"{kind.name} programs are for one function of the kernel each", 0
    raw = shaped(kind, [call(number), EXIT])
    if attach_type is not None:
        raw.expected_attach_type = attach_type
    return ask_verifier(raw, _NO_SUCH_HELPER)


def kfunc(kind: ProgType, name: str) -> Answer:
    """Look the function up in the kernel's BTF, and ask the verifier whether the type may call it."""
    from pybpfasm.btf import Kind

    if kind in WITH_TARGET:
        return Support.INCONCLUSIVE, f"{kind.name} programs are for one function of the kernel each", 0
    try:
        found = _vmlinux().by_name(name, Kind.FUNC)
    except LoaderError as error:
        return Support.INCONCLUSIVE, str(error), 0
    if found is None:
        return Support.UNSUPPORTED, f"the kernel's BTF has no function {name}", 0
    instruction = Instruction(isa.OP_CALL, src=isa.CallKind.KFUNC, imm=found.id)
    # The second from a verifier that knows no such calls (before 5.13).
    refusals = ("calling kernel function", "BPF_CALL uses reserved fields")
    return ask_verifier(shaped(kind, [instruction, EXIT]), refusals)


def _known_to_verifier(kind: ProgType, attach_type: AttachType | None) -> Answer:
    code = ctypes.create_string_buffer(encode([alu(0, 0), EXIT], sys.byteorder), 16)
    license, log = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(4096)
    attr = bpf_sys.ProgLoadAttr(
        prog_type=kind,
        insn_cnt=2,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(license),
        log_level=1,
        log_size=len(log),
        log_buf=ctypes.addressof(log),
        expected_attach_type=attach_type or 0,
        attach_btf_id=1,
    )
    support, reason, number = _unlike(lambda: bpf_sys.bpf(Cmd.PROG_LOAD, attr), errno.EINVAL)
    said = log.value.decode("utf-8", "replace").strip().splitlines()
    if support is Support.UNSUPPORTED and said:  # the type was found, and the verifier began
        return yes(f"the verifier knows it ({said[0]})", number)
    return support, reason, number


# --- attach types -------------------------------------------------------------------------------------------

# The program type that the UAPI has for each; a kernel may take others as well.
_PROGRAM_OF: Final[dict[ProgType, tuple[str, ...]]] = {
    ProgType.CGROUP_SKB: ("CGROUP_INET_INGRESS", "CGROUP_INET_EGRESS"),
    ProgType.CGROUP_SOCK: (
        "CGROUP_INET_SOCK_CREATE",
        "CGROUP_INET_SOCK_RELEASE",
        "CGROUP_INET4_POST_BIND",
        "CGROUP_INET6_POST_BIND",
    ),
    ProgType.SOCK_OPS: ("CGROUP_SOCK_OPS",),
    ProgType.CGROUP_DEVICE: ("CGROUP_DEVICE",),
    ProgType.CGROUP_SYSCTL: ("CGROUP_SYSCTL",),
    ProgType.CGROUP_SOCKOPT: ("CGROUP_GETSOCKOPT", "CGROUP_SETSOCKOPT"),
    ProgType.SK_SKB: ("SK_SKB_STREAM_PARSER", "SK_SKB_STREAM_VERDICT", "SK_SKB_VERDICT"),
    ProgType.SK_MSG: ("SK_MSG_VERDICT",),
    ProgType.LIRC_MODE2: ("LIRC_MODE2",),
    ProgType.FLOW_DISSECTOR: ("FLOW_DISSECTOR",),
    ProgType.SK_LOOKUP: ("SK_LOOKUP",),
    ProgType.SK_REUSEPORT: ("SK_REUSEPORT_SELECT", "SK_REUSEPORT_SELECT_OR_MIGRATE"),
    ProgType.NETFILTER: ("NETFILTER",),
    ProgType.SCHED_CLS: ("TCX_INGRESS", "TCX_EGRESS", "NETKIT_PRIMARY", "NETKIT_PEER"),
    ProgType.XDP: ("XDP", "XDP_DEVMAP", "XDP_CPUMAP"),
    ProgType.PERF_EVENT: ("PERF_EVENT",),
    ProgType.KPROBE: (
        "TRACE_KPROBE_MULTI",
        "TRACE_UPROBE_MULTI",
        "TRACE_KPROBE_SESSION",
        "TRACE_UPROBE_SESSION",
    ),
    ProgType.TRACING: ("TRACE_RAW_TP", "TRACE_FENTRY", "TRACE_FEXIT", "MODIFY_RETURN", "TRACE_ITER"),
    ProgType.LSM: ("LSM_MAC", "LSM_CGROUP"),
    ProgType.STRUCT_OPS: ("STRUCT_OPS",),
}
# Loading checks that the attach type is one of the program type's.
_CHECKED_AT_LOAD: Final = (
    ProgType.CGROUP_SOCK,
    ProgType.CGROUP_SOCK_ADDR,
    ProgType.CGROUP_SOCKOPT,
    ProgType.SK_LOOKUP,
    ProgType.SK_REUSEPORT,
    ProgType.NETFILTER,
)
# PROG_ATTACH knows the attach type before it looks for a target, and there is none.
_BY_ATTACHING: Final = (
    ProgType.CGROUP_SKB,
    ProgType.SOCK_OPS,
    ProgType.CGROUP_DEVICE,
    ProgType.CGROUP_SYSCTL,
    ProgType.SK_SKB,
    ProgType.SK_MSG,
    ProgType.LIRC_MODE2,
)
_HAVE_A_LINK: Final = {
    AttachType.FLOW_DISSECTOR: LinkType.NETNS,
    AttachType.XDP: LinkType.XDP,
    AttachType.PERF_EVENT: LinkType.PERF_EVENT,
}


@cache
def program_of(kind: AttachType) -> ProgType:
    """Return the program type that an attach type is for."""
    for program, names in _PROGRAM_OF.items():
        if kind.name in names:
            return program
    return ProgType.CGROUP_SOCK_ADDR  # CGROUP_INET4_BIND and all the others on addresses of sockets


def attach_type(kind: AttachType) -> Answer:
    """Find out whether programs can be for that attach type."""
    program = program_of(kind)
    if program in _CHECKED_AT_LOAD:
        return judge(lambda: harmless(program, kind).close())
    if program in _BY_ATTACHING:

        def attach() -> None:
            with harmless(program) as loaded:
                bpf_sys.prog_attach(NOWHERE, loaded.fd, kind)

        return judge(attach, present=frozenset({errno.EBADF}))
    if program is ProgType.SCHED_CLS:
        return _link(program, None, kind, NOWHERE, errno.ENODEV)
    if program is ProgType.KPROBE:
        return _multi(kind)
    if kind in _HAVE_A_LINK:
        return link_type(_HAVE_A_LINK[kind])
    there = program_type(program)
    return there if there[0] is not Support.SUPPORTED else _named("bpf_attach_type", f"BPF_{kind.name}")


def _named(enumeration: str, name: str) -> Answer:
    """Look a name up in the BTF of the running kernel."""
    try:
        names = _names(enumeration)
    except LoaderError as error:
        return Support.INCONCLUSIVE, str(error), 0
    if name in names:
        return yes(f"the kernel's BTF has {name}")
    return Support.UNSUPPORTED, f"the kernel's BTF has no {name}", 0


def _names(enumeration: str) -> frozenset[str]:
    from pybpfasm.btf import Kind

    found = _vmlinux().by_name(enumeration, Kind.ENUM)
    return frozenset(one.name for one in found.enumerators) if found is not None else frozenset()


@cache
def _vmlinux() -> KernelBtf:
    """The running kernel's BTF; raises LoaderError."""
    from loader.vmlinux import kernel_types

    return kernel_types()


# --- links --------------------------------------------------------------------------------------------------


def _link(
    program: ProgType,
    expected: AttachType | None,
    kind: AttachType,
    target: int,
    present: int,
    of: bytes = b"",
) -> Answer:
    """Create a link on a target that cannot be: whether the kernel minds the target or the link tells.

    ``of`` are the bytes of the part of ``union bpf_attr`` that this kind of link has for itself.
    """

    def attempt() -> None:
        with harmless(program, expected) as loaded:
            attr = bpf_sys.LinkCreateAttr(loaded.fd, target, kind)
            ctypes.memmove(ctypes.addressof(attr.of), of, len(of))
            os.close(bpf_sys.bpf(Cmd.LINK_CREATE, attr))

    return judge(attempt, present=frozenset({present}))


def cgroup_link(kind: AttachType) -> Answer:
    """Find out whether programs for that attach type of cgroups can have a link."""
    program = program_of(kind)
    expected = kind if program in _CHECKED_AT_LOAD else None
    return _link(program, expected, kind, NOWHERE, errno.EBADF)


def _xdp() -> Answer:
    """On ``lo`` of a network namespace of its own: a kernel says EINVAL of an interface that is not there."""
    from loader.features.place import in_own_network

    def attempt() -> Answer:
        def attach() -> None:
            with harmless(ProgType.XDP, AttachType.XDP) as program:
                os.close(bpf_sys.link_create(program.fd, 1, AttachType.XDP))

        return judge(attach)

    return in_own_network(attempt)


def _multi(kind: AttachType) -> Answer:
    """A link on many functions, whose addresses or path are where nothing can be read."""
    if kind in (AttachType.TRACE_KPROBE_MULTI, AttachType.TRACE_KPROBE_SESSION):
        of = struct.pack("=IIQQQ", 0, 1, 0, 1, 0)  # flags, cnt, syms, addrs, cookies
    else:
        of = struct.pack("=QQQQIII", 1, 1, 0, 0, 1, 0, 0)  # path, offsets, …, cnt, flags, pid
    return _link(ProgType.KPROBE, kind, kind, 0, errno.EFAULT, of)


_NO_FAMILY: Final = 0xFF
_LINKS: Final[dict[LinkType, Callable[[], Answer]]] = {
    LinkType.CGROUP: lambda: cgroup_link(AttachType.CGROUP_INET_INGRESS),
    LinkType.NETNS: lambda: _link(
        ProgType.FLOW_DISSECTOR, None, AttachType.FLOW_DISSECTOR, NOWHERE, errno.EBADF
    ),
    LinkType.XDP: _xdp,
    LinkType.PERF_EVENT: lambda: _link(
        ProgType.TRACEPOINT, None, AttachType.PERF_EVENT, NOWHERE, errno.EBADF
    ),
    LinkType.KPROBE_MULTI: lambda: _multi(AttachType.TRACE_KPROBE_MULTI),
    LinkType.UPROBE_MULTI: lambda: _multi(AttachType.TRACE_UPROBE_MULTI),
    LinkType.NETFILTER: lambda: _link(
        ProgType.NETFILTER,
        AttachType.NETFILTER,
        AttachType.NETFILTER,
        0,
        errno.EAFNOSUPPORT,
        struct.pack("=IIiI", _NO_FAMILY, 0, 0, 0),
    ),
    LinkType.TCX: lambda: _link(ProgType.SCHED_CLS, None, AttachType.TCX_INGRESS, NOWHERE, errno.ENODEV),
    LinkType.NETKIT: lambda: _link(
        ProgType.SCHED_CLS, None, AttachType.NETKIT_PRIMARY, NOWHERE, errno.ENODEV
    ),
    LinkType.SOCKMAP: lambda: _link(ProgType.SK_MSG, None, AttachType.SK_MSG_VERDICT, NOWHERE, errno.EBADF),
}


def link_type(kind: LinkType) -> Answer:
    """Try to make such a link, or look for its name where that takes a real target."""
    attempt = _LINKS.get(kind)
    return attempt() if attempt is not None else _named("bpf_link_type", f"BPF_LINK_TYPE_{kind.name}")
