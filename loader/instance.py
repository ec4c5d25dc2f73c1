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
import fcntl
import functools
import os
import re
import signal
import socket
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
from loader.capabilities import missing_capabilities
from loader.errors import AttachError, CapabilityError, ConflictError, LoaderError
from loader.holders import DirectHolder, FilterHolder, Holder, LinkHolder, has_clsact
from loader.modes import Hook, Mode, Target
from loader.netns import Interface, NetNs
from loader.objects import (
    Link,
    Map,
    Owned,
    Program,
    attach_to_sockmap,
    prog_query,
)
from loader.plan import Plan, Request
from loader.sys import libc
from programs.settings import Mark, Ports, Settings
from pybpfasm.errors import PybpfasmError
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
    """Remove staging directories: whoever made one held the lock, so it is dead.

    What is attached there goes now, unless the published instance has it too: a link ends with its last pin
    only after a while, and a filter has no pin.
    """
    for directory in sorted(fs.base.glob("staging-*")):
        name = re.sub(r"staging-\d+-\d+-", "", directory.name)
        with ExitStack() as stack:
            staged = stack.enter_context(Instance(directory, name))
            published = fs.path(name)
            live = stack.enter_context(Instance(published)) if published.is_dir() else None
            claimed = set() if live is None else {_claim(one) for one in live.holders.values()}
            for holder in staged.holders.values():
                if _claim(holder) not in claimed:
                    holder.remove()
        remove_tree(directory)


def _claim(holder: Holder) -> tuple[object, ...]:
    """What tells whether two holders, of two directories, are the same thing in the kernel."""
    return (holder.link.id,) if holder.link is not None else holder.identity()


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
        for hook in self.hooks():
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
            settings = self._settings_of(value, ranges)
        except CapabilityError:
            raise
        except (LoaderError, PybpfasmError, OSError, ValueError):
            return  # damaged, or of another version
        self.value, self.settings = value, settings

    @staticmethod
    def _settings_of(value: Record, ranges: tuple[tuple[int, int], ...]) -> Settings:
        return Settings(
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
            netns=value.netns_cookie,
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
        _pin_state(plan, before, staging, stack)
        for name, one in (maps | kept).items():
            staging.pin(one, f"maps/{name}")
        for name, program in programs.items():
            staging.pin(program, f"programs/{name}")
        obsolete = {} if before is None else {k: h for k, h in before.holders.items() if h.identity()[1]}
        owned = stack.enter_context(ExitStack())
        undo = stack.enter_context(ExitStack())  # unwinds first: what it takes off is still open
        holders = _attach(plan, session, before, maps, programs, owned, undo)
        clock("attach")
        if kept and before is not None:
            for key in (before.holders.keys() - holders.keys()) & _lingering(before):
                holders[key] = before.holders[key]
                staging.pin(before.programs[key], f"programs/{key}")
        session.checkpoint()
        for key, holder in holders.items():
            if holder.link is not None:
                staging.pin(holder.link, f"links/{key}")
        staging.publish(replace=before is not None)
        undo.pop_all()
        stay = set(map(id, holders.values()))
        for key in sorted(obsolete, key=_rank):
            if id(obsolete[key]) not in stay:
                obsolete[key].remove()
        clock("publish")
    return result


def _is_same(before: Instance, plan: Plan) -> bool:
    if before.raw_settings != SettingsValue.pack(**_settings_value(plan)) or before.settings is None:
        return False
    if before.settings.ports != plan.settings.ports:
        return False
    there = {(one.ifindex, one.link_type, one.name, one.method) for one in before.interfaces}
    wanted = {(one.index, one.link_type, one.name, _method(plan)) for one in plan.interfaces}
    idle = before.holders.keys() - {hook.key for hook in plan.hooks} - _lingering(before)
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
    with plan.netns.entered():
        for index, name in wanted.items():
            for attach_type in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS):
                _refuse_stranger(plan, session, index, name, attach_type, own)


