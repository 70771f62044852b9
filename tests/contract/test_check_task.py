"""check_task accepts a sound Task and names the fault of each of many broken ones."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from coupler.contracts import Backtest, Forecast, Report
from coupler.ranks import Ranks
from coupler.testing.task_check import check_task
from schemas.fields import FieldSpec, Snapshot, copied
from sim_clients.oscillator import Oscillator

STEPS, DT = 40, 0.1


def spring():
    """A linear spring, which an affine map learns exactly."""
    simulation = Oscillator(ranks=Ranks(), seed=1, k=1.0, beta=0.0, amplitude=(1.0, 1.0), dt=DT)
    snapshots = []
    for _ in range(STEPS):
        snapshots.append(copied(simulation.snapshot()))
        simulation.integrate(DT, 1)
    return simulation.fields(), snapshots


FIELDS, SNAPSHOTS = spring()
KEYS = {"weights": (2, 3), "energy": (), "error": (), "version": ()}


class Affine:
    """The least-squares affine map of position and velocity over one step; the energy stays what it was on average."""

    owns = frozenset({"arrays"})

    def __init__(self):
        self.seen, self.superseded = {}, 0
        self.weights, self.energy = np.zeros((2, 3)), np.zeros(())
        self.error, self.version = np.zeros(()), np.zeros((), np.int64)

    def observe(self, snapshot):
        before = len(self.seen)
        self.seen = {step: kept for step, kept in self.seen.items() if step < snapshot.step}
        self.superseded += before - len(self.seen)
        self.seen[snapshot.step] = copied(snapshot)

    def learn(self, steps):
        pairs = [(one, self.seen[step + 1]) for step, one in self.seen.items() if step + 1 in self.seen]
        if len(pairs) < 3:
            return Report(version=int(self.version), superseded=self.superseded, idle=True)
        x, y = (np.array([[s["position"][0], s["velocity"][0]] for s in side]) for side in zip(*pairs, strict=True))
        solved = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
        self.weights, self.energy = solved.T.copy(), np.mean([s["energy"] for _, s in pairs])
        self.error = np.array(1e-6)
        promoted = self.version == 0
        self.version = np.maximum(self.version, 1)
        tested = (Backtest(4, 1e-6, 2e-6),)
        return Report(
            int(self.version), len(pairs) + 1, max(self.seen), "affine", bool(promoted), tested, 0.1, self.superseded
        )

    def forecast(self, snapshot, horizon):
        state = np.concatenate([snapshot["position"], snapshot["velocity"]])
        for _ in range(horizon):
            state = self.weights[:, :2] @ state + self.weights[:, 2]
        energies = {"energy": np.full(horizon, float(self.energy))}
        if self.version == 0:
            return Forecast(horizon, math.inf, 0)
        arrays = {"position": state[:1].copy(), "velocity": state[1:].copy()}
        scales = {"position": 0.7, "velocity": 0.7}
        return Forecast(horizon, float(self.error), int(self.version), arrays, None, energies, scales=scales)

    def state(self):
        return {name: np.array(getattr(self, name)) for name in KEYS}

    def restore(self, state):
        if set(state) != set(KEYS) or any(state[name].shape != shape for name, shape in KEYS.items()):
            raise ValueError("not the state of an Affine task")
        for name in KEYS:
            setattr(self, name, np.array(state[name]))


def test_accepts_a_sound_task():
    report = check_task(Affine, FIELDS, SNAPSHOTS)
    assert report.learn_steps == 20
    assert report.learned.kind == "affine"
    assert report.learned.last_step == STEPS - 1
    assert report.estimated == pytest.approx(1e-6)
    assert report.observed < 1e-9


class StepSize(Affine):
    """Owns the dt alone."""

    owns = frozenset({"dt"})

    def forecast(self, snapshot, horizon):
        return Forecast(horizon, 0.3 if self.version else 1.0, int(self.version), dt=0.05 if self.version else None)


def test_accepts_a_task_that_owns_only_dt():
    report = check_task(StepSize, FIELDS, SNAPSHOTS)
    assert report.estimated == pytest.approx(0.3)
    assert math.isnan(report.observed)


def owning(value):
    return type("Owning", (Affine,), {"owns": value})


def reporting(change):
    """A Task whose Report, once it has learned, differs from a sound one."""

    class Reporting(Affine):
        def learn(self, steps):
            sound = super().learn(steps)
            return dataclasses.replace(sound, **change(sound)) if sound.version else sound

    return Reporting


class NoState:
    owns, observe, learn, forecast, restore = (
        Affine.owns, Affine.observe, Affine.learn, Affine.forecast, Affine.restore
    )  # fmt: skip
    __init__ = Affine.__init__


class BornTrained(Affine):
    def forecast(self, snapshot, horizon):
        self.version = np.maximum(self.version, 1)
        return super().forecast(snapshot, horizon)


class LearnsFromNothing(Affine):
    def learn(self, steps):
        self.version = np.maximum(self.version, 1)
        return Report(1, 0, -1)


class LearnReturnsNothing(Affine):
    def learn(self, steps):
        super().learn(steps)


class RestoreTrains(Affine):
    def restore(self, state):
        super().restore(state)
        self.version = np.maximum(self.version, 1)


class ObserveTrains(Affine):
    def observe(self, snapshot):
        super().observe(snapshot)
        self.learn(1)


class ObserveWrites(Affine):
    def observe(self, snapshot):
        super().observe(snapshot)
        snapshot["velocity"][:] *= 0.5


class ObserveAliases(Affine):
    def observe(self, snapshot):
        self.seen[snapshot.step] = snapshot


class ObserveKeepsLast(Affine):
    """Copies into pairs, but keeps the last Snapshot itself until the next comes."""

    last = None

    def observe(self, snapshot):
        if self.last is not None:
            super().observe(self.last)
        self.last = snapshot

    def learn(self, steps):
        if any(np.isnan(one["position"]).any() for one in self.seen.values()):
            return Report()
        return super().learn(steps)


class NeverLearns(Affine):
    def learn(self, steps):
        return Report()


class GivesUp(Affine):
    def learn(self, steps):
        return Report(idle=True)


class LearnRaises(Affine):
    def learn(self, steps):
        if len(self.seen) > 10:
            raise RuntimeError("singular")
        return super().learn(steps)


class ForecastWrites(Affine):
    def forecast(self, snapshot, horizon):
        answer = super().forecast(snapshot, horizon)
        snapshot["position"][:] = 0
        return answer


class ForecastAliases(Affine):
    def forecast(self, snapshot, horizon):
        answer = super().forecast(snapshot, horizon)
        return dataclasses.replace(answer, arrays={"position": snapshot["position"], "velocity": snapshot["velocity"]})


class ForecastReuses(Affine):
    """Answers in one array that each forecast fills anew."""

    def forecast(self, snapshot, horizon):
        answer = super().forecast(snapshot, horizon)
        if answer.arrays is None:
            return answer
        self.kept = getattr(self, "kept", {"position": np.zeros(1), "velocity": np.zeros(1)})
        for name, array in answer.arrays.items():
            self.kept[name][:] = array
        return dataclasses.replace(answer, arrays=self.kept)


class ForecastCounts(Affine):
    asked = 0

    def forecast(self, snapshot, horizon):
        self.asked += 1
        return dataclasses.replace(super().forecast(snapshot, horizon), residual=float(self.asked))


class AnswersUnfit(Affine):
    def forecast(self, snapshot, horizon):
        return dataclasses.replace(super().forecast(snapshot, horizon), error=math.nan)


class AnswersUnfitLater(Affine):
    """Forgets the observable of the last covered step of a longer horizon."""

    def forecast(self, snapshot, horizon):
        answer = super().forecast(snapshot, horizon)
        return dataclasses.replace(answer, observables={"energy": np.zeros(min(horizon, 5))})


class RewindIgnored(Affine):
    def observe(self, snapshot):
        self.seen[snapshot.step] = copied(snapshot)


class RewindNotCounted(Affine):
    def learn(self, steps):
        return dataclasses.replace(super().learn(steps), superseded=0)


class RewindCrashes(Affine):
    def observe(self, snapshot):
        super().observe(snapshot)
        self.back = snapshot.step < getattr(self, "last", -1)
        self.last = snapshot.step

    def learn(self, steps):
        if getattr(self, "back", False):
            raise IndexError("no pairs")
        return super().learn(steps)


class RewindForgets(Affine):
    def learn(self, steps):
        report = super().learn(steps)
        if len(self.seen) == 1:
            self.version = np.zeros((), np.int64)
        return report


BROKEN = [
    (NoState, "lacks a method of Task"),
    (owning(frozenset()), "owns is frozenset()"),
    (owning(("arrays",)), "owns is ('arrays',)"),
    (owning(frozenset({"arrays", "reason"})), "it must be a frozenset with arrays, dt or both"),
    (LearnReturnsNothing, "learn returned a NoneType"),
    (LearnsFromNothing, "learn without any data reports version 1"),
    (BornTrained, "a Task that has seen no data forecasts"),
    (RestoreTrains, "the state of an untrained Task"),
    (ObserveTrains, "before learn was called"),
    (ObserveWrites, "observe changed the Snapshot it was given: the field 'velocity'"),
    (ObserveAliases, "copy what is kept"),
    (ObserveKeepsLast, "copy what is kept"),
    (NeverLearns, "after 1000 steps of learn on 40 direct Snapshots no model is served"),
    (GivesUp, "after 20 steps of learn, then idle, on 40 direct Snapshots no model is served"),
    (reporting(lambda sound: {"promoted": False}), "does not report a promotion"),
    (reporting(lambda sound: {"version": 7}), "learn reports version 7 but the forecast after it says 1"),
    (reporting(lambda sound: {"last_step": STEPS}), "last_step 40"),
    (reporting(lambda sound: {"backtests": (Backtest(4, math.nan, 0.1),)}), "errors finite and not negative"),
    (ForecastWrites, "forecast changed the Snapshot it was given: the field 'position'"),
    (ForecastAliases, "'position' lies in the memory of the Snapshot"),
    (ForecastReuses, "a forecast changed when the next one was asked for"),
    (ForecastCounts, "two different forecasts"),
    (AnswersUnfit, "the error estimate is nan"),
    (AnswersUnfitLater, "the observable 'energy' is <f8 of shape (5,)"),
    (RewindIgnored, "steps of a branch that was abandoned do not count"),
    (RewindNotCounted, "count those that were dropped"),
    (RewindCrashes, "jumped or went back, the Task raised IndexError"),
    (RewindForgets, "stopped serving its model"),
]


@pytest.mark.parametrize(
    ("make", "sentence"), BROKEN, ids=[f"{make.__name__}-{i}" for i, (make, _) in enumerate(BROKEN)]
)
def test_names_the_fault(make, sentence):
    with pytest.raises(AssertionError) as caught:
        check_task(make, FIELDS, SNAPSHOTS, horizon=6)
    assert any(part in str(caught.value) for part in sentence.split("|")), str(caught.value)


def test_the_tasks_own_exceptions_come_through():
    with pytest.raises(RuntimeError, match="singular"):
        check_task(LearnRaises, FIELDS, SNAPSHOTS)


@pytest.mark.parametrize(
    ("snapshots", "sentence"),
    [
        (SNAPSHOTS[:7], "7 snapshots are too few"),
        (SNAPSHOTS[::2], "without gap"),
        ([Snapshot.of(i, 0.1 * i, 0.1, position=np.zeros(1)) for i in range(9)], "'velocity' is missing"),
        ([Snapshot.of(i, 0.1 * i, 0.1, position=np.zeros(0)) for i in range(9)], "'position' is not global"),
        ([Snapshot.of(i, 0.1 * i, 0.1, position=np.zeros(1, np.int64)) for i in range(9)], "declared as <f8"),
    ],
)
def test_data_that_cannot_be_used_is_refused(snapshots, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_task(Affine, FIELDS, snapshots)


def test_fields_may_be_any_sequence():
    assert check_task(Affine, list(FIELDS), SNAPSHOTS).learn_steps == 20
    assert isinstance(FIELDS[0], FieldSpec)
