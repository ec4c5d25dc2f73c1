# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A place of its own for each kernel test: network namespace, bpf file system, cgroup.

The namespaces belong to this process alone, so that they end with it however it ends. Only a cgroup is
visible on the host: it bears the process's number, and one that a killed run has left is removed by the next.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loader.bpffs import BpfFs
from loader.cgroup import Cgroup, find_cgroup2
from loader.errors import LoaderError
from loader.netns import NetNs
from loader.sys import libc

CLONE_FS, CLONE_NEWNS, CLONE_NEWNET = 0x00000200, 0x00020000, 0x40000000  # linux/sched.h
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18  # linux/mount.h
# linux/capability.h
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@pytest.fixture(scope="module")
def private_mounts() -> Iterator[None]:
    """Put this thread into a mount namespace of its own: no mount in it is seen outside, nor outlives it."""
    here = os.getcwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(libc().unshare(CLONE_NEWNS))
        _check(libc().mount(b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None))
        yield
    finally:
        # A thread that shares its working directory with others (a test's time limit is one) may not change.
        _check(libc().unshare(CLONE_FS))
        _check(libc().setns(before, CLONE_NEWNS))
        os.close(before)
        os.chdir(here)


@pytest.fixture
def bpffs(private_mounts: None, tmp_path: Path) -> Iterator[BpfFs]:
    """A bpf file system that nobody else sees."""
    root = tmp_path / "bpffs"
    root.mkdir()
    yield BpfFs.mount(root)
    # Whatever a test has pinned goes with the mount.
    _check(libc().umount2(os.fsencode(root), 2))


@pytest.fixture
def outer_netns() -> Iterator[NetNs]:
    """The network namespace in which the tests run."""
    with NetNs.current() as outer:
        yield outer


@pytest.fixture
def netns(outer_netns: NetNs) -> Iterator[NetNs]:
    """A network namespace that this thread is in; only ``lo`` is there, and up."""
    _check(libc().unshare(CLONE_NEWNET))
    try:
        _set_up("lo")
        with NetNs.current() as inside:
            yield inside
    finally:
        _check(libc().setns(outer_netns.fd, CLONE_NEWNET))


def _set_up(name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        flags = struct.pack("16sh22x", name.encode(), 1)  # struct ifreq with IFF_UP
        fcntl.ioctl(control.fileno(), 0x8914, flags)  # SIOCSIFFLAGS


@pytest.fixture(scope="session")
def _swept_cgroups() -> None:
    """Remove the cgroups of test runs that were killed."""
    for directory in find_cgroup2().glob("pybpfasm-test-*"):
        try:
            with Cgroup.open(directory) as one:
                # Whoever made it holds the lock as long as it lives, in whatever process namespace that is.
                fcntl.flock(one.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                directory.rmdir()
        except (OSError, LoaderError):
            pass


@pytest.fixture
def make_cgroup(_swept_cgroups: None) -> Iterator[Callable[[], Cgroup]]:
    """Make cgroups that are removed after the test; what the test has left in one moves back."""
    made: list[Cgroup] = []

    def make() -> Cgroup:
        made.append(Cgroup.create(f"pybpfasm-test-{os.getpid()}-{secrets.token_hex(4)}"))
        fcntl.flock(made[-1].fd, fcntl.LOCK_SH)
        return made[-1]

    yield make
    for one in reversed(made):
        with Cgroup.open() as root:
            one.remove(move_to=root)


@pytest.fixture
def cgroup(make_cgroup: Callable[[], Cgroup]) -> Cgroup:
    """An empty cgroup."""
    return make_cgroup()


@pytest.fixture
def run_without() -> Callable[..., str]:
    """Run Python code in a process without some capabilities; return its one error, ``Type: text``.

    Further arguments are descriptors that the process gets.
    """

    def run(dropped: str, code: str, *fds: int) -> str:
        drop = (
            "import ctypes, struct\n"
            f"numbers = {[_CAPABILITIES[name] for name in dropped.split(',')]}\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "header = struct.pack('=Ii', 0x20080522, 0)\n"  # linux/capability.h, version 3
            "data = ctypes.create_string_buffer(24)\n"
            "assert libc.capget(header, data) == 0\n"
            "words = list(struct.unpack('=6I', data.raw))\n"
            "for n in numbers:\n"
            "    words[n // 32 * 3] &= ~(1 << n % 32)\n"
            "assert libc.capset(header, struct.pack('=6I', *words)) == 0\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", drop + code],
            capture_output=True,
            text=True,
            timeout=60,
            pass_fds=fds,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert done.returncode == 1, done
        lines = done.stderr.strip().splitlines()
        # A hint may follow as a note of the exception.
        return next((line for line in reversed(lines) if re.match(r"[\w.]+Error: ", line)), lines[-1])

    return run
