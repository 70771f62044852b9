"""Series of states in `.npy`, `.npz` and BP5 files that somebody else wrote, as a record that can be played."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from schemas.fields import DTYPES, Array, Blend, FieldSpec, Kind, Role, flaw
from sim_clients.stretches import changes, paced


class SeriesField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a file of numbers does not say about a field; see `FieldSpec`.

    Attributes:
        unit: Unit as text, `"1"` for a dimensionless field.
        kind: `cell`, `particle` or `scalar`.
        role: `state`, `control` or `observable`.
        blend: `linear` or `never`.
        variable: Its name in the file; that of the field unless given.
    """

    unit: str
    kind: Kind
    role: Role
    blend: Blend = "never"
    variable: str | None = None


class Source(Protocol):
    """Named arrays over time in a file; see `Arrays` and `coupler.bulks.bp5_variables.VariableReader`."""

    path: Path

    def begin(self, names: Sequence[str]) -> int:
        """How many states hold all of these arrays. Raises ValueError when there is none, or no such array."""
        ...

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """NumPy type string and shape of an array in each state. Raises ValueError for a type no field may have."""
        ...

    def read(self, name: str, k: int, rows: slice) -> Array:
        """Rows of an array in state k (all of it where it is a single number), in the type of `form`."""
        ...

    def numbers(self, name: str) -> NDArray[Any]:
        """An array of one number in every state, shape (n,)."""
        ...

    def close(self) -> None:
        """Frees the file. May be called twice."""
        ...


class Series:
    """States in one file that does not say what they are.

    Attributes:
        fields: The fields of a state, with the type and the shape that the file has.
        steps: 0, 1, 2, ..., shape (n,).
        times: Simulated time of each state, as the file has it or else from 0, shape (n,).
        dts: Simulated time to the next state, shape (n,).
        controls_until: Simulated time of the next change of a control, as the file has it, shape (n,).
        superseded: False for each state, shape (n,).
    """

    def __init__(self, source: Source, series: Mapping[str, SeriesField], clock: float | str) -> None:
        """Reads what there is; frees the file if it cannot be played.

        Args:
            source: The file.
            series: The fields to play, by name.
            clock: Simulated time between two states, or the name of the array in the file that holds their times.

        Raises:
            ValueError: The file does not hold what `series` and `clock` say.
        """
        self._source, self._names = source, {name: told.variable or name for name, told in series.items()}
        try:
            n = source.begin([*self._names.values(), *([clock] if isinstance(clock, str) else [])])
            self.fields = tuple(self._field(name, told) for name, told in series.items())
            if sentence := flaw(self.fields):
                raise ValueError(f"{source.path}: {sentence}")
            self.steps = np.arange(n)
            self.times, self.dts = self._paced(clock, n)
            self.superseded = np.zeros(n, np.bool_)
            controls = [source.numbers(self._names[spec.name]) for spec in self.fields if spec.role == "control"]
            self.controls_until = changes(self.times, self.dts, controls)
        except BaseException:
            self.close()
            raise
        self._shapes = {spec.name: spec.shape for spec in self.fields}

    def read(self, k: int, selection: Mapping[str, slice]) -> dict[str, Array]:
        """Arrays of state k: of each field named, the rows selected (all of it where a state is a single number)."""
        found = {name: self._source.read(self._names[name], k, rows) for name, rows in selection.items()}
        return {name: array if self._shapes[name] else array.reshape(()) for name, array in found.items()}

    def close(self) -> None:
        """Frees the file. May be called twice."""
        self._source.close()

    def _field(self, name: str, told: SeriesField) -> FieldSpec:
        dtype, shape = self._source.form(self._names[name])
        if told.kind == "scalar" and shape == (1,):
            shape = ()
        if (told.kind == "scalar") != (shape == ()):
            raise ValueError(
                f"{self._source.path}: {name!r} has shape {shape} at each instant, but its kind is {told.kind!r}; a "
                "scalar is one number at each instant, and nothing else is"
            )
        return FieldSpec(name, dtype, shape, told.unit, told.kind, told.role, told.blend)

    def _paced(self, clock: float | str, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if not isinstance(clock, str):
            return np.float64(clock) * np.arange(n), np.full(n, clock)
        path, name = self._source.path, clock
        dtype, shape = self._source.form(name)
        if shape not in ((), (1,)):
            raise ValueError(f"{path}: time = {name!r} has shape {shape} at each instant; a time is one number")
        told = self._source.numbers(name)
        if len(wrong := np.flatnonzero(~np.isfinite(told))):
            raise ValueError(f"{path}: the time {name!r} is {told[wrong[0]]} in state {wrong[0]}; times are finite")
        if len(told) > 1 and not (np.diff(told) > 0.0).any():
            raise ValueError(
                f"{path}: the time {name!r} never rises: it is {told[0]}, then {told[1]}; name another variable, or "
                "give dt in place of time"
            )
        floating = np.issubdtype(told.dtype, np.floating)
        return paced(told.astype(np.float64), float(np.finfo(dtype).eps) if floating else 0.0)


class Arrays:
    """The arrays of a `.npy` file, which is mapped, or a `.npz` file, which is read. A `Source`.

    The first axis of each counts the states. What is stored in the other byte order is turned when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._arrays: dict[str, Array] = {}

    def begin(self, names: Sequence[str]) -> int:
        """See `Source.begin`."""
        self._arrays = self._loaded(names)
        lengths = {name: array.shape[0] if array.ndim else 0 for name, array in self._arrays.items()}
        if len(set(lengths.values())) != 1 or not min(lengths.values()):
            raise ValueError(
                f"{self.path}: the first axis of each field counts the states, but their lengths are {lengths}"
            )
        return next(iter(lengths.values()))

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """See `Source.form`."""
        array = self._arrays[name]
        dtype = array.dtype.newbyteorder("=").str
        if dtype not in DTYPES:
            raise ValueError(f"{self.path}: {name!r} is of type {array.dtype.str}; allowed are {', '.join(DTYPES)}")
        return dtype, array.shape[1:]

    def read(self, name: str, k: int, rows: slice) -> Array:
        """See `Source.read`."""
        state = self._arrays[name][k]
        return np.array(state if state.ndim == 0 else state[rows], self.form(name)[0])

    def numbers(self, name: str) -> NDArray[Any]:
        """See `Source.numbers`."""
        return np.array(self._arrays[name], self.form(name)[0]).reshape(-1)

    def close(self) -> None:
        """See `Source.close`."""
        self._arrays = {}

    def _loaded(self, names: Sequence[str]) -> dict[str, Array]:
        try:
            loaded = np.load(self.path, mmap_mode="r" if self.path.suffix == ".npy" else None, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{self.path} cannot be read as a NumPy file ({error})") from error
        if isinstance(loaded, np.ndarray):
            if len(names) != 1:
                raise ValueError(
                    f"{self.path} holds one array, but `series` and `time` name {', '.join(names)}; describe one "
                    "field, and give dt"
                )
            return {names[0]: loaded}
        with loaded:
            absent = [name for name in names if name not in loaded.files]
            if absent:
                raise ValueError(
                    f"{self.path} holds {', '.join(loaded.files)}, but `series` names {', '.join(absent)}; say for "
                    "each field to play what it is, and name its array as `variable` if that has another name"
                )
            return {name: loaded[name] for name in names}
