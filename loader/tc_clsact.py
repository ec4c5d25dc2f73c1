# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""clsact with cls_bpf filters in direct-action mode: how a program gets to an interface without TCX.

Works through rtnetlink by pyroute2, in the calling thread's network namespace. A filter of ours is known by
its name; the kernel keeps it, and the program in it, until it is removed. A qdisc has no name to know it by,
so :func:`attach` says whether it has made it (:attr:`Attachment.made_qdisc`), and whoever keeps the
attachment keeps that too.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loader.errors import (
    AttachError,
    CapabilityError,
    ConflictError,
    KernelFeatureError,
    LoaderError,
    UsageError,
    describe_errno,
)
from loader.netns import interface_name
from pybpfasm.kernel.enums import AttachType

if TYPE_CHECKING:
    from loader.objects import Program

__all__ = ["Attachment", "Filter", "attach", "detach", "filters", "find", "remove_qdisc_if_unused", "replace"]

# linux/pkt_sched.h: the qdisc's handle and parent, and the parents of filters in its two directions.
_CLSACT_HANDLE, _CLSACT_PARENT = 0xFFFF0000, 0xFFFFFFF1
_PARENTS = {AttachType.TCX_INGRESS: 0xFFFFFFF2, AttachType.TCX_EGRESS: 0xFFFFFFF3}
_ETH_P_ALL = 0x0003  # linux/if_ether.h
# linux/pkt_cls.h, TCA_BPF_*; pyroute2 does not decode these two.
_TCA_BPF_TAG, _TCA_BPF_ID = 10, 11
_DIRECT_ACTION = 1


@dataclass(frozen=True, slots=True)
class Filter:
    """A cls_bpf filter as the kernel lists it.

    ``prog_id`` is 0 and ``tag`` empty where the kernel does not say.
    """

    ifindex: int
    attach_type: AttachType
    priority: int
    handle: int
    name: str
    direct_action: bool
    prog_id: int
    tag: bytes


@dataclass(frozen=True, slots=True)
class Attachment:
    """A filter of ours: where it is, under which name, and whether the qdisc came with it."""

    ifindex: int
    attach_type: AttachType
    name: str
    priority: int
    handle: int
    prog_id: int
    made_qdisc: bool = False


@contextlib.contextmanager
def _route(what: str) -> Iterator[Any]:
    """Open rtnetlink; turn its errors into ours."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise _explain(int(error.code), what) from None


def _explain(code: int, what: str) -> LoaderError:
    message = f"{what}: {describe_errno(code)}"
    if code == errno.EPERM:
        return CapabilityError(message, missing=("CAP_NET_ADMIN",), hint="run as root")
    if code == errno.ENODEV:
        return UsageError(message, hint="there is no such interface in this network namespace: see `ip link`")
    return AttachError(message, hint="look at `tc qdisc show` and `tc filter show dev IF ingress`")


def _describe(ifindex: int) -> str:
    return interface_name(ifindex) or f"interface {ifindex}"


def _parent(attach_type: int) -> int:
    try:
        return _PARENTS[AttachType(attach_type)]
    except (KeyError, ValueError):
        raise ValueError("a clsact filter is at TCX_INGRESS or TCX_EGRESS") from None


# --- the qdisc ----------------------------------------------------------------------------------------------


def _make_qdisc(route: Any, ifindex: int) -> bool:
    """Make sure that the interface has a clsact qdisc; return whether it is new."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        route.tc("add", "clsact", ifindex)
        return True
    except NetlinkError as error:
        code = int(error.code)
        if code in (errno.ENOENT, errno.EOPNOTSUPP):
            raise KernelFeatureError(
                "this kernel has no clsact qdisc",
                feature="clsact",
                hint="load its module (modprobe sch_ingress), or use a kernel with TCX (from 6.6)",
            ) from None
        if code != errno.EEXIST:
            raise
    kind = _qdisc_kind(route, ifindex)
    if kind != "clsact":
        raise ConflictError(
            f"{_describe(ifindex)} has a qdisc of kind {kind or 'unknown'!r} where clsact has to be",
            hint=f"if nobody needs it: tc qdisc del dev {_describe(ifindex)} ingress",
        )
    return False


