# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m loader``."""

import sys

from loader.cli import main

if __name__ == "__main__":
    sys.exit(main())
