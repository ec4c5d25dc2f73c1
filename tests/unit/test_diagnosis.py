# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The verifier's messages explained: in the logs that a real kernel wrote, and as older kernels word them."""

from __future__ import annotations

import json
import re
from errno import ENOSPC
from pathlib import Path
from typing import Any

import pytest

from loader.verifier import VerifierError, parse_log
from pybpfasm.diagnosis import MESSAGES, diagnose, in_words
from pybpfasm.errors import SourceLocation

LOGS = Path(__file__).resolve().parent.parent / "data" / "verifier"
CASES: list[dict[str, Any]] = [
    {**case, "linux": path.stem.removeprefix("linux-")}
    for path in sorted(LOGS.glob("linux-*.json"))
    for case in json.loads(path.read_text(encoding="utf-8"))
]
# What older kernels find wrong first, in programs that are to provoke another message, or how they word it.
OLDER = {
    ("5.10", "argument-unbounded-size"): "argument-zero-size",
    ("5.10", "argument-constant"): "argument-unbounded-size",
    ("5.10", "helper-sleeps"): "helper-forbidden",
    ("5.10", "jump-middle"): "opcode",
    ("5.10", "kfunc"): "opcode",
    ("5.10", "map-index"): "opcode",
    ("5.10", "result-range"): "result-unknown",
    ("5.10", "struct-bounds"): "helper-unknown",
    ("5.10", "tail-call-map:map"): "kernel-mistake",
    ("5.10", "timer-map"): "helper-unknown",
    ("5.10", "value-object-btf:timer"): "helper-unknown",
    ("6.1", "argument-unbounded-size"): "argument-zero-size",
    ("6.1", "result-range"): "result-unknown",
    ("6.1", "tail-call-map:map"): "kernel-mistake",
    ("6.12", "tail-call-map:map"): "kernel-mistake",
}

# Of these no log of a current kernel is here: they need another kernel, fewer rights, or BTF that is wrong.
FROM_SOURCES = {
    "other-access": "R1 invalid mem access 'flow_keys'",
    "stack-bounds-old": "invalid stack off=-520 size=8",
    "stack-unwritten": "invalid indirect read from stack R2 off -8+4 size 8",
    "callback-range": "At callback return the register R0 has value 5 should have been in [0, 1]",
    "global-argument": "arg#0 expects pointer to ctx\nCaller passes invalid args into func#1 ('f')",
    "function-argument": "R2 is not a scalar",
    "result-leak": "R0 leaks addr as return value",
    "back-edge": "back-edge from insn 9 to 2",
    "btf": "Invalid insn_off 5 (must be < 4)",
    "argument-kind-new": "R1 is of type task_struct but file is expected",
    "argument-string": "R3 does not point to a readonly map'",
    "attach-btf": "Tracing programs must provide btf_id",
    "buffer-bounds": "R1 invalid rdonly buffer access: off=8, size=16",
    "call-target": "call to invalid destination",
    "callback": "callback function not static",
    "callback-jit": "callbacks are not allowed in non-JITed programs",
    "flow-keys": "invalid access to flow keys off=100 size=8",
    "global-function": "Global function f() doesn't return scalar. Only those are supported.",
    "helper-program": "func bpf_get_func_arg#183 supported only for fentry/fexit/fmod_ret programs",
    "kernel-mistake": "verifier internal error: no src_reg",
    "key-bounds": "invalid access to map key, key_size=4 off=0 size=8",
    "key-write": "write to change key R2 not allowed",
    "kfunc-sleeps": "kernel function bpf_lookup_user_key is sleepable but the program is not",
    "kfunc-trusted": "R1 must be referenced or trusted",
    "kfunc-unsupported": "JIT is required for calling kernel function",
    "ksym-address": "ldimm64 failed to find the address for kernel symbol 'runqueues'.",
    "needs-capabilities": "loading/calling other bpf or kernel functions are allowed for CAP_BPF and "
    "CAP_SYS_ADMIN",
    "packet-offset": "R7 offset is outside of the packet",
    "pointer-modified": "dereference of modified sock ptr R1 off=4 disallowed",
    "sleepable": "Sleepable programs can only use array, hash, and ringbuf maps",
    "subprogram-result": "At subprogram exit the register R0 is not a scalar value (fp)",
    "tail-call-stack": "tail_calls are not allowed when call stack of previous frames is 264 bytes. Too "
    "large",
    "too-many-functions": "too many subprograms",
    "unprivileged-pointer": "R2 pointer comparison prohibited",
}


class _Spec:
    name = "case"

    def location(self, slot: int) -> SourceLocation | None:
        return SourceLocation("case.py", slot + 1, "case", f"line {slot + 1}")


@pytest.mark.parametrize("case", CASES, ids=[f"{case['linux']}-{case['name']}" for case in CASES])
def test_what_a_real_kernel_wrote(case: dict[str, Any]) -> None:
    if case["errno"] == ENOSPC:
        assert case["key"] in ("too-complex", "too-many-jumps")
        return  # these logs are longer than anything that was provided for them, and end in the middle
    log = parse_log(case["log"])
    found = diagnose(log.messages)
    assert found is not None, log.messages
    assert found.key == OLDER.get((case["linux"], case["name"]), case["key"])
    assert "?" not in found.why + found.advice, "a group of the pattern was empty"
    if case["slot"] is not None and found.key == case["key"]:
        assert log.slot == case["slot"]
    shown = str(VerifierError(_Spec(), case["log"]))
    assert f"why: {found.why}" in shown
    if log.slot is not None:
        assert f"at case.py:{log.slot + 1}: line {log.slot + 1}" in shown


