# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Every line of the proxy's programs, and every way out of every condition, in the emulator.

What can't happen with a sound kernel (a helper that fails for no reason of the program's) is brought about by
models of helpers that fail.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

from programs.flow import half_closed_seconds
from programs.packet import Interface
from programs.settings import Mark, Ports, Settings
from programs.shared import FLOW_ESTABLISHED, FLOW_UNTIMED
from pybpfasm.emulator import Emulator, Program, Run, Skb, SkMsg, Socket, SockOpsContext, SockOptContext
from pybpfasm.emulator.helpers import MODELS
from pybpfasm.emulator.host import Segment
from pybpfasm.emulator.maps import PerCpuArray
from pybpfasm.emulator.memory import Region
from pybpfasm.isa import CallKind
from pybpfasm.kernel.enums import Helper, SockOp, TcpState
from pybpfasm.net import AF_INET, AF_INET6, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN
from pybpfasm.testing import Coverage
from tests.unit.emulator.proxy import build

SETTINGS = Settings(Ports.parse("100,8000-8002,9000"), netns=7, flow_capacity=40)
MARK = SETTINGS.mark.value
CLIENT = {4: bytes([10, 0, 0, 1]), 6: b"\xfd" + bytes(14) + b"\x01"}
SERVER = {4: bytes([10, 0, 0, 2]), 6: b"\xfd" + bytes(14) + b"\x02"}
LOCAL = {4: b"\x7f\0\0\x01", 6: bytes(15) + b"\x01"}


class Bystander(Emulator):
    """An emulator where only a timer's callback may take an entry away whose timer is set.

    The kernel would wait for the callback, and may hold the lock that the callback wants.
    """

    def cancel_timers(self, value: Region) -> None:
        mine = [timer for (start, _), timer in self.timers.items() if value.start and start == value.start]
        assert all(timer.expires is None for timer in mine), "an entry goes whose timer is set"
        super().cancel_timers(value)


class Bench:
    """The five programs in one emulator, watched."""

    def __init__(
        self, coverage: Coverage, settings: Settings = SETTINGS, interface: Interface | None = None
    ) -> None:
        self.emulator = Bystander()
        self.emulator.netns = 7
        self.link = interface is None or interface.link_header
        programs = [
            coverage.watch(self.emulator.load(spec))
            for spec in build(settings, Interface() if interface is None else interface)
        ]
        self.ingress, self.egress, self.getsockopt, self.sockops, self.sk_msg = programs

    def segment(
        self,
        flags: int,
        family: int = 4,
        *,
        sport: int = 5000,
        dport: int = 8000,
        seq: int = 1,
        ack: int = 1,
        back: bool = False,
        payload: bytes = b"",
    ) -> bytes:
        ends = (CLIENT[family], sport, SERVER[family], dport)
        if back:
            ends = (SERVER[family], dport, CLIENT[family], sport)
        return Segment(*ends, flags, seq, ack, payload).packet(link_header=self.link)

    def send(self, packet: bytes, program: Program | None = None, **options: Any) -> int:
        options.setdefault("ifindex", 2)
        options.setdefault("link_header", self.link)
        return (program or self.ingress).run(Skb(packet, **options)).action

    def failing(self, helper: Helper, result: int, when: Callable[[Run, tuple[int, ...]], bool]) -> None:
        """Let *helper* return *result* where *when* says so."""
        real = MODELS[CallKind.HELPER, int(helper)]

        def one(run: Run, a: int) -> int:
            return result if when(run, (a,)) else real.function(run, a)

        def two(run: Run, a: int, b: int) -> int:
            return result if when(run, (a, b)) else real.function(run, a, b)

        def three(run: Run, a: int, b: int, c: int) -> int:
            return result if when(run, (a, b, c)) else real.function(run, a, b, c)

        def four(run: Run, a: int, b: int, c: int, d: int) -> int:
            return result if when(run, (a, b, c, d)) else real.function(run, a, b, c, d)

        def five(run: Run, a: int, b: int, c: int, d: int, e: int) -> int:
            return result if when(run, (a, b, c, d, e)) else real.function(run, a, b, c, d, e)

        models: dict[int, Callable[..., int]] = {1: one, 2: two, 3: three, 4: four, 5: five}
        self.emulator.model(helper)(models[real.arity])


def no_counters(run: Run, arguments: tuple[int, ...]) -> bool:
    region = run.regions[arguments[0] >> 32]
    return isinstance(getattr(region, "object", None), PerCpuArray)


def nth(number: int) -> Callable[[Run, tuple[int, ...]], bool]:
    """True at the call with that number."""
    calls = itertools.count(1)
    return lambda run, arguments: next(calls) == number


def extension(packet: bytes, first: int, *headers: bytes) -> bytes:
    """An IPv6 packet with extension headers, the first of them of number *first*."""
    return packet[:20] + bytes([first]) + packet[21:54] + b"".join(headers) + packet[54:]


