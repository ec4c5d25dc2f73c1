# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""BTF of several sources in one object."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping

from pybpfasm.btf import Btf, BtfBuilder, BtfType, Kind
from pybpfasm.btf.format import ELEMENT_WORDS, FIXED_WORDS, REFERENCES

# For each kind with elements: which of an element's words is a name, and which a type.
_NAMED_ELEMENTS = frozenset({Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FUNC_PROTO})
_TYPED_ELEMENTS = {Kind.STRUCT: 1, Kind.UNION: 1, Kind.FUNC_PROTO: 1, Kind.DATASEC: 0}


def words_of(t: BtfType) -> list[int]:
    """The words of a type after the three that each has."""
    count = FIXED_WORDS[t.kind] + ELEMENT_WORDS[t.kind] * t.vlen
    return [t._word(3 + index) for index in range(count)]


def references(t: BtfType) -> list[int]:
    """The ids that a type refers to, in the order in which its words hold them."""
    if t.kind in REFERENCES:
        found = [t._word(2)]
    elif t.kind == Kind.ARRAY:
        return [t.element_id, t.index_id]
    else:
        found = []
    at = _TYPED_ELEMENTS.get(t.kind)
    if at is not None:
        step = ELEMENT_WORDS[t.kind]
        found += [t._word(3 + index * step + at) for index in range(t.vlen)]
    return found


