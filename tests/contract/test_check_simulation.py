"""check_simulation accepts a sound Simulation and names the fault of each of many broken ones."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest

from coupler.contracts import Invariant
from coupler.testing.simulation_check import check_simulation
from schemas.fields import Block, FieldSpec, Snapshot


class Sound:
    """Cells, particles that change their order, a control, an observable and noise; integrates in place."""

    def __init__(self):
        self.step, self.time, self.dt = 0, 0.0, 0.5
        self.u = np.linspace(0.0, 1.0, 6, dtype=np.float32)
        self.x = np.arange(8.0).reshape(4, 2)
        self.ids = np.arange(4)
        self.noise = np.random.default_rng(1)

    def fields(self):
        return [
            FieldSpec("u", "<f4", (6,), "m/s", blend="linear"),
            FieldSpec("x", "<f8", (4, 2), "m", kind="particle"),
            FieldSpec("inflow", "<f8", (), "m/s", kind="scalar", role="control"),
            FieldSpec("lift", "<f8", (), "1", kind="scalar", role="observable"),
        ]

    def snapshot(self):
        blocks = {
            "u": Block(self.u, (0,)),
            "x": Block(self.x, (0, 0), self.ids),
            "inflow": Block(np.array(math.sin(self.time))),
            "lift": Block(np.array(float(self.u.sum()))),
        }
        return Snapshot(self.step, self.time, self.dt, blocks, self.time + 1.0)

    def integrate(self, dt, n):
        for _ in range(n):
            self.u += np.float32(0.1) * self.noise.standard_normal(6).astype(np.float32)
            self.x *= 1.1
            self.x[:], self.ids[:] = np.roll(self.x, 1, axis=0), np.roll(self.ids, 1)
            self.step, self.time, self.dt = self.step + 1, self.time + dt, dt

    def adopt(self, snapshot):
        self.step, self.time, self.dt = snapshot.step, snapshot.time, snapshot.dt
        self.u[:] = snapshot["u"]
        self.x[:], self.ids[:] = snapshot["x"], snapshot.blocks["x"].ids

    def save(self):
        return copy.deepcopy(self.__dict__)

    def restore(self, token):
        self.__dict__.update(copy.deepcopy(token))

    def invariants(self):
        return {"ids": Invariant(float(self.ids.sum())), "most": Invariant(float(self.ids.max()), "max")}


def test_accepts_a_sound_simulation():
    report = check_simulation(Sound)
    assert report.defects == {"u": 0.0, "x": 0.0}
    assert report.drifts == {"ids": 0.0, "most": 0.0}
    assert report.unmoved == ()
    assert check_simulation(Sound, other_dt=0.25) == report
    assert [spec.name for spec in report.fields] == ["u", "x", "inflow", "lift"]


def declared(**changes):
    """A Simulation whose first field is declared otherwise."""

    class Declared(Sound):
        def fields(self):
            first, *rest = super().fields()
            given = {name: getattr(first, name) for name in first.__struct_fields__}
            return [FieldSpec(**{**given, **changes}), *rest]

    return Declared


class NoRestore:
    fields, snapshot, integrate, adopt = Sound.fields, Sound.snapshot, Sound.integrate, Sound.adopt
    save, invariants = Sound.save, Sound.invariants


class TwiceDeclared(Sound):
    def fields(self):
        return [*super().fields(), super().fields()[0]]


class DriftingFields(Sound):
    def fields(self):
        _, *rest = super().fields()
        return [FieldSpec("u", "<f4", (6,), "m/s" if self.step < 2 else "km/h", blend="linear"), *rest]


def showing(change):
    """A Simulation whose Snapshot differs from a sound one: a function of the sound one gives the changed parts."""

    class Showing(Sound):
        def snapshot(self):
            sound = super().snapshot()
            return dataclasses.replace(sound, **change(sound))

    return Showing


class WiderDtype(Sound):
    def integrate(self, dt, n):
        super().integrate(dt, n)
        self.u = self.u.astype(np.float64)


class NotFinite(Sound):
    def integrate(self, dt, n):
        super().integrate(dt, n)
        self.u[0] = np.inf


class OneStepOnly(Sound):
    def integrate(self, dt, n):
        super().integrate(dt, 1)


class OwnClock(Sound):
    def integrate(self, dt, n):
        super().integrate(dt, n)
        self.time += 0.01


class IntegratesWithOwnDt(Sound):
    def integrate(self, dt, n):
        super().integrate(0.5, n)


class LossySave(Sound):
    def save(self):
        token = super().save()
        token["x"] = token["x"].astype(np.float32).astype(np.float64) * (1 + 1e-12)
        return token


class SaveWithoutNoise(Sound):
    def save(self):
        token = super().save()
        del token["noise"]
        return token


class SaveMovesOn(Sound):
    def save(self):
        self.u += np.float32(1.0)
        return super().save()


class SaveDrawsNoise(Sound):
    """Visible only in the steps that follow."""

    def save(self):
        self.noise.standard_normal()
        return super().save()


class SaveKeepsViews(Sound):
    def save(self):
        return dict(self.__dict__)


class TokenUsedUp(Sound):
    """Hands the token's own arrays to the solver, which goes on in place."""

    def restore(self, token):
        self.__dict__.update(token)


