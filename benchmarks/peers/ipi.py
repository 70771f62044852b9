"""The socket protocol of i-PI: 12-byte words, status questions, positions there and forces back.

Written from its documentation: the server asks STATUS and hears READY, sends POSDATA with cell, inverse cell, number of
atoms and positions, asks STATUS again and hears HAVEDATA when the driver is done, and sends GETFORCE for FORCEREADY,
energy, number, forces, virial and a string. So an answer takes three trips. Positions come in threes; an array is
padded to that. With shared memory, only the positions and forces are in mapped files; the words still go through a
unix socket. The buffers are reused, which is kinder to the protocol than most of its codes are.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import Literal

import numpy as np

from benchmarks.peers.exchange import IDLE_S, PATIENCE_S, Array, Peer, Place, announce, announced, raw, respond

WORD = 12
STATUS, READY, HAVEDATA, POSDATA, GETFORCE, FORCEREADY, EXIT = (
    word.ljust(WORD).encode() for word in ("STATUS", "READY", "HAVEDATA", "POSDATA", "GETFORCE", "FORCEREADY", "EXIT")
)
CELLS = 2 * 9 * 8
"""Bytes of the cell and of its inverse."""


def padded(count: int) -> int:
    """Values in the positions of as many whole atoms as hold `count` values."""
    return -(-count // 3) * 3


class Wire:
    """One end of a connection."""

    def __init__(self, sock: socket.socket, patience_s: float) -> None:
        self.sock = sock
        sock.settimeout(patience_s)
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fill(self, view: memoryview) -> None:
        """Reads until a buffer is full."""
        while view:
            got = self.sock.recv_into(view)
            if not got:
                raise ConnectionError("the other side of the i-PI protocol has gone")
            view = view[got:]

    def word(self) -> bytes:
        """The next word."""
        found = bytearray(WORD)
        self.fill(memoryview(found))
        return bytes(found)

    def expect(self, word: bytes) -> None:
        """Reads a word and refuses any other."""
        if (found := self.word()) != word:
            raise ConnectionError(f"{word!r} was due in the i-PI protocol, {found!r} came")


class Message:
    """A message that holds an array between a head and a tail, in one buffer, so that it is one call to send it."""

    def __init__(self, head: int, values: int, tail: int) -> None:
        self.bytes = np.zeros(head + 8 * values + tail, np.uint8)
        self.array: Array = np.ndarray(values, buffer=self.bytes.data, offset=head)
        """The values; at no aligned address, as in every code of this protocol that sends it in one call."""


class Positions:
    """Producer: the part of i-PI itself, which listens."""

    def __init__(self, place: Place, *, unix: bool, shared: bool) -> None:
        self._count, self._values = place.count, padded(place.count)
        self._mapped = mapped(place, "w+") if shared else None
        with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as listener:
            listener.settimeout(PATIENCE_S)
            listener.bind(str(place.folder / "ipi") if unix else ("127.0.0.1", 0))
            listener.listen(1)
            announce(place.folder, str(listener.getsockname() if unix else listener.getsockname()[1]))
            self._wire = Wire(listener.accept()[0], PATIENCE_S)
        head = WORD + CELLS + 4
        self._out = Message(WORD + 4 if shared else head, 0 if shared else self._values, 0)
        self._out.bytes[:WORD] = np.frombuffer(POSDATA, np.uint8)
        self._forces = Message(8 + 4, 0 if shared else self._values, 9 * 8 + 4)
        self._taken = np.zeros(self._values)

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        self._wire.sock.sendall(STATUS)
        self._wire.expect(READY)
        positions = self._out.array if self._mapped is None else self._mapped[0]
        positions[: self._count] = array
        self._wire.sock.sendall(raw(self._out.bytes))

    def get(self) -> Array:
        """See `Exchange.get`."""
        self._wire.sock.sendall(STATUS)
        self._wire.expect(HAVEDATA)
        self._wire.sock.sendall(GETFORCE)
        self._wire.expect(FORCEREADY)
        self._wire.fill(raw(self._forces.bytes))
        self._taken[:] = self._forces.array if self._mapped is None else self._mapped[1]
        return self._taken[: self._count]

    def close(self) -> None:
        """See `Exchange.close`."""
        self._wire.sock.sendall(EXIT)
        self._wire.sock.close()


def consume(place: Place, *, unix: bool, shared: bool) -> None:
    """Consumer: a driver, which connects."""
    address = announced(place.folder)
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    sock.connect(address if unix else ("127.0.0.1", int(address)))
    wire, values = Wire(sock, IDLE_S), padded(place.count)
    head = 0 if shared else CELLS
    asked = Message(head + 4, 0 if shared else values, 0)
    told = Message(WORD + 8 + 4, 0 if shared else values, 9 * 8 + 4)
    told.bytes[:WORD] = np.frombuffer(FORCEREADY, np.uint8)
    arrays = mapped(place, "r+") if shared else (asked.array, told.array)
    done = False
    with sock:
        while (word := wire.word()) != EXIT:
            if word == STATUS:
                sock.sendall(HAVEDATA if done else READY)
            elif word == POSDATA:
                wire.fill(raw(asked.bytes))
                respond(arrays[0], arrays[1])
                done = True
            elif word == GETFORCE:
                sock.sendall(raw(told.bytes))
                done = False
            else:
                raise ConnectionError(f"{word!r} is no word of the i-PI protocol")


def mapped(place: Place, mode: Literal["w+", "r+"]) -> tuple[Array, Array]:
    """Positions and forces in mapped files."""
    names = (place.folder / "positions", place.folder / "forces")
    one, two = (np.memmap(name, np.float64, mode, shape=(padded(place.count),)) for name in names)
    return one, two


def peer(name: str, *, unix: bool, shared: bool = False) -> Peer:
    how = {"unix": unix, "shared": shared}
    return Peer(f"i-PI protocol, {name}", partial(Positions, **how), partial(consume, **how))


PEERS = (peer("unix", unix=True), peer("tcp", unix=False), peer("shared memory", unix=True, shared=True))
