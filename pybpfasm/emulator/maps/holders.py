# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""Maps that hold other things than bytes: sockets and what is kept with them, maps, programs, interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pybpfasm.emulator.errnos import E2BIG, EEXIST, EINVAL, ENOENT, EOPNOTSUPP
from pybpfasm.emulator.faults import EmulatorError
from pybpfasm.emulator.maps.base import Map, MapError
from pybpfasm.emulator.memory import Memory, Region
from pybpfasm.emulator.sockets import Socket
from pybpfasm.kernel.enums import (
    BPF_ANY,
    BPF_EXIST,
    BPF_F_INNER_MAP,
    BPF_F_RDONLY,
    BPF_F_WRONLY,
    BPF_NOEXIST,
    MapType,
    TcpState,
)
from pybpfasm.maprules import kernel_owned
from pybpfasm.maps import MapSpec

if TYPE_CHECKING:
    from pybpfasm.emulator.emulator import Emulator

__all__ = ["MapOfMaps", "ProgArray", "Redirects", "SkStorage", "SockHash", "SockMap"]


class SockHash(Map):
    """SOCKHASH: sockets by key. A socket that closes leaves."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._sockets: dict[bytes, Socket] = {}
        super().__init__(emulator, spec)

    def socket(self, key: bytes) -> Socket | None:
        """The socket of *key*."""
        return self._sockets.get(key)

    def put_socket(self, key: bytes, socket: Socket, flags: int) -> int:
        """``sock_hash_update``: 0 or a negative errno."""
        if flags > BPF_EXIST:
            return -EINVAL
        if socket.closed or socket.state not in (TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.LISTEN):
            return -EOPNOTSUPP
        error = self._permits(key, flags)
        if error:
            return error
        old = self._sockets.get(key)
        if old is not None and self in old.members:
            old.members.remove(self)
        self._sockets[key] = socket
        socket.members.append(self)
        return 0

    def _permits(self, key: bytes, flags: int) -> int:
        exists = key in self._sockets
        if exists and flags == BPF_NOEXIST:
            return -EEXIST
        if not exists and flags == BPF_EXIST:
            return -ENOENT
        if not exists and len(self._sockets) >= self.max_entries:
            return -E2BIG
        return 0

    def remove(self, key: bytes) -> int:
        socket = self._sockets.pop(key, None)
        if socket is None:
            return self._missing
        if self in socket.members:
            socket.members.remove(self)
        return 0

    _missing = -ENOENT

    def forget(self, socket: Socket) -> None:
        for key in [key for key, one in self._sockets.items() if one is socket]:
            del self._sockets[key]

    def _keys(self) -> list[bytes]:
        return list(self._sockets)

    def _get(self, key: bytes) -> Any:
        return self._sockets.get(key)

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        if not isinstance(value, Socket):
            raise EmulatorError(f"map {self.name} holds sockets: give a Socket, not {value!r}")
        return self.put_socket(key, value, flags)


class SockMap(SockHash):
    """SOCKMAP: sockets by index."""

    _missing = -EINVAL

    def _permits(self, key: bytes, flags: int) -> int:
        if int.from_bytes(key, self.order) >= self.max_entries:
            return -E2BIG
        return super()._permits(key, flags)


class SkStorage(Map):
    """SK_STORAGE: a value for each socket, kept with the socket."""

    def of(self, socket: Socket) -> Any:
        """The value of *socket*, or ``None``."""
        found = socket.storage.get(self)
        return None if found is None else self._shown(found.data)

    def storage(self, socket: Socket, initial: bytes | None) -> Memory | None:
        """The value's memory; made with *initial* where there is none and that is given."""
        found = socket.storage.get(self)
        if found is None and initial is not None:
            found = Memory(f"map {self.name}'s value", bytearray(initial), self.order)
            socket.storage[self] = found
        return found

    def drop(self, socket: Socket) -> int:
        """``sk_storage_delete``."""
        return 0 if socket.storage.pop(self, None) is not None else -ENOENT

    def lookup(self, key: Any) -> Any:
        """The value of a `Socket`, or ``None``."""
        return self.of(self._socket(key))

    def update(self, key: Any, value: Any, flags: int = BPF_ANY) -> None:
        """Store the value of a `Socket`; raises `MapError` with the kernel's errno."""
        socket = self._socket(key)
        there = self in socket.storage
        if flags > BPF_EXIST or (there and flags == BPF_NOEXIST) or (not there and flags == BPF_EXIST):
            error = EINVAL if flags > BPF_EXIST else EEXIST if there else ENOENT
            raise MapError(self.name, f"update of {key!r}", error)
        memory = self.storage(socket, bytes(self.value_size))
        assert memory is not None
        memory.data[:] = self._value(value)

    def delete(self, key: Any) -> bool:
        """Take the value from a `Socket`; whether it had one."""
        return self.drop(self._socket(key)) == 0

    def __contains__(self, key: Any) -> bool:
        return self in self._socket(key).storage

    def _socket(self, key: Any) -> Socket:
        if not isinstance(key, Socket):
            raise EmulatorError(f"map {self.name} keeps values of sockets: give a Socket, not {key!r}")
        return key


