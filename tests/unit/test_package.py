# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The package's own names: each is there, is what its module has, and costs nothing until it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pybpfasm


@pytest.mark.parametrize("name", pybpfasm.__all__)
def test_every_name_is_the_object_of_its_module(name: str) -> None:
    value = getattr(pybpfasm, name)
    module = getattr(value, "__module__", "")
    assert module.startswith("pybpfasm.") and module != "pybpfasm"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Assembler'"):
        _ = pybpfasm.Assembler  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, pybpfasm; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "pybpfasm" in loaded
    assert not loaded & {"pybpfasm.asm", "pybpfasm.isa", "elftools", "pyroute2", "rich", "ctypes"}


# What of the standard library is not on every operating system.
_POSIX = frozenset({"fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "termios", "tty"})


def test_the_library_and_the_programs_import_nothing_that_only_some_systems_have() -> None:
    root = Path(pybpfasm.__file__).resolve().parents[1]
    found = []
    for path in sorted([*(root / "pybpfasm").rglob("*.py"), *(root / "programs").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in names if name.split(".")[0] in _POSIX]
    assert found == []
