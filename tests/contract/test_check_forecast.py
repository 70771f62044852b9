"""check_forecast accepts a sound Forecast and names the fault of each of many broken ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from coupler.contracts import Forecast
from coupler.testing.forecast_check import arrays_of, check_forecast
from schemas.fields import FieldSpec

FIELDS = (
    FieldSpec("u", "<f4", (3, 2), "m/s"),
    FieldSpec("p", "<f8", (3,), "Pa"),
    FieldSpec("inflow", "<f8", (), "m/s", kind="scalar", role="control"),
    FieldSpec("lift", "<f8", (), "1", kind="scalar", role="observable"),
)
U, P, LIFT = np.ones((3, 2), np.float32), np.ones(3), np.ones(4)
STATE = Forecast(4, 0.1, 1, {"u": U, "p": P}, None, {"lift": LIFT}, scales={"u": 0.2})
STEP = Forecast(4, 0.1, 1, dt=0.5)
ARRAYS, DT = frozenset({"arrays"}), frozenset({"dt"})


@pytest.mark.parametrize(
    ("forecast", "owns"),
    [
        (STATE, ARRAYS),
        (STEP, DT),
        (dataclasses.replace(STATE, dt=0.5), ARRAYS | DT),
        (Forecast(4, math.inf, 0), ARRAYS),
        (Forecast(4, 0.0, 0), DT),
    ],
)
def test_accepts_a_sound_forecast(forecast, owns):
    check_forecast(forecast, FIELDS, owns, 4)


def test_lists_all_arrays():
    assert sorted(arrays_of(STATE)) == ["lift", "p", "u"]
    assert arrays_of(STEP) == {}


@pytest.mark.parametrize(
    ("sound", "changes", "sentence"),
    [
        (STATE, {"horizon": 2}, "covers 2 steps, asked were 4"),
        (STATE, {"version": -1}, "version -1"),
        (STATE, {"error": math.nan}, "error estimate is nan"),
        (STATE, {"error": math.nan, "version": 0}, "error estimate is nan"),
        (STATE, {"error": -0.1}, "error estimate is -0.1"),
        (STATE, {"error": math.inf}, "error estimate of a trained model is infinite"),
        (STATE, {"residual": -1.0}, "residual is -1.0"),
        (STATE, {"residual": math.nan}, "residual is nan"),
        (STATE, {"residual": math.inf}, "residual of a trained model is infinite"),
        (STATE, {"in_range": None}, "in_range is None"),
        (STATE, {"scales": {"u": math.nan}}, "the scales are"),
        (STATE, {"scales": {"u": -1.0}}, "the scales are"),
        (STATE, {"arrays": None}, "owns arrays, but its forecast holds none"),
        (STATE, {"arrays": {"u": U}}, "must hold every state field"),
        (STATE, {"arrays": {"u": U, "p": P, "inflow": np.ones(())}}, "must hold every state field"),
        (STATE, {"arrays": {"u": U[:2], "p": P}}, "'u' is <f4 of shape (2, 2), declared is <f4 of shape (3, 2)"),
        (STATE, {"arrays": {"u": U.astype(np.float64), "p": P}}, "'u' is <f8"),
        (STATE, {"arrays": {"u": U * np.nan, "p": P}}, "'u' is not finite"),
        (STATE, {"arrays": {"u": U * np.nan, "p": P}, "version": 0}, "'u' is not finite"),
        (STATE, {"observables": {}}, "lacks the observables ['lift']"),
        (STATE, {"observables": {"lift": LIFT, "drag": LIFT}}, "the observables ['drag']"),
        (STATE, {"observables": {"lift": LIFT[:3]}}, "'lift' is <f8 of shape (3,)"),
        (STATE, {"observables": {"lift": LIFT.astype(np.float32)}}, "'lift' is <f4"),
        (STATE, {"observables": {"lift": LIFT * np.nan}}, "'lift' is not finite"),
        (STATE, {"dt": 0.5}, "holds a dt, but the Task owns only ['arrays']"),
        (STEP, {"dt": None}, "owns dt, but its forecast holds none"),
        (STEP, {"dt": -0.5}, "dt -0.5"),
        (STEP, {"dt": math.nan}, "dt nan"),
        (STEP, {"error": 1.5}, "probability of a miss"),
        (STEP, {"arrays": {}}, "holds arrays, but the Task owns only ['dt']"),
    ],
)
def test_names_the_fault(sound, changes, sentence):
    with pytest.raises(AssertionError) as caught:
        check_forecast(dataclasses.replace(sound, **changes), FIELDS, ARRAYS if sound is STATE else DT, 4)
    assert sentence in str(caught.value)


def test_other_values_are_no_forecast():
    with pytest.raises(AssertionError, match="returned a dict"):
        check_forecast({"horizon": 4}, FIELDS, ARRAYS, 4)
