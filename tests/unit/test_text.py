# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Assembly text: both syntaxes, labels, symbols, listings read back, and errors that point at the place."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from programs import getsockopt, sk_msg, sockops, tc_egress, tc_ingress
from programs.packet import Interface
from programs.settings import Ports, Settings
from pybpfasm.instruction import decode, encode
from pybpfasm.isa import CallKind, Imm64
from pybpfasm.kernel.enums import Helper, MapType, ProgType
from pybpfasm.layout import U32
from pybpfasm.listing import lines, text
from pybpfasm.maps import MapSpec
from pybpfasm.program import Function, ProgramSpec
from pybpfasm.text import MapReference, TextError, assemble, parse
from tests.data.isa.programs import PROGRAMS
from tests.data.isa.regenerate import samples, statements
from tests.work import calls

FLOWS = MapSpec("flows", MapType.HASH, U32(), U32(), 16)


def code(words: str) -> str:
    return encode(assemble(words)).hex(" ", 8)


# Statements.
@pytest.mark.parametrize(
    ("line", "bytes_"),
    [
        ("r1 = 5", "b701000005000000"),
        ("r1 = 00", "b701000000000000"),
        ("r1 = -5", "b7010000fbffffff"),
        ("r1 = 0x5", "1801000005000000 0000000000000000"),
        ("r1 = 5 ll", "1801000005000000 0000000000000000"),
        ("r1 = -1 ll", "18010000ffffffff 00000000ffffffff"),
        ("r1 = 0xffffffffffffffff", "18010000ffffffff 00000000ffffffff"),
        ("w1 = 0x5", "b401000005000000"),
        ("w1 = 0xffffffff", "b4010000ffffffff"),
        ("r1 += 0xffffffff", "07010000ffffffff"),
        ("%r1 = %r2", "bf21000000000000"),
        ("r1=r2", "bf21000000000000"),
        ("\tr1 s>>= r2  ", "cf21000000000000"),
        ("r1 s>>=3", "c701000003000000"),
        ("w1 s/= w2", "3c21010000000000"),
        ("r1 = (s32)r2", "bf21200000000000"),
        ("r1 = -r1", "8701000000000000"),
        ("r0 = *(u8 *)skb[r3 + -5]", "50300000fbffffff"),
        ("r0 = *(u8 *)skb[r3-5]", "50300000fbffffff"),
        ("r0 = *(u8*)skb[r3]", "5030000000000000"),
        ("r1 = *(u32*)(r2)", "6121000000000000"),
        ("w1 = *(u32 *)(r2 + 4)", "6121040000000000"),
        ("*(u8 *)(r1 - 3) = w2", "7321fdff00000000"),
        ("if r1 s>= -1 goto +3", "75010300ffffffff"),
        ("if w1 & 0x80000000 goto pc-1", "4601ffff00000080"),
        ("goto -1", "0500ffff00000000"),
        ("call 5", "8500000005000000"),
        ("call bpf_ktime_get_ns", "8500000005000000"),
        ("call ktime_get_ns", "8500000005000000"),
        ("call bpf_ktime_get_ns#5", "8500000005000000"),
        ("call bpf_ktime_get_ns#269488", "8500000005000000"),
        ("call unknown#9999", "850000000f270000"),
        ("call unknown#-1", "85000000ffffffff"),
        ("call kernel-function#77", "852000004d000000"),
        ("call kernel-function#77[2]", "852002004d000000"),
        ("call pc+3#bpf_prog_1850303b51cfb710_turn", "8510000003000000"),
        ("callx r3", "8d03000000000000"),
        ("r1 = map[id:7]", "1811000007000000 0000000000000000"),
        ("r1 = map[id:4294967295]", "18110000ffffffff 0000000000000000"),
        ("r1 = map[id:7][0]+8", "1821000007000000 0000000008000000"),
        ("r1 = map[idx:7]", "1851000007000000 0000000000000000"),
        ("r1 = map[idx:7]+8", "1861000007000000 0000000008000000"),
        ("r1 = btf_id[9]", "1831000009000000 0000000000000000"),
        ("r1 = btf_id[9:4]", "1831000009000000 0000000004000000"),
        ("r1 = subprog[+3]", "1841000003000000 0000000000000000"),
        ("r1 = 1 ; a comment = r3", "b701000001000000"),
        ("r1 = 1 # call 5", "b701000001000000"),
        ("r1 = 1 // 2", "b701000001000000"),
        ("call bpf_ktime_get_ns # 5", "8500000005000000"),
        ("call 5#6", "8500000005000000"),
        ("  12: (b7) r1 = 1", "b701000001000000"),
        ("12: r1 = 1", "b701000001000000"),
        # The opcode of a listing tells which of the two loads a number is.
        ("12: (b7) r1 = 0x1", "b701000001000000"),
        ("12: (18) r1 = 1", "1801000001000000 0000000000000000"),
        # A label before a call, and comments that look like the head of a function.
        ("x: call bpf_ktime_get_ns#5", "8500000005000000"),
        ("x: call unknown#9999", "850000000f270000"),
        ("x: y: call kernel-function#77[2]", "852002004d000000"),
        ("x: call pc+3#turn", "8510000003000000"),
        ("exit ; done (really):", "9500000000000000"),
        ("exit // done (really):", "9500000000000000"),
        ("exit # done (really):", "9500000000000000"),
        ("lock *(u64 *)(r1 +0) += r2 ; (x):", "db21000000000000"),
        ("r1 = 1 ; r1 = one", "b701000001000000"),
        ("r1 = 1 ; exit now", "b701000001000000"),
        ("r1 = 1 # so ; r2 = 2", "b701000001000000"),
        ("r1 = 1 # r2 = 2", "b701000001000000"),
        ("r1 = 1 ; goto nowhere", "b701000001000000"),
        ("r1 = 1 ; call home", "b701000001000000"),
        ("r1 = 1 ; x:", "b701000001000000"),
        ("r1 = 1 ;; r2 = 2", "b701000001000000"),
        ("r1 = 1 ;", "b701000001000000"),
        ("; exit", ""),
        ("0: (b7) r1 = 1 ; r1 = 1", "b701000001000000"),
    ],
)
def test_statement(line: str, bytes_: str) -> None:
    assert code(line) == bytes_


