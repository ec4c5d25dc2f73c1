# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of maps: what a test does with them, their limits and errno values, and what programs see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pybpfasm.asm import Asm
from pybpfasm.elf import read_object, write_object
from pybpfasm.emulator import Emulator, EmulatorError, EmulatorFault, MapError, Skb, SkLookupContext, Socket
from pybpfasm.emulator.maps import MapOfMaps, Queue, RingBuf
from pybpfasm.errors import LayoutError
from pybpfasm.kernel.context import SkBuff, SkLookup
from pybpfasm.kernel.enums import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_NO_PREALLOC,
    BPF_F_RDONLY_PROG,
    BPF_NOEXIST,
    Helper,
    MapType,
    TcpState,
)
from pybpfasm.kernel.values import BpfTimer
from pybpfasm.layout import U8, U16, U32, U64, Nested, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import sched_cls, sk_lookup, subprogram

E2BIG, EEXIST, EINVAL, ENOENT, ENOSPC = 7, 17, 22, 2, 28


class Key(Struct):
    port = U16()
    kind = U8()
    pad = U8()


class Timed(Struct):
    count = U64()
    timer = Nested(BpfTimer)


HASH = MapSpec("hash", MapType.HASH, Key, U64(), 2)
ARRAY = MapSpec("array", MapType.ARRAY, U32(), U64(), 3)
COUNTS = MapSpec("counts", MapType.PERCPU_ARRAY, U32(), U64(), 1)
TIMED = MapSpec("timed", MapType.HASH, U32(), Timed, 4)
RING = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
ROUTES = MapSpec("routes", MapType.LPM_TRIE, 8, U32(), 3, flags=BPF_F_NO_PREALLOC)


def errno_of(action: object, *arguments: object) -> int:
    assert callable(action)
    with pytest.raises(MapError) as caught:
        action(*arguments)
    return caught.value.errno


def test_hash() -> None:
    one = Emulator().map(HASH)
    first = {"port": 1, "kind": 2}
    one[first] = 10
    assert one[first] == 10 and next(iter(one.keys())).port == 1
    assert errno_of(one.update, first, 11, BPF_NOEXIST) == EEXIST
    assert errno_of(one.update, {"port": 9}, 1, BPF_EXIST) == ENOENT
    assert errno_of(one.update, first, 1, 7) == EINVAL
    one[{"port": 2}] = 20
    assert errno_of(one.update, {"port": 3}, 30) == E2BIG
    one.update(first, 12, BPF_EXIST)  # a full map still takes known keys
    assert one.delete(first) and not one.delete(first)
    assert one.lookup(first) is None and first not in one
    assert one.pop({"port": 2}) == 20 and len(one) == 0  # type: ignore[attr-defined]
    with pytest.raises(KeyError):
        one[first]
    with pytest.raises(LayoutError, match="a key of map hash has 3 bytes"):
        one.lookup(b"abc")


def test_lru_evicts_what_was_used_longest_ago() -> None:
    one = Emulator().map(MapSpec("lru", MapType.LRU_HASH, U32(), U32(), 2))
    one[1], one[2] = 10, 20
    one.find((1).to_bytes(4, "little"))
    one[3] = 30
    assert sorted(one.keys()) == [1, 3]


def test_array() -> None:
    one = Emulator().map(ARRAY)
    assert list(one.items()) == [(0, 0), (1, 0), (2, 0)]
    one[2] = 5
    assert errno_of(one.update, 3, 1) == E2BIG
    assert errno_of(one.update, 1, 1, BPF_NOEXIST) == EEXIST
    assert errno_of(one.delete, 1) == EINVAL
    assert one[2] == 5 and one.lookup(3) is None


def test_per_cpu() -> None:
    emulator = Emulator(cpus=3)
    one = emulator.map(COUNTS)
    one[0] = [1, 2, 3]
    emulator.cpu = 1
    found = one.find(bytes(4))
    assert found is not None and found.data[0] == 2
    one[0] = 7
    assert one[0] == [7, 7, 7]
    with pytest.raises(EmulatorError, match="needs 3 values"):
        one[0] = [1, 2]
    table = emulator.map(MapSpec("table", MapType.PERCPU_HASH, U32(), U64(), 1))
    assert table.put((5).to_bytes(4, "little"), (9).to_bytes(8, "little"), BPF_ANY) == 0
    assert table[5] == [0, 9, 0]
    assert errno_of(table.update, 6, 1) == E2BIG


