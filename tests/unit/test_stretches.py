from __future__ import annotations

import numpy as np
import pytest

from sim_clients.stretches import changes, chosen, listed, paced, stretches

STEPS = np.array([0, 1, 2, 5, 6, 7, 8, 20])


def found(times=None, superseded=()):
    times = np.arange(len(STEPS), dtype=float) if times is None else times
    return stretches(STEPS, times, np.isin(np.arange(len(STEPS)), superseded))


def test_a_gap_ends_a_stretch():
    assert [STEPS[one].tolist() for one in found()] == [[0, 1, 2], [5, 6, 7, 8], [20]]


def test_superseded_states_are_skipped_and_time_must_rise():
    assert [STEPS[one].tolist() for one in found(superseded=(1, 6))] == [[0], [2], [5, 6, 7], [20]]
    times = np.array([0.0, 1, 1, 5, 6, 7, 8, 20])
    assert [STEPS[one].tolist() for one in found(times)] == [[0, 1], [2], [5, 6, 7, 8], [20]]


@pytest.mark.parametrize(
    ("start", "stop", "steps"),
    [(None, None, [5, 6, 7, 8]), (0, None, [0, 1, 2]), (None, 7, [5, 6, 7]), (6, 7, [6, 7]), (0, 1, [0, 1])],
)
def test_the_longest_is_chosen_or_the_one_that_holds_what_is_wanted(start, stop, steps):
    assert STEPS[chosen(STEPS, found(), start, stop)].tolist() == steps


def test_what_cannot_be_played_is_refused_with_what_there_is():
    has = r"steps 5 to 8 \(the longest\), 0 to 2, 20 to 20"
    for start, stop, sentence in (
        (1, 6, f"no stretch of the record holds start = 1 to stop = 6; it has {has}"),
        (3, None, "no stretch of the record holds step 3"),
        (None, 0, "holds 1 state"),
        (20, None, f"holds 1 state.*{has}"),
    ):
        with pytest.raises(ValueError, match=sentence):
            chosen(STEPS, found(), start, stop)


def test_many_stretches_are_not_all_named():
    steps = np.arange(0, 40, 2)
    text = listed(steps, stretches(steps, steps * 1.0, np.zeros(20, bool)))
    assert text.endswith("and 14 shorter ones")


def test_even_times_have_one_dt_whatever_their_rounding():
    for dtype, first in ((np.float64, 0.0), (np.float32, 1000.0)):
        told = (first + 0.1 * np.arange(50)).astype(dtype)
        times, dts = paced(told.astype(np.float64), float(np.finfo(dtype).eps))
        assert len(set(dts)) == 1 and dts[0] == pytest.approx(0.1, rel=1e-4)
        assert np.allclose(np.diff(times), dts[0], rtol=1e-6, atol=0.0)
        assert np.allclose(times, told, rtol=1e-6, atol=0.0)


def test_times_that_are_not_even_keep_their_dts():
    times, dts = paced(np.array([0.0, 1.0, 3.0, 1.0, 2.0, 3.0, 0.5]), 0.0)
    assert times.tolist() == [0.0, 1.0, 3.0, 1.0, 2.0, 3.0, 0.5]
    assert dts.tolist() == [1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0]


def test_no_horizon_passes_the_change_of_a_control():
    times, dts = np.arange(6.0), np.ones(6)
    assert changes(times, dts, []).tolist() == [np.inf] * 6
    controls = [np.array([1, 1, 1, 2, 2, 2]), np.array([0.0, 0, 0, 0, 0, 7])]
    assert changes(times, dts, controls).tolist() == [2.5, 2.5, 2.5, 4.5, 4.5, np.inf]
