"""Our own rows: a message of the wire over the ZeroMQ Link, its array in a slot of shared memory or in a frame.

In frames the digests are counted. Shared: the array is copied into a slot, or was computed in one that was lent; the
consumer copies its answer into a slot, as the server does.
"""

from __future__ import annotations

import time

from benchmarks.peers.exchange import IDLE_S, PATIENCE_S, POLL_S, Array, Peer, Place, announce, announced, respond
from coupler.bulks.choice import BulkRules
from coupler.bulks.outbox import Outbox
from coupler.bulks.shared import RingReader
from coupler.contracts import Frames, Link
from coupler.links.zeromq import LinkLimits, connect, listen
from schemas.fields import Block
from schemas.messages import Push, Stamp
from schemas.wire import block_table, decode, encode

LIMITS = LinkLimits(max_message_bytes=100_000_000, queue_bytes=400_000_000)


def framed(step: int, array: Array) -> Frames:
    """A state as a message and its array, which is viewed."""
    table, arrays = block_table({"state": Block(array, (0,))})
    return list(encode(Push(Stamp(0, 1, step, step, float(step), 1.0, float("inf"), table)), arrays))


def send(link: Link, frames: Frames, peer: bytes = b"") -> None:
    """Sends, and tries again while the other side is not there yet."""
    until = time.monotonic() + PATIENCE_S
    while not link.send(frames, peer):
        if time.monotonic() > until:
            raise TimeoutError("the Link took no message")
        time.sleep(POLL_S)


def receive(link: Link, patience_s: float) -> tuple[bytes, Array]:
    """The next array and who sent it."""
    found = link.receive(patience_s)
    if found is None:
        raise TimeoutError(f"no message came within {patience_s:g} s")
    return found[0], decode(found[1], LIMITS.max_message_bytes)[1]["state"].array


class Linked:
    """Producer."""

    def __init__(self, place: Place) -> None:
        self._link, self._step = connect(announced(place.folder), identity=b"producer", limits=LIMITS), 0

    def put(self, array: Array) -> None:
        """See `Exchange.put`. The Link copies the array before it returns."""
        self._step += 1
        send(self._link, framed(self._step, array))

    def get(self) -> Array:
        """See `Exchange.get`."""
        return receive(self._link, PATIENCE_S)[1]

    def close(self) -> None:
        """See `Exchange.close`."""
        self._link.close()


def consume(place: Place) -> None:
    """Consumer."""
    link, out, step = listen(address := f"ipc://{place.folder}/coupler", limits=LIMITS), place.empty(), 0
    announce(place.folder, address)
    while True:
        step += 1
        producer, question = receive(link, IDLE_S)
        send(link, framed(step, respond(question, out)), producer)


SLOTS = 6


class Slots:
    """One side of a pair that exchanges arrays through shared memory."""

    def __init__(self, link: Link, place: Place, stem: str) -> None:
        self.link, self.step = link, 0
        self.outbox = Outbox(BulkRules(use="shared"), folder=place.folder, stem=stem, slots=SLOTS)
        self.outbox.near = ""
        self._rings = RingReader(place.folder)

    def put(self, array: Array, peer: bytes = b"") -> None:
        """Puts an array into a slot, unless it lies in one, and sends the message that names it."""
        self.step += 1
        parcel = self.outbox.put(self.step, float(self.step), {"state": Block(array, (0,))})
        stamp = Stamp(0, 1, self.step, self.step, float(self.step), 1.0, float("inf"), parcel.table)
        send(self.link, list(encode(Push(stamp), parcel.frames)), peer)
        self.outbox.sent(parcel, self.step)

    def get(self, patience_s: float) -> tuple[bytes, Array]:
        """The other side's array; it has read all of ours."""
        found = self.link.receive(patience_s)
        if found is None:
            raise TimeoutError(f"no message came within {patience_s:g} s")
        self.outbox.free(self.step)
        return found[0], decode(found[1], LIMITS.max_message_bytes, self._rings.fetch)[1]["state"].array

    def close(self) -> None:
        """Frees everything."""
        self.link.close()
        self.outbox.close()


class Shared:
    """Producer."""

    def __init__(self, place: Place) -> None:
        self.side = Slots(connect(announced(place.folder), identity=b"producer", limits=LIMITS), place, "producer")

    def put(self, array: Array) -> None:
        """See `Exchange.put`."""
        self.side.put(array)

    def get(self) -> Array:
        """See `Exchange.get`."""
        return self.side.get(PATIENCE_S)[1]

    def close(self) -> None:
        """See `Exchange.close`."""
        self.side.close()


class Lent(Shared):
    """Producer that computes in slots: what fills the lent array stands for the solver's work and is not timed."""

    def ready(self, array: Array) -> Array:
        """See `Lending.ready`."""
        lent = self.side.outbox.lend("state", array.shape, "<f8")
        lent[:] = array
        return lent


def consume_shared(place: Place) -> None:
    """Consumer."""
    side, out = (
        Slots(listen(address := f"ipc://{place.folder}/coupler", limits=LIMITS), place, "consumer"),
        place.empty(),
    )
    announce(place.folder, address)
    while True:
        producer, question = side.get(IDLE_S)
        side.put(respond(question, out), producer)


PEERS = (
    Peer("coupler, shared memory", Shared, consume_shared),
    Peer("coupler, shared memory, lent slots", Lent, consume_shared),
    Peer("coupler, in frames over ipc", Linked, consume),
)
