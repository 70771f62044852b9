"""A finished model of the dynamics: everything a forecast needs, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupler.contracts import Forecast
from ml_servers.models.affine import Affine
from ml_servers.models.networks import Ensemble
from ml_servers.models.pod import Reduction
from ml_servers.models.readout import Readout
from ml_servers.tasks.backtest import Dynamics, ErrorTable
from ml_servers.tasks.trajectory import Layout
from schemas.fields import Array, Snapshot

Floats = NDArray[np.float64]

_RANGE_MARGIN = 0.01
"""Share of the trained range (and 1e-6 of the value) by which a control may lie outside it."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where in the latent space the training states lie.

    Attributes:
        states: Some training states, shape (n, r).
        spacing: Distance from the nearest of them that is ordinary.
        outside: Norm outside the latent space that is ordinary.
    """

    states: Floats
    spacing: float
    outside: float

    def excess(self, latent: Floats) -> float:
        """How much further than ordinary a state is from the training states, within the latent space."""
        nearest = float(np.sqrt(((self.states - latent) ** 2).sum(axis=1).min()))
        return max(nearest - self.spacing, 0.0)


@dataclass(frozen=True, slots=True)
class Served:
    """The serving model.

    Attributes:
        version: Counts promotions, from 1.
        trained_on: Snapshots trained on.
        last_step: Highest coupling step trained on.
        reduction: Flat states to latent coordinates and back.
        dynamics: The map of latent coordinates.
        readout: Latent coordinates to observables; None when none are declared.
        table: Own estimate of the error by horizon.
        cloud: Where the model was trained.
        lowest: Lowest value of each control (and dt) in training, shape (m,).
        highest: Highest value, shape (m,).
    """

    version: int
    trained_on: int
    last_step: int
    reduction: Reduction
    dynamics: Affine | Ensemble
    readout: Readout | None
    table: ErrorTable
    cloud: Cloud
    lowest: Floats
    highest: Floats

    @property
    def kind(self) -> str:
        """Name of the model for reports."""
        return "affine" if isinstance(self.dynamics, Affine) else "network"

    def covers(self, controls: Floats) -> bool:
        """Whether controls lie in the trained range, but for a tiny margin."""
        size = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        margin = np.maximum(_RANGE_MARGIN * (self.highest - self.lowest), 1e-6 * size)
        return bool(np.all((controls >= self.lowest - margin) & (controls <= self.highest + margin)))

    def forecast(self, layout: Layout, snapshot: Snapshot, horizon: int) -> Forecast:
        """See `Task.forecast`."""
        controls = layout.imposed(snapshot)
        latent, outside = self.reduction.encode(layout.by_field(snapshot))
        if not np.isfinite(latent).all():
            return Forecast(horizon, np.inf, self.version, residual=np.inf, in_range=self.covers(controls))
        course = np.empty((horizon, len(latent)))
        spread = 0.0
        dynamics: Dynamics = self.dynamics
        for k, (following, apart) in enumerate(dynamics.course(latent[None], controls[None], horizon)):
            course[k], spread = following[0], float(np.max(apart))
        left_out = float(np.sqrt(outside))
        beyond = max(left_out - self.cloud.outside, 0.0)
        own = max(self.table.at(horizon), spread)
        series = np.zeros((horizon, 0)) if self.readout is None else self.readout(course)
        names = [spec.name for spec in layout.observables][: series.shape[1]]
        return Forecast(
            horizon,
            float(np.hypot(own, beyond)),
            self.version,
            arrays=layout.arrays(self.reduction.decode(course[-1])),
            observables={name: series[:, i] for i, name in enumerate(names)},
            residual=float(np.hypot(left_out, self.cloud.excess(latent))),
            in_range=self.covers(controls),
            scales=layout.rms(self.reduction.scales),
        )

    def state(self) -> dict[str, Array]:
        """All of it as arrays by name."""
        found: dict[str, Array] = {
            "numbers": np.array([self.version, self.trained_on, self.last_step], np.int64),
            "reduction.sizes": np.array(self.reduction.sizes, np.int64),
            "reduction.mean": self.reduction.mean,
            "reduction.scales": self.reduction.scales,
            "table.horizons": self.table.horizons,
            "table.errors": self.table.errors,
            "cloud.states": self.cloud.states,
            "cloud.limits": np.array([self.cloud.spacing, self.cloud.outside]),
            "controls.lowest": self.lowest,
            "controls.highest": self.highest,
        }
        if self.reduction.modes is not None:
            found["reduction.modes"] = self.reduction.modes
        if self.readout is not None:
            found["readout.form"] = np.array([self.readout.degree, self.readout.leading], np.int64)
            found["readout.weights"] = self.readout.weights
        found |= {f"dynamics.{name}": array for name, array in self.dynamics.arrays().items()}
        return found

    @classmethod
    def of(cls, state: Mapping[str, Array]) -> Served:
        """The model in a state made by `state`; the arrays are taken over, not copied. KeyError when one is missing."""
        f64: dict[str, NDArray[Any]] = {name: np.asarray(array) for name, array in state.items()}
        version, trained_on, last_step = (int(v) for v in f64["numbers"])
        sizes = tuple(int(v) for v in f64["reduction.sizes"])
        readout = None
        if "readout.form" in state:
            degree, leading = (int(v) for v in f64["readout.form"])
            readout = Readout(degree, leading, f64["readout.weights"])
        dynamics = {name.removeprefix("dynamics."): a for name, a in f64.items() if name.startswith("dynamics.")}
        spacing, outside = (float(v) for v in f64["cloud.limits"])
        return cls(
            version,
            trained_on,
            last_step,
            Reduction(sizes, f64["reduction.mean"], f64["reduction.scales"], f64.get("reduction.modes")),
            Ensemble.of(dynamics) if "weights.0" in dynamics else Affine.of(dynamics),
            readout,
            ErrorTable(f64["table.horizons"], f64["table.errors"]),
            Cloud(f64["cloud.states"], spacing, outside),
            f64["controls.lowest"],
            f64["controls.highest"],
        )
