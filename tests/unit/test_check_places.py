"""What `coupler check` finds by looking at this machine: cores, shared memory, and files that a case names."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from coupler.bulks import folder
from coupler.errors import CaseError
from launch import check as checking
from launch import run as running
from launch.check import RANK_BYTES, check, crowded
from launch.report.words import findings

CASE = """\
[run]
name = "case"
steps = 10
mode = "off"
rung = "{rung}"
[simulation]
use = "{use}"
ranks = {ranks}
{more}
"""


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(checking, "cores", lambda: 2)
    monkeypatch.setattr(folder, "free_bytes", lambda: 1 << 40)


def case(tmp_path: Path, rung: str = "mpi", use: str = "vortex_street", ranks: Any = 1, more: str = "") -> Path:
    path = tmp_path / "case.toml"
    path.write_text(CASE.format(rung=rung, use=use, ranks=ranks, more=more), "utf-8")
    return path


def mistakes(path: Path) -> list[str]:
    with pytest.raises(CaseError) as raised:
        check(path)
    return [mistake.removeprefix(f"{path}:") for mistake in raised.value.mistakes]


RECORD = 'path = "{path}"\ndt = 1.0\n[simulation.series.u]\nunit = "1"\nkind = "cell"\nrole = "state"'


def said_of(path: Path) -> str:
    try:
        check(path)
    except CaseError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("ranks", "refused"), [(128, False), (129, True), (1_000_000, True)])
def test_an_absurd_number_of_ranks(tmp_path: Path, ranks: int, refused: bool) -> None:
    sentence = f"simulation.ranks is {ranks}, and 2 cores can be used here, for 64 ranks each at most; use fewer ranks"
    assert (sentence in said_of(case(tmp_path, ranks=ranks))) == refused


def test_ranks_that_are_no_number_are_told_once(tmp_path: Path) -> None:
    assert sum("simulation.ranks" in sentence for sentence in mistakes(case(tmp_path, ranks='"many"'))) == 1


@pytest.mark.parametrize(("rung", "free", "refused"), [("mpi", -1, True), ("mpi", 0, False), ("local", -1, False)])
def test_shared_memory_that_mpi_would_not_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rung: str, free: int, refused: bool
) -> None:
    room = 2 * RANK_BYTES + free if rung == "mpi" else 0
    monkeypatch.setattr(folder, "free_bytes", lambda: room)
    sentence = f"MPI takes {RANK_BYTES} bytes of {folder.memory()} for each rank, which has {room} bytes free"
    assert (sentence in said_of(case(tmp_path, rung, ranks=2 if rung == "mpi" else 1))) == refused


@pytest.mark.parametrize("given", ["series.npz", "elsewhere/run.bp", "{tmp}/nowhere.npy"])
def test_a_record_that_is_not_there(tmp_path: Path, given: str) -> None:
    path = given.format(tmp=tmp_path)
    found = mistakes(case(tmp_path, "local", "recording", more=RECORD.format(path=path)))
    where = "neither in the current folder nor in those of run.path"
    assert found == [f'9: simulation.path is "{path}", which is not there, {where}']


@pytest.mark.parametrize("given", ["series.npz", "{tmp}/series.npz"])
def test_a_record_that_is_there(tmp_path: Path, given: str) -> None:
    np.savez(tmp_path / "series.npz", u=np.zeros((3, 2)))
    check(case(tmp_path, "local", "recording", more=RECORD.format(path=given.format(tmp=tmp_path))))


PLUGIN = """
class Many:
    def __init__(self, *, ranks): ...
    fields = snapshot = integrate = adopt = save = restore = invariants = __init__
