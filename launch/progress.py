"""Live progress of a run, from what it writes: a rich line on a terminal, plain lines in a log."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgpack
from rich.console import Console
from rich.live import Live
from rich.text import Text

from coupler.trace import TRACE

LOG_EVERY_S = 5.0
_SAID = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (.+)$", re.MULTILINE)
"""A line of a process's log, with the time before it."""
TAIL_BYTES = 1 << 12
"""So much of a log's end is looked at for its last line."""
STYLES = {"direct": "cyan", "trial": "yellow", "audit": "yellow", "learned": "green"}


class Standing:
    """What the trace says so far. Fed with records in order; pure."""

    def __init__(self, steps: int, end_time: float | None = None) -> None:
        """Args: steps: Steps of the whole run. end_time: Simulated time at which it ends, if it ends at one."""
        self.steps, self.end_time = steps, end_time
        self.step = 0
        self.last: dict[str, Any] = {}
        self.learned = 0
        self.direct_s: list[float] = []
        self._before: dict[str, Any] | None = None
        self._first: dict[str, Any] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Takes the next record."""
        before, self._before = self._before, record
        self._first = self._first or record
        if before is not None and before["action"] == "direct":
            # Inside the exchange that ends it the server side may have been at work, on the rung `inline` for long.
            spent = record["wall_s"] - record["stall_s"] - before["wall_s"]
            self.direct_s.append(max(spent, 0.0) / max(before["to_step"] - before["step"], 1))
        self.last, self.step = record, record["to_step"]
        if record["action"] == "learned":
            self.learned += record["to_step"] - record["step"]
        elif record["action"] == "rewind":
            self.learned = max(0, self.learned - (record["step"] - record["to_step"]))

    @property
    def net_speedup(self) -> float | None:
        """All-direct wall time of the simulated time so far, in steps of the first dt, over the wall time so far.

        What a step costs alone is taken from the fastest tenth of the direct ones: a trainer on the same cores slows
        most of the others, and twice as slow a step would promise twice the gain.
        """
        last = self.last
        if not self.direct_s or not last.get("wall_s") or not self._first["dt"] > 0.0:
            return None
        alone = sorted(self.direct_s)[len(self.direct_s) // 10]
        ahead = 0 if last["action"] == "direct" else last["to_step"] - last["step"]  # a direct step is still to be made
        done = (last["time"] + ahead * last["dt"] - self._first["time"]) / self._first["dt"]
        return float(alone * done / last["wall_s"])

    def line(self) -> str:
        """One line for a log."""
        if not self.last:
            return "starting ..."
        last, fraction = self.last, self.learned / max(self.step, 1)
        error = f"error {last['bound']:.2e} of {last['tolerance']:.2g}" if last["bound"] < 1e9 else "error -"
        gain = f"{self.net_speedup:.2f}x" if self.net_speedup else "-"
        where = f"/{self.steps}" if self.end_time is None else f"  time {last['time']:.4g}/{self.end_time:.4g}"
        return (
            f"step {self.step:>7}{where}  {last['phase']:<7} {last['action']:<7} dt {last['dt']:<9.4g} "
            f"{error}  learned {100 * fraction:5.1f} %  net speedup {gain}  "
            f"{last['reason']}"
        )


class Line:
    """A line that changes: in its place on a terminal, now and again in a log. A context manager."""

    def __init__(self, console: Console) -> None:
        """Args: console: Where to show."""
        self._console, self._last = console, ""
        self._shown = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> Line:
        """Starts showing."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stops."""
        if self._live is not None:
            self._live.stop()

    def show(self, line: str, style: str = "") -> None:
        """Shows what it is now, if that is due."""
        if self._live is not None:
            self._live.update(Text(line, style=style))
        elif line != self._last and time.monotonic() - self._shown > LOG_EVERY_S:
            self._shown, self._last = time.monotonic(), line
            self.put(line)

    def put(self, line: str) -> None:
        """Shows it for good."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)


class Progress:
    """Shows a Standing while a run goes on. A context manager."""

    def __init__(self, folder: Path, steps: int, console: Console, end_time: float | None = None) -> None:
        """Args: folder: Run folder. steps: Steps of the run. console: Where to show. end_time: See `Standing`."""
        self.standing = Standing(steps, end_time)
        self._path, self._line = folder / TRACE, Line(console)
        self._unpacker = msgpack.Unpacker(raw=False)
        self._position = 0

    def __enter__(self) -> Progress:
        """Starts showing."""
        self._line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Shows the last line and stops."""
        self._read()
        self._line.__exit__()
        self._line.put(self.standing.line())

    def tick(self) -> None:
        """Reads what is new and shows it when that is due."""
        self._read()
        self._line.show(self.standing.line(), STYLES.get(self.standing.last.get("phase", ""), ""))

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        self._unpacker.feed(data)
        for record in self._unpacker:
            self.standing.add(record)


def last_said(log: Path) -> str:
    """What a process has said last in its log; empty before it has said anything."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(log.stat().st_size - TAIL_BYTES, 0))
        said = _SAID.findall(file.read().decode("utf-8", "replace"))
    return str(said[-1]) if said else ""
