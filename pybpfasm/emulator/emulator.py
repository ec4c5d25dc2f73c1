# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""The emulated kernel: the maps, sockets, routes, clock and helpers that programs share."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pybpfasm.emulator import maps as models
from pybpfasm.emulator.context import Skb
from pybpfasm.emulator.faults import EmulatorError, Violation, choose
from pybpfasm.emulator.helpers import MODELS, Model, make_model
from pybpfasm.emulator.kfuncs import name_of, number_of
from pybpfasm.emulator.maps import Map, ProgArray
from pybpfasm.emulator.memory import Memory, Numbers, Order, Region
from pybpfasm.emulator.program import Program
from pybpfasm.emulator.routes import Routes
from pybpfasm.emulator.run import DEFAULT_BUDGET, MAX_TAIL_CALLS, Run
from pybpfasm.emulator.sockets import SocketTable
from pybpfasm.emulator.task_helpers import Task
from pybpfasm.errors import suggestion
from pybpfasm.isa import CallKind
from pybpfasm.kernel.enums import BPF_F_RDONLY_PROG, Helper, MapType
from pybpfasm.layout import Struct
from pybpfasm.maps import MapSpec
from pybpfasm.program import ProgramSpec, Template

__all__ = ["Emulator", "Timer"]

F = TypeVar("F", bound=Callable[..., int])

# SKF_NET_OFF and SKF_LL_OFF, linux/filter.h
_NET_OFFSET = -0x100000
_LINK_OFFSET = -0x200000


@dataclass(eq=False)
class Timer:
    """A ``struct bpf_timer`` in a map's value."""

    map: Map
    value: Region
    callback: tuple[Program, int] | None = None
    expires: int | None = None
    serial: int = field(default=0, repr=False)


#: The engines that run programs: chosen as it pays, or always the one.
ENGINES: Final = ("auto", "interpret", "translate")


