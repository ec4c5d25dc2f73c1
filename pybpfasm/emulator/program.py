# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A program that the emulator has loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from pybpfasm import isa
from pybpfasm.emulator import interpret, translate
from pybpfasm.emulator.context import Context
from pybpfasm.emulator.faults import EmulatorError, EmulatorFault
from pybpfasm.emulator.kfuncs import numbers
from pybpfasm.emulator.maps import Array, Map
from pybpfasm.emulator.memory import Opaque, Region
from pybpfasm.emulator.run import DEFAULT_BUDGET, Result, Run, Step
from pybpfasm.instruction import Instruction, decode
from pybpfasm.isa import LD_IMM64, CallKind, Imm64
from pybpfasm.program import ProgramSpec

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Emulator

__all__ = ["Program"]

Engine = Callable[..., int]

# A program without loops is translated when it is run this often; one with loops at once.
_WARM: Final = 4


@dataclass(frozen=True, slots=True)
class _Decoded:
    """What a program's bytes hold, read once however often it is loaded."""

    code: bytes
    instructions: dict[int, Instruction]  # by slot
    slots: int
    wide: tuple[int, ...]  # slots of 64-bit immediate loads
    entries: tuple[int, ...]  # where functions begin
    calls: tuple[tuple[int, int], ...]  # of helpers and kernel functions
    loops: bool


_DECODED: WeakKeyDictionary[ProgramSpec, _Decoded] = WeakKeyDictionary()


def _decoded(spec: ProgramSpec) -> _Decoded:
    """The bytes of *spec* with the number of each map, from 1, as its descriptor; raises `EmulatorError`."""
    found = _DECODED.get(spec)
    if found is None:
        found = _DECODED[spec] = _decode(spec)
    return found


def _decode(spec: ProgramSpec) -> _Decoded:
    fds = {one.name: number for number, one in enumerate(spec.maps, 1)}
    code = spec.code(fds, local=True, kfuncs=numbers(spec))
    instructions: dict[int, Instruction] = {}
    wide: list[int] = []
    entries: dict[int, int] = {0: 0}  # with a slot that names it
    calls: dict[tuple[int, int], None] = {}
    loops = False
    slot = 0
    for insn in decode(code, spec.byteorder):
        instructions[slot] = insn
        opcode = insn.opcode
        if opcode == LD_IMM64:
            wide.append(slot)
            if insn.src == Imm64.FUNC:
                entries.setdefault(slot + 1 + insn.imm, slot)
            slot += 2
            continue
        if opcode & 7 in (isa.JMP, isa.JMP32):
            if opcode == isa.OP_CALL:
                if insn.src == CallKind.LOCAL:
                    entries.setdefault(slot + 1 + insn.imm, slot)
                else:
                    calls[insn.src, insn.imm] = None
            elif opcode == isa.OP_GOTOX:
                raise EmulatorError(f"{spec.name}, slot {slot}: the emulator has no computed jumps (gotox)")
            elif opcode not in (isa.OP_CALLX, isa.OP_EXIT):
                loops = loops or (insn.imm if opcode == isa.OP_GOTOL else insn.offset) < 0
        slot += 1
    for entry, at in entries.items():
        if entry not in instructions and not 0 <= entry < spec.slots:
            raise EmulatorError(f"{spec.name}, slot {at}: a call to slot {entry}, which does not exist")
    return _Decoded(code, instructions, slot, tuple(wide), tuple(sorted(entries)), tuple(calls), loops)