def parsing(bench: Bench) -> None:
    v4, v6 = bench.segment(TCP_SYN), bench.segment(TCP_SYN, 6)
    assert bench.send(v4) == bench.send(v6) == -1
    assert bench.send(bytes(12) + b"\x08\x06" + bytes(40)) == -1
    for tags in (1, 2, 3):
        for packet in (v4, v6):
            for tag in (b"\x81\0\0\x05", b"\x88\xa8\0\x05"):
                assert bench.send(packet[:12] + tag * tags + packet[12:]) == -1
    assert bench.send(v4[:12] + b"\x81\0\0\x05\x08\x06" + bytes(50)) == -1
    for packet in (v4, v6):
        assert bench.send(packet, linear=14) == -1
        assert bench.send(packet + bytes(600), linear=20) == -1
        assert bench.send(packet[:40]) == 2
        assert bench.send(packet[:40], pkt_type=3) == -1
    assert bench.send(v4[:15]) == 2
    assert bench.send(v4[:12] + b"\x81\0") == 2
    assert bench.send(v4[:23] + b"\x11" + v4[24:]) == -1  # UDP
    assert bench.send(v4[:20] + b"\0\x05" + v4[22:]) == -1  # a later fragment
    assert bench.send(v4[:14] + b"\x44" + v4[15:]) == -1  # a header of 16 bytes
    assert bench.send(v4[:14] + b"\x46" + v4[15:34] + bytes(4) + v4[34:]) == -1
    plain, ah = b"\x06\0" + bytes(6), b"\x06\x01" + bytes(10)
    for number in (0, 43, 60):
        assert bench.send(extension(v6, number, plain)) == -1
    assert bench.send(extension(v6, 51, ah)) == -1
    assert bench.send(extension(v6, 44, plain)) == -1
    assert bench.send(extension(v6, 44, b"\x06\0\0\x08" + bytes(4))) == -1
    assert bench.send(extension(v6, 59)) == -1
    assert bench.send(extension(v6, 0, *[b"\0\0" + bytes(6)] * 9, plain)) == 2
    assert bench.send(extension(v6, 0, b"\x3c\x30" + bytes(6))) == 2
    assert bench.send(v6[:20] + b"\0" + v6[21:54]) == 2
    for port in (99, 100, 101, 7999, 8000, 8002, 8003, 8999, 9000, 9001):
        assert bench.send(bench.segment(TCP_ACK, dport=port)) == -1


