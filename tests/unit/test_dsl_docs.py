# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The pages about the language say what is so."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pybpfasm.instruction import decode
from pybpfasm.listing import text

ROOT = Path(__file__).resolve().parents[2]
DSL = ROOT / "docs" / "dsl"
CANDIDATES = ("mnemonic", "operators", "chosen")


def core(name: str) -> bytes:
    """The bytes of one candidate, which prints them when it is run."""
    done = subprocess.run(
        [sys.executable, "-m", f"docs.dsl.candidate_{name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return bytes.fromhex(done.stdout)


def test_the_three_candidates_are_the_same_program() -> None:
    """Three forms, the same bytes, as many as the page says."""
    mnemonic, operators, chosen = (core(name) for name in CANDIDATES)
    assert mnemonic == operators == chosen
    assert f"the same {len(chosen)} bytes" in (ROOT / "docs" / "dsl.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CANDIDATES)
def test_the_table_of_lengths(name: str) -> None:
    """Lines and characters are counted, comments and indentation aside."""
    source = (DSL / f"candidate_{name}.py").read_text(encoding="utf-8")
    function = next(
        node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == "core"
    )
    lines = source.splitlines()[function.lineno : function.end_lineno]
    code = [line.split("  #")[0].strip() for line in lines if line.strip()]
    numbers = sum(
        isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value > 1
        for node in ast.walk(function)
    )
    row = f"| {len(code)} | {sum(map(len, code))} | {numbers} |"
    assert row in (ROOT / "docs" / "dsl.md").read_text(encoding="utf-8")


def test_the_shims_are_small() -> None:
    """They are to show a form, not to be a library."""
    for name in ("mnemonic", "operators"):
        assert len((DSL / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 100


def test_the_kernels_print_is_of_this_program() -> None:
    """Line numbers and texts in xlated.txt are those of the file, and so are the instructions.

    Except for what the kernel rewrites: context fields, the map, the inlined look-up, helper addresses.
    """
    printed = (DSL / "xlated.txt").read_text(encoding="utf-8")
    source = (DSL / "candidate_chosen.py").read_text(encoding="utf-8").splitlines()
    shown = re.findall(
        r"^; (.*) \[file:docs/dsl/candidate_chosen.py line_num:(\d+) line_col:0\]$", printed, re.M
    )
    assert len(shown) > 45
    for line, number in shown:
        assert source[int(number) - 1].strip() == line
    ours = {re.sub(r"pc[+-]\d+", "pc", text(insn)) for insn in decode(core("chosen"))}
    theirs = {re.sub(r"pc[+-]\d+", "pc", line) for line in re.findall(r"^ *\d+: \(..\) (.*)$", printed, re.M)}
    rewritten = {line for line in theirs if "call" in line or "map[" in line or "(r6 +" in line}
    assert theirs - ours - rewritten == {"if r0 == 0x0 goto pc", "r0 += 64"}


def test_every_passage_of_the_page_is_in_a_candidate() -> None:
    """The eight instructions that the page shows are lines of the three files."""
    page = (ROOT / "docs" / "dsl.md").read_text(encoding="utf-8")
    passage = page.split("The three forms of it:")[1].split("```")[1]
    both, attributes = passage.split("# 3. assignment to attributes of a builder\n")
    rows = [line for line in both.splitlines()[2:] if line.strip()]
    for name, lines in (
        ("mnemonic", [row[:33].strip() for row in rows]),
        ("operators", [row[33:].strip() for row in rows]),
        ("chosen", attributes.strip().splitlines()),
    ):
        source = (DSL / f"candidate_{name}.py").read_text(encoding="utf-8")
        body = [line.strip() for line in source.splitlines()]
        for line in lines:
            assert line in body, name


def test_the_reference_is_up_to_date() -> None:
    """`python -m docs.dsl.reference` writes docs/dsl-reference.md."""
    reference = importlib.import_module("docs.dsl.reference")
    written = (ROOT / "docs" / "dsl-reference.md").read_text(encoding="utf-8")
    assert written == reference.page(), "run: python -m docs.dsl.reference"
