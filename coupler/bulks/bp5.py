"""Recordings: the states of a run in one BP5 file, written and read through the adios2 package.

Each BP5 step holds one state: every field as a global array of its own name, and `step`, `time`, `dt`,
`controls_until` and `branch`. `bpls` and other readers of BP files list and read them; attributes `FIELD/unit`,
`FIELD/kind`, `FIELD/role` and `FIELD/blend` say what a field is. A step reaches the operating system before `write`
returns, so a recording that was cut short by a kill can be read up to its last complete step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.bulks.adios_engine import TYPES, adios2_module, available, said
from coupler.errors import PluginError, SchemaMismatch
from schemas.fields import Array, FieldSpec, Snapshot, flaw

RECORDING = "recording.bp"
"""Name of the recording in a run folder."""
FORMAT = 1
"""Version of this layout, in the attribute `coupler/format`."""
INSTANT = {"step": "<i8", "time": "<f8", "dt": "<f8", "controls_until": "<f8", "branch": "<i8"}
"""Variables of a state beside its fields, with their types. No field may have one of these names."""
INDEX = "md.idx"
"""What every BP5 file, a folder, holds."""
_TRAITS = ("unit", "kind", "role", "blend")


def missing() -> str:
    """Why recordings cannot be written or read here, as a sentence; empty when they can."""
    reason = available()
    return reason and f"recordings need the package adios2: {reason}"


class RecordWriter:
    """Writes a recording. One thread owns it."""

    def __init__(self, path: Path, fields: Sequence[FieldSpec], attributes: Mapping[str, str]) -> None:
        """Begins a recording; one that lies there already is replaced.

        Args:
            path: The BP5 file, a folder.
            fields: Fields of each state.
            attributes: More attributes of the file, by name.

        Raises:
            PluginError: adios2 is not installed.
            SchemaMismatch: There are no fields, or one has a name or a type that no recording can hold.
        """
        taken = [spec.name for spec in fields if spec.name in INSTANT]
        if sentence := flaw(tuple(fields)) or ("there are no fields" if not fields else ""):
            raise SchemaMismatch(f"{path} cannot be recorded: {sentence}.")
        if taken:
            raise SchemaMismatch(
                f"{path} cannot be recorded: field {taken[0]!r} has a name that a recording gives to the instant of a "
                f"state ({', '.join(INSTANT)}); rename the field."
            )
        self.path, self.fields = path, tuple(fields)
        self._adios = _adios2()
        self._io = self._adios.Adios().declare_io("recording")
        self._io.set_engine("BP5")
        self._io.set_parameter("Profile", "Off")
        self._io.define_attribute("coupler/format", np.array(FORMAT))
        self._io.define_attribute("coupler/fields", [spec.name for spec in fields])
        for name, text in attributes.items():
            self._io.define_attribute(name, text)
        self._variables = {name: self._io.define_variable(name, np.zeros(1, dtype)) for name, dtype in INSTANT.items()}
        for spec in fields:
            self._variables[spec.name] = self._define(spec)
        self._engine: Any = self._io.open(str(path), self._adios.Mode.Write)

    def write(self, snapshot: Snapshot, branch: int = 0) -> None:
        """Appends a state and hands it to the operating system.

        Args:
            snapshot: Whole fields, as global arrays.
            branch: How often the run had returned to an earlier step by then; see `superseded`.

        Raises:
            SchemaMismatch: A field is missing or is not as it was declared.
        """
        held = {spec.name: self._checked(spec, snapshot) for spec in self.fields}
        instant = (snapshot.step, snapshot.time, snapshot.dt, snapshot.controls_until, branch)
        for (name, dtype), value in zip(INSTANT.items(), instant, strict=True):
            held[name] = np.array([value], dtype=dtype)
        self._engine.begin_step()
        for name, array in held.items():  # deferred: the arrays are read in end_step
            self._engine.put(self._variables[name], array)
        self._engine.end_step()

    def close(self) -> None:
        """Completes the file. May be called twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _define(self, spec: FieldSpec) -> Any:
        shape = list(spec.shape)
        selection = (shape, [0] * len(shape), shape) if shape else ()
        variable = self._io.define_variable(spec.name, np.zeros(1, spec.dtype), *selection)
        for trait in _TRAITS:
            self._io.define_attribute(trait, getattr(spec, trait), spec.name)
        return variable

    def _checked(self, spec: FieldSpec, snapshot: Snapshot) -> Array:
        block = snapshot.blocks.get(spec.name)
        if block is None:
            raise SchemaMismatch(f"{self.path}: the state of step {snapshot.step} lacks the field {spec.name!r}.")
        array = block.array
        if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
            raise SchemaMismatch(
                f"{self.path}: field {spec.name!r} was declared as {spec.dtype} of shape {spec.shape}, but came as "
                f"{array.dtype.str} of shape {array.shape} at step {snapshot.step}."
            )
        return np.ascontiguousarray(array).reshape(spec.shape or (1,))


