"""When the server is asked, and when nothing can come of it."""

from __future__ import annotations

import pytest

from coupler.asking import Asking


def quiet(asking: Asking, exchanges: int) -> list[bool]:
    return [asking.is_quiet() for _ in range(exchanges)]


def tell(asking: Asking, step: int, answers: int, lease: int) -> None:
    asking.told(answers, lease, asking.offered(step, answers, lease))


def test_a_lease_that_answers_the_last_question_is_quiet_to_its_end() -> None:
    asking = Asking(5)
    assert asking.is_due(5) and not asking.is_quiet()
    asking.asked(5)
    tell(asking, 6, answers=5, lease=10)
    assert [step for step in range(6, 20) if not asking.is_due(step)] == list(range(6, 15))
    assert quiet(asking, 10) == [True] * 8 + [False] * 2  # steps 7 to 14, then the next question


def test_in_a_long_lease_ranks_compare_their_steps_now_and_then() -> None:
    asking = Asking(0)
    asking.asked(0)
    tell(asking, 1, answers=0, lease=100)
    assert [n for n, is_quiet in enumerate(quiet(asking, 99)) if not is_quiet] == [2, 18, 34, 50, 66, 82, 98]


def test_while_an_answer_is_under_way_a_lease_is_not_quiet() -> None:
    asking = Asking(0)
    for step in (0, 1):
        asking.asked(step)
    tell(asking, 2, answers=0, lease=10)
    assert not asking.is_due(2) and not asking.is_quiet()
    tell(asking, 4, answers=1, lease=1)  # the lease stays
    assert not asking.is_due(9) and quiet(asking, 6) == [True] * 5 + [False]


@pytest.mark.parametrize("lease", [1, 0, -5])
def test_an_answer_for_one_step_is_not_quiet(lease: int) -> None:
    asking = Asking(0)
    asking.asked(0)
    tell(asking, 1, answers=0, lease=lease)
    assert asking.is_due(1) and not asking.is_quiet()


def test_who_left_the_trajectory_asks_where_it_stands() -> None:
    asking = Asking(0)
    asking.asked(0)
    tell(asking, 1, answers=0, lease=100)
    asking.goes_on_at(40)
    assert asking.is_due(40) and not asking.is_quiet()