def test_program() -> None:
    found = parse(
        """
        start:
            r6 = r1
            r1 = map[flows]
            call helper_of_mine
            if r0 == 0x0 goto out       ; forward
            mov %r0, 2
            jlt %r0, 10, start          # backward
            gotol out
            r2 = subprog[helper_of_mine]
        out: helper_of_mine: r0 = 0
            exit
        """
    )
    assert [text(insn) for insn in found.instructions] == [
        "r6 = r1",
        "r1 = map[flows]",
        "call pc+6",
        "if r0 == 0x0 goto pc+5",
        "r0 = 2",
        "if r0 < 0xa goto pc-7",
        "gotol pc+2",
        "r2 = subprog[+1]",
        "r0 = 0",
        "exit",
    ]
    assert found.labels == {"start": 0, "out": 10, "helper_of_mine": 10}
    assert found.lines == [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert found.instructions[1].reference == MapReference("flows")


def test_a_label_goes_before_a_helper_of_the_same_name() -> None:
    call, _ = assemble("call redirect\nredirect: exit")
    assert (call.src, call.imm) == (CallKind.LOCAL, 0)
    (call,) = assemble("call redirect")
    assert (call.src, call.imm) == (CallKind.HELPER, Helper.redirect)


def test_maps_symbols_and_kernel_functions() -> None:
    insns = assemble(
        "r1 = map[flows]\nr2 = map[flows][0]+4\nr3 = LIMIT\nr4 += -LIMIT\n"
        "call bpf_iter_num_new\ncall bpf_iter_num_new#55555",
        maps={"flows": FLOWS},
        symbols={"LIMIT": 77},
        kfuncs={"bpf_iter_num_new": 1234},
    )
    assert [insn.reference for insn in insns[:2]] == [FLOWS, FLOWS]
    assert (insns[1].src, insns[1].imm_high) == (Imm64.MAP_VALUE, 4)
    assert (insns[2].imm, insns[3].imm) == (77, -77)
    assert [(insn.src, insn.imm) for insn in insns[4:]] == [(CallKind.KFUNC, 1234)] * 2


def test_symbols_that_do_not_fit() -> None:
    for value, message in (
        (1 << 40, "1099511627776 needs the 64-bit load: BIG ll"),
        (1.5, "the symbol BIG is 1.5, which is no whole number"),
    ):
        with pytest.raises(TextError, match=message):
            assemble("r1 = BIG", symbols={"BIG": value})  # type: ignore[dict-item]
    assert assemble("r1 = BIG ll", symbols={"BIG": 1 << 40})[0].imm_high == 1 << 8


def test_a_kernel_function_in_a_dump() -> None:
    """The verifier's log and bpftool name it; the number behind is of the kernel that printed it."""
    assert assemble("call bpf_iter_num_new#55555") == assemble("call bpf_iter_num_new")


def test_every_helper_by_name() -> None:
    for helper in Helper:
        (insn,) = assemble(f"call bpf_{helper.name}#{int(helper)}")
        assert insn.imm == helper
        assert text(insn) == f"call bpf_{helper.name}#{int(helper)}"


# Listings.
SETTINGS = Settings(Ports.parse("80,443,8000-8010,9000"))
SPECS: list[ProgramSpec] = [
    *(template.build() for template in PROGRAMS),
    tc_ingress.tc_ingress.build(SETTINGS, Interface()),
    tc_egress.tc_egress.build(SETTINGS, Interface()),
    getsockopt.getsockopt.build(SETTINGS),
    sockops.sockops.build(SETTINGS),
    sk_msg.sk_msg.build(SETTINGS),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
@pytest.mark.parametrize("with_lines", [True, False])
def test_a_listing_is_read_back(spec: ProgramSpec, with_lines: bool) -> None:
    maps = {m.name: m for m in spec.maps}
    found = parse(spec.listing(lines=with_lines), maps=maps)
    assert encode(found.instructions) == spec.code()
    assert [insn.reference for insn in found.instructions if insn.wide and insn.src == 1] == [
        insn.reference for insn in spec.instructions if insn.wide and insn.src == 1
    ]
    for function in spec.functions:
        assert found.labels[function.name] == function.slot


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("main", "main_2"),
        ("a-b.o", "a_b.o"),
        ("größe", "gr__e"),
        ("", "L"),
        ("9x", "_9x"),
        ("r1", "r1"),
        ("x():y # z", "x___y___z"),
    ],
)
def test_a_listing_of_functions_with_any_names(name: str, shown: str) -> None:
    insns = tuple(assemble("call pc+1\nexit\nr0 = 0\nexit"))
    functions = (
        Function("main", 0, (), None, {}),
        Function(name, 2, ("a", "b;c"), None, {0: "main", 1: name}),
    )
    spec = ProgramSpec("main", ProgType.SCHED_CLS, None, "GPL", insns, functions, "little")
    found = parse(spec.listing())
    assert encode(found.instructions) == spec.code()
    assert (found.labels["main"], found.labels[shown]) == (0, 2)


