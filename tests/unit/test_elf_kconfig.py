# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Values of the kernel's configuration in objects; tests/kernel/test_elf_objects.py has libbpf beside."""

from __future__ import annotations

from pathlib import Path

import pytest

from pybpfasm.elf import ElfError, link_objects, read_object, write_object
from pybpfasm.elf.kconfig import config_bytes, parse_config
from pybpfasm.elf.reader import read_raw

DATA = (Path(__file__).parent.parent / "data" / "elf" / "config_v3.o").read_bytes()
CONFIG = """
# CONFIG_NO_SUCH_THING is not set
CONFIG_HZ=250
CONFIG_BPF_SYSCALL=y
CONFIG_IPV6=m
CONFIG_DEFAULT_HOSTNAME="a long name"
CONFIG_BPF_JIT=y
"""


def _values(text: str = CONFIG, release: str = "6.18.44-fc", data: bytes = DATA) -> bytes:
    spec = read_object(data).map(".kconfig")
    return config_bytes(spec.config, spec.value_size, "little", release, parse_config(text))


def test_places_are_those_of_libbpf() -> None:
    # As `bpftool map dump` shows them for this object: by alignment, then size, then name.
    spec = read_object(DATA).map(".kconfig")
    assert [(value.name, value.offset, value.size, value.kind) for value in spec.config] == [
        ("CONFIG_HZ", 0, 8, "int"),
        ("CONFIG_IPV6", 8, 4, "tristate"),
        ("LINUX_KERNEL_VERSION", 12, 4, "int"),
        ("CONFIG_NO_SUCH_THING", 16, 2, "int"),
        ("CONFIG_BPF_JIT", 18, 1, "char"),
        ("CONFIG_BPF_SYSCALL", 19, 1, "bool"),
        ("CONFIG_DEFAULT_HOSTNAME", 20, 8, "string"),
    ]
    assert [value.name for value in spec.config if not value.weak] == [
        "CONFIG_HZ",
        "LINUX_KERNEL_VERSION",
        "CONFIG_BPF_SYSCALL",
    ]


def test_values() -> None:
    assert _values() == (
        (250).to_bytes(8, "little")
        + (2).to_bytes(4, "little")
        + (6 << 16 | 18 << 8 | 44).to_bytes(4, "little")
        + bytes(2)
        + b"y\x01"
        + b"a long \0"
    )
    assert _values(CONFIG + "CONFIG_NO_SUCH_THING=0xffff\n")[16:18] == b"\xff\xff"
    assert _values(release="5.10.300")[12:16] == (5 << 16 | 10 << 8 | 255).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("CONFIG_HZ=250", ""), "has no CONFIG_HZ; declare it __weak if it may be missing"),
        (("=250", "=y"), "CONFIG_HZ is y in the kernel's configuration, which is no int"),
        (("SYSCALL=y", "SYSCALL=m"), "CONFIG_BPF_SYSCALL is m .* which is no bool"),
        (("IPV6=m", "IPV6=3"), "CONFIG_IPV6 is 3 .* which is no tristate"),
        (("=250", '="250"'), "which is no int"),
        (("=250", "=0x1ffffffffffffffff"), "does not fit 8 bytes"),
        (("=250", "=much"), "CONFIG_HZ is much"),
        (("JIT=y", "JIT=200"), "CONFIG_BPF_JIT is 200, which does not fit 1 bytes"),
    ],
)
def test_values_that_do_not_fit(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ElfError, match=message):
        _values(CONFIG.replace(*change))


def test_a_release_without_numbers() -> None:
    with pytest.raises(ElfError, match="'next' has no numbers"):
        _values(release="next")


def test_written_as_clang_writes_them() -> None:
    found = read_object(DATA)
    ours = read_raw(write_object(list(found.programs.values()), found.maps.values()))
    theirs = read_raw(DATA)
    for one in (ours, read_raw(link_objects([DATA]))):
        assert {(s.name, s.bind) for s in one.symbols if not s.section and s.name} == {
            (s.name, s.bind) for s in theirs.symbols if not s.section and s.name
        }
        code = one.by_name("tc"), theirs.by_name("tc")
        assert code[0] is not None and code[1] is not None
        assert code[0].data == code[1].data
        assert [(r.offset, r.type, r.symbol.name) for r in code[0].relocations] == [
            (r.offset, r.type, r.symbol.name) for r in code[1].relocations
        ]
    again = read_object(write_object(list(found.programs.values()))).map(".kconfig")
    assert again.config == found.map(".kconfig").config
