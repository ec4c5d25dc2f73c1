# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Ctrl-C while a command line starts."""

from __future__ import annotations

import signal
from types import TracebackType

__all__ = ["Quiet"]


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
