# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What a Python user sees of an error of the loader that nobody caught."""

from __future__ import annotations

import errno
import traceback

from loader.errors import BpfError, LoaderError, UsageError


def _shown(error: LoaderError) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def test_a_traceback_ends_with_what_to_do() -> None:
    assert _shown(UsageError("it is wrong", hint="do it right"))[-2:] == [
        "loader.errors.UsageError: it is wrong",
        "do it right",
    ]
    assert len(_shown(UsageError("it is wrong"))) == 1


def test_the_last_hint_is_the_one() -> None:
    first = BpfError(errno.EPERM, "PROG_LOAD", "program 'p'", hint="be root")
    second = first.about("program 'q'", hint="be elsewhere")
    second.hint = "be here"
    assert _shown(second)[-1] == "be here"
    assert "be elsewhere" not in _shown(second)
    assert _shown(first)[-1] == "be root"
