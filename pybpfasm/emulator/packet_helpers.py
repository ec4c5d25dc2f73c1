# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers that work on packets, on routes, and on sockets found by a packet's addresses."""

from __future__ import annotations

from typing import Final

from pybpfasm.emulator import checksum
from pybpfasm.emulator.context import Skb, SocketRegion, Xdp, frame_protocol, socket_at
from pybpfasm.emulator.errnos import (
    EACCES,
    EAFNOSUPPORT,
    EFAULT,
    EINVAL,
    ENODEV,
    ENOMEM,
    ENOTSUPP,
)
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.helpers import helper, s32
from pybpfasm.emulator.maps import Redirects
from pybpfasm.emulator.memory import Order
from pybpfasm.emulator.run import Run
from pybpfasm.emulator.sockets import Socket
from pybpfasm.kernel.context import FibLookup, RedirNeigh, SkBuff, SockTupleV4, SockTupleV6
from pybpfasm.kernel.enums import (
    BPF_CSUM_LEVEL_DEC,
    BPF_CSUM_LEVEL_INC,
    BPF_CSUM_LEVEL_QUERY,
    BPF_CSUM_LEVEL_RESET,
    BPF_F_BROADCAST,
    BPF_F_EXCLUDE_INGRESS,
    BPF_F_HDR_FIELD_MASK,
    BPF_F_INGRESS,
    BPF_F_INVALIDATE_HASH,
    BPF_F_IPV6,
    BPF_F_MARK_ENFORCE,
    BPF_F_MARK_MANGLED_0,
    BPF_F_PSEUDO_HDR,
    BPF_F_RECOMPUTE_CSUM,
    BPF_FIB_LOOKUP_DIRECT,
    BPF_FIB_LOOKUP_MARK,
    BPF_FIB_LOOKUP_OUTPUT,
    BPF_FIB_LOOKUP_SKIP_NEIGH,
    BPF_FIB_LOOKUP_SRC,
    BPF_FIB_LOOKUP_TBID,
    FibLookupResult,
    Helper,
    MapType,
    TcpState,
    TcxAction,
    XdpAction,
)
from pybpfasm.net import (
    AF_INET,
    AF_INET6,
    ETH_P_8021AD,
    ETH_P_8021Q,
    ETH_P_IPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    Ethernet,
    Ipv4,
    Ipv6,
    Tcp,
    Udp,
)

U32: Final = 0xFFFFFFFF
INT_MAX: Final = 0x7FFFFFFF
_MAX_CSUM_LEVEL: Final = 3  # SKB_MAX_CSUM_LEVEL, linux/skbuff.h
_MANGLED: Final = 0xFFFF
# What one packet may grow to: BPF_SKB_MAX_LEN, four pages without struct skb_shared_info on x86-64.
MAX_LENGTH: Final = 4 * 4096 - 320


# --- Reading and writing. ---


def _some(size: int, helper: str) -> None:
    """Refuse a size of 0, as ``ARG_CONST_SIZE`` does."""
    if size == 0:
        raise Violation(f"{helper} of 0 bytes: the verifier refuses that")


@helper(Helper.skb_load_bytes)
def skb_load_bytes(run: Run, context: int, offset: int, to: int, size: int) -> int:
    """Copy bytes out of the packet; -EFAULT and zeros where they are outside."""
    skb = run.is_context(context, Skb)
    offset, size = offset & U32, size & U32
    _some(size, "skb_load_bytes")
    run.room(to, size, "the buffer")
    if offset > INT_MAX or offset + size > len(skb.data):
        run.write(to, bytes(size), "the buffer")
        return -EFAULT
    run.write(to, bytes(skb.data[offset : offset + size]), "the buffer")
    return 0


@helper(Helper.skb_load_bytes_relative)
def skb_load_bytes_relative(run: Run, context: int, offset: int, to: int, size: int, start: int) -> int:
    """As ``skb_load_bytes``, from the link or the network header; linear bytes only."""
    skb = run.is_context(context, Skb)
    offset, size, start = offset & U32, size & U32, start & U32
    _some(size, "skb_load_bytes_relative")
    run.room(to, size, "the buffer")
    at = offset + (skb.network_offset if start == 1 else 0)
    if offset > 0xFFFF or start > 1 or at + size > skb.linear:
        run.write(to, bytes(size), "the buffer")
        return -EFAULT
    run.write(to, bytes(skb.data[at : at + size]), "the buffer")
    return 0


