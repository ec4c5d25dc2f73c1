# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The maps of an object: those defined in ``.maps``, its data sections, and the kernel's configuration that
it asks for."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from typing import Final

from pybpfasm.btf import Kind
from pybpfasm.elf.debug import Debug
from pybpfasm.elf.definition import Definition, read_definition
from pybpfasm.elf.format import SHT_NOBITS, SHT_PROGBITS, STB_WEAK, STT_FUNC, ElfError, is_data_section
from pybpfasm.elf.kconfig import KCONFIG, ConfigValue, config_layout
from pybpfasm.elf.reader import RawObject, Section
from pybpfasm.kernel.enums import BPF_F_MMAPABLE, BPF_F_RDONLY_PROG, MapType
from pybpfasm.layout import ByteOrder
from pybpfasm.maps import WITHOUT_BTF, MapSpec

__all__ = ["Maps", "ObjectMap", "kernel_name"]


@dataclass(frozen=True, eq=False, repr=False)
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

    def entries(self, cpus: int, page: int = 4096) -> int:
        """As libbpf fills in what an object leaves open: perf events get an entry for each CPU, ring buffers
        the next size that the kernel takes."""
        if self.type is MapType.PERF_EVENT_ARRAY and not self.max_entries:
            return cpus
        if self.type in (MapType.RINGBUF, MapType.USER_RINGBUF) and self.max_entries:
            return max(page, 1 << (self.max_entries - 1).bit_length())
        return self.max_entries

    def refusal(self) -> None:
        """Nothing: what an object leaves open is filled in by whoever loads it (`entries`)."""

    def btf(self, byteorder: ByteOrder = "little") -> tuple[bytes, int, int] | None:
        """The object's BTF with the type ids of key and value, or ``None`` where the kernel takes none."""
        return self.types


_NAME_LENGTH: Final = 15  # BPF_OBJ_NAME_LEN without the terminating zero


def kernel_name(symbol: str, otherwise: str) -> str:
    """*symbol* as the kernel takes names, cut to 15 characters; *otherwise* where nothing is left of it."""
    return re.sub(r"[^A-Za-z0-9_.]", "_", symbol)[:_NAME_LENGTH] or otherwise


