"""The sending side of the bulk: puts Blocks where the other side finds them, and names the places in a block table."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from coupler.bulks.choice import FAR, SMALL_BYTES, TOO_SMALL, BulkRules, Route, choose
from coupler.bulks.growing import GrowingRing, OwnStore
from coupler.bulks.node_stream import Crowded
from coupler.bulks.ring import Ring, slot_bytes
from coupler.bulks.shared import RingFile
from coupler.contracts import Link
from coupler.errors import LinkError
from schemas import wire
from schemas.fields import Array, Block
from schemas.messages import BlockEntry, Message, Place

log = logging.getLogger("coupler.bulk")
SPARE_SLOTS = 4
"""Slots beyond the window: two that a solver works in, one being filled, one that was just freed."""
IN_PLACE_BYTES = 1 << 16
"""Smaller frames are copied whatever is asked for: that is cheaper than to hear when they have left."""
OWN_BYTES, OWN_SLOTS = 256 << 20, 3
"""Memory for arrays that travel in frames; but at least so many slots, two for the solver to work in, one under way."""


class Stream(Protocol):
    """The writing side of a stepwise stream, as `coupler.bulks.node_stream` makes it."""

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> Place:
        """Writes Blocks without waiting for a reader; the place that the message names."""
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
        slots: Rings and slots that hold the rest, or what the frames view.
        streamed: Whether some of it goes by a stream.
        in_place: Whether the frames stay as they are until the other side has read them, so that a Link need not copy.
    """

    table: tuple[BlockEntry, ...]
    frames: list[memoryview]
    slots: list[tuple[Ring, int]] = field(default_factory=list)
    streamed: bool = False
    in_place: bool = False


def send(link: Link, message: Message, parcel: Parcel, peer: bytes = b"") -> bool:
    """Sends a message with a parcel, without a copy where the parcel and the Link allow it. See `Link.send`."""
    way = getattr(link, "send_in_place", link.send) if parcel.in_place else link.send
    taken: bool = way(wire.encode(message, parcel.frames), peer)
    return taken


