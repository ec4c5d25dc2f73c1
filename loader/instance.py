# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""An instance of the proxy that is in the kernel, opened from its pins.

An instance is a directory of pins and nothing else (see `loader.bpffs`)::

    <bpffs>/pybpfasm/<name>/settings, ports, interfaces      what it was made for (`loader.state`)
                            links/...                        what holds the programs on their hooks
                            programs/..., maps/...

`loader.up` makes and changes them, `loader.down` removes them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from loader import modes
from loader import plan as planning
from loader.bpffs import BpfFs
from loader.errors import CapabilityError, LoaderError
from loader.holders import DirectHolder, FilterHolder, Holder, LinkHolder
from loader.modes import Hook, Mode, Target
from loader.netns import Interface, NetNs
from loader.objects import Link, Map, Owned, Program
from loader.state import FORMAT, InterfaceValue, PortRange, SettingsValue, settings_of, state_map
from programs.settings import Settings
from pybpfasm.errors import PybpfasmError
from pybpfasm.kernel.enums import AttachType
from pybpfasm.layout import Record

__all__ = ["Attached", "Instance", "namespaces", "open_instance", "removal_rank"]


@dataclass(frozen=True, slots=True)
class Attached:
    """A hook of an instance and what is to be said of it now. ``problem`` is empty where all is well."""

    hook: Hook
    holder: Holder | None
    program: Program | None
    problem: str

    @property
    def link(self) -> Link | None:
        """The link that holds the program, if it is one."""
        return self.holder.link if self.holder is not None else None


