# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What can go wrong in the loader, worded for the person who has to do something about it.

Every error that the loader raises on purpose is a :class:`LoaderError`. Its text says what is wrong and
where, :attr:`LoaderError.hint` says what to do next. The command line prints both and no traceback.
"""

from __future__ import annotations

import errno as errno_names
import os
from collections.abc import Iterable

from pybpfasm.maprefusals import ENOTSUPP

__all__ = [
    "ENOTSUPP",
    "AttachError",
    "BpfError",
    "CapabilityError",
    "ConflictError",
    "KernelFeatureError",
    "LoaderError",
    "UsageError",
]


# What to do where no more files can be opened.
MORE_FILES = "raise the limit of open files: `ulimit -n` in a shell, LimitNOFILE= in a unit of systemd"


class LoaderError(Exception):
    """Base of all errors of the loader.

    ``hint`` is one sentence that says what to do next; it is empty where there is nothing sensible to say. A
    traceback shows it below the error.
    """

    _hint = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def hint(self) -> str:
        """What to do next, or ``""``."""
        return self._hint

    @hint.setter
    def hint(self, hint: str) -> None:
        notes: list[str] = getattr(self, "__notes__", [])
        if self._hint in notes:
            notes.remove(self._hint)
        self._hint = hint
        if hint:
            self.add_note(hint)

    def __str__(self) -> str:
        return self.message


class UsageError(LoaderError):
    """What was asked for cannot be right: an unknown interface, a bad port, a path of the wrong kind."""


class ConflictError(LoaderError):
    """What was asked for would collide with something that exists already (an instance, a pin, a filter)."""


class AttachError(LoaderError):
    """A program was loaded but could not be attached to, or removed from, its hook."""


class CapabilityError(LoaderError):
    """The process lacks a capability. ``missing`` names those that would help (``CAP_BPF`` and so on)."""

    def __init__(self, message: str, *, missing: Iterable[str] = (), hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.missing = tuple(missing)


class KernelFeatureError(LoaderError):
    """The kernel lacks something that was needed. ``feature`` names it."""

    def __init__(self, message: str, *, feature: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.feature = feature


class BpfError(LoaderError, OSError):
    """A ``bpf(2)`` command failed.

    ``command`` names it (``MAP_CREATE``), ``errno`` says why, ``what`` on what. ``stored`` is how many of
    several entries of a map were stored before it failed, ``None`` elsewhere.
    """

    stored: int | None = None

    def __init__(self, code: int, command: str, what: str = "", *, hint: str = "") -> None:
        self.command = command
        self.what = what
        reason = describe_errno(code)
        message = f"BPF_{command}{f' of {what}' if what else ''} failed: {reason}"
        OSError.__init__(self, code, message)
        self.message = message
        self.hint = hint or (MORE_FILES if code in (errno_names.EMFILE, errno_names.ENFILE) else "")

    def about(self, what: str, *, hint: str = "") -> BpfError:
        """Return the same error, saying what the command was about."""
        error = BpfError(self.errno or 0, self.command, what, hint=hint or self.hint)
        error.stored = self.stored
        return error


def describe_errno(code: int) -> str:
    """Return the text and the name of an errno value: ``No such file or directory (ENOENT)``."""
    if code == ENOTSUPP:
        return "operation not supported (ENOTSUPP)"
    name = errno_names.errorcode.get(code, f"errno {code}")
    return f"{os.strerror(code)} ({name})"
