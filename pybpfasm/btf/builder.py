# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Writes BTF."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence

from pybpfasm.btf.format import (
    INT_BOOL,
    INT_CHAR,
    INT_SIGNED,
    LINKAGES,
    MAX_NAME,
    MAX_NAME_OFFSET,
    MAX_TYPE,
    MAX_VLEN,
    BtfError,
    ByteOrder,
    Kind,
    Linkage,
    join,
    struct_order,
)

__all__ = ["BtfBuilder"]

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
        self._end = struct_order(byteorder)
        self._strings: dict[str, int] = {"": 0}
        self._string_bytes = bytearray(b"\0")
        self._ids: dict[tuple[tuple[int, ...], tuple[int, ...]], int] = {}
        self._records: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self)} types, {self.byteorder}-endian>"

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
            if offset > MAX_NAME_OFFSET:
                raise BtfError(f"the BTF strings take more than {MAX_NAME_OFFSET} bytes")
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
        encoding = INT_SIGNED * signed | INT_CHAR * char | INT_BOOL * bool_
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
        last = 0
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
            if kind == Kind.STRUCT and offset < last:
                raise BtfError(f"{what}: member {member!r} at bit {offset} comes after one at bit {last}")
            if kind == Kind.UNION and offset:
                raise BtfError(f"{what}: member {member!r} of a union starts at bit {offset}, not 0")
            last = offset
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
        if not -1 <= component <= MAX_VLEN:
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
        return join(self.byteorder, bytes(types), bytes(self._string_bytes))

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
        if vlen > MAX_VLEN:
            raise BtfError(f"{kind.name} {name!r} has {vlen} elements; BTF allows {MAX_VLEN}")
        if any(ref < 0 for ref in refs):
            raise BtfError(f"{kind.name} {name!r} refers to a negative type id")
        if not 0 <= size_or_type <= 0xFFFFFFFF:
            raise BtfError(f"{kind.name} {name!r}: {size_or_type} does not fit 32 bits")
        info = vlen | kind << 24 | kflag << 31
        record = ((self.string(name), info, size_or_type, *words), refs)
        found = self._ids.get(record)
        if found is None:
            found = self.next_id
            if found > MAX_TYPE:
                raise BtfError(f"BTF holds at most {MAX_TYPE} types")
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
        if len(name) > MAX_NAME:
            raise BtfError(
                f"{what}: a name of {len(name)} characters is too long, the kernel takes {MAX_NAME}"
            )


def _linkage(name: str, linkage: int) -> int:
    if linkage not in LINKAGES:
        raise BtfError(f"{name!r}: linkage {linkage} is none of 0 (static), 1 (global), 2 (extern)")
    return int(linkage)
