"""The one definition of relative error that tolerances, audits, back-tests and reports share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

from schemas.fields import Array, FieldSpec


def relative_error(
    fields: Iterable[FieldSpec],
    found: Mapping[str, Array],
    truth: Mapping[str, Array],
    scales: Mapping[str, float],
) -> float:
    """Rms difference over rms fluctuation, all state fields together.

    Each field's mean square difference is divided by the square of its scale, and the quotients are averaged over all
    values of all fields, so that the result does not depend on units and 1 means "as wrong as the mean state".

    Args:
        fields: Declared fields; those of role state count.
        found: Array by field name.
        truth: Array by field name, same shapes.
        scales: Rms fluctuation by field name. A field without a scale is measured by its spatial deviation from its
            mean, or by its rms where it is uniform.

    Returns:
        The error; infinity when any value is not finite.

    Raises:
        ValueError: The two arrays of a field differ in shape.
    """
    total, count = 0.0, 0
    for spec in fields:
        if spec.role != "state" or spec.name not in truth:
            continue
        a, b = np.asarray(found[spec.name]), np.asarray(truth[spec.name])
        if a.shape != b.shape:
            raise ValueError(f"field {spec.name!r} has shape {a.shape} on one side and {b.shape} on the other")
        if b.size == 0:
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is reported as infinity below
            difference = np.subtract(a, b, dtype=np.float64).ravel()
            norm = math.sqrt(float(difference @ difference)) / (scales.get(spec.name) or _own_scale(b))
        total += norm * norm  # not norm**2 over scale**2: the square of a tiny scale is zero
        count += b.size
    error = math.sqrt(total / count) if count else 0.0
    return error if math.isfinite(error) else math.inf


def _own_scale(values: Array) -> float:
    as_float = np.asarray(values, dtype=np.float64)
    return float(as_float.std()) or float(np.sqrt(np.mean(as_float**2))) or 1.0
