# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Control-flow graphs: blocks, edges, what has none, and the picture."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybpfasm.cfg import Block, CfgError, control_flow, of_program, svg
from pybpfasm.text import assemble
from tests.data.isa.programs import maps_and_calls
from tests.work import calls

SVG = "{http://www.w3.org/2000/svg}"


def edges(block: Block) -> list[tuple[int, str]]:
    return [(edge.target, edge.kind) for edge in block.edges]


def test_blocks_and_edges() -> None:
    (main,) = control_flow(
        assemble(
            """
            r1 = 0x1122334455667788
            loop: r0 += 1
            if r0 > 5 goto out
            may_goto out
            gotol loop
            out: exit
            dead: goto dead
            """
        ),
        {0: "name"},
    )
    assert main.name == "name"
    shape = {slot: (len(b.instructions), edges(b), b.reachable) for slot, b in main.blocks.items()}
    assert shape == {
        0: (1, [(2, "next")], True),
        2: (2, [(4, "next"), (6, "taken")], True),
        4: (1, [(5, "next"), (6, "taken")], True),
        5: (1, [(2, "goto")], True),
        6: (1, [], True),
        7: (1, [(7, "goto")], False),
    }


def test_functions_are_apart() -> None:
    functions = of_program(maps_and_calls.build())
    assert [f.name for f in functions] == ["maps_and_calls", "turn", "narrow"]
    assert [len(f.blocks) for f in functions] == [5, 3, 1]
    assert all(block.reachable for f in functions for block in f.blocks.values())
    # Without names: what is called, and what has its address taken.
    again = control_flow(assemble("call pc+3\nr2 = subprog[+4]\nexit\nr0 = 1\nexit\nr0 = 2\nexit"))
    assert [(f.name, f.slot) for f in again] == [("main", 0), ("function_4", 4), ("function_6", 6)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("goto +1\nexit", "slot 0: goto pc+1 goes to slot 2, of another function"),
        ("r1 = 0x1\ngoto -2\nexit", "slot 2: goto pc-2 goes to slot 1, where no instruction begins"),
        ("goto -2", "slot 0: goto pc-2 goes to slot -1"),
        ("call pc+1\nexit", "slot 0: call pc+1 goes to slot 2, where no instruction begins"),
        ("call pc+1\nexit\ngoto -2", "slot 2: goto pc-2 goes to slot 1, of another function"),
        ("r0 = 0", "slot 0: main runs past its end"),
        ("exit\nif r1 == 0 goto -2", "slot 1: main runs past its end"),
        ("call pc+0\nexit", "slot 0: main runs past its end"),
    ],
)
def test_what_has_no_graph(words: str, message: str) -> None:
    with pytest.raises(CfgError) as caught:
        control_flow(assemble(words))
    assert message in str(caught.value)


def test_nothing_has_an_empty_graph() -> None:
    assert control_flow([]) == []
    ElementTree.fromstring(svg([]))


def test_picture() -> None:
    spec = maps_and_calls.build()
    functions = of_program(spec)
    root = ElementTree.fromstring(svg(functions, spec.location, "a <title> & more"))
    assert root.tag == f"{SVG}svg"
    shown = "\n".join("".join(text.itertext()) for text in root.iter(f"{SVG}text"))
    for words in (
        "maps_and_calls",
        "turn",
        "r1 = map[stats][0]+8",
        "programs.py:36  b.r6 = b.r1",
        "call pc+9#narrow",
    ):
        assert words in shown, words
    lines = [line for line in shown.splitlines() if re.match(r" *\d+  ", line)]
    assert len(lines) == len(spec.instructions)
    assert len(list(root.iter(f"{SVG}rect"))) == sum(len(f.blocks) for f in functions)
    drawn = [p for p in root.iter(f"{SVG}path") if p.get("marker-end")]
    assert len(drawn) == sum(len(b.edges) for f in functions for b in f.blocks.values())
    assert (root.findtext(f"{SVG}title")) == "a <title> & more"


