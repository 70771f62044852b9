from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from launch.plan import TRAINER_NICE, environment, find_mpiexec, plan
from schemas import run

FOLDER = Path("/runs/street-0-1")


def spec(**changes: Any) -> run.RunSpec:
    section = {"name": "street", "steps": 10, "mode": "act", "rung": "mpi", "path": ("/case", "/here")} | changes
    return run.RunSpec(
        run=run.RunSection(**section),
        simulation=run.SimulationSection(use="vortex_street", ranks=2),
        tasks=(run.TaskSection(use="propagator", name="flow"), run.TaskSection(use="timestep", name="dt")),
    )


def commands(case: run.RunSpec) -> dict[str, str]:
    return {p.name: " ".join(p.argv) for p in plan(case, FOLDER, "python", "mpiexec")}


def test_mpi_rung_starts_ranks_a_server_and_a_trainer_for_each_task() -> None:
    assert commands(spec()) == {
        "server": "python -m ml_servers /runs/street-0-1",
        "trainer-flow": "python -m ml_servers /runs/street-0-1 --task flow",
        "trainer-dt": "python -m ml_servers /runs/street-0-1 --task dt",
        "simulation": "mpiexec -n 2 python -m sim_clients /runs/street-0-1",
    }


def test_each_rank_of_a_task_has_a_process() -> None:
    case = spec()
    case = msgspec.structs.replace(case, tasks=(msgspec.structs.replace(case.tasks[0], ranks=2), case.tasks[1]))
    found = commands(case)
    assert list(found) == ["server", "trainer-flow@0", "trainer-flow@1", "trainer-dt", "simulation"]
    assert found["trainer-flow@1"] == "python -m ml_servers /runs/street-0-1 --task flow --rank 1"


def test_local_rung_needs_no_mpiexec() -> None:
    assert commands(spec(rung="local"))["simulation"] == "python -m sim_clients /runs/street-0-1"


@pytest.mark.parametrize("rung", ["inline", "threads"])
def test_one_process_rungs_start_nothing(rung: str) -> None:
    assert commands(spec(rung=rung)) == {}


def test_mode_off_starts_the_simulation_alone() -> None:
    assert list(commands(spec(mode="off"))) == ["simulation"]


def test_only_trainers_are_nice_and_every_process_keeps_to_one_thread() -> None:
    processes = plan(spec(), FOLDER, "python", "mpiexec")
    assert {process.role: process.nice for process in processes} == {
        "server": 0,
        "trainer": TRAINER_NICE,
        "simulation": 0,
    }
    assert TRAINER_NICE > 0
    assert {process.env["OMP_NUM_THREADS"] for process in processes} == {"1"}
    assert [str(process.log) for process in processes] == [
        f"{FOLDER}/logs/{name}.log" for name in ("server", "trainer-flow", "trainer-dt", "simulation")
    ]


def test_environment_adds_to_the_launchers_own() -> None:
    process = plan(spec(), FOLDER, "python", "mpiexec")[0]
    inherited = {"HOME": "/home", "PYTHONPATH": "/mine", "OMP_NUM_THREADS": "8"}
    merged = environment(process, inherited)
    assert merged["HOME"] == "/home"
    assert merged["OMP_NUM_THREADS"] == "1"
    assert merged["PYTHONPATH"].split(os.pathsep) == ["/case", "/here", "/mine"]
    assert environment(process, {})["PYTHONPATH"].split(os.pathsep) == ["/case", "/here"]


def test_mpiexec_beside_python_comes_before_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside, elsewhere = tmp_path / "venv", tmp_path / "system"
    for folder in (beside, elsewhere):
        folder.mkdir()
        (folder / "mpiexec").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(elsewhere))
    assert find_mpiexec(str(beside / "python")) == str(beside / "mpiexec")
    assert find_mpiexec(str(tmp_path / "python")) == str(elsewhere / "mpiexec")
    monkeypatch.setenv("PATH", "")
    assert find_mpiexec(str(tmp_path / "python")) is None


@pytest.mark.parametrize(("mode", "there"), [("shadow", True), ("off", False)])
def test_a_run_that_is_recorded_starts_a_recorder_beside_the_trainers(mode: str, there: bool) -> None:
    case = msgspec.structs.replace(spec(mode=mode), output=run.OutputSection(record="bp5"))
    recorders = [p for p in plan(case, FOLDER, "python", "mpiexec") if p.role == "recorder"]
    assert [" ".join(p.argv) for p in recorders] == ["python -m ml_servers /runs/street-0-1 --record"] * there
    assert [p.nice for p in recorders] == [TRAINER_NICE] * there
