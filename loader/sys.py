# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The ``bpf(2)`` system call through ctypes: one function per command, bytes and integers in and out.

Nothing here owns a descriptor or gives advice: :mod:`loader.objects` does both on top of it. A command that
fails raises :class:`~loader.errors.BpfError`, which is an :class:`OSError` with the command's name. The
argument structures follow ``union bpf_attr`` of the kernel's ``uapi/linux/bpf.h``; a kernel test compares
each of their offsets with the BTF of the running kernel. The kernel accepts a structure that is longer than
the one it knows as long as the rest is zero, so that the newest layout serves old kernels too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import Any, ClassVar

from loader.errors import BpfError, KernelFeatureError
from pybpfasm.kernel.enums import AttachType, Cmd

__all__ = ["bpf", "libc", "syscall_number"]

NAME_LEN = 16  # BPF_OBJ_NAME_LEN, with the NUL that ends it
PROG_LOAD_ATTEMPTS = (
    5  # a signal that is pending makes the verifier give up with EAGAIN; libbpf tries as often
)

# The number of bpf(2) by machine as uname(2) names it, for processes of the machine's own word size.
_SYSCALL: dict[str, int] = {
    "x86_64": 321,
    "i386": 357,
    "i486": 357,
    "i586": 357,
    "i686": 357,
    "aarch64": 280,
    "armv6l": 386,
    "armv7l": 386,
    "armv8l": 386,
    "riscv32": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "s390x": 351,
    "ppc": 361,
    "ppc64": 361,
    "ppc64le": 361,
}
_COMPAT = {"x86_64": "i686", "aarch64": "armv7l"}  # a 32-bit process on a 64-bit kernel


def syscall_number(machine: str, *, pointer_bits: int = 64) -> int:
    """Return the number of ``bpf(2)`` on a machine (``uname -m``) for a process with pointers of that size.

    Raises :class:`~loader.errors.KernelFeatureError` for a machine that is not known here.
    """
    if pointer_bits == 32:
        machine = _COMPAT.get(machine, machine)
    try:
        return _SYSCALL[machine]
    except KeyError:
        raise KernelFeatureError(
            f"the number of the bpf(2) system call on {machine!r} is not known",
            feature="bpf(2)",
            hint=f"add it to loader/sys.py; known are {', '.join(sorted(_SYSCALL))}",
        ) from None


_libc: ctypes.CDLL | None = None
_syscall: Callable[..., int] | None = None


def libc() -> ctypes.CDLL:
    """Return the process's C library, with errno kept per thread (``ctypes.get_errno``)."""
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def _bound_syscall() -> Callable[..., int]:
    """Return ``syscall(2)`` with the number of bpf(2) already in place."""
    global _syscall
    if _syscall is None:
        if sys.platform != "linux":
            raise KernelFeatureError(
                "bpf(2) is a Linux system call",
                feature="bpf(2)",
                hint="assemble and test programs here, load them on Linux",
            )
        function = libc().syscall
        function.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)
        function.restype = ctypes.c_long
        number = syscall_number(os.uname().machine, pointer_bits=ctypes.sizeof(ctypes.c_void_p) * 8)

        def call(command: int, attr: object, size: int) -> int:
            return int(function(number, command, attr, size))

        _syscall = call
    return _syscall


def bpf(command: int, attr: ctypes.Structure, what: str = "") -> int:
    """Call ``bpf(command, attr)`` and return its result; the kernel may write into ``attr``.

    EINTR is retried (Python's signal handlers run in between), and EAGAIN of PROG_LOAD a few times.
    ``what`` says in the error's text which object was meant. Raises :class:`~loader.errors.BpfError`.
    """
    call = _syscall or _bound_syscall()
    size = ctypes.sizeof(attr)
    attempts = PROG_LOAD_ATTEMPTS
    while True:
        result = call(command, ctypes.byref(attr), size)
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code == errno.EINTR:
            continue
        if code == errno.EAGAIN and command == Cmd.PROG_LOAD and attempts > 1:
            attempts -= 1
            continue
        raise BpfError(code, _command_name(command), what)


def _command_name(command: int) -> str:
    try:
        return Cmd(command).name
    except ValueError:
        return f"command {command}"


# --- argument structures ------------------------------------------------------------------------------------

