# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The control-flow graph of instructions, and its picture as SVG.

    graph = control_flow(spec.instructions, {f.slot: f.name for f in spec.functions})
    Path("program.svg").write_text(svg(graph, spec.location))

Each function is drawn by itself, from its entry downwards: the blocks in layers, every edge that does not
close a loop leading down. Calls are instructions, not edges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from pybpfasm import isa
from pybpfasm.errors import PybpfasmError
from pybpfasm.instruction import Instruction
from pybpfasm.isa import Jump
from pybpfasm.listing import text

if TYPE_CHECKING:
    from pybpfasm.errors import SourceLocation
    from pybpfasm.program import ProgramSpec

__all__ = ["Block", "CfgError", "Edge", "Function", "control_flow", "of_program", "svg"]

_CONDITIONAL: Final = frozenset(int(j) for j in Jump) - {Jump.JA, Jump.CALL, Jump.EXIT, Jump.JCOND}


class CfgError(PybpfasmError):
    """Instructions that have no control-flow graph: a jump to no instruction, a way past the end."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A way from one block to the one that begins at slot ``target``.

    ``kind`` is ``"next"`` (no jump, or the condition did not hold), ``"taken"`` or ``"goto"``.
    """

    target: int
    kind: str


@dataclass(slots=True)
class Block:
    """Instructions that run one after the other, with their slots."""

    instructions: list[tuple[int, Instruction]]
    edges: tuple[Edge, ...] = ()
    reachable: bool = False

    @property
    def slot(self) -> int:
        """Where the block begins."""
        return self.instructions[0][0]


@dataclass(slots=True)
class Function:
    """A function's blocks, by the slot at which they begin; the first is its entry."""

    name: str
    slot: int
    blocks: dict[int, Block] = field(default_factory=dict)


def of_program(spec: ProgramSpec) -> list[Function]:
    """The graph of a program."""
    return control_flow(spec.instructions, {f.slot: f.name for f in spec.functions})


def control_flow(
    instructions: Iterable[Instruction], functions: Mapping[int, str] | None = None
) -> list[Function]:
    """The blocks of *instructions*, by function.

    *functions* are names by slot; the targets of calls and of function addresses begin functions as well.
    Raises `CfgError` with the slot for a jump or call that does not go to an instruction of the same function
    (a call: of the program), and for a function that runs past its end.
    """
    placed: list[tuple[int, Instruction]] = []
    at = 0
    for insn in instructions:
        placed.append((at, insn))
        at += insn.slots
    if not placed:
        return []
    slots = {slot for slot, _ in placed}
    names = dict(functions or {})
    names.setdefault(0, "main")
    for slot, insn in placed:
        target = insn.callee(slot)
        if target is not None:
            if target not in slots:
                raise CfgError(
                    f"slot {slot}: {text(insn)} goes to slot {target}, where no instruction begins"
                )
            names.setdefault(target, f"function_{target}")
    starts = sorted(slot for slot in names if slot in slots)
    ends = [*starts[1:], at]
    out = []
    position = 0
    for start, end in zip(starts, ends, strict=True):
        last = position
        while last < len(placed) and placed[last][0] < end:
            last += 1
        out.append(_function(names[start], placed[position:last], start, end))
        position = last
    return out


def _ways(slot: int, insn: Instruction) -> tuple[Edge, ...] | None:
    """Where it goes on after an instruction that ends a block; ``None`` for one that does not."""
    opcode = insn.opcode
    following = Edge(slot + insn.slots, "next")
    if opcode in (isa.OP_EXIT, isa.OP_GOTOX):  # what a gotox may reach, its jump table tells
        return ()
    if opcode == isa.OP_JA:
        return (Edge(slot + 1 + insn.offset, "goto"),)
    if opcode == isa.OP_GOTOL:
        return (Edge(slot + 1 + insn.imm, "goto"),)
    if opcode == isa.OP_MAY_GOTO or (opcode & 7 in (isa.JMP, isa.JMP32) and opcode & 0xF0 in _CONDITIONAL):
        return (following, Edge(slot + 1 + insn.offset, "taken"))
    return None


