# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The fast engine: every function of a program becomes a Python function.

Registers are local variables, a basic block is straight Python, and a loop around a tree of comparisons goes
from block to block. Nothing checks for errors where the data flow shows that there can be none; when one
happens, the line of the generated code tells the instruction, and its local variables the registers.

Python needs more time for each line of a long function than for those of a short one, to compile it and to
run it. So a function of more than `PART` instructions becomes several, which hand each other the registers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any, Final

from pybpfasm import isa
from pybpfasm.emulator.alu import U64, sdiv, smod, swap
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.interpret import TAIL_CALL, call_register, locked, no_spaces
from pybpfasm.emulator.kfuncs import returns_nothing
from pybpfasm.emulator.memory import ONES, STACK_SIZE, STRUCTS
from pybpfasm.emulator.run import MAX_LOOPS
from pybpfasm.isa import Alu, Atomic, CallKind, Jump

if TYPE_CHECKING:
    from pybpfasm.emulator.program import Program
    from pybpfasm.instruction import Instruction

_M: Final = "0xFFFFFFFFFFFFFFFF"
_W: Final = "0xFFFFFFFF"
_S: Final = "0x8000000000000000"
_S32: Final = "0x80000000"

_CALLER_SAVED: Final = 0b111110

# How many instructions one Python function holds at most.
PART: Final = 1024

# Code of one Python function, by its name, and the slots of its lines.
_Unit = tuple[str, CodeType, list[int]]
# Translated functions by everything that they depend on; the newest last. Each has its entry slot, its units,
# and for every basic block the unit that it is in.
_CACHE: OrderedDict[tuple[object, ...], list[tuple[int, list[_Unit], list[int]]]] = OrderedDict()
_CACHE_SIZE: Final = 512


def functions(program: Program) -> tuple[dict[int, Callable[..., int]], dict[CodeType, list[int]]]:
    """The program's functions by entry slot, and for the code of each the slots of its lines."""
    emulator = program.emulator
    models = {
        call: emulator.model_of(*call) for call in program.calls if call != (CallKind.HELPER, TAIL_CALL)
    }
    key = (
        PART,
        program.code,
        program.spec.byteorder,
        program.entries,
        tuple(sorted((call, model.arity) for call, model in models.items())),
    )
    units = _CACHE.get(key)
    if units is None:
        units = [_Function(program, entry, models, PART).compile() for entry in program.entries]
        _CACHE[key] = units
        if len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    namespace: dict[str, Any] = {
        "sdiv": sdiv,
        "smod": smod,
        "swap": swap,
        "unset": _unset,
        "past_end": _past_end,
        "locked": locked,
        "no_spaces": no_spaces,
        "call_register": call_register,
        "tail_target": emulator.tail_target,
        "legacy_load": emulator.legacy_load,
    }
    for size, form in STRUCTS[emulator.byteorder].items():
        namespace[f"unpack{size}"] = form.unpack_from
        namespace[f"pack{size}"] = form.pack_into
        namespace[f"ONES{size}"] = ONES[size]
    for (kind, number), model in models.items():
        namespace[f"H{kind}_{number}"] = model.function
    for slot, address in program.addresses.items():
        namespace[f"A{slot}"] = address
    made: dict[int, Callable[..., int]] = {}
    lines: dict[CodeType, list[int]] = {}
    for entry, parts, part_of in units:
        for name, code, line_slots in parts:
            exec(code, namespace)
            lines[namespace[name].__code__] = line_slots
        if len(parts) == 1:
            made[entry] = namespace[parts[0][0]]
        else:
            made[entry] = _joined([namespace[name] for name, _, _ in parts], part_of)
    return made, lines