@helper(Helper.skb_store_bytes)
def skb_store_bytes(run: Run, context: int, offset: int, source: int, size: int, flags: int) -> int:
    """Copy bytes into the packet; packet pointers are void afterwards."""
    skb = run.is_context(context, Skb)
    offset, size = offset & U32, size & U32
    _some(size, "skb_store_bytes")
    data = run.read(source, size, "the source")
    result = 0
    if flags & ~(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH):
        result = -EINVAL
    elif offset > INT_MAX or not skb.make_writable(offset + size):
        result = -EFAULT
    else:
        if flags & BPF_F_RECOMPUTE_CSUM and skb.checksum == "complete":
            order = run.emulator.byteorder
            old = checksum.partial(bytes(skb.data[offset : offset + size]), 0, order)
            new = checksum.partial(data, 0, order)
            skb.csum = checksum.sub(skb.csum, checksum.shift(old, offset))
            skb.csum = checksum.add(skb.csum, checksum.shift(new, offset))
        skb.data[offset : offset + size] = data
        if flags & BPF_F_INVALIDATE_HASH:
            skb._refresh(run, "hash", 0)
    skb.moved(run, "skb_store_bytes")
    return result


@helper(Helper.skb_pull_data)
def skb_pull_data(run: Run, context: int, length: int) -> int:
    """Make bytes linear; -ENOMEM where there are not as many."""
    skb = run.is_context(context, Skb)
    length &= U32
    done = skb.make_writable(length or skb.linear)
    skb.moved(run, "skb_pull_data")
    return 0 if done else -ENOMEM


# --- Checksums. ---


def _word(skb: Skb, at: int, order: Order) -> int:
    return int.from_bytes(skb.data[at : at + 2], order)


def _put_word(skb: Skb, at: int, value: int, order: Order) -> None:
    skb.data[at : at + 2] = value.to_bytes(2, order)


@helper(Helper.l3_csum_replace)
def l3_csum_replace(run: Run, context: int, offset: int, old: int, new: int, flags: int) -> int:
    """Update the IP header's checksum; packet pointers are void afterwards."""
    skb = run.is_context(context, Skb)
    result = _l3(run, skb, offset & U32, old, new, flags)
    skb.moved(run, "l3_csum_replace")
    return result


def _l3(run: Run, skb: Skb, offset: int, old: int, new: int, flags: int) -> int:
    order = run.emulator.byteorder
    size = flags & BPF_F_HDR_FIELD_MASK
    if flags & ~BPF_F_HDR_FIELD_MASK:
        return -EINVAL
    if offset > 0xFFFF or offset & 1 or not skb.make_writable(offset + 2):
        return -EFAULT
    before = _word(skb, offset, order)
    if size == 0:
        if old:
            return -EINVAL
        after = checksum.fold(checksum.add(new & U32, ~before & U32))
    elif size == 2:
        # csum16_add and csum16_sub: 16-bit sums with the carry brought around.
        after = ~_add16(_sub16(~before & 0xFFFF, old & 0xFFFF), new & 0xFFFF) & 0xFFFF
    elif size == 4:
        after = checksum.fold(checksum.add(checksum.sub(~before & U32, old & U32), new & U32))
    else:
        return -EINVAL
    _put_word(skb, offset, after, order)
    return 0


def _add16(a: int, b: int) -> int:
    total = a + b
    return (total & 0xFFFF) + (total >> 16)


def _sub16(a: int, b: int) -> int:
    return _add16(a, ~b & 0xFFFF)


@helper(Helper.l4_csum_replace)
def l4_csum_replace(run: Run, context: int, offset: int, old: int, new: int, flags: int) -> int:
    """Update a transport checksum; packet pointers are void afterwards."""
    skb = run.is_context(context, Skb)
    result = _l4(run, skb, offset & U32, old, new, flags)
    skb.moved(run, "l4_csum_replace")
    return result


