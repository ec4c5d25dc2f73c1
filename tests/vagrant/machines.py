# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The machines that `vagrant up` makes, as the tests see them: commands on them, and reboots.

`scripts/test-vagrant` runs these tests, beside a libvirt daemon of their own. What people type in the
tutorial goes through `vagrant ssh`, the rest through one ssh connection to each machine, which is quicker.
An emulated machine is slow: no test depends on how long something takes.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
SERVER, SERVER6 = "192.168.178.10", "fd00:192:168:178::10"
CLIENT, CLIENT6 = "10.0.0.20", "fd00:10::20"
PATIENCE = 900.0  # seconds, for a machine that boots


def until(what: Callable[[], T | None], words: str, patience: float = PATIENCE) -> T:
    """Return what `what` gives as soon as that is true. Fails with `words`."""
    deadline = time.monotonic() + patience
    while not (result := what()):
        assert time.monotonic() < deadline, f"{words}: not after {patience:g} s"
        time.sleep(0.5)
    return result


def vagrant(*words: str) -> str:
    """Run a command of Vagrant that must succeed, and return its standard output."""
    done = subprocess.run(
        ["vagrant", *words], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    lines = (done.stdout + done.stderr).replace("\r", "\n").splitlines()
    shown = "\n".join(line for line in lines if "Progress:" not in line)
    assert done.returncode == 0, f"vagrant {' '.join(words)}: status {done.returncode}\n{shown}"
    return done.stdout


class Machine:
    """A machine that is up."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._config = Path(os.environ["TMPDIR"], f"ssh-{name}")
        self._config.write_text(vagrant("ssh-config", name))

    def ssh(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the machine as the user `vagrant`."""
        control = self._config.with_name(f"control-{self.name}")
        options = ["-F", str(self._config), "-o", "ControlMaster=auto", "-o", f"ControlPath={control}"]
        options += ["-o", "ControlPersist=yes", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=10"]
        return subprocess.run(
            ["ssh", *options, self.name, command], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )

    def run(self, command: str) -> str:
        """Run a shell command as the user `vagrant`; it must succeed. Returns its standard output."""
        done = self.ssh(command)
        assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def root(self, command: str) -> str:
        """Run a shell command as root; it must succeed. Returns its standard output."""
        return self.run(f"sudo sh -c {shlex.quote(command)}")

    def refuses(self, command: str) -> str:
        """Run a shell command as root that must fail. Returns all of its output."""
        done = self.ssh(f"sudo sh -c {shlex.quote(command)}")
        assert done.returncode not in (0, 255), f"{command}: status {done.returncode}\n{done.stdout}"
        return done.stdout + done.stderr

    def write(self, path: str, text: str) -> None:
        """Write a file as root, with the directories above it."""
        self.root(f"mkdir -p {Path(path).parent} && printf %s {shlex.quote(text)} >{path}")

    def reboot(self) -> None:
        """Reboot, and return when systemd has finished starting the machine."""
        before = self.run("cat /proc/sys/kernel/random/boot_id")
        self.ssh("sudo systemctl reboot")

        def is_back() -> bool:
            done = self.ssh("cat /proc/sys/kernel/random/boot_id")
            return done.returncode == 0 and done.stdout != before

        until(is_back, f"{self.name} does not come back from a reboot")
        # "degraded" is for the tests to find out; whoever waits gets its status.
        self.ssh("systemctl is-system-running --wait")
        assert self.run("systemctl --failed --plain --no-legend") == ""

    def journal(self, unit: str, options: str = "--boot") -> list[str]:
        """The lines of a unit's journal."""
        return self.root(f"journalctl --output cat --unit {unit} {options}").splitlines()

    def properties(self, unit: str, *names: str) -> list[str]:
        """What `systemctl show` says of a unit."""
        text = self.run(f"systemctl show {unit} " + " ".join(f"--property {name}" for name in names))
        found = dict(line.split("=", 1) for line in text.splitlines())
        return [found[name] for name in names]


class Server(Machine):
    """The machine with application, Envoy and loader."""

    def access_log(self) -> list[dict[str, Any]]:
        """Envoy's access log since the boot."""
        lines = self.journal("pybpfasm-envoy")
        return [json.loads(line) for line in lines if line.startswith("{")]

    def logged(self, path: str) -> dict[str, Any]:
        """The line of Envoy's access log for a path, which comes a little later than the answer."""
        return until(
            lambda: next((e for e in self.access_log() if e["path"] == path), None),
            f"Envoy's access log has no {path}",
            60,
        )

    def served(self, path: str) -> list[str]:
        """Whom the application took for the client of the requests for a path, since the boot."""
        lines = self.journal("playground-application")
        return [line.split()[0].removeprefix("::ffff:") for line in lines if f'"GET {path} ' in line]

    def ours(self) -> dict[str, Any]:
        """What is left of the proxy in the kernel, asked by other people's tools; all empty if nothing."""
        programs = json.loads(self.root("bpftool --json prog show"))
        maps = json.loads(self.root("bpftool --json map show"))
        return {
            "programs": [one["name"] for one in programs if one.get("name", "").startswith("pba_")],
            "maps": [one["name"] for one in maps if one.get("name", "").startswith("pba_")],
            "pins": self.root("ls -A /sys/fs/bpf").split(),
            "qdiscs": [line for line in self.root("tc qdisc show").splitlines() if "clsact" in line],
        }


class Traffic:
    """Requests of the client, made in some way: `ask` gets path and address, and returns the answer."""

    def __init__(self, server: Server, ask: Callable[[str, str], str]) -> None:
        self._server = server
        self._ask = ask

    def request(self, path: str, address: str) -> None:
        """One request, which the application answers."""
        host = f"[{address}]" if ":" in address else address
        assert "application of the playground" in self._ask(path, host)

    def proxied(self, path: str, address: str = SERVER, client: str = CLIENT) -> None:
        """One request goes to the application through Envoy, by what both logged."""
        self.request(path, address)
        entry = self._server.logged(path)
        assert entry["upstream_cluster"] == "original-dst"
        assert entry["response_code"] == 200
        assert entry["downstream_remote"].rpartition(":")[0].strip("[]") == client
        host, _, port = entry["upstream_host"].rpartition(":")
        assert (host.strip("[]"), port) == (address, "8000")
        assert self._server.served(path) == [address]  # Envoy's own end of the connection

    def direct(self, path: str) -> None:
        """One request goes to the application past Envoy."""
        self.request(path, SERVER)
        assert self._server.served(path) == [CLIENT]
        assert path not in [entry["path"] for entry in self._server.access_log()]


NOTHING: dict[str, Any] = {"programs": [], "maps": [], "pins": [], "qdiscs": []}


def up(*names: str) -> Iterator[None]:
    """Bring the playground up, for a fixture; whatever comes, destroy it at the end."""
    try:
        vagrant("up")
        assert sorted(machines()) == sorted(names)
        yield
    finally:
        vagrant("destroy", "--force")


def machines() -> dict[str, str]:
    """The machines that Vagrant knows, and their states."""
    rows = [line.split(",") for line in vagrant("status", "--machine-readable").splitlines()]
    return {row[1]: row[3] for row in rows if row[2] == "state"}


def destroyed(*names: str) -> None:
    """Fail unless nothing is left of these machines: neither they, nor their disks and networks."""
    assert machines() == dict.fromkeys(names, "not_created")

    def virsh(*words: str) -> list[str]:
        command = ["virsh", "--quiet", "--connect", "qemu:///system", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.split()[0] for line in done.stdout.splitlines() if line.strip()]

    assert virsh("list", "--all") == []
    # The box itself stays in the pool, as Vagrant has it, until it is removed there.
    assert [name for name in virsh("vol-list", "default") if "box_image" not in name] == []
    assert [name for name in virsh("net-list", "--all") if name.startswith("pybpfasm")] == []
