"""The manual clock."""

from __future__ import annotations

import math

import pytest

from coupler.testing.clock import ManualClock


def test_the_manual_clock_moves_when_told():
    clock = ManualClock(5.0)
    assert clock() == clock() == 5.0
    clock.advance(0.25)
    clock.advance(0.0)
    assert clock() == 5.25
    for dt in (-1.0, math.nan):
        with pytest.raises(ValueError, match="zero or more"):
            clock.advance(dt)
    assert clock() == 5.25
