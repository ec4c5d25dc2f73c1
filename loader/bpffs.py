# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The bpf file system: where pins live, and with them everything that outlasts the loader.

An instance is one directory below ``<bpffs>/pybpfasm``. It is built in a staging directory beside it and
becomes visible, complete, by one ``rename``. Where no bpf file system is mounted, one is, with the mount
source :data:`SOURCE`, so that a later ``down`` can tell that this one may be unmounted again when it is
empty.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from loader.errors import CapabilityError, ConflictError, LoaderError, UsageError
from loader.objects import Owned
from loader.sys import libc

__all__ = [
    "DEFAULT_MOUNT",
    "SOURCE",
    "BpfFs",
    "Mount",
    "Staging",
    "file_system_magic",
    "mounts",
    "parse_mountinfo",
    "remove_tree",
]

DEFAULT_MOUNT = Path("/sys/fs/bpf")
READ_ONLY_ADVICE = (
    "in a unit of systemd ProtectKernelTunables= makes it so, in a container the way it is mounted; "
    "or name another one with --bpffs"
)
SOURCE = "pybpfasm"  # the source of a mount that we made
ASIDE = "+old"  # what the name of a directory ends with that `publish` has moved out of the way
DIRECTORY = "pybpfasm"  # the directory in a bpf file system that holds the instances

# linux/magic.h; macros, so not in the kernel's BTF.
BPF_FS_MAGIC = 0xCAFE4A11
CGROUP2_SUPER_MAGIC = 0x63677270

_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8  # sys/mount.h
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h
_AT_FDCWD = -100


# Where a mount would end with the loader, and what to do about it.
ALONE = "no other process is in the mount namespace of this one"
ALONE_ADVICE = (
    "`ip netns exec` does that: leave it out, and name the network namespace with --netns. Elsewhere mount "
    "one first: mount -t bpf bpf /sys/fs/bpf"
)


# --- the mount table ----------------------------------------------------------------------------------------


class Mount(NamedTuple):
    """One line of ``/proc/self/mountinfo``.

    ``root`` is which directory of the file system is mounted there.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: Path
    options: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Whether the mount is read-only."""
        return "ro" in self.options


def _unescape(text: str) -> str:
    """Undo the octal escapes that the kernel writes for space, tab, newline and backslash."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def parse_mountinfo(text: str) -> list[Mount]:
    """Parse the text of ``mountinfo`` (proc_pid_mountinfo(5)), in the kernel's order.

    Lines that make no sense are left out.
    """
    found = []
    for line in text.splitlines():
        fixed, separator, rest = line.partition(" - ")
        fields, tail = fixed.split(" "), rest.split(" ")
        if not separator or len(fields) < 6 or len(tail) < 2:
            continue
        found.append(
            Mount(
                mount_id=int(fields[0]),
                parent_id=int(fields[1]),
                device=fields[2],
                root=_unescape(fields[3]),
                mount_point=Path(_unescape(fields[4])),
                options=tuple(fields[5].split(",")),
                fs_type=tail[0],
                source=_unescape(tail[1]),
                super_options=tuple(tail[2].split(",")) if len(tail) > 2 else (),
            )
        )
    return found


def mounts() -> list[Mount]:
    """Return the mount table of the calling thread's mount namespace."""
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return parse_mountinfo(table.read())


def visible(table: list[Mount], fs_type: str) -> list[Mount]:
    """Return the mounts of a type, without those that another mount on the very same directory covers."""
    covered = {(mount.parent_id, mount.mount_point) for mount in table}
    return [m for m in table if m.fs_type == fs_type and (m.mount_id, m.mount_point) not in covered]


def shows(mount: Mount, magic: int) -> bool:
    """Whether a mount's directory leads to it: one on a higher directory may hide it."""
    try:
        return file_system_magic(mount.mount_point) == magic
    except OSError:
        return False


