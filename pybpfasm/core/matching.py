# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Which types and fields of two BTFs are the same, by the rules of libbpf and the kernel."""

from __future__ import annotations

from pybpfasm.btf import Btf, BtfType, Kind
from pybpfasm.core.relocation import (
    COMPOSITE,
    ENUMS,
    MAX_DEPTH,
    MAX_STEPS,
    Accessor,
    CoreError,
    Spec,
    essential,
    same_kind,
)

__all__ = ["Matcher", "match_member", "same_declaration"]


def match_member(
    local: Btf, local_type: int, name: str, spec: Spec, at: BtfType, depth: int, steps: list[int]
) -> int | None:
    """Look for member *name* in *at*, also within its anonymous members; returns the member's type."""
    if at.kind not in COMPOSITE or depth > MAX_DEPTH:
        return None
    for index, member in enumerate(at.members):
        steps[0] -= 1
        if steps[0] < 0:
            raise CoreError(f"BTF type {at.id} holds too many anonymous members to look through")
        if not member.name:
            spec.bit_offset += member.bit_offset
            inner = spec.btf.resolve(member.type_id)
            found = match_member(local, local_type, name, spec, inner, depth + 1, steps)
            if found is not None:
                return found
            spec.bit_offset -= member.bit_offset
        elif member.name == name:
            if not _fields_compatible(local, local_type, spec.btf, member.type_id):
                return None
            spec.accessors.append(Accessor(at.id, index, name))
            spec.bit_offset += member.bit_offset
            return member.type_id
    return None


def _fields_compatible(local: Btf, local_id: int, target: Btf, target_id: int) -> bool:
    for _ in range(MAX_DEPTH):
        one, other = local.resolve(local_id), target.resolve(target_id)
        if one.kind in COMPOSITE and other.kind in COMPOSITE:
            return True
        if not same_kind(one, other):
            return False
        if one.kind in (Kind.PTR, Kind.FLOAT):
            return True
        if one.kind == Kind.FWD or one.kind in ENUMS:
            mine, theirs = essential(one.name), essential(other.name)
            return not mine or not theirs or mine == theirs
        if one.kind == Kind.INT:
            return one.bit_offset == 0 and other.bit_offset == 0
        if one.kind != Kind.ARRAY:
            return False
        local_id, target_id = one.element_id, other.element_id
    return False


class Matcher:
    """Whether a local type and a target's are the same, loosely (`compatible`) or closely (`match`)."""

    def __init__(self, local: Btf, target: Btf) -> None:
        self.local = local
        self.target = target
        self.steps = MAX_STEPS

    def _step(self, depth: int) -> None:
        self.steps -= 1
        if self.steps < 0 or depth > MAX_DEPTH:
            raise CoreError("the types are nested too deeply to compare them")

    def compatible(self, local_id: int, target_id: int, depth: int = 0) -> bool:
        """The rule for whether a type exists: kinds, and what pointers, arrays and prototypes are made of."""
        self._step(depth)
        one, other = self.local.resolve(local_id), self.target.resolve(target_id)
        if depth == 0 and not same_kind(self.local.type(local_id), self.target.type(target_id)):
            return False
        if not same_kind(one, other):
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
        return one.kind in ENUMS | COMPOSITE | {Kind.VOID, Kind.FWD}

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
            if not same_kind(one, other):
                return False
        if one.kind == Kind.FWD:
            return one.kflag == other.kflag
        if one.kind in ENUMS:
            if one.size != other.size:
                return False
            theirs = {essential(e.name) for e in other.enumerators}
            return behind_pointer or all(essential(e.name) in theirs for e in one.enumerators)
        if one.kind in COMPOSITE:
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
        return Matcher(one, other).match(one_id, other_id) or Matcher(other, one).match(other_id, one_id)
    pairs = [(a.type_id, b.type_id) for a, b in zip(mine.params, theirs.params, strict=False)]
    return len(mine.params) == len(theirs.params) and all(
        _is_word(one, a) or _is_word(other, b) or Matcher(one, other).compatible(a, b, 1)
        for a, b in [*pairs, (mine.type_id, theirs.type_id)]
    )


def _is_word(btf: Btf, type_id: int) -> bool:
    t = btf.resolve(type_id)
    return t.kind == Kind.INT and t.size == 8
