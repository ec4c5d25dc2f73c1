# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What an ELF object holds: programs, maps, static data, and the kernel's types that it asks for."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn, TypeVar

from pybpfasm import isa
from pybpfasm.asm import Asm
from pybpfasm.btf import (
    Btf,
    BtfError,
    BtfExt,
    BtfType,
    FuncInfo,
    Kind,
    LineInfo,
    Linkage,
    pack_func_info,
    pack_line_info,
)
from pybpfasm.core import CoreKind, CoreRelocation, CoreResolver
from pybpfasm.elf.format import (
    R_BPF_64_32,
    R_BPF_64_64,
    SHF_EXECINSTR,
    SHN_UNDEF,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_SECTION,
    STV_HIDDEN,
    STV_INTERNAL,
    ElfError,
    attach_to_of_section,
    is_data_section,
    type_of_section,
)
from pybpfasm.elf.kconfig import ConfigValue, config_layout
from pybpfasm.elf.reader import RawObject, Relocation, Section, Symbol, read_raw
from pybpfasm.elf.types import Layout, for_kernel
from pybpfasm.errors import PybpfasmError, SourceLocation, suggestion
from pybpfasm.extern import Extern
from pybpfasm.instruction import SLOT_SIZE, Instruction, decode
from pybpfasm.isa import CallKind, Imm64
from pybpfasm.kernel.enums import BPF_F_MMAPABLE, BPF_F_RDONLY_PROG, AttachType, MapType, ProgType
from pybpfasm.layout import ByteOrder
from pybpfasm.maps import MapSpec
from pybpfasm.program import Function, ProgramSpec, Subprogram
from pybpfasm.target import Target, check_target

__all__ = ["ObjectFile", "ObjectFunction", "ObjectMap", "ObjectProgram", "read_object"]

_NAME_LENGTH: Final = 15
KCONFIG: Final = ".kconfig"
# How many instruction slots the programs of an object may come to, with the functions that they share, before
# it counts as an attempt to fill memory.
_LEAST_BUDGET: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class ObjectMap(MapSpec):
    """A map that an object defines, or one of its data sections.

    ``symbol`` is its full name; the kernel's, ``name``, is cut to 15 characters. ``pinned`` is what the
    object asks for (``LIBBPF_PIN_BY_NAME``). ``config`` are the values of the kernel's configuration that
    whoever loads the object puts into it (`pybpfasm.elf.kconfig`).
    """

    symbol: str = ""
    types: tuple[bytes, int, int] | None = field(default=None, repr=False)
    pinned: bool = False
    config: tuple[ConfigValue, ...] = ()

    def btf(self, byteorder: ByteOrder = "little") -> tuple[bytes, int, int] | None:
        """The object's BTF with the type ids of key and value, or ``None`` where the kernel takes none."""
        return self.types


@dataclass(slots=True)
class _Code:
    """A function as the object has it, before it is part of a program."""

    name: str
    section: Section
    start: int  # bytes from the start of the section
    stop: int
    symbol: Symbol
    instructions: list[Instruction]
    references: dict[int, object] = field(default_factory=dict)  # by slot within the function
    calls: list[tuple[int, _Code]] = field(default_factory=list)  # in the order of instructions


class ObjectProgram(ProgramSpec):
    """A program of an object, with the functions that it calls, laid out as libbpf does.

    It loads like any other `ProgramSpec` once `unresolved` is empty: `resolve` fills in what depends on the
    kernel. ``symbol`` is the full name, ``section`` the section that it was in.
    """

    def __init__(
        self,
        name: str,
        type: ProgType,
        attach_type: AttachType | None,
        license: str,
        instructions: tuple[Instruction, ...],
        functions: tuple[Function, ...],
        byteorder: ByteOrder,
        prog_flags: int,
        *,
        symbol: str,
        section: str,
        debug: tuple[bytes, list[FuncInfo], list[LineInfo]] | None,
        source: Btf | None,
    ) -> None:
        super().__init__(
            name,
            type,
            attach_type,
            license,
            instructions,
            functions,
            byteorder,
            prog_flags,
            attach_to=attach_to_of_section(section),
        )
        self.symbol = symbol
        self.section = section
        self._source = source
        self._lines = [] if debug is None else debug[2]
        self._debug = (
            (b"", b"", b"")
            if debug is None
            else (
                debug[0],
                pack_func_info(debug[1], byteorder),
                pack_line_info(debug[2], byteorder),
            )
        )

    def location(self, slot: int) -> SourceLocation | None:
        """The source line of the instruction at 8-byte *slot*, or ``None`` without line information."""
        index = bisect.bisect_right(self._lines, slot, key=lambda line: line.insn_off) - 1
        if index < 0 or slot >= self.slots or self._source is None:
            return None
        return _line(self._source, self._lines[index], self.function_at(slot).name)


