# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The conformance vectors: what must assemble does, what must be refused is, and ``raw`` is what we encode.

Where a userspace machine can be imported, it runs the programs as well;
tests/kernel/test_conformance_kernel.py runs them in the kernel.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest

from pybpfasm.errors import PybpfasmError
from pybpfasm.instruction import Instruction, decode, encode
from pybpfasm.listing import text
from pybpfasm.text import assemble
from tests.conformance import Vector, vectors

POSITIVE = vectors("tests")
NEGATIVE = vectors("negative")

# What takes the instructions and the memory, and gives r0.
Runner = Callable[[list[Instruction], bytes], int]


def _runners() -> dict[str, Runner]:
    try:
        emulator = importlib.import_module("pybpfasm.emulator")
    except ImportError:
        return {}
    run = getattr(emulator, "run_conformance", None)
    return {} if run is None else {"emulator": run}


RUNNERS = _runners()


def test_the_vectors_are_all_there() -> None:
    assert len(POSITIVE) == 156
    assert len(NEGATIVE) == 30


@pytest.mark.parametrize("vector", POSITIVE, ids=lambda v: v.name)
def test_assembles_and_keeps_its_bytes(vector: Vector) -> None:
    code = encode(vector.instructions())
    assert encode(decode(code)) == code
    assert encode(assemble("\n".join(text(insn) for insn in decode(code)))) == code
    if "raw" in vector.sections:
        assert vector.raw() == code
    assert vector.result is not None


# Refused because the result differs, not the program.
RUNS = {"incorrect_return_value_high_bits"}


@pytest.mark.parametrize("vector", NEGATIVE, ids=lambda v: v.name)
def test_is_refused(vector: Vector) -> None:
    if vector.name in RUNS:
        assert vector.instructions()
        return
    with pytest.raises(PybpfasmError) as caught:
        vector.instructions()
    assert str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("invalid_imm32_dec_range", "2147483648 does not fit"),
        ("invalid_imm32_hex_range", "0x100000000 does not fit"),
        ("invalid_label", "there is no label 'NOT_A_LABEL'"),
        ("invalid_offset", "memory, such as [%r1+8], expected, not '%r1'"),
        ("invalid_offset_range", "offset 65536 does not fit 16 bits"),
        ("invalid_operand_count", "another operand expected at the end"),
        ("unused-stxw-imm", "byte 0: stx: imm is 1, must be 0"),
        ("unused-exit-src", "byte 0: exit: src is 1, must be 0"),
        ("unused-neg-offset", "byte 0: neg32: offset is 1, must be 0"),
    ],
)
def test_is_refused_for_its_reason(name: str, words: str) -> None:
    vector = next(v for v in NEGATIVE if v.name == name)
    with pytest.raises(PybpfasmError) as caught:
        vector.instructions()
    assert words in str(caught.value)


if RUNNERS:

    @pytest.mark.parametrize("runner", RUNNERS)
    @pytest.mark.parametrize(
        "vector", [*POSITIVE, *(v for v in NEGATIVE if v.name in RUNS)], ids=lambda v: v.name
    )
    def test_result(vector: Vector, runner: str) -> None:
        found = RUNNERS[runner](vector.instructions(), vector.mem)
        assert (found == vector.result) is (vector.name not in RUNS)


