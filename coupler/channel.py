"""A rank's way to the server: the protocol's messages over a Link, without ever raising because of the other side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from coupler.bulks import outbox
from coupler.bulks.bulk import Bulk
from coupler.contracts import Link
from coupler.errors import LinkError
from coupler.protocol.client import ClientProtocol
from schemas import wire
from schemas.fields import Block, Snapshot
from schemas.messages import Ack, Advice, Message, Stamp

NO_SERVER = "no server yet"
LINGER_S = 0.2
"""Time that the farewell gets to leave."""
LOST_IN_A_ROW, LOST_S = 8, 5.0
"""States lost in a row, and seconds of nothing else, after which a stream is given up: its reader may be opening it. A
courier that stops loses no more than `node_stream.SLOTS`."""
STATUS_CHARS = 2000
"""Longest cause of a failure that a farewell carries."""


class StreamedSeqs:
    """What became of the messages whose Blocks went by a stream."""

    def __init__(self) -> None:
        """Nothing was sent yet."""
        self._open: set[int] = set()
        self._lost, self._since, self._latest = 0, 0.0, 0.0

    def sent(self, seq: int) -> None:
        """A message was sent."""
        self._open.add(seq)

    def acknowledged(self, ack: Ack, now: float) -> int:
        """Takes an acknowledgement; how many were lost in a row when the stream is to be given up, told once, or 0."""
        for seq in sorted(seq for seq in self._open if seq <= ack.received):
            self._open.discard(seq)
            self._since = now if not self._lost else self._since
            self._lost, self._latest = self._lost + 1 if seq in ack.lost else 0, now
        # Not by the time since: after a burst of losses nothing may be sent for long, and the next one may arrive.
        if self._lost < LOST_IN_A_ROW or self._latest - self._since <= LOST_S:
            return 0
        lost, self._lost = self._lost, 0
        return lost


class Channel:
    """Owns the Link of a rank.

    Attributes:
        protocol: State of the stream.
        outbox: Where the Blocks of this rank go.
        garbled: Messages that could not be read.
        last_garbled: Why the last of them could not.
    """

    def __init__(
        self,
        link: Link,
        protocol: ClientProtocol,
        clock: Callable[[], float],
        max_message_bytes: int,
        bulk: Bulk,
    ) -> None:
        """Takes over a connected Link.

        Args:
            link: The Link.
            protocol: The protocol of this rank.
            clock: Monotonic seconds.
            max_message_bytes: Largest message accepted.
            bulk: How Blocks travel; closed with the channel.
        """
        self.protocol = protocol
        self.garbled = 0
        self.last_garbled = ""
        self._link, self._clock = link, clock
        self._max_message_bytes = max_message_bytes
        self._bulk, self.outbox = bulk, bulk.outbox
        self.outbox.staging = hasattr(link, "send_in_place")
        self._epoch = self._read = 0
        self._streamed = StreamedSeqs()
        self._why_unsent = ""

    def make_room(self) -> None:
        """Takes what has come, once half of the window is used: until then nobody needs the acknowledgements."""
        if not self.protocol.roomy:
            self.drain(0.0)

    def drain(self, timeout_s: float) -> None:
        """Takes everything that has come, waiting up to timeout_s for the first message, and greets if that is due.

        What is here is taken first: a solver whose steps are long has the answer waiting, and has heard nothing yet.
        """
        came = self._take(0.0)
        hello = self.protocol.due_hello(self._clock())
        if hello is not None and not self._link.send(wire.encode(hello)):
            self.protocol.hello_unsent()
        if hello is not None or (timeout_s > 0.0 and not came):
            self._take(0.0 if came else timeout_s)

    def _take(self, timeout_s: float) -> bool:
        """Takes everything that has come, waiting up to timeout_s for the first message; whether one came."""
        came = False
        while (received := self._link.receive(timeout_s)) is not None:
            came, timeout_s = True, 0.0
            try:
                message, blocks = wire.decode(received[1], self._max_message_bytes, self._bulk.fetch)
            except wire.WireError as error:
                self.garbled += 1
                self.last_garbled = str(error)
                continue
            self.protocol.receive(message, blocks)
            self._free(message)
        return came

    def post(
        self, snapshot: Snapshot, blocks: Mapping[str, Block], make: Callable[[Stamp], Message], *, sample: bool
    ) -> bool:
        """Sends a stamped message, if the Link takes it. Only when `protocol.may_send`.

        Args:
            snapshot: The instant it is about.
            blocks: Blocks to send along; rank 0 sends those of common fields for all.
            make: The message, from its stamp.
            sample: Whether it carries a whole state.

        Returns:
            Whether it was taken; if not, `why_closed` says why.
        """
        if self.protocol.sent_for_us:
            blocks = {name: block for name, block in blocks.items() if name not in self.protocol.sent_for_us}
        parcel = self.outbox.put(snapshot.step, snapshot.time, blocks)
        stamp = self.protocol.stamp(snapshot, parcel.table, self._clock(), sample=sample)
        try:
            taken = outbox.send(self._link, make(stamp), parcel)
            self._why_unsent = "" if taken else "link full"
        except LinkError as error:  # too large for this link, whatever the time
            taken, self._why_unsent = False, str(error)
        if taken:
            self.outbox.sent(parcel, stamp.seq)
            if parcel.streamed:
                self._streamed.sent(stamp.seq)
        else:
            self.outbox.undo(parcel)
            self.protocol.unsent(stamp, self._why_unsent)
        return taken

    def why_closed(self) -> str:
        """Why nothing could be sent just now."""
        if self.protocol.state == "refused":
            return f"refused by the server: {self.protocol.refusal}"
        if self.protocol.state != "open":
            return NO_SERVER
        return self._why_unsent or ("another rank cannot send" if self.protocol.may_send else "no credit")

    def close(self, step: int, status: str, wait_s: float) -> None:
        """Says goodbye, waits up to wait_s for the last acknowledgement, and frees the Link."""
        if self.protocol.state != "new":  # also where it was refused: the server ends when everybody has left
            self._farewell(step, status)
            end = self._clock() + wait_s
            while self.protocol.books.in_flight and self._clock() < end:
                self.drain(0.02)
        self._link.close(LINGER_S)
        self._bulk.close()

    def _free(self, message: Message) -> None:
        """What the server has read may be overwritten. A stream whose steps do not arrive is given up."""
        protocol = self.protocol
        ack = message if isinstance(message, Ack) else message.ack if isinstance(message, Advice) else None
        if (
            ack is not None
            and ack.epoch == protocol.epoch
            and (lost := self._streamed.acknowledged(ack, self._clock()))
        ):
            self.outbox.no_stream(f"{lost} states in a row did not arrive")
        if protocol.epoch != self._epoch:
            self._epoch, self._read = protocol.epoch, 0
            self._streamed = StreamedSeqs()
            self.outbox.greeted(protocol.near)
        if protocol.received != self._read:
            self._read = protocol.received
            self.outbox.free(self._read)

    def _farewell(self, step: int, status: str) -> None:
        try:
            self._link.send(wire.encode(self.protocol.bye(step, status[:STATUS_CHARS])))
        except LinkError as error:  # raised on, it would hide the failure that ended the run
            self.last_garbled = f"the farewell could not be sent: {error}"
