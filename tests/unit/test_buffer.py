"""The training memory: newest samples, a reservoir of older ones, and books that balance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_servers.buffer import Buffer, rows_within


def fill(buffer: Buffer, steps: range) -> None:
    for step in steps:
        buffer.rows[buffer.place(step)] = step


def test_the_oldest_samples_leave_first() -> None:
    buffer = Buffer(2, 5)
    fill(buffer, range(12))
    view = buffer.view()
    assert view.steps.tolist() == [7, 8, 9, 10, 11]
    assert buffer.rows[view.rows, 0].tolist() == [7, 8, 9, 10, 11]
    assert (buffer.counts.offered, buffer.counts.evicted, buffer.counts.held) == (12, 7, 5)


def test_a_jump_starts_a_segment_and_a_return_supersedes() -> None:
    buffer = Buffer(1, 20)
    fill(buffer, range(5))
    fill(buffer, range(8, 11))
    assert len(set(buffer.view().segments)) == 2
    fill(buffer, range(3, 5))  # the run went back to step 3: steps 3, 4 and 8 to 10 belong to a branch that was left
    view = buffer.view()
    assert view.steps.tolist() == [0, 1, 2, 3, 4]
    assert view.segments[2] != view.segments[3]
    assert buffer.counts.superseded == 5


def test_going_on_after_a_rewind_continues_the_segment() -> None:
    buffer = Buffer(1, 20)
    fill(buffer, range(5))
    fill(buffer, range(5, 8))
    assert len(set(buffer.view().segments)) == 1


def test_the_reservoir_is_a_uniform_sample_of_what_left_the_window() -> None:
    kept = np.zeros(40)
    for seed in range(200):
        buffer = Buffer(1, 20, piece=2, rehearsal=0.5, seed=seed)
        fill(buffer, range(80))
        view = buffer.view()
        assert view.steps[view.recent].tolist() == list(range(70 if len(view) == 20 else 71, 80))
        old = view.steps[~view.recent]
        assert np.all(np.diff(old.reshape(-1, 2), axis=1) == 1)  # pieces stay whole: they hold transitions
        kept[np.unique(old // 2)] += 1
    assert kept[:35].min() > 200 * 5 / 35 * 0.4 and kept[:35].max() < 200 * 5 / 35 * 1.8


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-30, 10), st.integers(1, 12)), max_size=20),
    st.integers(1, 4),
    st.floats(0, 0.8),
)
def test_books_balance_whatever_happens(moves: list[tuple[int, int]], piece: int, rehearsal: float) -> None:
    buffer = Buffer(1, 16, piece=piece, rehearsal=rehearsal, seed=1)
    step = 0
    for jump, length in moves:
        step = max(0, step + jump)
        fill(buffer, range(step, step + length))
        step += length
        view = buffer.view()
        assert len(view) == buffer.counts.held <= buffer.capacity
        assert len(set(view.rows)) == len(view)
        assert np.all(np.diff(view.arrivals) > 0)
        assert buffer.rows[view.rows, 0].tolist() == view.steps.tolist()
        assert view.steps.max(initial=-1) < step
    buffer.clear()
    assert buffer.counts.held == len(buffer.view()) == 0


def test_memory_is_bounded_by_bytes_and_a_window_too_small_is_refused() -> None:
    assert rows_within(1000, 10, 400) == 25
    assert rows_within(1000, 10, 4) == 4
    with pytest.raises(ValueError, match="raise window_bytes"):
        Buffer(10, rows_within(70, 10, 400))
