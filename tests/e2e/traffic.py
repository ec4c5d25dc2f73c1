# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Clients that move data and check every byte of it. They run in a forked child, so that they can be
anywhere.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import select
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loader.application import pattern

SIZES = [0, 1, 64, 1447, 1448, 1449, 16 << 10, 64 << 10, 65537, 300_001, 1 << 20]
TIMEOUT = 30


@dataclass(frozen=True)
class Outcome:
    """What one connection of a client did. ``sha256`` is of what it sent; ``error`` is empty if all was
    right.
    """

    local: tuple[str, int]
    peer: tuple[str, int]
    sent: int
    sha256: str
    error: str = ""


def payload(number: int, size: int) -> bytes:
    """The bytes that connection `number` sends: no two connections send the same."""
    return pattern(b"connection %d" % number, size)


def mixed_sizes(count: int, seed: int = 1) -> list[int]:
    """`count` sizes, each of SIZES about equally often, in an order that depends on `seed` only."""
    sizes = [SIZES[number % len(SIZES)] for number in range(count)]
    random.Random(seed).shuffle(sizes)
    return sizes


def connect(address: str, port: int, source_port: int = 0) -> socket.socket:
    """A TCP connection from where the caller is."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.settimeout(TIMEOUT)
        if source_port:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            connection.bind(("", source_port))
        connection.connect((address, port))
    except BaseException:
        connection.close()
        raise
    return connection


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send `data`, then FIN, and return everything that comes until the other side's FIN; both at the same
    time.
    """
    connection.setblocking(False)
    poll = select.poll()
    poll.register(connection, select.POLLIN | select.POLLOUT)
    view, received = memoryview(data), bytearray()
    sending = True
    while True:
        if not poll.poll(TIMEOUT * 1000):
            raise TimeoutError(
                f"nothing happened for {TIMEOUT} s; {len(view)} to send, {len(received)} received"
            )
        if sending:
            try:
                view = view[connection.send(view[: 1 << 16]) :]
            except BlockingIOError:
                pass
            if not view:
                connection.shutdown(socket.SHUT_WR)
                poll.modify(connection, select.POLLIN)
                sending = False
        try:
            while chunk := connection.recv(1 << 18):
                received += chunk
            return bytes(received)
        except BlockingIOError:
            pass


def wanted_answer(protocol: str, data: bytes) -> bytes:
    """What the application must answer to `data`."""
    digest = hashlib.sha256(data).digest()
    return data + digest if protocol == "echo" else digest + pattern(digest, len(data))


def _difference(got: bytes, wanted: bytes) -> str:
    if got == wanted:
        return ""
    same = next(
        (i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted))
    )
    return f"{len(got)} bytes came instead of {len(wanted)}, they differ from byte {same} on"


def tcp_clients(
    address: str, ports: Sequence[tuple[str, int]], sizes: Sequence[int], first_port: int = 0
) -> list[Outcome]:
    """One connection for each of `sizes`, all open at once, to `ports` ((protocol, port) pairs) in turn.

    Their own ports are `first_port` and those that follow. Left to itself (0) the kernel may give connections
    to different ports the same one, and of such a pair the proxy refuses the second.
    """
    everyone_connected = threading.Barrier(len(sizes), timeout=TIMEOUT)

    def one(number: int) -> Outcome:
        protocol, port = ports[number % len(ports)]
        data = payload(number, sizes[number])
        digest = hashlib.sha256(data).hexdigest()
        try:
            connection = connect(address, port, first_port and first_port + number)
        except BaseException:
            everyone_connected.abort()
            raise
        with connection:
            local, peer = connection.getsockname()[:2], connection.getpeername()[:2]
            everyone_connected.wait()
            answer = exchange(connection, data)
        return Outcome(local, peer, len(data), digest, _difference(answer, wanted_answer(protocol, data)))

    return in_parallel(len(sizes), one)


def http_clients(address: str, port: int, sizes: Sequence[int]) -> list[Outcome]:
    """For each of `sizes` a kept-alive connection that uploads so much and downloads so much, all open at
    once.
    """
    everyone_connected = threading.Barrier(len(sizes), timeout=TIMEOUT)

    def one(number: int) -> Outcome:
        data = payload(number, sizes[number])
        digest = hashlib.sha256(data).hexdigest()
        client = http.client.HTTPConnection(address, port)
        try:
            client.sock = connect(address, port)
        except BaseException:
            everyone_connected.abort()
            raise
        try:
            local, peer = client.sock.getsockname()[:2], client.sock.getpeername()[:2]
            everyone_connected.wait()
            client.request("POST", f"/upload/{number}", data)
            said = json.loads(client.getresponse().read())
            error = "" if said == {"bytes": len(data), "sha256": digest} else f"the application got {said}"
            path = f"/bytes/{len(data)}"
            client.request("GET", path)
            error = error or _difference(client.getresponse().read(), pattern(path.encode(), len(data)))
        finally:
            client.close()
        return Outcome(local, peer, len(data), digest, error)

    return in_parallel(len(sizes), one)


def get(address: str, port: int, path: str = "/") -> dict[str, Any]:
    """The JSON document at `path`, on a connection of its own; ``status`` and both ends of the socket are
    added.
    """
    client = http.client.HTTPConnection(address, port)
    client.sock = connect(address, port)
    try:
        ends = {"sockname": client.sock.getsockname()[:2], "peername": client.sock.getpeername()[:2]}
        client.request("GET", path, headers={"connection": "close"})
        response = client.getresponse()
        body = response.read()
        if response.getheader("content-type") != "application/json":
            raise RuntimeError(f"not an answer of the application: {response.status} {body!r}")
        return {"status": response.status, **json.loads(body), **ends}
    finally:
        client.close()


def in_parallel(count: int, work: Callable[[int], Outcome]) -> list[Outcome]:
    """`work(0)` to `work(count - 1)` in a thread each. An exception becomes an outcome with its text."""
    outcomes: list[Outcome] = [Outcome(("", 0), ("", 0), 0, "", "never ran")] * count

    def run(number: int) -> None:
        try:
            outcomes[number] = work(number)
        except Exception as error:
            outcomes[number] = Outcome(("", 0), ("", 0), 0, "", repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
