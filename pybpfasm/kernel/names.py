# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the generated enumerations share: a misspelt name is an error that suggests the right one."""

from __future__ import annotations

from enum import EnumMeta, IntEnum
from typing import TYPE_CHECKING, Any

__all__ = ["KernelEnum"]


class _Names(EnumMeta):
    if not TYPE_CHECKING:  # a type checker would take every name for an enumerator

        def __getattr__(cls, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            if name in cls._member_map_:  # found by the metaclass up to Python 3.11
                return cls._member_map_[name]
            from pybpfasm.errors import suggestion

            raise AttributeError(f"{cls.__name__} has no {name!r}{suggestion(name, cls._member_map_)}")


class KernelEnum(IntEnum, metaclass=_Names):
    """An enumeration of the kernel's."""
