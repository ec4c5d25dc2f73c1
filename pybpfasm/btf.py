# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""BPF Type Format: a writer, a reader, and the records that tie instructions to functions and source lines.

`BtfBuilder` makes the bytes for ``BPF_BTF_LOAD``; `Btf` reads such bytes, from any source and in either byte
order, and decodes a type when it is asked for, so that a kernel's ``vmlinux`` BTF of 5 MB is ready in some 50
ms. `FuncInfo` and `LineInfo` are the records of ``BPF_PROG_LOAD``; `BtfExt` is the ELF section ``.BTF.ext``
that holds them in object files.

The format is described in the kernel's Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

from pybpfasm.errors import PybpfasmError

__all__ = [
    "Btf",
    "BtfBuilder",
    "BtfError",
    "BtfExt",
    "BtfType",
    "CoreRelo",
    "DatasecEntry",
    "Enumerator",
    "FuncInfo",
    "Kind",
    "LineInfo",
    "Linkage",
    "Member",
    "Param",
    "pack_func_info",
    "pack_line_info",
    "unpack_func_info",
    "unpack_line_info",
]

ByteOrder = Literal["little", "big"]

_MAGIC = 0xEB9F
_VERSION = 1
_HEADER_LEN = 24
_MAX_TYPE = 0xFFFFF  # BTF_MAX_TYPE
_MAX_NAME_OFFSET = 0xFFFFFF  # BTF_MAX_NAME_OFFSET
_MAX_VLEN = 0xFFFF  # BTF_MAX_VLEN
_MAX_NAME = 511  # KSYM_NAME_LEN of Linux 6.1 and later, without the terminating zero
_MAX_CHAIN = 64  # pointers, arrays and modifiers in one type; the kernel follows 32
_MAX_NESTING = 32  # anonymous structures within each other
_MAX_RENDERED = 1 << 20  # characters of C for one type


class BtfError(PybpfasmError):
    """BTF that is malformed, or a type that can't be expressed in it; the message says where."""


