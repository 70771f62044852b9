"""A courier: the process that writes a rank's ADIOS2 stream, so that nothing SST does can hold the rank.

SST may wait for ever in the end of a step when its reader is killed at that moment (seen once in six kills, ADIOS2
2.12.1), and the bindings keep the interpreter's lock meanwhile. So the rank puts its Blocks into a ring in shared
memory and names the slot through a pipe that it never waits for; the courier writes the step and says so.

    rank -> courier   length (4 bytes, little-endian), then MessagePack: first `Begin`, then `Parcel`s; the end of the
                      pipe ends the stream
    courier -> rank   the number of each step that was written, 4 bytes, little-endian
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from coupler.bulks.adios import AdiosWriter
from coupler.bulks.ring import needed
from coupler.bulks.shared import RingFile, RingReader
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import Block, FieldSpec
from schemas.messages import BlockEntry

STDIN, STDOUT = 0, 1
SLOTS = 12
IDLE_S = 0.02
"""With nothing to write, the courier comes by this often, for readers that are opening the stream."""
UNWRITTEN_BYTES = 1 << 16
"""Descriptors that may wait for room in the pipe."""
LEAVE_S = 2.0
"""How long a courier may take to end its stream before it is killed."""


class Crowded(LinkError):
    """The courier does not keep up: this state must go another way."""


class Begin(msgspec.Struct, frozen=True, array_like=True):
    """What the stream holds."""

    fields: tuple[FieldSpec, ...]
    parameters: dict[str, str]


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """A step: its table names slots of the rank's ring."""

    number: int
    step: int
    time: float
    table: tuple[BlockEntry, ...]


class Courier:
    """The rank's side. Owned by one thread; no call waits.

    Attributes:
        name: Name of the stream.
        pid: The process.
    """

    def __init__(
        self, path: Path, fields: Sequence[FieldSpec], parameters: Mapping[str, str], folder: Path, stem: str
    ) -> None:
        """Starts the process.

        Args:
            path: Of the stream's contact file, without its suffix.
            fields: The fields that steps hold.
            parameters: Parameters of the SST engine.
            folder: Folder of the run in shared memory.
            stem: Begin of the ring's name.
        """
        self.name = path.name
        self._folder, self._stem = folder, stem
        self._file: RingFile | None = None
        self._number = 0
        self._unwritten = bytearray()
        command = [sys.executable, "-m", "coupler.bulks.courier", str(path), str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.pid = self._process.pid
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._say(Begin(tuple(fields), dict(parameters)))

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> int:
        """Gives a step to the courier; its number.

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
        self._say(Parcel(self._number, step, time, table))
        ring.sent(slot, self._number)
        self._number += 1
        return self._number - 1

    def close(self) -> None:
        """Ends the stream; a courier that cannot is killed."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not written has nobody to read it
                pipe.close()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._file is not None:
            self._file.close()

    def _say(self, message: Begin | Parcel) -> None:
        body = msgspec.msgpack.encode(message)
        self._unwritten += len(body).to_bytes(4, "little") + body
        self._write()

    def _write(self) -> None:
        try:
            while self._unwritten:
                del self._unwritten[: os.write(self._to, self._unwritten)]
        except BlockingIOError:
            return
        except BrokenPipeError as error:
            raise LinkError(f"the courier of {self.name} has ended with code {self._process.poll()}") from error

    def _listen(self) -> None:
        """Frees the slots of what was written."""
        self._write()
        try:
            said = os.read(self._from, 4 * SLOTS)
        except BlockingIOError:
            return
        if said and self._file is not None:
            self._file.ring.free(int.from_bytes(said[-4:], "little"))


def carry(path: Path, folder: Path) -> None:
    """The courier's side: reads standard input, writes the stream, to the end of the pipe."""
    begin = msgspec.msgpack.decode(_message(STDIN), type=Begin)
    writer = AdiosWriter(path, begin.fields, begin.parameters)
    rings = RingReader(folder, writable=True)  # ADIOS2 takes no arrays that are read-only
    decode = msgspec.msgpack.Decoder(Parcel).decode
    while True:
        if not select.select([STDIN], [], [], IDLE_S)[0]:
            writer.come_by()
            continue
        body = _message(STDIN)
        if not body:
            break
        parcel = decode(body)
        writer.put(parcel.step, parcel.time, wire.blocks_of(parcel.table, fetch=rings.fetch), number=parcel.number)
        os.write(STDOUT, parcel.number.to_bytes(4, "little"))
    writer.close()


def _message(source: int) -> bytes:
    head = _exactly(source, 4)
    return _exactly(source, int.from_bytes(head, "little")) if head else b""


def _exactly(source: int, size: int) -> bytes:
    """So many bytes, or none at the end of the pipe."""
    found = bytearray()
    while len(found) < size:
        part = os.read(source, size - len(found))
        if not part:
            return b""
        found += part
    return bytes(found)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's; the pipe's end is ours
    carry(Path(sys.argv[1]), Path(sys.argv[2]))
