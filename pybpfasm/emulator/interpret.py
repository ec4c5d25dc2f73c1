# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The reference engine: one instruction after the other, as RFC 9669 describes them.

It is what tracing, stepping and coverage use, and what `pybpfasm.emulator.translate` is tested against.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from pybpfasm import isa
from pybpfasm.emulator.alu import U32, U64, atomic, compute, holds, signed, swap
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.kfuncs import returns_nothing
from pybpfasm.emulator.memory import STACK_SIZE, Region, Stack
from pybpfasm.emulator.run import MAX_LOOPS, Step
from pybpfasm.isa import Alu, Atomic, CallKind

if TYPE_CHECKING:
    from pybpfasm.emulator.run import Run
    from pybpfasm.instruction import Instruction

TAIL_CALL = 12  # Helper.tail_call


class _Function(Protocol):
    def __call__(
        self,
        run: Run,
        stack: Stack,
        r1: int | None,
        r2: int | None,
        r3: int | None,
        r4: int | None,
        r5: int | None,
    ) -> int: ...


@lru_cache(maxsize=256)
def function(entry: int) -> _Function:
    """What runs the function at slot *entry* of the run's program."""

    def call(
        run: Run,
        stack: Stack,
        r1: int | None,
        r2: int | None,
        r3: int | None,
        r4: int | None,
        r5: int | None,
    ) -> int:
        start = stack.start + STACK_SIZE
        return _Frame(run, [None, r1, r2, r3, r4, r5, None, None, None, None, start]).run_from(entry)

    return call


