# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Writes types as C, for people to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybpfasm.btf.format import MAX_CHAIN, MAX_NAME, MAX_NESTING, MAX_RENDERED, BtfError, Kind

if TYPE_CHECKING:
    from pybpfasm.btf.reader import Btf, BtfType

__all__ = ["CWriter"]


class CWriter:
    """Renders one type as C, within bounds: nesting, length of a chain, and characters in all."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._budget = MAX_RENDERED

    def _spend(self, text: str) -> str:
        self._budget -= len(text) + 8
        if self._budget < 0:
            raise BtfError(f"the type is more than {MAX_RENDERED} characters of C")
        return text

    def _name(self, t: BtfType) -> str:
        return self._spend(t._btf._shown(t._word(0)))

    def declaration(self, type_id: int, name: str, depth: int) -> str:
        if depth > MAX_NESTING:
            raise BtfError(f"BTF type {type_id} nests more than {MAX_NESTING} types")
        inner = self._spend(name)
        qualifiers = ""
        after_pointer = False
        current = self._btf.type(type_id)
        for _ in range(MAX_CHAIN):
            kind = current.kind
            if kind in (Kind.CONST, Kind.VOLATILE, Kind.RESTRICT):
                qualifiers += kind.name.lower() + " "
                current = self._btf.type(current.type_id)
            elif kind == Kind.TYPE_TAG:
                current = self._btf.type(current.type_id)
            elif kind == Kind.PTR:
                inner = f"*{qualifiers}{inner}".rstrip() if not inner else f"*{qualifiers}{inner}"
                qualifiers, after_pointer = "", True
                current = self._btf.type(current.type_id)
            elif kind == Kind.ARRAY:
                inner = (f"({inner})" if after_pointer else inner) + f"[{current.nelems}]"
                after_pointer = False
                current = self._btf.type(current.element_id)
            elif kind == Kind.FUNC_PROTO:
                inner = (f"({inner})" if after_pointer else inner) + self._params(current, depth)
                after_pointer = False
                current = self._btf.type(current.type_id)
            else:
                base = self._base(current, depth)
                return self._spend(f"{qualifiers}{base}{' ' if inner else ''}{inner}")
            self._spend("")
        raise BtfError(f"BTF type {type_id} is a chain of more than {MAX_CHAIN} types")

    def _params(self, proto: BtfType, depth: int) -> str:
        params = [
            "..."
            if not p.type_id and not p.name
            else self.declaration(p.type_id, self._clip(p.name), depth + 1)
            for p in proto.params
        ]
        return f"({', '.join(params) or 'void'})"

    def _base(self, t: BtfType, depth: int) -> str:
        if t.kind == Kind.VOID:
            return "void"
        if t.kind in (Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FWD):
            if t._word(0):
                return f"{_keyword(t)} {self._name(t)}"
            return self.definition(t, depth + 1)
        if t.kind in (Kind.INT, Kind.FLOAT, Kind.TYPEDEF):
            return self._name(t) or f"__int{t.size * 8}"
        raise BtfError(f"BTF type {t.id} of kind {t.kind.name} can't be the type of a declaration")

    def definition(self, t: BtfType, depth: int = 0) -> str:
        if depth > MAX_NESTING:
            raise BtfError(f"BTF type {t.id} nests more than {MAX_NESTING} types")
        self._spend("")
        tabs = "\t" * depth
        name = self._name(t) if t.id and t._word(0) else ""
        if t.kind in (Kind.STRUCT, Kind.UNION):
            lines = []
            for m in t.members:
                # An unnamed member of a pointer type has no C form; it comes out as an unnamed declaration.
                text = self.declaration(m.type_id, self._clip(m.name), depth)
                width = f" : {m.bitfield_size}" if m.bitfield_size else ""
                lines.append(f"{tabs}\t{text}{width};\n")
            return f"{_keyword(t)}{' ' if name else ''}{name} {{\n{''.join(lines)}{tabs}}}"
        if t.kind in (Kind.ENUM, Kind.ENUM64):
            lines = [f"{tabs}\t{self._spend(self._clip(e.name))} = {e.value},\n" for e in t.enumerators]
            return f"enum{' ' if name else ''}{name} {{\n{''.join(lines)}{tabs}}}"
        if t.kind == Kind.TYPEDEF:
            return f"typedef {self.declaration(t.type_id, name, depth)}"
        if t.kind in (Kind.FUNC, Kind.VAR):
            prefix = {0: "static ", 2: "extern "}.get(t.linkage, "")
            return prefix + self.declaration(t.type_id, name, depth)
        if t.kind == Kind.DATASEC:
            lines = [
                f"\t/* {e.offset} */ {self.definition(self._btf.type(e.type_id), depth + 1)};\n"
                for e in t.entries
            ]
            return f"/* section {name}, {t.size} bytes */ {{\n{''.join(lines)}}}"
        if t.kind == Kind.DECL_TAG:
            return f'__attribute__((btf_decl_tag("{name}")))'
        return self.declaration(t.id, "", depth)

    @staticmethod
    def _clip(name: str) -> str:
        name = name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…"
        if name.isprintable():
            return name
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _keyword(t: BtfType) -> str:
    if t.kind == Kind.FWD:
        return "union" if t.kflag else "struct"
    if t.kind == Kind.STRUCT:
        return "struct"
    return "union" if t.kind == Kind.UNION else "enum"
