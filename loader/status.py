# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``status``: what an instance is, what it does, and what is not as it should be; for programs and people."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from loader.errors import LoaderError
from loader.health import SIGNS, Verdict, examine, oddities
from loader.holders import FilterHolder
from loader.instance import Attached, Instance
from loader.modes import Hook, Target
from loader.netns import NetNs, interface_is_up, interface_name, listeners
from loader.objects import Map, Program, prog_query
from loader.session import is_changing
from programs.settings import Ports
from pybpfasm.kernel.enums import MapType

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["document", "hook_place", "render"]

WIDTH = 100  # columns that the tables may need
# Maps whose entries cannot be counted from outside.
_UNCOUNTED = frozenset({MapType.SK_STORAGE, MapType.ARRAY, MapType.PERCPU_ARRAY})


def document(instance: Instance) -> dict[str, Any]:
    """Return everything that is known of an instance, as plain data for JSON.

    ``counters`` by hook and name, summed over the CPUs; ``hooks`` each with its program, ``maps`` with their
    fill, ``settings``, ``envoy``, ``application``, and ``drift``: one line for each thing that is not as
    ``up`` left it; ``busy`` says that a loader is at work at the moment. ``remarks`` are what
    :mod:`loader.health` has to say, ``healthy`` that nothing of it is bad.
    """
    netns = instance.netns
    drift = instance.drift()
    if netns is None and instance.complete:
        drift.append("the network namespace of its interfaces is gone, or hidden from this process")
    mode, settings = instance.mode, instance.settings
    found: dict[str, Any] = {
        "name": instance.name,
        "path": str(instance.path),
        "settings": _settings(instance),
        "hooks": [_hook(one, netns) for one in instance.attached()],
        "counters": mode.counters(instance.maps) if mode is not None else {},
        "maps": [_map(name, one) for name, one in sorted(instance.maps.items())],
        "envoy": _envoy(settings.envoy_port, netns) if settings is not None else {},
        "application": _application(settings.ports, netns) if settings is not None else {},
    }
    found["busy"] = is_changing(instance.path)
    found["drift"] = drift + [one.found for one in oddities(found)]
    remarks = examine(found)
    found["healthy"] = not any(one.verdict is Verdict.BAD for one in remarks)
    found["remarks"] = [asdict(one) | {"verdict": one.verdict.value} for one in remarks]
    return found


def _settings(instance: Instance) -> dict[str, Any]:
    value, settings = instance.value, instance.settings
    if value is None or settings is None:
        return {}
    return {
        "mode": value.mode,
        "ports": str(settings.ports),
        "envoy_port": settings.envoy_port,
        "mark": str(settings.mark),
        "accelerate": settings.accelerate,
        "interfaces": [one.name for one in instance.interfaces],
        "netns": value.netns,
        "netns_inode": value.netns_inode,
        "cgroup": value.cgroup,
        "cgroup_id": value.cgroup_id,
        "flow_capacity": settings.flow_capacity,
        "socket_capacity": settings.socket_capacity,
        "handshake_seconds": settings.handshake_seconds,
        "linger_seconds": settings.linger_seconds,
        "idle_seconds": settings.idle_seconds,
        "queue_limit": settings.queue_limit if settings.queue_length_at else None,
        "timers": settings.timers,
        "coarse_clock": settings.coarse_clock,
        "netns_cookie": settings.netns_cookie,
    }


def _hook(one: Attached, netns: NetNs | None) -> dict[str, Any]:
    hook, link = one.hook, one.link
    method = one.holder.method if one.holder is not None else ""
    found: dict[str, Any] = {"hook": hook.kind, "method": method, "attached": not one.problem}
    if hook.interface is not None:
        found["interface"] = hook.interface.name
        found["ifindex"] = hook.interface.index
        if netns is not None:
            with netns.entered():
                name = interface_name(hook.interface.index)
                if name is not None:
                    found["interface_up"] = interface_is_up(name)
                if name is not None and name != hook.interface.name:
                    found["interface"], found["configured"] = name, hook.interface.name
                found["beside"] = _beside(one)
    if link is not None:
        found["link_id"] = link.id
    if one.program is not None:
        details = one.program.info()
        found["program"] = {
            "id": details.id,
            "name": details.name,
            "tag": details.tag.hex(),
            "run_count": details.run_cnt,
            "run_time_ns": details.run_time_ns,
        }
    if one.problem:
        found["problem"] = one.problem
    return found


def _beside(one: Attached) -> list[dict[str, Any]]:
    """The other programs at a hook of an interface, and whether they run before ours or after it."""
    if one.problem:
        return []
    found: list[dict[str, Any]] = []
    runs = "before"
    for prog_id, ours in _chain(one):
        if ours:
            runs = "after"
            continue
        name = "?"
        with contextlib.suppress(LoaderError):
            with Program.from_id(prog_id) as program:
                name = program.info().name
        found.append({"program_id": prog_id, "name": name, "runs": runs})
    return found


def _chain(one: Attached) -> list[tuple[int, bool]]:
    """The programs that run at a hook of an interface, in order, each with whether it is the hook's own."""
    interface, attach_type = one.hook.interface, one.hook.attach_type
    assert interface is not None
    if isinstance(one.holder, FilterHolder):
        from loader import tc_clsact

        own = one.holder.attachment.name
        return [(each.prog_id, each.name == own) for each in tc_clsact.filters(interface.index, attach_type)]
    link = one.link
    if link is None:
        return []
    return [
        (each.prog_id, each.link_id == link.id) for each in prog_query(interface.index, attach_type).entries
    ]


