# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Random programs that the verifier takes: arithmetic, jumps, loops, memory, atomics, packets, maps, calls.

Registers: r6 is the context, r7 the packet, of which 64 bytes are reachable, r9 counts loops, all others hold
scalars. The 64 bytes below r10 are written at the beginning; keys are in the 16 below those.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from pybpfasm import isa
from pybpfasm.emulator import Emulator
from pybpfasm.emulator import Program as LoadedProgram
from pybpfasm.emulator.maps import RingBuf
from pybpfasm.instruction import Instruction
from pybpfasm.isa import FORMS, Alu, Atomic, CallKind, Form, Imm64, Jump
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC, Helper, MapType, ProgType
from pybpfasm.layout import U32, U64
from pybpfasm.maps import MapSpec
from pybpfasm.program import Function, ProgramSpec

# Each program has these maps, as far as it names them.
ARRAY: Final = MapSpec("array", MapType.ARRAY, U32(), 32, 4)
OUT: Final = MapSpec("out", MapType.ARRAY, U32(), 128, 1)
HASH: Final = MapSpec("hash", MapType.HASH, U32(), U64(), 4)
PERCPU: Final = MapSpec("percpu", MapType.PERCPU_ARRAY, U32(), U64(), 2)
LRU: Final = MapSpec("lru", MapType.LRU_HASH, U32(), U64(), 512)
QUEUE: Final = MapSpec("queue", MapType.QUEUE, None, U64(), 3)
STACK: Final = MapSpec("stack", MapType.STACK, None, U64(), 3)
TRIE: Final = MapSpec("trie", MapType.LPM_TRIE, 8, U64(), 4, flags=BPF_F_NO_PREALLOC)
PERCPU_HASH: Final = MapSpec("percpu_hash", MapType.PERCPU_HASH, U32(), U64(), 4)
LRU_PERCPU: Final = MapSpec("lru_percpu", MapType.LRU_PERCPU_HASH, U32(), U64(), 512)
RING: Final = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
TAILS: Final = MapSpec("tails", MapType.PROG_ARRAY, U32(), U32(), 4)
# Maps of maps, and the inner maps that the first two entries are.
_INNER: Final = MapSpec("inner", MapType.HASH, U32(), U64(), 2)
INNER: Final = tuple(MapSpec(f"inner{i}", MapType.HASH, U32(), U64(), 2) for i in range(2))
OUTER: Final = MapSpec("outer", MapType.ARRAY_OF_MAPS, U32(), U32(), 3, inner=_INNER)
OUTER_HASH: Final = MapSpec("outer_hash", MapType.HASH_OF_MAPS, U32(), U32(), 3, inner=_INNER)
MAPS: Final = (
    ARRAY,
    OUT,
    HASH,
    PERCPU,
    LRU,
    QUEUE,
    STACK,
    TRIE,
    PERCPU_HASH,
    LRU_PERCPU,
    RING,
    TAILS,
    OUTER,
    OUTER_HASH,
)

REACHABLE: Final = 64  # bytes of the packet behind r7
KEY: Final = -80
AREA: Final = -64
SCALARS: Final = (0, 1, 2, 3, 4, 5, 8)

_INTERESTING: Final = (0, 1, 2, 7, 31, 32, 63, 64, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF)
_WIDE: Final = (
    0x80000000,
    0xFFFFFFFF,
    0x100000000,
    0x7FFFFFFFFFFFFFFF,
    0x8000000000000000,
    0xFFFFFFFFFFFFFFFF,
    0xFFFFFFFF80000000,
)

Code = list[Instruction]


def slots(code: Code) -> int:
    return sum(insn.slots for insn in code)


def _s32(value: int) -> int:
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def mov(dst: int, imm: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.MOV, dst, imm=imm)


def move(dst: int, src: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.MOV | isa.X, dst, src)


def add(dst: int, imm: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.ADD, dst, imm=imm)


def helper(number: Helper) -> Instruction:
    return Instruction(isa.OP_CALL, imm=int(number))


@dataclass
class RandomProgram:
    """A program with the packets that it is run on."""

    seed: int
    spec: ProgramSpec
    packets: list[bytes]
    mark: int
    # What entry 1 of the program array holds, where the program has one.
    tail: ProgramSpec | None = None
    forms: Counter[str] = field(default_factory=Counter)


