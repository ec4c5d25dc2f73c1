# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""From a Python function to a program: what is declared, with which settings it is built."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

from pybpfasm import isa
from pybpfasm.asm import Asm
from pybpfasm.check.early import refuse
from pybpfasm.errors import AsmError
from pybpfasm.kernel.enums import AttachType, ProgType, SkAction, TcxAction, XdpAction
from pybpfasm.layout import ByteOrder, Struct
from pybpfasm.program.functions import Subprogram, check_function, writing
from pybpfasm.program.spec import WANTS_ATTACH_TYPE, Function, ProgramSpec
from pybpfasm.source import capture, resolve

if TYPE_CHECKING:
    from pybpfasm.target import Target

__all__ = ["Kind", "Template"]

# The license of this project, in words that license_is_gpl_compatible() of the kernel accepts.
DEFAULT_LICENSE: Final = "Dual BSD/GPL"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,14}")
_TARGET = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*(/[A-Za-z_]\w*)?", re.ASCII)


# What these are attached to is chosen when they are loaded: the verifier knows the arguments' types by it.
_LOADED_FOR = frozenset({ProgType.TRACING, ProgType.LSM})
_ATTACHED_BY_NAME = _LOADED_FOR | {ProgType.KPROBE, ProgType.TRACEPOINT, ProgType.RAW_TRACEPOINT}


# Whose verdicts are easily taken for those of another type.
_VERDICTS: Final[dict[ProgType, type[IntEnum]]] = {
    ProgType.SCHED_CLS: TcxAction,
    ProgType.XDP: XdpAction,
    ProgType.SK_MSG: SkAction,
    ProgType.SK_SKB: SkAction,
    ProgType.SK_LOOKUP: SkAction,
    ProgType.SK_REUSEPORT: SkAction,
}


P = ParamSpec("P")
C = TypeVar("C", bound=Struct)
E = TypeVar("E", bound=Struct)


class Template(Generic[P]):
    """A program whose settings are still open; `build` fixes them."""

    def __init__(
        self,
        function: Callable[..., None],
        type: ProgType,
        attach_type: AttachType | None,
        context: type[Struct],
        name: str,
        license: str,
        prog_flags: int,
        check: bool = True,
        target: Target | None = None,
        attach_to: str | None = None,
    ) -> None:
        self._function = function
        self._check = check
        self.target = target
        self.type = type
        self.attach_type = attach_type
        self.context = context
        self.name = name
        self.license = license
        self.prog_flags = prog_flags
        self.attach_to = attach_to
        self.__doc__ = function.__doc__

    def __repr__(self) -> str:
        return f"<Template {self.name} {self.type.name}>"

    def for_target(self, target: str | Target | None) -> Template[P]:
        """The same program for another *target*: an ISA level (``"v1"`` to ``"v5"``), a Linux release
        (``"5.15"``), or ``None`` for whatever has all instructions.

        Raises `AsmError` for a target that does not exist.
        """
        made = copy.copy(self)
        made.target = _target(target)
        return made

    def build(self, *args: P.args, **kwargs: P.kwargs) -> ProgramSpec:
        """Assemble the program.

        Raises `AsmError` at the Python line of a mistake.
        """
        return self.build_for(sys.byteorder, *args, **kwargs)

    def build_for(self, byteorder: ByteOrder, *args: P.args, **kwargs: P.kwargs) -> ProgramSpec:
        """As `build`, for a machine of the given byte order (``"little"`` or ``"big"``)."""
        main = Asm(self.name, self._function.__code__, byteorder, self.target)
        main._verdicts = _VERDICTS.get(self.type)
        main._context = self.context
        with writing(main):
            self._function(main, self.context(main.r1), *args, **kwargs)
        instructions = list(main.finish())
        functions = [Function(self.name, 0, (), self.context, main.labels())]
        entries: dict[Subprogram, int] = {}
        waiting = list(main._calls)
        slot = main.slots
        while waiting:
            callee = waiting.pop(0)
            if callee in entries:
                continue
            entries[callee] = slot
            body = callee.write(byteorder, self.target)
            written = body.finish()
            functions.append(
                Function(callee.name, slot, callee.arguments, callee.context, body.labels(), callee.pointers)
            )
            instructions.extend(written)
            slot += body.slots
            # Each right before what else its caller calls: the order in which libbpf lays them out.
            waiting[:0] = body._calls
            body._release()
        main._release()
        if entries:
            at = 0
            for insn in instructions:
                if isinstance(insn.reference, Subprogram):
                    insn.imm = entries[insn.reference] - at - 1
                at += 2 if insn.opcode == isa.LD_IMM64 else 1
        spec = ProgramSpec(
            self.name,
            self.type,
            self.attach_type,
            self.license,
            tuple(instructions),
            tuple(functions),
            byteorder,
            self.prog_flags,
            self.target,
            self.attach_to,
        )
        if self._check:
            refuse(spec)
        return spec


def _target(target: str | Target | None) -> Target | None:
    if target is None:
        return None
    from pybpfasm.target import Target

    try:
        return Target.of(target)
    except AsmError as error:
        raise AsmError(error.message, resolve(capture(None, 3))) from None


