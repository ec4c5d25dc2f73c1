# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m pybpfasm elf``: what an object holds; programs and objects to one object."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pybpfasm.cli import ELF_MAGIC, Parser, UsageError, check_output, level_option, load_programs
from pybpfasm.elf.format import ElfError
from pybpfasm.elf.linker import link_objects
from pybpfasm.elf.object import ObjectFile, ObjectMap, ObjectProgram, read_object
from pybpfasm.elf.reader import RawObject, read_raw
from pybpfasm.elf.writer import write_object
from pybpfasm.errors import PybpfasmError
from pybpfasm.extern import Extern
from pybpfasm.instruction import encode
from pybpfasm.kernel.enums import ProgType
from pybpfasm.program import ProgramSpec
from pybpfasm.usage import parse_command

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command with *args*; returns the exit status.

    Raises `PybpfasmError`, for bad usage `pybpfasm.cli.UsageError`, and `OSError`.
    """
    options = parse_command(_parser(), sys.argv[1:] if args is None else args)
    check_output(options.output, options.targets)
    if options.output is not None and options.extract is None:
        _write(options.output, _made(options.targets, options.level))
        return 0
    if len(options.targets) != 1:
        raise UsageError("name one object to list, or give -o FILE to write or link an object")
    target = options.targets[0]
    if not (target == "-" or Path(target).exists()) and ":" in target:
        raise UsageError(f"{target} is no ELF object; to write one, give -o FILE")
    data = sys.stdin.buffer.read() if target == "-" else Path(target).read_bytes()
    if not data.startswith(ELF_MAGIC):
        raise UsageError(f"{target} is no ELF object; to write one of programs, give -o FILE")
    try:
        _show(options, read_raw(data), read_object(data))
    except PybpfasmError as error:
        raise ElfError(f"{target}: {error}") from error
    return 0


def _show(options: argparse.Namespace, raw: RawObject, found: ObjectFile) -> None:
    if options.extract is not None:
        _write(options.output or "-", _extract(raw, found, options.extract))
    elif options.listing or options.program is not None:
        print(_listing(found, options.program), end="")
    elif options.btf:
        if found.btf is None:
            raise ElfError("the object has no BTF: compile with -g")
        print(found.btf.dump(), end="")
    elif options.json:
        print(json.dumps(_facts(raw, found), indent=2))
    else:
        print(_overview(raw, found), end="")


def _made(targets: Sequence[str], level: str | None) -> bytes:
    """The object with the programs and objects that *targets* names."""
    objects: dict[str, bytes] = {}
    specs: list[ProgramSpec] = []
    for target in targets:
        data = Path(target).read_bytes() if Path(target).is_file() else b""
        if not data.startswith(ELF_MAGIC):
            specs += _typed(load_programs(target, level=level), target)
        elif target in objects:
            raise UsageError(f"{target} is named twice")
        else:
            objects[target] = data
    if specs:
        written = write_object(specs)
        if not objects:
            return written
        objects[", ".join(target for target in targets if target not in objects)] = written
    return link_objects(objects)


def _typed(specs: list[ProgramSpec], target: str) -> list[ProgramSpec]:
    """Refuse text and bytes: the section of an object says what type its program has, and they have none."""
    if any(spec.type is ProgType.UNSPEC for spec in specs):
        raise UsageError(
            f"{target} has no program type, which an object must say",
            "name a program in Python, file.py:program, or write its bytes: asm -o FILE.bin",
        )
    return specs


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pybpfasm elf",
        description="Show what a BPF object holds: programs, maps, sections. With -o, write programs as an "
        "object, and link it with the objects that are named beside them.",
        epilog="examples: elf prog.o; elf package.module:program -o prog.o; elf a.o b.o -o both.o",
    )
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="target",
        help="an object to show, - for standard input; or programs to write and objects to link",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="the same facts as JSON")
    what.add_argument(
        "--listing", action="store_true", help="the instructions with the lines of their source"
    )
    what.add_argument("--btf", action="store_true", help="the object's types")
    what.add_argument("--extract", metavar="NAME", help="the bytes of a section or a program, to a file")
    what.add_argument("--program", metavar="NAME", help="list the instructions of this program only")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the object to write, or where --extract writes to"
    )
    level_option(parser)
    return parser


def _write(path: str, data: bytes) -> None:
    if path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        Path(path).write_bytes(data)


def _extract(raw: RawObject, found: ObjectFile, name: str) -> bytes:
    if name in found.programs:
        return encode(found.programs[name].instructions, found.byteorder)
    section = raw.by_name(name) if name else None
    if section is None:
        raise ElfError(f"neither a program nor a section is named {name!r}")
    return section.data if section.data else bytes(section.size)


def _listing(found: ObjectFile, name: str | None) -> str:
    programs = list(found.programs.values()) if name is None else [found.program(name)]
    return "\n".join(program.listing() for program in programs)


def _facts(raw: RawObject, found: ObjectFile) -> dict[str, Any]:
    return {
        "byteorder": found.byteorder,
        "license": found.license,
        "sections": [
            {"name": s.name, "size": s.size, "relocations": len(s.relocations)}
            for s in raw.sections
            if s.index
        ],
        "programs": [
            {
                "name": name,
                "section": program.section,
                "type": program.type.name,
                "attach_type": None if program.attach_type is None else program.attach_type.name,
                "slots": program.slots,
                "functions": [function.name for function in program.functions],
                "maps": [_symbol(spec) for spec in program.maps],
                "needs": _needs(program),
            }
            for name, program in found.programs.items()
        ],
        "maps": [
            {
                "name": name,
                "type": spec.type.name,
                "key_size": spec.key_size,
                "value_size": spec.value_size,
                "max_entries": spec.max_entries,
                "flags": spec.flags,
            }
            for name, spec in found.maps.items()
        ],
        "functions": list(found.functions),
        "notes": list(found.notes),
    }


def _symbol(spec: object) -> str:
    return spec.symbol if isinstance(spec, ObjectMap) else ""


def _needs(program: ObjectProgram) -> list[str]:
    """What of the kernel's types a program asks for, each thing once."""
    shown = (f"{one.kind} {one.name}" if isinstance(one, Extern) else str(one) for one in program.unresolved)
    return list(dict.fromkeys(shown))