def flows(bench: Bench, settings: Settings = SETTINGS) -> None:
    emulator = bench.emulator

    def run(flags: int, **options: Any) -> int:
        back = options.get("back", False)
        if back:
            options["dport"] = 8080
        return bench.send(bench.segment(flags, **options), bench.egress if back else None)

    for family in (4, 6):
        assert run(TCP_SYN, family=family) == -1
        run(TCP_SYN | TCP_ACK, family=family, back=True)
        run(TCP_ACK, family=family)
        run(TCP_ACK, family=family, back=True)
    run(TCP_SYN)  # sent again
    run(TCP_ACK, dport=8001)  # of another service
    run(TCP_ACK, sport=1)  # of no flow
    run(TCP_ACK, sport=1, back=True)
    bench.send(bench.segment(TCP_ACK, dport=80, back=True), bench.egress)
    bench.send(bench.segment(TCP_ACK, dport=80, back=True, family=6), bench.egress)
    bench.send(bench.segment(TCP_ACK, back=True)[:40], bench.egress)
    run(TCP_SYN, dport=8001)  # the same ports for another service
    run(TCP_ACK | TCP_FIN, dport=8001)
    run(TCP_ACK | TCP_FIN, back=True)
    run(TCP_ACK, dport=8001)
    run(TCP_SYN, dport=8001)  # opened again
    run(TCP_SYN, sport=6000)
    run(TCP_RST, sport=6000)
    run(TCP_ACK, sport=6000, back=True)  # the server did not take the reset
    run(TCP_RST, sport=6000)
    run(TCP_RST, sport=6000, back=True)
    run(TCP_SYN, sport=6001)
    run(TCP_RST, sport=6001, back=True)
    run(TCP_SYN, sport=6002)
    run(TCP_FIN | TCP_ACK, sport=6002)
    run(TCP_FIN | TCP_ACK, sport=6002, back=True)
    run(TCP_FIN | TCP_ACK, sport=6002)
    run(TCP_SYN, sport=6003)
    run(TCP_ACK, sport=6003)
    emulator.advance(seconds=settings.handshake_seconds + 1)
    emulator.advance(seconds=settings.idle_seconds)
    run(TCP_ACK, sport=6003)
    bench.send(bench.segment(TCP_SYN, sport=6100), mark=MARK)
    bench.send(bench.segment(TCP_SYN, sport=6100), pkt_type=3)
    run(TCP_SYN, sport=6200)
    emulator.now += 5
    # A packet that came in after the timer had read the clock.
    key = next(key for key in emulator.map("pba_flows") if key.client_port == 6200)
    table = emulator.map("pba_flows")
    value = table.find(key.pack())
    assert value is not None
    value.data[:8] = (emulator.now + 10**15).to_bytes(8, "little")
    emulator.advance(seconds=settings.handshake_seconds + 1)
    # A flow that was reset and is there still.
    run(TCP_SYN, sport=6400)
    key = next(key for key in table if key.client_port == 6400)
    value = table.find(key.pack())
    assert value is not None
    value.data[8] = 8
    run(TCP_ACK, sport=6400, back=True)
    # Envoy's own port.
    run(TCP_SYN, sport=6300)
    for seq in (1, 2):
        run(TCP_SYN, sport=6300, dport=8080, seq=seq)
        run(TCP_SYN, sport=6300, dport=8080, seq=seq, family=6)
    run(TCP_ACK, sport=6300, dport=8080)
    # Live sockets with the tuple that the connection would have.
    for number, state in enumerate(TcpState):
        for family in (4, 6):
            socket = Socket(
                family=AF_INET if family == 4 else AF_INET6,
                src=SERVER[family],
                src_port=8080,
                dst=CLIENT[family],
                dst_port=7000 + number,
                state=state,
                netns=7,
            )
            emulator.sockets.add(socket)
            run(TCP_SYN, sport=7000 + number, family=family)
            run(TCP_SYN, sport=7000 + number, family=family, dport=8080, seq=9)
            emulator.sockets.remove(socket)
    # Resets, by what the socket expects; and packets that acknowledge nothing.
    for number, state in enumerate((None, *TcpState)):
        for family in (4, 6):
            port = 7100 + number
            run(TCP_SYN, sport=port, family=family)
            run(TCP_FIN, sport=port, family=family)
            run(TCP_ACK, sport=port, family=family, ack=1 << 21)
            run(TCP_SYN | TCP_ACK, sport=port, family=family, back=True)
            run(TCP_ACK, sport=port, family=family, ack=2)
            run(TCP_FIN | TCP_ACK, sport=port, family=family, ack=2)
            socket = Socket(
                family=AF_INET if family == 4 else AF_INET6,
                src=SERVER[family],
                src_port=8080,
                dst=CLIENT[family],
                dst_port=port,
                state=state or 0,
                netns=7,
                rcv_nxt=100,
            )
            if state is not None:
                emulator.sockets.add(socket)
            for seq in (98, 1 << 21, 99, 100):
                run(TCP_RST, sport=port, family=family, seq=seq)
            if state is not None:
                emulator.sockets.remove(socket)
    # A socket that closes while it is looked up.
    closing = Socket(src=SERVER[4], src_port=8080, dst=CLIENT[4], dst_port=7500, netns=7)
    emulator.sockets.add(closing)
    real = MODELS[CallKind.HELPER, Helper.skc_lookup_tcp].function

    @emulator.model(Helper.skc_lookup_tcp)
    def closed(run: Run, context: int, pair: int, size: int, netns: int, flags: int) -> int:
        found = real(run, context, pair, size, netns, flags)
        run.regions[found >> 32].data[72] = TcpState.CLOSE
        return found

    run(TCP_SYN, sport=7500)
    emulator.sockets.remove(closing)
    emulator.model(Helper.skc_lookup_tcp)(real)
    # Routes to other hosts.
    emulator.routes.forwarding = True
    for kind, neighbour in (("unicast", bytes(6)), ("unicast", None), ("local", None), ("blackhole", None)):
        emulator.routes = type(emulator.routes)()
        emulator.routes.forwarding = True
        emulator.routes.add("10.0.0.0/8", kind, neighbour=neighbour)  # type: ignore[arg-type]
        emulator.routes.add("fd00::/8", kind, neighbour=neighbour)  # type: ignore[arg-type]
        for family in (4, 6):
            for port in (8000, 8080):
                run(TCP_SYN, sport=7600, family=family, dport=port, seq=20)
    for n in range(60):
        run(TCP_SYN, sport=7700 + n)


