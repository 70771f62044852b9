from __future__ import annotations

import pytest

from coupler.errors import CouplerError
from launch.check import check
from launch.init_lammps import case_of, init_lammps
from schemas.run import parse
from sim_clients.adapters.lammps_deck import read_deck

NVE = """
units real
timestep 2.0
fix move all nve
thermo_style custom step temp density v_mine
run 1005
"""


def case(text):
    return case_of(read_deck("in.x", {"in.x": text}.__getitem__), "in.x")


def test_the_case_of_a_deck_is_one_that_can_be_checked(tmp_path):
    (tmp_path / "in.x").write_text(NVE)
    (path,) = init_lammps(tmp_path / "in.x", tmp_path / "case")
    spec = check(path)
    settings = spec.simulation.settings
    assert (settings["units"], settings["invariant"], settings["every"]) == ("real", "etotal", 5)
    assert settings["thermo"] == ["temp", "press", "density", "etotal", "ke"]
    assert (spec.run.steps, spec.run.mode, spec.limits.dt_min, spec.limits.dt_max) == (201, "shadow", 1.0, 40.0)
    with pytest.raises(CouplerError, match="is there already"):
        init_lammps(tmp_path / "in.x", tmp_path / "case")


@pytest.mark.parametrize(("run", "span"), [("run 4990", 0), ("run 5000", 0.5), ("run 12000", 1.2), ("run 90000", 2)])
def test_the_drift_of_a_long_run_looks_back_over_several_steps(run, span):
    spec = parse(case(f"fix 1 all nve\n{run}"))
    (task,) = spec.tasks
    assert spec.simulation.settings.get("span", 0) == task.settings.get("over", 0) == span
    assert ("follow" in task.settings) == (span > 0)


@pytest.mark.parametrize(
    ("fixes", "invariant"),
    [
        ("fix 1 all nve\nfix 2 all temp/csvr 1 2 0.1 5", "econserve"),
        ("fix 1 all nvt temp 300 300 100", "econserve"),
        ("fix 1 all nve\nfix 2 all langevin 1 1 1 5 tally yes", "econserve"),
    ],
)
def test_the_ensemble_tells_what_is_conserved(fixes, invariant):
    text = case(f"{fixes}\nrun 100")
    assert parse(text).simulation.settings["invariant"] == invariant
    assert "what is conserved" not in text


@pytest.mark.parametrize(
    ("fixes", "why"),
    [
        ("fix 1 all nvt temp 300 600 100", "nvt with a ramp 300 to 600 (in.x:1) does not conserve econserve"),
        ("fix 1 all nve\nfix 2 all langevin 1 1 1 5", "add `tally yes`"),
        ("fix 1 all nve\nfix 2 all move linear 1 0 0", "(in.x:2) does work on the atoms"),
        ("fix 1 all setforce 0 0 0", "does work on the atoms"),
        ("fix 1 all print 10 x", "no known fix integrates the atoms"),
    ],
)
def test_what_is_not_conserved_is_not_guessed(fixes, why):
    text = case(f"{fixes}\nrun 100")
    assert why in text and "invariant" not in parse(text).simulation.settings


def test_lengths_and_dts_that_are_variables_are_said():
    text = case("units metal\ntimestep ${dt}\nfix 1 all nve\nrun ${n}\nrun 20 upto")
    assert "how long 'run ${n}' (in.x:4) is" in text and "how long 'run 20 upto' (in.x:5) is" in text
    assert "the dt of 'timestep ${dt}' (in.x:2)" in text
    assert parse(text).run.steps == 1000


@pytest.mark.parametrize(
    ("text", "why"),
    [("minimize 0 0 1 1\nrun 1", "cannot be driven"), (None, "cannot be used")],
)
def test_a_deck_that_cannot_be_driven_leaves_no_case(tmp_path, text, why):
    if text:
        (tmp_path / "in.x").write_text(text)
    with pytest.raises(CouplerError, match=why):
        init_lammps(tmp_path / "in.x", tmp_path / "case")
    assert not (tmp_path / "case").exists()
