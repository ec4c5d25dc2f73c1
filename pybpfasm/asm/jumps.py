# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""From labels to distances, when a function is complete. Jumps of more than 16 bits arrive all the same.

With ``gotol`` (ISA v4, Linux 6.6) a ``goto`` becomes one, and a conditional jump becomes the opposite one
over a ``gotol``. Without it, jumps go by way of *islands*: places in the function, jumped over by those that
come along, where a ``goto`` for each label that is far away leads there or to the next island.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pybpfasm import isa
from pybpfasm.asm.branches import Label
from pybpfasm.asm.conditions import INVERSE
from pybpfasm.asm.splice import Sequel, splice
from pybpfasm.errors import AsmError, suggestion
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Jump
from pybpfasm.source import resolve

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm

_REACH: Final = 32767  # slots that a jump goes at most; backwards it is one more, which is not used
# How far apart islands may lie, and how far jumps by way of them go: far below what 16 bits allow, because
# the verifier puts more instructions in place of some and wants all jumps to reach then too. The further rows
# are for functions with so many labels far away that islands grow large.
_SPACINGS: Final = ((8_000, 20_000), (8_000, _REACH), (2_000, _REACH))


def require_marks(asm: Asm) -> None:
    """Raise `AsmError` for a jump to a label that nothing marks."""
    for index in asm._referring:
        insn = asm._body[index]
        label = insn.reference
        if isinstance(label, Label) and label not in asm._places:
            assert insn.origin is not None
            known = [name for name, other in asm._named.items() if other in asm._places]
            raise AsmError(
                f"label {label.hint!r} is not marked in {asm.name}{suggestion(label.hint, known)}",
                resolve(insn.origin),
            )


def resolve_jumps(asm: Asm) -> list[Instruction]:
    """The instructions of *asm*, whose labels are all marked, with distances in their jumps."""
    # No jump can be too long where there are so few slots.
    if asm.slots > _REACH:
        if asm.target is None or asm.target.has_gotol:
            _lengthen(asm)
        else:
            _by_islands(asm)
    for index in asm._referring:
        insn = asm._body[index]
        label = insn.reference
        if isinstance(label, Label):
            distance = asm._slot(asm._places[label]) - asm._slot(index) - 1
            if insn.opcode == isa.OP_GOTOL:
                insn.imm = distance
            else:
                insn.offset = distance
    return asm._body


def _lengthen(asm: Asm) -> None:
    """Write jumps of more than 16 bits with ``gotol``. A conditional one becomes longer, which may put others
    out of reach."""
    while True:
        instead: dict[int, Sequel] = {}
        for index in asm._referring:
            insn = asm._body[index]
            label = insn.reference
            if not isinstance(label, Label) or insn.opcode == isa.OP_GOTOL:
                continue
            if not -32768 <= asm._slot(asm._places[label]) - asm._slot(index) - 1 <= 32767:
                if insn.opcode == isa.OP_JA:
                    insn.opcode = isa.OP_GOTOL
                else:
                    instead[index] = _over_gotol(insn)
        if not instead:
            return
        splice(asm, instead)


def _over_gotol(insn: Instruction) -> Sequel:
    far = Instruction(isa.OP_GOTOL, reference=insn.reference, origin=insn.origin)
    skip = Label("skip")
    op = insn.opcode & 0xF0
    if op in INVERSE:
        insn.opcode = insn.opcode & ~0xF0 | INVERSE[Jump(op)]
        insn.reference = skip
        return insn, far, skip
    # No instruction says the opposite.
    into = Label("into")
    insn.reference = into
    return insn, Instruction(isa.OP_JA, reference=skip, origin=insn.origin), into, far, skip


class _Island:
    """A place for trampolines, in front of the instruction at an index."""

    __slots__ = ("index", "jumped_over", "slot", "trampolines")

    def __init__(self, index: int, jumped_over: bool) -> None:
        self.index = index
        self.jumped_over = jumped_over  # whether what comes before goes on here
        self.slot = 0
        self.trampolines: dict[Label, _Trampoline] = {}

    @property
    def size(self) -> int:
        return len(self.trampolines) + (self.jumped_over and bool(self.trampolines))


class _Trampoline:
    """A ``goto`` in an island, towards *label*: to the label itself, or by way of *hop*."""

    __slots__ = ("hop", "island", "label", "mark", "number", "origin", "used")

    def __init__(self, island: _Island, label: Label, origin: object) -> None:
        self.island = island
        self.label = label
        self.origin = origin
        self.number = len(island.trampolines)
        self.hop: _Trampoline | None = None
        self.mark = Label("trampoline")
        self.used = False

    @property
    def slot(self) -> int:
        return self.island.slot + self.island.jumped_over + self.number


class _Unreachable(Exception):
    """There is no island within reach on the way."""


def _by_islands(asm: Asm) -> None:
    """Lead the jumps that don't reach their labels through islands."""
    if not _far(asm):
        return
    for spacing, reach in _SPACINGS:
        try:
            route = _Route(asm, spacing, reach)
        except _Unreachable:
            continue
        splice(asm, route.instead())
        return
    raise AsmError(
        f"{asm.name} has more jumps that go further than {_REACH} instructions than can be led there: "
        "make subprograms of its parts, or give a target that has gotol (v4, Linux 6.6)"
    )


def _far(asm: Asm) -> list[int]:
    """The indices of jumps to labels that are more than 16 bits away."""
    found = []
    for index in asm._referring:
        label = asm._body[index].reference
        if isinstance(label, Label) and abs(asm._slot(asm._places[label]) - asm._slot(index) - 1) > _REACH:
            found.append(index)
    return found


