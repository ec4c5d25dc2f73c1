# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The sections ``.BTF`` and ``.BTF.ext`` of an object: its types, what it leaves to others to define, and the
records of its functions and lines."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pybpfasm.btf import Btf, BtfError, BtfExt, FuncInfo, Kind, LineInfo
from pybpfasm.elf.format import STV_HIDDEN, STV_INTERNAL, ElfError
from pybpfasm.elf.kconfig import KCONFIG
from pybpfasm.elf.kernel_btf import data_layout, for_kernel
from pybpfasm.elf.reader import RawObject
from pybpfasm.errors import SourceLocation
from pybpfasm.extern import Extern

__all__ = ["Debug", "location_at", "parse_btf", "within"]


def parse_btf(raw: RawObject) -> tuple[Btf | None, BtfExt]:
    """The types of an object, ``None`` where it has none, and its records; raises `ElfError` for malformed
    ones."""
    section = raw.by_name(".BTF")
    if section is None or not section.data:
        return None, BtfExt()
    try:
        btf = Btf.parse(section.data)
        btf.validate()
        if btf.byteorder != raw.byteorder:
            raise BtfError(f"{btf.byteorder}-endian types in a {raw.byteorder}-endian object")
        section = raw.by_name(".BTF.ext")
        return btf, BtfExt() if section is None or not section.data else BtfExt.parse(section.data, btf)
    except BtfError as error:
        raise ElfError(str(error), section=section.name if section else None) from error


@dataclass(slots=True)
class Debug:
    """What an object says about itself; all of it is empty for one without BTF.

    ``kernel_btf`` are the bytes of ``btf`` as the kernel takes them, ``kernel`` the same to look into: sizes
    and offsets of data sections are in these alone. ``externs`` are what the kernel has to define.
    """

    btf: Btf | None = None
    ext: BtfExt = field(default_factory=BtfExt)
    kernel_btf: bytes = b""
    kernel: Btf | None = None
    externs: dict[str, Extern] = field(default_factory=dict)

    @classmethod
    def read(cls, raw: RawObject) -> Debug:
        """What is in *raw*; raises `ElfError` for what is malformed."""
        btf, ext = parse_btf(raw)
        if btf is None:
            return cls()
        hidden = {s.name for s in raw.symbols if s.visibility in (STV_HIDDEN, STV_INTERNAL)}
        try:
            kernel_btf = for_kernel(btf, data_layout(raw, btf), hidden)
        except BtfError as error:
            raise ElfError(str(error), section=".BTF") from error
        externs: dict[str, Extern] = {}
        for t in btf.types:
            if t.kind == Kind.DATASEC and t.name in (".ksyms", KCONFIG):
                for entry in t.entries:
                    one = btf.type(entry.type_id)
                    kind = "kconfig" if t.name == KCONFIG else "kfunc" if one.kind == Kind.FUNC else "ksym"
                    externs[one.name] = Extern(one.name, kind, declared=(btf, one.id))
        return cls(btf, ext, kernel_btf, Btf.parse(kernel_btf), externs)


_Record = TypeVar("_Record", FuncInfo, LineInfo)


def within(records: list[_Record], start: int, stop: int) -> list[_Record]:
    """Those of *records*, which are in order, from *start* up to *stop*."""
    first = bisect.bisect_left(records, start, key=lambda record: record.insn_off)
    last = bisect.bisect_left(records, stop, key=lambda record: record.insn_off)
    return records[first:last]


def location_at(
    btf: Btf | None, lines: Sequence[LineInfo], place: int, start: int, function: str
) -> SourceLocation | None:
    """The line of *function*, which begins at *start*, that the instruction at *place* is of; ``None`` where
    no line is known. Both count as *lines* do."""
    index = bisect.bisect_right(lines, place, key=lambda line: line.insn_off) - 1
    if btf is None or index < 0 or lines[index].insn_off < start:
        return None
    line = lines[index]
    try:
        filename, text = (_plain(btf, offset) for offset in (line.file_name_off, line.line_off))
    except BtfError:
        return None
    return SourceLocation(filename.removeprefix("./"), line.line, function, text, filename)


def _plain(btf: Btf, offset: int) -> str:
    """A string of a line record on one printable line."""
    text = btf.string(offset).strip().replace("\t", " ")
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
