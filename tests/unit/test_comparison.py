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
SPEC: Any = SimpleNamespace(output=SimpleNamespace(views=2))


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
    comparison = Comparison(SPEC, folder, Ranks())
    reference.step = 0
    comparison.begin(reference)
    for reference.step in range(1, 21):
        comparison.before_step(reference, 0.1)
        comparison.after_step(reference)
    comparison.finish(reference)
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


class Turning:
    """A point on the unit circle, exactly integrated with whatever dt."""

    def __init__(self, shift: float = 0.0) -> None:
        self.step, self.time, self.shift = 0, 0.0, shift

    def fields(self) -> tuple[FieldSpec, ...]:
        return (FieldSpec("x", "<f8", (2,), "m"),)

    def snapshot(self) -> Snapshot:
        x = np.array([np.cos(self.time + self.shift), np.sin(self.time + self.shift)])
        return Snapshot(self.step, self.time, 0.1, {"x": Block(x, (0,))})

    def integrate(self, dt: float, n: int) -> None:
        self.step, self.time = self.step + n, self.time + n * dt

    def save(self) -> Any:
        return self.step, self.time

    def restore(self, token: Any) -> None:
        self.step, self.time = token


def test_a_phase_shift_is_found_at_the_last_state_too(tmp_path: Path) -> None:
    store, coupled, reference = ViewStore(tmp_path, 0), Turning(shift=0.03), Turning()
    for step in range(1, 31):
        coupled.integrate(0.1, 1)
        if step in (20, 30):
            store.write(coupled, 0)  # type: ignore[arg-type]
    comparison = Comparison(SPEC, tmp_path, Ranks())
    comparison.begin(reference)  # type: ignore[arg-type]
    for _ in range(30):
        reference.integrate(0.1, 1)
        comparison.after_step(reference)  # type: ignore[arg-type]
    comparison.finish(reference)  # type: ignore[arg-type]
    rows = list(read(tmp_path / REFERENCE / ERRORS))
    assert [row["step"] for row in rows] == [20, 30]
    assert [row["shift"] for row in rows] == pytest.approx([0.3, 0.3], rel=0.05)
    assert all(row["aligned"] < 0.05 * row["error"] for row in rows)


def test_runs_with_steps_of_their_own_are_compared_at_equal_times(tmp_path: Path) -> None:
    store, coupled, reference = ViewStore(tmp_path, 0), Turning(), Turning()
    for dt in (0.05, 0.23, 0.4, 0.017, 1.1, 0.203):
        coupled.integrate(dt, 1)
        store.write(coupled, 0)  # type: ignore[arg-type]
    comparison = Comparison(SPEC, tmp_path, Ranks(), by_time=True)
    comparison.begin(reference)  # type: ignore[arg-type]
    for _ in range(20):
        comparison.before_step(reference, 0.1)  # type: ignore[arg-type]
        reference.integrate(0.1, 1)
        comparison.after_step(reference)  # type: ignore[arg-type]
    comparison.finish(reference)  # type: ignore[arg-type]
    rows = list(read(tmp_path / REFERENCE / ERRORS))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["time"] == pytest.approx(2.0)
    assert max(row["error"] for row in rows) < 1e-6 and reference.step == 20
    shown = sorted(path.name for path in (tmp_path / REFERENCE / VIEWS).iterdir())
    assert shown == ["00000001.rank0.npz", "00000006.rank0.npz"]  # beside those of the coupled run
