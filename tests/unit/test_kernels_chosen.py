# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The kernel matrix: when a test may be left out, and what the document says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("fcntl", reason="the loader is for Linux")

from loader import features
from loader.features import Feature, Probe, Support
from tests.kernels import chosen
from tests.requires import check

ROOT = Path(__file__).resolve().parents[2]


def test_every_feature_names_the_first_version_with_it() -> None:
    assert Feature.TCX.since == (6, 6)
    assert Feature.TCX.words == "TCX links"
    assert all((4, 0) < feature.since <= (7, 0) for feature in Feature)
    assert all(feature.words and "(" not in feature.words for feature in Feature)


@pytest.mark.parametrize(
    ("support", "release", "fate"),
    [
        (Support.UNSUPPORTED, "6.1.0-56-amd64", "left out"),
        (Support.UNSUPPORTED, "6.5.13", "left out"),
        (Support.UNSUPPORTED, "6.6.0", "fails"),
        (Support.UNSUPPORTED, "6.18.44", "fails"),
        (Support.INCONCLUSIVE, "6.1.0", "fails"),
        (Support.SUPPORTED, "6.1.0", "runs"),
        (Support.SUPPORTED, "6.18.44", "runs"),
    ],
)
def test_both_the_probe_and_the_version_leave_a_test_out(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, support: Support, release: str, fate: str
) -> None:
    monkeypatch.setattr(features, "probe", lambda asked: Probe(asked.value, support, "because"))
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release, sysname="Linux"))
    counter = chosen.Counter()
    item = request.node
    monkeypatch.setattr(item, "user_properties", [])
    if fate == "runs":
        check(item, Feature.TCX)
        assert item.user_properties == []
        return
    exception = {"left out": pytest.skip.Exception, "fails": pytest.fail.Exception}[fate]
    with pytest.raises(exception, match=r"TCX links \(6\.6\).*because"):
        check(item, Feature.TCX)
    report = pytest.TestReport("a::b", ("a", 1, "b"), {}, "skipped", ("a", 1, "tired"), "setup")
    report.user_properties = item.user_properties
    counter.pytest_runtest_logreport(report)
    left_out = fate == "left out"
    assert counter.left_out == ({"TCX links (6.6)": 1} if left_out else {})
    assert counter.failed == ([] if left_out else ["a::b"])


def test_every_chosen_test_is_there() -> None:
    for name in chosen.CHOSEN:
        path, _, test = name.partition("::")
        text = (ROOT / path).read_text()
        assert not test or f"def {test.partition('[')[0]}(" in text, name


def test_the_tables_say_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "kernels-table", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
