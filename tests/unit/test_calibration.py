"""The calibrated bound covers what it promises, and promises nothing where it knows too little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.calibration import Calibration
from coupler.contracts import Backtest


def calibrated(ratios: dict[int, list[float]], estimate: float = 1.0, coverage: float = 0.9) -> Calibration:
    tests = [Backtest(h, estimate, estimate * ratio) for h, many in ratios.items() for ratio in many]
    return Calibration(coverage=coverage).learned(tests)


def test_the_bound_covers_nine_in_ten_new_errors() -> None:
    """Exchangeable ratios, whatever their law: split conformal covers 37 in 41 with 40 of them."""
    rng = np.random.default_rng(3)
    for draw in (rng.lognormal, rng.standard_exponential, lambda size: rng.standard_cauchy(size=size) ** 2):
        covered = []
        for ratios in draw(size=(4000, 41)):
            bound = calibrated({5: list(ratios[:40])}).bound(5, 1.0)
            covered.append(ratios[40] <= bound)
        assert 0.88 < np.mean(covered) < 0.92


@pytest.mark.parametrize(("n", "finite"), [(0, False), (1, False), (8, False), (9, True), (40, True)])
def test_few_ratios_promise_nothing(n: int, finite: bool) -> None:
    calibration = calibrated({5: [1.0] * n} if n else {})
    assert math.isfinite(calibration.bound(5, 0.1)) == finite
    assert calibration.horizon(10.0, 100) == (5 if finite else 0)
    assert calibration.longest == (5 if n else 0)


def test_nothing_is_promised_beyond_the_longest_back_test() -> None:
    calibration = calibrated({2: [1.0] * 20, 8: [3.0] * 20})
    assert calibration.bound(2, 0.1) == pytest.approx(0.1)
    assert calibration.bound(3, 0.1) == calibration.bound(8, 0.1) == pytest.approx(0.3)
    assert calibration.bound(9, 0.1) == math.inf


def test_the_horizon_stops_at_the_first_that_misses() -> None:
    calibration = calibrated({1: [1.0] * 20, 5: [9.0] * 20, 10: [1.0] * 20}, estimate=0.01)
    assert calibration.horizon(0.05, 100) == 1  # 10 keeps it again: luck
    assert calibration.horizon(0.2, 100) == 10 and calibration.horizon(0.2, 7) == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_promise_nothing(bad: float) -> None:
    good = [Backtest(5, 0.01, 0.01)] * 20
    for test in (Backtest(5, 0.01, bad), Backtest(5, bad, 0.01), Backtest(5, bad, bad)):
        calibration = Calibration().learned([test] * 10 + good)
        assert calibration.bound(5, 0.01) == math.inf and calibration.horizon(1.0, 10) == 0
        assert math.isfinite(Calibration().learned([test, *good, *good]).bound(5, 0.01))  # one in forty is within 10 %
    assert Calibration().learned(good).bound(5, bad) == math.inf


@given(
    st.dictionaries(st.integers(1, 50), st.lists(st.floats(0, 10), min_size=1, max_size=15), max_size=5),
    st.floats(1e-6, 1.0),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 60),
)
def test_the_horizon_grows_with_the_tolerance_and_never_outlasts_the_back_tests(
    ratios: dict[int, list[float]], estimate: float, one: float, other: float, cap: int
) -> None:
    calibration = calibrated(ratios, estimate)
    tight, loose = (calibration.horizon(tolerance, cap) for tolerance in sorted((one, other)))
    assert 0 <= tight <= loose <= min(cap, calibration.longest)
    if loose and loose < cap:
        assert calibration.bound(loose, calibration.estimates[loose]) <= max(one, other)


def test_new_back_tests_replace_and_live_counts_stay() -> None:
    calibration = calibrated({5: [1.0] * 20}).observed(0.1, 0.05).observed(0.1, 0.2)
    again = calibration.learned([])
    assert (again.checked, again.covered, again.worst, again.measured) == (2, 1, 0.2, 0.5)
    assert again.longest == 0 and math.isnan(Calibration().measured)


def test_a_stretch_is_wanted_where_data_limit_the_horizon_and_not_the_error() -> None:
    enough, few = [1.0] * 20, [1.0] * 8
    assert calibrated({5: enough, 10: few}, estimate=0.01).stretch(0.1, 100) == 40  # at least some dozens
    assert calibrated({5: enough, 50: enough}, estimate=0.01).stretch(0.1, 1000) == 2 * 50 + 10
    assert calibrated({5: enough}, estimate=0.06).stretch(0.1, 100) == 0  # twice as far it would miss
    assert calibrated({5: enough, 10: [20.0] * 20}, estimate=0.01).stretch(0.1, 100) == 0  # it does miss
    assert calibrated({5: enough}, estimate=0.01).stretch(0.1, 5) == 0  # as far as it may
    assert calibrated({5: few}, estimate=0.01).stretch(0.1, 100) == calibrated({}).stretch(0.1, 100) == 0


def test_errors_that_became_known_raise_the_bound_of_the_next_forecasts() -> None:
    calibration = calibrated({1: [1.0] * 20, 5: [2.0] * 20}, estimate=0.01)
    assert calibration.inflation == 1.0 and calibration.bound(5, 0.01) == pytest.approx(0.02)
    for error in (0.004, 0.018, 0.02):  # within what back-tests promised
        calibration = calibration.scored(0.02, error)
    assert calibration.inflation == 1.0
    calibration = calibration.scored(0.02, 0.06)
    assert calibration.bound(5, 0.01) == pytest.approx(0.06) and calibration.backtested(5, 0.01) == pytest.approx(0.02)
    assert calibration.horizon(0.04, 100) == 1 and calibration.horizon(0.07, 100) == 5
    assert calibration.learned([Backtest(5, 0.01, 0.02)] * 20).inflation == pytest.approx(
        3.0
    )  # a new model of its kind
    assert calibration.learned([]).scores == ()  # other dynamics


def test_one_miss_in_many_is_what_was_promised_and_the_last_one_counts_in_full() -> None:
    calibration = calibrated({5: [1.0] * 20})
    for score in (4.0, *[0.5] * 19):
        calibration = calibration.scored(1.0, score)
    assert calibration.inflation == 1.0 and len(calibration.scores) == 20
    assert (
        calibration.scored(1.0, 3.0).inflation == 3.0 and calibration.scored(1.0, 3.0).scored(1.0, 0.5).inflation == 1.0
    )
    twice = calibration.scored(1.0, 3.0).scored(1.0, 2.0)
    assert twice.scored(1.0, 0.5).inflation == 2.0
    assert calibration.scored(math.inf, 3.0) == calibration  # nothing had been promised
    assert calibration.scored(1.0, math.inf).bound(5, 1.0) == math.inf


def test_the_bound_covers_errors_that_grow_beyond_the_back_tests() -> None:
    """Errors five times those of the back-tests: without scores hardly one in ten is covered."""
    rng = np.random.default_rng(5)
    calibration = calibrated({5: list(rng.lognormal(sigma=0.5, size=60))})
    covered, bare = [], []
    for error in 5.0 * rng.lognormal(sigma=0.5, size=400):
        covered.append(error <= calibration.bound(5, 1.0))
        bare.append(error <= calibration.backtested(5, 1.0))
        calibration = calibration.scored(calibration.backtested(5, 1.0), error)
    assert np.mean(bare) < 0.1 and np.mean(covered) > 0.85
