"""Training memory of fixed size: the newest samples, a reservoir of older ones, and a count of every fate."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_EMPTY = -1


class Counts(msgspec.Struct, frozen=True):
    """Every sample offered is held, evicted (room was needed) or superseded (its branch was abandoned)."""

    offered: int = 0
    evicted: int = 0
    superseded: int = 0

    @property
    def held(self) -> int:
        """Samples in memory now."""
        return self.offered - self.evicted - self.superseded


@dataclass(frozen=True, slots=True)
class View:
    """The held samples in the order they came.

    Attributes:
        rows: Row numbers, shape (n,).
        arrivals: How many samples had been offered before each, shape (n,); increasing.
        steps: Coupling steps, shape (n,).
        segments: Trajectory segments, shape (n,): equal numbers and steps that differ by one mean consecutive states.
        recent: Whether a row belongs to the recent window (not to the reservoir), shape (n,).
    """

    rows: Indices
    arrivals: Indices
    steps: Indices
    segments: Indices
    recent: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)


class Buffer:
    """Rows of samples in memory allocated once.

    Rows are kept in pieces of consecutive samples, so that what the reservoir keeps of old trajectories still holds
    transitions. The newest pieces form the recent window; a piece that leaves it is offered to the reservoir, a uniform
    sample of all that left (algorithm R, J. S. Vitter, ACM TOMS 11, 37, 1985), or is evicted.

    The caller writes the values into `rows[buffer.place(step)]`; other per-sample arrays may be kept by row number.
    """

    def __init__(self, width: int, capacity: int, *, piece: int = 1, rehearsal: float = 0.0, seed: int = 0) -> None:
        """Makes an empty buffer.

        Args:
            width: Values in a row.
            capacity: Rows to hold at most; see `rows_within`.
            piece: Consecutive samples that are kept or evicted together.
            rehearsal: Share of the pieces that belongs to the reservoir, in [0, 1).
            seed: Seed of the reservoir's choices.
        """
        pieces = capacity // piece
        if width < 1 or pieces < 2:
            raise ValueError(
                f"the training window holds {capacity} samples in pieces of {piece}, but at least two pieces are "
                "needed; raise window_bytes"
            )
        self.rows = np.empty((pieces * piece, width), np.float32)
        self._steps = np.full((pieces, piece), _EMPTY, np.int64)
        self._segments = np.zeros((pieces, piece), np.int64)
        self._arrivals = np.zeros((pieces, piece), np.int64)
        self._free = deque(range(pieces))
        self._recent: deque[int] = deque()
        self._reservoir: list[int] = []
        self._reserved = min(int(rehearsal * pieces), pieces - 2)
        self._left_window = 0
        self._rng = np.random.default_rng(seed)
        self._open_rows = 0
        self._segment = 0
        self._offered = self._evicted = self._superseded = 0
        self.last_step = -1

    @property
    def capacity(self) -> int:
        """Rows in memory."""
        return len(self.rows)

    @property
    def counts(self) -> Counts:
        """The fate of every sample so far."""
        return Counts(self._offered, self._evicted, self._superseded)

    def place(self, step: int) -> int:
        """Takes in a sample: gives the row to write it to.

        A step that does not follow the last one starts a segment; a step at or before the last one also drops the
        samples from that step on: they belong to a branch that was left.
        """
        if step <= self.last_step:
            self.supersede(step)
        if step != self.last_step + 1:
            self.cut()
        if not self._recent or self._open_rows in (0, self._steps.shape[1]):
            self._recent.append(self._free_piece())
            self._open_rows = 0
        piece, offset = self._recent[-1], self._open_rows
        self._steps[piece, offset] = step
        self._segments[piece, offset] = self._segment
        self._arrivals[piece, offset] = self._offered
        self._open_rows += 1
        self._offered += 1
        self.last_step = step
        return piece * self._steps.shape[1] + offset

    def cut(self) -> None:
        """Ends the present segment: the next sample does not follow from the last one."""
        self._segment += 1
        self._open_rows = 0

    def clear(self) -> None:
        """Evicts every sample."""
        for piece in (*self._recent, *self._reservoir):
            self._evict(piece)
        self._recent.clear()
        self._reservoir.clear()
        self._left_window = 0
        self.cut()

    def supersede(self, step: int) -> None:
        """Drops the samples from a step on: they belong to a branch that was left, or are not fit to learn from."""
        later = self._steps >= step
        self._superseded += int(np.count_nonzero(later))
        self._steps[later] = _EMPTY
        emptied = {int(p) for p in np.flatnonzero((self._steps == _EMPTY).all(axis=1))} - set(self._free)
        self._recent = deque(p for p in self._recent if p not in emptied)
        self._reservoir = [p for p in self._reservoir if p not in emptied]
        self._free.extend(sorted(emptied))
        self.last_step = step - 1
        self.cut()

    def view(self, among: Indices | None = None) -> View:
        """The held samples, or those of them that are in the given rows, in the order they came."""
        steps = self._steps.ravel()
        rows = np.flatnonzero(steps != _EMPTY)
        if among is not None:
            rows = np.intersect1d(rows, among)
        rows = rows[np.argsort(self._arrivals.ravel()[rows])]
        arrivals = self._arrivals.ravel()[rows]
        recent = np.isin(rows // self._steps.shape[1], np.fromiter(self._recent, np.int64, len(self._recent)))
        return View(rows, arrivals, steps[rows], self._segments.ravel()[rows], recent)

    def _free_piece(self) -> int:
        while not self._free:
            piece = self._recent.popleft()
            self._left_window += 1
            if len(self._reservoir) < self._reserved:
                self._reservoir.append(piece)
            elif self._reserved and self._rng.random() < self._reserved / self._left_window:
                chosen = int(self._rng.integers(self._reserved))
                self._reservoir[chosen], piece = piece, self._reservoir[chosen]
                self._evict(piece)
            else:
                self._evict(piece)
        return self._free.popleft()

    def _evict(self, piece: int) -> None:
        self._evicted += int(np.count_nonzero(self._steps[piece] != _EMPTY))
        self._steps[piece] = _EMPTY
        self._free.append(piece)


def rows_within(budget_bytes: int, width: int, limit: int) -> int:
    """Rows of `width` float32 values that fit into a budget in bytes, at most `limit`."""
    return min(limit, budget_bytes // (4 * width))
