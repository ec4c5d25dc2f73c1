# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Random programs in both engines of the emulator and in the kernel: results, packets and maps are equal.

``PYBPFASM_DIFFERENTIAL`` is how many programs (2000 where it is not set), ``PYBPFASM_SEED`` the number of the
first. ``python -m tests.kernel.test_emulator_differential --programs 1000000`` makes a long run.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from loader.objects import possible_cpus
from loader.sys import (
    btf_load,
    map_create,
    map_lookup,
    map_next_key,
    prog_load,
    prog_test_run,
)
from pybpfasm import isa
from pybpfasm.emulator import Emulator, EmulatorFault, Skb
from pybpfasm.emulator.conformance import bare
from pybpfasm.errors import PybpfasmError
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import MapType, ProgType
from pybpfasm.maps import MapSpec
from pybpfasm.text import assemble
from tests.unit.emulator.random_programs import PERCPU, RandomProgram, all_rows, generate

PROGRAMS = int(os.environ.get("PYBPFASM_DIFFERENTIAL", "2000"))
SEED = int(os.environ.get("PYBPFASM_SEED", "0"))
CHUNKS = 20

_PER_CPU = (MapType.PERCPU_ARRAY, MapType.PERCPU_HASH)
_COMPARED = ("mark", "priority", "cb")


@dataclass
class State:
    """What one run leaves behind."""

    value: int
    packet: bytes
    context: dict[str, object]


def _unlike(ours: State, kernels: State) -> str:
    return ", ".join(
        f"{name} is {a!r} in the emulator, {b!r} in the kernel"
        for name in ("value", "packet", "context")
        if (a := getattr(ours, name)) != (b := getattr(kernels, name))
    )


@dataclass
class Outcome:
    """What a program's runs leave behind, maps at the end."""

    runs: list[State]
    maps: dict[str, object]


def in_emulator(program: RandomProgram, engine: str, cpus: int) -> Outcome:
    emulator = Emulator(cpus=cpus)
    loaded = emulator.load(program.spec, engine=engine)
    runs = []
    for packet in program.packets:
        skb = Skb(packet, mark=program.mark, priority=3)
        result = loaded.run(skb)
        runs.append(State(result.value, result.packet, {name: skb[name] for name in _COMPARED}))
    return Outcome(runs, {name: one.items_raw() for name, one in loaded.maps.items()})


