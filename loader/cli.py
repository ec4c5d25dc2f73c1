# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The command line: ``python -m loader``, or ``pybpfasm-loader``.

Exit codes: 0 done, 1 failed, 2 usage; 128 and the signal's number where a signal ended it. Facts go to
standard output, warnings and errors to standard error, and no traceback reaches a user who has not asked for
one with ``--debug``. What a command needs is imported when it runs, so that ``up`` starts quickly.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

from loader.errors import MORE_FILES, LoaderError, UsageError
from pybpfasm import streams, usage
from pybpfasm.version import ShowVersion

if TYPE_CHECKING:
    from loader.plan import Plan, Request
    from loader.session import Result
    from pybpfasm.program import ProgramSpec

__all__ = ["main"]

DONE, FAILED, USAGE = 0, 1, 2
# How it was called, for those who read what to type next; an installed one is no module on the path.
_NAME: Final = "pybpfasm-loader"
PROG: Final = _NAME if os.path.basename(sys.argv[0]) == _NAME else "python -m loader"
LONGEST_WATCH: Final = 86400  # seconds
ACCELERATE: Final = ("auto", "always", "never")
CLSACT_VARIABLE: Final = "PYBPFASM_ATTACH"  # "clsact": do without TCX, for tests


class Parser(usage.Parser):
    """A parser whose errors end the command with status 2."""

    def refuse(self, message: str, hint: str) -> NoReturn:
        raise UsageError(message, hint=hint)


class Clock:
    """Notes how long each step took; reads as ``{"step": milliseconds}``."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {"start the interpreter": time.process_time() * 1000}
        self._last = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        self.steps[step] = self.steps.get(step, 0.0) + (now - self._last) * 1000
        self._last = now


_clock = Clock()


def say(text: str) -> None:
    """Print a line for people on standard error."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning."""
    say(f"warning: {text}")


def _print_json(value: object) -> None:
    import json

    print(json.dumps(value, indent=2))


# --- arguments ----------------------------------------------------------------------------------------------


_DEFAULT_INSTANCE: Final = "default"
_NOT_IN_PROGRAMS: Final = ("cgroup", "name", "bpffs", "queue_limit")
_STRAY: Final = "an instance is named with --name"


def _add_instance(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", default=_DEFAULT_INSTANCE, metavar="NAME", help="which instance (default: %(default)s)"
    )
    _add_bpffs(parser)


def _add_bpffs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bpffs", metavar="DIR", help="the bpf file system to use (default: the mounted one)"
    )


def _add_proxy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--iface",
        action="append",
        required=True,
        metavar="IF",
        help="interface where clients come in; may be repeated; `lo` for clients on this host",
    )
    parser.add_argument(
        "--ports",
        action="append",
        required=True,
        metavar="LIST",
        help="TCP ports to intercept, such as 8000,9000-9010; may be repeated",
    )
    parser.add_argument(
        "--envoy-port", default="8080", metavar="PORT", help="the port of Envoy's listener (default: 8080)"
    )
    parser.add_argument(
        "--mark",
        default="4242",
        metavar="VALUE[/MASK]",
        help="SO_MARK of Envoy's own connections, decimal or 0x… (default: 4242)",
    )
    parser.add_argument(
        "--accelerate",
        choices=ACCELERATE,
        default="auto",
        metavar="WHEN",
        help="the socket-to-socket short-cut between Envoy and the application: auto (default: where this "
        "kernel does it right), always (also where FIONREAD is wrong; fail where it cannot be) or never",
    )
    parser.add_argument(
        "--no-accelerate",
        action="store_const",
        const="never",
        dest="accelerate",
        help="the same as --accelerate never",
    )
    parser.add_argument(
        "--netns",
        metavar="NETNS",
        help="network namespace of the interfaces: a name, a path or a process id (default: this one)",
    )
    parser.add_argument(
        "--cgroup", metavar="DIR", help="cgroup2 directory of Envoy and the application (default: the root)"
    )
    parser.add_argument("--flow-capacity", metavar="N", help="how many connections at once (default: 65536)")
    for option, what, default in (
        ("--handshake-timeout", "that has not completed its handshake", 75),
        ("--linger", "that has ended", 60),
        ("--idle-timeout", "in between", 432000),
    ):
        parser.add_argument(
            option,
            metavar="SECONDS",
            help=f"how long a quiet connection {what} is remembered (default: {default})",
        )
    parser.add_argument(
        "--queue-limit",
        metavar="BYTES",
        help="how much may wait for who reads an accelerated connection before it goes through the stack for "
        "good (default: 6291456, or half of net.ipv4.tcp_rmem if that is less)",
    )
    _add_instance(parser)


