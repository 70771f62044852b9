"""The one definition of relative error."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupler.norms import relative_error
from schemas.fields import FieldSpec

U, V = FieldSpec("u", "<f8", (100,), "m/s"), FieldSpec("v", "<f4", (300,), "kg")
LIFT = FieldSpec("lift", "<f8", (), "N", "scalar", "observable")
RNG = np.random.default_rng(0)
TRUTH = {"u": RNG.normal(0, 5.0, 100), "v": RNG.normal(2.0, 1e-3, 300).astype("<f4"), "lift": np.array(3.0)}
SCALES = {"u": 5.0, "v": 1e-3}


def error(found: dict[str, np.ndarray], scales: dict[str, float] = SCALES) -> float:
    return relative_error((U, V, LIFT), TRUTH | found, TRUTH, scales)


def test_a_known_difference() -> None:
    assert error({}) == 0.0
    assert error({"u": TRUTH["u"] + 5.0}) == pytest.approx(0.5)  # all 100 of 400 values one scale off
    assert error({"u": TRUTH["u"] + 5.0, "v": TRUTH["v"] + np.float32(1e-3)}) == pytest.approx(1.0, rel=1e-3)
    assert error({"lift": np.array(99.0)}) == 0.0  # only the state counts


@given(st.floats(1e-100, 1e100), st.floats(1e-3, 10))
def test_it_does_not_depend_on_the_unit(unit: float, size: float) -> None:
    found = TRUTH["u"] + size
    wanted = relative_error((U,), {"u": found}, TRUTH, {"u": 5.0})
    scaled = relative_error((U,), {"u": found * unit}, {"u": TRUTH["u"] * unit}, {"u": 5.0 * unit})
    assert scaled == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_what_is_not_finite_is_infinitely_wrong(bad: float) -> None:
    for truth_too in (False, True):
        spoilt = TRUTH["u"].copy()
        spoilt[3] = bad
        truth = {"u": spoilt if truth_too else TRUTH["u"]}
        found = {"u": TRUTH["u"] if truth_too else spoilt}
        assert relative_error((U,), found, truth, {"u": 1.0}) == math.inf
    assert relative_error((U,), {"u": TRUTH["u"]}, {"u": TRUTH["u"] + 1.0}, {"u": math.nan}) == math.inf


@pytest.mark.parametrize("scale", [1e-200, 5e-324, 1e300])
def test_scales_at_the_edge_of_what_a_float_holds(scale: float) -> None:
    same = relative_error((U,), {"u": TRUTH["u"]}, {"u": TRUTH["u"]}, {"u": scale})
    assert same == 0.0
    assert relative_error((U,), {"u": TRUTH["u"] + scale}, {"u": TRUTH["u"]}, {"u": scale}) >= 0.0


def test_without_a_scale_the_spread_counts_or_the_size_of_a_uniform_field() -> None:
    assert error({"u": TRUTH["u"] + TRUTH["u"].std()}, {"v": 1.0}) == pytest.approx(0.5)
    uniform = {"u": np.full(100, -4.0)}
    assert relative_error((U,), {"u": np.full(100, -2.0)}, uniform, {}) == pytest.approx(0.5)
    assert relative_error((U,), {"u": np.full(100, 2.0)}, {"u": np.zeros(100)}, {}) == pytest.approx(2.0)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="'u' has shape"):
        error({"u": np.zeros(1)})


def test_an_empty_field_is_passed_over() -> None:
    empty = FieldSpec("e", "<f8", (0,), "1")
    assert relative_error((empty,), {"e": np.zeros(0)}, {"e": np.zeros(0)}, {}) == 0.0
