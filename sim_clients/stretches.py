"""Which states of a record can be played one after the other. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
SHOWN = 6
"""Stretches that a message names."""


def stretches(steps: Numbers, times: NDArray[np.float64], superseded: NDArray[np.bool_]) -> list[Numbers]:
    """The states that follow one another without a gap.

    Args:
        steps: Coupling step of each recorded state, shape (n,).
        times: Simulated time of each, shape (n,).
        superseded: States of a branch that the run left, which are skipped, shape (n,).

    Returns:
        Places in the record, one array of shape (m,) for each stretch, in the order of their steps.
    """
    alive = np.flatnonzero(~superseded)
    follows = (np.diff(steps[alive]) == 1) & (np.diff(times[alive]) > 0.0)
    return np.split(alive, np.flatnonzero(~follows) + 1)


def chosen(steps: Numbers, found: list[Numbers], start: int | None, stop: int | None) -> Numbers:
    """The stretch to play: the longest, or the part of one from recorded step `start` to `stop`, both included.

    Args:
        steps: Coupling step of each recorded state, shape (n,).
        found: The stretches, as `stretches` gives them.
        start: First step to play; None for the first of the stretch.
        stop: Last step to play; None for the last of the stretch.

    Returns:
        Places in the record, shape (m,), m at least 2.

    Raises:
        ValueError: No stretch holds these steps, or they are fewer than two states.
    """
    inside = [one for one in found if all(x is None or x in steps[one] for x in (start, stop))]
    if not inside:
        wanted = (
            f"start = {start} to stop = {stop}"
            if None not in (start, stop)
            else f"step {stop if start is None else start}"
        )
        raise ValueError(f"no stretch of the record holds {wanted}; it has {listed(steps, found)}")
    longest = max(inside, key=len)
    here = steps[longest]
    kept = longest[
        (here >= (start if start is not None else here[0])) & (here <= (stop if stop is not None else here[-1]))
    ]
    if len(kept) < 2:
        raise ValueError(
            f"the stretch to play holds {len(kept)} state(s); playing needs two at least, and the record has "
            f"{listed(steps, found)}"
        )
    return kept


def listed(steps: Numbers, found: list[Numbers]) -> str:
    """The longest stretches in words, such as `steps 0 to 40 (the longest), 44 to 60`."""
    order = sorted(found, key=len, reverse=True)
    names = [f"{steps[one[0]]} to {steps[one[-1]]}" for one in order[:SHOWN] if len(one)]
    if len(names) > 1:
        names[0] += " (the longest)"
    more = f" and {len(order) - SHOWN} shorter ones" if len(order) > SHOWN else ""
    return f"steps {', '.join(names)}{more}"
