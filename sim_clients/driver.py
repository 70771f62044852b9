"""The driver loop: ten lines between a Simulation and its Coupling, for codes that let Python own the loop."""

from __future__ import annotations

from collections.abc import Callable

from coupler.contracts import Advice, Simulation
from coupler.coupling import Coupling

OnStep = Callable[[Simulation, Advice], None]


def drive(
    simulation: Simulation,
    coupling: Coupling,
    *,
    every: int | None = None,
    on_step: OnStep = lambda _simulation, _advice: None,
) -> None:
    """Advances a simulation to the last step of its coupling's terms, as the Advice says. Collective.

    Args:
        simulation: The simulation, at any step.
        coupling: Its open Coupling.
        every: Steps between states that must be hit (output); no learned phase passes one.
        on_step: Called after each carried-out Advice.

    Raises:
        SchemaMismatch: The simulation changed a declared field.
        SimulationFailed: Its state is not finite.
    """
    last_step = coupling.terms.last_step
    while True:
        snapshot = simulation.snapshot()
        until = last_step if every is None else min(last_step, (snapshot.step // every + 1) * every)
        advice = coupling.exchange(snapshot, until, simulation.invariants())
        if advice.stop:
            return
        coupling.apply(simulation, advice)
        on_step(simulation, advice)
