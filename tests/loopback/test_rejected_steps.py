"""Steps with too large an error are made again with a smaller dt, and nobody but the books can tell."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import Ran, ran
from erring import Erring

from coupler import rejection
from coupler.contracts import Advice
from coupler.coupling import Coupling
from coupler.guard import Guard
from coupler.ranks import Ranks
from coupler.terms import Terms

EASY, HARD = 0.1**2, 10 * 0.05**2
"""Errors of the steps that are kept: of dt 0.1, and in the hard stretch of dt 0.05."""


def erring(folder: Path, errors: dict[str, float] | None, mode: str = "advise", **changes: Any) -> Ran:
    """Rotors whose error is ten times as large between time 4 and 6, under a task that always advises 0.1."""
    limits = {"dt_min": 0.01, "dt_max": 0.2} | ({"errors": errors} if errors else {}) | changes.pop("limits", {})
    case = {"use": "erring:Erring", "tasks": [{"use": "linear:Halved", "factor": 1.0}], "run": {"end_time": 9.0}}
    return ran(folder, mode=mode, limits=limits, **{**case, **changes})


def test_a_step_beyond_its_limit_is_made_again_with_a_smaller_dt(tmp_path: Path) -> None:
    result = erring(tmp_path / "run", {"step_error": 0.03}, rung="inline")
    summary = result.summary
    assert result.code == 0 and summary["status"] == "finished"
    assert summary["simulated_time"] == pytest.approx(9.0)
    assert summary["limits"]["rejected"] == summary["rewinds"] == summary["superseded_steps"] == 40
    assert summary["limits"]["errors"] == [
        {"field": "step_error", "tolerance": 0.03, "n": 110, "max": pytest.approx(HARD), "missed": 0.0}
    ]
    assert result.says("every step kept limits.errors.step_error, for which 40 steps were made again")
    back = [record for record in result.trace if record["action"] == "rewind"]
    assert {record["reason"] for record in back} == {"'step_error' became 0.1, its limit is 0.03"}
    assert all(record["step"] - record["to_step"] == 1 for record in back)
    for before, after in itertools.pairwise(result.trace):
        assert after["step"] == before["to_step"]
    times = [record["time"] for record in result.observables]
    gaps = [round(after - before, 9) for before, after in itertools.pairwise(times)]
    assert gaps == [0.1] * 40 + [0.05] * 40 + [0.1] * 30  # the advised dt is there again at once
    energy = result.observables[0]["values"]["energy"]
    assert all(math.isclose(record["values"]["energy"], energy, rel_tol=1e-9) for record in result.observables)


def test_where_answers_come_late_the_limit_is_kept_all_the_same(tmp_path: Path) -> None:
    result = erring(tmp_path / "run", {"step_error": 0.03}, rung="threads")
    limited = result.summary["limits"]
    assert result.code == 0 and result.summary["simulated_time"] == pytest.approx(9.0)
    assert 0 < limited["rejected"] == result.summary["rewinds"] == result.summary["superseded_steps"]
    assert limited["rejected"] < 2.0 / 0.035  # once for each step of the hard stretch, none of them shorter than that
    assert limited["errors"][0]["missed"] == 0.0 and limited["errors"][0]["max"] <= 0.03
    assert len(result.observables) == result.summary["steps"] + 1


def test_what_adds_up_is_rejected_where_the_step_made_it_grow_beyond(tmp_path: Path) -> None:
    """The total passes its limit in the end whatever dt is: from there on no step is kept from growing it."""
    result = erring(tmp_path / "run", {"total_error": 0.405}, limits={"dt_min": 0.05}, run={"end_time": 5.0})
    limited = result.summary["limits"]
    assert result.summary["status"] == "finished" and result.summary["simulated_time"] == pytest.approx(5.0)
    assert limited["errors"][0]["max"] == pytest.approx(40 * EASY + 20 * HARD)
    assert limited["rejected"] == 19  # once each, since half of 0.05 is below dt_min; the last was cut to 0.05
    assert result.says("20 steps went beyond limits.errors.total_error, at most 2.22 times it, though 19 steps were")


def test_a_step_that_no_dt_mends_is_kept_after_one_more_try(tmp_path: Path) -> None:
    result = erring(tmp_path / "run", {"energy": 0.1}, run={"end_time": 1.0})
    assert result.summary["status"] == "finished" and 1 <= result.summary["limits"]["rejected"] <= 10
    assert {record["reason"] for record in result.trace if record["action"] == "rewind"} == {
        "'energy' became 3, its limit is 0.1"
    }


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_where_dt_is_not_chosen_nothing_is_rejected(tmp_path: Path, mode: str) -> None:
    limited, free = (erring(tmp_path / str(n), e, mode) for n, e in enumerate(({"step_error": 0.03}, None)))
    assert limited.code == 0 and limited.observables == free.observables and len(free.observables) == 91
    assert limited.summary["limits"] is None and limited.steps_of("rewind") == []


def test_an_error_that_is_no_observable_is_told_with_those_there_are(tmp_path: Path) -> None:
    result = erring(tmp_path / "run", {"step_eror": 0.03})
    assert result.summary["status"] == "failed"
    told = "limits.errors names 'step_eror', but the simulation's observables are 'energy', 'step_error', 'total_error'"
    assert told in result.summary["cause"]


def test_a_simulation_that_cannot_go_back_says_who_asked_for_it(tmp_path: Path) -> None:
    result = erring(tmp_path / "run", {"step_error": 0.03}, simulation={"returns": False})
    assert result.summary["status"] == "failed"
    assert (
        "there is no way back; a step was to be made again, since limits.errors limits its error"
        in result.summary["cause"]
    )


def coupled(errors: dict[str, float]) -> tuple[Coupling, Erring]:
    simulation = Erring(ranks=Ranks(), seed=0, hard=(0.0, 9.0))
    terms = Terms(run="r", last_step=99, keep_every=16)
    return Coupling(None, simulation.fields(), terms, guard=Guard(dt_min=0.01, errors=errors)), simulation


@pytest.mark.parametrize(("phase", "made", "time"), [("direct", 2, 0.05), ("trial", 1, 0.1), ("audit", 1, 0.1)])
def test_trials_and_audits_keep_the_dt_that_their_forecasts_are_for(phase: Any, made: int, time: float) -> None:
    coupling, simulation = coupled({"step_error": 0.03})
    with coupling:
        advice = rejection.integrate(
            coupling, simulation, simulation.snapshot(), replace(Advice.direct("", 0.1), phase=phase)
        )
    assert simulation.made == made and simulation.snapshot().time == pytest.approx(time)
    assert advice.dt == pytest.approx(time) and simulation.snapshot().step == 1


def test_without_limits_nothing_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    coupling, simulation = coupled({})
    monkeypatch.setattr(simulation, "save", lambda: pytest.fail("saved in vain"))
    with coupling:
        rejection.integrate(coupling, simulation, simulation.snapshot(), Advice.direct("", 0.1))


def test_the_books_of_a_rank_hold_what_was_made_again(tmp_path: Path) -> None:
    result = erring(tmp_path / "run", {"step_error": 0.03})
    books = json.loads((result.folder / "ledger.json").read_text("utf-8"))["time"]
    assert books["rejected_steps"] == 40 and books["direct_steps"] == 110
