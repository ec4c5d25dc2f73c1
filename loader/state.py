# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What an instance says about itself: the layouts of its settings, ports and interfaces maps."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from loader.plan import Plan
from programs.settings import Mark, Ports, Settings
from pybpfasm.kernel.enums import MapType
from pybpfasm.layout import U8, U16, U32, U64, ByteOrder, Bytes, Record, Struct
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.btf import BtfBuilder

FORMAT: Final = 5  # of the settings map


class Text(Bytes):
    """A C string in a fixed number of bytes: UTF-8, filled up with NUL; too long a text is stored as none."""

    __slots__ = ()

    def to_bytes(self, value: Any, byteorder: ByteOrder) -> bytes:
        if isinstance(value, str):
            encoded = os.fsencode(value)
            value = (encoded if len(encoded) < self.size else b"").ljust(self.size, b"\0")
        return super().to_bytes(value, byteorder)

    def from_bytes(self, data: bytes, byteorder: ByteOrder) -> str:
        return os.fsdecode(data.partition(b"\0")[0])

    def btf(self, builder: BtfBuilder) -> int:
        """An array of ``char``, which bpftool prints as a string."""
        return builder.add_array(builder.add_int("char", 1, char=True), self.size)


class SettingsValue(Struct, kernel_name="proxy_settings"):
    """What an instance was made for. ``programs`` is a hash of its programs' instructions."""

    format = U32()
    mode = Text(16)
    envoy_port = U32()
    mark = U32()
    mark_mask = U32()
    accelerate = U8()
    timers = U8()
    coarse_clock = U8()
    with_netns_cookie = U8()
    flow_capacity = U32()
    socket_capacity = U32()
    handshake_seconds = U32()
    linger_seconds = U32()
    idle_seconds = U32()
    queue_limit = U32()
    queue_length_at = U32()
    receive_buffer_at = U32()
    buffer_locks_at = U32()
    receive_buffer_lock = U32()
    ulp_at = U32()
    netns_inode = U64()
    netns_cookie = U64()
    cgroup_id = U64()
    programs = U64()
    netns = Text(256)
    cgroup = Text(256)


class PortRange(Struct, kernel_name="proxy_ports"):
    """A range of intercepted ports, both ends included."""

    first = U16()
    last = U16()


class InterfaceValue(Struct, kernel_name="proxy_interface"):
    """An interface that was attached to. ``link_type`` is an ARPHRD_* number, ``method`` tcx or clsact."""

    ifindex = U32()
    link_type = U16()
    made_qdisc = U8()
    name = Text(16)
    method = Text(8)


def state_map(name: str, value: type[Struct], entries: int) -> MapSpec:
    return MapSpec(name, MapType.ARRAY, U32(), value, entries)


def _fingerprint(plan: Plan) -> int:
    from hashlib import blake2b

    digest = blake2b(digest_size=8)
    for name, spec in sorted(plan.programs.items()):
        digest.update(name.encode() + b"\0" + spec.code())
    return int.from_bytes(digest.digest(), sys.byteorder)


def settings_value(plan: Plan) -> dict[str, Any]:
    settings = plan.settings
    return {
        "format": FORMAT,
        "mode": plan.mode.name,
        "envoy_port": settings.envoy_port,
        "mark": settings.mark.value,
        "mark_mask": settings.mark.mask,
        "accelerate": int(settings.accelerate),
        "timers": int(settings.timers),
        "coarse_clock": int(settings.coarse_clock),
        "with_netns_cookie": int(settings.netns_cookie),
        "flow_capacity": settings.flow_capacity,
        "socket_capacity": settings.socket_capacity,
        "handshake_seconds": settings.handshake_seconds,
        "linger_seconds": settings.linger_seconds,
        "idle_seconds": settings.idle_seconds,
        "queue_limit": settings.queue_limit,
        "queue_length_at": settings.queue_length_at,
        "receive_buffer_at": settings.receive_buffer_at,
        "buffer_locks_at": settings.buffer_locks_at,
        "receive_buffer_lock": settings.receive_buffer_lock,
        "ulp_at": settings.ulp_at,
        "netns_inode": plan.netns.ino,
        "netns_cookie": plan.netns_cookie,
        "cgroup_id": plan.cgroup.id,
        "programs": _fingerprint(plan),
        "netns": plan.request.netns or "",
        "cgroup": str(plan.cgroup.path),
    }


def settings_of(value: Record, ranges: tuple[tuple[int, int], ...]) -> Settings:
    """The settings that a settings map holds; what else it says is not part of them."""
    return Settings(
        ports=Ports.of(ranges),
        envoy_port=value.envoy_port,
        mark=Mark(value.mark, value.mark_mask),
        accelerate=bool(value.accelerate),
        flow_capacity=value.flow_capacity,
        socket_capacity=value.socket_capacity,
        handshake_seconds=value.handshake_seconds,
        linger_seconds=value.linger_seconds,
        idle_seconds=value.idle_seconds,
        queue_limit=value.queue_limit,
        queue_length_at=value.queue_length_at,
        receive_buffer_at=value.receive_buffer_at,
        buffer_locks_at=value.buffer_locks_at,
        receive_buffer_lock=value.receive_buffer_lock,
        ulp_at=value.ulp_at,
        timers=bool(value.timers),
        coarse_clock=bool(value.coarse_clock),
        netns_cookie=bool(value.with_netns_cookie),
        netns=value.netns_cookie,
    )
