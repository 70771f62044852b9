"""The Arbiter of one Task that owns the state: its forecasts, their errors, its Calibration and its SwitchState.

Pure: it is handed Snapshots and returns what to do; it keeps no clock, file or socket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from coupler.calibration import Calibration
from coupler.contracts import Backtest, Forecast, Task
from coupler.norms import relative_error
from coupler.switch import Evidence, Switch, SwitchState
from schemas.fields import Array, Block, FieldSpec, Snapshot
from schemas.messages import Action, Phase

TRIAL_HORIZON = 5
"""Steps of the live forecasts that a model on trial is judged by."""
KEPT_STATES = 3
"""Learned states kept until the host names the one that it adopted."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What limits a decision from outside.

    Attributes:
        room: Steps to the next step that the host must hit.
        leeway: Steps to the next known change of a control, or to the end of the run.
        refused: Whether the host did not carry out the decision before.
    """

    room: int
    leeway: int
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision about the state.

    Attributes:
        action: What to do.
        state: State of the Switch after it.
        forecast: The forecast to adopt when LEARNED.
        bound: Its calibrated error bound.
        step_error: Error of the audit that was closed, NaN when none was.
        residual: Residual of the state asked about.
    """

    action: Action
    state: SwitchState
    forecast: Forecast | None
    bound: float
    step_error: float
    residual: float


@dataclass(slots=True)
class _Live:
    step: int
    bound: float
    forecast: Forecast


