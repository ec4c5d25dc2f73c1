# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Abstract interpretation: what is known of registers and stack at each instruction, and what can't be right.

The graph is walked twice. One walk follows every way and joins the states where ways meet: what it finds
wrong is a warning, because the verifier may know that one of the ways can't be taken. The other follows a way
only where some input certainly takes it, for then a sound verifier has to follow it too: what it finds is an
error. Whether a branch can go both ways is certain for a fresh number (read from the context, a packet or a
map, and compared once) and for a pointer that may be null.

A value is a tuple; its first member says what it is.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pybpfasm import isa
from pybpfasm.check.graph import Block, Graph, is_local_call
from pybpfasm.check.rights import (
    MAPS_OF,
    MOVES_PACKET,
    READ_ONLY_PACKETS,
    RESULTS,
    in_words,
    is_gpl_compatible,
    needs_gpl,
    result_range,
    rights_of,
    type_name,
)
from pybpfasm.check.stacks import stack_sum
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Atomic, CallKind, Imm64, Jump
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG, Helper, MapType, ProgType
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.program import ProgramSpec

__all__ = ["Walk"]

Value = tuple[Any, ...]
#: ``(code, index, message, related)``; related are pairs of words and the index of an instruction.
Report = Callable[[str, int, str, tuple[tuple[str, int], ...]], None]

UNSET: Final = 0  # (UNSET, index of the call that took it away, or -1)
MAYBE: Final = 1  # as UNSET, on some of the ways that lead here
ANY: Final = 2  # (ANY,): set, and nothing else is known
CONST: Final = 3  # (CONST, unsigned 64-bit number)
FREE: Final = 4  # (FREE, index of its origin, low, high): each number in the range can really occur
NUM: Final = 5  # (NUM,): a number
CTX: Final = 6  # (CTX, offset)
FP: Final = 7  # (FP, offset): r10 and what is computed from it
MAP: Final = 8  # (MAP, MapSpec or None): the map itself
VAL: Final = 9  # (VAL, origin, may be null, MapSpec or None, offset or None)
PKT: Final = 10  # (PKT, offset, bytes known to be there, whether that differs between ways)
END: Final = 11  # (END,): the end of the packet
SOCK: Final = 12  # (SOCK, origin, may be null, the verifier's name)
GONE: Final = 13  # (GONE, index of the call that took it away): once a packet pointer, now a number
MIXED: Final = 14  # (MIXED,): a number on some of the ways that lead here, a pointer on others

_POINTERS: Final = frozenset({CTX, FP, MAP, VAL, PKT, END, SOCK})
_FIXED: Final = frozenset({END, SOCK, MAP})
_NUMBERS: Final = frozenset({CONST, FREE, NUM, GONE})
_WORDS: Final = {
    CONST: "a number",
    FREE: "a number",
    NUM: "a number",
    GONE: "a number",
    CTX: "the context",
    FP: "the address of the stack",
    MAP: "a map",
    VAL: "the address of a map's value",
    PKT: "a packet pointer",
    END: "the end of the packet",
    SOCK: "a socket",
}
_ANY: Final[Value] = (ANY,)
_NUM: Final[Value] = (NUM,)
_MIXED: Final[Value] = (MIXED,)
_U64: Final = (1 << 64) - 1
_U32: Final = (1 << 32) - 1
_STACK: Final = 512
_ALL_WRITTEN: Final = (1 << _STACK) - 1

# Looked up, these can be known not to be null: their keys are numbers below max_entries (Linux 6.15).
_SURE_LOOKUPS: Final = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})
_LD_ABS_TYPES: Final = frozenset({ProgType.SOCKET_FILTER, ProgType.SCHED_CLS, ProgType.SCHED_ACT})

_SOCKETS: Final = {
    Helper.sk_lookup_tcp: "sock",
    Helper.sk_lookup_udp: "sock",
    Helper.skc_lookup_tcp: "sock_common",
    Helper.sk_fullsock: "sock",
    Helper.tcp_sock: "tcp_sock",
    Helper.get_listener_sock: "sock",
}
_ACQUIRES: Final = {
    Helper.sk_lookup_tcp: "sk_release",
    Helper.sk_lookup_udp: "sk_release",
    Helper.skc_lookup_tcp: "sk_release",
    Helper.ringbuf_reserve: "ringbuf_submit or ringbuf_discard",
}
_RELEASES: Final = frozenset({Helper.sk_release, Helper.ringbuf_submit, Helper.ringbuf_discard})
_VALUES: Final = frozenset(
    {Helper.map_lookup_elem, Helper.map_lookup_percpu_elem, Helper.sk_storage_get, Helper.task_storage_get}
)

