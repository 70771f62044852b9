"""What a learner of dynamics remembers of the stream: states, controls and observables in a window of fixed size."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from ml_servers.buffer import Buffer, Counts, Indices, View, rows_within
from ml_servers.models.pod import Floats32, Gram, chunks
from ml_servers.tasks.trajectory import Layout, runs_of
from ml_servers.tasks.window import Window, split_point
from schemas.fields import Snapshot

Floats = NDArray[np.float64]

BLOCK = 32
"""Products with the whole window take 12, 7, 5 ms a state of 540,000 values in blocks of 8, 16, 32 (window of 256)."""
_REHEARSAL = 0.5
_PIECE = 32
_FAR = 10.0
"""Mean square distance from the origin, over the mean square fluctuation, from which another origin is taken."""
_SMALL_STATE_WINDOW = 16
"""A window of small states holds this many times as many of them."""


class Memory:
    """The window of stored states.

    Large states are kept as float32 differences from an origin, which is the first one at first, and their inner
    products beside them. Small states (at most `small` values) need no inner products; half their memory is a reservoir
    of old trajectories.
    """

    def __init__(self, layout: Layout, window: int, window_bytes: int, small: int, seed: int) -> None:
        """Args: layout: Fields. window, window_bytes: Limits of the stored states. small: See the class. seed: Of the
        reservoir.
        """
        self.layout = layout
        self.large = layout.width > small
        capacity = rows_within(window_bytes, layout.width, window if self.large else window * _SMALL_STATE_WINDOW)
        piece, rehearsal = (1, 0.0) if self.large else (min(_PIECE, max(1, capacity // 4)), _REHEARSAL)
        self._buffer = Buffer(layout.width, capacity, piece=piece, rehearsal=rehearsal, seed=seed)
        self._gram = Gram(layout.sizes, self._buffer.capacity) if self.large else None
        self._controls = np.zeros((self._buffer.capacity, layout.controls_width))
        self._observables = np.zeros((self._buffer.capacity, len(layout.observables)))
        self._origin: Floats | None = None
        # Rows in the order they came, each once: one that was written again is there for its newest state.
        self._fresh: dict[int, None] = {}
        self._pending: dict[int, None] = {}
        self._in_use = 0
        self._change_at = np.inf

    @property
    def counts(self) -> Counts:
        """The fate of every sample."""
        return self._buffer.counts

    @property
    def last_step(self) -> int:
        """Step of the newest sample."""
        return self._buffer.last_step

    @property
    def origin(self) -> Floats:
        """The state that rows are relative to."""
        if self._origin is None:
            raise ValueError("no state has been stored yet; observe one first")
        return self._origin

    @property
    def rows(self) -> Floats32:
        """The rows in use, relative to `origin`."""
        return self._buffer.rows[: self._in_use]

    def take(self, snapshot: Snapshot) -> None:
        """Copies a Snapshot into the window. One that is not finite is dropped and ends its segment."""
        if self._origin is None:
            self._origin = np.empty(self.layout.width)
            self.layout.write(snapshot, self._origin)
        if snapshot.time >= self._change_at:
            self._buffer.cut()  # a control was due to change on the way here: no model of the past could know how
        self._change_at = snapshot.controls_until
        row = self._buffer.place(snapshot.step)
        values = self._buffer.rows[row]
        self.layout.write(snapshot, values, self._origin)
        self._controls[row] = self.layout.imposed(snapshot)
        self._observables[row] = self.layout.observed(snapshot)
        self._in_use = max(self._in_use, row + 1)
        if np.isfinite(values.sum(dtype=np.float64)):
            for waiting in (self._fresh, self._pending) if self.large else (self._fresh,):
                waiting.pop(row, None)
                waiting[row] = None
        else:
            self._buffer.supersede(snapshot.step)

    @property
    def waiting(self) -> int:
        """States whose inner products are still to be computed."""
        return len(self._pending)

    def fresh(self) -> View:
        """The states taken since the last call."""
        view = self._buffer.view(np.fromiter(self._fresh, np.int64, len(self._fresh)))
        self._fresh.clear()
        return view

    def ingest(self) -> None:
        """Computes the inner products of a block of waiting states. Large blocks share the reading of the window."""
        block = np.sort(np.fromiter(islice(self._pending, BLOCK), np.int64))
        for row in block.tolist():
            del self._pending[row]
        if self._gram is not None:
            self._gram.update(self.rows, block)

    def recentre(self) -> None:
        """Takes the newest state for the origin when the states have gone far from it, as in a long transient.

        What they have in common would leave few digits of a float32 for what tells them apart.
        """
        index = self._buffer.view().rows
        if not len(index):
            return
        distance, fluctuation = self._spread(index)
        if not np.any(distance > _FAR * fluctuation):
            return
        newest = self._buffer.rows[index[-1]].astype(np.float64)
        for part in chunks(slice(0, self.layout.width)):
            self.rows[:, part] -= newest[part].astype(np.float32)
        self._origin = self.origin + newest
        if self._gram is not None:
            self._pending = dict.fromkeys(index.tolist())
            while self._pending:
                self.ingest()

    def _spread(self, index: Indices) -> tuple[Floats, Floats]:
        """Mean square distance of some states from the origin and from their mean, by field, shape (fields,)."""
        if self._gram is not None:
            products = self._gram.of(index)
            mean = products.mean(axis=(1, 2))
            return mean, np.diagonal(products, axis1=1, axis2=2).mean(axis=1) - mean
        rows = self._buffer.rows[index].astype(np.float64)
        found = [(rows[:, f].mean(axis=0) ** 2, rows[:, f].var(axis=0)) for f in self.layout.slices]
        return np.array([a.sum() for a, _ in found]), np.array([b.sum() for _, b in found])

    def controls(self, rows: Indices) -> Floats:
        """Controls of stored samples, shape (n, m)."""
        return self._controls[rows]

    def window(self, share: float, after: int = -1, least: int = 0) -> Window:
        """The stored states, the newest held out.

        Args:
            share: Share to hold out at most.
            after: Arrival number of the last state that the serving model was trained on: no more than the states after
                it need be held out to judge a candidate fairly, so that it may learn from the others.
            least: Fewest states to hold out all the same.
        """
        view = self._buffer.view()
        runs = runs_of(view.steps, view.segments)
        needed = max(least, int(np.count_nonzero(view.arrivals > after))) / max(1, len(view))
        return Window(
            self.layout,
            self._buffer.rows,
            view.rows,
            view.arrivals,
            view.steps,
            self.origin,
            self._controls[view.rows],
            self._observables[view.rows],
            runs,
            split_point(len(view), runs, min(share, needed)),
            self._gram,
        )

    def clear(self) -> None:
        """Forgets every state: the window starts again."""
        self._buffer.clear()
        self._fresh.clear()
        self._pending.clear()