def _function(name: str, placed: list[tuple[int, Instruction]], start: int, end: int) -> Function:
    slots = {slot for slot, _ in placed}
    ways = {slot: _ways(slot, insn) for slot, insn in placed}
    heads = {start}
    for slot, insn in placed:
        found = ways[slot]
        if found is None:
            continue
        if slot + insn.slots < end:
            heads.add(slot + insn.slots)
        for edge in found:
            if edge.target == end and edge.kind == "next":
                raise CfgError(f"slot {slot}: {name} runs past its end")
            if edge.target not in slots:
                where = (
                    "of another function" if not start <= edge.target < end else "where no instruction begins"
                )
                raise CfgError(f"slot {slot}: {text(insn)} goes to slot {edge.target}, {where}")
            heads.add(edge.target)
    function = Function(name, start)
    block = Block([])
    for slot, insn in placed:
        if slot in heads:
            if block.instructions and not block.edges and ways[block.instructions[-1][0]] is None:
                block.edges = (Edge(slot, "next"),)
            block = function.blocks[slot] = Block([])
        block.instructions.append((slot, insn))
        block.edges = ways[slot] or ()
    if placed and ways[placed[-1][0]] is None:
        raise CfgError(f"slot {placed[-1][0]}: {name} runs past its end")
    waiting = [start] if placed else []
    while waiting:
        block = function.blocks[waiting.pop()]
        if not block.reachable:
            block.reachable = True
            waiting += [edge.target for edge in block.edges]
    return function


# The picture. Sizes in SVG units; the text is monospaced, so that its width is known without measuring.
_CHAR, _LINE, _PAD, _GAP_X, _GAP_Y = 7.25, 15, 8, 28, 44
_WIDEST: Final = 100  # characters of a line that are shown
# An edge that passes more layers than this is led around the graph and not between the blocks, so that the
# number of places it goes through stays in proportion to the program.
_FAR: Final = 8
_LANES: Final = 24

_STYLE: Final = """
svg{background:#fff;font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.b{fill:#f7f8fa;stroke:#4a5568}.u{stroke-dasharray:4 3;fill:#fff5f5}.e{fill:#ebf4ff}
.n{font-weight:bold;font-size:15px}.s{fill:#8a94a6}.p{fill:#2f6f44}.i{fill:#1a202c}
path{fill:none;stroke-width:1.3}.next{stroke:#718096}.taken{stroke:#2b6cb0}.goto{stroke:#4a5568}
.back{stroke:#c05621}
@media(prefers-color-scheme:dark){svg{background:#14171c}.b{fill:#1e232b;stroke:#7b8799}.u{fill:#2d1f21}
.e{fill:#1b2a3d}.i,.n{fill:#e2e8f0}.p{fill:#7fc796}.next{stroke:#8a94a6}.taken{stroke:#63a4e8}.goto{stroke:#a0aec0}}
"""


@dataclass(slots=True)
class _Node:
    """A place in the layout: a block, or (``block is None``) where an edge passes a layer."""

    block: Block | None
    rows: list[tuple[str, str]]
    width: float
    height: float
    layer: int = 0
    x: float = 0
    y: float = 0
    above: list[int] = field(default_factory=list)
    below: list[int] = field(default_factory=list)
    row: float = 0  # height of the tallest in its layer


