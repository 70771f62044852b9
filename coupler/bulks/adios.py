"""Stepwise streams of Blocks over ADIOS2 SST: from M writers to N readers, over whatever fabric ADIOS2 knows.

SST's own queue is a short mailbox that drops what is not read in time, and it is silent about it. So each step carries
a number of its own; the layer above says what was read, and counts what was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupler.bulks.adios_engine import TYPES, Sockets, engine_io, open_engine
from coupler.distribution import Region, Share
from coupler.errors import LinkError, SchemaMismatch
from schemas.fields import Array, Block, FieldSpec

NUMBER, TIME, STEP = "coupler/number", "coupler/time", "coupler/step"
SETS = 6
"""Sets of arrays that a reader fills in turn: a step's Blocks stay what they are while so many more are read."""


class StepDropped(LinkError):
    """A step of a stream is lost; the stream goes on."""


class AdiosWriter:
    """The writing side of a stream. Collective over `comm`.

    Attributes:
        name: Name of the stream.
    """

    def __init__(
        self, path: Path, fields: Sequence[FieldSpec], parameters: Mapping[str, str] | None = None, comm: Any = None
    ) -> None:
        """Opens the stream; waits for nobody.

        Args:
            path: Of its contact file, without the suffix `.sst`, where the readers see it.
            fields: The fields that steps hold.
            parameters: Engine parameters on top of `DEFAULTS`.
            comm: Communicator of the writers, for a build with MPI; one writer when None.

        Raises:
            LinkError: ADIOS2 is not there, or refuses.
        """
        self.name = path.name
        self._fields = {spec.name: spec for spec in fields}
        self._rank = comm.Get_rank() if comm is not None else 0
        if self._rank == 0:
            _contact(path).unlink(missing_ok=True)  # of a writer that was killed
        if comm is not None:
            comm.Barrier()
        self._sockets = Sockets()
        self._io = engine_io(self.name, parameters or {}, comm)
        self._variables: dict[str, Any] = {}
        self._engine = open_engine(self._io, path, "Write", comm)
        self._number = 0

    def put(self, step: int, time: float, blocks: Mapping[str, Block], number: int | None = None) -> int:
        """Hands a step to SST, which copies it; gives its number. It may be dropped; it never waits for a reader.

        Args:
            step: Coupling step.
            time: Simulated time.
            blocks: This writer's Blocks. Any of them may be empty.
            number: Number to give it; one more than that of the last when None.
        """
        self._number = self._number if number is None else number
        self._engine.begin_step()
        kept = []  # SST reads the arrays when the step ends
        if self._rank == 0:
            for name, value in ((NUMBER, self._number), (STEP, step), (TIME, time)):
                kept.append(self._put(name, np.array([value], np.float64 if name == TIME else np.int64), [1], [0], [1]))
        for name, block in blocks.items():
            array = _plain(block.array)
            if self._fields[name].kind == "cell":
                kept.append(self._put(name, array, self._fields[name].shape, block.offset, array.shape))
            elif block.ids is not None:
                kept.append(self._put(name, array, [], [], array.shape))
                kept.append(self._put(f"{name}/ids", _plain(block.ids), [], [], block.ids.shape))
            elif self._rank == 0:
                kept.append(self._put(name, array.reshape(-1), [array.size], [0], [array.size]))
        self._engine.end_step()
        self._sockets.hurry(self._number)
        self._number += 1
        return self._number - 1

    def come_by(self) -> None:
        """Lets readers that are opening in, by a step without anything in it."""
        self._engine.begin_step()
        self._engine.end_step()

    def close(self) -> None:
        """Ends the stream."""
        self._engine.close()

    def _put(self, name: str, array: Array, shape: Sequence[int], start: Sequence[int], count: Sequence[int]) -> Array:
        if not array.size:
            return array
        variable = self._variables.get(name)
        if variable is None:
            lists = (list(shape), list(start), list(count))
            variable = self._variables[name] = self._io.define_variable(name, array, *lists)
        else:
            variable.set_selection((list(start), list(count)))
        self._engine.put(variable, array)
        return array


