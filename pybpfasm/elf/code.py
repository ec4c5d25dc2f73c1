# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The functions of an object, and what their instructions refer to."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass, field, replace
from typing import NoReturn, TypeAlias

from pybpfasm import isa
from pybpfasm.btf import BtfError
from pybpfasm.core import CoreKind, CoreRelocation
from pybpfasm.elf.debug import Debug
from pybpfasm.elf.format import (
    R_BPF_64_32,
    R_BPF_64_64,
    SHF_EXECINSTR,
    SHN_UNDEF,
    SHT_PROGBITS,
    STB_WEAK,
    STT_FUNC,
    STT_SECTION,
    ElfError,
)
from pybpfasm.elf.kconfig import KCONFIG
from pybpfasm.elf.maps import Maps
from pybpfasm.elf.reader import RawObject, Relocation, Section, Symbol
from pybpfasm.errors import PybpfasmError
from pybpfasm.extern import Extern
from pybpfasm.instruction import SLOT_SIZE, Instruction, decode
from pybpfasm.isa import CallKind, Imm64
from pybpfasm.maps import MapSpec, MapValue

__all__ = ["Code", "read_code", "with_reference"]


@dataclass(slots=True, eq=False)
class Code:
    """A function as the object has it, before it is part of a program.

    ``start`` and ``stop`` are bytes from the start of its section. ``references`` says by slot within the
    function what an instruction refers to, ``calls`` what it calls or takes the address of, in their order.
    """

    name: str
    section: Section
    start: int
    stop: int
    symbol: Symbol
    instructions: list[Instruction]
    references: dict[int, Reference] = field(default_factory=dict)
    calls: list[Code] = field(default_factory=list)


Reference: TypeAlias = "Code | MapSpec | MapValue | Extern | CoreRelocation"


def read_code(raw: RawObject, debug: Debug, maps: Maps) -> dict[int, list[Code]]:
    """The functions of *raw* by section, in the order of offsets; raises `ElfError`."""
    reader = _Reader(raw, debug, maps)
    reader.read_functions()
    reader.relocate()
    return reader.code