def in_mount_namespace_alone() -> bool:
    """Whether no other process is in the calling thread's mount namespace, nor holds it by a descriptor: what
    is mounted there ends with this one then.
    """
    ours, mine = os.stat("/proc/thread-self/ns/mnt").st_ino, str(os.getpid())
    others = (process for process in Path("/proc").glob("[0-9]*") if process.name != mine)
    return not any(_holds_mount_namespace(process, ours) for process in others)


def _holds_mount_namespace(process: Path, namespace: int) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or it is not for us to look at
        if os.stat(process / "ns/mnt").st_ino == namespace:
            return True
        for descriptor in os.scandir(process / "fd"):
            with contextlib.suppress(OSError):
                if os.readlink(descriptor.path) == f"mnt:[{namespace}]":
                    return True
    return False


def file_system_magic(path: str | os.PathLike[str] | int) -> int:
    """Return the type of the file system that holds a path or an open file: ``f_type`` of statfs(2)."""
    buffer = ctypes.create_string_buffer(512)  # struct statfs has at most 120 bytes
    if isinstance(path, int):
        result = libc().fstatfs(path, buffer)
    else:
        result = libc().statfs(os.fsencode(path), buffer)
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(path) if not isinstance(path, int) else None)
    # f_type is the first member: a long, except on s390, where it is an unsigned int.
    word = ctypes.c_uint32 if os.uname().machine.startswith("s390") else ctypes.c_ulong
    return int(word.from_buffer(buffer).value) & 0xFFFFFFFF


# --- the bpf file system ------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_STAGING = re.compile(r"staging-(\d+)-(\d+)-(.+)")


def check_name(name: str) -> str:
    """Return the name of an instance if it can be one: letters, digits, ``-`` and ``_``.

    A dot is not allowed there.
    """
    if not _NAME.fullmatch(name) or name.startswith("staging-"):
        raise UsageError(
            f"{name!r} cannot be the name of an instance",
            hint="use letters, digits, '-' and '_', at most 63, the first one a letter or a digit",
        )
    return name


