"""Mode `off`: the steps of a run that nobody decides about, at the least cost."""

from __future__ import annotations

import math
from collections.abc import Mapping

from coupler.contracts import Advice
from coupler.ledger import Ledger
from coupler.recording import RunRecorder
from coupler.terms import Terms
from schemas.fields import FieldSpec, Snapshot

OFF = "coupling is off"
NOTE_S = 1.0
"""What was noted is written at least this often, for those who watch the run."""


class Alone:
    """Stands in for everything behind an exchange.

    A solver leaves nothing of Python in the caches, so a call costs what it touches: a step is one function that notes
    two times and the observables. Once a second they are booked and recorded, all those steps as one decision.
    """

    def __init__(self, ledger: Ledger, recorder: RunRecorder, fields: Mapping[str, FieldSpec], terms: Terms) -> None:
        """Args: ledger, recorder: Where to write. fields: Declared fields. terms: Terms of the run."""
        self._ledger, self._recorder, self._clock, self._terms = ledger, recorder, ledger.clock, terms
        self._dt = terms.dt
        self._fields = fields
        shown = tuple(name for name, spec in fields.items() if spec.role == "observable")
        self._shown = shown if recorder.folder is not None else ()
        self._times: list[float] = []  # of entering and leaving, in turn
        self._rows: list[tuple[int, float, dict[str, float]]] = []
        self._due = self._until = -math.inf
        self._advice = Advice.direct(OFF, terms.dt)
        self._step = -1

    def exchange(self, snapshot: Snapshot) -> Advice:
        """Notes a state; the Advice is always to integrate directly."""
        now = self._clock()
        self._times.append(now)
        if self._shown:
            blocks, values = snapshot.blocks, {}
            for name in self._shown:
                block = blocks.get(name)
                if block is not None and block.array.size == 1:
                    values[name] = float(block.array.item())
            self._rows.append((snapshot.step, snapshot.time, values))
        if now > self._due or snapshot.time >= self._until or (self._dt or snapshot.dt) != self._advice.dt:
            self._turn(snapshot, now)
        self._step = snapshot.step
        self._times.append(self._clock())
        return self._advice

    def settle(self) -> None:
        """Books and records all that was noted; at the end of a run."""
        if self._times:
            self._recorder.end_stretch(self._step + 1)
            self._write()

    def _turn(self, snapshot: Snapshot, now: float) -> None:
        """Begins another stretch of steps."""
        whole = self._dt or snapshot.dt
        dt = self._terms.cut(whole, snapshot.time)
        if dt != self._advice.dt:
            self._advice = Advice.direct(OFF, dt)
        # From the last but one step on, each is looked at: the last is cut to the end of the run.
        self._due, self._until = now + NOTE_S, min(snapshot.controls_until, self._terms.end_time - 2.0 * whole)
        self._recorder.begin_stretch(snapshot, self._fields, self._advice, now)
        self._write()

    def _write(self) -> None:
        self._recorder.passed(self._rows)
        self._ledger.replay(self._times)
        self._rows.clear()
