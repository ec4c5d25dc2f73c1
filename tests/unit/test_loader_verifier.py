# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The verifier's log as several kernels write it, and the error that people read."""

from __future__ import annotations

import pytest

from loader.errors import BpfError
from loader.verifier import Comment, VerifierError, parse_log, parse_state
from pybpfasm.errors import SourceLocation

# 6.18: file and line in the comments, a branch of which the verifier takes one way only.
LOG_6_18 = """\
arg#0 reference type('FWD __sk_buff') size cannot be determined: -22
0: R1=ctx() R10=fp0
; b.r6 = ctx.data @ ingress.py:12
0: (61) r6 = *(u32 *)(r1 +76)         ; R1=ctx() R6=pkt(r=0)
; b.r7 = ctx.data_end @ ingress.py:13
1: (61) r7 = *(u32 *)(r1 +80)         ; R1=ctx() R7=pkt_end()
; with b.If(b.r6 + 14 > b.r7): @ ingress.py:16
4: (bd) if r8 <= r7 goto pc+2 7: R1=ctx() R6=pkt(r=14) R7=pkt_end() R8=pkt(off=14,r=14) R10=fp0
a remark that only a later kernel makes
; b.r1 = b.u8[b.r6 + 12] @ ingress.py:18
7: (71) r1 = *(u8 *)(r6 +12)          ; R1=scalar(smax=umax=255,var_off=(0x0; 0xff)) R6=pkt(r=14)
; b.r2 = b.u8[b.r6 + 15] @ ingress.py:20
9: (71) r2 = *(u8 *)(r6 +15)
invalid access to packet, off=15 size=1, R6(id=0,off=15,r=14)
R6 offset is outside of the packet
processed 10 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 1 mark_read 0

"""

# 5.10: states on lines of their own, `inv` for a scalar, no file names.
LOG_5_10 = """\
func#0 @0
0: R1=ctx(id=0,off=0,imm=0) R10=fp0
; if (port == 8000)
0: (61) r6 = *(u32 *)(r1 +76)
1: R1=ctx(id=0,off=0,imm=0) R6_w=pkt(id=0,off=0,r=0,imm=0) R10=fp0
1: (55) if r6 != 0x3 goto pc+1
 R1=ctx(id=0,off=0,imm=0) R6_w=pkt(id=0,off=0,r=0,imm=0) R10=fp0

from 1 to 3: R1=ctx(id=0,off=0,imm=0) R2_w=inv(id=0,umax_value=255,var_off=(0x0; 0xff)) R10=fp0
3: (71) r0 = *(u8 *)(r2 +0)
R2 invalid mem access 'inv'
processed 4 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

LOG_UNREACHABLE = """\
unreachable insn 5
processed 0 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

LOG_REFERENCE = """\
9: (b7) r5 = 0                        ; R5=0
10: (85) call bpf_sk_lookup_tcp#84    ; R0=sock_or_null(id=2,ref_obj_id=2) refs=2
11: (b7) r0 = 0                       ; R0=0 refs=2
12: (95) exit
Unreleased reference id=2 alloc_insn=10
processed 13 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""

LOG_LOOP = """\
0: R1=ctx() R10=fp0
0: (b7) r0 = 0                        ; R0=0
1: (05) goto pc-1
infinite loop detected at insn 1
cur state: R0=0 R1=ctx() R10=fp0
old state: R0=0 R1=ctx() R10=fp0
processed 2 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""


class Spec:
    """As much of a program as the error needs: slots 0 to 99 are lines 100 to 199 of one file."""

    name = "ingress"

    def __init__(self, known: bool = True) -> None:
        self.known = known

    def location(self, slot: int) -> SourceLocation | None:
        if not self.known or slot > 99:
            return None
        return SourceLocation("programs/x.py", 100 + slot, "ingress", f"line of {slot}")


def test_steps_comments_and_states() -> None:
    log = parse_log(LOG_6_18)
    assert [step.slot for step in log.steps] == [0, 1, 4, 7, 9]
    first, _, branch, load, last = log.steps
    assert first.comment == Comment("b.r6 = ctx.data", "ingress.py", 12)
    assert (first.opcode, first.text) == (0x61, "r6 = *(u32 *)(r1 +76)")
    assert (first.before["R1"], first.changed["R6"]) == ("ctx()", "pkt(r=0)")
    assert branch.text == "if r8 <= r7 goto pc+2"
    assert load.before["R8"] == "pkt(off=14,r=14)"
    assert load.changed["R1"] == "scalar(smax=umax=255,var_off=(0x0; 0xff))"
    assert last.before["R6"] == "pkt(r=14)"
    assert log.reason == (
        "invalid access to packet, off=15 size=1, R6(id=0,off=15,r=14); R6 offset is outside of the packet"
    )
    assert (log.slot, log.processed) == (9, 10)