def _parser(words: Sequence[str] = ()) -> tuple[Parser, dict[str, Parser]]:
    """Return the parser for a command line, and those of the commands by name."""
    from loader import __doc__ as about

    parser = Parser(
        prog=PROG,
        description="A transparent ingress proxy: TCP connections for an application go through Envoy.",
        epilog="exit status: 0 done, 1 failed, 2 usage, 128+N ended by signal N",
    )
    assert about
    parser.add_argument("--debug", action="store_true", help="show the Python traceback of an error")
    parser.add_argument("--version", action=ShowVersion)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    made: dict[str, Parser] = {}

    def command(name: str, text: str, epilog: str = "") -> Parser:
        one = commands.add_parser(
            name, help=text, description=text[0].upper() + text[1:] + ".", epilog=epilog
        )
        one.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        made[name] = one
        return one

    up = command("up", "assemble, load and attach the programs; again, to change settings in place")
    _add_proxy(up)
    up.add_argument("--dry-run", action="store_true", help="show what would be done, and touch nothing")
    up.add_argument(
        "--wait",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="first wait, so long at most, for the interfaces and for a listener at Envoy's port",
    )
    up.add_argument("--json", action="store_true", help="print facts as JSON")
    up.add_argument("--timings", action="store_true", help="show where the time went")

    down = command("down", "remove what up made")
    down.stray = _STRAY
    _add_instance(down)
    down.add_argument(
        "--drain",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="first let connections end, for so long at most; new ones go to the application meanwhile",
    )
    down.add_argument("--json", action="store_true", help="print facts as JSON")

    status = command(
        "status",
        "what is attached, what it did, and what is not as it should be",
        "exit status: 0 all is as it should be, 1 it is not, or nothing is up; with --prometheus 0 where "
        "metrics were printed, whatever they say",
    )
    status.stray = _STRAY
    status.add_argument(
        "--name",
        metavar="NAME",
        help=f"which instance (default: {_DEFAULT_INSTANCE}; with --prometheus all that are up)",
    )
    _add_bpffs(status)
    formats = status.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="print facts as JSON")
    formats.add_argument(
        "--prometheus",
        action="store_true",
        help="print metrics in Prometheus' text format, for node_exporter's textfile collector",
    )
    status.add_argument(
        "--watch",
        nargs="?",
        const=2.0,
        type=float,
        metavar="SECONDS",
        help="again every SECONDS (default: 2)",
    )

    dump = command(
        "dump",
        "listings of the programs with their Python lines",
        "--cgroup, --queue-limit, --name and --bpffs may be given as to `up`, and change nothing here.",
    )
    _add_proxy(dump)
    for action in dump._actions:
        if action.dest in _NOT_IN_PROGRAMS:
            action.help = argparse.SUPPRESS
    dump.add_argument("--program", metavar="NAME", help="only that one, pba_ingress say")
    dump.add_argument(
        "--elf", metavar="FILE", help="write an object for libbpf and bpftool instead; - for standard output"
    )

    run = command(
        "run",
        "Envoy with a matching configuration and the proxy in front of it, until Ctrl-C",
        "What stands behind -- goes to Envoy.",
    )
    _add_proxy(run)
    run.add_argument(
        "--config",
        default="original-dst-dual",
        metavar="NAME|FILE",
        help="one of our Envoy files, or one of yours as it is (default: %(default)s)",
    )
    run.add_argument("envoy_arguments", nargs="*", metavar="-- ARGUMENT", help="arguments for Envoy")

    doctor = command(
        "doctor",
        "what this host and kernel offer, what is missing, and what to do about it",
        "exit status: 0 the proxy can run here, 1 it cannot",
    )
    doctor.add_argument("--json", action="store_true", help="print facts as JSON")
    doctor.add_argument(
        "--all",
        action="store_true",
        help="also what the proxy does not need: instruction set, BTF, types of programs, maps, hooks and "
        "links, helpers by program type",
    )
    doctor.add_argument(
        "--fresh", action="store_true", help="ask the kernel again, whatever it said earlier in this boot"
    )

    demo = command("demo", "client, gateway, server, application and Envoy in network namespaces")
    if "demo" in words:
        from loader.demo import add_arguments

        add_arguments(demo)
    return parser, made