def _joined(parts: list[Callable[..., Any]], part_of: list[int]) -> Callable[..., int]:
    """The function of several parts: each takes the block to go on with and the registers, and returns the
    same for the next part, or r0."""
    entries = [parts[part] for part in part_of]

    def run_parts(run: Any, stack: Any, *arguments: int | None) -> int:
        state: Any = (0, None, *arguments, None, None, None, None, 0)
        while state.__class__ is tuple:
            state = entries[state[0]](run, stack, *state)
        result: int = state
        return result

    return run_parts


def _unset(register: int) -> None:
    raise Violation(f"r{register} is read and was never set")


def _past_end() -> None:
    raise Violation("the program runs past its end")


def _reads(insn: Instruction, models: dict[tuple[int, int], Any]) -> tuple[int, ...]:
    """The registers that an instruction reads, r10 aside."""
    cls = insn.opcode & 7
    op = insn.opcode & 0xF0
    if cls in (isa.ALU, isa.ALU64):
        if op == Alu.MOV:
            return (insn.src,) if insn.opcode & isa.X else ()
        if op in (Alu.NEG, Alu.END) or not insn.opcode & isa.X:
            return (insn.dst,)
        return (insn.dst, insn.src)
    if cls in (isa.JMP, isa.JMP32):
        if insn.opcode == isa.OP_EXIT:
            return (0,)
        if insn.opcode == isa.OP_CALL:
            if insn.src == CallKind.LOCAL:
                return ()
            if insn.imm == TAIL_CALL and insn.src == CallKind.HELPER:
                return (1, 2, 3)
            return tuple(range(1, models[insn.src, insn.imm].arity + 1))
        if insn.opcode in (isa.OP_JA, isa.OP_GOTOL, isa.OP_MAY_GOTO):
            return ()
        if insn.opcode == isa.OP_CALLX:
            return (insn.dst,)
        return (insn.dst, insn.src) if insn.opcode & isa.X else (insn.dst,)
    if cls == isa.LDX:
        return (insn.src,)
    if cls == isa.ST:
        return (insn.dst,)
    if cls == isa.STX:
        if insn.opcode & 0xE0 == isa.ATOMIC:
            if insn.imm == Atomic.LOAD_ACQ:
                return (insn.src,)
            if insn.imm == Atomic.CMPXCHG:
                return (insn.src, insn.dst, 0)
        return (insn.src, insn.dst)
    if insn.wide:
        return ()
    return (6, insn.src) if insn.opcode & 0xE0 == isa.IND else (6,)


def _writes(insn: Instruction) -> int:
    """The registers that an instruction sets, as bits."""
    cls = insn.opcode & 7
    if cls in (isa.ALU, isa.ALU64, isa.LDX) or insn.wide:
        return 1 << insn.dst
    if cls == isa.STX and insn.opcode & 0xE0 == isa.ATOMIC:
        if insn.imm == Atomic.LOAD_ACQ:
            return 1 << insn.dst
        if insn.imm == Atomic.CMPXCHG:
            return 1
        return 1 << insn.src if insn.imm & 1 else 0
    if cls == isa.LD or insn.opcode in (isa.OP_CALL, isa.OP_CALLX):
        return 0 if returns_nothing(insn) else 1
    return 0


def _clobbers(insn: Instruction) -> int:
    if insn.opcode in (isa.OP_CALL, isa.OP_CALLX) or (insn.opcode & 7 == isa.LD and not insn.wide):
        return _CALLER_SAVED | returns_nothing(insn)
    return 0


def _target(insn: Instruction, slot: int) -> int | None:
    """Where a jump goes, or ``None`` for what is no jump."""
    if insn.opcode & 7 not in (isa.JMP, isa.JMP32) or insn.opcode in _NO_JUMPS:
        return None
    return slot + 1 + (insn.imm if insn.opcode == isa.OP_GOTOL else insn.offset)


