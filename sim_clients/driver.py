"""The driver loop: ten lines between a Simulation and its Coupling, for codes that let Python own the loop."""

from __future__ import annotations

from collections.abc import Callable

from coupler.contracts import Advice, Ending, Simulation
from coupler.coupling import Coupling

OnStep = Callable[[Simulation, Advice], None]


def drive(
    simulation: Simulation,
    coupling: Coupling,
    *,
    every: int | None = None,
    on_step: OnStep = lambda _simulation, _advice: None,
) -> str:
    """Advances a simulation to the end that the coupling's terms name, as the Advice says. Collective.

    Args:
        simulation: The simulation, at any step.
        coupling: Its open Coupling.
        every: Steps between states that must be hit (output); no learned phase passes one.
        on_step: Called after each step with what was done.

    Returns:
        Why the simulation ended before that, empty when it did not.

    Raises:
        SchemaMismatch: The simulation changed a declared field.
        SimulationFailed: It failed, or its state is not finite.
    """
    last = coupling.terms.last_step
    ended = simulation.ended if isinstance(simulation, Ending) else lambda: ""
    while True:
        snapshot = simulation.snapshot()
        until = last if every is None else min(last, (snapshot.step // every + 1) * every)
        early = "" if coupling.terms.over(snapshot) else ended()
        if early:
            advice = coupling.finish(snapshot, simulation.invariants())
        else:
            advice = coupling.exchange(snapshot, until, simulation.invariants())
        if advice.stop:
            return early and f"The simulation came to an end of its own at step {snapshot.step}: {early}"
        on_step(simulation, coupling.apply(simulation, advice))
