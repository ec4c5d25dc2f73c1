# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""BPF Type Format: a writer, a reader, and the records that tie instructions to functions and source lines.

`BtfBuilder` makes the bytes for ``BPF_BTF_LOAD``; `Btf` reads such bytes, from any source and in either byte
order, and decodes a type when it is asked for, so that a kernel's ``vmlinux`` BTF of 5 MB is ready in some 50
ms. `FuncInfo` and `LineInfo` are the records of ``BPF_PROG_LOAD``; `BtfExt` is the ELF section ``.BTF.ext``
that holds them in object files.

The format is described in the kernel's Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
"""

from pybpfasm.btf.builder import BtfBuilder
from pybpfasm.btf.declare import declare
from pybpfasm.btf.format import BtfError, DatasecEntry, Enumerator, Kind, Linkage, Member, Param
from pybpfasm.btf.info import (
    BtfExt,
    CoreRelo,
    FuncInfo,
    LineInfo,
    pack_func_info,
    pack_line_info,
    unpack_func_info,
    unpack_line_info,
)
from pybpfasm.btf.layouts import layout_of
from pybpfasm.btf.reader import Btf, BtfType

__all__ = [
    "Btf",
    "BtfBuilder",
    "BtfError",
    "BtfExt",
    "BtfType",
    "CoreRelo",
    "DatasecEntry",
    "Enumerator",
    "FuncInfo",
    "Kind",
    "LineInfo",
    "Linkage",
    "Member",
    "Param",
    "declare",
    "layout_of",
    "pack_func_info",
    "pack_line_info",
    "unpack_func_info",
    "unpack_line_info",
]
