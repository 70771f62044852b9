"""What a timestep task reads from a Snapshot: the error of the last step, features of the state, the controls."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from schemas.fields import Array, FieldSpec, Snapshot, with_role

Floats = NDArray[np.float64]

SMALL = 8
"""A field of at most this many values gives them all as features; a larger one its rms and its largest magnitude."""
LARGEST = 1e100
"""Largest magnitude of a feature: its square must be a number."""
LOG_ERRORS = (-14.0, 25.0)
"""Limits of log(error / tolerance): below, an error is rounding; above, it does not matter."""


class StepReading:
    """Reads Snapshots of declared fields.

    Attributes:
        drifts: Whether the error is a change from one Snapshot to the next, so that a single one does not show it.
        features: Names of the fields that give features.
        controls: Names of the controls.
        width: Number of features.
    """

    def __init__(
        self,
        fields: Sequence[FieldSpec],
        error_field: str,
        tolerance: float,
        features: tuple[str, ...] | None,
        powers: tuple[str, ...] = (),
    ) -> None:
        """See `Timestep`. ValueError when a field is not there, or the error is no single number."""
        declared = {spec.name: spec for spec in fields}
        kind, _, name = error_field.rpartition(":")
        if kind not in ("", "drift", "invariant"):
            raise ValueError(f'error_field is {error_field!r}; write "NAME", "drift:NAME" or "invariant:NAME"')
        self._error = f"invariant.{name}" if kind == "invariant" else name
        single = [spec.name for spec in with_role(tuple(fields), "observable") if math.prod(spec.shape) == 1]
        if self._error not in single:
            raise ValueError(
                _unknown(f"error_field is {error_field!r}, which needs the observable", self._error, single)
            )
        if features is None:
            features = tuple(spec.name for spec in fields if _is_small_float(spec) and spec.name != self._error)
        for feature in features:
            if feature not in declared:
                raise ValueError(_unknown("features names", feature, declared))
        for power in powers:
            if power not in features:
                raise ValueError(_unknown("powers names", power, features))
        self._powers = frozenset(powers)
        self.drifts, self.features, self._tolerance = bool(kind), features, tolerance
        self.controls = tuple(spec.name for spec in with_role(tuple(fields), "control"))
        sizes = [math.prod(declared[feature].shape) for feature in features]
        self.width = sum(size if size <= SMALL else 2 for size in sizes)

    def measured(self, snapshot: Snapshot) -> float:
        """The observable behind the error; NaN where the Snapshot lacks it."""
        block = snapshot.blocks.get(self._error)
        return math.nan if block is None else float(block.array.reshape(-1)[0])

    def log_error(self, measured: float, before: float = 0.0) -> float | None:
        """Log(error / tolerance) of a step within `LOG_ERRORS`; None when it is not known.

        Args:
            measured: The observable after the step.
            before: The observable before it; used where the error is a drift.
        """
        error = abs(measured - before if self.drifts else measured) / self._tolerance
        if math.isnan(error) or (error == 0.0 and not self.drifts):
            return None
        return min(max(math.log(error), LOG_ERRORS[0]), LOG_ERRORS[1]) if error else LOG_ERRORS[0]

    def seen(self, snapshot: Snapshot) -> Floats:
        """The features, shape (width,); 0 in place of what is not a number, and none beyond `LARGEST`."""
        seen: list[float] = []
        for name in self.features:
            array = snapshot[name].reshape(-1)
            # Most fields are a few numbers, of which plain ones are made ten times as fast as by numpy.
            values = [_bounded(v) for v in array.tolist()] if array.size <= SMALL else _summary(array)
            if name in self._powers:
                values = [math.log(max(abs(value), 1.0 / LARGEST)) for value in values]
            seen += values
        return np.array(seen)

    def widen(self, bounds: Floats, snapshot: Snapshot) -> None:
        """Takes a Snapshot's controls into their bounds: lowest and highest values, shape (2, number of controls)."""
        for at, name in enumerate(self.controls):
            imposed = snapshot[name]
            bounds[:, at] = min(bounds[0, at], imposed.min()), max(bounds[1, at], imposed.max())

    def has_seen(self, snapshot: Snapshot, bounds: Floats) -> bool:
        """Whether a Snapshot's controls lie within bounds that `widen` made."""
        imposed = [(snapshot[name], *bounds[:, at]) for at, name in enumerate(self.controls)]
        return all(low <= values.min() and values.max() <= high for values, low, high in imposed)


def _bounded(value: float) -> float:
    return 0.0 if math.isnan(value) else float(min(max(value, -LARGEST), LARGEST))


def _summary(array: Array) -> list[float]:
    """The rms and the largest magnitude of a larger field."""
    values = np.nan_to_num(array.astype(np.float64), posinf=LARGEST, neginf=-LARGEST)
    values = np.minimum(np.maximum(values, -LARGEST, out=values), LARGEST, out=values)
    return [math.sqrt(values @ values / values.size), float(np.abs(values).max())]


def _is_small_float(spec: FieldSpec) -> bool:
    # Whole numbers are counts and labels: no measure of the state. A conserved quantity is none either.
    whole = np.dtype(spec.dtype).kind != "f"
    return not whole and math.prod(spec.shape) <= SMALL and not spec.name.startswith("invariant.")


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"{what} {name!r}, but declared are {', '.join(map(repr, names)) or 'none'}{hint}"
