# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Map specifications: what `bpf(BPF_MAP_CREATE)` will be asked for, as plain data."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pybpfasm.errors import LayoutError
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, MapType
from pybpfasm.layout import U32, ByteOrder, Field, Struct

MapMember: TypeAlias = "type[Struct] | Field | int | None"

_NAME = re.compile(r"[A-Za-z0-9_.]{1,15}")

# Maps whose key and value types the kernel takes no BTF for (their map_check_btf answers ENOTSUPP).
WITHOUT_BTF: Final = frozenset(
    {
        MapType.SOCKMAP,
        MapType.SOCKHASH,
        MapType.PROG_ARRAY,
        MapType.PERF_EVENT_ARRAY,
        MapType.ARRAY_OF_MAPS,
        MapType.HASH_OF_MAPS,
        MapType.RINGBUF,
        MapType.USER_RINGBUF,
        MapType.DEVMAP,
        MapType.DEVMAP_HASH,
        MapType.CPUMAP,
        MapType.XSKMAP,
        MapType.STACK_TRACE,
        MapType.CGROUP_ARRAY,
        MapType.QUEUE,
        MapType.STACK,
        MapType.BLOOM_FILTER,
    }
)


def _size(member: MapMember) -> int:
    if member is None:
        return 0
    if isinstance(member, int):
        return member
    if isinstance(member, Field):
        return member.size
    return member.sizeof


@dataclass(frozen=True, eq=False, repr=False)
class MapSpec:
    """A map that a program names; the loader creates it, or takes over one that is pinned.

    ``name`` (1 to 15 of ``A-Za-z0-9_.``) identifies it within a set of programs. ``key`` and ``value`` are a
    `Struct` class, a field such as ``U32()``, a size in bytes, or ``None`` where the type has none. ``flags``
    are the kernel's ``BPF_F_*`` for map creation, ``map_extra`` what a few types want besides (``union
    bpf_attr``). ``inner`` is the pattern of the maps in a map of maps. ``contents`` are the bytes that the
    only value of an array map starts with: static data. ``initial`` says which program or map, by its name,
    is in an entry of an array of programs or maps from the start; objects hold this, and who loads them fills
    it in. Raises `LayoutError` where these can't be.
    """

    name: str
    type: MapType
    key: MapMember
    value: MapMember
    max_entries: int
    flags: int = 0
    map_extra: int = 0
    inner: MapSpec | None = None
    contents: bytes | None = None
    initial: tuple[tuple[int, str], ...] = ()

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise LayoutError(f"map name {self.name!r}: 1 to 15 letters, digits, '_' or '.' are allowed")
        if not isinstance(self.type, MapType):
            raise LayoutError(f"map {self.name}: its type is a MapType, not {self.type!r}")
        if not isinstance(self.max_entries, int) or not 0 <= self.max_entries <= 0xFFFFFFFF:
            raise LayoutError(f"map {self.name}: max_entries={self.max_entries!r} does not fit 32 bits")
        for member in (self.key, self.value):
            known = member is None or isinstance(member, (int, Field, type))
            if not known or (isinstance(member, int) and member < 0):
                raise LayoutError(
                    f"map {self.name}: a key or value is a structure, a field or a number of bytes, "
                    f"not {member!r}"
                )
            if isinstance(member, type) and not issubclass(member, Struct):
                raise LayoutError(f"map {self.name}: a key or value is written {member.__name__}()")
            if isinstance(member, Field) and not member.is_whole:
                raise LayoutError(f"map {self.name}: a bit field is no key or value; a structure of them is")
        if self.contents is not None:
            if self.type is not MapType.ARRAY or self.max_entries != 1:
                raise LayoutError(f"map {self.name}: only an ARRAY of one entry has contents to start with")
            if len(self.contents) != self.value_size:
                raise LayoutError(
                    f"map {self.name}: {len(self.contents)} bytes of contents, a value of {self.value_size}"
                )

    def __repr__(self) -> str:
        sizes = f"key {self.key_size}, value {self.value_size} bytes, {self.max_entries} entries"
        return f"<{type(self).__name__} {self.name} {self.type.name}, {sizes}>"

    @property
    def key_size(self) -> int:
        """Bytes of a key."""
        return _size(self.key)

    @property
    def value_size(self) -> int:
        """Bytes of a value; of one CPU's for per-CPU maps, where the kernel rounds up to 8 for each."""
        return _size(self.value)

    def value_at(self, place: int | str = 0) -> MapValue:
        """The address of a byte of an array map's only value, or of a field where the value is a structure:
        ``b.r1 = stats.value_at(8)``, ``b.r1 = stats.value_at("dropped")``.

        Takes Linux 5.2. Raises `LayoutError` for other maps, and outside the value.
        """
        if self.type is not MapType.ARRAY or self.max_entries != 1:
            raise LayoutError(
                f"map {self.name}: only an ARRAY of one entry has an address that is known at load"
            )
        if isinstance(place, str):
            if not (isinstance(self.value, type) and issubclass(self.value, Struct)):
                raise LayoutError(f"map {self.name}: its value is no structure, and has no field {place!r}")
            offset = self.value.offsetof(place)
        elif isinstance(place, int):
            offset = place
        else:
            raise LayoutError(
                f"map {self.name}: a place in its value is a byte's number or a field's name, "
                f"not {type(place).__name__}"
            )
        if not 0 <= offset < self.value_size:
            raise LayoutError(
                f"map {self.name}: byte {offset} is outside its value of {self.value_size} bytes"
            )
        return MapValue(self, offset)

    def entries(self, cpus: int, page: int = 4096) -> int:
        """How many entries the map gets on a machine of so many *cpus*, with pages of so many bytes."""
        return self.max_entries

    def refusal(self) -> str | None:
        """Why every kernel refuses to create the map, and what to write; ``None`` where it may be created."""
        from pybpfasm.maprules import refusal

        return refusal(self)

    def btf(self, byteorder: ByteOrder = sys.byteorder) -> tuple[bytes, int, int] | None:
        """BTF bytes with the type ids of key and value, or ``None`` where the kernel takes none for this
        map."""
        if self.type in WITHOUT_BTF:
            return None
        if self.type is MapType.LPM_TRIE and not isinstance(self.key, type):
            return None  # the kernel takes the key's type for a structure, or none at all
        from pybpfasm.btf import BtfBuilder

        builder = BtfBuilder(byteorder)
        ids = []
        for member, fallback in ((self.key, "key"), (self.value, "value")):
            if isinstance(member, Field):
                ids.append(member.btf(builder))
            elif isinstance(member, int) or member is None:
                size = member or 0
                if size in (1, 2, 4, 8):
                    ids.append(builder.add_int(f"{fallback}_u{size * 8}", size))
                elif size:
                    ids.append(builder.add_array(builder.add_int("unsigned char", 1), size))
                else:
                    ids.append(0)
            else:
                ids.append(member.btf(builder))
        return (builder.to_bytes(), ids[0], ids[1]) if len(builder) else None


