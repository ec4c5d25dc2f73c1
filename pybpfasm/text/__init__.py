# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Assembly text to instructions: the kernel's syntax, and mnemonics.

    loop:
        r0 += r1                            ; as the verifier and bpftool print it
        if r0 < 0x64 goto loop
        add %r0, %r1                        # as the conformance suite writes it
        jlt %r0, 100, loop
        call bpf_ktime_get_ns#5             # also by name or by number alone
        exit

In mnemonics, addresses have the names of RFC 9669: ``lddw %r1, map_by_fd(flows)``,
``map_val(map_by_fd(flows))+8``, ``map_by_idx(0)``, ``var_addr(7)``, ``code_addr(label)``.

Each line is one statement in either syntax. Labels end with ``:``; comments begin with ``;``, ``#`` or
``//``. Where other assemblers separate statements by ``;``, the second would be a comment: that is refused.
Jumps and calls go to a label, or by slots: ``goto pc+2``, ``ja +2``. The label ``exit``, unless the text
defines it, is the first ``exit``. A dump of ``bpftool prog dump xlated`` and a `pybpfasm.listing.listing` are
read as they are: slot numbers and opcodes before the instructions are checked, lines of source are comments,
and heads of functions are labels. (In the dump of a loaded program the number of a helper is where the
function is; its name tells. A function that the kernel has put in a helper's place has no text of its own.)
What `pybpfasm.listing.text` prints becomes the same bytes again.

Two traps of the kernel's syntax: ``r1 = 5`` is a ``mov`` and ``r1 = 0x5`` the 16-byte 64-bit load; and a
32-bit immediate in hexadecimal is bits, so that ``r1 += 0xffffffff`` adds -1.
"""

from __future__ import annotations

from pybpfasm.text.errors import TextError
from pybpfasm.text.parser import Assembly, MapReference, assemble, parse

__all__ = ["Assembly", "MapReference", "TextError", "assemble", "parse"]
