"""A learned dt on the van der Pol oscillator (mu = 50) against a fixed dt and a PI controller, all at equal error.

`python -m benchmarks.timestep`. Simulated time per force evaluation, those of rejected attempts and of the time before
anything was learned included; the baselines may choose the dt or tolerance that suits them best.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.table import Rows, judged, show, spread, timing
from coupler.ranks import Ranks
from ml_servers.tasks.timestep import Timestep
from sim_clients.relaxation import Relaxation
from sim_clients.relaxation_baselines import compare

__all__ = ["compare", "rows"]

MU = 50.0
UNTIL = 330.0
"""Four periods of 82.5 and a little."""
SEEDS = (1, 2, 3, 4, 5)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run.

    Attributes:
        records: Observables at every step, as `coupler.trace.trajectory` gives them.
        task_s: Seconds of observe, learn and forecast together, a step.
    """

    records: list[dict[str, Any]]
    task_s: list[float]

    @property
    def missed(self) -> float:
        """Share of steps above the tolerance."""
        return float(np.mean([record["values"]["error"] > 1.0 for record in self.records]))


def drive(seed: int, *, late: int = 0, until: float = UNTIL, mu: float = MU, **settings: Any) -> Run:
    """The coupling loop in ten lines, without the middleware.

    Args:
        seed: Seed of the initial state and of the task.
        late: Steps by which Advice is late: 0 when it arrives at once.
        until: Simulated time to end at.
        mu: Damping.
        **settings: Of the task, beyond those that the case needs.
    """
    simulation = Relaxation(ranks=Ranks(), seed=seed, mu=mu, dt=1e-3)
    given: dict[str, Any] = {"dt_min": 1e-6, "dt_max": 1.0, "tolerance": 1.0, "error_field": "error"} | settings
    task = Timestep(fields=simulation.fields(), seed=seed, **given)
    records: list[dict[str, Any]] = []
    task_s: list[float] = []
    advised = [simulation.snapshot().dt] * late
    while True:
        snapshot = simulation.snapshot()
        values = {spec.name: float(snapshot[spec.name]) for spec in simulation.fields() if spec.role == "observable"}
        records.append({"step": snapshot.step, "time": snapshot.time, "origin": 0, "values": values})
        if snapshot.time >= until:
            return Run(records, task_s)
        began = time.perf_counter()
        task.observe(snapshot)
        task.learn(1)
        forecast = task.forecast(snapshot, 1)
        task_s.append(time.perf_counter() - began)
        advised.append(forecast.dt or snapshot.dt)
        # The last step ends at `until` or a rounding error behind it.
        simulation.integrate(min(advised.pop(0), max(until - snapshot.time, 1e-12)), 1)


def rows(seeds: Sequence[int] = SEEDS) -> Rows:
    """Measures; the ratios over seeds, the worst of which decides."""
    found: Rows = []
    cases: tuple[tuple[str, dict[str, Any], int], ...] = (
        ("Advice at once", {"lead": 1, "confidence": 0.99}, 0),
        ("Advice one step late", {"lead": 2, "confidence": 0.99}, 1),
    )
    for case, settings, late in cases:
        runs = {seed: drive(seed, late=late, **settings) for seed in seeds}
        judgements = {seed: compare(run.records, mu=MU, seed=seed) for seed, run in runs.items()}
        for key, against, target in (
            ("over_fixed", "largest fixed dt", 3.0),
            ("over_controller", "PI controller", 0.8),
        ):
            ratios = {seed: float(judgement[key]) for seed, judgement in judgements.items()}
            made = spread(f"time per force evaluation, {case}", ratios, unit="times", against=against)
            found.append(judged(made, "low", at_least=target))
        missed = {seed: run.missed for seed, run in runs.items()}
        found.append(spread(f"steps above the tolerance, {case}", missed, unit="share", against="0.01 asked for"))
        deviations = {seed: float(judgement["deviation"]) for seed, judgement in judgements.items()}
        found.append(spread(f"largest error of x, {case}", deviations, unit="1", against="exact solution"))
    seconds = [second for run in runs.values() for second in run.task_s]
    found.append(timing("observe, learn and forecast of one step", 0, seconds))
    return found


if __name__ == "__main__":
    show("timestep", rows(), Console())
