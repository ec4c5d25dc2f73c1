# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a probe may answer, and how an attempt becomes an answer."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from loader.errors import (
    ENOTSUPP,
    BpfError,
    CapabilityError,
    KernelFeatureError,
    LoaderError,
    describe_errno,
)
from loader.verifier import VerifierError

__all__ = ["Answer", "Asked", "Probe", "Support", "judge", "yes"]


class Support(Enum):
    """What a probe has found."""

    SUPPORTED = "supported"
    UNSUPPORTED = "unsupported"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Probe:
    """A probe's answer.

    ``reason`` is what the kernel said, ``errno`` its number where it was one (0 otherwise).
    """

    name: str
    support: Support
    reason: str
    errno: int = 0

    @property
    def supported(self) -> bool:
        """Whether the feature is certainly there."""
        return self.support is Support.SUPPORTED


class Asked(Enum):
    """Base of what can be asked for by name. The value is the name in words, with the first version of Linux
    that has it: ``"TCX links (6.6)"``.
    """

    @property
    def since(self) -> tuple[int, int]:
        """The first version of Linux with it, for comparing: (6, 6)."""
        major, minor = str(self.value).rpartition("(")[2].rstrip(")").split(".")
        return int(major), int(minor)

    @property
    def words(self) -> str:
        """The name without the version."""
        return str(self.value).rpartition(" (")[0]


# Support, reason, errno.
Answer = tuple[Support, str, int]

_ABSENT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP, errno.ENOSYS, errno.E2BIG})


def yes(reason: str = "it worked", code: int = 0) -> Answer:
    """Return that it is there."""
    return Support.SUPPORTED, reason, code


def judge(attempt: Callable[[], object], *, present: frozenset[int] = frozenset()) -> Answer:
    """Try something. ``present`` are the errors that only a kernel with the feature gives."""
    try:
        attempt()
    except VerifierError as error:
        return Support.UNSUPPORTED, error.reason, error.errno or 0
    except BpfError as error:
        code = error.errno or 0
        if code in present:
            return yes(f"BPF_{error.command} answered {describe_errno(code)}, as it does where it can", code)
        support = Support.UNSUPPORTED if code in _ABSENT else Support.INCONCLUSIVE
        return support, f"BPF_{error.command} answered {describe_errno(code)}", code
    except KernelFeatureError as error:
        return Support.UNSUPPORTED, str(error), 0
    except CapabilityError as error:
        return Support.INCONCLUSIVE, str(error), errno.EPERM
    except LoaderError as error:
        return Support.INCONCLUSIVE, str(error), 0
    return yes()
