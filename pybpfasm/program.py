# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs and subprograms: from a Python function to a `ProgramSpec`, plain data that a loader can load.

    @sched_cls(AttachType.TCX_INGRESS)
    def drop_port(b: Asm, ctx: SkBuff, port: int) -> None:
        ...

    spec = drop_port.build(8000)

The function's further parameters are settings that become constants in the instructions.
"""

from __future__ import annotations

import bisect
import copy
import gc
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Concatenate, Final, Generic, ParamSpec, Self, TypeVar

from pybpfasm import isa
from pybpfasm.asm import Asm
from pybpfasm.check.early import refuse
from pybpfasm.errors import AsmError, LayoutError, SourceLocation
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.context import (
    BpfSock,
    CgroupDevice,
    PtRegs,
    RawTracepointArgs,
    SkBuff,
    SkLookup,
    SkMsgMd,
    SkReuseport,
    SockAddr,
    SockOps,
    SockOpt,
    Sysctl,
    TraceEntry,
    XdpMd,
)
from pybpfasm.kernel.enums import AttachType, ProgType, SkAction, TcxAction, XdpAction
from pybpfasm.layout import ByteOrder, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.source import CO_GENERATOR, RESUMABLE, capture, forget, raised_at, record, resolve

if TYPE_CHECKING:
    from pybpfasm.btf import Btf, BtfBuilder
    from pybpfasm.core import CoreRelocation, CoreResolver
    from pybpfasm.extern import Extern
    from pybpfasm.target import Requirement, Target

__all__ = [
    "Function",
    "Kind",
    "ProgramSpec",
    "Subprogram",
    "Template",
    "cgroup_device",
    "cgroup_skb",
    "cgroup_sock",
    "cgroup_sock_addr",
    "cgroup_sockopt",
    "cgroup_sysctl",
    "global_function",
    "kprobe",
    "lsm",
    "raw_tracepoint",
    "sched_cls",
    "sk_lookup",
    "sk_msg",
    "sk_reuseport",
    "sk_skb",
    "sock_ops",
    "socket_filter",
    "subprogram",
    "tracepoint",
    "tracing",
    "xdp",
]

# The license of this project, in words that license_is_gpl_compatible() of the kernel accepts.
DEFAULT_LICENSE: Final = "Dual BSD/GPL"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,14}")
_TARGET = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*(/[A-Za-z_]\w*)?", re.ASCII)

# Program types whose load wants expected_attach_type; for others it must be 0 or is ignored.
_WANTS_ATTACH_TYPE = frozenset(
    {
        ProgType.CGROUP_SOCKOPT,
        ProgType.CGROUP_SOCK_ADDR,
        ProgType.CGROUP_SOCK,
        ProgType.CGROUP_SKB,
        ProgType.SK_LOOKUP,
        ProgType.SK_REUSEPORT,
        ProgType.TRACING,
        ProgType.LSM,
    }
)
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


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a program: the main one, a subprogram or a callback.

    ``context`` is the type of the context that it takes in r1; functions that take one are global, others
    static.
    """

    name: str
    slot: int
    arguments: tuple[str, ...]
    context: type[Struct] | None
    labels: Mapping[int, str]