class TypeTable(BtfBuilder):
    """A `BtfBuilder` that takes over types of other BTF, each only once."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._blocks: dict[tuple[object, ...], int] = {}

    def take(
        self,
        btf: Btf,
        roots: Iterable[int],
        sections: Mapping[int, tuple[int, list[tuple[int, int, int]]]] | None = None,
    ) -> dict[int, int]:
        """Add the types *roots* and all that they refer to; returns the new id of each by its old one.

        *sections* gives size and entries (var, offset, size) of data sections, for which an object file has
        them elsewhere. Raises `BtfError` for malformed BTF.
        """
        needs: dict[int, list[int]] = {}
        waiting = sorted(set(roots), reverse=True)
        while waiting:
            type_id = waiting.pop()
            if type_id in needs or type_id == 0:
                continue
            needs[type_id] = [btf._check_id(ref, type_id) for ref in references(btf.type(type_id))]
            waiting += needs[type_id]
        users: dict[int, list[int]] = {}
        open_refs: dict[int, int] = {}
        for type_id, refs in needs.items():
            distinct = set(refs) - {0}
            open_refs[type_id] = len(distinct)
            for ref in distinct:
                users.setdefault(ref, []).append(type_id)
        # Types whose references are all there come first and may be ones that are there already; of what is
        # left, types that refer to one another in a circle are added as one block.
        ids = {0: 0}
        ready = sorted((t for t, count in open_refs.items() if not count), reverse=True)
        while ready:
            type_id = ready.pop()
            ids[type_id] = self._take(btf, type_id, ids, sections or {})
            for user in sorted(users.get(type_id, ()), reverse=True):
                open_refs[user] -= 1
                if not open_refs[user]:
                    ready.append(user)
        for circle in _circles({t: needs[t] for t in sorted(needs) if t not in ids}):
            self._take_circle(btf, circle, ids, sections or {})
        del ids[0]
        return ids

    def add_data_section(self, name: str, size: int, entries: Iterable[tuple[int, int, int]]) -> int:
        """A section with variables (var, offset, size), those that another object defines among them."""
        words = tuple(word for entry in entries for word in entry)
        return self._add(Kind.DATASEC, name, size, words, vlen=len(words) // 3, refs=words[::3])

    def add_extern_section(self, name: str, ids: Iterable[int]) -> int:
        """The section that lists what another has to define: FUNC and VAR of these *ids*, each once."""
        btf = Btf.parse(self.to_bytes())
        words: list[int] = []
        for type_id in ids:
            t = btf.type(type_id)
            size = 0
            if t.kind == Kind.VAR:  # clang says 1 byte of a void
                size = btf.size_of(t.type_id, 8) if btf.resolve(t.type_id).kind != Kind.VOID else 1
            words += (type_id, 0, size)
        return self._add(Kind.DATASEC, name, 0, tuple(words), vlen=len(words) // 3, refs=tuple(words[::3]))

    def _take_circle(
        self,
        btf: Btf,
        circle: list[int],
        ids: dict[int, int],
        sections: Mapping[int, tuple[int, list[tuple[int, int, int]]]],
    ) -> None:
        relative = {**ids, **{type_id: -1 - index for index, type_id in enumerate(circle)}}
        key = tuple(self._record(btf, type_id, relative, sections) for type_id in circle)
        first = self._blocks.setdefault(key, self.next_id)
        for index, type_id in enumerate(circle):
            ids[type_id] = first + index
        if first == self.next_id:
            for type_id in circle:
                record = self._record(btf, type_id, ids, sections)
                self._ids.setdefault(record, self.next_id)
                self._records.append(record)

    def _take(
        self,
        btf: Btf,
        type_id: int,
        ids: Mapping[int, int],
        sections: Mapping[int, tuple[int, list[tuple[int, int, int]]]],
    ) -> int:
        record = self._record(btf, type_id, ids, sections)
        found = self._ids.get(record)
        if found is None:
            found = self._ids[record] = self.next_id
            self._records.append(record)
        return found

    def _record(
        self,
        btf: Btf,
        type_id: int,
        ids: Mapping[int, int],
        sections: Mapping[int, tuple[int, list[tuple[int, int, int]]]],
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        t = btf.type(type_id)
        info = t.vlen | t.kind << 24 | t.kflag << 31
        third = t._word(2)
        refs: list[int] = []
        if t.kind in REFERENCES:
            third = ids[third]
            refs.append(third)
        words = words_of(t)
        if t.kind == Kind.ARRAY:
            words[0], words[1] = ids[words[0]], ids[words[1]]
            refs += words[:2]
        elif t.kind == Kind.DATASEC and type_id in sections:
            third, entries = sections[type_id]
            words = [word for var, offset, size in entries for word in (ids[var], offset, size)]
            refs += [ids[var] for var, _, _ in entries]
            info = len(entries) | t.kind << 24
        else:
            step = ELEMENT_WORDS[t.kind]
            if t.kind in _NAMED_ELEMENTS:
                for at in range(0, len(words), step):
                    words[at] = self.string(btf._name_at(words[at], type_id))
            typed = _TYPED_ELEMENTS.get(t.kind)
            if typed is not None:
                for at in range(typed, len(words), step):
                    words[at] = ids[words[at]]
                    refs.append(words[at])
        name = self.string(btf._name_at(t._word(0), type_id))
        return (name, info, third, *words), tuple(refs)


def _circles(needs: Mapping[int, list[int]]) -> list[list[int]]:
    """The types in groups that refer to one another, each behind those that it refers to (Tarjan's
    algorithm)."""
    order: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    on_stack: set[int] = set()
    found: list[list[int]] = []
    for root in needs:
        if root in order:
            continue
        path = [(root, iter(needs[root]))]
        while path:
            type_id, following = path[-1]
            if type_id not in order:
                order[type_id] = lowest[type_id] = len(order)
                stack.append(type_id)
                on_stack.add(type_id)
            for ref in following:
                if ref in needs and ref not in order:
                    path.append((ref, iter(needs[ref])))
                    break
                if ref in on_stack:
                    lowest[type_id] = min(lowest[type_id], order[ref])
            else:
                path.pop()
                if path:
                    lowest[path[-1][0]] = min(lowest[path[-1][0]], lowest[type_id])
                if lowest[type_id] == order[type_id]:
                    at = bisect.bisect_left(stack, order[type_id], key=order.__getitem__)
                    found.append(sorted(stack[at:]))
                    on_stack.difference_update(stack[at:])
                    del stack[at:]
    return found
