"""Statistics of observable series: mean, amplitude and dominant frequency, whole or with gaps. Pure.

The frequency is found in two steps. The peak of a windowed, zero-padded spectrum says roughly where the tone is; a
least-squares fit of the tone and its harmonics over all samples then fixes it far below the width of a spectral bin
(the generalised Lomb-Scargle periodogram with harmonics: Zechmeister and Kürster, A&A 496 (2009) 577; Palmer, ApJ 695
(2009) 496). A cubic trend is fitted along, so that a slow drift does not move the tone.

A series with gaps (learned steps only) is cut into stretches at gaps longer than half a period. All stretches share the
frequency, each has its own phase, amplitude and trend; stretches shorter than two periods do not count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MIN_SAMPLES = 16
MIN_PERIODS = 4.0
"""Shortest series, in periods, that has a frequency: fewer cannot be told from a drift."""
MIN_STRETCH_PERIODS = 2.0
MIN_EXPLAINED = 0.75
"""Least share of the variance about the trend that the fitted tone must explain to be called periodic."""
HARMONICS = 3
TREND_DEGREE = 3


class Tone(NamedTuple):
    """A periodic component.

    Attributes:
        frequency: Cycles per unit of simulated time.
        explained: Share of the variance about the trend that the tone and its harmonics explain, 0 to 1.
    """

    frequency: float
    explained: float


def amplitude(values: Floats) -> float:
    """Square root of 2 times the rms deviation from the mean: the amplitude of a sine, whatever its phase.

    Unlike half the peak-to-peak value it uses all samples, so that a single outlier or a coarse sampling of the peaks
    does not move it.
    """
    return float(math.sqrt(2.0) * np.std(values))


def dominant(steps: NDArray[np.int64], times: Floats, values: Floats) -> Tone | None:
    """Dominant tone of a series that may have gaps.

    Args:
        steps: Coupling step of each sample, shape (n,), rising; a jump larger than usual is a gap.
        times: Simulated time of each sample, shape (n,), rising; need not be uniform.
        values: Shape (n,).

    Returns:
        The tone, or None when the series is too short, constant or not periodic.
    """
    kept = np.isfinite(values) & np.isfinite(times)
    steps, times, values = steps[kept], times[kept], values[kept]
    if len(values) < MIN_SAMPLES or np.any(np.diff(times) <= 0):
        return None
    spread = float(np.std(values))
    if spread <= 1e-12 * max(float(np.abs(values).max()), 1e-300):
        return None
    values = (values - values.mean()) / spread
    # The longest stretch is asked too: where the level jumps from stretch to stretch, all together show the jumps.
    guesses = {_spectral_peak(steps[s], times[s], values[s]) for s in (slice(None), _longest(steps))}
    tones = [tone for guess in guesses if guess is not None and (tone := _tone(times, values, guess)) is not None]
    best = max(tones, key=lambda tone: tone.explained, default=None)
    return best if best is not None and best.explained >= MIN_EXPLAINED else None


def _longest(steps: NDArray[np.int64]) -> slice:
    """The longest stretch without a gap."""
    jumps = np.diff(steps)
    ends = [0, *(np.flatnonzero(jumps > np.median(jumps)) + 1).tolist(), len(steps)]
    first, last = max(itertools.pairwise(ends), key=lambda pair: pair[1] - pair[0])
    return slice(first, last)


def _tone(times: Floats, values: Floats, coarse: float) -> Tone | None:
    """The tone near a coarse frequency, None when the stretches hold too few of its periods."""
    pieces = _stretches(times, values, coarse)
    return _refine(pieces, coarse) if sum(p.periods for p in pieces) >= MIN_PERIODS else None


class _Stretch(NamedTuple):
    times: Floats
    residual: Floats
    trend: Floats
    periods: float


def _spectral_peak(steps: NDArray[np.int64], times: Floats, values: Floats) -> float | None:
    """Frequency of the highest peak of the spectrum, gaps filled with zeros; None below two periods."""
    if len(values) < MIN_SAMPLES:
        return None
    span = float(times[-1] - times[0])
    spacing = float(np.median(np.diff(times)))
    count = min(max(round(span / spacing) + 1, MIN_SAMPLES), 1 << 18)
    grid = np.linspace(times[0], times[-1], count)
    flat = values - np.polynomial.Polynomial.fit(times, values, TREND_DEGREE)(times)
    jumps = np.diff(steps)
    before = np.clip(np.searchsorted(times, grid, side="right") - 1, 0, len(jumps) - 1)
    usual = float(np.median(jumps))
    series = np.where(jumps[before] > usual, 0.0, np.interp(grid, times, flat)) * np.hanning(count)
    padded = 4 * count
    power = np.abs(np.fft.rfft(series, padded)) ** 2
    # The window spreads a constant over two bins on each side; below two periods a tone is not told from a trend.
    first = math.ceil(2.0 * padded / count)
    if first + 2 >= len(power):
        return None
    peak = first + int(np.argmax(power[first:-1]))
    left, middle, right = np.log(power[peak - 1 : peak + 2] + 1e-300)
    curvature = left - 2.0 * middle + right
    shift = 0.5 * (left - right) / curvature if curvature < 0 else 0.0
    return float((peak + np.clip(shift, -0.5, 0.5)) / (padded * (span / (count - 1))))


def _stretches(times: Floats, values: Floats, frequency: float) -> list[_Stretch]:
    """Cuts at gaps longer than half a period and takes the trend off each stretch that is long enough."""
    cuts = np.flatnonzero(np.diff(times) > 0.5 / frequency) + 1
    pieces = []
    for t, v in zip(np.split(times, cuts), np.split(values, cuts), strict=True):
        periods = float(t[-1] - t[0]) * frequency
        if periods < MIN_STRETCH_PERIODS or len(t) < MIN_SAMPLES:
            continue
        middle, half = 0.5 * (t[0] + t[-1]), 0.5 * (t[-1] - t[0])
        trend = np.polynomial.legendre.legvander((t - middle) / half, TREND_DEGREE)
        residual = v - trend @ np.linalg.lstsq(trend, v, rcond=None)[0]
        pieces.append(_Stretch(t - middle, residual, trend, periods))
    return pieces


def _misfit(pieces: Sequence[_Stretch], frequency: float) -> float:
    """Sum of squares that the tone of this frequency, its harmonics and the trends leave over all stretches."""
    total = 0.0
    for piece in pieces:
        spacing = float(np.median(np.diff(piece.times)))
        harmonics = [k for k in range(1, HARMONICS + 1) if k == 1 or k * frequency * spacing < 0.45]
        angle = 2.0 * math.pi * frequency * piece.times
        waves = [f(k * angle) for k in harmonics for f in (np.cos, np.sin)]
        design = np.column_stack([*waves, piece.trend])
        projection = design.T @ piece.residual
        # Normal equations: the columns are nearly orthogonal, and the search calls this some sixty times.
        solution = np.linalg.lstsq(design.T @ design, projection, rcond=None)[0]
        total += float(piece.residual @ piece.residual - projection @ solution)
    return total


def _refine(pieces: Sequence[_Stretch], coarse: float) -> Tone:
    width = 1.0 / max(float(p.times[-1] - p.times[0]) for p in pieces)
    grid = coarse + width * np.linspace(-1.0, 1.0, 21)
    grid = grid[grid > 0.0]
    costs = [_misfit(pieces, float(f)) for f in grid]
    best = int(np.argmin(costs))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    frequency = _golden_section(lambda f: _misfit(pieces, f), low, high)
    variance = sum(float(p.residual @ p.residual) for p in pieces)
    return Tone(frequency, 1.0 - _misfit(pieces, frequency) / variance)


def _golden_section(cost: Callable[[float], float], low: float, high: float) -> float:
    """Minimum of a function with one valley between low and high (Kiefer, Proc. AMS 4 (1953) 502)."""
    ratio = 0.5 * (math.sqrt(5.0) - 1.0)
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    cost_a, cost_b = cost(a), cost(b)
    for _ in range(32):
        if cost_a < cost_b:
            high, b, cost_b = b, a, cost_a
            a = high - ratio * (high - low)
            cost_a = cost(a)
        else:
            low, a, cost_a = a, b, cost_b
            b = low + ratio * (high - low)
            cost_b = cost(b)
    return 0.5 * (low + high)


def describe(steps: NDArray[np.int64], times: Floats, values: Floats) -> dict[str, Any]:
    """Mean, amplitude, frequency and number of samples of a series; None where there is no such thing."""
    if len(values) == 0:
        return {"mean": None, "amplitude": None, "frequency": None, "n": 0}
    if not np.all(np.isfinite(values)):
        return {"mean": None, "amplitude": None, "frequency": None, "n": len(values)}
    tone = dominant(steps, times, values)
    return {
        "mean": float(np.mean(values)),
        "amplitude": amplitude(values),
        "frequency": None if tone is None else tone.frequency,
        "n": len(values),
    }


def compare(
    coupled: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]] | None, after_step: int
) -> dict[str, dict[str, Any]]:
    """Statistics of every observable of the coupled run beside those of the all-direct run.

    Args:
        coupled: `coupler.trace.trajectory` of the coupled run.
        reference: The same of the all-direct run, or None when there is none.
        after_step: Only what is later than this step of the coupled run counts; both series end at the earlier end.

    Returns:
        By observable: `coupled`, `coupled_learned_only`, `reference` and `reference_at_learned_steps` (mean, amplitude,
        frequency, n), and `difference` and `difference_learned_only`, relative to the reference. A difference of means
        is relative to the reference's mean or its amplitude, whichever is larger: the mean of a lift is near zero.
    """
    # By time: where dt is chosen, a step number says nothing about it.
    last = min((records[-1]["time"] for records in (coupled, reference) if records), default=-math.inf)
    after = max((r["time"] for r in coupled if r["step"] <= after_step), default=-math.inf)
    width = 1e-6 * (coupled[-1]["time"] - coupled[0]["time"]) / len(coupled) if coupled else 0.0
    inside, truth = (_between(records, after + width, last + width) for records in (coupled, reference or ()))
    learned = [r for r in inside if r["origin"] > 0]
    at_learned = {r["step"] for r in learned}
    table: dict[str, dict[str, Any]] = {}
    for name in names([*coupled, *(reference or ())]):
        row: dict[str, Any] = {
            "coupled": _describe(inside, name),
            "coupled_learned_only": _describe(learned, name),
            "reference": None,
            "reference_at_learned_steps": None,
            "difference": None,
            "difference_learned_only": None,
        }
        if reference:
            row["reference"] = _describe(truth, name)
            row["reference_at_learned_steps"] = _describe([r for r in truth if r["step"] in at_learned], name)
            row["difference"] = differences(row["coupled"], row["reference"])
            row["difference_learned_only"] = differences(row["coupled_learned_only"], row["reference_at_learned_steps"])
        table[name] = row
    return table


def names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Observables of a series, in the order seen; without those that only forecasts carry, such as an invariant that
    the guard checks: nothing directly integrated says what they should be.
    """
    return list(dict.fromkeys(name for r in records if r["origin"] == 0 for name in r["values"]))


def differences(found: Mapping[str, Any], truth: Mapping[str, Any]) -> dict[str, float | None]:
    """Relative difference of mean, amplitude and frequency; None where either is missing or the scale is zero."""
    scales = {
        "mean": max(abs(truth["mean"] or 0.0), truth["amplitude"] or 0.0),
        "amplitude": truth["amplitude"] or 0.0,
        "frequency": truth["frequency"] or 0.0,
    }
    out: dict[str, float | None] = {}
    for key, scale in scales.items():
        known = found[key] is not None and truth[key] is not None and scale > 0.0
        out[key] = (found[key] - truth[key]) / scale if known else None
    return out


def series(records: Sequence[Mapping[str, Any]], name: str) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Steps, times and values of one observable, for those records that hold it."""
    held = [r for r in records if name in r["values"]]
    steps = np.array([r["step"] for r in held], np.int64)
    times = np.array([r["time"] for r in held], np.float64)
    return steps, times, np.array([r["values"][name] for r in held], np.float64)


def _between(records: Sequence[Mapping[str, Any]], begin: float, end: float) -> list[Mapping[str, Any]]:
    return [r for r in records if begin < r["time"] <= end]


def _describe(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    return describe(*series(records, name))
