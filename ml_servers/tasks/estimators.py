"""The ways to fit a map of latent coordinates to stored states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ml_servers.models import affine, polynomial
from ml_servers.models.affine import Affine, Runs
from ml_servers.models.polynomial import Polynomial
from ml_servers.tasks.trajectory import Course

RIDGES = (1e-8, 1e-4, 1e-12)
"""Of polynomials; the first is what degrees and spaces are compared with."""


@dataclass(frozen=True, slots=True)
class Estimator:
    """One of them.

    Attributes:
        degree: 1 for an affine map; higher for polynomials.
        refined: Whether the eigenvalues of an affine map are fitted to whole runs.
        ridge: Of a polynomial.
    """

    degree: int = 1
    refined: bool = False
    ridge: float = 0.0

    def fit(self, course: Course, runs: Runs) -> Affine | Polynomial | None:
        """The map fitted to the states of some runs; None where they are too few, or where it is the plain one."""
        if len(affine.transitions(runs)) < course.latents.shape[1] + 1:
            return None
        if self.degree > 1:
            return polynomial.fit(course.latents, course.controls, runs, self.degree, self.ridge)
        plain = affine.fit(course.latents, course.controls, runs)
        if not self.refined:
            return plain
        refined = affine.refine(plain, course.latents, runs)
        return None if refined is plain else refined

    def other_ridges(self) -> Iterator[Estimator]:
        """The same with the other penalties."""
        return (replace(self, ridge=ridge) for ridge in RIDGES if ridge != self.ridge)


AFFINE = (Estimator(), Estimator(refined=True))
POLYNOMIAL = tuple(Estimator(degree, ridge=RIDGES[0]) for degree in (2, 3, 5))