class ProgramSpec:
    """An assembled program: instructions, the maps that they name, and where every one of them was written.

    It is plain data: the same source gives the same bytes on every machine. Descriptors of maps are filled in
    by `code`, at load.

    ``name``, ``type``, ``attach_type``, ``license`` and ``prog_flags`` (``BPF_F_*``) are for
    ``BPF_PROG_LOAD``. ``attach_to`` names the kernel's function, tracepoint or hook that the program is for,
    where it was given. ``instructions`` are all of the program's, subprograms behind the main function;
    ``functions`` says where each begins, ``slots`` how many slots of 8 bytes they take. ``maps`` are those
    that they name. ``byteorder`` is that of the machine which it was built for, ``target`` the ISA level or
    kernel release, where one was given. Raises `AsmError` for two different maps of one name.
    """

    def __init__(
        self,
        name: str,
        type: ProgType,
        attach_type: AttachType | None,
        license: str,
        instructions: tuple[Instruction, ...],
        functions: tuple[Function, ...],
        byteorder: ByteOrder,
        prog_flags: int = 0,
        target: Target | None = None,
        attach_to: str | None = None,
    ) -> None:
        self.name = name
        self.type = type
        self.attach_type = attach_type
        self.license = license
        self.instructions = instructions
        self.functions = functions
        self.byteorder: ByteOrder = byteorder
        self.prog_flags = prog_flags
        self.target = target
        self.attach_to = attach_to
        self._debug: tuple[bytes, bytes, bytes] | None = None
        maps: dict[str, MapSpec] = {}
        wide = 0
        for insn in instructions:
            if insn.opcode == isa.LD_IMM64:
                wide += 1
            if insn.reference is not None and isinstance(insn.reference, MapSpec):
                known = maps.setdefault(insn.reference.name, insn.reference)
                if known is not insn.reference:
                    raise AsmError(
                        f"{name} names two different maps {known.name!r}",
                        None if insn.origin is None else resolve(insn.origin),
                    )
        self.slots = len(instructions) + wide
        self.maps: tuple[MapSpec, ...] = tuple(maps.values())

    @cached_property
    def _starts(self) -> list[int]:
        """The slot of every instruction."""
        slots = (2 if insn.opcode == isa.LD_IMM64 else 1 for insn in self.instructions)
        return list(accumulate(slots, initial=0))[:-1]

    @cached_property
    def _ordered(self) -> list[Function]:
        """The functions by their places."""
        return sorted(self.functions, key=lambda function: function.slot)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.type.name} {self.slots} slots>"

    @property
    def requirement(self) -> Requirement:
        """The ISA level and the kernel release that the instructions need; ``str()`` of it is
        ``v3, Linux 5.12``."""
        from pybpfasm.target import required_version

        return required_version(self.instructions)

    @property
    def expected_attach_type(self) -> AttachType | None:
        """The attach type that ``BPF_PROG_LOAD`` wants to know, or ``None`` where it wants none."""
        return self.attach_type if self.type in _WANTS_ATTACH_TYPE else None

    def code(self, map_fds: Mapping[str, int] | None = None, *, local: bool = False) -> bytes:
        """The instructions' bytes, 8 a slot, with the descriptors of *map_fds* (by map name) in place, 0 for
        others.

        Raises `CoreError` where something is `unresolved`. With *local*, fields and types are taken to be in
        the kernel as the program declares them, as for a run without a kernel.
        """
        unresolved = self.unresolved
        if unresolved and local:
            from pybpfasm.core import CoreRelocation

            unresolved = tuple(one for one in unresolved if not isinstance(one, CoreRelocation))
        if unresolved:
            from pybpfasm.core import CoreError

            shown = ", ".join(sorted({str(one) for one in unresolved})[:5])
            raise CoreError(
                f"program {self.name} needs the kernel's types for {shown}: "
                "call resolve() with the BTF of the kernel that it is for (/sys/kernel/btf/vmlinux)"
            )
        fds = map_fds or {}
        out = []
        for insn in self.instructions:
            reference = insn.reference
            if isinstance(reference, MapSpec) and reference.name in fds:
                insn = Instruction(
                    insn.opcode, insn.dst, insn.src, insn.offset, fds[reference.name], insn.imm_high
                )
            out.append(insn.encode(self.byteorder))
        return b"".join(out)

    @cached_property
    def unresolved(self) -> tuple[CoreRelocation | Extern, ...]:
        """What of the program depends on the kernel's types: see `pybpfasm.core`."""
        from pybpfasm.core import CoreRelocation
        from pybpfasm.extern import Extern

        found = (insn.reference for insn in self.instructions if insn.reference is not None)
        return tuple(one for one in found if isinstance(one, (CoreRelocation, Extern)))

    def resolve(self, target: Btf | CoreResolver) -> Self:
        """The program for the kernel whose BTF *target* is; the same one where nothing depends on it.

        Raises `CoreError` for what the kernel does not have, or has twice.
        """
        if not self.unresolved:
            return self
        from pybpfasm.core import CoreResolver

        resolver = target if isinstance(target, CoreResolver) else CoreResolver(target)
        made = copy.copy(self)
        made.instructions = resolver.instructions(self.name, self.instructions)
        for name in ("_starts", "unresolved"):
            made.__dict__.pop(name, None)
        return made

    def location(self, slot: int) -> SourceLocation | None:
        """The Python line that wrote the instruction at 8-byte *slot*, ``None`` outside the program and where
        no line is known."""
        index = bisect.bisect_right(self._starts, slot) - 1
        if index < 0 or slot >= self.slots:
            return None
        origin = self.instructions[index].origin
        return None if origin is None else resolve(origin)

    def function_at(self, slot: int) -> Function:
        """The function that the instruction at *slot* belongs to."""
        return self._ordered[bisect.bisect_right(self._ordered, slot, key=lambda f: f.slot) - 1]

    def listing(self, *, lines: bool = True) -> str:
        """The program as the kernel prints it, below the Python lines that wrote it (unless ``lines`` is
        false)."""
        from pybpfasm.listing import listing

        return listing(self, lines=lines)

    def btf(self) -> bytes:
        """BTF with the functions' prototypes and the strings that `line_info` names, in the program's byte
        order."""
        return self._debug_info()[0]

    def func_info(self) -> bytes:
        """``struct bpf_func_info`` records (8 bytes each), one for every function."""
        return self._debug_info()[1]

    def line_info(self) -> bytes:
        """``struct bpf_line_info`` records (16 bytes each), one wherever the Python line changes."""
        return self._debug_info()[2]

    def _debug_info(self) -> tuple[bytes, bytes, bytes]:
        if self._debug is None:
            self._debug = self._build_debug_info()
        return self._debug

    def _build_debug_info(self) -> tuple[bytes, bytes, bytes]:
        from pybpfasm.btf import BtfBuilder, Linkage, pack_func_info, pack_line_info

        builder = BtfBuilder(self.byteorder)
        integer = builder.add_int("int", 4, signed=True)
        word = builder.add_int("unsigned long long", 8)
        functions = []
        for function in self.functions:
            arguments = [(argument, word) for argument in function.arguments]
            if function.context is not None:
                arguments.insert(0, ("ctx", self._context_pointer(builder, function.context)))
            proto = builder.add_func_proto(integer, arguments)
            linkage = Linkage.STATIC if function.context is None else Linkage.GLOBAL
            functions.append((function.slot, builder.add_func(function.name, proto, linkage)))
        func_info = pack_func_info(functions, self.byteorder)
        line_info = pack_line_info(self._line_records(builder), self.byteorder)
        return builder.to_bytes(), func_info, line_info

    def _line_records(self, builder: BtfBuilder) -> Iterator[tuple[int, int, int, int, int]]:
        """The fields of a `LineInfo` wherever the Python line changes; strings are added to *builder*."""
        from pybpfasm.btf.info import MAX_LINE

        starts = {function.slot for function in self.functions}
        last_file, last_line = "", -1
        for slot, insn in zip(self._starts, self.instructions, strict=True):
            if insn.origin is None and slot not in starts:
                continue
            # The kernel wants a line for the first instruction of every function.
            filename, line, text = ("", 0, "") if insn.origin is None else record(insn.origin)
            if line == last_line and filename == last_file and slot not in starts:
                continue
            last_file, last_line = filename, line
            yield slot, builder.string(filename), builder.string(text), min(line, MAX_LINE), 0

    @staticmethod
    def _context_pointer(builder: BtfBuilder, context: type[Struct]) -> int:
        # Its members are the kernel's to know, but it recognises a struct and no forward declaration.
        return builder.add_ptr(builder.add_struct(context.kernel_name, context.sizeof, []))


