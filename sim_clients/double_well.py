"""Particles in the double well U = x^4/4 - x^2/2: deterministic (velocity Verlet), or with Langevin noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np

from coupler.contracts import Invariant
from coupler.ranks import Ranks
from sim_clients.particles import Floats, Particles, Positive, checked_dt, velocity_verlet

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


class DoubleWell(Particles):
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
        super().__init__(ranks, n, dt, substeps, "never")
        self._temperature, self._friction = temperature, friction
        self._noise = np.random.default_rng([seed, 1])
        self._x = np.random.default_rng([seed, 0]).uniform(*start, n)[self._own].copy()
        self._measure()

    def integrate(self, dt: float, n: int) -> None:
        """See `Simulation.integrate`. Collective; raises SimulationFailed on all ranks when any is no longer finite."""
        self._dt = checked_dt(dt)
        for _ in range(n):
            with np.errstate(over="ignore", invalid="ignore"):
                self._advance(dt / self._substeps)
            self._step += 1
            self._time += dt
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
        changed: Floats = kept * self._v + math.sqrt((1.0 - kept * kept) * self._temperature) * drawn
        return changed

    def _own_energy(self) -> float:
        return float(np.sum(0.5 * self._v * self._v + potential(self._x)))
