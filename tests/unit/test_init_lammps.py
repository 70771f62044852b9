from __future__ import annotations

import pytest

from coupler.errors import CaseError, CouplerError
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
        ("fix 1 all rigid molecule", "etotal"),
        ("fix 1 all rigid/nve/small molecule", "etotal"),
        ("fix 1 all rigid/nvt molecule temp 1 1 1", "econserve"),
        ("fix 1 all rigid/npt/small molecule temp 1 1 1 iso 0 0 1", "econserve"),
        ("fix 1 all rigid/nph molecule iso 0 0 1", "econserve"),
        ("fix 1 all nvt/omp temp 1 1.0 0.1", "econserve"),
        ("fix 1 all nve\nfix 2 all shake 1e-4 20 0 b 1\nfix 3 all ave/time 10 1 10 c_1\nfix 4 all print 9 x", "etotal"),
        ("fix 1 all nve/limit 0.1\nunfix 1\nfix 1 all nve", "etotal"),
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
        ("fix 1 all rigid/nvt molecule temp 1 2 1", "rigid/nvt with a ramp 1 to 2 (in.x:1)"),
        ("fix 1 all nve/limit 0.1", "(in.x:1) limits how far atoms move, which costs energy"),
        ("fix 1 all nve\nfix 2 all gravity 1 vector 0 0 -1", "(in.x:2) does work on the atoms"),
        ("fix 1 all nve\nfix 2 all ehex 1 0.1", "(in.x:2) does work on the atoms"),
        ("fix 1 all nve\nfix 2 all press/berendsen iso 0 0 1", "(in.x:2) does work on the atoms"),
        ("fix 1 all nve\nfix 2 all press/langevin iso 0 0 1 temp 1 1 7", "(in.x:2) does work on the atoms"),
        ("fix 1 all nve\nfix 2 all viscous 0.1", "(in.x:2) does work on the atoms"),
        ("fix 1 all nve\nfix 2 all momentum 10 linear 1 1 1", "(in.x:2) takes momentum away"),
        ("fix 1 all nve\npair_style gran/hooke 1 2 3 4 5 0", "(in.x:2) takes energy away in each contact"),
        ("fix 1 all nve\npair_style hybrid granular lj/cut 2.5", "(in.x:2) takes energy away in each contact"),
        ("fix 1 all nve\npair_style dpd 1.0 1.0 34387", "(in.x:2) has friction that no keyword counts"),
        ("fix 1 all nve\nfix 2 all drag 5 5 5 0.1 2.0", "(in.x:2) does work on the atoms"),
        ("fix 1 all nve\nfix 2 all adapt 1 pair lj/cut epsilon 1 1 v_e", "(in.x:2) is not known to keep the energy"),
        ("fix 1 all nve\nfix 2 all bond/break 10 1 2.0", "(in.x:2) is not known to keep the energy"),
        ("fix 1 all nvt/sllod temp 1 1 1", "(in.x:1) is not known to keep the energy"),
        ("fix 1 all nve\nfix 2 all langevin/eff 1 1 1 5", "(in.x:2) is not known to keep the energy"),
    ],
)
def test_what_is_not_conserved_is_not_guessed(fixes, why):
    text = case(f"{fixes}\nrun 100")
    assert why in text and "invariant" not in parse(text).simulation.settings


@pytest.mark.parametrize(("unknown", "what"), [("units ${u}", "'units ${u}'"), ("read_restart r", "'read_restart r'")])
@pytest.mark.parametrize(
    ("dt", "said"),
    [
        ("", "the range of dt: the deck sets no timestep"),
        ("timestep ${dt}\n", "in.x:2), nor its range"),
    ],
)
def test_units_that_are_not_known_leave_the_range_of_dt_open(tmp_path, unknown, what, dt, said):
    (tmp_path / "in.x").write_text(f"{unknown}\n{dt}fix 1 all nve\nrun 90000")
    (path,) = init_lammps(tmp_path / "in.x", tmp_path / "case")
    text = path.read_text()
    assert f"# Not decided: the unit style: that of {what} (" in text and said in text
    assert "span" not in parse(text).simulation.settings and "units" not in parse(text).simulation.settings
    with pytest.raises(CaseError, match=r'lacks "dt_min".*\n.*lacks "dt_max"(?s:.*)\[limits\] needs dt_min'):
        check(path)


def test_a_dt_that_is_a_number_needs_no_units():
    text = case("units ${u}\ntimestep 0.0&\n04\nfix 1 all nve\nrun 100")
    assert (parse(text).limits.dt_min, parse(text).limits.dt_max) == (0.004, 0.16)
    assert "units" not in parse(text).simulation.settings and "range of dt" not in text


