"""The search for the best affine model of a window: a ladder of windows, ranks and estimators, judged by back-tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ml_servers.models import affine, readout
from ml_servers.models.affine import Affine
from ml_servers.models.pod import Decomposition, Floats32, Gram, Reduction, build, decompose, whole
from ml_servers.tasks.backtest import Dynamics, Errors, gain, horizon_errors, log_score
from ml_servers.tasks.served import Cloud
from ml_servers.tasks.trajectory import Course, Layout, clipped

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_RANKS = (2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
_STATES_PER_MODE = 2.5
_NEXT_WINDOW = 0.7
_CLOUD = 512
_TRAJECTORIES = 8
_ENOUGH_STARTS = 8
_EARLIER_SHARES = (0.5, 0.65, 0.8)


@dataclass(frozen=True, slots=True)
class Window:
    """Stored states in the order they came, and where the hold-out begins.

    Attributes:
        layout: Where the fields lie in a row.
        rows: All row memory, shape (capacity, width), relative to `origin`.
        index: Row numbers of the states, shape (n,).
        arrivals: How many samples had been offered before each, shape (n,).
        steps: Their coupling steps, shape (n,).
        origin: Shape (width,).
        controls: Shape (n, m).
        observables: Shape (n, o).
        runs: Stretches of consecutive states.
        split: States from here on are held out.
        gram: Inner products of the rows; None for small states.
    """

    layout: Layout
    rows: Floats32
    index: Indices
    arrivals: Indices
    steps: Indices
    origin: Floats
    controls: Floats
    observables: Floats
    runs: affine.Runs
    split: int
    gram: Gram | None

    def __len__(self) -> int:
        return len(self.index)

    def held_out(self, after: int = -1) -> affine.Runs:
        """Runs of the hold-out that arrived after a given arrival number."""
        first = int(np.searchsorted(self.arrivals, after, side="right"))
        return clipped(self.runs, max(self.split, first), len(self))

    def course(self, reduction: Reduction) -> Course:
        """All states in the coordinates of a reduction."""
        latents, outside = reduction.encode_rows(self.rows, self.index, self.origin)
        return Course(latents, outside, self.controls, self.runs)


def split_point(n: int, runs: affine.Runs, share: float) -> int:
    """Where a hold-out of the newest states begins.

    Few trajectories: at a point in time. Many: where one begins, so that none is on both sides.

    Args:
        n: Number of states.
        runs: Stretches of consecutive states.
        share: Share of the states to hold out, at least.
    """
    split = int(n * (1 - share))
    if len(runs) < _TRAJECTORIES:
        return split
    return max(start for start, _ in runs if start <= split)


@dataclass(frozen=True, slots=True)
class Candidate:
    """An affine model trained on a part of the window before the split, and how it did after the split.

    Attributes:
        train: The states it was trained on.
        refined: Whether its eigenvalues were fitted to whole runs.
        coordinates: The latent space, in terms of stored states (large states) or in full (small ones).
        course: All states of the window in that space.
        model: The map.
        errors: Back-tests on the hold-out.
        scores: Logarithms of its rms errors in a unit common to all models.
    """

    train: slice
    refined: bool
    coordinates: Decomposition | Reduction
    course: Course
    model: Affine
    errors: Mapping[int, Errors]
    scores: Mapping[int, float]


def unit(scales: Floats) -> float:
    """Logarithm of what one unit of relative error is worth: errors of models with different scales can be compared."""
    return float(np.log(scales).mean())


def scores_of(
    dynamics: Dynamics, course: Course, runs: affine.Runs, scales: Floats
) -> tuple[dict[int, Errors], dict[int, float]]:
    """Back-tests of a model and their scores in the common unit."""
    errors = horizon_errors(dynamics, course, runs)
    return errors, {h: score + unit(scales) for h, score in log_score(errors).items()}


def search(window: Window, rank: int, least: int) -> Candidate | None:
    """The candidate with the smallest errors on the hold-out; None when there is too little to train or to test on.

    Windows are the newest states before the hold-out: all of them, then fewer and fewer.

    Args:
        window: The states.
        rank: Modes at most.
        least: Fewest states to train on.
    """
    best = None
    products = None if window.gram is None else window.gram.of(window.index)
    length = window.split
    while length >= least:
        train = slice(window.split - length, window.split)
        for space in _spaces(window, products, train, rank):
            for candidate in _estimates(window, train, space):
                if candidate.scores and (best is None or gain(candidate.scores, best.scores) > 0):
                    best = candidate
        length = int(length * _NEXT_WINDOW)
    return best


def earlier_origins(window: Window, chosen: Candidate, least: int) -> dict[int, Errors]:
    """Back-tests of a chosen candidate, those over long horizons by its like trained on earlier and less data.

    A hold-out of a third of the window is too short for long horizons. So the same rank, estimator and length of window
    are also trained before earlier splits, and tested on all that follows: a rolling origin (L. J. Tashman, Int. J.
    Forecast. 16, 437, 2000). At each horizon the latest origin with enough starts counts.
    """
    found = {h: e for h, e in chosen.errors.items() if len(e.observed) >= _ENOUGH_STARTS}
    rest = dict(chosen.errors)
    if window.gram is not None and isinstance(chosen.coordinates, Decomposition):
        products = window.gram.of(window.index)
        for share in _EARLIER_SHARES:
            earlier = replace(window, split=split_point(len(window), window.runs, share))
            length = min(earlier.split, chosen.train.stop - chosen.train.start)
            if length < least or earlier.split >= window.split:
                continue
            train = slice(earlier.split - length, earlier.split)
            most = min(len(chosen.coordinates.weights), int(length / _STATES_PER_MODE))
            like = _estimates(earlier, train, decompose(products, train, most))
            for candidate in [c for c in like if c.refined == chosen.refined]:
                enough = {h: e for h, e in candidate.errors.items() if len(e.observed) >= _ENOUGH_STARTS}
                found = enough | found
    return found or rest


def _spaces(
    window: Window, products: Floats | None, train: slice, rank: int
) -> Iterator[Decomposition] | Iterator[Reduction]:
    if products is None:
        yield whole(window.layout.sizes, window.rows[window.index[train]], window.origin)
        return
    most = min(rank, int((train.stop - train.start) / _STATES_PER_MODE))
    full = decompose(products, train, most)
    for modes in sorted({min(r, len(full.weights)) for r in (*_RANKS, most) if r <= most}):
        yield full.truncated(modes)


def _estimates(window: Window, train: slice, space: Decomposition | Reduction) -> Iterator[Candidate]:
    course = (
        window.course(space)
        if isinstance(space, Reduction)
        else Course(space.latents, space.outside, window.controls, window.runs)
    )
    runs = clipped(window.runs, train.start, train.stop)
    if len(affine.transitions(runs)) < course.latents.shape[1] + 1:
        return
    plain = affine.fit(course.latents, course.controls, runs)
    refined = affine.refine(plain, course.latents, runs)
    for model in (plain,) if refined is plain else (plain, refined):
        errors, scores = scores_of(model, course, window.held_out(), space.scales)
        yield Candidate(train, model is not plain, space, course, model, errors, scores)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A candidate after its last refit, hold-out included: ready to serve.

    Attributes:
        reduction: Its latent space in full.
        model: The map.
        course: All states of the window in that space.
        start: The first state trained on.
    """

    reduction: Reduction
    model: Affine
    course: Course
    start: int