class BpfFs(NamedTuple):
    """A mounted bpf file system. ``ours`` says that the loader has mounted it, now or earlier."""

    root: Path
    ours: bool
    read_only: bool = False

    @classmethod
    def find(cls, path: str | os.PathLike[str] | None = None, *, read_only: bool = False) -> BpfFs | None:
        """Return the bpf file system at ``path``, or the one that the mount table shows.

        None where there is none.

        Without ``path`` the usual place wins, then the first writable one; ``read_only`` allows for one that
        is not, where no other is. Raises :class:`~loader.errors.UsageError` if ``path`` is something else.
        """
        table = mounts()
        if path is not None:
            if not os.fspath(path):  # an empty variable in a script, and not the current directory
                raise UsageError("'' is no bpf file system", hint="leave --bpffs out, or name a directory")
            root = Path(path)
            try:
                magic = file_system_magic(root)
            except OSError as error:
                raise UsageError(
                    f"{root} cannot be used as bpf file system: {error.strerror}",
                    hint=f"mkdir -p {root} && mount -t bpf bpf {root}",
                ) from None
            if magic != BPF_FS_MAGIC:
                raise UsageError(
                    f"{root} is not on a bpf file system", hint=f"mount one: mount -t bpf bpf {root}"
                )
            if not root.is_dir():
                raise UsageError(
                    f"{root} is not a directory", hint="name the one that is mounted, or one in it"
                )
            resolved = root.resolve()
            ours = any(m.mount_point == resolved and m.source == SOURCE for m in visible(table, "bpf"))
            return cls(root, ours)
        candidates = [
            m for m in visible(table, "bpf") if (read_only or not m.read_only) and shows(m, BPF_FS_MAGIC)
        ]
        candidates.sort(key=lambda m: (m.read_only, m.mount_point != DEFAULT_MOUNT))
        for mount in candidates:
            return cls(mount.mount_point, mount.source == SOURCE, mount.read_only)
        return None

    def refuse_read_only(self) -> None:
        """Raise :class:`~loader.errors.LoaderError` where nothing can be changed here, as in a sandbox."""
        if self.read_only:
            raise LoaderError(f"the bpf file system at {self.root} is read-only here", hint=READ_ONLY_ADVICE)

    @classmethod
    def ensure(cls, path: str | os.PathLike[str] | None = None, *, default: Path = DEFAULT_MOUNT) -> BpfFs:
        """Return what :meth:`find` finds; where there is none, mount one at ``default``.

        Raises :class:`~loader.errors.CapabilityError` or :class:`~loader.errors.LoaderError` if that fails.
        """
        found = cls.find(path)
        if found is not None:
            return found
        return cls.mount(default)

    @classmethod
    def mount(cls, root: Path) -> BpfFs:
        """Mount a new bpf file system at a directory that exists, with the source :data:`SOURCE`."""
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        function = libc().mount
        function.argtypes = (
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_char_p,
            ctypes.c_ulong,
            ctypes.c_char_p,
        )
        if function(SOURCE.encode(), os.fsencode(root), b"bpf", flags, b"mode=0700") != 0:
            code = ctypes.get_errno()
            message = f"a bpf file system cannot be mounted at {root}: {os.strerror(code)}"
            if code == errno.EPERM:
                raise CapabilityError(
                    message,
                    missing=("CAP_SYS_ADMIN",),
                    hint=f"mount it as root (mount -t bpf bpf {root}), or name one with --bpffs",
                )
            hint = {
                errno.ENOENT: f"create the directory {root}",
                errno.ENOTDIR: f"{root} must be a directory",
                errno.ENODEV: "this kernel has no bpf file system (CONFIG_BPF_SYSCALL)",
                errno.EBUSY: "try again",
            }.get(code, f"try: mount -t bpf bpf {root}")
            raise LoaderError(message, hint=hint)
        return cls(root, True)

    def unmount_if_unused(self) -> bool:
        """Unmount the file system if the loader has mounted it and nothing is in it.

        Return whether it was.
        """
        if not self.ours:
            return False
        base = self.base
        with contextlib.suppress(OSError):
            base.rmdir()
        # A name with a dot can only be the kernel's own (progs.debug and maps.debug of CONFIG_BPF_PRELOAD).
        if any("." not in entry.name for entry in self.root.iterdir()):
            return False
        return bool(libc().umount2(os.fsencode(self.root), 0) == 0)

    # instances

    @property
    def base(self) -> Path:
        """The directory that holds the instances; it need not exist."""
        return self.root / DIRECTORY

    def path(self, name: str) -> Path:
        """Return where the pins of an instance are, or would be."""
        return self.base / check_name(name)

    def instances(self) -> list[str]:
        """Return the names of the instances that are there, sorted."""
        try:
            return sorted(
                p.name for p in self.base.iterdir() if p.is_dir() and not _STAGING.fullmatch(p.name)
            )
        except FileNotFoundError:
            return []

    def abandoned(self) -> list[Path]:
        """Return staging directories whose loader is dead. What is pinned there may still be attached."""
        try:
            entries = sorted(self.base.iterdir())
        except FileNotFoundError:
            return []
        left = []
        for entry in entries:
            match = _STAGING.fullmatch(entry.name)
            if match and _start_time(int(match[1])) != int(match[2]):
                left.append(entry)
        return left

    def staging(self, name: str) -> Staging:
        """Return a staging directory for an instance; nothing is made before it is entered."""
        check_name(name)
        return Staging(self, name)

    @contextlib.contextmanager
    def lock(self, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock that loaders take while they change instances on this file system (flock).

        Raises :class:`~loader.errors.ConflictError` if another one holds it and ``wait`` is false.
        """
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise ConflictError(
                    f"another loader is at work on {self.root}", hint="wait until it is done, then try again"
                ) from None
            yield
        finally:
            os.close(fd)


class Staging:
    """A directory in which an instance is put together. It is removed again, pins and all, unless published.

    ``with fs.staging("web") as staging: staging.pin(link, "links/tc_ingress"); ...; staging.publish()``
    """

    def __init__(self, fs: BpfFs, name: str) -> None:
        self.fs = fs
        self.name = name
        pid = os.getpid()
        # The start time tells this process from a later one with its number. Instances may not begin like
        # this.
        self.path = fs.base / f"staging-{pid}-{_start_time(pid)}-{name}"
        self.published = False

    def __enter__(self) -> Self:
        _make_directory(self.fs.base)
        if self.path.exists():
            remove_tree(self.path)
        _make_directory(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.published:
            remove_tree(self.path)
            with contextlib.suppress(OSError):
                self.fs.base.rmdir()

    def pin(self, what: Owned, relative: str | os.PathLike[str]) -> Path:
        """Pin an object below the directory, which gets sub-directories as needed; return the path."""
        target = self.path / relative
        _make_directory(target.parent, below=self.path)
        what.pin(target)
        return target

    def publish(self, *, replace: bool = False) -> Path:
        """Give the directory the instance's own name by one rename; return the new path.

        With ``replace`` an instance of that name changes places with it in one step and its pins are removed.
        Raises :class:`~loader.errors.ConflictError` if it exists and ``replace`` is false.
        """
        final = self.fs.path(self.name)
        try:
            _rename(self.path, final, _RENAME_NOREPLACE)
        except FileExistsError:
            if not replace:
                raise ConflictError(
                    f"an instance {self.name!r} exists already at {final}",
                    hint="take it down first, or choose another --name",
                ) from None
            _rename(self.path, final, _RENAME_EXCHANGE)
            self.published = True
            # From here on the new instance is what is up, so nothing may undo it. What cannot be removed is
            # in a staging directory, and these are tidied up by whichever loader comes next.
            with contextlib.suppress(OSError):
                remove_tree(self.path)
        self.published = True
        return final


def _make_directory(path: Path, *, below: Path | None = None) -> None:
    """Make a directory and its parents, the latter only below ``below``."""
    if below is not None and path != below and below in path.parents:
        _make_directory(path.parent, below=below)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    except PermissionError as error:
        raise LoaderError(
            f"{path} cannot be made: {error.strerror}",
            hint="run as root; the bpf file system allows no dot in a name",
        ) from None
    except OSError as error:  # mounted read-only, say
        raise LoaderError(
            f"{path} cannot be made: {error.strerror}",
            hint="remount the bpf file system with -o remount,rw, or name another one with --bpffs",
        ) from None


def _rename(old: Path, new: Path, flags: int) -> None:
    function = getattr(libc(), "renameat2", None)  # glibc 2.28; musl has none
    code = errno.EINVAL
    if function is not None:
        if function(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)) == 0:
            return
        code = ctypes.get_errno()
    if code == errno.EINVAL and flags == _RENAME_NOREPLACE:
        if new.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(new))
        os.rename(old, new)
        return
    if code == errno.EINVAL and flags == _RENAME_EXCHANGE:
        # Before 5.16 a bpf file system cannot exchange: for a moment there is no instance of that name.
        aside = old.with_name(old.name + ASIDE)
        os.rename(new, aside)
        os.rename(old, new)
        os.rename(aside, old)
        return
    raise OSError(code, os.strerror(code), os.fspath(old), None, os.fspath(new))


def _start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot (proc_pid_stat(5), field 22).

    -1 if it is gone.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return -1


def remove_tree(path: Path) -> list[Path]:
    """Unlink all pins below a directory and the directories; return the pins. Follows no symbolic link.

    What does not exist counts as removed.
    """
    removed: list[Path] = []
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except FileNotFoundError:
        return removed
    except NotADirectoryError:
        path.unlink(missing_ok=True)
        return [path]
    for entry in entries:
        inner = Path(entry.path)
        if stat.S_ISDIR(entry.stat(follow_symlinks=False).st_mode):
            removed += remove_tree(inner)
        else:
            inner.unlink(missing_ok=True)
            removed.append(inner)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()
    return removed