def _line(btf: Btf, line: LineInfo, function: str) -> SourceLocation | None:
    try:
        filename, text = (_plain(btf, offset) for offset in (line.file_name_off, line.line_off))
    except BtfError:
        return None
    return SourceLocation(filename.removeprefix("./"), line.line, function, text, filename)


def _plain(btf: Btf, offset: int) -> str:
    """A string of a line record on one printable line."""
    text = btf.string(offset).strip().replace("\t", " ")
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)


class ObjectFunction(Subprogram):
    """A function of an object, which programs written here call or pass as a callback."""

    __slots__ = ("_reader", "_source")

    def __init__(self, source: _Code, reader: _Reader, arguments: tuple[str, ...]) -> None:
        super().__init__(_not_python, arguments)
        self.name = source.name
        self._source = source
        self._reader = reader

    def __eq__(self, other: object) -> bool:
        return self._source is other._source if isinstance(other, ObjectFunction) else NotImplemented

    def __hash__(self) -> int:
        return hash(id(self._source))

    def bind(self, *settings: object) -> NoReturn:
        """A function of an object takes no settings."""
        raise ElfError(f"function {self.name} is from an object: it takes no settings")

    def write(self, byteorder: ByteOrder, target: Target | None = None) -> Asm:
        """The function's instructions as the object has them; `AsmError` for one that *target* lacks."""
        if byteorder != self._reader.raw.byteorder:
            raise ElfError(
                f"function {self.name} is {self._reader.raw.byteorder}-endian, the program {byteorder}-endian"
            )
        b = Asm(self.name, None, byteorder)
        slot = 0
        for index, insn in enumerate(self._source.instructions):
            reference = self._source.references.get(slot)
            origin = self._reader.location(self._source, slot)
            if insn.wide:
                b._wides.append(index)
            if isinstance(reference, _Code):
                callee = self._reader.function(reference)
                if callee not in b._calls:
                    b._calls.append(callee)
                insn = replace(insn, src=Imm64.FUNC if insn.wide else insn.src, imm=-1, reference=callee)
            elif reference is not None:
                insn = _with_reference(insn, reference, 0, {})
            b._body.append(replace(insn, origin=origin))
            slot += insn.slots
        b._terminated = True
        if target is not None:
            check_target(b._body, target)
        return b


def _not_python() -> None:
    """What stands for the Python function of a function that has none."""


@dataclass(frozen=True)
class ObjectFile:
    """An object that was read.

    ``programs`` and ``maps`` are by their names in the object, data sections among the maps (``.rodata``).
    ``functions`` are the names of those in ``.text``; `function` gives one to be called from Python. ``btf``
    is the object's own, ``None`` without ``-g``. ``notes`` say what was left out.
    """

    byteorder: ByteOrder
    license: str
    programs: Mapping[str, ObjectProgram]
    maps: Mapping[str, ObjectMap]
    functions: tuple[str, ...]
    btf: Btf | None
    notes: tuple[str, ...] = ()
    subprograms: Mapping[str, ObjectFunction] = field(default_factory=dict)

    def function(self, name: str) -> ObjectFunction:
        """The function of this name in ``.text``, for ``b.call(…)``; raises `ElfError` without one."""
        try:
            return self.subprograms[name]
        except KeyError:
            raise ElfError(
                f"no function {name!r} in the object{suggestion(name, self.subprograms)}"
            ) from None

    def program(self, name: str) -> ObjectProgram:
        """The program of this name; raises `ElfError` where there is none."""
        try:
            return self.programs[name]
        except KeyError:
            raise ElfError(f"no program {name!r} in the object{suggestion(name, self.programs)}") from None

    def map(self, name: str) -> ObjectMap:
        """The map or data section of this name; raises `ElfError` where there is none."""
        try:
            return self.maps[name]
        except KeyError:
            raise ElfError(f"no map {name!r} in the object{suggestion(name, self.maps)}") from None

    def resolve(self, target: Btf) -> ObjectFile:
        """The object with all programs resolved for one kernel (`ObjectProgram.resolve`)."""
        resolver = CoreResolver(target)
        return replace(self, programs={n: p.resolve(resolver) for n, p in self.programs.items()})


