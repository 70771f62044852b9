"""What a client is told at its start: the run's name, its limits, and where it ends. Pure."""

from __future__ import annotations

import math

import msgspec

from schemas.fields import Snapshot

ROUNDING = 1e-9
"""Share of a step that counts as none: what is left before the end of a run, or beyond it."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client is told at its start and keeps to.

    Attributes:
        run: Name of the run.
        first_step: Step that this incarnation of the host continues from.
        last_step: Step at which the run ends at the latest.
        end_time: Simulated time at which it ends; the last step is cut to hit it.
        dt: dt of direct steps until an Advice says otherwise; 0 leaves it to the simulation's own Snapshot.dt.
        dt_steps: Steps from the state that it answers for which an advised dt holds when no newer one comes.
        keep_every: Direct steps between states kept, so that a step that fails can be taken again with a smaller dt;
            0 where dt is not chosen: then a step that fails ends the run.
        deadline_s: Longest wait for the answer to a LEARNED Ask, seconds.
        max_message_bytes: Largest message accepted.
        digest: Whether arrays carry a digest.
    """

    run: str
    last_step: int
    first_step: int = 0
    end_time: float = math.inf
    dt: float = 0.0
    dt_steps: int = 8
    keep_every: int = 0
    deadline_s: float = 2.0
    max_message_bytes: int = 1 << 30
    digest: bool = True

    def over(self, snapshot: Snapshot) -> bool:
        """Whether the run ends at this state."""
        return snapshot.step >= self.last_step or self.end_time - snapshot.time <= ROUNDING * snapshot.dt

    def cut(self, dt: float, time: float) -> float:
        """The dt of a step from `time`: shorter where it would pass the end, a hair longer where that hits it."""
        left = self.end_time - time
        return left if left <= dt * (1.0 + ROUNDING) else dt

    def room(self, snapshot: Snapshot, until: int) -> int:
        """The step up to which whole steps of the present dt reach, at most `until`: learned steps are whole."""
        if math.isinf(self.end_time):
            return until
        whole = math.floor((self.end_time - snapshot.time) / snapshot.dt * (1.0 + ROUNDING))
        return min(until, snapshot.step + whole)