_WITH_VALUES: Final = frozenset(
    {
        MapType.HASH,
        MapType.ARRAY,
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_HASH,
        MapType.LRU_PERCPU_HASH,
        MapType.LPM_TRIE,
        MapType.SK_STORAGE,
        MapType.TASK_STORAGE,
    }
)

# These take a map in r2; others that take one have it in r1.
_MAP_SECOND: Final = frozenset(
    {
        Helper.tail_call,
        Helper.perf_event_output,
        Helper.get_stackid,
        Helper.sk_redirect_map,
        Helper.msg_redirect_map,
        Helper.sock_map_update,
        Helper.sk_redirect_hash,
        Helper.msg_redirect_hash,
        Helper.sock_hash_update,
        Helper.sk_select_reuseport,
    }
)

# Where a call's results can be any number that fits, and the verifier knows no more.
_FREE_RESULTS: Final = frozenset({Helper.ktime_get_ns, Helper.ktime_get_boot_ns, Helper.ktime_get_tai_ns})

# Accepted kinds of argument by the kinds of value that are certainly not of them.
_NO_POINTER: Final = frozenset({"memory", "ctx", "map_ptr", "map_value", "socket", "ringbuf_mem", "func"})
_FITS: Final = {
    "ctx": frozenset({CTX}),
    "map_ptr": frozenset({MAP}),
    "socket": frozenset({SOCK}),
    "memory": frozenset({FP, PKT, VAL, CTX, SOCK, MAP, END}),
}

_SWAPPED: Final = {
    Jump.JGT: Jump.JLT,
    Jump.JLT: Jump.JGT,
    Jump.JGE: Jump.JLE,
    Jump.JLE: Jump.JGE,
}
_SIZES: Final = {isa.W: 4, isa.H: 2, isa.B: 1, isa.DW: 8}
_JSET, _JEQ, _JNE = int(Jump.JSET), int(Jump.JEQ), int(Jump.JNE)


class State:
    """What is known at one place: registers, 8-byte stack slots, bytes of stack ever written, references."""

    __slots__ = ("refs", "regs", "stack", "written")

    def __init__(
        self, regs: list[Value], stack: dict[int, Value], written: int, refs: dict[int, int]
    ) -> None:
        self.regs = regs
        self.stack = stack
        self.written = written
        self.refs = refs  # origin of a reference -> index of the call that took it

    def copy(self) -> State:
        return State(self.regs.copy(), self.stack.copy(), self.written, self.refs.copy())

    def join(self, other: State, certain: bool) -> bool:
        """Take in what is known on another way to the same place; whether that changed anything."""
        changed = False
        mine = self.regs
        theirs = other.regs
        for register in range(10):
            a, b = mine[register], theirs[register]
            if a != b:
                joined = _join(a, b, certain)
                if joined != a:
                    mine[register] = joined
                    changed = True
        if self.stack:
            for offset in list(self.stack):
                a = self.stack[offset]
                found = other.stack.get(offset)
                if found is None:
                    del self.stack[offset]
                    changed = True
                elif a != found:
                    joined = _join(a, found, certain)
                    if joined != a:
                        self.stack[offset] = joined
                        changed = True
        if other.written | self.written != self.written:
            self.written |= other.written
            changed = True
        for origin, index in other.refs.items():
            if origin not in self.refs:
                self.refs[origin] = index
                changed = True
        return changed


def _join(a: Value, b: Value, certain: bool) -> Value:
    ka, kb = a[0], b[0]
    if ka <= MAYBE or kb <= MAYBE:
        if ka == kb == UNSET:
            return (UNSET, max(a[1], b[1]))
        return (MAYBE, max(a[1] if ka <= MAYBE else -1, b[1] if kb <= MAYBE else -1))
    if ka in _NUMBERS and kb in _NUMBERS:
        return _NUM
    if ka != kb:
        numbers = ka in _NUMBERS or kb in _NUMBERS or MIXED in (ka, kb)
        return _MIXED if numbers and ANY not in (ka, kb) else _ANY
    if ka == PKT and a[1] == b[1]:
        return (PKT, a[1], min(a[2], b[2]), True)
    if ka == VAL and a[1] == b[1] and a[3] is b[3] and not certain:
        return (VAL, a[1], a[2] or b[2], a[3], a[4] if a[4] == b[4] else None)
    if ka == SOCK and a[1] == b[1] and a[3] == b[3] and not certain:
        return (SOCK, a[1], a[2] or b[2], a[3])
    return _ANY


def _signed(value: int, bits: int = 64) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


