# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Instructions as text, in the syntax that the kernel's verifier and ``bpftool prog dump xlated`` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Atomic, CallKind, Imm64, Jump
from pybpfasm.kernel.enums import Helper
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.program import ProgramSpec

_ALU: Final = {
    Alu.ADD: "+=",
    Alu.SUB: "-=",
    Alu.MUL: "*=",
    Alu.DIV: "/=",
    Alu.OR: "|=",
    Alu.AND: "&=",
    Alu.LSH: "<<=",
    Alu.RSH: ">>=",
    Alu.MOD: "%=",
    Alu.XOR: "^=",
    Alu.ARSH: "s>>=",
}
_JUMP: Final = {
    Jump.JEQ: "==",
    Jump.JGT: ">",
    Jump.JGE: ">=",
    Jump.JSET: "&",
    Jump.JNE: "!=",
    Jump.JSGT: "s>",
    Jump.JSGE: "s>=",
    Jump.JLT: "<",
    Jump.JLE: "<=",
    Jump.JSLT: "s<",
    Jump.JSLE: "s<=",
}
_ATOMIC: Final = {Atomic.ADD: "+=", Atomic.OR: "|=", Atomic.AND: "&=", Atomic.XOR: "^="}
_FETCH: Final = {
    Atomic.FETCH_ADD: "add",
    Atomic.FETCH_OR: "or",
    Atomic.FETCH_AND: "and",
    Atomic.FETCH_XOR: "xor",
}


def text(insn: Instruction) -> str:
    """One instruction in the kernel's syntax; a map or subprogram that it refers to is shown by name."""
    cls = insn.opcode & 0x07
    if insn.opcode == isa.LD_IMM64:
        return f"r{insn.dst} = {_wide(insn)}"
    if cls in (isa.ALU, isa.ALU64):
        return _alu(insn, cls)
    if cls in (isa.JMP, isa.JMP32):
        return _jump(insn, cls)
    size = isa.SIZE_OF[insn.opcode & 0x18] * 8
    mode = insn.opcode & 0xE0
    if cls == isa.LD:
        index = f"r{insn.src} + {insn.imm}" if mode == isa.IND else f"{insn.imm}"
        return f"r0 = *(u{size} *)skb[{index}]"
    if cls == isa.LDX:
        sign = "s" if mode == isa.MEMSX else "u"
        return f"r{insn.dst} = *({sign}{size} *)(r{insn.src} {insn.offset:+d})"
    place = f"(r{insn.dst} {insn.offset:+d})"
    if cls == isa.ST:
        return f"*(u{size} *){place} = {insn.imm}"
    if mode == isa.ATOMIC:
        return _atomic(insn, size)
    return f"*(u{size} *){place} = r{insn.src}"


def _wide(insn: Instruction) -> str:
    reference = insn.reference
    if isinstance(reference, MapSpec):
        if insn.src == Imm64.MAP_VALUE:
            return f"map[{reference.name}][0]{insn.imm_high:+d}"
        return f"map[{reference.name}]"
    if insn.src == Imm64.FUNC:
        return (
            f"subprog[{insn.imm:+d}]" if reference is None else f"subprog[{getattr(reference, 'name', '?')}]"
        )
    if insn.src == Imm64.VALUE:
        return f"{insn.imm64:#x}"
    known = insn.src in tuple(Imm64)
    kind = Imm64(insn.src).name.lower() if known else f"src{insn.src}"
    return f"{kind}({insn.imm}, {insn.imm_high})"


def _alu(insn: Instruction, cls: int) -> str:
    r = "w" if cls == isa.ALU else "r"
    op = insn.opcode & 0xF0
    dst = f"{r}{insn.dst}"
    if op == Alu.END:
        kind = "bswap" if cls == isa.ALU64 else ("be" if insn.opcode & isa.X else "le")
        return f"r{insn.dst} = {kind}{insn.imm} r{insn.dst}"
    if op == Alu.NEG:
        return f"{dst} = -{dst}"
    source = f"{r}{insn.src}" if insn.opcode & isa.X else f"{insn.imm}"
    if op == Alu.MOV:
        if insn.offset == 1 and cls == isa.ALU64:
            return f"{dst} = addr_space_cast({source}, {insn.imm >> 16}, {insn.imm & 0xFFFF})"
        cast = f"(s{insn.offset})" if insn.offset else ""
        return f"{dst} = {cast}{source}"
    sign = "s" if insn.offset == 1 else ""
    return f"{dst} {sign}{_ALU[Alu(op)]} {source}"


