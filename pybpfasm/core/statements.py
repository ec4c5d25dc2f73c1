# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""CO-RE in programs written here: a `Struct` has the name of the kernel's type, and the fields that are
needed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from pybpfasm import isa
from pybpfasm.asm.branches import Label
from pybpfasm.bitfield import BitField
from pybpfasm.btf import Btf, BtfBuilder, BtfError
from pybpfasm.core.relocation import CoreKind, CoreRelocation
from pybpfasm.errors import AsmError, suggestion
from pybpfasm.isa import Alu
from pybpfasm.layout import Array, Field, Nested, Scalar, Struct, member_name
from pybpfasm.source import capture, resolve

if TYPE_CHECKING:
    from pybpfasm.asm import Reg

__all__ = [
    "core_add_offset",
    "core_enum_exists",
    "core_enum_value",
    "core_exists",
    "core_load",
    "core_load_bits",
    "core_offset",
    "core_size",
    "core_type_id",
]


def core_load(to: Reg, view: Struct, path: str) -> None:
    """``rN = *(uM *)(rK + offset)``, with offset and size of the kernel's field: one instruction.

        class Task(Struct, kernel_name="task_struct"):
            tgid = S32()

        core_load(b.r2, Task(b.r1), "tgid")

    *path* names the field, through structures and arrays: ``"se.vruntime"``, ``"comm[3]"``. The other fields,
    their order and their offsets in Python count for nothing. The program needs `ProgramSpec.resolve` before
    it is loaded. Raises `AsmError`.
    """
    struct = _struct_of(to, view)
    access, field, offset = _path(to, struct, path)
    if isinstance(field, BitField):
        raise _wrong(to, f"{struct.__name__}.{path} is a bit field: core_load_bits() loads it")
    if not isinstance(field, Scalar):
        raise to.asm._error(f"{struct.__name__}.{path} is no integer or pointer that a register could hold")
    if to.index == isa.FRAME_POINTER:
        raise to.asm._frame_pointer()
    if to.is_w:
        raise to.asm._error(f"write b.r{to.index}: a load of 1, 2 or 4 bytes clears the rest of the register")
    reference = CoreRelocation(CoreKind.FIELD_BYTE_OFFSET, *_local(struct), access)
    opcode = isa.LDX | isa.MEM | isa.SIZE_CODE[field.size]
    to.asm._emit(opcode, to.index, _register_of(view), offset, reference=reference)


def _struct_of(to: Reg, view: Struct) -> type[Struct]:
    _need_register(to)
    if not isinstance(view, Struct):
        raise to.asm._error(f"a view of the kernel's structure comes second: {_example(view)}(b.rN)")
    return type(view)


def _example(struct: object) -> str:
    return struct.__name__ if isinstance(struct, type) and issubclass(struct, Struct) else "Task"


def _need_register(to: object) -> None:
    from pybpfasm.asm import Reg

    if not isinstance(to, Reg):
        raise AsmError(f"a register comes first, b.rN, not {to!r}", resolve(capture(None, 2)))


def _register_of(view: Struct) -> int:
    if view.address.offset:
        raise view.address.asm._error(f"{view!r}: the kernel's structure starts where the register points to")
    return view.address.base


