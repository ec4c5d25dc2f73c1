# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m pybpfasm check``: programs are checked without a kernel."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pybpfasm.check import check
from pybpfasm.check.findings import Finding, Severity
from pybpfasm.cli import Parser, UsageError, load_programs, tell
from pybpfasm.errors import AsmError, PybpfasmError, suggestion
from pybpfasm.kernel.enums import AttachType, ProgType
from pybpfasm.text import TextError
from pybpfasm.usage import parse_command

if TYPE_CHECKING:
    from enum import IntEnum

    from pybpfasm.program import ProgramSpec

__all__ = ["main"]

_COLOURS = {Severity.ERROR: "\x1b[1;31m", Severity.WARNING: "\x1b[1;33m"}
_PLAIN = "\x1b[0m"


def _parser() -> Parser:
    parser = Parser(
        prog="python -m pybpfasm check",
        description="Find what the kernel would refuse, without a kernel. An error is refused certainly; a "
        "warning is refused unless the verifier knows by the registers' values that it can't happen.",
        epilog="A target is FILE (text or bytes), FILE.o, FILE.o:PROGRAM, MODULE:PROGRAM or FILE.py:PROGRAM. "
        "Exit status: 0 nothing was found (or only warnings), 1 there are errors, 2 wrong usage.",
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="a file or a program")
    parser.add_argument(
        "--type",
        metavar="TYPE",
        help="program type of text and bytes, such as sched_cls (default: not known)",
    )
    parser.add_argument(
        "--attach", metavar="TYPE", help="attach type of text and bytes, such as cgroup_inet_ingress"
    )
    parser.add_argument(
        "--target",
        dest="level",
        metavar="LEVEL",
        help="an ISA level, v1 to v5, or a Linux release: what it lacks is refused",
    )
    parser.add_argument("--strict", action="store_true", help="fail for warnings too")
    parser.add_argument("--json", action="store_true", help="print findings as JSON")
    parser.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    return parser


def main(args: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    words = sys.argv[1:] if args is None else args
    try:
        options = parse_command(_parser(), words)
        type = _member(ProgType, options.type, "program type")
        attach = _member(AttachType, options.attach, "attach type")
    except UsageError as error:
        if "--json" in words:
            print(json.dumps([_unread("", error)], indent=2))
        return tell(error)
    specs: list[ProgramSpec] = []
    unread: list[dict[str, Any]] = []
    status = 0
    for target in options.targets:
        try:
            specs += [_as_type(spec, type, attach) for spec in load_programs(target, level=options.level)]
        except (PybpfasmError, OSError) as error:
            if not options.json:
                raise
            status = tell(error)
            unread.append(_unread(target, error))
    checked = [(spec, check(spec)) for spec in specs]
    findings = [finding for _, found in checked for finding in found]
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    if options.json:
        out = [_as_json(spec, finding) for spec, found in checked for finding in found]
        print(json.dumps(unread + out, indent=2))
        if unread:
            return status
    else:
        colour = options.color == "always" or (
            options.color == "auto" and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        )
        for spec, found in checked:
            if len(specs) > 1 and found:
                print(f"program {spec.name}:")
            for finding in found:
                print(_shown(finding, colour))
        names = f"{len(specs)} program{'s' if len(specs) > 1 else ''}"
        warnings = len(findings) - errors
        print(f"{names}, {errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return 1 if errors or (options.strict and findings) else 0


def _member(enum: type[IntEnum], name: str | None, what: str) -> Any:
    if name is None:
        return None
    wanted = name.upper().replace("-", "_")
    try:
        return enum[wanted]
    except KeyError:
        known = {one for one in enum.__members__ if one != "UNSPEC"}
        raise UsageError(f"there is no {what} {name!r}{suggestion(wanted, known)}") from None


def _as_type(spec: ProgramSpec, type: ProgType | None, attach: AttachType | None) -> ProgramSpec:
    """Text and bytes have no type of their own, unless one is given."""
    if spec.type is not ProgType.UNSPEC:
        return spec
    from pybpfasm.program import ProgramSpec

    return ProgramSpec(
        spec.name,
        spec.type if type is None else type,
        spec.attach_type if attach is None else attach,
        spec.license,
        spec.instructions,
        spec.functions,
        spec.byteorder,
        spec.prog_flags,
        spec.target,
    )


def _shown(finding: Finding, colour: bool) -> str:
    text = str(finding)
    if colour:
        word = f"{finding.severity.value}:"
        text = text.replace(word, f"{_COLOURS[finding.severity]}{word}{_PLAIN}", 1)
    return text


def _unread(target: str, error: PybpfasmError | OSError) -> dict[str, Any]:
    """A target that is no program, in the form of a finding; where it can be told, with its line.

    Without a target it is the command that was not understood.
    """
    location: dict[str, Any] | None = None
    if isinstance(error, TextError):
        location = {"file": error.filename, "line": error.line}
    elif isinstance(error, AsmError) and error.location is not None:
        location = {"file": error.location.filename, "line": error.location.line}
    message = error.strerror if isinstance(error, OSError) else getattr(error, "message", str(error))
    return {
        "program": target,
        "severity": Severity.ERROR.value,
        "code": "unread" if target else "usage",
        "slot": None,
        "message": message,
        "instruction": "",
        "location": location,
        "related": [],
    }


def _as_json(spec: ProgramSpec, finding: Finding) -> dict[str, Any]:
    def place(location: Any) -> dict[str, Any] | None:
        return None if location is None else {"file": location.filename, "line": location.line}

    return {
        "program": spec.name,
        "severity": finding.severity.value,
        "code": finding.code,
        "slot": finding.slot,
        "message": finding.message,
        "instruction": finding.instruction,
        "location": place(finding.location),
        "related": [
            {"what": what, "slot": slot, "location": place(location)}
            for what, slot, location in finding.related
        ],
    }
