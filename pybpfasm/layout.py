# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Typed layouts of memory: packet headers, contexts, map keys and values.

A structure is declared once and serves three readers: the assembler (offset, size and byte order of a load or
a store), BTF (named fields in ``bpftool map dump``), and Python (`Struct.pack` and `Struct.unpack`).

    class FlowKey(Struct):
        client = Array(U8(), 16)
        port = Be16()
        proto = U8()
        pad = U8()

An *instance* is a view of memory at a register: ``FlowKey(b.r10 - 24)``, and ``b.r2 = key.port`` is a 2-byte
load.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from keyword import iskeyword
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NoReturn, Self, TypeVar, overload

from pybpfasm.errors import AsmError, LayoutError, suggestion
from pybpfasm.source import capture, resolve

if TYPE_CHECKING:
    from pybpfasm.asm import Address, Mem, Reg, StoreValue
    from pybpfasm.bitfield import BitField
    from pybpfasm.btf import BtfBuilder

ByteOrder = Literal["little", "big"]

__all__ = [
    "S8",
    "S16",
    "S32",
    "S64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Array",
    "Be16",
    "Be32",
    "Be64",
    "Bytes",
    "Field",
    "Nested",
    "Pointer",
    "Record",
    "Scalar",
    "Struct",
    "Union",
]


