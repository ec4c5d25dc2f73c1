# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The right to change instances: one loader at a time, signals wait, and what was abandoned is tidied up."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loader import bpffs
from loader.bpffs import BpfFs, remove_tree
from loader.errors import CapabilityError, ConflictError, LoaderError
from loader.holders import Holder
from loader.instance import Instance
from loader.plan import Plan
from loader.sys import libc

__all__ = ["Interrupted", "Result", "Session", "changing", "is_changing"]

LOCK_SECONDS: Final = 30.0
_MNT_DETACH: Final = 2  # linux/fs.h


@dataclass(slots=True)
class Result:
    """What ``up`` or ``down`` did. ``changed`` is false where there was nothing to do.

    ``changes`` says what ``up`` changed of an instance that was there already.
    """

    name: str
    changed: bool
    path: Path | None = None
    warnings: list[str] = field(default_factory=list)
    plan: Plan | None = None
    created: bool = False
    changes: list[str] = field(default_factory=list)


class Interrupted(LoaderError):
    """A signal came; everything was put back. ``signum`` says which."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(
            f"interrupted by {signal.Signals(signum).name}: nothing was changed", hint="run it again"
        )


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Session:
    """The right to change instances on one bpf file system: nobody else does meanwhile, and signals wait."""

    def __init__(self, fs: BpfFs) -> None:
        self.fs = fs

    @staticmethod
    def checkpoint() -> None:
        """Raise :class:`Interrupted` if a signal is waiting."""
        waiting = signal.sigpending() & set(_SIGNALS)
        if waiting:
            raise Interrupted(min(waiting))


@contextlib.contextmanager
def changing(path: str | None, *, create: bool) -> Iterator[Session | None]:
    """Find the bpf file system, or mount one, and hold its lock for the block; tidy up what was abandoned.

    None where there is none and ``create`` is false. A file system that we mounted is unmounted at the end
    if nothing is in it.
    """
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        found = _locked(path, create)
        if found is None:
            yield None
            return
        fs, fd = found
        try:
            _tidy(fs)
            yield Session(fs)
        finally:
            _leave(fs)
            os.close(fd)
    finally:
        # What came after the point of no return came too late.
        while signal.sigpending() & set(_SIGNALS) - masked:
            signal.sigtimedwait(set(_SIGNALS) - masked, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def _locked(path: str | None, create: bool) -> tuple[BpfFs, int] | None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        fs = BpfFs.find(path)
        if fs is None:
            if not create:
                return None
            # Two that find none must not mount two.
            mount_point = _flock(bpffs.DEFAULT_MOUNT, deadline)
            try:
                fs = BpfFs.find(path) or BpfFs.mount(bpffs.DEFAULT_MOUNT)
            finally:
                os.close(mount_point)
        try:
            fd = _flock(fs.root, deadline)
        except PermissionError as error:
            raise CapabilityError(
                f"{fs.root} cannot be opened: {error.strerror}", missing=("CAP_BPF",), hint="run it as root"
            ) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.stat(fs.root)):
                return fs, fd
        os.close(fd)  # it was unmounted while we waited


def is_changing(instance: Path) -> bool:
    """Whether a loader changes instances at the moment on the file system that holds this one's directory."""
    fd = os.open(instance.parent.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _flock(directory: Path, deadline: float) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                Session.checkpoint()
                if time.monotonic() > deadline:
                    raise ConflictError(
                        f"another process has held the lock on {directory} for {LOCK_SECONDS:g} s",
                        hint=f"another loader is at work: `fuser -v {directory}` shows it; try again then",
                    ) from None
                time.sleep(0.01)
    except BaseException:
        os.close(fd)
        raise


def _tidy(fs: BpfFs) -> None:
    """Remove staging directories: whoever made one held the lock, so it is dead.

    What is attached there goes now, unless the published instance has it too: a link ends with its last pin
    only after a while, and a filter has no pin. An instance that was moved aside for its successor, which
    then did not come, gets its place back.
    """
    for directory in sorted(fs.base.glob("staging-*"), key=lambda one: not one.name.endswith(bpffs.ASIDE)):
        name = re.sub(r"staging-\d+-\d+-", "", directory.name).removesuffix(bpffs.ASIDE)
        if directory.name.endswith(bpffs.ASIDE) and not fs.path(name).exists():
            directory.rename(fs.path(name))
            continue
        with ExitStack() as stack:
            staged = stack.enter_context(Instance(directory, name))
            published = fs.path(name)
            live = stack.enter_context(Instance(published)) if published.is_dir() else None
            claimed = set() if live is None else {_claim(one) for one in live.holders.values()}
            for holder in staged.holders.values():
                if _claim(holder) not in claimed:
                    holder.remove()
        remove_tree(directory)


def _claim(holder: Holder) -> tuple[object, ...]:
    """What tells whether two holders, of two directories, are the same thing in the kernel."""
    return (holder.link.id,) if holder.link is not None else holder.identity()


def _leave(fs: BpfFs) -> None:
    """Remove the directory of instances if there are none, and a mount of ours with it.

    The lock's own descriptor keeps the file system busy, so it is detached; nobody else is inside, and who
    waits for the lock notices.
    """
    with contextlib.suppress(OSError):
        fs.base.rmdir()
    if fs.ours:
        with contextlib.suppress(OSError):
            # The kernel itself puts maps.debug and progs.debug there; nobody else can make a name with a dot.
            if all("." in entry.name for entry in fs.root.iterdir()):
                libc().umount2(os.fsencode(fs.root), _MNT_DETACH)
