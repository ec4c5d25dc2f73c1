# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
# ruff: noqa: E501  (rows of tables)
"""Writes docs/dsl-reference.md from the statements that the tests hold against LLVM's assembler.

Run ``python -m docs.dsl.reference``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pybpfasm.listing import text
from tests.unit.statements import instructions, sections

PAGE: Final = Path(__file__).resolve().parents[1] / "dsl-reference.md"

HEAD: Final = """\
# Reference of the language

What is written, what the kernel prints for it, and its opcode. Every row is assembled by the unit tests, most of them
against the bytes of LLVM's assembler in both byte orders (`tests/data/llvm`); this page is written by
`python -m docs.dsl.reference`, and a test fails when it is out of date.

In the rows `ctx` is a `SkBuff` at r1 (`SkBuff(b.r1)`), `tcp` a `Tcp` and `ip6` an `Ipv6` at r7, `key` a structure of 36
bytes on the stack (`Key(b.r10 - 40)`), `flows` and `stats` are `MapSpec`s, `checksum` is a `@subprogram`; the label `two_on`
lies two slots behind. `ip4` is a structure with the bit fields `version`, `ihl` (4 bits) and `fragment` (13) at r7. `b.rN` is a register of 64 bits, `b.wN` its lower 32; writing those clears the upper ones.
"""

# What LLVM has no words for, or encodes as a relocation.
MORE: Final = {
    "Addresses of maps and functions": (
        "b.r1 = flows",
        "b.r1 = stats.value_at(8)",
        "b.r2 = checksum",
        "b.call(checksum)",
    ),
    "Packet loads of classic BPF": (
        "b.r0 = b.skb.u16[12]",
        "b.r0 = b.skb.u32[b.r7 + 4]",
    ),
    "Jumps for loops and long ways": (
        'b.may_goto("two_on")',
        'b.gotol("two_on")',
    ),
    "Address spaces (arenas, Linux 6.9)": (
        "b.r2 = addr_space_cast(b.r3, 0, 1)",
        "b.r2 = addr_space_cast(b.r3, 1, 0)",
    ),
    "Bit fields: macros": (
        "ip4.ihl.load(b.r2)",
        "ip4.fragment.load(b.r2)",
        "ip4.version.store(6, scratch=b.r3)",
        "ip4.fragment.store(b.r2, scratch=b.r3)",
        "b.r2 = ip4.ihl.unit",
    ),
    "Ordered loads and stores (Linux 6.15)": (
        "b.u64[b.r1 + 8].load_acquire(b.r2)",
        "b.u64[b.r1 + 8].store_release(b.r2)",
    ),
}

TAIL: Final = """
## Blocks

| statement | is |
|---|---|
| `with b.If(condition):` | a block that runs where the condition holds |
| `with b.Elif(condition):`, `with b.Else():` | directly after the block of an If or Elif |
| `with b.While(condition) as loop:` | tested at the top, repeated; the verifier must see that it ends |
| `with b.Loop() as loop:` | repeated until something leaves it |
| `loop.leave()`, `loop.again()` | as Python's `break` and `continue` |
| `b.If(condition).goto(loop.end)` | the same with a condition; `loop.start` as well |
| `b.label("name")`, `b.goto("name")`, `b.If(condition).goto("name")` | places and jumps by name, or by a `Label()` |
| `b.r1 < 7`, `<=`, `>`, `>=` | without a sign; `b.r1.slt(7)`, `sle`, `sgt`, `sge` are with it, as an errno wants: `b.r0 < 0` is an error |
| `(b.r1 == 1) & (b.r2 == 2)`, <code>&#124;</code>, `~` | conditions joined and negated |

## Ways to repeat

