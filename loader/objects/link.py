# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs on their hooks: links, attaching without one, and what is attached where."""

from __future__ import annotations

import errno
import os
import socket
import struct
from pathlib import Path
from typing import Final, NamedTuple

from loader import perf
from loader import sys as bpf_sys
from loader.capabilities import explain
from loader.errors import (
    ENOTSUPP,
    BpfError,
    ConflictError,
    KernelFeatureError,
    LoaderError,
    UsageError,
    describe_errno,
)
from loader.objects.map import Map
from loader.objects.owned import Owned, PathLike, enum_or_int, open_id, open_kind
from loader.objects.program import Program
from pybpfasm.kernel.defines import BPF_F_AFTER, BPF_F_BEFORE, BPF_F_REPLACE
from pybpfasm.kernel.enums import BPF_F_LINK, AttachType, Cmd, LinkType, ProgType

_NO_DESCRIPTOR: Final = (1 << 32) - 1
_PART: Final = 1 << 16  # bytes to read of an iterator at once
_PATIENCE: Final = 1000  # reads of an iterator that bring nothing


class LinkInfo(NamedTuple):
    """What the kernel says of a link. What does not belong to its kind is None.

    ``ifindex`` of a link whose interface is gone is 0, as is ``cgroup_id`` of one that was detached.
    """

    id: int
    type: int
    prog_id: int
    attach_type: int | None = None
    ifindex: int | None = None
    cgroup_id: int | None = None
    netns_ino: int | None = None
    map_id: int | None = None


