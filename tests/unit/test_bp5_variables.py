"""BP5 files that somebody else wrote, played as a simulation."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from foreign import write
from playing import Part, play
from recorded import NEEDS_ADIOS, record

from coupler.bulks import bp5_variables
from coupler.bulks.bp5 import INDEX
from coupler.bulks.bp5_variables import VariableReader
from coupler.errors import PluginError, SimulationFailed
from coupler.testing.simulation_check import check_simulation

pytestmark = NEEDS_ADIOS
CELL = {"unit": "kg/m3", "kind": "cell", "role": "state"}
SCALAR = {"unit": "N", "kind": "scalar", "role": "control"}
RHO = {"rho": {**CELL, "variable": "density"}}


def density(k):
    return k + np.arange(15.0).reshape(5, 3)


def whole(n=30, dt=0.5):
    return [{"density": density(k), "t": np.float64(dt * k), "load": np.float32(k // 10)} for k in range(n)]


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "theirs.bp", whole())


def test_keeps_the_contract(file):
    report = check_simulation(lambda: play(file, time="t", series={**RHO, "load": SCALAR}))
    assert report.defect == 0.0 and report.unmoved == ()


def test_fields_have_the_names_of_the_case_and_the_types_and_shapes_of_the_file(file):
    simulation = play(file, time="t", series={**RHO, "load": SCALAR})
    rho, load = simulation.fields()
    assert (rho.name, rho.dtype, rho.shape, rho.unit) == ("rho", "<f8", (5, 3), "kg/m3")
    assert (load.dtype, load.shape, load.role) == ("<f4", (), "control")
    for k in range(30):
        shown = simulation.snapshot()
        assert (shown.step, shown.time, shown.dt) == (k, 0.5 * k, 0.5)
        assert np.array_equal(shown["rho"], density(k)) and shown["load"] == k // 10
        assert shown.controls_until == (4.75 if k < 10 else 9.75 if k < 20 else 14.5)
        if k < 29:
            simulation.integrate(0.5, 1)


def test_dt_in_place_of_times(file):
    simulation = play(file, dt=0.25, series={"density": CELL}, start=10, stop=20)
    simulation.integrate(0.25, 2)
    shown = simulation.snapshot()
    assert (shown.step, shown.time) == (2, 3.0) and np.array_equal(shown["density"], density(12))
    assert simulation.last_step == 10


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i4", "<i8", "|u1"])
def test_every_type_a_field_may_have(tmp_path, dtype):
    path = write(tmp_path / "x.bp", [{"x": np.arange(k, k + 4).astype(dtype)} for k in range(3)])
    simulation = play(path, dt=1.0, series={"x": CELL})
    simulation.integrate(1.0, 2)
    assert simulation.fields()[0].dtype == dtype and simulation.snapshot()["x"].tolist() == [2, 3, 4, 5]


def test_blocks_of_several_writers_are_one_array_and_ranks_read_their_rows(tmp_path):
    def blocks(k):
        return [((3, 0), density(k)[3:]), ((0, 0), density(k)[:3, :1]), ((0, 1), density(k)[:3, 1:])]

    path = write(tmp_path / "x.bp", [{"density": blocks(k)} for k in range(3)], {"density": (5, 3)})
    one = play(path, dt=1.0, series=RHO)
    parts = [play(path, Part(rank, 2), dt=1.0, series=RHO) for rank in range(2)]
    for simulation in (one, *parts):
        simulation.integrate(1.0, 2)
    assert np.array_equal(one.snapshot()["rho"], density(2))
    assert [part.snapshot().blocks["rho"].offset for part in parts] == [(0, 0), (3, 0)]
    assert np.array_equal(np.concatenate([part.snapshot()["rho"] for part in parts]), density(2))


def test_numbers_may_be_arrays_of_one(tmp_path):
    steps = [{"x": np.arange(4.0) + k, "t": np.array([2.0 * k]), "load": np.array([3.0 * k])} for k in range(4)]
    simulation = play(write(tmp_path / "x.bp", steps), time="t", series={"x": CELL, "load": SCALAR})
    simulation.integrate(2.0, 3)
    shown = simulation.snapshot()
    assert shown.time == 6.0 and shown["load"].shape == () and shown["load"] == 9.0


def test_the_states_are_the_steps_that_hold_all_that_is_played(tmp_path):
    """A mesh is in the first step only, diagnostics are in each, the field in every fourth."""
    steps = [{"t": np.float64(k)} | ({"x": np.full(3, float(k))} if k % 4 == 1 else {}) for k in range(14)]
    path = write(tmp_path / "x.bp", [steps[0] | {"mesh": np.arange(3.0)}, *steps[1:]])
    simulation = play(path, time="t", series={"x": CELL})
    assert simulation.last_step == 3
    for k in (1, 5, 9, 13):
        shown = simulation.snapshot()
        assert (shown.time, shown.dt) == (k, 4.0) and shown["x"].tolist() == [k] * 3
        if k < 13:
            simulation.integrate(4.0, 1)
    with pytest.raises(
        PluginError, match=r"no step that holds all .* 14 complete steps there are 'mesh' in 1, 'x' in 4"
    ):
        play(path, dt=1.0, series={"mesh": CELL, "x": CELL})


def test_each_step_is_read_when_it_is_wanted(file, monkeypatch):
    read, seen = VariableReader.read, []

    def noted(self, name, k, rows):
        seen.append((name, k))
        return read(self, name, k, rows)

    monkeypatch.setattr(VariableReader, "read", noted)
    simulation = play(file, time="t", series=RHO)
    simulation.integrate(0.5, 7)
    assert seen == [("density", 0), ("density", 7)]


def test_times_of_a_narrow_type_are_even_all_the_same(tmp_path):
    steps = [{"x": np.arange(3.0), "t": np.float32(1000.0 + 0.1 * k)} for k in range(50)]
    simulation = play(write(tmp_path / "x.bp", steps), time="t", series={"x": CELL})
    dt = simulation.snapshot().dt
    simulation.integrate(dt, 49)
    assert dt == pytest.approx(0.1, rel=1e-4) and simulation.snapshot().time == pytest.approx(1004.9, abs=1e-3)


def test_times_that_are_not_even_are_played_step_by_step(tmp_path):
    times = [0.0, 1.0, 1.5, 1.75]
    path = write(tmp_path / "x.bp", [{"x": np.arange(3.0), "t": np.float64(t)} for t in times])
    simulation = play(path, time="t", series={"x": CELL})
    with pytest.raises(SimulationFailed, match=r"Step 1 of the record takes 0.5, and a step of 1 was asked for"):
        simulation.integrate(1.0, 2)
    for dt in np.diff(times):
        simulation.integrate(float(dt), 1)
    assert simulation.snapshot().time == 1.75


def test_where_times_fall_back_the_longest_stretch_is_played(tmp_path, caplog):
    times = [0.0, 1.0, 2.0, 1.0, 2.0, 3.0, 4.0]
    path = write(tmp_path / "x.bp", [{"x": np.arange(3.0) + k, "t": np.float64(t)} for k, t in enumerate(times)])
    simulation = play(path, time="t", series={"x": CELL})
    assert simulation.last_step == 3 and simulation.snapshot()["x"][0] == 3.0
    assert "recorded step 3 to 6; 3 states are left out" in caplog.text


def odd(k):
    return {
        "density": density(k),
        "t": np.float64(0.5 * k),
        "zero": np.float64(0.0),
        "nan": np.float64(np.nan if k == 2 else k),
        "name": "text",
        "z": np.zeros(3, np.complex128),
        "short": np.zeros(3, np.int16),
        "grows": np.zeros(3 + k // 2),
        "part": [((0,), np.zeros(2))],
        "local": [((), np.zeros(2)), ((), np.ones(2))],
    }


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, r"is a BP5 file, but no recording of ours: .* it holds density \(double \(5, 3\)\), .*t \(double\)"),
        ({"dt": 1.0}, "holds density .* but does not say what it holds: give dt and series"),
        ({"series": RHO}, "does not say what it holds"),
        ({"series": RHO, "dt": 0.5, "time": "t"}, "dt = 0.5 and time = 't' both say when"),
        ({"series": {"densty": CELL}, "dt": 1.0}, "no variable 'densty'; did you mean \"density\".* it holds density"),
        ({"series": RHO, "time": "tt"}, "holds no variable 'tt'"),
        ({"series": RHO, "time": "density"}, r"time = 'density' has shape \(5, 3\) at each instant"),
        ({"series": RHO, "time": "name"}, "'name' is of type string"),
        ({"series": RHO, "time": "zero"}, "the time 'zero' never rises: it is 0.0, then 0.0"),
        ({"series": RHO, "time": "nan"}, "the time 'nan' is nan in state 2"),
        ({"series": {"z": CELL}, "dt": 1.0}, "'z' is of type double complex; allowed are float, double, int32_t"),
        ({"series": {"name": SCALAR}, "dt": 1.0}, "'name' is of type string; allowed are"),
        ({"series": {"short": CELL}, "dt": 1.0}, "'short' is of type int16_t; allowed are"),
        ({"series": {"grows": CELL}, "dt": 1.0}, r"shape \(3,\) in step 0 and \(4,\) in step 2; a field keeps"),
        ({"series": {"part": CELL}, "dt": 1.0}, r"'part' in step 0 cover 2 of the 4 cells of its shape \(4,\)"),
        ({"series": {"local": CELL}, "dt": 1.0}, "'local' is a local array, blocks without a place in a whole"),
        ({"series": {"density": SCALAR}, "dt": 1.0}, r"shape \(5, 3\) at each instant, but its kind is 'scalar'"),
        ({"series": {"t": CELL}, "dt": 1.0}, "its kind is 'cell'; a scalar is one number"),
    ],
)
def test_what_cannot_be_played(tmp_path, settings, sentence):
    path = write(tmp_path / "odd.bp", map(odd, range(4)), {"part": (4,), "local": ()})
    with pytest.raises(PluginError, match=sentence):
        play(path, **settings)


def test_files_that_are_no_bp5(tmp_path, file):
    settings = {"dt": 1.0, "series": RHO}
    (tmp_path / "empty").mkdir()
    with pytest.raises(PluginError, match="no other BP5 file"):
        play(tmp_path / "empty", **settings)
    junk = shutil.copytree(file, tmp_path / "junk.bp")
    (junk / INDEX).write_bytes(b"no index of any file " * 10)
    with pytest.raises(PluginError, match=r"junk.bp cannot be read as a BP5 file"):
        play(junk, **settings)
    index = (file / INDEX).read_bytes()
    (junk / INDEX).write_bytes(index[:37] + b"\4" + index[38:])
    for told in (settings, {}):
        with pytest.raises(PluginError, match=r"junk.bp is a BP4 file.*adios2_reorganize junk.bp new.bp"):
            play(junk, **told)
    with pytest.raises(PluginError, match="is a recording, which says itself what it holds: leave out dt"):
        play(record(tmp_path / "ours.bp", 0, 1, 2), time="time", series={"u": CELL})
    with pytest.raises(PluginError, match="holds no complete step"):
        play(write(tmp_path / "none.bp", []), **settings)


def test_without_adios2_it_says_so(file, monkeypatch):
    monkeypatch.setattr(bp5_variables, "missing", lambda: "recordings need the package adios2: install it")
    with pytest.raises(PluginError, match=r"Recordings need the package adios2: install it\."):
        play(file, dt=1.0, series=RHO)


@pytest.mark.parametrize(("cut", "left"), [(0, 30), (40, 29), (5000, 28), (10**7, 0)])
def test_lost_bytes_cost_the_states_they_belong_to(file, cut, left):
    """ADIOS2 would wait for them for ever."""
    data = file / "data.0"
    os.truncate(data, max(data.stat().st_size - cut, 0))
    if not left:
        with pytest.raises(PluginError, match="its data are missing"):
            play(file, time="t", series=RHO)
        return
    simulation = play(file, time="t", series=RHO)
    assert simulation.last_step == left - 1
    simulation.integrate(0.5, left - 1)
    assert np.array_equal(simulation.snapshot()["rho"], density(left - 1))
