"""The timestep task: its contract, what it learns, how safe its dt is, and how far it gets on the van der Pol case."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.timestep import MU, drive
from coupler.ranks import Ranks
from coupler.testing.task_check import check_task
from ml_servers.models.step_error import FIRST_NOISE, fit
from ml_servers.models.step_pairs import StepPairs
from ml_servers.tasks.step_reading import StepReading
from ml_servers.tasks.timestep import SHRINK, Timestep
from schemas.fields import Block, FieldSpec, Snapshot
from sim_clients.relaxation import Relaxation
from sim_clients.relaxation_baselines import compare

DRIFTING = (
    FieldSpec("temperature", "<f8", (), "K", "scalar", "observable"),
    FieldSpec("energy", "<f8", (), "eV", "scalar", "observable"),
    FieldSpec("error", "<f8", (), "eV", "scalar", "observable"),
    FieldSpec("count", "<i8", (), "1", "scalar", "observable"),
    FieldSpec("load", "<f8", (), "N", "scalar", "control"),
    FieldSpec("velocity", "<f8", (20, 3), "nm/ps", "particle"),
    FieldSpec("invariant.energy", "<f8", (), "1", "scalar", "observable"),
)


def make(fields=DRIFTING, **changes):
    given = {"dt_min": 1e-4, "dt_max": 0.1, "tolerance": 1e-3, "error_field": "error", **changes}
    return Timestep(fields=fields, **given)


class Drifting:
    """A stream whose error is c(temperature) dt^3, times normal noise if asked; the energy drifts by it."""

    def __init__(self, noise, seed=0, dt=1e-3):
        self.random, self.noise = np.random.default_rng(seed), noise
        self.step, self.time, self.dt, self.energy, self.error = 0, 0.0, dt, -1e4, 0.0

    @property
    def phase(self):
        return math.sin(2 * math.pi * self.step / 1000)

    @property
    def best(self):
        """The dt that keeps the tolerance of 1e-3 with a probability of 0.98 (2.326 standard deviations)."""
        return (1e-3 / ((2.326 if self.noise else 1.0) * 100 * math.exp(self.phase))) ** (1 / 3)

    def snapshot(self):
        values = {"temperature": 300 + 50 * self.phase, "energy": self.energy, "error": self.error, "load": 1.0}
        more = {"count": np.int64(self.step), "velocity": np.full((20, 3), self.phase), "invariant.energy": self.energy}
        whole = Snapshot.of(self.step, self.time, self.dt, **values, **more)
        velocity = Block(whole["velocity"], (0, 0), np.arange(20))
        return replace(whole, blocks={**whole.blocks, "velocity": velocity})

    def integrate(self, dt):
        rise = (self.random.normal() if self.noise else 1.0) * 100 * math.exp(self.phase) * dt**3
        self.step, self.time, self.dt = self.step + 1, self.time + dt, dt
        self.energy, self.error = self.energy + rise, abs(rise)


def follow(task, stream, steps):
    """Runs the loop; dt over the best dt and whether the tolerance was missed, for each step."""
    ratios, missed = [], []
    for _ in range(steps):
        snapshot = stream.snapshot()
        task.observe(snapshot)
        task.learn(1)
        dt, best = task.forecast(snapshot, 1).dt or snapshot.dt, stream.best
        stream.integrate(dt)
        ratios.append(dt / best)
        missed.append(stream.error > 1e-3)
    return np.array(ratios), np.array(missed)


def streamed(n, **changes):
    stream, found = Drifting(noise=True, **changes), []
    for k in range(n):
        found.append(stream.snapshot())
        stream.integrate(1e-3 * (1 + k % 3))
    return found


# ----------------------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    "changes",
    [{}, {"error_field": "drift:energy", "refit": 4}, {"over": 0.01, "refit": 4}, {"features": ("velocity",)}],
)
def test_keeps_the_contract(changes):
    report = check_task(lambda: make(**changes), DRIFTING, streamed(40))
    assert report.learned.kind == "linear"
    assert 0.0 <= report.estimated <= 1.0


def test_keeps_the_contract_on_the_simulation_it_is_made_for():
    simulation = Relaxation(ranks=Ranks(), seed=1, mu=MU, dt=1e-3)
    fields, snapshots = simulation.fields(), []
    for _ in range(30):
        snapshots.append(simulation.snapshot())
        simulation.integrate(1e-3, 1)
    check_task(lambda: make(fields, tolerance=1.0), fields, snapshots)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dt_min": 0.2}, "dt_min must be the smaller"),
        ({"error_field": "drift:energy", "over": 1.0}, "change over one coupling step"),
        ({"rung": 2.0}, "rung at most growth"),
        ({"error_field": "eror"}, "did you mean 'error'"),
        ({"error_field": "velocity"}, "needs the observable"),
        ({"error_field": "invariant:mass"}, "'invariant.mass'"),
        ({"error_field": "rate:energy"}, "drift:NAME"),
        ({"features": ("temprature",)}, "did you mean 'temperature'"),
        ({"features": ("temperature",), "powers": ("energy",)}, "powers names 'energy'"),
    ],
)
def test_wrong_settings_are_named(changes, text):
    with pytest.raises(ValueError, match=text):
        make(**changes)


# --------------------------------------------------------------------------------------------------- what it advises


@pytest.mark.parametrize("error_field", ["error", "drift:energy", "invariant:energy"])
def test_finds_the_dt_that_keeps_a_noisy_error_within_its_tolerance(error_field):
    ratios, missed = follow(make(error_field=error_field), Drifting(noise=True), 2500)
    assert np.exp(np.log(ratios[500:]).mean()) == pytest.approx(1.0, abs=0.08)
    assert missed[500:].mean() == pytest.approx(0.02, abs=0.015)


def test_a_power_is_seen_as_a_logarithm():
    reading = StepReading(DRIFTING, "error", 1e-3, ("temperature", "load", "velocity"), ("temperature", "velocity"))
    snapshot = Drifting(noise=False).snapshot()
    assert reading.seen(snapshot).tolist() == [math.log(300.0), 1.0, *[math.log(1e-100)] * 2]


def test_the_confidence_is_the_share_of_steps_that_keep_the_tolerance():
    for confidence in (0.9, 0.95, 0.99):
        _, missed = follow(make(confidence=confidence), Drifting(noise=True, seed=3), 2500)
        assert 0.4 < missed[300:].mean() / (1 - confidence) < 1.4


def test_without_noise_dt_is_the_best_one_but_for_a_rung_and_the_learned_order_is_right():
    task = make(order=5.0)
    ratios, missed = follow(task, Drifting(noise=False), 1500)
    assert ratios[200:].min() > 0.9
    assert missed[200:].mean() < 0.03
    assert task.state()["coefficients"][0] == pytest.approx(3.0, abs=0.3)


def test_dt_begins_with_the_simulations_own_and_grows_by_a_bounded_factor():
    stream = Drifting(noise=False, dt=2e-4)
    task, dts = make(growth=1.3), []
    for _ in range(40):
        snapshot = stream.snapshot()
        task.observe(snapshot)
        task.learn(1)
        dts.append(task.forecast(snapshot, 1).dt or snapshot.dt)
        stream.integrate(dts[-1])
    assert dts[0] == 2e-4
    assert np.max(np.divide(dts[1:], dts[:-1])) <= 1.3
    assert dts[-1] > 50 * dts[0]


def test_a_start_far_too_long_is_left_within_a_few_steps():
    ratios, _ = follow(make(), Drifting(noise=False, dt=0.1), 30)
    assert ratios[0] > 4.0
    assert ratios[6:].max() < 1.1


numbers = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(numbers, numbers, st.floats(1e-6, 1.0)), min_size=2, max_size=12), numbers, st.floats(1e-9, 1e3)
)
def test_whatever_was_seen_the_dt_is_on_the_ladder(seen, error, dt):
    task, time = make(), 0.0
    for step, (measured, temperature, length) in enumerate(seen):
        values = {"temperature": temperature, "energy": measured, "error": measured, "load": 1.0}
        task.observe(Snapshot.of(step, time, length, **values, velocity=np.zeros((20, 3))))
        time += length
    task.learn(1)
    last = {"temperature": error, "energy": 0.0, "error": error, "load": 1.0, "velocity": np.zeros((20, 3))}
    forecast = task.forecast(Snapshot.of(99, time, dt, **last), 1)
    if forecast.version:
        assert 1e-4 <= forecast.dt <= 0.1
        assert forecast.dt <= max(1.5 * dt, 1e-4)
        assert forecast.dt >= min(SHRINK * dt, 0.1) * (1 - 1e-12)
        assert 0.0 <= forecast.error <= 1.0


def test_dt_goes_part_of_the_way():
    eager, calm = make(), make(follow=0.25)
    for snapshot in streamed(300):
        for task in (eager, calm):
            task.observe(snapshot)
            task.learn(1)
    last = streamed(300)[-1]
    for dt, error in ((5e-4, 1e-5), (1e-3, 1e-4), (5e-2, 1e4)):
        at = replace(last, dt=dt, blocks={**last.blocks, "error": Block(np.array(error))})
        there, near = eager.forecast(at, 1), calm.forecast(at, 1)
        assert there.dt != dt and near.dt == pytest.approx(dt * (there.dt / dt) ** 0.25)
        assert (near.error > there.error) == (near.dt > there.dt)  # the chance to miss is that of the dt it gives


def looking_back(task, dts, errors):
    """Steps of so long a dt, each with an error; the pairs that a task makes of them."""
    first, time = streamed(1)[0], 0.0
    for step, (dt, error) in enumerate(zip((0.0, *dts), (0.0, *errors), strict=True)):
        time += dt
        task.observe(replace(first, step=step, time=time, blocks={**first.blocks, "error": Block(np.array(error))}))
    return list(task._pending)


def test_an_error_over_some_time_is_held_against_the_mean_dt_of_that_time():
    dts, errors = (1.0, 1.0, 2.0, 4.0, 2.0, 2.0, 4.0, 4.0), (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
    pairs = looking_back(make(over=4.0, lead=1, refit=1), dts, errors)
    # Errors are whole from step 3 on. That of step 6 covers steps 5 and 6: the state before is that of step 4, and the
    # model may be older by one.
    befores, means = {6: 3, 7: 5, 8: 6}, {3: 4.0 / 3.0, 5: 3.0, 6: 2.0, 7: 4.0, 8: 4.0}
    assert [pair.step for pair in pairs] == list(befores)
    assert [pair.weight for pair in pairs] == [0.5, 1.0, 1.0]
    for pair, then in zip(pairs, befores.values(), strict=True):
        assert pair.row[0] == pytest.approx(math.log(means[pair.step] / means[then]))
        assert pair.rise == pytest.approx(math.log(errors[pair.step - 1] / errors[then - 1]))


def test_the_first_model_does_not_wait_for_what_only_later_ones_are_late_by():
    """An error over 4 steps is whole at step 4. The next that a new model could have forecast is 2 + 4 steps later."""
    task, versions = make(over=4.0, lead=2, refit=16), []
    for step, snapshot in enumerate(streamed(60)):
        task.observe(replace(snapshot, step=step, time=float(step)))
        versions.append(task.learn(1).version)
    assert versions.index(1) == 4 + 2 + 4
    pauses = np.diff([versions.index(version) for version in range(1, versions[-1] + 1)])
    assert pauses[0] == 1 and pauses[-1] > 4


def test_an_error_that_looks_back_is_not_the_error_of_the_present_dt():
    """A dt that has just grown has not shown its error yet: the forecast rests on what it was seen to be, at its dt."""
    task, snapshots = make(over=0.02, refit=1, growth=10.0), streamed(300)
    for snapshot in snapshots:
        task.observe(snapshot)
        task.learn(1)
    last = snapshots[-1]
    grown = replace(last, dt=1.2 * last.dt)
    assert task.forecast(last, 1).dt == pytest.approx(task.forecast(grown, 1).dt)


def test_a_load_never_seen_is_out_of_range():
    task, stream = make(), Drifting(noise=True)
    follow(task, stream, 10)
    now = stream.snapshot()
    assert task.forecast(now, 1).in_range
    beyond = Snapshot.of(now.step, now.time, now.dt, **{n: b.array for n, b in now.blocks.items()} | {"load": 1.01})
    assert not task.forecast(beyond, 1).in_range


def test_a_model_is_made_at_once_then_less_and_less_often():
    task, versions = make(refit=16), []
    for snapshot in streamed(400):
        task.observe(snapshot)
        report = task.learn(1)
        assert report.idle
        versions.append(report.version)
    assert versions[:4] == [0, 0, 0, 1]  # two Snapshots for an error, one more for each step of lead
    gaps = np.diff([versions.index(v) for v in range(1, versions[-1] + 1)])
    assert (np.diff(gaps) >= 0).all() and gaps[-1] == 16


def test_what_an_abandoned_branch_taught_is_dropped_and_counted():
    snapshots = streamed(60)
    task = make(refit=1)
    for snapshot in (*snapshots, *snapshots[20:30]):
        task.observe(snapshot)
        report = task.learn(1)
    assert report.superseded == 39  # steps 21 to 59
    assert report.last_step == 29
    assert report.trained_on == 18 + 7  # up to step 20; then from 3 after the return


def test_steps_with_gaps_teach_nothing_and_hurt_nothing():
    task = make()
    for snapshot in streamed(40)[::2]:
        task.observe(snapshot)
    assert task.learn(1).version == 0


# ----------------------------------------------------------------------------------------------------------- the parts


def test_the_model_learns_order_and_noise_and_is_unsure_far_from_its_data():
    random = np.random.default_rng(0)
    rows = np.column_stack([random.normal(size=(300, 4)) * [0.1, 1.0, 0.1, 1.0], np.ones(300)])
    rises, ones = 3.0 * rows[:, 0] + 0.5 * rows[:, 3] + 0.1 * random.normal(size=300), np.ones(300)
    many = fit(rows, rises, ones, 4.0, FIRST_NOISE, random.normal(size=256))
    for _ in range(3):
        many = fit(rows, rises, ones, 4.0, many.noise, random.normal(size=256))
    assert many.coefficients[0] == pytest.approx(3.0, abs=0.2)
    assert many.noise == pytest.approx(0.1, rel=0.15)
    constant_dt = rows * [0.0, 1.0, 1.0, 1.0, 1.0]
    assert fit(constant_dt, rises, ones, 4.5, 0.1, np.zeros(1)).coefficients[0] == 4.5
    few = fit(rows[:6], rises[:6], ones[:6], 4.0, 0.1, random.normal(size=256))
    near, far = (np.array([0.0, 0.0, 0.0, feature, 1.0]) for feature in (0.0, 60.0))
    assert few.surprise(near, 1.0) - few.surprise(near, 0.0) > 3 * (few.surprise(far, 1.0) - few.surprise(far, 0.0))
    # Log error -0.5 is five noises low, and 0.5 as far high; the order gives how much dt may rise in between.
    lower, rises = np.array([0.0, -0.5, 0.0, 0.0, 1.0]), np.array([0.0, 0.5 / 3, 1.0 / 3])
    assert many.odds(lower).kept(rises) == pytest.approx([256 / 257, 0.5, 0.0], abs=0.1)


def test_lessons_about_the_same_steps_count_once():
    random = np.random.default_rng(2)
    rows = np.column_stack([random.normal(size=(30, 4)), np.ones(30)])
    rises = rows[:, 0] + random.normal(size=30)
    once = fit(rows, rises, np.ones(30), 4.0, 0.5, np.zeros(1))
    five = fit(np.tile(rows, (5, 1)), np.tile(rises, 5), np.full(150, 0.2), 4.0, 0.5, np.zeros(1))
    for name in ("coefficients", "covariance", "noise"):
        assert getattr(five, name) == pytest.approx(getattr(once, name))


def test_memory_keeps_the_newest_and_forgets_later_steps():
    pairs = StepPairs(4, 2)
    for step in range(11):
        pairs.append(step, np.full(2, step), float(step), step / 2)
        rows, rises, weights = pairs.newest()
        assert (2 * weights).tolist() == rises.tolist()
        assert rises.tolist() == list(map(float, range(max(0, step - 3), step + 1)))
        assert rows[:, 1].tolist() == rises.tolist()
    assert pairs.drop_after(8) == 2
    assert pairs.last_step == 8
    assert pairs.newest()[1][-1] == 8.0
    assert StepPairs(4, 2).last_step == -1


# ------------------------------------------------------------------------------------------------------- van der Pol


def test_beats_the_fixed_dt_threefold_and_comes_close_to_a_controller_on_five_seeds():
    for seed in range(1, 6):
        run = drive(seed, until=170.0, lead=1, confidence=0.99)  # two periods, learning included
        found = compare(run.records, mu=MU, seed=seed)
        assert found["over_fixed"] > 6.0
        assert found["over_controller"] > 0.9
        assert run.missed < 0.03


def test_advice_that_is_one_step_late_costs_little():
    run = drive(1, until=170.0, late=1, lead=2)
    found = compare(run.records, mu=MU, seed=1)
    assert found["over_fixed"] > 5.0
    assert found["over_controller"] > 0.8
