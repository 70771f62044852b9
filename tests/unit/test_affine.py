"""Affine maps of latent coordinates: exact where they can be, honest about circles where they cannot."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ml_servers.models import affine
from ml_servers.models.affine import Affine

Floats = NDArray[np.float64]


def rotation(angle: float, modulus: float = 1.0) -> Floats:
    return modulus * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def course(advance: Floats, constant: Floats, start: Floats, n: int, noise: float, seed: int) -> Floats:
    states = [start]
    for _ in range(n - 1):
        states.append(advance @ states[-1] + constant)
    return np.array(states) + noise * np.random.default_rng(seed).standard_normal((n, len(start)))


def cycle(modulus: float = 1.0, second: float = 0.52) -> tuple[Floats, Floats]:
    advance = np.zeros((4, 4))
    advance[:2, :2], advance[2:, 2:] = rotation(0.26, modulus), rotation(second, modulus)
    return advance, np.array([0.3, -0.1, 0.2, 0.0])


def drift(model: Affine, advance: Floats) -> float:
    """Error of the fundamental's phase, radian per step."""
    angles = [np.angle(np.linalg.eigvals(m)) for m in (model.advance, advance)]
    return float(abs(min(a for a in angles[0] if a > 0.1) - min(a for a in angles[1] if a > 0.1)))


def test_the_map_is_found_exactly_across_segments_and_controls() -> None:
    rng = np.random.default_rng(0)
    advance, control, constant = 0.3 * rng.standard_normal((3, 3)), rng.standard_normal((3, 2)), rng.standard_normal(3)
    controls = rng.standard_normal((60, 2))
    controls[:, 1] = 5.0  # never varied: its effect cannot be known and goes into the constant
    states = rng.standard_normal((60, 3))
    runs = [(0, 20), (20, 60)]
    for start, stop in runs:
        for k in range(start, stop - 1):
            states[k + 1] = advance @ states[k] + control @ controls[k] + constant
    model = affine.fit(states, controls, runs)
    assert model.advance == pytest.approx(advance)
    assert model.control[:, 0] == pytest.approx(control[:, 0]) and not model.control[:, 1].any()
    assert model.step(states[:1], controls[:1])[0] == pytest.approx(states[1])


def test_fitting_whole_runs_gives_a_better_phase_than_single_steps() -> None:
    advance, constant = cycle()
    plain, refined = [], []
    for seed in range(20):
        states = course(advance, constant, np.array([1.0, 0.5, 0.3, 0.6]), 120, 0.02, seed)
        runs = [(0, 70), (70, 120)]
        model = affine.fit(states, np.zeros((120, 1)), runs)
        plain.append(drift(model, advance))
        refined.append(drift(affine.refine(model, states, runs), advance))
    assert np.mean(refined) < 0.4 * np.mean(plain)


def test_a_limit_cycle_stays_on_the_circle_with_one_period() -> None:
    advance, constant = cycle()
    states = course(advance, constant, np.array([1.0, 0.5, 0.3, 0.6]), 120, 0.005, 3)
    runs = [(0, 120)]
    model = affine.refine(affine.fit(states, np.zeros((120, 1)), runs), states, runs)
    values = np.linalg.eigvals(model.advance)
    assert np.abs(values) == pytest.approx(np.ones(4), abs=1e-12)
    first, second = np.sort(np.angle(values)[np.angle(values) > 0])
    assert second == pytest.approx(2 * first, abs=1e-12)


@pytest.mark.parametrize("modulus", [0.99, 1.01])
def test_clear_decay_and_growth_are_kept(modulus: float) -> None:
    advance, constant = cycle(modulus)
    states = course(advance, constant, np.array([1.0, 0.5, 0.3, 0.6]), 120, 1e-4, 4)
    model = affine.refine(affine.fit(states, np.zeros((120, 1)), [(0, 120)]), states, [(0, 120)])
    assert np.abs(np.linalg.eigvals(model.advance)) == pytest.approx(modulus * np.ones(4), abs=1e-4)


def test_a_frequency_of_its_own_is_not_locked() -> None:
    advance, constant = cycle(second=0.55)
    states = course(advance, constant, np.array([1.0, 0.5, 0.3, 0.6]), 120, 1e-3, 5)
    model = affine.refine(affine.fit(states, np.zeros((120, 1)), [(0, 120)]), states, [(0, 120)])
    assert np.max(np.angle(np.linalg.eigvals(model.advance))) == pytest.approx(0.55, abs=1e-3)


def test_a_diverging_forecast_stays_finite() -> None:
    model = Affine(2.0 * np.eye(2), np.zeros((2, 1)), np.zeros(2))
    *_, (last, _) = model.course(np.ones((3, 2)), np.zeros((3, 1)), 5000)
    assert np.isfinite(last).all()
