"""What a learned dt is measured against on the relaxation oscillator: the best fixed dt and a PI controller.

Both are judged at equal error: a baseline counts with its cheapest run whose deviation from the exact solution is not
above that of the run it is compared with, whatever dt or tolerance it needs for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sim_clients.relaxation import STAGES, acceleration, attempt, initial_state

Floats = NDArray[np.float64]

EXACT = 1e-13
"""Tolerance of the solution that counts as exact."""
VANISHED = 1e-15
"""A step that is shorter than this share of the time does not get ahead: what follows counts as not finite."""


class Gains(NamedTuple):
    """Exponents and safety factor of a PI step size controller, h_new = h safety e_new^-alpha e_old^beta."""

    alpha: float
    beta: float
    safety: float


CONTROLLERS: Mapping[str, Gains] = {
    "dopri5": Gains(0.2 - 0.75 * 0.04, 0.04, 0.9),
    "gustafsson": Gains(0.7 / 5, 0.4 / 5, 0.9),
}
"""The constants of the code DOPRI5 (Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, appendix and
section II.4) and those of Gustafsson (Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.2)."""


class Path(NamedTuple):
    """An integration from time 0.

    Attributes:
        times: Times of the accepted steps, shape (n,), the first 0.
        x: Positions there, shape (n,).
        evaluations: Force evaluations, those of rejected steps included.
    """

    times: Floats
    x: Floats
    evaluations: int


class Cheapest(NamedTuple):
    """The cheapest run of a baseline at equal error.

    Attributes:
        name: Which controller, or "fixed dt".
        setting: Its tolerance or dt; NaN when none was good enough.
        evaluations: Force evaluations; infinite when none was good enough.
        deviation: Its deviation from the exact solution.
    """

    name: str
    setting: float
    evaluations: float
    deviation: float


def fixed_steps(x: float, v: float, mu: float, until: float, dt: float) -> Path:
    """Dormand-Prince steps of one dt, shortened so that a whole number of them ends at `until`; none is rejected."""
    n = max(1, math.ceil(until / dt - 1e-9))
    times = np.linspace(0.0, until, n + 1)
    return Path(times, _fixed(x, v, mu, until / n, n), 1 + STAGES * n)


def controlled_steps(
    x: float, v: float, mu: float, until: float, tolerance: float, gains: Gains = CONTROLLERS["dopri5"]
) -> Path:
    """Dormand-Prince steps under a PI controller.

    As DOPRI5 does it: dt changes by a factor of 0.2 to 10, does not grow after a rejected step, and a rejected step
    is repeated with the proportional part alone. The first step is 1e-3, which is neither favour nor burden.

    Args:
        x: Initial position.
        v: Initial velocity.
        mu: Damping.
        until: End.
        tolerance: Absolute and relative tolerance.
        gains: Constants of the controller.
    """
    times, xs, evaluations = _controlled(x, v, mu, until, tolerance, *gains)
    return Path(times, xs, evaluations)


def exact(x: float, v: float, mu: float, times: Floats, tolerance: float = EXACT) -> Floats:
    """Positions of the exact solution, shape (n,): the same pair at a tolerance that leaves it no visible error.

    Args:
        x: Position at `times[0]`.
        v: Velocity there.
        mu: Damping.
        times: Increasing times, shape (n,).
        tolerance: Absolute and relative tolerance.
    """
    found: Floats = _exact(x, v, mu, np.ascontiguousarray(times, dtype=np.float64), tolerance)
    return found


def deviation(times: Floats, x: Floats, mu: float, start: tuple[float, float]) -> float:
    """Largest |x - exact| over the given times (shapes (n,)), the first of which is 0; infinite if one is not finite.

    On the limit cycle a lag of time is the error that stays, and the jumps show it: there it is the lag times 4/3 mu.
    """
    off = float(np.abs(x - exact(*start, mu, times)).max())
    return off if math.isfinite(off) else math.inf


def cheapest_fixed(start: tuple[float, float], mu: float, until: float, error: float) -> Cheapest:
    """The largest fixed dt with at most that deviation, on a scan of ratio 1.05 from 1 / mu down to 1 / (125 mu)."""
    scan = (1.0 / mu * 1.05**-k for k in range(100))
    return _cheapest("fixed dt", scan, lambda dt: fixed_steps(*start, mu, until, dt), start, mu, error, first=True)


def cheapest_controlled(start: tuple[float, float], mu: float, until: float, error: float) -> Cheapest:
    """The cheapest PI-controlled run with at most that deviation: all `CONTROLLERS`, tolerances 1e-2 to 1e-10."""
    tolerances = [10.0 ** (-k / 4) for k in range(8, 41)]

    def best(name: str, gains: Gains) -> Cheapest:
        return _cheapest(name, tolerances, lambda t: controlled_steps(*start, mu, until, t, gains), start, mu, error)

    return min((best(name, gains) for name, gains in CONTROLLERS.items()), key=lambda run: run.evaluations)


def compare(observed: Sequence[Mapping[str, Any]], *, mu: float, seed: int) -> dict[str, float | str]:
    """Judges a finished run of `Relaxation` against both baselines, over the same time and at equal error.

    Args:
        observed: Its records of observables from step 0 on, as `coupler.trace.trajectory` gives them: each with
            `time` and `values`, of which `position` and `evaluations` are used.
        mu: Damping of the run.
        seed: Seed of the run.

    Returns:
        `per_evaluation`: simulated time per force evaluation; `deviation` of the run; `over_fixed` and
        `over_controller`: `per_evaluation` over that of the baseline; and what the baselines needed.

    Raises:
        ValueError: The records do not start at time 0, or are fewer than two.
    """
    if len(observed) < 2 or observed[0]["time"] != 0.0:
        raise ValueError("compare needs the observables of a whole run, from time 0 on; record every step")
    start = initial_state(mu, seed)
    times = np.array([record["time"] for record in observed])
    x = np.array([record["values"]["position"] for record in observed])
    evaluations, until = float(observed[-1]["values"]["evaluations"]), float(times[-1])
    error = deviation(times, x, mu, start)
    fixed = cheapest_fixed(start, mu, until, error)
    controlled = cheapest_controlled(start, mu, until, error)
    return {
        "time": until,
        "evaluations": evaluations,
        "per_evaluation": until / evaluations,
        "deviation": error,
        "over_fixed": fixed.evaluations / evaluations,
        "over_controller": controlled.evaluations / evaluations,
        "fixed_dt": fixed.setting,
        "fixed_evaluations": fixed.evaluations,
        "fixed_deviation": fixed.deviation,
        "controller": controlled.name,
        "controller_tolerance": controlled.setting,
        "controller_evaluations": controlled.evaluations,
        "controller_deviation": controlled.deviation,
    }


def _cheapest(
    name: str,
    settings: Iterable[float],
    run: Callable[[float], Path],
    start: tuple[float, float],
    mu: float,
    error: float,
    first: bool = False,
) -> Cheapest:
    best = Cheapest(name, math.nan, math.inf, math.inf)
    for setting in settings:
        path = run(setting)
        if path.evaluations >= best.evaluations:
            continue
        off = deviation(path.times, path.x, mu, start)
        if off <= error:
            best = Cheapest(name, setting, path.evaluations, off)
            if first:
                return best
    return best


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fixed(x: float, v: float, mu: float, h: float, n: int) -> Floats:
    xs = np.empty(n + 1)
    xs[0], a = x, acceleration(x, v, mu)
    for i in range(n):
        x, v, a, _ = attempt(x, v, a, h, mu, 1.0)
        xs[i + 1] = x
    return xs


@njit(cache=True)  # type: ignore[untyped-decorator]
def _controlled(
    x: float, v: float, mu: float, until: float, tolerance: float, alpha: float, beta: float, safety: float
) -> tuple[Floats, Floats, int]:
    times, xs = [0.0], [x]
    t, dt, old, evaluations, repeated = 0.0, 1e-3, 1e-4, 1, False
    a = acceleration(x, v, mu)
    while t < until:
        last = dt >= until - t
        h = until - t if last else dt
        x1, v1, a1, error = attempt(x, v, a, h, mu, tolerance)
        evaluations += STAGES
        wanted = max(error, 1e-12) ** alpha / safety
        if error > 1.0:
            dt, repeated = h / min(5.0, wanted), True
            if dt < VANISHED * (1.0 + t):
                times.append(until)
                xs.append(np.nan)
                break
            continue
        growth = 1.0 / max(0.1, min(5.0, wanted / old**beta))
        dt = h * (min(growth, 1.0) if repeated else growth)
        t = until if last else t + h
        x, v, a, old, repeated = x1, v1, a1, max(error, 1e-4), False
        times.append(t)
        xs.append(x)
    return np.array(times), np.array(xs), evaluations


@njit(cache=True)  # type: ignore[untyped-decorator]
def _exact(x: float, v: float, mu: float, times: Floats, tolerance: float) -> Floats:
    xs = np.empty(times.size)
    xs[0], t, dt = x, times[0], 1e-4
    a = acceleration(x, v, mu)
    for i in range(1, times.size):
        while t < times[i]:
            last = dt >= times[i] - t
            h = times[i] - t if last else dt
            x1, v1, a1, error = attempt(x, v, a, h, mu, tolerance)
            factor = min(5.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
            if error > 1.0:
                dt = h * factor
                if dt < VANISHED * (1.0 + t):
                    xs[i:] = np.nan
                    return xs
                continue
            t = times[i] if last else t + h
            x, v, a = x1, v1, a1
            if not last or factor < 1.0:
                dt = h * factor
        xs[i] = x
    return xs
