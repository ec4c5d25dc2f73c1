# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Contexts: what a program gets in r1, with the fields that its type may read and write.

The rules are those of the kernel's ``is_valid_access`` functions (net/core/filter.c, kernel/bpf/cgroup.c).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, get_args

from pybpfasm.emulator.faults import EmulatorError, Violation, choose
from pybpfasm.emulator.memory import Fields, Memory, Order, Rights
from pybpfasm.emulator.sockets import Socket
from pybpfasm.errors import suggestion
from pybpfasm.kernel.context import (
    BpfSock,
    BpfTcpSock,
    SkBuff,
    SkLookup,
    SkMsgMd,
    SockAddr,
    SockOps,
    SockOpt,
    XdpMd,
)
from pybpfasm.kernel.enums import AttachType, ProgType
from pybpfasm.layout import Array, Scalar, Struct
from pybpfasm.net import AF_INET, AF_INET6

if TYPE_CHECKING:
    from pybpfasm.emulator.run import Run
    from pybpfasm.program import ProgramSpec

__all__ = [
    "Context",
    "SkLookupContext",
    "SkMsg",
    "Skb",
    "SockAddrContext",
    "SockOpsContext",
    "SockOptContext",
    "Xdp",
]

Checksum = Literal["none", "unnecessary", "partial", "complete"]


# linux/if_ether.h: the least EtherType that is not a length, and the protocols of frames with a length.
_ETH_P_802_3_MIN: Final = 0x0600
_ETH_P_802_3: Final = 1
_ETH_P_802_2: Final = 4


def frame_protocol(data: bytes | bytearray) -> int:
    """The protocol of an Ethernet frame, as ``eth_type_trans`` has it: its EtherType, or the kind of frame
    that has a length there."""
    kind = int.from_bytes(data[12:14].ljust(2, b"\0"), "big")
    if kind >= _ETH_P_802_3_MIN:
        return kind
    return _ETH_P_802_3 if data[14:16] == b"\xff\xff" else _ETH_P_802_2


def _rights(struct: type[Struct]) -> Rights:
    return Rights(
        struct.kernel_name, [(field.offset, field.size, name) for name, field in struct.fields.items()]
    )


def _allow(
    rights: Rights,
    struct: type[Struct],
    names: Iterable[str],
    *,
    narrow: bool = False,
    write: bool = False,
) -> None:
    """Allow fields of *struct* by name, arrays element by element."""
    for name in names:
        field = struct.fields[name]
        step = field.element.size if isinstance(field, Array) else field.size
        for at in range(field.offset, field.offset + field.size, step):
            rights.allow(at, step, narrow=narrow, write=write)


_SKB_ADDRESSES: Final = frozenset(
    {"family", "remote_ip4", "local_ip4", "remote_ip6", "local_ip6", "remote_port", "local_port"}
)
# What can't be read in parts, pointers above all.
_SKB_WHOLE: Final = frozenset(
    {"data", "data_end", "data_meta", "flow_keys", "sk", "remote_ip4", "local_ip4", "tstamp_type"}
)
_SKB_WRITABLE: Final = {
    ProgType.SCHED_CLS: ("mark", "tc_index", "priority", "tc_classid", "cb", "tstamp", "queue_mapping"),
    ProgType.SCHED_ACT: ("mark", "tc_index", "priority", "tc_classid", "cb", "tstamp", "queue_mapping"),
    ProgType.SOCKET_FILTER: ("cb",),
    ProgType.CGROUP_SKB: ("mark", "priority", "cb", "tstamp"),
    ProgType.SK_SKB: ("tc_index", "priority"),
}
_SKB_REFUSED: Final = {
    ProgType.SCHED_CLS: _SKB_ADDRESSES,
    ProgType.SCHED_ACT: _SKB_ADDRESSES,
    ProgType.SOCKET_FILTER: _SKB_ADDRESSES
    | {"tstamp_type", "tc_classid", "data", "data_meta", "data_end", "tstamp", "wire_len", "hwtstamp"},
    ProgType.CGROUP_SKB: frozenset({"tstamp_type", "tc_classid", "data_meta", "wire_len"}),
    ProgType.SK_SKB: frozenset(
        {"tstamp_type", "mark", "tc_classid", "data_meta", "tstamp", "wire_len", "hwtstamp"}
    ),
}


