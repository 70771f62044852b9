"""Stiffening springs (Duffing, x'' = -k x - beta x^3) under velocity Verlet: the frequency grows with amplitude."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.contracts import Invariant
from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot

Floats = NDArray[np.float64]
Positive = Annotated[float, msgspec.Meta(gt=0)]


def velocity_verlet(
    force: Callable[[Floats], Floats], x: Floats, v: Floats, h: float, steps: int
) -> tuple[Floats, Floats]:
    """Advances unit masses by velocity Verlet (Swope et al., J. Chem. Phys. 76 (1982) 637); symplectic, second order.

    Args:
        force: Force by position, shape (n,) to shape (n,).
        x: Positions, shape (n,); left as they are.
        v: Velocities, shape (n,); left as they are.
        h: Time of one step.
        steps: Number of steps, at least 1.

    Returns:
        New positions and velocities, shape (n,) each.
    """
    a = force(x)
    for _ in range(steps):
        v = v + 0.5 * h * a
        x = x + h * v
        a = force(x)
        v = v + 0.5 * h * a
    return x, v


def own_slice(n: int, ranks: Ranks) -> slice:
    """This rank's part of n particles: nearly equal shares, larger ones first, so with n = 1 rank 0 holds the one."""
    share, extra = divmod(n, ranks.size)
    start = ranks.rank * share + min(ranks.rank, extra)
    return slice(start, start + share + (ranks.rank < extra))


def own_copy(snapshot: Snapshot, name: str, n: int) -> Floats:
    """A float64 copy of the named field of an adopted Snapshot, shape (n,); ValueError when it has another shape."""
    array = np.array(snapshot[name], dtype=np.float64)
    if array.shape != (n,):
        raise ValueError(
            f"adopt got {name!r} of shape {array.shape}; this rank holds shape {(n,)}; give it its own block"
        )
    return array


def checked_dt(dt: float) -> float:
    """The dt given to integrate, when it can be used; ValueError otherwise."""
    if not (math.isfinite(dt) and dt > 0):
        raise ValueError(f"dt is {dt}; a coupling step must be positive and finite; bound it in the guard")
    return dt


@dataclass(frozen=True, slots=True)
class _Saved:
    step: int
    time: float
    dt: float
    x: Floats
    v: Floats
    energy: float
    injected: float


