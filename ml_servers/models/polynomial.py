"""A polynomial map of latent coordinates, a[k+1] = a[k] + W p(a[k], u), fitted by least squares.

The equations of physics are often polynomial (advection is quadratic, a stiffening spring or a reaction cubic), and so
are their projections to a few modes; operators of that form can be read off data (B. Peherstorfer and K. Willcox,
Comput. Methods Appl. Mech. Eng. 306, 196, 2016). One fit takes milliseconds, where a network takes minutes. Far from
the states it was fitted to a polynomial grows without limit; so what enters it is clipped to a box round them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_servers.models.affine import Runs, run_free, transitions
from ml_servers.models.polynomial_terms import most_leading_with_powers, solve, terms
from schemas.fields import Array

Floats = NDArray[np.float64]

_STATES_PER_TERM = 3.0
_MOST_TERMS = 400
_BOX = 1.5


@dataclass(frozen=True, slots=True)
class Polynomial:
    """The map.

    Attributes:
        degree: Highest degree.
        leading: Variables that are multiplied with each other: the controls that varied, then the first coordinates.
            The others come in with their own powers only, as in many oscillators side by side.
        varying: Which controls are variables, shape (m,), bool: the effect of one that did not vary is unknown.
        center: Subtracted from the variables, shape (v,).
        box: Largest distance of a variable from its center that is believed, shape (v,).
        weights: W, shape (r, terms).
    """

    degree: int
    leading: int
    varying: NDArray[np.bool_]
    center: Floats
    box: Floats
    weights: Floats

    def step(self, latents: Floats, controls: Floats) -> Floats:
        """One step of many states: latents (n, r) and controls (n, m) to latents (n, r)."""
        variables = np.concatenate([controls[:, self.varying], latents], axis=1) - self.center
        known = terms(np.clip(variables, -self.box, self.box), self.degree, self.leading, powers=True)
        following: Floats = latents + known @ self.weights.T
        return following

    def course(self, latents: Floats, controls: Floats, horizon: int) -> Iterator[tuple[Floats, float]]:
        """Free-running forecasts under constant controls: after each step the states, and 0 for the spread."""
        return run_free(self.step, latents, controls, horizon)

    def arrays(self) -> dict[str, Array]:
        """All of it as arrays by name."""
        form = np.array([self.degree, self.leading], np.int64)
        varying = self.varying.astype(np.int64)
        return {"form": form, "varying": varying, "center": self.center, "box": self.box, "products": self.weights}

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Polynomial:
        """The map in arrays made by `arrays`."""
        degree, leading = (int(number) for number in arrays["form"])
        center, box, weights = (np.asarray(arrays[name], np.float64) for name in ("center", "box", "products"))
        return cls(degree, leading, np.asarray(arrays["varying"]).astype(bool), center, box, weights)


def fit(latents: Floats, controls: Floats, runs: Runs, degree: int, ridge: float) -> Polynomial | None:
    """Least squares over all single steps within runs; None where there are too few of them for any product.

    Args:
        latents: Shape (n, r); where there are too many to multiply all with each other, the first are.
        controls: Shape (n, m).
        runs: Where states are consecutive.
        degree: Highest degree, 2 at least.
        ridge: Penalty on the weights of terms scaled to rms 1.
    """
    now = transitions(runs)
    varying = np.ptp(controls[now], axis=0) > 0 if len(now) else np.zeros(controls.shape[1], bool)
    variables = np.hstack([controls[now][:, varying], latents[now]])
    most = min(_MOST_TERMS, int(len(now) / _STATES_PER_TERM))
    leading = most_leading_with_powers(variables.shape[1], degree, most)
    if leading < 0 or (varying.any() and leading <= np.count_nonzero(varying)):
        return None
    center = variables.mean(axis=0)
    variables = variables - center
    weights = solve(terms(variables, degree, leading, powers=True), latents[now + 1] - latents[now], ridge)
    return Polynomial(degree, leading, varying, center, _BOX * np.abs(variables).max(axis=0), weights)