def _ports_meant(lists: Sequence[str]) -> str:
    """What to write instead of lists in which only a comma is missing, or is too many, if that is so."""
    from programs.settings import Ports, SettingsError

    meant = ",".join(",".join(lists).replace(",", " ").split())
    try:
        Ports.parse(meant)
    except SettingsError:
        return ""
    return f"write --ports {meant}, with a comma between two"


def _request(arguments: argparse.Namespace) -> Request:
    from loader.plan import Request
    from programs.settings import Mark, Ports, Settings, SettingsError

    def number(option: str, text: str, example: int) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise UsageError(
                f"{option} {text!r} is not a number that fits", hint=f"write {option} {example}, say"
            )
        return int(text)

    help_text = f"`{PROG} {arguments.command} --help` shows what can be said"
    more: dict[str, Any] = {}
    for option, name, most, why, example in (
        ("--flow-capacity", "flow_capacity", (1 << 32) - 1, "a map can hold", 65536),
        ("--queue-limit", "queue_limit", (1 << 31) - 1, "a receive queue can hold", 6 << 20),
        ("--handshake-timeout", "handshake_seconds", (1 << 32) - 1, "can be waited for", 75),
        ("--linger", "linger_seconds", (1 << 32) - 1, "can be waited for", 60),
        ("--idle-timeout", "idle_seconds", (1 << 32) - 1, "can be waited for", 432000),
    ):
        text = getattr(arguments, option[2:].replace("-", "_"))
        if text is not None:
            more[name] = number(option, text, example)
            if not 1 <= more[name] <= most:
                wrong = f"is more than {why}" if more[name] else "must be at least 1"
                raise UsageError(f"{option} {text} {wrong}", hint=f"write {option} {example}, say")
    envoy_port = number("--envoy-port", arguments.envoy_port, 8080)
    option = "--ports: "
    try:
        ports = Ports.parse(",".join(arguments.ports))
        option = "--mark: "
        mark = Mark.parse(arguments.mark)
        option = ""
        settings = Settings(ports, envoy_port, mark, arguments.accelerate != "never", **more)
    except SettingsError as error:
        hint = help_text
        if option == "--ports: ":
            hint = _ports_meant(arguments.ports) or help_text
        raise UsageError(f"{option}{error}", hint=hint) from None
    return Request(
        interfaces=tuple(arguments.iface),
        settings=settings,
        name=arguments.name,
        netns=arguments.netns,
        cgroup=arguments.cgroup,
        bpffs=arguments.bpffs,
        clsact=os.environ.get(CLSACT_VARIABLE) == "clsact",
        insist=arguments.accelerate == "always",
    )


# --- commands -----------------------------------------------------------------------------------------------


def _plan_document(plan: Plan) -> dict[str, Any]:
    from loader.status import where

    settings = plan.settings
    return {
        "name": plan.request.name,
        "mode": plan.mode.name,
        "original_destination": plan.mode.original_destination,
        "settings": {
            "ports": str(settings.ports),
            "envoy_port": settings.envoy_port,
            "mark": str(settings.mark),
            "accelerate": settings.accelerate,
            "interfaces": [one.name for one in plan.interfaces],
            "netns": plan.request.netns or "",
            "cgroup": str(plan.cgroup.path),
            "flow_capacity": settings.flow_capacity,
            "handshake_seconds": settings.handshake_seconds,
            "linger_seconds": settings.linger_seconds,
            "idle_seconds": settings.idle_seconds,
            "queue_limit": settings.queue_limit if settings.queue_length_at else None,
        },
        "hooks": [
            {
                "hook": hook.kind,
                "where": where(hook),
                "program": plan.programs[hook.program].name,
                "slots": plan.programs[hook.program].slots,
            }
            for hook in plan.hooks
        ],
        "maps": [
            {"map": pin, "type": spec.type.name.lower(), "max_entries": spec.max_entries}
            for pin, spec in plan.maps.items()
        ],
        "warnings": list(plan.warnings),
    }


