# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers of dynamic pointers: memory whose size the verifier does not know (kernel/bpf/helpers.c).

What a dynptr points to is kept by the place of its 16 bytes on the stack, which themselves hold nothing that
a program could read. One whose bytes were written since is none any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from pybpfasm.emulator.errnos import E2BIG, EINVAL
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.helpers import finish_record, helper
from pybpfasm.emulator.maps import Record, RingBuf
from pybpfasm.emulator.memory import Memory, Region, Stack
from pybpfasm.emulator.run import Run
from pybpfasm.kernel.enums import Helper

if TYPE_CHECKING:
    from pybpfasm.emulator.memory import Order

U32: Final = 0xFFFFFFFF
SIZE: Final = 16  # sizeof(struct bpf_dynptr)
_MAX_SIZE: Final = (1 << 24) - 1  # DYNPTR_MAX_SIZE


class Window(Memory):
    """Bytes of another region, which stay those."""

    __slots__ = ()

    def __init__(self, region: Region, at: int, size: int, order: Order) -> None:
        super().__init__(region.kind, bytearray(), order, size=size, atomic=region.atomic)
        self.data = cast(bytearray, memoryview(region.data)[at : at + size])
        self.readable, self.writable = region.readable, region.writable


@dataclass(eq=False)
class Dynptr:
    """What a dynptr points to: *size* bytes at offset *at* of *region*; nothing where that is ``None``."""

    what: ClassVar[str] = "a dynptr"
    on_stack: ClassVar[int] = SIZE
    in_use: ClassVar[str] = (
        "a dynptr of a ring buffer's record is made anew: submit or discard the record first"
    )
    region: Region | None
    at: int = 0
    size: int = 0
    record: Record | None = None


def stack_place(run: Run, address: int, size: int, what: str) -> tuple[Stack, int]:
    """The frame that *address* points into, and where; raises `Violation` where *what*, of *size* bytes,
    can't be."""
    region, at = run.region(address, f"the argument for {what}")
    if not isinstance(region, Stack) or at % 8:
        raise Violation(
            f"{run.describe(address)} is no place for {what}: {size} aligned bytes of the stack are"
        )
    if not 0 <= at <= region.size - size:
        region.refuse(at, size, what)
    return region, at


def intact(run: Run, address: int, size: int, what: str) -> bool:
    """Whether the place of *what* on the stack has not been written since; raises `Violation`."""
    stack, at = stack_place(run, address, size, what)
    return not any(stack.set[at : at + size])


def take_place(run: Run, address: int, made: Any) -> None:
    """Put *made*, a dynptr or an iterator, at *address* on the stack; raises `Violation` where it would lie
    on one that is to be given back."""
    size = made.on_stack
    stack, at = stack_place(run, address, size, made.what)
    for other in range(address - SIZE + 8, address + size, 8):
        found = run.dynptrs.get(other)
        if found is not None and other + found.on_stack > address:
            if other in run.held:
                raise Violation(found.in_use)
            del run.dynptrs[other]
    stack.set[at : at + size] = bytes(size)
    run.dynptrs[address] = made


def dynptr_at(run: Run, address: int) -> Dynptr:
    """The dynptr that *address* points to; raises `Violation`."""
    found = run.dynptrs.get(address)
    if not intact(run, address, SIZE, Dynptr.what) or not isinstance(found, Dynptr):
        raise Violation(f"there is no dynptr at {run.describe(address)}")
    return found


def _outside(dynptr: Dynptr, offset: int, size: int) -> bool:
    return size > dynptr.size or offset > dynptr.size - size


@helper(Helper.dynptr_from_mem)
def dynptr_from_mem(run: Run, data: int, size: int, flags: int, dynptr: int) -> int:
    """Make a dynptr of a map's value: 0, -E2BIG above 16 MiB, -EINVAL for any flag."""
    size &= U32
    error = -E2BIG if size > _MAX_SIZE else -EINVAL if flags else 0
    region, at = run.region(data, "the data")
    if isinstance(region, Stack):
        raise Violation("dynptr_from_mem takes a map's value, not the stack")
    if not error and not 0 <= at <= region.size - size:
        region.refuse(at, size, "a dynptr")
    take_place(run, dynptr, Dynptr(None) if error else Dynptr(region, at, size))
    return error