class Link(Owned):
    """A program on its hook. It goes off the hook when the last descriptor and the last pin are gone."""

    kind = "link"

    def __init__(self, fd: int, *, name: str = "") -> None:
        super().__init__(fd)
        self.name = name

    @classmethod
    def create(
        cls,
        prog: Program,
        target: int,
        attach_type: int,
        *,
        flags: int = 0,
        relative: int = 0,
        expected_revision: int = 0,
    ) -> Link:
        """Create a link on a descriptor (cgroup, sockmap, network namespace) or an interface index (TCX)."""
        attach = enum_or_int(AttachType, int(attach_type))
        name = attach.name if isinstance(attach, AttachType) else str(attach)
        what = f"program {prog.name!r} at {name}"
        try:
            fd = bpf_sys.link_create(
                prog.fd,
                target,
                int(attach_type),
                flags=flags,
                relative=relative,
                expected_revision=expected_revision,
                what=what,
            )
        except BpfError as error:
            raise explain(error, ("CAP_BPF", "CAP_NET_ADMIN")) from None
        return cls(fd, name=prog.name)

    @classmethod
    def tcx(
        cls,
        prog: Program,
        ifindex: int,
        attach_type: int | None = None,
        *,
        before: Link | Program | None = None,
        after: Link | Program | None = None,
        first: bool = False,
        expected_revision: int = 0,
    ) -> Link:
        """Attach to TCX_INGRESS or TCX_EGRESS of an interface in the calling thread's network namespace.

        ``attach_type`` is by default what the program was declared for, here and below; raises
        :class:`~loader.errors.UsageError` for one that attaches elsewhere. The program goes to
        the end of the chain, to its beginning (``first``), or beside another program or link. With
        ``expected_revision`` (:attr:`Query.revision`) the kernel answers ESTALE if the chain has changed
        since. Raises :class:`~loader.errors.KernelFeatureError` where the kernel has no TCX (before 6.6).
        """
        if sum((before is not None, after is not None, first)) > 1:
            raise ValueError("only one of before, after and first can be said")
        flags, relative = (BPF_F_BEFORE, 0) if first else (0, 0)
        beside = before if before is not None else after
        if beside is not None:
            flags = BPF_F_BEFORE if before is not None else BPF_F_AFTER
            flags |= BPF_F_LINK if isinstance(beside, Link) else 0
            relative = beside.fd
        try:
            return cls.create(
                prog,
                ifindex,
                _attach_type_of(prog, attach_type, "tcx"),
                flags=flags,
                relative=relative,
                expected_revision=expected_revision,
            )
        except BpfError as error:
            if error.errno == errno.ENODEV:
                raise _no_interface(ifindex) from None
            raise

    @classmethod
    def cgroup(cls, prog: Program, cgroup_fd: int, attach_type: int | None = None) -> Link:
        """Attach to a cgroup2 directory, beside what is attached there already (as ALLOW_MULTI does).

        Raises :class:`~loader.errors.KernelFeatureError` for an LSM program where `tracing` does.
        """
        attach_type = _attach_type_of(prog, attach_type, "cgroup")
        if attach_type == AttachType.LSM_CGROUP:
            _check_modules(prog)
        try:
            return cls.create(prog, cgroup_fd, attach_type)
        except BpfError as error:
            if error.errno == errno.EBADF:
                raise error.about(error.what, hint="the descriptor is not of a cgroup2 directory") from None
            if error.errno == errno.EPERM:
                raise error.about(
                    error.what,
                    hint="another program is attached here or above without ALLOW_MULTI and forbids company: "
                    "see `bpftool cgroup tree`",
                ) from None
            raise

    @classmethod
    def netns(cls, prog: Program, netns_fd: int, attach_type: int | None = None) -> Link:
        """Attach to a network namespace (SK_LOOKUP, FLOW_DISSECTOR)."""
        return cls.create(prog, netns_fd, _attach_type_of(prog, attach_type, "netns"))

    @classmethod
    def sockmap(cls, prog: Program, sockmap: Map, attach_type: int | None = None) -> Link:
        """Attach a verdict or parser program to a sockmap or sockhash by a link (6.10; EINVAL before)."""
        return cls.create(prog, sockmap.fd, _attach_type_of(prog, attach_type, "sockmap"))

    @classmethod
    def xdp(cls, prog: Program, ifindex: int, *, flags: int = 0) -> Link:
        """Attach to an interface in the calling thread's network namespace (5.9).

        ``flags`` are ``XDP_FLAGS_*`` of :mod:`pybpfasm.kernel.defines`: without, the driver runs the program
        where it can, else the stack. Raises :class:`~loader.errors.ConflictError` where another program is
        attached.
        """
        try:
            return cls.create(prog, ifindex, AttachType.XDP, flags=flags)
        except BpfError as error:
            if error.errno == errno.EBUSY:
                raise ConflictError(
                    f"another XDP program is attached to the interface with index {ifindex}",
                    hint="an interface takes one: look at `bpftool net`",
                ) from None
            if error.errno in (errno.ENODEV, errno.EINVAL) and not _has_interface(ifindex):
                raise _no_interface(ifindex) from None
            raise

    @classmethod
    def raw_tracepoint(cls, prog: Program, name: str = "") -> Link:
        """Attach a raw tracepoint program to a tracepoint by its name, such as ``"sched_switch"``, by default
        the one that it is for."""
        return cls._opened(prog, name or _place_of(prog, "tracepoint"))

    @classmethod
    def tracing(cls, prog: Program) -> Link:
        """Attach a tracing or LSM program to the function, tracepoint or hook that it was loaded for.

        Raises :class:`~loader.errors.KernelFeatureError` for an LSM program on a kernel that was booted
        without ``bpf`` in its list of security modules: it would attach, and never run.
        """
        if prog.attach_type is not None:
            _attach_type_of(prog, None, "tracing")
        if prog.info().type == ProgType.LSM:
            _check_modules(prog)
        return cls._opened(prog, "")

    @classmethod
    def iterator(cls, prog: Program, elements: Map | None = None, *, pid: int = 0) -> Link:
        """Make an iterator of a program for ``TRACE_ITER`` (5.8), which `iterate` runs.

        ``elements`` is the map whose elements an iterator ``bpf_map_elem`` goes over (5.9). With ``pid``, one
        over tasks or what they have (``task``, ``task_file``, ``task_vma``) sees this process alone (6.1).
        Raises :class:`~loader.errors.UsageError` for what an iterator does not go over.
        """
        if prog.attach_type is not None:
            _attach_type_of(prog, None, "iterator")
        _check_iterator(prog.attach_to, elements, pid)
        of = b""  # union bpf_iter_link_info: {map_fd} or {tid, pid, pid_fd}
        if elements is not None:
            of = struct.pack("=I", elements.fd)
        elif pid:
            of = struct.pack("=III", 0, pid, 0)
        try:
            return cls(
                bpf_sys.iter_link_create(prog.fd, of, what=f"program {prog.name!r} at TRACE_ITER"),
                name=prog.name,
            )
        except BpfError as error:
            hint = ""
            if error.errno == errno.EBADF and elements is None:
                hint = "it goes over the elements of a map: say which"
            elif error.errno == errno.E2BIG:
                hint = "this kernel's iterators take no pid (6.1): compare task_struct's tgid in the program"
            raise explain(error.about(error.what, hint=hint), ("CAP_BPF", "CAP_PERFMON")) from None

    @classmethod
    def _opened(cls, prog: Program, name: str) -> Link:
        what = f"program {prog.name!r}" + (f" at tracepoint {name!r}" if name else "")
        try:
            return cls(bpf_sys.raw_tracepoint_open(prog.fd, name, what=what), name=prog.name)
        except BpfError as error:
            hint = ""
            if error.errno == errno.ENOENT and name:
                hint = "this kernel has no such tracepoint: /sys/kernel/tracing/available_events lists them"
            elif error.errno == errno.ENOENT:
                hint = "a kernel before 5.13 attaches a tracing program once: load it again"
            elif error.errno in (ENOTSUPP, errno.EOPNOTSUPP, errno.EBUSY):
                hint = "the kernel can't attach to this function: see tracing/available_filter_functions"
            raise explain(error.about(what, hint=hint), ("CAP_BPF", "CAP_PERFMON")) from None

    @classmethod
    def tracepoint(cls, prog: Program, name: str = "") -> Link:
        """Attach a tracepoint program to an event by category and name, such as ``"sched/sched_switch"``
        (5.15), by default the one that it is for.

        Raises :class:`~loader.errors.UsageError` for an event that there is not, or where tracefs is not
        mounted.
        """
        name = name or _place_of(prog, "tracepoint")
        return cls._at_event(prog, perf.tracepoint(name), f"tracepoint {name!r}")

    @classmethod
    def kprobe(cls, prog: Program, function: str = "", *, offset: int = 0, at_return: bool = False) -> Link:
        """Attach a kprobe program to a function of the kernel, by default the one that it is for, ``offset``
        bytes into it, or where it returns (5.15)."""
        function = function or _place_of(prog, "function")
        event = perf.probe("kprobe", function, offset, at_return=at_return)
        return cls._at_event(prog, event, f"function {function!r}")

    @classmethod
    def uprobe(cls, prog: Program, path: PathLike, offset: int, *, at_return: bool = False) -> Link:
        """Attach a kprobe program to an executable or library, ``offset`` bytes into its file, or where the
        function there returns (5.15)."""
        event = perf.probe("uprobe", os.fspath(path), offset, at_return=at_return)
        return cls._at_event(prog, event, os.fspath(path))

    @classmethod
    def _at_event(cls, prog: Program, event: int, where: str) -> Link:
        try:
            return cls.create(prog, event, AttachType.PERF_EVENT)
        except BpfError as error:
            if error.errno == errno.EINVAL and not _knows_events(prog):
                raise KernelFeatureError(
                    f"program {prog.name!r} cannot be at {where}: this kernel has no links on perf events",
                    feature="links on perf events (5.15)",
                    hint="use a newer kernel, or a tracing or raw tracepoint program, whose links are older",
                ) from None
            raise error.about(f"program {prog.name!r} at {where}", hint=error.hint) from None
        finally:
            os.close(event)  # the link holds the event

    @classmethod
    def from_pin(cls, path: PathLike) -> Link:
        """Open a pinned link."""
        return cls(open_kind(path, "link"), name=Path(path).name)

    @classmethod
    def from_id(cls, link_id: int) -> Link:
        """Open a link by its id."""
        return cls(open_id(Cmd.LINK_GET_FD_BY_ID, link_id, cls.kind))

    @property
    def id(self) -> int:
        """The kernel's id of the link."""
        return self.info().id

    def info(self) -> LinkInfo:
        """Ask the kernel what the link holds, and where."""
        raw = bpf_sys.LinkInfoStruct()
        bpf_sys.obj_info(self.fd, raw)
        kind = enum_or_int(LinkType, raw.type)
        found: dict[str, int] = {}
        parts: dict[int, tuple[str, ...]] = {
            LinkType.TCX: ("tcx", "ifindex", "attach_type"),
            LinkType.CGROUP: ("cgroup", "cgroup_id", "attach_type"),
            LinkType.NETNS: ("netns", "netns_ino", "attach_type"),
            LinkType.XDP: ("xdp", "ifindex"),
            LinkType.SOCKMAP: ("sockmap", "map_id", "attach_type"),
            LinkType.TRACING: ("tracing", "attach_type"),
        }
        if kind in parts:
            member, *fields = parts[kind]
            found = {field: int(getattr(getattr(raw.of, member), field)) for field in fields}
        if "attach_type" in found:
            found["attach_type"] = enum_or_int(AttachType, found["attach_type"])
        return LinkInfo(id=int(raw.id), type=kind, prog_id=int(raw.prog_id), **found)

    def iterate(self) -> bytes:
        """Run an iterator's program over everything once; return what it has written (``seq_write``,
        ``seq_printf``).

        Where the kernel's buffer of 8 pages is full, the program runs on the same object again, and what it
        had written of it is dropped. Raises :class:`~loader.errors.LoaderError` where it writes more of one
        object than that, or returns 1 for ever.
        """
        try:
            fd = bpf_sys.iter_create(self.fd, what=f"link {self.name!r}")
        except BpfError as error:
            hint = "it is no iterator" if error.errno == errno.EINVAL else ""
            raise explain(error.about(error.what, hint=hint), ("CAP_BPF", "CAP_PERFMON")) from None
        parts: list[bytes] = []
        left = _PATIENCE
        try:
            while True:
                try:
                    part = os.read(fd, _PART)
                except BlockingIOError:
                    # Nothing was written of a million objects, or the program has returned 1.
                    left -= 1
                    if not left:
                        raise
                    continue
                if not part:
                    return b"".join(parts)
                parts.append(part)
                left = _PATIENCE
        except OSError as error:
            hints = {
                errno.E2BIG: "it writes more of one object than 8 pages",
                errno.EAGAIN: "it returns 1, again and again: that asks for the same object once more",
            }
            raise LoaderError(
                f"reading iterator {self.name!r} failed: {describe_errno(error.errno or 0)}",
                hint=hints.get(error.errno or 0, ""),
            ) from None
        finally:
            os.close(fd)

    def update(self, new: Program, old: Program | None = None) -> None:
        """Put another program in place in one step: each packet or call sees the one or the other.

        With ``old`` only if that is the program there now (else EPERM), so that two loaders cannot undo one
        another.
        """
        flags = 0 if old is None else BPF_F_REPLACE
        try:
            bpf_sys.link_update(self.fd, new.fd, flags=flags, old_prog_fd=0 if old is None else old.fd)
        except BpfError as error:
            hint = (
                "the link holds another program than expected" if error.errno == errno.EPERM and old else ""
            )
            raise explain(
                error.about(f"link {self.name!r}", hint=hint), ("CAP_BPF", "CAP_NET_ADMIN")
            ) from None

    def detach(self) -> None:
        """Take the program off its hook now, whatever descriptors and pins of the link there are."""
        try:
            bpf_sys.link_detach(self.fd)
        except BpfError as error:
            raise explain(error.about(f"link {self.name!r}"), ("CAP_BPF", "CAP_NET_ADMIN")) from None

    def __repr__(self) -> str:
        return f"<link {self.name!r} {'closed' if self.closed else f'fd {self._fd}'}>"


