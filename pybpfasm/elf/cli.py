# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m pybpfasm elf``: what an object holds."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pybpfasm.core import Extern
from pybpfasm.elf.format import ElfError
from pybpfasm.elf.object import ObjectFile, ObjectMap, ObjectProgram, read_object
from pybpfasm.elf.reader import RawObject, read_raw
from pybpfasm.errors import PybpfasmError
from pybpfasm.instruction import encode

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command with *args*; returns 0, or 1 after an error that was shown. Bad usage exits with 2."""
    parser = _parser()
    options = parser.parse_args(args)
    try:
        data = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
        found = read_object(data)
        if options.extract is not None:
            _write(options.output, _extract(read_raw(data), found, options.extract))
        elif options.listing or options.program is not None:
            print(_listing(found, options.program), end="")
        elif options.btf:
            if found.btf is None:
                raise ElfError("the object has no BTF: compile with -g")
            print(found.btf.dump(), end="")
        elif options.json:
            print(json.dumps(_facts(read_raw(data), found), indent=2))
        else:
            print(_overview(read_raw(data), found), end="")
    except OSError as error:
        print(f"elf: {options.file}: {error.strerror or error}", file=sys.stderr)
        return 1
    except PybpfasmError as error:
        print(f"elf: {options.file}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pybpfasm elf", description="Show what a BPF object holds: programs, maps, sections."
    )
    parser.add_argument("file", help="the object, - for standard input")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="the same facts as JSON")
    what.add_argument(
        "--listing", action="store_true", help="the instructions with the lines of their source"
    )
    what.add_argument("--btf", action="store_true", help="the object's types")
    what.add_argument(
        "--extract",
        metavar="NAME",
        help="the bytes of a section or a program, to a file",
    )
    parser.add_argument("--program", metavar="NAME", help="list the instructions of this program only")
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="where --extract writes to")
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
