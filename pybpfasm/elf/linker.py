# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Links objects: several in, one out, as ``bpftool gen object`` does.

    data = link_objects({"filter.o": Path("filter.o").read_bytes(), "mine": write_object([mine.build()])})

Sections of one name are put behind one another. What one object declares as external (a function, a variable,
a map) is what another defines under this name; of definitions of one name all but one must be weak
(``__weak``), and a weak one gives way. What is static in an object stays its own. Types that several objects
have are in the result once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn

from pybpfasm import isa
from pybpfasm.btf import Btf, BtfError, BtfExt, CoreRelo, FuncInfo, Kind, LineInfo, Linkage
from pybpfasm.core import CoreKind, same_declaration
from pybpfasm.elf.debug import parse_btf
from pybpfasm.elf.definition import read_definition
from pybpfasm.elf.file import ElfFile, FileSection, FileSymbol
from pybpfasm.elf.format import (
    R_BPF_64_32,
    R_BPF_64_64,
    R_BPF_64_ABS32,
    R_BPF_64_ABS64,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STT_SECTION,
    ElfError,
)
from pybpfasm.elf.kernel_btf import data_layout
from pybpfasm.elf.reader import RawObject, Relocation, Section, Symbol, read_raw
from pybpfasm.elf.types import TypeTable
from pybpfasm.errors import PybpfasmError
from pybpfasm.instruction import SLOT_SIZE

__all__ = ["link_objects"]

# Sections of which all objects have to have the same, and the result has one.
_ALIKE: Final = frozenset({"license", "version"})
# Where the kernel's own is declared.
_OF_THE_KERNEL: Final = frozenset({".ksyms", ".kconfig"})
_MAX_ZEROS: Final = 1 << 26  # that take room in the file because something in their section is not 0
_MAX_ALIGN: Final = 1 << 12


def link_objects(objects: Mapping[str, bytes] | Sequence[bytes]) -> bytes:
    """One object made of several; by their names, which are for messages, or in a row.

    What no object defines stays external, so that the result can be linked again. Raises `ElfError` for a
    damaged object, two definitions of one name, declarations that differ from the definition, and objects of
    different byte orders or licenses.
    """
    if not isinstance(objects, Mapping):
        objects = {f"object {number}": data for number, data in enumerate(objects, 1)}
    if not objects:
        raise ElfError("there is nothing to link: no object was given")
    inputs = []
    for name, data in objects.items():
        try:
            inputs.append(_Input.read(name, data))
        except PybpfasmError as error:
            raise ElfError(f"{name}: {error}") from error
    return _Linker(inputs).link()


@dataclass(eq=False)
class _Input:
    """An object, and where its parts go."""

    name: str
    raw: RawObject
    btf: Btf | None
    ext: BtfExt
    bases: dict[int, int] = field(default_factory=dict)  # by section, bytes into the section of the result
    parts: dict[int, bytearray] = field(default_factory=dict)  # by section, what is in it
    keys: dict[int, str] = field(default_factory=dict)  # by identity, local symbols in the result
    declared: dict[str, int] = field(default_factory=dict)  # types of global symbols and externs

    @classmethod
    def read(cls, name: str, data: bytes) -> _Input:
        raw = read_raw(data)
        btf, ext = parse_btf(raw)
        found = cls(name, raw, btf, ext)
        if btf is not None:
            for t in btf.types:
                if t.kind in (Kind.FUNC, Kind.VAR) and t.linkage != Linkage.STATIC:
                    found.declared.setdefault(t.name, t.id)
        return found


@dataclass(eq=False)
class _Global:
    """A name that objects share: where it is defined, or that it is not."""

    name: str
    owner: _Input
    symbol: Symbol
    visibility: int
    defined: bool
    weak: bool


