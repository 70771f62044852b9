"""Streams of ADIOS2 SST between two processes: `python -m benchmarks adios`.

- `round trip`: a step to the other process and one back, over two streams, with TCP_NODELAY on their sockets as the
  bulk sets it, and without, as SST leaves them.
- `throughput`: a step that the reader answers for when it has it, against adios2 alone with the same parameters.

The time is that of the writer: from `put` until it knows that the reader has the step.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.table import BenchmarkFailed, Row, Rows, judged, timing
from coupler.bulks.adios import AdiosReader, AdiosWriter
from coupler.bulks.adios_engine import Sockets, adios2_module, available, engine_io, open_engine
from schemas.fields import Array, Block, FieldSpec

PATIENCE_S = 20.0
SMALL, LARGE = 8_000, 8_000_000
COUNTS = {SMALL: 200, LARGE: 60}
WARM_UP = 10
COME_BY_S = 0.1
"""A writer comes by so often for the reader that opens its stream: more often, it would fill that reader's queue."""
SLOW = 30
"""Round trips that are made with Nagle's algorithm on; each takes tens of milliseconds."""


class Bare:
    """adios2 alone, with the engine parameters of the bulk and its sockets hurried: one variable, nothing around it."""

    def __init__(self, path: Path, size: int, mode: str) -> None:
        self._sockets, self._turn = Sockets(), 0
        self._io = engine_io(f"{path.name}-{mode}", {"OpenTimeoutSecs": f"{PATIENCE_S:g}"}, None)
        self._engine, self._variable = open_engine(self._io, path, mode, None), None
        self._array = np.zeros(size // 8)

    def put(self, array: Array) -> None:
        """A step with the array in it."""
        n = [array.size]
        self._variable = self._variable or self._io.define_variable("x", array, n, [0], n)
        self._engine.begin_step()
        self._engine.put(self._variable, array)
        self._done()

    def come_by(self) -> None:
        """A step with nothing in it, which lets a reader in."""
        self._engine.begin_step()
        self._engine.end_step()

    def get(self) -> Array:
        """The array of the next step; it is filled anew by the next call."""
        bindings = adios2_module().bindings
        while self._engine.begin_step(bindings.StepMode.Read, PATIENCE_S) == bindings.StepStatus.OK:
            variable = self._io.inquire_variable("x")
            if variable is None:  # the writer came by
                self._engine.end_step()
                continue
            self._engine.get(variable, self._array)
            self._done()
            return self._array
        raise BenchmarkFailed("a step of the bare stream did not come")

    def close(self) -> None:
        """Ends this side."""
        self._engine.close()

    def _done(self) -> None:
        self._engine.end_step()
        self._sockets.hurry(self._turn)
        self._turn += 1


class Ours:
    """The same by the bulk."""

    def __init__(self, path: Path, size: int, mode: str) -> None:
        fields = (FieldSpec("x", "<f8", (size // 8,), "1"),)
        self._side: Any = (
            AdiosWriter(path, fields) if mode == "Write" else AdiosReader(path, fields, open_timeout_s=PATIENCE_S)
        )
        self.come_by, self.close = getattr(self._side, "come_by", None), self._side.close

    def put(self, array: Array) -> None:
        """A step with the array in it."""
        self._side.put(0, 0.0, {"x": Block(array, (0,))})

    def get(self) -> Array:
        """The array of the next step."""
        return self._side.next_parts(PATIENCE_S)[0].blocks["x"].array  # type: ignore[no-any-return]


class Slow(Ours):
    """The bulk without TCP_NODELAY."""

    def __init__(self, path: Path, size: int, mode: str) -> None:
        super().__init__(path, size, mode)
        self._side._sockets.hurry = lambda _: None


KINDS: dict[str, Callable[[Path, int, str], Any]] = {"bare": Bare, "ours": Ours, "slow": Slow}


def rows(say: Callable[[str], None] = lambda _: None) -> Rows:
    """All figures of this group.

    Raises:
        BenchmarkFailed: ADIOS2 is not there, or a stream fails.
    """
    if reason := available():
        raise BenchmarkFailed(reason)
    say("round trips of 8 kB")
    trips = {kind: measured(kind, SMALL, True, SLOW if kind == "slow" else COUNTS[SMALL]) for kind in KINDS}
    say("steps of 8 MB")
    steps = {kind: measured(kind, LARGE, False, COUNTS[LARGE]) for kind in ("bare", "ours")}
    return [
        judged(
            timing("round trip, TCP_NODELAY", SMALL, trips["ours"], trips["slow"], "as SST leaves it"),
            "p50_us",
            at_most=500.0,
        ),
        timing("round trip, as SST leaves it", SMALL, trips["slow"]),
        timing("round trip, adios2 alone", SMALL, trips["bare"]),
        judged(
            rate(timing("throughput", LARGE, steps["ours"], steps["bare"], "adios2 alone")), "ratio", at_most=1 / 0.9
        ),
        rate(timing("throughput, adios2 alone", LARGE, steps["bare"])),
    ]


def rate(made: Row) -> Row:
    """The row with megabytes a second."""
    return made | {"median": made["bytes"] / made["p50_us"], "unit": "MB/s"}


def measured(kind: str, size: int, both_ways: bool, count: int) -> list[float]:
    """Seconds of each turn with a process on the other side, which answers over a stream of its own or a socket."""
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_S)
        told = [kind, folder, str(size), str(int(both_ways)), str(count), str(server.getsockname()[1])]
        peer = subprocess.Popen([sys.executable, "-m", "benchmarks.adios", *told])
        try:
            talk, _ = server.accept()
            with talk:
                seconds = lead(kind, Path(folder), size, both_ways, count, talk)
            peer.wait(PATIENCE_S)
        finally:
            peer.kill()
            peer.wait()
    return seconds[WARM_UP:]


def lead(kind: str, folder: Path, size: int, both_ways: bool, count: int, talk: socket.socket) -> list[float]:
    """This side: puts, and takes what comes back."""
    talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    talk.settimeout(COME_BY_S)
    out = KINDS[kind](folder / "out", size, "Write")
    talk.sendall(b"w")
    end = time.monotonic() + PATIENCE_S
    while not heard(talk):  # its open ends when this side comes by
        if time.monotonic() > end:
            raise BenchmarkFailed("the reader did not open its stream")
        out.come_by()
    talk.settimeout(PATIENCE_S)
    back = KINDS[kind](folder / "back", size, "Read") if both_ways else None
    talk.sendall(b"r")
    array, seconds = np.arange(size // 8, dtype="<f8"), []
    for _ in range(count + WARM_UP):
        began = time.perf_counter()
        out.put(array)
        if back is not None:
            back.get()
        elif not heard(talk):
            raise BenchmarkFailed("the reader is gone")
        seconds.append(time.perf_counter() - began)
    talk.sendall(b"e")
    out.close()
    if back is not None:
        back.close()
    return seconds


def follow(kind: str, folder: Path, size: int, both_ways: bool, count: int, port: int) -> None:
    """The other side: takes, and sends back."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as talk:
        talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        heard(talk)
        taken = KINDS[kind](folder / "out", size, "Read")
        back = KINDS[kind](folder / "back", size, "Write") if both_ways else None
        talk.sendall(b"o")
        talk.settimeout(COME_BY_S)
        while not heard(talk):
            if back is not None:
                back.come_by()
        talk.settimeout(PATIENCE_S)
        for _ in range(count + WARM_UP):
            array = taken.get()
            if back is not None:
                back.put(array)
            else:
                talk.sendall(b"k")
        heard(talk)
        taken.close()
        if back is not None:
            back.close()


def heard(talk: socket.socket) -> bool:
    """Whether the other side said something in the time that the socket has.

    Raises:
        BenchmarkFailed: It is gone.
    """
    try:
        if not talk.recv(1):
            raise BenchmarkFailed("the other process is gone")
    except TimeoutError:
        return False
    return True


if __name__ == "__main__":
    name, where, *numbers = sys.argv[1:]
    length, both, turns, at = (int(number) for number in numbers)
    follow(name, Path(where), length, bool(both), turns, at)
