# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What programs of one type may do, from the tables that the kernel's answers made."""

from __future__ import annotations

from functools import cache
from typing import Final

from pybpfasm.kernel import helpers as table
from pybpfasm.kernel.enums import Helper, ProgType

__all__ = ["MOVES_PACKET", "RESULTS", "Rights", "is_gpl_compatible", "rights_of", "type_name"]

# license_is_gpl_compatible(), include/linux/license.h
_GPL_COMPATIBLE: Final = frozenset(
    {"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"}
)
_LAST_HELPER: Final = max(Helper)


def _parse(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


_GPL_ONLY: Final = _parse(table.GPL_ONLY)
MOVES_PACKET: Final = _parse(table.MOVES_PACKET)
#: What the helpers leave in r0, in the verifier's words.
RESULTS: Final = {helper: name for name, text in table.RESULTS.items() for helper in _parse(text)}

_WORDS: Final = {
    "memory": "memory (the stack, a packet or a map's value)",
    "ctx": "the context",
    "map_ptr": "a map",
    "map_value": "a map's value",
    "socket": "a socket",
    "func": "a callback",
    "ringbuf_mem": "memory that ringbuf_reserve gave",
}


class Rights:
    """The rights of a program type with an attach type."""

    def __init__(self, key: tuple[int, int]) -> None:
        number = table.HELPERS_OF.get(key)
        self.helpers: frozenset[int] | None = None if number is None else _parse(table.HELPER_SETS[number])
        number = table.CONTEXT_OF.get(key)
        self.context = None if number is None else table.CONTEXTS[number]
        self._special = table.ARGUMENTS_OF.get(key, {})

    def may_call(self, helper: int) -> bool | None:
        """Whether the helper may be called; ``None`` where that is not known."""
        if self.helpers is None or not 0 < helper <= _LAST_HELPER:
            return None
        return helper in self.helpers

    def arguments(self, helper: int) -> tuple[str, ...]:
        """The kinds of the arguments that the helper is known to take."""
        if self.helpers is None:
            return ()
        special = self._special.get(helper)
        return table.ARGUMENTS.get(helper, ()) if special is None else special


def in_words(kind: str) -> str:
    """A kind of argument, for people."""
    return _WORDS.get(kind, f"{kind} (the verifier's word)")


@cache
def rights_of(type: int, attach_type: int | None) -> Rights:
    """The rights of a program type; with an attach type where loading wants one."""
    key = (int(type), int(attach_type or 0))
    if key not in table.HELPERS_OF and (key[0], 0) in table.HELPERS_OF:
        key = (key[0], 0)
    return Rights(key)


def needs_gpl(helper: int) -> bool:
    """Whether only programs with a GPL-compatible license may call the helper."""
    return helper in _GPL_ONLY


def is_gpl_compatible(license: str) -> bool:
    """Whether the kernel takes *license* for compatible with its own."""
    return license in _GPL_COMPATIBLE


def type_name(type: int) -> str:
    """The name of a program type."""
    try:
        return ProgType(type).name
    except ValueError:
        return f"type {type}"
