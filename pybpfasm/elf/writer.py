# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Writes ELF objects."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pybpfasm import isa
from pybpfasm.asm import Asm
from pybpfasm.btf import (
    Btf,
    BtfBuilder,
    BtfError,
    BtfExt,
    CoreRelo,
    FuncInfo,
    Kind,
    LineInfo,
    Linkage,
    declare,
    unpack_func_info,
    unpack_line_info,
)
from pybpfasm.core import CoreKind, CoreRelocation
from pybpfasm.elf.debug import within
from pybpfasm.elf.file import ElfFile, FileSection, FileSymbol
from pybpfasm.elf.format import (
    R_BPF_64_32,
    R_BPF_64_64,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_GLOBAL,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    STV_DEFAULT,
    STV_HIDDEN,
    ElfError,
    is_data_section,
    section_of,
)
from pybpfasm.elf.kconfig import KCONFIG
from pybpfasm.elf.maps import ObjectMap
from pybpfasm.elf.types import TypeTable
from pybpfasm.extern import Extern
from pybpfasm.instruction import SLOT_SIZE, Instruction, encode
from pybpfasm.isa import CallKind, Imm64
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, MapType, ProgType
from pybpfasm.layout import ByteOrder, Field, Struct
from pybpfasm.maps import MapMember, MapSpec
from pybpfasm.program import Function, ProgramSpec, Subprogram, Template

__all__ = ["write_object"]

_IDENTIFIER: Final = re.compile(r"[A-Za-z_.][A-Za-z0-9_.]*")
_LOADS_OF_MAPS: Final = (Imm64.MAP_FD, Imm64.MAP_VALUE)


def write_object(
    programs: Sequence[ProgramSpec],
    maps: Iterable[MapSpec] = (),
    *,
    functions: Iterable[Subprogram] | Mapping[str, Subprogram] = (),
    external_maps: Iterable[str] = (),
    tcx: bool = False,
    sections: Mapping[str, str] | None = None,
) -> bytes:
    """An ELF object with *programs*, their maps and those of *maps* besides.

    Every program is in the section that libbpf knows its type by; *sections* names another one for a program,
    by its name, as tracing programs need (``{"on_exec": "tp/sched/sched_process_exec"}``). TC programs are in
    ``tc``; with *tcx*, in ``tcx/ingress`` and ``tcx/egress``, which libbpf 1.3 and later know. Subprograms
    are static functions in ``.text``, once for all programs. Maps with contents become data sections.
    For objects that are to be linked with others (`link_objects`): *functions* are subprograms that those may
    call (hidden ones, in C's words: ``extern int f(int) __hidden``), by their declarations in C where these
    matter (``bpftool gen object`` wants the types to be the same); maps named in *external_maps* are theirs
    to define.
    Functions and variables of the kernel (`pybpfasm.extern`) are listed in ``.ksyms`` with their types, which
    whoever loads the object compares with the kernel's.

    The same specs give the same bytes. Raises `ElfError` for what an object can't say: programs of the same
    name, of different licenses or byte orders, a type that has no section of its own.
    """
    writer = _Writer(list(programs), list(maps), set(external_maps), tcx, dict(sections or {}))
    if not isinstance(functions, Mapping):
        return writer.write(list(functions), [])
    return writer.write(list(functions.values()), list(functions))


@dataclass
class _Body:
    """One function's instructions and its place."""

    section: str
    offset: int  # in slots


