# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Programs in the kernel: loading with the verifier's reasons, information, test runs."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from loader import sys as bpf_sys
from loader.capabilities import explain, missing_capabilities, raise_memlock
from loader.errors import ENOTSUPP, BpfError, KernelFeatureError, LoaderError, UsageError
from loader.objects.btf import Btf
from loader.objects.map import Map, unlike
from loader.objects.owned import Owned, PathLike, enum_or_int, open_id, open_kind
from pybpfasm.errors import suggestion
from pybpfasm.kernel.enums import AttachType, Cmd, ProgType

if TYPE_CHECKING:
    from pybpfasm.btf import Btf as Types
    from pybpfasm.errors import SourceLocation


class ProgramLike(Protocol):
    """What :meth:`Program.load` needs to know of a program; :class:`pybpfasm.program.ProgramSpec` is one."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> int: ...
    @property
    def expected_attach_type(self) -> int | None: ...
    @property
    def license(self) -> str: ...
    @property
    def prog_flags(self) -> int: ...
    def code(self, map_fds: Mapping[str, int] | None = None) -> bytes: ...
    def btf(self) -> bytes: ...
    def func_info(self) -> bytes: ...
    def line_info(self) -> bytes: ...
    def location(self, slot: int) -> SourceLocation | None: ...


class ProgramInfo(NamedTuple):
    """What the kernel says of a program; lengths in bytes, ``load_time`` in ns since boot.

    ``run_time_ns`` and ``run_cnt`` count only while statistics are enabled (:class:`Stats`).
    """

    id: int
    type: int
    name: str
    tag: bytes
    xlated_len: int
    jited_len: int
    load_time: int
    uid: int
    map_ids: tuple[int, ...]
    btf_id: int
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    verified_insns: int
    gpl_compatible: bool


class RunResult(NamedTuple):
    """What :meth:`Program.test_run` gave: the program's value, packet and context behind it, ns per run.

    ``retval`` is unsigned, as the kernel has it; :attr:`action` is what to compare verdicts with.
    """

    retval: int
    data: bytes
    ctx: bytes
    duration_ns: int

    @property
    def action(self) -> int:
        """``retval`` as a signed number of 32 bits: ``TcxAction.NEXT`` is -1."""
        return self.retval - (1 << 32) if self.retval >> 31 else self.retval


_LOG_START = 1 << 16
_LOG_MAX = (1 << 30) - 1  # what the kernel accepts: UINT_MAX >> 2


class Program(Owned):
    """A program that the verifier has accepted.

    ``attach_type`` and ``attach_to`` are what its specification said that it is for, None and ``""`` where
    that is not known. A :class:`Link` takes them unless it is told otherwise.
    """

    kind = "program"

    def __init__(
        self, fd: int, *, name: str = "", log: str = "", attach_type: int | None = None, attach_to: str = ""
    ) -> None:
        super().__init__(fd)
        self.name = name
        self.log = log
        self.attach_type = attach_type
        self.attach_to = attach_to

    @classmethod
    def load(
        cls,
        spec: ProgramLike,
        maps: Mapping[str, int | Map] | Iterable[Map] | None = None,
        *,
        log_level: int = 0,
        types: Types | None = None,
    ) -> Program:
        """Load a program with its BTF, function and line information.

        ``maps`` gives the map (or its descriptor) for each name in ``spec.maps``, or is a list of maps,
        which go by their names; more than the program names may be there. The first attempt asks for no log,
        because that is faster; after a rejection the second one does, and
        :class:`~loader.verifier.VerifierError` explains it with the Python lines. ``log_level`` asks for a
        log in any case (:attr:`log`).

        What the program has left to the kernel (CO-RE, kernel functions, the function that a tracing program
        is for) is found in ``types``, by default the running kernel's. Raises
        :class:`~loader.errors.UsageError` where a map is not given or is of another type or size, and
        :class:`~pybpfasm.core.CoreError` or :class:`~loader.errors.KernelFeatureError` for what the kernel
        lacks.
        """
        if not hasattr(spec, "code"):
            name = getattr(spec, "name", repr(spec))
            raise UsageError(f"{name} is no program that could be loaded", hint=f"build it: {name}.build(…)")
        fds = _descriptors(spec, maps)
        attach_id = 0
        if getattr(spec, "unresolved", ()) or spec.type in _LOADED_FOR:
            from loader import vmlinux

            types = types if types is not None else vmlinux.kernel_types()
            spec = _resolved(spec, types)
            if spec.type in _LOADED_FOR:
                attach_id = _attach_id(spec, types)
        code = spec.code(fds)
        btf_data = spec.btf()
        btf = Btf.load(btf_data) if btf_data else None
        try:
            return cls._load(spec, code, btf, log_level, attach_id)
        finally:
            if btf is not None:
                btf.close()

    @classmethod
    def _load(
        cls, spec: ProgramLike, code: bytes, btf: Btf | None, log_level: int, attach_id: int
    ) -> Program:
        def attempt(level: int, log_size: int) -> bpf_sys.ProgLoadResult:
            return bpf_sys.prog_load(
                int(spec.type),
                code,
                license=spec.license,
                name=spec.name,
                expected_attach_type=int(spec.expected_attach_type or 0),
                flags=spec.prog_flags,
                btf_fd=0 if btf is None else btf.fd,
                func_info=spec.func_info() if btf is not None else b"",
                line_info=spec.line_info() if btf is not None else b"",
                log_level=level,
                log_size=log_size,
                attach_btf_id=attach_id,
            )

        def accepted(result: bpf_sys.ProgLoadResult) -> Program:
            return cls(
                result.fd,
                name=spec.name,
                log=result.log,
                attach_type=getattr(spec, "attach_type", None),
                attach_to=getattr(spec, "attach_to", None) or "",
            )

        def with_log(level: int) -> bpf_sys.ProgLoadResult:
            size = _LOG_START
            while True:
                result = attempt(level, size)
                # A log that does not fit makes an accepted program fail too; from 6.4 the kernel says what it
                # needs.
                cut = result.log_true_size > size or (
                    result.error is not None and result.error.errno == errno.ENOSPC
                )
                if not cut or size >= _LOG_MAX:
                    return result
                if result.fd >= 0:
                    os.close(result.fd)
                size = min(max(result.log_true_size, 4 * size), _LOG_MAX)

        result = with_log(log_level) if log_level else attempt(0, 0)
        if result.fd >= 0:
            return accepted(result)
        error = result.error
        assert error is not None
        if error.errno == errno.EPERM:
            if missing_capabilities(_needed_for(spec)) or not raise_memlock():
                raise explain(error, _needed_for(spec)) from None
            result = attempt(0, 0)
            if result.fd >= 0:
                return accepted(result)
            raise explain(result.error or error, _needed_for(spec)) from None
        if not log_level:
            result = with_log(1)
            if result.fd >= 0:  # it failed for want of memory, or by a signal, and not this time
                return accepted(result)
            error = result.error or error
        if not result.log.strip():
            raise _explain_prog_load(error, spec) from None
        from loader.verifier import VerifierError  # here, because most programs are accepted

        rejection = VerifierError(spec, result.log, error)
        if not rejection.parsed.reason and error.errno not in (errno.EINVAL, errno.EACCES):
            # Accepted, as far as the log goes: there was no descriptor for it, or no memory.
            raise _explain_prog_load(error, spec) from None
        raise rejection from None

    @classmethod
    def from_pin(cls, path: PathLike) -> Program:
        """Open a pinned program."""
        return cls(open_kind(path, "program"), name=Path(path).name)

    @classmethod
    def from_id(cls, prog_id: int) -> Program:
        """Open a program by its id."""
        return cls(open_id(Cmd.PROG_GET_FD_BY_ID, prog_id, cls.kind))

    @property
    def id(self) -> int:
        """The kernel's id of the program."""
        return self.info().id

    def info(self) -> ProgramInfo:
        """Ask the kernel for the program's properties and counters."""
        raw = bpf_sys.ProgInfoStruct()
        bpf_sys.obj_info(self.fd, raw)
        count = int(raw.nr_map_ids)
        map_ids: tuple[int, ...] = ()
        if count:
            ids = (ctypes.c_uint32 * count)()
            again = bpf_sys.ProgInfoStruct(nr_map_ids=count, map_ids=ctypes.addressof(ids))
            bpf_sys.obj_info(self.fd, again)
            map_ids = tuple(ids[: int(again.nr_map_ids)])
        return ProgramInfo(
            id=int(raw.id),
            type=enum_or_int(ProgType, raw.type),
            name=raw.name.decode("ascii", "replace"),
            tag=bytes(raw.tag),
            xlated_len=int(raw.xlated_prog_len),
            jited_len=int(raw.jited_prog_len),
            load_time=int(raw.load_time),
            uid=int(raw.created_by_uid),
            map_ids=map_ids,
            btf_id=int(raw.btf_id),
            run_time_ns=int(raw.run_time_ns),
            run_cnt=int(raw.run_cnt),
            recursion_misses=int(raw.recursion_misses),
            verified_insns=int(raw.verified_insns),
            gpl_compatible=bool(raw.gpl_compatible & 1),
        )

    def xlated(self) -> bytes:
        """Return the instructions as the verifier left them, 8 bytes a slot."""
        size = self.info().xlated_len
        buffer = ctypes.create_string_buffer(max(1, size))
        raw = bpf_sys.ProgInfoStruct(xlated_prog_len=size, xlated_prog_insns=ctypes.addressof(buffer))
        bpf_sys.obj_info(self.fd, raw)
        return buffer.raw[:size]

    def test_run(
        self,
        data: bytes = b"",
        ctx: bytes = b"",
        *,
        repeat: int = 1,
        data_out_size: int | None = None,
        ctx_out_size: int | None = None,
        flags: int = 0,
        cpu: int = 0,
    ) -> RunResult:
        """Run the program on a packet and a context (PROG_TEST_RUN); nothing leaves the machine.

        ``data_out_size`` is the room for the packet that comes back (default: 256 bytes more than the packet
        has), ``ctx_out_size`` the one for the context (default: as large as ``ctx``). Raises
        :class:`~loader.errors.KernelFeatureError` for a program type that the kernel cannot run like this.
        """
        try:
            retval, out, ctx_out, duration = bpf_sys.prog_test_run(
                self.fd,
                data=data,
                data_out_size=(len(data) + 256 if data else 0) if data_out_size is None else data_out_size,
                ctx=ctx,
                ctx_out_size=len(ctx) if ctx_out_size is None else ctx_out_size,
                repeat=repeat,
                flags=flags,
                cpu=cpu,
            )
        except BpfError as error:
            if error.errno in (ENOTSUPP, errno.EOPNOTSUPP):
                kind = self.info().type
                name = kind.name if isinstance(kind, ProgType) else str(kind)
                raise KernelFeatureError(
                    f"the kernel cannot run a program of type {name} by PROG_TEST_RUN",
                    feature=f"PROG_TEST_RUN of {name}",
                    hint="run it on real traffic, or in the emulator",
                ) from None
            hint = ""
            if error.errno == errno.EINVAL and 0 < len(data) < 14:
                hint = "a packet has 14 bytes at least, its Ethernet header"
            raise explain(
                error.about(f"program {self.name!r}", hint=hint), ("CAP_BPF", "CAP_NET_ADMIN")
            ) from None
        return RunResult(retval, out, ctx_out, duration)

    def __repr__(self) -> str:
        return f"<program {self.name!r} {'closed' if self.closed else f'fd {self._fd}'}>"


