# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""An eBPF assembler in Python: programs are written in the DSL and become bytes, BTF, text or ELF objects.

What a program needs is here by name (``from pybpfasm import Asm, SkBuff, sched_cls, …``). A module is
imported when something of it is first asked for, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pybpfasm.asm import (
        Asm,
        Label,
        Reg,
        addr_space_cast,
        be16,
        be32,
        be64,
        bswap16,
        bswap32,
        bswap64,
        imm64,
        le16,
        le32,
        le64,
        s8,
        s16,
        s32,
    )
    from pybpfasm.errors import AsmError, LayoutError, PybpfasmError, SourceLocation
    from pybpfasm.instruction import Instruction, decode, encode
    from pybpfasm.kernel.context import (
        BpfSock,
        CgroupDevice,
        PtRegs,
        RawTracepointArgs,
        SkBuff,
        SkLookup,
        SkMsgMd,
        SkReuseport,
        SockAddr,
        SockOps,
        SockOpt,
        Sysctl,
        TraceEntry,
        XdpMd,
    )
    from pybpfasm.kernel.enums import AttachType, Helper, MapType, ProgType, SkAction, TcxAction, XdpAction
    from pybpfasm.kernel.values import BpfSpinLock, BpfTimer, LpmTrieKey
    from pybpfasm.layout import (
        S8,
        S16,
        S32,
        S64,
        U8,
        U16,
        U32,
        U64,
        Array,
        Be16,
        Be32,
        Be64,
        Bytes,
        Nested,
        Pointer,
        Record,
        Struct,
        Union,
    )
    from pybpfasm.maps import MapSpec
    from pybpfasm.program import (
        ProgramSpec,
        cgroup_device,
        cgroup_skb,
        cgroup_sock,
        cgroup_sock_addr,
        cgroup_sockopt,
        cgroup_sysctl,
        global_function,
        kprobe,
        lsm,
        raw_tracepoint,
        sched_cls,
        sk_lookup,
        sk_msg,
        sk_reuseport,
        sk_skb,
        sock_ops,
        socket_filter,
        subprogram,
        tracepoint,
        tracing,
        xdp,
    )

_WHERE = {
    "asm": "Asm Label Reg addr_space_cast be16 be32 be64 bswap16 bswap32 bswap64 imm64 le16 le32 le64 s8 "
    "s16 s32",
    "errors": "AsmError LayoutError PybpfasmError SourceLocation",
    "instruction": "Instruction decode encode",
    "kernel.context": "BpfSock CgroupDevice PtRegs RawTracepointArgs SkBuff SkLookup SkMsgMd SkReuseport "
    "SockAddr SockOps SockOpt Sysctl TraceEntry XdpMd",
    "kernel.enums": "AttachType Helper MapType ProgType SkAction TcxAction XdpAction",
    "kernel.values": "BpfSpinLock BpfTimer LpmTrieKey",
    "layout": "S8 S16 S32 S64 U8 U16 U32 U64 Array Be16 Be32 Be64 Bytes Nested Pointer Record Struct Union",
    "maps": "MapSpec",
    "program": "ProgramSpec cgroup_device cgroup_skb cgroup_sock cgroup_sock_addr cgroup_sockopt "
    "cgroup_sysctl global_function kprobe lsm raw_tracepoint sched_cls sk_lookup sk_msg sk_reuseport sk_skb "
    "sock_ops socket_filter subprogram tracepoint tracing xdp",
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = [
    "S8",
    "S16",
    "S32",
    "S64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Array",
    "Asm",
    "AsmError",
    "AttachType",
    "Be16",
    "Be32",
    "Be64",
    "BpfSock",
    "BpfSpinLock",
    "BpfTimer",
    "Bytes",
    "CgroupDevice",
    "Helper",
    "Instruction",
    "Label",
    "LayoutError",
    "LpmTrieKey",
    "MapSpec",
    "MapType",
    "Nested",
    "Pointer",
    "ProgType",
    "ProgramSpec",
    "PtRegs",
    "PybpfasmError",
    "RawTracepointArgs",
    "Record",
    "Reg",
    "SkAction",
    "SkBuff",
    "SkLookup",
    "SkMsgMd",
    "SkReuseport",
    "SockAddr",
    "SockOps",
    "SockOpt",
    "SourceLocation",
    "Struct",
    "Sysctl",
    "TcxAction",
    "TraceEntry",
    "Union",
    "XdpAction",
    "XdpMd",
    "addr_space_cast",
    "be16",
    "be32",
    "be64",
    "bswap16",
    "bswap32",
    "bswap64",
    "cgroup_device",
    "cgroup_skb",
    "cgroup_sock",
    "cgroup_sock_addr",
    "cgroup_sockopt",
    "cgroup_sysctl",
    "decode",
    "encode",
    "global_function",
    "imm64",
    "kprobe",
    "le16",
    "le32",
    "le64",
    "lsm",
    "raw_tracepoint",
    "s8",
    "s16",
    "s32",
    "sched_cls",
    "sk_lookup",
    "sk_msg",
    "sk_reuseport",
    "sk_skb",
    "sock_ops",
    "socket_filter",
    "subprogram",
    "tracepoint",
    "tracing",
    "xdp",
]


if not TYPE_CHECKING:  # a type checker should know the names above, and no others

    def __getattr__(name: str) -> Any:
        module = _MODULE_OF.get(name)
        if module is None:
            raise AttributeError(f"module 'pybpfasm' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"pybpfasm.{module}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
