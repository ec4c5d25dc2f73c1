# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The proxy's TC programs in the emulator and in the kernel, which get the same packets."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from loader.features import Feature
from loader.objects import Map, Program, possible_cpus
from loader.plan import with_offers
from programs.packet import Interface
from programs.settings import Ports, Settings
from programs.tc_egress import tc_egress
from programs.tc_ingress import tc_ingress
from pybpfasm.emulator import Emulator, Skb
from pybpfasm.emulator.host import Segment
from pybpfasm.kernel.context import SkBuff
from pybpfasm.net import TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN
from tests.kernel.programs.rig import place_for_timer
from tests.requires import requires

SEED = int(os.environ.get("PYBPFASM_SEED", "0"))

_CLIENT = {4: bytes([10, 0, 0, 1]), 6: bytes([0xFD]) + bytes(14) + b"\x01"}
_SERVER = {4: bytes([10, 0, 0, 2]), 6: bytes([0xFD]) + bytes(14) + b"\x02"}
_FLAGS = (TCP_SYN, TCP_ACK, TCP_ACK | TCP_FIN, TCP_RST, TCP_SYN | TCP_ACK, TCP_SYN)


def _packets(rng: random.Random, *, egress: bool) -> Iterator[tuple[bytes, int]]:
    """Packets of a few connections with marks: plain, behind VLAN tags, options and extension headers; some
    of them cut off or damaged behind the link header."""
    while True:
        family = rng.choice((4, 6))
        ports = [rng.choice((5000, 5001, 5002)), rng.choice((8000, 8000, 8001, 8080, 80))]
        ends = [_CLIENT[family], _SERVER[family]]
        if egress:
            ports, ends = [8080, ports[0]], ends[::-1]
        segment = Segment(
            ends[0],
            ports[0],
            ends[1],
            ports[1],
            rng.choice(_FLAGS),
            rng.choice((100, 200)),
            7,
            bytes(rng.getrandbits(8) for _ in range(rng.choice((0, 0, 3, 64, 600)))),
        )
        packet = bytearray(segment.packet())
        shape = rng.random()
        if shape < 0.1 and family == 4:  # IP options
            packet[14] = 0x46
            packet[34:34] = bytes(4)
        elif shape < 0.2 and family == 6:
            kind = rng.choice((0, 43, 60, 51, 44))
            header = {
                0: b"\x06\0" + bytes(6),
                43: b"\x06\x01" + bytes(14),
                60: b"\x06\0" + bytes(6),
                51: b"\x06\x02" + bytes(14),
                44: b"\x06\0" + rng.choice((b"\0\0", b"\0\x01", b"\0\x08")) + bytes(4),
            }[kind]
            packet[20] = kind
            packet[54:54] = header
        elif shape < 0.3 and family == 4:  # a fragment
            packet[20:22] = rng.choice((b"\x20\0", b"\0\x01", b"\x40\0"))
        if rng.random() < 0.1:
            for _ in range(rng.choice((1, 2, 3))):
                packet[12:12] = rng.choice((b"\x81\0", b"\x88\xa8")) + b"\0\x05"
        if rng.random() < 0.1:
            at = rng.randrange(14, len(packet))
            packet[at] ^= 1 << rng.randrange(8)
        if rng.random() < 0.05:
            # The test run itself refuses packets without a whole IP header.
            del packet[rng.randrange(54, max(55, len(packet))) :]
        yield bytes(packet), rng.choice((0, 0, 0, 0, 4242, 1))


@pytest.mark.parametrize("timers", [pytest.param(True, marks=requires(Feature.TIMER)), False])
def test_the_proxys_programs(timers: bool, netns: object) -> None:
    # No timer of the kernel's fires meanwhile, however slow the machine is.
    never = 86400
    settings = with_offers(
        Settings(
            Ports.parse("8000-8001"),
            timers=timers,
            flow_capacity=5,
            handshake_seconds=never,
            linger_seconds=never,
        )
    )
    emulator = Emulator(cpus=possible_cpus())
    specs = [tc_ingress.build(settings, Interface()), tc_egress.build(settings, Interface())]
    ours = [emulator.load(spec) for spec in specs]
    rng = random.Random(SEED)
    streams = [_packets(rng, egress=False), _packets(rng, egress=True)]
    verdicts: Counter[tuple[int, int]] = Counter()
    with ExitStack() as stack:
        shared = {spec.name: stack.enter_context(Map.create(spec)) for one in specs for spec in one.maps}
        kernels = [stack.enter_context(Program.load(spec, shared)) for spec in specs]
        for number in range(1500):
            which = rng.randrange(2)
            packet, mark = next(streams[which])
            context = SkBuff.pack(mark=mark)
            place_for_timer()
            expected = kernels[which].test_run(packet, ctx=context)
            result = ours[which].run(Skb(packet, mark=mark, ifindex=1))
            assert (result.value, result.packet) == (expected.retval, expected.data), (number, packet.hex())
            verdicts[which, result.action] += 1
        totals = [Counter[str](), Counter[str]()]
        for total, found in zip(
            totals, (emulator.map("pba_counters")[0], shared["pba_counters"][0]), strict=True
        ):
            for of_cpu in found:
                for hook, counters in of_cpu:
                    total.update({f"{hook}.{name}": value for name, value in counters})
        assert totals[0] == totals[1]
        flows = [
            {key.pack(): (value.state, value.syn_seq, value.original_port) for key, value in one.items()}
            for one in (emulator.map("pba_flows"), shared["pba_flows"])
        ]
        assert flows[0] == flows[1]
    # The packets have reached what they are meant to reach.
    assert verdicts[0, -1] > 100 and verdicts[0, 2] > 20 and verdicts[1, -1] > 100
    for name in ("redirected", "new_flows", "passed_without_flow", "dropped_malformed", "evicted_half_open"):
        assert totals[0][f"ingress.{name}"], name
    assert totals[0]["egress.restored"] and totals[0]["ingress.passed_marked"]
