"""The Trainer: samples in, learned states out. A thread or a process beside the server, at the lowest priority."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol

import msgspec

from coupler.contracts import Backtest, Link, Report
from coupler.distribution import Share
from coupler.errors import LinkError
from ml_servers import checkpoint
from ml_servers.slots import Slots
from schemas import wire
from schemas.fields import Array, Block, FieldSpec, Snapshot
from schemas.messages import VERSION, Begin, Halt, Message, Pace, Ready, Refusal, Sample, Trained

CHECKPOINTS = "checkpoint"
WHOLE = Share("steps", 1, 0)
"""Everything: what the only rank of a task takes."""
IDLE_S = 0.25
"""Longest wait for samples when there is nothing to learn."""
ALIVE_S = 0.5
"""A trainer that learns says so at least this often: its progress beat."""
RELEASE_S = 0.1
"""Slots that it needs no more it tells together: each message wakes the server, which shares cores with the ranks."""
HELD = 8
"""At most one in so many slots waits to be told."""


class Learner(Protocol):
    """What a Trainer feeds: the learning half of a `Task`."""

    def observe(self, snapshot: Snapshot) -> None:
        """See `Task.observe`."""
        ...

    def learn(self, steps: int) -> Report:
        """See `Task.learn`."""
        ...

    def state(self) -> dict[str, Array]:
        """See `Task.state`."""
        ...


class Trainer:
    """Feeds one Task and publishes each model that was promoted.

    One thread owns it. `poll` does one bounded piece of work: it takes the samples that have come, learns one step if
    there is something to learn, and reports.

    Attributes:
        at_once: Most messages taken before it reports.
    """

    at_once: ClassVar[int] = 1 << 30

    def __init__(
        self,
        make_task: Callable[[str, tuple[FieldSpec, ...]], Learner],
        name: str,
        run: str,
        link: Link,
        folder: Path,
        *,
        share: Share = WHOLE,
        clock: Callable[[], float] = time.thread_time,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Introduces itself to the server.

        Args:
            make_task: Constructs the task from its name and the fields that it sees.
            name: Name of the task in the run file.
            run: Name of the run.
            link: Connected Link.
            folder: Run folder; models go to its `checkpoint` folder.
            share: What this rank of the task takes of the states.
            clock: CPU seconds of this thread or process.
            log: Takes the traceback when the task's plug-in raises.
        """
        self.name = name
        self.who = f"trainer of {name}" if share.readers == 1 else f"trainer {share.reader} of {name}"
        self._share = share
        self._stem = name if share.readers == 1 else f"{name}@{share.reader}"
        self.halted = False
        self.failed = False
        self.task: Learner | None = None
        self._make_task = make_task
        self._slots: Slots | None = None
        self._link = link
        self._folder, self._clock, self._log = folder, clock, log
        self._released: list[int] = []
        self._report = Report(idle=True)
        self._published = 0
        self._told_backtests: tuple[Backtest, ...] = ()
        self._cpu = 0.0  # starting up counts too
        self._pending = False  # samples that learn() has not been called for
        self._pace = 1.0
        self._rest_until = 0.0
        self._reported = time.monotonic()
        (folder / CHECKPOINTS).mkdir(exist_ok=True)
        self._hello = Ready(VERSION, run, name, share.reader)
        self._met = 0  # meetings with a server that it has introduced itself at
        self._teaches_anew = False  # the server that is here lacks the model
        self._greet()

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Polls until the server says Halt, or should_stop() is true."""
        while not (self.halted or should_stop()):
            rest = self._rest_until - time.monotonic()
            self.poll(min(rest, IDLE_S) if rest > 0.0 else IDLE_S if self._report.idle else 0.0)

    def poll(self, timeout_s: float) -> None:
        """One piece of work; waits up to timeout_s seconds for a sample when there is none."""
        self._greet()
        try:
            self._work(timeout_s)
        except Exception as error:  # a plug-in may raise anything; the server is told and goes on without it
            self._log(traceback.format_exc())
            failure = f"{type(error).__name__}: {error}"
            self._send(Trained(self.name, tuple(self._released), failure=failure, rank=self._hello.rank))
            self.halted = self.failed = True

    def _greet(self) -> None:
        """Introduces itself, and again when the server is met anew: it may be another one."""
        meetings = getattr(self._link, "meetings", 1)
        if meetings != self._met and self._send(msgspec.structs.replace(self._hello, begun=self._slots is not None)):
            self._met = meetings

    def _work(self, timeout_s: float) -> None:
        self._pending |= self._take(timeout_s)
        promoted, self._teaches_anew = self._teaches_anew, False
        if self.halted and self._released:  # other tasks go on and need the slots
            self._send(Trained(self.name, tuple(self._released), rank=self._hello.rank))
        if self.task is None or self.halted:
            return
        if (self._pending or not self._report.idle) and time.monotonic() >= self._rest_until:
            promoted = self._learn(self.task) or promoted
        if not getattr(self._link, "connected", True):  # the model is told when there is somebody to tell
            self._teaches_anew = promoted
            return
        news = promoted or self._report.backtests != self._told_backtests or self._holds_many
        if news or time.monotonic() - self._reported > (RELEASE_S if self._released else ALIVE_S):
            self._teaches_anew = not self._tell(promoted) and promoted

    @property
    def _holds_many(self) -> bool:
        return self._slots is not None and len(self._released) * HELD >= self._slots.count

    def _learn(self, task: Learner) -> bool:
        """One step of learning, then rest as the pace asks. True when another model is to serve."""
        before, began = self._report.version, self._clock()
        self._pending = False
        self._report = task.learn(1)
        self._rest_until = time.monotonic() + (self._clock() - began) * (1.0 / self._pace - 1.0)
        return self._report.promoted or self._report.version != before

    def close(self) -> None:
        """Frees the Link."""
        self._link.close()

    def _take(self, timeout_s: float) -> bool:
        fresh, rest = False, self.at_once
        while not self.halted and rest and (received := self._link.receive(timeout_s)) is not None:
            timeout_s, rest = 0.0, rest - 1
            message, _ = wire.decode(received[1], wire.MAX_HEAD_BYTES)
            if isinstance(message, Halt | Refusal):
                self.halted = True
                self._log(f"Ends: {message.reason}" if isinstance(message, Refusal) else "Ends with the run.")
            elif isinstance(message, Pace):
                self._pace, self._rest_until = message.share, 0.0
            elif isinstance(message, Begin):
                self._begin(message)
            elif isinstance(message, Sample) and self.task is not None and self._slots is not None:
                fresh = self._observe(message, self.task, self._slots) or fresh
        return fresh

    def _begin(self, begin: Begin) -> None:
        """A server says where its slots are. One in the place of another gets the model that is here already."""
        path, before = Path(begin.slots), self._slots
        try:
            self._slots = Slots(path, begin.fields, begin.count, create=False)
        except (LinkError, FileNotFoundError):
            if path.exists():
                raise
            self.halted = True  # the run ended before this message was read
            return
        self._released.clear()
        if self.task is None or before is None or before.fields != self._slots.fields:
            self.task = self._make_task(self.name, self._share.fields(begin.fields))
        else:
            self._teaches_anew, self._told_backtests = self._report.version > 0, ()

    def _observe(self, sample: Sample, task: Learner, slots: Slots) -> bool:
        self._released.append(sample.slot)
        if slots.generation(sample.slot) != sample.generation:
            return False
        blocks = {name: Block(array, (0,) * array.ndim) for name, array in slots.arrays(sample.slot).items()}
        whole = Snapshot(sample.step, sample.time, sample.dt, blocks, sample.controls_until)
        task.observe(self._share.part(whole, slots.fields))
        return True

    def _tell(self, promoted: bool) -> bool:
        """Reports, and publishes the model if there is another one; whether the server takes it."""
        report, path = self._report, ""
        if promoted and self.task is not None:
            self._published += 1
            # Two files in turn: the server may still be reading the one before.
            path = f"{CHECKPOINTS}/{self._stem}-{self._published % 2}.safetensors"
            checkpoint.write(self._folder / path, self.task.state())
        calibrated = promoted or report.backtests != self._told_backtests
        cpu, self._cpu = self._cpu, self._clock()
        self._reported = time.monotonic()
        message = Trained(
            self.name,
            released=tuple(self._released),
            version=report.version,
            path=path,
            kind=report.kind,
            trained_on=report.trained_on,
            last_step=report.last_step,
            superseded=report.superseded,
            calibrated=calibrated,
            backtests=tuple((b.horizon, b.estimated, b.observed) for b in report.backtests) if calibrated else (),
            cpu_s=self._cpu - cpu,
            rank=self._hello.rank,
        )
        if not self._send(message):
            return False
        self._released.clear()
        self._told_backtests = report.backtests
        return True

    def _send(self, message: Message) -> bool:
        return self._link.send(wire.encode(message))