def _l4(run: Run, skb: Skb, offset: int, old: int, new: int, flags: int) -> int:
    order = run.emulator.byteorder
    pseudo = bool(flags & BPF_F_PSEUDO_HDR)
    if flags & ~(
        BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE | BPF_F_PSEUDO_HDR | BPF_F_HDR_FIELD_MASK | BPF_F_IPV6
    ):
        return -EINVAL
    if offset > 0xFFFF or offset & 1 or not skb.make_writable(offset + 2):
        return -EFAULT
    before = _word(skb, offset, order)
    if flags & BPF_F_MARK_MANGLED_0 and not flags & BPF_F_MARK_ENFORCE and not before:
        return 0
    size = flags & BPF_F_HDR_FIELD_MASK
    after = before
    if size == 0:
        if old:
            return -EINVAL
        difference = new & U32
        if skb.checksum != "partial":
            after = checksum.fold(checksum.add(difference, ~before & U32))
            if skb.checksum == "complete" and pseudo and not flags & BPF_F_IPV6:
                skb.csum = ~checksum.sub(difference, skb.csum) & U32
        elif pseudo:
            after = ~checksum.fold(checksum.add(difference, before)) & 0xFFFF
    elif size in (2, 4):
        mask = (1 << size * 8) - 1
        old, new = old & mask, new & mask
        if skb.checksum != "partial":
            after = checksum.fold(checksum.add(checksum.sub(~before & U32, old), new))
            if skb.checksum == "complete" and pseudo:
                skb.csum = ~checksum.add(checksum.sub(~skb.csum & U32, old), new) & U32
        elif pseudo:
            after = ~checksum.fold(checksum.add(checksum.sub(before, old), new)) & 0xFFFF
    else:
        return -EINVAL
    if flags & BPF_F_MARK_MANGLED_0 and not after:
        after = _MANGLED
    _put_word(skb, offset, after, order)
    return 0


@helper(Helper.csum_diff)
def csum_diff(run: Run, old: int, old_size: int, new: int, new_size: int, seed: int) -> int:
    """The difference of two buffers' sums, folded to 16 bits."""
    old_size, new_size, seed = old_size & U32, new_size & U32, seed & U32
    order = run.emulator.byteorder
    before = run.read(old, old_size, "the old buffer")
    after = run.read(new, new_size, "the new buffer")
    total = seed
    if before and after:
        total = checksum.sub(checksum.partial(after, total, order), checksum.partial(before, 0, order))
    elif after:
        total = checksum.partial(after, total, order)
    elif before:
        total = ~checksum.partial(before, ~total & U32, order) & U32
    return checksum.fold32(total)


@helper(Helper.csum_update)
def csum_update(run: Run, context: int, total: int) -> int:
    """Add to the packet's own sum where it has one."""
    skb = run.is_context(context, Skb)
    if skb.checksum != "complete":
        return -ENOTSUPP
    skb.csum = checksum.add(skb.csum, total & U32)
    return skb.csum


@helper(Helper.csum_level)
def csum_level(run: Run, context: int, level: int) -> int:
    """Ask how many checksums are verified, or say that it is one more, one less, or none."""
    skb = run.is_context(context, Skb)
    if level == BPF_CSUM_LEVEL_QUERY:
        return skb.csum_level if skb.checksum == "unnecessary" else -EACCES
    if level == BPF_CSUM_LEVEL_INC:
        if skb.checksum == "unnecessary":
            skb.csum_level = min(skb.csum_level + 1, _MAX_CSUM_LEVEL)
        elif skb.checksum == "none":
            skb.checksum, skb.csum_level = "unnecessary", 0
    elif level in (BPF_CSUM_LEVEL_DEC, BPF_CSUM_LEVEL_RESET):
        if skb.checksum == "unnecessary":
            if level == BPF_CSUM_LEVEL_RESET or not skb.csum_level:
                skb.checksum, skb.csum_level = "none", 0
            else:
                skb.csum_level -= 1
    else:
        return -EINVAL
    return 0


# --- Size and shape. ---


# Where the checksum is in a transport header.
_CHECKS: Final = {IPPROTO_TCP: Tcp.offsetof("check"), IPPROTO_UDP: Udp.offsetof("check")}