def meetings(coverage: Coverage) -> None:
    """Two CPUs set one timer, and the last one sets the longer time: what has ended goes all the same."""
    fin, long = TCP_FIN | TCP_ACK, SETTINGS.handshake_seconds + SETTINGS.linger_seconds

    def met(before: int, theirs: int, *, back: bool, fires: bool) -> None:
        """Their packet comes as the timer is set for ours or sets itself; the packet *before* came before."""
        bench = Bench(coverage)
        table, emulator = bench.emulator.map("pba_flows"), bench.emulator

        def send(flags: int, back: bool) -> None:
            packet = bench.segment(flags, dport=8080 if back else 8000, back=back, ack=2)
            assert bench.send(packet, bench.egress if back else None) == -1

        send(TCP_SYN, back=False)
        send(TCP_SYN | TCP_ACK, back=True)
        send(TCP_ACK, back=False)
        first = SETTINGS.handshake_seconds
        if before:
            send(before, back=not back)
            first = half_closed_seconds(SETTINGS)
        emulator.advance(seconds=1)
        send(TCP_ACK, back=back)
        real = MODELS[CallKind.HELPER, int(Helper.timer_start)]
        once = iter([True])

        def start(run: Run, timer: int, nanoseconds: int, flags: int) -> int:
            if next(once, False):
                send(theirs, back)
            return real.function(run, timer, nanoseconds, flags)

        bench.emulator.model(Helper.timer_start)(start)
        if fires:
            emulator.advance(seconds=first)
        else:
            send(fin, back=not back)
        assert len(table) == 1 and not next(once, False)
        emulator.advance(seconds=long)
        assert not len(table)

    def copied(helper: Helper, port: int) -> None:
        """As *helper* runs for a SYN, a copy of it comes on another CPU, with the rest of the handshake; the
        client had a flow for *port* before."""
        bench = Bench(coverage)
        handshake = ((TCP_SYN, False), (TCP_SYN | TCP_ACK, True), (TCP_ACK, False))

        def send(flags: int, back: bool, port: int = 8000) -> None:
            packet = bench.segment(flags, dport=8080 if back else port, back=back, ack=2)
            assert bench.send(packet, bench.egress if back else None) == -1

        if port:
            send(TCP_SYN, False, port)
        once = iter([True])

        def act(run: Run, arguments: tuple[int, ...]) -> bool:
            if next(once, False):
                for packet in handshake:
                    send(*packet)
            return False

        bench.failing(helper, 0, act)
        send(TCP_SYN, False)
        assert not next(once, False)
        table = bench.emulator.map("pba_flows")
        (flow,) = table.values()
        assert flow.original_port == 8000 and flow.state == FLOW_ESTABLISHED
        bench.emulator.advance(seconds=SETTINGS.handshake_seconds + 1)
        assert len(table)
        bench.emulator.advance(seconds=SETTINGS.idle_seconds)
        assert not len(table)

    for port in (0, 8001):
        copied(Helper.skc_lookup_tcp, port)  # before the flow is put into the map
        copied(Helper.timer_start, port)  # as it gets its timer

    for back in (False, True):
        met(0, fin, back=back, fires=False)
        met(0, TCP_RST, back=back, fires=False)
        met(0, TCP_RST, back=back, fires=True)
        met(fin, fin, back=back, fires=True)


def without_memory(coverage: Coverage) -> None:
    """The kernel has no memory for a flow's timer, ever or at first."""
    handshake = ((TCP_SYN, False), (TCP_SYN | TCP_ACK, True), (TCP_ACK, False))
    fin = TCP_FIN | TCP_ACK
    closed = ((fin, False), (fin, True), (TCP_ACK, False))
    for packets, timed in (
        ((*handshake, *closed), None),
        ((*handshake, *reversed(closed[:2]), (TCP_ACK, True)), None),
        ((*handshake, (TCP_RST, False)), None),
        ((*handshake, (TCP_RST, True)), None),
        # Opened again before it is over, for the same service.
        ((*handshake, *closed[:2], *handshake, *closed), None),
        (handshake[:1], 1),
        (handshake, 2),
        ((*handshake, *closed), 4),
        (handshake[:1], 0),
        (handshake, 0),
    ):
        bench = Bench(coverage)
        emulator, table = bench.emulator, bench.emulator.map("pba_flows")
        calls = itertools.count(1)
        if timed == 0:
            there_already(bench)
        else:
            bench.failing(Helper.timer_init, -12, lambda *_, c=calls, t=timed: t is None or next(c) < t)
        for flags, back in packets:
            packet = bench.segment(flags, dport=8080 if back else 8000, back=back, ack=2)
            assert bench.send(packet, bench.egress if back else None) == -1
        (counters, *_) = emulator.map("pba_counters")[0]
        assert counters.ingress.untimed_flows == (timed not in (0, 1))
        if timed is None:
            assert not len(table) and not emulator.pending_timers
        else:
            assert len(table) == emulator.pending_timers == 1
            assert all(not flow.state & FLOW_UNTIMED for flow in table.values())
            emulator.advance(seconds=SETTINGS.idle_seconds)
            assert not len(table)


def there_already(bench: Bench) -> None:
    """Let the kernel say of every timer that another has made it, which has not been set yet."""
    real = MODELS[CallKind.HELPER, int(Helper.timer_init)]

    def init(run: Run, timer: int, map: int, flags: int) -> int:
        real.function(run, timer, map, flags)
        return -16

    bench.emulator.model(Helper.timer_init)(init)


def icmp_error(quoted: bytes, kind: int, family: int = 4) -> bytes:
    """An ICMP error from a router to the server, with a packet (less its link header) in it."""
    message = bytes([kind, 0]) + bytes(6) + quoted
    if family == 6:
        header = b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes([58, 64])
        return bytes(12) + b"\x86\xdd" + header + CLIENT[6] + SERVER[6] + message
    header = b"\x45\0" + (20 + len(message)).to_bytes(2, "big") + bytes(4) + b"\x40\x01" + bytes(2)
    return bytes(12) + b"\x08\0" + header + CLIENT[4] + SERVER[4] + message


