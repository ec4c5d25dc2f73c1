# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What probes are made of: programs of a few instructions, written as such, that are never attached."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loader.errors import BpfError, CapabilityError, describe_errno
from loader.features.answer import Answer, Support, yes
from loader.objects import Program
from loader.verifier import VerifierError
from pybpfasm import isa
from pybpfasm.instruction import Instruction, encode

if TYPE_CHECKING:
    from pybpfasm.errors import SourceLocation

__all__ = ["EXIT", "NOWHERE", "Raw", "alu", "ask_verifier", "call", "copy", "harmless", "map_fd"]

NOWHERE = 0x7FFFFFFF  # the greatest number of a descriptor or interface: there is none of it


def alu(dst: int, imm: int, op: int = isa.Alu.MOV) -> Instruction:
    """``dst = imm``, or another operation of 64 bits with an immediate."""
    return Instruction(isa.ALU64 | op | isa.K, dst, imm=imm)


def copy(dst: int, src: int) -> Instruction:
    """``dst = src``."""
    return Instruction(isa.ALU64 | isa.Alu.MOV | isa.X, dst, src)


def call(helper: int) -> Instruction:
    """Call a helper."""
    return Instruction(isa.OP_CALL, imm=helper)


def map_fd(dst: int, fd: int) -> Instruction:
    """``dst`` becomes the map of a descriptor."""
    return Instruction(isa.LD_IMM64, dst, isa.Imm64.MAP_FD, imm=fd)


EXIT = Instruction(isa.OP_EXIT)


class Raw:
    """A program of a few instructions in the shape that :meth:`Program.load` takes."""

    name = "probe"
    license = "GPL"

    def __init__(
        self,
        type: int,
        instructions: Sequence[Instruction],
        attach_type: int | None = None,
        prog_flags: int = 0,
    ) -> None:
        self.type = type
        self.expected_attach_type = attach_type
        self.prog_flags = prog_flags
        self._code = encode(instructions, sys.byteorder)

    def code(self, map_fds: Mapping[str, int] | None = None) -> bytes:
        return self._code

    def btf(self) -> bytes:
        return b""

    def func_info(self) -> bytes:
        return b""

    def line_info(self) -> bytes:
        return b""

    def location(self, slot: int) -> SourceLocation | None:
        return None


def harmless(type: int, attach_type: int | None = None, value: int = 1) -> Program:
    """Load a program that does nothing but return a value."""
    return Program.load(Raw(type, [alu(0, value), EXIT], attach_type))


def ask_verifier(program: Raw, without: tuple[str, ...] = ()) -> Answer:
    """Load a program that the verifier may well refuse: it knows what is asked for unless its log has one of
    the texts ``without``.
    """
    try:
        Program.load(program).close()
    except VerifierError as error:
        if any(text in error.log for text in without):
            return Support.UNSUPPORTED, error.reason, error.errno or 0
        return yes(f"the verifier knows it ({error.reason})")
    except CapabilityError as error:
        return Support.INCONCLUSIVE, str(error), errno.EPERM
    except BpfError as error:
        code = error.errno or 0
        support = Support.UNSUPPORTED if code == errno.EINVAL else Support.INCONCLUSIVE
        return support, f"BPF_{error.command} answered {describe_errno(code)}", code
    return yes()