def finish(window: Window, candidate: Candidate) -> Fitted:
    """Builds the latent space of a candidate in full and fits the map again, to the hold-out too.

    If a window shorter than all of the states was best, the states are not from one stationary regime (a transient dies
    out), and the newest states of the same number are used; otherwise all.
    """
    space = candidate.coordinates
    length = candidate.train.stop - candidate.train.start
    start = 0 if candidate.train.start == 0 else len(window) - length
    if isinstance(space, Decomposition):
        space = build(window.layout.sizes, window.rows, window.index[candidate.train], space, window.origin)
    course = window.course(space)
    runs = clipped(window.runs, start, len(window))
    model = affine.fit(course.latents, course.controls, runs)
    if candidate.refined:
        model = affine.refine(model, course.latents, runs)
    return Fitted(space, model, course, start)


def read_out(window: Window, course: Course, start: int) -> readout.Readout | None:
    """The map from latent coordinates to the declared observables; None when there are none."""
    known = np.isfinite(window.observables).all(axis=1) & (np.arange(len(window)) >= start)
    if not window.observables.shape[1] or known.sum() < 4:
        return None
    held_out = int(np.count_nonzero(known[window.split :]))
    return readout.fit(course.latents[known], window.observables[known], held_out)


def cloud_of(course: Course, train: slice, outside: Floats) -> Cloud:
    """Where the states trained on lie, and how far from them others ordinarily are.

    Args:
        course: All states of the window.
        train: Those trained on. The distances of the later half to the earlier half are the ordinary ones.
        outside: Squared norms that the latent space leaves out of states not trained on.
    """
    middle = (train.start + train.stop) // 2
    earlier, later = course.latents[train.start : middle], course.latents[middle : train.stop]
    others = later[:: max(1, len(later) // 128)]
    distance = np.sqrt(((others[:, None] - earlier[None]) ** 2).sum(axis=2).min(axis=1))
    chosen = np.unique(np.linspace(train.start, train.stop - 1, min(_CLOUD, train.stop - train.start)).astype(int))
    spacing = float(np.quantile(distance, 0.95))
    return Cloud(course.latents[chosen], spacing, float(np.sqrt(np.quantile(outside, 0.95))))