def test_blocks_do_not_overlap_and_edges_lead_down() -> None:
    words = "\n".join(f"b{i}: if r1 == {i} goto b{(i * 7) % 40}\nr0 += 1" for i in range(40)) + "\nexit"
    root = ElementTree.fromstring(svg(control_flow(assemble(words))))
    boxes = [
        tuple(float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        for rect in root.iter(f"{SVG}rect")
    ]
    assert len(boxes) > 40
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for x, y, w, h in boxes:
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[:i]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    for path in root.iter(f"{SVG}path"):
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.attrib["d"])]
        if path.get("marker-end") and "H" not in path.attrib["d"]:
            down = numbers[-1] > numbers[1]
            assert down is (path.get("class") != "back"), path.attrib


def blocks_at_random(seed: int) -> str:
    """A function of short and tall blocks that jumps forward."""
    chosen = random.Random(seed)
    count = chosen.randint(3, 9)
    text = ""
    for number in range(count):
        text += f"b{number}: " + "r0 += 1\n" * chosen.choice([1, 1, 1, 2, 12])
        if number < count - 1:
            to = f"goto b{chosen.randint(number + 1, count - 1)}\n"
            text += chosen.choices([f"if r1 == {number} {to}", to, ""], [8, 1, 1])[0]
    return text + "exit"


@pytest.mark.parametrize("seed", range(150))
def test_ways_do_not_lead_behind_taller_blocks(seed: int) -> None:
    """A short block beside a tall one: its ways go down before they go aside."""
    root = ElementTree.fromstring(svg(control_flow(assemble(blocks_at_random(seed)))))
    boxes = [
        tuple(float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        for rect in root.iter(f"{SVG}rect")
    ]
    for path in root.iter(f"{SVG}path"):
        if not path.get("marker-end") or "H" in path.attrib["d"]:
            continue
        # Straight parts and curves, by the points where they begin and end.
        steps = re.findall(r"([MLC])([-\d. ]+)", path.attrib["d"])
        at = [tuple(map(float, numbers.split()[-2:])) for _, numbers in steps]
        for (x0, y0), (x1, y1) in pairwise(at):
            for x, y, w, h in boxes:
                inside = min(x0, x1) < x + w and max(x0, x1) > x and y0 < y + h - 1 and y1 > y + 1
                assert not inside, (path.attrib["d"], (x, y, w, h))


@pytest.mark.parametrize(
    "words",
    [
        "if r1 == 1 goto p\nif r1 == 2 goto z\nif r1 == 3 goto z\ngoto z\np: r0 = 0\nz: exit",
        "if r1 == 1 goto p\ngoto z\np: if r1 == 2 goto q\nq: if r1 == 3 goto z\nr0 = 0\nz: exit",
    ],
)
def test_short_ways_beside_long_ones_lead_down(words: str) -> None:
    root = ElementTree.fromstring(svg(control_flow(assemble(words))))
    drawn = [path.attrib["d"] for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(drawn) > 6
    assert not [d for d in drawn if "H" in d]  # what leads up or far goes around


def test_unreachable_and_looping_are_marked() -> None:
    picture = svg(control_flow(assemble("a: if r1 == 0 goto a\nexit\nb: goto b")))
    assert picture.count('class="b u"') == 1
    assert picture.count('<path class="back" marker-end') == 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["goto", "if r1 == 1 goto", "may_goto", "gotol", "r0 = 0"]), st.integers(0, 19)
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_program_has_a_picture_or_a_reason(parts: list[tuple[str, int]]) -> None:
    count = len(parts)
    words = [
        f"l{i}: {op}" + ("" if op == "r0 = 0" else f" l{to % count}") for i, (op, to) in enumerate(parts)
    ]
    (function,) = control_flow(assemble("\n".join([*words, "exit"])))
    covered = [slot for block in function.blocks.values() for slot, _ in block.instructions]
    assert covered == list(range(count + 1))
    ElementTree.fromstring(svg([function]))


def test_work_grows_with_the_program() -> None:
    def work(count: int) -> int:
        words = "".join(
            f"b{i}: if r1 == {i} goto b{(i * 7919) % count}\nif r2 > {i} goto out\n" for i in range(count)
        )
        insns = assemble(words + "out: exit")
        return calls(lambda: svg(control_flow(insns)))

    assert work(2000) < 6 * work(500)
