# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Comparisons, alone and joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from pybpfasm.isa import Jump

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm
    from pybpfasm.asm.operands import Operand, Reg

INVERSE: Final = {
    Jump.JEQ: Jump.JNE,
    Jump.JNE: Jump.JEQ,
    Jump.JGT: Jump.JLE,
    Jump.JLE: Jump.JGT,
    Jump.JGE: Jump.JLT,
    Jump.JLT: Jump.JGE,
    Jump.JSGT: Jump.JSLE,
    Jump.JSLE: Jump.JSGT,
    Jump.JSGE: Jump.JSLT,
    Jump.JSLT: Jump.JSGE,
}


class Condition:
    """A comparison of a register, or several joined by ``&`` or by ``|`` (*parts*), for `Asm.If` and
    `Asm.While`."""

    __slots__ = ("asm", "join", "jump", "lhs", "origin", "parts", "rhs")

    def __init__(
        self,
        asm: Asm,
        jump: Jump | None,
        lhs: Reg | None = None,
        rhs: Operand = 0,
        join: Literal["and", "or", ""] = "",
        parts: tuple[Condition, ...] = (),
    ) -> None:
        self.asm = asm
        self.jump = jump
        self.lhs = lhs
        self.rhs = rhs
        self.join = join
        self.parts = parts
        self.origin = asm._capture(3)
        asm._loose[id(self)] = self

    def __repr__(self) -> str:
        if self.join:
            return f"<{f' {self.join} '.join(map(repr, self.parts))}>"
        return f"<{'no ' if self.jump is None else ''}{(self.jump or Jump.JSET).name} {self.lhs}, {self.rhs}>"

    def __and__(self, other: Condition) -> Condition:
        return self._combine("and", other)

    def __or__(self, other: Condition) -> Condition:
        return self._combine("or", other)

    def _combine(self, join: Literal["and", "or"], other: Condition) -> Condition:
        if not isinstance(other, Condition):
            raise self.asm._error(
                "conditions are joined with conditions: put each comparison in parentheses, "
                "(b.r1 == 1) & (b.r2 == 2)"
            )
        self.asm._loose.pop(id(self), None)
        self.asm._loose.pop(id(other), None)
        # Flat where the same is joined again, so that a thousand comparisons are not a thousand levels.
        parts = [one.parts if one.join == join else (one,) for one in (self, other)]
        return Condition(self.asm, None, join=join, parts=parts[0] + parts[1])

    def __invert__(self) -> Condition:
        self.asm._loose.pop(id(self), None)
        if self.join:
            parts = tuple(~part for part in self.parts)
            for part in parts:
                self.asm._loose.pop(id(part), None)
            return Condition(self.asm, None, join="or" if self.join == "and" else "and", parts=parts)
        if self.jump is Jump.JSET:
            return Condition(self.asm, None, self.lhs, self.rhs)  # no opcode of its own: "not any bit set"
        if self.jump is None:
            return Condition(self.asm, Jump.JSET, self.lhs, self.rhs)
        return Condition(self.asm, INVERSE[self.jump], self.lhs, self.rhs)

    def _misuse(self, *_: object) -> Any:
        raise self.asm._error(
            "a comparison has no value: b.If(b.rN & bits) is true where any of the bits is set; to compare a "
            "part of a register, mask it first with b.rN &= bits"
        )

    __lt__ = __le__ = __gt__ = __ge__ = _misuse

    def __eq__(self, other: object) -> Any:
        return self._misuse()

    def __ne__(self, other: object) -> Any:
        return self._misuse()

    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise self.asm._error(
            "a comparison of registers has no truth value while the program is written: "
            "use `with b.If(…):`, and & | ~ instead of and, or, not"
        )