@lru_cache(maxsize=16)
def _skb_rights(type: ProgType) -> Rights:
    rights = _rights(SkBuff)
    refused = _SKB_REFUSED[type]
    writable = _SKB_WRITABLE[type]
    for name, field in SkBuff.fields.items():
        if name in refused or name == "flow_keys":
            continue
        write = name in writable
        exact = name in _SKB_WHOLE or (field.size != 4 and name != "cb")
        _allow(rights, SkBuff, [name], narrow=not exact or name in ("cb",), write=write)
    cb = SkBuff.offsetof("cb")
    for at in (cb, cb + 8):  # cb takes 8 bytes at once as well
        rights.read.add((at, 8))
        rights.write.add((at, 8))
    for at in range(cb, cb + 20):  # and parts of a word
        rights.write.add((at, 1))
        if at % 2 == 0:
            rights.write.add((at, 2))
    return rights


def _plain_rights(
    struct: type[Struct],
    exact: Iterable[str],
    narrow: Iterable[str] = (),
    writable: Iterable[str] = (),
) -> Rights:
    rights = _rights(struct)
    _allow(rights, struct, exact)
    _allow(rights, struct, narrow, narrow=True)
    for name in writable:
        _allow(rights, struct, [name], write=True)
    return rights


class Context:
    """Base of all contexts: fields by name, ``ctx["mark"]``, in the host's byte order.

    ``Be`` fields are given and read in host form, as everywhere in `pybpfasm.layout`.
    """

    layout: ClassVar[type[Struct]]
    types: ClassVar[frozenset[ProgType]]

    def __init__(self, **fields: Any) -> None:
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self[name] = value

    def __getitem__(self, name: str) -> Any:
        if name in self._fields:
            return self._fields[name]
        field = self._field(name)
        return 0 if isinstance(field, Scalar) else field.from_bytes(bytes(field.size), "little")

    def __setitem__(self, name: str, value: Any) -> None:
        self._field(name)
        self._fields[name] = value

    def _field(self, name: str) -> Any:
        field = self.layout.fields.get(name)
        if field is None:
            known = self.layout.fields
            raise EmulatorError(f"{self.layout.kernel_name} has no field {name!r}{suggestion(name, known)}")
        return field

    def __repr__(self) -> str:
        """What is not zero, with the packet's length: a failing test shows several of them."""
        shown = [f"{len(self.packet)} bytes"] if self.packet else []
        for name, value in self._fields.items():
            if any(value) if isinstance(value, (bytes, tuple, list)) else value:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def packet(self) -> bytes:
        """The packet's bytes, where the context has one."""
        return b""

    def rights(self, spec: ProgramSpec) -> Rights:
        """What a program like *spec* may do with the fields."""
        raise NotImplementedError

    def check(self, spec: ProgramSpec) -> None:
        """Refuse a program of another type; raises `EmulatorError`."""
        if spec.type not in self.types:
            wanted = ", ".join(sorted(one.name for one in self.types))
            raise EmulatorError(
                f"{spec.name} is a {spec.type.name} program, {type(self).__name__} is a context of {wanted}"
            )

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        """The fields that are pointers, by offset: what they are when they are read."""
        return {}

    def current(self) -> dict[str, Any]:
        """All fields' values where the program begins."""
        return self._fields

    def enter(self, run: Run) -> int:
        """Begin a run: make the context's memory, and return its address."""
        order = run.emulator.byteorder
        data = bytearray(self.layout.pack(byteorder=order, **self.current()))
        region = Fields(
            self.layout.kernel_name, data, order, self.rights(run.program.spec), self.pointers(run)
        )
        run.context_region = region
        return run.pointer(region)

    def leave(self, run: Run) -> None:
        """End a run: take over the fields that the program may have written."""
        region = run.context_region
        if not isinstance(region, Fields):
            return
        fields = self.layout.fields
        for name in region.rights.writable():
            field = fields[name]
            raw = bytes(region.data[field.offset : field.offset + field.size])
            self._fields[name] = field.from_bytes(raw, run.emulator.byteorder)

    def _refresh(self, run: Run, name: str, value: int) -> None:
        """Change a field while the program runs."""
        self._fields[name] = value
        field = self.layout.fields[name]
        if run.context_region is not None:
            run.context_region.data[field.offset : field.offset + field.size] = value.to_bytes(
                field.size, run.emulator.byteorder
            )