def test_queue_and_stack() -> None:
    emulator = Emulator()
    for kind, order in ((MapType.QUEUE, [1, 2]), (MapType.STACK, [2, 1])):
        one = emulator.map(MapSpec(kind.name.lower(), kind, None, U32(), 2))
        assert isinstance(one, Queue)
        assert one.pop() is None
        one.update(None, 1)
        one.update(None, 2)
        assert errno_of(one.update, None, 3) == E2BIG
        assert one.lookup(None) == order[0]
        assert [one.pop(), one.pop()] == order
        for value in (1, 2, 3):
            one.update(None, value, BPF_EXIST)  # the oldest goes
        assert sorted([one.pop(), one.pop()]) == [2, 3]


def prefix(length: int, *address: int) -> bytes:
    return length.to_bytes(4, "little") + bytes(address)


def test_longest_prefix() -> None:
    one = Emulator().map(ROUTES)
    one[prefix(8, 10, 0, 0, 0)] = 1
    one[prefix(24, 10, 1, 2, 0)] = 2
    assert one[prefix(32, 10, 1, 2, 3)] == 2
    assert one[prefix(32, 10, 9, 9, 9)] == 1
    assert one.lookup(prefix(32, 11, 0, 0, 0)) is None
    assert one.lookup(prefix(4, 10, 0, 0, 0)) is None
    one[prefix(0, 0, 0, 0, 0)] = 3
    assert one[prefix(32, 11, 0, 0, 0)] == 3
    assert errno_of(one.update, prefix(9, 1, 1, 1, 1), 1) == ENOSPC
    assert errno_of(one.update, prefix(33, 1, 1, 1, 1), 1) == EINVAL
    assert one.delete(prefix(8, 10, 5, 5, 5))  # the same prefix
    assert one[prefix(32, 10, 9, 9, 9)] == 3


def test_ring_buffer() -> None:
    emulator = Emulator()
    one = emulator.map(RING)
    assert isinstance(one, RingBuf)
    first, second = one.reserve(16), one.reserve(8)
    assert first is not None and second is not None
    second.data[:] = b"8 bytes."
    second.state = "done"
    assert emulator.events("ring") == []  # the one before is not finished
    first.state = "discarded"
    assert emulator.events("ring") == [b"8 bytes."]
    assert one.reserve(4096) is None
    taken = 0
    while one.output(bytes(100)) == 0:
        taken += 1
    assert taken == 36  # 112 bytes each, 4095 at most
    assert one.output(bytes(100)) == -11
    assert len(emulator.events("ring")) == 36
    assert one.output(bytes(100)) == 0


def test_sockets_leave_their_maps_when_they_close() -> None:
    emulator = Emulator()
    one = emulator.map(MapSpec("sockets", MapType.SOCKHASH, U32(), 8, 2))
    index = emulator.map(MapSpec("index", MapType.SOCKMAP, U32(), 8, 2))
    socket = Socket()
    one[1] = socket
    index[0] = socket
    assert errno_of(one.update, 1, Socket(), BPF_NOEXIST) == EEXIST
    assert errno_of(index.update, 2, socket) == E2BIG
    assert errno_of(one.update, 2, Socket(state=TcpState.SYN_SENT)) == 95
    one[2] = Socket()
    assert errno_of(one.update, 3, Socket()) == E2BIG
    socket.close()
    assert list(one.keys()) == [2] and index.lookup(0) is None
    assert errno_of(index.delete, 0) == EINVAL and not one.delete(1)
    with pytest.raises(EmulatorError, match="holds sockets"):
        one[5] = 7