class _Writer:
    def __init__(
        self,
        programs: list[ProgramSpec],
        maps: list[MapSpec],
        external_maps: set[str],
        tcx: bool,
        sections: dict[str, str],
    ) -> None:
        self.programs = programs
        self.tcx = tcx
        self.section_names = sections
        self.byteorder: ByteOrder = programs[0].byteorder if programs else "little"
        self.types = TypeTable(self.byteorder)
        self.ext = BtfExt()
        self.file = ElfFile(self.byteorder)
        self.code: dict[str, list[bytes]] = {}
        self.slots: dict[str, int] = {}
        self.identities: dict[tuple[object, ...], int] = {}  # what functions are, by number
        self.shared: dict[int, int] = {}  # functions in .text by that number
        self.external_maps = external_maps
        self.exported: set[str] = set()  # names of functions that others may call
        self.prototypes: dict[str, int] = {}  # of those that have a declaration
        self.placed: set[str] = set()  # those of them that are written
        self.config: dict[str, int] = {}  # types of values of the kernel's configuration
        self.externs: dict[str, tuple[Extern, int]] = {}  # with the id of its type
        self.maps = self._all_maps(maps)

    def _all_maps(self, more: list[MapSpec]) -> list[MapSpec]:
        found: dict[str, MapSpec] = {}
        waiting = [m for program in self.programs for m in program.maps] + more
        for spec in waiting:
            name = _map_name(spec)
            if found.setdefault(name, spec) is not spec:
                raise ElfError(f"two different maps are named {name!r}: an object has one of each name")
        return list(found.values())

    def _check(self) -> None:
        names: set[str] = set()
        for program in self.programs:
            name = _program_name(program)
            if name in names:
                raise ElfError(f"two programs are named {name!r}: an object has one of each name")
            if name in self.exported:
                raise ElfError(f"a function and a program are both named {name!r}")
            names.add(name)
            if program.byteorder != self.byteorder:
                raise ElfError(
                    f"program {program.name} is {program.byteorder}-endian, "
                    f"{self.programs[0].name} is {self.byteorder}-endian: an object has one byte order"
                )
            if program.license != self.programs[0].license:
                raise ElfError(
                    f"program {program.name} has the license {program.license!r}, "
                    f"{self.programs[0].name} {self.programs[0].license!r}: an object has one license"
                )
        for unknown in sorted(
            self.external_maps - {_map_name(s) for s in self.maps if not self.data_section(s)}
        ):
            raise ElfError(f"external_maps has {unknown!r}, which is no map of the object")
        for unknown in sorted(set(self.section_names) - names):
            raise ElfError(f"sections={{{unknown!r}: …}} names no program of the object")
        for spec in self.maps:
            name = _map_name(spec)
            if name in names:
                raise ElfError(f"a map and a program are both named {name!r}")
            if not _IDENTIFIER.fullmatch(name):
                raise ElfError(f"map {name!r}: a map in an object has the name of a C variable")

    # Sections.
    def _section_name(self, program: ProgramSpec) -> str:
        given = self.section_names.get(_program_name(program)) or getattr(program, "section", None)
        if isinstance(given, str):
            return given
        name = section_of(
            program.type,
            program.attach_type,
            program.prog_flags,
            tcx=self.tcx,
            attach_to=program.attach_to,
        )
        if name is None:
            attach = "" if program.attach_type is None else f" ({program.attach_type.name})"
            raise ElfError(
                f"program {program.name}: there is no section for {program.type.name}{attach} with the load "
                f"flags {program.prog_flags:#x}; name one with sections={{{program.name!r}: …}}"
            )
        return name

    # Programs.
    def write(self, functions: list[Subprogram], declarations: list[str]) -> bytes:
        """The object's bytes."""
        code: dict[str, FileSection] = {}
        shared = self._carrier(functions)
        for function, declaration in zip(functions, declarations, strict=False):
            self._declare_function(function, declaration)
        self._check()
        if any(len(program.functions) > 1 for program in [*self.programs, *shared]):
            code[".text"] = FileSection(".text", SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, align=8)
        for program in self.programs:
            name = self._section_name(program)
            if name == ".text":
                raise ElfError(f"program {program.name}: .text is the section of subprograms")
            if name not in code:
                code[name] = FileSection(name, SHT_PROGBITS, SHF_ALLOC | SHF_EXECINSTR, align=8)
        self.text_sections = code
        for section in code.values():
            self.file.add(section)
            self.code[section.name] = []
            self.slots[section.name] = 0
        self._data_sections()
        self._map_definitions()
        for program in self.programs:
            self._program(program, self._section_name(program))
        for program in shared:
            self._program(program, None)
        for section in code.values():
            section.data = b"".join(self.code[section.name])
        if self.programs:
            license = self.programs[0].license.encode() + b"\0"
            section = self.file.add(FileSection("license", SHT_PROGBITS, SHF_ALLOC | SHF_WRITE, license))
            self.file.symbols["license"] = FileSymbol(
                "_license", section, 0, len(license), STB_GLOBAL, STT_OBJECT
            )
            char = self.types.add_int("char", 1, signed=True)
            var = self.types.add_var("_license", self.types.add_array(char, len(license)))
            self.types.add_datasec("license", len(license), [(var, 0, len(license))])
        ksyms = [type_id for extern, type_id in self.externs.values() if extern.kind != "external"]
        if self.config:
            self.types.add_extern_section(KCONFIG, self.config.values())
        if ksyms:
            self.types.add_extern_section(".ksyms", ksyms)
        ext = self.ext.to_bytes(self.types)
        self.file.add(FileSection(".BTF", SHT_PROGBITS, data=self.types.to_bytes(), align=4))
        if self.ext.func_info or self.ext.core_relo:
            self.file.add(FileSection(".BTF.ext", SHT_PROGBITS, data=ext, align=4))
        return self.file.to_bytes()

    def _carrier(self, functions: list[Subprogram]) -> list[ProgramSpec]:
        """A program that calls *functions*, of which only these are written."""
        for function in functions:
            self.exported.add(function.name)
        if not functions:
            return []

        def call_all(b: Asm, _: Struct) -> None:
            for function in functions:
                b.call(function)
            b.ret(0)

        made: Template[[]] = Template(call_all, ProgType.UNSPEC, None, SkBuff, "functions", "", 0, False)
        spec = made.build_for(self.byteorder)
        self.maps = self._all_maps([*self.maps, *spec.maps])
        return [spec]

    def _declare_function(self, function: Subprogram, declaration: str) -> None:
        """Note the type that others know a function by."""
        builder = BtfBuilder(self.byteorder)
        try:
            name, type_id = declare(builder, declaration)
        except BtfError as error:
            raise ElfError(str(error)) from None
        btf = Btf.parse(builder.to_bytes())
        t = btf.type(type_id)
        given = len(function.arguments) + (function.context is not None)
        if t.kind != Kind.FUNC or name != function.name or len(btf.type(t.type_id).params) != given:
            raise ElfError(
                f"{declaration!r} does not declare function {function.name}, which takes {given} arguments"
            )
        self.prototypes[name] = self.types.take(btf, [t.type_id])[t.type_id]

    def _program(self, program: ProgramSpec, name: str | None) -> None:
        """Write the functions of a program, the main one to section *name*, or not at all."""
        btf_data = program.btf()
        functions = sorted(program.functions, key=lambda function: function.slot)
        starts = [function.slot for function in functions] + [program.slots]
        if not functions or starts[0] != 0:
            raise ElfError(f"program {program.name} does not begin with a function")
        pieces: list[list[Instruction]] = [[] for _ in functions]
        slot, index = 0, 0
        for insn in program.instructions:
            while slot >= starts[index + 1]:
                index += 1
            pieces[index].append(insn)
            slot += insn.slots
        debug = _Debug(self, program, btf_data) if btf_data else None
        # Where each function goes: the main one behind those of its section, others into .text, where one
        # that is there already serves again.
        identities = self._identities(functions, pieces, debug)
        bodies: list[_Body] = []
        new: list[bool] = []
        for index, function in enumerate(functions):
            section = ".text" if index else name
            if section is None:
                bodies.append(_Body("", 0))
                new.append(False)
                continue
            if index:
                known = self.shared.get(identities[index])
                bodies.append(_Body(section, self.slots[section] if known is None else known))
                new.append(known is None)
                if known is not None:
                    continue
                self.shared[identities[index]] = self.slots[section]
            else:
                bodies.append(_Body(section, self.slots[section]))
                new.append(True)
            self._place(
                function.name if index else _program_name(program),
                bodies[-1],
                starts[index + 1] - starts[index],
                main=not index,
                hidden=function.context is None,
            )
            self.slots[section] += starts[index + 1] - starts[index]
        for index, piece in enumerate(pieces):
            if new[index]:
                self._emit(program, starts, index, piece, bodies)
                if debug is not None:
                    debug.place(starts[index], starts[index + 1], bodies[index])

    def _place(self, name: str, body: _Body, slots: int, *, main: bool, hidden: bool) -> None:
        key = f"program {name}" if main else f"function {body.offset}"
        exported = not main and name in self.exported
        if exported:
            if name in self.placed:
                raise ElfError(f"two different functions are named {name!r}: an object has one of each name")
            self.placed.add(name)
        self.file.symbols[key] = FileSymbol(
            name,
            self.text_sections[body.section],
            body.offset * SLOT_SIZE,
            slots * SLOT_SIZE,
            STB_GLOBAL if main or exported else STB_LOCAL,
            STT_FUNC,
            STV_HIDDEN if exported and hidden else STV_DEFAULT,
        )

    def _identities(
        self, functions: list[Function], pieces: list[list[Instruction]], debug: _Debug | None
    ) -> list[int]:
        """A number for each function, the same for functions of all programs that are alike: in name, lines,
        instructions, and the functions that they call."""
        places = {function.slot: index for index, function in enumerate(functions)}
        calls: list[list[int | None]] = []  # for each function, what each of its instructions leads to
        for function, piece in zip(functions, pieces, strict=True):
            slot = function.slot
            calls.append([])
            for insn in piece:
                target = insn.callee(slot)
                calls[-1].append(None if target is None else places.get(target, -1))
                slot += insn.slots
        numbers = [-1] * len(functions)
        for index in _callees_first(calls):
            out: list[object] = [functions[index].name, None if debug is None else debug.signature(index)]
            for insn, callee in zip(pieces[index], calls[index], strict=True):
                if callee is not None:
                    known: object = None if callee < 0 else numbers[callee]
                    if known == -1:  # in a circle, of which there is no first one
                        known = functions[callee].name
                    out.append((insn.opcode, insn.dst, insn.src, known))
                    continue
                known_by = (MapSpec, CoreRelocation, Extern)
                reference = insn.reference if isinstance(insn.reference, known_by) else None
                out.append((insn.opcode, insn.dst, insn.src, insn.offset, insn.imm, insn.imm_high, reference))
            numbers[index] = self.identities.setdefault(tuple(out), len(self.identities))
        return numbers

    def _emit(
        self,
        program: ProgramSpec,
        starts: list[int],
        index: int,
        piece: list[Instruction],
        bodies: list[_Body],
    ) -> None:
        body = bodies[index]
        section = self.text_sections[body.section]
        slot = starts[index]
        out: list[Instruction] = []
        for insn in piece:
            at = (body.offset + slot - starts[index]) * SLOT_SIZE
            target = insn.callee(slot)
            if isinstance(insn.reference, CoreRelocation):
                insn = self._core(body.section, at, insn, insn.reference)
            elif isinstance(insn.reference, Extern):
                insn = self._extern(program, insn, insn.reference, section, at)
            elif target is not None:
                if target == 0:
                    raise ElfError(
                        f"program {program.name} calls itself in slot {slot}, which no kernel takes"
                    )
                callee = bisect.bisect_left(starts, target)
                if target >= program.slots or starts[callee] != target:
                    raise ElfError(
                        f"program {program.name}: the instruction in slot {slot} refers to slot {target}, "
                        "where no function begins"
                    )
                place = bodies[callee].offset
                section.relocations.append((at, "section .text", R_BPF_64_64 if insn.wide else R_BPF_64_32))
                if insn.wide:
                    insn = Instruction(insn.opcode, insn.dst, 0, 0, place * SLOT_SIZE)
                else:
                    insn = Instruction(insn.opcode, insn.dst, insn.src, 0, place - 1)
            elif insn.opcode == isa.LD_IMM64 and insn.src in _LOADS_OF_MAPS:
                reference = insn.reference
                if not isinstance(reference, MapSpec):
                    raise ElfError(
                        f"program {program.name}: the instruction in slot {slot} loads a map by number; "
                        "an object holds maps by name"
                    )
                insn = self._map_reference(program, insn, reference, section, at)
            elif (insn.opcode == isa.LD_IMM64 and insn.src != Imm64.VALUE) or (
                insn.opcode == isa.OP_CALL and insn.src == CallKind.KFUNC
            ):
                raise ElfError(
                    f"program {program.name}: the instruction in slot {slot} names something of one kernel "
                    "by its number there, which an object for all kernels can't"
                )
            out.append(insn)
            slot += insn.slots
        self.code[body.section].append(encode(out, self.byteorder))

    def _core(self, section: str, at: int, insn: Instruction, relocation: CoreRelocation) -> Instruction:
        """Leave the question that an instruction asks of the kernel's types to whoever loads the object."""
        type_id = self.types.take(relocation.local, [relocation.type_id]).get(relocation.type_id, 0)
        self.ext.core_relo.setdefault(section, []).append(
            CoreRelo(at, type_id, self.types.string(relocation.access), relocation.kind)
        )
        if relocation.kind == CoreKind.TYPE_ID_LOCAL:
            return Instruction(insn.opcode, insn.dst, insn.src, insn.offset, type_id)
        return insn

    def _extern(
        self, program: ProgramSpec, insn: Instruction, extern: Extern, section: FileSection, at: int
    ) -> Instruction:
        """Name what the kernel has to define, as clang does."""
        known = self.externs.get(extern.name)
        if known is None:
            self.externs[extern.name] = (extern, self._declare(program, extern))
        elif known[0] != extern:
            # One that somebody can't do without is not weak.
            extern = replace(known[0], weak=known[0].weak and extern.weak)
            self.externs[extern.name] = (extern, known[1])
        self.file.symbols[f"extern {extern.name}"] = FileSymbol(
            extern.name, None, 0, 0, STB_WEAK if extern.weak else STB_GLOBAL, STT_NOTYPE
        )
        section.relocations.append((at, f"extern {extern.name}", R_BPF_64_64 if insn.wide else R_BPF_64_32))
        if insn.wide:
            return Instruction(insn.opcode, insn.dst)
        return Instruction(insn.opcode, 0, CallKind.LOCAL, 0, -1)

    def _declare(self, program: ProgramSpec, extern: Extern) -> int:
        """The id of the type of what the kernel has to define."""
        declared = extern.declaration()
        if declared is None:
            call = 'kfunc("int NAME(struct sk_buff *skb, u64 flags)")'
            if extern.kind == "ksym":
                call = 'ksym("struct rq NAME")'
            raise ElfError(
                f"program {program.name} names {extern.name} of the kernel; no declaration of it is known: "
                f"write it out, {call.replace('NAME', extern.name)}"
            )
        btf, type_id = declared
        return self.types.take(btf, [type_id])[type_id]

    def _config(
        self, program: ProgramSpec, insn: Instruction, spec: ObjectMap, section: FileSection, at: int
    ) -> Instruction:
        """Name a value of the kernel's configuration."""
        value = next((one for one in spec.config if one.offset == insn.imm_high), None)
        if value is None or spec.types is None:
            raise ElfError(f"program {program.name} names no value of the kernel's configuration")
        if value.name not in self.config:
            btf = Btf.parse(spec.types[0])
            var = next(
                btf.type(entry.type_id)
                for entry in btf.type(spec.types[2]).entries
                if btf.type(entry.type_id).name == value.name
            )
            type_id = self.types.take(btf, [var.type_id])[var.type_id]
            self.config[value.name] = self.types.add_var(value.name, type_id, Linkage.EXTERN)
        self.file.symbols[f"extern {value.name}"] = FileSymbol(
            value.name, None, 0, 0, STB_WEAK if value.weak else STB_GLOBAL, STT_NOTYPE
        )
        section.relocations.append((at, f"extern {value.name}", R_BPF_64_64))
        return Instruction(insn.opcode, insn.dst)

    def _map_reference(
        self, program: ProgramSpec, insn: Instruction, spec: MapSpec, section: FileSection, at: int
    ) -> Instruction:
        value = insn.imm_high if insn.src == Imm64.MAP_VALUE else None
        if isinstance(spec, ObjectMap) and spec.config:
            return self._config(program, insn, spec, section, at)
        data = self.data_section(spec)
        if data is None:
            if value is not None:
                raise ElfError(
                    f"program {program.name} takes the address of a value of map {spec.name}; in an object "
                    "only static data has such addresses: give the map contents"
                )
            section.relocations.append((at, f"map {_map_name(spec)}", R_BPF_64_64))
            return Instruction(insn.opcode, insn.dst)
        if value is None:
            raise ElfError(
                f"program {program.name} refers to map {spec.name} as a map; in an object it is static data, "
                "which has an address only"
            )
        section.relocations.append((at, f"section {data}", R_BPF_64_64))
        return Instruction(insn.opcode, insn.dst, 0, 0, value)

    # Maps.
    @staticmethod
    def data_section(spec: MapSpec) -> str | None:
        """The data section that a map is written as, ``None`` for one that is defined in ``.maps``."""
        name = _map_name(spec)
        if isinstance(spec, ObjectMap) and spec.config:
            return KCONFIG
        if is_data_section(name) and spec.type is MapType.ARRAY and spec.max_entries == 1:
            return name
        if spec.contents is None:
            return None
        kind = ".rodata" if spec.flags & BPF_F_RDONLY_PROG else ".data"
        return f"{kind}.{name}"

    def _data_sections(self) -> None:
        for spec in self.maps:
            name = self.data_section(spec)
            if name is None or name == KCONFIG:
                continue
            size = spec.value_size
            contents = spec.contents
            flags = SHF_ALLOC if name.startswith(".rodata") else SHF_ALLOC | SHF_WRITE
            if contents is None and not name.startswith(".bss"):
                contents = bytes(size)
            if contents is None or (name.startswith(".bss") and not any(contents)):
                section = self.file.add(FileSection(name, SHT_NOBITS, flags, b"", 8, size))
            else:
                section = self.file.add(FileSection(name, SHT_PROGBITS, flags, contents, 8))
            described = spec.btf(self.byteorder)
            if described is None:
                continue
            data, _, value_id = described
            btf = Btf.parse(data)
            if value_id and btf.type(value_id).kind == Kind.DATASEC:
                self.types.take(btf, [value_id])
                variables = [
                    (
                        btf.type(v).name,
                        offset,
                        s,
                        STB_LOCAL if btf.type(v).linkage == Linkage.STATIC else STB_GLOBAL,
                    )
                    for v, offset, s in btf.type(value_id).entries
                ]
            else:
                value = self.types.take(btf, [value_id]).get(value_id, 0)
                # The variable has the name of its type, or is static and has that of the section.
                variable = re.sub(r"\W", "_", btf.type(value_id).name or spec.name.lstrip("."))
                if not value_id or value == 0:
                    continue
                linkage = Linkage.GLOBAL if btf.type(value_id).name else Linkage.STATIC
                var = self.types.add_var(variable, value, linkage)
                self.types.add_datasec(name, size, [(var, 0, size)])
                variables = [(variable, 0, size, STB_GLOBAL if linkage else STB_LOCAL)]
            for variable, offset, length, bind in variables:
                self._variable(variable, section, offset, length, bind)

    def _variable(self, name: str, section: FileSection, offset: int, size: int, bind: int) -> None:
        key = f"variable {name}" if bind != STB_LOCAL else f"variable {section.name}+{offset}"
        if key in self.file.symbols:
            return  # two structures of one name
        self.file.symbols[key] = FileSymbol(name, section, offset, size, bind, STT_OBJECT)

    def _map_definitions(self) -> None:
        # libbpf makes maps in this order, and those that others hold from the start have to be there.
        definitions = sorted(
            (spec for spec in self.maps if self.data_section(spec) is None),
            key=lambda spec: bool(spec.initial),
        )
        if not definitions:
            return
        names = {_program_name(p): f"program {_program_name(p)}" for p in self.programs}
        names |= {_map_name(spec): f"map {_map_name(spec)}" for spec in definitions}
        entries: list[tuple[int, int, int]] = []
        at = 0
        section = FileSection(".maps", SHT_PROGBITS, SHF_ALLOC | SHF_WRITE, align=8)
        if not all(_map_name(spec) in self.external_maps for spec in definitions):
            self.file.add(section)
        for spec in definitions:
            type_id, size = self._definition(spec)
            if _map_name(spec) in self.external_maps:
                entries.insert(0, (self.types.add_var(_map_name(spec), type_id, Linkage.EXTERN), 0, size))
                self.file.symbols[f"map {_map_name(spec)}"] = FileSymbol(
                    _map_name(spec), None, 0, 0, STB_GLOBAL, STT_NOTYPE
                )
                continue
            for index, name in spec.initial:
                if name not in names:
                    raise ElfError(f"map {spec.name}: entry {index} is {name!r}, which is not in the object")
                section.relocations.append((at + size + 8 * index, names[name], R_BPF_64_64))
            size += 8 * max((index + 1 for index, _ in spec.initial), default=0)
            entries.append((self.types.add_var(_map_name(spec), type_id), at, size))
            self.file.symbols[f"map {_map_name(spec)}"] = FileSymbol(
                _map_name(spec), section, at, size, STB_GLOBAL, STT_OBJECT
            )
            at += size
        section.data = bytes(at)
        self.types.add_data_section(".maps", at, entries)

    def _definition(self, spec: MapSpec, *, inner: bool = False) -> tuple[int, int]:
        """The structure that defines a map, as libbpf's ``__uint`` and ``__type`` macros write it."""
        members: list[tuple[str, int, int]] = []

        def add(name: str, type_id: int) -> None:
            members.append((name, type_id, 64 * len(members)))

        def add_number(name: str, value: int) -> None:
            if not 0 <= value <= 0xFFFFFFFF:
                raise ElfError(f"map {spec.name}: {name}={value:#x} does not fit the 32 bits of a definition")
            integer = self.types.add_int("int", 4, signed=True)
            add(name, self.types.add_ptr(self.types.add_array(integer, value, self._index_type())))

        functions = spec.type is MapType.PROG_ARRAY and bool(spec.initial)
        add_number("type", int(spec.type))
        described = spec.btf(self.byteorder)
        ids: dict[int, int] = {}
        roots: list[int] = []
        if described is not None:
            roots = [type_id for type_id in described[1:] if type_id]
            ids = self.types.take(Btf.parse(described[0]), roots)
        for name, size, source, member in (
            ("key", spec.key_size, described[1] if described else 0, spec.key),
            ("value", spec.value_size, described[2] if described else 0, spec.value),
        ):
            if name == "value" and (spec.inner is not None or functions):
                continue
            if source:
                add(name, self.types.add_ptr(ids[source]))
            elif described is None and _has_layout(member):
                add(name, self.types.add_ptr(member.btf(self.types)))  # type: ignore[union-attr]
            elif size:
                add_number(f"{name}_size", size)
        if spec.max_entries:
            add_number("max_entries", spec.max_entries)
        if spec.flags:
            add_number("map_flags", spec.flags)
        if spec.map_extra:
            add_number("map_extra", spec.map_extra)
        if getattr(spec, "pinned", False):
            add_number("pinning", 1)
        size = 8 * len(members)
        if spec.inner is not None or functions:
            if inner:
                raise ElfError(f"map {spec.name}: maps are nested only once")
            if spec.inner is not None:
                element, _ = self._definition(spec.inner, inner=True)
            else:
                element = self.types.add_func_proto(self.types.add_int("int", 4, signed=True))
            pointer = self.types.add_ptr(element)
            members.append(("values", self.types.add_array(pointer, 0, self._index_type()), 8 * size))
        return self.types.add_struct("", size, members), size

    def _index_type(self) -> int:
        return self.types.add_int("__ARRAY_SIZE_TYPE__", 4)


