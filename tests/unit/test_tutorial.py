# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The tutorial and the page about clang say what is so; tests/kernel has the tutorial's commands for root."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from docs.clang import programs
from docs.tutorial.blocks import ROOT, Command, blocks, commands, run_page, same_times
from pybpfasm.elf import read_object
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.listing import text
from pybpfasm.net import ETH_P_IP, Ethernet, Ipv4, Tcp
from pybpfasm.program import ProgramSpec

# Pages whose blocks are run: how many at least, commands, and those for root.
PAGES = {"tutorial": (21, 16, 2), "objects": (7, 4, 1), "kinds": (17, 8, 4), "maps": (17, 5, 5)}


def page_of(name: str) -> str:
    """The text of a page."""
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_run(name: str) -> None:
    """There is no block that looks like an example and is none."""
    found = blocks(page_of(name))
    assert len(found) >= PAGES[name][0]
    source = [block for block in found if block.info == "c"]
    assert [b.info for b in found if not b.title and b.info != "console"] == ["c"] * len(source)
    for block in source:
        # What the object beside the page was made of, but for the license above it.
        text = (ROOT / "docs" / name / "lib.c").read_text(encoding="utf-8")
        assert "\n".join(block.lines) in text
    root = sum(command.root for block in found if block.info == "console" for command in commands(block))
    assert root == PAGES[name][2]


@pytest.mark.parametrize("page", PAGES)
def test_the_page_prints_what_it_shows(page: str, tmp_path: Path) -> None:
    """Files and commands in order, as the reader has them."""
    shown = [
        (f"line {command.line}: {command.text}", same_times(command.printed), same_times(printed))
        for command, printed in run_page(page_of(page), tmp_path, root=False, beside=ROOT / "docs" / page)
    ]
    assert len(shown) >= PAGES[page][1]
    for name, expected, printed in shown:
        assert printed == expected, f"{name} (python -m docs.tutorial.blocks docs/{page}.md writes it anew)"
    if page == "tutorial":
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


# docs/clang.md
CLANG = ROOT / "docs" / "clang"
CLANG_PAGE = (ROOT / "docs" / "clang.md").read_text(encoding="utf-8")
PAIRS: list[tuple[str, str, Callable[[], ProgramSpec]]] = [
    ("`drop_port`", "port", programs.drop_port.build),
    ("`count_marks`", "count", programs.count_marks.build),
    ("`verify`, unrolled", "checksum", programs.verify_unrolled.build),
    ("`verify`, looped", "checksum", programs.verify_looped.build),
]


def _clangs(name: str) -> ProgramSpec:
    (spec,) = read_object((CLANG / f"{name}.o").read_bytes()).programs.values()
    return spec


# A TCP SYN to port 8000.
PACKET = (
    Ethernet.pack(h_proto=ETH_P_IP)
    + Ipv4.pack(ihl_version=0x45, ttl=64, protocol=6, check=0x7AF9)
    + Tcp.pack(dest=8000, flags=2, doff=0x50)
)


def test_the_blocks_about_clang_are_of_the_files() -> None:
    """C and clang's text whole, of others a passage; nothing on the page was typed by hand."""
    sources = {
        "c": [path.read_text() for path in CLANG.glob("*.c")],
        "text": [path.read_text() for path in CLANG.glob("*.txt")],
        "python": [(CLANG / "programs.py").read_text()],
    }
    shown = Counter(block.info for block in blocks(CLANG_PAGE))
    assert shown == {"c": 3, "text": 5, "python": 4}
    for block in blocks(CLANG_PAGE):
        passage = "\n".join(block.lines) + "\n"
        whole = block.info == "c"
        assert any(
            source.endswith(passage) if whole else passage in source for source in sources[block.info]
        ), f"line {block.line}"


def test_clangs_text_is_of_its_objects() -> None:
    for name in ("port", "count", "checksum"):
        slots = [
            int(line.split(":")[0])
            for line in (CLANG / f"{name}.txt").read_text().splitlines()
            if line[0] == " "
        ]
        spec = _clangs(name)
        wide = [at + 1 for at in slots if at + 1 not in slots and at + 1 < spec.slots]
        assert sorted(slots + wide) == list(range(spec.slots))


def test_bpftools_text_is_of_our_program() -> None:
    """Lines and instructions; the kernel has changed the loads from the context."""
    printed = (CLANG / "port.xlated.txt").read_text()
    source = (CLANG / "programs.py").read_text().splitlines()
    shown = re.findall(r"^; (.*) \[file:docs/clang/programs.py line_num:(\d+) line_col:0\]$", printed, re.M)
    assert len(shown) == 19
    for line, number in shown:
        assert source[int(number) - 1].strip() == line
    theirs = re.findall(r"^ *\d+: \(..\) (.*)$", printed, re.M)
    ours = [text(insn) for insn in programs.drop_port.build().instructions]
    assert len(theirs) == len(ours)
    differing = [index for index, pair in enumerate(zip(theirs, ours, strict=True)) if pair[0] != pair[1]]
    assert differing == [0, 1]


@pytest.mark.parametrize(("title", "name", "build"), PAIRS)
def test_the_sizes(title: str, name: str, build: Callable[[], ProgramSpec]) -> None:
    clang, ours = _clangs(name), build()
    emulators = [Emulator().load(clang), Emulator().load(ours)]
    titles = [f"{title}, a new mark", f"{title}, a known mark"] if name == "count" else [title]
    for row in titles:
        executed = [program.run(Skb(PACKET)).instructions for program in emulators]
        expected = f"| {row} | {clang.slots} | {ours.slots} | {executed[0]} | {executed[1]} |"
        assert expected in CLANG_PAGE.splitlines()


@pytest.mark.parametrize(("title", "name", "build"), PAIRS)
def test_clangs_program_and_ours_do_the_same(title: str, name: str, build: Callable[[], ProgramSpec]) -> None:
    """Random packets that are nearly right, and marks of which some come twice."""
    chance = random.Random(7)
    kernels = [Emulator(), Emulator()]
    loaded = [kernel.load(spec) for kernel, spec in zip(kernels, (_clangs(name), build()), strict=True)]
    verdicts = Counter[int]()
    for _ in range(300):
        packet = bytearray(PACKET)
        if chance.random() < 0.7:
            packet[chance.choice((12, 13, 14, 23, 24, 36, 37, 47))] = chance.choice(
                (0, 6, 0x46, chance.getrandbits(8))
            )
        cut = chance.choice((0, 0, 0, chance.randrange(40)))
        data = bytes(packet[: len(packet) - cut])
        mark = chance.randrange(8)
        first, second = [program.run(Skb(data, mark=mark)).action for program in loaded]
        assert first == second, data.hex()
        verdicts[first] += 1
    if name == "count":
        clangs, ours = [dict(kernel.map("marks").items_raw()) for kernel in kernels]
        assert clangs == ours
        assert len(ours) == 8
    else:
        assert verdicts[-1] > 20
        assert verdicts[2] > 20
