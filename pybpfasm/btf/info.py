# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The records that tie instructions to functions and source lines, and the section ``.BTF.ext``."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pybpfasm.btf.builder import BtfBuilder
from pybpfasm.btf.format import MAGIC, MAX_NAME_OFFSET, MAX_TYPE, VERSION, BtfError, ByteOrder, struct_order
from pybpfasm.btf.reader import Btf

__all__ = [
    "BtfExt",
    "CoreRelo",
    "FuncInfo",
    "LineInfo",
    "pack_func_info",
    "pack_line_info",
    "unpack_func_info",
    "unpack_line_info",
]


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
MAX_LINE, MAX_COL = (1 << 22) - 1, (1 << 10) - 1
_EXT_HEADER_LEN = 32


def pack_func_info(records: Iterable[FuncInfo | tuple[int, int]], byteorder: ByteOrder = "little") -> bytes:
    """The records of ``func_info``, 8 bytes each; raises `BtfError` where ``insn_off`` does not ascend."""
    pack = struct.Struct(f"{struct_order(byteorder)}2I").pack
    out = bytearray()
    last = -1
    for insn_off, type_id in records:
        if not last < insn_off <= 0xFFFFFFFF:
            raise BtfError(
                f"func_info at instruction {insn_off} doesn't follow {last}; the kernel wants ascending order"
            )
        if not 0 < type_id <= MAX_TYPE:
            raise BtfError(f"func_info at instruction {insn_off}: type id {type_id} is out of range")
        last = insn_off
        out += pack(insn_off, type_id)
    return bytes(out)


def pack_line_info(
    records: Iterable[LineInfo | tuple[int, int, int, int, int]], byteorder: ByteOrder = "little"
) -> bytes:
    """The records of ``line_info``, 16 bytes each; raises `BtfError` where ``insn_off`` does not ascend.

    A column above 1023 can't be expressed, it is stored as 1023.
    """
    pack = struct.Struct(f"{struct_order(byteorder)}4I").pack
    out = bytearray()
    last = -1
    for insn_off, file_name_off, line_off, line, col in records:
        if not last < insn_off <= 0xFFFFFFFF:
            raise BtfError(
                f"line_info at instruction {insn_off} doesn't follow {last}; the kernel wants ascending order"
            )
        if not 0 <= line <= MAX_LINE:
            raise BtfError(f"line_info at instruction {insn_off}: line {line} is outside 0..{MAX_LINE}")
        if col < 0:
            raise BtfError(f"line_info at instruction {insn_off}: column {col} is negative")
        if not (0 <= file_name_off <= MAX_NAME_OFFSET and 0 <= line_off <= MAX_NAME_OFFSET):
            offset = line_off if 0 <= file_name_off <= MAX_NAME_OFFSET else file_name_off
            raise BtfError(f"line_info at instruction {insn_off}: string offset {offset} is out of range")
        last = insn_off
        out += pack(insn_off, file_name_off, line_off, line << 10 | min(col, MAX_COL))
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
    return [_line(*words) for words in _records(data, byteorder, rec_size, _LINE_INFO_SIZE, "line_info")]


def _line(insn_off: int, file_name_off: int, line_off: int, packed: int) -> LineInfo:
    return LineInfo(insn_off, file_name_off, line_off, packed >> 10, packed & MAX_COL)


def _records(
    data: bytes, byteorder: ByteOrder, rec_size: int, known: int, what: str
) -> Iterator[tuple[int, ...]]:
    if rec_size < known or rec_size % 4:
        raise BtfError(f"{what}: a record size of {rec_size} bytes, not {known} or a larger multiple of 4")
    if len(data) % rec_size:
        raise BtfError(f"{what}: {len(data)} bytes are no multiple of the record size {rec_size}")
    form = struct.Struct(f"{struct_order(byteorder)}{known // 4}I")
    for at in range(0, len(data), rec_size):
        yield form.unpack_from(data, at)


def _pack_core_relo(records: Iterable[CoreRelo], byteorder: ByteOrder) -> bytes:
    out = bytearray()
    for record in records:
        try:
            out += struct.pack(f"{struct_order(byteorder)}4I", *record)
        except struct.error:
            raise BtfError(f"core_relo {tuple(record)}: a field does not fit 32 bits") from None
    return bytes(out)


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
        end = struct_order(order)
        parts: list[bytes] = []
        for size, sections in (
            (_FUNC_INFO_SIZE, [(n, len(r), pack_func_info(r, order)) for n, r in self.func_info.items()]),
            (_LINE_INFO_SIZE, [(n, len(r), pack_line_info(r, order)) for n, r in self.line_info.items()]),
            (_CORE_RELO_SIZE, [(n, len(r), _pack_core_relo(r, order)) for n, r in self.core_relo.items()]),
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
        header = struct.pack(f"{end}HBBI", MAGIC, VERSION, 0, _EXT_HEADER_LEN)
        return header + struct.pack(f"{end}6I", *offsets) + b"".join(parts)

    @classmethod
    def parse(cls, data: bytes, btf: Btf) -> BtfExt:
        """The records in *data*, section names from *btf*; raises `BtfError` naming the offending byte."""
        if len(data) < 24:
            raise BtfError(f".BTF.ext has a header of at least 24 bytes, here are {len(data)}")
        end = struct_order(btf.byteorder)
        magic, version, _flags, header_len = struct.unpack_from(f"{end}HBBI", data, 0)
        if magic != MAGIC:
            raise BtfError(f"not .BTF.ext: the first two bytes are {data[:2].hex(' ')}")
        if version != VERSION:
            raise BtfError(f".BTF.ext version {version} at byte 2 is unknown, only {VERSION} is defined")
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
                    ext.line_info.setdefault(section, []).extend(_line(*r) for r in records)
                else:
                    ext.core_relo.setdefault(section, []).extend(CoreRelo(*r) for r in records)
        return ext


def _ext_sections(
    data: bytes, at: int, stop: int, what: str, known: int, btf: Btf
) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    """The parts of one kind of info: each code section's name and its records."""
    end = struct_order(btf.byteorder)
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
            btf._name_at(name_off, f".BTF.ext {what}"),
            list(_records(data[at : at + count * rec_size], btf.byteorder, rec_size, known, what)),
        )
        at += count * rec_size
