"""The cylinder on the lattice, the sponge, and how the domain is cut into slabs. Plain NumPy, no state.

Coordinates are in cells from the lower left corner of the domain: cell (i, j) has its centre at (i + 1/2, j + 1/2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim_clients.vortex_street.lattice import SOUND_SPEED, VELOCITIES

MIN_COLUMNS = 4
"""Fewest columns a rank may hold."""


@dataclass(frozen=True)
class Walls:
    """The wall cells and links of one slab, sorted by column, for the kernels.

    A link goes from a fluid cell of this slab along population k into a wall cell.

    Attributes:
        link_start: Where each column's links begin, shape (columns + 3,), int64; column 0 is the left ghost.
        links: Row y and population k of each link, shape (n, 2), int64.
        weights: Interpolation weights of each link, shape (n, 3): of population k here, of population k one cell
            further from the wall, of the opposite population here.
        solid_start: Where each column's wall cells begin, shape (columns + 3,), int64.
        solids: Row of each wall cell, shape (m,), int64.
    """

    link_start: NDArray[np.int64]
    links: NDArray[np.int64]
    weights: NDArray[np.floating]
    solid_start: NDArray[np.int64]
    solids: NDArray[np.int64]

    @property
    def arrays(self) -> tuple[NDArray[np.generic], ...]:
        """The arrays in the order the kernels take them."""
        return self.link_start, self.links, self.weights, self.solid_start, self.solids


def slab(nx: int, rank: int, size: int) -> tuple[int, int]:
    """First column and number of columns of one rank's slab; the first `nx % size` ranks hold one more.

    Raises:
        ValueError: When the slabs would be thinner than `MIN_COLUMNS`.
    """
    if nx // size < MIN_COLUMNS:
        raise ValueError(
            f"{size} ranks would share {nx} columns, but each rank needs at least {MIN_COLUMNS}: "
            f"start at most {nx // MIN_COLUMNS} ranks or raise nx"
        )
    share, rest = divmod(nx, size)
    return rank * share + min(rank, rest), share + (rank < rest)


def distance_to_circle(x: float, y: float, cx: int, cy: int, center: tuple[float, float], radius: float) -> float:
    """Fraction of the link from (x, y) along (cx, cy) at which it first meets the circle, in (0, 1] for a cut link."""
    dx, dy = x - center[0], y - center[1]
    a, b, c = cx * cx + cy * cy, dx * cx + dy * cy, dx * dx + dy * dy - radius * radius
    return (-b - math.sqrt(b * b - a * c)) / a


def bounce_back_weights(q: float) -> tuple[float, float, float]:
    """Weights of linear interpolated bounce-back for a wall at fraction q of the link (Bouzidi et al., 2001)."""
    if q < 0.5:
        return 2 * q, 1 - 2 * q, 0.0
    return 1 / (2 * q), 0.0, 1 - 1 / (2 * q)


def walls(
    solid: NDArray[np.bool_], fraction: Callable[[int, int, int], float], offset: int, columns: int, dtype: str
) -> Walls:
    """Finds the links of a slab.

    Args:
        solid: Wall cells of the whole domain, shape (nx, ny). Links that leave it are not found: a wall that reaches
            a boundary needs a margin of cells around it.
        fraction: Called with (x, y, k), gives where on the link the wall lies, in (0, 1].
        offset: First column of the slab.
        columns: Number of columns of the slab.
        dtype: Of the weights: the populations' dtype.
    """
    found: list[tuple[int, int, int]] = []
    for x in range(offset, offset + columns):
        if not solid[max(x - 1, 0) : x + 2].any():
            continue
        for y in np.flatnonzero(~solid[x]):
            for k, (cx, cy) in enumerate(VELOCITIES):
                if 0 <= y + cy < solid.shape[1] and 0 <= x + cx < solid.shape[0] and solid[x + cx, y + cy]:
                    found.append((x, int(y), k))
    columns_of = np.array([x for x, _, _ in found], dtype=np.int64) - offset + 1
    inside = solid[offset : offset + columns]
    solid_columns, solid_rows = np.nonzero(inside)
    edges = np.arange(columns + 3)
    return Walls(
        np.searchsorted(columns_of, edges).astype(np.int64),
        np.array([(y, k) for _, y, k in found], dtype=np.int64).reshape(-1, 2),
        np.array([bounce_back_weights(fraction(*link)) for link in found], dtype=dtype).reshape(-1, 3),
        np.searchsorted(solid_columns + 1, edges).astype(np.int64),
        solid_rows.astype(np.int64),
    )


def cylinder_walls(
    nx: int, ny: int, center: tuple[float, float], diameter: float, offset: int, columns: int, dtype: str
) -> Walls:
    """The walls of a cylinder in one slab of an nx by ny domain; lengths in cells."""
    x, y = np.arange(nx)[:, None] + 0.5 - center[0], np.arange(ny)[None, :] + 0.5 - center[1]
    solid = x * x + y * y < (diameter / 2) ** 2

    def fraction(i: int, j: int, k: int) -> float:
        return distance_to_circle(i + 0.5, j + 0.5, *VELOCITIES[k], center, diameter / 2)

    return walls(solid, fraction, offset, columns, dtype)


def sponge_profile(nx: int, length: int) -> NDArray[np.float64]:
    """Momentum damping per lattice step of each column, shape (nx,): a quadratic ramp over the last `length` columns.

    Its integral is the speed of sound: then a long sound wave that meets the damped zone in front of the outlet's fixed
    pressure finds the impedance of the free fluid, and is not reflected (resistive termination of a line).
    """
    depth = np.clip((np.arange(nx) + 0.5 - (nx - length)) / max(length, 1), 0.0, None) ** 2
    total = depth.sum()
    profile: NDArray[np.float64] = depth * (SOUND_SPEED / total) if total > 0 else depth
    return profile