def _print_plan(document: dict[str, Any], plan: Plan) -> None:
    settings = document["settings"]
    cgroup, netns = settings["cgroup"], settings["netns"]
    print(
        f"  ports {settings['ports']} → Envoy on {settings['envoy_port']}; mark {settings['mark']}; "
        f"cgroup {cgroup}{f'; network namespace {netns}' if netns else ''}"
    )
    for hook in document["hooks"]:
        method = "" if plan.tcx or hook["hook"] not in ("ingress", "egress") else " by clsact"
        print(f"  {hook['hook']:<11} {hook['where']:<15} {hook['program']} ({hook['slots']} slots){method}")


def _up(arguments: argparse.Namespace) -> int:
    request = _request(arguments)
    if arguments.dry_run:
        return _dry_run(request, arguments)
    from loader.up import up

    _clock("import")
    if arguments.wait:
        from loader.waiting import wait

        wait(request, arguments.wait)
        _clock("wait")
    result = up(request, clock=_clock)
    plan = result.plan
    assert plan is not None
    document = _plan_document(plan) | {
        "changed": result.changed,
        "changes": result.changes,
        "created": result.created,
        "path": str(result.path),
        "warnings": result.warnings,
    }
    if arguments.json:
        if arguments.timings:
            document["timings_ms"] = {step: round(took, 2) for step, took in _clock.steps.items()}
        _print_json(document)
    else:
        _print_result(result)
        _print_plan(document, plan)
        if arguments.timings:
            for step, took in _clock.steps.items():
                print(f"  {took:7.1f} ms  {step}")
    for warning in result.warnings:
        warn(warning)
    return DONE


def _print_result(result: Result) -> None:
    what = "is up" if result.created else "has been changed" if result.changed else "was up like this already"
    print(f"instance {result.name!r} {what}, pinned at {result.path}")
    for change in result.changes:
        print(f"  {change}")


def _dry_run(request: Request, arguments: argparse.Namespace) -> int:
    from loader import plan as planning

    with planning.make(request, dry=True) as plan:
        document = _plan_document(plan)
        if arguments.json:
            document["listings"] = {name: spec.listing() for name, spec in plan.programs.items()}
            _print_json(document)
            return DONE
        print(f"instance {request.name!r} would be (nothing was touched):")
        _print_plan(document, plan)
        for spec in plan.programs.values():
            print(f"\n{spec.listing()}")
        for warning in plan.warnings:
            warn(warning)
    return DONE


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: write 30, at most 86400")
    return seconds


def _down(arguments: argparse.Namespace) -> int:
    from loader.down import down

    def tell(live: int) -> None:
        if not arguments.json:
            print(f"draining: {live} connection(s) left", flush=True)

    result = down(arguments.name, arguments.bpffs, drain=arguments.drain, tell=tell)
    if arguments.json:
        _print_json({"name": result.name, "changed": result.changed, "warnings": result.warnings})
    elif result.changed:
        print(f"instance {result.name!r} is down: hooks, programs, maps and pins are removed")
    else:
        print(f"instance {result.name!r} is not up: there was nothing to remove{_others(arguments)}")
    for warning in result.warnings:
        warn(warning)
    return DONE


def _others(arguments: argparse.Namespace) -> str:
    from loader.bpffs import BpfFs

    fs = BpfFs.find(arguments.bpffs, read_only=True)
    names = [name for name in (fs.instances() if fs is not None else []) if name != arguments.name]
    return f" (up are: {', '.join(names)})" if names else ""


