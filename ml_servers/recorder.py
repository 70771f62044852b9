"""The recorder: a consumer of states like a trainer, which writes them into the recording instead of learning."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coupler.bulks.bp5 import RECORDING, RecordWriter
from coupler.contracts import Link, Report
from coupler.files import write_whole
from ml_servers.trainer import Trainer
from schemas.fields import Array, FieldSpec, Snapshot

RECORDER = "(recorder)"
"""What the recorder is called where trainers give the name of their task; no task can be named so."""
BOOKS = "recorder.json"
"""What the recorder tells at its end, in the run folder."""


class Recording:
    """Where a `Trainer` puts states that are to be kept: it observes like a Task, and never has anything to learn."""

    def __init__(self, path: Path, fields: tuple[FieldSpec, ...], run: str) -> None:
        """Args: path: Of the recording. fields: Of a state. run: Name of the run."""
        self.states = self.branch = 0
        self._last = -1
        self._writer = RecordWriter(path, fields, {"coupler/run": run})

    def observe(self, snapshot: Snapshot) -> None:
        """Writes a state. One of an earlier step than the last, or the same, begins another branch of the record."""
        self.branch += snapshot.step <= self._last
        self._writer.write(snapshot, self.branch)
        self._last = snapshot.step
        self.states += 1

    def learn(self, steps: int) -> Report:  # noqa: ARG002
        """Nothing to do before the next state."""
        return Report(trained_on=self.states, last_step=self._last, idle=True)

    def state(self) -> dict[str, Array]:
        """What it has done so far: the number of states written."""
        return {"states": np.array(self.states)}

    def close(self) -> None:
        """Completes the file."""
        self._writer.close()


class Recorder(Trainer):
    """The recorder of a run, in the loop of a trainer. One thread owns it."""

    at_once = 16  # its slots are free again soon

    def __init__(
        self,
        run: str,
        link: Link,
        folder: Path,
        clock: Callable[[], float] = time.thread_time,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Introduces itself to the server. The arguments are those of `Trainer`."""
        self._recording: Recording | None = None

        def make(_: str, fields: tuple[FieldSpec, ...]) -> Recording:
            self._recording = Recording(folder / RECORDING, fields, run)
            return self._recording

        super().__init__(make, RECORDER, run, link, folder, clock=clock, log=log)
        self.who = "recorder"

    def close(self) -> None:
        """Writes what has come so far, completes the file, tells how much it holds, and frees the Link."""
        try:
            before = -1
            while before != (before := self._recording.states if self._recording else 0) and not self.failed:
                self.poll(0.0)
            if self._recording is not None:
                self._recording.close()
                books = {"states": self._recording.states, "branches": self._recording.branch}
                write_whole(self._folder / BOOKS, json.dumps(books))
                self._log(f"Recorded {books['states']} states in {RECORDING}.")
        finally:
            super().close()
