# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Relocations worked out for a kernel, and instructions with the numbers in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from pybpfasm import isa
from pybpfasm.btf import Btf, BtfError, BtfType, Kind
from pybpfasm.core.matching import Matcher, match_member
from pybpfasm.core.missing import why_missing
from pybpfasm.core.relocation import (
    ENUM_KINDS,
    ENUMS,
    EXISTS,
    MAX_STEPS,
    TYPE_KINDS,
    Accessor,
    CoreError,
    CoreKind,
    CoreRelocation,
    Spec,
    essential,
    flexible,
    same_kind,
)
from pybpfasm.errors import PybpfasmError
from pybpfasm.extern import Extern
from pybpfasm.instruction import Instruction
from pybpfasm.isa import CallKind, Imm64

__all__ = ["POISON", "CoreResolver"]

POINTER: Final = 8  # bytes of a pointer in the kernel

# What stands in place of an instruction whose fact this kernel doesn't have: a call of a helper that does not
# exist, so that the verifier refuses the program only where it gets there. libbpf uses this number too.
POISON: Final = 0xBAD2310


@dataclass(slots=True)
class Answer:
    """A number, or none; and of a field's offset, the size of the field and whether loads may follow it."""

    value: int | None
    size: int = 0
    unsigned: bool = False
    pointer: bool = False
    bit_offset: int | None = None