@helper(Helper.dynptr_read)
def dynptr_read(run: Run, to: int, size: int, dynptr: int, offset: int, flags: int) -> int:
    """Copy out of what a dynptr points to: 0, -E2BIG outside it, -EINVAL for none and for any flag."""
    found = dynptr_at(run, dynptr)
    if found.region is None or flags:
        error = -EINVAL
    elif _outside(found, offset & U32, size & U32):
        error = -E2BIG
    else:
        run.write(to, found.region.read(found.at + (offset & U32), size & U32), "the buffer")
        return 0
    return error


@helper(Helper.dynptr_write)
def dynptr_write(run: Run, dynptr: int, offset: int, source: int, size: int, flags: int) -> int:
    """Copy into what a dynptr points to: 0, -E2BIG outside it, -EINVAL for none and for any flag."""
    found = dynptr_at(run, dynptr)
    offset, size = offset & U32, size & U32
    data = run.read(source, size, "the source")
    if found.region is None:
        return -EINVAL
    if _outside(found, offset, size):
        return -E2BIG
    if flags:
        return -EINVAL
    found.region.write(found.at + offset, data)
    return 0


@helper(Helper.dynptr_data)
def dynptr_data(run: Run, dynptr: int, offset: int, size: int) -> int:
    """A pointer to *size* bytes of what a dynptr points to, or 0 where there are not as many."""
    found = dynptr_at(run, dynptr)
    offset, size = offset & U32, size & U32
    if found.region is None or _outside(found, offset, size):
        return 0
    window = Window(found.region, found.at + offset, size, run.emulator.byteorder)
    if found.record is not None:
        run.windows.setdefault(id(found.record), []).append(window)
    return run.pointer(window)


@helper(Helper.ringbuf_reserve_dynptr)
def ringbuf_reserve_dynptr(run: Run, ring: int, size: int, flags: int, dynptr: int) -> int:
    """A record as a dynptr, which is to be submitted or discarded even where this fails with an errno."""
    one = run.map(ring, RingBuf)
    size &= U32
    error = -EINVAL if flags else -E2BIG if size > _MAX_SIZE else 0
    record = None if error else one.reserve(size)
    if record is None:
        take_place(run, dynptr, Dynptr(None))
        error = error or -EINVAL
    else:
        take_place(run, dynptr, Dynptr(record, 0, size, record))
    run.hold(dynptr, "a dynptr of a ring buffer's record")
    return error


def _finish(run: Run, dynptr: int, state: str) -> int:
    found = dynptr_at(run, dynptr)
    run.give_back(dynptr, "dynptr of a record")
    if found.record is not None:
        finish_record(run, found.record, state)
        for window in run.windows.pop(id(found.record), []):
            run.void(window, "this record has been submitted or discarded")
    del run.dynptrs[dynptr]
    return 0


@helper(Helper.ringbuf_submit_dynptr)
def ringbuf_submit_dynptr(run: Run, dynptr: int, flags: int) -> int:
    """Let readers have the record, where there is one."""
    return _finish(run, dynptr, "done")


@helper(Helper.ringbuf_discard_dynptr)
def ringbuf_discard_dynptr(run: Run, dynptr: int, flags: int) -> int:
    """Let nobody have the record."""
    return _finish(run, dynptr, "discarded")


@helper(Helper.user_ringbuf_drain)
def user_ringbuf_drain(run: Run, ring: int, callback: int, context: int, flags: int) -> int:
    """Call the callback with a dynptr of each record that user space has put in; how many there were."""
    from pybpfasm.emulator.maps import UserRingBuf

    one = run.map(ring, UserRingBuf)
    slot = run.function(callback)
    if flags & ~0x3:  # BPF_RB_NO_WAKEUP, BPF_RB_FORCE_WAKEUP
        return -EINVAL
    seen = 0
    while one.records:
        data = one.records.popleft()
        seen += 1
        record = Memory(f"a record of ring buffer {one.name}", bytearray(data), one.order, writable=False)
        holder = Stack(one.order)
        place = run.pointer(holder, holder.size - SIZE)
        run.dynptrs[place] = Dynptr(record, 0, len(data))
        stop: Any = run.call(slot, place, context)
        run.void(holder, "this dynptr was for the callback that has returned")
        if stop == 1:
            break
    return seen