class RecordReader:
    """Reads a recording, also one that was cut short.

    Attributes:
        path: The BP5 file.
        fields: Fields of each state.
        steps: Coupling step of each recorded state, shape (n,), int64, in the order they were written.
        times: Simulated time of each, shape (n,), float64, in the simulation's unit.
        dts: Simulated time that one coupling step advances from it, shape (n,), float64.
        controls_until: Simulated time of the next known change of a control, shape (n,), float64.
        superseded: Whether the run went back past it, shape (n,); see `superseded`.
        attributes: The other attributes of the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens a recording.

        Args:
            path: The BP5 file, a folder.

        Raises:
            PluginError: adios2 is not installed.
            ValueError: It is no recording, or holds no complete state.
        """
        self.path = path
        self._engine: Any = None
        if not (path / INDEX).is_file():
            raise ValueError(f"{path} is not a BP5 file, which is a folder with {INDEX} in it")
        self._adios = _adios2()
        self._io = self._adios.Adios().declare_io("recording")
        self._io.set_engine("BP5")
        try:
            self._engine = self._io.open(str(path), self._adios.Mode.ReadRandomAccess)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a BP5 file ({said(error)})") from error
        try:
            self._describe()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Number of recorded states."""
        return len(self.steps)

    def read(self, k: int, selection: Mapping[str, slice] | None = None) -> dict[str, Array]:
        """Arrays of a recorded state, by field name.

        Args:
            k: Which one, from 0, in the order they were written.
            selection: Fields to read, each with its rows (a slice with start and stop of the first axis; `slice(None)`
                for a whole field); every field whole when None.

        Raises:
            ValueError: There is no such state, or the file is damaged.
        """
        if not 0 <= k < len(self.steps):
            raise ValueError(f"{self.path} holds states 0 to {len(self.steps) - 1}; there is no state {k}")
        specs = {spec.name: spec for spec in self.fields}
        wanted = dict.fromkeys(specs, slice(None)) if selection is None else selection
        return {name: self._array(specs[name], k, rows) for name, rows in wanted.items()}

    def close(self) -> None:
        """Frees the file. May be called twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _describe(self) -> None:
        attributes = {name: self._attribute(name) for name in self._io.available_attributes()}
        if attributes.get("coupler/format") != FORMAT or not attributes.get("coupler/fields"):
            raise ValueError(
                f"{self.path} is a BP5 file, but no recording of layout {FORMAT}: it has no attribute `coupler/fields` "
                "that names its fields, or another `coupler/format`"
            )
        names = attributes["coupler/fields"]
        names = [names] if isinstance(names, str) else list(names)
        n = int(self._engine.steps())
        variables = self._io.available_variables()
        if not n or any(name not in variables for name in (*names, *INSTANT)):
            raise ValueError(f"{self.path} holds no complete state: it was cut short before the first one")
        self.fields = tuple(self._field(name, attributes) for name in names)
        n = self._whole(n)
        self.steps: NDArray[np.int64] = self._series("step", n)
        self.times, self.dts, self.controls_until = (self._series(x, n) for x in ("time", "dt", "controls_until"))
        self.superseded = superseded(self.steps, self._series("branch", n))
        own = {f"{name}/{trait}" for name in names for trait in _TRAITS} | {"coupler/format", "coupler/fields"}
        self.attributes = {name: value for name, value in attributes.items() if name not in own}

    def _whole(self, n: int) -> int:
        """How many of n states are there to the end: after a crash of the machine, data may be missing.

        Asked of the index of the file, since adios2 waits for ever for data that are missing.
        """
        starts = _data_starts((self.path / INDEX).read_bytes())
        size = (self.path / "data.0").stat().st_size
        each = sum(spec.nbytes for spec in self.fields if spec.shape)
        whole = sum(start + each <= size for start in starts) if len(starts) == n else n
        if not whole:
            raise ValueError(f"{self.path} holds no complete state: its data are missing")
        return whole

    def _attribute(self, name: str) -> Any:
        attribute = self._io.inquire_attribute(name)
        if attribute.type() != "string":
            return np.asarray(attribute.data()).reshape(-1)[0].item()
        return attribute.data_string()

    def _field(self, name: str, attributes: Mapping[str, Any]) -> FieldSpec:
        variable = self._io.inquire_variable(name)
        traits = {trait: attributes.get(f"{name}/{trait}") for trait in _TRAITS}
        told = {"name": name, "dtype": TYPES.get(variable.type()), "shape": variable.shape(), **traits}
        try:
            return msgspec.convert([told[key] for key in FieldSpec.__struct_fields__], FieldSpec)
        except msgspec.ValidationError as error:
            raise ValueError(f"{self.path}: the field {name!r} is not described as fields are ({error})") from error

    def _series(self, name: str, n: int) -> NDArray[Any]:
        variable, found = self._io.inquire_variable(name), np.empty(n, INSTANT[name])
        variable.set_step_selection([0, n])
        self._get(variable, found)
        return found

    def _array(self, spec: FieldSpec, k: int, rows: slice) -> Array:
        variable = self._io.inquire_variable(spec.name)
        variable.set_step_selection([k, 1])
        if not spec.shape:
            single = np.empty(1, spec.dtype)
            self._get(variable, single)
            return single.reshape(())
        start, stop, _ = rows.indices(spec.shape[0])
        count = (max(stop - start, 0), *spec.shape[1:])
        found = np.empty(count, spec.dtype)
        if found.size:
            variable.set_selection([[start, *(0 for _ in count[1:])], list(count)])
            self._get(variable, found)
        return found

    def _get(self, variable: Any, into: NDArray[Any]) -> None:
        try:
            self._engine.get(variable, into, self._adios.Mode.Sync)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged ({said(error)})") from error