_u8, _u32, _s32, _u64 = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64
_Fields = list[tuple[str, Any]]


class MapCreateAttr(ctypes.Structure):
    """``union bpf_attr`` for MAP_CREATE."""

    _fields_: ClassVar[_Fields] = [
        ("map_type", _u32),
        ("key_size", _u32),
        ("value_size", _u32),
        ("max_entries", _u32),
        ("map_flags", _u32),
        ("inner_map_fd", _u32),
        ("numa_node", _u32),
        ("map_name", ctypes.c_char * NAME_LEN),
        ("map_ifindex", _u32),
        ("btf_fd", _u32),
        ("btf_key_type_id", _u32),
        ("btf_value_type_id", _u32),
        ("btf_vmlinux_value_type_id", _u32),
        ("map_extra", _u64),
        ("value_type_btf_obj_fd", _s32),
        ("map_token_fd", _s32),
    ]


class MapElemAttr(ctypes.Structure):
    """``union bpf_attr`` for the MAP_*_ELEM commands, MAP_GET_NEXT_KEY and MAP_FREEZE."""

    _fields_: ClassVar[_Fields] = [
        ("map_fd", _u32),
        ("key", _u64),
        ("value", _u64),  # a union with next_key
        ("flags", _u64),
    ]


class MapBatchAttr(ctypes.Structure):
    """``union bpf_attr`` for the MAP_*_BATCH commands."""

    _fields_: ClassVar[_Fields] = [
        ("in_batch", _u64),
        ("out_batch", _u64),
        ("keys", _u64),
        ("values", _u64),
        ("count", _u32),
        ("map_fd", _u32),
        ("elem_flags", _u64),
        ("flags", _u64),
    ]


class ProgLoadAttr(ctypes.Structure):
    """``union bpf_attr`` for PROG_LOAD."""

    _fields_: ClassVar[_Fields] = [
        ("prog_type", _u32),
        ("insn_cnt", _u32),
        ("insns", _u64),
        ("license", _u64),
        ("log_level", _u32),
        ("log_size", _u32),
        ("log_buf", _u64),
        ("kern_version", _u32),
        ("prog_flags", _u32),
        ("prog_name", ctypes.c_char * NAME_LEN),
        ("prog_ifindex", _u32),
        ("expected_attach_type", _u32),
        ("prog_btf_fd", _u32),
        ("func_info_rec_size", _u32),
        ("func_info", _u64),
        ("func_info_cnt", _u32),
        ("line_info_rec_size", _u32),
        ("line_info", _u64),
        ("line_info_cnt", _u32),
        ("attach_btf_id", _u32),
        ("attach_prog_fd", _u32),  # a union with attach_btf_obj_fd
        ("core_relo_cnt", _u32),
        ("fd_array", _u64),
        ("core_relos", _u64),
        ("core_relo_rec_size", _u32),
        ("log_true_size", _u32),
        ("prog_token_fd", _s32),
        ("fd_array_cnt", _u32),
    ]


class ObjAttr(ctypes.Structure):
    """``union bpf_attr`` for OBJ_PIN and OBJ_GET."""

    _fields_: ClassVar[_Fields] = [
        ("pathname", _u64),
        ("bpf_fd", _u32),
        ("file_flags", _u32),
        ("path_fd", _s32),
    ]


class ProgAttachAttr(ctypes.Structure):
    """``union bpf_attr`` for PROG_ATTACH and PROG_DETACH."""

    _fields_: ClassVar[_Fields] = [
        ("target_fd", _u32),  # a union with target_ifindex
        ("attach_bpf_fd", _u32),
        ("attach_type", _u32),
        ("attach_flags", _u32),
        ("replace_bpf_fd", _u32),
        ("relative_fd", _u32),  # a union with relative_id
        ("expected_revision", _u64),
    ]


class TestRunAttr(ctypes.Structure):
    """``union bpf_attr`` for PROG_TEST_RUN."""

    __test__: ClassVar[bool] = False  # its name makes pytest take it for a test class
    _fields_: ClassVar[_Fields] = [
        ("prog_fd", _u32),
        ("retval", _u32),
        ("data_size_in", _u32),
        ("data_size_out", _u32),
        ("data_in", _u64),
        ("data_out", _u64),
        ("repeat", _u32),
        ("duration", _u32),
        ("ctx_size_in", _u32),
        ("ctx_size_out", _u32),
        ("ctx_in", _u64),
        ("ctx_out", _u64),
        ("flags", _u32),
        ("cpu", _u32),
        ("batch_size", _u32),
    ]