def _refuse_stranger(
    plan: Plan, session: _Session, index: int, name: str, attach_type: AttachType, own: set[int]
) -> None:
    where = "pinned on another bpf file system, perhaps in a container"
    if plan.tcx:
        for entry in prog_query(index, attach_type).entries:
            if entry.link_id not in own and _is_ours(entry.prog_id):
                raise ConflictError(
                    f"a proxy of which {session.fs.base} knows nothing is on {name} already "
                    f"(link {entry.link_id}, program {entry.prog_id})",
                    hint=f"it is {where}: take it down there, or by force: "
                    f"bpftool link detach id {entry.link_id}",
                )
        return
    from loader import tc_clsact

    if not has_clsact(index):
        return
    for found in tc_clsact.filters(index, attach_type):
        if found.name.startswith("pybpfasm-") and found.name != FilterHolder.name(plan.request.name):
            raise ConflictError(
                f"a proxy of which {session.fs.base} knows nothing is on {name} already "
                f"(filter {found.name!r}, program {found.prog_id})",
                hint=f"it is {where}: take it down there, or by force: tc filter del dev {name} "
                f"{attach_type.name.removeprefix('TCX_').lower()} prio {found.priority}",
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


def _pin_state(plan: Plan, before: Instance | None, staging: Staging, stack: ExitStack) -> None:
    """Make, fill, freeze and pin the maps in which an instance says what it is."""
    interfaces = [
        {
            "ifindex": one.index,
            "link_type": one.link_type,
            "name": one.name,
            "method": _method(plan),
            "made_qdisc": int(_makes_qdisc(plan, before, one)),
        }
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


def _makes_qdisc(plan: Plan, before: Instance | None, interface: Interface) -> bool:
    """Whether the interface has a clsact qdisc only because of this instance."""
    if plan.tcx:
        return False
    if before is not None and before.in_namespace(plan.netns.ino, plan.netns_cookie):
        for one in before.interfaces:
            if one.ifindex == interface.index and one.made_qdisc:
                return True
    with plan.netns.entered():
        return not has_clsact(interface.index)


def _attach(
    plan: Plan,
    session: _Session,
    before: Instance | None,
    maps: dict[str, Map],
    programs: dict[str, Program],
    stack: ExitStack,
    undo: ExitStack,
) -> dict[str, Holder]:
    """Put each program on its hook: in the place of the one that is there, or anew."""
    there = {} if before is None else {one.identity(): one for one in before.holders.values()}
    same_netns = before is not None and before.in_namespace(plan.netns.ino, plan.netns_cookie)
    holders: dict[str, Holder] = {}
    for hook in plan.hooks:
        session.checkpoint()
        program = programs[hook.program]
        old = there.get((int(hook.attach_type), _number(plan, hook, maps)))
        if hook.interface is not None and not (same_netns and old and old.method == _method(plan)):
            old = None
        if old is not None and before is not None:
            previous = _program_of(before, old, stack)
            old.put(program, previous)
            undo.callback(_put_back, old, previous, program)
            holders[hook.key] = old
        else:
            holders[hook.key] = _attach_new(plan, before, hook, program, maps, stack, undo)
    return holders


def _number(plan: Plan, hook: Hook, maps: dict[str, Map]) -> int:
    """The number in the identity of a hook's holder."""
    if hook.interface is not None:
        return hook.interface.index
    if hook.target is Target.MAP:
        return maps[hook.map or ""].id
    return plan.cgroup.id


def _program_of(before: Instance, holder: Holder, stack: ExitStack) -> Program:
    """The program that a holder holds now."""
    wanted = holder.program_id()
    for key, program in before.programs.items():
        if program.id == wanted or (wanted is None and before.holders.get(key) is holder):
            return program
    if not wanted:
        raise AttachError("what was attached is gone", hint="take the instance down and up again")
    return stack.enter_context(Program.from_id(wanted))


def _put_back(holder: Holder, previous: Program, new: Program) -> None:
    with contextlib.suppress(LoaderError):
        holder.put(previous, new)


def _attach_new(
    plan: Plan,
    before: Instance | None,
    hook: Hook,
    program: Program,
    maps: dict[str, Map],
    stack: ExitStack,
    undo: ExitStack,
) -> Holder:
    holder: Holder
    if hook.interface is not None:
        index = hook.interface.index
        with plan.netns.entered():
            if plan.tcx:
                # First in the chain: one before it that ends the chain would let traffic past the proxy.
                link = Link.tcx(program, index, hook.attach_type, first=True)
                holder = LinkHolder(stack.enter_context(link))
            else:
                made = _makes_qdisc(plan, before, hook.interface)
                name = plan.request.name
                holder = FilterHolder.create(program, index, hook.attach_type, name, plan.netns, made)
    elif hook.target is Target.CGROUP:
        holder = LinkHolder(stack.enter_context(Link.cgroup(program, plan.cgroup.fd, hook.attach_type)))
    elif hook.target is Target.MAP:
        target = maps[hook.map or ""]
        on_map = attach_to_sockmap(program, target, hook.attach_type)
        if on_map is not None:
            holder = LinkHolder(stack.enter_context(on_map))
        else:
            holder = DirectHolder(target, program, hook.attach_type)
    else:
        raise AttachError(f"hooks on a {hook.target.value} are not known here")
    undo.callback(holder.remove)
    return holder


# --- down ---------------------------------------------------------------------------------------------------

# First nothing new is accelerated, then nothing at all; then nothing new is redirected, and last what
# redirected connections need.
_ORDER: Final = ("sockops", "sk_msg", "tcx_ingress", "tcx_egress", "getsockopt")


def _rank(key: str) -> int:
    return next((rank for rank, start in enumerate(_ORDER) if key.startswith(start)), len(_ORDER))


def down(
    name: str, path: str | None = None, *, drain: float = 0, tell: Callable[[int], None] = lambda live: None
) -> Result:
    """Remove the instance of that name, in whatever state it is. ``changed`` is false if there is none.

    Connections that go through Envoy break, but for those that end within ``drain`` seconds; so long, new
    ones go to the application directly. ``tell`` is called with the number of those left, when it changes.
    """
    bpffs.check_name(name)
    missing = missing_capabilities(("CAP_BPF", "CAP_NET_ADMIN"))
    if missing:
        raise CapabilityError(
            f"this process lacks {', '.join(missing)}", missing=missing, hint="run it as root, with sudo say"
        )
    with _changing(path, create=False) as session:
        directory = None if session is None else session.fs.path(name)
        if directory is None or not directory.is_dir():
            return Result(name, False)
        assert session is not None
        warnings = _drain(directory, session, drain, tell) if drain > 0 else []
        return Result(name, True, directory, warnings=warnings + _dismantle(directory))


def _drain(directory: Path, session: _Session, seconds: float, tell: Callable[[int], None]) -> list[str]:
    """Let no new connection in and wait for the others to end; return what to say of those that did not.

    A signal ends the waiting, and the instance is as it was.
    """
    with Instance(directory) as instance, ExitStack() as undo:
        mode, settings = instance.mode, instance.settings
        if mode is None or settings is None:
            return ["the instance does not say what it is, so it could not be drained"]
        interfaces = [Interface(one.name, one.ifindex, one.link_type) for one in instance.interfaces]
        specs = mode.programs(mode.draining(settings), interfaces)
        fds = {spec.name: instance.maps[pin].fd for pin, spec in mode.maps(settings).items()}
        for hook in instance.hooks():
            old, holder = instance.programs.get(hook.program), instance.holders.get(hook.key)
            if hook.target is not Target.INTERFACE or old is None or holder is None:
                continue
            with Program.load(specs[hook.program], fds) as new:
                try:
                    holder.put(new, old)
                except LoaderError:
                    continue  # detached, by whomever: there is nothing to drain
                undo.callback(_end_draining, holder, old, new.id)
        deadline, before = time.monotonic() + seconds, -1
        while (live := mode.live(instance.maps)) and time.monotonic() < deadline:
            if live != before:
                tell(live)
                before = live
            session.checkpoint()
            time.sleep(0.05)
        undo.pop_all()
        if live:
            return [f"{live} connection(s) had not ended after {seconds:g} s and are reset"]
        return []


def _end_draining(holder: Holder, old: Program, new_id: int) -> None:
    with contextlib.suppress(LoaderError), Program.from_id(new_id) as new:
        holder.put(old, new)


def _dismantle(directory: Path) -> list[str]:
    """Take everything off and remove the pins; return what could not be looked after."""
    with Instance(directory) as instance:
        for key in sorted(instance.holders, key=_rank):
            instance.holders[key].remove()
        if not instance.complete:
            _remove_orphans(instance.name)
        lost = [one.name for one in instance.interfaces if one.method == "clsact" and instance.netns is None]
        # A socket holds the sk_msg program, which holds the map, which holds the socket.
        kept = sum(one.count() for one in instance.maps.values() if one.type is MapType.SOCKHASH)
    remove_tree(directory)
    warnings = []
    if lost:
        warnings.append(
            f"the network namespace of {', '.join(lost)} is gone, or hidden from this process: in the latter "
            "case the filters there stay"
        )
    if kept:
        warnings.append(
            f"{kept} sockets of connections between Envoy and the application stay accelerated until they "
            "close, and the kernel keeps the sk_msg program and its map so long"
        )
    return warnings


def _remove_orphans(name: str) -> None:
    """Remove the filters of an instance that cannot say any more where they are, in this namespace."""
    for index, _ in socket.if_nameindex():
        if has_clsact(index):
            with NetNs.current() as netns:
                for attach_type in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS):
                    FilterHolder.of(index, attach_type, name, netns, made_qdisc=False).remove()


def _namespace_of(instance: Instance) -> NetNs | None:
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
