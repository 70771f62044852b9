"""A trainer with and without a stream of states into its memory: `python -m benchmarks streaming`.

One client process pushes states by shared memory at a fixed rate and sleeps in between, a server process takes them,
and the Trainer runs here: its own loop, with a learner that copies each state into a `Buffer` and fits a linear
autoencoder to states drawn from all that it holds, in one thread. Rounds with the stream take turns with rounds without
one, and with rounds of the learner alone, without the Trainer round it.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.coupled import LIMITS, RUN, by_slots, client, met, serving, snapshot_at
from benchmarks.links import child
from benchmarks.peers.exchange import announced
from benchmarks.table import BenchmarkFailed, Row, Rows, judged, timing
from coupler.contracts import Report
from coupler.links.zeromq import connect
from ml_servers.buffer import Buffer
from ml_servers.trainer import Trainer
from schemas.fields import Array, FieldSpec, Snapshot

SIZE, RATE = 800_000, 100.0
"""Bytes of a state, and states a second."""
ROUNDS, ROUND_S, SETTLE_S = 40, 1.0, 0.05
"""Rounds of each kind, the length of each, and what passes between two of them untimed."""
HELD, BATCH, LATENT = 128, 8, 16
"""States in memory, states of a step of the learner, and width of its hidden layer."""
KEPT = 0.95
"""Share of the trainer's steps a second that the stream leaves it."""
ARRIVED = 0.95
"""Share of the states that must arrive, or there was no such stream."""
FIRST = 1 << 20
"""Step of the first state of the stream; those already in memory come before."""


class Autoencoder:
    """A Learner of one linear layer each way, by plain gradient descent in float32.

    Attributes:
        buffer: What it learns from.
        steps: Steps learned.
    """

    owns: ClassVar[frozenset[str]] = frozenset({"arrays"})

    def __init__(self, fields: Sequence[FieldSpec], held: int = HELD) -> None:
        """Fills its memory. Args: fields: The declared fields. held: States in memory."""
        width = next(int(np.prod(spec.shape)) for spec in fields if spec.role == "state")
        self._rng = np.random.default_rng(1)
        self.buffer = Buffer(width, held)
        for step in range(held):
            self.buffer.rows[self.buffer.place(step)] = self._rng.random(width, np.float32)
        self.steps = 0
        self._into = self._rng.standard_normal((width, LATENT)).astype(np.float32) / width
        self._out = self._into.T.copy()

    def observe(self, snapshot: Snapshot) -> None:
        """See `Task.observe`."""
        self.buffer.rows[self.buffer.place(snapshot.step)] = snapshot["state"]

    def learn(self, steps: int) -> Report:
        """See `Task.learn`."""
        for _ in range(steps):
            batch = self.buffer.rows[self._rng.integers(len(self.buffer.rows), size=BATCH)]
            latent = batch @ self._into
            error = latent @ self._out - batch
            back = error @ self._out.T
            rate = np.float32(1e-3 / batch.size)
            self._out -= rate * (latent.T @ error)
            self._into -= rate * (batch.T @ back)
            self.steps += 1
        return Report()

    def state(self) -> dict[str, Array]:
        """See `Task.state`."""
        return {}


def rows(say: Callable[[str], None] = lambda _: None) -> Rows:
    """All figures of this group."""
    say(f"{3 * ROUNDS} rounds of {ROUND_S:g} s, {RATE:g} states of {SIZE} bytes a second in a third of them")
    with tempfile.TemporaryDirectory() as folder:
        return rounds(SIZE, RATE, ROUNDS, ROUND_S, Path(folder))


def serve(folder: str) -> None:
    """Child: a server that takes states and hands them to the trainer."""
    with serving(f"ipc://{folder}/s", folder, act=False, shared=True) as server:
        server.serve()


def stream(folder: str, size: int, rate: float, flowing: Any, ended: Any) -> None:
    """Child: a client that pushes states at a rate while `flowing` is set, until `ended` is."""
    state = np.zeros(size // 8)
    link = connect(announced(Path(folder)), identity=b"rank-0", limits=LIMITS)
    with client(link, size, Path(folder), by_slots(folder, "rank-0")) as coupling:
        met(coupling, state)
        step = FIRST
        while not ended.is_set():
            flowing.wait()
            due = time.perf_counter()
            while flowing.is_set() and not ended.is_set():
                coupling.push(snapshot_at(step, state))
                step += 1
                due = max(due + 1.0 / rate, time.perf_counter() - 1.0)
                time.sleep(max(due - time.perf_counter(), 0.0))


def rounds(size: int, rate: float, count: int, round_s: float, folder: Path) -> Rows:
    """Rounds of the three kinds in turn."""
    context = multiprocessing.get_context("spawn")
    flowing, ended = context.Event(), context.Event()
    kinds = {"trainer, stream on": True, "trainer, data in memory": False, "learner alone, data in memory": False}
    polls: dict[str, list[float]] = {kind: [] for kind in kinds}
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    arrived = 0
    with child(serve, str(folder)), child(stream, str(folder), size, rate, flowing, ended):
        link = connect(announced(folder), identity=b"trainer-still", limits=LIMITS)
        with closing(Trainer(lambda _, fields: Autoencoder(fields), "still", RUN, link, folder)) as trainer:
            learner = begun(trainer)
            works = dict(zip(kinds, (*[lambda: trainer.poll(0.0)] * 2, lambda: learner.learn(1)), strict=True))
            for turn in range(count + 1):
                for kind, on in kinds.items():
                    (flowing.set if on else flowing.clear)()
                    spent(lambda: trainer.poll(0.0), SETTLE_S)
                    before, offered = learner.steps, learner.buffer.counts.offered
                    seconds = spent(works[kind], round_s)
                    if turn:  # the first round of each kind warms up
                        polls[kind] += seconds
                        speeds[kind].append((learner.steps - before) / sum(seconds))
                        arrived += learner.buffer.counts.offered - offered
            ended.set()
            flowing.set()
    if arrived < ARRIVED * rate * round_s * count:
        raise BenchmarkFailed(f"{arrived} states arrived in {count * round_s:g} s: there was no such stream")
    return [figure(kind, size, polls[kind], speeds[kind], speeds, arrived / (count * round_s)) for kind in kinds]


def begun(trainer: Trainer) -> Autoencoder:
    """The trainer's learner, once the server has told it what the states are."""
    end = time.perf_counter() + 60.0
    while trainer.task is None and not trainer.halted and time.perf_counter() < end:
        trainer.poll(0.1)
    if not isinstance(trainer.task, Autoencoder):
        raise BenchmarkFailed("the server never told the trainer what to learn")
    trainer.task.learn(1)
    return trainer.task


def spent(work: Callable[[], object], seconds: float) -> list[float]:
    """Works for some time; the seconds of each piece."""
    took = []
    now = began = time.perf_counter()
    while now - began < seconds:
        work()
        last, now = now, time.perf_counter()
        took.append(now - last)
    return took


def figure(
    kind: str, size: int, polls: Sequence[float], mine: Sequence[float], speeds: dict[str, list[float]], arrived: float
) -> Row:
    """A row of one kind of round: time of a step, steps a second, and the share of those without a stream."""
    on, off = list(speeds)[:2]
    made = timing(kind, size, polls) | {"median": float(np.median(mine)), "low": min(mine), "high": max(mine)}
    made |= {"unit": "steps/s", "ratio": float(np.median(mine) / np.median(speeds[off])), "against": off}
    if kind != on:
        return made
    return judged(made | {"arrived a second": arrived}, "ratio", at_least=KEPT)
