# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a program names and does not define: functions of the kernel (kfuncs), its variables, values of its
configuration; and what another object defines.

    b.call(kfunc("bpf_rcu_read_lock"))
    b.call(kfunc("int bpf_new_one(struct sk_buff *skb, u32 flags)"))  # one that pybpfasm does not know
    b.call(external("int mix(u32 a, u32 b)"))  # of another object

Numbers and addresses of the kernel are filled in by `ProgramSpec.resolve` from the BTF of the kernel that the
program is loaded into, or by whoever loads an object that `pybpfasm.elf` wrote; what is of another object, by
`pybpfasm.elf.link_objects`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pybpfasm import isa
from pybpfasm.btf import Btf, BtfBuilder, BtfError, Kind, declare
from pybpfasm.errors import AsmError, suggestion
from pybpfasm.isa import Imm64
from pybpfasm.source import capture, resolve

if TYPE_CHECKING:
    from pybpfasm.asm import Reg

__all__ = ["Extern", "extern_address", "external", "kfunc", "ksym"]


@dataclass(frozen=True)
class Extern:
    """What the kernel has to define, a function (kfunc), a variable, or a value of its configuration, or what
    another object has to.

    ``kind`` is ``"kfunc"``, ``"ksym"``, ``"kconfig"`` or ``"external"``. A *weak* one may be missing.
    ``declared`` is the declaration that the program was written for, a FUNC or VAR with its id, ``None``
    where there is none.
    """

    name: str
    kind: str
    weak: bool = False
    declared: tuple[Btf, int] | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def typeless(self) -> bool:
        """Whether it is a variable of type ``void``, which any symbol of the kernel can be."""
        if self.declared is None or self.kind != "ksym":
            return False
        btf, type_id = self.declared
        return btf.type(type_id).kind == Kind.VAR and btf.resolve(btf.type(type_id).type_id).kind == Kind.VOID

    @property
    def callable(self) -> bool:
        """Whether it is a function, as far as is known."""
        if self.kind != "external" or self.declared is None:
            return self.kind == "kfunc"
        return self.declared[0].type(self.declared[1]).kind == Kind.FUNC

    def suggestion(self) -> str:
        """``"; did you mean 'x'?"`` where Linux 6.18 has a function of nearly this name, else ``""``."""
        from pybpfasm.kernel.kfuncs import KFUNCS

        return "" if self.kind != "kfunc" or self.name in KFUNCS else suggestion(self.name, KFUNCS)

    def declaration(self) -> tuple[Btf, int] | None:
        """``declared``, and for a function without it the declaration that Linux 6.18 has."""
        if self.declared is None and self.kind in ("kfunc", "ksym"):
            from pybpfasm.kernel.kfuncs import KFUNCS

            if self.name in KFUNCS:
                return _parse(KFUNCS[self.name])[1]
        return self.declared


def _parse(text: str) -> tuple[str, tuple[Btf, int]]:
    builder = BtfBuilder(sys.byteorder)
    name, type_id = declare(builder, text)
    return name, (Btf.parse(builder.to_bytes()), type_id)


def _declared(text: str, kind: Kind | None = None) -> tuple[str, tuple[Btf, int]]:
    try:
        name, (btf, type_id) = _parse(text)
    except BtfError as error:
        raise AsmError(str(error), resolve(capture(None, 3))) from None
    if kind is not None and btf.type(type_id).kind != kind:
        what = "a function" if kind == Kind.FUNC else "a variable"
        raise AsmError(f"{text!r} does not declare {what}", resolve(capture(None, 3)))
    return name, (btf, type_id)


def kfunc(name: str, *, weak: bool = False) -> Extern:
    """A function of the kernel, for ``b.call(kfunc("bpf_rcu_read_lock"))``.

    *name* is its name, or its declaration in C: an object that is to be written names the types of a
    function, and those of functions newer than Linux 6.18, or of a module, are not known here. Needs Linux
    5.13, and `ProgramSpec.resolve` before the load, which raises `CoreError` where the kernel lacks the
    function, or has another one than was declared. Where it lacks a *weak* one, the program is refused only
    if it can get to the call (`extern_address` tells). Raises `AsmError` for a declaration that is none.
    """
    if "(" not in name:
        return Extern(name, "kfunc", weak)
    found, declared = _declared(name, Kind.FUNC)
    return Extern(found, "kfunc", weak, declared)


def ksym(declaration: str, *, weak: bool = False) -> Extern:
    """A variable of the kernel by its *declaration* in C, for `extern_address`.

    ``"struct rq runqueues"`` is one that the kernel's BTF describes: most that are per CPU are. ``"void
    bpf_link_fops"`` is any symbol of ``/proc/kallsyms``, of which the program gets the address as a number.
    Raises `AsmError` for a declaration that is none.
    """
    name, declared = _declared(declaration, Kind.VAR)
    return Extern(name, "ksym", weak, declared)


def external(declaration: str, *, weak: bool = False) -> Extern:
    """A function or variable of another object by its *declaration* in C, for ``b.call`` and
    `extern_address`.

    The program becomes one that can be loaded when the objects are linked (`pybpfasm.elf.link_objects`).
    Raises `AsmError` for a declaration that is none.
    """
    name, declared = _declared(declaration)
    return Extern(name, "external", weak, declared)


def extern_address(to: Reg, what: Extern) -> None:
    """``rN = address``: of a variable or function of the kernel or of another object, 0 for a weak one that
    nobody has.

    Two slots; the program needs `ProgramSpec.resolve` before it is loaded. Raises `AsmError`.
    """
    if to.index == isa.FRAME_POINTER:
        raise to.asm._frame_pointer()
    if to.is_w:
        raise to.asm._error(f"write b.r{to.index}: an address has 8 bytes")
    if not isinstance(what, Extern) or what.kind == "kconfig":
        raise to.asm._error('extern_address takes kfunc("…"), ksym("…") or external("…")')
    to.asm._emit(isa.LD_IMM64, to.index, Imm64.BTF_ID, 0, 0, reference=what)
