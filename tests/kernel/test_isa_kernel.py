# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The running kernel's own text of every instruction."""

from __future__ import annotations

import os
import re
from pathlib import Path

from loader.features import Isa, probe
from loader.sys import prog_load
from pybpfasm.btf import Btf, Kind
from pybpfasm.instruction import decode, encode
from pybpfasm.kernel.enums import ProgType
from pybpfasm.listing import text
from pybpfasm.text import assemble
from tests.data.isa.regenerate import samples, verifier_text
from tests.requires import RCU_READ_LOCK, needed, requires


@requires(RCU_READ_LOCK)
def test_calls_of_kernel_functions() -> None:
    """The verifier names the function before its BTF id."""
    btf = Btf.parse(Path("/sys/kernel/btf/vmlinux").read_bytes())
    kfuncs = {}
    for name in ("bpf_rcu_read_lock", "bpf_rcu_read_unlock"):
        found = btf.by_name(name, Kind.FUNC)
        assert found is not None
        kfuncs[name] = found.id
    ours = assemble("call bpf_rcu_read_lock\ncall bpf_rcu_read_unlock\nr0 = 0\nexit", kfuncs=kfuncs)
    loaded = prog_load(ProgType.SCHED_CLS, encode(ours), license="GPL", log_level=2, log_size=1 << 16)
    assert loaded.fd >= 0, loaded.log
    os.close(loaded.fd)
    for name, number in kfuncs.items():
        assert f"(85) call {name}#{number}" in loaded.log
    printed = re.findall(r"^\d+: \(..\) (.*?)(?:\s+;.*)?$", loaded.log, re.MULTILINE)
    assert assemble("\n".join(printed), kfuncs=kfuncs) == ours
    # By number alone it is the same.
    assert assemble("\n".join(text(insn) for insn in ours)) == ours


def known_helpers() -> set[int]:
    """The numbers of the helpers that this kernel's BTF names."""
    found = Btf.parse(Path("/sys/kernel/btf/vmlinux").read_bytes()).by_name("bpf_func_id", Kind.ENUM)
    assert found is not None
    return {value for name, value in found.enumerators if name != "__BPF_FUNC_MAX_ID"}


def test_text_is_the_running_kernels() -> None:
    """The verifier of this kernel prints each instruction as we do, or does not know its opcode."""
    unknown: set[str] = set()
    printed: set[str] = set()
    differ = []
    missing = {part for part in Isa if not probe(part).supported}
    helpers = known_helpers()
    for code in samples():
        insn = decode(code)[0]
        if missing & set(needed([insn])):
            continue  # it may be printed as what it would have been before, and refused then
        form = insn.form()
        assert form is not None
        words = verifier_text(code)
        if words is None:
            unknown.add(form.name)
            continue
        printed.add(form.name)
        if words == f"call unknown#{insn.imm}":
            assert insn.imm not in helpers
        elif words != text(insn):
            differ.append((words, text(insn)))
        assert encode(assemble(words)) == code, words
    assert not differ
    # Older kernels know less; whatever came with 4.x is in all that have what this project needs.
    assert {"add", "mov32", "jeq", "jlt", "ldx", "st", "stx", "lddw", "exit", "call", "ldabs"} <= printed
    assert not unknown & printed
