# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The generator of the kernel's enumerations and structures, and what is checked in of its output.

That the values are the kernel's is tested in tests/kernel/test_kernel_btf.py.
"""

from __future__ import annotations

import enum
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink.rtnl import ifinfmsg

import pybpfasm
from pybpfasm.btf import BtfBuilder
from pybpfasm.kernel import context, defines, enums, generate
from pybpfasm.layout import Array, Field, Nested, Scalar, Struct

KERNEL = Path(enums.__file__).parent


def contexts() -> Iterator[type[Struct]]:
    """The structures of context.py."""
    for value in vars(context).values():
        if inspect.isclass(value) and issubclass(value, Struct) and value.__module__ == context.__name__:
            yield value


def enumerations() -> Iterator[type[enum.IntEnum]]:
    """The enumerations of enums.py."""
    for value in vars(enums).values():
        if inspect.isclass(value) and issubclass(value, enum.IntEnum) and value.__module__ == enums.__name__:
            yield value


class Small:
    """BTF with all that the generator wants, and little in it."""

    def __init__(self) -> None:
        self.builder = BtfBuilder()
        self.u32 = self.builder.add_typedef("__u32", self.builder.add_int("unsigned int", 4))
        self.be16 = self.builder.add_typedef("__be16", self.builder.add_int("unsigned short", 2))
        self.s32 = self.builder.add_int("int", 4, signed=True)

    def enumerations(self, **more: dict[str, int]) -> None:
        """Every enumeration, with one enumerator unless *more* says else."""
        for spec in generate._ENUMS:
            first = spec.anchor or f"{spec.prefix}FIRST"
            self.builder.add_enum(spec.tag, more.get(spec.cls, {first: 0}), signed=spec.cls == "TcxAction")
        for tag in generate._CONSTANT_TAGS:
            self.builder.add_enum(tag, {})

    def structures(self, **more: int) -> None:
        """Every structure, empty unless *more* has its type."""
        for spec in (*generate._STRUCTS, *generate._VALUES):
            if spec.cls not in more:
                self.builder.add_struct(spec.tag, 0, [])

    def run(self, out: Path, *arguments: str) -> int:
        """The command on this BTF."""
        out.mkdir(exist_ok=True)
        source = out / "btf"
        source.write_bytes(self.builder.to_bytes())
        return generate.main(["--btf", str(source), "--out", str(out), "--release", "6.1.2-host", *arguments])


def test_enumerations_lose_their_prefix_and_their_end(tmp_path: Path) -> None:
    small = Small()
    small.enumerations(
        MapType={
            "BPF_MAP_TYPE_A": 0,
            "BPF_MAP_TYPE_B_DEPRECATED": 1,
            "BPF_MAP_TYPE_B": 1,
            "__MAX_BPF_MAP_TYPE": 2,
        },
        Helper={"BPF_FUNC_unspec": 0, "BPF_FUNC_lookup": 1, "__BPF_FUNC_MAX_ID": 2},
        TcxAction={"TCX_NEXT": -1, "TCX_PASS": 0},
        SockOpsFlag={"BPF_SOCK_OPS_STATE_CB_FLAG": 4, "BPF_SOCK_OPS_ALL_CB_FLAGS": 7},
    )
    small.structures()
    assert small.run(tmp_path) == 0
    made: dict[str, object] = {}
    text = (tmp_path / "enums.py").read_text()
    assert "MAX" not in text
    exec(text, made)

    def members(name: str) -> dict[str, int]:
        cls = made[name]
        assert isinstance(cls, type) and issubclass(cls, enum.IntEnum)
        return {key: value.value for key, value in cls.__members__.items()}

    assert members("MapType") == {"A": 0, "B_DEPRECATED": 1, "B": 1}
    assert members("Helper") == {"unspec": 0, "lookup": 1}
    assert members("TcxAction") == {"NEXT": -1, "PASS": 0}
    assert members("SockOpsFlag") == {"STATE_CB": 4, "ALL_CB_FLAGS": 7}


def test_unnamed_enumerations_become_constants_once(tmp_path: Path) -> None:
    small = Small()
    small.enumerations()
    small.structures()
    small.builder.add_enum("", {"BPF_ANY": 0, "BPF_F_LOCK": 4})
    small.builder.add_enum("", {"BPF_F_LOCK": 4, "BPF_F_MORE": 0x10000})
    small.builder.add_enum("", {"INTERNAL": 1})
    small.builder.add_enum("", {"BPF_F_NEGATIVE": -1}, signed=True)
    assert small.run(tmp_path) == 0
    text = (tmp_path / "enums.py").read_text()
    assert text.count("BPF_F_LOCK = 4\n") == 1
    assert "BPF_F_MORE = 0x10000\n" in text
    assert "BPF_F_NEGATIVE = -1\n" in text
    assert "INTERNAL" not in text


def test_structures_are_flattened(tmp_path: Path) -> None:
    small = Small()
    b = small.builder
    pointer = b.add_ptr(b.add_struct("bpf_sock", 4, [("mark", small.u32, 0)]))
    inner = b.add_struct("", 4, [("sport", small.be16, 0), ("dport", small.be16, 16)])
    b.add_struct(
        "bpf_sock_ops",
        40,
        [
            ("op", small.u32, 0),
            ("", b.add_union("", 8, [("args", b.add_array(small.u32, 2), 0), ("reply", small.u32, 0)]), 32),
            ("remote_ip4", small.u32, 96),
            ("local_port", small.u32, 128),
            ("", b.add_union("", 8, [("sk", pointer, 0)]), 192),
            ("level", b.add_const(small.s32), 256),
        ],
    )
    tuple_ = b.add_struct("bpf_sock_tuple", 4, [("", b.add_union("", 4, [("ipv4", inner, 0)]), 0)])
    small.enumerations()
    small.structures(SockOps=1, BpfSock=1, SockTuple=tuple_)
    assert small.run(tmp_path) == 0
    text = (tmp_path / "context.py").read_text()
    classes = dict(re.findall(r'^(class \w+\(.*\)):\n    """.*"""\n\n((?:    .*\n)+)', text, re.MULTILINE))
    assert classes['class SockOps(Struct, kernel_name="bpf_sock_ops", size=40)'] == (
        "    op = U32(at=0)\n"
        "    args = Array(U32(), 2, at=4)\n"
        "    reply = U32(at=4)\n"
        "    remote_ip4 = Be32(at=12)\n"
        "    local_port = U32(at=16)  # host order\n"
        "    sk = U64(at=24)  # struct bpf_sock *\n"
        "    level = S32(at=32)\n"
    )
    assert classes['class SockTupleV4(Struct, kernel_name="bpf_sock_tuple_ipv4", size=4)'] == (
        "    sport = Be16(at=0)\n    dport = Be16(at=2)\n"
    )
    assert classes['class SockTuple(Struct, kernel_name="bpf_sock_tuple", size=4)'] == (
        "    ipv4 = Nested(SockTupleV4, at=0)\n"
    )


def test_bit_fields_of_contexts(tmp_path: Path) -> None:
    """With the bits that BTF gives them; padding has no name and is left out."""
    small = Small()
    b = small.builder
    u8 = b.add_int("unsigned char", 1)
    flags = b.add_struct("", 4, [("kind", small.u32, 0, 5), ("", small.u32, 5, 3), ("rest", small.s32, 8, 9)])
    sock = b.add_struct("bpf_sock", 12, [("mark", small.u32, 0, 0), ("", flags, 32, 0), ("one", u8, 71, 1)])
    small.enumerations()
    small.structures(BpfSock=sock)
    assert small.run(tmp_path) == 0
    text = (tmp_path / "context.py").read_text()
    assert "from pybpfasm.layout import S32, U8, U32, Struct\n" in text
    assert (
        "    mark = U32(at=0)\n"
        "    kind = U32.bits(5, at_bit=32)\n"
        "    rest = S32.bits(9, at_bit=40)\n"
        "    one = U8.bits(1, at_bit=71)\n"
    ) in text
    names: dict[str, Any] = {}
    exec(text, names)
    found = names["BpfSock"].unpack(bytes.fromhex("01000000 1affff01 80000000"), byteorder="little")
    assert found.as_dict() == {"mark": 1, "kind": 0x1A, "rest": -1, "one": 1}


def test_check_tells_a_stale_file_from_a_current_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Small()
    small.enumerations()
    small.structures()
    assert small.run(tmp_path, "--check") == 1
    assert "enums.py differs, run `python -m pybpfasm.kernel.generate --btf" in capsys.readouterr().err
    assert not (tmp_path / "enums.py").exists()
    assert small.run(tmp_path) == 0
    first = (tmp_path / "enums.py").read_bytes()
    assert b"from the BTF of Linux 6.1. Do not edit." in first, "the release without the host's suffix"
    assert small.run(tmp_path, "--check") == 0
    assert small.run(tmp_path) == 0
    assert (tmp_path / "enums.py").read_bytes() == first


def test_unsuitable_btf_is_an_error_without_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Small().run(tmp_path) == 1
    assert "there is no enum 'bpf_cmd': pass the vmlinux BTF" in capsys.readouterr().err
    assert generate.main(["--btf", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "enums.py").exists()


def test_conflicting_constants_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = Small()
    small.enumerations()
    small.structures()
    small.builder.add_enum("", {"BPF_F_X": 1})
    small.builder.add_enum("", {"BPF_F_Y": 1, "BPF_F_X": 2})
    assert small.run(tmp_path) == 1
    assert "gives BPF_F_X as 1 and as 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["enums.py", "context.py"])
def test_checked_in_files_are_generated_ones(name: str) -> None:
    lines = (KERNEL / name).read_text().splitlines()
    assert re.fullmatch(
        r"# Generated by `python -m pybpfasm\.kernel\.generate` from the BTF of Linux \d+\.\d+\. .*",
        lines[1],
    )
    assert max(map(len, lines)) <= 110


def test_every_enumeration_is_there() -> None:
    assert [cls.__name__ for cls in enumerations()] == [spec.cls for spec in generate._ENUMS]
    for cls in enumerations():
        assert len(cls) > 0
        assert not any(name.startswith("_") for name in cls.__members__)


def test_every_structure_is_there() -> None:
    assert {spec.cls for spec in generate._STRUCTS} <= {cls.__name__ for cls in contexts()}


@pytest.mark.parametrize("cls", [pytest.param(cls, id=cls.__name__) for cls in contexts()])
def test_fields_are_aligned_and_inside(cls: type[Struct]) -> None:
    assert cls.fields
    for field in cls.fields.values():
        assert field.at == field.offset, "every offset is written down"
        assert field.offset % field.align == 0
        assert field.offset + field.size <= cls.sizeof
    offsets = [field.offset for field in cls.fields.values()]
    assert offsets == sorted(offsets), "BTF wants members in ascending order"
    builder = BtfBuilder()
    cls.btf(builder)
    builder.to_bytes()


def test_network_order_is_where_the_headers_say() -> None:
    def order(field: Field) -> str:
        element = field.element if isinstance(field, Array) else field
        return element.order if isinstance(element, Scalar) else ""

    for cls in contexts():
        for name, field in cls.fields.items():
            if isinstance(field, Nested):
                continue
            address = re.fullmatch(
                r"(\w+_)?ip[46]|[sd]addr|ipv[46]_(src|dst|nh)|remote_port|dst_port|[sd]port", name
            )
            assert (order(field) == "big") == bool(
                address or name in ("flowinfo", "h_vlan_proto", "h_vlan_TCI")
            ), f"{cls.__name__}.{name}"


def test_a_port_in_network_order() -> None:
    data = context.SockOps.pack(remote_port=0x1234, local_port=0x1234, byteorder="little")
    at = context.SockOps.offsetof("remote_port")
    assert data[at : at + 4] == bytes([0, 0, 0x12, 0x34])
    at = context.SockOps.offsetof("local_port")
    assert data[at : at + 4] == bytes([0x34, 0x12, 0, 0])


def test_constants_have_one_home() -> None:
    generated = {name for name in vars(enums) if name.isupper()}
    by_hand = {name for name in vars(defines) if name.isupper()}
    assert not generated & by_hand
    assert defines.BPF_F_REDIRECT_FLAGS == (
        enums.BPF_F_INGRESS | enums.BPF_F_BROADCAST | enums.BPF_F_EXCLUDE_INGRESS
    )
    assert enums.TcxAction.NEXT == defines.TC_ACT_UNSPEC
    assert enums.TcxAction.PASS == defines.TC_ACT_OK
    assert enums.TcxAction.DROP == defines.TC_ACT_SHOT
    assert enums.TcxAction.REDIRECT == defines.TC_ACT_REDIRECT
    names = [name for name in by_hand if name.startswith("XDP_FLAGS_")]
    assert len(names) == 5
    assert all(getattr(defines, name) == getattr(ifinfmsg, name) for name in names)


def test_import_needs_no_generator() -> None:
    code = "import sys, pybpfasm.kernel.enums; print(*sorted(m for m in sys.modules if 'pybpfasm' in m))"
    root = Path(next(iter(pybpfasm.__path__))).parent
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "generate" not in out
    assert "btf" not in out
