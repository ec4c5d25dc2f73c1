# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Reads the parts of an ELF file: sections, symbols, relocations.

The parts are read by pyelftools, which trusts the file: so its tables are checked first, every offset, size
and name in them, and what goes wrong all the same becomes an `ElfError`.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from pybpfasm.btf.format import ByteOrder, struct_order
from pybpfasm.elf.format import (
    EHDR_SIZE,
    EM_BPF,
    ET_REL,
    REL_SIZE,
    SHDR_SIZE,
    SHF_COMPRESSED,
    SHN_LORESERVE,
    SHT_NOBITS,
    SHT_NULL,
    SHT_PROGBITS,
    SHT_REL,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    SYM_SIZE,
    ElfError,
)

_MAX_NAME: Final = 1024
_MAX_NOBITS: Final = 1 << 30  # what the kernel takes as a map's value at most is less
_HEADER: Final = "HHIQQQIHHHHHH"
_USED: Final = frozenset({SHT_PROGBITS, SHT_NOBITS, SHT_SYMTAB, SHT_REL})


@dataclass(slots=True)
class Section:
    """A section of the file. ``data`` is empty for one without bytes in the file (``.bss``)."""

    index: int
    name: str
    type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int = 1
    data: bytes = b""
    relocations: list[Relocation] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Symbol:
    """An entry of the symbol table; ``section`` is an index, 0 where another file has to define it."""

    name: str
    value: int
    size: int
    bind: int
    type: int
    visibility: int
    section: int


@dataclass(frozen=True, slots=True)
class Relocation:
    """That the bytes at *offset* of a section depend on where *symbol* is."""

    offset: int
    type: int
    symbol: Symbol


@dataclass(slots=True)
class RawObject:
    """The parts of a file."""

    byteorder: ByteOrder
    sections: list[Section]
    symbols: list[Symbol]

    def by_name(self, name: str) -> Section | None:
        """The first section of this name."""
        return next((section for section in self.sections if section.name == name), None)


def read_raw(data: bytes) -> RawObject:
    """The parts of the object in *data*; raises `ElfError` for whatever is no sound BPF object."""
    byteorder, headers, string_index = _check_headers(data)
    names = _section_names(data, headers, string_index)
    sections = [
        # One of type NULL has nothing in it, whatever the rest says.
        Section(index, name, h[1], h[2], h[4], h[5] if h[1] else 0, h[6], h[7], max(h[8], 1))
        for index, (h, name) in enumerate(zip(headers, names, strict=True))
    ]
    tables = [section for section in sections if section.type == SHT_SYMTAB]
    if len(tables) > 1:
        raise ElfError("a second symbol table", section=tables[1].name, offset=tables[1].offset)
    end = struct_order(byteorder)
    for section in tables:
        _check_symbols(data, section, sections, headers, end)
    elf = _pyelftools(data)
    for section in sections:
        if section.type in (SHT_PROGBITS, SHT_STRTAB):
            section.data = _get(elf, section, "data")
    symbols: list[Symbol] = []
    if tables:
        raw = _get(elf, tables[0], "symbols")
        symbols = [_symbol(symbol, tables[0], index) for index, symbol in enumerate(raw)]
    for symbol in symbols:
        if len(sections) <= symbol.section < SHN_LORESERVE:
            raise ElfError(
                f"symbol {symbol.name!r} is in section {symbol.section}, but there are {len(sections)}",
                section=tables[0].name,
            )
    for section in sections:
        if section.type == SHT_RELA:
            raise ElfError("relocations with addends, which BPF objects don't have", section=section.name)
        if section.type == SHT_REL:
            _relocations(elf, section, sections, symbols, headers)
    return RawObject(byteorder, sections, symbols)


def _check_headers(data: bytes) -> tuple[ByteOrder, list[tuple[int, ...]], int]:
    if data[:4] != b"\x7fELF":
        raise ElfError(f"this is no ELF file: it begins with {data[:4].hex(' ') or 'nothing'}", offset=0)
    if len(data) < EHDR_SIZE:
        raise ElfError(f"the ELF header has {EHDR_SIZE} bytes, the file only {len(data)}", offset=len(data))
    if data[4] != 2:
        raise ElfError(f"an ELF file of class {data[4]}; BPF objects are of class 2 (64 bits)", offset=4)
    if data[5] not in (1, 2):
        raise ElfError(f"byte order {data[5]} is neither 1 (little) nor 2 (big)", offset=5)
    byteorder: ByteOrder = "little" if data[5] == 1 else "big"
    end = struct_order(byteorder)
    header = struct.unpack_from(end + _HEADER, data, 16)
    kind, machine, table, entry_size, count, string_index = header[0], header[1], header[5], *header[10:13]
    if machine != EM_BPF:
        raise ElfError(f"an ELF file for machine {machine}; BPF is {EM_BPF}", offset=18)
    if kind != ET_REL:
        raise ElfError(f"an ELF file of type {kind}; objects are of type {ET_REL} (relocatable)", offset=16)
    if not table or not count:
        raise ElfError("the file has no sections", offset=40)
    if entry_size != SHDR_SIZE:
        raise ElfError(f"section headers of {entry_size} bytes, not {SHDR_SIZE}", offset=58)
    if table + count * SHDR_SIZE > len(data):
        raise ElfError(
            f"{count} section headers at byte {table} go past the end of the file at {len(data)}", offset=40
        )
    if string_index >= count:
        raise ElfError(f"section names are in section {string_index}, but there are {count}", offset=62)
    form = struct.Struct(end + "IIQQQQIIQQ")
    headers = [form.unpack_from(data, table + index * SHDR_SIZE) for index in range(count)]
    total = 0
    for index, (_, kind, flags, _, offset, size, *_) in enumerate(headers):
        at = table + index * SHDR_SIZE
        if kind == SHT_NOBITS:
            if size > _MAX_NOBITS:
                raise ElfError(f"section {index} has {size} bytes, more than any map's value", offset=at + 32)
        elif kind != SHT_NULL and offset + size > len(data):
            raise ElfError(
                f"section {index}, {size} bytes at {offset}, goes past the end of the file at {len(data)}",
                offset=at + 24,
            )
        elif kind != SHT_NULL:
            total += size
            if total > len(data):
                raise ElfError(f"section {index} overlaps others", offset=at + 24)
        if flags & SHF_COMPRESSED and kind in _USED:
            raise ElfError(f"section {index} is compressed", offset=at + 8)
    return byteorder, headers, string_index