def _least(run: Run, skb: Skb) -> int:
    """What a packet keeps: its link header, and the checksum that a device is to fill in."""
    at = skb.network_offset
    if skb.checksum != "partial" or len(skb.data) < at + Ipv4.sizeof:
        return at
    v6 = protocol(run) == ETH_P_IPV6
    header = Ipv6.sizeof if v6 else (skb.data[at] & 15) * 4
    check = _CHECKS.get(skb.data[at + (6 if v6 else 9)])
    return at if check is None else at + header + check + 2


@helper(Helper.skb_change_tail)
def skb_change_tail(run: Run, context: int, length: int, flags: int) -> int:
    """Cut or lengthen the packet at its end."""
    skb = run.is_context(context, Skb)
    length &= U32
    if flags or length > MAX_LENGTH or length < _least(run, skb):
        result = -EINVAL
    elif skb.encapsulated:
        result = -ENOTSUPP
    else:
        result = 0
        grown = length - len(skb.data)
        if grown > 0:
            skb.data.extend(bytes(grown))
        else:
            del skb.data[length:]
        skb.linear = len(skb.data)
        if grown and skb.checksum == "complete":
            skb.checksum = "none"
    skb.moved(run, "skb_change_tail")
    return result


@helper(Helper.skb_change_head)
def skb_change_head(run: Run, context: int, room: int, flags: int) -> int:
    """Put *room* zero bytes before the packet."""
    skb = run.is_context(context, Skb)
    room &= U32
    if flags or len(skb.data) + room > MAX_LENGTH or room > INT_MAX:
        result = -EINVAL
    else:
        result = 0
        skb.data[:0] = bytes(room)
        skb.linear += room
        skb.network_offset += room
    skb.moved(run, "skb_change_head")
    return result


_VLAN: Final = (ETH_P_8021Q, ETH_P_8021AD)
_VLAN_ETH_HLEN: Final = Ethernet.sizeof + 4  # linux/if_vlan.h


def protocol(run: Run) -> int:
    """The packet's EtherType, as a number of the host's."""
    at = SkBuff.offsetof("protocol")
    assert run.context_region is not None
    raw = bytes(run.context_region.data[at : at + 4])
    return int.from_bytes(raw[:2] if run.emulator.byteorder == "little" else raw[2:], "big")


def set_protocol(run: Run, skb: Skb, kind: int) -> None:
    """Give the packet another EtherType, which need not be the one in its link header."""
    skb._refresh(run, "protocol", int.from_bytes(kind.to_bytes(2, "big"), run.emulator.byteorder))


def _tag(run: Run, skb: Skb, kind: int, tci: int) -> None:
    """Keep a VLAN tag outside the packet, none where *kind* is 0."""
    skb._refresh(run, "vlan_present", int(kind != 0))
    skb._refresh(run, "vlan_tci", tci)
    skb._refresh(run, "vlan_proto", int.from_bytes(kind.to_bytes(2, "big"), run.emulator.byteorder))


def _untag(run: Run, skb: Skb) -> int | None:
    """Take a tag out of the packet; its TCI, ``None`` where the packet ends before the tag does."""
    if not skb.make_writable(_VLAN_ETH_HLEN):
        return None
    tci = int.from_bytes(skb.data[14:16], "big")
    del skb.data[12:16]
    skb.linear -= 4
    skb.network_offset = max(skb.network_offset - 4, Ethernet.sizeof)
    set_protocol(run, skb, frame_protocol(skb.data))
    return tci


@helper(Helper.skb_vlan_push)
def skb_vlan_push(run: Run, context: int, kind: int, tci: int) -> int:
    """Add a VLAN tag, kept outside the packet; one that was there goes into it."""
    skb = run.is_context(context, Skb)
    order = run.emulator.byteorder
    number = int.from_bytes((kind & 0xFFFF).to_bytes(2, order), "big")
    if skb["vlan_present"]:
        inner = int(skb["vlan_proto"]).to_bytes(2, order)
        skb.data[12:12] = inner + int(skb["vlan_tci"]).to_bytes(2, "big")
        skb.linear += 4
        set_protocol(run, skb, int.from_bytes(inner, "big"))
    _tag(run, skb, number if number in _VLAN else ETH_P_8021Q, tci & 0xFFFF)
    skb.moved(run, "skb_vlan_push")
    return 0


