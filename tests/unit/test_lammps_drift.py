"""Drift of a conserved quantity, in windows and over the last stretch of time."""

from __future__ import annotations

import itertools
import random

import pytest

from sim_clients.adapters.lammps_drift import DRIFT, WINDOW_DRIFT, Drift, Drifted, State, Window, WindowDrift


def walk(steps: int) -> list[State]:
    """A conserved energy that wanders, with steps of different length."""
    draw, found = random.Random(1), [State(0.0, 5.0, 2.0)]
    for _ in range(steps):
        time, energy, kinetic = found[-1]
        found.append(
            State(time + draw.uniform(0.1, 0.4), energy + draw.uniform(-1, 1), kinetic * draw.uniform(0.9, 1.1))
        )
    return found


def test_the_drift_of_the_present_window_is_at_its_end_that_of_the_judgement_but_for_the_mean_kinetic_energy() -> None:
    drift, judged, seen = Drift(span=2.0), WindowDrift(2.0), []
    states = walk(60)
    judged.add(*states[0])
    for before, after in itertools.pairwise(states):
        drift.add(before, (before.energy, after.energy), after)
        judged.add(*after)
        seen.append((drift.now.window.number, drift.values[WINDOW_DRIFT]))
    assert len(judged.worst) == seen[-1][0] + 1
    for number, worst in enumerate(judged.worst):
        of_window = [value for window, value in seen if window == number]
        assert of_window == sorted(of_window)  # it never falls
        assert of_window[-1] == pytest.approx(worst, rel=0.4)


def test_a_window_begins_where_the_last_one_ended() -> None:
    window = Window().add(State(0.0, 1.0, 1.0), 1.0).add(State(1.0, 3.0, 1.0), 1.0)
    assert (window.number, window.start, window.drift, window.whole_drift) == (0, 1.0, 2.0, 2.0)
    window = window.add(State(1.0 + 1e-6, 3.5, 2.0), 1.0)
    assert (window.number, window.start, window.drift) == (1, 3.0, 0.25)
    assert window.add(State(1.5, 3.0, 6.0), 1.0).drift == 0.25 > window.add(State(1.5, 3.0, 6.0), 1.0).whole_drift


def test_the_range_of_the_last_stretch_is_over_its_kinetic_energy() -> None:
    drift = Drift(span=1.0)
    for before, after in itertools.pairwise([State(0.5 * k, float(k), 4.0) for k in range(6)]):
        drift.add(before, (before.energy, after.energy + 0.5, after.energy), after)
    assert drift.values[DRIFT] == 2.5 / 4.0
    assert [part.time for part in drift.now.parts] == [2.0, 2.5]


def test_what_is_known_can_be_put_back_and_forgotten() -> None:
    drift, states = Drift(span=1.0), walk(9)
    for before, after in itertools.pairwise(states[:6]):
        drift.add(before, (before.energy, after.energy), after)
    kept = drift.now
    shown = drift.values
    drift.add(states[5], (9.0, -9.0), states[6])
    assert drift.values != shown
    drift.now = kept
    assert drift.values == shown
    drift.now = Drifted()
    assert drift.values == {DRIFT: 0.0, WINDOW_DRIFT: 0.0}


def test_without_a_span_there_are_no_windows() -> None:
    drift = Drift(span=0.0)
    drift.add(State(0.0, 1.0, 2.0), (1.0, 2.0), State(0.5, 2.0, 2.0))
    assert drift.values == {DRIFT: 0.5} and drift.names == (DRIFT,)
