"""The client's side of the protocol, without I/O: one stream (run, rank), its epoch, seq, credit and books.

state       on                            becomes
---------   ---------------------------   -----------------------------------------------
new         hello()                       greeting
greeting    Welcome                       open (epoch, credit)
greeting    Refusal                       refused: nothing is sent any more, the host integrates directly
open        Welcome of a higher epoch     open; what was in flight is dropped as "lost with the server"
open        silence for `silence_s`       open; HELLO again (a server that was only slow answers with the same epoch,
                                          and says what did not come; one that came back answers with a new one)
any         bye()                         closed: nothing is sent any more
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from schemas.fields import Block, Snapshot
from schemas.messages import LOST_TOLD, Ack, Action, Advice, BlockEntry, Bye, Hello, Message, Refusal, Stamp, Welcome

LOST, UNUSABLE = "lost on the way", "could not be assembled"
KEPT_ADMITTED = 4 * LOST_TOLD
"""Newest admitted samples that are remembered: other ranks' parts of their states may be found wrong later."""
KEPT_DECISIONS = 4
"""Decisions kept until all ranks have them; older ones cannot be agreed on any more."""


@dataclass(slots=True)
class Books:
    """Every sample is in exactly one state: produced = retained + in_flight + admitted + dropped, at any moment.

    Attributes:
        produced: Samples that the drop policy let through or dropped.
        admitted: Samples that the server acknowledged; less those of which it says later that their state could not be
            assembled, which are dropped.
        sent: Samples handed to the link, per seq, not yet acknowledged.
        dropped: Samples by reason.
    """

    produced: int = 0
    admitted: int = 0
    sent: set[int] = field(default_factory=set)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def in_flight(self) -> int:
        """Samples sent and not acknowledged."""
        return len(self.sent)

    def summary(self) -> dict[str, object]:
        """The books as plain numbers."""
        return {
            "produced": self.produced,
            "admitted": self.admitted,
            "in_flight": self.in_flight,
            "retained": 0,
            "dropped": dict(self.dropped),
        }


