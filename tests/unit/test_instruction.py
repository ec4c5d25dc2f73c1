# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Fields of instructions: what is valid, in both directions, and why the rest is not."""

from __future__ import annotations

import gc
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybpfasm.errors import DecodeError, PybpfasmError
from pybpfasm.instruction import EncodeError, Instruction, decode, encode
from pybpfasm.isa import FORMS, LD_IMM64, Allowed, Form
from pybpfasm.listing import text
from pybpfasm.text import assemble

S16 = st.integers(-(1 << 15), (1 << 15) - 1) | st.sampled_from([0, 1, -1, 8, -(1 << 15), (1 << 15) - 1])
S32 = st.integers(-(1 << 31), (1 << 31) - 1) | st.sampled_from([0, 1, -1, 64, -(1 << 31), (1 << 31) - 1])


def _from(allowed: Allowed, otherwise: st.SearchStrategy[int]) -> st.SearchStrategy[int]:
    return otherwise if allowed.values is None else st.sampled_from(sorted(allowed.values))


@st.composite
def instructions(draw: st.DrawFn) -> Instruction:
    form: Form = draw(st.sampled_from([form for forms in FORMS.values() for form in forms]))
    insn = Instruction(
        form.opcode,
        draw(_from(form.dst, S16)),
        draw(_from(form.src, S16)),
        draw(_from(form.offset, S16)),
        draw(_from(form.imm, S32)),
    )
    if form.opcode == LD_IMM64 and insn.src in (0, 2, 3, 6):
        insn.imm_high = draw(S32)
    return insn


@settings(max_examples=150, deadline=None)
@given(st.lists(instructions(), max_size=6))
def test_valid_instructions_keep_their_bytes_through_decoding_and_text(made: list[Instruction]) -> None:
    code = encode(made)
    assert decode(code) == made
    assert decode(encode(made, "big"), "big") == made
    assert encode(assemble("\n".join(map(text, made)))) == code


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        found = decode(data)
    except DecodeError:
        return
    assert encode(found) == data
    assert encode(assemble("\n".join(map(text, found)))) == data


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), S16, S32, S32)
def test_slots_decode_exactly_where_the_table_has_a_form(
    opcode: int, registers: int, offset: int, imm: int, high: int
) -> None:
    data = struct.pack("<BBhi", opcode, registers, offset, imm)
    insn = Instruction(opcode, registers & 15, registers >> 4, offset, imm)
    if opcode == LD_IMM64:
        data += struct.pack("<BBhi", 0, 0, 0, high)
        insn.imm_high = high
    if insn.problem() is None:
        assert decode(data) == [insn]
        assert insn.encode() == data
    else:
        with pytest.raises(DecodeError):
            decode(data)
        with pytest.raises(EncodeError):
            insn.encode()


def test_byte_order_of_the_fields() -> None:
    insn = Instruction(0x69, 2, 10, -2)  # r2 = *(u16 *)(r10 -2)
    assert insn.encode().hex() == "69a2feff00000000"
    assert insn.encode("big").hex() == "692afffe00000000"
    wide = Instruction(LD_IMM64, 3, 0, 0, 0x55667788, 0x11223344)
    assert wide.encode().hex() == "18030000887766550000000044332211"
    assert wide.encode("big").hex() == "18300000556677880000000011223344"
    assert wide.imm64 == 0x1122334455667788


