# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The check before loading: each kind of mistake at its line, nothing about what is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pybpfasm.asm import Asm
from pybpfasm.check import Finding, Severity, check, main
from pybpfasm.check.early import first_mistake
from pybpfasm.core import core_enum_value
from pybpfasm.errors import AsmError
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.context import BpfSock, SkBuff, SkMsgMd, SockAddr, SockOps, SockOpt, XdpMd
from pybpfasm.kernel.enums import (
    BPF_F_RDONLY_PROG,
    BPF_F_WRONLY_PROG,
    AttachType,
    Helper,
    MapType,
    ProgType,
)
from pybpfasm.layout import U8, U16, U32, U64, Be16, Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import (
    Function,
    ProgramSpec,
    Template,
    cgroup_sockopt,
    sched_cls,
    subprogram,
    xdp,
)
from pybpfasm.text import assemble
from tests.work import calls

HASH = MapSpec("hash", MapType.HASH, U32(), 16, 4)
ARRAY = MapSpec("array", MapType.ARRAY, U32(), 16, 4)
RING = MapSpec("ring", MapType.RINGBUF, None, None, 4096)
MAPS = {
    m.name: m
    for m in (
        HASH,
        ARRAY,
        RING,
        MapSpec("one", MapType.ARRAY, U32(), U64(), 1),
        MapSpec("read_only", MapType.ARRAY, U32(), U64(), 1, BPF_F_RDONLY_PROG),
        MapSpec("write_only", MapType.ARRAY, U32(), U64(), 1, BPF_F_WRONLY_PROG),
    )
}

_CONTEXTS: dict[ProgType, type[Struct]] = {
    ProgType.SCHED_CLS: SkBuff,
    ProgType.XDP: XdpMd,
    ProgType.SK_MSG: SkMsgMd,
    ProgType.CGROUP_SKB: SkBuff,
    ProgType.CGROUP_SOCK: BpfSock,
    ProgType.CGROUP_SOCK_ADDR: SockAddr,
    ProgType.SOCK_OPS: SockOps,
}


def spec_of(
    text: str,
    type: ProgType = ProgType.SCHED_CLS,
    attach: AttachType | None = None,
    *,
    license: str = "GPL",
    starts: tuple[int, ...] = (),
) -> ProgramSpec:
    """A program from text; functions but the first begin at *starts*."""
    functions = [Function("main", 0, (), _CONTEXTS[type], {})]
    functions += [Function(f"f{start}", start, (), None, {}) for start in starts]
    code = tuple(assemble(text, maps=MAPS))
    return ProgramSpec("text", type, attach, license, code, tuple(functions), "little")


def found(spec: ProgramSpec) -> list[tuple[str, str, int]]:
    return [(f.severity.value, f.code, f.slot) for f in check(spec)]


LOOKUP = "*(u32 *)(r10 -4) = 0\nr1 = map[hash]\nr2 = r10\nr2 += -4\ncall map_lookup_elem\n"  # slots 0 to 5
PACKET = "r6 = r1\nr7 = *(u32 *)(r6 +76)\nr8 = *(u32 *)(r6 +80)\n"
CHECKED = PACKET + "r2 = r7\nr2 += 14\nif r2 > r8 goto out\n"
END = "\nr0 = 0\nexit"

