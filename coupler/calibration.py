"""Calibration of the horizon error: split conformal prediction on back-tests, with the coverage that came out.

A model's own estimate of its error is a guess. The ratio of observed to estimated error over back-tests (forecasts from
stored direct states that the model was not trained on) says how far to trust it: the bound at horizon h is the estimate
times the conformal quantile of those ratios at h. With n exchangeable ratios the ceil((n + 1) c)-th smallest covers a
new one with probability at least c (Vovk, Gammerman and Shafer 2005; Lei et al., JASA 113 (2018) 1094).

What comes next need not be like what was stored: a trajectory enters parts of the state space where it never was, and a
forecast that starts from a forecast starts beside the data. So each forecast whose truth becomes known, live or by an
audit, gives a score: its error over the bound that back-tests alone give. The bound is that bound times the quantile of
the newest scores, or times the last one, which is about this very place, where these are above 1. The coverage found is
measured and reported too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from coupler.contracts import Backtest

FLOOR = 1e-12
"""Smallest error estimate that is divided by."""
SCORES = 20
"""Newest scores that count: the quantile of so many leaves out the largest."""
SHORTEST_STRETCH = 40
"""Learners look at new states by the dozen."""


class Calibration(msgspec.Struct, frozen=True):
    """What is known about the horizon error of the serving model. Immutable: every change makes a new one.

    Attributes:
        coverage: Target, the share of horizon errors that shall lie below the bound.
        ratios: Sorted observed/estimated ratios by horizon.
        estimates: Typical (median) error estimate by horizon.
        scores: Errors that became known last, each over the bound that back-tests alone had given it.
        checked: Live forecasts whose error became known.
        covered: How many of them lay below their bound.
        worst: Largest live error found.
    """

    coverage: float = 0.9
    ratios: dict[int, tuple[float, ...]] = {}
    estimates: dict[int, float] = {}
    scores: tuple[float, ...] = ()
    checked: int = 0
    covered: int = 0
    worst: float = 0.0

    @property
    def longest(self) -> int:
        """Longest back-tested horizon; 0 when there is none. No learned phase may outlast it."""
        return max(self.ratios, default=0)

    @property
    def measured(self) -> float:
        """Share of live forecasts below their bound; NaN before the first."""
        return self.covered / self.checked if self.checked else math.nan

    def quantile(self, horizon: int) -> float:
        """Conformal quantile of the ratios at the shortest back-tested horizon that is not shorter than `horizon`."""
        longer = [h for h in self.ratios if h >= horizon]
        if not longer:
            return math.inf
        ratios = self.ratios[min(longer)]
        rank = math.ceil((len(ratios) + 1) * self.coverage)
        # Fewer ratios than the coverage needs (9 for 90 %) give no finite guarantee: nothing is promised then.
        return ratios[rank - 1] if rank <= len(ratios) else math.inf

    @property
    def inflation(self) -> float:
        """By how much the bounds of back-tests must be raised to hold for the newest forecasts; 1 when they do."""
        if not self.scores:
            return 1.0
        rank = math.ceil((len(self.scores) + 1) * self.coverage)
        return max(1.0, sorted(self.scores)[min(rank, len(self.scores)) - 1], self.scores[-1])

    def backtested(self, horizon: int, estimate: float) -> float:
        """Bound of the error of a forecast over `horizon` steps by back-tests alone; its own estimate is given."""
        return _or_infinity(self.quantile(horizon) * max(estimate, FLOOR))

    def bound(self, horizon: int, estimate: float) -> float:
        """Calibrated bound of the error of a forecast over `horizon` steps whose own estimate is given."""
        return _or_infinity(self.inflation * self.backtested(horizon, estimate))

    def typical(self, horizon: int) -> float:
        """Bound by back-tests alone of a forecast over `horizon` steps, at the typical estimate."""
        longer = [h for h in self.ratios if h >= horizon]
        return self.backtested(horizon, self.estimates[min(longer)]) if longer else math.inf

    def horizon(self, tolerance: float, cap: int) -> int:
        """Longest horizon up to `cap` whose bound, at its typical estimate, keeps the tolerance; 0 when none does.

        Every shorter back-tested horizon must keep it too: a bound that is met again later is luck.
        """
        best, inflation = 0, self.inflation
        for h in sorted(self.ratios):
            if inflation * self.typical(h) > tolerance:
                break
            best = h
        return min(best, cap)

    def stretch(self, tolerance: float, cap: int) -> int:
        """Direct steps in a row that would allow twice the present horizon; 0 when data are not what limits it.

        They do when the bound is below half of the tolerance, so that twice the horizon would keep it too, and the next
        longer horizon has too few back-tests, or none.
        """
        usable = self.horizon(tolerance, cap)
        if not 0 < usable < cap or self.bound(usable, self.estimates.get(usable, math.inf)) > 0.5 * tolerance:
            return 0
        if any(h > usable and math.isfinite(self.quantile(h)) for h in self.ratios):
            return 0
        needed = math.ceil(self.coverage / (1.0 - self.coverage))
        return max(2 * usable + needed, SHORTEST_STRETCH)

    def observed(self, bound: float, error: float) -> Calibration:
        """Counts one live forecast whose error became known."""
        inside = error <= bound
        return msgspec.structs.replace(
            self, checked=self.checked + 1, covered=self.covered + inside, worst=max(self.worst, error)
        )

    def scored(self, backtested: float, error: float) -> Calibration:
        """Takes an error that became known, and the bound that back-tests alone had given it."""
        if not math.isfinite(backtested):
            return self
        score = _or_infinity(error / max(backtested, FLOOR))
        return msgspec.structs.replace(self, scores=(*self.scores, score)[-SCORES:])

    def learned(self, backtests: Iterable[Backtest]) -> Calibration:
        """Takes the back-tests of a newly promoted model in place of the old ones; scores and counts go on.

        Without any back-tests the scores end too: they were about dynamics that are no more.
        """
        by_horizon: dict[int, list[Backtest]] = {}
        for test in backtests:
            by_horizon.setdefault(test.horizon, []).append(test)
        ratios, estimates = {}, {}
        for h, tests in by_horizon.items():
            ratios[h] = tuple(sorted(_ratio(t) for t in tests))
            estimates[h] = sorted(_or_infinity(t.estimated) for t in tests)[len(tests) // 2]
        scores = self.scores if ratios else ()
        return msgspec.structs.replace(self, ratios=ratios, estimates=estimates, scores=scores)


def _ratio(test: Backtest) -> float:
    return _or_infinity(test.observed / max(test.estimated, FLOOR)) if math.isfinite(test.estimated) else math.inf


def _or_infinity(value: float) -> float:
    """A number that is not finite, or none at all, promises nothing."""
    return value if math.isfinite(value) else math.inf
