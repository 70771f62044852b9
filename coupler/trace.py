"""Trace, observables and counters of a run as files of concatenated MessagePack, one record each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import msgspec

TRACE = "trace.msgpack"
OBSERVABLES = "observables.msgpack"
MOST_WAITING = 64
"""Records kept in memory at most: what is lost when a rank is killed."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One decision as the client carried it out. A `rewind` record cancels all records of later steps before it.

    In mode `off` nothing is decided step by step: there a record stands for a stretch of direct steps.

    Attributes:
        step: Coupling step the host was at when it asked.
        time: Simulated time at that step.
        dt: dt that the host integrates with, or the dt of the adopted state.
        action: `direct`, `learned`, `rewind` or `stop`.
        phase: Switch phase behind it: `direct`, `trial`, `learned` or `audit`.
        reason: Why, as a short sentence.
        decision: Decision number of the server, also when it was refused for `reason`; 0 when the client decided alone.
        to_step: Step at which the host stands after carrying it out (the end of the horizon, the saved step).
        weight: Blending weight of the learned state, 1 outside hand-overs.
        version: Model version of the learned state, 0 for direct steps.
        bound: Calibrated 90 % bound of the horizon error of the forecast, infinity when there is none.
        tolerance: Tolerance the bound was compared with.
        step_error: Error that the last audit found, NaN when this decision closed no audit.
        residual: Distance of the state asked about from the trained ones, relative to their fluctuation.
        stall_s: Seconds that the solver's thread spent inside the library for this exchange.
        wall_s: Seconds since the run's start.
        controls: Value of each control at `step`.
    """

    step: int
    time: float
    dt: float
    action: str
    phase: str = "direct"
    reason: str = ""
    decision: int = 0
    to_step: int = 0
    weight: float = 1.0
    version: int = 0
    bound: float = math.inf
    tolerance: float = math.nan
    step_error: float = math.nan
    residual: float = math.nan
    stall_s: float = 0.0
    wall_s: float = 0.0
    controls: dict[str, float] = {}


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """Observables after one coupling step. A later record of the same or an earlier step supersedes.

    Attributes:
        step: Coupling step the values belong to.
        time: Simulated time of that step.
        origin: 0 when the step was integrated directly, else the version of the model that forecast it.
        values: Value by observable name.
    """

    step: int
    time: float
    origin: int
    values: dict[str, float]


class Recorder:
    """Appends records to a file, or counts them only when there is no file.

    A record is encoded when it is flushed, together with the others: beside a solver that has emptied the caches, a
    call costs more than the work that it does.
    """

    def __init__(self, path: Path | None) -> None:
        """Args: path: File to append to, or None to keep nothing."""
        self._file: BinaryIO | None = None if path is None else path.open("ab")
        self._encode = msgspec.msgpack.Encoder().encode
        self._waiting: list[Record | Observed] = []
        self.count = 0

    def write(self, record: Record | Observed) -> None:
        """Appends one record; it is on its way to disk after `flush` or `close`."""
        self.count += 1
        if self._file is not None:
            self._waiting.append(record)
            if len(self._waiting) >= MOST_WAITING:
                self.flush()

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        if self._file is not None:
            try:
                self._file.write(b"".join(map(self._encode, self._waiting)))
                self._waiting.clear()
                self._file.flush()
            except OSError as error:  # it does not say which file
                raise OSError(error.errno, error.strerror, self._file.name) from error

    def close(self) -> None:
        """Flushes and closes; may be called twice."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Reads a file of records as dicts, in order; a torn last record is left out."""
    with path.open("rb") as file:
        yield from msgpack.Unpacker(file, raw=False)


def trajectory(records: Iterator[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The Observed records that stayed in the trajectory: one for each step, superseded ones left out."""
    kept: dict[int, dict[str, Any]] = {}
    last = -1
    for record in records:
        if record["step"] <= last:
            for step in [s for s in kept if s >= record["step"]]:
                del kept[step]
        kept[record["step"]] = dict(record)
        last = record["step"]
    return [kept[step] for step in sorted(kept)]