class CoreResolver:
    """Works out relocations for the kernel (or any other program) that *target* describes.

    *symbols* tells the address of a kernel's symbol, ``None`` for one that it lacks, for variables that a
    program declares as ``void``.
    """

    def __init__(self, target: Btf, symbols: Callable[[str], int | None] | None = None) -> None:
        self.target = target
        self.symbols = symbols
        self._candidates: dict[tuple[str, Kind], list[tuple[Btf, int]]] = {}

    def __repr__(self) -> str:
        return f"<CoreResolver for {self.target}>"

    def value(self, relocation: CoreRelocation) -> int | None:
        """The number asked for, or ``None`` where the target does not have the type, field or enumerator.

        For what asks whether something exists it is 0 or 1. Raises `CoreError` for a malformed relocation and
        for types of one name that differ, `BtfError` for malformed BTF.
        """
        return self._answer(relocation).value

    def instructions(self, name: str, unresolved: Iterable[Instruction]) -> tuple[Instruction, ...]:
        """The instructions of program *name* with everything filled in that depends on the target.

        Raises `CoreError` for a relocation that is malformed or ambiguous, for a kernel function or variable
        that the target doesn't have.
        """
        out: list[Instruction] = []
        for insn in unresolved:
            if isinstance(insn.reference, CoreRelocation):
                out += self.apply(insn, insn.reference)
            elif isinstance(insn.reference, Extern):
                out.append(self._extern(name, insn, insn.reference))
            else:
                out.append(insn)
        return tuple(out)

    def _extern(self, program: str, insn: Instruction, extern: Extern) -> Instruction:
        if extern.kind == "external":
            raise CoreError(
                f"program {program} needs {extern.name} of another object: write it as an object and link it "
                "with that one (pybpfasm.elf.link_objects)"
            )
        if extern.typeless:
            return self._symbol(program, insn, extern)
        wide = insn.wide
        found = self.target.by_name(extern.name, Kind.FUNC) or (
            self.target.by_name(extern.name, Kind.VAR) if wide else None
        )
        what = "variable" if extern.kind == "ksym" else "function"
        if found is not None and not self._as_declared(extern, found):
            # libbpf takes a weak function of another type for one that is missing, and refuses a variable.
            if not extern.weak or found.kind == Kind.VAR:
                assert extern.declared is not None
                mine = extern.declared[0].declaration(extern.declared[0].type(extern.declared[1]).type_id)
                raise CoreError(
                    f"program {program} declares the kernel's {what} {extern.name} as {_short(mine)}; "
                    f"this kernel has {_short(self.target.declaration(found.type_id))}"
                )
            found = None
        if found is not None and wide:
            return replace(insn, src=Imm64.BTF_ID, imm=found.id, imm_high=0, reference=None)
        if found is not None:
            return replace(insn, src=CallKind.KFUNC, offset=0, imm=found.id, reference=None)
        if extern.weak and wide:
            return replace(insn, src=Imm64.VALUE, imm=0, imm_high=0, reference=None)
        if extern.weak:
            return replace(insn, src=CallKind.HELPER, imm=POISON, reference=None)
        raise CoreError(
            f"program {program} needs the kernel's {what} {extern.name}, which its BTF does not have"
            f"{extern.suggestion()}"
        )

    def _as_declared(self, extern: Extern, found: BtfType) -> bool:
        """Whether what the kernel has is of the type that the program was written for."""
        if extern.declared is None:
            return True
        btf, type_id = extern.declared
        mine = btf.type(type_id)
        if mine.kind != found.kind:
            return False
        return Matcher(btf, self.target).compatible(
            btf.resolve(mine.type_id).id, self.target.resolve(found.type_id).id
        )

    def _symbol(self, program: str, insn: Instruction, extern: Extern) -> Instruction:
        if self.symbols is None:
            raise CoreError(
                f"program {program} asks for the address of {extern.name}, which only the running kernel "
                "knows: give CoreResolver the symbols of /proc/kallsyms"
            )
        address = self.symbols(extern.name)
        if address is None and not extern.weak:
            raise CoreError(
                f"program {program} needs the kernel's symbol {extern.name}, which it does not have"
            )
        low, high = (address or 0) & 0xFFFFFFFF, (address or 0) >> 32
        return replace(insn, src=Imm64.VALUE, imm=_signed(low), imm_high=_signed(high), reference=None)

    def apply(self, insn: Instruction, relocation: CoreRelocation) -> tuple[Instruction, ...]:
        """*insn* with the target's number in place of the local one.

        Where the target has no such thing it is as many calls as it has slots, which the verifier refuses
        when it gets there. Raises as `value`, and `CoreError` where the instruction can't hold the number.
        """
        local = self._local(relocation)
        found = self._answer(relocation)
        if found.value is None:
            return self._poison(insn)
        cls = insn.opcode & 0x07
        if insn.opcode == isa.LD_IMM64:
            if insn.src:
                raise CoreError(f"{relocation}: the 64-bit load has src {insn.src}, not 0")
            value = found.value & 0xFFFF_FFFF_FFFF_FFFF
            return (
                replace(insn, imm=_signed(value & 0xFFFFFFFF), imm_high=_signed(value >> 32), reference=None),
            )
        if cls in (isa.ALU, isa.ALU64) and not insn.opcode & isa.X:
            if not -(1 << 31) <= found.value < 1 << 32:
                raise CoreError(f"{relocation} is {found.value:#x}, which does not fit 32 bits")
            return (replace(insn, imm=_signed(found.value & 0xFFFFFFFF), reference=None),)
        if cls in (isa.LDX, isa.ST, isa.STX):
            if found.value > 0x7FFF:
                raise CoreError(f"{relocation} is {found.value}, which does not fit the 16 bits of an offset")
            opcode = insn.opcode
            if local.size and found.size and local.size != found.size:
                alike = (local.pointer and found.pointer) or (local.unsigned and found.unsigned)
                if not alike or found.size not in isa.SIZE_CODE:
                    return self._poison(insn)
                if isa.SIZE_OF[opcode & 0x18] != local.size:
                    raise CoreError(f"{relocation}: the field has {local.size} bytes, the access other ones")
                opcode = opcode & ~0x18 | isa.SIZE_CODE[found.size]
            return (replace(insn, opcode=opcode, offset=found.value, reference=None),)
        raise CoreError(f"{relocation}: an instruction with opcode {insn.opcode:#04x} has no place for it")

    def missing(self, relocation: CoreRelocation) -> str:
        """Why `apply` puts calls that the verifier refuses in place of an instruction, in words."""
        try:
            return why_missing(relocation, self._find(relocation.local.type(relocation.type_id)))
        except PybpfasmError as error:
            return f"{relocation}: {error}"

    @staticmethod
    def _poison(insn: Instruction) -> tuple[Instruction, ...]:
        call = replace(
            insn, opcode=isa.OP_CALL, dst=0, src=0, offset=0, imm=POISON, imm_high=0, reference=None
        )
        return (call,) * insn.slots

    def _local(self, relocation: CoreRelocation) -> Answer:
        return calculate(relocation.kind, Spec.local(relocation))

    def _answer(self, relocation: CoreRelocation) -> Answer:
        if relocation.kind == CoreKind.TYPE_ID_LOCAL:
            return Answer(relocation.type_id)
        local = Spec.local(relocation)
        root = relocation.local.type(relocation.type_id)
        if not root.name:
            raise CoreError(f"{relocation}: a type without a name can't be looked up")
        answers: list[Answer] = []
        for btf, type_id in self._find(root):
            spec = self._match(relocation, local, btf, type_id)
            if spec is None:
                continue
            answer = calculate(relocation.kind, spec)
            if answers and (answer.value, answer.bit_offset) != (answers[0].value, answers[0].bit_offset):
                raise CoreError(
                    f"{relocation} is {answers[0].value} in one type of this name, {answer.value} in another"
                )
            answers.append(answer)
        if answers:
            return answers[0]
        return Answer(0 if relocation.kind in EXISTS else None)

    def _find(self, local: BtfType) -> list[tuple[Btf, int]]:
        """Every type of the target with the essential name and the kind of *local*."""
        name = essential(local.name)
        key = (name, local.kind)
        if key not in self._candidates:
            found: list[tuple[Btf, int]] = []
            btf: Btf | None = self.target
            while btf is not None:
                names = {name, *_flavours(btf, name)}
                types = [t for one in sorted(names) for t in btf.all_by_name(one) if same_kind(t, local)]
                found += [(btf, t.id) for t in sorted(types, key=lambda t: t.id)]
                btf = btf.base
            self._candidates[key] = found
        return self._candidates[key]

    def _match(self, relocation: CoreRelocation, local: Spec, btf: Btf, type_id: int) -> Spec | None:
        spec = Spec(btf, type_id)
        if relocation.kind in TYPE_KINDS:
            matches = Matcher(local.btf, btf)
            if relocation.kind == CoreKind.TYPE_MATCHES:
                return spec if matches.match(relocation.type_id, type_id) else None
            return spec if matches.compatible(relocation.type_id, type_id) else None
        if relocation.kind in ENUM_KINDS:
            t = btf.resolve(type_id)
            if t.kind not in ENUMS:
                return None
            wanted = essential(local.accessors[0].name)
            for index, enumerator in enumerate(t.enumerators):
                if essential(enumerator.name) == wanted:
                    spec.accessors.append(Accessor(t.id, index, enumerator.name))
                    return spec
            return None
        at = btf.resolve(type_id)
        for number, accessor in enumerate(local.accessors):
            if accessor.name:
                member = local.btf.type(accessor.type_id).members[accessor.index]
                steps = [MAX_STEPS]
                found = match_member(local.btf, member.type_id, member.name, spec, at, 0, steps)
                if found is None:
                    return None
                at = btf.resolve(found)
            else:
                if number:
                    if at.kind != Kind.ARRAY:
                        return None
                    last = spec.accessors[-1]
                    if accessor.index >= at.nelems and not flexible(btf, last, at):
                        return None
                    at = btf.resolve(at.element_id)
                spec.accessors.append(Accessor(at.id, accessor.index, ""))
                if accessor.index:
                    spec.bit_offset += accessor.index * btf.size_of(at.id) * 8
        return spec


