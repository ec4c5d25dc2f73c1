# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Parts of the instruction set and of BTF that came one after the other, each tried by loading the least that
has it. Programs here are text in the kernel's syntax.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from loader.features.answer import Answer, Asked, judge
from loader.features.attempt import Raw
from loader.objects import Btf, Program
from pybpfasm.btf import BtfBuilder, Linkage
from pybpfasm.kernel.enums import ProgType

if TYPE_CHECKING:
    from pybpfasm.asm import Asm

__all__ = ["BtfPart", "Isa", "part"]


class Isa(Asked):
    """What the verifier takes of the instruction set. v1 to v4 are what compilers call ``-mcpu``."""

    V1 = "ISA v1 (3.18)"
    V2 = "ISA v2: jumps if less (4.14)"
    V3 = "ISA v3: jumps that compare 32 bits (5.1)"
    V4 = "ISA v4: signed loads, moves and division, bswap, gotol (6.6)"
    SUBPROGRAMS = "calls of subprograms (4.16)"
    LARGE = "programs of more than 4096 instructions (5.2)"
    LOOPS = "loops that the verifier can see the end of (5.3)"
    ATOMICS = "atomics that fetch, exchange, compare (5.12)"
    MAY_GOTO = "may_goto (6.9)"
    LOAD_ACQUIRE = "load-acquire and store-release (6.15)"


class BtfPart(Asked):
    """What the kernel takes of BTF, and does with it."""

    TYPES = "BTF (4.18)"
    FUNC = "functions in BTF (5.0)"
    DATASEC = "variables and sections in BTF (5.2)"
    FUNC_GLOBAL = "linkage of functions in BTF (5.6)"
    FLOAT = "floating-point types in BTF (5.13)"
    DECL_TAG = "tags of declarations in BTF (5.16)"
    TYPE_TAG = "tags of types in BTF (5.17)"
    ENUM64 = "enumerations of 64 bits in BTF (6.0)"
    GLOBAL_FUNCTIONS = "global functions, each verified by itself (5.6)"


_PROGRAMS: Final[dict[Isa, str]] = {
    Isa.V1: "r0 = 0\nexit",
    Isa.V2: "r0 = 1\nif r0 < 2 goto +0\nif r0 s<= 2 goto +0\nexit",
    Isa.V3: "r0 = 1\nif w0 == 1 goto +0\nif w0 s< 2 goto +0\nexit",
    Isa.V4: """
        r0 = 6
        r1 = 2
        r0 = (s8)r0
        r0 s/= r1
        r0 s%= r1
        r0 = bswap16 r0
        *(u32 *)(r10 -4) = r0
        r0 = *(s16 *)(r10 -4)
        gotol +0
        exit
    """,
    Isa.SUBPROGRAMS: "call pc+1\nexit\nr0 = 0\nexit",
    Isa.LARGE: "r0 = 0\n" * 5000 + "exit",
    Isa.LOOPS: "r0 = 0\nr0 += 1\nif r0 != 9 goto -2\nexit",
    Isa.ATOMICS: """
        r0 = 1
        r1 = 2
        *(u64 *)(r10 -8) = r0
        r1 = atomic64_fetch_add((u64 *)(r10 -8), r1)
        r1 = xchg_64(r10 -8, r1)
        r0 = cmpxchg_64(r10 -8, r0, r1)
        w1 = atomic_fetch_or((u32 *)(r10 -8), w1)
        r0 = 0
        exit
    """,
    Isa.MAY_GOTO: "r0 = 0\nmay_goto +1\ngoto -2\nexit",
    Isa.LOAD_ACQUIRE: """
        r0 = 1
        store_release((u64 *)(r10 -8), r0)
        r0 = load_acquire((u64 *)(r10 -8))
        exit
    """,
}


def _program(text: str) -> Answer:
    from pybpfasm.text import assemble

    return judge(lambda: Program.load(Raw(ProgType.SOCKET_FILTER, assemble(text))).close())


def _global_functions() -> Answer:
    from pybpfasm.kernel.context import SkBuff
    from pybpfasm.program import global_function, sched_cls

    @global_function(SkBuff, "number")
    def probe_apart(b: Asm) -> None:
        b.r0 = b.r2
        b.exit()

    @sched_cls(name="probe")
    def calls(b: Asm, ctx: SkBuff) -> None:
        b.r2 = 0
        b.call(probe_apart)
        b.exit()

    return judge(lambda: Program.load(calls.build_for(sys.byteorder)).close())


def _int(b: BtfBuilder) -> int:
    return b.add_int("int", 4, signed=True)


def _func(b: BtfBuilder, linkage: Linkage) -> int:
    return b.add_func("probe", b.add_func_proto(_int(b)), linkage)


_TYPES: Final[dict[BtfPart, Callable[[BtfBuilder], object]]] = {
    BtfPart.TYPES: lambda b: b.add_struct("probe", 4, [("member", _int(b), 0)]),
    BtfPart.FUNC: lambda b: _func(b, Linkage.STATIC),
    BtfPart.DATASEC: lambda b: b.add_datasec(".data", 4, [(b.add_var("probe", _int(b)), 0, 4)]),
    BtfPart.FUNC_GLOBAL: lambda b: _func(b, Linkage.GLOBAL),
    BtfPart.FLOAT: lambda b: b.add_float("float", 4),
    BtfPart.DECL_TAG: lambda b: b.add_decl_tag("probe", b.add_struct("tagged", 4, [("member", _int(b), 0)])),
    BtfPart.TYPE_TAG: lambda b: b.add_ptr(b.add_type_tag("probe", _int(b))),
    BtfPart.ENUM64: lambda b: b.add_enum64("probe", {"probe_value": 1 << 40}),
}


def _types(describe: Callable[[BtfBuilder], object]) -> Answer:
    builder = BtfBuilder(sys.byteorder)
    describe(builder)
    return judge(lambda: Btf.load(builder.to_bytes()).close())


def part(asked: Asked) -> Answer:
    """Load the least that has it."""
    if asked is BtfPart.GLOBAL_FUNCTIONS:
        return _global_functions()
    if isinstance(asked, BtfPart):
        return _types(_TYPES[asked])
    if isinstance(asked, Isa):
        return _program(_PROGRAMS[asked])
    raise TypeError(f"{asked!r} is none of Isa and BtfPart")
