# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The answers of probes that a file keeps for a boot: what is in it, and when it is not believed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

if not sys.platform.startswith("linux"):
    pytest.skip("the file is in /run, which only Linux has", allow_module_level=True)

from loader.features import Probe, Support, known
from loader.features.answer import Answer

FILE = "features.json"


class Kernel:
    """Answers, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ask(self, key: str, support: Support = Support.SUPPORTED) -> Probe:
        def attempt() -> Answer:
            self.asked.append(key)
            return support, f"because of {key}", 22

        return known.ask(key, f"the {key}", attempt)


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A directory for the file that does not exist yet, for a process with all rights."""
    monkeypatch.setenv(known.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(known, "_missing_rights", list)
    known.forget()
    yield tmp_path / "cache"
    known.forget()


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def another_process() -> None:
    known.forget()


def test_answers_outlive_the_process(cache: Path, kernel: Kernel) -> None:
    first = [kernel.ask("here"), kernel.ask("gone", Support.UNSUPPORTED)]
    assert known.save()
    assert not known.save(), "there was nothing new"
    assert (cache.stat().st_mode & 0o777, (cache / FILE).stat().st_mode & 0o777) == (0o700, 0o600)
    assert sorted(os.listdir(cache)) == [FILE]
    another_process()
    assert [kernel.ask("here"), kernel.ask("gone", Support.UNSUPPORTED)] == first
    assert kernel.asked == ["here", "gone"]
    # What comes later is added to what is there.
    kernel.ask("later")
    assert known.save()
    another_process()
    assert [kernel.ask(key).supported for key in ("here", "later")] == [True, True]
    assert kernel.asked == ["here", "gone", "later"]


def test_doubts_are_not_kept(cache: Path, kernel: Kernel) -> None:
    kernel.ask("doubt", Support.INCONCLUSIVE)
    assert not known.save()
    assert not cache.exists()
    kernel.ask("here")
    known.save()
    assert list(json.loads((cache / FILE).read_text())["answers"]) == ["here"]


def test_a_no_without_rights_is_a_doubt(cache: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_missing_rights", lambda: ["CAP_PERFMON"])
    found = kernel.ask("gone", Support.UNSUPPORTED)
    assert found.support is Support.INCONCLUSIVE
    assert found.reason == "because of gone; this process lacks CAP_PERFMON"
    assert kernel.ask("here").supported
    monkeypatch.setattr(known, "_missing_rights", list)
    assert kernel.ask("gone", Support.UNSUPPORTED).support is Support.UNSUPPORTED


def test_the_environment_can_say_nowhere(
    cache: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(known.VARIABLE, "")
    kernel.ask("here")
    assert not known.save()
    assert known.directory() is None
    monkeypatch.delenv(known.VARIABLE)
    assert known.directory() == Path("/run/pybpfasm")


def _rewrite(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def spoil(cache: Path) -> None:
        document = json.loads((cache / FILE).read_text())
        change(document)
        (cache / FILE).write_text(json.dumps(document))

    return spoil


def _link(cache: Path) -> None:
    (cache / FILE).rename(cache.parent / "elsewhere")
    (cache / FILE).symlink_to(cache.parent / "elsewhere")


def _link_to_folder(cache: Path) -> None:
    cache.rename(cache.parent / "elsewhere")
    cache.symlink_to(cache.parent / "elsewhere")


def _pipe(cache: Path) -> None:
    (cache / FILE).unlink()
    os.mkfifo(cache / FILE)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_rewrite(lambda d: d.update(boot="another")), id="another boot"),
        pytest.param(_rewrite(lambda d: d["kernel"].insert(0, "7.7")), id="another kernel"),
        pytest.param(_rewrite(lambda d: d.update(rights=["CAP_BPF"])), id="a process with fewer rights"),
        pytest.param(_rewrite(lambda d: d.update(format=99)), id="another format"),
        pytest.param(_rewrite(lambda d: d.pop("answers")), id="no answers"),
        pytest.param(_rewrite(lambda d: d.update(answers=7)), id="answers that are none"),
        pytest.param(_rewrite(lambda d: d["answers"].update(here=["x"])), id="an answer that is cut off"),
        pytest.param(
            _rewrite(lambda d: d["answers"].update(here=["x", "perhaps", "", 0])), id="an unknown answer"
        ),
        pytest.param(
            _rewrite(lambda d: d["answers"].update(here=["x", "inconclusive", "", 0])), id="a doubt"
        ),
        pytest.param(lambda cache: (cache / FILE).write_text("{"), id="no JSON"),
        pytest.param(lambda cache: (cache / FILE).write_text("[" * 100_000), id="deep JSON"),
        pytest.param(lambda cache: (cache / FILE).write_bytes(b"\xff\xfe\x00"), id="no text"),
        pytest.param(lambda cache: (cache / FILE).write_text(""), id="empty"),
        pytest.param(lambda cache: (cache / FILE).write_bytes(b" " * (5 << 20)), id="too long"),
        pytest.param(lambda cache: (cache / FILE).chmod(0o666), id="writable for everybody"),
        pytest.param(lambda cache: cache.chmod(0o777), id="a directory that everybody may write"),
        pytest.param(_link, id="a symbolic link"),
        pytest.param(_link_to_folder, id="a symbolic link to the directory"),
        pytest.param(_pipe, id="a pipe"),
    ],
)
def test_a_file_that_is_not_believed(cache: Path, kernel: Kernel, spoil: Callable[[Path], None]) -> None:
    kernel.ask("here")
    known.save()
    spoil(cache)
    another_process()
    assert kernel.ask("here").name == "the here"
    assert kernel.asked == ["here", "here"]
    known.save()  # where it can, it puts things right
    another_process()
    kernel.ask("here")


def test_a_file_of_another_user_is_not_believed(
    cache: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.ask("here")
    known.save()
    another_process()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    kernel.ask("here")
    assert kernel.asked == ["here", "here"]
    assert not known.save()
    known.discard()
    assert os.listdir(cache) == [FILE]


def test_a_damaged_file_is_replaced(cache: Path, kernel: Kernel) -> None:
    kernel.ask("here")
    known.save()
    (cache / FILE).write_text("damaged")
    another_process()
    kernel.ask("here")
    assert known.save()
    another_process()
    kernel.ask("here")
    assert kernel.asked == ["here", "here"]


def test_where_nothing_can_be_written_nothing_happens(
    cache: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.ask("here")
    cache.write_text("a file of that name")
    assert not known.save()
    assert cache.read_text() == "a file of that name"
    known.discard()
    assert cache.exists()


def test_discard_removes_what_is_ours(cache: Path, kernel: Kernel) -> None:
    known.discard()  # nothing there
    kernel.ask("here")
    known.save()
    (cache / "of others").touch()
    known.discard()
    assert os.listdir(cache) == ["of others"]
    (cache / "of others").unlink()
    known.forget()
    kernel.ask("here")
    known.save()
    known.discard()
    assert not cache.exists()


def test_forget_can_leave_the_file_out(cache: Path, kernel: Kernel) -> None:
    kernel.ask("here")
    known.save()
    known.forget(file=True)
    kernel.ask("here")
    assert kernel.asked == ["here", "here"]
