# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Kernel objects that own their descriptor: :class:`Btf`, :class:`Map`, :class:`Program`, :class:`Link`.

Each is a context manager, closes its descriptor exactly once, and warns (``ResourceWarning``) when it is
collected while still open. An object made from a spec (:class:`pybpfasm.maps.MapSpec`,
:class:`pybpfasm.program.ProgramSpec`) is the spec loaded into this kernel; one from a pin or an id is
whatever was found there.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from loader import sys as bpf_sys
from loader.errors import (
    ENOTSUPP,
    BpfError,
    CapabilityError,
    KernelFeatureError,
    LoaderError,
    UsageError,
)
from pybpfasm.kernel.defines import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_REPLACE
from pybpfasm.kernel.enums import (
    BPF_ANY,
    BPF_F_LINK,
    BPF_F_RDONLY_PROG,
    BPF_STATS_RUN_TIME,
    AttachType,
    Cmd,
    LinkType,
    MapType,
    ProgType,
)

if TYPE_CHECKING:
    from pybpfasm.errors import SourceLocation

__all__ = [
    "Btf",
    "BtfInfo",
    "Link",
    "LinkInfo",
    "Map",
    "MapInfo",
    "MapLike",
    "Owned",
    "Program",
    "ProgramInfo",
    "ProgramLike",
    "Query",
    "QueryEntry",
    "RunResult",
    "Stats",
    "attach_to_sockmap",
    "btfs",
    "capabilities",
    "links",
    "maps",
    "open_pin",
    "possible_cpus",
    "prog_attach",
    "prog_detach",
    "prog_query",
    "programs",
]

PathLike = str | os.PathLike[str]


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


class ProgramLike(Protocol):
    """What :meth:`Program.load` needs to know of a program; :class:`pybpfasm.program.ProgramSpec` is one."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> int: ...
    @property
    def expected_attach_type(self) -> int | None: ...
    @property
    def license(self) -> str: ...
    @property
    def prog_flags(self) -> int: ...
    def code(self, map_fds: Mapping[str, int] | None = None) -> bytes: ...
    def btf(self) -> bytes: ...
    def func_info(self) -> bytes: ...
    def line_info(self) -> bytes: ...
    def location(self, slot: int) -> SourceLocation | None: ...


# --- capabilities -------------------------------------------------------------------------------------------

# Bits of linux/capability.h; they are not in the kernel's BTF.
_CAPABILITY_BITS = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def capabilities() -> frozenset[str]:
    """Return which of the capabilities that matter here the calling thread has in effect."""
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("CapEff:"):
                mask = int(line.split()[1], 16)
                return frozenset(name for name, bit in _CAPABILITY_BITS.items() if mask >> bit & 1)
    return frozenset()


def _missing_capabilities(needed: Iterable[str]) -> list[str]:
    """Return which are missing; CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON, as in the kernel."""
    have = capabilities()
    admin = "CAP_SYS_ADMIN" in have
    return [
        name for name in needed if name not in have and not (admin and name in ("CAP_BPF", "CAP_PERFMON"))
    ]


def _explain(error: BpfError, needed: tuple[str, ...]) -> LoaderError:
    """Turn EPERM and EACCES into the capability that is missing, where one is.

    Return other errors unchanged.
    """
    if error.errno not in (errno.EPERM, errno.EACCES):
        return error
    try:
        missing = _missing_capabilities(needed)
    except OSError:
        return error
    if missing:
        return CapabilityError(
            f"{error.message}: this process lacks {', '.join(missing)}",
            missing=missing,
            hint=f"run as root, or give the process {' and '.join(missing)}",
        )
    if error.hint:
        return error
    return error.about(
        error.what,
        hint="the process has the capabilities for this: look for a security module, a seccomp filter, "
        "a user namespace or kernel lockdown that forbids bpf(2)",
    )


def _raise_memlock() -> bool:
    """Raise RLIMIT_MEMLOCK, which charged maps and programs before 5.11.

    Return whether the limit has changed.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    unlimited = resource.RLIM_INFINITY
    for wanted in ((unlimited, unlimited), (hard, hard)):
        if wanted == (soft, hard):
            return False
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, wanted)
        except (OSError, ValueError):
            continue
        return True
    return False


# --- ownership ----------------------------------------------------------------------------------------------


