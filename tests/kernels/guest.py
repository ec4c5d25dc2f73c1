# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What is tried on one kernel, as root; `scripts/test-kernels` runs it in a virtual machine, or on this host.

    python -m tests.kernels.guest RELEASE RESULT.json [--chosen] [PYTEST-ARGUMENT ...]

Where the arguments name tests, these. Otherwise, in this order: the kernel is the one that was meant; every
probe has an answer, and a missing feature is newer than the kernel; the programs load; real connections go
through the real Envoy; the kernel tests pass, or those that `chosen` names. RESULT.json gets what was found,
for `scripts/kernels-table`. Nothing here depends on how long it takes: an emulated machine is slow. The exit
status is 0 if all was right.

The loader's commands run in forked children instead of new interpreters, because starting one takes an
emulated machine several seconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from loader import features
from loader.features import BtfPart, Feature, Isa, Support, survey
from loader.objects import Link, Map, Program
from loader.playground import SERVER, SERVER6, Playground
from loader.process import Place, call
from tests.e2e import traffic
from tests.requires import kernel_version

PATIENCE = 12.0
HTTP, ECHO = 8000, 9000
PORTS = f"{HTTP},{ECHO}"
BYTES = 20_000

# Envoy file, what the client speaks, and to which of the server's addresses.
SCENARIOS = (
    ("static", "http", (SERVER,)),
    ("static-ipv6", "http", (SERVER6,)),
    ("original-dst-dual", "http", (SERVER, SERVER6)),
    ("original-dst-tcp-dual", "tcp", (SERVER, SERVER6)),
)


