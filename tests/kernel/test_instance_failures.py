# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""All or nothing: whatever fails, whatever signal comes, whoever else is at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loader import bpffs, cli, features, session
from loader.bpffs import BpfFs, remove_tree
from loader.cgroup import Cgroup
from loader.features import Support
from loader.netns import NetNs
from loader.objects import Link, Map
from loader.process import CLONE_NEWNS, mount, unshare
from loader.sys import libc
from pybpfasm.kernel.enums import AttachType
from tests.kernel.instances import (
    Outcome,
    Site,
    Tap,
    add_dummy,
    fail,
    in_child,
    method,
    send,
    site,
    tapped,
    tc_programs,
)

__all__ = ["method", "site"]

ROOT = Path(__file__).resolve().parents[2]
UP = ["up", "--iface", "lo", "--ports", "8000"]


def filters() -> list[str]:
    """All filters and clsact qdiscs of the network namespace."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        found = [f"qdisc {q['index']}" for q in route.get_qdiscs() if q.get_attr("TCA_KIND") == "clsact"]
        for parent in (0xFFFFFFF2, 0xFFFFFFF3):
            found += [
                f"filter {f['index']} {parent:x} {f.get_attr('TCA_OPTIONS').get_attr('TCA_BPF_NAME')}"
                for f in route.get_filters(index=1, parent=parent)
                if f.get_attr("TCA_OPTIONS") is not None
            ]
    return sorted(found)


def everything(site: Site) -> dict[str, Any]:
    """All by which one can tell that something was changed."""
    found: dict[str, Any] = {"pins": site.pins(), "attached": site.attached(), "filters": filters()}
    directory = site.fs.path("default")
    if (directory / "settings").exists():
        for name in ("settings", "ports", "interfaces"):
            with Map.from_pin(directory / name) as one:
                found[name] = (one.id, list(one.items_raw()))
        found["status"] = site.status()
    return found


def probed() -> None:
    """Have every probe's answer known: a call of a probe that is made to fail is a doubt, and no failure."""
    assert not [found for found in features.probe_all().values() if found.support is Support.INCONCLUSIVE]


def test_every_failure_of_the_first_up(site: Site, method: str) -> None:
    """Each call that changes something fails once: nothing of it is left, and the error is a sentence."""
    probed()
    before = everything(site)
    step = 1
    while True:
        with tapped(Tap(step, fail)) as tap:
            outcome = site.run(*UP)
        if tap.calls < step:
            break
        assert outcome.status == 1, f"call {step} failed, and up did not say so"
        assert "Cannot allocate memory" in outcome.err, outcome.err
        assert "Traceback" not in outcome.err
        assert everything(site) == before, f"call {step}"
        assert tap.alive() == [], f"call {step}"
        step += 1 if step < 8 or step > 30 else 3
    assert outcome.status == 0
    assert step > 30


def test_every_failure_of_a_change(site: Site, method: str) -> None:
    """The same while something is up: it is as before."""
    add_dummy("eth7")
    probed()
    site.up("--no-accelerate", "--iface", "eth7")
    before = everything(site)
    step = 1
    while True:
        with tapped(Tap(step, fail)) as tap:
            outcome = site.run("up", "--iface", "lo", "--ports", "8000,9000", "--mark", "5")
        if tap.calls < step:
            break
        assert outcome.status == 1, f"call {step} failed, and up did not say so"
        assert everything(site) == before, f"call {step}"
        step += 1 if step > 30 else 3
    assert outcome.status == 0
    assert step > 30
    assert site.status()["drift"] == []


