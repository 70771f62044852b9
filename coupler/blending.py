"""Hand-over by blending: the host integrates to the step of a learned state and mixes it in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coupler.agreement import agree_objection
from coupler.contracts import Simulation
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot


def blend_in(
    simulation: Simulation, ranks: Ranks, fields: Sequence[FieldSpec], learned: Snapshot, dt: float, weight: float
) -> str:
    """Integrates a simulation to the step of a learned state and mixes that in. Collective.

    Args:
        simulation: The simulation, one or more steps before.
        ranks: Its ranks.
        fields: Declared fields.
        learned: This rank's part of the learned state.
        dt: dt of the direct steps.
        weight: Weight of the learned state, in (0, 1).

    Returns:
        Why some rank could not mix, so that every rank kept the integrated state; empty when all did.
    """
    simulation.integrate(dt, learned.step - simulation.snapshot().step)
    integrated = simulation.snapshot()
    reason = agree_objection(ranks, unmixable(integrated, learned.blocks))
    if not reason:
        mixed = blend(fields, integrated, learned.blocks, weight)
        simulation.adopt(Snapshot(learned.step, learned.time, learned.dt, mixed))
    return reason


def blend(
    fields: Sequence[FieldSpec], integrated: Snapshot, learned: Mapping[str, Block], weight: float
) -> dict[str, Block]:
    """Mixes a learned state into an integrated one: weight * learned + (1 - weight) * integrated.

    Fields that declare `blend = "never"` are taken from the learned state whole.

    Args:
        fields: Declared fields.
        integrated: This rank's part of the integrated state, at the same step.
        learned: This rank's Blocks of the learned state.
        weight: In (0, 1].
    """
    linear = {spec.name for spec in fields if spec.blend == "linear"}
    mixed = {}
    for name, block in learned.items():
        if name in linear and weight < 1.0:
            own = np.asarray(integrated[name], float)[_rows(block, integrated.blocks[name])]
            array = weight * np.asarray(block.array, float) + (1.0 - weight) * own
            mixed[name] = Block(array.astype(block.array.dtype), block.offset, block.ids)
        else:
            mixed[name] = block
    return mixed


def unmixable(integrated: Snapshot, learned: Mapping[str, Block]) -> str:
    """Why a learned state cannot be mixed into an integrated one (the particles of this rank changed); else empty."""
    for name, block in learned.items():
        own = integrated.blocks[name]
        if block.array.shape != own.array.shape or (
            block.ids is not None and own.ids is not None and not np.array_equal(np.sort(block.ids), np.sort(own.ids))
        ):
            return f"field {name!r} of this rank holds other particles or cells than the learned state"
    return ""


def _rows(learned: Block, own: Block) -> slice | NDArray[np.int64]:
    """Rows of `own` in the order of the learned Block."""
    if learned.ids is None or own.ids is None or np.array_equal(learned.ids, own.ids):
        return slice(None)
    order = np.argsort(own.ids)
    return order[np.searchsorted(own.ids, learned.ids, sorter=order)]
