# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers that write or read text: ``strtol``, ``snprintf``, ``trace_printk`` and the like."""

from __future__ import annotations

import ipaddress
from typing import Final

from pybpfasm.emulator.errnos import EINVAL, ERANGE
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.helpers import helper
from pybpfasm.emulator.run import Run
from pybpfasm.kernel.enums import Helper

U32: Final = 0xFFFFFFFF
U64: Final = 0xFFFFFFFFFFFFFFFF
_BASE_MASK: Final = 0x1F  # BPF_STRTOX_BASE_MASK, kernel/bpf/helpers.c
_LONGEST: Final = 63  # characters that are looked at, there
_SPACES: Final = b"\t\n\v\f\r \xa0"  # isspace() of lib/ctype.c
_MAX_ARGUMENTS: Final = 12  # MAX_BPRINTF_VARARGS, include/linux/bpf.h


# --- Numbers out of text. ---


def _digits(text: bytes, base: int) -> tuple[int, int]:
    """The number at the beginning of *text*, and how many characters it takes, 0 where there is none."""
    at = 0
    if base == 0:
        hexadecimal = text[:2].lower() == b"0x" and text[2:3].isalnum() and _digit(text[2]) < 16
        base = 16 if hexadecimal else 8 if text[:1] == b"0" else 10
    if base == 16 and text[:2].lower() == b"0x":
        at = 2
    start, value = at, 0
    while at < len(text) and _digit(text[at]) < base:
        value = value * base + _digit(text[at])
        at += 1
    return value, at if at > start else 0


def _digit(character: int) -> int:
    shown = chr(character).lower()
    return int(shown, 36) if shown.isascii() and shown.isalnum() else 36


def _number(text: bytes, flags: int) -> tuple[int, bool, int]:
    """A number without its sign, whether it has one, and how many characters there were, or an errno."""
    base = flags & _BASE_MASK
    if not text or base not in (0, 8, 10, 16) or flags & ~_BASE_MASK:
        return 0, False, -EINVAL
    rest = text.lstrip(_SPACES)
    negative = rest[:1] == b"-"
    rest = rest[1:] if negative else rest
    consumed = len(text) - len(rest)
    value, length = _digits(rest[:_LONGEST], base)
    if not rest or not length:
        return 0, negative, -EINVAL
    return (0, negative, -ERANGE) if value > U64 else (value, negative, consumed + length)


@helper(Helper.strtol)
def strtol(run: Run, text: int, size: int, flags: int, result: int) -> int:
    """How many characters a signed number takes, which goes to *result*; -EINVAL or -ERANGE."""
    value, negative, count = _number(run.read(text, size & U32, "the text"), flags)
    if count >= 0 and value > (1 << 63) - (not negative):
        value, count = 0, -ERANGE
    signed = 0 if count < 0 else -value if negative else value
    run.write(result, (signed & U64).to_bytes(8, run.emulator.byteorder), "the result")
    return count


@helper(Helper.strtoul)
def strtoul(run: Run, text: int, size: int, flags: int, result: int) -> int:
    """How many characters an unsigned number takes, which goes to *result*; -EINVAL or -ERANGE."""
    value, negative, count = _number(run.read(text, size & U32, "the text"), flags)
    if count >= 0 and negative:
        count = -EINVAL
    value = 0 if count < 0 else value
    run.write(result, value.to_bytes(8, run.emulator.byteorder), "the result")
    return count


# --- Text out of numbers. ---


def _string(run: Run, address: int) -> bytes:
    """The characters up to a zero that *address* points to."""
    region, at = run.region(address, "the string")
    return bytes(region.data[at:]).split(b"\0")[0]


def _address_text(run: Run, kind: str, address: int) -> str:
    """``%pI4`` and its like: an address of the Internet from memory."""
    if kind[1] == "4":
        raw = run.read(address, 4, "the address")
        return ".".join(f"{byte:03}" if kind[0] == "i" else str(byte) for byte in raw)
    shown = ipaddress.IPv6Address(run.read(address, 16, "the address")).exploded
    return shown.replace(":", "") if kind[0] == "i" else shown


