"""Runs whose task is learned by several server ranks, each from its share of the states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cases import ran
from test_modes import same_bits, without_times

BLOCKS = {"ranks": 3, "distribution": "blocks"}
TURNS = {"ranks": 2, "distribution": "steps", "turn": 12}


@pytest.mark.parametrize("rung", ["inline", "threads"])
@pytest.mark.parametrize("task", [BLOCKS, TURNS], ids=["blocks", "steps"])
def test_the_ranks_take_over_together(tmp_path: Path, task: dict[str, Any], rung: str) -> None:
    pace = {"pace_s": 0.002} if rung == "threads" else {}
    result = ran(tmp_path / "run", rung=rung, steps=300, task=task, simulation=pace)
    assert result.code == 0 and result.summary["failures"] == {}
    assert result.summary["learned_fraction"] > 0.5 and result.summary["rewinds"] == 0
    assert result.summary["step_error"]["max"] < 1e-6 and result.summary["audits"] >= 1
    ranks = task["ranks"]
    models = result.summary["models"]
    assert models[0]["version"] == ranks  # none serves before all do
    kept = {path.name.rsplit("-", 1)[0] for path in (result.folder / "checkpoint").iterdir()}
    assert kept == {f"Linear@{rank}" for rank in range(ranks)}
    assert set(result.summary["samples"]["dropped"]) <= {"no server yet"}


def test_it_is_deterministic(tmp_path: Path) -> None:
    one, two = (ran(tmp_path / name, task=BLOCKS) for name in ("one", "two"))
    assert without_times(one.trace) == without_times(two.trace) and same_bits(one, two)


@pytest.mark.parametrize("task", [BLOCKS, TURNS], ids=["blocks", "steps"])
def test_an_unannounced_change_is_found_and_relearned(tmp_path: Path, task: dict[str, Any]) -> None:
    change = {"later_omega": 1.7, "change_step": 117, "announce": False}
    result = ran(tmp_path / "run", steps=400, task=task, simulation=change)
    assert result.code == 0 and result.summary["rewinds"] == 1
    assert max(result.steps_of("learned")) > 250


def test_one_rank_that_fails_ends_its_task_only(tmp_path: Path) -> None:
    tasks = [
        {"use": "linear:Linear", **BLOCKS, "fault": "learn", "fault_step": 5},
        {"use": "linear:Halved", "ranks": 2, "turn": 1},
    ]
    result = ran(tmp_path / "run", tasks=tasks, limits={"dt_min": 0.01, "dt_max": 0.2})
    assert result.code == 0 and result.steps_of("learned") == []
    assert list(result.summary["failures"]) == ["Linear"]
    assert result.trace[-1]["dt"] == 0.05  # the other task's two ranks have a model each


def test_more_ranks_than_the_state_has_parts(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", steps=30, task={"ranks": 99, "distribution": "blocks"})
    assert result.code == 0 and result.steps_of("learned") == []
    assert "99 ranks cannot share field 'x'" in result.summary["failures"]["Linear"]
    assert "use fewer ranks" in result.summary["failures"]["Linear"]
