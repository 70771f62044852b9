"""`coupler init`: writes a starter case with a solver of its own."""

from __future__ import annotations

from pathlib import Path

from coupler.errors import CouplerError

CASE = """\
# A coupled run. `coupler check case.toml` says what it would start, or all that is wrong with it.

[run]
name = "string"
steps = 2000            # coupling steps
mode = "act"            # off: solver alone; shadow: learn and score only; advise: dt only; act: take over steps
rung = "local"          # inline: one thread; threads; local: one process each; mpi: ranks under mpiexec
seed = 1

[simulation]
use = "my_solver:String"    # a class in my_solver.py, beside this file; its keyword arguments are the keys below
points = 200
wave_speed = 1.0
dt = 0.05               # simulated time of a coupling step
substeps = 2000         # solver steps in it; many, so that there is something to save

[[task]]
use = "propagator"      # learns the dynamics from the states it sees and forecasts states

[switch]
tolerance = 0.02        # largest forecast error that may enter the run: rms over rms fluctuation
overhead = 0.5          # share of the direct run's time that learning may cost before it pays; the run is short

[guard.bounds]          # anything outside is refused and the step integrated
height = [-3.0, 3.0]

[guard.invariants]      # largest relative change of a conserved quantity through a learned state
energy = 0.05

[output]
every = 500             # steps the run must hit, so that no learned phase passes them
"""

SOLVER = '''\
"""A vibrating string with fixed ends: ten lines of physics, and what the coupler asks of a solver."""

import copy
from typing import Annotated

import numpy as np
from msgspec import Meta

from coupler.contracts import Invariant
from schemas.fields import FieldSpec, Snapshot


class String:
    """Height u and speed v on a grid over [0, 1]: du/dt = v, dv/dt = c^2 d2u/dx2, by leapfrog."""

    def __init__(
        self,
        *,
        points: Annotated[int, Meta(ge=3)],
        wave_speed: Annotated[float, Meta(gt=0)],
        dt: Annotated[float, Meta(gt=0)],
        substeps: Annotated[int, Meta(gt=0)],
    ) -> None:
        x, self.dx = np.linspace(0.0, 1.0, points, retstep=True)
        if wave_speed * dt / substeps > self.dx:
            raise ValueError(f"substeps is {substeps}; a wave may not pass a cell in one, use more")
        self.c, self.dt, self.substeps, self.step, self.time = wave_speed, dt, substeps, 0, 0.0
        self.u = np.sin(np.pi * x) + 0.5 * np.sin(2 * np.pi * x) + 0.2 * np.sin(3 * np.pi * x)
        self.v = np.zeros(points)

    def integrate(self, dt, n):
        h = dt / self.substeps
        for _ in range(n * self.substeps):
            self.u += 0.5 * h * self.v
            self.v[1:-1] += h * (self.c / self.dx) ** 2 * (self.u[2:] - 2 * self.u[1:-1] + self.u[:-2])
            self.u += 0.5 * h * self.v
        self.step, self.time, self.dt = self.step + n, self.time + n * dt, dt

    def energy(self):
        return 0.5 * self.dx * np.sum(self.v**2) + 0.5 * self.c**2 / self.dx * np.sum(np.diff(self.u) ** 2)

    # What is streamed: states, which a model may replace, and observables, which it forecasts along the way.

    def fields(self):
        return (
            FieldSpec("height", "<f8", self.u.shape, unit="1", blend="linear"),
            FieldSpec("speed", "<f8", self.v.shape, unit="1", blend="linear"),
            FieldSpec("middle", "<f8", (), unit="1", kind="scalar", role="observable"),
        )

    def snapshot(self):
        middle = self.u[self.u.size // 2]
        return Snapshot.of(self.step, self.time, self.dt, height=self.u, speed=self.v, middle=middle)

    def adopt(self, snapshot):
        self.u, self.v = np.array(snapshot["height"]), np.array(snapshot["speed"])
        self.step, self.time, self.dt = snapshot.step, snapshot.time, snapshot.dt

    def save(self):
        return copy.deepcopy(vars(self))

    def restore(self, token):
        vars(self).update(copy.deepcopy(token))

    def invariants(self):
        return {"energy": Invariant(float(self.energy()))}
'''


def init(folder: Path) -> list[Path]:
    """Writes a starter case and its solver.

    Args:
        folder: Made when missing.

    Returns:
        The files written.

    Raises:
        CouplerError: One of them is there already, or the folder cannot be written; nothing is changed then.
    """
    files = {folder / "case.toml": CASE, folder / "my_solver.py": SOLVER}
    for path in files:
        if path.exists():
            raise CouplerError(f"{path} is there already and is not overwritten; name another folder: coupler init DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, "utf-8")
    except OSError as problem:
        raise CouplerError(f"{folder} cannot be written ({problem.strerror})") from problem
    return list(files)