class Walk:
    """One walk over the graph of a program."""

    def __init__(self, spec: ProgramSpec, graph: Graph, report: Report, certain: bool) -> None:
        self.spec = spec
        self.graph = graph
        self.certain = certain
        self._report = report
        self.rights = rights_of(spec.type, spec.attach_type)
        self.gpl = is_gpl_compatible(spec.license)
        self.states: list[State | None] = [None] * len(graph.blocks)
        self.visits = [0] * len(graph.blocks)
        self._waiting: list[tuple[int, int]] = []
        self._queued: set[int] = set()
        self._never_written: dict[int, str] = {}
        self._written_after_all: set[int] = set()
        self._deepest = [0] * len(graph.functions)  # bytes of stack that each function uses
        self._function = 0  # that of the block which is being walked through
        self._results = result_range(spec.type, spec.attach_type)
        contexts = {f.slot: f for f in spec.functions}
        self._globals: dict[int, int] = {}
        for place, index in enumerate(graph.functions):
            function = contexts.get(graph.slots[index])
            if function is not None and function.context is not None and place:
                self._globals[place] = len(function.arguments)

    # The order of things.
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

    def reached(self, number: int) -> bool:
        """Whether the walk has come to a block."""
        return self.states[number] is not None

    def _arrive(self, number: int, state: State, owned: bool = False) -> None:
        known = self.states[number]
        if known is None:
            self.states[number] = state if owned else state.copy()
        else:
            if self.visits[number] > 60:  # never seen; the number of steps stays in proportion in any case
                state = State([_ANY] * 10 + [(FP, 0)], {}, _ALL_WRITTEN, {})
            if not known.join(state, self.certain):
                return
        if number not in self._queued:
            self._queued.add(number)
            heapq.heappush(self._waiting, (self.graph.blocks[number].order, number))

    def _fault(self, code: str, index: int, message: str, *related: tuple[str, int]) -> None:
        self._report(code, index, message, related)

    # Instructions.
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
                self._load(index, insn, base, insn.src, _SIZES[opcode & 0x18], state)
            elif cls == isa.ST or cls == isa.STX:
                self._store(index, insn, state)
            elif cls == isa.LD:
                self._ld(index, insn, state)
            elif opcode == isa.OP_CALL:
                if not self._call(index, insn, state):
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

    def _read(self, index: int, register: int, regs: list[Value]) -> Value:
        value = regs[register]
        if value[0] <= MAYBE:
            self._unset(index, register, value)
            regs[register] = _ANY
            return _ANY
        return value

    def _unset(self, index: int, register: int, value: Value, what: str = "read") -> None:
        call = value[1]
        some = "" if value[0] == UNSET else "on some way, "
        if call >= 0:
            self._fault(
                "lost-in-call",
                index,
                f"{some}r{register} is {what} after a call took it away: r1 to r5 do not survive calls, "
                "keep it in r6 to r9 or on the stack",
                ("the call is at", call),
            )
        elif register == 1 and value[0] == UNSET:
            self._fault("unset", index, f"{some}r{register} is {what} before it is set")
        else:
            self._fault("unset", index, f"{some}r{register} is {what} before it is set")

    def _fresh(self, index: int, low: int, high: int, regs: list[Value]) -> Value:
        if self.graph.looping:
            for register, value in enumerate(regs):
                if value[0] == FREE and value[1] == index:
                    regs[register] = _NUM
        return (FREE, index, low, high)

    def _purge(self, index: int, state: State) -> None:
        """Forget what came from the same instruction in an earlier turn of a loop."""
        if not self.graph.looping:
            return
        for register, value in enumerate(state.regs):
            if value[0] in (VAL, SOCK) and value[1] == index:
                state.regs[register] = _ANY
        for offset, value in state.stack.items():
            if value[0] in (VAL, SOCK) and value[1] == index:
                state.stack[offset] = _ANY

    def _alu(self, index: int, insn: Instruction, wide: bool, state: State) -> None:
        regs = state.regs
        opcode, dst = insn.opcode, insn.dst
        op = opcode & 0xF0
        by_register = opcode & isa.X and op != Alu.END
        if op == Alu.MOV:
            if by_register:
                value = self._read(index, insn.src, regs)
                if insn.offset:
                    value = self._extended(value, insn.offset) if insn.offset != 1 else _ANY
                if not wide:
                    value = self._low32(value)
            else:
                value = (CONST, insn.imm & (_U64 if wide else _U32))
                if insn.reference is not None:
                    value = _NUM  # what only the kernel's BTF will tell, at load
        else:
            left = self._read(index, dst, regs)
            if op == Alu.NEG or op == Alu.END:
                value = self._in_place(insn, op, wide, left)
            else:
                right: Value = (
                    self._read(index, insn.src, regs)
                    if by_register
                    else (CONST, insn.imm & (_U64 if wide else _U32))
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
                    right = _NUM
                value = self._binary(index, op, wide, left, right, dst)
        if dst == isa.FRAME_POINTER:
            self._fault("frame-pointer", index, "r10 is the frame pointer and can't be changed")
            return
        regs[dst] = value

    @staticmethod
    def _extended(value: Value, bits: int) -> Value:
        if value[0] == CONST:
            return (CONST, _signed(value[1] & ((1 << bits) - 1), bits) & _U64)
        return _NUM

    @staticmethod
    def _low32(value: Value) -> Value:
        if value[0] == CONST:
            return (CONST, value[1] & _U32)
        if value[0] == FREE and value[3] <= _U32:
            return value
        return _NUM

    @staticmethod
    def _in_place(insn: Instruction, op: int, wide: bool, left: Value) -> Value:
        if left[0] == ANY or left[0] == MIXED:
            return _ANY
        if op == Alu.NEG and left[0] == CONST:
            return (CONST, -left[1] & (_U64 if wide else _U32))
        if op == Alu.END and left[0] == FREE:
            mask = (1 << insn.imm) - 1
            if left[2] == 0 and left[3] >= mask:
                return (FREE, left[1], 0, mask)
        return _NUM

    def _binary(self, index: int, op: int, wide: bool, left: Value, right: Value, dst: int) -> Value:
        kl, kr = left[0], right[0]
        if kl == CONST and kr == CONST:
            return _fold(op, wide, left[1], right[1])
        if kl in (ANY, MIXED) or kr in (ANY, MIXED):
            return _ANY
        if kl in _NUMBERS and kr in _NUMBERS:
            if kl == FREE and kr == CONST and left[2] == 0 and left[3] & (left[3] + 1) == 0:
                # Each number below 2^n occurs; so does each part that a low mask or a shift leaves.
                if op == Alu.AND and right[1] & (right[1] + 1) == 0 and (wide or left[3] <= _U32):
                    return (FREE, left[1], 0, left[3] & right[1])
                if op == Alu.RSH and right[1] < 64 and (wide or left[3] <= _U32):
                    return (FREE, left[1], 0, left[3] >> right[1])
            return _NUM
        problem = self._no_arithmetic(op, wide, kl, kr)
        if problem:
            self._fault("pointer-arithmetic", index, f"r{dst}: {problem}")
            return _ANY
        fixed = kl if kl in _FIXED else kr
        known = (CONST, 0) in (left, right) and fixed == MAP
        if fixed in _FIXED and wide and (kl in _NUMBERS or kr in _NUMBERS) and not known:
            self._fault(
                "pointer-arithmetic",
                index,
                f"r{dst}: nothing can be added to or subtracted from {_WORDS[fixed]}",
            )
            return _ANY
        if kl in (VAL, SOCK) and left[2] and wide and op in (Alu.ADD, Alu.SUB):
            self._null(index, dst, left, "is computed with")
        if wide and kr == CONST and op in (Alu.ADD, Alu.SUB):
            delta = _signed(right[1])
            if op == Alu.SUB:
                delta = -delta
            if abs(delta) < 1 << 29:
                if kl in (CTX, FP):
                    return (kl, left[1] + delta)
                if kl == PKT:
                    return (PKT, left[1] + delta, left[2], left[3])
                if kl == VAL and left[4] is not None and not left[2]:
                    return (VAL, left[1], False, left[3], left[4] + delta)
        return _ANY

    @staticmethod
    def _no_arithmetic(op: int, wide: bool, left: int, right: int) -> str:
        """Why an operation with one pointer or two is none that the verifier takes."""
        if op == Alu.SUB and (not wide or (left in _POINTERS and right in _POINTERS)):
            return ""  # with CAP_PERFMON the result is a number
        if left in _POINTERS and right in _POINTERS:
            both = f"{_WORDS[left]} and {_WORDS[right]}"
            return f"{both} can't be combined: of two pointers only the difference can be had"
        what = _WORDS[left if left in _POINTERS else right]
        if not wide:
            return f"32-bit arithmetic with {what}: addresses have 64 bits"
        if op not in (Alu.ADD, Alu.SUB):
            return f"{what} can only be added to and subtracted from"
        if op == Alu.SUB and right in _POINTERS:
            return f"{what} is subtracted from a number"
        return ""

    # Memory.
    def _null(self, index: int, register: int, value: Value, what: str) -> None:
        spec = value[3] if value[0] == VAL else None
        thing = "a look-up that found nothing" if value[0] == VAL else "a socket that is not there"
        origin = value[1]
        message = f"r{register} {what} without a check whether it is 0 ({thing})"
        if isinstance(spec, MapSpec) and spec.type in _SURE_LOOKUPS and self.certain:
            return  # the verifier may know the key
        self._fault("null-check", index, message + ": compare it with 0 first", ("it comes from", origin))

    def _access(
        self, index: int, insn: Instruction, base: Value, register: int, size: int, state: State, write: bool
    ) -> None:
        """Report an access through *base* that can't be right."""
        kind = base[0]
        offset = insn.offset
        if kind == ANY or (insn.reference is not None and kind not in _NUMBERS):
            return  # with a reference, the offset is known at load
        if kind == MIXED:
            self._fault("scalar-access", index, f"on some way, r{register} is a number, not an address")
        elif kind in _NUMBERS:
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
            if -_STACK <= at < 0:
                self._deepest[self._function] = max(self._deepest[self._function], -at)
            if at < -_STACK or at + size > 0:
                self._fault(
                    "stack-bounds",
                    index,
                    f"bytes {at} to {at + size} of the frame are outside the stack, which is -{_STACK} to 0",
                )
            elif at % size:
                self._fault(
                    "stack-align",
                    index,
                    f"{size} bytes at r10{at:+d} are misaligned: {at} is no multiple of {size}",
                )
        elif kind == CTX:
            self._context(index, base[1], offset, size, register, write)
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

    def _context(self, index: int, moved: int, offset: int, size: int, register: int, write: bool) -> None:
        if moved:
            return
        if self.rights.context is None:
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
        value: Value = _ANY
        if insn.reference is not None:
            pass
        elif kind == FP:
            at = base[1] + insn.offset
            if size == 8 and at in state.stack:
                value = state.stack[at]
            elif -_STACK <= at <= -size:
                mask = ((1 << size) - 1) << (at + _STACK)
                if not state.written & mask:
                    self._never_written.setdefault(
                        index, f"nothing was written to the {size} bytes at r10{at:+d} on any way here"
                    )
                else:
                    self._written_after_all.add(index)
        elif kind == CTX and base[1] == 0 and self.rights.context is not None:
            meaning = self.rights.context[2].get(insn.offset)
            if meaning is None:
                value = _NUM if signed else self._fresh(index, 0, (1 << 8 * size) - 1, regs)
                if insn.offset < 0 or not self.rights.context[0][size] >> insn.offset & 1:
                    value = _ANY
            elif meaning == "pkt":
                value = (PKT, 0, 0, False)
            elif meaning == "pkt_end":
                value = (END,)
            elif meaning.startswith("sock"):
                self._purge(index, state)
                null = meaning.endswith("_or_null")
                value = (SOCK, index, null, meaning.removesuffix("_or_null"))
        elif kind == PKT:
            value = _NUM if signed else self._fresh(index, 0, (1 << 8 * size) - 1, regs)
        elif kind == VAL and base[3] is not None and not base[3].flags and size < 8:
            value = _NUM  # static data that nobody writes is known to the verifier
        if dst == isa.FRAME_POINTER:
            self._fault("frame-pointer", index, "r10 is the frame pointer and can't be changed")
            return
        regs[dst] = value

    def _store(self, index: int, insn: Instruction, state: State) -> None:
        regs = state.regs
        opcode = insn.opcode
        size = _SIZES[opcode & 0x18]
        atomic = opcode & 7 == isa.STX and opcode & 0xE0 == isa.ATOMIC
        if atomic and insn.imm == Atomic.LOAD_ACQ:
            base = self._read(index, insn.src, regs)
            self._access(index, insn, base, insn.src, size, state, False)
            if insn.dst != isa.FRAME_POINTER:
                regs[insn.dst] = _ANY
            return
        stored: Value = (CONST, insn.imm & _U64)
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
            if size < 8 and stored[0] in _POINTERS and not atomic:
                self._fault(
                    "pointer-spill",
                    index,
                    f"r{insn.src} is {_WORDS[stored[0]]}: an address is kept on the stack in 8 aligned "
                    f"bytes, not in {size}",
                )
            for offset in range(at - 7, at + size):
                state.stack.pop(offset, None)
            if -_STACK <= at <= -size:
                state.written |= ((1 << size) - 1) << (at + _STACK)
                if size == 8 and at % 8 == 0 and not atomic:
                    state.stack[at] = _NUM if stored[0] == FREE else stored
        elif base[0] in (ANY, MIXED):
            state.stack.clear()
            state.written = _ALL_WRITTEN
        if atomic:
            if insn.imm == Atomic.CMPXCHG:
                regs[0] = _ANY
            elif insn.imm & 1 and insn.src != isa.FRAME_POINTER:
                regs[insn.src] = _ANY

    def _ld(self, index: int, insn: Instruction, state: State) -> None:
        regs = state.regs
        if insn.opcode == isa.LD_IMM64:
            if insn.dst == isa.FRAME_POINTER:
                self._fault("frame-pointer", index, "r10 is the frame pointer and can't be changed")
                return
            reference = insn.reference if isinstance(insn.reference, MapSpec) else None
            if insn.src == Imm64.VALUE:
                regs[insn.dst] = (CONST, insn.imm64)
            elif insn.src in (Imm64.MAP_FD, Imm64.MAP_IDX):
                regs[insn.dst] = (MAP, reference)
            elif insn.src == Imm64.MAP_VALUE and reference is not None:
                self._purge(index, state)
                room = reference.value_size
                if reference.type in _WITH_VALUES and reference.type != MapType.ARRAY:
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
                regs[insn.dst] = _ANY
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
                "packet-load", index, f"r6 must be the context here, and is {_WORDS.get(value[0], 'not')}"
            )
        if insn.opcode & 0xE0 == isa.IND:
            self._read(index, insn.src, regs)
        for register in range(1, 6):
            regs[register] = (UNSET, index)
        regs[0] = _NUM

    # Calls.
    def _call(self, index: int, insn: Instruction, state: State) -> bool:
        """Whether the program goes on behind the call."""
        if is_local_call(insn):
            return self._local(index, insn, state)
        regs = state.regs
        if insn.src != CallKind.HELPER:
            if insn.src == CallKind.KFUNC and not self.gpl:
                self._fault(
                    "license",
                    index,
                    "functions of the kernel are for programs with a GPL-compatible license, not "
                    f"{self.spec.license!r}",
                )
            self._forget(state)
            state.refs.clear()
            self._clobber(index, state, _ANY)
            return True
        helper = insn.imm
        self._may_call(index, helper)
        arguments = () if self.rights.may_call(helper) is False else self.rights.arguments(helper)
        given = regs.copy()
        for place, kind in enumerate(arguments):
            self._argument(index, helper, place + 1, kind, regs)
        self._map_type(index, helper, given[2 if helper in _MAP_SECOND else 1])
        if any(value[0] in (FP, ANY, MIXED) for value in given[1:6]):
            for value in given[1:6]:
                if value[0] in (ANY, MIXED):
                    state.written = _ALL_WRITTEN
                elif value[0] == FP and -_STACK <= value[1] < 0:
                    state.written |= _ALL_WRITTEN >> (_STACK + value[1]) << (_STACK + value[1])
            state.stack.clear()
        if helper in _RELEASES and given[1][0] in (SOCK, VAL):
            state.refs.pop(given[1][1], None)
            self._drop(given[1][1], state)
        elif helper in _RELEASES or helper == Helper.kptr_xchg:
            state.refs.clear()
        if helper in MOVES_PACKET:
            self._move_packet(index, state)
        self._clobber(index, state, self._result(index, helper, given, state))
        return True

    def _map_type(self, index: int, helper: int, given: Value) -> None:
        wanted = MAPS_OF.get(helper)  # type: ignore[call-overload]
        if wanted is None or given[0] != MAP or given[1] is None or given[1].type in wanted:
            return
        names = " or ".join(sorted(MapType(one).name for one in wanted))
        self._fault(
            "argument-map",
            index,
            f"{Helper(helper).name} works on maps of type {names}; {given[1].name} is {given[1].type.name}",
        )

    def _may_call(self, index: int, helper: int) -> None:
        try:
            name = f"{Helper(helper).name}"
        except ValueError:
            if self.rights.helpers is not None and helper == 0:
                self._fault("helper", index, "there is no helper 0")
            elif not self.certain and helper > max(Helper):
                self._fault(
                    "helper", index, f"helper {helper} is not known here: Linux 6.18 has {int(max(Helper))}"
                )
            return
        if self.rights.may_call(helper) is False:
            self._fault("helper", index, f"{type_name(self.spec.type)} programs can't call {name}")
        elif needs_gpl(helper) and not self.gpl:
            self._fault(
                "license",
                index,
                f"{name} is for programs with a GPL-compatible license, not {self.spec.license!r}",
            )

    def _argument(self, index: int, helper: int, register: int, kind: str, regs: list[Value]) -> None:
        value = regs[register]
        name = Helper(helper).name
        if value[0] <= MAYBE:
            self._unset(index, register, value, f"an argument of {name} and read")
            regs[register] = _ANY
            return
        wanted, _, null = kind.partition("|")
        have = value[0]
        if have == ANY or wanted in ("scalar", "?") or wanted not in _NO_POINTER:
            return
        if have == MIXED:
            if not null:
                self._fault(
                    "argument",
                    index,
                    f"on some way, r{register}, an argument of {name}, is a number; "
                    f"it must be {in_words(wanted)}",
                )
        elif have in _NUMBERS:
            if null and (have != CONST or value[1] == 0):
                return
            self._fault(
                "argument",
                index,
                f"r{register}, an argument of {name}, must be {in_words(wanted)}; it is a number",
            )
        elif have in (VAL, SOCK) and value[2]:
            if not null:
                self._null(index, register, value, f"is passed to {name}")
        elif wanted in _FITS and have not in _FITS[wanted]:
            self._fault(
                "argument",
                index,
                f"r{register}, an argument of {name}, must be {in_words(wanted)}; it is {_WORDS[have]}",
            )

    def _result(self, index: int, helper: int, given: list[Value], state: State) -> Value:
        self._purge(index, state)
        if helper in _ACQUIRES:
            state.refs[index] = index
        if helper in _VALUES:
            spec = given[1][1] if given[1][0] == MAP else None
            if spec is None:
                return _ANY
            if spec.type in (MapType.SOCKMAP, MapType.SOCKHASH):
                state.refs[index] = index
                return (SOCK, index, True, "sock")
            # Of other types a look-up gives something else: another map, a socket of AF_XDP.
            return (VAL, index, True, spec, 0) if spec.type in _WITH_VALUES else _ANY
        if helper == Helper.ringbuf_reserve:
            return (VAL, index, True, None, None)
        if helper in _SOCKETS:
            return (SOCK, index, True, _SOCKETS[Helper(helper)])
        if helper in _FREE_RESULTS:
            return self._fresh(index, 0, _U64, state.regs)
        if helper == Helper.get_prandom_u32:
            return self._fresh(index, 0, _U32, state.regs)
        return _NUM if RESULTS.get(helper) == "scalar" else _ANY

    @staticmethod
    def _clobber(index: int, state: State, result: Value) -> None:
        regs = state.regs
        regs[0] = result
        lost = (UNSET, index)
        regs[1] = regs[2] = regs[3] = regs[4] = regs[5] = lost

    @staticmethod
    def _drop(origin: int, state: State) -> None:
        """A reference has been given back: its copies are worth nothing."""
        for register, value in enumerate(state.regs):
            if value[0] in (VAL, SOCK) and value[1] == origin:
                state.regs[register] = _ANY
        for offset, value in state.stack.items():
            if value[0] in (VAL, SOCK) and value[1] == origin:
                state.stack[offset] = _ANY

    @staticmethod
    def _move_packet(index: int, state: State) -> None:
        for register, value in enumerate(state.regs):
            if value[0] == PKT or value[0] == END:
                state.regs[register] = (GONE, index)
        for offset, value in state.stack.items():
            if value[0] == PKT or value[0] == END:
                state.stack[offset] = _ANY

    @staticmethod
    def _forget(state: State) -> None:
        """Something unknown has run: what it could change is unknown."""
        for register, value in enumerate(state.regs):
            if value[0] in (FREE, VAL, SOCK, PKT, END):
                state.regs[register] = _NUM if value[0] == FREE else _ANY
        state.stack.clear()
        state.written = _ALL_WRITTEN

    def _local(self, index: int, insn: Instruction, state: State) -> bool:
        graph = self.graph
        to = graph.index_of.get(graph.slots[index] + 1 + insn.imm)
        if to is None:
            return False
        place = graph.functions.index(to) if len(graph.functions) < 9 else _place(graph.functions, to)
        entry: list[Value] = [(UNSET, -1)] * 11
        if place in self._globals:
            entry[1] = (CTX, 0)
            for register in range(2, 2 + self._globals[place]):
                entry[register] = _NUM
        else:
            for register in range(1, 6):
                value = state.regs[register]
                # Of the caller's stack and of what is linked with its registers nothing is tracked in here.
                if value[0] in (FP, VAL, SOCK, PKT, FREE, MIXED):
                    value = _NUM if value[0] == FREE else _ANY
                entry[register] = value
        entry[10] = (FP, 0)
        self._arrive(graph.entries[place], State(entry, {}, 0, {}), owned=True)
        self._forget(state)
        state.refs.clear()
        self._clobber(index, state, _ANY)
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
            ends = (_signed(value[1]),) if value[0] == CONST else value[2:4]
            if min(ends) < low or max(ends) > high:
                allowed = f"{low} to {high}" if low < high else f"{low} only"
                found = str(ends[0]) if value[0] == CONST else "any number"
                self._fault(
                    "result", index, f"{type_name(self.spec.type)} programs return {allowed}; this is {found}"
                )
        if block.function == 0:
            for origin in state.refs.values():
                helper = self.graph.instructions[origin].imm
                release = _ACQUIRES.get(Helper(helper), "sk_release")
                self._fault(
                    "reference-leak",
                    index,
                    f"the program can end here with a reference that it has not given back with {release}",
                    (f"{Helper(helper).name} took it at", origin),
                )

    # Branches.
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
            right = (CONST, insn.imm & (_U64 if wide else _U32))
        if len(block.following) < 2:
            for following in block.following:
                self._arrive(following, state)
            return
        behind, target = block.following
        kl, kr = left[0], right[0]
        if kl == CONST and kr == CONST:
            taken = _compare(op, left[1], right[1], 64 if wide else 32)
            self._arrive(target if taken else behind, state)
            return
        if wide and op in (_JEQ, _JNE) and kr == CONST and right[1] == 0 and kl in (VAL, SOCK):
            self._null_test(left, state, *((target, behind) if op == _JEQ else (behind, target)))
            return
        if wide and op in (_JEQ, _JNE) and kl == MIXED and not self.certain:
            regs[insn.dst] = _ANY  # most likely a null check
        if wide and {kl, kr} == {PKT, END}:
            self._bounds_test(
                op if kl == PKT else _SWAPPED.get(Jump(op), 0),
                left if kl == PKT else right,
                state,
                behind,
                target,
            )
            return
        both = not self.certain or self._both_ways(op, wide, left, right)
        for value in (left, right):
            if value[0] == FREE:
                for register, other in enumerate(regs):
                    if other[0] == FREE and other[1] == value[1]:
                        regs[register] = _NUM
        if not both:
            return
        self._arrive(behind, state)
        if wide and op == _JEQ and kl in (FREE, NUM) and kr == CONST:
            regs[insn.dst] = right
        self._arrive(target, state)

    @staticmethod
    def _both_ways(op: int, wide: bool, left: Value, right: Value) -> bool:
        """Whether there are inputs for either outcome."""
        if left[0] == CONST and right[0] == FREE and op != _JSET:
            swapped = {**_SWAPPED, Jump.JEQ: Jump.JEQ, Jump.JNE: Jump.JNE}.get(Jump(op))
            if swapped is None:
                return False
            return Walk._both_ways(swapped, wide, right, left)
        if left[0] != FREE:
            return False
        low: int = left[2]
        high: int = left[3]
        if not wide and high > _U32:
            if low or high != _U64:
                return False
            high = _U32
        if right[0] == FREE:
            return (
                left[1] != right[1]
                and low == right[2] == 0
                and high > 0
                and right[3] > 0
                and op not in _SIGNED
            )
        if right[0] != CONST:
            return False
        value: int = right[1] if wide else right[1] & _U32
        if op in _SIGNED:
            limit = 1 << (63 if wide else 31)
            if high >= limit or value >= limit:
                return False
        if op == _JSET:
            return low == 0 and high & (high + 1) == 0 and bool(high & value)
        if op in (_JEQ, _JNE):
            return low <= value <= high and low < high
        if op in (Jump.JGT, Jump.JLE, Jump.JSGT, Jump.JSLE):
            return bool(low <= value < high)
        return bool(low < value <= high)

    def _null_test(self, value: Value, state: State, null: int, other: int) -> None:
        origin = value[1]
        if not value[2]:
            self._arrive(other, state)
            if not self.certain and state.refs.get(origin) is None and value[0] == VAL:
                return
            return
        spec = value[3] if value[0] == VAL else None
        sure = isinstance(spec, MapSpec) and spec.type in _SURE_LOOKUPS
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


