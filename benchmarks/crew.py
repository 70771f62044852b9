"""Many small client processes that work in laps: all from the same moment on, all to the same count, then all wait.

A process of its own imports everything once and forks the members, before any of them has a thread or a socket: sixty
interpreters that import numpy each would take a minute on two cores.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.table import BenchmarkFailed

PATIENCE_S = 120.0
"""Longest wait for a lap."""

Report = dict[str, Any]
Orders = Iterator[int]
Work = Callable[..., Iterator[None]]
"""A member: a generator of (rank, orders, report, ...). It yields when it is ready and after each lap, each of which
goes on to the count that `next(orders)` gives, and ends when there is none; what it puts into `report` is told then."""


@dataclass(frozen=True, slots=True)
class Lap:
    """One lap of a crew.

    Attributes:
        seconds: From the order to the last member's end.
        cpu_s: CPU time of all members, their threads included.
    """

    seconds: float
    cpu_s: float


class Crew:
    """The members, seen from the process that gives the orders."""

    def __init__(self, pipe: Connection[Any, Any]) -> None:
        """Args: pipe: To the process that forked the members."""
        self._pipe = pipe

    def ready(self) -> None:
        """Waits until every member is ready."""
        self._hear()

    def lap(self, until: int) -> Lap:
        """Lets every member go on to a count, and waits for all of them."""
        self._pipe.send(until)
        return Lap(*self._hear())

    def end(self) -> list[Report]:
        """Lets every member end; what each of them reports, by rank."""
        self._pipe.send(None)
        reports: list[Report] = self._hear()
        return reports

    def _hear(self) -> Any:
        try:
            if self._pipe.poll(PATIENCE_S):
                return self._pipe.recv()
        except EOFError:
            raise BenchmarkFailed("a client process has failed, as the lines above say") from None
        raise BenchmarkFailed(f"the client processes were not done after {PATIENCE_S:g} seconds")


@contextmanager
def crew(work: Work, members: int, *arguments: Any) -> Iterator[Crew]:
    """Starts the members, `work(rank, orders, report, *arguments)` each; none is left at the end."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    process = spawn.Process(target=_lead, args=(far, work, members, arguments))
    process.start()
    far.close()
    try:
        with near:
            yield Crew(near)
        process.join(20)
    finally:
        near.close()  # the members end when nobody can give orders any more
        process.join(5)
        process.kill()
        process.join()


def _lead(pipe: Connection[Any, Any], work: Work, members: int, arguments: Sequence[Any]) -> None:
    """The process that forks the members and passes orders on."""
    fork = multiprocessing.get_context("fork")
    ends: list[Connection[Any, Any]] = []
    processes = []
    for rank in range(members):
        near, far = fork.Pipe()
        ends.append(near)
        processes.append(fork.Process(target=_member, args=(far, [pipe, *ends], work, rank, arguments), daemon=True))
        processes[-1].start()
        far.close()
    try:
        pipe.send([end.recv() for end in ends])
        while (order := pipe.recv()) is not None:
            began = time.perf_counter()
            cpu_s = sum(_all(ends, order))
            pipe.send((time.perf_counter() - began, cpu_s))
        pipe.send(_all(ends, None))
    except (EOFError, BrokenPipeError):
        pass  # who gave the orders has gone, or a member has failed and said why
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join(5)
        pipe.close()


def _all(ends: Sequence[Connection[Any, Any]], order: int | None) -> list[Any]:
    for end in ends:
        end.send(order)
    return [end.recv() for end in ends]


def _member(
    pipe: Connection[Any, Any], others: Sequence[Connection[Any, Any]], work: Work, rank: int, arguments: Sequence[Any]
) -> None:
    for other in others:
        other.close()  # else nobody would see them end
    report: Report = {}
    spent = 0.0

    def orders() -> Orders:
        nonlocal spent
        while (until := pipe.recv()) is not None:
            spent = time.process_time()
            yield until

    try:
        for _ in work(rank, orders(), report, *arguments):
            pipe.send(time.process_time() - spent)
        pipe.send(report)
    except (EOFError, BrokenPipeError):
        pass  # who gave the orders has gone
    finally:
        pipe.close()


def cpu_of(pid: int) -> float:
    """CPU time that the threads of a process have used so far, seconds."""
    return 1e-9 * sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))


def resident_of(pid: int) -> int:
    """Anonymous memory of a process that is resident, bytes: without files and shared memory that it maps."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024
