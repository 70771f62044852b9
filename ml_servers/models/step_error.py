"""How the error of a step depends on its dt and on the state: a linear model with a calibrated probability.

The error of a step of length dt behaves like C dt^p, with p the order of the method and C a property of the state. So
log(error / tolerance) is nearly that of the last step plus p times the rise of log dt, but for what of the last C was
chance. That share, and what is left, are learned from the state by Bayesian linear regression (C. M. Bishop, Pattern
Recognition and Machine Learning, section 3.3). Its predictive spread grows with the distance from the data, and is then
calibrated: the distribution of past forecast errors over their spread stands in for the normal one, as in conformal
prediction (G. Shafer and V. Vovk, J. Mach. Learn. Res. 9, 371, 2008).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KNOWN = 3
"""Columns in front of the state's features: rise of log dt, log error of the last known step, log of its dt."""
FIRST_NOISE = 0.5
"""Spread of the log error expected before there are data."""
SLOPES = (1.0, 12.0)
"""Limits of the learned order. Where dt hardly varies the data say nothing about it."""

_PRIOR_ORDER, _PRIOR_FORGOTTEN, _PRIOR_KNOWN = 2.0, 1.0, 0.03
_PRIOR_FEATURE, _PRIOR_CONSTANT = 0.1, 0.2
_LEAST_NOISE = 0.05
_FARTHEST = 8.0
"""Features count at most this many standard deviations: spikes must not outweigh all else."""


@dataclass(frozen=True, slots=True)
class StepError:
    """The model. A row holds `KNOWN` columns, k features of the state and a 1; its answer is the rise of log error.

    Attributes:
        coefficients: Posterior mean, shape (d,), d = KNOWN + k + 1; the first is the order p.
        covariance: Posterior covariance, shape (d, d).
        centre: What is subtracted from a row, shape (d,).
        scale: What it is then multiplied by, shape (d,).
        noise: Spread of the answers about the model.
        surprises: Sorted past forecast errors over their predicted spread, shape (n,).
    """

    coefficients: Floats
    covariance: Floats
    centre: Floats
    scale: Floats
    noise: float
    surprises: Floats

    def scaled(self, rows: Floats) -> Floats:
        """Rows, shape (..., d), in the units of the regression."""
        scaled: Floats = (rows - self.centre) * self.scale
        features = scaled[..., KNOWN:-1]
        np.minimum(np.maximum(features, -_FARTHEST, out=features), _FARTHEST, out=features)
        return scaled

    def surprise(self, row: Floats, rise: float) -> float:
        """How far an observed rise lay above the forecast for its row, shape (d,), in predicted spreads."""
        scaled = self.scaled(row)
        spread = np.sqrt(self.noise**2 + scaled @ self.covariance @ scaled)
        return float((rise - scaled @ self.coefficients) / spread)

    def odds(self, row: Floats) -> Odds:
        """What follows from a row, shape (d,); its first column is not used."""
        scaled = self.scaled(row)
        scaled[0] = 0.0
        across = self.covariance @ scaled
        return Odds(
            error=float(row[1] + scaled @ self.coefficients),
            order=float(self.coefficients[0]),
            variance=(self.noise**2 + float(scaled @ across), 2.0 * float(across[0]), float(self.covariance[0, 0])),
            surprises=self.surprises,
        )


@dataclass(frozen=True, slots=True)
class Odds:
    """The probability that a step keeps its tolerance, as a function of its dt.

    Attributes:
        error: Log error expected of a step like the last known one.
        order: What the log error rises by with log dt.
        variance: Coefficients of its predicted variance, a polynomial in the rise of log dt, lowest power first.
        surprises: See `StepError`.
    """

    error: float
    order: float
    variance: tuple[float, float, float]
    surprises: Floats

    def kept(self, log_dt_rises: Floats) -> Floats:
        """Probability that the log error stays at or below 0, for each of several dt.

        Args:
            log_dt_rises: Log of each dt over the dt of the last known step, any shape.

        Returns:
            The same shape, between 0 and n / (n + 1).
        """
        constant, linear, square = self.variance
        mean = self.error + self.order * log_dt_rises
        spread = np.sqrt(constant + log_dt_rises * (linear + square * log_dt_rises))
        kept: Floats = self.surprises.searchsorted(-mean / spread, side="right") / (self.surprises.size + 1.0)
        return kept


def fit(rows: Floats, rises: Floats, weights: Floats, order: float, noise: float, surprises: Floats) -> StepError:
    """Fits the model.

    Args:
        rows: Shape (n, d), n at least 1; the last column is 1.
        rises: Observed rises of log error, shape (n,).
        weights: Share of a lesson that each is, shape (n,): 1 / k where k of them look at the same steps, or the
            model would be as sure as if it had seen each of those steps k times.
        order: Expected order p.
        noise: Spread of the previous model, `FIRST_NOISE` when there is none.
        surprises: Past forecast errors over their predicted spread, shape (m,), in any order.

    Returns:
        The model.
    """
    d = rows.shape[1]
    centre, scale, spread = rows.mean(axis=0), np.ones(d), rows.std(axis=0)
    # A feature that has not changed so far has nothing to say, and would have too much to say at its first change.
    changed = spread > 1e-12 * np.abs(centre)
    scale[KNOWN:-1] = np.where(changed, 1.0 / np.where(changed, spread, 1.0), 0.0)[KNOWN:-1]
    centre[[0, -1]] = 0.0
    blank = StepError(np.zeros(d), np.eye(d), centre, scale, noise, np.sort(surprises))
    scaled = blank.scaled(rows)
    expected = np.zeros(d)
    expected[0] = order
    weighed = scaled.T * weights
    covariance = np.asarray(np.linalg.inv(weighed @ scaled / noise**2 + np.linalg.inv(_prior(d, order))), np.float64)
    left = rises - scaled @ expected
    change = covariance @ (weighed @ left) / noise**2
    rest = left - scaled @ change
    # As if four answers had been seen that the model met to within the least noise.
    left_over = math.sqrt((float(weights @ rest**2) + 4 * _LEAST_NOISE**2) / (float(weights.sum()) + 4))
    coefficients = expected + change
    coefficients[0] = min(max(coefficients[0], SLOPES[0]), SLOPES[1])
    return replace(blank, coefficients=coefficients, covariance=covariance, noise=max(left_over, _LEAST_NOISE))


def _prior(d: int, order: float) -> Floats:
    """Covariance that is expected of the coefficients, shape (d, d).

    How much of log C = log error - p log dt of the last known step is forgotten is open: nothing where C is a property
    of the state, all of it where it was chance. So the coefficients of that log error and of that log dt go together.
    """
    prior = np.diag(np.full(d, _PRIOR_FEATURE**2))
    prior[0, 0], prior[-1, -1], prior[2, 2] = _PRIOR_ORDER**2, _PRIOR_CONSTANT**2, _PRIOR_KNOWN**2
    forgotten = np.array([-1.0, order])
    prior[1:KNOWN, 1:KNOWN] = _PRIOR_FORGOTTEN**2 * np.outer(forgotten, forgotten) + _PRIOR_KNOWN**2 * np.eye(2)
    return prior
