"""Polynomial maps: exact where the dynamics are polynomial, finite everywhere, and content with few states."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ml_servers.models import polynomial
from ml_servers.models.polynomial import Polynomial
from ml_servers.models.polynomial_terms import terms

Floats = NDArray[np.float64]


def henon(n: int, a: float = 1.4) -> Floats:
    """The map of Hénon (Commun. Math. Phys. 50, 69, 1976), chaotic at a = 1.4: shape (n, 2)."""
    states = [(0.1, 0.1)]
    for _ in range(n - 1):
        x, y = states[-1]
        states.append((1.0 - a * x * x + y, 0.3 * x))
    return np.array(states)


def fitted(states: Floats, controls: Floats | None = None, degree: int = 2, ridge: float = 1e-14) -> Polynomial:
    controls = np.ones((len(states), 1)) if controls is None else controls
    model = polynomial.fit(states, controls, [(0, len(states))], degree, ridge)
    assert model is not None
    return model


def test_a_quadratic_map_is_found_exactly() -> None:
    model = fitted(henon(60))
    truth = henon(200)[100:]  # chaos doubles an error at every other step: ten steps keep it small
    states = model.course(truth[:1], np.ones((1, 1)), 10)
    for k, (state, spread) in enumerate(states, start=1):
        assert state[0] == pytest.approx(truth[k], abs=1e-7) and spread == 0.0


def test_a_control_that_varied_is_a_variable_like_the_others() -> None:
    runs, states, controls = [], [], []
    for a in (1.0, 1.1, 1.2, 1.3):
        start = 40 * len(runs)
        runs.append((start, start + 40))
        states.append(henon(40, a))
        controls.append(np.full((40, 1), a))
    latents, imposed = np.concatenate(states), np.concatenate(controls)
    imposed = np.hstack([imposed, np.full((len(imposed), 1), 0.5)])  # and one that did not
    model = polynomial.fit(latents, imposed, runs, 3, 1e-14)  # a x² is of degree three in x and a
    assert model is not None and model.varying.tolist() == [True, False]
    between = henon(3, 1.15)
    assert model.step(between[:2], np.array([[1.15, 0.5]] * 2)) == pytest.approx(between[1:3], abs=1e-6)


def test_where_it_was_never_fitted_it_stays_finite() -> None:
    model = fitted(henon(60), degree=5)
    far = np.array([[1e3, -1e3], [1e300, 0.0]])
    for state, _ in model.course(far, np.ones((2, 1)), 500):
        assert np.isfinite(state).all()


@pytest.mark.parametrize(("states", "leading"), [(28, 1), (31, 2), (37, 3), (46, 4)])
def test_few_states_leave_few_products(states: int, leading: int) -> None:
    latents = np.random.default_rng(0).standard_normal((states, 4))
    model = fitted(latents, degree=2, ridge=1e-6)
    assert model.leading == leading and 3 * model.weights.shape[1] <= states - 1


def test_many_variables_have_powers_of_their_own() -> None:
    """Thirty logistic maps side by side; all their products would be 496 terms."""
    states = [np.random.default_rng(0).uniform(0.2, 0.8, 30)]
    for _ in range(400):
        states.append(3.8 * states[-1] * (1.0 - states[-1]))
    model = fitted(np.array(states[:200]))
    assert model.leading < 30
    assert model.step(np.array(states[300:310]), np.ones((10, 1))) == pytest.approx(np.array(states[301:311]), abs=1e-6)


def test_too_few_states_make_none() -> None:
    assert polynomial.fit(henon(8), np.ones((8, 1)), [(0, 8)], 2, 0.0) is None
    assert polynomial.fit(henon(8), np.ones((8, 1)), [(k, k + 1) for k in range(8)], 2, 0.0) is None


def test_its_arrays_give_it_back() -> None:
    model = fitted(henon(60), degree=3)
    again = Polynomial.of(model.arrays())
    states = henon(80)[60:]
    assert np.array_equal(again.step(states, np.ones((20, 1))), model.step(states, np.ones((20, 1))))


def test_terms_are_all_products_of_the_leading_variables() -> None:
    values = np.array([[2.0, 3.0, 5.0]])
    assert terms(values, 3, 2).tolist() == [[1, 2, 3, 5, 4, 6, 9, 8, 12, 18, 27]]
    assert terms(values, 3, 2, powers=True).tolist() == [[1, 2, 3, 5, 4, 6, 9, 25, 8, 12, 18, 27, 125]]
    assert terms(values, 2, 0, powers=True).tolist() == [[1, 2, 3, 5, 4, 9, 25]]
