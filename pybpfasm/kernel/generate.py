# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Writes ``enums.py``, ``context.py``, ``values.py`` and ``kfuncs.py`` from a kernel's BTF.

    python -m pybpfasm.kernel.generate --btf /sys/kernel/btf/vmlinux --out pybpfasm/kernel

The result depends on the BTF and the release alone. What BTF can't say is stated in the tables here: which
names are taken over, and which fields hold network byte order (from the comments in
include/uapi/linux/bpf.h).
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pybpfasm.btf import Btf, BtfError, BtfType, Enumerator, Kind

__all__ = ["context_source", "enums_source", "kfuncs_source", "main", "values_source"]


class _EnumSpec(NamedTuple):
    """A class made of an enumeration, which is found by its name or by one of its enumerators."""

    cls: str
    tag: str
    prefix: str
    doc: str
    anchor: str = ""
    suffix: str = ""


_ENUMS = (
    _EnumSpec("Cmd", "bpf_cmd", "BPF_", "Commands of the bpf(2) system call."),
    _EnumSpec("MapType", "bpf_map_type", "BPF_MAP_TYPE_", "Map types."),
    _EnumSpec("ProgType", "bpf_prog_type", "BPF_PROG_TYPE_", "Program types."),
    _EnumSpec("AttachType", "bpf_attach_type", "BPF_", "Attach types."),
    _EnumSpec("LinkType", "bpf_link_type", "BPF_LINK_TYPE_", "Link types."),
    _EnumSpec("Helper", "bpf_func_id", "BPF_FUNC_", "Helper functions, by number."),
    _EnumSpec("TcxAction", "tcx_action_base", "TCX_", "Verdicts of programs at TCX."),
    _EnumSpec("XdpAction", "xdp_action", "XDP_", "Verdicts of XDP programs."),
    _EnumSpec("SkAction", "sk_action", "SK_", "Verdicts of programs at sockets."),
    _EnumSpec(
        "SockOp",
        "",
        "BPF_SOCK_OPS_",
        "Why a sockops program is called (``bpf_sock_ops.op``).",
        "BPF_SOCK_OPS_VOID",
    ),
    _EnumSpec(
        "SockOpsFlag",
        "",
        "BPF_SOCK_OPS_",
        "Optional calls of a sockops program (``sock_ops_cb_flags_set``).",
        "BPF_SOCK_OPS_STATE_CB_FLAG",
        "_FLAG",
    ),
    _EnumSpec("TcpState", "", "BPF_TCP_", "TCP states, as in ``bpf_sock.state``.", "BPF_TCP_ESTABLISHED"),
    _EnumSpec(
        "FibLookupResult",
        "",
        "BPF_FIB_LKUP_RET_",
        "Results of ``fib_lookup``.",
        "BPF_FIB_LKUP_RET_SUCCESS",
    ),
)

# Enumerations whose enumerators become plain constants: these by name, and the unnamed ones whose first
# enumerator begins like this. BTF holds the kernel's internal ones as well, so this lists what to take.
_CONSTANT_TAGS = (
    "bpf_adj_room_mode",
    "bpf_check_mtu_flags",
    "bpf_check_mtu_ret",
    "bpf_hdr_start_off",
    "bpf_lwt_encap_mode",
    "bpf_ret_code",
    "bpf_stats_type",
    "bpf_stream_id",
)
_CONSTANT_PREFIXES = (
    "BPF_ADJ_ROOM_",
    "BPF_ANY",
    "BPF_CSUM_LEVEL_",
    "BPF_F_",
    "BPF_FIB_LOOKUP_",
    "BPF_FLOW_DISSECTOR_F_",
    "BPF_LOAD_HDR_OPT_",
    "BPF_LOCAL_STORAGE_GET_F_",
    "BPF_RB_",
    "BPF_RINGBUF_",
    "BPF_SKB_",
    "BPF_SK_LOOKUP_F_",
    "BPF_WRITE_HDR_",
)


class _StructSpec(NamedTuple):
    """A class made of a structure."""

    cls: str
    tag: str
    doc: str


