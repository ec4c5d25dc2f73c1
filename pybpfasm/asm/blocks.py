# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Blocks that a condition guards or a loop repeats."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from pybpfasm.asm.branches import Label, branch_false, branch_true
from pybpfasm.asm.conditions import Condition
from pybpfasm.asm.operands import a

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm


class IfBlock:
    """What `Asm.If` returns: a block (``with``), or a jump (``.goto``)."""

    __slots__ = ("_asm", "_condition", "_else", "_end", "origin")

    def __init__(self, asm: Asm, condition: object, end: Label | None = None) -> None:
        if not isinstance(condition, Condition):
            hint = "; what is known in Python needs a plain `if`" if isinstance(condition, bool) else ""
            raise asm._error(f"If takes a comparison of registers, not {a(condition)}{hint}")
        self._asm = asm
        self._condition = condition
        self._else = Label("else")
        self._end = Label("endif") if end is None else end
        self.origin = condition.origin
        asm._loose.pop(id(condition), None)
        asm._loose[id(self)] = self

    def goto(self, label: str | Label) -> None:
        """Jump to *label* where the condition holds: ``if r2 > r3 goto label``."""
        self._asm._begin(self, "If")
        branch_true(self._asm, self._condition, self._asm._label(label), self.origin)

    def __enter__(self) -> None:
        self._asm._begin(self, "If")
        branch_false(self._asm, self._condition, self._else, self.origin)
        self._asm._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        asm = self._asm
        asm._depth -= 1
        ends = asm._terminated
        asm._place(self._else)
        if self._end in asm._used:
            asm._place(self._end)
        asm._chain = Chain(self._else, self._end, len(asm._body), asm._depth, ends)


class Chain:
    """The If block that has just ended, which an Else or Elif may continue."""

    __slots__ = ("depth", "end", "ends", "otherwise", "position")

    def __init__(self, otherwise: Label, end: Label, position: int, depth: int, ends: bool) -> None:
        self.otherwise = otherwise
        self.end = end
        self.position = position
        self.depth = depth
        self.ends = ends


class ElseBlock:
    """What `Asm.Else` and `Asm.Elif` return."""

    __slots__ = ("_asm", "_condition", "_end", "_inner", "origin", "what")

    def __init__(self, asm: Asm, condition: Condition | None) -> None:
        self._asm = asm
        self._condition = condition
        self._inner: IfBlock | None = None
        self.what = "Else" if condition is None else "Elif"
        self.origin = asm._capture(3)
        if condition is not None:
            asm._loose.pop(id(condition), None)
        asm._loose[id(self)] = self

    def __enter__(self) -> None:
        asm = self._asm
        asm._begin(self, self.what)
        chain = asm._chain
        if chain is None or chain.position != len(asm._body) or chain.depth != asm._depth:
            raise asm._error(f"{self.what} must follow the block of an If directly")
        asm._chain = None
        asm._unplace(chain.otherwise)
        asm._unplace(chain.end)
        self._end = chain.end
        asm._terminated = chain.ends
        if not chain.ends:
            asm._jump(self._end)
        asm._place(chain.otherwise)
        if self._condition is not None:
            self._inner = IfBlock(asm, self._condition, self._end)
            self._inner.__enter__()
        else:
            asm._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        if self._inner is not None:
            self._inner.__exit__(None, None, None)
            return
        self._asm._depth -= 1
        if self._end in self._asm._used:
            self._asm._place(self._end)


class LoopBlock:
    """What `Asm.Loop` and `Asm.While` bind: ``loop.start`` and ``loop.end`` are labels for ``goto``."""

    __slots__ = ("_asm", "_condition", "end", "origin", "start", "what")

    def __init__(self, asm: Asm, condition: Condition | None) -> None:
        self._asm = asm
        self._condition = condition
        self.start = Label("loop")
        self.end = Label("endloop")
        self.what = "Loop" if condition is None else "While"
        self.origin = asm._capture(3)
        if condition is not None:
            asm._loose.pop(id(condition), None)
        asm._loose[id(self)] = self

    def again(self) -> None:
        """Jump back to the start, as Python's ``continue``."""
        self._asm._jump(self.start)

    def leave(self) -> None:
        """Jump behind the end, as Python's ``break``."""
        self._asm._jump(self.end)

    def __enter__(self) -> LoopBlock:
        asm = self._asm
        asm._begin(self, self.what)
        if asm._terminated:
            raise asm._unreachable(self.origin)
        asm._place(self.start)
        if self._condition is not None:
            branch_false(self._asm, self._condition, self.end, self.origin)
        self._asm._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        self._asm._depth -= 1
        if not self._asm._terminated:
            self._asm._jump(self.start)
        if self.end in self._asm._used:
            self._asm._place(self.end)
