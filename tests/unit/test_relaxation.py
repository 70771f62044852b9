"""The relaxation oscillator against independent integrators and its known period, and the baselines of a learned dt."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from coupler.testing.simulation_check import check_simulation
from sim_clients.relaxation import NOT_FINITE, STAGES, Relaxation, acceleration, advance, attempt, initial_state
from sim_clients.relaxation_baselines import (
    CONTROLLERS,
    cheapest_controlled,
    cheapest_fixed,
    compare,
    controlled_steps,
    deviation,
    exact,
    fixed_steps,
)

MU = 50.0


def make(**changes):
    return Relaxation(**{"ranks": Ranks(), "seed": 3, "mu": MU, "dt": 0.01, **changes})


def independent(start, mu, times, method="DOP853"):
    def slope(_, y):
        return [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]

    return solve_ivp(slope, (0, times[-1]), start, method, times, rtol=1e-12, atol=1e-13).y


@pytest.mark.parametrize("changes", [{}, {"substeps": 3}, {"reject": False}, {"dt": 0.2}])
def test_keeps_the_contract(changes):
    report = check_simulation(lambda: make(**changes))
    assert report.defect == 0.0
    assert report.unmoved == ()


@pytest.mark.parametrize("method", ["DOP853", "Radau"])
def test_follows_an_independent_solution_into_a_jump(method):
    start = (1.05, 1.05 / (MU * (1 - 1.05**2)))
    times = np.linspace(0.0, 1.2, 25)
    x, _ = independent(start, MU, times, method)
    assert x.min() < -1.9 and x.max() > 1.0
    assert exact(*start, MU, times) == pytest.approx(x, abs=1e-6)


def test_converges_with_order_five_and_the_known_error_constant():
    # For x'' = -x the amplitude is off by T h^5 / 3600: the stability function has z^6 / 600 instead of z^6 / 720
    # (Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.2).
    for n in (40, 80, 160):
        h, (x, v, a) = 4.0 / n, (1.0, 0.0, -1.0)
        for _ in range(n):
            x, v, a, _, _, _ = advance(x, v, a, h, 0.0, 1.0, False)
        assert 1.0 - math.hypot(x, v) == pytest.approx(4.0 * h**5 / 3600, rel=0.02)


def test_errors_fall_with_at_least_the_fifth_power_of_the_step_and_the_estimate_with_it():
    start, errors, estimates = (1.5, 0.3), [], []
    truth = independent(start, 0.5, [0.0, 4.0])[0, -1]
    for n in (40, 80, 160):
        (x, v), a = start, acceleration(*start, 0.5)
        estimates.append(attempt(x, v, a, 4.0 / n, 0.5, 1e-6)[3])
        for _ in range(n):
            x, v, a, *_ = advance(x, v, a, 4.0 / n, 0.5, 1.0, False)
        errors.append(abs(x - truth))
    for one, two in ((0, 1), (1, 2)):
        assert 4.8 < math.log2(errors[one] / errors[two]) < 6.5
        assert math.log2(estimates[one] / estimates[two]) == pytest.approx(5.0, abs=0.1)


def test_the_period_is_the_known_one():
    # Two terms of the expansion for large mu (Haag 1943, Dorodnitsyn 1947), with the first zero of the Airy function.
    expansion = (3 - 2 * math.log(2)) * MU + 3 * 2.338107 * MU ** (-1 / 3)
    path = controlled_steps(*initial_state(MU, 1), MU, 260.0, 1e-10, CONTROLLERS["dopri5"])
    crossing = np.flatnonzero((path.x[:-1] < 0) & (path.x[1:] >= 0))
    share = path.x[crossing] / (path.x[crossing] - path.x[crossing + 1])
    zeros = path.times[crossing] + share * np.diff(path.times)[crossing]
    assert np.diff(zeros)[-1] == pytest.approx(expansion, rel=2e-3)
    assert np.diff(zeros)[-1] == pytest.approx(82.508334, abs=1e-4)  # LSODA of scipy, rtol 1e-12
    # The amplitude of the limit cycle: 2 + 0.779 mu^(-4/3) - ... (van der Pol 1926, Cartwright 1952).
    assert np.abs(path.x).max() == pytest.approx(2.0 + 0.779 * MU ** (-4 / 3), abs=2e-3)


@settings(max_examples=40, deadline=None)
@given(h=st.floats(1e-4, 0.5), x=st.floats(-2.0, 2.0), v=st.floats(-30.0, 30.0))
def test_a_rejected_step_becomes_its_two_halves(h, x, v):
    tolerance, a = 1e-4, acceleration(x, v, MU)

    def halved(x, v, a, h):
        *end, error = attempt(x, v, a, h, MU, tolerance)
        if error <= 1.0:
            return (*end, 1, 0)
        *middle, m1, r1 = halved(x, v, a, h / 2)
        *end, m2, r2 = halved(*middle, h / 2)
        return (*end, 1 + m1 + m2, 1 + r1 + r2)

    *end, undivided, attempts, rejected = advance(x, v, a, h, MU, tolerance, True)
    assert (*end, attempts, rejected) == halved(x, v, a, h)
    assert undivided == attempt(x, v, a, h, MU, tolerance)[3]


def test_a_step_too_long_is_halved_counted_and_still_advances_by_dt():
    one = make(dt=0.2)
    x, v = initial_state(MU, 3)
    one.integrate(0.2, 5)
    now = one.snapshot()
    assert (now.step, now.dt) == (5, 0.2)
    assert now.time == pytest.approx(1.0)
    assert now["error"] > 1.0
    assert now["rejections"] > 0
    accepted = (now["evaluations"] - 1) // STAGES - now["rejections"]
    assert accepted == now["rejections"] + 5  # each rejection makes two steps of one
    assert now["x"] == pytest.approx(independent((x, v), MU, [0.0, 1.0])[0, -1], abs=1e-5)


def test_with_substeps_the_error_is_that_of_the_worst_and_dt_stays_the_coupling_step():
    one, fine = make(substeps=4, reject=False), make(reject=False)
    one.integrate(0.04, 1)
    errors = []
    for _ in range(4):
        fine.integrate(0.01, 1)
        errors.append(float(fine.snapshot()["error"]))
    assert one.snapshot()["error"] == max(errors)
    assert (one.snapshot().step, one.snapshot().dt) == (1, 0.04)
    assert one.snapshot()["x"] == fine.snapshot()["x"]


def test_a_state_that_is_not_finite_ends_the_run():
    assert attempt(1.5, 0.0, -1.5, 1e9, MU, 1e-6)[3] == NOT_FINITE
    with pytest.raises(SimulationFailed, match="smaller dt"):
        make(reject=False).integrate(1e9, 3)
    with pytest.raises(ValueError, match="positive and finite"):
        make().integrate(math.nan, 1)
    with pytest.raises(TypeError, match="token"):
        make().restore((1, 2, 3))


def test_a_baseline_that_cannot_get_ahead_counts_as_infinitely_wrong():
    start = (math.nan, 0.0)
    path = controlled_steps(*start, MU, 10.0, 1e-6)
    assert deviation(path.times, path.x, MU, (1.5, 0.0)) == math.inf
    assert np.isnan(exact(*start, MU, np.array([0.0, 1.0]))).all()


def test_seeds_start_near_the_slow_manifold_on_either_side():
    starts = [initial_state(MU, seed) for seed in range(20)]
    assert len({x for x, _ in starts}) == 20
    assert {x > 0 for x, _ in starts} == {True, False}
    x, v = np.array(starts).T
    later = np.array([independent(start, MU, [0.0, 0.3])[:, -1] for start in starts])
    # After the fast transient the velocity is still that of the slow manifold to first order in 1 / mu^2.
    manifold = later[:, 0] / (MU * (1 - later[:, 0] ** 2))
    assert later[:, 1] == pytest.approx(manifold, rel=0.05)
    assert v == pytest.approx(x / (MU * (1 - x * x)))


@pytest.mark.parametrize("gains", CONTROLLERS.values(), ids=CONTROLLERS)
def test_the_controller_is_as_accurate_as_it_is_told(gains):
    start, until = initial_state(MU, 1), 100.0
    runs = [controlled_steps(*start, MU, until, tolerance, gains) for tolerance in (1e-4, 1e-6, 1e-8)]
    errors = [deviation(run.times, run.x, MU, start) for run in runs]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert all(run.times[-1] == until for run in runs)
    # In the slow phases stability alone limits the step, so accuracy costs little.
    assert runs[0].evaluations < runs[2].evaluations < 1.5 * runs[0].evaluations


def test_a_fixed_step_needs_many_times_the_evaluations_at_equal_error():
    start, until = initial_state(MU, 1), 100.0
    fixed = cheapest_fixed(start, MU, until, 1e-3)
    controlled = cheapest_controlled(start, MU, until, 1e-3)
    assert max(fixed.deviation, controlled.deviation) <= 1e-3
    assert fixed.evaluations > 10 * controlled.evaluations
    larger = fixed_steps(*start, MU, until, 1.06 * fixed.setting)
    assert deviation(larger.times, larger.x, MU, start) > 1e-3
    assert math.isinf(cheapest_controlled(start, MU, until, 1e-13).evaluations)


def test_compare_judges_a_controllers_own_run_as_no_better_than_the_best_controller():
    start, until = initial_state(MU, 4), 100.0
    path = controlled_steps(*start, MU, until, 1e-6)
    records = [
        {"time": t, "values": {"position": x, "evaluations": path.evaluations}}
        for t, x in zip(path.times.tolist(), path.x.tolist(), strict=True)
    ]
    found = compare(records, mu=MU, seed=4)
    assert 0.9 < found["over_controller"] <= 1.0
    assert found["over_fixed"] > 10
    assert found["per_evaluation"] == until / path.evaluations
    with pytest.raises(ValueError, match="time 0"):
        compare(records[1:], mu=MU, seed=4)