class IdAttr(ctypes.Structure):
    """``union bpf_attr`` for the *_GET_NEXT_ID and *_GET_FD_BY_ID commands."""

    _fields_: ClassVar[_Fields] = [
        ("start_id", _u32),  # a union with prog_id, map_id, btf_id and link_id
        ("next_id", _u32),
        ("open_flags", _u32),
    ]


class InfoAttr(ctypes.Structure):
    """``union bpf_attr`` for OBJ_GET_INFO_BY_FD."""

    _fields_: ClassVar[_Fields] = [
        ("bpf_fd", _u32),
        ("info_len", _u32),
        ("info", _u64),
    ]


class QueryAttr(ctypes.Structure):
    """``union bpf_attr`` for PROG_QUERY."""

    _fields_: ClassVar[_Fields] = [
        ("target_fd", _u32),  # a union with target_ifindex
        ("attach_type", _u32),
        ("query_flags", _u32),
        ("attach_flags", _u32),
        ("prog_ids", _u64),
        ("count", _u32),
        ("prog_attach_flags", _u64),
        ("link_ids", _u64),
        ("link_attach_flags", _u64),
        ("revision", _u64),
    ]


class BtfLoadAttr(ctypes.Structure):
    """``union bpf_attr`` for BTF_LOAD."""

    _fields_: ClassVar[_Fields] = [
        ("btf", _u64),
        ("btf_log_buf", _u64),
        ("btf_size", _u32),
        ("btf_log_size", _u32),
        ("btf_log_level", _u32),
        ("btf_log_true_size", _u32),
        ("btf_flags", _u32),
        ("btf_token_fd", _s32),
    ]