class Kind(IntEnum):
    """What a type is (``BTF_KIND_*``)."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


class Linkage(IntEnum):
    """Linkage of a function or a variable (``BTF_FUNC_*``, ``BTF_VAR_*``)."""

    STATIC = 0
    GLOBAL = 1
    EXTERN = 2


class Member(NamedTuple):
    """A member of a structure or union. ``bitfield_size`` is its width in bits, 0 for no bit field."""

    name: str
    type_id: int
    bit_offset: int
    bitfield_size: int


class Enumerator(NamedTuple):
    """A name and its value in an enumeration."""

    name: str
    value: int


class Param(NamedTuple):
    """A parameter of a function prototype; a last one without name and type stands for ``...``."""

    name: str
    type_id: int


class DatasecEntry(NamedTuple):
    """A variable in a section: the type id of its VAR, and its offset and size in bytes."""

    type_id: int
    offset: int
    size: int


_INT_SIGNED, _INT_CHAR, _INT_BOOL = 1, 2, 4
_ENCODINGS = {0: "(none)", _INT_SIGNED: "SIGNED", _INT_CHAR: "CHAR", _INT_BOOL: "BOOL"}
_LINKAGES = {0: "static", 1: "global", 2: "extern"}

# Words (4 bytes) after the 3 that every type has: a fixed number, and a number per element.
_FIXED_WORDS = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_ELEMENT_WORDS = {
    Kind.STRUCT: 3,
    Kind.UNION: 3,
    Kind.ENUM: 2,
    Kind.FUNC_PROTO: 2,
    Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}
_KIND_COUNT = len(Kind)
_FIXED = tuple(_FIXED_WORDS.get(kind, 0) for kind in Kind)
_PER_ELEMENT = tuple(_ELEMENT_WORDS.get(kind, 0) for kind in Kind)

_MODIFIERS = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
_REFERENCES = _MODIFIERS | {Kind.PTR, Kind.FUNC, Kind.FUNC_PROTO, Kind.VAR, Kind.DECL_TAG}
_SIZED = frozenset({Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.DATASEC, Kind.FLOAT, Kind.ENUM64})

# What btf_name_valid_identifier() in kernel/bpf/btf.c accepts.
_IDENTIFIER = re.compile(r"[A-Za-z_.][A-Za-z0-9_.]*")


class BtfBuilder:
    """Writes BTF. Adding a type that is there already returns its id; ids count from 1, and 0 is ``void``.

    The same calls give the same bytes. Every ``add_*`` raises `BtfError` for what the kernel would refuse: a
    name that is no C identifier, a value out of range, too many members. That type ids exist is checked by
    `to_bytes`, so that a type may point at one that is added later (`next_id`).
    """

    def __init__(self, byteorder: ByteOrder = "little") -> None:
        self.byteorder: ByteOrder = byteorder
        self._end = "<" if byteorder == "little" else ">"
        self._strings: dict[str, int] = {"": 0}
        self._string_bytes = bytearray(b"\0")
        self._ids: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._records: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __len__(self) -> int:
        """The number of types, without ``void``."""
        return len(self._records)

    @property
    def next_id(self) -> int:
        """The id that the next new type gets."""
        return len(self._records) + 1

    def string(self, text: str) -> int:
        """The offset of *text* in the string section, added where it is new."""
        offset = self._strings.get(text)
        if offset is None:
            encoded = text.encode("utf-8", "surrogateescape")
            if b"\0" in encoded:
                raise BtfError(f"a BTF string can't hold a zero byte: {text!r}")
            offset = len(self._string_bytes)
            if offset > _MAX_NAME_OFFSET:
                raise BtfError(f"the BTF strings take more than {_MAX_NAME_OFFSET} bytes")
            self._strings[text] = offset
            self._string_bytes += encoded + b"\0"
        return offset

    def add_int(
        self,
        name: str,
        size: int,
        signed: bool = False,
        bool_: bool = False,
        char: bool = False,
        bits: int | None = None,
    ) -> int:
        """An integer of *size* bytes (1, 2, 4, 8 or 16), of which *bits* count (default: all)."""
        if size not in (1, 2, 4, 8, 16):
            raise BtfError(f"int {name!r}: a BTF integer has 1, 2, 4, 8 or 16 bytes, not {size}")
        if signed + bool_ + char > 1:
            raise BtfError(f"int {name!r}: at most one of signed, bool_ and char can be set")
        width = size * 8 if bits is None else bits
        if not 0 < width <= min(size * 8, 128):
            raise BtfError(f"int {name!r}: {width} bits don't fit {size} bytes")
        if not name:
            raise BtfError("an integer type needs a name")
        encoding = _INT_SIGNED * signed | _INT_CHAR * char | _INT_BOOL * bool_
        return self._add(Kind.INT, name, size, (encoding << 24 | width,))

    def add_ptr(self, type_id: int) -> int:
        """A pointer to *type_id*; 0 makes it ``void *``."""
        return self._add(Kind.PTR, "", type_id, refs=(type_id,))

    def add_array(self, elem_id: int, nelems: int, index_id: int | None = None) -> int:
        """An array of *nelems* elements. The index type is an ``unsigned int`` unless given."""
        if not 0 <= nelems <= 0xFFFFFFFF:
            raise BtfError(f"an array can't have {nelems} elements")
        if index_id is None:
            index_id = self.add_int("unsigned int", 4)
        return self._add(Kind.ARRAY, "", 0, (elem_id, index_id, nelems), refs=(elem_id, index_id))

    def add_struct(
        self, name: str, size: int, members: Sequence[tuple[str, int, int] | tuple[str, int, int, int]]
    ) -> int:
        """A structure of *size* bytes; *name* may be empty.

        A member is ``(name, type_id, bit_offset)``, or with the width in bits as a fourth value where it is a
        bit field.
        """
        return self._add_composite(Kind.STRUCT, name, size, members)

    def add_union(
        self, name: str, size: int, members: Sequence[tuple[str, int, int] | tuple[str, int, int, int]]
    ) -> int:
        """A union, with members as in `add_struct`."""
        return self._add_composite(Kind.UNION, name, size, members)

    def _add_composite(
        self,
        kind: Kind,
        name: str,
        size: int,
        members: Sequence[tuple[str, int, int] | tuple[str, int, int, int]],
    ) -> int:
        what = f"{kind.name.lower()} {name!r}"
        self._check_name(what, name, optional=True)
        if not 0 <= size <= 0xFFFFFFFF:
            raise BtfError(f"{what}: a size of {size} bytes is out of range")
        full = [(*m, 0) if len(m) == 3 else m for m in members]
        bitfields = any(width for *_, width in full)
        words: list[int] = []
        for member, type_id, offset, width in full:
            self._check_name(f"{what}: member", member, optional=True)
            if not 0 <= offset <= size * 8 or offset > (0xFFFFFF if bitfields else 0xFFFFFFFF):
                raise BtfError(f"{what}: member {member!r} at bit {offset} is outside its {size} bytes")
            if not 0 <= width <= 255 or offset + width > size * 8:
                raise BtfError(f"{what}: member {member!r} can't have {width} bits at bit {offset}")
            if not bitfields and offset % 8:
                raise BtfError(
                    f"{what}: member {member!r} at bit {offset} is no bit field, so it starts at a byte"
                )
            words += (self.string(member), type_id, width << 24 | offset)
        refs = tuple(type_id for _, type_id, *_ in full)
        return self._add(kind, name, size, tuple(words), vlen=len(full), kflag=bitfields, refs=refs)

    def add_enum(self, name: str, values: Mapping[str, int], size: int = 4, signed: bool = False) -> int:
        """An enumeration of *size* bytes with values of 32 bits; *name* may be empty."""
        return self._add_enum(Kind.ENUM, name, values, size, signed)

    def add_enum64(self, name: str, values: Mapping[str, int], size: int = 8, signed: bool = False) -> int:
        """An enumeration with values of 64 bits (Linux 6.0 and later); *name* may be empty."""
        return self._add_enum(Kind.ENUM64, name, values, size, signed)

    def _add_enum(self, kind: Kind, name: str, values: Mapping[str, int], size: int, signed: bool) -> int:
        what = f"enum {name!r}"
        self._check_name(what, name, optional=True)
        if size not in (1, 2, 4, 8):
            raise BtfError(f"{what}: an enumeration has 1, 2, 4 or 8 bytes, not {size}")
        bits = 32 if kind == Kind.ENUM else 64
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        words: list[int] = []
        for enumerator, value in values.items():
            self._check_name(f"{what}: enumerator", enumerator)
            if not low <= value <= high:
                hint = "" if signed or value >= 0 else " (pass signed=True for negative values)"
                raise BtfError(f"{what}: {enumerator} = {value} is outside {low}..{high}{hint}")
            words += (self.string(enumerator), value & 0xFFFFFFFF)
            if kind == Kind.ENUM64:
                words.append(value >> 32 & 0xFFFFFFFF)
        return self._add(kind, name, size, tuple(words), vlen=len(values), kflag=signed)

    def add_fwd(self, name: str, union: bool = False) -> int:
        """A structure or union that is named but not described."""
        self._check_name("forward declaration", name)
        return self._add(Kind.FWD, name, 0, kflag=union)

    def add_typedef(self, name: str, type_id: int) -> int:
        """A typedef."""
        self._check_name("typedef", name)
        return self._add(Kind.TYPEDEF, name, type_id, refs=(type_id,))

    def add_const(self, type_id: int) -> int:
        """``const`` of a type."""
        return self._add(Kind.CONST, "", type_id, refs=(type_id,))

    def add_volatile(self, type_id: int) -> int:
        """``volatile`` of a type."""
        return self._add(Kind.VOLATILE, "", type_id, refs=(type_id,))

    def add_restrict(self, type_id: int) -> int:
        """``restrict`` of a pointer."""
        return self._add(Kind.RESTRICT, "", type_id, refs=(type_id,))

    def add_func_proto(self, ret_id: int, params: Sequence[tuple[str, int]] = ()) -> int:
        """A function's type. A last parameter ``("", 0)`` stands for ``...``."""
        words: list[int] = []
        for index, (name, type_id) in enumerate(params):
            self._check_name("function prototype: parameter", name, optional=True)
            if type_id == 0 and (name or index != len(params) - 1):
                raise BtfError(f"function prototype: parameter {name!r} can't be void")
            words += (self.string(name), type_id)
        refs = (ret_id, *(type_id for _, type_id in params))
        return self._add(Kind.FUNC_PROTO, "", ret_id, tuple(words), vlen=len(params), refs=refs)

    def add_func(self, name: str, proto_id: int, linkage: int = Linkage.GLOBAL) -> int:
        """A function of the type *proto_id*, as `FuncInfo` refers to."""
        self._check_name("function", name)
        return self._add(Kind.FUNC, name, proto_id, vlen=_linkage(name, linkage), refs=(proto_id,))

    def add_var(self, name: str, type_id: int, linkage: int = Linkage.GLOBAL) -> int:
        """A variable."""
        self._check_name("variable", name)
        return self._add(Kind.VAR, name, type_id, (_linkage(name, linkage),), refs=(type_id,))

    def add_datasec(self, name: str, size: int, entries: Sequence[tuple[int, int, int]]) -> int:
        """A section with variables, each ``(var_id, offset, size)`` in bytes, by ascending offset."""
        if not name:
            raise BtfError("a data section needs a name")
        words: list[int] = []
        end = 0
        for var_id, offset, length in entries:
            if offset < end or length <= 0 or offset + length > size:
                raise BtfError(
                    f"section {name!r}: {length} bytes at {offset} overlap those before {end} or pass {size}"
                )
            end = offset + length
            words += (var_id, offset, length)
        refs = tuple(var_id for var_id, *_ in entries)
        return self._add(Kind.DATASEC, name, size, tuple(words), vlen=len(entries), refs=refs)

    def add_float(self, name: str, size: int) -> int:
        """A floating-point type of *size* bytes (2, 4, 8, 12 or 16)."""
        if size not in (2, 4, 8, 12, 16):
            raise BtfError(f"float {name!r}: a BTF float has 2, 4, 8, 12 or 16 bytes, not {size}")
        return self._add(Kind.FLOAT, name, size)

    def add_decl_tag(self, value: str, type_id: int, component: int = -1) -> int:
        """A tag on a declaration, or on its member or parameter number *component*."""
        if not value:
            raise BtfError("a declaration tag needs a value")
        if not -1 <= component <= _MAX_VLEN:
            raise BtfError(f"declaration tag {value!r}: component {component} is out of range")
        return self._add(Kind.DECL_TAG, value, type_id, (component & 0xFFFFFFFF,), refs=(type_id,))

    def add_type_tag(self, value: str, type_id: int) -> int:
        """A tag on a type, as ``__attribute__((btf_type_tag(value)))`` makes."""
        if not value:
            raise BtfError("a type tag needs a value")
        return self._add(Kind.TYPE_TAG, value, type_id, refs=(type_id,))

    def to_bytes(self) -> bytes:
        """Header, types and strings. Raises `BtfError` where a type refers to an id that was never added."""
        count = len(self._records)
        types = bytearray()
        for type_id, (words, refs) in enumerate(self._records, 1):
            for ref in refs:
                if not 0 <= ref <= count:
                    raise BtfError(f"BTF type {type_id} refers to type {ref}, but there are {count} types")
            types += struct.pack(f"{self._end}{len(words)}I", *words)
        strings = self._string_bytes
        header = struct.pack(
            f"{self._end}HBBIIIII",
            _MAGIC,
            _VERSION,
            0,
            _HEADER_LEN,
            0,
            len(types),
            len(types),
            len(strings),
        )
        return header + bytes(types) + bytes(strings)

    def _add(
        self,
        kind: Kind,
        name: str,
        size_or_type: int,
        words: tuple[int, ...] = (),
        *,
        vlen: int = 0,
        kflag: bool = False,
        refs: tuple[int, ...] = (),
    ) -> int:
        if vlen > _MAX_VLEN:
            raise BtfError(f"{kind.name} {name!r} has {vlen} elements; BTF allows {_MAX_VLEN}")
        if any(ref < 0 for ref in refs):
            raise BtfError(f"{kind.name} {name!r} refers to a negative type id")
        info = vlen | kind << 24 | kflag << 31
        record = ((self.string(name), info, size_or_type, *words), refs)
        found = self._ids.get(record)
        if found is None:
            found = self.next_id
            if found > _MAX_TYPE:
                raise BtfError(f"BTF holds at most {_MAX_TYPE} types")
            self._records.append(record)
            self._ids[record] = found
        return found

    @staticmethod
    def _check_name(what: str, name: str, *, optional: bool = False) -> None:
        if not name:
            if optional:
                return
            raise BtfError(f"{what} needs a name")
        if not _IDENTIFIER.fullmatch(name):
            raise BtfError(
                f"{what}: {name!r} is no C identifier, the kernel takes letters, digits, '_' and '.'"
            )
        if len(name) > _MAX_NAME:
            raise BtfError(
                f"{what}: a name of {len(name)} characters is too long, the kernel takes {_MAX_NAME}"
            )