def test_a_byte_order_mark_is_no_text() -> None:
    assert assemble("\ufeffexit") == assemble("exit")
    with pytest.raises(TextError, match="means nothing here"):
        assemble("exit\n\ufeffexit")


def test_lines_of_instructions() -> None:
    insns = assemble("r1 = 0x5\nx: r0 = 0\nexit")
    shown = list(lines(insns, {2: "x"}))
    assert shown == ["   0: (18) r1 = 0x5", "x:", "   2: (b7) r0 = 0", "   3: (95) exit"]
    assert assemble("\n".join(shown)) == insns


def test_all_golden_statements_in_one_text() -> None:
    llvm = list(statements())
    assert len(assemble("\n".join(llvm))) == len(llvm)
    all_ = b"".join(samples())
    assert encode(assemble("\n".join(lines(decode(all_))))) == all_


# Errors.
@pytest.mark.parametrize(
    ("words", "line", "column", "message"),
    [
        ("r1 = r11", 1, 6, "register r11 does not exist: r0 to r10"),
        ("w11 = 1", 1, 1, "register w11 does not exist: w0 to w10"),
        ("mov %r15, 1", 1, 5, "register %r15 does not exist: r0 to r10"),
        ("mov %rx, 1", 1, 5, "register %rx does not exist"),
        ("exit\n  r10 += 8", 2, 3, "add: dst is r10, the frame pointer, which can't be written"),
        ("r1 += w2", 1, 7, "w2 and the r register before it differ in width"),
        ("r1 = w2", 1, 6, "differ in width"),
        ("w1 = 0x100000000", 1, 6, "0x100000000 does not fit: -2147483648 to 2147483647"),
        ("r1 += 2147483648", 1, 7, "2147483648 does not fit"),
        ("r1 = 4294967296", 1, 6, "4294967296 needs the 64-bit load: write it in hexadecimal, 0x100000000"),
        ("r1 = 0x10000000000000000", 1, 6, "does not fit"),
        ("r1 = " + "9" * 10000, 1, 6, "a number of 10000 digits does not fit"),
        ("r1 = 12abc", 1, 6, "'12abc' is no number"),
        ("r1 = 0x", 1, 6, "'0x' is no number"),
        ("r1 = @", 1, 6, "'@' means nothing here"),
        ("r1", 1, 3, "= or an operator such as += expected after r1"),
        ("r1 =", 1, 5, "a register, a number, memory or an operation expected at the end"),
        ("r1 = 1 2", 1, 8, "'2' is too much"),
        ("r1 = load_aquire((u8 *)(r2 +0))", 1, 6, "did you mean 'load_acquire'?"),
        ("r1 = -r2", 1, 7, "a negation works in place: r1 = -r1"),
        ("r1 = be16 r2", 1, 11, "a byte swap works in place and on r registers: r1 = be16 r1"),
        ("r1 = (s64)r2", 1, 7, "(s64) extends no sign: s8, s16, s32"),
        ("w1 = (s32)w2", 1, 7, "(s32) extends no sign: s8, s16"),
        ("r1 = *(s64 *)(r2 +0)", 1, 7, "an 8-byte load has no sign to extend: u64"),
        ("w1 = *(u64 *)(r2 +0)", 1, 7, "this load fills all 64 bits: r1"),
        ("r1 = *(int *)(r2 +0)", 1, 8, "'int' is no type"),
        ("r1 = *(u8 *)(r2 +40000)", 1, 17, "offset 40000 does not fit 16 bits"),
        ("r1 = *(u8 *)(r2 + -4)", 1, 19, "one sign is enough"),
        ("r1 = *(u8 *)(w2 +0)", 1, 14, "the 64-bit register r2 expected, not w2"),
        ("r1 = *(u8 *)skb[0]", 1, 13, "a packet load puts its result into r0"),
        ("*(s8 *)(r1 +0) = r2", 1, 2, "only a load extends the sign"),
        ("if r1 = 5 goto x", 1, 7, "a comparison expected: =="),
        ("if r1 == 5 got x", 1, 12, "'goto' expected, not 'got'"),
        ("if r1 == w1 goto +1", 1, 10, "differ in width"),
        ("goto 5", 1, 6, "a jump goes to a label or by slots, with a sign: +5"),
        ("goto +40000", 1, 6, "40000 does not fit: -32768 to 32767"),
        ("goto", 1, 5, "a label, or the number of slots with a sign, expected at the end"),
        ("loop: exit\nx: goto lop", 2, 9, "there is no label 'lop'; did you mean 'loop'?"),
        ("x: exit\nx: exit", 2, 1, "label 'x' is on line 1 already"),
        ("call bpf_map_lookup_elm", 1, 6, "did you mean 'bpf_map_lookup_elem'?"),
        ("call bpf_map_lookup_elem#2", 1, 6, "bpf_map_lookup_elem is helper 1, not 2"),
        ("call bpf_map_lokup_elem#1", 1, 6, "is no helper (helper 1 is bpf_map_lookup_elem)"),
        ("call +5", 1, 6, "a call by slots is call pc+5, of a helper call 5"),
        ("r1 = map[flows]+8", 1, 6, "a byte of a map's value is map[name][0]+8"),
        ("r1 = map[]", 1, 6, "a map is map[name]"),
        ("r1 = map[id:99999999999]", 1, 6, "a map is map[name]"),
        ("r1 = map[id:4294967296]", 1, 6, "4294967296 does not fit 32 bits"),
        ("w1 = map[flows]", 1, 6, "this needs all 64 bits of the register: r1"),
        ("r2 = atomic64_fetch_add((u64 *)(r1 +0), r3)", 1, 41, "the old value goes to r3"),
        ("r0 = atomic64_cmpxchg((u64 *)(r1 +0), r2, r3)", 1, 39, "the value to compare with is in r0"),
        ("r2 = atomic64_xchg((u32 *)(r1 +0), r2)", 1, 20, "the operation is on u64"),
        ("lock *(u16 *)(r1 +0) += r2", 1, 7, "an atomic operation is on u32 or u64"),
        ("lock *(u64 *)(r1 +0) -= r2", 1, 22, "+=, |=, &=, ^= expected"),
        ("fetch_add %r1", 1, 1, "there is no instruction 'fetch_add'"),
        ("mvo %r1, 1", 1, 1, "there is no instruction 'mvo'; did you mean 'mov'?"),
        ("add %r1, 1,", 1, 11, "',' is too much"),
        ("add %r1 1", 1, 9, "another operand expected, not '1'"),
        ("add %r1, foo", 1, 10, "a number expected, not 'foo'"),
        ("add %w1, 1", 1, 5, "the 64-bit register r1 expected, not w1"),
        (
            "5: (b7) r1 = 1\n7: (b7) r2 = 1",
            2,
            1,
            "slot 6 comes here, not 7: a line of the listing is missing",
        ),
        ("5: (b7) r1 = r2", 1, 9, "the line says opcode 0xb7, but this instruction has 0xbf"),
        ("%x: exit", 1, 1, "a label can't begin with '%'"),
        ("int t(void):\nint t(void):", 2, 5, "label 't' is on line 1 already"),
        ("x: call bpf_map_lookup_elem#2", 1, 9, "bpf_map_lookup_elem is helper 1, not 2"),
        ("r0 = 0; exit", 1, 7, "';' begins a comment, and this one is a statement"),
        ("r0 = 0 ; goto x\nx: exit", 1, 8, "';' begins a comment, and this one is a statement"),
        ("if r0 == 0 goto exit; goto exit\nexit", 1, 21, "';' begins a comment, and this one is a statement"),
        ("r0 = 0;call bpf_redirect", 1, 7, "';' begins a comment, and this one is a statement"),
        ("0: r0 = 0; exit", 1, 10, "';' begins a comment, and this one is a statement"),
        ("goto x ; x: exit", 1, 8, "';' begins a comment, and this one is a statement"),
        ("x: r0 = 0;call 5; exit", 1, 10, "';' begins a comment, and this one is a statement"),
        ("goto +0xffffffffffffffff", 1, 6, "+0xffffffffffffffff does not fit: -32768 to 32767"),
        ("call pc+0xffffffff", 1, 8, "+0xffffffff does not fit"),
        ("lock add6432 [%r1+0], %r2", 1, 6, "there is no atomic operation 'add6432'"),
        ("call r1\nr1: exit", 1, 6, "r1 is a register and a label"),
        ("r0 = *(u64 *)skb[0]", 1, 14, "a packet load has 1, 2 or 4 bytes: u8, u16, u32"),
        ("r1 = addr_space_cast(r2, 5, 0)", 1, 26, "a cast goes from address space 1 to 0 or back"),
        ("r1 = addr_space_cast(r2, 0, 0)", 1, 26, "a cast goes from address space 1 to 0 or back"),
        ("r1 = map[ x ]", 1, 6, "a map is map[name], map[id:5] or map[idx:0]"),
        ("r1 = map[x", 1, 6, "a map is map[name], map[id:5] or map[idx:0]"),
        ("r1 = 010", 1, 6, "010 is octal in C and decimal elsewhere: write 10"),
        ("r1 = *(u32 *)(r10 -08)", 1, 20, "08 is octal in C and decimal elsewhere: write 8"),
        ("call exit\nexit", 1, 6, "there is no label, helper or kernel function 'exit'"),
    ],
)
def test_error(words: str, line: int, column: int, message: str) -> None:
    with pytest.raises(TextError) as caught:
        assemble(words, filename="f.s")
    error = caught.value
    assert message in error.message
    assert (error.line, error.column) == (line, column), str(error)
    assert str(error).startswith(f"f.s:{line}:{column}: ")


