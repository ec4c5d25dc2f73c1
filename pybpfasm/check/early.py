# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The part of the check that is cheap enough for every assembly: a fraction of what writing the program took.

It follows the beginning of a program, and both ways of a branch where both are certainly possible (a number
that was read from the context right before, a socket that may not be found), as long as that is so. On these
ways it knows which registers were never set and which hold the context, and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pybpfasm import isa
from pybpfasm.errors import AsmError
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, CallKind, Jump
from pybpfasm.source import resolve

if TYPE_CHECKING:
    from pybpfasm.check.rights import Rights
    from pybpfasm.program import ProgramSpec

__all__ = ["Mistake", "first_mistake", "refuse"]

# What has to be looked at more closely than by its registers.
_PLAIN, _COPY, _LOAD, _STORE, _CALL, _LEAVE, _BRANCH, _STOP = range(8)
_MOVE = isa.ALU64 | Alu.MOV | isa.X
_SIZES: Final = {isa.W: 4, isa.H: 2, isa.B: 1, isa.DW: 8}
_MAY_FAIL: Final = frozenset({84, 85, 99})  # sk_lookup_tcp, sk_lookup_udp, skc_lookup_tcp
_LOST: Final = 0b111110  # r1 to r5

_Row = tuple[int, int, int]


class _Rows(dict[int, _Row]):
    """From ``opcode << 8 | dst << 4 | src`` to the registers read, those that stay, and the kind."""

    def __missing__(self, key: int) -> _Row:
        opcode, dst, src = key >> 8, key >> 4 & 15, key & 15
        row = self[key] = _row(opcode, 1 << dst, 1 << src)
        return row


def _row(opcode: int, dst: int, src: int) -> _Row:
    cls, op = opcode & 7, opcode & 0xF0
    if cls in (isa.ALU, isa.ALU64):
        if op == Alu.MOV:
            return (src if opcode & isa.X else 0), ~dst, _COPY if opcode == _MOVE else _PLAIN
        reads = dst | (src if opcode & isa.X and op != Alu.END else 0)
        return reads, ~dst, _PLAIN
    if cls == isa.LDX:
        return src, ~dst, _LOAD
    if cls == isa.ST:
        return dst, -1, _STORE
    if cls == isa.STX:
        return dst | src, -1, _STORE if opcode & 0xE0 == isa.MEM else _STOP
    if opcode == isa.LD_IMM64:
        return 0, ~dst, _PLAIN
    if opcode == isa.OP_CALL:
        return 0, -1, _CALL
    if opcode == isa.OP_EXIT:
        return 1, -1, _LEAVE
    if cls in (isa.JMP, isa.JMP32) and op not in (Jump.JA, Jump.CALL, Jump.JCOND):
        return dst | (src if opcode & isa.X else 0), -1, _BRANCH
    return 0, -1, _STOP


_ROWS: Final = _Rows()


class Mistake:
    """What is wrong with an instruction: its index, words, and the index of what led to it, or -1."""

    __slots__ = ("index", "message", "origin")

    def __init__(self, index: int, message: str, origin: int = -1) -> None:
        self.index = index
        self.message = message
        self.origin = origin


def first_mistake(instructions: Sequence[Instruction], type: int, attach_type: int | None) -> Mistake | None:
    """A mistake for which the kernel certainly refuses the program, if one is easy to see."""
    rows = _ROWS
    rights: Rights | None = None
    count = len(instructions)
    budget = count
    ways: list[tuple[int, int, int, int]] = [(0, 0b1111111101, 0b10, -1)]
    seen: dict[int, int] = {}
    while ways and budget > 0:
        index, unset, context, call = ways.pop()
        start = index
        while index < count and budget > 0:
            budget -= 1
            insn = instructions[index]
            reads, stays, kind = rows[insn.opcode << 8 | insn.dst << 4 | insn.src]
            if reads & unset:
                register = (reads & unset & -(reads & unset)).bit_length() - 1
                return _unset(index, register, call)
            unset &= stays
            if kind:
                if kind == _COPY:
                    context = context & stays | (1 << insn.dst if context >> insn.src & 1 else 0)
                elif kind <= _STORE:
                    base = insn.src if kind == _LOAD else insn.dst
                    # With a reference the offset is the kernel's to say, at load.
                    if context >> base & 1 and insn.reference is None:
                        if rights is None:
                            from pybpfasm.check.rights import rights_of

                            rights = rights_of(type, attach_type)
                        if rights.context is not None:
                            reads_of, writes_of, _ = rights.context
                            mask = (writes_of if kind == _STORE else reads_of)[_SIZES[insn.opcode & 0x18]]
                            if insn.offset < 0 or not mask >> insn.offset & 1:
                                return Mistake(index, _access(rights, type, insn, kind == _STORE))
                    context &= stays
                elif kind == _CALL:
                    if insn.src == CallKind.HELPER:
                        if rights is None:
                            from pybpfasm.check.rights import rights_of

                            rights = rights_of(type, attach_type)
                        if rights.may_call(insn.imm) is False:
                            return Mistake(index, _helper(type, insn.imm))
                        arguments = (2 << len(rights.arguments(insn.imm))) - 2
                        if arguments & unset:
                            register = (arguments & unset & -(arguments & unset)).bit_length() - 1
                            return _unset(index, register, call)
                        unset = (unset | _LOST) & ~1 if rights.returns(insn.imm) else unset | _LOST | 1
                    else:
                        unset = (unset | _LOST) & ~1
                    context &= ~(_LOST | 1)
                    call = index
                elif kind == _BRANCH:
                    if index == start or not _either_way(instructions[index - 1], insn, context):
                        break
                    target = index + _distance(instructions, index)
                    if 0 <= target < count and unset & ~seen.get(target, 0):
                        seen[target] = seen.get(target, 0) | unset
                        ways.append((target, unset, context, call))
                else:  # the end, or what is not followed
                    break
            else:
                context &= stays
            index += 1
    return None