class _RelativeTo(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [
        ("relative_fd", _u32),  # a union with relative_id
        ("expected_revision", _u64),
    ]


class _IteratorOf(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("iter_info", _u64), ("iter_info_len", _u32)]


class _LinkTarget(ctypes.Union):
    # The kernel has one structure of this shape each for tcx, netkit and (from 6.17) cgroup links.
    _fields_: ClassVar[_Fields] = [
        ("target_btf_id", _u32),
        ("iterator", _IteratorOf),
        ("relative", _RelativeTo),
        ("room", _u8 * 48),
    ]


class LinkCreateAttr(ctypes.Structure):
    """``union bpf_attr`` for LINK_CREATE."""

    _fields_: ClassVar[_Fields] = [
        ("prog_fd", _u32),
        ("target_fd", _u32),  # a union with target_ifindex
        ("attach_type", _u32),
        ("flags", _u32),
        ("of", _LinkTarget),
    ]


class RawTracepointAttr(ctypes.Structure):
    """``union bpf_attr`` for RAW_TRACEPOINT_OPEN."""

    _fields_: ClassVar[_Fields] = [("name", _u64), ("prog_fd", _u32), ("cookie", _u64)]


class LinkUpdateAttr(ctypes.Structure):
    """``union bpf_attr`` for LINK_UPDATE."""

    _fields_: ClassVar[_Fields] = [
        ("link_fd", _u32),
        ("new_prog_fd", _u32),
        ("flags", _u32),
        ("old_prog_fd", _u32),
    ]


class IterCreateAttr(ctypes.Structure):
    """``union bpf_attr`` for ITER_CREATE."""

    _fields_: ClassVar[_Fields] = [("link_fd", _u32), ("flags", _u32)]


class OneFieldAttr(ctypes.Structure):
    """``union bpf_attr`` for LINK_DETACH and MAP_FREEZE (a descriptor) and ENABLE_STATS (a type)."""

    _fields_: ClassVar[_Fields] = [("value", _u32)]


# --- information structures ---------------------------------------------------------------------------------


class ProgInfoStruct(ctypes.Structure):
    """``struct bpf_prog_info``."""

    _fields_: ClassVar[_Fields] = [
        ("type", _u32),
        ("id", _u32),
        ("tag", _u8 * 8),
        ("jited_prog_len", _u32),
        ("xlated_prog_len", _u32),
        ("jited_prog_insns", _u64),
        ("xlated_prog_insns", _u64),
        ("load_time", _u64),
        ("created_by_uid", _u32),
        ("nr_map_ids", _u32),
        ("map_ids", _u64),
        ("name", ctypes.c_char * NAME_LEN),
        ("ifindex", _u32),
        ("gpl_compatible", _u32),  # one bit of it
        ("netns_dev", _u64),
        ("netns_ino", _u64),
        ("nr_jited_ksyms", _u32),
        ("nr_jited_func_lens", _u32),
        ("jited_ksyms", _u64),
        ("jited_func_lens", _u64),
        ("btf_id", _u32),
        ("func_info_rec_size", _u32),
        ("func_info", _u64),
        ("nr_func_info", _u32),
        ("nr_line_info", _u32),
        ("line_info", _u64),
        ("jited_line_info", _u64),
        ("nr_jited_line_info", _u32),
        ("line_info_rec_size", _u32),
        ("jited_line_info_rec_size", _u32),
        ("nr_prog_tags", _u32),
        ("prog_tags", _u64),
        ("run_time_ns", _u64),
        ("run_cnt", _u64),
        ("recursion_misses", _u64),
        ("verified_insns", _u32),
        ("attach_btf_obj_id", _u32),
        ("attach_btf_id", _u32),
    ]


class MapInfoStruct(ctypes.Structure):
    """``struct bpf_map_info``."""

    _fields_: ClassVar[_Fields] = [
        ("type", _u32),
        ("id", _u32),
        ("key_size", _u32),
        ("value_size", _u32),
        ("max_entries", _u32),
        ("map_flags", _u32),
        ("name", ctypes.c_char * NAME_LEN),
        ("ifindex", _u32),
        ("btf_vmlinux_value_type_id", _u32),
        ("netns_dev", _u64),
        ("netns_ino", _u64),
        ("btf_id", _u32),
        ("btf_key_type_id", _u32),
        ("btf_value_type_id", _u32),
        ("btf_vmlinux_id", _u32),
        ("map_extra", _u64),
    ]


class BtfInfoStruct(ctypes.Structure):
    """``struct bpf_btf_info``."""

    _fields_: ClassVar[_Fields] = [
        ("btf", _u64),
        ("btf_size", _u32),
        ("id", _u32),
        ("name", _u64),
        ("name_len", _u32),
        ("kernel_btf", _u32),
    ]


class _LinkInfoCgroup(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("cgroup_id", _u64), ("attach_type", _u32)]


class _LinkInfoNetns(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("netns_ino", _u32), ("attach_type", _u32)]


class _LinkInfoXdp(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("ifindex", _u32)]


class _LinkInfoTcx(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("ifindex", _u32), ("attach_type", _u32)]


class _LinkInfoTracing(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("attach_type", _u32)]


class _LinkInfoSockmap(ctypes.Structure):
    _fields_: ClassVar[_Fields] = [("map_id", _u32), ("attach_type", _u32)]


class _LinkInfoUnion(ctypes.Union):
    _fields_: ClassVar[_Fields] = [
        ("cgroup", _LinkInfoCgroup),
        ("netns", _LinkInfoNetns),
        ("xdp", _LinkInfoXdp),
        ("tcx", _LinkInfoTcx),
        ("sockmap", _LinkInfoSockmap),
        ("tracing", _LinkInfoTracing),
        ("room", _u64 * 8),  # other kinds of links fill more of it
    ]


class LinkInfoStruct(ctypes.Structure):
    """``struct bpf_link_info``."""

    _fields_: ClassVar[_Fields] = [("type", _u32), ("id", _u32), ("prog_id", _u32), ("of", _LinkInfoUnion)]


# --- buffers ------------------------------------------------------------------------------------------------


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    """Return a buffer of the process that holds ``data`` and nothing behind it."""
    return (ctypes.c_char * len(data)).from_buffer_copy(data)


def _address(buffer: ctypes.Array[ctypes.c_char] | None) -> int:
    """Return a buffer's address, 0 for none or an empty one: the kernel wants NULL where there is nothing."""
    return ctypes.addressof(buffer) if buffer is not None and len(buffer) else 0


def object_name(name: str) -> bytes:
    """Return a name as the kernel takes it: at most 15 bytes of letters, digits, ``_`` and ``.``.

    Other characters become ``_``; the rest of a long name is cut off, as libbpf does it.
    """
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "_.") else "_" for c in name)
    return kept.encode("ascii")[: NAME_LEN - 1]


