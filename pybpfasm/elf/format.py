# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the writer and the reader of ELF objects share: constants of the format, and the names of sections."""

from __future__ import annotations

from typing import Final, NamedTuple

from pybpfasm.errors import PybpfasmError
from pybpfasm.kernel.defines import BPF_F_SLEEPABLE, BPF_F_XDP_HAS_FRAGS
from pybpfasm.kernel.enums import AttachType, ProgType

__all__ = ["ElfError", "section_of", "type_of_section"]


class ElfError(PybpfasmError):
    """An object file that is damaged or asks for what is not supported, or a program that none can hold.

    ``section`` and ``offset`` (bytes from the start of the file, or of the section where one is named) say
    where, as far as that is known; both are in the message too.
    """

    def __init__(self, message: str, *, section: str | None = None, offset: int | None = None) -> None:
        self.section = section
        self.offset = offset
        where = [] if section is None else [f"section {section}"]
        if offset is not None:
            where.append(f"byte {offset}")
        super().__init__(f"{', '.join(where)}: {message}" if where else message)


# ELF, in the System V ABI's names.
EHDR_SIZE: Final = 64
SHDR_SIZE: Final = 64
SYM_SIZE: Final = 24
REL_SIZE: Final = 16
ET_REL: Final = 1
EM_BPF: Final = 247
SHN_UNDEF, SHN_LORESERVE, SHN_ABS = 0, 0xFF00, 0xFFF1
SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 0, 1, 2, 3, 4, 8, 9
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_INFO_LINK, SHF_COMPRESSED = 1, 2, 4, 0x40, 0x800
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION = 0, 1, 2, 3
STV_DEFAULT, STV_INTERNAL, STV_HIDDEN = 0, 1, 2

# Documentation/bpf/llvm_reloc.rst
R_BPF_NONE, R_BPF_64_64, R_BPF_64_ABS64, R_BPF_64_ABS32, R_BPF_64_NODYLD32, R_BPF_64_32 = 0, 1, 2, 3, 4, 10

DATA_SECTIONS: Final = (".data", ".rodata", ".bss")


def is_data_section(name: str) -> bool:
    """Whether libbpf makes an array map of the section: ``.rodata``, ``.rodata.str1.1``, ``.bss`` …"""
    return any(name == known or name.startswith(known + ".") for known in DATA_SECTIONS)


class SectionType(NamedTuple):
    """What the name of a section says about the programs in it."""

    type: ProgType
    attach_type: AttachType | None
    prog_flags: int = 0


_SLEEPABLE: Final = BPF_F_SLEEPABLE
_FRAGS: Final = BPF_F_XDP_HAS_FRAGS
_P, _A = ProgType, AttachType

