# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""CO-RE: facts about types that differ from kernel to kernel, filled in from a kernel's BTF at load.

A `CoreRelocation` says what an instruction's number stands for: the offset of a field, the size of a type,
the value of an enumerator, in terms of a *local* type that a compiler or a person has written down. A
`CoreResolver` finds the type of that name in the *target* BTF and works the number out.

Rules and numbers are those of libbpf and the kernel (``enum bpf_core_relo_kind`` in linux/bpf.h): types match
by name, where anything from three underscores on (``task_struct___old``) is left out of account;
fields match by name and kind, through anonymous members; integers of any size are compatible.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from pybpfasm import isa
from pybpfasm.asm.branches import Label
from pybpfasm.bitfield import BitField
from pybpfasm.btf import Btf, BtfBuilder, BtfError, BtfType, Kind
from pybpfasm.errors import AsmError, PybpfasmError, suggestion
from pybpfasm.extern import Extern
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Alu, CallKind, Imm64
from pybpfasm.layout import Array, Field, Nested, Scalar, Struct, member_name
from pybpfasm.source import capture, resolve

if TYPE_CHECKING:
    from pybpfasm.asm import Reg

__all__ = [
    "CoreError",
    "CoreKind",
    "CoreRelocation",
    "CoreResolver",
    "core_add_offset",
    "core_exists",
    "core_load",
    "core_load_bits",
    "core_offset",
    "core_size",
]

_NUMBER: Final = re.compile("[0-9]{1,9}")
_MAX_SPEC: Final = 64  # accessors of one field, BPF_CORE_SPEC_MAX_LEN
_MAX_DEPTH: Final = 32
_MAX_STEPS: Final = 10_000  # members looked at for one field: anonymous ones may hold one another many times
_POINTER: Final = 8

# What stands in place of an instruction whose fact this kernel doesn't have: a call of a helper that does not
# exist, so that the verifier refuses the program only where it gets there. libbpf uses this number too.
POISON: Final = 0xBAD2310


class CoreError(PybpfasmError):
    """A CO-RE relocation that is malformed, or that this kernel's types give two answers to."""


class CoreKind(IntEnum):
    """What a relocation asks for (``enum bpf_core_relo_kind``)."""

    FIELD_BYTE_OFFSET = 0
    FIELD_BYTE_SIZE = 1
    FIELD_EXISTS = 2
    FIELD_SIGNED = 3
    FIELD_LSHIFT_U64 = 4
    FIELD_RSHIFT_U64 = 5
    TYPE_ID_LOCAL = 6
    TYPE_ID_TARGET = 7
    TYPE_EXISTS = 8
    TYPE_SIZE = 9
    ENUMVAL_EXISTS = 10
    ENUMVAL_VALUE = 11
    TYPE_MATCHES = 12


_TYPE_KINDS: Final = frozenset(
    {
        CoreKind.TYPE_ID_LOCAL,
        CoreKind.TYPE_ID_TARGET,
        CoreKind.TYPE_EXISTS,
        CoreKind.TYPE_SIZE,
        CoreKind.TYPE_MATCHES,
    }
)
_ENUM_KINDS: Final = frozenset({CoreKind.ENUMVAL_EXISTS, CoreKind.ENUMVAL_VALUE})
_EXISTS: Final = frozenset(
    {CoreKind.FIELD_EXISTS, CoreKind.TYPE_EXISTS, CoreKind.ENUMVAL_EXISTS, CoreKind.TYPE_MATCHES}
)
_COMPOSITE: Final = frozenset({Kind.STRUCT, Kind.UNION})
_ENUMS: Final = frozenset({Kind.ENUM, Kind.ENUM64})


@dataclass(frozen=True, eq=False)
class CoreRelocation:
    """What one instruction asks of the target's types.

    ``access`` is a list of numbers with colons: for fields the index of an array element of the type (0 where
    there is no array), then of members and elements; for enumerators the index of one; for types ``0``.
    """

    kind: CoreKind
    local: Btf
    type_id: int
    access: str

    @property
    def name(self) -> str:
        """The type and field in C's spelling, as far as they can be read: ``task_struct.se.vruntime``."""
        try:
            return _Spec.local(self).text
        except PybpfasmError:
            return f"BTF type {self.type_id}, access {self.access}"

    def __str__(self) -> str:
        return f"{self.kind.name.lower()}({self.name})"


