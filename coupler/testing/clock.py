"""A clock that moves only when told to, for tests and for runs in one thread."""

from __future__ import annotations


class ManualClock:
    """Stands in for `time.monotonic`: called without arguments, it returns seconds."""

    def __init__(self, start_s: float = 0.0) -> None:
        """Args: start_s: Seconds it shows at first."""
        self._now_s = start_s

    def __call__(self) -> float:
        """The present time in seconds."""
        return self._now_s

    def advance(self, dt: float) -> None:
        """Moves on by dt seconds. Raises ValueError when dt is negative or not a number: time never runs back."""
        if not dt >= 0:
            raise ValueError(f"dt is {dt}; a clock advances by zero or more seconds")
        self._now_s += dt
