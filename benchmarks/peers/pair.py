"""A producer and its consumer: started, given turns, ended.

The two programs are `python -m benchmarks.peers.pair ROLE NAME COUNT FOLDER`.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from benchmarks.peers.exchange import PATIENCE_S, Exchange, Lending, Peer, Place
from benchmarks.peers.processes import Process, end, last_words, program, start
from benchmarks.table import BenchmarkFailed
from launch.plan import find_mpiexec

Times = tuple[list[float], list[float]]
"""Seconds in `put`, and seconds from the start of `put` to the end of `get`, of each trip."""


def trips(exchange: Exchange, place: Place, turns: int, step: int = 0) -> Times:
    """Makes and times some trips, after one that is not timed.

    Raises:
        RuntimeError: An answer was wrong.
    """
    array = place.empty()
    puts, wholes = [], []
    for turn in range(turns + 1):
        array[:] = step + turn  # as a solver does, which leaves its state in the caches as far as they reach
        state = exchange.ready(array) if isinstance(exchange, Lending) else array
        began = time.perf_counter()
        exchange.put(state)
        put = time.perf_counter()
        answer = exchange.get()
        got = time.perf_counter()
        right = np.array_equal(answer, array + 1.0) if turn == 0 else answer[0] == answer[-1] == array[0] + 1.0
        if not right:
            raise RuntimeError(f"the answer to {array[0]} is {answer[0]}, {answer[-1]}: not what was sent")
        if turn:
            puts.append(put - began)
            wholes.append(got - began)
    return puts, wholes


class Pair:
    """Both programs of one peer."""

    def __init__(self, peer: Peer, place: Place) -> None:
        """Starts them. Close it, also when this fails.

        Args:
            peer: Which peer.
            place: Where they meet.
        """
        self._peer, self._log, self._rest = peer, place.folder / "log", b""
        self._ended = ExitStack()
        roles = {role: program("benchmarks.peers.pair", role, peer.name, place.count, place.folder) for role in ROLES}
        with ExitStack() as stack:
            stack.enter_context(peer.serve(place.folder))
            if peer.one_mpiexec:
                mpiexec = find_mpiexec()
                if mpiexec is None:
                    raise BenchmarkFailed("no mpiexec is beside python or on PATH: pip install 'coupler[mpi]'")
                both = [mpiexec, "-n", "1", *roles["producer"], ":", "-n", "1", *roles["consumer"]]
                self._producer = self._start(stack, both)
            else:
                stack.callback(end, start(roles["consumer"], self._log, stdin=subprocess.DEVNULL), 15)
                self._producer = self._start(stack, roles["producer"])
            self._ended = stack.pop_all()

    def _start(self, stack: ExitStack, argv: list[str]) -> Process:
        process = start(argv, self._log, stdout=subprocess.PIPE)
        stack.callback(self._finish, process)
        return process

    def turn(self, count: int) -> Times:
        """Has them make some trips.

        Raises:
            BenchmarkFailed: They cannot.
        """
        assert self._producer.stdin is not None and self._producer.stdout is not None
        until = time.monotonic() + 4 * PATIENCE_S
        try:
            self._producer.stdin.write(f"{count}\n".encode())
            while b"\n" not in self._rest:
                if not select.select([self._producer.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                    raise BenchmarkFailed(f"{self._peer.name}: no answer within {4 * PATIENCE_S:g} s")
                if not (part := self._producer.stdout.read(1 << 16)):
                    raise BenchmarkFailed(f"{self._peer.name}: {last_words(self._log)}")
                self._rest += part
        except BrokenPipeError as problem:
            raise BenchmarkFailed(f"{self._peer.name}: {last_words(self._log)}") from problem
        line, _, self._rest = self._rest.partition(b"\n")
        puts, wholes = json.loads(line)
        return puts, wholes

    def close(self) -> None:
        """Ends everything that was started."""
        self._ended.close()

    @staticmethod
    def _finish(process: Process) -> None:
        if process.stdin is not None:
            process.stdin.close()
        end(process)


def produce(peer: Peer, place: Place) -> None:
    """The producer's program: a number of trips on a line in, their times on a line out."""
    with closing(peer.produce(place)) as exchange:
        while line := sys.stdin.readline():
            sys.stdout.write(json.dumps(trips(exchange, place, int(line))) + "\n")
            sys.stdout.flush()


def main(role: str, name: str, count: str, folder: str) -> None:
    """Either program."""
    from benchmarks.peers.catalogue import BY_NAME

    ROLES[role](BY_NAME[name], Place(Path(folder), int(count)))


ROLES = {"producer": produce, "consumer": lambda peer, place: peer.consume(place)}

if __name__ == "__main__":
    main(*sys.argv[1:])
