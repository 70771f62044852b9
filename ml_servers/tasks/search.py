"""The search for the best map of a window: a ladder of windows, ranks and estimators, judged by back-tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ml_servers.models import affine, readout
from ml_servers.models.affine import Affine
from ml_servers.models.networks import Ensemble
from ml_servers.models.pod import Decomposition, Reduction, decompose
from ml_servers.models.polynomial import Polynomial
from ml_servers.tasks.backtest import ENOUGH_STARTS, LADDER, Dynamics, Errors, Scores, horizon_errors
from ml_servers.tasks.estimators import AFFINE, POLYNOMIAL, Estimator
from ml_servers.tasks.served import Cloud
from ml_servers.tasks.spaces import STATES_PER_MODE, in_full, rank_of, spaces_of
from ml_servers.tasks.trajectory import Course, clipped
from ml_servers.tasks.window import Window, split_point

Floats = NDArray[np.float64]

_NEXT_WINDOW, _PATIENCE = 0.7, 3
"""Each window beside the one before, and shorter ones in a row without success after which the search ends."""
_REFINED_BONUS = 0.05
"""A refined map is preferred when it is worse by less than this share: hold-outs are short beside what maps are for."""
_AFFINE_BONUS = 0.2
"""An affine map is preferred to a polynomial when it is worse by less than this share: it can be refined, and far from
the states it was fitted to it does less harm."""
_NONLINEAR_RANKS = (4, 8, 16)
"""Modes of large states that polynomials are tried with, beside those of the best affine map."""
_SHORT_LADDER = tuple(h for h in LADDER if h <= 100)
"""Horizons that candidates are compared over; the winner is tested over all."""
_CLOUD = 512
_EARLIER_SHARES = (0.33, 0.5, 0.65, 0.8)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model trained on a part of the window before the split, and how it did after the split.

    Attributes:
        train: The states it was trained on.
        estimator: How it was fitted.
        coordinates: The latent space, in terms of stored states (large states) or in full (small ones).
        course: All states of the window in that space.
        model: The map.
        errors: Back-tests on the hold-out.
        scores: What they are worth beside those of others.
    """

    train: slice
    estimator: Estimator
    coordinates: Decomposition | Reduction
    course: Course
    model: Affine | Polynomial
    errors: Mapping[int, Errors]
    scores: Scores


def unit(scales: Floats) -> float:
    """Logarithm of what one unit of relative error is worth: errors of models with different scales can be compared."""
    return float(np.log(scales).mean())


def scores_of(
    dynamics: Dynamics, course: Course, runs: affine.Runs, scales: Floats, ladder: Sequence[int] = LADDER
) -> tuple[dict[int, Errors], Scores]:
    """Back-tests of a model, and what they are worth beside those of others."""
    errors = horizon_errors(dynamics, course, runs, ladder)
    return errors, Scores.of(errors, unit(scales))


def search(window: Window, rank: int | None, least: int, *, polynomials: bool) -> Candidate | None:
    """The candidate with the smallest errors on the hold-out; None when there is too little to train or to test on.

    Windows are the newest states before the hold-out: all of them, then fewer and fewer as long as that helps.

    Args:
        window: The states.
        rank: Modes at most; None for as many as it takes, within limits.
        least: Fewest states to train on.
        polynomials: Whether to try them too, in the windows and spaces that suit affine maps.
    """
    products = None if window.gram is None else window.gram.of(window.index)
    best = _best_affine(window, products, rank, least)
    if best is None:
        return None
    if polynomials:
        best = _best_polynomial(window, products, rank, best)
    errors, scores = scores_of(best.model, best.course, window.held_out(), best.coordinates.scales)
    return replace(best, errors=errors, scores=scores)


def _best_affine(window: Window, products: Floats | None, rank: int | None, least: int) -> Candidate | None:
    best, in_vain = None, 0
    length = window.split
    while length >= least and in_vain < _PATIENCE:
        in_vain += 1
        train = slice(window.split - length, window.split)
        for space in spaces_of(window, products, train, rank):
            for candidate in _estimates(window, train, space, AFFINE, _SHORT_LADDER):
                handicap = _REFINED_BONUS * (best.estimator.refined - candidate.estimator.refined) if best else 0.0
                if candidate.errors and (best is None or candidate.scores.gain_over(best.scores) > handicap):
                    best, in_vain = candidate, 0
        length = int(length * _NEXT_WINDOW)
    return best


def _best_polynomial(window: Window, products: Floats | None, rank: int | None, best: Candidate) -> Candidate:
    """The best of the candidates of higher degree and the best affine one."""
    modes = {rank_of(best.coordinates), *_NONLINEAR_RANKS}
    for train in sorted({(0, window.split), (best.train.start, best.train.stop)}):
        for space in spaces_of(window, products, slice(*train), rank):
            if isinstance(space, Reduction) or rank_of(space) in modes:
                found = _estimates(window, slice(*train), space, POLYNOMIAL, _SHORT_LADDER)
                best = _better(best, found)
    if best.estimator.degree > 1:
        others = best.estimator.other_ridges()
        best = _better(best, _estimates(window, best.train, best.coordinates, tuple(others), _SHORT_LADDER))
    return best


def _better(best: Candidate, others: Iterator[Candidate]) -> Candidate:
    for other in others:
        handicap = _AFFINE_BONUS if best.estimator.degree == 1 else 0.0
        if other.errors and other.scores.gain_over(best.scores) > handicap:
            best = other
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
            most = min(len(chosen.coordinates.weights), int(length / STATES_PER_MODE))
            space = decompose(window.layout.sizes, products, train, most)
            for candidate in _estimates(earlier, train, space, (chosen.estimator,)):
                enough = {h: e for h, e in candidate.errors.items() if len(e.observed) >= ENOUGH_STARTS}
                found = enough | found
    return found or rest


def _estimates(
    window: Window,
    train: slice,
    space: Decomposition | Reduction,
    estimators: Sequence[Estimator],
    ladder: Sequence[int] = LADDER,
) -> Iterator[Candidate]:
    course = (
        window.course(space)
        if isinstance(space, Reduction)
        else Course(space.latents, space.outside, window.controls, window.runs)
    )
    runs = clipped(window.runs, train.start, train.stop)
    for estimator in estimators:
        model = estimator.fit(course, runs)
        if model is not None:
            errors, scores = scores_of(model, course, window.held_out(), space.scales, ladder)
            yield Candidate(train, estimator, space, course, model, errors, scores)


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
    model: Affine | Polynomial | Ensemble
    course: Course
    start: int


def finish(window: Window, candidate: Candidate) -> Fitted:
    """Fits a candidate again, to the hold-out too, and builds its latent space in full.

    If a window shorter than all of the states was best, the states are not from one stationary regime (a transient dies
    out), and the newest states of the same number are used; otherwise all.
    """
    length = candidate.train.stop - candidate.train.start
    start = 0 if candidate.train.start == 0 else len(window) - length
    space = in_full(window, candidate.coordinates, slice(start, len(window)))
    course = window.course(space)
    runs = clipped(window.runs, start, len(window))
    # The eigenvalues of the map of all states may leave nothing to refine: then the plain one is meant.
    model = candidate.estimator.fit(course, runs) or affine.fit(course.latents, course.controls, runs)
    return Fitted(space, model, course, start)


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
