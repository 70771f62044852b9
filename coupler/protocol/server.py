"""The server's side of the protocol, without I/O: who may speak, in which epoch, and what was received.

A stream is (run, rank). Its epoch rises with every HELLO of a newcomer; messages of another epoch are fenced off. A
seq at or below the watermark is a duplicate and ignored; a gap is counted as lost (by the link, or damaged) and passed
over. A HELLO again of one who has only heard nothing for a while leaves the epoch; what it sent and has not come is
lost. A message that came, but whose state cannot be assembled, is named among the lost ones with a minus sign: the link
is not to blame, and its sender counts it under another name.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from schemas.fields import flaw
from schemas.messages import LOST_TOLD, VERSION, Ack, Bye, Hello, Refusal, Stamp, Welcome


@dataclass(slots=True)
class Stream:
    """One rank's stream.

    Attributes:
        peer: Identity at the link.
        epoch: Incarnation in force.
        received: Watermark: highest seq received.
        durable: Highest seq whose effect is in a checkpoint.
        lost: Messages that never came or were damaged.
        duplicates: Messages that came again.
        fenced: Messages of another epoch.
        newly_lost: Seqs of the newest lost messages; negative for those that came, but whose state cannot be assembled.
    """

    peer: bytes
    epoch: int
    received: int = 0
    durable: int = 0
    lost: int = 0
    duplicates: int = 0
    fenced: int = 0
    newly_lost: deque[int] = field(default_factory=lambda: deque(maxlen=LOST_TOLD))


class ServerProtocol:
    """State machine of the server for one run: its streams, and the first HELLO that all others must agree with."""

    def __init__(self, run: str, tasks: tuple[str, ...], credit: int, first_epoch: int = 1, token: str = "") -> None:
        """Makes it.

        Args:
            run: Name of the run.
            tasks: Names to announce.
            credit: Window.
            first_epoch: Above all used before.
            token: Token in the run's folder in shared memory; empty when there is none.
        """
        self.streams: dict[int, Stream] = {}
        self.agreed: Hello | None = None
        self.credit = credit
        self._run, self._tasks, self._token = run, tasks, token
        self._epoch = first_epoch - 1
        self._turned_away: dict[bytes, bool] = {}  # peers that were refused and are still there: are they of this run?
        self._left = False  # whether one of this run has gone

    @property
    def complete(self) -> bool:
        """Whether every rank of the simulation has said HELLO."""
        return self.agreed is not None and len(self.streams) == self.agreed.ranks

    @property
    def deserted(self) -> bool:
        """Whether every rank of this run that came was refused, and has left."""
        return self._left and not self.streams and not any(self._turned_away.values())

    def hello(self, peer: bytes, hello: Hello) -> Welcome | Refusal:
        """Takes a HELLO and answers it."""
        if problem := self._problem(hello):
            self._turned_away[peer] = hello.run == self._run
            return Refusal(problem)
        self._turned_away.pop(peer, None)
        if self.agreed is None:
            self.agreed = hello
        stream = self.streams.get(hello.rank)
        if self.knows(peer, hello) and stream is not None:
            _pass_over(stream, hello.seq)
        else:
            self._epoch = max(self._epoch, hello.epoch) + 1
            stream = self.streams[hello.rank] = Stream(peer, self._epoch)
        return Welcome(stream.epoch, self.credit, self._tasks, self._token != "" and hello.token == self._token)

    def knows(self, peer: bytes, hello: Hello) -> bool:
        """Whether a HELLO comes from one who is here already, in the epoch in force."""
        stream = self.streams.get(hello.rank)
        return stream is not None and stream.peer == peer and stream.epoch == hello.epoch

    def admit(self, peer: bytes, stamp: Stamp) -> bool:
        """Whether a stamped message is new; counts it either way."""
        stream = self.streams.get(stamp.rank)
        if stream is None or stream.peer != peer or stream.epoch != stamp.epoch:
            if stream is not None:
                stream.fenced += 1
            return False
        if stamp.seq <= stream.received:
            stream.duplicates += 1
            return False
        _pass_over(stream, stamp.seq - 1)
        stream.received = stamp.seq
        return True

    def lose(self, peer: bytes, stamp: Stamp) -> bool:
        """Whether a stamped message is new whose Blocks cannot be had; it counts as lost."""
        if not self.admit(peer, stamp):
            return False
        stream = self.streams[stamp.rank]
        stream.lost += 1
        stream.newly_lost.append(stamp.seq)
        return True

    def spoil(self, stamp: Stamp) -> None:
        """A message that was admitted is of a state that cannot be assembled: its sender learns that."""
        stream = self.streams.get(stamp.rank)
        if stream is None or stream.epoch != stamp.epoch or {stamp.seq, -stamp.seq} & {*stream.newly_lost}:
            return
        stream.newly_lost.append(-stamp.seq)

    def farewell(self, peer: bytes, bye: Bye) -> bool:
        """Whether a farewell comes from the one who holds the stream now; those who were refused say it too."""
        ours = self._turned_away.pop(peer, None)
        self._left = self._left or ours is True
        if ours is False:  # a stranger, who may bear the name of one that is here
            return False
        stream = self.streams.get(bye.rank)
        # The epoch does not matter: a HELLO of the same peer may have crossed its last Welcome.
        return stream is not None and stream.peer == peer

    def ack(self, rank: int) -> Ack:
        """The acknowledgement of a rank's stream as it stands."""
        stream = self.streams[rank]
        return Ack(stream.epoch, stream.received, stream.durable, self.credit, tuple(stream.newly_lost))

    def _problem(self, hello: Hello) -> str:
        if hello.version != VERSION:
            return f"The client speaks version {hello.version}, this server {VERSION}: install the same release."
        if hello.run != self._run:
            return f"The client belongs to run {hello.run!r}, this server to {self._run!r}: check the run folder."
        if not 0 <= hello.rank < hello.ranks:
            return f"Rank {hello.rank} of {hello.ranks} cannot be."
        agreed = self.agreed
        if agreed is None:
            return f"The fields cannot be used: {sentence}." if (sentence := flaw(hello.fields)) else ""
        if hello.ranks != agreed.ranks:
            return f"Rank {hello.rank} says {hello.ranks} ranks, rank {agreed.rank} said {agreed.ranks}."
        if hello.fields != agreed.fields or hello.invariants != agreed.invariants:
            return f"Rank {hello.rank} declares other fields or invariants than rank {agreed.rank}."
        return ""


def _pass_over(stream: Stream, seq: int) -> None:
    """What has not come up to this seq is lost: a link keeps the order."""
    if seq > stream.received:
        stream.lost += seq - stream.received
        stream.newly_lost.extend(range(max(stream.received + 1, seq + 1 - LOST_TOLD), seq + 1))
        stream.received = seq
