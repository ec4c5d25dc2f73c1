# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Candidate 1, mnemonic calls: the core of the TC ingress program."""

from __future__ import annotations

from docs.dsl.common import ENVOY_PORT, FLOWS
from docs.dsl.mnemonic import (
    addi,
    assemble,
    be16,
    call,
    exit,
    jeqi,
    jgt,
    jgti,
    jlti,
    jne,
    jnei,
    jseti,
    label,
    ldmap,
    ldxb,
    ldxh,
    ldxw,
    mov,
    movi,
    r0,
    r1,
    r2,
    r3,
    r4,
    r5,
    r6,
    r7,
    r8,
    r10,
    sth,
    stxh,
    stxw,
)


def swap(port: int) -> int:
    return (port & 0xFF) << 8 | port >> 8


def core() -> None:
    mov(r6, r1)
    ldxw(r7, r6, 76)  # data
    ldxw(r8, r6, 80)  # data_end
    ldxw(r2, r6, 16)  # protocol
    jnei(r2, swap(0x0800), "other")
    mov(r2, r7)
    addi(r2, 54)
    jgt(r2, r8, "other")
    ldxb(r2, r7, 14)  # version, ihl
    jnei(r2, 0x45, "other")
    ldxb(r2, r7, 23)  # protocol
    jnei(r2, 6, "other")
    ldxh(r2, r7, 20)  # frag_off
    jseti(r2, swap(0x1FFF), "other")
    ldxh(r2, r7, 36)  # dest
    stxh(r10, -24, r2)
    be16(r2)
    jeqi(r2, 8000, "hit")
    jlti(r2, 9000, "other")
    jgti(r2, 9010, "other")
    label("hit")
    ldxw(r2, r7, 26)  # saddr
    stxw(r10, -16, r2)
    ldxw(r2, r7, 30)  # daddr
    stxw(r10, -12, r2)
    ldxh(r2, r7, 34)  # source
    stxh(r10, -8, r2)
    sth(r10, -6, 6)
    ldmap(r1, FLOWS)
    mov(r2, r10)
    addi(r2, -16)
    call(1)  # map_lookup_elem
    jnei(r0, 0, "known")
    movi(r0, 2)
    exit()
    label("known")
    ldxh(r3, r0, 0)  # original_port
    ldxh(r4, r10, -24)
    jne(r3, r4, "drop")
    sth(r10, -32, swap(ENVOY_PORT))
    mov(r1, r6)
    movi(r2, 50)  # the checksum's offset
    movi(r4, swap(ENVOY_PORT))
    movi(r5, 2)
    call(11)  # l4_csum_replace
    jnei(r0, 0, "drop")
    mov(r1, r6)
    movi(r2, 36)
    mov(r3, r10)
    addi(r3, -32)
    movi(r4, 2)
    movi(r5, 0)
    call(9)  # skb_store_bytes
    jnei(r0, 0, "drop")
    label("other")
    movi(r0, -1)
    exit()
    label("drop")
    movi(r0, 2)
    exit()


if __name__ == "__main__":
    core()
    print(assemble().hex())
