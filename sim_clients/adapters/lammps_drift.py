"""How far a conserved quantity drifts: in each window of a run, and in the last stretch of time. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

NEARLY = 1e-9
"""Share of a stretch that rounding may cost."""


class Range(NamedTuple):
    """Lowest and highest value in a coupling step, and the simulated time of its end."""

    time: float
    low: float
    high: float


@dataclass(slots=True)
class LookBack:
    """Range of a quantity over the last `span` of simulated time, whole coupling steps, at least the last one.

    Attributes:
        span: Simulated time.
        parts: By coupling step, the oldest first.
    """

    span: float
    parts: tuple[Range, ...] = ()

    def add(self, end: float, low: float, high: float) -> float:
        """Takes the next coupling step, which ends at a simulated time; the range over all that is looked back on."""
        parts = (*self.parts, Range(end, low, high))
        while len(parts) > 1 and parts[0].time <= end - self.span * (1.0 - NEARLY):
            parts = parts[1:]
        self.parts = parts
        return max(part.high for part in parts) - min(part.low for part in parts)


@dataclass(slots=True)
class WindowDrift:
    """Drift by window of simulated time: windows of equal length from 0 to `end`.

    The drift in a window is the largest |E - E at its start| over the mean kinetic energy in it. Fed in order of time.

    Attributes:
        end: Simulated time of the last window's end.
        count: Windows.
        worst: Drift by window that was seen so far.
    """

    end: float
    count: int
    worst: list[float] = field(default_factory=list)
    _start: float = 0.0
    _before: float = 0.0
    _largest: float = 0.0
    _kinetic: float = 0.0
    _seen: int = 0

    def add(self, time: float, energy: float, kinetic: float) -> None:
        """Takes the next state: its time, conserved energy and kinetic energy, in one unit."""
        window = min(int(time / self.end * self.count), self.count - 1)
        if not self.worst:
            self._before = energy
        while len(self.worst) <= window:
            self.worst.append(0.0)
            self._start, self._largest, self._kinetic, self._seen = self._before, 0.0, 0.0, 0
        self._seen += 1
        self._kinetic += kinetic
        self._largest = max(self._largest, abs(energy - self._start))
        self._before = energy
        self.worst[-1] = self._largest * self._seen / self._kinetic

    def keeps(self, tolerance: float) -> bool:
        """Whether every window has kept a tolerance so far. What is not a number has not."""
        return all(drift <= tolerance for drift in self.worst)
