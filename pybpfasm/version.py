# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Which version this is, for the command lines."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["ShowVersion", "version"]


def version() -> str:
    """The version that is installed, or words that say that it is a copy which nobody has installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("pybpfasm")
    except PackageNotFoundError:
        return "(not installed)"


class ShowVersion(argparse.Action):
    """An option that prints what a report of a defect should begin with: the versions of all that matters."""

    def __init__(self, option_strings: list[str], dest: str, **more: Any) -> None:
        more |= {"help": "show the versions of pybpfasm, Python and the kernel", "nargs": 0}
        super().__init__(option_strings, argparse.SUPPRESS, **more)

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        """Print them and end."""
        import platform

        system = f"{platform.system()} {platform.release()} {platform.machine()}"
        print(f"pybpfasm {version()}, Python {platform.python_version()}, {system}")
        parser.exit()