def test_storage_of_sockets() -> None:
    spec = MapSpec("kept", MapType.SK_STORAGE, U32(), U64(), 0, BPF_F_NO_PREALLOC)
    kept = Emulator().map(spec)
    one, other = Socket(), Socket()
    kept[one] = 5
    kept[one] = 6
    assert kept[one] == 6 and one in kept and other not in kept and kept.lookup(other) is None
    assert errno_of(kept.update, one, 7, BPF_NOEXIST) == EEXIST
    assert errno_of(kept.update, other, 7, BPF_EXIST) == ENOENT
    assert errno_of(kept.update, other, 7, 4) == EINVAL
    del kept[one]
    with pytest.raises(KeyError):
        del kept[one]
    with pytest.raises(EmulatorError, match="keeps values of sockets: give a Socket, not 3"):
        kept.lookup(3)


def test_maps_of_maps() -> None:
    emulator = Emulator()
    inner = MapSpec("inner", MapType.ARRAY, U32(), U64(), 1)
    outer = emulator.map(MapSpec("outer", MapType.HASH_OF_MAPS, U32(), U32(), 1, inner=inner))
    assert isinstance(outer, MapOfMaps)
    made = emulator.new_map(inner)
    outer[7] = made
    assert outer[7] is made
    assert errno_of(outer.update, 8, made) == E2BIG
    assert errno_of(outer.update, 7, emulator.map(HASH)) == EINVAL


@pytest.mark.parametrize(
    "spec",
    [
        MapSpec("bad", MapType.HASH, U32(), U32(), 0),
        MapSpec("bad", MapType.ARRAY, U64(), U32(), 1),
        MapSpec("bad", MapType.QUEUE, U32(), U32(), 1),
        MapSpec("bad", MapType.LPM_TRIE, 8, U32(), 1),
        MapSpec("bad", MapType.RINGBUF, None, None, 5000),
        MapSpec("bad", MapType.SK_STORAGE, U32(), U32(), 1),
    ],
    ids=lambda spec: spec.type.name,
)
def test_what_can_not_be_created(spec: MapSpec) -> None:
    assert errno_of(Emulator().map, spec) == EINVAL


def test_names() -> None:
    emulator = Emulator()
    emulator.map(HASH)
    with pytest.raises(EmulatorError, match="did you mean 'hash'"):
        emulator.map("hush")
    with pytest.raises(EmulatorError, match="exists and is another one"):
        emulator.map(MapSpec("hash", MapType.HASH, U32(), U32(), 1))


@subprogram("map", "key", "value")
def tick(b: Asm) -> None:
    b.r6 = b.r2
    b.r7 = b.r3
    b.r2 = b.u64[b.r7]
    b.r2 += 1
    b.u64[b.r7] = b.r2
    b.If(b.r2 > 2).goto("over")
    b.r1 = b.r7
    b.r1 += 8
    b.r2 = 100
    b.r3 = 0
    b.call(Helper.timer_start)
    b.ret(0)
    b.label("over")
    b.r1 = TIMED
    b.r2 = b.r6
    b.call(Helper.map_delete_elem)
    b.ret(0)


def test_timers_fire_when_time_passes() -> None:
    @sched_cls(name="prog")
    def prog(b: Asm, ctx: SkBuff) -> None:
        b.u32[b.r10 - 4] = 1
        b.r1 = TIMED
        b.r2 = b.r10
        b.r2 += -4
        b.call(Helper.map_lookup_elem)
        b.If(b.r0 == 0).goto("out")
        b.r6 = b.r0
        b.r6 += 8
        b.r1 = b.r6
        b.r2 = TIMED
        b.r3 = 1
        b.call(Helper.timer_init)
        b.If(b.r0 != 0).goto("out")
        b.r1 = b.r6
        b.r2 = tick
        b.call(Helper.timer_set_callback)
        b.r1 = b.r6
        b.r2 = 100
        b.r3 = 0
        b.call(Helper.timer_start)
        b.label("out")
        b.exit()

    emulator = Emulator()
    program = emulator.load(prog.build())
    table = emulator.map(TIMED)
    table[1] = {"count": 0}
    assert program.run(Skb(bytes(64))).r0 == 0
    assert program.run(Skb(bytes(64))).value == 2**32 - 16  # EBUSY
    assert emulator.pending_timers == 1
    assert emulator.advance(99) == 0 and emulator.advance(1) == 1
    assert table[1].count == 1
    assert emulator.advance(1000) == 2
    assert len(table) == 0 and emulator.pending_timers == 0
    assert emulator.now == 1_000_000_000 + 1100


