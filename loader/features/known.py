# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Answers that are known already: those of this process, and those of this boot in a file.

The file is a cache and nothing else: without it, or where it is damaged, of another boot or somebody else's,
the kernel is asked again. Only certain answers are in it: a doubt ends when the process gets more rights.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from loader.capabilities import missing_capabilities
from loader.features.answer import Answer, Probe, Support

__all__ = ["VARIABLE", "ask", "directory", "discard", "forget", "save"]

VARIABLE: Final = "PYBPFASM_CACHE"  # another directory for the file; empty: no file
_DIRECTORY: Final = Path("/run/pybpfasm")
_FILE: Final = "features.json"
_FORMAT: Final = 1
_MAX_BYTES: Final = 4 << 20
# Without one of these the kernel hides what it has (helpers from the verifier, above all).
_RIGHTS: Final = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")

_known: dict[str, Probe] = {}
_loaded = False  # whether the file has been looked at
_news = False  # whether there is something that the file does not have


def ask(key: str, name: str, attempt: Callable[[], Answer]) -> Probe:
    """Return the answer that is known under a key, or make the attempt. A doubt is not kept.

    A no from a process that lacks rights is a doubt as well.
    """
    global _loaded, _news
    if key in _known:
        return _known[key]
    if not _loaded:
        _loaded = True
        for other, found in _read().items():
            _known.setdefault(other, found)
        if key in _known:
            return _known[key]
    support, reason, code = attempt()
    if support is Support.UNSUPPORTED and (missing := _missing_rights()):
        support, reason = Support.INCONCLUSIVE, f"{reason}; this process lacks {', '.join(missing)}"
    found = Probe(name, support, reason, code)
    if support is not Support.INCONCLUSIVE:
        _known[key] = found
        _news = True
    return found


def forget(*, file: bool = False) -> None:
    """Forget all answers of this process. With ``file`` the file is not asked either."""
    global _loaded, _news
    _known.clear()
    _loaded, _news = file, False


def directory() -> Path | None:
    """Where the file is: ``/run/pybpfasm``, or what the environment says; None: nowhere."""
    named = os.environ.get(VARIABLE)
    if named is None:
        return _DIRECTORY
    return Path(named) if named else None


def save() -> bool:
    """Write the answers of this process for others of this boot; return whether there was need and a way.

    The file belongs to this user, who alone may read it, and takes its place in one step.
    """
    global _news
    where = directory()
    if where is None or not _news:
        return False
    from json import dumps

    answers = {
        key: [found.name, found.support.value, found.reason, found.errno] for key, found in _known.items()
    }
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        with contextlib.suppress(FileExistsError):
            where.mkdir(0o700)
        folder = _open_folder(where)
        if folder is None:
            return False
        stack.callback(os.close, folder)
        temporary = f".{_FILE}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)  # of an earlier process with this number
        fd = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(dumps(_header() | {"answers": answers}))
            os.rename(temporary, _FILE, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=folder)
            raise
        _news = False
        return True
    return False


def discard() -> None:
    """Remove the file, and its directory if nothing else is in it."""
    where = directory()
    if where is None:
        return
    with contextlib.suppress(OSError):
        folder = _open_folder(where)
        if folder is None:
            return
        try:
            os.unlink(_FILE, dir_fd=folder)
        finally:
            os.close(folder)
        where.rmdir()


def _missing_rights() -> list[str]:
    return missing_capabilities(_RIGHTS)


def _header() -> dict[str, Any]:
    """What the answers hold for."""
    system = os.uname()
    return {
        "format": _FORMAT,
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "kernel": [system.release, system.version, system.machine],
        "pointers": ctypes.sizeof(ctypes.c_void_p),
        "rights": _missing_rights(),
    }


def _open_folder(where: Path) -> int | None:
    """Open the directory if it is ours and nobody else can write there."""
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    state = os.fstat(fd)
    if state.st_uid != os.geteuid() or stat.S_IMODE(state.st_mode) & 0o022:
        os.close(fd)
        return None
    return fd


def _read() -> dict[str, Probe]:
    """Return what the file says, nothing if it cannot be trusted or says nothing of this boot."""
    where = directory()
    if where is None:
        return {}
    try:
        return _parse(_file_text(where))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def _file_text(where: Path) -> str:
    folder = _open_folder(where)
    if folder is None:
        return ""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        with os.fdopen(os.open(_FILE, flags, dir_fd=folder), "rb") as file:
            state = os.fstat(file.fileno())
            ours = state.st_uid == os.geteuid() and not stat.S_IMODE(state.st_mode) & 0o022
            if not (stat.S_ISREG(state.st_mode) and ours) or state.st_size > _MAX_BYTES:
                return ""
            return file.read(_MAX_BYTES).decode()
    finally:
        os.close(folder)


def _parse(text: str) -> dict[str, Probe]:
    if not text:
        return {}
    from json import loads

    document = loads(text)
    if any(document.get(key) != value for key, value in _header().items()):
        return {}
    found = {}
    for key, (name, support, reason, code) in document["answers"].items():
        certain = Support(support)
        if certain is Support.INCONCLUSIVE or not (isinstance(reason, str) and isinstance(code, int)):
            return {}
        found[key] = Probe(str(name), certain, reason, code)
    return found
