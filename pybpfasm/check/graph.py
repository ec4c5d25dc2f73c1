# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The control-flow graph of a program, and what the kernel refuses by the graph alone.

The verifier looks at the shape of a program (``check_subprogs`` and ``check_cfg``) before it follows any
path, so that a mistake of this kind is one whatever the values are.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.isa import CallKind, Imm64

__all__ = ["Block", "Graph", "is_local_call"]

MAX_FRAMES: Final = 8  # MAX_CALL_FRAMES, include/linux/bpf_verifier.h

Report = Callable[[str, int, str], None]
_JUMP_CLASSES = (isa.JMP, isa.JMP32)


@dataclass(slots=True)
class Block:
    """Instructions that run one after the other: from index ``start`` up to ``end`` (not included).

    ``following`` are the blocks that come next: of a conditional jump first the one behind it, then the one
    that it jumps to.
    """

    start: int
    end: int
    function: int
    following: list[int] = field(default_factory=list)
    order: int = -1  # in reverse postorder; -1 where nothing leads to it


def is_local_call(insn: Instruction) -> bool:
    """Whether it calls a function of the program.

    The call of a kernel function that an object names and nobody has resolved yet looks like one of itself.
    """
    return (
        insn.opcode == isa.OP_CALL
        and insn.src == CallKind.LOCAL
        and not (insn.imm == -1 and insn.reference is not None)
    )