WRONG = {
    "unset": ("r0 = r3\nexit", ("error", "unset", 0)),
    "unset result": ("exit", ("error", "unset", 0)),
    "unset on one way": (
        "r2 = *(u32 *)(r1 +8)\nif r2 == 5 goto out\nr6 = 1\nout:\nr0 = r6\nexit",
        ("error", "unset", 3),
    ),
    "unset on a way that depends": (
        "r2 = *(u32 *)(r1 +8)\nr2 *= 3\nif r2 == 5 goto out\nr6 = 1\nout:\nr0 = r6\nexit",
        ("warning", "unset", 4),
    ),
    "unset argument": ("r1 = map[hash]\ncall map_lookup_elem\nr0 = 0\nexit", ("error", "unset", 2)),
    "lost": ("r2 = 5\ncall ktime_get_ns\nr0 = r2\nexit", ("error", "lost-in-call", 2)),
    "lost context": ("call ktime_get_ns\nr0 = *(u32 *)(r1 +8)\nexit", ("error", "lost-in-call", 1)),
    "frame pointer": ("r0 = 0\nr6 = r10\nr6 = *(u32 *)(r10 -600)\nexit", ("error", "stack-bounds", 2)),
    "null": (LOOKUP + "r0 = *(u64 *)(r0 +0)\nexit", ("error", "null-check", 6)),
    "null of an array": (
        LOOKUP.replace("hash", "array") + "r0 = *(u64 *)(r0 +0)\nexit",
        ("warning", "null-check", 6),
    ),
    "null in arithmetic": (LOOKUP + "r0 += 4" + END, ("error", "null-check", 6)),
    "null of sk": ("r1 = *(u64 *)(r1 +168)\nr0 = *(u32 *)(r1 +4)\nexit", ("error", "null-check", 1)),
    "null passed on": ("r1 = *(u64 *)(r1 +168)\ncall sk_fullsock" + END, ("error", "null-check", 1)),
    "scalar": ("r2 = 5\nr0 = *(u32 *)(r2 +0)\nexit", ("error", "scalar-access", 1)),
    "zero": (LOOKUP + "if r0 != 0 goto out\nr1 = *(u8 *)(r0 +0)\nout:" + END, ("error", "scalar-access", 7)),
    "scalar argument": ("r1 = 7\nr2 = r10\ncall map_lookup_elem" + END, ("error", "argument", 2)),
    "wrong pointer": ("r2 = r10\nr2 += -8\ncall map_lookup_elem" + END, ("error", "argument", 2)),
    "value bounds": (
        LOOKUP + "if r0 == 0 goto out\nr0 = *(u64 *)(r0 +12)\nout:" + END,
        ("error", "value-bounds", 7),
    ),
    "unreachable": ("r0 = 0\nexit\nr0 = 1\nexit", ("error", "unreachable", 2)),
    "fall off": ("r0 = 0", ("error", "fall-off", 0)),
    "fall off by a branch": ("r0 = 0\nif r0 == 5 goto pc-2", ("error", "fall-off", 1)),
    "recursion": ("call pc-1\nexit", ("error", "call-depth", 0)),
    "middle of lddw": ("r0 = 0\nif r0 == 1 goto pc+1\nr1 = 0x500000000\nexit", ("error", "jump-target", 1)),
    "out of the program": ("r0 = 0\nif r0 == 1 goto pc+9\nexit", ("error", "jump-target", 1)),
    "stack bounds": ("*(u64 *)(r10 -520) = 1" + END, ("error", "stack-bounds", 0)),
    "stack above": ("*(u64 *)(r10 +0) = 1" + END, ("error", "stack-bounds", 0)),
    "stack alignment": ("*(u64 *)(r10 -12) = 1" + END, ("error", "stack-align", 0)),
    "stack not written": ("r0 = *(u64 *)(r10 -8)\nexit", ("warning", "stack-unset", 0)),
    "key not written": (
        "r1 = map[hash]\nr2 = r10\nr2 += -4\ncall map_lookup_elem" + END,
        ("warning", "stack-unset", 4),
    ),
    "half of a key": (
        "*(u16 *)(r10 -4) = 0\nr1 = map[hash]\nr2 = r10\nr2 += -4\ncall map_lookup_elem" + END,
        ("warning", "stack-unset", 5),
    ),
    "value not written": (
        LOOKUP.replace("call map_lookup_elem\n", "r3 = r10\nr3 += -24\nr4 = 0\ncall map_update_elem") + END,
        ("warning", "stack-unset", 8),
    ),
    "pointer cut": ("*(u32 *)(r10 -8) = r1" + END, ("error", "pointer-spill", 0)),
    "context field": ("r0 = *(u32 *)(r1 +192)\nexit", ("error", "context", 0)),
    "context size": ("r0 = *(u8 *)(r1 +76)\nexit", ("error", "context", 0)),
    "context read-only": ("r2 = 1\n*(u32 *)(r1 +0) = r2" + END, ("error", "context", 1)),
    "context atomic": ("r2 = 1\nlock *(u32 *)(r1 +8) += r2" + END, ("error", "context-atomic", 1)),
    "helper": ("call sk_redirect_map" + END, ("error", "helper", 0)),
    "division": ("r0 = 1\nr0 /= 0\nexit", ("error", "division", 1)),
    "shift": ("r0 = 1\nw0 <<= 32\nexit", ("error", "shift", 1)),
    "leak": (
        "r1 = map[ring]\nr2 = 8\nr3 = 0\ncall ringbuf_reserve\nif r0 == 0 goto out\nout:" + END,
        ("error", "reference-leak", 7),
    ),
    "packet moved": (
        CHECKED + "r1 = r6\nr2 = 40\ncall skb_pull_data\nr0 = *(u8 *)(r7 +0)\nout:" + END,
        ("error", "packet-moved", 9),
    ),
    "packet not checked": (PACKET + "r0 = *(u8 *)(r7 +0)\nexit", ("error", "packet-bounds", 3)),
    "packet checked for less": (CHECKED + "r0 = *(u16 *)(r7 +13)\nout:" + END, ("error", "packet-bounds", 6)),
    "packet checked the wrong way": (
        CHECKED.replace(">", "<") + "r0 = *(u8 *)(r7 +0)\nout:" + END,
        ("error", "packet-bounds", 6),
    ),
    "packet end": (PACKET + "r0 = *(u8 *)(r8 +0)\nexit", ("error", "packet-end", 3)),
    "pointers combined": ("r2 = r10\nr2 *= 2" + END, ("error", "pointer-arithmetic", 1)),
    "pointer of 32 bits": ("r2 = r10\nw2 += 4" + END, ("error", "pointer-arithmetic", 1)),
    "classic load": ("r6 = 0\nr0 = *(u8 *)skb[0]\nexit", ("error", "packet-load", 1)),
    "end moved": (PACKET + "r8 += 4" + END, ("error", "pointer-arithmetic", 3)),
    "end moved by a number": (PACKET + "r2 = 4\nr2 += r8" + END, ("error", "pointer-arithmetic", 4)),
    "map moved": ("r1 = map[hash]\nr1 += 4" + END, ("error", "pointer-arithmetic", 2)),
    "read-only map": ("r1 = map[read_only][0]+0\n*(u8 *)(r1 +0) = 1" + END, ("error", "map-rights", 2)),
    "write-only map": ("r1 = map[write_only][0]+0\nr0 = *(u8 *)(r1 +0)\nexit", ("error", "map-rights", 2)),
    "address of a value of a hash": ("r1 = map[hash][0]+0" + END, ("error", "map-value", 0)),
    "address behind a value": ("r1 = map[one][0]+8" + END, ("error", "value-bounds", 0)),
    "map of another type": (
        "r1 = map[hash]\nr2 = r10\nr2 += -16\ncall map_peek_elem" + END,
        ("error", "argument-map", 4),
    ),
    "tail call through a hash": (
        "r2 = map[hash]\nr3 = 0\ncall tail_call" + END,
        ("error", "argument-map", 3),
    ),
    "stack returned": ("call f\nr0 = 0\nexit\nf:\nr0 = r10\nexit", ("error", "stack-returned", 4)),
    "stacks of two functions": (
        "*(u64 *)(r10 -400) = 0\ncall f\nr0 = 0\nexit\nf:\n*(u64 *)(r10 -400) = 0\nr0 = 0\nexit",
        ("error", "stack-depth", 1),
    ),
    "stacks of three functions": (
        "*(u64 *)(r10 -240) = 0\ncall f\nr0 = 0\nexit\n"
        "f:\ncall g\nr0 = 0\nexit\ng:\n*(u64 *)(r10 -280) = 0\nr0 = 0\nexit",
        ("error", "stack-depth", 4),
    ),
    "atomic at a place between": (
        "r1 = map[one][0]+2\nr2 = 1\nlock *(u32 *)(r1 +0) += r2" + END,
        ("error", "misaligned", 3),
    ),
    "helper of the future": ("call 9999" + END, ("warning", "helper", 0)),
    "map written": ("r1 = map[hash]\n*(u32 *)(r1 +0) = 1" + END, ("error", "map-write", 2)),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    text, expected = WRONG[name]
    assert found(spec_of(text)) == [expected]


# Of program types: text, type, where it is attached, and what is wrong.
TYPED: dict[str, tuple[str, ProgType, AttachType | None, tuple[str, str, int] | None]] = {
    "packet written": (
        CHECKED + "*(u8 *)(r7 +0) = 1\nout:\nr0 = 1\nexit",
        ProgType.CGROUP_SKB,
        AttachType.CGROUP_INET_INGRESS,
        ("error", "packet-write", 6),
    ),
    "packet read": (
        CHECKED + "r0 = *(u8 *)(r7 +0)\nout:\nr0 = 1\nexit",
        ProgType.CGROUP_SKB,
        AttachType.CGROUP_INET_INGRESS,
        None,
    ),
    "socket returns a field": (
        "r0 = *(u32 *)(r1 +16)\nexit",  # mark
        ProgType.CGROUP_SOCK,
        AttachType.CGROUP_INET_SOCK_CREATE,
        ("error", "result", 1),
    ),
    "socket returns a part of a field": (
        "r0 = *(u32 *)(r1 +16)\nr0 &= 1\nexit",
        ProgType.CGROUP_SOCK,
        AttachType.CGROUP_INET_SOCK_CREATE,
        None,
    ),
}
# What a type may return, the values at the ends, and what it may not.
for _type, _attach, _fine, _wrong in (
    (ProgType.CGROUP_SKB, AttachType.CGROUP_INET_INGRESS, (0, 1), (-1, 2)),
    (ProgType.CGROUP_SKB, AttachType.CGROUP_INET_EGRESS, (0, 3), (-1, 4)),
    (ProgType.CGROUP_SOCK, AttachType.CGROUP_INET_SOCK_CREATE, (0, 1), (-1, 2)),
    (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT, (0, 1), (2,)),
    (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_BIND, (0, 3), (4,)),
    (ProgType.CGROUP_SOCK_ADDR, AttachType.CGROUP_UDP4_RECVMSG, (1,), (0, 2)),
    (ProgType.SCHED_CLS, None, (-1, 77), ()),
    (ProgType.SOCK_OPS, None, (0, 1), (2,)),
):
    for _value in (*_fine, *_wrong):
        TYPED[f"{_type.name} at {_attach and _attach.name} returns {_value}"] = (
            f"r0 = {_value}\nexit",
            _type,
            _attach,
            ("error", "result", 1) if _value in _wrong else None,
        )


@pytest.mark.parametrize("name", TYPED)
def test_mistakes_of_a_program_type(name: str) -> None:
    text, type, attach, expected = TYPED[name]
    assert found(spec_of(text, type, attach)) == ([] if expected is None else [expected])


def test_functions_of_the_kernel_want_a_license() -> None:
    assert found(spec_of("call bpf_rcu_read_lock\ncall bpf_rcu_read_unlock" + END, license="MIT")) == [
        ("error", "license", 0),
        ("error", "license", 1),
    ]


def test_a_register_that_does_not_exist() -> None:
    code = (Instruction(0xBF, 0, 12), Instruction(0x95))
    spec = ProgramSpec(
        "r12", ProgType.SCHED_CLS, None, "GPL", code, (Function("main", 0, (), SkBuff, {}),), "little"
    )
    assert found(spec) == [("error", "register", 0)]


RIGHT = {
    "difference to the end": PACKET + "r2 = r8\nr2 -= r7\nr0 = 0\nexit",
    "map and nothing": "r1 = map[hash]\nr1 += 0" + END,
    "stacks that fit": (
        "*(u64 *)(r10 -256) = 0\ncall f\nr0 = 0\nexit\nf:\n*(u64 *)(r10 -256) = 0\nr0 = 0\nexit"
    ),
    "stacks beside each other": (
        "*(u64 *)(r10 -192) = 0\ncall f\ncall g\nr0 = 0\nexit\n"
        "f:\n*(u64 *)(r10 -288) = 0\nr0 = 0\nexit\ng:\n*(u64 *)(r10 -288) = 0\nr0 = 0\nexit"
    ),
    "atomic at its place": "r1 = map[one][0]+4\nr2 = 1\nlock *(u32 *)(r1 +0) += r2" + END,
    "read-only map read": "r1 = map[read_only][0]+0\nr0 = *(u8 *)(r1 +0)\nexit",
    "last byte of a value": "r1 = map[one][0]+7\nr0 = *(u8 *)(r1 +0)\nexit",
    "null checked": LOOKUP + "if r0 == 0 goto out\nr0 = *(u64 *)(r0 +8)\nout:" + END,
    "null checked by a copy": LOOKUP + "r6 = r0\nif r6 == 0 goto out\nr0 = *(u64 *)(r0 +8)\nout:" + END,
    "null checked on the stack": LOOKUP
    + "*(u64 *)(r10 -16) = r0\nif r0 == 0 goto out\nr3 = *(u64 *)(r10 -16)\nr0 = *(u64 *)(r3 +8)\nout:"
    + END,
    "packet checked": CHECKED + "r0 = *(u16 *)(r7 +12)\nout:" + END,
    "packet checked, reversed": PACKET
    + "r2 = r7\nr2 += 14\nif r8 >= r2 goto in\nr0 = 0\nexit\nin:\nr0 = *(u16 *)(r7 +12)\nexit",
    "packet strictly below": PACKET
    + "r2 = r7\nr2 += 14\nif r2 >= r8 goto out\nr0 = *(u8 *)(r7 +14)\nout:"
    + END,
    "packet below": PACKET
    + "r2 = r7\nr2 += 13\nif r2 < r8 goto in\nr0 = 0\nexit\nin:\nr0 = *(u16 *)(r7 +12)\nexit",
    "released": "r1 = map[ring]\nr2 = 8\nr3 = 0\ncall ringbuf_reserve\nif r0 == 0 goto out\nr1 = r0\nr2 = 0\n"
    "call ringbuf_discard\nout:" + END,
    "loop": "r6 = 0\nr0 = 0\nloop:\nr6 += 1\nif r6 < 10 goto loop\nexit",
    "constant branch over nonsense": "r0 = 0\nif r0 == 0 goto out\nr0 = r9\nout:\nexit",
    "difference of pointers": PACKET + "r8 -= r7\nr0 = r8\nexit",
    "the same condition twice": "r2 = *(u32 *)(r1 +8)\nif r2 > 5 goto a\nr6 = 1\na:\n"
    "if r2 > 5 goto out\nr0 = r6\nexit\n"
    "out:" + END,
}


@pytest.mark.parametrize("name", [name for name in RIGHT if name != "the same condition twice"])
def test_nothing_is_found_in_what_is_right(name: str) -> None:
    assert found(spec_of(RIGHT[name])) == []


def test_what_depends_on_values_is_no_error() -> None:
    assert found(spec_of(RIGHT["the same condition twice"])) == [("warning", "unset", 4)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("r0 = 0\nr6 = 1\nloop:\nif r6 == 1 goto loop\nexit", []),  # an exit is there: only values tell
        ("r0 = 0\nloop:\nr0 += 1\ngoto loop", [("error", "endless", 2)]),
    ],
)
def test_endless(text: str, expected: list[tuple[str, str, int]]) -> None:
    assert found(spec_of(text)) == expected


