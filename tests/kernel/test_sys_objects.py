# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Maps, programs and BTF: what goes into the kernel comes out of it as it was."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import socket
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from loader import objects
from loader import sys as bpf_sys
from loader.bpffs import BpfFs
from loader.errors import BpfError, KernelFeatureError, UsageError
from loader.objects import Btf, Map, Program, Stats, possible_cpus
from loader.verifier import VerifierError
from pybpfasm.asm import Asm
from pybpfasm.errors import LayoutError
from pybpfasm.kernel.context import SkBuff, SkMsgMd
from pybpfasm.kernel.enums import (
    BPF_EXIST,
    BPF_F_NO_PREALLOC,
    BPF_NOEXIST,
    AttachType,
    Helper,
    MapType,
    ProgType,
    TcxAction,
)
from pybpfasm.layout import U8, U16, U32, U64, Array, Be16, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import sched_cls, sk_msg
from tests.requires import Attempt, requires


class Key(Struct):
    """A key with network byte order in it."""

    client = Array(U8(), 16)
    port = Be16()
    pad = U16()


class Value(Struct):
    """Two counters."""

    packets = U64()
    bytes = U64()


FLOWS = MapSpec("flows", MapType.HASH, Key, Value, 64)
NUMBERS = MapSpec("numbers", MapType.HASH, U32(), U64(), 300)
COUNTS = MapSpec("counts", MapType.PERCPU_ARRAY, U32(), U64(), 4)


@sched_cls(AttachType.TCX_INGRESS)
def answer(b: Asm, ctx: SkBuff, verdict: int) -> None:
    b.r0 = verdict
    b.exit()


