# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What tests ask about processes."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int) -> bool:
    """Whether a process is there and runs; one that is dead may wait for its parent, or init, to notice."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