# The verifier knows the arguments of these by what they are loaded for.
_LOADED_FOR = frozenset({ProgType.TRACING, ProgType.LSM})


def _descriptors(spec: ProgramLike, given: Mapping[str, int | Map] | Iterable[Map] | None) -> dict[str, int]:
    """The descriptors of the maps that a program names."""
    if not isinstance(given, Mapping):
        given = {one.name: one for one in given or ()}
    for one in getattr(spec, "maps", ()):
        if one.name not in given:
            raise UsageError(
                f"program {spec.name!r} names map {one.name!r}, which it was not given"
                f"{suggestion(one.name, given)}",
                hint=f'Program.load(spec, {{"{one.name}": Map.create(…)}})',
            )
        held = given[one.name]
        differs = unlike(held, one) if isinstance(held, Map) else ""
        if differs:
            raise UsageError(
                f"the map that program {spec.name!r} was given for {one.name!r} {differs}",
                hint=f'Program.load(spec, {{"{one.name}": Map.create(…)}})',
            )
    return {name: one.fd if isinstance(one, Map) else one for name, one in given.items()}


def _resolved(spec: ProgramLike, types: Types) -> ProgramLike:
    if not getattr(spec, "unresolved", ()):
        return spec
    from loader import vmlinux
    from pybpfasm.core import CoreResolver

    resolve: Callable[[CoreResolver], ProgramLike] = spec.resolve  # type: ignore[attr-defined]
    return resolve(CoreResolver(types, vmlinux.kernel_symbol))