@sched_cls(AttachType.TCX_INGRESS)
def set_mark(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.mark
    b.r2 += 1
    ctx.mark = b.r2
    b.r0 = TcxAction.PASS
    b.exit()


@sched_cls(AttachType.TCX_INGRESS)
def count(b: Asm, ctx: SkBuff) -> None:
    b.r1 = 0
    b.u32[b.r10 - 4] = b.r1
    b.r1 = NUMBERS
    b.r2 = b.r10
    b.r2 += -4
    b.call(Helper.map_lookup_elem)
    b.r0 = TcxAction.PASS
    b.exit()


@sched_cls(AttachType.TCX_INGRESS)
def unchecked(b: Asm, ctx: SkBuff) -> None:
    b.r6 = ctx.data
    b.r0 = b.u8[b.r6]
    b.exit()


@sk_msg()
def pass_all(b: Asm, ctx: SkMsgMd) -> None:
    b.r0 = 1
    b.exit()


# --- ownership ----------------------------------------------------------------------------------------------


def test_descriptors_are_closed_on_exec_and_once() -> None:
    owned = Map.create(NUMBERS)
    fd = owned.fd
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    owned.close()
    with pytest.raises(OSError) as caught:
        os.fstat(fd)
    assert caught.value.errno == errno.EBADF
    taken = os.open("/dev/null", os.O_RDONLY)  # very likely gets the number that is free now
    try:
        owned.close()
        os.fstat(taken)
    finally:
        os.close(taken)
    with pytest.raises(ValueError, match="closed"):
        _ = owned.fd


def test_descriptor_0_is_not_used() -> None:
    # The kernel takes 0 for "no descriptor" in several places.
    script = (
        "import os; os.close(0)\n"
        "from loader.objects import Map; from pybpfasm.maps import MapSpec, MapType\n"
        "with Map.create(MapSpec('m', MapType.HASH, 4, 4, 1)) as m:\n"
        "    print(m.fd > 2, m.info().btf_id > 0, end='')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, cwd=root
    )
    assert done.stdout == "True True"


def test_a_lost_object_warns_and_closes() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fd = Map.create(NUMBERS).fd
        gc.collect()
    assert any(w.category is ResourceWarning and "numbers" in str(w.message) for w in caught)
    with pytest.raises(OSError):
        os.fstat(fd)


def test_release_hands_the_descriptor_over() -> None:
    fd = Map.create(NUMBERS).release()
    os.close(fd)  # would fail if the object had closed it


# --- maps ---------------------------------------------------------------------------------------------------


def test_typed_access_keeps_byte_order_and_raw_bytes_pass() -> None:
    with Map.create(FLOWS) as flows:
        key = {"client": bytes(range(16)), "port": 8000, "pad": 0}
        flows[key] = {"packets": 3, "bytes": 4000}
        raw = bytes(range(16)) + (8000).to_bytes(2, "big") + b"\0\0"
        assert flows.lookup_raw(raw) == struct.pack("=QQ", 3, 4000)
        assert flows[raw].bytes == 4000
        ((found, value),) = flows.items()
        assert (found.port, value.packets) == (8000, 3)
        flows.update(found, value, BPF_EXIST)
        assert key in flows
        assert flows.delete(found) is True
        assert flows.delete(found) is False
        assert flows.lookup(key) is None
        with pytest.raises(KeyError):
            _ = flows[key]
        with pytest.raises(LayoutError, match="has 5 bytes, the map takes 20"):
            flows.lookup(b"short")


def test_update_flags_and_a_full_map() -> None:
    with Map.create(NUMBERS, max_entries=2) as numbers:
        numbers.update(1, 10, BPF_NOEXIST)
        with pytest.raises(BpfError, match=r"numbers.*EEXIST"):
            numbers.update(1, 11, BPF_NOEXIST)
        with pytest.raises(BpfError) as caught:
            numbers.update(2, 11, BPF_EXIST)
        assert caught.value.errno == errno.ENOENT
        numbers.update(2, 20)
        with pytest.raises(BpfError) as caught:
            numbers.update(3, 30)
        assert (caught.value.errno, caught.value.command) == (errno.E2BIG, "MAP_UPDATE_ELEM")
        assert dict(numbers.items()) == {1: 10, 2: 20}


@pytest.mark.parametrize("batched", [True, False])
def test_many_entries(batched: bool) -> None:
    expected = {i * 7: i for i in range(300)}
    with Map.create(NUMBERS) as numbers:
        numbers._batch_works = batched
        assert numbers.update_many(expected) == 300
        assert dict(numbers.items()) == expected
        assert sorted(numbers.keys()) == sorted(expected)
        # Pages far smaller than the map: a bucket that does not fit must not lose or double an entry.
        assert len({key for key, _ in numbers.items_raw(batch=1)}) == 300
        assert numbers.count() == 300
        assert numbers.delete_many([0, 5, 7, 6, 14]) == 3  # 5 and 6 were never there
        assert numbers.count() == 297
        drained = dict(numbers.drain_raw(batch=8))
        assert len(drained) == 297
        assert numbers.count() == 0
        assert numbers._batch_works is batched


def test_batches_fall_back_where_the_map_type_has_none() -> None:
    spec = MapSpec("socks", MapType.SOCKHASH, 8, 8, 4)
    with Map.create(spec) as socks:
        assert list(socks.items()) == []
        assert socks._batch_works is False
        assert socks.clear() == 0


def test_reading_while_it_changes_ends() -> None:
    with Map.create(NUMBERS) as numbers:
        numbers.update_many({i: i for i in range(100)})
        for key in numbers:  # each deletion of the key at hand starts the kernel's walk anew
            numbers.delete(key)
        assert numbers.count() == 0


def test_per_cpu_values() -> None:
    with Map.create(COUNTS) as counts:
        cpus = possible_cpus()
        assert counts.lookup(1) == [0] * cpus
        counts.update(1, list(range(cpus)))
        counts.update(2, 9)
        assert counts.lookup(1) == list(range(cpus))
        assert counts.lookup(2) == [9] * cpus
        assert [sum(values) for values in counts.values()] == [0, sum(range(cpus)), 9 * cpus, 0]
        with pytest.raises(UsageError, match="each possible CPU"):
            counts.update(1, [0] * (cpus + 1))


def test_per_cpu_values_that_are_no_multiple_of_eight_bytes() -> None:
    # The kernel rounds each CPU's value up to 8 bytes.
    with Map.create(MapSpec("small", MapType.PERCPU_HASH, U32(), U32(), 4)) as small:
        expected = [1000 + cpu for cpu in range(possible_cpus())]
        small.update(1, expected)
        assert small.lookup(1) == expected
        assert list(small.items()) == [(1, expected)]


def pop_of_a_hash() -> None:
    with Map.create(NUMBERS) as numbers:
        numbers.pop(5)


@requires(Attempt("BPF_MAP_LOOKUP_AND_DELETE_ELEM of a hash", (5, 14), pop_of_a_hash))
def test_pop() -> None:
    with Map.create(NUMBERS) as numbers:
        numbers[5] = 50
        assert numbers.pop(5) == 50
        assert numbers.pop(5) is None


def test_pop_of_a_queue() -> None:
    with Map.create(MapSpec("queue", MapType.QUEUE, None, U32(), 4)) as queue:
        queue.update(None, 1)
        queue.update(None, 2)
        assert [queue.pop(), queue.pop(), queue.pop()] == [1, 2, None]


def test_freeze() -> None:
    with Map.create(NUMBERS) as numbers:
        numbers[1] = 1
        numbers.freeze()
        with pytest.raises(BpfError) as caught:
            numbers[1] = 2
        assert caught.value.errno == errno.EPERM
        assert numbers[1] == 1


def test_info_btf_and_lookup_by_id() -> None:
    with Map.create(FLOWS) as flows:
        info = flows.info()
        assert (info.name, info.type, info.key_size, info.value_size) == ("flows", MapType.HASH, 20, 16)
        assert (info.max_entries, info.btf_key_type_id > 0, info.btf_id > 0) == (64, True, True)
        assert info.id in set(objects.maps())
        assert info.btf_id in set(objects.btfs())
        described = FLOWS.btf()
        assert described is not None
        with Btf.from_id(info.btf_id) as btf:
            assert btf.data() == described[0]
            assert not btf.info().is_kernel
        flows[bytes(20)] = bytes(16)
        with Map.from_id(info.id, FLOWS) as again:
            assert again[bytes(20)].packets == 0
        with pytest.raises(UsageError, match=r"keys of 20 .*'numbers'"):
            Map.from_id(info.id, NUMBERS)
    with pytest.raises(BpfError) as caught:
        Map.from_id(info.id)
    assert caught.value.errno == errno.ENOENT


def test_map_of_maps() -> None:
    spec = MapSpec("outer", MapType.HASH_OF_MAPS, U32(), U32(), 4, inner=NUMBERS)
    with Map.create(spec) as outer, Map.create(NUMBERS) as inner:
        outer[1] = inner.fd
        assert outer[1] == inner.id  # reading gives the id
        outer[2] = inner
        assert outer[2] == inner.id


def test_programs_and_sockets_in_maps() -> None:
    """As what has a descriptor, or as the descriptor."""
    programs = MapSpec("programs", MapType.PROG_ARRAY, U32(), U32(), 2)
    storage = MapSpec("storage", MapType.SK_STORAGE, U32(), U64(), 0, BPF_F_NO_PREALLOC)
    with Map.create(programs) as table, Program.load(answer.build(7)) as program:
        table[0] = program
        table[1] = program.fd
        assert (table[0], table[1]) == (program.id, program.id)
    with Map.create(storage) as kept, socket.socket() as one, socket.socket() as other:
        kept[one] = 5
        assert kept[one] == kept[one.fileno()] == 5
        assert one in kept and other not in kept
        del kept[one.fileno()]
        assert one not in kept


@sched_cls()
def counts_flows(b: Asm, ctx: SkBuff) -> None:
    b.r1 = FLOWS
    b.r1 = COUNTS
    b.ret(0)


def test_a_program_gets_its_maps_by_name_or_in_a_list() -> None:
    spec = counts_flows.build()
    with Map.create(FLOWS) as flows, Map.create(COUNTS) as counts, Map.create(NUMBERS) as more:
        given: dict[str, Map | int] = {"flows": flows, "counts": counts.fd}
        Program.load(spec, given).close()
        Program.load(spec, [more, counts, flows]).close()
        with pytest.raises(
            UsageError, match="'counts_flows' names map 'flows', which it was not given"
        ) as caught:
            Program.load(spec)
        assert 'Program.load(spec, {"flows": Map.create(…)})' in caught.value.hint
        with pytest.raises(UsageError, match="map 'counts', which it was not given; did you mean 'count'"):
            Program.load(spec, {"flows": flows, "count": counts})
        with pytest.raises(UsageError, match="was given for 'flows' is a ") as caught:
            Program.load(spec, {"flows": counts, "counts": counts})
    not_built: Any = counts_flows
    with pytest.raises(UsageError, match="counts_flows is no program that could be loaded") as caught:
        Program.load(not_built)
    assert "counts_flows.build(" in caught.value.hint


def test_creating_what_cannot_be_says_what_it_was() -> None:
    spec = MapSpec("wrong", MapType.ARRAY, 8, 8, 4)  # the key of an array is 4 bytes
    with pytest.raises(BpfError, match=r"map 'wrong' \(array, keys of 8 bytes.*EINVAL") as caught:
        Map.create(spec)
    assert caught.value.hint == "an ARRAY takes keys of 4 bytes, not of 8"


def test_bad_btf_is_refused_with_the_kernels_reason() -> None:
    described = FLOWS.btf()
    assert described is not None
    broken = bytearray(described[0])
    broken[24 + 4 + 3] = 0x1F  # an unknown kind in the first type's info
    with pytest.raises(BpfError, match=r"BTF_LOAD.*\(.+\)"):
        Btf.load(bytes(broken))


def test_a_map_that_does_not_fit_the_memlock_limit_gets_a_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers, raised = bpf_sys.map_create, [errno.EPERM], []

    def map_create(*args: Any, **kwargs: Any) -> int:
        if answers:
            raise BpfError(answers.pop(), "MAP_CREATE")  # as before 5.11
        return real(*args, **kwargs)

    def raise_memlock() -> bool:
        raised.append(True)
        return True

    monkeypatch.setattr(bpf_sys, "map_create", map_create)
    monkeypatch.setattr("loader.objects.map.raise_memlock", raise_memlock)
    with Map.create(NUMBERS) as numbers:
        assert numbers.name == "numbers"
    assert raised == [True]
    answers += [errno.EPERM, errno.EPERM]
    with pytest.raises(BpfError, match="EPERM") as caught:
        Map.create(NUMBERS)
    assert "RLIMIT_MEMLOCK" in caught.value.hint
    assert raised == [True, True]


# --- programs -----------------------------------------------------------------------------------------------


def test_load_run_and_info() -> None:
    with Program.load(answer.build(7)) as program:
        run = program.test_run(bytes(64))
        assert (run.retval, run.data) == (7, bytes(64))
        info = program.info()
        assert (info.name, info.type, info.xlated_len, info.map_ids) == ("answer", ProgType.SCHED_CLS, 16, ())
        assert len(info.tag) == 8 and info.jited_len > 0 and info.gpl_compatible and info.btf_id > 0
        assert info.id in set(objects.programs())
        assert program.xlated() == answer.build(7).code()
        with Program.from_id(info.id) as again:
            assert again.info().tag == info.tag
        with pytest.raises(BpfError) as caught:
            program.test_run(bytes(13))
        assert caught.value.errno == errno.EINVAL and "14 bytes at least" in caught.value.hint
    with Program.load(answer.build(TcxAction.NEXT)) as program:
        run = program.test_run(bytes(64))
        assert (run.retval, run.action) == (0xFFFFFFFF, TcxAction.NEXT)


def test_the_context_goes_in_and_comes_out() -> None:
    with Program.load(set_mark.build()) as program:
        context = bytearray(SkBuff.sizeof)
        at = SkBuff.offsetof("mark")
        struct.pack_into("=I", context, at, 41)
        run = program.test_run(bytes(64), bytes(context))
        assert struct.unpack_from("=I", run.ctx, at) == (42,)


def test_repeat_and_statistics() -> None:
    with Program.load(answer.build(0)) as program, Stats.enable():
        before = program.info()
        program.test_run(bytes(64), repeat=500)
        after = program.info()
    assert after.run_cnt - before.run_cnt == 500
    assert after.run_time_ns > before.run_time_ns


def test_a_programs_maps_are_those_that_it_was_given() -> None:
    with Map.create(NUMBERS) as numbers, Program.load(count.build(), {"numbers": numbers}) as program:
        assert program.info().map_ids == (numbers.id,)


def test_what_cannot_be_run_by_test_run_is_named() -> None:
    with Program.load(pass_all.build()) as program:
        with pytest.raises(KernelFeatureError, match="SK_MSG"):
            program.test_run(bytes(64))


def test_a_rejection_names_the_python_line() -> None:
    with pytest.raises(VerifierError) as caught:
        Program.load(unchecked.build())
    error = caught.value
    assert error.location is not None
    assert error.location.text == "b.r0 = b.u8[b.r6]"
    assert "invalid access to packet" in error.reason
    assert f"{Path(__file__).name}:{error.location.line}: b.r0 = b.u8[b.r6]" in str(error)
    assert error.registers()["r6"].startswith("pkt(")
    assert "processed" in error.log


def test_a_log_is_there_on_demand() -> None:
    with Program.load(answer.build(0), log_level=2) as program:
        assert "processed 2 insns" in program.log
        assert "b.r0 = verdict" in program.log


def test_a_log_longer_than_the_first_buffer_is_whole() -> None:
    @sched_cls(AttachType.TCX_INGRESS)
    def long(b: Asm, ctx: SkBuff) -> None:
        b.r0 = 0
        for _ in range(4000):  # of 18 bytes each before 5.12
            b.r0 += 1
        b.r0 = b.u8[b.r0]
        b.exit()

    with pytest.raises(VerifierError) as caught:
        Program.load(long.build())
    assert len(caught.value.log) > 1 << 16
    assert caught.value.parsed.processed == 4002
    assert caught.value.slot == 4001
    assert caught.value.log.startswith("0: ") or "\n0: " in caught.value.log[:2000]


def test_an_empty_program_is_explained() -> None:
    class Empty:
        """A program without instructions."""

        name, type, expected_attach_type, license, prog_flags = "empty", ProgType.SCHED_CLS, None, "GPL", 0

        def code(self, map_fds: object = None) -> bytes:
            return b""

        def btf(self) -> bytes:
            return b""

        func_info = line_info = btf

        def location(self, slot: int) -> None:
            return None

    with pytest.raises(BpfError, match=r"E2BIG|EINVAL"):
        Program.load(Empty())


# --- pins ---------------------------------------------------------------------------------------------------


def test_pins_keep_objects_and_know_their_kind(bpffs: BpfFs) -> None:
    with Map.create(NUMBERS) as numbers, Program.load(answer.build(3)) as program:
        numbers[1] = 11
        numbers.pin(bpffs.root / "numbers")
        program.pin(bpffs.root / "answer")
        with pytest.raises(BpfError) as caught:
            numbers.pin(bpffs.root / "numbers")
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(BpfError) as caught:
            numbers.pin(bpffs.root / "a.b")
        assert "dot" in caught.value.hint
    with Map.from_pin(bpffs.root / "numbers", NUMBERS) as numbers:
        assert numbers[1] == 11
    with Program.from_pin(bpffs.root / "answer") as program:
        assert program.test_run(bytes(64)).retval == 3
    with objects.open_pin(bpffs.root / "answer") as found:
        assert isinstance(found, Program)
    with pytest.raises(UsageError, match="is a pinned program, not a map"):
        Map.from_pin(bpffs.root / "answer")
    with pytest.raises(BpfError, match=r"ENOENT"):
        Map.from_pin(bpffs.root / "none")
