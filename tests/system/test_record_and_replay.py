"""A run is recorded, its recording is played, and the recorder may fail without anybody noticing but the summary."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import ran, spec_of
from launched import launched, lives, until
from recorded import NEEDS_ADIOS

from coupler.bulks.bp5 import RECORDING, RecordReader, RecordWriter
from coupler.errors import CaseError
from ml_servers import __main__ as servers
from sim_clients import __main__ as client

KEPT = {"output": {"record": "bp5"}}
DECK = {"use": "oscillator", "simulation": {"k": 1.0, "beta": 0.0, "amplitude": [0.5, 1.5], "dt": 0.1, "n": 3}}
TASKS = [{"use": "propagator", "name": "p", "models": ["affine"]}]


def states(folder: Path) -> tuple[list[int], np.ndarray, list[str]]:
    """Steps, positions and field names of a run's recording; each step once, as it was last."""
    reader = RecordReader(folder / RECORDING)
    try:
        kept = np.flatnonzero(~reader.superseded)
        names = [spec.name for spec in reader.fields]
        position = "position" if "position" in names else "x"
        return reader.steps[kept].tolist(), np.array([reader.read(int(k))[position] for k in kept]), names
    finally:
        reader.close()


@NEEDS_ADIOS
@pytest.mark.parametrize("rung", ["inline", "threads"])
def test_replayed_in_shadow_mode_the_states_are_the_recorded_ones(tmp_path: Path, rung: str) -> None:
    first = ran(tmp_path / "first", mode="shadow", steps=120, tasks=TASKS, **DECK, **KEPT)
    assert first.code == 0, first.said
    assert first.summary["recording"] == {"states": 120, "missed": 0, "failure": None}
    steps, positions, names = states(tmp_path / "first")
    assert steps == list(range(120)) and names == ["position", "velocity", "energy", "invariant.energy"]
    path = {"path": str(tmp_path / "first")}
    settings = {"mode": "shadow", "steps": 119, "rung": rung, "tasks": TASKS, **KEPT}
    second = ran(tmp_path / "second", use="recording", simulation=path, **settings)
    assert second.code == 0, second.said
    if rung == "threads" and not second.summary["recording"]["states"]:
        return  # the record was over before the server was there
    again, replayed, names = states(tmp_path / "second")
    assert names == ["position", "velocity", "energy"]
    assert np.array_equal(replayed, positions[again])  # on `threads` there may be gaps
    if rung == "inline":
        assert again == list(range(119)) and second.summary["models"]
        energies = [[r["values"]["energy"] for r in run.observables][:119] for run in (first, second)]
        assert energies[0] == energies[1]


@NEEDS_ADIOS
def test_a_model_takes_over_a_record(tmp_path: Path) -> None:
    assert ran(tmp_path / "first", mode="shadow", steps=400, tasks=TASKS, **DECK, **KEPT).code == 0
    path = {"path": str(tmp_path / "first"), "start": 10}
    played = ran(tmp_path / "second", use="recording", simulation=path, mode="act", steps=380, tasks=TASKS)
    assert played.code == 0, played.said
    assert played.summary["learned_fraction"] > 0.3 and not played.summary["unverified_steps"]


@NEEDS_ADIOS
@pytest.mark.parametrize("mode", ["off", "shadow", "act"])
def test_a_run_ends_with_its_record(mode: str, tmp_path: Path) -> None:
    assert ran(tmp_path / "first", mode="shadow", steps=200, tasks=TASKS, **DECK, **KEPT).code == 0
    path = {"path": str(tmp_path / "first")}
    played = ran(tmp_path / "second", use="recording", simulation=path, mode=mode, steps=300, tasks=TASKS)
    assert played.code == 0 and played.summary["status"] == "stopped" and played.summary["steps"] == 199
    assert "an end of its own at step 199: the record was played to its end" in played.summary["cause"]


@NEEDS_ADIOS
def test_a_rewind_leaves_a_branch_that_is_marked(tmp_path: Path) -> None:
    run = ran(
        tmp_path / "run", steps=300, simulation={"later_omega": 1.4, "change_step": 150, "announce": False}, **KEPT
    )
    assert run.code == 0, run.said
    assert run.summary["rewinds"] >= 1 and run.summary["recording"]["missed"] == 0
    reader = RecordReader(tmp_path / "run" / RECORDING)
    try:
        left, steps = reader.superseded, reader.steps
        assert left.any() and (np.diff(steps[~left]) > 0).all()
        assert json.loads((tmp_path / "run" / "recorder.json").read_text())["branches"] >= 1
    finally:
        reader.close()