# --- maps ---------------------------------------------------------------------------------------------------


def map_create(
    map_type: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    *,
    name: str = "",
    flags: int = 0,
    map_extra: int = 0,
    inner_map_fd: int = 0,
    btf_fd: int = 0,
    btf_key_type_id: int = 0,
    btf_value_type_id: int = 0,
) -> int:
    """MAP_CREATE: return the descriptor of a new map."""
    attr = MapCreateAttr(
        map_type=map_type,
        key_size=key_size,
        value_size=value_size,
        max_entries=max_entries,
        map_flags=flags,
        inner_map_fd=inner_map_fd,
        map_name=object_name(name),
        btf_fd=btf_fd,
        btf_key_type_id=btf_key_type_id,
        btf_value_type_id=btf_value_type_id,
        map_extra=map_extra,
    )
    return bpf(Cmd.MAP_CREATE, attr, f"map {name!r}" if name else "a map")


def map_lookup(fd: int, key: bytes, value_size: int, *, flags: int = 0, delete: bool = False) -> bytes | None:
    """MAP_LOOKUP_ELEM, or MAP_LOOKUP_AND_DELETE_ELEM: return the value, None where there is none.

    ``value_size`` is what the kernel writes: for a per-CPU map all CPUs' values, each rounded up to 8 bytes.
    """
    key_buffer = _buffer(key)
    value = ctypes.create_string_buffer(value_size)
    attr = MapElemAttr(fd, _address(key_buffer), ctypes.addressof(value), flags)
    try:
        bpf(Cmd.MAP_LOOKUP_AND_DELETE_ELEM if delete else Cmd.MAP_LOOKUP_ELEM, attr)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
    """MAP_UPDATE_ELEM with BPF_ANY, BPF_NOEXIST or BPF_EXIST in ``flags``."""
    key_buffer, value_buffer = _buffer(key), _buffer(value)
    bpf(
        Cmd.MAP_UPDATE_ELEM,
        MapElemAttr(fd, _address(key_buffer), ctypes.addressof(value_buffer), flags),
    )


def map_delete(fd: int, key: bytes) -> bool:
    """MAP_DELETE_ELEM: return whether there was such a key."""
    key_buffer = _buffer(key)
    try:
        bpf(Cmd.MAP_DELETE_ELEM, MapElemAttr(fd, ctypes.addressof(key_buffer), 0, 0))
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_next_key(fd: int, key: bytes | None, key_size: int) -> bytes | None:
    """MAP_GET_NEXT_KEY: return the key behind ``key`` (the first one for None), None at the end."""
    key_buffer = None if key is None else _buffer(key)
    following = ctypes.create_string_buffer(key_size)
    try:
        bpf(Cmd.MAP_GET_NEXT_KEY, MapElemAttr(fd, _address(key_buffer), ctypes.addressof(following), 0))
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return following.raw


def map_freeze(fd: int) -> None:
    """MAP_FREEZE: from now on user space may only read."""
    bpf(Cmd.MAP_FREEZE, OneFieldAttr(fd))


def map_lookup_batch(
    fd: int,
    position: bytes | None,
    count: int,
    key_size: int,
    value_size: int,
    *,
    position_size: int,
    delete: bool = False,
) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
    """MAP_LOOKUP_BATCH, or MAP_LOOKUP_AND_DELETE_BATCH: return some entries and the position behind them.

    ``position`` is None at the start; the position that is returned is None at the end. ``position_size`` is
    the size of the kernel's opaque position (at least 4 bytes, a key's size for some map types).
    """
    into = ctypes.create_string_buffer(position_size)
    keys = ctypes.create_string_buffer(max(1, count * key_size))
    values = ctypes.create_string_buffer(max(1, count * value_size))
    start = None if position is None else _buffer(position)
    attr = MapBatchAttr(
        in_batch=_address(start),
        out_batch=ctypes.addressof(into),
        keys=ctypes.addressof(keys),
        values=ctypes.addressof(values),
        count=count,
        map_fd=fd,
    )
    at_end = False
    try:
        bpf(Cmd.MAP_LOOKUP_AND_DELETE_BATCH if delete else Cmd.MAP_LOOKUP_BATCH, attr)
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        at_end = True
    got = int(attr.count)
    raw_keys, raw_values = keys.raw, values.raw
    entries = [
        (raw_keys[i * key_size : (i + 1) * key_size], raw_values[i * value_size : (i + 1) * value_size])
        for i in range(got)
    ]
    return entries, None if at_end else into.raw


