# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""One execution of a program: its memory, what it holds, and what helpers get to work with."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pybpfasm.emulator.faults import EmulatorError, EmulatorFault, Violation
from pybpfasm.emulator.maps import Map
from pybpfasm.emulator.memory import STACK_SIZE, U64, Gone, Opaque, Region, Stack

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from pybpfasm.emulator.context import Context, SocketRegion
    from pybpfasm.emulator.emulator import Emulator
    from pybpfasm.emulator.program import Program

__all__ = ["DEFAULT_BUDGET", "Result", "Run", "Step"]

# Instructions that a run may execute. The verifier looks at a million at most, loops by helpers aside.
DEFAULT_BUDGET: Final = 20_000_000
MAX_FRAMES: Final = 8  # MAX_CALL_FRAMES, include/linux/bpf_verifier.h
MAX_TAIL_CALLS: Final = 33  # MAX_TAIL_CALL_CNT, include/linux/bpf.h
MAX_LOOPS: Final = 8 * 1024 * 1024  # BPF_MAX_LOOPS, include/linux/bpf.h

M = TypeVar("M", bound=Map)
C = TypeVar("C", bound="Context")


@dataclass(frozen=True, slots=True)
class Step:
    """One executed instruction: its slot, how deep in calls, and the registers that it changed."""

    program: Program
    slot: int
    depth: int
    changed: dict[int, int | None]
    shown: dict[int, str]

    def __str__(self) -> str:
        text = self.program.text(self.slot)
        after = "  ".join(f"r{i}={value}" for i, value in self.shown.items())
        return f"{'  ' * self.depth}{self.slot:5}: {text:<44} {after}".rstrip()


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What a run came to.

    ``r0`` is the register; ``value`` its low 32 bits, the verdict, as the kernel's test run reports them, and
    ``action`` the same as a signed number. ``packet`` is what the packet's bytes are afterwards, ``b""``
    where there is none.
    """

    r0: int
    instructions: int
    context: Context | None
    packet: bytes
    trace: tuple[Step, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        """Short enough for a failing test's report."""
        packet = f", packet of {len(self.packet)} bytes" if self.packet else ""
        return f"<Result {self.action}, r0={self.r0:#x}, {self.instructions} instructions{packet}>"

    @property
    def value(self) -> int:
        """The low 32 bits of r0."""
        return self.r0 & 0xFFFFFFFF

    @property
    def action(self) -> int:
        """The low 32 bits of r0, signed."""
        value = self.r0 & 0xFFFFFFFF
        return value - (1 << 32) if value >> 31 else value

    def lines(self) -> str:
        """The trace: every executed instruction below the Python line that wrote it."""
        return lines(self.trace)


def lines(trace: Iterable[Step]) -> str:
    """Every executed instruction below the Python line that wrote it, with the registers that it changed."""
    out: list[str] = []
    last = ""
    for step in trace:
        location = step.program.spec.location(step.slot)
        where = "" if location is None else f"; {location.text} @ {location}"
        if where != last:
            out.append(where)
            last = where
        out.append(str(step))
    return "\n".join(out)


def _bytes(size: int) -> str:
    return "1 byte" if size == 1 else f"{size} bytes"