@dataclass(slots=True)
class Arbiter:
    """Decides between the solver and one Task. See `coupler.switch` for the rules.

    Attributes:
        task: The serving Task.
        fields: Declared fields.
        switch: Settings.
        max_horizon: Longest horizon to use.
        act: False for a rehearsal (`shadow`, `advise`): everything is forecast and scored, nothing is adopted.
        calibration: What is known about the horizon error.
        state: State of the Switch.
        step_errors: Error found by each audit.
        live_errors: Error found by each live forecast.
    """

    task: Task
    fields: Sequence[FieldSpec]
    switch: Switch
    max_horizon: int
    act: bool
    calibration: Calibration
    state: SwitchState = field(default_factory=SwitchState)
    step_errors: list[float] = field(default_factory=list)
    live_errors: list[float] = field(default_factory=list)
    _live: _Live | None = None
    _standing: Snapshot | None = None
    _learned: dict[int, Snapshot] = field(default_factory=dict)
    _residual: float = 0.0
    _in_range: bool = True
    _version: int = 0

    def __post_init__(self) -> None:
        """Starts the Switch."""
        self.state = self.switch.init()

    def trained(self, version: int, backtests: Sequence[Backtest]) -> None:
        """A new model serves: its back-tests replace the old ones, forecasts of the old one are not judged any more."""
        self._version = version
        self.calibration = self.calibration.learned(backtests)
        self._live = None
        self._residual, self._in_range = 0.0, True

    def calibrated(self, backtests: Sequence[Backtest]) -> None:
        """New back-tests of the serving model."""
        self.calibration = self.calibration.learned(backtests)

    def restarted(self) -> None:
        """The host said HELLO again or rewound: nothing that it was told before is in force."""
        self._live, self._standing = None, None
        self._learned.clear()

    def direct(self, snapshot: Snapshot, around: Surroundings, pure: bool = True) -> Verdict:
        """Decides at a state that the host integrated itself.

        Args:
            snapshot: The global state.
            around: What limits the decision.
            pure: False when the state is blended: it proves nothing about the model.
        """
        error, audited = self._error_at(snapshot) if pure else (math.nan, False)
        if audited and self.state.phase == "learned":
            # The host was told to stay learned but integrated: the step after a learned state is an audit all the same.
            self.state = _phase(self.state, "audit")
        evidence = self._evidence(snapshot, around, direct=pure, error=error)
        forecast = self._look_ahead(snapshot, evidence)
        return self._decide(evidence, forecast, snapshot, error if audited else math.nan)

    def standing(self, decision: int, controls: Mapping[str, Block], around: Surroundings) -> Verdict | None:
        """Decides at a learned state that the host adopted; None when that state is not known (any more).

        Args:
            decision: Number of the decision that it adopted.
            controls: Present controls.
            around: What limits the decision.
        """
        learned = self._learned.get(decision)
        if learned is None:
            return None
        snapshot = replace(learned, blocks={**learned.blocks, **controls})
        self._standing, self._live = snapshot, None
        self._learned = {decision: learned}
        evidence = self._evidence(snapshot, around, direct=False, error=math.nan)
        reach = self.switch.reach(self.state, evidence)
        forecast = self._forecast(snapshot, reach) if reach else None
        return self._decide(evidence, forecast, snapshot, math.nan)

    def adopted(self, decision: int, snapshot: Snapshot) -> None:
        """Keeps the state sent with a decision, so that the host need only name it."""
        self._learned[decision] = snapshot
        while len(self._learned) > KEPT_STATES:
            del self._learned[min(self._learned)]

    # ------------------------------------------------------------------------------------------------------------

    def _error_at(self, snapshot: Snapshot) -> tuple[float, bool]:
        """Error of the forecast that this direct state is the truth of, and whether it closes an audit."""
        truth = {name: block.array for name, block in snapshot.blocks.items()}
        if self._standing is not None:
            standing, self._standing = self._standing, None
            ahead = snapshot.step - standing.step
            if ahead < 1:
                return math.nan, False
            found = self.task.forecast(standing, ahead)
            error = self._distance(found, truth)
            self.step_errors.append(error)
            return error, True
        live = self._live
        if live is None or snapshot.step < live.step:
            return math.nan, False
        self._live = None
        if snapshot.step != live.step:
            return math.nan, False
        error = self._distance(live.forecast, truth)
        self.calibration = self.calibration.observed(live.bound, error)
        self.live_errors.append(error)
        return error, False

    def _distance(self, forecast: Forecast, truth: Mapping[str, Array]) -> float:
        if not forecast.arrays:
            return math.inf
        return relative_error(self.fields, forecast.arrays, truth, forecast.scales)

    def _evidence(self, snapshot: Snapshot, around: Surroundings, *, direct: bool, error: float) -> Evidence:
        horizon = self.calibration.horizon(self.switch.tolerance, self.max_horizon)
        return Evidence(
            step=snapshot.step,
            direct=direct,
            version=self._version,
            horizon=horizon,
            room=around.room,
            leeway=around.leeway,
            error=error,
            residual=self._residual,
            in_range=self._in_range,
            refused=around.refused,
        )

    def _look_ahead(self, snapshot: Snapshot, evidence: Evidence) -> Forecast | None:
        """The one forecast that the decision at a direct state may need, or None when it needs none."""
        if self._version == 0 or evidence.horizon < self.switch.min_horizon:
            return None
        if self._live is not None:  # a live forecast is still open: nothing new to learn from another one
            return None
        good = not evidence.error > self.switch.tolerance
        confirmed = self.state.phase == "trial" and self.state.good + 1 >= self.switch.confirm
        takes_over = self.state.phase in ("learned", "audit") or (confirmed and not math.isnan(evidence.error))
        ahead = self.switch.reach(self.state, evidence) if takes_over and good and self.act else 0
        # A live forecast that straddled a change of a control would blame the model for it.
        ahead = ahead or min(TRIAL_HORIZON, evidence.horizon, evidence.leeway)
        return self._forecast(snapshot, ahead) if ahead >= 1 else None

    def _forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        forecast = self.task.forecast(snapshot, horizon)
        self._residual, self._in_range = forecast.residual, forecast.in_range
        return forecast

    def _decide(self, evidence: Evidence, forecast: Forecast | None, snapshot: Snapshot, step_error: float) -> Verdict:
        bound = math.inf
        if forecast is not None:
            bound = self.calibration.bound(forecast.horizon, forecast.error)
        evidence = msgspec.structs.replace(evidence, bound=bound, residual=self._residual, in_range=self._in_range)
        action, state = self.switch.decide(self.state, evidence)
        if action is Action.LEARNED and not self.act:
            action, state = Action.DIRECT, _phase(state, "trial")
        if action is Action.LEARNED and (forecast is None or forecast.horizon != state.horizon):
            forecast = self._forecast(snapshot, state.horizon)
            bound = self.calibration.bound(forecast.horizon, forecast.error)
        self.state = state
        if action is not Action.LEARNED and forecast is not None and evidence.direct and self._live is None:
            self._live = _Live(snapshot.step + forecast.horizon, bound, forecast)
        if action is Action.REWIND or (evidence.direct and action is Action.LEARNED):
            self._live = None
        return Verdict(action, state, forecast, bound, step_error, evidence.residual)


def _phase(state: SwitchState, phase: Phase) -> SwitchState:
    return msgspec.structs.replace(state, phase=phase, good=0, horizon=0)
