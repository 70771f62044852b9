"""A direct step that makes too large an error is made again with a smaller dt, from the state before it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from coupler.agreement import agree_objection
from coupler.contracts import Advice, Simulation
from coupler.decisions import as_rewind

if TYPE_CHECKING:
    from coupler.coupling import Coupling


def integrate(coupling: Coupling, simulation: Simulation, advice: Advice) -> Advice:
    """Makes a direct step, again and again with a smaller dt while an error goes beyond its limit. Collective.

    The state before the step was exchanged and stays the one that was, so nothing of this concerns the server: it sees
    the step that is kept, and its dt. Where no smaller dt is allowed the step is kept as it is. In trials and audits,
    whose forecasts are for the dt that was given, no step is rejected.

    Args:
        coupling: The coupling.
        simulation: The simulation, at the state that was exchanged.
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
    token, before = simulation.save(), guard.errors_of(simulation.snapshot().blocks)
    while True:
        simulation.integrate(advice.dt, 1)
        end = simulation.snapshot()
        reason = agree_objection(coupling.ranks, guard.rejection(before, guard.errors_of(end.blocks)))
        dt = coupling.rejected(advice.dt) if reason else 0.0
        if not dt:
            return advice
        coupling.ledger.rejected_steps += 1
        coupling.record(end, as_rewind(advice, reason, end.step - 1))
        simulation.restore(token)
        advice = replace(advice, dt=dt, reason=reason)
        coupling.record(simulation.snapshot(), advice)