@NEEDS_ADIOS
def test_a_recorder_killed_in_the_middle_costs_the_run_nothing(tmp_path: Path) -> None:
    simulation = {"pace_s": 0.01, "gates": [[2, str(tmp_path / "zero")], [60, str(tmp_path / "one")]]}
    with launched(tmp_path, rung="local", mode="shadow", steps=200, simulation=simulation, **KEPT) as run:
        log = run.folder / "logs" / "server.log"
        run.reached("zero")
        until(lambda: log.exists() and "The recorder is up" in log.read_text(), "the recorder to be up")
        run.open("zero")
        run.reached("one")
        recorder = until(lambda: run.pids("ml_servers", "--record"), "the recorder")[0]
        index = run.folder / RECORDING / "md.idx"
        until(lambda: index.exists() and index.stat().st_size > 900, "states in the recording")
        os.kill(recorder, signal.SIGKILL)
        until(lambda: not lives(recorder), "the recorder to go")
        run.open("one")
        result = run.ended()
    assert result.code == 0 and result.summary["status"] == "finished", result.said
    assert ["'recorder' was killed by SIGKILL" in sentence for sentence in result.summary["lost"]] == [True]
    assert result.summary["recording"]["states"] is None
    steps, _, _ = states(run.folder)
    assert 15 < len(steps) <= 61


@NEEDS_ADIOS
@pytest.mark.parametrize("rung", ["inline", "threads"])
def test_a_recorder_that_cannot_write_is_named(tmp_path: Path, rung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RecordWriter.write

    def full(self: RecordWriter, snapshot: Any, branch: int = 0) -> None:
        if snapshot.step > 20:
            raise OSError("no space left on device")
        write(self, snapshot, branch)

    monkeypatch.setattr(RecordWriter, "write", full)
    run = ran(tmp_path / "run", rung=rung, mode="shadow", steps=100, simulation={"pace_s": 0.002}, **KEPT)
    assert run.code == 0, run.said
    told = run.summary["recording"]
    assert told["failure"] == "OSError: no space left on device" and told["missed"] > 50 and told["states"] <= 21
    assert "states are missing in the recording" in run.said
    assert "The recorder has stopped" in (tmp_path / "run" / "logs" / "server.log").read_text()


@NEEDS_ADIOS
def test_a_recorder_that_does_not_keep_up_is_told_how_much_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, write, simulate = threading.Event(), RecordWriter.write, client.run

    def slow(self: RecordWriter, snapshot: Any, branch: int = 0) -> None:
        assert over.wait(60.0)
        write(self, snapshot, branch)

    def simulate_and_tell(*arguments: Any, **more: Any) -> dict[str, Any]:
        try:
            return simulate(*arguments, **more)
        finally:
            over.set()

    monkeypatch.setattr(RecordWriter, "write", slow)
    monkeypatch.setattr(client, "run", simulate_and_tell)
    monkeypatch.setattr(servers, "buffer_bytes", lambda _: 0)  # four slots
    run = ran(tmp_path / "run", rung="threads", mode="shadow", steps=100, simulation={"pace_s": 0.002}, **KEPT)
    assert run.code == 0, run.said
    told, served = run.summary["recording"], run.summary["samples"]["server"]
    assert told["states"] == 2 and told["states"] + told["missed"] == served["admitted"] > 50
    assert f"{told['missed']} states are missing in the recording" in run.said
    assert f"missed {told['missed']} states" in (tmp_path / "run" / "logs" / "server.log").read_text()
    assert served["untrained"] < 20  # the trainer has the other two


@NEEDS_ADIOS
@pytest.mark.mpi
def test_ranks_play_a_recording_together(tmp_path: Path) -> None:
    assert ran(tmp_path / "first", mode="shadow", steps=40, tasks=TASKS, **DECK, **KEPT).code == 0
    path = {"path": str(tmp_path / "first")}
    settings = {"rung": "mpi", "ranks": 2, "mode": "off", "steps": 39, "tasks": [], "output": {"views": 13}}
    played = ran(tmp_path / "second", use="recording", simulation=path, **settings)
    assert played.code == 0, played.said
    steps, positions, _ = states(tmp_path / "first")
    views = tmp_path / "second" / "views"
    seen = sorted({int(file.name.split(".")[0]) for file in views.iterdir()})
    assert len(seen) > 8 and steps == list(range(40))
    for step in seen:
        parts = [np.load(views / f"{step:08d}.rank{rank}.npz")["position"] for rank in range(2)]
        assert [len(part) for part in parts] == [2, 1] and np.array_equal(np.concatenate(parts), positions[step])


def test_what_the_check_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaseError, match='nothing is streamed in mode "off"'):
        spec_of(tmp_path / "off", mode="off", **KEPT)
    monkeypatch.setitem(sys.modules, "adios2", None)
    with pytest.raises(CaseError, match=r"output.record is \"bp5\", but recordings need .* 'coupler\[adios\]'"):
        spec_of(tmp_path / "missing", mode="shadow", **KEPT)
