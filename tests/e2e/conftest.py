# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Fixtures: a playground for a module; see loader.playground for what it is made of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loader.playground import Playground


@pytest.fixture(scope="module")
def playground() -> Iterator[Playground]:
    """Client, gateway and server, without application and Envoy."""
    with Playground() as built:
        yield built
