"""The Arbiter of one Task that owns the state: its forecasts, their errors, its Calibration and its SwitchState.

Pure: it is handed Snapshots and returns what to do; it keeps no clock, file or socket.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from coupler.calibration import Calibration
from coupler.contracts import Backtest, Forecast
from coupler.errors import PluginError
from coupler.norms import relative_error
from coupler.switch import Evidence, Switch, SwitchState
from ml_servers.serving import ServingTask, misshapen
from schemas.fields import Array, Block, FieldSpec, Snapshot, copied, with_role
from schemas.messages import Action

TRIAL_HORIZON = 5
"""Steps of the live forecasts that a model on trial is judged by."""
TINY = 1e-300
KEPT_STATES = 3
"""Learned states kept until the host names the one that it adopted."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What limits a decision from outside.

    Attributes:
        room: Steps to the next step that the host must hit.
        leeway: Steps to the next known change of a control, or to the end of the run.
        refused: Whether the host did not carry out the decision before.
        adopted: Decision of the last learned state that the host took; 0 when there is none.
    """

    room: int
    leeway: int
    refused: bool = False
    adopted: int = 0


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
    origin: int
    bound: float
    backtested: float
    forecast: Forecast

    @property
    def step(self) -> int:
        return self.origin + self.forecast.horizon


@dataclass(frozen=True, slots=True)
class _Standing:
    """A state that was not directly integrated, from which the next audit starts."""

    decision: int
    snapshot: Snapshot


@dataclass(slots=True)
class Arbiter:
    """Decides between the solver and one Task. See `coupler.switch` for the rules.

    Attributes:
        task: The serving Task.
        fields: Declared fields.
        switch: Settings.
        max_horizon: Longest horizon to use.
        act: False for a rehearsal (`shadow`, `advise`): everything is forecast and scored, nothing is adopted.
        limits: Largest relative drift of an invariant through learned states, by name.
        calibration: What is known about the horizon error.
        state: State of the Switch.
        step_errors: Error found by each audit.
        live_errors: Error found by each live forecast.
        largest_bound: Largest bound of a state that was sent to be adopted; 0 before the first.
    """

    task: ServingTask
    fields: Sequence[FieldSpec]
    switch: Switch
    max_horizon: int
    act: bool
    calibration: Calibration
    limits: Mapping[str, float] = field(default_factory=dict)
    state: SwitchState = field(default_factory=SwitchState)
    step_errors: list[float] = field(default_factory=list)
    live_errors: list[float] = field(default_factory=list)
    largest_bound: float = 0.0
    _live: _Live | None = None
    _standing: _Standing | None = None
    _learned: dict[int, Snapshot] = field(default_factory=dict)
    _blended: int = 0
    _residual: float = 0.0
    _in_range: bool = True
    _version: int = 0
    _changed: bool = False
    _drift: float = 0.0
    _carried: float = 0.0
    _conserved: dict[str, float] = field(default_factory=dict)  # invariants of the last direct state

    def __post_init__(self) -> None:
        """Starts the Switch."""
        self.state = self.switch.init()

    def unverified(self, adopted: int) -> bool:
        """Whether the host, which took the state of that decision last, goes on from one that awaits an audit."""
        return self._standing is not None or adopted in self._learned or 0 < adopted == self._blended

    @property
    def promising(self) -> bool:
        """Whether the model keeps the tolerance over a quarter of the shortest horizon that is wanted."""
        usable = self.calibration.horizon(self.switch.tolerance, self.max_horizon)
        return usable > 0 and 4 * usable >= self.switch.min_horizon

    def trained(self, version: int, backtests: Sequence[Backtest]) -> None:
        """A new model serves: its back-tests replace the old ones, forecasts of the old one are not judged any more."""
        self._version = version
        self.calibration = self.calibration.learned(backtests)
        self._live = None
        self._residual, self._in_range, self._drift = 0.0, True, 0.0
        self._changed = False

    def calibrated(self, backtests: Sequence[Backtest]) -> None:
        """New back-tests of the serving model; none when what it was tested on is no longer true."""
        self._changed = self._version > 0 and not backtests
        self.calibration = self.calibration.learned(backtests)

    def restarted(self) -> None:
        """The host started again, rewound or is lost: what it was told before is not in force any more."""
        self._live, self._standing, self._blended = None, None, 0
        self._learned.clear()
        self.state = msgspec.structs.replace(self.state, phase="direct", good=0, horizon=0)

    def direct(self, snapshot: Snapshot, around: Surroundings, pure: bool = True) -> Verdict | None:
        """Decides at a state that the host integrated itself; None when it did so from a blended state never seen.

        Args:
            snapshot: The global state.
            around: What limits the decision.
            pure: False when the state is blended: it proves nothing about the model.
        """
        if not pure:
            verdict = self._decide(self._evidence(snapshot, around, direct=False), snapshot)
            self._standing, self._blended = _Standing(around.adopted, copied(snapshot)), 0
            return verdict
        if 0 < around.adopted == self._blended:  # the Ask about the blended state was lost: no audit can start there
            self.restarted()
            return None
        if around.adopted in self._learned:  # it stood there, though no Ask about it arrived
            controls = {spec.name: snapshot.blocks[spec.name] for spec in with_role(tuple(self.fields), "control")}
            self._standing = _Standing(around.adopted, _under(self._learned[around.adopted], controls))
        elif self._standing is not None and self._standing.decision != around.adopted:
            self.restarted()  # it undid the adoption
        shown = {name: snapshot.blocks.get(_observable(name)) for name in self.limits}
        self._conserved = {name: float(block.array) for name, block in shown.items() if block is not None}
        self._carried = 0.0
        error, audited = self._error_at(snapshot)
        evidence = self._evidence(snapshot, around, direct=True, error=error)
        return self._decide(evidence, snapshot, error if audited else math.nan)

    def standing(self, decision: int, controls: Mapping[str, Block], around: Surroundings) -> Verdict | None:
        """Decides at a learned state that the host adopted; None when that state is not known (any more).

        Args:
            decision: Number of the decision that it adopted.
            controls: Present controls.
            around: What limits the decision.
        """
        learned = self._learned.get(decision)
        if learned is None:
            self.restarted()
            return None
        snapshot = _under(learned, controls)
        self._standing, self._live = _Standing(decision, snapshot), None
        self._learned = {decision: snapshot}
        return self._decide(self._evidence(snapshot, around, direct=False), snapshot)

    def adopted(self, decision: int, snapshot: Snapshot, weight: float = 1.0) -> None:
        """Keeps the state sent with a decision: the host need only name it. A blended one the host will send."""
        if weight < 1.0:
            self._blended = decision
            return
        self._learned[decision] = snapshot
        while len(self._learned) > KEPT_STATES:
            del self._learned[min(self._learned)]

    # ------------------------------------------------------------------------------------------------------------

    def _error_at(self, snapshot: Snapshot) -> tuple[float, bool]:
        """Error of the forecast that this direct state is the truth of, and whether it closes an audit."""
        truth = {name: block.array for name, block in snapshot.blocks.items()}
        if self._standing is not None:
            return self._audit(self._standing.snapshot, snapshot, truth)
        live = self._live
        if live is None or live.origin < snapshot.step < live.step:
            return math.nan, False
        self._live = None
        if snapshot.step != live.step:
            return math.nan, False
        error = self._distance(live.forecast, truth)
        if math.isfinite(live.bound):
            self.calibration = self.calibration.observed(live.bound, error)
        self.calibration = self.calibration.scored(live.backtested, error)
        self.live_errors.append(error)
        return error, False

    def _audit(self, standing: Snapshot, snapshot: Snapshot, truth: Mapping[str, Array]) -> tuple[float, bool]:
        """A direct state after one that was not: the first `audit_steps` of them are an audit, told so or not."""
        ahead = snapshot.step - standing.step
        if ahead < 1:  # the host restored a state of its own
            self.restarted()
            return math.nan, False
        self.state = msgspec.structs.replace(self.state, phase="audit")
        if ahead < self.switch.audit_steps:
            return math.nan, False
        self._standing = None
        self._learned.clear()
        forecast = self._checked(standing, ahead)
        error = self._distance(forecast, truth)
        self.step_errors.append(error)
        expected, known = self._bounds(forecast)[1], self.calibration
        if 0.0 < expected < min(error, math.inf) and 0 <= self.state.verified < standing.step:
            self._carried = error / expected * known.typical(standing.step - self.state.verified)
        self.calibration = known.scored(expected, error)
        return error, True

    def _distance(self, forecast: Forecast, truth: Mapping[str, Array]) -> float:
        if not forecast.arrays:
            return math.inf
        return relative_error(self.fields, forecast.arrays, truth, forecast.scales)

    def _evidence(self, snapshot: Snapshot, around: Surroundings, *, direct: bool, error: float = math.nan) -> Evidence:
        return Evidence(
            step=snapshot.step,
            direct=direct,
            version=self._version,
            horizon=self.calibration.horizon(self.switch.tolerance, self.max_horizon),
            room=around.room,
            leeway=around.leeway,
            error=error,
            carried=self._carried if direct else 0.0,
            residual=self._residual,
            in_range=self._in_range,
            changed=self._changed,
            drift=self._drift,
            refused=around.refused,
            # Of use only where an audit closes, and not free.
            stretch=self.calibration.stretch(self.switch.tolerance, self.max_horizon)
            if self.state.phase == "audit"
            else 0,
        )

    def _wanted(self, evidence: Evidence) -> int:
        """Steps of the one forecast that the decision may need; 0 when it needs none."""
        hopeful = msgspec.structs.replace(evidence, bound=0.0, residual=0.0, in_range=True, drift=0.0)
        action, state = self.switch.decide(self.state, hopeful)
        if action is Action.LEARNED and self.act:
            return state.horizon
        if not evidence.direct or evidence.version == 0:
            return 0
        if self._live is not None:  # a live forecast is still open: nothing new to learn from another one
            return 0
        # What back-tests promise, whatever live forecasts have made of it: without new ones that would stay so.
        promised = msgspec.structs.replace(self.calibration, scores=())
        horizon = promised.horizon(self.switch.tolerance, self.max_horizon)
        if horizon < self.switch.min_horizon:
            return 0
        # A live forecast that straddled a change of a control would blame the model for it.
        return max(0, min(TRIAL_HORIZON, horizon, evidence.leeway))

    def _checked(self, snapshot: Snapshot, horizon: int) -> Forecast:
        forecast = self.task.forecast(snapshot, horizon)
        if sentence := misshapen(forecast, horizon, self.fields):
            raise PluginError(sentence)
        return forecast

    def _bounds(self, forecast: Forecast) -> tuple[float, float]:
        """Bound of a forecast, calibrated and by back-tests alone; infinity when it holds no state to adopt.

        Whether that state is finite, the Guard of each rank looks: reading a large one twice would double the cost.
        """
        if not forecast.version or not forecast.arrays:
            return math.inf, math.inf
        told = forecast.horizon, forecast.error
        return self.calibration.bound(*told), self.calibration.backtested(*told)

    def _drift_of(self, forecast: Forecast) -> float:
        """Largest drift of an invariant from the last direct state to the end of a forecast, over its limit."""
        drifts = [0.0]
        for name, before in self._conserved.items():
            series = forecast.observables.get(_observable(name))
            if series is not None and len(series):
                drifts.append(abs(float(series[-1]) - before) / (self.limits[name] * max(abs(before), TINY)))
        return max(drifts)

    def _decide(self, evidence: Evidence, snapshot: Snapshot, step_error: float = math.nan) -> Verdict:
        forecast, bound, backtested = None, math.inf, math.inf
        if horizon := self._wanted(evidence):
            forecast = self._checked(snapshot, horizon)
            bound, backtested = self._bounds(forecast)
            self._residual, self._in_range = forecast.residual, forecast.in_range
            self._drift = self._drift_of(forecast)
        evidence = msgspec.structs.replace(
            evidence, bound=bound, residual=self._residual, in_range=self._in_range, drift=self._drift
        )
        action, state = self.switch.decide(self.state, evidence)
        if action is Action.LEARNED and not self.act:
            action = Action.DIRECT
            state = msgspec.structs.replace(state, phase="trial", good=0, horizon=0, switches=self.state.switches)
        self.state = state
        if action is Action.REWIND or (evidence.direct and action is Action.LEARNED):
            self._live = None
        elif evidence.direct and forecast is not None and forecast.arrays and self._live is None:
            self._live = _Live(snapshot.step, bound, backtested, forecast)
        if action is Action.LEARNED:
            self.largest_bound = max(self.largest_bound, bound)
        return Verdict(action, state, forecast, bound, step_error, evidence.residual)


def _observable(invariant: str) -> str:
    """Name under which the server shows an invariant to the tasks."""
    return f"invariant.{invariant}"


def _under(learned: Snapshot, controls: Mapping[str, Block]) -> Snapshot:
    return replace(learned, blocks={**learned.blocks, **controls})