def errors(coverage: Coverage, settings: Settings = SETTINGS) -> None:
    """ICMP errors about a flow, in both directions."""
    bench = Bench(coverage, settings)
    quoted_at = {4: 14 + 20 + 8 + 20, 6: 14 + 40 + 8 + 40}
    for family, kinds in ((4, (3, 4, 5, 11, 12)), (6, (1, 2, 3, 4))):
        assert bench.send(bench.segment(TCP_SYN, family)) == -1
        answer = bench.segment(TCP_ACK, family, back=True)[14:]
        refused = bench.segment(TCP_SYN, family, dport=8080)[14:]
        for kind in (0, *kinds, 8, 129):
            for program, quoted, at, port in (
                (bench.ingress, answer, 0, settings.envoy_port),
                (bench.egress, refused, 2, 8000),
            ):
                error = icmp_error(quoted, kind, family)
                result = program.run(Skb(error, ifindex=2))
                assert result.action == -1
                where = quoted_at[family] + at
                found = int.from_bytes(result.packet[where : where + 2], "big")
                assert (found == port) == (kind in kinds)
        error = icmp_error(answer, kinds[0], family)
        for length in (*range(34 if family == 4 else 54, quoted_at[family] + 6, 3), len(error)):
            assert bench.send(error[:length]) == bench.send(error[:length], bench.egress) == -1
        assert bench.send(error, pkt_type=3) == -1
        for other in (
            bench.segment(TCP_ACK, family, back=True, sport=1),  # no flow
            bench.segment(TCP_ACK, family, back=True, dport=8001),  # another port than the flow's
            bench.segment(TCP_ACK, family, dport=8001),
            bench.segment(TCP_ACK, family, sport=1, dport=8080),
        ):
            for program in (bench.ingress, bench.egress):
                assert bench.send(icmp_error(other[14:], kinds[0], family), program) == -1
    later = answer_of(bench)
    for quoted in (
        later[:9] + b"\x11" + later[10:],  # UDP
        later[:6] + b"\0\x05" + later[8:],  # a later fragment
        b"\x44" + later[1:],
        b"\x46" + later[1:20] + bytes(4) + later[20:],
    ):
        for program in (bench.ingress, bench.egress):
            assert bench.send(icmp_error(quoted, 3), program) == -1
    v6 = bench.segment(TCP_ACK, 6, back=True)
    for number, header in ((0, b"\x06\0" + bytes(6)), (59, b""), (0, b"\0\0" + bytes(6))):
        quoted = extension(v6, number, *[header] * (1 if number == 59 or header[0] == 6 else 9))[14:]
        for program in (bench.ingress, bench.egress):
            assert bench.send(icmp_error(quoted, 2, 6), program) == -1
    for helper in (Helper.l4_csum_replace, Helper.skb_store_bytes):
        bench = Bench(coverage, settings)
        bench.send(bench.segment(TCP_SYN))
        bench.failing(helper, -14, lambda run, arguments: True)
        assert bench.send(icmp_error(answer_of(bench), 3)) == 2
        assert bench.send(icmp_error(bench.segment(TCP_SYN, dport=8080)[14:], 3), bench.egress) == 2
    bench.failing(Helper.map_lookup_elem, 0, no_counters)
    assert bench.send(icmp_error(answer_of(bench), 3)) == -1
    assert bench.send(icmp_error(bench.segment(TCP_SYN, dport=8080)[14:], 3), bench.egress) == -1


def answer_of(bench: Bench) -> bytes:
    """The packet of an answer as a router sees it, without a link header."""
    return bench.segment(TCP_ACK, back=True)[14:]


def failing_helpers(coverage: Coverage, settings: Settings = SETTINGS) -> None:
    """Helpers that refuse."""
    for helper in (Helper.l4_csum_replace, Helper.skb_store_bytes):
        bench = Bench(coverage, settings)
        bench.send(bench.segment(TCP_SYN))
        bench.failing(helper, -14, lambda run, arguments: True)
        assert bench.send(bench.segment(TCP_SYN)) == 2
        assert bench.send(bench.segment(TCP_ACK, back=True, dport=8080), bench.egress) == 2
    bench = Bench(coverage, settings)
    bench.failing(Helper.skb_pull_data, -12, lambda run, arguments: True)
    assert bench.send(bench.segment(TCP_SYN), linear=14) == 2
    for forwarded in (8, 6):
        bench = Bench(coverage, settings)
        bench.failing(Helper.fib_lookup, forwarded, lambda run, arguments: True)
        assert bench.send(bench.segment(TCP_SYN)) == -1
        assert bench.send(bench.segment(TCP_SYN, dport=8080)) == -1
    bench = Bench(coverage, settings)
    bench.send(bench.segment(TCP_SYN))
    bench.failing(Helper.skb_load_bytes, -14, lambda run, arguments: True)
    for flags in (TCP_ACK, TCP_RST):
        assert bench.send(bench.segment(flags)) == -1
    assert bench.send(bench.segment(TCP_SYN | TCP_ACK, back=True, dport=8080), bench.egress) == -1
    for number in (3, 4, 6):  # of a place in the queue, and of the flow that was put into the map
        bench = Bench(coverage, settings)
        bench.failing(Helper.map_lookup_elem, 0, nth(number))
        assert bench.send(bench.segment(TCP_SYN)) == -1
    # A flow is in the way, or to be forgotten, and has gone by itself.
    bench = Bench(coverage, settings, Interface(loopback=True))
    bench.failing(Helper.map_update_elem, -17, nth(1))
    assert bench.send(bench.segment(TCP_SYN)) == -1
    assert len(bench.emulator.map("pba_flows")) == 1
    bench.failing(Helper.map_lookup_elem, 0, nth(3))
    assert bench.send(bench.segment(TCP_SYN, dport=8080, seq=9)) == -1
    for number in (1, 2):  # the flow of another service is in the way, or has been removed
        bench = Bench(coverage, settings)
        assert bench.send(bench.segment(TCP_SYN, dport=8001)) == -1
        bench.failing(Helper.map_update_elem, -7, nth(number))
        assert bench.send(bench.segment(TCP_SYN)) == 2
        assert len(bench.emulator.map("pba_flows")) == (number == 1)
    bench = Bench(coverage, settings)
    bench.send(bench.segment(TCP_SYN))
    bench.failing(Helper.map_lookup_elem, 0, no_counters)
    for packet in (bench.segment(TCP_SYN), bench.segment(TCP_SYN)[:40]):
        assert bench.send(packet) == -1
    assert bench.send(bench.segment(TCP_ACK, back=True, dport=8080), bench.egress) == -1
    questions(bench)
    connections(bench)


