# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of the open-coded iterator over numbers, ``bpf_iter_num_*`` (kernel/bpf/bpf_iter.c).

Its 8 bytes on the stack hold nothing that a program could read. One whose bytes were written since is none
any more, and so can't be given back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from pybpfasm.emulator.dynptr_helpers import intact, take_place
from pybpfasm.emulator.errnos import E2BIG, EINVAL
from pybpfasm.emulator.faults import Violation
from pybpfasm.emulator.helpers import U32, s32
from pybpfasm.emulator.kfuncs import kfunc
from pybpfasm.emulator.memory import Memory
from pybpfasm.emulator.run import MAX_LOOPS, Run

SIZE: Final = 8  # sizeof(struct bpf_iter_num)


@dataclass(eq=False)
class NumberIterator:
    """The numbers from the one behind *current* to the one before *end*.

    ``number`` is *current* as the program sees it.
    """

    what: ClassVar[str] = "an iterator"
    on_stack: ClassVar[int] = SIZE
    in_use: ClassVar[str] = "there is an iterator here already: destroy it first (bpf_iter_num_destroy)"
    number: Memory
    current: int = 0
    end: int = 0

    def finish(self) -> None:
        """There are no more numbers."""
        self.current = self.end = 0
        self.show()

    def show(self) -> None:
        """Let the program see the current number."""
        self.number.data[:] = (self.current & U32).to_bytes(4, self.number.order)


def _iterator_at(run: Run, address: int) -> NumberIterator:
    found = run.dynptrs.get(address)
    if not intact(run, address, SIZE, NumberIterator.what) or not isinstance(found, NumberIterator):
        raise Violation(f"there is no iterator at {run.describe(address)}: bpf_iter_num_new makes one")
    return found


@kfunc("bpf_iter_num_new")
def bpf_iter_num_new(run: Run, iterator: int, start: int, end: int) -> int:
    """Begin with the numbers from *start* to the one before *end*: 0, -EINVAL where *start* is greater,
    -E2BIG for more than BPF_MAX_LOOPS numbers.

    Where it fails it is an iterator over nothing, which is to be destroyed too. The result has 32 bits, as
    the kernel's ``int`` has: the upper half of r0 is 0.
    """
    order = run.emulator.byteorder
    made = NumberIterator(Memory("the iterator's number", bytearray(4), order, writable=False, atomic=False))
    take_place(run, iterator, made)
    run.hold(iterator, made.what)
    first, last = s32(start), s32(end)
    if first > last:
        return -EINVAL & U32
    if last - first > MAX_LOOPS:
        return -E2BIG & U32
    made.current, made.end = first - 1, last
    return 0


@kfunc("bpf_iter_num_next")
def bpf_iter_num_next(run: Run, iterator: int) -> int:
    """A pointer to the next number, which can be read, or 0 where there is none. It is always the same
    pointer."""
    one = _iterator_at(run, iterator)
    if one.current + 1 >= one.end:
        one.finish()
        return 0
    one.current += 1
    one.show()
    return run.pointer(one.number)


@kfunc("bpf_iter_num_destroy")
def bpf_iter_num_destroy(run: Run, iterator: int) -> int:
    """End with an iterator; pointers to its number can't be used any more."""
    one = _iterator_at(run, iterator)
    run.give_back(iterator, "iterator")
    run.void(one.number, "the iterator that this number is of has been destroyed")
    del run.dynptrs[iterator]
    return 0
