# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Places that jumps can name, and conditions as jumps to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybpfasm import isa
from pybpfasm.asm.conditions import INVERSE, Condition
from pybpfasm.asm.operands import Reg
from pybpfasm.isa import Jump
from pybpfasm.source import Origin

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm


class Label:
    """A place in the program that jumps can name.

    ``hint`` is what listings call it.
    """

    __slots__ = ("hint", "origin")

    def __init__(self, hint: str = "L") -> None:
        self.hint = hint
        self.origin: Origin | None = None

    def __repr__(self) -> str:
        return f"Label({self.hint!r})"


def _jump_if(asm: Asm, condition: Condition, jump: Jump, label: Label, origin: Origin) -> None:
    lhs, rhs = condition.lhs, condition.rhs
    assert lhs is not None
    cls = isa.JMP32 if lhs.is_w else isa.JMP
    if isinstance(rhs, Reg):
        asm._emit(cls | jump | isa.X, lhs.index, rhs.index, reference=label, origin=origin)
    else:
        imm = asm._immediate(rhs, lhs.is_w)
        asm._emit(cls | jump | isa.K, lhs.index, imm=imm, reference=label, origin=origin)
    asm._used.setdefault(label, origin)


def branch_true(asm: Asm, condition: Condition, label: Label, origin: Origin) -> None:
    """Jump to *label* where *condition* holds, else go on."""
    if condition.join == "or":
        for part in condition.parts:
            branch_true(asm, part, label, origin)
    elif condition.join == "and":
        skip = Label("skip")
        for part in condition.parts[:-1]:
            branch_false(asm, part, skip, origin)
        branch_true(asm, condition.parts[-1], label, origin)
        asm._place(skip)
    elif condition.jump is None:
        skip = Label("skip")
        _jump_if(asm, condition, Jump.JSET, skip, origin)
        asm._emit(isa.OP_JA, reference=label, origin=origin)
        asm._used.setdefault(label, origin)
        asm._place(skip)
    else:
        _jump_if(asm, condition, condition.jump, label, origin)


def branch_false(asm: Asm, condition: Condition, label: Label, origin: Origin) -> None:
    """Go on where *condition* holds, else jump to *label*."""
    if condition.join == "and":
        for part in condition.parts:
            branch_false(asm, part, label, origin)
    elif condition.join == "or":
        into = Label("then")
        for part in condition.parts[:-1]:
            branch_true(asm, part, into, origin)
        branch_false(asm, condition.parts[-1], label, origin)
        asm._place(into)
    elif condition.jump is None:
        _jump_if(asm, condition, Jump.JSET, label, origin)
    elif condition.jump is Jump.JSET:
        into = Label("then")
        _jump_if(asm, condition, Jump.JSET, into, origin)
        asm._emit(isa.OP_JA, reference=label, origin=origin)
        asm._used.setdefault(label, origin)
        asm._place(into)
    else:
        _jump_if(asm, condition, INVERSE[condition.jump], label, origin)