def _section_names(data: bytes, headers: list[tuple[int, ...]], string_index: int) -> list[str]:
    kind, start, size = headers[string_index][1], headers[string_index][4], headers[string_index][5]
    if kind != SHT_STRTAB:
        raise ElfError(f"section names are in section {string_index}, which is no string table", offset=62)
    return [_name(data, start, size, header[0], f"section {index}") for index, header in enumerate(headers)]


def _name(data: bytes, start: int, size: int, offset: int, what: str) -> str:
    """The string at *offset* of the table at *start*, which must end within it and be of sane length."""
    if offset >= size:
        if offset == 0:
            return ""
        raise ElfError(f"the name of {what} is at {offset} of a string table of {size} bytes", offset=start)
    limit = min(start + size, start + offset + _MAX_NAME)
    stop = data.find(b"\0", start + offset, limit)
    if stop < 0:
        raise ElfError(f"the name of {what} does not end within {_MAX_NAME} bytes", offset=start + offset)
    return data[start + offset : stop].decode("utf-8", "backslashreplace")


def _check_symbols(
    data: bytes, section: Section, sections: list[Section], headers: list[tuple[int, ...]], end: str
) -> None:
    if headers[section.index][9] != SYM_SIZE or section.size % SYM_SIZE:
        raise ElfError(
            f"symbols are entries of {SYM_SIZE} bytes", section=section.name, offset=section.offset
        )
    if section.link >= len(sections) or sections[section.link].type != SHT_STRTAB:
        raise ElfError(f"section {section.link} is no string table", section=section.name)
    strings = sections[section.link]
    for index in range(section.size // SYM_SIZE):
        (offset,) = struct.unpack_from(end + "I", data, section.offset + index * SYM_SIZE)
        _name(data, strings.offset, strings.size, offset, f"symbol {index}")


def _pyelftools(data: bytes) -> Any:
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise ElfError("reading an object takes pyelftools: install it with pip install pyelftools") from None
    try:
        return ELFFile(io.BytesIO(data))
    except Exception as error:
        raise ElfError(f"pyelftools can't read the file: {error or type(error).__name__}") from None


def _get(elf: Any, section: Section, what: str) -> Any:
    try:
        found = elf.get_section(section.index)
        if what == "data":
            return bytes(found.data())
        return list(found.iter_symbols() if what == "symbols" else found.iter_relocations())
    except Exception as error:
        raise ElfError(
            f"can't be read: {error or type(error).__name__}", section=section.name, offset=section.offset
        ) from None


def _symbol(raw: Any, table: Section, index: int) -> Symbol:
    from elftools.elf.enums import (
        ENUM_ST_INFO_BIND,
        ENUM_ST_INFO_TYPE,
        ENUM_ST_SHNDX,
        ENUM_ST_VISIBILITY,
    )

    def number(value: int | str, names: dict[str, int]) -> int:
        return value if isinstance(value, int) else int(names[value])

    try:
        entry = raw.entry
        return Symbol(
            raw.name,
            entry["st_value"],
            entry["st_size"],
            number(entry["st_info"]["bind"], ENUM_ST_INFO_BIND),
            number(entry["st_info"]["type"], ENUM_ST_INFO_TYPE),
            number(entry["st_other"]["visibility"], ENUM_ST_VISIBILITY),
            number(entry["st_shndx"], ENUM_ST_SHNDX),
        )
    except Exception as error:
        raise ElfError(
            f"symbol {index} can't be read: {error or type(error).__name__}",
            section=table.name,
            offset=table.offset + index * SYM_SIZE,
        ) from None


def _relocations(
    elf: Any,
    section: Section,
    sections: list[Section],
    symbols: list[Symbol],
    headers: list[tuple[int, ...]],
) -> None:
    if headers[section.index][9] != REL_SIZE or section.size % REL_SIZE:
        raise ElfError(
            f"relocations are entries of {REL_SIZE} bytes", section=section.name, offset=section.offset
        )
    if not 0 < section.info < len(sections):
        raise ElfError(f"relocates section {section.info}, which does not exist", section=section.name)
    target = sections[section.info]
    for index, raw in enumerate(_get(elf, section, "relocations")):
        offset, number = raw["r_offset"], raw["r_info_sym"]
        at = section.offset + index * REL_SIZE
        if offset >= target.size:
            raise ElfError(
                f"relocation {index} is for byte {offset} of {target.name}, which has {target.size}",
                section=section.name,
                offset=at,
            )
        if number >= len(symbols):
            raise ElfError(
                f"relocation {index} names symbol {number}, but there are {len(symbols)}",
                section=section.name,
                offset=at,
            )
        target.relocations.append(Relocation(offset, raw["r_info_type"], symbols[number]))
