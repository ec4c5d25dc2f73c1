# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Make the golden files of this folder: ``python -m tests.data.isa.regenerate [llvm MC] [kernel] [xlated]``.

``llvm`` takes the path of an ``llvm-mc`` of version 22 or later; ``kernel`` and ``xlated`` need the right to
load programs, and ``xlated`` needs bpftool.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).resolve().parent


def statements() -> Iterator[str]:
    """Every form of instruction that LLVM has, in its syntax."""
    imms = (0, 1, -1, 0x7FFFFFFF, -0x80000000)
    offsets = ("+ 0", "+ 8", "- 16", "+ 32767", "- 32768")
    for r, bits in (("r", 64), ("w", 32)):
        for op in ("+=", "-=", "*=", "/=", "%=", "|=", "&=", "^=", "s/=", "s%="):
            yield from (f"{r}1 {op} {imm}" for imm in imms)
            yield f"{r}9 {op} {r}10"
            yield f"{r}0 {op} {r}0"
        for op in ("<<=", ">>=", "s>>="):
            yield from (f"{r}3 {op} {imm}" for imm in (0, 1, bits - 1))
            yield f"{r}3 {op} {r}4"
        yield from (f"{r}2 = {imm}" for imm in imms)
        yield f"{r}2 = {r}10"
        yield f"{r}7 = -{r}7"
        for width in (8, 16, 32)[: 3 if r == "r" else 2]:
            yield f"{r}1 = (s{width}){r}9"
        for op in ("==", ">", ">=", "&", "!=", "s>", "s>=", "<", "<=", "s<", "s<="):
            yield from (f"if {r}1 {op} {imm} goto +1" for imm in imms)
            yield from (f"if {r}10 {op} {r}9 goto {offset}" for offset in ("+0", "-1", "+32767", "-32768"))
    for kind in ("le", "be", "bswap"):
        yield from (f"r5 = {kind}{width} r5" for width in (16, 32, 64))
    yield "r1 = addr_space_cast(r2, 0, 1)"
    yield "r9 = addr_space_cast(r10, 1, 0)"
    yield from (f"r4 = {value} ll" for value in (0, 5, 0x7FFFFFFF, 0x80000000, 0x1122334455667788, 2**64 - 1))
    yield from (f"goto {offset}" for offset in ("+0", "-1", "+32767", "-32768"))
    yield from (f"gotol {offset}" for offset in ("+0", "-1", "+32767", "-32768"))
    yield from (f"may_goto {offset}" for offset in ("+0", "+5", "-7"))
    yield "gotox r3"
    yield "callx r3"
    yield from (f"call {number}" for number in (1, 5, 211))
    yield "exit"
    for size in ("u8", "u16", "u32"):
        yield from (f"r0 = *({size} *)skb[{imm}]" for imm in (0, 12, 0x7FFFFFFF))
        yield f"r0 = *({size} *)skb[r3]"
    for size in ("u8", "u16", "u32", "u64"):
        for offset in offsets:
            yield f"r1 = *({size} *)(r10 {offset})"
            yield f"*({size} *)(r10 {offset}) = r3"
        yield from (f"*({size} *)(r2 + 4) = {imm}" for imm in imms)
        r = "r" if size == "u64" else "w"
        for offset in offsets:
            yield f"{r}1 = load_acquire(({size} *)(r2 {offset}))"
            yield f"store_release(({size} *)(r10 {offset}), {r}2)"
    for size in ("s8", "s16", "s32"):
        yield from (f"r1 = *({size} *)(r10 {offset})" for offset in offsets)
    for r, size, xchg in (("r", "u64", "_64"), ("w", "u32", "32_32")):
        for offset in offsets:
            yield from (f"lock *({size} *)(r1 {offset}) {op} {r}2" for op in ("+=", "|=", "&=", "^="))
            for op in ("add", "or", "and", "xor"):
                yield f"{r}3 = atomic_fetch_{op}(({size} *)(r4 {offset}), {r}3)"
            yield f"{r}3 = xchg{xchg}(r4 {offset}, {r}3)"
            yield f"{r}0 = cmpxchg{xchg}(r4 {offset}, {r}0, {r}3)"


