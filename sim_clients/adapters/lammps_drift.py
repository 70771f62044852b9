"""How far a conserved quantity drifts: in each window of a run, and in the last stretch of time. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

NEARLY = 1e-9
"""Share of a stretch that rounding may cost."""
DRIFT = "drift"
"""Observable: the range of the invariant in the last `span` of simulated time, over the kinetic energy."""
WINDOW_DRIFT = "window_drift"
"""Observable: the drift so far in the present window; windows are `span` long, from time 0 on."""


class State(NamedTuple):
    """Simulated time, conserved energy and kinetic energy, the energies in one unit."""

    time: float
    energy: float
    kinetic: float


class Range(NamedTuple):
    """Lowest and highest value in a coupling step, and the simulated time of its end."""

    time: float
    low: float
    high: float


class Window(NamedTuple):
    """A window of simulated time and what was seen in it. A state at its end belongs to it.

    Attributes:
        number: From 0; -1 before the first state.
        start: The conserved energy at its start.
        last: The newest one.
        largest: Largest distance from the start.
        kinetic: Sum of the kinetic energies.
        seen: States.
        drift: The largest distance from the start over the mean kinetic energy up to there; it never falls.
    """

    number: int = -1
    start: float = 0.0
    last: float = 0.0
    largest: float = 0.0
    kinetic: float = 0.0
    seen: int = 0
    drift: float = 0.0

    @property
    def whole_drift(self) -> float:
        """The largest |E - E at the start| over the mean kinetic energy of all states."""
        return self.largest * self.seen / self.kinetic if self.kinetic else 0.0

    def add(self, state: State, length: float) -> Window:
        """The window of the next state, where windows have a length: this one with the state in it, or a new one."""
        number = max(math.ceil(state.time / length * (1.0 - NEARLY)) - 1, 0)
        same = self
        if number != self.number:
            same = Window(number, start=state.energy if self.number < 0 else self.last)
        far, kinetic, seen = abs(state.energy - same.start), same.kinetic + state.kinetic, same.seen + 1
        drift = max(same.drift, far * seen / kinetic) if kinetic and far > same.largest else same.drift
        return Window(number, same.start, state.energy, max(same.largest, far), kinetic, seen, drift)


@dataclass(slots=True)
class WindowDrift:
    """Drift by window of simulated time, from 0 on. Fed in order of time.

    Attributes:
        length: Of a window, in simulated time.
        worst: Drift by window that was seen so far.
    """

    length: float
    worst: list[float] = field(default_factory=list)
    _now: Window = field(default_factory=Window)

    def add(self, time: float, energy: float, kinetic: float) -> None:
        """Takes the next state: its time, conserved energy and kinetic energy, in one unit."""
        self._now = self._now.add(State(time, energy, kinetic), self.length)
        while len(self.worst) <= self._now.number:
            self.worst.append(0.0)
        self.worst[-1] = self._now.whole_drift

    def keeps(self, tolerance: float) -> bool:
        """Whether every window has kept a tolerance so far. What is not a number has not."""
        return all(drift <= tolerance for drift in self.worst)


class Drifted(NamedTuple):
    """What `Drift` knows at a state; immutable.

    Attributes:
        parts: By coupling step of the last `span`, the oldest first.
        window: The present window.
        drift: See `DRIFT`; 0 before the first step.
    """

    parts: tuple[Range, ...] = ()
    window: Window = Window()
    drift: float = 0.0


@dataclass(slots=True)
class Drift:
    """The drift of a run that goes on: in the last `span` of simulated time, and in the present window of that length.

    Attributes:
        span: Simulated time, whole coupling steps, at least the last one; 0 for that alone, and no windows.
        now: What is known. A new one in its place begins anew.
    """

    span: float
    now: Drifted = field(default_factory=Drifted)

    @property
    def names(self) -> tuple[str, ...]:
        """The observables that there are."""
        return (DRIFT, WINDOW_DRIFT) if self.span else (DRIFT,)

    @property
    def values(self) -> dict[str, float]:
        """The observables."""
        return dict(zip(self.names, (self.now.drift, self.now.window.drift), strict=False))

    def add(self, before: State, energies: Sequence[float], after: State) -> None:
        """Takes the next coupling step: the states before and after it, and the energies seen in it."""
        parts = (*self.now.parts, Range(after.time, min(energies), max(energies)))
        while len(parts) > 1 and parts[0].time <= after.time - self.span * (1.0 - NEARLY):
            parts = parts[1:]
        window = self.now.window
        if self.span:
            window = (window if window.seen else window.add(before, self.span)).add(after, self.span)
        whole = max(part.high for part in parts) - min(part.low for part in parts)
        self.now = Drifted(parts, window, whole / after.kinetic if after.kinetic > 0.0 else 0.0)
