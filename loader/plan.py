# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""From what was asked for to what will be done: everything is looked at, nothing is touched.

:func:`make` checks a :class:`Request` against this host and returns a :class:`Plan`, or raises the error that
says what cannot be. Only with a plan in hand does :mod:`loader.instance` begin to change anything.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from loader import bpffs, modes
from loader.bpffs import BpfFs
from loader.capabilities import missing_capabilities
from loader.cgroup import Cgroup
from loader.errors import CapabilityError, KernelFeatureError, LoaderError, UsageError
from loader.netns import Interface, NetNs, has_outer_header, interface, interface_is_up, listeners
from programs.settings import DEFAULT_QUEUE_LIMIT, Settings
from pybpfasm.errors import PybpfasmError

if TYPE_CHECKING:
    from pybpfasm.maps import MapSpec
    from pybpfasm.program import ProgramSpec

__all__ = [
    "Plan",
    "Request",
    "envoy_warning",
    "make",
    "netns_cookie",
    "with_offers",
    "with_queue",
    "with_ulp",
]

_SO_NETNS_COOKIE: Final = 71  # asm-generic/socket.h, from 5.14
_TCP_RMEM: Final = Path("/proc/sys/net/ipv4/tcp_rmem")  # of the network namespace of who reads it
_USERLOCKS_BITS: Final = 4  # the width of sk_userlocks, include/net/sock.h
_RCVBUF_LOCK: Final = 2  # SOCK_RCVBUF_LOCK, linux/socket.h

