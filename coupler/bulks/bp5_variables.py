"""BP5 files that somebody else wrote: the variables in them, step by step.

`coupler.bulks.bp5` reads what the coupler recorded. Facts of ADIOS2 2.12 that shape this module, each measured:

- Whoever reads at random counts the steps of a variable from the first that holds it, and is not told which those are.
  A reader that goes from step to step is.
- Cells that no block covers are left as they are in the memory that is read into.
- It waits for ever for data that are missing, in a copy that was cut short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from coupler.bulks.adios_engine import TYPES, adios2_module, said
from coupler.bulks.bp5 import INDEX, missing
from coupler.errors import PluginError
from coupler.registry import nearest
from schemas.fields import Array

MARK = "coupler/fields"
"""Attribute that every recording of ours has."""
VERSION_AT = 37
"""Where the index names the version of the format, as one byte."""
HEADER = 64
"""Bytes of the index before its records."""
SHOWN = 20
"""Variables that a message names."""


class Variable(NamedTuple):
    """A variable of a file.

    Attributes:
        type: Its type as ADIOS2 names it.
        shape: Global shape in the first step that holds it, `()` for a single number.
        local: Whether it is a set of blocks without a place in a whole.
        places: Steps of the file that hold it, ascending, shape (m,).
    """

    type: str
    shape: tuple[int, ...]
    local: bool
    places: NDArray[np.int64]


class VariableReader:
    """Reads variables of a BP5 file, a step when it is wanted. A `Source` of `sim_clients.series`.

    Attributes:
        path: The file, a folder.
        ours: Whether it is a recording that the coupler made.
        variables: What it holds, by name.
        steps: Steps of the file whose data are there to the end.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            PluginError: adios2 is not installed.
            ValueError: It is no BP5 file, or a damaged one.
        """
        self.path = path
        self._engine: Any = None
        if sentence := missing():
            raise PluginError(f"{sentence[0].upper()}{sentence[1:]}.")
        index = (path / INDEX).read_bytes()
        if index[VERSION_AT : VERSION_AT + 1] == b"\4":
            raise ValueError(
                f"{path} is a BP4 file, and only BP5 can be played; have it written by the engine BP5, or convert it: "
                f"adios2_reorganize {path.name} new.bp BPFile '' BP5 ''"
            )
        self._adios = adios2_module()
        self._owner = self._adios.Adios()  # the IO ends with its last reference
        self._io = self._owner.declare_io("variables")
        self._io.set_engine("BP5")
        try:
            self._engine = self._io.open(str(path), self._adios.Mode.ReadRandomAccess)
            self.ours = MARK in self._io.available_attributes()
            self.variables = self._variables()
        except (RuntimeError, ValueError) as error:
            self.close()
            raise ValueError(f"{path} cannot be read as a BP5 file ({said(error)})") from error
        self.steps = self._whole(_data_starts(index))
        if not self.steps or not self.variables:
            self.close()
            raise ValueError(
                f"{path} holds no complete step: it was cut short before the first, or its data are missing"
            )
        self._kept = np.arange(0)  # steps of the file that are states
        self._shapes: dict[str, tuple[int, ...]] = {}

    def holds(self) -> str:
        """What the file holds in words, such as `density (double (40, 30)), t (double)`."""
        what = {n: f" {v.shape}" if v.shape else " blocks" if v.local else "" for n, v in self.variables.items()}
        told = [f"{name} ({v.type}{what[name]})" for name, v in sorted(self.variables.items())]
        more = [f"{len(told) - SHOWN} more"] if len(told) > SHOWN else []
        return ", ".join(told[:SHOWN] + more) or "no variables"

    def begin(self, names: Sequence[str]) -> int:
        """Takes the steps that hold all of these variables for the states.

        Args:
            names: The variables to play.

        Returns:
            How many states there are.

        Raises:
            ValueError: There is no such variable, no step holds them all, or the shape of one changes.
        """
        absent = [name for name in names if name not in self.variables]
        if absent:
            raise ValueError(
                f"{self.path} holds no variable {', '.join(map(repr, absent))}{nearest(absent[0], self.variables)}; it "
                f"holds {self.holds()}: name one of them as `variable` of the field, or as time"
            )
        kept = np.arange(self.steps)
        for name in names:
            kept = np.intersect1d(kept, self.variables[name].places)
        if not len(kept):
            counts = ", ".join(f"{name!r} in {len(self.variables[name].places)}" for name in names)
            raise ValueError(
                f"{self.path} has no step that holds all that is to be played: of its {self.steps} complete steps "
                f"there are {counts}; write what belongs together in one step"
            )
        self._kept = kept
        self._shapes = {name: self._one_shape(name) for name in names}
        return len(kept)

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """NumPy type string and shape of a variable in each state.

        Raises:
            ValueError: It is of a type that no field may have, or no global array.
        """
        found = self.variables[name]
        if found.type not in TYPES:
            raise ValueError(f"{self.path}: {name!r} is of type {found.type}; allowed are {', '.join(TYPES)}")
        if found.local:
            raise ValueError(
                f"{self.path}: {name!r} is a local array, blocks without a place in a whole; write a global array, "
                "whose definition gives a shape and the start of each block"
            )
        return TYPES[found.type], self._shapes[name]

    def read(self, name: str, k: int, rows: slice) -> Array:
        """A variable in state k: the rows selected of its first axis, or the one number it is.

        Raises:
            ValueError: The file is damaged, or its blocks leave a part of the array open.
        """
        dtype, shape = self.form(name)
        variable, at = self._io.inquire_variable(name), self._at(name, k)
        variable.set_step_selection([at, 1])
        if not shape:
            single = np.empty(1, dtype)
            self._get(variable, single)
            return single.reshape(())
        covered = sum(_cells(block) for block in self._engine.blocks_info(name, at))
        if covered < math.prod(shape):
            raise ValueError(
                f"{self.path}: the blocks of {name!r} in step {self._kept[k]} cover {covered} of the "
                f"{math.prod(shape)} cells of its shape {shape}; each step has to hold the whole array"
            )
        start, stop, _ = rows.indices(shape[0])
        count = (max(stop - start, 0), *shape[1:])
        found = np.zeros(count, dtype)
        if found.size:
            variable.set_selection([[start, *(0 for _ in count[1:])], list(count)])
            self._get(variable, found)
        return found

    def numbers(self, name: str) -> NDArray[Any]:
        """A variable of one number in every state, shape (n,)."""
        dtype, shape = self.form(name)
        first, n = self._at(name, 0), len(self._kept)
        if shape or self._at(name, n - 1) - first != n - 1:
            return np.array([self.read(name, k, slice(None)).reshape(()) for k in range(n)], dtype)
        variable, found = self._io.inquire_variable(name), np.empty(n, dtype)
        variable.set_step_selection([first, n])
        self._get(variable, found)
        return found

    def close(self) -> None:
        """Frees the file. May be called twice."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _variables(self) -> dict[str, Variable]:
        steps, names = int(self._engine.steps()), list(self._io.available_variables())
        found = {name: self._io.inquire_variable(name) for name in names}
        places = {name: np.arange(steps) for name in names}
        if any(variable.steps() != steps for variable in found.values()):
            seen = self._listed()
            places = {name: np.flatnonzero([name in step for step in seen]) for name in names}
        local = self._adios.bindings.ShapeID.LocalArray
        return {
            name: Variable(v.type(), tuple(v.shape()), v.shape_id() == local, places[name]) for name, v in found.items()
        }

    def _listed(self) -> list[set[str]]:
        """The variables that each step holds."""
        bindings = self._adios.bindings
        io = self._owner.declare_io("steps")
        io.set_engine("BP5")
        engine, seen = io.open(str(self.path), self._adios.Mode.Read), []
        try:
            # Without a time-out it would wait for the writer of a file that was never closed.
            while engine.begin_step(bindings.StepMode.Read, 0.0) == bindings.StepStatus.OK:
                seen.append(set(io.available_variables()))
                engine.end_step()
        finally:
            engine.close()
        return seen

    def _whole(self, starts: list[list[tuple[int, int]]]) -> int:
        """How many steps are there to the end; where data are missing, those of the last ones are."""
        whole = int(self._engine.steps())
        if not whole or len(starts) != whole:  # an index of a kind that is not known: it is believed
            return whole
        sizes = {file: _size(self.path / f"data.{file}") for step in starts for file, _ in step}
        packed = whole > 1 and any(count > _room(starts, writer) for writer, count in self._bytes(0).items())
        while whole:
            places = starts[whole - 1]
            # Of compressed data nobody says how much there has to be.
            ends = [(places[w][0], places[w][1] + (1 if packed else n)) for w, n in self._bytes(whole - 1).items()]
            if all(end <= sizes[file] for file, end in ends):
                break
            whole -= 1
        return whole

    def _bytes(self, step: int) -> dict[int, int]:
        """Bytes of the arrays that each writer has in a step of the file, before any compression."""
        found: dict[int, int] = {}
        for name, told in self.variables.items():
            at = int(np.searchsorted(told.places, step))
            if at == len(told.places) or told.places[at] != step:
                continue
            size = self._io.inquire_variable(name).sizeof()
            for block in self._engine.blocks_info(name, at):
                if (cells := _cells(block)) > 1:  # numbers of a step or of a writer are in the metadata
                    writer = int(block["WriterID"])
                    found[writer] = found.get(writer, 0) + size * cells
        return found

    def _at(self, name: str, k: int) -> int:
        """Where a variable has state k, counted in the steps that hold it."""
        return int(np.searchsorted(self.variables[name].places, self._kept[k]))

    def _one_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a variable in every state."""
        variable = self._io.inquire_variable(name)
        first = tuple(variable.shape(self._at(name, 0)))
        for k in range(1, len(self._kept)):
            if (shape := tuple(variable.shape(self._at(name, k)))) != first:
                raise ValueError(
                    f"{self.path}: {name!r} has shape {first} in step {self._kept[0]} and {shape} in step "
                    f"{self._kept[k]}; a field keeps its shape: write the steps after a change to a file of their own"
                )
        return first

    def _get(self, variable: Any, into: NDArray[Any]) -> None:
        try:
            self._engine.get(variable, into, self._adios.Mode.Sync)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{self.path} is damaged ({said(error)})") from error


def foreign(path: Path) -> str:
    """What a BP5 file holds, in words, if it is no recording of ours; empty when it is one.

    Raises:
        PluginError: adios2 is not installed.
        ValueError: It cannot be read.
    """
    reader = VariableReader(path)
    try:
        return "" if reader.ours else reader.holds()
    finally:
        reader.close()


def _data_starts(index: bytes) -> list[list[tuple[int, int]]]:
    """Where the data of each step begin: for each writer the file `data.N`, as N, and the place in it.

    After its header the index has records: one byte for the sort, the length, and 64-bit numbers. Sort `w` gives the
    numbers of writers, of aggregators and of files, then the file of each writer. Sort `s`, a step, gives place and
    length of its metadata, the number of flushes, and for each writer its flushes, of two numbers, and the place of the
    rest of its data.
    """
    found: list[list[tuple[int, int]]] = []
    files, at = [0], HEADER
    while at + 9 <= len(index):
        sort, length = index[at : at + 1], int.from_bytes(index[at + 1 : at + 9], "little")
        at += 9 + length
        if length % 8 or at > len(index):
            break
        record = np.frombuffer(index[at - length : at], "<u8").tolist()
        if sort == b"w":
            files = record[3:]
        elif sort == b"s" and len(record) == 3 + len(files):
            found.append(list(zip(files, record[3:], strict=True)))
        elif sort == b"s":  # flushed within the step
            return []
    return found


def _room(starts: list[list[tuple[int, int]]], writer: int) -> float:
    """Bytes between the data of a writer in the first step and what comes next in the same file."""
    file, start = starts[0][writer]
    return min((s - start for step in starts[:2] for other, s in step if other == file and s > start), default=math.inf)


def _cells(block: dict[str, str]) -> int:
    return math.prod(int(count) for count in block["Count"].split(",") if count)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