class _Frame:
    """A function's registers, while it is interpreted."""

    __slots__ = ("loops", "program", "r", "run", "slot")

    def __init__(self, run: Run, registers: list[int | None]) -> None:
        self.run = run
        self.program = run.program
        self.r = registers
        self.slot = 0
        self.loops = 0

    def run_from(self, entry: int) -> int:
        """Run until ``exit``; returns r0."""
        run, program = self.run, self.program
        instructions = program.instructions
        self.slot = entry
        try:
            while True:
                slot = self.slot
                insn = instructions.get(slot)
                if insn is None:
                    raise Violation("the program runs past its end")
                run.left -= 1
                if run.left < 0:
                    run.exhausted()
                if program.coverage:
                    program.covered.add(slot)
                self.slot = slot + insn.slots
                execute = self._execute if run.trace is None else self._traced
                if execute(insn, slot):
                    return self.get(0)
        except Violation as error:
            raise run.fault(str(error), slot, tuple(self.r)) from None

    def _traced(self, insn: Instruction, slot: int) -> bool:
        run = self.run
        before = list(self.r)
        assert run.trace is not None
        at = len(run.trace)
        depth = run.depth - 1
        step = Step(self.program, slot, depth, {}, {})
        run.trace.append(step)
        finished = self._execute(insn, slot)
        assert run.trace[at] is step
        for i, (old, new) in enumerate(zip(before, self.r, strict=True)):
            if old != new and not (new is None and 1 <= i <= 5):
                step.changed[i] = new
                step.shown[i] = run.describe(new)
        return finished

    def get(self, register: int) -> int:
        """A register that has been set; raises `Violation`."""
        value = self.r[register]
        if value is None:
            raise Violation(f"r{register} is read and was never set")
        return value

    def _region(self, address: int, size: int, what: str) -> Region:
        region = self.run.regions.get(address >> 32)
        if region is None:
            raise self.run.no_region(address, size, what)
        return region

    def _execute(self, insn: Instruction, slot: int) -> bool:
        """One instruction; true where it leaves the function."""
        cls = insn.opcode & 7
        if cls in (isa.ALU, isa.ALU64):
            self._alu(insn, 64 if cls == isa.ALU64 else 32)
        elif cls in (isa.JMP, isa.JMP32):
            return self._jump(insn, slot, 64 if cls == isa.JMP else 32)
        elif cls == isa.LDX:
            self._load(insn)
        elif cls == isa.ST:
            size = isa.SIZE_OF[insn.opcode & 0x18]
            address = self.get(insn.dst) + insn.offset
            self._region(address, size, "write").store(address, size, insn.imm & U64)
        elif cls == isa.STX:
            size = isa.SIZE_OF[insn.opcode & 0x18]
            if insn.opcode & 0xE0 == isa.ATOMIC:
                self._atomic(insn, size)
            else:
                value = self.get(insn.src)
                address = self.get(insn.dst) + insn.offset
                self._region(address, size, "write").store(address, size, value)
        elif insn.wide:
            self.r[insn.dst] = self.program.addresses[slot]
        else:
            return self._legacy(insn)
        return False

    def _alu(self, insn: Instruction, bits: int) -> None:
        op = insn.opcode & 0xF0
        if op == Alu.END:
            value = self.get(insn.dst)
            width = insn.imm
            if insn.opcode & 7 == isa.ALU64:
                self.r[insn.dst] = swap(value, width)
            else:
                wanted = "big" if insn.opcode & isa.X else "little"
                same = wanted == self.run.emulator.byteorder
                self.r[insn.dst] = value & ((1 << width) - 1) if same else swap(value, width)
            return
        if op == Alu.MOV and insn.opcode & isa.X and insn.offset == 1:
            no_spaces()
        dst = 0 if op == Alu.MOV else self.get(insn.dst)
        src = self.get(insn.src) if insn.opcode & isa.X else insn.imm
        self.r[insn.dst] = compute(op, dst, src, insn.offset, bits)

    def _load(self, insn: Instruction) -> None:
        size = isa.SIZE_OF[insn.opcode & 0x18]
        address = self.get(insn.src) + insn.offset
        value = self._region(address, size, "read").load(address, size)
        if insn.opcode & 0xE0 == isa.MEMSX:
            value = signed(value, size * 8) & U64
        self.r[insn.dst] = value

    def _atomic(self, insn: Instruction, size: int) -> None:
        op = insn.imm
        if op == Atomic.LOAD_ACQ:
            address = self.get(insn.src) + insn.offset
            self.r[insn.dst] = locked(self.run, address, size).load(address, size)
            return
        value = self.get(insn.src)
        address = self.get(insn.dst) + insn.offset
        region = locked(self.run, address, size)
        if op == Atomic.STORE_REL:
            region.store(address, size, value)
            return
        r0 = self.get(0) if op == Atomic.CMPXCHG else 0
        old = region.load(address, size)
        region.store(address, size, atomic(op, old, value, r0, size * 8))
        if op == Atomic.CMPXCHG:
            self.r[0] = old
        elif op & 1:  # BPF_FETCH
            self.r[insn.src] = old

    def _jump(self, insn: Instruction, slot: int, bits: int) -> bool:
        opcode = insn.opcode
        if opcode == isa.OP_EXIT:
            self.get(0)
            return True
        if opcode == isa.OP_CALL:
            return self._call(insn, slot)
        if opcode == isa.OP_CALLX:
            r = self.r
            r[0] = call_register(self.run, self.get(insn.dst), r[1], r[2], r[3], r[4], r[5])
            r[1] = r[2] = r[3] = r[4] = r[5] = None
            return False
        if opcode == isa.OP_JA:
            self.slot += insn.offset
            return False
        if opcode == isa.OP_GOTOL:
            self.slot += insn.imm
            return False
        if opcode == isa.OP_MAY_GOTO:
            if self.loops >= MAX_LOOPS:
                self.slot += insn.offset
            self.loops += 1
            return False
        a = self.get(insn.dst)
        b = self.get(insn.src) if opcode & isa.X else insn.imm
        if holds(opcode & 0xF0, a, b, bits):
            self.slot += insn.offset
        if self.program.coverage:
            self.program.taken.add((slot, self.slot))
        return False

    def _call(self, insn: Instruction, slot: int) -> bool:
        run, r = self.run, self.r
        nothing = False
        if insn.src == CallKind.LOCAL:
            result = run.enter(slot + 1 + insn.imm, r[1], r[2], r[3], r[4], r[5])
        else:
            nothing = returns_nothing(insn)
            if insn.src == CallKind.HELPER and insn.imm == TAIL_CALL:
                target = run.emulator.tail_target(run, self.get(1), self.get(2), self.get(3))
                if target is not None:
                    self.r[0] = run.tail_call(target)
                    return True
                result = 0
            else:
                model = run.emulator.model_of(insn.src, insn.imm)
                arguments = [self.get(i + 1) for i in range(model.arity)]
                result = model.function(run, *arguments) & U64
        r[0] = None if nothing else result
        r[1] = r[2] = r[3] = r[4] = r[5] = None
        return False

    def _legacy(self, insn: Instruction) -> bool:
        """LD_ABS and LD_IND: r0 from the packet in network order; outside it, the program returns 0."""
        size = isa.SIZE_OF[insn.opcode & 0x18]
        offset = insn.imm
        if insn.opcode & 0xE0 == isa.IND:
            offset = signed((self.get(insn.src) + offset) & U32, 32)
        value = self.run.emulator.legacy_load(self.run, self.get(6), offset, size)
        self.r[1] = self.r[2] = self.r[3] = self.r[4] = self.r[5] = None
        if value is None:
            self.r[0] = 0
            return True
        self.r[0] = value
        return False


#: Where the number of the current slot is a local variable.
STEPS: Final = _Frame.run_from.__code__


def no_spaces() -> NoReturn:
    """Refuse a cast between address spaces."""
    raise Violation("the emulator has no address spaces")


def call_register(run: Run, number: int, *registers: int | None) -> int:
    """``callx``: call the helper whose number a register holds, as userspace machines have it."""
    model = run.emulator.model_of(CallKind.HELPER, number)
    arguments = []
    for index in range(model.arity):
        value = registers[index]
        if value is None:
            raise Violation(f"r{index + 1} is read and was never set")
        arguments.append(value)
    return model.function(run, *arguments) & U64


def locked(run: Run, address: int, size: int) -> Region:
    """The region of an atomic operation; raises `Violation` where there may be none."""
    region = run.regions.get(address >> 32)
    if region is None:
        raise run.no_region(address, size, "atomic access")
    if not region.atomic:
        raise Violation(f"atomic operations on {region.kind} are not allowed")
    if (address - region.start) % size:
        raise Violation(
            f"an atomic operation on {size} bytes at {region.describe(address - region.start)} is not aligned"
        )
    return region
