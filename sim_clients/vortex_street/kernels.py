"""Compiled loops of the D2Q9 lattice Boltzmann method: one fused stream-collide kernel and its boundaries.

Arrays of populations have shape (columns + 2, 9, ny): the first and last column are ghosts, populations lie in the
order of `lattice.VELOCITIES`, and values are deviations from the weights of the fluid at rest (less rounding in single
precision; Lehmann et al., Phys. Rev. E 106, 015308, 2022). All functions work in double and in single precision.
"""
# Numba infers the types of these functions and cannot pass structures cheaply, hence long argument lists.
# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: PLR0913, PLR0917

from __future__ import annotations

import numba
import numpy as np

from sim_clients.vortex_street.lattice import MIRRORED, OPPOSITE, VELOCITIES, WEIGHTS

# Without nnan and ninf: a state that blew up must stay visible as not finite.
_FAST = {"reassoc", "nsz", "arcp", "contract"}
_compiled = numba.njit(cache=True, error_model="numpy", fastmath=_FAST)
_inlined = numba.njit(cache=True, error_model="numpy", fastmath=_FAST, forceinline=True)

_CX = tuple(cx for cx, _ in VELOCITIES)
_CY = tuple(cy for _, cy in VELOCITIES)
_TILE = 256
"""Rows that are streamed into a buffer of fixed shape and collided there: with constant strides, and the rates in
scalars, the compiler can prove that nothing overlaps and vectorizes (twice as fast as working on `new` directly)."""
_W_AXIS, _W_DIAGONAL = WEIGHTS[0], WEIGHTS[1]


@_inlined
def _collide(e, ne, se, c, n, s, w, sw, nw, rates, sponge, speed):
    """Relaxes one cell's populations in moment space; see `relaxation_rates`.

    Second moments relax, their trace with a rate of its own (bulk viscosity); third and fourth moments are set to
    equilibrium. `sponge` in [0, 1) draws the momentum towards (speed, 0) without touching the mass.
    """
    shear, bulk, one, third, ninth, half = rates
    sum_p, dif_p, sum_m, dif_m = ne + sw, ne - sw, nw + se, nw - se
    diagonal, p_xy = sum_p + sum_m, sum_p - sum_m
    j_x, j_y = e - w + dif_p - dif_m, n - s + dif_p + dif_m
    p_xx, p_yy = e + w + diagonal, n + s + diagonal
    excess = c + p_xx + n + s
    density = one + excess
    inverse = one / density
    r_xx, r_yy, r_xy = j_x * j_x * inverse, j_y * j_y * inverse, j_x * j_y * inverse

    trace, deviator = p_xx + p_yy, p_xx - p_yy
    trace += bulk * ((third + third) * excess + r_xx + r_yy - trace)
    deviator += shear * (r_xx - r_yy - deviator)
    p_xy += shear * (r_xy - p_xy)
    fourth = ninth * excess + third * (r_xx + r_yy)
    j_x, j_y = j_x + sponge * (density * speed - j_x), j_y - sponge * j_y
    q_xyy, q_xxy = third * j_x, third * j_y

    p_xx, p_yy = half * (trace + deviator), half * (trace - deviator)
    sum_p, sum_m = half * (fourth + p_xy), half * (fourth - p_xy)
    dif_p, dif_m = half * (q_xxy + q_xyy), half * (q_xxy - q_xyy)
    sum_e, dif_e = p_xx - fourth, j_x - q_xyy
    sum_n, dif_n = p_yy - fourth, j_y - q_xxy
    return (
        half * (sum_e + dif_e),
        half * (sum_p + dif_p),
        half * (sum_m - dif_m),
        excess - trace + fourth,
        half * (sum_n + dif_n),
        half * (sum_n - dif_n),
        half * (sum_e - dif_e),
        half * (sum_p - dif_p),
        half * (sum_m + dif_m),
    )


@_compiled
def _pull(old, x, low, width, periodic, tile):
    """Streams rows `low` to `low + width - 1` of column x into the tile.

    Beyond the lowest and highest row lies the other side of a periodic domain, or a free-slip wall half a cell outside,
    which mirrors: what comes from beyond is what left the row, turned over.
    """
    top = old.shape[2] - 1
    for k in range(9):
        source, shift = x - _CX[k], low - _CY[k]
        first, stop = max(0, -shift), min(width, top + 1 - shift)
        row = old[source, k, shift + first : shift + stop]
        for j in range(stop - first):
            tile[k, first + j] = row[j]
        beyond = k if periodic else MIRRORED[k]
        if first > 0:
            tile[k, 0] = old[source, beyond, top if periodic else 0]
        if stop < width:
            tile[k, width - 1] = old[source, beyond, 0 if periodic else top]