def _map(name: str, one: Map) -> dict[str, Any]:
    kind = one.type.name.lower() if isinstance(one.type, MapType) else str(one.type)
    found: dict[str, Any] = {"map": name, "id": one.id, "type": kind, "max_entries": one.max_entries}
    if one.type not in _UNCOUNTED:
        found["entries"] = one.count()
    return found


def _envoy(port: int, netns: NetNs | None) -> dict[str, Any]:
    """Where Envoy listens; ``listening`` is None where that cannot be known."""
    if netns is None:
        return {"port": port, "listening": None, "addresses": []}
    with netns.entered():
        addresses = sorted({str(one.address) for one in listeners(port)})
    return {"port": port, "listening": bool(addresses), "addresses": addresses}


def _application(ports: Ports, netns: NetNs | None) -> dict[str, Any]:
    """On which intercepted ports somebody listens, and whether over IPv6; None where that cannot be known."""
    if netns is None:
        return {"listening": None, "ipv6": None}
    with netns.entered():
        found = [one for one in listeners() if one.port in ports]
    return {
        "listening": sorted({one.port for one in found}),
        "ipv6": any(one.address.version == 6 for one in found),
    }


def hook_place(hook: Mapping[str, Any]) -> str:
    """Where a hook of the document is, in a word."""
    return str(
        hook.get("interface") or ("cgroup" if hook["hook"] in ("getsockopt", "sockops") else "sockets")
    )


def where(hook: Hook) -> str:
    """Where a hook of a plan is, in a word."""
    if hook.interface is not None:
        return hook.interface.name
    return hook.map or hook.target.value if hook.target is Target.MAP else hook.target.value


def _taken(status: Mapping[str, Any]) -> str:
    """How many connections have gone to Envoy: none is what one sees at the wrong interface."""
    taken = status["counters"]["ingress"]["new_flows"]
    if not taken:
        return "  no connection has been taken to Envoy yet"
    known = next((one["entries"] for one in status["maps"] if one["map"] == "flows"), 0)
    return f"  {taken:,} connection(s) have been taken to Envoy, {known:,} are known now"


_COLORS: Final = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.BAD: "red"}


def _sign(verdict: Verdict) -> str:
    return f"[{_COLORS[verdict]}]{SIGNS[verdict]}[/{_COLORS[verdict]}]"


def render(status: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the document for people."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    out = console or Console(highlight=False)
    if console is None and out.width < WIDTH:
        out.width = WIDTH  # a line that wraps can be read, a name that is cut cannot

    def table(title: str, *columns: str) -> Table:
        return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)

    settings, envoy = status["settings"], status["envoy"]
    good, verdict = (Verdict.GOOD, "is") if status["healthy"] else (Verdict.BAD, "is not")
    notes = "; see what ! says" if status["healthy"] and status["remarks"] else ""
    out.print(f"{_sign(good)} [bold]{status['name']}[/bold] {verdict} as it should be{notes}")
    if settings:
        out.print(
            f"ports {settings['ports']} on {', '.join(settings['interfaces'])} to Envoy on "
            f"{settings['envoy_port']}, mark {settings['mark']}, "
            f"{'accelerated' if settings['accelerate'] else 'not accelerated'}",
            markup=False,
            soft_wrap=True,
        )
        netns = f", network namespace {settings['netns']}" if settings["netns"] else ""
        where = f"cgroup {settings['cgroup']}{netns}, pinned at {status['path']}"
        out.print(where, markup=False, soft_wrap=True)
    if envoy and envoy["listening"]:
        addresses = " and ".join(envoy["addresses"])
        out.print(f"{_sign(Verdict.GOOD)} Envoy's port {envoy['port']} is listened on, at {addresses}")
    if settings:
        out.print(_taken(status), markup=False)
    remarks = status["remarks"]
    for remark, following in zip_longest(remarks, remarks[1:]):
        out.print(f"{_sign(Verdict(remark['verdict']))} ", end="")
        out.print(remark["found"], markup=False, soft_wrap=True)
        # What helps against several things is said once, below the last of them.
        if remark["advice"] and not (following and following["advice"] == remark["advice"]):
            out.print(f"    → {remark['advice']}", markup=False, soft_wrap=True)

    hooks = table("Hooks", "hook", "where", "by", "program", "runs", "ns/run", "")
    for hook in status["hooks"]:
        program = hook.get("program")
        runs = program["run_count"] if program else 0
        hooks.add_row(
            hook["hook"],
            escape(hook_place(hook)),
            hook["method"],
            f"{program['name']} {program['id']}" if program else "",
            str(runs) if runs else "",
            f"{program['run_time_ns'] / runs:.0f}" if program and runs else "",
            "[green]attached[/green]" if hook["attached"] else "[red]not attached[/red]",
        )
        for other in hook.get("beside", ()):
            hooks.add_row(
                "", "", "", escape(f"{other['name']} {other['program_id']}"), "", "", f"{other['runs']} ours"
            )
    out.print(hooks)
    counters = table("Counters", "hook", "what", "number")
    for hook_name, named in status["counters"].items():
        for name, value in named.items():
            if value:
                color = "red" if name.startswith(("dropped", "failed")) else "default"
                counters.add_row(hook_name, f"[{color}]{name}[/{color}]", f"{value:,}")
                hook_name = ""
    if counters.row_count:
        out.print(counters)
    else:
        out.print("All counters are 0.")
    maps = table("Maps", "map", "type", "entries", "of")
    for one in status["maps"]:
        maps.add_row(one["map"], one["type"], str(one.get("entries", "")), str(one["max_entries"] or ""))
    out.print(maps)
