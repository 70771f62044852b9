"""Back-tests: free-running forecasts over stored direct data that the model has not seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coupler.contracts import Backtest
from ml_servers.models.affine import Runs
from ml_servers.tasks.trajectory import Course

Floats = NDArray[np.float64]

ENOUGH_STARTS = 8
"""Starts at a horizon that make its back-tests worth more than those of an earlier model of the same kind."""
LADDER = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
"""Horizons that are back-tested, as far as stored segments reach."""


class Dynamics(Protocol):
    """A map of latent coordinates that can run free."""

    def course(self, latents: Floats, controls: Floats, horizon: int) -> Iterator[tuple[Floats, float | Floats]]:
        """After each of `horizon` steps from latents (n, r) under constant controls (n, m): the states, shape (n, r),
        and how far the members of an ensemble lie apart, shape (n,) or 0.
        """
        ...


class Persistence:
    """Nothing changes: what a model must beat to be worth anything."""

    def course(self, latents: Floats, controls: Floats, horizon: int) -> Iterator[tuple[Floats, float]]:  # noqa: ARG002
        """See `Dynamics.course`."""
        for _ in range(horizon):
            yield latents, 0.0


@dataclass(frozen=True, slots=True)
class Errors:
    """What a back-test found at one horizon, one value for each start: relative errors and ensemble spreads."""

    observed: Floats
    spread: Floats


def horizon_errors(
    dynamics: Dynamics, course: Course, runs: Runs, ladder: Sequence[int] = LADDER, starts: int = 128
) -> dict[int, Errors]:
    """Forecasts freely from many states and compares with what followed, rest outside the latent space included.

    Args:
        dynamics: The map.
        course: Stored states in its coordinates.
        runs: Where in `course` to start and to end; no forecast leaves its run.
        ladder: Horizons wanted; those that no run is long enough for are left out.
        starts: Starting states at most, spread evenly.
    """
    where = np.concatenate([np.arange(a, b - 1) for a, b in runs if b - a > 1] or [np.zeros(0, np.int64)])
    room = np.concatenate([np.arange(b - a - 1, 0, -1) for a, b in runs if b - a > 1] or [np.zeros(0, np.int64)])
    stride = max(1, -(-len(where) // starts))
    where, room = where[::stride], room[::stride]
    wanted = {h for h in ladder if len(room) and h <= room.max()}
    found: dict[int, Errors] = {}
    if not wanted:
        return found
    states = dynamics.course(course.latents[where], course.controls[where], max(wanted))
    for h, (latents, spread) in enumerate(states, start=1):
        if h in wanted:
            fits = room >= h
            ends = where[fits] + h
            missed = ((latents[fits] - course.latents[ends]) ** 2).sum(axis=1)
            spreads = np.broadcast_to(spread, where.shape)[fits]
            found[h] = Errors(np.sqrt(missed + course.outside[ends]), spreads)
    return found


@dataclass(frozen=True, slots=True)
class Scores:
    """What back-tests found, so that models can be compared whose errors are relative to different scales.

    Attributes:
        logs: Logarithm of the rms error at each horizon, in a unit common to all models.
        lost: Horizons at which the error is as large as the fluctuation itself: such a forecast says nothing.
    """

    logs: Mapping[int, float]
    lost: frozenset[int]

    @classmethod
    def of(cls, errors: Mapping[int, Errors], unit: float = 0.0, least: int = 3) -> Scores:
        """From back-tests: horizons with at least `least` starts (or all, when none has as many).

        Args:
            errors: The back-tests.
            unit: Logarithm of what one unit of relative error is worth in the common unit.
            least: See above.
        """
        enough = {h: e for h, e in errors.items() if len(e.observed) >= least} or errors
        found = {h: float(0.5 * np.log(np.mean(e.observed**2) + 1e-24)) for h, e in enough.items()}
        return cls({h: log + unit for h, log in found.items()}, frozenset(h for h, log in found.items() if log >= 0.0))

    def gain_over(self, rival: Scores) -> float:
        """Mean logarithm by which these errors are smaller than a rival's, over the horizons of both.

        Weights grow with the root of the horizon: short horizons mostly show what the latent space leaves out, long
        ones how the dynamics drift, but from fewer independent starts. Horizons that are lost to both do not count:
        beyond what can be predicted (chaos) all models are alike.
        """
        common = sorted(self.logs.keys() & rival.logs.keys())
        common = [h for h in common if not (h in self.lost and h in rival.lost)] or common
        gains = [rival.logs[h] - self.logs[h] for h in common]
        return float(np.average(gains, weights=np.sqrt(common))) if common else 0.0


@dataclass(frozen=True, slots=True)
class ErrorTable:
    """The model's own estimate of its error by horizon: rms of its back-tests, never falling with the horizon.

    Between tested horizons it is interpolated in log-log. Beyond the longest it grows in proportion to the horizon, as
    a phase that drifts does.

    Attributes:
        horizons: Increasing, shape (n,).
        errors: Never falling, shape (n,).
    """

    horizons: Floats
    errors: Floats

    @classmethod
    def of(cls, errors: Mapping[int, Errors]) -> ErrorTable:
        """From back-tests; needs at least one."""
        horizons = np.array(sorted(errors), np.float64)
        rms = [float(np.sqrt(np.mean(errors[int(h)].observed ** 2))) for h in horizons]
        return cls(horizons, np.maximum(np.maximum.accumulate(rms), 1e-12))

    def at(self, horizon: int) -> float:
        """The estimate at one horizon."""
        if horizon > self.horizons[-1]:
            return float(self.errors[-1] * horizon / self.horizons[-1])
        return float(np.exp(np.interp(np.log(horizon), np.log(self.horizons), np.log(self.errors))))


def backtests(errors: Mapping[int, Errors], table: ErrorTable, most: int = 64) -> dict[int, tuple[Backtest, ...]]:
    """The records for the Report, at most `most` for each horizon, spread evenly."""
    records = {}
    for h, e in errors.items():
        chosen = np.unique(np.linspace(0, len(e.observed) - 1, min(most, len(e.observed))).astype(int))
        records[h] = tuple(Backtest(h, max(table.at(h), float(e.spread[i])), float(e.observed[i])) for i in chosen)
    return records
