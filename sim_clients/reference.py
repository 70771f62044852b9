"""The reference: the same case all-direct, compared with a finished coupled run at every state that run stored."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler import connect, registry
from coupler.contracts import Ending, SelfJudged, Simulation
from coupler.ranks import Ranks
from coupler.trace import OBSERVABLES, TRACE, Observed, Recorder, read, trajectory
from schemas.fields import Array, with_role
from schemas.run import RunSpec
from sim_clients import views
from sim_clients.paced import Paced

log = logging.getLogger("sim_clients")
REFERENCE = "reference"
ERRORS = "errors.msgpack"
ROUNDING = 1e-6
"""Share of a step by which two times may differ and be one."""
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
    began = time.perf_counter()
    cls = registry.find("simulations", spec.simulation.use)
    given = {"ranks": ranks, "seed": spec.run.seed, "for_reference": True}
    simulation: Simulation = registry.construct(cls, spec.simulation.settings, **given)
    ready = time.perf_counter()
    if isinstance(simulation, SelfJudged) and (judged := simulation.judge(trajectory(read(folder / OBSERVABLES)))):
        plain = {name: _plain(value) for name, value in judged.items()}
        return {"status": "finished", "judgement": plain, "compared_s": None}
    terms, by_time = connect.terms(spec), connect.dt_is_chosen(spec)
    if by_time:  # a step number says nothing about the time then
        terms = msgspec.structs.replace(terms, end_time=_end(folder), last_step=sys.maxsize)
    comparison = Comparison(spec, folder, ranks, by_time=by_time)
    dt = spec.limits.dt or simulation.snapshot().dt
    comparison.begin(simulation)
    integrated_s, paced = 0.0, Paced(log.info if ranks.rank == 0 else lambda _: None)
    ended = simulation.ended if isinstance(simulation, Ending) else lambda: ""
    while not terms.over(now := simulation.snapshot()) and not ended():
        ahead = terms.cut(dt, now.time)
        comparison.before_step(simulation, ahead)
        resumed = time.perf_counter()
        simulation.integrate(ahead, 1)
        integrated_s += time.perf_counter() - resumed
        comparison.after_step(simulation)
        paced(f"step {now.step}, time {now.time:.4g}, all-direct")
    comparison.finish(simulation)
    compared_s = time.perf_counter() - ready - integrated_s
    return {"status": "finished", "startup_s": ready - began, "loop_s": integrated_s, "compared_s": compared_s}


def _end(folder: Path) -> float:
    """Simulated time at which the coupled run ended."""
    from sim_clients.__main__ import RESULT

    return float(json.loads((folder / RESULT).read_text(encoding="utf-8"))["time"])


def _plain(value: Any) -> Any:
    """JSON has no infinity: a baseline that never got there is None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Comparison:
    """Compares stored views of the coupled run with a reference as it passes their steps, or else their times."""

    def __init__(self, spec: RunSpec, folder: Path, ranks: Ranks, *, by_time: bool = False) -> None:
        """Args: spec: The case. folder: Run folder. ranks: Ranks. by_time: Whether both have steps of their own."""
        self._ranks, self._by_time = ranks, by_time
        self._stored = views.ViewStore(folder, ranks.rank)
        self._steps = set(self._stored.steps())
        self._due = deque(sorted((self._stored.time(step), step) for step in self._steps) if by_time else ())
        self._target = folder / REFERENCE
        if ranks.rank == 0:
            self._target.mkdir(exist_ok=True)
            for name in (OBSERVABLES, ERRORS):
                (self._target / name).unlink(missing_ok=True)
        ranks.bcast(None)
        self._own = views.ViewStore(self._target, ranks.rank)
        self._shown = _spread(sorted(self._steps), max(spec.output.views, 1))
        self._observables = Recorder(self._target / OBSERVABLES if ranks.rank == 0 else None)
        self._ring: deque[tuple[int, Vector]] = deque(maxlen=3)
        self._fluctuation = Fluctuation()
        self._names: tuple[str, ...] = ()
        self._particles = 0
        self._after = _first_hand_over(folder)
        self._sums: list[tuple[int, float, int, NDArray[np.float64]]] = []

    def begin(self, simulation: Simulation) -> None:
        """Takes the first state of the reference."""
        self._observe(simulation)
        if self._steps:
            self._ring.append((simulation.snapshot().step, self._values(simulation)))

    def before_step(self, simulation: Simulation, dt: float) -> None:
        """Compares at the times of stored states that lie within the next step: by a shorter one, which is undone."""
        now = simulation.snapshot().time
        while self._due and self._due[0][0] < now + dt * (1.0 - ROUNDING):
            when, step = self._due.popleft()
            token = simulation.save()
            if when - now > ROUNDING * dt:
                simulation.integrate(when - now, 1)
            self._look(simulation, step)
            simulation.restore(token)

    def after_step(self, simulation: Simulation) -> None:
        """Takes one step of the reference."""
        self._observe(simulation)
        if not self._steps:
            return
        step, values = simulation.snapshot().step, self._values(simulation)
        if self._by_time:
            self._fluctuation.add(values)
            return
        if step in self._shown:
            self._own.write(simulation, 0)
        if step >= self._after and step % SAMPLING == 0:
            self._fluctuation.add(values)
        self._ring.append((step, values))
        if len(self._ring) > 1:
            self._compare(*self._ring[-2], *self._rates(at=-2))

    def finish(self, simulation: Simulation) -> None:
        """Compares what is left at the end of the run and writes the errors."""
        while self._due:
            self._look(simulation, self._due.popleft()[1])
        if self._ring and not self._by_time:
            self._compare(*self._ring[-1], *self._rates(at=-1))
        self._observables.close()
        total = self._ranks.allreduce(np.array([self._fluctuation.total]), "sum")[0]
        if self._ranks.rank:
            return
        with (self._target / ERRORS).open("wb") as file:
            for step, when, origin, sums in self._sums:
                file.write(msgpack.packb(_row(step, when, origin, sums, float(total))))

    def _observe(self, simulation: Simulation) -> None:
        snapshot = simulation.snapshot()
        names = [spec.name for spec in with_role(tuple(simulation.fields()), "observable")]
        if names:
            values = {name: float(snapshot[name]) for name in names}
            self._observables.write(Observed(step=snapshot.step, time=snapshot.time, origin=0, values=values))

    def _look(self, simulation: Simulation, step: int) -> None:
        """Compares the present state with the stored one of that step, which is of the same time."""
        if step in self._shown:
            self._own.write(simulation, 0, step)
        values = self._values(simulation)
        self._compare(step, values, np.zeros_like(values), np.zeros_like(values))

    def _values(self, simulation: Simulation) -> Vector:
        shown = views.view(simulation)
        self._names = tuple(shown.blocks)
        counts = [spec.shape[0] for spec in simulation.fields() if spec.kind == "particle"]
        self._particles = max(counts, default=0)
        return self._vector({name: (block.array, block.ids) for name, block in shown.blocks.items()})

    def _rates(self, at: int) -> tuple[Vector, Vector]:
        """First and second difference of the reference at the last state but one (-2), or the last (-1), in steps."""
        if len(self._ring) < 3:
            return np.zeros_like(self._ring[-1][1]), np.zeros_like(self._ring[-1][1])
        before, middle, after = (values for _, values in self._ring)
        bend = after - 2 * middle + before
        slope = (after - before) * np.float32(0.5)
        return (slope, bend) if at == -2 else (slope + bend, bend)

    def _compare(self, step: int, here: Vector, slope: Vector, bend: Vector) -> None:
        """Sums of squares that give the error at a step, and as a function of a phase shift."""
        if step not in self._steps:
            return
        self._steps.discard(step)
        stored = self._stored.read(step)
        coupled = {name: (stored[name], stored.get(f"{views.IDS}{name}")) for name in self._names}
        gap = self._vector(coupled) - here
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
