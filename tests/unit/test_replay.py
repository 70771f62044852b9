"""A record played as a simulation: BP5 recordings and NumPy series."""

from __future__ import annotations

import gc
import os

import msgspec
import numpy as np
import pytest
from playing import Part, play
from recorded import DT, NEEDS_ADIOS, record, state

from coupler import registry
from coupler.errors import PluginError, SchemaMismatch, SimulationFailed
from coupler.testing.simulation_check import check_simulation
from schemas.fields import Block, Snapshot
from sim_clients.recording import Recording

SERIES = {
    "u": {"unit": "m/s", "kind": "cell", "role": "state", "blend": "linear"},
    "load": {"unit": "N", "kind": "scalar", "role": "control"},
}


@pytest.fixture
def recording(tmp_path):
    return record(tmp_path / "recording.bp", *range(30))


@pytest.fixture
def npz(tmp_path):
    u = np.cumsum(np.ones((30, 4, 2), np.float32), axis=0)
    np.savez(tmp_path / "s.npz", u=u, load=np.arange(30.0) // 10, other=np.zeros(3))
    return tmp_path / "s.npz"


@NEEDS_ADIOS
def test_keeps_the_contract(recording):
    report = check_simulation(lambda: play(recording))
    assert report.defect == 0.0 and report.unmoved == () and not report.drifts


def test_a_series_keeps_the_contract(npz):
    report = check_simulation(lambda: play(npz, dt=0.5, series=SERIES))
    assert report.defect == 0.0 and report.unmoved == ()


@NEEDS_ADIOS
def test_a_run_folder_is_played_from_its_recording(recording):
    simulation = play(recording.parent)
    assert simulation.last_step == 29
    assert [spec.name for spec in simulation.fields()] == ["u", "x", "load", "lift"]  # the server's own are left out
    for step in range(30):
        shown = simulation.snapshot()
        assert (shown.step, shown.time, shown.dt, shown.controls_until) == (step, step * DT, DT, 29 * DT)
        assert all(np.array_equal(shown[name], state(step)[name]) for name in shown.blocks)
        if step < 29:
            simulation.integrate(DT, 1)
    with pytest.raises(
        SimulationFailed, match=r"played to its end, step 29.*step 30 was asked for; set run.steps to 29"
    ):
        simulation.integrate(DT, 1)


@NEEDS_ADIOS
def test_a_learned_state_stands_until_the_next_direct_step(recording):
    simulation = play(recording)
    learned = Snapshot.of(4, 4 * DT, DT, u=np.full((6, 3), 7, np.float32))
    x = Block(np.arange(5.0)[::-1].copy(), ids=np.arange(5)[::-1].copy())
    simulation.adopt(Snapshot(4, 4 * DT, DT, {**learned.blocks, "x": x}))
    shown = simulation.snapshot()
    assert shown.step == 4 and (shown["u"] == 7).all() and shown["x"].tolist() == [0, 1, 2, 3, 4]
    assert shown["lift"] == state(4)["lift"]
    saved = simulation.save()
    simulation.integrate(DT, 1)
    assert np.array_equal(simulation.snapshot()["u"], state(5)["u"])
    simulation.restore(saved)
    assert (simulation.snapshot()["u"] == 7).all()
    with pytest.raises(TypeError, match="restore got a str"):
        simulation.restore("token")


@NEEDS_ADIOS
def test_what_cannot_be_adopted(recording):
    simulation = play(recording)
    u, x = Block(np.zeros((6, 3), np.float32), (0, 0)), Block(np.zeros(5), ids=np.arange(5))
    for snapshot, error, sentence in (
        (Snapshot(40, 40 * DT, DT, {"u": u, "x": x}), SimulationFailed, "of step 40, and the record ends at step 29"),
        (Snapshot(4, 5 * DT, DT, {"u": u, "x": x}), SimulationFailed, "of time 1.25, where the record is at 1"),
        (Snapshot(4, 4 * DT, DT, {"u": u}), SchemaMismatch, "holds no field 'x'"),
        (Snapshot(4, 4 * DT, DT, {"u": Block(u.array[:3], (0, 0)), "x": x}), SchemaMismatch, "'u' .* another rank's"),
        (Snapshot(4, 4 * DT, DT, {"u": Block(u.array[:, :2].copy(), (0, 2)), "x": x}), SchemaMismatch, "does not fit"),
    ):
        with pytest.raises(error, match=sentence):
            simulation.adopt(snapshot)
    assert simulation.snapshot().step == 0


@NEEDS_ADIOS
def test_ranks_share_rows_and_ids(recording):
    parts = [play(recording, Part(rank, 3)).snapshot() for rank in range(3)]
    assert np.array_equal(np.concatenate([part["u"] for part in parts]), state(0)["u"])
    assert [part.blocks["u"].offset for part in parts] == [(0, 0), (2, 0), (4, 0)]
    assert np.concatenate([part.blocks["x"].ids for part in parts]).tolist() == [0, 1, 2, 3, 4]
    assert all(part["lift"] == 0 for part in parts)
    many = [play(recording, Part(rank, 7)).snapshot() for rank in range(7)]
    assert [len(part["x"]) for part in many] == [1, 1, 1, 1, 1, 0, 0] and [len(part["u"]) for part in many][-1] == 0
    assert np.array_equal(np.concatenate([part["u"] for part in many]), state(0)["u"])
    assert np.concatenate([part.blocks["x"].ids for part in many]).tolist() == [0, 1, 2, 3, 4]


@NEEDS_ADIOS
def test_gaps_and_branches_that_were_left(tmp_path, caplog):
    path = record(tmp_path / "r.bp", 0, 1, 2, 10, 11, 12, 13, 12, 13, 14)
    simulation = play(path)
    assert simulation.last_step == 4 and simulation.snapshot().time == 10 * DT
    simulation.integrate(DT, 2)
    assert simulation.snapshot()["x"][0] == 1012.0  # the branch that was kept
    assert "from recorded step 10 to 14; 5 states are left out (the record has steps 10 to 14" in caplog.text
    assert play(path, stop=2).last_step == 2 and play(path, start=11).last_step == 3
    with pytest.raises(PluginError, match="no stretch of the record holds start = 1 to stop = 12"):
        play(path, start=1, stop=12)


@NEEDS_ADIOS
def test_another_dt_is_refused(recording):
    with pytest.raises(SimulationFailed, match=r"Step 0 of the record takes 0.25, and a step of 0.2 was asked for"):
        play(recording).integrate(0.2, 1)


@NEEDS_ADIOS
def test_the_file_is_freed(recording):
    def held():
        return [p for n in os.listdir("/proc/self/fd") if (p := _target(n)).startswith(str(recording))]

    simulation = play(recording)
    assert held()
    del simulation
    gc.collect()
    assert not held()


def _target(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


def test_a_series_has_the_types_and_shapes_of_its_file(npz):
    simulation = play(npz, dt=0.5, series=SERIES)
    u, load = simulation.fields()
    assert (u.dtype, u.shape, u.unit, u.blend) == ("<f4", (4, 2), "m/s", "linear")
    assert (load.shape, load.role) == ((), "control")
    simulation.integrate(0.5, 8)
    shown = simulation.snapshot()
    assert shown.time == 4.0 and (shown["u"] == 9).all()
    assert shown.controls_until == 4.75  # the load of step 10 differs: step 9 is the last that a horizon may reach
    simulation.integrate(0.5, 2)
    assert simulation.snapshot().controls_until == 9.75


def test_one_array_in_a_npy_file(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(4, 3))
    monkeypatch.syspath_prepend(tmp_path)  # as run.path is: a relative path is found beside the case
    simulation = play("a.npy", dt=1.0, series={"q": {"unit": "K", "kind": "particle", "role": "state"}})
    simulation.integrate(1.0, 3)
    assert simulation.snapshot()["q"].tolist() == [9, 10, 11]
    assert simulation.snapshot().blocks["q"].ids.tolist() == [0, 1, 2]


def test_the_other_byte_order_is_turned_as_it_is_read(tmp_path):
    told = {"unit": "m", "kind": "cell", "role": "state"}
    for name, dtype in (("b.npy", ">f8"), ("i.npy", ">i4"), ("f.npy", ">f4")):
        np.save(tmp_path / name, np.arange(12).reshape(4, 3).astype(dtype))
        simulation = play(tmp_path / name, dt=1.0, series={"q": told})
        simulation.integrate(1.0, 2)
        shown = simulation.snapshot()["q"]
        assert simulation.fields()[0].dtype == shown.dtype.str == dtype.replace(">", "<")
        assert shown.tolist() == [6, 7, 8]
    np.savez(tmp_path / "s.npz", q=np.arange(4.0).astype(">f8"), h=np.zeros((4, 2), np.float16))
    simulation = play(tmp_path / "s.npz", dt=1.0, series={"q": {"unit": "m", "kind": "scalar", "role": "control"}})
    assert simulation.snapshot().controls_until == 0.5
    with pytest.raises(PluginError, match="'h' is of type <f2; allowed are <f4"):
        play(tmp_path / "s.npz", dt=1.0, series={"h": told})


def test_arrays_of_other_names_and_the_times_of_a_file(tmp_path):
    np.savez(tmp_path / "s.npz", density=np.arange(12.0).reshape(4, 3), t=np.array([1.0, 1.5, 2.0, 2.5]))
    told = {"rho": {"unit": "1", "kind": "cell", "role": "state", "variable": "density"}}
    simulation = play(tmp_path / "s.npz", time="t", series=told)
    assert (simulation.snapshot().time, simulation.snapshot().dt) == (1.0, 0.5)
    simulation.integrate(0.5, 3)
    assert simulation.snapshot().time == 2.5 and simulation.snapshot()["rho"].tolist() == [9, 10, 11]
    np.save(tmp_path / "a.npy", np.zeros((4, 3)))
    with pytest.raises(PluginError, match="holds one array, but `series` and `time` name density, t"):
        play(tmp_path / "a.npy", time="t", series=told)


def changed(**keys):
    return {"u": {**SERIES["u"], **keys}}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "does not say what it holds: give dt and series"),
        ({"dt": 1.0, "series": {"w": SERIES["u"]}}, "holds u, load, other, but `series` names w"),
        ({"dt": 1.0, "series": {**SERIES, "other": SERIES["load"]}}, "their lengths are .*'other': 3"),
        ({"dt": 1.0, "series": changed(kind="scalar")}, "its kind is 'scalar'; a scalar is one number"),
        ({"dt": 1.0, "series": {"u": {"unit": "m", "kind": "cell"}}}, "missing required field `role`"),
        ({"dt": 1.0, "series": changed(role="control")}, "control 'u' is of kind cell"),
    ],
)
def test_series_that_cannot_be_played(npz, settings, sentence):
    with pytest.raises(PluginError, match=sentence):
        play(npz, **settings)


def test_paths_that_lead_nowhere(tmp_path):
    with pytest.raises(PluginError, match=r"there is no nowhere.bp, neither in the current folder"):
        play("nowhere.bp")
    with pytest.raises(PluginError, match=r"is no recording, no run folder with a recording.bp in it"):
        play(tmp_path)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(PluginError, match="cannot be read as a NumPy file"):
        play(tmp_path / "x.npy", dt=1.0, series={"u": SERIES["u"]})


def test_settings_come_back_from_the_run_file():
    told = {"path": "a.npz", "dt": 0.5, "series": SERIES}
    values = msgspec.convert(told, registry.settings_type(Recording))
    assert values.series["u"].kind == "cell" and values.series["load"].blend == "never"
