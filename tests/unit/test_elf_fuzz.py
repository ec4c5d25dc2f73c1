# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The ELF reader under damage: it may only ever raise ElfError, in little time and memory."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybpfasm.btf import Btf
from pybpfasm.core import CoreResolver
from pybpfasm.elf import ElfError, ObjectFile, link_objects, read_object, write_object
from pybpfasm.elf.reader import read_raw
from pybpfasm.errors import PybpfasmError

DATA = Path(__file__).parent.parent / "data" / "elf"
OBJECTS = {path.name: path.read_bytes() for path in sorted(DATA.glob("*_v3.o"))}
bounded = settings(max_examples=80, deadline=3000, derandomize=True, database=None)
names = st.sampled_from(sorted(OBJECTS))


def look_at_everything(data: bytes) -> ObjectFile | None:
    """Use every part of the reader on *data*."""
    try:
        found = read_object(data)
    except ElfError as error:
        assert str(error)
        return None
    target = Btf.parse(read_object(OBJECTS["core_v3.o"]).program("ask").btf())
    for program in found.programs.values():
        for slot in (0, 1, program.slots - 1, program.slots):
            program.location(slot)
        program.listing()
        program.func_info(), program.line_info()
        try:
            program.resolve(CoreResolver(target)).code()
        except PybpfasmError:
            pass
    for one in found.maps.values():
        one.btf()
    for function in found.subprograms.values():
        function.write(found.byteorder).finish()
    try:
        write_object(list(found.programs.values()), found.maps.values())
    except PybpfasmError:
        pass
    return found


def test_the_objects_themselves_are_sound() -> None:
    for name, data in OBJECTS.items():
        found = look_at_everything(data)
        assert found is not None and found.programs, name


@bounded
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(data: bytes, header: bool) -> None:
    look_at_everything(OBJECTS["loops_v3.o"][:64] + data if header else data)


