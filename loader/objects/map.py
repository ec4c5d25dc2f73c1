# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Maps in the kernel, with Python values going in and out."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from loader import sys as bpf_sys
from loader.capabilities import explain, missing_capabilities, raise_memlock
from loader.errors import ENOTSUPP, BpfError, LoaderError, UsageError
from loader.objects.btf import Btf
from loader.objects.mapfaults import about
from loader.objects.owned import Owned, PathLike, enum_or_int, open_id, open_kind
from pybpfasm.kernel.enums import BPF_ANY, BPF_F_RDONLY_PROG, Cmd, MapType
from pybpfasm.mapaccess import Entries, pack, unpack
from pybpfasm.maprules import refusal
from pybpfasm.maps import MapSpec


class MapLike(Protocol):
    """What :meth:`Map.create` needs to know of a map; :class:`pybpfasm.maps.MapSpec` is one."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> int: ...
    @property
    def key(self) -> Any: ...
    @property
    def value(self) -> Any: ...
    @property
    def key_size(self) -> int: ...
    @property
    def value_size(self) -> int: ...
    @property
    def max_entries(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def map_extra(self) -> int: ...
    @property
    def inner(self) -> Any: ...
    @property
    def contents(self) -> bytes | None: ...
    def btf(self) -> tuple[bytes, int, int] | None: ...


class MapInfo(NamedTuple):
    """What the kernel says of a map.

    Sizes in bytes, ``type`` a plain int where this release does not know it.
    """

    id: int
    type: int
    name: str
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    map_extra: int
    btf_id: int
    btf_key_type_id: int
    btf_value_type_id: int
    ifindex: int


_PER_CPU = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})
# What is stored in the one, and looked up by in the other, is given as a descriptor, or as what has one.
_OF_DESCRIPTORS = frozenset(
    {
        MapType.PROG_ARRAY,
        MapType.PERF_EVENT_ARRAY,
        MapType.CGROUP_ARRAY,
        MapType.ARRAY_OF_MAPS,
        MapType.HASH_OF_MAPS,
        MapType.SOCKMAP,
        MapType.SOCKHASH,
        MapType.XSKMAP,
        MapType.REUSEPORT_SOCKARRAY,
    }
)
_BY_DESCRIPTOR = frozenset(
    {MapType.SK_STORAGE, MapType.INODE_STORAGE, MapType.TASK_STORAGE, MapType.CGRP_STORAGE}
)
_NO_BATCH = frozenset({ENOTSUPP, errno.EOPNOTSUPP, errno.EINVAL})
BATCH = 1024


@lru_cache(maxsize=1)
def possible_cpus() -> int:
    """Return how many CPUs the kernel provides for: the number of values in an entry of a per-CPU map."""
    with open("/sys/devices/system/cpu/possible", encoding="ascii") as file:
        return parse_cpu_list(file.read())


def parse_cpu_list(text: str) -> int:
    """Return how many CPUs a list such as ``0-3,5`` names."""
    count = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


class Map(Owned, Entries):
    """A map in the kernel.

    Keys and values go in and come out as Python values where ``key`` and ``value`` say how they look (a
    :class:`pybpfasm.layout.Struct` class or a scalar field), and as bytes otherwise; bytes are accepted
    everywhere. An entry of a per-CPU map is a list with one value for each possible CPU; one value alone is
    stored for all.
    """

    kind = "map"

    def __init__(self, fd: int, *, key: Any = None, value: Any = None) -> None:
        super().__init__(fd)
        self._key = key
        self._value = value
        try:
            info = self.info()
        except BaseException:
            self.close()
            raise
        self.id = info.id
        self.type = info.type
        self.name = info.name
        self.key_size = info.key_size
        self.value_size = info.value_size
        self.max_entries = info.max_entries
        self.flags = info.flags
        self.per_cpu = info.type in _PER_CPU
        self._stride = (info.value_size + 7) // 8 * 8
        self._raw_size = self._stride * possible_cpus() if self.per_cpu else info.value_size
        self._batch_works = True

    @classmethod
    def create(cls, spec: MapLike, *, max_entries: int | None = None, inner: Map | None = None) -> Map:
        """Create the map that ``spec`` describes, with its BTF and the contents that it starts with.

        Read-only static data (``BPF_F_RDONLY_PROG``) is frozen: nobody can change it any more.

        ``max_entries`` overrules the spec's. The inner map of a map of maps is created from ``spec.inner`` as
        the template that the kernel wants, and closed again, unless ``inner`` is given.
        """
        template = inner
        if template is None and spec.inner is not None:
            template = cls.create(spec.inner)
        described = spec.btf()
        btf = Btf.load(described[0]) if described is not None else None
        try:
            fd = cls._create_fd(spec, max_entries, template, btf, described)
        finally:
            if btf is not None:
                btf.close()
            if template is not None and inner is None:
                template.close()
        made = cls(fd, key=spec.key, value=spec.value)
        if spec.contents is not None:
            try:
                made.update(bytes(4), spec.contents)
                if spec.flags & BPF_F_RDONLY_PROG:
                    made.freeze()
            except BaseException:
                made.close()
                raise
        return made

    @staticmethod
    def _create_fd(
        spec: MapLike,
        max_entries: int | None,
        template: Map | None,
        btf: Btf | None,
        described: tuple[bytes, int, int] | None,
    ) -> int:
        raised = False
        while True:
            try:
                return bpf_sys.map_create(
                    int(spec.type),
                    spec.key_size,
                    spec.value_size,
                    spec.max_entries if max_entries is None else max_entries,
                    name=spec.name,
                    flags=spec.flags,
                    map_extra=spec.map_extra,
                    inner_map_fd=0 if template is None else template.fd,
                    btf_fd=0 if btf is None else btf.fd,
                    btf_key_type_id=0 if described is None else described[1],
                    btf_value_type_id=0 if described is None else described[2],
                )
            except BpfError as error:
                if error.errno == errno.EPERM and not raised and not missing_capabilities(("CAP_BPF",)):
                    # Before 5.11 this also means that the map does not fit into RLIMIT_MEMLOCK.
                    raised = True
                    if raise_memlock():
                        continue
                raise _explain_map_create(error, spec) from None

    @classmethod
    def from_pin(cls, path: PathLike, spec: MapLike | None = None, *, flags: int = 0) -> Map:
        """Open a pinned map; with ``spec``, check that it is that map, and use its key and value types."""
        return cls._matching(open_kind(path, "map", flags), spec, os.fspath(path))

    @classmethod
    def from_id(cls, map_id: int, spec: MapLike | None = None) -> Map:
        """Open a map by its id, checked against ``spec`` as :meth:`from_pin` does it."""
        return cls._matching(open_id(Cmd.MAP_GET_FD_BY_ID, map_id, cls.kind), spec, f"map {map_id}")

    @classmethod
    def _matching(cls, fd: int, spec: MapLike | None, where: str) -> Map:
        if spec is None:
            return cls(fd)
        found = cls(fd, key=spec.key, value=spec.value)
        differs = unlike(found, spec)
        if differs:
            found.close()
            raise UsageError(
                f"{where} {differs}", hint="it was made by another version: take that instance down first"
            )
        return found

    def info(self) -> MapInfo:
        """Ask the kernel for the map's properties."""
        raw = bpf_sys.MapInfoStruct()
        bpf_sys.obj_info(self.fd, raw)
        return MapInfo(
            id=int(raw.id),
            type=enum_or_int(MapType, raw.type),
            name=raw.name.decode("ascii", "replace"),
            key_size=int(raw.key_size),
            value_size=int(raw.value_size),
            max_entries=int(raw.max_entries),
            flags=int(raw.map_flags),
            map_extra=int(raw.map_extra),
            btf_id=int(raw.btf_id),
            btf_key_type_id=int(raw.btf_key_type_id),
            btf_value_type_id=int(raw.btf_value_type_id),
            ifindex=int(raw.ifindex),
        )

    def __repr__(self) -> str:
        return f"<map {getattr(self, 'name', '?')!r} {'closed' if self.closed else f'fd {self._fd}'}>"

    # encoding

    def _key_bytes(self, key: Any) -> bytes:
        if self.type in _BY_DESCRIPTOR and hasattr(key, "fileno"):
            key = key.fileno()
        return pack(self._key, key, self.key_size, sys.byteorder, f"a key of map {self.name!r}")

    def _value_bytes(self, value: Any) -> bytes:
        what = f"a value of map {self.name!r}"
        if self.type in _OF_DESCRIPTORS and hasattr(value, "fileno"):
            value = value.fileno()
        if not self.per_cpu:
            return pack(self._value, value, self.value_size, sys.byteorder, what)
        if isinstance(value, bytes) and len(value) == self._raw_size:
            return value
        cpus = possible_cpus()
        each = list(value) if isinstance(value, list | tuple) else [value] * cpus
        if len(each) != cpus:
            raise UsageError(f"{what} needs {cpus} values, one for each possible CPU, not {len(each)}")
        encoded = (pack(self._value, one, self.value_size, sys.byteorder, what) for one in each)
        return b"".join(one.ljust(self._stride, b"\0") for one in encoded)

    def _value_of(self, data: bytes) -> Any:
        if not self.per_cpu:
            return unpack(self._value, data, sys.byteorder)
        return [
            unpack(self._value, data[start : start + self.value_size], sys.byteorder)
            for start in range(0, self._raw_size, self._stride)
        ]

    # entries

    def lookup(self, key: Any, *, flags: int = 0) -> Any:
        """Return the value for a key, or None."""
        raw = self.lookup_raw(self._key_bytes(key), flags=flags)
        return None if raw is None else self._value_of(raw)

    def lookup_raw(self, key: bytes, *, flags: int = 0) -> bytes | None:
        """Return the value for a key as the kernel wrote it, or None."""
        try:
            return bpf_sys.map_lookup(self.fd, key, self._raw_size, flags=flags)
        except BpfError as error:
            raise about(self, error, [key], flags) from None

    def update(self, key: Any, value: Any, flags: int = BPF_ANY) -> None:
        """Store a value: BPF_ANY always, BPF_NOEXIST only a new key, BPF_EXIST only a known one.

        ``key`` is None for a queue, a stack or a bloom filter. A map of maps, programs or sockets takes these
        (what has a ``fileno``) or their descriptors, storage of sockets takes them as keys. Raises
        :class:`~loader.errors.BpfError` with EEXIST, ENOENT, E2BIG (the map is full) and others.
        """
        encoded = b"" if key is None and self.key_size == 0 else self._key_bytes(key)
        try:
            bpf_sys.map_update(self.fd, encoded, self._value_bytes(value), flags)
        except BpfError as error:
            raise about(self, error, [encoded], flags) from None

    def delete(self, key: Any) -> bool:
        """Delete a key; return whether it was there.

        Raises :class:`~loader.errors.BpfError` for a map whose entries can't be deleted, such as an array.
        """
        return self._delete_raw(self._key_bytes(key))

    def _delete_raw(self, key: bytes) -> bool:
        try:
            return bpf_sys.map_delete(self.fd, key)
        except BpfError as error:
            known = self.type == MapType.SOCKMAP and int.from_bytes(key, sys.byteorder) < self.max_entries
            if known and error.errno == errno.EINVAL:
                return False  # so the kernel says that there is no socket
            raise about(self, error, [key]) from None

    def pop(self, key: Any = None) -> Any:
        """Return the value for a key and delete it in one step, or None. A queue or a stack takes no key.

        Raises :class:`~loader.errors.BpfError` where the kernel cannot do it for this map type (hash maps:
        5.14).
        """
        encoded = b"" if key is None and self.key_size == 0 else self._key_bytes(key)
        try:
            raw = bpf_sys.map_lookup(self.fd, encoded, self._raw_size, delete=True)
        except BpfError as error:
            raise about(self, error) from None
        return None if raw is None else self._value_of(raw)

    def __contains__(self, key: Any) -> bool:
        return self.lookup_raw(self._key_bytes(key)) is not None

    def keys_raw(self) -> Iterator[bytes]:
        """Yield all keys as bytes, one system call each.

        A hash starts again from its beginning when the key at hand is deleted meanwhile, so a key may come
        twice; a LoaderError ends what would go on for ever.
        """
        key = None
        seen = 0
        while (key := self._next_key(key)) is not None:
            seen += 1
            if seen > 4 * self.max_entries + 16:
                raise LoaderError(
                    f"map {self.name!r} changes more quickly than its keys can be read",
                    hint="read it with items(), which goes by batches",
                )
            yield key

    def _next_key(self, key: bytes | None) -> bytes | None:
        try:
            return bpf_sys.map_next_key(self.fd, key, self.key_size)
        except BpfError as error:
            raise about(self, error) from None

    def keys(self) -> Iterator[Any]:
        """Yield all keys."""
        for key in self.keys_raw():
            yield unpack(self._key, key, sys.byteorder)

    def values(self) -> Iterator[Any]:
        """Yield all values."""
        for _, value in self.items_raw():
            yield self._value_of(value)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield all entries, in batches where the kernel can do it for this map type, else one by one."""
        for key, value in self.items_raw():
            yield unpack(self._key, key, sys.byteorder), self._value_of(value)

    def items_raw(self, *, batch: int = BATCH) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries as bytes; ``batch`` entries per system call at first."""
        if self._batch_works:
            position: bytes | None = None
            count = max(1, min(batch, self.max_entries))
            began = False
            while True:
                try:
                    entries, position = self._lookup_batch(position, count, delete=False)
                except BpfError as error:
                    if error.errno == errno.ENOSPC and count < 2 * self.max_entries:
                        count *= 2  # one bucket of the hash holds more
                        continue
                    if began or error.errno not in _NO_BATCH:
                        raise about(self, error) from None
                    self._batch_works = False
                    break
                began = True
                yield from entries
                if position is None:
                    return
        for key in self.keys_raw():
            value = self.lookup_raw(key)
            if value is not None:  # deleted since
                yield key, value

    def drain_raw(self, *, batch: int = BATCH) -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries and delete them, in batches where the kernel can do it."""
        position: bytes | None = None
        count = max(1, min(batch, self.max_entries))
        while self._batch_works:
            try:
                entries, position = self._lookup_batch(position, count, delete=True)
            except BpfError as error:
                if error.errno == errno.ENOSPC and count < 2 * self.max_entries:
                    count *= 2
                    continue
                if error.errno not in _NO_BATCH:
                    raise about(self, error) from None
                break
            yield from entries
            if position is None:
                return
        for key in list(self.keys_raw()):
            value = self.lookup_raw(key)
            if value is not None and self._delete_raw(key):
                yield key, value

    def _lookup_batch(
        self, position: bytes | None, count: int, *, delete: bool
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        return bpf_sys.map_lookup_batch(
            self.fd,
            position,
            count,
            self.key_size,
            self._raw_size,
            position_size=max(4, self.key_size),
            delete=delete,
        )

    def update_many(
        self, entries: Mapping[Any, Any] | Iterable[tuple[Any, Any]], flags: int = BPF_ANY
    ) -> int:
        """Store many entries, in batches where the kernel can do it; return how many.

        Raises as :meth:`update`; the error's ``stored`` says how many were stored before.
        """
        pairs = entries.items() if isinstance(entries, Mapping) else entries
        encoded = [(self._key_bytes(key), self._value_bytes(value)) for key, value in pairs]
        if not encoded:
            return 0
        if self._batch_works:
            packed, values = (b"".join(column) for column in zip(*encoded, strict=True))
            try:
                bpf_sys.map_update_batch(self.fd, packed, values, len(encoded), flags)
                return len(encoded)
            except BpfError as error:
                if error.errno not in _NO_BATCH:
                    keys = [key for key, _ in encoded]
                    raise about(self, error, keys, flags, stored=(error.stored or 0, len(keys))) from None
        for index, (key, value) in enumerate(encoded):
            try:
                bpf_sys.map_update(self.fd, key, value, flags)
            except BpfError as error:
                raise about(self, error, [key], flags, stored=(index, len(encoded))) from None
        return len(encoded)

    def delete_many(self, keys: Iterable[Any]) -> int:
        """Delete many keys, in batches where the kernel can do it; return how many were there."""
        encoded = [self._key_bytes(key) for key in keys]
        deleted = 0
        while encoded and self._batch_works:
            try:
                done = bpf_sys.map_delete_batch(self.fd, b"".join(encoded), len(encoded))
            except BpfError as error:
                if error.errno not in _NO_BATCH:
                    raise about(self, error, encoded) from None
                break
            deleted += done
            encoded = encoded[done + 1 :]  # the one behind those that were deleted is missing
        return deleted + sum(self._delete_raw(key) for key in encoded)

    def clear(self) -> int:
        """Delete all entries; return how many there were."""
        return sum(1 for _ in self.drain_raw())

    def count(self) -> int:
        """Return how many entries there are (for an array: its length)."""
        return sum(1 for _ in self.items_raw())

    def freeze(self) -> None:
        """Forbid any further change from user space; programs may go on writing."""
        try:
            bpf_sys.map_freeze(self.fd)
        except BpfError as error:
            raise about(self, error) from None


def unlike(found: Map, spec: MapLike) -> str:
    """How *found* differs from the map that *spec* describes; empty where it fits."""
    wanted = (int(spec.type), spec.key_size, spec.value_size)
    there = (int(found.type), found.key_size, found.value_size)
    if wanted == there:
        return ""
    return (
        f"is a {_map_type_name(there[0])} with keys of {there[1]} and values of {there[2]} bytes; "
        f"{spec.name!r} is a {_map_type_name(wanted[0])} with {wanted[1]} and {wanted[2]}"
    )


def _map_type_name(number: int) -> str:
    kind = enum_or_int(MapType, number)
    return kind.name.lower() if isinstance(kind, MapType) else str(number)


def _explain_map_create(error: BpfError, spec: MapLike) -> LoaderError:
    described = (
        f"map {spec.name!r} ({_map_type_name(int(spec.type))}, keys of {spec.key_size} bytes, "
        f"values of {spec.value_size}, {spec.max_entries} entries)"
    )
    hint = error.hint
    if error.errno in (errno.ENOMEM, errno.E2BIG):
        hint = "ask for fewer entries, or give the cgroup more memory"
    elif error.errno in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP):
        refused = refusal(spec) if isinstance(spec, MapSpec) else None
        hint = refused or "this kernel does not know the map type, or refuses a size or flag of it"
    elif error.errno == errno.EPERM:
        hint = (
            "before kernel 5.11 this can also mean that RLIMIT_MEMLOCK is too low: try `ulimit -l unlimited`"
        )
        if not missing_capabilities(("CAP_BPF",)):
            return error.about(described, hint=hint)
    return explain(error.about(described, hint=hint), ("CAP_BPF",))