def questions(bench: Bench) -> None:
    """Of getsockopt."""

    def ask(socket: Socket | None, level: int, name: int = 80, size: int = 128, **fields: int) -> None:
        bench.getsockopt.run(SockOptContext(socket, bytes(size), level=level, optname=name, **fields))

    flow = {"netns": 7, "src_port": 8080, "dst_port": 5000}
    v4 = Socket(src=SERVER[4], dst=CLIENT[4], **flow)  # type: ignore[arg-type]
    v6 = Socket(family=AF_INET6, src=SERVER[6], dst=CLIENT[6], **flow)  # type: ignore[arg-type]
    mapped = dataclasses.replace(v4, family=AF_INET6)
    bench.send(bench.segment(TCP_SYN))
    bench.send(bench.segment(TCP_SYN, 6))
    local = b"\xfe\x80" + bytes(13) + b"\x01"
    bench.send(Segment(CLIENT[6], 5000, local, 8000, TCP_SYN, 1, 1, b"").packet(link_header=bench.link))
    for socket in (
        v4,
        v6,
        dataclasses.replace(v6, src=local, bound_dev_if=3),
        mapped,
        None,
        dataclasses.replace(v4, protocol=17),
        dataclasses.replace(v4, netns=8),
        dataclasses.replace(v4, family=1),
        dataclasses.replace(v4, dst_port=1),
        dataclasses.replace(v6, dst=bytes(8) + b"\0\0\xff\xff" + bytes(4)),
        dataclasses.replace(v6, dst=b"\x01" + bytes(7) + b"\0\0\xff\xff" + bytes(4)),
        dataclasses.replace(v6, dst=bytes(4) + b"\x01" + bytes(3) + b"\0\0\xff\xff" + bytes(4)),
    ):
        for level in (0, 41, 1):
            for size in (128, 16, 8):
                ask(socket, level, size=size, retval=-92)
    ask(v4, 0, 79, retval=-92)
    ask(v4, 0, 79)
    ask(v4, 0, 79, optlen=500)
    ask(v4, 0, 79, optlen=0x7FFFFFFF)
    ask(v4, 0, 79, optlen=-1)


