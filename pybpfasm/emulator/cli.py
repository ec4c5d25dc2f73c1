# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""``python -m pybpfasm run``: a program on a packet, with ``--trace`` or step by step.

Stepping goes over a run that has taken place, so that it goes backwards as easily as forwards.
"""

from __future__ import annotations

import argparse
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pybpfasm.emulator.conformance import run_instructions
from pybpfasm.emulator.context import Context, Skb, Xdp
from pybpfasm.emulator.emulator import Emulator
from pybpfasm.emulator.faults import EmulatorError, EmulatorFault
from pybpfasm.emulator.run import Step, lines
from pybpfasm.errors import PybpfasmError
from pybpfasm.kernel.enums import ProgType
from pybpfasm.net import Ethernet
from pybpfasm.program import ProgramSpec

__all__ = ["Stepper", "main", "read_pcap", "run_bare", "run_program"]

_HELP = "Enter or n: on, b: back, g N: go to step N, c: to the end, r: registers, q: leave"


# Link types of captures, https://www.tcpdump.org/linktypes.html: Ethernet, and packets that begin with IP.
_ETHERNET: Final = 1
_RAW: Final = (12, 14, 101, 228, 229)


def read_pcap(data: bytes, *, link_header: bool = True) -> Iterator[bytes]:
    """The packets of a capture file (pcap, of either byte order and resolution); raises `EmulatorError`.

    They are Ethernet frames, or without *link_header* IP packets, for which a capture of frames will do too.
    """
    orders = {
        b"\xd4\xc3\xb2\xa1": "<",
        b"\xa1\xb2\xc3\xd4": ">",
        b"\x4d\x3c\xb2\xa1": "<",
        b"\xa1\xb2\x3c\x4d": ">",
    }
    order = orders.get(data[:4])
    if order is None:
        hint = "; it is pcapng: tcpdump -r IN -w OUT converts it" if data[:4] == b"\n\r\r\n" else ""
        raise EmulatorError(f"this is no pcap file{hint}")
    at = 24
    if len(data) < at:
        raise EmulatorError("the capture is cut off in its header")
    kind = struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF
    if kind != _ETHERNET and (link_header or kind not in _RAW):
        raise EmulatorError(
            f"its packets do not begin with an Ethernet header (link type {kind}): capture on an Ethernet "
            "interface, not on 'any'"
        )
    begin = Ethernet.sizeof if kind == _ETHERNET and not link_header else 0
    while at < len(data):
        length = struct.unpack_from(order + "I", data, at + 8)[0] if at + 16 <= len(data) else 0
        packet = data[at + 16 : at + 16 + length]
        if at + 16 > len(data) or len(packet) != length:
            raise EmulatorError(f"the capture is cut off in the packet at byte {at}")
        yield packet[begin:]
        at += 16 + length


class Stepper:
    """A recorded run: a place in it, and the registers there; *begin* are those that it begins with."""

    def __init__(self, trace: Sequence[Step], begin: dict[int, str] | None = None) -> None:
        self.trace = trace
        self.at = 0
        # The registers of the frames after each step, innermost last.
        self._frames: list[tuple[dict[int, str], ...]] = []
        frames: list[dict[int, str]] = [begin or {1: "ctx", 10: "fp"}]
        for step in trace:
            depth = step.depth + 1
            while len(frames) > depth:
                frames.pop()
            while len(frames) < depth:
                caller = frames[-1]
                frames.append({i: caller[i] for i in range(1, 6) if i in caller} | {10: "fp"})
            frames[-1] = frames[-1] | step.shown
            self._frames.append(tuple(frames))

    def registers(self) -> dict[int, str]:
        """What the registers hold after the current step."""
        return dict(sorted(self._frames[self.at][-1].items())) if self._frames else {}

    def show(self) -> str:
        """The current step with its Python line."""
        if not self.trace:
            return "nothing has run"
        return f"[{self.at + 1}/{len(self.trace)}]\n{lines([self.trace[self.at]])}"

    def command(self, text: str) -> str | None:
        """Do what a line typed at the prompt says; what to print, or ``None`` at the end."""
        words = text.split()
        name = words[0] if words else "n"
        last = max(0, len(self.trace) - 1)
        if name == "q":
            return None
        if name == "n":
            self.at = min(self.at + 1, last)
        elif name == "b":
            self.at = max(self.at - 1, 0)
        elif name == "c":
            self.at = last
        elif name == "g" and len(words) == 2 and words[1].isdigit():
            self.at = min(max(int(words[1]) - 1, 0), last)
        elif name == "r":
            return "  ".join(f"r{i}={value}" for i, value in self.registers().items())
        else:
            return _HELP
        return self.show()


def _contexts(options: argparse.Namespace, link_header: bool) -> list[tuple[int, bytes]]:
    """The packets to run on, each with its number."""
    if options.pcap is not None:
        try:
            packets = list(enumerate(read_pcap(Path(options.pcap).read_bytes(), link_header=link_header), 1))
        except EmulatorError as error:
            raise EmulatorError(f"{options.pcap}: {error}") from None
        if options.packet is not None:
            if not 1 <= options.packet <= len(packets):
                raise EmulatorError(
                    f"{options.pcap} has {len(packets)} packets, there is no {options.packet}"
                )
            return [packets[options.packet - 1]]
        return packets
    if options.hex is not None:
        try:
            return [(1, bytes.fromhex(options.hex))]
        except ValueError:
            raise EmulatorError(f"--hex takes bytes in hexadecimal, not {options.hex!r}") from None
    return [(1, bytes(64) if options.file is None else Path(options.file).read_bytes())]


def _context(spec: ProgramSpec, packet: bytes, mark: int) -> Context:
    if spec.type in (ProgType.SCHED_CLS, ProgType.SOCKET_FILTER, ProgType.CGROUP_SKB, ProgType.SCHED_ACT):
        return Skb(packet, mark=mark, ifindex=1, link_header=spec.type is not ProgType.CGROUP_SKB)
    if spec.type is ProgType.XDP:
        return Xdp(packet)
    raise EmulatorError(
        f"{spec.name} is a {spec.type.name} program, which runs on no packet: "
        "use pybpfasm.emulator from Python"
    )


def _parser() -> argparse.ArgumentParser:
    from pybpfasm.cli import run_options

    parser = argparse.ArgumentParser(prog="pybpfasm run", description="Run a program without a kernel.")
    parser.add_argument("target", help="the program: module:name, file.py:name, or an object file")
    run_options(parser)
    return parser


def main(arguments: Sequence[str], *, ask: Callable[[str], str] = input) -> int:
    """Run the command; returns the exit status: 0, 1 for a fault or an error, 2 for wrong usage."""
    try:
        options = _parser().parse_args(list(arguments))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        from pybpfasm.cli import load_programs

        specs = load_programs(options.target)
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise EmulatorError(f"{options.target} has several programs: name one of {names}")
        return run_program(specs[0], options, ask)
    except (PybpfasmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run_program(spec: ProgramSpec, options: argparse.Namespace, ask: Callable[[str], str]) -> int:
    """Run *spec* on the packets that the *options* name; returns 1 if one of them ends in a fault."""
    emulator = Emulator(byteorder=spec.byteorder)
    program = emulator.load(spec)
    status = 0
    traced = options.trace or options.step
    for number, packet in _contexts(options, spec.type is not ProgType.CGROUP_SKB):
        which = f"packet {number}: " if options.pcap is not None else ""
        fault: EmulatorFault | None = None
        try:
            context = _context(spec, packet, options.mark or 0)
            result = program.run(context, budget=options.budget, trace=traced)
            trace = result.trace
        except EmulatorFault as error:
            fault, trace, status = error, error.trace, 1
        if options.trace:
            print(lines(trace))
        if options.step:
            _step(trace, ask)
        if fault is not None:
            print(f"{which}{fault}")
            continue
        shown = f"{which}r0 = {result.r0:#x} ({result.action}) after {result.instructions} instructions"
        print(shown + ("" if result.packet == packet else f"\n  changed: {result.packet.hex(' ')}"))
    for line in emulator.printed:
        print(f"printed: {line}")
    return status


def run_bare(spec: ProgramSpec, memory: bytes, options: argparse.Namespace, ask: Callable[[str], str]) -> int:
    """Run *spec*, text or bytes, on bare *memory*; returns 0. Raises `EmulatorFault`."""
    steps: list[Step] | None = [] if options.trace or options.step else None
    try:
        r0, after = run_instructions(spec.instructions, memory, budget=options.budget, trace=steps)
    finally:
        if options.trace:
            print(lines(steps or ()))
        if options.step:
            begin = {1: "the memory" if memory else "0", 2: str(len(memory)), 10: "fp"}
            _step(steps or (), ask, begin)
    print(f"r0 = {r0:#x}")
    if after:
        print(after.hex(" "))
    return 0


def _step(trace: Sequence[Step], ask: Callable[[str], str], begin: dict[int, str] | None = None) -> None:
    stepper = Stepper(trace, begin)
    print(_HELP)
    print(stepper.show())
    while True:
        try:
            answer = stepper.command(ask("> "))
        except EOFError:
            print()
            return
        if answer is None:
            return
        print(answer)