class Outbox:
    """Owned by one thread.

    Attributes:
        near: Empty when the other side sees this node's shared memory, else why not. Set at the handshake.
        routes: Way of each field that was sent so far.
        framed: Of each field, states that travelled in frames because no slot was free.
        staging: Whether large arrays that travel in frames are put into slots of our own memory, which `send` need not
            copy: for a Link that sends in place. Fresh memory, which a Link would copy them to, costs more.
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
        unchanging: bool = False,
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
            unchanging: Whether no array that is put will ever change.
            adios: Tells why ADIOS2 cannot be used; nothing when it can.
            stream: Opens the stream for fields that go by ADIOS2.
        """
        self.near = "not known yet"
        self.routes: dict[str, Route] = {}
        self.framed: Counter[str] = Counter()
        self._rules, self._folder, self._stem, self._digest = rules, folder, stem, digest
        self._slots = rules.slots or slots
        self._unchanging = unchanging
        self._shared = GrowingRing(self._make_shared)
        self._own = GrowingRing(self._make_own)
        self.staging = False
        self._no_ring = "" if folder is not None else no_folder
        self._no_stream = adios
        self._open_stream = stream
        self._stream: Stream | None = None

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> Parcel:
        """Puts Blocks. `sent` or `undo` must follow before the next call.

        Args:
            step: Coupling step.
            time: Simulated time.
            blocks: Blocks by field name; copied, unless they lie in lent arrays or travel in frames, which a Link
                copies.
        """
        shared, streaming = {}, {}
        for name, block in blocks.items():
            if (way := self._way(name, block)) == "shared":
                shared[name] = block
            elif way == "adios":
                streaming[name] = block
        slots: list[tuple[Ring, int]] = []
        places = self._into_ring(shared, slots) if shared else {}
        streamed = self._into_stream(step, time, streaming) if streaming else {}
        places |= streamed
        rest = {name: block for name, block in blocks.items() if name not in places} if places else blocks
        in_place = self._unchanging
        if self.staging and not in_place:
            rest, in_place = self._into_own(rest, slots)
        table, frames = wire.block_table(rest, self._digest)
        if places:
            table = (*(wire.entry(name, blocks[name], place) for name, place in places.items()), *table)
        return Parcel(table, frames, slots, bool(streamed), in_place)

    def sent(self, parcel: Parcel, key: int) -> None:
        """The message with a parcel is under way; `free` with this key or a higher one ends its life."""
        for ring, slot in parcel.slots:
            ring.sent(slot, key)

    def undo(self, parcel: Parcel) -> None:
        """The message with a parcel was not sent."""
        for ring, slot in parcel.slots:
            ring.undo(slot)

    def free(self, key: int) -> None:
        """The other side has read every parcel whose key is at most this."""
        self._shared.free(key)
        self._own.free(key)

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
        self._shared.free_all()
        self._own.free_all()

    def lend(self, name: str, shape: Sequence[int], dtype: str) -> Array:
        """An array to compute the next Block of a field in: in a slot if one is free, else ordinary memory.

        Its values are arbitrary. The slot is not used for anything else while the array or a view of it lives.
        """
        lent = self._shared.lend(name, shape, dtype)
        lent = self._own.lend(name, shape, dtype) if lent is None else lent
        return np.empty(shape, dtype) if lent is None else lent

    @property
    def ways(self) -> dict[str, dict[str, Any]]:
        """What to tell of each field: its way, why, and how many states of it went in frames instead."""
        return {name: {**route._asdict(), "in_frames": self.framed[name]} for name, route in self.routes.items()}

    def close(self) -> None:
        """Frees everything."""
        self._shared.close()
        self._own.close()
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

    def _into_ring(self, blocks: Mapping[str, Block], slots: list[tuple[Ring, int]]) -> dict[str, Place]:
        """Into a slot of shared memory; where there is no room for a ring, they go inline from now on."""
        try:
            found = self._shared.put(blocks)
        except (LinkError, OSError) as error:
            self._no_ring = str(error)
            self.routes.clear()
            log.warning("No shared memory for %s: %s", self._stem, self._no_ring)  # a record must not hold frames
            return {}
        if found is None:
            self.framed.update(blocks.keys())
            return {}
        ring, slot, places = found
        slots.append((ring, slot))
        return places

    def _into_own(self, blocks: Mapping[str, Block], slots: list[tuple[Ring, int]]) -> tuple[Mapping[str, Block], bool]:
        """The Blocks as they lie in a slot of our own memory, if one is free, and whether the large ones do.

        Lent arrays lie there already. The slot is free again when the other side has said that it read them.
        """
        large = {name: block for name, block in blocks.items() if _nbytes(block) >= IN_PLACE_BYTES}
        if not large:
            return blocks, False
        try:
            found = self._own.put(large)
        except LinkError as error:
            log.warning("No memory of its own for %s: %s", self._stem, error)
            self.staging = False
            return blocks, False
        if found is None:
            return blocks, False
        ring, slot, _ = found
        slots.append((ring, slot))
        lying = ring.views(slot, large)
        return {name: lying.get(name, block) for name, block in blocks.items()}, True

    def _make_shared(self, capacity: Mapping[str, int]) -> RingFile:
        assert self._folder is not None  # else `_no_ring` had said so
        return RingFile(self._folder, self._stem, capacity, self._slots)

    def _make_own(self, capacity: Mapping[str, int]) -> OwnStore:
        return OwnStore(capacity, max(min(self._slots, OWN_BYTES // slot_bytes(capacity)), OWN_SLOTS))

    def _into_stream(self, step: int, time: float, blocks: Mapping[str, Block]) -> dict[str, Place]:
        try:
            if self._stream is None:
                assert self._open_stream is not None  # else `_no_stream` had said so
                self._stream = self._open_stream()
            place = self._stream.put(step, time, blocks)
        except Crowded:
            self.framed.update(blocks.keys())
            return {}
        except (LinkError, OSError) as error:
            self.no_stream(str(error))
            return {}
        return dict.fromkeys(blocks, place)

    def no_stream(self, reason: str) -> None:
        """The stream does not come up, or does not arrive: its fields go another way from now on."""
        self._no_stream = lambda: reason
        self.routes.clear()
        log.warning("No ADIOS2 stream for %s: %s", self._stem, reason)


def _nbytes(block: Block) -> int:
    return int(block.array.nbytes) + (0 if block.ids is None else int(block.ids.nbytes))