def read_object(data: bytes, *, types: Mapping[str, ProgType] | None = None) -> ObjectFile:
    """The object in *data*, as clang and `write_object` make them.

    The type of a program follows from its section's name as with libbpf; *types* gives it for sections with
    names of their own. A program whose type is not known is ``ProgType.UNSPEC``.

    Input is not trusted: whatever is malformed raises `ElfError` naming the section and the offset, and no
    input makes memory or time out of proportion to its size.
    """
    raw = read_raw(data)
    try:
        return _Reader(raw, dict(types or {})).read()
    except ElfError:
        raise
    except PybpfasmError as error:
        raise ElfError(str(error)) from error


class _Reader:
    def __init__(self, raw: RawObject, types: dict[str, ProgType]) -> None:
        self.raw = raw
        self.types = types
        self.notes: list[str] = []
        self.btf: Btf | None = None
        self.kernel_btf = b""
        self.kernel: Btf | None = None  # the same types with sizes and offsets filled in
        self.ext = BtfExt()
        self.maps: dict[str, ObjectMap] = {}
        self.definitions: dict[str, BtfType] = {}
        self.map_at: dict[tuple[int, int], ObjectMap] = {}  # by section and offset
        self.data: dict[int, ObjectMap] = {}  # by section
        self.code: dict[int, list[_Code]] = {}  # by section, in the order of offsets
        self.externs: dict[str, Extern] = {}
        self.config: dict[str, int] = {}  # where the values of the kernel's configuration are in their map
        self.used_names: set[str] = set()
        self.budget = _LEAST_BUDGET
        self.written: dict[int, ObjectFunction] = {}

    def read(self) -> ObjectFile:
        self._read_btf()
        license = self._license()
        self._read_maps()
        self._read_data()
        self._read_config()
        self._read_functions()
        self._initial_values()
        self._relocate()
        programs: dict[str, ObjectProgram] = {}
        names = [
            f.name
            for section, codes in self.code.items()
            for f in codes
            if self.raw.sections[section].name == ".text"
        ]
        for section in self.raw.sections:
            if section.index not in self.code or section.name == ".text":
                continue
            for code in self.code[section.index]:
                if code.symbol.bind == STB_LOCAL:
                    continue
                if code.name in programs:
                    raise ElfError(f"a second program {code.name!r}", section=section.name, offset=code.start)
                programs[code.name] = self._program(code, license)
        return ObjectFile(
            self.raw.byteorder,
            license,
            programs,
            self.maps,
            tuple(names),
            self.btf,
            tuple(self.notes),
            {
                code.name: self.function(code)
                for section, codes in self.code.items()
                for code in reversed(codes)
                if self.raw.sections[section].name == ".text"
            },
        )

    def function(self, code: _Code) -> ObjectFunction:
        """The function as programs written here may call it, the same object each time."""
        if id(code) not in self.written:
            arguments: tuple[str, ...] = ()
            infos = _within(self.ext.func_info.get(code.section.name, []), code)
            if infos and self.btf is not None and self.btf.type(infos[0].type_id).kind == Kind.FUNC:
                proto = self.btf.resolve(self.btf.type(infos[0].type_id).type_id)
                if proto.kind == Kind.FUNC_PROTO:
                    names = [param.name for param in proto.params][:5]
                    arguments = tuple(name or f"arg{number}" for number, name in enumerate(names, 1))
            self.written[id(code)] = ObjectFunction(code, self, arguments)
        return self.written[id(code)]

    def location(self, code: _Code, slot: int) -> SourceLocation | None:
        """The source line of the instruction in a *slot* of a function."""
        lines = self.ext.line_info.get(code.section.name, [])
        at = code.start + slot * SLOT_SIZE
        index = bisect.bisect_right(lines, at, key=lambda line: line.insn_off) - 1
        if index < 0 or lines[index].insn_off < code.start or self.btf is None:
            return None
        return _line(self.btf, lines[index], code.name)

    # Types.
    def _read_btf(self) -> None:
        section = self.raw.by_name(".BTF")
        if section is None or not section.data:
            return
        try:
            btf = Btf.parse(section.data)
            btf.validate()
            if btf.byteorder != self.raw.byteorder:
                raise BtfError(f"{btf.byteorder}-endian types in a {self.raw.byteorder}-endian object")
            hidden = {s.name for s in self.raw.symbols if s.visibility in (STV_HIDDEN, STV_INTERNAL)}
            self.kernel_btf = for_kernel(btf, data_layout(self.raw, btf), hidden)
            self.kernel = Btf.parse(self.kernel_btf)
        except BtfError as error:
            raise ElfError(str(error), section=".BTF") from error
        self.btf = btf
        for t in btf.types:
            if t.kind == Kind.DATASEC and t.name in (".ksyms", ".kconfig"):
                for entry in t.entries:
                    one = btf.type(entry.type_id)
                    kind = "kconfig" if t.name == ".kconfig" else "kfunc" if one.kind == Kind.FUNC else "ksym"
                    self.externs[one.name] = Extern(one.name, kind, declared=(btf, one.id))
        ext = self.raw.by_name(".BTF.ext")
        if ext is None or not ext.data:
            return
        try:
            self.ext = BtfExt.parse(ext.data, btf)
        except BtfError as error:
            raise ElfError(str(error), section=".BTF.ext") from error

    def _license(self) -> str:
        section = self.raw.by_name("license")
        if section is None:
            return ""
        text = section.data.partition(b"\0")[0]
        if len(text) > 127 or not text.isascii():
            raise ElfError("the license is no short ASCII text", section="license", offset=0)
        return text.decode()

    # Maps.
    def _unique(self, symbol: str) -> str:
        """A name of at most 15 characters that no other map of the object has."""
        base = re.sub(r"[^A-Za-z0-9_.]", "_", symbol)[:_NAME_LENGTH] or "map"
        name, number = base, 1
        while name in self.used_names:
            number += 1
            suffix = f"_{number}"
            name = base[: _NAME_LENGTH - len(suffix)] + suffix
        self.used_names.add(name)
        return name

    def _read_maps(self) -> None:
        old = self.raw.by_name("maps")
        if old is not None and old.size:
            raise ElfError(
                'maps are defined in the old form, which has no types; define them in SEC(".maps")',
                section="maps",
                offset=0,
            )
        section = self.raw.by_name(".maps")
        if section is None or not section.size:
            return
        if self.btf is None or self.kernel is None:
            raise ElfError("maps need BTF: compile with -g", section=".maps")
        described = self.kernel.by_name(".maps", Kind.DATASEC)
        if described is None:
            raise ElfError("the BTF does not describe the maps: compile with -g", section=".maps")
        for entry in described.entries:
            var = self.btf.type(entry.type_id)
            if var.kind != Kind.VAR:
                raise ElfError("the BTF of the section lists what is no variable", section=".maps")
            definition = self.btf.resolve(var.type_id)
            self.definitions[var.name] = definition
            spec = _Definition(self.btf, var.name).read(definition)
            found = self._map(spec, var.name)
            if var.name in self.maps:
                raise ElfError(f"a second map {var.name!r}", section=".maps", offset=entry.offset)
            self.maps[var.name] = self.map_at[section.index, entry.offset] = found

    def _map(self, spec: _Fields, symbol: str) -> ObjectMap:
        try:
            type = MapType(spec.numbers["type"])
        except ValueError:
            raise ElfError(f"map {symbol!r} has the unknown type {spec.numbers['type']}") from None
        name = self._unique(symbol)
        inner = None if spec.inner is None else self._map(spec.inner, f"{symbol}.inner")
        key_id, value_id = spec.key_id, spec.value_id
        typed = bool(key_id and value_id) or (bool(value_id) and not spec.sizes[0])
        # Where the kernel takes no types, MapSpec says so too.
        plain = MapSpec(name, type, spec.sizes[0], spec.sizes[1], 0)
        types = (self.kernel_btf, key_id, value_id) if typed and plain.btf() is not None else None
        return ObjectMap(
            name,
            type,
            spec.sizes[0] or None,
            spec.sizes[1] or None,
            spec.numbers.get("max_entries", 0),
            spec.numbers.get("map_flags", 0),
            spec.numbers.get("map_extra", 0),
            inner,
            symbol=symbol,
            types=types,
            pinned=bool(spec.numbers.get("pinning", 0)),
        )

    def _read_data(self) -> None:
        for section in self.raw.sections:
            if not is_data_section(section.name) or not section.size:
                continue
            if section.type not in (SHT_PROGBITS, SHT_NOBITS):
                continue
            if section.type == SHT_NOBITS and not section.name.startswith(".bss"):
                raise ElfError("static data that has no bytes in the file", section=section.name)
            if section.name in self.maps:
                raise ElfError("a second data section of this name", section=section.name)
            described = None if self.kernel is None else self.kernel.by_name(section.name, Kind.DATASEC)
            spec = ObjectMap(
                self._unique(section.name),
                MapType.ARRAY,
                4,
                section.size,
                1,
                BPF_F_RDONLY_PROG if section.name.startswith(".rodata") else 0,
                contents=section.data if section.type == SHT_PROGBITS else None,
                symbol=section.name,
                types=None if described is None or not described.vlen else (self.kernel_btf, 0, described.id),
            )
            self.maps[section.name] = self.data[section.index] = spec
            if section.relocations:
                self.notes.append(
                    f"section {section.name}: {len(section.relocations)} addresses in static data are left "
                    "as they are, 0 or an offset; libbpf does the same"
                )

    def _read_config(self) -> None:
        section = None if self.btf is None else self.btf.by_name(KCONFIG, Kind.DATASEC)
        if section is None or self.btf is None or self.kernel is None or not section.vlen:
            return
        if KCONFIG in self.maps:
            raise ElfError("a section and a map of the kernel's configuration", section=KCONFIG)
        weak = frozenset(s.name for s in self.raw.symbols if s.bind == STB_WEAK)
        size, values = config_layout(self.btf, section, weak)
        self.config = {value.name: value.offset for value in values}
        self.maps[KCONFIG] = ObjectMap(
            self._unique(KCONFIG),
            MapType.ARRAY,
            4,
            size,
            1,
            BPF_F_MMAPABLE | BPF_F_RDONLY_PROG,
            symbol=KCONFIG,
            types=(self.kernel_btf, 0, section.id),
            config=tuple(values),
        )

    def _initial_values(self) -> None:
        section = self.raw.by_name(".maps")
        if section is None or not section.relocations:
            return
        starts = sorted(
            (offset, spec.symbol) for (index, offset), spec in self.map_at.items() if index == section.index
        )
        initial: dict[str, list[tuple[int, str]]] = {}
        for relocation in section.relocations:
            index = bisect.bisect_right(starts, relocation.offset, key=lambda start: start[0]) - 1
            if index < 0:
                raise ElfError("an initial value is in no map", section=".maps", offset=relocation.offset)
            start, spec = starts[index][0], self.maps[starts[index][1]]
            definition = self.definitions[spec.symbol]
            entry, rest = divmod(relocation.offset - start - definition.size, 8)
            if entry < 0 or rest:
                raise ElfError(
                    f"a value of map {spec.symbol!r} is at no entry",
                    section=".maps",
                    offset=relocation.offset,
                )
            target = self.map_at.get((relocation.symbol.section, relocation.symbol.value))
            if target is None and relocation.symbol.type != STT_FUNC:
                raise ElfError(
                    f"entry {entry} of map {spec.symbol!r} is {relocation.symbol.name!r}, "
                    "which is no map and no program",
                    section=".maps",
                    offset=relocation.offset,
                )
            name = relocation.symbol.name if target is None else target.symbol
            initial.setdefault(spec.symbol, []).append((entry, name))
        for symbol, values in initial.items():
            # The map is referred to by identity from here on, so the values go into the same object.
            object.__setattr__(self.maps[symbol], "initial", tuple(sorted(values)))

    # Code.
    def _read_functions(self) -> None:
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
            self.code[symbol.section].append(_Code(symbol.name, section, symbol.value, stop, symbol, []))
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
                self.budget += 16 * len(code.instructions)

    def _function_at(self, index: int, offset: int) -> _Code | None:
        codes = self.code.get(index, [])
        at = bisect.bisect_left(codes, offset, key=lambda code: code.start)
        return codes[at] if at < len(codes) and codes[at].start == offset else None

    def _relocate(self) -> None:
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
                    relocation = relocations.get(at)
                    if at in core:
                        code.references[slot] = core[at]
                    if relocation is not None:
                        self._relocate_one(code, slot, insn, relocation)
                    elif insn.opcode == isa.OP_CALL and insn.src == CallKind.LOCAL:
                        self._call(code, slot, index, at + (insn.imm + 1) * SLOT_SIZE)
                    slot += insn.slots
            for offset in relocations.keys() | core.keys():
                if offset not in known:
                    raise ElfError("a relocation is for no instruction", section=section.name, offset=offset)

    def _core_relocations(self, section: Section) -> dict[int, CoreRelocation]:
        found: dict[int, CoreRelocation] = {}
        for record in self.ext.core_relo.get(section.name, ()):
            assert self.btf is not None
            try:
                kind = CoreKind(record.kind)
            except ValueError:
                raise ElfError(
                    f"CO-RE relocation of the unknown kind {record.kind}",
                    section=section.name,
                    offset=record.insn_off,
                ) from None
            try:
                self.btf.type(record.type_id)
                access = self.btf._name_at(record.access_str_off, "CO-RE relocation")
            except BtfError as error:
                raise ElfError(str(error), section=section.name, offset=record.insn_off) from error
            found[record.insn_off] = CoreRelocation(kind, self.btf, record.type_id, access)
        return found

    def _call(self, code: _Code, slot: int, section: int, offset: int) -> None:
        callee = self._function_at(section, offset)
        if callee is None:
            raise ElfError(
                f"function {code.name!r} calls byte {offset} of section {self.raw.sections[section].name}, "
                "where no function begins",
                section=code.section.name,
                offset=code.start + slot * SLOT_SIZE,
            )
        code.calls.append((slot, callee))
        code.references[slot] = callee

    def _relocate_one(self, code: _Code, slot: int, insn: Instruction, relocation: Relocation) -> None:
        symbol = relocation.symbol

        def error(message: str) -> ElfError:
            return ElfError(message, section=code.section.name, offset=relocation.offset)

        if relocation.type == R_BPF_64_32:
            if insn.opcode != isa.OP_CALL or insn.src != CallKind.LOCAL:
                raise error(f"a relocation of a call to {symbol.name!r} is at no call")
            if symbol.section == SHN_UNDEF:
                code.references[slot] = self._extern(symbol, "kfunc", error)
            elif symbol.section in self.code:
                target = symbol.value + (insn.imm + 1) * SLOT_SIZE
                self._call(code, slot, symbol.section, target)
            else:
                raise error(f"a call to {symbol.name!r}, which is in no section with code")
            return
        if relocation.type != R_BPF_64_64:
            raise error(f"a relocation of type {relocation.type}, which code does not have")
        if insn.opcode != isa.LD_IMM64:
            raise error(f"a relocation of an address of {symbol.name!r} is at no 64-bit load")
        if symbol.section == SHN_UNDEF:
            extern = self._extern(symbol, "ksym", error)
            code.references[slot] = extern
            if extern.kind == "kconfig":
                code.references[slot] = (self.maps[KCONFIG], self.config[symbol.name])
        elif symbol.section in self.code:
            callee = self._function_at(symbol.section, symbol.value + insn.imm)
            if callee is None:
                raise error(
                    f"an address in section {self.raw.sections[symbol.section].name} is of no function"
                )
            code.calls.append((slot, callee))
            code.references[slot] = callee
        elif symbol.section in self.data:
            spec = self.data[symbol.section]
            offset = symbol.value + insn.imm
            if not 0 <= offset < 1 << 31:
                raise error(f"byte {offset} of {spec.symbol} is out of range")
            code.references[slot] = (spec, offset)
        else:
            found = self.map_at.get((symbol.section, symbol.value))
            if found is None or symbol.type == STT_SECTION:
                raise error(f"{symbol.name!r} is no map, function or static data")
            code.references[slot] = found

    def _extern(self, symbol: Symbol, kind: str, error: Callable[[str], ElfError]) -> Extern:
        known = self.externs.get(symbol.name)
        weak = symbol.bind == STB_WEAK
        if known is None:
            raise error(
                f"{symbol.name!r} is defined in another object: link them first (pybpfasm.elf.link_objects)"
            )
        if kind == "kfunc" and known.kind != "kfunc":
            raise error(f"a call to {symbol.name!r}, which is declared as a variable")
        return replace(known, weak=weak)

    def _program(self, main: _Code, license: str) -> ObjectProgram:
        order: list[_Code] = []
        starts: dict[int, int] = {}
        total = 0
        waiting = [main]
        while waiting:
            code = waiting.pop()
            if id(code) in starts:
                continue
            starts[id(code)] = total
            total += (code.stop - code.start) // SLOT_SIZE
            self.budget -= len(code.instructions)
            order.append(code)
            if self.budget < 0:
                raise ElfError(
                    "the programs share so many functions that together they have more instructions than "
                    "any kernel loads",
                    section=main.section.name,
                    offset=main.start,
                )
            waiting += [callee for _, callee in reversed(code.calls)]
        instructions: list[Instruction] = []
        functions: list[Function] = []
        for code in order:
            base = starts[id(code)]
            functions.append(Function(code.name, base, (), None, {}))
            slot = 0
            for insn in code.instructions:
                reference = code.references.get(slot)
                if reference is not None:
                    insn = _with_reference(insn, reference, base + slot, starts)
                instructions.append(insn)
                slot += insn.slots
        section = main.section.name
        known = type_of_section(section)
        given = self.types.get(section)
        return ObjectProgram(
            re.sub(r"[^A-Za-z0-9_.]", "_", main.name)[:_NAME_LENGTH] or "program",
            given if given is not None else ProgType.UNSPEC if known is None else known.type,
            None if known is None or given is not None else known.attach_type,
            license,
            tuple(instructions),
            tuple(functions),
            self.raw.byteorder,
            0 if known is None else known.prog_flags,
            symbol=main.name,
            section=section,
            debug=self._debug(order, starts),
            source=self.btf,
        )

    def _debug(
        self, order: list[_Code], starts: dict[int, int]
    ) -> tuple[bytes, list[FuncInfo], list[LineInfo]] | None:
        """The records for a program's functions, or ``None`` where one of them has none."""
        functions: list[FuncInfo] = []
        lines: list[LineInfo] = []
        for code in order:
            shift = starts[id(code)] - code.start // SLOT_SIZE
            infos = _within(self.ext.func_info.get(code.section.name, []), code)
            if not infos or infos[0].insn_off != code.start:
                return None
            if self.btf is None or self.btf.type(infos[0].type_id).kind != Kind.FUNC:
                raise ElfError(
                    f"function {code.name!r} has the type {infos[0].type_id}, which is no function's",
                    section=".BTF.ext",
                )
            functions.append(FuncInfo(starts[id(code)], infos[0].type_id))
            found = _within(self.ext.line_info.get(code.section.name, []), code)
            # The kernel wants a line for the first instruction of each function.
            if not found or found[0].insn_off != code.start:
                found = [LineInfo(code.start, 0, 0, 0, 0), *found]
            for line in found:
                for offset in (line.file_name_off, line.line_off):
                    if offset >= len(self.btf._strings):
                        raise ElfError(f"a line's text is at string {offset}", section=".BTF.ext")
                if line.insn_off % SLOT_SIZE:
                    raise ElfError(f"a line is for byte {line.insn_off}", section=".BTF.ext")
                at = line.insn_off // SLOT_SIZE + shift
                if lines and lines[-1].insn_off >= at:
                    raise ElfError("lines are not in the order of instructions", section=".BTF.ext")
                lines.append(line._replace(insn_off=at))
        return self.kernel_btf, functions, lines