# What each of them takes. The kernel takes the number of the target for what the attach type says: an XDP
# program "at a cgroup" would run on the interface whose index is the descriptor's number.
_TAKES: Final = {
    "tcx": frozenset({AttachType.TCX_INGRESS, AttachType.TCX_EGRESS}),
    "xdp": frozenset({AttachType.XDP}),
    "cgroup": frozenset(
        {one for one in AttachType if one.name.startswith("CGROUP_")} | {AttachType.LSM_CGROUP}
    ),
    "tracing": frozenset(
        {
            AttachType.TRACE_RAW_TP,
            AttachType.TRACE_FENTRY,
            AttachType.TRACE_FEXIT,
            AttachType.MODIFY_RETURN,
            AttachType.LSM_MAC,
        }
    ),
    "iterator": frozenset({AttachType.TRACE_ITER}),
    "netns": frozenset({AttachType.SK_LOOKUP, AttachType.FLOW_DISSECTOR}),
    "sockmap": frozenset(
        {
            AttachType.SK_SKB_STREAM_PARSER,
            AttachType.SK_SKB_STREAM_VERDICT,
            AttachType.SK_SKB_VERDICT,
            AttachType.SK_MSG_VERDICT,
        }
    ),
}


def _attach_type_of(prog: Program, given: int | None, where: str) -> int:
    found = prog.attach_type if given is None else given
    if found is None:
        raise UsageError(
            f"program {prog.name!r} does not say where it attaches",
            hint="give the attach type, here or to the program's decorator",
        )
    known = enum_or_int(AttachType, int(found))
    if isinstance(known, AttachType) and known not in _TAKES[where]:
        right = next((name for name, takes in _TAKES.items() if known in takes), "")
        raise UsageError(
            f"program {prog.name!r} attaches as {known.name}, which Link.{where} does not take",
            hint=f"Link.{right} does" if right else "",
        )
    return found


