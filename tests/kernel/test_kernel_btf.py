# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The generated facts and the BTF code, against the running kernel."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loader.objects import Btf as KernelBtf
from pybpfasm.btf import Btf, BtfBuilder, BtfType, Kind, Linkage, declare
from pybpfasm.core.matching import Matcher
from pybpfasm.kernel import context, enums, generate, values
from pybpfasm.kernel.kfuncs import KFUNCS
from pybpfasm.layout import Nested, Struct
from tests.work import calls

VMLINUX = Path("/sys/kernel/btf/vmlinux")


@pytest.fixture(scope="module")
def vmlinux() -> Btf:
    """The running kernel's types."""
    return Btf.parse(VMLINUX.read_bytes())


@pytest.fixture(scope="module")
def enumerators(vmlinux: Btf) -> dict[str, int]:
    """Every enumerator that begins like one of BPF's, by name."""
    found: dict[str, int] = {}
    for t in vmlinux.types:
        if t.kind in (Kind.ENUM, Kind.ENUM64):
            for name, value in t.enumerators:
                if name.startswith(("BPF_", "TCX_", "XDP_", "SK_")):
                    found.setdefault(name, value)
    return found


def same_release() -> bool:
    """Whether the running kernel is of the release that the files were generated from."""
    header = Path(enums.__file__).read_text().splitlines()[1]
    found = re.search(r"Linux (\d+\.\d+)\.", header)
    assert found
    return platform.release().startswith((f"{found[1]}.", f"{found[1]}-")) or platform.release() == found[1]


@pytest.mark.parametrize("spec", generate._ENUMS, ids=lambda spec: spec.cls)
def test_enumeration_is_the_kernels(spec: generate._EnumSpec, enumerators: dict[str, int]) -> None:
    cls = getattr(enums, spec.cls)
    checked = 0
    for name, member in cls.__members__.items():
        kernel_name = next(
            (n for n in (f"{spec.prefix}{name}{spec.suffix}", f"{spec.prefix}{name}") if n in enumerators),
            None,
        )
        if kernel_name is None:
            assert not same_release(), f"{cls.__name__}.{name} is not in this kernel"
            continue
        # What says how many there are is another number in another release.
        if same_release() or not name.startswith("MAX"):
            assert member.value == enumerators[kernel_name], kernel_name
        checked += 1
    # The first ones are as old as the enumeration, and that may be younger than this kernel.
    assert checked >= min(2, len(cls)) or (checked == 0 and not same_release())


def test_constants_are_the_kernels(enumerators: dict[str, int]) -> None:
    constants = {name: value for name, value in vars(enums).items() if name.startswith("BPF_")}
    assert constants["BPF_ANY"] == enumerators["BPF_ANY"]
    for name, value in constants.items():
        if name in enumerators:
            assert value == enumerators[name], name
        else:
            assert not same_release(), f"{name} is not in this kernel"


