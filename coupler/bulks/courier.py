"""A courier: the process that writes the ADIOS2 stream of a node, so that nothing SST does can hold a rank.

SST may wait for ever in the end of a step when its reader is killed at that moment (seen once in six kills, ADIOS2
2.12.1), and the bindings keep the interpreter's lock meanwhile. So a rank puts its Blocks into a ring in shared memory
and names the slot through a socket that it never waits for (`coupler.bulks.node_stream`). The courier joins what the
ranks of its node put in one coupling step into one step of the stream, writes it and says so.

    rank -> courier   length (4 bytes, little-endian), then MessagePack: first `Begin`, then `Parcel`s; the end of the
                      connection takes the rank out
    courier -> rank   numbers of 4 bytes, little-endian: that of each of its parcels that was written; before them
                      `OPENED`, once there is a stream; or `FAILED`, and why as text

It ends when the last rank has left.
"""

from __future__ import annotations

import faulthandler
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from coupler.bulks.adios import AdiosWriter
from coupler.bulks.parts import Part
from coupler.bulks.shared import RingReader
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import FieldSpec, undeclared
from schemas.messages import BlockEntry

IDLE_S, LONGEST_IDLE_S = 0.02, 0.5
"""With nothing to write, the courier looks this often whether a reader is opening the stream; later less often."""
KNOCKED_S = (0.1, 0.3, 0.7, 1.5, 3.1, 6.3)
"""So long after such a reader came, it comes by. SST takes a tenth of a second, on a busy machine more, and the reserve
holds what the reader came for while no more than three empty steps follow."""
HOLD_S = 1.0
"""States wait so long for a reader that opens the stream: written, they would push each other out of the reserve."""
REMINDERS_S = (1.0, 3.0, 9.0, 27.0)
"""So long after a step with something in it, it comes by unasked, if there was a reader: one that is behind a dropped
step waits for the next."""
LATE_S = 0.005
"""How long a rank's parcel waits for those of the others. What comes later goes in a step of its own."""
LEAVE_S = 2.0
"""How long a courier may take to end its stream before it is killed."""
HEAD_BYTES = 4
OPENED, FAILED = -1, -2


class Begin(msgspec.Struct, frozen=True, array_like=True):
    """Who comes, and what the stream holds.

    Attributes:
        member: Name of the rank in the stream.
        fields: The fields of which it puts Blocks.
        parameters: Parameters of the SST engine.
    """

    member: int
    fields: tuple[FieldSpec, ...]
    parameters: dict[str, str]


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """What a rank puts: its table names slots of the rank's ring."""

    number: int
    step: int
    time: float
    table: tuple[BlockEntry, ...]


