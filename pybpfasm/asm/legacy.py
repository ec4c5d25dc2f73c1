# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The packet loads of classic BPF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from pybpfasm.asm.operands import Address, NoOperand, Reg
from pybpfasm.errors import AsmError

if TYPE_CHECKING:
    from pybpfasm.asm.builder import Asm


class PacketLoad(NoOperand):
    """``b.skb.u16[12]``: what `LegacyPacket` gives."""

    __slots__ = ("asm", "base", "offset", "size")

    def __init__(self, asm: Asm, base: int | None, offset: int, size: int) -> None:
        self.asm = asm
        self.base = base
        self.offset = offset
        self.size = size

    def _no_operand(self) -> AsmError:
        return self.asm._error("what is loaded from the packet goes to r0 first: b.r0 = b.skb.u16[12]")


class PacketMemory:
    """``b.skb.u16``: numbers of one size in a packet."""

    __slots__ = ("asm", "size")

    def __init__(self, asm: Asm, size: int) -> None:
        self.asm = asm
        self.size = size

    def __getitem__(self, place: int | Reg | Address) -> PacketLoad:
        if isinstance(place, int):
            return PacketLoad(self.asm, None, self.asm._immediate(place, False), self.size)
        if isinstance(place, Reg):
            place = place + 0
        if not isinstance(place, Address):
            raise self.asm._error("a place in the packet is a number, a register, or their sum: b.r7 + 4")
        if place.asm is not self.asm:
            raise self.asm._foreign()
        return PacketLoad(self.asm, place.base, self.asm._immediate(place.offset, False), self.size)

    def __setitem__(self, place: object, value: object) -> NoReturn:
        raise self.asm._error("the packet is only read like this: bpf_skb_store_bytes writes")


class LegacyPacket:
    """``b.skb``: the packet, for ``ldabs`` and ``ldind``, which classic BPF left behind (RFC 9669, section
    5.5).

    ``b.r0 = b.skb.u16[12]`` loads 1, 2 or 4 bytes at a byte offset, in the order of the network, into r0 as a
    number of the host, with zeros above; ``b.r0 = b.skb.u8[b.r7 + 4]`` adds a register. The context must be
    in r6; r1 to r5 are lost; outside the packet the program ends with 0. Only programs that see packets as
    `SkBuff` may do this. Offsets from -0x100000 on are from the network header,
    from -0x200000 on from the link header (``SKF_NET_OFF``, ``SKF_LL_OFF``).
    """

    __slots__ = ("_asm", "u8", "u16", "u32")

    def __init__(self, asm: Asm) -> None:
        self._asm = asm
        self.u8 = PacketMemory(asm, 1)
        self.u16 = PacketMemory(asm, 2)
        self.u32 = PacketMemory(asm, 4)

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            raise self._asm._error(f"b.skb has u8, u16 and u32, no {name}")
