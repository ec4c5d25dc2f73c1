# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What holds a program on its hook: a link, a clsact filter, or the target itself.

A :class:`Holder` is the same to its user whichever it is: it says which program is there, puts another in
its place in one step, and takes it off.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Protocol

from loader.errors import AttachError, BpfError, LoaderError
from loader.netns import NetNs
from loader.objects import Link, Map, Program, prog_attach, prog_detach, prog_query
from pybpfasm.kernel.enums import AttachType

if TYPE_CHECKING:
    from loader.tc_clsact import Attachment

__all__ = ["DirectHolder", "FilterHolder", "Holder", "Identity", "LinkHolder"]

# What is attached where: the attach type, and the index of an interface or the id of a cgroup or map.
Identity = tuple[int, int]

_GONE = frozenset({errno.ENOLINK, errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP})


class Holder(Protocol):
    """Holds one program on one hook."""

    @property
    def method(self) -> str:
        """``tcx``, ``clsact``, ``link`` or ``map``."""
        ...

    @property
    def link(self) -> Link | None:
        """The link, where that is what holds the program."""
        ...

    def identity(self) -> Identity:
        """Return what is attached where; the number is 0 where that is gone."""
        ...

    def program_id(self) -> int | None:
        """Return the id of the program that is there, 0 for none, None where the kernel does not say."""
        ...

    def put(self, new: Program, old: Program) -> None:
        """Put a program in the place of another, which must be there, in one step."""
        ...

    def remove(self) -> None:
        """Take the program off; what is gone already counts as done."""
        ...


class LinkHolder:
    """A BPF link, which somebody else owns."""

    def __init__(self, link: Link) -> None:
        self.link: Link | None = link
        self._link = link

    @property
    def method(self) -> str:
        """``tcx`` or ``link``."""
        return "tcx" if self._link.info().ifindex is not None else "link"

    def identity(self) -> Identity:
        """As the link's information says."""
        info = self._link.info()
        for number in (info.ifindex, info.cgroup_id, info.map_id, info.netns_ino):
            if number is not None:
                return int(info.attach_type or 0), number
        return int(info.attach_type or 0), 0

    def program_id(self) -> int | None:
        """Return the program of the link; 0 if the link is detached."""
        return self._link.info().prog_id if self.identity()[1] else 0

    def put(self, new: Program, old: Program) -> None:
        """LINK_UPDATE with BPF_F_REPLACE."""
        self._link.update(new, old)

    def remove(self) -> None:
        """LINK_DETACH, so that neither another descriptor nor another pin keeps the program there."""
        try:
            self._link.detach()
        except BpfError as error:
            if error.errno not in _GONE:
                raise


class FilterHolder:
    """A cls_bpf filter under clsact in a network namespace, which somebody else owns."""

    method = "clsact"
    link: Link | None = None

    def __init__(self, attachment: Attachment, netns: NetNs) -> None:
        self.attachment = attachment
        self._netns = netns

    @staticmethod
    def name(instance: str) -> str:
        """Return the name of an instance's filters."""
        return f"pybpfasm-{instance}"

    @classmethod
    def create(
        cls,
        program: Program,
        ifindex: int,
        attach_type: AttachType,
        instance: str,
        netns: NetNs,
        made_qdisc: bool,
    ) -> FilterHolder:
        """Attach a program; ``made_qdisc`` says that the qdisc was not there before the instance."""
        from dataclasses import replace

        from loader import tc_clsact

        with netns.entered():
            made = tc_clsact.attach(program, ifindex, attach_type, name=cls.name(instance))
        return cls(replace(made, made_qdisc=made.made_qdisc or made_qdisc), netns)

    @classmethod
    def of(
        cls, ifindex: int, attach_type: AttachType, instance: str, netns: NetNs, made_qdisc: bool
    ) -> FilterHolder:
        """Return the holder of a filter that an earlier ``up`` has made, whether it is still there or not."""
        from loader.tc_clsact import Attachment

        attachment = Attachment(ifindex, attach_type, cls.name(instance), 0, 0, 0, made_qdisc)
        return cls(attachment, netns)

    def identity(self) -> Identity:
        """The interface; 0 where its filter is gone."""
        present = self.program_id() != 0
        return int(self.attachment.attach_type), self.attachment.ifindex if present else 0

    def program_id(self) -> int | None:
        """Ask for the filter."""
        from loader import tc_clsact

        with self._netns.entered():
            try:
                found = tc_clsact.find(
                    self.attachment.ifindex, self.attachment.attach_type, self.attachment.name
                )
            except LoaderError:
                return 0  # neither qdisc nor interface
        return 0 if found is None else found.prog_id or None

    def put(self, new: Program, old: Program) -> None:
        """Change the filter."""
        from loader import tc_clsact

        with self._netns.entered():
            self.attachment = tc_clsact.replace(self.attachment, new, old)

    def remove(self) -> None:
        """Remove the filter, and the qdisc if it is ours and no other filter is on it."""
        from loader import tc_clsact

        with self._netns.entered(), contextlib.suppress(AttachError):
            tc_clsact.detach(self.attachment)


def has_clsact(ifindex: int) -> bool:
    """Whether an interface of the calling thread's namespace has a clsact qdisc."""
    from pyroute2 import IPRoute

    with IPRoute() as route:
        return any(
            qdisc["index"] == ifindex and qdisc.get_attr("TCA_KIND") == "clsact"
            for qdisc in route.get_qdiscs(index=ifindex)
        )


class DirectHolder:
    """A program that a sockmap or sockhash holds itself, where the kernel has no links on these."""

    method = "map"
    link: Link | None = None

    def __init__(self, target: Map, program: Program | None, attach_type: AttachType) -> None:
        self._map = target
        self._program = program
        self._attach_type = attach_type

    def identity(self) -> Identity:
        """The map; 0 where it holds no program any more."""
        return int(self._attach_type), 0 if self.program_id() == 0 else self._map.id

    def program_id(self) -> int | None:
        """PROG_QUERY on the map, from 5.16."""
        try:
            return next(iter(prog_query(self._map.fd, self._attach_type).prog_ids), 0)
        except BpfError:
            return None

    def put(self, new: Program, old: Program) -> None:
        """Attach the new program: it takes the place of the old one."""
        prog_attach(self._map.fd, new, self._attach_type)
        self._program = new

    def remove(self) -> None:
        """Detach."""
        if self._program is not None:
            prog_detach(self._map.fd, self._program, self._attach_type)