def _overview(raw: RawObject, found: ObjectFile) -> str:
    out = [f"{found.byteorder}-endian BPF object, license {found.license or 'not given'}"]
    out += ["", "programs"]
    for name, program in found.programs.items():
        attach = "" if program.attach_type is None else f", {program.attach_type.name}"
        out.append(f"  {name}: {program.type.name}{attach}, section {program.section}, {program.slots} slots")
        if len(program.functions) > 1:
            out.append(f"    calls {', '.join(function.name for function in program.functions[1:])}")
        if program.maps:
            out.append(f"    maps  {', '.join(_symbol(spec) for spec in program.maps)}")
        out += [f"    needs {one}" for one in _needs(program)]
    if not found.programs:
        out.append("  none")
    out += ["", "maps"]
    for name, spec in found.maps.items():
        out.append(
            f"  {name}: {spec.type.name}, key {spec.key_size}, value {spec.value_size} bytes, "
            f"{spec.max_entries} {'entry' if spec.max_entries == 1 else 'entries'}"
            + (f", flags {spec.flags:#x}" if spec.flags else "")
        )
        out += [f"    [{entry}] is {target}" for entry, target in spec.initial]
        out += [f"    +{value.offset} is {value.name}" for value in spec.config]
    if not found.maps:
        out.append("  none")
    out += ["", "sections"]
    width = max(len(section.name) for section in raw.sections)
    for section in raw.sections[1:]:
        count = len(section.relocations)
        out.append(
            f"  {section.name:{width}} {section.size:8} bytes"
            + (f", {count} relocation{'s' if count > 1 else ''}" if count else "")
        )
    out += [f"note: {note}" for note in found.notes]
    return "\n".join(out) + "\n"
