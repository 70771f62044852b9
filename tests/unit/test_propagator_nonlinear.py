"""The Propagator where no affine map will do, where states drift far, and where they come faster than it works."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from coupler.contracts import Report
from coupler.norms import relative_error
from ml_servers.models.pod import decompose
from ml_servers.tasks.backtest import Errors, Scores
from ml_servers.tasks.memory import Memory
from ml_servers.tasks.propagator import Propagator
from ml_servers.tasks.trajectory import Layout
from schemas.fields import FieldSpec, Snapshot

Floats = NDArray[np.float64]
Rates = Callable[[Floats], Floats]


def lorenz(state: Floats, rho: float = 28.0) -> Floats:
    """E. N. Lorenz, J. Atmos. Sci. 20, 130 (1963)."""
    x, y, z = state
    return np.array([10.0 * (y - x), x * (rho - z) - y, x * y - 8.0 / 3.0 * z])


def course(rates: Rates, start: Floats, n: int, dt: float, substeps: int = 10) -> Floats:
    """States every dt by the classical Runge-Kutta method, shape (n, variables)."""
    h, state, states = dt / substeps, start, []
    for _ in range(n):
        states.append(state)
        for _ in range(substeps):
            a = rates(state)
            b = rates(state + h / 2 * a)
            c = rates(state + h / 2 * b)
            state = state + h / 6 * (a + 2 * b + 2 * c + rates(state + h * c))
    return np.array(states)


def shown(step: int, values: Floats, dt: float = 1.0) -> Snapshot:
    return Snapshot.of(step, dt * step, dt, u=values)


def task_for(values: int, **settings: object) -> Propagator:
    return Propagator(fields=(FieldSpec("u", "<f8", (values,), "1"),), seed=0, **settings)  # type: ignore[arg-type]


def taught(task: Propagator, states: Floats, every: int = 1, pieces: int = 1) -> Report:
    report = Report()
    for step, values in enumerate(states):
        task.observe(shown(step, values))
        if step % every == 0:
            report = task.learn(pieces)
    return report


def error_of(task: Propagator, states: Floats, start: int, horizon: int) -> float:
    """Relative error of the forecast from one of the states."""
    forecast = task.forecast(shown(start, states[start]), horizon)
    assert forecast.arrays is not None
    field = (FieldSpec("u", "<f8", states.shape[1:], "1"),)
    return relative_error(field, forecast.arrays, {"u": states[start + horizon]}, forecast.scales)


def test_horizons_at_which_both_are_lost_decide_nothing() -> None:
    def scores(*rms: float) -> Scores:
        return Scores.of({h: Errors(np.full(9, e), np.zeros(9)) for h, e in zip((1, 10, 1000), rms, strict=True)})

    good, bad = scores(0.001, 0.1, 1.4), scores(0.01, 1.0, 1.4)
    assert good.gain_over(bad) == pytest.approx(np.log(10.0)) == -bad.gain_over(good)
    assert scores(1.1, 1.2, 1.3).gain_over(scores(2.2, 2.4, 2.6)) == pytest.approx(np.log(2.0))  # nothing else is left


def test_chaos_is_forecast_for_some_time_though_all_models_fail_later() -> None:
    states = course(lorenz, np.array([1.0, 1.0, 20.0]), 1000, 0.05)
    task = task_for(3, models=("affine", "polynomial"))
    report = taught(task, states[:600], every=10)
    assert report.kind == "polynomial"
    assert np.median([error_of(task, states, k, 20) for k in range(600, 900, 7)]) < 0.02


def prey_and_hunters(state: Floats) -> Floats:
    """A. J. Lotka and V. Volterra."""
    return np.array([1.1 * state[0] - 0.4 * state[0] * state[1], 0.1 * state[0] * state[1] - 0.4 * state[1]])


@pytest.mark.parametrize(
    ("rates", "start", "dt"),
    [
        (prey_and_hunters, (10.0, 5.0), 0.1),
        (lambda s: np.array([s[1], -s[0] - s[0] ** 3]), (1.5, 0.0), 0.2),
        (lorenz, (1.0, 1.0, 20.0), 0.05),
    ],
)
def test_an_equation_of_few_variables_takes_some_hundred_states(
    rates: Rates, start: tuple[float, ...], dt: float
) -> None:
    states = course(rates, np.array(start), 260, dt)
    task = task_for(len(start))  # networks too, which are not ready by then
    report = taught(task, states[:200])
    assert report.kind == "polynomial"
    assert np.median([error_of(task, states, k, 5) for k in range(200, 250)]) < 0.02


def embedded(states: Floats, values: int = 120) -> Floats:
    """The variables and their products as amplitudes of smooth modes, the products a thousandfold weaker: most
    directions hardly vary, as in the states of a partial differential equation.
    """
    x = np.linspace(0, 2 * np.pi, values, endpoint=False)
    scaled = (states - states.mean(axis=0)) / states.std(axis=0)
    products = np.stack([scaled[:, i] * scaled[:, j] for i in range(3) for j in range(i, 3)], axis=1)
    amplitudes = np.hstack([scaled, 1e-3 * products, 1e-5 * products**2])
    modes = np.stack([np.sin((k + 1) * x + k) for k in range(amplitudes.shape[1])])
    return amplitudes @ modes


def test_directions_that_hardly_vary_do_not_spoil_the_map() -> None:
    states = embedded(course(lorenz, np.array([1.0, 1.0, 20.0]), 1000, 0.05))
    task = task_for(120, models=("affine", "polynomial"))
    report = taught(task, states[:700], every=10)
    served = task._served
    assert report.kind == "polynomial" and served is not None and served.reduction.rank < 16
    assert np.median([error_of(task, states, k, 10) for k in range(700, 950, 7)]) < 0.03


def test_a_large_state_is_learned_though_one_comes_with_every_piece_of_work() -> None:
    x = np.linspace(0, 2 * np.pi, 800, endpoint=False)
    states = np.array([np.sin(x - 0.21 * k) + 0.3 * np.sin(2 * x - 0.42 * k) for k in range(200)])
    task = task_for(800, models=("affine",))
    assert taught(task, states).version >= 1


@pytest.mark.parametrize("values", [800, 20])
def test_states_that_went_far_from_the_first_keep_their_digits(values: int) -> None:
    layout = Layout((FieldSpec("u", "<f8", (values,), "1"),))
    memory = Memory(layout, 64, 1 << 24, 100, 0)
    x = np.linspace(0, 2 * np.pi, values, endpoint=False)
    shapes = np.stack([np.sin(x), np.cos(x), np.sin(2 * x)])
    states = np.array([300.0 + 0.01 * np.array([np.sin(0.3 * k), np.cos(0.3 * k), 1.0]) @ shapes for k in range(1100)])
    states[0] = 0.0
    for step, state in enumerate(states):
        memory.take(shown(step, state))
        if memory.waiting == 32:
            memory.ingest()
    for _ in range(2):  # the second time nothing is far any more
        while memory.waiting:
            memory.ingest()
        memory.recentre()
    window = memory.window(0.33)
    restored = memory.origin + window.rows[window.index].astype(np.float64)
    assert restored == pytest.approx(states[window.steps], abs=1e-4)
    if window.gram is not None:
        found = decompose(layout.sizes, window.gram.of(window.index), slice(0, len(window)), 2)
        assert np.sqrt(found.outside.max()) < 0.005  # two modes hold everything


def test_states_that_come_faster_than_they_are_looked_at_are_looked_at_once() -> None:
    layout = Layout((FieldSpec("u", "<f8", (800,), "1"),))
    memory = Memory(layout, 64, 1 << 24, 100, 0)
    for step in range(300):
        memory.take(shown(step, np.full(800, float(step))))
    assert memory.waiting == 64
    assert memory.fresh().steps.tolist() == list(range(236, 300)) and len(memory.fresh()) == 0


def test_a_part_of_the_attractor_that_is_new_is_no_change_of_dynamics() -> None:
    states = course(lorenz, np.array([5.0, 5.0, 20.0]), 500, 0.05)
    task = task_for(3, models=("affine", "polynomial"))
    taught(task, states, every=4)
    assert task.counts.held == len(states), "an alarm made it forget"


def test_a_change_of_a_nonlinear_system_is_found() -> None:
    before = course(lorenz, np.array([1.0, 1.0, 20.0]), 700, 0.05)
    after = course(lambda s: lorenz(s, 40.0), before[-1], 120, 0.05)[1:]
    task = task_for(3, models=("affine", "polynomial"))
    taught(task, np.concatenate([before, after]), every=4)
    assert task.counts.held < len(after), "states of the old dynamics are still in memory"


@pytest.mark.parametrize("values", [3, 120])
def test_what_serves_elsewhere_is_the_same_model(values: int) -> None:
    states = course(lorenz, np.array([1.0, 1.0, 20.0]), 300, 0.05)
    states = states if values == 3 else embedded(states)
    task = task_for(values, models=("affine", "polynomial"))
    taught(task, states, every=10)
    there = task_for(values)
    there.restore(task.state())
    here, again = (t.forecast(shown(299, states[299]), 5).arrays for t in (task, there))
    assert here is not None and again is not None and np.array_equal(here["u"], again["u"])
