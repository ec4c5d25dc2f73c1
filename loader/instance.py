# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Instances of the proxy in the kernel: :func:`up`, :func:`down`, and :class:`Instance`, one that is there.

An instance is a directory of pins and nothing else (see `loader.bpffs`)::

    <bpffs>/pybpfasm/<name>/settings, ports, interfaces      what it was made for, as frozen maps
                            links/...                        what holds the programs on their hooks
                            programs/..., maps/...

``up`` makes everything with descriptors that it owns, pins it in a staging directory, and gives that its name
by one rename. So whatever ends it before, the kernel takes everything back by itself; what is left is at most
a staging directory, which the next ``up`` or ``down`` removes. Signals wait until the one or the other is
reached.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from loader import bpffs, modes
from loader import plan as planning
from loader.bpffs import BpfFs, Staging, remove_tree
from loader.errors import AttachError, BpfError, CapabilityError, ConflictError, LoaderError
from loader.modes import Hook, Mode, Target
from loader.netns import Interface, NetNs
from loader.objects import (
    Link,
    LinkInfo,
    Map,
    Owned,
    Program,
    attach_to_sockmap,
    prog_attach,
    prog_detach,
    prog_query,
)
from loader.plan import Plan, Request
from loader.sys import libc
from programs.settings import Mark, Ports, Settings
from pybpfasm.kernel.enums import AttachType, MapType
from pybpfasm.layout import U8, U16, U32, U64, ByteOrder, Bytes, Record, Struct
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.btf import BtfBuilder

__all__ = [
    "Attached",
    "Instance",
    "Interrupted",
    "Result",
    "down",
    "open_instance",
    "up",
]

FORMAT: Final = 1  # of the settings map
LOCK_SECONDS: Final = 30.0
OUR_PROGRAMS: Final = "pba_"  # how the names of the proxy's programs begin
_MNT_DETACH: Final = 2  # linux/fs.h


# --- what an instance says about itself ---------------------------------------------------------------------


class Text(Bytes):
    """A C string in a fixed number of bytes: UTF-8, filled up with NUL; too long a text is stored as none."""

    __slots__ = ()

    def to_bytes(self, value: Any, byteorder: ByteOrder) -> bytes:
        if isinstance(value, str):
            encoded = os.fsencode(value)
            value = (encoded if len(encoded) < self.size else b"").ljust(self.size, b"\0")
        return super().to_bytes(value, byteorder)

    def from_bytes(self, data: bytes, byteorder: ByteOrder) -> str:
        return os.fsdecode(data.partition(b"\0")[0])

    def btf(self, builder: BtfBuilder) -> int:
        """An array of ``char``, which bpftool prints as a string."""
        return builder.add_array(builder.add_int("char", 1, char=True), self.size)


class SettingsValue(Struct, kernel_name="proxy_settings"):
    """What an instance was made for. ``programs`` is a hash of its programs' instructions."""

    format = U32()
    mode = Text(16)
    envoy_port = U32()
    mark = U32()
    mark_mask = U32()
    accelerate = U8()
    timers = U8()
    coarse_clock = U8()
    with_netns_cookie = U8()
    flow_capacity = U32()
    socket_capacity = U32()
    handshake_seconds = U32()
    linger_seconds = U32()
    idle_seconds = U32()
    netns_inode = U64()
    netns_cookie = U64()
    cgroup_id = U64()
    programs = U64()
    netns = Text(256)
    cgroup = Text(256)


class PortRange(Struct, kernel_name="proxy_ports"):
    """A range of intercepted ports, both ends included."""

    first = U16()
    last = U16()


class InterfaceValue(Struct, kernel_name="proxy_interface"):
    """An interface that was attached to. ``link_type`` is an ARPHRD_* number, ``method`` tcx or clsact."""

    ifindex = U32()
    link_type = U16()
    made_qdisc = U8()
    name = Text(16)
    method = Text(8)


def _state_map(name: str, value: type[Struct], entries: int) -> MapSpec:
    return MapSpec(name, MapType.ARRAY, U32(), value, entries)


def _fingerprint(plan: Plan) -> int:
    from hashlib import blake2b

    digest = blake2b(digest_size=8)
    for name, spec in sorted(plan.programs.items()):
        digest.update(name.encode() + b"\0" + spec.code())
    return int.from_bytes(digest.digest(), sys.byteorder)


