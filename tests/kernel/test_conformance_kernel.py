# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The conformance vectors run by the kernel, with ``BPF_PROG_TEST_RUN``.

A vector is made a function of its own, called with the address of its memory (the value of an array map,
whose size the verifier knows) and the length; what it returns is stored in another map, because the program's
own result has 32 bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from loader.sys import map_create, map_lookup, map_update, prog_load, prog_test_run
from pybpfasm.instruction import Instruction, encode
from pybpfasm.kernel.defines import BPF_F_ANY_ALIGNMENT
from pybpfasm.kernel.enums import MapType, ProgType
from pybpfasm.text import assemble
from tests.conformance import Vector, vectors
from tests.requires import needed, requires

POSITIVE = vectors("tests")
NEGATIVE = vectors("negative")

REFUSED = {
    "arsh32-imm-high",
    "callx",
    "lsh32-imm-neg",
    "lsh64-imm-high",
    "lsh64-imm-neg",
    "rsh32-imm-high",
    "rsh32-imm-neg",
    "rsh64-imm-high",
}


@dataclass(frozen=True)
class Outcome:
    """The value of r0, or why the verifier refused the program."""

    value: int | None
    log: str


def run(code: list[Instruction], memory: bytes) -> Outcome:
    fds: list[int] = []
    try:
        result = map_create(MapType.ARRAY, 4, 8, 1)
        fds.append(result)
        held = map_create(MapType.ARRAY, 4, max(len(memory), 8), 1)
        fds.append(held)
        map_update(held, bytes(4), memory.ljust(8, b"\0"))
        around = assemble(
            f"""
            {f"r1 = map[id:{held}][0]+0" if memory else "r1 = 0"}
            r2 = {len(memory)}
            call vector
            r1 = map[id:{result}][0]+0
            *(u64 *)(r1 +0) = r0
            r0 = 0
            exit
            vector:
            """
        )
        loaded = prog_load(
            ProgType.SCHED_CLS,
            encode([*around, *code]),
            license="GPL",
            name="vector",
            flags=BPF_F_ANY_ALIGNMENT,
            log_level=1,
            log_size=1 << 20,
        )
        if loaded.fd < 0:
            return Outcome(None, loaded.log)
        fds.append(loaded.fd)
        assert prog_test_run(loaded.fd, data=bytes(64))[0] == 0
        value = map_lookup(result, bytes(4), 8)
        assert value is not None
        return Outcome(int.from_bytes(value, "little"), "")
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize(
    "vector",
    [pytest.param(v, id=v.name, marks=requires(*needed(v.instructions()))) for v in POSITIVE],
)
def test_result(vector: Vector) -> None:
    """The verifier refuses those, and only those, with an instruction that the table says it refuses: shifts
    by more than the register has bits, and the call of a register."""
    code = vector.instructions()
    outcome = run(code, vector.mem)
    if any(insn.kernel_problem() for insn in code):
        assert vector.name in REFUSED
        assert outcome.value is None
        assert "invalid shift" in outcome.log or "unknown opcode 8d" in outcome.log, outcome.log
    else:
        assert vector.name not in REFUSED
        assert outcome.value == vector.result, outcome.log


def test_a_wrong_result_is_seen() -> None:
    """The vector that the suite keeps for it: only the upper half of the result is wrong."""
    vector = next(v for v in NEGATIVE if v.name == "incorrect_return_value_high_bits")
    outcome = run(vector.instructions(), vector.mem)
    assert outcome.value is not None
    assert vector.result is not None
    assert outcome.value != vector.result
    assert outcome.value & 0xFFFFFFFF == vector.result & 0xFFFFFFFF


@pytest.mark.parametrize(
    "vector", [v for v in NEGATIVE if v.name.startswith("unused-")], ids=lambda v: v.name
)
def test_the_kernel_refuses_what_we_refuse(vector: Vector) -> None:
    # r0 is a number that the verifier does not know, so that it goes both ways, and through the instruction.
    before = assemble("call bpf_ktime_get_ns#5\nr1 = 1\nif r0 == 0x5 goto pc+1")
    code = encode(before) + vector.raw()
    loaded = prog_load(ProgType.SCHED_CLS, code, license="GPL", log_level=1, log_size=1 << 16)
    if loaded.fd >= 0:
        os.close(loaded.fd)
    assert loaded.fd < 0
    assert "reserved fields" in loaded.log or "unknown opcode" in loaded.log, loaded.log
