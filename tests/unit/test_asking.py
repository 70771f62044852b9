"""When the server is asked, and when nothing can come of it."""

from __future__ import annotations

from coupler.asking import Asking


def test_a_lease_that_answers_the_last_question_is_quiet_to_its_end() -> None:
    asking = Asking(5)
    assert asking.is_due(5) and not asking.is_quiet(5)
    asking.asked(5)
    asking.told(5, lease=10)
    assert [step for step in range(5, 20) if asking.is_quiet(step)] == list(range(5, 15))
    assert [step for step in range(5, 20) if not asking.is_due(step)] == list(range(5, 15))


def test_while_an_answer_is_under_way_a_lease_is_not_quiet() -> None:
    asking = Asking(0)
    for step in (0, 1):
        asking.asked(step)
    asking.told(0, lease=10)
    assert not asking.is_due(2) and not asking.is_quiet(2)
    asking.told(1, lease=1)  # the lease stays
    assert not asking.is_due(9) and asking.is_quiet(9) and not asking.is_quiet(10)


def test_who_left_the_trajectory_asks_where_it_stands() -> None:
    asking = Asking(0)
    asking.asked(0)
    asking.told(0, lease=100)
    asking.goes_on_at(40)
    assert asking.is_due(40) and not asking.is_quiet(40)
