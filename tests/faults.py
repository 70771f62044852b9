"""Pages that a step touches for the first time."""

from __future__ import annotations

import resource
from collections.abc import Callable

FIRST, LAST = 10, 60


def faults_a_step(step: Callable[[int], object]) -> float:
    """Pages that this thread touches for the first time in a step, after the tenth."""
    before = 0
    for number in range(LAST):
        if number == FIRST:
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        step(number)
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / (LAST - FIRST)


def allowed(size: int) -> float:
    """One page for each 256 kB; touching all of the state anew would take 64 times as many."""
    return size / (1 << 18)