def _jump(insn: Instruction, cls: int) -> str:
    op = Jump(insn.opcode & 0xF0)
    if op is Jump.EXIT:
        return "exit"
    if op is Jump.CALL:
        if insn.src == CallKind.LOCAL:
            name = getattr(insn.reference, "name", None)
            return f"call pc{insn.imm:+d}" + (f"  # {name}" if name else "")
        if insn.src == CallKind.KFUNC:
            return f"call kernel-function#{insn.imm}"
        try:
            return f"call bpf_{Helper(insn.imm).name}#{insn.imm}"
        except ValueError:
            return f"call unknown#{insn.imm}"
    if op is Jump.JA:
        return f"gotol pc{insn.imm:+d}" if cls == isa.JMP32 else f"goto pc{insn.offset:+d}"
    if op is Jump.JCOND:
        return f"may_goto pc{insn.offset:+d}"
    r = "w" if cls == isa.JMP32 else "r"
    if insn.opcode & isa.X:
        source = f"{r}{insn.src}"
    else:
        source = f"{insn.imm & 0xFFFFFFFF:#x}" if cls == isa.JMP32 or insn.imm >= 0 else f"{insn.imm}"
        if insn.imm >= 0:
            source = f"{insn.imm:#x}"
    return f"if {r}{insn.dst} {_JUMP[op]} {source} goto pc{insn.offset:+d}"


def _atomic(insn: Instruction, size: int) -> str:
    r = "w" if size == 32 else "r"
    place = f"(u{size} *)(r{insn.dst} {insn.offset:+d})"
    op = Atomic(insn.imm)
    if op in _ATOMIC:
        return f"lock *{place} {_ATOMIC[op]} {r}{insn.src}"
    kind = "atomic64" if size == 64 else "atomic"
    if op in _FETCH:
        return f"{r}{insn.src} = {kind}_fetch_{_FETCH[op]}({place}, {r}{insn.src})"
    if op is Atomic.CMPXCHG:
        return f"{r}0 = {kind}_cmpxchg({place}, {r}0, {r}{insn.src})"
    if op is Atomic.XCHG:
        return f"{r}{insn.src} = {kind}_xchg({place}, {r}{insn.src})"
    if op is Atomic.LOAD_ACQ:
        return f"{r}{insn.dst} = load_acquire((u{size} *)(r{insn.src} {insn.offset:+d}))"
    return f"store_release({place}, {r}{insn.src})"


def listing(spec: ProgramSpec, *, lines: bool = True) -> str:
    """*spec* as text: slot numbers, instructions, labels, and above them the Python lines that wrote them."""
    out: list[str] = []
    shown: tuple[str, int] | None = None
    functions = {function.slot: function for function in spec.functions}
    labels: dict[int, str] = {}
    slot = 0
    index_in_function = 0
    for insn in spec.instructions:
        if slot in functions:
            function = functions[slot]
            arguments = ", ".join(function.arguments)
            if function.context is not None:
                arguments = f"struct {function.context.kernel_name} *ctx"
            out.append(f"{function.name}({arguments}):")
            labels = dict(function.labels)
            index_in_function = 0
            shown = None
        if index_in_function in labels:
            out.append(f"{labels[index_in_function]}:")
        if lines:
            where = spec.location(slot)
            if where is not None and (where.filename, where.line) != shown:
                shown = (where.filename, where.line)
                out.append(f"; {where.text} @ {where}")
        out.append(f"{slot:4}: ({insn.opcode:02x}) {text(insn)}")
        slot += insn.slots
        index_in_function += 1
    return "\n".join(out) + "\n"
