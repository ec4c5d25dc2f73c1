# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m loader demo``: the whole path in network namespaces of this host, with proof of each part of
it.

Builds the playground, starts an application and Envoy in it, runs the ``up``, ``status`` and ``down`` that
users run, sends requests in between, and checks what it shows: a proof that fails is an error. Whatever ends
it, nothing is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from loader.errors import LoaderError

if TYPE_CHECKING:
    from loader.envoy import Envoy
    from loader.playground import Capture, Playground

PORT = 8000
REQUESTS = 5


class DemoError(LoaderError):
    """A step failed, or what it showed is not what it should have shown."""


class Printer:
    """Shows the steps on standard output; nothing with ``silent``."""

    def __init__(self, silent: bool) -> None:
        from rich.console import Console

        self.console = Console(quiet=silent, highlight=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """Show `title` while the block runs, and then how long it took. The block may add a remark to it."""
        started = time.monotonic()
        remark = ""

        def add(text: str) -> None:
            nonlocal remark
            remark = f": {text}"

        with self.console.status(title):
            yield add
        took = time.monotonic() - started
        self.console.print(f"[green]✓[/green] {title}{remark} [dim]({took:.2f} s)[/dim]")

    def command(self, argv: Sequence[str], where: str) -> None:
        """Show a command as it would be typed."""
        self.console.print(f"  [cyan]{where}#[/cyan] [bold]{shlex.join(argv)}[/bold]", soft_wrap=True)

    def line(self, text: str = "") -> None:
        """Show a line."""
        self.console.print(text, soft_wrap=True)

    def data(self, value: object) -> None:
        """Show facts as JSON; brackets in it are no markup."""
        self.console.print(f"  {json.dumps(value)}", soft_wrap=True, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Show a table."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


@dataclass(frozen=True)
class Answer:
    """What a request of the client got, and what the client's own socket said about its far end."""

    status: int
    body: dict[str, Any]
    peer: tuple[str, int]


def fetch(playground: Playground, address: str, path: str = "/") -> Answer:
    """Make one HTTP request from the client's namespace, on a connection of its own. Raises OSError."""
    from http.client import HTTPConnection

    http = HTTPConnection(address, PORT)
    http.sock = playground.client.connect(address, PORT)
    try:
        peer = http.sock.getpeername()
        http.request("GET", path, headers={"connection": "close"})
        response = http.getresponse()
        return Answer(response.status, json.loads(response.read()), (peer[0], peer[1]))
    finally:
        http.close()


def expect(true: bool, otherwise: str) -> None:
    """Raise DemoError with `otherwise` unless `true`."""
    if not true:
        raise DemoError(otherwise, hint="`python -m loader doctor` says what this host lacks")


class Demo:
    """One run. ``facts`` is what was found, for --json."""

    def __init__(self, playground: Playground, printer: Printer, accelerate: bool) -> None:
        self.playground = playground
        self.printer = printer
        self.accelerate = accelerate
        self.name = f"demo-{os.getpid()}"
        self.facts: dict[str, Any] = {"name": self.name}

    def loader(self, *arguments: str, shown: Sequence[str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the command line that users run, and show it. Raises DemoError with its own words if it
        fails.
        """
        self.printer.command(["python", "-m", "loader", *(arguments if shown is None else shown)], "server")
        result = self.playground.loader(*arguments)
        if result.returncode != 0:
            raise DemoError(
                f"`loader {shlex.join(arguments)}` failed with status {result.returncode}:\n"
                f"{(result.stderr or result.stdout).strip()}"
            )
        return result

    def before(self, envoy: Envoy) -> None:
        """Without the programs the client reaches the application itself."""
        from loader.playground import CLIENT, SERVER

        with self.printer.step(f"before: GET http://{SERVER}:{PORT}/ from the client") as remark:
            answer = fetch(self.playground, SERVER)
            expect(
                answer.body["peer"][0] == CLIENT, f"the application saw {answer.body['peer']}, not the client"
            )
            expect(not envoy.access_log(), "Envoy saw a request before anything was redirected")
            remark(f"{answer.status}, the application talks to {answer.body['peer'][0]}, Envoy saw nothing")

    def up(self) -> None:
        """The command that users run."""
        options = ["--iface", "eth0", "--ports", str(PORT)]
        options += [] if self.accelerate else ["--no-accelerate"]
        with self.printer.step("up: assemble, load, attach"):
            self.loader("up", *options, *self.playground.target(), "--name", self.name)

    def requests(self, envoy: Envoy, capture: Capture) -> None:
        """The same requests as before take another way, and nobody notices."""
        from loader.playground import CLIENT, CLIENT6, SERVER, SERVER6

        answers: list[Answer] = []
        with self.printer.step(
            f"{REQUESTS} requests over IPv4 and {REQUESTS} over IPv6, as before"
        ) as remark:
            for address in [SERVER, SERVER6] * REQUESTS:
                answers.append(fetch(self.playground, address, f"/?{len(answers)}"))
            logged = envoy.wait_access_log(lambda entry: True, count=len(answers))
            remark(f"{len(answers)} answers, {len(logged)} lines in Envoy's access log")
        expect(all(answer.status == 200 for answer in answers), "not every answer has status 200")
        expect(len(logged) == len(answers), f"{len(answers)} requests, but Envoy logged {len(logged)}")

        for answer, entry in zip(answers, sorted(logged, key=lambda e: int(e["path"][2:])), strict=True):
            client = CLIENT6 if ":" in answer.peer[0] else CLIENT
            expect(entry["upstream_cluster"] == "original-dst", f"unexpected upstream cluster: {entry}")
            remote = entry["downstream_remote"].rpartition(":")[0].strip("[]")
            expect(remote == client, f"Envoy took {remote} for the client, which is {client}")
            host, _, port = entry["upstream_host"].rpartition(":")
            expect((host.strip("[]"), int(port)) == answer.peer, f"Envoy went to {entry['upstream_host']}")

        packets = [p for p in capture.packets() if p.remote in (SERVER, SERVER6)]
        ports = sorted({packet.remote_port for packet in packets})
        peers = sorted({answer.peer for answer in answers})
        expect(ports == [PORT], f"the client exchanged packets with ports {ports}")
        expect(peers == sorted([(SERVER, PORT), (SERVER6, PORT)]), f"the client's sockets saw {peers}")
        self.facts |= {
            "answer": answers[0].body,
            "access_log": logged,
            "client": {"peers": peers, "packets": len(packets), "remote_ports": ports},
        }

        self.printer.line()
        self.printer.line("[bold]The answer[/bold], from the application:")
        self.printer.data(answers[0].body)
        self.printer.line("[bold]Envoy's access log[/bold], first line of each family:")
        for entry in logged[:2]:
            self.printer.data(entry)
        self.printer.line(
            f"[bold]The client[/bold] saw only {SERVER} and {SERVER6}, port {PORT}: "
            f"{len(answers)} sockets asked with getpeername, {len(packets)} packets captured."
        )

    def status(self) -> None:
        """The counters of the hooks."""
        status = json.loads(self.loader("status", "--json", "--name", self.name).stdout)
        self.facts["status"] = status
        self.printer.table("The hooks", ["hook", "where", "program", "counters"], hook_rows(status))

    def down(self, envoy: Envoy) -> None:
        """And back."""
        from loader.playground import CLIENT, SERVER

        with self.printer.step("down: everything is removed"):
            self.loader("down", "--name", self.name)
        with self.printer.step("after: the same request again") as remark:
            seen = len(envoy.access_log())
            answer = fetch(self.playground, SERVER)
            expect(
                answer.body["peer"][0] == CLIENT, "the application does not talk to the client itself again"
            )
            expect(len(envoy.access_log()) == seen, "Envoy still sees requests")
            remark(f"{answer.status}, the application talks to {answer.body['peer'][0]} again")


def hook_rows(status: Mapping[str, Any]) -> list[list[str]]:
    """The lines of the table of hooks, from the document that ``status --json`` prints."""
    from loader.status import hook_place

    rows = []
    for hook in status["hooks"]:
        named = status["counters"].get(hook["hook"], {})
        moved = ", ".join(f"{name} {value:,}" for name, value in named.items() if value)
        rows.append([hook["hook"], hook_place(hook), hook["program"]["name"], moved or "all 0"])
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo`` to a parser."""
    parser.add_argument(
        "--no-accelerate", action="store_true", help="leave out the socket-to-socket short-cut"
    )
    parser.add_argument("--json", action="store_true", help="print what was found as one JSON document")
    parser.add_argument(
        "--pause", action="store_true", help="wait for Enter before `down`, to look around in the playground"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the demo. Returns 0; 130 after Ctrl-C. Raises LoaderError if a step or a proof fails."""

    def terminated(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminated)
    signal.signal(signal.SIGHUP, terminated)
    printer = Printer(silent=arguments.json)
    started = time.monotonic()
    try:
        facts = _run(arguments, printer)
    except KeyboardInterrupt:
        printer.line("\n[yellow]interrupted[/yellow]: everything was removed")
        return 130
    if arguments.json:
        print(json.dumps(facts, indent=2))
    printer.line(
        f"[green]✓[/green] nothing is left of it [dim](all in {time.monotonic() - started:.1f} s)[/dim]"
    )
    return 0


def _run(arguments: argparse.Namespace, printer: Printer) -> dict[str, Any]:
    if os.geteuid() != 0:
        from loader.errors import CapabilityError

        raise CapabilityError(
            "the demo builds network namespaces and loads BPF programs, which takes root",
            missing=["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_BPF"],
            hint="run it with sudo",
        )
    from loader.envoy import find_binary
    from loader.playground import CLIENT, SERVER, Playground

    find_binary()  # before anything is built
    with printer.step("client, gateway and server in network namespaces"):
        playground = Playground()
    with playground:
        printer.line(f"  client {CLIENT}/16 ── gateway 10.0.0.2, 192.168.178.2 ── server {SERVER}/24 (eth0)")
        demo = Demo(playground, printer, accelerate=not arguments.no_accelerate)
        with printer.step(f"an HTTP application on the server's port {PORT}"):
            playground.start_application(f"http:{PORT}")
        with printer.step("Envoy on the server's port 8080") as remark:
            envoy = playground.start_envoy("original-dst-dual")
            remark("envoy/original-dst-dual.yaml")
        demo.before(envoy)
        demo.up()
        with playground.client.capture() as capture:
            demo.requests(envoy, capture)
        demo.status()
        if arguments.pause:
            printer.line(f"\nA shell on the server: [bold]nsenter --net={playground.server.path}[/bold]")
            with contextlib.suppress(EOFError):  # nobody is there to type
                input("Enter goes on with `down`: ")
        demo.down(envoy)
        with printer.step("processes, namespaces, cgroup and mounts are removed") as remark:
            playground.close()
            expect_gone(demo.facts["status"])
            remark("no program, map or link of it is left in the kernel")
    return demo.facts


def expect_gone(status: Mapping[str, Any], patience: float = 10.0) -> None:
    """Raise DemoError unless the kernel has freed what `status` names within `patience` seconds.

    It frees a little later than the last reference goes.
    """
    from loader import objects

    ids = {
        "programs": {hook["program"]["id"] for hook in status["hooks"]},
        "links": {hook["link_id"] for hook in status["hooks"] if "link_id" in hook},
        "maps": {one["id"] for one in status["maps"]},
    }
    deadline = time.monotonic() + patience
    while True:
        now = {"programs": objects.programs(), "links": objects.links(), "maps": objects.maps()}
        left = {kind: sorted(ids[kind] & set(there)) for kind, there in now.items()}
        if not any(left.values()):
            return
        expect(time.monotonic() < deadline, f"the kernel still has {left}")
        time.sleep(0.02)


def main(argv: Sequence[str] | None = None) -> int:
    """The demo alone, for ``python -m loader.demo``; the command line proper is loader.cli."""
    parser = argparse.ArgumentParser(prog="python -m loader demo", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv))
    except LoaderError as error:
        print(f"demo: {error}", file=sys.stderr)
        if error.hint:
            print(f"      {error.hint}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