def read_map(fd: int, spec: MapSpec, cpus: int) -> object:
    """As `pybpfasm.emulator.Map.items_raw`."""
    if spec.type in (MapType.QUEUE, MapType.STACK):
        out = []
        while (value := map_lookup(fd, b"", spec.value_size, delete=True)) is not None:
            out.append((b"", value))
        return out[::-1] if spec.type is MapType.STACK else out
    stride = -(-spec.value_size // 8) * 8
    size = stride * cpus if spec.type in _PER_CPU else spec.value_size
    found: list[tuple[bytes, object]] = []
    key: bytes | None = None
    while (key := map_next_key(fd, key, spec.key_size)) is not None:
        value = map_lookup(fd, key, size)
        assert value is not None
        if spec.type in _PER_CPU:
            found.append((key, tuple(value[i * stride : i * stride + spec.value_size] for i in range(cpus))))
        else:
            found.append((key, value))
    return sorted(found)


class Refused(Exception):
    """The verifier takes the program not."""


def in_kernel(program: RandomProgram, cpus: int) -> Outcome:
    spec = program.spec
    fds: dict[str, int] = {}
    others: list[int] = []
    try:
        for one in spec.maps:
            fds[one.name] = map_create(
                one.type, one.key_size, one.value_size, one.max_entries, name=one.name, flags=one.flags
            )
        btf = 0
        if any(function.name.startswith("callback") for function in spec.functions):
            btf = btf_load(spec.btf())
            others.append(btf)
        loaded = prog_load(
            spec.type,
            spec.code(fds),
            license=spec.license,
            name=spec.name,
            btf_fd=btf,
            func_info=spec.func_info() if btf else b"",
        )
        if loaded.fd < 0:
            again = prog_load(
                spec.type,
                spec.code(fds),
                license=spec.license,
                btf_fd=btf,
                func_info=spec.func_info() if btf else b"",
                log_level=1,
                log_size=1 << 22,
            )
            if again.fd >= 0:
                os.close(again.fd)
            raise Refused(f"{loaded.error}\n" + "\n".join(again.log.splitlines()[-12:]))
        others.append(loaded.fd)
        runs = []
        for packet in program.packets:
            context = SkBuff.pack(mark=program.mark, priority=3)
            value, out, back, _ = prog_test_run(
                loaded.fd,
                data=packet,
                data_out_size=len(packet) + 1024,
                ctx=context,
                ctx_out_size=len(context),
            )
            fields = SkBuff.unpack(back)
            runs.append(State(value, out, {name: getattr(fields, name) for name in _COMPARED}))
        return Outcome(runs, {one.name: read_map(fds[one.name], one, cpus) for one in spec.maps})
    finally:
        for fd in (*fds.values(), *others):
            os.close(fd)


def differences(seed: int, cpus: int) -> tuple[RandomProgram, list[str]]:
    """What differs for the program of a seed; raises `Refused`."""
    program = generate(seed)
    kernel = in_kernel(program, cpus)
    found = []
    for engine in ("interpret", "translate"):
        try:
            ours = in_emulator(program, engine, cpus)
        except (EmulatorFault, PybpfasmError) as error:
            found.append(f"{engine}: {error}")
            continue
        for number, (a, b) in enumerate(zip(ours.runs, kernel.runs, strict=True)):
            if a != b:
                found.append(f"{engine}, packet {number}: {_unlike(a, b)}")
        for name, entries in ours.maps.items():
            if entries != kernel.maps[name]:
                found.append(
                    f"{engine}, map {name}: {entries} in the emulator, {kernel.maps[name]} in the kernel"
                )
    return program, found


@pytest.fixture(scope="module", autouse=True)
def one_cpu() -> Iterator[None]:
    """Keep this process on the CPU whose per-CPU values the emulator has too."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    yield
    os.sched_setaffinity(0, before)


_rows: Counter[str] = Counter()
_refused: dict[int, str] = {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs(chunk: int) -> None:
    cpus = possible_cpus()
    print(f"seeds from {SEED + chunk}, every {CHUNKS}th")
    wrong = []
    for seed in range(SEED + chunk, SEED + PROGRAMS, CHUNKS):
        try:
            program, found = differences(seed, cpus)
        except Refused as refused:
            _refused[seed] = str(refused)
            continue
        _rows.update(program.forms)
        if found:
            wrong.append(f"seed {seed}: " + "\n  ".join(found))
    assert not wrong, "\n".join(wrong[:5])


def test_the_programs_have_every_instruction() -> None:
    for name in sorted(_rows):
        print(f"{name:<16} {_rows[name]:>8}")
    assert len(_refused) <= PROGRAMS // 50, next(iter(_refused.values()))
    if PROGRAMS >= 500:
        assert [name for name in all_rows() if not _rows[name]] == []


# What differed once, named; each is the shortest program that shows it.
@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "w2 = -1\n*(u32 *)(r1 +44) = r2\nr0 = *(u32 *)(r1 +44)\nexit", id="tc_index-has-16-bits"
        ),
        pytest.param(
            "w2 = -1\n*(u32 *)(r1 +12) = r2\nr0 = *(u32 *)(r1 +12)\nexit",
            id="queue_mapping-0xffff-is-not-stored",
        ),
        pytest.param(
            """
            *(u64 *)(r10 -8) = 0x12345678
            r1 = r10
            r1 += -8
            r2 = 5
            r3 = 0
            r4 = 0
            r5 = -1
            call bpf_csum_diff
            exit
            """,
            id="csum_diff-takes-odd-sizes",
        ),
        pytest.param(
            """
            *(u64 *)(r10 -8) = -1
            r1 = r10
            r1 += -8
            r2 = 8
            r3 = 0
            r4 = 0
            r5 = 0
            call bpf_csum_diff
            exit
            """,
            id="csum_diff-has-two-zeros",
        ),
    ],
)
def test_found_before(text: str) -> None:
    spec = bare(assemble(text), "found")
    spec.type = ProgType.SCHED_CLS
    spec.license = "GPL"
    program = RandomProgram(0, spec, [bytes(64)], 7)
    kernel = in_kernel(program, 1)
    for engine in ("interpret", "translate"):
        assert in_emulator(program, engine, 1) == kernel


def test_an_array_of_each_cpu_takes_the_flags_that_programs_give() -> None:
    """E2BIG for the index comes before the flags are looked at closely, unlike in the system call."""
    code = [
        Instruction(isa.ST | isa.MEM | isa.W, 10, 0, -4, 2),
        Instruction(isa.ST | isa.MEM | isa.DW, 10, 0, -16, 1),
        Instruction(isa.LD_IMM64, 1, isa.Imm64.MAP_FD, reference=PERCPU),
        *assemble("r2 = r10\nr2 += -4\nr3 = r10\nr3 += -16\nr4 = 5\ncall bpf_map_update_elem\nexit"),
    ]
    spec = bare(code, "found")
    spec.type = ProgType.SCHED_CLS
    program = RandomProgram(0, spec, [bytes(64)], 0)
    kernel = in_kernel(program, possible_cpus())
    assert kernel.runs[0].value == 2**32 - 7
    assert in_emulator(program, "interpret", possible_cpus()) == kernel


def main(arguments: list[str]) -> int:
    """A long run; prints the table of instructions at its end."""
    import argparse

    parser = argparse.ArgumentParser(prog="test_emulator_differential")
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {0})
    cpus = possible_cpus()
    rows: Counter[str] = Counter()
    refused = wrong = 0
    for seed in range(options.seed, options.seed + options.programs):
        try:
            program, found = differences(seed, cpus)
        except Refused as error:
            refused += 1
            if refused <= 5:
                print(f"seed {seed} refused: {error}")
            continue
        rows.update(program.forms)
        if found:
            wrong += 1
            print(f"seed {seed}: " + "\n  ".join(found), flush=True)
    for name in sorted(rows):
        print(f"{name:<16} {rows[name]:>9}")
    print(f"{options.programs} programs from seed {options.seed}: {refused} refused, {wrong} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
