# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""From labels to distances, when a function is complete."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from pybpfasm import isa
from pybpfasm.asm.branches import Label
from pybpfasm.errors import AsmError, suggestion
from pybpfasm.instruction import Instruction
from pybpfasm.source import resolve

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm


def resolve_jumps(asm: Asm) -> list[Instruction]:
    """The instructions of *asm*, with distances in their jumps; `AsmError` for a label that nothing marks."""
    _reach(asm)
    for index in asm._referring:
        insn = asm._body[index]
        label = insn.reference
        if not isinstance(label, Label):
            continue
        assert insn.origin is not None
        place = asm._places.get(label)
        if place is None:
            known = [name for name, other in asm._named.items() if other in asm._places]
            raise AsmError(
                f"label {label.hint!r} is not marked in {asm.name}{suggestion(label.hint, known)}",
                resolve(insn.origin),
            )
        distance = asm._slot(place) - asm._slot(index) - 1
        if insn.opcode == isa.OP_GOTOL:
            insn.imm = distance
        else:
            insn.offset = distance
    return asm._body


def _reach(asm: Asm) -> None:
    """Let jumps of more than 16 bits arrive (ISA v4, Linux 6.6).

    ``goto`` becomes ``gotol``. A conditional jump goes over a ``goto`` behind it, to a ``gotol`` that is
    written for it: two instructions more, which may put others out of reach.
    """
    while True:
        far = []
        for index in asm._referring:
            insn = asm._body[index]
            label = insn.reference
            if not isinstance(label, Label) or label not in asm._places or insn.opcode == isa.OP_GOTOL:
                continue
            if not -32768 <= asm._slot(asm._places[label]) - asm._slot(index) - 1 <= 32767:
                if insn.opcode == isa.OP_JA:
                    insn.opcode = isa.OP_GOTOL
                else:
                    far.append(index)
        if not far:
            return
        body: list[Instruction] = []
        begin = 0
        for index in far:
            insn = asm._body[index]
            over = Instruction(isa.OP_JA, offset=1, origin=insn.origin)
            long = Instruction(isa.OP_GOTOL, reference=insn.reference, origin=insn.origin)
            insn.reference, insn.offset = None, 1
            body += [*asm._body[begin : index + 1], over, long]
            begin = index + 1
        asm._body = body + asm._body[begin:]
        moved = {label: place + 2 * bisect_left(far, place) for label, place in asm._places.items()}
        asm._places = moved
        asm._wides = [index + 2 * bisect_left(far, index) for index in asm._wides]
        asm._referring = [i for i, insn in enumerate(asm._body) if insn.reference is not None]
