# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Calls of helpers and of functions of the kernel: arguments, results, references taken and given back."""

from __future__ import annotations

from typing import Final

from pybpfasm.check.base import WITH_VALUES, WalkBase
from pybpfasm.check.rights import (
    MAPS_OF,
    MOVES_PACKET,
    RESULTS,
    RETURNS_NOTHING,
    in_words,
    needs_gpl,
    type_name,
)
from pybpfasm.check.values import (
    ALL_WRITTEN,
    ANY,
    CONST,
    CTX,
    END,
    FP,
    FREE,
    GONE,
    MAP,
    MAYBE,
    MIXED,
    NUMBER,
    NUMBERS,
    PKT,
    SOCK,
    STACK,
    U32,
    U64,
    UNKNOWN,
    UNSET,
    VAL,
    WORDS,
    State,
    Value,
)
from pybpfasm.instruction import Instruction
from pybpfasm.isa import CallKind
from pybpfasm.kernel.enums import Helper, MapType
from pybpfasm.layout import Struct

__all__ = ["ACQUIRES", "Calls"]

_SOCKETS: Final = {
    Helper.sk_lookup_tcp: "sock",
    Helper.sk_lookup_udp: "sock",
    Helper.skc_lookup_tcp: "sock_common",
    Helper.sk_fullsock: "sock",
    Helper.tcp_sock: "tcp_sock",
    Helper.get_listener_sock: "sock",
}
ACQUIRES: Final = {
    Helper.sk_lookup_tcp: "sk_release",
    Helper.sk_lookup_udp: "sk_release",
    Helper.skc_lookup_tcp: "sk_release",
    Helper.ringbuf_reserve: "ringbuf_submit or ringbuf_discard",
}
_RELEASES: Final = frozenset({Helper.sk_release, Helper.ringbuf_submit, Helper.ringbuf_discard})
_VALUES: Final = frozenset(
    {Helper.map_lookup_elem, Helper.map_lookup_percpu_elem, Helper.sk_storage_get, Helper.task_storage_get}
)
# These take a map in r2; others that take one have it in r1.
_MAP_SECOND: Final = frozenset(
    {
        Helper.tail_call,
        Helper.perf_event_output,
        Helper.get_stackid,
        Helper.sk_redirect_map,
        Helper.msg_redirect_map,
        Helper.sock_map_update,
        Helper.sk_redirect_hash,
        Helper.msg_redirect_hash,
        Helper.sock_hash_update,
        Helper.sk_select_reuseport,
    }
)
# What helpers read from memory: the register of its address, and that of its size, or what of the map it is.
_READS: Final[dict[Helper, dict[int, int | str]]] = {
    Helper.map_lookup_elem: {2: "key"},
    Helper.map_lookup_percpu_elem: {2: "key"},
    Helper.map_update_elem: {2: "key", 3: "value"},
    Helper.map_delete_elem: {2: "key"},
    Helper.map_push_elem: {2: "value"},
    Helper.sock_map_update: {3: "key"},
    Helper.sock_hash_update: {3: "key"},
    Helper.msg_redirect_hash: {3: "key"},
    Helper.sk_redirect_hash: {3: "key"},
    Helper.ringbuf_output: {2: 3},
    Helper.perf_event_output: {4: 5},
    Helper.skb_store_bytes: {3: 4},
}
# Maps whose keys and values are the bytes that a program gives.
_BY_MEMORY: Final = WITH_VALUES | {
    MapType.QUEUE,
    MapType.STACK,
    MapType.SOCKMAP,
    MapType.SOCKHASH,
    MapType.HASH_OF_MAPS,
    MapType.ARRAY_OF_MAPS,
    MapType.DEVMAP_HASH,
} - {MapType.SK_STORAGE, MapType.TASK_STORAGE}
# Where a call's results can be any number that fits, and the verifier knows no more.
_FREE_RESULTS: Final = frozenset({Helper.ktime_get_ns, Helper.ktime_get_boot_ns, Helper.ktime_get_tai_ns})
# Accepted kinds of argument by the kinds of value that are certainly not of them.
_NO_POINTER: Final = frozenset({"memory", "ctx", "map_ptr", "map_value", "socket", "ringbuf_mem", "func"})
_FITS: Final = {
    "ctx": frozenset({CTX}),
    "map_ptr": frozenset({MAP}),
    "socket": frozenset({SOCK}),
    "memory": frozenset({FP, PKT, VAL, CTX, SOCK, MAP, END}),
}


