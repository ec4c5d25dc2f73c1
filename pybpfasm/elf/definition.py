# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Reads what defines a map in the section ``.maps``: a structure, in the form that libbpf's ``__uint``,
``__type`` and ``__array`` give it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NoReturn

from pybpfasm.btf import Btf, BtfType, Kind
from pybpfasm.elf.format import ElfError

__all__ = ["Definition", "read_definition"]

_NUMBERS: Final = frozenset({"type", "max_entries", "map_flags", "map_extra", "pinning", "numa_node"})


@dataclass(slots=True)
class Part:
    """A map's key or value: its size in bytes, and its type where the definition names one; else 0."""

    size: int = 0
    type_id: int = field(default=0, compare=False)


@dataclass(slots=True)
class Definition:
    """What the definition of a map says.

    Two are equal where the maps may be one map. Types of keys and values are not compared: their ids are
    those of one object.
    """

    numbers: dict[str, int] = field(default_factory=dict)
    key: Part = field(default_factory=Part)
    value: Part = field(default_factory=Part)
    inner: Definition | None = None


def read_definition(btf: Btf, type_id: int, symbol: str) -> Definition:
    """The definition that type *type_id* is, of the map *symbol*; raises `ElfError` for one that is none."""
    return _Reader(btf, symbol).read(btf.resolve(type_id))


class _Reader:
    def __init__(self, btf: Btf, symbol: str) -> None:
        self.btf = btf
        self.symbol = symbol

    def fail(self, message: str) -> NoReturn:
        raise ElfError(f"map {self.symbol!r}: {message}", section=".maps")

    def read(self, definition: BtfType, *, inner: bool = False) -> Definition:
        """The definition in the structure *definition*."""
        if definition.kind != Kind.STRUCT:
            self.fail(f"its definition is no structure but of kind {definition.kind.name}")
        out = Definition()
        for member in definition.members:
            what = self.btf.resolve(member.type_id)
            if member.name in _NUMBERS:
                out.numbers[member.name] = self._number(member.name, what)
            elif member.name in ("key_size", "value_size"):
                self._part(out, member.name).size = self._number(member.name, what)
            elif member.name in ("key", "value"):
                if what.kind != Kind.PTR:
                    self.fail(f"{member.name} is not written with __type()")
                part, size = self._part(out, member.name), self.btf.size_of(what.type_id)
                if part.size and part.size != size:
                    self.fail(f"{member.name} has {size} bytes, {member.name}_size says {part.size}")
                part.size, part.type_id = size, what.type_id
            elif member.name == "values":
                self._values(out, what, inner)
            else:
                self.fail(f"{member.name!r} is nothing that a definition has")
        if "type" not in out.numbers:
            self.fail("its definition has no type")
        for part in (out.key, out.value):
            if part.size > 0xFFFFFFFF:
                self.fail(f"a key or value of {part.size} bytes")
        return out

    @staticmethod
    def _part(out: Definition, name: str) -> Part:
        return out.key if name.startswith("key") else out.value

    def _number(self, name: str, what: BtfType) -> int:
        if what.kind == Kind.PTR:
            array = self.btf.resolve(what.type_id)
            if array.kind == Kind.ARRAY:
                return array.nelems
        elif what.kind in (Kind.ENUM, Kind.ENUM64) and what.vlen == 1:  # __ulong
            return what.enumerators[0].value
        return self.fail(f"{name} is not written with __uint()")

    def _values(self, out: Definition, what: BtfType, inner: bool) -> None:
        if what.kind != Kind.ARRAY or what.nelems:
            self.fail("values is not written with __array()")
        pointer = self.btf.resolve(what.element_id)
        if pointer.kind != Kind.PTR:
            self.fail("values are no pointers")
        element = self.btf.resolve(pointer.type_id)
        out.value.size = 4
        if element.kind == Kind.FUNC_PROTO:
            return
        if inner:
            self.fail("maps are nested only once")
        out.inner = self.read(element, inner=True)
