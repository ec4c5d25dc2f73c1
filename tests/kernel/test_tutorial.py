# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the tutorial loads, the kernel takes, or refuses with the words that the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.tutorial.blocks import ROOT, run_page, same_times
from loader.features import Feature
from loader.objects import Map, Program
from pybpfasm import U32, Asm, BpfSpinLock, BpfTimer, Helper, MapSpec, MapType, Nested, SkBuff, Struct
from pybpfasm.program import sched_cls, subprogram
from tests.requires import DYNPTR_FROM_SKB, DYNPTR_SIZE, RCU_READ_LOCK, Attempt, requires

pytestmark = pytest.mark.kernel


class Locked(Struct):
    """A value that a timer's callback locks."""

    timer = Nested(BpfTimer)
    lock = Nested(BpfSpinLock)


locked = MapSpec("locked", MapType.ARRAY, U32(), Locked, 1)


@subprogram("map", "key", "value")
def callback(b: Asm) -> None:
    """Takes the lock of its value and gives it back."""
    b.r6 = b.r3
    for helper in (Helper.spin_lock, Helper.spin_unlock):
        b.lea(b.r1, Locked(b.r6).lock)
        b.call(helper)
    b.ret(0)


@sched_cls()
def locks_late(b: Asm, ctx: SkBuff) -> None:
    """Has a timer with that callback."""
    key = b.stack_bytes(4)
    b.u32[key] = 0
    b.r1 = locked
    b.lea(b.r2, key)
    b.call(Helper.map_lookup_elem)
    with b.If(b.r0 != 0):
        b.lea(b.r1, Locked(b.r0).timer)
        b.r2 = callback
        b.call(Helper.timer_set_callback)
    b.ret(0)


def _lock_in_callback() -> None:
    with Map.create(locked) as made, Program.load(locks_late.build(), {"locked": made}):
        pass


# 6.1 does not know the value of a callback for one that has a lock.
LOCK_IN_CALLBACK = Attempt("lock in a timer's callback (6.2)", (6, 2), _lock_in_callback)


def _words(printed: str) -> str:
    """Without what the verifier knew of registers, which each kernel prints in its own way."""
    return re.sub(r"\n    r\d+ = .*", "", same_times(printed))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tutorial", 2),
        pytest.param("objects", 1, marks=requires(RCU_READ_LOCK, DYNPTR_FROM_SKB, DYNPTR_SIZE)),
        ("kinds", 4),
        pytest.param("maps", 5, marks=requires(Feature.TIMER, LOCK_IN_CALLBACK)),
    ],
)
def test_the_commands_for_root(name: str, count: int, tmp_path: Path) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    ran = [one for one in run_page(page, tmp_path, root=True, beside=ROOT / "docs" / name) if one[0].root]
    assert len(ran) == count
    for command, printed in ran:
        assert _words(printed) == _words(command.printed), f"line {command.line}: {command.text}"