# What the files do not have and the format's description does.
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("add64 %r1, %r2", "0f21000000000000"),
        ("sub32 %r1, -5", "14010000fbffffff"),
        ("sdiv %r1, %r2", "3f21010000000000"),
        ("smod32 %r1, 7", "9401010007000000"),
        ("neg %r1", "8701000000000000"),
        ("neg32 %r1", "8401000000000000"),
        ("movsx832 %r1, %r2", "bc21080000000000"),
        ("movsx1664 %r1, %r2", "bf21100000000000"),
        ("movsx3264 %r1, %r2", "bf21200000000000"),
        ("le16 %r3", "d403000010000000"),
        ("be64 %r3", "dc03000040000000"),
        ("swap32 %r3", "d703000020000000"),
        ("bswap32 %r3", "d703000020000000"),
        ("ja +2", "0500020000000000"),
        ("ja -1", "0500ffff00000000"),
        ("ja32 +70000", "0600000070110100"),
        ("jset32 %r1, %r2, +1", "4e21010000000000"),
        ("jsle %r1, 0x7fffffff, -3", "d501fdffffffff7f"),
        ("call 5", "8500000005000000"),
        ("call helper 5", "8500000005000000"),
        ("call runtime 5", "8520000005000000"),
        ("call local +3", "8510000003000000"),
        ("call local -3", "85100000fdffffff"),
        ("call %r2", "8d02000000000000"),
        ("exit", "9500000000000000"),
        ("lddw %r1, 18446744073709551615", "18010000ffffffff00000000ffffffff"),
        ("lddw %r1, -1", "18010000ffffffff00000000ffffffff"),
        ("ldxb %r1, [%r2]", "7121000000000000"),
        ("ldxdw %r1, [%r2-0x8]", "7921f8ff00000000"),
        ("ldxw %r1, [ %r2 + 8 ]", "6121080000000000"),
        ("ldxsh %r1, [%r2+2]", "8921020000000000"),
        ("ldxbsx %r1, [%r2+2]", "9121020000000000"),
        ("stb [%r2+1], -1", "72020100ffffffff"),
        ("stdw [%r2], 0xffffffff", "7a020000ffffffff"),
        ("stxw [%r2-4], %r3", "6332fcff00000000"),
        ("lock add [%r1+8], %r2", "db21080000000000"),
        ("lock fetch and32 [%r1], %r2", "c321000051000000"),
        ("lock fetch_or [%r1], %r2", "db21000041000000"),
        ("lock xchg [%r1], %r2", "db210000e1000000"),
        ("lock fetch xchg [%r1], %r2", "db210000e1000000"),
        ("lock cmpxchg32 [%r1], %r2", "c3210000f1000000"),
        ("ldabsh 12", "280000000c000000"),
        ("ldindw %r3, -1", "40300000ffffffff"),
        ("  MOV:  mov %r1, 1   # a label, a comment", "b701000001000000"),
        ("mov r1, 1", "b701000001000000"),
    ],
)
def test_the_format_has_more(line: str, code: str) -> None:
    assert encode(assemble(line)).hex() == code


def test_the_first_exit_is_a_label() -> None:
    assert encode(assemble("ja exit\nmov %r0, 1\nexit\nmov %r0, 2\nexit"))[2:4] == b"\x01\x00"
    # A label of that name comes first.
    assert encode(assemble("ja exit\nexit\nexit:\nmov %r0, 2\nexit"))[2:4] == b"\x01\x00"
    with pytest.raises(PybpfasmError, match="there is no label 'exit'"):
        assemble("ja exit")


@pytest.mark.parametrize(
    "line",
    [
        *(f"mov %r{n}, 0" for n in range(11, 17)),
        "mov %r10, 0",
        "mov %r1",
        "mov %r1, %r2, %r3",
        "mov %r1 %r2",
        "mov 1, %r1",
        "ldxb %r1, [%r2+32768]",
        "ldxb %r1, [%r2+0xffff]",
        "ldxb %r1, [%r2*8]",
        "ldxb %r1, [2]",
        "stb [%r1], %r2",
        "stxb [%r1], 2",
        "ja 2",
        "ja",
        "jeq %r1, 1",
        "ja +32768",
        "lddw %r1, 0x10000000000000000",
        "mov32 %r1, -2147483649",
        "be8 %r1",
        "be16 %r1, %r2",
        "movsx3232 %r1, %r2",
        "lock div [%r1], %r2",
        "lock add8 [%r1], %r2",
        "lock add [%r1], 5",
        "call",
        "call local",
        "exit 0",
        "frobnicate %r1",
        "ldabsdw 5",
    ],
)
def test_the_format_has_not(line: str) -> None:
    with pytest.raises(PybpfasmError):
        assemble(line)
