# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Listings say what the kernel says: every statement of the reference, printed by the verifier's log."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest

from loader import sys as bpf_sys
from loader.features import Isa
from pybpfasm.asm import Asm
from pybpfasm.instruction import encode
from pybpfasm.kernel.enums import ProgType
from pybpfasm.listing import text
from pybpfasm.target import required_version
from tests.unit.statements import namespace, sections

STATEMENTS = [row[0] for rows in sections().values() for row in rows]
ORDERED = ["b.u64[b.r1 + 8].load_acquire(b.r2)", "b.u64[b.r1 + 8].store_release(b.r2)"]


@pytest.mark.parametrize("statement", STATEMENTS + ORDERED)
def test_first_instruction_as_the_kernel_prints_it(statement: str, needs: Callable[..., None]) -> None:
    """The verifier prints an instruction before it judges it."""
    b = Asm("text")
    names = namespace(b)
    b.If(b.r10 == 0).goto("after")  # so that all can be reached
    exec(compile(statement, "<statement>", "exec"), names)
    b.label("after")
    b.r9 = 9
    b.r9 = 9
    b.label("two_on")
    b.ret(0)
    body = b.finish()
    release = required_version(body).kernel
    needs(*[isa for isa in Isa if isa.since == release])
    done = bpf_sys.prog_load(
        int(ProgType.SCHED_CLS), encode(body), license="GPL", name="text", log_level=2, log_size=1 << 16
    )
    if done.fd >= 0:
        os.close(done.fd)
    printed = re.search(r"^1: \((..)\) (.*?)(?: +;.*)?$", done.log, re.M)
    assert printed is not None, done.log
    assert (printed[1], printed[2].strip()) == (f"{body[1].opcode:02x}", text(body[1]))