class Graph:
    """Blocks of all functions.

    ``blocks`` are in the order of the program, ``entries`` the blocks at which functions begin, ``called``
    the functions that a call leads to and ``passed`` those whose address is taken, ``looping`` tells whether
    any jump leads back.
    """

    def __init__(self, instructions: Sequence[Instruction], starts: Sequence[int], report: Report) -> None:
        self.instructions = instructions
        slots: list[int] = []
        at = 0
        for insn in instructions:
            slots.append(at)
            at += 2 if insn.opcode == isa.LD_IMM64 else 1
        self.slots = slots
        self.size = at
        self.index_of = {slot: index for index, slot in enumerate(slots)}
        self.sound = True
        self.looping = False
        self._report = report
        self.called: dict[int, list[int]] = {}
        self.passed: dict[int, list[int]] = {}
        functions = {0, *(start for start in starts if start in self.index_of)}
        for index, insn in enumerate(instructions):
            target = None
            if is_local_call(insn):
                target, found = slots[index] + 1 + insn.imm, self.called
            elif insn.opcode == isa.LD_IMM64 and insn.src == Imm64.FUNC:
                target, found = slots[index] + 1 + insn.imm, self.passed
            if target is None:
                continue
            if target not in self.index_of:
                self._bad("call-target", index, self._outside(target, "calls"))
                continue
            functions.add(target)
            found.setdefault(self.index_of[target], []).append(index)
        #: Indices of the instructions at which functions begin.
        self.functions = sorted(self.index_of[slot] for slot in functions)
        self.jumps: dict[int, int] = {}
        self.unknown_jump = False
        self._find_jumps()
        self._build()

    def _bad(self, code: str, index: int, message: str) -> None:
        self.sound = False
        self._report(code, index, message)

    def _outside(self, target: int, what: str) -> str:
        if not 0 <= target < self.size:
            return f"this {what} slot {target}, which is outside the program's {self.size} slots"
        return f"this {what} slot {target}, the second half of the 16-byte instruction at {target - 1}"

    def _find_jumps(self) -> None:
        """Fill ``jumps``: the index that each jump leads to."""
        functions = self.functions
        for index, insn in enumerate(self.instructions):
            opcode = insn.opcode
            if opcode & 7 not in _JUMP_CLASSES or opcode in (isa.OP_CALL, isa.OP_EXIT, isa.OP_CALLX):
                continue
            if opcode == isa.OP_GOTOX:
                self.unknown_jump = True
                continue
            target = self.slots[index] + 1 + (insn.imm if opcode == isa.OP_GOTOL else insn.offset)
            to = self.index_of.get(target)
            if to is None:
                self._bad("jump-target", index, self._outside(target, "jumps to"))
            elif len(functions) > 1 and bisect.bisect_right(functions, to) != bisect.bisect_right(
                functions, index
            ):
                self._bad("jump-target", index, f"this jumps to slot {target}, which is in another function")
            else:
                self.jumps[index] = to
                if to <= index:
                    self.looping = True

    def _build(self) -> None:
        instructions, jumps = self.instructions, self.jumps
        ends = {isa.OP_EXIT, isa.OP_JA, isa.OP_GOTOL, isa.OP_GOTOX}
        leaders = {*self.functions, *jumps.values()}
        leaders.update(index + 1 for index in jumps)
        leaders.update(
            i + 1 for i, insn in enumerate(instructions) if insn.opcode in (isa.OP_EXIT, isa.OP_GOTOX)
        )
        leaders.discard(len(instructions))
        firsts = sorted(leaders)
        self.block_at = {first: number for number, first in enumerate(firsts)}
        self.blocks: list[Block] = []
        function = -1
        functions = set(self.functions)
        for number, first in enumerate(firsts):
            if first in functions:
                function += 1
            end = firsts[number + 1] if number + 1 < len(firsts) else len(instructions)
            self.blocks.append(Block(first, end, function))
        for number, block in enumerate(self.blocks):
            last = block.end - 1
            insn = instructions[last]
            if insn.opcode not in ends:
                last_of_function = (
                    number + 1 == len(self.blocks) or self.blocks[number + 1].start in functions
                )
                if last_of_function:
                    self._bad(
                        "fall-off",
                        last,
                        "the function runs past its end after this: it must end with exit or a jump",
                    )
                else:
                    block.following.append(number + 1)
            if last in jumps:
                block.following.append(self.block_at[jumps[last]])
        self.entries = [self.block_at[start] for start in self.functions]
        self._find_depth()
        if not self.unknown_jump:
            self._find_unreachable()

    def _find_unreachable(self) -> None:
        """Number the blocks in reverse postorder of each function, and report what nothing leads to."""
        waiting = [0]
        seen_functions = {0}
        counter = 0
        while waiting:
            function = waiting.pop()
            order = self._postorder(self.entries[function])
            for number in reversed(order):
                self.blocks[number].order = counter
                counter += 1
            for number in order:
                block = self.blocks[number]
                for index in range(block.start, block.end):
                    insn = self.instructions[index]
                    if is_local_call(insn) or (insn.opcode == isa.LD_IMM64 and insn.src == Imm64.FUNC):
                        to = self.index_of.get(self.slots[index] + 1 + insn.imm)
                        if to is None:
                            continue
                        callee = bisect.bisect_right(self.functions, to) - 1
                        if callee not in seen_functions:
                            seen_functions.add(callee)
                            waiting.append(callee)
        dead = False
        for block in self.blocks:
            if block.order < 0 and not dead:
                what = "nothing leads here: no jump, and the instruction before does not go on"
                if block.start in self.functions:
                    what = "this function is never called"
                self._bad("unreachable", block.start, what)
            dead = block.order < 0

    def _postorder(self, entry: int) -> list[int]:
        blocks = self.blocks
        order: list[int] = []
        seen = {entry}
        path = [(entry, 0)]
        while path:
            number, place = path.pop()
            following = blocks[number].following
            if place < len(following):
                path.append((number, place + 1))
                if following[place] not in seen:
                    seen.add(following[place])
                    path.append((following[place], 0))
            else:
                order.append(number)
        return order

    def _find_depth(self) -> None:
        """Report calls that are nested too deep, as those of a function by itself are."""
        calls: dict[int, list[tuple[int, int]]] = {}
        for callee, indices in self.called.items():
            for index in indices:
                caller = bisect.bisect_right(self.functions, index) - 1
                calls.setdefault(caller, []).append((index, bisect.bisect_left(self.functions, callee)))
        depth = {0: 0}
        waiting = [0]
        while waiting:
            caller = waiting.pop()
            for index, callee in calls.get(caller, ()):
                if depth[caller] + 1 >= MAX_FRAMES:
                    self._report(
                        "call-depth", index, f"calls are nested more than {MAX_FRAMES} deep here, or go round"
                    )
                    return
                if depth.get(callee, -1) < depth[caller] + 1:
                    depth[callee] = depth[caller] + 1
                    waiting.append(callee)

    def endless(self) -> set[int]:
        """The blocks from which no exit can be reached.

        A call of a kernel function counts as a possible exit, because some do not come back.
        """
        before: dict[int, list[int]] = {}
        waiting: list[int] = []
        for number, block in enumerate(self.blocks):
            for following in block.following:
                before.setdefault(following, []).append(number)
            last = self.instructions[block.end - 1]
            leaves = last.opcode in (isa.OP_EXIT, isa.OP_GOTOX) or any(
                insn.opcode == isa.OP_CALL and insn.src != CallKind.HELPER and not is_local_call(insn)
                for insn in self.instructions[block.start : block.end]
            )
            if leaves:
                waiting.append(number)
        found = set(waiting)
        while waiting:
            for number in before.get(waiting.pop(), ()):
                if number not in found:
                    found.add(number)
                    waiting.append(number)
        return {
            number for number, block in enumerate(self.blocks) if number not in found and block.order >= 0
        }
