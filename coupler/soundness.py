"""Whether the host's own state can be shown to anyone: it fits its declaration and is finite. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from coupler.errors import SchemaMismatch, SimulationFailed
from coupler.guard import all_finite
from schemas.fields import FieldSpec, Snapshot, misfit

SOUND, MISFIT, NOT_FINITE = 0, 1, 2
"""Faults, the worst last: ranks agree on the highest number."""


def fault(fields: Mapping[str, FieldSpec], snapshot: Snapshot) -> int:
    """The fault of this rank's part of a state: `SOUND`, `MISFIT` or `NOT_FINITE`."""
    for name, spec in fields.items():
        block = snapshot.blocks.get(name)
        if block is None or misfit(spec, block):
            return MISFIT
        if not all_finite(block.array):
            return NOT_FINITE
    return SOUND


def require(agreed: int, fields: Mapping[str, FieldSpec], snapshot: Snapshot) -> None:
    """Raises the error of the fault that the ranks agreed on; every rank raises, each with what it can say.

    Raises:
        SchemaMismatch: A field changed its shape or dtype.
        SimulationFailed: The state is not finite.
    """
    if agreed == SOUND:
        return
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
    raise SimulationFailed(f"At step {snapshot.step} another rank found its state unusable; its log says why.")
