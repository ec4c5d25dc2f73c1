# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What an instruction asks of types, and where a field is in one BTF."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from pybpfasm.btf import Btf, BtfType, Kind
from pybpfasm.errors import PybpfasmError

__all__ = ["CoreError", "CoreKind", "CoreRelocation", "essential"]

_NUMBER: Final = re.compile("[0-9]{1,9}")
_MAX_SPEC: Final = 64  # accessors of one field, BPF_CORE_SPEC_MAX_LEN
MAX_DEPTH: Final = 32
MAX_STEPS: Final = 10_000  # members looked at for one field: anonymous ones may hold one another many times


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


TYPE_KINDS: Final = frozenset(
    {
        CoreKind.TYPE_ID_LOCAL,
        CoreKind.TYPE_ID_TARGET,
        CoreKind.TYPE_EXISTS,
        CoreKind.TYPE_SIZE,
        CoreKind.TYPE_MATCHES,
    }
)
ENUM_KINDS: Final = frozenset({CoreKind.ENUMVAL_EXISTS, CoreKind.ENUMVAL_VALUE})
EXISTS: Final = frozenset(
    {CoreKind.FIELD_EXISTS, CoreKind.TYPE_EXISTS, CoreKind.ENUMVAL_EXISTS, CoreKind.TYPE_MATCHES}
)
COMPOSITE: Final = frozenset({Kind.STRUCT, Kind.UNION})
ENUMS: Final = frozenset({Kind.ENUM, Kind.ENUM64})


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
            return Spec.local(self).text
        except PybpfasmError:
            return f"BTF type {self.type_id}, access {self.access}"

    def __str__(self) -> str:
        return f"{self.kind.name.lower()}({self.name})"


@dataclass(slots=True)
class Accessor:
    """A step from a type to one of its parts; ``name`` is empty for an element of an array."""

    type_id: int
    index: int
    name: str


class Spec:
    """Where a field is, in one BTF."""

    __slots__ = ("accessors", "bit_offset", "btf", "root", "text")

    def __init__(self, btf: Btf, root: int) -> None:
        self.btf = btf
        self.root = root
        self.accessors: list[Accessor] = []
        self.bit_offset = 0
        self.text = ""

    @classmethod
    def local(cls, relocation: CoreRelocation) -> Spec:
        """Where a relocation's field is in its own BTF; raises `CoreError` where it leads nowhere."""
        btf = relocation.local
        spec = cls(btf, relocation.type_id)
        parts = relocation.access.split(":")
        if len(parts) > _MAX_SPEC or not all(_NUMBER.fullmatch(part) for part in parts):
            raise CoreError(f"access {relocation.access[:80]!r} is no list of numbers with colons")
        steps = [int(part) for part in parts]
        t = btf.resolve(relocation.type_id)
        spec.text = btf.type(relocation.type_id).name or t.name
        if relocation.kind in TYPE_KINDS:
            if steps != [0]:
                raise CoreError(f"{spec.text}: a type has the access 0, not {relocation.access!r}")
            return spec
        if relocation.kind in ENUM_KINDS:
            if t.kind not in ENUMS or len(steps) != 1 or steps[0] >= t.vlen:
                raise CoreError(f"{spec.text}: no enumerator {relocation.access!r}")
            enumerator = t.enumerators[steps[0]]
            spec.accessors.append(Accessor(t.id, steps[0], enumerator.name))
            spec.text += f".{enumerator.name}"
            return spec
        spec.accessors.append(Accessor(t.id, steps[0], ""))
        spec.bit_offset = steps[0] * btf.size_of(t.id) * 8 if steps[0] else 0
        if steps[0]:
            spec.text += f"[{steps[0]}]"
        for step in steps[1:]:
            if t.kind in COMPOSITE:
                if step >= t.vlen:
                    raise CoreError(f"{spec.text} has {t.vlen} members, no number {step}")
                member = t.members[step]
                spec.bit_offset += member.bit_offset
                if member.name:
                    spec.accessors.append(Accessor(t.id, step, member.name))
                    spec.text += f".{member.name}"
                t = btf.resolve(member.type_id)
            elif t.kind == Kind.ARRAY:
                if step >= t.nelems and not flexible(btf, spec.accessors[-1], t):
                    raise CoreError(f"{spec.text} has {t.nelems} elements, no number {step}")
                t = btf.resolve(t.element_id)
                spec.accessors.append(Accessor(t.id, step, ""))
                spec.bit_offset += step * btf.size_of(t.id) * 8
                spec.text += f"[{step}]"
            else:
                raise CoreError(f"{spec.text} is no structure and no array, it has no member {step}")
        return spec


def flexible(btf: Btf, last: Accessor, array: BtfType) -> bool:
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


def same_kind(one: BtfType, other: BtfType) -> bool:
    """Whether two types are of one kind, enumerations of either width among them."""
    return one.kind == other.kind or (one.kind in ENUMS and other.kind in ENUMS)
