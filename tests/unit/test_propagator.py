"""The Propagator: learns from a stream, says how wrong it is, and notices when the world changes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from coupler.contracts import Report
from coupler.norms import relative_error
from coupler.testing.task_check import check_task
from ml_servers.tasks.propagator import Propagator
from schemas.fields import Block, FieldSpec, Snapshot

Floats = NDArray[np.float64]
WAKE = (
    FieldSpec("flow", "<f8", (40, 30), "1"),
    FieldSpec("tracers", "<f4", (50, 2), "1", "particle"),
    FieldSpec("lift", "<f8", (), "1", "scalar", "observable"),
    FieldSpec("drag", "<f8", (), "1", "scalar", "observable"),
    FieldSpec("inflow", "<f8", (), "1", "scalar", "control"),
)


def snapshot(step: int, dt: float = 1.0, **values: object) -> Snapshot:
    """A global Snapshot, the particles in the order of their ids."""
    made = Snapshot.of(step, float(step), dt, **values)  # type: ignore[arg-type]
    blocks = dict(made.blocks)
    if "tracers" in blocks:
        blocks["tracers"] = Block(blocks["tracers"].array, (), np.arange(50))
    return Snapshot(step, float(step), dt, blocks)


def changed(old: Snapshot, step: int, dt: float = 1.0, **values: object) -> Snapshot:
    return snapshot(step, dt, **({name: block.array for name, block in old.blocks.items()} | values))


def wake(n: int, start: complex = 0.02, first: int = 0, inflow: float = 1.0) -> Iterator[Snapshot]:
    """A Stuart-Landau oscillator that grows into a limit cycle of 24 steps, seen through smooth modes and harmonics."""
    rng = np.random.default_rng(7)
    x = np.linspace(0, 2 * np.pi, 1200)
    modes = np.stack([np.sin((k + 1) * x + k) + 0.3 * rng.standard_normal(1200) for k in range(8)])
    other = 0.2 * rng.standard_normal((8, 100))
    z = complex(start)
    for step in range(first, first + n):
        latent = np.array([f(z**k) for k in (1, 2, 3) for f in (np.real, np.imag)] + [abs(z) ** 2, 1.0])
        yield snapshot(
            step,
            flow=(latent @ modes).reshape(40, 30),
            tracers=(50 + latent @ other).reshape(50, 2).astype(np.float32),
            lift=z.imag,
            drag=1 + 0.1 * z.real**2,
            inflow=inflow,
        )
        for _ in range(20):
            z += (0.1 * z * (1 - abs(z) ** 2) + 1j * inflow * 2 * np.pi / 24 * (0.8 + 0.2 * abs(z) ** 2) * z) / 20


def make(**settings: object) -> Propagator:
    told = {"fields": WAKE, "models": ("affine",), "rank": 12, "window": 160} | settings
    return Propagator(seed=1, **told)  # type: ignore[arg-type]


def feed(task: Propagator, snapshots: Iterator[Snapshot], every: int = 1) -> list[Report]:
    reports = []
    for sample in snapshots:
        task.observe(sample)
        if sample.step % every == 0:
            reports.append(task.learn(3))
    return reports


@pytest.fixture(scope="module")
def taught() -> tuple[Propagator, Report]:
    task = make()
    return task, feed(task, wake(300))[-1]


def errors_at(task: Propagator, horizons: tuple[int, ...]) -> dict[int, float]:
    truth = list(wake(300 + max(horizons) + 1))
    now = truth[300]
    found = {}
    for h in horizons:
        forecast = task.forecast(now, h)
        there = {name: block.array for name, block in truth[300 + h].blocks.items()}
        assert forecast.arrays is not None
        found[h] = relative_error(WAKE, forecast.arrays, there, forecast.scales)
    return found


def test_it_keeps_the_contract_of_a_task() -> None:
    report = check_task(make, WAKE, list(wake(120, start=1.0)), horizon=5)
    assert report.observed < 0.02


def test_a_limit_cycle_is_forecast_for_forty_periods(taught: tuple[Propagator, Report]) -> None:
    task, report = taught
    assert report.version >= 1 and report.kind == "affine"
    errors = errors_at(task, (1, 10, 100, 1000))
    assert errors[100] < 0.003 and errors[1000] < 0.01


def test_observables_are_forecast_for_every_covered_step(taught: tuple[Propagator, Report]) -> None:
    truth = list(wake(401))
    forecast = taught[0].forecast(truth[300], 100)
    for name, swing in (("lift", 1.0), ("drag", 0.05)):
        series = np.array([float(s[name]) for s in truth[301:]])
        assert forecast.observables[name] == pytest.approx(series, abs=0.01 * swing)


def test_the_error_estimate_never_falls_with_the_horizon_and_grows_off_the_trained_states(
    taught: tuple[Propagator, Report],
) -> None:
    task, _ = taught
    now = list(wake(301))[300]
    estimates = [task.forecast(now, h).error for h in (1, 2, 3, 7, 20, 50, 51, 100, 500, 5000)]
    assert estimates == sorted(estimates) and estimates[-1] > estimates[0]
    flow = now["flow"] + np.random.default_rng(0).standard_normal((40, 30))
    strange = changed(now, 300, flow=flow)
    assert task.forecast(strange, 5).error > 0.5 and task.forecast(strange, 5).residual > 0.5
    mean = {name: 0.5 * (now[name] + list(wake(313))[312][name]) for name in ("flow", "tracers")}
    assert task.forecast(changed(now, 300, **mean), 5).residual > 0.5  # in the middle of the cycle, not on it


def test_backtests_cover_the_errors_that_follow(taught: tuple[Propagator, Report]) -> None:
    task, report = taught
    horizons = {b.horizon for b in report.backtests}
    assert {1, 2, 5, 10, 20, 50} <= horizons
    assert all(sum(b.horizon == h for b in report.backtests) >= 9 for h in (1, 10, 50))
    found = errors_at(task, (1, 10, 50))
    for h, error in found.items():
        assert error < 3 * max(b.observed for b in report.backtests if b.horizon == h)


def test_another_process_serves_from_the_state_alone(taught: tuple[Propagator, Report]) -> None:
    task, other = taught[0], make()
    other.restore(task.state())
    now = list(wake(301))[300]
    a, b = task.forecast(now, 50), other.forecast(now, 50)
    assert a.arrays is not None and b.arrays is not None
    assert all(np.array_equal(a.arrays[name], b.arrays[name]) for name in ("flow", "tracers"))
    assert (a.error, a.version, a.residual, a.in_range) == (b.error, b.version, b.residual, b.in_range)
    assert a.arrays["tracers"].dtype == np.float32
    with pytest.raises(ValueError, match="give one that"):
        Propagator(fields=WAKE[:1], seed=0).restore(task.state())


def test_controls_outside_the_trained_range_are_marked(taught: tuple[Propagator, Report]) -> None:
    now = list(wake(301))[300]
    task = taught[0]
    assert task.forecast(now, 5).in_range
    assert not task.forecast(changed(now, 300, inflow=1.05), 5).in_range
    assert not task.forecast(changed(now, 300, dt=0.5), 5).in_range


def test_a_change_of_dynamics_starts_a_new_regime() -> None:
    task = make()
    before = feed(task, wake(200, start=1.0))[-1]
    assert before.version >= 1 and before.backtests
    reports = feed(task, wake(150, start=0.7, first=200, inflow=1.5))
    soon = reports[20]
    assert soon.version == before.version and not soon.backtests
    after = reports[-1]
    assert after.version > before.version and after.backtests
    old, new = next(wake(1, start=1.0)), list(wake(120, start=0.7, inflow=1.5))
    assert not task.forecast(old, 5).in_range
    forecast = task.forecast(new[100], 10)
    assert forecast.in_range and forecast.arrays is not None
    assert np.abs(forecast.arrays["flow"] - new[110]["flow"]).max() < 0.1
    assert task.counts.held < 160


def test_samples_of_an_abandoned_branch_are_not_learned_from() -> None:
    task = make()
    good = list(wake(200, start=1.0))
    feed(task, iter(good[:100]))
    wrong = [changed(good[0], step, flow=np.full((40, 30), 9.0 * step)) for step in range(100, 130)]
    for sample in [*wrong, *good[100:]]:
        task.observe(sample)
    report = task.learn(20)
    assert report.superseded == task.counts.superseded == 30
    assert report.backtests and max(b.observed for b in report.backtests) < 0.01
    forecast = task.forecast(good[150], 20)
    assert forecast.arrays is not None and np.abs(forecast.arrays["flow"] - good[170]["flow"]).max() < 0.05


def test_states_that_are_not_finite_are_neither_learned_nor_trusted() -> None:
    task = make()
    good = list(wake(150, start=1.0))
    broken = changed(good[0], 75, flow=np.full((40, 30), np.nan))
    feed(task, iter([*good[:75], broken, *good[76:]]))
    forecast = task.forecast(good[140], 9)
    assert forecast.version >= 1 and forecast.error < 0.05
    assert task.forecast(broken, 3).error == math.inf
    assert task.learn(1).superseded == 1


@pytest.mark.parametrize("kind", ["noise", "walk"])
def test_what_cannot_be_forecast_is_not_served_and_learning_comes_to_rest(kind: str) -> None:
    task = Propagator(fields=(FieldSpec("x", "<f8", (100,), "1"),), seed=0, window=1000, serve_below=0.9)
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((800, 3))
    states = (np.cumsum(latents, axis=0) if kind == "walk" else latents) @ rng.standard_normal((3, 100))
    for step, state in enumerate(states):
        task.observe(Snapshot.of(step, float(step), 1.0, x=state))
    report = task.learn(1)
    for _ in range(200):
        if report.idle:
            break
        report = task.learn(1)
    assert report.idle and report.version == 0
    assert task.forecast(Snapshot.of(0, 0.0, 1.0, x=np.zeros(100)), 3).version == 0


def test_memory_is_bounded_by_bytes() -> None:
    task = make(window_bytes=40 * 4 * 1300, min_snapshots=20)
    feed(task, wake(100, start=1.0), every=10)
    assert task.counts.held == 40 and task.counts.evicted == 60
    with pytest.raises(ValueError, match="raise window_bytes"):
        feed(make(window_bytes=100), wake(1))


def duffing(amplitude: float, n: int, dt: float = 0.2) -> Floats:
    """x'' = -x - x^3 from rest by velocity Verlet: position and velocity, shape (n, 2)."""
    x, v, h = amplitude, 0.0, dt / 20
    states = []
    for _ in range(n):
        states.append((x, v))
        for _ in range(20):
            v -= 0.5 * h * (x + x**3)
            x += h * v
            v -= 0.5 * h * (x + x**3)
    return np.array(states)


def test_a_network_wins_where_the_frequency_depends_on_the_amplitude() -> None:
    fields = (
        FieldSpec("x", "<f8", (1,), "1"),
        FieldSpec("v", "<f8", (1,), "1"),
        FieldSpec("energy", "<f8", (), "1", "scalar", "observable"),
    )
    task = Propagator(fields=fields, seed=0, models=("affine", "network"), network_updates=300)
    step = 0
    for amplitude in np.random.default_rng(1).permutation(np.linspace(0.5, 1.5, 16)):
        step += 10  # a jump: another run
        for x, v in duffing(amplitude, 60):
            energy = 0.5 * v**2 + 0.5 * x**2 + 0.25 * x**4
            task.observe(Snapshot.of(step, 0.2 * step, 0.2, x=np.array([x]), v=np.array([v]), energy=energy))
            step += 1
    report, rival = Report(), 0.0
    for _ in range(150):
        report = task.learn(1)
        if report.kind == "affine":
            rival = np.median([b.observed for b in report.backtests if b.horizon == 20])
        if report.kind == "network" and report.version >= 3:
            break
    assert report.kind == "network"
    assert np.median([b.observed for b in report.backtests if b.horizon == 20]) < 0.3 * (rival or 1.0)
    truth = duffing(1.13, 31)  # a run that it never saw
    now = Snapshot.of(0, 0.0, 0.2, x=truth[0, :1], v=truth[0, 1:], energy=0.0)
    forecast = task.forecast(now, 30)
    assert forecast.arrays is not None
    assert np.hypot(forecast.arrays["x"] - truth[30, 0], forecast.arrays["v"] - truth[30, 1]) < 0.15
    assert forecast.observables["energy"] == pytest.approx(np.full(30, 0.5 * 1.13**2 + 0.25 * 1.13**4), rel=0.05)
    served = Propagator(fields=fields, seed=5)
    served.restore(task.state())
    again = served.forecast(now, 30)
    assert again.arrays is not None and again.arrays["x"] == forecast.arrays["x"] and again.error == forecast.error


def front(n: int, steepness: float) -> Iterator[Snapshot]:
    """A wave that travels round in 61.3 steps; the steeper it is, the more harmonics it has."""
    x = np.linspace(0, 2 * np.pi, 1200, endpoint=False)
    for step in range(n):
        phase = x - 2 * np.pi * step / 61.3
        yield snapshot(step, flow=np.tanh(steepness * np.sin(phase)).reshape(40, 30))


@pytest.mark.parametrize(
    ("steepness", "rank", "low", "high"), [(0.5, None, 2, 24), (40.0, None, 25, 128), (40.0, 24, 2, 24)]
)
def test_steep_waves_get_the_modes_that_they_need(steepness: float, rank: int | None, low: int, high: int) -> None:
    task = make(fields=WAKE[:1], rank=rank, window=256)
    feed(task, front(256, steepness), every=8)
    served = task._served
    assert served is not None and low <= served.reduction.rank <= high
    if steepness > 1.0:
        start = next(iter(front(1, steepness)))
        last = list(front(41, steepness))[-1]
        forecast = task.forecast(start, 40)
        assert forecast.arrays is not None
        error = relative_error(WAKE[:1], forecast.arrays, {"flow": last["flow"]}, forecast.scales)
        assert (error < 0.02) == (rank is None)
