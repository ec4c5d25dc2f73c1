# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""For the one who tests programs: coverage of their lines and branches, and fixtures for pytest.

``pytest_plugins = ["pybpfasm.testing.plugin"]`` in a ``conftest.py`` gives the fixtures.
"""

from __future__ import annotations

from pybpfasm.testing.coverage import Branch, Coverage, CoverageError, FileCoverage

__all__ = ["Branch", "Coverage", "CoverageError", "FileCoverage"]