def test_an_error_shows_the_line_and_marks_the_place() -> None:
    with pytest.raises(TextError) as caught:
        assemble("exit\n\tr1 = r11 ; wrong\x00\u2028\n", filename="f.s")
    assert str(caught.value) == (
        "f.s:2:7: register r11 does not exist: r0 to r10\n     r1 = r11 ; wrong?\n          ^"
    )


def test_an_error_in_a_long_line_shows_a_part() -> None:
    with pytest.raises(TextError) as caught:
        assemble(" " * 5000 + "r1 = r11" + " " * 5000)
    shown = str(caught.value).splitlines()
    assert all(len(line) < 120 for line in shown)
    assert shown[1][shown[2].index("^") :].startswith("r11")


def test_unknown_map() -> None:
    with pytest.raises(TextError, match="there is no map 'flow'; did you mean 'flows'"):
        assemble("r1 = map[flow]", maps={"flows": FLOWS})


def test_a_jump_too_far() -> None:
    with pytest.raises(TextError, match=r"out is 40000 slots away.*use gotol"):
        assemble("goto out\n" + "r0 = 0\n" * 40000 + "out: exit")
    assert assemble("gotol out\n" + "r0 = 0\n" * 40000 + "out: exit")[0].imm == 40000


# Hostile text.
PIECES = [
    *"+-*()[],=<>&:#;%/|^!$._\n\n\n\t @\"'\\\x00é",
    *(
        "r1",
        "w1",
        "r10",
        "r11",
        "%r1",
        "%r",
        "pc",
        "map[",
        "map[x]",
        "[0]",
        "id:",
        "skb",
        "u32",
        "s8",
        "ll",
        "0x",
    ),
    *(
        "0",
        "7",
        "-1",
        "4294967296",
        "99999999999999999999999",
        "0xffffffffffffffff",
        "1e5",
        "s>>=",
        "<<=",
        "+=",
    ),
    *(
        "if",
        "goto",
        "gotol",
        "may_goto",
        "call",
        "local",
        "callx",
        "exit",
        "lock",
        "fetch",
        "add",
        "mov",
        "lddw",
    ),
    *(
        "kernel-function",
        "subprog",
        "btf_id",
        "atomic64_xchg",
        "load_acquire",
        "store_release",
        "be16",
        "x",
        "x:",
    ),
    *("12:", "(b7)", "int f(void):", "*(u32 *)(r1 +0)"),
]


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(PIECES), max_size=24).map(" ".join)
    | st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
)
def test_any_text_is_assembled_or_refused(words: str) -> None:
    try:
        found = assemble(words)
    except TextError as error:
        assert 1 <= error.line <= words.count("\n") + 1
        assert 1 <= error.column <= len(error.text) + 1
        assert error.message in str(error)
        return
    assert decode(encode(found)) is not None


