# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Instructions as text, in the syntax that the kernel's verifier and ``bpftool prog dump xlated`` print.

`pybpfasm.text` reads that text back to the same bytes. The kernel's syntax does not say everything; what is
added to it, because the text would otherwise stand for two instructions, is this:

- ``btf_id[N]`` and ``btf_id[N:FD]`` load the address of a kernel object by its BTF id (the kernel shows the
  number like that of any 64-bit constant);
- ``map[idx:N]`` loads a map from the descriptor array of the load (the kernel shows a constant);
- ``call kernel-function#N[FD]`` is a function of a module, whose BTF is at index FD of that array.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, Atomic, CallKind, Imm64, Jump

if TYPE_CHECKING:
    from pybpfasm.program import ProgramSpec

ALU_OPERATORS: Final = {
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
COMPARISONS: Final = {
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
ATOMIC_OPERATORS: Final = {Atomic.ADD: "+=", Atomic.OR: "|=", Atomic.AND: "&=", Atomic.XOR: "^="}
FETCHING: Final = {
    Atomic.FETCH_ADD: "add",
    Atomic.FETCH_OR: "or",
    Atomic.FETCH_AND: "and",
    Atomic.FETCH_XOR: "xor",
}
# Plain numbers as keys: the values of an IntEnum are looked up several times as slowly.
_ALU: Final = {int(op): sign for op, sign in ALU_OPERATORS.items()}
_JUMP: Final = {int(op): sign for op, sign in COMPARISONS.items()}
_ATOMIC: Final = {int(op): sign for op, sign in ATOMIC_OPERATORS.items()}
_FETCH: Final = {int(op): name for op, name in FETCHING.items()}
_BITS: Final = {isa.W: 32, isa.H: 16, isa.B: 8, isa.DW: 64}
_U32: Final = 0xFFFFFFFF
_NEG, _MOV, _END = int(Alu.NEG), int(Alu.MOV), int(Alu.END)


def text(insn: Instruction) -> str:
    """One instruction in the kernel's syntax; a map or subprogram that it refers to is shown by name.

    An instruction that does not exist is shown as ``invalid`` and its fields.
    """
    try:
        return _TEXT[insn.opcode](insn)
    except (KeyError, ValueError):
        return f"invalid {insn.opcode:#04x} dst={insn.dst} src={insn.src} offset={insn.offset} imm={insn.imm}"


def _ld(insn: Instruction) -> str:
    opcode = insn.opcode
    if opcode == isa.LD_IMM64:
        return f"r{insn.dst} = {_wide(insn)}"
    mode = opcode & 0xE0
    if mode not in (isa.ABS, isa.IND):
        raise KeyError(opcode)
    index = f"r{insn.src} + {insn.imm}" if mode == isa.IND else f"{insn.imm}"
    return f"r0 = *(u{_BITS[opcode & 0x18]} *)skb[{index}]"


def _ldx(insn: Instruction) -> str:
    opcode = insn.opcode
    sign = {isa.MEM: "u", isa.MEMSX: "s"}[opcode & 0xE0]
    return f"r{insn.dst} = *({sign}{_BITS[opcode & 0x18]} *)(r{insn.src} {insn.offset:+d})"


def _st(insn: Instruction) -> str:
    if insn.opcode & 0xE0 != isa.MEM:
        raise KeyError(insn.opcode)
    return f"*(u{_BITS[insn.opcode & 0x18]} *)(r{insn.dst} {insn.offset:+d}) = {insn.imm}"


def _stx(insn: Instruction) -> str:
    size = _BITS[insn.opcode & 0x18]
    mode = insn.opcode & 0xE0
    if mode == isa.MEM:
        return f"*(u{size} *)(r{insn.dst} {insn.offset:+d}) = r{insn.src}"
    if mode != isa.ATOMIC:
        raise KeyError(insn.opcode)
    place = f"(u{size} *)(r{insn.dst} {insn.offset:+d})"
    op = insn.imm
    if op in _ATOMIC:
        return f"lock *{place} {_ATOMIC[op]} r{insn.src}"
    kind = "atomic64" if size == 64 else "atomic"
    if op in _FETCH:
        return f"r{insn.src} = {kind}_fetch_{_FETCH[op]}({place}, r{insn.src})"
    if op == Atomic.CMPXCHG:
        return f"r0 = {kind}_cmpxchg({place}, r0, r{insn.src})"
    if op == Atomic.XCHG:
        return f"r{insn.src} = {kind}_xchg({place}, r{insn.src})"
    if op == Atomic.LOAD_ACQ:
        return f"r{insn.dst} = load_acquire((u{size} *)(r{insn.src} {insn.offset:+d}))"
    if op == Atomic.STORE_REL:
        return f"store_release({place}, r{insn.src})"
    raise KeyError(op)


def _wide(insn: Instruction) -> str:
    reference = insn.reference
    name = getattr(reference, "name", None)
    src = insn.src
    if src == Imm64.VALUE:
        return f"{insn.imm64:#x}"
    if src == Imm64.MAP_FD:
        return f"map[id:{insn.imm & _U32}]" if name is None else f"map[{name}]"
    if src == Imm64.MAP_VALUE:
        return f"map[{f'id:{insn.imm & _U32}' if name is None else name}][0]+{insn.imm_high & _U32}"
    if src == Imm64.BTF_ID:
        if name is not None:
            return f"btf_id[{name}]"
        return f"btf_id[{insn.imm}:{insn.imm_high}]" if insn.imm_high else f"btf_id[{insn.imm}]"
    if src == Imm64.FUNC:
        return f"subprog[{insn.imm:+d}]" if name is None else f"subprog[{name}]"
    if src == Imm64.MAP_IDX:
        return f"map[idx:{insn.imm & _U32}]"
    if src == Imm64.MAP_IDX_VALUE:
        return f"map[idx:{insn.imm & _U32}]+{insn.imm_high & _U32}"
    raise KeyError(src)


def _alu(insn: Instruction) -> str:
    opcode = insn.opcode
    op = opcode & 0xF0
    r = "w" if opcode & 0x07 == isa.ALU else "r"
    if op == _MOV:
        if not opcode & isa.X:
            return f"{r}{insn.dst} = {insn.imm}"
        if not insn.offset:
            return f"{r}{insn.dst} = {r}{insn.src}"
        if insn.offset == 1 and r == "r":
            return (
                f"r{insn.dst} = addr_space_cast(r{insn.src}, {insn.imm >> 16 & 0xFFFF}, {insn.imm & 0xFFFF})"
            )
        return f"{r}{insn.dst} = (s{insn.offset}){r}{insn.src}"
    if op == _END:
        kind = "bswap" if r == "r" else ("be" if opcode & isa.X else "le")
        return f"r{insn.dst} = {kind}{insn.imm} r{insn.dst}"
    if op == _NEG:
        return f"{r}{insn.dst} = -{r}{insn.dst}"
    sign = "s" if insn.offset else ""
    if opcode & isa.X:
        return f"{r}{insn.dst} {sign}{_ALU[op]} {r}{insn.src}"
    return f"{r}{insn.dst} {sign}{_ALU[op]} {insn.imm}"


def _jump(insn: Instruction) -> str:
    opcode = insn.opcode
    op = opcode & 0xF0
    r = "w" if opcode & 0x07 == isa.JMP32 else "r"
    if op in _JUMP:
        source = f"{r}{insn.src}" if opcode & isa.X else f"{insn.imm & _U32:#x}"
        return f"if {r}{insn.dst} {_JUMP[op]} {source} goto pc{insn.offset:+d}"
    if opcode == isa.OP_EXIT:
        return "exit"
    if opcode == isa.OP_CALL:
        return _call(insn)
    if opcode == isa.OP_JA:
        return f"goto pc{insn.offset:+d}"
    if opcode == isa.OP_GOTOL:
        return f"gotol pc{insn.imm:+d}"
    if opcode == isa.OP_MAY_GOTO:
        return f"may_goto pc{insn.offset:+d}"
    if opcode == isa.OP_GOTOX:
        return f"gotox r{insn.dst}"
    if opcode == isa.OP_CALLX:
        return f"callx r{insn.dst}"
    raise KeyError(opcode)


def _call(insn: Instruction) -> str:
    if insn.src == CallKind.LOCAL:
        name = getattr(insn.reference, "name", None)
        return f"call pc{insn.imm:+d}" + (f"#{name}" if name else "")
    if insn.src == CallKind.KFUNC:
        name = getattr(insn.reference, "name", None)
        if name is not None:
            return f"call kernel-function[{name}]"
        return f"call kernel-function#{insn.imm}" + (f"[{insn.offset}]" if insn.offset else "")
    if insn.src != CallKind.HELPER:
        raise KeyError(insn.src)
    from pybpfasm.kernel.enums import Helper

    try:
        return f"call bpf_{Helper(insn.imm).name}#{insn.imm}"
    except ValueError:
        return f"call unknown#{insn.imm}"


_TEXT_OF_CLASS: Final = {
    isa.LD: _ld,
    isa.LDX: _ldx,
    isa.ST: _st,
    isa.STX: _stx,
    isa.ALU: _alu,
    isa.JMP: _jump,
    isa.JMP32: _jump,
    isa.ALU64: _alu,
}
_TEXT: Final = {opcode: _TEXT_OF_CLASS[opcode & 0x07] for opcode in isa.FORMS}


def lines(instructions: Iterable[Instruction], labels: Mapping[int, str] | None = None) -> Iterable[str]:
    """*instructions* as lines of text, each with its slot number and opcode, as ``bpftool`` prints them.

    *labels* are names of slots; each gets a line of its own.
    """
    slot = 0
    for insn in instructions:
        if labels and slot in labels:
            yield f"{labels[slot]}:"
        yield f"{slot:4}: ({insn.opcode:02x}) {text(insn)}"
        slot += insn.slots


def listing(spec: ProgramSpec, *, lines: bool = True) -> str:
    """*spec* as text: slot numbers, instructions, labels, and above them the Python lines that wrote them.

    `pybpfasm.text.assemble` reads it back.
    """
    out: list[str] = []
    shown: tuple[str, int] | None = None
    functions = {function.slot: function for function in spec.functions}
    used: dict[str, int] = {}
    heads = {function.slot: _unique(function.name, used) for function in spec.functions}
    labels: dict[int, str] = {}
    slot = 0
    index_in_function = 0
    for insn in spec.instructions:
        if slot in functions:
            function = functions[slot]
            arguments = [
                f"struct {function.pointers[name].kernel_name} *{name}"
                if name in function.pointers
                else _word(name)
                for name in function.arguments
            ]
            if function.context is not None:
                arguments.insert(0, f"struct {function.context.kernel_name} *ctx")
            out.append(f"{heads[slot]}({', '.join(arguments)}):")
            labels = dict(function.labels)
            index_in_function = 0
            shown = None
        if index_in_function in labels:
            out.append(f"{_unique(labels[index_in_function], used)}:")
        if lines:
            where = spec.location(slot)
            if where is not None and (where.filename, where.line) != shown:
                shown = (where.filename, where.line)
                out.append(f"; {where.text} @ {where}")
        out.append(f"{slot:4}: ({insn.opcode:02x}) {text(insn)}")
        slot += insn.slots
        index_in_function += 1
    return "\n".join(out) + "\n"


def _word(name: str) -> str:
    """A name as the text can have it: the functions of an object, or of a file, may be called anything."""
    return re.sub(r"[^\w.$]|^(?=\d)", "_", name, flags=re.ASCII)


def _unique(hint: str, used: dict[str, int]) -> str:
    """A label that is no other's: several blocks may carry the same hint, and several files a function."""
    name = base = _word(hint) or "L"
    while name in used:
        used[base] = used.get(base, 1) + 1
        name = f"{base}_{used[base]}"
    used[name] = 1
    return name
