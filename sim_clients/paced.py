"""Says how far long work has come, but not too often."""

from __future__ import annotations

import time
from collections.abc import Callable

SAY_S = 2.0


class Paced:
    """Passes a line on when the last one was said long enough ago."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Args: say: Takes the lines. clock: Monotonic seconds."""
        self._say, self._clock = say, clock
        self._due = clock() + SAY_S

    def __call__(self, line: str) -> None:
        """Says a line, if that is due."""
        if self._clock() >= self._due:
            self.now(line)

    def now(self, line: str) -> None:
        """Says a line in any case."""
        self._due = self._clock() + SAY_S
        self._say(line)
