"""Terms of polynomials in several variables."""

from __future__ import annotations

from functools import cache
from itertools import combinations_with_replacement
from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def terms(values: Floats, degree: int, leading: int, *, powers: bool = False) -> Floats:
    """1, all variables, and all products of 2 to `degree` of the leading ones: (n, r) to (n, terms).

    Args:
        values: The variables, shape (n, r).
        degree: Highest degree.
        leading: Variables that are multiplied with each other.
        powers: Whether the others come in with their own powers too.
    """
    parts = [np.ones((len(values), 1)), values]
    for order in range(2, degree + 1):
        factors = _factors(leading, order)
        products = values[:, factors[0]]
        for chosen in factors[1:]:
            products = products * values[:, chosen]
        parts.append(products)
        if powers:
            parts.append(values[:, leading:] ** order)
    return np.concatenate(parts, axis=1)


def most_leading(count: int, degree: int, most: int) -> int:
    """How many of `count` variables can be multiplied with each other for at most `most` terms; 0 when none can."""
    fitting = (q for q in range(count, 0, -1) if comb(q + degree, degree) <= most)
    return next(fitting, 0) if degree > 1 else 0


def most_leading_with_powers(count: int, degree: int, most: int) -> int:
    """The same where the others come in with their own powers, and all terms count; -1 when there are too many."""
    fitting = (q for q in range(count, -1, -1) if comb(q + degree, degree) + degree * (count - q) <= most)
    return next(fitting, -1)


def solve(design: Floats, answers: Floats, ridge: float) -> Floats:
    """Least squares with a penalty on the weights of terms scaled to rms 1, shape (answers, terms)."""
    size = np.sqrt((design**2).mean(axis=0))
    size[size == 0] = 1.0
    scaled = design / size
    normal = scaled.T @ scaled + ridge * len(design) * np.eye(len(size))
    weights: Floats = np.linalg.solve(normal, scaled.T @ answers).T / size
    return weights


@cache
def _factors(leading: int, order: int) -> Indices:
    """Of each product, the numbers of its variables: shape (order, products)."""
    return np.array(list(combinations_with_replacement(range(leading), order)), np.int64).reshape(-1, order).T
