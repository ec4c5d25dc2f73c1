# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A check of programs before they are loaded.

    for finding in check(spec):
        print(finding)

It needs no kernel. An *error* is only what the kernel certainly refuses; what depends on the values that
registers can have is a *warning*. That nothing is found does not mean that the verifier agrees: it tracks far
more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybpfasm.check.findings import Finding, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pybpfasm.program import ProgramSpec

__all__ = ["Finding", "Severity", "check", "main"]


def check(spec: ProgramSpec) -> list[Finding]:
    """What is wrong with *spec*, in the order of its instructions, each kind of mistake once per instruction.

    The time is in proportion to the size of the program: 100 000 instructions take seconds.
    """
    from pybpfasm.check.graph import Graph
    from pybpfasm.check.walk import Walk
    from pybpfasm.listing import text

    instructions = spec.instructions
    found: dict[tuple[int, str], Finding] = {}
    severity = Severity.ERROR

    def report(code: str, index: int, message: str, related: tuple[tuple[str, int], ...] = ()) -> None:
        key = (index, code)
        if key in found and (severity is Severity.WARNING or found[key].severity is Severity.ERROR):
            return
        slot = graph.slots[index] if graph is not None else slots[index]
        places = []
        for what, other in related:
            at = slots[other]
            places.append((what, at, spec.location(at)))
        found[key] = Finding(
            severity, code, slot, message, text(instructions[index]), spec.location(slot), tuple(places)
        )

    if not instructions:
        return [Finding(Severity.ERROR, "empty", 0, "the program has no instructions")]
    slots: list[int] = []
    at = 0
    for insn in instructions:
        slots.append(at)
        at += insn.slots
    graph: Graph | None = None
    for index, insn in enumerate(instructions):
        if insn.dst > 10 or insn.src > 10:
            report("register", index, f"there is no register r{max(insn.dst, insn.src)}: r0 to r10")
    if found:
        return list(found.values())
    graph = Graph(instructions, [function.slot for function in spec.functions], report)
    if not graph.unknown_jump:
        for certain in (True, False):
            severity = Severity.ERROR if certain else Severity.WARNING
            walk = Walk(spec, graph, report, certain)
            walk.run()
            for number in sorted(graph.endless()) if graph.sound else ():
                block = graph.blocks[number]
                back = any(graph.blocks[following].order <= block.order for following in block.following)
                if back and walk.reached(number):
                    report("endless", block.end - 1, "this loop never comes to an exit")
    return sorted(found.values(), key=lambda finding: (finding.slot, finding.code))


def main(args: Sequence[str] | None = None) -> int:
    """``python -m pybpfasm check``: check files and programs; returns the exit status."""
    from pybpfasm.check.command import main

    return main(args)