def core_load_bits(to: Reg, view: Struct, path: str) -> None:
    """``rN`` = a bit field of the kernel, extended to 64 bits: 13 instructions, of which 5 to 8 are run.

        class Skb(Struct, kernel_name="sk_buff"):
            pkt_type = U8.bits(3)

        core_load_bits(b.r2, Skb(b.r1), "pkt_type")

    Where the field is, how many bits it has, and in how many bytes, is the kernel's to say; whether it has a
    sign, and its name, are taken from Python. *to* holds these facts on the way, so it is not the register
    that *view* lies at; no other is changed. Otherwise as `core_load`. Raises `AsmError`.
    """
    struct, asm = _struct_of(to, view), to.asm
    access, field, _ = _path(to, struct, path)
    if not isinstance(field, BitField):
        raise _wrong(to, f"{struct.__name__}.{path} is no bit field: core_load() loads it")
    base = _register_of(view)
    if base == to.index:
        raise _wrong(to, f"r{base} can't hold the address and, before that is used, facts about the field")
    _constant(to, CoreKind.FIELD_BYTE_SIZE, struct, access, field.base.size)
    done = Label("done")
    labels = {size: Label(f"size {size}") for size in (1, 2, 4)}
    for size, label in labels.items():
        asm.If(to == size).goto(label)
    for size in (8, 4, 2, 1):
        if size < 8:
            asm.goto(done)
            asm.label(labels[size])
        reference = CoreRelocation(CoreKind.FIELD_BYTE_OFFSET, *_local(struct), access)
        asm._emit(isa.LDX | isa.MEM | isa.SIZE_CODE[size], to.index, base, reference=reference)
    asm.label(done)
    right = Alu.ARSH if field.base.signed else Alu.RSH
    _constant(to, CoreKind.FIELD_LSHIFT_U64, struct, access, 0, Alu.LSH)
    _constant(to, CoreKind.FIELD_RSHIFT_U64, struct, access, 64 - field.width, right)


def core_offset(to: Reg, struct: type[Struct], path: str) -> None:
    """``rN = offset``: where the kernel has the field, in bytes from the start of *struct*.

    Arguments and errors as with `core_load`; a kernel without the field refuses the program if it can get
    there (see `core_exists`).
    """
    access, _, offset = _path(to, struct, path)
    _constant(to, CoreKind.FIELD_BYTE_OFFSET, struct, access, offset)


def core_add_offset(to: Reg, struct: type[Struct], path: str) -> None:
    """``rN += offset``: from the address of a *struct* of the kernel to its field's, as `core_offset`."""
    access, _, offset = _path(to, struct, path)
    _constant(to, CoreKind.FIELD_BYTE_OFFSET, struct, access, offset, Alu.ADD)


def core_size(to: Reg, struct: type[Struct], path: str = "") -> None:
    """``rN = size``: how many bytes the kernel's field takes, or without *path* its structure.

    Raises `AsmError`.
    """
    _need_struct(to, struct)
    if not path:
        _constant(to, CoreKind.TYPE_SIZE, struct, "0", struct.sizeof)
        return
    access, field, _ = _path(to, struct, path)
    size = field.base.size if isinstance(field, BitField) else field.size
    _constant(to, CoreKind.FIELD_BYTE_SIZE, struct, access, size)


def core_exists(to: Reg, struct: type[Struct], path: str = "") -> None:
    """``rN = 1`` where the kernel has the field, or without *path* the structure, else ``rN = 0``.

    Raises `AsmError`.
    """
    _need_struct(to, struct)
    if not path:
        _constant(to, CoreKind.TYPE_EXISTS, struct, "0", 1)
        return
    _constant(to, CoreKind.FIELD_EXISTS, struct, _path(to, struct, path)[0], 1)


def core_type_id(to: Reg, struct: type[Struct]) -> None:
    """``rN = id``: of the kernel's structure in its BTF, as ``bpf_rdonly_cast`` and its like want it.

    A kernel without the structure refuses the program if it can get there. Raises `AsmError`.
    """
    _need_struct(to, struct)
    _constant(to, CoreKind.TYPE_ID_TARGET, struct, "0", 0)


def core_enum_value(to: Reg, enum: str, name: str, value: int = 0) -> None:
    """``rN = value``: what *name* is in the kernel's enumeration *enum*, 64 bits: one instruction of two
    slots.

    *value* stands for it in a run without a kernel. A kernel without the name refuses the program if it can
    get there (see `core_enum_exists`). Raises `AsmError`.
    """
    reference = _enumerator(to, CoreKind.ENUMVAL_VALUE, enum, name)
    to.asm._wide(to.index, False, value & 0xFFFF_FFFF_FFFF_FFFF, reference)


