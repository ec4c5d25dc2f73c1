# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Functions of the kernel (kfuncs) by name: each has a number here, as a kernel's BTF would give it one.

So programs that call them run as they were assembled, without any kernel's types.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from pybpfasm import isa
from pybpfasm.check.rights import RETURNS_NOTHING
from pybpfasm.emulator.helpers import MODELS, make_model
from pybpfasm.isa import CallKind
from pybpfasm.kernel.kfuncs import KFUNCS

if TYPE_CHECKING:
    from pybpfasm.instruction import Instruction
    from pybpfasm.program import ProgramSpec

__all__ = ["kfunc", "name_of", "number_of", "numbers", "returns_nothing"]

# Above the type ids of any kernel's BTF, which a resolved program calls by.
_FIRST: Final = 0x7000_0000

_NAMES: list[str] = []
_NUMBERS: dict[str, int] = {}
_VOID: set[int] = set()
F = TypeVar("F", bound=Callable[..., int])


def number_of(name: str) -> int:
    """The number by which the emulator calls a function of the kernel."""
    number = _NUMBERS.get(name)
    if number is None:
        number = _NUMBERS[name] = _FIRST + len(_NAMES)
        _NAMES.append(name)
        if KFUNCS.get(name, "").startswith(f"void {name}("):
            _VOID.add(number)
    return number


def numbers(spec: ProgramSpec) -> dict[str, int]:
    """The numbers of the functions of the kernel that a program calls by name."""
    called = [insn.reference for insn in spec.instructions if insn.opcode == isa.OP_CALL and insn.reference]
    if not called:
        return {}
    from pybpfasm.btf import Kind
    from pybpfasm.extern import Extern

    found: dict[str, int] = {}
    for extern in called:
        if isinstance(extern, Extern) and extern.kind == "kfunc":
            found[extern.name] = number_of(extern.name)
            if extern.declared is not None:
                btf, type_id = extern.declared
                proto = btf.resolve(btf.type(type_id).type_id)
                if btf.resolve(proto.type_id).kind == Kind.VOID:
                    _VOID.add(found[extern.name])
    return found


def name_of(number: int) -> str | None:
    """The function's name, ``None`` where the number is of a kernel's BTF."""
    return _NAMES[number - _FIRST] if 0 <= number - _FIRST < len(_NAMES) else None


def returns_nothing(insn: Instruction) -> bool:
    """Whether a call leaves r0 unset: what it calls is ``void``."""
    if insn.opcode != isa.OP_CALL:
        return False
    if insn.src == CallKind.KFUNC:
        return insn.imm in _VOID
    return insn.src == CallKind.HELPER and insn.imm in RETURNS_NOTHING


def kfunc(name: str) -> Callable[[F], F]:
    """Declare the model of a function of the kernel for every emulator."""

    def wrap(function: F) -> F:
        MODELS[CallKind.KFUNC, number_of(name)] = make_model(function)
        return function

    return wrap
