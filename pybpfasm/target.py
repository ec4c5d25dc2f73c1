# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What instructions need, and what a target has: the ISA level that a compiler calls ``-mcpu``, or the kernel
release.

Both come from the table of `pybpfasm.isa`. A kernel release says what the verifier and interpreter of
mainline Linux accept; a just-in-time compiler of another architecture than x86-64 may have come later.
Of instructions alone: whether a release has a helper or a map type is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from pybpfasm.errors import AsmError
from pybpfasm.instruction import EncodeError, Instruction
from pybpfasm.isa import ANY, FORMS, LD_IMM64, OP_GOTOL, Form, Imm64
from pybpfasm.source import resolve

__all__ = ["VERSIONS", "Requirement", "Target", "check_target", "required_version"]

#: The levels that a `Target` can name; v5 stands for what came after v4.
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
    "arsh": "sign-extend to 64 bits, and shift these",
    "gotol": "jump in steps of at most 32767 slots",
    "sdiv": "divide the absolute values and set the sign",
    "smod": "take the remainder of the absolute values and set the sign",
    "may_goto": "count the turns of the loop in a register",
    "gotox": "compare and jump",
    "addr_space_cast": "an arena needs a newer kernel; use a map",
    "atomic": "add with lock_add, or use a map of the PERCPU kind",
    "load_acquire": "fetch and add 0, which is a full barrier",
    "store_release": "exchange (xchg), which is a full barrier",
    "call_local": "write the function as a macro, a plain Python function",
    "call_kfunc": "use a helper",
}
_INSTEAD_LDDW: Final[dict[int, str]] = {
    Imm64.MAP_VALUE: "look it up with map_lookup_elem",
    Imm64.BTF_ID: "variables of the kernel came with it",
    Imm64.FUNC: "callbacks came with it",
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


def _form(insn: Instruction, index: int | None = None) -> Form:
    form = insn.form()
    if form is None:
        raise EncodeError(insn.problem() or "no such instruction", index)
    return form


@dataclass(frozen=True)
class Target:
    """What a program is written for: an ISA level, ``"v1"`` to ``"v5"``, or a Linux release, ``"5.15"``.

    Raises `AsmError` for a *name* that is neither.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or (self._level is None and self._release is None):
            raise AsmError(
                f"target {self.name!r} is neither an ISA level ({', '.join(VERSIONS)}) "
                "nor a Linux release such as '5.15'"
            )

    @classmethod
    def of(cls, target: str | Target) -> Target:
        """The target that *target* names."""
        return target if isinstance(target, Target) else _named(target)

    def __str__(self) -> str:
        return self.name

    @cached_property
    def _level(self) -> int | None:
        return int(self.name[1]) if self.name in VERSIONS else None

    @cached_property
    def _release(self) -> tuple[int, int] | None:
        match = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", self.name)
        return None if match is None else (int(match[1]), int(match[2]))

    def has(self, form: Form) -> bool:
        """Whether the target knows *form*, whatever immediate it has."""
        if self._level is not None:
            return form.version <= self._level
        assert self._release is not None
        return form.kernel is not None and form.kernel <= self._release

    @cached_property
    def complete(self) -> frozenset[int]:
        """The opcodes that the target has all of, with every immediate."""
        return frozenset(
            opcode
            for opcode, forms in FORMS.items()
            if all(self.has(form) and (self._level is not None or form.kernel_imm == ANY) for form in forms)
        )

    @property
    def has_gotol(self) -> bool:
        """Whether it has jumps of 32 bits (ISA v4, Linux 6.6)."""
        return OP_GOTOL in self.complete

    def problem(self, insn: Instruction) -> str | None:
        """Why the target does not take *insn*, and what to write instead; ``None`` where it does.

        Raises `EncodeError` for an instruction that does not exist.
        """
        if insn.opcode in self.complete:
            return None
        form = _form(insn)
        if self._level is not None:
            if self.has(form):
                return None
            what = f"is of ISA v{form.version}" if form.version < 5 else "came after ISA v4"
            what += "" if form.kernel is None else f" (Linux {form.kernel[0]}.{form.kernel[1]})"
        else:
            refused = insn.kernel_problem()
            if refused is None and self.has(form):
                return None
            what = refused or "runs on no kernel"
            if refused is None and form.kernel is not None:
                what = f"came with Linux {form.kernel[0]}.{form.kernel[1]}"
        from pybpfasm.listing import text

        instead = _INSTEAD.get(form.name.removesuffix("32"), "")
        if form.name.startswith("j") and form.name.endswith("32"):
            instead = "compare the 64-bit registers"
        elif insn.opcode == LD_IMM64:
            instead = _INSTEAD_LDDW.get(insn.src, "")
        shown = text(insn)
        label = getattr(insn.reference, "hint", "")
        if label:  # a jump that has no distance yet
            shown = f"{shown.rpartition(' ')[0]} {label}"
        return f"{shown} {what}, and the target is {self.name}" + (f": {instead}" if instead else "")


@lru_cache(maxsize=64)
def _named(name: str) -> Target:
    return Target(name)


def check_target(instructions: Iterable[Instruction], target: str | Target) -> None:
    """Check that *target* has all *instructions*.

    Raises `AsmError` at the Python line of the first instruction that it lacks, and for a target that does
    not exist; `EncodeError` for an instruction that does not exist.
    """
    chosen = Target.of(target)
    for index, insn in enumerate(instructions):
        try:
            problem = chosen.problem(insn)
        except EncodeError as error:
            raise EncodeError(error.message, index) from None
        if problem is not None:
            raise AsmError(problem, None if insn.origin is None else resolve(insn.origin))