class _Route:
    """Where islands lie, which trampolines they hold, and which jumps go by way of them.

    What a jump goes to next is only ever replaced by something nearer, so this comes to an end.
    """

    def __init__(self, asm: Asm, spacing: int, reach: int) -> None:
        self.asm = asm
        self.reach = reach
        self.islands = list(_islands(asm, spacing))
        self.jumps: dict[int, _Trampoline | None] = {
            index: None for index in asm._referring if isinstance(asm._body[index].reference, Label)
        }
        self.starts = [island.index for island in self.islands]
        while self._settle():
            pass
        self._drop_unused()

    def _settle(self) -> bool:
        """Choose anew what is out of reach; returns whether there was anything."""
        self._lay_out()
        changed = False
        for index, hop in self.jumps.items():
            insn = self.asm._body[index]
            label = insn.reference
            assert isinstance(label, Label)
            end = self._place(label) if hop is None else hop.slot
            at = self._slot(index)
            if abs(end - at - 1) > _REACH:
                self.jumps[index] = self._next(at, label, insn.origin)
                changed = True
        for island in self.islands:
            for trampoline in list(island.trampolines.values()):
                hop = trampoline.hop
                end = self._place(trampoline.label) if hop is None else hop.slot
                if abs(end - trampoline.slot - 1) > _REACH:
                    trampoline.hop = self._next(trampoline.slot, trampoline.label, trampoline.origin)
                    changed = True
        return changed

    def _lay_out(self) -> None:
        """Work out the slots of islands, and how much they move what is behind each."""
        self.moved = [0]
        for island in self.islands:
            island.slot = self.asm._slot(island.index) + self.moved[-1]
            self.moved.append(self.moved[-1] + island.size)

    def _slot(self, index: int) -> int:
        """The slot of the instruction at *index*, behind an island that is in front of it."""
        return self.asm._slot(index) + self.moved[bisect_right(self.starts, index)]

    def _place(self, label: Label) -> int:
        return self._slot(self.asm._places[label])

    def _next(self, at: int, label: Label, origin: object) -> _Trampoline:
        """The furthest trampoline within reach of slot *at* on the way to *label*, made where it is new."""
        end = self._place(label)
        step = 1 if end > at else -1
        slots = [island.slot for island in self.islands]
        # From the last island on this side of the label and within reach, back to where the jump is.
        number = (
            bisect_left(slots, min(end, at + self.reach)) - 1
            if step > 0
            else bisect_right(slots, max(end, at - self.reach))
        )
        while 0 <= number < len(self.islands):
            island = self.islands[number]
            if (island.slot - at) * step <= 0:
                break
            found = island.trampolines.get(label)
            slot = island.slot + island.jumped_over + len(island.trampolines) if found is None else found.slot
            if 0 < (slot - at) * step <= self.reach:
                if found is None:
                    if len(island.trampolines) > self.reach // 2:
                        raise _Unreachable
                    found = island.trampolines[label] = _Trampoline(island, label, origin)
                return found
            number -= step
        raise _Unreachable

    def _drop_unused(self) -> None:
        """Nothing may stay that nothing jumps to: the verifier refuses code that can't be reached."""
        for hop in self.jumps.values():
            while hop is not None and not hop.used:
                hop.used = True
                hop = hop.hop
        for island in self.islands:
            kept = [one for one in island.trampolines.values() if one.used]
            island.trampolines = {one.label: one for one in kept}
            for number, one in enumerate(kept):
                one.number = number

    def instead(self) -> dict[int, Sequel]:
        """What to splice in: each island behind the instruction before it. Points jumps at trampolines."""
        body = self.asm._body
        for index, hop in self.jumps.items():
            if hop is not None:
                body[index].reference = hop.mark
        out: dict[int, Sequel] = {}
        for island in self.islands:
            if not island.trampolines:
                continue
            before = body[island.index - 1]
            sequel: list[Instruction | Label] = [before]
            over = Label("over")
            if island.jumped_over:
                sequel.append(Instruction(isa.OP_JA, reference=over, origin=before.origin))
            for one in island.trampolines.values():
                end = one.label if one.hop is None else one.hop.mark
                sequel += (one.mark, Instruction(isa.OP_JA, reference=end, origin=one.origin))  # type: ignore[arg-type]
            sequel.append(over)
            out[island.index - 1] = sequel
        return out


def _islands(asm: Asm, spacing: int) -> Sequence[_Island]:
    """Places for islands, at most *spacing* slots apart: where nothing goes on, if there is such a place in
    the second half of each stretch, else at its end."""
    body = asm._body
    found: list[_Island] = []
    last = index = 0
    while True:
        end = _index_at(asm, asm._slot(last) + spacing)
        if end >= len(body):
            return found
        index = end
        while index > last + spacing // 2 and body[index - 1].opcode not in (isa.OP_EXIT, isa.OP_JA):
            index -= 1
        leaves = body[index - 1].opcode in (isa.OP_EXIT, isa.OP_JA)
        if not leaves:
            index = end
        found.append(_Island(index, not leaves))
        last = index


def _index_at(asm: Asm, slot: int) -> int:
    """The index of the instruction at *slot*, or the next."""
    # Wide instructions before it take two slots, so the index is less by as many.
    low, high = 0, len(asm._body)
    while low < high:
        middle = (low + high) // 2
        if asm._slot(middle) < slot:
            low = middle + 1
        else:
            high = middle
    return low
