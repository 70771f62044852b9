"""The Task that learns the dynamics of a simulation's state and predicts it many steps ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.contracts import Backtest, Forecast, Report
from ml_servers.buffer import Counts, View
from ml_servers.models import affine
from ml_servers.models.affine import Affine, Runs
from ml_servers.models.networks import Ensemble
from ml_servers.models.pod import Reduction
from ml_servers.models.polynomial import Polynomial
from ml_servers.tasks.backtest import (
    ENOUGH_STARTS,
    Errors,
    ErrorTable,
    backtests,
    horizon_errors,
)
from ml_servers.tasks.contest import Contender, Contest, Rival
from ml_servers.tasks.memory import BLOCK, Memory
from ml_servers.tasks.rounds import Rounds
from ml_servers.tasks.search import (
    Candidate,
    Fitted,
    cloud_of,
    earlier_origins,
    finish,
    read_out,
    search,
)
from ml_servers.tasks.served import Served
from ml_servers.tasks.trajectory import Course, Layout, clipped
from ml_servers.tasks.watch import Watch
from ml_servers.tasks.window import Window
from schemas.fields import Array, FieldSpec, Snapshot

Floats = NDArray[np.float64]
Positive = Annotated[int, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]

_REFIT_SHARE = 0.125
"""New states between attempts, at least, as a share of those held: networks get their time beside many states too."""
_OUTGROWN = 4
"""Networks start again on a map of this many times as many states."""


class Propagator:
    """Learned dynamics of all state fields, with the observables of every step and its own error.

    Reduced coordinates (POD) and an affine or polynomial map of them, chosen among windows, ranks and estimators by
    back-tests on the newest direct data; and an ensemble of small networks that correct an affine map, where `models`
    has "network". A candidate serves only if it beats the serving model on direct data that neither was trained on.

    The winner is fitted once more to all data, the hold-out included, before it serves. The back-tests that are
    reported at that moment are those of the same model before this refit, on data it had not seen: an upper estimate.
    They are replaced, horizon by horizon, as direct data arrive that the served model itself has not seen.

    When its one-step error rises for good (Page-Hinkley) and no one map fits all states, the dynamics have changed: the
    window starts again, reported back-tests become empty, and the old model serves until a candidate of the new regime
    beats it. A control that leaves the trained range makes forecasts `in_range = False`; if candidates trained there
    are as good as the serving model on direct data, they replace it and widen the range.
    """

    owns: ClassVar[frozenset[str]] = frozenset({"arrays"})

    def __init__(  # noqa: PLR0913  every setting is a keyword of the case file
        self,
        *,
        fields: Sequence[FieldSpec],
        seed: int,
        models: tuple[Literal["affine", "polynomial", "network"], ...] = ("affine", "polynomial", "network"),
        rank: Positive | None = None,
        window: Positive = 256,
        window_bytes: Positive = 1 << 29,
        min_snapshots: Positive = 48,
        refit_every: Positive = 32,
        holdout: Share = 0.33,
        margin: Share = 0.1,
        serve_below: Share = 0.1,
        small_state: Positive = 256,
        network_members: Positive = 4,
        network_width: Positive = 32,
        network_updates: Positive = 400,
    ) -> None:
        """Settings.

        Args:
            fields: The declared fields.
            seed: Seed of the reservoir, the networks and their batches.
            models: What may serve; "affine" is always tried. A polynomial is found in milliseconds, where the
                dynamics are near to one; a network takes minutes.
            rank: Modes at most. None tries up to 24, and more, up to 128, where those leave out more than 1 % of the
                rms fluctuation.
            window: Large states in the training window at most; 16 times as many small ones.
            window_bytes: Memory of the training window at most.
            min_snapshots: Snapshots before the first attempt.
            refit_every: New snapshots between attempts; an eighth of those held if that is more.
            holdout: Share of the window that is held out to judge candidates.
            margin: Share by which a candidate's errors must be smaller than the serving model's.
            serve_below: Relative error above which a model is not worth serving, even for a single step.
            small_state: States of at most this many values count as small: their modes come from a covariance, not from
                inner products of states, and many more of them are kept.
            network_members: Networks in the ensemble.
            network_width: Width of their two hidden layers.
            network_updates: Updates in a round of training, after which they are judged.

        Raises:
            ValueError: When no state field is declared or the window would be too small.
        """
        self._layout = Layout(fields)
        self._models, self._rank, self._seed = models, rank, seed
        self._min_snapshots, self._refit_every = min_snapshots, refit_every
        self._holdout = holdout
        self._contest = Contest(margin, serve_below, refit_every // 2)
        self._network_settings = (network_members, network_width, network_updates)
        self._memory_settings = (window, window_bytes, small_state, seed)
        self._memory: Memory | None = None
        self._served: Served | None = None
        self._watch: Watch | None = None
        self._rounds: Rounds | None = None
        self._rival: Rival | None = None
        self._new = self._judged = self._based_on = 0
        self._backtests: dict[int, tuple[Backtest, ...]] = {}
        self._loss = float("nan")

    @property
    def counts(self) -> Counts:
        """The fate of every snapshot observed."""
        return Counts() if self._memory is None else self._memory.counts

    def observe(self, snapshot: Snapshot) -> None:
        """See `Task.observe`."""
        if self._memory is None:
            self._memory = Memory(self._layout, *self._memory_settings)
        if self._watch is not None and snapshot.step <= self._memory.last_step:
            self._watch.drop(snapshot.step)
        self._memory.take(snapshot)

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        """See `Task.forecast`. The version is 0 and the error infinite while nothing serves."""
        if self._served is None:
            return Forecast(horizon, np.inf, 0)
        return self._served.forecast(self._layout, snapshot, horizon)

    def learn(self, steps: int) -> Report:
        """See `Task.learn`. One step takes in a block of snapshots, searches for a better model or trains networks."""
        promoted, busy = False, self._memory is not None
        for _ in range(steps):
            if self._memory is None or not busy:
                break
            before = self._version
            busy = self._learn(self._memory)
            promoted |= self._version != before
        records = tuple(b for h in sorted(self._backtests) for b in self._backtests[h])
        trained_on, last_step, kind = (
            (self._served.trained_on, self._served.last_step, self._served.kind) if self._served else (0, -1, "none")
        )
        superseded = self.counts.superseded
        return Report(
            self._version, trained_on, last_step, kind, promoted, records, self._loss, superseded, idle=not busy
        )

    def state(self) -> dict[str, Array]:
        """See `Task.state`."""
        return {"numbers": np.zeros(3, np.int64)} if self._served is None else self._served.state()

    def restore(self, state: Mapping[str, Array]) -> None:
        """See `Task.restore`."""
        numbers = np.asarray(state.get("numbers", np.zeros(0)))
        untrained = numbers.shape == (3,) and not numbers.any() and len(state) == 1
        served = None if untrained else Served.of(state, self._layout)
        self._serve(served, -1)
        self._backtests = {}

    def _serve(self, served: Served | None, arrival: int) -> None:
        self._served = served
        large = self._memory is not None and self._memory.large
        self._watch = None if served is None else Watch(served, large=large)
        self._rival = None if served is None else Rival(served.dynamics, served.reduction, arrival, served)
        self._judged = 0

    @property
    def _version(self) -> int:
        return self._served.version if self._served else 0

    def _learn(self, memory: Memory) -> bool:
        """One bounded piece of work. False when there was nothing to do."""
        fresh = memory.fresh()
        self._new += len(fresh)
        if self._watch is not None and len(fresh):
            self._check(memory, self._watch, fresh)
        held = memory.counts.held
        due = held >= self._min_snapshots and self._new >= max(self._refit_every, int(_REFIT_SHARE * held))
        training = self._rounds is not None and self._rounds.active
        if due:
            # All that waits first, in this same piece of work: states that come faster than pieces of work are done
            # would put the attempt off for ever.
            while memory.waiting:
                memory.ingest()
            memory.recentre()
            self._new = 0
            after = self._rival.arrival if self._rival else -1
            self._attempt(memory.window(self._holdout, after, self._min_snapshots // 2))
        elif memory.waiting >= BLOCK:
            memory.ingest()
        elif self._rounds is not None and training:
            self._train(memory, self._rounds)
        return due or training or len(fresh) > 0

    def _check(self, memory: Memory, watch: Watch, fresh: View) -> None:
        """Holds new direct states against the serving model: has the regime changed, what are its errors?"""
        latents, outside = watch.served.reduction.encode_rows(memory.rows, fresh.rows, memory.origin)
        if watch.add(fresh, latents, outside, memory.controls(fresh.rows)):
            if watch.explained(memory.window(self._holdout)):
                watch.at_ease()
                self._new = memory.counts.held  # a new attempt is due: it takes in what was new
                return
            memory.clear()
            self._watch, self._rounds, self._backtests, self._new = None, None, {}, 0
        elif len(watch) >= self._judged + self._refit_every:
            self._judged = len(watch)
            records = backtests(watch.errors(), watch.served.table)
            known = {h for h, old in self._backtests.items() if len(old) >= ENOUGH_STARTS}
            self._backtests |= {h: new for h, new in records.items() if len(new) >= ENOUGH_STARTS or h not in known}

    def _attempt(self, window: Window) -> None:
        """Searches for a better affine map, and starts a round of network training."""
        least = self._min_snapshots // 2
        found = search(window, self._rank, least, polynomials="polynomial" in self._models)
        if found is None:
            return
        promoted = None
        contender = Contender(found.model, found.course, found.coordinates.scales, window.seen)
        if self._contest.won(window, contender, self._rival):
            promoted = finish(window, found)
            self._promote(window, promoted, earlier_origins(window, found, least), int(window.arrivals[-1]))
            if isinstance(found.coordinates, Reduction) and self._served is not None:
                # Networks are not refitted to the hold-out: they compete with the map as it was before its refit.
                self._rival = Rival(found.model, found.coordinates, window.seen, self._served)
        if "network" in self._models:
            self._rebase(window, found, promoted)

    def _rebase(self, window: Window, found: Candidate, promoted: Fitted | None) -> None:
        """Gives the networks a map to correct: a new one where the latent space is new or was made of few states."""
        outgrown = self._rounds is None or len(window) > _OUTGROWN * self._based_on
        base: tuple[Affine, Reduction] | None = None
        if isinstance(found.coordinates, Reduction):
            runs = clipped(window.runs, found.train.start, found.train.stop)
            base = (_affine(found.model, found.course, runs), found.coordinates) if outgrown else None
        elif promoted is not None:
            runs = clipped(window.runs, promoted.start, len(window))
            base = (_affine(promoted.model, promoted.course, runs), promoted.reduction)
        if base is not None:
            members, width, updates = self._network_settings
            self._rounds = Rounds(*base, members=members, hidden=width, updates=updates, seed=self._seed)
            self._based_on = len(window)
        if self._rounds is not None and not self._rounds.active:
            self._rounds.begin(window)

    def _train(self, memory: Memory, rounds: Rounds) -> None:
        rounds.advance()
        self._loss = rounds.loss
        if not rounds.finished:
            return
        window = memory.window(self._holdout)
        trained = rounds.end(window)
        contender = Contender(trained.model, trained.course, trained.reduction.scales, trained.arrival)
        if self._contest.won(window, contender, self._rival):
            errors = horizon_errors(trained.model, trained.course, window.held_out(after=trained.arrival))
            self._promote(window, trained, errors, trained.arrival)
        if rounds.worthwhile:
            rounds.begin(window)

    def _promote(self, window: Window, fitted: Fitted, errors: Mapping[int, Errors], arrival: int) -> None:
        used = slice(fitted.start, int(np.searchsorted(window.arrivals, arrival, side="right")))
        table = ErrorTable.of(errors)
        served = Served(
            version=self._version + 1,
            trained_on=used.stop - used.start,
            last_step=int(window.steps[used].max()),
            reduction=fitted.reduction,
            dynamics=fitted.model,
            readout=read_out(window, fitted.course, fitted.start),
            table=table,
            cloud=cloud_of(fitted.course, used),
            lowest=window.controls[used].min(axis=0),
            highest=window.controls[used].max(axis=0),
        )
        # Through its own state: what serves here and what serves elsewhere are bitwise the same.
        self._serve(Served.of(served.state(), self._layout), arrival)
        self._backtests = backtests(errors, table)


def _affine(model: Affine | Polynomial | Ensemble, course: Course, runs: Runs) -> Affine:
    """An affine map of some runs, for networks to correct: the model itself where it is one."""
    return model if isinstance(model, Affine) else affine.fit(course.latents, course.controls, runs)
