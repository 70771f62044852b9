"""The public check of a Forecast's form: parts, shapes, dtypes and numbers as `coupler.contracts.Forecast` says."""

from __future__ import annotations

import math

import numpy as np

from coupler.contracts import Forecast
from coupler.testing.simulation_check import require
from schemas.fields import Array, FieldSpec, with_role


def check_forecast(forecast: Forecast, fields: tuple[FieldSpec, ...], owns: frozenset[str], horizon: int) -> None:
    """Checks that a Forecast fits the declared fields and holds the parts that its Task owns.

    Args:
        forecast: What the Task answered. With version 0 (nothing trained) parts may be missing.
        fields: Declared fields.
        owns: Parts of Advice that the Task answers.
        horizon: Steps that were asked for.

    Raises:
        AssertionError: With a full sentence, when it does not.
    """
    require(isinstance(forecast, Forecast), f"forecast returned a {type(forecast).__name__}; it must be a Forecast")
    require(
        forecast.horizon == horizon,
        f"the forecast covers {forecast.horizon} steps, asked were {horizon}; answer what was asked, with a large "
        "error where the model is unsure",
    )
    require(forecast.version >= 0, f"the forecast has version {forecast.version}; versions count from 0, untrained")
    _check_parts(forecast, fields, owns)
    _check_numbers(forecast, owns)


def arrays_of(forecast: Forecast) -> dict[str, Array]:
    """All arrays of a Forecast by name: state fields and observables."""
    return {**(forecast.arrays or {}), **forecast.observables}


def _check_parts(forecast: Forecast, fields: tuple[FieldSpec, ...], owns: frozenset[str]) -> None:
    state = {spec.name: spec for spec in with_role(fields, "state")}
    if forecast.arrays is not None:
        require("arrays" in owns, f"the forecast holds arrays, but the Task owns only {sorted(owns)}")
        require(
            set(forecast.arrays) == set(state),
            f"the forecast holds the arrays {sorted(forecast.arrays)}; it must hold every state field: {sorted(state)}",
        )
        for name, array in forecast.arrays.items():
            want = state[name]
            require(
                array.shape == want.shape and array.dtype == np.dtype(want.dtype),
                f"the forecast of {name!r} is {array.dtype.str} of shape {array.shape}, declared is {want.dtype} "
                f"of shape {want.shape}",
            )
            require(bool(np.isfinite(array).all()), f"the forecast of {name!r} is not finite")
    if forecast.dt is not None:
        require("dt" in owns, f"the forecast holds a dt, but the Task owns only {sorted(owns)}")
        require(0 < forecast.dt < math.inf, f"the forecast has dt {forecast.dt}; it must be positive and finite")
    declared = {spec.name for spec in with_role(fields, "observable")}
    unknown = sorted(set(forecast.observables) - declared)
    require(
        not unknown, f"the forecast holds the observables {unknown}, not declared as such; known: {sorted(declared)}"
    )
    for name, series in forecast.observables.items():
        require(
            series.shape == (forecast.horizon,) and series.dtype == np.float64,
            f"the observable {name!r} is {series.dtype.str} of shape {series.shape}; it needs one float64 for each "
            f"of the {forecast.horizon} covered steps",
        )
        require(bool(np.isfinite(series).all()), f"the observable {name!r} is not finite")
    if forecast.version > 0:
        require(
            "arrays" not in owns or forecast.arrays is not None, "the Task owns arrays, but its forecast holds none"
        )
        require("dt" not in owns or forecast.dt is not None, "the Task owns dt, but its forecast holds none")
        missing = sorted(declared - set(forecast.observables)) if "arrays" in owns else []
        require(not missing, f"the forecast lacks the observables {missing}; every covered step needs a value of each")


def _check_numbers(forecast: Forecast, owns: frozenset[str]) -> None:
    error, residual = forecast.error, forecast.residual
    require(error >= 0, f"the error estimate is {error}; it must be a number and not negative")
    require(residual >= 0, f"the residual is {residual}; it must be a number and not negative")
    require(
        isinstance(forecast.in_range, bool | np.bool_), f"in_range is {forecast.in_range!r}; it must be True or False"
    )
    good = all(0 <= scale < math.inf for scale in forecast.scales.values())
    require(good, f"the scales are {dict(forecast.scales)}; they must be finite and not negative")
    if forecast.version > 0:
        require(error < math.inf, "the error estimate of a trained model is infinite; it must be finite")
        require(residual < math.inf, "the residual of a trained model is infinite; it must be finite")
        require(owns != {"dt"} or error <= 1, f"the error of a dt is the probability of a miss; {error} is above 1")
