"""The reference compares states wherever their parts are: particles by their ids, in whatever order they are held."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from coupler.ranks import Ranks
from coupler.trace import read
from launch.report.rundir import read_view
from schemas.fields import Block, FieldSpec, Snapshot
from sim_clients.reference import ERRORS, REFERENCE, Comparison
from sim_clients.views import VIEWS, ViewStore

N = 12


class Swarm:
    """Particles on circles; `order` is how they are held."""

    def __init__(self, order: np.ndarray, fault: float = 0.0) -> None:
        self.order, self.fault, self.step = order, fault, 0

    def fields(self) -> tuple[FieldSpec, ...]:
        return (FieldSpec("x", "<f8", (N, 2), "m", kind="particle"),)

    def snapshot(self) -> Snapshot:
        angle = 0.1 * self.step + np.arange(N)
        x = np.stack([np.cos(angle), np.sin(angle)], axis=1) + self.fault
        return Snapshot(self.step, 0.1 * self.step, 0.1, {"x": Block(x[self.order], (), self.order)})


def compared(folder: Path, coupled: Any, reference: Any) -> list[dict[str, Any]]:
    store = ViewStore(folder, 0)
    for coupled.step in (10, 20):
        store.write(coupled, 0)
    comparison = Comparison(SimpleNamespace(output=SimpleNamespace(views=2)), folder, Ranks())  # type: ignore[arg-type]
    for reference.step in range(1, 23):
        comparison.after_step(reference)
    comparison.finish()
    return list(read(folder / REFERENCE / ERRORS))


def test_particles_are_compared_by_their_ids(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(0).permutation(N)
    errors = compared(tmp_path, Swarm(shuffled), Swarm(np.arange(N)))
    assert [row["step"] for row in errors] == [10, 20] and max(row["error"] for row in errors) < 1e-6


def test_a_difference_is_found_all_the_same(tmp_path: Path) -> None:
    errors = compared(tmp_path, Swarm(np.arange(N)[::-1].copy(), fault=0.1), Swarm(np.arange(N)))
    assert min(row["error"] for row in errors) > 0.05


def test_particles_of_several_ranks_are_shown_by_their_ids(tmp_path: Path) -> None:
    shuffled = np.random.default_rng(1).permutation(N)
    for rank, order in enumerate((shuffled[:5], shuffled[5:])):
        ViewStore(tmp_path, rank).write(Swarm(order), 0)  # type: ignore[arg-type]
    view = read_view(tuple(sorted((tmp_path / VIEWS).glob("*.npz"))), 0, ())
    assert view.arrays["x"] == pytest.approx(Swarm(np.arange(N)).snapshot()["x"])