class Owned:
    """Owns one descriptor: closed once, by :meth:`close` or at the end of a ``with`` block."""

    kind = "object"

    def __init__(self, fd: int) -> None:
        if fd <= 2:
            # The kernel takes descriptor 0 for "none" in several places; one that was free gets a better
            # number.
            spare = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(fd)
            fd = spare
        self._fd = fd

    @property
    def fd(self) -> int:
        """The descriptor. Raises ValueError once the object is closed."""
        if self._fd < 0:
            raise ValueError(f"{self!r} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether the descriptor is closed, or was handed away."""
        return self._fd < 0

    def fileno(self) -> int:
        """Return :attr:`fd`, so that the object can be given to ``select`` and its like."""
        return self.fd

    def close(self) -> None:
        """Close the descriptor.

        The kernel frees an object when nothing refers to it: no descriptor, pin or link.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def release(self) -> int:
        """Hand the descriptor over to the caller, who closes it; the object counts as closed from now on."""
        fd, self._fd = self.fd, -1
        return fd

    def pin(self, path: PathLike) -> None:
        """Pin the object in a bpf file system; it lives on there when all descriptors are closed.

        Raises :class:`~loader.errors.BpfError` (EEXIST, or EPERM for a name with a dot, or EINVAL elsewhere
        than on a bpf file system).
        """
        try:
            bpf_sys.obj_pin(self.fd, path)
        except BpfError as error:
            if error.errno == errno.EPERM and "." in Path(path).name:
                raise error.about(
                    error.what, hint="the bpf file system allows no dot in a name: choose another"
                ) from None
            raise _explain(error, ("CAP_BPF",)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{self.kind} {'closed' if self._fd < 0 else f'fd {self._fd}'}>"


# What readlink of /proc/self/fd/N says for each kind of object.
_FD_KINDS = {
    "anon_inode:bpf-map": "map",
    "anon_inode:bpf-prog": "program",
    "anon_inode:bpf-link": "link",
    "anon_inode:bpf_link": "link",
    "anon_inode:btf": "btf",
}


def _fd_kind(fd: int) -> str:
    target = os.readlink(f"/proc/self/fd/{fd}")
    # Some releases of the kernel put the name into brackets: anon_inode:[bpf-map].
    return _FD_KINDS.get(target.replace("[", "").replace("]", ""), target)


def _open_kind(path: PathLike, kind: str, flags: int = 0) -> int:
    """Open a pin and check what it is: reading one kind's information as another's would make nonsense."""
    try:
        fd = bpf_sys.obj_get(path, flags)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            raise error.about(error.what, hint="nothing is pinned there") from None
        raise _explain(error, ("CAP_BPF",)) from None
    found = _fd_kind(fd)
    if found != kind:
        os.close(fd)
        raise UsageError(
            f"{os.fspath(path)} is a pinned {found}, not a {kind}", hint="name the pin of the right object"
        )
    return fd


def _open_id(command: int, object_id: int, kind: str) -> int:
    try:
        return bpf_sys.fd_by_id(command, object_id)
    except BpfError as error:
        # Walking the ids of the system is not a right that CAP_BPF gives.
        raise _explain(error.about(f"{kind} id {object_id}"), ("CAP_SYS_ADMIN",)) from None


def open_pin(path: PathLike) -> Map | Program | Link:
    """Open whatever is pinned at a path."""
    try:
        fd = bpf_sys.obj_get(path)
    except BpfError as error:
        raise _explain(error, ("CAP_BPF",)) from None
    kind = _fd_kind(fd)
    if kind == "map":
        return Map(fd)
    if kind == "program":
        return Program(fd)
    if kind == "link":
        return Link(fd)
    os.close(fd)
    raise UsageError(f"{os.fspath(path)} is a pinned {kind}, which is not known here")


# --- BTF ----------------------------------------------------------------------------------------------------


class BtfInfo(NamedTuple):
    """What the kernel says of a BTF object; ``size`` in bytes."""

    id: int
    name: str
    size: int
    is_kernel: bool


class Btf(Owned):
    """BTF (type information) that the kernel holds."""

    kind = "btf"

    @classmethod
    def load(cls, data: bytes) -> Btf:
        """Load BTF in the kernel's own byte order. An error carries the kernel's log as a note."""
        try:
            return cls(bpf_sys.btf_load(data))
        except BpfError as first:
            if first.errno in (errno.EPERM, errno.EACCES):
                raise _explain(first, ("CAP_BPF",)) from None
        try:
            return cls(bpf_sys.btf_load(data, log_size=1 << 20))
        except BpfError as error:
            note = "\n".join(getattr(error, "__notes__", [])).strip()
            reason = note.splitlines()[-1] if note else ""
            raise error.about(
                f"{error.what}{f' ({reason})' if reason else ''}",
                hint="the BTF itself is wrong: this is a defect of the assembler, please report it",
            ) from None

    @classmethod
    def from_id(cls, btf_id: int) -> Btf:
        """Open a BTF object by its id."""
        return cls(_open_id(Cmd.BTF_GET_FD_BY_ID, btf_id, cls.kind))

    def info(self) -> BtfInfo:
        """Return id, name and size."""
        raw = bpf_sys.BtfInfoStruct()
        name = ctypes.create_string_buffer(128)
        raw.name, raw.name_len = ctypes.addressof(name), len(name)
        bpf_sys.obj_info(self.fd, raw)
        return BtfInfo(
            int(raw.id), name.value.decode("ascii", "replace"), int(raw.btf_size), bool(raw.kernel_btf)
        )

    def data(self) -> bytes:
        """Return the BTF as bytes: header, types, strings."""
        size = self.info().size
        raw = bpf_sys.BtfInfoStruct()
        buffer = ctypes.create_string_buffer(size)
        raw.btf, raw.btf_size = ctypes.addressof(buffer), size
        bpf_sys.obj_info(self.fd, raw)
        return buffer.raw


# --- maps ---------------------------------------------------------------------------------------------------


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


def _encode(shape: Any, value: Any, size: int, role: str) -> bytes:
    """Return a key or value as the map takes it.

    Bytes always pass as they are; only their length is checked.
    """
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif isinstance(shape, type):  # a Struct class
        if isinstance(value, Mapping):
            data = shape.pack(**value)  # type: ignore[attr-defined]
        elif hasattr(value, "pack"):
            data = value.pack()
        else:
            raise UsageError(f"{role} of type {shape.__name__} cannot be made from {value!r}")
    elif hasattr(shape, "to_bytes") and not isinstance(shape, int):  # a scalar or array field
        data = shape.to_bytes(value, sys.byteorder)
    elif isinstance(value, int):
        data = value.to_bytes(size, sys.byteorder, signed=value < 0)
    elif hasattr(value, "pack"):
        data = value.pack()
    else:
        raise UsageError(f"{role} of {size} bytes cannot be made from {value!r}")
    if len(data) != size:
        raise UsageError(f"{role} has {len(data)} bytes, the map takes {size}")
    return data


def _decode(shape: Any, data: bytes) -> Any:
    if isinstance(shape, type):
        return shape.unpack(data)  # type: ignore[attr-defined]
    if hasattr(shape, "from_bytes") and not isinstance(shape, int):
        return shape.from_bytes(data, sys.byteorder)
    return data


class Map(Owned):
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
                if error.errno == errno.EPERM and not raised and not _missing_capabilities(("CAP_BPF",)):
                    # Before 5.11 this also means that the map does not fit into RLIMIT_MEMLOCK.
                    raised = True
                    if _raise_memlock():
                        continue
                raise _explain_map_create(error, spec) from None

    @classmethod
    def from_pin(cls, path: PathLike, spec: MapLike | None = None, *, flags: int = 0) -> Map:
        """Open a pinned map; with ``spec``, check that it is that map, and use its key and value types."""
        return cls._matching(_open_kind(path, "map", flags), spec, os.fspath(path))

    @classmethod
    def from_id(cls, map_id: int, spec: MapLike | None = None) -> Map:
        """Open a map by its id, checked against ``spec`` as :meth:`from_pin` does it."""
        return cls._matching(_open_id(Cmd.MAP_GET_FD_BY_ID, map_id, cls.kind), spec, f"map {map_id}")

    @classmethod
    def _matching(cls, fd: int, spec: MapLike | None, where: str) -> Map:
        if spec is None:
            return cls(fd)
        found = cls(fd, key=spec.key, value=spec.value)
        wanted = (int(spec.type), spec.key_size, spec.value_size)
        there = (int(found.type), found.key_size, found.value_size)
        if wanted != there:
            found.close()
            raise UsageError(
                f"{where} is a {_map_type_name(there[0])} with keys of {there[1]} and values of {there[2]} "
                f"bytes; {spec.name!r} is a {_map_type_name(wanted[0])} with {wanted[1]} and {wanted[2]}",
                hint="it was made by another version: take that instance down first",
            )
        return found

    def info(self) -> MapInfo:
        """Ask the kernel for the map's properties."""
        raw = bpf_sys.MapInfoStruct()
        bpf_sys.obj_info(self.fd, raw)
        return MapInfo(
            id=int(raw.id),
            type=_enum_or_int(MapType, raw.type),
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
        return _encode(self._key, key, self.key_size, f"key of map {self.name!r}")

    def _value_bytes(self, value: Any) -> bytes:
        role = f"value of map {self.name!r}"
        if not self.per_cpu:
            return _encode(self._value, value, self.value_size, role)
        if isinstance(value, bytes) and len(value) == self._raw_size:
            return value
        cpus = possible_cpus()
        each = list(value) if isinstance(value, list | tuple) else [value] * cpus
        if len(each) != cpus:
            raise UsageError(f"{role} needs {cpus} values, one for each possible CPU, not {len(each)}")
        encoded = (_encode(self._value, one, self.value_size, role) for one in each)
        return b"".join(one.ljust(self._stride, b"\0") for one in encoded)

    def _value_of(self, data: bytes) -> Any:
        if not self.per_cpu:
            return _decode(self._value, data)
        return [
            _decode(self._value, data[start : start + self.value_size])
            for start in range(0, self._raw_size, self._stride)
        ]

    def _about(self, error: BpfError) -> LoaderError:
        return _explain(error.about(f"map {self.name!r}"), ("CAP_BPF",))

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
            raise self._about(error) from None

    def update(self, key: Any, value: Any, flags: int = BPF_ANY) -> None:
        """Store a value: BPF_ANY always, BPF_NOEXIST only a new key, BPF_EXIST only a known one.

        ``key`` is None for a queue, a stack or a bloom filter. A map of maps or sockets takes a descriptor as
        int. Raises :class:`~loader.errors.BpfError` with EEXIST, ENOENT, E2BIG (the map is full) and others.
        """
        encoded = b"" if key is None and self.key_size == 0 else self._key_bytes(key)
        try:
            bpf_sys.map_update(self.fd, encoded, self._value_bytes(value), flags)
        except BpfError as error:
            raise self._about(error) from None

    def delete(self, key: Any) -> bool:
        """Delete a key; return whether it was there."""
        try:
            return bpf_sys.map_delete(self.fd, self._key_bytes(key))
        except BpfError as error:
            raise self._about(error) from None

    def pop(self, key: Any = None) -> Any:
        """Return the value for a key and delete it in one step, or None. A queue or a stack takes no key.

        Raises :class:`~loader.errors.BpfError` where the kernel cannot do it for this map type (hash maps:
        5.14).
        """
        encoded = b"" if key is None and self.key_size == 0 else self._key_bytes(key)
        try:
            raw = bpf_sys.map_lookup(self.fd, encoded, self._raw_size, delete=True)
        except BpfError as error:
            raise self._about(error) from None
        return None if raw is None else self._value_of(raw)

    def __getitem__(self, key: Any) -> Any:
        value = self.lookup(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.update(key, value)

    def __delitem__(self, key: Any) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: Any) -> bool:
        return self.lookup_raw(self._key_bytes(key)) is not None

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

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
            raise self._about(error) from None

    def keys(self) -> Iterator[Any]:
        """Yield all keys."""
        for key in self.keys_raw():
            yield _decode(self._key, key)

    def values(self) -> Iterator[Any]:
        """Yield all values."""
        for _, value in self.items_raw():
            yield self._value_of(value)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield all entries, in batches where the kernel can do it for this map type, else one by one."""
        for key, value in self.items_raw():
            yield _decode(self._key, key), self._value_of(value)

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
                        raise self._about(error) from None
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
                    raise self._about(error) from None
                break
            yield from entries
            if position is None:
                return
        for key in list(self.keys_raw()):
            value = self.lookup_raw(key)
            if value is not None and bpf_sys.map_delete(self.fd, key):
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
        """Store many entries, in batches where the kernel can do it; return how many."""
        pairs = entries.items() if isinstance(entries, Mapping) else entries
        encoded = [(self._key_bytes(key), self._value_bytes(value)) for key, value in pairs]
        if not encoded:
            return 0
        if self._batch_works:
            keys, values = (b"".join(column) for column in zip(*encoded, strict=True))
            try:
                bpf_sys.map_update_batch(self.fd, keys, values, len(encoded), flags)
                return len(encoded)
            except BpfError as error:
                if error.errno not in _NO_BATCH:
                    raise self._about(error) from None
        for key, value in encoded:
            try:
                bpf_sys.map_update(self.fd, key, value, flags)
            except BpfError as error:
                raise self._about(error) from None
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
                    raise self._about(error) from None
                break
            deleted += done
            encoded = encoded[done + 1 :]  # the one behind those that were deleted is missing
        return deleted + sum(self.delete(key) for key in encoded)

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
            raise self._about(error) from None


def _map_type_name(number: int) -> str:
    kind = _enum_or_int(MapType, number)
    return kind.name.lower() if isinstance(kind, MapType) else str(number)


def _enum_or_int(enum: Any, number: int) -> Any:
    """Return the member of an enumeration, or the number where this release does not know it."""
    try:
        return enum(number)
    except ValueError:
        return int(number)


def _explain_map_create(error: BpfError, spec: MapLike) -> LoaderError:
    described = (
        f"map {spec.name!r} ({_map_type_name(int(spec.type))}, keys of {spec.key_size} bytes, "
        f"values of {spec.value_size}, {spec.max_entries} entries)"
    )
    hint = error.hint
    if error.errno in (errno.ENOMEM, errno.E2BIG):
        hint = "ask for fewer entries, or give the cgroup more memory"
    elif error.errno == errno.EINVAL:
        hint = "this kernel does not know the map type, or refuses a size or flag of it"
    elif error.errno == errno.EPERM:
        hint = (
            "before kernel 5.11 this can also mean that RLIMIT_MEMLOCK is too low: try `ulimit -l unlimited`"
        )
        if not _missing_capabilities(("CAP_BPF",)):
            return error.about(described, hint=hint)
    return _explain(error.about(described, hint=hint), ("CAP_BPF",))


# --- programs -----------------------------------------------------------------------------------------------


class ProgramInfo(NamedTuple):
    """What the kernel says of a program; lengths in bytes, ``load_time`` in ns since boot.

    ``run_time_ns`` and ``run_cnt`` count only while statistics are enabled (:class:`Stats`).
    """

    id: int
    type: int
    name: str
    tag: bytes
    xlated_len: int
    jited_len: int
    load_time: int
    uid: int
    map_ids: tuple[int, ...]
    btf_id: int
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    verified_insns: int
    gpl_compatible: bool


class RunResult(NamedTuple):
    """What :meth:`Program.test_run` gave: the program's value, packet and context behind it, ns per run."""

    retval: int
    data: bytes
    ctx: bytes
    duration_ns: int


_LOG_START = 1 << 16
_LOG_MAX = (1 << 30) - 1  # what the kernel accepts: UINT_MAX >> 2


class Program(Owned):
    """A program that the verifier has accepted."""

    kind = "program"

    def __init__(self, fd: int, *, name: str = "", log: str = "") -> None:
        super().__init__(fd)
        self.name = name
        self.log = log

    @classmethod
    def load(
        cls, spec: ProgramLike, map_fds: Mapping[str, int | Map] | None = None, *, log_level: int = 0
    ) -> Program:
        """Load a program with its BTF, function and line information.

        ``map_fds`` gives the map (or its descriptor) for each name in ``spec.maps``. The first attempt asks
        for no log, because that is faster; after a rejection the second one does, and
        :class:`~loader.verifier.VerifierError` explains it with the Python lines. ``log_level`` asks for a
        log in any case (:attr:`log`).
        """
        fds = {name: m.fd if isinstance(m, Map) else m for name, m in (map_fds or {}).items()}
        code = spec.code(fds)
        btf_data = spec.btf()
        btf = Btf.load(btf_data) if btf_data else None
        try:
            return cls._load(spec, code, btf, log_level)
        finally:
            if btf is not None:
                btf.close()

    @classmethod
    def _load(cls, spec: ProgramLike, code: bytes, btf: Btf | None, log_level: int) -> Program:
        def attempt(level: int, log_size: int) -> bpf_sys.ProgLoadResult:
            return bpf_sys.prog_load(
                int(spec.type),
                code,
                license=spec.license,
                name=spec.name,
                expected_attach_type=int(spec.expected_attach_type or 0),
                flags=spec.prog_flags,
                btf_fd=0 if btf is None else btf.fd,
                func_info=spec.func_info() if btf is not None else b"",
                line_info=spec.line_info() if btf is not None else b"",
                log_level=level,
                log_size=log_size,
            )

        def with_log(level: int) -> bpf_sys.ProgLoadResult:
            size = _LOG_START
            while True:
                result = attempt(level, size)
                # A log that does not fit makes an accepted program fail too; from 6.4 the kernel says what it
                # needs.
                cut = result.log_true_size > size or (
                    result.error is not None and result.error.errno == errno.ENOSPC
                )
                if not cut or size >= _LOG_MAX:
                    return result
                if result.fd >= 0:
                    os.close(result.fd)
                size = min(max(result.log_true_size, 4 * size), _LOG_MAX)

        result = with_log(log_level) if log_level else attempt(0, 0)
        if result.fd >= 0:
            return cls(result.fd, name=spec.name, log=result.log)
        error = result.error
        assert error is not None
        if error.errno == errno.EPERM:
            if _missing_capabilities(_needed_for(spec)) or not _raise_memlock():
                raise _explain(error, _needed_for(spec)) from None
            result = attempt(0, 0)
            if result.fd >= 0:
                return cls(result.fd, name=spec.name)
            raise _explain(result.error or error, _needed_for(spec)) from None
        if not log_level:
            result = with_log(1)
            if result.fd >= 0:  # it failed for want of memory, or by a signal, and not this time
                return cls(result.fd, name=spec.name, log=result.log)
            error = result.error or error
        if not result.log.strip():
            raise _explain_prog_load(error, spec) from None
        from loader.verifier import VerifierError  # here, because most programs are accepted

        raise VerifierError(spec, result.log, error) from None

    @classmethod
    def from_pin(cls, path: PathLike) -> Program:
        """Open a pinned program."""
        return cls(_open_kind(path, "program"), name=Path(path).name)

    @classmethod
    def from_id(cls, prog_id: int) -> Program:
        """Open a program by its id."""
        return cls(_open_id(Cmd.PROG_GET_FD_BY_ID, prog_id, cls.kind))

    @property
    def id(self) -> int:
        """The kernel's id of the program."""
        return self.info().id

    def info(self) -> ProgramInfo:
        """Ask the kernel for the program's properties and counters."""
        raw = bpf_sys.ProgInfoStruct()
        bpf_sys.obj_info(self.fd, raw)
        count = int(raw.nr_map_ids)
        map_ids: tuple[int, ...] = ()
        if count:
            ids = (ctypes.c_uint32 * count)()
            again = bpf_sys.ProgInfoStruct(nr_map_ids=count, map_ids=ctypes.addressof(ids))
            bpf_sys.obj_info(self.fd, again)
            map_ids = tuple(ids[: int(again.nr_map_ids)])
        return ProgramInfo(
            id=int(raw.id),
            type=_enum_or_int(ProgType, raw.type),
            name=raw.name.decode("ascii", "replace"),
            tag=bytes(raw.tag),
            xlated_len=int(raw.xlated_prog_len),
            jited_len=int(raw.jited_prog_len),
            load_time=int(raw.load_time),
            uid=int(raw.created_by_uid),
            map_ids=map_ids,
            btf_id=int(raw.btf_id),
            run_time_ns=int(raw.run_time_ns),
            run_cnt=int(raw.run_cnt),
            recursion_misses=int(raw.recursion_misses),
            verified_insns=int(raw.verified_insns),
            gpl_compatible=bool(raw.gpl_compatible & 1),
        )

    def xlated(self) -> bytes:
        """Return the instructions as the verifier left them, 8 bytes a slot."""
        size = self.info().xlated_len
        buffer = ctypes.create_string_buffer(max(1, size))
        raw = bpf_sys.ProgInfoStruct(xlated_prog_len=size, xlated_prog_insns=ctypes.addressof(buffer))
        bpf_sys.obj_info(self.fd, raw)
        return buffer.raw[:size]

    def test_run(
        self,
        data: bytes = b"",
        ctx: bytes = b"",
        *,
        repeat: int = 1,
        data_out_size: int | None = None,
        ctx_out_size: int | None = None,
        flags: int = 0,
        cpu: int = 0,
    ) -> RunResult:
        """Run the program on a packet and a context (PROG_TEST_RUN); nothing leaves the machine.

        ``data_out_size`` is the room for the packet that comes back (default: 256 bytes more than the packet
        has), ``ctx_out_size`` the one for the context (default: as large as ``ctx``). Raises
        :class:`~loader.errors.KernelFeatureError` for a program type that the kernel cannot run like this.
        """
        try:
            retval, out, ctx_out, duration = bpf_sys.prog_test_run(
                self.fd,
                data=data,
                data_out_size=(len(data) + 256 if data else 0) if data_out_size is None else data_out_size,
                ctx=ctx,
                ctx_out_size=len(ctx) if ctx_out_size is None else ctx_out_size,
                repeat=repeat,
                flags=flags,
                cpu=cpu,
            )
        except BpfError as error:
            if error.errno in (ENOTSUPP, errno.EOPNOTSUPP):
                kind = self.info().type
                name = kind.name if isinstance(kind, ProgType) else str(kind)
                raise KernelFeatureError(
                    f"the kernel cannot run a program of type {name} by PROG_TEST_RUN",
                    feature=f"PROG_TEST_RUN of {name}",
                    hint="run it on real traffic, or in the emulator",
                ) from None
            raise _explain(error.about(f"program {self.name!r}"), ("CAP_BPF", "CAP_NET_ADMIN")) from None
        return RunResult(retval, out, ctx_out, duration)

    def __repr__(self) -> str:
        return f"<program {self.name!r} {'closed' if self.closed else f'fd {self._fd}'}>"


# Program types that need no more than CAP_BPF; those of the network need CAP_NET_ADMIN too, those of tracing
# CAP_PERFMON (kernel/bpf/syscall.c, is_net_admin_prog_type and is_perfmon_prog_type).
_PLAIN_TYPES = frozenset({ProgType.SOCKET_FILTER, ProgType.CGROUP_SKB, ProgType.SYSCALL, ProgType.STRUCT_OPS})
_PERFMON_TYPES = frozenset(
    {
        ProgType.KPROBE,
        ProgType.TRACEPOINT,
        ProgType.PERF_EVENT,
        ProgType.RAW_TRACEPOINT,
        ProgType.RAW_TRACEPOINT_WRITABLE,
        ProgType.TRACING,
        ProgType.LSM,
        ProgType.STRUCT_OPS,
        ProgType.EXT,
    }
)


def _needed_for(spec: ProgramLike) -> tuple[str, ...]:
    needed = ["CAP_BPF"]
    if spec.type in _PERFMON_TYPES:
        needed.append("CAP_PERFMON")
    elif spec.type not in _PLAIN_TYPES:
        needed.append("CAP_NET_ADMIN")
    return tuple(needed)


def _explain_prog_load(error: BpfError, spec: ProgramLike) -> LoaderError:
    """Explain a PROG_LOAD that failed before the verifier had anything to say."""
    hint = ""
    if error.errno == errno.EINVAL:
        kind = _enum_or_int(ProgType, int(spec.type))
        attach = (
            "" if spec.expected_attach_type is None else f" and attach type {spec.expected_attach_type!s}"
        )
        hint = f"this kernel may not know program type {kind!s}{attach}, or one of the load flags"
    elif error.errno == errno.E2BIG:
        hint = "the program has more instructions than this kernel allows"
    elif error.errno == errno.ENOMEM:
        hint = "the kernel has no memory for it: look at the cgroup's memory limit and net.core.bpf_jit_limit"
    return _explain(error.about(error.what, hint=hint), _needed_for(spec))


# --- links --------------------------------------------------------------------------------------------------


class LinkInfo(NamedTuple):
    """What the kernel says of a link. What does not belong to its kind is None.

    ``ifindex`` of a link whose interface is gone is 0, as is ``cgroup_id`` of one that was detached.
    """

    id: int
    type: int
    prog_id: int
    attach_type: int | None = None
    ifindex: int | None = None
    cgroup_id: int | None = None
    netns_ino: int | None = None
    map_id: int | None = None


class Link(Owned):
    """A program on its hook. It goes off the hook when the last descriptor and the last pin are gone."""

    kind = "link"

    def __init__(self, fd: int, *, name: str = "") -> None:
        super().__init__(fd)
        self.name = name

    @classmethod
    def create(
        cls,
        prog: Program,
        target: int,
        attach_type: int,
        *,
        flags: int = 0,
        relative: int = 0,
        expected_revision: int = 0,
    ) -> Link:
        """Create a link on a descriptor (cgroup, sockmap, network namespace) or an interface index (TCX)."""
        attach = _enum_or_int(AttachType, int(attach_type))
        name = attach.name if isinstance(attach, AttachType) else str(attach)
        what = f"program {prog.name!r} at {name}"
        try:
            fd = bpf_sys.link_create(
                prog.fd,
                target,
                int(attach_type),
                flags=flags,
                relative=relative,
                expected_revision=expected_revision,
                what=what,
            )
        except BpfError as error:
            raise _explain(error, ("CAP_BPF", "CAP_NET_ADMIN")) from None
        return cls(fd, name=prog.name)

    @classmethod
    def tcx(
        cls,
        prog: Program,
        ifindex: int,
        attach_type: int,
        *,
        before: Link | Program | None = None,
        after: Link | Program | None = None,
        first: bool = False,
        expected_revision: int = 0,
    ) -> Link:
        """Attach to TCX_INGRESS or TCX_EGRESS of an interface in the calling thread's network namespace.

        The program goes to the end of the chain, to its beginning (``first``), or beside another program or
        link. With ``expected_revision`` (:attr:`Query.revision`) the kernel answers ESTALE if the chain has
        changed since. Raises :class:`~loader.errors.KernelFeatureError` where the kernel has no TCX (before
        6.6).
        """
        if sum((before is not None, after is not None, first)) > 1:
            raise ValueError("only one of before, after and first can be said")
        flags, relative = (BPF_F_BEFORE, 0) if first else (0, 0)
        beside = before if before is not None else after
        if beside is not None:
            flags = BPF_F_BEFORE if before is not None else BPF_F_AFTER
            flags |= BPF_F_LINK if isinstance(beside, Link) else 0
            relative = beside.fd
        try:
            return cls.create(
                prog,
                ifindex,
                attach_type,
                flags=flags,
                relative=relative,
                expected_revision=expected_revision,
            )
        except BpfError as error:
            if error.errno == errno.ENODEV:
                raise UsageError(
                    f"there is no interface with index {ifindex} in this network namespace",
                    hint="look at `ip link`",
                ) from None
            raise

    @classmethod
    def cgroup(cls, prog: Program, cgroup_fd: int, attach_type: int) -> Link:
        """Attach to a cgroup2 directory, beside what is attached there already (as ALLOW_MULTI does)."""
        try:
            return cls.create(prog, cgroup_fd, attach_type)
        except BpfError as error:
            if error.errno == errno.EBADF:
                raise error.about(error.what, hint="the descriptor is not of a cgroup2 directory") from None
            if error.errno == errno.EPERM:
                raise error.about(
                    error.what,
                    hint="another program is attached here or above without ALLOW_MULTI and forbids company: "
                    "see `bpftool cgroup tree`",
                ) from None
            raise

    @classmethod
    def netns(cls, prog: Program, netns_fd: int, attach_type: int) -> Link:
        """Attach to a network namespace (SK_LOOKUP, FLOW_DISSECTOR)."""
        return cls.create(prog, netns_fd, attach_type)

    @classmethod
    def sockmap(cls, prog: Program, sockmap: Map, attach_type: int) -> Link:
        """Attach a verdict or parser program to a sockmap or sockhash by a link (from 6.10.

        EINVAL before).
        """
        return cls.create(prog, sockmap.fd, attach_type)

    @classmethod
    def from_pin(cls, path: PathLike) -> Link:
        """Open a pinned link."""
        return cls(_open_kind(path, "link"), name=Path(path).name)

    @classmethod
    def from_id(cls, link_id: int) -> Link:
        """Open a link by its id."""
        return cls(_open_id(Cmd.LINK_GET_FD_BY_ID, link_id, cls.kind))

    @property
    def id(self) -> int:
        """The kernel's id of the link."""
        return self.info().id

    def info(self) -> LinkInfo:
        """Ask the kernel what the link holds, and where."""
        raw = bpf_sys.LinkInfoStruct()
        bpf_sys.obj_info(self.fd, raw)
        kind = _enum_or_int(LinkType, raw.type)
        found: dict[str, int] = {}
        parts: dict[int, tuple[str, ...]] = {
            LinkType.TCX: ("tcx", "ifindex", "attach_type"),
            LinkType.CGROUP: ("cgroup", "cgroup_id", "attach_type"),
            LinkType.NETNS: ("netns", "netns_ino", "attach_type"),
            LinkType.XDP: ("xdp", "ifindex"),
            LinkType.SOCKMAP: ("sockmap", "map_id", "attach_type"),
        }
        if kind in parts:
            member, *fields = parts[kind]
            found = {field: int(getattr(getattr(raw.of, member), field)) for field in fields}
        if "attach_type" in found:
            found["attach_type"] = _enum_or_int(AttachType, found["attach_type"])
        return LinkInfo(id=int(raw.id), type=kind, prog_id=int(raw.prog_id), **found)

    def update(self, new: Program, old: Program | None = None) -> None:
        """Put another program in place in one step: each packet or call sees the one or the other.

        With ``old`` only if that is the program there now (else EPERM), so that two loaders cannot undo one
        another.
        """
        flags = 0 if old is None else BPF_F_REPLACE
        try:
            bpf_sys.link_update(self.fd, new.fd, flags=flags, old_prog_fd=0 if old is None else old.fd)
        except BpfError as error:
            hint = (
                "the link holds another program than expected" if error.errno == errno.EPERM and old else ""
            )
            raise _explain(
                error.about(f"link {self.name!r}", hint=hint), ("CAP_BPF", "CAP_NET_ADMIN")
            ) from None

    def detach(self) -> None:
        """Take the program off its hook now, whatever descriptors and pins of the link there are."""
        try:
            bpf_sys.link_detach(self.fd)
        except BpfError as error:
            raise _explain(error.about(f"link {self.name!r}"), ("CAP_BPF", "CAP_NET_ADMIN")) from None

    def __repr__(self) -> str:
        return f"<link {self.name!r} {'closed' if self.closed else f'fd {self._fd}'}>"


# --- attaching without a link -------------------------------------------------------------------------------


def prog_attach(target: int, prog: Program, attach_type: int, *, flags: int = 0) -> None:
    """PROG_ATTACH: attach without a link, to a descriptor or interface index.

    What holds it is the target itself.
    """
    try:
        bpf_sys.prog_attach(target, prog.fd, int(attach_type), flags=flags)
    except BpfError as error:
        raise _explain(error.about(f"program {prog.name!r}"), ("CAP_BPF", "CAP_NET_ADMIN")) from None


def prog_detach(target: int, prog: Program, attach_type: int, *, flags: int = 0) -> bool:
    """PROG_DETACH: undo :func:`prog_attach`; return whether that program was attached there."""
    try:
        bpf_sys.prog_detach(target, prog.fd, int(attach_type), flags=flags)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise _explain(error.about(f"program {prog.name!r}"), ("CAP_BPF", "CAP_NET_ADMIN")) from None
    return True


def attach_to_sockmap(prog: Program, sockmap: Map, attach_type: int) -> Link | None:
    """Attach a program to a sockmap or sockhash: by a link where the kernel can (6.10), else directly.

    Returns the link, or None for the direct way, which :func:`prog_detach` undoes and which lasts as long as
    the map.
    """
    try:
        return Link.sockmap(prog, sockmap, attach_type)
    except BpfError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP):
            raise
    prog_attach(sockmap.fd, prog, attach_type)
    return None


class QueryEntry(NamedTuple):
    """One attached program.

    ``link_id`` is 0 where it was attached without a link, or the kernel does not say.
    """

    prog_id: int
    link_id: int
    flags: int


class Query(NamedTuple):
    """The programs at a hook in the order in which they run.

    ``revision`` counts changes (0: the kernel has none).
    """

    entries: tuple[QueryEntry, ...]
    flags: int
    revision: int

    @property
    def prog_ids(self) -> tuple[int, ...]:
        """The ids of the programs in order."""
        return tuple(entry.prog_id for entry in self.entries)


def prog_query(target: int, attach_type: int, *, flags: int = 0) -> Query:
    """PROG_QUERY: what is attached to a descriptor (cgroup, sockmap, netns) or interface index (TCX)."""
    capacity, with_links = 64, True
    while True:
        try:
            attr, ids, attach_flags, link_ids = bpf_sys.prog_query(
                target, int(attach_type), flags=flags, capacity=capacity, link_ids=with_links
            )
            break
        except BpfError as error:
            if error.errno == errno.ENOSPC and capacity < 1 << 16:
                capacity *= 8
            elif with_links and error.errno in (errno.EINVAL, errno.E2BIG):
                with_links = False  # the kernel is older than these fields, or this hook has none of them
            else:
                raise _explain(error, ("CAP_BPF", "CAP_NET_ADMIN")) from None
    entries = tuple(QueryEntry(*row) for row in zip(ids, link_ids, attach_flags, strict=True))
    return Query(entries, int(attr.attach_flags), int(attr.revision))


# --- all objects of the system ------------------------------------------------------------------------------


def _ids(command: int) -> Iterator[int]:
    current = 0
    while True:
        try:
            following = bpf_sys.next_id(command, current)
        except BpfError as error:
            raise _explain(error, ("CAP_SYS_ADMIN",)) from None
        if following is None:
            return
        yield following
        current = following


def programs() -> Iterator[int]:
    """Yield the id of every program in the kernel, in ascending order.

    Needs CAP_SYS_ADMIN, as do the others.
    """
    return _ids(Cmd.PROG_GET_NEXT_ID)


def maps() -> Iterator[int]:
    """Yield the id of every map in the kernel."""
    return _ids(Cmd.MAP_GET_NEXT_ID)


def links() -> Iterator[int]:
    """Yield the id of every link in the kernel."""
    return _ids(Cmd.LINK_GET_NEXT_ID)


def btfs() -> Iterator[int]:
    """Yield the id of every BTF object in the kernel, the kernel's own among them."""
    return _ids(Cmd.BTF_GET_NEXT_ID)


class Stats(Owned):
    """While it is open the kernel counts how often and how long each program runs (BPF_STATS_RUN_TIME)."""

    kind = "statistics"

    @classmethod
    def enable(cls) -> Stats:
        """Start counting; costs some 20 ns for each run of a program."""
        try:
            return cls(bpf_sys.enable_stats(BPF_STATS_RUN_TIME))
        except BpfError as error:
            raise _explain(error, ("CAP_SYS_ADMIN",)) from None
