"""check_task names the fault of Tasks whose state does not survive state() and restore()."""

from __future__ import annotations

import numpy as np
import pytest
from test_check_task import FIELDS, KEYS, SNAPSHOTS, Affine

from coupler.testing.task_check import check_task


def storing(change):
    """A Task whose state, once it has learned, differs from a sound one."""

    class Storing(Affine):
        def state(self):
            sound = super().state()
            return change(sound) if self.version else sound

    return Storing


class StateWithoutError(Affine):
    def restore(self, state):
        super().restore(state)
        self.error = np.zeros(())


class StateAliases(Affine):
    def state(self):
        return {**super().state(), "weights": self.weights}

    def learn(self, steps):
        trained, kept = self.version > 0, self.weights
        report = super().learn(steps)
        if trained:
            kept += 1e-9
            self.weights = kept
        return report


class RestoreWrites(Affine):
    def restore(self, state):
        super().restore(state)
        state["weights"][:] += 1


class RestoreTrusts(Affine):
    def restore(self, state):
        for name in KEYS:
            setattr(self, name, np.array(state[name]))


class RestoreIgnoresGarbage(Affine):
    def restore(self, state):
        if set(state) == set(KEYS):
            super().restore(state)


class RestoreHalf(Affine):
    """Takes over what it has read before it finds the fault."""

    def restore(self, state):
        self.version = np.array(state.get("version", 0))
        super().restore(state)


class RestoreHalfLate(Affine):
    """Takes over what it has read before it finds the fault, but sees other kinds of state at once."""

    def restore(self, state):
        if set(state) != set(KEYS) or state["version"].shape != ():
            raise ValueError("not the state of an Affine task")
        self.error = np.array(state["error"]) + (0.0 if state["weights"].shape == (2, 3) else 1.0)
        super().restore(state)


class RestoreAcceptsMisfit(Affine):
    """Checks everything but the shape of the weights, with which it then cannot forecast."""

    def restore(self, state):
        sound = set(state) == set(KEYS) and state["version"].shape == ()
        weights = np.array(state.get("weights"))
        super().restore({**state, "weights": np.zeros((2, 3))} if sound else state)
        self.weights = weights


BROKEN = [
    (storing(lambda sound: {**sound, "seen": np.array([None, {}])}), "state()['seen'] is not an array of numbers"),
    (storing(lambda sound: {**sound, "version": 1}), "state()['version'] is not an array of numbers"),
    (
        storing(lambda sound: {**sound, "weights": np.asfortranarray(sound["weights"])}),
        "state()['weights'] is not in C order",
    ),
    (storing(lambda sound: {}), "state() of a trained Task is empty"),
    (
        storing(lambda sound: {**sound, "weights": sound["weights"].astype(np.float32).astype(float)}),
        "a second Task with the restored state forecasts otherwise",
    ),
    (StateWithoutError, "a second Task with the restored state forecasts otherwise"),
    (StateAliases, "a call of learn changed arrays that state had returned"),
    (RestoreWrites, "restore changed the arrays it was given"),
    (RestoreTrusts, "restore of an empty state raised KeyError"),
    (RestoreIgnoresGarbage, "restore accepted an empty state"),
    (RestoreHalf, "restore refused an empty state but the forecasts changed"),
    (RestoreHalfLate, "restore refused misshapen arrays but|misshapen 'weights' but the forecasts changed"),
    (RestoreAcceptsMisfit, "restore accepted a state with a misshapen 'weights'"),
]


@pytest.mark.parametrize(
    ("make", "sentence"), BROKEN, ids=[f"{make.__name__}-{i}" for i, (make, _) in enumerate(BROKEN)]
)
def test_names_the_fault(make, sentence):
    with pytest.raises(AssertionError) as caught:
        check_task(make, FIELDS, SNAPSHOTS, horizon=6)
    assert any(part in str(caught.value) for part in sentence.split("|")), str(caught.value)
