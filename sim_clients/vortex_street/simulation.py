"""The wake of a cylinder, solved by the lattice Boltzmann method on slabs over MPI ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.contracts import Invariant
from coupler.errors import SchemaMismatch, SimulationFailed
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot, misfit
from sim_clients.vortex_street import geometry, initial, kernels, lattice
from sim_clients.vortex_street.halo import Halo
from sim_clients.vortex_street.settings import Flow

_DTYPES = {"double": "<f8", "single": "<f4"}


@dataclass(frozen=True)
class _Saved:
    """A saved instant of one rank, complete."""

    step: int
    time: float
    dt: float
    populations: NDArray[Any]
    observables: NDArray[np.float64]
    gained: NDArray[np.float64]


class VortexStreet:
    """Two-dimensional flow past a cylinder, D2Q9 lattice Boltzmann. A `Simulation` and `Viewable`.

    Time is counted in lattice steps and length in cells, so a coupling step of `substeps` lattice steps has
    dt = substeps. The flow comes in at the left at `inflow_speed`, leaves at the right through a sponge at fixed mean
    pressure, and starts impulsively with a small asymmetric perturbation drawn from `seed`.

    Fields: `populations` (state), shape (nx, 9, ny): for each column its nine populations, in the order of
    `lattice.VELOCITIES`, less the weights of the fluid at rest; zero inside the cylinder. Each rank holds whole
    columns, one contiguous C array. The populations are the whole state: `adopt(snapshot())` continues bitwise.
    `lift` and `drag` (observables): force on the cylinder per unit depth over 1/2 density inflow_speed^2 diameter
    (the speed before the gust), by momentum exchange at the instant of the Snapshot, a linear function of the
    populations there. `inflow_speed` (control, only when announced).

    The same settings give bitwise the same populations, lift and drag on any number of ranks.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        ranks: Ranks,
        seed: int,
        nx: Annotated[int, msgspec.Meta(ge=16)],
        ny: Annotated[int, msgspec.Meta(ge=16)],
        diameter: Annotated[float, msgspec.Meta(ge=4)],
        center: tuple[float, float],
        reynolds: Annotated[float, msgspec.Meta(gt=0)],
        inflow_speed: Annotated[float, msgspec.Meta(gt=0)],
        substeps: Annotated[int, msgspec.Meta(gt=0)],
        lateral: Literal["free_slip", "periodic"],
        gust_time: float = math.inf,
        gust_factor: Annotated[float, msgspec.Meta(gt=0)] = 1.15,
        announce: bool = True,
        precision: Literal["double", "single"] = "double",
        sponge_length: Annotated[int, msgspec.Meta(ge=0)] = 48,
        perturbation: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.5,
    ) -> None:
        """Checks the settings and starts from uniform flow. Collective.

        Args:
            ranks: Share the columns, in order from left to right.
            seed: Of the perturbation of the start.
            nx: Cells along the flow.
            ny: Cells across the flow.
            diameter: Of the cylinder, cells.
            center: Of the cylinder (x, y), cells from the lower left corner of the domain.
            reynolds: diameter * inflow_speed / viscosity, with the speed before the gust; sets the viscosity.
            inflow_speed: Before the gust, cells per lattice step; at most 0.17.
            substeps: Lattice steps of one coupling step.
            lateral: Lower and upper boundary.
            gust_time: Simulated time (lattice steps) from which the inflow is `gust_factor` times as fast, which
                raises the Reynolds number with it.
            gust_factor: See `gust_time`.
            announce: Whether the inflow speed is declared as a control, with the time of its next change. If not, the
                gust just happens.
            precision: Of the populations.
            sponge_length: Columns before the outlet in which the wake is drawn to the uniform inflow.
            perturbation: Lateral speed of the start, over the inflow speed.

        Raises:
            ValueError: Settings that do not go together, or too many ranks.
        """
        self.flow = Flow(
            nx, ny, diameter, center, reynolds, inflow_speed, gust_time, gust_factor, lateral == "periodic"
        )
        self.flow.check(sponge_length)
        self.ranks, self.substeps, self.announce = ranks, substeps, announce
        self.offset, self.columns = geometry.slab(nx, ranks.rank, ranks.size)
        dtype = _DTYPES[precision]
        self._walls = geometry.cylinder_walls(nx, ny, center, diameter, self.offset, self.columns, dtype)
        self._rates = lattice.relaxation_rates(self.flow.viscosity, dtype)
        self._sponge = np.zeros(self.columns + 2, dtype)
        self._sponge[1:-1] = geometry.sponge_profile(nx, sponge_length)[self.offset : self.offset + self.columns]
        self._halo = Halo(ranks, ny, dtype)
        self._old, self._new = np.zeros((2, self.columns + 2, 9, ny), dtype)
        self._force = np.zeros((self.columns + 2, 2))
        self._force_columns = slice(math.floor(center[0] - diameter / 2) - 1, math.ceil(center[0] + diameter / 2) + 1)
        self._view = np.zeros((2, ny, self.columns), np.float32)
        self._fluid_cells = self.columns * ny - len(self._walls.solids)
        self.step, self.time, self.dt = 0, 0.0, float(substeps)
        self._old[1:-1] = self._start(seed, perturbation)
        self._clear_solids()
        self._gained = np.zeros(3)
        self._observables = np.zeros(2)
        self._measure()

    def fields(self) -> Sequence[FieldSpec]:
        """See `Simulation.fields`."""
        flow = self.flow
        specs = [
            FieldSpec("populations", self._old.dtype.str, (flow.nx, 9, flow.ny), "1", blend="linear"),
            FieldSpec("lift", "<f8", (), "1", "scalar", "observable"),
            FieldSpec("drag", "<f8", (), "1", "scalar", "observable"),
        ]
        if self.announce:
            specs.append(FieldSpec("inflow_speed", "<f8", (), "cell/lattice step", "scalar", "control"))
        return tuple(specs)

    def changes(self) -> Sequence[tuple[float, bool]]:
        """See `Scheduled.changes`."""
        return [(self.flow.gust_time, self.announce)] if self.flow.gust_time < math.inf else []

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`. The populations are a view of the solver's memory."""
        lift, drag = self._observables
        blocks = {
            "populations": Block(self._old[1:-1], (self.offset, 0, 0)),
            "lift": Block(np.array(lift)),
            "drag": Block(np.array(drag)),
        }
        if not self.announce:
            return Snapshot(self.step, self.time, self.dt, blocks)
        blocks["inflow_speed"] = Block(np.array(self.flow.speed(self.time)))
        return Snapshot(self.step, self.time, self.dt, blocks, self.flow.next_change(self.time))

    def integrate(self, dt: float, n: int) -> None:
        """Advances n coupling steps of dt lattice steps each.

        Raises:
            ValueError: dt is not a whole number of lattice steps.
            SimulationFailed: The flow is no longer finite; on all ranks at the same step.
        """
        substeps = round(dt)
        if substeps < 1 or substeps != dt:
            raise ValueError(f"dt = {dt:g}, but a step of this solver is a whole number of lattice steps, at least 1")
        self.dt = float(dt)
        for _ in range(n):
            for i in range(substeps):
                self._lattice_step(self.flow.speed(self.time + i))
            self.step += 1
            self.time += dt
            if not self._measure():
                raise SimulationFailed(
                    f"the flow is not finite after coupling step {self.step} (lattice step {self.time:g}): the lattice "
                    "is too coarse for this Reynolds number or a state taken over was bad; raise diameter, or lower "
                    "reynolds, inflow_speed or gust_factor"
                )

    def adopt(self, snapshot: Snapshot) -> None:
        """Takes over step, time, dt and the populations, which are all there is; lift and drag follow from them.

        Collective. The mass balance starts anew.

        Raises:
            SchemaMismatch: The populations are missing or are not this rank's Block.
        """
        block = snapshot.blocks.get("populations")
        if block is None:
            raise SchemaMismatch(f"the state to adopt at step {snapshot.step} holds no field 'populations'")
        wrong = misfit(self.fields()[0], block)
        inner = self._old[1:-1]
        if wrong is None and (block.offset != (self.offset, 0, 0) or block.array.shape != inner.shape):
            wrong = (
                f"rank {self.ranks.rank} holds columns {self.offset} to {self.offset + self.columns - 1}, but the "
                f"block to adopt has offset {block.offset} and shape {block.array.shape}"
            )
        if wrong is not None:
            raise SchemaMismatch(wrong)
        self.step, self.time, self.dt = snapshot.step, snapshot.time, snapshot.dt
        inner[...] = block.array
        self._clear_solids()
        self._gained[:] = 0.0
        self._measure()

    def save(self) -> object:
        """See `Simulation.save`: a copy in memory."""
        copies = self._old[1:-1].copy(), self._observables.copy(), self._gained.copy()
        return _Saved(self.step, self.time, self.dt, *copies)

    def restore(self, token: object) -> None:
        """See `Simulation.restore`."""
        if not isinstance(token, _Saved):
            raise TypeError(f"restore takes what save returned, not a {type(token).__name__}")
        self.step, self.time, self.dt = token.step, token.time, token.dt
        self._old[1:-1] = token.populations
        self._observables[:], self._gained[:] = token.observables, token.gained

    def invariants(self) -> Mapping[str, Invariant]:
        """`mass`: of the fluid, in cells at mean density.

        It is not conserved to rounding: the wake's pressure and sound move it through inlet and outlet, and
        `mass_gained` is the exact balance. Measured at 400 x 150 cells, Re = 100: within 1.4e-4 of its mean under
        steady inflow (3e-6 once the wake is periodic, 6e-5 in one step before that); a 15 % gust raises it by 1.6 % in
        about 12 steps of 50.
        """
        return {"mass": Invariant(self._mass())}

    def view(self) -> Snapshot:
        """`velocity`: shape (2, ny, nx), float32, cells per lattice step, zero inside the cylinder."""
        kernels.velocity(self._old, self._view)
        return Snapshot(self.step, self.time, self.dt, {"velocity": Block(self._view, (0, 0, self.offset))})

    def mass_gained(self) -> dict[str, float]:
        """Net mass that entered this rank's slab through `inlet`, `outlet` and `wall` since the start or last adopt.

        Summed over all ranks they are the change of `mass` to rounding. The wall's part is the error of interpolated
        bounce-back.
        """
        return dict(zip(("inlet", "outlet", "wall"), self._gained.tolist(), strict=True))

    def _lattice_step(self, speed: float) -> None:
        """One lattice step; the inner columns are computed while the outermost travel."""
        old, new, n, ranks = self._old, self._new, self.columns, self.ranks
        if ranks.rank == 0:
            self._gained[0] += kernels.fill_inlet(old, speed)
        if ranks.rank == ranks.size - 1:
            self._gained[1] += kernels.fill_outlet(old)
        if ranks.size == 1:
            self._advance(1, n + 1, speed)
        else:
            self._halo.start(old)
            self._advance(2, n, speed)
            self._halo.finish(old)
            self._advance(1, 2, speed)
            self._advance(n, n + 1, speed)
        self._old, self._new = new, old

    def _advance(self, first: int, stop: int, speed: float) -> None:
        self._gained[2] += kernels.advance(
            self._old,
            self._new,
            first,
            stop,
            self.flow.periodic,
            self._rates,
            self._sponge,
            self._rates.dtype.type(speed),
            *self._walls.arrays,
        )

    def _measure(self) -> bool:
        """Computes lift and drag of the present state; False when it is not finite. One small allreduce."""
        self._halo.start(self._old)
        self._halo.finish(self._old)
        w = self._walls
        kernels.wall_force(self._old, w.link_start, w.links, w.weights, self._force)
        # One number for each column, and each column lives on one rank: the sum does not depend on the number of ranks.
        columns = np.zeros((self.flow.nx, 2))
        columns[self.offset : self.offset + self.columns] = self._force[1:-1]
        mine = np.append(columns[self._force_columns], self._mass())
        total = self.ranks.allreduce(mine, "sum")
        force = total[:-1].reshape(-1, 2).sum(axis=0)
        self._observables[:] = force[::-1] / (0.5 * self.flow.inflow_speed**2 * self.flow.diameter)
        return bool(np.isfinite(total).all())

    def _mass(self) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._fluid_cells + float(self._old[1:-1].sum(dtype=np.float64))

    def _clear_solids(self) -> None:
        starts = self._walls.solid_start
        for x in range(1, self.columns + 1):
            self._old[x, :, self._walls.solids[starts[x] : starts[x + 1]]] = 0.0

    def _start(self, seed: int, perturbation: float) -> NDArray[np.float64]:
        """Populations of the start, shape (columns, 9, ny)."""
        mine = slice(self.offset, self.offset + self.columns)
        return lattice.equilibrium(*(a[mine] for a in initial.fields(self.flow, seed, perturbation)))
