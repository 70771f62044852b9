"""Net and effective speedup against hand-worked cases and their own definition."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.report.speedup import break_even, effective_speedup, net_speedup

seconds = st.floats(1e-6, 1e3)


def test_net_speedup() -> None:
    assert net_speedup(240.0, 60.0) == 4.0
    assert net_speedup(None, 60.0) is None and net_speedup(240.0, None) is None and net_speedup(240.0, 0.0) is None


def test_effective_speedup_has_the_right_limits() -> None:
    assert effective_speedup(1.0, 0.01, 1.0, 0.5, 0, 100) == pytest.approx(1.0 / 1.5)  # nothing looked up yet
    assert effective_speedup(1.0, 0.01, 1.0, 0.5, 1e12, 100) == pytest.approx(100.0, rel=1e-6)  # T_seq / T_lookup
    assert effective_speedup(2.0, 0.5, 3.0, 1.0, 30, 10) == pytest.approx(2 * 40 / (0.5 * 30 + 4 * 10))
    assert effective_speedup(1.0, 0.0, 0.0, 0.0, 5, 5) is None


@given(seconds, seconds, seconds, seconds, st.integers(1, 10**6))
def test_at_the_break_even_the_effective_speedup_is_one(
    t_seq: float, t_lookup: float, t_train: float, t_learn: float, n_train: int
) -> None:
    n = break_even(t_seq, t_lookup, t_train, t_learn, n_train)
    if 0.0 < n < 1e12 and t_lookup < 0.999 * t_seq:
        assert effective_speedup(t_seq, t_lookup, t_train, t_learn, n, n_train) == pytest.approx(1.0, rel=1e-6)


def test_break_even_edges() -> None:
    assert break_even(1.0, 1.0, 1.0, 0.5, 10) == math.inf  # looking up costs as much as integrating
    assert break_even(1.0, 0.1, 1.0, 0.0, 10) == 0.0  # learning is free