def _settings_value(plan: Plan) -> dict[str, Any]:
    settings = plan.settings
    return {
        "format": FORMAT,
        "mode": plan.mode.name,
        "envoy_port": settings.envoy_port,
        "mark": settings.mark.value,
        "mark_mask": settings.mark.mask,
        "accelerate": int(settings.accelerate),
        "timers": int(settings.timers),
        "coarse_clock": int(settings.coarse_clock),
        "with_netns_cookie": int(settings.netns_cookie),
        "flow_capacity": settings.flow_capacity,
        "socket_capacity": settings.socket_capacity,
        "handshake_seconds": settings.handshake_seconds,
        "linger_seconds": settings.linger_seconds,
        "idle_seconds": settings.idle_seconds,
        "netns_inode": plan.netns.ino,
        "netns_cookie": plan.netns_cookie,
        "cgroup_id": plan.cgroup.id,
        "programs": _fingerprint(plan),
        "netns": plan.request.netns or "",
        "cgroup": str(plan.cgroup.path),
    }


# --- the lock, and signals ----------------------------------------------------------------------------------


class Interrupted(LoaderError):
    """A signal came; everything was put back. ``signum`` says which."""

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(
            f"interrupted by {signal.Signals(signum).name}: nothing was changed", hint="run it again"
        )


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Session:
    """The right to change instances on one bpf file system: nobody else does meanwhile, and signals wait."""

    def __init__(self, fs: BpfFs) -> None:
        self.fs = fs

    @staticmethod
    def checkpoint() -> None:
        """Raise :class:`Interrupted` if a signal is waiting."""
        waiting = signal.sigpending() & set(_SIGNALS)
        if waiting:
            raise Interrupted(min(waiting))


@contextlib.contextmanager
def _changing(path: str | None, *, create: bool) -> Iterator[_Session | None]:
    """Find the bpf file system, or mount one, and hold its lock for the block; tidy up what was abandoned.

    None where there is none and ``create`` is false. A file system that we mounted is unmounted at the end
    if nothing is in it.
    """
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        found = _locked(path, create)
        if found is None:
            yield None
            return
        fs, fd = found
        try:
            _tidy(fs)
            yield _Session(fs)
        finally:
            _leave(fs)
            os.close(fd)
    finally:
        # What came after the point of no return came too late.
        while signal.sigpending() & set(_SIGNALS) - masked:
            signal.sigtimedwait(set(_SIGNALS) - masked, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


def _locked(path: str | None, create: bool) -> tuple[BpfFs, int] | None:
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        fs = BpfFs.find(path)
        if fs is None:
            if not create:
                return None
            # Two that find none must not mount two.
            mount_point = _flock(bpffs.DEFAULT_MOUNT, deadline)
            try:
                fs = BpfFs.find(path) or BpfFs.mount(bpffs.DEFAULT_MOUNT)
            finally:
                os.close(mount_point)
        try:
            fd = _flock(fs.root, deadline)
        except PermissionError as error:
            raise CapabilityError(
                f"{fs.root} cannot be opened: {error.strerror}", missing=("CAP_BPF",), hint="run it as root"
            ) from None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), os.stat(fs.root)):
                return fs, fd
        os.close(fd)  # it was unmounted while we waited


def _flock(directory: Path, deadline: float) -> int:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                _Session.checkpoint()
                if time.monotonic() > deadline:
                    raise ConflictError(
                        f"another process has held the lock on {directory} for {LOCK_SECONDS:g} s",
                        hint=f"another loader is at work: `fuser -v {directory}` shows it; try again then",
                    ) from None
                time.sleep(0.01)
    except BaseException:
        os.close(fd)
        raise


def _tidy(fs: BpfFs) -> None:
    """Remove staging directories: whoever made one held the lock, so it is dead."""
    for directory in sorted(fs.base.glob("staging-*")):
        remove_tree(directory)


def _leave(fs: BpfFs) -> None:
    """Remove the directory of instances if there are none, and a mount of ours with it.

    The lock's own descriptor keeps the file system busy, so it is detached; nobody else is inside, and who
    waits for the lock notices.
    """
    with contextlib.suppress(OSError):
        fs.base.rmdir()
    if fs.ours:
        with contextlib.suppress(OSError):
            # The kernel itself puts maps.debug and progs.debug there; nobody else can make a name with a dot.
            if all("." in entry.name for entry in fs.root.iterdir()):
                libc().umount2(os.fsencode(fs.root), _MNT_DETACH)