@dataclass(slots=True)
class _Fields:
    """What a map's definition says."""

    numbers: dict[str, int] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [0, 0])
    key_id: int = 0
    value_id: int = 0
    inner: _Fields | None = None


_NUMBERS: Final = frozenset({"type", "max_entries", "map_flags", "map_extra", "pinning", "numa_node"})


class _Definition:
    """Reads the structure that defines a map, in the form that libbpf's ``__uint`` and ``__type`` give it."""

    def __init__(self, btf: Btf, symbol: str) -> None:
        self.btf = btf
        self.symbol = symbol

    def fail(self, message: str) -> NoReturn:
        raise ElfError(f"map {self.symbol!r}: {message}", section=".maps")

    def read(self, definition: BtfType, *, inner: bool = False) -> _Fields:
        """The definition in the structure *definition*."""
        if definition.kind != Kind.STRUCT:
            self.fail(f"its definition is no structure but of kind {definition.kind.name}")
        out = _Fields()
        for member in definition.members:
            what = self.btf.resolve(member.type_id)
            if member.name in _NUMBERS:
                out.numbers[member.name] = self._number(member.name, what)
            elif member.name in ("key_size", "value_size"):
                out.sizes[member.name == "value_size"] = self._number(member.name, what)
            elif member.name in ("key", "value"):
                if what.kind != Kind.PTR:
                    self.fail(f"{member.name} is not written with __type()")
                size = self.btf.size_of(what.type_id)
                index = member.name == "value"
                if out.sizes[index] and out.sizes[index] != size:
                    self.fail(f"{member.name} has {size} bytes, {member.name}_size says {out.sizes[index]}")
                out.sizes[index] = size
                if index:
                    out.value_id = what.type_id
                else:
                    out.key_id = what.type_id
            elif member.name == "values":
                self._values(out, what, inner)
            else:
                self.fail(f"{member.name!r} is nothing that a definition has")
        if "type" not in out.numbers:
            self.fail("its definition has no type")
        for size in out.sizes:
            if size > 0xFFFFFFFF:
                self.fail(f"a key or value of {size} bytes")
        return out

    def _number(self, name: str, what: BtfType) -> int:
        if what.kind == Kind.PTR:
            array = self.btf.resolve(what.type_id)
            if array.kind == Kind.ARRAY:
                return array.nelems
        elif what.kind in (Kind.ENUM, Kind.ENUM64) and what.vlen == 1:  # __ulong
            return what.enumerators[0].value
        return self.fail(f"{name} is not written with __uint()")

    def _values(self, out: _Fields, what: BtfType, inner: bool) -> None:
        if what.kind != Kind.ARRAY or what.nelems:
            self.fail("values is not written with __array()")
        pointer = self.btf.resolve(what.element_id)
        if pointer.kind != Kind.PTR:
            self.fail("values are no pointers")
        element = self.btf.resolve(pointer.type_id)
        out.sizes[1] = 4
        if element.kind == Kind.FUNC_PROTO:
            return
        if inner:
            self.fail("maps are nested only once")
        out.inner = self.read(element, inner=True)