@dataclass
class Result:
    """What was found on a kernel. ``failures`` is empty if all was right."""

    release: str
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    kinds: dict[str, dict[str, str]] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    hooks: dict[str, str] = field(default_factory=dict)
    accelerated: bool = False
    connections: dict[str, bool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tests: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def loader(playground: Playground, *words: str) -> tuple[int, str, str]:
    """Run a command of the loader in the playground; return its status and output."""

    def run() -> tuple[int, str, str]:
        from loader import cli

        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(list(words))
        return status, out.getvalue(), err.getvalue()

    return call(run, Place(mntns=playground.mntns))


def command(playground: Playground, *words: str) -> dict[str, Any]:
    """Run a command that must succeed, and return its document."""
    status, out, err = loader(playground, *words, "--json")
    assert status == 0, f"{' '.join(words)}: status {status}\n{err}"
    document = json.loads(out)
    assert isinstance(document, dict)
    return document


def status_of(playground: Playground) -> dict[str, Any]:
    """What ``status`` says. It ends with 1 where not all is well, as before Envoy listens."""
    status, out, err = loader(playground, "status", "--json")
    assert status in (0, 1), f"status: status {status}\n{err}"
    document = json.loads(out)
    assert isinstance(document, dict)
    assert document["healthy"] is (status == 0)
    return document


# --- the kernel and its features ----------------------------------------------------------------------------


def check_probes(result: Result) -> None:
    """Every probe has an answer, and what is missing came later than this kernel."""
    mine = kernel_version(result.release)
    for one in (*Feature, *Isa, *BtfPart):
        found = features.probe(one)
        key = one.name if isinstance(one, Feature) else f"{type(one).__name__}.{one.name}"
        result.features[key] = {
            "feature": one.words,
            "since": list(one.since),
            "support": found.support.value,
            "reason": found.reason,
        }
        assert found.support is not Support.INCONCLUSIVE, f"{key}: {found.reason}"
        if found.support is Support.UNSUPPORTED:
            assert mine < one.since, (
                f"{key} came with {one.since}, and the probe did not find it: {found.reason}"
            )
    for group in survey.groups(helpers=False):
        result.kinds[group.title] = {name: found.support.value for name, found in group.answers.items()}


def check_tcx(result: Result) -> None:
    """Whether there is TCX, found in another way than the probe's: on an interface, and among the symbols."""
    from loader.errors import BpfError
    from pybpfasm.asm import Asm
    from pybpfasm.kernel.context import SkBuff
    from pybpfasm.kernel.enums import AttachType, TcxAction
    from pybpfasm.program import sched_cls

    @sched_cls(AttachType.TCX_INGRESS, name="next")
    def nothing(b: Asm, ctx: SkBuff) -> None:
        b.ret(TcxAction.NEXT)

    def attach() -> str:
        from loader.process import CLONE_NEWNET, unshare

        unshare(CLONE_NEWNET)
        with Program.load(nothing.build()) as program:
            try:
                Link.tcx(program, 1, AttachType.TCX_INGRESS).close()
            except BpfError as error:
                return os.strerror(error.errno or 0)
        return ""

    said = call(attach, Place())
    symbols = " tcx_link_attach" in Path("/proc/kallsyms").read_text()
    present = kernel_version(result.release) >= Feature.TCX.since
    assert (said == "") is present, f"TCX on lo: {said or 'attached'}"
    assert symbols is present, "the kernel's symbols say otherwise about TCX"
    assert features.probe(Feature.TCX).supported is present


def check_programs(result: Result) -> None:
    """The programs that `up` would take load on a link of every kind, and the kernel keeps their BTF."""
    from loader.modes.rewrite import Rewrite
    from loader.netns import ARPHRD_LOOPBACK, Interface

    kinds = (Interface("lo", 1, ARPHRD_LOOPBACK), Interface("eth0", 2, 1), Interface("tun0", 3, 0xFFFE))
    mode, settings = Rewrite(), settings_here()
    with contextlib.ExitStack() as stack:
        maps = {spec.name: stack.enter_context(Map.create(spec)) for spec in mode.maps(settings).values()}
        for name, spec in mode.programs(settings, kinds).items():
            with Program.load(spec, maps) as program:
                info = program.info()
                assert info.btf_id, f"{name} was loaded without its BTF"
                result.programs[name] = info.verified_insns
    assert len(result.programs) == 9


def settings_here() -> Any:
    """The settings that `up` comes to on this kernel."""
    from loader import plan
    from loader.modes.rewrite import Rewrite
    from programs.settings import Ports, Settings

    request = plan.Request(("lo",), Settings(Ports.parse("8000,9000-9010"), accelerate=True), insist=True)
    settings, _ = plan._probe(request, Rewrite(), [])
    return settings


# --- connections --------------------------------------------------------------------------------------------


def check_connections(result: Result) -> None:
    """One connection of each kind through Envoy, and what `status` says of how it got there."""
    tcx = features.probe(Feature.TCX).supported
    sockmap_link = features.probe(Feature.SOCKMAP_LINK).supported
    with Playground(patience=PATIENCE) as playground:
        check_doctor(playground)
        up = ["up", "--iface", "eth0", "--iface", "lo", "--ports", PORTS, *playground.target()]
        done = command(playground, *up)
        result.warnings = [text for text in done.get("warnings", []) if "listens on TCP port" not in text]
        fionread = features.probe(Feature.FIONREAD).supported
        assert done["settings"]["accelerate"] is fionread
        assert any("--accelerate always" in text for text in result.warnings) is not fionread
        result.accelerated = fionread
        if not fionread:
            assert not {"sockops", "sk_msg"} & {hook["hook"] for hook in status_of(playground)["hooks"]}
            up += ["--accelerate", "always"]
            assert command(playground, *up)["settings"]["accelerate"] is True
        status = status_of(playground)
        assert status["drift"] == []
        assert all(hook["attached"] for hook in status["hooks"])
        result.hooks = {hook["hook"]: hook["method"] for hook in status["hooks"]}
        by = "tcx" if tcx else "clsact"
        assert result.hooks == {
            "ingress": by,
            "egress": by,
            "getsockopt": "link",
            "sockops": "link",
            "sk_msg": "link" if sockmap_link else "map",
        }
        for key in ("timers", "coarse_clock", "netns_cookie"):
            assert status["settings"][key] is features.probe(_DECIDES[key]).supported
        assert qdiscs(playground) == (set() if tcx else {"clsact"})

        application = playground.start_application(f"http:{HTTP}", f"echo:{ECHO}")
        for file, kind, addresses in SCENARIOS:
            with playground.start_envoy(file, concurrency=1) as envoy:
                for address in addresses:
                    family = "IPv6" if ":" in address else "IPv4"
                    before = status_of(playground)["counters"]
                    one_connection(playground, envoy, file, kind, address)
                    after = status_of(playground)["counters"]
                    check_counters(before, after, address, file)
                    how = "original destination" if "original-dst" in file else "static"
                    result.connections[f"{kind.upper()} over {family}, {how}"] = True
                    print(f"  {kind} to {address} by {file}", flush=True)
        application.stop()

        # Settings change in place, then nothing is left.
        again = command(playground, *up, "--no-accelerate")
        assert again["changed"] is True
        assert command(playground, "down")["changed"] is True
        assert qdiscs(playground) == set()
        assert playground.client.call(partial(refused, SERVER, HTTP))


_DECIDES = {
    "timers": Feature.TIMER,
    "coarse_clock": Feature.COARSE_CLOCK,
    "netns_cookie": Feature.NETNS_COOKIE_SK_MSG,
}


def check_doctor(playground: Playground) -> None:
    """`doctor` finds the proxy possible, and names every feature that is missing with what that means."""
    status, out, err = loader(playground, "doctor", "--json")
    assert status == 0, err
    findings = {finding["what"]: finding for finding in json.loads(out)["findings"]}
    for feature, found in features.probe_all().items():
        said = findings[feature.value]
        if found.supported:
            assert said["found"] == "there"
        else:
            assert said["found"].startswith("missing: ")
            assert said["verdict"] == "note"
            assert said["advice"] not in ("", "nothing uses it yet")


def one_connection(playground: Playground, envoy: Any, file: str, kind: str, address: str) -> None:
    """A client far away talks to the application's port; Envoy's access log shows the way."""
    if kind == "http":
        answer = playground.client.call(partial(traffic.get, address, HTTP))
        assert answer["status"] == 200
        assert tuple(answer["peername"]) == (address, HTTP)
        assert tuple(answer["peer"]) != tuple(answer["sockname"])
        client = tuple(answer["sockname"])
    else:
        run = partial(traffic.tcp_clients, address, [("echo", ECHO)], [BYTES])
        (outcome,) = playground.client.call(run)
        assert outcome.error == ""
        assert outcome.peer == (address, ECHO)
        client = outcome.local
    (entry,) = envoy.wait_access_log(
        lambda entry: _end(entry["downstream_remote"]) == client, timeout=5 * PATIENCE
    )
    if "original-dst" in file:
        assert entry["upstream_cluster"] == "original-dst"
        assert _end(entry["upstream_host"]) == (address, HTTP if kind == "http" else ECHO)
    else:
        assert entry["upstream_cluster"] == "application"


def _end(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def check_counters(before: Any, after: Any, address: str, file: str) -> None:
    """The connection was one flow, in both directions, accelerated, and nothing was dropped."""

    def grown(hook: str, name: str) -> int:
        return int(after[hook][name]) - int(before[hook][name])

    assert grown("ingress", "new_flows") == 1
    assert grown("ingress", "redirected") > 2
    assert grown("egress", "restored") > 2
    if "original-dst" in file:
        assert grown("getsockopt", "answered_ipv6" if ":" in address else "answered_ipv4") == 1
    # Envoy keeps connections to an HTTP application, so there need not be a new one.
    assert grown("sk_msg", "redirected_bytes") > (BYTES if "tcp" in file else 0)
    dropped = {n: v for hook in after.values() for n, v in hook.items() if n.startswith("dropped") and v}
    assert dropped == {}


def qdiscs(playground: Playground) -> set[str]:
    """The kinds of qdiscs on the server's interfaces, of those that filters hang on."""

    def look() -> set[str]:
        from pyroute2 import IPRoute

        with IPRoute() as route:
            kinds = {str(message.get_attr("TCA_KIND")) for message in route.get_qdiscs()}
        return kinds & {"clsact", "ingress"}

    return playground.server.call(look)


def refused(address: str, port: int) -> bool:
    """Whether nobody listens there."""
    try:
        traffic.connect(address, port).close()
    except ConnectionRefusedError:
        return True
    return False


# --- all of it ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def step(result: Result, name: str) -> Iterator[None]:
    """Run a part; what fails in it is noted, and the others still run."""
    began = time.monotonic()
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        result.failures.append(f"{name}: {type(error).__name__}: {error}")
        print(f"✗ {name}", flush=True)
    else:
        print(f"✓ {name} ({time.monotonic() - began:.0f} s)", flush=True)


def main(release: str, path: str, *arguments: str) -> int:
    """Try everything; return the exit status."""
    if os.uname().release != release:
        print(f"this is kernel {os.uname().release}, not {release}", file=sys.stderr)
        return 1
    # Before 5.11 maps count against this limit, which is small by default.
    import resource

    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.environ["PYBPFASM_CACHE"] = ""  # every probe is to be tried, and the host's file left alone
    os.environ["CI"] = "true"  # a skip is a failure, unless the kernel is too old
    os.environ.setdefault("PYBPFASM_DIFFERENTIAL", "100")
    os.environ.setdefault("PYBPFASM_PATIENCE", str(PATIENCE))
    # Nobody loads it when /dev/net/tun is opened, for that is not there before.
    subprocess.run(["modprobe", "tun"], check=False)
    result = Result(release)
    parts: dict[str, Callable[[Result], None]] = {
        "probes": check_probes,
        "TCX": check_tcx,
        "programs": check_programs,
        "connections": check_connections,
    }
    if not any(not one.startswith("-") for one in arguments):
        for name, part in parts.items():
            with step(result, name):
                part(result)
    with step(result, "kernel tests"):
        from tests.kernels.chosen import run

        result.tests = run(kernel_version(release), list(arguments))
        assert result.tests["failed"] == 0, f"{result.tests['failed']} kernel tests failed"
    Path(path).write_text(json.dumps(vars(result), indent=1) + "\n")
    for line in result.failures:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
