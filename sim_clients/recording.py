"""Plays a record as if it were a running simulation: a learner can be tried on data that are there already."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.bulks.bp5 import INDEX, RECORDING, RecordReader
from coupler.bulks.bp5_variables import VariableReader, foreign
from coupler.contracts import Invariant
from coupler.errors import SchemaMismatch, SimulationFailed
from coupler.ranks import Ranks
from schemas.fields import Array, Block, FieldSpec, Snapshot, misfit, with_role
from sim_clients.particles import Positive, own_slice
from sim_clients.series import Arrays, Series, SeriesField
from sim_clients.stretches import SAME, chosen, listed, stretches

log = logging.getLogger("sim_clients")
INVARIANT = "invariant."
"""Begins the names of what a server recorded beside the fields of the simulation."""


class Record(Protocol):
    """States that lie in a file; see `RecordReader` and `Series`."""

    fields: tuple[FieldSpec, ...]
    steps: NDArray[np.int64]
    times: NDArray[np.float64]
    dts: NDArray[np.float64]
    controls_until: NDArray[np.float64]
    superseded: NDArray[np.bool_]

    def read(self, k: int, selection: Mapping[str, slice]) -> dict[str, Array]:
        """Rows of the arrays of state k, by field name."""
        ...

    def close(self) -> None:
        """Frees the file."""
        ...


@dataclass(frozen=True, slots=True)
class _Saved:
    at: int
    time: float
    dt: float
    arrays: Mapping[str, Array]


class Recording:
    """A recording, or a series of states in a BP5 or NumPy file, played as a simulation. A `Simulation`.

    The fields are those of the record. A direct step goes to the next recorded state; its dt must be the record's. The
    record is the truth: a learned state that is adopted is the present state until the next direct step, which returns
    to the record at the step after it, and changes nothing there. Observables and controls are the record's
    throughout, and there are no invariants, since those of a learned state are not known. Step 0 is the first state
    that is played; times are the record's.

    Playing needs successive steps. Of a record with gaps, which leases and learned steps leave, the longest stretch is
    played unless `start` and `stop` say otherwise; states of a branch that the run went back from are skipped.
    Particles are shared by ranges of ids, other fields by rows of their first axis.
    """

    def __init__(
        self,
        *,
        ranks: Ranks,
        path: str,
        dt: Positive | None = None,
        time: str | None = None,
        series: dict[str, SeriesField] | None = None,
        start: Annotated[int, msgspec.Meta(ge=0)] | None = None,
        stop: Annotated[int, msgspec.Meta(ge=0)] | None = None,
    ) -> None:
        """Opens the record.

        Args:
            ranks: Ranks that share the states.
            path: A `recording.bp`, a run folder that holds one, another BP5 file, or a `.npy` or `.npz` file; from the
                current folder, or else from `run.path`, of which the case's folder is the first.
            dt: Simulated time between two states of a file that is no recording.
            time: In place of `dt`, the variable of such a file that holds the time of each state.
            series: What the fields of such a file are, by name: `unit`, `kind`, `role`, if not `never` `blend`, and, if
                it has another name there, `variable`.
            start: First recorded step to play.
            stop: Last recorded step to play.

        Raises:
            PluginError: adios2 is needed and not installed.
            ValueError: There is no such record, or it cannot be played.
        """
        record = opened(path, dt, time, series)
        self._record, self._ranks = record, ranks
        found = stretches(record.steps, record.times, record.superseded)
        self._places = chosen(record.steps, found, start, stop)
        self._times, self._dts = _course(record, self._places)
        self._fields = tuple(spec for spec in record.fields if not spec.name.startswith(INVARIANT))
        self._own = {spec.name: self._rows(spec) for spec in self._fields}
        self._tell(path, found)
        self._at, self._time, self._dt = 0, float(self._times[0]), float(self._dts[0])
        self._arrays = self._recorded(0)

    @property
    def last_step(self) -> int:
        """The last step that can be played to."""
        return len(self._places) - 1

    def close(self) -> None:
        """Frees the file, as the end of this object does."""
        self._record.close()

    def fields(self) -> Sequence[FieldSpec]:
        """See `Simulation.fields`."""
        return self._fields

    def snapshot(self) -> Snapshot:
        """See `Simulation.snapshot`. The arrays are read-only."""
        blocks = {spec.name: self._block(spec, self._arrays[spec.name]) for spec in self._fields}
        end = float(self._times[self.last_step])  # no learned phase passes it
        until = max(min(float(self._record.controls_until[self._places[self._at]]), end), self._time)
        return Snapshot(self._at, self._time, self._dt, blocks, until)

    def ended(self) -> str:
        """See `Ending.ended`: the record was played to its end."""
        return f"the record was played to its end, step {self.last_step}" if self._at >= self.last_step else ""

    def integrate(self, dt: float, n: int) -> None:
        """Goes to the state n further on in the record.

        Raises:
            SimulationFailed: The record ends before, or has another dt.
        """
        if self._at + n > self.last_step:
            first, last = (self._record.steps[self._places[i]] for i in (0, -1))
            raise SimulationFailed(
                f"The record was played to its end, step {self.last_step} (recorded steps {first} to {last}), and step "
                f"{self._at + n} was asked for; set run.steps to {self.last_step} at most, or play a longer stretch."
            )
        for at in range(self._at, self._at + n):
            if abs(dt - self._dts[at]) > SAME * self._dts[at]:
                raise SimulationFailed(
                    f"Step {at} of the record takes {self._dts[at]:g}, and a step of {dt:g} was asked for; a record "
                    "has the dt that it has: leave out limits.dt and tasks that own dt, and set run.end_time to a "
                    "recorded time."
                )
        self._at += n
        self._time, self._dt = float(self._times[self._at]), float(self._dts[self._at])
        self._arrays = self._recorded(self._at)

    def adopt(self, snapshot: Snapshot) -> None:
        """Stands at a learned state until the next direct step, which returns to the record.

        Raises:
            SchemaMismatch: A state field is missing or is not this rank's Block.
            SimulationFailed: The record has no such step, or is at another time there.
        """
        at = snapshot.step
        if not 0 <= at <= self.last_step:
            raise SimulationFailed(f"The learned state is of step {at}, and the record ends at step {self.last_step}.")
        if abs(snapshot.time - self._times[at]) > 1e3 * SAME * self._dts[at]:
            raise SimulationFailed(
                f"The learned state of step {at} is of time {snapshot.time:g}, where the record is at "
                f"{self._times[at]:g}: its steps have not all the same dt. Play such a record in mode shadow."
            )
        learned = {spec.name: self._taken(spec, snapshot) for spec in with_role(self._fields, "state")}
        self._at, self._time, self._dt = at, snapshot.time, snapshot.dt
        self._arrays = self._recorded(at) | learned

    def save(self) -> object:
        """See `Simulation.save`: the place in the record, and the present arrays, which nobody changes."""
        return _Saved(self._at, self._time, self._dt, self._arrays)

    def restore(self, token: object) -> None:
        """See `Simulation.restore`. Raises TypeError for a token that `save` did not make."""
        if not isinstance(token, _Saved):
            raise TypeError(f"restore got a {type(token).__name__}; give it a token made by save of a Recording")
        self._at, self._time, self._dt, self._arrays = token.at, token.time, token.dt, dict(token.arrays)

    def invariants(self) -> Mapping[str, Invariant]:
        """None."""
        return {}

    def _rows(self, spec: FieldSpec) -> slice:
        """This rank's rows of the first axis of a field; none where there are more ranks than rows."""
        return own_slice(spec.shape[0], self._ranks) if spec.shape else slice(None)

    def _recorded(self, at: int) -> dict[str, Array]:
        arrays = self._record.read(int(self._places[at]), self._own)
        for array in arrays.values():
            array.setflags(write=False)
        return arrays

    def _block(self, spec: FieldSpec, array: Array) -> Block:
        if not spec.shape:
            return Block(array)
        own = self._own[spec.name]
        if spec.kind == "particle":
            return Block(array, ids=np.arange(own.start, own.stop))
        return Block(array, (own.start, *(0 for _ in spec.shape[1:])))

    def _taken(self, spec: FieldSpec, snapshot: Snapshot) -> Array:
        """A copy of this rank's part of a state field to adopt, in the order of the record."""
        block = snapshot.blocks.get(spec.name)
        if block is None:
            raise SchemaMismatch(f"The state to adopt at step {snapshot.step} holds no field {spec.name!r}.")
        mine = self._block(spec, self._arrays[spec.name])
        if wrong := misfit(spec, block):
            raise SchemaMismatch(f"At step {snapshot.step} {wrong}.")
        array = np.array(block.array)
        if block.ids is not None:
            order = np.argsort(block.ids)
            array, same = array[order], np.array_equal(block.ids[order], mine.ids)  # type: ignore[arg-type]
        else:
            same = block.offset == mine.offset and array.shape == mine.array.shape
        if not same:
            raise SchemaMismatch(f"The block of {spec.name!r} to adopt at step {snapshot.step} is another rank's.")
        array.setflags(write=False)
        return array

    def _tell(self, path: str, found: list[NDArray[np.int64]]) -> None:
        if self._ranks.rank:
            return
        steps, left = self._record.steps, len(self._record.steps) - len(self._places)
        first, last = steps[self._places[0]], steps[self._places[-1]]
        say = log.warning if left else log.info
        rest = f"; {left} states are left out (the record has {listed(steps, found)})" if left else ""
        say("Playing %s from recorded step %d to %d%s.", path, first, last, rest)


