# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Loads the programs and maps of an ELF object.

with load(Path("filter.o").read_bytes()) as loaded:
    loaded.programs["count"].test_run(packet)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from loader.errors import UsageError
from loader.objects import Map, Program, possible_cpus
from loader.vmlinux import kernel_symbol, kernel_types
from pybpfasm.elf import ObjectFile, ObjectMap, ObjectProgram, read_object
from pybpfasm.kernel.enums import MapType, ProgType

if TYPE_CHECKING:
    from pybpfasm.btf import Btf

__all__ = ["LoadedObject", "kernel_symbol", "kernel_types", "load"]

_ATTACHED_BY_TYPE: Final = frozenset({ProgType.EXT, ProgType.STRUCT_OPS})


class LoadedObject:
    """The programs and maps of an object, in the kernel, by their names in the object.

    Owns them: `close`, or the end of a ``with`` block, gives them up.
    """

    def __init__(self, source: ObjectFile) -> None:
        self.source = source
        self.programs: dict[str, Program] = {}
        self.maps: dict[str, Map] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        """Close all descriptors."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    data: bytes | ObjectFile,
    *,
    programs: Iterable[str] | None = None,
    maps: Mapping[str, Map] | None = None,
    types: Btf | None = None,
) -> LoadedObject:
    """Load an object, or those of its programs that are named; without names, all but those that the object
    marks as optional (``SEC("?tc")``).

    *maps* are used instead of those that the object defines. *types* is the kernel's BTF (default: the
    running one's, read only if a program asks for it). Raises `ElfError`, `CoreError`, `UsageError` for a
    program of a type that is not known or not supported, and the errors of `Map.create` and `Program.load`.
    """
    source = data if isinstance(data, ObjectFile) else read_object(data)
    if programs is None:
        programs = [name for name, one in source.programs.items() if not one.section.startswith("?")]
    chosen = {name: source.program(name) for name in programs}
    for name, program in chosen.items():
        _check_type(name, program)
    if any(program.unresolved for program in chosen.values()):
        from pybpfasm.core import CoreResolver

        resolver = CoreResolver(kernel_types() if types is None else types, kernel_symbol)
        chosen = {name: program.resolve(resolver) for name, program in chosen.items()}
    loaded = LoadedObject(source)
    given = dict(maps or {})
    try:
        for name, spec in source.maps.items():
            if name in given:
                loaded.maps[name] = given[name]
            else:
                if spec.config:
                    spec = replace(spec, contents=_configured(source, spec))
                made = Map.create(spec, max_entries=spec.entries(possible_cpus(), mmap.PAGESIZE))
                loaded.maps[name] = loaded._stack.enter_context(made)
        for name, program in chosen.items():
            loaded.programs[name] = loaded._stack.enter_context(_load(program, loaded.maps))
        for name, spec in source.maps.items():
            for entry, target in spec.initial:
                _set(loaded, name, spec.type, entry, target)
    except BaseException:
        loaded.close()
        raise
    return loaded


def _configured(source: ObjectFile, spec: ObjectMap) -> bytes:
    """The values of this kernel's configuration that an object asks for."""
    from pybpfasm.elf.kconfig import config_bytes, parse_config

    release = os.uname().release
    config: dict[str, str] = {}
    if any(value.name.startswith("CONFIG_") for value in spec.config):
        config = parse_config(_kernel_config(release))
    return config_bytes(spec.config, spec.value_size, source.byteorder, release, config)


def _kernel_config(release: str) -> str:
    tried = [Path(f"/boot/config-{release}"), Path("/proc/config.gz")]
    for path in tried:
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if path.suffix == ".gz":
            import gzip

            data = gzip.decompress(data)
        return data.decode("utf-8", "replace")
    raise UsageError(
        "the object asks for values of the kernel's configuration, which cannot be read: there is neither "
        + " nor ".join(map(str, tried)),
        hint="put the kernel's configuration there, or modprobe configs",
    )


def _check_type(name: str, program: ObjectProgram) -> None:
    """Refuse what the kernel would refuse in words that tell nobody why."""
    if program.type is ProgType.UNSPEC:
        raise UsageError(
            f"program {name} is in section {program.section!r}, which is the name of no program type",
            hint=f"say what it is: read_object(data, types={{{program.section!r}: ProgType.…}})",
        )
    if program.type in _ATTACHED_BY_TYPE:
        raise UsageError(
            f"program {name} (section {program.section!r}) is of type {program.type.name}, which is loaded "
            "for one function or structure of the kernel; that is not supported here",
            hint="load it with libbpf or bpftool, or name the programs to load: load(data, programs=[…])",
        )


def _load(program: ObjectProgram, maps: Mapping[str, Map]) -> Program:
    return Program.load(
        program, {spec.name: maps[getattr(spec, "symbol", spec.name)] for spec in program.maps}
    )


def _set(loaded: LoadedObject, name: str, type: MapType, entry: int, target: str) -> None:
    held = loaded.programs.get(target) if type is MapType.PROG_ARRAY else loaded.maps.get(target)
    if held is not None:
        loaded.maps[name].update(entry, held.fd)
