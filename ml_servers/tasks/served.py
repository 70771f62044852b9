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
from ml_servers.models.polynomial import Polynomial
from ml_servers.models.readout import Readout
from ml_servers.tasks.backtest import Dynamics, ErrorTable
from ml_servers.tasks.trajectory import Layout
from schemas.fields import Array, Snapshot

Floats = NDArray[np.float64]

_KINDS = {Affine: "affine", Polynomial: "polynomial", Ensemble: "network"}
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
        readout: Latent coordinates to observables.
        table: Own estimate of the error by horizon.
        cloud: Where the model was trained.
        lowest: Lowest value of each control (and dt) in training, shape (m,).
        highest: Highest value, shape (m,).
    """

    version: int
    trained_on: int
    last_step: int
    reduction: Reduction
    dynamics: Affine | Polynomial | Ensemble
    readout: Readout
    table: ErrorTable
    cloud: Cloud
    lowest: Floats
    highest: Floats

    @property
    def kind(self) -> str:
        """Name of the model for reports."""
        return _KINDS[type(self.dynamics)]

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
        series = self.readout(course)
        return Forecast(
            horizon,
            float(np.hypot(own, beyond)),
            self.version,
            arrays=layout.arrays(self.reduction.decode(course[-1])),
            observables={spec.name: series[:, i].copy() for i, spec in enumerate(layout.observables)},
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
            "readout.form": np.array([self.readout.degree, self.readout.leading], np.int64),
            "readout.weights": self.readout.weights,
            "cloud.states": self.cloud.states,
            "cloud.limits": np.array([self.cloud.spacing, self.cloud.outside]),
            "controls.lowest": self.lowest,
            "controls.highest": self.highest,
        }
        if self.reduction.modes is not None:
            found["reduction.modes"] = self.reduction.modes
        found |= {f"dynamics.{name}": array for name, array in self.dynamics.arrays().items()}
        return {name: np.ascontiguousarray(array) for name, array in found.items()}

    @classmethod
    def of(cls, state: Mapping[str, Array], layout: Layout) -> Served:
        """The model in a state made by `state`. The arrays are taken over, not copied.

        Raises:
            ValueError: When it is no such state, or one for other fields.
        """
        try:
            served = cls._assembled(state)
            served._try(layout)
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(
                f"this is no state of a propagator of these fields ({type(error).__name__}: {error}); give one that "
                "state() made for the same fields"
            ) from error
        return served

    @classmethod
    def _assembled(cls, state: Mapping[str, Array]) -> Served:
        arrays: dict[str, NDArray[Any]] = {name: np.asarray(array) for name, array in state.items()}
        version, trained_on, last_step = (int(v) for v in arrays["numbers"])
        degree, leading = (int(v) for v in arrays["readout.form"])
        dynamics = {name.removeprefix("dynamics."): a for name, a in arrays.items() if name.startswith("dynamics.")}
        spacing, outside = (float(v) for v in arrays["cloud.limits"])
        sizes = tuple(int(v) for v in arrays["reduction.sizes"])
        modes = arrays.get("reduction.modes")
        return cls(
            version,
            trained_on,
            last_step,
            Reduction(sizes, arrays["reduction.mean"], arrays["reduction.scales"], modes),
            _dynamics_of(dynamics),
            Readout(degree, leading, arrays["readout.weights"]),
            ErrorTable(arrays["table.horizons"], arrays["table.errors"]),
            Cloud(arrays["cloud.states"], spacing, outside),
            arrays["controls.lowest"],
            arrays["controls.highest"],
        )

    def _try(self, layout: Layout) -> None:
        """Forecasts from the mean state. ValueError when shapes do not fit together or the answer is not finite."""
        reduction, width, rank, imposed = self.reduction, layout.width, self.reduction.rank, layout.controls_width
        points = len(self.table.horizons)
        found = {
            "sizes": (reduction.sizes, layout.sizes),
            "mean": (reduction.mean.shape, (width,)),
            "scales": (reduction.scales.shape, (len(layout.sizes),)),
            "modes": ((rank, width) if reduction.modes is None else reduction.modes.shape, (rank, width)),
            "readout": (self.readout.weights.shape[:1], (len(layout.observables),)),
            "lowest": (self.lowest.shape, (imposed,)),
            "highest": (self.highest.shape, (imposed,)),
            "table": ((points, *self.table.errors.shape), (max(points, 1), points)),
            "cloud": (self.cloud.states.shape, (max(len(self.cloud.states), 1), rank)),
            **self._shapes_of_dynamics(rank, imposed),
        }
        for name, (is_now, must_be) in found.items():
            if is_now != must_be:
                raise ValueError(f"{name} is {is_now}, it must be {must_be}")
        forecast = self.forecast(layout, layout.snapshot(reduction.mean, self.lowest), 2)
        if not forecast.arrays or not all(np.isfinite(array).all() for array in forecast.arrays.values()):
            raise ValueError("its forecast of the mean state is not finite")

    def _shapes_of_dynamics(self, rank: int, imposed: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """By name of an array its shape, and what it must be."""
        dynamics = self.dynamics
        if isinstance(dynamics, Polynomial):
            variables = int(np.count_nonzero(dynamics.varying)) + rank
            return {
                "varying": (dynamics.varying.shape, (imposed,)),
                "center": (dynamics.center.shape, (variables,)),
                "box": (dynamics.box.shape, (variables,)),
                "products": (dynamics.weights.shape[:1], (rank,)),
            }
        base = dynamics.base if isinstance(dynamics, Ensemble) else dynamics
        return {
            "advance": (base.advance.shape, (rank, rank)),
            "control": (base.control.shape, (rank, imposed)),
            "constant": (base.constant.shape, (rank,)),
        }


def _dynamics_of(arrays: Mapping[str, NDArray[Any]]) -> Affine | Polynomial | Ensemble:
    if "weights.0" in arrays:
        return Ensemble.of(arrays)
    return Polynomial.of(arrays) if "products" in arrays else Affine.of(arrays)