# Names as in the kernel's Documentation/bpf/libbpf/program_types.rst. After those with a final "+" may come
# "/" and anything, which says what to attach to.
_SECTIONS: Final[dict[str, SectionType]] = {
    "socket": SectionType(_P.SOCKET_FILTER, None),
    "sk_reuseport/migrate": SectionType(_P.SK_REUSEPORT, _A.SK_REUSEPORT_SELECT_OR_MIGRATE),
    "sk_reuseport": SectionType(_P.SK_REUSEPORT, _A.SK_REUSEPORT_SELECT),
    "kprobe+": SectionType(_P.KPROBE, None),
    "kretprobe+": SectionType(_P.KPROBE, None),
    "uprobe+": SectionType(_P.KPROBE, None),
    "uprobe.s+": SectionType(_P.KPROBE, None, _SLEEPABLE),
    "uretprobe+": SectionType(_P.KPROBE, None),
    "uretprobe.s+": SectionType(_P.KPROBE, None, _SLEEPABLE),
    "kprobe.multi+": SectionType(_P.KPROBE, _A.TRACE_KPROBE_MULTI),
    "kretprobe.multi+": SectionType(_P.KPROBE, _A.TRACE_KPROBE_MULTI),
    "kprobe.session+": SectionType(_P.KPROBE, _A.TRACE_KPROBE_SESSION),
    "uprobe.multi+": SectionType(_P.KPROBE, _A.TRACE_UPROBE_MULTI),
    "uretprobe.multi+": SectionType(_P.KPROBE, _A.TRACE_UPROBE_MULTI),
    "uprobe.multi.s+": SectionType(_P.KPROBE, _A.TRACE_UPROBE_MULTI, _SLEEPABLE),
    "uretprobe.multi.s+": SectionType(_P.KPROBE, _A.TRACE_UPROBE_MULTI, _SLEEPABLE),
    "ksyscall+": SectionType(_P.KPROBE, None),
    "kretsyscall+": SectionType(_P.KPROBE, None),
    "usdt+": SectionType(_P.KPROBE, None),
    "tc": SectionType(_P.SCHED_CLS, None),
    "classifier": SectionType(_P.SCHED_CLS, None),
    "tcx/ingress": SectionType(_P.SCHED_CLS, _A.TCX_INGRESS),
    "tcx/egress": SectionType(_P.SCHED_CLS, _A.TCX_EGRESS),
    "tc/ingress": SectionType(_P.SCHED_CLS, _A.TCX_INGRESS),
    "tc/egress": SectionType(_P.SCHED_CLS, _A.TCX_EGRESS),
    "netkit/primary": SectionType(_P.SCHED_CLS, _A.NETKIT_PRIMARY),
    "netkit/peer": SectionType(_P.SCHED_CLS, _A.NETKIT_PEER),
    "action": SectionType(_P.SCHED_ACT, None),
    "tracepoint+": SectionType(_P.TRACEPOINT, None),
    "tp+": SectionType(_P.TRACEPOINT, None),
    "raw_tracepoint+": SectionType(_P.RAW_TRACEPOINT, None),
    "raw_tp+": SectionType(_P.RAW_TRACEPOINT, None),
    "raw_tracepoint.w+": SectionType(_P.RAW_TRACEPOINT_WRITABLE, None),
    "raw_tp.w+": SectionType(_P.RAW_TRACEPOINT_WRITABLE, None),
    "tp_btf+": SectionType(_P.TRACING, _A.TRACE_RAW_TP),
    "fentry+": SectionType(_P.TRACING, _A.TRACE_FENTRY),
    "fentry.s+": SectionType(_P.TRACING, _A.TRACE_FENTRY, _SLEEPABLE),
    "fexit+": SectionType(_P.TRACING, _A.TRACE_FEXIT),
    "fexit.s+": SectionType(_P.TRACING, _A.TRACE_FEXIT, _SLEEPABLE),
    "fmod_ret+": SectionType(_P.TRACING, _A.MODIFY_RETURN),
    "fmod_ret.s+": SectionType(_P.TRACING, _A.MODIFY_RETURN, _SLEEPABLE),
    "iter+": SectionType(_P.TRACING, _A.TRACE_ITER),
    "iter.s+": SectionType(_P.TRACING, _A.TRACE_ITER, _SLEEPABLE),
    "freplace+": SectionType(_P.EXT, None),
    "lsm+": SectionType(_P.LSM, _A.LSM_MAC),
    "lsm.s+": SectionType(_P.LSM, _A.LSM_MAC, _SLEEPABLE),
    "lsm_cgroup+": SectionType(_P.LSM, _A.LSM_CGROUP),
    "syscall": SectionType(_P.SYSCALL, None, _SLEEPABLE),
    "xdp.frags/devmap": SectionType(_P.XDP, _A.XDP_DEVMAP, _FRAGS),
    "xdp/devmap": SectionType(_P.XDP, _A.XDP_DEVMAP),
    "xdp.frags/cpumap": SectionType(_P.XDP, _A.XDP_CPUMAP, _FRAGS),
    "xdp/cpumap": SectionType(_P.XDP, _A.XDP_CPUMAP),
    "xdp.frags": SectionType(_P.XDP, _A.XDP, _FRAGS),
    "xdp": SectionType(_P.XDP, _A.XDP),
    "perf_event": SectionType(_P.PERF_EVENT, None),
    "lwt_in": SectionType(_P.LWT_IN, None),
    "lwt_out": SectionType(_P.LWT_OUT, None),
    "lwt_xmit": SectionType(_P.LWT_XMIT, None),
    "lwt_seg6local": SectionType(_P.LWT_SEG6LOCAL, None),
    "sockops": SectionType(_P.SOCK_OPS, _A.CGROUP_SOCK_OPS),
    "sk_skb/stream_parser": SectionType(_P.SK_SKB, _A.SK_SKB_STREAM_PARSER),
    "sk_skb/stream_verdict": SectionType(_P.SK_SKB, _A.SK_SKB_STREAM_VERDICT),
    "sk_skb/verdict": SectionType(_P.SK_SKB, _A.SK_SKB_VERDICT),
    "sk_skb": SectionType(_P.SK_SKB, None),
    "sk_msg": SectionType(_P.SK_MSG, _A.SK_MSG_VERDICT),
    "sk_lookup": SectionType(_P.SK_LOOKUP, _A.SK_LOOKUP),
    "lirc_mode2": SectionType(_P.LIRC_MODE2, _A.LIRC_MODE2),
    "flow_dissector": SectionType(_P.FLOW_DISSECTOR, _A.FLOW_DISSECTOR),
    "netfilter": SectionType(_P.NETFILTER, _A.NETFILTER),
    "struct_ops+": SectionType(_P.STRUCT_OPS, None),
    "struct_ops.s+": SectionType(_P.STRUCT_OPS, None, _SLEEPABLE),
    "cgroup_skb/ingress": SectionType(_P.CGROUP_SKB, _A.CGROUP_INET_INGRESS),
    "cgroup_skb/egress": SectionType(_P.CGROUP_SKB, _A.CGROUP_INET_EGRESS),
    "cgroup/skb": SectionType(_P.CGROUP_SKB, None),
    "cgroup/sock_create": SectionType(_P.CGROUP_SOCK, _A.CGROUP_INET_SOCK_CREATE),
    "cgroup/sock_release": SectionType(_P.CGROUP_SOCK, _A.CGROUP_INET_SOCK_RELEASE),
    "cgroup/sock": SectionType(_P.CGROUP_SOCK, _A.CGROUP_INET_SOCK_CREATE),
    "cgroup/post_bind4": SectionType(_P.CGROUP_SOCK, _A.CGROUP_INET4_POST_BIND),
    "cgroup/post_bind6": SectionType(_P.CGROUP_SOCK, _A.CGROUP_INET6_POST_BIND),
    "cgroup/bind4": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET4_BIND),
    "cgroup/bind6": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET6_BIND),
    "cgroup/connect4": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET4_CONNECT),
    "cgroup/connect6": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET6_CONNECT),
    "cgroup/connect_unix": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UNIX_CONNECT),
    "cgroup/sendmsg4": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UDP4_SENDMSG),
    "cgroup/sendmsg6": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UDP6_SENDMSG),
    "cgroup/sendmsg_unix": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UNIX_SENDMSG),
    "cgroup/recvmsg4": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UDP4_RECVMSG),
    "cgroup/recvmsg6": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UDP6_RECVMSG),
    "cgroup/recvmsg_unix": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UNIX_RECVMSG),
    "cgroup/getpeername4": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET4_GETPEERNAME),
    "cgroup/getpeername6": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET6_GETPEERNAME),
    "cgroup/getpeername_unix": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UNIX_GETPEERNAME),
    "cgroup/getsockname4": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET4_GETSOCKNAME),
    "cgroup/getsockname6": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_INET6_GETSOCKNAME),
    "cgroup/getsockname_unix": SectionType(_P.CGROUP_SOCK_ADDR, _A.CGROUP_UNIX_GETSOCKNAME),
    "cgroup/sysctl": SectionType(_P.CGROUP_SYSCTL, _A.CGROUP_SYSCTL),
    "cgroup/getsockopt": SectionType(_P.CGROUP_SOCKOPT, _A.CGROUP_GETSOCKOPT),
    "cgroup/setsockopt": SectionType(_P.CGROUP_SOCKOPT, _A.CGROUP_SETSOCKOPT),
    "cgroup/dev": SectionType(_P.CGROUP_DEVICE, _A.CGROUP_DEVICE),
}


