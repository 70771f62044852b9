"""Ctrl-C, SIGTERM and SIGKILL to the launcher: everything ends, the cause is told, nothing is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cases import Ran, spec_of
from launched import Launched, launched, until, words

from coupler import connect

RUNGS = pytest.mark.parametrize(
    ("rung", "ranks"), [("inline", 1), ("threads", 1), ("local", 1), pytest.param("mpi", 2, marks=pytest.mark.mpi)]
)
ENDLESS = 10**9
"""Steps that no machine gets through while a test waits."""
PROCESSES = pytest.mark.parametrize(("rung", "ranks"), [("local", 1), pytest.param("mpi", 2, marks=pytest.mark.mpi)])


def case(tmp_path: Path, rung: str, ranks: int, gate: int = 100, steps: int = ENDLESS) -> dict[str, Any]:
    simulation = {"slow_until": str(tmp_path / "leads"), "pace_s": 0.001, "gates": [[gate, str(tmp_path / "one")]]}
    task = {"marks": str(tmp_path)}
    return {"rung": rung, "ranks": ranks, "steps": steps, "task": task, "simulation": simulation}


def stopped(run: Launched) -> Ran:
    result = run.ended()
    assert result.code == 130
    assert result.summary["status"] == "stopped" and result.summary["cause"] == "Interrupted."
    assert result.says("stopped: Interrupted.") and "Traceback" not in result.said
    assert (result.folder / connect.CASE).exists()
    return result


def in_the_middle(run: Launched, rung: str, ranks: int) -> None:
    """Waits until the run is under way, past its gate, and the model is in charge of most steps."""
    run.reached("one")
    if rung in ("local", "mpi"):
        run.ranks(ranks)
    else:
        run.seen.add(run.popen.pid)
    run.open("one")


@RUNGS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_launcher_asked_to_end(tmp_path: Path, rung: str, ranks: int, number: signal.Signals) -> None:
    with launched(tmp_path, **case(tmp_path, rung, ranks)) as run:
        in_the_middle(run, rung, ranks)
        run.popen.send_signal(number)
        result = stopped(run)
    assert 0 < result.summary["steps"] < ENDLESS  # what was recorded is told, all but the last half second
    assert result.trace and result.observables
    assert (result.folder / "server.json").exists()  # the server wrote its books


@PROCESSES
def test_second_ctrl_c_does_not_leave_ranks_behind(tmp_path: Path, rung: str, ranks: int) -> None:
    with launched(tmp_path, **case(tmp_path, rung, ranks)) as run:
        run.reached("one")
        server = run.server()
        os.kill(server, signal.SIGSTOP)  # so that the stop takes a moment
        run.open("one")
        for _ in range(5):
            run.popen.send_signal(signal.SIGINT)
        stopped(run)


@PROCESSES
def test_interrupted_at_once(tmp_path: Path, rung: str, ranks: int) -> None:
    """Before the simulation has said anything."""
    with launched(tmp_path, **case(tmp_path, rung, ranks)) as run:
        until(lambda: run.pids("ml_servers") or run.popen.poll() is not None, "the server's process")
        run.popen.send_signal(signal.SIGINT)
        result = stopped(run)
    assert result.summary["steps"] is not None


@PROCESSES
def test_launcher_killed(tmp_path: Path, rung: str, ranks: int) -> None:
    """Nobody is left to clean up: each process ends by itself because its parent did."""
    with launched(tmp_path, **case(tmp_path, rung, ranks)) as run:
        in_the_middle(run, rung, ranks)
        assert len(run.family()) >= 3
        run.popen.kill()
        assert run.popen.wait() == -signal.SIGKILL
        run.nothing_is_left(swept=False)


def test_launcher_killed_while_everybody_waits(tmp_path: Path) -> None:
    with launched(tmp_path, **case(tmp_path, "mpi", 2)) as run:
        run.reached("one")
        run.ranks(2)
        run.popen.kill()
        run.popen.wait()
        run.nothing_is_left(swept=False)


@pytest.mark.mpi
def test_interrupted_reference(tmp_path: Path) -> None:
    settings = case(tmp_path, "mpi", 2, steps=300)
    settings["simulation"]["gates"] += [[200, str(tmp_path / "two")]]
    with launched(tmp_path, "--reference", **settings) as run:
        run.reached("one")
        run.open("one")
        run.reached("two")
        (tmp_path / "one").unlink()  # the reference will wait there
        run.open("two")
        until(lambda: any("--reference" in words(pid) for pid in run.family()), "the reference")
        run.popen.send_signal(signal.SIGINT)
        result = run.ended()
    assert result.code == 130 and result.summary["status"] == "stopped"
    assert "while the reference ran" in result.summary["cause"] and result.summary["steps"] == 300


def test_used_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").touch()
    with launched(tmp_path, rung="inline", steps=5) as run:
        assert run.popen.wait(60) == 2
    assert "not empty" in run.said() and [path.name for path in folder.iterdir()] == ["thesis.txt"]
    assert spec_of(folder, steps=5).run.steps == 5