def test_licenses() -> None:
    text = "call perf_event_output" + END
    codes = [code for _, code, _ in found(spec_of(text, license="Proprietary"))]
    assert "license" in codes
    assert "license" not in [code for _, code, _ in found(spec_of(text))]


def test_rights_differ_by_program_type() -> None:
    text = "r2 = 8\ncall xdp_adjust_head" + END
    assert found(spec_of(text, ProgType.XDP)) == []
    assert found(spec_of(text, ProgType.SCHED_CLS)) == [("error", "helper", 1)]


def test_subprograms_get_what_callers_leave() -> None:
    text = "r2 = 5\ncall f\nexit\nf:\nr0 = r2\nr0 += r3\nexit"
    assert found(spec_of(text, starts=(3,))) == [("error", "unset", 4)]
    text = "r6 = 5\ncall f\nr0 += r6\nr0 += r1\nexit\nf:\nr0 = r6\nexit"
    assert found(spec_of(text, starts=(5,))) == [("error", "lost-in-call", 3), ("error", "unset", 5)]


@subprogram("value")
def double(b: Asm) -> None:
    b.r0 = b.r1
    b.r0 += b.r1
    b.exit()


@sched_cls(AttachType.TCX_INGRESS, check=False)
def with_macro(b: Asm, ctx: SkBuff) -> None:
    def read_mark() -> None:
        b.r2 = ctx.mark

    b.call(Helper.ktime_get_ns)
    read_mark()
    b.r1 = 1
    b.call(double)
    b.ret(0)