@pytest.mark.parametrize(
    ("mnemonic", "kernel"),
    [
        ("lddw %r1, map_by_fd(5)", "r1 = map[id:5]"),
        ("lddw r1, map_by_fd(flows)", "r1 = map[flows]"),
        ("lddw %r2, map_val(map_by_fd(flows))+8", "r2 = map[flows][0]+8"),
        ("lddw %r2, map_val(map_by_fd(5))", "r2 = map[id:5][0]+0"),
        ("lddw %r3, map_by_idx(2)", "r3 = map[idx:2]"),
        ("lddw %r3, map_val(map_by_idx(2))+16", "r3 = map[idx:2]+16"),
        ("lddw %r4, var_addr(77)", "r4 = btf_id[77]"),
        ("lddw %r5, code_addr(+1)", "r5 = subprog[+1]"),
        ("lddw %r5, code_addr(f)\nexit\nf: exit", "r5 = subprog[f]\nexit\nf: exit"),
    ],
)
def test_addresses_by_the_names_of_the_rfc(mnemonic: str, kernel: str) -> None:
    one, other = assemble(mnemonic), assemble(kernel)
    assert one == other
    assert encode(one) == encode(other)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lddw %r1, map_val(5)", r"map_by_fd or map_by_idx expected, not '5'"),
        ("lddw %r1, map_val(var_addr(5))", r"a map's value is map_val\(map_by_fd"),
        ("lddw %r1, map_by_fd(5", r"'\)' expected at the end"),
        ("lddw %r1, map_by_idx(flows)", r"a number expected, not 'flows'"),
        ("lddw %r1, map_by_fd(0x100000000)", "does not fit"),
        ("lddw %r1, map_by(5)", "a number expected, not 'map_by'"),
    ],
)
def test_addresses_that_are_none(words: str, message: str) -> None:
    with pytest.raises(TextError, match=message):
        assemble(words)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(statements())), st.data())
