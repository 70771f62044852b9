"""How a run whose dt was advised kept the tolerance of that dt, from the error that its own observable tells. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launch.report.statistics import series


def dt_error(observed: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the steps of a run did to their tolerance.

    Args:
        observed: The observables of every state.
        wanted: `field`, the observable that holds the error of the step to its state, and `tolerance`; None where no
            dt was advised.

    Returns:
        `field`, `tolerance`, `max` (largest error), `missed` (share of steps above the tolerance) and `n` (steps); None
        where no dt was advised. Of an error that is no observable, such as the drift of an invariant, n is 0.
    """
    if wanted is None:
        return None
    steps, _, values = series(observed, wanted["field"])
    errors = np.abs(values[(steps > 0) & np.isfinite(values)])
    found = {"field": wanted["field"], "tolerance": wanted["tolerance"], "n": len(errors)}
    if not len(errors):
        return found | {"max": None, "missed": None}
    return found | {"max": float(errors.max()), "missed": float(np.mean(errors > wanted["tolerance"]))}


def limited(observed: Sequence[Mapping[str, Any]], wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How the steps of a run kept the limits of their errors.

    Args:
        observed: The observables of every state.
        wanted: `errors`, `field` (an observable) and `tolerance` (its limit) of each, and `rejected`, steps made again
            for them; None where nothing is limited.

    Returns:
        `rejected`, and `errors`: for each what `dt_error` gives.
    """
    if wanted is None:
        return None
    return {"rejected": wanted["rejected"], "errors": [dt_error(observed, error) for error in wanted["errors"]]}
