# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Probes: what they say on this kernel, and that they do not say yes or no without reason."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loader import features, objects
from loader import sys as bpf_sys
from loader.errors import BpfError, KernelFeatureError
from loader.features import (
    Asked,
    BtfPart,
    Feature,
    Isa,
    Support,
    has_attach_type,
    has_helper,
    has_kfunc,
    has_link_type,
    has_map_type,
    has_program_type,
    probe,
    probe_all,
    require,
)
from loader.features.named import PROBES
from loader.objects import Map, Program
from pybpfasm.btf import Btf, Kind
from pybpfasm.kernel.enums import AttachType, Cmd, Helper, LinkType, MapType, ProgType


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test asks the kernel anew."""
    features.forget()
    yield
    features.forget()


def refusing(code: int, *commands: Cmd) -> Callable[..., int]:
    """bpf(2) of a kernel that answers some commands with an error."""
    real = bpf_sys.bpf

    def bpf(command: int, attr: Any, what: str = "") -> int:
        if command in commands:
            raise BpfError(code, Cmd(command).name)
        return real(command, attr, what)

    return bpf


def test_every_feature_gets_an_answer_on_a_privileged_run() -> None:
    answers = probe_all()
    assert list(answers) == list(Feature)
    assert [f.name for f, found in answers.items() if found.support is Support.INCONCLUSIVE] == []
    assert all(found.reason and found.name == f.value for f, found in answers.items())
    # Older than anything that this loader runs on.
    for feature in (Feature.SOCKHASH, Feature.SK_MSG, Feature.BTF_INFO):
        assert probe(feature).supported


def test_helpers_that_are_there_and_not() -> None:
    assert has_helper(ProgType.SCHED_CLS, Helper.skb_store_bytes).support is Support.SUPPORTED
    # The helper exists, but not for this program type.
    assert has_helper(ProgType.SOCK_OPS, Helper.skb_store_bytes).support is Support.UNSUPPORTED
    assert has_helper(ProgType.SK_MSG, Helper.sk_release).support is Support.UNSUPPORTED


# --- against what bpftool finds -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpftool() -> dict[str, dict[str, Any]]:
    """What ``bpftool feature probe`` says. It knows the types that were there when it was made."""
    done = subprocess.run(
        ["bpftool", "-j", "feature", "probe", "kernel", "full"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def compare(said: bool, found: features.Probe) -> None:
    """Both agree. bpftool takes a refusal (EPERM) for a no, and asks for tracing in a way that some kernels
    refuse to anybody.
    """
    if found.support is Support.INCONCLUSIVE:
        assert not said
        assert found.errno in (errno.EPERM, errno.EACCES)
    elif "TRACING" in found.name:
        assert said <= found.supported, found
    else:
        assert said is found.supported, found


@pytest.mark.parametrize("kind", [kind for kind in ProgType if kind])
def test_program_types(bpftool: dict[str, dict[str, Any]], kind: ProgType) -> None:
    key = f"have_{kind.name.lower()}_prog_type"
    if key not in bpftool["program_types"]:
        assert kind >= ProgType.NETFILTER  # newer than Debian's bpftool
        return
    compare(bpftool["program_types"][key], has_program_type(kind))


@pytest.mark.parametrize("kind", [kind for kind in MapType if kind])
def test_map_types(bpftool: dict[str, dict[str, Any]], kind: MapType) -> None:
    key = f"have_{kind.name.lower().removesuffix('_deprecated')}_map_type"
    if key not in bpftool["map_types"]:
        assert kind >= MapType.CGRP_STORAGE
        return
    compare(bpftool["map_types"][key], has_map_type(kind))


@pytest.mark.parametrize("kind", [ProgType.SOCK_OPS, ProgType.SK_MSG, ProgType.XDP, ProgType.SCHED_CLS])
def test_helpers(bpftool: dict[str, dict[str, Any]], kind: ProgType) -> None:
    def said_of(kind: ProgType) -> set[str]:
        said = bpftool["helpers"][f"{kind.name.lower()}_available_helpers"]
        return {name.removeprefix("bpf_") for name in said}

    said = said_of(kind)
    known = set().union(*(said_of(other) for other in ProgType if other and other < ProgType.NETFILTER))
    ours = {helper.name for helper in Helper if helper and has_helper(kind, helper).supported}
    assert len(ours) > 40  # 5.10 has 48
    assert ours & known <= said
    # On kernels that word the refusal in a new way, bpftool finds every helper everywhere.
    if "skb_store_bytes" not in said_of(ProgType.SOCK_OPS):
        assert ours & known == said


def test_instructions(bpftool: dict[str, dict[str, Any]]) -> None:
    for key, isa in (
        ("have_large_insn_limit", Isa.LARGE),
        ("have_bounded_loops", Isa.LOOPS),
        ("have_v2_isa_extension", Isa.V2),
        ("have_v3_isa_extension", Isa.V3),
    ):
        assert bpftool["misc"][key] is probe(isa).supported


# --- against the version ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked", [*Feature, *Isa, *BtfPart], ids=lambda one: f"{type(one).__name__}.{one.name}"
)
def test_what_a_kernel_of_that_version_has(asked: Asked) -> None:
    """Mainline has it from there on; distributions bring things to older kernels, and take none away."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    assert release is not None
    found = probe(asked)
    assert found.support is not Support.INCONCLUSIVE
    if (int(release[1]), int(release[2])) >= asked.since:
        assert found.supported, found


