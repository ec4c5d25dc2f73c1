# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Cleans up after a process that may be killed without warning. Run as a script, with nothing imported from
us.

    python -I -S guardian.py --cgroup DIR --directory DIR

waits until its standard input ends, which happens when the process that started it closes its end or dies in
any way, SIGKILL included. Then it ends every process in the cgroup, removes the cgroup and the directory, and
ends. It is in a session of its own and ignores the signals that a terminal sends, so that Ctrl-C does not
take it along.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time


def end_cgroup(path: str, patience: float = 10.0) -> bool:
    """SIGKILL every process in the cgroup2 directory `path` and below, and remove it. True once it is
    gone.
    """
    deadline = time.monotonic() + patience
    try:
        with open(os.path.join(path, "cgroup.kill"), "w") as kill:  # all at once, since Linux 5.14
            kill.write("1")
    except OSError:
        pass
    while os.path.isdir(path):
        for directory, _, _ in os.walk(path, topdown=False):
            try:
                with open(os.path.join(directory, "cgroup.procs")) as members:
                    for member in members.read().split():
                        os.kill(int(member), signal.SIGKILL)
            except (OSError, ValueError):
                pass  # gone already, or going
            try:
                os.rmdir(directory)
            except OSError:
                pass  # still has members: they take a moment to die
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def main() -> int:
    """Wait for the end of standard input, then clean up. Returns 1 if something could not be removed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cgroup", action="append", default=[])
    parser.add_argument("--directory", action="append", default=[])
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        os.write(1, b"ready\n")
    except OSError:
        pass  # it is dead already: then there is work to do
    while os.read(0, 4096):
        pass
    left = [path for path in arguments.cgroup if not end_cgroup(path)]
    for path in arguments.directory:
        shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(path):
            left.append(path)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