class Skb(Context):
    """``struct __sk_buff``: a packet, its bytes from the link header on (network header for CGROUP_SKB).

    ``linear`` is how many bytes programs can reach directly, all of them by default. ``checksum`` is the
    kernel's ``ip_summed``: whether the transport checksum is only that of the pseudo header ("partial").
    ``csum_level`` is how many checksums behind the first are verified where it is "unnecessary".
    ``socket`` is what the ``sk`` field points to.
    """

    layout = SkBuff
    types = frozenset(_SKB_WRITABLE)

    def __init__(
        self,
        packet: bytes,
        *,
        linear: int | None = None,
        checksum: Checksum = "none",
        csum: int = 0,
        socket: Socket | None = None,
        link_header: bool = True,
        **fields: Any,
    ) -> None:
        super().__init__(**fields)
        choose("checksum", checksum, get_args(Checksum))
        self.data = bytearray(packet)
        self.linear = len(packet) if linear is None else linear
        if not 0 <= self.linear <= len(packet):
            raise EmulatorError(f"linear={linear} is not within the packet's {len(packet)} bytes")
        self.checksum: Checksum = checksum
        self.csum = csum
        self.csum_level = 0
        self.socket = socket
        self.network_offset = 14 if link_header else 0
        self.encapsulated = False
        self.headroom = 256
        self.assigned: Socket | None = None
        self.redirect: tuple[str, int, int] | None = None
        if "protocol" not in fields:
            self["protocol"] = self._guess_protocol(link_header)

    def _guess_protocol(self, link_header: bool) -> bytes:
        """The EtherType in the low 16 bits, in network order; resolved by `current` for the host."""
        if link_header:
            return frame_protocol(self.data).to_bytes(2, "big")
        version = self.data[0] >> 4 if self.data else 0
        return b"\x08\x00" if version == 4 else b"\x86\xdd" if version == 6 else b"\0\0"

    @property
    def packet(self) -> bytes:
        return bytes(self.data)

    def rights(self, spec: ProgramSpec) -> Rights:
        return _skb_rights(spec.type)

    def current(self) -> dict[str, Any]:
        values = dict(self._fields)
        values["len"] = len(self.data)
        protocol = values.get("protocol")
        if isinstance(protocol, bytes):
            values["protocol"] = int.from_bytes(protocol, self._order)
        return values

    _order: Order = "little"

    def enter(self, run: Run) -> int:
        self._order = run.emulator.byteorder
        address = super().enter(run)
        assert isinstance(run.context_region, Fields)
        # These two have 16 bits in struct sk_buff; 0xffff is NO_QUEUE_MAPPING.
        run.context_region.filters = {
            SkBuff.offsetof("tc_index"): lambda value: value & 0xFFFF,
            SkBuff.offsetof("queue_mapping"): lambda value: value if value < 0xFFFF else None,
        }
        self._make_region(run)
        return address

    def _make_region(self, run: Run) -> None:
        region = Memory("the packet", self.data, run.emulator.byteorder, size=self.linear, atomic=False)
        region.writable = run.program.spec.type not in (ProgType.CGROUP_SKB, ProgType.SOCKET_FILTER)
        run.packet_region = region

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        def data() -> int:
            assert run.packet_region is not None
            return run.pointer(run.packet_region)

        def data_end() -> int:
            return data() + self.linear

        def sk() -> int:
            return 0 if self.socket is None else socket_pointer(run, self.socket, common=True)

        at = SkBuff.offsetof
        return {at("data"): data, at("data_end"): data_end, at("data_meta"): data, at("sk"): sk}

    def moved(self, run: Run, helper: str) -> None:
        """*helper* may have moved the packet: every pointer to it is void."""
        _void(
            run, f"this packet pointer is from before the call of {helper}, which may have moved the packet"
        )
        self._make_region(run)
        self._refresh(run, "len", len(self.data))

    def make_writable(self, length: int) -> bool:
        """``skb_ensure_writable``: make the first *length* bytes linear; false where there are fewer."""
        if length > len(self.data):
            return False
        self.linear = max(self.linear, length)
        return True


