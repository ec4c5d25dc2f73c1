# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Every statement and block against the bytes that LLVM's assembler makes of the same program.

The bytes are in tests/data/llvm/expected.json; regenerate.py beside it says how they came about.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pybpfasm import asm, layout, net
from pybpfasm.asm import Asm
from pybpfasm.instruction import encode
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import Helper
from pybpfasm.layout import ByteOrder, Bytes, Struct

DATA = Path(__file__).resolve().parents[1] / "data" / "llvm"
EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
ORDERS: tuple[tuple[ByteOrder, str], ...] = (("little", "bpfel"), ("big", "bpfeb"))


class Key(Struct):
    """The layout that ``key`` has in statements.txt."""

    client = Bytes(16)
    server = Bytes(16)
    client_port = layout.Be16()
    protocol = layout.U8()
    family = layout.U8()


STATEMENTS = [
    line.split(" :: ")
    for line in (DATA / "statements.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
BLOCKS = [
    (title, *rest.split("\n--\n"))
    for title, rest in (
        part.split("\n", 1) for part in (DATA / "blocks.txt").read_text(encoding="utf-8").split("\n== ")[1:]
    )
]


def namespace(b: Asm) -> dict[str, Any]:
    """What the statements of the data files name."""
    names: dict[str, Any] = {name: getattr(asm, name) for name in asm.__all__}
    return names | {
        "b": b,
        "ctx": SkBuff(b.r1),
        "tcp": net.Tcp(b.r7),
        "ip6": net.Ipv6(b.r7),
        "key": b.stack(Key),
        "Helper": Helper,
        "U16": layout.U16,
    }


def assemble_statement(statement: str, byteorder: ByteOrder = "little") -> bytes:
    """The bytes of *statement* alone; the label ``two_on`` is two slots behind it."""
    b = Asm("statement", byteorder=byteorder)
    names = namespace(b)
    exec(compile(statement, "<statement>", "exec"), names)
    written = len(b._body)
    if b._terminated:
        b.label("after")
        b.If(b.r9 == 9).goto("after")  # so that what follows is reached
    else:
        b.r9 = 9
    b.r9 = 9
    b.label("two_on")
    b.ret(0)
    return encode(b.finish()[:written], byteorder)


@pytest.mark.parametrize(("byteorder", "triple"), ORDERS)
@pytest.mark.parametrize(("statement", "llvm"), STATEMENTS, ids=[row[0] for row in STATEMENTS])
def test_statement_has_the_bytes_of_llvm(
    statement: str, llvm: str, byteorder: ByteOrder, triple: str
) -> None:
    """One statement of the language."""
    assert assemble_statement(statement, byteorder).hex() == EXPECTED["statements"][llvm][triple]


@pytest.mark.parametrize(("byteorder", "triple"), ORDERS)
@pytest.mark.parametrize(("title", "source", "llvm"), BLOCKS, ids=[block[0] for block in BLOCKS])
def test_block_has_the_bytes_of_llvm(
    title: str, source: str, llvm: str, byteorder: ByteOrder, triple: str
) -> None:
    """One structured block of the language."""
    b = Asm("block", byteorder=byteorder)
    exec(compile(source, f"<{title}>", "exec"), namespace(b))
    assert encode(b.finish(), byteorder).hex() == EXPECTED["blocks"][llvm.strip()][triple]


def test_every_statement_form_is_in_the_table() -> None:
    """Each operation that a register, memory or the assembler offers has at least one row."""
    rows = "\n".join(statement for statement, _ in STATEMENTS)
    methods = [
        f".{name}("
        for kind in (asm.Reg, asm.Mem)
        for name in vars(kind)
        if not name.startswith("_") and callable(getattr(kind, name))
    ]
    # LLVM 19 does not know these two; tests/kernel/test_asm_blocks.py runs them.
    newer = {".load_acquire(", ".store_release("}
    assert {method for method in methods if method not in rows} == newer
    functions = [name for name in asm.__all__ if name[0].islower()]
    assert [name for name in functions if f"{name}(" not in rows] == []


def test_constants_in_network_order_differ_between_machines() -> None:
    """A constant that stands for bytes in memory depends on the byte order of the machine, a plain one does
    not."""
    for byteorder, imm in (("little", 0x5000), ("big", 0x0050)):
        b = Asm("constants", byteorder=byteorder)  # type: ignore[arg-type]
        b.If(b.r2 == asm.be16(0x50)).goto("end")
        net.Tcp(b.r7).dest = 0x50
        b.r2 = 0x50
        b.label("end")
        b.ret(0)
        body = b.finish()
        assert [insn.imm for insn in body[:3]] == [imm, imm, 0x50]
