# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers that say on whose behalf a program runs: all from `Emulator.task`, which a test sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pybpfasm.emulator.context import Context, Skb, socket_at
from pybpfasm.emulator.errnos import EINVAL
from pybpfasm.emulator.helpers import helper
from pybpfasm.emulator.run import Run
from pybpfasm.emulator.sockets import Socket
from pybpfasm.kernel.enums import Helper

U32: Final = 0xFFFFFFFF
_COMM: Final = 16  # TASK_COMM_LEN
_OVERFLOW_UID: Final = 65534  # DEFAULT_OVERFLOWUID, include/linux/highuid.h


@dataclass
class Task:
    """The process on whose behalf programs run.

    ``cgroups`` are the ids of its cgroup's ancestors from the root on, its own last; ``classid`` is that of
    the net_cls controller.
    """

    tgid: int = 1000
    pid: int = 1000
    uid: int = 0
    gid: int = 0
    comm: str = "test"
    cgroups: tuple[int, ...] = (1,)
    classid: int = 0


@helper(Helper.get_current_pid_tgid)
def get_current_pid_tgid(run: Run) -> int:
    """The process's number in the upper half, the thread's in the lower."""
    return run.emulator.task.tgid << 32 | run.emulator.task.pid


@helper(Helper.get_current_uid_gid)
def get_current_uid_gid(run: Run) -> int:
    """The group in the upper half, the user in the lower."""
    return run.emulator.task.gid << 32 | run.emulator.task.uid


@helper(Helper.get_current_comm)
def get_current_comm(run: Run, to: int, size: int) -> int:
    """The command's name, filled up with zeros; -EINVAL for no room."""
    size &= U32
    if not size:
        return -EINVAL
    run.room(to, size, "the buffer")
    name = run.emulator.task.comm.encode()[: min(size, _COMM) - 1]
    run.write(to, name.ljust(size, b"\0"), "the buffer")
    return 0


@helper(Helper.get_current_cgroup_id)
def get_current_cgroup_id(run: Run) -> int:
    """The cgroup's id."""
    return run.emulator.task.cgroups[-1]


def _ancestor(cgroups: tuple[int, ...], level: int) -> int:
    return cgroups[level] if 0 <= level < len(cgroups) else 0


def _level(value: int) -> int:
    value &= U32
    return value - (1 << 32) if value >> 31 else value


@helper(Helper.get_current_ancestor_cgroup_id)
def get_current_ancestor_cgroup_id(run: Run, level: int) -> int:
    """The id of the cgroup's ancestor at *level* below the root, or 0."""
    return _ancestor(run.emulator.task.cgroups, _level(level))


@helper(Helper.get_cgroup_classid)
def get_cgroup_classid(run: Run, context: int) -> int:
    """The class of the net_cls controller."""
    run.is_context(context, Context)
    return run.emulator.task.classid


def _packets_socket(run: Run, context: int) -> Socket | None:
    socket = run.is_context(context, Skb).socket
    return socket if socket is not None and socket.full else None


@helper(Helper.get_socket_uid)
def get_socket_uid(run: Run, context: int) -> int:
    """The user of the packet's socket; 65534 where it has none."""
    socket = _packets_socket(run, context)
    return _OVERFLOW_UID if socket is None else socket.uid


@helper(Helper.skb_cgroup_id)
def skb_cgroup_id(run: Run, context: int) -> int:
    """The cgroup's id of the packet's socket, or 0."""
    socket = _packets_socket(run, context)
    return 0 if socket is None else socket.cgroups[-1]


@helper(Helper.skb_ancestor_cgroup_id)
def skb_ancestor_cgroup_id(run: Run, context: int, level: int) -> int:
    """The id of an ancestor of the cgroup of the packet's socket, or 0."""
    socket = _packets_socket(run, context)
    return 0 if socket is None else _ancestor(socket.cgroups, _level(level))


@helper(Helper.sk_cgroup_id)
def sk_cgroup_id(run: Run, sk: int) -> int:
    """The id of a socket's cgroup, 0 for what is no full socket."""
    socket = socket_at(run, sk)
    return socket.cgroups[-1] if socket.full else 0


@helper(Helper.sk_ancestor_cgroup_id)
def sk_ancestor_cgroup_id(run: Run, sk: int, level: int) -> int:
    """The id of an ancestor of a socket's cgroup, or 0."""
    socket = socket_at(run, sk)
    return _ancestor(socket.cgroups, _level(level)) if socket.full else 0