def type_of_section(name: str) -> SectionType | None:
    """The program and attach type that a section's name stands for, ``None`` where it is none of libbpf's.

    A leading ``?`` (not to be loaded unless asked for) counts for nothing.
    """
    name = name.removeprefix("?")
    found = _SECTIONS.get(name)
    if found is not None:
        return found
    return _SECTIONS.get(name.partition("/")[0] + "+")


def attach_to_of_section(name: str) -> str | None:
    """What the program of a section is attached to, by its name: ``tcp_connect`` of ``fentry/tcp_connect``.

    ``None`` where the name says nothing of this.
    """
    name = name.removeprefix("?")
    kind, _, rest = name.partition("/")
    return rest if rest and name not in _SECTIONS and kind + "+" in _SECTIONS else None


def section_of(
    type: ProgType,
    attach_type: AttachType | None,
    prog_flags: int = 0,
    *,
    tcx: bool = False,
    attach_to: str | None = None,
) -> str | None:
    """The section in which libbpf looks for programs of a type, ``None`` where it needs to be told more.

    TC programs go to ``tc``, which every release of libbpf knows; with *tcx* (libbpf 1.3 and later) the name
    says at which end they attach. *attach_to* says what a program for tracing is attached to.
    """
    if type == ProgType.SCHED_CLS and not (tcx and attach_type is not None):
        return "tc"
    if type == ProgType.XDP and attach_type is None:
        attach_type = AttachType.XDP
    wanted = SectionType(type, attach_type, prog_flags)
    for name, known in _SECTIONS.items():
        if known == wanted and not name.startswith(("struct_ops", "freplace")):
            return name.rstrip("+") + (f"/{attach_to}" if attach_to and name.endswith("+") else "")
    return None
