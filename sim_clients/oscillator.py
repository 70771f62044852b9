"""Stiffening springs (Duffing, x'' = -k x - beta x^3) under velocity Verlet: the frequency grows with amplitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec
import numpy as np

from coupler.contracts import Invariant
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot
from sim_clients.particles import Floats, Particles, Positive, checked_dt, velocity_verlet


@dataclass(frozen=True, slots=True)
class _Saved:
    step: int
    time: float
    dt: float
    x: Floats
    v: Floats
    energy: float
    injected: float


class Oscillator(Particles):
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
        super().__init__(ranks, n, dt, substeps, "linear")
        self._seed, self._k, self._beta = seed, k, beta
        self._amplitude, self._episode_steps, self._injected = amplitude, episode_steps, 0.0
        self._x, self._v = self._start(0)
        self._measure()

    def fields(self) -> tuple[FieldSpec, ...]:
        """See `Simulation.fields`."""
        declared = super().fields()
        episode = FieldSpec("episode", "<f8", (), "1", kind="scalar", role="control")
        return (*declared, episode) if self._episode_steps else declared

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`."""
        shown = super().snapshot()
        if not self._episode_steps:
            return shown
        episode, done = divmod(self._step, self._episode_steps)
        blocks = {**shown.blocks, "episode": Block(np.array(float(episode % 2)))}
        return replace(shown, blocks=blocks, controls_until=self._time + (self._episode_steps - done - 0.5) * self._dt)

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
