"""The latent spaces in which maps of a window are sought."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ml_servers.models.pod import Decomposition, Reduction, build, decompose, principal, whole
from ml_servers.tasks.window import Window

Floats = NDArray[np.float64]

_RANKS = (2, 4, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128)
_FEW = 24
"""Modes up to which every rank is tried; more only as long as fewer leave out more than `_LEFT_OUT`: they cost time."""
_LEFT_OUT = 0.01
"""Of the rms fluctuation."""
STATES_PER_MODE = 2.5
"""Training states to one mode, at least."""
_LEFT_OUT_OF_SMALL = (3e-2, 3e-3, 3e-4)
"""Of the rms fluctuation: so little is left out by the modes of small states that are tried."""
_ONLY_IN_FULL, _IN_FULL = 8, 64
"""States of at most so many values are tried in full only; in full too, beside modes, up to the second number."""


def spaces_of(
    window: Window, products: Floats | None, train: slice, rank: int | None
) -> Iterator[Decomposition] | Iterator[Reduction]:
    """The latent spaces to try for some training states, from few modes to many.

    Args:
        window: The states.
        products: Their inner products by field; None for small states.
        train: The states that define the spaces.
        rank: Modes at most; None for as many as it takes, within limits.
    """
    if products is None:
        yield from _small_spaces(window, train, rank)
        return
    most = _most_modes(train, rank)
    full = decompose(window.layout.sizes, products, train, most)
    for modes in sorted({min(r, len(full.weights)) for r in (*_RANKS, most) if r <= most}):
        space = full.truncated(modes)
        yield space
        if rank is None and modes >= _FEW and math.sqrt(space.outside[train].mean()) <= _LEFT_OUT:
            return


def _small_spaces(window: Window, train: slice, rank: int | None) -> Iterator[Reduction]:
    rows = window.rows[window.index[train]]
    full = whole(window.layout.sizes, rows, window.origin)
    if full.rank <= _IN_FULL:
        yield full
    if full.rank > _ONLY_IN_FULL:
        # Directions that hardly vary are fitted to nothing: a map of all values can be far worse than one of few modes.
        left_out, modes = principal(full, rows, window.origin)
        ranks = {int(np.argmax(left_out <= share)) for share in _LEFT_OUT_OF_SMALL}
        for modes_taken in sorted({min(r, _most_modes(train, rank)) for r in ranks if 0 < r < full.rank}):
            yield replace(full, modes=modes[:modes_taken])


def _most_modes(train: slice, rank: int | None) -> int:
    return max(1, min(rank or _RANKS[-1], int((train.stop - train.start) / STATES_PER_MODE)))


def in_full(window: Window, space: Decomposition | Reduction, train: slice) -> Reduction:
    """The like of a latent space for other training states, with modes of full length."""
    if isinstance(space, Reduction) or window.gram is None:
        rows = window.rows[window.index[train]]
        full = whole(window.layout.sizes, rows, window.origin)
        if isinstance(space, Decomposition) or space.modes is None:
            return full
        return replace(full, modes=principal(full, rows, window.origin)[1][: space.rank])
    found = decompose(window.layout.sizes, window.gram.of(window.index), train, len(space.weights))
    return build(window.layout.sizes, window.rows, window.index[train], found, window.origin)


def rank_of(space: Decomposition | Reduction) -> int:
    """Number of coordinates."""
    return space.rank if isinstance(space, Reduction) else len(space.weights)
