# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The tutorial does what it says; tests/kernel/test_tutorial.py has its commands for root."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.tutorial.blocks import ROOT, Command, blocks, commands, run_page, same_times

PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def test_every_block_is_run() -> None:
    """There is no block that looks like an example and is none."""
    found = blocks(PAGE)
    assert len(found) > 20
    assert [block.info for block in found if not block.title and block.info != "console"] == []
    assert sum(command.root for block in found if block.info == "console" for command in commands(block)) == 2


def test_the_page_prints_what_it_shows(tmp_path: Path) -> None:
    """Files and commands in order, as the reader has them."""
    shown = [
        (f"line {command.line}: {command.text}", same_times(command.printed), same_times(printed))
        for command, printed in run_page(PAGE, tmp_path, root=False)
    ]
    assert len(shown) > 15
    for name, expected, printed in shown:
        assert printed == expected, f"{name} (python -m docs.tutorial.blocks docs/tutorial.md writes it anew)"
    assert (tmp_path / "count.svg").read_text(encoding="utf-8").startswith("<svg")


def test_the_runner_sees_a_difference(tmp_path: Path) -> None:
    """What a command prints is its own, and not what the page says."""
    page = '```python title="one.py"\nx = 1\n```\n```python title="one.py"\nprint(x + 1)\n```\n'
    page += "```console\n$ python one.py\n3\n# python -c pass\n```\n"
    assert list(run_page(page, tmp_path, root=False)) == [(Command("python one.py", False, "3", 8), "2")]


def test_commands_without_output_and_with_several_lines() -> None:
    (block,) = blocks("```console\n$ one\n$ two\na\n\nb\n# three\n```\n")
    assert [(c.text, c.root, c.printed) for c in commands(block)] == [
        ("one", False, ""),
        ("two", False, "a\n\nb"),
        ("three", True, ""),
    ]


@pytest.mark.parametrize("text", ["3 passed in 1.21s", "3 passed in 0.04s"])
def test_times_do_not_matter(text: str) -> None:
    assert same_times(text) == "3 passed in 0.00s"
