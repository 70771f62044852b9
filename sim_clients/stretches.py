"""Which states of a record can be played one after the other, and when they are. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Times = NDArray[np.float64]
SAME = 1e-6
"""Share of a dt that times may be off and still count as the same."""
SHOWN = 6
"""Stretches that a message names."""


def stretches(steps: Numbers, times: Times, superseded: NDArray[np.bool_]) -> list[Numbers]:
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


def paced(times: Times, rounding: float) -> tuple[Times, Times]:
    """Times that a file has, with the dt to the next.

    Times that are even but for rounding are given one dt. Where they are of a type too narrow for that, as float32 is
    after many steps, they are placed evenly themselves.

    Args:
        times: Simulated time of each state, shape (n,). Where they do not rise, another stretch begins.
        rounding: Relative rounding of the type that the file has them in.

    Returns:
        The times, and the simulated time from each to the next, which for the last of a stretch is that before; each of
        shape (n,).
    """
    placed, dts = times.copy(), np.zeros(len(times))
    for one in np.split(np.arange(len(times)), np.flatnonzero(np.diff(times) <= 0.0) + 1):
        if len(one) < 2:
            continue
        told = times[one]
        apart, dt = np.diff(told), (told[-1] - told[0]) / (len(one) - 1)
        even = told[0] + dt * np.arange(len(one))
        if (np.abs(apart - dt) <= SAME * dt).all():
            dts[one] = dt
        elif (np.abs(told - even) <= 2.0 * rounding * np.abs(told).max()).all():
            placed[one], dts[one] = even, dt
        else:
            dts[one] = np.append(apart, apart[-1])
    return placed, dts


def changes(times: Times, dts: Times, controls: Iterable[NDArray[Any]]) -> Times:
    """Simulated time of the next change of a control; infinity after the last.

    A control that differs in state k changed after state k - 1, and no horizon from before may pass that one.

    Args:
        times: Simulated time of each state, shape (n,).
        dts: Simulated time to the next, shape (n,).
        controls: The value of each control in every state, each of shape (n,).

    Returns:
        Half a step after the last state before the change, for each state, shape (n,).
    """
    until = np.full(len(times), np.inf)
    for values in controls:
        last = np.flatnonzero(np.diff(values))
        following = np.searchsorted(last, np.arange(len(times)))
        known = following < len(last)
        at = last[following[known]]
        until[known] = np.minimum(until[known], times[at] + 0.5 * dts[at])
    return until
