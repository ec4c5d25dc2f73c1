# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The application of the playground: small TCP servers that say who they believe they talk to. Run as a
script.

    python -I application.py [--dual] PROTOCOL:PORT ...

Protocols
    http  GET / answers with a JSON document of the connection's two ends as the application sees them,
          GET /bytes/N with N bytes of `pattern`, POST with length and SHA-256 of the body.
    echo  Sends back what comes in, and after the client's FIN the SHA-256 (32 bytes) of all of it.
    hash  Reads until the client's FIN, then sends the SHA-256 of what came (32 bytes) and as many bytes of
    `pattern`
          as came: a long answer on a half-closed connection.

Each port is served by one IPv4 and one IPv6 socket, with --dual by one socket for both. Every finished
request or connection is one line of JSON on standard output; the first line is ``{"ready": true}``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any

_output = threading.Lock()


def pattern(seed: bytes, size: int) -> bytes:
    """Return `size` bytes that depend on `seed` only and look random (SHAKE128)."""
    return hashlib.shake_128(seed).digest(size)


def _say(**facts: Any) -> None:
    with _output:
        print(json.dumps(facts), flush=True)


def _ends(connection: socket.socket) -> dict[str, list[Any]]:
    return {"peer": list(connection.getpeername()[:2]), "local": list(connection.getsockname()[:2])}


class Http(BaseHTTPRequestHandler):
    """Answers GET and POST, keeps connections alive."""

    protocol_version = "HTTP/1.1"
    server_version = "pybpfasm-playground"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Say who is at the two ends, or send a number of bytes."""
        if self.path.startswith("/bytes/"):
            self._answer(pattern(self.path.encode(), int(self.path.removeprefix("/bytes/"))))
            return
        facts = {
            "application": "pybpfasm playground",
            **_ends(self.connection),
            "forwarded_for": self.headers.get("x-forwarded-for"),
        }
        self._answer(json.dumps(facts).encode() + b"\n", "application/json")

    def do_POST(self) -> None:
        """Say how long the body was and what its hash is."""
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        facts = {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        self._answer(json.dumps(facts).encode() + b"\n", "application/json")

    def _answer(self, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        _say(protocol="http", request=f"{self.command} {self.path}", sent=len(body), **_ends(self.connection))

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: `_answer` does."""


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes in; the hash of it after the client's FIN."""

    def handle(self) -> None:
        """Serve one connection."""
        connection: socket.socket = self.request
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ends, digest, received = _ends(connection), hashlib.sha256(), 0
        while data := connection.recv(1 << 18):
            digest.update(data)
            received += len(data)
            connection.sendall(data)
        connection.sendall(digest.digest())
        _say(protocol="echo", received=received, sha256=digest.hexdigest(), **ends)


class Hash(socketserver.BaseRequestHandler):
    """Reads everything, then answers on the half-closed connection."""

    def handle(self) -> None:
        """Serve one connection."""
        connection: socket.socket = self.request
        ends, digest, received = _ends(connection), hashlib.sha256(), 0
        while data := connection.recv(1 << 18):
            digest.update(data)
            received += len(data)
        connection.sendall(digest.digest() + pattern(digest.digest(), received))
        _say(protocol="hash", received=received, sha256=digest.hexdigest(), **ends)


class Server(socketserver.ThreadingTCPServer):
    """A thread per connection; one family, or both on one socket."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024

    def __init__(
        self, port: int, handler: type[socketserver.BaseRequestHandler], family: int, dual: bool
    ) -> None:
        self.address_family = family
        self._dual = dual
        super().__init__(("::" if family == socket.AF_INET6 else "0.0.0.0", port), handler)

    def server_bind(self) -> None:
        """Choose whether an IPv6 socket takes IPv4 too, then bind."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not self._dual)
        super().server_bind()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for a connection that broke, not a traceback."""
        _say(error=repr(sys.exc_info()[1]), peer=list(client_address[:2]))


HANDLERS: dict[str, type[socketserver.BaseRequestHandler]] = {"http": Http, "echo": Echo, "hash": Hash}


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="The application of the playground.")
    parser.add_argument("listen", nargs="+", metavar="PROTOCOL:PORT")
    parser.add_argument("--dual", action="store_true", help="one socket for IPv4 and IPv6")
    arguments = parser.parse_args()
    for listen in arguments.listen:
        protocol, _, port = listen.partition(":")
        if protocol not in HANDLERS or not port.isdigit():
            parser.error(f"{listen!r} is not PROTOCOL:PORT with one of {', '.join(HANDLERS)}")
        for family in [socket.AF_INET6] if arguments.dual else [socket.AF_INET, socket.AF_INET6]:
            server = Server(int(port), HANDLERS[protocol], family, arguments.dual)
            threading.Thread(target=server.serve_forever, daemon=True).start()
    _say(ready=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