class OneToken(Sound):
    def save(self):
        self.kept = {name: copy.deepcopy(value) for name, value in self.__dict__.items() if name != "kept"}
        return "the one"

    def restore(self, token):
        self.__dict__.update(copy.deepcopy(self.kept))


class HiddenInvariant(Sound):
    calls = 0

    def integrate(self, dt, n):
        super().integrate(dt, n)
        type(self).calls += n

    def invariants(self):
        return {"calls": Invariant(float(type(self).calls))}


def conserving(*of_energy):
    return type("Conserving", (Sound,), {"invariants": lambda self: {"energy": Invariant(*of_energy)}})


class InvariantComes(Sound):
    def invariants(self):
        return {} if self.step % 3 else super().invariants()


def ignoring(name):
    """A Simulation whose adopt takes over everything but one attribute."""

    class Ignoring(Sound):
        def adopt(self, snapshot):
            kept = copy.copy(getattr(self, name))
            super().adopt(snapshot)
            setattr(self, name, kept)

    return Ignoring


class AdoptAliases(Sound):
    def adopt(self, snapshot):
        super().adopt(snapshot)
        self.u = snapshot["u"]


class AdoptWrites(Sound):
    def adopt(self, snapshot):
        super().adopt(snapshot)
        snapshot["u"][:] *= 2


class AdoptNeedsControls(Sound):
    def adopt(self, snapshot):
        super().adopt(snapshot)
        assert snapshot["inflow"].shape == ()


class AdoptDisturbs(Sound):
    """Rebuilds what it was given with a loss."""

    def adopt(self, snapshot):
        super().adopt(snapshot)
        self.x *= 1.001


class AdoptLosesHidden(Sound):
    """Takes over the fields, and forgets where its noise was."""

    def adopt(self, snapshot):
        super().adopt(snapshot)
        self.noise = np.random.default_rng(1)


class AdoptLosesParticle(Sound):
    def adopt(self, snapshot):
        super().adopt(snapshot)
        self.x, self.ids = self.x[1:], self.ids[1:]


class LookingMovesNoise(Sound):
    def invariants(self):
        self.noise.standard_normal()
        return super().invariants()


class OtherEachTime(Sound):
    made = 0

    def __init__(self):
        super().__init__()
        type(self).made += 1
        self.u += np.float32(type(self).made)