def test_locations_of_both_ends() -> None:
    (finding,) = check(with_macro.build())
    assert finding.severity is Severity.ERROR
    assert finding.location is not None and finding.location.text == "b.r2 = ctx.mark"
    (related,) = finding.related
    assert related[0] == "the call is at"
    assert related[2] is not None and related[2].text == "b.call(Helper.ktime_get_ns)"
    shown = str(finding).splitlines()
    assert shown[0].startswith("tests/unit/test_check.py:") or "test_check.py:" in shown[0]
    assert shown[0].endswith("[lost-in-call]")
    assert any(line.startswith("  called from") and line.endswith("read_mark()") for line in shown)


@cgroup_sockopt(AttachType.CGROUP_GETSOCKOPT, check=False)
def writes_level(b: Asm, ctx: SockOpt) -> None:
    b.r2 = 1
    ctx.level = b.r2
    b.ret(1)


@xdp(check=False)
def xdp_mark(b: Asm, ctx: XdpMd) -> None:
    b.r2 = 0
    ctx.rx_queue_index = b.r2
    b.ret(2)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (writes_level, ["CGROUP_SOCKOPT programs can't write", "(level)", "read-only"]),
        (xdp_mark, ["XDP programs can't write", "(rx_queue_index)"]),
    ],
)
def test_fields_are_named(template: Template[[]], words: list[str]) -> None:
    (finding,) = check(template.build())
    assert finding.code == "context"
    for word in words:
        assert word in finding.message


