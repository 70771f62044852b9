"""Links inside one process: between threads, or within one thread in the inline rung."""

from __future__ import annotations

import threading
from collections import deque

from coupler.contracts import Frames
from coupler.errors import LinkError

_MESSAGE_COST = 64
"""Bytes charged for a message besides its frames, so that empty messages are bounded too."""


class MemoryHub:
    """Where the links of one process meet: one listening side, and connecting sides by identity.

    Behaves as the ZeroMQ links do. Every peer has a queue of its own in each direction. A message to a side that is
    not there is not taken. A second `connect` with the same identity takes the name over: the older link stays open
    but is cut off, and what it had sent and nobody has read is dropped. After the listening side has closed, `listen`
    may be called again.
    """

    def __init__(self, *, capacity_bytes: int) -> None:
        """Args: capacity_bytes: Size of each queue: frames plus 64 bytes a message. Nothing larger can be sent."""
        self._capacity = capacity_bytes
        self._change = threading.Condition()
        self._listener: MemoryListener | None = None
        self._connections: dict[bytes, MemoryConnection] = {}

    def listen(self) -> MemoryListener:
        """Opens the listening side.

        Raises:
            LinkError: Another one is open.
        """
        with self._change:
            if self._listener is not None:
                raise LinkError("this hub has a listening side already; close it first")
            self._listener = MemoryListener(self, self._change)
            return self._listener

    def connect(self, identity: bytes) -> MemoryConnection:
        """Opens a connecting side under a name of one byte or more. The listening side may come later.

        Raises:
            LinkError: The identity is empty.
        """
        if not identity:
            raise LinkError("a connecting side needs an identity of one byte or more")
        with self._change:
            self._forget(identity)
            connection = self._connections[identity] = MemoryConnection(self, self._change, identity)
            return connection

    def _cost(self, frames: Frames) -> int:
        """Bytes that a message takes in a queue."""
        cost = _MESSAGE_COST + sum(f.nbytes if isinstance(f, memoryview) else len(f) for f in frames)
        if not frames or cost > self._capacity:
            raise LinkError(
                f"a message of {len(frames)} frames that takes {cost} bytes cannot be sent; the hub takes one frame or "
                f"more and up to capacity_bytes = {self._capacity}"
            )
        return cost

    def _forget(self, identity: bytes) -> None:
        """Takes an identity out of the hub, with what it had sent."""
        self._connections.pop(identity, None)
        if self._listener is not None:
            self._listener.discard(identity)


class _Queue:
    """Messages in order, bounded by bytes for each peer. Called with the hub's lock held."""

    def __init__(self) -> None:
        self._messages: deque[tuple[bytes, list[bytes], int]] = deque()
        self._used: dict[bytes, int] = {}

    def put(self, peer: bytes, frames: Frames, cost: int, capacity: int) -> bool:
        """Copies a message in, unless the peer has no room left."""
        used = self._used.get(peer, 0) + cost
        if used > capacity:
            return False
        self._messages.append((peer, [bytes(frame) for frame in frames], cost))
        self._used[peer] = used
        return True

    def take(self) -> tuple[bytes, list[memoryview]] | None:
        """The oldest message, or None."""
        if not self._messages:
            return None
        peer, frames, cost = self._messages.popleft()
        self._used[peer] -= cost
        return peer, [memoryview(frame) for frame in frames]

    def discard(self, peer: bytes) -> None:
        """Drops all messages of one peer."""
        self._messages = deque(message for message in self._messages if message[0] != peer)
        self._used.pop(peer, None)


class _MemoryLink:
    """What both sides share: an incoming queue, and waiting for it."""

    def __init__(self, hub: MemoryHub, change: threading.Condition) -> None:
        self._hub = hub
        self._change = change
        self._incoming = _Queue()
        self._closed = False

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """See `Link.receive`. The frames are read-only."""
        with self._change:
            self._check()
            message = self._incoming.take()
            if message is None and timeout_s > 0:
                message = self._change.wait_for(self._incoming.take, timeout_s)
            return message

    def _check(self) -> None:
        if self._closed:
            raise LinkError("this link is closed")


class MemoryListener(_MemoryLink):
    """The listening side of a hub."""

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link.send`. The frames are copied: the caller may change its arrays at once."""
        with self._change:
            self._check()
            cost = self._hub._cost(frames)
            receiver = self._hub._connections.get(peer)
            if receiver is None or not receiver._incoming.put(b"", frames, cost, self._hub._capacity):
                return False
            self._change.notify_all()
            return True

    def discard(self, peer: bytes) -> None:
        """Drops what one peer has sent and nobody has read. Called by the hub, with its lock held."""
        self._incoming.discard(peer)

    def close(self, linger_s: float = 0.0) -> None:  # noqa: ARG002 - nothing is ever under way in memory
        """See `Link.close`."""
        with self._change:
            if self._hub._listener is self:
                self._hub._listener = None
            self._closed = True


class MemoryConnection(_MemoryLink):
    """A connecting side of a hub."""

    def __init__(self, hub: MemoryHub, change: threading.Condition, identity: bytes) -> None:
        """Made by `MemoryHub.connect`."""
        super().__init__(hub, change)
        self._identity = identity

    def send(self, frames: Frames, peer: bytes = b"") -> bool:  # noqa: ARG002 - one peer only, as the contract says
        """See `Link.send`. The frames are copied: the caller may change its arrays at once."""
        with self._change:
            self._check()
            cost = self._hub._cost(frames)
            receiver = self._hub._listener
            if receiver is None or self._hub._connections.get(self._identity) is not self:
                return False
            if not receiver._incoming.put(self._identity, frames, cost, self._hub._capacity):
                return False
            self._change.notify_all()
            return True

    def close(self, linger_s: float = 0.0) -> None:  # noqa: ARG002 - nothing is ever under way in memory
        """See `Link.close`. What was sent before can still be read by the listening side."""
        with self._change:
            if self._hub._connections.get(self._identity) is self:
                del self._hub._connections[self._identity]
            self._closed = True
