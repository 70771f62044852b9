"""The lattice Boltzmann kernels against exact solutions: Poiseuille flow, Taylor-Green vortices, sound."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coupler.ranks import Ranks
from sim_clients.vortex_street import VortexStreet, geometry, kernels, lattice

NO_WALLS = geometry.walls(np.zeros((6, 6), bool), lambda x, y, k: 0.5, 0, 200, "<f8")


def steps(f, count, rates, walls, force=0.0, lateral_periodic=True):
    """Steps a domain that is periodic along x under a uniform body force along x; returns the populations."""
    new, sponge = np.zeros_like(f), np.zeros(len(f))
    push = 3 * force * np.array([w * c[0] for w, c in zip(lattice.WEIGHTS, lattice.VELOCITIES, strict=True)])[:, None]
    fluid = np.ones((len(f), 1, f.shape[2]))
    for x in range(1, len(f) - 1):
        fluid[x, 0, walls.solids[walls.solid_start[x] : walls.solid_start[x + 1]]] = 0
    push = push * fluid
    for _ in range(count):
        f[0], f[-1] = f[-2], f[1]
        kernels.advance(f, new, 1, len(f) - 1, lateral_periodic, rates, sponge, 0.0, *walls.arrays)
        new += push
        f, new = new, f
    return f


def velocity(f):
    out = np.zeros((2, f.shape[2], len(f) - 2), np.float64)
    kernels.velocity(f, out)
    return out


def poiseuille(rows, fraction):
    """Steady flow between two walls at that fraction of the links; its maximum error and the force on the walls.

    Both relative, to the peak of the exact profile and to the body force on the fluid.
    """
    ny, viscosity = rows + 2, 0.05
    height = rows - 1 + 2 * fraction
    peak = 0.8 / rows
    force = 8 * viscosity * peak / height**2
    solid = np.zeros((5, ny), bool)
    solid[:, [0, -1]] = True
    walls = geometry.walls(solid, lambda x, y, k: fraction, 1, 3, "<f8")
    z = np.arange(rows) + fraction
    exact = np.zeros((5, ny))
    exact[:, 1:-1] = 4 * peak * z * (height - z) / height**2
    f = lattice.equilibrium(np.zeros((5, ny)), exact, np.zeros((5, ny)))
    f = steps(f, int(2 * rows**2 / viscosity / 10), lattice.relaxation_rates(viscosity, "<f8"), walls, force)
    found = velocity(f)[0, 1:-1, 1] + force / 2  # half of the force acts before, half after the velocity is taken
    on_walls = np.zeros((5, 2))
    f[0], f[-1] = f[-2], f[1]
    kernels.wall_force(f, walls.link_start, walls.links, walls.weights, on_walls)
    return np.abs(found - exact[2, 1:-1]).max() / peak, on_walls.sum(axis=0) / (3 * rows * force)


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.8])
def test_poiseuille_flow_converges_with_second_order(fraction):
    (coarse, _), (fine, on_walls) = poiseuille(8, fraction), poiseuille(16, fraction)
    assert fine < 0.01
    assert math.log2(coarse / fine) > 1.8
    np.testing.assert_allclose(on_walls, [1.0, 0.0], atol=1e-3)


def taylor_green_error(n, drift):
    """Relative error of the decay of Taylor-Green vortices that a mean flow carries across the grid."""
    viscosity, peak = 0.02, 0.4 / n
    x = 2 * np.pi / n * (np.arange(-1, n + 1)[:, None] + 0.5)
    y = 2 * np.pi / n * (np.arange(n)[None, :] + 0.5)
    f = lattice.equilibrium(
        -0.75 * peak**2 * (np.cos(2 * x) + np.cos(2 * y)),
        drift + peak * np.sin(x) * np.cos(y),
        -peak * np.cos(x) * np.sin(y),
    )
    count = 2 * n * n // 10
    f = steps(f, count, lattice.relaxation_rates(viscosity, "<f8"), NO_WALLS)
    decay = math.exp(-2 * viscosity * (2 * np.pi / n) ** 2 * count)
    x = x - 2 * np.pi / n * drift * count
    u_x, u_y = velocity(f)
    exact = peak * decay * np.array([np.sin(x) * np.cos(y), -np.cos(x) * np.sin(y)])[:, 1:-1].transpose(0, 2, 1)
    return np.linalg.norm(np.array([u_x - drift, u_y]) - exact) / np.linalg.norm(exact)


def test_taylor_green_vortices_decay_with_second_order():
    coarse, fine = taylor_green_error(24, drift=0.8 / 24), taylor_green_error(48, drift=0.8 / 48)
    assert fine < 0.01
    assert math.log2(coarse / fine) > 1.8


def test_rows_beyond_one_tile_are_like_all_others():
    ny = kernels._TILE + 45
    random = np.random.default_rng(3)
    f = random.uniform(-0.01, 0.01, (6, 9, ny))
    rates = lattice.relaxation_rates(0.02, "<f8")
    moved = steps(np.roll(f, 100, axis=2), 3, rates, NO_WALLS)
    np.testing.assert_allclose(moved, np.roll(steps(f.copy(), 3, rates, NO_WALLS), 100, axis=2), atol=1e-15)


def test_free_slip_walls_are_mirrors():
    f = np.random.default_rng(4).uniform(-0.01, 0.01, (8, 9, 20))
    mirrored = np.concatenate([f, f[:, lattice.MIRRORED, ::-1]], axis=2)
    rates = lattice.relaxation_rates(0.02, "<f8")
    expected = steps(mirrored, 7, rates, NO_WALLS)[:, :, :20]
    np.testing.assert_allclose(steps(f, 7, rates, NO_WALLS, lateral_periodic=False), expected, atol=1e-15)


def reflected(length):
    """Largest density left of a sound pulse that ran into the outlet and back, over the pulse."""
    nx, ny, wide = 400, 4, 60.0
    pulse = np.zeros((nx + 2, ny))
    pulse[1:-1] = 1e-3 * np.exp(-(((np.arange(nx) - 100) / wide) ** 2))[:, None]
    f = lattice.equilibrium(pulse, pulse * lattice.SOUND_SPEED, np.zeros_like(pulse))
    new, sponge = np.zeros_like(f), np.zeros(nx + 2)
    sponge[1:-1] = geometry.sponge_profile(nx, length)
    walls = geometry.walls(np.zeros((nx, ny), bool), lambda x, y, k: 0.5, 0, nx, "<f8")
    rates = lattice.relaxation_rates(0.016, "<f8")
    for _ in range(round((nx - 100 + nx - 200) / lattice.SOUND_SPEED)):
        kernels.fill_inlet(f, 0.0)
        kernels.fill_outlet(f)
        kernels.advance(f, new, 1, nx + 1, True, rates, sponge, 0.0, *walls.arrays)
        f, new = new, f
    return np.abs(f[1:-1].sum(axis=1)).max() / 1e-3


def test_sponge_swallows_sound():
    assert reflected(0) > 0.6
    assert reflected(48) < 0.12


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_strouhal_number_at_reynolds_100():
    """0.164 to 0.165 unbounded (Williamson, Annu. Rev. Fluid Mech. 28, 477, 1996); 5 % blockage adds 1 to 2 %."""
    diameter, speed, substeps = 12, 0.08, 45
    simulation = VortexStreet(
        ranks=Ranks(),
        seed=1,
        nx=400,
        ny=240,
        diameter=diameter,
        center=(120.0, 120.0),
        reynolds=100.0,
        inflow_speed=speed,
        substeps=substeps,
        lateral="periodic",
    )
    simulation.integrate(substeps, 250)
    lift, drag = [], []
    for _ in range(120):
        simulation.integrate(substeps, 1)
        lift.append(float(simulation.snapshot()["lift"]))
        drag.append(float(simulation.snapshot()["drag"]))
    y = np.array(lift) - np.mean(lift)
    rising = np.flatnonzero((y[:-1] < 0) & (y[1:] >= 0))
    crossings = rising - y[rising] / (y[rising + 1] - y[rising])
    period = np.diff(crossings).mean() * substeps
    assert 0.160 < diameter / (speed * period) < 0.170
    assert np.diff(crossings).std() < 0.01 * period / substeps
    assert 1.3 < np.mean(drag) < 1.5  # 1.33 to 1.37 unbounded; blockage adds about 5 %
