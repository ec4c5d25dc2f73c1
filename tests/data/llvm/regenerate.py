#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Have LLVM assemble the right-hand sides of statements.txt and blocks.txt, for both byte orders.

Writes expected.json, which the tests compare with. Needs llvm-mc and llvm-objcopy of LLVM 19 or newer (older
ones do not know ISA v4); LLVM_MC and LLVM_OBJCOPY name them where they are called otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MC = os.environ.get("LLVM_MC", "llvm-mc")
OBJCOPY = os.environ.get("LLVM_OBJCOPY", "llvm-objcopy")


def statements(text: str) -> list[str]:
    """The LLVM side of every line of statements.txt."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.split(" :: ")[1] for line in lines]


def blocks(text: str) -> list[str]:
    """The LLVM side of every part of blocks.txt."""
    return [part.split("\n--\n")[1].strip() for part in text.split("\n== ")[1:]]


def assemble(source: str, triple: str) -> str:
    """The bytes of *source*, in hexadecimal."""
    with tempfile.TemporaryDirectory() as folder:
        object_file, binary = Path(folder, "a.o"), Path(folder, "a.bin")
        command = [MC, f"-triple={triple}", "-mcpu=v4", "-filetype=obj", "-o", str(object_file)]
        done = subprocess.run(command, input=source + "\n", text=True, capture_output=True)
        if done.returncode:
            sys.exit(f"{source!r}: {done.stderr}")
        subprocess.run([OBJCOPY, "-O", "binary", "-j", ".text", str(object_file), str(binary)], check=True)
        return binary.read_bytes().hex()


def main() -> None:
    """Write expected.json beside this file."""
    version = subprocess.run([MC, "--version"], check=True, text=True, capture_output=True).stdout
    expected: dict[str, object] = {"llvm": version.strip().splitlines()[0].strip()}
    for name, sources in (
        ("statements", statements((HERE / "statements.txt").read_text())),
        ("blocks", blocks((HERE / "blocks.txt").read_text())),
    ):
        expected[name] = {
            source: {triple: assemble(source, triple) for triple in ("bpfel", "bpfeb")} for source in sources
        }
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
