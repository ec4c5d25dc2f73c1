# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Linux's errno values, the same on every system that the emulator runs on (asm-generic/errno*.h)."""

from __future__ import annotations

from typing import Final

EPERM: Final = 1
ENOENT: Final = 2
ESRCH: Final = 3
E2BIG: Final = 7
EAGAIN: Final = 11
ENOMEM: Final = 12
EACCES: Final = 13
EFAULT: Final = 14
EBUSY: Final = 16
EEXIST: Final = 17
ENODEV: Final = 19
EINVAL: Final = 22
ENOSPC: Final = 28
ERANGE: Final = 34
EDEADLK: Final = 35
EPROTONOSUPPORT: Final = 93
ESOCKTNOSUPPORT: Final = 94
EOPNOTSUPP: Final = 95
EAFNOSUPPORT: Final = 97
EADDRINUSE: Final = 98
EADDRNOTAVAIL: Final = 99
ENETUNREACH: Final = 101
EISCONN: Final = 106
ECONNREFUSED: Final = 111
EALREADY: Final = 114
ENOTSUPP: Final = 524

NAMES: Final = {value: name for name, value in list(globals().items()) if name[0] == "E" and name.isupper()}


def name(number: int) -> str:
    """``"EEXIST"`` for 17."""
    return NAMES.get(number, f"errno {number}")
