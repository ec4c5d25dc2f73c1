# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Abstract interpretation: what is known of registers and stack at each instruction, and what can't be right.

The graph is walked twice. One walk follows every way and joins the states where ways meet: what it finds
wrong is a warning, because the verifier may know that one of the ways can't be taken. The other follows a way
only where some input certainly takes it, for then a sound verifier has to follow it too: what it finds is an
error. Whether a branch can go both ways is certain for a fresh number (read from the context, a packet or a
map, and compared once) and for a pointer that may be null.

What can be known is in `pybpfasm.check.values`.
"""

from __future__ import annotations

import bisect
import heapq
from typing import TYPE_CHECKING

from pybpfasm import isa
from pybpfasm.check.base import SURE_LOOKUPS, Report
from pybpfasm.check.calls import ACQUIRES, Calls
from pybpfasm.check.graph import Block, Graph, is_local_call
from pybpfasm.check.memory import Memory
from pybpfasm.check.rights import result_range, type_name
from pybpfasm.check.stacks import stack_sum
from pybpfasm.check.values import (
    ALL_WRITTEN,
    ANY,
    CONST,
    CTX,
    END,
    FIXED,
    FP,
    FREE,
    JEQ,
    JNE,
    MAP,
    MAYBE,
    MIXED,
    NUM,
    NUMBER,
    NUMBERS,
    PKT,
    SIZES,
    SOCK,
    SWAPPED,
    U32,
    U64,
    UNKNOWN,
    UNSET,
    VAL,
    WORDS,
    State,
    Value,
    both_ways,
    compare,
    extended,
    fold,
    in_place,
    low32,
    no_arithmetic,
    signed,
)
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Jump
from pybpfasm.kernel.enums import Helper
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.program import ProgramSpec

__all__ = ["Walk"]


class Walk(Memory, Calls):
    """One walk over the graph of a program."""

    def __init__(self, spec: ProgramSpec, graph: Graph, report: Report, certain: bool) -> None:
        super().__init__(spec, graph, report, certain)
        self.states: list[State | None] = [None] * len(graph.blocks)
        self.visits = [0] * len(graph.blocks)
        self._waiting: list[tuple[int, int]] = []
        self._queued: set[int] = set()
        self._results = result_range(spec.type, spec.attach_type)
        contexts = {f.slot: f for f in spec.functions}
        self._globals: dict[int, list[Value]] = {}  # what is known of arguments behind the context
        for place, index in enumerate(graph.functions):
            function = contexts.get(graph.slots[index])
            if function is not None and function.context is not None and place:
                # No instruction is the origin of a pointer, which may be null.
                self._globals[place] = [
                    (VAL, -register, True, None, None) if one in function.pointers else NUMBER
                    for register, one in enumerate(function.arguments, 2)
                ]

    def run(self) -> None:
        """Walk until nothing changes any more."""
        start: list[Value] = [(UNSET, -1)] * 11
        start[1] = (CTX, 0)
        start[10] = (FP, 0)
        self._arrive(self.graph.entries[0], State(start, {}, 0, {}), owned=True)
        blocks = self.graph.blocks
        waiting, queued = self._waiting, self._queued
        while waiting:
            number = heapq.heappop(waiting)[1]
            queued.discard(number)
            state = self.states[number]
            assert state is not None
            self.visits[number] += 1
            self._block(blocks[number], state.copy())
        if self.certain:
            together = stack_sum(self.spec, self.graph, self._deepest)
            if together is not None:
                self._fault("stack-depth", *together)
            return  # from Linux 6.3 on, whoever has CAP_PERFMON may read what was never written
        for index, message in self._never_written.items():
            if index not in self._written_after_all:
                self._report("stack-unset", index, message, ())
        for index, message in self._half_written.items():
            self._report("stack-unset", index, message, ())

    def reached(self, number: int) -> bool:
        """Whether the walk has come to a block."""
        return self.states[number] is not None

    def _arrive(self, number: int, state: State, owned: bool = False) -> None:
        known = self.states[number]
        if known is None:
            self.states[number] = state if owned else state.copy()
        else:
            if self.visits[number] > 60:  # never seen; the number of steps stays in proportion in any case
                state = State([UNKNOWN] * 10 + [(FP, 0)], {}, ALL_WRITTEN, {})
            if not known.join(state, self.certain):
                return
        if number not in self._queued:
            self._queued.add(number)
            heapq.heappush(self._waiting, (self.graph.blocks[number].order, number))

    def _block(self, block: Block, state: State) -> None:
        self._function = block.function
        instructions = self.graph.instructions
        index = block.start
        last = block.end - 1
        regs = state.regs
        while index <= last:
            insn = instructions[index]
            opcode = insn.opcode
            cls = opcode & 7
            if cls == isa.ALU64 or cls == isa.ALU:
                self._alu(index, insn, cls == isa.ALU64, state)
            elif cls == isa.LDX:
                base = self._read(index, insn.src, regs)
                self._load(index, insn, base, insn.src, SIZES[opcode & 0x18], state)
            elif cls == isa.ST or cls == isa.STX:
                self._store(index, insn, state)
            elif cls == isa.LD:
                self._ld(index, insn, state)
            elif opcode == isa.OP_CALL:
                if not is_local_call(insn):
                    self._call(index, insn, state)
                elif not self._local(index, insn, state):
                    return
            elif opcode == isa.OP_EXIT:
                self._exit(index, block, state)
                return
            elif opcode in (isa.OP_JA, isa.OP_GOTOL, isa.OP_MAY_GOTO):
                pass
            elif index == last:
                self._branch(index, insn, block, state)
                return
            index += 1
        for following in block.following:
            self._arrive(following, state)

    def _alu(self, index: int, insn: Instruction, wide: bool, state: State) -> None:
        regs = state.regs
        opcode, dst = insn.opcode, insn.dst
        op = opcode & 0xF0
        by_register = opcode & isa.X and op != Alu.END
        if op == Alu.MOV:
            if by_register:
                value = self._read(index, insn.src, regs)
                if insn.offset:
                    value = extended(value, insn.offset) if insn.offset != 1 else UNKNOWN
                if not wide:
                    value = low32(value)
            else:
                value = (CONST, insn.imm & (U64 if wide else U32))
                if insn.reference is not None:
                    value = NUMBER  # what only the kernel's BTF will tell, at load
        else:
            left = self._read(index, dst, regs)
            if op == Alu.NEG or op == Alu.END:
                value = in_place(insn, op, wide, left)
            else:
                right: Value = (
                    self._read(index, insn.src, regs)
                    if by_register
                    else (CONST, insn.imm & (U64 if wide else U32))
                )
                if not by_register and op in (Alu.DIV, Alu.MOD) and insn.imm == 0:
                    self._fault("division", index, "this divides by the constant 0")
                elif not by_register and op in (Alu.LSH, Alu.RSH, Alu.ARSH):
                    bits = 64 if wide else 32
                    if not 0 <= insn.imm < bits:
                        self._fault(
                            "shift", index, f"this shifts by {insn.imm} bits: 0 to {bits - 1} are possible"
                        )
                if not by_register and insn.reference is not None:
                    right = NUMBER
                value = self._binary(index, op, wide, left, right, dst)
        if dst == isa.FRAME_POINTER:
            self._fault("frame-pointer", index, "r10 is the frame pointer and can't be changed")
            return
        regs[dst] = value

    def _binary(self, index: int, op: int, wide: bool, left: Value, right: Value, dst: int) -> Value:
        kl, kr = left[0], right[0]
        if kl == CONST and kr == CONST:
            return fold(op, wide, left[1], right[1])
        if kl in (ANY, MIXED) or kr in (ANY, MIXED):
            return UNKNOWN
        if kl in NUMBERS and kr in NUMBERS:
            if kl == FREE and kr == CONST and left[2] == 0 and left[3] & (left[3] + 1) == 0:
                # Each number below 2^n occurs; so does each part that a low mask or a shift leaves.
                if op == Alu.AND and right[1] & (right[1] + 1) == 0 and (wide or left[3] <= U32):
                    return (FREE, left[1], 0, left[3] & right[1])
                if op == Alu.RSH and right[1] < 64 and (wide or left[3] <= U32):
                    return (FREE, left[1], 0, left[3] >> right[1])
            return NUMBER
        problem = no_arithmetic(op, wide, kl, kr)
        if problem:
            self._fault("pointer-arithmetic", index, f"r{dst}: {problem}")
            return UNKNOWN
        fixed = kl if kl in FIXED else kr
        known = (CONST, 0) in (left, right) and fixed == MAP
        if fixed in FIXED and wide and (kl in NUMBERS or kr in NUMBERS) and not known:
            self._fault(
                "pointer-arithmetic",
                index,
                f"r{dst}: nothing can be added to or subtracted from {WORDS[fixed]}",
            )
            return UNKNOWN
        if kl in (VAL, SOCK) and left[2] and wide and op in (Alu.ADD, Alu.SUB):
            self._null(index, dst, left, "is computed with")
        if wide and kr == CONST and op in (Alu.ADD, Alu.SUB):
            delta = signed(right[1])
            if op == Alu.SUB:
                delta = -delta
            if abs(delta) < 1 << 29:
                if kl in (CTX, FP):
                    return (kl, left[1] + delta)
                if kl == PKT:
                    return (PKT, left[1] + delta, left[2], left[3])
                if kl == VAL and left[4] is not None and not left[2]:
                    return (VAL, left[1], False, left[3], left[4] + delta)
        return UNKNOWN

    def _local(self, index: int, insn: Instruction, state: State) -> bool:
        """Whether there is a function where a call leads to."""
        graph = self.graph
        to = graph.index_of.get(graph.slots[index] + 1 + insn.imm)
        if to is None:
            return False
        place = bisect.bisect_left(graph.functions, to)
        entry: list[Value] = [(UNSET, -1)] * 11
        if place in self._globals:
            entry[1] = (CTX, 0)
            for register, known in enumerate(self._globals[place], 2):
                entry[register] = known
        else:
            for register in range(1, 6):
                value = state.regs[register]
                # Of the caller's stack and of what is linked with its registers nothing is tracked in here.
                if value[0] in (FP, VAL, SOCK, PKT, FREE, MIXED):
                    value = NUMBER if value[0] == FREE else UNKNOWN
                entry[register] = value
        entry[10] = (FP, 0)
        self._arrive(graph.entries[place], State(entry, {}, 0, {}), owned=True)
        self._forget(state)
        state.refs.clear()
        self._clobber(index, state, UNKNOWN)
        return True

    def _exit(self, index: int, block: Block, state: State) -> None:
        if block.function == 0 or block.function in self._globals:
            value = state.regs[0]
            if value[0] <= MAYBE:
                self._unset(index, 0, value, "the result and read")
        value = state.regs[0]
        if block.function and value[0] == FP:
            self._fault(
                "stack-returned", index, "a function returns the address of its stack, which is gone then"
            )
        if block.function == 0 and self._results is not None and value[0] in (CONST, FREE):
            low, high = self._results
            ends = (signed(value[1]),) if value[0] == CONST else value[2:4]
            if min(ends) < low or max(ends) > high:
                allowed = f"{low} to {high}" if low < high else f"{low} only"
                found = str(ends[0]) if value[0] == CONST else "any number"
                self._fault(
                    "result", index, f"{type_name(self.spec.type)} programs return {allowed}; this is {found}"
                )
        if block.function == 0:
            for origin in state.refs.values():
                helper = self.graph.instructions[origin].imm
                release = ACQUIRES.get(Helper(helper), "sk_release")
                self._fault(
                    "reference-leak",
                    index,
                    f"the program can end here with a reference that it has not given back with {release}",
                    (f"{Helper(helper).name} took it at", origin),
                )

    def _branch(self, index: int, insn: Instruction, block: Block, state: State) -> None:
        regs = state.regs
        opcode = insn.opcode
        wide = opcode & 7 == isa.JMP
        op = opcode & 0xF0
        left = self._read(index, insn.dst, regs)
        by_register = bool(opcode & isa.X)
        if by_register:
            right = self._read(index, insn.src, regs)
        else:
            right = (CONST, insn.imm & (U64 if wide else U32))
        if len(block.following) < 2:
            for following in block.following:
                self._arrive(following, state)
            return
        behind, target = block.following
        kl, kr = left[0], right[0]
        if kl == CONST and kr == CONST:
            taken = compare(op, left[1], right[1], 64 if wide else 32)
            self._arrive(target if taken else behind, state)
            return
        if wide and op in (JEQ, JNE) and kr == CONST and right[1] == 0 and kl in (VAL, SOCK):
            self._null_test(left, state, *((target, behind) if op == JEQ else (behind, target)))
            return
        if wide and op in (JEQ, JNE) and kl == MIXED and not self.certain:
            regs[insn.dst] = UNKNOWN  # most likely a null check
        if wide and {kl, kr} == {PKT, END}:
            self._bounds_test(
                op if kl == PKT else SWAPPED.get(Jump(op), 0),
                left if kl == PKT else right,
                state,
                behind,
                target,
            )
            return
        both = not self.certain or both_ways(op, wide, left, right)
        for value in (left, right):
            if value[0] == FREE:
                for register, other in enumerate(regs):
                    if other[0] == FREE and other[1] == value[1]:
                        regs[register] = NUMBER
        if not both:
            return
        self._arrive(behind, state)
        if wide and op == JEQ and kl in (FREE, NUM) and kr == CONST:
            regs[insn.dst] = right
        self._arrive(target, state)

    def _null_test(self, value: Value, state: State, null: int, other: int) -> None:
        origin = value[1]
        if not value[2]:
            self._arrive(other, state)
            return
        spec = value[3] if value[0] == VAL else None
        sure = isinstance(spec, MapSpec) and spec.type in SURE_LOOKUPS
        if not (self.certain and sure):
            without = state.copy()
            for register, one in enumerate(without.regs):
                if one[0] == value[0] and one[1] == origin and one[2]:
                    without.regs[register] = (CONST, 0)
            for offset, one in without.stack.items():
                if one[0] == value[0] and one[1] == origin and one[2]:
                    without.stack[offset] = (CONST, 0)
            without.refs.pop(origin, None)
            self._arrive(null, without, owned=True)
        for register, one in enumerate(state.regs):
            if one[0] == value[0] and one[1] == origin:
                state.regs[register] = (one[0], origin, False, *one[3:])
        for offset, one in state.stack.items():
            if one[0] == value[0] and one[1] == origin:
                state.stack[offset] = (one[0], origin, False, *one[3:])
        self._arrive(other, state)

    def _bounds_test(self, op: int, packet: Value, state: State, behind: int, target: int) -> None:
        """A comparison *packet* ``op`` end, jumping to *target* where it holds."""
        inside, outside, size = -1, -1, packet[1]
        if op in (Jump.JGT, Jump.JGE):
            inside, outside = behind, target
            size += op == Jump.JGE
        elif op in (Jump.JLE, Jump.JLT):
            inside, outside = target, behind
            size += op == Jump.JLT
        if inside < 0:
            if not self.certain:
                self._arrive(behind, state)
                self._arrive(target, state)
            return
        if self.certain and (packet[3] or packet[2] or packet[1] <= 0):
            return
        short = state.copy()
        self._check(short, 0)
        self._arrive(outside, short, owned=True)
        self._check(state, size)
        self._arrive(inside, state)

    @staticmethod
    def _check(state: State, size: int) -> None:
        """Note that *size* bytes are there; with 0, that a comparison has told something else."""
        for register, value in enumerate(state.regs):
            if value[0] == PKT:
                state.regs[register] = (PKT, value[1], max(value[2], size), value[3] or not size)
        for offset, value in state.stack.items():
            if value[0] == PKT:
                state.stack[offset] = (PKT, value[1], max(value[2], size), value[3] or not size)
