"""The search for the best affine model of a window: a ladder of windows, ranks and estimators, judged by back-tests."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ml_servers.models import affine, readout
from ml_servers.models.affine import Affine
from ml_servers.models.networks import Ensemble
from ml_servers.models.pod import Decomposition, Floats32, Gram, Reduction, build, decompose, whole
from ml_servers.tasks.backtest import ENOUGH_STARTS, Dynamics, Errors, gain, horizon_errors, log_score
from ml_servers.tasks.served import Cloud
from ml_servers.tasks.trajectory import Course, Layout, clipped

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

_RANKS = (2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
_FEW = 24
"""Modes up to which every rank is tried; more only as long as fewer leave out more than `_LEFT_OUT`: they cost time."""
_LEFT_OUT = 0.01
"""Of the rms fluctuation."""
_STATES_PER_MODE = 2.5
_NEXT_WINDOW = 0.7
_REFINED_BONUS = 0.05
"""A refined map is preferred when it is worse by less than this share: hold-outs are short beside what maps are for."""
_CLOUD = 512
_EARLIER_SHARES = (0.33, 0.5, 0.65, 0.8)


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

    @property
    def seen(self) -> int:
        """Arrival number of the last state before the hold-out."""
        return int(self.arrivals[self.split - 1]) if self.split else -1

    def held_out(self, after: int = -1) -> affine.Runs:
        """Runs of the hold-out that arrived after a given arrival number."""
        first = int(np.searchsorted(self.arrivals, after, side="right"))
        return clipped(self.runs, max(self.split, first), len(self))

    def course(self, reduction: Reduction) -> Course:
        """All states in the coordinates of a reduction."""
        latents, outside = reduction.encode_rows(self.rows, self.index, self.origin)
        return Course(latents, outside, self.controls, self.runs)


def split_point(n: int, runs: affine.Runs, share: float) -> int:
    """Where a hold-out of the newest states begins: where a trajectory does, so that none is on both sides.

    Only where that would leave less than half of the other states to train on is a trajectory cut in time.

    Args:
        n: Number of states.
        runs: Stretches of consecutive states.
        share: Share of the states to hold out, at least.
    """
    split = int(n * (1 - share))
    begins = max((start for start, _ in runs if start <= split), default=0)
    return begins if begins >= split / 2 else split


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


def search(window: Window, rank: int | None, least: int) -> Candidate | None:
    """The candidate with the smallest errors on the hold-out; None when there is too little to train or to test on.

    Windows are the newest states before the hold-out: all of them, then fewer and fewer.

    Args:
        window: The states.
        rank: Modes at most; None for as many as it takes, within limits.
        least: Fewest states to train on.
    """
    best = None
    products = None if window.gram is None else window.gram.of(window.index)
    length = window.split
    while length >= least:
        train = slice(window.split - length, window.split)
        for space in _spaces(window, products, train, rank):
            for candidate in _estimates(window, train, space):
                handicap = _REFINED_BONUS * (best.refined - candidate.refined) if best else 0.0
                if candidate.scores and (best is None or gain(candidate.scores, best.scores) > handicap):
                    best = candidate
        length = int(length * _NEXT_WINDOW)
    return best


def earlier_origins(window: Window, chosen: Candidate, least: int) -> dict[int, Errors]:
    """Back-tests of a chosen candidate, those over long horizons by its like trained on earlier and less data.

    The hold-out is too short for long horizons. So the same rank, estimator and length of window
    are also trained before earlier splits, and tested on all that follows: a rolling origin (L. J. Tashman, Int. J.
    Forecast. 16, 437, 2000). At each horizon the latest origin with enough starts counts.
    """
    found = {h: e for h, e in chosen.errors.items() if len(e.observed) >= ENOUGH_STARTS}
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
            like = _estimates(earlier, train, decompose(window.layout.sizes, products, train, most))
            for candidate in [c for c in like if c.refined == chosen.refined]:
                enough = {h: e for h, e in candidate.errors.items() if len(e.observed) >= ENOUGH_STARTS}
                found = enough | found
    return found or rest


def _spaces(
    window: Window, products: Floats | None, train: slice, rank: int | None
) -> Iterator[Decomposition] | Iterator[Reduction]:
    if products is None:
        yield whole(window.layout.sizes, window.rows[window.index[train]], window.origin)
        return
    most = min(rank or _RANKS[-1], int((train.stop - train.start) / _STATES_PER_MODE))
    full = decompose(window.layout.sizes, products, train, most)
    for modes in sorted({min(r, len(full.weights)) for r in (*_RANKS, most) if r <= most}):
        space = full.truncated(modes)
        yield space
        if rank is None and modes >= _FEW and math.sqrt(space.outside[train].mean()) <= _LEFT_OUT:
            return


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
    """A model ready to serve.

    Attributes:
        reduction: Its latent space in full.
        model: The map.
        course: All states of the window in that space.
        start: The first state trained on.
    """

    reduction: Reduction
    model: Affine | Ensemble
    course: Course
    start: int


def finish(window: Window, candidate: Candidate) -> Fitted:
    """Fits a candidate again, to the hold-out too, and builds its latent space in full.

    If a window shorter than all of the states was best, the states are not from one stationary regime (a transient dies
    out), and the newest states of the same number are used; otherwise all.
    """
    length = candidate.train.stop - candidate.train.start
    start = 0 if candidate.train.start == 0 else len(window) - length
    space = _in_full(window, candidate.coordinates, slice(start, len(window)))
    course = window.course(space)
    runs = clipped(window.runs, start, len(window))
    model = affine.fit(course.latents, course.controls, runs)
    if candidate.refined:
        model = affine.refine(model, course.latents, runs)
    return Fitted(space, model, course, start)


def _in_full(window: Window, space: Decomposition | Reduction, train: slice) -> Reduction:
    if isinstance(space, Reduction) or window.gram is None:
        return whole(window.layout.sizes, window.rows[window.index[train]], window.origin)
    found = decompose(window.layout.sizes, window.gram.of(window.index), train, len(space.weights))
    return build(window.layout.sizes, window.rows, window.index[train], found, window.origin)


def read_out(window: Window, course: Course, start: int) -> readout.Readout:
    """The map from latent coordinates to the declared observables; it gives NaN where too few are known."""
    known = np.isfinite(window.observables).all(axis=1) & (np.arange(len(window)) >= start)
    if known.sum() < 4:
        return readout.Readout(1, 0, np.full((window.observables.shape[1], course.latents.shape[1] + 1), np.nan))
    held_out = int(np.count_nonzero(known[window.split :]))
    return readout.fit(course.latents[known], window.observables[known], held_out)


def cloud_of(course: Course, train: slice) -> Cloud:
    """Where the states trained on lie, and how far from them others ordinarily are.

    Args:
        course: All states of the window.
        train: Those trained on. A distance is ordinary up to the largest of the later half from the earlier half:
            twice as sparse as all, so that a trajectory that passes between trained states is not taken for strange.
    """
    middle = (train.start + train.stop) // 2
    earlier, later = course.latents[train.start : middle], course.latents[middle : train.stop]
    others = later[:: max(1, len(later) // 128)]
    distance = np.sqrt(((others[:, None] - earlier[None]) ** 2).sum(axis=2).min(axis=1))
    chosen = np.unique(np.linspace(train.start, train.stop - 1, min(_CLOUD, train.stop - train.start)).astype(int))
    outside = float(np.sqrt(np.quantile(course.outside[train], 0.95)))
    return Cloud(course.latents[chosen], float(distance.max()), outside)
