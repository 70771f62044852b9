from __future__ import annotations

import math

import pytest

from coupler.retry import MOST, Retry
from coupler.terms import Terms
from schemas.fields import Snapshot

TERMS = Terms(run="r", last_step=100, end_time=1.0)


def at(step: int, time: float, dt: float = 0.3) -> Snapshot:
    return Snapshot(step, time, dt)


def test_a_run_ends_at_its_time_or_at_its_last_step() -> None:
    assert not TERMS.over(at(99, 0.9))
    assert TERMS.over(at(100, 0.9)) and TERMS.over(at(3, 1.0)) and TERMS.over(at(3, 1.0 - 1e-12))
    assert not Terms(run="r", last_step=100).over(at(99, 1e300))


@pytest.mark.parametrize(("time", "dt", "cut"), [(0.0, 0.3, 0.3), (0.9, 0.3, 1.0 - 0.9), (0.5, 0.5 - 1e-12, 0.5)])
def test_the_last_step_hits_the_end(time: float, dt: float, cut: float) -> None:
    assert TERMS.cut(dt, time) == cut
    assert Terms(run="r", last_step=100).cut(dt, time) == dt


def test_no_horizon_passes_the_end() -> None:
    assert TERMS.room(at(5, 0.0), 90) == 8
    assert TERMS.room(at(5, 0.0), 7) == 7
    assert TERMS.room(at(5, 0.9), 90) == 5
    assert Terms(run="r", last_step=100).room(at(5, 0.0), 90) == 90


def test_after_a_failure_dt_stays_small_until_well_past_it() -> None:
    retry = Retry(4)
    assert retry.limit(0) == math.inf
    assert retry.failed(10, 0.8) == 0.4
    assert [retry.limit(step) for step in (6, 10, 14)] == [0.4, 0.4, 0.4]
    assert retry.failed(9, 0.4) == 0.2
    assert retry.limit(13) == 0.2 and retry.limit(14) == math.inf


def test_enough_failures_at_one_place_are_enough_but_progress_counts() -> None:
    retry = Retry(4)
    assert all(retry.failed(10, 1.0) for _ in range(MOST)) and retry.failed(10, 1.0) == 0.0
    retry = Retry(4)
    assert all(retry.failed(step, 1.0) for step in range(3 * MOST))