_STRUCTS = (
    _StructSpec("SkBuff", "__sk_buff", "The context of TC, cgroup/skb, socket-filter and sk_skb programs."),
    _StructSpec("XdpMd", "xdp_md", "The context of XDP programs."),
    _StructSpec("SkMsgMd", "sk_msg_md", "The context of sk_msg programs."),
    _StructSpec("SockOps", "bpf_sock_ops", "The context of sockops programs."),
    _StructSpec("SockOpt", "bpf_sockopt", "The context of cgroup getsockopt and setsockopt programs."),
    _StructSpec(
        "SockAddr", "bpf_sock_addr", "The context of cgroup bind, connect, sendmsg and similar programs."
    ),
    _StructSpec("SkLookup", "bpf_sk_lookup", "The context of sk_lookup programs."),
    _StructSpec("BpfSock", "bpf_sock", "A socket, and the context of cgroup/sock programs."),
    _StructSpec("BpfTcpSock", "bpf_tcp_sock", "What ``tcp_sock`` returns of a TCP socket."),
    _StructSpec("SockTuple", "bpf_sock_tuple", "What ``sk_lookup_tcp`` and its like look up."),
    _StructSpec("FibLookup", "bpf_fib_lookup", "Input and output of ``fib_lookup``."),
    _StructSpec("RedirNeigh", "bpf_redir_neigh", "The next hop that ``redirect_neigh`` is given."),
    _StructSpec("SkReuseport", "sk_reuseport_md", "The context of sk_reuseport programs."),
    _StructSpec("CgroupDevice", "bpf_cgroup_dev_ctx", "The context of cgroup/dev programs."),
    _StructSpec("Sysctl", "bpf_sysctl", "The context of cgroup/sysctl programs."),
    _StructSpec(
        "RawTracepointArgs",
        "bpf_raw_tracepoint_args",
        "Arguments, in raw tracepoint, tracing and LSM programs.",
    ),
    _StructSpec("TraceEntry", "trace_entry", "What the context of every tracepoint program begins with."),
    _StructSpec("PtRegs", "pt_regs", "Registers of x86-64: the context of kprobe and uprobe programs."),
)

_VALUES = (
    _StructSpec(
        "BpfSpinLock", "bpf_spin_lock", "A lock in a map's value, for ``spin_lock`` and ``spin_unlock``."
    ),
    _StructSpec("BpfTimer", "bpf_timer", "A timer in a map's value, for ``timer_init`` and its like."),
    _StructSpec("BpfWq", "bpf_wq", "Deferred work in a map's value, for ``bpf_wq_init`` and its like."),
    _StructSpec("BpfDynptr", "bpf_dynptr", "A dynamic pointer, on the stack."),
    _StructSpec(
        "LpmTrieKey",
        "bpf_lpm_trie_key_hdr",
        "The beginning of an LPM_TRIE's key: how many bits follow.",
    ),
)

# Arrays without a length, and how many elements a program may read: MAX_BPF_FUNC_ARGS (include/linux/bpf.h).
_LENGTHS = {("bpf_raw_tracepoint_args", "args"): 12}

# What has another shape from release to release, and no use to programs.
_OMITTED = {"pt_regs": ("cs", "csx", "fred_cs", "ss", "ssx", "fred_ss")}

# Fields that BTF gives as __u32 although the 4 bytes, read as a whole, are in network order.
_NETWORK_ORDER = {
    "__sk_buff": ("remote_ip4", "local_ip4", "remote_ip6", "local_ip6", "remote_port"),
    "sk_msg_md": ("remote_ip4", "local_ip4", "remote_ip6", "local_ip6", "remote_port"),
    "bpf_sock_ops": ("remote_ip4", "local_ip4", "remote_ip6", "local_ip6", "remote_port"),
    "bpf_sock_addr": ("user_ip4", "user_ip6", "msg_src_ip4", "msg_src_ip6"),
    "bpf_sk_lookup": ("remote_ip4", "remote_ip6", "local_ip4", "local_ip6"),
    "bpf_sock": ("src_ip4", "src_ip6", "dst_ip4", "dst_ip6"),
    "bpf_fib_lookup": ("ipv6_src", "ipv6_dst"),
    "bpf_redir_neigh": ("ipv6_nh",),
}

# A 4-byte field with a 16-bit value in network order, zero-extended, is neither Be16 nor Be32.
_LOW_16 = "the low 16 bits are a value in network order: compare with htons(x)"
_NOTES = {
    ("__sk_buff", "protocol"): _LOW_16,
    ("__sk_buff", "vlan_proto"): _LOW_16,
    ("__sk_buff", "local_port"): "host order",
    ("sk_msg_md", "local_port"): "host order",
    ("bpf_sock_ops", "local_port"): "host order",
    ("bpf_sock_addr", "user_port"): _LOW_16,
    ("bpf_sk_lookup", "local_port"): "host order",
    ("bpf_sock", "src_port"): "host order",
    ("sk_reuseport_md", "eth_protocol"): _LOW_16,
}

