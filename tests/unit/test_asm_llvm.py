# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Every statement and block against the bytes that LLVM's assembler makes of the same program.

The bytes are in tests/data/llvm/expected.json; regenerate.py beside it says how they came about.
"""

from __future__ import annotations

import json

import pytest

from pybpfasm import asm, net
from pybpfasm.asm import Asm
from pybpfasm.instruction import encode
from pybpfasm.layout import ByteOrder
from tests.unit.statements import DATA, instructions, namespace, sections

EXPECTED = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
ORDERS: tuple[tuple[ByteOrder, str], ...] = (("little", "bpfel"), ("big", "bpfeb"))


STATEMENTS = [row for rows in sections().values() for row in rows]
BLOCKS = [
    (title, *rest.split("\n--\n"))
    for title, rest in (
        part.split("\n", 1) for part in (DATA / "blocks.txt").read_text(encoding="utf-8").split("\n== ")[1:]
    )
]


@pytest.mark.parametrize(("byteorder", "triple"), ORDERS)
@pytest.mark.parametrize(("statement", "llvm"), STATEMENTS, ids=[row[0] for row in STATEMENTS])
def test_statement_has_the_bytes_of_llvm(
    statement: str, llvm: str, byteorder: ByteOrder, triple: str
) -> None:
    """One statement of the language."""
    assert encode(instructions(statement, byteorder), byteorder).hex() == EXPECTED["statements"][llvm][triple]


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
    # See tests/unit/test_asm_rare.py.
    assert [name for name in functions if f"{name}(" not in rows] == ["addr_space_cast"]


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
