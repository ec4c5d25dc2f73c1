# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The running kernel's own types and symbols."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loader.errors import KernelFeatureError, UsageError
from pybpfasm.kernel.enums import AttachType, ProgType

if TYPE_CHECKING:
    from pybpfasm.btf import Btf

__all__ = ["attach_btf_id", "kernel_symbol", "kernel_symbol_size", "kernel_types"]

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")
KALLSYMS: Final = Path("/proc/kallsyms")


@lru_cache(maxsize=1)
def kernel_types() -> Btf:
    """The running kernel's own BTF, read once; raises `UsageError` where the kernel was built without it."""
    from pybpfasm.btf import Btf, BtfError

    try:
        return Btf.parse(VMLINUX.read_bytes())
    except (OSError, BtfError) as error:
        raise UsageError(
            f"this kernel shows no types of its own: {error}",
            hint="CO-RE and kernel functions need a kernel with CONFIG_DEBUG_INFO_BTF=y",
        ) from None


def kernel_symbol(name: str) -> int | None:
    """The address of a symbol of the running kernel, ``None`` where it has none of this name.

    Raises `UsageError` where the kernel hides addresses (``kernel.kptr_restrict``).
    """
    wanted = f" {name}\n", f" {name}\t"  # the latter for one of a module
    with KALLSYMS.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if wanted[0] in line or wanted[1] in line:
                address = int(line.partition(" ")[0], 16)
                if not address:
                    raise UsageError(
                        "the kernel hides the addresses of its symbols",
                        hint="be root, with the sysctl kernel.kptr_restrict below 2",
                    )
                return address
    return None


def kernel_symbol_size(name: str) -> int | None:
    """The bytes from a symbol of the running kernel to the next one, padding included; ``None`` where it has
    none of this name, or hides addresses."""
    at, addresses = 0, []
    with KALLSYMS.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            address, _, found = line.split(maxsplit=3)[:3]
            addresses.append(int(address, 16))
            if found == name and not at:
                at = addresses[-1]
    behind = [one for one in addresses if one > at]
    return min(behind) - at if at and behind else None


def attach_btf_id(types: Btf, type: ProgType, attach_type: AttachType | None, name: str) -> int:
    """The id of the function or type of the kernel that a program for tracing is loaded for.

    The names are those of the program's section in an object: of ``fentry/tcp_connect``,
    ``tp_btf/sched_switch`` and ``lsm/file_open`` the last part. Raises `KernelFeatureError` where the kernel
    has nothing of this name.
    """
    from pybpfasm.btf import Kind

    if type == ProgType.LSM:
        what, full, kind = "LSM hook", f"bpf_lsm_{name}", Kind.FUNC
    elif attach_type == AttachType.TRACE_RAW_TP:
        what, full, kind = "tracepoint", f"btf_trace_{name}", Kind.TYPEDEF
    elif attach_type == AttachType.TRACE_ITER:
        what, full, kind = "iterator", f"bpf_iter_{name}", Kind.FUNC
    else:
        what, full, kind = "function", name, Kind.FUNC
    found = types.by_name(full, kind)
    if found is None:
        raise KernelFeatureError(
            f"this kernel's types have no {what} {name!r}",
            feature=full,
            hint="it may be inlined, in a module, or of another release: look at "
            f"`bpftool btf dump file {VMLINUX} | grep {full}`",
        )
    return found.id