def _linkage(name: str, linkage: int) -> int:
    if linkage not in _LINKAGES:
        raise BtfError(f"{name!r}: linkage {linkage} is none of 0 (static), 1 (global), 2 (extern)")
    return int(linkage)


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
        self._need(_REFERENCES, "type that it refers to")
        return self._btf._check_id(self._word(2), self.id)

    @property
    def size(self) -> int:
        """The size in bytes as the type states it; `Btf.size_of` works it out for other kinds."""
        self._need(_SIZED, "size of its own")
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
            return bool(self.encoding & _INT_SIGNED)
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
        step = _PER_ELEMENT[self.kind]
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
        if len(data) < _HEADER_LEN:
            raise BtfError(f"BTF has a header of {_HEADER_LEN} bytes, here are {len(data)}")
        if data[0] == _MAGIC & 0xFF and data[1] == _MAGIC >> 8:
            self.byteorder: ByteOrder = "little"
        elif data[0] == _MAGIC >> 8 and data[1] == _MAGIC & 0xFF:
            self.byteorder = "big"
        else:
            raise BtfError(f"not BTF: the first two bytes are {data[:2].hex(' ')}, not eb 9f in either order")
        end = "<" if self.byteorder == "little" else ">"
        version, _flags, header_len, type_off, type_len, str_off, str_len = struct.unpack_from(
            f"{end}BBIIIII", data, 2
        )
        if version != _VERSION:
            raise BtfError(f"BTF version {version} at byte 2 is unknown, only {_VERSION} is defined")
        if header_len < _HEADER_LEN or header_len > len(data):
            raise BtfError(f"BTF header length {header_len} at byte 4 is outside {_HEADER_LEN}..{len(data)}")
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
        self._names: dict[int, list[int]] | None = None
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

    def _index(self, words: array[int]) -> array[int]:
        """Where each type starts, as an index into *words*."""
        fixed, per_element, kinds = _FIXED, _PER_ELEMENT, _KIND_COUNT
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

    def _name_at(self, offset: int, user: int) -> str:
        """The name of an element, which is bounded because many elements may share one long string."""
        start = offset - self._strings_start
        if start < 0 and self.base is not None:
            return self.base._name_at(offset, user)
        end = self._strings.find(0, start, start + _MAX_NAME + 1) if start < len(self._strings) else -1
        if end < 0:
            self._check_string(offset, user)
            raise BtfError(f"BTF type {user} has an element with a name of more than {_MAX_NAME} bytes")
        return self._strings[start:end].decode("utf-8", "backslashreplace")

    def _shown(self, offset: int) -> str:
        """The string at *offset* for people: control characters escaped, at most as long as a name."""
        start = offset - self._strings_start
        if start < 0 and self.base is not None:
            return self.base._shown(offset)
        if not 0 <= start < len(self._strings):
            return f"(bad string offset {offset})"
        end = self._strings.find(0, start, start + _MAX_NAME + 1)
        more = "" if end >= 0 else "…"
        text = self._strings[start : end if end >= 0 else start + _MAX_NAME].decode(
            "utf-8", "backslashreplace"
        )
        if not text.isprintable():
            text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
        return text + more

    def all_by_name(self, name: str, kind: Kind | None = None) -> list[BtfType]:
        """Every type of this name, in the order of ids; those of the base are not among them."""
        if not name:
            return []
        if self._names is None:
            names: dict[int, list[int]] = {}
            words = self._words
            for type_id, at in enumerate(self._at, self._first_id):
                names.setdefault(words[at], []).append(type_id)
            self._names = names
        ids: list[int] = []
        pattern = name.encode("utf-8", "surrogateescape") + b"\0"
        for strings, start in self._string_sections():
            # A name may be the tail of a longer string, so every place where it ends a string counts.
            found = strings.find(pattern)
            while found >= 0:
                ids += self._names.get(start + found, ())
                found = strings.find(pattern, found + 1)
        types = [self.type(type_id) for type_id in sorted(ids)]
        return [t for t in types if kind is None or t.kind == kind]

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
        for _ in range(_MAX_CHAIN):
            if current.kind not in _MODIFIERS:
                return current
            current = self.type(current.type_id)
        raise BtfError(f"BTF type {type_id} is a chain of more than {_MAX_CHAIN} typedefs or modifiers")

    def size_of(self, type_id: int, pointer_size: int = 8) -> int:
        """The size of a type in bytes. BTF does not say how long a pointer is: 8 bytes unless given."""
        count = 1
        current_id = type_id
        for _ in range(_MAX_CHAIN):
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
        raise BtfError(f"BTF type {type_id} is an array of more than {_MAX_CHAIN} dimensions")

    def validate(self) -> None:
        """Decodes everything once. Raises `BtfError` at the first malformed type, name or reference."""
        for type_id in range(self._first_id, self.count):
            current = self.type(type_id)
            self._check_string(self._words[current._at], type_id)
            kind = current.kind
            if kind in _REFERENCES:
                _ = current.type_id
            if kind in (Kind.STRUCT, Kind.UNION):
                self._check_elements(current, 3)
            elif kind in (Kind.ENUM, Kind.ENUM64):
                self._check_elements(current, _PER_ELEMENT[kind], refs=False)
            elif kind == Kind.FUNC_PROTO:
                self._check_elements(current, 2)
            elif kind == Kind.DATASEC:
                _ = current.entries
            elif kind == Kind.ARRAY:
                _ = current.element_id, current.index_id
            if kind in _MODIFIERS:
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

    def _check_string(self, offset: int, user: int) -> None:
        if offset >= self._strings_start + len(self._strings):
            raise BtfError(
                f"BTF type {user} has a name at string offset {offset}, past the end of the strings"
            )

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
        rest = range(at + 3, at + 3 + _PER_ELEMENT[kind] * t.vlen, _PER_ELEMENT[kind] or 1)
        if kind == Kind.INT:
            encoding = _ENCODINGS.get(t.encoding, f"0x{t.encoding:x}")
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
            yield f"{head} type_id={third} linkage={_LINKAGES.get(t.vlen, '(unknown)')}"
        elif kind == Kind.FUNC_PROTO:
            yield f"{head} ret_type_id={third} vlen={t.vlen}"
            for index in rest:
                name = self._shown(words[index]) if words[index] else "(anon)"
                yield f"\t'{name}' type_id={words[index + 1]}"
        elif kind == Kind.VAR:
            yield f"{head} type_id={third}, linkage={_LINKAGES.get(words[at + 3], '(unknown)')}"
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
        return _CWriter(self).declaration(type_id, name, 0)

    def definition(self, type_id: int) -> str:
        """C for the type itself with its members, for people: ``"struct pair {\\n\\t__u32 a;\\n};"``."""
        return _CWriter(self).definition(self.type(type_id)) + ";"