def _attach_id(spec: ProgramLike, types: Types) -> int:
    from loader import vmlinux

    kind = ProgType(spec.type)
    attach_to: str | None = getattr(spec, "attach_to", None)
    if not attach_to:
        raise UsageError(
            f"program {spec.name!r} does not say which function of the kernel it is for",
            hint=f'give attach_to="…" to @{kind.name.lower()}, or name it in the section of the object',
        )
    attach = spec.expected_attach_type
    return vmlinux.attach_btf_id(types, kind, None if attach is None else AttachType(attach), attach_to)


# Program types that need no more than CAP_BPF; those of the network need CAP_NET_ADMIN too, those of tracing
# CAP_PERFMON (kernel/bpf/syscall.c, is_net_admin_prog_type and is_perfmon_prog_type).
_PLAIN_TYPES = frozenset({ProgType.SOCKET_FILTER, ProgType.CGROUP_SKB, ProgType.SYSCALL, ProgType.STRUCT_OPS})
_PERFMON_TYPES = frozenset(
    {
        ProgType.KPROBE,
        ProgType.TRACEPOINT,
        ProgType.PERF_EVENT,
        ProgType.RAW_TRACEPOINT,
        ProgType.RAW_TRACEPOINT_WRITABLE,
        ProgType.TRACING,
        ProgType.LSM,
        ProgType.STRUCT_OPS,
        ProgType.EXT,
    }
)


def _needed_for(spec: ProgramLike) -> tuple[str, ...]:
    needed = ["CAP_BPF"]
    if spec.type in _PERFMON_TYPES:
        needed.append("CAP_PERFMON")
    elif spec.type not in _PLAIN_TYPES:
        needed.append("CAP_NET_ADMIN")
    return tuple(needed)


def _explain_prog_load(error: BpfError, spec: ProgramLike) -> LoaderError:
    """Explain a PROG_LOAD that failed without the verifier's having anything to say."""
    hint = error.hint
    if error.errno == errno.EINVAL:
        kind = enum_or_int(ProgType, int(spec.type))
        attach = (
            "" if spec.expected_attach_type is None else f" and attach type {spec.expected_attach_type!s}"
        )
        hint = f"this kernel may not know program type {kind!s}{attach}, or one of the load flags"
    elif error.errno == errno.E2BIG:
        hint = "the program has more instructions than this kernel allows"
    elif error.errno == errno.ENOMEM:
        hint = "the kernel has no memory for it: look at the cgroup's memory limit and net.core.bpf_jit_limit"
    return explain(error.about(error.what, hint=hint), _needed_for(spec))
