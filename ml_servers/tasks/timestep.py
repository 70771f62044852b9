"""The timestep task: learns online how large a dt keeps the error of a step within a tolerance, and advises it."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from msgspec import Meta

from coupler.contracts import Forecast, Report
from ml_servers.models.step_error import FIRST_NOISE, KNOWN, Floats, StepError, fit
from ml_servers.models.step_pairs import StepPairs
from ml_servers.tasks.step_reading import StepReading
from schemas.fields import Array, FieldSpec, Snapshot

Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(gt=0)]

SHRINK = 0.2
"""Smallest factor from one dt to the next; a larger fall would rest on an extrapolation (DOPRI5 has the same)."""
NEARLY = 1e-9
"""Share of a time that rounding may cost."""
PAIRS = 256
"""Pairs taken in by one step of `learn`."""
ENOUGH = 64
"""Pairs that a new model must rest on to take the place of a restored one."""


class _Moment(NamedTuple):
    """A state: its time, its features, the error up to it, and the mean dt of the steps that this error covers.

    `log_error` is None where not all of those steps were seen.
    """

    time: float
    features: Floats
    log_error: float | None
    log_dt: float


class _Pair(NamedTuple):
    step: int
    row: Floats
    rise: float
    weight: float


class _Seen(NamedTuple):
    step: int
    time: float
    measured: float


@dataclass(frozen=True, slots=True)
class Served:
    """What forecasts are made of.

    Attributes:
        model: The model.
        log_error: Newest log(error / tolerance) trained on.
        log_dt: Log of that step's dt.
        controls: Lowest and highest value seen of each control, shape (2, c).
        version: Version, from 1.
        trained_on: Pairs of steps used so far.
        last_step: Highest coupling step of them.
    """

    model: StepError
    log_error: float
    log_dt: float
    controls: Floats
    version: int
    trained_on: int
    last_step: int


class Timestep:
    """Advises the largest dt of a ladder whose error stays within the tolerance with at least a given probability.

    Each directly integrated step is a lesson: the state before it, its dt, and the error that it made. dt is always
    the simulated time of one coupling step, found from the times of consecutive Snapshots. A forecast depends on its
    Snapshot and on the model alone: the state gives the features, the error observable the error of the last step, and
    Snapshot.dt the dt of that step. Where the error is a drift, or looks back further, a single Snapshot does not show
    it or the dt that made it, and the newest error trained on stands in.

    The first dt is the simulation's own. From one step to the next dt grows by at most `growth`.
    """

    owns: ClassVar[frozenset[str]] = frozenset({"dt"})

    def __init__(  # noqa: PLR0913  every setting is a keyword of the case file
        self,
        *,
        fields: Sequence[FieldSpec],
        seed: int = 0,
        dt_min: Positive,
        dt_max: Positive,
        tolerance: Positive,
        error_field: str,
        confidence: Annotated[float, Meta(gt=0.5, le=0.999)] = 0.98,
        features: tuple[str, ...] | None = None,
        powers: tuple[str, ...] = (),
        lead: Count = 2,
        over: Annotated[float, Meta(ge=0)] = 0.0,
        growth: Annotated[float, Meta(gt=1)] = 1.5,
        follow: Annotated[float, Meta(gt=0, le=1)] = 1.0,
        rung: Annotated[float, Meta(gt=1)] = 1.02,
        order: Annotated[float, Meta(ge=1, le=12)] = 4.0,
        refit: Count = 16,
        memory: Annotated[int, Meta(ge=ENOUGH)] = 2048,
    ) -> None:
        """Makes an untrained task.

        Args:
            fields: Declared fields.
            seed: Seed of the order in which first guesses are forgotten.
            dt_min: Smallest dt advised.
            dt_max: Largest dt advised.
            tolerance: Largest acceptable error of one coupling step, in the unit of the error.
            error_field: The error. The name of an observable that holds the error of the last coupling step (its
                magnitude counts; 0 means not known), or `invariant:NAME` or `drift:NAME` for the change of an invariant
                or of an observable over one coupling step.
            confidence: Probability at which a dt counts as safe.
            features: Fields that the error may depend on. None: all floating ones of up to 8 values; larger ones, which
                give their rms and largest magnitude, must be named.
            powers: Features whose power the error may follow, such as a temperature: their logarithm is what counts.
            lead: Coupling steps from the state asked about to the end of the step that its dt may govern: 1 where
                Advice arrives at once, 2 where it is about the step before.
            over: Simulated time that the error looks back over; 0 for the last coupling step. What is learned is how
                the error over so long follows from the state before, and from the error up to there.
            growth: Largest factor from one dt to the next.
            follow: Part of the way (of log dt) from the present dt to the chosen one that is gone in a step. Below 1
                where a change of dt costs: the energy that a symplectic method conserves depends on dt, and a quick
                change is a drift by itself.
            rung: Largest ratio between neighbours on the ladder from dt_min to dt_max.
            order: Expected exponent of the error in dt; it is learned from there.
            refit: New pairs of steps between models; fewer at first.
            memory: Pairs of steps that a model rests on.

        Raises:
            ValueError: dt_min is not below dt_max, rung is above growth, a field is not there, or `over` is given for
                the change of an observable.
        """
        if not dt_min < dt_max:
            raise ValueError(
                f"dt_min is {dt_min} and dt_max {dt_max}; dt_min must be the smaller, or there is no choice"
            )
        if rung > growth:
            raise ValueError(f"rung is {rung} and growth {growth}, so dt could never grow; make rung at most growth")
        self._reading = StepReading(fields, error_field, tolerance, features, powers)
        if over and self._reading.drifts:
            raise ValueError(
                f"over is {over:g}, but {error_field!r} is a change over one coupling step; leave over out, or name an "
                "observable that holds the error over that time"
            )
        self._confidence, self._growth, self._order, self._refit = confidence, growth, order, refit
        self._follow = follow
        ladder = np.geomspace(dt_min, dt_max, math.ceil(math.log(dt_max / dt_min) / math.log(rung)) + 1)
        self._rungs, self._log_ladder = ladder.tolist(), np.log(ladder)
        self._width = KNOWN + self._reading.width + 1
        self._served: Served | None = None
        self._over = over
        # An error that looks back says nothing of the present dt, and a drift nothing at all: what stands in for them
        # is as of the newest model, so that is what is learned from.
        self._stands_in = over > 0.0 or self._reading.drifts
        self._lead = lead
        self._before: deque[_Moment] = deque(maxlen=lead + (refit if self._stands_in else 0))
        self._covered: deque[_Moment] = deque()  # ends of the steps that the newest error covers
        self._last: _Seen | None = None
        self._controls = np.array([[math.inf], [-math.inf]]) * np.ones(len(self._reading.controls))
        self._pending: deque[_Pair] = deque()
        self._pairs = StepPairs(memory, self._width)
        self._taken = self._fresh = self._superseded = 0
        self._restored = False
        count = max(256, math.ceil(5.0 / (1.0 - confidence)))
        normal = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
        self._surprises = deque(np.random.default_rng(seed).permutation(normal), maxlen=count)

    def observe(self, snapshot: Snapshot) -> None:
        """See `Task.observe`."""
        now = _Seen(snapshot.step, snapshot.time, self._reading.measured(snapshot))
        last, self._last = self._last, now
        self._reading.widen(self._controls, snapshot)
        if last is None or now.step != last.step + 1 or now.time <= last.time:
            self._drop_after(now.step)
            last = None
        log_error = None if last is None else self._reading.log_error(now.measured, last.measured)
        if log_error is None:
            self._covered.clear()
            self._before.clear()
        self._note(now, log_error, self._reading.seen(snapshot))

    def _note(self, now: _Seen, log_error: float | None, features: Floats) -> None:
        """Adds a state to the present stretch, and the pair that its error completes."""
        covered, before = self._covered, self._before
        covered.append(_Moment(now.time, features, None, 0.0))
        while len(covered) > 1 and covered[0].time <= now.time - self._over * (1.0 - NEARLY):
            before.append(covered.popleft())
        if log_error is None or not before:
            return
        log_dt = math.log((now.time - before[-1].time) / len(covered))
        covered[-1] = _Moment(now.time, features, log_error, log_dt)
        lag = self._lead + (self._pause if self._stands_in else 0)
        if len(before) < lag:
            return
        then = before[-lag]
        if then.log_error is not None:
            row = _row(log_dt - then.log_dt, then.log_error, then.log_dt, then.features)
            self._pending.append(_Pair(now.step, row, log_error - then.log_error, 1.0 / len(covered)))

    def learn(self, steps: int) -> Report:
        """See `Task.learn`: takes in up to `PAIRS` pairs a step, then makes a new model if enough of them are new."""
        for _ in range(min(PAIRS * steps, len(self._pending))):
            pair = self._pending.popleft()
            if self._served is not None:
                self._surprises.append(self._served.model.surprise(pair.row, pair.rise))
            self._pairs.append(*pair)
            self._taken, self._fresh = self._taken + 1, self._fresh + 1
        promoted = self._is_due()
        if promoted:
            self._served = self._fitted()
        served = self._served
        if served is None:
            return Report(superseded=self._superseded, idle=not self._pending)
        return Report(
            version=served.version,
            trained_on=served.trained_on,
            last_step=served.last_step,
            kind="linear",
            promoted=promoted,
            loss=served.model.noise,
            superseded=self._superseded,
            idle=not self._pending,
        )

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        """See `Task.forecast`: the dt for the next step, and the probability that it misses the tolerance."""
        served, reading = self._served, self._reading
        if served is None:
            return Forecast(horizon, 1.0, 0)
        log_error = None if self._stands_in else reading.log_error(reading.measured(snapshot))
        log_dt = math.log(snapshot.dt)
        if log_error is None:
            log_error, log_dt = served.log_error, served.log_dt
        first = min(bisect_left(self._rungs, SHRINK * snapshot.dt), len(self._rungs) - 1)
        stop = max(bisect_right(self._rungs, self._growth * snapshot.dt), 1)
        odds = served.model.odds(_row(0.0, log_error, log_dt, reading.seen(snapshot)))
        safe = (odds.kept(self._log_ladder[first:stop] - log_dt) >= self._confidence).nonzero()[0]
        chosen = self._rungs[first + (int(safe[-1]) if safe.size else 0)]
        dt = chosen * (snapshot.dt / chosen) ** (1.0 - self._follow)  # in this form the choice itself where follow is 1
        missed = 1.0 - float(odds.kept(np.array(math.log(dt) - log_dt)))
        in_range = reading.has_seen(snapshot, served.controls)
        return Forecast(horizon, missed, served.version, dt=dt, in_range=in_range)

    def state(self) -> dict[str, Array]:
        """See `Task.state`. The remembered pairs stay here: another instance goes on with pairs of its own."""
        served = self._served or _blank(self._width, len(self._reading.controls))
        model = served.model
        return {
            "coefficients": model.coefficients.copy(),
            "covariance": model.covariance.copy(),
            "centre": model.centre.copy(),
            "scale": model.scale.copy(),
            "surprises": model.surprises.copy(),
            "controls": served.controls.copy(),
            "numbers": np.array([model.noise, served.log_error, served.log_dt]),
            "counts": np.array([served.version, served.trained_on, served.last_step]),
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """See `Task.restore`."""
        own = self.state()
        for name, array in own.items():
            given = state.get(name)
            # The number of surprises may differ: it follows from the confidence, which is no part of the model.
            if given is None or given.ndim != array.ndim or (name != "surprises" and given.shape != array.shape):
                found = "it is missing" if given is None else f"it has shape {given.shape}"
                raise ValueError(
                    f"the state needs {name!r} of shape {array.shape}, but {found}; restore a state of a Timestep with "
                    "the same fields and features"
                )
        floats = {name: np.array(state[name], np.float64) for name in own if name != "counts"}
        version, trained_on, last_step = (int(count) for count in state["counts"])
        noise, log_error, log_dt = floats.pop("numbers").tolist()
        controls = floats.pop("controls")
        model = StepError(noise=noise, **floats)
        served = Served(model, log_error, log_dt, controls, version, trained_on, last_step)
        self._served, self._restored = served if version else None, version > 0

    def _is_due(self) -> bool:
        if not (self._fresh and self._pairs.count):
            return False
        if self._restored and self._pairs.count < ENOUGH:
            return False
        return self._served is None or self._fresh >= self._pause

    @property
    def _pause(self) -> int:
        """Pairs from one model to the next."""
        return min(self._refit, 1 + self._taken // 4)

    def _fitted(self) -> Served:
        self._fresh, self._restored = 0, False
        before, (rows, rises, weights) = self._served, self._pairs.newest()
        noise = FIRST_NOISE if before is None else before.model.noise
        return Served(
            model=fit(rows, rises, weights, self._order, noise, np.array(self._surprises)),
            log_error=float(rows[-1, 1] + rises[-1]),
            log_dt=float(rows[-1, 2] + rows[-1, 0]),
            controls=self._controls.copy(),
            version=1 if before is None else before.version + 1,
            trained_on=self._taken,
            last_step=self._pairs.last_step,
        )

    def _drop_after(self, step: int) -> None:
        """Drops what later steps taught: the run went back. Does nothing when it jumped ahead."""
        lost = self._pairs.drop_after(step)
        self._taken -= lost
        if lost:
            self._fresh = self._refit  # the model that serves rests on what is dropped here
        while self._pending and self._pending[-1].step > step:
            self._pending.pop()
            lost += 1
        self._superseded += lost


def _row(log_dt_rise: float, log_error: float, log_dt: float, features: Floats) -> Floats:
    return np.concatenate(([log_dt_rise, log_error, log_dt], features, [1.0]))


def _blank(width: int, controls: int) -> Served:
    zeros, square = np.zeros(width), np.zeros((width, width))
    return Served(StepError(zeros, square, zeros, zeros, 0.0, np.zeros(1)), 0.0, 0.0, np.zeros((2, controls)), 0, 0, -1)