_XDP_RIGHTS: Final = _plain_rights(XdpMd, [name for name in XdpMd.fields if name != "egress_ifindex"])
_DEVMAP_RIGHTS: Final = _plain_rights(XdpMd, XdpMd.fields)


class Xdp(Context):
    """``struct xdp_md``: a frame, with ``headroom`` bytes of room before it and ``tailroom`` behind it.

    ``meta`` is the metadata that lies directly before the frame.
    """

    layout = XdpMd
    types = frozenset({ProgType.XDP})

    def __init__(
        self, packet: bytes, *, headroom: int = 256, tailroom: int = 3520, meta: bytes = b"", **fields: Any
    ) -> None:
        super().__init__(**fields)
        if len(meta) > headroom:
            raise EmulatorError(f"{len(meta)} bytes of metadata do not fit into headroom={headroom}")
        self.meta = bytearray(meta)
        self.data = bytearray(packet)
        self.headroom = headroom
        self.tailroom = tailroom
        self.room = bytearray(headroom - len(meta))  # before the metadata
        self.redirect: tuple[str, int, int] | None = None
        self._region: Memory | None = None

    @property
    def packet(self) -> bytes:
        return bytes(self.data)

    def rights(self, spec: ProgramSpec) -> Rights:
        return _DEVMAP_RIGHTS if spec.attach_type is AttachType.XDP_DEVMAP else _XDP_RIGHTS

    def enter(self, run: Run) -> int:
        address = super().enter(run)
        self._make_region(run)
        return address

    def leave(self, run: Run) -> None:
        self.sync()

    def sync(self) -> None:
        """Take over what the program has written to the frame and its metadata."""
        region = self._region
        if region is not None:
            length = len(self.meta)
            self.meta[:] = region.data[:length]
            self.data[:] = region.data[length:]

    def write(self, at: int, data: bytes) -> None:
        """Store *data* in the frame while the program runs; pointers to it stay what they are."""
        assert self._region is not None
        self._region.write(len(self.meta) + at, data)

    def _make_region(self, run: Run) -> None:
        self._region = Memory("the packet", self.meta + self.data, run.emulator.byteorder, atomic=False)
        run.packet_region = self._region

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        def meta() -> int:
            assert run.packet_region is not None
            return run.pointer(run.packet_region)

        at = XdpMd.offsetof
        return {
            at("data_meta"): meta,
            at("data"): lambda: meta() + len(self.meta),
            at("data_end"): lambda: meta() + len(self.meta) + len(self.data),
        }

    def moved(self, run: Run, helper: str) -> None:
        """*helper* has moved the frame, whose new bytes ``meta`` and ``data`` hold."""
        _void(
            run, f"this packet pointer is from before the call of {helper}, which may have moved the packet"
        )
        self._make_region(run)


def _void(run: Run, why: str) -> None:
    """No pointer into the packet may be used any more."""
    if run.packet_region is not None:
        run.void(run.packet_region, f"this {why}: derive it from the context again")


def _sock_rights(common: bool) -> Rights:
    """Of ``struct bpf_sock``; of what may be no full socket where *common*."""
    rights = _plain_rights(
        BpfSock, ("bound_dev_if",), ("src_ip4", "src_ip6", "dst_ip4", "dst_ip6", "dst_port")
    )
    rights.read.add((BpfSock.offsetof("dst_port"), 4))
    first_bytes = ["family", "src_port", "state", "rx_queue_mapping"]
    if not common:
        _allow(rights, BpfSock, ("mark", "priority"))
        first_bytes += ["type", "protocol"]
    for name in first_bytes:  # in parts too, if they begin where the field does
        rights.read.update((BpfSock.offsetof(name), size) for size in (1, 2, 4))
    return rights


