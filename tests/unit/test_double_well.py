"""The double well: exact integrals of the motion without noise, Boltzmann statistics with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import ellipj

from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from coupler.testing.simulation_check import check_simulation
from schemas.fields import Snapshot
from sim_clients.double_well import DoubleWell, force, potential

DT = 0.1


class Part(Ranks):
    """One of several ranks, alone."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size


def make(**changes):
    return DoubleWell(**{"ranks": Ranks(), "seed": 3, "start": (-2.0, 2.0), "dt": DT, **changes})


@pytest.mark.parametrize("changes", [{}, {"n": 4}, {"temperature": 0.2, "friction": 0.5}])
def test_keeps_the_contract(changes):
    report = check_simulation(lambda: make(**changes), other_dt=0.5 * DT)
    assert report.defect == 0.0
    assert report.unmoved == ()
    assert set(report.drifts) == (set() if "temperature" in changes else {"energy"})


@given(st.floats(-3.0, 3.0))
def test_the_force_is_the_slope_of_the_potential(x):
    h = 1e-5
    slope = (potential(np.array([x + h])) - potential(np.array([x - h]))) / (2 * h)
    assert force(np.array([x]))[0] == pytest.approx(-slope[0], abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(x0=st.floats(1.05, 1.38))
def test_follows_the_elliptic_solution_inside_one_well(x0):
    # Released at x0 in the right well, x'' = x - x^3 has the solution x = x0 dn(x0 t / sqrt 2 | m), m = 2 - 2 / x0^2.
    t = 20 * DT
    _, _, dn, _ = ellipj(x0 * t / math.sqrt(2), 2 - 2 / x0**2)
    one = make(start=(x0, x0), substeps=100)
    one.integrate(DT, 20)
    assert one.snapshot()["position"][0] == pytest.approx(x0 * dn, abs=1e-5)


def test_the_published_start_crosses_the_barrier_and_returns():
    one = make(start=(-2.0, -2.0), substeps=100)  # arXiv 2004.06493: m = 1, x0 = -2
    positions = []
    for _ in range(100):
        one.integrate(DT, 1)
        positions.append(one.snapshot()["position"].item())
    assert max(positions) == pytest.approx(2.0, abs=0.01)
    assert min(positions) == pytest.approx(-2.0, abs=0.01)


def test_errors_of_state_and_energy_fall_with_the_square_of_the_step():
    x0 = 1.3
    truth = x0 * ellipj(x0 * 30 * DT / math.sqrt(2), 2 - 2 / x0**2)[2]
    states, energies = [], []
    for substeps in (4, 8, 16):
        one = make(start=(x0, x0), substeps=substeps)
        start = one.snapshot()["energy"].item()
        one.integrate(DT, 30)
        states.append(abs(one.snapshot()["position"][0] - truth))
        energies.append(abs(one.snapshot()["energy"].item() - start))
    for errors in (states, energies):
        assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)
        assert errors[1] / errors[2] == pytest.approx(4.0, rel=0.05)


def test_noise_samples_the_boltzmann_distribution():
    temperature = 0.3
    many = make(n=4000, temperature=temperature, friction=1.0, substeps=2)
    many.integrate(DT, 150)
    x2, v2 = [], []
    for _ in range(20):  # independent particles; instants two apart are nearly so
        many.integrate(DT, 20)
        x2.append(np.mean(many.snapshot()["position"] ** 2))
        v2.append(np.mean(many.snapshot()["velocity"] ** 2))

    def weighted(power):
        return quad(lambda x: x**power * math.exp(-(x**4 / 4 - x**2 / 2) / temperature), -6, 6)[0]

    assert np.mean(v2) == pytest.approx(temperature, rel=0.02)
    assert np.mean(x2) == pytest.approx(weighted(2) / weighted(0), rel=0.02)


def test_friction_damps_at_its_rate():
    # At the bottom y'' = -2 y - c y': y = a exp(-c t / 2) (cos w t + c / (2 w) sin w t) with w^2 = 2 - c^2 / 4.
    a, c, t = 1e-3, 0.4, 3.0
    one = make(start=(1 + a, 1 + a), temperature=1e-16, friction=c, substeps=50)
    one.integrate(DT, 30)
    w = math.sqrt(2 - c**2 / 4)
    y = a * math.exp(-c * t / 2) * (math.cos(w * t) + c / (2 * w) * math.sin(w * t))
    assert one.snapshot()["position"][0] - 1 == pytest.approx(y, abs=5e-3 * a)
    assert one.snapshot().dt == DT


def test_dt_may_change_from_step_to_step():
    one = make()
    one.integrate(0.3, 2)
    assert (one.snapshot().dt, one.snapshot().time) == (0.3, 0.6)


def test_noise_decides_the_path_and_the_seed_decides_the_noise():
    def end(seed):
        one = make(seed=seed, start=(1.0, 1.0), temperature=0.2, friction=0.5)
        one.integrate(DT, 10)
        return one.snapshot()["position"].item()

    assert end(1) == end(1)
    assert end(1) != end(2)


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.2, "friction": 0.5}])
@pytest.mark.parametrize("n", [1, 5])
def test_ranks_share_the_particles_without_changing_them(n, changes):
    alone = make(n=n, **changes)
    parts = [make(n=n, ranks=Part(rank, 2), **changes) for rank in range(2)]
    for one in (alone, *parts):
        one.integrate(DT, 5)
    together = np.concatenate([part.snapshot()["position"] for part in parts])
    np.testing.assert_array_equal(together, alone.snapshot()["position"])
    assert [part.snapshot().blocks["velocity"].offset for part in parts] == [
        (0,),
        (parts[0].snapshot()["velocity"].size,),
    ]


@pytest.mark.parametrize("changes", [{"start": (1.0, -1.0)}, {"temperature": 0.1}, {"friction": 0.1}, {"dt": -1.0}])
def test_settings_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match="is "):
        make(**changes)


def test_failures_have_a_cause():
    one = make(substeps=1)
    with pytest.raises(SimulationFailed, match="finite"):
        one.integrate(20.0, 50)
    with pytest.raises(ValueError, match="velocity"):
        one.adopt(Snapshot.of(1, DT, DT, position=np.ones(1), velocity=np.ones((1, 1))))
    with pytest.raises(TypeError, match="token"):
        one.restore(None)