def _place_of(prog: Program, what: str) -> str:
    if not prog.attach_to:
        raise UsageError(
            f"program {prog.name!r} does not say which {what} it is for",
            hint=f'name the {what}, or give attach_to="…" to the program\'s decorator',
        )
    return prog.attach_to


# Those whose link says what of; others look at nothing that it says.
_OVER_MAPS: Final = frozenset({"bpf_map_elem", "bpf_sk_storage_map", "sockmap"})
_OVER_TASKS: Final = frozenset({"task", "task_file", "task_vma"})
_MODULES: Final = Path("/sys/kernel/security/lsm")


def _check_modules(prog: Program) -> None:
    """Raise KernelFeatureError if the kernel was booted without the module that runs LSM programs."""
    try:
        modules = _MODULES.read_text(encoding="ascii").strip()
    except OSError:
        return  # securityfs is not mounted here
    if "bpf" not in modules.split(","):
        raise KernelFeatureError(
            f"program {prog.name!r} would never run: "
            f"'bpf' is none of this kernel's security modules ({modules})",
            feature="the security module bpf",
            hint=f"boot the kernel with lsm={modules},bpf",
        )


def _knows_events(prog: Program) -> bool:
    """Whether the kernel has links on perf events (5.15): it minds that there is no such descriptor."""
    try:
        bpf_sys.link_create(prog.fd, _NO_DESCRIPTOR, AttachType.PERF_EVENT)
    except BpfError as error:
        return error.errno == errno.EBADF
    return True


