# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Reads BTF."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property

from pybpfasm.btf.ctext import CWriter
from pybpfasm.btf.format import (
    ELEMENT_WORDS,
    ENCODINGS,
    FIXED_WORDS,
    HEADER_LEN,
    INT_SIGNED,
    KIND_COUNT,
    LINKAGES,
    MAGIC,
    MAX_CHAIN,
    MAX_NAME,
    MODIFIERS,
    REFERENCES,
    SIZED,
    VERSION,
    BtfError,
    ByteOrder,
    DatasecEntry,
    Enumerator,
    Kind,
    Member,
    Param,
    struct_order,
)

__all__ = ["Btf", "BtfType"]


class BtfType:
    """A type of a `Btf`, decoded when it is looked at.

    Every property raises `BtfError` where the bytes behind it are malformed, and where the type's kind has no
    such property.
    """

    __slots__ = ("_at", "_btf", "id", "kflag", "kind", "vlen")

    def __init__(self, btf: Btf, type_id: int, at: int, info: int) -> None:
        self._btf = btf
        self._at = at
        self.id = type_id
        self.kind = Kind(info >> 24 & 0x1F)
        self.vlen = info & 0xFFFF
        self.kflag = bool(info >> 31)

    def __repr__(self) -> str:
        return (
            f"<BtfType {self.id} {self.kind.name} {self._btf._shown(self._word(0)) if self.id else 'void'}>"
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BtfType):
            return self._btf is other._btf and self.id == other.id
        return NotImplemented

    def __hash__(self) -> int:
        return hash((id(self._btf), self.id))

    def _word(self, index: int) -> int:
        return self._btf._words[self._at + index]

    def _need(self, kinds: frozenset[Kind], what: str) -> None:
        if self.kind not in kinds:
            raise BtfError(f"BTF type {self.id} is of kind {self.kind.name}, which has no {what}")

    @property
    def name(self) -> str:
        """The name; empty where there is none."""
        return self._btf.string(self._word(0)) if self.id else "void"

    @property
    def type_id(self) -> int:
        """What a pointer, modifier, function, variable or tag refers to; a prototype's return type."""
        self._need(REFERENCES, "type that it refers to")
        return self._btf._check_id(self._word(2), self.id)

    @property
    def size(self) -> int:
        """The size in bytes as the type states it; `Btf.size_of` works it out for other kinds."""
        self._need(SIZED, "size of its own")
        return self._word(2)

    @property
    def bits(self) -> int:
        """The width of an integer in bits."""
        self._need(frozenset({Kind.INT}), "width in bits")
        return self._word(3) & 0xFF

    @property
    def bit_offset(self) -> int:
        """The bit at which an integer starts within its bytes (old compilers' bit fields)."""
        self._need(frozenset({Kind.INT}), "bit offset")
        return self._word(3) >> 16 & 0xFF

    @property
    def encoding(self) -> int:
        """The encoding of an integer: 0, or 1 signed, 2 char, 4 bool."""
        self._need(frozenset({Kind.INT}), "encoding")
        return self._word(3) >> 24 & 0xF

    @property
    def signed(self) -> bool:
        """Whether an integer or enumeration is signed."""
        if self.kind == Kind.INT:
            return bool(self.encoding & INT_SIGNED)
        self._need(frozenset({Kind.ENUM, Kind.ENUM64}), "sign")
        return self.kflag

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of a structure or union."""
        self._need(frozenset({Kind.STRUCT, Kind.UNION}), "members")
        btf, words, at = self._btf, self._btf._words, self._at + 3
        out = []
        for index in range(at, at + 3 * self.vlen, 3):
            offset, width = words[index + 2], 0
            if self.kflag:
                offset, width = offset & 0xFFFFFF, offset >> 24
            out.append(
                Member(
                    btf._name_at(words[index], self.id),
                    btf._check_id(words[index + 1], self.id),
                    offset,
                    width,
                )
            )
        return tuple(out)

    @property
    def enumerators(self) -> tuple[Enumerator, ...]:
        """The names and values of an enumeration, in the order of its source."""
        self._need(frozenset({Kind.ENUM, Kind.ENUM64}), "enumerators")
        btf, words, at = self._btf, self._btf._words, self._at + 3
        step = ELEMENT_WORDS[self.kind]
        bits = 32 * (step - 1)
        out = []
        for index in range(at, at + step * self.vlen, step):
            value = words[index + 1]
            if step == 3:
                value |= words[index + 2] << 32
            if self.kflag and value >> bits - 1:
                value -= 1 << bits
            out.append(Enumerator(btf._name_at(words[index], self.id), value))
        return tuple(out)

    @property
    def params(self) -> tuple[Param, ...]:
        """The parameters of a function prototype."""
        self._need(frozenset({Kind.FUNC_PROTO}), "parameters")
        btf, words, at = self._btf, self._btf._words, self._at + 3
        return tuple(
            Param(btf._name_at(words[index], self.id), btf._check_id(words[index + 1], self.id))
            for index in range(at, at + 2 * self.vlen, 2)
        )

    @property
    def entries(self) -> tuple[DatasecEntry, ...]:
        """The variables of a data section."""
        self._need(frozenset({Kind.DATASEC}), "variables")
        btf, words, at = self._btf, self._btf._words, self._at + 3
        return tuple(
            DatasecEntry(btf._check_id(words[index], self.id), words[index + 1], words[index + 2])
            for index in range(at, at + 3 * self.vlen, 3)
        )

    @property
    def element_id(self) -> int:
        """The type of an array's elements."""
        self._need(frozenset({Kind.ARRAY}), "elements")
        return self._btf._check_id(self._word(3), self.id)

    @property
    def index_id(self) -> int:
        """The type of an array's index."""
        self._need(frozenset({Kind.ARRAY}), "index type")
        return self._btf._check_id(self._word(4), self.id)

    @property
    def nelems(self) -> int:
        """The number of an array's elements."""
        self._need(frozenset({Kind.ARRAY}), "elements")
        return self._word(5)

    @property
    def linkage(self) -> int:
        """The linkage of a function or variable, one of `Linkage` in valid BTF."""
        self._need(frozenset({Kind.FUNC, Kind.VAR}), "linkage")
        return self.vlen if self.kind == Kind.FUNC else self._word(3)

    @property
    def component(self) -> int:
        """The member or parameter that a declaration tag is on; -1 for the whole declaration."""
        self._need(frozenset({Kind.DECL_TAG}), "component")
        value = self._word(3)
        return value - (1 << 32) if value >> 31 else value


