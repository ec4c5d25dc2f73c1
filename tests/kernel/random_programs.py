# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs made at random, mostly plausible, from a seed: the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Atomic, CallKind, Imm64, Jump
from pybpfasm.kernel.context import SkBuff, SkMsgMd, XdpMd
from pybpfasm.kernel.enums import Helper, MapType, ProgType
from pybpfasm.layout import U32, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import Function, ProgramSpec

HASH = MapSpec("hash", MapType.HASH, U32(), 16, 4)
ARRAY = MapSpec("array", MapType.ARRAY, U32(), 16, 4)
ONE = MapSpec("one", MapType.ARRAY, U32(), 16, 1)
RING = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
MAPS = (HASH, ARRAY, ONE, RING)

EXIT = Instruction(isa.OP_EXIT)
_JUMPS = [j for j in Jump if j not in (Jump.JA, Jump.CALL, Jump.EXIT, Jump.JCOND)]
_SIZES = (isa.B, isa.H, isa.W, isa.DW)
_CONTEXTS: tuple[tuple[ProgType, type[Struct]], ...] = (
    (ProgType.SCHED_CLS, SkBuff),
    (ProgType.XDP, XdpMd),
    (ProgType.SOCKET_FILTER, SkBuff),
    (ProgType.SK_MSG, SkMsgMd),
)


def mov(dst: int, imm: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.MOV | isa.K, dst, imm=imm)


def copy(dst: int, src: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.MOV | isa.X, dst, src)


def add(dst: int, imm: int) -> Instruction:
    return Instruction(isa.ALU64 | Alu.ADD | isa.K, dst, imm=imm)


def load(dst: int, src: int, offset: int, size: int = isa.W) -> Instruction:
    return Instruction(isa.LDX | isa.MEM | size, dst, src, offset)


def store(dst: int, src: int, offset: int, size: int = isa.DW) -> Instruction:
    return Instruction(isa.STX | isa.MEM | size, dst, src, offset)


def call(helper: int) -> Instruction:
    return Instruction(isa.OP_CALL, imm=helper)


def jump(op: int, dst: int, imm: int = 0, offset: int = 0) -> Instruction:
    return Instruction(isa.JMP | op | isa.K, dst, imm=imm, offset=offset)


