"""A rank's way into the ADIOS2 stream of its node, which a courier writes.

The first rank of a node that streams starts the courier; the others find it by its socket in the run's folder in shared
memory. The socket has the name of the stream, so that a courier that died and one that came after it differ.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import subprocess
import sys
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from coupler.bulks.adios_engine import knock_file
from coupler.bulks.courier import FAILED, HEAD_BYTES, LEAVE_S, OPENED, Begin, Parcel, framed
from coupler.bulks.growing import GrowingRing
from coupler.bulks.shared import RingFile
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import Block, FieldSpec
from schemas.messages import Place

SLOTS = 12
UNWRITTEN_BYTES = 1 << 16
"""Descriptors that may wait for room in the socket."""
BUSY_S, SILENT_S, START_S, LOOK_S = 0.2, 10.0, 60.0, 1.0
"""A courier that says nothing for so long gets no more states: by then the server has given up the last one. Later it
is given up itself; while it starts, later still. A pause between two looks counts as `LOOK_S` at most: a whole job may
be stopped and go on."""
SUFFIX = ".courier"
READ_BYTES = 1 << 12
MOST_RANKS = 1024
"""Ranks that may come at once."""


class Crowded(LinkError):
    """The courier does not keep up, or has no stream yet: this state must go another way."""


class NodeStream:
    """Owned by one thread; no call waits.

    Attributes:
        name: Name of the stream.
        process: The courier, where this rank started it.
        opened: Whether there is a stream. Before that, no state is given to it.
    """

    def __init__(
        self, contacts: Path, fields: Sequence[FieldSpec], parameters: Mapping[str, str], folder: Path, stem: str
    ) -> None:
        """Joins the stream of this node, or begins it.

        Args:
            contacts: Folder of the streams' contact files, which the server sees.
            fields: The fields that steps hold.
            parameters: Parameters of the SST engine.
            folder: Folder of the run in shared memory.
            stem: Begin of the ring's name.

        Raises:
            LinkError: There is no courier and none can be started.
        """
        self._folder, self._contacts = folder, contacts
        self._ring = GrowingRing(lambda capacity: RingFile(folder, stem, capacity, SLOTS))
        self._number = self._told = 0
        self._unwritten, self._unread = bytearray(), bytearray()
        self.opened = False
        self._silent_s, self._looked = 0.0, clock.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self._line = socket.socket(socket.AF_UNIX)
        self._line.setblocking(False)
        try:
            with _alone(folder):
                self.name = self._join() or self._begin(contacts)
        except OSError as error:
            self._line.close()
            raise LinkError(f"no stream can be begun in {folder}: {error.strerror or error}") from error
        self._member = secrets.randbits(62)
        self._say(framed(Begin(self._member, tuple(fields), dict(parameters))))

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> Place:
        """Gives Blocks to the courier; the place where the server finds them.

        Raises:
            Crowded: All slots are in use, or the courier is busy, or has no stream yet.
            LinkError: The courier has ended or stopped, or there is no shared memory.
        """
        self._look()
        if not self.opened:
            raise Crowded(f"the courier of {self.name} has no stream yet")
        room = self._silent_s <= BUSY_S and len(self._unwritten) <= UNWRITTEN_BYTES
        if not room or (found := self._ring.put(blocks)) is None:
            raise Crowded(f"the courier of {self.name} does not keep up")
        ring, slot, places = found
        table = tuple(wire.entry(name, blocks[name], place) for name, place in places.items())
        self._say(framed(Parcel(self._number, step, time, table)))
        ring.sent(slot, self._number)
        self._number += 1
        return Place("adios", self.name, self._member, self._number - 1, 0)

    def close(self) -> None:
        """Leaves the stream, which ends with the last rank; a courier that cannot end it is killed."""
        self._line.close()
        if self.process is not None:
            try:
                self.process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            (self._folder / f"{self.name}{SUFFIX}").unlink(missing_ok=True)
            for left in (knock_file(self._contacts / self.name), self._contacts / f"{self.name}.sst"):
                left.unlink(missing_ok=True)  # by a courier that was killed
        self._ring.close()

    def _join(self) -> str:
        """Connects to the courier of this node; the name of its stream, none when there is no courier."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            try:
                self._line.connect(str(path))
            except ConnectionRefusedError:  # of a courier that was killed
                path.unlink()
            else:
                return path.name.removesuffix(SUFFIX)
        return ""

    def _begin(self, contacts: Path) -> str:
        """Starts a courier and connects to it before it is there: it takes the socket over; the name of its stream."""
        name = f"node-{secrets.token_hex(8)}"
        path = self._folder / f"{name}{SUFFIX}"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
            listening.listen(MOST_RANKS)
            self._line.connect(str(path))
            command = [sys.executable, "-m", "coupler.bulks.courier", str(listening.fileno())]
            command += [str(contacts / name), str(self._folder)]
            self.process = subprocess.Popen(command, pass_fds=[listening.fileno()], stdin=subprocess.DEVNULL)
        return name

    def _say(self, message: bytes) -> None:
        self._unwritten += message
        self._write()

    def _write(self) -> None:
        try:
            while self._unwritten:
                del self._unwritten[: self._line.send(self._unwritten)]
        except BlockingIOError:
            return
        except OSError as error:
            self._listen()  # it may have said why
            raise self._ended() from error

    def _look(self) -> None:
        """Sees what the courier has done since.

        Raises:
            LinkError: It has ended, or does nothing any more.
        """
        heard = self._listen()
        self._write()
        now = clock.monotonic()
        owes = not self.opened or self._told < self._number
        self._silent_s = self._silent_s + min(now - self._looked, LOOK_S) if owes and not heard else 0.0
        self._looked = now
        if self._silent_s > (SILENT_S if self.opened else START_S):
            raise LinkError(f"the courier of {self.name} has done nothing for {self._silent_s:.0f} s")

    def _listen(self) -> bool:
        """Takes in what the courier says, and frees the slots of what was written; whether it said anything.

        Raises:
            LinkError: It has ended.
        """
        try:
            said = self._line.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise self._ended() from error
        self._unread += said
        while len(self._unread) >= HEAD_BYTES and (number := _number(self._unread)) != FAILED:
            del self._unread[:HEAD_BYTES]
            self.opened = self.opened or number == OPENED
            self._told = number + 1
            self._ring.free(number)
        if not said or self._unread:
            raise self._ended()
        return True

    def _ended(self) -> LinkError:
        code = self.process.poll() if self.process is not None else None
        why = self._unread[HEAD_BYTES:].decode(errors="replace")
        told = f": {why}" if why else "" if code is None else f" with code {code}"
        return LinkError(f"the courier of {self.name} has ended{told}")


def _number(said: bytearray) -> int:
    return int.from_bytes(said[:HEAD_BYTES], "little", signed=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other rank of this node is here at the same time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
