"""Memory of the newest pairs of steps, in the order of their coupling steps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class StepPairs:
    """Rows and answers for `ml_servers.models.step_error.fit`; at least the newest `capacity` of them.

    Attributes:
        count: Pairs held.
    """

    def __init__(self, capacity: int, width: int) -> None:
        """Args: capacity: Pairs that are given out. width: Columns of a row."""
        self.count = 0
        self._capacity = capacity
        # Twice the room, so that the newest always lie in one piece and move only once per `capacity` pairs.
        self._steps = np.zeros(2 * capacity, np.int64)
        self._rows, self._rises = np.zeros((2 * capacity, width)), np.zeros(2 * capacity)
        self._weights = np.zeros(2 * capacity)

    def append(self, step: int, row: Floats, rise: float, weight: float) -> None:
        """Takes in a pair whose error was seen at `step`, which is not below that of any pair held."""
        if self.count == len(self._steps):
            for array in (self._steps, self._rows, self._rises, self._weights):
                array[: self._capacity] = array[self._capacity :]
            self.count = self._capacity
        self._steps[self.count], self._rows[self.count] = step, row
        self._rises[self.count], self._weights[self.count] = rise, weight
        self.count += 1

    def drop_after(self, step: int) -> int:
        """Drops the pairs of later steps; how many those were."""
        before, self.count = self.count, int(np.searchsorted(self._steps[: self.count], step, side="right"))
        return before - self.count

    @property
    def last_step(self) -> int:
        """Step of the newest pair, -1 when there is none."""
        return int(self._steps[self.count - 1]) if self.count else -1

    def newest(self) -> tuple[Floats, Floats, Floats]:
        """Rows, shape (n, width), answers and weights, shape (n,), of the newest `capacity` pairs; views."""
        part = slice(max(0, self.count - self._capacity), self.count)
        return self._rows[part], self._rises[part], self._weights[part]
