"""The van der Pol relaxation oscillator under the explicit Dormand-Prince 5(4) pair: stiff phases, sudden jumps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numba import njit

from coupler.contracts import Invariant
from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from schemas.fields import FieldSpec, Snapshot

Positive = Annotated[float, msgspec.Meta(gt=0)]

MOST_HALVINGS = 40
"""Times that one step may be halved before the integration is given up."""
STAGES = 6
"""New force evaluations of one step: the first of the seven stages is the last one of the step before."""
NOT_FINITE = 1e30
"""What is reported as the error of a step whose end is not finite."""


@njit(cache=True)  # type: ignore[untyped-decorator]
def acceleration(x: float, v: float, mu: float) -> float:
    """The right-hand side of x'' = mu (1 - x^2) x' - x."""
    return mu * (1.0 - x * x) * v - x


@njit(cache=True)  # type: ignore[untyped-decorator]
def attempt(x: float, v: float, a: float, h: float, mu: float, tolerance: float) -> tuple[float, float, float, float]:
    """One Dormand-Prince 5(4) step with `STAGES` new force evaluations.

    Source: Dormand and Prince, J. Comput. Appl. Math. 6 (1980) 19; error norm of Hairer, Norsett and Wanner, Solving
    Ordinary Differential Equations I, eq. II.4.11, with equal absolute and relative tolerance.

    Args:
        x: Position at the start.
        v: Velocity at the start.
        a: Acceleration at the start.
        h: Step.
        mu: Damping.
        tolerance: Absolute and relative tolerance.

    Returns:
        Position, velocity and acceleration at the end, and the embedded error over the tolerance, at most
        `NOT_FINITE`.
    """
    v2 = v + h * (a / 5.0)
    a2 = acceleration(x + h * (v / 5.0), v2, mu)
    v3 = v + h * (3.0 / 40.0 * a + 9.0 / 40.0 * a2)
    a3 = acceleration(x + h * (3.0 / 40.0 * v + 9.0 / 40.0 * v2), v3, mu)
    v4 = v + h * (44.0 / 45.0 * a - 56.0 / 15.0 * a2 + 32.0 / 9.0 * a3)
    a4 = acceleration(x + h * (44.0 / 45.0 * v - 56.0 / 15.0 * v2 + 32.0 / 9.0 * v3), v4, mu)
    b1, b2, b3, b4 = 19372.0 / 6561.0, -25360.0 / 2187.0, 64448.0 / 6561.0, -212.0 / 729.0
    v5 = v + h * (b1 * a + b2 * a2 + b3 * a3 + b4 * a4)
    a5 = acceleration(x + h * (b1 * v + b2 * v2 + b3 * v3 + b4 * v4), v5, mu)
    c1, c2, c3, c4, c5 = 9017.0 / 3168.0, -355.0 / 33.0, 46732.0 / 5247.0, 49.0 / 176.0, -5103.0 / 18656.0
    v6 = v + h * (c1 * a + c2 * a2 + c3 * a3 + c4 * a4 + c5 * a5)
    a6 = acceleration(x + h * (c1 * v + c2 * v2 + c3 * v3 + c4 * v4 + c5 * v5), v6, mu)
    d1, d3, d4, d5, d6 = 35.0 / 384.0, 500.0 / 1113.0, 125.0 / 192.0, -2187.0 / 6784.0, 11.0 / 84.0
    x7 = x + h * (d1 * v + d3 * v3 + d4 * v4 + d5 * v5 + d6 * v6)
    v7 = v + h * (d1 * a + d3 * a3 + d4 * a4 + d5 * a5 + d6 * a6)
    a7 = acceleration(x7, v7, mu)
    e1, e3, e4, e5 = 71.0 / 57600.0, -71.0 / 16695.0, 71.0 / 1920.0, -17253.0 / 339200.0
    e6, e7 = 22.0 / 525.0, -1.0 / 40.0
    error_x = h * (e1 * v + e3 * v3 + e4 * v4 + e5 * v5 + e6 * v6 + e7 * v7)
    error_v = h * (e1 * a + e3 * a3 + e4 * a4 + e5 * a5 + e6 * a6 + e7 * a7)
    scale_x = tolerance * (1.0 + max(abs(x), abs(x7)))
    scale_v = tolerance * (1.0 + max(abs(v), abs(v7)))
    error = math.sqrt(0.5 * ((error_x / scale_x) ** 2 + (error_v / scale_v) ** 2))
    finite = math.isfinite(error) and math.isfinite(x7) and math.isfinite(v7) and math.isfinite(a7)
    return x7, v7, a7, min(error, NOT_FINITE) if finite else NOT_FINITE