class Flow(Struct):
    """A key of 16 bytes with three gaps."""

    proto = U8()
    port = Be16()
    seen = U16()
    client = U32()
    last = U8()
    tail = U8()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ((), "all 16 bytes of the key for map flows, at r10-16, are not written"),
        (("proto", "port", "seen", "client", "last"), "bytes 1, 6, 7, 13, 14, 15 (tail, padding) of the key"),
        (("proto", "port", "seen", "client", "last", "tail"), "bytes 1, 6, 7, 14, 15 (padding) of the key"),
        (("zero", "proto"), ""),
    ],
)
def test_gaps_of_a_key_that_nothing_was_written_to(written: tuple[str, ...], said: str) -> None:
    flows = MapSpec("flows", MapType.HASH, Flow, U32(), 4)

    @sched_cls()
    def counts(b: Asm, ctx: SkBuff) -> None:
        key = b.stack(Flow)
        for name in written:
            if name == "zero":
                b.zero(key)
            else:
                setattr(key, name, 1)
        b.r1 = flows
        b.lea(b.r2, key)
        b.call(Helper.map_lookup_elem)
        b.ret(0)

    (*findings,) = check(counts.build())
    assert [f.code for f in findings] == ["stack-unset"] * bool(said)
    for one in findings:
        assert said in one.message
        assert "no such key is found again" in one.message


