"""What a decision of the server means for the host: whether it can be carried out, and the Advice it becomes. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from coupler.contracts import Advice
from coupler.guard import Guard
from schemas import messages
from schemas.fields import Block, FieldSpec, Snapshot
from schemas.messages import Action

Found = tuple[messages.Advice, Mapping[str, Block]]


def objection_to(
    found: Found | None, snapshot: Snapshot, guard: Guard, fields: Mapping[str, FieldSpec], saved: Collection[int]
) -> str:
    """Why this rank cannot carry a decision out; empty when it can.

    Args:
        found: The message and its Blocks; None when they never came.
        snapshot: This rank's part of the present state.
        guard: Limits.
        fields: Declared fields by name.
        saved: Steps of the states kept for a rewind.
    """
    if found is None:
        return "its message was lost"
    told, blocks = found
    if told.action is Action.REWIND and told.rewind_to not in saved:
        return f"no state is saved for step {told.rewind_to}; there are {sorted(saved)}"
    if told.action is not Action.LEARNED:
        return ""
    if told.step <= snapshot.step:
        return "the learned state came too late"
    if not (math.isfinite(told.time) and 0.0 < told.weight <= 1.0):
        return f"the learned state has time {told.time} and weight {told.weight}"
    return guard.objection(fields, blocks, snapshot.blocks)


def as_advice(told: messages.Advice, blocks: Mapping[str, Block], snapshot: Snapshot, dt: float) -> Advice:
    """The host's Advice of a decision that all ranks can carry out.

    Args:
        told: The message.
        blocks: Its Blocks: this rank's part of the state to adopt.
        snapshot: This rank's part of the present state.
        dt: Guarded dt for direct steps.
    """
    learned = told.action is Action.LEARNED
    return Advice(
        action=told.action,
        reason=told.reason,
        dt=dt,
        horizon=told.horizon,
        weight=told.weight,
        bound=told.bound,
        version=told.version,
        decision=told.decision,
        phase=told.phase,
        snapshot=Snapshot(told.step, told.time, snapshot.dt, blocks) if learned else None,
        rewind_to=told.rewind_to,
    )


def as_rewind(advice: Advice, reason: str, back: int) -> Advice:
    """The Advice to go back to a step, in place of one that could not be kept."""
    return replace(advice, action=Action.REWIND, reason=reason, phase="direct", rewind_to=back, snapshot=None)
