# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What instructions need: the ISA level that a compiler calls ``-mcpu``, and the kernel release that has it.

Both come from the table of `pybpfasm.isa`. A kernel release says what the verifier and interpreter of
mainline Linux accept; a just-in-time compiler of another architecture than x86-64 may have come later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pybpfasm.errors import AsmError
from pybpfasm.instruction import EncodeError, Instruction
from pybpfasm.isa import Form
from pybpfasm.source import resolve

#: The levels that `check_target` knows; v5 stands for what came after v4.
VERSIONS: Final = ("v1", "v2", "v3", "v4", "v5")

# What to write where a target lacks an instruction, by the form's name without a final 32.
_INSTEAD: Final = {
    "jlt": "exchange the operands and use >, or jump over it with >=",
    "jle": "exchange the operands and use >=, or jump over it with >",
    "jslt": "exchange the operands and use s>, or jump over it with s>=",
    "jsle": "exchange the operands and use s>=, or jump over it with s>",
    "movsx": "shift left, then arithmetically right",
    "ldxs": "load, shift left, then arithmetically right",
    "bswap": "use be or le, whichever swaps on the machine",
    "gotol": "jump in steps of at most 32767 slots",
    "sdiv": "divide the absolute values and set the sign",
    "smod": "take the remainder of the absolute values and set the sign",
    "may_goto": "count the turns of the loop in a register",
    "load_acquire": "fetch and add 0, which is a full barrier",
    "store_release": "exchange (xchg), which is a full barrier",
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """The least that runs some instructions.

    ``version`` is the ISA level, 1 to 5. ``kernel`` is the first Linux release, ``None`` where no release
    takes one of the instructions. ``version_from`` and ``kernel_from`` are the first instructions that need
    them, ``None`` when there are no instructions.
    """

    version: int
    kernel: tuple[int, int] | None
    version_from: Instruction | None
    kernel_from: Instruction | None

    def __str__(self) -> str:
        linux = "no Linux" if self.kernel is None else f"Linux {self.kernel[0]}.{self.kernel[1]}"
        return f"v{self.version}, {linux}"


def required_version(instructions: Iterable[Instruction]) -> Requirement:
    """The ISA level and the kernel release that *instructions* need.

    Raises `EncodeError` for an instruction that does not exist.
    """
    version, kernel = 1, (3, 18)
    version_from = kernel_from = refused = None
    for index, insn in enumerate(instructions):
        form = _form(insn, index)
        if version_from is None or form.version > version:
            version, version_from = form.version, insn
        if form.kernel is None or insn.imm not in form.kernel_imm:
            refused = refused or insn
        elif kernel_from is None or form.kernel > kernel:
            kernel, kernel_from = form.kernel, insn
    if refused is not None:
        return Requirement(version, None, version_from, refused)
    return Requirement(version, kernel, version_from, kernel_from)


def _form(insn: Instruction, index: int) -> Form:
    form = insn.form()
    if form is None:
        raise EncodeError(insn.problem() or "no such instruction", index)
    return form


def check_target(instructions: Iterable[Instruction], target: str) -> None:
    """Check that *target* has all *instructions*.

    *target* is an ISA level, ``"v1"`` to ``"v5"``, or a Linux release such as ``"5.15"``. Raises `AsmError`
    at the Python line of the first instruction that it lacks, and for a target that does not exist.
    """
    version: int | None = None
    kernel = (0, 0)
    if target in VERSIONS:
        version = int(target[1])
    else:
        match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", target)
        if match is None:
            raise AsmError(
                f"target {target!r} is neither an ISA level ({', '.join(VERSIONS)}) "
                "nor a Linux release such as '5.15'"
            )
        kernel = (int(match[1]), int(match[2]))
    for index, insn in enumerate(instructions):
        form = _form(insn, index)
        if version is not None:
            if form.version <= version:
                continue
            what = f"is of ISA v{form.version}" if form.version < 5 else "came after ISA v4"
            what += "" if form.kernel is None else f" (Linux {form.kernel[0]}.{form.kernel[1]})"
        else:
            problem = insn.kernel_problem()
            if problem is None and form.kernel is not None and form.kernel <= kernel:
                continue
            what = problem or "runs on no kernel"
            if problem is None and form.kernel is not None:
                what = f"came with Linux {form.kernel[0]}.{form.kernel[1]}"
        from pybpfasm.listing import text

        instead = _INSTEAD.get(form.name.removesuffix("32"), "")
        if form.name.startswith("j") and form.name.endswith("32"):
            instead = "compare the 64-bit registers"
        raise AsmError(
            f"{text(insn)} {what}, and the target is {target}" + (f": {instead}" if instead else ""),
            None if insn.origin is None else resolve(insn.origin),
        )