class Emulator:
    """A kernel in Python, as far as programs see it.

    ``now`` is the monotonic clock in ns; only a test moves it, with `advance`, which fires timers.
    ``cpus`` is how many CPUs there are and ``cpu`` the one that programs run on. ``random`` is what
    ``get_prandom_u32`` draws from: anything with ``getrandbits``. ``boot_offset`` and ``tai_offset`` are what
    those clocks are ahead of the monotonic one. ``task`` is the process on whose behalf programs run, ``mtu``
    holds the devices by number, for ``check_mtu`` and for helpers that want one to be there, and ``sysctl``
    the limits that ``setsockopt`` keeps.
    """

    def __init__(
        self,
        *,
        cpus: int = 1,
        byteorder: Order = "little",
        now: int = 1_000_000_000,
        seed: int = 0,
        engine: str = "auto",
    ) -> None:
        if cpus < 1:
            raise EmulatorError(f"cpus={cpus} must be at least 1")
        choose("byteorder", byteorder, ("little", "big"))
        choose("engine", engine, ENGINES)
        self.cpus = cpus
        self.cpu = 0
        self.byteorder: Order = byteorder
        self.now = now
        self.boot_offset = 0
        self.tai_offset = 37_000_000_000
        self.jiffies_hz = 1000
        self.random: Any = random.Random(seed)
        self.engine = engine
        self.netns = 1  # the cookie of the network namespace in which packets are handled
        self.task = Task()
        self.mtu: dict[int, int] = {1: 65536}
        # Limits of sockets' options, as Linux 6.18 has them at first.
        self.sysctl = {
            "net.core.wmem_max": 4 << 20,
            "net.core.rmem_max": 4 << 20,
            "net.core.txrehash": 1,
            "net.ipv4.tcp_rmem": 32 << 20,
        }
        self.sockets = SocketTable()
        self.routes = Routes()
        self.printed: list[str] = []
        self.sent: list[tuple[str, int, bytes]] = []
        self.maps: dict[str, Map] = {}
        self.numbers = Numbers()
        self.timers: dict[tuple[int, int], Timer] = {}
        self._due: list[tuple[int, int, Timer]] = []
        self._serial = itertools.count(1)
        self._models: dict[tuple[int, int], Model] = dict(MODELS)

    # Programs and maps.
    def load(self, spec: ProgramSpec, *, engine: str | None = None) -> Program:
        """Load a program; its maps are those that this emulator has of the same names, or new ones.

        Raises `EmulatorError`.
        """
        if isinstance(spec, Template):
            raise EmulatorError(f"{spec.name} has not been built yet: load({spec.name}.build(…))")
        if engine is not None:
            choose("engine", engine, ENGINES)
        self._check_order(spec)
        return self.loaded(self.make(spec, self.engine if engine is None else engine))

    def make(self, spec: ProgramSpec, engine: str) -> Program:
        """The program of a spec; what `load` does first."""
        return Program(self, spec, engine)

    def loaded(self, program: Program) -> Program:
        """Put a new program into the program arrays that are to begin with it."""
        for one in list(self.maps.values()):
            for index, name in one.spec.initial:
                if one.type is MapType.PROG_ARRAY and name == program.spec.name:
                    one[index] = program
        return program

    def _check_order(self, spec: ProgramSpec) -> None:
        if spec.byteorder != self.byteorder:
            raise EmulatorError(
                f"{spec.name} is {spec.byteorder}-endian, this emulator {self.byteorder}-endian: "
                f"make one with byteorder={spec.byteorder!r}"
            )

    def map(self, which: MapSpec | str) -> Map:
        """The map of a spec, made where there is none yet, or that of a name.

        Raises `EmulatorError` for an unknown name, a type without a model and another map of the name,
        `MapError` with EINVAL for a map that the kernel would not create.
        """
        if isinstance(which, str):
            found = self.maps.get(which)
            if found is None:
                raise EmulatorError(f"there is no map {which!r}{suggestion(which, self.maps)}")
            return found
        found = self.maps.get(which.name)
        if found is None:
            found = self.maps[which.name] = models.make(self, which)
            self._begin(found)
        elif (found.type, found.key_size, found.value_size, found.max_entries) != (
            which.type,
            which.key_size,
            which.value_size,
            which.entries(self.cpus),
        ):
            raise EmulatorError(f"map {which.name!r} exists and is another one: {found!r}")
        return found

    def _begin(self, one: Map) -> None:
        """Give a new map what its spec says that it begins with."""
        if one.spec.contents is not None and isinstance(one, models.Array):
            one.element(0).data[:] = one.spec.contents
            one.frozen = bool(one.spec.flags & BPF_F_RDONLY_PROG)
        for outer in list(self.maps.values()):
            if isinstance(outer, models.MapOfMaps):
                for index, name in outer.spec.initial:
                    if name in self.maps and outer.lookup(index) is None:
                        outer[index] = self.maps[name]

    def new_map(self, spec: MapSpec) -> Map:
        """A map that no program names, for a map of maps."""
        return models.make(self, spec)

    # Helpers.
    def model(self, helper: Helper | int | str, *, kfunc: bool = False) -> Callable[[F], F]:
        """Decorator: the function models *helper* in this emulator.

        A name is that of a function of the kernel. With *kfunc*, a number is a type id by which a resolved
        program calls one.

        Its first parameter is the `Run`, the others, at most five, are the registers r1 and up as unsigned
        numbers; it returns r0, in which a negative number stands for an errno.
        """

        def wrap(function: F) -> F:
            if isinstance(helper, str):
                call = CallKind.KFUNC, number_of(helper)
            else:
                call = CallKind.KFUNC if kfunc else CallKind.HELPER, int(helper)
            self._models[call] = make_model(function)
            return function

        return wrap

    def model_of(self, kind: int, number: int) -> Model:
        """The model that a call instruction reaches; raises `EmulatorError`."""
        found = self._models.get((kind, number))
        if found is None:
            if kind == CallKind.KFUNC and (known := name_of(number)) is not None:
                name, how = f"kernel function {known}", f'"{known}"'
            elif kind == CallKind.KFUNC:
                # Resolved, a call has no more than the number.
                name, how = f"kernel function {number}", f"{number}, kfunc=True"
            elif number in Helper._value2member_map_:
                name = Helper(number).name
                how = f"Helper.{name}"
            else:
                name, how = f"helper {number}", str(number)
            raise EmulatorError(
                f"the emulator has no model of {name}, add one: "
                f"@emulator.model({how}) above a function of the run and the arguments, which returns r0"
            )
        return found

    def tail_target(self, run: Run, context: int, array: int, index: int) -> Program | None:
        """The program of a tail call, or ``None`` where it fails."""
        region = run.context_region
        if region is None or context != region.start:
            raise Violation(f"the first argument is {run.describe(context)}, not the context")
        run_map = getattr(run.regions.get(array >> 32), "object", None)
        if not isinstance(run_map, ProgArray):
            raise Violation(f"the second argument is {run.describe(array)}, not a PROG_ARRAY map")
        if run.tail_calls >= MAX_TAIL_CALLS:
            return None
        target = run_map.object((index & 0xFFFFFFFF).to_bytes(4, self.byteorder))
        return target if isinstance(target, Program) else None

    def legacy_load(self, run: Run, context: int, offset: int, size: int) -> int | None:
        """LD_ABS and LD_IND: *size* bytes of the packet in network order, or ``None`` outside it."""
        skb = run.is_context(context, Skb)
        if offset < 0:
            if offset >= _NET_OFFSET:
                offset = offset - _NET_OFFSET + skb.network_offset
            elif offset >= _LINK_OFFSET:
                offset = offset - _LINK_OFFSET
            else:
                return None
        data = skb.data[offset : offset + size]
        return int.from_bytes(data, "big") if len(data) == size else None

    def __repr__(self) -> str:
        return f"<Emulator at {self.now} ns, maps {', '.join(self.maps)}>"

    # Time.
    def advance(self, nanoseconds: int = 0, *, seconds: float = 0) -> int:
        """Let time pass, and the timers fire that come due, in their order; returns how many did.

        *nanoseconds* are a whole number, as the kernel's clock is; `EmulatorError` for others and for a step
        back.
        """
        if not isinstance(nanoseconds, int):
            raise EmulatorError(f"advance({nanoseconds!r}) is no whole number of ns: advance(seconds=…)")
        if nanoseconds < 0 or seconds < 0:
            raise EmulatorError("the monotonic clock does not go back")
        end = self.now + nanoseconds + round(seconds * 1e9)
        fired = 0
        while self._due and self._due[0][0] <= end:
            at, serial, timer = heapq.heappop(self._due)
            if timer.serial != serial or timer.expires is None or timer.callback is None:
                continue
            self.now = max(self.now, at)
            timer.expires = None
            self._fire(timer)
            fired += 1
        self.now = end
        return fired

    def _fire(self, timer: Timer) -> None:
        assert timer.callback is not None
        program, slot = timer.callback
        key = next((key for key, value in timer.map.entries() if value is timer.value), None)
        if key is None:
            return
        run = Run(program, None, budget=DEFAULT_BUDGET, trace=None)
        arguments = (
            run.pointer(timer.map.region),
            run.pointer(Memory(f"map {timer.map.name}'s key", bytearray(key), self.byteorder)),
            run.pointer(timer.value),
        )
        try:
            run.call(slot, *arguments)
        except (Violation, KeyError) as error:
            raise run.explain(error) from None

    def start_timer(self, timer: Timer, expires: int) -> None:
        """Let *timer* fire at *expires*, on the monotonic clock."""
        timer.expires = expires
        timer.serial = next(self._serial)
        heapq.heappush(self._due, (expires, timer.serial, timer))

    def cancel_timers(self, value: Region) -> None:
        """Forget the timers in a map's value that goes away."""
        if not value.start or not self.timers:
            return
        for key in [key for key in self.timers if key[0] == value.start]:
            self.timers.pop(key).expires = None

    @property
    def pending_timers(self) -> int:
        """How many timers will fire."""
        return sum(timer.expires is not None for timer in self.timers.values())

    # Output.
    def events(self, which: str | MapSpec, struct: type[Struct] | None = None) -> list[Any]:
        """What programs have put into a ring buffer or an array of perf events since the last time.

        With a *struct*, records are objects of it, of its size or longer; else bytes. Raises `EmulatorError`
        for a map of another type, `LayoutError` for a record that is too short.
        """
        found = self.map(which)
        if not isinstance(found, (models.RingBuf, models.PerfEventArray)):
            raise EmulatorError(f"map {found.name} is a {found.type.name}, which takes no events")
        records = found.consume()
        if struct is None:
            return list(records)
        return [struct.unpack(one[: struct.sizeof], byteorder=self.byteorder) for one in records]