@dataclass(slots=True)
class Step:
    """A step as it was read.

    Attributes:
        number: Its number in the stream.
        step: Coupling step.
        time: Simulated time.
        blocks: Blocks by field name, within the reader's region; particles of several writers joined, by rising ids.
    """

    number: int
    step: int
    time: float
    blocks: dict[str, Block] = field(default_factory=dict)


class AdiosReader:
    """The reading side of a stream: one reader of several, or the only one. Collective over `comm`."""

    def __init__(
        self,
        path: Path,
        fields: Sequence[FieldSpec],
        parameters: Mapping[str, str] | None = None,
        comm: Any = None,
        open_timeout_s: float = 10.0,
    ) -> None:
        """Opens the stream.

        Args:
            path: As the writer's.
            fields: The fields that steps hold, as the writers declare them.
            parameters: Engine parameters on top of `DEFAULTS`.
            comm: Communicator of the readers, for a build with MPI; one reader when None.
            open_timeout_s: How long the writer may take to come by.

        Raises:
            LinkError: There is no such stream, or its writer did not come by in time.
        """
        self._fields = {spec.name: spec for spec in fields}
        self._path = path
        seconds = str(max(1, math.ceil(open_timeout_s)))
        self._sockets = Sockets()
        self._io = engine_io(f"{path.name}-read", {**(parameters or {}), "OpenTimeoutSecs": seconds}, comm)
        self._engine = open_engine(self._io, path, "Read", comm)
        self._sets: list[dict[str, Array]] = [{} for _ in range(SETS)]
        self._turn = self._reads = 0
        self._ahead: Step | None = None  # read while looking for an earlier one

    def next(self, timeout_s: float, share: Share | None = None, *, as_put: bool = False) -> Step | None:
        """The next step, with what this reader takes of it; None when none came in time.

        Args:
            timeout_s: How long to wait for it.
            share: What it takes; everything when None.
            as_put: Instead of a share, the Blocks as the only writer put them.

        Raises:
            LinkError: The stream has ended, or its writer is gone.
            SchemaMismatch: A field is not as this side declares it.
        """
        end = time.monotonic() + timeout_s
        while self._begin(max(end - time.monotonic(), 0.0)):
            try:
                if self._io.inquire_variable(NUMBER) is not None:  # else the writer only came by
                    return self._step(share, as_put)
            finally:
                self._engine.end_step()
        return None

    def _step(self, share: Share | None, as_put: bool) -> Step:
        found = Step(int(self._head(NUMBER)), int(self._head(STEP)), self._head(TIME))
        self._turn = (self._turn + 1) % SETS
        for name, spec in self._fields.items() if share is None or share.takes(found.number) else ():
            region = self._put_region(spec) if as_put else share.region(spec) if share else Region.whole(spec)
            block = self._read(spec, region)
            if block is not None:
                found.blocks[name] = block
        self._sockets.hurry(self._reads)
        self._reads += 1
        return found

    def fetch(self, number: int, timeout_s: float) -> dict[str, Block]:
        """The Blocks of the step of that number, as a single writer put them; earlier steps are passed over.

        Raises:
            StepDropped: It was dropped, or did not come in time; later ones may come.
            LinkError: The writer is gone.
        """
        end = time.monotonic() + timeout_s
        found, self._ahead = self._ahead, None
        while found is None or found.number < number:
            if (found := self.next(max(end - time.monotonic(), 0.0), as_put=True)) is None:
                raise StepDropped(f"step {number} of the stream {self._path.name} did not come in {timeout_s:g} s")
        if found.number > number:
            self._ahead = found
            raise StepDropped(
                f"step {number} of the stream {self._path.name} was dropped; it goes on at {found.number}"
            )
        return found.blocks

    def close(self) -> None:
        """Leaves the stream."""
        self._engine.close()

    def _begin(self, timeout_s: float) -> bool:
        from adios2.bindings import StepMode, StepStatus

        status = self._engine.begin_step(StepMode.Read, float(timeout_s))
        if status == StepStatus.OK:
            return True
        if status == StepStatus.NotReady:
            return False
        raise LinkError(f"the stream {self._path.name} has ended, or its writer is gone ({status})")

    def _head(self, name: str) -> float:
        variable = self._io.inquire_variable(name)
        if variable is None:
            raise LinkError(f"the stream {self._path.name} holds no {name}: it is none of ours")
        value = np.zeros(1, np.float64 if name == TIME else np.int64)
        self._engine.get(variable, value)
        return float(value[0])

    def _read(self, spec: FieldSpec, region: Region) -> Block | None:
        variable = self._io.inquire_variable(spec.name)
        if variable is None:  # nobody put a value: every Block of it is empty
            return None
        shape, dtype = tuple(variable.shape()), TYPES.get(variable.type(), variable.type())
        if dtype != spec.dtype or (spec.kind == "cell" and shape != spec.shape):
            raise SchemaMismatch(
                f"the stream {self._path.name} holds {spec.name!r} as {dtype} of shape {shape}; this side declares "
                f"{spec.dtype} of shape {spec.shape}"
            )
        if spec.kind == "particle":
            return self._particles(spec, region)
        if spec.kind == "scalar":
            array = self._array(spec.name, (math.prod(spec.shape),), spec.dtype)
            self._engine.get(variable, array)
            return Block(array.reshape(spec.shape), (0,) * len(spec.shape))
        offset, shape = region.offset, region.shape
        array = self._array(spec.name, shape, spec.dtype)
        if array.size:
            variable.set_selection((list(offset), list(shape)))
            self._engine.get(variable, array)
        return Block(array, offset)

    def _put_region(self, spec: FieldSpec) -> Region:
        if spec.kind != "cell" or self._io.inquire_variable(spec.name) is None:
            return Region.whole(spec)
        info = self._engine.blocks_info(spec.name, self._engine.current_step())[0]
        return Region(_numbers(info["Start"]), _numbers(info["Count"]))

    def _particles(self, spec: FieldSpec, region: Region) -> Block:
        rows, ids = [], []
        values, names = self._io.inquire_variable(spec.name), self._io.inquire_variable(f"{spec.name}/ids")
        for index, info in enumerate(self._engine.blocks_info(f"{spec.name}/ids", self._engine.current_step())):
            (count,) = _numbers(info["Count"])
            own: NDArray[np.int64] = self._array(f"{spec.name}/ids/{index}", (count,), "<i8")  # type: ignore[assignment]
            names.set_block_selection(index)
            self._engine.get(names, own)
            wanted = (own >= region.offset[0]) & (own < region.offset[0] + region.shape[0])
            if wanted.any():
                array = self._array(f"{spec.name}/{index}", (count, *spec.shape[1:]), spec.dtype)
                values.set_block_selection(index)
                self._engine.get(values, array)
                rows.append(array[wanted])
                ids.append(own[wanted])
        joined = np.concatenate(ids) if ids else np.empty(0, np.int64)
        order = np.argsort(joined, kind="stable")
        array = np.concatenate(rows)[order] if rows else np.empty((0, *spec.shape[1:]), spec.dtype)
        return Block(array, (), joined[order])

    def _array(self, name: str, shape: Sequence[int], dtype: str) -> Array:
        """An array of this turn's set, made anew only when its shape changes."""
        kept = self._sets[self._turn].get(name)
        if kept is None or kept.shape != tuple(shape):
            kept = self._sets[self._turn][name] = np.zeros(shape, dtype)
        return kept


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _contact(path: Path) -> Path:
    return path.with_name(f"{path.name}.sst")


def _plain(array: Array) -> Array:
    """The array in C order, little-endian and writable, as ADIOS2 wants it; copied if it is not."""
    return np.require(array, array.dtype.newbyteorder("<"), ["C", "W"])