_SOCK: Final = _sock_rights(False)
_SOCK_COMMON: Final = _sock_rights(True)
_TCP_SOCK: Final = _plain_rights(BpfTcpSock, BpfTcpSock.fields)


class SocketRegion(Fields):
    """A socket that a program holds a pointer to; ``common`` where it may be no full socket."""

    __slots__ = ("common", "socket")

    def __init__(self, socket: Socket, order: Order, common: bool) -> None:
        rights = _SOCK_COMMON if common else _SOCK
        super().__init__("bpf_sock", bytearray(socket.as_bpf_sock(order)), order, rights, {})
        self.socket = socket
        self.common = common


def socket_pointer(run: Run, socket: Socket, *, common: bool = False) -> int:
    """A pointer to *socket*, the same whenever this run asks."""
    key = (id(socket), common)
    region = run.sockets.get(key)
    if region is None:
        region = run.sockets[key] = SocketRegion(socket, run.emulator.byteorder, common)
    return run.pointer(region)


def socket_at(run: Run, address: int) -> Socket:
    """The socket that *address* points to; raises `Violation`."""
    region = run.regions.get(address >> 32)
    if not isinstance(region, SocketRegion) or address != region.start:
        raise Violation(f"the argument is {run.describe(address)}, not a socket")
    return region.socket


def tcp_socket_pointer(run: Run, socket: Socket) -> int:
    """``struct bpf_tcp_sock`` of a socket, all zeros but for what the model knows."""
    order = run.emulator.byteorder
    known = {"snd_cwnd": 10, "snd_nxt": socket.snd_nxt & 0xFFFFFFFF, "rcv_nxt": socket.rcv_nxt & 0xFFFFFFFF}
    data = bytearray(BpfTcpSock.pack(byteorder=order, **known))
    return run.pointer(Fields("bpf_tcp_sock", data, order, _TCP_SOCK, {}))


@lru_cache(maxsize=4)
def _sockopt_rights(attach: AttachType | None) -> Rights:
    rights = _plain_rights(SockOpt, ("sk", "optval", "optval_end", "level", "optname", "optlen"))
    if attach is AttachType.CGROUP_SETSOCKOPT:
        _allow(rights, SockOpt, ("level", "optname", "optlen"), write=True)
    else:
        _allow(rights, SockOpt, ("retval", "optlen"), write=True)
    return rights


class SockOptContext(Context):
    """``struct bpf_sockopt``: a question for a socket's option, ``optval`` being the buffer.

    For a getsockopt program it holds the kernel's own answer.
    """

    layout = SockOpt
    types = frozenset({ProgType.CGROUP_SOCKOPT})

    def __init__(self, socket: Socket | None, optval: bytes = b"", **fields: Any) -> None:
        super().__init__(**fields)
        self.socket = socket
        self.optval = bytearray(optval)
        self._fields.setdefault("optlen", len(optval))

    def rights(self, spec: ProgramSpec) -> Rights:
        return _sockopt_rights(spec.attach_type)

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        region = Memory("optval", self.optval, run.emulator.byteorder, atomic=False)
        at = SockOpt.offsetof
        return {
            at("sk"): lambda: 0 if self.socket is None else socket_pointer(run, self.socket),
            at("optval"): lambda: run.pointer(region),
            at("optval_end"): lambda: run.pointer(region, len(self.optval)),
        }


def _socket_fields(socket: Socket) -> dict[str, Any]:
    """The fields that sock_ops and sk_msg share, of a connected socket."""
    values: dict[str, Any] = {
        "family": socket.family,
        "remote_ip4": int.from_bytes(socket.ip4(socket.dst), "big"),
        "local_ip4": int.from_bytes(socket.ip4(socket.src), "big"),
        "remote_port": socket.dst_port,
        "local_port": socket.src_port,
    }
    if socket.family == AF_INET6:
        values["remote_ip6"] = socket.ip6(socket.dst)
        values["local_ip6"] = socket.ip6(socket.src)
    return values