def llvm(mc: str) -> None:
    """Write ``llvm.txt``."""
    printed = subprocess.run(
        [mc, "-triple=bpfel", "-mcpu=v4", "--show-encoding"],
        input="\n".join(statements()) + "\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = []
    for line in printed.splitlines():
        found = re.fullmatch(r"\t(.*?)\s*# encoding: \[(.*)\]", line)
        if found:
            lines.append(f"{found[2].replace('0x', '').replace(',', '')}\t{found[1]}")
    (HERE / "llvm.txt").write_text("\n".join(lines) + "\n")


def verifier_text(insn: bytes, *, reach: int = 4) -> str | None:
    """How the verifier of the running kernel prints an instruction; ``None`` where it refuses it unseen.

    It prints an instruction when it gets there, and before it looks at the registers; what it says of them
    afterwards does not matter. A jump needs somewhere to go: there are *reach* slots in each direction.
    """
    import os

    from loader.sys import prog_load
    from pybpfasm.kernel.enums import ProgType

    nothing, leave = bytes.fromhex("b700000000000000"), bytes.fromhex("9500000000000000")
    # A conditional jump over the instruction keeps reachable what only it would make unreachable.
    over = bytes([0x55, 0, len(insn) // 8, 0, 0, 0, 0, 0])
    code = nothing * (reach + 1) + over + insn + nothing * reach + leave
    slot = reach + 2
    if insn[:2] == bytes([0x85, 0x10]):  # what a local call goes to is a function, which ends by itself
        code, slot = nothing + insn + leave + nothing + leave, 1
    result = prog_load(ProgType.SOCKET_FILTER, code, license="GPL", log_level=2, log_size=1 << 18)
    if result.fd >= 0:
        os.close(result.fd)
    found = re.search(rf"^{slot}: \(([0-9a-f]{{2}})\) (.*?)(?:\s+;.*)?$", result.log, re.MULTILINE)
    return None if found is None or int(found[1], 16) != insn[0] else found[2]


def samples() -> Iterator[bytes]:
    """Encoded instructions: every form of the table, with the values that matter of each field."""
    from pybpfasm.instruction import Instruction, encode
    from pybpfasm.isa import FORMS, LD_IMM64, OP_CALL, CallKind

    for opcode, forms in FORMS.items():
        for form in forms:
            jumps = opcode & 7 in (5, 6)
            dsts = sorted(form.dst.values or ())
            srcs = sorted(form.src.values or ())
            offsets = sorted(form.offset.values or ()) or (
                [0, 1, -1, 4] if jumps else [0, 8, -16, 32767, -32768]
            )
            imms = sorted(form.imm.values or ()) or [0, 1, -1, 0x7FFFFFFF, -0x80000000]
            if form.name == "gotol":
                imms = [0, 1, -1, 4]
            if opcode == OP_CALL:
                imms = {CallKind.HELPER: [1, 5, 211, 9999, -1], CallKind.LOCAL: [1]}.get(
                    CallKind(srcs[0]), []
                )
            if opcode == LD_IMM64 and srcs != [0]:
                continue  # a map, a BTF id, a function: printed as what it becomes
            for dst in {dsts[0], dsts[-1]}:
                for src in {srcs[0], srcs[-1]}:
                    for offset in offsets:
                        for imm in imms:
                            if imm in form.kernel_imm:
                                high = imm if opcode == LD_IMM64 else 0
                                yield encode([Instruction(opcode, dst, src, offset, imm, high)])


def kernel() -> None:
    """Write ``kernel.txt``."""
    lines = []
    for insn in samples():
        text = verifier_text(insn)
        if text is not None:
            lines.append(f"{insn.hex(' ')}\t{text}")
    (HERE / "kernel.txt").write_text("\n".join(lines) + "\n")


def xlated() -> None:
    """Write ``xlated/``."""
    from loader.objects import Map, Program
    from tests.data.isa.programs import PROGRAMS

    (HERE / "xlated").mkdir(exist_ok=True)
    for template in PROGRAMS:
        spec = template.build()
        with ExitStack() as stack:
            maps = {m.name: stack.enter_context(Map.create(m)) for m in spec.maps}
            program = stack.enter_context(Program.load(spec, maps))
            command = ["bpftool", "prog", "dump", "xlated", "id", str(program.info().id)]
            dump = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        (HERE / "xlated" / f"{spec.name}.txt").write_text(dump)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not arguments:
        sys.exit(__doc__)
    while arguments:
        what = arguments.pop(0)
        if what == "llvm" and arguments:
            llvm(arguments.pop(0))
        elif what == "kernel":
            kernel()
        elif what == "xlated":
            xlated()
        else:
            sys.exit(__doc__)
