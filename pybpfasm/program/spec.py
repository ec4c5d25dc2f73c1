# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""An assembled program as plain data."""

from __future__ import annotations

import bisect
import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Self

from pybpfasm import isa
from pybpfasm.errors import AsmError, SourceLocation
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.enums import AttachType, ProgType
from pybpfasm.layout import ByteOrder, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.source import record, resolve

if TYPE_CHECKING:
    from pybpfasm.btf import Btf, BtfBuilder
    from pybpfasm.core import CoreRelocation, CoreResolver
    from pybpfasm.extern import Extern
    from pybpfasm.target import Requirement, Target

__all__ = ["WANTS_ATTACH_TYPE", "Function", "ProgramSpec"]


# Program types whose load wants expected_attach_type; for others it must be 0 or is ignored.
WANTS_ATTACH_TYPE: Final = frozenset(
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


@dataclass(frozen=True, slots=True)
class Function:
    """One function of a program: the main one, a subprogram or a callback.

    ``context`` is the type of the context that it takes in r1; functions that take one are global, others
    static. ``pointers`` are the structures that arguments of a global function point to, by their names.
    """

    name: str
    slot: int
    arguments: tuple[str, ...]
    context: type[Struct] | None
    labels: Mapping[int, str]
    pointers: Mapping[str, type[Struct]] = field(default_factory=dict)


def _open(instructions: Iterable[Instruction]) -> tuple[CoreRelocation | Extern, ...]:
    """What of *instructions* depends on the kernel's types."""
    from pybpfasm.core import CoreRelocation
    from pybpfasm.extern import Extern

    found = (insn.reference for insn in instructions if insn.reference is not None)
    return tuple(one for one in found if isinstance(one, (CoreRelocation, Extern)))


def _kfunc_number(insn: Instruction, kfuncs: Mapping[str, int]) -> int | None:
    """The number for a call of a function of the kernel by name, ``None`` for all else."""
    if insn.opcode != isa.OP_CALL or insn.reference is None:
        return None
    from pybpfasm.extern import Extern

    called = insn.reference
    return kfuncs.get(called.name) if isinstance(called, Extern) and called.kind == "kfunc" else None


class ProgramSpec:
    """An assembled program: instructions, the maps that they name, and where every one of them was written.

    It is plain data: the same source gives the same bytes on every machine. Descriptors of maps are filled in
    by `code`, at load.

    ``name``, ``type``, ``attach_type``, ``license`` and ``prog_flags`` (``BPF_F_*``) are for
    ``BPF_PROG_LOAD``. ``attach_to`` names the kernel's function, tracepoint or hook that the program is for,
    where it was given. ``instructions`` are all of the program's, subprograms behind the main function;
    ``functions`` says where each begins, ``slots`` how many slots of 8 bytes they take. ``maps`` are those
    that they name. ``byteorder`` is that of the machine which it was built for, ``target`` the ISA level or
    kernel release, where one was given. ``missing`` says by slot what the kernel lacks that it was resolved
    for: the verifier refuses the program if it can get there. Raises `AsmError` for two different maps of one
    name.
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
        self.missing: Mapping[int, str] = {}
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
        return self.attach_type if self.type in WANTS_ATTACH_TYPE else None

    def code(
        self,
        map_fds: Mapping[str, int] | None = None,
        *,
        local: bool = False,
        kfuncs: Mapping[str, int] | None = None,
    ) -> bytes:
        """The instructions' bytes, 8 a slot, with the descriptors of *map_fds* (by map name) in place, 0 for
        others.

        Raises `CoreError` where something is `unresolved`. With *local*, fields and types are taken to be in
        the kernel as the program declares them, as for a run without a kernel. *kfuncs* are numbers of
        functions of the kernel, by name, for calls that are not resolved.
        """
        unresolved = self.unresolved
        if unresolved and kfuncs:
            unresolved = _open(insn for insn in self.instructions if _kfunc_number(insn, kfuncs) is None)
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
            elif kfuncs and (number := _kfunc_number(insn, kfuncs)) is not None:
                insn = replace(insn, imm=number, reference=None)
            out.append(insn.encode(self.byteorder))
        return b"".join(out)

    @cached_property
    def unresolved(self) -> tuple[CoreRelocation | Extern, ...]:
        """What of the program depends on the kernel's types: see `pybpfasm.core`."""
        return _open(self.instructions)

    def resolve(self, target: Btf | CoreResolver) -> Self:
        """The program for the kernel whose BTF *target* is; the same one where nothing depends on it.

        Raises `CoreError` for what the kernel does not have, or has twice.
        """
        if not self.unresolved:
            return self
        from pybpfasm.core import POISON, CoreRelocation, CoreResolver

        resolver = target if isinstance(target, CoreResolver) else CoreResolver(target)
        made = copy.copy(self)
        made.instructions = resolver.instructions(self.name, self.instructions)
        for name in ("_starts", "unresolved"):
            made.__dict__.pop(name, None)
        refused = {
            slot
            for slot, insn in zip(made._starts, made.instructions, strict=True)
            if insn.opcode == isa.OP_CALL and insn.imm == POISON
        }
        if refused:
            made.missing = {
                slot: resolver.missing(insn.reference)
                for slot, insn in zip(self._starts, self.instructions, strict=True)
                if slot in refused and isinstance(insn.reference, CoreRelocation)
            }
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
            arguments = [
                (name, builder.add_ptr(function.pointers[name].btf(builder)))
                if name in function.pointers
                else (name, word)
                for name in function.arguments
            ]
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
