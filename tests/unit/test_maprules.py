# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Maps that no kernel creates are errors of the program that names them; tests/kernel asks the kernel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pybpfasm import (
    U32,
    U64,
    Asm,
    AsmError,
    BpfSpinLock,
    LayoutError,
    LpmTrieKey,
    MapSpec,
    MapType,
    Nested,
    Struct,
    XdpMd,
    xdp,
)
from pybpfasm.emulator import Emulator, EmulatorError
from pybpfasm.kernel.enums import BPF_F_NO_PREALLOC
from pybpfasm.maprules import _RULES, refusal


class Locked(Struct):
    lock = Nested(BpfSpinLock)
    number = U32()


CASES = [
    (MapType.LPM_TRIE, 8, 8, 16, 0, "an LPM_TRIE is made with flags=BPF_F_NO_PREALLOC"),
    (MapType.LPM_TRIE, 4, 8, 16, BPF_F_NO_PREALLOC, "an LPM_TRIE takes keys of 5 to 260 bytes, not of 4"),
    (
        MapType.RINGBUF,
        None,
        None,
        5000,
        0,
        "size of a RINGBUF, max_entries, is a power of 2 from 4096 on",
    ),
    (MapType.RINGBUF, None, U64(), 4096, 0, "a RINGBUF takes no values, not of 8"),
    (MapType.ARRAY, U64(), U64(), 1, 0, "an ARRAY takes keys of 4 bytes, not of 8"),
    (MapType.HASH, U32(), U64(), 0, 0, "max_entries of a HASH is at least 1, not 0"),
    (MapType.HASH, U32(), None, 1, 0, "a HASH takes values of at least 1 byte, not of 0"),
    (MapType.SOCKHASH, U32(), 16, 1, 0, "a SOCKHASH takes values of 4 or 8 bytes, not of 16"),
    (MapType.SK_STORAGE, U32(), U64(), 9, BPF_F_NO_PREALLOC, "max_entries of an SK_STORAGE is 0, not 9"),
    (
        MapType.PERCPU_ARRAY,
        U32(),
        Locked,
        1,
        0,
        "a PERCPU_ARRAY has no bpf_spin_lock in its values: HASH, ARRAY",
    ),
    (MapType.STACK_TRACE, U32(), 12, 1, 0, "takes values of at least 8 bytes, in steps of 8, not of 12"),
]


@pytest.mark.parametrize(("type", "key", "value", "entries", "flags", "message"), CASES)
def test_a_map_that_no_kernel_creates(
    type: MapType, key: U32 | int | None, value: U64 | int | None, entries: int, flags: int, message: str
) -> None:
    spec = MapSpec("bad", type, key, value, entries, flags)

    def program(b: Asm, ctx: XdpMd) -> None:
        b.r1 = spec
        b.ret(2)

    with pytest.raises(AsmError, match=f"map bad: .*{message}") as caught:
        xdp()(program).build()
    assert caught.value.location is not None and caught.value.location.text == "b.r1 = spec"
    assert xdp(check=False)(program).build().maps == (spec,)
    with pytest.raises(EmulatorError, match=f"{message}|has no model of STACK_TRACE"):
        Emulator().map(spec)


@pytest.mark.parametrize(
    ("type", "key", "entries", "message"),
    [
        ("hash", 4, 1, "map m: its type is a MapType, not 'hash'"),
        (MapType.HASH, "key", 1, "map m: a key or value is a structure, a field or a number of bytes"),
        (MapType.HASH, -4, 1, "a number of bytes, not -4"),
        (MapType.HASH, 4, "7", "max_entries='7' does not fit 32 bits"),
    ],
)
def test_what_is_no_specification(type: MapType, key: int, entries: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        MapSpec("m", type, key, 4, entries)


def test_the_table_of_the_page() -> None:
    """Every type that has a rule is in it, and each row declares a map that is not refused."""

    class Key(Struct):
        number = U32()

    class Prefix(LpmTrieKey):
        number = U32()

    names: dict[str, Any] = {
        "BPF_F_NO_PREALLOC": BPF_F_NO_PREALLOC,
        "Key": Key,
        "MapSpec": MapSpec,
        "MapType": MapType,
        "ONE": MapSpec("one", MapType.ARRAY, U32(), Key, 1),
        "Prefix": Prefix,
        "U32": U32,
        "U64": U64,
        "Value": Key,
    }
    page = (Path(__file__).resolve().parents[2] / "docs" / "maps.md").read_text(encoding="utf-8")
    listed: set[MapType] = set()
    for types, code in re.findall(r"^\| ([A-Z_, ]+)[^|]* \| `(MapSpec.*)` \|$", page, re.MULTILINE):
        rows = [MapType[name] for name in types.split(", ")]
        listed |= set(rows)
        for type in rows:
            spec = eval(re.sub(r"MapType\.\w+", f"MapType.{type.name}", code), dict(names))
            assert (spec.type, refusal(spec)) == (type, None)
    assert listed == set(_RULES)
