# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a test needs of the kernel, and when it may be left out for want of it.

    @requires(Feature.TCX)
    def test_…

A test is left out only if a probe found the feature missing *and* this kernel is older than the first version
with it. A probe that finds too little on a kernel that should have it, or that proves nothing, is a failure.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest

from loader import features
from loader.errors import LoaderError
from loader.features import Asked, Isa, Probe, Support
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.enums import Helper, ProgType
from pybpfasm.target import required_version

__all__ = [
    "DYNPTR_FROM_SKB",
    "DYNPTR_SIZE",
    "LEFT_OUT",
    "RCU_READ_LOCK",
    "Attempt",
    "Call",
    "Kfunc",
    "check",
    "kernel_version",
    "needed",
    "requires",
]

LEFT_OUT = "left out"  # the property of a report that says for want of what


@dataclass(frozen=True)
class Kfunc:
    """A function of the kernel, called by programs of a type, and the first version with it."""

    kind: ProgType
    name: str
    since: tuple[int, int]

    @property
    def value(self) -> str:
        """What it is in words."""
        return f"{self.name} in {self.kind.name} ({'.'.join(map(str, self.since))})"


@dataclass(frozen=True)
class Attempt:
    """What no probe of the loader's asks for: in words, the first version with it, and what fails without."""

    value: str
    since: tuple[int, int]
    attempt: Callable[[], object]

    def probe(self) -> Probe:
        """Try it."""
        try:
            self.attempt()
        except LoaderError as error:
            return Probe(self.value, Support.UNSUPPORTED, str(error).splitlines()[0])
        return Probe(self.value, Support.SUPPORTED, "")


@dataclass(frozen=True)
class Call:
    """A helper in programs of a type, and the first version with it there."""

    kind: ProgType
    helper: Helper
    since: tuple[int, int]

    @property
    def value(self) -> str:
        """What it is in words."""
        return f"{self.helper.name} in {self.kind.name} ({'.'.join(map(str, self.since))})"


Needed = Asked | Kfunc | Call | Attempt


def _probe(asked: Needed) -> Probe:
    if isinstance(asked, Attempt):
        return asked.probe()
    if isinstance(asked, Call):
        return features.has_helper(asked.kind, asked.helper)
    return features.has_kfunc(asked.kind, asked.name) if isinstance(asked, Kfunc) else features.probe(asked)


def requires(*asked: Needed) -> pytest.MarkDecorator:
    """Mark a test, or a parameter of one, as in need of features of the kernel."""
    return pytest.mark.requires(*asked)


# Functions of the kernel that several tests call.
RCU_READ_LOCK = Kfunc(ProgType.SCHED_CLS, "bpf_rcu_read_lock", (6, 2))
DYNPTR_FROM_SKB = Kfunc(ProgType.SCHED_CLS, "bpf_dynptr_from_skb", (6, 4))
DYNPTR_SIZE = Kfunc(ProgType.SCHED_CLS, "bpf_dynptr_size", (6, 5))


def needed(instructions: Iterable[Instruction]) -> tuple[Isa, ...]:
    """Return the parts of the instruction set that instructions are of."""
    releases = {required_version([one]).kernel for one in instructions}
    return tuple(part for part in Isa if part.since in releases)


def kernel_version(release: str | None = None) -> tuple[int, int]:
    """Return the version in a kernel's release, this kernel's unless given: (6, 1) of ``6.1.0-50-amd64``."""
    found = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    assert found is not None, release
    return int(found[1]), int(found[2])


def check(item: pytest.Item, *asked: Needed) -> None:
    """Leave a test out, or fail it, if this kernel has not what it needs."""
    for one in asked:
        found = _probe(one)
        if found.supported:
            continue
        if found.support is Support.UNSUPPORTED and kernel_version() < one.since:
            item.user_properties.append((LEFT_OUT, one.value))
            pytest.skip(f"no {one.value}: {found.reason}")
        pytest.fail(
            f"this kernel ({os.uname().release}) should have {one.value}, and the probe says "
            f"{found.support.value}: {found.reason}",
            pytrace=False,
        )