BROKEN = [
    (NoRestore, "NoRestore lacks a method"),
    (type("NoFields", (Sound,), {"fields": lambda self: []}), "fields() is empty"),
    (TwiceDeclared, "declares 'u' more than once"),
    (declared(name="not a name"), "identifier"),
    (declared(dtype="float"), "dtype 'float'"),
    (declared(kind="point"), "kind 'point'"),
    (declared(role="input"), "role 'input'"),
    (declared(blend="cubic"), "blend 'cubic'"),
    (declared(unit=" "), "no unit"),
    (declared(shape=(6, 0)), "positive integers"),
    (declared(shape=()), "of kind scalar"),
    (declared(kind="scalar"), "must have shape ()"),
    (declared(role="observable"), "single number"),
    (declared(role="control"), "only floating state fields"),
    (declared(dtype="<i4"), "only floating state fields"),
    (declared(dtype="<f8"), "declared as <f8 but came as <f4"),
    (DriftingFields, "fields() changed"),
    (
        showing(lambda s: {"blocks": {name: s.blocks[name] for name in ("u", "x")}}),
        "holds ['u', 'x'], but declared are",
    ),
    (WiderDtype, "at step 3 field 'u' was declared as <f4 but came as <f8"),
    (NotFinite, "not finite at step 3"),
    (
        showing(lambda s: {"blocks": {**s.blocks, "u": Block(s["u"][:3], (0,))}}),
        "hold 3 values on 1 ranks, declared are 6",
    ),
    (showing(lambda s: {"controls_until": s.time - 0.25}), "controls_until is -0.25 at time 0.0"),
    (showing(lambda s: {"dt": 0.0}), "dt 0.0"),
    (showing(lambda s: {"time": math.nan}), "time nan"),
    (showing(lambda s: {"step": float(s.step)}), "step 0.0"),
    (OneStepOnly, "from step 0 to step 1"),
    (OwnClock, "must advance"),
    (LossySave, "after restore of the first of two tokens the field 'x' has other values"),
    (SaveWithoutNoise, "random numbers"),
    (SaveMovesOn, "save() changed the state: the field 'u'"),
    (SaveDrawsNoise, "save must hold the hidden parts|may only read"),
    (SaveKeepsViews, "after restore of the first of two tokens"),
    (TokenUsedUp, "after restore of the first of two tokens"),
    (OneToken, "after restore of the first of two tokens step is 3 instead of 0"),
    (HiddenInvariant, "after restore the invariants are"),
    (InvariantComes, "names and reductions"),
    (conserving(math.nan), "invariant 'energy' is nan"),
    (conserving(1.0, "mean"), "reduction 'mean'"),
    (ignoring("u"), "after adopt the field 'u' differs"),
    (ignoring("ids"), "after adopt the field 'x' differs"),
    (ignoring("step"), "adopt got a Snapshot with step"),
    (ignoring("time"), "adopt got a Snapshot with time"),
    (ignoring("dt"), "adopt got a Snapshot with dt 0.5 and the simulation says 0.25"),
    (IntegratesWithOwnDt, "integrate(0.25, 3) went from time"),
    (AdoptAliases, "reuses the arrays given to adopt, the field 'u'"),
    (AdoptWrites, "adopt changed the Snapshot it was given: the field 'u'"),
    (AdoptNeedsControls, "raised KeyError: 'inflow'"),
    (AdoptDisturbs, "one step after adopt(snapshot()) the field 'x' is off"),
    (AdoptLosesHidden, "one step after adopt(snapshot()) the field 'u' is off"),
    (AdoptLosesParticle, "this rank holds (3, 2) of field 'x' instead of (4, 2)"),
    (LookingMovesNoise, "may only read"),
    (OtherEachTime, "the same seed"),
]


@pytest.mark.parametrize(
    ("make", "sentence"), BROKEN, ids=[f"{make.__name__}-{i}" for i, (make, _) in enumerate(BROKEN)]
)
def test_names_the_fault(make, sentence):
    steps = 2 if make is InvariantComes else 3
    with pytest.raises(AssertionError) as caught:
        check_simulation(make, steps=steps, other_dt=0.25)
    assert any(part in str(caught.value) for part in sentence.split("|")), str(caught.value)


def test_the_defect_is_a_number_that_can_be_allowed():
    report = check_simulation(AdoptDisturbs, allowed_defect=0.002)
    assert report.defect == report.defects["x"] == pytest.approx(0.001)
    assert report.defects["u"] == 0.0
    with pytest.raises(AssertionError, match=r"allowed is 0\.0005"):
        check_simulation(AdoptDisturbs, allowed_defect=0.0005)


def test_says_which_fields_did_not_move():
    class Still(Sound):
        def integrate(self, dt, n):
            kept = self.u.copy()
            super().integrate(dt, n)
            self.u[:] = kept

    assert check_simulation(Still).unmoved == ("u",)


def test_needs_at_least_one_step():
    with pytest.raises(ValueError, match="steps is 0"):
        check_simulation(Sound, steps=0)
