# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Why a kernel has no answer to a relocation, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pybpfasm.btf import Btf, BtfType, Kind
from pybpfasm.core.relocation import COMPOSITE, ENUM_KINDS, MAX_DEPTH, TYPE_KINDS, CoreRelocation, Spec
from pybpfasm.errors import suggestion

__all__ = ["why_missing"]

_WORDS = {Kind.STRUCT: "struct", Kind.UNION: "union", Kind.ENUM: "enum", Kind.ENUM64: "enum"}


def why_missing(relocation: CoreRelocation, candidates: Sequence[tuple[Btf, int]]) -> str:
    """What of *relocation* none of the *candidates* has, the target's types of the name."""
    local = Spec.local(relocation)
    root = relocation.local.type(relocation.type_id)
    what = f"{_WORDS.get(root.kind, 'type')} {root.name}"
    if not candidates:
        return f"this kernel has no {what}"
    btf, type_id = candidates[0]
    if relocation.kind in TYPE_KINDS:
        return f"{what} is not in this kernel as the program declares it"
    t = btf.resolve(type_id)
    mine, theirs = "one type", "another"
    if relocation.kind in ENUM_KINDS:
        name = local.accessors[0].name
        known = [one.name for one in t.enumerators]
        return f"this kernel's {what} has no {name!r}{suggestion(name, known)}"
    for accessor in local.accessors:
        if not accessor.name:
            if t.kind == Kind.ARRAY:
                t = btf.resolve(t.element_id)
            continue
        found = btf._member(t, accessor.name)
        if found is None:
            known = list(_names(btf, t, 0))
            return f"this kernel's {what} has no member {accessor.name!r}{suggestion(accessor.name, known)}"
        what = f"{what}.{accessor.name}"
        t = btf.resolve(found[1])
        member = relocation.local.type(accessor.type_id).members[accessor.index]
        mine, theirs = relocation.local.declaration(member.type_id)[:80], btf.declaration(found[1])[:80]
    return f"{what} is {theirs} in this kernel, and {mine} in the program"


def _names(btf: Btf, t: BtfType, depth: int) -> Iterator[str]:
    """The members that C finds in a structure, also within unnamed ones."""
    if t.kind not in COMPOSITE or depth > MAX_DEPTH:
        return
    for member in t.members:
        if member.name:
            yield member.name
        else:
            yield from _names(btf, btf.resolve(member.type_id), depth + 1)