@pytest.mark.parametrize(
    ("insn", "reason"),
    [
        (Instruction(0xFF), "opcode 0xff does not exist"),
        (Instruction(0x100), "opcode 0x100 does not exist"),
        (Instruction(-1), "opcode -0x1 does not exist"),
        (Instruction(0xB7, 10), "mov: dst is r10, the frame pointer, which can't be written"),
        (Instruction(0xB7, 11), "mov: dst is r11, which does not exist"),
        (Instruction(0xBF, 1, 12), "mov: src is r12, which does not exist"),
        (Instruction(0xB7, 16), "mov: register number 16 does not fit 4 bits"),
        (Instruction(0xBF, 1, -1), "mov: register number -1 does not fit 4 bits"),
        (Instruction(0xBF, 1, -16), "mov: register number -16 does not fit 4 bits"),
        (Instruction(0xBF, 1, 16), "mov: register number 16 does not fit 4 bits"),
        (Instruction(0x0F, 1, 16), "add: register number 16 does not fit 4 bits"),
        (Instruction(0x0F, 17, 1), "add: register number 17 does not fit 4 bits"),
        (Instruction(0xBF, 17, 1), "mov: register number 17 does not fit 4 bits"),
        (Instruction(0xBF, -1, 1), "mov: register number -1 does not fit 4 bits"),
        (Instruction(0xBF, 1, 256), "mov: register number 256 does not fit 4 bits"),
        (Instruction(0xB7, 1, 1), "mov: src is 1, must be 0"),
        (Instruction(0xB7, 1, 0, 8), "mov: offset is 8, must be 0"),
        (Instruction(0x0F, 1, 2, 0, 5), "add: imm is 5, must be 0"),
        (Instruction(0x05, 0, 0, 40000), "ja: offset 40000 does not fit 16 bits"),
        (Instruction(0xB7, 1, 0, 0, 1 << 31), "mov: immediate 2147483648 does not fit 32 bits"),
        (Instruction(0x37, 1, 0, 2, 3), "div: offset is 2, must be one of 0, 1"),
        (Instruction(0xBC, 1, 2, 32), "mov32: offset is 32, must be one of 0, 8, 16"),
        (Instruction(0xD4, 1, 0, 0, 8), "le: imm is 8, must be one of 16, 32, 64"),
        (Instruction(0x85, 0, 3), "call: src is 3, must be 0 to 2"),
        (Instruction(0x95, 0, 0, 0, 1), "exit: imm is 1, must be 0"),
        (
            Instruction(0xDB, 1, 2, 0, 7),
            "atomic: imm is 7, must be one of 0x0, 0x1, 0x40, 0x41, 0x50, 0x51, "
            "0xa0, 0xa1, 0xe1, 0xf1, 0x100, 0x110",
        ),
        (Instruction(0xDB, 1, 10, 0, 1), "atomic: src is r10, the frame pointer, which can't be written"),
        (Instruction(LD_IMM64, 1, 7), "lddw: src is 7, must be 0 to 6"),
        (Instruction(LD_IMM64, 1, 1, 0, 3, 1), "lddw: the upper immediate must be 0 where src is 1"),
        (Instruction(0xB7, 1, 0, 0, 1, 1), "mov: only a 64-bit immediate load has a second immediate"),
    ],
)
def test_reasons(insn: Instruction, reason: str) -> None:
    assert insn.problem() == reason
    with pytest.raises(EncodeError) as caught:
        encode([Instruction(0x95), insn])
    assert str(caught.value) == f"instruction 1: {reason}"
    assert caught.value.index == 1
    assert isinstance(caught.value, PybpfasmError)


def test_a_field_that_is_no_number() -> None:
    with pytest.raises(EncodeError, match="imm is a str, not a number"):
        encode([Instruction(0xB7, 1, 0, 0, "5")])  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match="dst is a NoneType, not a number"):
        encode([Instruction(0xB7, None)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("95", "1 bytes are no whole number of 8-byte instructions: 1 are left over at byte 0"),
        ("950000000000000095000000", "left over at byte 8"),
        ("95000000000000001801000000000000", "byte 8: a 64-bit immediate load lacks its second half"),
        ("180100000000000000000000000000009510000000000000", "byte 16: exit: src is 1, must be 0"),
        ("18010000000000000100000000000000", "byte 8: fields that must be 0 are set in the second half"),
        ("18010000000000000000010000000000", "byte 8: fields that must be 0"),
        ("18110000050000000000000001000000", "byte 0: lddw: the upper immediate must be 0"),
        ("18710000000000000000000000000000", "byte 0: lddw: src is 7, must be 0 to 6"),
        ("181b0000000000000000000000000000", "byte 0: lddw: dst is r11, which does not exist"),
        ("0000000000000000", "byte 0: opcode 0x00 does not exist"),
    ],
)
def test_bytes_that_are_refused(code: str, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(bytes.fromhex(code))
    assert reason in str(caught.value)


def test_decoding_much_leaves_the_garbage_collector_as_it_was() -> None:
    many = Instruction(0x95).encode() * 10000
    assert gc.isenabled()
    assert len(decode(many)) == 10000
    assert gc.isenabled()
    gc.disable()
    try:
        decode(many)
        assert not gc.isenabled()
    finally:
        gc.enable()
    with pytest.raises(DecodeError):
        decode(many + b"\xff" * 8)
    assert gc.isenabled()


def test_kernel_problem() -> None:
    assert Instruction(0x67, 1, 0, 0, 63).kernel_problem() is None
    assert "0 to 63" in str(Instruction(0x67, 1, 0, 0, 64).kernel_problem())
    assert "0 to 31" in str(Instruction(0x64, 1, 0, 0, 32).kernel_problem())
    assert "anything but 0" in str(Instruction(0x37, 1, 0, 0, 0).kernel_problem())
    assert Instruction(0x37, 1, 0, 1, 7).kernel_problem() is None
    assert Instruction(0x8D, 1).kernel_problem() == "no kernel has callx"


def test_text_of_what_is_no_instruction() -> None:
    for opcode in range(256):
        for src in (0, 15):
            insn = Instruction(opcode, 11, src, 77, 0x1234)
            shown = text(insn)
            assert shown
            if opcode not in FORMS:
                assert shown == f"invalid {opcode:#04x} dst=11 src={src} offset=77 imm=4660"