def _flavours(btf: Btf, name: str) -> set[str]:
    """The names in *btf* that are *name* with a flavour."""
    found: set[str] = set()
    strings = btf._strings
    pattern = name.encode("utf-8", "surrogateescape") + b"___"
    at = strings.find(pattern)
    while at >= 0 and len(found) < 1000:
        stop = strings.find(b"\0", at, at + 512)
        if stop >= 0:
            full = strings[at:stop].decode("utf-8", "backslashreplace")
            if essential(full) == name:
                found.add(full)
        at = strings.find(pattern, at + len(pattern))
    return found


def calculate(kind: CoreKind, spec: Spec) -> Answer:
    """The number that a relocation of *kind* asks of the place *spec*; raises `CoreError` where there is
    none."""
    btf = spec.btf
    if kind == CoreKind.TYPE_ID_LOCAL or kind == CoreKind.TYPE_ID_TARGET:
        return Answer(spec.root)
    if kind in EXISTS:
        return Answer(1)
    if kind == CoreKind.TYPE_SIZE:
        return Answer(btf.size_of(spec.root, POINTER))
    last = spec.accessors[-1]
    if kind == CoreKind.ENUMVAL_VALUE:
        return Answer(btf.type(last.type_id).enumerators[last.index].value)
    if not last.name:
        size = btf.size_of(last.type_id, POINTER)
        if kind == CoreKind.FIELD_BYTE_OFFSET:
            return _of_field(btf, last.type_id, spec.bit_offset // 8, size, spec.bit_offset)
        if kind == CoreKind.FIELD_BYTE_SIZE:
            return Answer(size)
        raise CoreError(f"{kind.name.lower()} of an array's element is not defined")
    member = btf.type(last.type_id).members[last.index]
    field = btf.resolve(member.type_id)
    width = member.bitfield_size
    if width:
        size = byte_size = btf.size_of(field.id, POINTER)
        if not size:
            raise CoreError(f"bit field {last.name} has a type of 0 bytes")
        start = spec.bit_offset // 8 // byte_size * byte_size
        # The smallest load that holds all of the field.
        while spec.bit_offset + width - start * 8 > byte_size * 8:
            if byte_size >= 8:
                raise CoreError(f"bit field {last.name} does not fit a load of 8 bytes")
            byte_size *= 2
            start = spec.bit_offset // 8 // byte_size * byte_size
        size = byte_size
    else:
        size = btf.size_of(field.id, POINTER)
        start = spec.bit_offset // 8
        width = size * 8
    if kind == CoreKind.FIELD_BYTE_OFFSET:
        if member.bitfield_size:
            return Answer(start, bit_offset=spec.bit_offset)
        return _of_field(btf, field.id, start, size, spec.bit_offset)
    if kind == CoreKind.FIELD_BYTE_SIZE:
        return Answer(size)
    if kind == CoreKind.FIELD_SIGNED:
        signed = field.signed if field.kind in ENUMS | {Kind.INT} else False
        return Answer(int(signed))
    if kind == CoreKind.FIELD_LSHIFT_U64:
        if btf.byteorder == "little":
            return Answer(64 - (spec.bit_offset + width - start * 8))
        return Answer((8 - size) * 8 + (spec.bit_offset - start * 8))
    if kind == CoreKind.FIELD_RSHIFT_U64:
        return Answer(64 - width)
    raise BtfError(f"relocation of kind {kind}")


def _of_field(btf: Btf, type_id: int, offset: int, size: int, bit_offset: int) -> Answer:
    t = btf.resolve(type_id)
    return Answer(
        offset,
        size,
        unsigned=t.kind == Kind.INT and not t.signed,
        pointer=t.kind == Kind.PTR,
        bit_offset=bit_offset,
    )


def _short(declaration: str) -> str:
    return declaration if len(declaration) <= 200 else declaration[:200] + " …"


def _signed(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value
