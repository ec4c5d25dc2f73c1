# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Macros: plain functions that write several instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybpfasm.asm import Asm, Reg
from pybpfasm.errors import AsmError
from pybpfasm.kernel.enums import Helper, MapType
from pybpfasm.source import capture, resolve

if TYPE_CHECKING:
    from pybpfasm.layout import Struct
    from pybpfasm.maps import MapSpec

__all__ = ["tail_call"]


def tail_call(b: Asm, ctx: Struct | Reg, programs: MapSpec, index: int | Reg) -> None:
    """Go on in program *index* of the array *programs*, and do not come back (``bpf_tail_call``).

    Where there is no program at *index*, or after 33 of these calls, it goes on behind this. Writes r1 to r3,
    which the call loses, r4 and r5 with them; the context and *index* may be in any of them that is not
    overwritten before it is read: the context not in r2 and r3, *index* not in r1 and r2. Raises `AsmError`
    for a map of another type, and an *index* in r1 or r2.
    """
    if programs.type is not MapType.PROG_ARRAY:
        raise AsmError(
            f"map {programs.name} is a {programs.type.name}; a tail call goes through a PROG_ARRAY",
            resolve(capture(b.entry, 2)),
        )
    if isinstance(index, Reg) and index.index in (1, 2):
        raise AsmError(
            f"r{index.index} is overwritten before the index in it is read: put the index in r3 or above",
            resolve(capture(b.entry, 2)),
        )
    source = ctx.index if isinstance(ctx, Reg) else ctx.address.base
    if source != 1:
        b.r1 = ctx
    b.r2 = programs
    if not (isinstance(index, Reg) and index.index == 3):
        b.r3 = index
    b.call(Helper.tail_call)