def map_fields(btf: Btf, type_id: int, symbol: str) -> tuple[object, ...]:
    """What the definition *type_id* of a map says, to compare it with that of another object."""

    def plain(fields: _Fields | None) -> tuple[object, ...]:
        return () if fields is None else (fields.numbers, fields.sizes, plain(fields.inner))

    return plain(_Definition(btf, symbol).read(btf.resolve(type_id)))


def data_layout(raw: RawObject, btf: Btf) -> Callable[[BtfType], Layout | None]:
    """Sizes and offsets of data sections, which clang leaves to whoever reads the object."""
    types = raw.by_name(".BTF")
    assert types is not None
    relocations = {relocation.offset: relocation.symbol for relocation in types.relocations}

    def layout(t: BtfType) -> Layout | None:
        if t.name == KCONFIG:
            size, values = config_layout(btf, t, frozenset())
            offsets = {value.name: (value.offset, value.size) for value in values}
            places = [(entry.type_id, *offsets[btf.type(entry.type_id).name]) for entry in t.entries]
            return size, sorted(places, key=lambda place: place[1])
        section = raw.by_name(t.name)
        if section is None:
            return None
        entries = []
        for index, entry in enumerate(t.entries):
            if btf.type(entry.type_id).linkage == Linkage.EXTERN:
                continue
            offset = entry.offset
            symbol = relocations.get(btf._data_start + 4 * (t._at + 3 + 3 * index + 1))
            if symbol is not None:
                if symbol.section != section.index:
                    continue  # clang moves small constants to .rodata.cst16, and does not say so here
                offset += symbol.value
            entries.append((entry.type_id, offset, entry.size))
        entries.sort(key=lambda entry: entry[1])
        end = 0
        for type_id, offset, size in entries:
            if offset < end or offset + size > section.size:
                raise ElfError(
                    f"variable {btf.type(type_id).name!r}, {size} bytes at {offset}, overlaps another or "
                    f"goes past the section's {section.size} bytes",
                    section=t.name,
                )
            end = offset + size
        return section.size, entries

    return layout


_Record = TypeVar("_Record", FuncInfo, LineInfo)


def _within(records: list[_Record], code: _Code) -> list[_Record]:
    first = bisect.bisect_left(records, code.start, key=lambda record: record.insn_off)
    last = bisect.bisect_left(records, code.stop, key=lambda record: record.insn_off)
    return records[first:last]


def _with_reference(
    insn: Instruction, reference: object, slot: int, starts: Mapping[int, int]
) -> Instruction:
    """*insn* as part of a program, in *slot* of it."""
    if isinstance(reference, _Code):
        distance = starts[id(reference)] - slot - 1
        src = Imm64.FUNC if insn.wide else insn.src
        return replace(insn, src=src, imm=distance, imm_high=0)
    if isinstance(reference, tuple):
        spec, offset = reference
        return replace(insn, src=Imm64.MAP_VALUE, imm=0, imm_high=offset, reference=spec)
    if isinstance(reference, MapSpec):
        return replace(insn, src=Imm64.MAP_FD, imm=0, imm_high=0, reference=reference)
    if isinstance(reference, Extern):
        src = Imm64.BTF_ID if insn.wide else CallKind.KFUNC
        return replace(insn, src=src, imm=0, imm_high=0, reference=reference)
    return replace(insn, reference=reference)
