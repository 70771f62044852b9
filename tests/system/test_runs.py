"""Whole runs in processes: every mode and rung with plug-ins from outside the packages."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cases import Ran, ran, spec_of

TASKS = [{"use": "linear:Halved"}, {"use": "linear:Linear"}]
LIMITS = {"dt_min": 0.01, "dt_max": 0.2}


def case_of(tmp_path: Path, rung: str, mode: str) -> dict[str, Any]:
    slow = {"pace_s": 0.001}
    if mode == "act" and rung != "inline":
        slow["slow_until"] = str(tmp_path / "leads")
    tasks = [TASKS[0], TASKS[1] | {"marks": str(tmp_path)}]
    ranks = 2 if rung == "mpi" else 1
    return {"rung": rung, "mode": mode, "ranks": ranks, "tasks": tasks, "simulation": slow, "limits": LIMITS}


@pytest.mark.parametrize("mode", ["off", "shadow", "advise", "act"])
@pytest.mark.parametrize("rung", ["inline", "threads", "local", "mpi"])
def test_outside_plug_ins_in_every_mode_and_rung(tmp_path: Path, rung: str, mode: str) -> None:
    had_torch = rung in ("inline", "threads") and "torch" in sys.modules  # by another test of this process
    result = ran(tmp_path / "run", steps=1000 if mode == "act" else 200, **case_of(tmp_path, rung, mode))
    summary = result.summary
    assert result.code == 0 and summary["status"] == "finished", summary["cause"]
    assert summary["lost"] == [] and summary["failures"] == {}
    assert summary["steps"] == (1000 if mode == "act" else 200)
    assert bool(result.steps_of("learned")) == (mode == "act")
    dts = {record["dt"] for record in result.trace}
    assert dts <= ({0.1, 0.05} if mode in ("advise", "act") else {0.1})
    for before, after in itertools.pairwise(result.trace):
        assert after["step"] == before["to_step"]
    assert summary["torch_in_simulation"] is had_torch
    if mode == "act":
        origins = {record["origin"] for record in result.observables}
        assert 0 in origins and len(origins) > 1
        assert summary["learned_fraction"] > 0.3


@pytest.mark.parametrize("distribution", ["steps", "blocks"])
def test_several_server_ranks_learn_one_task(tmp_path: Path, distribution: str) -> None:
    shared = {"ranks": 3, "distribution": distribution, "turn": 12, "marks": str(tmp_path)}
    slow = {"pace_s": 0.001, "slow_until": str(tmp_path / "leads")}
    result = ran(tmp_path / "run", rung="mpi", ranks=2, steps=1000, task=shared, simulation=slow)
    summary = result.summary
    assert result.code == 0 and summary["lost"] == [] and summary["failures"] == {}, summary["cause"]
    assert summary["learned_fraction"] > 0.3 and summary["step_error"]["max"] < 1e-6
    assert summary["models"][0]["version"] >= 3
    logs = {path.name for path in (result.folder / "logs").iterdir()}
    assert {f"trainer-Linear@{rank}.log" for rank in range(3)} <= logs


def test_all_ranks_make_a_step_again_that_one_of_them_rejects(tmp_path: Path) -> None:
    limits = {"dt_min": 0.01, "dt_max": 0.2, "errors": {"step_error": 0.03}}
    case: dict[str, Any] = {"use": "erring:Erring", "tasks": [{"use": "linear:Halved", "factor": 1.0}]}
    result = ran(
        tmp_path / "run", rung="mpi", ranks=2, mode="advise", limits=limits, run={"end_time": 9.0}, steps=200, **case
    )
    assert result.code == 0 and result.summary["simulated_time"] == pytest.approx(9.0), result.summary["cause"]
    assert result.summary["limits"]["rejected"] == 40
    assert {r["reason"] for r in result.trace if r["action"] == "rewind"} == {
        "rank 1: 'step_error' became 0.1, its limit is 0.03"
    }


def test_command_line_with_reference(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    spec_of(folder, rung="mpi", ranks=2, steps=400, simulation={"slow_until": str(tmp_path / "leads")},
            task={"marks": str(tmp_path)})  # fmt: skip
    coupler = [sys.executable, "-m", "launch.cli"]
    done = subprocess.run([*coupler, "run", f"{folder}.toml", "--out", str(folder), "--reference", "--seed", "5"],
                          capture_output=True, text=True, timeout=100)  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    assert summary["seed"] == 5
    assert summary["error"]["max"] < 1e-6  # the map is exact
    assert summary["time"]["reference_wall_s"] > 0 and summary["net_speedup"] > 0
    assert "error" in done.stderr
    assert f"report: {folder / 'report.html'}" in done.stderr and (folder / "report.html").exists()
    again = subprocess.run([*coupler, "run", f"{folder}.toml", "--out", str(folder)], capture_output=True, text=True)
    assert again.returncode == 2 and "not empty" in again.stderr


def test_rungs_agree_where_nothing_is_learned(tmp_path: Path) -> None:
    finals = []
    for rung in ("inline", "local"):
        result: Ran = ran(tmp_path / rung, rung=rung, mode="off", steps=50)
        finals.append([(record["step"], record["values"]) for record in result.observables])
    assert finals[0] == finals[1]


def test_a_folder_whose_path_is_too_long_for_a_socket(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 60) / ("b" * 60) / "run"
    folder.parent.mkdir(parents=True)
    before = set(Path(tempfile.gettempdir()).glob("coupler-*"))
    result = ran(folder, **case_of(tmp_path, "local", "shadow"))
    assert result.code == 0 and result.summary["samples"]["admitted"] > 0, result.summary["cause"]
    assert set(Path(tempfile.gettempdir()).glob("coupler-*")) <= before