class Generator:
    """Writes one program."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.statements = self.rng.randrange(4, 14)
        self.functions: list[Code] = []
        self.callbacks: list[Code] = []
        self.in_function = False
        self.loops = 0
        self.depth = 0
        self.moves = self.rng.random() < 0.4
        self.shape = self.rng.random()  # of the program: tail calls do not go with callbacks

    # Choices.
    def value32(self) -> int:
        rng = self.rng
        kind = rng.random()
        if kind < 0.5:
            value = rng.choice(_INTERESTING)
            return _s32(value if rng.random() < 0.6 else -value)
        if kind < 0.7:
            return rng.randrange(-64, 64)
        return _s32(rng.getrandbits(32))

    def value64(self) -> int:
        if self.rng.random() < 0.5:
            return self.rng.choice(_WIDE)
        return self.rng.getrandbits(64)

    def scalar(self) -> int:
        return self.rng.choice(SCALARS[:-1] if self.in_function else SCALARS)

    def set_scalar(self, register: int) -> Instruction:
        kind = self.rng.random()
        if kind < 0.3:
            value = self.value64()
            return Instruction(
                isa.LD_IMM64, register, imm=_s32(value & 0xFFFFFFFF), imm_high=_s32(value >> 32)
            )
        cls = isa.ALU if kind < 0.6 else isa.ALU64
        return Instruction(cls | Alu.MOV, register, imm=self.value32())

    def map_into(self, register: int, spec: MapSpec) -> Instruction:
        return Instruction(isa.LD_IMM64, register, Imm64.MAP_FD, reference=spec)

    def after_call(self) -> Code:
        return [self.set_scalar(register) for register in (1, 2, 3, 4, 5)]

    # Statements.
    def alu(self) -> Code:
        rng = self.rng
        form = rng.choice(_ALU_FORMS)
        insn = Instruction(form.opcode, self.scalar())
        bits = 32 if form.opcode & 7 == isa.ALU else 64
        if 0 in form.src and form.src.values == frozenset({0}):
            insn.src = 0
        else:
            insn.src = self.scalar()
        if form.offset.values is not None:
            insn.offset = rng.choice(sorted(form.offset.values))
        op = form.opcode & 0xF0
        if form.imm.values is not None:
            insn.imm = rng.choice(sorted(form.imm.values))
        else:
            insn.imm = self.value32()
        if op in (Alu.LSH, Alu.RSH, Alu.ARSH) and not form.opcode & isa.X:
            insn.imm = rng.randrange(bits)
        if op in (Alu.DIV, Alu.MOD) and not form.opcode & isa.X and insn.imm == 0:
            insn.imm = 3
        return [insn]

    def condition(self, skip: int) -> Instruction:
        form = self.rng.choice(_JUMP_FORMS)
        insn = Instruction(form.opcode, self.scalar(), offset=skip)
        if form.opcode & isa.X:
            insn.src = self.scalar()
        else:
            insn.imm = self.value32()
        return insn

    def jump_over(self, skip: int) -> Instruction:
        if self.rng.random() < 0.5:
            return Instruction(isa.OP_GOTOL, imm=skip)
        return Instruction(isa.OP_JA, offset=skip)

    def branch(self, depth: int) -> Code:
        then = self.block(depth + 1, self.rng.randrange(1, 4))
        if self.rng.random() < 0.4:
            other = self.block(depth + 1, self.rng.randrange(1, 3))
            then.append(self.jump_over(slots(other)))
            return [self.condition(slots(then)), *then, *other]
        return [self.condition(slots(then)), *then]

    def loop(self, depth: int) -> Code:
        if self.in_function or self.loops >= 2:
            return self.alu()
        self.loops += 1
        body: Code = []
        for _ in range(self.rng.randrange(1, 5)):
            body += self.rng.choice((self.alu, self.stack))()
        count = self.rng.randrange(1, 5)
        body += [add(9, -1)]
        if self.rng.random() < 0.4:
            length = slots(body)
            body.insert(0, Instruction(isa.OP_MAY_GOTO, offset=length + 1))
        return [mov(9, count), *body, Instruction(isa.JMP | Jump.JNE, 9, offset=-slots(body) - 1)]

    def access(
        self,
        base: int,
        low: int,
        high: int,
        *,
        aligned: bool,
        atomics: bool,
        only: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    ) -> Code:
        """One access to bytes *low* to *high* - 1 from register *base*, with a scalar in *only*."""
        rng = self.rng
        kinds = [isa.LDX, isa.LDX, isa.ST, isa.STX, isa.STX]
        if atomics:
            kinds += [-1, -1, -1, -2]
        kind = rng.choice(kinds)
        size_code = rng.choice((isa.W, isa.H, isa.B, isa.DW))
        if kind == -1:
            size_code = rng.choice((isa.W, isa.DW))
        size = isa.SIZE_OF[size_code]
        step = size if aligned or kind < 0 else 1
        first = -(-low // step) * step
        offset = rng.randrange(first, high - size + 1, step)
        register = rng.choice([r for r in only if r != base])
        if kind == isa.LDX:
            mode = isa.MEMSX if size < 8 and rng.random() < 0.4 else isa.MEM
            return [Instruction(isa.LDX | mode | size_code, register, base, offset)]
        if kind == isa.ST:
            return [Instruction(isa.ST | isa.MEM | size_code, base, 0, offset, self.value32())]
        if kind == isa.STX:
            return [Instruction(isa.STX | isa.MEM | size_code, base, register, offset)]
        atomic = isa.STX | isa.ATOMIC | size_code
        if kind == -2:
            if rng.random() < 0.5:
                return [Instruction(atomic, register, base, offset, Atomic.LOAD_ACQ)]
            return [Instruction(atomic, base, register, offset, Atomic.STORE_REL)]
        op = rng.choice(_ATOMICS)
        if op == Atomic.CMPXCHG and base == 0:
            op = Atomic.XCHG
        return [Instruction(atomic, base, register, offset, op)]

    def stack(self) -> Code:
        if self.in_function:
            return self.alu()
        if self.rng.random() < 0.2:
            # A variable offset: aligned, and within the area.
            return [
                move(1, 10),
                add(1, AREA),
                Instruction(isa.ALU64 | Alu.AND, 2, imm=48),
                Instruction(isa.ALU64 | Alu.ADD | isa.X, 1, 2),
                *self.access(1, 0, 16, aligned=True, atomics=False),
                self.set_scalar(1),
            ]
        return self.access(10, AREA, 0, aligned=True, atomics=True)

    def packet(self) -> Code:
        if self.in_function:
            return self.alu()
        if self.rng.random() < 0.25:
            inner = self.access(1, 0, 8, aligned=False, atomics=False, only=(0, 2, 5))
            return [
                Instruction(isa.ALU64 | Alu.AND, 2, imm=63),
                move(1, 7),
                Instruction(isa.ALU64 | Alu.ADD | isa.X, 1, 2),
                move(3, 1),
                add(3, 8),
                Instruction(isa.LDX | isa.MEM | isa.W, 4, 6, SkBuff.offsetof("data_end")),
                Instruction(isa.JMP | Jump.JGT | isa.X, 3, 4, slots(inner)),
                *inner,
                self.set_scalar(1),
                self.set_scalar(3),
                self.set_scalar(4),
            ]
        return self.access(7, 0, REACHABLE, aligned=False, atomics=False)

    def derive_packet(self) -> Code:
        """R7 anew, or the end of the program where the packet is too short."""
        return [
            Instruction(isa.LDX | isa.MEM | isa.W, 7, 6, SkBuff.offsetof("data")),
            Instruction(isa.LDX | isa.MEM | isa.W, 1, 6, SkBuff.offsetof("data_end")),
            move(2, 7),
            add(2, REACHABLE),
            Instruction(isa.JMP | Jump.JLE | isa.X, 2, 1, 2),
            mov(0, 77),
            Instruction(isa.OP_EXIT),
            self.set_scalar(1),
            self.set_scalar(2),
        ]

    def context(self) -> Code:
        if self.in_function:
            return self.alu()
        rng = self.rng
        if rng.random() < 0.4:
            name = rng.choice(("mark", "priority", "tc_index"))
            return [Instruction(isa.STX | isa.MEM | isa.W, 6, rng.choice((0, 2, 8)), SkBuff.offsetof(name))]
        if rng.random() < 0.5:
            at = SkBuff.offsetof("cb") + 4 * rng.randrange(5)
            size = rng.choice((isa.W, isa.H, isa.B))
            opcode = rng.choice((isa.STX, isa.LDX))
            if opcode == isa.STX:
                return [Instruction(isa.STX | isa.MEM | size, 6, rng.choice((0, 2, 8)), at)]
            return [Instruction(isa.LDX | isa.MEM | size, rng.choice((0, 2, 8)), 6, at)]
        name = rng.choice(("len", "mark", "protocol", "priority", "tc_index", "vlan_present", "gso_segs"))
        at = SkBuff.offsetof(name)
        if name == "len" and rng.random() < 0.5:
            size, at = rng.choice(((isa.B, at), (isa.H, at), (isa.H, at + 2)))
            return [Instruction(isa.LDX | isa.MEM | size, rng.choice((0, 2, 8)), 6, at)]
        return [Instruction(isa.LDX | isa.MEM | isa.W, rng.choice((0, 2, 8)), 6, at)]

    def key(self, mask: int) -> Code:
        """A key of 4 bytes, a scalar with a few values, at KEY."""
        register = self.rng.choice((0, 2, 8))
        return [
            Instruction(isa.ALU64 | Alu.AND, register, imm=mask),
            Instruction(isa.STX | isa.MEM | isa.W, 10, register, KEY),
        ]

    def pointer_to(self, register: int, offset: int) -> Code:
        return [move(register, 10), add(register, offset)]

    def look_up(self) -> Code:
        if self.in_function:
            return self.alu()
        spec, mask, size = self.rng.choice(
            (
                (ARRAY, 5, 32),
                (HASH, 7, 8),
                (PERCPU, 3, 8),
                (LRU, 7, 8),
                (OUT, 1, 128),
                (PERCPU_HASH, 7, 8),
                (LRU_PERCPU, 7, 8),
            )
        )
        inner: Code = []
        for _ in range(self.rng.randrange(1, 4)):
            inner += self.access_value(size)
        return [
            *self.key(mask),
            self.map_into(1, spec),
            *self.pointer_to(2, KEY),
            helper(Helper.map_lookup_elem),
            *self.after_call(),
            Instruction(isa.JMP | Jump.JEQ, 0, offset=slots(inner)),
            *inner,
            self.set_scalar(0),
        ]

    def access_value(self, size: int) -> Code:
        rng = self.rng
        code = self.access(0, 0, size, aligned=False, atomics=True)
        # The pointer itself must not become a number that the kernel and we know different values of.
        insn = code[0]
        if insn.opcode & 7 in (isa.STX,) and insn.src == 0 and insn.imm != Atomic.LOAD_ACQ:
            insn.src = rng.choice((1, 2, 3, 4, 5))
        return code

    def update(self) -> Code:
        if self.in_function:
            return self.alu()
        rng = self.rng
        spec, mask = rng.choice(
            (
                (ARRAY, 7),
                (HASH, 7),
                (HASH, 15),
                (PERCPU, 3),
                (LRU, 15),
                (PERCPU_HASH, 7),
                (LRU_PERCPU, 15),
            )
        )
        if rng.random() < 0.25:
            spec = rng.choice((HASH, LRU, PERCPU_HASH, LRU_PERCPU, ARRAY))
            return [
                *self.key(mask),
                self.map_into(1, spec),
                *self.pointer_to(2, KEY),
                helper(Helper.map_delete_elem),
                *self.after_call(),
            ]
        return [
            *self.key(mask),
            self.map_into(1, spec),
            *self.pointer_to(2, KEY),
            *self.pointer_to(3, AREA),
            mov(4, rng.choice((0, 0, 0, 1, 2, 3, 5, 9))),
            helper(Helper.map_update_elem),
            *self.after_call(),
        ]

    def queue(self) -> Code:
        if self.in_function:
            return self.alu()
        rng = self.rng
        spec = rng.choice((QUEUE, STACK))
        if rng.random() < 0.5:
            return [
                self.map_into(1, spec),
                *self.pointer_to(2, AREA),
                mov(3, rng.choice((0, 0, 0, 1, 2, 3))),
                helper(Helper.map_push_elem),
                *self.after_call(),
            ]
        number = rng.choice((Helper.map_pop_elem, Helper.map_peek_elem))
        return [self.map_into(1, spec), *self.pointer_to(2, AREA), helper(number), *self.after_call()]

    def trie(self) -> Code:
        if self.in_function:
            return self.alu()
        rng = self.rng
        data = rng.choice((0, 0x0A, 0xFF, 0x010A, 0x80))
        fill = [
            Instruction(isa.ST | isa.MEM | isa.W, 10, 0, KEY, rng.choice((0, 1, 7, 8, 9, 16, 24, 32, 33))),
            Instruction(isa.ST | isa.MEM | isa.W, 10, 0, KEY + 4, data),
            self.map_into(1, TRIE),
            *self.pointer_to(2, KEY),
        ]
        kind = rng.random()
        if kind < 0.45:
            return [
                *fill,
                *self.pointer_to(3, AREA),
                mov(4, rng.choice((0, 0, 0, 1, 2, 3))),
                helper(Helper.map_update_elem),
                *self.after_call(),
            ]
        if kind < 0.6:
            return [*fill, helper(Helper.map_delete_elem), *self.after_call()]
        inner = self.access_value(8)
        return [
            *fill,
            helper(Helper.map_lookup_elem),
            *self.after_call(),
            Instruction(isa.JMP | Jump.JEQ, 0, offset=slots(inner)),
            *inner,
            self.set_scalar(0),
        ]

    def direct_value(self) -> Code:
        if self.in_function:
            return self.alu()
        offset = 8 * self.rng.randrange(8)
        return [
            Instruction(isa.LD_IMM64, 1, Imm64.MAP_VALUE, imm_high=offset, reference=OUT),
            *self.access(1, 0, 32, aligned=False, atomics=True),
            self.set_scalar(1),
        ]

    def local_call(self) -> Code:
        if self.in_function:
            return self.alu()
        if len(self.functions) < 3 and (not self.functions or self.rng.random() < 0.5):
            self.in_function = True
            self.functions.append(
                [self.set_scalar(0), *self.block(2, self.rng.randrange(1, 5)), Instruction(isa.OP_EXIT)]
            )
            self.in_function = False
            index = len(self.functions) - 1
        else:
            index = self.rng.randrange(len(self.functions))
        return [
            Instruction(isa.OP_CALL, src=CallKind.LOCAL, imm=-1, reference=("function", index)),
            *self.after_call(),
        ]

    def callback(self) -> Code:
        """``bpf_loop`` or ``for_each_map_elem``, with a callback that works on the area."""
        # Not in a branch: Linux 6.18 trips over a callback of code that it finds to be dead.
        if self.in_function or self.callbacks or self.depth or self.shape < 0.2:
            return self.alu()
        code: Code = []
        over_map = self.rng.random() < 0.5
        context = 4 if over_map else 2
        # r7 is free in a callback's own frame.
        code += [move(7, context), mov(0, 0)]
        code += [self.set_scalar(r) for r in (1, 2, 3, 4, 5, 8)]
        for _ in range(self.rng.randrange(1, 4)):
            code += self.alu()
            code += self.access(7, 0, 64, aligned=True, atomics=True)
        code += [Instruction(isa.ALU64 | Alu.AND, 0, imm=1), Instruction(isa.OP_EXIT)]
        self.callbacks.append(code)
        function = Instruction(isa.LD_IMM64, 2, Imm64.FUNC, imm=-1, reference=("callback", 0))
        spec = self.rng.choice((ARRAY, PERCPU))
        return [
            self.map_into(1, spec) if over_map else mov(1, self.rng.randrange(1, 6)),
            function,
            *self.pointer_to(3, AREA),
            mov(4, self.rng.choice((0, 0, 0, 1))),
            helper(Helper.for_each_map_elem if over_map else Helper.loop),
            *self.after_call(),
        ]

    def of_cpu(self) -> Code:
        """``map_lookup_percpu_elem``, for this CPU and for those that do not exist."""
        if self.in_function:
            return self.alu()
        inner = self.access_value(8)
        cpu = self.rng.choice((0, 0, 1, 4096, -1))
        return [
            *self.key(3),
            self.map_into(1, self.rng.choice((PERCPU, PERCPU_HASH, LRU_PERCPU))),
            *self.pointer_to(2, KEY),
            mov(3, cpu),
            helper(Helper.map_lookup_percpu_elem),
            *self.after_call(),
            Instruction(isa.JMP | Jump.JEQ, 0, offset=slots(inner)),
            *inner,
            self.set_scalar(0),
        ]

    def inner_map(self) -> Code:
        """A map in a map, and an operation on it."""
        if self.in_function:
            return self.alu()
        rng = self.rng
        kind = rng.random()
        if kind < 0.4:
            access = self.access_value(8)
            inner = [
                helper(Helper.map_lookup_elem),
                *self.after_call(),
                Instruction(isa.JMP | Jump.JEQ, 0, offset=slots(access)),
                *access,
            ]
        elif kind < 0.8:
            inner = [
                *self.pointer_to(3, AREA),
                mov(4, rng.choice((0, 0, 1, 2, 3))),
                helper(Helper.map_update_elem),
                *self.after_call(),
            ]
        else:
            inner = [helper(Helper.map_delete_elem), *self.after_call()]
        inner = [move(1, 0), *self.pointer_to(2, KEY), *inner]
        return [
            *self.key(3),
            self.map_into(1, rng.choice((OUTER, OUTER_HASH))),
            *self.pointer_to(2, KEY),
            helper(Helper.map_lookup_elem),
            *self.after_call(),
            Instruction(isa.JMP | Jump.JEQ, 0, offset=slots(inner)),
            *inner,
            self.set_scalar(0),
        ]

    def ring(self) -> Code:
        """Records into a ring buffer, which is small and fills up."""
        if self.in_function:
            return self.alu()
        rng = self.rng
        kind = rng.random()
        if kind < 0.3:
            return [
                self.map_into(1, RING),
                *self.pointer_to(2, AREA),
                mov(3, rng.choice((0, 1, 7, 8, 9, 64))),
                mov(4, rng.choice((0, 0, 0, 1, 2, 4))),
                helper(Helper.ringbuf_output),
                *self.after_call(),
            ]
        if kind < 0.5:
            return [
                self.map_into(1, RING),
                mov(2, rng.choice((0, 1, 2, 3, 4))),
                helper(Helper.ringbuf_query),
                *self.after_call(),
            ]
        size = rng.choice((16, 24, 1000, 4080, 4088, 5000))
        # All of the record is compared, and the kernel gives it as it was: so it is written first.
        fill = [Instruction(isa.ST | isa.MEM | isa.DW, 0, 0, at, self.value32()) for at in range(0, 24, 8)]
        fill = fill[: size // 8]
        inner: Code = []
        for _ in range(rng.randrange(1, 3)):
            inner += self.access(0, 0, 16, aligned=True, atomics=False, only=(1, 2, 3, 4, 5))
        number = Helper.ringbuf_discard if size > 24 or rng.random() < 0.3 else Helper.ringbuf_submit
        inner = [*fill, *inner, move(1, 0), mov(2, rng.choice((0, 1, 2))), helper(number)]
        return [
            self.map_into(1, RING),
            mov(2, size),
            mov(3, 0),
            helper(Helper.ringbuf_reserve),
            *self.after_call(),
            Instruction(isa.JMP | Jump.JEQ, 0, offset=slots(inner)),
            *inner,
            *self.after_call(),
            self.set_scalar(0),
        ]

    def tail_call(self) -> Code:
        """A tail call that fails, or one that does not come back."""
        if self.in_function or self.shape > 0.2:
            return self.alu()
        register = self.rng.choice((2, 8))
        return [
            Instruction(isa.ALU64 | Alu.AND, register, imm=self.rng.choice((3, 7))),
            move(3, register),
            move(1, 6),
            self.map_into(2, TAILS),
            helper(Helper.tail_call),
            *self.after_call(),
            self.set_scalar(0),
        ]

    def packet_helper(self) -> Code:
        if self.in_function or not self.moves:
            return self.alu()
        rng = self.rng
        size = rng.choice((1, 2, 4, 7, 8, 16))
        offset = rng.choice((0, 1, 12, 14, 24, 50, 51, 60, 63, 64, 80, 200, 0x10000, -1))
        before: Code = [move(1, 6)]
        kind = rng.randrange(7)
        if kind == 0:
            return [
                *before,
                mov(2, offset),
                *self.pointer_to(3, AREA),
                mov(4, size),
                helper(Helper.skb_load_bytes),
                *self.after_call(),
            ]
        if kind == 1:
            return [
                *before,
                mov(2, offset),
                *self.pointer_to(3, AREA),
                mov(4, size),
                mov(5, rng.choice((0, 1, 1, 2))),
                helper(Helper.skb_load_bytes_relative),
                *self.after_call(),
            ]
        if kind == 2:
            call = [
                *before,
                mov(2, offset),
                *self.pointer_to(3, AREA),
                mov(4, size),
                mov(5, rng.choice((0, 1, 2, 3, 4))),
                helper(Helper.skb_store_bytes),
            ]
        elif kind == 3:
            call = [*before, mov(2, rng.choice((0, 1, 64, 80, 300))), helper(Helper.skb_pull_data)]
        elif kind in (4, 5):
            number = Helper.l3_csum_replace if kind == 4 else Helper.l4_csum_replace
            flags = rng.choice((0, 2, 2, 4, 4, 3))
            if kind == 5:
                flags |= rng.choice((0, 0, 16, 32, 48, 64, 96, 256))
            old = [Instruction(isa.LDX | isa.MEM | isa.DW, 3, 10, AREA)] if flags & 15 else [mov(3, 0)]
            call = [
                *before,
                mov(2, offset),
                *old,
                Instruction(isa.LDX | isa.MEM | isa.DW, 4, 10, AREA + 8),
                mov(5, flags),
                helper(number),
            ]
        else:
            number = rng.choice((Helper.skb_change_tail, Helper.csum_update))
            length = rng.choice((10, 60, 64, 70, 100, 200))
            call = [*before, mov(2, length), mov(3, 0), helper(number)]
        return [*call, *self.after_call(), *self.derive_packet()]

    def csum_diff(self) -> Code:
        if self.in_function:
            return self.alu()
        rng = self.rng
        first, second = rng.choice((0, 4, 8, 12, 5)), rng.choice((0, 4, 8, 16, 6))
        seed: Code = [move(5, 8)]
        return [
            *seed,
            *(self.pointer_to(1, AREA) if first else [mov(1, 0)]),
            mov(2, first),
            *(self.pointer_to(3, AREA + 16) if second else [mov(3, 0)]),
            mov(4, second),
            helper(Helper.csum_diff),
            *self.after_call(),
        ]

    def legacy(self) -> Code:
        if self.in_function:
            return self.alu()
        rng = self.rng
        size = rng.choice((isa.W, isa.H, isa.B))
        at = rng.choice((0, 12, 14, 23, 40, 60))
        if rng.random() < 0.5:
            return [Instruction(isa.LD | isa.ABS | size, imm=at), *self.after_call()]
        return [
            Instruction(isa.ALU64 | Alu.AND, 2, imm=15),
            Instruction(isa.LD | isa.IND | size, src=2, imm=at),
            *self.after_call(),
        ]

    def block(self, depth: int, count: int) -> Code:
        rng = self.rng
        out: Code = []
        for _ in range(count):
            self.depth = depth
            kind = rng.random()
            if kind < 0.42:
                out += self.alu()
            elif kind < 0.54 and depth < 3:
                out += self.branch(depth)
            elif kind < 0.58 and depth == 0:
                out += self.loop(depth)
            else:
                out += rng.choice(
                    (
                        self.stack,
                        self.stack,
                        self.packet,
                        self.packet,
                        self.context,
                        self.look_up,
                        self.look_up,
                        self.update,
                        self.queue,
                        self.trie,
                        self.direct_value,
                        self.local_call,
                        self.callback,
                        self.packet_helper,
                        self.csum_diff,
                        self.legacy,
                        self.of_cpu,
                        self.inner_map,
                        self.ring,
                        self.tail_call,
                    )
                )()
        return out

    def program(self) -> RandomProgram:
        rng = self.rng
        main: Code = [move(6, 1), *self.derive_packet()]
        for at in range(-80, 0, 8):
            main.append(Instruction(isa.ST | isa.MEM | isa.DW, 10, 0, at, self.value32()))
        main += [self.set_scalar(register) for register in (0, 3, 4, 5, 8)]
        main += self.block(0, self.statements)
        # Everything that is a scalar goes out.
        main.append(Instruction(isa.LD_IMM64, 9, Imm64.MAP_VALUE, imm_high=64, reference=OUT))
        for index, register in enumerate(SCALARS):
            main.append(Instruction(isa.STX | isa.MEM | isa.DW, 9, register, index * 8))
        main.append(Instruction(isa.OP_EXIT))
        whole = list(main)
        functions = [Function("main", 0, (), None, {})]
        starts: dict[tuple[str, int], int] = {}
        for kind, bodies in (("function", self.functions), ("callback", self.callbacks)):
            for index, body in enumerate(bodies):
                starts[kind, index] = slots(whole)
                arguments = ("a", "b", "c", "d", "e") if kind == "function" else ("i", "c")
                functions.append(Function(f"{kind}{index}", slots(whole), arguments, None, {}))
                whole += body
        at = 0
        for insn in whole:
            if isinstance(insn.reference, tuple):
                insn.imm = starts[insn.reference] - at - 1
                insn.reference = None
            at += insn.slots
        packets = []
        for _ in range(rng.randrange(1, 4)):
            size = rng.choice((64, 65, 80, 128))
            payload = bytes(rng.getrandbits(8) for _ in range(size - 14))
            kind16 = rng.choice((b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x90\x00"))
            packets.append(bytes(12) + kind16 + payload)
        forms = Counter(name_of(insn) for insn in whole)
        spec = ProgramSpec(
            "random",
            ProgType.SCHED_CLS,
            None,
            "GPL",
            tuple(whole),
            tuple(functions),
            "little",
        )
        tail = None
        if TAILS in spec.maps:
            tail = ProgramSpec("tail", ProgType.SCHED_CLS, None, "GPL", tuple(_tail(rng)), (), "little")
        return RandomProgram(self.seed, spec, packets, rng.getrandbits(32), tail, forms)


def _tail(rng: random.Random) -> Code:
    """What a tail call ends in: r1 is the context, the frame is new."""
    return [
        Instruction(isa.LDX | isa.MEM | isa.W, 3, 1, SkBuff.offsetof("mark")),
        Instruction(isa.ALU64 | Alu.XOR, 3, imm=_s32(rng.getrandbits(32))),
        Instruction(isa.STX | isa.MEM | isa.W, 1, 3, SkBuff.offsetof("mark")),
        Instruction(isa.LD_IMM64, 2, Imm64.MAP_VALUE, imm_high=120, reference=OUT),
        Instruction(isa.STX | isa.MEM | isa.DW, 2, 3, 0),
        move(0, 3),
        Instruction(isa.OP_EXIT),
    ]


def prepare(program: RandomProgram, emulator: Emulator, engine: str) -> LoadedProgram:
    """The program loaded, its maps of maps and program arrays filled."""
    loaded = emulator.load(program.spec, engine=engine)
    for outer in (OUTER, OUTER_HASH):
        if outer in program.spec.maps:
            for index, inner in enumerate(INNER):
                emulator.map(outer)[index] = emulator.map(inner)
    if program.tail is not None:
        emulator.map(TAILS)[1] = emulator.load(program.tail, engine=engine)
    return loaded


def contents(emulator: Emulator) -> dict[str, object]:
    """What the maps of programs hold."""
    return {
        name: one.consume() if isinstance(one, RingBuf) else one.items_raw()
        for name, one in emulator.maps.items()
        if one.type not in (MapType.PROG_ARRAY, MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
    }


_names: dict[tuple[int, int, int, int], str] = {}


def name_of(insn: Instruction) -> str:
    """The row of the table that an instruction counts for."""
    # The immediate tells atomic operations and the widths of byte swaps apart, nothing else.
    told = insn.opcode & 0xF0 == Alu.END or insn.opcode & 0xE7 == isa.STX | isa.ATOMIC
    key = (insn.opcode, insn.src if insn.opcode in _BY_SOURCE else 0, insn.offset, insn.imm if told else 0)
    if insn.opcode & 7 not in (isa.ALU, isa.ALU64):
        key = (*key[:2], 0, key[3])
    name = _names.get(key)
    if name is None:
        form = insn.form()
        name = _names[key] = "invalid" if form is None else row(form, insn.imm)
    return name


_BY_SOURCE: Final = frozenset({isa.OP_CALL, isa.LD_IMM64})


def row(form: Form, imm: int = 0) -> str:
    """A form, told apart by source, size and atomic operation."""
    opcode = form.opcode
    cls = opcode & 7
    if cls in (isa.LD, isa.LDX, isa.ST, isa.STX):
        size = {isa.W: "w", isa.H: "h", isa.B: "b", isa.DW: "dw"}[opcode & 0x18]
        if form.name == "atomic":
            return f"{Atomic(imm).name.lower()} {size}"
        if form.name == "lddw":
            kind = min(form.src.values or (0,))
            return f"lddw {Imm64(kind).name.lower()}"
        return f"{form.name} {size}"
    if cls in (isa.ALU, isa.ALU64) or form.name.startswith("j"):
        if form.name in ("le", "be", "bswap"):
            return f"{form.name}{imm}"
        if form.name.startswith("movsx"):
            return f"{form.name} x"
        return f"{form.name} {'x' if opcode & isa.X else 'k'}"
    return form.name


# What no program of a released kernel may have, or what needs more than a program to be tried.
OUT_OF_SCOPE: Final = frozenset(
    {
        "addr_space_cast x",
        "call_kfunc",
        "callx",
        "gotox",
        "lddw btf_id",
        "lddw map_idx",
        "lddw map_idx_value",
    }
)


def all_rows() -> list[str]:
    """Every row that the generator must reach."""
    found: dict[str, None] = {}
    for forms in FORMS.values():
        for form in forms:
            imms = sorted(form.imm.values) if form.imm.values is not None else [0]
            if form.name not in ("atomic", "le", "be", "bswap"):
                imms = [0]
            for imm in imms:
                found[row(form, imm)] = None
    return [name for name in found if name not in OUT_OF_SCOPE]


_ALU_FORMS: Final = [
    form
    for forms in FORMS.values()
    for form in forms
    if form.opcode & 7 in (isa.ALU, isa.ALU64) and form.name != "addr_space_cast"
]
_JUMP_FORMS: Final = [
    form
    for forms in FORMS.values()
    for form in forms
    if form.name.startswith("j") and form.name != "ja" and form.opcode & 7 in (isa.JMP, isa.JMP32)
]
_ATOMICS: Final = (
    Atomic.ADD,
    Atomic.OR,
    Atomic.AND,
    Atomic.XOR,
    Atomic.FETCH_ADD,
    Atomic.FETCH_OR,
    Atomic.FETCH_AND,
    Atomic.FETCH_XOR,
    Atomic.XCHG,
    Atomic.CMPXCHG,
)


def generate(seed: int) -> RandomProgram:
    """The program of a seed, always the same."""
    return Generator(seed).program()