@helper(Helper.skb_vlan_pop)
def skb_vlan_pop(run: Run, context: int) -> int:
    """Take the outermost VLAN tag off; the next one then is outside the packet. 0 or -ENOMEM."""
    skb = run.is_context(context, Skb)
    result = _pop_tag(run, skb)
    skb.moved(run, "skb_vlan_pop")
    return result


def _pop_tag(run: Run, skb: Skb) -> int:
    if skb["vlan_present"]:
        _tag(run, skb, 0, 0)
    elif protocol(run) not in _VLAN:
        return 0
    elif _untag(run, skb) is None:
        return -ENOMEM
    kind = protocol(run)
    if kind in _VLAN:
        tci = _untag(run, skb)
        if tci is None:
            return -ENOMEM
        _tag(run, skb, kind, tci)
    return 0


@helper(Helper.skb_change_type)
def skb_change_type(run: Run, context: int, kind: int) -> int:
    """Set ``pkt_type`` where both types are for a host or not."""
    skb = run.is_context(context, Skb)
    kind &= U32
    if int(skb["pkt_type"]) > 3 or kind > 3:
        return -EINVAL
    skb._refresh(run, "pkt_type", kind)
    return 0


@helper(Helper.set_hash_invalid)
def set_hash_invalid(run: Run, context: int) -> int:
    """Forget the packet's hash."""
    run.is_context(context, Skb)._refresh(run, "hash", 0)
    return 0


@helper(Helper.get_hash_recalc)
def get_hash_recalc(run: Run, context: int) -> int:
    """The packet's hash, as the test gave it."""
    return int(run.is_context(context, Skb)["hash"])


@helper(Helper.set_hash)
def set_hash(run: Run, context: int, value: int) -> int:
    """Set the packet's hash."""
    run.is_context(context, Skb)._refresh(run, "hash", value & U32)
    return 0


# --- Where to. ---


def _is_device(run: Run, number: int) -> bool:
    """Whether the host has a device of this number: the packet's own, one of `Emulator.mtu` or of a route."""
    ctx = run.context
    own: set[int] = set()
    if isinstance(ctx, (Skb, Xdp)):
        names = (
            ("ifindex", "ingress_ifindex") if isinstance(ctx, Skb) else ("ingress_ifindex", "egress_ifindex")
        )
        own = {int(ctx[name]) for name in names} - {0} or {0}  # a test may not have given it a number
    return number in own or number in run.emulator.mtu or number in run.emulator.routes.devices


@helper(Helper.redirect)
def redirect(run: Run, ifindex: int, flags: int) -> int:
    """The verdict that sends the packet to an interface."""
    ifindex &= U32
    if isinstance(run.context, Xdp):
        if flags:
            return XdpAction.ABORTED
        run.context.redirect = ("interface", ifindex, 0)
        return XdpAction.REDIRECT
    if not isinstance(run.context, Skb):
        raise Violation("this program has no packet to redirect")
    if flags & ~BPF_F_INGRESS:
        return TcxAction.DROP
    run.context.redirect = ("interface", ifindex, flags)
    return TcxAction.REDIRECT


@helper(Helper.redirect_peer)
def redirect_peer(run: Run, ifindex: int, flags: int) -> int:
    """As ``redirect``, to the peer of a device."""
    if not isinstance(run.context, Skb):
        raise Violation("this program has no packet to redirect")
    if flags:
        return TcxAction.DROP
    run.context.redirect = ("peer", ifindex & U32, 0)
    return TcxAction.REDIRECT


@helper(Helper.redirect_neigh)
def redirect_neigh(run: Run, ifindex: int, parameters: int, size: int, flags: int) -> int:
    """As ``redirect``, with the link header from the neighbour table."""
    if not isinstance(run.context, Skb):
        raise Violation("this program has no packet to redirect")
    run.read(parameters, size & U32, "the next hop")
    if flags or 0 < size & U32 < RedirNeigh.sizeof:
        return TcxAction.DROP
    run.context.redirect = ("neighbour", ifindex & U32, 0)
    return TcxAction.REDIRECT


