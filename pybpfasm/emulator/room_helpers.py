# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers that make and remove headers of packets, or look at their size (net/core/filter.c)."""

from __future__ import annotations

from typing import Final

from pybpfasm.emulator import checksum
from pybpfasm.emulator.context import Skb, Xdp
from pybpfasm.emulator.errnos import EALREADY, EFAULT, EINVAL, ENODEV, ENOMEM, ENOTSUPP, EOPNOTSUPP
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.helpers import helper, s32
from pybpfasm.emulator.packet_helpers import MAX_LENGTH, protocol, set_protocol
from pybpfasm.emulator.run import Run
from pybpfasm.kernel.enums import (
    BPF_ADJ_ROOM_ENCAP_L2_MASK,
    BPF_ADJ_ROOM_ENCAP_L2_SHIFT,
    BPF_ADJ_ROOM_MAC,
    BPF_ADJ_ROOM_NET,
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
    BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
    BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
    BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO,
    BPF_F_ADJ_ROOM_NO_CSUM_RESET,
    BPF_MTU_CHK_RET_FRAG_NEEDED,
    BPF_MTU_CHK_RET_SUCCESS,
    BPF_MTU_CHK_SEGS,
    BPF_SKB_CLOCK_MONOTONIC,
    BPF_SKB_CLOCK_REALTIME,
    BPF_SKB_CLOCK_TAI,
    Helper,
)
from pybpfasm.net import ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Ethernet, Ipv4, Ipv6

U32: Final = 0xFFFFFFFF
_MOST: Final = 0xFFF
_BASE: Final = {ETH_P_IP: Ipv4.sizeof, ETH_P_IPV6: Ipv6.sizeof}
_ENCAP_L3: Final = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6
_ENCAP_L4: Final = BPF_F_ADJ_ROOM_ENCAP_L4_GRE | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
_DECAP: Final = BPF_F_ADJ_ROOM_DECAP_L3_IPV4 | BPF_F_ADJ_ROOM_DECAP_L3_IPV6
_SHRINK: Final = BPF_F_ADJ_ROOM_FIXED_GSO | _DECAP | BPF_F_ADJ_ROOM_NO_CSUM_RESET
_ALL: Final = (
    _SHRINK
    | _ENCAP_L3
    | _ENCAP_L4
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
    | BPF_ADJ_ROOM_ENCAP_L2_MASK << BPF_ADJ_ROOM_ENCAP_L2_SHIFT
)


def _push(skb: Skb, at: int, length: int) -> None:
    skb.data[at:at] = bytes(length)
    skb.linear += length


def _pop(run: Run, skb: Skb, at: int, length: int) -> int:
    if not skb.make_writable(at + length):
        return -ENOMEM
    if skb.checksum == "complete":  # skb_postpull_rcsum, which negates in two's complement
        gone = bytes(skb.data[at : at + length])
        skb.csum = -checksum.partial(gone, -skb.csum & U32, run.emulator.byteorder) & U32
    del skb.data[at : at + length]
    skb.linear -= length
    return 0


@helper(Helper.skb_adjust_room)
def skb_adjust_room(run: Run, context: int, difference: int, mode: int, flags: int) -> int:
    """Make or remove room behind the link header or the network header; 0 or an errno."""
    skb = run.is_context(context, Skb)
    result = _adjust(run, skb, s32(difference), mode & U32, flags)
    if not result and not flags & BPF_F_ADJ_ROOM_NO_CSUM_RESET and skb.checksum == "unnecessary":
        skb.checksum, skb.csum_level = "none", 0  # __skb_reset_checksum_unnecessary
    skb.moved(run, "skb_adjust_room")
    return result


def _adjust(run: Run, skb: Skb, difference: int, mode: int, flags: int) -> int:
    kind = protocol(run)
    size = abs(difference)
    if flags & ~_ALL:
        return -EINVAL
    if size > _MOST:
        return -EFAULT
    if kind not in _BASE or mode not in (BPF_ADJ_ROOM_NET, BPF_ADJ_ROOM_MAC):
        return -ENOTSUPP
    at = skb.network_offset + (_BASE[kind] if mode == BPF_ADJ_ROOM_NET else 0)
    least = _BASE[kind]
    if flags & _DECAP:
        if difference >= 0 or flags & _DECAP == _DECAP:
            return -EINVAL
        least = _BASE[ETH_P_IP if flags & BPF_F_ADJ_ROOM_DECAP_L3_IPV4 else ETH_P_IPV6]
    if difference < 0:
        left = len(skb.data) - skb.network_offset - size
        return -ENOTSUPP if left <= 0 or left < least else _shrink(run, skb, at, size, flags)
    return -ENOTSUPP if len(skb.data) + size > MAX_LENGTH else _grow(run, skb, at, size, flags)


def _shrink(run: Run, skb: Skb, at: int, size: int, flags: int) -> int:
    if flags & ~_SHRINK:
        return -EINVAL
    error = _pop(run, skb, at, size)
    if not error and flags & _DECAP:
        set_protocol(run, skb, ETH_P_IP if flags & BPF_F_ADJ_ROOM_DECAP_L3_IPV4 else ETH_P_IPV6)
    return error