class Program:
    """A program with its maps, ready to run; `Emulator.load` makes it.

    ``engine_name`` is ``"auto"``, or ``"interpret"`` or ``"translate"`` to have one of the two always.
    ``covered`` collects the slots that ran, ``taken`` the (slot, next slot) of conditional jumps, where
    ``coverage`` is set.
    """

    def __init__(self, emulator: Emulator, spec: ProgramSpec, engine: str = "auto") -> None:
        self.emulator = emulator
        self.spec = spec
        self.engine_name = engine
        self.coverage = False
        self.covered: set[int] = set()
        self.taken: set[tuple[int, int]] = set()
        self.runs = 0
        self.maps: dict[str, Map] = {one.name: emulator.map(one) for one in spec.maps}
        names = list(self.maps)
        decoded = _decoded(spec)
        self.code = decoded.code
        self.instructions = decoded.instructions
        self.slots = decoded.slots
        self.entries = decoded.entries
        self.calls = decoded.calls
        self.loops = decoded.loops
        self.regions: dict[int, Region] = {}
        self.addresses: dict[int, int] = {}  # by slot of the 64-bit immediate load
        functions: dict[int, Opaque] = {}
        for slot in decoded.wide:
            insn = self.instructions[slot]
            if insn.src == Imm64.VALUE:
                self.addresses[slot] = insn.imm64
            elif insn.src in (Imm64.MAP_FD, Imm64.MAP_VALUE):
                one = self.maps[names[insn.imm - 1]]
                self.addresses[slot] = self._map_address(one, insn)
            elif insn.src == Imm64.FUNC:
                entry = slot + 1 + insn.imm
                if entry not in functions:
                    name = next((f.name for f in spec.functions if f.slot == entry), f"slot {entry}")
                    functions[entry] = Opaque(f"function {name}", entry)
                    self._register(functions[entry])
                self.addresses[slot] = functions[entry].start
            else:
                raise EmulatorError(
                    f"{spec.name}, slot {slot}: the emulator knows no {Imm64(insn.src).name} immediates"
                )
        self._translated: dict[int, Engine] | None = None
        self._lines: dict[CodeType, list[int]] = {}
        self._texts: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"<emulated {self.spec.name} {self.spec.type.name} {self.slots} slots>"

    def _register(self, region: Region) -> int:
        if not region.start:
            region.start = self.emulator.numbers.start()
        self.regions[region.start >> 32] = region
        return region.start

    def _map_address(self, one: Map, insn: Instruction) -> int:
        if insn.src == Imm64.MAP_FD:
            return self._register(one.region)
        if not isinstance(one, Array) or one.max_entries != 1:
            raise EmulatorError(
                f"map {one.name}: only the value of an ARRAY of one entry has a fixed address"
            )
        return self._register(one.element(0)) + (insn.imm_high & 0xFFFFFFFF)

    # What the run uses.
    def at(self, slot: int) -> Instruction:
        """The instruction at *slot*."""
        return self.instructions[slot]

    def text(self, slot: int) -> str:
        """The instruction at *slot* as the kernel prints it."""
        if not self._texts:
            from pybpfasm.listing import text

            for at, insn in zip(self.instructions, self.spec.instructions, strict=True):
                self._texts[at] = text(insn)
        return self._texts.get(slot, "the end of the program")

    def engine(self, slot: int) -> Engine:
        """What runs the function at *slot*."""
        if self._translated is not None:
            return self._translated[slot]
        return interpret.function(slot)

    def translated(self) -> dict[int, Engine]:
        """The program's functions in Python, translated now where that has not been done."""
        functions, lines = translate.functions(self)
        self._lines.update(lines)
        return functions

    def slot_of_line(self, code: CodeType, line: int) -> int:
        """The slot of a line of translated code."""
        return self._lines[code][line]

    def run(
        self,
        context: Context | None = None,
        *,
        budget: int = DEFAULT_BUDGET,
        trace: bool = False,
    ) -> Result:
        """Run the program on *context*; with *trace*, the result tells every step.

        Raises `EmulatorFault` where the program breaks a rule.
        """
        steps: list[Step] | None = [] if trace else None
        if context is not None:
            if not isinstance(context, Context):
                raise EmulatorError(
                    f"{self.spec.name} runs on a context, as in run(Skb(packet)) or run(Xdp(packet)), "
                    f"not on {type(context).__name__}"
                )
            context.check(self.spec)
        run = Run(self, context, budget=budget, trace=steps)
        self.prepare(trace)
        self.runs += 1
        try:
            r0 = run.start()
        except EmulatorFault as fault:
            fault.trace = tuple(steps or ())
            raise
        finally:
            if context is not None:
                context.leave(run)
        packet = b"" if context is None else context.packet
        return Result(r0, budget - run.left, context, packet, tuple(steps or ()))

    def prepare(self, trace: bool) -> None:
        """Choose the engine of the next run, which is the interpreter where it is traced."""
        name = self.engine_name
        if trace or self.coverage or name == "interpret":
            if self._translated is not None:
                self._kept, self._translated = self._translated, None
            return
        if self._translated is None and (name == "translate" or self.loops or self.runs >= _WARM):
            kept = getattr(self, "_kept", None)
            self._translated = self.translated() if kept is None else kept

    _kept: dict[int, Engine] | None = None
