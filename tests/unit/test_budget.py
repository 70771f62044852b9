"""The budget: what does not pay stays within its share of the direct wall time; what pays never starves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_servers.budget import AT_ONCE, BURST, LOOKS, MAX_LEASE, PROMISE, QUIET, Budget

STEP_S = 0.1


def spent_by(budget: Budget, steps: int, cost_s: float) -> tuple[float, int, list[int]]:
    """Runs to the end without the model ever paying: what was spent, states streamed, leases given."""
    step, leases = 0, []
    while step < steps:
        budget = budget.asked(STEP_S, cost_s, 0.0, steps)
        lease, budget = budget.lease(step)
        leases += [lease] if lease > 1 else []
        step += lease
    return budget.spent_s, budget.streamed, leases


@settings(max_examples=60)
@given(st.integers(200, 50_000), st.floats(1e-4, 0.5), st.floats(0.005, 0.3))
def test_a_model_that_never_pays_costs_its_share_and_one_burst_a_lease(
    steps: int, cost_s: float, overhead: float
) -> None:
    budget = Budget(overhead=overhead, steps=steps)
    spent, streamed, leases = spent_by(budget, steps, cost_s)
    plan = overhead * steps * STEP_S
    # The first burst is spent before anything is known; later ones are paid for before they begin.
    assert spent <= max(plan, BURST * cost_s) + cost_s + 1e-9
    quiet = min(steps // 64, QUIET)
    assert streamed >= min(steps - len(LOOKS) * quiet, BURST)
    assert all(lease == quiet or BURST <= lease <= MAX_LEASE for lease in leases)


def test_within_the_budget_every_state_is_streamed() -> None:
    spent, streamed, leases = spent_by(Budget(overhead=0.1, steps=1000), 1000, 0.001)
    quiet = 1000 // 64
    assert (streamed, leases) == (1001 - quiet, [quiet]) and spent == pytest.approx(0.001 * streamed)


def test_states_come_in_bursts() -> None:
    _, streamed, leases = spent_by(Budget(overhead=0.01, steps=5000), 5000, 0.05)
    assert leases[:3] == [QUIET] * 3 and streamed >= BURST * len(leases[3:]) and leases[3:]


def test_a_first_look_that_was_disturbed_does_not_raise_the_budget() -> None:
    steps, budget = 20_000, Budget(overhead=0.03, steps=20_000)
    step, told = 0, 3.0 * STEP_S
    while step < steps:
        budget = budget.asked(told, 0.01, 0.0, steps)
        lease, budget = budget.lease(step)
        assert budget.share(step) == 1.0 or budget.share(step) == pytest.approx(0.003)
        assert budget.share(step) < 1.0 or lease != QUIET
        step += lease
        told = STEP_S if budget.looks == 2 and step == budget.quiet_until else 3.0 * STEP_S
    assert budget.looks == 3 and budget.spent_s <= 0.03 * steps * STEP_S + 0.01


def test_what_learned_steps_save_is_given_back() -> None:
    poor = Budget(
        overhead=0.01, steps=1000, spent_s=10.0, direct_step_s=STEP_S, streamed=BURST, burst=BURST, looks=len(LOOKS)
    )
    assert poor.lease(500)[0] > 1
    assert poor.learned(10_000).lease(500)[0] == 1
    assert poor.share(500) == pytest.approx(0.01 * (1 - AT_ONCE)) and poor.learned(10_000).share(500) == 1.0


def test_trainers_are_charged() -> None:
    budget = Budget(overhead=0.01, steps=1000, direct_step_s=STEP_S)
    assert budget.share(0) == 1.0 and budget.trained(5.0).share(0) < 1.0


@pytest.mark.parametrize("overhead", [0.0, math.inf])
def test_budgets_of_nothing_and_without_end(overhead: float) -> None:
    budget = Budget(overhead=overhead, steps=100, streamed=BURST, burst=BURST, looks=len(LOOKS)).asked(
        STEP_S, 1.0, 0.0, 100
    )
    assert budget.lease(0)[0] == (MAX_LEASE if overhead == 0.0 else 1)
    unknown = Budget(overhead=overhead, steps=100, streamed=BURST, burst=BURST, looks=len(LOOKS)).asked(
        0.0, 1.0, 0.0, 100
    )
    assert unknown.lease(0)[0] == 1
    first = Budget(overhead=overhead, steps=6400).asked(STEP_S, 1.0, 0.0, 6400)
    assert first.lease(0)[0] == (QUIET if overhead == 0.0 else 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -5.0])
def test_figures_that_cannot_be_durations_count_as_none(bad: float) -> None:
    budget = Budget(overhead=0.01, steps=100, streamed=BURST, burst=BURST, looks=len(LOOKS)).asked(bad, bad, bad, 100)
    assert (budget.spent_s, budget.direct_step_s) == (0.0, 0.0) and budget.lease(10)[0] == 1


def test_a_model_that_promises_to_pay_is_given_more_until_it_stops_promising() -> None:
    budget = Budget(overhead=0.05, steps=10_000).asked(STEP_S, 0.0, 0.0, 10_000).trained(60.0)
    assert budget.spent_s > budget.allowed_s(0) and budget.share(0) < 0.01
    hopeful = budget.asked(STEP_S, 0.0, 0.0, 10_000, promising=True)
    assert hopeful.allowed_s(0) == pytest.approx(PROMISE * budget.allowed_s(0)) and hopeful.share(0) == 1.0
    assert hopeful.trained(60.0).share(0) < 0.01  # but not without end
    assert hopeful.asked(STEP_S, 0.0, 0.0, 10_000).share(0) < 0.01
