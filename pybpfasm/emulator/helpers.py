# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Models of helpers: maps, time, timers, output, callbacks, sockets. `packet_helpers` has those of packets.

A model's first parameter is the `Run`, the others are r1 and up as unsigned 64-bit numbers. It returns r0; a
negative number stands for an errno.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from pybpfasm.emulator import errnos
from pybpfasm.emulator.context import (
    Context,
    Skb,
    SkLookupContext,
    SkMsg,
    SockAddrContext,
    SockOpsContext,
    SockOptContext,
    Xdp,
    socket_at,
    socket_pointer,
    tcp_socket_pointer,
)
from pybpfasm.emulator.errnos import E2BIG, EBUSY, EEXIST, EFAULT, EINVAL, ENOENT, EOPNOTSUPP
from pybpfasm.emulator.faults import EmulatorError, Violation
from pybpfasm.emulator.maps import (
    Map,
    PerCpu,
    PerfEventArray,
    Queue,
    Record,
    RingBuf,
    SkStorage,
    SockHash,
    SockMap,
)
from pybpfasm.emulator.memory import Guarded, Memory
from pybpfasm.emulator.run import MAX_LOOPS, Run
from pybpfasm.emulator.sockets import Socket
from pybpfasm.isa import CallKind
from pybpfasm.kernel.context import SockOpt
from pybpfasm.kernel.enums import (
    BPF_F_CTXLEN_MASK,
    BPF_F_CURRENT_CPU,
    BPF_F_INDEX_MASK,
    BPF_F_TIMER_ABS,
    BPF_F_TIMER_CPU_PIN,
    BPF_RB_FORCE_WAKEUP,
    BPF_RB_NO_WAKEUP,
    BPF_SK_LOOKUP_F_NO_REUSEPORT,
    BPF_SK_LOOKUP_F_REPLACE,
    BPF_SK_STORAGE_GET_F_CREATE,
    Helper,
    SockOp,
    TcpState,
)
from pybpfasm.net import AF_INET6, IPPROTO_TCP

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Timer

U32: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Model:
    """A helper's model, and how many registers it takes."""

    function: Callable[..., int]
    arity: int


def make_model(function: Callable[..., int]) -> Model:
    """The model that *function* is; raises `EmulatorError` for a parameter list that can't be."""
    parameters = list(inspect.signature(function).parameters.values())
    if not 1 <= len(parameters) <= 6 or any(
        p.kind not in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters
    ):
        raise EmulatorError(
            f"{function.__name__}: a helper's model takes the run and at most five registers, by position"
        )
    return Model(function, len(parameters) - 1)


MODELS: dict[tuple[int, int], Model] = {}
F = TypeVar("F", bound=Callable[..., int])


def helper(number: Helper) -> Callable[[F], F]:
    """Declare the model of a helper for every emulator."""

    def wrap(function: F) -> F:
        MODELS[CallKind.HELPER, int(number)] = make_model(function)
        return function

    return wrap


def s32(value: int) -> int:
    """The low 32 bits as a signed number."""
    value &= U32
    return value - (1 << 32) if value >> 31 else value


# --- Maps. ---


@helper(Helper.map_lookup_elem)
def map_lookup_elem(run: Run, map: int, key: int) -> int:
    """A pointer to the value, or 0."""
    one = run.map(map, Map)
    found_key = run.read(key, one.key_size, "the key")
    if isinstance(one, SockHash):
        socket = one.socket(found_key)
        if socket is None or socket.closed:
            return 0
        pointer = socket_pointer(run, socket)
        run.hold(pointer, "the socket that map_lookup_elem returned")
        return pointer
    region = one.find(found_key)
    return 0 if region is None else run.pointer(region)


@helper(Helper.map_update_elem)
def map_update_elem(run: Run, map: int, key: int, value: int, flags: int) -> int:
    """0 or an errno."""
    one = run.map(map, Map)
    found_key = run.read(key, one.key_size, "the key")
    if isinstance(one, SockHash):
        return one.put_socket(found_key, socket_at(run, value), flags)
    return one.put(found_key, _value(run, one, value), flags)


def _value(run: Run, one: Map, address: int) -> bytes:
    """A value for *one* from memory, in which the kernel's own fields may hold anything."""
    region, at = run.region(address, "the value")
    if isinstance(region, Guarded):
        return bytes(region.data[at : at + one.value_size])
    return region.read(at, one.value_size)


@helper(Helper.map_delete_elem)
def map_delete_elem(run: Run, map: int, key: int) -> int:
    """0 or an errno."""
    one = run.map(map, Map)
    return one.remove(run.read(key, one.key_size, "the key"))


