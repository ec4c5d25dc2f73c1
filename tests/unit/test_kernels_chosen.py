# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The kernel matrix: when a test may be left out, and what the document says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loader import features
from loader.features import Feature, Probe, Support
from tests.kernels import chosen

ROOT = Path(__file__).resolve().parents[2]


def test_every_feature_names_the_first_version_with_it() -> None:
    assert Feature.TCX.since == (6, 6)
    assert Feature.TCX.words == "TCX links"
    assert all((4, 0) < feature.since <= (7, 0) for feature in Feature)
    assert all(feature.words and "(" not in feature.words for feature in Feature)


@pytest.mark.parametrize(
    ("support", "version", "fate"),
    [
        (Support.UNSUPPORTED, (6, 1), "left out"),
        (Support.UNSUPPORTED, (6, 6), "runs"),
        (Support.UNSUPPORTED, (6, 18), "runs"),
        (Support.INCONCLUSIVE, (6, 1), "runs"),
        (Support.SUPPORTED, (6, 1), "runs"),
    ],
)
def test_both_the_probe_and_the_version_leave_a_test_out(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    support: Support,
    version: tuple[int, int],
    fate: str,
) -> None:
    monkeypatch.setattr(features, "probe", lambda feature: Probe(feature.value, support, "because"))
    monkeypatch.setattr(chosen, "NEEDS", (("*", Feature.TCX),))
    plugin = chosen.Chosen(version)
    if fate == "left out":
        with pytest.raises(pytest.skip.Exception, match=r"no TCX links \(6\.6\): because"):
            plugin.pytest_runtest_setup(request.node)
        assert list(plugin.left_out.values()) == [Feature.TCX.value]
    else:
        plugin.pytest_runtest_setup(request.node)
        assert plugin.left_out == {}


def test_a_skip_for_another_reason_is_a_failure() -> None:
    plugin = chosen.Chosen((6, 1))
    report = pytest.TestReport("a::b", ("a", 1, "b"), {}, "skipped", ("a", 1, "tired"), "call")
    plugin.pytest_runtest_logreport(report)
    assert plugin.failed == ["a::b"]


def test_every_pattern_names_a_chosen_file() -> None:
    files = {name.partition("::")[0] for name in chosen.TESTS}
    assert all((ROOT / name).is_file() for name in files)
    assert {pattern.partition("::")[0] for pattern, _ in chosen.NEEDS} <= files


def test_the_tables_say_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "kernels-table", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
