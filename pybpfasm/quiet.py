# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How a command line starts: with a Python that will do, and in quiet where Ctrl-C is pressed meanwhile.

What this module holds is understood by older Pythons too, back to 3.7.
"""

from __future__ import annotations

import signal
import sys
from types import TracebackType

__all__ = ["Quiet", "check_python"]


def check_python() -> None:
    """End with a plain word where this Python is too old for everything else."""
    if sys.version_info < (3, 11):  # noqa: UP036
        mine = ".".join(map(str, sys.version_info[:2]))
        sys.exit(
            f"error: Python 3.11 or newer is needed, and {sys.executable} is {mine}\n"
            "  name another one, python3.11 say, or the one in .venv"
        )


class Quiet:
    """A block, of imports, in which Ctrl-C ends the process without a word: nothing has begun yet."""

    def __enter__(self) -> None:
        # Somebody may have had it ignored, as a shell does for what runs in the background.
        self.heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self.heard:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