@helper(Helper.map_push_elem)
def map_push_elem(run: Run, map: int, value: int, flags: int) -> int:
    """0 or an errno."""
    one = run.map(map, Queue)
    return one.push(run.read(value, one.value_size, "the value"), flags)


def _take(run: Run, map: int, value: int, remove: bool) -> int:
    one = run.map(map, Queue)
    found = one.peek(remove=remove)
    run.write(value, bytes(one.value_size) if found is None else found, "the value")
    return -ENOENT if found is None else 0


@helper(Helper.map_pop_elem)
def map_pop_elem(run: Run, map: int, value: int) -> int:
    """0 or -ENOENT, with zeros as the value."""
    return _take(run, map, value, True)


@helper(Helper.map_peek_elem)
def map_peek_elem(run: Run, map: int, value: int) -> int:
    """0 or -ENOENT, with zeros as the value."""
    return _take(run, map, value, False)


@helper(Helper.map_lookup_percpu_elem)
def map_lookup_percpu_elem(run: Run, map: int, key: int, cpu: int) -> int:
    """A pointer to the value of *cpu*, or 0."""
    one = run.map(map, PerCpu)
    region = one.of_cpu(run.read(key, one.key_size, "the key"), cpu & U32)
    return 0 if region is None else run.pointer(region)


@helper(Helper.for_each_map_elem)
def for_each_map_elem(run: Run, map: int, callback: int, context: int, flags: int) -> int:
    """How many elements the callback has seen."""
    if flags:
        return -EINVAL
    one = run.map(map, Map)
    slot = run.function(callback)
    seen = 0
    for key, region in one.entries():
        key_region = Memory(f"map {one.name}'s key", bytearray(key), one.order, writable=False)
        seen += 1
        if run.call(slot, map, run.pointer(key_region), run.pointer(region), context) == 1:
            break
    return seen


@helper(Helper.loop)
def loop(run: Run, count: int, callback: int, context: int, flags: int) -> int:
    """How many iterations there were."""
    slot = run.function(callback)
    count &= U32
    if flags:
        return -EINVAL
    if count > MAX_LOOPS:
        return -E2BIG
    for index in range(count):
        if run.call(slot, index, context) == 1:
            return index + 1
    return count


# --- Time, chance, the processor. ---


@helper(Helper.ktime_get_ns)
def ktime_get_ns(run: Run) -> int:
    """The emulator's clock."""
    return run.emulator.now


@helper(Helper.ktime_get_coarse_ns)
def ktime_get_coarse_ns(run: Run) -> int:
    """The emulator's clock, in full resolution too."""
    return run.emulator.now


@helper(Helper.ktime_get_boot_ns)
def ktime_get_boot_ns(run: Run) -> int:
    """The clock with the time asleep."""
    return run.emulator.now + run.emulator.boot_offset


@helper(Helper.ktime_get_tai_ns)
def ktime_get_tai_ns(run: Run) -> int:
    """International atomic time."""
    return run.emulator.now + run.emulator.tai_offset


@helper(Helper.jiffies64)
def jiffies64(run: Run) -> int:
    """The clock in ticks."""
    return run.emulator.now * run.emulator.jiffies_hz // 1_000_000_000


@helper(Helper.get_prandom_u32)
def get_prandom_u32(run: Run) -> int:
    """32 bits of what the emulator draws from."""
    return int(run.emulator.random.getrandbits(32))


@helper(Helper.get_smp_processor_id)
def get_smp_processor_id(run: Run) -> int:
    """The CPU."""
    return run.emulator.cpu


@helper(Helper.get_numa_node_id)
def get_numa_node_id(run: Run) -> int:
    """There is one node."""
    return 0


# --- Timers. ---


def _timer_key(run: Run, timer: int) -> tuple[int, int]:
    region, at = run.region(timer, "the timer")
    if isinstance(region, Guarded):
        for start, _, name in region.guards:
            if name == "bpf_timer" and at == start:
                return region.start, at
    raise Violation(f"the first argument is {run.describe(timer)}, not a timer in a map's value")


@helper(Helper.timer_init)
def timer_init(run: Run, timer: int, map: int, flags: int) -> int:
    """0, -EINVAL for an unknown clock, -EBUSY where it has been done."""
    from pybpfasm.emulator.emulator import Timer

    key = _timer_key(run, timer)
    if flags not in (0, 1, 7):  # CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME
        return -EINVAL
    if key in run.emulator.timers:
        return -EBUSY
    region, _ = run.region(timer)
    run.emulator.timers[key] = Timer(run.map(map, Map), region)
    return 0