@dataclass(slots=True)
class _Accessor:
    """A step from a type to one of its parts; ``name`` is empty for an element of an array."""

    type_id: int
    index: int
    name: str


class _Spec:
    """Where a field is, in one BTF."""

    __slots__ = ("accessors", "bit_offset", "btf", "root", "text")

    def __init__(self, btf: Btf, root: int) -> None:
        self.btf = btf
        self.root = root
        self.accessors: list[_Accessor] = []
        self.bit_offset = 0
        self.text = ""

    @classmethod
    def local(cls, relocation: CoreRelocation) -> _Spec:
        btf = relocation.local
        spec = cls(btf, relocation.type_id)
        parts = relocation.access.split(":")
        if len(parts) > _MAX_SPEC or not all(_NUMBER.fullmatch(part) for part in parts):
            raise CoreError(f"access {relocation.access[:80]!r} is no list of numbers with colons")
        steps = [int(part) for part in parts]
        t = btf.resolve(relocation.type_id)
        spec.text = btf.type(relocation.type_id).name or t.name
        if relocation.kind in _TYPE_KINDS:
            if steps != [0]:
                raise CoreError(f"{spec.text}: a type has the access 0, not {relocation.access!r}")
            return spec
        if relocation.kind in _ENUM_KINDS:
            if t.kind not in _ENUMS or len(steps) != 1 or steps[0] >= t.vlen:
                raise CoreError(f"{spec.text}: no enumerator {relocation.access!r}")
            enumerator = t.enumerators[steps[0]]
            spec.accessors.append(_Accessor(t.id, steps[0], enumerator.name))
            spec.text += f".{enumerator.name}"
            return spec
        spec.accessors.append(_Accessor(t.id, steps[0], ""))
        spec.bit_offset = steps[0] * btf.size_of(t.id) * 8 if steps[0] else 0
        if steps[0]:
            spec.text += f"[{steps[0]}]"
        for step in steps[1:]:
            if t.kind in _COMPOSITE:
                if step >= t.vlen:
                    raise CoreError(f"{spec.text} has {t.vlen} members, no number {step}")
                member = t.members[step]
                spec.bit_offset += member.bit_offset
                if member.name:
                    spec.accessors.append(_Accessor(t.id, step, member.name))
                    spec.text += f".{member.name}"
                t = btf.resolve(member.type_id)
            elif t.kind == Kind.ARRAY:
                if step >= t.nelems and not _flexible(btf, spec.accessors[-1], t):
                    raise CoreError(f"{spec.text} has {t.nelems} elements, no number {step}")
                t = btf.resolve(t.element_id)
                spec.accessors.append(_Accessor(t.id, step, ""))
                spec.bit_offset += step * btf.size_of(t.id) * 8
                spec.text += f"[{step}]"
            else:
                raise CoreError(f"{spec.text} is no structure and no array, it has no member {step}")
        return spec


def _flexible(btf: Btf, last: _Accessor, array: BtfType) -> bool:
    """Whether an array is the last member of its structure, and may have more elements than it says."""
    if not last.name or array.nelems > 1:
        return False
    return last.index == btf.type(last.type_id).vlen - 1


def essential(name: str) -> str:
    """A type's name without its flavour: ``sock`` of ``sock___v6``."""
    for at in range(len(name) - 5, -1, -1):
        if name[at] != "_" and name[at + 1 : at + 4] == "___" and name[at + 4] != "_":
            return name[: at + 1]
    return name


def _same_kind(one: BtfType, other: BtfType) -> bool:
    return one.kind == other.kind or (one.kind in _ENUMS and other.kind in _ENUMS)