class _Linker:
    def __init__(self, inputs: list[_Input]) -> None:
        self.inputs = inputs
        self.byteorder = inputs[0].raw.byteorder
        self.file = ElfFile(self.byteorder)
        self.types = TypeTable(self.byteorder)
        self.ext = BtfExt()
        self.sections: dict[str, FileSection] = {}
        self.sizes: dict[str, int] = {}
        self.zeros = 0
        self.globals: dict[str, _Global] = {}
        self.alike: dict[str, tuple[_Input, bytes]] = {}
        self.entries: dict[str, list[tuple[int, int, int]]] = {}  # variables by section
        self.externs: dict[str, dict[str, int]] = {}  # of the kernel, by section and name

    def link(self) -> bytes:
        for one in self.inputs:
            if one.raw.byteorder != self.byteorder:
                raise ElfError(
                    f"{one.name} is {one.raw.byteorder}-endian, {self.inputs[0].name} {self.byteorder}-endian"
                )
            for section in one.raw.sections:
                self._section(one, section)
        for one in self.inputs:
            for symbol in one.raw.symbols:
                if symbol.bind != STB_LOCAL:
                    self._global(one, symbol)
        self._symbols()
        for one in self.inputs:
            for section in one.raw.sections:
                if section.index in one.bases:
                    for relocation in section.relocations:
                        self._relocation(one, section, relocation)
        for one in self.inputs:
            self._types(one)
        for joined in self.sections.values():
            self._join(joined)
        self._describe()
        return self.file.to_bytes()

    def _join(self, section: FileSection) -> None:
        """Put the parts of a section behind one another."""
        size = self.sizes[section.name]
        self.file.add(section)
        if section.type == SHT_NOBITS:
            section.size = size
            return
        parts = [
            (one.bases[index], part)
            for one in self.inputs
            for index, part in one.parts.items()
            if one.raw.sections[index].name == section.name
        ]
        self.zeros += size - sum(len(part) for _, part in parts)
        if self.zeros > _MAX_ZEROS:
            raise ElfError(f"section {section.name} would have {size} bytes, nearly all of them 0")
        content = bytearray(size)
        for base, part in parts:
            content[base : base + len(part)] = part
        section.data = bytes(content)

    # Sections.
    def _section(self, one: _Input, section: Section) -> None:
        name = section.name
        if not section.flags & SHF_ALLOC or section.type not in (SHT_PROGBITS, SHT_NOBITS):
            return
        if name == "maps":
            raise ElfError(f'{one.name}: maps are defined in the old form; define them in SEC(".maps")')
        known = self.sections.get(name)
        if known is None:
            known = self.sections[name] = FileSection(name, section.type, section.flags)
            self.sizes[name] = 0
        elif (known.flags ^ section.flags) & SHF_EXECINSTR:
            raise ElfError(f"{one.name}: section {name} holds code in one object and data in another")
        elif name in _ALIKE:
            first = self.alike[name]
            if section.data != first[1]:
                raise ElfError(
                    f"{one.name}: the {name} is {_shown(section.data)}, that of {first[0].name} "
                    f"{_shown(first[1])}: an object has one {name}"
                )
            one.bases[section.index] = 0
            return
        if section.flags & SHF_EXECINSTR and section.size % SLOT_SIZE:
            raise ElfError(f"{one.name}: section {name}, {section.size} bytes, is not made of instructions")
        if section.align & section.align - 1 or section.align > _MAX_ALIGN:
            raise ElfError(f"{one.name}: section {name} is to lie at a multiple of {section.align} bytes")
        known.flags |= section.flags
        known.align = max(known.align, section.align)
        if section.type == SHT_PROGBITS:
            known.type = SHT_PROGBITS
            one.parts[section.index] = bytearray(section.data)
        if name in _ALIKE:
            self.alike[name] = (one, section.data)
        base = one.bases[section.index] = -(-self.sizes[name] // section.align) * section.align
        self.sizes[name] = base + section.size

    # Symbols.
    def _global(self, one: _Input, symbol: Symbol) -> None:
        if not symbol.name:
            return
        defined = symbol.section != SHN_UNDEF
        if defined and symbol.section not in one.bases:
            raise ElfError(f"{one.name}: symbol {symbol.name!r} is in a section that is not linked")
        found = _Global(symbol.name, one, symbol, symbol.visibility, defined, symbol.bind == STB_WEAK)
        known = self.globals.get(symbol.name)
        if known is None:
            self.globals[symbol.name] = found
            return
        if defined and self._section_of(one, symbol) in _ALIKE:
            return  # _license
        self._compare(known, found)
        visibility = _narrower(known.visibility, symbol.visibility)
        if known.defined and defined:
            if not known.weak and not found.weak:
                raise ElfError(
                    f"{symbol.name!r} is defined in {known.owner.name} and in {one.name}: make it static, "
                    "weak or extern in all but one"
                )
            if known.weak and not found.weak:
                self.globals[symbol.name] = known = found
        elif defined:
            self.globals[symbol.name] = known = found
        elif not known.defined:
            known.weak = known.weak and found.weak
        known.visibility = visibility

    def _section_of(self, one: _Input, symbol: Symbol) -> str:
        return one.raw.sections[symbol.section].name if symbol.section else ""

    def _compare(self, known: _Global, found: _Global) -> None:
        """Refuse a name that stands for different things."""
        sections = [self._section_of(g.owner, g.symbol) for g in (known, found) if g.defined]
        code = {bool(self.sections[name].flags & SHF_EXECINSTR) for name in sections}
        one, other = (g.owner.declared.get(g.name, 0) for g in (known, found))
        if len(code) > 1:
            self._differ(known, found, "one is a function, the other a variable")
        if not one or not other:
            return
        mine, theirs = known.owner.btf, found.owner.btf
        assert mine is not None and theirs is not None
        if mine.type(one).kind != theirs.type(other).kind:
            self._differ(known, found, "one is a function, the other a variable")
        one, other = mine.type(one).type_id, theirs.type(other).type_id
        if any(name == ".maps" for name in sections):
            if read_definition(mine, one, known.name) != read_definition(theirs, other, found.name):
                self._differ(known, found, "the maps differ")
            return
        if not same_declaration(mine, one, theirs, other):
            self._differ(
                known,
                found,
                f"{mine.declaration(one, known.name)[:200]} in one, "
                f"{theirs.declaration(other, known.name)[:200]} in the other",
            )

    @staticmethod
    def _differ(known: _Global, found: _Global, how: str) -> NoReturn:
        raise ElfError(
            f"{known.name!r} is not the same in {known.owner.name} and in {found.owner.name}: {how}"
        )

    def _symbols(self) -> None:
        for one in self.inputs:
            for symbol in one.raw.symbols:
                if symbol.bind != STB_LOCAL or symbol.section not in one.bases:
                    continue
                if symbol.type not in (STT_FUNC, STT_OBJECT):
                    continue
                one.keys[id(symbol)] = f"local {len(self.file.symbols)}"
                self._add(one.keys[id(symbol)], one, symbol, symbol.visibility)
        for name, found in self.globals.items():
            if found.defined:
                self._add(f"global {name}", found.owner, found.symbol, found.visibility)
            else:
                bind = STB_WEAK if found.weak else STB_GLOBAL
                self.file.symbols[f"global {name}"] = FileSymbol(
                    name, None, 0, 0, bind, STT_NOTYPE, found.visibility
                )

    def _add(self, key: str, one: _Input, symbol: Symbol, visibility: int) -> None:
        section = self.sections[self._section_of(one, symbol)]
        if symbol.value + symbol.size > one.raw.sections[symbol.section].size:
            raise ElfError(f"{one.name}: symbol {symbol.name!r} goes past section {section.name}")
        self.file.symbols[key] = FileSymbol(
            symbol.name,
            section,
            one.bases[symbol.section] + symbol.value,
            symbol.size,
            symbol.bind,
            symbol.type,
            visibility,
        )

    # Relocations.
    def _relocation(self, one: _Input, section: Section, relocation: Relocation) -> None:
        symbol = relocation.symbol
        at = one.bases[section.index] + relocation.offset
        target = self.sections[section.name]
        if symbol.bind != STB_LOCAL and symbol.name:
            target.relocations.append((at, f"global {symbol.name}", relocation.type))
            return
        if id(symbol) in one.keys:
            target.relocations.append((at, one.keys[id(symbol)], relocation.type))
            return
        if symbol.section not in one.bases:
            raise ElfError(
                f"{one.name}: a relocation names {symbol.name or 'a section'!r}, which is not linked",
                section=section.name,
                offset=relocation.offset,
            )
        # The section of the result begins elsewhere.
        shift = one.bases[symbol.section] + (0 if symbol.type == STT_SECTION else symbol.value)
        name = one.raw.sections[symbol.section].name
        target.relocations.append((at, f"section {name}", relocation.type))
        if shift:
            self._shift(one, section, relocation, shift)

    def _shift(self, one: _Input, section: Section, relocation: Relocation, shift: int) -> None:
        """Add to the number that an instruction, or a place in the data, has beside its relocation."""
        code = section.flags & SHF_EXECINSTR
        at = relocation.offset
        if relocation.type == R_BPF_64_32 and code and not shift % SLOT_SIZE:
            place, size, shift = at + 4, 4, shift // SLOT_SIZE
        elif relocation.type == R_BPF_64_64 and code:
            place, size = at + 4, 4
        elif relocation.type in (R_BPF_64_64, R_BPF_64_ABS64):
            place, size = at, 8
        elif relocation.type == R_BPF_64_ABS32:
            place, size = at, 4
        else:
            raise ElfError(
                f"{one.name}: a relocation of type {relocation.type}, which is not known here",
                section=section.name,
                offset=relocation.offset,
            )
        content = one.parts.get(section.index, bytearray())
        if place + size > len(content):
            raise ElfError(
                f"{one.name}: a relocation at the end of its section",
                section=section.name,
                offset=relocation.offset,
            )
        value = int.from_bytes(content[place : place + size], self.byteorder) + shift
        content[place : place + size] = (value & (1 << 8 * size) - 1).to_bytes(size, self.byteorder)

    # Types, lines and questions to the kernel's types.
    def _types(self, one: _Input) -> None:
        btf = one.btf
        if btf is None:
            return
        sections = [t for t in btf.types if t.kind == Kind.DATASEC]
        # A declaration of what is defined goes; so does what a stronger definition has replaced.
        gone = set()
        for t in btf.types:
            if t.kind in (Kind.FUNC, Kind.VAR) and t.linkage == Linkage.EXTERN:
                found = self.globals.get(t.name)
                if found is None or found.defined or found.owner is not one:
                    gone.add(t.id)
        try:
            layout = data_layout(one.raw, btf)
            tags = {
                t.id
                for t in btf.types
                if t.kind == Kind.DECL_TAG and (t.type_id in gone or btf.type(t.type_id).kind == Kind.DATASEC)
            }
            skipped = gone | tags | {t.id for t in sections}
            ids = self.types.take(btf, [t.id for t in btf.types if t.id not in skipped])
            for t in sections:
                described = layout(t)
                entries = t.entries if described is None else described[1]
                base = self._base(one, t.name)
                for type_id, offset, size in entries:
                    var = btf.type(type_id)
                    found = self.globals.get(var.name)
                    if t.name in _OF_THE_KERNEL and found is not None and found.defined:
                        raise ElfError(
                            f"{var.name!r} is of the kernel here, and {found.owner.name} defines it"
                        )
                    if type_id in gone:
                        continue
                    if var.linkage == Linkage.EXTERN:
                        self.externs.setdefault(t.name, {}).setdefault(var.name, ids[type_id])
                        continue
                    if var.linkage != Linkage.STATIC and found is not None and found.owner is not one:
                        continue
                    if t.name in self.alike and self.alike[t.name][0] is not one:
                        continue
                    self.entries.setdefault(t.name, []).append((ids[type_id], base + offset, size))
            self._records(one, btf, ids)
        except ElfError as error:
            raise ElfError(f"{one.name}: {error}") from error
        except BtfError as error:
            raise ElfError(f"{one.name}: {error}", section=".BTF") from error

    def _base(self, one: _Input, name: str) -> int:
        section = one.raw.by_name(name)
        return 0 if section is None else one.bases.get(section.index, 0)

    def _records(self, one: _Input, btf: Btf, ids: Mapping[int, int]) -> None:
        def text(offset: int) -> int:
            return self.types.string(btf.string(offset))

        def taken(type_id: int) -> int:
            if type_id and type_id not in ids:
                raise ElfError(f"type {type_id} is external, or that of a section", section=".BTF.ext")
            return ids.get(type_id, 0)

        for name, functions in one.ext.func_info.items():
            base = self._base(one, name)
            self.ext.func_info.setdefault(name, []).extend(
                FuncInfo(record.insn_off + base, taken(record.type_id)) for record in functions
            )
        for name, lines in one.ext.line_info.items():
            base = self._base(one, name)
            self.ext.line_info.setdefault(name, []).extend(
                LineInfo(r.insn_off + base, text(r.file_name_off), text(r.line_off), r.line, r.col)
                for r in lines
            )
        for name, questions in one.ext.core_relo.items():
            base = self._base(one, name)
            for q in questions:
                new = CoreRelo(q.insn_off + base, taken(q.type_id), text(q.access_str_off), q.kind)
                self.ext.core_relo.setdefault(name, []).append(new)
                if q.kind == CoreKind.TYPE_ID_LOCAL:
                    self._local_type(one, name, q.insn_off, new.type_id)

    def _local_type(self, one: _Input, name: str, at: int, type_id: int) -> None:
        """The id of a type is another one in the result, and instructions have it in them."""
        section = one.raw.by_name(name)
        content = bytearray() if section is None else one.parts.get(section.index, bytearray())
        if at % SLOT_SIZE or at + SLOT_SIZE > len(content):
            raise ElfError("a question about a type is for no instruction", section=name, offset=at)
        if content[at] == isa.LD_IMM64 or content[at] & 7 in (isa.ALU, isa.ALU64):
            content[at + 4 : at + 8] = type_id.to_bytes(4, self.byteorder)

    def _describe(self) -> None:
        """Write the sections of types, last as they name the others."""
        if not len(self.types):
            return
        try:
            for name, entries in self.entries.items():
                if name in self.sizes:
                    externs = [(var, 0, 0) for var in self.externs.pop(name, {}).values()]
                    listed = [*externs, *sorted(entries, key=_offset)]
                    self.types.add_data_section(name, self.sizes[name], listed)
            for name, externals in self.externs.items():
                self.types.add_extern_section(name, externals.values())
            ext = self.ext.to_bytes(self.types)
            self.file.add(FileSection(".BTF", SHT_PROGBITS, data=self.types.to_bytes(), align=4))
        except BtfError as error:
            raise ElfError(str(error), section=".BTF") from error
        if self.ext.func_info or self.ext.core_relo or self.ext.line_info:
            self.file.add(FileSection(".BTF.ext", SHT_PROGBITS, data=ext, align=4))


def _offset(entry: tuple[int, int, int]) -> int:
    return entry[1]


def _narrower(one: int, other: int) -> int:
    """The visibility that leaves less: internal, hidden, protected, default."""
    return min(one, other) or max(one, other)


def _shown(data: bytes) -> str:
    return repr(data.partition(b"\0")[0][:60].decode("ascii", "backslashreplace"))