class Maker:
    """Makes one program after the other."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def reg(self) -> int:
        return self.r.choice(
            (0, 1, 2, 3, 4, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10)
            if self.r.random() < 0.1
            else (0, 1, 2, 3, 6, 7, 8, 9)
        )

    def piece(self, context: type[Struct]) -> list[Instruction]:
        """A few instructions that often go together."""
        r = self.r
        kind = r.randrange(20)
        if kind < 3:
            offsets = [f.offset for f in context.fields.values()]
            return [
                load(
                    self.reg(),
                    r.choice((6, 6, 6, 1)),
                    r.choice(offsets) if r.random() < 0.9 else r.randrange(-4, 200),
                    r.choice((isa.W, isa.W, isa.W, isa.H, isa.B, isa.DW)),
                )
            ]
        if kind < 5:
            return [mov(self.reg(), r.choice((0, 1, 4, -1, 255, 65535)))]
        if kind == 5:
            return [copy(self.reg(), self.reg())]
        if kind == 6:
            op: int = r.choice([op for op in Alu if op not in (Alu.MOV, Alu.END, Alu.NEG)])
            cls = r.choice((isa.ALU, isa.ALU64, isa.ALU64))
            if r.random() < 0.5:
                return [Instruction(cls | op | isa.K, self.reg(), imm=r.choice((1, 3, 7, 8, 0, 31, 40, 255)))]
            return [Instruction(cls | op | isa.X, self.reg(), self.reg())]
        if kind == 7:
            return [
                store(10, self.reg(), r.choice((-8, -8, -16, -24, -512, -520, -4, 0, -12)), r.choice(_SIZES))
            ]
        if kind == 8:
            return [load(self.reg(), 10, r.choice((-8, -8, -16, -24, -512, -520, -4, -12)), r.choice(_SIZES))]
        if kind in (9, 10):
            out = [Instruction(isa.ST | isa.MEM | isa.W, 10, offset=-4, imm=r.choice((0, 1, 9)))]
            out += [Instruction(isa.LD_IMM64, 1, Imm64.MAP_FD, reference=r.choice((HASH, HASH, ARRAY)))]
            out += [copy(2, 10), add(2, -4), call(Helper.map_lookup_elem)]
            if r.random() < 0.3:
                out += [copy(self.reg(), 0)]
            if r.random() < 0.7:
                out += [jump(r.choice((Jump.JEQ, Jump.JNE)), 0, 0, r.randrange(1, 8))]
            if r.random() < 0.8:
                out += [load(self.reg(), 0, r.choice((0, 8, 12, 16, 14)), r.choice(_SIZES))]
            return out
        if kind in (11, 12):
            data, end = context.fields.get("data"), context.fields.get("data_end")
            if data is None or end is None:
                return []
            size = isa.SIZE_CODE[data.size]
            out = [load(7, 6, data.offset, size), load(8, 6, end.offset, size)]
            if r.random() < 0.8:
                compared: int = r.choice((Jump.JGT, Jump.JGT, Jump.JGE, Jump.JLE, Jump.JLT))
                out += [copy(2, 7), add(2, r.choice((14, 14, 1, 34)))]
                out += [Instruction(isa.JMP | compared | isa.X, 2, 8, offset=r.randrange(1, 6))]
            if r.random() < 0.8:
                out += [load(self.reg(), 7, r.choice((0, 12, 13, 14, 33, -1)), r.choice(_SIZES))]
            return out
        if kind in (13, 14, 15):
            cls = r.choice((isa.JMP, isa.JMP, isa.JMP32))
            condition: int = r.choice(_JUMPS)
            offset = r.randrange(1, 9) if r.random() < 0.93 else r.randrange(-12, 30)
            if r.random() < 0.7:
                return [
                    Instruction(
                        cls | condition | isa.K,
                        self.reg(),
                        imm=r.choice((0, 0, 1, 5, 255, -1, 70000)),
                        offset=offset,
                    )
                ]
            return [Instruction(cls | condition | isa.X, self.reg(), self.reg(), offset=offset)]
        if kind == 16:
            helper = r.choice(
                (
                    Helper.ktime_get_ns,
                    Helper.get_prandom_u32,
                    Helper.get_smp_processor_id,
                    Helper.skb_pull_data,
                    Helper.redirect,
                    Helper.sk_release,
                    r.randrange(0, 215),
                )
            )
            if helper == Helper.skb_pull_data:
                return [copy(1, 6), mov(2, 20), call(helper)]
            return [call(helper)]
        if kind == 17:
            return r.choice(
                (
                    [
                        Instruction(
                            isa.STX | isa.ATOMIC | isa.DW, self.reg(), self.reg(), 0, r.choice(list(Atomic))
                        )
                    ],
                    [Instruction(isa.LD | isa.ABS | isa.B, imm=3)],
                    [Instruction(isa.OP_MAY_GOTO, offset=r.randrange(0, 4))],
                    [
                        Instruction(
                            isa.LD_IMM64,
                            self.reg(),
                            Imm64.MAP_VALUE,
                            imm_high=r.choice((0, 8)),
                            reference=ONE,
                        )
                    ],
                    [Instruction(isa.LD_IMM64, self.reg(), Imm64.VALUE, imm=5)],
                    [Instruction(isa.ALU | Alu.END | isa.X, self.reg(), imm=r.choice((16, 32)))],
                )
            )
        if kind == 18:
            return r.choice(
                (
                    [Instruction(isa.OP_JA, offset=r.randrange(0, 4))],
                    [mov(0, 0), EXIT],
                    [store(6, self.reg(), r.choice((8, 12, 48, 4, 76)), r.choice((isa.W, isa.DW)))],
                    [
                        Instruction(isa.LD_IMM64, 1, Imm64.MAP_FD, reference=RING),
                        mov(2, 8),
                        mov(3, 0),
                        call(Helper.ringbuf_reserve),
                        jump(Jump.JEQ, 0, 0, r.randrange(1, 5)),
                        copy(1, 0),
                        mov(2, 0),
                        *([call(Helper.ringbuf_discard)] if r.random() < 0.6 else []),
                    ],
                )
            )
        return (
            [Instruction(isa.OP_CALL, 0, CallKind.LOCAL, imm=0)] if r.random() < 0.3 else [mov(self.reg(), 0)]
        )

    def program(self) -> ProgramSpec:
        """A program of some 10 to 60 instructions; most jumps lead to an instruction of it."""
        while True:
            spec = self._program()
            if all(insn.form() is not None for insn in spec.instructions):
                return spec

    def _program(self) -> ProgramSpec:
        r = self.r
        type, context = r.choice(_CONTEXTS)
        body: list[Instruction] = [copy(6, 1)] if r.random() < 0.95 else []
        for register in (0, 7, 8, 9):
            if r.random() < 0.7:
                body.append(mov(register, 0))
        for _ in range(r.randrange(1, 9)):
            body += self.piece(context)
        subprogram: list[Instruction] = []
        calls = [i for i in body if i.opcode == isa.OP_CALL and i.src == CallKind.LOCAL]
        if calls:
            subprogram = [mov(0, 1)] if r.random() < 0.8 else [copy(0, r.randrange(1, 8))]
            if r.random() < 0.5:
                subprogram += self.piece(context)
            subprogram += [mov(0, 0), EXIT]
        tail = [mov(0, 0), EXIT] if r.random() < 0.9 else [EXIT] if r.random() < 0.7 else []
        body += tail
        starts: list[int] = []
        at = 0
        for insn in body:
            starts.append(at)
            at += insn.slots
        for index, insn in enumerate(body):
            if insn in calls and any(insn is c for c in calls):
                insn.imm = at - starts[index] - 1
            # A jump's offset counted instructions so far; now it is slots, and mostly within the program.
            elif insn.opcode & 7 in (isa.JMP, isa.JMP32) and insn.opcode not in (isa.OP_CALL, isa.OP_EXIT):
                to = index + 1 + insn.offset
                if 0 <= to < len(body):
                    insn.offset = starts[to] - starts[index] - 1
                elif r.random() < 0.9:
                    insn.offset = starts[max(0, len(body) - 2)] - starts[index] - 1
        functions = [Function("main", 0, (), context, {})]
        if subprogram:
            functions.append(Function("sub", at, (), None, {}))
        code = tuple(body + subprogram)
        return ProgramSpec("random", type, None, "GPL", code, tuple(functions), "little")

    def mutants(self, specs: Sequence[ProgramSpec]) -> Iterator[ProgramSpec]:
        """Programs that are right, each with one instruction changed."""
        r = self.r
        while True:
            spec = r.choice(specs)
            code = list(spec.instructions)
            index = r.randrange(len(code))
            old = code[index]
            new = Instruction(
                old.opcode, old.dst, old.src, old.offset, old.imm, old.imm_high, old.reference, old.origin
            )
            kind = r.randrange(6)
            if kind == 0 and not new.wide:
                new = mov(self.reg(), 0)
            elif kind == 1:
                new.dst = self.reg() if old.opcode & 7 not in (isa.JMP, isa.JMP32) or old.dst else old.dst
            elif kind == 2 and old.opcode & 7 in (isa.LDX, isa.STX, isa.ST):
                new.offset += r.choice((-8, -4, -1, 1, 2, 4, 8))
            elif kind == 3 and old.opcode & 7 in (isa.LDX, isa.STX):
                new.src = self.reg()
            elif kind == 4 and old.opcode == isa.OP_CALL and not old.src:
                new.imm = r.choice(
                    (Helper.map_lookup_elem, Helper.ktime_get_ns, Helper.skb_pull_data, r.randrange(1, 212))
                )
            elif (
                kind == 5
                and old.opcode & 7 in (isa.JMP, isa.JMP32)
                and old.opcode != isa.OP_CALL
                and old.opcode != isa.OP_EXIT
            ):
                new.offset += r.choice((-3, -2, -1, 1, 2, 3))
            else:
                continue
            if new.form() is None:
                continue
            code[index] = new
            yield ProgramSpec(
                spec.name,
                spec.type,
                spec.attach_type,
                spec.license,
                tuple(code),
                spec.functions,
                spec.byteorder,
            )