class Kind(Generic[C]):
    """A program type; called with an attach type, it is the decorator that declares a program of that
    type."""

    def __init__(self, type: ProgType, context: type[C], attach_types: tuple[AttachType, ...] = ()) -> None:
        self.type = type
        self.context = context
        self.attach_types = attach_types

    def __repr__(self) -> str:
        return f"<Kind {self.type.name}, on {self.context.__name__}>"

    @overload
    def __call__(
        self,
        attach_type: AttachType | None = None,
        *,
        name: str | None = None,
        license: str = DEFAULT_LICENSE,
        prog_flags: int = 0,
        check: bool = True,
        target: str | Target | None = None,
        attach_to: str | None = None,
    ) -> Callable[[Callable[Concatenate[Asm, C, P], None]], Template[P]]: ...

    @overload
    def __call__(
        self,
        attach_type: AttachType | None = None,
        *,
        name: str | None = None,
        license: str = DEFAULT_LICENSE,
        prog_flags: int = 0,
        check: bool = True,
        target: str | Target | None = None,
        attach_to: str | None = None,
        context: type[E],
    ) -> Callable[[Callable[Concatenate[Asm, E, P], None]], Template[P]]: ...

    def __call__(
        self,
        attach_type: AttachType | None = None,
        *,
        name: str | None = None,
        license: str = DEFAULT_LICENSE,
        prog_flags: int = 0,
        check: bool = True,
        target: str | Target | None = None,
        attach_to: str | None = None,
        context: type[Struct] | None = None,
    ) -> Callable[[Callable[..., None]], Template[P]]:
        """Declare a program.

        *name* (default: the function's) is what ``bpftool prog`` shows, 1 to 15 characters; *license* decides
        which helpers the kernel allows. With *check* false, mistakes that only the kernel has to refuse (a
        register that is not set, a field or helper that the program type does not have) are left to it.
        With a *target*, an ISA level (``"v1"`` to ``"v5"``) or a Linux release (``"5.15"``), the program and
        its subprograms use only instructions that this has: others are rewritten where that is exact and
        takes no register (`pybpfasm.asm.rewrite`), else an `AsmError` of their line.

        *attach_to* names what a program for tracing is attached to: a function (``"tcp_connect"``), a
        tracepoint (``"sched_switch"``; for `tracepoint` with its category, ``"sched/sched_switch"``) or an
        LSM hook. `tracing` and `lsm` must have it, because the kernel wants to know it when it loads them.

        *context* is what the program gets, where that is more than the program type tells: the record of a
        tracepoint's event, a class that is derived from `TraceEntry`.

        Raises `AsmError` for an attach type, *attach_to* or *context* that does not go with the program type,
        and a target that does not exist.
        """
        if attach_type is None and len(self.attach_types) == 1:
            attach_type = self.attach_types[0]
        mistake = self._mistake(attach_type, attach_to)
        given: object = context
        fits = given is None or (isinstance(given, type) and issubclass(given, self.context))
        if not mistake and not fits:
            shown = given.__name__ if isinstance(given, type) else repr(given)
            mistake = (
                f"{self.type.name} programs get a {self.context.__name__}: context= takes a class that is "
                f"derived from it, not {shown}"
            )
        if mistake:
            raise AsmError(mistake, resolve(capture(None, 2)))
        chosen = _target(target)

        def wrap(function: Callable[..., None]) -> Template[P]:
            check_function(function, "a program")
            shown = name if name is not None else function.__name__
            if not _NAME.fullmatch(shown):
                raise AsmError(
                    f"program name {shown!r}: the kernel takes 1 to 15 letters, digits and '_'; give name=…",
                    resolve(capture(None, 2)),
                )
            return Template(
                function,
                self.type,
                attach_type,
                self.context if context is None else context,
                shown,
                license,
                prog_flags,
                check,
                chosen,
                attach_to,
            )

        return wrap

    def _mistake(self, attach_type: object, attach_to: object) -> str:
        """What does not go with the program type, in words; ``""`` where nothing is wrong."""
        name = self.type.name
        allowed = ", ".join(a.name for a in self.attach_types)
        if callable(attach_type):
            return f"write the decorator with parentheses: @{name.lower()}()"
        if attach_type is None and self.type in WANTS_ATTACH_TYPE:
            return f"{name} programs need an attach type" + (f": {allowed}" if allowed else "")
        if attach_type is not None and not isinstance(attach_type, AttachType):
            return f"an attach type is an AttachType, not {attach_type!r}"
        if attach_type is not None and self.attach_types and attach_type not in self.attach_types:
            return f"{name} programs attach as {allowed}, not as {attach_type.name}"
        if attach_to is None and self.type in _LOADED_FOR:
            return f'{name} programs are loaded for one function: give attach_to="…"'
        if attach_to is not None and self.type not in _ATTACHED_BY_NAME:
            return f"{name} programs are attached by their loader: leave attach_to out"
        if attach_to is not None and not (isinstance(attach_to, str) and _TARGET.fullmatch(attach_to)):
            return f"attach_to names a function, a tracepoint or a hook of the kernel, not {attach_to!r}"
        return ""
