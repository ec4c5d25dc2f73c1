# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The BTF of an object as the kernel takes it: with what compilers leave to whoever reads the object."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection

from pybpfasm.btf import Btf, BtfError, BtfType, Kind, Linkage
from pybpfasm.btf.format import join, struct_order
from pybpfasm.elf.format import ElfError
from pybpfasm.elf.kconfig import KCONFIG, config_layout
from pybpfasm.elf.reader import RawObject
from pybpfasm.elf.types import words_of

Layout = tuple[int, list[tuple[int, int, int]]]


def for_kernel(btf: Btf, layout: Callable[[BtfType], Layout | None], hidden: Collection[str] = ()) -> bytes:
    """The BTF of an object file as ``BPF_BTF_LOAD`` takes it; ids and string offsets stay.

    *layout* gives the size and the entries of a data section, which compilers leave open, or ``None`` where
    the file has no such section: that is one of externs, which no kernel takes, and becomes an empty
    structure, as does a variable of type void. External functions become typedefs, external variables plain
    ones; functions in *hidden* become static, so that the verifier looks into them where they are called.
    Raises `BtfError`.
    """
    end = struct_order(btf.byteorder)
    out = bytearray()
    for type_id in range(1, btf.count):
        t = btf.type(type_id)
        name, info, third, words = t._word(0), t._word(1), t._word(2), words_of(t)
        if t.kind == Kind.DATASEC:
            found = layout(t)
            if found is None:
                name, info, third, words = 0, Kind.STRUCT << 24, 0, []
            else:
                third, entries = found
                words = [word for entry in entries for word in entry]
                info = len(entries) | Kind.DATASEC << 24
        elif t.kind == Kind.FUNC and t.vlen > 1:
            info = Kind.TYPEDEF << 24
        elif t.kind == Kind.FUNC and t.name in hidden:
            info = Kind.FUNC << 24
        elif t.kind == Kind.VAR and words[0] > 1:
            words = [1]
            if btf.resolve(third).kind == Kind.VOID:
                name, info, third, words = 0, Kind.STRUCT << 24, 0, []
        out += struct.pack(f"{end}{3 + len(words)}I", name, info, third, *words)
    if len(out) > 1 << 24:
        raise BtfError(f"the BTF types take {len(out)} bytes, more than the kernel loads")
    return join(btf.byteorder, bytes(out), btf._strings)


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