def map_update_batch(fd: int, keys: bytes, values: bytes, count: int, flags: int = 0) -> None:
    """MAP_UPDATE_BATCH of ``count`` entries, whose keys and values are packed one behind the other.

    An error says how many were ``stored`` before it.
    """
    key_buffer, value_buffer = _buffer(keys), _buffer(values)
    attr = MapBatchAttr(
        keys=ctypes.addressof(key_buffer),
        values=ctypes.addressof(value_buffer),
        count=count,
        map_fd=fd,
        elem_flags=flags,
    )
    try:
        bpf(Cmd.MAP_UPDATE_BATCH, attr)
    except BpfError as error:
        # Where the kernel refuses the call as a whole, it leaves the count as it is.
        error.stored = int(attr.count) % count
        raise


def map_delete_batch(fd: int, keys: bytes, count: int) -> int:
    """MAP_DELETE_BATCH: return how many keys were deleted before one was missing (``count``: all)."""
    key_buffer = _buffer(keys)
    attr = MapBatchAttr(keys=ctypes.addressof(key_buffer), count=count, map_fd=fd)
    try:
        bpf(Cmd.MAP_DELETE_BATCH, attr)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return int(attr.count)
        raise
    return count


# --- BTF and programs ---------------------------------------------------------------------------------------


def btf_load(data: bytes, *, log_size: int = 0) -> int:
    """BTF_LOAD: return the descriptor.

    With ``log_size`` bytes for the kernel's log, an error carries it as ``log``.
    """
    buffer = _buffer(data)
    attr = BtfLoadAttr(btf=ctypes.addressof(buffer), btf_size=len(data))
    log = ctypes.create_string_buffer(log_size) if log_size else None
    if log is not None:
        attr.btf_log_buf, attr.btf_log_size, attr.btf_log_level = ctypes.addressof(log), log_size, 1
    try:
        return bpf(Cmd.BTF_LOAD, attr, f"{len(data)} bytes")
    except BpfError as error:
        if log is not None:
            error.add_note(log.value.decode("utf-8", "replace"))
        raise


class ProgLoadResult:
    """What PROG_LOAD left behind: ``fd`` (-1 where it failed), error, log, and the size that a log needs."""

    __slots__ = ("error", "fd", "log", "log_true_size")

    def __init__(self, fd: int, error: BpfError | None, log: str, log_true_size: int) -> None:
        self.fd = fd
        self.error = error
        self.log = log
        self.log_true_size = log_true_size


def prog_load(
    prog_type: int,
    code: bytes,
    *,
    license: str,
    name: str = "",
    expected_attach_type: int = 0,
    flags: int = 0,
    btf_fd: int = 0,
    func_info: bytes = b"",
    func_info_rec_size: int = 8,
    line_info: bytes = b"",
    line_info_rec_size: int = 16,
    log_level: int = 0,
    log_size: int = 0,
    attach_btf_id: int = 0,
) -> ProgLoadResult:
    """PROG_LOAD once. Does not raise for a failure of the kernel's: the result carries it with the log."""
    insns = _buffer(code)
    license_buffer = ctypes.create_string_buffer(license.encode("ascii"))
    log = ctypes.create_string_buffer(log_size) if log_size else None
    func_buffer = _buffer(func_info) if func_info else None
    line_buffer = _buffer(line_info) if line_info else None
    attr = ProgLoadAttr(
        prog_type=prog_type,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(insns),
        license=ctypes.addressof(license_buffer),
        log_level=log_level,
        log_size=log_size,
        log_buf=_address(log),
        prog_flags=flags,
        prog_name=object_name(name),
        expected_attach_type=expected_attach_type,
        attach_btf_id=attach_btf_id,
    )
    if btf_fd > 0 and func_buffer is not None:
        attr.prog_btf_fd = btf_fd
        attr.func_info_rec_size = func_info_rec_size
        attr.func_info = ctypes.addressof(func_buffer)
        attr.func_info_cnt = len(func_info) // func_info_rec_size
        if line_buffer is not None:
            attr.line_info_rec_size = line_info_rec_size
            attr.line_info = ctypes.addressof(line_buffer)
            attr.line_info_cnt = len(line_info) // line_info_rec_size
    fd, failure = -1, None
    try:
        fd = bpf(Cmd.PROG_LOAD, attr, f"program {name!r}" if name else "a program")
    except BpfError as error:
        failure = error
    text = "" if log is None else log.value.decode("utf-8", "replace")
    return ProgLoadResult(fd, failure, text, int(attr.log_true_size))


