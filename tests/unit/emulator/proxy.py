# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The proxy on a model host: client, Envoy, application, and the five programs between them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from programs.getsockopt import SO_ORIGINAL_DST, SOL_IP, SOL_IPV6, getsockopt
from programs.packet import Interface
from programs.settings import Ports, Settings
from programs.shared import maps
from programs.sk_msg import sk_msg
from programs.sockops import sockops
from programs.tc_egress import tc_egress
from programs.tc_ingress import tc_ingress
from pybpfasm.emulator import Emulator
from pybpfasm.emulator.host import Host, TcpSocket, link
from pybpfasm.layout import Record
from pybpfasm.program import ProgramSpec

CLIENT = {4: "10.0.0.1", 6: "fd00::1"}
SERVER = {4: "10.0.0.2", 6: "fd00::2"}
ENVOY_PORT = 8080


@dataclass
class Session:
    """One proxied connection: the client's socket, Envoy's two, the application's."""

    client: TcpSocket
    downstream: TcpSocket
    upstream: TcpSocket
    application: TcpSocket
    original: tuple[bytes, int]


@lru_cache(maxsize=16)
def build(settings: Settings, interface: Interface) -> tuple[ProgramSpec, ...]:
    """The five programs."""
    return (
        tc_ingress.build(settings, interface),
        tc_egress.build(settings, interface),
        getsockopt.build(settings),
        sockops.build(settings),
        sk_msg.build(settings),
    )


class Proxy:
    """A client host and a server host, which has Envoy, an application on each port, and the programs."""

    def __init__(self, *, attach: bool = True, engine: str = "auto", **settings: Any) -> None:
        settings.setdefault("ports", Ports.parse("8000,8001"))
        self.settings = Settings(netns=7, **settings)
        self.emulator = Emulator(cpus=2, engine=engine)
        self.emulator.netns = 7
        self.server = Host(self.emulator, [SERVER[4], SERVER[6]], netns=7)
        self.client = Host(Emulator(), [CLIENT[4], CLIENT[6]])
        self.server.interface("eth0")
        self.client.interface("eth0")
        link(self.client, "eth0", self.server, "eth0")
        specs = build(self.settings, Interface())
        self.ingress, self.egress, self.getsockopt, self.sockops, self.sk_msg = (
            self.emulator.load(spec) for spec in specs
        )
        self.maps = maps(self.settings)
        if attach:
            self.attach()
        self.envoy = self.server.listen(ENVOY_PORT, v6=True)
        self.applications = {port: self.server.listen(port, v6=True) for port in self.settings.ports}

    def attach(self) -> None:
        """Put the programs where `up` does."""
        server = self.server
        server.interfaces["eth0"].ingress = [self.ingress]
        server.interfaces["eth0"].egress = [self.egress]
        server.getsockopt_program = self.getsockopt
        if self.settings.accelerate:
            server.sock_ops = self.sockops
            server.sk_msg = self.sk_msg
            server.sk_msg_map = self.emulator.map(self.maps.sockets)

    @property
    def counters(self) -> Record:
        """The counters of all CPUs; only CPU 0 ran."""
        found: Record = self.emulator.map(self.maps.counters)[0][0]
        return found

    @property
    def flows(self) -> list[Any]:
        return list(self.emulator.map(self.maps.flows).values())

    def connect(self, port: int = 8000, family: int = 4, **options: Any) -> TcpSocket:
        return self.client.connect(SERVER[family], port, interface="eth0", **options)

    def envoy_accepts(self, downstream: TcpSocket) -> tuple[bytes, int]:
        """What Envoy's original_dst listener filter finds."""
        v6 = len(downstream.dst) == 16
        level = SOL_IPV6 if v6 else SOL_IP
        answer = self.server.getsockopt(downstream, level, SO_ORIGINAL_DST, 128)
        if v6:
            assert len(answer) == 28 and answer[24:] == bytes(4)
            return answer[8:24], struct.unpack(">H", answer[2:4])[0]
        assert len(answer) == 16 and answer[8:] == bytes(8)
        return answer[4:8], struct.unpack(">H", answer[2:4])[0]

    def session(self, port: int = 8000, family: int = 4, **options: Any) -> Session:
        """A client's connection, brought through Envoy to the application."""
        client = self.connect(port, family, **options)
        downstream = self.envoy.accept()
        address, original_port = self.envoy_accepts(downstream)
        upstream = self.server.connect(address, original_port, mark=self.settings.mark.value)
        application = self.applications[original_port].accept()
        return Session(client, downstream, upstream, application, (address, original_port))


def pump(session: Session) -> None:
    """What Envoy does: pass on what has come."""
    request = session.downstream.read()
    if request:
        session.upstream.send(request)
    answer = session.upstream.read()
    if answer:
        session.downstream.send(answer)
