# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""A client, a gateway and a server in network namespaces of one host, with an application and a real Envoy.

    client 10.0.0.20/16 ── 10.0.0.2/16 gateway 192.168.178.2/24 ── 192.168.178.10/24 server
    client fd00:10::20/64 ── fd00:10::2/64 gateway fd00:192:168:178::2/64 ── fd00:192:168:178::10/64 server

Nothing of it has a name or outlives this process. The namespaces exist as open descriptors only, the
processes get SIGKILL when this one ends, bpffs is mounted in a mount namespace that is held by a descriptor
as well, and a small guardian process removes the cgroup and the directory, whatever way this process ended.

The server's interface is called eth0, so that what is typed for it is what is typed on a real host.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from loader import envoy
from loader.bpffs import mounts
from loader.cgroup import find_cgroup2
from loader.errors import CapabilityError, LoaderError
from loader.netns import NetNs
from loader.process import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    Place,
    Stream,
    call,
    die_with_parent,
    mount,
    setns,
    signals_wait,
    spawn,
    stop,
    umount,
    unshare,
)

T = TypeVar("T")

CLIENT = "10.0.0.20"
CLIENT6 = "fd00:10::20"
SERVER = "192.168.178.10"
SERVER6 = "fd00:192:168:178::10"
BPFFS = "/sys/fs/bpf"

_GATEWAY_OUTER = "10.0.0.2"
_GATEWAY_INNER = "192.168.178.2"
_GATEWAY_OUTER6 = "fd00:10::2"
_GATEWAY_INNER6 = "fd00:192:168:178::2"

_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_HERE = Path(__file__).resolve().parent
_counter = itertools.count()


class PlaygroundError(LoaderError):
    """The playground could not be built, or something in it did not come up."""


