# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The ISA level and kernel release that instructions need."""

from __future__ import annotations

import pytest

from pybpfasm.asm import Asm
from pybpfasm.errors import AsmError
from pybpfasm.instruction import EncodeError, Instruction
from pybpfasm.isa import FORMS
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import AttachType
from pybpfasm.program import sched_cls
from pybpfasm.target import check_target, required_version
from pybpfasm.text import assemble


@pytest.mark.parametrize(
    ("line", "needs"),
    [
        ("r1 = 5", "v1, Linux 3.18"),
        ("w1 += w2", "v1, Linux 3.18"),
        ("lock *(u64 *)(r1 +0) += r2", "v1, Linux 3.18"),
        ("r1 = map[id:3][0]+8", "v1, Linux 5.2"),
        ("call pc+0", "v1, Linux 4.16"),
        ("call kernel-function#5", "v1, Linux 5.13"),
        ("call kernel-function#5[1]", "v1, Linux 5.16"),
        ("if r1 < 0x5 goto pc+0", "v2, Linux 4.14"),
        ("if w1 == 0x5 goto pc+0", "v3, Linux 5.1"),
        ("if w1 < 0x5 goto pc+0", "v3, Linux 5.1"),
        ("lock *(u64 *)(r1 +0) |= r2", "v3, Linux 5.12"),
        ("r2 = atomic64_fetch_add((u64 *)(r1 +0), r2)", "v3, Linux 5.12"),
        ("r2 = atomic_xchg((u32 *)(r1 +0), r2)", "v3, Linux 5.12"),
        ("r0 = atomic_cmpxchg((u32 *)(r1 +0), r0, r2)", "v3, Linux 5.12"),
        ("r1 s/= 3", "v4, Linux 6.6"),
        ("r1 = (s8)r2", "v4, Linux 6.6"),
        ("r1 = *(s8 *)(r2 +0)", "v4, Linux 6.6"),
        ("r1 = bswap16 r1", "v4, Linux 6.6"),
        ("gotol pc+0", "v4, Linux 6.6"),
        ("may_goto pc+0", "v5, Linux 6.9"),
        ("r1 = addr_space_cast(r2, 0, 1)", "v5, Linux 6.9"),
        ("r1 = load_acquire((u8 *)(r2 +0))", "v5, Linux 6.15"),
        ("gotox r1", "v5, Linux 6.19"),
        ("callx r1", "v1, no Linux"),
        ("r1 <<= 64", "v1, no Linux"),
        ("w1 %= 0", "v1, no Linux"),
    ],
)
def test_required_version(line: str, needs: str) -> None:
    plain = assemble("r0 = 0")
    found = required_version([*plain, *assemble(line), *plain])
    assert str(found) == needs
    if found.version > 1:
        assert found.version_from == assemble(line)[0]


def test_required_version_of_nothing_and_of_nonsense() -> None:
    assert str(required_version([])) == "v1, Linux 3.18"
    with pytest.raises(EncodeError, match="instruction 1: opcode 0xff does not exist"):
        required_version([Instruction(0x95), Instruction(0xFF)])


def test_every_form_has_a_version() -> None:
    for forms in FORMS.values():
        for form in forms:
            assert 1 <= form.version <= 5
            assert form.kernel is None or form.kernel >= (3, 18)


def test_check_target() -> None:
    code = assemble("if r1 < 0x5 goto pc+0\nif w1 < 0x5 goto pc+0\nr1 s/= r2\nmay_goto pc+0")
    check_target(code[:1], "v2")
    check_target(code[:2], "v3")
    check_target(code[:3], "v4")
    check_target(code, "v5")
    check_target(code, "6.9")
    for target, words in (
        (
            "v1",
            "if r1 < 0x5 goto pc+0 is of ISA v2 (Linux 4.14), and the target is v1: exchange the operands",
        ),
        ("v2", "if w1 < 0x5 goto pc+0 is of ISA v3 (Linux 5.1), and the target is v2: compare the 64-bit"),
        ("v3", "r1 s/= r2 is of ISA v4 (Linux 6.6), and the target is v3: divide the absolute values"),
        ("v4", "may_goto pc+0 came after ISA v4 (Linux 6.9), and the target is v4: count the turns"),
        ("6.8", "may_goto pc+0 came with Linux 6.9, and the target is 6.8: count the turns"),
        ("4.9", "if r1 < 0x5 goto pc+0 came with Linux 4.14, and the target is 4.9: exchange"),
    ):
        with pytest.raises(AsmError) as caught:
            check_target(code, target)
        assert caught.value.message.startswith(words)


@pytest.mark.parametrize("target", ["v6", "v0", "", "5", "linux", "5.15.3"])
def test_targets_that_do_not_exist(target: str) -> None:
    with pytest.raises(AsmError, match="neither an ISA level"):
        check_target([], target)


def test_check_target_points_at_the_python_line() -> None:
    @sched_cls(AttachType.TCX_INGRESS)
    def program(b: Asm, ctx: SkBuff) -> None:
        b.r1 = 1
        with b.If(b.r1 >= 5):  # the line
            b.r0 = 0
        b.r0 = 0
        b.exit()

    with pytest.raises(AsmError) as caught:
        check_target(program.build().instructions, "v1")
    assert caught.value.location is not None
    assert caught.value.location.text.endswith("# the line")


def test_no_kernel_takes_what_the_verifier_refuses() -> None:
    with pytest.raises(AsmError, match="the verifier takes an immediate of 0 to 63, not 64"):
        check_target(assemble("r1 <<= 64"), "6.18")
    check_target(assemble("r1 <<= 64"), "v1")