@dataclass(slots=True)
class _Answer:
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
        return _Matcher(btf, self.target).compatible(
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

    @staticmethod
    def _poison(insn: Instruction) -> tuple[Instruction, ...]:
        call = replace(
            insn, opcode=isa.OP_CALL, dst=0, src=0, offset=0, imm=POISON, imm_high=0, reference=None
        )
        return (call,) * insn.slots

    def _local(self, relocation: CoreRelocation) -> _Answer:
        return _calculate(relocation.kind, _Spec.local(relocation))

    def _answer(self, relocation: CoreRelocation) -> _Answer:
        if relocation.kind == CoreKind.TYPE_ID_LOCAL:
            return _Answer(relocation.type_id)
        local = _Spec.local(relocation)
        root = relocation.local.type(relocation.type_id)
        if not root.name:
            raise CoreError(f"{relocation}: a type without a name can't be looked up")
        answers: list[_Answer] = []
        for btf, type_id in self._find(root):
            spec = self._match(relocation, local, btf, type_id)
            if spec is None:
                continue
            answer = _calculate(relocation.kind, spec)
            if answers and (answer.value, answer.bit_offset) != (answers[0].value, answers[0].bit_offset):
                raise CoreError(
                    f"{relocation} is {answers[0].value} in one type of this name, {answer.value} in another"
                )
            answers.append(answer)
        if answers:
            return answers[0]
        return _Answer(0 if relocation.kind in _EXISTS else None)

    def _find(self, local: BtfType) -> list[tuple[Btf, int]]:
        """Every type of the target with the essential name and the kind of *local*."""
        name = essential(local.name)
        key = (name, local.kind)
        if key not in self._candidates:
            found: list[tuple[Btf, int]] = []
            btf: Btf | None = self.target
            while btf is not None:
                names = {name, *_flavours(btf, name)}
                types = [t for one in sorted(names) for t in btf.all_by_name(one) if _same_kind(t, local)]
                found += [(btf, t.id) for t in sorted(types, key=lambda t: t.id)]
                btf = btf.base
            self._candidates[key] = found
        return self._candidates[key]

    def _match(self, relocation: CoreRelocation, local: _Spec, btf: Btf, type_id: int) -> _Spec | None:
        spec = _Spec(btf, type_id)
        if relocation.kind in _TYPE_KINDS:
            matches = _Matcher(local.btf, btf)
            if relocation.kind == CoreKind.TYPE_MATCHES:
                return spec if matches.match(relocation.type_id, type_id) else None
            return spec if matches.compatible(relocation.type_id, type_id) else None
        if relocation.kind in _ENUM_KINDS:
            t = btf.resolve(type_id)
            if t.kind not in _ENUMS:
                return None
            wanted = essential(local.accessors[0].name)
            for index, enumerator in enumerate(t.enumerators):
                if essential(enumerator.name) == wanted:
                    spec.accessors.append(_Accessor(t.id, index, enumerator.name))
                    return spec
            return None
        at = btf.resolve(type_id)
        for number, accessor in enumerate(local.accessors):
            if accessor.name:
                member = local.btf.type(accessor.type_id).members[accessor.index]
                steps = [_MAX_STEPS]
                found = _match_member(local.btf, member.type_id, member.name, spec, at, 0, steps)
                if found is None:
                    return None
                at = btf.resolve(found)
            else:
                if number:
                    if at.kind != Kind.ARRAY:
                        return None
                    last = spec.accessors[-1]
                    if accessor.index >= at.nelems and not _flexible(btf, last, at):
                        return None
                    at = btf.resolve(at.element_id)
                spec.accessors.append(_Accessor(at.id, accessor.index, ""))
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


def _match_member(
    local: Btf, local_type: int, name: str, spec: _Spec, at: BtfType, depth: int, steps: list[int]
) -> int | None:
    """Look for member *name* in *at*, also within its anonymous members; returns the member's type."""
    if at.kind not in _COMPOSITE or depth > _MAX_DEPTH:
        return None
    for index, member in enumerate(at.members):
        steps[0] -= 1
        if steps[0] < 0:
            raise CoreError(f"BTF type {at.id} holds too many anonymous members to look through")
        if not member.name:
            spec.bit_offset += member.bit_offset
            inner = spec.btf.resolve(member.type_id)
            found = _match_member(local, local_type, name, spec, inner, depth + 1, steps)
            if found is not None:
                return found
            spec.bit_offset -= member.bit_offset
        elif member.name == name:
            if not _fields_compatible(local, local_type, spec.btf, member.type_id):
                return None
            spec.accessors.append(_Accessor(at.id, index, name))
            spec.bit_offset += member.bit_offset
            return member.type_id
    return None


def _fields_compatible(local: Btf, local_id: int, target: Btf, target_id: int) -> bool:
    for _ in range(_MAX_DEPTH):
        one, other = local.resolve(local_id), target.resolve(target_id)
        if one.kind in _COMPOSITE and other.kind in _COMPOSITE:
            return True
        if not _same_kind(one, other):
            return False
        if one.kind in (Kind.PTR, Kind.FLOAT):
            return True
        if one.kind == Kind.FWD or one.kind in _ENUMS:
            mine, theirs = essential(one.name), essential(other.name)
            return not mine or not theirs or mine == theirs
        if one.kind == Kind.INT:
            return one.bit_offset == 0 and other.bit_offset == 0
        if one.kind != Kind.ARRAY:
            return False
        local_id, target_id = one.element_id, other.element_id
    return False


class _Matcher:
    """Whether a local type and a target's are the same, loosely (`compatible`) or closely (`match`)."""

    def __init__(self, local: Btf, target: Btf) -> None:
        self.local = local
        self.target = target
        self.steps = _MAX_STEPS

    def _step(self, depth: int) -> None:
        self.steps -= 1
        if self.steps < 0 or depth > _MAX_DEPTH:
            raise CoreError("the types are nested too deeply to compare them")

    def compatible(self, local_id: int, target_id: int, depth: int = 0) -> bool:
        """The rule for whether a type exists: kinds, and what pointers, arrays and prototypes are made of."""
        self._step(depth)
        one, other = self.local.resolve(local_id), self.target.resolve(target_id)
        if depth == 0 and not _same_kind(self.local.type(local_id), self.target.type(target_id)):
            return False
        if not _same_kind(one, other):
            return False
        if one.kind == Kind.INT:
            return one.bit_offset == 0 and other.bit_offset == 0
        if one.kind == Kind.PTR:
            return self.compatible(one.type_id, other.type_id, depth + 1)
        if one.kind == Kind.ARRAY:
            return self.compatible(one.element_id, other.element_id, depth + 1)
        if one.kind == Kind.FUNC_PROTO:
            mine, theirs = one.params, other.params
            return (
                len(mine) == len(theirs)
                and all(
                    self.compatible(a.type_id, b.type_id, depth + 1)
                    for a, b in zip(mine, theirs, strict=True)
                )
                and self.compatible(one.type_id, other.type_id, depth + 1)
            )
        return one.kind in _ENUMS | _COMPOSITE | {Kind.VOID, Kind.FWD}

    def match(self, local_id: int, target_id: int, behind_pointer: bool = False, depth: int = 0) -> bool:
        """The rule of ``bpf_core_type_matches``: every local member and enumerator, with its type."""
        self._step(depth)
        one, other = self.local.resolve(local_id), self.target.resolve(target_id)
        if essential(one.name if one.id else "") != essential(other.name if other.id else ""):
            return False
        if one.kind != other.kind:
            forward = behind_pointer and {one.kind, other.kind} & {Kind.FWD}
            if forward:
                fwd, full = (one, other) if one.kind == Kind.FWD else (other, one)
                return full.kind == (Kind.UNION if fwd.kflag else Kind.STRUCT)
            if not _same_kind(one, other):
                return False
        if one.kind == Kind.FWD:
            return one.kflag == other.kflag
        if one.kind in _ENUMS:
            if one.size != other.size:
                return False
            theirs = {essential(e.name) for e in other.enumerators}
            return behind_pointer or all(essential(e.name) in theirs for e in one.enumerators)
        if one.kind in _COMPOSITE:
            if behind_pointer:
                return True
            targets = other.members
            return all(
                any(
                    essential(mine.name) == essential(theirs.name)
                    and self.match(mine.type_id, theirs.type_id, behind_pointer, depth + 1)
                    for theirs in targets
                )
                for mine in one.members
            )
        if one.kind == Kind.INT:
            return one.size == other.size and one.signed == other.signed
        if one.kind == Kind.PTR:
            return self.match(one.type_id, other.type_id, True, depth + 1)
        if one.kind == Kind.ARRAY:
            return one.nelems == other.nelems and self.match(
                one.element_id, other.element_id, behind_pointer, depth + 1
            )
        if one.kind == Kind.FUNC_PROTO:
            params = one.params, other.params
            return (
                len(params[0]) == len(params[1])
                and all(
                    self.match(a.type_id, b.type_id, behind_pointer, depth + 1)
                    for a, b in zip(*params, strict=True)
                )
                and self.match(one.type_id, other.type_id, behind_pointer, depth + 1)
            )
        return one.kind == Kind.VOID


def same_declaration(one: Btf, one_id: int, other: Btf, other_id: int) -> bool:
    """Whether two objects mean the same by the types of a variable or a function.

    Arguments and results are passed in registers of 64 bits, so that integers of any size go, and an integer
    of 64 bits (which is what functions written here declare) for anything.
    """
    mine, theirs = one.resolve(one_id), other.resolve(other_id)
    if mine.kind != Kind.FUNC_PROTO or theirs.kind != Kind.FUNC_PROTO:
        if mine.kind == theirs.kind == Kind.INT:
            return (mine.size, mine.signed) == (theirs.size, theirs.signed)
        # One of the two may name the members that it needs, or none.
        return _Matcher(one, other).match(one_id, other_id) or _Matcher(other, one).match(other_id, one_id)
    pairs = [(a.type_id, b.type_id) for a, b in zip(mine.params, theirs.params, strict=False)]
    return len(mine.params) == len(theirs.params) and all(
        _is_word(one, a) or _is_word(other, b) or _Matcher(one, other).compatible(a, b, 1)
        for a, b in [*pairs, (mine.type_id, theirs.type_id)]
    )


def _is_word(btf: Btf, type_id: int) -> bool:
    t = btf.resolve(type_id)
    return t.kind == Kind.INT and t.size == 8


def _calculate(kind: CoreKind, spec: _Spec) -> _Answer:
    btf = spec.btf
    if kind == CoreKind.TYPE_ID_LOCAL or kind == CoreKind.TYPE_ID_TARGET:
        return _Answer(spec.root)
    if kind in _EXISTS:
        return _Answer(1)
    if kind == CoreKind.TYPE_SIZE:
        return _Answer(btf.size_of(spec.root, _POINTER))
    last = spec.accessors[-1]
    if kind == CoreKind.ENUMVAL_VALUE:
        return _Answer(btf.type(last.type_id).enumerators[last.index].value)
    if not last.name:
        size = btf.size_of(last.type_id, _POINTER)
        if kind == CoreKind.FIELD_BYTE_OFFSET:
            return _of_field(btf, last.type_id, spec.bit_offset // 8, size, spec.bit_offset)
        if kind == CoreKind.FIELD_BYTE_SIZE:
            return _Answer(size)
        raise CoreError(f"{kind.name.lower()} of an array's element is not defined")
    member = btf.type(last.type_id).members[last.index]
    field = btf.resolve(member.type_id)
    width = member.bitfield_size
    if width:
        size = byte_size = btf.size_of(field.id, _POINTER)
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
        size = btf.size_of(field.id, _POINTER)
        start = spec.bit_offset // 8
        width = size * 8
    if kind == CoreKind.FIELD_BYTE_OFFSET:
        if member.bitfield_size:
            return _Answer(start, bit_offset=spec.bit_offset)
        return _of_field(btf, field.id, start, size, spec.bit_offset)
    if kind == CoreKind.FIELD_BYTE_SIZE:
        return _Answer(size)
    if kind == CoreKind.FIELD_SIGNED:
        signed = field.signed if field.kind in _ENUMS | {Kind.INT} else False
        return _Answer(int(signed))
    if kind == CoreKind.FIELD_LSHIFT_U64:
        if btf.byteorder == "little":
            return _Answer(64 - (spec.bit_offset + width - start * 8))
        return _Answer((8 - size) * 8 + (spec.bit_offset - start * 8))
    if kind == CoreKind.FIELD_RSHIFT_U64:
        return _Answer(64 - width)
    raise BtfError(f"relocation of kind {kind}")


def _of_field(btf: Btf, type_id: int, offset: int, size: int, bit_offset: int) -> _Answer:
    t = btf.resolve(type_id)
    return _Answer(
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


# --- For programs written here: a `Struct` has the name of the kernel's type and the fields that are needed.


def core_load(to: Reg, view: Struct, path: str) -> None:
    """``rN = *(uM *)(rK + offset)``, with offset and size of the kernel's field: one instruction.

        class Task(Struct, kernel_name="task_struct"):
            tgid = S32()

        core_load(b.r2, Task(b.r1), "tgid")

    *path* names the field, through structures and arrays: ``"se.vruntime"``, ``"comm[3]"``. The other fields,
    their order and their offsets in Python count for nothing. The program needs `ProgramSpec.resolve` before
    it is loaded. Raises `AsmError`.
    """
    struct = _struct_of(to, view)
    access, field, offset = _path(to, struct, path)
    if isinstance(field, BitField):
        raise _wrong(to, f"{struct.__name__}.{path} is a bit field: core_load_bits() loads it")
    if not isinstance(field, Scalar):
        raise to.asm._error(f"{struct.__name__}.{path} is no integer or pointer that a register could hold")
    if to.index == isa.FRAME_POINTER:
        raise to.asm._frame_pointer()
    if to.is_w:
        raise to.asm._error(f"write b.r{to.index}: a load of 1, 2 or 4 bytes clears the rest of the register")
    reference = CoreRelocation(CoreKind.FIELD_BYTE_OFFSET, *_local(struct), access)
    opcode = isa.LDX | isa.MEM | isa.SIZE_CODE[field.size]
    to.asm._emit(opcode, to.index, _register_of(view), offset, reference=reference)


def _struct_of(to: Reg, view: Struct) -> type[Struct]:
    _need_register(to)
    if not isinstance(view, Struct):
        raise to.asm._error(f"a view of the kernel's structure comes second: {_example(view)}(b.rN)")
    return type(view)


def _example(struct: object) -> str:
    return struct.__name__ if isinstance(struct, type) and issubclass(struct, Struct) else "Task"


def _need_register(to: object) -> None:
    from pybpfasm.asm import Reg

    if not isinstance(to, Reg):
        raise AsmError(f"a register comes first, b.rN, not {to!r}", resolve(capture(None, 2)))


def _register_of(view: Struct) -> int:
    if view.address.offset:
        raise view.address.asm._error(f"{view!r}: the kernel's structure starts where the register points to")
    return view.address.base


def core_load_bits(to: Reg, view: Struct, path: str) -> None:
    """``rN`` = a bit field of the kernel, extended to 64 bits: 13 instructions, of which 5 to 8 are run.

        class Skb(Struct, kernel_name="sk_buff"):
            pkt_type = U8.bits(3)

        core_load_bits(b.r2, Skb(b.r1), "pkt_type")

    Where the field is, how many bits it has, and in how many bytes, is the kernel's to say; whether it has a
    sign, and its name, are taken from Python. *to* holds these facts on the way, so it is not the register
    that *view* lies at; no other is changed. Otherwise as `core_load`. Raises `AsmError`.
    """
    struct, asm = _struct_of(to, view), to.asm
    access, field, _ = _path(to, struct, path)
    if not isinstance(field, BitField):
        raise _wrong(to, f"{struct.__name__}.{path} is no bit field: core_load() loads it")
    base = _register_of(view)
    if base == to.index:
        raise _wrong(to, f"r{base} can't hold the address and, before that is used, facts about the field")
    _constant(to, CoreKind.FIELD_BYTE_SIZE, struct, access, field.base.size)
    done = Label("done")
    labels = {size: Label(f"size {size}") for size in (1, 2, 4)}
    for size, label in labels.items():
        asm.If(to == size).goto(label)
    for size in (8, 4, 2, 1):
        if size < 8:
            asm.goto(done)
            asm.label(labels[size])
        reference = CoreRelocation(CoreKind.FIELD_BYTE_OFFSET, *_local(struct), access)
        asm._emit(isa.LDX | isa.MEM | isa.SIZE_CODE[size], to.index, base, reference=reference)
    asm.label(done)
    right = Alu.ARSH if field.base.signed else Alu.RSH
    _constant(to, CoreKind.FIELD_LSHIFT_U64, struct, access, 0, Alu.LSH)
    _constant(to, CoreKind.FIELD_RSHIFT_U64, struct, access, 64 - field.width, right)


def core_offset(to: Reg, struct: type[Struct], path: str) -> None:
    """``rN = offset``: where the kernel has the field, in bytes from the start of *struct*.

    Arguments and errors as with `core_load`; a kernel without the field refuses the program if it can get
    there (see `core_exists`).
    """
    access, _, offset = _path(to, struct, path)
    _constant(to, CoreKind.FIELD_BYTE_OFFSET, struct, access, offset)


def core_add_offset(to: Reg, struct: type[Struct], path: str) -> None:
    """``rN += offset``: from the address of a *struct* of the kernel to its field's, as `core_offset`."""
    access, _, offset = _path(to, struct, path)
    _constant(to, CoreKind.FIELD_BYTE_OFFSET, struct, access, offset, Alu.ADD)


def core_size(to: Reg, struct: type[Struct], path: str = "") -> None:
    """``rN = size``: how many bytes the kernel's field takes, or without *path* its structure.

    Raises `AsmError`.
    """
    _need_struct(to, struct)
    if not path:
        _constant(to, CoreKind.TYPE_SIZE, struct, "0", struct.sizeof)
        return
    access, field, _ = _path(to, struct, path)
    size = field.base.size if isinstance(field, BitField) else field.size
    _constant(to, CoreKind.FIELD_BYTE_SIZE, struct, access, size)


def core_exists(to: Reg, struct: type[Struct], path: str = "") -> None:
    """``rN = 1`` where the kernel has the field, or without *path* the structure, else ``rN = 0``.

    Raises `AsmError`.
    """
    _need_struct(to, struct)
    if not path:
        _constant(to, CoreKind.TYPE_EXISTS, struct, "0", 1)
        return
    _constant(to, CoreKind.FIELD_EXISTS, struct, _path(to, struct, path)[0], 1)


def _need_struct(to: Reg, struct: type[Struct]) -> None:
    _need_register(to)
    if not (isinstance(struct, type) and issubclass(struct, Struct)):
        raise to.asm._error(f"the structure's class comes second, not {type(struct).__name__}")


def _constant(
    to: Reg, kind: CoreKind, struct: type[Struct], access: str, value: int, operation: Alu = Alu.MOV
) -> None:
    if to.index == isa.FRAME_POINTER:
        raise to.asm._frame_pointer()
    if to.is_w:
        raise to.asm._error(f"write b.r{to.index}")
    reference = CoreRelocation(kind, *_local(struct), access)
    to.asm._emit(isa.ALU64 | operation | isa.K, to.index, 0, 0, value, reference=reference)


_locals: WeakKeyDictionary[type[Struct], tuple[Btf, int]] = WeakKeyDictionary()


def _local(struct: type[Struct]) -> tuple[Btf, int]:
    """The structure as a type of its own BTF."""
    if struct not in _locals:
        builder = BtfBuilder()
        type_id = struct.btf(builder)
        _locals[struct] = (Btf.parse(builder.to_bytes()), type_id)
    return _locals[struct]


_STEP: Final = re.compile(r"([A-Za-z_]\w*)((?:\[\d{1,6}\])*)", re.ASCII)


def _path(to: Reg, struct: type[Struct], path: str) -> tuple[str, Field, int]:
    """The access that *path* stands for, the field at its end, and its offset in Python."""
    _need_struct(to, struct)
    access, offset = ["0"], 0
    at: type[Struct] | None = struct
    field: Field | None = None
    for part in path.split("."):
        step = _STEP.fullmatch(part)
        if step is None:
            raise _wrong(to, f'{path!r} is no path to a field: write "a.b[2].c"')
        if at is None:
            raise _wrong(to, f"{struct.__name__}.{path}: there is no structure before .{part}")
        field = at.fields.get(step[1])
        if field is None:
            raise _wrong(to, f"{at.__name__} has no field {step[1]!r}{suggestion(step[1], at.fields)}")
        members = [member[0] for member in at._members(BtfBuilder())]
        if member_name(step[1]) not in members:
            raise _wrong(to, f"{at.__name__}.{step[1]} can't be described in BTF, which CO-RE needs")
        access.append(str(members.index(member_name(step[1]))))
        offset += field.offset
        for index in re.findall(r"\d+", step[2]):
            if not isinstance(field, Array) or int(index) >= field.count:
                raise _wrong(to, f"{struct.__name__}.{path}: there is no element [{index}]")
            field = field.element
            access.append(index)
            offset += int(index) * field.size
        at = field.struct if isinstance(field, Nested) else None
    assert field is not None
    return ":".join(access), field, offset


def _wrong(to: Reg, message: str) -> AsmError:
    return to.asm._error(message)