class ClientProtocol:
    """State machine of one rank. Feed it messages and the time; it says what to send.

    Attributes:
        state: See the table in the module docstring.
        refusal: The server's sentence when refused.
        books: What became of the samples.
        near: Whether the server sees the same shared memory.
        sent_for_us: Names of the fields that rank 0 sends for this rank.
    """

    def __init__(self, hello: Hello, silence_s: float = 2.0) -> None:
        """Args: hello: What to introduce the rank with. silence_s: Silence after which to say HELLO again."""
        self.state: Literal["new", "greeting", "open", "refused", "closed"] = "new"
        self.refusal = ""
        self.books = Books()
        self.epoch = 0
        self.near = False
        self.durable = 0
        self.sent_for_us = frozenset(spec.name for spec in hello.fields if hello.rank and spec.is_common)
        self._hello = hello
        self._silence_s = silence_s
        self._seq = 0
        self._received = 0
        self._credit = 0
        self._waiting_since = math.nan
        self._hello_sent = -math.inf
        self._admitted: dict[int, None] = {}  # seqs of the newest admitted samples, in order
        self._decisions: dict[int, tuple[Advice, Mapping[str, Block]]] = {}
        self._forgotten = -1

    @property
    def may_send(self) -> bool:
        """Whether the window has room for one more message."""
        return self.state == "open" and self._seq - self._received < self._credit

    @property
    def roomy(self) -> bool:
        """Whether less than half of the window is used, as far as this side has heard."""
        return self.state == "open" and 2 * (self._seq - self._received) < self._credit

    @property
    def received(self) -> int:
        """Watermark: the server has read every message of this epoch up to this seq, or knows that it is lost."""
        return self._received

    @property
    def newest(self) -> int:
        """Highest decision number that came and was not taken yet; 0 when none."""
        return max(self._decisions, default=0)

    def due_hello(self, now: float) -> Hello | None:
        """The HELLO to send now, if one is due: at the start, and again when the server has been silent."""
        if self.state in ("refused", "closed") or now - self._hello_sent < self._silence_s:
            return None
        silent = now - self._waiting_since > self._silence_s
        if self.state == "open" and not silent:
            return None
        self._hello_sent = now
        self.state = "greeting" if self.state == "new" else self.state
        return msgspec.structs.replace(self._hello, epoch=self.epoch, seq=self._seq)

    def hello_unsent(self) -> None:
        """The link did not take the HELLO: it stays due."""
        self._hello_sent = -math.inf

    def stamp(self, snapshot: Snapshot, blocks: tuple[BlockEntry, ...], now: float, *, sample: bool) -> Stamp:
        """The stamp of the next message; `sample` says whether it carries a whole state. Only when `may_send`."""
        self._seq += 1
        if math.isnan(self._waiting_since):
            self._waiting_since = now
        if sample:
            self.books.produced += 1
            self.books.sent.add(self._seq)
        instant = (snapshot.step, snapshot.time, snapshot.dt, snapshot.controls_until)
        return Stamp(self._hello.rank, self.epoch, self._seq, *instant, blocks)

    def unsent(self, stamp: Stamp, reason: str = "link full") -> None:
        """The link did not take the message with this stamp: its number is given back, its sample dropped."""
        self._seq -= 1
        if stamp.seq in self.books.sent:
            self.books.sent.discard(stamp.seq)
            self.books.dropped[reason] += 1

    def dropped(self, reason: str) -> None:
        """Counts a sample that was due but not sent."""
        self.books.produced += 1
        self.books.dropped[reason] += 1

    def receive(self, message: Message, blocks: Mapping[str, Block]) -> None:
        """Takes one message of the server. Anything that does not belong here is ignored."""
        if isinstance(message, Welcome):
            self._welcomed(message)
        elif isinstance(message, Refusal) and self.state != "closed":
            self.state, self.refusal = "refused", message.reason
        elif isinstance(message, Ack):
            self._acknowledged(message)
        elif isinstance(message, Advice) and message.ack is not None and message.ack.epoch == self.epoch:
            self._acknowledged(message.ack)
            if self._is_stale(message):
                return
            self._decisions[message.decision] = (message, blocks)
            while len(self._decisions) > KEPT_DECISIONS:
                del self._decisions[min(self._decisions)]

    def take(self, decision: int) -> tuple[Advice, Mapping[str, Block]] | None:
        """The Advice of a decision and its Blocks; it and all older ones are forgotten. None when it never came.

        An audit that was closed by an older decision is closed by this one, which has overtaken it.
        """
        found = self._decisions.get(decision)
        errors = [self._decisions.pop(d)[0].step_error for d in sorted(self._decisions) if d <= decision]
        if found is None or not math.isnan(found[0].step_error):
            return found
        closed = next((error for error in reversed(errors) if not math.isnan(error)), math.nan)
        return msgspec.structs.replace(found[0], step_error=closed), found[1]

    def forget(self, step: int) -> None:
        """The host has jumped to another state, at `step`: what answers an earlier one means nothing any more."""
        self._forgotten = step
        self._decisions = {d: found for d, found in self._decisions.items() if not self._is_stale(found[0])}

    def bye(self, step: int, status: str) -> Bye:
        """The farewell. A HELLO behind it would take it back."""
        self.state = "closed"
        return Bye(self._hello.rank, self.epoch, step, status)

    def _is_stale(self, advice: Advice) -> bool:
        return advice.answers < self._forgotten and advice.action not in (Action.REWIND, Action.STOP)

    def _welcomed(self, welcome: Welcome) -> None:
        if welcome.epoch <= self.epoch or self.state in ("refused", "closed"):  # the same: the server was only slow
            return
        if self.epoch:
            self.books.dropped["lost with the server"] += len(self.books.sent)
            self.books.sent.clear()
        self.state, self.epoch, self._credit = "open", welcome.epoch, welcome.credit
        self.near = welcome.near
        self._seq = self._received = self.durable = 0
        self._decisions.clear()
        self._admitted.clear()
        self._waiting_since = math.nan

    def _acknowledged(self, ack: Ack) -> None:
        if ack.epoch != self.epoch:
            return
        self._received = max(self._received, min(ack.received, self._seq))
        self.durable = max(self.durable, ack.durable)
        self._credit = ack.credit
        if lost := self.books.sent.intersection(ack.lost):
            self.books.sent -= lost
            self.books.dropped[LOST] += len(lost)
        done = {seq for seq in self.books.sent if seq <= self._received}
        self.books.sent -= done
        self.books.admitted += len(done)
        self._admitted.update(dict.fromkeys(sorted(done)))
        while len(self._admitted) > KEPT_ADMITTED:
            del self._admitted[next(iter(self._admitted))]
        if unusable := {-seq for seq in ack.lost if -seq in self._admitted}:
            for seq in unusable:
                del self._admitted[seq]
            self.books.admitted -= len(unusable)
            self.books.dropped[UNUSABLE] += len(unusable)
        self._waiting_since = math.nan