@helper(Helper.timer_set_callback)
def timer_set_callback(run: Run, timer: int, callback: int) -> int:
    """0, -EINVAL before ``timer_init``."""
    found = run.emulator.timers.get(_timer_key(run, timer))
    slot = run.function(callback)
    if found is None:
        return -EINVAL
    found.callback = (run.program, slot)
    return 0


@helper(Helper.timer_start)
def timer_start(run: Run, timer: int, nanoseconds: int, flags: int) -> int:
    """0, -EINVAL before ``timer_init`` and ``timer_set_callback``."""
    found = run.emulator.timers.get(_timer_key(run, timer))
    if flags & ~(BPF_F_TIMER_ABS | BPF_F_TIMER_CPU_PIN):
        return -EINVAL
    if found is None or found.callback is None:
        return -EINVAL
    at = nanoseconds if flags & BPF_F_TIMER_ABS else run.emulator.now + nanoseconds
    run.emulator.start_timer(found, at)
    return 0


@helper(Helper.timer_cancel)
def timer_cancel(run: Run, timer: int) -> int:
    """1 where it was going to fire, 0 where not, -EINVAL before ``timer_init``."""
    found: Timer | None = run.emulator.timers.get(_timer_key(run, timer))
    if found is None:
        return -EINVAL
    active = found.expires is not None
    found.expires = None
    found.callback = None
    return int(active)


@helper(Helper.spin_lock)
def spin_lock(run: Run, lock: int) -> int:
    """Take a lock; there is nobody else."""
    region, at = run.region(lock, "the lock")
    if not isinstance(region, Guarded) or not any(
        name == "bpf_spin_lock" and start == at for start, _, name in region.guards
    ):
        raise Violation(f"the first argument is {run.describe(lock)}, not a spin lock in a map's value")
    if "the spin lock" in run.held.values():
        raise Violation("a second spin lock is taken: a program may hold one at a time")
    run.hold(lock, "the spin lock")
    return 0


@helper(Helper.spin_unlock)
def spin_unlock(run: Run, lock: int) -> int:
    """Give a lock back."""
    run.give_back(lock, "spin lock")
    return 0


# --- Output. ---


@helper(Helper.ringbuf_output)
def ringbuf_output(run: Run, ring: int, data: int, size: int, flags: int) -> int:
    """0, or -EAGAIN where the ring is full."""
    one = run.map(ring, RingBuf)
    if flags & ~(BPF_RB_NO_WAKEUP | BPF_RB_FORCE_WAKEUP):
        return -EINVAL
    return one.output(run.read(data, size, "the data"))


@helper(Helper.ringbuf_reserve)
def ringbuf_reserve(run: Run, ring: int, size: int, flags: int) -> int:
    """A pointer to the record, or 0."""
    one = run.map(ring, RingBuf)
    record = None if flags else one.reserve(size)
    if record is None:
        return 0
    pointer = run.pointer(record)
    run.hold(pointer, "a record of a ring buffer")
    return pointer


def finish_record(run: Run, record: Record, state: str) -> None:
    """A record is *state*, "done" or "discarded", and may not be touched any more."""
    record.state = state
    run.void(record, "this record has been submitted or discarded")


def _finish(run: Run, sample: int, state: str) -> int:
    region, at = run.region(sample, "the record")
    if not isinstance(region, Record) or at:
        raise Violation(f"the argument is {run.describe(sample)}, not a reserved record")
    run.give_back(sample, "record")
    finish_record(run, region, state)
    return 0


@helper(Helper.ringbuf_submit)
def ringbuf_submit(run: Run, sample: int, flags: int) -> int:
    """Let readers have the record."""
    return _finish(run, sample, "done")


@helper(Helper.ringbuf_discard)
def ringbuf_discard(run: Run, sample: int, flags: int) -> int:
    """Let nobody have the record."""
    return _finish(run, sample, "discarded")


@helper(Helper.perf_event_output)
def perf_event_output(run: Run, context: int, map: int, flags: int, data: int, size: int) -> int:
    """Data, with the packet's first bytes behind it, for the reader of this CPU's events; 0 or an errno."""
    ctx = run.is_context(context, Context)
    takes = BPF_F_INDEX_MASK | (BPF_F_CTXLEN_MASK if isinstance(ctx, (Skb, Xdp)) else 0)
    if flags & ~takes:
        return -EINVAL
    if isinstance(ctx, Xdp):
        ctx.sync()
    packet = ctx.packet if isinstance(ctx, (Skb, Xdp)) else b""
    length = (flags & BPF_F_CTXLEN_MASK) >> 32
    if length > len(packet):
        return -EFAULT
    one = run.map(map, PerfEventArray)
    index = flags & BPF_F_INDEX_MASK
    if index == BPF_F_CURRENT_CPU:
        index = run.emulator.cpu
    raw = run.read(data, size, "the data")
    if index >= one.max_entries:
        return -E2BIG
    if index not in one.readers:
        return -ENOENT
    if index != run.emulator.cpu:
        return -EOPNOTSUPP
    one.records.append(raw + packet[:length])
    return 0