def svg(
    functions: Sequence[Function],
    location: Callable[[int], SourceLocation | None] | None = None,
    title: str = "",
) -> str:
    """The graph as an SVG document: instructions below the Python lines that *location* gives for slots.

    The text can be selected and searched, and each block has its slots as a tooltip. Nothing in it is loaded
    from elsewhere, and no script runs.
    """
    parts: list[str] = []
    y, width = 16.0, 200.0
    for function in functions:
        parts.append(f'<text class="n" x="16" y="{y + 14:.0f}">{_text(function.name)}</text>')
        y += 28
        drawn = _Drawing(function, location, 16, y)
        parts += drawn.parts
        y += drawn.height + 36
        width = max(width, drawn.width + 32)
    heading = f"<title>{_text(title)}</title>" if title else ""
    arrows = "".join(
        f'<marker id="{kind}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        f'orient="auto"><path class="{kind}" style="stroke-width:1" d="M1 1L7 4L1 7"/></marker>'
        for kind in ("next", "taken", "goto", "back")
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{y:.0f}" '
        f'viewBox="0 0 {width:.0f} {y:.0f}">{heading}<style>{_STYLE}</style><defs>{arrows}</defs>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _text(words: str) -> str:
    """*words* as XML: escaped, and without the characters that XML can't hold."""
    return escape("".join(c if c.isprintable() else " " for c in words))


class _Drawing:
    """One function: layers, order within them, coordinates, and the elements."""

    def __init__(
        self,
        function: Function,
        location: Callable[[int], SourceLocation | None] | None,
        left: float,
        top: float,
    ) -> None:
        self.function = function
        self.nodes: list[_Node] = []
        self.of: dict[int, int] = {}
        for slot, block in function.blocks.items():
            rows = _rows(block, location)
            longest = max(len(prefix) + len(words) for prefix, words in rows)
            self.of[slot] = len(self.nodes)
            self.nodes.append(_Node(block, rows, longest * _CHAR + 2 * _PAD, len(rows) * _LINE + 2 * _PAD))
        self.back = self._layer()
        # Each edge as the nodes that it passes, from its upper to its lower end; far ones have no nodes.
        self.routes: list[tuple[int, int, Edge, list[int]]] = []
        self._route()
        self.layers: list[list[int]] = []
        self._order()
        self._place(left, top)
        self.parts: list[str] = []
        self._draw()

    def _layer(self) -> set[tuple[int, int]]:
        """Give every block a layer below those before it; return the edges that close a loop."""
        blocks = self.function.blocks
        back: set[tuple[int, int]] = set()
        state: dict[int, int] = {}  # 1 on the way, 2 done
        finished: list[int] = []
        for root in blocks:
            if root in state:
                continue
            state[root] = 1
            stack = [(root, iter(blocks[root].edges))]
            while stack:
                slot, edges = stack[-1]
                for edge in edges:
                    if edge.target not in state:
                        state[edge.target] = 1
                        stack.append((edge.target, iter(blocks[edge.target].edges)))
                        break
                    if state[edge.target] == 1:
                        back.add((slot, edge.target))
                else:
                    state[slot] = 2
                    finished.append(slot)
                    stack.pop()
        for slot in reversed(finished):
            layer = self.nodes[self.of[slot]].layer
            for edge in blocks[slot].edges:
                if (slot, edge.target) not in back:
                    below = self.nodes[self.of[edge.target]]
                    below.layer = max(below.layer, layer + 1)
        return back

    def _route(self) -> None:
        for slot, block in self.function.blocks.items():
            for edge in block.edges:
                upper, lower = self.of[slot], self.of[edge.target]
                if (slot, edge.target) in self.back:
                    upper, lower = lower, upper
                first, last = self.nodes[upper].layer, self.nodes[lower].layer
                route: list[int] = []
                if 0 < last - first <= _FAR:
                    route = [upper]
                    for layer in range(first + 1, last):
                        route.append(len(self.nodes))
                        self.nodes.append(_Node(None, [], 10, 0, layer))
                    route.append(lower)
                    for one, next_ in pairwise(route):
                        self.nodes[one].below.append(next_)
                        self.nodes[next_].above.append(one)
                self.routes.append((slot, edge.target, edge, route))

    def _order(self) -> None:
        """Put each node near the middle of those that it is connected with, which avoids most crossings."""
        self.layers = [[] for _ in range(max((n.layer for n in self.nodes), default=0) + 1)]
        for index, node in enumerate(self.nodes):
            self.layers[node.layer].append(index)
        rank = {}
        for layer in self.layers:
            for position, index in enumerate(layer):
                rank[index] = float(position)
        for sweep in range(6):
            for layer in self.layers if sweep % 2 == 0 else reversed(self.layers):
                middle = {}
                for index in layer:
                    node = self.nodes[index]
                    near = node.above if sweep % 2 == 0 else node.below
                    middle[index] = sum(rank[n] for n in near) / len(near) if near else rank[index]
                layer.sort(key=middle.__getitem__)
                for position, index in enumerate(layer):
                    rank[index] = float(position)

    def _place(self, left: float, top: float) -> None:
        far = sum(1 for *_, route in self.routes if not route)
        left += 10 + 6 * min(far, _LANES)
        self.left = left
        widths = [sum(self.nodes[i].width + _GAP_X for i in layer) - _GAP_X for layer in self.layers]
        widest = max(widths, default=0)
        y = top
        for layer, width in zip(self.layers, widths, strict=True):
            x = left + (widest - width) / 2
            for index in layer:
                node = self.nodes[index]
                node.x, node.y = x, y
                x += node.width + _GAP_X
            height = max((self.nodes[i].height for i in layer), default=0)
            for index in layer:
                self.nodes[index].row = height
                if self.nodes[index].block is None:
                    self.nodes[index].height = height
            y += height + _GAP_Y
        self.width = widest + left
        self.height = y - _GAP_Y - top

    def _draw(self) -> None:
        leaving: dict[int, int] = {}
        lane = 0
        for source, target, edge, route in self.routes:
            kind = "back" if (source, target) in self.back else edge.kind
            number = leaving.get(source, 0)
            leaving[source] = number + 1
            if route:
                path = self._through(route, kind, number, len(self.function.blocks[source].edges))
            else:
                path = self._around(source, target, lane % _LANES, number)
                lane += 1
            self.parts.append(f'<path class="{kind}" marker-end="url(#{kind})" d="{path}"/>')
        for node in self.nodes:
            if node.block is not None:
                self.parts.append(self._box(node, node.block))

    def _through(self, route: list[int], kind: str, number: int, edges: int) -> str:
        points: list[tuple[float, float]] = []
        for position, index in enumerate(route):
            node = self.nodes[index]
            x = node.x + node.width / 2
            if position == 0 and kind != "back" and edges > 1:
                x += (number - 0.5) * min(40.0, node.width / 3)
            if kind == "back" and node.block is not None:
                x += node.width / 4
            if position > 0:
                points.append((x, node.y))
            if position < len(route) - 1:
                points.append((x, node.y + node.height))
                if node.row > node.height:  # past the taller ones beside it
                    points.append((x, node.y + node.row))
        if kind == "back":
            points.reverse()
        out = [f"M{points[0][0]:.0f} {points[0][1]:.0f}"]
        for (x0, y0), (x1, y1) in pairwise(points):
            if x0 == x1:
                out.append(f"L{x1:.0f} {y1:.0f}")
            else:
                half = (y1 - y0) / 2
                out.append(f"C{x0:.0f} {y0 + half:.0f} {x1:.0f} {y1 - half:.0f} {x1:.0f} {y1:.0f}")
        return "".join(out)

    def _around(self, source: int, target: int, lane: int, number: int) -> str:
        """From the left side of one block to that of the other, in a lane beside the graph."""
        one, other = self.nodes[self.of[source]], self.nodes[self.of[target]]
        x = self.left - 10 - 6 * lane
        start, end = one.y + one.height - 6 - 4 * (number % 3), other.y + 8
        return f"M{one.x:.0f} {start:.0f}H{x:.0f}V{end:.0f}H{other.x:.0f}"

    def _box(self, node: _Node, block: Block) -> str:
        kind = "b" + (" e" if block.slot == self.function.slot else "") + ("" if block.reachable else " u")
        last_slot, last = block.instructions[-1]
        out = [
            f"<g><title>slots {block.slot} to {last_slot + last.slots - 1}"
            f"{'' if block.reachable else ', unreachable'}</title>"
            f'<rect class="{kind}" x="{node.x:.0f}" y="{node.y:.0f}" width="{node.width:.0f}" '
            f'height="{node.height:.0f}" rx="4"/>'
        ]
        y = node.y + _PAD + 11
        for prefix, words in node.rows:
            spans = f'<tspan class="p">{_text(words)}</tspan>'
            if prefix:
                spans = f'<tspan class="s">{prefix}</tspan><tspan class="i">{_text(words)}</tspan>'
            out.append(f'<text x="{node.x + _PAD:.0f}" y="{y:.0f}" xml:space="preserve">{spans}</text>')
            y += _LINE
        out.append("</g>")
        return "".join(out)


def _rows(block: Block, location: Callable[[int], SourceLocation | None] | None) -> list[tuple[str, str]]:
    """Lines of a block: Python source (no prefix) and instructions, which have their slot before them."""
    rows: list[tuple[str, str]] = []
    shown: tuple[str, int] | None = None
    for slot, insn in block.instructions:
        where = None if location is None else location(slot)
        if where is not None and (where.filename, where.line) != shown:
            shown = (where.filename, where.line)
            rows.append(("", _cut(f"{where.filename.rpartition('/')[2]}:{where.line}  {where.text}")))
        rows.append((f"{slot:>4}  ", _cut(text(insn))))
    return rows


def _cut(words: str) -> str:
    return words if len(words) <= _WIDEST else words[: _WIDEST - 1] + "…"