# --- an instance that is there ------------------------------------------------------------------------------


def _identity(info: LinkInfo) -> tuple[str, int]:
    """What a link is attached to; the number is 0 where that is gone."""
    if info.ifindex is not None:
        return str(info.attach_type), info.ifindex
    if info.cgroup_id is not None:
        return str(info.attach_type), info.cgroup_id
    return str(info.attach_type), info.map_id or 0


@dataclass(frozen=True, slots=True)
class Attached:
    """A hook of an instance and what is to be said of it now. ``problem`` is empty where all is well."""

    hook: Hook
    method: str
    link: Link | None
    info: LinkInfo | None
    program: Program | None
    problem: str


class Instance:
    """An instance that is pinned somewhere: whatever of it can be opened is open. A context."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
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

    def _keep(self, into: dict[str, Any], pin: Path, opener: Callable[[Path], Owned]) -> None:
        into[pin.name] = self._stack.enter_context(opener(pin))

    def _read_state(self) -> None:
        try:
            with Map.from_pin(self.path / "settings", _state_map("settings", SettingsValue, 1)) as found:
                self.raw_settings = found.lookup_raw(bytes(4)) or b""
            value = SettingsValue.unpack(self.raw_settings)
            if value.format != FORMAT:
                return
            with Map.from_pin(self.path / "ports", _state_map("ports", PortRange, 1)) as found:
                ranges = tuple((one.first, one.last) for one in found.values())
            with Map.from_pin(self.path / "interfaces", _state_map("interfaces", InterfaceValue, 1)) as found:
                self.interfaces = tuple(found.values())
            self.mode = modes.get(value.mode)
        except (LoaderError, OSError) as error:
            if isinstance(error, CapabilityError):
                raise
            return
        self.value = value
        self.settings = Settings(
            ports=Ports.of(ranges),
            envoy_port=value.envoy_port,
            mark=Mark(value.mark, value.mark_mask),
            accelerate=bool(value.accelerate),
            flow_capacity=value.flow_capacity,
            socket_capacity=value.socket_capacity,
            handshake_seconds=value.handshake_seconds,
            linger_seconds=value.linger_seconds,
            idle_seconds=value.idle_seconds,
            timers=bool(value.timers),
            coarse_clock=bool(value.coarse_clock),
            netns_cookie=bool(value.with_netns_cookie),
        )

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

    def attached(self) -> list[Attached]:
        """Return all hooks, those that only old connections still need among them, with their state."""
        wanted = {hook.key: hook for hook in self.hooks()}
        methods = {one.name: one.method for one in self.interfaces}
        found = [
            self._attached(hook, methods[hook.interface.name] if hook.interface else "")
            for hook in wanted.values()
        ]
        for key in sorted(self.links.keys() - wanted.keys()):
            info = self.links[key].info()
            hook = Hook(key, key, key, AttachType(info.attach_type or 0), Target.MAP)
            found.append(Attached(hook, "link", self.links[key], info, self.programs.get(key), ""))
        return found

    def _attached(self, hook: Hook, method: str) -> Attached:
        program = self.programs.get(hook.program)
        link = self.links.get(hook.key)
        where = hook.interface.name if hook.interface else hook.target.value
        if link is None:
            if hook.target is Target.MAP and "sk_msg" in self.programs:
                problem = "" if hook.map in self.maps else f"{hook.kind}: map {hook.map} is not pinned"
                return Attached(hook, "map", None, None, program, problem)
            problem = f"{hook.kind} on {where}: link {hook.key} is not pinned"
            return Attached(hook, method or "link", None, None, program, problem)
        info = link.info()
        problem = ""
        number = _identity(info)[1]
        if number == 0:
            gone = {
                Target.INTERFACE: f"interface {where} is gone",
                Target.CGROUP: f"cgroup {self.value.cgroup if self.value else ''} is gone",
            }
            problem = f"{hook.kind} is detached: {gone.get(hook.target, 'what it was attached to is gone')}"
        elif program is None:
            problem = f"{hook.kind} on {where}: program {hook.program} is not pinned"
        elif info.prog_id != program.id:
            problem = (
                f"{hook.kind} on {where} runs program {info.prog_id}, not {program.id}, "
                "which was put there by `up`"
            )
        return Attached(hook, method or "link", link, info, program, problem)

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
    fs = BpfFs.find(path)
    if fs is None:
        return None
    directory = fs.path(name)
    try:
        if not directory.is_dir():
            return None
        return Instance(directory)
    except PermissionError as error:
        raise CapabilityError(
            f"{directory} cannot be read: {error.strerror}", missing=("CAP_BPF",), hint="run it as root"
        ) from None


# --- up -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Result:
    """What ``up`` or ``down`` did. ``changed`` is false where there was nothing to do."""

    name: str
    changed: bool
    path: Path | None = None
    warnings: list[str] = field(default_factory=list)
    plan: Plan | None = None
    created: bool = False


Clock = Callable[[str], None]


def up(request: Request, *, clock: Clock = lambda step: None) -> Result:
    """Bring an instance up, or change the one of that name, in one step or not at all.

    ``clock`` is called with the name of each step that has been done. Raises
    :class:`~loader.errors.LoaderError`.
    """
    with planning.make(request) as plan:
        clock("check and assemble")
        with _changing(request.bpffs, create=True) as session:
            assert session is not None
            clock("lock")
            return _up(plan, session, clock)


def _up(plan: Plan, session: _Session, clock: Clock) -> Result:
    request, fs = plan.request, session.fs
    final = fs.path(request.name)
    result = Result(request.name, True, final, list(plan.warnings), plan)
    with ExitStack() as stack:
        before = stack.enter_context(Instance(final)) if final.is_dir() else None
        result.created = before is None
        _refuse_conflicts(plan, session, before)
        if before is not None and _is_same(before, plan):
            result.changed = False
            return result
        if before is not None:
            result.warnings += _about_change(before, plan)
        maps, kept = _maps(plan, before, stack)
        clock("maps")
        fds = {spec.name: maps[pin].fd for pin, spec in plan.maps.items()}
        programs = {}
        for key, spec in plan.programs.items():
            session.checkpoint()
            programs[key] = stack.enter_context(Program.load(spec, fds))
        clock("load")
        staging = stack.enter_context(fs.staging(request.name))
        _pin_state(plan, staging, stack)
        for name, one in (maps | kept).items():
            staging.pin(one, f"maps/{name}")
        for name, program in programs.items():
            staging.pin(program, f"programs/{name}")
        undo = stack.enter_context(ExitStack())
        links = _attach(plan, session, before, maps, programs, stack, undo)
        clock("attach")
        if kept and before is not None:
            for key in before.links.keys() - links.keys():
                if key in before.programs and key in _lingering(before):
                    links[key] = before.links[key]
                    staging.pin(before.programs[key], f"programs/{key}")
        session.checkpoint()
        for key, link in links.items():
            staging.pin(link, f"links/{key}")
        staging.publish(replace=before is not None)
        undo.pop_all()
        if before is not None:
            reused = {link.id for link in links.values()}
            for link in before.links.values():
                if link.id not in reused:
                    _detach_quietly(link)
        clock("publish")
    return result


def _is_same(before: Instance, plan: Plan) -> bool:
    if before.raw_settings != SettingsValue.pack(**_settings_value(plan)) or before.settings is None:
        return False
    if before.settings.ports != plan.settings.ports:
        return False
    there = {(one.ifindex, one.link_type, one.name, one.method) for one in before.interfaces}
    wanted = {(one.index, one.link_type, one.name, _method(plan)) for one in plan.interfaces}
    idle = before.links.keys() - {hook.key for hook in plan.hooks} - _lingering(before)
    return there == wanted and not idle and not before.drift()


def _method(plan: Plan) -> str:
    return "tcx" if plan.tcx else "clsact"


def _lingering(before: Instance) -> frozenset[str]:
    return before.mode.lingers(before.maps) if before.mode is not None else frozenset()


def _about_change(before: Instance, plan: Plan) -> list[str]:
    """What a change cannot do without harm."""
    old = before.settings
    if old is None or before.mode is None:
        return []
    count = before.mode.connections(before.maps)
    if count and old.envoy_port != plan.settings.envoy_port:
        return [
            f"{count} connections go through Envoy's former port {old.envoy_port} and will break: the port "
            "cannot be changed under them"
        ]
    gone = [port for port in old.ports if port not in plan.settings.ports]
    if count and gone:
        return [
            f"connections to ports that are not intercepted any more ({Ports.of((p, p) for p in gone)}) "
            "will break"
        ]
    return []


def _refuse_conflicts(plan: Plan, session: _Session, before: Instance | None) -> None:
    """Raise :class:`~loader.errors.ConflictError` if a proxy is on one of the hooks already."""
    own = {link.id for link in before.links.values()} if before is not None else set()
    wanted = {one.index: one.name for one in plan.interfaces}
    for name in session.fs.instances():
        if name == plan.request.name:
            continue
        with Instance(session.fs.path(name)) as other:
            if not other.in_namespace(plan.netns.ino, plan.netns_cookie):
                continue
            taken = [wanted[one.ifindex] for one in other.interfaces if one.ifindex in wanted]
            if taken:
                raise ConflictError(
                    f"instance {name!r} is on {' and '.join(taken)} already",
                    hint=f"change that one (up --name {name} …), take it down first (down --name {name}), "
                    "or name other interfaces",
                )
    if not plan.tcx:
        return
    with plan.netns.entered():
        for index, name in wanted.items():
            for attach_type in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS):
                for entry in prog_query(index, attach_type).entries:
                    if entry.link_id in own or not _is_ours(entry.prog_id):
                        continue
                    raise ConflictError(
                        f"a proxy of which {session.fs.base} knows nothing is on {name} already "
                        f"(link {entry.link_id}, program {entry.prog_id})",
                        hint="it is pinned on another bpf file system, perhaps in a container: take it down "
                        f"there, or by force: bpftool link detach id {entry.link_id}",
                    )


def _is_ours(prog_id: int) -> bool:
    try:
        with Program.from_id(prog_id) as program:
            return program.info().name.startswith(OUR_PROGRAMS)
    except LoaderError:
        return False  # gone since, or ids may not be asked for


def _maps(plan: Plan, before: Instance | None, stack: ExitStack) -> tuple[dict[str, Map], dict[str, Map]]:
    """Return the maps of the plan, those that are there already reused, and others that must be kept."""
    maps: dict[str, Map] = {}
    kept: dict[str, Map] = {}
    live = before.mode.connections(before.maps) if before is not None and before.mode is not None else 0
    for pin, spec in plan.maps.items():
        old = before.maps.get(pin) if before is not None else None
        if old is not None and _same_shape(old, spec):
            maps[pin] = old
            continue
        if old is not None and live:
            raise ConflictError(
                f"map {pin} has another shape ({old.max_entries} entries, keys of {old.key_size} and values "
                f"of {old.value_size} bytes) than is wanted now ({spec.max_entries}, {spec.key_size}, "
                f"{spec.value_size}), and {live} connections depend on it",
                hint="take the instance down first, or wait until the connections have ended",
            )
        maps[pin] = stack.enter_context(Map.create(spec))
    if before is not None and _lingering(before):
        kept = {pin: one for pin, one in before.maps.items() if pin not in maps}
    return maps, kept


def _same_shape(old: Map, spec: MapSpec) -> bool:
    there = (int(old.type), old.key_size, old.value_size, old.max_entries, old.flags)
    return there == (int(spec.type), spec.key_size, spec.value_size, spec.max_entries, spec.flags)


def _pin_state(plan: Plan, staging: Staging, stack: ExitStack) -> None:
    """Make, fill, freeze and pin the maps in which an instance says what it is."""
    interfaces = [
        {"ifindex": one.index, "link_type": one.link_type, "name": one.name, "method": _method(plan)}
        for one in plan.interfaces
    ]
    ports = [{"first": first, "last": last} for first, last in plan.settings.ports.ranges]
    contents: tuple[tuple[str, type[Struct], list[dict[str, Any]]], ...] = (
        ("settings", SettingsValue, [_settings_value(plan)]),
        ("ports", PortRange, ports),
        ("interfaces", InterfaceValue, interfaces),
    )
    for name, kind, values in contents:
        one = stack.enter_context(Map.create(_state_map(f"{OUR_PROGRAMS}{name}", kind, len(values))))
        for index, value in enumerate(values):
            one.update(index, value)
        one.freeze()
        staging.pin(one, name)


def _attach(
    plan: Plan,
    session: _Session,
    before: Instance | None,
    maps: dict[str, Map],
    programs: dict[str, Program],
    stack: ExitStack,
    undo: ExitStack,
) -> dict[str, Link]:
    """Put each program on its hook: under the link that is there, or by a new one. Return all links."""
    there = {} if before is None else {_identity(link.info()): link for link in before.links.values()}
    same_netns = before is not None and before.in_namespace(plan.netns.ino, plan.netns_cookie)
    links: dict[str, Link] = {}
    for hook in plan.hooks:
        session.checkpoint()
        program = programs[hook.program]
        if hook.target is Target.INTERFACE:
            assert hook.interface is not None
            number = hook.interface.index if same_netns else -1
        elif hook.target is Target.CGROUP:
            number = plan.cgroup.id
        else:
            number = maps[hook.map or ""].id
        old = there.get((str(hook.attach_type), number))
        if old is not None:
            previous = _program_of(before, old, stack)
            old.update(program, previous)
            undo.callback(_put_back, old, previous)
            links[hook.key] = old
            continue
        link = _attach_new(plan, hook, program, maps, undo, before)
        if link is not None:
            links[hook.key] = stack.enter_context(link)
    return links


def _program_of(before: Instance | None, link: Link, stack: ExitStack) -> Program:
    wanted = link.info().prog_id
    for program in before.programs.values() if before is not None else ():
        if program.id == wanted:
            return program
    return stack.enter_context(Program.from_id(wanted))


def _put_back(link: Link, previous: Program) -> None:
    with contextlib.suppress(LoaderError):
        link.update(previous)


def _attach_new(
    plan: Plan,
    hook: Hook,
    program: Program,
    maps: dict[str, Map],
    undo: ExitStack,
    before: Instance | None,
) -> Link | None:
    if hook.target is Target.INTERFACE:
        assert hook.interface is not None
        with plan.netns.entered():
            # First in the chain: a program before it that ends the chain would let traffic past the proxy.
            return Link.tcx(program, hook.interface.index, hook.attach_type, first=True)
    if hook.target is Target.CGROUP:
        return Link.cgroup(program, plan.cgroup.fd, hook.attach_type)
    if hook.target is Target.MAP:
        target = maps[hook.map or ""]
        link = attach_to_sockmap(program, target, hook.attach_type)
        old = before.programs.get(hook.program) if before is not None else None
        if link is None and old is not None and before is not None and target in before.maps.values():
            undo.callback(prog_attach, target.fd, old, hook.attach_type)
        return link
    raise AttachError(f"hooks on a {hook.target.value} are not known here")


def _detach_quietly(link: Link) -> None:
    """Detach; what is gone already counts as detached."""
    try:
        link.detach()
    except BpfError as error:
        if error.errno not in (errno.ENOLINK, errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
            raise


# --- down ---------------------------------------------------------------------------------------------------

# First nothing new is accelerated, then nothing at all; then nothing new is redirected, and last what
# redirected connections need.
_ORDER: Final = ("sockops", "sk_msg", "tcx_ingress", "tcx_egress", "getsockopt")


def _rank(key: str) -> int:
    return next((rank for rank, start in enumerate(_ORDER) if key.startswith(start)), len(_ORDER))


def down(name: str, path: str | None = None, *, drain: float = 0.0) -> Result:
    """Remove the instance of that name, in whatever state it is. ``changed`` is false if there is none.

    ``drain`` is the seam for ending gently: nothing uses it yet.
    """
    bpffs.check_name(name)
    missing = planning.missing_capabilities(("CAP_BPF", "CAP_NET_ADMIN"))
    if missing:
        raise CapabilityError(
            f"this process lacks {', '.join(missing)}", missing=missing, hint="run it as root, with sudo say"
        )
    with _changing(path, create=False) as session:
        directory = None if session is None else session.fs.path(name)
        if directory is None or not directory.is_dir():
            return Result(name, False)
        _dismantle(directory)
        return Result(name, True, directory)


def _dismantle(directory: Path) -> None:
    with Instance(directory) as instance:
        for key in sorted(instance.links, key=_rank):
            _detach_quietly(instance.links[key])
        if "sk_msg" not in instance.links and {"sk_msg"} <= instance.programs.keys():
            for one in instance.maps.values():
                if one.type == MapType.SOCKHASH:
                    prog_detach(one.fd, instance.programs["sk_msg"], AttachType.SK_MSG_VERDICT)
    remove_tree(directory)


def namespace_of(instance: Instance) -> NetNs | None:
    """Open the network namespace of an instance, by what it was called and by looking for it, or None."""
    if instance.value is None:
        return None
    for candidate in _namespaces(instance.value.netns or None):
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


def _namespaces(first: str | None) -> Iterator[str | None]:
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
