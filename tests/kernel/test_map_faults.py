# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the kernel refuses of a map says what was wrong and what to do: each is provoked."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from loader.bpffs import BpfFs
from loader.errors import ENOTSUPP, BpfError
from loader.objects import Map
from pybpfasm.errors import LayoutError
from pybpfasm.kernel.enums import (
    BPF_EXIST,
    BPF_F_LOCK,
    BPF_F_NO_PREALLOC,
    BPF_F_RDONLY,
    BPF_F_WRONLY,
    BPF_NOEXIST,
    MapType,
)
from pybpfasm.kernel.values import BpfSpinLock
from pybpfasm.layout import U8, U32, U64, Array, Nested, Struct
from pybpfasm.maps import MapSpec
from tests.requires import Attempt, requires


class Prefix(Struct):
    """The key of a trie of IPv4 prefixes."""

    prefixlen = U32()
    net = Array(U8(), 4)


class Locked(Struct):
    """A value with a lock."""

    lock = Nested(BpfSpinLock)
    count = U32()


WORD = U32()


def spec(kind: MapType, *, value: Any = WORD, key: Any = WORD, flags: int = 0) -> MapSpec:
    return MapSpec(kind.name.lower()[:15], kind, key, value, 2, flags=flags)


HASH, ARRAY = spec(MapType.HASH), spec(MapType.ARRAY)
LPM = spec(MapType.LPM_TRIE, key=Prefix, flags=BPF_F_NO_PREALLOC)
QUEUE = spec(MapType.QUEUE, key=None)
BLOOM = spec(MapType.BLOOM_FILTER, key=None)
RING = MapSpec("ring", MapType.RINGBUF, None, None, 1 << 16)
MAPS = MapSpec("maps", MapType.ARRAY_OF_MAPS, U32(), U32(), 2, inner=HASH)
STORAGE = MapSpec("storage", MapType.SK_STORAGE, U32(), U32(), 0, flags=BPF_F_NO_PREALLOC)


def prefix(length: int) -> dict[str, Any]:
    return {"prefixlen": length, "net": [10, 0, 0, 0]}


def fill(one: Map) -> None:
    for key in (1, 2):
        one.update({MapType.LPM_TRIE: prefix(key), MapType.QUEUE: None}.get(MapType(one.type), key), 7)


def one_entry(one: Map) -> None:
    one.update(1, 1)


class Case(NamedTuple):
    """An operation on a map, the errno, and what the hint says."""

    spec: MapSpec
    operation: Callable[[Map], object]
    code: int
    hint: str
    before: Callable[[Map], object] = lambda one: None


READS, WRITES = (spec(MapType.HASH, flags=flag) for flag in (BPF_F_RDONLY, BPF_F_WRONLY))
PROGRAMS, SOCKETS, CPUS = spec(MapType.PROG_ARRAY), spec(MapType.SOCKMAP), spec(MapType.CPUMAP)
EINVAL, E2BIG, EPERM, EEXIST = errno.EINVAL, errno.E2BIG, errno.EPERM, errno.EEXIST

