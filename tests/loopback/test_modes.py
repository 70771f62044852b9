"""Whole runs in one process: what each mode does to the trajectory, with plug-ins from outside the packages."""

from __future__ import annotations

import itertools
import json
import math
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Ran, ran, spec_of
from rich.console import Console

from coupler.contracts import Advice
from coupler.coupling import Coupling
from coupler.errors import CouplerError
from launch.run import run
from schemas.fields import Snapshot
from schemas.messages import Action

TIMING = ("stall_s", "wall_s")


def without_times(trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # repr, because NaN differs from itself
    return [{key: repr(value) for key, value in record.items() if key not in TIMING} for record in trace]


def spans(result: Ran) -> set[int]:
    """Steps that were covered by learned states and stayed in the trajectory."""
    steps: set[int] = set()
    for record in result.trace:
        if record["action"] == "learned":
            steps |= set(range(record["step"] + 1, record["to_step"] + 1))
        elif record["action"] == "rewind":
            steps -= set(range(record["to_step"] + 1, record["step"] + 1))
    return steps


def same_bits(a: Ran, b: Ran) -> bool:
    """Whether every view of `a` is in `b` too, with the same bytes."""
    ours, theirs = a.views(), b.views()
    return all(ours[name][key].tobytes() == theirs[name][key].tobytes() for name in ours for key in ours[name])


@pytest.mark.parametrize("rung", ["inline", "threads"])
def test_act_takes_over_and_records_the_origin_of_every_step(tmp_path: Path, rung: str) -> None:
    pace = {"pace_s": 0.002} if rung == "threads" else {}
    had_torch = "torch" in sys.modules  # by another test of this process
    result = ran(tmp_path / "run", rung=rung, steps=300, simulation=pace)
    assert result.code == 0
    summary = result.summary
    assert summary["status"] == "finished" and summary["steps"] == 300 and summary["switches"] >= 1
    assert summary["learned_fraction"] > 0.5
    assert summary["audits"] >= 1 and summary["rewinds"] == 0
    assert summary["lost"] == [] and summary["failures"] == {}
    assert summary["torch_in_simulation"] is had_torch
    observed = result.observables
    assert [record["step"] for record in observed] == list(range(301 if observed[-1]["step"] == 300 else 300))
    learned = spans(result)
    assert len(learned) == round(summary["learned_fraction"] * 300)
    assert {record["step"] for record in observed if record["origin"]} == learned
    assert all(math.isclose(record["time"], 0.1 * record["step"], abs_tol=1e-9) for record in observed)
    energy = observed[0]["values"]["energy"]
    assert all(math.isclose(record["values"]["energy"], energy, rel_tol=1e-9) for record in observed)
    for before, after in itertools.pairwise(result.trace):
        assert after["step"] == before["to_step"]


def test_inline_is_deterministic(tmp_path: Path) -> None:
    change = {"later_omega": 1.7, "change_step": 117, "announce": False}
    one, two = (ran(tmp_path / name, simulation=change) for name in ("one", "two"))
    assert one.summary["rewinds"] == 1
    assert without_times(one.trace) == without_times(two.trace)
    assert one.observables == two.observables
    assert len(one.views()) >= 10 and same_bits(one, two) and same_bits(two, one)


def test_shadow_is_bitwise_the_uncoupled_run(tmp_path: Path) -> None:
    off, shadow = (ran(tmp_path / mode, mode=mode) for mode in ("off", "shadow"))
    assert off.code == shadow.code == 0
    assert len(off.views()) == 10 and same_bits(off, shadow)
    assert off.observables == shadow.observables
    assert shadow.steps_of("learned") == shadow.steps_of("rewind") == []
    assert shadow.summary["models"] and shadow.summary["horizon_error"]["n"] > 10  # it did forecast and score


def test_off_has_no_server_side(tmp_path: Path) -> None:
    off = ran(tmp_path / "off", mode="off")
    assert off.code == 0 and off.summary["steps_by"]["direct"] == off.summary["steps"] == 200
    assert off.reasons() == {"coupling is off"}
    assert not (off.folder / "server.json").exists() and not (off.folder / "checkpoint").exists()
    assert off.summary["samples"]["produced"] == 0


def halved(**more: Any) -> list[dict[str, Any]]:
    return [{"use": "linear:Halved", **more}, {"use": "linear:Linear"}]


def test_advise_adopts_no_state_but_its_dt(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", mode="advise", tasks=halved(), limits={"dt_min": 0.01, "dt_max": 0.2})
    assert result.code == 0 and result.steps_of("learned") == []
    dts = [record["dt"] for record in result.trace]
    assert dts[0] == 0.1 and dts[-1] == 0.05
    switched = dts.index(0.05)
    assert switched < 10 and set(dts[switched:]) == {0.05}
    assert result.trace[-1]["time"] == pytest.approx(0.1 * switched + 0.05 * (199 - switched))


def test_act_with_two_tasks_takes_dt_and_states(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", mode="act", tasks=halved(), limits={"dt_min": 0.01, "dt_max": 0.2})
    assert result.code == 0 and result.summary["learned_fraction"] > 0.3
    assert {record["dt"] for record in result.trace[10:]} == {0.05}
    assert {model["task"] for model in result.summary["models"]} == {"Halved", "Linear"}


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_dt_is_not_touched_without_leave(tmp_path: Path, mode: str) -> None:
    result = ran(tmp_path / "run", mode=mode, tasks=halved(), limits={"dt_min": 0.01, "dt_max": 0.2})
    assert {record["dt"] for record in result.trace} == {0.1}


def test_guard_clamps_an_advised_dt(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", mode="advise", tasks=halved(factor=1e-6), limits={"dt_min": 0.08, "dt_max": 0.2})
    assert {record["dt"] for record in result.trace} == {0.1, 0.08}


def test_announced_change_is_integrated_and_relearned(tmp_path: Path) -> None:
    change = {"later_omega": 1.5, "change_step": 133}
    result = ran(tmp_path / "run", steps=300, simulation=change)
    assert result.code == 0 and result.summary["rewinds"] == 0
    learned = spans(result)
    assert learned and min(learned) < 100  # it had taken over before
    assert not learned & {133, 134}  # at the change and the step after it the solver is in charge
    later = [record for record in result.trace if record["step"] >= 133]
    assert later[0]["step"] == 133 and later[0]["action"] == "direct"
    assert later[0]["controls"] == {"omega": 1.5}
    assert max(learned) > 200  # relearned, and trusted again
    exact(result, 133, 1.5)


def test_unannounced_change_is_found_and_rewound(tmp_path: Path) -> None:
    change = {"later_omega": 1.5, "change_step": 133, "announce": False}
    result = ran(tmp_path / "run", steps=400, simulation=change)
    assert result.code == 0 and result.summary["rewinds"] == 1
    (rewind,) = (record for record in result.trace if record["action"] == "rewind")
    assert rewind["to_step"] <= 133 < rewind["step"]
    assert "audit found a step error" in rewind["reason"] and rewind["step_error"] > 0.01
    learned = spans(result)
    assert not learned & set(range(rewind["to_step"] + 1, rewind["step"] + 1))
    assert max(learned) > rewind["step"]  # the map of the new motion took over
    origins = {record["step"]: record["origin"] for record in result.observables}
    assert all(origins[step] == 0 for step in range(rewind["to_step"], rewind["step"] + 1))
    assert {step for step, origin in origins.items() if origin} == learned
    assert {int(name.split(".")[0]) for name, view in result.views().items() if view["origin"]} <= learned
    assert result.summary["samples"]["superseded"] >= 1  # what was integrated from the wrong state is not trained on
    exact(result, 133, 1.5)


def exact(result: Ran, change: int, omega: float) -> None:
    """The energy of every step that stayed is that of the true motion."""
    values = {record["step"]: record["values"]["energy"] for record in result.observables}
    state = result.views()
    assert state and all(np.all(np.isfinite(arrays["x"])) for arrays in state.values())
    assert all(math.isclose(values[s], values[0], rel_tol=1e-6) for s in range(change))
    # At the change positions and velocities stay, and the springs stiffen.
    rng = np.random.default_rng(3).uniform(0.0, 2.0 * math.pi, 6)
    t = 0.1 * change
    x, v = np.cos(rng) * math.cos(t) + np.sin(rng) * math.sin(t), np.sin(rng) * math.cos(t) - np.cos(rng) * math.sin(t)
    energy = 0.5 * float(v @ v + omega**2 * (x @ x))
    assert all(math.isclose(values[s], energy, rel_tol=1e-6) for s in values if s >= change)


@pytest.mark.parametrize("every", [7, 25])
def test_output_steps_are_hit(tmp_path: Path, every: int) -> None:
    result = ran(tmp_path / "run", steps=203, output={"every": every})
    stood = {record["to_step"] for record in result.trace} | {0}
    assert set(range(0, 203, every)) <= stood and max(stood) == 203
    assert spans(result)


def test_steps_that_must_be_hit_do_not_keep_the_model_out(tmp_path: Path) -> None:
    assert len(spans(ran(tmp_path / "run", steps=300, output={"every": 10}))) > 150


def test_blended_hand_over_is_marked(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", switch={"blend_steps": 3})
    weights = [record["weight"] for record in result.trace if record["action"] == "learned"]
    assert weights[:4] == [0.25, 0.5, 0.75, 1.0]
    assert result.summary["steps_by"]["hand-over"] > 0


def test_guarded_invariant(tmp_path: Path) -> None:
    good = ran(tmp_path / "good", guard={"invariants": {"energy": 1e-6}})
    assert good.summary["learned_fraction"] > 0.5


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    assert ran(tmp_path / "run", steps=5).code == 0
    before = (tmp_path / "run" / "summary.json").read_bytes()
    with pytest.raises(CouplerError, match="holds a run already"):
        ran(tmp_path / "run", steps=5)
    assert (tmp_path / "run" / "summary.json").read_bytes() == before


def test_run_that_the_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Coupling.exchange

    def ended(self: Coupling, snapshot: Snapshot, *more: Any) -> Advice:
        exchange(self, snapshot, *more)
        if snapshot.step >= 50:
            self.advice = replace(self.advice, action=Action.STOP, reason="converged")
        return self.advice

    monkeypatch.setattr(Coupling, "exchange", ended)
    result = ran(tmp_path / "run", mode="shadow")
    assert result.code == 0 and result.summary["status"] == "stopped"
    assert result.summary["cause"] == "The server ended the run at step 50: converged"


def test_signal_handlers_and_threads_are_as_before(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM), threading.active_count()
    run(spec_of(tmp_path / "run", rung="threads", steps=20), tmp_path / "run", console=Console(quiet=True))
    assert (signal.getsignal(signal.SIGTERM), threading.active_count()) == before


def test_propagator_end_to_end(tmp_path: Path) -> None:
    spec = {"use": "oscillator", "simulation": {"k": 1.0, "beta": 0.0, "amplitude": [0.5, 1.0], "dt": 0.2, "n": 4}}
    result = ran(tmp_path / "run", steps=400, tasks=[{"use": "propagator", "models": ["affine"]}], **spec)
    assert result.code == 0 and result.summary["failures"] == {}
    assert result.summary["learned_fraction"] > 0.2
    energies = [record["values"]["energy"] for record in result.observables]
    assert all(math.isclose(energy, energies[0], rel_tol=0.02) for energy in energies)


def dts(result: Ran) -> list[float]:
    return [record["dt"] for record in result.trace]


def test_a_run_ends_at_its_time_whatever_its_dt(tmp_path: Path) -> None:
    limits = {"dt_min": 0.01, "dt_max": 0.2}
    result = ran(tmp_path / "run", mode="advise", tasks=halved(), limits=limits, run={"end_time": 3.02})
    assert result.code == 0
    assert result.summary["simulated_time"] == 3.02 and result.summary["steps"] < 100
    assert dts(result)[-2:] == [0.05, pytest.approx(0.02)]
    assert "time 3/3.02" in result.said and "to time 3.02 in at most 200 steps" in result.said


def test_learned_steps_do_not_pass_the_end_time(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", steps=1000, run={"end_time": 29.95})
    assert result.code == 0 and result.summary["simulated_time"] == 29.95 and result.summary["learned_fraction"] > 0.3
    assert result.summary["rewinds"] == 0


@pytest.mark.parametrize("rung", ["inline", "threads"])
def test_the_reference_of_one_process_counts_as_the_run_did(tmp_path: Path, rung: str) -> None:
    """Neither has the start of a process in its time."""
    folder = tmp_path / "run"
    assert (
        run(spec_of(folder, rung=rung, mode="off", steps=50), folder, reference=True, console=Console(quiet=True)) == 0
    )
    told = json.loads((folder / "reference" / "simulation.json").read_text())
    assert Ran(folder, 0, "").summary["time"]["reference_wall_s"] == told["startup_s"] + told["loop_s"]


def test_a_chosen_dt_is_compared_at_equal_times(tmp_path: Path) -> None:
    """Steps of half the length: at equal step numbers the rotors would be anywhere."""
    folder, limits = tmp_path / "run", {"dt_min": 0.01, "dt_max": 0.2}
    spec = spec_of(folder, mode="advise", tasks=halved(), limits=limits, run={"end_time": 9.03}, steps=400)
    assert run(spec, folder, reference=True, console=Console(quiet=True)) == 0
    summary = Ran(folder, 0, "").summary
    assert summary["error"]["n"] > 3 and summary["error"]["max"] < 1e-6
    assert summary["observables"]["energy"]["difference"]["mean"] == pytest.approx(0.0, abs=1e-9)


def test_the_budget_of_threads_does_not_pay_for_the_solver(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", rung="threads", steps=150, simulation={"burn_s": 0.005}, mode="shadow")
    served = json.loads((result.folder / "server.json").read_text())
    assert result.code == 0 and result.summary["ledger"]["direct_s"] > 0.7
    assert served["spent_s"] < 0.5 * result.summary["ledger"]["direct_s"]


def test_too_few_steps_for_the_time_are_said(tmp_path: Path) -> None:
    result = ran(tmp_path / "run", steps=20, mode="off", run={"end_time": 3.0})
    assert result.summary["status"] == "stopped"
    assert "All run.steps = 20 were made, and time is 2 of run.end_time = 3" in result.summary["cause"]


def brittle(folder: Path, mode: str = "advise", **limits: float) -> Ran:
    """Rotors that break with any dt above 0.06 between time 4 and 6, under a task that advises 0.1."""
    tasks = [{"use": "linear:Halved", "factor": 1.0}]
    simulation = {"breaks_above": 0.06, "breaks_at": (4.0, 6.0)}
    bounds = {"dt_min": 0.01, "dt_max": 0.2} | limits
    return ran(folder, mode=mode, tasks=tasks, limits=bounds, simulation=simulation, run={"end_time": 9.0})


def test_a_failed_step_is_taken_again_from_a_saved_state_with_a_smaller_dt(tmp_path: Path) -> None:
    result = brittle(tmp_path / "run")
    assert result.code == 0 and result.summary["status"] == "finished"
    assert result.summary["simulated_time"] == pytest.approx(9.0)
    trace = result.trace
    back = [record for record in trace if record["action"] == "rewind"]
    assert back and back[0]["reason"] == "the rotor broke at time 4"
    assert 0 < back[0]["step"] - back[0]["to_step"] <= 16 and back[0]["dt"] == 0.1
    after = trace[trace.index(back[0]) + 1]
    assert after["step"] == back[0]["to_step"] and after["dt"] == 0.05
    assert dts(result)[-3] == 0.1  # well past the place the advised dt is used again
    energy = result.observables[0]["values"]["energy"]
    assert all(math.isclose(record["values"]["energy"], energy, rel_tol=1e-9) for record in result.observables)


def test_a_step_that_fails_with_any_dt_ends_the_run(tmp_path: Path) -> None:
    result = brittle(tmp_path / "run", dt_min=0.07)
    assert result.summary["status"] == "failed"
    assert "the rotor broke at time 4. Going back and trying smaller dt did not help" in result.summary["cause"]


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_where_dt_is_not_chosen_a_failed_step_ends_the_run(tmp_path: Path, mode: str) -> None:
    result = brittle(tmp_path / "run", mode=mode)
    assert result.summary["status"] == "failed" and "StepFailed: the rotor broke at time 4" in result.summary["cause"]
    assert result.steps_of("rewind") == []