def test_hooks_and_links_agree() -> None:
    """Where both a hook and its kind of link can be asked for, the answers are the same."""
    for hook, link in (
        (AttachType.TCX_INGRESS, LinkType.TCX),
        (AttachType.TCX_EGRESS, LinkType.TCX),
        (AttachType.NETKIT_PEER, LinkType.NETKIT),
        (AttachType.NETFILTER, LinkType.NETFILTER),
        (AttachType.TRACE_UPROBE_MULTI, LinkType.UPROBE_MULTI),
        (AttachType.TRACE_KPROBE_MULTI, LinkType.KPROBE_MULTI),
    ):
        assert has_attach_type(hook).support is has_link_type(link).support
    assert has_link_type(LinkType.TCX).supported is probe(Feature.TCX).supported
    assert has_link_type(LinkType.SOCKMAP).supported is probe(Feature.SOCKMAP_LINK).supported
    for kind in (AttachType.CGROUP_INET_INGRESS, AttachType.CGROUP_GETSOCKOPT, AttachType.SK_MSG_VERDICT):
        assert has_attach_type(kind).supported
    for one in LinkType:
        assert not one or has_link_type(one).support is not Support.INCONCLUSIVE


def test_kernel_functions() -> None:
    btf = Btf.parse(Path("/sys/kernel/btf/vmlinux").read_bytes())
    # One that any kernel has and no program may call, and one that is not there.
    assert btf.by_name("tcp_v4_connect", Kind.FUNC) is not None
    found = has_kfunc(ProgType.SCHED_CLS, "tcp_v4_connect")
    assert found.support is Support.UNSUPPORTED
    # The other is of a verifier that knows no such calls (before 5.13).
    assert "is not allowed" in found.reason or "uses reserved fields" in found.reason
    assert has_kfunc(ProgType.SCHED_CLS, "tcp_v5_connect").support is Support.UNSUPPORTED
    there = btf.by_name("bpf_dynptr_from_skb", Kind.FUNC) is not None  # 6.4
    assert has_kfunc(ProgType.SCHED_CLS, "bpf_dynptr_from_skb").supported is there


def test_what_is_for_one_kernel_function_cannot_be_asked_for_helpers() -> None:
    found = has_helper(ProgType.TRACING, Helper.map_lookup_elem)
    assert found.support is Support.INCONCLUSIVE


# --- how an answer is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "support"),
    [
        (errno.EINVAL, Support.UNSUPPORTED),
        (errno.ENODEV, Support.SUPPORTED),
        (errno.EPERM, Support.INCONCLUSIVE),
        (errno.ENOMEM, Support.INCONCLUSIVE),
    ],
)
def test_the_answer_to_an_attempt_decides(
    monkeypatch: pytest.MonkeyPatch, code: int, support: Support
) -> None:
    monkeypatch.setattr(bpf_sys, "bpf", refusing(code, Cmd.LINK_CREATE))
    found = probe(Feature.TCX)
    assert (found.support, found.errno) == (support, code)


def test_answers_are_kept_but_not_doubts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(support: Support) -> Callable[[], tuple[Support, str, int]]:
        def attempt() -> tuple[Support, str, int]:
            asked.append(support)
            return support, "because", 0

        return attempt

    monkeypatch.setitem(PROBES, Feature.TCX, answer(Support.INCONCLUSIVE))
    assert not probe(Feature.TCX).supported
    require(Feature.TCX)  # a doubt is no refusal
    monkeypatch.setitem(PROBES, Feature.TCX, answer(Support.UNSUPPORTED))
    assert probe(Feature.TCX).support is Support.UNSUPPORTED
    assert probe(Feature.TCX) is probe(Feature.TCX)
    assert asked == [Support.INCONCLUSIVE, Support.INCONCLUSIVE, Support.UNSUPPORTED]
    with pytest.raises(KernelFeatureError, match=r"TCX links \(6\.6\): because") as caught:
        require(Feature.SOCKHASH, Feature.TCX)
    assert caught.value.feature == "TCX"


def test_probes_leave_nothing_behind() -> None:
    probe_all()
    # Others may be at work at the same time: only what bears the probes' name counts. The kernel ends a
    # network namespace, and with it the program in its qdisc, in its own time.
    deadline = time.monotonic() + 10
    while True:
        left = _called_probe(objects.programs, Program) + _called_probe(objects.maps, Map)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert left == []


def _called_probe(ids: Callable[[], Iterator[int]], kind: type[Map] | type[Program]) -> list[int]:
    found = []
    for number in ids():
        try:
            with kind.from_id(number) as one:
                if one.info().name == "probe":
                    found.append(number)
        except BpfError:  # gone meanwhile
            continue
    return found


def test_without_rights_nothing_is_claimed(run_without: Callable[..., str]) -> None:
    code = (
        "from loader.features import *\n"
        "sure = [f.name for f, p in probe_all().items() if p.support != Support.INCONCLUSIVE]\n"
        "raise SystemExit(' '.join(sure) or 'nothing')"
    )
    # Whether there is a LINK_UPDATE may show without any right; all else needs some.
    assert run_without("CAP_BPF,CAP_SYS_ADMIN,CAP_NET_ADMIN", code) in ("LINK_UPDATE", "nothing")


def test_an_old_kernel_that_does_not_know_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = (Cmd.LINK_UPDATE, Cmd.LINK_CREATE, Cmd.MAP_LOOKUP_BATCH)
    monkeypatch.setattr(bpf_sys, "bpf", refusing(errno.EINVAL, *commands))
    lacking = (
        Feature.LINK_UPDATE,
        Feature.CGROUP_GETSOCKOPT_LINK,
        Feature.CGROUP_SOCK_OPS_LINK,
        Feature.SOCKMAP_LINK,
        Feature.MAP_BATCH,
    )
    assert {probe(feature).support for feature in lacking} == {Support.UNSUPPORTED}
    assert probe(Feature.SOCKHASH).supported
