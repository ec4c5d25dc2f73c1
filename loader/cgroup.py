# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""cgroup2: finding it in the mount table, and the directories that programs are attached to.

A host may have cgroup2 at ``/sys/fs/cgroup`` or, beside the controllers of version 1, at
``/sys/fs/cgroup/unified`` or anywhere else: nothing here assumes a path.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path

from loader.bpffs import CGROUP2_SUPER_MAGIC, file_system_magic, mounts, shows, visible
from loader.errors import KernelFeatureError, LoaderError, UsageError
from loader.objects import Owned

__all__ = ["Cgroup", "find_cgroup2", "of_process", "path_of_id"]


def find_cgroup2() -> Path:
    """Return where cgroup2 is mounted in this mount namespace.

    A mount of the whole hierarchy wins over one of a part of it, as a container has it. Raises
    :class:`~loader.errors.KernelFeatureError` where there is none.
    """
    found = [m for m in visible(mounts(), "cgroup2") if shows(m, CGROUP2_SUPER_MAGIC)]
    found.sort(key=lambda m: (m.root != "/", len(m.mount_point.parts)))
    if not found:
        raise KernelFeatureError(
            "no cgroup2 file system is mounted",
            feature="cgroup2",
            hint="mount one: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    return found[0].mount_point


class Cgroup(Owned):
    """An open cgroup2 directory. ``id`` is what the kernel calls it in link information and to programs."""

    kind = "cgroup"

    def __init__(self, fd: int, path: Path) -> None:
        super().__init__(fd)
        self.path = path
        # On 64-bit kernels the inode number is the cgroup's id.
        self.id = os.fstat(self.fd).st_ino

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> Cgroup:
        """Open a cgroup2 directory: a path, one relative to the cgroup2 mount, or its root (None).

        Raises :class:`~loader.errors.UsageError` for what is no cgroup2 directory.
        """
        full = _absolute(path)
        try:
            fd = os.open(full, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(
                f"cgroup {full} cannot be opened: {error.strerror}",
                hint="name a directory of the cgroup2 file system; `systemd-cgls` or `find` shows them",
            ) from None
        if file_system_magic(fd) != CGROUP2_SUPER_MAGIC:
            os.close(fd)
            where = _mount_point_or_none()
            raise UsageError(
                f"{full} is not a cgroup2 directory",
                hint=f"cgroup2 is mounted at {where}: name a directory there"
                if where
                else "mount cgroup2 first",
            )
        return cls(fd, full)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Cgroup:
        """Make a cgroup2 directory, its parent must exist, and open it.

        One that exists is opened as it is.
        """
        full = _absolute(path)
        try:
            os.mkdir(full, 0o755)
        except FileExistsError:
            pass
        except OSError as error:
            raise LoaderError(
                f"cgroup {full} cannot be made: {error.strerror}",
                hint="run as root, and name a directory whose parent is in the cgroup2 file system",
            ) from None
        try:
            return cls.open(full)
        except UsageError:
            _remove_quietly(full)  # a plain directory that we have just made elsewhere
            raise

    def processes(self) -> list[int]:
        """Return the process ids in this cgroup, not those in the ones below; none if the cgroup is gone."""
        try:
            text = (self.path / "cgroup.procs").read_text(encoding="ascii")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return []
            raise
        return [int(pid) for pid in text.split()]

    def add(self, pid: int = 0) -> None:
        """Move a process with all its threads into this cgroup; 0 is the caller."""
        try:
            (self.path / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except ProcessLookupError:
            raise UsageError(f"there is no process {pid}") from None
        except OSError as error:
            raise LoaderError(
                f"process {pid or os.getpid()} cannot be moved into cgroup {self.path}: {error.strerror}",
                hint="run as root; a cgroup with controllers for its children takes no processes itself",
            ) from None

    def remove(self, *, move_to: Cgroup | None = None, timeout: float = 2.0) -> None:
        """Close the descriptor and remove the directory.

        ``move_to`` takes the processes that are still in it; without it they must be gone within ``timeout``
        seconds (one that has just ended counts for a moment). Raises :class:`~loader.errors.LoaderError` if
        they are not.
        """
        if move_to is not None:
            for pid in self.processes():
                try:
                    move_to.add(pid)
                except UsageError:
                    continue
        self.close()
        deadline = time.monotonic() + timeout
        while True:
            try:
                os.rmdir(self.path)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise LoaderError(
                        f"cgroup {self.path} cannot be removed: {error.strerror}",
                        hint=f"end what runs in it: cat {self.path}/cgroup.procs",
                    ) from None
            time.sleep(0.01)

    def __repr__(self) -> str:
        return f"<cgroup {self.path} {'closed' if self.closed else f'fd {self._fd}'}>"


def _absolute(path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        return find_cgroup2()
    if not os.fspath(path):  # an empty variable in a script, and not the wish for the root
        raise UsageError("'' is no cgroup2 directory", hint="leave --cgroup out, which is the root")
    return Path(path) if os.path.isabs(path) else find_cgroup2() / path


def _mount_point_or_none() -> Path | None:
    try:
        return find_cgroup2()
    except KernelFeatureError:
        return None


def _remove_quietly(path: Path) -> None:
    try:
        os.rmdir(path)
    except OSError:
        pass


def of_process(pid: int | None = None) -> Path:
    """Return the cgroup2 directory of a process (the caller's own for None).

    Raises UsageError if it is gone.
    """
    try:
        with open(f"/proc/{pid or 'self'}/cgroup", encoding="utf-8") as file:
            for line in file:
                hierarchy, _, inner = line.rstrip("\n").split(":", 2)
                if hierarchy == "0":
                    return find_cgroup2() / inner.lstrip("/")
    except (FileNotFoundError, ProcessLookupError):
        raise UsageError(f"there is no process {pid}") from None
    raise KernelFeatureError("the kernel has no cgroup2", feature="cgroup2")


def path_of_id(cgroup_id: int) -> Path | None:
    """Return the directory of the cgroup with that id, or None if there is none below the mount point."""
    root = find_cgroup2()
    if os.stat(root).st_ino == cgroup_id:
        return root
    return _search([root], cgroup_id)


def _search(level: Iterable[Path], cgroup_id: int) -> Path | None:
    """Look through the tree level by level: the cgroups that programs are attached to are seldom deep."""
    while level:
        below: list[Path] = []
        for directory in level:
            try:
                with os.scandir(directory) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            if entry.inode() == cgroup_id:
                                return Path(entry.path)
                            below.append(Path(entry.path))
            except FileNotFoundError:
                continue
        level = below
    return None
