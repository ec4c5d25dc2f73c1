# SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only
"""What the kernel says of bytes that sk_msg has redirected to a socket: a connection is made, bytes are
redirected, and the kernel is asked. No version tells, because stable kernels got the changes too.

FIONREAD says 0 for them before Linux 7.0 (and kernels that have the change of January 2026, "bpf, sockmap:
Fix FIONREAD for sockmap"), so that an application that asks before it reads waits for ever. The length of the
receive queue, ``sk_rmem_alloc``, leaves them out before 6.13 (and the change of December 2024, "tcp_bpf: Add
sk_rmem_alloc related logic for tcp_bpf ingress redirection"), so that nobody can tell how many wait.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from loader.features.answer import Answer, Support, judge, yes
from loader.features.attempt import EXIT, Raw, alu, call, copy, map_fd
from loader.features.place import in_own_network
from loader.objects import Map, Program, attach_to_sockmap
from pybpfasm import isa
from pybpfasm.instruction import Instruction
from pybpfasm.kernel.enums import BPF_F_INGRESS, AttachType, Helper, MapType, ProgType
from pybpfasm.maps import MapSpec

__all__ = ["fionread", "queue_length"]

_SO_MEMINFO: Final = 55  # asm-generic/socket.h; nine numbers, of which sk_rmem_alloc is the first
_SENDER, _RECEIVER = 0, 1  # keys
_PIECES: Final = (b"first ", b"second")
_PATIENCE: Final = 10.0  # seconds; nothing here waits where the kernel is right


def fionread() -> Answer:
    """Whether FIONREAD counts redirected bytes."""
    return _attempt("FIONREAD", _waiting, lambda said, left: said == left)


def queue_length() -> Answer:
    """Whether the length of the receive queue grows by them; the kernel may count more than the bytes."""
    return _attempt("the receive queue", _queued, lambda said, left: said >= left)


def _attempt(what: str, ask: Callable[[socket.socket], int], is_right: Callable[[int, int], bool]) -> Answer:
    """Redirect bytes between two sockets in a network namespace of their own, and ask how many wait."""
    answers: list[Answer] = []

    def attempt() -> None:
        spec = MapSpec("probe", MapType.SOCKHASH, 8, 8, 2)
        with ExitStack() as stack:
            sockets = stack.enter_context(Map.create(spec))
            verdict = stack.enter_context(Program.load(Raw(ProgType.SK_MSG, _to_the_receiver(sockets.fd))))
            # Before the sockets: they take the map's program when they come in.
            link = attach_to_sockmap(verdict, sockets, AttachType.SK_MSG_VERDICT)
            if link is not None:
                stack.enter_context(link)
            answers.append(in_own_network(lambda: _redirect(sockets, what, ask, is_right)))

    tried = judge(attempt)
    return answers[0] if answers else tried


def _to_the_receiver(sockets: int) -> list[Instruction]:
    """Redirect every message into the receiver's queue, and let the call fail where that is not possible."""
    at = isa.FRAME_POINTER
    return [
        Instruction(isa.ST | isa.MEM | isa.DW, at, offset=-8, imm=_RECEIVER),
        map_fd(2, sockets),
        copy(3, at),
        alu(3, -8, isa.Alu.ADD),
        alu(4, BPF_F_INGRESS),
        call(Helper.msg_redirect_hash),
        EXIT,
    ]


def _waiting(sock: socket.socket) -> int:
    number = array.array("i", [-1])
    fcntl.ioctl(sock.fileno(), termios.FIONREAD, number)
    return number[0]


def _queued(sock: socket.socket) -> int:
    return int(struct.unpack_from("=I", sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36))[0])


def _redirect(
    sockets: Map,
    what: str,
    ask: Callable[[socket.socket], int],
    is_right: Callable[[int, int], bool],
) -> Answer:
    """Make the connection, send, and look."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.settimeout(_PATIENCE)
        sender = stack.enter_context(socket.create_connection(listener.getsockname(), _PATIENCE))
        receiver = stack.enter_context(listener.accept()[0])
        receiver.settimeout(_PATIENCE)
        for key, sock in ((_RECEIVER, receiver), (_SENDER, sender)):
            sockets.update(struct.pack("=Q", key), struct.pack("=Q", sock.fileno()))
        for piece in _PIECES:
            sender.sendall(piece)
        left = sum(map(len, _PIECES))
        for piece in (*_PIECES, b""):
            said = ask(receiver)
            if not is_right(said, left):
                reason = f"{what} had {said} where {left} redirected bytes waited"
                return Support.UNSUPPORTED, reason, 0
            if piece and receiver.recv(len(piece)) != piece:
                return Support.INCONCLUSIVE, "the redirected bytes did not arrive", 0
            left -= len(piece)
    return yes(f"{what} counted the redirected bytes")
