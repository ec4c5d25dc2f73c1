# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The types of programs, as decorators."""

from __future__ import annotations

from typing import Final

from pybpfasm.kernel.context import (
    BpfSock,
    CgroupDevice,
    PtRegs,
    RawTracepointArgs,
    SkBuff,
    SkLookup,
    SkMsgMd,
    SkReuseport,
    SockAddr,
    SockOps,
    SockOpt,
    Sysctl,
    TraceEntry,
    XdpMd,
)
from pybpfasm.kernel.enums import AttachType, ProgType
from pybpfasm.program.template import Kind

__all__ = [
    "cgroup_device",
    "cgroup_skb",
    "cgroup_sock",
    "cgroup_sock_addr",
    "cgroup_sockopt",
    "cgroup_sysctl",
    "kprobe",
    "lsm",
    "raw_tracepoint",
    "sched_cls",
    "sk_lookup",
    "sk_msg",
    "sk_reuseport",
    "sk_skb",
    "sock_ops",
    "socket_filter",
    "tracepoint",
    "tracing",
    "xdp",
]


sched_cls: Final = Kind(ProgType.SCHED_CLS, SkBuff, (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS))
"""Programs at traffic control (``BPF_PROG_TYPE_SCHED_CLS``), on `SkBuff`; they return a `TcxAction`."""
xdp: Final = Kind(ProgType.XDP, XdpMd, (AttachType.XDP,))
"""Programs at the driver (``BPF_PROG_TYPE_XDP``), on `XdpMd`; they return an `XdpAction`."""
socket_filter: Final = Kind(ProgType.SOCKET_FILTER, SkBuff)
"""Filters of a socket (``BPF_PROG_TYPE_SOCKET_FILTER``), on `SkBuff`; they return how many bytes to keep."""
cgroup_sockopt: Final = Kind(
    ProgType.CGROUP_SOCKOPT, SockOpt, (AttachType.CGROUP_GETSOCKOPT, AttachType.CGROUP_SETSOCKOPT)
)
"""Programs of a cgroup around ``getsockopt`` and ``setsockopt`` (``BPF_PROG_TYPE_CGROUP_SOCKOPT``), on
`SockOpt`; they return 1 to allow, 0 to refuse. The attach type must be given."""
cgroup_sock_addr: Final = Kind(ProgType.CGROUP_SOCK_ADDR, SockAddr)
"""Programs of a cgroup at ``connect``, ``bind``, ``sendmsg`` and the like
(``BPF_PROG_TYPE_CGROUP_SOCK_ADDR``), on `SockAddr`; they return 1 to allow, 0 to refuse. The attach type must
be given."""
sock_ops: Final = Kind(ProgType.SOCK_OPS, SockOps, (AttachType.CGROUP_SOCK_OPS,))
"""Programs of a cgroup at events of TCP connections (``BPF_PROG_TYPE_SOCK_OPS``), on `SockOps`."""
sk_msg: Final = Kind(ProgType.SK_MSG, SkMsgMd, (AttachType.SK_MSG_VERDICT,))
"""Programs of a sockmap at each message that is sent (``BPF_PROG_TYPE_SK_MSG``), on `SkMsgMd`; they return 1
to pass, 0 to drop."""
sk_lookup: Final = Kind(ProgType.SK_LOOKUP, SkLookup, (AttachType.SK_LOOKUP,))
"""Programs of a network namespace that choose the socket of a packet (``BPF_PROG_TYPE_SK_LOOKUP``), on
`SkLookup`; they return 1 to go on, 0 to drop."""
sk_skb: Final = Kind(
    ProgType.SK_SKB,
    SkBuff,
    (AttachType.SK_SKB_STREAM_PARSER, AttachType.SK_SKB_STREAM_VERDICT, AttachType.SK_SKB_VERDICT),
)
"""Programs of a sockmap at what its sockets receive (``BPF_PROG_TYPE_SK_SKB``), on `SkBuff`; a parser returns
the length of a message, a verdict 1 to pass, 0 to drop."""
sk_reuseport: Final = Kind(
    ProgType.SK_REUSEPORT,
    SkReuseport,
    (AttachType.SK_REUSEPORT_SELECT, AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE),
)
"""Programs that choose among the sockets of a port (``BPF_PROG_TYPE_SK_REUSEPORT``), on `SkReuseport`; they
return 1 to pass, 0 to drop. The attach type must be given."""
cgroup_skb: Final = Kind(
    ProgType.CGROUP_SKB, SkBuff, (AttachType.CGROUP_INET_INGRESS, AttachType.CGROUP_INET_EGRESS)
)
"""Programs of a cgroup at its sockets' packets (``BPF_PROG_TYPE_CGROUP_SKB``), on `SkBuff`; they return 1 to
pass, 0 to drop. The attach type must be given."""
cgroup_sock: Final = Kind(
    ProgType.CGROUP_SOCK,
    BpfSock,
    (
        AttachType.CGROUP_INET_SOCK_CREATE,
        AttachType.CGROUP_INET_SOCK_RELEASE,
        AttachType.CGROUP_INET4_POST_BIND,
        AttachType.CGROUP_INET6_POST_BIND,
    ),
)
"""Programs of a cgroup when sockets are made, bound and given up (``BPF_PROG_TYPE_CGROUP_SOCK``), on
`BpfSock`; they return 1 to allow, 0 to refuse. The attach type must be given."""
cgroup_device: Final = Kind(ProgType.CGROUP_DEVICE, CgroupDevice, (AttachType.CGROUP_DEVICE,))
"""Programs of a cgroup that allow devices (``BPF_PROG_TYPE_CGROUP_DEVICE``), on `CgroupDevice`; they return 1
to allow, 0 to refuse."""
cgroup_sysctl: Final = Kind(ProgType.CGROUP_SYSCTL, Sysctl, (AttachType.CGROUP_SYSCTL,))
"""Programs of a cgroup at sysctls (``BPF_PROG_TYPE_CGROUP_SYSCTL``), on `Sysctl`; they return 1 to allow, 0
to refuse."""
kprobe: Final = Kind(ProgType.KPROBE, PtRegs)
"""Programs at an instruction of the kernel (kprobes) or of a process (uprobes; ``BPF_PROG_TYPE_KPROBE``), on
`PtRegs`; they return 0."""
tracepoint: Final = Kind(ProgType.TRACEPOINT, TraceEntry)
"""Programs at a tracepoint (``BPF_PROG_TYPE_TRACEPOINT``), on the event's record, which begins with
`TraceEntry`; they return 0."""
raw_tracepoint: Final = Kind(ProgType.RAW_TRACEPOINT, RawTracepointArgs)
"""Programs at a tracepoint (``BPF_PROG_TYPE_RAW_TRACEPOINT``), on its arguments as plain numbers,
`RawTracepointArgs`; they return 0."""
tracing: Final = Kind(
    ProgType.TRACING,
    RawTracepointArgs,
    (
        AttachType.TRACE_FENTRY,
        AttachType.TRACE_FEXIT,
        AttachType.MODIFY_RETURN,
        AttachType.TRACE_RAW_TP,
        AttachType.TRACE_ITER,
    ),
)
"""Programs at the entry or exit of a function of the kernel, at a tracepoint, or over objects of the kernel
(``BPF_PROG_TYPE_TRACING``), on its arguments, `RawTracepointArgs`; at an exit, what the function returned is
behind them. The verifier knows the arguments' types, so that loads follow their pointers. The attach type and
``attach_to`` must be given. They return 0; with ``MODIFY_RETURN`` 0 to let the function run, or what it is to
return instead, and with ``TRACE_ITER`` 1 to be run on the same object again."""
lsm: Final = Kind(ProgType.LSM, RawTracepointArgs, (AttachType.LSM_MAC, AttachType.LSM_CGROUP))
"""Programs at a hook of the Linux security modules (``BPF_PROG_TYPE_LSM``), as `tracing`; they return 0 to
allow or a negative errno, those of a cgroup (``LSM_CGROUP``) 1 to allow or 0 to refuse. The attach type and
``attach_to`` (``"file_open"``) must be given."""