def test_the_older_format() -> None:
    log = parse_log(LOG_5_10)
    assert [step.slot for step in log.steps] == [0, 1, 3]
    assert log.steps[0].comment == Comment("if (port == 8000)")
    assert log.steps[1].before["R6"] == "pkt(id=0,off=0,r=0,imm=0)"
    # The state at the branch stands for itself: R6 of the other way is not in it.
    assert log.steps[2].before["R2"] == "inv(id=0,umax_value=255,var_off=(0x0; 0xff))"
    assert "R6" not in log.steps[2].before
    assert log.reason == "R2 invalid mem access 'inv'"


@pytest.mark.parametrize(
    ("text", "slot", "reason"),
    [
        (LOG_UNREACHABLE, 5, "unreachable insn 5"),
        (LOG_LOOP, 1, "infinite loop detected at insn 1"),
        (LOG_REFERENCE, 12, "Unreleased reference id=2 alloc_insn=10"),
        ("", None, ""),
        ("fd 3 is not pointing to valid bpf_map\n", None, "fd 3 is not pointing to valid bpf_map"),
    ],
)
def test_the_instruction_to_blame(text: str, slot: int | None, reason: str) -> None:
    log = parse_log(text)
    assert (log.slot, log.reason) == (slot, reason)


def test_states_with_nested_parentheses_and_stack() -> None:
    state = parse_state(
        "frame1: R0_rwD=scalar(var_off=(0x0; 0xff)) R10=fp0 fp-8=mmmm???? fp-16_w=map_value(a=b)"
    )
    assert state == {
        "R0": "scalar(var_off=(0x0; 0xff))",
        "R10": "fp0",
        "fp-8": "mmmm????",
        "fp-16": "map_value(a=b)",
    }


def test_a_log_that_was_cut_off_gives_what_it_holds() -> None:
    log = parse_log(LOG_6_18[: LOG_6_18.index("9: (71)") + 5])
    assert [step.slot for step in log.steps] == [0, 1, 4, 7]
    assert log.processed is None


def test_the_error_shows_the_python_line_reason_and_registers() -> None:
    error = VerifierError(Spec(), LOG_6_18, BpfError(13, "PROG_LOAD", "program 'ingress'"))
    assert str(error).splitlines() == [
        "the verifier rejected program 'ingress': invalid access to packet, off=15 size=1, "
        "R6(id=0,off=15,r=14); R6 offset is outside of the packet",
        "  at programs/x.py:109: line of 9",
        "  instruction 9: r2 = *(u8 *)(r6 +15)",
        "    r6 = pkt(r=14)   a packet pointer, 14 bytes of it checked",
        "  why: the packet may be shorter: 1 bytes at 15 are read, and only 14 are known to be there",
        "  the way there:",
        "    programs/x.py:100: line of 0",
        "    programs/x.py:101: line of 1",
        "    programs/x.py:104: line of 4",
        "    programs/x.py:107: line of 7",
        "    programs/x.py:109: line of 9",
    ]
    assert (error.location, error.errno, error.log) == (Spec().location(9), 13, LOG_6_18)
    assert error.diagnosis is not None and error.diagnosis.key == "packet-bounds"
    assert error.hint.startswith(error.diagnosis.advice) and "+ 1) with data_end" in error.hint


def test_the_logs_own_lines_serve_where_the_program_has_none() -> None:
    error = VerifierError(Spec(known=False), LOG_6_18)
    assert "  at ingress.py:20: b.r2 = b.u8[b.r6 + 15]" in str(error).splitlines()
    assert error.location is None


def test_where_a_leaked_reference_came_from() -> None:
    assert (
        "  acquired at programs/x.py:110: line of 10"
        in str(VerifierError(Spec(), LOG_REFERENCE)).splitlines()
    )


def test_a_line_before_any_step() -> None:
    lines = str(VerifierError(Spec(), LOG_UNREACHABLE)).splitlines()
    assert lines == [
        "the verifier rejected program 'ingress': unreachable insn 5",
        "  at programs/x.py:105: line of 5",
        "  instruction 5",
        "  why: nothing leads to instruction 5",
    ]


LOG_MOVED = """\
0: R1=ctx() R10=fp0
0: (61) r7 = *(u32 *)(r1 +76)         ; R1=ctx() R7=pkt(r=0)
1: (b7) r2 = 40                       ; R2=40
2: (85) call bpf_skb_pull_data#39     ; R0=scalar()
3: (71) r0 = *(u8 *)(r7 +0)
R7 invalid mem access 'scalar'
processed 4 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""


def test_what_a_call_takes_away_is_not_shown() -> None:
    error = VerifierError(Spec(), LOG_MOVED)
    assert error.registers()["r7"] == "scalar()"
    assert "R2" not in error.parsed.steps[-1].before
    # A number is a number already.
    constant = LOG_MOVED.replace("R7=pkt(r=0)", "R7=76")
    assert VerifierError(Spec(), constant).registers()["r7"] == "76"