def test_a_changed_statement_is_assembled_or_refused(words: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(words)))
    cut = data.draw(st.integers(0, 4))
    changed = words[:at] + data.draw(st.sampled_from(["", *PIECES])) + words[at + cut :]
    try:
        found = assemble(changed)
    except TextError:
        return
    assert encode(assemble("\n".join(map(text, found)))) == encode(found)


N = 30_000
HOSTILE = {
    "letters": "a" * N,
    "digits": "1" * N,
    "digits of a number": "r1 = 1" + "0" * N,
    "hexadecimal": "r1 = 0x" + "f" * N,
    "spaces": " " * N + "x",
    "parentheses": "(" * N,
    "heads": "a " * (N // 2) + "(" + "):",
    "head of one word": "a" * N + "(" + "a" * N + "):",
    "signs": "r1 = " + "-" * N,
    "brackets": "r1 = map[" * (N // 9),
    "maps without an end": "r1 = " + "map[" * 200_000,  # quadratic, this would meet the time-out
    "map name": "r1 = map[" + "a" * N + "]",
    "labels": "".join(f"l{i}: " for i in range(N // 7)) + "frob",
    "unknown label among many": "".join(f"l{i}:\n" for i in range(N // 7)) + "goto l",
    "long label": "a" * N + ":\ngoto " + "a" * (N - 1),
    "lines": "\n" * N,
    "comments": "#" * N + "\n" + ";" * N,
    "calls": "call a#" + "1" * N,
    "unknown words": "mo" * N + " %r1",
    "prefixes": "1: " * N,
    "registers": "r1 = r" + "1" * N,
    "types": "r1 = *(" + "u" * N,
}


@pytest.mark.parametrize("words", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_takes_no_time_or_memory_out_of_proportion(words: str) -> None:
    tracemalloc.start()
    try:
        assemble(words)
    except TextError as error:
        assert len(str(error)) < 1000
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 400 * len(words)


def test_a_long_program_takes_work_in_proportion() -> None:
    def work(count: int) -> int:
        words = "top: r1 += 1\nif r1 < 0x5 goto +1\ncall bpf_ktime_get_ns\n" + "r0 = 0\n" * count + "exit"
        return calls(lambda: assemble(words))

    assert work(8_000) < 5 * work(2_000)