class _Types(Sequence[BtfType]):
    """The types of a `Btf` by id, made when they are asked for."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf

    def __len__(self) -> int:
        return self._btf.count

    def __getitem__(self, index: int | slice) -> BtfType:  # type: ignore[override]
        if isinstance(index, slice):
            raise TypeError("types are indexed by id")
        if not 0 <= index < self._btf.count:
            raise IndexError(index)
        return self._btf.type(index)


class Btf:
    """Reads BTF of either byte order.

    ``types`` is a sequence by id, in which id 0 is ``void``. For the BTF of a kernel module (split BTF) pass
    the kernel's own as *base*. Input is not trusted: whatever is malformed raises `BtfError`, here or when
    the type is looked at, and no input makes memory or time out of proportion to its size.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < HEADER_LEN:
            raise BtfError(f"BTF has a header of {HEADER_LEN} bytes, here are {len(data)}")
        if data[0] == MAGIC & 0xFF and data[1] == MAGIC >> 8:
            self.byteorder: ByteOrder = "little"
        elif data[0] == MAGIC >> 8 and data[1] == MAGIC & 0xFF:
            self.byteorder = "big"
        else:
            raise BtfError(f"not BTF: the first two bytes are {data[:2].hex(' ')}, not eb 9f in either order")
        end = struct_order(self.byteorder)
        version, _flags, header_len, type_off, type_len, str_off, str_len = struct.unpack_from(
            f"{end}BBIIIII", data, 2
        )
        if version != VERSION:
            raise BtfError(f"BTF version {version} at byte 2 is unknown, only {VERSION} is defined")
        if header_len < HEADER_LEN or header_len > len(data):
            raise BtfError(f"BTF header length {header_len} at byte 4 is outside {HEADER_LEN}..{len(data)}")
        type_start, str_start = header_len + type_off, header_len + str_off
        if type_off % 4 or type_len % 4:
            raise BtfError(f"BTF types at byte {type_start}, {type_len} bytes, are not aligned to 4 bytes")
        if type_start + type_len > len(data):
            raise BtfError(
                f"BTF types at byte {type_start}, {type_len} bytes, go past the end at {len(data)}"
            )
        if str_start + str_len > len(data):
            raise BtfError(
                f"BTF strings at byte {str_start}, {str_len} bytes, go past the end at {len(data)}"
            )
        if type_off < str_off + str_len and str_off < type_off + type_len:
            raise BtfError(f"BTF types at byte {type_start} and strings at byte {str_start} overlap")
        strings = bytes(data[str_start : str_start + str_len])
        if base is None and (not strings or strings[0] != 0):
            raise BtfError(f"BTF strings at byte {str_start} don't begin with a zero byte")
        if strings and strings[-1] != 0:
            raise BtfError(f"BTF strings don't end with a zero byte at {str_start + str_len - 1}")

        self.base = base
        self._strings = strings
        self._strings_start: int = base._strings_start + len(base._strings) if base else 0
        self._first_id: int = base.count if base else 1
        self._data_start = type_start
        words = array("I", bytes(data[type_start : type_start + type_len]))
        if sys.byteorder != self.byteorder:
            words.byteswap()
        self._words = words
        self._at = self._index(words)
        self.count: int = self._first_id + len(self._at)
        self.types: Sequence[BtfType] = _Types(self)

    @classmethod
    def parse(cls, data: bytes, base: Btf | None = None) -> Btf:
        """The BTF in *data*; raises `BtfError` that names the offending byte."""
        return cls(data, base)

    def __repr__(self) -> str:
        return f"<Btf {len(self._at)} types, {self.byteorder}-endian>"

    def _index(self, words: array[int]) -> array[int]:
        """Where each type starts, as an index into *words*."""
        fixed, per_element, kinds = FIXED_WORDS, ELEMENT_WORDS, KIND_COUNT
        starts = array("I")
        append = starts.append
        at, total = 0, len(words)
        try:
            while at < total:
                info = words[at + 1]
                kind = info >> 24 & 0x1F
                if not 0 < kind < kinds:
                    raise BtfError(
                        f"BTF type {self._first_id + len(starts)} at byte {self._data_start + at * 4} is of "
                        f"the unknown kind {kind}"
                    )
                append(at)
                at += 3 + fixed[kind] + per_element[kind] * (info & 0xFFFF)
        except IndexError:
            append(at)
            at = total + 1
        if at > total:
            start = self._data_start + starts[-1] * 4
            raise BtfError(
                f"BTF type {self._first_id + len(starts) - 1} at byte {start} goes past the end of the types "
                f"at byte {self._data_start + total * 4}"
            )
        return starts

    def type(self, type_id: int) -> BtfType:
        """The type with this id; raises `BtfError` where there is none."""
        if type_id == 0:
            return BtfType(self, 0, 0, 0)
        if 0 < type_id < self._first_id and self.base is not None:
            return self.base.type(type_id)
        if not 0 < type_id < self.count:
            raise BtfError(f"BTF type {type_id} doesn't exist, ids go from 0 to {self.count - 1}")
        at = self._at[type_id - self._first_id]
        return BtfType(self, type_id, at, self._words[at + 1])

    def _check_id(self, type_id: int, user: int) -> int:
        if type_id >= self.count:
            raise BtfError(f"BTF type {user} refers to type {type_id}, but ids go from 0 to {self.count - 1}")
        return type_id

    def string(self, offset: int) -> str:
        """The string at *offset* of the string section; bytes that are not UTF-8 come out as ``\\xNN``."""
        start = offset - self._strings_start
        if start < 0 and self.base is not None:
            return self.base.string(offset)
        if not 0 <= start < len(self._strings):
            size = self._strings_start + len(self._strings)
            raise BtfError(f"BTF string offset {offset} is outside the {size} bytes of strings")
        return self._strings[start : self._strings.index(0, start)].decode("utf-8", "backslashreplace")

    def _name_at(self, offset: int, user: int | str) -> str:
        """The name of an element of *user*, which is a type id or a text.

        Its length is bounded, because many elements may share one long string.
        """
        start = offset - self._strings_start
        if start < 0 and self.base is not None:
            return self.base._name_at(offset, user)
        end = self._strings.find(0, start, start + MAX_NAME + 1) if start < len(self._strings) else -1
        if end < 0:
            self._check_string(offset, user)
            what = f"BTF type {user}" if isinstance(user, int) else user
            raise BtfError(f"{what}: the name at string offset {offset} has more than {MAX_NAME} bytes")
        return self._strings[start:end].decode("utf-8", "backslashreplace")

    def _shown(self, offset: int) -> str:
        """The string at *offset* for people: control characters escaped, at most as long as a name."""
        start = offset - self._strings_start
        if start < 0 and self.base is not None:
            return self.base._shown(offset)
        if not 0 <= start < len(self._strings):
            return f"(bad string offset {offset})"
        end = self._strings.find(0, start, start + MAX_NAME + 1)
        more = "" if end >= 0 else "…"
        text = self._strings[start : end if end >= 0 else start + MAX_NAME].decode(
            "utf-8", "backslashreplace"
        )
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return text + more

    def all_by_name(self, name: str, kind: Kind | None = None) -> list[BtfType]:
        """Every type of this name, in the order of ids; those of the base are not among them."""
        if not name:
            return []
        first, others = self._names
        ids: list[int] = []
        pattern = name.encode("utf-8", "surrogateescape") + b"\0"
        for strings, start in self._string_sections():
            # A name may be the tail of a longer string, so every place where it ends a string counts.
            found = strings.find(pattern)
            while found >= 0:
                if start + found in first:
                    ids += (first[start + found], *others.get(start + found, ()))
                found = strings.find(pattern, found + 1)
        types = [self.type(type_id) for type_id in sorted(ids)]
        return [t for t in types if kind is None or t.kind == kind]

    @cached_property
    def _names(self) -> tuple[dict[int, int], dict[int, list[int]]]:
        """The first type that has a string as its name, and the others, by the string's offset.

        A kernel has 70 000 names and nearly each once: a list for every one of them would take longer than
        all the rest.
        """
        first: dict[int, int] = {}
        others: dict[int, list[int]] = {}
        words = self._words
        for type_id, at in enumerate(self._at, self._first_id):
            name = words[at]
            if not name:
                continue
            if name in first:
                others.setdefault(name, []).append(type_id)
            else:
                first[name] = type_id
        return first, others

    def _string_sections(self) -> Iterator[tuple[bytes, int]]:
        btf: Btf | None = self
        while btf is not None:
            yield btf._strings, btf._strings_start
            btf = btf.base

    def by_name(self, name: str, kind: Kind | None = None) -> BtfType | None:
        """The first type of this name (and kind), or ``None``; the base is searched last."""
        found = self.all_by_name(name, kind)
        if found:
            return found[0]
        return self.base.by_name(name, kind) if self.base is not None else None

    def resolve(self, type_id: int) -> BtfType:
        """The type behind typedefs, ``const``, ``volatile``, ``restrict`` and type tags."""
        current = self.type(type_id)
        for _ in range(MAX_CHAIN):
            if current.kind not in MODIFIERS:
                return current
            current = self.type(current.type_id)
        raise BtfError(f"BTF type {type_id} is a chain of more than {MAX_CHAIN} typedefs or modifiers")

    def size_of(self, type_id: int, pointer_size: int = 8) -> int:
        """The size of a type in bytes. BTF does not say how long a pointer is: 8 bytes unless given."""
        count = 1
        current_id = type_id
        for _ in range(MAX_CHAIN):
            current = self.resolve(current_id)
            if current.kind == Kind.ARRAY:
                count *= current.nelems
                current_id = current.element_id
            elif current.kind == Kind.VAR:
                current_id = current.type_id
            elif current.kind == Kind.PTR:
                return count * pointer_size
            else:
                return count * current.size
        raise BtfError(f"BTF type {type_id} is an array of more than {MAX_CHAIN} dimensions")

    def offset_of(self, name: str, *path: str) -> int:
        """Where structure *name* has a field, in bytes: the member *path[0]*, of that the member *path[1]*, …

        Members of anonymous structures and unions are found as C finds them. Raises `BtfError` where there is
        no such field, or it does not begin at a byte.
        """
        bits = self.bit_offset_of(name, *path)
        if bits % 8:
            raise BtfError(f"{'.'.join((name, *path))} begins within a byte")
        return bits // 8

    def bit_offset_of(self, name: str, *path: str) -> int:
        """The same in bits, of a bit field say: bits are counted as `Member.bit_offset` counts them.

        Raises `BtfError` where there is no such field.
        """
        found = self.by_name(name, Kind.STRUCT)
        bits = 0
        for depth, step in enumerate(path):
            place = None if found is None else self._member(found, step)
            if place is None:
                raise BtfError(f"the types here have no field {'.'.join((name, *path[: depth + 1]))}")
            bits += place[0]
            found = self.resolve(place[1])
        return bits

    def _member(self, struct: BtfType, name: str, depth: int = 0) -> tuple[int, int] | None:
        """The offset in bits and the type of a member, of anonymous members' members too."""
        if struct.kind not in (Kind.STRUCT, Kind.UNION) or depth > MAX_CHAIN:
            return None
        for member in struct.members:
            if member.name == name:
                return member.bit_offset, member.type_id
            if not member.name:
                inner = self._member(self.resolve(member.type_id), name, depth + 1)
                if inner is not None:
                    return member.bit_offset + inner[0], inner[1]
        return None

    def validate(self) -> None:
        """Decodes everything once. Raises `BtfError` at the first malformed type, name or reference."""
        for type_id in range(self._first_id, self.count):
            current = self.type(type_id)
            self._check_string(self._words[current._at], type_id)
            kind = current.kind
            if kind in REFERENCES:
                _ = current.type_id
            if kind in (Kind.STRUCT, Kind.UNION):
                self._check_elements(current, 3)
            elif kind in (Kind.ENUM, Kind.ENUM64):
                self._check_elements(current, ELEMENT_WORDS[kind], refs=False)
            elif kind == Kind.FUNC_PROTO:
                self._check_elements(current, 2)
            elif kind == Kind.DATASEC:
                _ = current.entries
            elif kind == Kind.ARRAY:
                _ = current.element_id, current.index_id
            if kind in MODIFIERS:
                self.resolve(type_id)
            elif kind == Kind.ARRAY:
                element = self.resolve(current.element_id)
                if element.kind in (
                    Kind.VOID,
                    Kind.FUNC_PROTO,
                    Kind.FUNC,
                    Kind.VAR,
                    Kind.DATASEC,
                    Kind.DECL_TAG,
                ):
                    raise BtfError(f"BTF type {type_id} is an array of {element.kind.name}")

    def _check_elements(self, current: BtfType, step: int, *, refs: bool = True) -> None:
        at = current._at + 3
        for index in range(at, at + step * current.vlen, step):
            self._check_string(self._words[index], current.id)
            if refs:
                self._check_id(self._words[index + 1], current.id)

    def _check_string(self, offset: int, user: int | str) -> None:
        end = self._strings_start + len(self._strings)
        if offset >= end:
            what = f"BTF type {user}" if isinstance(user, int) else user
            raise BtfError(f"{what} has a name at string offset {offset}, but the strings end at {end}")

    def dump_lines(self) -> Iterator[str]:
        """The types as text, a line for each type and, indented, for each of its elements.

        The form is that of ``bpftool btf dump … format raw``. Malformed parts are shown as far as they can be
        read.
        """
        for type_id in range(self._first_id, self.count):
            yield from self._dump_type(self.type(type_id))

    def dump(self) -> str:
        """The text of `dump_lines`, each line ended."""
        return "".join(f"{line}\n" for line in self.dump_lines())

    def _dump_type(self, t: BtfType) -> Iterator[str]:
        words, at, kind = self._words, t._at, t.kind
        third = words[at + 2]
        head = f"[{t.id}] {kind.name} '{self._shown(words[at]) if words[at] else '(anon)'}'"
        rest = range(at + 3, at + 3 + ELEMENT_WORDS[kind] * t.vlen, ELEMENT_WORDS[kind] or 1)
        if kind == Kind.INT:
            encoding = ENCODINGS.get(t.encoding, f"0x{t.encoding:x}")
            yield f"{head} size={third} bits_offset={t.bit_offset} nr_bits={t.bits} encoding={encoding}"
        elif kind == Kind.ARRAY:
            yield f"{head} type_id={words[at + 3]} index_type_id={words[at + 4]} nr_elems={words[at + 5]}"
        elif kind in (Kind.STRUCT, Kind.UNION):
            yield f"{head} size={third} vlen={t.vlen}"
            for index in rest:
                offset = words[index + 2]
                width = ""
                if t.kflag:
                    width = f" bitfield_size={offset >> 24}" if offset >> 24 else ""
                    offset &= 0xFFFFFF
                name = self._shown(words[index]) if words[index] else "(anon)"
                yield f"\t'{name}' type_id={words[index + 1]} bits_offset={offset}{width}"
        elif kind in (Kind.ENUM, Kind.ENUM64):
            yield f"{head} encoding={'SIGNED' if t.kflag else 'UNSIGNED'} size={third} vlen={t.vlen}"
            for index in rest:
                value, bits = words[index + 1], 32
                if kind == Kind.ENUM64:
                    value, bits = value | words[index + 2] << 32, 64
                if t.kflag and value >> bits - 1:
                    value -= 1 << bits
                suffix = ("LL" if t.kflag else "ULL") if bits == 64 else ""
                yield f"\t'{self._shown(words[index])}' val={value}{suffix}"
        elif kind == Kind.FWD:
            yield f"{head} fwd_kind={'union' if t.kflag else 'struct'}"
        elif kind == Kind.FUNC:
            yield f"{head} type_id={third} linkage={LINKAGES.get(t.vlen, '(unknown)')}"
        elif kind == Kind.FUNC_PROTO:
            yield f"{head} ret_type_id={third} vlen={t.vlen}"
            for index in rest:
                name = self._shown(words[index]) if words[index] else "(anon)"
                yield f"\t'{name}' type_id={words[index + 1]}"
        elif kind == Kind.VAR:
            yield f"{head} type_id={third}, linkage={LINKAGES.get(words[at + 3], '(unknown)')}"
        elif kind == Kind.DATASEC:
            yield f"{head} size={third} vlen={t.vlen}"
            for index in rest:
                var = self.type(words[index]) if words[index] < self.count else None
                note = f" (VAR '{self._shown(var._word(0))}')" if var and var.kind == Kind.VAR else ""
                yield f"\ttype_id={words[index]} offset={words[index + 1]} size={words[index + 2]}{note}"
        elif kind == Kind.FLOAT:
            yield f"{head} size={third}"
        elif kind == Kind.DECL_TAG:
            yield f"{head} type_id={third} component_idx={t.component}"
        else:
            yield f"{head} type_id={third}"

    def declaration(self, type_id: int, name: str = "") -> str:
        """C that declares *name* with this type: ``"const char *names[4]"``, ``"int (*fn)(void *)"``."""
        return CWriter(self).declaration(type_id, name, 0)

    def definition(self, type_id: int) -> str:
        """C for the type itself with its members, for people: ``"struct pair {\\n\\t__u32 a;\\n};"``."""
        return CWriter(self).definition(self.type(type_id)) + ";"