class Namespace:
    """A network namespace without a name: it lives as long as its descriptor or a process in it does."""

    def __init__(self, name: str) -> None:
        self.name = name
        with NetNs.current() as before:
            unshare(CLONE_NEWNET)
            try:
                self.netns = NetNs.current()
            finally:
                setns(before.fd, CLONE_NEWNET)

    @property
    def path(self) -> str:
        """A path by which other processes reach the namespace while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.netns.fd}"

    def enter(self) -> AbstractContextManager[NetNs]:
        """A context: the calling thread is in the namespace, and sockets made there stay there."""
        return self.netns.entered()

    def call(self, function: Callable[[], T], *, cgroup: Path | None = None) -> T:
        """Call `function` in a forked child in the namespace; return its result (see loader.process.call)."""
        return call(function, Place(netns=self.netns, cgroup=cgroup))

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        cgroup: Path | None = None,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
    ) -> subprocess.Popen[Any]:
        """Start a program in the namespace; it is killed when this process ends (see
        loader.process.spawn).
        """
        place = Place(netns=self.netns, cgroup=cgroup)
        return spawn(argv, place, stdin=stdin, stdout=stdout, stderr=stderr)

    def run(
        self, argv: Sequence[str | os.PathLike[str]], *, cgroup: Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program in the namespace to its end and return its status and output."""
        process = self.popen(argv, cgroup=cgroup, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            stop(process, 0)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def connect(self, address: str, port: int, *, source_port: int = 0, timeout: float = 10) -> socket.socket:
        """Return a TCP connection that was made from inside the namespace. Raises OSError."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with self.enter():
            connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            if source_port:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                connection.bind(("", source_port))
            connection.connect((address, port))
        except BaseException:
            connection.close()
            raise
        return connection

    def sysctl(self, name: str, value: object) -> None:
        """Set a sysctl below net, ``ipv4/ip_forward`` say, in the namespace. Raises OSError."""
        with self.enter():
            Path("/proc/sys/net", name).write_text(str(value))

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """A context that records the TCP packets which every interface of the namespace sends and
        receives.
        """
        with self.enter():
            capture = Capture()
        try:
            yield capture
        finally:
            capture.close()

    def close(self) -> None:
        """Let go of the namespace."""
        self.netns.close()


@dataclass(frozen=True)
class Packet:
    """One captured TCP packet: both ends, the TCP flags byte, and whether this host sent it."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    flags: int
    outgoing: bool

    @property
    def remote_port(self) -> int:
        """The port of the far end."""
        return self.destination_port if self.outgoing else self.source_port

    @property
    def remote(self) -> str:
        """The address of the far end."""
        return self.destination if self.outgoing else self.source


class Capture:
    """A packet socket (AF_PACKET) of the current network namespace; packets queue up until they are read."""

    _ETH_P_ALL = 3
    _SO_RCVBUFFORCE = 33
    _SOL_PACKET = 263
    _PACKET_STATISTICS = 6
    _PACKET_OUTGOING = 4

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(self._ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, self._SO_RCVBUFFORCE, 64 << 20)
        self._socket.setblocking(False)
        self._packets: list[Packet] = []

    def packets(self) -> list[Packet]:
        """Return all TCP packets so far. Raises PlaygroundError if some were lost."""
        while True:
            try:
                data, address = self._socket.recvfrom(128)
            except BlockingIOError:
                break
            packet = parse_tcp(data, outgoing=address[2] == self._PACKET_OUTGOING)
            if packet is not None:
                self._packets.append(packet)
        # struct tpacket_stats: packets, drops
        lost = self._socket.getsockopt(self._SOL_PACKET, self._PACKET_STATISTICS, 8)[4:]
        if any(lost):
            raise PlaygroundError(f"the capture lost {int.from_bytes(lost, sys.byteorder)} packets")
        return list(self._packets)

    def close(self) -> None:
        """Stop recording."""
        self._socket.close()


def parse_tcp(data: bytes, *, outgoing: bool) -> Packet | None:
    """Return the TCP packet that starts with its IPv4 or IPv6 header at byte 0, or None if it is no such
    thing.

    IPv6 extension headers and fragments are not followed: the playground sends none.
    """
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20 and data[9] == socket.IPPROTO_TCP:
        offset, family = (data[0] & 15) * 4, socket.AF_INET
        source, destination = data[12:16], data[16:20]
    elif version == 6 and len(data) >= 40 and data[6] == socket.IPPROTO_TCP:
        offset, family = 40, socket.AF_INET6
        source, destination = data[8:24], data[24:40]
    else:
        return None
    if len(data) < offset + 14:
        return None
    return Packet(
        socket.inet_ntop(family, source),
        int.from_bytes(data[offset : offset + 2], "big"),
        socket.inet_ntop(family, destination),
        int.from_bytes(data[offset + 2 : offset + 4], "big"),
        data[offset + 13],
        outgoing,
    )


class Application:
    """The running application (see loader.application)."""

    def __init__(self, process: subprocess.Popen[Any], log_path: Path) -> None:
        self.process = process
        self.log_path = log_path

    def log(self) -> list[dict[str, Any]]:
        """Return what the application said of each finished request or connection."""
        return [entry for entry in envoy.parse_access_log(self.log_path.read_text()) if "ready" not in entry]

    def stop(self) -> None:
        """End the application."""
        stop(self.process)


class Playground:
    """The whole playground, as a context.

    ``client``, ``gateway`` and ``server`` are its namespaces, ``cgroup`` the cgroup2 directory in which Envoy
    and the application run, ``directory`` the place of log files. Build and use it in one thread that
    outlives it. ``patience`` multiplies every time limit, for a machine that is slow, an emulated one say.

    Raises CapabilityError if this process may not make namespaces, PlaygroundError if something is missing.
    """

    def __init__(self, *, bpffs: bool = True, patience: float = 1.0) -> None:
        self._stack = ExitStack()
        self._bpffs = bpffs
        self._patience = patience
        self.number = next(_counter)
        self.name = f"{os.getpid()}-{self.number}"
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        root = find_cgroup2()
        token = secrets.token_hex(4)
        self.cgroup = root / f"pybpfasm-playground-{self.name}-{token}"
        self.directory = Path(tempfile.gettempdir(), f"pybpfasm-playground-{self.name}-{token}")
        self._start_guardian()
        try:
            self.cgroup.mkdir()
            self.directory.mkdir(mode=0o700)
            self.mntns = _mount_namespace(self._bpffs)
            self._stack.callback(os.close, self.mntns)
            self.client, self.gateway, self.server = (
                self._namespace(n) for n in ("client", "gateway", "server")
            )
        except PermissionError as error:
            raise CapabilityError(
                f"this process may not build a playground: {error}",
                missing=["CAP_SYS_ADMIN", "CAP_NET_ADMIN"],
                hint="run it as root",
            ) from error
        self._wire()

    def _start_guardian(self) -> None:
        argv: list[str | Path] = [sys.executable, "-I", "-S", _HERE / "guardian.py"]
        argv += ["--cgroup", self.cgroup, "--directory", self.directory]
        guardian = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/"
        )
        self.guardian_pid = guardian.pid

        def end() -> None:
            assert guardian.stdin is not None and guardian.stdout is not None
            guardian.stdin.close()
            guardian.wait()
            guardian.stdout.close()
            if guardian.returncode != 0:
                raise PlaygroundError(f"{self.cgroup} or {self.directory} could not be removed")

        self._stack.callback(end)
        # It must ignore signals before there is anything to clean up.
        assert guardian.stdout is not None
        if guardian.stdout.readline() != b"ready\n":
            raise PlaygroundError("the guardian process did not start")

    def _namespace(self, name: str) -> Namespace:
        namespace = Namespace(name)
        self._stack.callback(namespace.close)
        return namespace

    def _wire(self) -> None:
        for namespace in (self.client, self.gateway, self.server):
            # Duplicate address detection would make the first second of every address unusable.
            for scope in ("all", "default"):
                namespace.sysctl(f"ipv6/conf/{scope}/accept_dad", 0)
                namespace.sysctl(f"ipv6/conf/{scope}/router_solicitations", 0)
        self.gateway.sysctl("ipv4/ip_forward", 1)
        self.gateway.sysctl("ipv6/conf/all/forwarding", 1)

        from pyroute2 import IPRoute

        with self.gateway.enter(), IPRoute() as netlink:
            for name, far in (("eth0", self.client), ("eth1", self.server)):
                netlink.link(
                    "add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": far.netns.fd}
                )
        outer = {"eth0": [(_GATEWAY_OUTER, 16), (_GATEWAY_OUTER6, 64)]}
        inner = {"eth1": [(_GATEWAY_INNER, 24), (_GATEWAY_INNER6, 64)]}
        _configure(self.gateway, outer | inner)
        _configure(self.client, {"eth0": [(CLIENT, 16), (CLIENT6, 64)]}, _GATEWAY_OUTER, _GATEWAY_OUTER6)
        _configure(self.server, {"eth0": [(SERVER, 24), (SERVER6, 64)]}, _GATEWAY_INNER, _GATEWAY_INNER6)

    def start_application(self, *listen: str, dual: bool = False) -> Application:
        """Start the application on the server, ``start_application("http:8000", "echo:9000")`` say, and
        return it once it listens. `dual` makes it serve IPv4 and IPv6 with one socket.
        """
        argv: list[str | os.PathLike[str]] = [sys.executable, "-I", _HERE / "application.py", *listen]
        argv += ["--dual"] * dual
        log_path = self.directory / f"application-{secrets.token_hex(4)}.log"
        with log_path.open("wb") as log:
            process = self.server.popen(argv, cgroup=self.cgroup, stdout=log, stderr=subprocess.STDOUT)
        self._stack.callback(stop, process)
        deadline = time.monotonic() + 15 * self._patience
        while not log_path.read_text().startswith('{"ready": true}\n'):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PlaygroundError(f"the application did not start:\n{log_path.read_text()}")
            time.sleep(0.01)
        return Application(process, log_path)

    def start_envoy(
        self,
        name: str = "original-dst",
        *,
        listener_port: int = envoy.LISTENER_PORT,
        application_port: int = envoy.APPLICATION_PORT,
        admin_port: int = envoy.ADMIN_PORT,
        mark: int = envoy.MARK,
        concurrency: int = 2,
    ) -> envoy.Envoy:
        """Start Envoy on the server with our file `name`, and return it once it listens."""
        directory = self.directory / f"envoy-{secrets.token_hex(4)}"
        directory.mkdir()
        config = directory / f"{name}.yaml"
        config.write_text(
            envoy.render(
                name,
                listener_port=listener_port,
                application_port=application_port,
                admin_port=admin_port,
                mark=mark,
            )
        )
        place = Place(netns=self.server.netns, cgroup=self.cgroup)
        proxy = envoy.Envoy(
            config, place=place, directory=directory, concurrency=concurrency, admin_port=admin_port
        )
        self._stack.callback(proxy.stop)
        return proxy.start(15 * self._patience)

    def loader(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run ``python -m loader`` with `arguments`, in this host's network namespace and the playground's
        mount namespace, where bpffs is mounted at /sys/fs/bpf. Returns its status and output.
        """
        argv = [sys.executable, "-m", "loader", *arguments]
        process = spawn(
            argv,
            Place(mntns=self.mntns),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_HERE.parent,
        )
        try:
            out, err = process.communicate(timeout=timeout * self._patience)
        finally:
            stop(process, 0)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def target(self) -> list[str]:
        """The arguments that point ``up`` at the server: --netns and --cgroup."""
        return ["--netns", self.server.path, "--cgroup", str(self.cgroup)]

    def close(self) -> None:
        """Take everything down, in the opposite order. Raises PlaygroundError if something could not be
        removed.
        """
        self._stack.close()

    def __enter__(self) -> Playground:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _configure(
    namespace: Namespace,
    addresses: dict[str, list[tuple[str, int]]],
    *gateways: str,
) -> None:
    from pyroute2 import IPRoute

    with namespace.enter(), IPRoute() as netlink:
        netlink.link("set", index=1, state="up")  # lo
        for name, of_link in addresses.items():
            index = netlink.link_lookup(ifname=name)[0]
            netlink.link("set", index=index, state="up")
            for address, prefix in of_link:
                netlink.addr("add", index=index, address=address, prefixlen=prefix)
        for gateway in gateways:
            family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
            netlink.route("add", dst="default", gateway=gateway, family=family)


def _mount_namespace(bpffs: bool) -> int:
    """Return a descriptor of a new mount namespace with a bpffs of its own at /sys/fs/bpf, or none."""
    parent = os.getpid()
    from_child, to_parent = os.pipe()
    with signals_wait():
        child = os.fork()
        if child == 0:
            try:
                os.close(from_child)
                die_with_parent(parent)
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                unshare(CLONE_NEWNS)
                mount("none", "/", None, _MS_REC | _MS_PRIVATE)
                while os.path.ismount(BPFFS):
                    umount(BPFFS)
                if bpffs:
                    mount("bpf", BPFFS, "bpf", 0)
                os.write(to_parent, json.dumps({}).encode())
                signal.pause()
            except OSError as error:
                os.write(to_parent, json.dumps({"errno": error.errno, "text": str(error)}).encode())
            finally:
                os._exit(1)
    os.close(to_parent)
    try:
        answer = json.loads(os.read(from_child, 4096) or b'{"text": "the child died"}')
        if answer.get("errno") == errno.EINVAL and not any(m.mount_point == Path("/") for m in mounts()):
            raise PlaygroundError(
                "this process runs in a chroot, which a mount namespace of its own would leave",
                hint="run it in a container, in a virtual machine, or on the host itself",
            )
        if answer:
            raise OSError(answer.get("errno"), f"a private bpffs cannot be prepared: {answer['text']}")
        return os.open(f"/proc/{child}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(from_child)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
