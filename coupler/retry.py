"""What dt a run may use after a step has failed: less, until it is well past the place. Pure."""

from __future__ import annotations

import math

SMALLER = 0.5
"""dt of a step that is taken again, over the dt that failed."""
MOST = 10
"""Failures in a row, none of them further on than the one before, after which the run is given up."""


class Retry:
    """The largest dt after failures. Fed with what all ranks know, so that it is the same on all of them."""

    def __init__(self, steps: int) -> None:
        """Args: steps: Steps beyond a failed one for which its limit holds."""
        self._steps = steps
        self._limit, self._until, self._failed_at, self._count = math.inf, -1, -1, 0

    def limit(self, step: int) -> float:
        """Largest dt of the step from here."""
        if step > self._until:
            self._limit = math.inf
        return self._limit

    def failed(self, step: int, dt: float) -> float:
        """A step of dt from `step` failed; the dt to try next, 0 when enough was tried."""
        self._count = self._count + 1 if step <= self._failed_at else 1
        self._failed_at = step
        self._limit, self._until = SMALLER * min(dt, self._limit), step + self._steps
        return self._limit if self._count <= MOST else 0.0


def given_up(failure: BaseException) -> str:
    """What to say when no smaller dt is left to try."""
    return f"{failure}. Going back and trying smaller dt did not help; look at the state, or lower limits.dt_min."
