# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``down``: remove an instance, in whatever state it is; with `drain` its connections may end first."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from loader import bpffs, features
from loader.bpffs import BpfFs, remove_tree
from loader.capabilities import missing_capabilities
from loader.errors import CapabilityError, LoaderError
from loader.holders import FilterHolder, Holder, has_clsact
from loader.instance import Instance, namespaces, removal_rank
from loader.modes import Target
from loader.netns import Interface, NetNs
from loader.objects import Program
from loader.session import Result, Session, changing
from pybpfasm.kernel.enums import AttachType, MapType

__all__ = ["down"]


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
    result = Result(name, False)
    with changing(path, create=False) as session:
        if session is None and (fs := BpfFs.find(path, read_only=True)) and fs.path(name).is_dir():
            fs.refuse_read_only()
        directory = None if session is None else session.fs.path(name)
        if session is not None and directory is not None and directory.is_dir():
            warnings = _drain(directory, session, drain, tell) if drain > 0 else []
            result = Result(name, True, directory, warnings=warnings + _dismantle(directory))
        if session is None or not session.fs.instances():
            features.discard()  # nothing stays: the next `up` asks the kernel again
    return result


def _drain(directory: Path, session: Session, seconds: float, tell: Callable[[int], None]) -> list[str]:
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
        for key in sorted(instance.holders, key=removal_rank):
            instance.holders[key].remove()
        filtered = [one for one in instance.interfaces if one.method == "clsact"]
        if not instance.complete:
            found = _remove_orphans(instance)
            lost = [one.name for one in filtered if one.ifindex not in found]
        else:
            lost = [one.name for one in filtered if instance.netns is None]
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


def _remove_orphans(instance: Instance) -> set[int]:
    """Remove the filters of an instance that cannot say where they are; return the interfaces that had some.

    They are looked for in every network namespace that can be found. In this one the name tells them, in
    others the program as well: there may be an instance of the same name, pinned elsewhere.
    """
    programs = {one.id for one in instance.programs.values()}
    made = {one.ifindex: bool(one.made_qdisc) for one in instance.interfaces}
    touched: set[int] = set()
    if any(link.info().ifindex is not None for link in instance.links.values()):
        return touched  # its hooks on interfaces are links
    for place in namespaces(None):
        with contextlib.suppress(LoaderError, OSError), NetNs.open(place) as netns, netns.entered():
            for index, _ in socket.if_nameindex():
                if not has_clsact(index):
                    continue
                for attach_type in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS):
                    one = FilterHolder.of(
                        index, attach_type, instance.name, netns, made_qdisc=made.get(index, False)
                    )
                    there = one.program_id()
                    if there in programs or (place is None and there != 0):
                        one.remove()
                        touched.add(index)
    return touched
