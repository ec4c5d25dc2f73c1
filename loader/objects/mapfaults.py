# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Errors of operations on maps, with what was wrong and what to do."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loader.capabilities import explain
from loader.errors import BpfError, LoaderError
from pybpfasm.maprefusals import Refusing, why
from pybpfasm.maprules import kernel_owned

if TYPE_CHECKING:
    from loader.objects.map import Map

__all__ = ["about"]


def _not_permitted(one: Map, command: str) -> str:
    """Why this descriptor may not be used so: the map is frozen, or the descriptor only reads or writes.

    Empty where neither is so.
    """
    try:
        with open(f"/proc/self/fdinfo/{one.fd}", encoding="ascii") as file:
            facts = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return ""
    mode = int(facts.get("flags", "0"), 8) & os.O_ACCMODE
    deletes = "DELETE" in command
    writes = deletes or "UPDATE" in command or command == "MAP_FREEZE"
    if (writes and mode == os.O_RDONLY) or (not writes and mode == os.O_WRONLY):
        only, flag = ("reads", "BPF_F_RDONLY") if writes else ("writes", "BPF_F_WRONLY")
        return f"this descriptor only {only} ({flag}): open the map, or create it, without that flag"
    if writes and facts.get("frozen") == "1":
        return "the map is frozen: only programs can change it now; put everything in before freeze()"
    return ""


def about(
    one: Map,
    error: BpfError,
    keys: Sequence[bytes] = (),
    flags: int = 0,
    *,
    stored: tuple[int, int] | None = None,
) -> LoaderError:
    """*error* with the map's name, and what was wrong and what to do where that is known.

    *keys* are those of the operation, *stored* how many entries were stored before, and of how many.
    """
    what = f"map {one.name!r}"
    if error.errno == errno.EPERM and (reason := _not_permitted(one, error.command)):
        return error.about(what, hint=reason)
    locked = any(name == "bpf_spin_lock" for *_, name in kernel_owned(one._value))
    refusing = Refusing(one.type, one.key_size, one.max_entries, locked, sys.byteorder)
    reason = why(refusing, error.command, error.errno, keys, flags)
    if stored is not None:
        error.stored = stored[0]
        before = f"{stored[0]} of {stored[1]} entries are stored"
        reason = f"{reason}; {before}" if reason else before
    return explain(error.about(what, hint=reason), ("CAP_BPF",))