@helper(Helper.clone_redirect)
def clone_redirect(run: Run, context: int, ifindex: int, flags: int) -> int:
    """Send a copy of the packet to an interface; it lands in `Emulator.sent`."""
    skb = run.is_context(context, Skb)
    if flags & ~BPF_F_INGRESS or not _is_device(run, ifindex & U32):
        result = -EINVAL
    else:
        way = "in" if flags & BPF_F_INGRESS else "out"
        run.emulator.sent.append((way, ifindex & U32, bytes(skb.data)))
        result = 0
    skb.moved(run, "clone_redirect")
    return result


# What the low bits of redirect_map's flags may hold.
_VERDICTS: Final = XdpAction.ABORTED | XdpAction.DROP | XdpAction.PASS | XdpAction.TX


@helper(Helper.redirect_map)
def redirect_map(run: Run, map: int, key: int, flags: int) -> int:
    """The XDP verdict that sends the frame where the map says; the low flags where it says nothing."""
    one = run.map(map, Redirects)
    if not isinstance(run.context, Xdp):
        raise Violation("redirect_map is for XDP programs")
    known = _VERDICTS
    if one.type in (MapType.DEVMAP, MapType.DEVMAP_HASH):
        known |= BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS
    if flags & ~known:
        return XdpAction.ABORTED
    target = one.object((key & U32).to_bytes(4, one.order))
    if target is None and not flags & BPF_F_BROADCAST:
        run.context.redirect = None
        return flags & _VERDICTS
    run.context.redirect = (one.name, 0 if target is None else target, flags)
    return XdpAction.REDIRECT


# --- XDP. ---

# struct xdp_frame, which the kernel keeps at the start of the headroom.
_FRAME: Final = 40


@helper(Helper.xdp_adjust_head)
def xdp_adjust_head(run: Run, context: int, delta: int) -> int:
    """Move the frame's start; what comes into it is what was there."""
    xdp = run.is_context(context, Xdp)
    by = s32(delta)
    xdp.sync()
    if -by > xdp.headroom - _FRAME - len(xdp.meta) or len(xdp.data) - by < 14:
        result = -EINVAL
    else:
        result = 0
        whole = xdp.room + xdp.meta + xdp.data
        xdp.headroom += by
        xdp.data[:] = whole[xdp.headroom :]
        xdp.room[:] = whole[: xdp.headroom - len(xdp.meta)]  # the metadata stays before the frame
    xdp.moved(run, "xdp_adjust_head")
    return result


@helper(Helper.xdp_adjust_tail)
def xdp_adjust_tail(run: Run, context: int, delta: int) -> int:
    """Move the frame's end; new bytes are zeros."""
    xdp = run.is_context(context, Xdp)
    by = s32(delta)
    xdp.sync()
    if by > xdp.tailroom or len(xdp.data) + by < 14:
        result = -EINVAL
    else:
        result = 0
        if by > 0:
            xdp.data.extend(bytes(by))
        elif by < 0:
            del xdp.data[by:]
        xdp.tailroom -= by
    xdp.moved(run, "xdp_adjust_tail")
    return result


@helper(Helper.xdp_adjust_meta)
def xdp_adjust_meta(run: Run, context: int, delta: int) -> int:
    """Move the start of the metadata, which is at most 252 bytes in words."""
    xdp = run.is_context(context, Xdp)
    by = s32(delta)
    xdp.sync()
    length = len(xdp.meta) - by
    if not 0 <= length <= xdp.headroom - _FRAME:
        result = -EINVAL
    elif length % 4 or length > 252:
        result = -EACCES
    else:
        result = 0
        whole = xdp.room + xdp.meta
        at = len(whole) - length
        xdp.room[:], xdp.meta[:] = whole[:at], whole[at:]
    xdp.moved(run, "xdp_adjust_meta")
    return result


@helper(Helper.xdp_get_buff_len)
def xdp_get_buff_len(run: Run, context: int) -> int:
    """The frame's length."""
    return len(run.is_context(context, Xdp).data)