class Oscillator:
    """n independent stiffening springs of unit mass, released at rest from amplitudes drawn from the seed.

    A trajectory has angular frequency close to sqrt(k + 3/4 beta A^2), so no affine map serves two amplitudes. Fields:
    `position` and `velocity` (state), `energy` (observable: potential plus kinetic, all springs). States blend
    linearly: the energy is convex, so a mix of two states has at most the mean of their energies.

    With `episode_steps` = E every step m E starts a new trajectory: at the end of the coupling step before it the
    springs are stopped and released from new amplitudes, a function of seed and m alone. No model can foresee this, so
    it is declared as a control: `episode` holds m modulo 2 (both values are soon in the trained range), and
    `controls_until` is half a dt before step m E. That makes m E - 1 the last step a horizon may reach, whatever the
    rounding of time, and (m E - 1, m E) the only pair of steps with the change in between. E counts steps, not time:
    where dt changes, the declared time of the restart moves with it.

    `invariants` holds the energy less what restarts put in, which exact dynamics conserves throughout (as `econserve`
    in molecular dynamics). `adopt` takes over the full state; what restarts put in so far stays as it is.
    """

    def __init__(
        self,
        *,
        ranks: Ranks,
        seed: int,
        k: Positive,
        beta: Annotated[float, msgspec.Meta(ge=0)],
        amplitude: tuple[Positive, Positive],
        dt: Positive,
        n: Annotated[int, msgspec.Meta(gt=0)] = 1,
        substeps: Annotated[int, msgspec.Meta(gt=0)] = 20,
        episode_steps: Annotated[int, msgspec.Meta(ge=0)] = 0,
    ) -> None:
        """All quantities are dimensionless.

        Args:
            ranks: The ranks that share the springs.
            seed: Seed of the amplitudes, not negative.
            k: Linear stiffness.
            beta: Cubic stiffness.
            amplitude: Lowest and highest amplitude; drawn uniformly in between, the same on any number of ranks.
            dt: Simulated time of the first coupling step.
            n: Number of springs.
            substeps: Velocity Verlet steps in one coupling step; dt / substeps must stay below 2 / frequency.
            episode_steps: Coupling steps between restarts; 0 for none.

        Raises:
            ValueError: When the lowest amplitude is above the highest.
        """
        if not amplitude[0] <= amplitude[1]:
            raise ValueError(
                f"amplitude is {list(amplitude)}; the first number is the lowest and may not exceed the second"
            )
        self._ranks, self._seed, self._k, self._beta = ranks, seed, k, beta
        self._amplitude, self._n, self._own = amplitude, n, own_slice(n, ranks)
        self._substeps, self._episode_steps = substeps, episode_steps
        self._step, self._time, self._dt, self._injected = 0, 0.0, checked_dt(dt), 0.0
        self._x, self._v = self._start(0)
        self._measure()

    def fields(self) -> tuple[FieldSpec, ...]:
        """See `Simulation.fields`."""
        declared = (
            FieldSpec("position", "<f8", (self._n,), "1", blend="linear"),
            FieldSpec("velocity", "<f8", (self._n,), "1", blend="linear"),
            FieldSpec("energy", "<f8", (), "1", kind="scalar", role="observable"),
        )
        episode = FieldSpec("episode", "<f8", (), "1", kind="scalar", role="control")
        return (*declared, episode) if self._episode_steps else declared

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`."""
        offset = (self._own.start,)
        blocks = {
            "position": Block(self._x, offset),
            "velocity": Block(self._v, offset),
            "energy": Block(np.array(self._energy)),
        }
        until = math.inf
        if self._episode_steps:
            episode, done = divmod(self._step, self._episode_steps)
            blocks["episode"] = Block(np.array(float(episode % 2)))
            until = self._time + (self._episode_steps - done - 0.5) * self._dt
        return Snapshot(self._step, self._time, self._dt, blocks, until)

    def integrate(self, dt: float, n: int) -> None:
        """See `Simulation.integrate`. Collective; raises SimulationFailed on all ranks when any is no longer finite."""
        self._dt = checked_dt(dt)
        for _ in range(n):
            with np.errstate(over="ignore", invalid="ignore"):
                self._x, self._v = velocity_verlet(self._force, self._x, self._v, dt / self._substeps, self._substeps)
            self._step += 1
            self._time += dt
            self._measure()
            if self._episode_steps and self._step % self._episode_steps == 0:
                before = self._own_energy()
                self._x, self._v = self._start(self._step // self._episode_steps)
                self._measure()
                self._injected += self._own_energy() - before

    def adopt(self, snapshot: Snapshot) -> None:
        """See `Simulation.adopt`. Collective; raises SimulationFailed on all ranks when any state is not finite."""
        x, v = (own_copy(snapshot, name, self._x.size) for name in ("position", "velocity"))
        self._x, self._v = x, v
        self._step, self._time, self._dt = snapshot.step, snapshot.time, snapshot.dt
        self._measure()

    def save(self) -> object:
        """See `Simulation.save`."""
        x, v = self._x.copy(), self._v.copy()
        return _Saved(self._step, self._time, self._dt, x, v, self._energy, self._injected)

    def restore(self, token: object) -> None:
        """See `Simulation.restore`. Raises TypeError for a token that `save` did not make."""
        if not isinstance(token, _Saved):
            raise TypeError(f"restore got a {type(token).__name__}; give it a token made by save of an Oscillator")
        self._step, self._time, self._dt = token.step, token.time, token.dt
        self._x, self._v = token.x.copy(), token.v.copy()
        self._energy, self._injected = token.energy, token.injected

    def invariants(self) -> Mapping[str, Invariant]:
        """See `Simulation.invariants`: this rank's energy, less what restarts put in."""
        return {"energy": Invariant(self._own_energy() - self._injected)}

    def _force(self, x: Floats) -> Floats:
        return -x * (self._k + self._beta * x * x)

    def _start(self, episode: int) -> tuple[Floats, Floats]:
        low, high = self._amplitude
        # Every rank draws all amplitudes, so that they do not depend on how many ranks there are.
        drawn = np.random.default_rng([self._seed, episode]).uniform(low, high, self._n)
        own = drawn[self._own].copy()
        return own, np.zeros(own.size)

    def _own_energy(self) -> float:
        x2 = self._x * self._x
        return float(np.sum(0.5 * self._v * self._v + 0.5 * self._k * x2 + 0.25 * self._beta * x2 * x2))

    def _measure(self) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            own = np.array([self._own_energy()])
        self._energy = float(self._ranks.allreduce(own, "sum")[0])
        if not math.isfinite(self._energy):
            raise SimulationFailed(
                f"The oscillator's energy is {self._energy} at step {self._step}, time {self._time:g}, with dt "
                f"{self._dt:g} in {self._substeps} substeps; it must be finite. Use a smaller dt or more substeps."
            )
