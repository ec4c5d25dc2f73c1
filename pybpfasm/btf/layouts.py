# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Layouts of the structures that a BTF describes: `Struct` classes to read and write memory with.

Tcp = layout_of(Btf.parse(Path("/sys/kernel/btf/vmlinux").read_bytes()), "tcphdr")
Tcp.unpack(header, byteorder="little").syn
"""

from __future__ import annotations

from types import new_class
from typing import Final

from pybpfasm.btf.format import MAX_NESTING, BtfError, Kind, Member
from pybpfasm.btf.reader import Btf, BtfType
from pybpfasm.layout import (
    S8,
    S16,
    S32,
    S64,
    U8,
    U16,
    U32,
    U64,
    Array,
    Be16,
    Be32,
    Be64,
    Bytes,
    Field,
    Nested,
    Pointer,
    Scalar,
    Struct,
    Union,
    field_name,
)

__all__ = ["layout_of"]

_INTEGERS: Final[dict[tuple[int, bool], type[Scalar]]] = {
    (1, False): U8,
    (2, False): U16,
    (4, False): U32,
    (8, False): U64,
    (1, True): S8,
    (2, True): S16,
    (4, True): S32,
    (8, True): S64,
}
_NETWORK: Final[dict[str, type[Scalar]]] = {"__be16": Be16, "__be32": Be32, "__be64": Be64}


def layout_of(btf: Btf, name: str) -> type[Struct]:
    """The layout of structure or union *name* of *btf*, with the offsets and sizes that it has there.

    Members of unnamed structures and unions are fields in their place. Pointers are numbers, enumerations
    integers, types of network order ``Be`` fields; what is no integer (floating point, 16 bytes) is bytes. A
    name that `Struct` itself uses gets an underscore at its end. Raises `BtfError` where there is none of
    that name, or two that differ, and for malformed BTF.
    """
    found = [t for t in btf.all_by_name(name) if t.kind in (Kind.STRUCT, Kind.UNION)]
    if not found:
        raise BtfError(f"the BTF has no structure or union {name!r}")
    if len({t.kind for t in found}) > 1 or len({t.size for t in found}) > 1:
        raise BtfError(f"the BTF has {len(found)} structures or unions {name!r} that differ")
    return _Layouts(btf).of(found[0], 0)


class _Layouts:
    """The classes that have been made, by type id."""

    def __init__(self, btf: Btf) -> None:
        self.btf = btf
        self.made: dict[int, type[Struct]] = {}

    def of(self, t: BtfType, depth: int) -> type[Struct]:
        if t.id not in self.made:
            if depth > MAX_NESTING:
                raise BtfError(f"BTF type {t.id} holds structures that are nested too deeply")
            fields: dict[str, Field] = {}
            self._add(fields, t, 0, depth)
            # The members of an unnamed structure in a union may lie behind its start.
            overlay = all(f.at == 0 or getattr(f, "at_bit", None) == 0 for f in fields.values())
            base = Union if t.kind == Kind.UNION and overlay else Struct
            name = t.name or f"anonymous_{t.id}"
            namespace = {
                "__module__": __name__,
                "__slots__": (),
                "__doc__": f"``{t.kind.name.lower()} {name}``.",
                **fields,
            }
            self.made[t.id] = new_class(
                name, (base,), {"kernel_name": name, "size": t.size}, lambda made: made.update(namespace)
            )
        return self.made[t.id]

    def _add(self, fields: dict[str, Field], t: BtfType, base: int, depth: int) -> None:
        """Add the members of *t*, which starts at bit *base*."""
        if depth > MAX_NESTING:
            raise BtfError(f"BTF type {t.id} holds structures that are nested too deeply")
        for member in t.members:
            at = base + member.bit_offset
            if not member.name:
                inner = self.btf.resolve(member.type_id)
                if inner.kind in (Kind.STRUCT, Kind.UNION):
                    self._add(fields, inner, at, depth + 1)
                continue
            made = self._bits(member, at) or self._field(member.type_id, at // 8, depth)
            if made is not None:
                fields.setdefault(field_name(member.name), made)

    def _bits(self, member: Member, at: int) -> Field | None:
        if not member.bitfield_size:
            return None
        t = self.btf.resolve(member.type_id)
        if t.kind not in (Kind.INT, Kind.ENUM, Kind.ENUM64) or (t.size, t.signed) not in _INTEGERS:
            raise BtfError(f"bit field {member.name!r} is of kind {t.kind.name}, which is no integer")
        return _INTEGERS[t.size, t.signed].bits(member.bitfield_size, at_bit=at)

    def _field(self, type_id: int, at: int | None, depth: int) -> Field | None:
        current = self.btf.type(type_id)
        for _ in range(MAX_NESTING):
            if current.kind == Kind.TYPEDEF and current.name in _NETWORK:
                return _NETWORK[current.name](at=at)
            if current.kind not in (
                Kind.TYPEDEF,
                Kind.CONST,
                Kind.VOLATILE,
                Kind.RESTRICT,
                Kind.TYPE_TAG,
            ):
                break
            current = self.btf.type(current.type_id)
        if current.kind == Kind.PTR:
            return Pointer(at=at)
        if current.kind in (Kind.INT, Kind.ENUM, Kind.ENUM64):
            scalar = _INTEGERS.get((current.size, current.signed))
            return Bytes(current.size, at=at) if scalar is None else scalar(at=at)
        if current.kind in (Kind.STRUCT, Kind.UNION):
            return Nested(self.of(current, depth + 1), at=at)
        if current.kind == Kind.ARRAY:
            if depth > MAX_NESTING:
                raise BtfError(f"BTF type {current.id} is nested too deeply")
            element = self._field(current.element_id, None, depth + 1)
            return None if element is None else Array(element, current.nelems, at=at)
        if current.kind == Kind.FLOAT:
            return Bytes(current.size, at=at)
        raise BtfError(f"BTF type {current.id} of kind {current.kind.name} can't be a member")
