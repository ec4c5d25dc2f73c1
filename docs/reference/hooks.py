# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Links from the pages to files of the repository that are no pages become the files' names."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return _OUTSIDE.sub(r"\1", markdown)