_SOCK_OPS: Final = _plain_rights(SockOps, SockOps.fields, (), ("reply", "sk_txhash"))
_SOCK_OPS.read.update((SockOps.offsetof("skb_tcp_flags"), size) for size in (1, 2))


class SockOpsContext(Context):
    """``struct bpf_sock_ops``: an event *op* of a TCP socket, or of a handshake that has none yet.

    ``has_sk`` is false where the ``sk`` field is NULL although there is a socket.
    """

    layout = SockOps
    types = frozenset({ProgType.SOCK_OPS})

    def __init__(
        self, op: int, socket: Socket, *, full: bool = True, packet: bytes = b"", **fields: Any
    ) -> None:
        super().__init__(op=op, is_fullsock=int(full), **_socket_fields(socket), **fields)
        self.socket = socket
        self.full = full
        self.data = bytearray(packet)
        self._fields.setdefault("bpf_sock_ops_cb_flags", socket.cb_flags)

    def rights(self, spec: ProgramSpec) -> Rights:
        return _SOCK_OPS

    def current(self) -> dict[str, Any]:
        return {"skb_len": len(self.data), **self._fields}

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        region = Memory("the packet", self.data, run.emulator.byteorder, writable=False, atomic=False)
        at = SockOps.offsetof
        return {
            at("sk"): lambda: socket_pointer(run, self.socket) if self.full else 0,
            at("skb_data"): lambda: run.pointer(region) if self.data else 0,
            at("skb_data_end"): lambda: run.pointer(region, len(self.data)) if self.data else 0,
        }


_SK_MSG: Final = _plain_rights(SkMsgMd, SkMsgMd.fields)


class SkMsg(Context):
    """``struct sk_msg_md``: a message that is sent on *socket*. ``redirect`` is where a helper sent it."""

    layout = SkMsgMd
    types = frozenset({ProgType.SK_MSG})

    def __init__(
        self, socket: Socket, data: bytes = b"", *, linear: int | None = None, **fields: Any
    ) -> None:
        super().__init__(**_socket_fields(socket), **fields)
        self.socket = socket
        self.data = bytearray(data)
        self.start = 0
        self.end = len(data) if linear is None else linear
        self.redirect: Socket | None = None
        self.redirect_flags = 0
        self.apply_bytes = 0
        self.cork_bytes = 0

    @property
    def packet(self) -> bytes:
        return bytes(self.data)

    def rights(self, spec: ProgramSpec) -> Rights:
        return _SK_MSG

    def current(self) -> dict[str, Any]:
        return {**self._fields, "size": len(self.data)}

    def enter(self, run: Run) -> int:
        address = super().enter(run)
        self._make_region(run)
        return address

    def _make_region(self, run: Run) -> None:
        region = Memory(
            "the message", bytearray(self.data[self.start : self.end]), run.emulator.byteorder, atomic=False
        )
        run.packet_region = region

    def leave(self, run: Run) -> None:
        self.sync(run)

    def sync(self, run: Run) -> None:
        """Take over what the program has written to the message."""
        if run.packet_region is not None:
            self.data[self.start : self.end] = run.packet_region.data

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        def data() -> int:
            assert run.packet_region is not None
            return run.pointer(run.packet_region)

        at = SkMsgMd.offsetof
        return {
            at("data"): data,
            at("data_end"): lambda: data() + self.end - self.start,
            at("sk"): lambda: socket_pointer(run, self.socket),
        }

    def moved(self, run: Run, helper: str) -> None:
        """*helper* has made another part of the message reachable."""
        _void(run, f"pointer into the message is from before the call of {helper}")
        self._make_region(run)
        self._refresh(run, "size", len(self.data))


