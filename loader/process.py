# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Child processes that start in a given network namespace, mount namespace and cgroup, and die with their
parent.

Everything is done between fork and exec, so the child's first instruction already runs in the right place: a
socket that it opens is in the right namespace, and the cgroup's programs see it from its birth.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from loader.netns import NetNs
from loader.sys import libc

T = TypeVar("T")

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_MNT_DETACH = 2

Stream = IO[Any] | int | None


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def setns(fd: int, nstype: int) -> None:
    """Move the calling thread into the namespace that `fd` refers to (setns(2)). Raises OSError."""
    _check(libc().setns(fd, nstype), "setns")


def unshare(flags: int) -> None:
    """Give the calling thread namespaces of its own (unshare(2)). Raises OSError."""
    _check(libc().unshare(flags), "unshare")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """mount(2) without data. Raises OSError."""
    encoded = kind.encode() if kind is not None else None
    _check(
        libc().mount(source.encode(), target.encode(), encoded, ctypes.c_ulong(flags), None),
        f"mount {target}",
    )


def umount(target: str) -> None:
    """umount2(2), detached at once and freed when the last user is gone. Raises OSError."""
    _check(libc().umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGKILL to this process when the thread that forked it ends.

    `parent` is the process id of the parent; if it is gone already, this process ends at once.
    Note "thread": a process started from a short-lived thread dies with that thread.
    """
    _check(libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_wait() -> Iterator[set[signal.Signals]]:
    """A context for a fork: signals that end a command wait meanwhile. Gives the mask from before.

    What a handler raises while Python calls its hooks of a fork (logging has some) is lost, and the signal
    with it. The child begins with the signals blocked.
    """
    before: Any = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield before
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass(frozen=True)
class Place:
    """Where a process runs. What is None stays as it is for the caller."""

    netns: NetNs | None = None
    mntns: int | None = None
    """Descriptor of a mount namespace."""
    cgroup: Path | None = None
    """Directory of a cgroup2."""

    def enter(self) -> None:
        """Move the calling process there. Only for a process with one thread: others stay behind."""
        if self.cgroup is not None:
            (self.cgroup / "cgroup.procs").write_text("0")
        if self.netns is not None:
            setns(self.netns.fd, CLONE_NEWNET)
        if self.mntns is not None:
            # A new mount namespace moves the working directory to its root: keep it.
            here = os.getcwd()
            setns(self.mntns, CLONE_NEWNS)
            os.chdir(here)


def spawn(
    argv: Sequence[str | os.PathLike[str]],
    place: Place | None = None,
    *,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    text: bool = True,
) -> subprocess.Popen[Any]:
    """Start `argv` in `place`. The process gets SIGKILL when the calling thread ends, however it ends.

    Raises OSError if the program cannot be started, subprocess.SubprocessError if the place cannot be
    entered.
    """
    parent = os.getpid()
    where = place or Place()
    process: subprocess.Popen[Any] | None = None
    try:
        with signals_wait() as before:

            def in_child() -> None:
                for number in _ENDING:  # our handlers are nothing for a child, and end with exec
                    if callable(signal.getsignal(number)):
                        signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                die_with_parent(parent)
                where.enter()

            process = subprocess.Popen(
                [os.fspath(a) for a in argv],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                text=text,
                preexec_fn=in_child,
            )
    except BaseException:
        if process is not None:  # a signal has waited, and nobody will get to know of the process
            stop(process)
        raise
    return process


def stop(process: subprocess.Popen[Any], patience: float = 5.0) -> int:
    """Ask `process` to end with SIGTERM, after `patience` seconds with SIGKILL. Returns its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    return process.returncode


class ForkedCallError(RuntimeError):
    """A function called in a forked child raised; the text is the child's traceback."""


def call(function: Callable[[], T], place: Place) -> T:
    """Call `function` in a forked child in `place` and return its (pickled) result.

    Raises ForkedCallError with the child's traceback if it raised or ended without a result.
    """
    parent = os.getpid()
    read_end, write_end = os.pipe()
    with signals_wait() as before:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(read_end)
                die_with_parent(parent)
                try:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                    place.enter()
                    answer: tuple[bool, Any] = (True, function())
                except BaseException:
                    answer = (False, traceback.format_exc())
                with os.fdopen(write_end, "wb") as pipe:
                    pickle.dump(answer, pipe)
                status = 0
            finally:
                os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        raise ForkedCallError("the child ended without a result")
    good, value = pickle.loads(data)
    if not good:
        raise ForkedCallError(value)
    result: T = value
    return result


@contextmanager
def if_killed(act: Callable[[], object]) -> Iterator[int]:
    """A context: if this process dies in it, of SIGKILL say, a child that was forked before calls `act`.

    Gives the child's process id. The child is in a session of its own and ignores what a terminal sends, has
    no standard input and output, and keeps standard error. Where the context is left in any orderly way, by
    an exception too, it ends without doing anything.
    """
    read_end, write_end = os.pipe()
    child = None
    try:
        with signals_wait() as before:
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    os.setsid()
                    for number in (*_ENDING, signal.SIGQUIT, signal.SIGPIPE):
                        signal.signal(number, signal.SIG_IGN)
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
                    os.close(write_end)
                    nothing = os.open(os.devnull, os.O_RDWR)
                    os.dup2(nothing, 0)
                    os.dup2(nothing, 1)
                    if os.read(read_end, 1) == b"":  # nobody said that all is well, and nobody can any more
                        act()
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(status)
        yield child
    finally:
        with suppress(BrokenPipeError):  # somebody has ended the child
            os.write(write_end, b".")
        os.close(write_end)
        os.close(read_end)
        if child is not None:
            os.waitpid(child, 0)