def test_a_failure_to_publish(site: Site, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    before = everything(site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpffs, "_rename", broken)
        outcome = site.run(*UP)
    assert outcome.status == 1
    assert everything(site) == before
    site.up()
    before = everything(site)
    monkeypatch.setattr(bpffs, "_rename", broken)
    assert site.run(*UP, "--mark", "7").status == 1
    assert everything(site) == before


def test_what_cannot_be_removed_undoes_nothing(site: Site, method: str) -> None:
    """The new instance is up from the rename on, whatever becomes of the old one's pins."""
    site.up("--no-accelerate")

    def broken(path: Path) -> list[Path]:
        raise OSError(5, "Input/output error", str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpffs, "remove_tree", broken)
        site.up("--no-accelerate", "--mark", "7")
    status = site.status()
    assert status["drift"] == []
    assert status["settings"]["mark"] == "7"
    assert len(list(site.fs.base.glob("staging-*"))) == 1
    site.down("--name", "another")  # whoever comes next tidies up, and leaves alone what is up
    assert list(site.fs.base.glob("staging-*")) == []
    assert site.status()["drift"] == []
    site.down()
    assert everything(site) == {"pins": [], "attached": [], "filters": []}


# --- signals ------------------------------------------------------------------------------------------------


def _steps() -> list[int]:
    return [1, 5, 12, 20, 26, 30, 34, 38, 40, 42, 44, 46, 48, 50]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_everything_back(site: Site, method: str, signum: signal.Signals) -> None:
    before = everything(site)
    statuses = set()
    for step in _steps()[:: 2 if signum == signal.SIGHUP else 3]:

        def up(step: int = step) -> int:
            with tapped(Tap(step, send(signum))) as tap:
                status = site.run(*UP).status
            return status if tap.calls >= step else 77

        status = in_child(up)
        statuses.add(status)
        if status == 0:  # it came when all was done but the name
            assert site.status()["drift"] == []
            site.down()
        else:
            # Before the mask is set a signal other than SIGINT ends the process at once.
            assert status in (128 + signum, -signum)
        assert everything(site) == before, f"call {step}"
    assert 128 + signum in statuses


def test_a_signal_is_said(site: Site) -> None:
    site.up()  # asks the kernel what it offers, before signals wait
    site.down()
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with tapped(Tap(30, send(signal.SIGTERM))):
            outcome = site.run(*UP)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert outcome.status == 128 + signal.SIGTERM
    assert outcome.err == "error: interrupted by SIGTERM: nothing was changed\n  run it again\n"
    assert came == [], "it has done its work"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGTERM, signal.SIGINT} == set()


@pytest.mark.parametrize("first", [True, False], ids=["first", "change"])
def test_kill_leaves_nothing_that_the_next_does_not_remove(site: Site, method: str, first: bool) -> None:
    """SIGKILL at any call. Until the links are pinned nothing is attached; then `up` or `down` tidies."""
    if not first:
        site.up("--no-accelerate")
        flows = {m["map"]: m["id"] for m in site.status()["maps"]}["flows"]
    for step in _steps():

        def up(step: int = step) -> int:
            with tapped(Tap(step, send(signal.SIGKILL))) as tap:
                status = site.run("up", "--iface", "lo", "--ports", "8000,9000").status
            return status if tap.calls >= step else 77

        status = in_child(up)
        assert status in (-signal.SIGKILL, 77)
        if first:
            if status == 77:
                break
            site.down()
            assert site.pins() == [], f"call {step}"
            assert site.attached() == [], f"call {step}"
            assert filters() == [], f"call {step}"
        else:
            # Whatever was reached, tidying leaves alone what is up, and up brings it to what it should be.
            site.down("--name", "another")
            hooks = 3 if status == -signal.SIGKILL else 4
            assert len(site.attached()) == hooks, f"call {step}"
            assert len(filters()) == (0 if method == "tcx" else 3), f"call {step}"
            assert not any("detached" in line or "gone" in line for line in site.status()["drift"])
            site.up("--no-accelerate")
            status_now = site.status()
            assert status_now["drift"] == [], f"call {step}"
            assert {m["map"]: m["id"] for m in status_now["maps"]}["flows"] == flows
            assert [p for p in site.pins() if "staging" in p] == []
            assert len(site.attached()) == 3
            assert len(filters()) == (0 if method == "tcx" else 3)
    if not first:
        site.down()
        assert (site.pins(), site.attached(), filters()) == ([], [], [])


# --- others at work -----------------------------------------------------------------------------------------


def test_another_instance_on_the_hook(site: Site, method: str) -> None:
    site.up("--name", "web")
    before = everything(site)
    outcome = site.run("up", "--iface", "lo", "--ports", "9000", "--name", "other")
    assert outcome.status == 1
    assert "instance 'web' is on lo already" in outcome.err
    assert "up --name web" in outcome.err and "down --name web" in outcome.err
    assert everything(site) == before


