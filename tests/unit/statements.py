# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The statements of tests/data/llvm/statements.txt, and how one is assembled alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pybpfasm import asm, layout, net
from pybpfasm.asm import Asm
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.context import SkBuff
from pybpfasm.kernel.enums import Helper, MapType
from pybpfasm.layout import ByteOrder, Bytes, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import subprogram

DATA = Path(__file__).resolve().parents[1] / "data" / "llvm"


class Key(Struct):
    """The layout that ``key`` has in statements.txt."""

    client = Bytes(16)
    server = Bytes(16)
    client_port = layout.Be16()
    protocol = layout.U8()
    family = layout.U8()


class Ip4(Struct):
    """An IPv4 header up to its fragment's offset."""

    version = layout.Be16.bits(4)
    ihl = layout.Be16.bits(4)
    tos = layout.Be16.bits(8)
    tot_len = layout.Be16()
    id = layout.Be16()
    flags = layout.Be16.bits(3)
    fragment = layout.Be16.bits(13)


FLOWS = MapSpec("flows", MapType.HASH, Key, 8, 1024)
STATS = MapSpec("stats", MapType.ARRAY, layout.U32(), 64, 1)


@subprogram("data", "length")
def checksum(b: Asm) -> None:
    """A subprogram to name."""
    b.ret(0)


def namespace(b: Asm) -> dict[str, Any]:
    """What the statements of the data files name."""
    names: dict[str, Any] = {name: getattr(asm, name) for name in asm.__all__}
    return names | {
        "b": b,
        "ctx": SkBuff(b.r1),
        "tcp": net.Tcp(b.r7),
        "ip6": net.Ipv6(b.r7),
        "ip4": Ip4(b.r7),
        "key": Key(b.r10 - 40),
        "Helper": Helper,
        "U16": layout.U16,
        "flows": FLOWS,
        "stats": STATS,
        "checksum": checksum,
    }


def instructions(statement: str, byteorder: ByteOrder = "little") -> list[Instruction]:
    """*statement* alone; the label ``two_on`` is two slots behind it."""
    b = Asm("statement", byteorder=byteorder)
    names = namespace(b)
    exec(compile(statement, "<statement>", "exec"), names)
    written = len(b._body)
    if b._terminated:
        b.label("after")
        b.If(b.r9 == 9).goto("after")  # so that what follows is reached
    else:
        b.r9 = 9
    b.r9 = 9
    b.label("two_on")
    b.ret(0)
    return b.finish()[:written]


def sections() -> dict[str, list[tuple[str, str]]]:
    """The rows of statements.txt, statement and LLVM's assembly, by heading."""
    found: dict[str, list[tuple[str, str]]] = {}
    text = (DATA / "statements.txt").read_text(encoding="utf-8")
    for part in text.split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        found[heading] = [(left, right) for left, right in (line.split(" :: ") for line in lines if line)]
    return found