def _sk_lookup_rights() -> Rights:
    rights = _plain_rights(
        SkLookup,
        ("sk",),
        (
            "family",
            "protocol",
            "remote_ip4",
            "remote_ip6",
            "remote_port",
            "local_ip4",
            "local_ip6",
            "local_port",
            "ingress_ifindex",
        ),
    )
    # The port was declared with 4 bytes once, and can be read so, or what lies behind it.
    rights.allow(SkLookup.offsetof("remote_port"), 4, narrow=True)
    return rights


_SK_LOOKUP: Final = _sk_lookup_rights()


class SkLookupContext(Context):
    """``struct bpf_sk_lookup``: a connection or datagram that asks for a socket, ``assigned`` the answer."""

    layout = SkLookup
    types = frozenset({ProgType.SK_LOOKUP})

    def __init__(
        self,
        remote: bytes,
        remote_port: int,
        local: bytes,
        local_port: int,
        *,
        protocol: int = 6,
        ingress_ifindex: int = 1,
    ) -> None:
        values: dict[str, Any] = {"family": AF_INET if len(remote) == 4 else AF_INET6}
        if len(remote) == 4:
            values["remote_ip4"] = int.from_bytes(remote, "big")
            values["local_ip4"] = int.from_bytes(local, "big")
        else:
            values["remote_ip6"] = remote
            values["local_ip6"] = local
        super().__init__(
            protocol=protocol,
            remote_port=remote_port,
            local_port=local_port,
            ingress_ifindex=ingress_ifindex,
            **values,
        )
        self.assigned: Socket | None = None
        self.no_reuseport = False

    def rights(self, spec: ProgramSpec) -> Rights:
        return _SK_LOOKUP

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        return {0: lambda: 0 if self.assigned is None else socket_pointer(run, self.assigned)}


@lru_cache(maxsize=32)
def _sock_addr_rights(attach: AttachType | None) -> Rights:
    """An address family's fields are for the hooks of that family, the message's source for sendmsg."""
    name = "" if attach is None else attach.name
    families = [family for family in ("4", "6") if not name or family in name]
    rights = _plain_rights(SockAddr, ("sk", "user_family", "family", "type", "protocol"))
    for family in families:
        fields = [f"user_ip{family}"]
        if not name or "SENDMSG" in name:
            fields.append(f"msg_src_ip{family}")
        _allow(rights, SockAddr, fields, narrow=True, write=True)
        for field in fields:
            if family == "6":  # two words at once, where the context has them aligned
                start = SockAddr.offsetof(field)
                pairs = {(at, 8) for at in range(start, start + 9) if at % 8 == 0}
                rights.read |= pairs
                rights.write |= pairs
    if not name or families:
        _allow(rights, SockAddr, ("user_port",), narrow=True, write=True)
    return rights


class SockAddrContext(Context):
    """``struct bpf_sock_addr``: the address that bind, connect, sendmsg and the like were given."""

    layout = SockAddr
    types = frozenset({ProgType.CGROUP_SOCK_ADDR})

    def __init__(self, socket: Socket, address: bytes = bytes(4), port: int = 0, **fields: Any) -> None:
        family = AF_INET if len(address) == 4 else AF_INET6
        values: dict[str, Any] = {
            "user_family": family,
            "family": socket.family,
            "type": socket.type,
            "protocol": socket.protocol,
        }
        if family == AF_INET:
            values["user_ip4"] = int.from_bytes(address, "big")
        else:
            values["user_ip6"] = address
        super().__init__(**values, **fields)
        self.socket = socket
        self.retval = 0  # what set_retval has set
        self._port = port.to_bytes(2, "big")

    def current(self) -> dict[str, Any]:
        values = dict(self._fields)
        values.setdefault("user_port", int.from_bytes(self._port, self._order))
        return values

    _order: Order = "little"

    def enter(self, run: Run) -> int:
        self._order = run.emulator.byteorder
        return super().enter(run)

    def rights(self, spec: ProgramSpec) -> Rights:
        return _sock_addr_rights(spec.attach_type)

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        return {SockAddr.offsetof("sk"): lambda: socket_pointer(run, self.socket)}
