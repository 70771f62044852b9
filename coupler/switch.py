"""The Switch: who advances the next steps, the solver or the model. Pure: evidence in, action out.

    phase     leaves to   when
    --------  ----------  --------------------------------------------------------------------------------------
    DIRECT    TRIAL       the model is able (see below) and the cool-down after the last failure is over
    TRIAL     DIRECT      the model is not able, or a live forecast missed the tolerance (the cool-down doubles)
    TRIAL     LEARNED     `confirm` live forecasts in a row kept the tolerance, and a stretch (see below) is over;
                          before, it integrates directly
    LEARNED   LEARNED     the model is able and the steps since the last verified state leave room for a horizon
    LEARNED   AUDIT       no room is left, or the model is no longer able: integrate directly and compare
    AUDIT     LEARNED     the step error keeps the tolerance; the state is verified, the audit spacing doubles
    AUDIT     DIRECT      it keeps it but the model is not able, or the host refused what it was told
    AUDIT     TRIAL       it keeps it, and a stretch of direct steps would pay: it allows longer horizons (see below)
    AUDIT     DIRECT      it does not, or comes to too much over the learned steps: REWIND to the last verified state;
                          the spacing and the cool-down start anew
    DIRECT    AUDIT       the host says it stands at a learned state all the same (a late Advice); so from TRIAL
    any       DIRECT      a control left the trained range, the stream shows that the dynamics changed, or the host
                          refused the last decision; a learned state that it stands at is audited first

Able: a trained model, controls in range, a residual within `max_residual` tolerances, invariants held, and a horizon of
at least `min_horizon` steps whose calibrated bound keeps the tolerance; the bound of the very forecast that would be
adopted must keep it too. The horizon is cut so that it never passes the next step that the host must hit, and so that
an audit fits in before the next known change of a control and the end of the run. Hysteresis: `confirm` good forecasts
to go in, one bad audit to go out, and a cool-down that doubles.

A stretch pays when the data limit the horizon, not the error, and the audits that a horizon of twice the length saves
until the next event are at least twice as many steps. There is no other one before the horizon has grown.
"""

from __future__ import annotations

import math

import msgspec

from schemas.messages import Action, Phase

NEAR = "the next event is too near"
SHORTEST = 2
"""Steps that must be left before an audit and an event for a learned phase that the event cuts short."""
MAX_SPACING = 1 << 20
"""Learned steps between two audits at most; doubling alone knows no end."""
CARRIED = 2.0
"""Tolerances that the carried error of an audit may have: one step says roughly what many come to."""
REFUSED = "the host refused the learned state"
UNSURE = "the bound of this forecast is above the tolerance"
STRETCH = "a stretch of direct steps, which allows longer horizons"


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """What is known when a decision is due.

    Attributes:
        step: Coupling step of the state asked about.
        direct: Whether that state was directly integrated (True) or is the model's own (False).
        version: Version of the serving model; 0 when there is none.
        horizon: Longest calibrated horizon that keeps the tolerance, 0 when none does.
        room: Steps to the next step that the host must hit.
        leeway: Steps to the next event that an audit must precede: known control change or end of the run.
        bound: Calibrated bound of the error of the forecast at hand; infinity when there is none.
        error: Error of the live forecast or of the audit that this state closes; NaN when it closes none.
        carried: What the error of that audit comes to over the learned steps behind it, where it is above its bound.
        residual: Distance of the state from the trained ones.
        in_range: Whether all controls lie in the trained range.
        changed: Whether the stream shows that the dynamics changed.
        drift: Largest relative drift of an invariant over its limit; above 1 the limit is broken.
        refused: Whether the host did not carry out the last decision.
        stretch: Direct steps in a row that would allow a longer horizon; 0 when the data do not limit it.
    """

    step: int
    direct: bool = True
    version: int = 0
    horizon: int = 0
    room: int = 1 << 30
    leeway: int = 1 << 30
    bound: float = math.inf
    error: float = math.nan
    carried: float = 0.0
    residual: float = 0.0
    in_range: bool = True
    changed: bool = False
    drift: float = 0.0
    refused: bool = False
    stretch: int = 0