@helper(Helper.ringbuf_query)
def ringbuf_query(run: Run, ring: int, what: int) -> int:
    """Sizes and positions of the ring."""
    return run.map(ring, RingBuf).query(what)


# --- Sockets. ---


@helper(Helper.get_netns_cookie)
def get_netns_cookie(run: Run, context: int) -> int:
    """The network namespace of the context's socket; of the host where the context is NULL."""
    if context == 0:
        return 1
    if run.context_region is None or context != run.context_region.start:
        raise Violation(f"the argument is {run.describe(context)}, not the context")
    socket = getattr(run.context, "socket", None)
    return socket.netns if isinstance(socket, Socket) else run.emulator.netns


@helper(Helper.get_socket_cookie)
def get_socket_cookie(run: Run, context: int) -> int:
    """The cookie of a socket, or of the context's; 0 where there is none."""
    if run.context_region is not None and context == run.context_region.start:
        socket = getattr(run.context, "socket", None)
        return socket.cookie if isinstance(socket, Socket) else 0
    return socket_at(run, context).cookie


@helper(Helper.sk_fullsock)
def sk_fullsock(run: Run, sk: int) -> int:
    """The socket as a full one, or 0."""
    if not sk:
        return 0
    socket = socket_at(run, sk)
    return socket_pointer(run, socket) if socket.full else 0


@helper(Helper.tcp_sock)
def tcp_sock(run: Run, sk: int) -> int:
    """``bpf_tcp_sock`` of a TCP socket, or 0."""
    if not sk:
        return 0
    socket = socket_at(run, sk)
    return tcp_socket_pointer(run, socket) if socket.full and socket.protocol == IPPROTO_TCP else 0


@helper(Helper.get_listener_sock)
def get_listener_sock(run: Run, sk: int) -> int:
    """The socket where it listens, of a request the one that listens for it, or 0."""
    socket: Socket | None = socket_at(run, sk)
    assert socket is not None
    if socket.state == TcpState.NEW_SYN_RECV:  # sk_to_full_sk
        socket = run.emulator.sockets.listener(IPPROTO_TCP, socket.src, socket.src_port, socket.netns)
    return 0 if socket is None or socket.state != TcpState.LISTEN else socket_pointer(run, socket)


@helper(Helper.sk_storage_get)
def sk_storage_get(run: Run, map: int, sk: int, value: int, flags: int) -> int:
    """A pointer to the socket's value, or 0."""
    one = run.map(map, SkStorage)
    if not sk:
        return 0
    socket = socket_at(run, sk)
    if not socket.full or flags > BPF_SK_STORAGE_GET_F_CREATE:
        return 0
    initial = None
    if flags & BPF_SK_STORAGE_GET_F_CREATE:
        initial = run.read(value, one.value_size, "the value") if value else bytes(one.value_size)
    region = one.storage(socket, initial)
    return 0 if region is None else run.pointer(region)


@helper(Helper.sk_storage_delete)
def sk_storage_delete(run: Run, map: int, sk: int) -> int:
    """0, -ENOENT where there was none, -EINVAL for what is no full socket."""
    one = run.map(map, SkStorage)
    socket = socket_at(run, sk) if sk else None
    return -EINVAL if socket is None or not socket.full else one.drop(socket)


_ENROLS: Final = (SockOp.PASSIVE_ESTABLISHED_CB, SockOp.ACTIVE_ESTABLISHED_CB, SockOp.TCP_LISTEN_CB)


def _enrol(run: Run, context: int, map: int, key: int, flags: int, kind: type[SockHash]) -> int:
    ctx = run.is_context(context, SockOpsContext)
    one = run.map(map, kind)
    found = run.read(key, one.key_size, "the key")
    if ctx["op"] not in _ENROLS or not ctx.full:
        return -EOPNOTSUPP
    return one.put_socket(found, ctx.socket, flags)


@helper(Helper.sock_hash_update)
def sock_hash_update(run: Run, context: int, map: int, key: int, flags: int) -> int:
    """0 or an errno."""
    return _enrol(run, context, map, key, flags, SockHash)