def _grow(run: Run, skb: Skb, at: int, size: int, flags: int) -> int:
    if flags & _ENCAP_L3:
        link = flags >> BPF_ADJ_ROOM_ENCAP_L2_SHIFT
        both = flags & _ENCAP_L3 == _ENCAP_L3 or flags & _ENCAP_L4 == _ENCAP_L4
        if both or (flags & BPF_F_ADJ_ROOM_ENCAP_L2_ETH and link < Ethernet.sizeof):
            return -EINVAL
        if skb.encapsulated:
            return -EALREADY
        if link > size:
            return -EINVAL
    _push(skb, at, size)
    if flags & _ENCAP_L3:
        skb.encapsulated = True
        set_protocol(run, skb, ETH_P_IP if flags & BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 else ETH_P_IPV6)
    return 0


@helper(Helper.skb_change_proto)
def skb_change_proto(run: Run, context: int, kind: int, flags: int) -> int:
    """Make room for an IPv6 header in place of an IPv4 one, or the other way; 0 or an errno."""
    skb = run.is_context(context, Skb)
    raw = (kind & 0xFFFF).to_bytes(2, run.emulator.byteorder)
    wanted = int.from_bytes(raw, "big")
    now = protocol(run)
    difference = Ipv6.sizeof - Ipv4.sizeof
    result = 0
    if flags:
        result = -EINVAL
    elif (now, wanted) == (ETH_P_IP, ETH_P_IPV6):
        _push(skb, skb.network_offset, difference)
    elif (now, wanted) == (ETH_P_IPV6, ETH_P_IP):
        result = _pop(run, skb, skb.network_offset, difference)
    else:
        result = -ENOTSUPP
    if not result:
        set_protocol(run, skb, wanted)
        skb._refresh(run, "hash", 0)
    skb.moved(run, "skb_change_proto")
    return result


def _behind_tags(run: Run, skb: Skb) -> int:
    """The EtherType behind VLAN tags that are in the packet (``skb_protocol``); 0 where it ends before."""
    kind = protocol(run)
    at = skb.network_offset + 2
    while kind in (ETH_P_8021Q, ETH_P_8021AD):
        if at + 2 > len(skb.data):
            return 0
        kind = int.from_bytes(skb.data[at : at + 2], "big")
        at += 4
    return kind


@helper(Helper.skb_ecn_set_ce)
def skb_ecn_set_ce(run: Run, context: int) -> int:
    """Mark the packet as having met congestion; 1 where it says so now, 0 where it takes no part."""
    skb = run.is_context(context, Skb)
    kind = _behind_tags(run, skb)
    at = skb.network_offset
    if kind not in _BASE or skb.linear < at + _BASE[kind]:
        return 0
    if kind == ETH_P_IP:
        ecn = skb.data[at + 1] & 3
        if ecn in (0, 3):
            return int(ecn == 3)
        total = int.from_bytes(skb.data[at + 10 : at + 12], "big") + (0xFFFD if ecn == 1 else 0xFFFE)
        total = (total & 0xFFFF) + (total >> 16)
        skb.data[at + 10 : at + 12] = total.to_bytes(2, "big")
        skb.data[at + 1] |= 3
        return 1
    if not skb.data[at + 1] >> 4 & 3:
        return 0
    skb.data[at + 1] |= 0x30
    return 1


@helper(Helper.skb_set_tstamp)
def skb_set_tstamp(run: Run, context: int, stamp: int, clock: int) -> int:
    """Set the time to deliver an IP packet at; 0, -EINVAL or -EOPNOTSUPP."""
    skb = run.is_context(context, Skb)
    clock &= U32
    if protocol(run) not in _BASE:
        return -EOPNOTSUPP
    if clock not in (BPF_SKB_CLOCK_REALTIME, BPF_SKB_CLOCK_MONOTONIC, BPF_SKB_CLOCK_TAI):
        return -EINVAL
    if not stamp and clock != BPF_SKB_CLOCK_REALTIME:
        return -EINVAL
    skb._refresh(run, "tstamp", stamp)
    skb._refresh(run, "tstamp_type", clock)
    return 0


@helper(Helper.check_mtu)
def check_mtu(run: Run, context: int, ifindex: int, length: int, difference: int, flags: int) -> int:
    """Whether a packet fits a device of `Emulator.mtu`; the MTU goes to *length*. 0, 1, or an errno."""
    ctx = run.context
    if not isinstance(ctx, (Skb, Xdp)):
        raise Violation("this program has no packet")
    run.is_context(context, type(ctx))
    order = run.emulator.byteorder
    asked = int.from_bytes(run.read(length, 4, "the length"), order)
    if flags & ~(BPF_MTU_CHK_SEGS if isinstance(ctx, Skb) else 0):
        return -EINVAL
    if flags and (s32(difference) or asked):
        return -EINVAL
    number = ifindex & U32 or int(ctx["ifindex" if isinstance(ctx, Skb) else "ingress_ifindex"])
    mtu = run.emulator.mtu.get(number)
    if mtu is None:
        return -ENODEV
    header = Ethernet.sizeof
    if isinstance(ctx, Xdp):
        ctx.sync()
    # The kernel counts in an int, which a length may overflow.
    size = s32((asked + header if asked else len(ctx.data)) + difference)
    run.write(length, mtu.to_bytes(4, order), "the length")
    return BPF_MTU_CHK_RET_SUCCESS if size <= mtu + header else BPF_MTU_CHK_RET_FRAG_NEEDED
