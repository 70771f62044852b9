"""ZeroMQ links: ROUTER listens, DEALER connects, over ipc on one machine or tcp between machines.

What libzmq does not promise is promised here or denied here:

- A message goes whole to a peer that is connected now and has room, or `send` says False. A True still means only
  "taken": what sits in a queue or on the wire when a peer dies is lost, or reaches the peer that comes in its place,
  whose epoch fences it off. The layer above resends or gives up.
- What has arrived can be read, also when its sender has gone meanwhile: a last word (acknowledgement, Halt) waits for
  a peer that is busy. So libzmq's option `immediate`, which would let it say by itself whether there is a connection,
  is not for the connecting side: with it, the end of a connection throws away what nobody has read. The connecting
  side has libzmq tell it when connections begin and end.
- `send` copies, so the caller may change its arrays at once. Copying costs no more than the alternatives up to
  30 MB a frame (`benchmarks/links.py`): zero copy without waiting would let the solver overwrite a frame under way,
  waiting for libzmq to let go takes longer than the copy, and a staging buffer copies as well. What nobody changes
  before it has arrived goes by `send_in_place` without a copy. Received frames are not copied.
- Memory is bounded by bytes: a message has at most `max_message_bytes`, and a queue `queue_messages` of them.
- A restarted peer takes over its identity. Messages of its earlier connection that are unread by then are dropped:
  those of a live connection by libzmq, those of a dead one here (and counted), because they have lost their name.
- Each link has a libzmq context of its own (one I/O thread), so `close` leaves no socket, thread or file behind, and a
  listener's allow-list answers for this listener alone. A link does not survive `fork`; start processes with spawn.
- The first `send_in_place` of a large frame starts a thread of pyzmq, which hears when frames have left. It serves the
  whole process and ends with it.

A peer that reads nothing while its queue is full is, to libzmq's heartbeats, the same as a dead one, since it stops
answering pings: on tcp it is disconnected after `2 * heartbeat_s`, loses what was under way and is connected again.
So the layer above keeps fewer than half of `queue_messages` messages unanswered (credit); then pings are answered
however busy the peer's Python thread is. ipc has no heartbeats: the kernel reports a dead peer there, and a stopped
one is a matter of deadlines.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass

import zmq

from coupler.contracts import Frames
from coupler.errors import LinkError
from coupler.links.security import (
    AllowList,
    ClientKeys,
    ServerKeys,
    connect_address,
    listen_address,
    secure_client,
    secure_server,
)

# Plain integers: combining pyzmq's enums costs more than a system call.
_DONTWAIT, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT) | int(zmq.SNDMORE)
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_CONNECTED, _DISCONNECTED = int(zmq.EVENT_HANDSHAKE_SUCCEEDED), int(zmq.EVENT_DISCONNECTED)
IDENTITY_BYTES = 255
"""Longest peer identity (ZMTP 3.1)."""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of a link, the same on both sides.

    Attributes:
        max_message_bytes: Largest message, all frames together. A peer that sends a larger frame is disconnected.
        queue_bytes: Memory that each of the two queues of a peer (one at the sender, one at the receiver) may take.
        heartbeat_s: Seconds between pings on tcp; a peer silent for twice as long is disconnected. 0 for none.
        reconnect_s: Seconds before a connecting side tries again; it doubles up to `reconnect_max_s`.
        reconnect_max_s: Longest pause between two tries, in seconds.
    """

    max_message_bytes: int = 16 * 2**20
    queue_bytes: int = 256 * 2**20
    heartbeat_s: float = 0.5
    reconnect_s: float = 0.01
    reconnect_max_s: float = 0.2

    def __post_init__(self) -> None:
        if self.max_message_bytes <= 0 or self.queue_bytes < 2 * self.max_message_bytes:
            raise LinkError(
                f"queue_bytes = {self.queue_bytes} cannot hold two messages of max_message_bytes = "
                f"{self.max_message_bytes}; raise queue_bytes, or lower max_message_bytes to what a step needs"
            )

    @property
    def queue_messages(self) -> int:
        """Messages that each queue may hold, at most 1000.

        libzmq reports reads in batches of half a queue. So a queue that has been read empty may count as half full:
        what must never be refused, such as a credit window, should fit into half of it.
        """
        return min(1000, self.queue_bytes // self.max_message_bytes)


class ZmqLink:
    """What both sides share. Made by `listen` and `connect`; owned by one thread of one process.

    Attributes:
        address: Where it listens or connects to, with the real port.
        refused: Messages dropped on arrival: too large, or from a connection without a name.
    """

    def __init__(self, kind: zmq.SocketType, limits: LinkLimits) -> None:
        """Makes the socket and sets what both sides have in common."""
        self.address = ""
        self.refused = 0
        self._limits = limits
        self._pid = os.getpid()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(kind)
        self._allow_list: AllowList | None = None
        self._closed = False
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = limits.queue_messages
        self._socket.maxmsgsize = limits.max_message_bytes
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """See `Link.receive`. Waits in poll(), to the next whole millisecond. The frames are read-only."""
        self._check()
        left = timeout_s
        deadline = time.monotonic() + timeout_s
        while True:
            if left > 0:  # polling first is 5 us cheaper than trying in vain first, and costs 2 us if one is there
                self._poller.poll(math.ceil(left * 1000))
            if self._allow_list is not None:
                self._allow_list.answer()
            try:
                message = self._take()
            except zmq.Again:  # EVENTS spoke of a connection that has gone meanwhile
                message = None
            if message is not None or timeout_s <= 0 or (left := deadline - time.monotonic()) <= 0:
                return message

    def close(self, linger_s: float = 0.0) -> None:
        """See `Link.close`. Waits up to linger_s seconds for messages that `send` took to leave this process."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        self._socket.close(linger=round(linger_s * 1000))
        if self._allow_list is not None:
            self._allow_list.socket.close(linger=0)
        self._context.term()

    def _set_transport(self, target: str) -> None:
        """Sets what depends on the address: heartbeats on tcp, and IPv6."""
        self._socket.ipv6 = "[" in target
        if target.startswith("tcp://") and self._limits.heartbeat_s > 0:
            self._socket.heartbeat_ivl = round(self._limits.heartbeat_s * 1000)
            self._socket.heartbeat_timeout = round(self._limits.heartbeat_s * 2000)

    def _take(self) -> tuple[bytes, list[memoryview]] | None:
        """The next message that has arrived, without those that are refused."""
        raise NotImplementedError

    def _is_here(self) -> bool:
        """Whether a message can be taken without waiting; half the cost of trying to in vain."""
        return bool(int(self._socket.get(_EVENTS)) & _POLLIN)

    def _frames(self, first: zmq.Frame) -> list[memoryview] | None:
        """The frames of the message that begins with `first`, or None when together they are too large."""
        frames, frame = [first.buffer.toreadonly()], first
        while frame.more:
            frame = self._socket.recv(copy=False)
            frames.append(frame.buffer.toreadonly())
        if sum(map(len, frames)) > self._limits.max_message_bytes:
            self.refused += 1
            return None
        return frames

    def _put(self, frames: Frames, copy: bool) -> bool:
        """Hands one message to libzmq, which takes it whole or refuses its first frame; that is always copied."""
        if not self._put_first(frames[0], len(frames) > 1):
            # For about a millisecond after a look at its mailbox, libzmq's send does not look again and takes a queue
            # for full that has been emptied meanwhile. Asking for EVENTS makes it look.
            self._socket.get(_EVENTS)
            if not self._put_first(frames[0], len(frames) > 1):
                return False
        for frame in frames[1:-1]:
            self._socket.send(frame, _MORE, copy)
        if len(frames) > 1:
            self._socket.send(frames[-1], _DONTWAIT, copy)
        return True

    def _put_first(self, frame: bytes | memoryview, more: bool) -> bool:
        """Offers the first frame. False when there is no room or no such peer."""
        try:
            self._socket.send(frame, _MORE if more else _DONTWAIT)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True

    def _check(self, frames: Frames | None = None) -> None:
        """Raises LinkError when this link cannot be used here, or a message can never be sent."""
        if self._closed:
            raise LinkError(f"the link on {self.address} is closed")
        if os.getpid() != self._pid:
            raise LinkError("a link does not survive fork; start the process with spawn and open a link there")
        if frames is None:
            return
        size = sum(f.nbytes if isinstance(f, memoryview) else len(f) for f in frames)
        if not frames or size > self._limits.max_message_bytes:
            raise LinkError(
                f"a message of {len(frames)} frames and {size} bytes cannot be sent; the link takes one frame or more "
                f"and up to max_message_bytes = {self._limits.max_message_bytes} bytes"
            )


class ZmqListener(ZmqLink):
    """The listening side: a ROUTER, with any number of peers."""

    def __init__(self, address: str, limits: LinkLimits, keys: ServerKeys | None) -> None:
        """See `listen`."""
        target = listen_address(address, encrypted=keys is not None)
        super().__init__(zmq.ROUTER, limits)
        self._file: tuple[int, int] | None = None
        try:
            self._socket.router_mandatory = True
            self._socket.router_handover = True
            if keys is not None:
                self._allow_list = secure_server(self._context, self._socket, keys)
                self._poller.register(self._allow_list.socket, zmq.POLLIN)
            self._set_transport(target)
            self._socket.bind(target)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(f"cannot listen on {address}: {error.strerror}") from error
        self.address = str(self._socket.get_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self._file = _identity_of(self.address)

    def close(self, linger_s: float = 0.0) -> None:
        """See `ZmqLink.close`. Removes the socket file, unless a successor has already put its own there."""
        super().close(linger_s)
        if self._file is not None and self._file == _identity_of(self.address) and os.getpid() == self._pid:
            os.unlink(self.address.removeprefix("ipc://"))
        self._file = None

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link.send`."""
        self._check(frames)
        return self._put([peer, *frames], copy=True)

    def send_in_place(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link`."""
        self._check(frames)
        return self._put([peer, *frames], copy=False)

    def _take(self) -> tuple[bytes, list[memoryview]] | None:
        while self._is_here():
            peer = self._socket.recv(_DONTWAIT)
            frames = self._frames(self._socket.recv(copy=False))
            # libzmq names a connection without an identity, or one that has lost it to a newer one, by a zero byte
            # and a number. Nobody can be answered under such a name.
            if peer[:1] == b"\0":
                self.refused += 1
            elif frames is not None:
                return peer, frames
        return None


class ZmqConnection(ZmqLink):
    """The connecting side: a DEALER. Connects again by itself; between connections `send` says False."""

    _NEWS = "inproc://news"

    def __init__(self, address: str, identity: bytes, limits: LinkLimits, keys: ClientKeys | None) -> None:
        """See `connect`."""
        if not 1 <= len(identity) <= IDENTITY_BYTES or identity[0] == 0:
            raise LinkError(
                f"identity {identity!r} must have 1 to {IDENTITY_BYTES} bytes and not begin with a zero byte"
            )
        target = connect_address(address, encrypted=keys is not None)
        super().__init__(zmq.DEALER, limits)
        self.address = target
        self._connected, self._meetings = False, 0
        self._news = self._context.socket(zmq.PAIR)
        self._news.linger = self._news.rcvhwm = 0  # no bound: libzmq's own thread would wait for room
        try:
            self._socket.identity = identity
            self._socket.monitor(self._NEWS, _CONNECTED | _DISCONNECTED)
            self._news.connect(self._NEWS)
            self._socket.reconnect_ivl = max(1, round(limits.reconnect_s * 1000))
            self._socket.reconnect_ivl_max = round(limits.reconnect_max_s * 1000)
            if keys is not None:
                secure_client(self._socket, keys)
            self._set_transport(target)
            self._socket.connect(target)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(f"cannot connect to {address}: {error.strerror}") from error

    @property
    def connected(self) -> bool:
        """Whether the listener is there, as far as this side has heard."""
        self._hear()
        return self._connected

    @property
    def meetings(self) -> int:
        """How often a listener came, as far as this side has heard: each may be another one."""
        self._hear()
        return self._meetings

    def _hear(self) -> None:
        while int(self._news.get(_EVENTS)) & _POLLIN:
            event, _ = self._news.recv_multipart(_DONTWAIT)
            self._connected = int.from_bytes(event[:2], sys.byteorder) == _CONNECTED
            self._meetings += self._connected

    def send(self, frames: Frames, peer: bytes = b"") -> bool:  # noqa: ARG002 - one peer only, as the contract says
        """See `Link.send`."""
        self._check(frames)
        return self.connected and self._put(frames, copy=True)

    def send_in_place(self, frames: Frames, peer: bytes = b"") -> bool:  # noqa: ARG002
        """See `Link`."""
        self._check(frames)
        return self.connected and self._put(frames, copy=False)

    def close(self, linger_s: float = 0.0) -> None:
        """See `ZmqLink.close`. Waits for nobody where there is no connection."""
        if not self._closed and os.getpid() == self._pid:
            linger_s = linger_s if self.connected else 0.0
            self._socket.monitor(None, 0)  # before its other end goes, for which libzmq's thread would wait
            self._news.close()
        super().close(linger_s)

    def _take(self) -> tuple[bytes, list[memoryview]] | None:
        while self._is_here():
            frames = self._frames(self._socket.recv(_DONTWAIT, copy=False))
            if frames is not None:
                return b"", frames
        return None


def listen(address: str, *, limits: LinkLimits, keys: ServerKeys | None = None) -> ZmqListener:
    """Opens the listening side.

    Args:
        address: `ipc:///directory/name`, or `tcp://host:port` where port 0 or `*` takes a free one.
        limits: Bounds; give both sides the same.
        keys: CURVE keys; needed for tcp beyond loopback.

    Raises:
        LinkError: The address breaks a rule of `coupler.links.security` or is in use.
    """
    return ZmqListener(address, limits, keys)


def connect(address: str, *, identity: bytes, limits: LinkLimits, keys: ClientKeys | None = None) -> ZmqConnection:
    """Opens a connecting side. The listener may come later; until then `send` says False.

    Args:
        address: The listener's `address`.
        identity: The name under which the listener knows this peer, 1 to 255 bytes, the first not zero. A second
            connection with the same identity takes the name over.
        limits: Bounds; give both sides the same.
        keys: CURVE keys; needed for tcp beyond loopback.

    Raises:
        LinkError: The address or the identity breaks a rule.
    """
    return ZmqConnection(address, identity, limits, keys)


def _identity_of(address: str) -> tuple[int, int] | None:
    """Device and inode of the socket file of an ipc address; None when there is none."""
    try:
        status = os.stat(address.removeprefix("ipc://"))
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
