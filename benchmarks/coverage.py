"""Whether adopted states keep their stated bound: `python -m benchmarks coverage`.

Springs that stiffen, each with an amplitude of its own: no map of the built-in models is exact, the trajectory never
returns to where it was, and a forecast that starts from a forecast starts beside the data. So the bound is hard to
keep here; on a periodic wake it is easy. Whenever the run adopts a learned state, the simulation also integrates
directly over the same steps, from the state at which it stood, and notes how far off the adopted one is: rms over the
rms fluctuation of each field so far. The run does not see this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import fresh, run_case
from benchmarks.table import Row, Rows, row
from coupler.ranks import Ranks
from coupler.trace import TRACE, read
from schemas.fields import Snapshot
from schemas.run import dump, from_table
from sim_clients.oscillator import Oscillator

SPRINGS = 7
STEPS = 1500
TOLERANCE = 0.02
CASES = (
    {"k": 4.0, "beta": 0.3, "amplitude": [0.1, 3.0]},
    {"k": 1.0, "beta": 1.0, "amplitude": [0.5, 1.5]},
    {"k": 1.0, "beta": 0.3, "amplitude": [0.5, 1.5]},
    {"k": 1.0, "beta": 0.1, "amplitude": [0.5, 1.5]},
)


class Watched(Oscillator):
    """Springs that note the true error of each state that they adopt."""

    def __init__(
        self, *, ranks: Ranks, seed: int, k: float, beta: float, amplitude: tuple[float, float], found: str
    ) -> None:
        """As `Oscillator`. found: File to append to."""
        super().__init__(ranks=ranks, seed=seed, k=k, beta=beta, amplitude=amplitude, dt=0.1, n=SPRINGS, substeps=50)
        self._found = Path(found)
        self._sums = np.zeros((3, 2, SPRINGS))  # of 1, of the values and of their squares

    def integrate(self, dt: float, n: int) -> None:
        """See `Simulation.integrate`."""
        super().integrate(dt, n)
        state = self._state()
        self._sums += [np.ones_like(state), state, state**2]

    def adopt(self, snapshot: Snapshot) -> None:
        """See `Simulation.adopt`."""
        stood, steps = self.save(), snapshot.step - self._step
        if steps > 0:
            super().integrate(self._dt, steps)
            truth = self._state()
            self.restore(stood)
            count, mean, square = self._sums[0], *(self._sums[1:] / self._sums[0])
            rms = np.sqrt(np.mean(square - mean**2, axis=1, keepdims=True)) if count.any() else np.nan
            off = (np.stack([snapshot["position"], snapshot["velocity"]]) - truth) / rms
            told = {"step": self._step, "error": math.sqrt(float(np.mean(off**2)))}
            with self._found.open("a") as file:
                file.write(json.dumps(told) + "\n")
        super().adopt(snapshot)

    def _state(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.stack([self._x, self._v])


def rows(seeds: Sequence[int], say: Callable[[str], None] = lambda _: None) -> Rows:
    """Shares of adopted states, of all cases and seeds together."""
    errors: list[float] = []
    bounds: list[float] = []
    for seed in seeds:
        for number, springs in enumerate(CASES):
            folder = fresh(f"coverage-{seed}-{number}")
            found, stated = adopted(springs, folder, seed)
            errors, bounds = [*errors, *found], [*bounds, *stated]
            say(f"{springs}, seed {seed}: {len(found)} states adopted, {_share(found, stated):.0%} within their bound")
    over = np.array(errors) / np.array(bounds)
    return [
        _row("adopted states within their bound", _share(errors, bounds), "1", len(errors)),
        _row("adopted states within the tolerance", _share(errors, [TOLERANCE] * len(errors)), "1", len(errors)),
        _row("error over bound, 99 %", float(np.percentile(over, 99)) if len(over) else math.nan, "times", len(errors)),
    ]


def adopted(springs: dict[str, Any], folder: Path, seed: int) -> tuple[list[float], list[float]]:
    """True errors and stated bounds of the states that one run adopted and kept or not."""
    file = folder.with_suffix(".jsonl")
    file.unlink(missing_ok=True)
    table = {
        "run": {"name": "coverage", "steps": STEPS, "mode": "act", "rung": "inline"},
        "simulation": {"use": "benchmarks.coverage:Watched", "found": str(file.resolve()), **springs},
        "task": [{"use": "propagator", "models": ["affine", "polynomial"]}],
        "switch": {"tolerance": TOLERANCE},
    }
    case = folder.with_suffix(".toml")
    case.parent.mkdir(parents=True, exist_ok=True)
    case.write_text(dump(from_table(table)))
    run_case(case, folder, seed=seed)
    told = {record["step"]: record["bound"] for record in read(folder / TRACE) if record["action"] == "learned"}
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = [line for line in lines if line["step"] in told]
    return [line["error"] for line in known], [told[line["step"]] for line in known]


def _share(errors: Sequence[float], limits: Sequence[float]) -> float:
    return float(np.mean(np.array(errors) <= np.array(limits))) if errors else math.nan


def _row(case: str, value: float, unit: str, n: int) -> Row:
    return row(case, median=value, unit=unit, n=n)
