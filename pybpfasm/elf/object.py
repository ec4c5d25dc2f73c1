# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What an ELF object holds: programs, functions and maps, ready to be loaded, linked or called from here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn

from pybpfasm.asm import Asm
from pybpfasm.btf import Btf, FuncInfo, Kind, LineInfo, pack_func_info, pack_line_info
from pybpfasm.core import CoreResolver
from pybpfasm.elf.code import Code, read_code, with_reference
from pybpfasm.elf.debug import Debug, location_at, within
from pybpfasm.elf.format import STB_LOCAL, ElfError, attach_to_of_section, type_of_section
from pybpfasm.elf.maps import Maps, ObjectMap, kernel_name
from pybpfasm.elf.reader import RawObject, read_raw
from pybpfasm.errors import PybpfasmError, SourceLocation, suggestion
from pybpfasm.instruction import SLOT_SIZE, Instruction
from pybpfasm.isa import Imm64
from pybpfasm.kernel.enums import AttachType, ProgType
from pybpfasm.layout import ByteOrder
from pybpfasm.program import Function, ProgramSpec, Subprogram
from pybpfasm.target import Target, check_target

__all__ = ["ObjectFile", "ObjectFunction", "ObjectMap", "ObjectProgram", "read_object"]

# How many instruction slots the programs of an object may come to, with the functions that they share, before
# it counts as an attempt to fill memory.
_LEAST_BUDGET: Final = 1 << 20


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
        if not 0 <= slot < self.slots:
            return None
        return location_at(self._source, self._lines, slot, 0, self.function_at(slot).name)


class ObjectFunction(Subprogram):
    """A function of an object, which programs written here call or pass as a callback."""

    __slots__ = ("_code", "_object")

    def __init__(self, code: Code, object: _Object, arguments: tuple[str, ...]) -> None:
        super().__init__(_not_python, arguments)
        self.name = code.name
        self._code = code
        self._object = object

    def __eq__(self, other: object) -> bool:
        return self._code is other._code if isinstance(other, ObjectFunction) else NotImplemented

    def __hash__(self) -> int:
        return hash(id(self._code))

    def bind(self, *settings: object) -> NoReturn:
        """A function of an object takes no settings."""
        raise ElfError(f"function {self.name} is from an object: it takes no settings")

    def write(self, byteorder: ByteOrder, target: Target | None = None) -> Asm:
        """The function's instructions as the object has them; `AsmError` for one that *target* lacks."""
        if byteorder != self._object.byteorder:
            raise ElfError(
                f"function {self.name} is {self._object.byteorder}-endian, the program {byteorder}-endian"
            )
        b = Asm(self.name, None, byteorder)
        slot = 0
        for index, insn in enumerate(self._code.instructions):
            reference = self._code.references.get(slot)
            origin = self._object.location(self._code, slot)
            if insn.wide:
                b._wides.append(index)
            if isinstance(reference, Code):
                callee = self._object.function(reference)
                b._calls[callee] = None
                insn = replace(insn, src=Imm64.FUNC if insn.wide else insn.src, imm=-1, reference=callee)
            elif reference is not None:
                insn = with_reference(insn, reference)
            b._body.append(replace(insn, origin=origin))
            slot += insn.slots
        b._terminated = True
        if target is not None:
            check_target(b._body, target)
        return b


def _not_python() -> None:
    """What stands for the Python function of a function that has none."""


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        return f"<ObjectFile programs {', '.join(self.programs)}; maps {', '.join(self.maps)}>"

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
        return _Object(raw).read(types or {})
    except ElfError:
        raise
    except PybpfasmError as error:
        raise ElfError(str(error)) from error