| the number of rounds | is written |
|---|---|
| known in Python | `for` of Python: the instructions are there several times |
| bounded by a number that the verifier sees | `b.While(…)`, `b.Loop()`: it follows each round |
| bounded otherwise | `b.may_goto(loop.end)` first in the loop (Linux 6.9): it follows a few rounds |
| a number in a register | `b.call(Helper.loop)` (5.17): r1 rounds of the subprogram in r2, which gets the index in r1 and in r2 what r3 was; it returns 0 to go on, 1 to stop |
| those of an iterator | `b.call(kfunc("bpf_iter_num_next"))` (6.4), which gives 0 at the end; between `bpf_iter_num_new` and `bpf_iter_num_destroy`, as [functions of the kernel](objects.md#functions-of-the-kernel) are called |

## Places in memory

| expression | is |
|---|---|
| `b.u8[…]` to `b.u64[…]` | memory at a register or at `b.rN + number` |
| `Key(b.r7)`, `Key(b.r10 - 40)` | a view of a structure: its fields are memory |
| `b.stack(Key)`, `b.stack_bytes(16)` | fresh stack, 8-byte aligned: a view, an address. Its bytes are not set: where a key has gaps, `b.zero(key)` first (`python -m pybpfasm check` warns where it is missing). Numbers (`b.r10 - 40`) are for what lies below all that a function takes so; any other is an error |
| `view.field.signed` | the same memory, loaded with its sign |
| `view.array[2]`, `view.array.u32(0)`, `view.array.at(1)` | an element, a word of an array of bytes, a view of an element |
| `view.bits.load(b.rN)`, `view.bits.store(x, scratch=b.rM)` | a bit field, by several instructions; `.unit` is the memory it is in, `.mask` its bits there |
| `view.field.store(x)` | the same as `view.field = x`, for memory that has a Python name |

## Structures

A structure is a class, `class Key(Struct):`, and its members are fields, laid out as C lays them out: with gaps for
alignment, unless the class says `packed=True`. `Key.sizeof` and `Key.offsetof("port")` are numbers; `Key.pack(port=80)`
and `Key.unpack(data)` are the same bytes for Python.

| member | is |
|---|---|
| `U8()` to `U64()`, `S8()` to `S64()` | an integer in host order |
| `Be16()`, `Be32()`, `Be64()` | an integer in network order: constants that are stored are converted |
| `Array(U64(), 64)`, `Bytes(16)` | elements of one type; bytes |
| `Nested(Other)`, `Array(Nested(Other), 4)` | a structure in it, several |
| `U8.bits(3)` | a bit field |
| `Pointer()` | 8 bytes that hold an address |
| `U32(at=8)` | the field at this byte |

| class | is |
|---|---|
| `class Key(Struct, packed=True)` | without gaps |
| `class Key(Struct, size=64)` | with room behind the last field |
| `class Task(Struct, kernel_name="task_struct")` | the name in the kernel's BTF, for [CO-RE](kinds.md) |
| `class Either(Union)` | all fields at byte 0 |

## Constants

`pybpfasm.kernel.enums` has the constants of the UAPI, generated from BTF. What belongs to a set is an enumeration, whose
members lack the set's prefix; everything else has its name in C (`BPF_ANY`, `BPF_F_NO_PREALLOC`,
`BPF_SK_STORAGE_GET_F_CREATE`).

| in C | here |
|---|---|
| `TCX_DROP`, `XDP_PASS`, `SK_PASS` | `TcxAction.DROP`, `XdpAction.PASS`, `SkAction.PASS` |
| `BPF_FUNC_map_lookup_elem` | `Helper.map_lookup_elem` |
| `BPF_MAP_TYPE_HASH`, `BPF_PROG_TYPE_XDP` | `MapType.HASH`, `ProgType.XDP` |
| `BPF_TCX_INGRESS`, `BPF_CGROUP_INET4_CONNECT` | `AttachType.TCX_INGRESS`, `AttachType.CGROUP_INET4_CONNECT` |
| `BPF_SOCK_OPS_RTT_CB`, `BPF_SOCK_OPS_RTT_CB_FLAG` | `SockOp.RTT_CB`, `SockOpsFlag.RTT_CB` |
| `BPF_TCP_ESTABLISHED` | `TcpState.ESTABLISHED` |
| `BPF_FIB_LKUP_RET_SUCCESS` | `FibLookupResult.SUCCESS` |
"""


def _row(statement: str) -> str:
    written = instructions(statement)
    shown = "<br>".join(f"`{text(insn)}`" for insn in written).replace("|", "&#124;")
    opcodes = " ".join(f"{insn.opcode:02x}" for insn in written)
    code = f"`{statement}`"
    if "|" in statement:
        code = f"<code>{statement}</code>".replace("|", "&#124;").replace("&=", "&amp;=")
        shown = shown.replace("`", "")
        shown = f"<code>{shown}</code>"
    return f"| {code} | {shown} | {opcodes} |"


def page() -> str:
    """The text of docs/dsl-reference.md."""
    out = [HEAD]
    rows = {heading: [row[0] for row in found] for heading, found in sections().items()}
    for heading, statements in (rows | MORE).items():
        out += [f"## {heading}", "", "| statement | the kernel prints | opcode |", "|---|---|---|"]
        out += [_row(statement) for statement in statements]
        out.append("")
    return "\n".join(out).rstrip() + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
