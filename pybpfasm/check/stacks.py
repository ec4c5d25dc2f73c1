# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The stacks of functions that call each other, which have a limit together."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from pybpfasm.check.graph import Graph, is_local_call
from pybpfasm.check.rights import OWN_STACKS

if TYPE_CHECKING:
    from pybpfasm.program import ProgramSpec

__all__ = ["stack_sum"]

_STACK: Final = 512


def stack_sum(spec: ProgramSpec, graph: Graph, deepest: Sequence[int]) -> tuple[int, str] | None:
    """The call on the way that needs more stack than there is, with words for it; ``None`` where none does.

    *deepest* are the bytes of stack that each function uses, as far as is certain. The verifier adds them up
    along every call that is written (check_max_stack_depth() in kernel/bpf/verifier.c).
    """
    if spec.type in OWN_STACKS or len(graph.functions) < 2:
        return None
    callees = _callees(graph)
    total: dict[int, int] = {}
    open_: set[int] = set()
    waiting = [0]
    while waiting:
        function = waiting[-1]
        missing = [callee for callee in callees[function] if callee not in total]
        if function in open_ and any(callee in open_ for callee in missing):
            return None  # functions that call each other in a circle are another mistake
        open_.add(function)
        if missing:
            waiting += missing
            continue
        waiting.pop()
        open_.discard(function)
        # Kernels round up to 16 or 32 bytes, each in its way; so much it is at least.
        total[function] = deepest[function] + max((total[c] for c in callees[function]), default=0)
    if total[0] <= _STACK:
        return None
    function, names, index = 0, [_name(spec, graph, 0)], graph.functions[0]
    while callees[function]:
        function, index = max(callees[function].items(), key=lambda pair: (total[pair[0]], -pair[0]))
        names.append(_name(spec, graph, function))
    return index, (
        f"the functions on this way ({', '.join(names)}) use {total[0]} bytes of stack together; "
        f"they have {_STACK}"
    )


def _callees(graph: Graph) -> list[dict[int, int]]:
    """The functions that each function calls, with the index of the first call."""
    found: list[dict[int, int]] = [{} for _ in graph.functions]
    for index, insn in enumerate(graph.instructions):
        if not is_local_call(insn):
            continue
        to = graph.index_of.get(graph.slots[index] + 1 + insn.imm)
        if to is not None:
            caller = bisect.bisect_right(graph.functions, index) - 1
            found[caller].setdefault(bisect.bisect_left(graph.functions, to), index)
    return found


def _name(spec: ProgramSpec, graph: Graph, place: int) -> str:
    slot = graph.slots[graph.functions[place]]
    return next((f.name for f in spec.functions if f.slot == slot), f"function_{slot}")
