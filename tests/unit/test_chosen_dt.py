"""Which dt a direct step gets: the advised one while it is fresh, the simulation's own otherwise."""

from __future__ import annotations

import pytest

from coupler.chosen_dt import IN_A_ROW, ChosenDt
from coupler.guard import Guard
from coupler.terms import Terms
from schemas.fields import Snapshot

TERMS = Terms(run="r", last_step=1000, dt_steps=3, keep_every=5)
GUARD = Guard(dt_min=0.1, dt_max=8.0)


def at(step: int, dt: float, time: float = 0.0) -> Snapshot:
    return Snapshot(step, time, dt)


def test_an_advised_dt_holds_for_a_few_steps_and_then_the_own_one_unless_that_is_larger() -> None:
    chosen, dt, seen = ChosenDt(TERMS, GUARD), 1.0, []
    for step in range(12):
        if step in (1, 6):
            chosen.told(4.0 if step == 1 else 0.5, step - 1)
        seen.append(dt := chosen.next(at(step, dt)))
    assert seen == [1.0, 4.0, 4.0, 4.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    chosen.told(2.0, 11)
    assert chosen.next(at(12, dt)) == 2.0


def test_the_own_dt_is_not_forgotten_when_no_dt_is_advised_any_more() -> None:
    chosen = ChosenDt(TERMS, GUARD)
    chosen.next(at(0, 1.0))
    chosen.told(4.0, 0)
    assert chosen.next(at(1, 1.0)) == 4.0
    chosen.told(0.0, 1)  # the task is out of use
    assert chosen.next(at(2, 4.0)) == 1.0


def test_an_audit_keeps_the_dt_of_the_forecasts_that_it_judges() -> None:
    chosen, dt = ChosenDt(TERMS, GUARD), 1.0
    for step in range(4):
        chosen.told(4.0, step)
        dt = chosen.next(at(step, dt))
    chosen.told(0.0, 50, goes_on=True)  # far ahead, from a learned state: nothing was said about dt
    assert chosen.next(at(50, dt)) == 4.0


def test_a_simulation_that_changes_its_dt_by_itself_is_left_alone() -> None:
    chosen = ChosenDt(TERMS, GUARD)
    assert [chosen.next(at(step, dt)) for step, dt in enumerate((1.0, 1.5, 0.7))] == [1.0, 1.5, 0.7]
    chosen.told(4.0, 2)
    assert chosen.next(at(3, 0.7)) == 4.0
    assert chosen.next(at(20, 0.9)) == 0.9  # it did not take the advised one: this is its own again


def test_the_case_says_what_the_own_dt_is_and_failures_and_the_end_limit_it() -> None:
    chosen = ChosenDt(Terms(run="r", last_step=1000, dt=2.0, end_time=10.0, dt_steps=3, keep_every=5), GUARD)
    assert chosen.next(at(0, 1.0)) == 2.0
    chosen.told(100.0, 0)
    assert chosen.next(at(1, 2.0)) == 8.0  # the guard's
    assert chosen.failed(1, 8.0) == 4.0
    assert chosen.next(at(1, 2.0)) == 4.0
    assert chosen.next(at(2, 4.0, time=9.0)) == pytest.approx(1.0)


def test_after_a_rejected_step_the_next_begins_at_the_dt_that_was_meant() -> None:
    chosen = ChosenDt(TERMS, GUARD)
    chosen.told(4.0, 0)
    assert chosen.next(at(0, 1.0)) == 4.0
    assert chosen.rejected(4.0) == 2.0 and chosen.rejected(2.0) == 1.0
    assert chosen.meant(at(1, 1.0)).dt == 4.0
    assert chosen.meant(at(1, 3.0)).dt == 3.0  # the simulation has a dt of its own
    chosen.next(at(1, 4.0))
    assert chosen.meant(at(2, 4.0)).dt == 4.0


def test_of_steps_rejected_in_a_row_something_is_learned() -> None:
    chosen, begins = ChosenDt(TERMS, GUARD), []
    chosen.next(at(0, 1.0))
    for step in (1, 2, 3, 4, 5, 9):
        chosen.told(4.0, step - 1)
        chosen.next(at(step - 1, begins[-1] if begins else 1.0))
        assert chosen.rejected(4.0) == 2.0
        begins.append(chosen.meant(at(step, 2.0)).dt)
    assert begins == pytest.approx([4.0, 4.0, 4.0, 8.0**0.5, 8.0**0.5, 4.0])
    chosen.told(0.0, 9)  # the task is out of use
    assert chosen.next(at(9, 4.0)) == 1.0


@pytest.mark.parametrize(("answers", "dt"), [(0, 8.0**0.5), (3, 8.0**0.5), (4, 4.0)])
def test_what_was_advised_before_steps_in_a_row_does_not_exceed_what_follows_from_them(answers: int, dt: float) -> None:
    chosen = ChosenDt(TERMS, GUARD)
    chosen.told(4.0, 0)
    for step in range(IN_A_ROW):
        assert chosen.next(at(step, 4.0)) == 4.0
        assert chosen.rejected(4.0) == 2.0
        shown = chosen.meant(at(step + 1, 2.0))
    chosen.told(4.0, answers)
    assert chosen.next(shown) == pytest.approx(dt)
    assert chosen.next(at(5, dt)) == 4.0


def test_the_own_dt_of_a_simulation_is_not_changed_by_steps_in_a_row() -> None:
    chosen = ChosenDt(TERMS, GUARD)
    for step in range(5):
        assert chosen.next(at(step, 1.0)) == 1.0
        assert chosen.rejected(1.0) == 0.5
        assert chosen.meant(at(step + 1, 0.5)).dt == 1.0


def test_no_step_is_made_again_below_the_smallest_dt() -> None:
    chosen = ChosenDt(TERMS, GUARD)
    assert chosen.rejected(0.2) == 0.1 and chosen.rejected(0.19) == 0.0
