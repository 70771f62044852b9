"""What a host may show: a state of the declared fields, each as it was declared, and finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from coupler import soundness
from coupler.errors import CouplerError, SchemaMismatch, SimulationFailed
from schemas.fields import Block, FieldSpec, Snapshot

FIELDS = {"u": FieldSpec("u", "<f8", (4,), "1"), "g": FieldSpec("g", "<f8", (), "1", "scalar")}
WHOLE: Mapping[str, Any] = {"u": Block(np.zeros(4), (0,)), "g": Block(np.array(1.0))}


@pytest.mark.parametrize(
    ("change", "fault", "error", "says"),
    [
        ({}, soundness.SOUND, None, ""),
        ({"u": Block(np.zeros(2), (np.int64(2),))}, soundness.SOUND, None, ""),
        ({"u": None}, soundness.MISFIT, SchemaMismatch, "At step 3, field 'u' is missing"),
        ({"u": Block([0.0] * 4, (0,))}, soundness.MISFIT, SchemaMismatch, "'u' needs a NumPy array of <f8, not list"),
        ({"g": Block(1.0)}, soundness.MISFIT, SchemaMismatch, "'g' needs a NumPy array of <f8, not float"),
        ({"u": Block(np.zeros(2), None)}, soundness.MISFIT, SchemaMismatch, "'u' needs an offset of 1 whole numbers"),
        (
            {"w": Block(np.zeros(4), (0,))},
            soundness.MISFIT,
            SchemaMismatch,
            "'w' was not declared; declared are 'u', 'g'",
        ),
        ({"u": None, "w": Block(np.zeros(4), (0,))}, soundness.MISFIT, SchemaMismatch, "field 'u' is missing"),
        ({"u": Block(np.full(4, np.nan), (0,))}, soundness.NOT_FINITE, SimulationFailed, "field 'u' .* is not finite"),
    ],
)
def test_the_fault_of_a_state_and_its_sentence(
    change: Mapping[str, Any], fault: int, error: type[CouplerError] | None, says: str
) -> None:
    blocks = {name: block for name, block in (WHOLE | change).items() if block is not None}
    snapshot = Snapshot(3, 1.0, 0.5, blocks)
    assert soundness.fault(FIELDS, snapshot) == fault
    if error is None:
        soundness.require(fault, FIELDS, snapshot)
        return
    with pytest.raises(error, match=says):
        soundness.require(fault, FIELDS, snapshot)


def test_a_rank_whose_own_state_is_sound_says_that_another_is_not() -> None:
    with pytest.raises(SimulationFailed, match="another rank"):
        soundness.require(soundness.MISFIT, FIELDS, Snapshot(3, 1.0, 0.5, dict(WHOLE)))
