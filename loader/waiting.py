# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Waiting for what `up` needs while a host starts: its interfaces, and a listener at Envoy's port."""

from __future__ import annotations

import time

from loader.errors import LoaderError
from loader.netns import NetNs, interfaces, listeners
from loader.plan import Request

__all__ = ["missing", "wait"]

_PAUSE = 0.1  # seconds between two looks


def missing(request: Request) -> list[str]:
    """Say what a request needs that is not there yet; empty if all is.

    Raises :class:`~loader.errors.LoaderError` if the network namespace is not there: somebody else makes it.
    """
    port = request.settings.envoy_port
    with NetNs.open(request.netns) as netns, netns.entered():
        there = set(interfaces())
        found = [f"interface {name}" for name in dict.fromkeys(request.interfaces) if name not in there]
        if not listeners(port):
            found.append(f"a listener on TCP port {port}, Envoy's")
    return found


def wait(request: Request, seconds: float) -> None:
    """Return once nothing is missing. Raises :class:`~loader.errors.LoaderError` after so many seconds."""
    deadline = time.monotonic() + seconds
    while found := missing(request):
        if time.monotonic() >= deadline:
            raise LoaderError(
                f"still missing after {seconds:g} s: {' and '.join(found)}",
                hint="nothing was changed; start Envoy first, and see what --iface and --envoy-port say",
            )
        time.sleep(_PAUSE)