def _qdisc_kind(route: Any, ifindex: int) -> str:
    for qdisc in route.get_qdiscs(index=ifindex):
        if qdisc["index"] == ifindex and qdisc["parent"] == _CLSACT_PARENT:
            return str(qdisc.get_attr("TCA_KIND"))
    return ""


def remove_qdisc_if_unused(ifindex: int) -> bool:
    """Remove an interface's clsact qdisc if no filter of anybody is left on it.

    Return whether it was removed.

    Only for a qdisc that we have made. Removing a qdisc removes its filters, so one that somebody adds
    between the look and the removal goes too; the kernel offers nothing better.
    """
    if interface_name(ifindex) is None:
        return False  # the interface is gone and its qdisc with it
    with _route(f"the clsact qdisc of {_describe(ifindex)} cannot be removed") as route:
        if _qdisc_kind(route, ifindex) != "clsact":
            return False
        if any(_all_filters(route, ifindex, parent) for parent in _PARENTS.values()):
            return False
        route.tc("del", "clsact", ifindex)
        return True


# --- filters ------------------------------------------------------------------------------------------------


def _all_filters(route: Any, ifindex: int, parent: int) -> list[Any]:
    """Return the messages for all filters of whatever kind in one direction."""
    return [f for f in route.get_filters(index=ifindex, parent=parent) if f["index"] == ifindex]


def _undecoded(options: Any, kind: int) -> bytes:
    """Return the bytes of an attribute that pyroute2 has no name for; empty if it is not there."""
    for slot in options["attrs"]:
        name, nla = slot.cell
        if name != "UNKNOWN":
            continue
        head = nla.data[nla.offset : nla.offset + nla.length]
        if int.from_bytes(head[2:4], sys.byteorder) & 0x3FFF == kind:
            return bytes(head[4:])
    return b""


def _list(route: Any, ifindex: int, attach_type: int) -> list[Filter]:
    found = []
    for message in _all_filters(route, ifindex, _parent(attach_type)):
        options = message.get_attr("TCA_OPTIONS")
        # The kernel lists each priority once more without options, for the chain itself.
        if message.get_attr("TCA_KIND") != "bpf" or options is None or not message["handle"]:
            continue
        found.append(
            Filter(
                ifindex=ifindex,
                attach_type=AttachType(attach_type),
                priority=int(message["info"]) >> 16,
                handle=int(message["handle"]),
                name=str(options.get_attr("TCA_BPF_NAME") or ""),
                direct_action=bool(int(options.get_attr("TCA_BPF_FLAGS") or 0) & _DIRECT_ACTION),
                prog_id=int.from_bytes(_undecoded(options, _TCA_BPF_ID)[:4], sys.byteorder),
                tag=_undecoded(options, _TCA_BPF_TAG)[:8],
            )
        )
    return found


def filters(ifindex: int, attach_type: int) -> list[Filter]:
    """Return the cls_bpf filters of an interface in one direction, in the order in which they run."""
    with _route(f"the filters of {_describe(ifindex)} cannot be read") as route:
        return _list(route, ifindex, attach_type)


def find(ifindex: int, attach_type: int, name: str) -> Filter | None:
    """Return the cls_bpf filter of that name, or None."""
    return next((f for f in filters(ifindex, attach_type) if f.name == name), None)


