# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What programs of one type may do, from the tables that the kernel's answers made."""

from __future__ import annotations

from functools import cache
from typing import Final

from pybpfasm.kernel import helpers as table
from pybpfasm.kernel.enums import AttachType, Helper, MapType, ProgType

__all__ = [
    "MAPS_OF",
    "MOVES_PACKET",
    "OWN_STACKS",
    "READ_ONLY_PACKETS",
    "RESULTS",
    "RETURNS_NOTHING",
    "Rights",
    "is_gpl_compatible",
    "result_range",
    "rights_of",
    "type_name",
]

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

#: Helpers of type RET_VOID (kernel/bpf/core.c, helpers.c and ringbuf.c): r0 is unset after a call.
RETURNS_NOTHING: Final[frozenset[int]] = frozenset(
    {
        Helper.tail_call,
        Helper.spin_lock,
        Helper.spin_unlock,
        Helper.ringbuf_submit,
        Helper.ringbuf_discard,
        Helper.ringbuf_submit_dynptr,
        Helper.ringbuf_discard_dynptr,
    }
)

_WORDS: Final = {
    "memory": "memory (the stack, a packet or a map's value)",
    "ctx": "the context",
    "map_ptr": "a map",
    "map_value": "a map's value",
    "socket": "a socket",
    "func": "a callback",
    "ringbuf_mem": "memory that ringbuf_reserve gave",
}


# may_access_direct_pkt_data(), kernel/bpf/verifier.c: types that may read packets directly, and not write.
READ_ONLY_PACKETS: Final = frozenset(
    {
        ProgType.LWT_IN,
        ProgType.LWT_OUT,
        ProgType.LWT_SEG6LOCAL,
        ProgType.SK_REUSEPORT,
        ProgType.FLOW_DISSECTOR,
        ProgType.CGROUP_SKB,
    }
)
# Types whose functions can have stacks of their own (Linux 6.13), so that their sum has no limit.
OWN_STACKS: Final = frozenset(
    {
        ProgType.KPROBE,
        ProgType.TRACEPOINT,
        ProgType.PERF_EVENT,
        ProgType.RAW_TRACEPOINT,
        ProgType.RAW_TRACEPOINT_WRITABLE,
        ProgType.TRACING,
        ProgType.LSM,
        ProgType.EXT,
        ProgType.STRUCT_OPS,
    }
)
# check_map_func_compatibility(), kernel/bpf/verifier.c, as far as a helper goes with few types of maps.
_QUEUES: Final = frozenset({MapType.QUEUE, MapType.STACK, MapType.BLOOM_FILTER})
_RINGS: Final = frozenset({MapType.RINGBUF})
MAPS_OF: Final = {
    Helper.tail_call: frozenset({MapType.PROG_ARRAY}),
    Helper.map_push_elem: _QUEUES,
    Helper.map_peek_elem: _QUEUES,
    Helper.map_pop_elem: _QUEUES,
    Helper.ringbuf_output: _RINGS,
    Helper.ringbuf_reserve: _RINGS,
    Helper.ringbuf_query: _RINGS,
    Helper.ringbuf_reserve_dynptr: _RINGS,
    Helper.user_ringbuf_drain: frozenset({MapType.USER_RINGBUF}),
    Helper.perf_event_output: frozenset({MapType.PERF_EVENT_ARRAY}),
    Helper.perf_event_read: frozenset({MapType.PERF_EVENT_ARRAY}),
    Helper.get_stackid: frozenset({MapType.STACK_TRACE}),
    Helper.sk_storage_get: frozenset({MapType.SK_STORAGE}),
    Helper.sk_storage_delete: frozenset({MapType.SK_STORAGE}),
    Helper.task_storage_get: frozenset({MapType.TASK_STORAGE}),
    Helper.task_storage_delete: frozenset({MapType.TASK_STORAGE}),
    Helper.inode_storage_get: frozenset({MapType.INODE_STORAGE}),
    Helper.inode_storage_delete: frozenset({MapType.INODE_STORAGE}),
    Helper.cgrp_storage_get: frozenset({MapType.CGRP_STORAGE}),
    Helper.cgrp_storage_delete: frozenset({MapType.CGRP_STORAGE}),
    Helper.sk_redirect_map: frozenset({MapType.SOCKMAP}),
    Helper.msg_redirect_map: frozenset({MapType.SOCKMAP}),
    Helper.sock_map_update: frozenset({MapType.SOCKMAP}),
    Helper.sk_redirect_hash: frozenset({MapType.SOCKHASH}),
    Helper.msg_redirect_hash: frozenset({MapType.SOCKHASH}),
    Helper.sock_hash_update: frozenset({MapType.SOCKHASH}),
    Helper.redirect_map: frozenset({MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP}),
    Helper.sk_select_reuseport: frozenset({MapType.REUSEPORT_SOCKARRAY, MapType.SOCKMAP, MapType.SOCKHASH}),
}

# check_return_code(), kernel/bpf/verifier.c
_ZERO_OR_ONE: Final = frozenset(
    {
        ProgType.CGROUP_SKB,
        ProgType.CGROUP_SOCK,
        ProgType.CGROUP_SOCK_ADDR,
        ProgType.CGROUP_DEVICE,
        ProgType.CGROUP_SYSCTL,
        ProgType.CGROUP_SOCKOPT,
        ProgType.SOCK_OPS,
        ProgType.SK_LOOKUP,
    }
)
_ALWAYS_ONE: Final = frozenset(
    {
        AttachType.CGROUP_UDP4_RECVMSG,
        AttachType.CGROUP_UDP6_RECVMSG,
        AttachType.CGROUP_UNIX_RECVMSG,
        AttachType.CGROUP_INET4_GETPEERNAME,
        AttachType.CGROUP_INET6_GETPEERNAME,
        AttachType.CGROUP_UNIX_GETPEERNAME,
        AttachType.CGROUP_INET4_GETSOCKNAME,
        AttachType.CGROUP_INET6_GETSOCKNAME,
        AttachType.CGROUP_UNIX_GETSOCKNAME,
    }
)
_WITH_FLAGS: Final = frozenset(
    {AttachType.CGROUP_INET_EGRESS, AttachType.CGROUP_INET4_BIND, AttachType.CGROUP_INET6_BIND}
)


def result_range(type: int, attach_type: int | None) -> tuple[int, int] | None:
    """The least and the largest number that a program may return, ``None`` where any will do."""
    if type not in _ZERO_OR_ONE:
        return None
    if type == ProgType.CGROUP_SOCK_ADDR and attach_type in _ALWAYS_ONE:
        return 1, 1
    if type in (ProgType.CGROUP_SOCK_ADDR, ProgType.CGROUP_SKB) and attach_type in _WITH_FLAGS:
        return 0, 3
    return 0, 1


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

    @staticmethod
    def returns(helper: int) -> bool:
        """Whether the helper leaves something in r0."""
        return helper not in RETURNS_NOTHING

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
