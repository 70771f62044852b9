"""What answers for a task in the server: the Task, or its ranks together.

The ranks of a task (`[[task]] ranks = N`) learn from their shares of the states (`coupler.distribution`), each a model
of its own. By "blocks" each advances its region, and the regions are put together. By "steps" each advances the whole
state, having seen other parts of the trajectory; their mean is the answer, and errs less than they do one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.contracts import Forecast, Task
from coupler.distribution import Share
from coupler.errors import PluginError
from schemas.fields import Array, FieldSpec, Snapshot, with_role
from schemas.messages import Trained


def misshapen(forecast: Forecast, horizon: int, fields: Sequence[FieldSpec]) -> str:
    """Why an answer of a Task has not the form that was asked for, as a sentence; empty when it has."""
    if forecast.horizon != horizon:
        return f"asked for {horizon} steps, the task forecast {forecast.horizon}"
    state = {spec.name: spec for spec in with_role(tuple(fields), "state")}
    if forecast.arrays and set(forecast.arrays) != set(state):
        return f"the task forecast {sorted(forecast.arrays)}; the state fields are {sorted(state)}"
    for name, array in (forecast.arrays or {}).items():
        if array.shape != state[name].shape or array.dtype != np.dtype(state[name].dtype):
            want = f"{state[name].dtype} of shape {state[name].shape}"
            return f"the task forecast {name!r} as {array.dtype.str} of shape {array.shape}; it was declared as {want}"
    for name, series in forecast.observables.items():
        if series.shape != (horizon,):
            return f"the task forecast {series.shape} values of {name!r}; one for each of {horizon} steps is needed"
    return ""


class JointTask:
    """Several ranks of a task, answering as one. Nothing is forecast before each has a model.

    Attributes:
        members: The ranks.
    """

    def __init__(self, members: Sequence[Task], shares: Sequence[Share], fields: Sequence[FieldSpec]) -> None:
        """Puts ranks together.

        Args:
            members: The ranks, each made for its share of the fields.
            shares: What each of them takes.
            fields: All fields, global shapes.
        """
        self.members, self._shares, self._fields = members, shares, fields
        self._seen = [share.fields(fields) for share in shares]
        self._state = with_role(tuple(fields), "state")
        self._by_blocks = shares[0].distribution == "blocks"

    @property
    def owns(self) -> frozenset[str]:
        """See `Task.owns`."""
        return frozenset(self.members[0].owns)

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        """See `Task.forecast`.

        The error of the whole is the root of the ranks' mean square errors. By "blocks" each counts by the share that
        its region has in the square fluctuation of the state, so that a region where nothing happens counts little.
        The version is the sum of the ranks' versions: it rises with each of them.
        """
        parts = [share.part(snapshot, self._fields) for share in self._shares]
        told = [member.forecast(part, horizon) for member, part in zip(self.members, parts, strict=True)]
        for rank, forecast in enumerate(told):
            if sentence := misshapen(forecast, horizon, self._seen[rank]):
                raise PluginError(f"rank {rank}: {sentence}")
        if not all(forecast.version for forecast in told):
            return Forecast(horizon, math.inf, 0)
        scales = self._scales(told)
        weights = self._weights(told, scales)
        dts = [forecast.dt for forecast in told if forecast.dt]
        return Forecast(
            horizon,
            _root_mean_square([forecast.error for forecast in told], weights),
            sum(forecast.version for forecast in told),
            arrays=self._joined(told),
            dt=min(dts, default=None),
            observables=_mean_observables(told),
            residual=_root_mean_square([forecast.residual for forecast in told], weights),
            in_range=all(forecast.in_range for forecast in told),
            scales=scales,
        )

    def _joined(self, told: Sequence[Forecast]) -> dict[str, Array] | None:
        given = [forecast.arrays for forecast in told if forecast.arrays is not None]
        if len(given) < len(told):
            return None
        joined: dict[str, Array] = {}
        for spec in self._state:
            arrays = [own[spec.name] for own in given]
            if self._by_blocks:
                whole = np.empty(spec.shape, spec.dtype)
                for share, array in zip(self._shares, arrays, strict=True):
                    whole[share.region(spec).window] = array
                joined[spec.name] = whole
            else:
                mean = sum((np.asarray(array, np.float64) / len(arrays) for array in arrays), np.zeros(spec.shape))
                joined[spec.name] = (np.rint(mean) if np.dtype(spec.dtype).kind in "iu" else mean).astype(spec.dtype)
        return joined

    def _scales(self, told: Sequence[Forecast]) -> dict[str, float]:
        """Rms fluctuation of each state field: what the ranks know of it, together."""
        scales = {}
        for spec in self._state:
            known = [forecast.scales.get(spec.name, math.nan) for forecast in told]
            sizes = [math.prod(share.region(spec).shape) for share in self._shares]
            scale = math.sqrt(np.average(np.square(known), weights=sizes)) if sum(sizes) else math.nan
            if math.isfinite(scale):
                scales[spec.name] = scale
        return scales

    def _weights(self, told: Sequence[Forecast], scales: Mapping[str, float]) -> NDArray[np.float64]:
        """Share of each rank in the mean square error of the whole."""
        weights = np.ones(len(told))
        if self._by_blocks and scales and all(scales.values()):
            for i, (share, forecast) in enumerate(zip(self._shares, told, strict=True)):
                weights[i] = sum(
                    math.prod(share.region(spec).shape) * (forecast.scales[spec.name] / scales[spec.name]) ** 2
                    for spec in self._state
                    if spec.name in scales
                )
        shares: NDArray[np.float64] = weights / weights.sum()
        return shares


ServingTask = Task | JointTask
MakeTask = Callable[[str, tuple[FieldSpec, ...]], ServingTask]
"""Constructs what answers for a task, from its name and the fields (invariants appended as scalar observables)."""


class Reports:
    """What the ranks of one task told last, as one report."""

    def __init__(self, shares: Sequence[Share]) -> None:
        """Args: shares: What each rank takes."""
        self._by_blocks = shares[0].distribution == "blocks"
        self._of: dict[int, Trained] = {rank: Trained("") for rank in range(len(shares))}
        self._tests: dict[int, dict[int, list[tuple[int, float, float]]]] = {rank: {} for rank in self._of}

    def joined(self, told: Trained) -> Trained | None:
        """The report of all ranks after one has told its own; None before each has a model.

        Back-tests are pooled at the horizons that every rank has some of. A rank's ratio of observed to estimated error
        then stands for that of the whole, whose errors are means of theirs and scatter less.
        """
        if len(self._of) == 1:
            return told
        self._of[told.rank] = told
        if told.calibrated:
            self._tests[told.rank] = {}
            for test in told.backtests:
                self._tests[told.rank].setdefault(test[0], []).append(test)
        ranks = self._of.values()
        if not all(one.version for one in ranks):
            return None
        horizons = set.intersection(*(set(tests) for tests in self._tests.values()))
        pooled = [test for h in sorted(horizons) for tests in self._tests.values() for test in tests[h]]
        return msgspec.structs.replace(
            told,
            version=sum(one.version for one in ranks),
            kind=", ".join(sorted({one.kind for one in ranks})),
            trained_on=(min if self._by_blocks else sum)([one.trained_on for one in ranks]),
            last_step=max(one.last_step for one in ranks),
            backtests=tuple(pooled),
        )


def _root_mean_square(values: Sequence[float], weights: NDArray[np.float64]) -> float:
    # Not np.average: infinity of a rank that counts nothing would make no number of it.
    return math.sqrt(sum(w * value * value for w, value in zip(weights.tolist(), values, strict=True) if w))


def _mean_observables(told: Sequence[Forecast]) -> dict[str, NDArray[np.float64]]:
    common = set.intersection(*(set(forecast.observables) for forecast in told))
    return {name: np.mean([forecast.observables[name] for forecast in told], axis=0) for name in sorted(common)}
