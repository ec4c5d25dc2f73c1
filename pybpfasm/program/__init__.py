# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs and subprograms: from a Python function to a `ProgramSpec`, plain data that a loader can load.

    @sched_cls(AttachType.TCX_INGRESS)
    def drop_port(b: Asm, ctx: SkBuff, port: int) -> None:
        ...

    spec = drop_port.build(8000)

The function's further parameters are settings that become constants in the instructions.
"""

from pybpfasm.program.functions import Subprogram, global_function, subprogram
from pybpfasm.program.kinds import (
    cgroup_device,
    cgroup_skb,
    cgroup_sock,
    cgroup_sock_addr,
    cgroup_sockopt,
    cgroup_sysctl,
    kprobe,
    lsm,
    raw_tracepoint,
    sched_cls,
    sk_lookup,
    sk_msg,
    sk_reuseport,
    sk_skb,
    sock_ops,
    socket_filter,
    tracepoint,
    tracing,
    xdp,
)
from pybpfasm.program.spec import Function, ProgramSpec
from pybpfasm.program.template import Kind, Template

__all__ = [
    "Function",
    "Kind",
    "ProgramSpec",
    "Subprogram",
    "Template",
    "cgroup_device",
    "cgroup_skb",
    "cgroup_sock",
    "cgroup_sock_addr",
    "cgroup_sockopt",
    "cgroup_sysctl",
    "global_function",
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
    "subprogram",
    "tracepoint",
    "tracing",
    "xdp",
]