LOOKUP_ONLY = LOOKUP.removeprefix("*(u32 *)(r10 -4) = 0\n")


def test_what_was_written_on_some_way_is_not_reported() -> None:
    """The verifier may know that it is the only way; and what a function or helper got may be written."""
    for before in (
        "r3 = *(u32 *)(r1 +8)\nif r3 == 5 goto out\n*(u32 *)(r10 -4) = 0\nout:\n",
        "r6 = 0\nagain:\n*(u32 *)(r10 -4) = r6\nr6 += 1\nif r6 < 3 goto again\n",
        "r2 = 0\nr3 = r10\nr3 += -8\nr4 = 8\ncall skb_load_bytes\n",
        "r6 = 0\nagain:\n" + LOOKUP_ONLY + "*(u32 *)(r10 -4) = r6\nr6 += 1\nif r6 < 3 goto again\n",
    ):
        text = before + LOOKUP_ONLY + END
        assert [f for f in check(spec_of(text)) if f.code == "stack-unset"] == []


def test_every_program_of_the_proxy_is_clean() -> None:
    from programs.getsockopt import getsockopt
    from programs.packet import Interface
    from programs.settings import Ports, Settings
    from programs.sk_msg import sk_msg as send
    from programs.sockops import sockops
    from programs.tc_egress import tc_egress
    from programs.tc_ingress import tc_ingress

    for timers in (False, True):
        settings = Settings(Ports.parse("80,8000-8010"), timers=timers)
        for interface in (Interface(), Interface(loopback=True), Interface(link_header=False)):
            assert check(tc_ingress.build(settings, interface)) == []
            assert check(tc_egress.build(settings, interface)) == []
        for spec in (getsockopt.build(settings), sockops.build(settings), send.build(settings)):
            assert check(spec) == []