class Instance:
    """An instance that is pinned somewhere: whatever of it can be opened is open. A context."""

    def __init__(self, path: Path, name: str = "") -> None:
        self.path = path
        self.name = name or path.name
        self.holders: dict[str, Holder] = {}
        self.links: dict[str, Link] = {}
        self.programs: dict[str, Program] = {}
        self.maps: dict[str, Map] = {}
        self.raw_settings = b""
        self.value: Record | None = None
        self.settings: Settings | None = None
        self.mode: Mode | None = None
        self.interfaces: tuple[Record, ...] = ()
        self._stack = ExitStack()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._read_state()
        specs = self.mode.maps(self.settings) if self.mode and self.settings else {}
        for pin in _pins(self.path / "links"):
            self._keep(self.links, pin, Link.from_pin)
        for pin in _pins(self.path / "programs"):
            self._keep(self.programs, pin, Program.from_pin)
        for pin in _pins(self.path / "maps"):
            try:
                self._keep(self.maps, pin, lambda p: Map.from_pin(p, specs.get(p.name)))
            except LoaderError:
                self._keep(self.maps, pin, Map.from_pin)  # of another version: without types
        self._find_holders()

    def _find_holders(self) -> None:
        self.holders = {key: LinkHolder(link) for key, link in self.links.items()}
        records = {one.name: one for one in self.interfaces}
        for hook in (*self.hooks(), *self._old_hooks()):
            if hook.key in self.holders:
                continue
            if hook.interface is not None and records[hook.interface.name].method == "clsact":
                netns = self.netns
                if netns is not None:
                    made = bool(records[hook.interface.name].made_qdisc)
                    self.holders[hook.key] = FilterHolder.of(
                        hook.interface.index, hook.attach_type, self.name, netns, made
                    )
            elif hook.target is Target.MAP and hook.map in self.maps and hook.program in self.programs:
                self.holders[hook.key] = DirectHolder(
                    self.maps[hook.map], self.programs[hook.program], hook.attach_type
                )

    @functools.cached_property
    def netns(self) -> NetNs | None:
        """The network namespace of the interfaces, or None where it cannot be found."""
        found = _namespace_of(self)
        return None if found is None else self._stack.enter_context(found)

    def _keep(self, into: dict[str, Any], pin: Path, opener: Callable[[Path], Owned]) -> None:
        into[pin.name] = self._stack.enter_context(opener(pin))

    def _read_state(self) -> None:
        try:
            # First: this layout has never changed, and tells `down` of an instance of another version.
            with Map.from_pin(self.path / "interfaces", state_map("interfaces", InterfaceValue, 1)) as found:
                self.interfaces = tuple(found.values())
            with Map.from_pin(self.path / "settings", state_map("settings", SettingsValue, 1)) as found:
                self.raw_settings = found.lookup_raw(bytes(4)) or b""
            value = SettingsValue.unpack(self.raw_settings)
            if value.format != FORMAT:
                return
            with Map.from_pin(self.path / "ports", state_map("ports", PortRange, 1)) as found:
                ranges = tuple((one.first, one.last) for one in found.values())
            self.mode = modes.get(value.mode)
            settings = settings_of(value, ranges)
        except CapabilityError:
            raise
        except (LoaderError, PybpfasmError, OSError, ValueError):
            return  # damaged, or of another version
        self.value, self.settings = value, settings

    @property
    def complete(self) -> bool:
        """Whether the instance says of itself what it is, in words of this version."""
        return self.value is not None

    def close(self) -> None:
        """Close all descriptors; the instance stays as it is."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def hooks(self) -> tuple[Hook, ...]:
        """Return the hooks that the instance should have."""
        if self.mode is None or self.settings is None:
            return ()
        there = [Interface(one.name, one.ifindex, one.link_type) for one in self.interfaces]
        return self.mode.hooks(self.settings, there)

    def _old_hooks(self) -> tuple[Hook, ...]:
        """Return the hooks on maps that only old connections may still need."""
        if self.mode is None or self.settings is None or self.settings.accelerate:
            return ()
        hooks = self.mode.hooks(replace(self.settings, accelerate=True), [])
        return tuple(hook for hook in hooks if hook.target is Target.MAP)

    def attached(self) -> list[Attached]:
        """Return all hooks, those that only old connections still need among them, with their state."""
        wanted = {hook.key: hook for hook in self.hooks()}
        found = [self._attached(hook) for hook in wanted.values()]
        for key in sorted(self.holders.keys() - wanted.keys()):
            attach_type, _ = self.holders[key].identity()
            hook = Hook(key, key, key, AttachType(attach_type), Target.MAP)
            found.append(Attached(hook, self.holders[key], self.programs.get(key), ""))
        return found

    def _attached(self, hook: Hook) -> Attached:
        program = self.programs.get(hook.program)
        holder = self.holders.get(hook.key)
        where = hook.interface.name if hook.interface else hook.target.value
        problem = ""
        if holder is None:
            problem = f"{hook.kind} on {where}: link {hook.key} is not pinned"
        elif holder.identity()[1] == 0:
            gone = {
                Target.INTERFACE: f"interface {where}, or what was attached to it, is gone",
                Target.CGROUP: f"cgroup {self.value.cgroup if self.value else ''} is gone",
            }
            problem = f"{hook.kind} is detached: {gone.get(hook.target, 'what it was attached to is gone')}"
        elif program is None:
            problem = f"{hook.kind} on {where}: program {hook.program} is not pinned"
        elif (there := holder.program_id()) not in (None, program.id):
            problem = f"{hook.kind} on {where} runs program {there}, not {program.id} as `up` left it"
        return Attached(hook, holder, program, problem)

    def drift(self) -> list[str]:
        """Say what is not as ``up`` left it."""
        if not self.complete:
            return [f"{self.path} does not say what it is: it is damaged, or of another version"]
        found = [one.problem for one in self.attached() if one.problem]
        if self.mode is not None and self.settings is not None:
            missing = self.mode.maps(self.settings).keys() - self.maps.keys()
            found += [f"map {name} is not pinned" for name in sorted(missing)]
        return found

    def in_namespace(self, ino: int, cookie: int) -> bool:
        """Whether its interfaces belong to that network namespace; 0 is an unknown cookie."""
        if self.value is None or self.value.netns_inode != ino:
            return False
        return not cookie or not self.value.netns_cookie or bool(self.value.netns_cookie == cookie)


def _pins(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def open_instance(name: str, path: str | None = None) -> Instance | None:
    """Open the instance of that name, or return None if there is none. It may change meanwhile."""
    fs = BpfFs.find(path, read_only=True)
    if fs is None:
        return None
    directory = fs.path(name)
    try:
        if not directory.is_dir():
            return None
        return Instance(directory)
    except PermissionError as error:
        raise _unreadable(directory, error) from None


def instance_names(path: str | None = None) -> list[str]:
    """Return the names of the instances that are there, sorted.

    Raises :class:`~loader.errors.CapabilityError` where they cannot be read.
    """
    fs = BpfFs.find(path, read_only=True)
    try:
        return fs.instances() if fs is not None else []
    except PermissionError as error:
        assert fs is not None
        raise _unreadable(fs.base, error) from None


def _unreadable(directory: Path, error: PermissionError) -> CapabilityError:
    return CapabilityError(
        f"{directory} cannot be read: {error.strerror}", missing=("CAP_BPF",), hint="run it as root"
    )


def _namespace_of(instance: Instance) -> NetNs | None:
    """Open the network namespace of an instance, by what it was called and by looking for it, or None."""
    if instance.value is None:
        return None
    for candidate in namespaces(instance.value.netns or None):
        try:
            netns = NetNs.open(candidate)
        except LoaderError:
            continue
        if netns.ino == instance.value.netns_inode and _has_cookie(netns, instance.value.netns_cookie):
            return netns
        netns.close()
    return None


def _has_cookie(netns: NetNs, cookie: int) -> bool:
    try:
        with netns.entered():
            return not cookie or planning.netns_cookie() in (0, cookie)
    except LoaderError:
        return False


def namespaces(first: str | None) -> Iterator[str | None]:
    """Where a network namespace can be found: as it was called, ours, the named ones, those of processes."""
    if first is not None:
        yield first
    yield None
    seen: set[int] = set()
    for pattern in ("/run/netns/*", "/proc/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"):
        for path in Path("/").glob(pattern[1:]):
            try:
                if pattern.endswith("fd/*") and not os.readlink(path).startswith("net:["):
                    continue
                ino = os.stat(path).st_ino
            except OSError:
                continue
            if ino not in seen:
                seen.add(ino)
                yield str(path)


# First nothing new is accelerated, then nothing at all; then nothing new is redirected, and last what
# redirected connections need.
_ORDER: Final = ("sockops", "sk_msg", "tcx_ingress", "tcx_egress", "getsockopt")


def removal_rank(key: str) -> int:
    """Where in the order of removal a hook stands, by its key."""
    return next((rank for rank, start in enumerate(_ORDER) if key.startswith(start)), len(_ORDER))
