# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Loads and stores: what may be read and written through which value."""

from __future__ import annotations

from typing import Final

from pybpfasm import isa
from pybpfasm.check.base import WITH_VALUES, WalkBase
from pybpfasm.check.rights import READ_ONLY_PACKETS, type_name
from pybpfasm.check.values import (
    ALL_WRITTEN,
    ANY,
    CONST,
    CTX,
    END,
    FP,
    FREE,
    GONE,
    MAP,
    MIXED,
    NUMBER,
    NUMBERS,
    PKT,
    POINTERS,
    SIZES,
    SOCK,
    STACK,
    U64,
    UNKNOWN,
    UNSET,
    VAL,
    WORDS,
    State,
    Value,
)
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Atomic, Imm64
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG, MapType, ProgType
from pybpfasm.maps import MapSpec

__all__ = ["Memory"]

_LD_ABS_TYPES: Final = frozenset({ProgType.SOCKET_FILTER, ProgType.SCHED_CLS, ProgType.SCHED_ACT})


class Memory(WalkBase):
    """The part of a walk that looks at memory."""

    def _access(
        self, index: int, insn: Instruction, base: Value, register: int, size: int, state: State, write: bool
    ) -> None:
        """Report an access through *base* that can't be right."""
        kind = base[0]
        offset = insn.offset
        if kind == ANY or (insn.reference is not None and kind not in NUMBERS):
            return  # with a reference, the offset is known at load
        if kind == MIXED:
            self._fault("scalar-access", index, f"on some way, r{register} is a number, not an address")
        elif kind in NUMBERS:
            if kind == GONE:
                self._fault(
                    "packet-moved",
                    index,
                    f"r{register} was a packet pointer, and the packet may have moved: read data and "
                    "data_end anew and check again",
                    ("the call is at", base[1]),
                )
            else:
                what = "0" if base == (CONST, 0) else "a number"
                self._fault("scalar-access", index, f"r{register} is {what}, not an address")
        elif kind == FP:
            at = base[1] + offset
            if -STACK <= at < 0:
                self._deepest[self._function] = max(self._deepest[self._function], -at)
            if at < -STACK or at + size > 0:
                self._fault(
                    "stack-bounds",
                    index,
                    f"bytes {at} to {at + size} of the frame are outside the stack, which is -{STACK} to 0",
                )
            elif at % size:
                self._fault(
                    "stack-align",
                    index,
                    f"{size} bytes at r10{at:+d} are misaligned: {at} is no multiple of {size}",
                )
        elif kind == CTX:
            self._context(index, base[1], offset, size, write)
        elif kind == VAL:
            if base[2]:
                self._null(index, register, base, "is dereferenced")
            elif base[3] is not None and base[3].flags & (BPF_F_RDONLY_PROG if write else BPF_F_WRONLY_PROG):
                what = "write to" if write else "read from"
                flag = "BPF_F_RDONLY_PROG" if write else "BPF_F_WRONLY_PROG"
                self._fault(
                    "map-rights", index, f"programs may not {what} the values of map {base[3].name} ({flag})"
                )
            elif base[4] is not None and base[3] is not None:
                at = base[4] + offset
                room = base[3].value_size
                if room and not 0 <= at <= room - size:
                    self._fault(
                        "value-bounds",
                        index,
                        f"bytes {at} to {at + size} are outside the value of map {base[3].name}, "
                        f"which has {room}",
                    )
        elif kind == SOCK:
            if base[2]:
                self._null(index, register, base, "is dereferenced")
        elif kind == PKT:
            at = base[1] + offset
            if write and self.spec.type in READ_ONLY_PACKETS:
                self._fault(
                    "packet-write", index, f"{type_name(self.spec.type)} programs can't write to packets"
                )
            if at < 0 or at + size > base[2]:
                known = f"only {base[2]} bytes are checked" if base[2] else "nothing is checked"
                self._fault(
                    "packet-bounds",
                    index,
                    f"bytes {at} to {at + size} of the packet may not be there ({known}): compare data + "
                    f"{at + size} with data_end first",
                )
        elif kind == END:
            self._fault(
                "packet-end",
                index,
                f"r{register} is the end of the packet: nothing can be read or written there",
            )
        elif kind == MAP and write:
            self._fault(
                "map-write", index, f"r{register} is the map itself: a value comes from map_lookup_elem"
            )

    def _context(self, index: int, moved: int, offset: int, size: int, write: bool) -> None:
        if moved or self.rights.context is None:
            return
        reads, writes, _ = self.rights.context
        if offset < 0 or not (writes if write else reads)[size] >> offset & 1:
            self._fault("context", index, self._about_context(offset, size, write))

    def _about_context(self, offset: int, size: int, write: bool) -> str:
        assert self.rights.context is not None
        reads, writes, _ = self.rights.context
        allowed = writes if write else reads
        where = f"{type_name(self.spec.type)} programs can't {'write' if write else 'read'}"
        field = self._field(offset)
        name = f"{size} bytes at {offset} of their context" + (f" ({field})" if field else "")
        if offset < 0:
            return f"{where} in front of their context"
        others = [str(s) for s in (1, 2, 4, 8) if allowed[s] >> offset & 1]
        if others:
            return f"{where} {name}: {' or '.join(others)} bytes can be"
        if write and any(reads[s] >> offset & 1 for s in (1, 2, 4, 8)):
            return f"{where} {name}: it is read-only for them"
        return f"{where} {name}"

    def _field(self, offset: int) -> str:
        context = next((f.context for f in self.spec.functions if f.context is not None), None)
        if context is None:
            return ""
        for name, field in context.fields.items():
            if field.offset <= offset < field.offset + field.size:
                return name if field.offset == offset else f"within {name}"
        return ""

    def _load(
        self, index: int, insn: Instruction, base: Value, register: int, size: int, state: State
    ) -> None:
        self._access(index, insn, base, register, size, state, False)
        regs = state.regs
        dst = insn.dst
        signed = insn.opcode & 0xE0 == isa.MEMSX
        kind = base[0]
        value: Value = UNKNOWN
        if insn.reference is not None:
            pass
        elif kind == FP:
            at = base[1] + insn.offset
            if size == 8 and at in state.stack:
                value = state.stack[at]
            elif -STACK <= at <= -size:
                mask = ((1 << size) - 1) << (at + STACK)
                if not state.written & mask:
                    self._never_written.setdefault(
                        index, f"nothing was written to the {size} bytes at r10{at:+d} on any way here"
                    )
                else:
                    self._written_after_all.add(index)
        elif kind == CTX and base[1] == 0 and self.rights.context is not None:
            meaning = self.rights.context[2].get(insn.offset)
            if meaning is None:
                value = NUMBER if signed else self._fresh(index, 0, (1 << 8 * size) - 1, regs)
                if insn.offset < 0 or not self.rights.context[0][size] >> insn.offset & 1:
                    value = UNKNOWN
            elif meaning == "pkt":
                value = (PKT, 0, 0, False)
            elif meaning == "pkt_end":
                value = (END,)
            elif meaning.startswith("sock"):
                self._purge(index, state)
                null = meaning.endswith("_or_null")
                value = (SOCK, index, null, meaning.removesuffix("_or_null"))
        elif kind == PKT:
            value = NUMBER if signed else self._fresh(index, 0, (1 << 8 * size) - 1, regs)
        elif kind == VAL and base[3] is not None and not base[3].flags and size < 8:
            value = NUMBER  # static data that nobody writes is known to the verifier
        if dst == isa.FRAME_POINTER:
            self._fault("frame-pointer", index, "r10 is the frame pointer and can't be changed")
            return
        regs[dst] = value

    def _store(self, index: int, insn: Instruction, state: State) -> None:
        regs = state.regs
        opcode = insn.opcode
        size = SIZES[opcode & 0x18]
        atomic = opcode & 7 == isa.STX and opcode & 0xE0 == isa.ATOMIC
        if atomic and insn.imm == Atomic.LOAD_ACQ:
            base = self._read(index, insn.src, regs)
            self._access(index, insn, base, insn.src, size, state, False)
            if insn.dst != isa.FRAME_POINTER:
                regs[insn.dst] = UNKNOWN
            return
        stored: Value = (CONST, insn.imm & U64)
        if opcode & 7 == isa.STX:
            stored = self._read(index, insn.src, regs)
        base = self._read(index, insn.dst, regs)
        if atomic and insn.imm == Atomic.CMPXCHG:
            self._read(index, 0, regs)
        if atomic and base[0] == CTX:
            self._fault("context-atomic", index, "atomic operations do not work on the context")
        elif atomic and base[0] == VAL and base[4] is not None and (base[4] + insn.offset) % size:
            self._fault(
                "misaligned",
                index,
                f"an atomic operation of {size} bytes at {base[4] + insn.offset} of a map's value: "
                f"that is no multiple of {size}",
            )
        else:
            self._access(index, insn, base, insn.dst, size, state, True)
        if base[0] == FP:
            at = base[1] + insn.offset
            if size < 8 and stored[0] in POINTERS and not atomic:
                self._fault(
                    "pointer-spill",
                    index,
                    f"r{insn.src} is {WORDS[stored[0]]}: an address is kept on the stack in 8 aligned "
                    f"bytes, not in {size}",
                )
            for offset in range(at - 7, at + size):
                state.stack.pop(offset, None)
            if -STACK <= at <= -size:
                state.written |= ((1 << size) - 1) << (at + STACK)
                if size == 8 and at % 8 == 0 and not atomic:
                    state.stack[at] = NUMBER if stored[0] == FREE else stored
        elif base[0] in (ANY, MIXED):
            state.stack.clear()
            state.written = ALL_WRITTEN
        if atomic:
            if insn.imm == Atomic.CMPXCHG:
                regs[0] = UNKNOWN
            elif insn.imm & 1 and insn.src != isa.FRAME_POINTER:
                regs[insn.src] = UNKNOWN

    def _ld(self, index: int, insn: Instruction, state: State) -> None:
        regs = state.regs
        if insn.opcode == isa.LD_IMM64:
            if insn.dst == isa.FRAME_POINTER:
                self._fault("frame-pointer", index, "r10 is the frame pointer and can't be changed")
                return
            reference = insn.reference if isinstance(insn.reference, MapSpec) else None
            if insn.src == Imm64.VALUE:
                # With a reference it is a number that only the kernel's BTF tells, at load.
                regs[insn.dst] = (CONST, insn.imm64) if insn.reference is None else NUMBER
            elif insn.src in (Imm64.MAP_FD, Imm64.MAP_IDX):
                regs[insn.dst] = (MAP, reference)
            elif insn.src == Imm64.MAP_VALUE and reference is not None:
                self._purge(index, state)
                room = reference.value_size
                if reference.type in WITH_VALUES and reference.type != MapType.ARRAY:
                    self._fault(
                        "map-value",
                        index,
                        f"the address of a value of map {reference.name}, {reference.type.name}, is not "
                        "known at load: look it up, or use an ARRAY",
                    )
                elif room and not 0 <= insn.imm_high < room:
                    self._fault(
                        "value-bounds",
                        index,
                        f"byte {insn.imm_high} is outside the value of map {reference.name}, "
                        f"which has {room}",
                    )
                regs[insn.dst] = (VAL, index, False, reference, insn.imm_high)
            else:
                regs[insn.dst] = UNKNOWN
            return
        # Packet loads of classic BPF: the context is in r6, the result comes in r0 (RFC 9669, section 5.5).
        if self.rights.helpers is not None and self.spec.type not in _LD_ABS_TYPES:
            self._fault(
                "packet-load",
                index,
                f"{type_name(self.spec.type)} programs can't use the packet loads of classic BPF",
            )
        value = self._read(index, 6, regs)
        if value[0] not in (ANY, CTX, MIXED):
            self._fault(
                "packet-load", index, f"r6 must be the context here, and is {WORDS.get(value[0], 'not')}"
            )
        if insn.opcode & 0xE0 == isa.IND:
            self._read(index, insn.src, regs)
        for register in range(1, 6):
            regs[register] = (UNSET, index)
        regs[0] = NUMBER
