# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a prompt and a debugger show of the library's objects: what it is, in a line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pybpfasm import U8, U32, Array, Asm, MapSpec, MapType, SkBuff, Struct, XdpMd, be16, imm64, le32, xdp
from pybpfasm.btf import Btf, BtfBuilder
from pybpfasm.core import CoreResolver
from pybpfasm.elf import read_object, write_object
from pybpfasm.emulator import Emulator
from pybpfasm.maps import rodata


class Pair(Struct):
    number = U32()
    flag = U8.bits(1)


PAIRS = MapSpec("pairs", MapType.HASH, U32(), Pair, 16)


@xdp()
def keep(b: Asm, ctx: XdpMd) -> None:
    b.r1 = PAIRS
    b.ret(2)


def _asm() -> Asm:
    b = Asm("f")
    b.r0 = 1
    return b


CASES: list[tuple[Callable[[], object], str]] = [
    (_asm, "<Asm f, 1 slots>"),
    (lambda: _asm().r3, "r3"),
    (lambda: _asm().u32[_asm().r1 - 4], "<*(u32 *)(r1 -4)>"),
    (lambda: _asm().u16[_asm().r1].signed, "<*(s16 *)(r1 +0)>"),
    (lambda: Pair(_asm().r1 + 8).number, "<Pair.number at *(u32 *)(r1 +8)>"),
    (lambda: Pair(_asm().r1 + 8), "<Pair at r1+8>"),
    (lambda: Pair(_asm().r1).flag, "<Pair.flag, 1 bits in <Pair.flag at *(u8 *)(r1 +4)>>"),
    (lambda: SkBuff(_asm().r1).cb, "<SkBuff.cb at r1+48>"),
    (lambda: _asm().r1 == 3, "<JEQ r1, 3>"),
    (lambda: ~(_asm().r1 & 3), "<no JSET r1, 3>"),
    (lambda: (lambda b: (b.r1 > 3) & (b.w2 != b.w3))(_asm()), "<<JGT r1, 3> and <JNE w2, w3>>"),
    (lambda: be16(80), "be16(0x50)"),
    (lambda: le32(1), "le32(0x1)"),
    (lambda: imm64(1 << 40), "imm64(0x10000000000)"),
    (lambda: Pair.fields["number"], "<__u32 Pair.number at 0>"),
    (lambda: Array(U8(), 4), "<__u8[4]>"),
    (lambda: PAIRS, "<MapSpec pairs HASH, key 4, value 8 bytes, 16 entries>"),
    (
        lambda: rodata(Pair),
        "StaticData(map=<MapSpec .rodata ARRAY, key 4, value 8 bytes, 1 entries>, offset=0, "
        "struct=<class 'tests.unit.test_reprs.Pair'>)",
    ),
    (lambda: keep, "<Template keep XDP>"),
    (lambda: xdp, "<Kind XDP, on XdpMd>"),
    (keep.build, "<ProgramSpec keep XDP 4 slots>"),
    (lambda: read_object(write_object([keep.build()])), "<ObjectFile programs keep; maps pairs>"),
    (
        lambda: list(read_object(write_object([keep.build()])).programs.values()),
        "[<ObjectProgram keep XDP 4 slots>]",
    ),
    (lambda: BtfBuilder("big"), "<BtfBuilder 0 types, big-endian>"),
    (lambda: Btf.parse(BtfBuilder().to_bytes()), "<Btf 0 types, little-endian>"),
    (
        lambda: CoreResolver(Btf.parse(BtfBuilder().to_bytes())),
        "<CoreResolver for <Btf 0 types, little-endian>>",
    ),
    (lambda: Emulator(now=5), "<Emulator at 5 ns, maps >"),
]


@pytest.mark.parametrize(("make", "shown"), CASES, ids=[shown for _, shown in CASES])
def test_what_is_shown(make: Callable[[], object], shown: str) -> None:
    assert repr(make()) == shown
