# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What `make install` puts on a host fits the command line and can be removed; the addresses agree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from loader import cli, playground

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
UNIT = PACKAGING / "systemd" / "pybpfasm@.service"
OPTIONS = "--iface eth0 --ports 8000 --cgroup pybpfasm.slice"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the loader is for Linux")


def parse(words: list[str]) -> None:
    """Parse a command line as `main` does, without running it."""
    parser, _ = cli._parser()
    assert parser.parse_args(words).command == words[0]


@pytest.mark.parametrize("what", ["ExecStart", "ExecReload", "ExecStop"])
def test_the_commands_of_the_unit_are_known(what: str) -> None:
    """Each with options as the configuration has them."""
    (line,) = re.findall(rf"^{what}=/usr/bin/pybpfasm-loader (.*)$", UNIT.read_text(), re.MULTILINE)
    line = line.replace("%i", "web").replace("$OPTIONS", OPTIONS).replace("$DOWN_OPTIONS", "--drain 30")
    assert "$" not in line
    parse(shlex.split(line))


def test_the_examples_in_the_configuration_are_right() -> None:
    """Uncommented, they are options of the two commands."""
    text = (PACKAGING / "etc" / "default.conf").read_text()
    found = dict(re.findall(r'^#(\w+)="(.*)"$', text, re.MULTILINE))
    assert found.keys() == {"OPTIONS", "DOWN_OPTIONS"}
    parse(["up", *shlex.split(found["OPTIONS"])])
    parse(["down", *shlex.split(found["DOWN_OPTIONS"])])
    assert not re.search(r"^[^#\n]", text, re.MULTILINE), "something is set without anybody having asked"


def test_the_manual_page_has_every_option_of_up() -> None:
    """And no other."""
    page = (PACKAGING / "man" / "pybpfasm-loader.8").read_text().replace("\\-", "-")
    page = page[page.index(".SH OPTIONS OF UP") : page.index(".SH FILES")]
    _, commands = cli._parser()
    known = {o for o in commands["up"]._option_string_actions if o.startswith("--")} - {"--help", "--debug"}
    described = {
        option
        for line in page.splitlines()
        if line.startswith((".BI --", ".B --", ".BR --"))
        for option in re.findall(r"--[a-z-]+", line)
    }
    assert described == known


@pytest.mark.parametrize("package", ["pybpfasm", "programs", "loader"])
def test_type_checkers_may_look_into_what_is_a_library(package: str) -> None:
    """Without the marker of PEP 561 mypy refuses to: "missing library stubs or py.typed marker"."""
    assert (ROOT / package / "py.typed").is_file()


def test_the_addresses_of_the_playground() -> None:
    """The Vagrant machines have those of the namespaced playground."""
    script = (ROOT / "scripts" / "vagrant" / "network").read_text()
    configured = set(re.findall(r"^ +address eth\d (.+)$", script, re.MULTILINE))
    assert configured == {
        f"{playground.CLIENT}/16 {playground.CLIENT6}/64",
        f"{playground.SERVER}/24 {playground.SERVER6}/64",
        f"{playground._GATEWAY_OUTER}/16 {playground._GATEWAY_OUTER6}/64",
        f"{playground._GATEWAY_INNER}/24 {playground._GATEWAY_INNER6}/64",
    }


# Stands in for pip: the modules are not what this is about.
PYTHON = """#!/bin/sh
while [ $# -gt 1 ] && [ "$1" != --target ]; do shift; done
[ "$1" = --target ] || exit 0
mkdir -p "$2/loader" "$2/bin"
echo 'print("hello")' >"$2/loader/cli.py"
"""


def install(destination: Path, *words: str) -> str:
    """Run scripts/install with a directory in the place of /; return what it said."""
    python = destination.parent / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    environment = {**os.environ, "DESTDIR": str(destination), "PYTHON": str(python)}
    command = [str(ROOT / "scripts" / "install"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def files(destination: Path) -> set[str]:
    """All files below a directory, but compiled ones."""
    found = (str(path.relative_to(destination)) for path in destination.rglob("*") if path.is_file())
    return {path for path in found if not path.endswith(".pyc")}


INSTALLED = {
    "etc/pybpfasm/default.conf",
    "etc/pybpfasm/envoy.yaml",
    "usr/bin/pybpfasm-loader",
    "usr/lib/pybpfasm/loader/cli.py",
    "usr/lib/systemd/system/pybpfasm-envoy.service",
    "usr/lib/systemd/system/pybpfasm.slice",
    "usr/lib/systemd/system/pybpfasm@.service",
    "usr/share/man/man8/pybpfasm-loader.8",
}


CONFIGURED = {one for one in INSTALLED if one.startswith("etc/")}
TOLD = INSTALLED - CONFIGURED - {"usr/lib/pybpfasm/loader/cli.py"} | {"usr/lib/pybpfasm"}


def told(said: str, verb: str, destination: Path) -> set[str]:
    """What scripts/install says that it has installed or removed, below the directory."""
    lines = [line.removeprefix(f"· {verb} {destination}/") for line in said.splitlines()]
    assert not any(line.startswith("·") for line in lines), said
    return set(lines)


def test_what_is_installed_is_removed(tmp_path: Path) -> None:
    """Again and again, with nothing left."""
    destination = tmp_path / "root"
    assert told(install(destination), "installed", destination) == {*TOLD, *CONFIGURED}
    assert files(destination) == INSTALLED
    assert (destination / "usr/bin/pybpfasm-loader").stat().st_mode & 0o777 == 0o755
    assert told(install(destination), "installed", destination) == TOLD
    assert files(destination) == INSTALLED
    assert told(install(destination, "--remove"), "removed", destination) == {*TOLD, *CONFIGURED}
    assert files(destination) == set()
    assert install(destination, "--remove") == ""
    assert not (destination / "etc/pybpfasm").exists()


def test_files_that_were_changed_stay(tmp_path: Path) -> None:
    """Those in /etc belong to the administrator."""
    destination = tmp_path / "root"
    install(destination)
    (destination / "etc/pybpfasm/default.conf").write_text("OPTIONS=mine\n")
    assert "default.conf was changed and stays" in install(destination)
    assert "envoy.yaml was changed" not in install(destination, "--remove")
    assert files(destination) == {"etc/pybpfasm/default.conf"}
    assert (destination / "etc/pybpfasm/default.conf").read_text() == "OPTIONS=mine\n"
