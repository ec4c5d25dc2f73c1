# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``doctor``: what this host and its kernel offer, what is missing, and what to do about it.

Changes nothing. Every line is a :class:`Finding`: found by trying wherever that is possible.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from loader.capabilities import missing_capabilities
from loader.errors import LoaderError
from loader.features import Feature, Support, forget, probe_all
from loader.health import SIGNS, Verdict
from loader.plan import NEEDED

__all__ = ["Finding", "Verdict", "examine", "run"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what, what was found, and what to do where it is not good."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


# What happens without a feature, and whether the proxy still works.
_WITHOUT: Final[dict[Feature, tuple[Verdict, str]]] = {
    Feature.TCX: (Verdict.NOTE, "clsact is used instead"),
    Feature.CLSACT: (Verdict.NOTE, "needed only where there is no TCX"),
    Feature.LINK_UPDATE: (Verdict.BAD, "settings cannot be changed in place: use a kernel from 5.7"),
    Feature.CGROUP_GETSOCKOPT_LINK: (
        Verdict.BAD,
        "Envoy cannot learn the original destination: use a kernel from 5.7",
    ),
    Feature.CGROUP_SOCK_OPS_LINK: (Verdict.NOTE, "connections are not accelerated"),
    Feature.SK_MSG: (Verdict.NOTE, "connections are not accelerated"),
    Feature.SOCKHASH: (Verdict.NOTE, "connections are not accelerated"),
    Feature.SK_STORAGE_SK_MSG: (Verdict.NOTE, "connections are not accelerated"),
    Feature.SOCKMAP_LINK: (Verdict.NOTE, "sk_msg is attached without a link"),
    Feature.NETNS_COOKIE_SK_MSG: (
        Verdict.NOTE,
        "acceleration cannot tell network namespaces apart: name Envoy's own --cgroup",
    ),
    Feature.NETNS_COOKIE_SOCK_OPS: (
        Verdict.NOTE,
        "acceleration cannot tell network namespaces apart: name Envoy's own --cgroup",
    ),
    Feature.NETNS_COOKIE_SOCKOPT: (
        Verdict.NOTE,
        "getsockopt cannot tell network namespaces apart: name Envoy's own --cgroup",
    ),
    Feature.SKC_LOOKUP_TC: (Verdict.BAD, "collisions of connections cannot be seen: use a kernel from 5.2"),
    Feature.TIMER: (Verdict.NOTE, "connections that just stop stay in the flow map until `down`"),
    Feature.BTF_INFO: (Verdict.NOTE, "the kernel does not show Python lines"),
    Feature.COARSE_CLOCK: (Verdict.NOTE, "a clock that costs a little more is used"),
    Feature.FIONREAD: (
        Verdict.NOTE,
        "connections are not accelerated, unless you say --accelerate always: an application that asks "
        "with FIONREAD before it reads would wait for ever",
    ),
    Feature.QUEUE_LENGTH: (
        Verdict.NOTE,
        "nothing limits what waits for an application that does not read its accelerated connections",
    ),
    Feature.MAP_BATCH: (Verdict.NOTE, "`status` counts entries more slowly"),
}


def examine() -> Iterator[Finding]:
    """Yield the findings, one after the other as they are made."""
    for look in (_kernel, _capabilities, _jit, _bpffs, _cgroup, _interfaces, _envoy):
        try:
            yield from look()
        except LoaderError as error:
            yield Finding(look.__name__.strip("_"), Verdict.BAD, str(error), error.hint)
    yield from _features()


def _kernel() -> Iterator[Finding]:
    system = os.uname()
    yield Finding("kernel", Verdict.GOOD, f"{system.sysname} {system.release} {system.machine}")
    if found := re.match(r"(\d+)\.(\d+)\.?(\d+)?", system.release):
        version = int(found[1]), int(found[2]), int(found[3] or 0)
        if _before_the_fix(version):
            yield Finding(
                "CVE-2025-38165",
                Verdict.NOTE,
                f"release {system.release} is from before the fix of a race in sockmap",
                "a distribution may have fixed it without a new number; else update, or --no-accelerate",
            )


def _before_the_fix(version: tuple[int, int, int]) -> bool:
    """Whether a release is older than the fix of CVE-2025-38165 in its series."""
    fixed = {(6, 1): 142, (6, 6): 94, (6, 12): 34, (6, 15): 3}
    series = version[:2]
    return version[2] < fixed[series] if series in fixed else series < (6, 16)


def _capabilities() -> Iterator[Finding]:
    missing = missing_capabilities(NEEDED)
    if missing:
        reasons = ", ".join(f"{name} ({NEEDED[name]})" for name in missing)
        yield Finding("capabilities", Verdict.BAD, f"missing: {reasons}", "run as root, with sudo say")
    else:
        yield Finding("capabilities", Verdict.GOOD, " ".join(NEEDED))
    if missing_capabilities(["CAP_SYS_ADMIN"]):
        yield Finding(
            "CAP_SYS_ADMIN",
            Verdict.NOTE,
            "missing",
            "--netns, mounting a bpf file system, and seeing programs of others need it",
        )


def _jit() -> Iterator[Finding]:
    try:
        enabled = Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip() != "0"
    except FileNotFoundError:
        return  # built in for good, or this namespace does not show it
    except PermissionError:
        return
    if enabled:
        yield Finding("JIT compiler", Verdict.GOOD, "on")
    else:
        advice = "programs are interpreted, several times slower: sysctl -w net.core.bpf_jit_enable=1"
        yield Finding("JIT compiler", Verdict.NOTE, "off", advice)


def _bpffs() -> Iterator[Finding]:
    from loader.bpffs import (
        ALONE,
        ALONE_ADVICE,
        DEFAULT_MOUNT,
        READ_ONLY_ADVICE,
        BpfFs,
        in_mount_namespace_alone,
    )

    fs = BpfFs.find(read_only=True)
    if fs is not None:
        if fs.read_only:
            yield Finding(
                "bpf file system", Verdict.BAD, f"mounted at {fs.root}, read-only here", READ_ONLY_ADVICE
            )
        else:
            yield Finding("bpf file system", Verdict.GOOD, f"mounted at {fs.root}")
        try:
            names = fs.instances()
        except PermissionError:
            return
        if names:
            yield Finding("instances", Verdict.GOOD, ", ".join(names))
    elif in_mount_namespace_alone():
        what = f"not mounted, and {ALONE}: what `up` mounts would end with it"
        yield Finding("bpf file system", Verdict.BAD, what, ALONE_ADVICE)
    elif DEFAULT_MOUNT.is_dir():
        yield Finding("bpf file system", Verdict.GOOD, f"not mounted; `up` mounts one at {DEFAULT_MOUNT}")
    else:
        yield Finding(
            "bpf file system",
            Verdict.BAD,
            f"not mounted, and {DEFAULT_MOUNT} does not exist",
            "mount one somewhere (mount -t bpf bpf DIR) and name it with --bpffs",
        )


def _cgroup() -> Iterator[Finding]:
    from loader.cgroup import find_cgroup2

    yield Finding("cgroup2", Verdict.GOOD, f"mounted at {find_cgroup2()}")


def _interfaces() -> Iterator[Finding]:
    from loader.netns import interfaces

    yield Finding("interfaces", Verdict.GOOD, ", ".join(interfaces()))


def _envoy() -> Iterator[Finding]:
    from loader.envoy import find_binary
    from loader.netns import listeners
    from programs.settings import DEFAULT_ENVOY_PORT

    try:
        yield Finding("Envoy", Verdict.GOOD, str(find_binary()))
    except LoaderError as error:
        yield Finding("Envoy", Verdict.NOTE, str(error), error.hint)
    if not listeners(DEFAULT_ENVOY_PORT):
        yield Finding(
            f"port {DEFAULT_ENVOY_PORT}",
            Verdict.NOTE,
            "nothing listens there",
            "start Envoy, or tell `up` with --envoy-port where it listens",
        )


_UNTRIED: Final = "could not be tried: "
_AS_ROOT: Final = "run doctor as root"


def _features() -> Iterator[Finding]:
    for feature, found in probe_all().items():
        verdict, without = _WITHOUT.get(feature, (Verdict.NOTE, "nothing uses it yet"))
        if found.support is Support.SUPPORTED:
            yield Finding(feature.value, Verdict.GOOD, "there")
        elif found.support is Support.UNSUPPORTED:
            yield Finding(feature.value, verdict, f"missing: {found.reason}", without)
        else:
            yield Finding(feature.value, Verdict.NOTE, f"{_UNTRIED}{found.reason}", _AS_ROOT)


def run(
    *, json: bool = False, everything: bool = False, fresh: bool = False, out: Callable[[str], None] = print
) -> int:
    """Print all findings. Returns 0 if the proxy can run here, else 1.

    With ``everything`` also what the kernel offers beyond what the proxy needs; with ``fresh`` the kernel is
    asked anew.
    """
    if fresh:
        forget(file=True)
    if json:
        findings = list(examine())
        rows = [asdict(finding) | {"verdict": finding.verdict.value} for finding in findings]
        document: dict[str, Any] = {"ready": not _bad(findings), "findings": rows}
        if everything:
            from loader.features.survey import groups

            document["kernel"] = {group.title: group.as_dict() for group in groups()}
        from json import dumps

        out(dumps(document, indent=2))
    else:
        findings = _print(everything, out)
    return 1 if _bad(findings) else 0


def _bad(findings: Iterable[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.verdict is Verdict.BAD]


# --- for people ---------------------------------------------------------------------------------------------


def _print(everything: bool, out: Callable[[str], None]) -> list[Finding]:
    """Print as findings come; lines are broken for a terminal, and left whole for what else may read them."""
    findings = []
    untried = []
    lacking = bool(missing_capabilities(NEEDED))
    for finding in examine():
        findings.append(finding)
        if lacking and finding.advice == _AS_ROOT:
            untried.append(finding.what)  # one reason for all of them, which has been named above
            continue
        found = "" if finding.found == "there" else f": {finding.found}"
        _paragraph(out, f"{SIGNS[finding.verdict]} ", f"{finding.what}{found}")
        if finding.advice:
            _paragraph(out, "    → ", finding.advice)
    if untried:
        sign = f"{SIGNS[Verdict.NOTE]} "
        _paragraph(out, sign, f"without these capabilities could not be tried: {'; '.join(untried)}")
        _paragraph(out, "    → ", _AS_ROOT)
    if everything:
        from loader.features.survey import groups

        for group in groups():
            out(f"\n{group.title}: {group.summary}")
            for line in group.there if group.lines else [", ".join(group.there)]:
                _paragraph(out, f"{SIGNS[Verdict.GOOD]} ", line)
            for words, reason in group.lacking:
                _paragraph(out, f"{SIGNS[Verdict.NOTE]} ", f"{words}: {reason}")
    bad = _bad(findings)
    verdict = f"The proxy cannot run here yet: {', '.join(bad)}." if bad else "The proxy can run here."
    out("")
    _paragraph(out, "", verdict)
    return findings


def _paragraph(out: Callable[[str], None], begin: str, text: str) -> None:
    import shutil
    import sys
    import textwrap

    if sys.stdout is None or not sys.stdout.isatty():
        out(begin + text)
        return
    width = min(shutil.get_terminal_size().columns, 100)
    indent = " " * len(begin)
    for line in textwrap.wrap(
        text, width, initial_indent=begin, subsequent_indent=indent, break_on_hyphens=False
    ):
        out(line)
