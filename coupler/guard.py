"""The Guard: the client's last word on what enters the simulation. Pure, and independent of any model."""

from __future__ import annotations

import math
import string
from collections.abc import Mapping
from typing import cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.fields import Array, Block, FieldSpec, misfit

HELPS = 0.9
"""Error with a smaller dt, over that with the larger one, at which the smaller one is of use."""
_SUM = string.ascii_letters
"""A subscript for each axis of an array, for einsum; a Block has at most 32."""


class Guard(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that no Advice may break.

    Attributes:
        bounds: Allowed (lowest, highest) value by field name.
        drift: Allowed relative change of an invariant through an adopted state, by name.
        dt_min: Smallest dt; 0 for none.
        dt_max: Largest dt; infinity for none.
        errors: Largest error of a direct step, by the observable that holds it.
    """

    bounds: dict[str, tuple[float, float]] = {}
    drift: dict[str, float] = {}
    dt_min: float = 0.0
    dt_max: float = math.inf
    errors: dict[str, float] = {}

    def dt(self, suggested: float, otherwise: float) -> float:
        """The dt to integrate with: the suggestion, clamped, or `otherwise` when it is not a positive number."""
        if not (math.isfinite(suggested) and suggested > 0.0):
            return otherwise
        return min(max(suggested, self.dt_min), self.dt_max)

    def objection(
        self, fields: Mapping[str, FieldSpec], blocks: Mapping[str, Block], own: Mapping[str, Block] | None = None
    ) -> str:
        """Why this rank's part of a learned state may not be adopted; empty when it may.

        Args:
            fields: Declared fields by name.
            blocks: Blocks that came with the Advice.
            own: This rank's Blocks now. A learned cell Block must have the same place and shape; particles may have
                wandered.
        """
        missing = [name for name, spec in fields.items() if spec.role == "state" and name not in blocks]
        if missing:
            return f"the learned state lacks field {missing[0]!r}"
        for name, block in blocks.items():
            spec = fields.get(name)
            if spec is None:
                return f"the learned state has an undeclared field {name!r}"
            if sentence := misfit(spec, block):
                return sentence
            if own is not None and spec.kind != "particle" and not _same_place(block, own[name]):
                return f"the learned field {name!r} is not the part that this rank holds"
            if not all_finite(block.array):
                return f"the learned field {name!r} is not finite"
            if name not in self.bounds or not block.array.size:
                continue
            low, high = self.bounds[name]
            if not (low <= block.array.min() and block.array.max() <= high):
                return f"the learned field {name!r} leaves its bounds [{low:g}, {high:g}]"
        return ""

    def broken(self, before: Mapping[str, float], after: Mapping[str, float]) -> str:
        """Which invariant the adopted state broke, as a sentence; empty when none.

        Args:
            before: Global value by name, before.
            after: Global value by name, after.
        """
        for name, limit in self.drift.items():
            scale = max(abs(before.get(name, 0.0)), 1e-300)
            change = abs(after.get(name, 0.0) - before.get(name, 0.0)) / scale
            if not change <= limit:
                return f"invariant {name!r} changed by {change:.3g} (relative), the limit is {limit:g}"
        return ""

    def errors_of(self, blocks: Mapping[str, Block]) -> dict[str, float]:
        """Largest magnitude of each limited error in this rank's Blocks."""
        return {name: float(np.abs(blocks[name].array).max(initial=0.0)) for name in self.errors}

    def rejection(
        self, before: Mapping[str, float], after: Mapping[str, float], tried: Mapping[str, float] | None = None
    ) -> str:
        """Which error a direct step took beyond its limit, as a sentence; empty when none.

        An error that was as large before is none that this step made, as of what adds up over steps. Where it was
        beyond the limit before, a smaller dt need not mend it, and has to show that it does.

        Args:
            before: `errors_of` the state before the step.
            after: `errors_of` the state after it.
            tried: `errors_of` the state that the same step led to with a larger dt, where it was made again.
        """
        for name, limit in self.errors.items():
            error = after[name]
            mends = before[name] <= limit or tried is None or not error > HELPS * tried[name]
            if not error <= limit and not error <= before[name] and mends:
                return f"{name!r} became {error:.3g}, its limit is {limit:g}"
        return ""


def _same_place(one: Block, other: Block) -> bool:
    return one.array.shape == other.array.shape and one.offset == other.offset


def all_finite(array: Array) -> bool:
    """Whether all values are finite: one pass without a temporary (a sum is finite only if every term is).

    A sum of finite values that overflows is reported too: such a state is of no use either.
    """
    if array.dtype.kind != "f":
        return True
    if array.ndim == 0:
        return math.isfinite(array)
    # sum() takes twice as long, and warns
    return math.isfinite(np.einsum(_SUM[: array.ndim] + "->", cast("NDArray[np.floating]", array)))