class _Debug:
    """A program's function and line records, with their types and strings in the object's BTF."""

    def __init__(self, writer: _Writer, program: ProgramSpec, btf_data: bytes) -> None:
        self.writer = writer
        btf = Btf.parse(btf_data)
        self.functions = unpack_func_info(program.func_info(), program.byteorder)
        self.lines = unpack_line_info(program.line_info(), program.byteorder)
        self.ids = writer.types.take(btf, [record.type_id for record in self.functions])
        self.texts = [
            (record, btf.string(record.file_name_off), btf.string(record.line_off)) for record in self.lines
        ]
        self.starts = [function.slot for function in program.functions] + [program.slots]
        for record in self.functions:
            # What others may call is no static function.
            t = btf.type(record.type_id)
            if t.name in writer.exported and t.linkage == Linkage.STATIC:
                proto = writer.prototypes.get(t.name, self.ids[t.type_id])
                self.ids[t.id] = writer.types.add_func(t.name, proto)

    def signature(self, index: int) -> tuple[object, ...]:
        """The type and the lines of function number *index*."""
        start, stop = self.starts[index], self.starts[index + 1]
        types = [self.ids[record.type_id] for record in within(self.functions, start, start + 1)]
        lines = [
            (record.insn_off - start, file, text, record.line, record.col)
            for record, file, text in self._lines_of(start, stop)
        ]
        return (*types, *lines)

    def _lines_of(self, start: int, stop: int) -> list[tuple[LineInfo, str, str]]:
        """The lines of the slots from *start* to *stop*, with their texts."""
        first, last = (
            bisect.bisect_left(self.texts, at, key=lambda one: one[0].insn_off) for at in (start, stop)
        )
        return self.texts[first:last]

    def place(self, start: int, stop: int, body: _Body) -> None:
        """Add the records of the function in the slots from *start* to *stop*, which goes to *body*."""
        ext, string = self.writer.ext, self.writer.types.string
        shift = body.offset - start
        ext.func_info.setdefault(body.section, []).extend(
            FuncInfo((record.insn_off + shift) * SLOT_SIZE, self.ids[record.type_id])
            for record in within(self.functions, start, stop)
        )
        ext.line_info.setdefault(body.section, []).extend(
            LineInfo((line.insn_off + shift) * SLOT_SIZE, string(file), string(text), line.line, line.col)
            for line, file, text in self._lines_of(start, stop)
        )


def _callees_first(calls: list[list[int | None]]) -> list[int]:
    """The functions, each behind those that it calls, as far as none of these leads back to it."""
    order: list[int] = []
    seen: set[int] = set()
    for root in range(len(calls)):
        waiting = [(root, iter(calls[root]))] if root not in seen else []
        seen.add(root)
        while waiting:
            index, following = waiting[-1]
            callee = next(
                (one for one in following if one is not None and one >= 0 and one not in seen), None
            )
            if callee is None:
                order.append(index)
                waiting.pop()
            else:
                seen.add(callee)
                waiting.append((callee, iter(calls[callee])))
    return order


def _map_name(spec: MapSpec) -> str:
    """The name in an object; of a map that was read from one, in full."""
    return getattr(spec, "symbol", "") or spec.name


def _program_name(program: ProgramSpec) -> str:
    return getattr(program, "symbol", "") or program.name


def _has_layout(member: MapMember) -> bool:
    return isinstance(member, (Field, type))
