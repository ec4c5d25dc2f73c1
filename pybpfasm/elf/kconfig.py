# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Values of the kernel's configuration (``extern int CONFIG_HZ __kconfig``), as libbpf has them: a read-only
map with a variable for each, filled in when the object is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pybpfasm.btf import Btf, BtfType, Kind
from pybpfasm.btf.format import INT_BOOL
from pybpfasm.elf.format import ElfError
from pybpfasm.layout import ByteOrder

__all__ = ["ConfigValue", "config_bytes", "config_layout", "parse_config"]

KCONFIG: Final = ".kconfig"  # the section, and the map

_TRISTATE: Final = {"n": 0, "y": 1, "m": 2}
_VERSION: Final = "LINUX_KERNEL_VERSION"


class ConfigValue(NamedTuple):
    """A value that a program asks for: its place in the map, in bytes, and what C takes it for.

    ``kind`` is ``"int"``, ``"bool"``, ``"char"``, ``"tristate"`` or ``"string"``.
    """

    name: str
    offset: int
    size: int
    kind: str
    signed: bool
    weak: bool


def config_layout(btf: Btf, section: BtfType, weak: frozenset[str]) -> tuple[int, list[ConfigValue]]:
    """The size of the map and its values, by the section ``.kconfig`` of an object's BTF.

    libbpf's order: by alignment, from the largest, then by size and name. Raises `ElfError`.
    """
    found = []
    for entry in section.entries:
        var = btf.type(entry.type_id)
        kind, size, align, signed = _kind(btf, var)
        found.append((-align, size, var.name, kind, signed))
    values = []
    end = 0
    for negative, size, name, kind, signed in sorted(found):
        end = -(-end // -negative) * -negative
        values.append(ConfigValue(name, end, size, kind, signed, name in weak))
        end += size
    return end, values


def _kind(btf: Btf, var: BtfType) -> tuple[str, int, int, bool]:
    t = btf.resolve(var.type_id)
    if t.kind == Kind.INT and t.size in (1, 2, 4, 8):
        kind = "bool" if t.encoding & INT_BOOL else "char" if t.size == 1 else "int"
        return kind, t.size, t.size, t.signed
    if t.kind == Kind.ENUM and t.name == "libbpf_tristate" and t.size == 4:
        return "tristate", 4, 4, False
    if t.kind == Kind.ARRAY and 0 < t.nelems <= 4096:
        element = btf.resolve(t.element_id)
        if element.kind == Kind.INT and element.size == 1:
            return "string", t.nelems, 1, False
    raise ElfError(
        f"{var.name!r} of the kernel's configuration is declared as {btf.declaration(var.type_id)[:80]}: "
        "integers, bool, char, enum libbpf_tristate and arrays of char can be",
        section=KCONFIG,
    )


def parse_config(text: str) -> dict[str, str]:
    """What a kernel's ``.config`` says, by name: ``{"CONFIG_HZ": "250", "CONFIG_BPF": "y"}``."""
    return dict(re.findall(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE))


def config_bytes(
    values: Sequence[ConfigValue], size: int, byteorder: ByteOrder, release: str, config: Mapping[str, str]
) -> bytes:
    """The map's contents for a kernel of *release* (as ``uname -r`` prints it) and *config*.

    Raises `ElfError` for a value that the kernel does not have, unless it is weak (then it is 0), and for one
    that does not fit its type.
    """
    out = bytearray(size)
    for value in values:
        if value.name == _VERSION:
            text: str | None = str(_version(release))
        else:
            text = config.get(value.name)
        if text is None:
            if value.weak:
                continue
            raise ElfError(
                f"the kernel's configuration has no {value.name}; declare it __weak if it may be missing"
            )
        out[value.offset : value.offset + value.size] = _encode(value, text, byteorder)
    return bytes(out)


def _version(release: str) -> int:
    """``KERNEL_VERSION(a, b, c)`` of linux/version.h."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if found is None:
        raise ElfError(f"the release {release!r} has no numbers to make {_VERSION} of")
    major, minor, patch = (int(part or 0) for part in found.groups())
    return major << 16 | minor << 8 | min(patch, 255)


def _encode(value: ConfigValue, text: str, byteorder: ByteOrder) -> bytes:
    def wrong() -> ElfError:
        return ElfError(f"{value.name} is {text} in the kernel's configuration, which is no {value.kind}")

    if text in _TRISTATE:
        if value.kind == "char":
            return text.encode()
        if value.kind == "tristate" or (value.kind == "bool" and text != "m"):
            return _TRISTATE[text].to_bytes(value.size, byteorder)
        raise wrong()
    if text.startswith('"'):
        if value.kind != "string":
            raise wrong()
        # Cut where there is no room, with a zero at the end.
        return text[1:].removesuffix('"').encode()[: value.size - 1].ljust(value.size, b"\0")
    try:
        number = int(text, 0)
    except ValueError:
        raise wrong() from None
    if value.kind not in ("int", "char"):
        raise wrong()
    low, high = (
        (-(1 << 8 * value.size - 1), 1 << 8 * value.size - 1) if value.signed else (0, 1 << 8 * value.size)
    )
    if not low <= number < high:
        raise ElfError(f"{value.name} is {text}, which does not fit {value.size} bytes")
    return (number & (1 << 8 * value.size) - 1).to_bytes(value.size, byteorder)