class Field:
    """A member of a structure: its offset, its size in bytes and its alignment.

    ``at`` fixes the offset; without it the field follows the one before, naturally aligned.
    """

    __slots__ = ("align", "at", "name", "offset", "owner", "size")

    is_whole: ClassVar[bool] = True  # of bytes, no bit field

    def __init__(self, size: int, align: int, *, at: int | None = None) -> None:
        if at is not None and not isinstance(at, int):
            raise LayoutError(f"at= is an offset in bytes, not {at!r}")
        self.size = size
        self.align = align
        self.at = at
        self.offset = 0
        self.name = ""
        self.owner = ""

    @property
    def c_type(self) -> str:
        """The C spelling of the field's type, for listings and messages."""
        raise NotImplementedError

    def to_bytes(self, value: Any, byteorder: ByteOrder) -> bytes:
        """*value* as the field's bytes; raises `LayoutError` when it does not fit."""
        raise NotImplementedError

    def from_bytes(self, data: bytes, byteorder: ByteOrder) -> Any:
        """The Python value of the field's bytes."""
        raise NotImplementedError

    def btf(self, builder: BtfBuilder) -> int:
        """The BTF type id of the field's type, added to *builder* where it is new."""
        raise NotImplementedError

    # What a structure asks of its fields; those that are bits do it otherwise.
    def place(self, name: str, end: int, packed: bool) -> int:
        """Lie in the structure whose fields so far end at bit *end*; returns the bit behind this one."""
        step = 1 if packed else self.align
        self.offset = -(-end // (8 * step)) * step if self.at is None else self.at
        return (self.offset + self.size) * 8

    def is_padding(self, name: str) -> bool:
        """Whether a field of this *name* is only there to take room."""
        return False

    def write(self, out: bytearray, value: Any, byteorder: ByteOrder) -> None:
        """Put *value* into its place in a structure's bytes; raises `LayoutError` when it does not fit."""
        out[self.offset : self.offset + self.size] = self.to_bytes(value, byteorder)

    def read(self, data: bytes, byteorder: ByteOrder) -> Any:
        """The Python value in a structure's bytes."""
        return self.from_bytes(data[self.offset : self.offset + self.size], byteorder)

    def member(self, builder: BtfBuilder) -> tuple[str, int, int] | tuple[str, int, int, int] | None:
        """The member of the structure in BTF: name, type, bit offset, and width of a bit field; ``None``
        where BTF has no words for it."""
        return member_name(self.name), self.btf(builder), self.offset * 8

    @property
    def end(self) -> int:
        """The bit behind it."""
        return (self.offset + self.size) * 8

    def __repr__(self) -> str:
        if not self.name:
            return f"<{self.c_type}>"
        return f"<{self.c_type} {self.owner}.{self.name} at {self.offset}>"


class Scalar(Field):
    """An integer field.

    ``order`` is its byte order in memory: ``"host"`` or ``"big"`` (network order).
    """

    __slots__ = ("c_name", "order", "signed")

    _size: ClassVar[int]
    _c_name: ClassVar[str]
    _signed: ClassVar[bool] = False
    _order: ClassVar[Literal["host", "big"]] = "host"

    def __init__(self, *, at: int | None = None) -> None:
        super().__init__(self._size, self._size, at=at)
        self.signed = self._signed
        self.order = self._order
        self.c_name = self._c_name

    @classmethod
    def bits(cls, width: int, *, at: int | None = None, at_bit: int | None = None) -> BitField:
        """A bit field of *width* bits in units of this type: see `pybpfasm.bitfield`.

        A name of an underscore and digits makes it padding, which may have a *width* of 0: the next one then
        begins a new unit. ``at`` fixes the byte where it starts, ``at_bit`` the bit. Raises `LayoutError`.
        """
        from pybpfasm.bitfield import BitField

        return BitField(cls(), width, at=at, at_bit=at_bit)

    @property
    def c_type(self) -> str:
        return self.c_name

    @overload
    def __get__(self, obj: None, owner: type[Struct]) -> Self: ...
    @overload
    def __get__(self, obj: Struct, owner: type[Struct]) -> Mem: ...
    def __get__(self, obj: Struct | None, owner: type[Struct]) -> Self | Mem:
        if obj is None:
            return self
        return obj._address.mem(self, self.offset)

    def __set__(self, obj: Struct, value: StoreValue) -> None:
        obj._address.mem(self, self.offset).store(value)

    def to_bytes(self, value: Any, byteorder: ByteOrder) -> bytes:
        order: ByteOrder = "big" if self.order == "big" else byteorder
        if not isinstance(value, int):
            raise LayoutError(f"{self.owner}.{self.name} takes an int, not {type(value).__name__}")
        try:
            return int(value).to_bytes(self.size, order, signed=self.signed)
        except OverflowError:
            raise LayoutError(
                f"{value} does not fit {self.owner}.{self.name}, a {self.c_name} of {self.size} bytes"
            ) from None

    def from_bytes(self, data: bytes, byteorder: ByteOrder) -> int:
        order: ByteOrder = "big" if self.order == "big" else byteorder
        return int.from_bytes(data, order, signed=self.signed)

    def btf(self, builder: BtfBuilder) -> int:
        base = builder.add_int(_C_INT[self.size, self.signed], self.size, signed=self.signed)
        return builder.add_typedef(self.c_name, base)


def _fields_word(value: object) -> str:
    """How *value* is written as a field."""
    if isinstance(value, type) and issubclass(value, Struct):
        return f"Nested({value.__name__})"
    if isinstance(value, type) and issubclass(value, Field):
        return f"{value.__name__}(…)" if issubclass(value, (Array, Nested)) else f"{value.__name__}()"
    return f"not {value!r}"


_C_INT = {
    (1, False): "unsigned char",
    (2, False): "unsigned short",
    (4, False): "unsigned int",
    (8, False): "unsigned long long",
    (1, True): "signed char",
    (2, True): "short",
    (4, True): "int",
    (8, True): "long long",
}


class U8(Scalar):
    """An unsigned integer of 1 byte."""

    __slots__ = ()
    _size, _c_name = 1, "__u8"


class U16(Scalar):
    """An unsigned integer of 2 bytes in host order."""

    __slots__ = ()
    _size, _c_name = 2, "__u16"


class U32(Scalar):
    """An unsigned integer of 4 bytes in host order."""

    __slots__ = ()
    _size, _c_name = 4, "__u32"


class U64(Scalar):
    """An unsigned integer of 8 bytes in host order."""

    __slots__ = ()
    _size, _c_name = 8, "__u64"


class S8(Scalar):
    """A signed integer of 1 byte.

    Loads zero-extend; ``field.signed`` loads with the sign (``ldsx``).
    """

    __slots__ = ()
    _size, _c_name, _signed = 1, "__s8", True


class S16(Scalar):
    """A signed integer of 2 bytes in host order.

    Loads zero-extend, as with `S8`.
    """

    __slots__ = ()
    _size, _c_name, _signed = 2, "__s16", True


class S32(Scalar):
    """A signed integer of 4 bytes in host order.

    Loads zero-extend, as with `S8`.
    """

    __slots__ = ()
    _size, _c_name, _signed = 4, "__s32", True


class S64(Scalar):
    """A signed integer of 8 bytes in host order."""

    __slots__ = ()
    _size, _c_name, _signed = 8, "__s64", True


class Be16(Scalar):
    """An unsigned integer of 2 bytes in network byte order.

    A constant is converted at assembly, a load is not.
    """

    __slots__ = ()
    _size, _c_name, _order = 2, "__be16", "big"


class Be32(Scalar):
    """An unsigned integer of 4 bytes in network byte order, as with `Be16`."""

    __slots__ = ()
    _size, _c_name, _order = 4, "__be32", "big"


class Be64(Scalar):
    """An unsigned integer of 8 bytes in network byte order, as with `Be16`."""

    __slots__ = ()
    _size, _c_name, _order = 8, "__be64", "big"


class Pointer(Scalar):
    """A pointer, 8 bytes; in Python a number.

    What it points to is not said. CO-RE takes it for a pointer only, and no integer for one.
    """

    __slots__ = ()
    _size, _c_name = 8, "void *"

    @classmethod
    def bits(cls, width: int, *, at: int | None = None, at_bit: int | None = None) -> NoReturn:
        """There are no bit fields of pointers."""
        raise LayoutError("a bit field is of an integer type, not of a pointer: U64.bits(…)")

    def btf(self, builder: BtfBuilder) -> int:
        return builder.add_ptr(0)


class ArrayView:
    """The elements of an `Array` in memory: ``ctx.cb[0]`` reads, ``ctx.cb[0] = b.r2`` writes."""

    __slots__ = ("_address", "_field")

    def __init__(self, field: Array, address: Address) -> None:
        self._field = field
        self._address = address

    def _refuse_register(self, index: object, size: int) -> None:
        if type(index).__name__ == "Reg":
            field = self._field
            raise AsmError(
                f"an index of {field.owner}.{field.name} is known in Python, and a register is not: "
                f"b.lea() the array, add the index times {size}, and use the memory there",
                self._address.asm.here(),
            )

    def _element(self, index: int) -> tuple[Scalar, int]:
        field = self._field
        self._refuse_register(index, field.element.size)
        if not isinstance(index, int) or not 0 <= index < field.count:
            raise AsmError(
                f"index {index!r} is outside {field.owner}.{field.name}, which has {field.count} elements",
                self._address.asm.here(),
            )
        if not isinstance(field.element, Scalar):
            raise AsmError(
                f"{field.owner}.{field.name} holds {field.element.c_type}: "
                f"use .at({index}) for a view of one element",
                self._address.asm.here(),
            )
        return field.element, index * field.element.size

    def at(self, index: int) -> Any:
        """A view of element *index* where these are structures or arrays; raises `AsmError` outside."""
        field = self._field
        if isinstance(field.element, Scalar):
            return self[index]
        self._refuse_register(index, field.element.size)
        if not isinstance(index, int) or not 0 <= index < field.count:
            raise AsmError(
                f"index {index!r} is outside {field.owner}.{field.name}, which has {field.count} elements",
                self._address.asm.here(),
            )
        where = self._address + index * field.element.size
        if isinstance(field.element, Nested):
            return field.element.struct(where)
        assert isinstance(field.element, Array)
        return ArrayView(field.element, where)

    def __getitem__(self, index: int) -> Mem:
        element, offset = self._element(index)
        mem = self._address.mem(element, offset)
        mem.field, mem.index = self._field, index
        return mem

    def __setitem__(self, index: int, value: StoreValue) -> None:
        self[index].store(value)

    def __repr__(self) -> str:
        return f"<{self._field.owner}.{self._field.name} at {self._address}>"

    def __len__(self) -> int:
        return self._field.count

    @property
    def sizeof(self) -> int:
        """The bytes of all elements."""
        return self._field.size

    def __iter__(self) -> Iterator[Any]:
        return (self.at(index) for index in range(self._field.count))

    @property
    def address(self) -> Address:
        """Where the first element is."""
        return self._address

    def u32(self, index: int) -> Mem:
        """The *index*-th 4-byte word of the array, in host order, whatever its element type is.

        Raises `AsmError` outside the array.
        """
        return self._word(U32(), index)

    def u64(self, index: int) -> Mem:
        """The *index*-th 8-byte word of the array, as `u32`."""
        return self._word(U64(), index)

    def _word(self, word: Scalar, index: int) -> Mem:
        field = self._field
        self._refuse_register(index, word.size)
        if not isinstance(index, int) or not 0 <= index < field.size // word.size:
            raise AsmError(
                f"word {index!r} ({word.size} bytes) is outside {field.owner}.{field.name}, "
                f"{field.size} bytes",
                self._address.asm.here(),
            )
        mem = self._address.mem(word, index * word.size)
        mem.field = field
        return mem


class Array(Field):
    """*count* elements of one type.

    `U8` arrays are ``bytes`` in Python, others are tuples. The size is *count* times the element's, without
    gaps. Raises `LayoutError` for a negative *count*.
    """

    __slots__ = ("count", "element")

    def __init__(self, element: Field, count: int, *, at: int | None = None) -> None:
        if not isinstance(element, Field):
            raise LayoutError(f"an array takes a field for its elements: {_fields_word(element)}")
        if not isinstance(count, int) or count < 0:
            raise LayoutError(f"an array can't have {count!r} elements")
        if not element.is_whole:
            raise LayoutError("an array can't have bit fields for elements: make a structure of them")
        super().__init__(element.size * count, element.align, at=at)
        self.element = element
        self.count = count

    @property
    def c_type(self) -> str:
        return f"{self.element.c_type}[{self.count}]"

    @overload
    def __get__(self, obj: None, owner: type[Struct]) -> Self: ...
    @overload
    def __get__(self, obj: Struct, owner: type[Struct]) -> ArrayView: ...
    def __get__(self, obj: Struct | None, owner: type[Struct]) -> Self | ArrayView:
        if obj is None:
            return self
        return ArrayView(self, obj._address + self.offset)

    def __set__(self, obj: Struct, value: object) -> None:
        raise AsmError(
            f"{self.owner}.{self.name} is an array: assign to one element, {self.name}[i] = …",
            obj._address.asm.here(),
        )

    def to_bytes(self, value: Any, byteorder: ByteOrder) -> bytes:
        if isinstance(value, (bytes, bytearray)):
            if len(value) != self.size:
                raise LayoutError(f"{self.owner}.{self.name} takes {self.size} bytes, got {len(value)}")
            return bytes(value)
        try:
            items = list(value)
        except TypeError:
            raise LayoutError(
                f"{self.owner}.{self.name} takes {self.count} elements, not {type(value).__name__}"
            ) from None
        if len(items) != self.count:
            raise LayoutError(f"{self.owner}.{self.name} takes {self.count} elements, got {len(items)}")
        return b"".join(self.element.to_bytes(item, byteorder) for item in items)

    def from_bytes(self, data: bytes, byteorder: ByteOrder) -> Any:
        if isinstance(self.element, U8):
            return bytes(data)
        step = self.element.size
        return tuple(
            self.element.from_bytes(data[i * step : (i + 1) * step], byteorder) for i in range(self.count)
        )

    def btf(self, builder: BtfBuilder) -> int:
        return builder.add_array(self.element.btf(builder), self.count)


class Bytes(Array):
    """*size* bytes without a structure of their own, alignment 1; ``bytes`` in Python."""

    __slots__ = ()

    def __init__(self, size: int, *, at: int | None = None) -> None:
        super().__init__(U8(), size, at=at)


S = TypeVar("S", bound="Struct")


class Nested(Field, Generic[S]):
    """A structure inside a structure, with its size and alignment; in Python a `Record`, and when packed a
    dict or bytes too."""

    __slots__ = ("struct",)

    def __init__(self, struct: type[S], *, at: int | None = None) -> None:
        if not (isinstance(struct, type) and issubclass(struct, Struct)):
            raise LayoutError(f"Nested takes the class of a structure, not {struct!r}")
        super().__init__(struct.sizeof, struct.alignof, at=at)
        self.struct = struct

    @property
    def c_type(self) -> str:
        return f"{'union' if self.struct._overlays else 'struct'} {self.struct.kernel_name}"

    @overload
    def __get__(self, obj: None, owner: type[Struct]) -> Self: ...
    @overload
    def __get__(self, obj: Struct, owner: type[Struct]) -> S: ...
    def __get__(self, obj: Struct | None, owner: type[Struct]) -> Self | S:
        if obj is None:
            return self
        return self.struct(obj._address + self.offset)

    def __set__(self, obj: Struct, value: object) -> None:
        raise AsmError(
            f"{self.owner}.{self.name} is a structure: assign to its fields one by one",
            obj._address.asm.here(),
        )

    def to_bytes(self, value: Any, byteorder: ByteOrder) -> bytes:
        if isinstance(value, (bytes, bytearray)):
            if len(value) != self.size:
                raise LayoutError(f"{self.owner}.{self.name} takes {self.size} bytes, got {len(value)}")
            return bytes(value)
        if isinstance(value, Record):
            value = value.as_dict()
        if not isinstance(value, Mapping):
            raise LayoutError(
                f"{self.owner}.{self.name} takes a dict, a Record or bytes, not {type(value).__name__}"
            )
        return self.struct.pack(byteorder=byteorder, **value)

    def from_bytes(self, data: bytes, byteorder: ByteOrder) -> Record:
        return self.struct.unpack(data, byteorder=byteorder)

    def btf(self, builder: BtfBuilder) -> int:
        return self.struct.btf(builder)


class Record:
    """The values of a structure read from memory, by field name: ``entry.port``."""

    __slots__ = ("_byteorder", "_struct", "_values")

    def __init__(self, struct: type[Struct], values: dict[str, Any], byteorder: ByteOrder) -> None:
        object.__setattr__(self, "_struct", struct)
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_byteorder", byteorder)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(
                f"{self._struct.__name__} has no field {name!r}{suggestion(name, self._values)}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            "a Record is read-only: use Struct.pack(**record.as_dict() | {…}) for a changed one"
        )

    def as_dict(self) -> dict[str, Any]:
        """The values by field name, in the order of declaration."""
        return dict(self._values)

    def pack(self) -> bytes:
        """The bytes that these values came from, with zeros in the padding."""
        packed: bytes = self._struct.pack(byteorder=self._byteorder, **self._values)
        return packed

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Record):
            return self._struct is other._struct and self._values == other._values
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self._struct, tuple(self._values.values())))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._values.items())

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"{self._struct.__name__}({inner})"