CASES = {
    "hash: full": Case(HASH, lambda m: m.update(3, 3), E2BIG, "full, with 2 keys: .* LRU_HASH", fill),
    "hash: there": Case(HASH, lambda m: m.update(1, 3, BPF_NOEXIST), EEXIST, "is there: BPF_ANY", fill),
    "hash: not there": Case(
        HASH, lambda m: m.update(1, 3, BPF_EXIST), errno.ENOENT, "is not: BPF_ANY stores"
    ),
    "hash: flags": Case(HASH, lambda m: m.update(1, 3, 3), EINVAL, r"flags=3 is none of BPF_ANY \(0\)"),
    "hash: lock": Case(HASH, lambda m: m.update(1, 3, BPF_F_LOCK), EINVAL, "values have a spin lock"),
    "hash: look-up": Case(HASH, lambda m: m.lookup(1, flags=1), EINVAL, "a look-up takes 0 or BPF_F_LOCK"),
    "hash: look-up, lock": Case(HASH, lambda m: m.lookup(1, flags=BPF_F_LOCK), EINVAL, "have a spin lock"),
    "hash: many": Case(
        HASH, lambda m: m.update_many({1: 1, 2: 2, 3: 3}), E2BIG, "full, with 2 .*; 2 of 3 entries are stored"
    ),
    "hash: many, there": Case(
        HASH,
        lambda m: m.update_many({9: 1, 1: 3}, BPF_NOEXIST),
        EEXIST,
        "1 of 2 entries are stored",
        one_entry,
    ),
    "locked: flags": Case(
        spec(MapType.HASH, value=Locked),
        lambda m: m.update(1, {"count": 1}, BPF_F_LOCK | 3),
        EINVAL,
        "flags=7 is",
    ),
    "array: index": Case(
        ARRAY, lambda m: m.update(2, 3), E2BIG, "index 2 is behind the end: the last one is 1"
    ),
    "array: many": Case(
        ARRAY,
        lambda m: m.update_many({0: 1, 9: 1}),
        E2BIG,
        "index 9 is behind .* is 1; 1 of 2 entries are stored",
    ),
    "array: there": Case(ARRAY, lambda m: m.update(0, 3, BPF_NOEXIST), EEXIST, "always there: use BPF_ANY"),
    "array: delete": Case(ARRAY, lambda m: m.delete(0), EINVAL, "always there: store zeros"),
    "array: delete many": Case(ARRAY, lambda m: m.delete_many([0]), EINVAL, "always there: store"),
    "array: clear": Case(ARRAY, lambda m: m.clear(), EINVAL, "always there: store zeros"),
    "array: pop": Case(ARRAY, lambda m: m.pop(0), ENOTSUPP, "always there: store zeros"),
    "trie: prefix": Case(LPM, lambda m: m.update(prefix(33), 1), EINVAL, "prefixlen is 33, .* have 32 bits"),
    "trie: delete": Case(LPM, lambda m: m.delete(prefix(40)), EINVAL, "prefixlen is 40, .* have 32 bits"),
    "trie: many": Case(
        LPM, lambda m: m.update_many([(prefix(8), 1), (prefix(33), 1)]), EINVAL, "prefixlen is 33, .*; 1 of 2"
    ),
    "trie: full": Case(
        LPM, lambda m: m.update(prefix(3), 1), errno.ENOSPC, "full, with 2 keys: delete", fill
    ),
    "trie: pop": Case(LPM, lambda m: m.pop(prefix(3)), ENOTSUPP, r"in one step: lookup\(\), then delete\(\)"),
    "queue: full": Case(
        QUEUE, lambda m: m.update(None, 1), E2BIG, r"full, with 2 values: pop\(\) some", fill
    ),
    "queue: flags": Case(
        QUEUE, lambda m: m.update(None, 1, BPF_NOEXIST), EINVAL, "BPF_EXIST to drop the oldest"
    ),
    "queue: delete": Case(QUEUE, lambda m: m.delete(b""), EINVAL, r"no keys: pop\(\) takes a value"),
    "queue: keys": Case(QUEUE, list, EINVAL, r"no keys: pop\(\) gives its values"),
    "ring: look-up": Case(RING, lambda m: m.lookup(b""), ENOTSUPP, "no entries: loader.objects.RingBuffer"),
    "ring: keys": Case(RING, list, ENOTSUPP, "no entries: loader.objects.RingBuffer reads"),
    "programs: map": Case(PROGRAMS, lambda m: m.update(0, m), EINVAL, "the value is a program .* no map"),
    "programs: flags": Case(PROGRAMS, lambda m: m.update(0, m, BPF_NOEXIST), EINVAL, "takes BPF_ANY only"),
    "programs: closed": Case(
        PROGRAMS, lambda m: m.update(0, 0xFFFF), errno.EBADF, "is an open descriptor, or"
    ),
    "maps: another": Case(MAPS, lambda m: m.update(0, m), EINVAL, "type, sizes and flags of the inner map"),
    "devices": Case(spec(MapType.DEVMAP), lambda m: m.update(0, 0x7FFFFFFF), EINVAL, "no interface of this"),
    "CPUs": Case(CPUS, lambda m: m.update(0, 16385), errno.EOVERFLOW, "at most 16384 frames"),
    "sockets: file": Case(SOCKETS, lambda m: m.update(0, m), errno.ENOTSOCK, "of a SOCKMAP is a socket"),
    "sockets: closed": Case(
        SOCKETS, lambda m: unconnected(m), errno.EOPNOTSUPP, "that are connected or listen"
    ),
    "sockets: index": Case(SOCKETS, lambda m: m.delete(2), EINVAL, "index 2 is behind the end"),
    "sockets: look-up": Case(SOCKETS, lambda m: m.lookup(0), errno.ENOSPC, r"values of 8 bytes, U64\(\)"),
    "storage: key": Case(
        STORAGE, lambda m: m.update(m.fd, 1), errno.ENOTSOCK, "key of an SK_STORAGE is a soc"
    ),
    "storage: keys": Case(STORAGE, list, ENOTSUPP, "can't be listed: look it up by its object"),
    "frozen: update": Case(HASH, lambda m: m.update(1, 1), EPERM, r"is frozen: .* before freeze", Map.freeze),
    "frozen: many": Case(HASH, lambda m: m.update_many({1: 1}), EPERM, "the map is frozen", Map.freeze),
    "frozen: delete": Case(HASH, lambda m: m.delete(1), EPERM, "the map is frozen", Map.freeze),
    "frozen: pop": Case(HASH, lambda m: m.pop(1), EPERM, "the map is frozen", Map.freeze),
    "frozen: clear": Case(HASH, lambda m: m.clear(), EPERM, "the map is frozen", Map.freeze),
    "read-only: update": Case(READS, lambda m: m.update(1, 1), EPERM, r"only reads \(BPF_F_RDONLY\)"),
    "read-only: delete": Case(READS, lambda m: m.delete(1), EPERM, r"only reads \(BPF_F_RDONLY\)"),
    "write-only: look-up": Case(WRITES, lambda m: m.lookup(1), EPERM, r"only writes \(BPF_F_WRONLY\)"),
    "write-only: list": Case(WRITES, list, EPERM, r"only writes \(BPF_F_WRONLY\)"),
}


