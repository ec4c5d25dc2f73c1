# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The standard streams as a command line needs them."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import Final

__all__ = ["give_up_output", "output_fails", "prepare"]

_PLAINER: Final = "pybpfasm-plainer"
_PLAIN: Final = {"✓": "+", "✗": "x", "→": "->", "…": "...", "“": '"', "”": '"'}


def prepare() -> None:
    """See to it that all three streams are there, and take every character.

    Closed ones lead nowhere. What the encoding does not have is written in plainer characters, or as ``?``.
    """
    # In this order each gets its own descriptor, and nothing that is opened later is taken for one of them.
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_PLAINER)


# The errno values with which a write to a file of somebody's choice fails.
_FAILS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def output_fails(error: BaseException) -> bool:
    """Whether it says that an open file, most likely standard output, takes no more."""
    return isinstance(error, OSError) and error.errno in _FAILS and error.filename is None


def give_up_output() -> None:
    """Let what is left in the buffer of standard output go nowhere, now and when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)


def _plainer(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(one, "?") for one in error.object[error.start : error.end]), error.end


codecs.register_error(_PLAINER, _plainer)
