# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""An instance of the proxy under test: the command line that users run, and what it says."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from loader.playground import Playground

_numbers = itertools.count()


class LoaderFailed(AssertionError):
    """A command of the loader ended with another status than 0."""


class Proxy:
    """``up`` on the playground's server, and ``down`` at the end of the block."""

    def __init__(self, playground: Playground, *arguments: str, ports: str = "8000", lo: bool = True) -> None:
        self.playground = playground
        self.name = f"e2e-{os.getpid()}-{next(_numbers)}"
        self.arguments = ["--iface", "eth0", *(["--iface", "lo"] if lo else []), "--ports", ports, *arguments]
        self.is_up = False

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the loader. Raises LoaderFailed if it fails and `check` is true."""
        result = self.playground.loader(*arguments)
        if check and result.returncode != 0:
            raise LoaderFailed(f"loader {' '.join(arguments)}: status {result.returncode}\n{result.stderr}")
        return result

    def up(self, *extra: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``up`` with this proxy's arguments and `extra` ones."""
        target = self.playground.target()
        result = self.run("up", *self.arguments, *extra, *target, "--name", self.name, check=check)
        self.is_up = self.is_up or result.returncode == 0
        return result

    def status(self) -> dict[str, Any]:
        """The document that ``status --json`` prints."""
        document = json.loads(self.run("status", "--json", "--name", self.name, check=False).stdout)
        assert isinstance(document, dict)
        return document

    def counters(self) -> dict[str, dict[str, int]]:
        """The counters by hook and name."""
        return counters(self.status())

    def down(self, *extra: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """``down``."""
        result = self.run("down", "--name", self.name, *extra, check=check)
        self.is_up = self.is_up and result.returncode != 0
        return result

    def __enter__(self) -> Proxy:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_up:
            self.down(check=error is None)


def counters(status: dict[str, Any]) -> dict[str, dict[str, int]]:
    """The counters by hook and name, of a status document."""
    found: dict[str, dict[str, int]] = status["counters"]
    return found


def dropped(found: dict[str, dict[str, int]]) -> dict[str, int]:
    """The counters of dropped packets that are not 0."""
    return {
        f"{hook}.{name}": value
        for hook, named in found.items()
        for name, value in named.items()
        if name.startswith("dropped") and value
    }


def eventually(look: Callable[[], object], wanted: object, timeout: float = 5.0) -> None:
    """Assert that `look()` equals `wanted` within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (seen := look()) != wanted:
        if time.monotonic() > deadline:
            assert seen == wanted
        time.sleep(0.02)
