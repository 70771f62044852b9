"""A Link that misbehaves on purpose, the same way every time for the same script."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from coupler.contracts import Frames, Link

Fault = Literal["none", "drop", "delay", "duplicate", "truncate", "flip", "reorder"]
FAULTS: tuple[Fault, ...] = get_args(Fault)

_Held = tuple[int, bytes, Frames]
"""A message kept back: the receive call at which it goes on at the latest, its peer, its frames."""


def random_faults(seed: int, *, share: float = 0.3, kinds: Sequence[Fault] = FAULTS[1:]) -> Iterator[Fault]:
    """An endless script: each message suffers one of `kinds` with probability `share`."""
    chance = random.Random(seed)
    while True:
        yield chance.choice(kinds) if chance.random() < share else "none"


class FlakyLink:
    """Wraps one side of a Link and applies a script of faults, message by message, to both directions.

    Each direction walks through the script on its own. What happens to a message:

    - `drop`: it is gone, though send says True;
    - `delay`: it goes on after `delay_calls` further calls of receive;
    - `reorder`: it goes on behind the next message of its direction, or after `delay_calls` when none comes;
    - `duplicate`: it goes on twice;
    - `truncate`: one of its frames loses its end;
    - `flip`: one bit of one of its frames changes. A message of empty frames is neither cut nor changed.

    Attributes:
        counts: What was done, by fault; `none` for messages that passed unharmed.
    """

    def __init__(
        self,
        link: Link,
        script: int | Sequence[Fault],
        *,
        delay_calls: int = 3,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wraps a link.

        Args:
            link: The link that carries the messages. Closed with this one.
            script: A seed for `random_faults`, or the faults one by one; after the last, messages pass unharmed.
            delay_calls: Calls of receive for which a delayed message is kept back.
            clock: Seconds, for the time-out of receive only. Never read when the time-out is 0.
        """
        self.at_once = getattr(link, "at_once", False)
        seed = script if isinstance(script, int) else 0
        self.counts: Counter[Fault] = Counter()
        self._link = link
        self._clock = clock
        self._delay_calls = delay_calls
        self._chance = random.Random(seed)
        self._calls = 0
        self._outward = _Direction(_script(script, 2 * seed))
        self._inward = _Direction(_script(script, 2 * seed + 1))

    def send(self, frames: Frames, peer: bytes = b"") -> bool:
        """See `Link.send`. True for a message that a fault swallowed: a network does not tell."""
        own, overtaken = self._pass(self._outward, frames, peer)
        answers = [self._link.send(passed, peer) for passed in own]
        for to, late in overtaken:
            self._link.send(late, to)
        return all(answers)

    def receive(self, timeout_s: float) -> tuple[bytes, list[memoryview]] | None:
        """See `Link.receive`. Each call brings delayed messages one call closer."""
        self._calls += 1
        for peer, frames in self._outward.due(self._calls):
            self._link.send(frames, peer)
        self._inward.ready.extend(self._inward.due(self._calls))
        end = self._clock() + timeout_s if timeout_s > 0 else 0.0
        while not self._inward.ready:
            message = self._link.receive(max(0.0, end - self._clock()) if timeout_s > 0 else 0.0)
            if message is None:
                return None
            own, overtaken = self._pass(self._inward, list(message[1]), message[0])
            self._inward.ready += [(message[0], frames) for frames in own] + overtaken
        peer, frames = self._inward.ready.pop(0)
        return peer, [memoryview(frame) for frame in frames]

    def close(self, linger_s: float = 0.0) -> None:
        """See `Link.close`. Messages kept back are dropped."""
        self._link.close(linger_s)

    def _pass(self, way: _Direction, frames: Frames, peer: bytes) -> tuple[list[Frames], list[tuple[bytes, Frames]]]:
        """What goes on now when this message comes: itself, any number of times, and what it has overtaken."""
        fault: Fault = next(way.script, "none")
        copies: Frames = [bytes(frame) for frame in frames]
        if fault in ("truncate", "flip"):
            damaged = self._truncated(copies) if fault == "truncate" else self._flipped(copies)
            fault, copies = ("none", copies) if damaged is None else (fault, damaged)
        self.counts[fault] += 1
        overtaken, way.overtaken = [(to, held) for _, to, held in way.overtaken], []
        if fault in ("delay", "reorder"):
            kept_back = way.delayed if fault == "delay" else way.overtaken
            kept_back.append((self._calls + self._delay_calls, peer, copies))
        times = {"drop": 0, "delay": 0, "reorder": 0, "duplicate": 2}.get(fault, 1)
        return [copies] * times, overtaken

    def _truncated(self, frames: Frames) -> Frames | None:
        """The frames with one of them cut short; None when all are empty."""
        which = self._full_frame(frames)
        if which is None:
            return None
        return [*frames[:which], frames[which][: self._chance.randrange(len(frames[which]))], *frames[which + 1 :]]

    def _flipped(self, frames: Frames) -> Frames | None:
        """The frames with one bit changed; None when all are empty."""
        which = self._full_frame(frames)
        if which is None:
            return None
        frame = bytearray(frames[which])
        frame[self._chance.randrange(len(frame))] ^= 1 << self._chance.randrange(8)
        return [*frames[:which], bytes(frame), *frames[which + 1 :]]

    def _full_frame(self, frames: Frames) -> int | None:
        """A frame with something in it, by chance."""
        full = [number for number, frame in enumerate(frames) if len(frame)]
        return self._chance.choice(full) if full else None


class _Direction:
    """What one direction has kept back, and its place in the script."""

    def __init__(self, script: Iterator[Fault]) -> None:
        self.script = script
        self.delayed: list[_Held] = []
        self.overtaken: list[_Held] = []
        self.ready: list[tuple[bytes, Frames]] = []

    def due(self, call: int) -> list[tuple[bytes, Frames]]:
        """Takes out the messages whose time has come, oldest first."""
        held = sorted(self.delayed + self.overtaken, key=lambda message: message[0])
        self.delayed = [message for message in self.delayed if message[0] > call]
        self.overtaken = [message for message in self.overtaken if message[0] > call]
        return [(peer, frames) for when, peer, frames in held if when <= call]


def _script(script: int | Sequence[Fault], seed: int) -> Iterator[Fault]:
    return random_faults(seed) if isinstance(script, int) else iter(script)
