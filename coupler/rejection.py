"""A direct step that makes too large an error is made again with a smaller dt, from the state before it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from coupler.agreement import agree_objection
from coupler.contracts import Advice, Simulation
from coupler.decisions import as_rewind
from coupler.errors import SimulationFailed
from schemas.fields import Snapshot

if TYPE_CHECKING:
    from coupler.coupling import Coupling


def integrate(coupling: Coupling, simulation: Simulation, here: Snapshot, advice: Advice) -> Advice:
    """Makes a direct step, again and again with a smaller dt while an error goes beyond its limit. Collective.

    The state before the step was exchanged and stays the one that was, so nothing of this concerns the server: it sees
    the step that is kept, and its dt. Where no smaller dt is allowed, or would help, the step is kept as it is. In
    trials and audits, whose forecasts are for the dt that was given, no step is rejected.

    Args:
        coupling: The coupling.
        simulation: The simulation.
        here: Its present state, which was exchanged.
        advice: DIRECT.

    Returns:
        The Advice with the dt of the step that was kept.

    Raises:
        SimulationFailed: See `Simulation.integrate`.
    """
    guard = coupling.guard
    if not guard.errors or advice.phase != "direct":
        simulation.integrate(advice.dt, 1)
        return advice
    token, before, tried = simulation.save(), guard.errors_of(here.blocks), None
    while True:
        simulation.integrate(advice.dt, 1)
        end = simulation.snapshot()
        after = guard.errors_of(end.blocks)
        reason = agree_objection(coupling.ranks, guard.rejection(before, after, tried))
        dt = coupling.chosen_dt.rejected(advice.dt) if reason else 0.0
        if not dt:
            return advice
        coupling.ledger.rejected_steps += 1
        coupling.record(end, as_rewind(advice, reason, end.step - 1))
        try:
            simulation.restore(token)
        except SimulationFailed as failed:
            raise SimulationFailed(
                f"{failed}; a step was to be made again, since limits.errors limits its error"
            ) from failed
        advice, tried = replace(advice, dt=dt, reason=reason), after
        coupling.record(simulation.snapshot(), advice)
