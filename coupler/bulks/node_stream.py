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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from coupler.bulks.courier import LEAVE_S, Begin, Parcel, framed
from coupler.bulks.ring import needed
from coupler.bulks.shared import RingFile
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import Block, FieldSpec
from schemas.messages import Place

SLOTS = 12
UNWRITTEN_BYTES = 1 << 16
"""Descriptors that may wait for room in the socket."""
SUFFIX = ".courier"
MOST_RANKS = 1024
"""Ranks that may come at once."""


class Crowded(LinkError):
    """The courier does not keep up: this state must go another way."""


class NodeStream:
    """Owned by one thread; no call waits.

    Attributes:
        name: Name of the stream.
        process: The courier, where this rank started it.
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
        self._folder, self._stem = folder, stem
        self._file: RingFile | None = None
        self._number = 0
        self._unwritten = bytearray()
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
            Crowded: All slots are in use.
            LinkError: The courier has ended, or there is no shared memory.
        """
        self._listen()
        if self._file is None or not self._file.ring.fits(blocks):
            if self._file is not None:
                self._file.close()  # what is under way in it can still be read: the courier has mapped it
            self._file = RingFile(self._folder, self._stem, needed(blocks), SLOTS)
        ring = self._file.ring
        found = ring.put(blocks)
        if found is None or len(self._unwritten) > UNWRITTEN_BYTES:
            if found is not None:
                ring.undo(found[0])
            raise Crowded(f"the courier of {self.name} does not keep up")
        slot, places = found
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
        if self._file is not None:
            self._file.close()

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
            raise LinkError(f"the courier of {self.name} has ended{self._code()}") from error

    def _code(self) -> str:
        code = self.process.poll() if self.process is not None else None
        return "" if code is None else f" with code {code}"

    def _listen(self) -> None:
        """Frees the slots of what was written."""
        self._write()
        try:
            said = self._line.recv(4 * SLOTS)
        except (BlockingIOError, ConnectionError):  # `_say` finds out that it has ended
            return
        if said and self._file is not None:
            self._file.ring.free(int.from_bytes(said[-4:], "little"))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other rank of this node is here at the same time."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
