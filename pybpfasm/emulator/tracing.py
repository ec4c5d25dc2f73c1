# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What programs for tracing see: arguments of functions and tracepoints, and the memory behind them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from pybpfasm.emulator.context import Context
from pybpfasm.emulator.errnos import EFAULT
from pybpfasm.emulator.faults import EmulatorError, Violation
from pybpfasm.emulator.helpers import helper
from pybpfasm.emulator.memory import Memory, Rights
from pybpfasm.emulator.run import Run
from pybpfasm.kernel.context import RawTracepointArgs
from pybpfasm.kernel.enums import Helper, ProgType
from pybpfasm.program import ProgramSpec

__all__ = ["Arguments"]

U32: Final = 0xFFFFFFFF
_COUNT = RawTracepointArgs.sizeof // 8


@lru_cache(maxsize=1)
def _argument_rights() -> Rights:
    rights = Rights(
        RawTracepointArgs.kernel_name, [(8 * index, 8, f"args[{index}]") for index in range(_COUNT)]
    )
    for index in range(_COUNT):
        rights.allow(8 * index, 8)
    return rights


class Arguments(Context):
    """The arguments of a function or a tracepoint, for raw tracepoint, tracing and LSM programs.

    An argument is a number, or bytes for a pointer to them: ``Arguments(Task.pack(pid=7), 1)``. The bytes
    lie as the program's own structure says, whatever CO-RE makes of it in a kernel. A tracing program
    loads from them, a raw tracepoint program reads them with ``probe_read_kernel``. Raises `EmulatorError`
    for more than 12 arguments.
    """

    layout = RawTracepointArgs
    types = frozenset(
        {ProgType.RAW_TRACEPOINT, ProgType.RAW_TRACEPOINT_WRITABLE, ProgType.TRACING, ProgType.LSM}
    )

    def __init__(self, *arguments: int | bytes) -> None:
        super().__init__()
        if len(arguments) > _COUNT:
            raise EmulatorError(f"a function has at most {_COUNT} arguments here, not {len(arguments)}")
        self.arguments = arguments
        numbers = [one & (1 << 64) - 1 if isinstance(one, int) else 0 for one in arguments]
        self["args"] = numbers + [0] * (_COUNT - len(numbers))

    def rights(self, spec: ProgramSpec) -> Rights:
        return _argument_rights()

    def pointers(self, run: Run) -> dict[int, Callable[[], int]]:
        direct = run.program.spec.type in (ProgType.TRACING, ProgType.LSM)
        found: dict[int, Callable[[], int]] = {}
        for index, data in enumerate(self.arguments):
            if isinstance(data, int):
                continue
            region = Memory(
                f"the kernel's memory behind argument {index}",
                bytearray(data),
                run.emulator.byteorder,
                readable=direct,
                writable=False,
            )
            found[8 * index] = lambda region=region: run.pointer(region)  # type: ignore[misc]
        return found


def _memory(run: Run, address: int, size: int) -> bytes | None:
    """The *size* bytes at *address*, ``None`` where there are not so many."""
    try:
        region, at = run.region(address)
    except Violation:
        return None
    if not 0 <= at <= region.size - size:
        return None
    return bytes(region.data[at : at + size])


@helper(Helper.probe_read_kernel)
def probe_read_kernel(run: Run, to: int, size: int, source: int) -> int:
    """The bytes behind any address; zeros and -EFAULT for one where nothing is."""
    size &= U32
    run.room(to, size, "the buffer")
    data = _memory(run, source, size)
    run.write(to, bytes(size) if data is None else data, "the buffer")
    return -EFAULT if data is None else 0


@helper(Helper.probe_read_kernel_str)
def probe_read_kernel_str(run: Run, to: int, size: int, source: int) -> int:
    """A text with its NUL, cut to *size*; returns its length, NUL included."""
    size &= U32
    if not size:
        return 0
    run.room(to, size, "the buffer")
    found = bytearray()
    while len(found) < size:
        byte = _memory(run, source + len(found), 1)
        if byte is None:
            run.write(to, bytes(size), "the buffer")
            return -EFAULT
        found += byte
        if byte == b"\0":
            break
    found[-1] = 0
    run.write(to, bytes(found), "the buffer")
    return len(found)
