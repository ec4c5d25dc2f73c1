# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Several instructions in place of one, in a function whose jumps have no distances yet."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pybpfasm.asm.branches import Label
from pybpfasm.instruction import Instruction
from pybpfasm.isa import LD_IMM64

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm

#: Instructions, and labels that mark the place where they stand.
Sequel = Sequence[Instruction | Label]


def splice(asm: Asm, instead: Mapping[int, Sequel]) -> None:
    """Put *instead* in the place of the instructions at its indices; labels there mark the first of them.

    A label among them is put behind what it follows, and before what follows it.
    """
    body: list[Instruction] = []
    begin = 0
    indices = sorted(instead)
    grown: list[int] = []  # by how much the body has grown before and with each index
    places: dict[Label, int] = {}
    for index in indices:
        body += asm._body[begin:index]
        for item in instead[index]:
            if isinstance(item, Label):
                places[item] = len(body)
            else:
                body.append(item)
        begin = index + 1
        grown.append(len(body) - begin)
    body += asm._body[begin:]
    for label, place in asm._places.items():
        before = bisect_left(indices, place)
        places[label] = place + (grown[before - 1] if before else 0)
    asm._body, asm._places = body, places
    asm._wides = [index for index, insn in enumerate(body) if insn.opcode == LD_IMM64]
    asm._referring = [index for index, insn in enumerate(body) if insn.reference is not None]
