# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What this process may do, and errors that name the right that is missing."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from loader.errors import BpfError, CapabilityError, LoaderError

__all__ = ["capabilities", "explain", "missing_capabilities", "raise_memlock"]

# Bits of linux/capability.h; they are not in the kernel's BTF.
_CAPABILITY_BITS = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def capabilities() -> frozenset[str]:
    """Return which of the capabilities that matter here the calling thread has in effect."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                mask = int(line.split()[1], 16)
                return frozenset(name for name, bit in _CAPABILITY_BITS.items() if mask >> bit & 1)
    return frozenset()


def missing_capabilities(needed: Iterable[str]) -> list[str]:
    """Return which are missing; CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON, as in the kernel."""
    have = capabilities()
    admin = "CAP_SYS_ADMIN" in have
    return [
        name for name in needed if name not in have and not (admin and name in ("CAP_BPF", "CAP_PERFMON"))
    ]


def explain(error: BpfError, needed: tuple[str, ...]) -> LoaderError:
    """Turn EPERM and EACCES into the capability that is missing, where one is.

    Return other errors unchanged.
    """
    if error.errno not in (errno.EPERM, errno.EACCES):
        return error
    try:
        missing = missing_capabilities(needed)
    except OSError:
        return error
    if missing:
        return CapabilityError(
            f"{error.message}: this process lacks {', '.join(missing)}",
            missing=missing,
            hint=f"run as root, or give the process {' and '.join(missing)}",
        )
    if error.hint:
        return error
    return error.about(
        error.what,
        hint="the process has the capabilities for this: look for a security module, a seccomp filter, "
        "a user namespace or kernel lockdown that forbids bpf(2)",
    )


def raise_memlock() -> bool:
    """Raise RLIMIT_MEMLOCK, which charged maps and programs before 5.11.

    Return whether the limit has changed.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = resource.RLIM_INFINITY
    for wanted in ((unlimited, unlimited), (hard, hard)):
        if wanted == (soft, hard):
            return False
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, wanted)
        except (OSError, ValueError):
            continue
        return True
    return False