def prog_test_run(
    fd: int,
    *,
    data: bytes = b"",
    data_out_size: int = 0,
    ctx: bytes = b"",
    ctx_out_size: int = 0,
    repeat: int = 1,
    flags: int = 0,
    cpu: int = 0,
    batch_size: int = 0,
) -> tuple[int, bytes, bytes, int]:
    """PROG_TEST_RUN: return the program's value, the packet and the context behind it, and ns per run."""
    data_in, data_out = _buffer(data), ctypes.create_string_buffer(max(1, data_out_size))
    ctx_in, ctx_out = _buffer(ctx), ctypes.create_string_buffer(max(1, ctx_out_size))
    attr = TestRunAttr(
        prog_fd=fd,
        data_size_in=len(data),
        data_size_out=data_out_size,
        data_in=_address(data_in),
        data_out=ctypes.addressof(data_out) if data_out_size else 0,
        repeat=repeat,
        ctx_size_in=len(ctx),
        ctx_size_out=ctx_out_size,
        ctx_in=_address(ctx_in),
        ctx_out=ctypes.addressof(ctx_out) if ctx_out_size else 0,
        flags=flags,
        cpu=cpu,
        batch_size=batch_size,
    )
    bpf(Cmd.PROG_TEST_RUN, attr)
    return (
        int(attr.retval),
        data_out.raw[: min(int(attr.data_size_out), data_out_size)],
        ctx_out.raw[: min(int(attr.ctx_size_out), ctx_out_size)],
        int(attr.duration),
    )


# --- pins, ids, information ---------------------------------------------------------------------------------


def obj_pin(fd: int, path: str | bytes | os.PathLike[str]) -> None:
    """OBJ_PIN: give the object a name in a bpf file system."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(Cmd.OBJ_PIN, ObjAttr(pathname=ctypes.addressof(name), bpf_fd=fd), os.fsdecode(path))


def obj_get(path: str | bytes | os.PathLike[str], flags: int = 0) -> int:
    """OBJ_GET: return a descriptor of what is pinned there (``flags``: 0, BPF_F_RDONLY or BPF_F_WRONLY)."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attr = ObjAttr(pathname=ctypes.addressof(name), file_flags=flags)
    return bpf(Cmd.OBJ_GET, attr, os.fsdecode(path))


def next_id(command: int, start: int) -> int | None:
    """PROG_, MAP_, LINK_ or BTF_GET_NEXT_ID: return the id behind ``start``, None at the end."""
    attr = IdAttr(start_id=start)
    try:
        bpf(command, attr)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return int(attr.next_id)


def fd_by_id(command: int, object_id: int, flags: int = 0) -> int:
    """PROG_, MAP_, LINK_ or BTF_GET_FD_BY_ID: return a new descriptor of the object.

    ENOENT where it is gone.
    """
    return bpf(command, IdAttr(start_id=object_id, open_flags=flags), f"id {object_id}")


def obj_info(fd: int, info: ctypes.Structure) -> None:
    """OBJ_GET_INFO_BY_FD: fill ``info``, one of the ``*InfoStruct`` of this module."""
    bpf(Cmd.OBJ_GET_INFO_BY_FD, InfoAttr(fd, ctypes.sizeof(info), ctypes.addressof(info)))


# --- attaching ----------------------------------------------------------------------------------------------


def prog_attach(
    target: int,
    prog_fd: int,
    attach_type: int,
    *,
    flags: int = 0,
    replace_fd: int = 0,
    relative: int = 0,
    expected_revision: int = 0,
) -> None:
    """PROG_ATTACH to a descriptor (cgroup, sockmap, netns) or an interface index (TCX)."""
    attr = ProgAttachAttr(target, prog_fd, attach_type, flags, replace_fd, relative, expected_revision)
    bpf(Cmd.PROG_ATTACH, attr)