def refuse(spec: ProgramSpec) -> None:
    """Raise `AsmError` at the Python line of the first mistake of *spec* that is easy to see, or of the first
    use of a map that no kernel creates."""
    for used in spec.maps:
        refused = used.refusal()
        if refused is not None:
            first = next(insn for insn in spec.instructions if insn.reference is used)
            where = None if first.origin is None else resolve(first.origin)
            raise AsmError(f"map {used.name}: {refused}", where)
    mistake = first_mistake(spec.instructions, spec.type, spec.attach_type)
    if mistake is None:
        return
    origin = spec.instructions[mistake.index].origin
    message = mistake.message
    if mistake.origin >= 0:
        call = spec.instructions[mistake.origin].origin
        message += "" if call is None else f" (the call is at {resolve(call)})"
    raise AsmError(message, None if origin is None else resolve(origin))


def _either_way(before: Instruction, branch: Instruction, context: int) -> bool:
    """Whether what was read right before a comparison with a constant can make it true, and false."""
    if branch.opcode & isa.X:
        return False
    op, value = branch.opcode & 0xF0, branch.imm
    if before.opcode & 0xE7 == isa.LDX | isa.MEM and before.dst == branch.dst and context >> before.src & 1:
        top = (1 << 8 * min(4, _SIZES[before.opcode & 0x18])) - 1
        return op in (Jump.JEQ, Jump.JNE) and 0 <= value <= min(top, 0x7FFFFFFF)
    call = before.opcode == isa.OP_CALL and before.src == CallKind.HELPER and before.imm in _MAY_FAIL
    null = op in (Jump.JEQ, Jump.JNE) and value == 0 and branch.dst == 0 and branch.opcode & 7 == isa.JMP
    return call and null


def _distance(instructions: Sequence[Instruction], index: int) -> int:
    """How many instructions ahead a jump leads; 0 where it leads back, which is not followed."""
    left = instructions[index].offset
    if left < 0:
        return -index - 1
    steps = 1
    while left > 0 and index + steps < len(instructions):
        left -= 2 if instructions[index + steps].opcode == isa.LD_IMM64 else 1
        steps += 1
    return steps


def _unset(index: int, register: int, call: int) -> Mistake:
    if 0 < register < 6 and call >= 0:
        return Mistake(
            index,
            f"r{register} is read after a call took it away: r1 to r5 do not survive calls, keep it in "
            "r6 to r9 or on the stack",
            call,
        )
    return Mistake(index, f"r{register} is read before it is set")


def _helper(type: int, helper: int) -> str:
    from pybpfasm.check.rights import type_name
    from pybpfasm.kernel.enums import Helper

    return f"{type_name(type)} programs can't call {Helper(helper).name}"


def _access(rights: Rights, type: int, insn: Instruction, write: bool) -> str:
    from pybpfasm.check.rights import type_name

    assert rights.context is not None
    size = _SIZES[insn.opcode & 0x18]
    reads, writes, _ = rights.context
    allowed = writes if write else reads
    others = [str(s) for s in (1, 2, 4, 8) if insn.offset >= 0 and allowed[s] >> insn.offset & 1]
    what = f"{'write' if write else 'read'} {size} bytes at {insn.offset} of their context"
    text = f"{type_name(type)} programs can't {what}"
    return text + (f": {' or '.join(others)} bytes can be" if others else "")
