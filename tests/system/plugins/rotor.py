"""A simulation outside the packages: rotors with an exact step, with faults and gates that a test can set."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from coupler.contracts import Invariant
from coupler.errors import StepFailed
from coupler.ranks import Ranks
from schemas.fields import Block, FieldSpec, Snapshot

GATE_S = 60.0
"""A gate that nobody opens is an error of the test."""


def wait_at(gate: str) -> None:
    """Says that somebody is at a gate (`GATE.reached`) and waits until the gate, a file, is there."""
    Path(f"{gate}.reached").touch()
    end = time.monotonic() + GATE_S
    while not Path(gate).exists():
        if time.monotonic() > end:
            raise RuntimeError(f"nobody opened the gate {gate}")
        time.sleep(0.001)


class Rotor:
    """n rotors x'' = -omega^2 x; a coupling step is the exact rotation, so a linear map is a perfect model of it.

    omega changes to `later_omega` at `change_step`. Where that is announced, `controls_until` says so and the control
    shows it; where not, the control keeps its first value for ever.
    """

    def __init__(
        self,
        *,
        ranks: Ranks,
        seed: int,
        omega: float = 1.0,
        later_omega: float = 1.0,
        change_step: int = 1 << 30,
        announce: bool = True,
        dt: float = 0.1,
        n: int = 6,
        fault: Literal["none", "nan", "shape", "dtype", "missing", "raise", "exit", "constructor"] = "none",
        fault_step: int = 0,
        fault_rank: int = 0,
        gates: tuple[tuple[int, str], ...] = (),
        breaks_above: float = math.inf,
        breaks_at: tuple[float, float] = (0.0, math.inf),
        pace_s: float = 0.0,
        burn_s: float = 0.0,
        slow_until: str = "",
        slow_s: float = 0.02,
    ) -> None:
        """Makes the rotors.

        Args: gates: (step, file) pairs, see `wait_at`. breaks_above: Largest dt that is no failure of the step.
            breaks_at: First and last time at which that holds. pace_s: Cost of a step. burn_s: CPU time of one.
            slow_until: File; before it is there, a step costs slow_s, so that the server's side has time to start and
            to learn.
        """
        if fault == "constructor":
            raise RuntimeError("no rotors today")
        self.ranks, self.n = ranks, n
        self.omega, self.later_omega, self.change_step, self.announce = omega, later_omega, change_step, announce
        self.fault = fault if ranks.rank == fault_rank else "none"
        self.fault_step = fault_step
        self.gates = list(gates) if ranks.rank == ranks.size - 1 else []  # the others wait inside MPI then
        self.breaks_above, self.breaks_at = breaks_above, breaks_at
        self.pace_s, self.burn_s, self.slow_until, self.slow_s = pace_s, burn_s, slow_until, slow_s
        own = np.array_split(np.arange(n), ranks.size)[ranks.rank]
        self.offset = (int(own[0]),)
        phases = np.random.default_rng(seed).uniform(0.0, 2.0 * math.pi, n)[own]
        self.x, self.v = np.cos(phases), np.sin(phases)
        self.step, self.time, self.dt = 0, 0.0, dt

    def fields(self) -> tuple[FieldSpec, ...]:
        return (
            FieldSpec("x", "<f8", (self.n,), "1", blend="linear"),
            FieldSpec("v", "<f8", (self.n,), "1", blend="linear"),
            FieldSpec("omega", "<f8", (), "1", kind="scalar", role="control"),
            FieldSpec("energy", "<f8", (), "1", kind="scalar", role="observable"),
        )

    def snapshot(self) -> Snapshot:
        changes = self.announce and self.step < self.change_step < 1 << 30
        until = self.time + (self.change_step - self.step) * self.dt if changes else math.inf
        shown = self._omega() if self.announce else self.omega
        blocks = {
            "x": Block(self.x, self.offset),
            "v": Block(self.v, self.offset),
            "omega": Block(np.array(shown)),
            "energy": Block(np.array(self.ranks.allreduce(np.array([self._energy()]), "sum")[0])),
        }
        if self.fault != "none" and self.step >= self.fault_step:
            blocks |= self._faulty()
            if self.fault == "missing":
                del blocks["v"]
        return Snapshot(self.step, self.time, self.dt, blocks, until)

    def integrate(self, dt: float, n: int) -> None:
        self._gate()
        if self.fault == "raise" and self.step >= self.fault_step:
            raise ArithmeticError("the rotor broke")
        if self.fault == "exit" and self.step >= self.fault_step:
            os._exit(0)  # as a call of exit in C does, or STOP in Fortran
        if dt > self.breaks_above and self.breaks_at[0] <= self.time <= self.breaks_at[1]:
            self.x = self.x * math.nan
            raise StepFailed(f"the rotor broke at time {self.time:.3g}")
        for _ in range(n):
            time.sleep(self.slow_s if self.slow_until and not os.path.exists(self.slow_until) else self.pace_s)
            end = time.thread_time() + self.burn_s
            while time.thread_time() < end:
                pass
            omega = self._omega()
            c, s = math.cos(omega * dt), math.sin(omega * dt)
            self.x, self.v = c * self.x + s / omega * self.v, c * self.v - s * omega * self.x
            self.step, self.time = self.step + 1, self.time + dt
        self.dt = dt

    def adopt(self, snapshot: Snapshot) -> None:
        self.x, self.v = np.array(snapshot["x"], dtype=float), np.array(snapshot["v"], dtype=float)
        self.step, self.time, self.dt = snapshot.step, snapshot.time, snapshot.dt
        self._gate()

    def save(self) -> object:
        return self.step, self.time, self.dt, self.x.copy(), self.v.copy()

    def restore(self, token: Any) -> None:
        self.step, self.time, self.dt, x, v = token
        self.x, self.v = x.copy(), v.copy()

    def invariants(self) -> Mapping[str, Invariant]:
        return {"energy": Invariant(self._energy())}

    def _omega(self) -> float:
        return self.later_omega if self.step >= self.change_step else self.omega

    def _energy(self) -> float:
        return 0.5 * float(self.v @ self.v + self._omega() ** 2 * (self.x @ self.x))

    def _gate(self) -> None:
        while self.gates and self.step >= self.gates[0][0]:
            wait_at(self.gates.pop(0)[1])

    def _faulty(self) -> dict[str, Block]:
        arrays = {
            "nan": np.where(np.arange(self.x.size) == 0, math.nan, self.x),
            "shape": np.concatenate((self.x, self.x, self.x)),
            "dtype": self.x.astype(np.float32),
        }
        return {"x": Block(arrays[self.fault], self.offset)} if self.fault in arrays else {}
