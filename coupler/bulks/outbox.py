"""The sending side of the bulk: puts Blocks where the other side finds them, and names the places in a block table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from coupler.bulks.choice import FAR, SMALL_BYTES, TOO_SMALL, BulkRules, Route, choose
from coupler.bulks.courier import Crowded
from coupler.bulks.ring import Ring, needed
from coupler.bulks.shared import RingFile
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import Array, Block
from schemas.messages import BlockEntry, Place

log = logging.getLogger("coupler.bulk")
GROWTH = 1.25
"""Room that a ring gets beyond what made the last one too small: particles wander."""
SPARE_SLOTS = 4
"""Slots beyond the window: two that a solver works in, one being filled, one that was just freed."""


class Stream(Protocol):
    """The writing side of a stepwise stream, as `coupler.bulks.courier` makes it."""

    name: str

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> int:
        """Writes a step without waiting for a reader; gives its number in the stream."""
        ...

    def close(self) -> None:
        """Ends the stream."""
        ...


@dataclass(slots=True)
class Parcel:
    """Blocks on their way.

    Attributes:
        table: Block table for the message.
        frames: Frames that travel with it.
        slot: Ring and slot that hold the rest; None when nothing lies in a slot.
        streamed: Whether some of it goes by a stream.
    """

    table: tuple[BlockEntry, ...]
    frames: list[memoryview]
    slot: tuple[Ring, int] | None = None
    streamed: bool = False


class Outbox:
    """Owned by one thread.

    Attributes:
        near: Empty when the other side sees this node's shared memory, else why not. Set at the handshake.
        routes: Way of each field that was sent so far.
        crowded: Parcels that travelled in frames because no slot was free.
    """

    def __init__(
        self,
        rules: BulkRules,
        *,
        folder: Path | None = None,
        no_folder: str = "there is no shared memory",
        stem: str = "",
        slots: int = 12,
        digest: bool = True,
        adios: Callable[[], str] = lambda: "this side has no stream",
        stream: Callable[[], Stream] | None = None,
    ) -> None:
        """Makes an empty outbox; nothing is opened before the first Blocks show what is needed.

        Args:
            rules: What the run file says.
            folder: Folder in shared memory; None where there is none.
            no_folder: Why there is none.
            stem: Who writes, for the names of rings; letters, digits and hyphens.
            slots: Slots of a ring, unless the run file says.
            digest: Whether frames carry digests.
            adios: Tells why ADIOS2 cannot be used; nothing when it can.
            stream: Opens the stream for fields that go by ADIOS2.
        """
        self.near = "not known yet"
        self.routes: dict[str, Route] = {}
        self.crowded = 0
        self._rules, self._folder, self._stem, self._digest = rules, folder, stem, digest
        self._slots = rules.slots or slots
        self._file: RingFile | None = None
        self._old: list[RingFile] = []  # too small, but not read to the end yet
        self._no_ring = "" if folder is not None else no_folder
        self._no_stream = adios
        self._open_stream = stream
        self._stream: Stream | None = None

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> Parcel:
        """Puts Blocks. `sent` or `undo` must follow before the next call.

        Args:
            step: Coupling step.
            time: Simulated time.
            blocks: Blocks by field name; copied, unless they lie in lent arrays or travel in frames, which `Link.send`
                copies.
        """
        shared, streaming = {}, {}
        for name, block in blocks.items():
            if (way := self._way(name, block)) == "shared":
                shared[name] = block
            elif way == "adios":
                streaming[name] = block
        slot, places = self._into_ring(shared) if shared else (None, {})
        streamed = self._into_stream(step, time, streaming) if streaming else {}
        places |= streamed
        rest = {name: block for name, block in blocks.items() if name not in places} if places else blocks
        table, frames = wire.block_table(rest, self._digest)
        if places:
            table = (*(wire.entry(name, blocks[name], place) for name, place in places.items()), *table)
        return Parcel(table, frames, slot, bool(streamed))

    def sent(self, parcel: Parcel, key: int) -> None:
        """The message with a parcel is under way; `free` with this key or a higher one ends its life."""
        if parcel.slot is not None:
            ring, slot = parcel.slot
            ring.sent(slot, key)

    def undo(self, parcel: Parcel) -> None:
        """The message with a parcel was not sent."""
        if parcel.slot is not None:
            ring, slot = parcel.slot
            ring.undo(slot)

    def free(self, key: int) -> None:
        """The other side has read every parcel whose key is at most this."""
        if self._file is not None:
            self._file.ring.free(key)
        for file in self._old:
            file.ring.free(key)
        self._drop_old()

    def greeted(self, near: bool) -> None:
        """The other side came, or another in its place: what was under way is nobody's, and ways are chosen anew.

        Args:
            near: Whether it sees this node's shared memory.
        """
        self.near = "" if near else FAR
        self.routes.clear()
        self.free_all()

    def free_all(self) -> None:
        """Nobody reads any more what was under way."""
        for file in (*self._old, *([self._file] if self._file else [])):
            file.ring.free_all()
        self._drop_old()

    def lend(self, field: str, shape: Sequence[int], dtype: str) -> Array:
        """An array to compute the next Block of a field in: in a slot if one is free, else ordinary memory.

        Its values are arbitrary. The slot is not used for anything else while the array or a view of it lives.
        """
        ring = self._file.ring if self._file is not None else None
        room = ring.capacity.get(field, -1) if ring is not None else -1
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        lent = ring.lend(field, shape, dtype) if ring is not None and size <= room else None
        return np.empty(shape, dtype) if lent is None else lent

    def close(self) -> None:
        """Frees everything."""
        for file in (*self._old, *([self._file] if self._file else [])):
            file.close()
        self._old, self._file = [], None
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _way(self, name: str, block: Block) -> str:
        route = self.routes.get(name)
        # What was decided stays, also a package that is missing: looking for it again would cost every step.
        if route is None or (route.why == TOO_SMALL and block.array.nbytes >= SMALL_BYTES):
            near = self._no_ring or self.near
            found = choose(self._rules, name, block.array.nbytes, near, self._no_stream)
            if found != route:
                self.routes[name] = route = found
                log.info("%s goes %s: %s", name, found.use, found.why)
        return route.use

    def _into_ring(self, blocks: Mapping[str, Block]) -> tuple[tuple[Ring, int] | None, dict[str, Place]]:
        if self._file is None or not self._file.ring.fits(blocks):
            self._make_ring(blocks)
        if self._file is None:
            return None, {}
        ring = self._file.ring
        found = ring.put(blocks)
        if found is None:
            self.crowded += 1
            return None, {}
        slot, places = found
        return (ring, slot), places

    def _make_ring(self, blocks: Mapping[str, Block]) -> None:
        """A ring for these Blocks; where there is no room for one, they go inline from now on."""
        assert self._folder is not None  # else `_no_ring` had said so
        capacity = needed(blocks)
        if self._file is not None:
            before = self._file.ring.capacity
            for name, size in capacity.items():
                if size > before.get(name, 0):
                    capacity[name] = needed_room(size) if name in before else size
            capacity = {name: max(before.get(name, 0), capacity.get(name, 0)) for name in {**before, **capacity}}
            self._old.append(self._file)
            self._file = None
        try:
            self._file = RingFile(self._folder, self._stem, capacity, self._slots)
        except (LinkError, OSError) as error:
            self._no_ring = str(error)
            self.routes.clear()
            log.warning("No shared memory for %s: %s", self._stem, self._no_ring)  # a record must not hold frames
        self._drop_old()

    def _into_stream(self, step: int, time: float, blocks: Mapping[str, Block]) -> dict[str, Place]:
        try:
            if self._stream is None:
                assert self._open_stream is not None  # else `_no_stream` had said so
                self._stream = self._open_stream()
            number = self._stream.put(step, time, blocks)
        except Crowded:
            self.crowded += 1
            return {}
        except (LinkError, OSError) as error:
            self.no_stream(str(error))
            return {}
        return {name: Place("adios", self._stream.name, 0, number, 0) for name in blocks}

    def no_stream(self, reason: str) -> None:
        """The stream does not come up, or does not arrive: its fields go another way from now on."""
        self._no_stream = lambda: reason
        self.routes.clear()
        log.warning("No ADIOS2 stream for %s: %s", self._stem, reason)

    def _drop_old(self) -> None:
        for file in [file for file in self._old if not file.ring.in_flight]:
            file.close()
            self._old.remove(file)


def needed_room(size: int) -> int:
    """Room for a Block that has grown once and may grow again."""
    return -(-int(size * GROWTH) // 64) * 64