_SCALARS = {
    (1, False, False): "U8",
    (2, False, False): "U16",
    (4, False, False): "U32",
    (8, False, False): "U64",
    (1, True, False): "S8",
    (2, True, False): "S16",
    (4, True, False): "S32",
    (8, True, False): "S64",
    (2, False, True): "Be16",
    (4, False, True): "Be32",
    (8, False, True): "Be64",
}


def _header(title: str, release: str) -> list[str]:
    return [
        "# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only",
        f"# Generated by `python -m pybpfasm.kernel.generate` from the BTF of Linux {release}. Do not edit.",
        f'"""{title}"""',
        "",
    ]


def _need(btf: Btf, tag: str, kind: Kind) -> BtfType:
    found = btf.by_name(tag, kind)
    if found is None:
        raise BtfError(f"there is no {kind.name.lower()} {tag!r}: pass the vmlinux BTF of a kernel with BPF")
    return found


def _unnamed_enums(btf: Btf) -> Iterator[tuple[Enumerator, ...]]:
    for t in btf.types:
        if t.kind in (Kind.ENUM, Kind.ENUM64) and not t.name:
            yield t.enumerators


def _members(spec: _EnumSpec, enumerators: Sequence[Enumerator]) -> Iterator[tuple[str, int]]:
    for enumerator in enumerators:
        if enumerator.name.startswith("__"):
            continue  # __MAX_…: the number of enumerators, different in each release
        name = enumerator.name.removeprefix(spec.prefix)
        yield name.removesuffix(spec.suffix), enumerator.value


_ENUMS_TITLE = (
    "The kernel's BPF enumerations, named without the kernel's prefix, and its flags as plain ints."
)


