# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Global functions with pointers to memory: the kernel takes their types, the emulator does the same."""

from __future__ import annotations

import re

import pytest

from loader.elf import load
from loader.objects import Program
from loader.verifier import VerifierError
from pybpfasm import U32, U64, Asm, SkBuff, Struct, global_function, sched_cls
from pybpfasm.btf import Btf, Kind, Linkage
from pybpfasm.check import Severity, check
from pybpfasm.elf import write_object
from pybpfasm.emulator import Emulator, Skb
from tests.requires import Attempt, requires


class Event(Struct):
    """What the functions below get: 16 bytes."""

    length = U32()
    mark = U32()
    total = U64()


@global_function(SkBuff, "number", event=Event)
def add(b: Asm) -> None:
    """Adds to the total; 7 without an event."""
    with b.If(b.r3 == 0):
        b.ret(7)
    event = Event(b.r3)
    b.r0 = event.total
    b.r0 += b.r2
    event.total = b.r0
    b.ret(0)


@global_function(SkBuff, first=Event, second=Event)
def unchecked(b: Asm) -> None:
    """Compares one of two pointers, and uses both."""
    with b.If(b.r2 == 0):
        b.ret(0)
    b.r0 = Event(b.r2).mark
    b.r0 = Event(b.r3).mark
    b.exit()


@sched_cls()
def adds(b: Asm, ctx: SkBuff) -> None:
    """5 + 6 in the upper bytes, and what no event gives."""
    b.r6 = ctx
    event = b.stack(Event)
    b.zero(event)
    for number in (5, 6):
        b.r1 = b.r6
        b.r2 = number
        b.lea(b.r3, event)
        b.call(add)
    b.r1 = b.r6
    b.r2 = 1
    b.r3 = 0
    b.call(add)
    b.r7 = event.total
    b.r7 <<= 8
    b.r0 += b.r7
    b.exit()


@sched_cls()
def passes_less(b: Asm, ctx: SkBuff) -> None:
    """12 bytes, where the structure has 16."""
    place = b.stack_bytes(16)
    b.u64[place] = 0
    b.u64[place + 8] = 0
    b.r2 = 1
    b.lea(b.r3, place + 4)
    b.call(add)
    b.ret(0)


@sched_cls()
def calls_unchecked(b: Asm, ctx: SkBuff) -> None:
    b.r2 = 0
    b.r3 = 0
    b.call(unchecked)
    b.ret(0)


POINTERS = Attempt("a pointer to memory in a global function", (5, 13), lambda: _load_and_close())


def _load_and_close() -> None:
    Program.load(adds.build(), {}).close()


def test_the_types_of_the_arguments() -> None:
    """In BTF the last is a pointer to a structure of 16 bytes, and the function global."""
    built = adds.build()
    btf = Btf.parse(built.btf())
    function = btf.by_name("add", Kind.FUNC)
    assert function is not None and function.linkage == Linkage.GLOBAL
    params = btf.type(function.type_id).params
    assert [one.name for one in params] == ["ctx", "number", "event"]
    pointer = btf.type(params[2].type_id)
    struct = btf.type(pointer.type_id)
    assert (pointer.kind, struct.kind, struct.name, struct.size) == (Kind.PTR, Kind.STRUCT, "Event", 16)
    assert "add(struct __sk_buff *ctx, number, struct Event *event):" in built.listing()


@requires(POINTERS)
def test_memory_is_passed_to_a_global_function() -> None:
    built = adds.build()
    assert check(built) == []
    expected = (5 + 6) << 8 | 7
    with Program.load(built, {}) as program:
        assert program.test_run(bytes(64)).retval == expected
    for engine in ("interpret", "translate"):
        assert Emulator(engine=engine).load(built).run(Skb(bytes(64))).value == expected
    with load(write_object([built])) as loaded:
        assert loaded.programs["adds"].test_run(bytes(64)).retval == expected


@requires(POINTERS)
def test_it_is_verified_once() -> None:
    """The calls are of a function that is assumed to be valid, and has a type for the memory."""
    with Program.load(adds.build(), {}, log_level=2) as program:
        assert len(re.findall(r"is global and (?:assumed )?valid", program.log)) == 3
        assert program.log.count("Validating add() func#1") == 1


@requires(POINTERS)
def test_less_memory_than_the_structure_is_refused() -> None:
    with pytest.raises(VerifierError):
        Program.load(passes_less.build(), {})


@requires(POINTERS)
def test_a_pointer_that_may_be_null_is_compared_first() -> None:
    """The check says so, of the one that is not, and so does the kernel."""
    built = calls_unchecked.build()
    (finding,) = check(built)
    assert (finding.severity, finding.code) == (Severity.ERROR, "null-check")
    assert finding.message.startswith(
        "r3 is dereferenced without a check whether it is 0: a global function may"
    )
    assert finding.location is not None and "Event(b.r3)" in finding.location.text
    with pytest.raises(VerifierError, match="R3 invalid mem access 'mem_or_null'"):
        Program.load(built, {})


def test_a_function_that_is_bound_keeps_its_pointers() -> None:
    assert dict(add.bind().pointers) == {"event": Event}
