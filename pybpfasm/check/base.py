# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What all parts of a walk use: the program, what is reported of it, and values that come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from pybpfasm.check.graph import Graph
from pybpfasm.check.rights import is_gpl_compatible, rights_of
from pybpfasm.check.values import FREE, MAYBE, NUMBER, SOCK, UNKNOWN, UNSET, VAL, State, Value
from pybpfasm.kernel.enums import MapType
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.program import ProgramSpec

__all__ = ["SURE_LOOKUPS", "WITH_VALUES", "Report", "WalkBase"]

#: ``(code, index, message, related)``; related are pairs of words and the index of an instruction.
Report = Callable[[str, int, str, tuple[tuple[str, int], ...]], None]

# Looked up, these can be known not to be null: their keys are numbers below max_entries (Linux 6.15).
SURE_LOOKUPS: Final = frozenset({MapType.ARRAY, MapType.PERCPU_ARRAY})

# Of these a look-up gives a value.
WITH_VALUES: Final = frozenset(
    {
        MapType.HASH,
        MapType.ARRAY,
        MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY,
        MapType.LRU_HASH,
        MapType.LRU_PERCPU_HASH,
        MapType.LPM_TRIE,
        MapType.SK_STORAGE,
        MapType.TASK_STORAGE,
    }
)


class WalkBase:
    """One walk over the graph of a program, *certain* or not: see `pybpfasm.check.walk`."""

    def __init__(self, spec: ProgramSpec, graph: Graph, report: Report, certain: bool) -> None:
        self.spec = spec
        self.graph = graph
        self.certain = certain
        self._report = report
        self.rights = rights_of(spec.type, spec.attach_type)
        self.gpl = is_gpl_compatible(spec.license)
        self._function = 0  # that of the block which is being walked through
        self._deepest = [0] * len(graph.functions)  # bytes of stack that each function uses
        # Loads from stack that nothing was written to, and those of which another way has shown that it was.
        self._never_written: dict[int, str] = {}
        self._written_after_all: set[int] = set()
        # Calls that read stack of which some bytes were not written on any way.
        self._half_written: dict[int, str] = {}

    def _fault(self, code: str, index: int, message: str, *related: tuple[str, int]) -> None:
        self._report(code, index, message, related)

    def _read(self, index: int, register: int, regs: list[Value]) -> Value:
        value = regs[register]
        if value[0] <= MAYBE:
            self._unset(index, register, value)
            regs[register] = UNKNOWN
            return UNKNOWN
        return value

    def _unset(self, index: int, register: int, value: Value, what: str = "read") -> None:
        call = value[1]
        some = "" if value[0] == UNSET else "on some way, "
        if call >= 0:
            self._fault(
                "lost-in-call",
                index,
                f"{some}r{register} is {what} after a call took it away: r1 to r5 do not survive calls, "
                "keep it in r6 to r9 or on the stack",
                ("the call is at", call),
            )
        else:
            self._fault("unset", index, f"{some}r{register} is {what} before it is set")

    def _fresh(self, index: int, low: int, high: int, regs: list[Value]) -> Value:
        if self.graph.looping:
            for register, value in enumerate(regs):
                if value[0] == FREE and value[1] == index:
                    regs[register] = NUMBER
        return (FREE, index, low, high)

    def _purge(self, index: int, state: State) -> None:
        """Forget what came from the same instruction in an earlier turn of a loop."""
        if not self.graph.looping:
            return
        for register, value in enumerate(state.regs):
            if value[0] in (VAL, SOCK) and value[1] == index:
                state.regs[register] = UNKNOWN
        for offset, value in state.stack.items():
            if value[0] in (VAL, SOCK) and value[1] == index:
                state.stack[offset] = UNKNOWN

    def _null(self, index: int, register: int, value: Value, what: str) -> None:
        spec = value[3] if value[0] == VAL else None
        thing = "a look-up that found nothing" if value[0] == VAL else "a socket that is not there"
        origin = value[1]
        if origin < 0:
            self._fault(
                "null-check",
                index,
                f"r{register} {what} without a check whether it is 0: a global function may get that",
            )
            return
        message = f"r{register} {what} without a check whether it is 0 ({thing})"
        if isinstance(spec, MapSpec) and spec.type in SURE_LOOKUPS and self.certain:
            return  # the verifier may know the key
        self._fault("null-check", index, message + ": compare it with 0 first", ("it comes from", origin))