@_compiled
def _reflected(old, x, y, k, weights):
    """What a wall sends back along one link: interpolated bounce-back (Bouzidi et al., Phys. Fluids 13, 3452, 2001)."""
    return (
        weights[0] * old[x, k, y]
        + weights[1] * old[x - _CX[k], k, y - _CY[k]]
        + weights[2] * old[x, OPPOSITE[k], y]
    )  # fmt: skip


@_compiled
def advance(
    old, new, first, stop, periodic, rates, sponge, speed, link_start, links, link_weights, solid_start, solids
):
    """Advances columns `first` to `stop - 1` by one lattice step: reflect at walls, stream (pull), collide.

    Ghost columns of `old` must be filled. Reflected populations are written into cells of `old` inside the wall, each
    of which is pulled by one fluid cell only, so the main loop needs no branch.

    Returns:
        Mass that entered through the wall links (interpolated bounce-back does not conserve it exactly).
    """
    gain = 0.0
    ny = old.shape[2]
    t = np.empty((9, _TILE), old.dtype)
    scalars = (rates[0], rates[1], rates[2], rates[3], rates[4], rates[5])
    for x in range(first, stop):
        for i in range(link_start[x], link_start[x + 1]):
            y, k = links[i, 0], links[i, 1]
            value = _reflected(old, x, y, k, link_weights[i])
            old[x + _CX[k], OPPOSITE[k], y + _CY[k]] = value
            gain += value - old[x, k, y]
        pull = sponge[x]
        for low in range(0, ny, _TILE):
            width = min(_TILE, ny - low)
            _pull(old, x, low, width, periodic, t)
            for y in range(width):
                # fmt: off
                t[0, y], t[1, y], t[2, y], t[3, y], t[4, y], t[5, y], t[6, y], t[7, y], t[8, y] = _collide(
                    t[0, y], t[1, y], t[2, y], t[3, y], t[4, y], t[5, y], t[6, y], t[7, y], t[8, y],
                    scalars, pull, speed,
                )
                # fmt: on
            for k in range(9):
                row = new[x, k, low : low + width]
                for y in range(width):
                    row[y] = t[k, y]
        for i in range(solid_start[x], solid_start[x + 1]):
            for k in range(9):
                new[x, k, solids[i]] = 0.0
    return gain


@_compiled
def fill_inlet(f, speed):
    """Fills the left ghost column: equilibrium at the inflow speed and the density of the first column.

    Returns:
        Net mass that will stream in through the inlet in the next lattice step.
    """
    gain = 0.0
    for y in range(f.shape[2]):
        excess = 0.0
        for k in range(9):
            excess += f[1, k, y]
        along = 3.0 * speed + 3.0 * speed * speed
        f[0, 0, y] = _W_AXIS * (excess + (1.0 + excess) * along)
        diagonal = _W_DIAGONAL * (excess + (1.0 + excess) * along)
        f[0, 1, y] = diagonal
        f[0, 2, y] = diagonal
        for k in range(3):
            gain += f[0, k, y] - f[1, k + 6, y]
    return gain


@_compiled
def fill_outlet(f):
    """Fills the right ghost column: the last column's populations, shifted to density 1 at equal momentum.

    Returns:
        Net mass that will stream in through the outlet in the next lattice step (negative: it leaves).
    """
    gain = 0.0
    last = f.shape[0] - 2
    for y in range(f.shape[2]):
        excess = 0.0
        for k in range(9):
            excess += f[last, k, y]
        f[last + 1, 6, y] = f[last, 6, y] - _W_AXIS * excess
        f[last + 1, 7, y] = f[last, 7, y] - _W_DIAGONAL * excess
        f[last + 1, 8, y] = f[last, 8, y] - _W_DIAGONAL * excess
        for k in range(3):
            gain += f[last + 1, k + 6, y] - f[last, k, y]
    return gain


@_compiled
def wall_force(f, link_start, links, link_weights, force):
    """Momentum given to the wall in the coming lattice step, by column: `force` (columns + 2, 2), lattice units.

    Momentum exchange (Ladd, J. Fluid Mech. 271, 285, 1994); the weights at rest cancel over a closed wall.
    """
    force[:] = 0.0
    for x in range(1, f.shape[0] - 1):
        for i in range(link_start[x], link_start[x + 1]):
            y, k = links[i, 0], links[i, 1]
            both = f[x, k, y] + _reflected(f, x, y, k, link_weights[i])
            force[x, 0] += _CX[k] * both
            force[x, 1] += _CY[k] * both


@_compiled
def velocity(f, out):
    """Flow velocity of the inner columns of `f`, written to `out` (2, ny, columns), cells per lattice step."""
    for x in range(1, f.shape[0] - 1):
        for y in range(f.shape[2]):
            a = f[x, :, y]
            density = 1.0 + a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7] + a[8]
            out[0, y, x - 1] = (a[0] + a[1] + a[2] - a[6] - a[7] - a[8]) / density
            out[1, y, x - 1] = (a[4] + a[1] + a[8] - a[5] - a[2] - a[7]) / density
