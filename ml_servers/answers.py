"""What an Ask says about its surroundings, and what a decision looks like as an Advice. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from ml_servers.arbiter import Surroundings, Verdict
from schemas.fields import Block, FieldSpec, misfit
from schemas.messages import Action, Advice, Ask, Hello, Stamp


def unusable(stamp: Stamp, blocks: Mapping[str, Block], needed: Iterable[FieldSpec]) -> str:
    """Why a message about a state cannot be used, as a sentence; empty when it can."""
    if not (math.isfinite(stamp.time) and math.isfinite(stamp.dt)):
        return f"step {stamp.step} came with time {stamp.time} and dt {stamp.dt}"
    for spec in needed:
        if stamp.rank and spec.is_common:
            continue
        block = blocks.get(spec.name)
        if sentence := f"field {spec.name!r} is missing" if block is None else misfit(spec, block):
            return sentence
    return ""


def planned_steps(ask: Ask, hello: Hello) -> int:
    """Steps that the run will have, as far as its present dt tells."""
    stamp, last = ask.stamp, hello.last_step
    ahead = (hello.end_time - stamp.time) / stamp.dt if stamp.dt > 0.0 else math.inf
    if math.isfinite(ahead):  # a state that cannot be used may have any time
        last = min(last, stamp.step + math.ceil(ahead))
    return max(last - hello.step, 1)


def surroundings(asks: Mapping[int, Ask], last_step: int, end_time: float = math.inf) -> Surroundings:
    """What limits a decision: the steps that the host must hit, announced changes and the end of the run.

    A run that ends at a time may cut its last step short, and a step of another dt is none to judge a forecast by.
    """
    ask = asks[0]
    stamp = ask.stamp
    leeway = last_step - stamp.step
    event = min(stamp.controls_until, end_time)
    if event != math.inf:
        # A hair less than a step is rounding: the event then falls on the step's end.
        ahead = (event - stamp.time) / stamp.dt + 1e-6 if stamp.dt > 0.0 else math.nan
        leeway = min(leeway, math.floor(ahead) if math.isfinite(ahead) else 0)
    refused = any(a.refused for a in asks.values())
    return Surroundings(ask.until - stamp.step, leeway, refused, ask.adopted)


def advice(base: Advice, ask: Ask, verdict: Verdict, can_rewind: bool) -> Advice:
    """The Advice of a decision about the state.

    Args:
        base: Advice to integrate directly, with the decision's number and dt.
        ask: What is answered.
        verdict: The decision.
        can_rewind: Whether the host keeps saved states.
    """
    state, stamp, forecast = verdict.state, ask.stamp, verdict.forecast
    base = msgspec.structs.replace(
        base,
        reason=state.reason,
        phase=state.phase,
        bound=verdict.bound,
        step_error=verdict.step_error,
        residual=verdict.residual,
    )
    if verdict.action is Action.REWIND:
        return rewind(base, ask, can_rewind)
    if verdict.action is Action.LEARNED and forecast is not None:
        return msgspec.structs.replace(
            base,
            action=Action.LEARNED,
            step=stamp.step + forecast.horizon,
            time=stamp.time + forecast.horizon * stamp.dt,
            dt=base.dt or stamp.dt,
            horizon=forecast.horizon,
            weight=state.weight,
            version=forecast.version,
            observables={name: [float(v) for v in series] for name, series in forecast.observables.items()},
        )
    return base


def rewind(base: Advice, ask: Ask, can_rewind: bool) -> Advice:
    """The Advice to restore the newest saved state: a host keeps verified ones only (`coupler.coupling.keep`)."""
    if not ask.saved or not can_rewind:
        reason = f"{base.reason}; the host keeps no saved state: its learned steps stay unverified"
        return msgspec.structs.replace(base, reason=reason)
    return msgspec.structs.replace(base, action=Action.REWIND, rewind_to=max(ask.saved))