def test_an_instance_of_another_bpf_file_system_on_the_hook(site: Site, method: str, tmp_path: Path) -> None:
    site.up("--name", "web")
    before = everything(site)
    second = tmp_path / "second"
    second.mkdir()
    mount("bpf", str(second), "bpf", 0)
    try:
        other = Site(BpfFs(second, ours=False), site.cgroup, site.netns, site.capsys)
        outcome = other.run("up", "--iface", "lo", "--ports", "9000", "--name", "other")
        assert outcome.status == 1
        assert f"a proxy of which {second}/pybpfasm knows nothing is on lo already" in outcome.err
        assert other.pins() == []
    finally:
        assert libc().umount2(os.fsencode(second), 2) == 0
    assert everything(site) == before


def test_the_lock_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    with site.fs.lock():
        monkeypatch.setattr(session, "LOCK_SECONDS", 0.2)
        outcome = site.run(*UP)
        assert outcome.status == 1
        assert f"another process has held the lock on {site.fs.root}" in outcome.err
        assert site.pins() == []
        outcome = site.run("down")
        assert outcome.status == 1
        monkeypatch.undo()
        waiting = start(site, *UP)
        time.sleep(0.7)
        assert waiting.poll() is None
        assert site.pins() == []
    outcome = finish(waiting)
    assert outcome.status == 0, outcome.err
    site.down()


