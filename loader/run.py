# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``run``: Envoy with a configuration that matches, the proxy up in front of it, and both gone at the end."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from loader import envoy
from loader import plan as planning
from loader.down import down
from loader.errors import ConflictError, LoaderError, UsageError
from loader.instance import open_instance
from loader.netns import NetNs, listeners
from loader.plan import Request
from loader.process import Place, if_killed, spawn, stop
from loader.up import up

__all__ = ["DEFAULT_CONFIG", "run"]

DEFAULT_CONFIG = "original-dst-dual"


class _Ended(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def run(
    request: Request,
    config: str,
    arguments: Sequence[str],
    *,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> int:
    """Start Envoy, bring the proxy up, wait until Envoy ends or a signal comes, and take both down.

    ``config`` is the name of one of our Envoy files, or the path of another one, which is taken as it is.
    ``arguments`` go to Envoy. If this process is killed, a child of it takes the proxy down. Returns Envoy's
    own exit status; 128 and the number of a signal that has ended it, or this. Raises
    :class:`~loader.errors.LoaderError`.
    """
    if (there := open_instance(request.name, request.bpffs)) is not None:
        there.close()
        raise ConflictError(
            f"instance {request.name!r} is up already",
            hint=f"take it down first (down --name {request.name}), or choose another --name",
        )
    with planning.make(request) as plan:  # what cannot be is said before Envoy starts
        cgroup = plan.cgroup.path if request.cgroup is not None else None
        with plan.netns.entered():
            _refuse_taken_port(request.settings.envoy_port)
    binary = envoy.find_binary()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def ended(number: int, frame: FrameType | None) -> None:
        raise _Ended(number)

    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pybpfasm-run-")))

        def clear_up() -> None:
            shutil.rmtree(directory, ignore_errors=True)
            try:
                down(request.name, request.bpffs)
            except LoaderError as error:
                print(f"run was killed, and the proxy could not be taken down: {error}", file=sys.stderr)

        # The kernel ends Envoy when this process dies; without Envoy the proxy would refuse every connection.
        stack.enter_context(if_killed(clear_up))
        netns = stack.enter_context(NetNs.open(request.netns))
        with netns.entered():
            path = _config(request, config, directory, say)
        envoy.validate(path, binary)
        for number in signals:
            stack.callback(signal.signal, number, signal.signal(number, ended))
        command: list[str | Path] = [
            binary,
            "-c",
            path,
            "--disable-hot-restart",
            "--log-level",
            "warning",
            *arguments,
        ]
        try:
            process = spawn(command, Place(netns=netns, cgroup=cgroup), stdout=sys.stdout, stderr=sys.stderr)
            stack.callback(stop, process)
            _wait(netns, request.settings.envoy_port, process)
            # A signal waits until what is up will be taken down too; `up` itself looks for it.
            masked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
            try:
                result = up(request)
                stack.callback(down, request.name, request.bpffs)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, masked)
            for warning in result.warnings:
                warn(warning)
            settings = request.settings
            say(
                f"ports {settings.ports} on {', '.join(request.interfaces)} go through Envoy "
                f"(process {process.pid}, port {settings.envoy_port}); Ctrl-C ends both"
            )
            status = process.wait()
            if status < 0:
                say(f"Envoy was ended by {signal.Signals(-status).name}; the proxy goes down")
                return 128 - status
            say(f"Envoy has ended with status {status}; the proxy goes down")
        except _Ended as end:
            for number in signals:
                signal.signal(number, signal.SIG_IGN)  # what follows is the end already
            return 128 + end.number
    return status


def _refuse_taken_port(port: int) -> None:
    """Whoever listens there already would be taken for the Envoy that is to be started."""
    if found := listeners(port):
        addresses = ", ".join(sorted({str(one.address) for one in found}))
        raise ConflictError(
            f"somebody listens on TCP port {port} already, at {addresses}",
            hint="if that is your Envoy, `up` puts the proxy before it; else choose another --envoy-port",
        )


def _config(request: Request, config: str, directory: Path, say: Callable[[str], None]) -> Path:
    """Return the configuration file; one of ours gets the ports and the mark of the request.

    To be called in the network namespace where Envoy will listen.
    """
    if "/" in config or config.endswith((".yaml", ".json")):
        if not Path(config).is_file():
            raise UsageError(f"there is no file {config}", hint="give a path, or a name without .yaml")
        return Path(config)
    settings = request.settings
    ports = {"listener_port": settings.envoy_port}
    if config.startswith("static"):  # one cluster, at one port
        if len(settings.ports) > 1:
            raise UsageError(
                f"the Envoy file {config!r} sends everything to one port, and these are {settings.ports}",
                hint=f"name one port, or take --config {DEFAULT_CONFIG}, which asks where each was going",
            )
        (ports["application_port"],) = settings.ports
    if settings.envoy_port == envoy.ADMIN_PORT or listeners(envoy.ADMIN_PORT):
        ports["admin_port"] = _free_port()
        say(
            f"port {envoy.ADMIN_PORT} is taken: Envoy's admin interface is at 127.0.0.1:{ports['admin_port']}"
        )
    path = directory / f"{config}.yaml"
    path.write_text(envoy.render(config, mark=settings.mark.value, **ports), encoding="utf-8")
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(netns: NetNs, port: int, process: Any, timeout: float = 15.0) -> None:
    """Wait until somebody listens on a port."""
    import time

    deadline = time.monotonic() + timeout
    while True:
        with netns.entered():
            if listeners(port):
                return
        if process.poll() is not None:
            raise envoy.EnvoyError(
                f"Envoy ended with status {process.returncode} before it listened",
                hint="its own messages stand above",
            )
        if time.monotonic() > deadline:
            raise envoy.EnvoyError(
                f"Envoy does not listen on port {port} after {timeout:g} s",
                hint="its listener must have the port that --envoy-port says",
            )
        time.sleep(0.02)