@helper(Helper.xdp_load_bytes)
def xdp_load_bytes(run: Run, context: int, offset: int, to: int, size: int) -> int:
    """Copy bytes out of the frame."""
    xdp = run.is_context(context, Xdp)
    xdp.sync()
    offset, size = offset & U32, size & U32
    _some(size, "xdp_load_bytes")
    if offset > 0xFFFF or size > 0xFFFF:
        return -EFAULT
    if offset + size > len(xdp.data):
        return -EINVAL
    run.write(to, bytes(xdp.data[offset : offset + size]), "the buffer")
    return 0


@helper(Helper.xdp_store_bytes)
def xdp_store_bytes(run: Run, context: int, offset: int, source: int, size: int) -> int:
    """Copy bytes into the frame, which stays where it is."""
    xdp = run.is_context(context, Xdp)
    offset, size = offset & U32, size & U32
    _some(size, "xdp_store_bytes")
    data = run.read(source, size, "the source")
    if offset > 0xFFFF or size > 0xFFFF:
        return -EFAULT
    if offset + size > len(xdp.data):
        return -EINVAL
    xdp.write(offset, data)
    return 0


# --- Routes. ---

_FIB_FLAGS: Final = (
    BPF_FIB_LOOKUP_DIRECT
    | BPF_FIB_LOOKUP_OUTPUT
    | BPF_FIB_LOOKUP_SKIP_NEIGH
    | BPF_FIB_LOOKUP_TBID
    | BPF_FIB_LOOKUP_SRC
    | BPF_FIB_LOOKUP_MARK
)


@helper(Helper.fib_lookup)
def fib_lookup(run: Run, context: int, parameters: int, size: int, flags: int) -> int:
    """Ask the emulator's routes; 0 and a filled structure, or a ``BPF_FIB_LKUP_RET_*``, or an errno."""
    if run.context_region is None or context != run.context_region.start:
        raise Violation(f"the first argument is {run.describe(context)}, not the context")
    if size & U32 < FibLookup.sizeof or flags & U32 & ~_FIB_FLAGS:
        return -EINVAL
    raw = bytearray(run.read(parameters, FibLookup.sizeof, "the parameters"))
    result = _fib(run, raw, flags)
    run.write(parameters, bytes(raw), "the parameters")
    return result


def _fib(run: Run, raw: bytearray, flags: int) -> int:
    """Look up what *raw* asks, and put the answer there."""
    order = run.emulator.byteorder
    asked = FibLookup.unpack(bytes(raw), byteorder=order)
    if asked.family not in (AF_INET, AF_INET6):
        return -EAFNOSUPPORT
    v6 = asked.family == AF_INET6
    destination = bytes(raw[32:48]) if v6 else bytes(raw[32:36])
    routes = run.emulator.routes
    if v6 and (_strict(destination) or _strict(bytes(raw[16:32]))):
        return FibLookupResult.NOT_FWDED
    if not _is_device(run, asked.ifindex):
        return -ENODEV
    if not routes.forwarding:
        return FibLookupResult.FWD_DISABLED

    def put(name: str, value: object) -> None:
        field = FibLookup.fields[name]
        raw[field.offset : field.offset + field.size] = field.to_bytes(value, order)

    if flags & BPF_FIB_LOOKUP_DIRECT and flags & BPF_FIB_LOOKUP_TBID:
        put("tbid", 0)
    route = routes.find(destination, oif=asked.ifindex if flags & BPF_FIB_LOOKUP_OUTPUT else 0)
    refused = routes.refusal(route)
    if refused is not None:
        return refused
    assert route is not None
    skb = run.context if isinstance(run.context, Skb) and not asked.tot_len else None
    if asked.tot_len > route.mtu:
        put("mtu_result", route.mtu)
        return FibLookupResult.FRAG_NEEDED
    put("rt_metric", route.metric)
    put("ifindex", route.ifindex)
    if route.gateway is not None:
        raw[32 : 32 + len(route.gateway)] = route.gateway
        put("family", AF_INET if len(route.gateway) == 4 else AF_INET6)
    if flags & BPF_FIB_LOOKUP_SRC:
        if route.prefsrc is None and v6:
            return FibLookupResult.NO_SRC_ADDR
        prefsrc = route.prefsrc or bytes(4)
        raw[16 : 16 + len(prefsrc)] = prefsrc
    if not flags & BPF_FIB_LOOKUP_SKIP_NEIGH:
        if route.neighbour is None:
            return FibLookupResult.NO_NEIGH
        put("dmac", route.neighbour)
        put("smac", route.source)
    put("h_vlan_proto", 0)
    put("h_vlan_TCI", 0)
    put("mtu_result", route.mtu & 0xFFFF)
    # Without a length, the packet itself is what has to fit, with its link header and a tag.
    if skb is not None and len(skb.data) > route.mtu + _VLAN_ETH_HLEN:
        return FibLookupResult.FRAG_NEEDED
    return FibLookupResult.SUCCESS