def _check_iterator(over: str, elements: Map | None, pid: int) -> None:
    """Refuse what the kernel would take for something else: a map's descriptor for the number of a task."""
    if not 0 <= pid < 1 << 31:
        raise UsageError(f"{pid} is not the number of a process")
    if pid and elements is not None:
        raise UsageError("an iterator goes over the elements of a map or is for one process, not both")
    for given, takes, what in ((elements, _OVER_MAPS, "map"), (pid or None, _OVER_TASKS, "process")):
        if given is not None and over and over not in takes:
            raise UsageError(
                f"iterator {over!r} is for no {what}", hint=f"these are: {', '.join(sorted(takes))}"
            )


def _has_interface(ifindex: int) -> bool:
    return any(index == ifindex for index, _ in socket.if_nameindex())


def _no_interface(ifindex: int) -> UsageError:
    return UsageError(
        f"there is no interface with index {ifindex} in this network namespace", hint="look at `ip link`"
    )


# --- attaching without a link -------------------------------------------------------------------------------


def prog_attach(target: int, prog: Program, attach_type: int, *, flags: int = 0) -> None:
    """PROG_ATTACH: attach without a link, to a descriptor or interface index.

    What holds it is the target itself.
    """
    try:
        bpf_sys.prog_attach(target, prog.fd, int(attach_type), flags=flags)
    except BpfError as error:
        raise explain(error.about(f"program {prog.name!r}"), ("CAP_BPF", "CAP_NET_ADMIN")) from None


