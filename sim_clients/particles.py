"""Independent particles of unit mass on a line: what the small solvers share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.errors import SimulationFailed
from coupler.ranks import Ranks
from schemas.fields import Blend, Block, FieldSpec, Snapshot

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


class Particles(ABC):
    """This rank's share of n particles, with the energy of all of them.

    Fields: `position` and `velocity` (state, shape (n,)), `energy` (observable: potential plus kinetic, all particles).
    """

    def __init__(self, ranks: Ranks, n: int, dt: float, substeps: int, blend: Blend) -> None:
        """Args: ranks: Share the particles. n: Their number. dt: Of the first coupling step. substeps: In each. blend:
        Whether two states may be mixed.
        """
        self._ranks, self._n, self._substeps, self._blend = ranks, n, substeps, blend
        self._own = own_slice(n, ranks)
        self._step, self._time, self._dt, self._energy = 0, 0.0, checked_dt(dt), 0.0
        self._x, self._v = np.zeros((2, self._own.stop - self._own.start))

    @abstractmethod
    def _own_energy(self) -> float:
        """Potential plus kinetic energy of this rank's particles."""

    def fields(self) -> tuple[FieldSpec, ...]:
        """See `Simulation.fields`."""
        return (
            FieldSpec("position", "<f8", (self._n,), "1", blend=self._blend),
            FieldSpec("velocity", "<f8", (self._n,), "1", blend=self._blend),
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

    def adopt(self, snapshot: Snapshot) -> None:
        """See `Simulation.adopt`. Collective; raises SimulationFailed on all ranks when any state is not finite."""
        x, v = (own_copy(snapshot, name, self._x.size) for name in ("position", "velocity"))
        self._x, self._v = x, v
        self._step, self._time, self._dt = snapshot.step, snapshot.time, snapshot.dt
        self._measure()

    def _measure(self) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            own = np.array([self._own_energy()])
        self._energy = float(self._ranks.allreduce(own, "sum")[0])
        if not math.isfinite(self._energy):
            raise SimulationFailed(
                f"The energy of {type(self).__name__} is {self._energy} at step {self._step}, time {self._time:g}, "
                f"with dt {self._dt:g} in {self._substeps} substeps; it must be finite. Use a smaller dt or more "
                "substeps."
            )
