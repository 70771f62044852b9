"""Recordings that many tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coupler.bulks.bp5 import RecordWriter, missing
from schemas.fields import FieldSpec, Snapshot

NEEDS_ADIOS = pytest.mark.skipif(bool(missing()), reason=missing())
FIELDS = (
    FieldSpec("u", "<f4", (6, 3), "m/s", blend="linear"),
    FieldSpec("x", "<f8", (5,), "m", "particle"),
    FieldSpec("load", "<f8", (), "N", "scalar", "control"),
    FieldSpec("lift", "<f8", (), "1", "scalar", "observable"),
    FieldSpec("invariant.energy", "<f8", (), "1", "scalar", "observable"),
)
DT = 0.25


def state(step: int, offset: float = 0.0, dt: float = DT) -> Snapshot:
    """A state that shows its step, and its branch by an offset."""
    arrays = {
        "u": np.full((6, 3), step + offset, np.float32) + np.arange(6, dtype=np.float32)[:, None],
        "x": np.arange(5) * 10.0 + step + offset,
        "load": np.array(float(step // 5)),
        "lift": np.array(np.sin(step)),
        "invariant.energy": np.array(1.0),
    }
    return Snapshot.of(step, step * dt, dt, controls_until=100.0, **arrays)


def record(path: Path, *steps: int, fields: tuple[FieldSpec, ...] = FIELDS) -> Path:
    """A recording of these steps; each return to an earlier one begins a branch with values of its own."""
    writer, branch, last = RecordWriter(path, fields, {"coupler/run": "test"}), 0, -1
    for step in steps:
        branch += step <= last
        writer.write(state(step, 1000.0 * branch), branch)
        last = step
    writer.close()
    return path
