# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the models of all maps share: limits, Python values, and what programs may not touch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from pybpfasm.emulator import errnos
from pybpfasm.emulator.errnos import EINVAL, ENOENT, EOPNOTSUPP
from pybpfasm.emulator.faults import EmulatorError, Violation
from pybpfasm.emulator.memory import Guarded, Memory, Opaque, Order, Region
from pybpfasm.emulator.sockets import Socket
from pybpfasm.kernel.enums import BPF_ANY, BPF_F_LOCK, BPF_F_RDONLY_PROG, BPF_F_WRONLY_PROG
from pybpfasm.mapaccess import Entries, pack, unpack
from pybpfasm.maprefusals import Refusing, why
from pybpfasm.maprules import kernel_owned, refusal
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Emulator

__all__ = ["Map", "MapError"]


class MapError(EmulatorError):
    """The map refused: ``errno`` says why, as the kernel does."""

    def __init__(self, name: str, what: str, number: int, reason: str = "") -> None:
        self.errno = number
        super().__init__(f"map {name}: {what}: {errnos.name(number)}{f': {reason}' if reason else ''}")


class Map(Entries):
    """A map; `make` gives the class that models its type."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self.emulator = emulator
        self.spec = spec
        self.name = spec.name
        self.type = spec.type
        self.key_size = spec.key_size
        self.value_size = spec.value_size
        self.max_entries = spec.entries(emulator.cpus)
        self.order: Order = emulator.byteorder
        self.region = Opaque(f"map {spec.name}", self)
        self.region.start = emulator.numbers.start()
        self.guards = list(kernel_owned(spec.value))
        self.frozen = False
        refused = refusal(replace(spec, max_entries=self.max_entries))
        if refused is not None:
            raise MapError(self.name, refused, EINVAL)

    def __repr__(self) -> str:
        return f"<{self.type.name} map {self.name}>"

    # What programs see.
    def new_value(self, data: bytes) -> Memory | Guarded:
        """Memory for one value."""
        value: Memory | Guarded
        kind = f"map {self.name}'s value"
        if self.guards:
            value = Guarded(kind, bytearray(data), self.order, self.guards)
        else:
            value = Memory(kind, bytearray(data), self.order)
        value.readable = not self.spec.flags & BPF_F_WRONLY_PROG
        value.writable = not self.spec.flags & BPF_F_RDONLY_PROG
        return value

    def find(self, key: bytes) -> Region | None:
        """What ``map_lookup_elem`` returns a pointer to."""
        raise Violation(str(self._cannot("look-ups by programs")))

    def put(self, key: bytes, value: bytes, flags: int) -> int:
        """``map_update_elem``: 0 or a negative errno."""
        return -EOPNOTSUPP

    def remove(self, key: bytes) -> int:
        """``map_delete_elem``: 0 or a negative errno."""
        return -EOPNOTSUPP

    def forget(self, socket: Socket) -> None:
        """A socket closes."""

    def entries(self) -> list[tuple[bytes, Region]]:
        """Keys and values for ``for_each_map_elem``."""
        raise Violation(str(self._cannot("for_each_map_elem")))

    def _cannot(self, what: str) -> EmulatorError:
        return EmulatorError(f"map {self.name}: a {self.type.name} map has no {what}")

    # What a test sees.
    def _key(self, key: Any) -> bytes:
        if key is None and not self.key_size:
            return b""
        return pack(self.spec.key, key, self.key_size, self.order, f"a key of map {self.name}")

    def _value(self, value: Any) -> bytes:
        data = pack(self.spec.value, value, self.value_size, self.order, f"a value of map {self.name}")
        return self._without_guards(data)

    def _without_guards(self, data: bytes) -> bytes:
        if not self.guards:
            return data
        out = bytearray(data)
        for start, end, _ in self.guards:
            out[start:end] = bytes(end - start)
        return bytes(out)

    def _shown(self, data: bytes | bytearray) -> Any:
        return unpack(self.spec.value, self._without_guards(bytes(data)), self.order)

    def _keys(self) -> list[bytes]:
        raise self._cannot("keys")

    def _get(self, key: bytes) -> Any:
        raise self._cannot("look-ups")

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        return self.put(key, self._value(value), flags)

    def lookup(self, key: Any) -> Any:
        """The value for *key*, or ``None``."""
        return self._get(self._key(key))

    def update(self, key: Any, value: Any, flags: int = BPF_ANY) -> None:
        """Store a value; raises `MapError` with the kernel's errno."""
        if self.frozen:
            raise MapError(self.name, "frozen", errnos.EPERM)
        if flags & BPF_F_LOCK and not any(name == "bpf_spin_lock" for _, _, name in self.guards):
            raise MapError(self.name, "BPF_F_LOCK for values without a spin lock", EINVAL)
        error = self._set(self._key(key), value, flags)
        if error:
            self._refused("update", key, -error, flags)

    def delete(self, key: Any) -> bool:
        """Delete *key*; whether it was there. Raises `MapError`."""
        error = self.remove(self._key(key))
        if error == -ENOENT:
            return False
        if error:
            self._refused("delete", key, -error)
        return True

    def _refused(self, what: str, key: Any, code: int, flags: int = 0) -> NoReturn:
        """Raise the `MapError` of an update or a delete."""
        locked = any(name == "bpf_spin_lock" for _, _, name in self.guards)
        refusing = Refusing(self.type, self.key_size, self.max_entries, locked, self.order)
        reason = why(refusing, f"MAP_{what.upper()}_ELEM", code, [self._key(key)], flags)
        raise MapError(self.name, f"{what} of {key!r}", code, reason)

    def keys(self) -> Iterator[Any]:
        """All keys."""
        return iter([unpack(self.spec.key, key, self.order) for key in self._keys()])

    def values(self) -> Iterator[Any]:
        """All values."""
        return (self._get(key) for key in self._keys())

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All keys with their values."""
        return ((unpack(self.spec.key, key, self.order), self._get(key)) for key in self._keys())

    def items_raw(self) -> list[tuple[bytes, Any]]:
        """Keys and values as bytes, sorted by key; of a per-CPU map, a tuple with the bytes of each CPU."""
        raise self._cannot("entries")

    def count(self) -> int:
        """How many entries there are."""
        return len(self._keys())

    def clear(self) -> None:
        """Delete every entry."""
        for key in self._keys():
            self.remove(key)

    def __contains__(self, key: Any) -> bool:
        return self._key(key) in self._keys()

    def __len__(self) -> int:
        return self.count()