@dataclass(frozen=True)
class MapValue:
    """The address of a byte within a map's value (``BPF_PSEUDO_MAP_VALUE``, RFC 9669 section 5.4); ``offset``
    is in bytes."""

    map: MapSpec
    offset: int


@dataclass(frozen=True)
class StaticData(MapValue):
    """A structure that a program holds, as the one value of an array map; made by `rodata`, `data` and `bss`.

    It is its own address: ``b.r1 = LIMITS``, then ``b.r2 = Limits(b.r1).high``. `at` gives a field's.
    """

    struct: type[Struct]

    def at(self, field: str) -> MapValue:
        """The address of a field, for ``b.r1 = LIMITS.at("high")``; raises `LayoutError` without such a
        field."""
        return MapValue(self.map, self.struct.offsetof(field))


def rodata(struct: type[Struct], name: str = ".rodata", /, **values: Any) -> StaticData:
    """Constants in the layout *struct*, with *values* in its fields and zeros elsewhere.

    Neither the program nor, once it is loaded, anybody else can change them; the verifier takes them as
    known. *name* is the map's, and the section's in an object (``.rodata``, ``.rodata.mine``). Raises
    `LayoutError`.
    """
    return _static(struct, name, ".rodata", values, BPF_F_RDONLY_PROG)


def data(struct: type[Struct], name: str = ".data", /, **values: Any) -> StaticData:
    """Variables in the layout *struct*, which start with *values*; as `rodata` otherwise."""
    return _static(struct, name, ".data", values, 0)


def bss(struct: type[Struct], name: str = ".bss", /) -> StaticData:
    """Variables in the layout *struct*, which start as zeros; as `rodata` otherwise."""
    return _static(struct, name, ".bss", None, 0)


def _static(
    struct: type[Struct], name: str, section: str, values: dict[str, Any] | None, flags: int
) -> StaticData:
    if name != section and not name.startswith(section + "."):
        raise LayoutError(f"static data {name!r}: the name is {section}, or begins with {section}.")
    contents = None if values is None else struct.pack(**values)
    spec = MapSpec(name, MapType.ARRAY, U32(), struct, 1, flags, contents=contents)
    return StaticData(spec, 0, struct)
