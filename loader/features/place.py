# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A network namespace of its own for attempts that need an interface or a connection."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from loader.features.answer import Answer, Support
from loader.process import CLONE_NEWNET, ForkedCallError, Place, call, unshare

__all__ = ["in_own_network"]

_CLONE_NEWUSER: Final = 0x10000000  # linux/sched.h
_SIOCSIFFLAGS: Final = 0x8914  # linux/sockios.h
_IFF_UP: Final = 1  # linux/if.h


def in_own_network(attempt: Callable[[], Answer]) -> Answer:
    """Make an attempt in a child process with a network namespace in which only ``lo`` is there, and up.

    The namespace ends with the child. Where the process may not make one, a user namespace may give the
    child the right to; BPF objects are then made before, by the parent.
    """

    def in_child() -> Answer:
        try:
            _own_network()
        except OSError as error:
            reason = f"a network namespace cannot be made: {os.strerror(error.errno or 0)}"
            return Support.INCONCLUSIVE, reason, error.errno or 0
        return attempt()

    try:
        return call(in_child, Place())
    except (ForkedCallError, OSError) as error:
        return Support.INCONCLUSIVE, f"the attempt failed: {str(error).strip().splitlines()[-1]}", 0


def _own_network() -> None:
    try:
        unshare(CLONE_NEWNET)
    except PermissionError:
        unshare(_CLONE_NEWUSER | CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))