def formatted(run: Run, text: bytes, values: list[int]) -> str | None:
    """*text* with *values* in place of its conversions, or ``None`` for one that the kernel does not take.

    ``bpf_bprintf_prepare`` of kernel/bpf/helpers.c: widths and the flags ``0 + -`` and space; ``d i u x X``
    with ``l`` or ``ll``, ``c s p px pK pI4 pi4 pI6 pi6 pks``. What
    ``%p`` shows is no address, in the kernel neither.
    """
    values = list(values)
    if any(not (32 <= c < 127 or c > 127 or c in b"\t\n\v\f\r") for c in text):
        return None
    line = text.decode("latin-1")
    out: list[str] = []
    at = 0
    while at < len(line):
        if line[at] != "%":
            out.append(line[at])
            at += 1
            continue
        if line[at + 1 : at + 2] == "%":
            out.append("%")
            at += 2
            continue
        if not values:
            return None
        end = at + 1
        while line[end : end + 1] and line[end] in "0+- ":
            end += 1
        while line[end : end + 1].isdigit():
            end += 1
        flags = line[at + 1 : end]
        rest = line[end:]
        at = end
        value = values.pop(0)
        if rest[:1] == "p":
            kind = next((k for k in ("I4", "i4", "I6", "i6", "ks", "x", "K") if rest[1:].startswith(k)), "")
            if not kind and rest[1:2].isalnum():
                return None
            at += 1 + len(kind)
            if kind == "ks":
                out.append(f"%{flags}s" % _string(run, value).decode("latin-1"))
            elif kind in ("", "x", "K"):
                out.append(f"{value:016x}")
            else:
                out.append(_address_text(run, kind, value))
            continue
        if rest[:1] == "s":
            out.append(f"%{flags}s" % _string(run, value).decode("latin-1"))
            at += 1
            continue
        if rest[:1] == "c":
            out.append(f"%{flags}c" % (value & 0xFF))
            at += 1
            continue
        long = 2 if rest.startswith("ll") else 1 if rest.startswith("l") else 0
        kind = rest[long : long + 1]
        if not kind or kind not in "diuxX":
            return None
        bits = 64 if long else 32
        value &= (1 << bits) - 1
        if kind in "di" and value >> (bits - 1):
            value -= 1 << bits
        out.append(f"%{flags}{'d' if kind == 'u' else kind}" % value)
        at += long + 1
    return "".join(out)


def _arguments(run: Run, data: int, size: int) -> list[int] | None:
    """The numbers at *data*, 8 bytes each, or ``None`` for a size that can't be."""
    size &= U32
    if size % 8 or size > _MAX_ARGUMENTS * 8 or (size and not data):
        return None
    raw = run.read(data, size, "the arguments")
    return [int.from_bytes(raw[i : i + 8], run.emulator.byteorder) for i in range(0, size, 8)]


def _printed(run: Run, text: int, size: int, values: list[int] | None) -> int:
    raw = run.read(text, size & U32, "the format")
    if values is None or not raw or raw[-1]:
        return -EINVAL
    line = formatted(run, raw.split(b"\0")[0], values)
    if line is None:
        return -EINVAL
    run.emulator.printed.append(line)
    return len(line)


@helper(Helper.trace_printk)
def trace_printk(run: Run, text: int, size: int, first: int, second: int, third: int) -> int:
    """Format a line into `Emulator.printed`; how many characters it has, or -EINVAL."""
    return _printed(run, text, size, [first, second, third])


@helper(Helper.trace_vprintk)
def trace_vprintk(run: Run, text: int, size: int, data: int, length: int) -> int:
    """As ``trace_printk``, with up to twelve values from memory."""
    return _printed(run, text, size, _arguments(run, data, length))


@helper(Helper.snprintf)
def snprintf(run: Run, to: int, size: int, text: int, data: int, length: int) -> int:
    """Format into memory; the length with its terminating zero, even where not all had room, or -EINVAL."""
    size &= U32
    values = _arguments(run, data, length)
    if values is None:
        return -EINVAL
    line = formatted(run, _string(run, text), values)
    if line is None:
        return -EINVAL
    raw = line.encode("latin-1")
    if size:
        run.write(to, raw[: size - 1] + b"\0", "the buffer")
    return len(raw) + 1


@helper(Helper.strncmp)
def strncmp(run: Run, first: int, size: int, second: int) -> int:
    """The order of two strings: -1, 0 or 1."""
    size &= U32
    if not size:
        raise Violation("strncmp of 0 bytes: the verifier refuses that")
    a = (run.read(first, size, "the first string").split(b"\0")[0] + b"\0")[:size]
    b = _string(run, second) + b"\0"
    return next((1 if x > y else -1 for x, y in zip(a, b, strict=False) if x != y), 0)
