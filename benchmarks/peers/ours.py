"""Our own rows: the ZeroMQ Link over ipc with a message of the wire, block table and digests included.

Another transport gets its rows here: a class with `put`, `get` and `close`, a consumer, a line in `PEERS`.
"""

from __future__ import annotations

import time

from benchmarks.peers.exchange import IDLE_S, PATIENCE_S, POLL_S, Array, Peer, Place, announce, announced, respond
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


PEERS = (Peer("coupler, ZeroMQ Link ipc", Linked, consume),)