"""


@pytest.mark.parametrize(("ranks", "cores", "shared"), [(4, 2, "2 cores"), (2, 1, "1 core"), (2, 2, ""), (1, 2, "")])
def test_more_ranks_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, cores: int, shared: str
) -> None:
    monkeypatch.setattr(checking, "cores", lambda: cores)
    (tmp_path / "many_ranks.py").write_text(PLUGIN)
    spec = check(case(tmp_path, use="many_ranks:Many", ranks=ranks))
    sentence = f"{ranks} ranks share {shared}: each step waits for ranks that do not run." if shared else ""
    assert crowded(spec) == sentence
    said = io.StringIO()

    def started(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_coupled", started)
    with pytest.raises(KeyboardInterrupt):
        running.run(spec, tmp_path / "run", console=Console(file=said, width=200))
    assert sentence in said.getvalue() and ("ranks share" in said.getvalue()) == bool(shared)


def test_one_process_has_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "cores", lambda: 0)
    (tmp_path / "many_ranks.py").write_text(PLUGIN)
    assert crowded(check(case(tmp_path, "local", "many_ranks:Many"))) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0123, "0.012"), (3.24, "3.2"), (99.4, "99"), (99.6, "100"), (100.0, "100"), (1234.0, "1234")],
)
def test_figures_for_people(value: float, text: str) -> None:
    assert running._plain(value) == text


def test_conclusion_of_a_run_that_missed_every_step(capsys: pytest.CaptureFixture[str]) -> None:
    missed = {"n": 5, "max": 12.0, "tolerance": 0.1, "missed": 1.0}
    running._conclude({"status": "finished", "learned_fraction": 0.0, "dt_error": missed}, Console(width=200))
    assert "100 % of the steps missed their tolerance, at most 120 times it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rejected", "missed", "says"),
    [
        (3, 0.0, "every step kept limits.errors.drift, for which 3 steps were made again"),
        (1, 0.0, "every step kept limits.errors.drift, for which 1 step was made again"),
        (7, 0.4, "2 steps went beyond limits.errors.drift, at most 3 times it, though 7 steps were made again for it"),
    ],
)
def test_conclusion_of_a_run_whose_errors_are_limited(rejected: int, missed: float, says: str) -> None:
    error = {"field": "drift", "n": 5, "max": 0.3, "tolerance": 0.1, "missed": missed}
    summary = {"limits": {"errors": [error], "rejected": rejected}, "status": "finished", "learned_fraction": 0.0}
    console = Console(width=200, record=True)
    running._conclude(summary, console)
    assert says in console.export_text() and any(says[1:] in finding for finding in findings(summary))


def test_several_limits_share_the_steps_that_were_made_again() -> None:
    errors = [
        {"field": "drift", "n": 500, "max": 0.1004, "tolerance": 0.1, "missed": 0.002},
        {"field": "leak", "n": 500, "max": 0.1, "tolerance": 0.2, "missed": 0.0},
    ]
    rewound = [{"found_at_step": 5, "to_step": 4, "reason": "'drift' became 0.2, its limit is 0.1"}]
    summary = {"limits": {"errors": errors, "rejected": 4}, "rewinds": 4, "rewound": rewound}
    told = [
        "1 step went beyond limits.errors.drift, at most 1.004 times it.",
        "Every step kept limits.errors.leak.",
        "4 steps were made again for these limits.",
    ]
    assert findings(summary)[-3:] == told
    other = "At step 5 the run went back to step 4: 'drift' became 0.2, its limit is 0.1."
    assert findings(summary | {"rewinds": 5})[-1] == other


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ({"produced": 0, "dropped": {}}, ""),
        ({"produced": 10, "dropped": {"no credit": 5}}, ""),
        (
            {"produced": 10, "dropped": {"no server yet": 2, "no credit": 7}},
            "9 of 10 states were dropped, most of them for one reason: no credit.",
        ),
        (
            {"produced": 9, "dropped": {"could not be assembled": 9}, "server": {"unusable": {"id 2 came twice": 9}}},
            "9 of 9 states were dropped, most of them for one reason: could not be assembled: id 2 came twice.",
        ),
    ],
)
def test_that_most_states_came_to_nothing_is_the_last_word(samples: dict[str, object], says: str) -> None:
    console = Console(width=200, record=True)
    running._conclude({"status": "finished", "learned_fraction": 0.0, "samples": samples}, console)
    assert says == running.mostly_dropped(samples) and says in console.export_text()


def test_what_was_compared_stands_side_by_side() -> None:
    console = Console(width=80, record=True)
    rows = [{"run": "coupled", "setting": None, "steps": 29720}, {"run": "fixed dt", "setting": 0.25, "steps": 37540}]
    running._conclude({"status": "finished", "learned_fraction": 0.0, "judgement": {"table": rows}}, console)
    lines = [line.split() for line in console.export_text().splitlines()[-3:]]
    assert lines == [["run", "setting", "steps"], ["coupled", "–", "29,720"], ["fixed", "dt", "0.25", "37,540"]]
