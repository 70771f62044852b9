"""Observables as polynomials of the latent coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_servers.models.polynomial_terms import most_leading, solve, terms

Floats = NDArray[np.float64]

_MOST_TERMS = 200
_RIDGE = 1e-10


@dataclass(frozen=True, slots=True)
class Readout:
    """y = weights @ terms(latents).

    Attributes:
        degree: Highest degree of the polynomial.
        leading: Coordinates that enter beyond the first degree.
        weights: Shape (observables, terms).
    """

    degree: int
    leading: int
    weights: Floats

    def __call__(self, latents: Floats) -> Floats:
        """Observables of states: (n, r) to (n, observables)."""
        values: Floats = terms(latents, self.degree, self.leading) @ self.weights.T
        return values


def fit(latents: Floats, observables: Floats, kept_out: int) -> Readout:
    """Fits polynomials of degree 1 to 4 and keeps the one that is best on states it has not seen.

    Args:
        latents: Shape (n, r), in the order of time.
        observables: Shape (n, m); m may be 0.
        kept_out: The newest states, used to choose the degree; the chosen one is fitted to all.
    """
    if not observables.shape[1]:
        return _solve(latents, observables, 1, 0)
    train = max(len(latents) - kept_out, 1)
    best, lowest = (1, 0), np.inf
    for degree in (1, 2, 3, 4):
        leading = most_leading(latents.shape[1], degree, min(_MOST_TERMS, train // 4))
        if degree > 1 and not leading:
            break
        found = _solve(latents[:train], observables[:train], degree, leading)
        error = float(((found(latents[train:]) - observables[train:]) ** 2).mean()) if kept_out else 0.0
        if error < 0.8 * lowest:
            best, lowest = (degree, leading), error
    return _solve(latents, observables, *best)


def _solve(latents: Floats, observables: Floats, degree: int, leading: int) -> Readout:
    return Readout(degree, leading, solve(terms(latents, degree, leading), observables, _RIDGE))