def _long(size: int) -> ProgramSpec:
    """Branches and loops within each other, and look-ups."""
    piece = (
        "r2 = *(u32 *)(r6 +8)\nif r2 == 5 goto pc+2\nr7 += r2\nr8 = r7\nr8 &= 255\n"
        "if r8 > r7 goto pc+1\nr9 = r8\n*(u64 *)(r10 -8) = r9\nif r9 > 7 goto pc-3\n"
    )
    text = "r6 = r1\nr7 = 0\nr8 = 0\nr9 = 0\n" + piece * (size // 9) + "r0 = 0\nexit"
    return spec_of(text)


def test_work_is_in_proportion_to_size() -> None:
    short, long = _long(4_500), _long(18_000)
    assert check(long) == []
    assert calls(lambda: check(long)) < 5 * calls(lambda: check(short))


def test_nonsense_does_not_break_the_check() -> None:
    for text in (
        "goto pc-1",
        "goto pc+0\ngoto pc-2",
        "call pc+5\nexit",
        "call pc-1\nexit",
        "r0 = 0x500000000",
    ):
        assert found(spec_of(text)), text
    empty = ProgramSpec("empty", ProgType.XDP, None, "GPL", (), (), "little")
    assert found(empty) == [("error", "empty", 0)]


# At assembly.
@sched_cls()
def forgotten(b: Asm, ctx: SkBuff) -> None:
    b.r2 = ctx.mark
    b.If(b.r2 == 7).goto("out")
    b.call(Helper.ktime_get_ns)
    b.r3 = ctx.len
    b.label("out")
    b.ret(0)


@sched_cls()
def without_result(b: Asm, ctx: SkBuff) -> None:
    b.exit()


@sched_cls()
def not_readable(b: Asm, ctx: SkBuff) -> None:
    b.r0 = ctx.family
    b.exit()


@xdp()
def other_helper(b: Asm, ctx: XdpMd) -> None:
    b.call(Helper.skb_pull_data)
    b.ret(2)


@sched_cls()
def after_nothing(b: Asm, ctx: SkBuff) -> None:
    b.r2 = MapSpec("programs", MapType.PROG_ARRAY, U32(), U32(), 1)
    b.r3 = 0
    b.call(Helper.tail_call)
    b.exit()


@pytest.mark.parametrize(
    ("template", "line", "words"),
    [
        (after_nothing, "b.exit()", "r0 is read before it is set"),
        (forgotten, "b.r3 = ctx.len", "r1 is read after a call took it away"),
        (without_result, "b.exit()", "r0 is read before it is set"),
        (not_readable, "b.r0 = ctx.family", "SCHED_CLS programs can't read 4 bytes at 88 of their context"),
        (other_helper, "b.call(Helper.skb_pull_data)", "XDP programs can't call skb_pull_data"),
    ],
)
def test_what_is_easy_to_see_is_an_error_at_assembly(template: Template[[]], line: str, words: str) -> None:
    with pytest.raises(AsmError) as caught:
        template.build()
    assert words in str(caught.value)
    assert caught.value.location is not None and caught.value.location.text == line


def test_the_error_names_the_call() -> None:
    with pytest.raises(AsmError, match=r"\(the call is at .*test_check\.py:\d+\)"):
        forgotten.build()


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_assembled(name: str) -> None:
    spec = spec_of(RIGHT[name])
    assert first_mistake(spec.instructions, spec.type, spec.attach_type) is None


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused_early_is_an_error_of_the_whole_check(name: str) -> None:
    spec = spec_of(WRONG[name][0])
    mistake = first_mistake(spec.instructions, spec.type, spec.attach_type)
    if mistake is not None:
        slots = [f.slot for f in check(spec) if f.severity is Severity.ERROR]
        assert sum(insn.slots for insn in spec.instructions[: mistake.index]) in slots


def test_numbers_that_are_known_at_load_decide_nothing() -> None:
    """What an enumerator is, only the kernel knows: a way that its stand-in would take may never be gone."""

    @xdp(check=False)
    def program(b: Asm, ctx: XdpMd) -> None:
        core_enum_value(b.r2, "bpf_prog_type", "BPF_PROG_TYPE_XDP")
        with b.If(b.r2 == 0):
            b.ret(b.r9)
        b.ret(2)

    assert found(program.build()) == [("warning", "unset", 3)]


def test_offsets_that_are_known_at_load_are_not_judged() -> None:
    from pybpfasm.core import core_load

    class Task(Struct, kernel_name="task_struct"):
        tgid = U64(at=192)

    @sched_cls()
    def asks(b: Asm, ctx: SkBuff) -> None:
        core_load(b.r0, Task(b.r1), "tgid")
        b.exit()

    assert check(asks.build()) == []


# The command.
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, doubtful = tmp_path / "good.s", tmp_path / "bad.s", tmp_path / "doubtful.s"
    good.write_text("r0 = 0\nexit\n")
    bad.write_text("r0 = *(u32 *)(r1 +192)\nexit\n")
    doubtful.write_text("r0 = *(u64 *)(r10 -8)\nexit\n")
    assert main([str(good)]) == 0
    assert capsys.readouterr().out == "1 program, 0 errors, 0 warnings\n"
    assert main([str(bad), "--type", "sched_cls"]) == 1
    out = capsys.readouterr().out
    assert "SCHED_CLS programs can't read" in out and "\x1b" not in out
    assert main([str(bad)]) == 0  # without a type nothing is known of its context
    assert main([str(doubtful)]) == 0
    assert main([str(doubtful), "--strict"]) == 1
    capsys.readouterr()
    assert main([str(bad), "--type", "xdp", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["severity"], finding["code"], finding["slot"]) == ("error", "context", 0)
    assert main([str(bad), "--type", "xdp", "--color", "always"]) == 1
    assert "\x1b[" in capsys.readouterr().out


def test_command_used_wrongly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a.s"
    file.write_text("exit\n")
    assert main([str(file), "--type", "sched"]) == 2
    assert "did you mean 'SCHED_CLS'" in capsys.readouterr().err
    assert main([]) == 2


def test_findings_are_plain_data() -> None:
    finding = Finding(Severity.ERROR, "unset", 3, "r3 is read before it is set", "r0 = r3")
    assert str(finding) == ("instruction 3: error: r3 is read before it is set [unset]\n    3: r0 = r3")