def leaves(btf: Btf, t: BtfType, base: int = 0) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size in bytes of each member, with those of unnamed members in their place."""
    for member in t.members:
        at = base + member.bit_offset // 8
        if member.bitfield_size:
            continue
        if member.name:
            yield member.name, at, btf.size_of(member.type_id)
        else:
            yield from leaves(btf, btf.resolve(member.type_id), at)


@pytest.mark.parametrize("spec", generate._STRUCTS, ids=lambda spec: spec.cls)
def test_structure_is_the_kernels(spec: generate._StructSpec, vmlinux: Btf) -> None:
    cls: type[Struct] = getattr(context, spec.cls)
    found = vmlinux.by_name(spec.tag, Kind.STRUCT)
    assert found is not None
    omitted = generate._OMITTED.get(spec.tag, ())
    kernel = {name: (at, size) for name, at, size in leaves(vmlinux, found) if name not in omitted}
    open_ended = {name: 8 * count for (tag, name), count in generate._LENGTHS.items() if tag == spec.tag}
    for name, size in open_ended.items():
        assert kernel[name][1] == 0  # an array without a length, at the end
        kernel[name] = (kernel[name][0], size)
    ours = {name: (field.offset, field.size) for name, field in cls.fields.items()}
    assert kernel.keys() & ours.keys()
    for name in kernel.keys() & ours.keys():
        assert ours[name] == kernel[name], f"{spec.tag}.{name}"
    if same_release():
        assert ours == kernel
        assert cls.sizeof == found.size + sum(open_ended.values())


@pytest.mark.parametrize("spec", generate._VALUES, ids=lambda spec: spec.cls)
def test_what_is_the_kernels_in_values(spec: generate._StructSpec, vmlinux: Btf) -> None:
    """The verifier knows these by name and size; older kernels have not all of them."""
    cls: type[Struct] = getattr(values, spec.cls)
    found = vmlinux.by_name(spec.tag, Kind.STRUCT)
    if found is None:
        assert not same_release()
        return
    assert (cls.kernel_name, cls.sizeof) == (found.name, found.size)
    if not any(name for name, *_ in leaves(vmlinux, found)):
        assert not same_release()  # older kernels do not name what is in some of them
        return
    assert [(n, f.offset, f.size) for n, f in cls.fields.items()] == list(leaves(vmlinux, found))


def test_structures_within_structures_are_the_kernels(vmlinux: Btf) -> None:
    found = vmlinux.by_name("bpf_sock_tuple", Kind.STRUCT)
    assert found is not None
    union = vmlinux.resolve(found.members[0].type_id)
    assert [member.name for member in union.members] == ["ipv4", "ipv6"]
    for member in union.members:
        field = context.SockTuple.fields[member.name]
        assert isinstance(field, Nested)
        expected = list(leaves(vmlinux, vmlinux.resolve(member.type_id)))
        assert [(n, f.offset, f.size) for n, f in field.struct.fields.items()] == expected


def test_functions_of_the_kernel_are_declared_as_it_has_them(vmlinux: Btf) -> None:
    builder = BtfBuilder()
    declared = {name: declare(builder, text)[1] for name, text in KFUNCS.items()}
    ours = Btf.parse(builder.to_bytes())
    ours.validate()
    found = 0
    for name, type_id in declared.items():
        theirs = vmlinux.by_name(name, Kind.FUNC)
        if theirs is None:
            assert not same_release(), name
            continue
        mine = ours.type(type_id)
        assert (mine.name, mine.linkage) == (name, Linkage.EXTERN)
        compatible = Matcher(ours, vmlinux).compatible(mine.type_id, theirs.type_id)
        assert compatible or not same_release(), name
        found += compatible
    assert found > 10 or not same_release()


def test_generator_gives_what_is_checked_in() -> None:
    status = generate.main(["--btf", str(VMLINUX), "--check"])
    assert status == 0 or not same_release()


def test_kernel_types_are_decoded_only_when_asked_for() -> None:
    types = Btf.parse(VMLINUX.read_bytes())
    assert types.by_name("__sk_buff", Kind.STRUCT) is not None

    def look_up() -> None:
        found = types.by_name("bpf_sock", Kind.STRUCT)
        assert found is not None and found.members

    assert calls(look_up) < 1000 < len(types.types)


def test_kernel_types_are_valid(vmlinux: Btf) -> None:
    vmlinux.validate()


def test_kernel_types_read_as_bpftool_reads_them(vmlinux: Btf, tmp_path: Path) -> None:
    bpftool = shutil.which("bpftool")
    if bpftool is None:
        # Without it at least what the kernel says of itself: the table of all helpers has no gaps.
        helpers = vmlinux.by_name("bpf_func_id", Kind.ENUM)
        assert helpers is not None
        values = [value for _, value in helpers.enumerators]
        assert values == list(range(len(values)))
        return
    out = tmp_path / "raw"
    with out.open("w") as file:
        subprocess.run(
            [bpftool, "btf", "dump", "file", VMLINUX, "format", "raw"], stdout=file, check=True, timeout=60
        )
    with out.open() as expected:
        lines = zip(vmlinux.dump_lines(), expected, strict=True)
        differing = [(ours, theirs) for ours, theirs in lines if ours != theirs.rstrip("\n")]
    assert differing[:3] == []


def every_kind() -> BtfBuilder:
    """One type of each kind, in the forms that the kernel accepts."""
    b = BtfBuilder()
    u8 = b.add_int("unsigned char", 1)
    u32 = b.add_typedef("__u32", b.add_int("unsigned int", 4))
    int_ = b.add_int("int", 4, signed=True)
    flag = b.add_int("_Bool", 1, bool_=True)
    text = b.add_ptr(b.add_const(b.add_volatile(u8)))
    union = b.add_union("", 4, [("whole", u32, 0), ("bytes", b.add_array(u8, 4), 0)])
    b.add_struct("plain", 24, [("text", text, 0), ("", union, 64), ("flag", flag, 96), ("ratio", u32, 128)])
    b.add_struct("narrow", 4, [("low", u32, 0, 3), ("high", u32, 3, 29)])
    b.add_enum("unsigned_values", {"ONE": 1, "LARGE": 0xFFFFFFFF})
    b.add_enum("signed_values", {"MINUS": -1}, signed=True)
    b.add_enum64("wide_values", {"WIDE": 1 << 40})
    b.add_float("double", 8)
    hidden = b.add_ptr(b.add_fwd("hidden"))
    b.add_ptr(b.add_fwd("hidden_union", union=True))
    proto = b.add_func_proto(int_, [("ctx", hidden), ("n", u32)])
    function = b.add_func("function", proto, 0)
    b.add_decl_tag("argument", function, 1)
    b.add_ptr(b.add_type_tag("user", int_))
    b.add_restrict(hidden)
    variable = b.add_var("variable", u32)
    b.add_datasec(".data", 4, [(variable, 0, 4)])
    return b


def test_kernel_accepts_every_kind_and_gives_it_back() -> None:
    data = every_kind().to_bytes()
    with KernelBtf.load(data) as loaded:
        info = loaded.info()
        read = loaded.data()
        assert info.size == len(data)
        assert not info.is_kernel
        assert read == data
        parsed = Btf.parse(read)
        parsed.validate()
        assert {t.kind for t in parsed.types} == set(Kind)
        bpftool = shutil.which("bpftool")
        if bpftool is not None:
            out = subprocess.run(
                [bpftool, "btf", "dump", "id", str(info.id), "format", "raw"],
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            ).stdout
            assert parsed.dump() == out


@pytest.mark.parametrize("spec", generate._STRUCTS, ids=lambda spec: spec.cls)
def test_kernel_accepts_the_structures(spec: generate._StructSpec) -> None:
    builder = BtfBuilder()
    getattr(context, spec.cls).btf(builder)
    with KernelBtf.load(builder.to_bytes()) as loaded:
        assert loaded.info().size > 0
