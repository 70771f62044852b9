"""Where the time of a call goes: parts of it are replaced by timed ones while a benchmark runs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REST = "the rest"
CALLS = Path("/proc/thread-self/io")
"""Linux: what this thread has read and written, and in how many calls. Sockets and poll are not among them."""


class Stopwatch:
    """Times the parts of a call, each without the parts inside it.

    Attributes:
        seconds: For each part, its time in each call; a part that a call does not come by counts nothing in it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Nothing is timed yet. Args: clock: Monotonic seconds."""
        self._clock = clock
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._inside = [0.0]  # time of the parts inside each that is open
        self._call: dict[str, float] = defaultdict(float)
        self._undo: list[Callable[[], None]] = []

    def time(self, owner: Any, name: str, part: str) -> None:
        """From now on, calls of `owner.name` count as a part.

        Args:
            owner: Object or module.
            name: Its function.
            part: What it is called; several functions may be one part.
        """
        work = getattr(owner, name)
        mine = name in vars(owner)

        def timed(*args: Any, **more: Any) -> Any:
            with self._open(part):
                return work(*args, **more)

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, work) if mine else delattr(owner, name))

    def call(self, work: Callable[[], Any]) -> float:
        """Makes a call and books its parts; gives its seconds."""
        self._call.clear()
        with self._open(REST):
            work()
        for part in self.seconds.keys() | self._call.keys():
            self.seconds[part].append(self._call.get(part, 0.0))
        return sum(self._call.values())

    def undo(self) -> None:
        """Puts everything back."""
        while self._undo:
            self._undo.pop()()

    @contextmanager
    def _open(self, part: str) -> Iterator[None]:
        self._inside.append(0.0)
        began = self._clock()
        try:
            yield
        finally:
            took = self._clock() - began
            self._call[part] += took - self._inside.pop()
            self._inside[-1] += took


def reads_and_writes() -> int | None:
    """Calls of read and write that this thread has made; None where the system does not tell."""
    if not CALLS.exists():
        return None
    told = dict(line.split(": ") for line in CALLS.read_text().splitlines())
    return int(told["syscr"]) + int(told["syscw"])
