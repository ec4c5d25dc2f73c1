# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Modes: the ways in which connections can be brought to Envoy, each of them one object.

A :class:`Mode` says which programs and maps it has, where they are attached, and how Envoy learns where a
connection was going. ``up``, ``down`` and ``status`` know modes only by this; a further mode is a further
module here and a line in :func:`get`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from loader.errors import UsageError
from pybpfasm.kernel.enums import AttachType

if TYPE_CHECKING:
    from loader.features import Feature
    from loader.netns import Interface
    from loader.objects import Map
    from programs.settings import Settings
    from pybpfasm.maps import MapSpec
    from pybpfasm.program import ProgramSpec

__all__ = ["DEFAULT", "Hook", "Mode", "Target", "get", "names"]

DEFAULT = "rewrite"


class Target(Enum):
    """What a program is attached to."""

    INTERFACE = "interface"
    CGROUP = "cgroup"
    NETNS = "netns"
    MAP = "map"


@dataclass(frozen=True, slots=True)
class Hook:
    """One program at one place.

    ``kind`` names the hook to people and in the counters (``ingress``), ``key`` is unique within an instance
    and names the pin, ``program`` and ``map`` are keys of what the mode's `programs` and `maps` return.
    """

    kind: str
    key: str
    program: str
    attach_type: AttachType
    target: Target
    interface: Interface | None = None
    map: str | None = None


class Mode(Protocol):
    """One way of bringing connections to Envoy."""

    @property
    def name(self) -> str:
        """What the mode is called, on the command line and in an instance's settings: 15 letters at most."""
        ...

    @property
    def original_destination(self) -> str:
        """How Envoy learns where a connection was going, in a few words."""
        ...

    def needs(self, settings: Settings) -> tuple[Feature, ...]:
        """Return what of the kernel the mode cannot do without."""
        ...

    def hooks(self, settings: Settings, interfaces: Sequence[Interface]) -> tuple[Hook, ...]:
        """Return the hooks in the order in which they are attached: what others rely on comes first."""
        ...

    def programs(self, settings: Settings, interfaces: Sequence[Interface]) -> dict[str, ProgramSpec]:
        """Assemble the programs that `hooks` names."""
        ...

    def maps(self, settings: Settings) -> dict[str, MapSpec]:
        """Return the maps that the programs use, by the name under which they are pinned."""
        ...

    def connections(self, maps: Mapping[str, Map]) -> int:
        """Return how many connections depend on these maps now."""
        ...

    def draining(self, settings: Settings) -> Settings:
        """Return the settings under which the programs take no new connection and go on with the others."""
        ...

    def live(self, maps: Mapping[str, Map]) -> int:
        """Return how many connections have not ended yet."""
        ...

    def counters(self, maps: Mapping[str, Map]) -> dict[str, dict[str, int]]:
        """Return the counters by kind of hook and name, summed over the CPUs."""
        ...

    def lingers(self, maps: Mapping[str, Map]) -> frozenset[str]:
        """Return the kinds of hooks that must stay, though the settings have no use for them any more, for
        the sake of connections that began while they had.
        """
        ...


def names() -> tuple[str, ...]:
    """Return the names of all modes."""
    return (DEFAULT,)


def get(name: str) -> Mode:
    """Return the mode of that name. Raises :class:`~loader.errors.UsageError` for an unknown one."""
    if name == "rewrite":
        from loader.modes.rewrite import Rewrite

        return Rewrite()
    raise UsageError(f"there is no mode {name!r}", hint=f"known are {', '.join(names())}")
