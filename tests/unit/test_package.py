# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The package's own names: each is there, is what its module has, and costs nothing until it is asked for."""

from __future__ import annotations

import subprocess
import sys

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
