"""Who serves: a contender must beat the serving model on direct data that neither was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_servers.models.pod import Reduction
from ml_servers.tasks.backtest import Dynamics, Persistence
from ml_servers.tasks.search import scores_of
from ml_servers.tasks.served import Served
from ml_servers.tasks.trajectory import Course
from ml_servers.tasks.window import Window

Floats = NDArray[np.float64]

_WORTH_SERVING = float(np.log(2.0))
"""A first model must halve the error of the forecast that nothing changes."""
_EVIDENCE = 0.1
"""No model is replaced on evidence over less than this share of the horizons that it was back-tested for."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A model that wants to serve.

    Attributes:
        model: The map.
        course: All states of the window in its coordinates.
        scales: Of its errors, see `Decomposition`.
        arrival: Arrival number of the last state that it was trained on.
    """

    model: Dynamics
    course: Course
    scales: Floats
    arrival: int


@dataclass(frozen=True, slots=True)
class Rival:
    """The serving model as it competes: possibly as it was before its last refit, so that more data are new to it.

    Attributes:
        model: The map.
        space: Its coordinates.
        arrival: Arrival number of the last state that it was trained on.
        served: The model that serves.
    """

    model: Dynamics
    space: Reduction
    arrival: int
    served: Served


@dataclass(frozen=True, slots=True)
class Contest:
    """The rules.

    Attributes:
        margin: Share by which a contender's errors must be smaller.
        serve_below: Relative error of one step above which no model serves.
        enough: States that neither was trained on, at least.
    """

    margin: float
    serve_below: float
    enough: int

    def won(self, window: Window, contender: Contender, rival: Rival | None) -> bool:
        """Whether the contender is to serve.

        Without a rival it must halve the errors of persistence. A contender that is as good as the rival also wins
        where controls have left the range that the rival was trained in.
        """
        runs = window.held_out(after=max(contender.arrival, rival.arrival if rival else -1))
        if sum(stop - start for start, stop in runs) < self.enough:
            return False
        errors, mine = scores_of(contender.model, contender.course, runs, contender.scales)
        if not errors or np.sqrt(np.mean(errors[min(errors)].observed ** 2)) > self.serve_below:
            return False
        if rival is None:
            nothing_changes = scores_of(Persistence(), contender.course, runs, contender.scales)[1]
            return mine.gain_over(nothing_changes) > _WORTH_SERVING
        if max(errors) < _EVIDENCE * rival.served.table.horizons[-1]:
            return False
        theirs = scores_of(rival.model, window.course(rival.space), runs, rival.space.scales)[1]
        needed = -float(np.log(1 - self.margin))
        if not all(rival.served.covers(window.controls[i]) for start, stop in runs for i in range(start, stop)):
            needed = -needed
        return mine.gain_over(theirs) > needed
