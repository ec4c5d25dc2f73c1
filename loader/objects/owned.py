# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Owning a descriptor, and opening what is pinned or has an id."""

from __future__ import annotations

import errno
import fcntl
import os
import warnings
from pathlib import Path
from typing import Any, Self

from loader import sys as bpf_sys
from loader.capabilities import explain
from loader.errors import BpfError, UsageError

PathLike = str | os.PathLike[str]


class Owned:
    """Owns one descriptor: closed once, by :meth:`close` or at the end of a ``with`` block."""

    kind = "object"

    def __init__(self, fd: int) -> None:
        if fd <= 2:
            # The kernel takes descriptor 0 for "none" in several places; one that was free gets a better
            # number.
            spare = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(fd)
            fd = spare
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor. Raises ValueError once the object is closed."""
        if self._fd < 0:
            raise ValueError(f"{self!r} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed, or was handed away."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return :attr:`fd`, so that the object can be given to ``select`` and its like."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor.

        The kernel frees an object when nothing refers to it: no descriptor, pin or link.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def release(self) -> int:
        """Hand the descriptor over to the caller, who closes it; the object counts as closed from now on."""
        fd, self._fd = self.fd, -1
        return fd

    def pin(self, path: PathLike) -> None:
        """Pin the object in a bpf file system; it lives on there when all descriptors are closed.

        Raises :class:`~loader.errors.BpfError` (EEXIST, or EPERM for a name with a dot, or EINVAL elsewhere
        than on a bpf file system).
        """
        try:
            bpf_sys.obj_pin(self.fd, path)
        except BpfError as error:
            if error.errno == errno.EPERM and "." in Path(path).name:
                raise error.about(
                    error.what, hint="the bpf file system allows no dot in a name: choose another"
                ) from None
            raise explain(error, ("CAP_BPF",)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{self.kind} {'closed' if self._fd < 0 else f'fd {self._fd}'}>"


# What readlink of /proc/self/fd/N says for each kind of object.
_FD_KINDS = {
    "anon_inode:bpf-map": "map",
    "anon_inode:bpf-prog": "program",
    "anon_inode:bpf-link": "link",
    "anon_inode:bpf_link": "link",
    "anon_inode:btf": "btf",
}


def fd_kind(fd: int) -> str:
    target = os.readlink(f"/proc/self/fd/{fd}")
    # Some releases of the kernel put the name into brackets: anon_inode:[bpf-map].
    return _FD_KINDS.get(target.replace("[", "").replace("]", ""), target)


def open_kind(path: PathLike, kind: str, flags: int = 0) -> int:
    """Open a pin and check what it is: reading one kind's information as another's would make nonsense."""
    try:
        fd = bpf_sys.obj_get(path, flags)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            raise error.about(error.what, hint="nothing is pinned there") from None
        raise explain(error, ("CAP_BPF",)) from None
    found = fd_kind(fd)
    if found != kind:
        os.close(fd)
        raise UsageError(
            f"{os.fspath(path)} is a pinned {found}, not a {kind}", hint="name the pin of the right object"
        )
    return fd


def open_id(command: int, object_id: int, kind: str) -> int:
    try:
        return bpf_sys.fd_by_id(command, object_id)
    except BpfError as error:
        # Walking the ids of the system is not a right that CAP_BPF gives.
        raise explain(error.about(f"{kind} id {object_id}"), ("CAP_SYS_ADMIN",)) from None


def enum_or_int(enum: Any, number: int) -> Any:
    """Return the member of an enumeration, or the number where this release does not know it."""
    try:
        return enum(number)
    except ValueError:
        return int(number)