@helper(Helper.sock_map_update)
def sock_map_update(run: Run, context: int, map: int, key: int, flags: int) -> int:
    """0 or an errno."""
    return _enrol(run, context, map, key, flags, SockMap)


@helper(Helper.sock_ops_cb_flags_set)
def sock_ops_cb_flags_set(run: Run, context: int, flags: int) -> int:
    """The flags that do not exist, 0 where all do."""
    ctx = run.is_context(context, SockOpsContext)
    if not ctx.full:
        return -EINVAL
    flags &= U32
    ctx.socket.cb_flags = flags & 0x7F
    ctx._refresh(run, "bpf_sock_ops_cb_flags", ctx.socket.cb_flags)
    return flags & ~0x7F


@helper(Helper.sk_assign)
def sk_assign(run: Run, context: int, sk: int, flags: int) -> int:
    """Choose the socket for a packet (TC) or for a look-up (sk_lookup); 0 or an errno."""
    if isinstance(run.context, SkLookupContext):
        ctx = run.is_context(context, SkLookupContext)
        if flags & ~(BPF_SK_LOOKUP_F_REPLACE | BPF_SK_LOOKUP_F_NO_REUSEPORT):
            return -EINVAL
        socket = socket_at(run, sk) if sk else None
        if socket is not None:
            if socket.protocol == IPPROTO_TCP and socket.state != TcpState.LISTEN:
                return -errnos.ESOCKTNOSUPPORT
            if socket.protocol != IPPROTO_TCP and socket.state == TcpState.ESTABLISHED and socket.dst_port:
                return -errnos.ESOCKTNOSUPPORT
            if socket.protocol != ctx["protocol"]:
                return -errnos.EPROTONOSUPPORT
            if socket.family != ctx["family"] and (socket.family != AF_INET6 or any(socket.src)):
                return -errnos.EAFNOSUPPORT
        if ctx.assigned is not None and not flags & BPF_SK_LOOKUP_F_REPLACE:
            return -EEXIST
        ctx.assigned = socket
        ctx.no_reuseport = bool(flags & BPF_SK_LOOKUP_F_NO_REUSEPORT)
        return 0
    skb = run.is_context(context, Skb)
    if not sk or flags:
        return -EINVAL
    target = socket_at(run, sk)
    if target.netns != run.emulator.netns:
        return -errnos.ENETUNREACH
    skb.assigned = target
    return 0


@helper(Helper.msg_redirect_hash)
def msg_redirect_hash(run: Run, context: int, map: int, key: int, flags: int) -> int:
    """SK_PASS with the message's way noted, or SK_DROP."""
    return _redirect(run, context, map, key, flags, SockHash)


@helper(Helper.msg_redirect_map)
def msg_redirect_map(run: Run, context: int, map: int, index: int, flags: int) -> int:
    """As ``msg_redirect_hash``, by index."""
    one = run.map(map, SockMap)
    return _redirect_to(run, context, one, (index & U32).to_bytes(4, one.order), flags)


def _redirect(run: Run, context: int, map: int, key: int, flags: int, kind: type[SockHash]) -> int:
    one = run.map(map, kind)
    return _redirect_to(run, context, one, run.read(key, one.key_size, "the key"), flags)


def _redirect_to(run: Run, context: int, one: SockHash, key: bytes, flags: int) -> int:
    msg = run.is_context(context, SkMsg)
    if flags & ~1:  # BPF_F_INGRESS
        return 0
    socket = one.socket(key)
    if socket is None or socket.closed or socket.state != TcpState.ESTABLISHED:
        return 0
    msg.redirect = socket
    msg.redirect_flags = flags
    return 1


@helper(Helper.get_retval)
def get_retval(run: Run) -> int:
    """What the system call is going to return."""
    ctx = run.context
    if isinstance(ctx, SockOptContext):
        return s32(int.from_bytes(_retval(run), run.emulator.byteorder))
    return ctx.retval if isinstance(ctx, SockAddrContext) else 0


@helper(Helper.set_retval)
def set_retval(run: Run, value: int) -> int:
    """Set what the system call is going to return: an errno, or 0."""
    ctx = run.context
    if isinstance(ctx, SockOptContext):
        _retval(run)[:] = (value & U32).to_bytes(4, run.emulator.byteorder)
    elif isinstance(ctx, SockAddrContext):
        ctx.retval = s32(value)
    else:
        raise Violation("only programs at a system call of a socket can set what it returns")
    return 0


def _retval(run: Run) -> memoryview:
    """The bytes of ``bpf_sockopt.retval``, which the two helpers see as well."""
    assert run.context_region is not None
    at = SockOpt.offsetof("retval")
    return memoryview(run.context_region.data)[at : at + 4]
