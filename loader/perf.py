# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Perf events that programs are attached to: tracepoints, kprobes, uprobes (``perf_event_open(2)``)."""

from __future__ import annotations

import ctypes
import errno
import os
import re
from pathlib import Path
from typing import Any, ClassVar, Final

from loader.errors import CapabilityError, KernelFeatureError, LoaderError, UsageError, describe_errno
from loader.sys import libc
from loader.vmlinux import kernel_symbol_size

__all__ = ["PerfEventAttr", "probe", "tracepoint"]

TRACING: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
SOURCES: Final = Path("/sys/bus/event_source/devices")
PERF_TYPE_TRACEPOINT: Final = 2  # enum perf_type_id, linux/perf_event.h
PERF_FLAG_FD_CLOEXEC: Final = 8
# The number of perf_event_open(2) by machine as uname(2) names it.
_SYSCALL: Final = {
    "x86_64": 298,
    "aarch64": 241,
    "riscv64": 241,
    "loongarch64": 241,
    "s390x": 331,
    "ppc64": 319,
    "ppc64le": 319,
}
_EVENT = re.compile(r"[A-Za-z_]\w*/[A-Za-z_]\w*", re.ASCII)


class PerfEventAttr(ctypes.Structure):
    """``struct perf_event_attr`` up to what probes need (PERF_ATTR_SIZE_VER1); a kernel test compares the
    offsets with the BTF of the running kernel."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("type", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("config", ctypes.c_uint64),
        ("sample_period", ctypes.c_uint64),
        ("sample_type", ctypes.c_uint64),
        ("read_format", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("wakeup_events", ctypes.c_uint32),
        ("bp_type", ctypes.c_uint32),
        ("config1", ctypes.c_uint64),
        ("config2", ctypes.c_uint64),
    ]


def _open(attr: PerfEventAttr, what: str) -> int:
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise KernelFeatureError(
            f"the number of perf_event_open(2) on {os.uname().machine!r} is not known",
            feature="perf_event_open(2)",
            hint="add it to loader/perf.py",
        )
    attr.size = ctypes.sizeof(attr)
    call = libc()["syscall"]  # a function object of its own: that of bpf(2) has other arguments
    call.restype = ctypes.c_long
    call.argtypes = (ctypes.c_long, ctypes.c_void_p, *[ctypes.c_long] * 4)
    # Of any process, by way of CPU 0: a program at a probe runs on every CPU.
    fd = int(call(number, ctypes.byref(attr), -1, 0, -1, PERF_FLAG_FD_CLOEXEC))
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    if code in (errno.EPERM, errno.EACCES):
        raise CapabilityError(
            f"perf_event_open of {what}: {describe_errno(code)}",
            missing=("CAP_PERFMON",),
            hint="be root, or have CAP_PERFMON",
        )
    if code in (errno.ENOENT, errno.EINVAL, errno.EADDRNOTAVAIL, errno.EILSEQ):
        raise UsageError(
            f"perf_event_open of {what}: {describe_errno(code)}",
            hint="there is no such place to probe: look for the name, and at the offset",
        )
    raise LoaderError(f"perf_event_open of {what}: {describe_errno(code)}")


def tracepoint(name: str) -> int:
    """Open the event ``"category/name"``; the caller closes the descriptor."""
    if not _EVENT.fullmatch(name):
        raise UsageError(f"{name!r} is no event", hint='write category and name: "sched/sched_switch"')
    roots = [root for root in TRACING if (root / "events").is_dir()]
    if not roots:
        raise UsageError(
            "tracefs is not mounted, which has the numbers of events",
            hint="mount -t tracefs tracefs /sys/kernel/tracing",
        )
    try:
        number = int((roots[0] / "events" / name / "id").read_text(encoding="ascii"))
    except FileNotFoundError:
        raise UsageError(
            f"this kernel has no event {name!r}", hint=f"{roots[0]}/available_events lists them"
        ) from None
    return _open(PerfEventAttr(type=PERF_TYPE_TRACEPOINT, config=number), f"event {name!r}")


def _check_offset(kind: str, target: str, offset: int) -> None:
    """Refuse a kprobe outside of its function: the kernel takes it for one in another function."""
    if offset < 0:
        raise UsageError(f"an offset of {offset} is before the beginning of {target!r}")
    size = kernel_symbol_size(target) if kind == "kprobe" and offset else None
    if size is not None and offset >= size:
        raise UsageError(f"function {target!r} has {size} bytes: an offset of {offset} is behind its end")


def probe(kind: str, target: str, offset: int, *, at_return: bool) -> int:
    """Open a ``"kprobe"`` at a function or a ``"uprobe"`` at a file; the caller closes the descriptor."""
    source = SOURCES / kind
    try:
        number = int((source / "type").read_text(encoding="ascii"))
        returns = int((source / "format" / "retprobe").read_text(encoding="ascii").removeprefix("config:"))
    except FileNotFoundError:
        raise KernelFeatureError(
            f"this kernel has no {kind}s",
            feature=kind,
            hint="it was built without them" + ("; a tracing program needs none" if kind == "kprobe" else ""),
        ) from None
    _check_offset(kind, target, offset)
    name = ctypes.create_string_buffer(os.fsencode(target))
    attr = PerfEventAttr(type=number, config1=ctypes.addressof(name), config2=offset)
    attr.config = 1 << returns if at_return else 0
    return _open(attr, f"{kind} at {target}+{offset:#x}")