def test_every_message_has_a_log_or_a_reason_why_not() -> None:
    provoked = {case["key"] for case in CASES}
    keys = [message.key for message in MESSAGES]
    assert len(keys) == len(set(keys))
    assert set(keys) == provoked | set(FROM_SOURCES)
    assert not provoked & set(FROM_SOURCES)


@pytest.mark.parametrize(("key", "message"), FROM_SOURCES.items())
def test_what_the_sources_say(key: str, message: str) -> None:
    found = diagnose(message)
    assert found is not None
    assert found.key == key


# Wordings of 5.10 (`inv`, ids and offsets in each state) and 6.1 where they differ from 6.18.
@pytest.mark.parametrize(
    ("message", "key"),
    [
        ("R2 invalid mem access 'inv'", "scalar-access"),
        ("R1 type=inv expected=map_ptr", "argument-kind"),
        ("R1 type=map_value_or_null expected=fp, pkt, pkt_meta, map_value", "maybe-null-argument"),
        ("invalid stack type R2 off=-520 access_size=8", "stack-bounds-old"),
        ("invalid read from stack off -8+0 size 8", "stack-unwritten"),
        ("misaligned stack access off (0x0; 0x0)+0+-12 size 8", "misaligned-stack"),
        ("unknown func bpf_skb_pull_data#39", "helper-forbidden"),
        ("R11 is invalid", "no-such-register"),
        ("invalid access to packet, off=0 size=1, R7(id=2,off=0,r=0)", "packet-bounds-variable"),
        ("R0 max value is outside of the array range", "memory-max"),
        ("R1 min value is outside of the array range", "memory-min"),
        ("Unreleased reference id=2 alloc_insn=10", "reference-leak"),
        (
            "At program exit the register R0 has value (0x5; 0x0) should have been in (0x0; 0x1)",
            "result-unknown",
        ),
        ("jump out of range from insn 1 to 33", "jump-range"),
        ("dereference of modified ctx ptr R1 off=8 disallowed", "context-modified"),
        ("BPF_XADD stores into R1 ctx is not allowed", "context-atomic"),
    ],
)
def test_older_wordings(message: str, key: str) -> None:
    found = diagnose(message)
    assert found is not None
    assert found.key == key


def test_numbers_of_the_message_are_in_the_explanation() -> None:
    found = diagnose(
        ["invalid access to map value, value_size=16 off=16 size=8", "R0 min value is outside of ..."]
    )
    assert found is not None
    assert found.key == "value-bounds"
    assert found.why == "8 bytes at 16 of a map's value are accessed, which has 16"
    assert diagnose("something that no kernel says") is None
    assert diagnose([]) is None


def test_explanations_are_sentences_for_people() -> None:
    for message in MESSAGES:
        for text in (message.why, message.advice):
            assert not text.endswith("."), message.key
            named = set(re.findall(r"\{(\w+)\}", text))
            assert named <= set(message.pattern.groupindex), message.key


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            "map_value_or_null(id=1,map=hash,ks=4,vs=16)",
            "the address of a value of map 'hash' (16 bytes), or 0",
        ),
        ("map_value(id=0,off=8,ks=4,vs=16,imm=0)", "the address of a map's value (16 bytes), at offset 8"),
        ("pkt(r=14)", "a packet pointer, 14 bytes of it checked"),
        ("pkt(off=14,r=0)", "a packet pointer, of which nothing is checked, at offset 14"),
        ("scalar(smax=umax=255,var_off=(0x0; 0xff))", "a number from 0 to 255"),
        ("inv(id=0,umin_value=1,umax_value=255,var_off=(0x0; 0xff))", "a number from 1 to 255"),
        ("scalar()", "a number, nothing known of it"),
        ("P5", "the number 5"),
        ("inv5", "the number 5"),
        ("fp-8", "the address r10-8 of the stack"),
        ("sock_common_or_null(id=2,ref_obj_id=2)", "a socket, perhaps not a full one, or 0"),
        ("ptr_task_struct(off=8)", "a kernel structure task_struct, at offset 8"),
        ("something_else(x=1)", ""),
    ],
)
def test_register_states_in_words(state: str, words: str) -> None:
    assert in_words(state) == words


def _rejected(linux: str, name: str) -> VerifierError:
    (case,) = [case for case in CASES if (case["linux"], case["name"]) == (linux, name)]
    return VerifierError(_Spec(), case["log"])


def test_states_are_those_of_the_failing_instruction() -> None:
    # 5.10 prints no state behind an instruction: what r0 was before the sum is not what it is.
    assert "r0" not in _rejected("5.10", "memory-max").registers()
    assert "umax=31" in _rejected("6.1", "memory-max").registers()["r0"]
    # How much of the packet is checked comes with the reason; the branch that checks it prints nothing.
    for linux in ("5.10", "6.1", "6.12", "6.18"):
        assert ",r=14" in (state := _rejected(linux, "packet-bounds").registers()["r7"]) or "(r=14" in state
        assert in_words(state).endswith("14 bytes of it checked"), state
