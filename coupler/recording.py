"""What rank 0 writes into the run folder: the trace, the observables with their origin, and the final books."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from coupler.contracts import Advice
from coupler.files import write_whole
from coupler.ledger import Ledger
from coupler.trace import OBSERVABLES, TRACE, Observed, Record, Recorder
from schemas import messages
from schemas.fields import FieldSpec, Snapshot
from schemas.messages import Action

LEDGER = "ledger.json"
FLUSH_S = 0.5
"""The trace reaches the operating system at least this often, for those who watch the run."""
CHEAP = ("direct_s", "direct_steps", "rejected_steps", "learned_s", "learned_steps")
"""What of the ledger is written before the end: quantiles of all stalls would take long in the middle of a run."""
BOOKS_COST = 100
"""Books that are not closed yet are written so rarely that it takes no more than one part in so many of the time."""
_NOTHING_TOLD = messages.Advice(action=Action.DIRECT)

Books = tuple[Ledger, Mapping[str, Any], Mapping[str, Any]]
"""Where the time went, what became of the samples, and which way each field went."""


def books_are_closed(folder: Path) -> bool:
    """Whether rank 0 has written its last books, after which nothing more is to come."""
    try:
        return bool(json.loads((folder / LEDGER).read_text(encoding="utf-8")).get("closed"))
    except FileNotFoundError:
        return False


class RunRecorder:
    """Writes a run folder; with no folder it does nothing (other ranks, hosts that keep no record)."""

    def __init__(self, folder: Path | None) -> None:
        """Args: folder: Existing run folder, or None."""
        self.folder = folder
        self._trace = Recorder(folder / TRACE if folder else None)
        self._observables = Recorder(folder / OBSERVABLES if folder else None)
        self._told = _NOTHING_TOLD
        self._start = self._flushed = -1.0
        self._names: dict[str, tuple[str, ...]] = {}
        self._stretch: Record | None = None
        self._books: Callable[[], Books] | None = None
        self._books_due = -1.0

    def keep_books(self, books: Callable[[], Books]) -> None:
        """From now on the books are written when what was recorded is, not only at the end.

        Rank 0 may never come to close them: when another rank fails, MPI kills it, often in a collective operation,
        where no Python runs.

        Args:
            books: Gives them as they are now.
        """
        self._books = books

    def observed(self, snapshot: Snapshot, fields: Mapping[str, FieldSpec], version: int) -> None:
        """Records the observables of a state that the host reached by itself (version 0) or by blending."""
        if self.folder is None:
            return
        values = self._scalars(snapshot, fields, "observable")
        if values:
            self._observables.write(Observed(step=snapshot.step, time=snapshot.time, origin=version, values=values))

    def told(self, advice: messages.Advice) -> None:
        """Notes the message behind the decision that is being carried out."""
        self._told = advice

    def decided(
        self, snapshot: Snapshot, fields: Mapping[str, FieldSpec], advice: Advice, stall_s: float, now: float
    ) -> None:
        """Records a decision, and with a learned one the observables of every step it covers."""
        if self.folder is None:
            return
        told, self._told = self._told, _NOTHING_TOLD
        to_step = snapshot.step + 1
        if advice.action is Action.LEARNED and advice.snapshot is not None:
            to_step = advice.snapshot.step
            self._forecasts(snapshot, told)
        elif advice.action is Action.REWIND:
            to_step = advice.rewind_to
        elif advice.action is Action.STOP:
            to_step = snapshot.step
        self._trace.write(
            Record(
                step=snapshot.step,
                time=snapshot.time,
                dt=advice.dt,
                action=advice.action.name.lower(),
                phase=advice.phase,
                reason=advice.reason,
                decision=told.decision,
                to_step=to_step,
                weight=advice.weight,
                version=advice.version if advice.action is Action.LEARNED else 0,
                bound=told.bound,
                tolerance=told.tolerance,
                step_error=told.step_error,
                residual=told.residual,
                stall_s=stall_s,
                wall_s=self._since_start(now),
                controls=self._scalars(snapshot, fields, "control"),
            )
        )
        self._flush_if_due(now, advice.action is not Action.DIRECT)

    def begin_stretch(self, snapshot: Snapshot, fields: Mapping[str, FieldSpec], advice: Advice, now: float) -> None:
        """From this state on nothing is decided step by step (mode `off`): one record stands for all those steps."""
        if self.folder is None:
            return
        self.end_stretch(snapshot.step)
        self._stretch = Record(
            step=snapshot.step,
            time=snapshot.time,
            dt=advice.dt,
            action=advice.action.name.lower(),
            reason=advice.reason,
            wall_s=self._since_start(now),
            controls=self._scalars(snapshot, fields, "control"),
        )

    def end_stretch(self, step: int) -> None:
        """Records the stretch that ends at a step, if there is one."""
        if self._stretch is not None:
            self._trace.write(msgspec.structs.replace(self._stretch, to_step=step))
            self._stretch = None

    def passed(self, rows: Iterable[tuple[int, float, dict[str, float]]]) -> None:
        """Records step, time and observables of direct states, and flushes."""
        for step, time, values in rows:
            self._observables.write(Observed(step=step, time=time, origin=0, values=values))
        self.flush()

    def close(self, ledger: Ledger, books: Mapping[str, Any], ways: Mapping[str, Any]) -> None:
        """Writes the final books, and which way each field went (`Outbox.ways`), and closes the files."""
        self._books = None
        self._trace.close()
        self._observables.close()
        self._write(ledger.summary(), books, ways, closed=True)

    def flush(self) -> None:
        """Hands what was recorded to the operating system, so that it survives the process."""
        self._trace.flush()
        self._observables.flush()
        began = perf_counter()
        if self._books is not None and began > self._books_due:
            ledger, books, ways = self._books()
            time = {key: getattr(ledger, key) for key in CHEAP}
            with contextlib.suppress(OSError):  # a full disk is no reason to end the run
                self._write(time, books, ways, closed=False)
            spent = perf_counter() - began
            self._books_due = began + max(FLUSH_S, BOOKS_COST * spent)

    def _write(
        self, time: Mapping[str, Any], books: Mapping[str, Any], ways: Mapping[str, Any], *, closed: bool
    ) -> None:
        if self.folder is None:
            return
        facts = {"closed": closed, "time": time, "samples": books, "bulk": ways}
        write_whole(self.folder / LEDGER, json.dumps(facts, indent=1))

    def _since_start(self, now: float) -> float:
        if self._start < 0.0:
            self._start = now
        return now - self._start

    def _flush_if_due(self, now: float, at_once: bool) -> None:
        """Direct steps can be made again: they may wait for each other, half a second at most."""
        if at_once or now - self._flushed > FLUSH_S:
            self.flush()
            self._flushed = now

    def _scalars(self, snapshot: Snapshot, fields: Mapping[str, FieldSpec], role: str) -> dict[str, float]:
        names = self._names.get(role)
        if names is None:
            names = self._names[role] = tuple(name for name, spec in fields.items() if spec.role == role)
        values = {}
        for name in names:  # on the step path: a comprehension here takes three times as long
            block = snapshot.blocks.get(name)
            if block is not None and block.array.size == 1:
                values[name] = float(block.array.item())
        return values

    def _forecasts(self, snapshot: Snapshot, told: messages.Advice) -> None:
        if told.weight < 1.0:
            return
        dt = (told.time - snapshot.time) / (told.step - snapshot.step)
        for step in range(snapshot.step + 1, told.step + 1):
            index = step - told.answers - 1
            values = {name: series[index] for name, series in told.observables.items() if index < len(series)}
            time = snapshot.time + (step - snapshot.step) * dt
            self._observables.write(Observed(step=step, time=time, origin=told.version, values=values))
