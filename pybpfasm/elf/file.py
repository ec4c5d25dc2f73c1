# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The bytes of an ELF file: sections, symbols and relocations in, a relocatable object out."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pybpfasm.btf.format import struct_order
from pybpfasm.elf.format import (
    EHDR_SIZE,
    EM_BPF,
    ET_REL,
    SHDR_SIZE,
    SHF_INFO_LINK,
    SHN_UNDEF,
    SHT_REL,
    SHT_STRTAB,
    SHT_SYMTAB,
    STB_LOCAL,
    STT_SECTION,
    SYM_SIZE,
)
from pybpfasm.layout import ByteOrder

__all__ = ["ElfFile", "FileSection", "FileSymbol"]


@dataclass
class FileSection:
    """A section that is to be written. Relocations are (offset, key of a symbol, type)."""

    name: str
    type: int
    flags: int = 0
    data: bytes = b""
    align: int = 1
    size: int | None = None  # of a section without bytes in the file
    link: int = 0
    info: int = 0
    entry_size: int = 0
    index: int = 0
    relocations: list[tuple[int, str, int]] = field(default_factory=list)


@dataclass
class FileSymbol:
    """A symbol that is to be written; ``section`` is ``None`` where another file or the kernel defines it."""

    name: str
    section: FileSection | None
    value: int
    size: int
    bind: int
    type: int
    visibility: int = 0


class ElfFile:
    """What goes into a file. Relocations name symbols by their keys in ``symbols``; ``section NAME`` is the
    symbol of a section, which is made where it is needed."""

    def __init__(self, byteorder: ByteOrder) -> None:
        self.end = struct_order(byteorder)
        self.sections: list[FileSection] = []
        self.symbols: dict[str, FileSymbol] = {}

    def add(self, section: FileSection) -> FileSection:
        """Add a section behind the others."""
        self.sections.append(section)
        section.index = len(self.sections)
        return section

    def to_bytes(self) -> bytes:
        """The file, with the tables that it needs. The sections of the tables are added to it."""
        end = self.end
        local = [symbol for symbol in self.symbols.values() if symbol.bind == STB_LOCAL]
        others = [symbol for symbol in self.symbols.values() if symbol.bind != STB_LOCAL]
        needed = {
            key.removeprefix("section ")
            for section in self.sections
            for _, key, _ in section.relocations
            if key.startswith("section ")
        }
        strings = _Strings()
        numbers: dict[str, int] = {}
        table = bytearray(SYM_SIZE)
        by_identity = {id(symbol): key for key, symbol in self.symbols.items()}
        for section in self.sections:
            if section.name in needed:
                numbers[f"section {section.name}"] = len(table) // SYM_SIZE
                table += struct.pack(f"{end}IBBHQQ", 0, STT_SECTION, 0, section.index, 0, 0)
        first_global = 0
        for symbol in local + others:
            if symbol.bind != STB_LOCAL and not first_global:
                first_global = len(table) // SYM_SIZE
            numbers[by_identity[id(symbol)]] = len(table) // SYM_SIZE
            table += struct.pack(
                f"{end}IBBHQQ",
                strings.add(symbol.name),
                symbol.bind << 4 | symbol.type,
                symbol.visibility,
                SHN_UNDEF if symbol.section is None else symbol.section.index,
                symbol.value,
                symbol.size,
            )
        count = len(self.sections)
        relocated = [section for section in self.sections if section.relocations]
        symtab_index = count + len(relocated) + 1
        for section in relocated:
            data = b"".join(
                struct.pack(f"{end}QQ", offset, numbers[key] << 32 | type)
                for offset, key, type in section.relocations
            )
            self.add(
                FileSection(
                    ".rel" + section.name,
                    SHT_REL,
                    SHF_INFO_LINK,
                    data,
                    8,
                    link=symtab_index,
                    info=section.index,
                    entry_size=16,
                )
            )
        self.add(
            FileSection(
                ".symtab",
                SHT_SYMTAB,
                0,
                bytes(table),
                8,
                link=symtab_index + 1,
                info=first_global or len(table) // SYM_SIZE,
                entry_size=SYM_SIZE,
            )
        )
        strtab = self.add(FileSection(".strtab", SHT_STRTAB))
        names = [strings.add(section.name) for section in self.sections]
        strtab.data = bytes(strings.data)
        headers = bytearray(SHDR_SIZE)
        body = bytearray()
        for section, name in zip(self.sections, names, strict=True):
            body += bytes(-(EHDR_SIZE + len(body)) % section.align)
            headers += struct.pack(
                f"{end}IIQQQQIIQQ",
                name,
                section.type,
                section.flags,
                0,
                EHDR_SIZE + len(body),
                len(section.data) if section.size is None else section.size,
                section.link,
                section.info,
                section.align,
                section.entry_size,
            )
            body += section.data
        body += bytes(-len(body) % 8)
        ident = struct.pack("<4sBBBBB7x", b"\x7fELF", 2, 1 if end == "<" else 2, 1, 0, 0)
        header = ident + struct.pack(
            f"{end}HHIQQQIHHHHHH",
            ET_REL,
            EM_BPF,
            1,
            0,
            0,
            EHDR_SIZE + len(body),
            0,
            EHDR_SIZE,
            0,
            0,
            SHDR_SIZE,
            len(self.sections) + 1,
            strtab.index,
        )
        return header + bytes(body) + bytes(headers)


class _Strings:
    """The bytes of a string table."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._known: dict[str, int] = {"": 0}

    def add(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self._known[text]