_NO_JUMPS: Final = (isa.OP_CALL, isa.OP_CALLX, isa.OP_EXIT)
_PLAIN: Final = {Alu.ADD: "+", Alu.SUB: "-", Alu.MUL: "*"}
_BITS: Final = {Alu.OR: "|", Alu.AND: "&", Alu.XOR: "^"}
_COMPARE: Final = {
    Jump.JEQ: "==",
    Jump.JNE: "!=",
    Jump.JGT: ">",
    Jump.JGE: ">=",
    Jump.JLT: "<",
    Jump.JLE: "<=",
}
# What one part of a function hands to the next.
_STATE: Final = "r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, loops"
_SIGNED: Final = {Jump.JSGT: ">", Jump.JSGE: ">=", Jump.JSLT: "<", Jump.JSLE: "<="}


class _Function:
    """Translates one function."""

    def __init__(
        self, program: Program, entry: int, models: dict[tuple[int, int], Any], part_size: int
    ) -> None:
        self.part_size = part_size
        self.name = program.spec.name
        self.entry = entry
        self.models = models
        self.big = program.spec.byteorder == "big"
        entries = program.entries
        following = entries.index(entry) + 1
        end = entries[following] if following < len(entries) else program.slots
        self.code = {s: i for s, i in program.instructions.items() if entry <= s < end}
        self.lines: list[str] = []
        self.slots: list[int] = []
        self._find_blocks()
        self._find_set()

    def _find_blocks(self) -> None:
        leaders = {self.entry}
        for slot, insn in self.code.items():
            target = _target(insn, slot)
            if target is not None:
                leaders.add(target)
                leaders.add(slot + 1)
            elif insn.opcode == isa.OP_EXIT:
                leaders.add(slot + 1)
        if len(self.code) > self.part_size:
            since = 0  # no block is longer than a part
            for slot in self.code:
                since = 1 if slot in leaders else since + 1
                if since > self.part_size:
                    leaders.add(slot)
                    since = 1
        # Any place that is no instruction of this function stands for running past the end.
        self.starts = [s for s in self.code if s in leaders]
        self.number = {s: i for i, s in enumerate(self.starts)}
        self.blocks: list[list[int]] = []
        for slot in self.code:
            if slot in leaders:
                self.blocks.append([])
            self.blocks[-1].append(slot)
        self.lost = len(self.blocks)

    def _block_at(self, slot: int) -> int:
        return self.number.get(slot, self.lost)

    def _successors(self, block: int) -> list[int]:
        last = self.blocks[block][-1]
        insn = self.code[last]
        if insn.opcode == isa.OP_EXIT:
            return []
        target = _target(insn, last)
        after = self._block_at(last + insn.slots)
        if target is None:
            return [after]
        if insn.opcode in (isa.OP_JA, isa.OP_GOTOL):
            return [self._block_at(target)]
        return [after, self._block_at(target)]

    def _find_set(self) -> None:
        """For each block the registers that are certainly set where it begins."""
        everything = (1 << 11) - 1
        self.set = [everything] * len(self.blocks)
        self.set[0] = 1 << 10  # r1 too is set only where there is a context
        self.backward: set[int] = {0}
        successors = [self._successors(i) for i in range(len(self.blocks))]
        for block, following in enumerate(successors):
            self.backward.update(one for one in following if one <= block)
        effects = []
        for body in self.blocks:
            killed, made = 0, 0
            for slot in body:
                insn = self.code[slot]
                clobbered = _clobbers(insn)
                killed |= clobbered
                made &= ~clobbered
                made |= _writes(insn)
            effects.append((killed, made))
        waiting = list(range(len(self.blocks) - 1, -1, -1))
        queued = set(waiting)
        while waiting:
            block = waiting.pop()
            queued.discard(block)
            killed, made = effects[block]
            out = (self.set[block] & ~killed) | made
            for one in successors[block]:
                if one == self.lost:
                    continue
                merged = self.set[one] & out
                if merged != self.set[one]:
                    self.set[one] = merged
                    if one not in queued:
                        queued.add(one)
                        waiting.append(one)

    def _find_parts(self) -> list[tuple[int, int]]:
        """Consecutive blocks, first and behind the last, that make a Python function each.

        A part ends where the fewest jumps back cross its end, so that a loop stays in one where it can.
        """
        count = self.lost + 1
        if len(self.code) <= self.part_size:
            return [(0, count)]
        change = [0] * (count + 1)  # of the number of jumps back that cross the beginning of a block
        for block in range(self.lost):
            for target in self._successors(block):
                if target < block:
                    change[target + 1] += 1
                    change[block + 1] -= 1
        parts: list[tuple[int, int]] = []
        start, size, crossing = 0, 0, 0
        best: tuple[int, int, int] | None = None  # jumps, block, size of the part that would end there
        for block in range(count):
            crossing += change[block]
            length = len(self.blocks[block]) if block < self.lost else 0
            if size >= self.part_size // 2 and (best is None or crossing <= best[0]):
                best = (crossing, block, size)
            if size + length > self.part_size and block > start:
                _, at, held = best if best is not None else (0, block, size)
                parts.append((start, at))
                start, size, best = at, size - held, None
            size += length
        parts.append((start, count))
        return parts

    def compile(self) -> tuple[int, list[_Unit], list[int]]:
        """The entry slot; for each Python function its name, its compiled definition and the slots of its
        lines; and for each block the function that it is in."""
        parts = self._find_parts()
        whole = len(parts) == 1
        units = []
        for index, part in enumerate(parts):
            name = f"f{self.entry}" if whole else f"f{self.entry}_{index}"
            units.append(self._compile_part(name, part, whole))
        part_of = [index for index, (low, high) in enumerate(parts) for _ in range(low, high)]
        return self.entry, units, part_of

    def _compile_part(self, name: str, part: tuple[int, int], whole: bool) -> _Unit:
        self.lines, self.slots = [], [0]  # lines count from 1
        self.part = part
        low, high = part
        if whole:
            self._emit(0, f"def {name}(run, stack, r1, r2, r3, r4, r5):")
            self._emit(1, "r0 = r6 = r7 = r8 = r9 = None")
        else:
            self._emit(0, f"def {name}(run, stack, b, {_STATE}):")
        self._emit(1, "regions = run.regions")
        self._emit(1, f"r10 = stack.start + {STACK_SIZE}")
        self._emit(1, "sdata = stack.data; sset = stack.set")
        if whole and any(i.opcode == isa.OP_MAY_GOTO for i in self.code.values()):
            self._emit(1, "loops = 0")
        if len(self.blocks) == 1 and not self._successors(0):
            self._block(0, 1)
        else:
            if whole:
                self._emit(1, "b = 0")
            self._emit(1, "while True:")
            self._tree(low, high, 2)
        text = "\n".join(self.lines) + "\n"
        return name, compile(text, f"<bpf {self.name}>", "exec"), self.slots

    def _go(self, block: int, indent: int, slot: int) -> None:
        """Go on with *block*, which may be in another part."""
        low, high = self.part
        if low <= block < high:
            self._emit(indent, f"b = {block}", slot)
        else:
            self._emit(indent, f"return {block}, {_STATE}", slot)

    def _emit(self, indent: int, text: str, slot: int = 0) -> None:
        self.lines.append(" " * indent + text)
        self.slots.append(slot)

    def _tree(self, low: int, high: int, indent: int) -> None:
        if high - low == 1:
            if low == self.lost:
                self._emit(indent, "past_end()", next(reversed(self.code)))
            else:
                self._block(low, indent)
            return
        middle = (low + high) // 2
        self._emit(indent, f"if b < {middle}:")
        self._tree(low, middle, indent + 1)
        self._emit(indent, "else:")
        self._tree(middle, high, indent + 1)

    def _block(self, block: int, indent: int) -> None:
        slots = self.blocks[block]
        first, last = slots[0], slots[-1]
        insn = self.code[last]
        target = _target(insn, last)
        conditional = target is not None and insn.opcode not in (isa.OP_JA, isa.OP_GOTOL)
        own_loop = target is not None and target == first
        if own_loop:
            self._emit(indent, "while True:")
            indent += 1
        self._emit(indent, f"run.left -= {len(slots)}", first)
        if block in self.backward:
            self._emit(indent, "if run.left < 0: run.exhausted()", first)
        known = self.set[block]
        # Bytes of the frame that this block has written or checked since the last call, which may have made
        # something of them that is no memory.
        self.written: set[int] = set()
        for self.left, slot in zip(range(len(slots) - 1, -1, -1), slots, strict=True):
            one = self.code[slot]
            for register in dict.fromkeys(_reads(one, self.models)):
                if not known >> register & 1:
                    self._emit(indent, f"if r{register} is None: unset({register})", slot)
                    known |= 1 << register
            if slot != last or (target is None and one.opcode != isa.OP_EXIT):
                self._instruction(one, slot, indent)
            known = (known & ~_clobbers(one)) | _writes(one)
        if insn.opcode == isa.OP_EXIT:
            self._emit(indent, "return r0", last)
            return
        after = self._block_at(last + insn.slots)
        low, high = self.part
        if target is None:
            self._go(after, indent, last)
        elif not conditional:
            if not own_loop:
                self._go(self._block_at(target), indent, last)
        elif own_loop:
            self._emit(indent, f"if not ({self._condition(insn)}):", last)
            self._go(after, indent + 1, last)
            self._emit(indent + 1, "break", last)
        else:
            there = self._block_at(target)
            if low <= there < high and low <= after < high:
                self._emit(indent, f"b = {there} if {self._condition(insn)} else {after}", last)
            else:
                self._emit(indent, f"if {self._condition(insn)}:", last)
                self._go(there, indent + 1, last)
                self._emit(indent, "else:", last)
                self._go(after, indent + 1, last)

    def _condition(self, insn: Instruction) -> str:
        if insn.opcode == isa.OP_MAY_GOTO:
            return f"(loops := loops + 1) > {MAX_LOOPS}"
        op = insn.opcode & 0xF0
        wide = insn.opcode & 7 == isa.JMP
        a = f"r{insn.dst}" if wide else f"(r{insn.dst} & {_W})"
        if insn.opcode & isa.X:
            b = f"r{insn.src}" if wide else f"(r{insn.src} & {_W})"
        else:
            b = str(insn.imm & (U64 if wide else 0xFFFFFFFF))
        if op == Jump.JSET:
            return f"{a} & {b}"
        if op in _SIGNED:
            sign = _S if wide else _S32
            other = f"({b} ^ {sign})" if insn.opcode & isa.X else str(int(b) ^ int(sign, 16))
            return f"({a} ^ {sign}) {_SIGNED[Jump(op)]} {other}"
        return f"{a} {_COMPARE[Jump(op)]} {b}"

    def _instruction(self, insn: Instruction, slot: int, indent: int) -> None:
        cls = insn.opcode & 7
        if cls in (isa.ALU, isa.ALU64):
            self._emit(indent, self._alu(insn, cls == isa.ALU64), slot)
        elif cls == isa.LDX:
            size = isa.SIZE_OF[insn.opcode & 0x18]
            address = self._address(insn.src, insn.offset)
            load = f"regions[{address} >> 32].ld{size}({address})"
            at = self._in_frame(insn.src, insn.offset, size)
            if at is not None:
                if any(byte not in self.written for byte in range(at, at + size)):
                    test = f"if sset[{at}:{at + size}] != ONES{size}: stack.unset({at}, {size})"
                    self._emit(indent, test, slot)
                    self.written.update(range(at, at + size))
                load = f"unpack{size}(sdata, {at})[0]"
            if insn.opcode & 0xE0 == isa.MEMSX:
                sign = 1 << (size * 8 - 1)
                load = f"(({load} ^ {sign}) - {sign}) & {_M}"
            self._emit(indent, f"r{insn.dst} = {load}", slot)
        elif cls in (isa.ST, isa.STX):
            size = isa.SIZE_OF[insn.opcode & 0x18]
            address = self._address(insn.dst, insn.offset)
            if insn.opcode & 0xE0 == isa.ATOMIC:
                self._atomic(insn, slot, indent, size)
            else:
                value = f"r{insn.src}" if cls == isa.STX else str(insn.imm & U64)
                at = self._in_frame(insn.dst, insn.offset, size)
                if at is None:
                    self._emit(indent, f"regions[{address} >> 32].st{size}({address}, {value})", slot)
                    return
                if size < 8:
                    mask = (1 << size * 8) - 1
                    value = f"{value} & {mask}" if cls == isa.STX else str(insn.imm & mask)
                self._emit(indent, f"pack{size}(sdata, {at}, {value})", slot)
                if any(byte not in self.written for byte in range(at, at + size)):
                    self._emit(indent, f"sset[{at}:{at + size}] = ONES{size}", slot)
                    self.written.update(range(at, at + size))
        elif insn.wide:
            value = str(insn.imm64) if insn.src == isa.Imm64.VALUE else f"A{slot}"
            self._emit(indent, f"r{insn.dst} = {value}", slot)
        elif insn.opcode == isa.OP_CALL:
            self._call(insn, slot, indent)
        elif insn.opcode == isa.OP_CALLX:
            self.written.clear()
            self._emit(indent, f"r0 = call_register(run, r{insn.dst}, r1, r2, r3, r4, r5)", slot)
            self._emit(indent, "r1 = r2 = r3 = r4 = r5 = None", slot)
        else:
            size = isa.SIZE_OF[insn.opcode & 0x18]
            offset = str(insn.imm)
            if insn.opcode & 0xE0 == isa.IND:
                offset = f"((r{insn.src} + {insn.imm} & {_W}) ^ {_S32}) - {_S32}"
            self._emit(indent, f"r0 = legacy_load(run, r6, {offset}, {size})", slot)
            self._emit(indent, f"if r0 is None: run.left += {self.left}; return 0", slot)
            self._emit(indent, "r1 = r2 = r3 = r4 = r5 = None", slot)

    @staticmethod
    def _in_frame(register: int, offset: int, size: int) -> int | None:
        """Where in the frame an access through r10 is, if it is a legal one."""
        at = STACK_SIZE + offset
        return at if register == 10 and 0 <= at <= STACK_SIZE - size and at % size == 0 else None

    @staticmethod
    def _address(register: int, offset: int) -> str:
        return f"(r{register} + {offset})" if offset else f"r{register}"

    def _alu(self, insn: Instruction, wide: bool) -> str:
        op = insn.opcode & 0xF0
        register = insn.opcode & isa.X
        d = f"r{insn.dst}"
        bits = 64 if wide else 32
        mask = _M if wide else _W
        if op == Alu.END:
            width = insn.imm
            if wide or bool(register) != self.big:
                return f"{d} = swap({d}, {width})"
            return f"{d} = {d} & {(1 << width) - 1}"
        source = f"r{insn.src}"
        constant = insn.imm & (U64 if wide else 0xFFFFFFFF)
        if op == Alu.MOV:
            if not register:
                return f"{d} = {constant}"
            if insn.offset == 1:
                return "no_spaces()"
            if insn.offset:
                sign = 1 << (insn.offset - 1)
                low = f"({source} & {(1 << insn.offset) - 1})"
                return f"{d} = (({low} ^ {sign}) - {sign}) & {mask}"
            return f"{d} = {source}" if wide else f"{d} = {source} & {_W}"
        if op == Alu.NEG:
            return f"{d} = -{d} & {mask}"
        if op in _PLAIN:
            # A constant keeps its sign here: the mask comes after.
            return f"{d} = ({d} {_PLAIN[Alu(op)]} {source if register else insn.imm}) & {mask}"
        if op in _BITS:
            if register:
                result = f"{d} {_BITS[Alu(op)]} {source}"
                return f"{d} = {result}" if wide else f"{d} = ({result}) & {_W}"
            result = f"{d} {_BITS[Alu(op)]} {constant}"
            return f"{d} = {result}" if wide or op == Alu.AND else f"{d} = ({result}) & {_W}"
        left = d if wide else f"({d} & {_W})"
        if op in (Alu.LSH, Alu.RSH, Alu.ARSH):
            count = f"({source} & {bits - 1})" if register else str(insn.imm & (bits - 1))
            if op == Alu.LSH:
                return f"{d} = ({d} << {count}) & {mask}"
            if op == Alu.RSH:
                return f"{d} = {left} >> {count}"
            sign = 1 << (bits - 1)
            return f"{d} = (({left} ^ {sign}) - {sign} >> {count}) & {mask}"
        if insn.offset:
            name = "sdiv" if op == Alu.DIV else "smod"
            return f"{d} = {name}({d}, {source if register else constant}, {bits})"
        sign_ = "//" if op == Alu.DIV else "%"
        if register:
            right = source if wide else f"({source} & {_W})"
            otherwise = "0" if op == Alu.DIV else left
            return f"{d} = {left} {sign_} {right} if {right} else {otherwise}"
        if constant == 0:
            return f"{d} = 0" if op == Alu.DIV else f"{d} = {left}"
        return f"{d} = {left} {sign_} {constant}"

    def _atomic(self, insn: Instruction, slot: int, indent: int, size: int) -> None:
        mask = (1 << (size * 8)) - 1
        op = insn.imm
        s = f"r{insn.src}"
        base = insn.src if op == Atomic.LOAD_ACQ else insn.dst
        self._emit(indent, f"at = {self._address(base, insn.offset)}", slot)
        self._emit(indent, f"m = locked(run, at, {size})", slot)
        if op == Atomic.LOAD_ACQ:
            self._emit(indent, f"r{insn.dst} = m.ld{size}(at)", slot)
            return
        if op == Atomic.STORE_REL:
            self._emit(indent, f"m.st{size}(at, {s})", slot)
            return
        self._emit(indent, f"v = m.ld{size}(at)", slot)
        if op == Atomic.CMPXCHG:
            self._emit(indent, f"m.st{size}(at, {s} if v == r0 & {mask} else v)", slot)
            self._emit(indent, "r0 = v", slot)
            return
        sign = {Atomic.ADD: "v +", Atomic.OR: "v |", Atomic.AND: "v &", Atomic.XOR: "v ^"}
        new = s if op == Atomic.XCHG else f"({sign[Atomic(op & 0xF0)]} {s}) & {mask}"
        self._emit(indent, f"m.st{size}(at, {new})", slot)
        if op & 1:
            self._emit(indent, f"{s} = v", slot)

    def _call(self, insn: Instruction, slot: int, indent: int) -> None:
        self.written.clear()
        if insn.src == CallKind.LOCAL:
            self._emit(indent, f"r0 = run.enter({slot + 1 + insn.imm}, r1, r2, r3, r4, r5)", slot)
        elif insn.src == CallKind.HELPER and insn.imm == TAIL_CALL:
            self._emit(indent, "t = tail_target(run, r1, r2, r3)", slot)
            self._emit(indent, f"if t is not None: run.left += {self.left}; return run.tail_call(t)", slot)
            self._emit(indent, "r0 = None", slot)
        else:
            arity = self.models[insn.src, insn.imm].arity
            arguments = "".join(f", r{i}" for i in range(1, arity + 1))
            self._emit(indent, f"r0 = H{insn.src}_{insn.imm}(run{arguments}) & {_M}", slot)
            if returns_nothing(insn):
                self._emit(indent, "r0 = None", slot)
        self._emit(indent, "r1 = r2 = r3 = r4 = r5 = None", slot)