def prog_detach(
    target: int,
    prog_fd: int,
    attach_type: int,
    *,
    flags: int = 0,
    relative: int = 0,
    expected_revision: int = 0,
) -> None:
    """PROG_DETACH from a descriptor or an interface index."""
    attr = ProgAttachAttr(target, prog_fd, attach_type, flags, 0, relative, expected_revision)
    bpf(Cmd.PROG_DETACH, attr)


def prog_query(
    target: int, attach_type: int, *, flags: int = 0, capacity: int = 64, link_ids: bool = True
) -> tuple[QueryAttr, list[int], list[int], list[int]]:
    """PROG_QUERY: return the kernel's answer, the program ids, their attach flags and their link ids.

    Raises ENOSPC where more than ``capacity`` programs are attached; ``count`` of the answer is lost then.
    """
    ids, attach_flags, links = (_u32 * capacity)(), (_u32 * capacity)(), (_u32 * capacity)()
    attr = QueryAttr(
        target_fd=target,
        attach_type=attach_type,
        query_flags=flags,
        prog_ids=ctypes.addressof(ids),
        count=capacity,
        prog_attach_flags=ctypes.addressof(attach_flags) if link_ids else 0,
        link_ids=ctypes.addressof(links) if link_ids else 0,
    )
    bpf(Cmd.PROG_QUERY, attr)
    count = int(attr.count)
    return attr, list(ids[:count]), list(attach_flags[:count]), list(links[:count])


def link_create(
    prog_fd: int,
    target: int,
    attach_type: int,
    *,
    flags: int = 0,
    relative: int = 0,
    expected_revision: int = 0,
    what: str = "",
) -> int:
    """LINK_CREATE on a descriptor (cgroup, sockmap, netns) or an interface index (TCX)."""
    attr = LinkCreateAttr(prog_fd, target, attach_type, flags)
    attr.of.relative.relative_fd = relative
    attr.of.relative.expected_revision = expected_revision
    return bpf(Cmd.LINK_CREATE, attr, what)


def iter_link_create(prog_fd: int, of: bytes = b"", *, what: str = "") -> int:
    """LINK_CREATE of an iterator, over all there is or what the ``union bpf_iter_link_info`` *of* says."""
    buffer = _buffer(of)
    attr = LinkCreateAttr(prog_fd, 0, AttachType.TRACE_ITER)
    attr.of.iterator.iter_info = _address(buffer)
    attr.of.iterator.iter_info_len = len(of)
    return bpf(Cmd.LINK_CREATE, attr, what)


def iter_create(link_fd: int, *, what: str = "") -> int:
    """ITER_CREATE: return a descriptor; reading it runs the link's program over everything once."""
    return bpf(Cmd.ITER_CREATE, IterCreateAttr(link_fd), what)


def raw_tracepoint_open(prog_fd: int, name: str = "", *, what: str = "") -> int:
    """RAW_TRACEPOINT_OPEN: attach to the tracepoint *name*, or to what the program was loaded for."""
    buffer = ctypes.create_string_buffer(name.encode("utf-8"))
    attr = RawTracepointAttr(ctypes.addressof(buffer) if name else 0, prog_fd)
    return bpf(Cmd.RAW_TRACEPOINT_OPEN, attr, what)


def link_update(link_fd: int, new_prog_fd: int, *, flags: int = 0, old_prog_fd: int = 0) -> None:
    """LINK_UPDATE: put another program under the link.

    With BPF_F_REPLACE only if ``old_prog_fd`` is there now.
    """
    bpf(Cmd.LINK_UPDATE, LinkUpdateAttr(link_fd, new_prog_fd, flags, old_prog_fd))


def link_detach(link_fd: int) -> None:
    """LINK_DETACH: take the program off its hook while the link's descriptor and pin stay."""
    bpf(Cmd.LINK_DETACH, OneFieldAttr(link_fd))


def enable_stats(stats_type: int) -> int:
    """ENABLE_STATS: return a descriptor; the kernel counts runs and time as long as it is open."""
    return bpf(Cmd.ENABLE_STATS, OneFieldAttr(stats_type))
