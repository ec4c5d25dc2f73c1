# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers that change a message, of sk_msg programs (net/core/filter.c).

A message is in pieces, of which a program reaches the first. Here it is in as many as its helpers have made.
"""

from __future__ import annotations

from typing import Final

from pybpfasm.emulator.context import SkMsg
from pybpfasm.emulator.errnos import EINVAL, ENOMEM
from pybpfasm.emulator.helpers import helper
from pybpfasm.emulator.run import Run
from pybpfasm.kernel.enums import Helper

U32: Final = 0xFFFFFFFF
# What alloc_pages gives at once on x86-64: MAX_PAGE_ORDER is 10.
_MOST_PAGES: Final = 4096 << 10


@helper(Helper.msg_apply_bytes)
def msg_apply_bytes(run: Run, context: int, size: int) -> int:
    """The verdict holds for *size* bytes."""
    run.is_context(context, SkMsg).apply_bytes = size & U32
    return 0


@helper(Helper.msg_cork_bytes)
def msg_cork_bytes(run: Run, context: int, size: int) -> int:
    """No verdict before *size* bytes have come."""
    run.is_context(context, SkMsg).cork_bytes = size & U32
    return 0


@helper(Helper.msg_pull_data)
def msg_pull_data(run: Run, context: int, start: int, end: int, flags: int) -> int:
    """Make bytes *start* to *end* of the message reachable; 0 or -EINVAL."""
    msg = run.is_context(context, SkMsg)
    start, end = start & U32, end & U32
    if flags or end <= start or end > len(msg.data):
        return -EINVAL
    msg.sync(run)
    msg.start, msg.end = start, end
    msg.moved(run, "msg_pull_data")
    return 0


@helper(Helper.msg_push_data)
def msg_push_data(run: Run, context: int, start: int, size: int, flags: int) -> int:
    """Put *size* bytes before byte *start* of the message, which the program has to write; 0 or an errno."""
    msg = run.is_context(context, SkMsg)
    start, size = start & U32, size & U32
    if flags:
        return -EINVAL
    if size == 0:
        return 0
    if start > len(msg.data):
        return -EINVAL
    if size > _MOST_PAGES:
        return -ENOMEM
    msg.sync(run)
    msg.data[start:start] = bytes(size)
    if start <= msg.start:
        msg.start, msg.end = start, start + size
    elif start < msg.end:
        msg.end = start
    msg.moved(run, "msg_push_data")
    return 0


@helper(Helper.msg_pop_data)
def msg_pop_data(run: Run, context: int, start: int, size: int, flags: int) -> int:
    """Remove *size* bytes from byte *start* of the message; 0 or -EINVAL."""
    msg = run.is_context(context, SkMsg)
    start, size = start & U32, size & U32
    if flags:
        return -EINVAL
    if size == 0:
        return 0
    if start >= len(msg.data) or start + size > len(msg.data):
        return -EINVAL
    msg.sync(run)
    del msg.data[start : start + size]
    if start <= msg.start:
        msg.start, msg.end = 0, max(msg.end - size, 0) or len(msg.data)
    elif start < msg.end:
        msg.end = start
    msg.moved(run, "msg_pop_data")
    return 0
