"""Tasks outside the packages: a linear map found by least squares, and a suggestion of dt, with faults to set."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from rotor import wait_at

from coupler.contracts import Backtest, Forecast, Report
from schemas.fields import Array, FieldSpec, Snapshot

Fault = Literal[
    "none", "constructor", "observe", "learn", "state", "restore", "forecast", "exit",
    "nan", "shape", "long", "dtype", "missing", "undeclared", "bounds", "text", "none_at_all", "corner",
]  # fmt: skip
TRIAL_HORIZON = 5
"""A forecast over more steps than those of a trial is made to be adopted."""
HORIZONS = (1, 2, 5, 10, 20, 40)
ERROR = 1e-4
"""Error that the map estimates of itself; its back-tests are a tenth of it."""


class Linear:
    """(x, v) of every rotor advance by one 2 x 2 matrix, found from the newest pairs of successive states."""

    owns: ClassVar[frozenset[str]] = frozenset({"arrays"})

    def __init__(
        self,
        *,
        fields: tuple[FieldSpec, ...],
        seed: int,
        pairs: int = 8,
        fault: Fault = "none",
        fault_step: int = 0,
        gate_step: int = 0,
        gate: str = "",
        learn_gate: str = "",
        marks: str = "",
    ) -> None:
        """Makes the task.

        Args: gate: File to wait for in `forecast` from gate_step on, when the host stands at a learned state and waits.
            learn_gate: File to wait for in `learn` from gate_step on.
            marks: Folder where events leave a file.
        """
        if fault == "constructor":
            raise RuntimeError("no such thing as a linear world")
        self.fields, self.wanted, self.fault, self.fault_step = fields, pairs, fault, fault_step
        self.gate_step, self.gate, self.learn_gate, self.marks = gate_step, gate, learn_gate, marks
        self.pairs: list[tuple[int, Array, Array]] = []
        self.last: tuple[int, float, float, Array] | None = None
        self.matrix, self.version, self.control, self.stiffness, self.energy = np.eye(2), 0, math.nan, 0.0, 0.0
        self.sent: Array | None = None
        self.seen: set[int] = set()
        self.superseded = 0

    def observe(self, snapshot: Snapshot) -> None:
        self._break("observe", snapshot.step)
        state = np.stack([snapshot["x"], snapshot["v"]])
        if self.last is not None and snapshot.step <= self.last[0]:
            self.pairs = [pair for pair in self.pairs if pair[0] < snapshot.step]
            self.superseded += sum(step >= snapshot.step for step in self.seen)
            self.seen = {step for step in self.seen if step < snapshot.step}
        elif self.last is not None and (snapshot.step, snapshot.dt) == (self.last[0] + 1, self.last[2]):
            self.pairs.append((self.last[0], self.last[3], state))
        self.last = (snapshot.step, float(snapshot["omega"]), snapshot.dt, state)
        self.energy = float(snapshot["energy"])
        self.seen.add(snapshot.step)
        self._mark("observed")

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        if horizon > TRIAL_HORIZON:
            self._mark("leads")
        mine = self.sent is not None and np.array_equal(snapshot["x"], self.sent) and horizon > TRIAL_HORIZON
        if self.gate and snapshot.step >= self.gate_step and mine:
            wait_at(self.gate)
        self._break("forecast", snapshot.step)
        if self.fault == "none_at_all" and snapshot.step >= self.fault_step:
            return None  # type: ignore[return-value]
        state, energies = np.stack([snapshot["x"], snapshot["v"]]), []
        for _ in range(horizon):
            state = self.matrix @ state
            energies.append(0.5 * float(state[1] @ state[1] + self.stiffness * (state[0] @ state[0])))
        arrays = {"x": state[0].copy(), "v": state[1].copy()}
        self.sent = arrays["x"]
        if snapshot.step >= self.fault_step:
            arrays = self._faulty(arrays)
        return Forecast(
            horizon,
            ERROR,
            self.version,
            arrays=arrays,
            observables={"energy": np.array(energies)},
            in_range=float(snapshot["omega"]) == self.control,
            scales={"x": 0.7, "v": 0.7},
        )

    def learn(self, steps: int) -> Report:
        self._break("learn", self.last[0] if self.last else 0)
        if self.learn_gate and self.last and self.last[0] >= self.gate_step:
            wait_at(self.learn_gate)
        newest = self.pairs[-self.wanted :]
        promoted = False
        if len(newest) == self.wanted and self.last is not None and self._misfit(newest, self.matrix) > 1e-9:
            before, after = (np.concatenate([pair[i] for pair in newest], axis=1) for i in (1, 2))
            matrix = np.linalg.lstsq(before.T, after.T, rcond=None)[0].T
            if self._misfit(newest, matrix) < 1e-9:  # else they straddle a change
                self.matrix, self.version, self.control, promoted = matrix, self.version + 1, self.last[1], True
                x, v = self.last[3]
                self.stiffness = float((2.0 * self.energy - v @ v) / (x @ x))
        backtests = tuple(Backtest(h, ERROR, 0.1 * ERROR) for h in HORIZONS for _ in range(12)) if self.version else ()
        step = self.pairs[-1][0] + 1 if self.pairs else -1
        return Report(
            self.version, len(self.pairs), step, "linear", promoted, backtests, superseded=self.superseded, idle=True
        )

    def state(self) -> dict[str, Array]:
        self._break("state", self.fault_step)
        numbers = np.array([self.version, self.control, self.stiffness])
        return {"matrix": self.matrix, "numbers": numbers}

    def restore(self, state: Mapping[str, Array]) -> None:
        self._break("restore", self.fault_step)
        version, self.control, self.stiffness = map(float, state["numbers"])
        self.matrix, self.version = state["matrix"], int(version)
        self._mark(f"serves-{self.version}")

    def _misfit(self, pairs: list[tuple[int, Array, Array]], matrix: Array) -> float:
        return max(float(np.abs(matrix @ before - after).max()) for _, before, after in pairs)

    def _break(self, where: str, step: int) -> None:
        if self.fault == where and step >= self.fault_step:
            raise ArithmeticError(f"the linear world broke in {where}")
        if self.fault == "exit" and where == "forecast" and step >= self.fault_step:
            os._exit(3)

    def _faulty(self, arrays: dict[str, Any]) -> dict[str, Any]:
        x, v = arrays["x"], arrays["v"]
        return {
            "nan": {"x": np.full_like(x, math.nan), "v": v},
            "corner": {"x": np.where(np.arange(x.size) == 0, 1e6, x), "v": v},
            "shape": {"x": x[:-1], "v": v},
            "long": {"x": np.concatenate((x, x)), "v": v},
            "dtype": {"x": x.astype(np.float32), "v": v},
            "missing": {"x": x},
            "undeclared": {"x": x, "v": v, "y": x},
            "bounds": {"x": x + 1e6, "v": v},
            "text": {"x": "a field", "v": v},
        }.get(self.fault, arrays)

    def _mark(self, event: str) -> None:
        if self.marks:
            Path(self.marks, event).touch()


class Halved:
    """Suggests half the dt of the state it sees, once it has seen three."""

    owns: ClassVar[frozenset[str]] = frozenset({"dt"})

    def __init__(self, *, fields: tuple[FieldSpec, ...], seed: int, factor: float = 0.5, fault_step: int = 1 << 30):
        self.factor, self.fault_step = factor, fault_step
        self.seen, self.dt, self.version = 0, 0.0, 0

    def observe(self, snapshot: Snapshot) -> None:
        self.seen += 1
        self.dt = self.dt or self.factor * snapshot.dt

    def forecast(self, snapshot: Snapshot, horizon: int) -> Forecast:
        if snapshot.step >= self.fault_step:
            raise ArithmeticError("no dt will do")
        return Forecast(horizon, 0.1, self.version, dt=self.dt)

    def learn(self, steps: int) -> Report:
        promoted = self.version == 0 and self.seen >= 3
        self.version += promoted
        return Report(self.version, self.seen, self.seen, "halved", promoted, idle=True)

    def state(self) -> dict[str, Array]:
        return {"dt": np.array([self.dt]), "version": np.array([self.version])}

    def restore(self, state: Mapping[str, Array]) -> None:
        self.dt, self.version = float(state["dt"][0]), int(state["version"][0])
