"""The dt of a direct step: what was advised, while that is fresh; less after a failure; cut at the end. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from coupler.guard import Guard
from coupler.retry import SMALLER, Retry
from coupler.terms import Terms
from schemas.fields import Snapshot

ROUNDING = 1e-6
"""Relative difference up to which the dt of a state is the one that was given for the step to it."""

IN_A_ROW = 4
"""So many rejected steps in a row are not chance: the dt that was meant is too large."""


class ChosenDt:
    """Fed with what all ranks know, so that it is the same on all of them.

    An advised dt is meant for the state that it answers and a few steps beyond. Where no newer one comes, because the
    server is gone or the solver too fast for it, the simulation's own dt takes its place unless that is larger.
    """

    def __init__(self, terms: Terms, guard: Guard) -> None:
        """Args: terms: Terms of the run. guard: Its limits of dt."""
        self._terms, self._guard = terms, guard
        self._retry = Retry(terms.keep_every)
        self._advised, self._answers = 0.0, 0
        self._own = 0.0
        self._given = math.nan  # dt of the last step, where it came from an Advice
        self._rejected: tuple[float, float] | None = None  # dt that the last step was made with, and meant to be
        self._rejected_at, self._in_a_row = -2, 0  # step that it led to, and how many there were up to it
        self._slowed_at = -1  # step that the last one of too many in a row led to

    def told(self, advised: float, answers: int, *, goes_on: bool = False) -> None:
        """A dt was advised at the state of step `answers`; 0 when none was, with `goes_on` when nothing changes."""
        self._advised = advised if advised or not goes_on else self._advised
        self._answers = answers

    def meant(self, snapshot: Snapshot) -> Snapshot:
        """A state with the dt that the step to it was meant to have, where it was made again with a smaller one.

        Too large an error may be chance, of which nothing follows for the next step; in many steps in a row it is not.
        """
        if not (self._rejected and math.isclose(snapshot.dt, self._rejected[0], rel_tol=ROUNDING)):
            return snapshot
        smaller, dt = self._rejected
        self._in_a_row = self._in_a_row + 1 if snapshot.step == self._rejected_at + 1 else 1
        if self._advised and self._in_a_row >= IN_A_ROW:
            dt = self._given = math.sqrt(smaller * dt)
            self._slowed_at = snapshot.step
        self._rejected_at = snapshot.step
        return replace(snapshot, dt=dt)

    def next(self, snapshot: Snapshot) -> float:
        """The dt of a direct step from here."""
        self._rejected = None
        if not math.isclose(snapshot.dt, self._given, rel_tol=ROUNDING):  # the simulation's own choice
            self._own = snapshot.dt
        own = self._terms.dt or self._own
        dt = self._guard.dt(self._advised, own)
        if snapshot.step - self._answers > self._terms.dt_steps:
            dt = min(dt, own)
        if snapshot.step == self._slowed_at > self._answers:  # what was advised does not know of it
            dt = min(dt, snapshot.dt)
        dt = self._terms.cut(min(dt, self._retry.limit(snapshot.step)), snapshot.time)
        self._given = dt if self._advised else math.nan
        return dt

    def rejected(self, dt: float) -> float:
        """A step of dt made too large an error; the dt to make it again with, 0 when none is allowed."""
        smaller = SMALLER * dt
        if smaller < self._guard.dt_min:
            return 0.0
        self._rejected = smaller, self._rejected[1] if self._rejected else dt
        return smaller

    def failed(self, step: int, dt: float) -> float:
        """A step of dt from `step` failed; the dt to try next, 0 when enough was tried."""
        return self._retry.failed(step, dt)
