# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``up``: bring an instance up, or change the one of that name, in one step or not at all.

Everything is made with descriptors that ``up`` owns, pinned in a staging directory, and that gets the
instance's name by one rename. So whatever ends it before, the kernel takes everything back by itself; what is
left is at most a staging directory, which the next ``up`` or ``down`` removes. Signals wait until the one or
the other is reached.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

from loader import features
from loader import plan as planning
from loader.bpffs import Staging
from loader.changes import differences, lingering, method
from loader.errors import AttachError, BpfError, ConflictError, LoaderError
from loader.holders import DirectHolder, FilterHolder, Holder, LinkHolder, has_clsact
from loader.instance import Instance, removal_rank
from loader.modes import Hook, Target
from loader.netns import Interface
from loader.objects import Link, Map, Program, attach_to_sockmap, prog_query
from loader.plan import Plan, Request
from loader.session import Result, Session, changing
from loader.state import InterfaceValue, PortRange, SettingsValue, settings_value, state_map
from loader.verifier import VerifierError
from programs.settings import Ports
from pybpfasm.kernel.enums import AttachType
from pybpfasm.layout import Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec

__all__ = ["up"]

MANY_RANGES: Final = 1000
OUR_PROGRAMS: Final = "pba_"  # how the names of the proxy's programs begin

Clock = Callable[[str], None]


def up(request: Request, *, clock: Clock = lambda step: None) -> Result:
    """Bring an instance up, or change the one of that name, in one step or not at all.

    ``clock`` is called with the name of each step that has been done. Raises
    :class:`~loader.errors.LoaderError`.
    """
    with planning.make(request) as plan:
        clock("check and assemble")
        with changing(request.bpffs, create=True) as session:
            assert session is not None
            clock("lock")
            result = _up(plan, session, clock)
            features.save()  # the next command of this boot knows what was asked of the kernel
            return result


def _up(plan: Plan, session: Session, clock: Clock) -> Result:
    request, fs = plan.request, session.fs
    final = fs.path(request.name)
    result = Result(request.name, True, final, list(plan.warnings), plan)
    with ExitStack() as stack:
        before = stack.enter_context(Instance(final)) if final.is_dir() else None
        result.created = before is None
        _refuse_conflicts(plan, session, before)
        if before is not None:
            result.changes = differences(before, plan)
            if not result.changes:
                result.changed = False
                return result
            result.warnings += _about_change(before, plan)
        maps, kept = _maps(plan, before, stack)
        clock("maps")
        fds = {spec.name: maps[pin].fd for pin, spec in plan.maps.items()}
        programs = {}
        for key, spec in plan.programs.items():
            session.checkpoint()
            programs[key] = stack.enter_context(_loaded(spec, fds, plan.settings.ports))
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
            for key in (before.holders.keys() - holders.keys()) & lingering(before):
                holders[key] = before.holders[key]
                staging.pin(before.programs[key], f"programs/{key}")
        session.checkpoint()
        for key, holder in holders.items():
            if holder.link is not None:
                staging.pin(holder.link, f"links/{key}")
        staging.publish(replace=before is not None)
        undo.pop_all()
        stay = set(map(id, holders.values()))
        for key in sorted(obsolete, key=removal_rank):
            if id(obsolete[key]) not in stay:
                obsolete[key].remove()
        clock("publish")
    return result


def _loaded(spec: ProgramSpec, fds: dict[str, int], ports: Ports) -> Program:
    try:
        return Program.load(spec, fds)
    except (VerifierError, BpfError) as error:
        # Each range is two comparisons, and no kernel takes a jump over all of very many.
        if len(ports.ranges) < MANY_RANGES or error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        reason = error.reason if isinstance(error, VerifierError) else error.message
        raise LoaderError(
            f"the kernel takes no program with {len(ports.ranges)} separate ports or ranges: {reason}",
            hint="name fewer, or ranges that hold more",
        ) from error


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


def _refuse_conflicts(plan: Plan, session: Session, before: Instance | None) -> None:
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
    plan: Plan, session: Session, index: int, name: str, attach_type: AttachType, own: set[int]
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
    if before is not None and lingering(before):
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
            "method": method(plan),
            "made_qdisc": int(_makes_qdisc(plan, before, one)),
        }
        for one in plan.interfaces
    ]
    ports = [{"first": first, "last": last} for first, last in plan.settings.ports.ranges]
    contents: tuple[tuple[str, type[Struct], list[dict[str, Any]]], ...] = (
        ("settings", SettingsValue, [settings_value(plan)]),
        ("ports", PortRange, ports),
        ("interfaces", InterfaceValue, interfaces),
    )
    for name, kind, values in contents:
        one = stack.enter_context(Map.create(state_map(f"{OUR_PROGRAMS}{name}", kind, len(values))))
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
    session: Session,
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
        if hook.interface is not None and not (same_netns and old and old.method == method(plan)):
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