class Struct:
    """Base of all layouts; see the module's text.

    A field whose name `Struct` or Python uses (``address``, ``from``) is written with an underscore behind
    it, which BTF does not have.

    Class keywords: ``kernel_name`` is the name in C and BTF (default: the class's own), ``size`` the total
    size where it is more than the fields take, ``packed`` leaves out natural alignment. Otherwise fields lie
    where a C compiler puts them on a 64-bit machine, and the size is a multiple of the largest alignment.

    ``fields`` maps names to `Field` objects, ``sizeof`` and ``alignof`` are in bytes. Raises `LayoutError`
    for a field name that is taken, a size too small, a negative offset.
    """

    __slots__ = ("_address",)
    _address: Address

    fields: ClassVar[Mapping[str, Field]] = MappingProxyType({})
    sizeof: ClassVar[int] = 0
    alignof: ClassVar[int] = 1
    kernel_name: ClassVar[str] = ""
    _overlays: ClassVar[bool] = False

    def __init_subclass__(
        cls, *, kernel_name: str = "", size: int | None = None, packed: bool = False, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        fields: dict[str, Field] = {}
        for base in reversed(cls.__mro__[1:]):
            if issubclass(base, Struct):
                fields.update(base.fields)
        end = max((f.end for f in fields.values()), default=0)
        align = max((f.align for f in fields.values()), default=1)
        mangled = f"_{cls.__name__.lstrip('_')}__"
        for name, field in list(vars(cls).items()):
            if not isinstance(field, Field):
                cls._no_field(name, field)
                continue
            if name in _RESERVED:
                raise LayoutError(
                    f"{cls.__name__}: {name!r} can't be a field name, Struct itself uses it: write {name}_, "
                    f"which is {name!r} in BTF"
                )
            if name.startswith(mangled):
                # Python's name for the __state of a class; the kernel has many such fields.
                delattr(cls, name)
                name = name[len(mangled) - 2 :]
                setattr(cls, name, field)
            if field.name:
                raise LayoutError(
                    f"{cls.__name__}.{name}: the same field object is {field.owner}.{field.name} too"
                )
            behind = cls._place(name, field, 0 if cls._overlays else end, packed)
            if field.offset < 0:
                raise LayoutError(f"{cls.__name__}.{name}: offset {field.offset} is negative")
            field.name, field.owner = name, cls.__name__
            if isinstance(field, Array):
                field.element.owner, field.element.name = cls.__name__, name
            end = max(end, behind)
            align = max(align, 1 if packed else field.align)
            if not field.is_padding(name):
                fields[name] = field
        length = -(-end // 8)
        total = -(-length // align) * align if not packed else length
        if size is not None:
            if size < length:
                raise LayoutError(
                    f"{cls.__name__}: size={size} is less than the {length} bytes that its fields take"
                )
            total = size
        cls.fields = MappingProxyType(fields)
        cls.sizeof = total
        cls.alignof = align
        cls.kernel_name = kernel_name or cls.__name__

    @classmethod
    def _no_field(cls, name: str, value: object) -> None:
        """Complain of what looks like a field and would be left out."""
        if name == "__annotations__":
            assert isinstance(value, dict)
            for other, annotation in value.items():
                if other not in vars(cls) and "ClassVar" not in str(annotation):
                    raise LayoutError(f"{cls.__name__}.{other} has a type and no value: {other} = U32()")
        elif isinstance(value, type) and issubclass(value, (Field, Struct)) and value.__name__ != name:
            raise LayoutError(f"{cls.__name__}.{name} is a class: {name} = {_fields_word(value)}")

    @classmethod
    def _place(cls, name: str, field: Field, end: int, packed: bool) -> int:
        """Give *field* its offset; returns the bit behind it."""
        try:
            behind = field.place(name, end, packed)
            if cls._overlays and field.offset:
                raise LayoutError(f"a field of a union starts at byte 0, not at {field.offset}")
            return behind
        except LayoutError as error:
            raise LayoutError(f"{cls.__name__}.{name}: {error}") from None

    def __init__(self, at: Reg | Address) -> None:
        try:
            address = at + 0
            address.asm  # noqa: B018
        except (TypeError, AttributeError):
            raise AsmError(
                f"a view lies at a register or an address, {type(self).__name__}(b.rN), "
                f"not at {type(at).__name__}",
                resolve(capture(None, 2)),
            ) from None
        address.asm._view_at(address, self.sizeof)
        object.__setattr__(self, "_address", address)

    @classmethod
    def _no_view(cls, values: Mapping[str, Any]) -> str:
        """What to write where values were given for the fields of a view."""
        name = cls.__name__
        for wrong in values:
            if wrong not in cls.fields:
                has = ", ".join(cls.fields) or "no fields"
                return f"{name}, which has {has}, has no field {wrong!r}{suggestion(wrong, cls.fields)}"
        given = ", ".join(f"{field}={value!r}" for field, value in values.items())
        return (
            f"{name}(…) is a view of memory at a register, {name}(b.rN): in Python the values are a dict, "
            f"dict({given}), or bytes, {name}.pack({given})"
        )

    @property
    def address(self) -> Address:
        """Where the view is: a register and a byte offset."""
        return self._address

    if not TYPE_CHECKING:  # a type checker would take every name for a field

        def __new__(cls, *at: Any, **values: Any) -> Self:
            if values:
                raise LayoutError(cls._no_view(values))
            return super().__new__(cls)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise AsmError(
                f"{type(self).__name__} has no field {name!r}{suggestion(name, self.fields)}",
                self._address.asm.here(),
            )

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in self.fields:
                raise AsmError(
                    f"{type(self).__name__} has no field {name!r}{suggestion(name, self.fields)}",
                    self._address.asm.here(),
                )
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self._address}>"

    @classmethod
    def offsetof(cls, name: str) -> int:
        """The byte offset of field *name*; raises `LayoutError` where there is none of that name."""
        try:
            return cls.fields[name].offset
        except KeyError:
            raise LayoutError(f"{cls.__name__} has no field {name!r}{suggestion(name, cls.fields)}") from None

    @classmethod
    def pack(cls, *, byteorder: ByteOrder = sys.byteorder, **values: Any) -> bytes:
        """The structure's bytes with *values* in its fields and zeros elsewhere.

        Integers of ``Be`` fields are given in host form. Raises `LayoutError` for an unknown field or a value
        that does not fit.
        """
        out = bytearray(cls.sizeof)
        for name, value in values.items():
            cls.offsetof(name)  # which complains where there is none
            cls.fields[name].write(out, value, byteorder)
        return bytes(out)

    @classmethod
    def unpack(cls, data: bytes, *, byteorder: ByteOrder = sys.byteorder) -> Record:
        """The fields of *data*, which must be ``sizeof`` bytes long; raises `LayoutError` otherwise.

        ``Be`` fields become host numbers, others are read in *byteorder*.
        """
        if len(data) != cls.sizeof:
            raise LayoutError(f"{cls.__name__} is {cls.sizeof} bytes, got {len(data)}")
        return Record(
            cls,
            {name: field.read(data, byteorder) for name, field in cls.fields.items()},
            byteorder,
        )

    @classmethod
    def btf(cls, builder: BtfBuilder) -> int:
        """The BTF type id of the structure, added to *builder* where it is new."""
        add = builder.add_union if cls._overlays else builder.add_struct
        return add(cls.kernel_name, cls.sizeof, cls._members(builder))

    @classmethod
    def _members(cls, builder: BtfBuilder) -> list[tuple[str, int, int] | tuple[str, int, int, int]]:
        """The members in BTF. The kernel wants them in the order of their offsets."""
        found = [field.member(builder) for field in cls.fields.values()]
        return sorted((member for member in found if member is not None), key=lambda member: member[2])


class Union(Struct):
    """Base of unions: all fields begin at byte 0.

    In Python a `Record` has each field's view of the bytes, and of several values that are packed the later
    ones are written over the earlier.
    """

    __slots__ = ()
    _overlays = True


_RESERVED = frozenset(name for name in dir(Struct) if not name.startswith("__"))


def field_name(name: str) -> str:
    """*name*, with an underscore behind it where `Struct` itself or Python uses it."""
    taken = name in _RESERVED or iskeyword(name) or (name.startswith("__") and name.endswith("__"))
    return f"{name}_" if taken else name


def member_name(name: str) -> str:
    """The member's name that stands behind `field_name`."""
    return name[:-1] if name.endswith("_") and field_name(name[:-1]) == name else name
