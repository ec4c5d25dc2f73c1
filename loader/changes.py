# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What ``up`` changes of an instance that is there: nothing, or what its owner should read."""

from __future__ import annotations

from typing import Final

from loader.instance import Instance
from loader.plan import Plan
from loader.state import SettingsValue, settings_value

__all__ = ["differences", "lingering", "method"]

# What the command line sets: a field of the settings map, and what it is called there.
_NUMBERS: Final = (
    ("envoy_port", "Envoy's port"),
    ("flow_capacity", "flow capacity"),
    ("handshake_seconds", "handshake timeout"),
    ("linger_seconds", "linger"),
    ("idle_seconds", "idle timeout"),
)


def method(plan: Plan) -> str:
    """How the plan attaches to interfaces: ``tcx`` or ``clsact``."""
    return "tcx" if plan.tcx else "clsact"


def lingering(before: Instance) -> frozenset[str]:
    """The keys of the hooks that only old connections still need."""
    return before.mode.lingers(before.maps) if before.mode is not None else frozenset()


def differences(before: Instance, plan: Plan) -> list[str]:
    """Say what of an instance is not as it is planned, a line each; nothing where all is."""
    old, then = before.settings, before.value
    if old is None or then is None:
        return ["what it was cannot be read: it is damaged, or of another version"]
    new, now = plan.settings, SettingsValue.unpack(SettingsValue.pack(**settings_value(plan)))
    rows = [("ports", str(old.ports), str(new.ports)), ("mark", str(old.mark), str(new.mark))]
    rows += [(called, str(getattr(then, one)), str(getattr(now, one))) for one, called in _NUMBERS]
    if old.queue_length_at and new.queue_length_at:  # else it is not used
        rows.append(("queue limit", str(old.queue_limit), str(new.queue_limit)))
    rows.append(("acceleration", _switch(old.accelerate), _switch(new.accelerate)))
    names = [sorted(one.name for one in interfaces) for interfaces in (before.interfaces, plan.interfaces)]
    rows.append(("interfaces", ", ".join(names[0]), ", ".join(names[1])))
    found = [f"{called}: {was} → {will_be}" for called, was, will_be in rows if was != will_be]
    if (then.netns_inode, then.netns_cookie) != (now.netns_inode, now.netns_cookie):
        found.append("network namespace: another one")
    if then.cgroup_id != now.cgroup_id or then.cgroup != now.cgroup:
        same = " (another one of that name)" if then.cgroup == now.cgroup else ""
        found.append(f"cgroup: {then.cgroup} → {now.cgroup}{same}")
    found += _of_interfaces(before, plan)
    found += _put_right(before, plan)
    if before.raw_settings != SettingsValue.pack(**settings_value(plan)) and not found:
        found.append("programs: those of this version, for what this kernel offers now")
    return found


def _switch(on: bool) -> str:
    return "on" if on else "off"


def _of_interfaces(before: Instance, plan: Plan) -> list[str]:
    """Interfaces that have kept their name and nothing else."""
    there = {one.name: one for one in before.interfaces}
    found = []
    for one in plan.interfaces:
        old = there.get(one.name)
        if old is None:
            continue
        if (old.ifindex, old.link_type) != (one.index, one.link_type):
            found.append(f"interface {one.name}: another one of that name")
        elif old.method != method(plan):
            found.append(f"interface {one.name}: {old.method} → {method(plan)}")
    return found


def _put_right(before: Instance, plan: Plan) -> list[str]:
    """What was not as ``up`` had left it, but for what the plan does without."""
    wanted = {(one.index, one.name) for one in plan.interfaces}
    gone = {one.ifindex for one in before.interfaces} - {index for index, _ in wanted}
    unwanted = {
        one.problem
        for one in before.attached()
        if one.problem and one.hook.interface is not None and one.hook.interface.index in gone
    }
    found = [f"put right: {problem}" for problem in before.drift() if problem not in unwanted]
    idle = before.holders.keys() - {hook.key for hook in plan.hooks} - lingering(before)
    kept = {hook.key for hook in before.hooks()}
    return found + [f"taken off: {key}, which nothing needs" for key in sorted(idle - kept)]
