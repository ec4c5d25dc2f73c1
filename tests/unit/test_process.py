# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Processes that are started: a signal that comes just then is not lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the loader is for Linux")

SIGNALLED = """
import os, signal
from loader.process import Place, call, if_killed, spawn

def act():
    os.write(2, b"acted")

def ended(number, frame):
    raise SystemExit(43)

def press():
    global pressed
    if not pressed:
        pressed = True
        os.kill(os.getpid(), signal.{signal})

pressed = False
signal.signal(signal.{signal}, ended)
os.register_at_fork(**{{"{when}": press}})
{what}
print("the signal was lost")
"""


@pytest.mark.parametrize("when", ["before", "after_in_parent"])
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    "what", ["spawn(['sleep', '600'])", "call(int, Place())", "if_killed(act).__enter__()"]
)
def test_a_signal_during_a_fork_is_not_lost(what: str, signal: str, when: str) -> None:
    """Python calls hooks around a fork, and what is raised in them goes nowhere."""
    code = SIGNALLED.format(what=what, signal=signal, when=when)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (43, "", "")


def test_a_child_has_its_signals() -> None:
    """Those that waited for the parent do not wait for ever in the child."""
    code = (
        "import subprocess, time\n"
        "from loader.process import Place, call, spawn\n"
        "def blocked(): return open('/proc/self/status').read().partition('SigBlk:')[2].split()[0]\n"
        "print(int(call(blocked, Place()), 16), end=' ')\n"
        "child = spawn(['sleep', '600'])\n"
        "child.terminate()\n"
        "print(child.wait(30))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 -15\n", "")
