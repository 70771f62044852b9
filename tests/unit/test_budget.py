"""The budget: what does not pay stays within its share of the direct wall time; what pays never starves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_servers.budget import AT_ONCE, BURST, MAX_LEASE, QUIET, Budget

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
    assert streamed >= min(steps - quiet, BURST) and all(BURST <= lease <= MAX_LEASE for lease in leases[quiet > 1 :])


def test_within_the_budget_every_state_is_streamed() -> None:
    spent, streamed, leases = spent_by(Budget(overhead=0.1, steps=1000), 1000, 0.001)
    quiet = 1000 // 64
    assert (streamed, leases) == (1001 - quiet, [quiet]) and spent == pytest.approx(0.001 * streamed)


def test_states_come_in_bursts() -> None:
    _, streamed, leases = spent_by(Budget(overhead=0.01, steps=5000), 5000, 0.05)
    assert leases[0] == QUIET and streamed >= BURST * len(leases[1:]) and leases[1:]


def test_what_learned_steps_save_is_given_back() -> None:
    poor = Budget(overhead=0.01, steps=1000, spent_s=10.0, direct_step_s=STEP_S, streamed=BURST, burst=BURST)
    assert poor.lease(500)[0] > 1
    assert poor.learned(10_000).lease(500)[0] == 1
    assert poor.share(500) == pytest.approx(0.01 * (1 - AT_ONCE)) and poor.learned(10_000).share(500) == 1.0


def test_trainers_are_charged() -> None:
    budget = Budget(overhead=0.01, steps=1000, direct_step_s=STEP_S)
    assert budget.share(0) == 1.0 and budget.trained(5.0).share(0) < 1.0


@pytest.mark.parametrize("overhead", [0.0, math.inf])
def test_budgets_of_nothing_and_without_end(overhead: float) -> None:
    budget = Budget(overhead=overhead, steps=100, streamed=BURST, burst=BURST).asked(STEP_S, 1.0, 0.0, 100)
    assert budget.lease(0)[0] == (MAX_LEASE if overhead == 0.0 else 1)
    unknown = Budget(overhead=overhead, steps=100, streamed=BURST, burst=BURST).asked(0.0, 1.0, 0.0, 100)
    assert unknown.lease(0)[0] == 1
    first = Budget(overhead=overhead, steps=6400).asked(STEP_S, 1.0, 0.0, 6400)
    assert first.lease(0)[0] == (QUIET if overhead == 0.0 else 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -5.0])
def test_figures_that_cannot_be_durations_count_as_none(bad: float) -> None:
    budget = Budget(overhead=0.01, steps=100, streamed=BURST, burst=BURST).asked(bad, bad, bad, 100)
    assert (budget.spent_s, budget.direct_step_s) == (0.0, 0.0) and budget.lease(10)[0] == 1