def test_without_an_invariant_the_error_is_missing(tmp_path):
    (tmp_path / "in.x").write_text("fix 1 all print 10 x\nrun 100")
    (path,) = init_lammps(tmp_path / "in.x", tmp_path / "case")
    with pytest.raises(CaseError, match=r'lacks "tolerance".*\n.*lacks "error_field"') as refused:
        check(path)
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("runs", "steps"),
    [
        ("run 20 upto", 2),
        ("run 100\nrun 250 upto\nrun 50", 30),
        ("run 100\nrun 100 upto", 10),
        ("run ${n}\nrun 200 upto\nrun 300 upto", None),
        ("run 100\nreset_timestep 0\nrun 20 upto", None),
        ("run 100\nif '${a} > 1' then 'reset_timestep 0'\nrun 120 upto", None),
        ("read_restart r\nrun 100 upto", None),
        ("run 100 upto\nrun ${n} upto", None),
    ],
)
def test_run_upto_counts_from_the_steps_before(runs, steps):
    text = case(f"timestep 1\nfix 1 all nve\n{runs}")
    assert ("how long" in text) == (steps is None)
    assert parse(text).run.steps == (steps or 1000)
    assert "run 300 upto" not in text


def test_comments_may_be_in_any_encoding(tmp_path):
    (tmp_path / "in.x").write_bytes(b"\xef\xbb\xbfunits real # caf\xe9 \rtimestep 3\nfix 1 all nve\nrun 100\n")
    (path,) = init_lammps(tmp_path / "in.x", tmp_path / "case")
    spec = check(path)
    assert spec.simulation.settings["units"] == "real" and spec.limits.dt_max == 40.0


def test_lengths_and_dts_that_are_variables_are_said():
    text = case("units metal\ntimestep ${dt}\nfix 1 all nve\nrun ${n}\nrun ${n} upto")
    assert "how long 'run ${n}' (in.x:4) is" in text and "how long 'run ${n} upto' (in.x:5) is" in text
    assert "the dt of 'timestep ${dt}' (in.x:2); the range is that of LAMMPS's default" in text
    assert parse(text).run.steps == 1000


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("minimize 0 0 1 1\nrun 1", "cannot be driven"),
        ("run 1\nunits foo", "in.x:2: 'units foo' names no unit style; write one of lj, real, metal"),
        ("units foo\nunits real\nrun 1", "in.x:1: 'units foo' names no unit style"),
        ("units\nrun 1", "in.x:1: 'units' names no unit style"),
        (None, "cannot be used"),
    ],
)
def test_a_deck_that_cannot_be_driven_leaves_no_case(tmp_path, text, why):
    if text:
        (tmp_path / "in.x").write_text(text)
    with pytest.raises(CouplerError, match=why):
        init_lammps(tmp_path / "in.x", tmp_path / "case")
    assert not (tmp_path / "case").exists()


def test_run_lines_before_the_energy_is_conserved_are_left_uncoupled():
    text = case(
        "timestep 0.1\nfix 1 all nve/limit 0.1\nrun 77\nunfix 1\ntimestep 0.002\nfix 1 all nve\nrun 330\nrun 20"
    )
    spec = parse(text)
    assert spec.simulation.settings["equilibration"] == 1 and spec.simulation.settings["invariant"] == "etotal"
    assert (spec.simulation.settings["every"], spec.run.steps, spec.limits.dt_max) == (10, 35, 0.08)
    assert "its 2 run lines count MD steps" in text and "what is conserved" not in text


def test_variables_that_hold_a_number_are_read():
    text = case("variable dt equal 0.004\nvariable n index 500\ntimestep ${dt}\nfix 1 all nve\nrun $n")
    spec = parse(text)
    assert (spec.limits.dt_min, spec.run.steps) == (0.004, 50) and "Not decided: how long" not in text
    stepped = case("variable n index 500 600\nvariable k index 3\nnext k\nfix 1 all nve\nrun $n\nrun $k")
    assert stepped.count("# Not decided: how long") == 2
    perhaps = case('variable n index 500\nif "1 > 0" then "variable n delete"\nfix 1 all nve\nrun $n')
    assert "# Not decided: how long 'run $n'" in perhaps


def test_a_dt_that_must_stay_is_said():
    text = case("fix 1 all nve\nfix 2 all deform 1 x erate 0.1\nrun 100")
    assert "# Not decided: another dt than the deck's, which only mode shadow keeps: 'fix 2 all deform" in text


def test_any_name_of_a_deck_makes_a_case(tmp_path):
    deck = tmp_path / 'in "q" \\u00e4'
    deck.write_text("fix 1 all nve\nrun 100")
    (path,) = init_lammps(deck, tmp_path / "case")
    assert check(path).simulation.settings["input"] == str(deck)


def test_a_file_that_is_included_and_not_there_is_said_with_its_line(tmp_path):
    (tmp_path / "in.x").write_text("units lj\ninclude pot.lmp\nrun 100")
    with pytest.raises(
        CaseError, match=r"in.x:2: 'include pot.lmp': pot.lmp cannot be read \(No such file.*current fol"
    ):
        init_lammps(tmp_path / "in.x", tmp_path / "case")