class _Reader:
    def __init__(self, raw: RawObject, debug: Debug, maps: Maps) -> None:
        self.raw = raw
        self.debug = debug
        self.maps = maps
        self.code: dict[int, list[Code]] = {}

    def read_functions(self) -> None:
        for section in self.raw.sections:
            if section.type == SHT_PROGBITS and section.flags & SHF_EXECINSTR and section.size:
                self.code[section.index] = []
        for symbol in self.raw.symbols:
            if symbol.type != STT_FUNC or symbol.section not in self.code:
                continue
            section = self.raw.sections[symbol.section]
            stop = symbol.value + symbol.size
            if symbol.value % SLOT_SIZE or symbol.size % SLOT_SIZE or not symbol.size or stop > section.size:
                raise ElfError(
                    f"function {symbol.name!r}, {symbol.size} bytes, is not made of whole instructions "
                    f"within the section's {section.size} bytes",
                    section=section.name,
                    offset=symbol.value,
                )
            self.code[symbol.section].append(Code(symbol.name, section, symbol.value, stop, symbol, []))
        for index, codes in self.code.items():
            section = self.raw.sections[index]
            codes.sort(key=lambda code: (code.start, -code.symbol.bind))
            for before, code in itertools.pairwise(codes):
                if code.start < before.stop:
                    raise ElfError(
                        f"functions {before.name!r} and {code.name!r} overlap",
                        section=section.name,
                        offset=code.start,
                    )
            for code in codes:
                try:
                    code.instructions = decode(section.data[code.start : code.stop], self.raw.byteorder)
                except PybpfasmError as error:
                    raise ElfError(
                        f"function {code.name!r}: {error} of the function",
                        section=section.name,
                        offset=code.start,
                    ) from None

    def _function_at(self, index: int, offset: int) -> Code | None:
        codes = self.code.get(index, [])
        at = bisect.bisect_left(codes, offset, key=lambda code: code.start)
        return codes[at] if at < len(codes) and codes[at].start == offset else None

    def relocate(self) -> None:
        for index, codes in self.code.items():
            section = self.raw.sections[index]
            relocations = {relocation.offset: relocation for relocation in section.relocations}
            core = self._core_relocations(section)
            known: set[int] = set()
            for code in codes:
                slot = 0
                for insn in code.instructions:
                    at = code.start + slot * SLOT_SIZE
                    known.add(at)
                    reference: Reference | None = core.get(at)
                    if at in relocations:
                        reference = self._reference(code, insn, relocations[at])
                    elif insn.opcode == isa.OP_CALL and insn.src == CallKind.LOCAL:
                        reference = self._callee(code, at, index, at + (insn.imm + 1) * SLOT_SIZE)
                    if reference is not None:
                        code.references[slot] = reference
                    if isinstance(reference, Code):
                        code.calls.append(reference)
                    slot += insn.slots
            for offset in relocations.keys() | core.keys():
                if offset not in known:
                    raise ElfError("a relocation is for no instruction", section=section.name, offset=offset)

    def _core_relocations(self, section: Section) -> dict[int, CoreRelocation]:
        found: dict[int, CoreRelocation] = {}
        for record in self.debug.ext.core_relo.get(section.name, ()):
            assert self.debug.btf is not None
            try:
                kind = CoreKind(record.kind)
            except ValueError:
                raise ElfError(
                    f"CO-RE relocation of the unknown kind {record.kind}",
                    section=section.name,
                    offset=record.insn_off,
                ) from None
            try:
                self.debug.btf.type(record.type_id)
                access = self.debug.btf._name_at(record.access_str_off, "CO-RE relocation")
            except BtfError as error:
                raise ElfError(str(error), section=section.name, offset=record.insn_off) from error
            found[record.insn_off] = CoreRelocation(kind, self.debug.btf, record.type_id, access)
        return found

    def _callee(self, code: Code, at: int, index: int, offset: int) -> Code:
        """The function at *offset* of section *index*, which the instruction at byte *at* calls."""
        callee = self._function_at(index, offset)
        if callee is None:
            name = self.raw.sections[index].name
            self._fail(
                code,
                at,
                f"function {code.name!r} calls byte {offset} of section {name}, where no function begins",
            )
        return callee

    def _reference(self, code: Code, insn: Instruction, relocation: Relocation) -> Reference:
        """What the relocation of an instruction names."""
        symbol = relocation.symbol
        at = relocation.offset
        if relocation.type == R_BPF_64_32:
            if insn.opcode != isa.OP_CALL or insn.src != CallKind.LOCAL:
                self._fail(code, at, f"a relocation of a call to {symbol.name!r} is at no call")
            if symbol.section == SHN_UNDEF:
                return self._function_of_kernel(code, at, symbol)
            if symbol.section not in self.code:
                self._fail(code, at, f"a call to {symbol.name!r}, which is in no section with code")
            return self._callee(code, at, symbol.section, symbol.value + (insn.imm + 1) * SLOT_SIZE)
        if relocation.type != R_BPF_64_64:
            self._fail(code, at, f"a relocation of type {relocation.type}, which code does not have")
        if insn.opcode != isa.LD_IMM64:
            self._fail(code, at, f"a relocation of an address of {symbol.name!r} is at no 64-bit load")
        return self._address(code, at, symbol, symbol.value + insn.imm)

    def _address(self, code: Code, at: int, symbol: Symbol, offset: int) -> Reference:
        """What is at *offset* of the section that *symbol* is in."""
        if symbol.section == SHN_UNDEF:
            extern = self._extern(code, at, symbol)
            if extern.kind == "kconfig":
                return MapValue(self.maps.found[KCONFIG], self.maps.config[symbol.name])
            return extern
        if symbol.section in self.code:
            callee = self._function_at(symbol.section, offset)
            if callee is None:
                name = self.raw.sections[symbol.section].name
                self._fail(code, at, f"an address in section {name} is of no function")
            return callee
        if symbol.section in self.maps.data:
            spec = self.maps.data[symbol.section]
            if not 0 <= offset < 1 << 31:
                self._fail(code, at, f"byte {offset} of {spec.symbol} is out of range")
            return MapValue(spec, offset)
        found = self.maps.at.get((symbol.section, symbol.value))
        if found is None or symbol.type == STT_SECTION:
            self._fail(code, at, f"{symbol.name!r} is no map, function or static data")
        return found

    def _extern(self, code: Code, at: int, symbol: Symbol) -> Extern:
        known = self.debug.externs.get(symbol.name)
        if known is None:
            self._fail(
                code,
                at,
                f"{symbol.name!r} is defined in another object: link them first (pybpfasm.elf.link_objects)",
            )
        return replace(known, weak=symbol.bind == STB_WEAK)

    def _function_of_kernel(self, code: Code, at: int, symbol: Symbol) -> Extern:
        extern = self._extern(code, at, symbol)
        if extern.kind != "kfunc":
            self._fail(code, at, f"a call to {symbol.name!r}, which is declared as a variable")
        return extern

    @staticmethod
    def _fail(code: Code, at: int, message: str) -> NoReturn:
        raise ElfError(message, section=code.section.name, offset=at)


def with_reference(insn: Instruction, reference: MapSpec | MapValue | Extern | CoreRelocation) -> Instruction:
    """*insn* with what it refers to: fields that an object leaves to relocations are as in a program."""
    match reference:
        case MapValue(spec, offset):
            return replace(insn, src=Imm64.MAP_VALUE, imm=0, imm_high=offset, reference=spec)
        case MapSpec():
            return replace(insn, src=Imm64.MAP_FD, imm=0, imm_high=0, reference=reference)
        case Extern():
            src = Imm64.BTF_ID if insn.wide else CallKind.KFUNC
            return replace(insn, src=src, imm=0, imm_high=0, reference=reference)
    return replace(insn, reference=reference)