def test_what_is_given_in_place_of_a_program_or_a_context() -> None:
    @sched_cls()
    def nothing(b: Asm, ctx: SkBuff) -> None:
        b.ret(0)

    template: Any = nothing
    with pytest.raises(EmulatorError, match=r"nothing has not been built yet: load\(nothing.build\(…\)\)"):
        Emulator().load(template)
    packet: Any = bytes(64)
    with pytest.raises(EmulatorError, match=r"nothing runs on a context, as in .*, not on bytes"):
        Emulator().load(nothing.build()).run(packet)


def test_sizes_that_an_object_leaves_open() -> None:
    """Filled in as by who loads it; what is written here says its sizes."""
    specs = [
        MapSpec("perf", MapType.PERF_EVENT_ARRAY, 4, 4, 0),
        MapSpec("ring", MapType.RINGBUF, None, None, 5000),
    ]
    found = read_object(write_object([], specs))
    emulator = Emulator(cpus=3)
    for name, entries in (("perf", 3), ("ring", 8192)):
        assert emulator.map(found.map(name)).max_entries == entries
        assert emulator.map(found.map(name)) is emulator.map(name)
    for spec in specs:
        assert errno_of(Emulator().map, spec) == EINVAL


def test_time_is_whole_and_goes_on() -> None:
    emulator = Emulator()
    with pytest.raises(EmulatorError, match=r"advance\(0.5\) is no whole number of ns: advance\(seconds="):
        emulator.advance(0.5)  # type: ignore[arg-type]
    with pytest.raises(EmulatorError, match="does not go back"):
        emulator.advance(seconds=-1)


def test_a_timer_goes_with_its_entry() -> None:
    @sched_cls(name="prog")
    def prog(b: Asm, ctx: SkBuff) -> None:
        b.u32[b.r10 - 4] = 1
        b.r1 = TIMED
        b.r2 = b.r10
        b.r2 += -4
        b.call(Helper.map_lookup_elem)
        b.r6 = b.r0
        b.r6 += 8
        b.r1 = b.r6
        b.r2 = TIMED
        b.r3 = 1
        b.call(Helper.timer_init)
        b.r1 = b.r6
        b.r2 = tick
        b.call(Helper.timer_set_callback)
        b.r1 = b.r6
        b.r2 = 100
        b.r3 = 0
        b.call(Helper.timer_start)
        b.exit()

    for change in ("delete", "replace"):
        emulator = Emulator()
        program = emulator.load(prog.build())
        table = emulator.map(TIMED)
        table[1] = {"count": 0}
        assert program.run(Skb(bytes(64))).r0 == 0
        if change == "delete":
            del table[1]
        else:
            table[1] = {"count": 7}
        assert emulator.pending_timers == 0
        assert emulator.advance(1000) == 0
    assert table[1].count == 7


def test_a_timer_is_no_memory_for_programs() -> None:
    @sched_cls(name="prog")
    def prog(b: Asm, ctx: SkBuff) -> None:
        b.u32[b.r10 - 4] = 1
        b.r1 = TIMED
        b.r2 = b.r10
        b.r2 += -4
        b.call(Helper.map_lookup_elem)
        b.r2 = b.u64[b.r0 + 8]
        b.ret(0)

    emulator = Emulator()
    program = emulator.load(prog.build())
    emulator.map(TIMED)[1] = {"count": 0}
    with pytest.raises(EmulatorFault, match="bytes 8 to 23 of map timed's value are a bpf_timer"):
        program.run(Skb(bytes(64)))