@contextmanager
def _writing(b: Asm) -> Iterator[None]:
    """Run a program's Python function: a misspelt register is an error of its line like all others.

    The garbage collector pauses: it would look through all instructions again and again, and find nothing.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    except LayoutError as error:
        raise AsmError(str(error), raised_at(error, b.entry)) from None
    except AttributeError as error:
        words = str(error)
        if "'Asm' object" not in words:
            raise
        message = words.replace("'Asm' object", "the assembler")
        if "has no setter" in words:
            message = (
                f"b.{words.split(chr(39))[1]} can't be assigned to: memory is written as b.u32[b.r1] = …"
            )
        raise AsmError(message, raised_at(error, b.entry)) from None
    finally:
        if collects:
            gc.enable()
        forget()
        b._forget()


P = ParamSpec("P")
C = TypeVar("C", bound=Struct)


class Subprogram:
    """A function that programs call (``b.call(f)``) or pass as a callback (``b.r2 = f``).

    Its code is written once in each program that names it. `bind` gives it the settings that its Python
    function takes.
    """

    __slots__ = ("_arguments", "_function", "_settings", "context", "name")

    def __init__(
        self,
        function: Callable[..., None],
        arguments: tuple[str, ...],
        settings: tuple[object, ...] = (),
        context: type[Struct] | None = None,
    ) -> None:
        self._function = function
        self._arguments = arguments
        self._settings = settings
        self.context = context
        self.name = function.__name__

    def bind(self, *settings: object) -> Subprogram:
        """The same subprogram with *settings* for the parameters of its Python function after the first."""
        return Subprogram(self._function, self._arguments, settings, self.context)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Subprogram):
            return NotImplemented
        return self._function is other._function and self._settings == other._settings

    def __hash__(self) -> int:
        return hash(self._function)

    def __repr__(self) -> str:
        return f"<subprogram {self.name}>"

    def write(self, byteorder: ByteOrder, target: Target | None = None) -> Asm:
        """The subprogram's own instructions, for the *target* of the program that names it."""
        b = Asm(self.name, self._function.__code__, byteorder, target)
        with _writing(b):
            self._function(b, *self._settings)
        return b

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names of the arguments, which come in r1 and up."""
        return self._arguments


def _check_function(function: object, what: str) -> None:
    code = getattr(function, "__code__", None)
    name = type(function).__name__
    if code is not None and code.co_flags & RESUMABLE:
        name = "a generator" if code.co_flags & CO_GENERATOR else "a coroutine"
        code = None
    if code is None:
        raise AsmError(f"{what} is a plain function, not {name}", resolve(capture(None, 3)))


def subprogram(*arguments: str) -> Callable[[Callable[..., None]], Subprogram]:
    """Declare a subprogram whose *arguments*, at most five, come in r1 and up::

    @subprogram("data", "length")
    def sum_bytes(b: Asm) -> None: ...

    Raises `AsmError` for more arguments, and for what is no plain function.
    """
    if len(arguments) > 5:
        raise AsmError(
            f"a subprogram takes at most 5 arguments, in r1 to r5; got {len(arguments)}",
            resolve(capture(None, 2)),
        )
    if not all(isinstance(argument, str) for argument in arguments):
        raise AsmError(
            'a subprogram names its arguments: @subprogram("data", "length"), or @subprogram()',
            resolve(capture(None, 2)),
        )

    def wrap(function: Callable[..., None]) -> Subprogram:
        _check_function(function, "a subprogram")
        return Subprogram(function, arguments)

    return wrap


def global_function(context: type[Struct], *arguments: str) -> Callable[[Callable[..., None]], Subprogram]:
    """Declare a subprogram that the verifier checks once, by itself, and not anew for every call (Linux 5.6).

    It takes the program's context, of type *context*, in r1, and in r2 and up at most four integers, of which
    nothing is known inside; of its result the caller knows as little. So there are fewer states to follow.
    Raises `AsmError` for more arguments, and for what is no plain function.
    """
    if len(arguments) > 4:
        raise AsmError(
            f"a global function takes at most 4 arguments beside its context; got {len(arguments)}",
            resolve(capture(None, 2)),
        )

    def wrap(function: Callable[..., None]) -> Subprogram:
        _check_function(function, "a global function")
        return Subprogram(function, arguments, context=context)

    return wrap


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
        with _writing(main):
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
            functions.append(Function(callee.name, slot, callee.arguments, callee.context, body.labels()))
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
    ) -> Callable[[Callable[Concatenate[Asm, C, P], None]], Template[P]]:
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

        Raises `AsmError` for an attach type or *attach_to* that does not go with the program type, and a
        target that does not exist.
        """
        if attach_type is None and len(self.attach_types) == 1:
            attach_type = self.attach_types[0]
        mistake = self._mistake(attach_type, attach_to)
        if mistake:
            raise AsmError(mistake, resolve(capture(None, 2)))
        chosen = _target(target)

        def wrap(function: Callable[Concatenate[Asm, C, P], None]) -> Template[P]:
            _check_function(function, "a program")
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
                self.context,
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
        if attach_type is None and self.type in _WANTS_ATTACH_TYPE:
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


