"""Stepwise streams of Blocks over ADIOS2 SST: from M writers to N readers, over whatever fabric ADIOS2 knows.

SST's own queue is a short mailbox that drops what is not read in time, and it is silent about it. So each step carries
a number of its own; the layer above says what was read, and counts what was not.

Without MPI there is one writer, which may put the Blocks of several ranks into one step. A text in the step,
`coupler/layout`, says what step it is and whose they are: see `coupler.bulks.parts.StepLayout`. ADIOS2 sends a text
along with the announcement of the step, so that only the arrays are fetched. Of several writers the first puts number,
step and time as values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from coupler.bulks.adios_engine import (
    TYPES,
    Sockets,
    await_step,
    engine_io,
    knock_file,
    knocked,
    knocking,
    open_engine,
    telling,
)
from coupler.bulks.parts import Part, StepLayout
from coupler.distribution import Region, Share
from coupler.errors import LinkError, SchemaMismatch
from schemas.fields import Array, Block, FieldSpec

NUMBER, TIME, STEP = "coupler/number", "coupler/time", "coupler/step"
LAYOUT = "coupler/layout"
SETS = 6
"""Sets of arrays that a reader fills in turn: a step's Blocks stay what they are while one less is read."""


T = TypeVar("T")


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
        self._path, self._telling = path, f"the stream {path.name} cannot be written"
        self._fields = {spec.name: spec for spec in fields}
        self._rank, self._alone = comm.Get_rank() if comm is not None else 0, comm is None
        if self._rank == 0:
            _contact(path).unlink(missing_ok=True)  # of a writer that was killed
            knock_file(path).touch()
        if comm is not None:
            comm.Barrier()
        self._sockets = Sockets()
        self._io = engine_io(self.name, parameters or {}, comm)
        self._variables: dict[str, Any] = {}
        self._engine = open_engine(self._io, path, "Write", comm)
        self._number = 0

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> int:
        """Hands a step to SST, which copies it; gives its number. It may be dropped; it never waits for a reader.

        Args:
            step: Coupling step.
            time: Simulated time.
            blocks: This writer's Blocks. Any of them may be empty.

        Raises:
            LinkError: The stream fails.
        """
        return self.put_parts(step, time, [Part(0, self._number, dict(blocks))])

    def put_parts(self, step: int, time: float, parts: Sequence[Part]) -> int:
        """`put` of what several ranks gave to the only writer. No two give the same cells or particles."""
        with telling(self._telling):
            self._engine.begin_step()
            kept = self._put_all(step, time, parts)
            self._engine.end_step()
            del kept  # SST has read the arrays
        self._sockets.hurry(self._number)
        self._number += 1
        return self._number - 1

    def wanted(self) -> bytes:
        """Tells the reader that waits for `come_by`; nothing when none does."""
        return knocked(self._path)

    def come_by(self) -> None:
        """Lets readers that are opening in, by a step without anything in it."""
        with telling(self._telling):
            self._engine.begin_step()
            self._engine.end_step()

    def close(self) -> None:
        """Ends the stream."""
        with telling(self._telling):
            self._engine.close()
        knock_file(self._path).unlink(missing_ok=True)

    def _put_all(self, step: int, time: float, parts: Sequence[Part]) -> list[Array]:
        kept = []
        if self._rank == 0 and not self._alone:
            for name, value in ((NUMBER, self._number), (STEP, step), (TIME, time)):
                kept.append(self._put(name, np.array([value], np.float64 if name == TIME else np.int64), [1], [0], [1]))
        layout = StepLayout(self._number, step, time, [(part.member, part.number) for part in parts], {})
        for row, part in enumerate(parts):
            for name, block in part.blocks.items():
                if arrays := self._put_block(name, block):
                    kept += arrays
                    if self._alone:
                        layout.add(row, name, block)
        if self._alone:
            self._put_text(LAYOUT, msgspec.json.encode(layout).decode())
        return kept

    def _put_text(self, name: str, text: str) -> None:
        variable = self._variables.get(name)
        if variable is None:
            variable = self._variables[name] = self._io.define_variable(name)
        self._engine.put(variable, text)

    def _put_block(self, name: str, block: Block) -> list[Array]:
        """Puts a Block; the arrays that must stay until the step ends, none when it is empty."""
        array, kind = _plain(block.array), self._fields[name].kind
        if not array.size or (kind == "scalar" and self._rank):
            return []
        if kind == "cell":
            return [self._put(name, array, self._fields[name].shape, block.offset, array.shape)]
        if block.ids is not None:
            ids = self._put(f"{name}/ids", _plain(block.ids), [], [], block.ids.shape)
            return [self._put(name, array, [], [], array.shape), ids]
        return [self._put(name, array.reshape(-1), [array.size], [0], [array.size])]

    def _put(self, name: str, array: Array, shape: Sequence[int], start: Sequence[int], count: Sequence[int]) -> Array:
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
        with telling(f"the stream {path.name} cannot be opened"), knocking(path):
            self._engine = open_engine(self._io, path, "Read", comm)
        self._sets: list[dict[str, Array]] = [{} for _ in range(SETS)]
        self._turn = self._reads = 0

    def next(self, timeout_s: float, share: Share | None = None) -> Step | None:
        """The next step, with what this reader takes of it; None when none came in time.

        Args:
            timeout_s: How long to wait for it.
            share: What it takes; everything when None.

        Raises:
            LinkError: The stream has ended, or its writer is gone.
            SchemaMismatch: A field is not as this side declares it.
        """
        return self._next(timeout_s, lambda: self._step(share))

    def next_parts(self, timeout_s: float) -> list[Part] | None:
        """The next step of a stream with one writer, as the ranks gave it; None when none came in time.

        Their arrays stay as they are while `SETS - 1` more steps are read.

        Raises:
            LinkError: The stream has ended, or its writer is gone.
            SchemaMismatch: A field is not as this side declares it.
        """
        return self._next(timeout_s, self._parts)

    def _next(self, timeout_s: float, read: Callable[[], T]) -> T | None:
        with telling(f"the stream {self._path.name} cannot be read"):
            while (left := await_step(self._engine, self._path.name, timeout_s)) is not None:
                timeout_s = left
                try:
                    if self._holds(LAYOUT) or self._holds(NUMBER):  # else the writer only came by
                        self._turn = (self._turn + 1) % SETS
                        found = read()
                        self._sockets.hurry(self._reads)
                        self._reads += 1
                        return found
                finally:
                    self._engine.end_step()
        return None

    def _step(self, share: Share | None) -> Step:
        found = self._head()
        for name, spec in self._fields.items() if share is None or share.takes(found.number) else ():
            block = self._read(spec, share.region(spec) if share else Region.whole(spec))
            if block is not None:
                found.blocks[name] = block
        return found

    def _parts(self) -> list[Part]:
        layout = self._layout()
        parts = [Part(member, number, {}) for member, number in layout.parts]
        for name, spec in self._fields.items():
            if name in layout.of:  # else nobody put a value
                self._check(spec)
            for row, part in enumerate(parts):
                if place := layout.block_of(row, name):
                    part.blocks[name] = self._block_of(spec, *place)
        self._engine.perform_gets()
        return parts

    def _layout(self) -> StepLayout:
        variable = self._io.inquire_variable(LAYOUT)
        if variable is None:
            raise LinkError(f"the stream {self._path.name} holds no {LAYOUT}: it is none of ours")
        return msgspec.json.decode(self._engine.get(variable), type=StepLayout)

    def _holds(self, name: str) -> bool:
        return self._io.inquire_variable(name) is not None

    def _block_of(self, spec: FieldSpec, index: int, offset: tuple[int, ...], shape: tuple[int, ...]) -> Block:
        """One writer's Block of a field; its arrays are filled by `perform_gets`."""
        if spec.kind == "scalar":
            return Block(self._block(spec.name, index, (math.prod(shape),), spec.dtype).reshape(shape), offset)
        array = self._block(spec.name, index, shape, spec.dtype)
        if spec.kind == "particle":
            ids: NDArray[np.int64] = self._block(f"{spec.name}/ids", index, shape[:1], "<i8")  # type: ignore[assignment]
            return Block(array, (), ids)
        return Block(array, offset)

    def _block(self, name: str, index: int, shape: Sequence[int], dtype: str) -> Array:
        """An array that the next `perform_gets` fills with a writer's block of a variable."""
        from adios2.bindings import Mode

        array, variable = self._array(f"{name}/{index}", shape, dtype), self._io.inquire_variable(name)
        variable.set_block_selection(index)
        self._engine.get(variable, array, Mode.Deferred)
        return array

    def _blocks_of(self, name: str) -> list[Mapping[str, str]]:
        """What is known of the blocks of an int64 variable in this step; none when nobody put it."""
        if not self._holds(name):
            return []
        found: list[Mapping[str, str]] = self._engine.blocks_info(name, self._engine.current_step())
        return found

    def close(self) -> None:
        """Leaves the stream; raises LinkError where it fails at that."""
        with telling(f"the stream {self._path.name} cannot be left"):
            self._engine.close()

    def _head(self) -> Step:
        if self._holds(LAYOUT):
            layout = self._layout()
            return Step(layout.number, layout.step, layout.time)
        return Step(int(self._value(NUMBER)), int(self._value(STEP)), self._value(TIME))

    def _value(self, name: str) -> float:
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
        self._check(spec)
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

    def _check(self, spec: FieldSpec) -> None:
        variable = self._io.inquire_variable(spec.name)
        shape, dtype = tuple(variable.shape()), TYPES.get(variable.type(), variable.type())
        if dtype != spec.dtype or (spec.kind == "cell" and shape != spec.shape):
            raise SchemaMismatch(
                f"the stream {self._path.name} holds {spec.name!r} as {dtype} of shape {shape}; this side declares "
                f"{spec.dtype} of shape {spec.shape}"
            )

    def _particles(self, spec: FieldSpec, region: Region) -> Block:
        rows, ids = [], []
        values, names = self._io.inquire_variable(spec.name), self._io.inquire_variable(f"{spec.name}/ids")
        for index, info in enumerate(self._blocks_of(f"{spec.name}/ids")):
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