def test_a_pointer_to_a_replaced_value_keeps_the_old_one() -> None:
    @sched_cls(name="prog")
    def prog(b: Asm, ctx: SkBuff) -> None:
        b.u32[b.r10 - 4] = 0
        b.u64[b.r10 - 16] = 9
        b.r1 = HASH
        b.r2 = b.r10
        b.r2 += -4
        b.call(Helper.map_lookup_elem)
        b.r6 = b.r0
        b.r1 = HASH
        b.r2 = b.r10
        b.r2 += -4
        b.r3 = b.r10
        b.r3 += -16
        b.r4 = 0
        b.call(Helper.map_update_elem)
        b.r0 = b.u64[b.r6]
        b.exit()

    emulator = Emulator()
    program = emulator.load(prog.build())
    emulator.map(HASH)[bytes(4)] = 5
    assert program.run(Skb(bytes(64))).value == 5
    assert emulator.map(HASH)[bytes(4)] == 9


def test_maps_that_programs_only_read() -> None:
    config = MapSpec("config", MapType.ARRAY, U32(), U64(), 1, flags=BPF_F_RDONLY_PROG)

    @sched_cls(name="prog")
    def prog(b: Asm, ctx: SkBuff) -> None:
        b.r1 = config.value_at(0)
        b.u64[b.r1] = 1
        b.ret(0)

    with pytest.raises(EmulatorFault, match="map config's value is read-only"):
        Emulator().load(prog.build()).run(Skb(bytes(64)))


@pytest.mark.parametrize("engine", ["interpret", "translate"])
def test_what_is_taken_must_be_given_back(engine: str) -> None:
    @sched_cls(name="prog")
    def prog(b: Asm, ctx: SkBuff) -> None:
        b.r1 = RING
        b.r2 = 8
        b.r3 = 0
        b.call(Helper.ringbuf_reserve)  # which is told
        b.ret(0)

    line = 1 + Path(__file__).read_text().splitlines().index(
        "        b.call(Helper.ringbuf_reserve)  # which is told"
    )
    told = rf"test_maps\.py:{line}: prog ends and still holds a record of a ring buffer"
    with pytest.raises(EmulatorError, match=told):
        Emulator(engine=engine).load(prog.build()).run(Skb(bytes(64)))


def test_tail_calls() -> None:
    programs = MapSpec("programs", MapType.PROG_ARRAY, U32(), U32(), 2)

    @sched_cls(name="first")
    def first(b: Asm, ctx: SkBuff) -> None:
        b.r6 = b.r1
        b.r2 = programs
        b.r3 = 1
        b.call(Helper.tail_call)
        b.ret(5)

    @sched_cls(name="second")
    def second(b: Asm, ctx: SkBuff) -> None:
        b.r0 = ctx.len
        b.exit()

    @sched_cls(name="again")
    def again(b: Asm, ctx: SkBuff) -> None:
        b.r2 = ctx.mark
        b.r2 += 1
        ctx.mark = b.r2
        b.r2 = programs
        b.r3 = 1
        b.call(Helper.tail_call)
        b.ret(5)

    for engine in ("interpret", "translate"):
        emulator = Emulator(engine=engine)
        program = emulator.load(first.build())
        assert program.run(Skb(bytes(64))).value == 5
        emulator.map(programs)[1] = emulator.load(second.build())
        assert program.run(Skb(bytes(64))).value == 64
        looping = emulator.load(again.build())
        emulator.map(programs)[1] = looping
        result = looping.run(Skb(bytes(64)))
        assert result.value == 5 and result.context is not None
        assert result.context["mark"] == 34  # the first run and 33 tail calls