def unconnected(one: Map) -> None:
    with socket.socket() as plain:
        one.update(0, plain)


@pytest.mark.parametrize("which", CASES)
def test_what_was_wrong_and_what_to_do(which: str) -> None:
    case = CASES[which]
    with Map.create(case.spec) as one:
        case.before(one)
        with pytest.raises(BpfError) as caught:
            case.operation(one)
    assert caught.value.errno == case.code
    assert f"map '{case.spec.name}' failed" in str(caught.value)
    assert caught.match(case.hint)
    assert caught.value.hint in caught.value.__notes__


@requires(Attempt("a BLOOM_FILTER", (5, 16), lambda: Map.create(BLOOM).close()))
@pytest.mark.parametrize(
    ("operation", "hint"),
    [
        (lambda m: m.delete(b""), "nothing can be taken out of a BLOOM_FILTER"),
        (lambda m: m.pop(), "nothing can be taken out of a BLOOM_FILTER"),
        (list, "it only says of a value whether it may be there"),
    ],
)
def test_what_a_bloom_filter_has_not(operation: Callable[[Map], object], hint: str) -> None:
    with Map.create(BLOOM) as one, pytest.raises(BpfError, match=hint):
        operation(one)


def test_what_a_pin_was_opened_for(bpffs: BpfFs) -> None:
    """The rights are the descriptor's, not the map's."""
    path = f"{bpffs.root}/rights"
    with Map.create(HASH) as one:
        one.pin(path)
        try:
            with Map.from_pin(path, HASH, flags=BPF_F_RDONLY) as reads:
                one.update(1, 5)
                assert reads[1] == 5
                with pytest.raises(BpfError, match="this descriptor only reads"):
                    reads.update(1, 1)
        finally:
            os.unlink(path)


def test_how_many_were_stored() -> None:
    with Map.create(HASH) as one:
        with pytest.raises(BpfError) as caught:
            one.update_many({1: 1, 2: 2, 3: 3, 4: 4})
        assert (caught.value.stored, one.count()) == (2, 2)
        one.freeze()
        with pytest.raises(BpfError) as caught:
            one.update_many({1: 1, 2: 2})
        assert not caught.value.stored and dict(one.items()) == {1: 1, 2: 2}


def test_no_socket_at_an_index_is_no_error() -> None:
    with Map.create(spec(MapType.SOCKMAP, value=U64())) as one:
        assert one.delete(1) is False


def test_a_key_of_the_wrong_type_is_named() -> None:
    with Map.create(HASH) as one:
        with pytest.raises(LayoutError, match=r"^a key of map 'hash' takes an int, not NoneType$"):
            one.update(None, 1)
        with pytest.raises(LayoutError, match=r"^4294967296 does not fit a value of map 'hash', a "):
            one.update(1, 1 << 32)
