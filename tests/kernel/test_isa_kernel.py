# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The running kernel's own text of every instruction."""

from __future__ import annotations

from pybpfasm.instruction import decode, encode
from pybpfasm.listing import text
from pybpfasm.text import assemble
from tests.data.isa.regenerate import samples, verifier_text


def test_text_is_the_running_kernels() -> None:
    """The verifier of this kernel prints each instruction as we do, or does not know its opcode."""
    unknown: set[str] = set()
    printed: set[str] = set()
    differ = []
    for code in samples():
        insn = decode(code)[0]
        form = insn.form()
        assert form is not None
        words = verifier_text(code)
        if words is None:
            unknown.add(form.name)
            continue
        printed.add(form.name)
        if words != text(insn):
            differ.append((words, text(insn)))
        assert encode(assemble(words)) == code, words
    assert not differ
    # Older kernels know less; whatever came with 4.x is in all that have what this project needs.
    assert {"add", "mov32", "jeq", "jlt", "ldx", "st", "stx", "lddw", "exit", "call", "ldabs"} <= printed
    assert not unknown & printed