class _CWriter:
    """Renders one type as C, within bounds: nesting, length of a chain, and characters in all."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf
        self._budget = _MAX_RENDERED

    def _spend(self, text: str) -> str:
        self._budget -= len(text) + 8
        if self._budget < 0:
            raise BtfError(f"the type is more than {_MAX_RENDERED} characters of C")
        return text

    def _name(self, t: BtfType) -> str:
        return self._spend(t._btf._shown(t._word(0)))

    def declaration(self, type_id: int, name: str, depth: int) -> str:
        if depth > _MAX_NESTING:
            raise BtfError(f"BTF type {type_id} nests more than {_MAX_NESTING} types")
        inner = self._spend(name)
        qualifiers = ""
        after_pointer = False
        current = self._btf.type(type_id)
        for _ in range(_MAX_CHAIN):
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
        raise BtfError(f"BTF type {type_id} is a chain of more than {_MAX_CHAIN} types")

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
        if depth > _MAX_NESTING:
            raise BtfError(f"BTF type {t.id} nests more than {_MAX_NESTING} types")
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
        name = name if len(name) <= _MAX_NAME else name[:_MAX_NAME] + "…"
        if name.isprintable():
            return name
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def _keyword(t: BtfType) -> str:
    if t.kind == Kind.FWD:
        return "union" if t.kflag else "struct"
    if t.kind == Kind.STRUCT:
        return "struct"
    return "union" if t.kind == Kind.UNION else "enum"


class FuncInfo(NamedTuple):
    """Says that a function of type *type_id* (a FUNC) starts at *insn_off* (``struct bpf_func_info``).

    ``insn_off`` counts 8-byte instruction slots in ``BPF_PROG_LOAD``, and bytes in ``.BTF.ext``.
    """

    insn_off: int
    type_id: int


class LineInfo(NamedTuple):
    """The source line of the instruction at *insn_off* (``struct bpf_line_info``).

    ``insn_off`` counts as in `FuncInfo`. The file's name and the line's text are offsets of strings in the
    BTF. Lines and columns count from 1, up to 4194303 and 1023.
    """

    insn_off: int
    file_name_off: int
    line_off: int
    line: int
    col: int = 0


class CoreRelo(NamedTuple):
    """A CO-RE relocation (``struct bpf_core_relo``); ``insn_off`` is in bytes."""

    insn_off: int
    type_id: int
    access_str_off: int
    kind: int


_FUNC_INFO_SIZE, _LINE_INFO_SIZE, _CORE_RELO_SIZE = 8, 16, 16
_MAX_LINE, _MAX_COL = (1 << 22) - 1, (1 << 10) - 1
_EXT_HEADER = "HBBIIIII"  # up to line_info; core_relo_off and core_relo_len follow where hdr_len says so
_EXT_HEADER_LEN = 32


def _order(byteorder: ByteOrder) -> str:
    return "<" if byteorder == "little" else ">"


def pack_func_info(records: Iterable[FuncInfo | tuple[int, int]], byteorder: ByteOrder = "little") -> bytes:
    """The records of ``func_info``, 8 bytes each; raises `BtfError` where ``insn_off`` does not ascend."""
    out = bytearray()
    last = -1
    for record in records:
        insn_off, type_id = record
        if not last < insn_off <= 0xFFFFFFFF:
            raise BtfError(
                f"func_info at instruction {insn_off} doesn't follow {last}; the kernel wants ascending order"
            )
        if not 0 < type_id <= _MAX_TYPE:
            raise BtfError(f"func_info at instruction {insn_off}: type id {type_id} is out of range")
        last = insn_off
        out += struct.pack(f"{_order(byteorder)}2I", insn_off, type_id)
    return bytes(out)


def pack_line_info(
    records: Iterable[LineInfo | tuple[int, int, int, int, int]], byteorder: ByteOrder = "little"
) -> bytes:
    """The records of ``line_info``, 16 bytes each; raises `BtfError` where ``insn_off`` does not ascend.

    A column above 1023 can't be expressed, it is stored as 1023.
    """
    out = bytearray()
    last = -1
    for record in records:
        insn_off, file_name_off, line_off, line, col = record
        if not last < insn_off <= 0xFFFFFFFF:
            raise BtfError(
                f"line_info at instruction {insn_off} doesn't follow {last}; the kernel wants ascending order"
            )
        if not 0 <= line <= _MAX_LINE:
            raise BtfError(f"line_info at instruction {insn_off}: line {line} is outside 0..{_MAX_LINE}")
        if col < 0:
            raise BtfError(f"line_info at instruction {insn_off}: column {col} is negative")
        for offset in (file_name_off, line_off):
            if not 0 <= offset <= _MAX_NAME_OFFSET:
                raise BtfError(f"line_info at instruction {insn_off}: string offset {offset} is out of range")
        last = insn_off
        packed = line << 10 | min(col, _MAX_COL)
        out += struct.pack(f"{_order(byteorder)}4I", insn_off, file_name_off, line_off, packed)
    return bytes(out)


def unpack_func_info(
    data: bytes, byteorder: ByteOrder = "little", rec_size: int = _FUNC_INFO_SIZE
) -> list[FuncInfo]:
    """The records in *data*; those longer than is known here (*rec_size*) are cut. Raises `BtfError`."""
    return [FuncInfo(*words) for words in _records(data, byteorder, rec_size, _FUNC_INFO_SIZE, "func_info")]


def unpack_line_info(
    data: bytes, byteorder: ByteOrder = "little", rec_size: int = _LINE_INFO_SIZE
) -> list[LineInfo]:
    """The records in *data*, as with `unpack_func_info`."""
    return [
        LineInfo(insn, file, text, packed >> 10, packed & _MAX_COL)
        for insn, file, text, packed in _records(data, byteorder, rec_size, _LINE_INFO_SIZE, "line_info")
    ]


def _records(
    data: bytes, byteorder: ByteOrder, rec_size: int, known: int, what: str
) -> Iterator[tuple[int, ...]]:
    if rec_size < known or rec_size % 4:
        raise BtfError(f"{what}: a record size of {rec_size} bytes, not {known} or a larger multiple of 4")
    if len(data) % rec_size:
        raise BtfError(f"{what}: {len(data)} bytes are no multiple of the record size {rec_size}")
    form = struct.Struct(f"{_order(byteorder)}{known // 4}I")
    for at in range(0, len(data), rec_size):
        yield form.unpack_from(data, at)


class BtfExt:
    """The section ``.BTF.ext`` of an object file: records by the name of the code section they are about.

    ``insn_off`` is in bytes from the start of that section. String offsets are those of the accompanying
    ``.BTF``.
    """

    def __init__(
        self,
        func_info: Mapping[str, Sequence[FuncInfo]] | None = None,
        line_info: Mapping[str, Sequence[LineInfo]] | None = None,
        core_relo: Mapping[str, Sequence[CoreRelo]] | None = None,
    ) -> None:
        self.func_info: dict[str, list[FuncInfo]] = {name: list(v) for name, v in (func_info or {}).items()}
        self.line_info: dict[str, list[LineInfo]] = {name: list(v) for name, v in (line_info or {}).items()}
        self.core_relo: dict[str, list[CoreRelo]] = {name: list(v) for name, v in (core_relo or {}).items()}

    def to_bytes(self, strings: BtfBuilder) -> bytes:
        """The section. The names of code sections are added to *strings*, so write the ``.BTF`` after it."""
        order: ByteOrder = strings.byteorder
        end = _order(order)
        parts: list[bytes] = []
        for size, sections in (
            (_FUNC_INFO_SIZE, [(n, len(r), pack_func_info(r, order)) for n, r in self.func_info.items()]),
            (_LINE_INFO_SIZE, [(n, len(r), pack_line_info(r, order)) for n, r in self.line_info.items()]),
            (
                _CORE_RELO_SIZE,
                [
                    (n, len(r), b"".join(struct.pack(f"{end}4I", *relo) for relo in r))
                    for n, r in self.core_relo.items()
                ],
            ),
        ):
            body = b"".join(
                struct.pack(f"{end}2I", strings.string(name), count) + data
                for name, count, data in sections
                if count
            )
            parts.append(struct.pack(f"{end}I", size) + body if body else b"")
        offsets: list[int] = []
        at = 0
        for part in parts:
            offsets += (at, len(part))
            at += len(part)
        header = struct.pack(f"{end}HBBI", _MAGIC, _VERSION, 0, _EXT_HEADER_LEN)
        return header + struct.pack(f"{end}6I", *offsets) + b"".join(parts)

    @classmethod
    def parse(cls, data: bytes, btf: Btf) -> BtfExt:
        """The records in *data*, section names from *btf*; raises `BtfError` naming the offending byte."""
        if len(data) < 24:
            raise BtfError(f".BTF.ext has a header of at least 24 bytes, here are {len(data)}")
        end = _order(btf.byteorder)
        magic, version, _flags, header_len = struct.unpack_from(f"{end}HBBI", data, 0)
        if magic != _MAGIC:
            raise BtfError(f"not .BTF.ext: the first two bytes are {data[:2].hex(' ')}")
        if version != _VERSION:
            raise BtfError(f".BTF.ext version {version} at byte 2 is unknown, only {_VERSION} is defined")
        if not 24 <= header_len <= len(data):
            raise BtfError(f".BTF.ext header length {header_len} at byte 4 is outside 24..{len(data)}")
        ext = cls()
        known = min(header_len, _EXT_HEADER_LEN)
        words = struct.unpack_from(f"{end}{(known - 8) // 8 * 2}I", data, 8)
        for index, (name, size) in enumerate(
            (("func_info", _FUNC_INFO_SIZE), ("line_info", _LINE_INFO_SIZE), ("core_relo", _CORE_RELO_SIZE))
        ):
            if 2 * index >= len(words):
                break
            start, length = header_len + words[2 * index], words[2 * index + 1]
            if not length:
                continue
            if start % 4 or start + length > len(data):
                raise BtfError(
                    f".BTF.ext {name} at byte {start}, {length} bytes, is misaligned or past the end"
                )
            for section, records in _ext_sections(data, start, start + length, name, size, btf):
                if name == "func_info":
                    ext.func_info.setdefault(section, []).extend(FuncInfo(*r) for r in records)
                elif name == "line_info":
                    ext.line_info.setdefault(section, []).extend(
                        LineInfo(insn, file, text, packed >> 10, packed & _MAX_COL)
                        for insn, file, text, packed in records
                    )
                else:
                    ext.core_relo.setdefault(section, []).extend(CoreRelo(*r) for r in records)
        return ext


def _ext_sections(
    data: bytes, at: int, stop: int, what: str, known: int, btf: Btf
) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """The parts of one kind of info: each code section's name and its records."""
    end = _order(btf.byteorder)
    if stop - at < 4:
        raise BtfError(f".BTF.ext {what} at byte {at} is too short for its record size")
    (rec_size,) = struct.unpack_from(f"{end}I", data, at)
    if rec_size < known or rec_size % 4:
        raise BtfError(
            f".BTF.ext {what} at byte {at}: record size {rec_size}, not {known} or a larger multiple of 4"
        )
    at += 4
    while at < stop:
        if stop - at < 8:
            raise BtfError(f".BTF.ext {what} at byte {at} ends within a section's header")
        name_off, count = struct.unpack_from(f"{end}2I", data, at)
        if not count or count * rec_size > stop - at - 8:
            raise BtfError(f".BTF.ext {what} at byte {at}: {count} records of {rec_size} bytes don't fit")
        at += 8
        yield (
            btf.string(name_off),
            list(_records(data[at : at + count * rec_size], btf.byteorder, rec_size, known, what)),
        )
        at += count * rec_size