def enums_source(btf: Btf, release: str) -> str:
    """The text of ``enums.py``; raises `BtfError` where the BTF lacks one of the enumerations."""
    unnamed = list(_unnamed_enums(btf))
    by_enumerator = {e.name: group for group in reversed(unnamed) for e in group}
    lines = _header(_ENUMS_TITLE, release)
    lines += ["from pybpfasm.kernel.names import KernelEnum", ""]
    for spec in _ENUMS:
        if spec.tag:
            enumerators = (btf.by_name(spec.tag, Kind.ENUM64) or _need(btf, spec.tag, Kind.ENUM)).enumerators
            source = f"``enum {spec.tag}``"
        else:
            if spec.anchor not in by_enumerator:
                raise BtfError(f"the BTF has no enumeration with {spec.anchor}")
            enumerators = by_enumerator[spec.anchor]
            source = f"``{spec.prefix}*{spec.suffix}``"
        lines += ["", f"class {spec.cls}(KernelEnum):", f'    """{spec.doc} Kernel: {source}."""', ""]
        lines += [f"    {name} = {value}" for name, value in _members(spec, enumerators)]
        lines.append("")

    groups = [(f"# enum {tag}", _need(btf, tag, Kind.ENUM).enumerators) for tag in _CONSTANT_TAGS]
    groups += [("", group) for group in unnamed if group and group[0].name.startswith(_CONSTANT_PREFIXES)]
    lines.append("")
    seen: dict[str, int] = {}
    for comment, group in sorted(groups, key=lambda pair: (pair[1][:1], pair)):
        new = []
        for name, value in group:
            if name in seen and seen[name] != value:
                raise BtfError(f"the BTF gives {name} as {seen[name]} and as {value}")
            if name not in seen and not name.startswith("__"):
                new.append(f"{name} = {f'0x{value:X}' if value > 0xFFFF else value}")
            seen[name] = value
        if new:
            lines += [*([comment] if comment else []), *new, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


_CONTEXT_TITLE = """The structures through which programs see packets and sockets (include/uapi/linux/bpf.h).

Offsets are in bytes. Members of unnamed unions are fields at the same offset. A pointer is a `U64`, whatever
the word size of the machine. A ``Be`` field holds network byte order.
"""


class _Field(NamedTuple):
    name: str
    offset: int
    code: str
    note: str = ""


def _scalar(btf: Btf, type_id: int, big: bool, where: str) -> tuple[str, str]:
    """The field class of a scalar, and a note."""
    current = btf.type(type_id)
    while current.kind in (Kind.TYPEDEF, Kind.CONST, Kind.VOLATILE, Kind.TYPE_TAG):
        if current.kind == Kind.TYPEDEF and current.name in ("__be16", "__be32", "__be64"):
            big = True
        current = btf.type(current.type_id)
    if current.kind == Kind.PTR:
        return "U64", f"{btf.declaration(type_id)}"
    if current.kind != Kind.INT:
        raise BtfError(f"{where} is of kind {current.kind.name}, the generator knows integers and pointers")
    return _SCALARS[current.size, current.signed and not big, big], ""


def _flatten(
    btf: Btf, t: BtfType, base: int, tag: str, cls: str, nested: list[tuple[str, BtfType, str]]
) -> Iterator[_Field]:
    """The fields of *t*, those of unnamed members in their place. Structures within go to *nested*."""
    for member in t.members:
        where = f"{tag}.{member.name or '(unnamed)'}"
        if member.bitfield_size and not member.name:
            continue  # padding
        if member.name in _OMITTED.get(tag, ()):
            continue
        offset = base + member.bit_offset // 8
        if member.bitfield_size:
            scalar, _ = _scalar(btf, member.type_id, False, where)
            bit = base * 8 + member.bit_offset
            yield _Field(member.name, offset, f"{scalar}.bits({member.bitfield_size}, at_bit={bit})")
            continue
        if member.bit_offset % 8:
            raise BtfError(f"{where} starts within a byte and is no bit field")
        inner = btf.resolve(member.type_id)
        if inner.kind in (Kind.STRUCT, Kind.UNION):
            if not member.name:
                yield from _flatten(btf, inner, offset, tag, cls, nested)
            else:
                inner_cls = f"{cls}{member.name.replace('ip', '').upper()}"
                nested.append((inner_cls, inner, member.name))
                yield _Field(member.name, offset, f"Nested({inner_cls}, at={offset})")
            continue
        big = member.name in _NETWORK_ORDER.get(tag, ())
        note = _NOTES.get((tag, member.name), "")
        if inner.kind == Kind.ARRAY:
            scalar, _ = _scalar(btf, inner.element_id, big, where)
            count = _LENGTHS.get((tag, member.name), inner.nelems)
            yield _Field(member.name, offset, f"Array({scalar}(), {count}, at={offset})", note)
        else:
            scalar, pointer = _scalar(btf, member.type_id, big, where)
            yield _Field(member.name, offset, f"{scalar}(at={offset})", note or pointer)


def context_source(btf: Btf, release: str) -> str:
    """The text of ``context.py``; raises `BtfError` where the BTF lacks one of the structures."""
    return _structs_source(btf, release, _CONTEXT_TITLE, _STRUCTS)


_VALUES_TITLE = """Structures that the kernel knows in the values and keys of maps, and on the stack.

A map's value has one as a member, ``lock = Nested(BpfSpinLock)``, which begins as zeros and belongs to the
kernel. A key of an LPM_TRIE begins with its own: ``class Prefix(LpmTrieKey): address_ = Be32()``.
"""


def values_source(btf: Btf, release: str) -> str:
    """The text of ``values.py``; raises `BtfError` where the BTF lacks one of the structures."""
    return _structs_source(btf, release, _VALUES_TITLE, _VALUES)


def _structs_source(btf: Btf, release: str, title: str, structs: Sequence[_StructSpec]) -> str:
    body: list[str] = []
    for spec in structs:
        struct = _need(btf, spec.tag, Kind.STRUCT)
        nested: list[tuple[str, BtfType, str]] = []
        fields = list(_flatten(btf, struct, 0, spec.tag, spec.cls, nested))
        for cls, inner, name in nested:
            doc = f"The member ``{name}`` of ``struct {spec.tag}``."
            inner_fields = list(_flatten(btf, inner, 0, spec.tag, cls, []))
            body += _class(cls, f"{spec.tag}_{name}", inner.size, doc, inner_fields)
        size = struct.size + sum(8 * count for (tag, _), count in _LENGTHS.items() if tag == spec.tag)
        body += _class(spec.cls, spec.tag, size, f"{spec.doc} Kernel: ``struct {spec.tag}``.", fields)
    names = set(re.findall(r"\b(?:[USB]e?\d+|Array|Nested)(?=\(|\.bits)", "\n".join(body))) | {"Struct"}
    # The order that ruff's import sorting wants: constants (U8, …) before classes, numbers by value.
    used = sorted(names, key=lambda n: (not n.isupper(), n[0], int(n[1:]) if n[1:].isdigit() else 0, n))
    lines = _header(title, release)
    imports = f"from pybpfasm.layout import {', '.join(used)}"
    return "\n".join([*lines, imports, "", *body]).rstrip("\n") + "\n"


def _class(cls: str, kernel_name: str, size: int, doc: str, fields: list[_Field]) -> list[str]:
    lines = ["", f'class {cls}(Struct, kernel_name="{kernel_name}", size={size}):', f'    """{doc}"""', ""]
    # BTF wants members in ascending order; alternatives of a union keep the order of the source.
    for field in sorted(fields, key=lambda f: f.offset):
        lines.append(f"    {field.name} = {field.code}" + (f"  # {field.note}" if field.note else ""))
    return [*lines, ""]


_KFUNCS_TITLE = """Functions of the kernel that programs may call (kfuncs), by their declarations in C.

Which program types may call one, and whether a kernel has it, only the kernel says. Structures are named, not
described.
"""
# In the kernel for its own tests.
_TESTS = re.compile(r"bpf_(fentry_test|modify_return_test|kfunc_call_|test_)")


def kfuncs_source(btf: Btf, release: str) -> str:
    """The text of ``kfuncs.py``: the functions that the BTF has tagged ``bpf_kfunc`` and that begin with
    ``bpf_`` (others are functions of the kernel that programs can replace)."""
    found: dict[str, str] = {}
    for t in btf.types:
        if t.kind != Kind.DECL_TAG or t.name != "bpf_kfunc":
            continue
        function = btf.type(t.type_id)
        if function.name.startswith("bpf_") and not _TESTS.match(function.name):
            proto = btf.resolve(function.type_id)
            params = ", ".join(_parameter(btf, param.type_id, param.name) for param in proto.params)
            result = btf.declaration(proto.type_id)
            space = "" if result.endswith("*") else " "
            found[function.name] = f"{result}{space}{function.name}({params or 'void'})"
    lines = [*_header(_KFUNCS_TITLE, release), "from typing import Final", ""]
    lines.append("KFUNCS: Final[dict[str, str]] = {")
    for name, text in sorted(found.items()):
        line = f'    "{name}": "{text}",'
        if len(line) <= 110:
            lines.append(line)
            continue
        # As ruff formats it: in parentheses, cut at spaces.
        lines.append(f'    "{name}": (')
        words, part = text.split(" "), ""
        for index, word in enumerate(words):
            piece = word + (" " if index < len(words) - 1 else "")
            if len(part) + len(piece) > 100:
                lines.append(f'        "{part}"')
                part = ""
            part += piece
        lines += [f'        "{part}"', "    ),"]
    return "\n".join([*lines, "}", ""])


def _parameter(btf: Btf, type_id: int, name: str) -> str:
    """A parameter, with what a name for a function or a structure stands for written out."""
    t = btf.type(type_id)
    if t.kind == Kind.TYPEDEF and btf.resolve(type_id).kind == Kind.PTR:
        type_id = btf.resolve(type_id).id
    return btf.declaration(type_id, name)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pybpfasm.kernel.generate",
        description="Write enums.py, context.py, values.py and kfuncs.py from a kernel's BTF.",
    )
    parser.add_argument("--btf", type=Path, default=Path("/sys/kernel/btf/vmlinux"), help="BTF of a kernel")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument(
        "--release", help="the kernel's release, for the files' headers (default: this machine's)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a file differs")
    args = parser.parse_args(argv)
    release = re.match(r"\d+\.\d+", args.release or platform.release())
    if release is None:
        parser.error("--release must begin with two numbers, as in 6.18")
    try:
        btf = Btf.parse(args.btf.read_bytes())
        sources = {
            "enums.py": enums_source(btf, release.group()),
            "context.py": context_source(btf, release.group()),
            "values.py": values_source(btf, release.group()),
            "kfuncs.py": kfuncs_source(btf, release.group()),
        }
    except (OSError, BtfError) as error:
        print(f"generate: {args.btf}: {error}", file=sys.stderr)
        return 1
    status = 0
    for name, text in sources.items():
        path = args.out / name
        if not args.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            command = f"{parser.prog} --btf {args.btf} --out {args.out}"
            print(f"generate: {path} differs, run `{command}`", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    raise SystemExit(main())
