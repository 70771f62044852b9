"""Stored states as the search for a model sees them: in the order they came, the newest held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_servers.models import affine
from ml_servers.models.pod import Floats32, Gram, Reduction
from ml_servers.tasks.trajectory import Course, Layout, clipped

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Window:
    """Stored states in the order they came, and where the hold-out begins.

    Attributes:
        layout: Where the fields lie in a row.
        rows: All row memory, shape (capacity, width), relative to `origin`.
        index: Row numbers of the states, shape (n,).
        arrivals: How many samples had been offered before each, shape (n,).
        steps: Their coupling steps, shape (n,).
        origin: Shape (width,).
        controls: Shape (n, m).
        observables: Shape (n, o).
        runs: Stretches of consecutive states.
        split: States from here on are held out.
        gram: Inner products of the rows; None for small states.
    """

    layout: Layout
    rows: Floats32
    index: Indices
    arrivals: Indices
    steps: Indices
    origin: Floats
    controls: Floats
    observables: Floats
    runs: affine.Runs
    split: int
    gram: Gram | None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def seen(self) -> int:
        """Arrival number of the last state before the hold-out."""
        return int(self.arrivals[self.split - 1]) if self.split else -1

    def held_out(self, after: int = -1) -> affine.Runs:
        """Runs of the hold-out that arrived after a given arrival number."""
        first = int(np.searchsorted(self.arrivals, after, side="right"))
        return clipped(self.runs, max(self.split, first), len(self))

    def course(self, reduction: Reduction) -> Course:
        """All states in the coordinates of a reduction."""
        latents, outside = reduction.encode_rows(self.rows, self.index, self.origin)
        return Course(latents, outside, self.controls, self.runs)


def split_point(n: int, runs: affine.Runs, share: float) -> int:
    """Where a hold-out of the newest states begins: where a trajectory does, so that none is on both sides.

    Only where that would leave less than half of the other states to train on is a trajectory cut in time.

    Args:
        n: Number of states.
        runs: Stretches of consecutive states.
        share: Share of the states to hold out, at least.
    """
    split = int(n * (1 - share))
    begins = max((start for start, _ in runs if start <= split), default=0)
    return begins if begins >= split / 2 else split
