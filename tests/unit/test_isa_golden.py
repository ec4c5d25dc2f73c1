# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Every instruction of the table, as LLVM and as the kernel write it (tests/data/isa)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pybpfasm.instruction import decode, encode
from pybpfasm.isa import FORMS, LD_IMM64, Form
from pybpfasm.listing import text
from pybpfasm.text import assemble
from tests.data.isa.regenerate import statements

DATA = Path(__file__).resolve().parents[1] / "data" / "isa"


def golden(name: str) -> list[tuple[bytes, str]]:
    found = []
    for line in (DATA / name).read_text().splitlines():
        code, _, words = line.partition("\t")
        found.append((bytes.fromhex(code), words))
    return found


LLVM = golden("llvm.txt")
KERNEL = golden("kernel.txt")


def forms(lines: list[tuple[bytes, str]]) -> set[Form]:
    found = set()
    for code, _ in lines:
        form = decode(code)[0].form()
        assert form is not None
        found.add(form)
    return found


@pytest.mark.parametrize(("lines", "least"), [(LLVM, 600), (KERNEL, 2500)], ids=["llvm", "kernel"])
def test_their_text_becomes_their_bytes_and_decodes(lines: list[tuple[bytes, str]], least: int) -> None:
    assert len(lines) >= least
    for code, words in lines:
        assert encode(assemble(words)) == code, words
        instructions = decode(code)
        assert len(instructions) == 1
        assert encode(instructions) == code


def test_text_is_the_kernels() -> None:
    differ = [(words, text(decode(code)[0])) for code, words in KERNEL if text(decode(code)[0]) != words]
    assert not differ


def test_text_of_what_llvm_writes_becomes_the_same_bytes() -> None:
    for code, words in LLVM:
        assert encode(assemble(text(decode(code)[0]))) == code, words


def test_llvm_assembled_every_statement() -> None:
    assert len(LLVM) == len(list(statements()))


def test_every_form_is_in_a_golden_file() -> None:
    """What neither prints: what a 64-bit load refers to (the dumps of bpftool have it), kernel functions."""
    known = forms(LLVM) | forms(KERNEL)
    missing = {
        (f.opcode, f.name, min(f.src.values or ()))
        for found in FORMS.values()
        for f in found
        if f not in known
    }
    loads = {(LD_IMM64, "lddw", src) for src in range(1, 6)}
    assert missing == {(0x85, "call_kfunc", 2)} | loads


def test_the_kernel_lacks_only_what_is_newer_or_never_was() -> None:
    """In both files is whatever Linux 6.18 and LLVM 22 have."""
    lacking = {f.name for f in forms(LLVM) - forms(KERNEL)}
    assert lacking == {"gotox", "callx"}
    assert {f.name for f in forms(KERNEL) - forms(LLVM)} == {"call_local"}


def test_dump_of_bpftool_is_read_and_printed_alike() -> None:
    dump = (DATA / "xlated" / "maps_and_calls.txt").read_text()
    # The kernel has put this function in the helper's place.
    dump = dump.replace("call __htab_map_lookup_elem#", "call bpf_map_lookup_elem#")
    printed = [
        re.sub(r"^ *\d+: \(..\) ", "", line) for line in dump.splitlines() if re.match(r" *\d+:", line)
    ]
    ours = [text(insn) for insn in assemble(dump)]
    # Behind # are a place in memory and the name of a function.
    assert [line.partition("#")[0] for line in ours] == [line.partition("#")[0] for line in printed]
    assert len(ours) > 60
    for part in ("map[id:", "][0]+8", "subprog[+30]", "call pc+14"):
        assert any(part in line for line in ours), part
