# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Probes: what they say on this kernel, and that they do not say yes or no without reason."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator

import pytest

from loader import features, objects
from loader import sys as bpf_sys
from loader.errors import BpfError, KernelFeatureError
from loader.features import Feature, Support, has_helper, probe, probe_all, require
from loader.features.named import PROBES
from loader.objects import Map, Program
from pybpfasm.kernel.enums import Cmd, Helper, ProgType


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Each test asks the kernel anew."""
    features.forget()
    yield
    features.forget()


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
    def answer(*_: object, **__: object) -> int:
        raise BpfError(code, "LINK_CREATE")

    monkeypatch.setattr(bpf_sys, "link_create", answer)
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
        "raise SystemExit(' '.join(sure))"
    )
    # Whether there is a LINK_UPDATE shows without any right; all else needs some.
    assert run_without("CAP_BPF,CAP_SYS_ADMIN,CAP_NET_ADMIN", code) == "LINK_UPDATE"


def test_an_old_kernel_that_does_not_know_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = bpf_sys.bpf

    def old(command: int, attr: object, what: str = "") -> int:
        if command in (Cmd.LINK_UPDATE, Cmd.LINK_CREATE, Cmd.MAP_LOOKUP_BATCH):
            raise BpfError(errno.EINVAL, "LINK_CREATE")
        return real(command, attr, what)  # type: ignore[arg-type]

    monkeypatch.setattr(bpf_sys, "bpf", old)
    lacking = (
        Feature.LINK_UPDATE,
        Feature.CGROUP_GETSOCKOPT_LINK,
        Feature.CGROUP_SOCK_OPS_LINK,
        Feature.SOCKMAP_LINK,
        Feature.MAP_BATCH,
    )
    assert {probe(feature).support for feature in lacking} == {Support.UNSUPPORTED}
    assert probe(Feature.SOCKHASH).supported
