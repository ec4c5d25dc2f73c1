# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The demo shows what it promises, quickly, and leaves nothing whatever ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loader import objects
from loader.cgroup import find_cgroup2
from loader.process import Place, die_with_parent, spawn

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "loader", "demo"]


def names(pid: int) -> list[str]:
    """What a playground of the process `pid` would leave behind."""
    pattern = f"pybpfasm-playground-{pid}-*"
    found = [*find_cgroup2().glob(pattern), *Path(tempfile.gettempdir()).glob(pattern)]
    return [str(path) for path in found]


def test_facts() -> None:
    started = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    assert time.monotonic() - started < 60
    facts = json.loads(out)
    assert facts["answer"]["forwarded_for"] == "10.0.0.20"
    for entry in facts["access_log"]:
        assert entry["upstream_cluster"] == "original-dst"
        assert entry["response_code"] == 200
        assert entry["downstream_remote"].rpartition(":")[0] in ("10.0.0.20", "[fd00:10::20]")
        assert entry["upstream_host"] in ("192.168.178.10:8000", "[fd00:192:168:178::10]:8000")
    assert facts["client"]["peers"] == [["192.168.178.10", 8000], ["fd00:192:168:178::10", 8000]]
    assert facts["client"]["remote_ports"] == [8000]
    assert facts["client"]["packets"] > 50
    counters = facts["status"]["counters"]
    assert counters["ingress"]["new_flows"] == 10
    assert counters["egress"]["restored"] > 0
    assert counters["getsockopt"]["answered_ipv4"] == counters["getsockopt"]["answered_ipv6"] == 5
    assert counters["sk_msg"]["redirected_bytes"] > 0
    assert names(process.pid) == []


def test_words() -> None:
    process = subprocess.run(COMMAND, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    # The very command that users run, as it was run.
    assert "python -m loader up --iface eth0 --ports 8000" in process.stdout
    assert '"upstream_cluster": "original-dst"' in process.stdout
    assert "saw only 192.168.178.10 and fd00:192:168:178::10, port 8000" in process.stdout
    for hook in ("ingress", "egress", "getsockopt", "sockops", "sk_msg"):
        assert hook in process.stdout
    assert "nothing is left of it" in process.stdout


def test_without_acceleration() -> None:
    process = subprocess.run(
        [*COMMAND, "--json", "--no-accelerate"], capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert process.returncode == 0, process.stderr
    facts = json.loads(process.stdout)
    assert facts["status"]["counters"].get("sk_msg", {}).get("redirected_bytes", 0) == 0


@pytest.fixture
def paused() -> Iterator[subprocess.Popen[str]]:
    """A demo that has shown everything and waits before `down`."""
    process = subprocess.Popen(
        [*COMMAND, "--pause"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),  # however the tests end
    )
    assert process.stdout is not None
    seen = ""
    while "nsenter" not in seen:
        line = process.stdout.readline()
        if not line:
            pytest.fail(seen + process.communicate()[1])
        seen += line
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def status_of(demo: subprocess.Popen[str]) -> dict[str, Any]:
    """What `status` says of the demo's instance, asked in the demo's own mount namespace."""
    for entry in Path(f"/proc/{demo.pid}/fd").iterdir():
        if os.readlink(entry).startswith("mnt:["):
            fd = os.open(entry, os.O_RDONLY | os.O_CLOEXEC)
            break
    else:
        pytest.fail("the demo holds no mount namespace")
    argv = [sys.executable, "-m", "loader", "status", "--json", "--name", f"demo-{demo.pid}"]
    try:
        asked = spawn(argv, Place(mntns=fd), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
        out, err = asked.communicate(timeout=30)
    finally:
        os.close(fd)
    assert asked.returncode == 0, err
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    try:
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return children + [below for child in children for below in descendants(child)]


def test_a_pause_where_nobody_can_type(paused: subprocess.Popen[str]) -> None:
    """It goes on at the end of standard input, as at Enter."""
    assert paused.stdin is not None
    paused.stdin.close()
    paused.stdin = None  # or `communicate` would write to it
    out, err = paused.communicate(timeout=60)
    assert (paused.returncode, err) == (0, "")
    assert "nothing is left of it" in out


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -9)],
)
def test_nothing_is_left_after_a_signal(paused: subprocess.Popen[str], number: int, status: int) -> None:
    ids = {hook["program"]["id"] for hook in status_of(paused)["hooks"]}
    assert len(ids) >= 5 and ids <= set(objects.programs())
    children = descendants(paused.pid)
    assert len(children) >= 3  # guardian, application, Envoy
    assert names(paused.pid)

    paused.send_signal(number)
    paused.wait(30)
    assert paused.returncode == status
    deadline = time.monotonic() + 15
    while True:
        left = names(paused.pid) + [f"process {c}" for c in children if Path(f"/proc/{c}/cmdline").exists()]
        left = [x for x in left if not x.startswith("process") or _runs(int(x.split()[1]))]
        left += [f"program {i}" for i in ids & set(objects.programs())]
        if not left:
            break
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_enter_goes_on(paused: subprocess.Popen[str]) -> None:
    out, err = paused.communicate("\n", timeout=60)
    assert paused.returncode == 0, err
    assert "nothing is left of it" in out
    assert names(paused.pid) == []
