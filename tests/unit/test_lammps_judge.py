from __future__ import annotations

import math

import pytest

from coupler.testing.clock import ManualClock
from sim_clients.adapters.lammps_drift import WindowDrift
from sim_clients.adapters.lammps_judge import FINE, Result, _largest, _least
from sim_clients.paced import Paced


def test_drift_counts_from_the_start_of_each_window_over_its_kinetic_energy():
    drift = WindowDrift(length=1.0)
    for time, energy, kinetic in ((0.0, 5.0, 1.0), (0.5, 5.1, 1.0), (0.9, 4.8, 1.0), (1.0, 5.0, 2.0), (2.0, 5.6, 2.0)):
        drift.add(time, energy, kinetic)
    assert drift.worst == pytest.approx([0.2 / 1.25, 0.6 / 2.0])  # a state at the end of a window belongs to it
    assert drift.keeps(0.31) and not drift.keeps(0.2)


def test_what_is_not_a_number_keeps_no_tolerance():
    drift = WindowDrift(length=1.0)
    drift.add(0.0, 1.0, 1.0)
    drift.add(0.5, math.nan, math.nan)
    assert not drift.keeps(1e9)


@pytest.mark.parametrize("first", [0.1, 0.9, 5.0])
def test_the_largest_setting_that_is_good_is_found_from_anywhere(first):
    tried = []

    def run(setting):
        tried.append(setting)
        return Result(setting, 1.0, 1, 0.0, []) if setting <= 1.0 else None

    assert 1.0 / FINE <= _largest(run, first).setting <= 1.0
    assert len(tried) < 20


def test_where_nothing_is_good_there_is_no_largest():
    assert _largest(lambda _setting: None, 1.0) is None


def test_the_search_begins_at_the_smallest_mean_of_a_window_but_the_first():
    curve = [(0.1, 1.0), (0.9, 3.0), (1.1, 5.0), (1.9, 7.0), (2.5, 8.0)]
    assert _least(curve, 3.0, 3) == 6.0
    assert _least(curve[:2], 3.0, 3) == 2.0


def test_what_takes_long_is_said_now_and_again():
    clock, said = ManualClock(), []
    paced = Paced(said.append, clock)
    for second in range(6):
        paced(f"at {second}")
        clock.advance(1.0)
    paced.now("done")
    paced("not yet")
    assert said == ["at 2", "at 4", "done"]
