"""The D2Q9 lattice: velocities, weights, equilibrium and relaxation rates. Plain NumPy, no state."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

VELOCITIES = ((1, 0), (1, 1), (1, -1), (0, 0), (0, 1), (0, -1), (-1, 0), (-1, -1), (-1, 1))
"""In the order of storage: the three that move right, the three that stay, the three that move left. So the
populations that cross the side of a slab lie together in memory and travel without packing."""

OPPOSITE = tuple(VELOCITIES.index((-cx, -cy)) for cx, cy in VELOCITIES)
MIRRORED = tuple(VELOCITIES.index((cx, -cy)) for cx, cy in VELOCITIES)
WEIGHTS = tuple((4 / 9, 1 / 9, 1 / 36)[abs(cx) + abs(cy)] for cx, cy in VELOCITIES)
SOUND_SPEED = 1 / math.sqrt(3)


def relaxation_rates(viscosity: float, dtype: str, magic: float = 3 / 16, bulk: float = 1.0) -> NDArray[np.floating]:
    """The numbers that the collision needs, in the dtype of the populations.

    Args:
        viscosity: Kinematic viscosity, cells^2 per lattice step.
        dtype: Of the populations.
        magic: Product of (1/rate - 1/2) of the shear and of the third moments. 3/16 puts a straight wall exactly
            half-way between the cells (Ginzburg and d'Humieres, Phys. Rev. E 68, 066614, 2003).
        bulk: Rate of the trace of the second moments and of the fourth moment. 1 gives the high bulk viscosity, about
            1/6, that lets sound die out and leaves the flow alone.

    Returns:
        Rates of shear, trace, third and fourth moments, then 1, 1/3, 1/9 and 1/2; shape (8,).
    """
    shear = 1 / (3 * viscosity + 0.5)
    third = 1 / (magic / (1 / shear - 0.5) + 0.5)
    return np.array([shear, bulk, third, 1, 1, 1 / 3, 1 / 9, 1 / 2], dtype=dtype)


def equilibrium(u_x: NDArray[np.float64], u_y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equilibrium populations at density 1 less the weights at rest.

    Args:
        u_x: Velocity along x, shape (n, m), cells per lattice step.
        u_y: Velocity along y, shape (n, m).

    Returns:
        Populations, shape (n, 9, m), in the layout of the solver.
    """
    square = 1.5 * (u_x * u_x + u_y * u_y)
    out = np.empty((u_x.shape[0], 9, u_x.shape[1]))
    for k, (cx, cy) in enumerate(VELOCITIES):
        along = cx * u_x + cy * u_y
        out[:, k] = WEIGHTS[k] * (3 * along + 4.5 * along * along - square)
    return out