class Run:
    """A program while it runs; the first argument of every helper's model."""

    def __init__(
        self, program: Program, context: Context | None, *, budget: int, trace: list[Step] | None
    ) -> None:
        self.program = program
        self.emulator: Emulator = program.emulator
        self.context = context
        self.budget = budget
        self.left = budget
        self.trace = trace
        self.depth = 0
        self.tail_calls = 0
        self.regions: dict[int, Region] = dict(program.regions)
        self.context_region: Region | None = None
        self.packet_region: Region | None = None
        self.held: dict[int, str] = {}
        self._held_at: dict[int, tuple[Program, int] | None] = {}  # which call gave it
        self.result: dict[str, Any] = {}
        self.sockets: dict[tuple[int, bool], SocketRegion] = {}
        self.dynptrs: dict[int, Any] = {}  # and iterators, by the address of their place on the stack
        self.windows: dict[int, list[Region]] = {}  # into records of ring buffers, by their id

    # What models of helpers use.
    def pointer(self, region: Region, offset: int = 0) -> int:
        """A pointer to byte *offset* of *region*."""
        if not region.start:
            region.start = self.emulator.numbers.start()
        self.regions[region.start >> 32] = region
        return region.start + offset

    def region(self, address: int, what: str = "the argument") -> tuple[Region, int]:
        """The region that *address* points into, and the offset in it; raises `Violation` for a scalar."""
        region = self.regions.get(address >> 32)
        if region is None:
            raise Violation(f"{what} is {self.describe(address)}, not a pointer")
        return region, address - region.start

    def read(self, address: int, size: int, what: str = "the argument") -> bytes:
        """*size* bytes that *address* points to."""
        if size == 0:
            return b""
        region, at = self.region(address, what)
        return region.read(at, size)

    def room(self, address: int, size: int, what: str = "the argument") -> None:
        """Refuse a buffer that has not *size* bytes, before as many are made for it."""
        if size:
            region, at = self.region(address, what)
            if not 0 <= at <= region.size - size:
                region.refuse(at, size, "a write")

    def write(self, address: int, data: bytes, what: str = "the argument") -> None:
        """Store *data* where *address* points to."""
        if data:
            region, at = self.region(address, what)
            region.write(at, data)

    def map(self, address: int, kind: type[M]) -> M:
        """The map whose address a helper was given."""
        region = self.regions.get(address >> 32)
        found = region.object if isinstance(region, Opaque) else None
        if not isinstance(found, Map):
            raise Violation(f"the first argument is {self.describe(address)}, not a map")
        if not isinstance(found, kind):
            raise Violation(f"this helper takes no {found.type.name} map like {found.name}")
        return found

    def is_context(self, address: int, kind: type[C]) -> C:
        """The context, of *kind*, which *address* must point to."""
        region = self.context_region
        if region is None or address != region.start:
            raise Violation(f"the argument is {self.describe(address)}, not the context")
        if not isinstance(self.context, kind):
            raise Violation(f"a {self.program.spec.type.name} program may not call this helper")
        return self.context

    def function(self, address: int) -> int:
        """The slot of the function that *address* is of."""
        region = self.regions.get(address >> 32)
        found = region.object if isinstance(region, Opaque) else None
        if not isinstance(found, int):
            raise Violation(f"the argument is {self.describe(address)}, not a function")
        return found

    def call(self, slot: int, *arguments: int) -> int:
        """Call the program's function at *slot*; for helpers that take callbacks."""
        padded: tuple[int | None, ...] = (*arguments, None, None, None, None, None)
        return self.enter(slot, *padded[:5])

    def void(self, region: Region, why: str) -> None:
        """Make every pointer to *region* unusable; *why* is told to the program that uses one."""
        if region.start:
            self.regions[region.start >> 32] = Gone(region, why)

    def hold(self, address: int, what: str) -> None:
        """Note that the program must give *address* back before it ends."""
        self.held[address] = what
        self._held_at[address] = self._here()

    def _here(self) -> tuple[Program, int] | None:
        """The slot that calls a helper, in the program that runs now."""
        from pybpfasm.emulator.interpret import STEPS

        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame.f_code is STEPS:
                return self.program, frame.f_locals["slot"]
            if frame.f_code.co_filename.startswith("<bpf "):
                return self.program, self.program.slot_of_line(frame.f_code, frame.f_lineno)
            frame = frame.f_back
        return None

    def give_back(self, address: int, what: str) -> None:
        """The program gives *address* back; raises `Violation` where it does not hold it."""
        if self.held.pop(address, None) is None:
            raise Violation(f"{self.describe(address)} is no {what} that the program holds")

    def describe(self, value: int | None) -> str:
        """A register's value, for people."""
        if value is None:
            return "unset"
        region = self.regions.get(value >> 32)
        if region is not None:
            return region.describe(value - region.start)
        if value > 0xFFFFFFFFFFFF0000:
            return str(value - (1 << 64))
        return str(value) if value < 4096 else f"{value:#x}"

    # What the engines use.
    def enter(
        self, slot: int, r1: int | None, r2: int | None, r3: int | None, r4: int | None, r5: int | None
    ) -> int:
        """Run a function in a frame of its own."""
        if self.depth >= MAX_FRAMES:
            raise Violation(
                f"this is call number {MAX_FRAMES} in a row: the kernel allows {MAX_FRAMES} frames"
            )
        stack = Stack(self.emulator.byteorder)
        start = stack.start = self.emulator.numbers.start()
        self.regions[start >> 32] = stack
        self.depth += 1
        try:
            return self.program.engine(slot)(self, stack, r1, r2, r3, r4, r5)
        finally:
            self.depth -= 1
            self.regions[start >> 32] = Gone(
                stack, "this pointer is to the stack frame of a function that has returned"
            )

    def start(self, *arguments: int) -> int:
        """Run the program from its beginning; returns r0.

        r1 and up hold *arguments*, or r1 the context where there are none.
        """
        if self.context is not None:
            arguments = (self.context.enter(self),)
        padded: tuple[int | None, ...] = (*arguments, None, None, None, None, None)
        try:
            r0 = self.enter(0, *padded[:5])
        except (Violation, KeyError) as error:
            raise self.explain(error) from None
        if self.held:
            address, what = next(iter(self.held.items()))
            at = ""
            if (here := self._held_at[address]) is not None:
                program, slot = here
                location = program.spec.location(slot)
                at = f"slot {slot}: " if location is None else f"{location}: "
            name = self.program.spec.name
            raise EmulatorError(f"{at}{name} ends and still holds {what}: give it back first")
        return r0

    def tail_call(self, target: Program) -> int:
        """Go on in *target*, with the same context; returns its r0."""
        before = self.program
        self.program = target
        self.tail_calls += 1
        self.regions.update(target.regions)
        self.depth -= 1
        try:
            address = None if self.context_region is None else self.context_region.start
            return self.enter(0, address, None, None, None, None)
        except (Violation, KeyError) as error:
            raise self.explain(error) from None
        finally:
            self.depth += 1
            self.program = before

    def exhausted(self) -> None:
        """The budget is used up."""
        raise Violation(
            f"the program did not end within {self.budget} instructions: raise the budget if that is right"
        )

    def no_region(self, address: int, size: int, what: str) -> Violation:
        """The error of an access through what is no pointer."""
        access = f"{'an' if what[0] == 'a' else 'a'} {what} of {_bytes(size)}"
        if -65536 < address < 65536:
            hint = ": is it a NULL pointer?" if -4096 < address < 4096 else ""
            return Violation(f"{access} through the scalar {address}{hint}")
        return Violation(f"{access} through the scalar {address & U64:#x}, which is no pointer")

    def fault(self, reason: str, slot: int, registers: tuple[int | None, ...]) -> EmulatorFault:
        """The error that people see."""
        spec = self.program.spec
        return EmulatorFault(
            reason,
            spec.name,
            slot,
            self.program.text(slot),
            spec.location(slot),
            registers,
            tuple(self.describe(value) for value in registers),
        )

    def explain(self, error: Violation | KeyError) -> BaseException:
        """The `EmulatorFault` of an error in translated code, or *error* itself where it is not one."""
        trace: TracebackType | None = error.__traceback__
        found = None
        last = None
        while trace is not None:
            last = trace
            if trace.tb_frame.f_code.co_filename.startswith("<bpf "):
                found = trace
            trace = trace.tb_next
        if found is None:
            return EmulatorError(str(error)) if isinstance(error, Violation) else error
        local = found.tb_frame.f_locals
        slot = self.program.slot_of_line(found.tb_frame.f_code, found.tb_lineno)
        stack: Stack = local["stack"]
        registers = (*(local.get(f"r{i}") for i in range(10)), stack.start + STACK_SIZE)
        if isinstance(error, KeyError):
            if found is not last:
                return error
            insn = self.program.at(slot)
            load = insn.opcode & 7 == 1
            base = registers[insn.src if load else insn.dst]
            what = "read" if load else "write"
            size = {0: 4, 0x08: 2, 0x10: 1, 0x18: 8}[insn.opcode & 0x18]
            return self.fault(str(self.no_region((base or 0) + insn.offset, size, what)), slot, registers)
        return self.fault(str(error), slot, registers)