_SIGNED: Final = frozenset({Jump.JSGT, Jump.JSGE, Jump.JSLT, Jump.JSLE})


def _place(functions: list[int], to: int) -> int:
    import bisect

    return bisect.bisect_left(functions, to)


def _fold(op: int, wide: bool, a: int, b: int) -> Value:
    mask = _U64 if wide else _U32
    a &= mask
    b &= mask
    bits = 64 if wide else 32
    if op == Alu.ADD:
        return (CONST, (a + b) & mask)
    if op == Alu.SUB:
        return (CONST, (a - b) & mask)
    if op == Alu.AND:
        return (CONST, a & b)
    if op == Alu.OR:
        return (CONST, a | b)
    if op == Alu.XOR:
        return (CONST, a ^ b)
    if op == Alu.MUL:
        return (CONST, a * b & mask)
    if op == Alu.LSH and b < bits:
        return (CONST, a << b & mask)
    if op == Alu.RSH and b < bits:
        return (CONST, a >> b)
    return _NUM


def _compare(op: int, a: int, b: int, bits: int) -> bool:
    mask = (1 << bits) - 1
    a &= mask
    b &= mask
    if op in _SIGNED:
        a, b = _signed(a, bits), _signed(b, bits)
    if op == _JEQ:
        return a == b
    if op == _JNE:
        return a != b
    if op == _JSET:
        return bool(a & b)
    if op in (Jump.JGT, Jump.JSGT):
        return a > b
    if op in (Jump.JGE, Jump.JSGE):
        return a >= b
    if op in (Jump.JLT, Jump.JSLT):
        return a < b
    return a <= b
