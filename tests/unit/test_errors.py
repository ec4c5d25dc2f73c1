# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Errors that cross from one process to another, as out of a pool that fuzzes programs."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from pybpfasm.asm import Asm
from pybpfasm.emulator import Emulator, EmulatorFault, Skb
from pybpfasm.errors import PybpfasmError
from pybpfasm.instruction import Instruction, decode
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import U32
from pybpfasm.maps import MapSpec
from pybpfasm.program import sched_cls
from pybpfasm.text import assemble

ONE = MapSpec("one", MapType.ARRAY, U32(), U32(), 1)


@sched_cls()
def beyond(b: Asm, ctx: SkBuff) -> None:
    b.r0 = b.u32[b.r10 + 8]
    b.exit()


@sched_cls()
def wrong(b: Asm, ctx: SkBuff) -> None:
    b.r10 += 1


RAISING: dict[str, Callable[[], object]] = {
    "text": lambda: assemble("exit\nr1 = r11", filename="f.s"),
    "fault": lambda: Emulator().load(beyond.build()).run(Skb(bytes(64)), trace=True),
    "map": lambda: Emulator().map(ONE).__setitem__(7, 1),
    "asm": lambda: wrong.build(),
    "decode": lambda: decode(b"x"),
    "encode": lambda: Instruction(0xFF).encode(),
}


@pytest.mark.parametrize("raising", RAISING.values(), ids=RAISING.keys())
def test_an_error_is_the_same_behind_a_pipe(raising: Callable[[], object]) -> None:
    with pytest.raises(PybpfasmError) as caught:
        raising()
    error = caught.value
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert (str(found), found.args) == (str(error), error.args)
    if isinstance(error, EmulatorFault) and isinstance(found, EmulatorFault):
        assert error.trace and not found.trace
        error.trace = ()
    assert vars(found) == vars(error)