@bounded
@given(names, names, st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_changed_of_an_object_that_is_linked(
    name: str, other: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(OBJECTS[name])
    for at, value in changes:
        data[at % len(data)] = value
    try:
        linked = link_objects([bytes(data), OBJECTS[other]])
    except ElfError:
        return
    look_at_everything(linked)


@bounded
@given(names, st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 255)), min_size=1, max_size=8))
def test_bytes_changed(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(OBJECTS[name])
    for at, value in changes:
        data[at % len(data)] = value
    look_at_everything(bytes(data))


@bounded
@given(names, st.integers(0, 8000), st.integers(0, 400), st.binary(max_size=40))
def test_a_part_replaced_by_another_length(name: str, at: int, length: int, new: bytes) -> None:
    data = OBJECTS[name]
    at %= len(data)
    look_at_everything(data[:at] + new + data[at + length :])


def _tables(data: bytes) -> list[tuple[int, int]]:
    """Offset and size of what sections, symbols, relocations and BTF are described by."""
    (table,) = struct.unpack_from("<Q", data, 40)
    (count,) = struct.unpack_from("<H", data, 60)
    found = [(table, count * 64)]
    for index in range(count):
        kind, offset, size = struct.unpack_from("<4xI16xQQ", data, table + index * 64)
        if kind in (1, 2, 9) and size:
            found.append((offset, size))
    return found


@bounded
@given(
    names,
    st.data(),
    st.sampled_from([0, 1, 7, 8, 16, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, 1 << 63]),
    st.sampled_from([1, 2, 4, 8]),
)
def test_numbers_of_the_tables_changed(name: str, draw: st.DataObject, value: int, width: int) -> None:
    data = bytearray(OBJECTS[name])
    start, size = draw.draw(st.sampled_from(_tables(bytes(data))))
    at = start + draw.draw(st.integers(0, max(0, size - width))) // width * width
    raw = (value & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    data[at : at + width] = raw
    look_at_everything(bytes(data[: len(OBJECTS[name])]))


@pytest.mark.parametrize("name", sorted(OBJECTS))
def test_every_shorter_file(name: str) -> None:
    data = OBJECTS[name]
    for length in range(0, len(data), 193):
        with pytest.raises(ElfError):
            read_object(data[:length])


def test_each_number_of_the_section_headers_at_its_highest() -> None:
    data = OBJECTS["inner_v3.o"]
    start, size = _tables(data)[0]
    for at in range(start, start + size, 8):
        look_at_everything(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :])


def _peak(data: bytes) -> int:
    """The most memory that reading takes, in bytes."""
    tracemalloc.start()
    try:
        read_object(data)
    except ElfError:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _object(sections: list[tuple[str, int, int, bytes, int, int, int]]) -> bytes:
    """An object of (name, type, flags, data, link, info, entry size); section names go last."""
    strings = bytearray(b"\0")
    offsets = []
    for name in [*(section[0] for section in sections), ".shstrtab"]:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    body, headers = bytearray(64), bytearray(64)
    for (_, kind, flags, data, link, info, size), name_at in zip(
        [*sections, ("", 3, 0, bytes(strings), 0, 0, 0)], offsets, strict=True
    ):
        headers += struct.pack(
            "<IIQQQQIIQQ", name_at, kind, flags, 0, len(body), len(data), link, info, 8, size
        )
        body += data + bytes(-len(data) % 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    body[:64] = ident + struct.pack(
        "<HHIQQQIHHHHHH", 1, 247, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(sections) + 2, len(sections) + 1
    )
    return bytes(body + headers)


def _calls_everything(programs: int, functions: int, length: int) -> bytes:
    """Many programs that each call all of many long functions."""
    text = b"".join(
        (struct.pack("<BBhi", 0xB7, 0, 0, 0) * (length - 1) + struct.pack("<BBhi", 0x95, 0, 0, 0))
        for _ in range(functions)
    )
    calls = b"".join(struct.pack("<BBhi", 0x85, 0x10, 0, index * length - 1) for index in range(functions))
    one = calls + struct.pack("<BBhi", 0x95, 0, 0, 0)
    symbols = bytearray(24)
    names = bytearray(b"\0")

    def symbol(name: str, info: int, section: int, value: int, size: int) -> None:
        nonlocal symbols
        symbols += struct.pack("<IBBHQQ", len(names) if name else 0, info, 0, section, value, size)
        names.extend(name.encode() + b"\0" if name else b"")

    symbol("", 3, 1, 0, 0)
    for index in range(functions):
        symbol(f"f{index}", 2, 1, index * length * 8, length * 8)
    relocations = bytearray()
    for index in range(programs):
        symbol(f"p{index}", 0x12, 2, index * len(one), len(one))
        for call in range(functions):
            relocations += struct.pack("<QQ", index * len(one) + call * 8, 1 << 32 | 10)
    return _object(
        [
            (".text", 1, 6, text, 0, 0, 0),
            ("tc", 1, 6, one * programs, 0, 0, 0),
            (".reltc", 9, 0, bytes(relocations), 4, 2, 16),
            (".symtab", 2, 0, bytes(symbols), 5, 1, 24),
            (".strtab", 3, 0, bytes(names), 0, 0, 0),
        ]
    )


def test_programs_that_share_functions_are_read() -> None:
    found = read_object(_calls_everything(3, 4, 5))
    assert [program.slots for program in found.programs.values()] == [5 + 20] * 3


def test_programs_that_share_too_much_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # 400 programs of 808 slots, in an object that has 4000.
    data = _calls_everything(400, 8, 100)
    assert sum(program.slots for program in read_object(data).programs.values()) == 400 * (9 + 800)
    monkeypatch.setattr("pybpfasm.elf.object._LEAST_BUDGET", 1 << 10)
    with pytest.raises(ElfError, match="share so many functions"):
        read_object(data)


def test_a_section_of_zeros_takes_no_memory() -> None:
    data = _object([(".bss", 8, 3, b"", 0, 0, 0)])
    at = len(data) - 2 * 64 + 32
    data = data[:at] + struct.pack("<Q", 1 << 29) + data[at + 8 :]
    assert read_object(data).map(".bss").value_size == 1 << 29
    assert _peak(data) < 1 << 20


def test_a_section_of_no_type_has_nothing_in_it() -> None:
    data = bytearray(OBJECTS["maps_v3.o"])
    (table,) = struct.unpack_from("<Q", data, 40)
    index = next(s.index for s in read_raw(bytes(data)).sections if s.name == ".maps")
    struct.pack_into("<I", data, table + 64 * index + 4, 0)
    struct.pack_into("<Q", data, table + 64 * index + 32, 1 << 40)
    with pytest.raises(ElfError):
        read_object(bytes(data))


def test_sections_that_overlap_are_refused() -> None:
    many = [(f".data.{index}", 1, 3, b"", 0, 0, 0) for index in range(50)]
    data = bytearray(_object(many) + bytes(1 << 16))
    (table,) = struct.unpack_from("<Q", data, 40)
    for index in range(50):
        struct.pack_into("<QQ", data, table + (index + 1) * 64 + 24, 0, len(data) - 1)
    with pytest.raises(ElfError, match="overlaps"):
        read_object(bytes(data))
