# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""All that a kernel can be asked for, in groups, for `doctor --all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from loader.features import (
    Probe,
    Support,
    has_attach_type,
    has_helper,
    has_link_type,
    has_map_type,
    has_program_type,
    probe,
)
from loader.features.kinds import WITH_TARGET
from loader.features.parts import BtfPart, Isa
from pybpfasm.kernel.enums import AttachType, Helper, LinkType, MapType, ProgType

__all__ = ["Group", "groups"]


@dataclass(frozen=True, slots=True)
class Group:
    """Answers to questions of one kind, by the name of what was asked for."""

    title: str
    answers: dict[str, Probe]
    brief: bool = False  # most is missing, and needs no reason each
    lines: bool = False  # the names are words

    @property
    def summary(self) -> str:
        """How many of how many are there."""
        return f"{len(self.there)} of {len(self.answers)}"

    @property
    def there(self) -> list[str]:
        """The names of what is certainly there."""
        return [name for name, found in self.answers.items() if found.supported]

    @property
    def lacking(self) -> list[tuple[str, str]]:
        """What is not there or could not be tried, and why; things with one reason are together."""
        by_reason: dict[str, list[str]] = {}
        for name, found in self.answers.items():
            if found.supported or (self.brief and found.support is Support.UNSUPPORTED):
                continue
            missing = found.support is Support.UNSUPPORTED
            reason = f"{'missing' if missing else 'could not be tried'}, {found.reason}"
            by_reason.setdefault(reason, []).append(name)
        return [(", ".join(names), reason) for reason, names in by_reason.items()]

    def as_dict(self) -> dict[str, Any]:
        """The answers as plain data."""
        if self.brief:
            return {name: found.support.value for name, found in self.answers.items()}
        return {
            name: {"support": found.support.value, "reason": found.reason}
            for name, found in self.answers.items()
        }


T = TypeVar("T", bound=Enum)


def _ask(kinds: Iterable[T], question: Callable[[T], Probe]) -> dict[str, Probe]:
    return {kind.name: question(kind) for kind in kinds if kind.name != "UNSPEC"}


def groups(*, helpers: bool = True) -> Iterator[Group]:
    """Ask for everything, one group after the other. Helpers take some thousand attempts."""
    for title, asked in (("Instruction set", Isa), ("BTF", BtfPart)):
        yield Group(title, {one.value: probe(one) for one in asked}, lines=True)
    programs = _ask(ProgType, has_program_type)
    yield Group("Program types", programs)
    yield Group("Map types", _ask(MapType, has_map_type))
    yield Group("Attach types", _ask(AttachType, has_attach_type))
    yield Group("Link types", _ask(LinkType, has_link_type))
    for kind in ProgType if helpers else ():
        if kind.name in programs and programs[kind.name].supported and kind not in WITH_TARGET:
            yield Group(
                f"Helpers of {kind.name} programs", _ask(Helper, partial(has_helper, kind)), brief=True
            )