class SwitchState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the Switch is, and what its last decision was.

    Attributes:
        phase: Phase after the decision.
        good: Good forecasts in a row in TRIAL.
        verified: Step of the last verified state; -1 when none is known.
        spacing: Learned steps between audits; doubles with each pass.
        resume: No TRIAL before this step.
        cooldown: Length of the next cool-down in steps.
        blended: Hand-over steps already blended.
        horizon: Steps that the decided LEARNED action covers.
        weight: Blending weight of that action.
        reason: Why, as a short sentence.
        switches: Times the run went from direct to learned.
        fallbacks: Times it went back to direct steps, but for audits that passed and events that were announced.
        rewinds: Times it rewound.
        audits: Audits closed.
        stretched: Horizon at which a stretch was made last.
    """

    phase: Phase = "direct"
    good: int = 0
    verified: int = -1
    spacing: int = 0
    resume: int = 0
    cooldown: int = 0
    blended: int = 0
    horizon: int = 0
    weight: float = 1.0
    reason: str = "nothing learned yet"
    switches: int = 0
    fallbacks: int = 0
    rewinds: int = 0
    audits: int = 0
    stretched: int = 0


class Switch(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of the Switch.

    Attributes:
        tolerance: Largest acceptable error, rms over rms fluctuation.
        confirm: Good live forecasts in a row before the model takes over.
        min_horizon: Shortest horizon worth taking over for.
        first_spacing: Learned steps before the first audit of a model; later ones are twice as far apart each.
        audit_steps: Direct steps of an audit.
        max_residual: Largest residual of a state, in tolerances.
        blend_steps: Blended steps at a hand-over; 0 switches hard.
        cooldown: Steps of the first cool-down after a failure.
        max_cooldown: Steps of the longest.
    """

    tolerance: float
    confirm: int = 3
    min_horizon: int = 2
    first_spacing: int = 10
    audit_steps: int = 1
    max_residual: float = 5.0
    blend_steps: int = 0
    cooldown: int = 4
    max_cooldown: int = 256

    def init(self) -> SwitchState:
        """The state before the first decision."""
        return SwitchState(cooldown=self.cooldown, spacing=self.first_spacing)

    def decide(self, state: SwitchState, evidence: Evidence) -> tuple[Action, SwitchState]:
        """Decides one step.

        Args:
            state: What the last decision returned.
            evidence: What is known now.

        Returns:
            DIRECT, LEARNED or REWIND, and the state that also holds the horizon, the weight and the reason.
        """
        if not evidence.direct:
            return self._after_learned(state, evidence)
        if state.phase == "audit":
            return self._close_audit(state, evidence)
        if evidence.refused and state.phase != "direct":
            return self._fail(state, evidence, REFUSED)
        if obstacle := self._obstacle(evidence):
            return self._leave(state, evidence, obstacle)
        if state.phase == "direct":
            return self._enter_trial(state, evidence)
        if state.phase == "trial":
            return self._trial(state, evidence)
        return self._advance(state, evidence)

    def _cut(self, horizon: int, e: Evidence) -> int:
        return min(horizon, e.horizon, e.room, self._leeway(e))

    def _obstacle(self, e: Evidence) -> str:
        """Why the model is not able now; empty when it is."""
        checks = (
            (e.version == 0, "nothing learned yet"),
            (e.changed, "the dynamics changed"),
            (not e.in_range, "a control is outside the trained range"),
            (not e.residual <= self.max_residual * self.tolerance, "the state is unlike the trained ones"),
            (not e.drift <= 1.0, "an invariant drifted past its limit"),
            (e.horizon < self.min_horizon, "no horizon keeps the tolerance yet"),
            (e.room < 1 or self._leeway(e) < min(self.min_horizon, SHORTEST), NEAR),
        )
        return next((reason for failed, reason in checks if failed), "")

    def _leeway(self, e: Evidence) -> int:
        # One step more than the audit: the answer to an audit may reach the host a step late.
        return e.leeway - self.audit_steps - 1

    def _after_learned(self, state: SwitchState, e: Evidence) -> tuple[Action, SwitchState]:
        """The host stands at a learned or blended state: go on, or audit it."""
        if state.phase in ("direct", "trial"):  # it took a state after the model had failed: audit it, then try anew
            return Action.DIRECT, _set(state, phase="audit", good=0, horizon=0, reason="audit: it was not expected")
        horizon = self._cut(min(state.spacing, e.horizon) - (e.step - state.verified), e)
        obstacle = self._obstacle(e) or (REFUSED if e.refused else "") or ("due" if horizon < 1 else "")
        if obstacle or state.phase == "audit":
            return Action.DIRECT, _set(state, phase="audit", horizon=0, reason=f"audit: {obstacle or 'due'}")
        if not e.bound <= self.tolerance:
            return Action.DIRECT, _set(state, phase="audit", horizon=0, reason=f"audit: {UNSURE}")
        return Action.LEARNED, self._learned(state, horizon)

    def _close_audit(self, state: SwitchState, e: Evidence) -> tuple[Action, SwitchState]:
        if math.isnan(e.error):
            return Action.DIRECT, _set(state, horizon=0, reason="audit: waiting for its direct state")
        state = _set(state, audits=state.audits + 1)
        if e.error > self.tolerance or e.carried > CARRIED * self.tolerance:
            state = _set(state, rewinds=state.rewinds + 1)
            reason = f"audit found a step error of {e.error:.3g}"
            if e.error <= self.tolerance:
                reason = f"audit found a step error of {e.error:.3g}, {e.carried:.3g} over the learned steps"
            _, state = self._fail(state, e, reason)
            return Action.REWIND, state
        state = _set(state, verified=e.step, spacing=min(2 * state.spacing, MAX_SPACING))
        if e.refused:
            return self._fail(state, e, REFUSED)
        if obstacle := self._obstacle(e) or ("the model must pass a trial first" if state.good < self.confirm else ""):
            return self._leave(state, e, obstacle)
        if self._pays(state, e):
            resume = e.step + e.stretch
            changed = {"phase": "trial", "good": 0, "horizon": 0, "resume": resume, "stretched": e.horizon}
            return Action.DIRECT, _set(state, reason=STRETCH, **changed)
        return self._advance(state, e)

    def _pays(self, state: SwitchState, e: Evidence) -> bool:
        """Whether a stretch of direct steps saves at least twice as many steps of audits until the next event."""
        saved = e.leeway * self.audit_steps / (2 * max(e.horizon, 1))
        return 0 < 2 * e.stretch <= saved and e.horizon > state.stretched and e.bound <= self.tolerance

    def _enter_trial(self, state: SwitchState, e: Evidence) -> tuple[Action, SwitchState]:
        if e.step < state.resume:
            return Action.DIRECT, _set(state, reason="cooling down after a failure")
        return Action.DIRECT, _set(state, phase="trial", good=0, reason="the model is on trial")

    def _trial(self, state: SwitchState, e: Evidence) -> tuple[Action, SwitchState]:
        state = _set(state, reason=STRETCH if e.step < state.resume else "the model is on trial")
        if e.error > self.tolerance:
            return self._fail(state, e, f"a live forecast missed by {e.error:.3g}")
        state = _set(state, good=state.good + (not math.isnan(e.error)))
        if e.step < state.resume or state.good < self.confirm:
            return Action.DIRECT, state
        action, after = self._advance(_set(state, blended=0), e)
        return action, _set(after, switches=state.switches + (action is Action.LEARNED))

    def _advance(self, state: SwitchState, e: Evidence) -> tuple[Action, SwitchState]:
        """From a verified, directly integrated state."""
        state = _set(state, verified=e.step)
        if not e.bound <= self.tolerance:
            return self._leave(state, e, UNSURE)
        return Action.LEARNED, self._learned(state, self._cut(state.spacing, e))

    def _learned(self, state: SwitchState, horizon: int) -> SwitchState:
        if state.blended < self.blend_steps:
            weight = (state.blended + 1) / (self.blend_steps + 1)
            horizon = min(horizon, 2)
            return _set(
                state, phase="learned", blended=state.blended + 1, weight=weight, horizon=horizon, reason="handing over"
            )
        return _set(state, phase="learned", weight=1.0, horizon=horizon, reason="the model keeps the tolerance")

    def _leave(self, state: SwitchState, e: Evidence, reason: str) -> tuple[Action, SwitchState]:
        """Back to direct steps without a failure of the model."""
        fell = state.phase in ("learned", "audit") and reason != NEAR
        return Action.DIRECT, _set(
            state,
            phase="direct",
            good=0,
            horizon=0,
            reason=reason,
            fallbacks=state.fallbacks + fell,
            spacing=state.spacing if not (e.changed or not e.in_range) else self.first_spacing,
        )

    def _fail(self, state: SwitchState, e: Evidence, reason: str) -> tuple[Action, SwitchState]:
        """Back to direct steps because the model was wrong."""
        return Action.DIRECT, _set(
            state,
            phase="direct",
            good=0,
            horizon=0,
            reason=reason,
            fallbacks=state.fallbacks + (state.phase in ("learned", "audit")),
            spacing=self.first_spacing,
            resume=e.step + state.cooldown,
            cooldown=min(2 * state.cooldown, self.max_cooldown),
        )


def _set(state: SwitchState, **changes: object) -> SwitchState:
    return msgspec.structs.replace(state, **changes)