def _strict(address: bytes) -> bool:
    """Whether an IPv6 address is never forwarded: multicast, link-local, loopback (``rt6_need_strict``)."""
    link_local = address[0] == 0xFE and address[1] & 0xC0 == 0x80
    return address[0] == 0xFF or link_local or address == bytes(15) + b"\x01"


# --- Sockets by address. ---


def _look_up(run: Run, pair: int, size: int, netns: int, flags: int, protocol: int) -> Socket | None:
    size &= U32
    data = run.read(pair, size, "the tuple")
    order = run.emulator.byteorder
    if isinstance(run.context, Xdp):
        netns &= U32
    number = s32(netns)
    if flags or size not in (SockTupleV4.sizeof, SockTupleV6.sizeof) or 0 <= number != netns:
        return None
    where = run.emulator.netns if number < 0 else number
    shape = SockTupleV4 if size == SockTupleV4.sizeof else SockTupleV6
    found = shape.unpack(data, byteorder=order)
    length = 4 if shape is SockTupleV4 else 16
    return run.emulator.sockets.look_up(
        protocol, data[:length], found.sport, data[length : 2 * length], found.dport, where
    )


def _held(run: Run, socket: Socket | None, common: bool, name: str) -> int:
    if socket is None:
        return 0
    # Each look-up gives a reference of its own, which can be given back while others are held.
    pointer = run.pointer(SocketRegion(socket, run.emulator.byteorder, common))
    run.hold(pointer, f"the socket that {name} returned")
    return pointer


@helper(Helper.skc_lookup_tcp)
def skc_lookup_tcp(run: Run, context: int, pair: int, size: int, netns: int, flags: int) -> int:
    """The TCP socket that a packet would reach, in any state, or 0."""
    _needs_context(run, context)
    return _held(run, _look_up(run, pair, size, netns, flags, IPPROTO_TCP), True, "skc_lookup_tcp")


@helper(Helper.sk_lookup_tcp)
def sk_lookup_tcp(run: Run, context: int, pair: int, size: int, netns: int, flags: int) -> int:
    """The full TCP socket that a packet would reach, for a handshake the listening one, or 0."""
    _needs_context(run, context)
    socket = _look_up(run, pair, size, netns, flags, IPPROTO_TCP)
    if socket is not None and not socket.full:
        if socket.state != TcpState.NEW_SYN_RECV:
            return 0
        socket = run.emulator.sockets.listener(IPPROTO_TCP, socket.src, socket.src_port, socket.netns)
    return _held(run, socket, False, "sk_lookup_tcp")


@helper(Helper.sk_lookup_udp)
def sk_lookup_udp(run: Run, context: int, pair: int, size: int, netns: int, flags: int) -> int:
    """The UDP socket that a packet would reach, or 0."""
    _needs_context(run, context)
    return _held(run, _look_up(run, pair, size, netns, flags, IPPROTO_UDP), False, "sk_lookup_udp")


@helper(Helper.sk_release)
def sk_release(run: Run, sk: int) -> int:
    """Give back a socket that a look-up returned."""
    socket_at(run, sk)
    run.give_back(sk, "socket")
    region = run.regions[sk >> 32]
    run.void(region, "this socket was given back with sk_release")
    for key in [key for key, one in run.sockets.items() if one is region]:
        del run.sockets[key]
    region.start = 0
    return 0


def _needs_context(run: Run, context: int) -> None:
    if run.context_region is None or context != run.context_region.start:
        raise Violation(f"the first argument is {run.describe(context)}, not the context")
