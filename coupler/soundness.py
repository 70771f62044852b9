"""Whether the host's own state can be shown to anyone: it fits its declaration and is finite. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from coupler.errors import FailedElsewhere, SchemaMismatch, SimulationFailed
from coupler.guard import all_finite
from schemas.fields import FieldSpec, Snapshot, flaw, misfit, undeclared

SOUND, MISFIT, NOT_FINITE, NO_TIME = 0, 1, 2, 3
"""Faults, the worst last: ranks agree on the highest number."""


def declared(fields: Sequence[FieldSpec]) -> dict[str, FieldSpec]:
    """Fields by name; raises SchemaMismatch where they cannot be declared like this."""
    if sentence := flaw(tuple(fields)):
        raise SchemaMismatch(f"The simulation's fields cannot be used: {sentence}.")
    return {spec.name: spec for spec in fields}


def fault(fields: Mapping[str, FieldSpec], snapshot: Snapshot) -> int:
    """The fault of this rank's part of a state: `SOUND`, `MISFIT`, `NOT_FINITE` or `NO_TIME`."""
    if not (0.0 <= snapshot.dt < math.inf and math.isfinite(snapshot.time)):
        return NO_TIME
    for name, spec in fields.items():
        block = snapshot.blocks.get(name)
        if block is None or misfit(spec, block):
            return MISFIT
        if not all_finite(block.array):
            return NOT_FINITE
    return SOUND if len(snapshot.blocks) == len(fields) else MISFIT


def require(agreed: int, fields: Mapping[str, FieldSpec], snapshot: Snapshot) -> None:
    """Raises the error of the fault that the ranks agreed on; every rank raises, each with what it can say.

    Raises:
        SchemaMismatch: A field changed its shape or dtype, is missing, or was never declared.
        SimulationFailed: The state is not finite, or neither are its time and dt.
        FailedElsewhere: The fault lies in the part of another rank.
    """
    if agreed == SOUND:
        return
    if not (0.0 <= snapshot.dt < math.inf and math.isfinite(snapshot.time)):
        raise SimulationFailed(
            f"At step {snapshot.step} the simulation shows time {snapshot.time:g} and dt {snapshot.dt:g}; time must be "
            "finite, and dt, the time of a coupling step, not negative."
        )
    for name, spec in fields.items():
        block = snapshot.blocks.get(name)
        sentence = f"field {name!r} is missing" if block is None else misfit(spec, block)
        if sentence:
            raise SchemaMismatch(f"At step {snapshot.step}, {sentence}. Fields are declared once and stay so.")
        if block is not None and not all_finite(block.array):
            raise SimulationFailed(
                f"At step {snapshot.step} (time {snapshot.time:g}) field {name!r} of the simulation is not finite: "
                "reduce dt or check the set-up."
            )
    if sentence := undeclared(fields, snapshot.blocks):
        raise SchemaMismatch(f"At step {snapshot.step}, {sentence}. Fields are declared once and stay so.")
    raise FailedElsewhere(f"At step {snapshot.step} another rank found its state unusable; its log says why.")
