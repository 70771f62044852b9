"""Page-Hinkley finds jumps soon and leaves noise alone."""

from __future__ import annotations

import numpy as np

from coupler.change import PageHinkley


def test_every_jump_of_three_sigma_is_found_soon() -> None:
    delays = []
    for seed in range(100):
        noise = np.random.default_rng(seed).standard_normal(700)
        noise[500:] += 3.0
        test = PageHinkley()
        alarms = [i for i, value in enumerate(noise) if test.update(float(value))]
        assert alarms and alarms[0] >= 500
        delays.append(alarms[0] - 500)
    assert np.median(delays) <= 10


def test_noise_alarms_at_most_once_in_ten_thousand() -> None:
    test = PageHinkley()
    assert sum(test.update(float(v)) for v in np.random.default_rng(1).standard_normal(50_000)) <= 5


def test_a_fall_is_no_alarm_and_an_alarm_starts_anew() -> None:
    test = PageHinkley()
    assert not any(test.update(v) for v in [5.0] * 50 + [0.0] * 50)
    test.reset()
    assert [test.update(v) for v in (0.0, 20.0, 20.0, 20.0)] == [False, True, False, False]
