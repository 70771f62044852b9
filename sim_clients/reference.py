"""The reference: the same case all-direct, compared with a finished coupled run at every state that run stored."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from coupler import connect
from coupler.contracts import SelfJudged, Simulation
from coupler.ranks import Ranks
from coupler.trace import OBSERVABLES, TRACE, Observed, Recorder, read, trajectory
from schemas.fields import Array, with_role
from schemas.run import RunSpec
from sim_clients import views

REFERENCE = "reference"
ERRORS = "errors.msgpack"
WINDOW = 1
"""Reference steps on either side of a state that give its rate of change, and so its phase shift."""
MOST_SHIFT = 3.0
"""Largest phase shift looked for, in steps: three-point differences say nothing about larger ones."""
SAMPLING = 7
"""Every so many steps the reference enters the statistics of the fluctuation (coprime to common periods)."""

Vector = NDArray[np.float32]


class Fluctuation:
    """Running mean square fluctuation of a vector series (Welford 1962), summed over this rank's values."""

    def __init__(self) -> None:
        """Starts empty."""
        self._mean: NDArray[np.float64] | None = None
        self._square = 0.0
        self._count = 0

    def add(self, values: Vector) -> None:
        """Adds one instant."""
        if self._mean is None:
            self._mean = np.zeros(values.shape)
        self._count += 1
        delta = values - self._mean
        self._mean += delta / self._count
        self._square += float(delta @ (values - self._mean))

    @property
    def total(self) -> float:
        """Sum over values of their variance in time."""
        return self._square / max(self._count, 1)