def connections(bench: Bench) -> None:
    """Of sockops and sk_msg."""
    emulator = bench.emulator

    def event(op: SockOp, socket: Socket, **fields: Any) -> None:
        bench.sockops.run(SockOpsContext(op, socket, **fields))

    def pair(address: bytes, family: int, port: int = 4000, **fields: Any) -> tuple[Socket, Socket]:
        base = {"family": family, "netns": 7, **fields}
        active = Socket(src=address, src_port=port, dst=address, dst_port=8000, mark=MARK, **base)
        return active, Socket(src=address, src_port=8000, dst=address, dst_port=port, **base)

    for number, (address, family) in enumerate(
        (
            (LOCAL[4], AF_INET),
            (LOCAL[4], AF_INET6),
            (SERVER[4], AF_INET),
            (SERVER[6], AF_INET6),
            (LOCAL[6], AF_INET6),
            (b"\x7f\0\0\x02", 1),
        )
    ):
        active, passive = pair(address, family, 4000 + number)
        for op in (SockOp.STATE_CB, SockOp.ACTIVE_ESTABLISHED_CB):
            event(op, active, rcv_nxt=5, snd_nxt=6)
        event(SockOp.PASSIVE_ESTABLISHED_CB, passive, rcv_nxt=6, snd_nxt=5)
        for socket in (active, passive, active):
            bench.sk_msg.run(SkMsg(socket, b"message"))
        event(SockOp.ACTIVE_ESTABLISHED_CB, dataclasses.replace(active, storage={}, members=[]))
        for length in (0, 5):
            event(SockOp.HDR_OPT_LEN_CB, active, skb_len=length)
            event(SockOp.HDR_OPT_LEN_CB, dataclasses.replace(active, storage={}), skb_len=length)
        event(SockOp.HDR_OPT_LEN_CB, active, full=False, skb_len=5)
        bench.sk_msg.run(SkMsg(active, b"native"))
    for fields in (
        {"dst": b"\x7f\0\0\x02"},
        {"dst": CLIENT[4]},
        {"src": CLIENT[4]},
        {"dst_port": 7},
        {"mark": 1},
        {"netns": 9},
        {"family": AF_INET6, "src": SERVER[6], "dst": CLIENT[6]},
        {"family": AF_INET6, "src": b"\xfd" + bytes(7) + b"\x01" + bytes(7), "dst": SERVER[6]},
        {"family": 1},
    ):
        active, passive = pair(LOCAL[4], AF_INET, 4500)
        changed = dataclasses.replace(active, **fields)
        event(SockOp.ACTIVE_ESTABLISHED_CB, changed)
        turned = dataclasses.replace(
            changed, src=changed.dst, dst=changed.src, src_port=changed.dst_port, dst_port=changed.src_port
        )
        event(SockOp.PASSIVE_ESTABLISHED_CB, turned)
    active, passive = pair(LOCAL[4], AF_INET, 4600)
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, full=False)
    event(SockOp.PASSIVE_ESTABLISHED_CB, passive)  # no note
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, data_segs_out=1)
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=1)
    event(SockOp.PASSIVE_ESTABLISHED_CB, passive, snd_nxt=2)  # the note of another connection
    bench.sk_msg.run(SkMsg(active, b"early"))
    active, passive = pair(LOCAL[4], AF_INET, 4601)
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=1)
    event(SockOp.PASSIVE_ESTABLISHED_CB, passive, snd_nxt=1, full=False)
    active, passive = pair(LOCAL[4], AF_INET, 4602)
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=1, snd_nxt=8)
    event(SockOp.PASSIVE_ESTABLISHED_CB, passive, snd_nxt=1, rcv_nxt=9)
    bench.sk_msg.run(SkMsg(active, b"of another incarnation"))
    # A note that is not for this connection.
    active, passive = pair(LOCAL[4], AF_INET, 4605)
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=1)
    sockets = emulator.map("pba_sockets")
    key = next((key for key, socket in sockets.items() if socket is active), None)
    if key is not None:
        emulator.map("pba_pending")[key] = {"incarnation": 99, "pad": 0, "socket": 0}
        bench.sk_msg.run(SkMsg(active, b"not for this one"))
    # The slot of the application's end is taken.
    active, passive = pair(LOCAL[4], AF_INET, 4603)
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=1)
    event(SockOp.PASSIVE_ESTABLISHED_CB, passive, snd_nxt=1)
    event(SockOp.ACTIVE_ESTABLISHED_CB, dataclasses.replace(active, storage={}, members=[]), rcv_nxt=1)
    emulator.map("pba_pending").clear()
    # The peer has left the map.
    active, passive = pair(LOCAL[4], AF_INET, 4604)
    event(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=1)
    event(SockOp.PASSIVE_ESTABLISHED_CB, passive, snd_nxt=1)
    passive.state = TcpState.CLOSE_WAIT
    bench.sk_msg.run(SkMsg(active, b"late"))
    bench.sk_msg.run(SkMsg(dataclasses.replace(passive, storage={}), b"unknown"))


# Where `struct sock` has these, and which of the locks the receive buffer's is.
QUEUE_AT, BUFFER_AT, LOCKS_AT, LOCK = 192, 200, 204, 0x20
ULP_AT = 224


def queue_of(length: int, locks: int, buffer: int, asked: list[int]) -> Callable[[Run, int, int, int], int]:
    """A model of probe_read_kernel that always finds these, and fails with what is negative."""

    def read(run: Run, to: int, size: int, address: int) -> int:
        found = {QUEUE_AT: length, BUFFER_AT: buffer, LOCKS_AT: locks}[address % 256]
        if address % 256 == QUEUE_AT:
            asked.append(address)
        run.write(to, max(found, 0).to_bytes(size, "little"))
        return min(found, 0)

    return read


def pair_of_ends(bench: Bench) -> tuple[Socket, Socket]:
    """Envoy's end of a connection and the application's, both enrolled."""
    active = Socket(src=LOCAL[4], src_port=1, dst=LOCAL[4], dst_port=8000, mark=MARK, netns=7)
    passive = Socket(src=LOCAL[4], src_port=8000, dst=LOCAL[4], dst_port=1, netns=7)
    bench.sockops.run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=5))
    bench.sockops.run(SockOpsContext(SockOp.PASSIVE_ESTABLISHED_CB, passive, snd_nxt=5))
    return active, passive