# What `up` needs in any case, and why.
NEEDED: Final = {
    "CAP_BPF": "to load programs and make maps",
    "CAP_NET_ADMIN": "to attach them to the network",
    "CAP_PERFMON": "for what the programs do with pointers",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for. ``settings`` are as the command line gave them, before the kernel was probed.

    ``netns`` is a name, a path or a process id; ``cgroup`` and ``bpffs`` are directories; None is the
    caller's own namespace, the root of cgroup2, and the bpf file system that the mount table shows.
    """

    interfaces: tuple[str, ...]
    settings: Settings
    name: str = "default"
    mode: str = modes.DEFAULT
    netns: str | None = None
    cgroup: str | None = None
    bpffs: str | None = None
    clsact: bool = False  # use it even where the kernel has TCX, for tests
    insist: bool = False  # accelerate although FIONREAD is wrong, or fail


@dataclass(slots=True)
class Plan:
    """What `up` would do here. A context: it holds the namespace and the cgroup open."""

    request: Request
    mode: modes.Mode
    settings: Settings
    netns: NetNs
    netns_cookie: int
    interfaces: tuple[Interface, ...]
    cgroup: Cgroup
    bpffs: BpfFs | None  # None: one has to be mounted
    tcx: bool
    maps: dict[str, MapSpec]
    programs: dict[str, ProgramSpec]
    hooks: tuple[modes.Hook, ...]
    warnings: list[str] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """Close the namespace and the cgroup."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def make(request: Request, *, dry: bool = False) -> Plan:
    """Check everything and return the plan.

    With ``dry`` nothing is asked of the kernel that takes a capability: what it offers is assumed then.
    Raises :class:`~loader.errors.LoaderError`.
    """
    bpffs.check_name(request.name)
    mode = modes.get(request.mode)
    if not request.interfaces:
        raise UsageError("no interface was named", hint="name at least one, such as --iface eth0")
    with ExitStack() as stack:
        netns = stack.enter_context(NetNs.open(request.netns))
        if not dry:
            _refuse_read_only(request)
            check_capabilities(request, netns)
            _refuse_short_lived(request)
        with netns.entered():
            interfaces = _interfaces(request.interfaces)
            cookie = netns_cookie()
            warnings = [
                f"interface {one.name} is down: no client comes in there until it is up"
                for one in interfaces
                if not interface_is_up(one.name)
            ]
            if warning := envoy_warning(request.settings):
                warnings.append(warning)
        cgroup = stack.enter_context(Cgroup.open(request.cgroup))
        found = None if dry and request.bpffs is None else BpfFs.find(request.bpffs)
        if found is None and not dry and not bpffs.DEFAULT_MOUNT.is_dir():
            raise LoaderError(
                f"no bpf file system is mounted, and {bpffs.DEFAULT_MOUNT} does not exist",
                hint="mount one somewhere (mount -t bpf bpf DIR) and name it with --bpffs DIR",
            )
        settings, tcx = request.settings, not request.clsact
        if not dry:
            settings, tcx = _probe(request, mode, warnings)
        settings = replace(settings, netns=cookie)
        if settings.queue_length_at:
            with netns.entered():
                settings = replace(settings, queue_limit=_queue_limit(settings, warnings))
        programs = mode.programs(settings, interfaces)
        return Plan(
            request=request,
            mode=mode,
            settings=settings,
            netns=netns,
            netns_cookie=cookie,
            interfaces=interfaces,
            cgroup=cgroup,
            bpffs=found,
            tcx=tcx,
            maps=mode.maps(settings),
            programs=programs,
            hooks=mode.hooks(settings, interfaces),
            warnings=warnings,
            _stack=stack.pop_all(),
        )


def check_capabilities(request: Request, netns: NetNs) -> None:
    """Raise :class:`~loader.errors.CapabilityError` that names every capability that will be missed."""
    needed = dict(NEEDED)
    if not netns.is_current:
        needed["CAP_SYS_ADMIN"] = "to enter the network namespace"
    elif BpfFs.find(request.bpffs) is None:
        needed["CAP_SYS_ADMIN"] = "to mount a bpf file system"
    missing = missing_capabilities(needed)
    if missing:
        raise CapabilityError(
            "this process lacks " + ", ".join(f"{name} ({needed[name]})" for name in missing),
            missing=missing,
            hint="run it as root, with sudo say"
            if os.geteuid() != 0
            else "this is root without its usual capabilities: give the container or service "
            + " ".join(missing),
        )


def _refuse_read_only(request: Request) -> None:
    """Refuse where the bpf file system is there but may not be written to, as in a sandbox.

    One that is mounted over it would be in the sandbox's mount namespace, and end with that, and the proxy
    too.
    """
    if request.bpffs is None and (found := BpfFs.find(read_only=True)) is not None:
        found.refuse_read_only()


def _refuse_short_lived(request: Request) -> None:
    """Refuse where a bpf file system would have to be mounted, and would end with this process."""
    if request.bpffs is None and BpfFs.find() is None and bpffs.in_mount_namespace_alone():
        raise LoaderError(
            "no bpf file system is mounted here, and one mounted now would end with this process, the proxy "
            f"with it: {bpffs.ALONE}",
            hint=bpffs.ALONE_ADVICE,
        )


def _interfaces(names: Iterable[str]) -> tuple[Interface, ...]:
    found: dict[int, Interface] = {}
    for name in names:
        one = interface(name)
        if one.link_type_name.startswith("type "):
            raise UsageError(
                f"interface {name!r} has link layer {one.link_type_name} (ARPHRD_*): it is not known where "
                "its packets begin",
                hint="name an Ethernet, loopback or IP tunnel interface",
            )
        if has_outer_header(one):
            raise UsageError(
                f"interface {name!r} is a GRE tunnel with many remote ends: its packets begin with the "
                "header of the tunnel, which the programs do not look behind",
                hint="give the tunnel its remote address, or name another interface",
            )
        found.setdefault(one.index, one)
    return tuple(found.values())


def netns_cookie() -> int:
    """Return the cookie of the calling thread's network namespace, which is never used again.

    0 before 5.14.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return 0


def envoy_warning(settings: Settings) -> str:
    """Say what will happen if nobody listens at Envoy's port in this thread's namespace, else nothing."""
    port = settings.envoy_port
    found = listeners(port)
    if not found:
        return (
            f"nothing listens on TCP port {port}, Envoy's: connections to {settings.ports} will be refused "
            "until it does"
        )
    if not any(one.is_any for one in found):
        addresses = ", ".join(sorted(str(one.address) for one in found))
        return (
            f"on TCP port {port}, Envoy's, only {addresses} is listened on: connections to {settings.ports} "
            "at other addresses will be refused; let the listener bind 0.0.0.0 or ::"
        )
    application = (one for one in listeners() if one.port in settings.ports)
    if not any(one.address.version == 6 for one in found) and any(
        one.address.version == 6 for one in application
    ):
        return (
            f"on TCP port {port}, Envoy's, only IPv4 is listened on, by the application IPv6 too: such "
            f"connections to {settings.ports} will be refused; let the listener bind ::"
        )
    return ""


def _probe(request: Request, mode: modes.Mode, warnings: list[str]) -> tuple[Settings, bool]:
    """Return the settings with what this kernel offers, and whether it has TCX.

    Raises :class:`~loader.errors.KernelFeatureError` for what the mode cannot do without.
    """
    from loader.features import Feature, Support, probe, require

    settings = request.settings
    require(*mode.needs(replace(settings, accelerate=False)))
    if settings.accelerate:
        settings = replace(settings, accelerate=_may_accelerate(request, mode, warnings))
    settings = with_offers(settings)
    if not settings.timers:
        warnings.append(
            "this kernel has no timers in maps (5.15): entries of connections that just stop stay in "
            "the flow map until `down`"
        )
    if settings.accelerate:
        settings = with_ulp(with_queue(settings, warnings), warnings)
    if settings.accelerate and not settings.netns_cookie:
        warnings.append(
            "this kernel has no netns cookie (5.15): acceleration can take connections of two network "
            "namespaces with the same addresses for one; name Envoy's own cgroup with --cgroup, or use "
            "--no-accelerate"
        )
    return settings, probe(Feature.TCX).support is not Support.UNSUPPORTED and not request.clsact


def with_offers(settings: Settings) -> Settings:
    """Return the settings without what this kernel has not, where the programs can do without it."""
    from loader.features import Feature, Support, probe

    def has(*features: Feature) -> bool:
        return not any(probe(one).support is Support.UNSUPPORTED for one in features)

    return replace(
        settings,
        timers=settings.timers and has(Feature.TIMER),
        coarse_clock=settings.coarse_clock and has(Feature.COARSE_CLOCK),
        netns_cookie=settings.netns_cookie
        and has(Feature.NETNS_COOKIE_SK_MSG, Feature.NETNS_COOKIE_SOCK_OPS, Feature.NETNS_COOKIE_SOCKOPT),
    )


def with_queue(settings: Settings, warnings: list[str]) -> Settings:
    """Return the settings with where ``struct sock`` has the length of its receive queue, the size of its
    buffer and whose doing that is; as they are where the length says nothing.
    """
    from loader.features import Feature, probe

    found = probe(Feature.QUEUE_LENGTH)
    reason = found.reason
    if found.supported and probe(Feature.PROBE_READ_SK_MSG).supported:
        from loader.elf import kernel_types

        try:
            types = kernel_types()
            locks, bit = divmod(types.bit_offset_of("sock", "sk_userlocks"), 8)
            if sys.byteorder == "big":
                bit = 8 - _USERLOCKS_BITS - bit
            return replace(
                settings,
                # sk_rmem_alloc is another name for it (include/net/sock.h).
                queue_length_at=types.offset_of("sock", "sk_backlog", "rmem_alloc"),
                receive_buffer_at=types.offset_of("sock", "sk_rcvbuf"),
                buffer_locks_at=locks,
                receive_buffer_lock=_RCVBUF_LOCK << bit,
            )
        except (LoaderError, PybpfasmError) as error:
            reason = str(error)
    warnings.append(
        "nothing limits how much waits in the kernel for an application that does not read its accelerated "
        f"connections ({reason}); --no-accelerate does without"
    )
    return settings


def with_ulp(settings: Settings, warnings: list[str]) -> Settings:
    """Return the settings with where a socket of TCP has the protocol upon it, if programs can look there."""
    from loader.features import Feature, probe

    found = probe(Feature.PROBE_READ_SK_MSG)
    reason = found.reason
    if found.supported:
        from loader.elf import kernel_types

        try:
            at = kernel_types().offset_of("inet_connection_sock", "icsk_ulp_ops")
            return replace(settings, ulp_at=at)
        except (LoaderError, PybpfasmError) as error:
            reason = str(error)
    warnings.append(
        "an application that uses kernel TLS must not be accelerated, and is not recognised here "
        f"({reason}): what it sends would leave this host unencrypted; --no-accelerate does without"
    )
    return settings


def _queue_limit(settings: Settings, warnings: list[str]) -> int:
    """Return how much may wait: half of what a receive buffer of this thread's namespace grows to, at most.

    In the other half TCP finds room for what it has already let the sender send.
    """
    try:
        room = int(_TCP_RMEM.read_text(encoding="ascii").split()[2]) // 2
    except (OSError, ValueError, IndexError):
        return settings.queue_limit
    if settings.queue_limit <= room:
        return settings.queue_limit
    if settings.queue_limit != DEFAULT_QUEUE_LIMIT:
        warnings.append(
            f"--queue-limit is {room} here, not {settings.queue_limit}: half of what the sysctl "
            "net.ipv4.tcp_rmem lets a receive queue grow to"
        )
    return max(room, 1)


def _may_accelerate(request: Request, mode: modes.Mode, warnings: list[str]) -> bool:
    """Return whether to accelerate here, and say why not.

    Raises :class:`~loader.errors.KernelFeatureError` if it was insisted on and cannot be.
    """
    from loader.features import Feature, Support, probe, require

    try:
        require(*mode.needs(request.settings))
    except KernelFeatureError as error:
        if request.insist:
            raise KernelFeatureError(
                f"acceleration is not possible: {error}",
                feature=error.feature,
                hint="do without it: --accelerate auto, or never",
            ) from None
        warnings.append(f"connections are not accelerated: {error}")
        return False
    found = probe(Feature.FIONREAD)
    if found.supported:
        return True
    wrong = f"on accelerated connections {found.reason}"
    if found.support is Support.INCONCLUSIVE:
        wrong = f"whether FIONREAD is right on accelerated connections could not be tried ({found.reason})"
    consequence = "an application that asks with it before it reads would wait for ever"
    if request.insist:
        warnings.append(f"{wrong}: {consequence}")
        return True
    warnings.append(
        f"connections are not accelerated: {wrong}, so {consequence}; --accelerate always accelerates all "
        "the same, --no-accelerate is content without"
    )
    return False
