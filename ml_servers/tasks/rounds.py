"""Rounds of network training: train on older states, judge on newer ones, go on while it helps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ml_servers.models.affine import Affine, transitions
from ml_servers.models.networks import Ensemble, Training, untrained
from ml_servers.models.pod import Reduction
from ml_servers.tasks.backtest import Scores, horizon_errors
from ml_servers.tasks.search import Fitted
from ml_servers.tasks.trajectory import clipped
from ml_servers.tasks.window import Window

_CHUNK = 20
_PATIENCE = 3
_PROGRESS = float(np.log(1.05))


@dataclass(frozen=True, slots=True)
class Trained(Fitted):
    """A network candidate at the end of a round.

    Attributes:
        arrival: Arrival number of the last state trained on.
    """

    arrival: int


class Rounds:
    """Trains networks on top of one affine map in one latent space, a few updates at a time.

    Each round trains on the states before the split of the window that it was given, and starts from the weights of the
    last round. As splits only move forward, what is behind one has never been trained on.
    """

    def __init__(
        self, base: Affine, reduction: Reduction, *, members: int, hidden: int, updates: int, seed: int
    ) -> None:
        """Args: base, reduction: What the networks correct. members, hidden: Their number and width. updates: In a
        round. seed: Of weights and batches.
        """
        self.reduction = reduction
        self._base, self._members, self._hidden, self._updates, self._seed = base, members, hidden, updates, seed
        self._ensemble: Ensemble | None = None
        self._training: Training | None = None
        self._arrival = -1
        self._count = self._in_vain = 0
        self.loss = float("nan")

    @property
    def active(self) -> bool:
        """Whether a round is under way."""
        return self._training is not None

    @property
    def worthwhile(self) -> bool:
        """Whether the last rounds improved the networks."""
        return self._in_vain < _PATIENCE

    def begin(self, window: Window) -> None:
        """Starts a round, if there is anything to train on before the split."""
        course, runs = window.course(self.reduction), clipped(window.runs, 0, window.split)
        if not len(transitions(runs)):
            return
        arrival = window.seen
        self._in_vain = 0 if arrival > self._arrival else self._in_vain
        self._count += 1
        if self._ensemble is None:
            self._ensemble = untrained(
                self._base, course.latents, course.controls, runs, self._members, self._hidden, self._seed
            )
        self._training = Training(
            self._ensemble, course.latents, course.controls, runs, updates=self._updates, seed=self._seed + self._count
        )
        self._arrival = max(self._arrival, arrival)

    def advance(self) -> None:
        """Some updates."""
        if self._training is not None:
            self.loss = self._training.run(_CHUNK)

    @property
    def finished(self) -> bool:
        """Whether the round is over."""
        return self._training is not None and self._training.finished

    def end(self, window: Window) -> Trained:
        """Ends the round: the candidate, with the present window in its coordinates."""
        assert self._training is not None and self._ensemble is not None
        before, self._ensemble, self._training = self._ensemble, self._training.ensemble(), None
        course, runs = window.course(self.reduction), window.held_out(after=self._arrival)
        old, new = (Scores.of(horizon_errors(e, course, runs)) for e in (before, self._ensemble))
        self._in_vain = 0 if new.gain_over(old) > _PROGRESS else self._in_vain + 1
        return Trained(self.reduction, self._ensemble, course, 0, self._arrival)
