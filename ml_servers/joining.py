"""What belongs together of what the ranks send: the messages about one step, and their invariants. Pure and bounded."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from schemas.fields import Block, Snapshot
from schemas.messages import Ask, Push

MOST_KINDS = 20
"""Kinds of sentences that are told apart: a hostile client can think of any number."""


@dataclass(slots=True)
class Round:
    """What the ranks sent about one step, until all of it is in.

    Attributes:
        parts: Message by rank.
        blocks: Blocks of rank 0, whose controls count.
        faults: Why they make no state, as a sentence, by the rank whose message showed it.
    """

    parts: dict[int, Ask | Push] = field(default_factory=dict)
    blocks: Mapping[str, Block] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)

    def fault(self, ranks: int) -> str:
        """Why no state comes of it, once so many ranks have sent their parts; empty before, and when one does."""
        return next(iter(self.faults.values())) if self.faults and len(self.parts) >= ranks else ""

    def asks(self, ranks: int) -> dict[int, Ask] | None:
        """The Asks by rank, once so many ranks have asked; None before."""
        if len(self.parts) < ranks:  # with many ranks nearly always, so no table of them is made
            return None
        asks = {rank: part for rank, part in self.parts.items() if isinstance(part, Ask)}
        return asks if len(asks) >= ranks else None


class Rounds:
    """The open Rounds by step."""

    def __init__(self, depth: int) -> None:
        """Args: depth: Rounds that may be open; the oldest goes first."""
        self._depth = depth
        self._open: dict[int, Round] = {}

    def __len__(self) -> int:
        """Rounds that are open."""
        return len(self._open)

    def take(self, message: Ask | Push, blocks: Mapping[str, Block]) -> Round:
        """Puts a message into the Round of its step."""
        rank, step = message.stamp.rank, message.stamp.step
        for later, other in self._open.items():
            if later >= step:  # as in Assembly.add: the rank went back
                other.parts.pop(rank, None)
                other.faults.pop(rank, None)
        while step not in self._open and len(self._open) >= self._depth:
            del self._open[next(iter(self._open))]
        found = self._open.setdefault(step, Round())
        found.parts[rank] = message
        if rank == 0:
            found.blocks = blocks
        return found

    def close(self, step: int) -> None:
        """The Round of a step is complete; earlier ones will not be any more."""
        self._open = {s: r for s, r in self._open.items() if s > step}

    def clear(self) -> None:
        """Forgets all Rounds."""
        self._open.clear()


class Reasons:
    """Sentences that were said, counted by kind: those that differ in their numbers only are of one. Bounded.

    Attributes:
        counts: How often each kind was said, by the first sentence of it.
    """

    def __init__(self) -> None:
        """Nothing was said yet."""
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def note(self, sentence: str) -> bool:
        """Counts a sentence; whether it is the first of its kind."""
        kind = re.sub(r"\d+", "#", sentence)
        if kind not in self._first and len(self._first) >= MOST_KINDS:
            kind = sentence = "other reasons"
        self.counts[self._first.setdefault(kind, sentence)] += 1
        return self.counts[self._first[kind]] == 1


def with_invariants(snapshot: Snapshot, parts: Mapping[int, Ask | Push], reductions: Mapping[str, str]) -> Snapshot:
    """A global state with the global values of its invariants, as scalars called `invariant.NAME`."""
    extra = {}
    for name, reduction in reductions.items():
        # In the order of ranks, so that rounding does not depend on who came first.
        values = [parts[rank].invariants.get(name, math.nan) for rank in sorted(parts)]
        total = sum(values) if reduction == "sum" else max(values)
        extra[f"invariant.{name}"] = Block(np.array(total, dtype=np.float64))
    blocks = {**snapshot.blocks, **extra}
    return Snapshot(snapshot.step, snapshot.time, snapshot.dt, blocks, snapshot.controls_until)
