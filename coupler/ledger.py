"""The Ledger: where the time of the solver's thread went. Times come in as arguments."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RECENT = 32
"""Direct steps that an undisturbed one is taken from."""


@dataclass(slots=True)
class Ledger:
    """Books of one rank. Time between two exchanges belongs to the step that the first of them decided.

    Attributes:
        direct_s: Wall time of directly integrated steps, library excluded.
        direct_steps: Their number.
        rejected_steps: Steps that made too large an error, and were made again; their time is in `direct_s`.
        learned_s: Wall time of learned phases: waiting, checking and adopting, seconds.
        learned_steps: Steps they covered.
        stalls: Wall time inside the library, seconds, one for each exchange.
        recent: Wall time of the newest direct steps, seconds.
    """

    clock: Callable[[], float]
    direct_s: float = 0.0
    direct_steps: int = 0
    rejected_steps: int = 0
    learned_s: float = 0.0
    learned_steps: int = 0
    stalls: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _entered: float = 0.0
    _left: float = -1.0
    _covered: int = 0

    def enter(self) -> float:
        """An exchange begins: what ran since the last one ended was the host's step. Returns the time."""
        self._entered = self.clock()
        if self._left < 0.0:
            return self._entered
        spent = self._entered - self._left
        if self._covered:
            self.learned_s += spent
        else:
            self.direct_s += spent
            self.direct_steps += 1
            self.recent.append(spent)
        return self._entered

    def waited(self, seconds: float) -> None:
        """The present exchange has waited for slower ranks: that is time of the solver, not of the library."""
        if self._entered < self._left:  # between two exchanges, which is the solver's time anyway
            return
        self._entered += seconds
        if self._covered:
            self.learned_s += seconds
        elif self.recent:
            self.direct_s += seconds
            self.recent[-1] += seconds

    def inside(self, now: float) -> float:
        """Seconds that the present exchange has taken by `now`."""
        return now - self._entered

    def leave(self, learned_steps: int) -> float:
        """An exchange ends; returns its stall in seconds.

        Args:
            learned_steps: Steps covered by the state the host is about to adopt; 0 when it integrates directly.
        """
        self._left, self._covered = self.clock(), learned_steps
        stall = self._left - self._entered
        self.stalls.append(stall)
        if learned_steps:
            self.learned_s += stall
            self.learned_steps += learned_steps
        return stall

    def replay(self, times: list[float]) -> None:
        """Books exchanges before direct steps, from the times at which they began and ended in turn; empties the list.

        The last may have begun only.
        """
        for entered, left in zip(times[::2], times[1::2], strict=False):
            if self._left >= 0.0:
                self.direct_s += entered - self._left
                self.direct_steps += 1
            self._left = left
            self.stalls.append(left - entered)
        del times[: len(times) // 2 * 2]

    def direct_step(self) -> float:
        """Wall time of a direct step that nothing disturbs, seconds: the lower quartile of the recent ones; 0 before.

        A trainer on the same cores slows most steps while it learns; the budget must not count that as theirs.
        """
        # np.quantile takes 30 us, more than all the rest of an Ask
        return sorted(self.recent)[(len(self.recent) - 1) // 4] if self.recent else 0.0

    def summary(self) -> dict[str, Any]:
        """The books as plain numbers, for the run folder."""
        stalls = np.asarray(self.stalls or [0.0])
        return {
            "direct_s": self.direct_s,
            "direct_steps": self.direct_steps,
            "rejected_steps": self.rejected_steps,
            "direct_step_s": self.direct_s / self.direct_steps if self.direct_steps else None,
            "learned_s": self.learned_s,
            "learned_steps": self.learned_steps,
            "learned_step_s": self.learned_s / self.learned_steps if self.learned_steps else None,
            "stall_s": float(stalls.sum()),
            "stall_p50_s": float(np.percentile(stalls, 50)),
            "stall_p99_s": float(np.percentile(stalls, 99)),
            "exchanges": len(self.stalls),
        }
