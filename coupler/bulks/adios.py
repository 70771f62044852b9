"""Stepwise streams of Blocks over ADIOS2 SST: from M writers to N readers, over whatever fabric ADIOS2 knows.

SST's own queue is a short mailbox that drops what is not read in time, and it is silent about it. So each step carries
a number of its own; the layer above says what was read, and counts what was not.

Facts that shape this module, each measured (ADIOS2 2.12):

- The bindings hold the interpreter's lock while they wait: no second Python thread may take part in a stream.
- A reader's `open` ends when the writer comes by the next time, in a step of its own. So it takes as long as a step of
  the solver, and only one direction of a connection may be opened while the other side may be waiting.
- A writer that ends its step for a reader that is stopped would wait for ever under any other policy than `Discard`.
- SST leaves Nagle's algorithm on: two small messages in turn then take 40 ms each on loopback. `hurry` turns it off.
- The queue counts the steps that are kept in reserve: with no more room than for these, every later step is dropped,
  and the reader waits for it whatever its time-out says. So the queue is longer than the reserve.
- A writer that was killed leaves its contact file, and a reader that finds it fails at once.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coupler.distribution import Region
from coupler.errors import LinkError
from schemas.fields import Array, Block, FieldSpec

DEFAULTS = {
    "QueueLimit": "12",
    "ReserveQueueLimit": "4",
    "QueueFullPolicy": "Discard",
    "RendezvousReaderCount": "0",
}
"""A short queue that never blocks; the reserve keeps the first steps for a reader that is still opening."""
OURS = {
    "queuefullpolicy": "Discard: with any other a reader that stops would stop the solver",
    "rendezvousreadercount": "0: the solver does not wait for readers",
    "opentimeoutsecs": "set by the coupler",
}
HURRIED_STEPS = 64
"""Steps at which new sockets are looked for; later at every so many-th."""
NUMBER, TIME, STEP = "coupler/number", "coupler/time", "coupler/step"
SETS = 6
"""Sets of arrays that a reader fills in turn: a step's Blocks stay what they are while so many more are read."""


def available(mpi: bool = False) -> str:
    """Why ADIOS2 cannot be used here; empty when it can.

    Args:
        mpi: Whether a build with MPI is needed.
    """
    try:
        adios2 = _adios2()
    except ImportError as error:
        return f'adios2 cannot be imported ({error}); pip install "coupler[adios]"'
    if not adios2.__version__.startswith("2."):
        return f"adios2 is {adios2.__version__}, and this release knows 2.x; pip install 'adios2<3'"
    if mpi and not adios2.is_built_with_mpi:
        return "adios2 is built without MPI, as the wheel is; run make adios-mpi"
    return ""


def refused(parameters: Mapping[str, str]) -> list[str]:
    """What is wrong with engine parameters from a run file, one sentence each."""
    found = [f"bulk.adios.{key} is fixed to {OURS[key.lower()]}" for key in parameters if key.lower() in OURS]
    for key, value in parameters.items():
        if key.lower() in ("queuelimit", "reservequeuelimit") and not (value.isdecimal() and int(value) > 0):
            found.append(f"bulk.adios.{key} is {value}; a queue without a limit would fill the memory: give 1 or more")
    sizes = {key.lower(): value for key, value in {**DEFAULTS, **parameters}.items()}
    queue, reserve = sizes["queuelimit"], sizes["reservequeuelimit"]
    if not found and int(queue) <= int(reserve):
        found.append(
            f"bulk.adios.QueueLimit is {queue}; it must exceed ReserveQueueLimit = {reserve}, which it includes"
        )
    return found


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
        self._sockets = _Sockets()
        self._io = _io(self.name, parameters or {}, comm)
        self._variables: dict[str, Any] = {}
        self._engine = _open(self._io, path, "Write", comm)
        self._number = 0

    def put(self, step: int, time: float, blocks: Mapping[str, Block]) -> int:
        """Hands a step to SST, which copies it; gives its number. It may be dropped; it never waits for a reader.

        Args:
            step: Coupling step.
            time: Simulated time.
            blocks: This writer's Blocks. Any of them may be empty.
        """
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
        self._sockets = _Sockets()
        self._io = _io(f"{path.name}-read", {**(parameters or {}), "OpenTimeoutSecs": seconds}, comm)
        self._engine = _open(self._io, path, "Read", comm)
        self._sets: list[dict[str, Array]] = [{} for _ in range(SETS)]
        self._turn = self._reads = 0
        self._ahead: Step | None = None  # read while looking for an earlier one

    def next(
        self, timeout_s: float, regions: Mapping[str, Region] | None = None, *, as_put: bool = False
    ) -> Step | None:
        """The next step, with the Blocks of this reader's regions; None when none came in time.

        Args:
            timeout_s: How long to wait for it.
            regions: Region by field, as `coupler.distribution` gives it; everything when None.
            as_put: Instead of regions, the Blocks as the only writer put them.

        Raises:
            LinkError: The stream has ended, or its writer is gone.
        """
        end = time.monotonic() + timeout_s
        while self._begin(max(end - time.monotonic(), 0.0)):
            try:
                if self._io.inquire_variable(NUMBER) is not None:  # else the writer only came by
                    return self._step(regions, as_put)
            finally:
                self._engine.end_step()
        return None

    def _step(self, regions: Mapping[str, Region] | None, as_put: bool) -> Step:
        found = Step(int(self._head(NUMBER)), int(self._head(STEP)), self._head(TIME))
        self._turn = (self._turn + 1) % SETS
        for name, spec in self._fields.items():
            region = self._put_region(spec) if as_put else regions[name] if regions else Region.whole(spec)
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


class _Sockets:
    """The TCP sockets that this process has opened since."""

    def __init__(self) -> None:
        self._before = set(os.listdir("/proc/self/fd"))

    def hurry(self, turn: int) -> None:
        """Turns Nagle's algorithm off on new ones; looks at the first turns and then now and again."""
        if turn >= HURRIED_STEPS and turn % HURRIED_STEPS:
            return
        for number in set(os.listdir("/proc/self/fd")) - self._before:
            try:
                if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                    continue
                copy = os.dup(int(number))
            except OSError:  # closed meanwhile
                continue
            with socket.socket(fileno=copy) as found:
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _adios2() -> Any:
    """The module. It would import torch where that is installed, which no simulation may."""
    hidden = "adios2" not in sys.modules and "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import adios2
    finally:
        if hidden:
            del sys.modules["torch"]
    return adios2


def _io(name: str, parameters: Mapping[str, str], comm: Any) -> Any:
    if reason := available(mpi=comm is not None):
        raise LinkError(reason)
    adios2 = _adios2()
    adios = adios2.Adios() if comm is None else adios2.Adios(comm)
    io = adios.declare_io(name)
    io.owner = adios  # it would end with its last reference, and the IO with it
    io.set_engine("SST")
    io.set_parameters({**DEFAULTS, **parameters})
    return io


def _open(io: Any, path: Path, mode: str, comm: Any) -> Any:
    from adios2.bindings import Mode

    try:
        return io.open(str(path), getattr(Mode, mode), *([] if comm is None else [comm]))
    except (RuntimeError, ValueError) as error:
        raise LinkError(f"the stream {path.name} cannot be opened: {str(error).strip().splitlines()[-1]}") from error


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _contact(path: Path) -> Path:
    return path.with_name(f"{path.name}.sst")


def _plain(array: Array) -> Array:
    """The array in C order and little-endian, copied if it is not."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
