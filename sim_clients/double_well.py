"""Particles in the double well U = x^4/4 - x^2/2: deterministic (velocity Verlet), or with Langevin noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from coupler.contracts import Invariant
from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot
from sim_clients.oscillator import Floats, Positive, checked_dt, own_copy, own_slice, velocity_verlet

NotNegative = Annotated[float, msgspec.Meta(ge=0)]


def force(x: Floats) -> Floats:
    """The force -dU/dx = x - x^3 (shape (n,) to shape (n,)); zero at the wells -1 and 1 and at the barrier 0."""
    return x - x * x * x


def potential(x: Floats) -> Floats:
    """U = x^4/4 - x^2/2 (shape (n,) to shape (n,)): -1/4 in the wells, 0 on the barrier."""
    x2 = x * x
    return 0.25 * x2 * x2 - 0.5 * x2


@dataclass(frozen=True, slots=True)
class _Saved:
    step: int
    time: float
    dt: float
    x: Floats
    v: Floats
    energy: float
    noise: dict[str, Any]


class DoubleWell:
    """n independent particles of unit mass in U = x^4/4 - x^2/2, released at rest from positions drawn from the seed.

    The one-dimensional double well of Kadupitiya, Fox and Jadhao (arXiv 2004.06493), whose figures start at x = -2.
    Fields: `position` and `velocity` (state), `energy` (observable: potential plus kinetic, all of them). States never
    blend: the mean of two states in different wells lies on the barrier, where neither of them was.

    At temperature 0 the motion is deterministic and `invariants` holds the energy. Above it, each velocity Verlet step
    stands between two half-steps of a Langevin thermostat with Boltzmann constant 1 (Bussi and Parrinello, Phys. Rev. E
    75 (2007) 056707) and nothing is conserved: `invariants` is empty. The noise is a stream of its own, part of `save`
    but not of a Snapshot: `adopt` takes over position and velocity in full and leaves the noise where it is.
    """

    def __init__(
        self,
        *,
        ranks: Ranks,
        seed: int,
        start: tuple[float, float],
        dt: Positive,
        n: Annotated[int, msgspec.Meta(gt=0)] = 1,
        substeps: Annotated[int, msgspec.Meta(gt=0)] = 20,
        temperature: NotNegative = 0.0,
        friction: NotNegative = 0.0,
    ) -> None:
        """All quantities are dimensionless.

        Args:
            ranks: The ranks that share the particles.
            seed: Seed of starts and noise, not negative.
            start: Lowest and highest starting position; drawn uniformly in between, the same on any number of ranks.
            dt: Simulated time of the first coupling step.
            n: Number of particles.
            substeps: Integration steps in one coupling step.
            temperature: Temperature of the Langevin thermostat; 0 for none.
            friction: Rate of the thermostat, inverse time; given exactly when there is a temperature.

        Raises:
            ValueError: When the lowest start is above the highest, or one of temperature and friction stands alone.
        """
        if not start[0] <= start[1]:
            raise ValueError(f"start is {list(start)}; the first number is the lowest and may not exceed the second")
        if (temperature > 0) != (friction > 0):
            raise ValueError(
                f"temperature is {temperature} and friction is {friction}; "
                "a Langevin thermostat needs both above 0, deterministic motion needs both 0"
            )
        self._ranks, self._n, self._own, self._substeps = ranks, n, own_slice(n, ranks), substeps
        self._temperature, self._friction = temperature, friction
        self._noise = np.random.default_rng([seed, 1])
        self._step, self._time, self._dt = 0, 0.0, checked_dt(dt)
        self._x = np.random.default_rng([seed, 0]).uniform(*start, n)[self._own].copy()
        self._v = np.zeros(self._x.size)
        self._measure()

    def fields(self) -> tuple[FieldSpec, ...]:
        """See `Simulation.fields`."""
        return (
            FieldSpec("position", "<f8", (self._n,), "1"),
            FieldSpec("velocity", "<f8", (self._n,), "1"),
            FieldSpec("energy", "<f8", (), "1", kind="scalar", role="observable"),
        )

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`."""
        offset = (self._own.start,)
        blocks = {
            "position": Block(self._x, offset),
            "velocity": Block(self._v, offset),
            "energy": Block(np.array(self._energy)),
        }
        return Snapshot(self._step, self._time, self._dt, blocks)

    def integrate(self, dt: float, n: int) -> None:
        """See `Simulation.integrate`. Collective; raises SimulationFailed on all ranks when any is no longer finite."""
        self._dt = checked_dt(dt)
        for _ in range(n):
            with np.errstate(over="ignore", invalid="ignore"):
                self._advance(dt / self._substeps)
            self._step += 1
            self._time += dt
            self._measure()

    def adopt(self, snapshot: Snapshot) -> None:
        """See `Simulation.adopt`. Collective; raises SimulationFailed on all ranks when any state is not finite."""
        x, v = (own_copy(snapshot, name, self._x.size) for name in ("position", "velocity"))
        self._x, self._v = x, v
        self._step, self._time, self._dt = snapshot.step, snapshot.time, snapshot.dt
        self._measure()

    def save(self) -> object:
        """See `Simulation.save`."""
        x, v = self._x.copy(), self._v.copy()
        return _Saved(self._step, self._time, self._dt, x, v, self._energy, dict(self._noise.bit_generator.state))

    def restore(self, token: object) -> None:
        """See `Simulation.restore`. Raises TypeError for a token that `save` did not make."""
        if not isinstance(token, _Saved):
            raise TypeError(f"restore got a {type(token).__name__}; give it a token made by save of a DoubleWell")
        self._step, self._time, self._dt = token.step, token.time, token.dt
        self._x, self._v, self._energy = token.x.copy(), token.v.copy(), token.energy
        self._noise.bit_generator.state = token.noise

    def invariants(self) -> Mapping[str, Invariant]:
        """See `Simulation.invariants`: this rank's energy at temperature 0, nothing above."""
        return {} if self._temperature > 0 else {"energy": Invariant(self._own_energy())}

    def _advance(self, h: float) -> None:
        if self._temperature == 0:
            self._x, self._v = velocity_verlet(force, self._x, self._v, h, self._substeps)
            return
        for _ in range(self._substeps):
            self._v = self._thermostatted(0.5 * h)
            self._x, self._v = velocity_verlet(force, self._x, self._v, h, 1)
            self._v = self._thermostatted(0.5 * h)

    def _thermostatted(self, time: float) -> Floats:
        kept = math.exp(-self._friction * time)
        # Every rank draws the noise of all particles, so that it does not depend on how many ranks there are.
        drawn = self._noise.standard_normal(self._n)[self._own]
        return kept * self._v + math.sqrt((1.0 - kept * kept) * self._temperature) * drawn

    def _own_energy(self) -> float:
        return float(np.sum(0.5 * self._v * self._v + potential(self._x)))

    def _measure(self) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            own = np.array([self._own_energy()])
        self._energy = float(self._ranks.allreduce(own, "sum")[0])
        if not math.isfinite(self._energy):
            raise SimulationFailed(
                f"The double well's energy is {self._energy} at step {self._step}, time {self._time:g}, with dt "
                f"{self._dt:g} in {self._substeps} substeps; it must be finite. Use a smaller dt or more substeps."
            )
