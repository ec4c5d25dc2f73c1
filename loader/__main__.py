# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m loader``."""

from __future__ import annotations

import sys

from pybpfasm.quiet import Quiet, check_python

check_python()
with Quiet():
    from loader.cli import main

if __name__ == "__main__":
    sys.exit(main())
