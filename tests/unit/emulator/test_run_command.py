# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Running a program from the command line: packets from captures, the trace, stepping forward and back."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pybpfasm.emulator import EmulatorError
from pybpfasm.emulator.cli import main, read_pcap

SOURCE = """
from pybpfasm.program import sched_cls, subprogram

@subprogram("n")
def double(b):
    b.r0 = b.r1
    b.r0 += b.r1
    b.exit()

@sched_cls(name="sample")
def sample(b, ctx):
    b.r6 = ctx.len  # length
    b.r1 = b.r6
    b.call(double)
    b.exit()

@sched_cls(name="wrong")
def wrong(b, ctx):
    b.r6 = 1
    b.r0 = b.u8[b.r6 + 5]
    b.exit()

sample, wrong = sample.build(), wrong.build()
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "sample_programs.py"
    path.write_text(SOURCE)
    return str(path)


def pcap(*packets: bytes, order: str = "<", link_type: int = 1) -> bytes:
    out = struct.pack(order + "IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link_type)
    for packet in packets:
        out += struct.pack(order + "IIII", 0, 0, len(packet), len(packet)) + packet
    return out


@pytest.mark.parametrize("order", ["<", ">"])
def test_captures(order: str) -> None:
    assert list(read_pcap(pcap(b"one", b"three", order=order))) == [b"one", b"three"]
    with pytest.raises(EmulatorError, match="cut off"):
        list(read_pcap(pcap(b"one", order=order)[:-1]))


def test_link_types_of_captures() -> None:
    frame = bytes(12) + b"\x08\0E" + bytes(19)
    assert list(read_pcap(pcap(frame), link_header=False)) == [frame[14:]]
    for raw in (12, 101, 228):
        assert list(read_pcap(pcap(frame[14:], link_type=raw), link_header=False)) == [frame[14:]]
        with pytest.raises(EmulatorError, match=rf"no.* Ethernet header \(link type {raw}\)"):
            list(read_pcap(pcap(frame[14:], link_type=raw)))
    for link_header in (False, True):  # LINKTYPE_LINUX_SLL2, what -i any gives
        with pytest.raises(EmulatorError, match=r"\(link type 276\).* not on 'any'"):
            list(read_pcap(pcap(frame, link_type=276), link_header=link_header))


@pytest.mark.parametrize("length", [4, 23, 25, 39])
def test_a_capture_that_ends_in_a_header(length: int) -> None:
    with pytest.raises(EmulatorError, match="cut off"):
        list(read_pcap(pcap(bytes(20))[:length]))


def test_what_is_no_capture() -> None:
    with pytest.raises(EmulatorError, match="tcpdump -r"):
        list(read_pcap(b"\n\r\r\n" + bytes(100)))
    with pytest.raises(EmulatorError, match="no pcap file"):
        list(read_pcap(b""))


def test_each_packet_of_a_capture(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capture = tmp_path / "capture"
    capture.write_bytes(pcap(bytes(20), bytes(30)))
    assert main([f"{module}:sample", "--pcap", str(capture)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "packet 1: r0 = 0x28 (40) after 7 instructions",
        "packet 2: r0 = 0x3c (60) after 7 instructions",
    ]
    assert main([f"{module}:sample", "--pcap", str(capture), "--packet", "2"]) == 0
    assert capsys.readouterr().out.startswith("packet 2: r0 = 0x3c")
    assert main([f"{module}:sample", "--pcap", str(capture), "--packet", "3"]) == 1
    assert "there is no 3" in capsys.readouterr().err
    capture.write_bytes(b"no capture")
    assert main([f"{module}:sample", "--pcap", str(capture)]) == 1
    assert f"{capture}: this is no pcap file" in capsys.readouterr().err


def test_the_trace_up_to_a_fault(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{module}:wrong", "--hex", "00" * 20, "--trace"]) == 1
    shown = capsys.readouterr().out
    assert "r6 = 1" in shown and "r6=1" in shown
    assert "a read of 1 byte through the scalar 6" in shown


def test_stepping_forward_and_back(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    commands = iter(["", "n", "n", "r", "b", "b", "r", "g 6", "r", "c", "?", "q"])
    assert main([f"{module}:sample", "--hex", "00" * 20, "--step"], ask=lambda prompt: next(commands)) == 0
    shown = capsys.readouterr().out
    blocks = shown.split("[")[1:]
    assert [block.split("/")[0] for block in blocks] == ["1", "2", "3", "4", "3", "2", "6", "7"]
    assert "b.r6 = ctx.len  # length" in blocks[0]
    # In the callee r6 is not set, r1 is the argument; back in the caller r6 is there.
    assert "r0=20  r1=20  r10=fp" in blocks[3] and "r6" not in blocks[3]
    assert "r6=20" in blocks[5]
    assert "g N: go to step N" in shown


def test_wrong_use(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([f"{module}:sample", "--hex", "xyz"]) == 1
    assert main([f"{module}:nothing"]) == 1
    assert "error:" in capsys.readouterr().err