def start(site: Site, *words: str) -> subprocess.Popen[str]:
    """The command line as users run it, in this thread's namespaces; accelerated where the kernel can."""
    argv = [sys.executable, "-m", "loader", *words, "--bpffs", str(site.fs.root)]
    if words[0] == "up":
        argv += ["--cgroup", str(site.cgroup.path), "--accelerate", "always"]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a command."""
    out, err = process.communicate(timeout=300)
    return Outcome(process.returncode, out, err)


def test_one_of_several_at_once_wins(site: Site) -> None:
    outcomes = [finish(p) for p in [start(site, *UP, "--name", f"n{i}") for i in range(4)]]
    assert sorted(o.status for o in outcomes) == [0, 1, 1, 1], [o.err for o in outcomes]
    assert all("is on lo already" in o.err for o in outcomes if o.status)
    assert len(site.attached()) == 4
    (name,) = site.fs.instances()
    assert site.status("--name", name)["drift"] == []
    site.down("--name", name)


def test_up_and_down_at_once_end_in_one_or_the_other(site: Site) -> None:
    processes = [start(site, *UP, "--mark", str(i)) for i in range(1, 4)] + [start(site, "down")]
    outcomes = [finish(p) for p in processes]
    assert [o.status for o in outcomes] == [0, 0, 0, 0], [o.err for o in outcomes]
    if site.fs.instances():
        assert site.status()["drift"] == []
        assert len(site.attached()) == 4
    else:
        assert site.attached() == []
    site.down()
    assert site.pins() == []


@pytest.mark.parametrize("came", [False, True])
def test_an_instance_that_was_moved_aside(site: Site, came: bool) -> None:
    """Where the file system cannot exchange directories, and the loader dies between the renames."""
    site.up()
    before, attached = site.pins(), site.attached()
    final, aside = site.fs.path("default"), site.fs.base / "staging-1-1-default+old"
    staging = site.fs.base / "staging-1-1-default"
    for path in (aside, staging):
        for pin in sorted((final / "links").iterdir()):
            (path / "links").mkdir(parents=True, exist_ok=True)
            with Link.from_pin(pin) as link:
                link.pin(path / "links" / pin.name)
    if came:
        remove_tree(staging)
    else:
        remove_tree(aside)
        final.rename(aside)
    add_dummy("eth7")
    site.up("--name", "other", iface="eth7")
    site.down("--name", "other")
    assert site.pins() == before
    assert site.attached() == attached
    assert site.status()["drift"] == []
    site.down()
    assert site.pins() == []


# --- a bpf file system of our own ---------------------------------------------------------------------------


@pytest.fixture
def unmounted(
    private_mounts: None, cgroup: Cgroup, netns: NetNs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., int]]:
    """A mount namespace without any bpf file system; calls the command line without --bpffs."""
    monkeypatch.setattr(bpffs, "DEFAULT_MOUNT", tmp_path)
    for found in reversed(bpffs.mounts()):
        if found.fs_type == "bpf":
            assert libc().umount2(os.fsencode(found.mount_point), 2) == 0

    def run(*words: str) -> int:
        return cli.main([*words, *(["--cgroup", str(cgroup.path)] if words[0] == "up" else [])])

    with subprocess.Popen(["sleep", "60"]) as other:  # somebody for whom the mount stays
        yield run
        other.kill()
    left = bpf_mounts()
    for _ in left:
        libc().umount2(os.fsencode(tmp_path), 2)


def bpf_mounts() -> list[str]:
    """The mounted bpf file systems."""
    return [str(m.mount_point) for m in bpffs.mounts() if m.fs_type == "bpf"]


def test_a_mount_comes_with_up_and_goes_with_down(
    unmounted: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unmounted(*UP) == 0
    assert bpf_mounts() == [str(tmp_path)]
    assert unmounted(*UP, "--mark", "7") == 0
    assert unmounted("down") == 0
    assert bpf_mounts() == []
    assert unmounted("down") == 0
    assert bpf_mounts() == []


def test_a_mount_goes_with_the_last_instance(
    unmounted: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_dummy("eth7")
    assert unmounted(*UP) == 0
    assert unmounted("up", "--iface", "eth7", "--ports", "8000", "--name", "second") == 0
    assert unmounted("down") == 0
    assert bpf_mounts() == [str(tmp_path)]
    (tmp_path / "ofothers").mkdir()
    assert unmounted("down", "--name", "second") == 0
    assert bpf_mounts() == [str(tmp_path)], "somebody else uses it"
    (tmp_path / "ofothers").rmdir()
    assert unmounted("down") == 0
    assert bpf_mounts() == []


def test_a_failed_up_takes_its_mount_along(
    unmounted: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert unmounted(*UP) == 0
    assert unmounted("down") == 0
    for step in (1, 20, 40):
        with tapped(Tap(step, fail)):
            assert unmounted(*UP, "--accelerate", "always") == 1
        assert bpf_mounts() == []
    assert unmounted("up", "--iface", "nosuch", "--ports", "8000") == 2
    assert bpf_mounts() == []


def test_a_mount_that_would_end_with_the_loader_is_not_made(
    unmounted: Callable[..., int], netns: NetNs, capsys: pytest.CaptureFixture[str]
) -> None:
    """As under `ip netns exec`, which gives what it starts a mount namespace of its own, and a new /sys."""

    def alone() -> int:
        unshare(CLONE_NEWNS)
        status = unmounted(*UP)
        assert "would end with this process" in capsys.readouterr().err
        unmounted("doctor")
        assert "what `up` mounts would end with it" in " ".join(capsys.readouterr().out.split())
        return status

    assert in_child(alone) == 1
    assert bpf_mounts() == []
    assert tc_programs(1, AttachType.TCX_INGRESS) == []


def test_a_mount_namespace_may_be_held_by_a_descriptor(unmounted: Callable[..., int]) -> None:
    """As the playground does: nobody else is in it, and it stays all the same."""

    def held() -> int:
        before = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        unshare(CLONE_NEWNS)
        descriptor = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        reading, writing = os.pipe()
        holder = os.fork()
        if holder == 0:
            signal.alarm(120)  # however the tests end
            os.write(writing, b"1" if libc().setns(before, CLONE_NEWNS) == 0 else b"0")
            signal.pause()
        try:
            assert os.read(reading, 1) == b"1"
            os.close(descriptor)
            assert unmounted(*UP) == 0
            assert len(bpf_mounts()) == 1
            return unmounted("down")
        finally:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)

    assert in_child(held) == 0
    assert tc_programs(1, AttachType.TCX_INGRESS) == []


def test_two_at_once_mount_one(unmounted: Callable[..., int], tmp_path: Path) -> None:
    add_dummy("eth7")
    pids = []
    for name, interface in (("a", "lo"), ("b", "eth7")):
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = unmounted("up", "--iface", interface, "--ports", "8000", "--name", name)
            finally:
                os._exit(code)
        pids.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert bpf_mounts() == [str(tmp_path)]
    assert unmounted("down", "--name", "a") == 0
    assert unmounted("down", "--name", "b") == 0
    assert bpf_mounts() == []
    assert tc_programs(1, AttachType.TCX_INGRESS) == []