def test_maps_begin_with_what_their_specs_say() -> None:
    constants = MapSpec(
        ".rodata", MapType.ARRAY, U32(), U64(), 1, flags=BPF_F_RDONLY_PROG, contents=(5).to_bytes(8, "little")
    )
    inner = MapSpec("inner", MapType.ARRAY, U32(), U64(), 1)
    outer = MapSpec("outer", MapType.ARRAY_OF_MAPS, U32(), U32(), 2, inner=inner, initial=((1, "inner"),))
    programs = MapSpec("programs", MapType.PROG_ARRAY, U32(), U32(), 2, initial=((1, "second"),))

    @sched_cls(name="first")
    def first(b: Asm, ctx: SkBuff) -> None:
        b.r2 = programs
        b.r3 = 1
        b.call(Helper.tail_call)
        b.ret(0)

    @sched_cls(name="second")
    def second(b: Asm, ctx: SkBuff) -> None:
        b.r1 = constants.value_at(0)
        b.r0 = b.u64[b.r1]
        b.exit()

    emulator = Emulator()
    program = emulator.load(first.build())
    assert program.run(Skb(bytes(64))).value == 0
    emulator.load(second.build())
    assert program.run(Skb(bytes(64))).value == 5
    assert errno_of(emulator.map(".rodata").update, 0, 6) == 1  # EPERM
    assert emulator.map(outer).lookup(1) is None
    assert emulator.map(inner) is emulator.map(outer)[1]


def test_sk_lookup_assigns() -> None:
    listeners = MapSpec("listeners", MapType.SOCKMAP, U32(), 8, 1)

    @sk_lookup(name="steer")
    def steer(b: Asm, ctx: SkLookup) -> None:
        b.r6 = ctx
        ctx = SkLookup(b.r6)
        b.r2 = ctx.local_port
        b.If(b.r2 != 8000).goto("pass")
        b.u32[b.r10 - 4] = 0
        b.r1 = listeners
        b.r2 = b.r10
        b.r2 += -4
        b.call(Helper.map_lookup_elem)
        b.If(b.r0 == 0).goto("pass")
        b.r7 = b.r0
        b.r1 = b.r6
        b.r2 = b.r7
        b.r3 = 0
        b.call(Helper.sk_assign)
        b.r6 = b.r0
        b.r1 = b.r7
        b.call(Helper.sk_release)
        b.If(b.r6 != 0).goto("drop")
        b.label("pass")
        b.ret(1)
        b.label("drop")
        b.ret(0)

    emulator = Emulator()
    program = emulator.load(steer.build())
    envoy = Socket(state=TcpState.LISTEN, src=bytes(4), src_port=15006)
    emulator.map(listeners)[0] = envoy
    context = SkLookupContext(bytes([9, 9, 9, 9]), 1234, bytes([10, 0, 0, 2]), 8000)
    assert program.run(context).value == 1 and context.assigned is envoy
    other = SkLookupContext(bytes([9, 9, 9, 9]), 1234, bytes([10, 0, 0, 2]), 22)
    assert program.run(other).value == 1 and other.assigned is None
    v6 = SkLookupContext(bytes(16), 1234, bytes(16), 8000)
    assert program.run(v6).value == 0 and v6.assigned is None  # EAFNOSUPPORT


def test_what_a_map_refuses_says_why() -> None:
    """In the words that there are for maps of the kernel, also where the machine is big-endian."""
    emulator = Emulator(byteorder="big")
    trie = emulator.map(MapSpec("trie", MapType.LPM_TRIE, 8, 4, 2, BPF_F_NO_PREALLOC))
    for operation in (
        lambda: trie.update((33).to_bytes(4, "big") + bytes(4), 1),
        lambda: trie.delete(33 << 32),
    ):
        with pytest.raises(MapError, match="EINVAL: prefixlen is 33, and the data of a key have 32 bits"):
            operation()
    one = emulator.map(MapSpec("one", MapType.HASH, 4, 4, 1))
    one[1] = 1
    with pytest.raises(MapError, match=r"update of 2: E2BIG: it is full, with 1 keys: delete some"):
        one[2] = 1
    with pytest.raises(MapError, match=r"ENOENT: with BPF_EXIST only a key that is there"):
        one.update(2, 1, BPF_EXIST)
    array = emulator.map(MapSpec("array", MapType.ARRAY, 4, 4, 1))
    with pytest.raises(MapError, match=r"E2BIG: index 1 is behind the end: the last one is 0"):
        array[1] = 1
    with pytest.raises(MapError, match=r"delete of 0: EINVAL: .* always there: store zeros instead"):
        del array[0]