def _named(missing: list[int], size: int, shape: object) -> str:
    """The bytes at *missing*, of *size*, for people: by the fields of the structure that *shape* may be."""
    if len(missing) == size:
        return f"all {size} bytes" if size > 1 else "the byte"
    fields = shape.fields.items() if isinstance(shape, type) and issubclass(shape, Struct) else ()
    names = [name for name, f in fields if any(f.offset <= at < f.offset + f.size for at in missing)]
    gaps = fields and not all(any(f.offset <= at < f.offset + f.size for _, f in fields) for at in missing)
    which = ", ".join([*names, *["padding"] * bool(gaps)])
    places = ", ".join(map(str, missing)) if len(missing) <= 8 else f"{missing[0]} to {missing[-1]}"
    bytes_ = f"byte{'s' * (len(missing) > 1)} {places}"
    return f"{bytes_} ({which})" if which else bytes_


class Calls(WalkBase):
    """The part of a walk that looks at calls."""

    def _call(self, index: int, insn: Instruction, state: State) -> None:
        regs = state.regs
        if insn.src != CallKind.HELPER:
            if insn.src == CallKind.KFUNC and not self.gpl:
                self._fault(
                    "license",
                    index,
                    "functions of the kernel are for programs with a GPL-compatible license, not "
                    f"{self.spec.license!r}",
                )
            self._forget(state)
            state.refs.clear()
            self._clobber(index, state, UNKNOWN)
            return
        helper = insn.imm
        self._may_call(index, helper)
        arguments = () if self.rights.may_call(helper) is False else self.rights.arguments(helper)
        given = regs.copy()
        for place, kind in enumerate(arguments):
            self._argument(index, helper, place + 1, kind, regs)
        the_map = given[2 if helper in _MAP_SECOND else 1]
        self._map_type(index, helper, the_map)
        self._unset_memory(index, helper, the_map, given, state)
        if any(value[0] in (FP, ANY, MIXED) for value in given[1:6]):
            for value in given[1:6]:
                if value[0] in (ANY, MIXED):
                    state.written = ALL_WRITTEN
                elif value[0] == FP and -STACK <= value[1] < 0:
                    state.written |= ALL_WRITTEN >> (STACK + value[1]) << (STACK + value[1])
            state.stack.clear()
        if helper in _RELEASES and given[1][0] in (SOCK, VAL):
            state.refs.pop(given[1][1], None)
            self._drop(given[1][1], state)
        elif helper in _RELEASES or helper == Helper.kptr_xchg:
            state.refs.clear()
        if helper in MOVES_PACKET:
            self._move_packet(index, state)
        self._clobber(index, state, self._result(index, helper, given, state))

    def _map_type(self, index: int, helper: int, given: Value) -> None:
        wanted = MAPS_OF.get(helper)  # type: ignore[call-overload]
        if wanted is None or given[0] != MAP or given[1] is None or given[1].type in wanted:
            return
        names = " or ".join(sorted(MapType(one).name for one in wanted))
        self._fault(
            "argument-map",
            index,
            f"{Helper(helper).name} works on maps of type {names}; {given[1].name} is {given[1].type.name}",
        )

    def _unset_memory(
        self, index: int, helper: int, the_map: Value, given: list[Value], state: State
    ) -> None:
        """Note which bytes of the stack, of those that the helper reads, nothing was written to.

        What is known of a place grows with each visit, so the last one says what is so.
        """
        self._half_written.pop(index, None)
        for register, size_of in _READS.get(helper, {}).items():  # type: ignore[call-overload]
            place = given[register]
            spec = the_map[1] if the_map[0] == MAP else None
            if isinstance(size_of, int):
                size = given[size_of][1] if given[size_of][0] == CONST else 0
                what = f"what {Helper(helper).name} reads"
            elif spec is not None and spec.type in _BY_MEMORY:
                size = getattr(spec, f"{size_of}_size")
                what = f"the {size_of} for map {spec.name}"
            else:
                continue
            if place[0] != FP or not size or not -STACK <= place[1] <= -size:
                continue
            start = place[1] + STACK
            missing = [at for at in range(size) if not state.written >> (start + at) & 1]
            if missing:
                shape = getattr(spec, str(size_of), None)
                self._half_written[index] = (
                    f"{_named(missing, size, shape)} of {what}, at r10{place[1]:+d}, "
                    f"{'is' if len(missing) == 1 else 'are'} not written on any way here: b.zero(…) first. "
                    "The kernel refuses that before Linux 6.3, and without CAP_PERFMON"
                )
                if size_of == "key":
                    self._half_written[index] += "; where it does not, no such key is found again"
                return

    def _may_call(self, index: int, helper: int) -> None:
        try:
            name = f"{Helper(helper).name}"
        except ValueError:
            if self.rights.helpers is not None and helper == 0:
                self._fault("helper", index, "there is no helper 0")
            elif not self.certain and helper > max(Helper):
                self._fault(
                    "helper", index, f"helper {helper} is not known here: Linux 6.18 has {int(max(Helper))}"
                )
            return
        if self.rights.may_call(helper) is False:
            self._fault("helper", index, f"{type_name(self.spec.type)} programs can't call {name}")
        elif needs_gpl(helper) and not self.gpl:
            self._fault(
                "license",
                index,
                f"{name} is for programs with a GPL-compatible license, not {self.spec.license!r}",
            )

    def _argument(self, index: int, helper: int, register: int, kind: str, regs: list[Value]) -> None:
        value = regs[register]
        name = Helper(helper).name
        if value[0] <= MAYBE:
            self._unset(index, register, value, f"an argument of {name} and read")
            regs[register] = UNKNOWN
            return
        wanted, _, null = kind.partition("|")
        have = value[0]
        if have == ANY or wanted in ("scalar", "?") or wanted not in _NO_POINTER:
            return
        if have == MIXED:
            if not null:
                self._fault(
                    "argument",
                    index,
                    f"on some way, r{register}, an argument of {name}, is a number; "
                    f"it must be {in_words(wanted)}",
                )
        elif have in NUMBERS:
            if null and (have != CONST or value[1] == 0):
                return
            self._fault(
                "argument",
                index,
                f"r{register}, an argument of {name}, must be {in_words(wanted)}; it is a number",
            )
        elif have in (VAL, SOCK) and value[2]:
            if not null:
                self._null(index, register, value, f"is passed to {name}")
        elif wanted in _FITS and have not in _FITS[wanted]:
            self._fault(
                "argument",
                index,
                f"r{register}, an argument of {name}, must be {in_words(wanted)}; it is {WORDS[have]}",
            )

    def _result(self, index: int, helper: int, given: list[Value], state: State) -> Value:
        self._purge(index, state)
        if helper in ACQUIRES:
            state.refs[index] = index
        if helper in _VALUES:
            spec = given[1][1] if given[1][0] == MAP else None
            if spec is None:
                return UNKNOWN
            if spec.type in (MapType.SOCKMAP, MapType.SOCKHASH):
                state.refs[index] = index
                return (SOCK, index, True, "sock")
            # Of other types a look-up gives something else: another map, a socket of AF_XDP.
            return (VAL, index, True, spec, 0) if spec.type in WITH_VALUES else UNKNOWN
        if helper == Helper.ringbuf_reserve:
            return (VAL, index, True, None, None)
        if helper in _SOCKETS:
            return (SOCK, index, True, _SOCKETS[Helper(helper)])
        if helper in _FREE_RESULTS:
            return self._fresh(index, 0, U64, state.regs)
        if helper == Helper.get_prandom_u32:
            return self._fresh(index, 0, U32, state.regs)
        if helper in RETURNS_NOTHING:
            return (UNSET, -1)
        return NUMBER if RESULTS.get(helper) == "scalar" else UNKNOWN

    @staticmethod
    def _clobber(index: int, state: State, result: Value) -> None:
        regs = state.regs
        regs[0] = result
        lost = (UNSET, index)
        regs[1] = regs[2] = regs[3] = regs[4] = regs[5] = lost

    @staticmethod
    def _drop(origin: int, state: State) -> None:
        """A reference has been given back: its copies are worth nothing."""
        for register, value in enumerate(state.regs):
            if value[0] in (VAL, SOCK) and value[1] == origin:
                state.regs[register] = UNKNOWN
        for offset, value in state.stack.items():
            if value[0] in (VAL, SOCK) and value[1] == origin:
                state.stack[offset] = UNKNOWN

    @staticmethod
    def _move_packet(index: int, state: State) -> None:
        for register, value in enumerate(state.regs):
            if value[0] == PKT or value[0] == END:
                state.regs[register] = (GONE, index)
        for offset, value in state.stack.items():
            if value[0] == PKT or value[0] == END:
                state.stack[offset] = UNKNOWN

    @staticmethod
    def _forget(state: State) -> None:
        """Something unknown has run: what it could change is unknown."""
        for register, value in enumerate(state.regs):
            if value[0] in (FREE, VAL, SOCK, PKT, END):
                state.regs[register] = NUMBER if value[0] == FREE else UNKNOWN
        state.stack.clear()
        state.written = ALL_WRITTEN