def _status(arguments: argparse.Namespace) -> int:
    if arguments.prometheus:
        return _metrics(arguments)
    arguments.name = _DEFAULT_INSTANCE if arguments.name is None else arguments.name
    if arguments.watch is None:
        return _status_once(arguments)
    if not 0 < arguments.watch <= LONGEST_WATCH:  # nan is neither
        raise UsageError(
            f"--watch takes a number of seconds above 0, at most {LONGEST_WATCH}", hint="write --watch 1"
        )
    clears = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", None)
    while True:
        if clears and not arguments.json:
            print("\x1b[H\x1b[2J", end="")
        _status_once(arguments)
        print(end="", flush=True)
        time.sleep(arguments.watch)


def _status_once(arguments: argparse.Namespace) -> int:
    from loader.instance import open_instance
    from loader.status import document, render

    instance = open_instance(arguments.name, arguments.bpffs)
    if instance is None:
        raise LoaderError(
            f"instance {arguments.name!r} is not up{_others(arguments)}",
            hint="`up` brings one up; --name says which is meant",
        )
    with instance:
        found = document(instance)
    if arguments.json:
        _print_json(found)
    else:
        render(found)
    return DONE if found["healthy"] else FAILED


def _metrics(arguments: argparse.Namespace) -> int:
    if arguments.watch is not None:
        raise UsageError(
            "--prometheus prints one document, and --watch would print several", hint="leave --watch out"
        )
    from loader.instance import instance_names, open_instance
    from loader.metrics import exposition
    from loader.status import document

    found: dict[str, dict[str, Any] | None] = {}
    everything = arguments.name is None
    for name in instance_names(arguments.bpffs) if everything else [arguments.name]:
        instance = open_instance(name, arguments.bpffs)
        if instance is not None:
            with instance:
                found[name] = document(instance)
        elif not everything:
            found[name] = None
    print(end="", flush=True)
    sys.stdout.buffer.write(exposition(found, everything=everything))
    return DONE


def _dump(arguments: argparse.Namespace) -> int:
    from loader import plan as planning

    with planning.make(_request(arguments), dry=True) as plan:
        wanted = arguments.program
        specs = [s for s in plan.programs.values() if wanted is None or s.name == wanted]
        if not specs:
            raise UsageError(
                f"there is no program {wanted!r}",
                hint=f"there are {', '.join(sorted({s.name for s in plan.programs.values()}))}",
            )
        if arguments.elf is not None:
            _write_elf(arguments.elf, specs)
        else:
            print("\n\n".join(spec.listing() for spec in specs))
    return DONE


def _write_elf(path: str, specs: Sequence[ProgramSpec]) -> None:
    from pybpfasm.elf import write_object

    if not path:
        raise UsageError(
            "--elf needs the name of a file", hint="write --elf FILE, or --elf - for standard output"
        )
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"an object holds one program of a name, and there are several of {', '.join(twice)}",
            hint="name interfaces of one kind: lo has programs of its own",
        )
    data = write_object(specs)
    if path == "-":
        sys.stdout.buffer.write(data)
        return
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise LoaderError(f"{path} cannot be written: {error.strerror}") from None
    print(f"{path}: {len(data)} bytes, {', '.join(names)}")


def _run_envoy(arguments: argparse.Namespace) -> int:
    from loader.run import run

    return run(_request(arguments), arguments.config, arguments.envoy_arguments, say=say, warn=warn)


def _doctor(arguments: argparse.Namespace) -> int:
    from loader import doctor

    return doctor.run(json=arguments.json, everything=arguments.all, fresh=arguments.fresh)


def _demo(arguments: argparse.Namespace) -> int:
    from loader import demo

    return demo.run(arguments)


COMMANDS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "up": _up,
    "down": _down,
    "status": _status,
    "dump": _dump,
    "run": _run_envoy,
    "doctor": _doctor,
    "demo": _demo,
}


