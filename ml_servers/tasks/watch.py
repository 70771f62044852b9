"""The serving model watched: every new direct state is a check of it."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from coupler.change import PageHinkley
from ml_servers.buffer import View
from ml_servers.models.affine import transitions
from ml_servers.models.polynomial import Polynomial
from ml_servers.tasks.backtest import Errors, horizon_errors
from ml_servers.tasks.estimators import RIDGES, Estimator
from ml_servers.tasks.served import Served
from ml_servers.tasks.trajectory import Course, runs_of
from ml_servers.tasks.window import Window

Floats = NDArray[np.float64]

_REMEMBERED = 16384
_FLOOR = 0.005
"""One-step errors below this share of the fluctuation are never a change of dynamics."""
_FAMILIAR = 20
_NEWEST = 16
_EXPLAINED = 4.0
"""Times the ordinary one-step error: so far off may the newest states be from a map of all states."""


class Watch:
    """Latent coordinates of direct states that came after the serving model was trained.

    They are small, so many thousands are kept, and back-tests reach much further than the window of full states.
    """

    def __init__(self, served: Served, *, large: bool) -> None:
        """Args: served: The model to watch. large: Whether its coordinates are made of stored states."""
        self.served, self._large = served, large
        self._record: deque[tuple[int, int, Floats, float, Floats]] = deque(maxlen=_REMEMBERED)
        self._ordinary = max(served.table.at(1), _FLOOR)
        # The test starts as if it had seen ordinary errors: a model that is wrong from its first step on is found too.
        self.at_ease()

    def __len__(self) -> int:
        return len(self._record)

    def add(self, view: View, latents: Floats, outside: Floats, controls: Floats) -> bool:
        """Takes in new direct states. True when the one-step error has risen for good: the dynamics have changed.

        Args:
            view: Their steps and segments.
            latents: Their coordinates, shape (n, r).
            outside: Squared norms outside the latent space, shape (n,).
            controls: Shape (n, m).
        """
        changed = False
        for i, (step, segment) in enumerate(zip(view.steps.tolist(), view.segments.tolist(), strict=True)):
            if self._record and self._record[-1][:2] == (step - 1, segment):
                previous = self._record[-1]
                (predicted, _) = next(iter(self.served.dynamics.course(previous[2][None], previous[4][None], 1)))
                error = float(np.sqrt(((predicted[0] - latents[i]) ** 2).sum() + outside[i]))
                if self._familiar(previous[2], previous[4]):
                    # In octaves above the ordinary: a tenfold error for four steps alarms, a doubled one never does.
                    changed |= self._test.update(float(np.log2(max(error, _FLOOR) / self._ordinary)))
            self._record.append((step, segment, latents[i], float(outside[i]), controls[i]))
        return changed

    def explained(self, window: Window) -> bool:
        """Whether after an alarm one map still fits all states, the newest included.

        A change of dynamics cannot be fitted by a map of both. A part of the attractor that was not visited before can:
        there the serving model was only wrong because it had never been there. Asked of small states only; the
        coordinates of large ones are made of the states of one regime.
        """
        if self._large:
            return False
        course = window.course(self.served.reduction)
        dynamics = self.served.dynamics
        degree = dynamics.degree if isinstance(dynamics, Polynomial) else 3
        model = Estimator(degree, ridge=RIDGES[0]).fit(course, window.runs)
        ends = transitions(window.runs)[-_NEWEST:] + 1
        if model is None or not len(ends):
            return False
        predicted = model.step(course.latents[ends - 1], course.controls[ends - 1])
        squares = ((predicted - course.latents[ends]) ** 2).sum(axis=1) + course.outside[ends]
        return float(np.sqrt(squares.mean())) <= _EXPLAINED * self._ordinary

    def at_ease(self) -> None:
        """The alarm was none: the test begins again."""
        self._test = PageHinkley(count=_FAMILIAR)

    def _familiar(self, latent: Floats, controls: Floats) -> bool:
        """Whether an error at this state would speak of a change of dynamics.

        For states in modes it always does: those are made of the states of one regime. In a small system it does if a
        nonlinear model errs among the states it was trained on; elsewhere a state may just be new, and an affine map of
        a nonlinear system is only right near the trajectory that it was trained on.
        """
        served = self.served
        if served.reduction.modes is not None:
            return True
        if served.kind == "affine":
            return False
        return not served.covers(controls) or served.cloud.excess(latent) <= served.cloud.spacing

    def drop(self, step: int) -> None:
        """Forgets states from a step on: their branch was left."""
        self._record = deque((r for r in self._record if r[0] < step), maxlen=_REMEMBERED)

    def errors(self) -> dict[int, Errors]:
        """Back-tests over all of it."""
        if not self._record:
            return {}
        steps, segments, latents, outside, controls = zip(*self._record, strict=True)
        runs = runs_of(np.array(steps), np.array(segments))
        course = Course(np.stack(latents), np.array(outside), np.stack(controls), runs)
        return horizon_errors(self.served.dynamics, course, runs, starts=256)