class _Holder(Map):
    """Maps of objects: other maps, programs."""

    def __init__(self, emulator: Emulator, spec: MapSpec) -> None:
        self._objects: dict[bytes, Any] = {}
        super().__init__(emulator, spec)

    @property
    def _indexed(self) -> bool:
        return self.type in (MapType.ARRAY_OF_MAPS, MapType.PROG_ARRAY)

    def object(self, key: bytes) -> Any:
        """What *key* stands for, or ``None``."""
        return self._objects.get(key)

    def find(self, key: bytes) -> Region | None:
        found = self._objects.get(key)
        return found.region if isinstance(found, Map) else None

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        self._accept(value)
        if self._indexed:
            if flags != BPF_ANY:
                return -EINVAL
            if int.from_bytes(key, self.order) >= self.max_entries:
                return -E2BIG
        else:
            error = self._permits(key, flags)
            if error:
                return error
            if key not in self._objects and len(self._objects) >= self.max_entries:
                return -E2BIG
        self._objects[key] = value
        return 0

    def _permits(self, key: bytes, flags: int) -> int:
        """The errno of flags that do not go with what is there, or 0."""
        if flags > BPF_EXIST:
            return -EINVAL
        if key in self._objects and flags == BPF_NOEXIST:
            return -EEXIST
        return -ENOENT if key not in self._objects and flags == BPF_EXIST else 0

    def _accept(self, value: Any) -> None:
        raise NotImplementedError

    def remove(self, key: bytes) -> int:
        if self._indexed and int.from_bytes(key, self.order) >= self.max_entries:
            return -E2BIG
        return 0 if self._objects.pop(key, None) is not None else -ENOENT

    def _keys(self) -> list[bytes]:
        return list(self._objects)

    def _get(self, key: bytes) -> Any:
        return self._objects.get(key)


class MapOfMaps(_Holder):
    """ARRAY_OF_MAPS and HASH_OF_MAPS."""

    def _accept(self, value: Any) -> None:
        if not isinstance(value, Map):
            raise EmulatorError(f"map {self.name} holds maps, not {value!r}")
        inner = self.spec.inner
        if inner is not None and not self._alike(inner, value.spec):
            raise MapError(self.name, f"{value!r} is not like the inner map {inner.name}", EINVAL)

    def _alike(self, inner: MapSpec, other: MapSpec) -> bool:
        """``bpf_map_meta_equal`` and ``array_map_meta_equal``."""
        if inner.type is MapType.ARRAY and not inner.flags & BPF_F_INNER_MAP:
            cpus = self.emulator.cpus
            if inner.entries(cpus) != other.entries(cpus):
                return False
        permanent = ~(BPF_F_RDONLY | BPF_F_WRONLY)
        return (
            (inner.type, inner.key_size, inner.value_size) == (other.type, other.key_size, other.value_size)
            and inner.flags & permanent == other.flags & permanent
            and list(kernel_owned(inner.value)) == list(kernel_owned(other.value))
        )


class ProgArray(_Holder):
    """PROG_ARRAY: programs for tail calls."""

    def _accept(self, value: Any) -> None:
        from pybpfasm.emulator.program import Program

        if not isinstance(value, Program):
            raise EmulatorError(f"map {self.name} holds loaded programs, not {value!r}")


class Redirects(_Holder):
    """DEVMAP, DEVMAP_HASH, CPUMAP and XSKMAP: where ``redirect_map`` may send a packet."""

    @property
    def _indexed(self) -> bool:
        return self.type is not MapType.DEVMAP_HASH

    def _permits(self, key: bytes, flags: int) -> int:
        # __dev_map_hash_update_elem does not look for BPF_EXIST.
        if self.type is MapType.DEVMAP_HASH and flags == BPF_EXIST:
            return 0
        return super()._permits(key, flags)

    def _set(self, key: bytes, value: Any, flags: int) -> int:
        if not self._indexed:
            return super()._set(key, value, flags)
        self._accept(value)
        if flags > BPF_EXIST:
            return -EINVAL
        if int.from_bytes(key, self.order) >= self.max_entries:
            return -E2BIG
        if self.type is MapType.XSKMAP:
            error = self._permits(key, flags)
            if error:
                return error
        elif flags == BPF_NOEXIST:
            return -EEXIST  # every index exists, whether or not there is something
        self._objects[key] = value
        return 0

    def remove(self, key: bytes) -> int:
        if not self._indexed:
            return super().remove(key)
        if int.from_bytes(key, self.order) >= self.max_entries:
            return -EINVAL
        self._objects.pop(key, None)
        return 0

    def _accept(self, value: Any) -> None:
        if not isinstance(value, int):
            raise EmulatorError(f"map {self.name} holds numbers (interfaces, CPUs), not {value!r}")