# --- the way in ---------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status. Nothing but SystemExit(0) of --help is ever raised."""
    words = list(sys.argv[1:] if argv is None else argv)
    streams.prepare()
    try:
        return _run_and_flush(words)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        # Who read our output has gone; nothing more can be said there.
        streams.give_up_output()
        return FAILED
    except Exception as error:
        own = words[: words.index("--")] if "--" in words else words
        if "--debug" in own:
            import traceback

            traceback.print_exc()
        full = streams.output_fails(error)
        if full:
            streams.give_up_output()
        message, hint, status = _explain(error, words, full)
        if hint == MORE_FILES:
            _drop_what_is_half_made(error)
        say(f"error: {message}" + (f"\n  {hint}" if hint else ""))
        if "--json" in own and not full:
            with contextlib.suppress(OSError):
                _print_json({"error": message, "hint": hint})
                print(end="", flush=True)
        return status


def _explain(error: Exception, words: Sequence[str], full: bool) -> tuple[str, str, int]:
    """What was wrong, what to do, and the exit status; ``full`` says that the output took no more."""
    from loader.session import Interrupted
    from pybpfasm.errors import PybpfasmError

    if isinstance(error, Interrupted):
        return str(error), error.hint, 128 + error.signum
    if isinstance(error, LoaderError):
        return str(error), error.hint, USAGE if isinstance(error, UsageError) else FAILED
    if isinstance(error, PybpfasmError):
        return str(error), "", FAILED
    if isinstance(error, ModuleNotFoundError) and error.name in _PACKAGES:
        package, other = _PACKAGES[error.name]
        without = "; `status --json` does without" if "status" in words else ""
        return (
            f"the Python package {package!r} is missing",
            f"{sys.executable} -m pip install {package}, or {other}{without}",
            FAILED,
        )
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return f"no more files can be opened: {error.strerror}", MORE_FILES, FAILED
    if isinstance(error, FileNotFoundError) and not os.path.isdir("/proc/self"):
        return f"there is no /proc here, and with it no {error.filename}", "mount -t proc proc /proc", FAILED
    if full and isinstance(error, OSError):
        return (
            f"the output cannot be written: {error.strerror}",
            f"`{PROG} status` shows what is up",
            FAILED,
        )
    command = next((word for word in words if word in COMMANDS), "")
    return (
        f"internal error in {PROG} {command}: {type(error).__name__}: {error}".rstrip(),
        f"this is a defect: please report it with what `{PROG} --debug {' '.join(words)}` prints",
        FAILED,
    )


def _drop_what_is_half_made(error: BaseException) -> None:
    """Collect what could not be opened as a whole, such as an event loop of pyroute2's.

    It complains when it is collected, with a traceback, and nobody can do anything about that.
    """
    before, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        one: BaseException | None = error
        while one is not None:
            one.__traceback__ = None
            one = one.__context__
        gc.collect()
    finally:
        sys.unraisablehook = before


# What some commands need besides the standard library: the package of a module, and who else has it.
_PACKAGES: Final = {
    "pyroute2": ("pyroute2", "use the Python in .venv"),
    "rich": ("rich", "use the Python in .venv"),
    "prometheus_client": (
        "prometheus-client",
        "apt-get install python3-prometheus-client for Debian's own Python",
    ),
}


def _run_and_flush(words: list[str]) -> int:
    """Write everything out while what goes wrong with that can still be said."""
    try:
        status = _run(words)
    except SystemExit:
        print(end="", flush=True)
        raise
    print(end="", flush=True)
    return status


def _run(words: list[str]) -> int:
    parser, commands = _parser(words)
    arguments = usage.parse(parser, commands, words)
    if arguments.command == "run":
        _refuse_stray(words, arguments.envoy_arguments)
    return COMMANDS[arguments.command](arguments)


def _refuse_stray(words: list[str], for_envoy: list[str]) -> None:
    """Envoy gets what stands behind ``--``, and not what was meant for us."""
    behind = len(words) - words.index("--") - 1 if "--" in words else 0
    if stray := for_envoy[: len(for_envoy) - behind]:
        raise UsageError(
            f"{' '.join(stray)!r} is not understood",
            hint="what is for Envoy stands behind --; --iface and --ports may be repeated",
        )
