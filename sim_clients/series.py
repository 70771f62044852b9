"""Series of states in `.npy` and `.npz` files, as a record that can be played."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.fields import DTYPES, Array, Blend, FieldSpec, Kind, Role, flaw


class SeriesField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a file of numbers does not say about a field; see `FieldSpec`.

    Attributes:
        unit: Unit as text, `"1"` for a dimensionless field.
        kind: `cell`, `particle` or `scalar`.
        role: `state`, `control` or `observable`.
        blend: `linear` or `never`.
    """

    unit: str
    kind: Kind
    role: Role
    blend: Blend = "never"


class Series:
    """Arrays over time in one file: the first axis counts the states, which are dt apart.

    Attributes:
        fields: The fields of a state, with the type and the shape that the file has.
        steps: 0, 1, 2, ..., shape (n,).
        times: Simulated time of each state, from 0, shape (n,).
        dts: dt, shape (n,).
        controls_until: Simulated time of the next change of a control, as the file has it, shape (n,).
        superseded: False for each state, shape (n,).
    """

    def __init__(self, path: Path, series: Mapping[str, SeriesField], dt: float) -> None:
        """Opens the file.

        Args:
            path: A `.npy` file, which is mapped, or a `.npz` file, which is read.
            series: The fields to play, by name; in a `.npz` file those are the names of its arrays.
            dt: Simulated time between two states.

        Raises:
            ValueError: The file is none of these, or does not hold what `series` says.
        """
        self.path = path
        self._arrays = _arrays(path, series)
        lengths = {name: array.shape[0] if array.ndim else 0 for name, array in self._arrays.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise ValueError(f"{path}: the first axis of each field counts the states, but their lengths are {lengths}")
        self.fields = tuple(_field(path, name, told, self._arrays[name]) for name, told in series.items())
        if sentence := flaw(self.fields):
            raise ValueError(f"{path}: {sentence}")
        n = next(iter(lengths.values()))
        self.steps = np.arange(n)
        self.times: NDArray[np.float64] = np.float64(dt) * self.steps
        self.dts = np.full(n, dt)
        self.superseded = np.zeros(n, np.bool_)
        self.controls_until = self._changes(dt)

    def read(self, k: int, selection: Mapping[str, slice]) -> dict[str, Array]:
        """Arrays of state k: of each field named, the rows selected (all of it where a state is a single number)."""
        states = {name: self._arrays[name][k] for name in selection}
        return {name: np.array(x if x.ndim == 0 else x[selection[name]]) for name, x in states.items()}

    def close(self) -> None:
        """Frees the file. May be called twice."""
        self._arrays = {}

    def _changes(self, dt: float) -> NDArray[np.float64]:
        """A control that differs in state k changed after state k - 1: no horizon from before may pass that one."""
        until = np.full(len(self.steps), np.inf)
        for spec in self.fields:
            if spec.role == "control":
                for k in np.flatnonzero(np.diff(np.asarray(self._arrays[spec.name]))):
                    until[: k + 1] = np.minimum(until[: k + 1], self.times[k] + 0.5 * dt)
        return until


def _arrays(path: Path, series: Mapping[str, SeriesField]) -> dict[str, Array]:
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a NumPy file ({error})") from error
    if isinstance(loaded, np.ndarray):
        if len(series) != 1:
            raise ValueError(f"{path} holds one array, but `series` names {', '.join(series) or 'none'}; name it once")
        return {next(iter(series)): loaded}
    with loaded:
        absent = [name for name in series if name not in loaded.files]
        if absent or not series:
            raise ValueError(
                f"{path} holds {', '.join(loaded.files)}, but `series` names {', '.join(absent) or 'none of them'}; "
                "say for each field to play what it is"
            )
        return {name: loaded[name] for name in series}


def _field(path: Path, name: str, told: SeriesField, array: Array) -> FieldSpec:
    if array.dtype.str not in DTYPES:
        raise ValueError(f"{path}: {name!r} is of type {array.dtype.str}; allowed are {', '.join(DTYPES)}")
    shape = array.shape[1:]
    if (told.kind == "scalar") != (shape == ()):
        raise ValueError(
            f"{path}: {name!r} has shape {array.shape}, so {shape} at each instant, but its kind is {told.kind!r}; a "
            "scalar is one number at each instant, and nothing else is"
        )
    return FieldSpec(name, array.dtype.str, shape, told.unit, told.kind, told.role, told.blend)
