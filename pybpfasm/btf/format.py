# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The parts of BTF that its writer and its reader share: kinds, limits, and what a type is made of."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Literal, NamedTuple

from pybpfasm.errors import PybpfasmError

ByteOrder = Literal["little", "big"]

MAGIC = 0xEB9F
VERSION = 1
HEADER_LEN = 24
MAX_TYPE = 0xFFFFF  # BTF_MAX_TYPE
MAX_NAME_OFFSET = 0xFFFFFF  # BTF_MAX_NAME_OFFSET
MAX_VLEN = 0xFFFF  # BTF_MAX_VLEN
MAX_NAME = 511  # KSYM_NAME_LEN of Linux 6.1 and later, without the terminating zero
MAX_CHAIN = 64  # pointers, arrays and modifiers in one type; the kernel follows 32
MAX_NESTING = 32  # anonymous structures within each other
MAX_RENDERED = 1 << 20  # characters of C for one type


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


INT_SIGNED, INT_CHAR, INT_BOOL = 1, 2, 4
ENCODINGS = {0: "(none)", INT_SIGNED: "SIGNED", INT_CHAR: "CHAR", INT_BOOL: "BOOL"}
LINKAGES = {0: "static", 1: "global", 2: "extern"}

# By kind: the words (of 4 bytes) after the 3 that every type has, a fixed number and a number per element.
_FIXED = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
_PER_ELEMENT = {
    Kind.STRUCT: 3,
    Kind.UNION: 3,
    Kind.ENUM: 2,
    Kind.FUNC_PROTO: 2,
    Kind.DATASEC: 3,
    Kind.ENUM64: 3,
}
KIND_COUNT = len(Kind)
FIXED_WORDS = tuple(_FIXED.get(kind, 0) for kind in Kind)
ELEMENT_WORDS = tuple(_PER_ELEMENT.get(kind, 0) for kind in Kind)

MODIFIERS = frozenset({Kind.TYPEDEF, Kind.VOLATILE, Kind.CONST, Kind.RESTRICT, Kind.TYPE_TAG})
REFERENCES = MODIFIERS | {Kind.PTR, Kind.FUNC, Kind.FUNC_PROTO, Kind.VAR, Kind.DECL_TAG}
SIZED = frozenset({Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.DATASEC, Kind.FLOAT, Kind.ENUM64})


def struct_order(byteorder: ByteOrder) -> str:
    """The byte order as `struct` spells it."""
    return "<" if byteorder == "little" else ">"


def join(byteorder: ByteOrder, types: bytes, strings: bytes) -> bytes:
    """BTF made of its two sections, *types* and behind them *strings*: ``struct btf_header`` in front."""
    header = struct.pack(
        f"{struct_order(byteorder)}HBBIIIII",
        MAGIC,
        VERSION,
        0,
        HEADER_LEN,
        0,
        len(types),
        len(types),
        len(strings),
    )
    return header + types + strings