def queues(coverage: Coverage) -> None:
    """A peer that does not read, one that does, and one whose address says nothing any more."""
    limit, size = 3000, len(b"message")
    unlocked = 0xFF & ~LOCK
    for length, locks, buffer, native in (
        (0, unlocked, 0, False),
        (0, LOCK, 0, False),  # less than the smallest buffer takes
        (limit - size, unlocked, 0, False),
        (limit - size + 1, unlocked, 1 << 20, True),
        (0xFFFFFFFF, unlocked, 1 << 20, True),
        (-14, LOCK, 0, False),
        (2000 - size, LOCK, 4000, False),
        (2000 - size + 1, LOCK, 4001, True),
        (2000, -14, 0, False),
        (2000, LOCK, -14, False),
    ):
        settings = dataclasses.replace(
            SETTINGS,
            queue_limit=limit,
            queue_length_at=QUEUE_AT,
            receive_buffer_at=BUFFER_AT,
            buffer_locks_at=LOCKS_AT,
            receive_buffer_lock=LOCK,
        )
        bench = Bench(coverage, settings)
        asked: list[int] = []
        bench.emulator.model(Helper.probe_read_kernel)(queue_of(length, locks, buffer, asked))
        active, passive = pair_of_ends(bench)
        counters = bench.emulator.map("pba_counters")
        for sender in (active, passive, active):
            bench.sk_msg.run(SkMsg(sender, b"message"))
        total = sum(cpu.sk_msg.queue_full for cpu in counters[0])
        assert total == (2 if native else 0)  # each direction once
        assert sum(cpu.sk_msg.redirected_messages for cpu in counters[0]) == (0 if native else 3)
        # Each asks about the other end, and the same of the same.
        assert len(set(asked)) == 2 and len(asked) == (2 if native else 3)


def upon_it(found: int, failed: int, asked: list[int]) -> Callable[[Run, int, int, int], int]:
    """A model of probe_read_kernel for the protocol upon a socket."""

    def read(run: Run, to: int, size: int, address: int) -> int:
        asked.append(address)
        run.write(to, found.to_bytes(size, "little"))
        return failed

    return read


def encrypted(coverage: Coverage) -> None:
    """An application upon whose socket there is a protocol, none, and one that is gone."""
    for found, failed in ((0, 0), (0xFFFF888000000000, 0), (0, -14)):
        bench = Bench(coverage, dataclasses.replace(SETTINGS, ulp_at=ULP_AT))
        asked: list[int] = []
        bench.emulator.model(Helper.probe_read_kernel)(upon_it(found, failed, asked))
        active, passive = pair_of_ends(bench)
        for sender in (active, passive, active):
            bench.sk_msg.run(SkMsg(sender, b"message"))
        (one, *others) = bench.emulator.map("pba_counters")[0]
        assert not any(cpu.sk_msg.redirected_messages for cpu in others)
        assert one.sk_msg.encrypted == (2 if found else 0)  # each direction once
        assert one.sk_msg.redirected_messages == (0 if found else 3)
        assert len(set(asked)) == 1 and len(asked) == (2 if found else 3)  # the application's end, always


def failing_enrolment(coverage: Coverage) -> None:
    for helper, result in (
        (Helper.sk_storage_get, 0),
        (Helper.sock_hash_update, -7),
        (Helper.sock_hash_update, -17),
    ):
        for side in (SockOp.ACTIVE_ESTABLISHED_CB, SockOp.PASSIVE_ESTABLISHED_CB):
            bench = Bench(coverage)
            active = Socket(src=LOCAL[4], src_port=1, dst=LOCAL[4], dst_port=8000, mark=MARK, netns=7)
            passive = Socket(src=LOCAL[4], src_port=8000, dst=LOCAL[4], dst_port=1, netns=7)
            if side == SockOp.PASSIVE_ESTABLISHED_CB:
                bench.sockops.run(SockOpsContext(SockOp.ACTIVE_ESTABLISHED_CB, active, rcv_nxt=1))
            bench.failing(helper, result, lambda run, arguments: True)
            socket = active if side == SockOp.ACTIVE_ESTABLISHED_CB else passive
            bench.sockops.run(SockOpsContext(side, socket, snd_nxt=1))


def everything() -> Coverage:
    coverage = Coverage()
    bench = Bench(coverage)
    parsing(bench)
    flows(Bench(coverage))
    questions(Bench(coverage))
    connections(Bench(coverage))
    errors(coverage)
    failing_helpers(coverage)
    failing_enrolment(coverage)
    queues(coverage)
    encrypted(coverage)
    meetings(coverage)
    without_memory(coverage)
    other = dataclasses.replace(
        SETTINGS, timers=False, coarse_clock=False, netns_cookie=False, mark=Mark(0x1000, 0xF000)
    )
    flows(Bench(coverage, other), other)
    questions(Bench(coverage, other))
    connections(Bench(coverage, other))
    flows(Bench(coverage, SETTINGS, Interface(loopback=True)))
    flows(Bench(coverage, SETTINGS, Interface(link_header=False)))
    return coverage


def test_every_line_and_branch_of_the_programs() -> None:
    coverage = everything()
    files = [one for one in coverage.files() if one.filename.startswith("programs/")]
    assert {one.filename for one in files} >= {"programs/tc_ingress.py", "programs/sk_msg.py"}
    assert {one.filename: one.missing for one in files if one.missing} == {}
    missing = [branch for branch in coverage.missing_branches() if branch.filename.startswith("programs/")]
    assert missing == [], "\n".join(map(str, missing))
