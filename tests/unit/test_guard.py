"""The Guard: what may not enter the simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from coupler.guard import Guard, all_finite
from schemas.fields import Block, FieldSpec

FIELDS = {
    "u": FieldSpec("u", "<f8", (6,), "m/s"),
    "n": FieldSpec("n", "<i4", (2,), "1"),
    "r": FieldSpec("r", "<f8", (3, 2), "1", "particle"),
    "lift": FieldSpec("lift", "<f8", (), "1", "scalar", "observable"),
}
GOOD = {
    "u": Block(np.linspace(-1, 1, 3), (2,)),
    "n": Block(np.array([1, 2], "<i4"), (0,)),
    "r": Block(np.zeros((2, 2)), (), np.array([2, 0])),
}
GUARD = Guard(bounds={"u": (-2.0, 2.0), "n": (0, 5)})


def test_a_good_state_passes() -> None:
    assert GUARD.objection(FIELDS, GOOD) == "" == GUARD.objection(FIELDS, GOOD, GOOD)
    empty = GOOD | {"u": Block(np.zeros(0), (2,))}
    assert GUARD.objection(FIELDS, empty, empty) == ""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"u": None}, "lacks field 'u'"),
        ({"w": Block(np.zeros(1), (0,))}, "undeclared field 'w'"),
        ({"u": Block(np.zeros(7), (0,))}, "does not fit"),
        ({"u": Block(np.array([0.0, math.nan, 0.0]), (2,))}, "'u' is not finite"),
        ({"u": Block(np.array([0.0, math.inf, -math.inf]), (2,))}, "'u' is not finite"),
        ({"u": Block(np.array([0.0, 2.1, 0.0]), (2,))}, "'u' leaves its bounds [-2, 2]"),
        ({"n": Block(np.array([-1, 0], "<i4"), (0,))}, "'n' leaves its bounds"),
        ({"u": Block(np.zeros(3), (1,))}, "not the part"),
        ({"u": Block(np.zeros(2), (2,))}, "not the part"),
        ({"r": Block(np.zeros((2, 2)), (), np.array([3, 0]))}, "ids outside"),
    ],
)
def test_objections(change: dict[str, Block | None], says: str) -> None:
    blocks = {k: b for k, b in (GOOD | change).items() if b is not None}
    assert says in GUARD.objection(FIELDS, blocks, GOOD)


def test_particles_may_have_wandered() -> None:
    own = GOOD | {"r": Block(np.zeros((1, 2)), (), np.array([1]))}
    assert GUARD.objection(FIELDS, GOOD, own) == ""


@given(npst.arrays(np.float64, st.integers(0, 6), elements=st.floats(-1e150, 1e150) | st.floats()))
def test_all_finite_never_lets_one_through(array: np.ndarray) -> None:
    assert not (all_finite(array) and not np.isfinite(array).all())
    if np.isfinite(array).all() and (np.abs(array) < 1e300).all():
        assert all_finite(array)


@pytest.mark.parametrize(
    ("suggested", "kept"),
    [(0.5, 0.5), (9.0, 2.0), (0.01, 0.1), (0.0, 0.7), (-1.0, 0.7), (math.nan, 0.7), (math.inf, 0.7)],
)
def test_dt(suggested: float, kept: float) -> None:
    assert Guard(dt_min=0.1, dt_max=2.0).dt(suggested, 0.7) == kept


@pytest.mark.parametrize(
    ("before", "after", "broken"),
    [(10.0, 10.1, False), (10.0, 10.2, True), (-10.0, -10.2, True), (10.0, math.nan, True), (math.inf, 1.0, True)],
)
def test_invariants(before: float, after: float, broken: bool) -> None:
    guard = Guard(drift={"mass": 0.015})
    assert bool(guard.broken({"mass": before}, {"mass": after})) == broken
    assert guard.broken({"mass": before, "other": 0.0}, {"mass": before, "other": 5.0}) == (
        "" if math.isfinite(before) else guard.broken({"mass": before}, {"mass": before})
    )


def test_an_error_is_rejected_beyond_its_limit_and_only_where_the_step_made_it_larger() -> None:
    guard = Guard(errors={"lift": 0.5, "u": 2.0})
    before = guard.errors_of({"lift": Block(np.array(-0.4)), "u": Block(np.array([1.0, -1.5]), (0,))})
    assert before == {"lift": 0.4, "u": 1.5}
    assert guard.rejection(before, {"lift": 0.5, "u": 2.0}) == ""
    assert guard.rejection(before, {"lift": 0.5, "u": 2.5}) == "'u' became 2.5, its limit is 2"
    assert guard.rejection(before | {"lift": 0.9}, {"lift": 0.9, "u": 0.0}) == ""
    assert "'lift' became 0.91" in guard.rejection(before | {"lift": 0.9}, {"lift": 0.91, "u": 0.0})
    assert "'lift' became nan" in guard.rejection(before, {"lift": math.nan, "u": 0.0})
    tried, beyond = {"lift": 0.8, "u": 0.0}, before | {"lift": 0.6}
    assert "'lift' became 0.9," in guard.rejection(before, {"lift": 0.9, "u": 0.0}, tried)  # some dt mends it
    assert guard.rejection(beyond, {"lift": 0.75, "u": 0.0}, tried) == ""  # a smaller one hardly helped
    assert "'lift' became 0.7," in guard.rejection(beyond, {"lift": 0.7, "u": 0.0}, tried)
    assert "'lift' became 0.7," in guard.rejection(beyond, {"lift": 0.7, "u": 0.0}, tried | {"lift": math.nan})
    assert guard.errors_of({"lift": Block(np.array(0.0)), "u": Block(np.zeros(0), (0,))})["u"] == 0.0