def superseded(steps: NDArray[np.int64], branches: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which recorded states the run left again by going back.

    Args:
        steps: Coupling step of each state in the order they were written, shape (n,).
        branches: How often the run had gone back before each, shape (n,); never falls.

    Returns:
        True where a later branch begins at the state's step or before it, shape (n,).
    """
    left = np.zeros(len(steps), np.bool_)
    for start in np.flatnonzero(np.diff(branches)) + 1:
        left[:start] |= steps[:start] >= steps[start]
    return left


def _data_starts(index: bytes) -> list[int]:
    """Where the data of each BP5 step begin in `data.0`; empty when more than one process wrote the file.

    The index is a header of 64 bytes, then records: one byte for the sort, the length, and 64-bit numbers, of which
    the last of a step written by one process is the place of its data.
    """
    found, at = [], 64
    while at + 9 <= len(index):
        sort, length = index[at : at + 1], int.from_bytes(index[at + 1 : at + 9], "little")
        at += 9 + length
        if sort == b"s" and length == 32 and at <= len(index):
            found.append(int.from_bytes(index[at - 8 : at], "little"))
        elif sort == b"s":
            return []
    return found


def _adios2() -> Any:
    if sentence := missing():
        raise PluginError(f"{sentence[0].upper()}{sentence[1:]}.")
    return adios2_module()
