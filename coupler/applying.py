"""Carries an Advice out on a Simulation: integrates, adopts (saving first), blends, restores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coupler.agreement import totals
from coupler.blending import blend_in
from coupler.contracts import Advice, Simulation
from coupler.errors import SimulationFailed, StepFailed
from coupler.rejection import integrate
from coupler.retry import given_up
from schemas.fields import Snapshot
from schemas.messages import Action

if TYPE_CHECKING:
    from coupler.coupling import Coupling


def apply(coupling: Coupling, simulation: Simulation, advice: Advice) -> Advice:
    """See `Coupling.apply`."""
    if advice.action is Action.REWIND:
        simulation.restore(coupling.saved[advice.rewind_to])
    elif advice.action is Action.DIRECT:
        return _integrate(coupling, simulation, advice)
    elif advice.action is Action.LEARNED and advice.snapshot is not None:
        return _adopt(coupling, simulation, advice, advice.snapshot)
    return advice


def _integrate(coupling: Coupling, simulation: Simulation, advice: Advice) -> Advice:
    if not coupling.terms.keep_every:
        simulation.integrate(advice.dt, 1)
        return advice
    here = simulation.snapshot()
    if coupling.saved.due(here.step, coupling.terms.keep_every):
        coupling.keep(here.step, simulation.save())
    try:
        return integrate(coupling, simulation, here, advice)
    except StepFailed as failed:
        if not coupling.try_again(here.step, advice.dt):
            raise SimulationFailed(given_up(failed)) from failed
        return _undo(coupling, simulation, here, advice, str(failed))


def _adopt(coupling: Coupling, simulation: Simulation, advice: Advice, learned: Snapshot) -> Advice:
    if coupling.saved.verified:
        coupling.keep(simulation.snapshot().step, simulation.save())
    if advice.weight < 1.0:
        fields = tuple(coupling.fields.values())
        if reason := blend_in(simulation, coupling.ranks, fields, learned, advice.dt, advice.weight):
            coupling.not_mixed(reason)
        return advice
    before = _totals(coupling, simulation)
    simulation.adopt(learned)
    reason = coupling.guard.broken(before, _totals(coupling, simulation))
    return _undo(coupling, simulation, learned, advice, reason) if reason else advice


def _undo(coupling: Coupling, simulation: Simulation, left: Snapshot, advice: Advice, reason: str) -> Advice:
    """Goes back to the newest saved state from `left`, where an Advice led to."""
    undone = coupling.undone(left, advice, reason)
    simulation.restore(coupling.saved[undone.rewind_to])
    return undone


def _totals(coupling: Coupling, simulation: Simulation) -> dict[str, float]:
    """Global values of the guarded invariants."""
    limits = coupling.guard.drift
    return totals(coupling.ranks, limits, simulation.invariants()) if limits else {}
