"""Runs the peers side by side and makes their rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.catalogue import BASELINE, PEERS
from benchmarks.peers.exchange import Peer, Place
from benchmarks.peers.pair import Pair, Times
from benchmarks.table import BenchmarkFailed, Row, Rows, row, timing


@dataclass(frozen=True, slots=True)
class Plan:
    """How often a size is measured.

    Attributes:
        turns: Turns that each peer takes.
        trips: Timed trips in a turn, fewer for a peer that would take longer than `TURN_S`.
    """

    turns: int
    trips: int


SIZES = {
    64: Plan(20, 50),
    8_000: Plan(20, 50),
    800_000: Plan(20, 20),
    8_000_000: Plan(10, 8),
    80_000_000: Plan(4, 3),
}
"""Bytes of an array, and how often it is measured."""
TURN_S = 0.3
"""Longest turn of a peer, unless it would have fewer than two trips."""


def rows(say: Callable[[str], None] = lambda _: None) -> Rows:
    """All figures of this group."""
    made: Rows = []
    for size, plan in SIZES.items():
        say(f"{size} bytes")
        made += compared(PEERS, size, plan)
    return skipped_once(made)


def compared(peers: Sequence[Peer], size: int, plan: Plan) -> Rows:
    """One size: puts of all peers, then round trips, then the peers that could not run."""
    times: dict[str, Times] = {}
    absent = {peer.name: why for peer in peers if (why := peer.missing()) is not None}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        pairs: dict[str, tuple[Pair, int]] = {}
        for at, peer in enumerate(peers):
            if peer.name in absent:
                continue
            place = Place(Path(folder) / str(at), size // 8)
            place.folder.mkdir(mode=0o700)
            try:
                pair = Pair(peer, place)
                stack.callback(pair.close)
                pair.turn(2)  # warms up
                typical_s = float(np.median(pair.turn(2)[1]))
            except BenchmarkFailed as problem:
                absent[peer.name] = str(problem)
            else:
                trips = min(plan.trips, max(2, int(TURN_S / typical_s)))
                pairs[peer.name], times[peer.name] = (pair, trips), ([], [])
        for _ in range(plan.turns):
            for name, (pair, trips) in pairs.items():
                for known, new in zip(times[name], pair.turn(trips), strict=True):
                    known.extend(new)
    return [
        *figures("put", size, times, 0),
        *figures("round trip", size, times, 1),
        *(row(f"{name}: skipped", against=why) for name, why in absent.items()),
    ]


def figures(what: str, size: int, times: dict[str, Times], which: int) -> list[Row]:
    """The rows of one kind of time, each against bare pyzmq where that ran too."""
    base = times.get(BASELINE.name, ([], []))[which]
    return [timing(f"{what}, {name}", size, seconds[which], base, BASELINE.name) for name, seconds in times.items()]


def skipped_once(made: Rows) -> Rows:
    """The rows without those of a peer whose absence an earlier row tells."""
    told = [r["case"] for r in made]
    return [r for at, r in enumerate(made) if r["p50_us"] is not None or r["case"] not in told[:at]]