class _Object:
    """The parts of an object, of which its programs and functions are made."""

    def __init__(self, raw: RawObject) -> None:
        self.raw = raw
        self.byteorder = raw.byteorder
        self.debug = Debug.read(raw)
        self.license = self._license()
        self.maps = Maps.read(raw, self.debug)
        self.code = read_code(raw, self.debug, self.maps)
        self.budget = _LEAST_BUDGET + 16 * sum(len(code.instructions) for _, code in self._all_code())
        self._functions: dict[Code, ObjectFunction] = {}

    def read(self, types: Mapping[str, ProgType]) -> ObjectFile:
        programs: dict[str, ObjectProgram] = {}
        functions: dict[str, ObjectFunction] = {}
        names: list[str] = []
        for section, code in self._all_code():
            if section == ".text":
                names.append(code.name)
                functions.setdefault(code.name, self.function(code))
            elif code.symbol.bind != STB_LOCAL:
                if code.name in programs:
                    raise ElfError(f"a second program {code.name!r}", section=section, offset=code.start)
                programs[code.name] = self._program(code, types)
        return ObjectFile(
            self.byteorder,
            self.license,
            programs,
            self.maps.found,
            tuple(names),
            self.debug.btf,
            tuple(self.maps.notes),
            functions,
        )

    def _all_code(self) -> Iterator[tuple[str, Code]]:
        for section in self.raw.sections:
            for code in self.code.get(section.index, ()):
                yield section.name, code

    def _license(self) -> str:
        section = self.raw.by_name("license")
        if section is None:
            return ""
        text = section.data.partition(b"\0")[0]
        if len(text) > 127 or not text.isascii():
            raise ElfError("the license is no short ASCII text", section="license", offset=0)
        return text.decode()

    def function(self, code: Code) -> ObjectFunction:
        """The function as programs written here may call it, the same object each time."""
        if code not in self._functions:
            self._functions[code] = ObjectFunction(code, self, self._arguments(code))
        return self._functions[code]

    def _arguments(self, code: Code) -> tuple[str, ...]:
        btf = self.debug.btf
        infos = within(self.debug.ext.func_info.get(code.section.name, []), code.start, code.stop)
        if btf is None or not infos or btf.type(infos[0].type_id).kind != Kind.FUNC:
            return ()
        proto = btf.resolve(btf.type(infos[0].type_id).type_id)
        if proto.kind != Kind.FUNC_PROTO:
            return ()
        return tuple(param.name or f"arg{number}" for number, param in enumerate(proto.params[:5], 1))

    def location(self, code: Code, slot: int) -> SourceLocation | None:
        """The source line of the instruction in a *slot* of a function."""
        lines = self.debug.ext.line_info.get(code.section.name, [])
        return location_at(self.debug.btf, lines, code.start + slot * SLOT_SIZE, code.start, code.name)

    def _program(self, main: Code, types: Mapping[str, ProgType]) -> ObjectProgram:
        starts = self._starts(main)
        instructions: list[Instruction] = []
        functions: list[Function] = []
        for code, start in starts.items():
            functions.append(Function(code.name, start, (), None, {}))
            slot = 0
            for insn in code.instructions:
                reference = code.references.get(slot)
                if isinstance(reference, Code):
                    distance = starts[reference] - (start + slot) - 1
                    src = Imm64.FUNC if insn.wide else insn.src
                    insn = replace(insn, src=src, imm=distance, imm_high=0)
                elif reference is not None:
                    insn = with_reference(insn, reference)
                instructions.append(insn)
                slot += insn.slots
        section = main.section.name
        known = type_of_section(section)
        given = types.get(section)
        return ObjectProgram(
            kernel_name(main.name, "program"),
            given if given is not None else ProgType.UNSPEC if known is None else known.type,
            None if known is None or given is not None else known.attach_type,
            self.license,
            tuple(instructions),
            tuple(functions),
            self.byteorder,
            0 if known is None else known.prog_flags,
            symbol=main.name,
            section=section,
            debug=self._records(starts),
            source=self.debug.btf,
        )

    def _starts(self, main: Code) -> dict[Code, int]:
        """The functions of a program in libbpf's order, and the slot that each begins in."""
        starts: dict[Code, int] = {}
        total = 0
        waiting = [main]
        while waiting:
            code = waiting.pop()
            if code in starts:
                continue
            starts[code] = total
            total += (code.stop - code.start) // SLOT_SIZE
            self.budget -= len(code.instructions)
            if self.budget < 0:
                raise ElfError(
                    "the programs share so many functions that together they have more instructions than "
                    "any kernel loads",
                    section=main.section.name,
                    offset=main.start,
                )
            waiting += reversed(code.calls)
        return starts

    def _records(self, starts: dict[Code, int]) -> tuple[bytes, list[FuncInfo], list[LineInfo]] | None:
        """BTF and records for a program's functions, or ``None`` where one of them has none."""
        btf, ext = self.debug.btf, self.debug.ext
        functions: list[FuncInfo] = []
        lines: list[LineInfo] = []
        for code, start in starts.items():
            infos = within(ext.func_info.get(code.section.name, []), code.start, code.stop)
            if not infos or infos[0].insn_off != code.start:
                return None
            if btf is None or btf.type(infos[0].type_id).kind != Kind.FUNC:
                raise ElfError(
                    f"function {code.name!r} has the type {infos[0].type_id}, which is no function's",
                    section=".BTF.ext",
                )
            functions.append(FuncInfo(start, infos[0].type_id))
            found = within(ext.line_info.get(code.section.name, []), code.start, code.stop)
            # The kernel wants a line for the first instruction of each function.
            if not found or found[0].insn_off != code.start:
                found = [LineInfo(code.start, 0, 0, 0, 0), *found]
            for line in found:
                for offset in (line.file_name_off, line.line_off):
                    if offset >= len(btf._strings):
                        raise ElfError(f"a line's text is at string {offset}", section=".BTF.ext")
                if line.insn_off % SLOT_SIZE:
                    raise ElfError(f"a line is for byte {line.insn_off}", section=".BTF.ext")
                at = start + (line.insn_off - code.start) // SLOT_SIZE
                if lines and lines[-1].insn_off >= at:
                    raise ElfError("lines are not in the order of instructions", section=".BTF.ext")
                lines.append(line._replace(insn_off=at))
        return self.debug.kernel_btf, functions, lines