sched_cls: Final = Kind(ProgType.SCHED_CLS, SkBuff, (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS))
"""Programs at traffic control (``BPF_PROG_TYPE_SCHED_CLS``), on `SkBuff`; they return a `TcxAction`."""
xdp: Final = Kind(ProgType.XDP, XdpMd, (AttachType.XDP,))
"""Programs at the driver (``BPF_PROG_TYPE_XDP``), on `XdpMd`; they return an `XdpAction`."""
socket_filter: Final = Kind(ProgType.SOCKET_FILTER, SkBuff)
"""Filters of a socket (``BPF_PROG_TYPE_SOCKET_FILTER``), on `SkBuff`; they return how many bytes to keep."""
cgroup_sockopt: Final = Kind(
    ProgType.CGROUP_SOCKOPT, SockOpt, (AttachType.CGROUP_GETSOCKOPT, AttachType.CGROUP_SETSOCKOPT)
)
"""Programs of a cgroup around ``getsockopt`` and ``setsockopt`` (``BPF_PROG_TYPE_CGROUP_SOCKOPT``), on
`SockOpt`; they return 1 to allow, 0 to refuse. The attach type must be given."""
cgroup_sock_addr: Final = Kind(ProgType.CGROUP_SOCK_ADDR, SockAddr)
"""Programs of a cgroup at ``connect``, ``bind``, ``sendmsg`` and the like
(``BPF_PROG_TYPE_CGROUP_SOCK_ADDR``), on `SockAddr`; they return 1 to allow, 0 to refuse. The attach type must
be given."""
sock_ops: Final = Kind(ProgType.SOCK_OPS, SockOps, (AttachType.CGROUP_SOCK_OPS,))
"""Programs of a cgroup at events of TCP connections (``BPF_PROG_TYPE_SOCK_OPS``), on `SockOps`."""
sk_msg: Final = Kind(ProgType.SK_MSG, SkMsgMd, (AttachType.SK_MSG_VERDICT,))
"""Programs of a sockmap at each message that is sent (``BPF_PROG_TYPE_SK_MSG``), on `SkMsgMd`; they return 1
to pass, 0 to drop."""
sk_lookup: Final = Kind(ProgType.SK_LOOKUP, SkLookup, (AttachType.SK_LOOKUP,))
"""Programs of a network namespace that choose the socket of a packet (``BPF_PROG_TYPE_SK_LOOKUP``), on
`SkLookup`; they return 1 to go on, 0 to drop."""
sk_skb: Final = Kind(
    ProgType.SK_SKB,
    SkBuff,
    (AttachType.SK_SKB_STREAM_PARSER, AttachType.SK_SKB_STREAM_VERDICT, AttachType.SK_SKB_VERDICT),
)
"""Programs of a sockmap at what its sockets receive (``BPF_PROG_TYPE_SK_SKB``), on `SkBuff`; a parser returns
the length of a message, a verdict 1 to pass, 0 to drop."""
sk_reuseport: Final = Kind(
    ProgType.SK_REUSEPORT,
    SkReuseport,
    (AttachType.SK_REUSEPORT_SELECT, AttachType.SK_REUSEPORT_SELECT_OR_MIGRATE),
)
"""Programs that choose among the sockets of a port (``BPF_PROG_TYPE_SK_REUSEPORT``), on `SkReuseport`; they
return 1 to pass, 0 to drop. The attach type must be given."""
cgroup_skb: Final = Kind(
    ProgType.CGROUP_SKB, SkBuff, (AttachType.CGROUP_INET_INGRESS, AttachType.CGROUP_INET_EGRESS)
)
"""Programs of a cgroup at its sockets' packets (``BPF_PROG_TYPE_CGROUP_SKB``), on `SkBuff`; they return 1 to
pass, 0 to drop. The attach type must be given."""
cgroup_sock: Final = Kind(
    ProgType.CGROUP_SOCK,
    BpfSock,
    (
        AttachType.CGROUP_INET_SOCK_CREATE,
        AttachType.CGROUP_INET_SOCK_RELEASE,
        AttachType.CGROUP_INET4_POST_BIND,
        AttachType.CGROUP_INET6_POST_BIND,
    ),
)
"""Programs of a cgroup when sockets are made, bound and given up (``BPF_PROG_TYPE_CGROUP_SOCK``), on
`BpfSock`; they return 1 to allow, 0 to refuse. The attach type must be given."""
cgroup_device: Final = Kind(ProgType.CGROUP_DEVICE, CgroupDevice, (AttachType.CGROUP_DEVICE,))
"""Programs of a cgroup that allow devices (``BPF_PROG_TYPE_CGROUP_DEVICE``), on `CgroupDevice`; they return 1
to allow, 0 to refuse."""
cgroup_sysctl: Final = Kind(ProgType.CGROUP_SYSCTL, Sysctl, (AttachType.CGROUP_SYSCTL,))
"""Programs of a cgroup at sysctls (``BPF_PROG_TYPE_CGROUP_SYSCTL``), on `Sysctl`; they return 1 to allow, 0
to refuse."""
kprobe: Final = Kind(ProgType.KPROBE, PtRegs)
"""Programs at an instruction of the kernel (kprobes) or of a process (uprobes; ``BPF_PROG_TYPE_KPROBE``), on
`PtRegs`; they return 0."""
tracepoint: Final = Kind(ProgType.TRACEPOINT, TraceEntry)
"""Programs at a tracepoint (``BPF_PROG_TYPE_TRACEPOINT``), on the event's record, which begins with
`TraceEntry`; they return 0."""
raw_tracepoint: Final = Kind(ProgType.RAW_TRACEPOINT, RawTracepointArgs)
"""Programs at a tracepoint (``BPF_PROG_TYPE_RAW_TRACEPOINT``), on its arguments as plain numbers,
`RawTracepointArgs`; they return 0."""
tracing: Final = Kind(
    ProgType.TRACING,
    RawTracepointArgs,
    (AttachType.TRACE_FENTRY, AttachType.TRACE_FEXIT, AttachType.MODIFY_RETURN, AttachType.TRACE_RAW_TP),
)
"""Programs at the entry or exit of a function of the kernel, or at a tracepoint (``BPF_PROG_TYPE_TRACING``),
on its arguments, `RawTracepointArgs`. The verifier knows the arguments' types, so that loads follow their
pointers. The attach type and ``attach_to`` must be given. They return 0, but for ``MODIFY_RETURN``."""
lsm: Final = Kind(ProgType.LSM, RawTracepointArgs, (AttachType.LSM_MAC, AttachType.LSM_CGROUP))
"""Programs at a hook of the Linux security modules (``BPF_PROG_TYPE_LSM``), as `tracing`; they return 0 to
allow or a negative errno. The attach type and ``attach_to`` (``"file_open"``) must be given."""