def attach(prog: Program, ifindex: int, attach_type: int, *, name: str, priority: int = 0) -> Attachment:
    """Attach a program in direct-action mode, making the qdisc where there is none.

    ``attach_type`` is TCX_INGRESS or TCX_EGRESS, as for a TCX link. ``name`` (at most 255 bytes) is what
    finds the filter again. ``priority`` 0 lets the kernel choose a free one before all others. Whatever
    fails, nothing is left behind. Raises :class:`~loader.errors.ConflictError` if a filter of that name is
    there.
    """
    where = f"{_describe(ifindex)} {AttachType(attach_type).name.removeprefix('TCX_').lower()}"
    parent = _parent(attach_type)
    with _route(f"program {prog.name!r} cannot be attached to {where} by clsact") as route:
        made = _make_qdisc(route, ifindex)
        try:
            if any(f.name == name for f in _list(route, ifindex, attach_type)):
                raise ConflictError(
                    f"{where} has a filter named {name!r} already", hint="take that instance down first"
                )
            route.tc(
                "add-filter",
                "bpf",
                ifindex,
                0,
                fd=prog.fd,
                name=name,
                parent=parent,
                prio=priority,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )
            added = next(f for f in _list(route, ifindex, attach_type) if f.name == name)
        except BaseException:
            if made:
                route.tc("del", "clsact", ifindex)
            raise
    return Attachment(
        ifindex=ifindex,
        attach_type=AttachType(attach_type),
        name=name,
        priority=added.priority,
        handle=added.handle,
        prog_id=prog.id,
        made_qdisc=made,
    )


def replace(attachment: Attachment, new: Program, old: Program | None = None) -> Attachment:
    """Put another program into the filter in one step; return the attachment as it is now.

    With ``old`` only if the filter holds that program. Raises :class:`~loader.errors.ConflictError` if it
    holds another, :class:`~loader.errors.AttachError` if there is no such filter any more.
    """
    with _route(f"filter {attachment.name!r} of {_describe(attachment.ifindex)} cannot be replaced") as route:
        there = _ours(route, attachment)
        if there is None:
            raise AttachError(
                f"there is no filter {attachment.name!r} on {_describe(attachment.ifindex)} any more",
                hint="somebody has removed it: take the instance down and up again",
            )
        if old is not None and there.prog_id not in (0, old.id):
            raise ConflictError(
                f"filter {attachment.name!r} of {_describe(attachment.ifindex)} holds another program "
                f"(id {there.prog_id}) than expected (id {old.id})",
                hint="another loader is at work: look at `status`",
            )
        route.tc(
            "change-filter",
            "bpf",
            attachment.ifindex,
            there.handle,
            fd=new.fd,
            name=attachment.name,
            parent=_parent(attachment.attach_type),
            prio=there.priority,
            protocol=_ETH_P_ALL,
            direct_action=True,
        )
    return Attachment(
        ifindex=attachment.ifindex,
        attach_type=attachment.attach_type,
        name=attachment.name,
        priority=there.priority,
        handle=there.handle,
        prog_id=new.id,
        made_qdisc=attachment.made_qdisc,
    )


def _ours(route: Any, attachment: Attachment) -> Filter | None:
    return next(
        (f for f in _list(route, attachment.ifindex, attachment.attach_type) if f.name == attachment.name),
        None,
    )


def detach(attachment: Attachment, *, remove_qdisc: bool | None = None) -> bool:
    """Remove exactly our filter; return whether it was there.

    The qdisc goes as well if it came with the attachment (or ``remove_qdisc`` says so) and no filter of
    anybody is left on it. An interface that is gone counts as done.
    """
    if interface_name(attachment.ifindex) is None:
        return False
    with _route(f"filter {attachment.name!r} of {_describe(attachment.ifindex)} cannot be removed") as route:
        there = _ours(route, attachment) if _qdisc_kind(route, attachment.ifindex) == "clsact" else None
        if there is not None:
            route.tc(
                "del-filter",
                "bpf",
                attachment.ifindex,
                there.handle,
                parent=_parent(attachment.attach_type),
                prio=there.priority,
                protocol=_ETH_P_ALL,
            )
    if attachment.made_qdisc if remove_qdisc is None else remove_qdisc:
        remove_qdisc_if_unused(attachment.ifindex)
    return there is not None
