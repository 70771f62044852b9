"""Processes that never start, die, stop or talk nonsense: the simulation finishes directly, or the job says why not."""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cases import Ran, ran
from launched import Launched, launched, lives, until, words

RUNGS = pytest.mark.parametrize(("rung", "ranks"), [("local", 1), pytest.param("mpi", 2, marks=pytest.mark.mpi)])
WAYS = pytest.mark.parametrize(
    ("rung", "ranks", "use"),
    [
        ("local", 1, "inline"),
        ("local", 1, "shared"),
        pytest.param("mpi", 2, "shared", marks=pytest.mark.mpi),
        pytest.param("mpi", 2, "adios", marks=pytest.mark.mpi),
    ],
)
STEPS = 400


def case(tmp_path: Path, *gates: tuple[int, str], task: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A run that is slow until the model leads, with gates in the simulation."""
    simulation = {
        "slow_until": str(tmp_path / "leads"),
        "pace_s": 0.001,
        "gates": [[step, str(tmp_path / name)] for step, name in gates],
    }
    task = {"marks": str(tmp_path), **(task or {})}
    return {"steps": STEPS, "task": task, "simulation": simulation, "link": {"deadline_s": 1.0}, **more}


def finished(run: Launched) -> Ran:
    """The run ended well, whatever happened to it, and every step is there and right."""
    result = run.ended()
    assert result.code == 0 and result.summary["status"] == "finished", result.said
    assert result.trace[-1]["to_step"] == STEPS
    steps = [record["step"] for record in result.observables]
    assert steps[: STEPS - 1] == list(range(STEPS - 1))
    energies = [record["values"]["energy"] for record in result.observables]
    assert max(energies) == pytest.approx(min(energies), rel=1e-6)
    for view in result.views().values():
        assert view["x"] ** 2 + view["v"] ** 2 == pytest.approx(1.0)
    return result


def waits(result: Ran) -> int:
    """Times that the host stood at a learned state and got no answer to its question."""
    pairs = itertools.pairwise(result.trace)
    return sum(a["action"] == "learned" and b["reason"] == "no answer within the deadline" for a, b in pairs)


@WAYS
def test_server_killed_while_the_host_waits_for_its_answer(tmp_path: Path, rung: str, ranks: int, use: str) -> None:
    task = {"gate": str(tmp_path / "asked"), "gate_step": 150}
    settings = case(tmp_path, (300, "one"), task=task, output={"every": 10}, bulk={"use": use})
    with launched(tmp_path, rung=rung, ranks=ranks, **settings) as run:
        run.reached("asked")  # the server holds the question of step 150 or later, and the host waits for the answer
        trainer = run.trainer()
        os.kill(run.server(), signal.SIGKILL)
        run.reached("one")  # the run went on without it
        until(lambda: not lives(trainer), "the trainer, which has nothing to do any more, to end")
        run.open("one")
        result = finished(run)
    assert result.steps_of("learned")
    assert waits(result) == 1 and result.steps_of("learned")[-1] < 200
    (sentence, *_) = result.summary["lost"]
    assert "'server' was killed by SIGKILL" in sentence and result.says(sentence)
    assert result.trace[-1]["reason"] in ("no credit", "link full")
    assert result.summary["samples"]["dropped"]


@WAYS
def test_server_stopped_and_let_go_on(tmp_path: Path, rung: str, ranks: int, use: str) -> None:
    gates = [(200, "one"), (240, "two")]
    settings = case(tmp_path, *gates, output={"every": 10}, bulk={"use": use})
    with launched(tmp_path, rung=rung, ranks=ranks, **settings) as run:
        run.reached("one")
        assert (tmp_path / "leads").exists()
        server = run.server()
        os.kill(server, signal.SIGSTOP)
        run.open("one")
        run.reached("two")  # it came here without the server
        os.kill(server, signal.SIGCONT)
        run.open("two")
        result = finished(run)
    assert waits(result) <= 1
    stopped = [record for record in result.trace if 220 <= record["step"] < 240]
    assert stopped[-1]["action"] == "direct" and stopped[-1]["reason"] in ("no answer within the deadline", "no credit")
    assert result.summary["lost"] == []
    later = [record for record in result.trace if record["step"] > 240]
    assert any(record["decision"] for record in later)  # the server decides again


def test_server_stopped_for_good(tmp_path: Path) -> None:
    with launched(tmp_path, rung="local", **case(tmp_path, (200, "one"))) as run:
        run.reached("one")
        os.kill(run.server(), signal.SIGSTOP)
        run.open("one")
        result = finished(run)
    assert waits(result) <= 1
    assert any("'server' was stopped" in sentence for sentence in result.summary["lost"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_trainer_killed_or_stopped(tmp_path: Path, number: signal.Signals) -> None:
    """In the middle of learning. The model goes on to serve; nobody waits for the trainer."""
    task = {"learn_gate": str(tmp_path / "learning"), "gate_step": 100}
    with launched(tmp_path, rung="local", **case(tmp_path, (200, "one"), task=task)) as run:
        run.reached("learning")
        run.reached("one")
        os.kill(run.trainer(), number)
        run.open("one")
        result = finished(run)
    assert max(result.steps_of("learned")) > 220 and waits(result) == 0
    lost = result.summary["lost"]
    assert lost == [] if number == signal.SIGSTOP else "'trainer-Linear' was killed by SIGKILL" in lost[0]
    assert all(result.says(sentence) for sentence in lost)


@RUNGS
def test_task_whose_module_the_server_cannot_import(tmp_path: Path, rung: str, ranks: int) -> None:
    tasks = [{"use": "unimportable:Unimportable"}]
    with launched(tmp_path, rung=rung, ranks=ranks, steps=STEPS, tasks=tasks, simulation={"pace_s": 0.002}) as run:
        run.ranks(ranks)
        result = finished(run)
    assert "no such library" in result.summary["failures"]["Unimportable"]
    assert "no such library" in result.said and result.steps_of("learned") == []


def test_server_that_dies_at_its_start(tmp_path: Path) -> None:
    tasks = [{"use": "deadly:Deadly"}]
    with launched(tmp_path, rung="local", steps=STEPS, tasks=tasks, simulation={"pace_s": 0.002}) as run:
        run.ranks(1)
        result = finished(run)
    (sentence,) = result.summary["lost"]
    assert "'server' ended with code 1 (this module wants another machine)" in sentence
    assert result.says("The run goes on directly.")


def test_server_that_cannot_listen(tmp_path: Path, taken_port: int) -> None:
    """Somebody else has the port: no server, and a peer that takes messages and says nothing."""
    link = {"address": f"tcp://127.0.0.1:{taken_port}"}
    with launched(tmp_path, rung="local", steps=STEPS, simulation={"pace_s": 0.001}, link=link) as run:
        run.ranks(1)
        result = finished(run)
    assert any("'server' ended with code 1" in sentence and "cannot listen" in sentence for sentence in
               result.summary["lost"])  # fmt: skip
    assert result.reasons() <= {"no server yet", "not asked yet"}


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


@pytest.mark.parametrize("where", ["constructor", "observe", "forecast"])
def test_task_that_raises(tmp_path: Path, where: str) -> None:
    task = {"fault": where, "fault_step": 0 if where == "constructor" else 150}
    with launched(tmp_path, rung="local", **case(tmp_path, task=task)) as run:
        if where == "constructor":
            (tmp_path / "leads").touch()  # nothing to be slow for
        run.ranks(1)
        result = finished(run)
    assert bool(result.steps_of("learned")) == (where != "constructor")
    assert result.says(result.summary["failures"]["Linear"])
    log = "trainer-Linear" if where == "observe" else "server"
    text = (result.folder / "logs" / f"{log}.log").read_text("utf-8")
    assert result.summary["failures"]["Linear"].partition(":")[2] in text


@RUNGS
def test_task_that_ends_its_process(tmp_path: Path, rung: str, ranks: int) -> None:
    with launched(tmp_path, rung=rung, ranks=ranks, **case(tmp_path, task={"fault": "exit", "fault_step": 150})) as run:
        run.server()
        result = finished(run)
    assert result.steps_of("learned") and waits(result) <= 1
    assert any("'server' ended with code 3" in sentence for sentence in result.summary["lost"])


@pytest.mark.mpi
def test_forecast_that_one_rank_refuses(tmp_path: Path) -> None:
    """Out of bounds in the part of rank 0 alone: rank 1 could adopt its own part, and must not."""
    with launched(tmp_path, rung="mpi", ranks=2, guard={"bounds": {"x": [-2.0, 2.0]}}, output={"every": 10},
                  **case(tmp_path, task={"fault": "corner", "fault_step": 150})) as run:  # fmt: skip
        run.ranks(2)
        result = finished(run)
    assert result.steps_of("learned") and max(result.steps_of("learned")) <= 151
    assert any(reason.startswith("rank 0: ") or "missed by" in reason for reason in result.reasons())


FAULTS = {"nan": "is not finite", "shape": "field 'x'", "dtype": "<f4", "raise": "the rotor broke"}


@pytest.mark.parametrize("fault", FAULTS)
@RUNGS
def test_solver_that_breaks_on_one_rank(tmp_path: Path, rung: str, ranks: int, fault: str) -> None:
    settings = case(tmp_path)
    settings["simulation"] |= {"fault": fault, "fault_step": 150, "fault_rank": ranks - 1}
    with launched(tmp_path, rung=rung, ranks=ranks, **settings) as run:
        run.ranks(ranks)
        result = run.ended()
    assert result.code == 1 and result.summary["status"] == "failed"
    assert FAULTS[fault] in result.summary["cause"]
    assert result.says(result.summary["cause"])
    assert result.trace[-1]["to_step"] < STEPS and result.steps_of("learned")


@RUNGS
def test_solver_that_ends_its_program_in_the_middle(tmp_path: Path, rung: str, ranks: int) -> None:
    settings = case(tmp_path)
    settings["simulation"] |= {"fault": "exit", "fault_step": 150, "fault_rank": ranks - 1}
    with launched(tmp_path, rung=rung, ranks=ranks, **settings) as run:
        run.ranks(ranks)
        result = run.ended()
    assert result.code == 1 and result.summary["status"] == "failed" and result.summary["lost"] == []
    assert "with code 0 before its last step" in result.summary["cause"] and result.says(result.summary["cause"])


def test_run_that_is_over_before_the_server_is_up(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", rung="local", steps=5)
    assert result.code == 0 and result.summary["lost"] == [] and result.summary["steps"] == 5


@RUNGS
def test_rank_killed(tmp_path: Path, rung: str, ranks: int) -> None:
    with launched(tmp_path, rung=rung, ranks=ranks, **case(tmp_path, (200, "one"))) as run:
        run.reached("one")
        os.kill(run.ranks(ranks)[-1], signal.SIGKILL)
        result = run.ended()
    assert result.code == 1 and result.summary["status"] == "failed"
    assert "killed by SIGKILL" in result.summary["cause"] or "Killed (signal 9)" in result.summary["cause"]
    assert result.says(result.summary["cause"])
    assert result.summary["steps"] < STEPS


@pytest.mark.mpi
def test_mpiexec_killed(tmp_path: Path) -> None:
    """Its ranks are orphans then, each in a session of its own."""
    with launched(tmp_path, rung="mpi", ranks=2, **case(tmp_path, (200, "one"))) as run:
        run.reached("one")
        ranks = run.ranks(2)
        (mpiexec,) = (pid for pid in run.family() if words(pid)[0].endswith("/mpiexec"))
        os.kill(mpiexec, signal.SIGKILL)
        result = run.ended()
    assert result.code == 1 and "killed by SIGKILL" in result.summary["cause"]
    assert len(ranks) == 2


def test_stop_signal_to_the_server_alone(tmp_path: Path) -> None:
    """Somebody ends the server in good order: it writes its books, and the run goes on directly and says so."""
    with launched(tmp_path, rung="local", **case(tmp_path, (200, "one"))) as run:
        run.reached("one")
        server = run.server()
        os.kill(server, signal.SIGTERM)
        until(lambda: (run.folder / "server.json").exists(), "the books of the server")
        run.open("one")
        result = finished(run)
    assert any("'server' ended with code 143" in sentence for sentence in result.summary["lost"])
    assert waits(result) <= 1 and result.summary["models"]
