# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the verifier's messages mean, and what to do about them.

    diagnose("R0 invalid mem access 'map_value_or_null'").advice

The messages are those of kernel/bpf/verifier.c. Most have not changed since they came; what only
older kernels say is marked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pybpfasm.messages import MESSAGES, Message

__all__ = ["MESSAGES", "Diagnosis", "Message", "diagnose", "in_words"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A message, explained for one rejection."""

    key: str
    message: str
    why: str
    advice: str


def diagnose(messages: str | Iterable[str]) -> Diagnosis | None:
    """The explanation of the first of *messages* that is known, or ``None``."""
    lines = messages.splitlines() if isinstance(messages, str) else list(messages)
    for message in MESSAGES:
        for line in lines:
            found = message.pattern.search(line)
            if found:
                words = {name: text or "?" for name, text in found.groupdict().items()}
                return Diagnosis(
                    message.key, line.strip(), message.why.format(**words), message.advice.format(**words)
                )
    return None


# Kinds of pointers as the verifier prints them, by the longest beginning that fits.
_KINDS: Final = {
    "ctx": "the context",
    "fp": "the address of the stack",
    "map_ptr": "a map",
    "map_value": "the address of a map's value",
    "map_key": "the address of a map's key",
    "pkt": "a packet pointer",
    "pkt_meta": "a pointer to the packet's metadata",
    "pkt_end": "the end of the packet",
    "sock": "a socket",
    "sock_common": "a socket, perhaps not a full one",
    "tcp_sock": "a TCP socket",
    "mem": "memory",
    "ringbuf_mem": "a reserved record",
    "func": "a function",
    "dynptr_ptr": "a dynptr",
    "ptr_": "a kernel structure",
    "trusted_ptr_": "a kernel structure",
}


def in_words(state: str) -> str:
    """What the verifier prints of a register's state, for people; empty where there is no better word.

    ``map_value_or_null(id=1,map=hash,vs=16)`` is "the address of a value of map 'hash' (16 bytes), or 0".
    """
    name, _, rest = state.partition("(")
    # "pkt(r=14)" since 6.4, "pkt(id=0,off=0,r=14,imm=0)" before; "P5", "inv5" and "5" are constants.
    if constant := re.fullmatch(r"(?:P|inv)?(-?\d+|0x[0-9a-f]+)", name):
        return f"the number {constant[1]}"
    facts = dict(
        part.split("=", 1) for part in re.split(r",(?![^(]*\))", rest.removesuffix(")")) if "=" in part
    )
    if name in ("scalar", "inv", "Pscalar"):
        # Old: umin_value=1,umax_value=255. New: equal bounds are joined, smin=0,smax=umax=255.
        bounds = re.findall(r"(\w+)=(?=(?:\w+=)*(-?\w+))", rest)
        known = {key.removesuffix("_value"): value for key, value in bounds}
        if "umax" in known:
            return f"a number from {known.get('umin', '0')} to {known['umax']}"
        return "a number, nothing known of it" if not rest.strip("()") else "a number"
    null = name.endswith("_or_null")
    kind = name.removesuffix("_or_null")
    if fp := re.fullmatch(r"fp(-?\d+)", kind):
        return f"the address r10{int(fp[1]):+d} of the stack" if int(fp[1]) else "the address of the stack"
    words = _KINDS.get(kind)
    if words is None:
        match = next((start for start in ("trusted_ptr_", "ptr_") if kind.startswith(start)), "")
        if not match:
            return ""
        words = f"a kernel structure {kind.removeprefix(match)}"
    if kind == "map_value" and facts.get("map"):
        words = f"the address of a value of map {facts['map']!r}"
    if kind == "map_value" and "vs" in facts:
        words += f" ({facts['vs']} bytes)"
    if kind == "pkt" and "r" in facts:
        words += (
            ", of which nothing is checked" if facts["r"] == "0" else f", {facts['r']} bytes of it checked"
        )
    if facts.get("off") not in (None, "0"):
        words += f", at offset {facts['off']}"
    return words + (", or 0" if null else "")