def framed(message: Begin | Parcel) -> bytes:
    """A message as it travels to the courier."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "little") + body


@dataclass(slots=True)
class Member:
    """A rank, seen by the courier.

    Attributes:
        line: Connection to it.
        begin: How it introduced itself; None before it has.
        parcels: What it put and was not written yet, each with the time at which it came.
        gone: Whether the connection has ended.
        opened: Whether it knows that there is a stream.
    """

    line: socket.socket
    begin: Begin | None = None
    parcels: deque[tuple[float, Parcel]] = field(default_factory=deque)
    gone: bool = False
    opened: bool = False
    _unread: bytearray = field(default_factory=bytearray)

    def hear(self, now: float) -> None:
        """Takes in what has come."""
        try:
            came = self.line.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            came = b""
        self.gone = not came
        self._unread += came
        while (body := self._next()) is not None:
            if self.begin is None:
                self.begin = msgspec.msgpack.decode(body, type=Begin)
            else:
                self.parcels.append((now, msgspec.msgpack.decode(body, type=Parcel)))

    def told(self, number: int, why: str = "") -> None:
        """Says a number, unless the rank is gone or does not listen: a later one says it too."""
        with suppress(OSError):
            self.line.send(number.to_bytes(4, "little", signed=True) + why.encode())

    def _next(self) -> bytes | None:
        size = int.from_bytes(self._unread[:HEAD_BYTES], "little")
        if len(self._unread) < HEAD_BYTES or len(self._unread) < HEAD_BYTES + size:
            return None
        body = bytes(self._unread[HEAD_BYTES : HEAD_BYTES + size])
        del self._unread[: HEAD_BYTES + size]
        return body


def due(members: list[Member], now: float) -> list[Member]:
    """Those whose oldest parcels make the next step of the stream. None while others of the same step may come."""
    waiting = [member for member in members if member.parcels]
    if not waiting:
        return []
    first = min(waiting, key=lambda member: member.parcels[0][0])
    since, parcel = first.parcels[0]
    if len(waiting) < len(members) and now - since < LATE_S:
        return []
    return [member for member in waiting if member.parcels[0][1].step == parcel.step]


class Courier:
    """The process's one object."""

    def __init__(self, listening: socket.socket, path: Path, folder: Path) -> None:
        """Makes it.

        Args:
            listening: Socket at which ranks come, one of them already.
            path: Of the stream's contact file, without its suffix.
            folder: Folder of the run in shared memory.
        """
        self._listening, self._path = listening, path
        self._rings = RingReader(folder, writable=True)  # ADIOS2 takes no arrays that are read-only
        self._members: list[Member] = []
        self._writer: AdiosWriter | None = None
        self._idle_s, self._hold_until = IDLE_S, 0.0
        self._knock, self._is_read, self._was_read = b"", False, False
        self._visits: list[float] = []
        self._selector = selectors.DefaultSelector()
        listening.setblocking(False)
        self._selector.register(listening, selectors.EVENT_READ)

    def carry(self) -> None:
        """Carries until the last rank has left.

        Raises:
            LinkError: The stream fails. The ranks were told why.
        """
        try:
            self._carry()
        except LinkError as error:
            for member in self._members:
                member.told(FAILED, str(error))
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, LEAVE_S)  # it ends a process that hangs, also in C
        if self._writer is not None:
            self._writer.close()

    def _carry(self) -> None:
        came = False
        while self._members or not came:
            heard = self._hear()
            came = came or bool(self._members)
            if self._writer is not None and (self._holds() or not heard):
                self._come_by(self._writer, time.monotonic())
            while not self._holds() and (ready := due(self._members, time.monotonic())):
                self._write(ready)
            for member in [m for m in self._members if m.gone and not m.parcels]:
                self._selector.unregister(member.line)
                member.line.close()
                self._members.remove(member)

    def _holds(self) -> bool:
        return time.monotonic() < self._hold_until

    def _come_by(self, writer: AdiosWriter, now: float) -> None:
        """Only for readers that need it, since it takes room in the queue from what holds something."""
        knock = writer.wanted()
        self._idle_s = IDLE_S if knock else min(1.1 * self._idle_s, LONGEST_IDLE_S)
        if knock != self._knock:
            self._knock, self._is_read, self._was_read = knock, not knock, True
            self._visits = [now + later for later in (KNOCKED_S if knock else REMINDERS_S)]
            self._hold_until = now + HOLD_S if knock else 0.0
        if self._visits and now > self._visits[0]:
            self._visits.pop(0)
            writer.come_by()

    def _hear(self) -> bool:
        """Takes in what comes; whether anything did, or is still waiting for others."""
        waiting = any(member.parcels for member in self._members)
        events = self._selector.select(LATE_S if waiting else self._idle_s)
        for key, _ in events:
            if key.fileobj is self._listening:
                self._admit()
            elif not key.data.gone:
                key.data.hear(time.monotonic())
                self._open(key.data)
        return waiting or bool(events)

    def _admit(self) -> None:
        line, _ = self._listening.accept()
        line.setblocking(False)
        self._members.append(Member(line))
        self._selector.register(line, selectors.EVENT_READ, self._members[-1])

    def _open(self, member: Member) -> None:
        if member.begin is None or member.opened:
            return
        if self._writer is None:
            self._writer = AdiosWriter(self._path, member.begin.fields, member.begin.parameters)
        member.told(OPENED)
        member.opened = True

    def _write(self, ready: list[Member]) -> None:
        assert self._writer is not None
        parts, written = [], []
        for member in ready:
            assert member.begin is not None  # it comes before any parcel
            _, parcel = member.parcels.popleft()
            written.append((member, parcel.number))
            try:
                blocks = wire.blocks_of(parcel.table, fetch=self._rings.fetch)
                if sentence := undeclared({spec.name: spec for spec in member.begin.fields}, blocks):
                    raise wire.WireError(f"At step {parcel.step}, {sentence}.")
            except wire.WireError as error:  # the others' parts go on; the server misses this one and says so
                sys.stderr.write(f"A part of the stream {self._path.name} is lost: {error}\n")
                continue
            parts.append(Part(member.begin.member, parcel.number, blocks))
        if parts:
            self._writer.put_parts(parcel.step, parcel.time, parts)
        for member, number in written:
            member.told(number)
        now = time.monotonic()
        self._idle_s, self._visits = IDLE_S, [now + later for later in REMINDERS_S if self._was_read]
        if not self._is_read:
            self._is_read, self._hold_until = True, now + HOLD_S


def main(listening: int, path: Path, folder: Path) -> None:
    """Carries for the ranks that come at a listening socket, given by its file descriptor."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's; the end of the connections is ours
    with socket.socket(fileno=listening) as at:
        try:
            Courier(at, path, folder).carry()
        except LinkError as error:
            sys.exit(f"The courier of {path.name} ends: {error}.")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