@njit(cache=True)  # type: ignore[untyped-decorator]
def advance(
    x: float, v: float, a: float, h: float, mu: float, tolerance: float, reject: bool
) -> tuple[float, float, float, float, int, int]:
    """Advances by exactly h: one step, or, where the error is above the tolerance, its two halves, and so on down.

    Args:
        x: Position at the start.
        v: Velocity at the start.
        a: Acceleration at the start.
        h: Time to advance.
        mu: Damping.
        tolerance: Absolute and relative tolerance.
        reject: Whether to halve at all.

    Returns:
        Position, velocity and acceleration at the end; the error of the undivided step over the tolerance; attempts
        made and attempts rejected. Not finite when `MOST_HALVINGS` were not enough.
    """
    undivided, attempts, rejected = -1.0, 0, 0
    # Steps of h / 2^level, of which `done` lie behind: the halves of a step before the next step of its size.
    level, done = 0, 0
    while level > 0 or done == 0:
        x1, v1, a1, error = attempt(x, v, a, h * 0.5**level, mu, tolerance)
        attempts += 1
        if undivided < 0.0:
            undivided = error
        if reject and error > 1.0:
            rejected += 1
            if level == MOST_HALVINGS:
                return math.nan, math.nan, math.nan, undivided, attempts, rejected
            level, done = level + 1, 2 * done
            continue
        x, v, a = x1, v1, a1
        done += 1
        while level > 0 and done % 2 == 0:
            level, done = level - 1, done // 2
    return x, v, a, undivided, attempts, rejected


def initial_state(mu: float, seed: int) -> tuple[float, float]:
    """Position and velocity near the limit cycle, in a slow phase chosen by the seed.

    The velocity is that of the slow manifold to leading order, mu (1 - x^2) v = x (Hairer and Wanner, Solving
    Ordinary Differential Equations II, section VI.1).
    """
    random = np.random.default_rng(seed)
    x = float(random.uniform(1.2, 2.0) * random.choice((-1.0, 1.0)))
    return x, x / (mu * (1.0 - x * x))


class _Saved(NamedTuple):
    step: int
    time: float
    dt: float
    x: float
    v: float
    a: float
    error: float
    evaluations: int
    rejections: int


