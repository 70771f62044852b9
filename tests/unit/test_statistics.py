"""Statistics of series against signals whose mean, amplitude and frequency are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.report.statistics import amplitude, compare, describe, dominant

STEPS = np.arange(720)


def wave(times: np.ndarray, frequency: float, phase: float = 0.3) -> np.ndarray:
    """A sine with two harmonics, as a lift looks."""
    angle = 2 * math.pi * frequency * times + phase
    return np.sin(angle) + 0.4 * np.cos(2 * angle + 1.0) + 0.2 * np.sin(3 * angle)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.035, 0.08), st.floats(0.0, 6.28))
def test_frequency_of_a_few_tens_of_periods_is_exact_far_below_a_bin(frequency: float, phase: float) -> None:
    tone = dominant(STEPS, STEPS * 1.0, wave(STEPS, frequency, phase))
    assert tone is not None
    assert tone.frequency == pytest.approx(frequency, rel=1e-6)
    assert tone.explained > 0.999


def test_drift_and_noise_do_not_move_the_frequency() -> None:
    noise = np.random.default_rng(1).standard_normal(len(STEPS))
    drift = 6.0 * (STEPS / 720) ** 2 - 40.0
    tone = dominant(STEPS, STEPS * 0.5, wave(STEPS * 0.5, 0.0823) + drift + 0.1 * noise)
    assert tone is not None
    assert tone.frequency == pytest.approx(0.0823, rel=5e-4)


@pytest.mark.parametrize(("every", "gap"), [(50, 2), (150, 45), (240, 120)], ids=["audits", "phases", "half"])
def test_frequency_of_a_series_with_gaps(every: int, gap: int) -> None:
    kept = STEPS % every >= gap
    tone = dominant(STEPS[kept], STEPS[kept] * 2.0, wave(STEPS[kept] * 2.0, 0.0213))
    assert tone is not None
    assert tone.frequency == pytest.approx(0.0213, rel=1e-6)


def test_stretches_may_differ_in_phase_and_level() -> None:
    """Two learned stretches far apart: what lay between them must not count, neither phase nor mean."""
    first, second = STEPS[:300], STEPS[420:]
    steps = np.concatenate([first, second])
    values = np.concatenate([wave(first, 0.0417), 5.0 + 0.7 * wave(second, 0.0417, phase=2.0)])
    tone = dominant(steps, steps * 1.0, values)
    assert tone is not None
    assert tone.frequency == pytest.approx(0.0417, rel=1e-5)


def test_stretches_shorter_than_two_periods_do_not_count() -> None:
    kept = STEPS % 60 < 30  # 30 of 24-step periods: 1.25 periods each
    assert dominant(STEPS[kept], STEPS[kept] * 1.0, wave(STEPS[kept], 1 / 24)) is None


def test_frequency_of_a_non_uniform_sampling() -> None:
    times = np.cumsum(0.5 + np.random.default_rng(3).random(720))
    tone = dominant(STEPS, times, np.sin(2 * math.pi * 0.04 * times))
    assert tone is not None
    assert tone.frequency == pytest.approx(0.04, rel=1e-6)


def test_what_is_not_periodic_has_no_frequency() -> None:
    noise = np.random.default_rng(5).standard_normal(len(STEPS))
    two_tones = np.where(STEPS < 360, np.sin(0.26 * STEPS), np.sin(0.30 * STEPS))
    for values in (np.full(720, 1.33), noise, np.cumsum(noise), two_tones, np.exp(-STEPS / 90)):
        assert dominant(STEPS, STEPS * 1.0, values) is None
    assert dominant(STEPS[:80], STEPS[:80] * 1.0, wave(STEPS[:80], 1 / 24)) is None  # 3.3 periods
    assert dominant(STEPS[:5], STEPS[:5] * 1.0, wave(STEPS[:5], 0.3)) is None


def test_amplitude_of_a_sine_is_its_amplitude() -> None:
    assert amplitude(4.0 + 0.33 * np.sin(2 * math.pi * STEPS / 24)) == pytest.approx(0.33, rel=1e-12)


def test_a_series_that_is_not_finite_has_no_statistics() -> None:
    values = wave(STEPS, 0.04)
    values[7] = math.nan
    assert describe(STEPS, STEPS * 1.0, values) == {"mean": None, "amplitude": None, "frequency": None, "n": 720}
    assert describe(STEPS[:0], STEPS[:0] * 1.0, values[:0])["n"] == 0


def records(frequency: float, level: float, size: float, learned: range, last: int = 720) -> list[dict[str, object]]:
    return [
        {
            "step": step,
            "time": 0.5 * step,
            "origin": 3 if step in learned else 0,
            "values": {"lift": size * math.sin(math.pi * frequency * step), "drag": level},
        }
        for step in range(1, last + 1)
    ]


def test_compare_gives_relative_differences_with_their_sign() -> None:
    nothing = range(0)
    table = compare(records(0.0808, 1.32, 0.33, range(240, 721)), records(0.08, 1.2, 0.30, nothing), 240)
    lift, drag = table["lift"], table["drag"]
    assert drag["difference"]["mean"] == pytest.approx(0.1)
    assert lift["difference"]["frequency"] == pytest.approx(0.01, rel=1e-5)
    assert lift["difference"]["amplitude"] == pytest.approx(0.1, abs=0.01)
    assert lift["coupled"]["n"] == lift["reference"]["n"] == 480
    # The mean of a lift is near zero: its difference is measured by the amplitude.
    assert abs(lift["difference"]["mean"]) < 0.02
    assert drag["difference"]["frequency"] is None


def test_learned_steps_are_compared_with_the_reference_at_the_same_steps() -> None:
    truth = records(0.08, 1.2, 0.3, range(0))
    for r in truth[400:]:
        r["values"] = {"drag": 2.0}
    coupled = [dict(r, origin=1 if r["step"] > 400 else 0) for r in truth]
    drag = compare(coupled, truth, 0)["drag"]
    assert drag["coupled_learned_only"]["mean"] == drag["reference_at_learned_steps"]["mean"] == 2.0
    assert drag["difference_learned_only"]["mean"] == 0.0
    assert drag["reference"]["mean"] < 2.0


def test_series_of_different_length_are_compared_where_both_are() -> None:
    table = compare(records(0.08, 1.0, 0.3, range(0), last=300), records(0.08, 1.0, 0.3, range(0)), 20)
    assert table["lift"]["reference"]["n"] == table["lift"]["coupled"]["n"] == 280


def test_runs_with_steps_of_their_own_are_compared_over_the_same_time() -> None:
    """One takes steps twice as long: its step 100 is the other's 200."""
    slow = [dict(r, values={"drag": float(r["time"] > 100.0)}) for r in records(0.08, 1.0, 0.3, range(0), last=400)]
    fast = [dict(r, step=r["step"] // 2) for r in slow if r["step"] % 2 == 0][:150]
    drag = compare(fast, slow, 20)["drag"]
    assert (drag["coupled"]["n"], drag["reference"]["n"]) == (130, 260)
    assert drag["difference"]["mean"] == pytest.approx(0.0, abs=0.01)


def test_what_only_forecasts_carry_is_no_observable() -> None:
    coupled = records(0.08, 1.0, 0.3, range(400, 721))
    for r in coupled[399:]:
        r["values"] = {**r["values"], "invariant.mass": 1.0}  # type: ignore[dict-item]
    assert list(compare(coupled, None, -1)) == ["lift", "drag"]


def test_without_a_reference_there_are_no_differences() -> None:
    row = compare(records(0.08, 1.0, 0.3, range(0)), None, -1)["lift"]
    assert row["coupled"]["frequency"] == pytest.approx(0.08, rel=1e-6)
    assert row["reference"] is None and row["difference"] is None
