"""Ctrl-C and SIGTERM while a run goes on."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

CLEANING_S = 2.0
"""Time that a block which was broken off gets to clean up before it is broken off again."""


class Signals:
    """SIGINT and SIGTERM while a run goes on. A context manager.

    They are remembered and asked for, not raised: a KeyboardInterrupt may come up where Python throws it away, as in
    the hooks round a fork, or where it leaves a process that nobody knows of.

    Attributes:
        asked: Whether somebody asked to stop (Ctrl-C, SIGTERM).
    """

    def __init__(self) -> None:
        """Nobody has asked."""
        self.asked = False
        self._raises = False
        self._raised_at = -math.inf
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        """Takes the signals, but for one that is switched off (of a job in the background)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """A block that they break off with KeyboardInterrupt, because it does not ask."""
        self._raises = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._raises = False

    def _take(self, *_: object) -> None:
        self.asked = True
        now = time.monotonic()
        if self._raises and now - self._raised_at > CLEANING_S:
            self._raised_at = now
            raise KeyboardInterrupt
