"""What the testing kit compares Snapshots and spoils arrays with."""

from __future__ import annotations

import math

import numpy as np
import pytest

from coupler.testing.simulation_check import difference, overwrite
from schemas.fields import Block, Snapshot


def test_difference_sees_every_part():
    def one(**changes):
        given = {"step": 1, "time": 0.5, "dt": 0.1, "array": [1.0, 2.0], "offset": (0,), "ids": None, **changes}
        block = Block(np.array(given["array"]), given["offset"], given["ids"])
        return Snapshot(given["step"], given["time"], given["dt"], {"a": block}, changes.get("until", math.inf))

    assert difference(one(), one()) is None
    for changes in (
        {"step": 2},
        {"time": 0.6},
        {"dt": 0.2},
        {"until": 9.0},
        {"array": [1.0, np.nextafter(2.0, 3.0)]},
        {"array": [[1.0, 2.0]]},
        {"array": [1.0, 2.0, 3.0]},
        {"offset": (1,)},
        {"ids": np.array([0, 1])},
    ):
        assert difference(one(), one(**changes)) is not None, changes
    assert difference(one(ids=np.array([0, 1])), one(ids=np.array([1, 0]))) is not None
    assert difference(one(), Snapshot(1, 0.5, 0.1)) == "the field 'a' is missing"


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i4", "<i8", "|u1", "|b1"])
def test_overwrite_changes_any_array(dtype):
    array = np.zeros(3, dtype=dtype)
    overwrite([array])
    assert array.all()