class Maps:
    """The maps of an object: ``found`` by their full names, and by the places that code refers to.

    ``at`` are those of ``.maps`` by section and byte, ``data`` the data sections by section, ``config`` the
    bytes of the map of the kernel's configuration at which values are, by name. ``notes`` say what was left
    as it is.
    """

    def __init__(self, raw: RawObject, debug: Debug) -> None:
        self.raw = raw
        self.debug = debug
        self.found: dict[str, ObjectMap] = {}
        self.at: dict[tuple[int, int], ObjectMap] = {}
        self.data: dict[int, ObjectMap] = {}
        self.config: dict[str, int] = {}
        self.notes: list[str] = []
        self._used: set[str] = set()

    @classmethod
    def read(cls, raw: RawObject, debug: Debug) -> Maps:
        """The maps of *raw*; raises `ElfError`."""
        maps = cls(raw, debug)
        maps._read_defined()
        maps._read_data()
        maps._read_config()
        return maps

    def _name(self, symbol: str) -> str:
        """A name of at most 15 characters that no other map of the object has."""
        base = kernel_name(symbol, "map")
        name, number = base, 1
        while name in self._used:
            number += 1
            suffix = f"_{number}"
            name = base[: _NAME_LENGTH - len(suffix)] + suffix
        self._used.add(name)
        return name

    def _read_defined(self) -> None:
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
        btf, kernel = self.debug.btf, self.debug.kernel
        if btf is None or kernel is None:
            raise ElfError("maps need BTF: compile with -g", section=".maps")
        described = kernel.by_name(".maps", Kind.DATASEC)
        if described is None:
            raise ElfError("the BTF does not describe the maps: compile with -g", section=".maps")
        sizes: dict[str, int] = {}  # of the definitions, behind which initial values are
        for entry in described.entries:
            var = btf.type(entry.type_id)
            if var.kind != Kind.VAR:
                raise ElfError("the BTF of the section lists what is no variable", section=".maps")
            spec = self._map(read_definition(btf, var.type_id, var.name), var.name)
            if var.name in self.found:
                raise ElfError(f"a second map {var.name!r}", section=".maps", offset=entry.offset)
            self.found[var.name] = self.at[section.index, entry.offset] = spec
            sizes[var.name] = btf.resolve(var.type_id).size
        self._initial_values(section, sizes)

    def _map(self, definition: Definition, symbol: str) -> ObjectMap:
        numbers, key, value = definition.numbers, definition.key, definition.value
        try:
            type = MapType(numbers["type"])
        except ValueError:
            raise ElfError(f"map {symbol!r} has the unknown type {numbers['type']}") from None
        name = self._name(symbol)
        inner = None if definition.inner is None else self._map(definition.inner, f"{symbol}.inner")
        typed = bool(value.type_id) and bool(key.type_id or not key.size) and type not in WITHOUT_BTF
        return ObjectMap(
            name,
            type,
            key.size or None,
            value.size or None,
            numbers.get("max_entries", 0),
            numbers.get("map_flags", 0),
            numbers.get("map_extra", 0),
            inner,
            symbol=symbol,
            types=(self.debug.kernel_btf, key.type_id, value.type_id) if typed else None,
            pinned=bool(numbers.get("pinning", 0)),
        )

    def _initial_values(self, section: Section, sizes: dict[str, int]) -> None:
        """What is in maps from the start: a relocation for each, behind the map's definition."""
        starts = sorted((offset, spec.symbol) for (_, offset), spec in self.at.items())
        initial: dict[str, list[tuple[int, str]]] = {}
        for relocation in section.relocations:
            index = bisect.bisect_right(starts, relocation.offset, key=lambda start: start[0]) - 1
            if index < 0:
                raise ElfError("an initial value is in no map", section=".maps", offset=relocation.offset)
            start, symbol = starts[index]
            entry, rest = divmod(relocation.offset - start - sizes[symbol], 8)
            if entry < 0 or rest:
                raise ElfError(
                    f"a value of map {symbol!r} is at no entry", section=".maps", offset=relocation.offset
                )
            target = self.at.get((relocation.symbol.section, relocation.symbol.value))
            if target is None and relocation.symbol.type != STT_FUNC:
                raise ElfError(
                    f"entry {entry} of map {symbol!r} is {relocation.symbol.name!r}, "
                    "which is no map and no program",
                    section=".maps",
                    offset=relocation.offset,
                )
            name = relocation.symbol.name if target is None else target.symbol
            initial.setdefault(symbol, []).append((entry, name))
        for symbol, values in initial.items():
            # The map is referred to by identity from here on, so the values go into the same object.
            object.__setattr__(self.found[symbol], "initial", tuple(sorted(values)))

    def _read_data(self) -> None:
        for section in self.raw.sections:
            if not is_data_section(section.name) or not section.size:
                continue
            if section.type not in (SHT_PROGBITS, SHT_NOBITS):
                continue
            if section.type == SHT_NOBITS and not section.name.startswith(".bss"):
                raise ElfError("static data that has no bytes in the file", section=section.name)
            if section.name in self.found:
                raise ElfError("a second data section of this name", section=section.name)
            kernel = self.debug.kernel
            described = None if kernel is None else kernel.by_name(section.name, Kind.DATASEC)
            spec = ObjectMap(
                self._name(section.name),
                MapType.ARRAY,
                4,
                section.size,
                1,
                BPF_F_RDONLY_PROG if section.name.startswith(".rodata") else 0,
                contents=section.data if section.type == SHT_PROGBITS else None,
                symbol=section.name,
                types=(self.debug.kernel_btf, 0, described.id) if described and described.vlen else None,
            )
            self.found[section.name] = self.data[section.index] = spec
            if section.relocations:
                self.notes.append(
                    f"section {section.name}: {len(section.relocations)} addresses in static data are left "
                    "as they are, 0 or an offset; libbpf does the same"
                )

    def _read_config(self) -> None:
        btf = self.debug.btf
        section = None if btf is None else btf.by_name(KCONFIG, Kind.DATASEC)
        if btf is None or section is None or not section.vlen:
            return
        if KCONFIG in self.found:
            raise ElfError("a section and a map of the kernel's configuration", section=KCONFIG)
        weak = frozenset(s.name for s in self.raw.symbols if s.bind == STB_WEAK)
        size, values = config_layout(btf, section, weak)
        self.config = {value.name: value.offset for value in values}
        self.found[KCONFIG] = ObjectMap(
            self._name(KCONFIG),
            MapType.ARRAY,
            4,
            size,
            1,
            BPF_F_MMAPABLE | BPF_F_RDONLY_PROG,
            symbol=KCONFIG,
            types=(self.debug.kernel_btf, 0, section.id),
            config=tuple(values),
        )