class Relaxation:
    """The van der Pol oscillator, x'' = mu (1 - x^2) x' - x. For large mu, slow phases alternate with sudden jumps.

    In a slow phase the stability of the explicit integrator limits the step, in a jump its accuracy does, and the two
    limits lie orders of magnitude apart: nothing integrates it well with one fixed dt.

    `dt` is the simulated time of one coupling step, in Snapshot.dt as in `integrate`; it is integrated in `substeps`
    equal Dormand-Prince steps, one unless told otherwise. Snapshot.dt is the dt of the last coupling step (the
    `dt` setting before the first). A step whose embedded error is above the tolerance is rejected and replaced by its
    two halves (with `reject`), so a coupling step always advances by its dt.

    Fields: `x` and `v` (state); observables: `error`, the embedded error over the tolerance of the last coupling step
    as it was asked for, undivided (its largest substep; 0 before the first); `evaluations`, all force evaluations so
    far, those of rejected attempts included, those of steps that `restore` undid not; `rejections`, rejected attempts
    so far; `position`, which is x once more, so that the record of a run holds the trajectory. Every rank holds the
    whole state. Nothing is conserved.

    `adopt` takes over x and v and evaluates the force once, unless they are those held already; observables stay.
    """

    def __init__(
        self,
        *,
        ranks: Ranks,  # noqa: ARG002 (every rank computes the same)
        seed: int,
        mu: Positive,
        dt: Positive,
        tolerance: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 1e-6,
        substeps: Annotated[int, msgspec.Meta(gt=0)] = 1,
        reject: bool = True,
    ) -> None:
        """All quantities are dimensionless.

        Args:
            ranks: The ranks; each computes the same.
            seed: Seed of the initial state.
            mu: Damping.
            dt: Simulated time of the first coupling step.
            tolerance: Absolute and relative tolerance of the embedded error of a step.
            substeps: Integration steps in one coupling step.
            reject: Whether steps above the tolerance are rejected and halved; when false they count as they are.
        """
        self._mu, self._tolerance, self._substeps, self._reject = mu, tolerance, substeps, reject
        self._seed = seed
        self._step, self._time, self._dt = 0, 0.0, dt
        self._x, self._v = initial_state(mu, seed)
        self._a = acceleration(self._x, self._v, mu)
        self._error, self._evaluations, self._rejections = 0.0, 1, 0

    def fields(self) -> tuple[FieldSpec, ...]:
        """See `Simulation.fields`."""
        return (
            FieldSpec("x", "<f8", (), "1", "scalar"),
            FieldSpec("v", "<f8", (), "1", "scalar"),
            FieldSpec("position", "<f8", (), "1", "scalar", "observable"),
            FieldSpec("error", "<f8", (), "1", "scalar", "observable"),
            FieldSpec("evaluations", "<i8", (), "1", "scalar", "observable"),
            FieldSpec("rejections", "<i8", (), "1", "scalar", "observable"),
        )

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`."""
        return Snapshot.of(
            self._step,
            self._time,
            self._dt,
            x=self._x,
            v=self._v,
            position=self._x,
            error=self._error,
            evaluations=np.int64(self._evaluations),
            rejections=np.int64(self._rejections),
        )

    def integrate(self, dt: float, n: int) -> None:
        """See `Simulation.integrate`. Raises SimulationFailed when the state is no longer finite."""
        if not (math.isfinite(dt) and dt > 0):
            raise ValueError(f"dt is {dt}; a coupling step must be positive and finite; bound it in the guard")
        self._dt = dt
        for _ in range(n):
            self._error = 0.0
            for _ in range(self._substeps):
                self._integrate(dt / self._substeps)
            self._step += 1
            self._time += dt

    def judge(self, observed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See `SelfJudged.judge`: simulated time per force evaluation against a fixed dt and an adaptive controller."""
        from sim_clients.relaxation_baselines import compare

        return dict(compare(observed, mu=self._mu, seed=self._seed))

    def adopt(self, snapshot: Snapshot) -> None:
        """See `Simulation.adopt`."""
        x, v = float(snapshot["x"]), float(snapshot["v"])
        self._step, self._time, self._dt = snapshot.step, snapshot.time, snapshot.dt
        if (x, v) != (self._x, self._v):
            self._x, self._v, self._a = x, v, acceleration(x, v, self._mu)
            self._evaluations += 1

    def save(self) -> object:
        """See `Simulation.save`."""
        return _Saved(
            self._step,
            self._time,
            self._dt,
            self._x,
            self._v,
            self._a,
            self._error,
            self._evaluations,
            self._rejections,
        )

    def restore(self, token: object) -> None:
        """See `Simulation.restore`. Raises TypeError for a token that `save` did not make."""
        if not isinstance(token, _Saved):
            raise TypeError(f"restore got a {type(token).__name__}; give it a token made by save of a Relaxation")
        self._step, self._time, self._dt, self._x, self._v, self._a = token[:6]
        self._error, self._evaluations, self._rejections = token[6:]

    def invariants(self) -> Mapping[str, Invariant]:
        """See `Simulation.invariants`: there are none."""
        return {}

    def _integrate(self, h: float) -> None:
        x, v, a, error, attempts, rejected = advance(
            self._x, self._v, self._a, h, self._mu, self._tolerance, self._reject
        )
        self._evaluations += STAGES * attempts
        self._rejections += rejected
        self._error = max(self._error, error)
        if not (math.isfinite(x) and math.isfinite(v) and math.isfinite(a)):
            raise SimulationFailed(
                f"The relaxation oscillator left the finite numbers at time {self._time:g} with a step of {h:g} "
                f"({rejected} rejected attempts); use a smaller dt, or reject = true."
            )
        self._x, self._v, self._a = x, v, a
