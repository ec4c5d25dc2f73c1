# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Run programs without a kernel: the same instructions, in pure Python, with the kernel's memory discipline.

    emulator = Emulator()
    program = emulator.load(tc_ingress.build(settings, Interface()))
    result = program.run(Skb(packet, mark=7))
    assert result.action == TcxAction.NEXT
    assert emulator.map("pba_flows")[key].original_port == 8000

A program that breaks a rule raises `EmulatorFault`, which names the Python line, the registers and the
reason.
"""

from __future__ import annotations

from pybpfasm.emulator import (  # noqa: F401  (they add their models)
    dynptr_helpers,
    iterator_kfuncs,
    message_helpers,
    packet_helpers,
    room_helpers,
    sockopt_helpers,
    text_helpers,
)
from pybpfasm.emulator.conformance import run_conformance, run_instructions
from pybpfasm.emulator.context import (
    Context,
    Skb,
    SkLookupContext,
    SkMsg,
    SockAddrContext,
    SockOpsContext,
    SockOptContext,
    Xdp,
)
from pybpfasm.emulator.emulator import Emulator
from pybpfasm.emulator.faults import EmulatorError, EmulatorFault, Violation
from pybpfasm.emulator.helpers import MODELS
from pybpfasm.emulator.maps import Map, MapError
from pybpfasm.emulator.program import Program
from pybpfasm.emulator.run import Result, Run, Step
from pybpfasm.emulator.sockets import Socket, SocketTable, address_bytes
from pybpfasm.emulator.task_helpers import Task
from pybpfasm.emulator.tracing import Arguments
from pybpfasm.isa import CallKind
from pybpfasm.kernel.enums import Helper


def modelled_helpers() -> frozenset[int]:
    """The numbers of the helpers that every emulator has a model of."""
    return frozenset(number for kind, number in MODELS if kind == CallKind.HELPER) | {Helper.tail_call}


__all__ = [
    "Arguments",
    "Context",
    "Emulator",
    "EmulatorError",
    "EmulatorFault",
    "Map",
    "MapError",
    "Program",
    "Result",
    "Run",
    "SkLookupContext",
    "SkMsg",
    "Skb",
    "SockAddrContext",
    "SockOpsContext",
    "SockOptContext",
    "Socket",
    "SocketTable",
    "Step",
    "Task",
    "Violation",
    "Xdp",
    "address_bytes",
    "modelled_helpers",
    "run_conformance",
    "run_instructions",
]
