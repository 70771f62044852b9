"""Trace, ledger and run folder: what is written is what happened."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scripted import DT, FIELDS, Spinner

from coupler.contracts import Advice
from coupler.coupling import Coupling
from coupler.ledger import Ledger
from coupler.recording import RunRecorder
from coupler.terms import Terms
from coupler.testing.clock import ManualClock
from coupler.trace import MOST_WAITING, Observed, Record, Recorder, read, trajectory
from launch import progress
from launch.progress import LOG_EVERY_S, Line, Standing, last_said
from launch.report.history import read_history
from schemas import messages
from schemas.fields import Block, FieldSpec, Snapshot
from schemas.messages import Action


def test_a_torn_file_reads_up_to_the_tear(tmp_path: Path) -> None:
    path = tmp_path / "t"
    recorder = Recorder(path)
    sizes = []
    for step in range(4):
        recorder.write(Record(step=step, time=0.1 * step, dt=0.1, action="direct", bound=math.inf))
        recorder.flush()
        sizes.append(path.stat().st_size)
    recorder.close()
    recorder.close()
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        assert [r["step"] for r in read(path)] == list(range(sum(s <= size for s in sizes)))
    assert recorder.count == 4


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 4)), max_size=12))
def test_the_trajectory_is_what_came_last(moves: list[tuple[int, int]]) -> None:
    """The run goes back to a step and writes on from there, any number of times."""
    records, model, number = [], {}, 0
    for back, length in moves:
        start = min(back, max(model, default=-1) + 1)
        model = {s: v for s, v in model.items() if s < start}
        for step in range(start, start + length):
            number += 1
            model[step] = number
            records.append({"step": step, "values": {"n": number}})
    assert {r["step"]: r["values"]["n"] for r in trajectory(iter(records))} == model


def test_the_ledger_books_each_second_once() -> None:
    clock = ManualClock(5.0)
    ledger = Ledger(clock)

    def exchange(inside: float, learned: int, outside: float) -> None:
        ledger.enter()
        clock.advance(inside)
        ledger.leave(learned)
        clock.advance(outside)

    exchange(0.25, 0, 2.0)
    exchange(0.25, 0, 4.0)
    exchange(0.5, 10, 0.25)  # a learned state over 10 steps
    exchange(0.25, 0, 3.0)
    ledger.enter()
    told = ledger.summary()
    assert (told["direct_s"], told["direct_steps"], told["learned_s"], told["learned_steps"]) == (9.0, 3, 0.75, 10)
    assert (told["stall_s"], told["exchanges"], ledger.direct_step()) == (1.25, 4, 2.0)
    assert json.loads(json.dumps(told)) == told


def test_waiting_for_slower_ranks_is_time_of_the_solver() -> None:
    clock = ManualClock(5.0)
    ledger = Ledger(clock)
    for _ in range(3):
        ledger.enter()
        clock.advance(0.25)
        clock.advance(1.0)
        ledger.waited(1.0)
        ledger.leave(0)
        clock.advance(1.0)
        ledger.waited(0.5)  # in a push: the solver's time as it is
        clock.advance(1.0)
    ledger.enter()
    assert ledger.stalls == [0.25] * 3 and ledger.direct_step() == 2.0
    assert (ledger.direct_s, ledger.direct_steps) == (8.0, 3)  # nobody knows of a step before the first exchange


@pytest.mark.parametrize("steps", [1, 2, 3, 31, 32, 33, 80])
def test_an_undisturbed_step_is_the_lower_quartile_of_recent_ones(steps: int) -> None:
    clock = ManualClock()
    ledger = Ledger(clock)
    times = [float(n * 7 % 11 + 1) for n in range(steps)]
    ledger.enter()
    for seconds in times:
        ledger.leave(0)
        clock.advance(seconds)
        ledger.enter()
    assert ledger.direct_step() == np.quantile(times[-32:], 0.25, method="lower")
    assert Ledger(clock).direct_step() == 0.0


def test_a_run_folder_with_every_action(tmp_path: Path) -> None:
    fields = {spec.name: spec for spec in FIELDS}
    recorder, sim = RunRecorder(tmp_path), Spinner()
    told = messages.Advice(
        action=Action.LEARNED, decision=4, answers=0, step=3, time=1.5, dt=9.0, version=2, bound=0.01, tolerance=0.05,
        observables={"lift": [1.0, 2.0]},
    )  # fmt: skip
    learned = Advice(Action.LEARNED, "good", version=2, snapshot=Snapshot(3, 1.5, 0.5), phase="learned")
    recorder.observed(sim.snapshot(), fields, 0)
    recorder.told(told)
    recorder.decided(sim.snapshot(), fields, learned, 0.25, 100.0)
    recorder.decided(sim.snapshot(), fields, Advice(Action.REWIND, "bad", rewind_to=0), 0.0, 101.0)
    recorder.decided(sim.snapshot(), fields, Advice.direct("fine", 0.5), 0.0, 102.0)
    recorder.close(Ledger(ManualClock()), {"produced": 1}, {})
    rows = list(read(tmp_path / "trace.msgpack"))
    assert [(r["action"], r["to_step"], r["decision"], r["version"]) for r in rows] == [
        ("learned", 3, 4, 2),
        ("rewind", 0, 0, 0),
        ("direct", 1, 0, 0),
    ]
    assert rows[0]["controls"] == {"force": 1.0} and rows[0]["bound"] == 0.01 and math.isnan(rows[1]["tolerance"])
    assert [r["wall_s"] for r in rows] == [0.0, 1.0, 2.0]
    seen = [(r["step"], r["time"], r["values"]) for r in read(tmp_path / "observables.msgpack")]
    assert seen == [(0, 0.0, {"lift": 0.0}), (1, 0.5, {"lift": 1.0}), (2, 1.0, {"lift": 2.0}), (3, 1.5, {})]
    ledger: dict[str, Any] = json.loads((tmp_path / "ledger.json").read_text())
    assert ledger["samples"] == {"produced": 1}


def test_a_scalar_of_several_values_is_no_column_and_no_crash(tmp_path: Path) -> None:
    fields = {"g": FieldSpec("g", "<f8", (3,), "1", "scalar", "control")}
    recorder = RunRecorder(tmp_path)
    snapshot = Snapshot(0, 0.0, 1.0, {"g": Block(np.zeros(3), (0,))})
    recorder.decided(snapshot, fields, Advice.direct("fine", 0.5), 0.0, 0.0)
    recorder.close(Ledger(ManualClock()), {}, {})
    [row] = read(tmp_path / "trace.msgpack")
    assert row["controls"] == {}


def test_without_a_folder_nothing_is_written(tmp_path: Path) -> None:
    recorder = RunRecorder(None)
    recorder.decided(Spinner().snapshot(), {}, Advice.direct("fine", 0.5), 0.0, 0.0)
    recorder.close(Ledger(ManualClock()), {}, {})
    assert Recorder(None).write(Observed(step=0, time=0.0, origin=0, values={})) is None


def test_without_a_coupling_a_trace_record_stands_for_many_steps(tmp_path: Path) -> None:
    clock = ManualClock(50.0)
    sim, step_s = Spinner(controls_until=9 * DT), 0.25  # a change that is announced is not hidden in a stretch
    with Coupling(None, FIELDS, Terms(run="r", last_step=14), recorder=RunRecorder(tmp_path), clock=clock) as coupling:
        for _ in range(14):
            if sim.step == 9:
                sim.force, sim.controls_until = 2.0, math.inf
            advice = coupling.exchange(sim.snapshot())
            coupling.apply(sim, advice)
            clock.advance(step_s)
        assert coupling.finish(sim.snapshot()).action is Action.STOP
    rows = list(read(tmp_path / "trace.msgpack"))
    assert [(r["step"], r["to_step"]) for r in rows] == [(0, 5), (5, 9), (9, 14)]
    assert {(r["action"], r["reason"], r["dt"]) for r in rows} == {("direct", "coupling is off", DT)}
    assert [r["controls"]["force"] for r in rows] == [1.0, 1.0, 2.0]
    assert [r["time"] for r in rows] == pytest.approx([0.0, 5 * DT, 9 * DT])
    assert [r["step"] for r in read(tmp_path / "observables.msgpack")] == list(range(15))
    standing = Standing(14)
    for row in rows:
        standing.add(row)
    assert standing.step == 14 and standing.direct_s == pytest.approx([step_s] * 2)
    assert standing.net_speedup == pytest.approx(1.0)  # nothing was learned; the last step was not made yet
    assert read_history([msgspec.convert(r, Record) for r in rows]).steps_by("direct") == 14


def test_the_live_speedup_leaves_out_what_happens_inside_an_exchange() -> None:
    """On the rung `inline` the trainer works there."""
    standing = Standing(4)
    for step in range(4):
        at = {"wall_s": 10.25 * step + 10.0, "stall_s": 10.0, "step": step, "to_step": step + 1}
        standing.add({"action": "direct", "time": 0.5 * step, "dt": 0.5, **at})
    assert standing.direct_s == pytest.approx([0.25] * 3)
    assert standing.net_speedup == pytest.approx(0.75 / 40.75)


def test_the_live_speedup_is_not_larger_because_a_trainer_slows_the_direct_steps() -> None:
    standing, wall_s = Standing(100), 0.0
    for step in range(100):
        at = {"wall_s": wall_s, "stall_s": 0.0, "step": step, "to_step": step + 1}
        standing.add({"action": "direct", "time": 0.5 * step, "dt": 0.5, **at})
        wall_s += 1.0 if step % 5 == 0 else 2.5
    assert standing.net_speedup == pytest.approx(99 * 1.0 / (wall_s - 2.5))


def test_the_live_speedup_of_a_chosen_dt_counts_simulated_time() -> None:
    standing = Standing(100)
    for step, time in enumerate((0.0, 0.5, 1.5, 3.5, 7.5, 15.5)):
        at = {"wall_s": 1.0 * step, "stall_s": 0.0, "step": step, "to_step": step + 1}
        standing.add({"action": "direct", "time": time, "dt": 0.5 * 2**step, **at})
    assert standing.net_speedup == pytest.approx(31 / 5)


def test_a_recorder_holds_no_more_than_it_must(tmp_path: Path) -> None:
    path = tmp_path / "o"
    recorder = Recorder(path)
    for step in range(MOST_WAITING + 1):
        recorder.write(Observed(step=step, time=0.0, origin=0, values={}))
    assert len(list(read(path))) == MOST_WAITING
    recorder.close()
    recorder.close()
    assert [r["step"] for r in read(path)] == list(range(MOST_WAITING + 1))


def test_the_last_word_of_a_log_is_what_a_process_said_itself(tmp_path: Path) -> None:
    log = tmp_path / "reference.log"
    assert last_said(log) == ""
    log.write_text("mpiexec says hello\n")
    assert last_said(log) == ""
    log.write_text(
        "2026-01-02 03:04:05,678 fixed dt 0.1: [keeps]\n2026-01-02 03:04:06,000 oracle: window 2 of 9\nnoise\n"
    )
    assert last_said(log) == "oracle: window 2 of 9"


def test_a_line_in_a_log_is_shown_when_it_has_changed_and_some_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, console = ManualClock(), Console(width=80, record=True, force_terminal=False)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=clock))
    with Line(console) as line:
        for said in ("[one]", "[two]", "[two]", "[two]"):
            line.show(said)
            clock.advance(LOG_EVERY_S)
            clock.advance(0.1)
            line.show(said)
    assert console.export_text().split() == ["[one]", "[two]"]