def run_reference(spec: RunSpec, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Runs the case all-direct and writes what it finds into `reference/` of the run folder.

    Args:
        spec: The case.
        folder: Run folder of the finished coupled run.
        ranks: Ranks, as many as the coupled run had.

    Returns:
        Facts for the summary. `loop_s` leaves the comparisons out, so that they do not flatter the coupled run.
    """
    from sim_clients.__main__ import make

    began = time.perf_counter()
    simulation = make(spec, ranks)
    ready = time.perf_counter()
    if isinstance(simulation, SelfJudged):
        judged = simulation.judge(trajectory(read(folder / OBSERVABLES)))
        plain = {name: _plain(value) for name, value in judged.items()}
        return {"status": "finished", "judgement": plain, "compared_s": None}
    comparison = Comparison(spec, folder, ranks)
    compared_s = 0.0
    terms = connect.terms(spec)
    dt = spec.limits.dt or simulation.snapshot().dt
    while not terms.over(now := simulation.snapshot()):
        simulation.integrate(terms.cut(dt, now.time), 1)
        paused = time.perf_counter()
        comparison.after_step(simulation)
        compared_s += time.perf_counter() - paused
    loop_s = time.perf_counter() - ready - compared_s
    paused = time.perf_counter()
    simulation.integrate(dt, 1)  # one step more, so that the phase of the last state can be told too
    comparison.look(simulation)
    comparison.finish()
    compared_s += time.perf_counter() - paused
    return {"status": "finished", "startup_s": ready - began, "loop_s": loop_s, "compared_s": compared_s}


def _plain(value: Any) -> Any:
    """JSON has no infinity: a baseline that never got there is None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Comparison:
    """Compares stored views of the coupled run with a reference as it passes their steps."""

    def __init__(self, spec: RunSpec, folder: Path, ranks: Ranks) -> None:
        """Args: spec: The case. folder: Run folder. ranks: Ranks."""
        self._ranks = ranks
        self._stored = views.ViewStore(folder, ranks.rank)
        self._steps = set(self._stored.steps())
        self._target = folder / REFERENCE
        if ranks.rank == 0:
            self._target.mkdir(exist_ok=True)
            for name in (OBSERVABLES, ERRORS):
                (self._target / name).unlink(missing_ok=True)
        ranks.bcast(None)
        self._own = views.ViewStore(self._target, ranks.rank)
        self._shown = _spread(sorted(self._steps), max(spec.output.views, 1))
        self._observables = Recorder(self._target / OBSERVABLES if ranks.rank == 0 else None)
        self._ring: deque[tuple[int, float, Vector]] = deque(maxlen=2 * WINDOW + 1)
        self._fluctuation = Fluctuation()
        self._names: tuple[str, ...] = ()
        self._particles = 0
        self._after = _first_hand_over(folder)
        self._sums: list[tuple[int, float, int, NDArray[np.float64]]] = []

    def after_step(self, simulation: Simulation) -> None:
        """Takes one step of the reference."""
        snapshot = simulation.snapshot()
        names = [spec.name for spec in with_role(tuple(simulation.fields()), "observable")]
        if names:
            values = {name: float(snapshot[name]) for name in names}
            self._observables.write(Observed(step=snapshot.step, time=snapshot.time, origin=0, values=values))
        if snapshot.step in self._shown:
            self._own.write(simulation, 0)
        self.look(simulation)

    def look(self, simulation: Simulation) -> None:
        """Compares what the present state of the reference makes comparable."""
        if not self._steps:
            return
        snapshot = simulation.snapshot()
        shown = views.view(simulation)
        self._names = tuple(shown.blocks)
        counts = [spec.shape[0] for spec in simulation.fields() if spec.kind == "particle"]
        self._particles = max(counts, default=0)
        values_now = self._vector({name: (block.array, block.ids) for name, block in shown.blocks.items()})
        self._ring.append((snapshot.step, snapshot.time, values_now))
        if snapshot.step >= self._after and snapshot.step % SAMPLING == 0:
            self._fluctuation.add(values_now)
        self._compare(snapshot.step - WINDOW)

    def finish(self) -> None:
        """Compares what is left at the end of the run and writes the errors."""
        last = self._ring[-1][0] if self._ring else 0
        for step in range(last - WINDOW + 1, last + 1):
            self._compare(step)
        self._observables.close()
        total = self._ranks.allreduce(np.array([self._fluctuation.total]), "sum")[0]
        if self._ranks.rank:
            return
        with (self._target / ERRORS).open("wb") as file:
            for step, when, origin, sums in self._sums:
                file.write(msgpack.packb(_row(step, when, origin, sums, float(total))))

    def _compare(self, step: int) -> None:
        """Sums of squares that give the error at a step, and as a function of a phase shift."""
        if step not in self._steps:
            return
        present = [values for at, _, values in self._ring if at == step]
        if not present:
            return
        self._steps.discard(step)
        stored = self._stored.read(step)
        coupled = self._vector({name: (stored[name], stored.get(f"{views.IDS}{name}")) for name in self._names})
        here = present[0]
        before = [v for at, _, v in self._ring if at == step - 1]
        after = [v for at, _, v in self._ring if at == step + 1]
        slope = (after[0] - before[0]) * np.float32(0.5) if before and after else np.zeros_like(here)
        bend = after[0] - 2 * here + before[0] if before and after else np.zeros_like(here)
        gap = coupled - here
        pairs = ((gap, gap), (gap, slope), (slope, slope), (gap, bend), (slope, bend), (bend, bend))
        products = [float(a @ b) for a, b in pairs]
        sums = self._ranks.allreduce(np.array(products), "sum")
        self._sums.append((step, float(stored["time"]), int(stored["origin"]), sums))

    def _vector(self, shown: Mapping[str, tuple[Array, Array | None]]) -> Vector:
        """All values of a view as one float32 vector; a copy, fields in name order. Collective.

        Particles stand by their ids, each rank with an equal part of them: where they are, and in which order, may
        differ between two runs.
        """
        parts = []
        for name in sorted(shown):
            values, ids = np.asarray(shown[name][0], dtype=np.float32), shown[name][1]
            if ids is not None:
                whole = np.zeros((self._particles, *values.shape[1:]))
                whole[ids] = values
                whole = self._ranks.allreduce(whole.ravel(), "sum")
                values = np.array_split(whole, self._ranks.size)[self._ranks.rank].astype(np.float32)
            parts.append(values.ravel())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _row(step: int, when: float, origin: int, sums: NDArray[np.float64], total: float) -> dict[str, Any]:
    """Error, the phase shift (in steps) that makes it smallest, and the error after removing that shift.

    The reference near a step is u(s) = u0 + s u' + s^2 u''/2 (three-point differences), so the squared distance of a
    state d away from u0 is a quartic in s with the given inner products as coefficients.
    """
    dd, dv, vv, db, vb, bb = sums
    quartic = np.poly1d([0.25 * bb, vb, vv - db, -2.0 * dv, dd])
    roots = [root.real for root in quartic.deriv().roots if abs(root.imag) < 1e-9 and abs(root.real) <= MOST_SHIFT]
    shift = min(roots, key=lambda s: float(quartic(s)), default=0.0)
    scale = total if total > 0.0 else 1.0
    return {
        "step": step,
        "time": when,
        "origin": origin,
        "error": math.sqrt(max(dd, 0.0) / scale),
        "shift": float(shift),
        "aligned": math.sqrt(max(float(quartic(shift)), 0.0) / scale),
    }


def _spread(steps: list[int], count: int) -> set[int]:
    if len(steps) <= count:
        return set(steps)
    return {steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)} if count > 1 else {steps[-1]}


def _first_hand_over(folder: Path) -> int:
    path = folder / TRACE
    if not path.exists():
        return 0
    return next((int(record["step"]) for record in read(path) if record["action"] == "learned"), 0)
