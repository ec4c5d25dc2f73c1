# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the tutorial loads, the kernel takes, or refuses with the words that the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.tutorial.blocks import ROOT, run_page, same_times
from loader.features import Feature
from tests.requires import requires

pytestmark = pytest.mark.kernel


def _words(printed: str) -> str:
    """Without what the verifier knew of registers, which each kernel prints in its own way."""
    return re.sub(r"\n    r\d+ = .*", "", same_times(printed))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tutorial", 2),
        ("objects", 1),
        ("kinds", 3),
        pytest.param("maps", 3, marks=requires(Feature.TIMER)),
    ],
)
def test_the_commands_for_root(name: str, count: int, tmp_path: Path) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    ran = [one for one in run_page(page, tmp_path, root=True, beside=ROOT / "docs" / name) if one[0].root]
    assert len(ran) == count
    for command, printed in ran:
        assert _words(printed) == _words(command.printed), f"line {command.line}: {command.text}"
