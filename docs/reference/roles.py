# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Docstrings as Markdown: a role of reStructuredText is the name that it marks, ``::`` begins a block."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|meth|func|attr|mod|data|exc):`(~?)([\w.]+)`")
_BLOCK = re.compile(r"::\n(?=\n|    )")


def markdown(text: str) -> str:
    """*text* without what Markdown does not know."""

    def name(found: re.Match[str]) -> str:
        return f"`{found[2].rpartition('.')[2] if found[1] else found[2]}`"

    return _BLOCK.sub(":\n\n", _ROLE.sub(name, text))


class Roles(griffe.Extension):
    """Changes every docstring as it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)
