# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The BTF reader under input that nobody meant to write: it may only ever raise BtfError."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pybpfasm.btf import Btf, BtfBuilder, BtfError, BtfExt, BtfType, Kind

DATA = Path(__file__).parent.parent / "data" / "btf"
KINDS = {name: (DATA / name).read_bytes() for name in ("kinds_el.btf", "kinds_eb.btf")}
EXT = (DATA / "kinds_el.btf.ext").read_bytes()
bounded = settings(max_examples=150, deadline=2000, derandomize=True, database=None)


def look_at_everything(data: bytes) -> None:
    """Use every part of the reader on *data*."""
    try:
        btf = Btf.parse(data)
    except BtfError:
        return
    for line in btf.dump_lines():
        assert line.replace("\t", "").isprintable()
    for name in ("node", "int", "a"):
        btf.all_by_name(name)
    try:
        btf.validate()
    except BtfError:
        pass
    attributes = [name for name, value in vars(BtfType).items() if isinstance(value, property)]
    assert len(attributes) == 16
    for t in btf.types:
        repr(t)
        for attribute in attributes:
            try:
                getattr(t, attribute)
            except BtfError:
                pass
        for function in (btf.size_of, btf.resolve, btf.declaration, btf.definition):
            try:
                function(t.id)
            except BtfError:
                pass


@bounded
@given(st.binary(max_size=200))
@example(b"")
@example(b"\x9f\xeb\x01\x00")
def test_any_bytes(data: bytes) -> None:
    look_at_everything(data)


@bounded
@given(st.binary(max_size=400), st.binary(max_size=64), st.sampled_from(["little", "big"]))
def test_any_types_behind_a_sound_header(types: bytes, strings: bytes, order: str) -> None:
    types = types[: len(types) // 4 * 4]
    strings = b"\0" + strings + b"\0"
    header = bytearray(BtfBuilder("little" if order == "little" else "big").to_bytes()[:24])
    for at, value in ((12, len(types)), (16, len(types)), (20, len(strings))):
        header[at : at + 4] = value.to_bytes(4, "little" if order == "little" else "big")
    look_at_everything(bytes(header) + types + strings)


@bounded
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_a_few_bytes_changed(name: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(KINDS[name])
    for at, value in changes:
        data[at % len(data)] = value
    look_at_everything(bytes(data))


@bounded
@given(
    st.lists(
        st.tuples(
            st.sampled_from([k for k in Kind if k != Kind.VOID]),
            st.integers(0, 4),
            st.booleans(),
            st.lists(st.integers(0, 12) | st.integers(0, 0xFFFFFFFF), min_size=13, max_size=13),
        ),
        max_size=10,
    )
)
def test_types_that_refer_to_each_other_at_random(
    parts: list[tuple[Kind, int, bool, list[int]]],
) -> None:
    fixed = {Kind.INT: 1, Kind.ARRAY: 3, Kind.VAR: 1, Kind.DECL_TAG: 1}
    per_element = {
        Kind.STRUCT: 3,
        Kind.UNION: 3,
        Kind.ENUM: 2,
        Kind.FUNC_PROTO: 2,
        Kind.DATASEC: 3,
        Kind.ENUM64: 3,
    }
    types = b""
    for kind, vlen, flag, values in parts:
        length = fixed.get(kind, 0) + per_element.get(kind, 0) * vlen
        row = [values[0] % 12, vlen | kind << 24 | flag << 31, *values[1:]][: 3 + length]
        types += b"".join(value.to_bytes(4, "little") for value in row + [0] * (3 + length - len(row)))
    strings = b"\0node\0int\0a\0"
    header = bytearray(BtfBuilder().to_bytes()[:24])
    for at, size in ((12, len(types)), (16, len(types)), (20, len(strings))):
        header[at : at + 4] = size.to_bytes(4, "little")
    look_at_everything(bytes(header) + types + strings)


@bounded
@given(st.lists(st.tuples(st.integers(0, len(EXT) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_extension_section_with_a_few_bytes_changed(changes: list[tuple[int, int]]) -> None:
    btf = Btf.parse(KINDS["kinds_el.btf"])
    data = bytearray(EXT)
    for at, value in changes:
        data[at] = value
    try:
        BtfExt.parse(bytes(data), btf)
    except BtfError:
        pass


names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)


@bounded
@given(st.data(), st.sampled_from(["little", "big"]))
def test_what_is_written_is_read(data: st.DataObject, order: str) -> None:
    builder = BtfBuilder("little" if order == "little" else "big")
    ids = [builder.add_int("int", 4, signed=True)]
    expected: dict[int, tuple[Kind, str, object]] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        name, target = data.draw(names), data.draw(st.sampled_from(ids))
        choice = data.draw(
            st.sampled_from([Kind.STRUCT, Kind.ENUM, Kind.ENUM64, Kind.TYPEDEF, Kind.FUNC_PROTO])
        )
        if choice == Kind.STRUCT:
            members = [(n, target, 32 * i) for i, n in enumerate(data.draw(st.lists(names, max_size=4)))]
            added = builder.add_struct(name, 32, members)
            expected[added] = (choice, name, tuple((*m, 0) for m in members))
        elif choice in (Kind.ENUM, Kind.ENUM64):
            signed = data.draw(st.booleans())
            bits = 32 if choice == Kind.ENUM else 64
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            values = data.draw(st.dictionaries(names, st.integers(low, high), max_size=4))
            add = builder.add_enum if choice == Kind.ENUM else builder.add_enum64
            added = add(name, values, signed=signed)
            expected[added] = (choice, name, tuple(values.items()))
        elif choice == Kind.TYPEDEF:
            added = builder.add_typedef(name, target)
            expected[added] = (choice, name, target)
        else:
            added = builder.add_func_proto(target, [(name, target)])
            expected[added] = (choice, "", ((name, target),))
        ids.append(added)
    btf = Btf.parse(builder.to_bytes())
    btf.validate()
    for type_id, (kind, name, content) in expected.items():
        t = btf.type(type_id)
        read: object
        if kind == Kind.STRUCT:
            read = t.members
        elif kind == Kind.TYPEDEF:
            read = t.type_id
        else:
            read = t.params if kind == Kind.FUNC_PROTO else t.enumerators
        assert (t.kind, t.name, read) == (kind, name, content)