def core_enum_exists(to: Reg, enum: str, name: str) -> None:
    """``rN = 1`` where the kernel's enumeration *enum* has *name*, else ``rN = 0``.

    Raises `AsmError`.
    """
    reference = _enumerator(to, CoreKind.ENUMVAL_EXISTS, enum, name)
    to.asm._emit(isa.ALU64 | Alu.MOV | isa.K, to.index, 0, 0, 1, reference=reference)


def _enumerator(to: Reg, kind: CoreKind, enum: str, name: str) -> CoreRelocation:
    _need_register(to)
    if to.index == isa.FRAME_POINTER:
        raise to.asm._frame_pointer()
    if to.is_w:
        raise to.asm._error(f"write b.r{to.index}")
    builder = BtfBuilder()
    try:
        type_id = builder.add_enum(enum, {name: 0})
    except (BtfError, TypeError) as error:
        raise to.asm._error(f"an enumeration and a name in it come second and third: {error}") from None
    return CoreRelocation(kind, Btf.parse(builder.to_bytes()), type_id, "0")


def _need_struct(to: Reg, struct: type[Struct]) -> None:
    _need_register(to)
    if not (isinstance(struct, type) and issubclass(struct, Struct)):
        raise to.asm._error(f"the structure's class comes second, not {type(struct).__name__}")


def _constant(
    to: Reg, kind: CoreKind, struct: type[Struct], access: str, value: int, operation: Alu = Alu.MOV
) -> None:
    if to.index == isa.FRAME_POINTER:
        raise to.asm._frame_pointer()
    if to.is_w:
        raise to.asm._error(f"write b.r{to.index}")
    reference = CoreRelocation(kind, *_local(struct), access)
    to.asm._emit(isa.ALU64 | operation | isa.K, to.index, 0, 0, value, reference=reference)


_locals: WeakKeyDictionary[type[Struct], tuple[Btf, int]] = WeakKeyDictionary()


def _local(struct: type[Struct]) -> tuple[Btf, int]:
    """The structure as a type of its own BTF."""
    if struct not in _locals:
        builder = BtfBuilder()
        type_id = struct.btf(builder)
        _locals[struct] = (Btf.parse(builder.to_bytes()), type_id)
    return _locals[struct]


_STEP: Final = re.compile(r"([A-Za-z_]\w*)((?:\[\d{1,6}\])*)", re.ASCII)


def _path(to: Reg, struct: type[Struct], path: str) -> tuple[str, Field, int]:
    """The access that *path* stands for, the field at its end, and its offset in Python."""
    _need_struct(to, struct)
    access, offset = ["0"], 0
    at: type[Struct] | None = struct
    field: Field | None = None
    for part in path.split("."):
        step = _STEP.fullmatch(part)
        if step is None:
            raise _wrong(to, f'{path!r} is no path to a field: write "a.b[2].c"')
        if at is None:
            raise _wrong(to, f"{struct.__name__}.{path}: there is no structure before .{part}")
        field = at.fields.get(step[1])
        if field is None:
            raise _wrong(to, f"{at.__name__} has no field {step[1]!r}{suggestion(step[1], at.fields)}")
        members = [member[0] for member in at._members(BtfBuilder())]
        if member_name(step[1]) not in members:
            raise _wrong(to, f"{at.__name__}.{step[1]} can't be described in BTF, which CO-RE needs")
        access.append(str(members.index(member_name(step[1]))))
        offset += field.offset
        for index in re.findall(r"\d+", step[2]):
            if not isinstance(field, Array) or int(index) >= field.count:
                raise _wrong(to, f"{struct.__name__}.{path}: there is no element [{index}]")
            field = field.element
            access.append(index)
            offset += int(index) * field.size
        at = field.struct if isinstance(field, Nested) else None
    assert field is not None
    return ":".join(access), field, offset


def _wrong(to: Reg, message: str) -> AsmError:
    return to.asm._error(message)