def opened(path: str, dt: float | None, time: str | None, series: Mapping[str, SeriesField] | None) -> Record:
    """The record that a path names. Raises ValueError or PluginError when there is none, or it cannot be read."""
    places = [Path(folder) / path for folder in ("", *sys.path)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise ValueError(f"there is no {path}, neither in the current folder nor in those of run.path")
    if found.suffix in (".npy", ".npz"):
        return Series(Arrays(found), *_described(f"{path} is a NumPy file, which", dt, time, series))
    if not (found / INDEX).is_file() and (found / RECORDING).is_dir():
        found = found / RECORDING
    elif not (found / INDEX).is_file():
        raise ValueError(
            f"{path} is no recording, no run folder with a {RECORDING} in it, no other BP5 file (a folder with {INDEX} "
            "in it), and no .npy or .npz file"
        )
    if dt is None and time is None and not series:
        return _recording(found)
    source = VariableReader(found)
    if source.ours:
        source.close()
        raise ValueError(f"{path} is a recording, which says itself what it holds: leave out dt, time and series")
    return Series(source, *_described(f"{path} is a BP5 file that holds {source.holds()}, but", dt, time, series))


def _described(
    subject: str, dt: float | None, time: str | None, series: Mapping[str, SeriesField] | None
) -> tuple[Mapping[str, SeriesField], float | str]:
    """Fields and clock of a file that is no recording. Raises ValueError when the run file says too little of it."""
    if dt is not None and time is not None:
        raise ValueError(f"dt = {dt:g} and time = {time!r} both say when the states are; leave one of them out")
    clock = dt if time is None else time
    if not series or clock is None:
        raise ValueError(
            f"{subject} does not say what it holds: give dt and series; where it holds the time of each state, give "
            "time, the name of that, in place of dt"
        )
    return series, clock


def _recording(path: Path) -> Record:
    try:
        return RecordReader(path)
    except ValueError as error:
        if holds := foreign(path):
            raise ValueError(
                f"{path} is a BP5 file, but no recording of ours: say what to play of it with series, and dt or time; "
                f"it holds {holds}"
            ) from error
        raise


def _course(record: Record, places: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Time of each state played, and the simulated time to the next (for the last: the dt that was recorded)."""
    times, told = record.times[places], record.dts[places]
    apart = np.append(np.diff(times), told[-1])
    # The recorded dt, where it is the distance to the next state but for rounding: then dt does not flicker.
    return times, np.where(np.abs(apart - told) <= SAME * np.abs(told), told, apart)
