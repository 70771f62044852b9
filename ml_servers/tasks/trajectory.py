"""Snapshots as flat states, and stored states as trajectories in latent coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

from ml_servers.models.affine import Runs
from ml_servers.models.pod import chunks, field_slices
from schemas.fields import Array, Block, FieldSpec, Snapshot, with_role

Floats = NDArray[np.float64]


class Layout:
    """Where each declared field lies in a flat state, and how Snapshots go in and out of it."""

    def __init__(self, fields: Sequence[FieldSpec]) -> None:
        """Args: fields: The declared fields. ValueError when there is no state field, or an observable is no scalar."""
        declared = tuple(fields)
        self.states = with_role(declared, "state")
        self.controls = with_role(declared, "control")
        self.observables = with_role(declared, "observable")
        if not self.states:
            raise ValueError(
                "a propagator needs a field of role 'state', and none is declared; declare what it shall advance"
            )
        for spec in self.observables:
            if prod(spec.shape) != 1:
                raise ValueError(
                    f"observable {spec.name!r} has shape {spec.shape}, but an observable is one number a step; declare "
                    "one observable for each number"
                )
        self.sizes = tuple(prod(spec.shape) for spec in self.states)
        self.slices = field_slices(self.sizes)

    @property
    def width(self) -> int:
        """Values in a flat state."""
        return sum(self.sizes)

    @property
    def controls_width(self) -> int:
        """Values that `imposed` gives."""
        return sum(prod(spec.shape) for spec in self.controls) + 1

    def write(self, snapshot: Snapshot, out: NDArray[np.floating], origin: Floats | None = None) -> None:
        """Writes the state fields, less `origin` if given, into `out`, shape (width,)."""
        for spec, columns in zip(self.states, self.slices, strict=True):
            values = np.asarray(snapshot[spec.name]).reshape(-1)
            if origin is None:
                out[columns] = values
                continue
            for part in chunks(columns):  # piece by piece: differences stay in cache until they are rounded
                here = slice(part.start - columns.start, part.stop - columns.start)
                out[part] = np.asarray(values[here], np.float64) - origin[part]

    def by_field(self, snapshot: Snapshot) -> list[Array]:
        """The state fields, shape (size,) each: views where memory allows."""
        return [np.asarray(snapshot[spec.name]).reshape(-1) for spec in self.states]

    def arrays(self, state: Floats) -> dict[str, Array]:
        """The state fields of a flat state, in their declared shapes and types; whole numbers are rounded."""
        found: dict[str, Array] = {}
        for spec, columns in zip(self.states, self.slices, strict=True):
            values, dtype = state[columns].reshape(spec.shape), np.dtype(spec.dtype)
            if dtype.kind in "iu":
                limits = np.iinfo(dtype)
                values = np.clip(np.rint(values), limits.min, limits.max)
            found[spec.name] = values.astype(dtype, copy=False)
        return found

    def imposed(self, snapshot: Snapshot) -> Floats:
        """The controls as one vector, the length of a coupling step (dt) last: a map of one dt is wrong for another."""
        values = [np.asarray(snapshot[spec.name], np.float64).reshape(-1) for spec in self.controls]
        return np.concatenate([*values, [snapshot.dt]])

    def snapshot(self, state: Floats, imposed: Floats) -> Snapshot:
        """A Snapshot of step 0 with a flat state and controls as `imposed` gives them."""
        arrays = dict(self.arrays(state))
        for spec, columns in zip(self.controls, field_slices(tuple(prod(s.shape) for s in self.controls)), strict=True):
            arrays[spec.name] = imposed[columns].reshape(spec.shape)
        blocks = {name: Block(array, (0,) * array.ndim) for name, array in arrays.items()}
        return Snapshot(0, 0.0, float(imposed[-1]), blocks)

    def observed(self, snapshot: Snapshot) -> Floats:
        """The observables, shape (m,); NaN where the Snapshot does not carry one."""
        blocks = snapshot.blocks
        names = [spec.name for spec in self.observables]
        return np.array([blocks[name].array.item() if name in blocks else np.nan for name in names], np.float64)

    def rms(self, scales: Floats) -> Mapping[str, float]:
        """Rms fluctuation of each state field, in its unit, from root mean squared norms, shape (fields,)."""
        return {
            spec.name: float(scale / np.sqrt(size))
            for spec, scale, size in zip(self.states, scales, self.sizes, strict=True)
        }


@dataclass(frozen=True, slots=True)
class Course:
    """Stored states in latent coordinates, in the order they came.

    Attributes:
        latents: Shape (n, r).
        outside: Squared norm of what the coordinates leave out, shape (n,).
        controls: Shape (n, m).
        runs: Stretches [start, stop) of consecutive states.
    """

    latents: Floats
    outside: Floats
    controls: Floats
    runs: Runs


def runs_of(steps: NDArray[np.int64], segments: NDArray[np.int64]) -> Runs:
    """Stretches of states of one segment whose steps follow each other."""
    if not len(steps):
        return []
    breaks = np.flatnonzero((np.diff(steps) != 1) | (np.diff(segments) != 0)) + 1
    edges = [0, *breaks.tolist(), len(steps)]
    return list(pairwise(edges))


def clipped(runs: Runs, start: int, stop: int) -> Runs:
    """The parts of runs that lie in [start, stop)."""
    parts = [(max(a, start), min(b, stop)) for a, b in runs]
    return [(a, b) for a, b in parts if b > a]
