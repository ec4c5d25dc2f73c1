# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""How much longer than on a usual machine to wait before something counts as stuck."""

from __future__ import annotations

import os

#: A factor for limits of time; an emulated machine is 20 to 50 times slower.
PATIENCE = float(os.environ.get("PYBPFASM_PATIENCE", "1"))
