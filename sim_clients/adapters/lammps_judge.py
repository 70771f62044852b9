"""What a chosen dt is measured against in LAMMPS: the best fixed dt, an oracle, and LAMMPS's own `fix dt/reset`.

All are judged at equal simulated time and at one tolerance of the drift in each window (see `WindowDrift`). A baseline
counts with the largest setting on a ladder that keeps the tolerance over the whole run. Wall times hold everything from
the opening of LAMMPS to the last step; the baselines run on the same ranks, after the coupled run and its server.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from coupler.contracts import Simulation
from coupler.errors import StepFailed
from sim_clients.adapters.lammps_course import Course
from sim_clients.adapters.lammps_drift import WindowDrift
from sim_clients.adapters.lammps_engine import Engine
from sim_clients.paced import Paced

WALL, STEPS = "wall", "md_steps"
"""Observables of the adapter: seconds since it was made, and MD steps made since then, those that were undone too."""
OURS = (WALL, STEPS)
WIDE = 1.3
"""First ratio between settings that are tried."""
FINE = 1.06
"""Ratio at which the search for the largest setting ends."""
MOST_TRIES = 16
"""Settings tried at most before one keeps the tolerance and one does not."""
SHOWN = 400
"""Points of a curve of dt over time."""
SPEEDS = 4.5
"""Largest speed of an atom over the thermal speed per direction, to begin the search for Xmax with."""


class Case(NamedTuple):
    """What is compared.

    Attributes:
        engine: Opens an instance.
        course: Makes a course through the deck.
        steered: Makes the adapter.
        invariant: Thermo keyword of the conserved energy.
        every: MD steps between looks at it.
        tolerance: Largest drift in a window.
        windows: Windows of equal simulated time.
        say: Takes a line about how far it is.
    """

    engine: Callable[[], Engine]
    course: Callable[[], Course]
    steered: Callable[[], Simulation]
    invariant: str
    every: int
    tolerance: float
    windows: int
    say: Paced


class Result(NamedTuple):
    """A whole run.

    Attributes:
        setting: Its dt or Xmax; 0 for what has none.
        wall_s: Wall time.
        steps: MD steps, those that were undone too.
        drift: Largest drift of any window.
        curve: Simulated time and dt of the MD steps.
    """

    setting: float
    wall_s: float
    steps: int
    drift: float
    curve: list[tuple[float, float]]


def compare(observed: Sequence[Mapping[str, Any]], case: Case) -> dict[str, Any]:
    """Judges a run by its observables.

    Args:
        observed: Its trajectory; the values hold the invariant, `ke`, `wall` and `md_steps`.
        case: What to compare with.

    Returns:
        Figures; with `table`, a row for each run, and `curves`, its dt over time.

    Raises:
        ValueError: The run has no steps.
    """
    if len(observed) < 2:
        raise ValueError("the run has no steps to judge")
    end = float(observed[-1]["time"])
    own = _own(observed, case, end)
    least = _least(own.curve, end, case.windows)
    hottest = max(record["values"]["ke"] for record in observed)
    fixed = _largest(lambda dt: _plain(case, end, f"timestep {dt!r}", dt, f"fixed dt {dt:.4g}"), least)
    first = SPEEDS * (fixed or own).curve[-1][1] * (2.0 / 3.0 * hottest) ** 0.5
    tries = "fix judged all dt/reset 1 NULL NULL {!r} units box"
    reset = _largest(lambda x: _plain(case, end, tries.format(x), x, f"fix dt/reset, Xmax {x:.4g}"), first)
    runs = {"coupled": own, "fixed dt": fixed, "oracle": _oracle(case, end, least), "fix dt/reset": reset}
    found: dict[str, Any] = {"time": end, "wall_s": own.wall_s, "drift": own.drift, "tolerance": case.tolerance}
    for name, key in (("fixed dt", "over_fixed"), ("oracle", "over_oracle"), ("fix dt/reset", "over_dt_reset")):
        baseline = runs[name]
        found[key] = None if baseline is None else baseline.wall_s / own.wall_s
    rows = {name: result for name, result in runs.items() if result is not None}
    found["table"] = [
        {"run": name, "setting": r.setting or None, "MD steps": r.steps, "wall time, s": r.wall_s, "drift": r.drift}
        for name, r in rows.items()
    ]
    found["curves"] = {name: _thinned(result.curve) for name, result in rows.items()}
    return found


def _least(curve: Sequence[tuple[float, float]], end: float, windows: int) -> float:
    """The smallest mean dt of a window: where to begin the search for the best fixed one."""
    sums = [[0.0, 0] for _ in range(windows)]
    for now, dt in curve:
        window = sums[min(int(now / end * windows), windows - 1)]
        window[0], window[1] = window[0] + dt, window[1] + 1
    first = next(i for i, (_, count) in enumerate(sums) if count)
    # The first window holds the way from the deck's own dt to what was learned.
    means = [total / count for total, count in sums[first + 1 :] if count] or [sums[first][0] / sums[first][1]]
    return float(min(means))


def _own(observed: Sequence[Mapping[str, Any]], case: Case, end: float) -> Result:
    drift, curve = WindowDrift(end / case.windows), []
    for before, record in zip([observed[0], *observed], observed, strict=False):
        values = record["values"]
        drift.add(record["time"], values[case.invariant], values["ke"])
        if record["time"] > before["time"]:
            curve.append((float(record["time"]), (record["time"] - before["time"]) / case.every))
    last = observed[-1]["values"]
    return Result(0.0, float(last[WALL]), int(last[STEPS]), max(drift.worst), curve)


def _largest(run: Callable[[float], Result | None], first: float) -> Result | None:
    """The run with the largest setting that keeps the tolerance, looked for from `first` on; None without one."""
    best, too_large, setting = None, 0.0, first
    for _ in range(MOST_TRIES):
        found = run(setting)
        best, too_large = (found or best), (too_large if found else setting)
        if best is not None and too_large:
            break
        setting = setting * WIDE if found else setting / WIDE
    if best is None:
        return None
    while too_large > FINE * best.setting:
        middle = (too_large * best.setting) ** 0.5
        found = run(middle)
        best, too_large = (found or best), (too_large if found else middle)
    return best


def _plain(case: Case, end: float, command: str, setting: float, what: str) -> Result | None:
    """LAMMPS alone, after a command; None as soon as a window misses the tolerance or LAMMPS stops."""
    began = time.perf_counter()
    engine, course = case.engine(), case.course()
    try:
        course.begin(engine)
        engine.command(command)
        course.set_up(engine)
        drift, curve, steps, now = WindowDrift(end / case.windows), [], 0, 0.0
        while now < end * (1.0 - 1e-9):
            course.advance(engine, case.every)
            now, steps = engine.value("time"), steps + case.every
            drift.add(now, engine.value(case.invariant), engine.value("ke"))
            curve.append((now, float(engine.number("dt"))))
            case.say(f"{what}: time {now:.4g} of {end:.4g}")
            if not drift.keeps(case.tolerance):
                case.say.now(f"{what}: misses the tolerance at time {now:.4g}")
                return None
        case.say.now(f"{what}: keeps the tolerance")
        return Result(setting, time.perf_counter() - began, steps, max(drift.worst), curve)
    except StepFailed:
        return None
    finally:
        engine.close()


def _oracle(case: Case, end: float, first: float) -> Result | None:
    """Each window with the largest dt that keeps the tolerance in it, found by trying; only the last try counts.

    None where a window has no such dt.
    """
    began = time.perf_counter()
    steered = case.steered()
    wall_s = time.perf_counter() - began
    curve: list[tuple[float, float]] = []
    dt, worst = first, 0.0
    for window in range(case.windows):
        token, until = steered.save(), end * (window + 1) / case.windows
        case.say(f"oracle: window {window + 1} of {case.windows}")
        best = _largest(lambda h, until=until, token=token: _window(case, steered, token, until, h), dt)  # type: ignore[misc]
        if best is None:
            return None
        steered.restore(token)
        again = _window(case, steered, token, until, best.setting) or best
        dt, wall_s, worst = best.setting, wall_s + again.wall_s, max(worst, again.drift)
        curve += again.curve
    return Result(0.0, wall_s, case.every * len(curve), worst, curve)


def _window(case: Case, steered: Simulation, token: object, until: float, dt: float) -> Result | None:
    steered.restore(token)
    drift, curve = WindowDrift(until), []
    began = time.perf_counter()
    try:
        now = steered.snapshot()
        while until - now.time > 1e-9 * until:
            drift.add(now.time, float(now[case.invariant]), float(now["ke"]))
            steered.integrate(min(case.every * dt, until - now.time), 1)
            now = steered.snapshot()
            curve.append((now.time, dt))  # not that of the last step, which is cut to end with the window
            if not drift.keeps(case.tolerance):
                return None
        drift.add(now.time, float(now[case.invariant]), float(now["ke"]))
    except StepFailed:
        return None
    wall_s = time.perf_counter() - began
    return Result(dt, wall_s, case.every * len(curve), drift.worst[0], curve) if drift.keeps(case.tolerance) else None


def _thinned(curve: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    every = max(1, len(curve) // SHOWN)
    times, dts = zip(*curve[::every], strict=True)
    return {"time": list(times), "dt": list(dts)}