def prog_detach(target: int, prog: Program, attach_type: int, *, flags: int = 0) -> bool:
    """PROG_DETACH: undo :func:`prog_attach`; return whether that program was attached there."""
    try:
        bpf_sys.prog_detach(target, prog.fd, int(attach_type), flags=flags)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise explain(error.about(f"program {prog.name!r}"), ("CAP_BPF", "CAP_NET_ADMIN")) from None
    return True


def attach_to_sockmap(prog: Program, sockmap: Map, attach_type: int | None = None) -> Link | None:
    """Attach a program to a sockmap or sockhash: by a link where the kernel can (6.10), else directly.

    Returns the link, or None for the direct way, which :func:`prog_detach` undoes and which lasts as long as
    the map.
    """
    attach_type = _attach_type_of(prog, attach_type, "sockmap")
    try:
        return Link.sockmap(prog, sockmap, attach_type)
    except BpfError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, ENOTSUPP):
            raise
    prog_attach(sockmap.fd, prog, attach_type)
    return None


class QueryEntry(NamedTuple):
    """One attached program.

    ``link_id`` is 0 where it was attached without a link, or the kernel does not say.
    """

    prog_id: int
    link_id: int
    flags: int


class Query(NamedTuple):
    """The programs at a hook in the order in which they run.

    ``revision`` counts changes (0: the kernel has none).
    """

    entries: tuple[QueryEntry, ...]
    flags: int
    revision: int

    @property
    def prog_ids(self) -> tuple[int, ...]:
        """The ids of the programs in order."""
        return tuple(entry.prog_id for entry in self.entries)


def prog_query(target: int, attach_type: int, *, flags: int = 0) -> Query:
    """PROG_QUERY: what is attached to a descriptor (cgroup, sockmap, netns) or interface index (TCX)."""
    capacity, with_links = 64, True
    while True:
        try:
            attr, ids, attach_flags, link_ids = bpf_sys.prog_query(
                target, int(attach_type), flags=flags, capacity=capacity, link_ids=with_links
            )
            break
        except BpfError as error:
            if error.errno == errno.ENOSPC and capacity < 1 << 16:
                capacity *= 8
            elif with_links and error.errno in (errno.EINVAL, errno.E2BIG):
                with_links = False  # the kernel is older than these fields, or this hook has none of them
            else:
                raise explain(error, ("CAP_BPF", "CAP_NET_ADMIN")) from None
    entries = tuple(QueryEntry(*row) for row in zip(ids, link_ids, attach_flags, strict=True))
    return Query(entries, int(attr.attach_flags), int(attr.revision))
